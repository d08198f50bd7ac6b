"""What the models looked at: where hiding a particle changes their mind, which particles they judge most surely right and
wrong, which they hold for alike, and all of them laid out in two dimensions. Arrays in, arrays out; `pictures` draws them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from unmask.data.decode import border_colour
from unmask.errors import BadInput
from unmask.models.classifier import Classifier

MOST = 5_000
"""Particles laid out by UMAP at most: its time grows faster than their number."""
COMPONENTS = 50
"""Principal components that UMAP is given at most, as its authors advise for long vectors."""
FEWEST = 10
"""Particles below which UMAP has no neighbourhoods to keep."""


# Where hiding hurts


@torch.no_grad()
def occlusion(
    model: Classifier | Callable[[Tensor], Tensor],
    image: Tensor,
    target: int,
    *,
    patch: int | None = None,
    stride: int | None = None,
    batch: int = 64,
) -> Tensor:
    """By how much the probability of a class falls where a square of the image is covered (Zeiler & Fergus 2014, section 4.2).

    The square takes the image's border colour, so that what it covers is background, not a grey thing never seen. Where it
    covers background alone nothing changes, and the model is not asked.

    model: a classifier, or a function from images (B, C, H, W) to probabilities (B, K). image: (C, H, W), normalised as the
    model wants it. target: number of the class. patch: side of the square in pixels, by default a sixth of the longer side.
    stride: side of the cells, by default half a patch.

    Returns:
        (ceil(H / stride), ceil(W / stride)) float32 on the CPU: for each cell of the image what covering a square around its
        middle takes away; negative where the class becomes more probable.

    Raises:
        BadInput: a patch or stride below one pixel, or a class that the model does not know.
    """
    H, W = image.shape[1:]
    patch = max(2, round(max(H, W) / 6)) if patch is None else patch
    stride = max(1, patch // 2) if stride is None else stride
    if patch < 1 or stride < 1:
        raise BadInput(f"occlusion: a patch of {patch} pixels every {stride}: both must be at least 1")
    training = isinstance(model, Classifier) and model.training
    if isinstance(model, Classifier):
        image = image.to(next(model.parameters()).device)
        model.eval()
    try:
        whole = _probabilities(model, image[None])
        if not 0 <= target < whole.shape[1]:
            raise BadInput(f"occlusion: class {target} of {whole.shape[1]}: classes are counted from 0")
        colour = border_colour(image)
        middles = [[int((i + 0.5) * stride) for i in range(-(-size // stride))] for size in (H, W)]
        falls = torch.zeros(len(middles[0]), len(middles[1]))
        windows = {}
        for i, y in enumerate(middles[0]):
            for j, x in enumerate(middles[1]):
                top, left = y - patch // 2, x - patch // 2
                window = (slice(None), slice(max(top, 0), top + patch), slice(max(left, 0), left + patch))
                if (image[window] != colour).any():
                    windows[i, j] = window
        places = list(windows)
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            covered = image.repeat(len(some), 1, 1, 1)
            for one, place in zip(covered, some, strict=True):
                one[windows[place]] = colour
            for place, p in zip(some, _probabilities(model, covered)[:, target].tolist(), strict=True):
                falls[place] = float(whole[0, target]) - p
    finally:
        if isinstance(model, Classifier):
            model.train(training)
    return falls


def _probabilities(model: Any, images: Tensor) -> Tensor:
    said = model(images)
    return (model.probabilities(said) if isinstance(model, Classifier) else said).float()


# Typical and misjudged


def typical(
    probabilities: NDArray[Any], targets: Sequence[Any], units: Sequence[Any], count: int = 4
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Of each unit the particles judged right most surely, and those judged wrong most surely.

    probabilities: (n, K), of a model that has not seen the particle's unit; a row with NaN was not tested and is left out.
    targets: (n,) numbers of the true classes; those below 0, or NaN, have none. units: (n,) names.

    Returns:
        {unit: {"typical": (<= count,), "misjudged": (<= count,)}} by the unit's name, surest first, of equals the first in
        the table; empty where none was judged so.
    """
    said = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(targets, dtype=np.float64)
    names = np.asarray([str(unit) for unit in units], dtype=object)
    tested = np.isfinite(said).all(axis=1) & np.isfinite(truth) & (truth >= 0)
    answer = np.where(tested, np.nan_to_num(said, nan=-1.0).argmax(axis=1), -1)
    sure = np.where(tested, np.nan_to_num(said, nan=-1.0).max(axis=1), -1.0)
    found = {}
    for name in sorted(set(names)):
        mine = np.flatnonzero((names == name) & tested)
        mine = mine[np.argsort(-sure[mine], kind="stable")]
        right = answer[mine] == truth[mine]
        found[name] = {"typical": mine[right][:count], "misjudged": mine[~right][:count]}
    return found


# What is alike


