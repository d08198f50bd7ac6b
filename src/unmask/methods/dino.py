"""DINO: Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin 2021, "Emerging Properties in Self-Supervised Vision
Transformers".

    unmask pretrain dino --data photos/ --out runs/a

A student sees two large and several small crops of an image, its teacher, a slow average of the student, only the large
ones. Each turns what it sees into probabilities of outputs that mean nothing beforehand, and from every crop the student
is to say what the teacher says of another one: a part must tell of the whole. Two things keep them from agreeing
on nothing. The teacher's outputs are centred, so that no output is everybody's; and sharpened, so that not all are alike.

Published, ImageNet-1k, ViT-S/16 at 224 px (README of facebookresearch/dino; table 2): 100 epochs k-NN 69.3, linear 74.0;
300 epochs with --teacher-temperature 0.07 --no-norm-last-layer 73.3, 76.0; 800 epochs 74.5, 77.0.

Deviations from the reference code (main_dino.py), none of which changes the function learnt:
- the centre is moved once a step by all that the teacher said in it, however many parts the batch was computed in;
- the teacher's temperature rises with each step of its warm-up, not with each epoch.
Deviations that do: positions are resampled with antialiasing for small crops; the ViT begins with Xavier-uniform matrices,
as all of ours; tokens, positions and the learnt scales of the last layer (--no-norm-last-layer) are not decayed; small
images are blurred in proportion to their size (the reference's 2 pixels are meant for 224); and a collection smaller than
ImageNet gets the outputs, the momentum and the rate that are printed with their reasons.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import View, blur_sigma, jittered
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, length_of, momentum_copy
from unmask.models import Encoder
from unmask.models.compact import CCT
from unmask.models.vit import ViT
from unmask.training import distributed
from unmask.training.engine import Clock
from unmask.training.optim import cosine


@dataclass(frozen=True)
class Settings:
    """What DINO adds to the settings of every method. Defaults: main_dino.py, which is the paper's section 3.2."""

    out_dim: int | None = None
    """Outputs K of the head. Default: one for 20 images, a power of 2 between 1,024 and the paper's 65,536."""
    head_width: int = 2048
    """Width of the two hidden layers of the head."""
    bottleneck: int = 256
    """Length of the vectors that the last layer compares with its outputs."""
    norm_last_layer: bool = True
    """Keep the rows of the last layer at length 1. Letting them grow is better but less stable (the paper's ViT-S did)."""
    local_crops: int = 8
    """Small crops of an image, beside the two large ones. With 0 the paper takes --global-scale 0.14 1."""
    local_size: int | None = None
    """Shorter side of small crops in pixels. Default: 96 of 224 of the image's, in whole patches."""
    global_scale: tuple[float, float] | None = None
    """Smallest and largest share of the image in a large crop. Default: 0.4 1 for transformers, 0.14 1 for ResNets; the released
    runs of ViTs have 0.25 1."""
    local_scale: tuple[float, float] | None = None
    """The same of small crops. Default: 0.05 0.4 for transformers (released runs: 0.05 0.25), 0.05 0.14 for ResNets."""
    flip: float = 0.5
    """Probability of flipping a crop from left to right. 0 where left and right matter."""
    jitter: float = 1.0
    """Strength of the changes of brightness, contrast, saturation (0.4, 0.4, 0.2) and hue (0.1). 0 where colour matters."""
    centring: bool = True
    """Subtract the mean of the teacher's outputs. Without it one output takes all images (section 5.3): only to see that."""
    centre_momentum: float = 0.9
    """Share of the old mean that is kept at each step."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax after its warm-up. The released runs have 0.07; above that all outputs become
    alike (section 5.3)."""
    teacher_temperature_start: float = 0.04
    """The same at the start. Lower it if the loss does not fall."""
    temperature_warmup: float = 30.0
    """Epochs from the one to the other."""
    momentum: float | None = None
    """Of the teacher at the start; it goes to 1 along a cosine. Default: the paper's 0.996; for a batch of 256 or less
    that of its authors' advice, 0.9995 on ImageNet, less where an epoch has fewer steps."""
    clip_parameter: float = 3.0
    """Largest norm of the gradient of each single parameter; inf for none."""
    freeze_last: float | None = None
    """Epochs during which the last layer stays as it was drawn. Raise it if the loss does not fall. Default: the paper's 1, and a
    tenth of runs shorter than 10 epochs."""


