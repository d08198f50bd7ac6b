"""unmask compare RUN RUN…: several encoders on the same images, in one table and one figure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from tyro.conf import Positional

from unmask import figures
from unmask.data.source import require_classes
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate import splits
from unmask.evaluate.features import extract, pixels
from unmask.models import rebuild
from unmask.screen import console
from unmask.training import engine
from unmask.training.run import Run, write
from unmask.verbs import probe
from unmask.verbs.load import load

TESTS = ("knn", "linear")


@dataclass(frozen=True)
class Compare:
    """Test several frozen encoders on the same images, each beside itself untrained, with what their training cost."""

    runs: Positional[tuple[str, ...]]
    """Runs, or any encoders that `unmask.load` reads."""
    data: str
    """Labelled images to learn the classes from."""
    test: str | None = None
    """Labelled images to be judged on. Without it, --data is split into five folds, by --group where there is one."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables that must not be on both sides of a split: patient, site, knapper."""
    out: Path = Path("comparison")
    """Folder for compare.json and compare.png."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    workers: int = 1
    """Processes that read images."""
    seed: int = 0
    """Of the untrained encoders, the folds and the resampling."""


def compare(settings: Compare) -> dict[str, Any]:
    """Print and return the scores of every run. BadInput for fewer than two runs, or data without two classes."""
    names = called(settings.runs)
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    train = open_source(settings.data, **columns)
    require_classes(train)
    train = probe.labelled(train)
    sources = [train]
    if settings.test:
        sources.append(probe.labelled(probe.aligned(open_source(settings.test, **columns), train)))
    device = engine.choose_device(settings.device)
    precision, _ = engine.choose_precision(settings.precision, device)
    encoders = {name: load(path) for name, path in names.items()}  # all of them before the first is judged

    vectors: dict[str, Sequence[Tensor]] = {}
    read: list[list[Tensor]] = []
    for name, (encoder, preprocess) in encoders.items():
        torch.manual_seed(settings.seed)
        for kind, module in ((name, encoder), (untrained(name), rebuild(encoder.config))):
            options = {"device": device, "precision": precision, "workers": settings.workers, "title": kind}
            found = [
                extract(module.to(device), source, preprocess, encoder.image_size, **options) for source in sources
            ]
            vectors[kind], which = ([*part] for part in zip(*found, strict=True))
            read.append(which)
    encoder, preprocess = next(iter(encoders.values()))
    found = [pixels(source, preprocess, encoder.image_size, workers=settings.workers) for source in sources]
    vectors["raw pixels"], which = ([*part] for part in zip(*found, strict=True))
    if any(not torch.equal(a, b) for whose in read for a, b in zip(whose, which, strict=True)):
        raise BadInput(f"{settings.data}: some of its images can be read for one run and not for another: remove them")
    sources = [source.subset(index.numpy()) for source, index in zip(sources, which, strict=True)]

    targets, groups = [source.targets() for source in sources], probe.groups_of(sources[-1])
    if settings.test:
        parts, protocol = [(np.arange(len(sources[0])), None)], "test set"
    else:
        parts = splits.folds(targets[0], groups, seed=settings.seed)
        protocol = "by image" if groups is None else "by group"
    with console.status("judging"):
        scores = probe.compare(vectors, targets, parts, len(train.classes), settings.seed, groups)
    result = {
        "protocol": protocol,
        "train": len(sources[0]),
        "test": len(sources[-1]),
        "runs": {
            name: {"path": path, **facts(path)}
            | {test: scores[test][name] for test in TESTS}
            | {"untrained": {test: scores[test][untrained(name)] for test in TESTS}}
            for name, path in names.items()
        },
        "raw_pixels": {test: scores[test]["raw pixels"] for test in TESTS},
        "majority": scores["majority"],
    }
    result["sentence"] = sentence(result)
    show(result)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        write(settings.out / "compare.json", json.dumps(result, indent=2) + "\n")
        (settings.out / "compare.png").write_bytes(figures.comparison(result))
    except OSError as error:
        raise BadInput(f"{settings.out} cannot be written ({error.strerror}): choose another --out") from None
    console.print(f"Figure: {settings.out / 'compare.png'}   figures in numbers: {settings.out / 'compare.json'}")
    return result


def untrained(name: str) -> str:
    return f"{name}, untrained"


def called(paths: tuple[str, ...]) -> dict[str, str]:
    """A short name for each path: its last part, or all of it where two would be called alike."""
    if len(set(paths)) < max(2, len(paths)):
        raise BadInput("give at least two runs, each once, as in unmask compare runs/a runs/b --data …")
    short = [Path(path).name for path in paths]
    return {path if short.count(name) > 1 else name: path for path, name in zip(paths, short, strict=True)}


def facts(path: str) -> dict[str, Any]:
    """How a run was trained, and what that cost; nothing of an encoder from elsewhere."""
    if not (Path(path) / "settings.yaml").is_file():
        return {"method": None, "encoder": None, "verdict": None, "image_views": None, "seconds": None}
    run = Run(path)
    settings, done, history = run.settings, run.read("result.json"), run.history()
    steps = history[-1]["step"] if history else 0
    return {
        "method": settings["method"],
        "encoder": settings["settings"]["encoder"],
        "verdict": done.get("verdict"),
        "image_views": steps * settings["settings"]["batch_size"] * settings["views"],
        "seconds": sum(line["seconds"] for line in history),
    }


def sentence(result: dict[str, Any]) -> str:
    """Which run is best, and which cannot be told from it."""
    said = []
    for test in TESTS:
        runs = sorted(result["runs"].items(), key=lambda item: -item[1][test]["accuracy"])
        (best, first), others = runs[0], runs[1:]
        score = first[test]
        near = [name for name, run in others if run[test]["high"] >= score["low"]]
        told = f"not clearly above {', '.join(near)}" if near else "clearly above all others"
        if score["low"] <= result["raw_pixels"][test]["high"]:
            told += ", and not clearly above raw pixels"
        said.append(
            f"{probe.TESTS[test]}: {best} {score['accuracy']:.3f} [{score['low']:.3f}, {score['high']:.3f}], {told}"
        )
    where = {"test set": "the test images", "by group": "groups never seen", "by image": "held-out images"}
    return f"Best on {where[result['protocol']]} ({result['test']:,}) by {'; by '.join(said)}."


def show(result: dict[str, Any]) -> None:
    """The table and the sentence, on the screen."""
    heads = ("", "k-NN", "untrained", "linear", "untrained", "views", "time")
    table = Table(*heads, title=result["protocol"], title_justify="left", box=None, padding=(0, 1, 0, 0))

    def cell(score: dict[str, float]) -> str:
        return f"{score['accuracy']:.3f} [dim]±{(score['high'] - score['low']) / 2:.3f}[/]"

    for name, run in sorted(result["runs"].items(), key=lambda item: -item[1]["knn"]["accuracy"]):
        scores = [text for test in TESTS for text in (cell(run[test]), f"{run['untrained'][test]['accuracy']:.3f}")]
        cost = [f"{run['image_views']:,}", f"{run['seconds']:,.0f} s"] if run["method"] else ["", ""]
        table.add_row(name, *scores, *cost)
    raw = result["raw_pixels"]
    table.add_row("raw pixels", cell(raw["knn"]), "", cell(raw["linear"]))
    console.print(table)
    for name, run in result["runs"].items():
        if run["verdict"] not in ("learning", None):
            console.print(f"[yellow]{name}[/]: {run['verdict']}")
    console.print(result["sentence"])
