"""MoCo: He, Fan, Wu, Xie, Girshick 2019, "Momentum Contrast for Unsupervised Visual Representation Learning" (v1), and
Chen, Fan, Girshick, He 2020, "Improved Baselines with Momentum Contrastive Learning" (v2).

    unmask pretrain moco --data photos/ --out runs/a
    unmask pretrain moco-v2 --data photos/ --out runs/a

Of two views of an image, one becomes a query and the other a key, made by a slow average of the network. The query is to
be nearer to its own key than to those of other images, which wait in a queue: so there are many, whatever the batch.
Version 2 is version 1 with a hidden layer in the head (--mlp), stronger views (--aug-plus), a temperature of 0.2, and a
rate that falls along a cosine.

Published, ImageNet-1k, ResNet-50, 200 epochs, linear (README of facebookresearch/moco, five runs): v1 60.8 ± 0.2,
v2 67.5 ± 0.1; v2 after 800 epochs 71.1.

Deviations from the reference code, none of which changes the function learnt:
- the key encoder moves behind a step, not before its keys are computed;
- the batch norms of 8 GPUs are those of 8 parts of the batch, on one device as on several (`GhostBatchNorm`); running
  statistics are the mean of all parts', not the first GPU's;
- keys are shuffled by a number drawn from each sample's seed; the queue may have any length.
Deviations that do: the queue begins empty, not with random vectors, which any image is told from: the loss would begin
near 0 and rise, here it always stands beside that of an encoder that knows nothing; a view's grey comes behind its jitter,
in version 1, too; blurs are in proportion to the image (2 pixels are meant for 224); weight decay is for matrices alone;
timm's ResNets begin with the last norm of each block at 0; a ViT, which the papers do not train, takes MoCo v3's recipe, but
its projection of patches is trained, too; and a collection smaller than ImageNet gets the queue, the
momentum and the parts of a batch that are printed with their reasons.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import MASK_STREAM, View, blur_sigma, jittered, uniform
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, length_of, momentum_copy
from unmask.methods.moco_v3 import MoCoV3, check
from unmask.training import distributed
from unmask.training.engine import Clock

SHUFFLE_STREAM = 2 * MASK_STREAM
"""Where the draws begin that shuffle keys, far from those for views and masks."""


@dataclass(frozen=True)
class Settings:
    """What MoCo adds to the settings of every method. Defaults: main_moco.py, which is the papers' section 3.3."""

    dim: int = 128
    """Length of queries and keys."""
    mlp: bool = False
    """A hidden layer in the head, as wide as the encoder's vectors (version 2)."""
    aug_plus: bool = False
    """Blur, and colours that change less often and less in hue (version 2)."""
    queue_size: int | None = None
    """Keys in the queue. Default: the paper's 65,536, of smaller collections a tenth of the images."""
    momentum: float | None = None
    """Of the key encoder. Default: the paper's 0.999, less where an epoch has fewer steps."""
    temperature: float = 0.07
    """Temperature of the softmax over the keys."""
    ghost_batch_size: int | None = None
    """Images whose mean and deviation a batch norm takes together, at least. Default: an eighth of the batch, as the
    paper's 8 GPUs have. If queries shared them with their keys, they would give those away: so keys are shuffled."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image in a crop."""
    flip: float = 0.5
    """Probability of flipping a view from left to right. 0 where left and right matter."""
    jitter: float = 1.0
    """Strength of the changes of brightness, contrast, saturation and hue (0.4 each, with --aug-plus 0.1 of hue). 0 where
    colour matters."""
    grey: float = 0.2
    """Probability of a view turning grey. 0 where colour matters."""


@dataclass(frozen=True)
class SettingsV2(Settings):
    """What version 2 has otherwise (its table 1)."""

    mlp: bool = True
    """A hidden layer in the head, as wide as the encoder's vectors."""
    aug_plus: bool = True
    """Blur, and colours that change less often and less in hue than in version 1."""
    temperature: float = 0.2
    """Temperature of the softmax over the keys."""


