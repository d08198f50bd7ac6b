"""Weighted k nearest neighbours: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", section 3.4, with the k and the temperature of DINO (Caron et al. 2021, eval_knn.py).

Nothing is trained and nothing is tuned, so it judges a representation while it is learnt. Exact: every test vector is
compared with every training vector, and the k nearest are those by the float64 product rounded to float32. A product in
bf16, or in float32 where the processor has no bf16, comes first: whatever it puts so far behind the k-th that its rounding
error, which is bounded, cannot explain it, is left out (`Rough.candidates`).

One deviation, made where it is called (`features.standardise`): all dimensions are brought to one scale first, as both
linear probes do, while DINO takes the class token as it is. A masked autoencoder's token is led by few dimensions that
every image shares, and its class token is longer than its mean token; without it k-NN would mostly see those.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluate.features import check
from unmask.evaluate.linear import one_thread
from unmask.training.engine import choose_precision, keep_memory

SIMILARITIES_AT_ONCE = 1 << 23
"""How many similarities a core holds at a time: 16 MiB in bf16, and up to ten times that where all are candidates."""

CROWDED = 1 / 32
"""The share of the training vectors above which candidates are not worth picking out: all are multiplied in float64."""

BLOCK = 1 << 18
"""How many numbers are made float64 at a time."""

UNIT = 2**-8
"""The unit roundoff of bf16: |round(x) - x| <= UNIT |x|, and <= UNIT |round(x)|."""


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
    if train.device.type == "cpu":
        keep_memory()  # half of the time would go into pages, returned and fetched again
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float().to(train.device), dim=1)
    train_targets, k = train_targets.to(train.device), min(k, len(train))
    rough, rows = Rough(train, k), max(1, SIMILARITIES_AT_ONCE // len(train))

    def votes(test: Tensor) -> Tensor:
        """Probabilities (m, K) float64 for one core's share of the test vectors (m, D)."""
        room = rough.train.new_empty(min(rows, len(test)), len(rough.train))  # its pages are made only once
        found = []
        for part in test.split(rows):
            similarity, neighbour = neighbours(train, part, rough, room[: len(part)])  # (m, k) each
            weight = ((similarity - similarity[:, :1]) / temperature).double().exp()  # the nearest has weight 1
            vote = weight.new_zeros(len(part), classes).scatter_add_(1, train_targets[neighbour], weight)
            found.append(vote / vote.sum(dim=1, keepdim=True))
        return torch.cat(found)

    cores = torch.get_num_threads() if train.device.type == "cpu" else 1
    with one_thread(), ThreadPoolExecutor(cores) as pool:
        probabilities = torch.cat(list(pool.map(votes, test.chunk(cores))))
    return probabilities.argmax(dim=1), probabilities.float()


class Rough:
    """Similarities to unit vectors `train` (N, D) in the fastest arithmetic there is."""

    def __init__(self, train: Tensor, k: int):
        self.N, self.k = len(train), k
        fast = train.device.type == "cpu" and choose_precision("auto", train.device)[0] == "bf16"
        self.dtype = torch.bfloat16 if fast else torch.float32
        # Vector i is in group i % groups, not beside its neighbours in `train`, which may be of one class
        self.size = min(64, max(1, self.N // (8 * k)))
        self.groups = -(-self.N // self.size)  # at least k
        self.train = F.pad(train.to(self.dtype), (0, 0, 0, self.groups * self.size - self.N))
        self.lost = self.rounding(train).max()

    def rounding(self, x: Tensor) -> Tensor:
        """At least the length of what rounding takes from each vector (n, D), (n, 1)."""
        if self.dtype == torch.bfloat16:
            return torch.cat([(part - part.bfloat16()).norm(dim=1, keepdim=True) for part in x.split(1024)])
        return x.new_full((len(x), 1), UNIT)  # for torch.set_float32_matmul_precision lets it be as coarse as bf16

    def candidates(self, test: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Row in unit vectors `test` (m, D) and index in `train`, (P,) each, in this order, of all pairs that may be among
        the k most similar of their row, those as similar as the k-th included. room: where the similarities go, (m, N').

        With a', b' for the rounded a, b, and u = 2^-24, by Cauchy-Schwarz and for a sum of D products in float32,
            |sum a'b' - <a, b>| <= |a - a'| |b| + |a'| |b - b'| + 2 D u = error,
        where |a'|, |b| <= 1 + 2^-8. The k-th greatest group maximum t (rounded to bf16) has k similarities at or above it,
        so k true ones are at least t - UNIT |t| - error, and a pair with as much has a sum of at least t - UNIT |t| - 2
        error. Rounding keeps the order, so its rounded sum is at least this bound, rounded.
        """
        similarities = torch.mm(test.to(self.dtype), self.train.T, out=room)
        similarities[:, self.N :] = -torch.inf  # the padding
        similarities = similarities.unflatten(1, (self.size, self.groups))
        maxima = similarities.amax(dim=1)  # (m, groups)
        least = maxima.topk(self.k, dim=1).values[:, -1:].float()
        error = 1.01 * (self.lost + self.rounding(test)) + test.shape[1] * 2**-23
        bound = (least - UNIT * least.abs() - 2 * error).to(self.dtype)
        row, group = (maxima >= bound).nonzero(as_tuple=True)
        pair, place = (similarities[row, :, group] >= bound[row]).nonzero(as_tuple=True)
        order = (row[pair] * self.N + place * self.groups + group[pair]).sort().values
        return order // self.N, order % self.N


def neighbours(train: Tensor, test: Tensor, rough: Rough, room: Tensor) -> tuple[Tensor, Tensor]:
    """The k greatest similarities of each of `test` (m, D) and their places in `train` (N, D), (m, k) each; as `nearest`."""
    (row, column), k = rough.candidates(test, room), rough.k
    count = row.bincount(minlength=len(test))
    few = count <= CROWDED * len(train)
    values, places = test.new_empty(len(test), k), row.new_empty(len(test), k)
    step = max(1, BLOCK // test.shape[1])
    if not few.all():
        wide = test[~few].double()
        exact = torch.cat([(wide @ part.double().T).float() for part in train.split(step)], dim=1)
        values[~few], places[~few] = nearest(exact, k)
    if few.any():
        kept = few[row]
        row, column, count = (few.cumsum(0) - 1)[row[kept]], column[kept], count[few]
        wide, position = test[few].double(), torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        exact = test.new_full((len(wide), int(count.max())), -torch.inf)
        index = torch.zeros_like(exact, dtype=torch.int64)
        pairs = zip(row.split(step), column.split(step), strict=True)
        exact[row, position] = torch.cat([torch.linalg.vecdot(wide[i], train[j].double()).float() for i, j in pairs])
        index[row, position] = column
        values[few], found = nearest(exact, k)
        places[few] = index.gather(1, found)
    return values, places


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
