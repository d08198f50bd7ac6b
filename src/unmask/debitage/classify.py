"""Whose hand is it? Classifiers judged on units that they never saw, and how sure one can be that they know anything.

A particle of a knapper who was trained on says nothing of skill: the classifier knows the knapper. So skill is tested by
leaving whole knappers out, and the knapper by leaving whole assemblages out; the split by particle stands beside it, as what
is mostly published, and is no evidence.

Of few knappers each part leaves out as many of every skill, see `evenly`. Who leaves out a single one has learnt its skill
from fewer than the others: what knows nothing then names it too seldom, or if labels weigh alike too often, as a network was
seen to do whose loss had not moved, and that was right for 62% of flakes where 33% is chance.

`judge` tests by permutation. Its null: labels are dealt out among units by chance, and the whole procedure is run again for
every arrangement. To deal out the truth alone and keep the predictions, all that could be done for a network that took hours,
would find too much: what one part tests another has learnt, so that two units that are alike are both right or both wrong.
There no p is given, nor for a split by particle.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from unmask.debitage.findings import listed, plural
from unmask.debitage.statistics import apart, arrange, belonging, coded
from unmask.debitage.study import Study
from unmask.errors import BadInput
from unmask.evaluate import metrics, splits

FEW = 24
"""Units up to which each part leaves out one of every label; of more, five parts."""
MODELS = ("forest", "logistic")


@dataclass(frozen=True)
class Folds:
    """How a task is trained and tested."""

    task: str
    """ "skill" (the question's label) or "unit" (which knapper)."""
    naive: bool
    """Split by particle: units on both sides."""
    classes: tuple[str, ...]
    targets: np.ndarray
    """(n,) int64, whole numbers from 0; -1 for particles that take no part."""
    groups: np.ndarray
    """(n,) int64: the unit ("skill") or assemblage ("unit") of each particle, what is dealt out by `judge`."""
    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Indices to train on and to test on; none where the task cannot be tested."""
    protocol: str
    """In words."""
    notes: tuple[str, ...] = ()
    """What cannot be tested, a sentence each."""
    even: bool = False
    """The parts are those of `evenly`."""
    seed: int = 0

    def rearranged(self, targets: np.ndarray) -> "Folds":
        """With labels (n,) dealt out anew, and as evenly split."""
        parts = evenly(targets, self.groups, self.seed) if self.even else self.parts
        return replace(self, targets=targets, parts=parts)


def evenly(targets: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Indices to train on and to test on, of as many parts as the rarest label has units; each tests units of every label, and
    as many of each where labels have as many. targets: (n,) with -1 for what takes no part, one of each of groups (n,)."""
    rows = np.flatnonzero(targets >= 0)
    units, first = np.unique(groups[rows], return_index=True)
    labels, rng = targets[rows][first], np.random.default_rng(seed)
    parts, begun = int(np.bincount(labels)[np.unique(labels)].min()), 0
    part = np.zeros(len(units), dtype=np.int64)
    for label in dict.fromkeys(labels.tolist()):  # in the order of units: what labels are called has no part in it
        own = rng.permutation(np.flatnonzero(labels == label))
        part[own] = (begun + np.arange(len(own))) % parts
        begun += len(own)
    of_row = part[np.searchsorted(units, groups[rows])]
    return tuple((rows[of_row != each], rows[of_row == each]) for each in range(parts))


def folds(study: Study, task: str = "skill", *, naive: bool = False, seed: int = 0) -> Folds:
    """How to test skill (by units left out) or the unit (by assemblages left out), or either by particle, naively.

    A class that lies in one unit, or a unit of one assemblage, takes no part; where fewer than two classes remain, there
    are no parts, and the notes say why.
    """
    if task not in ("skill", "unit"):
        raise BadInput(f"task is {task!r}: use skill or unit")
    q = study.question
    frame: Any = study.particles
    what, whole = (q.label, q.unit) if task == "skill" else (q.unit, "assemblage")
    known = frame[what].notna().to_numpy() & frame[whole].notna().to_numpy()
    lies = frame[known].groupby(what)[whole].nunique()
    notes = []
    for name, count in lies.items():
        if count < 2 and not naive:
            own = frame.loc[known & (frame[what] == name).to_numpy(), whole].iloc[0]
            if task == "skill":
                notes.append(
                    f"{name} is {own} alone: {what} cannot be told from the {whole}, and whether another {name} would be "
                    "recognised cannot be tested."
                )
            else:
                notes.append(
                    f"{name} has one assemblage, {own}: its hand cannot be told from that day, and it is left out."
                )
    chosen = sorted(str(name) for name, count in lies.items() if count > 1 or naive)
    code = {name: i for i, name in enumerate(chosen)}
    targets = np.array([code.get(str(name), -1) if ok else -1 for name, ok in zip(frame[what], known, strict=True)])
    rows = np.flatnonzero(targets >= 0)
    groups = pd.factorize(frame[whole].astype(object))[0].astype(np.int64)
    if task == "unit":  # an assemblage of several units is one of each
        groups = pd.factorize(frame[q.unit].astype(str) + "\0" + frame["assemblage"].astype(str))[0].astype(np.int64)
    count = len(np.unique(groups[rows]))
    if len(chosen) < 2:
        notes.append(
            f"{what} cannot be tested: {len(chosen)} of its classes lie in two {whole}s or more, and two are needed."
        )
        return Folds(task, naive, tuple(chosen), targets, groups, (), "cannot be tested", tuple(notes))
    single = frame[known].groupby(whole)[what].nunique().max() == 1
    even = task == "skill" and single and count <= FEW
    if naive:
        parts, protocol = splits.folds(targets[rows], k=5, seed=seed), "five parts, by particle"
    elif even:
        made = evenly(targets, groups, seed)
        protocol = f"{len(made)} parts, {plural(whole)} of every {what} left out in each"
        return Folds(task, naive, tuple(chosen), targets, groups, made, protocol, tuple(notes), True, seed)
    elif task == "skill" and count <= FEW:
        parts = [
            (np.flatnonzero(groups[rows] != g), np.flatnonzero(groups[rows] == g)) for g in np.unique(groups[rows])
        ]
        protocol = f"leave one {whole} out, {count} times"
    else:
        parts = splits.folds(targets[rows], groups[rows], k=5, seed=seed)
        protocol = f"{len(parts)} parts, by {whole}"
        kinds = frame.iloc[rows].drop_duplicates([q.unit, "assemblage"])
        other = [name for name in q.nuisances if task == "unit" and not kinds.duplicated([q.unit, name]).any()]
        if other := [name for name in other if 2 * kinds[name].nunique() <= len(kinds)]:
            protocol += f"; those of one {q.unit} differ in {listed(other)}, which makes them like those of others"
    whole_parts = tuple((rows[train], rows[test]) for train, test in parts)
    return Folds(task, naive, tuple(chosen), targets, groups, whole_parts, protocol, tuple(notes))


def classify(
    X: Any,
    folds: Folds,
    model: str = "forest",
    seed: int = 0,
    *,
    trees: int = 500,
    jobs: int = 1,
) -> np.ndarray:
    """Probabilities (n, K) of particles by a model that was trained without them: a random forest (Breiman 2001), or a
    logistic regression with a penalty of C = 0.1 on standardised columns. Rows that were not tested are NaN.

    X: (n, p), NaN where not measured. What is missing becomes the training particles' median, and scaling is theirs. Classes
    weigh the same, and so do the groups of a class, that the commonest class, or the knapper of most flakes, is not preferred.
    """
    if model not in MODELS:
        raise BadInput(f"model is {model!r}: use {' or '.join(MODELS)}")
    X, targets = np.asarray(X, dtype=np.float64), folds.targets
    if len(X) != len(targets) or X.ndim != 2 or X.shape[1] == 0:
        raise BadInput(f"{X.shape} measures for {len(targets)} particles: give a row a particle, and some measures")
    found = np.full((len(targets), len(folds.classes)), np.nan)
    for train, test in folds.parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without a value
            middle = np.nan_to_num(np.nanmedian(X[train], axis=0))
        known = np.where(np.isnan(X), middle, X)
        if model == "forest":
            head = RandomForestClassifier(trees, n_jobs=jobs, random_state=seed)
        else:
            head = LogisticRegression(C=0.1, max_iter=300)
            spread = known[train].std(0)
            known = (known - known[train].mean(0)) / np.where(spread > 1e-12, spread, 1)
        with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
            warnings.simplefilter("ignore", ConvergenceWarning)
            head.fit(known[train], targets[train], sample_weight=_weights(targets[train], folds.groups[train]))
            found[test] = 0
            found[np.ix_(test, head.classes_)] = head.predict_proba(known[test])
    return found


def _weights(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) with a mean of 1: each class the same in sum, and in a class each group."""
    pairs, inverse, size = np.unique(np.stack([targets, groups]), axis=1, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    classes = np.bincount(pairs[0])  # groups of each class
    weights = 1 / (size[inverse] * classes[targets])
    return weights / weights.mean()


@dataclass(frozen=True)
class Judgement:
    """What a classifier got right. Shares from 0 to 1; None where there is nothing to judge."""

    task: str
    protocol: str
    classes: tuple[str, ...]
    particles: dict[str, float] | None
    """`metrics.Score` of particles, with intervals over groups, and "macro_f1"."""
    assemblages: dict[str, float] | None
    """The same of assemblages, each named by the sum of its particles' log probabilities."""
    units: dict[str, float] | None
    """The same of units; for skill only."""
    majority: float | None
    """Accuracy of always naming the commonest class of the training particles."""
    commonest: float | None
    """Share of the commonest class among those tested: what naming it always would get."""
    confusion: list[list[int]]
    """Particles: rows the truth, columns what was said."""
    votes: list[dict[str, Any]] = field(default_factory=list)
    """Of each assemblage its unit, truth, name, particles, and the share of its particles that was right."""
    p: float | None = None
    """That labels dealt out by chance do as well, judged by the mean over classes of the mean over groups of the share of
    particles that is right."""
    smallest_p: float | None = None
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"classes": list(self.classes)}


