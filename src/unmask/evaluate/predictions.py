"""What a classifier says of each image, as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unmask.errors import BadInput
from unmask.training.run import whole

KINDS = (".csv", ".parquet")


def table(
    source_table: pd.DataFrame,
    probabilities: Any,
    classes: Sequence[str],
    targets: Any = None,
    *,
    multilabel: bool = False,
) -> pd.DataFrame:
    """A row an image, in the order of `source_table`, whose "path", "label" and "group" are taken over where it has them.

    probabilities: (n, K) float, row by row those of `source_table`. "prediction" is the class of the largest, and
    "probability" that; "p_" and the name of a class its own. targets: (n,) whole numbers, -1 where unknown; they give
    "label" the place of the table's own. Where images may have several labels, with `multilabel` or targets (n, K) of 0
    and 1, "predictions" names the classes of 0.5 or more, joined by "|" as are the labels.

    Raises BadInput where the numbers of images or of classes do not fit.
    """
    probabilities, n, names = (
        np.asarray(probabilities),
        len(source_table),
        np.array([str(c) for c in classes], dtype=object),
    )
    if probabilities.shape != (n, len(names)):
        raise BadInput(
            f"{probabilities.shape} probabilities for {n} images and {len(names)} classes: give one of each pair"
        )
    columns: dict[str, Any] = {"path": source_table["path"].to_numpy()}
    if targets is not None:
        targets = np.asarray(targets)
        if len(targets) != n:
            raise BadInput(f"{len(targets)} targets for {n} images: give one an image")
        multilabel = multilabel or targets.ndim == 2
        columns["label"] = (
            joined(names, targets.astype(bool)) if multilabel else [names[i] if i >= 0 else None for i in targets]
        )
    elif "label" in source_table:
        columns["label"] = source_table["label"].to_numpy()
    if "group" in source_table:
        columns["group"] = source_table["group"].to_numpy()
    if multilabel:
        columns["predictions"] = joined(names, probabilities >= 0.5)
    else:
        columns |= {"prediction": names[probabilities.argmax(1)], "probability": probabilities.max(1)}
    return pd.DataFrame(columns | {f"p_{name}": probabilities[:, k] for k, name in enumerate(names)})


def joined(names: np.ndarray, chosen: np.ndarray) -> list[str]:
    """The names (K,) that are chosen, bool (n, K), joined by "|"; an empty string where none is."""
    return ["|".join(names[row]) for row in chosen]


def check(out: Path) -> None:
    """Raise BadInput unless a table can be written under this name: to be asked before the work is done."""
    if out.suffix.lower() not in KINDS:
        raise BadInput(f"--out {out}: name a file that ends in .csv or .parquet")


def write(out: Path, predictions: pd.DataFrame) -> None:
    """The table as .csv or .parquet, whole or not at all. BadInput for other endings, and if it cannot be written."""
    check(out)
    with whole(out) as beside:
        if out.suffix.lower() == ".parquet":
            predictions.to_parquet(beside, index=False)
        else:
            predictions.to_csv(beside, index=False)
