"""unmask reconstruct RUN IMAGE...: what a masked autoencoder paints where it cannot see."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from unmask import figures
from unmask.data.augment import sample_seeds
from unmask.data.decode import Preprocess, UnreadableImage, decode
from unmask.data.loader import centred
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.layers import patchify, take, unpatchify
from unmask.methods.mae import MAE
from unmask.screen import console
from unmask.verbs.load import load_mae


@dataclass(frozen=True)
class Reconstruct:
    """Hide patches of images and let a masked autoencoder paint them: original, masked, reconstruction, and both."""

    run: Positional[str]
    """A run, an official MAE .pth with its decoder, or a Hugging Face ViTMAE folder."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or one source (a folder, a table, photos:test), of which eight images are taken."""
    out: Path
    """The picture (.png)."""
    mask_ratio: float | None = None
    """Share of the patches to hide. Default: as trained."""
    keep: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="I I …")] = None
    """Patches to leave visible, counted row by row from 0, instead of a random choice."""
    norm_pix: bool = False
    """For an official checkpoint, which does not say: it was trained on normalised patches (--norm-pix)."""
    seed: int = 0
    """Of the random choice."""


def reconstruct(settings: Reconstruct) -> Path:
    """Draw the reconstructions and return where. BadInput for a run without decoder, or images that cannot be read."""
    method, preprocess = load_mae(settings.run, settings.norm_pix)
    masking = method.settings
    if settings.mask_ratio is not None:
        if not 0 < settings.mask_ratio < 1:
            raise BadInput(f"--mask-ratio is {settings.mask_ratio}: give a share between 0 and 1, such as 0.75")
        masking = dataclasses.replace(masking, mask_ratio=settings.mask_ratio)
    if settings.out.suffix.lower() != ".png":
        raise BadInput(f"--out {settings.out}: pictures are written as .png")
    batch = rendered(settings.images, preprocess, method.encoder.image_size)
    N = method.encoder.grid[0] * method.encoder.grid[1]
    if settings.keep is None:
        seeds = sample_seeds(settings.seed, 0, torch.arange(len(batch)))
        keep, _ = method.sample(seeds, method.encoder.grid, masking)
    else:
        if not all(0 <= i < N for i in settings.keep) or len(set(settings.keep)) != len(settings.keep):
            raise BadInput(f"--keep: patches are numbered from 0 to {N - 1}, each at most once")
        keep = torch.tensor(settings.keep).expand(len(batch), -1)
    try:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_bytes(picture(method, batch, preprocess, keep))
    except OSError as error:
        raise BadInput(f"{settings.out} cannot be written ({error.strerror}): choose another --out") from None
    console.print(
        f"{len(batch)} images with {1 - keep.shape[1] / N:.0%} of their patches hidden, painted into {settings.out}"
    )
    return settings.out


def rendered(names: Sequence[str], preprocess: Preprocess, size: tuple[int, int]) -> Tensor:
    """The images called so, (B, C, *size), normalised: of each the largest centred box. BadInput for one that cannot be
    read."""
    images = []
    for name, image in read(names):
        try:
            images.append(centred(image, preprocess, size))
        except UnreadableImage as error:
            raise BadInput(f"{name}: {error}") from None
    return torch.stack(images)


def read(names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Image files as they are; or eight images, evenly spread, of one source."""
    if not names:
        raise BadInput("name an image file, or a source such as photos:test")
    if len(names) > 1 or (Path(names[0]).is_file() and Path(names[0]).suffix not in (".csv", ".parquet")):
        images = []
        for name in names:
            try:
                images.append((name, decode(Path(name))))
            except UnreadableImage as error:
                raise BadInput(f"{name}: {error}") from None
        return images
    source, images = open_source(names[0]), []
    for i in np.random.default_rng(0).permutation(len(source)):
        try:
            images.append((source.table["path"].iat[i], source.image(int(i))))
        except UnreadableImage:
            continue
        if len(images) == 8:
            break
    if not images:
        raise BadInput(f"{names[0]}: no image in it can be read")
    return images


@torch.no_grad()
def picture(method: MAE, images: Tensor, preprocess: Preprocess, keep: Tensor | None = None) -> bytes:
    """A PNG with a row for each of images (B, C, H, W), normalised: original, masked, reconstruction, pasted. keep: (B, K), the
    visible patches; as in training without."""
    encoder, P = method.encoder, method.encoder.patch_size
    size = (images.shape[2], images.shape[3])
    if keep is None:
        keep, _ = method.sample(sample_seeds(0, 0, torch.arange(len(images))), encoder.grid)
    was_training = method.training
    painted = method.eval().reconstruct(images, keep)
    method.train(was_training)
    patches = patchify(painted, P).scatter(
        1, keep.unsqueeze(-1).expand(-1, -1, P * P * images.shape[1]), take(patchify(images, P), keep)
    )
    shown = [preprocess.denormalise(x) for x in (images, painted, unpatchify(patches, size, P))]
    rows = [
        {
            "original": original,
            "masked": figures.masked_image(original, kept, P),
            "reconstruction": reconstruction,
            "pasted": pasted,
        }
        for original, reconstruction, pasted, kept in zip(*shown, keep, strict=True)
    ]
    return figures.reconstruction(rows)
