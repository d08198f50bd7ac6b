"""Visual tokens as what is to be predicted: for BEiT, and for MAE with tokens as its target."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.dvae import Tokenizer
from unmask.training import distributed


class TokenTarget(nn.Module):
    """The tokens of images, and the loss of predicting them. The tokenizer is frozen: no gradient, no optimiser; checkpoints
    hold it, so that a run goes on with the tokens it began with."""

    counts: Tensor

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.vocabulary
        self.register_buffer("counts", torch.zeros(tokenizer.vocabulary, dtype=torch.int64))

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images (B, C, H, W) to a token for each patch of the grid, (B, N) int64."""
        return self.tokenizer(images, grid)

    def loss(self, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of logits (B, M, K) with tokens (B, M), and the share of tokens that are predicted right.

        "uninformed" is the cross-entropy of these tokens with how often each token was seen in the batches before (counts
        with one added to each): what the best constant gets. ln K would be too easy, for some tokens are far commoner than
        others; the entropy of the batch's own tokens too hard, for a batch has not many more tokens than there are kinds.
        """
        logits = logits.flatten(0, 1).float()  # (B * M, K)
        tokens = tokens.flatten()
        with torch.no_grad():
            often = (self.counts + 1.0).log()
            constant = (self.counts.sum() + float(self.vocabulary)).log() - often[tokens].mean()
            self.counts += counts(tokens, self.vocabulary).long()
        right = (logits.argmax(dim=1) == tokens).float().mean()
        return {"loss": F.cross_entropy(logits, tokens), "uninformed": constant, "accuracy": right}


def counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often each token occurs among those of all processes, (K,) float32 of whole numbers."""
    ones = torch.ones(tokens.numel(), device=tokens.device)
    here = torch.zeros(vocabulary, device=tokens.device).index_add_(0, tokens.flatten(), ones)
    return (distributed.mean(here) * distributed.world()).round()
