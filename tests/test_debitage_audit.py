"""Each fault built into a small study is found and named; a clean, balanced one has none that forbids the question."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from unmask.debitage.audit import SEVERITIES, audit, channels, duplicates, missing, order, size, size_matched
from unmask.debitage.controls import COLUMNS, controls, predictions, sampled
from unmask.debitage.identifiability import assignments, association, can_be_told, confounding, covariate, labels
from unmask.debitage.study import KNOWN, Question, Study

MEASURES = ("da", "feret_length", "area", "perimeter", "transparency", "solidity")
SKILLS = {1: "novice", 2: "novice", 6: "intermediate", 8: "intermediate", 15: "expert", 20: "expert"}
NOTHING = pd.DataFrame(columns=COLUMNS)


def balanced() -> list[dict]:
    """Six knappers, each of both stones, in sessions that cross both."""
    return [
        {"knapper": f"K{k}", "years": years, "skill": skill, "material": stone, "session": f"day {1 + (k + i) % 2}"}
        for k, (years, skill) in enumerate(SKILLS.items(), 1)
        for i, stone in enumerate(("flint", "chert"))
    ]


def flawed() -> list[dict]:
    """One novice and two experts, each with a stone of his own."""
    made = [("K1", 1, "novice", "chert A"), ("K2", 12, "expert", "chert B"), ("K3", 20, "expert", "chert C")]
    return [dict(zip(("knapper", "years", "skill", "material"), each, strict=True), session="day 1") for each in made]


def built(assemblages: list[dict], n: int | list[int] = 30, seed: int = 0, person: float = 0.0) -> Study:
    """A study in memory whose measures hold nothing of the skill; person: how far knappers differ, in deviations."""
    rng = np.random.default_rng(seed)
    counts = [n] * len(assemblages) if isinstance(n, int) else n
    hands = {each["knapper"]: person * rng.normal(size=3) for each in assemblages}
    parts = []
    for number, (each, count) in enumerate(zip(assemblages, counts, strict=True)):
        drawn = rng.normal(size=(count, 3)) + hands[each["knapper"]]
        da, length = np.exp(0.4 * drawn[:, 0]), 1.5 + 0.2 * drawn[:, 1]
        columns = {
            "da": da,
            "feret_length": da * length,
            "area": np.pi / 4 * da**2,
            "perimeter": da * 3.3 * (1 + 0.03 * drawn[:, 2]),
            "transparency": rng.random(count),
            "solidity": rng.beta(20, 2, count),
            "image_id": rng.permutation(3 * count)[:count],
            "order": np.arange(count),
            "id": [str(i) for i in range(count)],
        }
        about = {"technique": "hard hammer", "instrument": "PartAn"} | each
        parts.append(pd.DataFrame(columns | about).assign(assemblage=about.get("assemblage", f"A{number}")))
    particles = pd.concat(parts, ignore_index=True)
    names = particles["assemblage"] + "/" + particles["id"]
    particles = particles.assign(particle=names, image=None, scale=np.nan, frames=[()] * len(particles))
    return Study("test", Path("study.yaml"), Question(), particles, MEASURES)


def changed(study: Study, column: str, where: pd.Series, value: object) -> Study:
    return study.replace(particles=study.particles.assign(**{column: study.particles[column].mask(where, value)}))


def found(findings) -> dict:
    by = {finding.key: finding for finding in findings}
    assert len(by) == len(findings), "a key twice"
    return by


def forbidden(findings) -> set[str]:
    return {finding.key for finding in findings if finding.severity == "cannot answer"}


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    """Enough for what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmask.debitage.controls.TREES", 12)
        yield


@pytest.fixture(scope="module")
def clean():
    return audit(built(balanced()))


