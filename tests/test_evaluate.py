"""Features, probes, scores and splits: against naive loops, against scikit-learn, against what statistics promise."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from unmask.data.decode import Preprocess
from unmask.data.loader import Batch
from unmask.data.source import Source
from unmask.errors import BadInput
from unmask.evaluate import features, knn, linear, metrics, splits
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe

CPU = torch.device("cpu")


class InMemory(list):
    def sizes(self):
        return np.ones(len(self), dtype=np.int64)


def source_of(items) -> Source:
    table = pd.DataFrame({"path": [f"image {i}" for i in range(len(items))]})
    return Source("toy", table, (), InMemory(items), np.arange(len(items)))


def noise(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def digits():
    """Train vectors and targets, test vectors and targets: every third digit is tested."""
    images, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32), torch.tensor(targets, dtype=torch.int64)
    test = torch.arange(len(x)) % 3 == 0
    return x[~test], y[~test], x[test], y[test]


def separable(n: int, width: int = 16, classes: int = 4, seed: int = 0):
    """Vectors (n, width) around one centre a class, and their targets."""
    targets = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    return 3 * noise(classes, width, seed=99)[targets] + noise(n, width, seed=seed + 1), targets


def shuffled(targets):
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(3))]


def accuracy(predictions, targets) -> float:
    return (predictions == targets).float().mean().item()


# Features

GREY = Preprocess(1, (0.5,), (0.25,))


def images_of(n: int, channels: int, height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator))


def test_pixels_are_the_normalised_images_in_order():
    images = images_of(7, 1, 8, 8)
    vectors, index = features.pixels(source_of(images), GREY, (8, 8), batch_size=3)
    torch.testing.assert_close(vectors, (torch.stack(images).float() / 255 - 0.5).flatten(1) / 0.25)
    assert index.tolist() == list(range(7)) and index.dtype == torch.int64 and vectors.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 300), st.integers(1, 300))
def test_pixels_never_exceed_their_limit_and_keep_the_mean(C, H, W):
    image = noise(1, C, H, W)
    vector = features.Pixels()(image)
    assert C <= vector.shape[1] <= features.PIXELS and vector.shape[1] % C == 0
    if C * H * W <= features.PIXELS:
        assert torch.equal(vector, image.flatten(1))
    flat = torch.full((1, C, H, W), 2.5)
    torch.testing.assert_close(features.Pixels()(flat), torch.full_like(vector, 2.5))


def test_large_images_become_32_by_32():
    assert features.Pixels()(torch.zeros(2, 3, 224, 224)).shape == (2, 32 * 32 * 3)


def test_unreadable_images_are_left_out_told_or_refused():
    images = images_of(6, 1, 8, 8)
    whole, _ = features.pixels(source_of(images), GREY, (8, 8))
    items = [*images[:2], b"not an image", *images[3:]]
    told = []
    vectors, index = features.pixels(
        source_of(items), GREY, (8, 8), batch_size=2, unreadable=lambda *why: told.append(why)
    )
    assert index.tolist() == [0, 1, 3, 4, 5]
    assert torch.equal(vectors, whole[index])
    assert [path for path, _ in told] == ["image 2"]
    with pytest.raises(BadInput, match="none of 2 images"):
        features.pixels(source_of([b"x", b"y"]), GREY, (8, 8))


def test_extract_leaves_modes_and_random_numbers_as_they_were(capsys):
    frozen = nn.BatchNorm1d(64)
    encoder = nn.Sequential(nn.Flatten(), frozen, nn.Dropout(0.9), nn.Linear(64, 5))
    frozen.eval()
    source, state = source_of(images_of(9, 1, 8, 8)), torch.get_rng_state()
    options = {"device": CPU, "precision": "float32", "batch_size": 4}
    first, _ = features.extract(encoder, source, GREY, (8, 8), title="features", **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training and encoder[2].training and not frozen.training
    again, _ = features.extract(encoder, source, GREY, (8, 8), **options)
    assert torch.equal(first, again)  # dropout is off
    assert first.shape == (9, 5) and not first.requires_grad
    rough, _ = features.extract(encoder, source, GREY, (8, 8), **{**options, "precision": "bf16"})
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, first, atol=0.1, rtol=0.1)

    def stumble(*_):
        raise RuntimeError

    encoder[3].forward = stumble
    with pytest.raises(RuntimeError):
        features.extract(encoder, source, GREY, (8, 8), **options)
    assert encoder.training and not frozen.training


@pytest.mark.parametrize(
    ("train", "targets", "test", "line"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.zeros(1, 3), "shape"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.zeros(0, 2), "shape"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), torch.zeros(1, 2), "targets"),
        (torch.zeros(3, 2), torch.tensor([0.0, 1, 2]), torch.zeros(1, 2), "targets"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 3]), torch.zeros(1, 2), "0 to 2"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -1]), torch.zeros(1, 2), "0 to 2"),
        (torch.zeros(3, 2), torch.tensor([1, 1, 1]), torch.zeros(1, 2), "two classes"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(1, 2), "two classes"),
        (torch.full((3, 2), math.nan), torch.tensor([0, 1, 2]), torch.zeros(1, 2), "diverged"),
    ],
)
def test_every_probe_refuses_what_it_cannot_use(train, targets, test, line):
    for probe in (knn.predict, linear.linear, linear.logistic):
        with pytest.raises(BadInput, match=line) as refused:
            probe(train, targets, test, 3)
        assert "\n" not in str(refused.value)


# Nearest neighbours


def test_standardise_takes_its_scale_from_the_training_vectors_alone_and_leaves_constants():
    train = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 0.01, 0.0]) + 3
    scaled, other = features.standardise(train, train + torch.tensor([5.0, 0.01, 1.0]))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, correction=0), torch.tensor([1.0, 1.0, 0.0]))
    deviation = train.double().std(dim=0, correction=0)
    moved = torch.tensor([5.0, 0.01, 1.0]) / deviation.where(deviation > 0, 1).float()
    torch.testing.assert_close((other - scaled).mean(dim=0), moved)


def naive_knn(train, targets, test, classes, k, temperature):
    similarities = (F.normalize(test, dim=1).double() @ F.normalize(train, dim=1).double().T).float()
    votes = np.zeros((len(test), classes))
    for row, vote in zip(similarities.tolist(), votes, strict=True):
        for i in sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]:
            vote[targets[i]] += math.exp((row[i] - max(row)) / temperature)
    return torch.from_numpy(votes / votes.sum(axis=1, keepdims=True))


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 45), st.integers(0, 10_000), st.sampled_from([0.07, 1.0]))
def test_knn_is_the_naive_loop_ties_included(n, m, k, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-1, 2, (n + m, 3), generator=generator).float()  # few directions, so many ties
    train, test = vectors[:n], vectors[n:]
    targets = torch.randint(4, (n,), generator=generator)
    assume(len(targets.unique()) > 1)
    predictions, probabilities = knn.predict(train, targets, test, 4, k=k, temperature=temperature)
    expected = naive_knn(train, targets, test, 4, k, temperature)
    torch.testing.assert_close(probabilities.double(), expected, atol=1e-5, rtol=1e-4)
    best = expected.gather(1, predictions[:, None])[:, 0]
    torch.testing.assert_close(best, expected.amax(dim=1), atol=1e-9, rtol=1e-9)


def test_knn_is_sklearns(monkeypatch):
    train, targets, test, _ = digits()
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", 100_000)  # several chunks
    predictions, probabilities = knn.predict(train, targets, test, 10)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = reference.fit(train.double().numpy(), targets.numpy()).predict_proba(test.double().numpy())
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert torch.equal(predictions, torch.from_numpy(expected.argmax(axis=1)))


@st.composite
def crowds(draw):
    """Training and test vectors that are hard to tell apart: few values, copies, differences that bf16 cannot see."""
    n, m, D = draw(st.integers(1, 400)), draw(st.integers(1, 6)), draw(st.integers(1, 48))
    x = noise(n + m, D, seed=draw(st.integers(0, 10_000)))
    kind = draw(st.sampled_from(["spread", "close", "few values", "copies", "zeros", "halfway"]))
    if kind == "close":
        x = x[:1] + draw(st.sampled_from([1e-1, 1e-2, 1e-3, 1e-5, 1e-7])) * x
    elif kind == "few values":
        x = x.sign()
    elif kind == "copies":
        x = x[torch.arange(n + m) % draw(st.integers(1, 60))]
    elif kind == "zeros":
        x[torch.arange(n + m) % draw(st.integers(1, 4)) == 0] = 0
    elif kind == "halfway":  # between two numbers of bf16, as 1 / sqrt(254) is: rounding takes as much as it can
        x = 1 + 1e-4 * noise(n + m, 254, seed=n)
        x[n:, ::2] *= -1
    return F.normalize(x[:n], dim=1), F.normalize(x[n:], dim=1), draw(st.integers(1, 30))


@settings(max_examples=200, deadline=None)
@given(crowds(), st.sampled_from(["bf16", "float32"]), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_filter_of_knn_loses_nothing(crowd, precision, crowded):
    train, test, k = crowd
    k = min(k, len(train))
    exact = (test.double() @ train.double().T).float()
    values, places = exact.sort(dim=1, descending=True, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "choose_precision", lambda *_: (precision, ""))
        patch.setattr(knn, "CROWDED", crowded)  # 0: all multiplied in float64; 1: all picked out
        rough = knn.Rough(train, k)
        room = rough.train.new_empty(len(test), len(rough.train))
        similarity, neighbour = knn.neighbours(train, test, rough, room)
    assert torch.equal(similarity, values[:, :k])
    assert torch.equal(neighbour.sort(dim=1).values, places[:, :k].sort(dim=1).values)  # among equals in any order


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_filter_of_knn_leaves_few_to_be_computed_again(precision, monkeypatch):
    monkeypatch.setattr(knn, "choose_precision", lambda *_: (precision, ""))
    train, test = F.normalize(noise(8000, 64), dim=1), F.normalize(noise(10, 64, seed=1), dim=1)
    rough = knn.Rough(train, 20)
    row, _ = rough.candidates(test, rough.train.new_empty(10, len(rough.train)))
    count = row.bincount(minlength=10)
    assert (count >= 20).all() and (count < knn.CROWDED * 8000).all()


def test_knn_on_collapsed_features_counts_the_first_k():
    targets = torch.tensor([2] * 3 + [1] * 2 + [0] * 95)
    predictions, probabilities = knn.predict(torch.ones(100, 4), targets, torch.ones(6, 4), 3, k=5)
    assert predictions.tolist() == [2] * 6
    torch.testing.assert_close(probabilities, torch.tensor([[0.0, 0.4, 0.6]]).expand(6, 3))
    tie, _ = knn.predict(torch.ones(4, 4), torch.tensor([2, 1, 1, 2]), torch.ones(1, 4), 3)
    assert tie.tolist() == [1]


# The linear layer


def test_linear_finds_what_is_there_and_nothing_else():
    train, targets = separable(600)
    test, truth = separable(400, seed=7)
    predictions, probabilities = linear.linear(train, targets, test, 4, seed=0)
    assert accuracy(predictions, truth) > 0.97
    assert probabilities.shape == (400, 4)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(400))
    predictions, _ = linear.linear(train, shuffled(targets), test, 4, seed=0)
    assert accuracy(predictions, shuffled(truth)) == pytest.approx(0.25, abs=0.07)


def test_linear_reads_digits_at_any_scale():
    train, targets, test, truth = digits()
    for scale, shift in [(1.0, 0.0), (1e-6, 0.0), (1e5, 0.0), (0.01, 100.0)]:
        predictions, _ = linear.linear(train * scale + shift, targets, test * scale + shift, 10, seed=0)
        assert accuracy(predictions, truth) > 0.92, (scale, shift)


def test_the_norm_is_what_makes_small_features_count(monkeypatch):
    """The answer lies in one dimension, a thousandth of the size of the others: without batch norm it is not found."""
    targets = torch.arange(800) % 2
    vectors = noise(800, 8)
    vectors[:, 3] = 1e-3 * (2.0 * targets - 1)
    halves = vectors[:600], targets[:600], vectors[600:], 2
    assert accuracy(linear.linear(*halves)[0], targets[600:]) == 1.0
    monkeypatch.setattr(linear.nn, "BatchNorm1d", lambda width, **_: nn.Identity())
    assert accuracy(linear.linear(*halves)[0], targets[600:]) < 0.8


def test_the_probe_is_a_method_that_starts_uninformed_and_learns():
    vectors, targets = separable(512)
    frequencies = targets.bincount(minlength=5)  # one class never occurs
    probe = linear.LinearProbe(16, frequencies, seed=1)
    assert {name for name, _ in probe.named_parameters()} == {"linear.weight", "linear.bias"}  # no affine in the norm
    index = torch.arange(512)
    batch = Batch((vectors,), index, index, targets)
    values = probe(batch, Clock(0, 1, 0.0))
    share = frequencies[:4] / 512
    assert values["uninformed"].item() == pytest.approx(-(share * share.log()).sum().item(), rel=1e-5)
    assert values["loss"].item() == pytest.approx(math.log(5), abs=0.1)
    values["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in probe.parameters())

    def batches(first):
        while True:
            yield batch

    with linear.one_thread():
        log = fit(probe, batches, Recipe(100, 0.1, weight_decay=0.0))
    assert log[-1]["ratio"] < 0.1
    # the norm judges by the mean over all its batches: here, all the same one
    torch.testing.assert_close(probe.norm.running_mean, vectors.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.norm.running_var, vectors.var(0), atol=1e-3, rtol=1e-3)


def test_linear_is_repeatable_and_leaves_random_numbers_alone():
    train, targets = separable(300)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = linear.linear(train, targets, train, 4, seed=5)[1]
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.testing.assert_close(linear.linear(train, targets, train, 4, seed=5)[1], first, atol=1e-5, rtol=1e-4)
    assert not torch.equal(linear.linear(train, targets, train, 4, seed=6)[1], first)


@pytest.mark.parametrize("probe", [linear.linear, linear.logistic])
def test_collapsed_features_tell_how_common_each_class_is(probe):
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    predictions, probabilities, *_ = probe(torch.full((100, 8), 3.3), targets, torch.full((4, 8), 3.3), 3)
    assert predictions.tolist() == [0] * 4
    torch.testing.assert_close(probabilities, torch.tensor([[0.6, 0.3, 0.1]]).expand(4, 3), atol=0.02, rtol=0)


# Logistic regression


def test_logistic_is_sklearns_at_the_penalty_it_chose():
    train, targets, test, truth = digits()
    predictions, probabilities, C = linear.logistic(train, targets, test, 10, seed=0)
    assert accuracy(predictions, truth) > 0.94 and C in linear.PENALTIES
    mean, std = train.mean(0), train.std(0, unbiased=False)
    std[std == 0] = 1  # the corners of a digit are always blank
    with linear.one_thread():
        reference = LogisticRegression(C=C, max_iter=2000).fit(((train - mean) / std).double(), targets)
    np.testing.assert_allclose(probabilities, reference.predict_proba(((test - mean) / std).double()), atol=0.02)


def test_logistic_finds_what_is_there_and_nothing_else():
    train, targets = separable(300, width=64)
    test, truth = separable(400, width=64, seed=7)
    assert accuracy(linear.logistic(train, targets, test, 4)[0], truth) > 0.97
    predictions, _, _ = linear.logistic(train, shuffled(targets), test, 4)
    assert accuracy(predictions, shuffled(truth)) == pytest.approx(0.25, abs=0.07)


def test_logistic_keeps_groups_apart_when_it_chooses():
    """Forty groups of one class each: each group has a loud mark of its own, each class a faint one. Split by sample,
    the marks tell the class and weak penalties win; split by group, they tell nothing."""
    rng = np.random.default_rng(0)
    groups = np.arange(40).repeat(10)
    targets = torch.from_numpy(groups % 2)
    marks = rng.normal(size=(40, 60))[groups] * 3
    faint = (2 * targets.numpy() - 1)[:, None] * 0.5
    vectors = torch.from_numpy(np.hstack([marks, faint]) + rng.normal(size=(400, 61))).float()
    by_sample = linear.logistic(vectors, targets, vectors, 2)[2]
    by_group = linear.logistic(vectors, targets, vectors, 2, groups=[f"site {g}" for g in groups])[2]
    assert by_group < by_sample


def test_logistic_with_rare_and_missing_classes():
    train, targets = separable(200)
    targets[targets == 3] = 2
    targets[0] = 4  # once only
    _, probabilities, _ = linear.logistic(train, targets, train, 6)
    assert probabilities.shape == (200, 6)
    assert probabilities[:, [3, 5]].abs().sum() == 0 and probabilities[:, 4].sum() > 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(200))
    with pytest.raises(BadInput, match="two samples each"):
        linear.logistic(train[:2], torch.tensor([0, 1]), train, 2)
    with pytest.raises(BadInput, match="two groups each"):
        linear.logistic(train[:4], torch.tensor([0, 1, 0, 1]), train, 2, groups=list("aaaa"))


def test_logistic_reduces_long_vectors_and_large_sets():
    train, targets = separable(900, width=1500)
    test, truth = separable(200, width=1500, seed=7)
    predictions, _, _ = linear.logistic(train, targets, test, 4, limit=300)
    assert accuracy(predictions, truth) > 0.97


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 150), st.integers(0, 5))
def test_stratified_takes_the_limit_in_proportion(targets, limit, seed):
    targets = np.array(targets)
    chosen = linear.stratified(targets, limit, seed)
    assert len(chosen) == min(limit, len(targets)) == len(np.unique(chosen))
    got, all_of = (np.bincount(x, minlength=6) for x in (targets[chosen], targets))
    assert (abs(got - all_of * len(chosen) / len(targets)) <= 1).all()


# Scores


def test_score_by_hand():
    found = metrics.score([0, 0, 1, 1, 0], [0, 0, 0, 1, 1], 4)
    assert (found.accuracy, found.n) == (0.6, 5)
    assert found.balanced == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert 0 <= found.low <= found.accuracy <= found.high <= 1
    assert found.balanced_low <= found.balanced <= found.balanced_high
    assert set(found.to_dict()) == {"accuracy", "low", "high", "balanced", "balanced_low", "balanced_high", "n"}
    assert metrics.score(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1]), 4) == found
    perfect = metrics.score([0, 1, 1], [0, 1, 1], 2)
    assert (perfect.low, perfect.high, perfect.balanced) == (1, 1, 1)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_bootstrap_is_the_naive_one(clustered, monkeypatch):
    """The same two intervals from a loop that draws the samples, or the groups, one by one."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 30, size=240)
    targets = rng.choice(3, p=[0.7, 0.25, 0.05], size=240)
    right = rng.random(240) < np.where(groups < 15, 0.9, 0.4)
    predictions = np.where(right, targets, (targets + 1) % 3)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 5000)  # several chunks
    found = metrics.score(predictions, targets, 3, groups=groups if clustered else None, resamples=4000)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)] if clustered else np.arange(240)[:, None]
    plain, balanced = [], []
    for _ in range(4000):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        hits = right[drawn]
        plain.append(hits.mean())
        balanced.append(np.mean([hits[targets[drawn] == c].mean() for c in np.unique(targets[drawn])]))
    expected = [*np.quantile(plain, [0.025, 0.975]), *np.quantile(balanced, [0.025, 0.975])]
    np.testing.assert_allclose([found.low, found.high, found.balanced_low, found.balanced_high], expected, atol=0.015)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered, covered_80, balanced = [], [], []
    for seed in range(400):
        targets = rng.choice(3, p=[0.6, 0.3, 0.1], size=300)
        right = rng.random(300) < np.array([0.9, 0.6, 0.5])[targets]
        predictions = np.where(right, targets, (targets + 1) % 3)
        found = metrics.score(predictions, targets, 3, seed=seed, resamples=400)
        narrow = metrics.score(predictions, targets, 3, seed=seed, resamples=400, level=0.8)
        covered.append(found.low <= 0.77 <= found.high)
        covered_80.append(narrow.low <= 0.77 <= narrow.high)
        balanced.append(found.balanced_low <= 2 / 3 <= found.balanced_high)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert 0.73 <= np.mean(covered_80) <= 0.87
    assert 0.90 <= np.mean(balanced) <= 0.98


