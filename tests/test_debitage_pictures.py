"""The study's figures, whatever they are given, and what they are drawn from: occlusion, typical particles, neighbours, maps."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from unmask.debitage import look, pictures
from unmask.errors import BadInput
from unmask.figures import BLUE, VERMILION
from unmask.models.classifier import Classifier

HOSTILE = "a $name_ <b>\n& more of it, \\frac{$} so long that nothing of it can stand in any figure"


def opened(png: bytes | None) -> np.ndarray:
    """The RGB pixels of a PNG (H, W, 3), of a size that a page can show."""
    assert png is not None
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and 100 <= image.width <= 2400 and 80 <= image.height <= 2400, image.size
    return np.asarray(image.convert("RGB"))


def shows(pixels: np.ndarray, colour: str, least: int = 20) -> bool:
    return bool((np.abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=-1) <= 2).sum() > least)


# Where hiding hurts


class Corner(nn.Module):
    """Vectors of images: the mean of the upper left quarter, and of all."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        H, W = images.shape[2:]
        return torch.stack([images[:, 0, : H // 2, : W // 2].mean((1, 2)), images.mean((1, 2, 3))], dim=1)


def test_occlusion_hurts_where_the_model_looks_and_nowhere_else():
    image = torch.full((1, 24, 32), -1.0)
    image[:, 4:20, 4:28] = 1.0

    def model(images):
        p = (images[:, 0, 6:10, 8:12].mean((1, 2)) + 1) / 2
        return torch.stack([p, 1 - p], dim=1)

    falls = look.occlusion(model, image, 0, patch=8, stride=4)
    assert falls.shape == (6, 8) and falls.dtype == torch.float32
    assert falls.max() == 1.0  # a square that hides all of what it looks at
    away = falls.clone()
    away[0:4, 1:5] = 0
    assert (away == 0).all()
    assert torch.equal(look.occlusion(model, image, 1, patch=8, stride=4), -falls)
    assert torch.equal(look.occlusion(model, image, 0, patch=8, stride=4, batch=3), falls)


def test_occlusion_of_a_classifier_is_what_covering_by_hand_gives_and_leaves_it_in_training():
    torch.manual_seed(0)
    model = Classifier(Corner(), ("a", "b", "c"), 2, std=2.0)  # type: ignore[arg-type]
    image = torch.rand(1, 15, 10)
    falls = look.occlusion(model, image, 2, patch=5, stride=3)
    assert falls.shape == (5, 4) and model.training
    covered = image.clone()
    covered[:, 2:7, 2:7] = image[:, [0, -1]].new_tensor(float(look.border_colour(image)))  # around cell (1, 1)
    with torch.no_grad():
        before, after = (model.probabilities(model(one[None]))[0, 2] for one in (image, covered))
    assert falls[1, 1] == pytest.approx(float(before - after), abs=1e-6)


def test_occlusion_does_not_ask_about_background():
    asked = []

    def model(images):
        asked.append(len(images))
        return torch.full((len(images), 2), 0.5)

    assert (look.occlusion(model, torch.ones(3, 16, 16), 1) == 0).all() and asked == [1]


@pytest.mark.parametrize(("target", "options"), [(2, {}), (-1, {}), (0, {"patch": 0}), (0, {"stride": 0})])
def test_occlusion_of_what_is_not_there_is_bad_input(target, options):
    with pytest.raises(BadInput, match="occlusion"):
        look.occlusion(lambda images: torch.full((len(images), 2), 0.5), torch.rand(1, 8, 8), target, **options)


# Typical and misjudged, neighbours


def test_typical_are_right_misjudged_are_wrong_and_those_not_tested_are_neither():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [np.nan, np.nan], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    found = look.typical(p, [0, 0, 0, 0, 0, 1, -1], ["a", "a", "a", "a", "a", "b", "b"], count=2)
    assert {unit: {k: v.tolist() for k, v in each.items()} for unit, each in found.items()} == {
        "a": {"typical": [0, 4], "misjudged": [2]},
        "b": {"typical": [5], "misjudged": []},
    }


def test_neighbours_are_those_of_scikit_learn():
    X = np.random.default_rng(0).normal(size=(40, 5))
    X[3, 2] = np.nan
    X = np.concatenate([X, np.full((40, 1), 7.0)], axis=1)  # a column that says nothing
    units = np.arange(40) % 4
    indices, distances = look.neighbours(X, units, [3, 11], 6)
    Z = look.standardised(X)
    assert Z.shape == (40, 5) and Z[3, 2] == 0
    away, near = NearestNeighbors(n_neighbors=7, metric="cosine").fit(Z).kneighbors(Z[[3, 11]])
    assert (indices == near[:, 1:]).all() and np.allclose(distances, away[:, 1:])
    indices, distances = look.neighbours(X, units, [3, 11], 6, own=False)
    assert (units[indices] != 3).all() and (np.diff(distances) >= 0).all()


def test_without_enough_others_neighbours_are_none():
    indices, distances = look.neighbours(np.eye(3), ["a", "a", "b"], [0, 2], 2, own=False)
    assert indices.tolist() == [[2, -1], [0, 1]] and np.isnan(distances[0, 1])
    assert (look.neighbours(np.eye(3), ["a"] * 3, [0], 2, own=False)[0] == -1).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(0, 40), st.integers(0, 3))
def test_evenly_takes_of_each_unit_alike_many_as_far_as_it_has_them(units, most, seed):
    drawn = look.evenly(units, most, seed)
    assert len(drawn) == min(most, len(units)) and (np.diff(drawn) > 0).all()
    had, taken = np.bincount(units, minlength=6), np.bincount(np.array(units, dtype=int)[drawn], minlength=6)
    short = taken < had
    assert not short.any() or taken.max() <= taken[short].min() + 1
    assert (drawn == look.evenly(units, most, seed)).all()


def test_flat_is_principal_components_and_umap_the_same_each_time():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 1, (30, 6)), rng.normal(9, 1, (30, 6))])
    units = np.repeat(["a", "b"], 30)
    flat = look.flat(X, seed=1, units=units, most=40)
    expected = PCA(2).fit((X - X.mean(0)) / X.std(0))
    assert np.allclose(flat["shares"], expected.explained_variance_ratio_)
    assert np.allclose(np.abs(flat["pca"]), np.abs(expected.transform((X - X.mean(0)) / X.std(0))))
    there = np.isfinite(flat["umap"]).all(axis=1)
    assert there.sum() == 40 and there[:30].sum() == 20 and "40 of 60" in flat["note"]
    first, second = flat["umap"][there][:20], flat["umap"][there][20:]
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > 2 * max(first.std(), second.std()) / 2  # two crowds stay two
    again = look.flat(X, seed=1, units=units, most=40)
    assert np.array_equal(flat["umap"], again["umap"], equal_nan=True) and np.array_equal(flat["pca"], again["pca"])


