"""Reports of classifiers: against scikit-learn, against loops, and against what statistics promise."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)

from unmask.errors import BadInput
from unmask.evaluate import metrics, predictions

NAMES = ["axe", "blade", "core", "disc", "end scraper"]


def answers(n: int, K: int = 5, seed: int = 0, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, K) that know something of their targets (n,), rarer ones last."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(K, p=np.arange(K, 0, -1) / np.arange(K + 1).sum(), size=n)
    logits = rng.normal(size=(n, K)) + 2 * np.eye(K)[targets]
    return torch.softmax(torch.from_numpy(sharp * logits), dim=1).numpy(), targets


def intervals(found: dict):
    """Every (low, value, high) of a report."""
    for name in ("accuracy", "balanced", "brier", "nll", "map", "micro_f1"):
        if name in found:
            start = "" if name in ("accuracy", "map") else f"{name}_"
            yield found[f"{start}low"], found[name], found[f"{start}high"]
    for one in found["classes"]:
        yield one["low"], one.get("recall") if "average_precision" not in one else one["average_precision"], one["high"]
    if "calibration" in found:
        c = found["calibration"]
        yield c["low"], c["ece"], c["high"]
        yield c["gap_low"], c["gap"], c["gap_high"]


def same(a, b) -> bool:
    """Equal but for rounding, at any depth; sentences apart."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "sentence")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a == pytest.approx(b, abs=1e-9)


def test_a_report_is_that_of_scikit_learn():
    probabilities, targets = answers(400)
    named = probabilities.argmax(1)
    found = metrics.report(probabilities, targets, NAMES, train_targets=[0, 0, 1], resamples=100)
    assert found["confusion"] == confusion_matrix(targets, named).tolist()
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, named))
    assert found["balanced"] == pytest.approx(balanced_accuracy_score(targets, named))
    assert [c["recall"] for c in found["classes"]] == pytest.approx(recall_score(targets, named, average=None))
    assert [c["precision"] for c in found["classes"]] == pytest.approx(precision_score(targets, named, average=None))
    assert [c["n"] for c in found["classes"]] == np.bincount(targets).tolist()
    assert [c["predicted"] for c in found["classes"]] == np.bincount(named).tolist()
    assert found["nll"] == pytest.approx(log_loss(targets, probabilities))
    assert found["brier"] == pytest.approx(np.square(probabilities - np.eye(5)[targets]).sum(1).mean())
    assert found["majority"]["accuracy"] == pytest.approx((targets == 0).mean())
    json.dumps(found, allow_nan=False)


def test_calibration_error_is_that_of_a_loop():
    probabilities, targets = answers(700, sharp=3)
    probabilities[:5] = [1.0, 0, 0, 0, 0]
    probabilities[5:10] = [1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6]  # an edge belongs to the bin below it
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    expected, bins = 0.0, []
    for m in range(15):
        inside = (confidence > np.linspace(0, 1, 16)[m]) & (confidence <= np.linspace(0, 1, 16)[m + 1])
        bins.append(int(inside.sum()))
        if inside.any():
            expected += inside.sum() / 700 * abs(right[inside].mean() - confidence[inside].mean())
    found = metrics.report(probabilities, targets, NAMES, resamples=50)["calibration"]
    assert found["ece"] == pytest.approx(expected) and [b["n"] for b in found["bins"]] == bins
    assert found["gap"] == pytest.approx(confidence.mean() - right.mean())
    assert found["bins"][0]["accuracy"] is None and found["bins"][-1]["accuracy"] <= 1


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_are_those_of_a_loop(clustered, monkeypatch):
    probabilities, targets = answers(240, seed=1)
    groups = np.random.default_rng(0).integers(0, 30, size=240)
    named = np.where((groups < 15) & (targets > 0), 0, probabilities.argmax(1))  # some groups are hard
    probabilities[np.arange(240), named] += 1
    probabilities /= probabilities.sum(1, keepdims=True)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 50_000)  # several chunks
    found = metrics.report(probabilities, targets, NAMES, groups=groups if clustered else None, resamples=3000)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)] if clustered else np.arange(240)[:, None]
    rng, right, confidence = np.random.default_rng(5), named == targets, probabilities.max(1)
    nll = -np.log(probabilities[np.arange(240), targets])
    loop = []
    for _ in range(3000):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        hits = right[drawn]
        of_first = hits[targets[drawn] == 0].mean()
        loop.append([hits.mean(), of_first, nll[drawn].mean(), confidence[drawn].mean() - hits.mean()])
    low, high = np.quantile(loop, [0.025, 0.975], axis=0)
    first, calibration = found["classes"][0], found["calibration"]
    got = [[found["low"], first["low"], found["nll_low"], calibration["gap_low"]]]
    got += [[found["high"], first["high"], found["nll_high"], calibration["gap_high"]]]
    np.testing.assert_allclose(got, [low, high], atol=0.02)
    wide = metrics.score(named, targets, 5, groups=groups if clustered else None, resamples=3000)
    assert [found["low"], found["high"]] == pytest.approx([wide.low, wide.high], abs=0.015)