def test_only_the_cluster_bootstrap_covers_where_groups_are_alike():
    """Forty groups of twenty, each with an accuracy of its own about 0.7."""
    rng = np.random.default_rng(0)
    groups, targets = np.arange(40).repeat(20), np.tile([0, 1], 400)
    covered, naive, wider = [], [], []
    for seed in range(200):
        right = rng.random(800) < rng.beta(1.4, 0.6, size=40)[groups]
        predictions = np.where(right, targets, 1 - targets)
        a = metrics.score(predictions, targets, 2, groups=groups, seed=seed, resamples=400)
        b = metrics.score(predictions, targets, 2, seed=seed, resamples=400)
        covered.append(a.low <= 0.7 <= a.high)
        naive.append(b.low <= 0.7 <= b.high)
        wider.append((a.high - a.low) / (b.high - b.low))
        assert a.accuracy == b.accuracy and a.balanced == b.balanced
    assert 0.89 <= np.mean(covered) <= 0.98
    assert np.mean(naive) < 0.7
    assert np.mean(wider) > 2


def test_groups_of_one_are_samples():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(0, 2, size=(2, 500))
    a = metrics.score(predictions, targets, 2, resamples=4000)
    b = metrics.score(predictions, targets, 2, groups=[f"group {i}" for i in range(500)], resamples=4000)
    np.testing.assert_allclose([a.low, a.high, a.balanced_low], [b.low, b.high, b.balanced_low], atol=0.008)


