"""The settings a collection asks for, each with its reason. `unmask inspect` prints them, `unmask pretrain` takes them."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from unmask.data.survey import Survey, channels_for
from unmask.errors import BadInput


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


def choose(survey: Survey, asked: dict[str, Any]) -> dict[str, Choice]:
    """Fill in every setting that was not asked for (None in `asked`) by rule from the survey.

    Raises BadInput for mixed channel counts and for images smaller than a patch.
    """
    chosen: dict[str, Choice] = {}

    def settle(name: str, value: Any, reason: str) -> Any:
        given = asked.get(name)
        chosen[name] = Choice(value, reason) if given is None else Choice(given, "as asked")
        return chosen[name].value

    if asked.get("channels") is None and survey.grey:
        settle("channels", 1, "every picture is grey, whatever its file says")
    elif asked.get("channels") is None:
        channels = channels_for(survey)
        settle(
            "channels",
            channels,
            f"the pictures have {channels}" if len(survey.channels) == 1 else "grey and colour mixed: grey is repeated",
        )
    else:
        settle("channels", None, "")

    height, width = survey.sizes["height"][1], survey.sizes["width"][1]
    share = survey.content_share
    trim = settle("trim", share < 0.6, f"the content fills {share:.0%} of a picture, the rest is its border's colour")
    low, _, high = survey.aspect
    uneven = high / low > 1.8 and survey.blank_share > 0.3
    why = f"aspects run from {low:.2f} to {high:.2f} " + (
        "on a plain ground" if uneven else "or there is no plain ground to add"
    )
    settle("pad", uneven, why)

    short = min(height, width) * (share**0.5 if trim else 1.0)
    steps = ((180, 224), (112, 128), (80, 96), (56, 64))
    side = next((size for least, size in steps if short >= least), max(8, round(short / 4) * 4))
    size = parse_size(str(settle("image_size", f"{side}", f"the pictures are {height} x {width} pixels (median)")))
    side = min(size)
    patch = 16 if side >= 112 else 8 if side >= 56 else 4 if side >= 24 else 2
    patch = next(p for p in range(patch, 0, -1) if size[0] % p == 0 and size[1] % p == 0)
    n = survey.count
    name = "tiny" if n < 20_000 else "small" if n < 200_000 else "base"
    reason = f"{n:,} images; patches of {patch} cut {size[0]} x {size[1]} pixels into {size[0] // patch} x {size[1] // patch}"
    encoder = str(settle("encoder", f"vit-{name}/{patch}", reason))
    patch = int(encoder.rpartition("/")[2]) if encoder.rpartition("/")[2].isdigit() else patch
    path, least_height, least_width = survey.smallest
    if min(least_height, least_width) < min(patch, side):
        raise BadInput(
            f"{path} is {least_height}x{least_width} pixels, smaller than one {patch}-pixel patch: "
            "remove it, or choose an --encoder with smaller patches"
        )

    patches = size[0] * size[1] // patch**2
    fits = 2 ** int(math.log2(max(16, 32768 / patches)))
    by_count = 2 ** int(math.log2(max(16, n / 32)))
    batch = int(
        str(settle("batch_size", min(256, fits, by_count, n), f"{n:,} images of {patches} patches, at most 256"))
    )  # type: ignore[arg-type]
    if batch > n:
        raise BadInput(f"--batch-size {batch} is more than the {n} images there are: use at most {n}")
    base = 1.5e-4 * math.sqrt(4096 / batch)
    settle(
        "base_lr",
        float(f"{base:.3g}"),
        f"the paper's 1.5e-4 at its batch of 4096, times sqrt(4096 / {batch}): Adam's steps shrink with the root of the batch",
    )
    base = float(str(chosen["base_lr"].value))
    chosen["lr"] = Choice(
        base * batch / 256, f"base_lr x batch / 256 = {base:g} x {batch} / 256 (the paper's linear scaling)"
    )
    chosen["usual_lr"] = Choice(1.5e-4 * math.sqrt(4096 / batch) * batch / 256, "")

    per_epoch = n // batch
    if asked.get("steps") is not None:
        total = int(str(asked["steps"]))
        chosen["steps"] = Choice(total, f"as asked: {total / per_epoch:.1f} epochs")
    else:
        epochs = float(str(settle("epochs", 800, "the paper's")))
        total = max(1, round(epochs * per_epoch))
        chosen["steps"] = Choice(total, f"{epochs:g} epochs x {per_epoch:,} batches of {batch}")
    warmup = float(str(settle("warmup", 0.05, "the paper's 40 epochs of 800")))
    chosen["warmup_steps"] = Choice(round(warmup * total), f"{warmup:g} of all steps")
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()  # type: ignore[attr-defined]
    settle("workers", min(8, max(1, (cores or 1) // 2)), f"half of {cores} cores")
    return chosen
