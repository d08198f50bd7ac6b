"""How much of a classifier's accuracy is left where its images are corrupted, or changed on purpose.

Corruptions are made of the image as the encoder sees it, cropped and resized but not yet normalised, as the paper's code does
(Hendrycks & Dietterich 2019). Its mean corruption error is relative to AlexNet on ImageNet; here accuracies stand beside the
accuracy on the same images left as they are, and their mean over all corruptions and severities is told as a share of that.

Attacks know the model and its gradients, and change each value by at most epsilon (an L-infinity ball), a share of the scale
from black to white.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View, sample_seeds, uniform
from unmask.data.decode import Preprocess
from unmask.data.loader import Key, Renderer, in_workers
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.evaluate import metrics
from unmask.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from unmask.evaluate.splits import group_codes
from unmask.models.classifier import Classifier
from unmask.screen import bar
from unmask.training.engine import autocast

EPSILONS = tuple(level / 255 for level in (0.5, 1, 2, 4, 8))
STEPS = 10
ATTACKED = 32
"""Images that are attacked at once."""


# Attacks


def scale(preprocess: Preprocess, like: Tensor) -> tuple[Tensor, Tensor]:
    """Black and white of each channel, not normalised: (C, 1, 1) each."""
    low, high = preprocess.low or (0.0,) * preprocess.channels, preprocess.high or (1.0,) * preprocess.channels
    return like.new_tensor(low)[:, None, None], like.new_tensor(high)[:, None, None]


def ball(images: Tensor, epsilon: float, preprocess: Preprocess) -> tuple[Tensor, Tensor, Tensor]:
    """How far epsilon is in each channel of normalised images, (C, 1, 1), and the least and the most that it may make of
    each value, (B, C, H, W). What is darker than black or brighter than white already may stay, but goes no further."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    black, white = ((end - mean) / std for end in scale(preprocess, images))
    reach = epsilon * (white - black)
    return (
        reach,
        torch.maximum(images - reach, torch.minimum(images, black)),
        torch.minimum(images + reach, torch.maximum(images, white)),
    )