@pytest.mark.parametrize("true", [0.0, 0.05])
def test_the_interval_of_the_calibration_error_holds_the_truth(true):
    """Two classes, confidences of 0.55 to 0.99: percentiles of resamples would hold 0 never, and 0.05 in 62% of these tests."""
    rng, covered, found = np.random.default_rng(0), [], []
    for seed in range(80):
        confidence = rng.uniform(0.55, 0.99, size=250)
        targets = (rng.random(250) >= confidence - true).astype(int)
        probabilities = np.stack([confidence, 1 - confidence], 1)
        found.append(metrics.report(probabilities, targets, ["a", "b"], resamples=200, seed=seed)["calibration"])
        covered.append(found[-1]["low"] <= true <= found[-1]["high"])
        assert found[-1]["low"] >= max(found[-1]["gap_low"], -found[-1]["gap_high"])
    assert np.mean(covered) >= 0.85
    above, under = (np.mean([abs(one[end] - one["ece"]) for one in found]) for end in ("high", "low"))
    assert above < under, "an ECE is too high, if anything"
    if true == 0:
        by_chance, measured = (np.mean([one[key] for one in found]) for key in ("by_chance", "ece"))
        assert by_chance == pytest.approx(measured, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 5), st.integers(0, 1000), st.booleans())
def test_a_report_does_not_depend_on_the_order_and_holds_what_it_found(n, K, seed, grouped):
    probabilities, targets = answers(n, K, seed, sharp=5)
    rng = np.random.default_rng(seed)
    groups = [f"site {g}" for g in rng.permutation(np.arange(n) % 7)] if grouped else None
    found = metrics.report(probabilities, targets, NAMES[:K], groups=groups, resamples=20)
    order = rng.permutation(n)
    again = metrics.report(
        probabilities[order],
        targets[order],
        NAMES[:K],
        groups=[groups[i] for i in order] if groups else None,
        resamples=20,
    )
    assert same(found, again)
    for low, value, high in intervals(found):
        assert (low is None and value is None) or low <= value <= high
    json.dumps(found, allow_nan=False)


def test_perfect_and_missing_and_never_named():
    found = metrics.report(np.eye(3)[[0, 1, 1, 0]], [0, 1, 1, 0], ["a", "b", "c"])
    assert [found[k] for k in ("accuracy", "low", "high", "balanced", "brier", "nll")] == [1, 1, 1, 1, 0, 0]
    assert found["calibration"]["ece"] == found["calibration"]["high"] == found["calibration"]["by_chance"] == 0
    c = found["classes"][2]
    assert (c["n"], c["recall"], c["low"], c["high"], c["precision"], c["predicted"]) == (0, None, None, None, None, 0)
    assert "all of every class were found; 1 of 3 classes had no image" in found["sentence"]
    wrong = metrics.report(np.eye(2, dtype=np.float32)[[1, 0]], [0, 1], ["a", "b"])
    assert wrong["accuracy"] == 0 and wrong["brier"] == 2 and wrong["nll"] == pytest.approx(-np.log(2**-23))


