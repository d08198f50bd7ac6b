"""Runs that get each verdict, made on purpose, and the pictures of them in docs/working.md.

    uv run python benchmarks/verdict_pictures.py --out runs/verdict-pictures [--only learning …]

Small runs on the photographs that come with the installation (and on pictures of noise, and on photographs enlarged to
twelve megapixels): about a minute each on one core of 2025, five for the first, which is `unmask quickstart` itself. A run that
is there already is not made again. What each was told, its verdict, and its curves go to benchmarks/results/verdict_pictures.json;
the pictures are drawn from that file, and from the reconstructions in the runs, into docs/verdicts.
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
from unmask.data.sources import open_source
from unmask.methods import METHODS
from unmask.methods.byol import BYOL
from unmask.training import health
from unmask.verbs.load import load_mae
from unmask.verbs.reconstruct import picture, rendered

HERE = Path(__file__).parent
RESULTS, PICTURES = HERE / "results" / "verdict_pictures.json", HERE.parent / "docs" / "verdicts"

QUICKSTART = {
    "encoder": "vit-tiny/8",
    "image_size": "64",
    "batch_size": 64,
    "optimiser": "muon",
    "base_lr": 4e-3,
}
"""What `unmask quickstart` says to MAE."""
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
BYOL_SMALL = {"encoder": "vit-lite-2/8", "image_size": "32", "batch_size": 64, "steps": 200}
DVAE = {"encoder": "dvae-tiny/4", "image_size": "32", "batch_size": 32, "steps": 150}
LARGE = {"encoder": "vit-lite-2/4", "image_size": "32", "batch_size": 16, "workers": 0}
LABELLED = {"encoder": "vit-lite-2/4", "image_size": "32", "batch_size": 64, "steps": 200}


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
    """120 crops of photographs, enlarged to 2048 pixels a side and written as PNG, which cannot be decoded in part."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        source = open_source("photos")
        for i in np.linspace(0, len(source) - 1, 120).astype(int):
            pixels = source.image(int(i)).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).resize((2048, 2048), Image.Resampling.BICUBIC).save(folder / f"{i:05}.png")
    return str(folder)


def crops(file: Path, labels: bool = False) -> str:
    """The photographs as a table: all without labels, so that nothing is probed; or 1,500 with labels that were dealt out anew,
    so that what they say cannot be seen in the pictures."""
    if not file.is_file():
        source, random = open_source("photos"), np.random.default_rng(0)
        chosen = random.permutation(len(source))[: 1500 if labels else None]
        file.parent.mkdir(parents=True, exist_ok=True)
        images = []
        for i in chosen:
            buffer = io.BytesIO()
            Image.fromarray(source.image(int(i)).permute(1, 2, 0).numpy()).save(buffer, "PNG")
            images.append(buffer.getvalue())
        table = {"image": images}
        if labels:
            table["label"] = random.permutation(source.table["label"].to_numpy()[chosen])
        pd.DataFrame(table).to_parquet(file)
    return str(file)


def learn(method: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """A run of `unmask pretrain`, on the photographs without labels unless told."""
    return lambda out: unmask.pretrain(
        method, out=out, **{"data": crops(out.parent / "photos.parquet"), **settings}
    )


def mae(steps: int, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    return learn("mae", steps=steps, **QUICKSTART | settings)


def slow(out: Path) -> dict[str, Any]:
    return unmask.pretrain("mae", data=enlarged(out.parent / "large"), out=out, steps=20, **LARGE)


def packed(out: Path) -> dict[str, Any]:
    store = out.parent / "store"
    if not (store / "result.json").is_file():
        unmask.pack(enlarged(out.parent / "large"), out=store, short_side=64)
    return unmask.pretrain("mae", data=store, out=out, steps=400, **LARGE)


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "learning": mae(800, data="photos", probe="photos:test"),
    "rate too low": mae(100, base_lr=4e-6),
    "noise": lambda out: mae(100, data=noise(out.parent / "noise-pictures"))(out),
    "worse than untrained": mae(100, base_lr=0.4, data="photos", probe="photos:test"),
    "not a number": mae(100, optimiser="sgd", base_lr=1e5),
    "risen": mae(100, optimiser="adamw", base_lr=4.0),
    "alike": mae(100, optimiser="adamw", base_lr=0.1),
    "byol": learn("byol", **BYOL_SMALL),
    "without predictor": without_predictor,
    "dino": learn("dino", **DINO),
    "without centring": learn("dino", centring=False, **DINO),
    "without sharpening": learn("dino", teacher_temperature=0.1, teacher_temperature_start=0.1, **DINO),
    "dvae": learn("dvae", **DVAE),
    "heavy kl": learn("dvae", kl_weight=10.0, **DVAE),
    "slow files": slow,
    "packed": packed,
    "shuffled labels": lambda out: unmask.finetune(
        data=crops(out.parent / "shuffled.parquet", labels=True), out=out, **LABELLED
    ),
    "true labels": lambda out: unmask.finetune(data="photos", test="photos:test", out=out, **LABELLED),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(RUNS))
    settings = parser.parse_args()
    for name in settings.only:
        out = settings.out / name.replace(" ", "-")
        if not (out / "result.json").is_file():
            r = RUNS[name](out)
            print("@@@", name, r["verdict"], "|", r["sentence"], "|", r["advice"], round(r["seconds"]), flush=True)
