"""Weighted k nearest neighbours: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", section 3.4, with the k and the temperature of DINO (Caron et al. 2021, eval_knn.py).

Nothing is trained and nothing is tuned, so it judges a representation while it is learnt. Exact: every test vector is
compared with every training vector.

One deviation, made where it is called (`features.standardise`): all dimensions are brought to one scale first, as both
linear probes do, while DINO takes the class token as it is. A masked autoencoder's token is led by few dimensions that
every image shares, and its class token is longer than its mean token; without it k-NN would mostly see those.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluate.features import check

SIMILARITIES_AT_ONCE = 1 << 25
"""How many similarities are held at a time (128 MiB)."""


@torch.no_grad()
def predict(
    train: Tensor, train_targets: Tensor, test: Tensor, classes: int, *, k: int = 20, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    """Predictions (M,) int64 and class probabilities (M, K) float32 of test vectors (M, D), on the device of `train`.

    Each of the k training vectors (N, D) of greatest cosine similarity s votes for its class (N,) int64 with weight
    exp(s / temperature); the votes are scaled to sum to 1. k is N where N is less. Deterministic: of neighbours at the
    same distance the first in `train` counts, and of classes with the same vote the lowest wins.

    Raises BadInput for shapes that do not fit, targets out of range, NaN, or fewer than two classes.
    """
    check(train, train_targets, test, classes)
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float().to(train.device), dim=1)
    k = min(k, len(train))
    votes = []
    for part in test.split(max(1, SIMILARITIES_AT_ONCE // len(train))):
        similarity, neighbour = nearest(part @ train.T, k)  # (m, k) each
        weight = ((similarity - similarity[:, :1]) / temperature).double().exp()  # the nearest has weight 1
        vote = weight.new_zeros(len(part), classes).scatter_add_(1, train_targets.to(train.device)[neighbour], weight)
        votes.append(vote / vote.sum(dim=1, keepdim=True))
    probabilities = torch.cat(votes)
    return probabilities.argmax(dim=1), probabilities.float()


def nearest(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of each row (m, N) and where they are, (m, k) each, the greatest first; of equal ones the first.

    torch.topk does not say which of equal values it takes. Where the k-th value has an equal that was not taken, the
    places are found again by counting: features that have collapsed are equal everywhere.
    """
    values, places = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    if values.shape[1] == k:
        return values, places
    tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
    values, places = values[:, :k], places[:, :k]
    if len(tied):
        rows, last = similarities[tied], values[tied, k - 1 :]  # (t, N), (t, 1)
        above, equal = rows > last, rows == last
        room = k - above.sum(dim=1, keepdim=True)
        taken = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
        found = taken.nonzero()[:, 1].view(-1, k)
        order = rows.gather(1, found).argsort(dim=1, descending=True, stable=True)
        places[tied] = found.gather(1, order)
    return values, places
