"""Encoders in and out: our own folders, the official MAE checkpoints, timm's and Hugging Face's layouts, ONNX.

Everything here is exact: what comes out computes the same numbers; what cannot is refused with a line that says why.
No file can run code: pickles are read with `weights_only`, which knows tensors and plain values and nothing else.

The layouts:
- ours: ViT.state_dict(); the patch embedding is a matrix over patches flattened as (row, column, channel);
- timm's: its VisionTransformer; the patch embedding is a convolution, the class token's position is the first of
  `pos_embed`, which is (1, 1 + N, D). The encoder of facebookresearch/mae has these very keys, and a full MAE
  checkpoint adds `mask_token` and `decoder_…`;
- that of BEiT (microsoft/unilm, and timm's Beit with use_rel_pos_bias): timm's, with layer scale under other names, no bias
  of keys, and for `positions="relative"` a table a block instead of `pos_embed`. Keys need no bias: it adds the same to all
  scores of a query, which a softmax does not see. Weights as pre-trained, which share one table, are read, too;
- that of SHI-Labs/Compact-Transformers (CCT, CVT, ViT-Lite, of images): read, with its heads left out; not written;
- that of openai/DALL-E's encoder: TokenEncoder.state_dict() with `w` for weight and `b` for bias;
- Hugging Face's ViT and ViTMAE: the same with other names, and with queries, keys and values apart. Three spellings
  are about (the hub's, that of the modules of transformers 5, and what it saves); all are read, the hub's is written.

Pooling is hardly in a state dict. `pool="class"` is timm's global_pool="token" and Hugging Face's
last_hidden_state[:, 0]. `pool="mean"`, the mean of the normalised patch tokens, is timm's global_pool="avg" with
fc_norm=False and Hugging Face's last_hidden_state[:, 1:].mean(1); `pool="class+mean"` is the two side by side. timm's
default for "avg" (and the fine-tuning code of MAE and BEiT) averages first and normalises after, `fc_norm`: that is
`pool="mean-then-norm"`, which the keys do tell, and which Hugging Face's ViTModel, all of whose tokens are normalised, is not.
"""

import argparse
import json
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.errors import BadInput
from unmask.layers import sincos_positions
from unmask.models import Encoder, compact, rebuild
from unmask.models.backbones import Backbone
from unmask.models.compact import CCT
from unmask.models.dvae import MEAN, STD, TokenEncoder
from unmask.models.vit import SIZES, ViT
from unmask.training.run import write

State = dict[str, Tensor]

ACCEPTED = (
    "an unmask run or its encoder/ folder, a Hugging Face folder (model_type vit or vit_mae), a checkpoint of "
    "facebookresearch/mae, or the state dict of a timm VisionTransformer or Beit, of a compact transformer of SHI-Labs, or of "
    "DALL-E's encoder (.pth, .bin, .safetensors)"
)

ESSENTIAL = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"}
"""What tells a ViT in timm's layout from anything else."""

TABLE = "blocks.0.attn.relative_position_bias_table"
"""Which has relative positions, where another has "pos_embed"."""

COMPACT = {"tokenizer.conv_layers.0.0.weight", "classifier.blocks.0.linear1.weight"}
"""What tells a compact transformer of SHI-Labs, of images."""

DECODER = {"mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.mlp.fc1.weight"}
"""What tells a whole MAE from its encoder."""

HEADS = {width: heads for width, _, heads in SIZES.values()}
"""A state dict does not tell the heads: these widths have one usual number (64 channels a head; 80 in ViT-H)."""


# Our own folders


def save(encoder: Encoder, folder: str | Path, config: dict[str, Any]) -> None:
    """Write model.safetensors and config.json into `folder`, each beside and then renamed.

    config: what else is to be known of the encoder, as JSON values ("name", "method", "preprocess", …); its entry
    "encoder", from which `models.rebuild` builds the architecture again, is written by this function. It has the
    arguments of ViT, those of Backbone, which name a "backbone", or those of TokenEncoder, with a "vocabulary".
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(encoder.state_dict(), folder / "model.safetensors")
    write(folder / "config.json", json.dumps({**config, "encoder": encoder.config}, indent=2) + "\n")


def save_whole(state: State, path: Path) -> None:
    """Write a safetensors file beside, then rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, beside, metadata={"format": "pt"})
    beside.replace(path)