def test_flat_of_little_or_nothing_has_no_umap(monkeypatch):
    for X in (np.zeros((0, 3)), np.zeros((1, 3)), np.ones((20, 2)), np.random.default_rng(0).normal(size=(5, 1))):
        flat = look.flat(X, seed=0)
        assert flat["pca"].shape == flat["umap"].shape == (len(X), 2) and np.isnan(flat["umap"]).all()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(BadInput, match=r"unmask\[study\]"):
        look.flat(np.random.default_rng(0).normal(size=(20, 3)), seed=0)


# Figures of assemblages


def laid(n: int) -> dict:
    rng = np.random.default_rng(0)
    return {"pca": rng.normal(size=(n, 2)), "shares": np.array([0.4, 0.1]), "umap": rng.normal(size=(n, 2)), "note": ""}


SHAPES = [(1, 1), (2, 2), (14, 7), (240, 3), (240, 41)]


@pytest.mark.parametrize(("units", "labels"), SHAPES)
def test_maps_sizes_and_trees_of_any_number_of_units_and_labels(units, labels):
    n = max(60, 4 * units)
    unit = np.array([f"{HOSTILE} {i % units}" for i in range(n)])
    label = np.array([f"${HOSTILE} {(i % units) % labels}" for i in range(n)], dtype=object)
    label[0] = None
    logs = np.random.default_rng(1).normal(size=n)
    logs[::7] = np.nan
    flat = laid(n)
    flat["umap"][::3] = np.nan
    assert shows(opened(pictures.sizes(logs, label, unit)), BLUE)
    opened(pictures.maps(flat, label, unit))
    vectors = np.random.default_rng(2).normal(size=(n, 4))
    vectors[1, 1] = np.nan
    drawn = pictures.tree(vectors, unit, label)
    assert (drawn is None) == (units < 3)
    if drawn:
        opened(drawn)


def test_where_nothing_can_be_laid_out_there_is_no_map():
    flat = {"pca": np.zeros((3, 2)), "shares": np.zeros(2), "umap": np.full((3, 2), np.nan)}
    assert pictures.maps(flat, ["a"] * 3, ["u"] * 3) is None
    assert pictures.sizes([np.nan], ["a"], ["u"]) is None and pictures.sizes([], [], []) is None
    assert pictures.tree(np.zeros((0, 3)), [], []) is None


