"""Splits that are held out, few labels, and labels that cannot be told from groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import BadInput
from unmask.evaluate import splits


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=2, max_size=120),
    st.booleans(),
    st.sampled_from([0.1, 0.2, 0.34, 0.5]),
    st.integers(0, 3),
)
def test_held_out_keeps_groups_apart_and_every_class_in_training(samples, grouped, share, seed):
    targets, groups = (np.array(column) for column in zip(*samples, strict=True))
    try:
        train, test = splits.held_out(targets, groups if grouped else None, share, seed)
    except BadInput:
        assert grouped or min(np.unique(targets, return_counts=True)[1]) < 2
        return
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(targets)))
    assert set(targets[train]) == set(targets) and len(test) > 0
    assert not grouped or not set(groups[train]) & set(groups[test])


def test_a_fifth_is_held_out_in_proportion_and_however_rare_a_class():
    targets = np.array([0] * 600 + [1] * 398 + [2] * 2)
    train, test = splits.held_out(targets)
    assert len(test) == pytest.approx(200, abs=2) and len(train) + len(test) == 1000
    assert np.bincount(targets[test], minlength=3).tolist() == [120, pytest.approx(80, abs=1), 1]
    assert not np.array_equal(test, splits.held_out(targets, seed=1)[1])
    assert np.array_equal(test, splits.held_out(targets)[1])
    with pytest.raises(BadInput, match="class 1 has one sample"):
        splits.held_out([0, 0, 0, 1])
    with pytest.raises(BadInput, match=r"a share of 0\.7"):
        splits.held_out(targets, share=0.7)


def test_several_labels_are_spread_by_the_rarest():
    rng = np.random.default_rng(0)
    targets = rng.random((500, 4)) < np.array([0.6, 0.3, 0.04, 0.004])  # of the last there may be two, or none
    groups = rng.integers(0, 60, size=500)
    for codes in (None, groups):
        made = splits.folds(targets, codes)
        assert len(made) == 5
        assert np.array_equal(np.sort(np.concatenate([test for _, test in made])), np.arange(500))
        counts = np.array([targets[test].sum(0) for _, test in made])
        # by chance the third, of about 20, would often leave a fold without
        assert counts[:, 2].min() >= 2 and np.ptp(counts[:, 0]) < 25
    assert splits.strata(np.eye(3, 4, dtype=bool).repeat(5, axis=0), None, 2).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    both = np.array([[1, 0], [1, 1], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]], dtype=bool)
    assert splits.strata(both, None, 2).tolist() == [0, 1, 1, 0, 0, 2, 2]
    train, test = splits.held_out(targets, groups)
    assert not set(groups[train]) & set(groups[test]) and targets[test][:, 2].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=20, max_size=300), st.integers(0, 5), st.data())
def test_few_labels_are_nested_and_in_proportion(targets, seed, data):
    targets = np.array(targets)
    there = np.unique(targets[targets >= 0])
    n = int((targets >= 0).sum())
    if n < 1:
        return
    more = data.draw(st.integers(len(there), n))
    fewer = data.draw(st.integers(len(there), more))
    small, large = (splits.label_some(targets, str(count), seed) for count in (fewer, more))
    assert len(small) == fewer and len(large) == more and set(small) <= set(large)
    got, all_of = (np.bincount(x, minlength=5) for x in (targets[large], targets[targets >= 0]))
    assert (targets[large] >= 0).all() and set(targets[small]) == set(there)
    # a class that is there once only for its own sake takes from the others
    assert (abs(got - all_of * more / n) <= 1 + len(there) / 2).all()
    assert np.array_equal(splits.label_some(targets, "100%", seed), np.flatnonzero(targets >= 0))


def test_shares_of_labels():
    targets = np.arange(1000) % 7
    one, ten = (splits.label_some(targets, wanted, seed=3) for wanted in ("1%", "10%"))
    assert (len(one), len(ten)) == (10, 100) and set(one) <= set(ten) and set(targets[one]) == set(range(7))
    assert np.ptp(np.bincount(targets[ten])) <= 1
    assert not np.array_equal(one, splits.label_some(targets, "1%", seed=4))
    for wanted, line in (
        ("a few", "give a share"),
        ("-5", "give a share"),
        ("1.5", "give a share"),
        ("1001", "1,000 images with a label"),
        ("101%", "1,000 images with a label"),
        ("6", "7 at least"),
        ("0.1%", "7 at least"),
    ):
        with pytest.raises(BadInput, match=line) as refused:
            splits.label_some(targets, wanted)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("groups_a_class", "nested", "warned"), [(1, True, True), (2, True, True), (40, True, False), (4, False, False)]
)
def test_confounded_is_few_groups_that_settle_the_label(groups_a_class, nested, warned):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, size=900)
    site = rng.integers(0, groups_a_class, size=900)
    names = np.array([f"site {t if nested else ''} {s}" for t, s in zip(targets, site, strict=True)])
    said = splits.confounded(targets, names, ["axe", "blade", "core"])
    assert (said is not None) == warned
    if said:
        assert f"axe in {groups_a_class} group" in said and "right for 100%" in said and "\n" not in said
        assert f"rests on {3 * groups_a_class} groups, not on 900 images" in said


def test_confounded_by_measure():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, size=400)
    assert splits.confounded(targets, np.arange(400), ["a", "b"]) is None, "groups of one settle nothing"
    rare = np.where(np.arange(400) < 3, 2, targets)
    assert splits.confounded(rare, np.arange(400), ["a", "b", "c"]) is None, "nor do they where a class is rare"
    mostly = np.where(rng.random(400) < 0.05, rng.integers(0, 2, 400), targets)  # two groups, nearly of one class each
    assert "right for 9" in (splits.confounded(targets, mostly, ["a", "b"]) or "")
    assert splits.confounded(targets, np.where(rng.random(400) < 0.6, 1 - targets, targets), ["a", "b"]) is None
    # ten groups of a class, but nearly all of its images in one of them
    lopsided = 20 * targets + np.where(rng.random(400) < 0.9, 0, rng.integers(0, 10, 400))
    assert "of its images in one" in (splits.confounded(targets, lopsided, ["a", "b"]) or "")
    assert splits.confounded(np.zeros(10, dtype=int), np.arange(10) % 2, ["a"]) is None, "one class"
    only_last = np.array([1, 1, 2, 2] * 5)  # class 0 is not there: names go with numbers
    assert "c in 1 group" in (splits.confounded(only_last, only_last, ["a", "b", "c"]) or "")
