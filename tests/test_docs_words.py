"""The pages on methods, on choosing and on verdicts say what the code does and what was measured."""

import ast
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unmask.methods import METHODS
from unmask.methods.method import Paper
from unmask.rl import atari, dqn
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
    if isinstance(value, float) and 0 < value < 1e-3:
        return np.format_float_scientific(value, precision=4, trim="-", exp_digits=1)
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

    def decay(p: Paper) -> str:
        return said(p.weight_decay) + (f" to {said(p.weight_decay_end)}" if p.weight_decay_end else "")

    def after(p: Paper) -> str:
        falls = " and after ".join(map(said, p.milestones))
        return f"a tenth after {falls} of the run" if falls else f"cosine to {said(p.min_lr)}"

    told: dict[str, Callable[[Paper], str]] = {
        "encoder": lambda p: f"`{p.encoder}`",
        "batch": lambda p: f"{p.batch_size:,}",
        "rate for 256 images": lambda p: said(p.base_lr),
        "epochs, of them to warm up": lambda p: f"{said(p.epochs)}, {said(p.warmup)}",
        "optimiser": lambda p: p.optimiser + (f", betas {said(p.betas)}" if p.optimiser == "adamw" else ""),
        "weight decay": decay,
        "rate afterwards": after,
        "largest gradient": lambda p: said(p.clip) if p.clip else "any",
        "drop path": lambda p: said(p.drop_path) if p.drop_path else "none",
    }
    rows = [["for", *papers], *([name, *map(say, papers.values())] for name, say in told.items())]
    head, *lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *lines])


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


def test_the_page_of_games_says_what_the_code_does():
    """Every setting with its default, every deviation, lines that are in the file, and the scores that were published."""
    found = sections(DOCS / "dqn.md")
    for setting in dataclasses.fields(dqn.Settings):
        (row,) = re.findall(rf"^\| `--{setting.name.replace('_', '-')}` \| (\S.*?) \|", found["Recipe"], re.MULTILINE)
        ours = ("by rule", "none") if setting.default is None else (said(setting.default),)
        assert row in ours, (setting.name, row, ours)
    for module in (dqn, atari):
        told = module.__doc__ or ""
        deviations = re.sub(r"\ADeviations( from 2015)?[.:]", "", told[told.index("Deviations") :])
        page = found["Deviations"].replace("`--fire", "`fire")
        assert words(deviations.replace("`", "")).strip() in words(page.replace("`", "")), module.__name__
    source = "".join((ROOT / "src/unmask/rl" / name).read_text() for name in ("dqn.py", "replay.py"))
    quoted = [code for code in re.findall(r"`([^`\n]+)`", found["Equation"]) if re.search(r"[=(+*@] ?", code)]
    assert "$$" in found["Equation"] and len(quoted) > 6
    for code in quoted:
        assert code in source, code
    names = {each.replace("_", ""): each for each in atari.PUBLISHED}
    rows = re.findall(r"^\| ([A-Z][\w* ]+) \| (-?[\d.,]+) \| (-?[\d.,]+) \|", found["Results"], re.MULTILINE)
    assert len(rows) > 5
    for name, *scores in rows:
        known = atari.PUBLISHED[names[re.sub(r"\W", "", name).lower()]]
        assert known == tuple(float(score.replace(",", "")) for score in scores), name


