"""How good predictions are, and how sure that is.

`score` judges names alone. `report` and `report_multilabel` judge probabilities: what of each class is found, and whether
the model is as sure as it is right. `seeds` puts several of their reports together.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from unmask.errors import BadInput
from unmask.evaluate.splits import group_codes

DRAWS_AT_ONCE = 1 << 22  # numbers held at a time while samples or groups are resampled
BINS = 15
"""Of equal width, that confidences are sorted into (Guo et al. 2017, section 5)."""


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


def report(
    probabilities: Any,
    targets: Any,
    classes: Sequence[str],
    *,
    groups: Any = None,
    train_targets: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge class probabilities (n, K), rows that sum to 1, against targets (n,) in [0, K): all that a test tells, for JSON.

    - "accuracy" and "balanced" as in `score`; "brier": squared distance of the probabilities from the truth, summed over
      classes (Brier 1950), 0 to 2; "nll": minus the logarithm of the probability of the truth, in nats.
    - "classes", in order: "recall" (None of a class that was not there to be found), "precision" (None of one that was
      never named), how many there are ("n") and how many were named so ("predicted").
    - "confusion": counts (K, K), rows the truth, columns what was said.
    - "calibration": how the probability of the class that was named, the confidence, goes with being right. "ece" is the
      mean gap between the two over 15 bins (Guo et al. 2017, equation 3), "by_chance" what a model of perfect calibration
      would show on as many samples, "gap" confidence less accuracy over all: above 0 it is too sure. Bins hold
      confidences above "low" and up to "high".
    - "majority": the score of always naming the commonest class of `train_targets`, where these are given.
    - "sentence": what to remember of it.

    "low" and "high" are ends of 95% bootstrap intervals, all from the same `resamples` of samples or, where the group
    (n,) of each is given, of whole groups; see `score` for what they cannot know. They are percentiles, but for the ECE:
    noise adds to an ECE, to that of a resample twice, and so percentiles lie too high (of 200 samples in all 15 bins, with
    a true ECE of 0.02, they held it in none of 150 tests). Its interval is the basic one (Davison & Hinkley 1997, section
    5.2), which turns the resamples over at the estimate; it begins at 0 where perfect calibration would show as much in one
    test of twenty, but never below the interval of the gap.

    Raises BadInput where there is nothing to judge, a class is out of range, rows are no probabilities, or there are
    fewer than two groups.
    """
    probabilities, targets, K = np.asarray(probabilities), np.asarray(targets), len(classes)
    probabilities = _checked(probabilities, targets, K, targets.shape[:1])
    if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= K:
        raise BadInput(f"targets must be whole numbers from 0 to {K - 1}: leave out samples without a label")
    if (off := abs(probabilities.sum(1, dtype=np.float64) - 1)).max() > 0.01:
        raise BadInput(f"the probabilities of sample {off.argmax()} do not sum to 1: give the softmax, not the logits")
    floor = np.finfo(probabilities.dtype).eps  # of a logarithm, as in scikit-learn's log_loss
    probabilities = probabilities.astype(np.float64)
    n, rows = len(targets), np.arange(len(targets))
    named = probabilities.argmax(1)
    confidence, right, truth = probabilities[rows, named], named == targets, probabilities[rows, targets]
    brier = np.square(probabilities).sum(1) - 2 * truth + 1
    nll = -np.log(np.clip(truth, floor, 1))
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)

    # All that is to be known of a sample, sparse (n, F): sums of these over any samples give every figure of them.
    # F: K of the class, K of the class if right, then of each bin samples, confidence and right ones, last brier and nll.
    columns = [targets, K + targets, 2 * K + bins, 2 * K + BINS + bins, 2 * K + 2 * BINS + bins]
    columns += [np.full(n, 2 * K + 3 * BINS), np.full(n, 2 * K + 3 * BINS + 1)]
    values = [np.ones(n), right, np.ones(n), confidence, right, brier, nll]
    facts = sparse.csr_array(
        (np.stack(values, 1).ravel(), (rows.repeat(len(values)), np.stack(columns, 1).ravel())),
        shape=(n, 2 * K + 3 * BINS + 2),
    )
    order, unit = _ordered((nll, confidence, named, targets), groups)
    chosen = sparse.csr_array((np.ones(n), (unit, order)), shape=(unit.max() + 1, n))
    units = sparse.csr_array(chosen @ facts)  # (U, F)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        """Of sums (R, F) every figure that has an interval: (R,), the recalls (R, K)."""
        totals, hits, _, sure, known = np.split(sums[:, :-2], np.cumsum([K, K, BINS, BINS]), axis=1)
        size = totals.sum(1)
        with np.errstate(invalid="ignore"):
            recalls = hits / totals
        accuracy, balanced = _rates(hits, totals)
        return {
            "accuracy": accuracy,
            "balanced": balanced,
            "recall": recalls,
            "brier": sums[:, -2] / size,
            "nll": sums[:, -1] / size,
            "ece": abs(known - sure).sum(1) / size,
            "gap": sure.sum(1) / size - accuracy,
        }

    found, low, high = _intervals(figures, units, resamples, seed)
    counts = np.zeros((K, K), dtype=np.int64)
    np.add.at(counts, (targets, named), 1)
    totals, said = counts.sum(1), counts.sum(0)

    result: dict[str, Any] = {}
    for name in ("accuracy", "balanced", "brier", "nll"):
        start = "" if name == "accuracy" else f"{name}_"
        result |= {name: found[name].item(), f"{start}low": float(low[name]), f"{start}high": float(high[name])}
    result |= {"n": n, "classes": []}
    for i, name in enumerate(classes):
        recall = {
            key: _known(of["recall"][..., i].item()) for key, of in (("recall", found), ("low", low), ("high", high))
        }
        precision = counts[i, i].item() / said[i].item() if said[i] else None
        result["classes"].append(
            {"name": str(name), "n": int(totals[i]), **recall, "precision": precision, "predicted": int(said[i])}
        )
    result["confusion"] = counts.tolist()
    ends = {name: (found[name].item(), float(low[name]), float(high[name])) for name in ("ece", "gap")}
    result["calibration"] = {"confidence": float(confidence.mean())} | _calibration(
        units.toarray()[:, 2 * K : -2], **ends
    )
    if train_targets is not None:
        result["majority"] = majority(
            train_targets, targets, K, groups=groups, resamples=resamples, seed=seed
        ).to_dict()
    result["sentence"] = _sentence(result)
    return result


