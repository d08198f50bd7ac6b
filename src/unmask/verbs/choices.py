"""The settings a collection asks for, each with its reason. `unmask inspect` prints them, `unmask pretrain` takes them."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from unmask.data.loader import KEPT
from unmask.data.survey import Survey, channels_for
from unmask.errors import BadInput
from unmask.methods.method import Paper
from unmask.models import compact, dvae
from unmask.models.backbones import SMALL


@dataclass(frozen=True)
class Choice:
    value: Any
    reason: str


def parse_size(text: str) -> tuple[int, int]:
    """ "224" or "160x224" (height x width, pixels) to (height, width)."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text))
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise BadInput(f"--image-size {text}: give pixels, as in 224, or HEIGHTxWIDTH, as in 160x224")
    return int(match[1]), int(match[2] or match[1])


class Choices(dict[str, Choice]):
    """Settings by name. One that was asked for keeps its value, any other takes what the rule says."""

    def __init__(self, asked: dict[str, Any]):
        super().__init__()
        self.asked = asked

    def settle(self, name: str, value: Any, reason: str) -> Any:
        given = self.asked.get(name)
        self[name] = Choice(value, reason) if given is None else Choice(given, "as asked")
        return self[name].value


def paper_for(papers: dict[str, Paper], encoder: str) -> Paper:
    """The recipe for an encoder: "resnet" for convolutions with batch norms, "compact" for the transformers of that paper, "vit"
    for all others, where there is one of that kind. Whether the encoder can be trained at all, the method says when it is
    built."""
    convolutions = re.match(r"(seres|res|wide_res|regnet|densenet|vgg|efficientnet|mobilenet)", encoder)
    kind = "resnet" if convolutions else "compact" if compact.NAME.fullmatch(encoder) else "vit"
    return papers.get(kind, papers.get("vit", next(iter(papers.values()))))


