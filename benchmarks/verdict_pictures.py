"""Runs that get each verdict, made on purpose, and the pictures of them in docs/working.md.

    uv run python benchmarks/verdict_pictures.py --out runs/verdict-pictures [--only learning …]

Small runs on the photographs that come with the installation (and on pictures of noise, and on photographs enlarged to
a megapixel): less than a minute each on one core of 2025. A run that
is there already is not made again. What each was told, its verdict, and its curves go to
benchmarks/results/verdict_pictures.json; the pictures are drawn from that, and from what the runs paint, into docs/verdicts.
"""

import argparse
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import nn

import unmask
from unmask import figures
from unmask.data.augment import sample_seeds
from unmask.data.sources import open_source
from unmask.methods import METHODS
from unmask.methods.byol import BYOL
from unmask.training import health
from unmask.training.run import Run
from unmask.verbs.load import load_mae
from unmask.verbs.reconstruct import rendered

HERE = Path(__file__).parent
RESULTS, PICTURES = HERE / "results" / "verdict_pictures.json", HERE.parent / "docs" / "verdicts"

SMALL = {
    "encoder": "vit-lite-4/8",
    "image_size": "64",
    "batch_size": 64,
    "optimiser": "muon",
    "base_lr": 4e-3,
}
"""What `unmask quickstart` says to MAE, but for a smaller encoder."""
DINO = {
    "encoder": "vit-lite-2/8",
    "image_size": "32",
    "batch_size": 16,
    "base_lr": 0.016,
    "warmup": 0.05,
    "steps": 300,
    "out_dim": 128,
    "head_width": 64,
    "bottleneck": 128,
    "local_crops": 2,
    "freeze_last": 0,
}
BYOL_SMALL = {"encoder": "vit-lite-2/8", "image_size": "32", "batch_size": 64, "steps": 400}
DVAE = {"of": "digits", "steps": 150}
LARGE = {
    "encoder": "vit-lite-2/4",
    "image_size": "32",
    "batch_size": 16,
    "steps": 300,
    "workers": 0,
    "optimiser": "muon",
}
LABELLED = {"encoder": "vit-lite-2/8", "image_size": "64", "batch_size": 64, "steps": 150}


class WithoutPredictor(BYOL):
    """BYOL whose online network has no predictor: what its authors say collapses."""

    def __init__(self, encoder: Any, settings: Any):
        super().__init__(encoder, settings)
        self.prediction = nn.Identity()


def without_predictor(out: Path) -> dict[str, Any]:
    kept, METHODS["byol"] = METHODS["byol"], WithoutPredictor
    try:
        return learn("byol", **BYOL_SMALL)(out)
    finally:
        METHODS["byol"] = kept


def noise(folder: Path) -> str:
    """500 pictures of 64 pixels whose every pixel is drawn for itself."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        values = np.random.default_rng(0).integers(0, 256, (500, 64, 64, 3), dtype=np.uint8)
        for i, pixels in enumerate(values):
            Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return str(folder)


def enlarged(folder: Path) -> str:
    """32 crops of photographs, enlarged to 512 pixels a side and written as PNG, which cannot be decoded in part."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        source = open_source("photos")
        for i in np.linspace(0, len(source) - 1, 32).astype(int):
            pixels = source.image(int(i)).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).resize((512, 512)).save(folder / f"{i:05}.png", compress_level=1)
    return str(folder)


def crops(folder: Path, of: str = "photos", labels: str = "no") -> str:
    """Images of a source as a table: all without labels, so that nothing is probed; or 1,500 with their "true" labels, or with
    labels dealt out at "random", so that what they say cannot be seen in the pictures."""
    file = folder / f"{of}-{labels}-labels.parquet"
    if not file.is_file():
        source, random = open_source(of), np.random.default_rng(0)
        chosen = random.permutation(len(source))[: None if labels == "no" else 1500]
        images = []
        for i in chosen:
            buffer = io.BytesIO()
            pixels = source.image(int(i)).permute(1, 2, 0).numpy()
            Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
            images.append(buffer.getvalue())
        table: dict[str, Any] = {"image": images}
        if labels != "no":
            told = source.table["label"].to_numpy()[chosen]
            table["label"] = told if labels == "true" else random.permutation(told)
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(table).to_parquet(file)
    return str(file)


