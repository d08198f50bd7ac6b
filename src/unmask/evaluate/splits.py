"""Which samples are trained on and which are tested, with no group on both sides."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from unmask.errors import BadInput


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


def folds(targets: Any, groups: Any = None, k: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: pairs of train and test indices, int64, every sample tested exactly once.

    targets: the class of each sample, (n,) whole numbers. groups: the group of each, (n,), none of which will be on
    both sides. Classes are spread as evenly as groups allow (scikit-learn's StratifiedKFold, StratifiedGroupKFold).
    There are fewer folds than k where a class has fewer samples, or lies in fewer groups.

    Raises BadInput where not even two folds can be made, naming the class that stands in the way.
    """
    targets = np.asarray(targets)
    n = len(targets)
    if n == 0 or k < 2:
        raise BadInput(f"{n} samples cannot be split {k} ways: at least two samples and two folds are needed")
    codes = None if groups is None else group_codes(groups, n)
    present, counts = spread(targets, codes)
    if counts.min() < 2:
        what = "has one sample" if groups is None else "lies in one group"
        raise BadInput(
            f"class {present[counts.argmin()]} {what} only, so it cannot be both trained on and tested: leave it out"
        )
    k = min(k, int(counts.min()))
    if codes is None:
        split = StratifiedKFold(k, shuffle=True, random_state=seed).split(np.zeros(n), targets)
    else:
        split = StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(np.zeros(n), targets, codes)
    # groups of unequal size can leave a fold of StratifiedGroupKFold without a sample
    made = [(train, test) for train, test in split if len(test) > 0]
    if len(made) < 2:
        raise BadInput("the groups are too unequal to make two folds: leave out the largest, or split it")
    return made
