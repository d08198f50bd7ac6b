"""unmask attend RUN IMAGE...: where an encoder looks, head by head, and the object that follows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from scipy import ndimage
from torch import Tensor
from tyro.conf import Positional

from unmask import figures
from unmask.data.decode import Preprocess
from unmask.errors import BadInput
from unmask.layers import grid_of
from unmask.models.vit import ViT
from unmask.training.engine import console
from unmask.verbs.choices import parse_size
from unmask.verbs.load import load
from unmask.verbs.reconstruct import rendered

MASS = 0.6
"""Share of the attention that the paper's masks keep (Caron et al. 2021, figure 4 and visualize_attention.py)."""


@dataclass(frozen=True)
class Attend:
    """Draw where an encoder looks in its last block: the mean of its heads, each head, and the main object that follows
    from the mean. Of a ViT with a class token it is the class token that looks, of one without all patches on average."""

    run: Positional[str]
    """A run of any method on a ViT, or any ViT that `unmask.load` reads."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or one source (a folder, a table, photos:test), of which eight images are taken."""
    out: Path
    """The picture (.png)."""
    mass: float = MASS
    """Share of a head's attention that is shown: the fewest patches that hold so much."""
    image_size: str | None = None
    """Pixels to look at, as in 480 or HEIGHTxWIDTH: more than in training gives finer maps. Default: as trained."""


def attend(settings: Attend) -> Path:
    """Draw the attention and return where. BadInput for an encoder without attention, or images that cannot be read."""
    encoder, preprocess = load(settings.run)
    if not isinstance(encoder, ViT):
        raise BadInput(
            f"{settings.run} holds no ViT of ours, so no attention: give a run with an encoder such as vit-tiny/8"
        )
    if not 0 < settings.mass < 1:
        raise BadInput(f"--mass is {settings.mass}: give a share between 0 and 1, such as {MASS}")
    if settings.out.suffix.lower() != ".png":
        raise BadInput(f"--out {settings.out}: pictures are written as .png")
    size = parse_size(settings.image_size) if settings.image_size else encoder.image_size
    grid_of(size, encoder.patch_size)
    images = rendered(settings.images, preprocess, size)
    try:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_bytes(attention_picture(encoder, images, preprocess, settings.mass))
    except OSError as error:
        raise BadInput(f"{settings.out} cannot be written ({error.strerror}): choose another --out") from None
    heads = encoder.config["heads"]
    console.print(
        f"where {heads} heads look in {len(images)} images, {settings.mass:.0%} of it, drawn into {settings.out}"
    )
    return settings.out


@torch.no_grad()
def last_attention(encoder: ViT, images: Tensor) -> Tensor:
    """Where each head of the last block looks in images (B, C, H, W), normalised: (B, heads, rows, columns) float32, with
    sum 1 over the patches. From the class token; of an encoder without one, the mean over all patches."""
    maps: list[Tensor] = []
    blocks: Any = encoder.blocks
    *earlier, last = blocks
    for image in images.split(1):  # a map is as large as the square of the patches
        tokens = encoder.embed(image)
        for block in earlier:
            tokens = block(tokens)
        weights = last.attention.maps(last.norm1(tokens))[0, :, :, encoder.prefix :]  # (heads, T, N)
        looks = weights[:, 0] if encoder.prefix else weights.mean(dim=1)  # (heads, N)
        maps.append(looks / looks.sum(dim=-1, keepdim=True))
    return torch.stack(maps).unflatten(-1, grid_of((images.shape[2], images.shape[3]), encoder.patch_size))


def holding(maps: Tensor, mass: float) -> Tensor:
    """The fewest places of maps (..., rows, columns) that hold `mass` of each map's sum: bool, same shape."""
    values, order = maps.flatten(-2).sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = torch.zeros_like(values, dtype=torch.bool)
    return kept.scatter(-1, order, before < mass * values.sum(dim=-1, keepdim=True)).view(maps.shape)


def main_object(looks: Tensor, size: tuple[int, int], mass: float) -> Tensor:
    """The main object of an image by where the heads look on average, (rows, columns): bool (H, W). The map is made smooth
    over the pixels, the fewest of them kept that hold `mass`, and of these the largest piece, its holes filled."""
    smooth = F.interpolate(looks[None, None], size=size, mode="bicubic", align_corners=False).clamp(min=0)[0, 0]
    pieces, count = ndimage.label(holding(smooth, mass).numpy())  # type: ignore[misc]
    largest = 1 + int(np.bincount(pieces.ravel(), minlength=count + 1)[1:].argmax())
    return torch.from_numpy(ndimage.binary_fill_holes(pieces == largest))


def attention_picture(encoder: ViT, images: Tensor, preprocess: Preprocess, mass: float = MASS) -> bytes:
    """A PNG with a row for each of images (B, C, H, W), normalised: the image, the main object, the mean of the heads,
    each head."""
    rows = []
    for image, maps in zip(preprocess.denormalise(images), last_attention(encoder, images), strict=True):
        mean = maps.mean(dim=0)
        row = {
            "image": image,
            "object": figures.cut_out(image, main_object(mean, (image.shape[1], image.shape[2]), mass)),
        }
        for name, looks in [("mean", mean), *((f"head {i + 1}", head) for i, head in enumerate(maps))]:
            row[name] = figures.attended(image, looks, holding(looks, mass))
        rows.append(row)
    return figures.reconstruction(rows, list(rows[0]), f"in colour: the patches that hold {mass:.0%} of the attention")
