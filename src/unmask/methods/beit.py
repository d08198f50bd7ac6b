"""BEiT: Bao, Dong, Piao, Wei 2021, "BEiT: BERT Pre-Training of Image Transformers".

    unmask pretrain dvae --data photos/ --out runs/tokens
    unmask pretrain beit --tokens runs/tokens --data photos/ --out runs/a

A frozen tokenizer gives each patch of an image one of K visual tokens. About 40% of the patches, in blocks, are replaced by a
mask token; the encoder sees them all; a linear head predicts the token of each hidden patch.

Published, ImageNet-1k, ViT-B/L at 224 px after 800 epochs with DALL-E's tokenizer (table 1): fine-tuned 83.2 / 85.2 percent.

Deviations from the reference code (microsoft/unilm, beit), none of which changes the function learnt:
- masks come from the sample's seed (seed, epoch, sample);
- keys have a bias, too; it adds the same to all scores of a query, and so nothing to their softmax.
Deviations that do:
- the tokenizer is our own discrete VAE (methods/dvae.py), trained on the collection itself, unless a user has OpenAI's weights;
- it sees the encoder's view, resized on the device by the same bicubic filter, where the reference resizes the crop once more
  from the photograph by Lanczos;
- each image has the same number of hidden patches: where no block fits any more, single patches make it up; the reference hides
  a few less;
- each block has its own table of relative positions, as the reference has them when it fine-tunes; in its pre-training the
  blocks share one. The tables and the mask token are not decayed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from unmask.data.augment import MASK_STREAM, View, uniform
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.layers import Block, grid_of, take
from unmask.methods.masking import block_rank, seeing_patches
from unmask.methods.method import Method, Paper
from unmask.methods.tokens import TokenTarget
from unmask.models import Encoder
from unmask.models.dvae import Tokenizer
from unmask.models.vit import ViT
from unmask.training.engine import Clock


@dataclass(frozen=True)
class Settings:
    """What BEiT adds to the settings of every method. Defaults: the paper's (section 2, appendix)."""

    tokens: str | None = None
    """The tokenizer: a run of `unmask pretrain dvae`, or a state dict of OpenAI's encoder (.safetensors, .pth)."""
    mask_ratio: float = 0.383
    """Share of the patches that is hidden: 75 of 196, "roughly 40%" (section 3, appendix)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image in a random crop."""
    flip: float = 0.5
    """Probability of flipping an image from left to right. 0 where left and right matter."""
    jitter: float = 0.4
    """Strength of the changes of brightness, contrast and saturation."""


class BEiT(Method):
    """encoder: a ViT. tokenizer: what gives the patches of an image their tokens."""

    encoder: ViT
    SUMMARY = "masked image modelling (Bao et al. 2021): hide blocks of patches, predict their visual tokens"
    Settings = Settings
    ENCODER: ClassVar = {"positions": "relative", "layer_scale": 0.1, "pool": "mean"}
    """How the encoder is built (section 2.1; layer scale of the reference code); features are the mean of the patch tokens,
    which the paper fine-tunes (section 2.6): nothing trains the class token."""
    PAPERS: ClassVar = {
        "vit": Paper(
            "vit-base/16",
            2048,
            1.5e-3 * 256 / 2048,
            800,
            10,
            0.05,
            betas=(0.9, 0.999),
            min_lr=1e-5,
            clip=3.0,
            drop_path=0.1,
        )
    }
    """Appendix, hyper-parameters for pre-training; README.md and run_beit_pretraining.py have the same."""

    def __init__(self, encoder: Encoder, settings: Settings = Settings(), tokenizer: Tokenizer | None = None):  # noqa: B008
        super().__init__()
        encoder = seeing_patches(encoder, "BEiT", "hides patches from its encoder")
        if tokenizer is None:
            raise BadInput(
                "--tokens is missing: train a tokenizer by `unmask pretrain dvae`, then name its run by --tokens"
            )
        self.encoder, self.settings, self.target = encoder, settings, TokenTarget(tokenizer)
        jitter = (settings.jitter, settings.jitter, settings.jitter, 0.0)
        self.views = (View(encoder.image_size, settings.crop_scale, flip=settings.flip, jitter=jitter, jitter_p=1.0),)
        self.mask_token = nn.Parameter(torch.zeros(encoder.width))
        self.head = nn.Linear(encoder.width, tokenizer.vocabulary)
        self.initialise()
        self.hidden(encoder.grid)  # a ratio that hides nothing, or all, fails here

    def initialise(self) -> None:
        """Small random matrices, those that end a residual branch ever smaller with depth (section 2.5, "Pre-Training
        Setup", after Bao et al. 2020); in ViT-L layer scale begins at 1e-5."""
        for module in (self.encoder, self.head):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        with torch.no_grad():
            for depth, block in enumerate(cast("Iterable[Block]", self.encoder.blocks), start=1):
                block.attention.projection.weight /= math.sqrt(2 * depth)
                block.mlp.down.weight /= math.sqrt(2 * depth)
                if self.encoder.width >= 1024 and self.encoder.config["layer_scale"] is not None:
                    for scale in (block.scale1, block.scale2):
                        cast("Tensor", scale).fill_(1e-5)

    def hidden(self, grid: tuple[int, int]) -> int:
        """How many patches are hidden in each image."""
        N = grid[0] * grid[1]
        hidden = int(N * self.settings.mask_ratio)
        if not 0 < hidden < N:
            raise BadInput(
                f"--mask-ratio {self.settings.mask_ratio} hides {hidden} of {N} patches: change it, or choose a larger "
                "--image-size or smaller patches"
            )
        return hidden

    def sample(self, seeds: Tensor, grid: tuple[int, int]) -> Tensor:
        """Indices of the hidden patches, (B, M), from sample seeds (B,) (section 2.3, algorithm 1)."""
        hidden = self.hidden(grid)
        chance = uniform(seeds, grid[0] * grid[1], MASK_STREAM)  # which single patches make up what blocks leave
        return (block_rank(seeds, grid, hidden) + chance).topk(hidden, dim=1).indices

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (images,) = batch.views  # (B, C, H, W)
        size = (images.shape[2], images.shape[3])
        grid = grid_of(size, self.encoder.patch_size)
        tokens = self.target(images, grid)  # z, (B, N)
        hidden = self.sample(batch.seed, grid)  # M, (B, M)

        x = self.encoder.embed(images)  # (B, prefix + N, D)
        mask = self.mask_token.to(x.dtype)
        if self.encoder.positions is not None:
            mask = mask + take(self.encoder.positions_for(size).expand(len(x), -1, -1), hidden)
        where = (hidden + self.encoder.prefix).unsqueeze(-1).expand(-1, -1, x.shape[-1])
        x = x.scatter(1, where, mask.to(x.dtype).expand(where.shape))
        h = self.encoder.encode(x, self.encoder.offsets(size))  # (B, prefix + N, D)

        # equation 2: the log-likelihood of the tokens at hidden places, given what the encoder makes of the rest
        logits = self.head(take(h[:, self.encoder.prefix :], hidden))  # (B, M, K)
        return self.target.loss(logits, tokens.gather(1, hidden))