def learn(method: str, of: str = "photos", labels: str = "no", **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """A run of `unmask pretrain` on images of a source, without labels unless told."""
    return lambda out: unmask.pretrain(method, data=crops(out.parent, of, labels), out=out, **settings)


def mae(steps: int, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    return learn("mae", steps=steps, **SMALL | settings)


def on_noise(out: Path) -> dict[str, Any]:
    return unmask.pretrain("mae", data=noise(out.parent / "noise-pictures"), out=out, steps=60, **SMALL)


def slow(out: Path) -> dict[str, Any]:
    return unmask.pretrain("mae", data=enlarged(out.parent / "large"), out=out, **LARGE)


def packed(out: Path) -> dict[str, Any]:
    store = out.parent / "store"
    if not (store / "result.json").is_file():
        unmask.pack(enlarged(out.parent / "large"), out=store, short_side=64)
    return unmask.pretrain("mae", data=store, out=out, **LARGE)


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "learning": mae(400),
    "rate too low": mae(60, base_lr=4e-6),
    "noise": on_noise,
    "not a number": mae(60, optimiser="sgd", base_lr=1e5),
    "alike": mae(60, optimiser="adamw", base_lr=4.0),
    "rate too high": mae(30, optimiser="adamw", base_lr=0.1),
    "risen": mae(120, base_lr=2.0, warmup=0.9),
    "worse than untrained": learn("mae", labels="true", steps=60, **SMALL | {"optimiser": "adamw", "base_lr": 0.02}),
    "better than untrained": learn("mae", labels="true", steps=600, **SMALL),
    "byol": learn("byol", **BYOL_SMALL),
    "without predictor": without_predictor,
    "dino": learn("dino", **DINO),
    "without centring": learn("dino", centring=False, **DINO),
    "without sharpening": learn("dino", teacher_temperature=0.1, teacher_temperature_start=0.1, **DINO),
    "dvae": learn("dvae", **DVAE),
    "heavy kl": learn("dvae", kl_weight=10.0, **DVAE),
    "slow files": slow,
    "packed": packed,
    "random labels": lambda out: unmask.finetune(
        data=crops(out.parent, labels="random"), test="photos:test", out=out, **LABELLED
    ),
    "true labels": lambda out: unmask.finetune(
        data=crops(out.parent, labels="true"), test="photos:test", out=out, **LABELLED
    ),
}


# Pictures

KEPT = ("ratio", "feature_std", "information", "teacher_entropy", "target_std", "perplexity", "token_kl", "loader_wait")
KEPT += ("update_ratio", "images_per_second", "step")


def facts(name: str, folder: Path) -> dict[str, Any]:
    """What a run was told and what came out, with at most a hundred lines of its log."""
    run = Run(folder)
    result, probe, test = (run.read(file) for file in ("result.json", "probe.json", "test.json"))
    told = {key: result[key] for key in ("verdict", "sentence", "advice", "steps", "images", "seconds")}
    told["seconds"] = round(told["seconds"])
    lines = run.history()
    lines = [line for i, line in enumerate(lines) if i % max(1, len(lines) // 100) == 0 or i == len(lines) - 1]
    log = [{key: float(f"{line[key]:.4g}") for key in KEPT if line.get(key) is not None} for line in lines]
    names = ("knn", "linear")
    scores = {
        test: {who: interval(probe[test][who]) for who in ("trained", "untrained")} for test in names if test in probe
    }
    if test:
        scores["test"] = interval(test) | {"majority": test["majority"]["accuracy"]}
    keys = ("encoder", "image_size", "batch_size", "steps", "optimiser", "base_lr", "workers")
    settings = {key: run.settings["settings"][key] for key in keys}
    return {"method": run.settings["method"], "settings": settings, **told, "scores": scores, "log": log}


def interval(score: dict[str, Any]) -> dict[str, float]:
    return {key: round(score[key], 4) for key in ("accuracy", "low", "high")}


def painted(folder: Path) -> np.ndarray:
    """Rows of pictures (H, W, 3): originals, what is left of them, what the run painted."""
    method, preprocess = load_mae(str(folder))
    size, patch = method.encoder.image_size, method.encoder.patch_size
    batch = rendered(["photos:test"], preprocess, size)[:6]
    keep, _ = method.sample(sample_seeds(0, 0, torch.arange(len(batch))), method.encoder.grid)
    with torch.no_grad():
        result = method.eval().reconstruct(batch, keep)
    originals, results = preprocess.denormalise(batch), preprocess.denormalise(result)
    masked = [figures.masked_image(image, kept, patch) for image, kept in zip(originals, keep, strict=True)]
    rows = [np.concatenate([framed(image) for image in row], axis=1) for row in (originals, masked, results)]
    return np.concatenate(rows)


def framed(image: torch.Tensor) -> np.ndarray:
    return np.pad(figures.displayable(image), ((2, 2), (2, 2), (0, 0)), constant_values=1.0)


def curve(
    axes: Axes, runs: dict[str, Any], lines: dict[str, str], key: str, bars: dict[str, float], log: bool = False
) -> None:
    """A quantity over the steps of runs, in the colours of `lines`, beside the numbers that decide."""
    longest = runs[next(iter(lines))]["log"][-1]["step"]
    for (name, words), colour in zip(lines.items(), (figures.VERMILION, figures.BLUE), strict=False):
        if name not in runs:
            continue
        points = [(line["step"], line[key]) for line in runs[name]["log"] if key in line and line["step"] <= longest]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, label=words, clip_on=False)
    for words, value in bars.items():
        axes.axhline(value, color=figures.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(words, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                      fontsize=9, color=figures.GREY)  # fmt: skip
    figures.tidy(axes, "step", np.array([longest, longest]))
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
    if key in ("ratio", "loader_wait"):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(TITLES[key], loc="left", fontsize=11, color=figures.INK)


TITLES = {
    "ratio": "loss, of that of a model that learnt nothing",
    "feature_std": "relative deviation of the features",
    "information": "what the teacher tells of an image, nats",
    "teacher_entropy": "entropy of what the teacher says, nats",
    "target_std": "how far the targets are apart",
    "perplexity": "tokens in use, as if evenly",
    "loader_wait": "time spent waiting for images",
    "update_ratio": "a step, relative to the weights",
    "images_per_second": "images per second",
}


def scored(axes: Axes, rows: list[tuple[str, dict[str, float], str]], words: str) -> None:
    """Accuracies with their intervals, a line each."""
    for y, (_, score, colour) in enumerate(reversed(rows)):
        axes.plot([score["low"], score["high"]], [y, y], color=colour, linewidth=2.4)
        axes.plot(score["accuracy"], y, "o", color=colour)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", color=figures.FAINT, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=10)
    axes.set_xlim(0, None)
    axes.set_title(words, loc="left", fontsize=11, color=figures.INK)


def draw(file: str, *panels: Callable[[Axes], None]) -> None:
    """A picture of one or two panels, in few colours: less than 60 KB."""
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        panel(axes)
        if axes.get_legend_handles_labels()[0] and len(axes.lines) > 1 and axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.legend(frameon=False, fontsize=9, loc="best")
    picture = Image.open(io.BytesIO(figures.png(figure))).convert("RGB")
    picture = picture.resize((1200, round(1200 * picture.height / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(64, dither=Image.Dither.NONE).save(PICTURES / f"{file}.png", optimize=True)


def pictures(runs: dict[str, Any], folder: Path) -> None:
    """All that their runs are there for."""

    def line(key: str, lines: dict[str, str], bars: dict[str, float], log: bool = False) -> Callable[[Axes], None]:
        return lambda axes: curve(axes, runs, lines, key, bars, log)

    def paints(name: str) -> Callable[[Axes], None]:
        def panel(axes: Axes) -> None:
            axes.imshow(painted(folder / name.replace(" ", "-")))
            axes.set_axis_off()
            axes.set_title("original, what is left of it, what it paints", loc="left", fontsize=11, color=figures.INK)

        return panel

    def tested(*names: str) -> Callable[[Axes], None]:
        rows = [
            (name, runs[name]["scores"]["test"], c)
            for name, c in zip(names, (figures.VERMILION, figures.BLUE), strict=True)
            if name in runs
        ]

        def panel(axes: Axes) -> None:
            scored(axes, rows, "right on new images; dashed: the commonest")
            axes.axvline(rows[0][1]["majority"], color=figures.GREY, linestyle=(0, (4, 3)))  # type: ignore[call-overload]

        return panel

    def against_untrained(*names: str) -> Callable[[Axes], None]:
        rows = [
            (f"{words}, {test}", runs[name]["scores"][key][who], colour)
            for key, test in (("knn", "k-NN"), ("linear", "linear"))
            for name, who, words, colour in (
                (names[0], "untrained", "untrained", figures.GREY),
                (names[0], "trained", "rate too high", figures.VERMILION),
                (names[1], "trained", "the recipe", figures.BLUE),
            )
        ]
        return lambda axes: scored(axes, rows, "right with frozen features, 95% interval")

    nothing, bar = {"a model that learnt nothing": 1.0}, {"97%": health.BETTER}
    drawn: dict[str, tuple[Callable[[Axes], None], ...] | Callable[[], Any]] = {
        "learning": lambda: (line("ratio", {"learning": "the recipe"}, bar), paints("learning")),
        "rate-too-low": lambda: (
            line("ratio", {"rate too low": "a rate 1,000 times lower", "learning": "the recipe"}, bar),
            paints("rate too low"),
        ),
        "noise": lambda: (line("ratio", {"noise": "pictures of noise", "learning": "photographs"}, bar),),
        "not-a-number": lambda: (line("ratio", {"not a number": "SGD"}, nothing, log=True),),
        "rate-too-high": lambda: (
            line("ratio", {"rate too high": "a rate 83 times too high", "learning": "the recipe"}, bar),
            line("update_ratio", {"rate too high": "", "learning": ""}, {"0.1% is usual": 1e-3}, log=True),
        ),
        "risen": lambda: (
            line("ratio", {"risen": "a rate that rises 500 times as high", "learning": "the recipe"}, nothing),
            line("update_ratio", {"risen": "", "learning": ""}, {"0.1% is usual": 1e-3}, log=True),
        ),
        "worse": lambda: (
            line(
                "ratio",
                {"worse than untrained": "a rate 17 times too high", "better than untrained": "the recipe"},
                bar,
            ),
            against_untrained("worse than untrained", "better than untrained"),
        ),
        "alike": lambda: (
            line("ratio", {"alike": "a rate 3,333 times too high", "learning": "the recipe"}, nothing, log=True),
            line("feature_std", {"alike": "", "learning": ""}, {"0.001": health.COLLAPSED_STD}, log=True),
        ),
        "targets": lambda: (
            line("ratio", {"without predictor": "BYOL without its predictor", "byol": "BYOL"}, nothing),
            line("target_std", {"without predictor": "", "byol": ""}, {"0.4": health.COLLAPSED_TARGETS}),
        ),
        "one-output": lambda: (
            line("information", {"without centring": "without centring", "dino": "DINO"}, {"0.08": health.TOLD_APART}),
            line("teacher_entropy", {"without centring": "", "dino": ""}, {"ln K": math.log(DINO["out_dim"])}),
        ),
        "all-alike": lambda: (
            line(
                "information", {"without sharpening": "without sharpening", "dino": "DINO"}, {"0.08": health.TOLD_APART}
            ),
            line("teacher_entropy", {"without sharpening": "", "dino": ""}, {"ln K": math.log(DINO["out_dim"])}),
        ),
        "tokens": lambda: (
            line("ratio", {"heavy kl": "--kl-weight 10", "dvae": "--kl-weight of the paper"}, bar),
            line("perplexity", {"heavy kl": "", "dvae": ""}, {"2": health.FEW_TOKENS}),
        ),
        "starved": lambda: (
            line(
                "loader_wait",
                {"slow files": "PNG files of 512 pixels", "packed": "the same, packed"},
                {"50%": health.STARVED},
            ),
            line("images_per_second", {"slow files": "", "packed": ""}, {}, log=True),
        ),
        "labels-at-random": lambda: (
            line("ratio", {"random labels": "labels dealt out at random", "true labels": "true labels"}, bar),
            tested("random labels", "true labels"),
        ),
    }
    PICTURES.mkdir(exist_ok=True)
    for file, panels in drawn.items():
        try:
            draw(file, *panels())
        except KeyError as missing:
            print(f"{file} is left as it is: no run called {missing}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    settings = parser.parse_args()
    for name in settings.only:
        out = settings.out / name.replace(" ", "-")
        if not (out / "result.json").is_file():
            result = RUNS[name](out)
            print(f"{name}: {result['verdict']} ({result['sentence']}); {' | '.join(result['advice'])}", flush=True)
    folders = {name: settings.out / name.replace(" ", "-") for name in RUNS}
    runs = {name: facts(name, folder) for name, folder in folders.items() if (folder / "result.json").is_file()}
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}  # runs that were made before, elsewhere
    written = {name: runs.get(name, kept.get(name)) for name in RUNS if name in runs or name in kept}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}" for name, run in written.items())  # a line a run
    RESULTS.write_text(f"{{\n{lines}\n}}\n")
    pictures(runs, settings.out)


if __name__ == "__main__":
    main()