def load(
    path: str | Path, image_size: tuple[int, int] | None = None, heads: int | None = None
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder at `path`, in evaluation mode, and what is known of it.

    path: a run, our own encoder folder, a Hugging Face folder, an official MAE checkpoint (its decoder is left out: see
    `load_mae`), or a state dict of timm's VisionTransformer or Beit, of SHI-Labs' CCT, CVT or ViT-Lite, or of DALL-E's encoder.
    image_size, heads: for a bare state dict, which does not tell them. By default the grid of patches is square, and
    the heads are those of the usual ViT of that width (`HEADS`, or `compact.SIZES`); another width needs `heads`.

    Returns the encoder and its config: "encoder" (the arguments of ViT, CCT, Backbone or TokenEncoder), and what `save` was
    given, or for foreign weights "layout" ("timm", "huggingface", "compact" or "dalle"), and "preprocess" where the weights
    tell it. Foreign encoders with a class token pool by it, unless they have `fc_norm`. Raises BadInput for anything
    that is none of these, is damaged, holds code, or computes something that our encoders do not.
    """
    path = Path(path)
    if (path / "encoder" / "config.json").is_file():
        path = path / "encoder"
    config = read_config(path) if (path / "config.json").is_file() else {}
    if "encoder" in config and "model_type" not in config:  # Hugging Face has a model of an encoder and a decoder
        refuse_arguments(path, image_size, heads)
        state = read_state(path / "model.safetensors")
        try:
            encoder = rebuild(config["encoder"])
        except (TypeError, ValueError):
            raise BadInput(f"{path / 'config.json'} describes no encoder that this version of unmask knows") from None
    else:
        found, facts, layout, _ = read_foreign(path, image_size, heads)
        config = {"encoder": facts, "layout": layout}
        encoder = rebuild(facts)
        if layout == "dalle":
            channels = facts["channels"]
            config["preprocess"] = {"channels": channels, "mean": [MEAN] * channels, "std": [STD] * channels}
            state = {re.sub("w$", "weight", re.sub("b$", "bias", key)): value for key, value in found.items()}
        elif layout == "compact":
            state = from_compact(found)
            classes = len(found["classifier.fc.weight"]) if "classifier.fc.weight" in found else 0
            if facts["channels"] == 3 and classes in PUBLISHED:
                mean, std = PUBLISHED[classes]
                config["preprocess"] = {"channels": 3, "mean": list(mean), "std": list(std)}
        else:
            state = from_timm({key: value for key, value in found.items() if not of_decoder(key)}, path)
    check(state, encoder.state_dict(), path)
    encoder.load_state_dict(state)
    return encoder.eval(), config


def load_mae(
    path: str | Path, image_size: tuple[int, int] | None = None, heads: int | None = None
) -> tuple[State, dict[str, Any]]:
    """A whole MAE, encoder and decoder, of facebookresearch/mae or of Hugging Face (ViTMAEForPreTraining).

    Returns the state dict of methods.mae.MAE and the facts to build it: "encoder" (the arguments of ViT),
    "decoder_width", "decoder_depth", "norm_eps" and "norm_pix" (None where the file does not say). Arguments and errors
    as in `load`; BadInput also if there is no decoder, or one that is not MAE's (4 times its width in the MLP, heads of
    32 channels).
    """
    path = Path(path)
    state, encoder, _, config = read_foreign(path, image_size, heads)
    if not state.keys() >= DECODER:
        raise BadInput(f"{path} holds an encoder without a decoder: nothing can be reconstructed from it")
    width = state["decoder_embed.weight"].shape[0]
    told = config.get("decoder_num_attention_heads", width // 32)  # facebook's files do not say, and all have 512 / 16
    if told * 32 != width or state["decoder_blocks.0.mlp.fc1.weight"].shape[0] != 4 * width:
        raise BadInput(
            f"{path} has a decoder unlike MAE's, which has heads of 32 channels and an MLP 4 times its width"
        )
    facts = {
        "encoder": encoder,
        "decoder_width": width,
        "decoder_depth": depth_of(state, "decoder_blocks"),
        "norm_eps": encoder["norm_eps"],
        "norm_pix": config.get("norm_pix_loss"),
    }
    return from_mae(state, path), facts


# Reading


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise BadInput(f"{folder / 'config.json'} is not the JSON of a model")
    return config


def read_state(path: Path) -> State:
    """The tensors of a .safetensors file or of a pickle, out of the "model" or "state_dict" that may wrap them."""
    if not path.is_file():
        raise BadInput(f"{path} is not there: give {ACCEPTED}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # the official checkpoints keep their command line in a Namespace, which is a plain record of values
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise BadInput(
                f"{path} holds code ({code[1]}), which is never run: ask its author for the weights as .safetensors"
            ) from None
        raise BadInput(f"{path} is not a checkpoint: give {ACCEPTED}") from None
    except Exception:  # whatever the readers stumble over in damaged bytes: no one kind of error
        raise BadInput(f"{path} is damaged or is not a checkpoint: give {ACCEPTED}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadInput(f"{path} holds a {type(found).__name__} that is no state dict: give {ACCEPTED}")
    return found


def read_foreign(
    path: Path, image_size: tuple[int, int] | None, heads: int | None
) -> tuple[State, dict[str, Any], str, dict[str, Any]]:
    """Somebody else's weights, in timm's layout (with facebook's decoder, if there is one), the arguments of our ViT
    for them, the name of the layout they came in, and Hugging Face's config or {}."""
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = ", ".join(sorted(file.name for file in path.iterdir())[:4]) or "nothing"
            raise BadInput(f"{path} holds {inside} and no config.json: give {ACCEPTED}")
        config = read_config(path)
        if config.get("model_type") not in ("vit", "vit_mae"):
            raise BadInput(f"{path} holds a model of type {config.get('model_type')!r}: give {ACCEPTED}")
        if config.get("hidden_act", "gelu") != "gelu":
            raise BadInput(f"{path} has the activation {config['hidden_act']!r}: this ViT computes gelu")
        refuse_arguments(path, image_size, heads)
        weights = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not weights:
            raise BadInput(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        state = from_huggingface(read_state(weights[0]))
        if not state.keys() >= ESSENTIAL:
            raise BadInput(f"{weights[0]} lacks {', '.join(sorted(ESSENTIAL - state.keys()))} of a ViT")
        size = config.get("image_size", 224)
        size = (size, size) if isinstance(size, int) else (size[0], size[1])
        heads = config.get("num_attention_heads", 12)
        return state, facts_of(state, path, size, heads, config.get("layer_norm_eps", 1e-12)), "huggingface", config

    state = read_state(path)
    if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in state):
        raise BadInput(f"{path} has Hugging Face's keys: give the folder that has it with its config.json")
    if "patch_embedding.weight" in state or "blocks.input.weight" in state:
        raise BadInput(f"{path} is the encoder of a run: give the folder that has it with its config.json")
    if "blocks.input.w" in state:
        return state, facts_of_dalle(state, path, image_size), "dalle", {}
    if state.keys() >= COMPACT:
        return state, facts_of_compact(state, path, image_size, heads), "compact", {}
    if "blocks.0.attn.q_bias" in state:
        state = from_beit(state)
    if not state.keys() >= ESSENTIAL or ("pos_embed" in state) == (TABLE in state):
        raise BadInput(f"{path} has the keys {', '.join(list(state)[:3])}, … and is no ViT known here: give {ACCEPTED}")
    return state, facts_of(state, path, image_size, heads, 1e-6), "timm", {}


def refuse_arguments(path: Path, image_size: tuple[int, int] | None, heads: int | None) -> None:
    if image_size is not None or heads is not None:
        raise BadInput(f"{path} says its image size and heads itself: leave image_size and heads out")


def facts_of(
    state: State, path: Path, image_size: tuple[int, int] | None, heads: int | None, norm_eps: float
) -> dict[str, Any]:
    """The arguments of our ViT for weights in timm's layout. They are read off the shapes; BadInput where those do not
    tell."""
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise BadInput(f"{path} embeds patches of shape {tuple(kernel.shape[1:])}: this ViT knows (C, P, P) alone")
    width, channels, patch_size = kernel.shape[:3]
    if heads is None:
        heads = HEADS.get(width)
    if heads is None:
        usual = ", ".join(map(str, sorted(HEADS)))
        raise BadInput(f"{path} is {width} wide and does not tell its heads (known for {usual}): give heads=")
    class_token = "cls_token" in state
    if TABLE in state:
        entries = len(state[TABLE]) - 3 * class_token
        side, what = (math.isqrt(entries) + 1) // 2, f"a table of {entries} offsets between patches"
    else:
        entries = state["pos_embed"].shape[1] - class_token
        side, what = math.isqrt(entries), f"positions for {entries} patches"
    if image_size is None:
        image_size = (side * patch_size, side * patch_size)
    rows, columns = image_size[0] // patch_size, image_size[1] // patch_size
    if entries != ((2 * rows - 1) * (2 * columns - 1) if TABLE in state else rows * columns):
        raise BadInput(
            f"{path} has {what} of {patch_size} pixels, not those of an image of "
            f"{image_size[0]}x{image_size[1]}: give image_size=(height, width) as it was trained"
        )
    kind = "relative"
    if TABLE not in state:
        positions = state["pos_embed"][0].float()
        fixed = torch.zeros(len(positions), width)
        if width % 4 == 0:
            fixed[int(class_token) :] = sincos_positions(width, (rows, columns))
        alike = positions.shape == fixed.shape and torch.allclose(
            positions, fixed, rtol=0, atol=1e-3
        )  # float16's error
        kind = "sincos" if alike else "learned"
    return {
        "image_size": list(image_size),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": depth_of(state, "blocks"),
        "heads": heads,
        "mlp_ratio": ratio_of(state["blocks.0.mlp.fc1.weight"]),
        "positions": kind,
        "class_token": class_token,
        "pool": "mean-then-norm" if "fc_norm.weight" in state else "class" if class_token else "mean",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,  # where it began: forgotten, and of no account
        "norm_eps": norm_eps,
        "compact": False,
    }


def facts_of_dalle(state: State, path: Path, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """The arguments of TokenEncoder for weights in DALL-E's layout; 256 pixels a side, as it was trained, if not told."""
    parts = [re.findall(r"^blocks\.group_(\d+)\.block_(\d+)\.", key) for key in state]
    groups, blocks = zip(*[map(int, found[0]) for found in parts if found], strict=True) if any(parts) else ((), ())
    if not parts or "blocks.output.conv.w" not in state or not groups:
        raise BadInput(f"{path} is a part of DALL-E's encoder only: give all of its state dict")
    width, channels = state["blocks.input.w"].shape[:2]
    return {
        "image_size": list(image_size or (256, 256)),
        "channels": channels,
        "vocabulary": len(state["blocks.output.conv.w"]),
        "width": width,
        "groups": max(groups),
        "blocks_per_group": max(blocks),
    }


def facts_of_compact(state: State, path: Path, image_size: tuple[int, int] | None, heads: int | None) -> dict[str, Any]:
    """The arguments of our CCT, or of our ViT for a CVT or ViT-Lite, for weights in SHI-Labs' layout: square images of as many
    tokens as there are positions, or of 32 pixels where there are none. Their positions are read as learned whatever the model is
    called: those of most of the "sine" ones are."""
    first, up = state["tokenizer.conv_layers.0.0.weight"], state["classifier.blocks.0.linear1.weight"]
    width, kernel = up.shape[1], first.shape[-1]
    if first.ndim != 4 or first.shape[2] != kernel:
        raise BadInput(
            f"{path} has a convolution of shape {tuple(first.shape[1:])}: compact transformers know (C, k, k) alone"
        )
    if heads is None:
        heads = {width: heads for width, heads, _ in compact.SIZES.values()}.get(width)
    if heads is None:
        raise BadInput(f"{path} is {width} wide and does not tell its heads: give heads=")
    convolutions = depth_of(state, "tokenizer.conv_layers")
    patches, class_token = "tokenizer.conv_layers.0.0.bias" in state, "classifier.class_emb" in state
    positions, side = state.get("classifier.positional_emb"), 32
    if positions is not None:
        shrinks = kernel if patches else (2 * compact.stride(kernel)) ** convolutions
        side = shrinks * math.isqrt(positions.shape[1] - class_token)
    size = image_size or (side, side)
    facts = {
        "image_size": list(size),
        "channels": first.shape[1],
        "width": width,
        "depth": depth_of(state, "classifier.blocks"),
        "heads": heads,
        "mlp_ratio": ratio_of(up),
        "positions": "none" if positions is None else "learned",
    }
    if patches:
        pool = "class" if class_token else "sequence"
        facts |= {"patch_size": kernel, "class_token": class_token, "pool": pool}
        facts |= {"layer_scale": None, "norm_eps": 1e-5, "compact": True}
    else:
        facts |= {"kernel": kernel, "convolutions": convolutions}
    with torch.device("meta"):
        built = rebuild(facts)
    assert isinstance(built, ViT | CCT)
    rows, columns = built.grid
    if positions is not None and rows * columns != positions.shape[1] - class_token:
        raise BadInput(
            f"{path} has positions for {positions.shape[1] - class_token} tokens, not those of an image of {size[0]}x{size[1]}: "
            "give image_size=(height, width) as it was trained"
        )
    return facts


def depth_of(state: State, blocks: str) -> int:
    return len({key.removeprefix(f"{blocks}.").split(".")[0] for key in state if key.startswith(f"{blocks}.")})


def ratio_of(up: Tensor) -> float:
    """Of the MLP whose first matrix is `up`, (hidden, width): such that int(width * ratio) is hidden."""
    hidden, width = up.shape
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def check(state: State, wanted: State, path: Path) -> None:
    """BadInput, saying which, unless both have the same keys and shapes."""
    for what, keys in (("lacks", wanted.keys() - state.keys()), ("also has", state.keys() - wanted.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3]) + ", …" * (len(keys) > 3)
            raise BadInput(f"{path} {what} {some}: it is another kind of encoder than this one")
    for key, value in wanted.items():
        if value.shape != state[key].shape:
            raise BadInput(f"{path}: {key} is {tuple(state[key].shape)} where its facts say {tuple(value.shape)}")


# timm and facebookresearch/mae

NAMES = {  # ours: timm's
    "patch_embedding.bias": "patch_embed.proj.bias",
    "attention.qkv": "attn.qkv",
    "attention.projection": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "scale1": "ls1.gamma",
    "scale2": "ls2.gamma",
    "attention.bias.table": "attn.relative_position_bias_table",
    "decoder_embedding": "decoder_embed",
    "prediction": "decoder_pred",
}


def of_decoder(key: str) -> bool:
    """Whether a key of facebook's layout belongs to the half of MAE that is thrown away."""
    return key == "mask_token" or key.startswith("decoder_")


def renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        key = key.replace(old, new)
    return key


def to_timm(encoder: Encoder) -> State:
    """The state dict of timm's VisionTransformer with num_classes=0. Its norms must have our norm_eps, as they do by
    default (1e-6). Pooling: see the head of this file.

    Of a Backbone, the state dict of timm's model of that name with num_classes=0, in_chans and, where it takes one,
    img_size. Raises BadInput for the CIFAR form, which timm has no name for, and for a discrete VAE.

    With relative positions, the state dict of timm's Beit(use_abs_pos_emb=False, use_rel_pos_bias=True, use_fc_norm=False), or
    with use_fc_norm=True where pool is "mean-then-norm".
    """
    if isinstance(encoder, TokenEncoder):
        raise BadInput("timm has no discrete VAE: export to unmask or onnx")
    refuse_compact(encoder, "timm")
    if isinstance(encoder, Backbone):
        if encoder.config["cifar_stem"]:
            raise BadInput(
                f"timm's {encoder.config['backbone']} has a stem of 7x7 and max-pooling, where this, in its CIFAR form, has "
                "3x3 and none: export to unmask or onnx"
            )
        return encoder.model.state_dict()
    assert isinstance(encoder, ViT)
    state = encoder_to_timm(encoder.state_dict(), encoder.patch_size)
    if encoder.config["pool"] == "mean-then-norm":
        state = {re.sub("^norm", "fc_norm", key): value for key, value in state.items()}
    return to_beit(state) if encoder.positions is None else state


def refuse_compact(encoder: Encoder, library: str) -> None:
    if isinstance(encoder, CCT) or encoder.config.get("compact"):
        raise BadInput(f"{library} has no compact transformers: export to unmask or onnx")


def encoder_to_timm(state: State, patch_size: int) -> State:
    state = dict(state)
    positions, weight = state.pop("positions", None), state.pop("patch_embedding.weight")
    weight = weight.unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2)  # (D, C, P, P)
    out = {"patch_embed.proj.weight": weight.contiguous()}
    if "class_token" in state:
        out["cls_token"] = state.pop("class_token")[None, None]  # (1, 1, D)
    if positions is not None:
        first = [state.pop("class_position")[None]] if "class_position" in state else []
        out["pos_embed"] = torch.cat([*first, positions])[None]  # (1, [1 +] N, D)
    return out | {renamed(key, NAMES): value for key, value in state.items()}


def from_timm(state: State, path: Path | str = "the state dict") -> State:
    """Our ViT's state dict from that of timm's VisionTransformer, or of an encoder of facebookresearch/mae.

    The classifier `head` is left out. `fc_norm` becomes the final norm (see the head of this file); raises BadInput, naming
    `path`, where there are both.
    """
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    if {"fc_norm.weight", "norm.weight"} <= state.keys():
        raise BadInput(
            f"{path} has a norm before and after the mean of its tokens (norm, fc_norm), this ViT has one of them"
        )
    state = {re.sub("^fc_norm", "norm", key): value for key, value in state.items()}
    out = {"patch_embedding.weight": state.pop("patch_embed.proj.weight").permute(0, 2, 3, 1).flatten(1)}
    if "cls_token" in state:
        out["class_token"] = state.pop("cls_token")[0, 0]
    if "pos_embed" in state:
        out["positions"] = state.pop("pos_embed")[0]
        if "class_token" in out:
            out["class_position"], out["positions"] = out["positions"][0], out["positions"][1:]
    theirs = {new: old for old, new in NAMES.items()}
    return out | {renamed(key, theirs): value for key, value in state.items()}


def to_beit(state: State) -> State:
    """The layout of timm's Beit from that of its VisionTransformer."""
    out = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            queries, _, values = value.chunk(3)
            block = key.removesuffix("qkv.bias")
            out |= {f"{block}q_bias": queries.clone(), f"{block}v_bias": values.clone()}
        else:
            out[re.sub(r"ls(\d)\.gamma", r"gamma_\1", key)] = value
    return out


def from_beit(state: State) -> State:
    """The layout of timm's VisionTransformer, with tables of relative positions, from that of timm's Beit or of
    microsoft/unilm. What stands behind the encoder, and what is computed, is left out."""
    state = {key: value for key, value in state.items() if not re.match(r"lm_head\.|mask_token|.*position_index", key)}
    shared = state.pop("rel_pos_bias.relative_position_bias_table", None)
    out = {}
    for key, value in state.items():
        block = key.partition("attn.")[0] + "attn."
        if key.endswith("attn.q_bias"):
            out[f"{block}qkv.bias"] = torch.cat([value, torch.zeros_like(value), state[f"{block}v_bias"]])
            if shared is not None:
                out[f"{block}relative_position_bias_table"] = shared
        elif not key.endswith("attn.v_bias"):
            out[re.sub(r"gamma_(\d)", r"ls\1.gamma", key)] = value
    return out


def to_mae(state: State, patch_size: int) -> State:
    """The state dict of facebookresearch/mae's MaskedAutoencoderViT from that of methods.mae.MAE.

    Raises BadInput for what has no place there: mask tokens inside the encoder, no class token, layer scale.
    """
    missing = next((key for key in ("mask_token", "encoder.class_position") if key not in state), None)
    if missing is not None or "encoder.blocks.0.scale1" in state:
        raise BadInput(
            "the reference MAE has a class token, a mask token in its decoder and no layer scale: this has not"
        )
    if "token_target.counts" in state:
        raise BadInput("the reference MAE predicts pixels, and this one visual tokens: export its encoder, --to timm")
    if "components.basis" in state:
        raise BadInput(
            "the reference MAE predicts pixels, and this one their components: export its encoder, --to timm"
        )
    state = dict(state)
    encoder = {key.removeprefix("encoder."): state.pop(key) for key in list(state) if key.startswith("encoder.")}
    positions = state.pop("decoder_positions")
    decoder = {
        "mask_token": state.pop("mask_token")[None, None],
        "decoder_pos_embed": torch.cat([torch.zeros_like(positions[:1]), positions])[None],  # the class token has none
    }
    return encoder_to_timm(encoder, patch_size) | decoder | {renamed(key, NAMES): value for key, value in state.items()}


def from_mae(state: State, path: Path | str = "the state dict") -> State:
    """The state dict of methods.mae.MAE from that of facebookresearch/mae's MaskedAutoencoderViT; see `load_mae`."""
    state = dict(state)
    decoder = {key: state.pop(key) for key in list(state) if of_decoder(key)}
    positions = decoder.pop("decoder_pos_embed")[0]
    if positions[0].any():
        raise BadInput(f"{path} gives the decoder's class token a position, which this decoder does not")
    theirs = {new: old for old, new in NAMES.items()}
    return (
        {f"encoder.{key}": value for key, value in from_timm(state, path).items()}
        | {"mask_token": decoder.pop("mask_token")[0, 0], "decoder_positions": positions[1:]}
        | {renamed(key, theirs): value for key, value in decoder.items()}
    )


# SHI-Labs/Compact-Transformers

FROM_COMPACT = (  # theirs, then ours
    (r"^classifier\.", ""),
    (r"^attention_pool", "pool.attention"),
    (r"self_attn\.proj", "attention.projection"),
    (r"self_attn\.qkv", "attention.qkv"),
    (r"norm1", "norm2"),
    (r"pre_norm", "norm1"),
    (r"linear1", "mlp.up"),
    (r"linear2", "mlp.down"),
)
PUBLISHED = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    102: ((0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698)),
}
"""Mean and deviation of the images that their models of so many classes were trained on: CIFAR-10, CIFAR-100, Flowers-102
(configs/datasets). Those of ImageNet are the usual ones."""


