"""Several runs side by side."""

import json

import pytest

import unmask
from unmask.cli import main

pytestmark = pytest.mark.usefixtures("hasty_probes", "shallow")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("short", 1), ("longer", 40)):
        options = {"encoder": "vit-tiny/4", "batch_size": 64, "base_lr": 0.004, "steps": steps, "device": "cpu"}
        options["probe"] = "digits:test"  # a test set is judged five times as fast as five folds
        unmask.pretrain("mae", data="digits", out=folder / name, **options)
    return folder


def test_the_best_run_is_named_and_what_each_cost(runs, tmp_path, capsys):
    paths = [str(runs / "short"), str(runs / "longer")]
    with pytest.raises(SystemExit, match="0"):
        main(["compare", *paths, "--data", "digits", "--test", "digits:test", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    short, longer = result["runs"]["short"], result["runs"]["longer"]
    assert longer["image_views"] == 40 * 64 == 40 * short["image_views"]
    best = max(result["runs"], key=lambda name: result["runs"][name]["knn"]["accuracy"])
    assert 0 <= short["knn"]["low"] <= short["knn"]["accuracy"] <= short["knn"]["high"] <= 1
    assert short["untrained"] == longer["untrained"]  # the same seed
    assert result["protocol"] == "test set" and result["raw_pixels"]["knn"]["accuracy"] > 0.9
    assert f"by k-NN: {best}" in result["sentence"] and result["sentence"] in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_folds_are_used_without_a_test_set_and_encoder_folders_are_taken(runs, tmp_path):
    paths = [runs / "short", runs / "longer" / "encoder"]
    result = unmask.compare(*paths, data="digits:test", out=tmp_path / "out")
    assert result["protocol"] == "by image" and result["train"] == result["test"]
    assert result["runs"]["encoder"]["seconds"] is None and result["runs"]["short"]["method"] == "mae"


@pytest.mark.parametrize(
    ("names", "line"),
    [(["short"], "at least two runs"), (["short", "short"], "each once"), (["short", "nothing"], "nothing")],
)
def test_bad_input_is_one_line(runs, names, line, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *[str(runs / name) for name in names], "--data", "digits", "--out", str(tmp_path)])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and line in said and "\n" not in said