def judge(
    study: Study,
    task: str,
    probabilities: Any,
    folds: Folds,
    *,
    refit: Callable[[Folds], np.ndarray] | None = None,
    permutations: int = 999,
    resamples: int = 1000,
    seed: int = 0,
) -> Judgement:
    """Judge probabilities (n, K) of the particles of `folds`, NaN where not tested.

    refit: from folds to probabilities (n, K), the procedure that gave these, such as
    `lambda folds: classify(X, folds)`; without it there is no p, see the top of this file. Intervals are
    bootstraps over units for skill, over assemblages for units.
    """
    q = study.question
    frame: Any = study.particles
    P = np.asarray(probabilities, dtype=np.float64)
    K, name = len(folds.classes), q.label if task == "skill" else q.unit
    if task != folds.task:
        raise BadInput(f"probabilities of {task} were given folds of {folds.task}")
    if not folds.parts:
        line = f"{name}: " + " ".join(folds.notes)
        return Judgement(task, folds.protocol, folds.classes, None, None, None, None, None, [], sentence=line)
    if P.shape != (len(frame), K):
        raise BadInput(f"{P.shape} probabilities for {len(frame)} particles of {K} classes: give a row a particle")
    rows = np.flatnonzero(np.isfinite(P).all(1) & (folds.targets >= 0))
    if len(rows) == 0:
        raise BadInput("no particle was tested: all probabilities are NaN")
    targets, groups, P = folds.targets[rows], folds.groups[rows], P[rows]
    said = P.argmax(1)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}

    def scored(guess: np.ndarray, truth: np.ndarray, by: np.ndarray) -> dict[str, float]:
        several = len(np.unique(by)) > 1
        values = metrics.score(guess, truth, K, groups=by if several else None, **options).to_dict()
        f1 = f1_score(truth, guess, average="macro", labels=np.unique(truth), zero_division=0)  # pyright: ignore[reportArgumentType] (its stub knows words only)
        return values | {"macro_f1": float(f1)}

    logs = np.log(np.clip(P, 1e-6, 1))
    cells, _ = coded([f"{groups[i]}\0{frame['assemblage'].iloc[r]}\0{targets[i]}" for i, r in enumerate(rows)])
    vote = _sums(logs, cells).argmax(1)
    first = np.unique(cells, return_index=True)[1]
    votes = [
        {
            "assemblage": str(frame["assemblage"].iloc[rows[f]]),
            "unit": str(frame[q.unit].iloc[rows[f]]),
            "truth": folds.classes[targets[f]],
            "said": folds.classes[vote[c]],
            "particles": int(np.sum(cells == c)),
            "right": float(np.mean(said[cells == c] == targets[f])),
        }
        for c, f in enumerate(first)
    ]
    units = None
    if task == "skill":
        of, _ = coded([f"{g}\0{t}" for g, t in zip(groups, targets, strict=True)])
        start = np.unique(of, return_index=True)[1]
        units = scored(_sums(logs, of).argmax(1), targets[start], groups[start])
    tested = np.zeros(len(frame), dtype=bool)
    tested[rows] = True
    right = sum(
        int(np.sum(folds.targets[test[tested[test]]] == np.bincount(folds.targets[train]).argmax()))
        for train, test in folds.parts
    )
    confusion = np.zeros((K, K), dtype=np.int64)
    np.add.at(confusion, (targets, said), 1)
    p, smallest, why = _chance(study, folds, rows, refit, permutations, seed)
    result = Judgement(
        task=task,
        protocol=folds.protocol,
        classes=folds.classes,
        particles=scored(said, targets, groups),
        assemblages=scored(vote, targets[first], groups[first]),
        units=units,
        majority=right / len(rows),
        commonest=float(np.bincount(targets).max() / len(targets)),
        confusion=confusion.tolist(),
        votes=votes,
        p=p,
        smallest_p=smallest,
    )
    return Judgement(**{**vars(result), "sentence": _sentence(result, name, folds, why)})