class Head(nn.Module):
    """Vectors (R, D) to the cosines with K outputs, (R, K), each times its scale (section 3.2, "Network architecture")."""

    def __init__(self, width: int, hidden: int, bottleneck: int, out_dim: int, norm_last_layer: bool):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, out_dim, bias=False)
        self.scale = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.mlp(x).float(), dim=-1)  # (R, bottleneck)
        rows = torch._weight_norm(self.last.weight, self.scale)  # type: ignore[reportPrivateImportUsage]
        return F.linear(x, rows)


class DINO(Method):
    """encoder: any, for its student; `encoder` is the teacher's copy of it, which the paper evaluates."""

    centre: Tensor
    said: Tensor
    parts: Tensor
    SUMMARY = "self-distillation (Caron et al. 2021): a part of an image must tell what a slower self says of the whole"
    Settings = Settings
    ENCODER: ClassVar = {"pool": "class"}
    PAPERS: ClassVar = {
        "vit": Paper(
            "vit-small/16", 1024, 5e-4, 100, 10, weight_decay=0.04, weight_decay_end=0.4, min_lr=1e-6, drop_path=0.1
        ),
        "resnet": Paper(
            "resnet50", 512, 0.03, 100, 10, weight_decay=1e-4, optimiser="sgd", scaling="linear", min_lr=1e-6
        ),
    }
    """Section 3.2; the README's command for ResNet-50 on 8 GPUs with 64 images each."""

    @classmethod
    def suit(
        cls, settings: Settings, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Settings, dict[str, str]]:
        reasons, found = {}, {}
        if settings.out_dim is None:
            found["out_dim"] = min(65536, max(1024, 2 ** round(math.log2(images / 20))))
            reasons["out_dim"] = (
                f"{images:,} images, of which the paper has 20 for each output; from 1,024 to its 65,536"
            )
        if settings.momentum is None:
            found["momentum"], reasons["momentum"] = momentum_for(images, batch_size)
        if settings.freeze_last is None:
            epochs = steps * batch_size / images
            found["freeze_last"] = min(1.0, 0.1 * epochs)
            reasons["freeze_last"] = "epochs; the paper's" if epochs >= 10 else f"a tenth of {epochs:.2g} epochs"
        return replace(settings, **found), reasons

    def __init__(self, encoder: Encoder, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        s = self.settings = settings
        check(s)
        transformer = isinstance(encoder, ViT | CCT)
        size = encoder.image_size
        small = local_size(size, encoder.patch_size if isinstance(encoder, ViT) else 1, s.local_size)
        colours = jittered((0.4, 0.4, 0.2, 0.1), s.jitter)
        colours |= {"flip": s.flip, "grey": 0.2, "blur_sigma": blur_sigma(size)}
        large = {"crop_scale": s.global_scale or ((0.4, 1.0) if transformer else (0.14, 1.0)), **colours}
        local = {"crop_scale": s.local_scale or ((0.05, 0.4) if transformer else (0.05, 0.14)), **colours}
        self.views = (
            View(size, blur=1.0, **large),
            View(size, blur=0.1, solarise=0.2, **large),
            *[View(small, blur=0.5, **local)] * s.local_crops,
        )
        K = s.out_dim or 65536
        self.student = encoder
        self.student_head = Head(length(encoder, self.views[-1].size), s.head_width, s.bottleneck, K, s.norm_last_layer)
        self.encoder, self.head = momentum_copy(self.student), momentum_copy(self.student_head)
        for module in self.encoder.modules():  # what is dropped at random is the student's alone
            for rate in ("rate", "dropout", "drop_prob"):  # stochastic depth and attention of ours, timm's
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
        self.register_buffer("centre", torch.zeros(K))
        self.register_buffer("said", torch.zeros(K), persistent=False)
        self.register_buffer("parts", torch.zeros(()), persistent=False)

    # Algorithm 1, with multi-crop (section 3.1, equations 1 to 3)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        large, small = batch.views[:2], batch.views[2:]
        B = len(large[0])
        with torch.no_grad():
            outputs = self.head(self.encoder(torch.cat(large))).float()  # (2 B, K)
            self.said += outputs.mean(dim=0)
            self.parts += 1
            log_p = ((outputs - self.centre) / self.temperature(clock.epoch)).log_softmax(dim=-1)
            p = log_p.exp()
            entropy = -(p * log_p).sum(dim=-1).mean()
            overall = distributed.mean(p.mean(dim=0))  # (K)
            information = torch.special.entr(overall).sum() - entropy

        vectors = [self.student(torch.cat(views)) for views in (large, small) if views]  # one pass for each size
        logits = self.student_head(torch.cat(vectors)).float() / self.settings.student_temperature  # ((2 + N) B, K)
        loss = cross_entropy(p.unflatten(0, (-1, B)), logits.unflatten(0, (-1, B)))
        uninformed = loss.new_tensor(math.log(self.centre.numel()))
        watched = {"teacher_entropy": entropy, "kl": loss.detach() - entropy, "information": information}
        return {"loss": loss, "uninformed": uninformed, **watched}

    def temperature(self, epoch: float) -> float:
        s = self.settings
        warm = min(1.0, epoch / s.temperature_warmup) if s.temperature_warmup > 0 else 1.0
        return s.teacher_temperature_start + (s.teacher_temperature - s.teacher_temperature_start) * warm

    @torch.no_grad()
    def after_backward(self, clock: Clock) -> None:
        """Clip each parameter's gradient for itself, and drop the last layer's for the first epoch."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))  # type: ignore[reportPrivateImportUsage]
        shrink = (self.settings.clip_parameter / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(shrink.unbind()))  # type: ignore[reportPrivateImportUsage]
        if clock.epoch < (1.0 if self.settings.freeze_last is None else self.settings.freeze_last):
            for parameter in (self.student_head.last.weight, self.student_head.scale):
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        momentum = cosine(self.settings.momentum or 0.996, 1.0, clock.progress)
        follow(self.encoder, self.student, momentum)
        follow(self.head, self.student_head, momentum)
        if self.settings.centring:  # equation 4
            self.centre.lerp_(distributed.mean(self.said / self.parts), 1 - self.settings.centre_momentum)
        self.said.zero_()
        self.parts.zero_()


def cross_entropy(p: Tensor, logits: Tensor) -> Tensor:
    """Mean of H(p_t, softmax(logits_v)) over the samples and over all pairs of a teacher's view t and another view v of
    the student's (equation 3). p: (2, B, K) float32; logits: (V, B, K) float32, whose first two views are those of p."""
    log_q = logits.log_softmax(dim=-1)
    different = 1 - torch.eye(len(p), len(logits), device=p.device)
    with torch.autocast(p.device.type, enabled=False):
        pairs = -torch.einsum("tbk,vbk->tv", p, log_q) / p.shape[1]
    return (pairs * different).sum() / different.sum()


def check(s: Settings) -> None:
    """BadInput for settings that cannot work."""
    for name in ("out_dim", "head_width", "bottleneck", "local_size"):
        if (value := getattr(s, name)) is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} is {value}: give a number above 0")
    for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start", "clip_parameter"):
        if not getattr(s, name) > 0:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(s, name)}: give a number above 0")
    if s.local_crops < 0:
        raise BadInput(f"--local-crops is {s.local_crops}: give 0 or more")
    for name in ("momentum", "centre_momentum"):
        if (value := getattr(s, name)) is not None and not 0 <= value <= 1:
            raise BadInput(f"--{name.replace('_', '-')} is {value}: give a share between 0 and 1")


