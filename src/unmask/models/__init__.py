"""Encoders, by name: `build("vit-base/16", image_size=(160, 224), channels=5)`, `build("resnet50")`."""

import inspect
import re
from typing import Any

from unmask.errors import BadInput
from unmask.layers import resample_offsets, resample_positions
from unmask.models import compact, dvae
from unmask.models.backbones import Backbone
from unmask.models.compact import CCT
from unmask.models.dvae import TokenEncoder
from unmask.models.vit import SIZES, ViT

Encoder = ViT | CCT | Backbone | TokenEncoder


def build(
    name: str, *, image_size: tuple[int, int] = (224, 224), channels: int = 3, drop_path: float = 0.0, **options
) -> Encoder:
    """The encoder called `name`: vit-tiny, vit-small, vit-base, vit-large or vit-huge, then / and the patch size in pixels;
    vit-lite-7/4, cvt-7/4, cct-7/3x1 and their like, see `unmask.models.compact`; dvae-tiny, dvae-small or dvae-base, then / and
    the pixels a side that a token stands for; or any name of timm.list_models(), such as resnet50.

    options: any other argument of `ViT` (positions, pool, …), or of `TokenEncoder`. They mean nothing to a model of timm,
    which is built without them. Raises BadInput for an unknown name, a patch that does not tile the image, and what timm's
    model cannot take.
    """
    match = re.fullmatch(r"([a-z-]+)/(\d+)", name)
    if match is not None and match[1] in dvae.SIZES:
        groups = int(match[2]).bit_length()
        if int(match[2]) != 2 ** (groups - 1):
            raise BadInput(f"--encoder {name}: a token stands for 1, 2, 4, 8, … pixels a side, as in {match[1]}/8")
        if drop_path:
            raise BadInput(f"{match[1]} has no stochastic depth: leave --drop-path out")
        return TokenEncoder(image_size, channels, width=dvae.SIZES[match[1]], groups=groups, **options)
    inspect.signature(ViT).bind_partial(**options)  # a slip in a name must not be taken for an option left out
    if match is not None and match[1] in SIZES and int(match[2]) > 0:
        width, depth, heads = SIZES[match[1]]
        return ViT(image_size, int(match[2]), channels, width, depth, heads, drop_path=drop_path, **options)
    small = compact.build(name, image_size, channels, drop_path, **options)
    return Backbone(name, image_size, channels, drop_path=drop_path) if small is None else small


def rebuild(config: dict[str, Any]) -> Encoder:
    """The architecture that an encoder's `config` describes, untrained: of timm where it names a "backbone", of a discrete VAE
    where it has a "vocabulary", of a CCT where it has "convolutions"."""
    kinds = {"backbone": Backbone, "vocabulary": TokenEncoder, "convolutions": CCT}
    return next((kind for fact, kind in kinds.items() if fact in config), ViT)(**config)


def adapted(encoder: Encoder, image_size: tuple[int, int], drop_path: float = 0.0, pool: str | None = None) -> Encoder:
    """A copy of a trained encoder, in training mode, for images of another size, of which it computes what `encoder` does; with
    stochastic depth; with another pooling, whose own weights, if it has any, are new. BadInput for a size that it cannot take."""
    changes: dict[str, Any] = {"image_size": list(image_size), "drop_path": drop_path}
    if isinstance(encoder, ViT) and pool is not None:
        changes["pool"] = pool
    made, state = rebuild(encoder.config | changes), encoder.state_dict()
    if isinstance(made, ViT | CCT) and isinstance(encoder, ViT | CCT):
        for name, value in state.items():
            if name == "positions" and isinstance(made, CCT) and made.config["positions"] == "sine":
                state[name] = made.positions  # which are reckoned for each size, not learnt
            elif name == "positions":
                state[name] = resample_positions(value, encoder.grid, made.grid)
            elif name.endswith("attention.bias.table"):
                state[name] = resample_offsets(value, encoder.grid, made.grid)
        new = {name: value for name, value in made.state_dict().items() if name.startswith("pool.")}
        state = new | {name: value for name, value in state.items() if not name.startswith("pool.") or name in new}
    made.load_state_dict(state)
    return made.train()