def _calibration(units: np.ndarray, ece: tuple[float, float, float], gap: tuple[float, float, float]) -> dict[str, Any]:
    """ "calibration" of a report. units: samples, sums of confidence and right ones of each bin, (U, 3 * BINS); ece and gap
    with the percentiles of their resamples."""
    held, sure, known = np.split(units.sum(0), 3)
    # Of perfect calibration, what is right beyond the confidence of a bin is noise about 0, whose variance the units show;
    # the mean and the variance of its absolute value are those of a half-normal.
    variance = np.square(units[:, 2 * BINS :] - units[:, BINS : 2 * BINS]).sum(0)
    by_chance = math.sqrt(2 / math.pi) * np.sqrt(variance).sum() / held.sum()
    usual = by_chance + 1.645 * math.sqrt((1 - 2 / math.pi) * variance.sum()) / held.sum()
    found, low, high = ece
    least = 0.0 if found <= usual else 2 * found - high
    edges = np.linspace(0, 1, BINS + 1)
    return {
        "ece": found,
        "low": min(found, max(0.0, least, gap[1], -gap[2])),  # no ECE is below the gap over all
        "high": max(found, 2 * found - low),
        "by_chance": float(by_chance),
        "gap": gap[0],
        "gap_low": gap[1],
        "gap_high": gap[2],
        "bins": [
            {
                "low": edges[i].item(),
                "high": edges[i + 1].item(),
                "confidence": float(sure[i] / held[i]) if held[i] else None,
                "accuracy": float(known[i] / held[i]) if held[i] else None,
                "n": int(held[i]),
            }
            for i in range(BINS)
        ],
    }


def _sentence(result: dict[str, Any]) -> str:
    """What to remember of a report."""
    words = f"On images it never saw ({result['n']:,}): accuracy {_interval(result, 'accuracy', '')}, balanced "
    words += f"{result['balanced']:.2f}"
    if "majority" in result:
        words += f", where always naming the commonest class would get {result['majority']['accuracy']:.3f}"
    gap, low, high = (result["calibration"][key] for key in ("gap", "gap_low", "gap_high"))
    if low > 0 or high < 0:
        words += f"; it is {abs(gap):.3f} too {'sure' if gap > 0 else 'unsure'} of itself on average"
    else:
        words += "; on average it is about as sure of itself as it is right"
    there = [one for one in result["classes"] if one["n"]]
    worst = min(there, key=lambda one: (one["recall"], -one["n"]))
    if worst["recall"] == 1:
        words += "; all of every class were found"
    else:
        words += f"; worst class: {worst['name']}, {round(worst['recall'] * worst['n'])} of {worst['n']:,} found"
    if missing := len(result["classes"]) - len(there):
        words += f"; {missing} of {len(result['classes'])} classes had no image to be found"
    return words + "."


