"""unmask attend RUN IMAGE...: where an encoder looks, head by head, and the object that follows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor
from tyro.conf import Positional

from unmask import figures
from unmask.data.decode import Preprocess
from unmask.errors import BadInput
from unmask.evaluate.attention import MASS, holding, last_attention, main_object, pooling_weights
from unmask.models.compact import CCT
from unmask.models.vit import ViT
from unmask.screen import console
from unmask.verbs.choices import parse_size
from unmask.verbs.load import load
from unmask.verbs.reconstruct import rendered


@dataclass(frozen=True)
class Attend:
    """Draw where an encoder looks in its last block: the mean of its heads, each head, and the main object that follows
    from the mean. With a class token it is the class token that looks, without one all tokens on average. Where a learnt
    attention pools the tokens (CVT, CCT), how much each of them counts is drawn, too."""

    run: Positional[str]
    """A run of any method on a ViT or a compact transformer, or any of these that `unmask.load` reads."""
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
    if not isinstance(encoder, ViT | CCT):
        raise BadInput(
            f"{settings.run} holds no ViT of ours and no CCT, so no attention: give a run with an encoder such as vit-tiny/8"
        )
    if not 0 < settings.mass < 1:
        raise BadInput(f"--mass is {settings.mass}: give a share between 0 and 1, such as {MASS}")
    if settings.out.suffix.lower() != ".png":
        raise BadInput(f"--out {settings.out}: pictures are written as .png")
    size = parse_size(settings.image_size) if settings.image_size else encoder.image_size
    encoder.grid_for(size)
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


def attention_picture(encoder: ViT | CCT, images: Tensor, preprocess: Preprocess, mass: float = MASS) -> bytes:
    """A PNG with a row for each of images (B, C, H, W), normalised: the image, the main object, the pooling where it is
    learnt, the mean of the heads, each head."""
    looks = last_attention(encoder, images)
    maps = {"mean": looks.mean(dim=1)} | {f"head {i + 1}": head for i, head in enumerate(looks.unbind(1))}
    if encoder.pool is not None:
        maps = {"pooling": pooling_weights(encoder, images)} | maps
    rows = []
    for i, image in enumerate(preprocess.denormalise(images)):
        row = {
            "image": image,
            "object": figures.cut_out(image, main_object(maps["mean"][i], (image.shape[1], image.shape[2]), mass)),
        }
        rows.append(row | {name: figures.attended(image, m[i], holding(m[i], mass)) for name, m in maps.items()})
    places = "patches" if isinstance(encoder, ViT) else "places"
    return figures.reconstruction(rows, list(rows[0]), f"in colour: the {places} that hold {mass:.0%} of the attention")


def pooling_picture(encoder: ViT | CCT, images: Tensor, preprocess: Preprocess, mass: float = MASS) -> bytes:
    """A PNG of images (B, C, H, W), normalised, each beside the places its vector is made of, by the weights of the learnt
    pooling."""
    rows = [
        {"image": image, "pooling": figures.attended(image, weights, holding(weights, mass))}
        for image, weights in zip(preprocess.denormalise(images), pooling_weights(encoder, images), strict=True)
    ]
    return figures.reconstruction(rows, list(rows[0]), f"in colour: the places that make {mass:.0%} of the vector")