def _sums(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    sums = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _chance(
    study: Study,
    folds: Folds,
    rows: np.ndarray,
    refit: Callable[[Folds], np.ndarray] | None,
    permutations: int,
    seed: int,
) -> tuple[float | None, float | None, str]:
    """p and the smallest that could be; or no p, and why."""
    q = study.question
    frame: Any = study.particles
    if folds.naive:
        return None, None, "A split by particle has each unit on both sides, so that no p has a meaning"
    if refit is None:
        return None, None, "It was not trained again with labels that were dealt out anew, so that there is no p"
    groups, _ = coded(folds.groups[rows])
    try:
        truth = belonging(folds.targets[rows], groups)
    except BadInput:
        return None, None, f"{q.label} varies within a {q.unit}, and is not dealt out among them"
    blocks = np.full(len(frame), "", dtype=object)
    if q.strata is not None:
        blocks = blocks + frame[q.strata].astype(str).to_numpy(dtype=object)
    if not folds.even:  # parts were made to hold each class, and go on to
        part = np.zeros(len(frame), dtype=np.int64)
        for number, (_, test) in enumerate(folds.parts):
            part[test] = number
        if max(len(np.unique(groups[part[rows] == number])) for number in np.unique(part[rows])) > 1:
            blocks = blocks + "\0" + part.astype(str).astype(object)
    if folds.task == "unit":
        chosen = np.zeros(len(frame), dtype=bool)
        chosen[rows] = True
        blocks = apart(study, chosen, folds.targets, folds.groups, blocks)
    blocks = blocks[rows]
    try:
        strata = belonging(coded(blocks)[0], groups)
    except BadInput:
        return (
            None,
            None,
            f"a {q.unit} lies in several {plural(q.strata or '')}, so that labels cannot be dealt out within them",
        )
    ways = arrange(truth, strata, permutations, seed)
    if ways.distinct < 2:
        return None, None, "labels can be dealt out in one way only"

    def score(probabilities: np.ndarray, labels: np.ndarray) -> float:
        """Mean over classes of the mean over groups of the share that is right; labels: (groups,)."""
        share = np.bincount(groups, probabilities.argmax(1) == labels[groups]) / np.bincount(groups)
        return float((np.bincount(labels, share) / np.bincount(labels)).mean())

    targets, found = folds.targets.copy(), []
    for labels in ways.rows:
        targets[rows] = labels[groups]
        found.append(score(refit(folds.rearranged(targets))[rows], labels))
    return ways.p(score(refit(folds)[rows], truth), np.array(found)), ways.smallest_p, ""


def _sentence(found: Judgement, name: str, folds: Folds, why: str) -> str:
    assert found.particles is not None and found.assemblages is not None
    one, many = found.particles, found.assemblages
    base = max(found.majority or 0, found.commonest or 0)
    words = f"{name}, {found.protocol}: {one['accuracy']:.0%} of particles [{one['low']:.0%}, {one['high']:.0%}], "
    words += f"balanced {one['balanced']:.0%}, and {round(many['accuracy'] * many['n'])} of {many['n']} assemblages by vote, "
    words += f"where always naming the commonest class gets {base:.0%}"
    if found.p is not None:
        words += f"; p = {found.p:.3g} that labels dealt out by chance do as well"
        if found.smallest_p is not None and found.smallest_p > 0.05:
            words += f" (none below {found.smallest_p:.2g} is possible)"
    elif why:
        words += f". {why[0].upper()}{why[1:]}"
    return " ".join([words + ".", *folds.notes])