def test_one_size_for_all_is_drawn():
    opened(pictures.sizes([0.0] * 5, ["a"] * 5, ["u"] * 5))


def test_labels_keep_their_order_and_only_the_most_frequent_have_a_colour():
    of = pictures.colours(["expert", "novice", None, "expert"], ("novice", "intermediate", "expert"))
    assert list(of) == ["novice", "expert", "unknown"] and of["novice"] == BLUE and of["unknown"] == pictures.OTHERS
    many = [f"label {i}" for i in range(41) for _ in range(i + 1)]
    of = pictures.colours(many)
    own = [name for name, colour in of.items() if colour != pictures.OTHERS]
    assert own == [f"label {i}" for i in range(34, 41)] and len({of[name] for name in own}) == 7


# Figures of tests


def test_honest_and_naive_p_stand_side_by_side():
    table = pd.DataFrame(
        {
            "test": ["PERMANOVA", HOSTILE, "one side only", "none"],
            "honest": [0.2, 1.0, np.nan, np.nan],
            "naive": [1e-30, np.nan, 0.03, np.nan],
            "smallest": [1 / 15, np.nan, np.nan, 1 / 15],
        }
    )
    pixels = opened(pictures.tests(table))
    assert shows(pixels, BLUE) and shows(pixels, VERMILION) and shows(pixels, "#E4E4E4", 5000)
    assert not shows(opened(pictures.tests(table[1:2])), "#E4E4E4", 5000)
    assert pictures.tests(table[3:]) is None and pictures.tests(table[:0]) is None


def forest(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    middle = rng.normal(size=n)
    names = [f"measure_{i} {HOSTILE}" for i in range(n)]
    columns = {"measure": names, "estimate": middle, "low": middle - 1, "high": middle + 1}
    return pd.DataFrame(columns | {"q": np.linspace(0.001, 1, n)})


@pytest.mark.parametrize("n", [1, 60])
def test_effects_are_drawn_whatever_their_number(n):
    table = forest(n)
    assert shows(opened(pictures.effects(table)), BLUE)
    assert not shows(opened(pictures.effects(table.assign(q=np.nan))), BLUE)
    table.loc[0, ["estimate", "low", "high", "q"]] = np.nan
    assert (pictures.effects(table) is None) == (n == 1)


def test_effects_are_brought_to_standard_deviations():
    table = forest(5)
    once = pictures.effects(table)
    stretched = table.assign(
        **{name: -10 * table[name] for name in ("estimate", "low", "high")}, effect=table["estimate"]
    )
    assert pictures.effects(stretched) == once
    assert pictures.effects(table.assign(effect=0.0, estimate=0.0)) is not None
    assert pictures.effects(table[:0]) is None


def test_classification_says_what_was_not_tested():
    rows = [
        {"protocol": protocol, "model": model, "accuracy": a, "low": a - 0.1, "high": a + 0.1, "majority": 0.625}
        | {"balanced": a - 0.1, "balanced_low": a - 0.2, "balanced_high": a, "honest": protocol == "by knapper"}
        for protocol, a in (("by knapper", 0.4), ("by particle", 0.9))
        for model in ("forest", HOSTILE)
    ]
    pixels = opened(pictures.classification(pd.DataFrame(rows), 3))
    assert shows(pixels, BLUE) and shows(pixels, VERMILION)
    rows[0] |= dict.fromkeys(("accuracy", "low", "high", "balanced", "balanced_low", "balanced_high"), np.nan)
    rows[1] |= dict.fromkeys(("low", "high", "majority"), np.nan)
    opened(pictures.classification(pd.DataFrame(rows), 41))
    opened(pictures.classification(pd.DataFrame(rows[2:3]), 2))
    assert pictures.classification(pd.DataFrame(rows[:1]), 3) is None
    assert pictures.classification(pd.DataFrame(rows)[:0], 3) is None


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20, 18)])
def test_confounding_is_a_table(size):
    values = np.random.default_rng(0).uniform(size=size)
    matrix = pd.DataFrame(values, [f"{i} {HOSTILE}" for i in range(size[0])], [f"n{i}" for i in range(size[1])])
    opened(pictures.confounding(matrix))
    matrix.iloc[0, 0] = np.nan
    assert (pictures.confounding(matrix) is None) == (size == (1, 1))
    assert pictures.confounding(pd.DataFrame()) is None