def test_a_balanced_design_can_answer(clean):
    assert not forbidden(clean)
    severities = [SEVERITIES.index(finding.severity) for finding in clean]
    assert severities == sorted(severities)
    by = found(clean)
    assert {
        "label",
        "permutations",
        "covariate",
        "channels",
        "size",
        "copies",
        "pictures",
        "controls",
        "balance",
    } <= set(by)
    assert {f"label-{name}" for name in KNOWN} <= set(by)
    assert by["channels"].severity == by["copies"].severity == by["estimable"].severity == "fine"
    assert "15 ways" in by["permutations"].sentence and "0.067" in by["permutations"].sentence
    assert "720 ways" in by["permutations"].sentence
    for finding in clean:
        assert finding.title and finding.sentence and finding.sentence.endswith((".", ")")), finding
        assert "  " not in finding.sentence and "nan" not in finding.sentence.lower().split(), finding


def test_the_flawed_design_is_caught_in_words():
    findings = audit(built(flawed(), 40))
    assert {"label", "permutations", "label-material", "estimable"} <= forbidden(findings)
    by = found(findings)
    assert by["label"].title == "One novice: skill cannot be told from the person"
    assert "Each knapper worked another material" in by["label-material"].sentence
    assert "passes for skill" in by["label-material"].sentence
    assert by["unit-material"].severity == "warning"
    assert "cannot be tested" in set(by["controls"].table["verdict"].str.split(":").str[0])


@pytest.mark.parametrize("seed", range(50))
def test_flawed_designs_are_always_caught(seed):
    """One novice among three to six knappers, each with his own stone, whatever else is so."""
    rng = np.random.default_rng(seed)
    K = int(rng.integers(3, 7))
    assemblages, years = [], [1.0, *rng.permutation(np.arange(5.0, 21))]
    for k in range(K):
        about = {"knapper": f"K{k}", "years": years[k], "skill": "expert" if k else "novice", "material": f"stone {k}"}
        parts = range(int(rng.integers(1, 4)))
        assemblages += [about | {"session": f"day {rng.integers(3)}", "assemblage": f"K{k}-{part}"} for part in parts]
    study = built(assemblages, rng.integers(5, 60, len(assemblages)).tolist(), seed)
    study = study.replace(particles=study.particles.sample(frac=1, random_state=seed).reset_index(drop=True))
    findings = [*labels(study), *covariate(study), *confounding(study)]
    assert {"label", "label-material", "estimable"} <= forbidden(findings)
    assert ("permutations" in forbidden(findings)) == (K == 3)


def test_labels_and_units():
    one = built([each | {"skill": "novice"} for each in balanced()])
    assert forbidden(audit(one)) == {"label"}
    slip = built(balanced())
    slip = changed(slip, "skill", slip.particles["assemblage"] == "A0", "expert")
    by = found(labels(slip))
    assert by["several-labels"].severity == "warning" and "K1" in by["several-labels"].sentence
    without_years = built(balanced())
    without_years = without_years.replace(question=Question(covariate=None))
    assert forbidden(labels(without_years)) == {"permutations"}  # 15 ways to make pairs of six


def test_ways_to_deal_out_labels():
    assert assignments(pd.DataFrame([[2, 2, 2]])) == 15
    assert assignments(pd.DataFrame([[1, 2]])) == 3
    assert assignments(pd.DataFrame([[3, 3]])) == 10
    assert assignments(pd.DataFrame([[2, 1], [1, 2]])) == 9  # in each of two strata three; names cannot be swapped
    assert assignments(pd.DataFrame([[2, 2], [2, 2]])) == 18  # 6 · 6, half of them the same under other names


def test_covariate():
    (same,) = covariate(built(balanced()))
    assert same.severity == "note" and "one and the same question" in same.sentence
    years = {"K1": 3, "K2": 12, "K3": 5, "K4": 9, "K5": 4, "K6": 11}
    (free,) = covariate(built([each | {"years": years[each["knapper"]]} for each in balanced()]))
    assert free.severity == "fine" and "question" not in free.sentence
    (few,) = covariate(built([each | {"years": 2 if each["skill"] == "novice" else 9} for each in balanced()]))
    assert few.severity == "warning" and "two points" in few.sentence
    (moved,) = covariate(built([each | {"years": i} for i, each in enumerate(balanced())]))
    assert moved.severity == "warning" and "differ within a knapper" in moved.title


