"""The networks of a study: trained fold by fold, each a run like any other in a folder of its own."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from unmask.evaluate.finetune import Settings as Tuning
from unmask.methods import METHODS
from unmask.training.engine import NOTEBOOK, console
from unmask.training.run import Run, whole
from unmask.verbs.embed import Embed, embed
from unmask.verbs.finetune import Finetune, finetune
from unmask.verbs.pretrain import Pretrain, pretrain

Folds = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Networks:
    """How the networks of a study are trained."""

    folder: Path
    """Where their runs are put."""
    vit: str
    """The encoder that learns from scratch, and after MAE."""
    resnet: str
    pixels: int
    """Height and width that the networks see."""
    epochs: float | None
    """Passes over the particles of a fold, for each network; without it, see `passes`."""
    pretrain_epochs: float
    """Passes of MAE over all particles, without their labels."""
    seed: int
    device: str

    @property
    def kinds(self) -> dict[str, str]:
        """Encoders by name. In so few passes a ViT from scratch learns nothing with its paper's AdamW at the rate scaled up to
        so few steps, and well with Muon (Jordan et al. 2024): 33 and 61% balanced accuracy on stone tools of sites not seen."""
        return {"ResNet": self.resnet, "ViT": self.vit, "ViT after MAE": self.vit}


def listed(path: Path, particles: pd.DataFrame, labels: np.ndarray | None, unit: str) -> Path:
    """A table of particles as `unmask finetune` reads it, whole or not there. The unit is no "group" of it: the folds have kept
    units apart, and the test of one may hold a single unit, of which no interval over groups can be had."""
    table = pd.DataFrame({"image": particles["picture"], "particle": particles["particle"], "unit": particles[unit]})
    if labels is not None:
        table["label"] = labels
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        table.to_csv(beside, index=False)
    return path


def passes(images: int) -> float:
    """Over so many particles: 8, and of fewer than 500 as many as show 4,000, but 40 at most."""
    return round(min(40.0, max(8.0, 4000 / images)), 1)


def batch(images: int) -> int:
    """A 32nd of the particles, from 16 to 64, as a power of two, and no more than there are."""
    return min(images, 2 ** int(math.log2(min(64, max(16, images / 32)))))


@contextlib.contextmanager
def silently():
    """What a run prints goes nowhere; errors rise as ever."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def pretrained(networks: Networks, particles: pd.DataFrame, unit: str) -> Path:
    """MAE's run on the pictures of all particles, none of whose labels it sees; gone on with where it was stopped."""
    out = networks.folder / "mae"
    if not (out / "result.json").is_file():
        data = listed(networks.folder / "all.csv", particles, None, unit)
        told = {"encoder": networks.vit, "image_size": str(networks.pixels), "epochs": networks.pretrain_epochs}
        told |= {"seed": networks.seed, "device": networks.device, "optimiser": "muon", "resume": True}
        with said("MAE on all particles, without labels"), silently():
            pretrain("mae", Pretrain(data=str(data), out=out, **told), METHODS["mae"].Settings())
    return out


@contextlib.contextmanager
def said(what: str):
    """A line that turns while something is trained, on a console of its own: what runs print is kept from the other."""
    aside = Console(stderr=True, force_jupyter=False, force_terminal=False if NOTEBOOK else None)
    if not aside.is_terminal:
        aside.print(what, highlight=False)
    with aside.status(what) if aside.is_terminal else contextlib.nullcontext():
        yield


def vectors(networks: Networks, run: Path, particles: pd.DataFrame, unit: str) -> np.ndarray:
    """What the encoder of a run makes of each particle's picture: (n, D) float32."""
    data = listed(networks.folder / "all.csv", particles, None, unit)
    with silently():
        table = embed(Embed(str(run), str(data), device=networks.device))
    found = dict(zip(table["particle"].astype(str), table["embedding"], strict=True))
    none = np.full(len(next(iter(found.values()))), np.nan, dtype=np.float32)
    return np.stack([found.get(each, none) for each in particles["particle"]])


def answers(
    networks: Networks,
    kind: str,
    name: str,
    particles: pd.DataFrame,
    labels: np.ndarray,
    classes: Sequence[str],
    folds: Folds,
    unit: str,
    began: Path | None,
) -> tuple[np.ndarray, int]:
    """What a kind of network says of each particle that is tested, by the one that was not trained on it: (n, K) float64, NaN
    where none was; and in how many folds it learnt nothing. name: of the protocol, for the folders. labels: (n,) str. began:
    the run to go on from."""
    probabilities, unlearnt = np.full((len(particles), len(classes)), np.nan), 0
    place = {each: i for i, each in enumerate(particles["particle"])}
    for number, (train, test) in enumerate(folds, 1):
        out = networks.folder / name / "-".join(kind.lower().split()) / f"fold-{number}"
        if not (out / "result.json").is_file():
            tables = [
                listed(out.parent / f"fold-{number}-{part}.csv", particles.iloc[rows], labels[rows], unit)
                for part, rows in (("train", train), ("test", test))
            ]
            told: dict[str, Any] = {"run": str(began)} if began else {"encoder": networks.kinds[kind]}
            told |= {"image_size": str(networks.pixels)} if not began else {}
            told |= {"optimiser": "muon", "batch_size": batch(len(train))} if kind == "ViT" else {}
            told |= {
                "epochs": networks.epochs or passes(len(train)),
                "seed": networks.seed,
                "device": networks.device,
                "resume": True,
            }
            with said(f"{kind}, {name}: fold {number} of {len(folds)}"), silently():
                # labels weigh alike: unweighted, a rare one would hardly be named
                finetune(
                    Finetune(data=str(tables[0]), test=str(tables[1]), out=out, **told), Tuning(class_weights=True)
                )
        verdict = Run(out).read("result.json")["verdict"]
        unlearnt += verdict == "no better than uninformed"
        if verdict == "diverged":
            console.print(f"[yellow]warning[/] {kind}, {name}: fold {number} diverged; its particles are left out")
            continue
        found = pd.read_csv(out / "predictions.csv")
        tested = pd.read_csv(out.parent / f"fold-{number}-test.csv", dtype=str)
        of = dict(zip(tested["image"], tested["particle"], strict=True))
        rows = [place[of[path]] for path in found["path"]]
        for k, each in enumerate(classes):
            probabilities[rows, k] = found.get(f"p_{each}", 0.0)
    return probabilities, unlearnt
