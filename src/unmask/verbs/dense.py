"""What `unmask detect` and `unmask segment` have in common: an encoder with a pyramid on it learns from annotated images."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import Positional

from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.source import Source
from unmask.data.survey import Survey, survey
from unmask.errors import BadInput
from unmask.methods.method import Paper
from unmask.models import Encoder
from unmask.models.pyramid import Pyramid, Way
from unmask.models.vit import ViT
from unmask.screen import warn
from unmask.verbs.choices import (
    Choice,
    Choices,
    choose_encoder,
    choose_optimiser,
    choose_pixels,
    choose_reading,
    choose_schedule,
    paper_for,
    parse_size,
)
from unmask.verbs.load import load
from unmask.verbs.train import Training, measured

SIDE = {"cpu": 256, "cuda": 640}
"""Pixels of the shorter side that are seen at most, unless told: more would take a processor minutes a step."""
WINDOW = 14
"""Patches a side of a window (ViTDet, section 3), where the image has more than twice as many."""


@dataclass(frozen=True)
class Dense(Training):
    """What detection and segmentation are told beside what every training is."""

    run: Annotated[Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """A run, or any encoder that `unmask.load` reads, to go on from. Without it --encoder is trained from scratch."""
    encoder: str | None = None
    """From scratch: a ViT such as vit-tiny/16, or a model of timm with four stages such as resnet18."""
    test: str | None = None
    """Annotated images to be judged on."""
    pyramid: Way | None = None
    """How maps of strides 4 to 32 are made: simple, of the last block alone (ViTDet); subsets, of four subsets of the blocks,
    with an FPN (as MAE); fpn, on the stages of a convolutional network. Default: simple for a ViT, fpn for the others."""
    map_channels: int | None = None
    """Channels of the maps. Default: the papers' 256; 128 on a CPU."""
    window: int | None = None
    """Side in patches of the windows that most blocks attend within, 0 for none. Default: 14 where the image has more than 28
    patches a side."""


