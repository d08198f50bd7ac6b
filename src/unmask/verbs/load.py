"""Open what was trained before: a run of ours, or an encoder from elsewhere."""

from pathlib import Path
from typing import Any

from torch import nn

from unmask.data.decode import Preprocess
from unmask.errors import BadInput
from unmask.methods import METHODS
from unmask.methods.byol import BYOL
from unmask.methods.mae import MAE, Settings
from unmask.methods.simclr import SimCLR
from unmask.models import Encoder, classifier, detection, interop, rebuild, segmentation
from unmask.models.classifier import Classifier
from unmask.models.detection import Detector
from unmask.models.dvae import TokenEncoder, Tokenizer
from unmask.models.segmentation import Segmenter
from unmask.models.vit import ViT
from unmask.training.run import Run, revive

IMAGENET = Preprocess(3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""How facebookresearch/mae and most published encoders were trained (torchvision's constants)."""


def load(path: str | Path) -> tuple[Encoder, Preprocess]:
    """An encoder in evaluation mode, and what is to be done to images before it sees them.

    path: a run, its encoder/ folder, an official MAE .pth, a Hugging Face ViT or ViTMAE folder, a timm state dict, or one of
    SHI-Labs' compact transformers.
    Nothing is unpickled. Raises BadInput for anything else.

        encoder, preprocess = unmask.load("runs/first")
        vectors = encoder(preprocess.normalise(images))  # (B, C, H, W) uint8 to (B, D)
    """
    encoder, config = interop.load(path)
    if "preprocess" in config:
        preprocess = Preprocess.from_dict(config["preprocess"])
    elif encoder.channels == 3:
        preprocess = IMAGENET
    else:
        raise BadInput(f"{path} does not say how its images of {encoder.channels} channels were normalised")
    return encoder.eval(), preprocess


def load_classifier(run: str | Path) -> tuple[Classifier, Preprocess]:
    """The classifier of a run of `unmask finetune` or `unmask distill`, in evaluation mode, and what is to be done to images
    before it sees them. BadInput for anything else."""
    found, config = classifier.load(run)
    return found, Preprocess.from_dict(config["preprocess"])


def load_detector(run: str | Path) -> tuple[Detector, Preprocess]:
    """The detector of a run of `unmask detect`, in evaluation mode, and what is to be done to images before it sees them.
    BadInput for anything else."""
    found, config = detection.load(run)
    return found, Preprocess.from_dict(config["preprocess"])


def load_segmenter(run: str | Path) -> tuple[Segmenter, Preprocess]:
    """The segmenter of a run of `unmask segment`, in evaluation mode, and what is to be done to images before it sees them.
    BadInput for anything else."""
    found, config = segmentation.load(run)
    return found, Preprocess.from_dict(config["preprocess"])


def load_run(folder: str | Path) -> tuple[Any, Preprocess]:
    """The whole method of a run, decoder and all, as the newest checkpoint has it, in evaluation mode."""
    run = Run(folder)
    stored = run.settings
    if (state := run.restore()) is None:
        raise BadInput(f"{folder} has no checkpoint yet: let `unmask pretrain` run further")
    kind = METHODS[stored["method"]]
    method = kind(rebuild(stored["encoder"]), revive(kind.Settings, stored["method_settings"]))
    method.load_state_dict(state["method"])
    return method.eval(), Preprocess.from_dict(stored["preprocess"])


def load_projection(path: str | Path) -> nn.Module | None:
    """The head behind a run's encoder, which its loss saw and which is thrown away: None where the method has none, or nothing
    is left of it."""
    if not (Path(path) / "settings.yaml").is_file():
        return None
    run = Run(path)
    kind = METHODS.get(run.settings["method"])
    if kind is None or not issubclass(kind, SimCLR | BYOL) or not run.checkpoints():
        return None
    return load_run(path)[0].projection


def load_tokenizer(path: str | Path, preprocess: Preprocess) -> Tokenizer:
    """A frozen tokenizer, for images that `preprocess` has normalised.

    path: a run of the discrete VAE, its encoder/ folder, or a state dict of DALL-E's encoder. Raises BadInput for anything
    else, and for one that sees other channels.
    """
    encoder, theirs = load(path)
    if not isinstance(encoder, TokenEncoder):
        raise BadInput(f"--tokens {path} is an encoder that knows no tokens: name a run of `unmask pretrain dvae`")
    if encoder.channels != preprocess.channels:
        raise BadInput(
            f"--tokens {path} sees images of {encoder.channels} channels, and these have {preprocess.channels}: "
            f"use --channels {encoder.channels}, or train another tokenizer"
        )
    return Tokenizer(encoder, preprocess.mean, preprocess.std, theirs.mean, theirs.std)


def load_mae(path: str | Path, norm_pix: bool | None = None) -> tuple[MAE, Preprocess]:
    """A whole masked autoencoder: a run, a full checkpoint of facebookresearch/mae, or a Hugging Face ViTMAE folder.

    norm_pix: whether its targets were normalised, for checkpoints that do not say; raw pixels if it is not given.
    """
    if (Path(path) / "settings.yaml").is_file():
        stored = Run(path).settings
        if METHODS.get(stored["method"]) is not MAE:
            raise BadInput(f"{path} was trained by another method: only masked autoencoders reconstruct")
        if stored["method_settings"].get("target") == "tokens":
            raise BadInput(f"{path} predicts visual tokens: only masked autoencoders of pixels reconstruct")
        return load_run(path)
    state, facts = interop.load_mae(path)
    told = facts["norm_pix"] if facts["norm_pix"] is not None else bool(norm_pix)
    settings = Settings(norm_pix=told, decoder_width=facts["decoder_width"], decoder_depth=facts["decoder_depth"])
    method = MAE(ViT(**facts["encoder"]), settings, norm_eps=facts["norm_eps"])
    method.load_state_dict(state)
    return method.eval(), IMAGENET