def test_majority_is_the_commonest_class_of_the_training_set():
    found = metrics.majority([2, 2, 1, 0], [0, 1, 2, 2, 2], 3)
    assert (found.accuracy, found.balanced) == (0.6, pytest.approx(1 / 3))
    assert metrics.majority([1, 0], [0, 0, 1], 2).accuracy == pytest.approx(2 / 3)  # of several the first
    with pytest.raises(BadInput, match="training samples"):
        metrics.majority([], [0, 1], 2)


@pytest.mark.parametrize(
    ("predictions", "targets", "options", "line"),
    [
        ([], [], {}, "some"),
        ([0, 1], [0], {}, "one of each"),
        ([[0, 1]], [[0, 1]], {}, "one of each"),
        ([0, 2], [0, 1], {}, "predictions must be"),
        ([0, 1], [0, -1], {}, "targets must be"),
        ([0.0, 1.0], [0, 1], {}, "predictions must be"),
        ([0, 1], [0, 1], {"resamples": 0}, "resamples"),
        ([0, 1], [0, 1], {"level": 95}, "level"),
        ([0, 1], [0, 1], {"groups": ["a", "a"]}, "at least two"),
        ([0, 1], [0, 1], {"groups": ["a"]}, "1 groups for 2"),
        ([0, 1], [0, 1], {"groups": ["a", None]}, "no group"),
    ],
)
def test_score_refuses_what_cannot_be_judged(predictions, targets, options, line):
    with pytest.raises(BadInput, match=line) as refused:
        metrics.score(predictions, targets, 2, **options)
    assert "\n" not in str(refused.value)