def chosen(
    settings: Dense,
    began: tuple[Encoder, Preprocess] | None,
    source: Source,
    papers: dict[str, Paper],
    device: torch.device,
    multiple: int,
) -> tuple[dict[str, Choice], Paper, Survey]:
    """Every setting that detection and segmentation share, with its reason; the recipe, and what is known of the images.

    papers: recipes by kind of encoder, "vit" and "resnet". multiple: of how many pixels both sides of the image are.
    """
    asked = dataclasses.asdict(settings)
    choices, seen = Choices(asked), survey(source, sample=2000)
    for name in ("trim", "pad"):
        if asked[name]:
            raise BadInput(f"--{name}: what is annotated is annotated on whole images: leave it out")
    if settings.hold:
        raise BadInput("--hold: annotated images are cropped one by one: leave it out")
    usual = usual_size(seen, SIDE.get(device.type, 640), multiple)
    reason = f"the pictures are {seen.sizes['height'][1]} x {seen.sizes['width'][1]} pixels (median); "
    reason += f"on a {'GPU' if device.type == 'cuda' else 'CPU'} a shorter side of at most {SIDE.get(device.type, 640)}"
    if began is None:
        pixels = Choices(asked | {"image_size": settings.image_size or usual, "trim": False, "pad": False})
        size = choose_pixels(pixels, seen, "vit")
        choices["channels"] = pixels["channels"]
        choices.settle("image_size", usual, reason)
        choose_encoder(choices, seen, size, "vit", papers["vit"].encoder)
        paper = paper_for(papers, choices["encoder"].value)
        patch = 16
        if (after := str(choices["encoder"].value).rpartition("/")[2]).isdigit():
            patch = int(after)
    else:
        encoder, preprocess = began
        choices["run"] = Choice(
            settings.run, f"to go on from: {encoder.config.get('backbone') or type(encoder).__name__}"
        )
        if settings.channels not in (None, encoder.channels):
            raise BadInput(f"--channels: {settings.run} was trained with {encoder.channels}, leave it out")
        if preprocess.trim or preprocess.pad:
            raise BadInput(
                f"{settings.run} was trained on images that were trimmed or padded, and what is annotated is annotated on whole "
                "ones: pre-train with --no-trim --no-pad"
            )
        choices["channels"] = Choice(encoder.channels, "as the encoder was trained")
        choices.settle("image_size", usual, f"{reason}; the encoder saw {'x'.join(map(str, encoder.image_size))}")
        paper = papers["vit" if isinstance(encoder, ViT) else "resnet"]
        patch = getattr(encoder, "patch_size", 16)
    choices["trim"] = choices["pad"] = Choice(False, "")
    size = parse_size(choices["image_size"].value)
    if size[0] % multiple or size[1] % multiple:
        raise BadInput(
            f"--image-size {size[0]}x{size[1]}: use multiples of {multiple} pixels, such as "
            + "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        )
    choose_schedule(choices, paper, len(source), size[0] * size[1] // patch**2, device.type)
    choose_optimiser(choices, paper)
    choose_reading(choices, seen, device.type)
    choices["hold"] = Choice(False, "")
    on_cpu = device.type == "cpu"
    choices.settle("map_channels", 128 if on_cpu else 256, "the papers' 256" + ", halved on a CPU" * on_cpu)
    vit = isinstance(began[0], ViT) if began is not None else "/" in str(choices["encoder"].value)
    why = "of the last block's tokens alone (ViTDet)" if vit else "on the stages of a convolutional network"
    choices.settle("pyramid", "simple" if vit else "fpn", why)
    grid = max(size) // patch
    usual_window = WINDOW if grid > 2 * WINDOW else 0
    why = f"{grid} patches a side at most, " + ("more" if usual_window else "not more") + f" than twice {WINDOW}"
    choices.settle("window", usual_window, why)
    return choices, paper, seen


def usual_size(seen: Survey, side: int, multiple: int) -> str:
    """Height and width for images of these sizes: their median aspect, a shorter side of at most `side` pixels, multiples of so
    many pixels. Of the sizes that do, the largest within a sixteenth of the aspect, else the nearest."""
    height, width = seen.sizes["height"][1], seen.sizes["width"][1]
    aspect, flat = width / height, width >= height
    longest = max(multiple, min(side, min(height, width)) // multiple * multiple)
    found = []
    for short in range(longest, max(multiple, longest * 3 // 4) - 1, -multiple):
        long = max(multiple, round(short * (aspect if flat else 1 / aspect) / multiple) * multiple)
        off = abs(math.log(long / short) - abs(math.log(aspect)))
        found.append((off > 1 / 16, off if off > 1 / 16 else 0.0, -short, (short, long) if flat else (long, short)))
    return "x".join(map(str, min(found)[-1]))


def begun(settings: Dense) -> tuple[Encoder, Preprocess] | None:
    """The encoder to go on from, where there is one."""
    if settings.run is not None and settings.encoder is not None:
        raise BadInput(f"--encoder {settings.encoder} is for training from scratch: leave it out, or {settings.run}")
    return load(settings.run) if settings.run is not None else None


def encoder_for(
    settings: Dense,
    value: dict[str, Any],
    began: tuple[Encoder, Preprocess] | None,
    stored: dict[str, Any] | None,
    source: Source,
) -> tuple[Encoder, Preprocess]:
    """The encoder, from settings.seed where it is new, and what is done to every image; as `stored` says for a run that is gone
    on with."""
    size = parse_size(value["image_size"])
    if began is not None:
        preprocess = began[1]
    elif stored and "preprocess" in stored:
        preprocess = Preprocess.from_dict(stored["preprocess"])
    else:
        preprocess = measured(source, settings, value, size, None)
    torch.manual_seed(settings.seed)
    if began is None:
        options = {} if "/" not in value["encoder"] else {"positions": "sincos", "pool": "mean"}
        encoder = models.build(
            value["encoder"], image_size=size, channels=value["channels"], drop_path=value["drop_path"], **options
        )
    else:
        encoder = models.adapted(began[0], size, value["drop_path"])
    return encoder, preprocess


def prepared(
    settings: Dense,
    value: dict[str, Any],
    began: tuple[Encoder, Preprocess] | None,
    stored: dict[str, Any] | None,
    source: Source,
) -> tuple[Pyramid, Preprocess]:
    """The pyramid on the encoder, and what is done to every image."""
    encoder, preprocess = encoder_for(settings, value, began, stored, source)
    return Pyramid(encoder, value["pyramid"], value["map_channels"], value["window"] or None), preprocess


def say(remarks: tuple[tuple[str, str], ...], name: str, most: int = 10) -> None:
    """What was left out of annotations, a line each."""
    for path, reason in remarks[:most]:
        warn(f"[yellow]annotation[/] {path}: {reason}")
    if len(remarks) > most:
        warn(f"[yellow]…[/] and {len(remarks) - most:,} more remarks on {name}; the report has them")
