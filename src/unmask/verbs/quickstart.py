"""unmask quickstart: the whole way once, on photographs that came with the installation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.methods.mae import Settings
from unmask.screen import console
from unmask.verbs.pretrain import Pretrain, pretrain


@dataclass(frozen=True)
class Quickstart:
    """Pre-train a small masked autoencoder on crops of real photographs, test it, and draw what it sees."""

    out: Path = Path("runs/quickstart")
    """Folder of the run, to be created."""
    steps: int = 800
    """Steps of the optimiser: about three minutes on two cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""


def quickstart(settings: Quickstart) -> dict[str, Any]:
    """Run it and return what result.json says."""
    console.print(
        "Left halves of photographs, cut into crops, are learnt from without their names; then the encoder must tell from "
        "which photograph a crop of a right half comes. No pixel that it is tested on was trained on.\n"
    )
    result = pretrain(
        "mae",
        Pretrain(
            data="photos",
            probe="photos:test",
            out=settings.out,
            encoder="vit-tiny/8",
            image_size="64",
            steps=settings.steps,
            batch_size=64,
            optimiser="muon",
            base_lr=4e-3,
            device=settings.device,
        ),
        Settings(),
    )
    console.print(
        f"\nLook at [bold]{settings.out / 'report.html'}[/] and [bold]{settings.out / 'figures/reconstruction.png'}[/].\n"
        "Next, your own images:\n"
        "  unmask inspect path/to/images          what is there, and the settings it asks for\n"
        "  unmask pretrain mae --data path/to/images --out runs/mine"
    )
    return result
