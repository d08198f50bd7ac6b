"""Masked autoencoder: He, Chen, Xie, Li, Dollár, Girshick 2021, "Masked Autoencoders Are Scalable Vision Learners".

    unmask pretrain mae --data photos/ --out runs/a

Hide 75% of the patches of an image, encode only the visible ones, add mask tokens, and let a light decoder paint the
hidden ones; the error counts on hidden patches alone. Afterwards the decoder is thrown away.

Published, ImageNet-1k, ViT-B/L/H at 224 px after 1600 epochs (appendix A, table 3): fine-tuned 83.6 / 85.9 / 86.9 percent.

Deviations from the reference code (facebookresearch/mae), none of which changes the function learnt:
- patches are gathered before the patch embedding; tokens stay in the order visible, then hidden, for every token
  carries its position; the last decoder block computes only the tokens whose prediction counts;
- masks come from the sample's seed (seed, epoch, sample), not from the device's generator.
Deviations that do: the decoder of encoders smaller than ViT-B is smaller by rule (`decoder_size`), and a collection
smaller than ImageNet gets the rate that `unmask inspect` explains. What the paper leaves open in its table 1 is said where it
is settled: the scale of principal components (methods/components.py), the strength of colours (`JITTER`).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.augment import MASK_STREAM, View, uniform
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.layers import Block, grid_of, initialise, patchify, resample_positions, sincos_positions, take, unpatchify
from unmask.methods.components import Components
from unmask.methods.masking import block_rank, seeing_patches
from unmask.methods.method import Method, Paper
from unmask.methods.tokens import TokenTarget
from unmask.models import Encoder
from unmask.models.dvae import Tokenizer
from unmask.models.vit import ViT
from unmask.training.engine import Clock


@dataclass(frozen=True)
class Settings:
    """What MAE adds to the settings of every method. Defaults: the paper's (table 1, grey cells; table 8)."""

    mask_ratio: float = 0.75
    """Share of the patches that is hidden (the paper's figure 5: 0.75 is best for both fine-tuning and linear probing)."""
    masking: Literal["random", "block", "grid"] = "random"
    """How hidden patches are chosen: uniformly without replacement, in large blocks, or all but a regular lattice."""
    target: Literal["pixels", "pca", "tokens"] = "pixels"
    """What is predicted of a hidden patch (table 1d): its pixels; the largest principal components of its pixels, not normalised
    (worse: fine detail counts); or its visual token, as BEiT does (no better, and a tokenizer is needed)."""
    norm_pix: bool = True
    """Predict each patch normalised by its own mean and deviation (table 1d: better features) instead of raw pixels."""
    components: int | None = None
    """How many principal components, for --target pca. Default: an eighth of a patch's values, as the paper's 96 of 768."""
    tokens: str | None = None
    """The tokenizer, for --target tokens: a run of `unmask pretrain dvae`, or a state dict of OpenAI's encoder."""
    loss_on: Literal["masked", "all"] = "masked"
    """Which patches the error counts on. The paper: hidden ones only (counting all costs it 0.5 points)."""
    decoder_width: int | None = None
    """Width of the decoder; by default the paper's 512 from ViT-B up, and 2/3 of the encoder's width below."""
    decoder_depth: int | None = None
    """Blocks of the decoder; by default the paper's 8 at width 512, and one for each 64 of its width below."""
    mask_token_in_encoder: bool = False
    """Let the encoder see mask tokens in place of hidden patches (the ablation of table 1c: slower and worse)."""
    augment: Literal["none", "fixed", "crop", "colour"] = "crop"
    """How an image is varied (table 1e): not at all (the largest centred box, never flipped); a crop of fixed size, 7/8 of the
    shorter side, as 224 of 256 pixels; a crop of random size; or that with brightness, contrast and saturation changed."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image in a crop of random size."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""


def decoder_size(encoder_width: int) -> tuple[int, int]:
    """Default width and depth of the decoder: the paper's 512 x 8 is 2/3 of ViT-B's width, and a block for each 64 of
    that; smaller encoders keep both proportions (ViT-S 256 x 4, ViT-Ti 128 x 2), larger ones keep 512 x 8."""
    width = min(512, max(64, round(encoder_width * 2 / 3 / 64) * 64))
    return width, width // 64


def view_of(settings: Settings, size: tuple[int, int]) -> View:
    """How an image is varied before its patches are hidden (table 1e)."""
    if settings.augment in ("none", "fixed"):
        if settings.crop_scale != Settings.crop_scale:
            raise BadInput(f"--crop-scale is of no use to --augment {settings.augment}, whose crop has one size")
        if settings.augment == "none":
            return View(size, crop_scale=None, flip=0.0)
        return View(size, crop_scale=None, crop_side=FIXED, flip=settings.flip)
    crop = View(size, settings.crop_scale, flip=settings.flip)
    return replace(crop, jitter=(JITTER, JITTER, JITTER, 0.0), jitter_p=1.0) if settings.augment == "colour" else crop


FIXED = 224 / 256
"""Side of a crop of fixed size, of the shorter side of the image."""
JITTER = 0.4
"""Strength of the changes of colour: the paper names none; this is BEiT's."""


