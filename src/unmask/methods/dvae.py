"""Discrete VAE: Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever 2021, "Zero-Shot Text-to-Image Generation", section
2.1 and appendix A; the relaxation is that of Jang et al. 2016 and Maddison et al. 2016.

    unmask pretrain dvae --data photos/ --out runs/tokens

An encoder gives each place of a grid a distribution over K tokens, a decoder paints the image from a sample of them. What is
kept is the encoder: it turns images into the tokens that BEiT predicts.

Published: weights only, trained on 250 million images for 3,000,000 steps of 512; no score.

Deviations from the paper that change nothing of what is learnt:
- noise comes from the sample's seed (seed, epoch, sample);
- the loss is in nats a pixel value of 8 bits: the paper's, and a constant, the logarithm of a grey level's width.
Deviations that do:
- crops are those in which BEiT will ask for tokens, not nearly the whole image;
- a pixel's scale b is kept above what 8 bits can tell apart, or a blank image would drive it to 0 and the loss to minus infinity;
- the relaxation is annealed over 150,000 steps and the weight of the KL term raised over 5,000 as in the paper, but over no more
  than half and a tenth of the run;
- only the encoder's weights are averaged, over fewer steps at the beginning; the decoder is thrown away;
- vocabulary, width, and rate of a small collection are chosen by rule.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.augment import MASK_STREAM, View, uniform
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods.method import Method, Paper, follow, momentum_copy
from unmask.methods.tokens import counts
from unmask.models.dvae import EPSILON, MEAN, STD, TokenDecoder, TokenEncoder
from unmask.training.engine import Clock
from unmask.training.optim import cosine

IMAGENET = 1_281_167
NOISE_STREAM = 2 * MASK_STREAM
LEVEL = (1 - 2 * EPSILON) / 255
"""Width of one of 256 grey levels on the scale of the images."""
NARROWEST = LEVEL / (2 * EPSILON * (1 - EPSILON))
"""Scale b at which a black pixel is told from its neighbouring grey with certainty: its density there is 1 / LEVEL."""


@dataclass(frozen=True)
class Settings:
    """What the discrete VAE adds to the settings of every method. Defaults: appendix A.2."""

    vocabulary: int | None = None
    """How many different tokens there are, K. Default: the paper's 8,192 for as many images as ImageNet has; fewer for fewer."""
    temperature: float = 1 / 16
    """Temperature of the relaxation at the end; it falls from 1 along a cosine."""
    kl_weight: float = 6.6 / 192
    """Weight of the KL term of a token beside the likelihood of a pixel value. The paper's 6.6 is that of the two sums over an
    image, in which a token stands for 8 x 8 x 3 values. Higher: more of the vocabulary is used, evenly."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image in a random crop."""
    flip: float = 0.5
    """Probability of flipping an image from left to right."""


