import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from skbio import DistanceMatrix
from skbio.stats.distance import permanova, permdisp

from unmask.debitage import classify, mixed, power, statistics
from unmask.debitage.study import Question, Study
from unmask.errors import BadInput

MEASURES = ("da", "dp", "circularity", "solidity")


def made(
    seed: int,
    *,
    levels=(2, 2, 2),
    particles: int = 20,
    effect: float = 0.0,
    knapper: float = 0.5,
    assemblage: float = 0.3,
    material: float = 0.3,
    materials: int = 2,
    crossed: bool = True,
) -> Study:
    """A study of normal measures, lengths as their exponentials, with `levels` knappers of each skill, each of them working
    every material, or where not crossed one each. effect: between neighbouring levels; the others standard deviations."""
    rng = np.random.default_rng([seed, 1])
    rows, stones = [], rng.normal(0, material, (materials, len(MEASURES)))
    number = 0
    for level, count in enumerate(levels):
        for _ in range(count):
            own = rng.normal(0, knapper, len(MEASURES)) + effect * level
            for stone in range(materials) if crossed else [number % materials]:
                day = own + stones[stone] + rng.normal(0, assemblage, len(MEASURES))
                values = day + rng.normal(size=(particles, len(MEASURES)))
                about = {"knapper": f"K{number:02}", "skill": "abcd"[level], "material": f"m{stone}"}
                about |= {"years": 5.0 * level + number, "assemblage": f"K{number:02}-m{stone}"}
                lengths = {
                    name: np.exp(v) if name in ("da", "dp") else v for name, v in zip(MEASURES, values.T, strict=True)
                }
                rows.append(pd.DataFrame(lengths).assign(**about))
            number += 1
    frame = pd.concat(rows, ignore_index=True)
    frame["particle"] = [str(i) for i in range(len(frame))]
    return Study("made", Path("study.yaml"), Question(nuisances=("material",)), frame, MEASURES)


def uniform(p: list[float], distinct: int | None = None) -> float:
    """The p of a test that p-values are uniform. Those of so many arrangements are first spread over their steps."""
    values = np.array(p)
    if distinct is not None:
        values = values - np.random.default_rng(0).random(len(p)) / distinct
    return float(stats.kstest(values, "uniform").pvalue)


# Dealing out


def partitions(codes):
    return {tuple(c) for c in itertools.permutations(codes)}


@pytest.mark.parametrize(
    ("codes", "strata", "interchangeable", "distinct"),
    [
        ([0, 0, 1, 1, 2, 2], None, True, 15),
        ([0, 0, 1, 1, 2, 2], None, False, 90),
        ([0, 0, 0, 1, 1, 1], None, True, 10),
        ([0, 0, 0, 0, 1, 1], None, True, 15),
        ([0, 1, 1], None, True, 3),
        ([0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], True, 4),
        ([0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], True, 4),
        ([0, 0, 1, 1], [0, 0, 1, 1], True, 1),
    ],
)
def test_all_ways_to_deal_labels_out(codes, strata, interchangeable, distinct):
    codes = np.array(codes)
    ways = statistics.arrange(codes, None if strata is None else np.array(strata), interchangeable=interchangeable)
    assert ways.exact and ways.distinct == distinct == len(ways.rows) == len({tuple(r) for r in ways.rows.tolist()})
    assert ways.smallest_p == 1 / distinct
    for row in ways.rows:
        for s in set(strata or [0]):
            inside = np.array(strata or [0] * len(codes)) == s
            assert sorted(row[inside]) == sorted(codes[inside])
    if strata is None and not interchangeable:
        assert {tuple(r) for r in ways.rows.tolist()} == partitions(codes.tolist())


