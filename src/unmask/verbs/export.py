"""unmask export RUN: the encoder in the layouts of other libraries, each with its card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from unmask import card
from unmask.errors import BadInput
from unmask.models import interop
from unmask.screen import console
from unmask.training.run import Run
from unmask.verbs.load import load, load_mae


@dataclass(frozen=True)
class Export:
    """Write an encoder as other libraries read it."""

    run: Positional[str]
    """A run, or any encoder that `unmask.load` reads."""
    out: Path
    """The file (timm, mae: .safetensors; onnx: .onnx) or the folder (unmask, huggingface) to write."""
    to: Literal["unmask", "timm", "huggingface", "mae", "onnx"] = "timm"
    """unmask: model.safetensors and config.json · timm: a state dict for its VisionTransformer, or for its model of the
    encoder's name, with num_classes=0 · huggingface: a folder for ViTModel.from_pretrained · mae: encoder and decoder
    with the keys of facebookresearch/mae · onnx: images (B, C, H, W), normalised, to vectors (B, D), any B."""


def export(settings: Export) -> Path:
    """Write the encoder and return where. BadInput where the layout cannot hold it or the place cannot be written."""
    out, to = settings.out, settings.to
    if to not in (kinds := get_args(Export.__annotations__["to"])):
        raise BadInput(f"no layout is called {to!r}: use one of {', '.join(kinds)}")
    ending = {"timm": ".safetensors", "mae": ".safetensors", "onnx": ".onnx"}.get(to)
    if ending and out.suffix != ending:
        raise BadInput(f"--out {out}: a file for {to} ends in {ending}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to == "mae":
            method, preprocess = load_mae(settings.run)
            encoder = method.encoder
            interop.refuse_compact(encoder, "facebookresearch/mae")
            interop.save_whole(interop.to_mae(method.state_dict(), encoder.patch_size), out)
        else:
            encoder, preprocess = load(settings.run)
            if to == "unmask":
                interop.save(encoder, out, {"preprocess": preprocess.to_dict()})
            elif to == "timm":
                interop.save_whole(interop.to_timm(encoder), out)
            elif to == "huggingface":
                interop.to_huggingface(encoder, out)
            else:
                interop.to_onnx(encoder, out)
        place = out / "README.md" if out.is_dir() else out.with_suffix(".md")
        run = Path(settings.run).parent if Path(settings.run).name == "encoder" else Path(settings.run)
        known = card.files_of(Run(run)) if (run / "settings.yaml").is_file() else None
        words = card.card(out.name, to, encoder.config, preprocess.to_dict(), known, came_from=settings.run)
        written = card.write(place, words)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another --out") from None
    told = f"its card: {place}" if written else f"{place} was changed by somebody, and is left alone"
    console.print(f"{settings.run} for {to}, into {out}; {told}")
    return out
