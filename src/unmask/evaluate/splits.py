"""Which samples are trained on and which are tested, with no group on both sides."""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.metrics.cluster import expected_mutual_information, mutual_info_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from unmask.errors import BadInput

FOLDS = 5
"""Of cross-validation; a class that lies in fewer groups cannot be tested in each of them."""
SETTLED = 0.5
"""The share of what there is to know of a label above which groups settle it."""


def group_codes(groups: Any, n: int) -> np.ndarray:
    """Any group names (n,), strings or numbers, as whole numbers from 0 in order of appearance: (n,) int64.

    Raises BadInput if there are not n of them or if one is missing.
    """
    codes, _ = pd.factorize(np.asarray(groups, dtype=object))  # as objects, a missing string stays missing
    if len(codes) != n:
        raise BadInput(f"{len(codes)} groups for {n} samples: give the group of each sample")
    if (codes < 0).any():
        raise BadInput(f"{(codes < 0).sum()} of {n} samples have no group: fill the column, or leave those samples out")
    return codes.astype(np.int64)


def spread(targets: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The classes there are, and in how many groups each lies, or without groups how many samples it has."""
    if groups is not None:
        targets = np.unique(np.stack([targets, groups]), axis=1)[0]
    return np.unique(targets, return_counts=True)


def folds(targets: Any, groups: Any = None, k: int = FOLDS, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: pairs of train and test indices, int64, every sample tested exactly once.

    targets: the class of each sample, (n,) whole numbers, or where a sample may have several, (n, K) of 0 and 1; those are
    spread by the rarest class they have, see `strata`. groups: the group of each, (n,), none of which will be on both
    sides. Classes are spread as evenly as groups allow (scikit-learn's StratifiedKFold, StratifiedGroupKFold). There are
    fewer folds than k where a class has fewer samples, or lies in fewer groups.

    Raises BadInput where not even two folds can be made, naming the class that stands in the way.
    """
    targets, codes = _known(targets, groups, k)
    present, counts = spread(targets, codes)
    if counts.min() < 2:
        what = "has one sample" if groups is None else "lies in one group"
        raise BadInput(
            f"class {present[counts.argmin()]} {what} only, so it cannot be both trained on and tested: leave it out"
        )
    made = list(_parts(targets, codes, min(k, int(counts.min())), seed))
    if len(made) < 2:
        raise BadInput("the groups are too unequal to make two folds: leave out the largest, or split it")
    return made


def held_out(targets: Any, groups: Any = None, share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One split: indices to train on and to test on, int64, ascending. About `share` of the samples are tested, with the
    classes in proportion and no group on both sides.

    targets and groups as in `folds`. It is one of round(1 / share) folds: the first of those that leave every class to be
    trained on, and of them one that tests as many classes as any. Unlike `folds`, which tests every class in each, it
    keeps to its share where a class is rarer than that: such a class may not be tested.

    Raises BadInput for a share outside (0, 0.5], or where a class has one sample, or lies in one group.
    """
    if not 0 < share <= 0.5:
        raise BadInput(f"a share of {share} cannot be held out: give more than 0, and 0.5 at most")
    k = round(1 / share)
    targets, codes = _known(targets, groups, k)
    present, counts = spread(targets, codes)
    made = [] if counts.min() < 2 else list(_parts(targets, codes, min(k, int(counts.max())), seed))
    made = [(train, test) for train, test in made if len(np.unique(targets[train])) == len(present)]
    if not made:
        what = "has one sample" if groups is None else "lies in too few groups"
        raise BadInput(
            f"class {present[counts.argmin()]} {what}, so it cannot be both trained on and tested: leave it out, or name "
            "test images of their own"
        )
    return max(made, key=lambda part: len(np.unique(targets[part[1]])))  # the first of equals


def label_some(targets: Any, wanted: str, seed: int = 0) -> np.ndarray:
    """Indices, int64, ascending, of the samples whose labels are used where few are to be enough: of targets (n,), -1
    without a label, a share as in "1%", or a number of samples in all as in "500".

    Classes are in proportion, but each has one at least. The same seed gives nested choices: what is among fewer is among
    more.

    Raises BadInput for anything else, for more than have a label, and for fewer than there are classes.
    """
    targets = np.asarray(targets)
    labelled = np.flatnonzero(targets >= 0)
    n, classes = len(labelled), len(np.unique(targets[labelled]))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", str(wanted).strip())
    if match is None:
        raise BadInput(f"{wanted} labels: give a share, as in 10%, or a number of images in all, as in 500")
    count = round(n * float(match[1]) / 100) if match[1] else int(match[2])
    if count > n:
        raise BadInput(f"{wanted} labels: there are {n:,} images with a label; ask for fewer")
    if count < max(1, classes):
        raise BadInput(
            f"{wanted} labels: {count:,} of {n:,} images cannot show each of {classes:,} classes; ask for {classes:,} at least"
        )
    # An order of which every beginning has the classes in proportion: the i-th of a class of m comes at (i + 1/2) / m of
    # the way, but the first of each before all others.
    shuffled = labelled[np.random.default_rng(seed).permutation(n)]
    place = pd.Series(targets[shuffled]).groupby(targets[shuffled]).cumcount().to_numpy()
    size = np.bincount(targets[shuffled])[targets[shuffled]]
    when = np.where(place == 0, 0, (place + 0.5) / size)
    return np.sort(shuffled[when.argsort(kind="stable")[:count]])


def confounded(targets: Any, groups: Any, classes: Sequence[str]) -> str | None:
    """A sentence where labels cannot be told from groups, None where they can. targets: (n,) whole numbers; groups: (n,).

    Two things must come together.
    - The group settles the label: the share of the label's entropy that it takes away, I(label; group) / H(label), is
      above one half. From it is taken what groups of these sizes would settle by chance, as in Vinh et al. 2010, equation
      8: groups of one image settle every label, and tell nothing of the next image.
    - A class lies in fewer than five groups, so that it cannot be tested in each of five folds. Unequal groups count
      less: those of a class are counted as 1 / sum(p²), rounded, p the share of its images that a group has.

    A hundred patients of one diagnosis each are no trouble, for new patients show what is known of the diagnosis. Two
    museums of one style each are: all that tells the museums apart passes for style, and there are two of them, however
    many images they have.
    """
    targets, codes = _known(targets, groups, 2)
    table = pd.crosstab(targets, codes).to_numpy()  # (classes there are, groups)
    known = float(entropy(table.sum(1)))  # all there is to know of the label, nats
    if codes is None or known == 0:
        return None
    told, chance = mutual_info_score(targets, codes), expected_mutual_information(table, len(targets))
    # 1 for groups of one class each, 0 for groups drawn at random
    settled = (told - chance) / (known - chance) if known - chance > 1e-9 else 0.0
    inside = (table > 0).sum(1)
    few = np.flatnonzero(np.round(1 / np.square(table / table.sum(1, keepdims=True)).sum(1)) < FOLDS)
    if settled <= SETTLED or len(few) == 0:
        return None
    fewest = few[np.argsort(inside[few], kind="stable")]
    names = [classes[i] for i in np.unique(targets)[fewest]]
    where = []
    for i, name in list(zip(fewest, names, strict=True))[:3]:
        uneven = f" ({table[i].max() / table[i].sum():.0%} of its images in one)" if inside[i] >= FOLDS else ""
        where.append(f"{name} in {inside[i]} {'group' if inside[i] == 1 else 'groups'}{uneven}")
    listed = ", ".join(where) + (f", and {len(names) - 3} more classes in few" if len(names) > 3 else "")
    right = table.max(0).sum() / len(targets)
    return (
        f"Labels can hardly be told from groups here ({listed}): whoever recognises the group, and nothing of what is to be "
        f"named, is right for {right:.0%} of the images, and an accuracy by group rests on {table.shape[1]} groups, not "
        f"on {len(targets):,} images; more groups of each class would tell the two apart."
    )


def strata(targets: np.ndarray, codes: np.ndarray | None, k: int) -> np.ndarray:
    """One class (n,) of each sample that may have several, (n, K) of 0 and 1, to spread samples by: its rarest, for that is
    the one which is hardest to have on both sides (Sechidis et al. 2011, section 3, begin with it, too), or K if it has
    none. Classes that so have fewer than k samples, or lie in fewer than k groups, go with the commonest."""
    rarity = targets.sum(0)
    chosen = np.where(targets, rarity, len(targets) + 1).argmin(1)
    chosen[~targets.any(1)] = targets.shape[1]
    present, counts = spread(chosen, codes)
    chosen[np.isin(chosen, present[counts < k])] = present[counts.argmax()]
    return chosen


def _known(targets: Any, groups: Any, k: int) -> tuple[np.ndarray, np.ndarray | None]:
    """One class a sample (n,), and the code of its group (n,), if they can be split k ways."""
    targets = np.asarray(targets)
    n = len(targets)
    if n == 0 or k < 2:
        raise BadInput(f"{n} samples cannot be split {k} ways: at least two samples and two folds are needed")
    codes = None if groups is None else group_codes(groups, n)
    return strata(targets.astype(bool), codes, k) if targets.ndim == 2 else targets, codes


def _parts(targets: np.ndarray, codes: np.ndarray | None, k: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """At most k pairs of train and test indices, spread by target and with no group on both sides."""
    kind = StratifiedKFold if codes is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # `held_out` knows
        for train, test in kind(k, shuffle=True, random_state=seed).split(np.zeros(len(targets)), targets, codes):
            if len(test) > 0:  # groups of unequal size can leave a fold of StratifiedGroupKFold without a sample
                yield train, test