class MomentumContrast(Method):
    """What both versions are. encoder: any, for queries; it is kept. Its batch norms are replaced by ghost batch norms."""

    queue: Tensor
    enqueued: Tensor
    ENCODER: ClassVar = MoCoV3.ENCODER
    SYNCHRONISED = False

    @classmethod
    def suit(
        cls, settings: Settings, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Settings, dict[str, str]]:
        rules: dict[str, Callable[[int, int], tuple[Any, str]]] = {
            "queue_size": queue_for,
            "momentum": momentum_for,
            "ghost_batch_size": ghost_batch_for,
        }
        found = {name: rule(images, batch_size) for name, rule in rules.items() if getattr(settings, name) is None}
        values = {name: value for name, (value, _) in found.items()}
        return replace(settings, **values), {name: reason for name, (_, reason) in found.items()}

    def __init__(self, encoder: Any, settings: Settings = Settings()):
        super().__init__()
        s = self.settings = settings
        K, self.momentum = s.queue_size or 65536, 0.999 if s.momentum is None else s.momentum
        self.ghost_batch_size = 32 if s.ghost_batch_size is None else s.ghost_batch_size
        check(s.temperature, self.momentum, dim=s.dim, queue_size=s.queue_size)
        if self.ghost_batch_size < 2:
            raise BadInput(f"--ghost-batch-size is {s.ghost_batch_size}: one image has no deviation; give 8 or more")
        distributed.replace_batch_norms(encoder, partial(GhostBatchNorm, least=self.ghost_batch_size))
        self.shuffles = any(isinstance(module, GhostBatchNorm) for module in encoder.modules())
        self.encoder = encoder
        width = length_of(encoder)
        hidden = [nn.Linear(width, width), nn.ReLU()] if s.mlp else []
        self.head = nn.Sequential(*hidden, nn.Linear(width, s.dim))
        self.key_encoder, self.key_head = momentum_copy(self.encoder), momentum_copy(self.head)
        self.register_buffer("queue", torch.zeros(K, s.dim))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.int64))  # keys, since the start
        self.fresh: list[Tensor] = []

        view = View(encoder.image_size, s.crop_scale, flip=s.flip, grey=s.grey)
        if s.aug_plus:
            view = replace(
                view, blur=0.5, blur_sigma=blur_sigma(encoder.image_size), **jittered((0.4, 0.4, 0.4, 0.1), s.jitter)
            )
        else:
            view = replace(view, **jittered((0.4, 0.4, 0.4, 0.4), s.jitter, 1.0))
        self.views = (view, view)

    # Algorithm 1

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        x_q, x_k = batch.views  # (B, C, H, W)
        B, K = len(x_q), len(self.queue)
        q = self.embed(self.encoder, self.head, x_q)  # (B, dim)
        keys = self.keys(x_k, batch.seed)  # (world * B, dim)
        k = keys[distributed.rank() * B :][:B]  # (B, dim)

        filled = torch.arange(K, device=q.device) < self.enqueued
        with torch.autocast(q.device.type, enabled=False):  # bf16 rounds by 0.4%, of logits of 14
            positive = (q * k).sum(dim=1, keepdim=True)  # (B, 1)
            negative = torch.addmm(filled.to(q.dtype).log(), q, self.queue.T)  # (B, K), -inf where there is no key yet
            logits = torch.cat([positive, negative], dim=1) / self.settings.temperature  # (B, 1 + K)
            # Keys of the moment are told from those that waited by their age alone while the key encoder moves: so the bar is
            # no higher than the loss with another image's key of this batch as the positive
            other = (q.detach() * keys.roll(1, dims=0)[distributed.rank() * B :][:B]).sum(dim=1)
            mistaken = F.softplus(logits[:, 1:].detach().logsumexp(dim=1) - other / self.settings.temperature).mean()
        own = torch.zeros(B, dtype=torch.int64, device=q.device)
        self.fresh.append(keys)
        return {
            "loss": F.cross_entropy(logits, own),  # equation 1
            "uninformed": torch.minimum(self.enqueued.clamp(max=K).log1p(), mistaken),
            "accuracy": (logits.argmax(dim=1) == own).float().mean(),
        }

    def embed(self, encoder: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
        """Unit vectors (B, dim) of images (B, C, H, W), batch norms see each part of the batch for itself."""
        parts = parts_of(len(images), self.ghost_batch_size)
        order = torch.arange(len(images), device=images.device).view(parts, -1).T.flatten()  # as GhostBatchNorm wants
        vectors = head(encoder(images[order].contiguous())).to(self.queue.dtype)
        return F.normalize(vectors, dim=1)[order.argsort()]

    @torch.no_grad()
    def keys(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Keys (world * B, dim) of the images (B, C, H, W) of all processes, in their order. Section 3.3, "Shuffling BN": they
        are computed in another order, so that a key's statistics say nothing of the query that it belongs to."""
        if not self.shuffles:
            return distributed.gather(self.embed(self.key_encoder, self.key_head, images))
        order = uniform(distributed.gather(seeds), 1, SHUFFLE_STREAM).flatten().argsort(stable=True)
        mine = order[distributed.rank() * len(images) :][: len(images)]
        shuffled = self.embed(self.key_encoder, self.key_head, distributed.gather(images)[mine])
        return distributed.gather(shuffled)[order.argsort()]

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        follow(self.key_encoder, self.encoder, self.momentum)  # equation 2
        follow(self.key_head, self.head, self.momentum)
        self.enqueue(torch.cat(self.fresh))
        self.fresh.clear()
        if distributed.world() > 1:  # a mean of averages is the average of means: what one process would have
            running = [
                buffer for name, buffer in self.named_buffers() if name.endswith(("running_mean", "running_var"))
            ]
            means = distributed.mean(torch.cat(running)).split([len(buffer) for buffer in running]) if running else ()
            for buffer, value in zip(running, means, strict=True):
                buffer.copy_(value)

    def enqueue(self, keys: Tensor) -> None:
        """Put keys (N, dim) into the queue, in place of the oldest ones."""
        K, N = self.queue.shape[0], len(keys)
        kept = keys[-K:]
        places = (self.enqueued + N - len(kept) + torch.arange(len(kept), device=keys.device)) % K
        self.queue[places] = kept
        self.enqueued += N


class MoCo(MomentumContrast):
    SUMMARY = "momentum contrast (He et al. 2019): find your own image's other view among many in a queue; for ResNets"
    Settings = Settings
    PAPERS: ClassVar = {
        "resnet": Paper("resnet50", 256, 0.03, 200, 0, 1e-4, optimiser="sgd", scaling="linear", milestones=(0.6, 0.8)),
        "vit": replace(MoCoV3.PAPERS["vit"], small_batch=64),
    }
    """main_moco.py; for ViTs the recipe by which MoCo v3 compared other methods on them (its table 4)."""


class MoCoV2(MomentumContrast):
    SUMMARY = "momentum contrast, version 2 (Chen et al. 2020): with a deeper head and stronger views"
    Settings = SettingsV2
    PAPERS: ClassVar = {"resnet": replace(MoCo.PAPERS["resnet"], milestones=()), "vit": MoCo.PAPERS["vit"]}


# Batch norm by parts


def parts_of(images: int, least: int) -> int:
    """The most parts of one size, of at least so many images each, that a batch can be cut into."""
    return next((parts for parts in range(images // least, 0, -1) if images % parts == 0), 1)


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of each part of a batch for itself (Hoffer et al. 2017, "Train longer, generalize better", section 4), as
    of each GPU. Image i is of part i modulo the number of parts: so no image has to be moved.

    least: the fewest images of a part. drop, act: what comes behind it, for timm's that have an activation within.
    """

    def __init__(
        self, channels: int, least: int, drop: nn.Module | None = None, act: nn.Module | None = None, **options: Any
    ):
        super().__init__(channels, **options)
        self.least, self.drop, self.act = least, drop or nn.Identity(), act or nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, …)."""
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        parts = parts_of(len(input), self.least)

        def each(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat(parts)

        x = input.reshape(-1, parts * input.shape[1], *input.shape[2:])  # (B / parts, parts * C, …)
        mean, var = each(self.running_mean), each(self.running_var)
        x = F.batch_norm(x, mean, var, each(self.weight), each(self.bias), True, self.momentum, self.eps)  # type: ignore[arg-type]
        if self.running_mean is not None and mean is not None and var is not None:
            with torch.no_grad():
                self.running_mean.copy_(mean.view(parts, -1).mean(dim=0))
                self.running_var.copy_(var.view(parts, -1).mean(dim=0))  # type: ignore[union-attr]
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return self.act(self.drop(x.reshape(input.shape)))


# What a smaller collection takes


def queue_for(images: int, batch_size: int) -> tuple[int, str]:
    """Keys in the queue for so many images, and why.

    Of ImageNet the paper's 65,536 are 5%. At the start of an epoch the queue holds images of the one before: of a queue
    with a share s of all images, s²/2 of the queries meet an older view of their own image as one to be told from. That
    is 0.5% for a tenth, and 3% for a quarter, which is taken up to 1,024 keys: fewer would be too easy.
    """
    if images >= 655_360:
        share, most = "the paper's", 65_536
    elif images >= 10_240:
        share, most = f"a tenth of {images:,} images", images // 10
    else:
        share, most = f"a quarter of {images:,} images, up to 1,024", min(1024, images // 4)
    size = max(1, most // batch_size) * batch_size
    more = "" if images >= 655_360 else ": in a longer one a query meets older views of its own image"
    return size, f"{share}, in whole batches{more}"


def momentum_for(images: int, batch_size: int) -> tuple[float, str]:
    """The key encoder's momentum, and why: 0.999 is an average over 1,000 steps, 0.2 epochs of ImageNet, but may be all
    steps of a small collection."""
    steps = min(1000, max(100, round(0.2 * images / batch_size)))
    if steps == 1000:
        return 0.999, "the paper's"
    reason = f"an average over {steps} steps: 0.2 epochs, as the paper's 0.999 is of ImageNet, or at least 100 steps"
    return 1 - 1 / steps, reason


def ghost_batch_for(images: int, batch_size: int) -> tuple[int, str]:
    """How many images a batch norm should see together, and why."""
    parts = next((parts for parts in range(8, 1, -1) if batch_size % parts == 0 and batch_size // parts >= 8), 1)
    if parts == 1:
        return (
            batch_size,
            f"{batch_size} cannot be cut into parts of 8 or more, so shuffling does nothing: try --batch-size 64",
        )
    why = "as on the paper's 8 GPUs" if parts == 8 else "a part has at least 8"
    return batch_size // parts, f"of a batch norm, if there is one: {parts} parts of a batch of {batch_size}; {why}"