class MAE(Method):
    """encoder: a ViT; its positions are meant to be the fixed sine-cosine ones, as in the paper."""

    encoder: ViT
    decoder_positions: Tensor
    SUMMARY = "masked autoencoder (He et al. 2021): hide most patches, encode the rest, paint what was hidden"
    Settings = Settings
    ENCODER: ClassVar = {"positions": "sincos", "pool": "class+mean"}
    """How the encoder is built: fixed positions (section A.1); features are the class token, which the paper probes, beside
    the mean of the patch tokens, which it fine-tunes (as DINO's linear evaluation of ViT-B has them side by side)."""
    PAPERS: ClassVar = {"vit": Paper("vit-base/16", 4096, 1.5e-4, 800, 40, weight_decay=0.05, betas=(0.9, 0.95))}
    """Table 8."""

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings = Settings(),  # noqa: B008
        norm_eps: float = 1e-6,
        tokenizer: Tokenizer | None = None,
    ):
        super().__init__()
        encoder = seeing_patches(encoder, "MAE", "shows its encoder a part of the patches")
        if (settings.target == "tokens") != (tokenizer is not None):
            raise BadInput(
                "--target tokens needs a tokenizer: train one by `unmask pretrain dvae`, then name its run by --tokens"
                if tokenizer is None
                else f"--tokens is of no use to --target {settings.target}: leave it out, or add --target tokens"
            )
        if settings.components is not None and settings.target != "pca":
            raise BadInput(
                f"--components is of no use to --target {settings.target}: leave it out, or add --target pca"
            )
        if not 0.0 < settings.mask_ratio < 1.0:
            raise BadInput(f"--mask-ratio is {settings.mask_ratio}: give a share between 0 and 1, such as 0.75")
        self.encoder, self.settings = encoder, settings
        self.views = (view_of(settings, encoder.image_size),)
        rule_width, rule_depth = decoder_size(encoder.width)
        width = settings.decoder_width or rule_width
        depth = settings.decoder_depth or (rule_depth if settings.decoder_width is None else max(1, width // 64))
        if width % 32:
            raise BadInput(f"--decoder-width is {width}: use a multiple of 32, the width of one attention head")

        self.encoder_mask_token = nn.Parameter(torch.zeros(encoder.width)) if settings.mask_token_in_encoder else None
        self.decoder_embedding = nn.Linear(encoder.width, width)
        self.mask_token = None if settings.mask_token_in_encoder else nn.Parameter(torch.zeros(width))
        self.register_buffer("decoder_positions", sincos_positions(width, encoder.grid))
        heads = width // 32  # 16 at width 512
        self.decoder_blocks = nn.ModuleList(Block(width, heads, norm_eps=norm_eps) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=norm_eps)
        self.token_target = None if tokenizer is None else TokenTarget(tokenizer)
        values = encoder.patch_size**2 * encoder.channels
        count = settings.components if settings.components is not None else max(1, values // 8)
        if not 0 < count <= values:
            raise BadInput(f"--components is {count}: a patch of {values} values has 1 to {values}")
        self.components = Components(values, count) if settings.target == "pca" else None
        outputs = {"pixels": values, "pca": count, "tokens": tokenizer.vocabulary if tokenizer is not None else 0}
        self.prediction = nn.Linear(width, outputs[settings.target])
        for module in (self.decoder_embedding, self.decoder_blocks, self.prediction):
            module.apply(initialise)
        for token in (self.encoder_mask_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        self.sample(torch.zeros(1, dtype=torch.int64), encoder.grid)  # a ratio that leaves nothing to see fails here

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,) = batch.views
        grid = grid_of((images.shape[2], images.shape[3]), self.encoder.patch_size)
        keep, masked = self.sample(batch.seed, grid)
        return self.loss(images, keep, masked)

    # Masking (section 3, "Masking"; figure 6)

    def sample(self, seeds: Tensor, grid: tuple[int, int], settings: Settings | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the visible patches (B, K) and of the hidden ones (B, M), from sample seeds (B,); settings: others than
        those that it trains with."""
        settings = settings or self.settings
        rows, columns = grid
        N = rows * columns
        order = uniform(seeds, N, MASK_STREAM)  # the first K in this order stay visible
        visible = int(N * (1 - settings.mask_ratio))
        if settings.masking == "grid":
            stride = round((1 - settings.mask_ratio) ** -0.5)
            if stride < 2 or abs(1 - stride**-2 - settings.mask_ratio) > 0.01:
                raise BadInput("--masking grid keeps one patch of 4, 9, 16, …: use --mask-ratio 0.75, 0.889 or 0.9375")
            patch = torch.arange(N, device=seeds.device)
            on_lattice = (patch // columns % stride == 0) & (patch % columns % stride == 0)
            visible = -(-rows // stride) * -(-columns // stride)
            order = order + ~on_lattice
        elif settings.masking == "block":
            order = order - block_rank(seeds, grid, hidden=N - visible)
        if not 0 < visible < N:
            raise BadInput(
                f"--mask-ratio {settings.mask_ratio} of {N} patches leaves {visible} to see: "
                "change it, or choose a larger --image-size or smaller patches"
            )
        order = order.argsort(dim=1, stable=True)
        return order[:, :visible], order[:, visible:]

    # The autoencoder (section 3, "MAE encoder", "MAE decoder")

    def decode(self, images: Tensor, keep: Tensor, masked: Tensor, everywhere: bool) -> Tensor:
        """Predictions (B, M, P*P*C) for the hidden patches, or (B, K + M, P*P*C) for visible then hidden ones; of components
        their coefficients, of tokens a logit for each of the vocabulary instead."""
        size = (images.shape[2], images.shape[3])
        grid = grid_of(size, self.encoder.patch_size)
        positions = resample_positions(self.decoder_positions, self.encoder.grid, grid).expand(len(images), -1, -1)
        visible, hidden = take(positions, keep), take(positions, masked)  # (B, K, d), (B, M, d)

        tokens = self.encoder.embed(images, keep)  # (B, prefix + K, D)
        if self.encoder_mask_token is not None:
            there = take(self.encoder.positions_for(size).expand(len(images), -1, -1), masked)
            tokens = torch.cat([tokens, self.encoder_mask_token + there], dim=1)
        tokens = self.decoder_embedding(self.encoder.encode(tokens))  # (B, prefix + K [+ M], d)
        if self.mask_token is not None:
            tokens = torch.cat([tokens, self.mask_token.to(tokens.dtype).expand_as(hidden)], dim=1)
        no_position = positions.new_zeros(len(images), self.encoder.prefix, positions.shape[-1])
        tokens = tokens + torch.cat([no_position, visible, hidden], dim=1)  # (B, prefix + N, d)

        *earlier, last = self.decoder_blocks
        for block in earlier:
            tokens = block(tokens)
        wanted = keep.shape[1] + masked.shape[1] if everywhere else masked.shape[1]
        return self.prediction(self.decoder_norm(last(tokens, queries=slice(-wanted, None))))

    def targets(self, patches: Tensor) -> Tensor:
        """What is to be predicted for patches (..., P*P*C): the pixels, normalised per patch if so set (section 3,
        "Reconstruction target"), with the reference's unbiased variance and 1e-6; or their principal components."""
        if self.components is not None:
            return self.components(patches)
        if not self.settings.norm_pix:
            return patches
        values = patches.shape[-1]
        shrink = (values - 1) / values  # layer norm divides by N where the reference does by N - 1
        return F.layer_norm(patches, (values,), eps=1e-6 * shrink) * shrink**0.5

    def loss(self, images: Tensor, keep: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """Mean squared error for images (B, C, H, W), visible patches `keep` (B, K) and hidden ones `masked` (B, M); or the
        cross-entropy of their tokens.

        "uninformed" is the error of the best constant: 1 for normalised patches, but far below where many patches are
        blank, for a blank patch is predicted by anything that says zero.
        """
        everywhere = self.settings.loss_on == "all"
        counted = torch.cat([keep, masked], dim=1) if everywhere else masked
        if self.token_target is not None:
            tokens = self.token_target(images, grid_of((images.shape[2], images.shape[3]), self.encoder.patch_size))
            return self.token_target.loss(self.decode(images, keep, masked, everywhere), tokens.gather(1, counted))
        target = self.targets(take(patchify(images, self.encoder.patch_size), counted))
        predicted = self.decode(images, keep, masked, everywhere)
        return {
            "loss": F.mse_loss(predicted.float(), target),
            "uninformed": (target - target.mean(dim=(0, 1))).square().mean(),
        }

    @torch.no_grad()
    def reconstruct(self, images: Tensor, keep: Tensor) -> Tensor:
        """The image as painted from the patches at `keep` alone: (B, C, H, W) in the space of `images`. Paste the visible
        patches over it to see the two together.

        A model of principal components paints what they make up. A model of normalised patches says nothing of a patch's
        brightness and contrast. A hidden patch gets the mean and deviation of the visible ones, averaged with weight
        1 / distance^3: no statistic of a hidden pixel is used, so the picture shows what was inferred and nothing more. What
        the model says of visible patches nobody trained unless the loss is on all, and it is the noise that pictures of MAE
        are known for: they are shown in their mean colour.
        """
        size, P = (images.shape[2], images.shape[3]), self.encoder.patch_size
        rows, columns = grid_of(size, P)
        hidden = torch.ones(len(images), rows * columns, dtype=torch.bool, device=images.device)
        hidden.scatter_(1, keep, False)
        masked = hidden.nonzero()[:, 1].view(len(images), -1)
        order = torch.cat([keep, masked], dim=1)
        predicted = self.decode(images, keep, masked, everywhere=True).float()
        seen = take(patchify(images, P), keep)  # (B, K, P*P*C)
        if self.components is not None:
            predicted = self.components.inverse(predicted)
        elif self.settings.norm_pix:
            statistics = torch.stack([seen.mean(-1), (seen.var(-1) + 1e-6).sqrt()], dim=-1)  # (B, K, 2)
            places = torch.stack([order // columns, order % columns], dim=-1).float()  # (B, N, 2)
            distance = torch.cdist(places, places[:, : keep.shape[1]])  # (B, N, K)
            weights = distance.clamp(min=1e-4) ** -3
            mean, std = (weights / weights.sum(-1, keepdim=True) @ statistics).split(1, dim=-1)
            predicted = predicted * std + mean
        if self.settings.loss_on == "masked":
            colour = seen.unflatten(-1, (P * P, -1)).mean(dim=2)  # (B, K, C)
            predicted[:, : keep.shape[1]] = colour.repeat(1, 1, P * P)
        return unpatchify(take(predicted, order.argsort(dim=1)), size, P)