def test_confounding():
    def against(column: str, value) -> dict:
        return found(confounding(built([each | {column: value(each)} for each in balanced()])))

    by = against(
        "material", lambda each: {"novice": "flint", "intermediate": "chert", "expert": "obsidian"}[each["skill"]]
    )
    assert by["label-material"].severity == by["estimable"].severity == "cannot answer"
    by = against("material", lambda each: each["knapper"] + " stone")  # two stones of each skill, each of one knapper
    assert by["label-material"].severity == "warning" and "chance which knapper" in by["label-material"].sentence
    by = against("material", lambda each: "flint" if each["skill"] != "expert" else "chert")
    assert by["label-material"].severity == "warning"
    assert "expert" in by["label-material"].sentence and "novice" in by["label-material"].sentence
    assert "intermediate against novice" not in by["estimable"].sentence and by["estimable"].severity == "warning"
    by = against("session", lambda each: each["material"])
    assert by["nuisances"].severity == "note" and "material and session" in by["nuisances"].sentence
    by = against("session", lambda each: f"{each['knapper']} {each['material']}")  # sessions within knappers
    assert by["label-session"].severity == "fine" and by["unit-session"].severity == "note"
    unknown = found(confounding(built(balanced()).replace(question=Question(nuisances=()))))
    assert unknown["nuisances"].severity == "warning"


def test_differences_lost_only_if_all_is_allowed_for():
    table = pd.DataFrame({"skill": list("aabb"), "stone": list("xyyx"), "day": list("1221")})
    contrast = np.array([[1.0, -1.0]])
    assert (
        can_be_told(table, "skill", ["stone"], contrast).all() and can_be_told(table, "skill", ["day"], contrast).all()
    )
    table = pd.DataFrame({"skill": list("abab"), "stone": list("xxyy"), "day": ["1", "2", "2", "1"]})
    assert can_be_told(table, "skill", ["stone", "day"], contrast).all()
    table = pd.DataFrame({"skill": list("aab"), "stone": list("xyx"), "day": list("112")})
    assert not can_be_told(table, "skill", ["day"], contrast).any()
    table = pd.DataFrame({"skill": list("aab"), "stone": list("xyx"), "day": list("122")})
    assert (
        can_be_told(table, "skill", ["stone"], contrast).all() and can_be_told(table, "skill", ["day"], contrast).all()
    )
    assert not can_be_told(table, "skill", ["stone", "day"], contrast).any()


def test_association():
    a = pd.Series(list("aabb") * 25)
    assert association(a, a) == (pytest.approx(1, abs=0.01), pytest.approx(1))
    v, settled = association(a, pd.Series(np.random.default_rng(0).permutation(a)))
    assert v < 0.3 and settled < 0.05
    assert association(a, pd.Series(["x"] * 100)) == (0, 0)


def test_channels_switched_off():
    study = built(balanced())
    novice = study.particles["skill"] == "novice"
    off = channels(changed(study, "transparency", novice, np.nan))
    assert off.severity == "warning" and "transparency" in off.sentence and "skill" in off.sentence
    assert "67%" in off.sentence and "33%" in off.sentence  # novices are named, and half of the others
    still = channels(changed(study, "solidity", novice, 0.0))
    assert still.severity == "warning" and still.table["how"].tolist() == ["all zero"]
    nowhere = channels(changed(study, "solidity", novice | True, 0.5))
    assert nowhere.severity == "fine" and "solidity" in nowhere.sentence
    some = channels(changed(study, "solidity", pd.Series(np.arange(len(novice)) % 3 == 0), np.nan))  # here and there
    assert some.severity == "fine"