def report_multilabel(
    probabilities: Any,
    targets: Any,
    classes: Sequence[str],
    *,
    groups: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge probabilities (n, K), each in [0, 1], of classes of which an image may have any number: targets (n, K) of 0 and
    1. All that a test tells, for JSON.

    - "map": mean over classes of the average precision, the precision at each recall that is reached as the threshold
      falls (scikit-learn's `average_precision_score`); "by_chance": what random probabilities would get, the mean share
      of images that have a class. Classes that no image has are left out of both, and named in "left_out".
    - "micro_f1": harmonic mean of precision and recall of all answers together, said where the probability is 0.5 or more.
    - "classes": of each "n", "average_precision", "low", "high", and at 0.5 "recall", "precision" and "predicted".

    Intervals as in `report`, percentiles. Raises BadInput as that does, and where no image has any class.
    """
    targets, K = np.asarray(targets), len(classes)
    probabilities = _checked(np.asarray(probabilities), targets, K, (*targets.shape[:1], K)).astype(np.float64)
    if not np.isin(targets, (0, 1)).all() or not targets.any():
        raise BadInput("targets of several labels an image must be 0 or 1, and some of them 1")
    n, there, said = len(targets), targets.astype(bool), probabilities >= 0.5
    totals, named, hits = (x.sum(0) for x in (there, said, there & said))
    seen = np.flatnonzero(totals)
    order, unit = _ordered((*probabilities.T, *there.T), groups)
    probabilities, there, said = probabilities[order], there[order], said[order]
    steps = [_steps(there[:, k], probabilities[:, k]) for k in seen]
    answers = np.stack([(there & said).sum(1), said.sum(1) + there.sum(1)], 1).astype(float)  # (n, 2)

    def figures(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of how often each sample is taken (n, R) the average precisions (R, K'), and the micro F1 (R,)."""
        precisions = [_average_precision(*step, weights) for step in steps]
        both, either = answers.T @ weights
        return np.stack(precisions, 1), 2 * both / np.maximum(either, 1)

    precisions, f1 = figures(np.ones((n, 1), dtype=np.float32))
    drawn = [figures(counts.T[unit]) for counts in _draws(unit.max() + 1, n, resamples, seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample without any of the classes has no mean
        many, many_f1 = (np.concatenate(part) for part in zip(*drawn, strict=True))
        means = np.nanmean(many, axis=1)
    low, high = _ends(many, precisions[0])
    result: dict[str, Any] = {}
    for name, value, values in (("map", precisions.mean(), means), ("micro_f1", f1[0], many_f1)):
        ends = _ends(values, value)
        start = "" if name == "map" else f"{name}_"
        result |= {name: float(value), f"{start}low": float(ends[0]), f"{start}high": float(ends[1])}
    result |= {"by_chance": float(totals[seen].mean() / n), "n": n, "classes": []}
    place = {k: i for i, k in enumerate(seen.tolist())}
    for k, name in enumerate(classes):
        i = place.get(k)
        result["classes"].append(
            {
                "name": str(name),
                "n": int(totals[k]),
                "average_precision": None if i is None else float(precisions[0, i]),
                "low": None if i is None else float(low[i]),
                "high": None if i is None else float(high[i]),
                "recall": float(hits[k] / totals[k]) if totals[k] else None,
                "precision": float(hits[k] / named[k]) if named[k] else None,
                "predicted": int(named[k]),
            }
        )
    result["left_out"] = [str(classes[k]) for k in range(K) if k not in place]
    worst = min((one for one in result["classes"] if one["n"]), key=lambda one: one["average_precision"])
    words = (
        f"On images it never saw ({n:,}): mean average precision {_interval(result, 'map', '')}, where guessing would "
    )
    words += f"get {result['by_chance']:.3f}; F1 of all labels together {result['micro_f1']:.2f}; worst class: "
    words += f"{worst['name']}, average precision {worst['average_precision']:.2f}"
    if left_out := result["left_out"]:
        words += f"; left out, for no image has them: {', '.join(left_out[:5])}{', …' if len(left_out) > 5 else ''}"
    result["sentence"] = words + "."
    return result


def _steps(there: np.ndarray, probabilities: np.ndarray) -> tuple[sparse.csr_array, sparse.csr_array]:
    """The thresholds at which recall grows: the T probabilities of samples (n,) that have the class, falling. Which samples
    come in at each, (T, n) of 0 and 1: all, and those that have the class."""
    thresholds = -np.unique(-probabilities[there])
    step = np.searchsorted(-thresholds, -probabilities)
    pairs = (np.stack([step, np.arange(len(step))])[:, use] for use in (step < len(thresholds), there))
    shape = (len(thresholds), len(step))
    everyone, positives = (sparse.csr_array((np.ones(x.shape[1], "f4"), tuple(x)), shape=shape) for x in pairs)
    return everyone, positives


def _average_precision(everyone: sparse.csr_array, positives: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """Average precision (R,), from what `_steps` gives and how often each sample is taken, (n, R) float32; NaN where none of
    those taken has the class."""
    hits = positives @ weights  # (T, R)
    precision = hits.cumsum(0) / np.maximum((everyone @ weights).cumsum(0), 1)
    with np.errstate(invalid="ignore"):
        return (hits * precision).sum(0, dtype=np.float64) / hits.sum(0)


SEEDS = ("accuracy", "balanced", "brier", "nll", "ece", "gap", "map", "micro_f1")


def seeds(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """The same figures of several runs that differ by their seed: of each the "mean", the standard "deviation" from one run
    to another (over n - 1; None of a single run) and "n", the number of runs.

    results: what `report` or `report_multilabel` gave of each. The deviation says what training anew would change, which
    the interval of one run does not hold. Raises BadInput if there is none, or if they are of both kinds.
    """
    flat = [
        result | {key: result["calibration"][key] for key in ("ece", "gap") if "calibration" in result}
        for result in results
    ]
    if len({"map" in result for result in results}) != 1:
        raise BadInput(
            f"{len(results)} reports to put together: give some, all of one label an image or all of several"
        )
    together = {name: np.array([result[name] for result in flat]) for name in SEEDS if name in flat[0]}
    return {
        name: {
            "mean": float(values.mean()),
            "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
            "n": len(values),
        }
        for name, values in together.items()
    }


# Pieces


def _checked(probabilities: np.ndarray, targets: np.ndarray, K: int, shape: tuple[int, ...]) -> np.ndarray:
    """The probabilities, if they are some, (n, K), beside targets of this shape."""
    if targets.size == 0 or targets.shape != shape or probabilities.shape != (len(targets), K):
        raise BadInput(
            f"{probabilities.shape} probabilities for {targets.shape} targets of {K} classes: give one of each a sample, "
            "and some"
        )
    if probabilities.dtype.kind != "f" or not ((probabilities >= 0) & (probabilities <= 1.01)).all():  # NaN fails, too
        raise BadInput("probabilities must be numbers from 0 to 1: give what softmax or sigmoid returns")
    return probabilities


def _ordered(keys: Sequence[np.ndarray], groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """An order of the samples (n,) that depends on what is in them, keys (n,), and not on how they came, so that the same
    seed gives the same intervals; and in that order the unit of each that is resampled with it, whole numbers (n,)."""
    n = len(keys[0])
    if groups is None:
        return np.lexsort(tuple(keys)), np.arange(n)
    codes, names = group_codes(groups, n), np.asarray(groups, dtype=str)
    if codes.max() == 0:
        raise BadInput("all samples are of one group: an interval over groups needs at least two")
    order = np.lexsort((*keys, names))  # by group first
    return order, group_codes(codes[order], n)


def _draws(units: int, width: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `units` comes up in each of `resamples`: (R, U) float32, as many rows at a time as leave room
    for R * width other numbers."""
    if resamples < 1:
        raise BadInput(f"{resamples} resamples: give at least 1")
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // max(units, width))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = rng.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float32)


def _intervals(
    figures: Callable[[np.ndarray], dict[str, np.ndarray]], units: sparse.csr_array, resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Figures of all units (U, F) together, and the ends of their intervals over resamples of the units."""
    U, F = units.shape  # type: ignore[misc]
    across = sparse.csr_array(units.T)
    parts = [figures((across @ counts.T).T) for counts in _draws(U, F, resamples, seed)]
    found = figures(units.sum(0)[None])
    ends = {name: _ends(np.concatenate([part[name] for part in parts]), found[name][0]) for name in found}
    return found, {name: low for name, (low, _) in ends.items()}, {name: high for name, (_, high) in ends.items()}


def _ends(values: np.ndarray, found: Any) -> np.ndarray:
    """Both ends (2, ...) of the interval that holds 95% of the resamples (R, ...) which have a value, and what was found
    in any case; NaN where nothing was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class that is in no resample has no values
        low, high = np.nanquantile(values, [0.025, 0.975], axis=0)
    return np.stack([np.fmin(low, found), np.fmax(high, found)])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _interval(result: dict[str, Any], name: str, start: str) -> str:
    return f"{result[name]:.3f} [{result[start + 'low']:.3f}, {result[start + 'high']:.3f}]"
