"""The pages on methods, on choosing and on verdicts say what the code does and what was measured."""

import ast
import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest

from unmask.debitage import page
from unmask.methods import METHODS
from unmask.methods.method import Paper
from unmask.training import health

ROOT = Path(__file__).parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
PAGES = {name: DOCS / "methods" / f"{name.removesuffix('-v2')}.md" for name in METHODS}
PARTS = ["Idea", "Equation", "Recipe", "Deviations", "Results"]
MARK = re.compile(r"<!-- from benchmarks/results/(\w+\.json) -->\n+((?:\|.*\n)+)")
"""What stands above a table whose numbers are those of a file."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def sections(path: Path) -> dict[str, str]:
    """What stands below each heading of the second level."""
    _, *parts = re.split(r"^## (.*)\n", path.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def words(text: str) -> str:
    """Without bullets, breaks and marks between clauses: prose and a list of its parts are the same."""
    return re.sub(r"[\s\-;:.,]+", " ", text).lower()


def said(value: object) -> str:
    """A default as the tables have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(said(x) for x in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def papers(names: list[str]) -> dict[str, Paper]:
    """The recipes of a page's methods by what stands above their columns; one column where all versions have the same."""
    kinds = {"vit": "ViT", "resnet": "ResNet", "dvae": "tokenizer"}
    found: dict[str, Paper] = {}
    for kind in METHODS[names[0]].PAPERS:
        every = [METHODS[name].PAPERS[kind] for name in names]
        alike = all(paper == every[0] for paper in every)
        found |= {kinds[kind] + ("" if alike else f", version {i}"): paper for i, paper in enumerate(every, 1)}
    return found


def recipe(papers: dict[str, Paper]) -> str:
    """The table of a paper's hyper-parameters, a column for each kind of encoder."""
    rows = [["for", *papers]]
    for name, told in (
        ("encoder", lambda p: f"`{p.encoder}`"),
        ("batch", lambda p: f"{p.batch_size:,}"),
        ("rate for 256 images", lambda p: said(p.base_lr)),
        ("epochs, of them to warm up", lambda p: f"{said(p.epochs)}, {said(p.warmup)}"),
        ("optimiser", lambda p: p.optimiser + (f", betas {said(p.betas)}" if p.optimiser == "adamw" else "")),
        ("weight decay", lambda p: said(p.weight_decay) + (f" to {said(p.weight_decay_end)}" if p.weight_decay_end else "")),
        ("rate afterwards", lambda p: f"a tenth after {said(p.milestones)} of the run" if p.milestones else f"cosine to {said(p.min_lr)}"),
        ("largest gradient", lambda p: said(p.clip) if p.clip else "any"),
        ("drop path", lambda p: said(p.drop_path) if p.drop_path else "none"),
    ):  # fmt: skip
        rows.append([name, *map(told, papers.values())])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_its_page(name):
    """Five parts; the recipe and the defaults of the code; every deviation that its file tells; lines that are in the file."""
    found, kind = sections(PAGES[name]), METHODS[name]
    assert list(found) == PARTS
    assert f"unmask pretrain {name} " in found["Recipe"]
    table = recipe(papers([other for other in METHODS if PAGES[other] == PAGES[name]]))
    assert table in found["Recipe"], f"{PAGES[name]} wants\n{table}"
    for setting in dataclasses.fields(kind.Settings):
        (row,) = re.findall(rf"^\| `--{setting.name.replace('_', '-')}` \|(.*)\|$", found["Recipe"], re.MULTILINE)
        own = said(setting.default)
        assert setting.default is None or own in re.split(r" *[|;] *", row.strip()), (setting.name, own, row)
    file = ROOT / "src" / "unmask" / "methods" / f"{kind.__module__.rpartition('.')[2]}.py"
    told = ast.get_docstring(ast.parse(file.read_text()))
    assert told is not None
    deviations = told[told.index("Deviations") :]
    assert words(deviations) in words(found["Deviations"])
    source = " ".join(path.read_text() for path in file.parent.glob("*.py"))
    quoted = [code for code in re.findall(r"`([^`\n]+)`", found["Equation"]) if re.search(r"[=(+*@] ?", code)]
    assert "$$" in found["Equation"] and quoted
    for code in quoted:
        assert code in source, code