class DVAE(Method):
    """encoder: built with the vocabulary of the settings. It and its decoder see images from 0.1 for black to 0.9 for white."""

    encoder: TokenEncoder
    SUMMARY = "discrete VAE (Ramesh et al. 2021): the tokenizer that beit needs, learnt from the images"
    Settings = Settings
    PAPERS: ClassVar = {
        "dvae": Paper(
            "dvae-base/8",
            512,
            1e-4 * 256 / 512,
            1200,
            0,
            1e-4,
            betas=(0.9, 0.999),
            min_lr=1.25e-6,
            updates=3_000_000,
        )
    }
    """Appendix A.2. 3,000,000 steps of 512 are 1,200 passes over as many images as ImageNet has."""
    NORMALISED: ClassVar = (MEAN, STD)
    """So that black becomes 0.1, and white 0.9 (appendix A.3, equation 3)."""

    @classmethod
    def suit(
        cls, settings: Settings, images: int, batch_size: int, size: tuple[int, int], steps: int
    ) -> tuple[Settings, dict[str, str]]:
        if settings.vocabulary is not None:
            return settings, {}
        # Heaps' law: the distinct words of a text grow with about the root of its length
        K = 2 ** round(math.log2(8192 * math.sqrt(images / IMAGENET)))
        reason = (
            f"8,192 for ImageNet's {IMAGENET:,} images; with the root of their number, each token is seen often enough"
        )
        return replace(settings, vocabulary=min(8192, max(32, K))), {"vocabulary": reason}

    @classmethod
    def built_with(cls, settings: Settings) -> dict[str, Any]:
        return {"vocabulary": settings.vocabulary}

    def __init__(self, encoder: TokenEncoder, settings: Settings = Settings()):  # noqa: B008
        super().__init__()
        for name, value in (("vocabulary", settings.vocabulary or 2), ("temperature", settings.temperature)):
            if value <= (name == "vocabulary"):
                raise BadInput(
                    f"--{name} is {value}: give " + ("2 or more" if name == "vocabulary" else "a number above 0")
                )
        self.settings = settings
        self.online = encoder
        self.encoder = cast("TokenEncoder", momentum_copy(encoder))
        facts = encoder.config
        self.decoder = TokenDecoder(
            facts["channels"], facts["vocabulary"], facts["width"], facts["groups"], facts["blocks_per_group"]
        )
        self.views = (View(encoder.image_size, settings.crop_scale, flip=settings.flip),)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        images = batch.views[0].clamp(EPSILON, 1 - EPSILON)  # x, (B, C, H, W)
        done = clock.step / max(1, min(150_000, clock.steps // 2))
        temperature = cosine(1.0, self.settings.temperature, min(1.0, done))
        raised = min(1.0, clock.step / max(1, min(5_000, clock.steps // 10)))

        logits = self.online.logits(images)  # of q(z | x), (B, K, h, w)
        noise = gumbel(batch.seed, logits.shape[1:])
        codes = ((logits + noise) / temperature).softmax(dim=1)  # the relaxed sample
        mean, log_scale = self.decoder(codes).float().chunk(2, dim=1)  # mu and ln b, (B, C, H, W)

        # equation 1: the evidence lower bound, over the number of pixel values
        error = -logit_laplace(images, mean, log_scale).mean()
        log_q = logits.log_softmax(dim=1)
        kl = (log_q.exp() * log_q).sum(dim=1).mean() + math.log(logits.shape[1])  # from the uniform prior
        weight = self.settings.kl_weight * cosine(0.0, 1.0, raised)
        return {
            "loss": error + weight * kl,
            "uninformed": -best_constant(images),
            "error": error,
            "token_kl": kl,
            "perplexity": perplexity(logits.detach().argmax(dim=1), logits.shape[1]),
            "temperature": error.new_tensor(temperature),
        }

    def after_step(self, clock: Clock) -> None:
        follow(self.encoder, self.online, min(0.999, (1 + clock.step) / (10 + clock.step)))


def gumbel(seeds: Tensor, shape: torch.Size) -> Tensor:
    """Standard Gumbel noise (B, *shape) float32, from sample seeds (B,) alone."""
    count = math.prod(shape)
    parts = []
    for some in seeds.split(max(1, 2**17 // count)):  # numbers of 64 bits: not more of them at once than fit a cache
        u = uniform(some, count, NOISE_STREAM).float().clamp_(min=1e-16)
        parts.append(u.neg_().log1p_().neg_().log_().neg_())
    return torch.cat(parts).view(-1, *shape)


def logit_laplace(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Logarithm of the probability of the grey level that each value of x (B, C, H, W) lies in: the density of appendix A.3,
    equation 2, times the width of a level. mean: mu; log_scale: ln b, which is kept above that of NARROWEST."""
    narrowest = math.log(NARROWEST)
    log_b = narrowest + F.softplus(log_scale - narrowest)
    return math.log(LEVEL / 2) - log_b - (x * (1 - x)).log() - (x.logit() - mean).abs() / log_b.exp()


@torch.no_grad()
def best_constant(x: Tensor) -> Tensor:
    """The mean of `logit_laplace` for the best mu and b of each channel, the same in every place: what is reached without any
    token."""
    logits = x.logit().transpose(0, 1).flatten(1)  # (C, B * H * W)
    away = (logits - logits.median(dim=1, keepdim=True).values).abs().mean(dim=1)
    b = away.clamp(min=NARROWEST)
    return (math.log(LEVEL / 2) - b.log() - away / b).mean() - (x * (1 - x)).log().mean()


def perplexity(tokens: Tensor, vocabulary: int) -> Tensor:
    """Of how often each token is chosen, in the batches of all processes: K if all are alike, 1 if it is always the same."""
    often = counts(tokens, vocabulary)
    often = often / often.sum()
    return (-(often * (often + 1e-12).log()).sum()).exp()