@given(st.lists(st.integers(0, 2), min_size=4, max_size=7), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_exact_p_is_that_of_all_permutations(labels, seed):
    names, codes = np.unique(labels, return_inverse=True)
    if not 1 < len(names) < len(labels) - 1:
        return
    X = np.random.default_rng(seed).normal(size=(len(labels), 3))
    found = statistics.permanova(X, labels, np.arange(len(labels)), permutations=5000)
    if math.isnan(found.p):
        return
    F = [reference(X, np.array(order)) for order in itertools.permutations(codes)]
    assert found.exact and found.statistic == pytest.approx(reference(X, codes))
    assert found.p == pytest.approx(np.mean(np.array(F) >= found.statistic * (1 - 1e-9)))
    assert found.p >= found.smallest_p > 0


def reference(X, codes):
    """Anderson's pseudo-F from squared distances."""
    D, n, a = squareform(pdist(X)) ** 2, len(X), len(set(codes))
    total = D.sum() / 2 / n
    within = sum(D[np.ix_(codes == c, codes == c)].sum() / 2 / (codes == c).sum() for c in set(codes))
    return (total - within) / (a - 1) / (within / (n - a))


def test_what_is_drawn_keeps_to_strata_and_never_gives_zero():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 0.01, (20, 2)), rng.normal(5, 0.01, (20, 2))])
    labels, strata = np.repeat([0, 1], 20), np.tile([0, 1, 2, 3], 10)
    ways = statistics.arrange(labels, strata, 50, 3)
    assert not ways.exact and len(ways.rows) == 50
    for s in range(4):
        assert (ways.rows[:, strata == s].sum(1) == labels[strata == s].sum()).all()
    found = statistics.permanova(X, labels, np.arange(40), permutations=99)
    assert found.p == 0.01 == found.smallest_p and found.r2 > 0.99


# Parity


@pytest.mark.parametrize("labels", [[0] * 10 + [1] * 10 + [2] * 10, [0] * 5 + [1] * 14 + [2] * 11])
def test_pseudo_f_as_in_scikit_bio(labels):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 4)) + np.array(labels)[:, None] * 0.4
    for metric in ("euclidean", "cityblock"):
        D = squareform(pdist(X, metric))
        theirs = permanova(DistanceMatrix(D), labels, permutations=999)
        ours = statistics.permanova(D, labels, np.arange(30), distances=True)
        assert ours.statistic == pytest.approx(theirs["test statistic"], rel=1e-9)
        assert ours.p == pytest.approx(theirs["p-value"], abs=0.05)
        r2 = 1 - 1 / (1 + theirs["test statistic"] * 2 / 27)
        assert ours.r2 == pytest.approx(r2, rel=1e-9)
        if metric == "euclidean":
            same = statistics.permanova(X, labels, np.arange(30))
            assert (same.statistic, same.p) == (pytest.approx(ours.statistic), ours.p)


@pytest.mark.parametrize("centre", ["median", "centroid"])
def test_dispersion_as_in_scikit_bio(centre):
    rng = np.random.default_rng(2)
    labels = np.repeat(["a", "b", "c"], 12)
    X = rng.normal(size=(36, 3)) * np.repeat([1, 1.5, 2], 12)[:, None]
    theirs = permdisp(DistanceMatrix(squareform(pdist(X))), labels, test=centre, permutations=99)
    ours = statistics.dispersion(X, labels, np.arange(36), centre=centre)
    assert ours.statistic == pytest.approx(theirs["test statistic"], rel=1e-4)


def test_a_covariate_is_regressed_on():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=12), rng.normal(size=12)
    found = statistics.permanova(y[:, None], None, np.arange(12), covariate=x, permutations=4999)
    line = stats.linregress(x, y)
    assert found.r2 == pytest.approx(line.rvalue**2) and found.p == pytest.approx(line.pvalue, abs=0.03)
    D = squareform(pdist(y[:, None]))
    assert statistics.permanova(D, None, np.arange(12), covariate=x, distances=True).r2 == pytest.approx(found.r2)
    even = statistics.permanova(y[:5, None], None, np.arange(5), covariate=[1.0, 2, 3, 4, 5])
    assert even.exact and even.distinct == 60, "years turned over fit as well"