def from_compact(state: State) -> State:
    """The state dict of our CCT, or of our ViT for a CVT or ViT-Lite, from SHI-Labs'. The classifier `fc` is left out."""
    state = {key: value for key, value in state.items() if not key.startswith("classifier.fc.")}
    out, patches = {}, "tokenizer.conv_layers.0.0.bias" in state
    if patches:
        out["patch_embedding.weight"] = state.pop("tokenizer.conv_layers.0.0.weight").permute(0, 2, 3, 1).flatten(1)
        out["patch_embedding.bias"] = state.pop("tokenizer.conv_layers.0.0.bias")
    positions = state.pop("classifier.positional_emb", None)
    if positions is not None:
        out["positions"] = positions[0]
    if "classifier.class_emb" in state:
        out["class_token"] = state.pop("classifier.class_emb")[0, 0]
        if positions is not None:
            out["class_position"], out["positions"] = positions[0, 0], positions[0, 1:]
    for key, value in state.items():
        if found := re.fullmatch(r"tokenizer\.conv_layers\.(\d+)\.0\.weight", key):
            key = f"tokenizer.{3 * int(found[1])}.weight"  # each with its ReLU and max-pooling
        out[substituted(key, FROM_COMPACT)] = value
    return out


# Hugging Face

FROM_HUGGINGFACE = (  # every spelling, then timm's
    (r"^(vit|decoder)\.", ""),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"^(decoder_encoder\.layer|decoder_layers)\.", "decoder_blocks."),
    (r"attention\.(attention\.query|q_proj)", "attn.q"),
    (r"attention\.(attention\.key|k_proj)", "attn.k"),
    (r"attention\.(attention\.value|v_proj)", "attn.v"),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm\.", "norm."),
)
TO_HUGGINGFACE = (  # timm's, then the hub's
    (r"^cls_token", "embeddings.cls_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^blocks\.", "encoder.layer."),
    (r"^decoder_blocks\.", "decoder_layers."),
    (r"attn\.q\.", "attention.attention.query."),
    (r"attn\.k\.", "attention.attention.key."),
    (r"attn\.v\.", "attention.attention.value."),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"^norm\.", "layernorm."),
)


