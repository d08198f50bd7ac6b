"""unmask study simulate, audit and run: from a design to the page."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

import unmask
from unmask.cli import main
from unmask.debitage import look
from unmask.debitage.study import load
from unmask.errors import BadInput
from unmask.verbs.networks import Networks, answers
from unmask.verbs.study import Run, run, seen

SMALL = {"permutations": 99, "seed": 0}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The published design: one novice, two experts, three stones."""
    out = tmp_path_factory.mktemp("three") / "study"
    return unmask.simulate(out, design="three-knappers", particles=48)


@pytest.fixture(scope="module")
def judged(three, tmp_path_factory):
    """A study without UMAP, which is compiled for ten seconds first; test_debitage_pictures.py looks at it."""
    out = tmp_path_factory.mktemp("judged") / "out"
    tiny = {"epochs": 1, "pretrain_epochs": 1, "vit": "vit-lite-2/8", "resnet": "resnet10t", "pixels": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "FEWEST", 10_000)
        yield out, unmask.study(three, out=out, **SMALL, **tiny)


def test_the_published_design_is_caught_and_the_naive_analysis_stands_beside(judged):
    out, result = judged
    assert result["verdict"] == "these data cannot answer" and result["cannot_answer"]
    audit = pd.read_csv(out / "tables" / "audit.csv")
    worst = " ".join(audit.loc[audit["severity"] == "cannot answer", "sentence"])
    assert "novice" in worst and "material" in worst
    beside = pd.read_csv(out / "tables" / "side-by-side.csv")
    assert beside["naive"].min() < 0.05 and not (beside["honest"] < 0.05).any()


def test_every_model_is_judged_by_particle_but_skill_of_a_new_knapper_cannot_be(judged):
    table = pd.read_csv(judged[0] / "tables" / "classification.csv")
    assert table.loc[table["protocol"] == "skill, new knapper", "model"].tolist() == ["none"]
    naive = table[table["protocol"] == "skill, by particle"]
    assert {"measures, random forest", "ResNet", "ViT", "ViT after MAE"} <= set(naive["model"]) and not naive[
        "honest"
    ].any()
    assert naive["accuracy"].between(0, 1).all() and (naive["low"] <= naive["accuracy"]).all()


def test_a_network_is_tested_on_one_knapper_alone(three, tmp_path):
    study = seen(load(three), tmp_path)
    frame = study.particles
    own = (frame["knapper"] == frame["knapper"].iloc[-1]).to_numpy()
    labels = np.array(["a", "b"] * len(frame), dtype=object)[: len(frame)]
    nets = Networks(tmp_path / "models", "vit-lite-2/8", "resnet10t", 32, 1, 1, 0, "cpu")
    told = (frame, labels, ("a", "b"), [(np.flatnonzero(~own), np.flatnonzero(own))], "knapper", None)
    said, unlearnt = answers(nets, "ViT", "one", *told)  # labels that mean nothing, one pass
    assert (
        unlearnt == 1
        and (np.isfinite(said).all(axis=1) == own).all()
        and np.allclose(said[own].sum(axis=1), 1, atol=1e-5)
    )
    assert np.array_equal(answers(nets, "ViT", "one", *told)[0], said, equal_nan=True)


def test_a_network_that_learnt_nothing_is_said_to_have(judged):
    table = pd.read_csv(judged[0] / "tables" / "classification.csv").dropna(subset="unlearnt")
    assert len(table) and (table["unlearnt"] <= table["parts"]).all() and table["unlearnt"].max() > 0  # of one pass
    model = table.loc[table["unlearnt"] > 0, "model"].iloc[0]
    assert re.search(rf"Learnt nothing: .*{model} in 1 of 1 parts", (judged[0] / "report.html").read_text())


def test_channels_that_were_off_are_not_learnt_from(judged):
    effects = pd.read_csv(judged[0] / "tables" / "effects.csv")
    assert not {"transparency", "angularity", "krumbein_roundness"} & set(effects["measure"])


def test_the_page_stands_alone_and_has_every_section(judged):
    page = (judged[0] / "report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    for words in (
        "What was looked at",
        "What these data can answer",
        "As it should be tested",
        "Methods",
        "Limits",
        "Every number",
    ):
        assert any(heading.startswith(words) for heading in headings), words
    assert "@media print" in page and not re.search(r'(src|href)="(?!data:)', page)
    assert (judged[0] / "figures" / "particles-skill.png").is_file() or (
        judged[0] / "figures" / "map-features.png"
    ).is_file()


def test_the_same_command_goes_on_and_says_the_same(judged, three):
    out, result = judged
    before = (out / "tables" / "predictions.csv").read_bytes()
    fixed = yaml.safe_load((out / "settings.yaml").read_text())["fixed"]
    names = ("permutations", "seed", "epochs", "pretrain_epochs", "vit", "resnet", "pixels")
    again = run(Run(three, out, **{name: fixed[name] for name in names}))
    assert (out / "tables" / "predictions.csv").read_bytes() == before
    kept = [name for name in result if name != "seconds"]
    assert [json.dumps(again[name]) for name in kept] == [json.dumps(result[name]) for name in kept]


def test_other_settings_are_refused(judged, three):
    with pytest.raises(BadInput, match="other settings than permutations"):
        unmask.study(three, out=judged[0], permutations=7)


def test_a_folder_with_something_else_is_left_alone(three, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match="holds no study"):
        unmask.study(three, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_line(three, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study"])
    assert stop.value.code == 0 and "study simulate" in capsys.readouterr().out
    for arguments in (
        ["study", "rnu"],
        ["study", "audit", "nowhere.yaml"],
        ["study", "run", str(three), "--out", "x", "--beside", "no"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        words = capsys.readouterr().err
        assert stop.value.code == 2 and words.startswith("unmask: ") and words.count("\n") == 1
