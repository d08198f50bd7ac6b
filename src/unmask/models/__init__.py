"""Encoders, by name: `build("vit-base/16", image_size=(160, 224), channels=5)`."""

import re

from unmask.errors import BadInput
from unmask.models.vit import SIZES, ViT


def build(name: str, *, image_size: tuple[int, int] = (224, 224), channels: int = 3, **options) -> ViT:
    """The encoder called `name`: vit-tiny, vit-small, vit-base, vit-large or vit-huge, then / and the patch size in pixels.

    options: any other argument of `ViT`. Raises BadInput for an unknown name or a patch that does not tile the image.
    """
    match = re.fullmatch(r"([a-z-]+)/(\d+)", name)
    if match is None or match[1] not in SIZES or int(match[2]) == 0:
        raise BadInput(f"no encoder is called {name!r}: use one of {', '.join(SIZES)}, then /PATCH, as in vit-tiny/8")
    width, depth, heads = SIZES[match[1]]
    return ViT(image_size, int(match[2]), channels, width, depth, heads, **options)
