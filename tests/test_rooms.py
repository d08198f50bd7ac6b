"""The house: a room imports only what lies below it."""

import ast
from pathlib import Path

import unmask

ROOT = Path(unmask.__file__).parent
# From the roof to the ground; rooms of one line may not import each other, except for the ground's own order.
ORDER = [
    "__main__",
    "cli",
    "__init__",
    "verbs",
    "debitage",
    "web",
    "rl",
    "report",
    "card",
    "figures",
    "evaluate",
    "methods",
    "models",
]
GROUND = {
    "training": {"errors", "screen"},
    "data": {"errors", "screen"},
    "layers": {"errors"},
    "screen": set(),
    "errors": set(),
}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "unmask")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "unmask":
                yield from (
                    f"unmask.{alias.name}"
                    if (ROOT / alias.name).exists() or (ROOT / f"{alias.name}.py").exists()
                    else "unmask"
                    for alias in node.names
                )
            elif node.module and node.module.startswith("unmask."):
                yield node.module


def test_imports_go_down_only():
    upwards = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            other = room_of(module)
            if other == room or (other == "__init__" and room in ("verbs", "cli")):  # the version
                continue
            allowed = GROUND[room] if room in GROUND else {*ORDER[ORDER.index(room) + 1 :], *GROUND}
            if other not in allowed:
                upwards.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upwards, "\n".join(upwards)


def test_every_room_is_known():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert rooms == {*ORDER, *GROUND}


def test_methods_take_views_and_batches_only_from_data():
    for path in (ROOT / "methods").glob("*.py"):
        for module in imports(path):
            if room_of(module) == "data":
                assert module in ("unmask.data.augment", "unmask.data.loader"), f"{path.name} imports {module}"
