"""What docs/which.md says of memory and hours, by `unmask plan`, and its figure, from benchmarks/results.

    uv run python benchmarks/which.py [--figure]

Nothing is timed: hours are reckoned from operations, which are exact, and a rate of the device that is written below. The
CPU's is what two cores of an AMD EPYC with AVX-512 bf16 multiply (benchmarks/results/mae_step.json), of which whole steps of five
encoders reached 36 to 61% (benchmarks/results/plan.json). The GPUs' are round figures of data sheets, and their share is assumed.
Writes benchmarks/results/which.json. --figure draws docs/which.png and plans nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import unmask
from unmask import figures

HERE = Path(__file__).parent
RESULTS = HERE / "results"

CPU = {"device": "cpu", "precision": "bf16", "tflops": 0.73, "share": 0.45, "memory": 16.0}
GPU = {"device": "cuda", "precision": "bf16", "tflops": 150.0, "share": 0.4, "memory": 24.0}
EIGHT = {"device": "cuda", "precision": "bf16", "tflops": 790.0, "share": 0.4, "memory": 139.0, "processes": 8}
HARDWARE = {"laptop": CPU, "one GPU": GPU, "eight GPUs": EIGHT}

ROWS: tuple[tuple[str, int, str, str, int, float], ...] = (
    ("laptop", 500, "vit-tiny/16", "224", 16, 800),
    ("laptop", 5_000, "vit-tiny/16", "224", 64, 400),
    ("laptop", 50_000, "vit-tiny/16", "128", 64, 100),
    ("laptop", 500_000, "vit-tiny/16", "128", 64, 20),
    ("one GPU", 500, "vit-tiny/16", "224", 16, 800),
    ("one GPU", 5_000, "vit-tiny/16", "224", 128, 800),
    ("one GPU", 50_000, "vit-small/16", "224", 256, 800),
    ("one GPU", 500_000, "vit-base/16", "224", 256, 100),
    ("eight GPUs", 50_000, "vit-small/16", "224", 1024, 800),
    ("eight GPUs", 500_000, "vit-base/16", "224", 4096, 800),
)
"""Hardware, images, encoder, pixels, batch, epochs: MAE, as `unmask inspect` would choose the encoder and the batch."""


def planned() -> list[dict[str, Any]]:
    kept = ("parameters", "steps", "images_per_second", "hours", "largest_batch_size")
    rows = []
    for where, images, encoder, size, batch, epochs in ROWS:
        asked = {"encoder": encoder, "image_size": size, "batch_size": batch, "images": images, "epochs": epochs}
        found = unmask.plan(**asked, **HARDWARE[where])
        rows.append({"hardware": where, **asked, "gib": found["peak"] / 2**30, **{key: found[key] for key in kept}})
    return rows


NAMES = {"mae-tokens": "MAE of tokens", "mae": "MAE", "beit": "BEiT", "moco": "MoCo", "moco-v2": "MoCo v2"}
NAMES |= {"moco-v3": "MoCo v3", "simclr": "SimCLR", "simclr-v2": "SimCLR v2", "byol": "BYOL", "dino": "DINO"}
NAMES |= {"lightly-mae": "lightly's MAE", "lightly-simclr": "lightly's SimCLR", "lightly-dino": "lightly's DINO"}
PLACED = {
    "simclr": (-7, 9, "right"),
    "moco": (7, 7, "left"),
    "simclr-v2": (-8, -5, "right"),
    "moco-v2": (7, -27, "left"),
}
PLACED |= {"moco-v3": (7, -15, "left")}
"""Where a name stands beside its dot, in points, where to the right of it there is no room."""


def methods(axes: Axes) -> None:
    """k-NN of each method after the same eight minutes, over how many images it saw in them."""
    found = json.loads((RESULTS / "methods.json").read_text())
    for name, run in found["runs"].items():
        images = 480 * found["rates"][name] * (0.5 if name in ("beit", "mae-tokens") else 1.0)
        colour, score = figures.GREY if name.startswith("lightly") else figures.BLUE, run["knn"]
        axes.plot([images] * 2, [score["low"], score["high"]], color=colour, linewidth=2)
        axes.plot(images, score["accuracy"], "o", color=colour, markersize=5)
        right, up, align = PLACED.get(name, (7, -3, "left"))
        axes.annotate(NAMES[name], (images, score["accuracy"]), (right, up), textcoords="offset points",
                      fontsize=9.5, color=colour, ha=align)  # fmt: skip
    untrained = [run["untrained"]["knn"]["accuracy"] for run in found["runs"].values()]
    axes.axhspan(min(untrained), max(untrained), color=figures.FAINT)
    axes.annotate(
        "untrained", (12_500, max(untrained)), (0, 3), textcoords="offset points", fontsize=9, color=figures.GREY
    )
    raw = found["raw_pixels"]["knn"]["accuracy"]
    axes.axhline(raw, color=figures.VERMILION, linestyle=(0, (5, 3)), linewidth=1.4)
    axes.annotate("raw pixels", (12_500, raw), (0, 3), textcoords="offset points", fontsize=9, color=figures.VERMILION)
    axes.set_xscale("log")
    axes.set_xlim(12_000, 1_100_000)
    axes.set_xticks([20_000, 50_000, 100_000, 200_000, 400_000], ["20,000", "50,000", "100,000", "200,000", "400,000"])
    axes.set_title("without labels: eight minutes each, k-NN", loc="left", fontsize=12, color=figures.INK)
    axes.set_xlabel("images seen in them", fontsize=10.5, color=figures.GREY)


def labels(axes: Axes) -> None:
    """Accuracy of a CCT-2/3x2 on CIFAR-10 by how many of its labels are known."""
    found = json.loads((RESULTS / "labels.json").read_text())
    few = [(500, found["distill"]["1%"]), (5_000, found["distill"]["10%"])]
    lines = {
        "its own labels, 3,000 steps": "alone",
        "its own labels, 9,000 steps": "longer",
        "a student, 3,000 steps": "student",
    }
    for (words, key), colour in zip(lines.items(), figures.SERIES, strict=False):
        axes.plot(
            [n for n, _ in few],
            [each[key]["accuracy"] for _, each in few],
            "-o",
            color=colour,
            label=words,
            markersize=5,
        )
        for n, each in few:
            axes.plot([n, n], [each[key]["low"], each[key]["high"]], color=colour, linewidth=2)
    whole = found["scratch"]["cct-2/3x2"]["runs"]
    for run in whole:
        axes.plot([50_000] * 2, [run["low"], run["high"]], color=figures.INK, linewidth=2)
        axes.plot(50_000, run["accuracy"], "o", color=figures.INK, markersize=5)
    axes.annotate("1,416 steps, 3 seeds", (50_000, whole[0]["low"]), (4, -22), textcoords="offset points", fontsize=9,
                  color=figures.INK, ha="right")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(350, 70_000)
    axes.set_xticks([500, 5_000, 50_000], ["500", "5,000", "50,000"])
    axes.legend(frameon=False, fontsize=9.5, loc="lower right")
    axes.set_title("with labels: CCT-2/3x2", loc="left", fontsize=12, color=figures.INK)
    axes.set_xlabel("labelled images", fontsize=10.5, color=figures.GREY)


def figure() -> bytes:
    drawn = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, panel in zip(drawn.subplots(1, 2, width_ratios=(3, 2)), (methods, labels), strict=True):
        panel(axes)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=figures.FAINT, linewidth=0.8)
        axes.tick_params(which="both", length=0, labelsize=10, labelcolor=figures.GREY)
        axes.xaxis.set_minor_locator(figures.NullLocator())
    drawn.supylabel("accuracy on CIFAR-10, 95% interval", fontsize=10.5, color=figures.GREY)
    return figures.png(drawn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", action="store_true")
    if not parser.parse_args().figure:
        (RESULTS / "which.json").write_text(json.dumps(planned(), indent=1) + "\n")
    (HERE.parent / "docs" / "which.png").write_bytes(figure())