@pytest.mark.parametrize(
    ("knappers", "counts", "strengths"), [((6,), (50,), (1.0,)), ((3, 6, 12, 48), range(10, 90, 10), (0.2, 0.5, 1, 2))]
)
def test_power_is_drawn_for_one_point_or_many(knappers, counts, strengths):
    rows = [
        {"knappers": k, "particles": n, "effect": e, "power": min(1.0, e * k / 20)}
        for k in knappers
        for n in counts
        for e in strengths
    ]
    opened(pictures.power(pd.DataFrame(rows)))
    assert (
        pictures.power(pd.DataFrame(rows).assign(power=np.nan)) is None
        and pictures.power(pd.DataFrame(rows)[:0]) is None
    )


@pytest.mark.parametrize("tests", [1, 2, 5])
def test_calibration_by_effect_and_by_design(tests):
    rows = [
        {
            "test": f"test {i} {HOSTILE}",
            "effect": e,
            "design": f"three-knappers {e}",
            "kind": kind,
            "rate": r,
            "low": r,
            "high": r,
        }
        for i in range(tests)
        for e in (0, 0.5, 1)
        for kind, r in (("honest", 0.05), ("naive", 0.9))
    ]
    table = pd.DataFrame(rows)
    for drawn in (table, table.drop(columns="effect"))[: 1 if tests == 5 else 2]:
        pixels = opened(pictures.calibration(drawn))
        assert shows(pixels, BLUE) and shows(pixels, VERMILION)
    opened(pictures.calibration(table[table["effect"] == 0].assign(low=np.nan, high=np.nan)))
    assert pictures.calibration(table[:0]) is None


# Sheets of particles


def shown(size: tuple[int, ...] = (1, 20, 30), right: bool | None = None) -> pictures.Shown:
    return pictures.Shown(torch.rand(size), (HOSTILE, "97%"), right)


def test_particles_that_are_typical_and_misjudged():
    rows = [(f"K{i} {HOSTILE}", "novice", [shown()] * 6, [shown((3, 90, 40))] * (i % 3)) for i in range(14)]
    opened(pictures.particles(rows))
    opened(pictures.particles(rows[:1]))
    opened(pictures.particles([("K1", "", [], [shown()]), ("K2", "", [], [])]))
    assert pictures.particles([]) is None and pictures.particles([("K1", "", [], [])]) is None


def test_neighbours_are_framed_by_their_label():
    pixels = opened(pictures.neighbours([(shown(), [shown(right=True), shown(right=False)])]))
    assert shows(pixels, BLUE) and shows(pixels, VERMILION)
    assert not shows(opened(pictures.neighbours([(shown(), [shown()] * 11)] * 14)), VERMILION)
    opened(pictures.neighbours([(shown(), [])]))
    assert pictures.neighbours([]) is None


def test_what_was_looked_at_is_in_colour():
    image = torch.ones(1, 64, 48)
    image[:, 16:48, 12:36] = 0.2
    falls = torch.zeros(8, 6)
    falls[:3], falls[5:] = 0.4, -0.4
    heads = torch.rand(3, 8, 6)
    opened(pictures.looked([pictures.Seen(image, heads, falls, (HOSTILE, "novice"))] * 9))
    for row in (
        pictures.Seen(image),
        pictures.Seen(image, heads[0]),
        pictures.Seen(image, None, torch.full((8, 6), torch.nan)),
    ):
        opened(pictures.looked([row]))
    pixels = opened(pictures.looked([pictures.Seen(image, None, falls)])).astype(int)
    third = pixels[46:262, -10 - 216 : -10]
    third = third[:, third.std(axis=(0, 2)) > 0]
    assert (
        (third[:60, :, 0] - third[:60, :, 2]).mean() > 30 > -30 > (third[-60:, :, 0] - third[-60:, :, 2]).mean()
    )  # red, blue
    assert pictures.looked([]) is None


def test_where_nothing_changes_the_picture_of_occlusion_has_no_colour():
    image = torch.rand(1, 40, 40)
    drawn = pictures.overlaid(image, torch.full((5, 5), 0.5), pictures.CHANGE)
    assert float((drawn.max(dim=0).values - drawn.min(dim=0).values).max()) < 0.01


def test_names_stand_in_one_line_and_are_no_mathematics():
    assert pictures.named("a\n $b$", 20) == r"a \$b\$" and len(pictures.named(HOSTILE, 20).replace("\\$", "$")) <= 20
    assert pictures.broken("three-knappers") == "three-\nknappers" and pictures.broken("null") == "null"
    assert pictures.spaced([6], np.log) == [6] and pictures.spaced([3, 6, 11, 12, 48], np.log) == [3, 6, 11, 48]
    assert pictures.p_words(1e-9) == "<0.0001" and pictures.p_words(float("nan")) == "–"
