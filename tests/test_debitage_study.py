"""STUDY.yaml: what is read, and one line for what cannot be."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from unmask.debitage import tables
from unmask.debitage.study import load
from unmask.errors import BadInput


def flake(path, seed=0):
    picture = np.full((40, 40), 255, np.uint8)
    picture[10 : 25 + seed % 8, 12:30] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def written(tmp_path):
    """Two knappers, one with a table and pictures in frames, one with pictures alone."""
    frame = pd.DataFrame({"id": ["1", "2", "3"], "area": [1.0, 2.0, 3.0], "perimeter": [4.0, 6.0, 7.0]})
    tables.write(tmp_path / "a.csv", frame)
    for name in ("1_1", "1_2", "2", "9"):
        flake(tmp_path / "a" / f"{name}.png")
    for name in ("x", "y"):
        flake(tmp_path / "b" / f"{name}.png", 3)
    told = {
        "title": "Two",
        "assemblages": [
            {
                "name": "A",
                "knapper": "K1",
                "years": 1,
                "skill": "novice",
                "material": "flint",
                "table": "a.csv",
                "images": "a",
            },
            {
                "name": "B",
                "knapper": "K2",
                "years": 9,
                "skill": "expert",
                "material": "flint",
                "images": "b",
                "scale": 0.1,
            },
        ],
    }

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({**told, **changes}))
        return path

    return write, told


def test_tables_and_pictures_are_joined_by_id(written):
    study = load(written[0]())
    a = study.particles[study.particles["assemblage"] == "A"].set_index("particle")
    assert [len(frames) for frames in a["frames"]] == [2, 1, 0]
    assert a.loc["A/1", "image"].endswith("1_1.png") and pd.isna(a.loc["A/3", "image"])
    assert a["area"].tolist() == [1.0, 2.0, 3.0] and study.measures == ("area", "perimeter")
    assert any("1 rows of its table have no picture and 1 pictures no row" in note for note in study.notes)
    b = study.particles[study.particles["assemblage"] == "B"]
    assert b["particle"].tolist() == ["B/x", "B/y"] and b["area"].isna().all() and (b["scale"] == 0.1).all()
    assert study.units.loc["K2"].to_dict() == {"skill": "expert", "years": 9.0, "particles": 2, "assemblages": 1}
    assert study.question.nuisances == ("material",) and study.question.covariate == "years"


def test_an_id_that_stands_twice_is_two_particles(written):
    write, _ = written
    frame = pd.DataFrame({"id": ["1", "1"], "area": [1.0, 2.0], "perimeter": [4.0, 6.0]})
    path = write(assemblages=[{"name": "A", "knapper": "K1", "skill": "novice", "table": "twice.csv"}])
    tables.write(path.parent / "twice.csv", frame)
    assert load(path).particles["particle"].tolist() == ["A/1", "A/1#2"]


def test_a_folder_stands_for_its_study_yaml(written):
    assert load(written[0]().parent).title == "Two"


def test_one_table_for_all(tmp_path):
    flake(tmp_path / "p.png")
    table = pd.DataFrame(
        {"image": ["p.png", "p.png"], "kind": ["x", "y"], "site": [1, 2], "cm": [0.02, None], "long": [3, 4]}
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    told = {
        "particles": {"table": "t.csv", "image": "image", "scale": "cm", "scale_in": "cm", "measures": ["long"]},
        "question": {"label": "kind", "unit": "site"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(told))
    study = load(tmp_path / "study.yaml")
    assert study.particles["scale"].iloc[0] == pytest.approx(0.2) and np.isnan(study.particles["scale"].iloc[1])
    assert study.particles["site"].tolist() == ["1", "2"] and study.measures == ("long",)
    assert study.question.covariate is None and study.question.nuisances == ()


def test_years_that_nobody_has_are_no_covariate(written):
    write, told = written
    without = [{k: v for k, v in one.items() if k != "years"} for one in told["assemblages"]]
    assert load(write(assemblages=without)).question.covariate is None


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"assemblages": []}, "assemblages is empty"),
        ({"assemblages": [{"name": "A", "knaper": "K1"}]}, "did you mean knapper"),
        ({"assemblages": [{"name": "A", "knapper": "K1"}]}, "give images"),
        ({"assemblages": [{"name": "A", "knapper": "K1", "table": "none.csv"}]}, "none.csv"),
        ({"assemblages": [{"name": "A", "knapper": "K1", "images": "none"}]}, "is not a folder"),
        ({"assemblages": [{"name": "A", "knapper": "K1", "table": "a.csv", "years": "many"}]}, "give a number"),
        ({"assemblages": [{"name": "A", "knapper": "K1", "table": "a.csv"}] * 2}, "two are called so"),
        ({"assemblages": [{"name": "A", "skill": "novice", "table": "a.csv"}]}, "no knapper is given"),
        ({"assemblages": [{"name": "A", "knapper": "K1", "table": "a.csv", "images": "b"}]}, "named after an Id"),
        ({"assemblages": "A"}, "assemblages is empty"),
        ({"question": {"label": "tool"}}, "no tool is given"),
        ({"question": {"lable": "skill"}}, "did you mean label"),
        ({"question": {"nuisances": ["weather"]}}, "no column 'weather'"),
        ({"particles": {"table": "a.csv"}}, "either assemblages"),
        ({"colour": "red"}, "'colour' is not known"),
    ],
)
def test_one_line_for_what_cannot_be_read(written, changes, word):
    with pytest.raises(BadInput, match=word) as error:
        load(written[0](**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00", "title: x\n"])
def test_broken_yaml(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load(tmp_path / "study.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "told",
    [{"table": "t.csv", "image": "no"}, {"table": "no.csv"}, {"table": "t.csv", "scale": "n", "scale_in": "ell"}],
)
def test_one_table_that_cannot_be_read(tmp_path, told):
    pd.DataFrame({"n": [1], "skill": ["a"], "knapper": ["k"]}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"particles": told}))
    with pytest.raises(BadInput) as error:
        load(tmp_path / "study.yaml")
    assert "\n" not in str(error.value)