# Splits


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=120),
    st.booleans(),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_folds_test_every_sample_once_and_no_group_twice(samples, grouped, k, seed):
    targets, groups = (np.array(column) for column in zip(*samples, strict=True))
    names = np.array([f"site {g}" for g in groups]) if grouped else None
    fewest = min(len(set(groups[targets == c])) if grouped else (targets == c).sum() for c in targets)
    try:
        made = splits.folds(targets, names, k, seed)
    except BadInput:
        assert fewest < 2 or grouped
        return
    assert 2 <= len(made) <= min(k, fewest)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in made])), np.arange(len(targets)))
    for train, test in made:
        assert len(train) > 0 and len(test) > 0
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(targets)))
        if grouped:
            assert not set(groups[train]) & set(groups[test])


def test_folds_are_stratified_and_repeatable():
    targets = np.array([0] * 80 + [1] * 20)
    made = splits.folds(targets, k=5, seed=1)
    assert [(targets[test] == 1).sum() for _, test in made] == [4] * 5
    again, other = splits.folds(targets, k=5, seed=1), splits.folds(targets, k=5, seed=2)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(made, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(made, other, strict=True))


def test_folds_shrink_or_say_why_not():
    assert len(splits.folds([0] * 10 + [1] * 3, k=5)) == 3
    assert len(splits.folds([0, 1] * 6, groups=list("aabbcc") * 2, k=5)) == 3
    with pytest.raises(BadInput, match="class 1 has one sample only"):
        splits.folds([0, 0, 0, 1])
    with pytest.raises(BadInput, match="class 1 lies in one group only"):
        splits.folds([0, 0, 1, 1], groups=["a", "b", "b", "b"])
    with pytest.raises(BadInput, match="no group"):
        splits.folds([0, 0, 1, 1], groups=["a", "b", "b", float("nan")])
    with pytest.raises(BadInput, match="at least two"):
        splits.folds([0, 1, 0, 1], k=1)
    with pytest.raises(BadInput, match="0 samples"):
        splits.folds([])
