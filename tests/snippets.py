"""What the pages say to type is done: every fenced block of README.md, CONTRIBUTING.md and docs/ is executed.

A block without a language, or called `console`, `bash` or `sh`, is of commands; `python` is of Python. `yaml`, `json` and
`toml` are parsed. `text`, `mermaid`, `latex`, `bibtex` and `html` are shown and not executed. Another language fails, and so
does a command that is not in `TOOLS`.

All blocks of a page are executed in one folder, in their order: what one writes the next reads. The folder holds what pages take
for granted (`make_images`, `RUNS`). A block that writes to what an earlier one wrote begins anew. `unmask` runs in this
process, by the function that its command calls, with the options as they stand on the page; only then is its length cut (`cut`).
"""

import contextlib
import dataclasses
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import textwrap
import tomllib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image

from unmask import cli, models
from unmask.data import sources
from unmask.data.sources import open_source
from unmask.debitage import controls, look
from unmask.evaluate import linear, splits
from unmask.methods import METHODS
from unmask.models import compact, dvae, interop, vit
from unmask.models.vit import ViT
from unmask.rl import atari
from unmask.verbs import plan
from unmask.verbs.train import Training

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

SHELL = ("", "console", "bash", "sh")
PARSED: dict[str, Callable[[str], Any]] = {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}
SHOWN = ("text", "mermaid", "latex", "bibtex", "html")


# How everything is made short. Nothing else on a page is changed


INSTEAD = {
    '"wds:/local/shards/{000..511}.tar"': "wds:local/shards/{000..001}.tar",  # two shards, in this folder
    "/shared/runs/": "runs/",
    "$SLURM_ARRAY_TASK_ID": "1",
    "--share 1/2": "--share 1/9",  # one cell
    "mask_ratio=0.15,0.5,0.75,0.9": "mask_ratio=0.5,0.75",
    "mask_ratio=0.5,0.75,0.9": "mask_ratio=0.5,0.75",
    "--share 1/4": "--share 1/2",
    "--memory 4096": "--memory 8",  # there are 24 images
    "--labels 10%": "--labels 60%",
    "--image-size 84": "--image-size 24",  # patches of 12
}
"""Words of a page, and what stands for them."""
TRAINED = {"steps": 2, "epochs": None, "batch_size": 8, "workers": 0}
"""Every training, whatever it says of these. Of --finetune-steps and --finetune-epochs likewise."""
PIXELS = 32
"""--image-size of a training, if it says a larger one."""
BLOCKS = {name: (192, 4, 3) for name in vit.SIZES}
"""Width, depth and heads of every ViT, whatever its name."""
COMPACT = {depth: (128, 2, 1.0) for depth in compact.SIZES}
"""Width, heads and MLP ratio of every compact transformer, whose depth and tokenizer are as named."""
ENCODERS = {
    "resnet18": "resnet10t",
    "resnet50": "resnet10t",
    "dvae-base/8": "dvae-tiny/8",
    "dvae-small/8": "dvae-tiny/8",
}
"""What is built for what is named or chosen."""
CUT: dict[str, dict[str, Any]] = {
    "study simulate": {"particles": 48},
    "study run": {"quick": True, "permutations": 95},  # its networks: tests/test_study_verb.py
    "robustness": {"images": 4},
    "quickstart": {"steps": 2},
    "dqn": {"evaluate": 2},
    "dqn play": {"episodes": 2},
    "dqn record": {"images": 24},
    "plan": {"image_size": "32", "batch_size": 64},
}
"""Other verbs' settings, by verb."""
GAMES = {"steps": 64, "learn_from": 16, "environments": 2, "batch_size": 4, "replay": 64}
"""Of what learns to play; its games end after a hundred steps."""
SERVERS = ("ui",)
"""Verbs that serve until they are stopped: their options are parsed."""
EVERY = 20
"""Of the crops in `photos` and `digits` so many are there."""


def cut(verb: str, settings: Any) -> Any:
    """The settings of a verb, as short as it can be."""
    changes = dict(CUT.get(verb, {}))
    if isinstance(settings, Training):
        changes |= TRAINED
        if settings.image_size is not None and max(map(int, str(settings.image_size).split("x"))) > PIXELS:
            changes["image_size"] = str(PIXELS)
    if hasattr(settings, "finetune_steps") and 0 not in (settings.finetune_steps, settings.finetune_epochs):
        changes |= {"finetune_steps": 2, "finetune_epochs": None}
    return dataclasses.replace(settings, **changes)