def momentum_for(images: int, batch_size: int) -> tuple[float, str]:
    """The teacher's momentum for so many images, and why.

    The reference's README advises 0.9995 for a batch of 256, that is an average over 2,000 steps: 0.4 epochs of ImageNet.
    A small collection has few steps, of which 2,000 may be all: its teacher keeps the share of an epoch, and at least
    the 100 steps of 0.99.
    """
    if batch_size > 256:
        return 0.996, "the paper's"
    steps = min(2000, max(100, round(0.4 * images / batch_size)))
    return (
        1 - 1 / steps,
        f"an average over {steps:,} steps: 0.4 epochs, as 0.9995 is of ImageNet in batches of 256; at least 100",
    )


def local_size(size: tuple[int, int], patch: int, shorter: int | None) -> tuple[int, int]:
    """Height and width of small crops, in whole patches: 96 of 224 of the image's, or with the shorter side as asked."""
    share = 96 / 224 if shorter is None else shorter / min(size)
    height, width = (max(1, round(side * share / patch)) * patch for side in size)
    if shorter is not None and min(height, width) != shorter:
        raise BadInput(f"--local-size is {shorter}: patches of {patch} pixels need {min(height, width)}")
    return height, width


def length(encoder: Encoder, size: tuple[int, int]) -> int:
    """Of the encoder's vectors, from an image of this size. BadInput where it cannot take one."""
    try:
        return length_of(encoder, size)
    except (RuntimeError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"the encoder cannot take small crops of {size[0]}x{size[1]} pixels ({why}): use --local-crops 0, or a ViT such "
            "as vit-tiny/8"
        ) from None