def test_sizes():
    study = built(balanced(), 200)
    assert size(study, NOTHING).severity == "fine"
    grown = study.particles["da"] * np.where(study.particles["skill"] == "expert", 1.7, 1)
    study = study.replace(particles=study.particles.assign(da=grown))
    told = size(study, controls(study.replace(measures=("da",))))
    assert told.severity == "warning" and "by knapper" in told.sentence
    kept = size_matched(study, seed=3)
    assert np.array_equal(kept, size_matched(study, seed=3)) and len(np.unique(kept)) == len(kept)
    assert not np.array_equal(kept, size_matched(study, seed=4))
    rows = study.particles.loc[kept]
    assert rows["skill"].value_counts().nunique() == 1 and len(rows) > 600
    of = {skill: group["da"] for skill, group in rows.groupby("skill")}
    before = {skill: group["da"] for skill, group in study.particles.groupby("skill")}
    assert ks_2samp(before["novice"], before["expert"]).statistic > 0.4
    assert ks_2samp(of["novice"], of["expert"]).statistic < 0.06
    assert ks_2samp(of["novice"], of["intermediate"]).statistic < 0.06
    apart = study.replace(
        particles=study.particles.assign(da=grown * np.where(study.particles["skill"] == "expert", 99, 1))
    )
    assert len(size_matched(apart)) == 0


def test_copies_of_rows():
    study = built(balanced())
    rows = study.particles.copy()
    large = rows.index[rows["da"] > rows["da"].median()]
    inside, across = rows.copy(), rows.copy()
    a, b = [i for i in large if rows["assemblage"][i] == "A0"][:2]
    inside.loc[b, list(MEASURES)] = inside.loc[a, list(MEASURES)].to_numpy()
    c = next(i for i in large if rows["assemblage"][i] == "A7")
    across.loc[c, list(MEASURES)] = across.loc[a, list(MEASURES)].to_numpy()
    by = found(duplicates(study.replace(particles=inside)))
    assert by["copies"].severity == "warning" and len(by["copies"].table) == 2
    by = found(duplicates(study.replace(particles=across)))
    assert by["copies"].severity == "cannot answer" and rows["particle"][a] in by["copies"].sentence
    near = rows.copy()
    near.loc[c, list(MEASURES)] = (near.loc[a, list(MEASURES)].astype(float) * 1.00001).to_numpy()
    by = found(duplicates(study.replace(particles=near)))
    assert by["copies"].severity == "note" and len(by["copies"].table) == 1
    tiny = rows.copy()
    small = tiny["da"].nsmallest(4).index
    tiny.loc[small, list(MEASURES)] = tiny.loc[small[0], list(MEASURES)].to_numpy()
    by = found(duplicates(study.replace(particles=tiny)))
    assert by["copies"].severity == "note" and "so few pixels" in by["copies"].sentence


def test_frames_are_groups():
    study = built(balanced())
    shared = study.particles["image_id"].where(study.particles["order"] > 3, 1000)
    by = found(duplicates(study.replace(particles=study.particles.assign(image_id=shared))))
    assert by["frames"].severity == "note" and "48 of 360" in by["frames"].sentence


def test_order():
    study = built(balanced(), 60)
    assert {finding.severity for finding in order(study)} == {"fine"}
    rows = study.particles.sort_values(["assemblage", "da"], ascending=[True, False]).reset_index(drop=True)
    rows["order"] = rows.groupby("assemblage").cumcount()
    by = found(order(study.replace(particles=rows)))
    assert by["sorted"].severity == "note" and by["drift"].severity == "fine"
    drifting = study.particles.assign(transparency=study.particles["transparency"] + study.particles["image_id"] / 60)
    by = found(order(study.replace(particles=drifting)))
    assert by["drift"].severity == "warning" and set(by["drift"].table["measure"]) == {"transparency"}


# Controls