def test_strata_are_accounted_for():
    """The partial pseudo-F is that of the two-way analysis of variance."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"y": rng.normal(size=24), "s": np.repeat(list("abcd"), 6), "x": np.tile(list("uuvvww"), 4)})
    frame.loc[0, "x"] = "v"
    both, less = (smf.ols(f, frame).fit() for f in ("y ~ s + x", "y ~ s"))
    F = (less.ssr - both.ssr) / 2 / (both.ssr / both.df_resid)
    found = statistics.permanova(frame[["y"]], frame["x"], np.arange(24), strata=frame["s"])
    assert found.statistic == pytest.approx(F) and found.r2 == pytest.approx(1 - both.ssr / less.ssr)
    found = statistics.permanova(
        squareform(pdist(frame[["y"]])), frame["x"], np.arange(24), strata=frame["s"], distances=True
    )
    assert found.statistic == pytest.approx(F)


# Units


def test_particles_are_not_replicates():
    """Ten times the particles leave the p of the label where it was; a naive p falls without end."""
    study = made(5, particles=200, knapper=1.0)
    X = statistics.scaled(statistics.features(study)[0])
    frame = study.particles
    few = np.flatnonzero(np.arange(len(frame)) % 200 < 20)
    p = [
        statistics.permanova(X[rows], frame["skill"].iloc[rows], frame["knapper"].iloc[rows]).p
        for rows in (few, slice(None))
    ]
    assert min(p) >= 1 / 15 and statistics.permanova(X, frame["skill"], frame["knapper"]).smallest_p == pytest.approx(
        1 / 15
    )
    assert statistics.permanova(X, frame["skill"], frame["knapper"]).sentence.endswith("no p below 0.067 is possible.")
    assert statistics.permanova(X, frame["skill"], np.arange(len(X)), permutations=99).p == 0.01


def test_what_cannot_be_tested_is_said():
    flawed = made(0, levels=(1, 2), materials=1)
    tests = {found.name: found for found in statistics.between(flawed)}
    label = tests["PERMANOVA, skill among knappers"]
    assert label.smallest_p == pytest.approx(1 / 3) and label.p >= 1 / 3
    pair = made(0, levels=(1, 1))
    found = statistics.permanova(np.ones((len(pair.particles), 1)), pair.particles["skill"], pair.particles["knapper"])
    assert math.isnan(found.p) and "cannot be tested" in found.sentence and found.to_dict()["p"] is None
    X = np.random.default_rng(0).normal(size=(4, 2))
    nested = statistics.permanova(X, [0, 0, 1, 1], [0, 1, 2, 3], strata=[0, 0, 1, 1])
    assert math.isnan(nested.p) and "one way only within strata" in nested.sentence


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"labels": [0, 1, 0, 1]}, "more than one label"),
        ({"X": [[np.nan]] * 4}, "finite"),
        ({"units": [0, 1, None, 1]}, "missing"),
        ({"strata": [0, 1, 1, 1]}, "more than one stratum"),
        ({"covariate": [1.0, 1.0, np.nan, np.nan]}, "covariate"),
    ],
)
def test_bad_input_is_one_line(change, line):
    given = {"X": [[0.0], [1], [2], [3]], "labels": [0, 0, 1, 1], "units": [0, 0, 1, 1]} | change
    with pytest.raises(BadInput, match=line) as error:
        statistics.permanova(given.pop("X"), given.pop("labels"), given.pop("units"), **given)
    assert "\n" not in str(error.value)


def test_between_tests_every_level():
    study = made(1, levels=(3, 3), particles=15, effect=3, knapper=0.2)
    found = statistics.between(study, permutations=199)
    assert [each.name for each in found] == [
        "PERMANOVA, skill among knappers",
        "PERMDISP, skill among knappers",
        "PERMANOVA, years among knappers",
        "PERMANOVA, knapper among assemblages",
        "PERMANOVA, assemblage among particles",
    ]
    assert found[0].p == 0.1 and found[0].r2 > 0.9
    json.dumps([each.to_dict() for each in found], allow_nan=False)


def test_labels_that_a_unit_has_several_of_are_dealt_out_within_it():
    """Among its assemblages where each has one, else among the particles of each; whole units beside where few have several."""
    study = made(1, levels=(3, 3), particles=15, effect=3, knapper=0.2)
    frame = study.particles

    def names(skill) -> list[str]:
        found = statistics.between(study.replace(particles=frame.assign(skill=skill)), permutations=19)
        return [each.name.removeprefix("PERMANOVA, ") for each in found if "skill" in each.name]

    assert names(np.random.default_rng(0).choice(["a", "b"], len(frame))) == ["skill among particles"]
    of_day = frame["assemblage"].map({name: "ab"[k % 2] for k, name in enumerate(sorted(frame["assemblage"].unique()))})
    assert names(of_day) == ["skill among assemblages"]
    one = frame["knapper"] == frame["knapper"].iloc[0]
    assert names(of_day.where(one, frame["skill"])) == [
        "skill among knappers", "PERMDISP, skill among knappers", "skill among assemblages",
    ]  # fmt: skip
    table = mixed.mixed(study.replace(particles=frame.assign(skill=of_day.where(one, frame["skill"]))), label=True)
    assert (table["units"] == 5).all() and "1 knapper of several skills left out" in table["note"].iloc[0]


# Measures


def test_features_leave_out_what_gives_assemblages_away():
    study = made(2, levels=(2, 2))
    frame = study.particles.assign(transparency=1.0, angularity=np.arange(float(len(study.particles))), hash="0")
    frame.loc[frame["assemblage"] == "K00-m0", "angularity"] = np.nan
    frame.loc[3, "da"] = np.nan
    frame.loc[4, "dp"] = 0.0
    study = study.replace(particles=frame, measures=(*MEASURES, "transparency", "angularity", "hash"))
    X, names, notes = statistics.features(study)
    assert names == list(MEASURES) and np.isnan(X).sum() == 1 and np.isnan(X[3, 0])
    assert X[0, 0] == pytest.approx(np.log(frame["da"][0])) and X[0, 2] == frame["circularity"][0]
    assert X[4, 1] == pytest.approx(np.log(frame["dp"][frame["dp"] > 0].min() / 2))
    assert "same for all" in notes[0] and "K00-m0 lack" in notes[1]
    with pytest.raises(BadInput, match="no measure 'size'"):
        statistics.features(study, ["size"])


def test_functions_of_each_other_have_one_to_stand_for_them():
    x = np.random.default_rng(0).normal(size=(300, 2))
    X = np.column_stack([x[:, 0], np.exp(x[:, 0]), x[:, 1], -x[:, 1], x.sum(1)])
    assert statistics.clusters(X, list("abcde")) == {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e"}


# Mixed models


def test_the_mixed_model_is_that_of_statsmodels():
    study = made(3, levels=(3, 3), particles=12, knapper=0.8, assemblage=0.6)
    frame = study.particles.assign(y=np.log(study.particles["da"]))
    theirs = smf.mixedlm(
        "y ~ years + material", frame, groups="knapper", re_formula="1", vc_formula={"a": "0 + C(assemblage)"}
    ).fit(reml=True)
    X = np.column_stack([np.ones(len(frame)), frame["material"] == "m1", frame["years"]]).astype(float)
    units, cells = (pd.factorize(frame[name])[0] for name in ("knapper", "assemblage"))
    ours = mixed.reml(frame["y"].to_numpy(), X, units, cells)
    assert ours.likelihood >= theirs.llf - 1e-6 and ours.likelihood == pytest.approx(theirs.llf, abs=1e-3)
    assert ours.beta[2] == pytest.approx(theirs.params["years"], rel=1e-2)
    assert np.sqrt(ours.covariance[2, 2]) == pytest.approx(theirs.bse["years"], rel=2e-2)
    assert ours.variances[0] == pytest.approx(float(theirs.cov_re.iloc[0, 0]), rel=3e-2, abs=1e-3)
    assert ours.variances[1] == pytest.approx(float(theirs.vcomp[0]), rel=3e-2, abs=1e-3)
    assert ours.variances[2] == pytest.approx(theirs.scale, rel=1e-3)
    row = mixed.mixed(study).iloc[0]
    assert row["estimate"] == pytest.approx(ours.beta[2], rel=1e-3)
    assert row["df"] == 4 and row["fixed"] == "material"
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(row["estimate"] / row["error"]), 4))
    assert row["p"] > theirs.pvalues["years"], "z is too sure"


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_likelihood_is_that_of_the_whole_covariance(seed, nested):
    """Written out with inverses of n by n matrices; and no other variances are likelier."""
    rng = np.random.default_rng(seed)
    units = np.sort(rng.integers(0, 4, 30))
    units = pd.factorize(units)[0]
    cells = pd.factorize(units * 3 + rng.integers(0, 3, 30))[0] if nested else None
    X = np.column_stack([np.ones(30), rng.normal(size=30)])
    y = rng.normal(size=30) + rng.normal(size=4)[units] * rng.choice([0, 2])

    def likelihood(unit, cell, particle):
        V = particle * np.eye(30) + unit * (units[:, None] == units)
        if cells is not None:
            V = V + cell * (cells[:, None] == cells)
        inverse = np.linalg.inv(V)
        XX = X.T @ inverse @ X
        r = y - X @ np.linalg.solve(XX, X.T @ inverse @ y)
        return -0.5 * (
            28 * math.log(2 * math.pi) + np.linalg.slogdet(V)[1] + np.linalg.slogdet(XX)[1] + r @ inverse @ r
        )

    fit = mixed.reml(y, X, units, cells)
    assert fit.likelihood == pytest.approx(likelihood(*fit.variances), abs=1e-6)
    for _ in range(30):
        other = np.array(fit.variances) * np.exp(rng.normal(0, 0.3, 3)) + rng.choice([0, 0.1], 3)
        if not nested:
            other[1] = 0
        assert likelihood(*other) <= fit.likelihood + 1e-4


def test_balanced_means_give_the_same_t():
    study = made(7, levels=(4, 4), particles=10, knapper=2.0, materials=1)
    row = mixed.mixed(study, ["circularity"], label=True).iloc[0]
    means = study.particles.groupby(["skill", "knapper"])["circularity"].mean()
    t = stats.ttest_ind(means["b"], means["a"])
    assert row["statistic"] == pytest.approx(t.statistic, rel=1e-3) and row["p"] == pytest.approx(t.pvalue, rel=1e-2)
    assert row["contrast"] == "b − a" and row["df"] == 6 and "the day cannot be told from the hand" in row["note"]
    study = made(7, levels=(3, 3, 3), particles=10, knapper=2.0, materials=1)
    three = mixed.mixed(study, ["circularity"], label=True).iloc[0]
    means = study.particles.groupby(["skill", "knapper"])["circularity"].mean()
    F = stats.f_oneway(means["a"], means["b"], means["c"])
    assert three["statistic"] == pytest.approx(F.statistic, rel=1e-3) and three["p"] == pytest.approx(
        F.pvalue, rel=1e-2
    )


def test_mixed_says_what_it_cannot_tell():
    flawed = made(0, levels=(1, 2), materials=3, crossed=False)
    table = mixed.mixed(flawed)
    assert (table["note"].str.contains("each knapper has another material")).all() and (table["df"] == 1).all()
    two = mixed.mixed(made(0, levels=(1, 1)))
    assert table["p"].notna().all() and two["p"].isna().all() and two["note"].str.contains("too few").all()
    assert not (two["note"] == "").any() and two["q"].isna().all()
    aliased = made(0, levels=(3, 3))
    frame = aliased.particles.assign(material=aliased.particles["skill"] + "stone")
    told = mixed.mixed(aliased.replace(particles=frame), label=True)
    assert told["note"].str.contains("material cannot be told from skill").all() and (told["fixed"] == "").all()
    rng = np.random.default_rng(0)
    within = aliased.replace(particles=aliased.particles.assign(skill=rng.choice(["a", "b"], len(frame))))
    found = mixed.mixed(within, label=True)
    assert (
        found["p"].notna().all()
        and found["note"].str.contains("varies within a knapper").all()
        and found["df"].iloc[0] == 5
    )


def test_mixed_is_quick_and_controls_discoveries():
    study = made(1, levels=(4, 4, 4), particles=80)
    frame = study.particles
    more = {f"x{i}": frame["circularity"] * 0.3 + np.random.default_rng(i).normal(size=len(frame)) for i in range(16)}
    study = study.replace(particles=frame.assign(**more), measures=(*MEASURES, *more))
    import time

    start = time.process_time()
    table = mixed.mixed(study)
    assert time.process_time() - start < 10 and len(table) == 20 and table["p"].notna().all()
    assert np.allclose(table["q"], stats.false_discovery_control(table["p"]))
    assert np.allclose(table[["share_unit", "share_assemblage", "share_particle"]].sum(axis=1), 1)


# Classification


def test_folds_keep_units_whole():
    study = made(0)
    found = classify.folds(study, "skill")
    assert (
        found.protocol == "2 parts, knappers of every skill left out in each"
        and found.classes == ("a", "b", "c")
        and not found.notes
    )
    for train, test in found.parts:
        assert not set(found.groups[train]) & set(found.groups[test])
        for each in (train, test):  # nothing is to be had from how common a label is
            assert len(set(np.bincount(found.targets[each]))) == 1
    assert sorted(np.concatenate([test for _, test in found.parts])) == list(range(len(study.particles)))
    units = classify.folds(study, "unit")
    assert len(units.classes) == 6
    assert units.protocol.endswith("; those of one knapper differ in material, which makes them like those of others")
    for train, test in units.parts:
        assert not set(study.particles["assemblage"].iloc[train]) & set(study.particles["assemblage"].iloc[test])
    many = classify.folds(made(0, levels=(20, 20), particles=3), "skill")
    assert many.protocol == "5 parts, by knapper"


@given(st.lists(st.integers(2, 5), min_size=2, max_size=4), st.integers(0, 9))
def test_every_part_tests_units_of_every_label_whatever_labels_are_called(counts, seed):
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts))  # of units
    groups = draw.permutation(np.repeat(np.arange(len(labels)), 3))
    targets = labels[groups]
    parts = classify.evenly(targets, groups, seed)
    assert len(parts) == min(counts) and sorted(np.concatenate([test for _, test in parts])) == list(range(len(groups)))
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test]) and len(train) + len(test) == len(groups)
        assert set(targets[train]) == set(targets[test]) == set(range(len(counts)))
    names = draw.permutation(len(counts))
    again = classify.evenly(names[targets], groups, seed)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(parts, again, strict=True))


def test_a_task_that_cannot_be_tested_is_said():
    flawed = made(0, levels=(1, 2), materials=1)
    skill = classify.folds(flawed, "skill")
    assert not skill.parts and "a is K00 alone: skill cannot be told from the knapper" in skill.notes[0]
    assert not classify.folds(flawed, "unit").parts
    verdict = classify.judge(flawed, "skill", np.zeros((len(flawed.particles), 1)), skill)
    assert verdict.p is None and "cannot be tested" in verdict.sentence
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert classify.folds(flawed, "skill", naive=True).parts


@pytest.mark.parametrize("model", classify.MODELS)
def test_a_large_effect_is_found(model):
    study = made(4, levels=(3, 3), effect=3, knapper=0.3, particles=15)
    X, _, _ = statistics.features(study)
    X[5, 0] = np.nan
    parts = classify.folds(study, "skill")
    P = classify.classify(X, parts, model, trees=30)
    assert np.allclose(P.sum(1), 1) and (classify.classify(X, parts, model, trees=30) == P).all()
    verdict = classify.judge(study, "skill", P, parts, refit=lambda folds: classify.classify(X, folds, model, trees=10))
    assert verdict.particles and verdict.assemblages and verdict.units
    assert verdict.particles["accuracy"] > 0.85 and verdict.assemblages["accuracy"] == 1 == verdict.units["accuracy"]
    assert verdict.p == 0.1 == verdict.smallest_p and verdict.majority == 0.5 and verdict.commonest == 0.5
    json.dumps(verdict.to_dict(), allow_nan=False)
    assert "12 of 12 assemblages" in verdict.sentence and "none below 0.1" in verdict.sentence


def test_scaling_does_not_leak():
    """What a fold tests has no part in what it is told."""
    study = made(4, levels=(2, 2), particles=8)
    X, _, _ = statistics.features(study)
    parts = classify.folds(study, "skill")
    first = parts.parts[0][1]
    P = classify.classify(X, parts, "logistic")
    X[first[1:]] += 1000
    assert np.allclose(classify.classify(X, parts, "logistic")[first[0]], P[first[0]])


def test_a_knapper_is_known_by_particle_and_not_by_unit():
    """Knappers differ, skills do not: the split by particle sees skill."""
    study = made(11, levels=(3, 3), knapper=2, particles=25)
    X, _, _ = statistics.features(study)
    accuracy = {}
    for naive in (False, True):
        parts = classify.folds(study, "skill", naive=naive)
        verdict = classify.judge(study, "skill", classify.classify(X, parts, trees=40), parts)
        assert verdict.particles and verdict.p is None
        accuracy[naive] = verdict.particles["accuracy"]
    assert accuracy[True] > 0.85 and accuracy[False] < 0.75
    units = classify.folds(study, "unit")
    refit = lambda folds: classify.classify(X, folds, "logistic")  # noqa: E731
    verdict = classify.judge(study, "unit", refit(units), units, refit=refit, permutations=99)
    assert verdict.particles and verdict.particles["accuracy"] > 0.5 and verdict.p is not None and verdict.p < 0.05


# Power and calibration


def test_power_is_that_of_the_t_test():
    found = power.power((0.2, 0.1, 0.7), effects=(1.0,), knappers=(6, 12), particles=(10, 1000), simulations=4000)
    for row in found.itertuples():
        variance = 0.2 + 0.1 / 2 + 0.7 / row.particles
        shift = math.sqrt(row.knappers / 4 / variance)
        critical = stats.t.isf(0.025, row.knappers - 2)
        exact = stats.nct.sf(critical, row.knappers - 2, shift) + stats.nct.cdf(-critical, row.knappers - 2, shift)
        assert row.low - 0.01 <= exact <= row.high + 0.01
    assert found["power"].iloc[-1] > 0.8
    table = mixed.mixed(made(1, levels=(4, 4, 4), particles=50))
    assert 0 < power.shares_of(table)[0] < 0.5
    sentence = power.enough(power.power(table, simulations=500))
    assert sentence.startswith("80% power for a difference of 1 s.d. needs") and "add nothing" in sentence
    weak = power.power((0.9, 0, 0.1), effects=(0.1,), knappers=(4,), simulations=200)
    assert "needs more knappers" in power.enough(weak, 0.1)
    with pytest.raises(BadInput):
        power.power((0.2, -1, 0.7))


def eight(seed: int, effect: float = 0.0, levels=(4, 4)) -> Study:
    return made(seed, levels=levels, particles=8, effect=effect, knapper=0.8)


def quick(study: Study, seed: int, restricted: bool = True) -> dict[str, float]:
    """The tests of a label, or with the restriction broken, of particles as if they were units."""
    X = statistics.scaled(statistics.features(study)[0])
    frame = study.particles
    units = frame["knapper"] if restricted else np.arange(len(frame))
    options = {"permutations": 199, "seed": seed}
    found = {
        "label": statistics.permanova(X, frame["skill"], units, **options).p,
        "covariate": statistics.permanova(X, None, units, covariate=frame["years"], **options).p,
    }
    if restricted:
        found["dispersion"] = statistics.dispersion(X, frame["skill"], units, within=frame["assemblage"], **options).p
        found["mixed"] = float(mixed.mixed(study, ["circularity"], label=True)["p"].iloc[0])
    return found


def test_p_is_uniform_where_there_is_nothing():
    found = pd.DataFrame([quick(eight(seed), seed) for seed in range(200)])
    assert (found > 0).all(axis=None)
    assert uniform(found["label"], 35) > 0.01 and uniform(found["dispersion"], 35) > 0.01
    assert uniform(found["covariate"], 200) > 0.01 and uniform(found["mixed"]) > 0.01
    broken = pd.DataFrame([quick(eight(seed), seed, restricted=False) for seed in range(40)])
    assert uniform(broken["label"], 200) < 1e-6 and uniform(broken["covariate"], 200) < 1e-6
    assert (broken["label"] < 0.05).mean() > 0.5


def test_p_of_a_classifier_is_uniform_where_there_is_nothing():
    found = []
    for seed in range(200):
        study = eight(seed, levels=(3, 3))
        X, parts = statistics.features(study)[0][:, 2:], classify.folds(study, "skill")
        refit = lambda folds, X=X: nearest(X, folds)  # noqa: E731
        verdict = classify.judge(study, "skill", refit(parts), parts, refit=refit, resamples=1)
        found.append(verdict.p)
    assert uniform(found, 10) > 0.01


def nearest(X, folds):
    """A classifier that is quick: how near the centres of the classes are."""
    P = np.zeros((len(X), len(folds.classes)))
    for train, test in folds.parts:
        middle = statistics.centroids(X[train], folds.targets[train])
        P[test] = np.exp(-((X[test][:, None] - middle) ** 2).sum(-1))
    return P / P.sum(1, keepdims=True)


def test_twelve_knappers_find_a_large_effect():
    found = pd.DataFrame([quick(eight(seed, 2.0, (6, 6)), seed) for seed in range(25)])
    assert ((found[["label", "covariate", "mixed"]] <= 0.05).mean() > 0.8).all()


def test_calibrate_counts_rejections():
    table = power.calibrate(eight, 12, quick).set_index("test")
    assert (table["studies"] == 12).all() and (table["smallest"] > 0).all()
    assert table.loc["label", "low"] <= table.loc["label", "rate"] <= table.loc["label", "high"]
    p = [quick(eight(seed), seed)["mixed"] for seed in range(12)]
    assert table.loc["mixed", "rejected"] == sum(value <= 0.05 for value in p)
    one = power.both(eight(0), 0)
    assert all(0 < p <= 1 for p in one.values() if not math.isnan(p)) and len(one) == 10


def test_strata_of_text_as_files_give_them():
    study = made(0, levels=(2, 2, 2), particles=6)
    frame = study.particles.assign(region=np.where(study.particles["knapper"] < "K03", "north", "south"))
    frame["region"] = frame["region"].map(str).astype(object)
    told = Study("made", Path("s"), Question(nuisances=("material",), strata="region"), frame, MEASURES)
    assert any(np.isfinite(test.p) for test in statistics.between(told, permutations=19))