def given(file: str) -> set[str]:
    """The words that a file of the code gives as verdicts: literals that are the first argument of Verdict(…), or the first of a
    pair that a function called verdict returns."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "src" / "unmask" / file).read_text())):
        if (
            isinstance(node, ast.Call)
            and (getattr(node.func, "id", None) or getattr(node.func, "attr", "")) == "Verdict"
        ):
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
        if isinstance(node, ast.FunctionDef) and node.name == "verdict":
            pairs = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
            found |= {pair.elts[0].value for pair in pairs if isinstance(pair, ast.Tuple)}  # type: ignore[attr-defined]
    return found


def test_the_hour_of_pong_that_is_told_of_is_the_one_that_is_advised():
    told = json.loads((RESULTS / "dqn.json").read_text())["cpu"]["pong"]["command"]
    advised = (DOCS / "dqn.md").read_text().split("### On little hardware")[1].split("```")[1].replace("\\\n", "")
    assert sorted(advised.replace("--out runs/pong-hour", "").split()) == sorted(told.split())


def test_each_verdict_has_its_place():
    """With a picture, what to do, and a row of the table at the top; a study's, too."""
    text = (DOCS / "working.md").read_text()
    runs = set.union(
        *(given(f"{file}.py") for file in ("training/health", "verbs/finetune", "verbs/detect", "verbs/segment"))
    )
    assert {"learning", "collapsed", "diverged"} < runs
    for word in runs:
        assert f"](#{word.replace(' ', '-')})" in text, word
        part = sections(DOCS / "working.md")[word]
        assert "![" in part and "**To do" in part, word
    for word in given("debitage/page.py"):
        assert f"### {word}\n" in text and f"[{word}](#" in text, word
    for number in (health.BETTER, health.TOLD_APART, health.COLLAPSED_RANK, health.COLLAPSED_STD, health.COLLAPSED_TARGETS,
                   health.STARVED, health.WAITING, health.SAYS_LITTLE, health.LARGE_STEP):  # fmt: skip
        assert f" {number:g}" in text, number
    for picture in re.findall(r"\]\((verdicts/\S+\.png)\)", text):
        assert (DOCS / picture).stat().st_size < 60_000, picture


def test_what_is_quoted_was_said():
    """The sentence and the first advice of each run that a picture shows."""
    runs = json.loads((RESULTS / "verdict_pictures.json").read_text())
    quoted = re.findall(r"^> \*\*(.*?)\*\*: (.*(?:\n> .*)*)", (DOCS / "working.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 10
    said = ((run, "".join(f" → {advice}" for advice in run["advice"])) for run in runs.values())
    told = {words(f"{run['verdict']} {run['sentence']}{advice}").strip() for run, advice in said}
    for word, rest in quoted:
        assert words(f"{word} " + rest.replace("\n> ", " ").replace("`", "")) in {
            each.replace("`", "") for each in told
        }, rest


def numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        return [x for each in content.values() for x in numbers(each)]
    if isinstance(content, list):
        return [x for each in content for x in numbers(each)]
    return [float(content)] if isinstance(content, int | float) and not isinstance(content, bool) else []


MARKED = [(path, *match) for path in sorted(DOCS.rglob("*.md")) for match in MARK.findall(path.read_text())]


@pytest.mark.parametrize(("path", "file", "table"), MARKED, ids=[f"{path.stem}-{file}" for path, file, _ in MARKED])
def test_tables_say_what_was_measured(path, file, table):
    """Every number of a marked table, but those in the first column, is one of the file, rounded to as many places."""
    known, seen = numbers(json.loads((RESULTS / file).read_text())), 0
    for row in table.splitlines()[2:]:
        for cell in row.split("|")[2:]:
            for number in NUMBER.findall(re.sub(r"`.*?`", "", cell)):
                places = len(number.partition(".")[2])
                assert any(f"{x:,.{places}f}" in (number, f"{number}") for x in known), (
                    f"{path.name}: {number} in {row}"
                )
                seen += 1
    assert seen


def test_what_is_planned_is_what_the_page_says():
    """Each row of which.json stands in the table by number of images and hardware, with its memory and its time."""
    units, page = {"seconds": 3600, "minutes": 60, "hours": 1}, (DOCS / "which.md").read_text()
    for row in json.loads((RESULTS / "which.json").read_text()):
        asked = f"| {row['encoder']}, {row['image_size']} | {row['batch_size']:,}, {row['epochs']} |"
        start = f"| {row['images']:,} | {row['hardware']} {asked} {row['gib']:.2f} GiB"
        (told,) = re.findall(rf"^{re.escape(start)}(?: each)? \| (\d+) (\w+)", page, re.MULTILINE)
        assert round(row["hours"] * units[told[1]]) == int(told[0]), start