def test_controls_are_at_chance_where_nothing_tells():
    table = controls(built(balanced(), 100, seed=5))
    assert list(table.columns) == COLUMNS and len(table) >= 10
    assert not table["better"].any(), table.to_string()
    tested = table[table["accuracy"].notna()]
    assert (abs(tested["balanced"] - 1 / 3) < 0.12).all(), table.to_string()
    assert tested["majority"].between(0.33, 0.37).all()


def test_controls_rarely_cry_wolf():
    """Of 6 studies without any effect, at 99% intervals and some ten controls each."""
    wrong = [controls(built(balanced(), 20, seed=seed))["better"].sum() for seed in range(6)]
    assert sum(wrong) <= 3, wrong


def test_a_split_by_particle_recognises_the_person():
    table = controls(built(balanced(), 60, seed=1, person=1.5)).set_index(["control", "protocol"])
    made_up = "skill shuffled among knappers, from the measures"
    assert table.loc[(made_up, "by particle"), "better"] and table.loc[(made_up, "by particle"), "balanced"] > 0.6
    assert not table.loc[(made_up, "by knapper"), "better"]
    assert not table.loc[("skill shuffled among particles, from the measures", "by particle"), "better"]


def test_the_instrument_tells():
    study = built([each | {"instrument": each["skill"]} for each in balanced()])
    table = controls(study).set_index(["control", "protocol"])
    row = table.loc[("session and instrument alone", "by knapper")]
    assert row["balanced"] == 1 and row["better"] and "not seen before, too" in row["verdict"]
    assert found(audit(study))["controls"].severity == "warning"