def substituted(key: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in patterns:
        key = re.sub(pattern, new, key)
    return key


def from_huggingface(state: State) -> State:
    """timm's layout (with facebook's decoder, if there is one) from Hugging Face's ViT…, ViTMAEModel or
    ViTMAEForPreTraining. The pooler and the classifier, which stand behind our encoder, are left out."""
    state = {key: value for key, value in state.items() if not re.match(r"(vit\.)?(pooler|classifier)\.", key)}
    state = {substituted(key, FROM_HUGGINGFACE): value for key, value in state.items()}
    for key in [key for key in state if ".attn.q." in key]:
        parts = [state.pop(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return state


def timm_to_huggingface(state: State) -> State:
    out = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            thirds = zip("qkv", value.chunk(3), strict=True)
            out |= {key.replace(".attn.qkv.", f".attn.{part}."): third.clone() for part, third in thirds}
        else:
            out[key] = value
    return {substituted(key, TO_HUGGINGFACE): value for key, value in out.items()}


def to_huggingface(encoder: Encoder, folder: str | Path) -> None:
    """Write config.json and model.safetensors for ViTModel.from_pretrained(folder, add_pooling_layer=False).

    Its last_hidden_state is our normalised tokens; pooling: see the head of this file. Raises BadInput for an encoder
    that ViTModel cannot be: one of timm, one without a class token, with layer scale, or with pool="mean-then-norm".
    """
    if isinstance(encoder, Backbone):
        raise BadInput(f"Hugging Face's ViTModel is no {encoder.config['backbone']}: export to timm or onnx")
    refuse_compact(encoder, "Hugging Face")
    if isinstance(encoder, TokenEncoder) or encoder.positions is None:
        what = "discrete VAE: export to unmask" if isinstance(encoder, TokenEncoder) else "BEiT: export to timm"
        raise BadInput(f"Hugging Face's ViTModel is no {what} or onnx")
    facts = encoder.config
    if facts["pool"] == "mean-then-norm":
        raise BadInput(
            "Hugging Face's ViTModel norms its tokens before their mean is taken, and this encoder norms the mean: export to "
            "timm or onnx"
        )
    if not facts["class_token"] or facts["layer_scale"] is not None:
        raise BadInput("Hugging Face's ViTModel has a class token and no layer scale, unlike this one: export to timm")
    height, width = facts["image_size"]
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": height if height == width else [height, width],
        "patch_size": facts["patch_size"],
        "num_channels": facts["channels"],
        "hidden_size": facts["width"],
        "num_hidden_layers": facts["depth"],
        "num_attention_heads": facts["heads"],
        "intermediate_size": int(facts["width"] * facts["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "layer_norm_eps": facts["norm_eps"],
        "encoder_stride": facts["patch_size"],
        "dtype": "float32",
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(timm_to_huggingface(to_timm(encoder)), folder / "model.safetensors")
    write(folder / "config.json", json.dumps(config, indent=2) + "\n")


def to_huggingface_mae(state: State, patch_size: int) -> State:
    """The weights of Hugging Face's ViTMAEForPreTraining, as its files spell them, from the state dict of
    methods.mae.MAE. Errors as in `to_mae`."""
    state = to_mae(state, patch_size)
    encoder = timm_to_huggingface({key: value for key, value in state.items() if not of_decoder(key)})
    decoder = timm_to_huggingface({key: value for key, value in state.items() if of_decoder(key)})
    return {f"vit.{key}": value for key, value in encoder.items()} | {
        f"decoder.{key}": value for key, value in decoder.items()
    }


# ONNX


def to_onnx(encoder: Encoder, path: str | Path) -> None:
    """Write the encoder as ONNX: `images` (B, C, H, W) float32 to `features` (B, D), any B, H and W as trained.

    Weights of more than 2 GB, the limit of the format, go into a second file beside, `path`.data. Raises BadInput if
    the extra that this needs is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise BadInput("ONNX needs packages that are not installed: pip install 'unmask[onnx]'") from None
    device = next(encoder.parameters()).device
    images = torch.zeros(2, encoder.channels, *encoder.image_size, device=device)
    training = encoder.training
    encoder.eval()
    try:
        torch.onnx.export(
            encoder,
            (images,),
            path,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=sum(value.nbytes for value in encoder.state_dict().values()) > 1.9e9,
        )
    finally:
        encoder.train(training)