def test_the_sentence():
    probabilities, targets = answers(1000, sharp=4)
    said = metrics.report(probabilities, targets, NAMES, train_targets=targets)["sentence"]
    assert said.startswith("On images it never saw (1,000): accuracy 0.") and "too sure of itself" in said
    assert "where always naming the commonest class would get 0.3" in said and " found." in said
    assert "too unsure" in metrics.report(*answers(1000, sharp=0.3), NAMES)["sentence"]
    assert "as sure of itself as it is right" in metrics.report(*answers(1000, sharp=2), NAMES)["sentence"]


def test_several_labels_are_judged_as_by_scikit_learn():
    rng = np.random.default_rng(0)
    targets = rng.random((300, 5)) < np.array([0.5, 0.3, 0.2, 0.05, 0])
    probabilities = np.round(1 / (1 + np.exp(-rng.normal(size=(300, 5)) - 2 * targets + 1)), 2)  # with ties
    found = metrics.report_multilabel(torch.from_numpy(probabilities), targets, NAMES, resamples=100)
    expected = [average_precision_score(targets[:, k], probabilities[:, k]) for k in range(4)]
    assert [c["average_precision"] for c in found["classes"][:4]] == pytest.approx(expected)
    assert found["map"] == pytest.approx(np.mean(expected)) and found["left_out"] == ["end scraper"]
    assert found["micro_f1"] == pytest.approx(f1_score(targets, probabilities >= 0.5, average="micro"))
    recalls = recall_score(targets, probabilities >= 0.5, average=None, zero_division=0)
    assert [c["recall"] for c in found["classes"][:4]] == pytest.approx(recalls[:4])
    assert found["by_chance"] == pytest.approx(targets[:, :4].mean()) and "end scraper" in found["sentence"]
    assert all(low is None or low <= value <= high for low, value, high in intervals(found))
    json.dumps(found, allow_nan=False)
    order = rng.permutation(300)
    assert same(found, metrics.report_multilabel(probabilities[order], targets[order], NAMES, resamples=100))
    perfect = metrics.report_multilabel(targets.astype(float), targets, NAMES, resamples=20)
    assert [perfect[k] for k in ("map", "low", "high", "micro_f1")] == [1, 1, 1, 1]


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_of_several_labels_are_those_of_a_loop(clustered):
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 25, size=150)
    targets = rng.random((150, 2)) < 0.3
    probabilities = 1 / (1 + np.exp(-rng.normal(size=(150, 2)) - (3 * targets - 1) * (groups < 12)[:, None]))
    found = metrics.report_multilabel(probabilities, targets, ["a", "b"], groups=groups if clustered else None)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)] if clustered else np.arange(150)[:, None]
    loop = []
    for _ in range(200):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        loop.append([average_precision_score(targets[drawn, k], probabilities[drawn, k]) for k in (0, 1)])
    expected = np.quantile(np.mean(loop, axis=1), [0.025, 0.975])
    np.testing.assert_allclose([found["low"], found["high"]], expected, atol=0.04)


def test_seeds_put_reports_together():
    reports = [metrics.report(*answers(200, seed=s), NAMES, resamples=10) for s in range(3)]
    found = metrics.seeds(reports)
    accuracies = [r["accuracy"] for r in reports]
    assert found["accuracy"] == {
        "mean": pytest.approx(np.mean(accuracies)),
        "deviation": pytest.approx(np.std(accuracies, ddof=1)),
        "n": 3,
    }
    assert found["ece"]["mean"] == pytest.approx(np.mean([r["calibration"]["ece"] for r in reports]))
    assert {"balanced", "brier", "nll", "gap"} < set(found) and metrics.seeds(reports[:1])["nll"]["deviation"] is None
    several = metrics.report_multilabel(np.eye(5), np.eye(5), NAMES, resamples=10)
    assert metrics.seeds([several, several])["map"] == {"mean": 1.0, "deviation": 0.0, "n": 2}
    for wrong in ([], [reports[0], several]):
        with pytest.raises(BadInput, match="reports to put together"):
            metrics.seeds(wrong)