def test_equal_chances_are_not_decided_by_rounding():
    values, y = np.tile([[0], [1]], (60, 1)), np.repeat([0, 1, 2], 40)
    made = [(np.flatnonzero(np.arange(120) // 20 != k), np.flatnonzero(np.arange(120) // 20 == k)) for k in range(6)]
    assert set(predictions(values, y, made, 0)) == {0}


def test_sampled_in_proportion():
    rows = built(balanced(), [100] * 6 + [20] * 6).particles
    kept = sampled(rows, 180)
    assert len(kept) == 180 and kept.index.is_monotonic_increasing and kept.equals(sampled(rows, 180))
    assert sorted(kept["assemblage"].value_counts().tolist()) == pytest.approx([5] * 6 + [25] * 6, abs=1)
    assert sampled(rows, 999, each=7)["assemblage"].value_counts().tolist() == [7] * 12


def photographed(study: Study, folder: Path, background, seed: int = 0) -> Study:
    """With a grey picture of each particle, a dark square before background(row)."""
    rng = np.random.default_rng(seed)
    paths = []
    for i, row in enumerate(study.particles.itertuples()):
        picture = background(row) + rng.normal(0, 2, (32, 32))
        picture[10:22, 10:22] = rng.normal(60, 8, (12, 12))
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return study.replace(particles=study.particles.assign(image=paths, frames=[(path,) for path in paths]))


def test_the_background_tells_the_session_not_the_hand(tmp_path):
    study = built(balanced(), 20)
    greys = dict(zip([f"K{k}" for k in range(1, 7)], (200, 180, 160, 210, 190, 170), strict=True))
    by_knapper = photographed(study, tmp_path, lambda row: greys[row.knapper])
    table = controls(by_knapper).set_index(["control", "protocol"])
    background = "background of the pictures alone"
    assert table.loc[(background, "by particle"), "balanced"] > 0.95
    assert not table.loc[(background, "by knapper"), "better"]
    told = found(audit(by_knapper))["controls"]
    assert told.severity == "warning" and "the pictures carry the session, not the hand" in told.sentence
    even = photographed(study, tmp_path, lambda row: 200)
    table = controls(even).set_index(["control", "protocol"])
    assert not table.loc[background, "better"].any()


def test_copies_of_pictures(tmp_path):
    study = photographed(built(balanced(), 6), tmp_path, lambda row: 200)
    assert found(duplicates(study))["pictures"].severity == "fine"
    paths = study.particles["image"].tolist()
    Path(paths[1]).write_bytes(Path(paths[0]).read_bytes())
    assert found(duplicates(study))["pictures"].severity == "warning"
    Path(paths[40]).write_bytes(Path(paths[0]).read_bytes())
    by = found(duplicates(study))
    assert by["pictures"].severity == "cannot answer" and "A6/4" in by["pictures"].sentence


def test_what_is_missing(tmp_path):
    study = photographed(built(balanced(), 6), tmp_path, lambda row: 200)
    assert missing(built(balanced())).severity == "note"  # no pictures
    assert missing(study.replace(particles=study.particles.assign(scale=0.1))).severity == "fine"
    Path(study.particles["image"][3]).unlink()
    told = missing(study)
    assert told.severity == "warning" and "3.png" in told.sentence
    none = study.particles["image"].where(study.particles["knapper"] != "K2", None)
    assert "K2 has no pictures" in missing(study.replace(particles=study.particles.assign(image=none))).sentence
    assert controls(study)["accuracy"].notna().any()  # the unreadable one is left out
    cut = study.replace(particles=study.particles.assign(touches_border=study.particles["order"] == 0))
    assert "12 particles touch the border" in missing(cut).sentence


def test_labels_of_particles_not_of_units():
    """Sites with tools of several classes, no measures of size, strata and no covariate."""
    rng = np.random.default_rng(0)
    n = 1500
    site = rng.integers(0, 60, n)
    rows = pd.DataFrame({"site": [f"S{s}" for s in site], "region": [f"R{s % 5}" for s in site]})
    rows["tool"] = rng.choice(["armature", "borer", "scraper"], n, p=[0.6, 0.1, 0.3])
    rows["plate"] = [f"P{s}-{p}" for s, p in zip(site, rng.integers(0, 4, n), strict=True)]
    rows = rows.assign(assemblage=rows["plate"], order=np.arange(n), image=None, scale=np.nan, frames=[()] * n)
    rows = rows.assign(particle=[str(i) for i in range(n)], form=rng.normal(size=n) + site)
    question = Question("tool", "site", None, ("region", "plate"), "region")
    study = Study("sites", Path("study.yaml"), question, rows, ("form",))
    findings = audit(study)
    assert not forbidden(findings)
    by = found(findings)
    assert by["several-labels"].severity == "fine" and by["size"].severity == "note"
    assert "commonest" not in by["label-region"].sentence and by["label-region"].severity == "fine"
    table = by["controls"].table
    assert not table.loc[~table["control"].str.contains("within"), "better"].any(), table.to_string()
    assert "tool shuffled within sites, from the measures" in set(by["controls"].table["control"])
    assert found(audit(study.replace(measures=())))["channels"].severity == "note"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000))
def test_any_study_can_be_audited(seed):
    rng = np.random.default_rng(seed)
    assemblages = [
        {
            "knapper": f"K{rng.integers(4)}",
            "years": float(rng.integers(3)) if rng.random() < 0.8 else np.nan,
            "skill": ("novice", "expert", None)[rng.integers(3)],
            "material": ("flint", "chert", None)[rng.integers(3)],
            "session": None if seed % 2 else f"day {rng.integers(3)}",
        }
        for _ in range(rng.integers(1, 6))
    ]
    study = built(assemblages, rng.integers(1, 9, len(assemblages)).tolist(), seed)
    gaps = study.particles[list(MEASURES)].mask(
        rng.random((len(study.particles), len(MEASURES))) < rng.choice([0, 0.5, 1])
    )
    study = study.replace(particles=study.particles.assign(**gaps), measures=MEASURES[: rng.integers(7)])
    findings = audit(study)
    assert all(finding.severity in SEVERITIES and finding.sentence for finding in findings)
    found(findings)
