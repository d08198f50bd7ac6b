"""Linear probes: how far one linear layer gets on frozen features.

`linear`, for thousands of labels: the protocol of MAE (He et al. 2021, appendix A.1), a linear layer behind a batch
norm without affine, no weight decay, warm-up and cosine. Deviations, which make seconds of it instead of hours:
- features are extracted once, from one centred view; the paper draws a new crop and flip each epoch;
- AdamW instead of LARS, batches of 1024 instead of 16384, 50 epochs instead of 90, but 500 steps at least;
- the batch norm judges by the mean of all training batches instead of the latest ones: frozen features do not drift.

`logistic`, for few labels, which an unpenalised layer would learn by heart: logistic regression with the L2 penalty
that cross-validation within the training set likes best.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.evaluate.features import check, standardise
from unmask.evaluate.splits import folds, group_codes, spread
from unmask.methods.method import Method
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe

BATCH = 1024
LEAST_STEPS = 500
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C, the inverse of the L2 penalty, that cross-validation chooses from: each ten times weaker."""
SMALL = 10_000
"""Training vectors up to which `logistic` is worth its time."""
LONG, COMPONENTS = 1024, 256
"""Vectors longer than LONG (raw pixels) go to `logistic` as their first principal components."""


class LinearProbe(Method):
    """One linear layer behind a batch norm without affine, as a method: its views are vectors (B, D) with targets.

    frequencies: how often each class occurs in the training set, (K,), any scale. "uninformed" is their entropy: the
    loss of a model that knows how common each class is and does not look.
    """

    entropy: Tensor

    def __init__(self, width: int, frequencies: Tensor, seed: int = 0):
        super().__init__()
        self.encoder, self.views = nn.Identity(), ()
        # affine is absent as in the paper; momentum=None keeps the plain mean over all batches
        self.norm = nn.BatchNorm1d(width, eps=1e-6, momentum=None, affine=False)
        # built on meta so that the caller's random numbers are left alone
        self.linear = nn.Linear(width, len(frequencies), device="meta").to_empty(device="cpu")
        nn.init.trunc_normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("entropy", torch.special.entr(frequencies.double() / frequencies.sum()).sum().float())

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (vectors,) = batch.views
        assert batch.targets is not None
        return {"loss": F.cross_entropy(self.logits(vectors), batch.targets), "uninformed": self.entropy}

    def logits(self, vectors: Tensor) -> Tensor:
        """Vectors (B, D) to logits (B, K)."""
        return self.linear(self.norm(vectors))


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on one core meanwhile. Steps of a millisecond gain little by being shared, and where other processes want
    the cores, too, the threads of torch and BLAS wait for each other: seen to make a probe a hundred times slower."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def linear(
    train: Tensor,
    train_targets: Tensor,
    test: Tensor,
    classes: int,
    *,
    seed: int = 0,
    epochs: int = 50,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    title: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Predictions (M,) int64 and class probabilities (M, K) float32, on the CPU, of test vectors (M, D).

    train: (N, D) of any scale; train_targets: (N,) int64. It is trained for `epochs`, but for 500 steps at least. A
    step of AdamW moves each weight by about the rate, and so a logit by about D times that: the rate is 10 / D, and at
    most 0.1, with the paper's warm-up of a ninth of the run.

    Raises BadInput for shapes that do not fit, targets out of range, NaN, or fewer than two classes.
    """
    check(train, train_targets, test, classes)
    # Only for the sake of float32 and of the norm's eps: what the layer can learn stays the same.
    mean = train.double().mean(dim=0)
    scale = (train.double() - mean).square().mean().sqrt().clamp(min=1e-30)
    train, test = (((x.double() - mean) / scale).float().to(device) for x in (train, test))
    train_targets = train_targets.to(device)
    batch_size = min(BATCH, len(train))
    per_epoch = len(train) // batch_size  # the rest of a pass is dropped

    def batches(first: int) -> Iterator[Batch]:
        step = first
        while True:
            epoch, start = divmod(step, per_epoch)
            order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(train))).to(device)
            for i in range(start, per_epoch):
                index = order[i * batch_size : (i + 1) * batch_size]
                yield Batch((train[index],), index, index, train_targets[index])
            step = (epoch + 1) * per_epoch

    probe = LinearProbe(train.shape[1], train_targets.bincount(minlength=classes).cpu(), seed)
    steps, lr = max(LEAST_STEPS, epochs * per_epoch), min(0.1, 10 / train.shape[1])
    recipe = Recipe(steps, lr, per_epoch, warmup=steps // 9, weight_decay=0.0, betas=(0.9, 0.999))
    fit(probe, batches, recipe, device=device, title=title)
    with torch.no_grad():
        probabilities = probe.eval().logits(test).softmax(dim=1).cpu()
    return probabilities.argmax(dim=1), probabilities


@one_thread()
def logistic(
    train: Tensor,
    train_targets: Tensor,
    test: Tensor,
    classes: int,
    *,
    groups: Any = None,
    seed: int = 0,
    limit: int = SMALL,
) -> tuple[Tensor, Tensor, float]:
    """Predictions (M,) int64, class probabilities (M, K) float32 on the CPU, and the C that was chosen.

    C, the inverse of the L2 penalty, is that of `PENALTIES` with the best accuracy in three-fold cross-validation (the
    smallest of equals), stratified, and with groups (N,) kept apart where they are given. Of more than `limit` training
    vectors a random `limit` is used, with the classes in proportion: min(N, limit) vectors in all. Vectors are
    standardised; those longer than 1024 are reduced to their first 256 principal components, to be done in seconds. A
    class of one sample (or one group) is learnt, but takes no part in the choice of C; one without any gets
    probability 0.

    Raises BadInput for shapes that do not fit, targets out of range, NaN, or too few samples or groups of two classes.
    """
    check(train, train_targets, test, classes)
    targets = train_targets.cpu().numpy()
    codes = None if groups is None else group_codes(groups, len(targets))
    chosen = stratified(targets, limit, seed)
    targets, codes = targets[chosen], None if codes is None else codes[chosen]
    vectors, unseen = (x.numpy() for x in standardise(train.cpu()[chosen], test.cpu()))
    if vectors.shape[1] > LONG:
        pca = PCA(min(COMPONENTS, len(vectors)), svd_solver="randomized", random_state=seed)
        vectors, unseen = pca.fit_transform(vectors), pca.transform(unseen)

    present, counts = spread(targets, codes)
    common = np.flatnonzero(np.isin(targets, present[counts > 1]))  # of classes that can be both trained on and tested
    splits = folds(targets[common], None if codes is None else codes[common], k=3, seed=seed) if len(common) else []
    splits = [(common[a], common[b]) for a, b in splits if len(np.unique(targets[common[a]])) > 1]
    if not splits:
        what = "samples" if groups is None else "groups"
        raise BadInput(f"to choose the penalty, at least two classes need two {what} each: label more images")
    right = np.zeros(len(PENALTIES), dtype=int)
    for a, b in splits:
        models = path(vectors[a], targets[a], PENALTIES)
        right += [np.count_nonzero(model.predict(vectors[b]) == targets[b]) for model in models]
    best = int(right.argmax())
    *_, model = path(vectors, targets, PENALTIES[: best + 1])
    probabilities = torch.zeros(len(test), classes)
    probabilities[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(unseen)).float()
    return probabilities.argmax(dim=1), probabilities, PENALTIES[best]


def path(vectors: np.ndarray, targets: np.ndarray, penalties: Sequence[float]) -> Iterator[LogisticRegression]:
    """The model at each penalty in turn, begun where the stronger one before it ended: one object, refitted.

    100 steps each: strong penalties converge in fewer, and weak ones need not, for the chosen model goes the same way.
    """
    model = LogisticRegression(warm_start=True, max_iter=100)
    for C in penalties:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield model.set_params(C=C).fit(vectors, targets)


def stratified(targets: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Indices, ascending, of `limit` of the targets (N,), at random with the classes in proportion; all if fewer."""
    n = len(targets)
    if n <= limit:
        return np.arange(n)
    shuffled = np.random.default_rng(seed).permutation(n)
    by_class = shuffled[targets[shuffled].argsort(kind="stable")]
    return np.sort(by_class[np.arange(limit) * n // limit])  # every n/limit-th of them