def standardised(vectors: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Vectors (n, D) with mean 0 and deviation 1 in each column; what is not known (NaN) is 0, the mean, and columns that do
    not vary are left out. (n, D') float64."""
    X = np.array(vectors.detach().cpu() if isinstance(vectors, Tensor) else vectors, dtype=np.float64)
    X = X.reshape(len(X), -1)
    X[~np.isfinite(X)] = np.nan
    known = np.isfinite(X)
    count = known.sum(axis=0)
    mean = np.where(known, X, 0).sum(axis=0) / np.maximum(count, 1)
    X = np.where(known, X - mean, 0.0)
    deviation = np.sqrt((X**2).sum(axis=0) / np.maximum(count, 1))
    varies = deviation > 1e-9 * np.maximum(1.0, np.abs(mean))
    return X[:, varies] / deviation[varies]


def neighbours(
    vectors: NDArray[Any] | Tensor, units: Sequence[Any], queries: Sequence[int], k: int, *, own: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k particles most like each query, by the cosine between standardised vectors (n, D), the query itself left out.

    own: whether particles of the query's own unit count; without them one sees whether likeness crosses units.

    Returns:
        Their numbers (Q, k), nearest first, and their distances 1 - cosine (Q, k), 0 to 2. Where there are fewer than k:
        -1 and NaN.
    """
    X = standardised(vectors)
    X = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    names = np.asarray([str(unit) for unit in units], dtype=object)
    asked = np.asarray(queries, dtype=np.int64).reshape(-1)
    indices = np.full((len(asked), k), -1, dtype=np.int64)
    distances = np.full((len(asked), k), np.nan)
    for row, query in enumerate(asked):
        away = 1 - X @ X[query]
        allowed = np.arange(len(X)) != query
        if not own:
            allowed &= names != names[query]
        others = np.flatnonzero(allowed)
        nearest = others[np.argsort(away[others], kind="stable")[:k]]
        indices[row, : len(nearest)] = nearest
        distances[row, : len(nearest)] = away[nearest].clip(0, 2)
    return indices, distances


# All of them, flat


def flat(
    vectors: NDArray[Any] | Tensor, *, seed: int, units: Sequence[Any] | None = None, most: int = MOST
) -> dict[str, Any]:
    """Vectors (n, D), standardised, in two dimensions: by principal components, and by UMAP (McInnes et al. 2018).

    UMAP lays out at most `most` particles, of units alike many as far as they have them, drawn by the seed; the same seed
    gives the same layout.

    Returns:
        "pca" (n, 2) and "shares" (2,) of the variance; "umap" (n, 2), NaN for particles that were not drawn, or all NaN
        where there are fewer than 10; "note", a sentence on what was laid out.

    Raises:
        BadInput: umap-learn is not installed.
    """
    X = standardised(vectors)
    n = len(X)
    pca, shares, umap = np.zeros((n, 2)), np.zeros(2), np.full((n, 2), np.nan)
    if n < 2 or X.shape[1] == 0:
        return {"pca": pca, "shares": shares, "umap": umap, "note": "There is nothing to lay out."}
    solver = PCA(min(COMPONENTS, *X.shape), svd_solver="full" if X.shape[1] <= 1000 else "auto", random_state=seed)
    scores = solver.fit_transform(X)
    width = min(2, scores.shape[1])
    pca[:, :width], shares[:width] = scores[:, :2], solver.explained_variance_ratio_[:2]
    if n < FEWEST:
        note = f"UMAP needs {FEWEST} particles at least, and was left out."
        return {"pca": pca, "shares": shares, "umap": umap, "note": note}
    try:
        from umap import UMAP
    except ImportError:
        raise BadInput("UMAP needs a package that is not installed: pip install 'unmask[study]'") from None
    drawn = evenly(units if units is not None else np.zeros(n), most, seed)
    near = min(15, len(drawn) - 1)
    layout = UMAP(
        n_neighbors=near, random_state=seed, n_jobs=1, init="spectral" if len(drawn) > 50 else "random", verbose=False
    )
    umap[drawn] = layout.fit_transform(scores[drawn])
    note = (
        f"UMAP of {f'{len(drawn):,} of ' if len(drawn) < n else ''}{n:,} particles, {near} neighbours each, seed {seed}"
    )
    note += ", of each unit alike many as far as it has them." if len(drawn) < n else "."
    return {"pca": pca, "shares": shares, "umap": umap, "note": note}


def evenly(units: Sequence[Any] | NDArray[Any], most: int, seed: int) -> NDArray[np.int64]:
    """Numbers of at most `most` particles, of each unit alike many as far as it has them; in the order of the table."""
    names = np.asarray([str(unit) for unit in units], dtype=object)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    turns = np.empty(
        len(names), dtype=np.int64
    )  # a unit's first particle comes in the first turn, its second in the next
    for name in sorted(set(names)):
        mine = shuffled[names[shuffled] == name]
        turns[mine] = np.arange(len(mine))
    return np.sort(shuffled[np.argsort(turns[shuffled], kind="stable")][:most])
