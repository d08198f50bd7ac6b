"""Learning from labels: from scratch, fine-tuning of all, some or none of the blocks, each with its paper's recipe.

    unmask finetune RUN --data labelled/ --out runs/b
    unmask finetune --encoder cct-7/3x1 --data labelled/ --out runs/c

Recipes, by what is trained:
- an encoder that was trained before: He et al. 2022 ("Masked Autoencoders Are Scalable Vision Learners"), table 9 and
  FINETUNE.md, for all of its blocks or, partial fine-tuning, the last ones (section 4.4); MAE's linear probe (appendix A.1)
  for none of them;
- a compact transformer from scratch: Hassani et al. 2021 ("Escaping the Big Data Paradigm with Compact Transformers"), the
  300 epochs of its code on CIFAR-10: 96.53 percent published for CCT-7/3x1;
- any other ViT from scratch: He et al. 2022, table 11;
- ResNets: He et al. 2016 from scratch; Chen et al. 2020 (SimCLR), appendix B.5, after pre-training.

Deviations: RandAugment resamples bilinearly (timm: bilinear or bicubic by a coin); erasing, mixup and CutMix come from the
step's random numbers, not timm's; a collection smaller than ImageNet gets the rate and length that the run explains;
attention dropout of the compact transformers is 0.1 throughout.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View
from unmask.data.loader import Batch
from unmask.data.mix import draw_mix, erase, soft
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, momentum_copy
from unmask.models import Encoder
from unmask.models.classifier import Classifier
from unmask.models.compact import CCT, NAME
from unmask.models.vit import ViT
from unmask.training.engine import Clock


@dataclass(frozen=True)
class Settings:
    """What learning from labels adds to the settings of training. What is not given is the recipe's."""

    blocks: float | None = None
    """How many of the last blocks learn, the rest staying as it is: 0 a linear layer alone, 0.5 the MLP of the last block, 1, 2,
    … Default: everything learns."""
    pool: Literal["class", "mean", "class+mean", "mean-then-norm", "sequence"] | None = None
    """What a ViT's vector is: its class token, the mean of its normalised patches, both, the norm of the mean (as MAE
    fine-tunes), or a learnt weighted mean (as CVT and CCT). Default: the class token where the encoder was trained by that,
    else as its paper."""
    augment: Literal["rand", "auto", "none"] | None = None
    """RandAugment (magnitude 9, deviation 0.5, two operations), AutoAugment's policy for CIFAR-10, or neither."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the image in a random crop."""
    shift: int = 0
    """Shift images by up to so many pixels each way, black beyond their border."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""
    mixup: float | None = None
    """Strength of mixup, 0 for none: two images are averaged, their labels in the same shares."""
    cutmix: float | None = None
    """Strength of CutMix, 0 for none: a box of one image is put into another. With mixup each is taken half of the time."""
    mix_until: float | None = None
    """Share of the run after which nothing is mixed any more."""
    erasing: float | None = None
    """Probability that a rectangle of an image becomes noise."""
    smoothing: float | None = None
    """Share of each label that is spread over all classes."""
    layer_decay: float | None = None
    """Each layer learns this many times as fast as the one after it."""
    average: float = 0.0
    """Keep an average of the weights, of which each step replaces 1 - this much (EMA), and judge that; 0 for none. 0.9999 was
    meant for 100,000 steps."""
    class_weights: bool = False
    """Count rare classes as much as common ones: each image by one over how common its class is."""


@dataclass(frozen=True)
class Recipe:
    """How one kind of encoder learns from labels."""

    paper: Paper
    settings: Settings
    source: str
    """Where it stands."""


TUNED = Settings(
    augment="rand",
    crop_scale=(0.08, 1.0),
    mixup=0.8,
    cutmix=1.0,
    mix_until=1.0,
    erasing=0.25,
    smoothing=0.1,
    layer_decay=0.75,
)
PLAIN = Settings(
    augment="none",
    crop_scale=(0.08, 1.0),
    mixup=0.0,
    cutmix=0.0,
    mix_until=1.0,
    erasing=0.0,
    smoothing=0.0,
    layer_decay=1.0,
)
MAE_TABLE = "He et al. 2022, table 9"
RECIPES = {
    "tuned base": Recipe(
        Paper("vit-base/16", 1024, 5e-4, 100, 5, 0.05, min_lr=1e-6, updates=10_000, most=10, drop_path=0.1),
        replace(TUNED, layer_decay=0.65),
        f"{MAE_TABLE}, and FINETUNE.md for ViT-B",
    ),
    "tuned large": Recipe(
        Paper("vit-large/16", 1024, 1e-3, 50, 5, 0.05, min_lr=1e-6, updates=10_000, most=10, drop_path=0.2),
        TUNED,
        f"{MAE_TABLE}, and FINETUNE.md for ViT-L",
    ),
    "tuned huge": Recipe(
        Paper("vit-huge/14", 1024, 1e-3, 50, 5, 0.05, min_lr=1e-6, updates=10_000, most=10, drop_path=0.3),
        TUNED,
        f"{MAE_TABLE}, and FINETUNE.md for ViT-H",
    ),
    "tuned resnet": Recipe(
        Paper("resnet50", 4096, 0.05, 30, 0, 0.0, optimiser="sgd", scaling="linear", small_batch=128),
        PLAIN,
        "Chen et al. 2020 (SimCLR), appendix B.5",
    ),
    "linear": Recipe(
        Paper(
            "vit-base/16", 16384, 0.1, 90, 10, 0.0, optimiser="lars", scaling="linear", updates=450_000, small_batch=256
        ),
        PLAIN,
        "MAE's linear probe, He et al. 2022, table 10",
    ),
    "compact": Recipe(
        Paper(
            "cct-7/3x1",
            128,
            1.1e-3,
            300,
            10,
            0.06,
            min_lr=1e-5,
            drop_path=0.1,
            updates=30_000,
            most=10,
            small_batch=128,
        ),
        replace(TUNED, crop_scale=(0.8, 1.0), mix_until=175 / 300, erasing=0.0, layer_decay=1.0),
        "Hassani et al. 2021, their code's 300 epochs on CIFAR-10",
    ),
    "scratch": Recipe(
        Paper("vit-base/16", 4096, 1e-4, 300, 20, 0.3, betas=(0.9, 0.95), drop_path=0.1),
        replace(TUNED, erasing=0.0, layer_decay=1.0),
        "from scratch, He et al. 2022, table 11",
    ),
    "resnet": Recipe(
        Paper(
            "resnet50",
            256,
            0.1,
            90,
            0,
            1e-4,
            optimiser="sgd",
            scaling="linear",
            milestones=(1 / 3, 2 / 3),
            small_batch=128,
        ),
        PLAIN,
        "He et al. 2016, section 3.4",
    ),
}
"""By what is trained. Rates are for batches of 256, as everywhere. How rates grow on runs shorter than `updates` was set by hand,
on a processor: of compact transformers 3 to 6 times the rate was best of 1,600 steps on CIFAR-10, and 10 times of 300 on the
digits; of a ViT-Ti/8 that MAE had trained, on 20,000 images of CIFAR-10, 500 steps of 64, four times the rate was right for 47.5
percent, once for 44.1; of a linear layer on it, 150 steps of 256, fifty times for 40.5 and once for 14.3: LARS changes a matrix
by a fixed share of its size a step, and the paper makes 450,000 steps of 256 images, if fewer and larger ones."""


def recipe_for(encoder: Encoder | str, blocks: float | None = None, trained: bool = True) -> Recipe:
    """The recipe of an encoder, or of the name of one, which then was not trained before."""
    if blocks == 0:
        return RECIPES["linear"]
    if isinstance(encoder, str):
        convolutions = re.match(r"(seres|res|wide_res|regnet|densenet|vgg|efficientnet|mobilenet)", encoder)
        return RECIPES["compact" if NAME.fullmatch(encoder) else "resnet" if convolutions else "scratch"]
    if not isinstance(encoder, ViT | CCT):
        return RECIPES["tuned resnet" if trained else "resnet"]
    if not trained:
        return RECIPES["compact" if encoder.config.get("compact", True) else "scratch"]
    depth = encoder.config["depth"]
    return RECIPES["tuned huge" if depth >= 32 else "tuned large" if depth >= 24 else "tuned base"]


def pool_for(encoder: dict[str, Any], blocks: float | None) -> str | None:
    """How a ViT of this config pools when it learns from labels, unless told: None where there is nothing to choose."""
    if "pool" not in encoder or encoder["pool"] in ("class", "sequence") or blocks == 0:
        return encoder.get("pool")
    return "sequence" if encoder["compact"] and not encoder["class_token"] else "mean-then-norm"


def learning(encoder: Encoder, blocks: float | None) -> list[nn.Module]:
    """The parts of an encoder that learn, all if `blocks` is None. BadInput for blocks that it has not got."""
    if blocks is None:
        return [encoder]
    if blocks == 0:
        return []
    if not isinstance(encoder, ViT | CCT):
        raise BadInput(f"--blocks {blocks:g}: this encoder has no blocks to choose from; use 0, or leave it out")
    depth = len(encoder.blocks)
    if blocks != 0.5 and (blocks != int(blocks) or not 0 < blocks <= depth):
        raise BadInput(f"--blocks is {blocks:g}: give 0, 0.5 or a whole number up to {depth}, how many there are")
    last: Any = encoder.blocks[depth - 1]
    parts = [last.norm2, last.mlp] if blocks == 0.5 else list(encoder.blocks)[depth - int(blocks) :]
    return [*parts, encoder.norm, *([] if encoder.pool is None else [encoder.pool])]


class Supervised(Method):
    """Cross-entropy with soft targets; of several labels an image, a cross-entropy for the yes or no of each.

    frequencies: how often each class occurs in the training set, (K,), a count, or where an image may have several labels a
    share of the images. "uninformed" is the loss of a model that knows these, and of each batch's targets no more.
    """

    Settings = Settings
    weights: Tensor | None
    """What an image of each class counts, (K,), 1 on average over the images."""
    prior: Tensor
    """Logits (K,) of that model."""

    def __init__(self, classifier: Classifier, settings: Settings, frequencies: Tensor):
        super().__init__()
        if None in (settings.mixup, settings.cutmix, settings.erasing, settings.smoothing, settings.mix_until):
            raise ValueError("settings are to be filled in from a recipe before")
        if settings.layer_decay not in (None, 1) and not isinstance(classifier.encoder, ViT | CCT):
            raise BadInput(
                "--layer-decay is for transformers, whose blocks can be told apart: leave it out for this encoder"
            )
        self.classifier, self.settings = classifier, settings
        size = classifier.encoder.image_size
        policy = None if settings.augment == "none" else settings.augment
        crop = settings.crop_scale
        self.views = (View(size, crop_scale=crop, flip=settings.flip, policy=policy, shift=settings.shift),)
        classifier.encoder.requires_grad_(False)
        for part in learning(classifier.encoder, settings.blocks):
            part.requires_grad_(True)
        shares = frequencies.double() / (1 if classifier.several else frequencies.sum())
        weights = None
        if settings.class_weights:
            weights = 1 / shares.clamp(min=1e-12)
            weights = (weights / (weights * shares).sum()).float()
        self.register_buffer("weights", weights)
        smoothing = settings.smoothing or 0.0
        expected = torch.lerp(
            shares, torch.full_like(shares, 0.5 if classifier.several else 1 / len(shares)), smoothing
        )
        expected = expected.clamp(1e-6, 1 - 1e-6)
        self.register_buffer(
            "prior", (expected.logit() if classifier.several else self.weighted(expected).log()).float()
        )
        self.average = momentum_copy(classifier) if settings.average else None

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        return self.best.encoder

    @property
    def best(self) -> Classifier:
        """What is kept: the average of the weights where there is one."""
        kept: Any = self.classifier if self.average is None else self.average
        return kept

    def weighted(self, shares: Tensor) -> Tensor:
        """Shares of classes (K,) as the weights count them."""
        return shares if self.weights is None else shares * self.weights

    def train(self, mode: bool = True) -> "Supervised":
        """What does not learn is not in training either: nothing is dropped there, and no statistics move."""
        super().train(mode)
        for module in (*fixed(self.classifier), *(() if self.average is None else (self.average,))):
            module.eval()
        return self

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,), own = batch.views, self.settings
        assert batch.targets is not None
        targets = soft(batch.targets, len(self.prior), own.smoothing or 0.0)
        if own.erasing:
            images = erase(images, own.erasing)
        if clock.progress < (own.mix_until or 0.0):
            mix = draw_mix((images.shape[2], images.shape[3]), own.mixup or 0.0, own.cutmix or 0.0)
            images, targets = mix.images(images), mix.targets(targets)
        logits = self.classifier(images)
        values = {"loss": self.loss(logits, targets), "uninformed": self.loss(self.prior.expand_as(targets), targets)}
        if not self.classifier.several:
            values["accuracy"] = (logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
        return values

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch for logits (B, K) and soft targets (B, K)."""
        if self.classifier.several:
            return F.binary_cross_entropy_with_logits(logits.float(), targets, self.weights)
        return F.cross_entropy(logits.float(), targets, self.weights)

    def after_step(self, clock: Clock) -> None:
        if self.average is not None:
            follow(self.average, self.classifier, self.settings.average)
            for kept, seen in zip(self.average.buffers(), self.classifier.buffers(), strict=True):
                kept.copy_(seen)  # statistics of batch norms are averages already


def fixed(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a module that have parameters, none of which learns."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        yield module
    else:
        for child in module.children():
            yield from fixed(child)
