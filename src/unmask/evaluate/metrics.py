"""How good predictions are, and how sure that is."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unmask.errors import BadInput
from unmask.evaluate.splits import group_codes

DRAWS_AT_ONCE = 1 << 22  # numbers held at a time while groups are resampled


@dataclass(frozen=True)
class Score:
    """Accuracy and balanced accuracy, each with the ends of its bootstrap interval; shares from 0 to 1."""

    accuracy: float
    low: float
    high: float
    balanced: float
    """Mean recall of the classes that are there: what always naming the commonest class cannot raise."""
    balanced_low: float
    balanced_high: float
    n: int
    """Samples."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def score(
    predictions: Any,
    targets: Any,
    classes: int,
    *,
    groups: Any = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """Judge predictions (n,) against targets (n,), both whole numbers in [0, classes).

    The intervals are percentile bootstraps (Efron & Tibshirani 1993, chapter 13) that hold `level` of the resamples.
    Samples are resampled, or, where the group (n,) of each is given, whole groups: the images of a group resemble each
    other, so they are fewer observations than they seem. A resample that lacks a class is averaged over the classes it
    has. A perfect score has an interval of no width: a bootstrap cannot imagine the error that it has not seen.

    Raises BadInput where there is nothing to judge, a class is out of range, or there are fewer than two groups.
    """
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    n = len(targets)
    if n == 0 or predictions.shape != targets.shape or targets.ndim != 1:
        raise BadInput(
            f"{predictions.shape} predictions for {targets.shape} targets: give one of each a sample, and some"
        )
    for name, values in (("predictions", predictions), ("targets", targets)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes:
            raise BadInput(f"{name} must be whole numbers from 0 to {classes - 1}: leave out samples without a label")
    if resamples < 1 or not 0 < level < 1:
        raise BadInput(f"{resamples} resamples at level {level}: give at least 1, and a level between 0 and 1")

    # A resample is drawn as how often each unit comes up. All that the score needs to know of a unit is how many
    # samples of each class it has (U, K), and how many of them are right (U, K).
    right = predictions == targets
    if groups is None:
        # Samples of one class and outcome are all alike: the units are these 2K cells, wrong and right by turns.
        shares, drawn = np.bincount(2 * targets + right, minlength=2 * classes) / n, n
        totals = np.eye(classes).repeat(2, axis=0)
        hits = totals * (np.arange(2 * classes) % 2)[:, None]
    else:
        codes = group_codes(groups, n)
        drawn = int(codes.max()) + 1
        if drawn < 2:
            raise BadInput("all samples are of one group: an interval over groups needs at least two")
        shares = np.full(drawn, 1 / drawn)
        cell, cells = codes * classes + targets, drawn * classes
        totals = np.bincount(cell, minlength=cells).reshape(drawn, classes).astype(float)
        hits = np.bincount(cell, weights=right, minlength=cells).reshape(drawn, classes)

    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // len(shares))
    accuracies, balances = [], []
    for start in range(0, resamples, at_once):
        counts = rng.multinomial(drawn, shares, size=min(at_once, resamples - start)).astype(float)  # (R, U)
        accuracy, balance = _rates(counts @ hits, counts @ totals)
        accuracies.append(accuracy)
        balances.append(balance)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.concatenate(accuracies), ends).tolist()
    balanced_low, balanced_high = np.quantile(np.concatenate(balances), ends).tolist()
    seen, known = (np.bincount(x, minlength=classes)[None] for x in (targets, targets[right]))  # (1, K) each
    accuracy, balanced = _rates(known, seen)
    return Score(accuracy.item(), low, high, balanced.item(), balanced_low, balanced_high, n)


def _rates(hits: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and balanced accuracy, (R,) each, from the right answers (R, K) among the samples (R, K) of a class."""
    recalls = hits / np.maximum(totals, 1)
    return hits.sum(1) / totals.sum(1), recalls.sum(1) / (totals > 0).sum(1)


def majority(
    train_targets: Any,
    test_targets: Any,
    classes: int,
    *,
    groups: Any = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Score:
    """The score of always naming the commonest class of `train_targets` (the first of several), as `score` gives it.

    groups: of the test samples. Raises BadInput as `score` does, and where there is nothing to count.
    """
    train_targets, test_targets = np.asarray(train_targets), np.asarray(test_targets)
    if len(train_targets) == 0 or train_targets.min() < 0:
        raise BadInput("the commonest class needs training samples, each with a label")
    commonest = np.full(test_targets.shape, np.bincount(train_targets).argmax())
    return score(commonest, test_targets, classes, groups=groups, resamples=resamples, seed=seed, level=level)
