"""unmask robustness RUN: how much of a classifier's accuracy is left under common corruptions and under attack."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from tyro.conf import Positional

from unmask import figures
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate.corruptions import CORRUPTIONS, called
from unmask.evaluate.robustness import EPSILONS
from unmask.evaluate.robustness import robustness as measure
from unmask.screen import console
from unmask.training import engine
from unmask.training.run import write
from unmask.verbs.load import load_classifier
from unmask.verbs.report import write_report

TOLD = 2 / 255
"""The epsilon of the sentence."""


@dataclass(frozen=True)
class Robustness:
    """Test a classifier on images with noise, blur, snow, fog and the like at five severities, and under attacks that know it."""

    run: Positional[str]
    """A run of `unmask finetune` or `unmask distill`."""
    data: str
    """Labelled images that it never saw."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables with what goes together: patient, site, knapper. Intervals are then over groups."""
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Which of the common corruptions."""
    images: int = 2000
    """How many images at most, drawn at random."""
    attacks: bool = True
    """Whether it is attacked, too (FGSM and PGD): what takes most of the time without a GPU."""
    out: Path | None = None
    """Where the figures go (.json; the picture beside it as .png). Default: robustness.json and figures/ in the run."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware. Attacks are in float32."""
    workers: int = min(8, os.cpu_count() or 1)
    """Processes that read and corrupt images."""
    seed: int = 0
    """Of the choice of images, the corruptions and the attacks."""


def robustness(settings: Robustness) -> dict[str, Any]:
    """Test a classifier as `settings` say and return what robustness.json says. BadInput for data of other classes."""
    classifier, preprocess = load_classifier(settings.run)
    if settings.images < 2:
        raise BadInput(f"--images {settings.images}: give at least 2")
    if settings.out is not None and settings.out.suffix.lower() != ".json":
        raise BadInput(f"--out {settings.out}: figures are written as .json, the picture beside it as .png")
    source = open_source(settings.data, image=settings.image, label=settings.label, group=settings.group)
    device = engine.choose_device(settings.device)
    precision, _ = engine.choose_precision(settings.precision, device)
    unreadable: list[tuple[str, str]] = []
    result = measure(
        classifier,
        source,
        preprocess,
        corruptions=settings.corruptions,
        epsilons=EPSILONS if settings.attacks else (),
        device=device,
        precision=precision,
        workers=settings.workers,
        seed=settings.seed,
        images=settings.images,
        unreadable=lambda *failure: unreadable.append(failure),
        title="corrupting",
    )
    result |= {"sentence": sentence(result), "data": settings.data, "seed": settings.seed, "unreadable": unreadable}
    show(result)
    run = Path(settings.run)
    table, picture = run / "robustness.json", run / "figures" / "robustness.png"
    if settings.out is not None:
        table, picture = settings.out, settings.out.with_suffix(".png")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        write(table, json.dumps(result, indent=2) + "\n")
        picture.write_bytes(figures.robustness(result))
    except OSError as error:
        raise BadInput(f"{picture.parent} cannot be written ({error.strerror}): choose another --out") from None
    console.print(f"Figure: {picture}   figures in numbers: {table}")
    if settings.out is None and (run / "settings.yaml").is_file():
        console.print(f"Report: {write_report(run)}")
    return result


def sentence(result: dict[str, Any]) -> str:
    """What is left, in one line."""
    clean, severities = result["clean"]["accuracy"], result["severities"]
    worst = min(result["corruptions"], key=lambda name: mean(result["corruptions"][name]))
    words = (
        f"Of {clean:.2f} clean accuracy {result['all']['accuracy']:.2f} is left under the mean corruption, "
        f"{result['mean'][-1]['accuracy']:.2f} at severity {severities[-1]}; worst: {called(worst)} "
        f"({mean(result['corruptions'][worst]):.2f})"
    )
    if "attacks" in result:
        epsilons = np.array(result["attacks"]["epsilons"])
        at = int(np.abs(epsilons - TOLD).argmin())
        words += f"; under PGD of {255 * epsilons[at]:.3g}/255: {result['attacks']['pgd'][at]['accuracy']:.2f}"
    return words + "."


def mean(scores: list[dict[str, float]]) -> float:
    return float(np.mean([score["accuracy"] for score in scores]))


def show(result: dict[str, Any]) -> None:
    """The table and the sentence, on the screen."""
    heads = ("severity", *map(str, result["severities"]), "mean")
    title = f"accuracy on {result['n']:,} images"
    table = Table(*heads, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, scores in result["corruptions"].items():
        table.add_row(called(name), *(f"{score['accuracy']:.3f}" for score in scores), f"{mean(scores):.3f}")
    overall = [f"{score['accuracy']:.3f}" for score in (*result["mean"], result["all"])]
    table.add_row("mean", *overall, style="bold")
    console.print(table)
    if "attacks" in result:
        attacks = result["attacks"]
        heads = ("levels of 255", *(f"{255 * epsilon:.3g}" for epsilon in attacks["epsilons"]))
        table = Table(*heads, box=None, padding=(0, 2, 0, 0))
        for key in ("fgsm", "pgd"):
            table.add_row(key.upper(), *(f"{score['accuracy']:.3f}" for score in attacks[key]))
        console.print(table)
    console.print(result["sentence"])