@contextlib.contextmanager
def short() -> Iterator[None]:
    """Everything that is called meanwhile is cut."""
    # All are imported before the first is cut: one imported later would keep what it takes from another, cut for good
    verbs = {
        verb: (importlib.import_module(f"unmask.verbs.{module}"), name)
        for verb, (module, _, name, _) in cli.VERBS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        for verb, (where, name) in verbs.items():
            act = getattr(where, name)

            def told(*given: Any, verb: str = verb, act: Callable = act) -> Any:
                if verb in SERVERS:
                    return None
                at = int(isinstance(given[0], str))  # behind the name of a method
                if verb == "dqn":
                    given = (given[0], dataclasses.replace(given[1], **GAMES))
                return act(*given[:at], cut(verb, given[at]), *given[at + 1 :])

            patch.setattr(where, name, told)
            if verb == "pretrain":
                patch.setattr("unmask.verbs.quickstart.pretrain", told)
        for kind in ("digits", "photos"):
            opened = getattr(sources, f"_open_{kind}")

            def fewer(name: str, split: str, opened: Callable = opened) -> Any:
                source = opened(name, split)
                return source.subset(np.arange(0, len(source), EVERY))

            patch.setattr(sources, f"_open_{kind}", fewer)
        build = models.build
        patch.setattr(models, "build", lambda name, **options: build(ENCODERS.get(name, name), **options))
        patch.setitem(dvae.SIZES, "dvae-tiny", 8)
        for depth, size in COMPACT.items():
            patch.setitem(compact.SIZES, depth, size)
        for name in vit.SIZES:
            patch.setitem(vit.SIZES, name, BLOCKS[name])
        patch.setattr(atari, "LONGEST", 400)
        patch.setattr(plan, "SECONDS", 0.0)
        patch.setattr(plan, "TIMED", 1.0)
        patch.setattr(plan, "largest", lambda play, batch_size, free: batch_size * (play(batch_size).peak <= free))
        patch.setattr(linear, "LEAST_STEPS", 5)
        patch.setitem(linear.linear.__wrapped__.__kwdefaults__, "epochs", 2)
        patch.setattr(linear, "PENALTIES", linear.PENALTIES[:1])
        patch.setattr(splits.folds, "__defaults__", (None, 2, 0))  # two folds, where no number is given
        patch.setattr(controls, "TREES", 3)
        patch.setattr(
            look, "FEWEST", 10_000
        )  # no UMAP, which is compiled for ten seconds: test_debitage_pictures.py looks at it
        save = Figure.savefig
        patch.setattr(Figure, "savefig", lambda figure, *given, **said: save(figure, *given, **said | {"dpi": 20}))
        yield


# What pages take for granted


RUNS = {
    "runs/mine": "pretrain mae --data path/to/images --encoder vit-tiny/8 --image-size 32 --out runs/mine",
    "runs/other": "pretrain simclr --data path/to/images --encoder vit-tiny/8 --image-size 32 --out runs/other",
    "runs/a": "pretrain mae --data path/to/images --encoder vit-tiny/8 --image-size 32 --out runs/a",
    "runs/tuned": "finetune --data labelled/ --encoder cct-2/3x2 --image-size 32 --out runs/tuned",
    "runs/pong": "dqn --env Pong --out runs/pong",
    "packed/mine": "pack path/to/images --out packed/mine",
    "studies/first": "study simulate --out studies/first",
}
"""Runs and the like, by name, and the command that makes each where a page names it without having made it."""
STUDY = "studies/first"
"""Whose content is laid out where a page names study.yaml alone."""


def make_images(folder: Path) -> None:
    """Small pieces of real photographs, under every name that pages give to images."""
    source = open_source("photos")
    names = ("brick", "grass")
    rows = np.flatnonzero(source.table["label"].isin(names))
    pieces = [source.image(int(i))[:, :PIXELS, :PIXELS].permute(1, 2, 0).numpy() for i in rows[::24][:24]]
    labels = [source.table["label"].iat[i] for i in rows[::24][:24]]

    def save(path: str, piece: np.ndarray) -> str:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(piece).save(folder / path)
        return path

    for name in ("path/to/images", "path/to/labelled", "path/to/held-out", "labelled", "held-out"):
        for i, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
            save(f"{name}/{label}/{i}.png", piece)
    shutil.copytree(folder / "labelled", folder / "path/to/labelled/images/it/never/saw")
    for name in ("photos", "unlabelled", "new/images", "images/train", "images/test"):
        for i, piece in enumerate(pieces):
            save(f"{name}/{i}.jpg", piece)
    for name in ("path/to/image.png", "photo.jpg", "image.png"):
        save(name, pieces[0])
    files = [save(f"pieces/{i}.png", piece) for i, piece in enumerate(pieces)]
    table = pd.DataFrame({"image": files, "species": labels, "label": labels})
    table["site"] = table["patient"] = [f"{label}-{i % 4}" for i, label in enumerate(labels)]
    table.to_csv(folder / "labelled.csv", index=False)
    make_masks(folder, len(pieces))
    make_boxes(folder, files)
    make_packages(folder, table)
    torch.manual_seed(0)
    state = interop.to_timm(ViT((PIXELS, PIXELS), 8, 3, 192, 1, 3))
    torch.save(state, folder / "cct_7_3x1_32_cifar10_300epochs.pth")  # only its name is theirs


def make_masks(folder: Path, count: int) -> None:
    """Of every image of images/train and images/test, the class of each pixel: the left half 0, the right 1."""
    halves = np.repeat(np.uint8([[0, 1]]), PIXELS // 2, axis=1).repeat(PIXELS, axis=0)
    for split in ("train", "test"):
        (folder / "masks" / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(halves).save(folder / "masks" / split / f"{i}.png")


def make_boxes(folder: Path, files: list[str]) -> None:
    """One box in each image, in COCO's form and in Pascal VOC's."""
    side = {"height": PIXELS, "width": PIXELS}
    box = {"category_id": 1, "bbox": [4, 6, 20, 18], "area": 360, "iscrowd": 0}
    for name in ("boxes.json", "test.json"):
        content = {
            "images": [{"id": i, "file_name": file, **side} for i, file in enumerate(files)],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [{"id": i, "image_id": i, **box} for i in range(len(files))],
        }
        (folder / name).write_text(json.dumps(content))
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / "VOC" / part).mkdir(parents=True)
    size = f"<size><width>{PIXELS}</width><height>{PIXELS}</height></size>"
    edges = "<bndbox><xmin>5</xmin><ymin>7</ymin><xmax>24</xmax><ymax>24</ymax></bndbox>"
    for i, file in enumerate(files):
        Image.open(folder / file).save(folder / f"VOC/JPEGImages/{i}.jpg")
        text = f"<annotation>{size}<object><name>cell</name><difficult>0</difficult>{edges}</object></annotation>"
        (folder / f"VOC/Annotations/{i}.xml").write_text(text)
    for split in ("train", "test"):
        (folder / f"VOC/ImageSets/Main/{split}.txt").write_text("\n".join(map(str, range(len(files)))))


def make_packages(folder: Path, table: pd.DataFrame) -> None:
    """The same images in Parquet tables and in tar shards."""
    packed = [(folder / file).read_bytes() for file in table["image"]]
    (folder / "cifar10").mkdir()
    for split in ("train", "test"):
        frame = pd.DataFrame({"image": [{"bytes": png, "path": None} for png in packed], "label": table["label"]})
        frame.to_parquet(folder / f"cifar10/{split}.parquet")
    (folder / "local/shards").mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"local/shards/{shard:03}.tar", "w") as tar:
            for i in range(shard, len(packed), 2):
                entry = tarfile.TarInfo(f"{i:04}.png")
                entry.size = len(packed[i])
                tar.addfile(entry, io.BytesIO(packed[i]))


# Pages and their blocks


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    """Of its first line."""
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*\{?\.?([\w+-]*).*$")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, also those that stand indented in lists and tabs."""
    found, begun, text = [], None, page.read_text(encoding="utf-8")
    for words, stands in INSTEAD.items():
        text = text.replace(words, stands)
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if begun is None and fence:
            begun = (fence[2], fence[3].lower(), number + 1, [])
        elif begun is not None and fence and fence[2] == begun[0] and not fence[3]:
            found.append(Block(called(page), begun[2], begun[1], textwrap.dedent("\n".join(begun[3]))))
            begun = None
        elif begun is not None:
            begun[3].append(line)
    assert begun is None, f"{called(page)}:{begun[2]}: a block without an end" if begun else ""
    return found


def called(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The commands of a block with their lines: lines that end in a backslash go on, comments and output are left out."""
    lines = block.text.splitlines()
    prompts = any(line.startswith("$ ") for line in lines)
    number = 0
    while number < len(lines):
        begun, text = number, lines[number]
        while text.endswith("\\"):
            number += 1
            text = text[:-1] + lines[number]
        number += 1
        if prompts:  # what does not follow a prompt is what is printed
            if not text.startswith("$ "):
                continue
            text = text[2:]
        for inner in re.findall(r"\$\(([^()]*)\)", text):  # what the shell would put there
            if inner.startswith("unmask"):
                yield block.line + begun, shlex.split(inner)
        text = re.sub(r"\$\([^()]*\)", "_", text)
        lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        one: list[str] = []
        for word in [*lexer, ";"]:
            if word in ("&&", "||", ";", "|", "&"):
                if one:
                    yield block.line + begun, one
                one = []
            else:
                one.append(word)


def spans(page: Path) -> Iterator[tuple[int, str]]:
    """What stands in code between words, outside of blocks, with its line."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield from ((number, code) for code in re.findall(r"`([^`]+)`", line))


def options() -> set[str]:
    """Every option of every verb and method, as it is typed."""
    found = {"--help", "--version", *getattr(cli, "EVERYWHERE", ())}
    for module, settings, _, _ in cli.VERBS.values():
        where = importlib.import_module(f"unmask.verbs.{module}")
        for kind in (
            getattr(where, settings),
            getattr(where, "Own", None),
            *(each.Settings for each in METHODS.values()),
        ):
            for field in dataclasses.fields(kind) if kind is not None else ():
                name = field.name.replace("_", "-")
                found |= {f"--{name}", f"--no-{name}"}
    return found


# What is done with a command


class Wrong(Exception):
    """A command of a page that does not do what it says."""


def unmask(words: list[str]) -> None:
    """Run a command in this process."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.main(words)
    except SystemExit as stop:
        if stop.code:
            raise Wrong(f"exit code {stop.code}: {said.getvalue().strip()[-600:]}") from None


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def an_extra(name: str) -> None:
    if name not in project()["optional-dependencies"]:
        raise Wrong(f"pyproject.toml has no extra {name!r}")


def pip(words: list[str]) -> None:
    """pip install: we have the extras that are named; other packages stand in pyproject.toml, or bring uv or notebooks."""
    if words[0] != "install":
        raise Wrong("only `pip install` is known")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in (word for word in words[1:] if not word.startswith("-")):
        own = re.fullmatch(r"(?:unmask|\.|.*unmask\.git)(?:\[([\w,]+)\])?", word)
        if own is not None:
            for extra in (own[1] or "").split(",") if own[1] else ():
                an_extra(extra)
        elif word not in ("uv", "jupyterlab") and f'"{re.split("[<>=]", word)[0]}' not in text:
            raise Wrong(f"{word} is none of our dependencies")


def uv(words: list[str]) -> None:
    """uv run: its extras exist, and what it runs is checked in turn; tests, lint and types are what .ci/run runs."""
    if words[0] == "pip":
        return pip(words[1:])
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--extra":
            an_extra(rest.pop(0))
        elif option == "--with":
            rest.pop(0)
        elif option not in ("--no-dev", "--all-extras", "--dev"):
            raise Wrong(f"uv's option {option} is not known here")
    if words[0] not in ("run", "sync"):
        raise Wrong("only `uv run`, `uv sync` and `uv pip` are known")
    if rest and rest[0] in ("pytest", "ruff", "pyright"):
        if f"uv run {shlex.join(rest)}" not in (ROOT / ".ci/run").read_text(encoding="utf-8"):
            raise Wrong(".ci/run does not run this")
    elif rest:
        do(rest)


def python(words: list[str]) -> None:
    """python -m unmask: run. python benchmarks/x.py: the file exists, and its own parser knows the options."""
    if words[:2] == ["-m", "unmask"]:
        return unmask(words[2:])
    script = ROOT / words[0]
    if not script.is_file():
        raise Wrong(f"there is no {words[0]}")
    text = script.read_text(encoding="utf-8")
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        if f'"{option}"' not in text:
            raise Wrong(f"{words[0]} has no {option}")


def torchrun(words: list[str]) -> None:
    """Its options are parsed by torch's own parser; what it starts in many processes runs in this one."""
    from torch.distributed.run import get_args_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = get_args_parser().parse_args(words)
    except SystemExit:
        raise Wrong(said.getvalue().strip()[-300:]) from None
    if not given.module or given.training_script != "unmask":
        raise Wrong("torchrun starts something else than `-m unmask`")
    unmask(given.training_script_args)


def srun(words: list[str]) -> None:
    while words[0].startswith("-"):
        words = words[1:]
    do(words)


def jupyter(words: list[str]) -> None:
    if not (ROOT / words[-1]).is_dir():
        raise Wrong(f"there is no folder {words[-1]}")


def shown(words: list[str]) -> None:
    """Of the shell itself, or of a machine's own: `bash -n` has read it."""


KNOWN = (
    "cd",
    "ls",
    "cat",
    "head",
    "jq",
    "mkdir",
    "export",
    "source",
    "eval",
    "git",
    "scontrol",
    "sbatch",
    "open",
    "uvx",
)
TOOLS: dict[str, Callable[[list[str]], None]] = dict.fromkeys(KNOWN, shown) | {
    "unmask": unmask,
    "pip": pip,
    "uv": uv,
    "python": python,
    "torchrun": torchrun,
    "srun": srun,
    "jupyter": jupyter,
}


def do(words: list[str]) -> None:
    """One command, without what the shell makes of it."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not words:
        return
    if words[0] not in TOOLS:
        raise Wrong(f"what is to become of {words[0]!r} is not known: see TOOLS in tests/snippets.py")
    if ">" in words:
        at = words.index(">")
        with Path(words[at + 1]).open("w") as file, contextlib.redirect_stdout(file):
            return TOOLS[words[0]](words[1:at])
    TOOLS[words[0]](words[1:])


# A page from its first block to its last


OUT = re.compile(r"--out[ =]([^\s\"']+)|\bout=(?:Path\()?[\"']([^\"']+)")


class Folder:
    """Where a page is executed, and where what it takes for granted is made once for all pages."""

    def __init__(self, made: Path, here: Path):
        self.made, self.here = made, here
        shutil.copytree(made, here, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", "packed", "studies"))

    def begin(self, block: Block) -> None:
        """Put away what the block is to write, and lay out what it names and nobody has made."""
        text = "\n".join(line.split(" #")[0] for line in block.text.splitlines())
        for line in text.splitlines():
            for found in OUT.finditer(line):
                old = self.here / (found[1] or found[2])
                given = (self.made / (found[1] or found[2])).exists() and (found[1] or found[2]) not in RUNS
                if (
                    "resume" in line
                    or given
                    or not old.exists()
                    or not old.resolve().is_relative_to(self.here.resolve())
                ):
                    continue
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        if re.search(r"(?<![\w/])study\.yaml", text) and not (self.here / "study.yaml").exists():
            shutil.copytree(self.one(STUDY), self.here, dirs_exist_ok=True)
        for name in RUNS:
            mention = re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", text)
            written = next((found for found in OUT.finditer(text) if (found[1] or found[2]) == name), None)
            first = mention is not None and (written is None or mention.start() < written.start())
            if not first or (self.here / name).exists():
                continue
            shutil.copytree(self.one(name), self.here / name)

    def one(self, name: str) -> Path:
        """One of RUNS, made at the first call."""
        if not (self.made / name).exists():
            with contextlib.chdir(self.made):
                unmask(shlex.split(RUNS[name]))
        return self.made / name


def execute(page: Path, made: Path, here: Path) -> int:
    """Every block of a page. Returns how many were executed or parsed; fails with the page and the line of what is wrong."""
    done, names = 0, {"images": torch.zeros(2, 1, PIXELS, PIXELS, dtype=torch.uint8)}
    folder = Folder(made, here)
    with contextlib.chdir(here), short():
        for block in blocks(page):
            if block.language in SHOWN:
                continue
            done += 1
            if block.language in SHELL:
                folder.begin(block)
                shell(block)
            elif block.language in ("python", "py"):
                folder.begin(block)
                run_python(block, names)
            elif block.language in PARSED:
                try:
                    PARSED[block.language](block.text)
                except Exception as error:
                    pytest.fail(f"{block.where}: {error}", pytrace=False)
            else:
                pytest.fail(f"{block.where}: a block of {block.language!r}: see tests/snippets.py", pytrace=False)
    return done


def shell(block: Block) -> None:
    if not block.text.startswith("$ "):
        read = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
        if read.returncode:
            pytest.fail(f"{block.where}: {read.stderr.strip()}", pytrace=False)
    for line, words in commands(block):
        try:
            do(words)
        except Wrong as wrong:
            pytest.fail(f"{block.page}:{line}: {shlex.join(words)}\n    {wrong}", pytrace=False)
        except Exception:
            pytest.fail(f"{block.page}:{line}: {shlex.join(words)}\n{traceback.format_exc()}", pytrace=False)


def run_python(block: Block, names: dict[str, Any]) -> None:
    """In the page's own names, with the page's lines in what is said of an error."""
    try:
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == block.page]
        line = lines[-1] if lines else getattr(error, "lineno", block.line)
        pytest.fail(f"{block.page}:{line}: {type(error).__name__}: {error}\n{traceback.format_exc()}", pytrace=False)
