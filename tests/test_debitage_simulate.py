"""Simulated assemblages are what the model says, the same each time, and a study that can be read."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from unmask.debitage import shapes, simulate, study, tables
from unmask.debitage.photographs import covered
from unmask.debitage.simulate import DESIGNS, OFF, TRAITS, YEARS, Model, design
from unmask.errors import BadInput

ALIKE = Model(knapper=0, material=0, session=0, sitting=0, gain=0)
"""Nothing differs but by skill."""
TWO = design(2, skills=("novice", "expert"), materials=("flint",), sessions=("day 1",))


def table(plan: simulate.Design) -> pd.DataFrame:
    return pd.DataFrame([simulate.about(each) | {"share": each.share} for each in plan.assemblages])


# Designs


@pytest.mark.parametrize(
    "plan", [DESIGNS["balanced"], DESIGNS["null"], design(12), design(12, materials=["a", "b", "c", "d"])]
)
def test_balanced_designs_part_skill_from_stone_and_day(plan):
    rows = table(plan)
    assert rows["assemblage"].is_unique
    for one, other in (("skill", "material"), ("skill", "session"), ("material", "session"), ("knapper", "material")):
        counts = pd.crosstab(rows[one], rows[other]).to_numpy()
        assert (counts == counts[0, 0]).all() and counts[0, 0] > 0, (one, other)
    assert rows.groupby("knapper")["years"].nunique().max() == 1


def test_the_six_knappers():
    hands = DESIGNS["balanced"].knappers
    assert [each.years for each in hands] == [1, 2, 6, 8, 15, 20]
    assert [each.skill for each in hands] == [skill for skill in YEARS for _ in range(2)]
    assert len(DESIGNS["balanced"].assemblages) == 12
    assert DESIGNS["null"].assemblages == DESIGNS["balanced"].assemblages and DESIGNS["null"].effect == 0


def test_the_published_design_is_confounded():
    rows = table(DESIGNS["three-knappers"])
    assert (
        rows.groupby("knapper")["material"].nunique().max() == 1 == rows.groupby("material")["knapper"].nunique().max()
    )
    assert rows[rows["skill"] == "novice"]["knapper"].nunique() == 1
    assert rows[rows["skill"] == "expert"]["share"].sum() == 0.625
    assert set(rows[rows["session"] == "run 2"]["knapper"]) == {"K1"}
    drawn = simulate.particles(DESIGNS["three-knappers"], n=48, slow=True)
    off = drawn["session"] == "run 2"
    for name in OFF:
        assert name in drawn and (drawn[name].isna() == off).all()
    assert (drawn["skill"] == "expert").mean() == 0.625


@given(st.integers(3, 40), st.integers(1, 4), st.integers(1, 4))
def test_any_number_of_knappers(knappers, materials, sessions):
    plan = design(knappers, materials=[f"m{i}" for i in range(materials)], sessions=[f"s{i}" for i in range(sessions)])
    assert len(plan.knappers) == knappers and len({each.name for each in plan.assemblages}) == knappers * materials
    counts = pd.Series([each.skill for each in plan.knappers]).value_counts()
    assert len(counts) == 3 and counts.max() - counts.min() <= 1
    for each in plan.knappers:
        assert YEARS[each.skill][0] <= each.years <= YEARS[each.skill][1]


@given(st.integers(4, 5000))
def test_shares_add_up(n):
    counts = simulate.shares(DESIGNS["three-knappers"], n)
    assert sum(counts) == n and np.abs(np.array(counts) - n * np.array([0.1875, 0.1875, 0.3125, 0.3125])).max() < 1


# Traits


@pytest.mark.parametrize("effect", [0.0, 1.0, 2.0])
def test_traits_differ_by_the_stated_effects(effect):
    model = dataclasses.replace(ALIKE, by="skill", effect=effect)
    drawn = simulate.traits(TWO, model, 3000, seed=1)
    novice, expert = (part[list(TRAITS)] for _, part in drawn.groupby("assemblage"))
    found = expert.mean() - novice.mean()
    assert np.abs(found.to_numpy() - effect * model.skill.array).max() < 4 * np.sqrt(2 / 1500)
    assert np.abs(expert.std().to_numpy() - 1).max() < 0.08  # the unit is a deviation among flakes of one sitting


def test_skill_grows_with_the_logarithm_of_years():
    at = [simulate.practice(simulate.Knapper("K", years, "novice"), Model()) for years in (1, 3, 7, 20)]
    assert at[0] == -0.5 and at[-1] == 0.5
    assert at[2] - at[1] == pytest.approx(at[1] - at[0])  # 1 + years doubled
    by_level = [simulate.practice(simulate.Knapper("K", 5, skill), Model(by="skill")) for skill in YEARS]
    assert by_level == [-0.5, 0, 0.5]


def test_without_an_effect_hands_stones_and_days_still_differ():
    plan, model = DESIGNS["null"], Model()
    means = np.array([simulate.means(plan, model, seed) for seed in range(300)])  # (S, 12, 9)
    rows = table(plan)
    low, high = (means[:, (rows["skill"] == skill).to_numpy()].mean(1) for skill in ("novice", "expert"))
    difference = high - low  # (S, 9)
    assert stats.ttest_1samp(difference, 0).pvalue.min() > 0.001
    variance = model.knapper**2 + model.material**2 + model.session**2 + model.sitting**2
    assert means[..., TRAITS.index("hinge")].var() == pytest.approx(variance, rel=0.15)
    # Two hands on the same stone on the same day share all but hand and sitting.
    same = rows.index[(rows["material"] == "flint") & (rows["session"] == "day 1")][:2]
    assert (means[:, same[0]] - means[:, same[1]]).var() == pytest.approx(
        2 * (model.knapper**2 + model.sitting**2), rel=0.1
    )


def test_sizes_follow_the_stated_law():
    drawn = simulate.traits(TWO, dataclasses.replace(ALIKE, effect=0), 2000, seed=3)["longest"].to_numpy()
    assert drawn.min() >= 2 * 0.9999 and drawn.max() <= 8 * 1.0001
    assert stats.kstest(drawn, lambda x: simulate.size_law(x, ALIKE)).pvalue > 0.01
    other = dataclasses.replace(ALIKE, modulus=1.6)
    assert stats.kstest(drawn, lambda x: simulate.size_law(x, other)).pvalue < 1e-4


@given(st.floats(0, 1), st.floats(0.5, 3), st.floats(1, 6))
def test_the_size_law_is_inverted(share, modulus, characteristic):
    model = Model(modulus=modulus, characteristic=characteristic)
    size = simulate.sizes_of(np.array([share]), model)
    assert 2 - 1e-9 <= size[0] <= 8 + 1e-9
    assert simulate.size_law(size, model)[0] == pytest.approx(share, abs=1e-6)


def test_rates_and_medians_are_those_of_the_model():
    model = dataclasses.replace(ALIKE, effect=0)
    (flakes,) = simulate.drawn(design(1, skills=("novice",), materials=("flint",)), model, 2500, 5)
    share = [(flakes.ridges <= ridges).mean() for ridges in (1, 2)]
    assert share == pytest.approx(model.ridges, abs=0.03) and set(flakes.ridges) == {1, 2, 3}
    assert np.median(flakes.thickness / flakes.width) == pytest.approx(model.thickness, rel=0.03)
    assert np.median(flakes.transparency) == pytest.approx(model.clarity, abs=0.05)
    assert np.median(flakes.length / flakes.width) == pytest.approx(
        model.elongation, rel=0.06
    )  # noise and bend widen it


# Form


def test_outlines_do_not_cross_themselves_and_run_counter_clockwise():
    flakes = simulate.flakes_of("x", np.array([0, 0, 0, 0, 2.0, 0, 0, 0, 0]), 150, Model(), 0)  # irregular ones
    for points in flakes.outline:
        nearer, further = points, np.roll(points, -1, axis=0)
        assert (nearer[:, 0] * further[:, 1] - nearer[:, 1] * further[:, 0]).sum() > 0

        def side(a, b, c):
            return np.sign(
                (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
            )

        a, b, c, d = nearer[:, None], further[:, None], nearer[None], further[None]
        crosses = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
        assert not crosses.any()


def test_the_fall_shows_widths_between_width_and_thickness():
    (flakes,) = simulate.drawn(design(1, skills=("novice",), materials=("flint",)), Model(bend=0), 50, 0)
    for frame in range(3):
        x, y = simulate.seen(flakes, frame)[..., 0], simulate.seen(flakes, frame)[..., 1]
        c, s = np.cos(flakes.spin[:, frame]), np.sin(flakes.spin[:, frame])
        across, along = np.ptp(c[:, None] * x + s[:, None] * y, axis=1), np.ptp(c[:, None] * y - s[:, None] * x, axis=1)
        assert along == pytest.approx(flakes.length)
        assert (across <= flakes.width + 1e-9).all() and (across >= flakes.thickness - 1e-9).all()


def test_skill_shows_in_the_measures():
    model = dataclasses.replace(ALIKE, by="skill", effect=3)
    drawn = simulate.particles(TWO, model, 300, seed=2)
    medians = drawn.groupby("skill")[["solidity", "circularity", "width_thickness"]].median()
    assert medians.loc["expert", "solidity"] > medians.loc["novice", "solidity"]
    assert stats.mannwhitneyu(*(part["solidity"] for _, part in drawn.groupby("skill"))).pvalue < 1e-3


# Particles


def test_draws_are_functions_of_seed_assemblage_and_particle():
    plan = DESIGNS["balanced"]
    first, again = (simulate.particles(plan, n=36, seed=4) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    more = simulate.traits(plan, Model(), 60, seed=4)
    fewer = simulate.traits(plan, Model(), 36, seed=4)
    kept = more.groupby("assemblage").head(3).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, fewer)
    assert not np.allclose(simulate.traits(plan, Model(), 36, seed=5)["size"], fewer["size"])
    assert simulate.traits(plan, Model(), 360, seed=4).round(9).duplicated(list(TRAITS)).sum() == 0


def test_particles_are_as_a_study_has_them():
    frame = simulate.particles(DESIGNS["balanced"], n=120, seed=0)
    made = simulate.study_of(frame)
    assert len(frame) == 120 and frame["particle"].is_unique and made.measures[0] == "da" and len(made.measures) > 30
    assert len(made.units) == 6 and (made.units["assemblages"] == 2).all() and made.units["skill"].notna().all()
    assert frame[list(made.measures)].notna().all().all()
    assert tables.check(frame).empty  # the instrument's measures agree with one another
    assert all(part["da"].is_monotonic_decreasing for _, part in frame.groupby("assemblage"))
    assert (frame["width_thickness"] >= 1).all() and (frame["width_thickness"] > 1.2).mean() > 0.3


def test_pictures_in_memory():
    frame = simulate.particles(DESIGNS["three-knappers"], n=8, pictures=True)
    assert all(len(each) == 3 and each[0].shape == (96, 96) and each[0].dtype == np.uint8 for each in frame["picture"])


# Photographs


@given(st.floats(0, 6.28), st.floats(-4, 4), st.floats(-4, 4))
def test_coverage_is_the_polygons_area(turn, right, up):
    angles = turn + 2 * np.pi * np.arange(5) / 5
    points = np.stack([right + 9 * np.cos(angles), up + 9 * np.sin(angles)], axis=1)
    cover = covered(points, 32)
    assert cover.sum() == pytest.approx(2.5 * 81 * np.sin(2 * np.pi / 5), rel=0.01)
    centre = (
        (cover * (np.arange(32) - 15.5)).sum() / cover.sum(),
        (cover * (15.5 - np.arange(32))[:, None]).sum() / cover.sum(),
    )
    assert centre == pytest.approx((right, up), abs=0.07)


def test_photographs_measure_as_their_table_says():
    """Segmented again, the pictures' outlines agree with the analyser's table."""
    plan, model = DESIGNS["balanced"], Model(least=4)
    scale, ratios, clear = simulate.scale_of(model, 128), [], []
    for each, flakes in zip(plan.assemblages[:4], simulate.drawn(plan, model, 96, 1)[:4], strict=True):
        rows = simulate.measured(flakes).set_index("id")
        for number in range(6):
            frames = []
            for picture in simulate.photographs(each, flakes, number, model, 1, 128):
                (particle, *others) = shapes.segment(picture)
                assert not others and not particle.touches_border
                frames.append(shapes.measure(particle, scale))
                inside = picture[particle.box[0] : particle.box[2], particle.box[1] : particle.box[3]][
                    particle.mask
                ].mean()
                clear.append(inside / np.median(picture[:4]) - flakes.transparency[number])
            found, told = shapes.aggregate(frames), rows.loc[str(number + 1)]
            ratios.append([found[name] / told[name] for name in ("area", "perimeter", "feret_length", "feret_width")])
    ratios = np.array(ratios)
    assert np.abs(np.median(ratios, axis=0) - 1).max() < 0.02
    assert (np.abs(ratios - 1) < 0.06).mean() > 0.95
    assert np.abs(clear).mean() < 0.05


# A study on disk


@pytest.fixture(scope="module")
def flawed(tmp_path_factory) -> Path:
    return simulate.simulate("three-knappers", tmp_path_factory.mktemp("made") / "flawed", 32, seed=7, title=None)


def test_what_is_written_is_read(flawed):
    loaded = study.load(flawed)
    made = simulate.particles(DESIGNS["three-knappers"], n=32, seed=7, slow=True)
    assert list(loaded.particles["particle"]) == list(made["particle"])
    for name in ("assemblage", "knapper", "years", "skill", "material", "technique", "session", "instrument", "order"):
        assert list(loaded.particles[name]) == list(made[name]), name
    for name in simulate.study_of(made).measures:
        np.testing.assert_allclose(
            loaded.particles[name].to_numpy(float), made[name].to_numpy(float), atol=6e-4, err_msg=name
        )
    assert all(len(each) == 3 and all(Path(path).is_file() for path in each) for each in loaded.particles["frames"])
    assert loaded.particles["scale"].nunique() == 1 and loaded.question.nuisances == (
        "material",
        "technique",
        "session",
        "instrument",
    )


def test_the_truth_is_told(flawed):
    truth = yaml.safe_load(flawed.read_text(encoding="utf-8"))["design"]
    assert truth["name"] == "three-knappers" and truth["seed"] == 7 and truth["effects"]["thickness"] == -0.6
    assert truth["model"]["knapper"] == Model().knapper and truth["practice"]["K3"] == 0.5
    rewritten = Model(**{k: v for k, v in truth["model"].items() if k not in ("skill", "ridges")})
    assert rewritten == Model()


def test_tables_lack_what_was_switched_off(flawed):
    exports = {path.stem: tables.read(path) for path in (flawed.parent / "tables").glob("*.csv")}
    assert len(exports) == 4
    for name, export in exports.items():
        assert set(OFF) <= set(export.missing) if name.endswith("run2") else not set(OFF) & set(export.missing), name
    raw = (flawed.parent / "tables" / "K1-chertA-run1.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfId,Img Id,Da") and b"mm" in raw.splitlines()[1]


def test_the_same_settings_write_the_same_bytes(flawed, tmp_path):
    (tmp_path / "again").mkdir()  # empty: may be used
    again = simulate.simulate("three-knappers", tmp_path / "again", 32, seed=7, title=None).parent
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 1 + 4 + 3 * 32
    assert all((again / path).read_bytes() == (flawed.parent / path).read_bytes() for path in files)


def test_one_frame_is_one_picture(tmp_path):
    made = simulate.simulate("null", tmp_path / "null", 12, model=Model(frames=1), image_pixels=48, title=None)
    loaded = study.load(made)
    assert loaded.particles["image"].str.endswith("/1.png").all() and Image.open(loaded.particles["image"][0]).size == (
        48,
        48,
    )
    assert (loaded.particles["width_thickness"] == 1).all()  # seen once
    assert yaml.safe_load(made.read_text(encoding="utf-8"))["design"]["effect"] == 0


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("blanced", {}, "no design: use balanced"),
        ("balanced", {"particles": 5}, "ask for more"),
        ("balanced", {"particles": -5}, "ask for more"),
        ("balanced", {"seed": -1}, "seed"),
        ("balanced", {"effect": float("nan")}, "effect is nan"),
        ("null", {"effect": 1.0}, "no effect of skill"),
        ("balanced", {"image_pixels": 8}, "24 or more"),
        ("balanced", {"model": Model(least=9)}, "least < most"),
        ("balanced", {"model": Model(frames=0)}, "frames"),
    ],
)
def test_bad_settings(name, settings, says, tmp_path):
    with pytest.raises(BadInput, match=says):
        simulate.simulate(name, tmp_path / "out", **({"particles": 24, "title": None} | settings))
    assert not list(tmp_path.iterdir())


def test_bad_designs():
    for settings in ({"knappers": 2}, {"skills": ("master",)}, {"skills": ()}, {"materials": ()}, {"sessions": ()}):
        with pytest.raises(BadInput):
            design(**settings)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        simulate.simulate("null", tmp_path, 12, title=None)
    with pytest.raises(BadInput):
        simulate.simulate("null", tmp_path / "notes.txt" / "out", 12, title=None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_all_is_written_or_nothing(tmp_path, monkeypatch):
    write, calls = tables.write, []

    def fails(path, frame, **settings):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(path, frame, **settings)

    monkeypatch.setattr(tables, "write", fails)
    with pytest.raises(BadInput, match="No space left"):
        simulate.simulate("null", tmp_path / "out", 24, image_pixels=24, title=None)
    assert not list(tmp_path.iterdir())