def choose(survey: Survey, asked: dict[str, Any], device: str, papers: dict[str, Paper]) -> dict[str, Choice]:
    """Every setting that depends on the data: by rule from the survey, where `asked` has None.

    papers: recipes by kind of encoder, the first of the kind that is trained unless another encoder is asked for. Raises
    BadInput for mixed channel counts and for images smaller than a patch.
    """
    choices, kind = Choices(asked), next(iter(papers))
    size = choose_pixels(choices, survey, kind)
    patch = choose_encoder(choices, survey, size, kind, papers[kind].encoder)
    paper = paper_for(papers, choices["encoder"].value)
    choose_schedule(choices, paper, survey.count, size[0] * size[1] // patch**2, device)
    choose_optimiser(choices, paper)
    choose_reading(choices, survey, device)
    return dict(choices)


def choose_pixels(choices: Choices, survey: Survey, kind: str) -> tuple[int, int]:
    """Channels, crop to content, padding and size."""
    if choices.asked.get("channels") is not None:
        choices.settle("channels", None, "")
    elif (channels := channels_for(survey)) == 3 and survey.grey:
        choices.settle("channels", 1, "every picture is grey, whatever its file says")
    else:
        mixed = len(survey.channels) > 1
        choices.settle(
            "channels", channels, "grey and colour mixed: grey is repeated" if mixed else "as the pictures have"
        )

    share = survey.content_share
    ground = "the rest is ground of one colour" if share < 0.6 else "so nothing to crop away"
    trim = choices.settle("trim", share < 0.6, f"the content fills {share:.0%} of a picture (median), {ground}")
    low, _, high = survey.aspect
    uneven = survey.blank_share > 0.3 and (trim or high / low > 1.8)
    shapes = "what is cropped to is of every shape" if trim else f"width/height runs from {low:.2f} to {high:.2f}"
    ground = "on a plain ground that can be continued" if uneven else "longer sides are cropped"
    choices.settle("pad", uneven, f"{shapes}: {ground}")

    height, width = survey.sizes["height"][1], survey.sizes["width"][1]
    short = min(height, width) * (share**0.5 if trim else 1.0)
    steps = ((180, 224), (112, 128), (80, 96), (56, 64))
    side = next((size for least, size in steps if short >= least), max(8, round(short / 4) * 4))
    what = f"the content is about {short:.0f} pixels wide" if trim else f"the pictures are {height} x {width} pixels"
    what += " (median)"
    if kind == "dvae" and side > SMALL:
        side, what = side // 2, f"{what}; a tokenizer sees half of {side}, as BEiT's sees 112 pixels of 224"
    return parse_size(str(choices.settle("image_size", str(side), what)))


def choose_encoder(choices: Choices, survey: Survey, size: tuple[int, int], kind: str, theirs: str) -> int:
    """The encoder, by the number of images and their size; returns its patch size in pixels.

    A model of timm counts like a ViT with patches of 16 pixels, or of 4 on images of at most
    64, where ResNets take their CIFAR form. It keeps as much for the backward pass within a factor of about two: resnet50
    86 MB an image of 224 pixels (vit-small/16 70 MB, vit-base/16 140 MB) and 102 MB one of 64 (vit-small/4 95 MB).
    """
    side, n = min(size), survey.count
    wanted = 16 if side >= 112 and kind != "dvae" else 8 if side >= 56 else 4 if side >= 24 else 2
    sides = (8, 4, 2, 1) if kind == "dvae" else range(wanted, 0, -1)
    patch = next(p for p in sides if p <= wanted and size[0] % p == 0 and size[1] % p == 0)
    name = "tiny" if n < 20_000 else "small" if n < 200_000 else "base"
    cut = f"patches of {patch} cut {size[0]} x {size[1]} pixels into {size[0] // patch} x {size[1] // patch}"
    if kind in ("vit", "dvae"):
        cut = cut.replace("patches", "tokens for patches") if kind == "dvae" else cut
        encoder = choices.settle("encoder", f"{kind}-{name}/{patch}", f"{n:,} images; the paper: {theirs}; {cut}")
    elif kind == "compact":
        kernel = "3x2" if side <= SMALL else "7x2"
        depth = 2 if n < 2_000 else 7 if side <= SMALL or n < 200_000 else 14
        why = f"{n:,} images of {size[0]} x {size[1]} pixels; convolutions make tokens, which few images are enough for"
        encoder = choices.settle("encoder", f"cct-{depth}/{kernel}", why)
    else:
        encoder = choices.settle(
            "encoder", "resnet18" if n < 200_000 else "resnet50", f"{n:,} images; the paper: {theirs}"
        )
    if kind == "dvae" and encoder.split("/")[0] not in dvae.SIZES:
        raise BadInput(
            f"--encoder {encoder}: a tokenizer is one of {', '.join(dvae.SIZES)}, then /8, or another power of 2"
        )
    if "/" not in encoder:
        return 16 if side > SMALL else 4
    if (after := encoder.rpartition("/")[2]).isdigit() and int(after):
        patch = int(after)
    path, height, width = survey.smallest
    if min(height, width) < min(patch, side):
        raise BadInput(
            f"{path} is {height}x{width} pixels, smaller than one {patch}-pixel patch: "
            "remove it, or choose an --encoder with smaller patches"
        )
    return patch


def choose_schedule(choices: Choices, paper: Paper, n: int, patches: int, device: str) -> None:
    """Batch, rate and length, for n images of so many patches.

    A CPU computes small batches nearly as fast as large ones, and for the same images they make more steps.
    """
    most, why = (
        (paper.small_batch, "a CPU gains nothing from more") if device == "cpu" else (256, "a GPU wants full batches")
    )
    by_memory = 2 ** int(math.log2(max(16, 65536 / max(1, patches))))
    by_count = 2 ** int(math.log2(max(16, n / 32)))
    like = "" if "encoder" not in choices or "/" in choices["encoder"].value else "that cost as much as ones "
    reason = f"{n:,} images {like}of {patches} patches; at most {most}: {why}"
    batch = choices.settle("batch_size", min(most, by_memory, by_count, n), reason)
    if batch > n:
        raise BadInput(f"--batch-size {batch} is more than the {n} images there are: use at most {n}")
    per_epoch = n // batch
    if (steps := choices.asked.get("steps")) is not None:
        choices["steps"] = Choice(steps, f"as asked: {steps / per_epoch:.1f} epochs")
    else:
        epochs = choices.settle("epochs", paper.epochs, "the paper's")
        steps = max(1, round(epochs * per_epoch))
        choices["steps"] = Choice(steps, f"{epochs:g} epochs x {per_epoch:,} batches of {batch}")

    # Adam's steps are of unit size whatever the batch, and their noise falls with its root: Malladi et al. 2022, "On the
    # SDEs and Scaling Rules for Adaptive Gradient Algorithms"
    if paper.scaling == "root":
        usual = float(f"{paper.base_lr * math.sqrt(paper.batch_size / batch):.3g}")
        rule = f"the paper's {paper.base_lr:g} at its batch of {paper.batch_size}, x sqrt({paper.batch_size} / {batch})"
        rule += ": the rate goes with the root of the batch"
    else:
        usual, rule = paper.base_lr, "the paper's: the rate goes with the batch"
    if paper.updates is not None and steps < paper.updates:
        faster = min(paper.most, math.sqrt(paper.updates / steps))
        usual = float(f"{usual * faster:.3g}")
        rule += f"; x {faster:.3g} for so few steps: the root of {paper.updates:,} / {steps:,}, at most {paper.most:g}"
    base = choices.settle("base_lr", usual, rule)
    choices["lr"] = Choice(base * batch / 256, f"base_lr x batch / 256 = {base:g} x {batch} / 256 (linear scaling)")
    choices["usual_lr"] = Choice(usual * batch / 256, "")

    usual = paper.warmup / paper.epochs
    warmup = choices.settle(
        "warmup", usual, f"share of all steps; the paper's {paper.warmup:g} epochs of {paper.epochs:g}"
    )
    choices["warmup_steps"] = Choice(round(warmup * steps), f"{warmup:.3g} x {steps:,}")


def choose_optimiser(choices: Choices, paper: Paper) -> None:
    """The optimiser and what belongs to it: the paper's, said where it is not the commonest."""
    choices.settle("optimiser", paper.optimiser, "the paper's")
    choices.settle("min_lr", paper.min_lr, "the paper's" if paper.min_lr else "")
    asked = choices.asked.get("weight_decay")
    decay = choices.settle("weight_decay", paper.weight_decay, "the paper's")
    end = paper.weight_decay_end if asked is None else None
    choices.settle("weight_decay_end", end, f"the paper's: from {decay:g} along a cosine" if end is not None else "")
    choices.settle("clip", paper.clip, "the paper's" if paper.clip is not None else "")
    choices.settle("drop_path", paper.drop_path, "the paper's" if paper.drop_path else "")


def choose_reading(choices: Choices, survey: Survey, device: str) -> None:
    """Whether all images are kept in memory, and how many processes read them.

    A GPU crops whole batches of what it holds; a CPU crops 64 small images in 3 ms, faster one by one than as a batch.
    """
    (low, height, high), (left, width, right) = survey.sizes["height"], survey.sizes["width"]
    size = height * width * max(survey.channels) * (1 if set(survey.kinds) == {"uint8"} else 4)
    total, cores = survey.count * size, os.cpu_count() or 1
    taken = f"{survey.count:,} images take about {total / 1e6:,.0f} MB"
    alike = low == high and left == right and not choices["trim"].value and not choices["pad"].value
    if device == "cuda":
        room = torch.cuda.mem_get_info()[0] // 4
        fits = alike and total <= room
        why = f"a quarter of the GPU's free memory is {room / 1e6:,.0f} MB" if alike else "images are of several sizes"
        held = choices.settle("hold", fits, f"{taken}; {why}")
    else:
        held = choices.settle("hold", False, "")
    few = min(8, max(1, cores // 2))
    if device == "cpu" and not held and total <= KEPT:
        choices.settle("workers", 0, f"{taken}: read once and kept")
    else:
        choices.settle("workers", few, f"half of {cores} cores")