def ascent(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The sign of the gradient of the cross-entropy by the images (B, C, H, W); the weights get no gradient."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(images).float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return gradient.sign()


def fgsm(model: nn.Module, images: Tensor, targets: Tensor, epsilon: float, preprocess: Preprocess) -> Tensor:
    """The fast gradient sign method: images + epsilon * sign of the loss's gradient, cut off at black and white (Goodfellow et
    al. 2015, section 4).

    images: (B, C, H, W) float32, normalised by `preprocess`; targets: (B,) int64, the true classes; epsilon: a share of the
    scale from black to white, 1/255 is one level of a byte. Returns attacked images, normalised. The model stays in its mode.
    """
    reach, least, most = ball(images, epsilon, preprocess)
    return (images + reach * ascent(model, images, targets)).clamp(least, most)


def pgd(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    epsilon: float,
    preprocess: Preprocess,
    *,
    seeds: Tensor,
    step: float | None = None,
    steps: int = STEPS,
) -> Tensor:
    """Projected gradient descent: from a random point of the ball, steps by the sign of the gradient, each cut off at the ball
    and at black and white (Madry et al. 2018, section 2.1).

    As `fgsm`; seeds: (B,) int64, of the random points, one an image; step: epsilon / 4 if not given, Madry's ratio for CIFAR-10
    (2 of 8 levels), so that ten steps go two and a half times as far as the ball reaches.
    """
    reach, least, most = ball(images, epsilon, preprocess)
    stride = reach * (0.25 if step is None else step / epsilon)
    start = uniform(seeds.to(images.device), images[0].numel()).view(images.shape).to(images.dtype)
    attacked = (images + reach * (2 * start - 1)).clamp(least, most)
    for _ in range(steps):
        attacked = (attacked + stride * ascent(model, attacked, targets)).clamp(least, most)
    return attacked


@torch.no_grad()
def attack(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    epsilons: Sequence[float],
    preprocess: Preprocess,
    seeds: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the model says of images (B, C, H, W) under `fgsm` and under `pgd` at each of the rising epsilons: (B, E) int64
    each. What PGD has fooled once stays fooled, as the ball of a larger epsilon holds that of a smaller."""
    by_fgsm = [model(fgsm(model, images, targets, epsilon, preprocess)).argmax(dim=1) for epsilon in epsilons]
    said, by_pgd = model(images).argmax(dim=1), []
    for epsilon in epsilons:
        still = (said == targets).nonzero().squeeze(1)
        if len(still):
            found = pgd(model, images[still], targets[still], epsilon, preprocess, seeds=seeds[still])
            said = said.index_copy(0, still, model(found).argmax(dim=1))
        by_pgd.append(said)
    return torch.stack(by_fgsm, dim=1), torch.stack(by_pgd, dim=1)


# Corruptions


@dataclass
class Corruptor:
    """The part that runs in workers: the number of an image in, the image and all its corruptions out."""

    renderer: Renderer
    wanted: tuple[tuple[str, int], ...]
    """Corruption and severity of each."""
    seed: int

    def __len__(self) -> int:
        return len(self.renderer)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor] | tuple[str, str]:
        """The image (C, H, W) and its corruptions (V, C, H, W), same dtype; or the path and the reason why not."""
        views, *_, failures = self.renderer[Key(0, np.array([i]))]
        if failures:
            return failures[0]
        image, number = views[0][0], int(self.renderer.source.rows[i])
        pixels = as_bytes(image, self.renderer.preprocess)
        made = np.stack([corrupt(pixels, *which, seed=self.seed, index=number) for which in self.wanted])
        corrupted = torch.from_numpy(made).permute(0, 3, 1, 2)
        return image, corrupted if image.dtype == torch.uint8 else from_bytes(corrupted, self.renderer.preprocess)


def as_bytes(image: Tensor, preprocess: Preprocess) -> np.ndarray:
    """An image (C, H, W) as (H, W, C) uint8, from black to white where it is of floats."""
    if image.dtype != torch.uint8:
        low, high = scale(preprocess, image)
        image = ((image - low) / (high - low) * 255).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def from_bytes(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Bytes (V, C, H, W) on the scale of the images of floats that they were made of, float32."""
    images = images.float() / 255
    low, high = scale(preprocess, images)
    return images * (high - low) + low


# Both


def _ignore(path: str, reason: str) -> None: ...


@torch.no_grad()
def robustness(
    classifier: Classifier,
    source: Source,
    preprocess: Preprocess,
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    epsilons: Sequence[float] = EPSILONS,
    device: torch.device,
    precision: str,
    workers: int = 0,
    seed: int = 0,
    images: int = 2000,
    unreadable: Callable[[str, str], None] = _ignore,
    title: str | None = None,
) -> dict[str, Any]:
    """Accuracy on the labelled images of a source (at most `images` of them, drawn at random) as they are, under each
    corruption at each severity, and under FGSM and PGD at each epsilon (none: no attacks).

    Returns {"n", "clean", "majority", "severities", "corruptions": {name: [score of each severity]}, "mean": [score of each
    severity, over all corruptions], "all": score over corruptions and severities, "kept": accuracy of "all" as a share of
    that of "clean", "attacks": {"epsilons", "fgsm": [score of each], "pgd": …}}, where each score is what `metrics.score`
    gives. Where the source has groups, intervals are by resampling whole groups; in "mean" and "all" by whole images at least.
    A corruption is drawn by (seed, image, corruption, severity). Attacks are in float32 whatever the precision, as a rounded
    gradient makes a weaker attack. title: what the progress bar says; None for no bar.

    Raises BadInput for a classifier of several labels an image, classes that it does not know, one group alone, unknown
    corruptions, and where no image can be read.
    """
    source = judged_by(classifier, source, images, seed)
    if not corruptions:
        raise BadInput(f"name at least one corruption: {', '.join(CORRUPTIONS)}")
    wanted = tuple((name, severity) for name in corruptions for severity in severities)
    for name, severity in wanted:  # all of them are drawn once before hours go by
        corrupt(np.zeros((2, 2, 1), dtype=np.uint8), name, severity, seed=0, index=0)
    epsilons = sorted(epsilons)

    view = View(classifier.encoder.image_size, crop_scale=None, flip=0)
    renderer = Renderer(source, preprocess, (view,), seed, replace=False, alter=False, room=0)
    known = torch.from_numpy(source.targets())
    numbers = torch.from_numpy(source.rows)
    modes = {module: module.training for module in classifier.modules()}

    read: list[int] = []
    said: list[Tensor] = []  # of each image: as it is, then corrupted, (1 + V,)
    attacked: list[tuple[Tensor, Tensor]] = []
    waiting: list[Tensor] = []

    def attack_waiting() -> None:
        which = torch.tensor(read[len(read) - len(waiting) :])
        seeds = sample_seeds(seed, 0, numbers[which]).to(device)
        batch = torch.stack(waiting)
        found = attack(classifier, batch, known[which].to(device), epsilons, preprocess, seeds)
        attacked.append((found[0].cpu(), found[1].cpu()))
        waiting.clear()

    classifier.to(device).eval()
    try:
        with bar(title, len(source)) as show:
            for i, made in enumerate(
                in_workers(Corruptor(renderer, wanted, seed), range(len(source)), workers, device)
            ):
                show(i + 1)
                if isinstance(made[0], str):
                    unreadable(*made)
                    continue
                batch = preprocess.normalise(torch.cat([made[0][None], made[1]]).to(device, non_blocking=True))
                with autocast(device, precision):
                    said.append(classifier(batch).float().argmax(dim=1).cpu())
                read.append(i)
                if epsilons:
                    waiting.append(batch[0].clone())
                    if len(waiting) == ATTACKED:
                        attack_waiting()
            if waiting:
                attack_waiting()
    finally:
        for module, training in modes.items():
            module.training = training
    if not read:
        raise BadInput(f"{source.name}: none of {len(source)} images can be read")

    source = source.subset(read)
    answers = torch.stack(said).numpy()
    fooled = [np.concatenate(parts) for parts in zip(*attacked, strict=True)] if attacked else []
    return summary(source, list(corruptions), list(severities), epsilons, answers, fooled)


def judged_by(classifier: Classifier, source: Source, images: int, seed: int) -> Source:
    """At most so many images of a source that have a label, in their order, with the classes of the classifier. BadInput
    where it cannot judge them."""
    if classifier.several:
        raise BadInput("this classifier gives an image several labels: robustness is of those that give one")
    targets = source.targets()
    present = [name for i, name in enumerate(source.classes) if (targets == i).any()]
    if new := [name for name in present if name not in classifier.classes]:
        raise BadInput(
            f"{source.name} has classes that the classifier was not taught: {', '.join(new[:5])}; "
            "give images of its classes, or another --label"
        )
    if not present:
        raise BadInput(f"{source.name}: every label is missing; choose another column with --label")
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(targets >= 0))[:images]
    source = dataclasses.replace(source, classes=classifier.classes).subset(np.sort(chosen))
    if len(source) < 2:
        raise BadInput(f"{source.name}: one image with a label only: give at least two")
    if "group" in source.table and group_codes(source.table["group"].to_numpy(), len(source)).max() == 0:
        raise BadInput(f"{source.name}: all images are of one group: an interval over groups needs at least two")
    return source


def summary(
    source: Source,
    corruptions: list[str],
    severities: list[int],
    epsilons: Sequence[float],
    said: np.ndarray,
    fooled: list[np.ndarray],
) -> dict[str, Any]:
    """What `robustness` returns, from answers (N, 1 + V), and those under both attacks, (N, E) each."""
    n, classes, targets = len(source), len(source.classes), source.targets()
    groups = source.table["group"].to_numpy() if "group" in source.table else None

    def score(answers: np.ndarray) -> dict[str, float]:
        """Of answers (N,), or (N, M), where those to one image are no independent evidence."""
        if answers.ndim == 1:
            return metrics.score(answers, targets, classes, groups=groups).to_dict()
        units, known = (np.repeat(x, answers.shape[1]) for x in (np.arange(n) if groups is None else groups, targets))
        return metrics.score(answers.ravel(), known, classes, groups=units).to_dict() | {"n": n}

    clean, corrupted = said[:, 0], said[:, 1:].reshape(n, len(corruptions), len(severities))
    result = {
        "n": n,
        "classes": list(source.classes),
        "clean": score(clean),
        "majority": metrics.majority(targets, targets, classes, groups=groups).to_dict(),
        "severities": severities,
        "corruptions": {
            name: [score(corrupted[:, i, j]) for j in range(len(severities))] for i, name in enumerate(corruptions)
        },
        "mean": [score(corrupted[:, :, j]) for j in range(len(severities))],
        "all": score(corrupted.reshape(n, -1)),
    }
    right = result["clean"]["accuracy"]
    result["kept"] = result["all"]["accuracy"] / right if right else None
    if fooled:
        kinds = zip(("fgsm", "pgd"), fooled, strict=True)
        scores = {kind: [score(answers[:, i]) for i in range(len(epsilons))] for kind, answers in kinds}
        result["attacks"] = {"epsilons": list(epsilons), "steps": STEPS, **scores}
    return result