GOOD = np.array([[0.5, 0.5], [0.9, 0.1]])


@pytest.mark.parametrize(
    ("probabilities", "targets", "options", "line"),
    [
        (np.zeros((0, 2)), [], {}, "and some"),
        (GOOD, [0], {}, "one of each"),
        (GOOD[0], [0, 1], {}, "one of each"),
        (np.full((2, 3), 1 / 3), [0, 1], {}, "one of each"),
        (GOOD, [0, 2], {}, "whole numbers from 0 to 1"),
        (GOOD, [0, -1], {}, "without a label"),
        (GOOD, [0.0, 1.0], {}, "whole numbers"),
        (GOOD / 2, [0, 1], {}, "not sum to 1"),
        (GOOD * np.nan, [0, 1], {}, "from 0 to 1"),
        (GOOD - 0.5, [0, 1], {}, "from 0 to 1"),
        (GOOD, [0, 1], {"resamples": 0}, "resamples"),
        (GOOD, [0, 1], {"groups": ["a", "a"]}, "at least two"),
        (GOOD, [0, 1], {"groups": ["a", None]}, "no group"),
    ],
)
def test_a_report_refuses_what_cannot_be_judged(probabilities, targets, options, line):
    with pytest.raises(BadInput, match=line) as refused:
        metrics.report(probabilities, targets, ["a", "b"], **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("targets", [[0, 1], [[0, 2], [1, 0]], [[0, 0], [0, 0]]])
def test_several_labels_refuse_what_cannot_be_judged(targets):
    with pytest.raises(BadInput):
        metrics.report_multilabel(GOOD, targets, ["a", "b"])


# The table

TABLE = pd.DataFrame({"path": ["x.png", "y.png", "é.png"], "label": ["a", None, "b"], "size": [1, 2, 3]})
OF_EACH = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]], dtype=np.float32)


def test_a_table_of_predictions(tmp_path):
    found = predictions.table(TABLE.assign(group=["g", "h", "g"]), OF_EACH, ["a", "b"])
    assert list(found) == ["path", "label", "group", "prediction", "probability", "p_a", "p_b"]
    assert found["prediction"].tolist() == ["a", "b", "a"] and found["label"].fillna("?").tolist() == ["a", "?", "b"]
    assert found["probability"].tolist() == pytest.approx([0.7, 0.8, 0.5])
    known = predictions.table(TABLE, OF_EACH, ["a", "b"], targets=[1, -1, 0])
    assert known["label"].fillna("?").tolist() == ["b", "?", "a"] and "group" not in known
    assert "label" not in predictions.table(TABLE[["path"]], OF_EACH, ["a", "b"])
    for out, read in ((tmp_path / "new" / "t.csv", pd.read_csv), (tmp_path / "t.parquet", pd.read_parquet)):
        predictions.write(out, found)
        pd.testing.assert_frame_equal(read(out), found, check_dtype=False)
        assert len(list(out.parent.glob(".*"))) == 0, "nothing half-written is left"


def test_a_table_of_several_labels():
    found = predictions.table(TABLE, OF_EACH, ["a", "b"], targets=np.array([[1, 1], [0, 0], [0, 1]]))
    assert found["predictions"].tolist() == ["a", "b", "a|b"] and found["label"].tolist() == ["a|b", "", "b"]
    assert list(found) == ["path", "label", "predictions", "p_a", "p_b"]
    assert predictions.table(TABLE, OF_EACH / 4, ["a", "b"], multilabel=True)["predictions"].tolist() == [""] * 3


def test_a_table_that_cannot_be(tmp_path):
    with pytest.raises(BadInput, match="3 images and 1 classes"):
        predictions.table(TABLE, OF_EACH, ["a"])
    with pytest.raises(BadInput, match="2 targets for 3 images"):
        predictions.table(TABLE, OF_EACH, ["a", "b"], targets=[0, 1])
    with pytest.raises(BadInput, match=r"ends in \.csv or \.parquet"):
        predictions.write(tmp_path / "t.xlsx", TABLE)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        predictions.write(tmp_path / "file" / "t.csv", TABLE)
