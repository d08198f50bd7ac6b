"""The same pre-training over a grid of settings: cells are runs, the table is what their own files say, and nothing is trained
twice."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli import main
from unmask.methods.mae import MAE, Settings
from unmask.models import build
from unmask.training.run import Run
from unmask.verbs.grids import GRIDS
from unmask.verbs.plan import Needs, needs

pytestmark = pytest.mark.usefixtures("hasty_probes", "shallow")
SMALL = ["--encoder", "vit-tiny/4", "--batch-size", "64", "--device", "cpu", "--workers", "0", "--precision", "float32"]
SMALL += ["--base-lr", "0.004", "--data", "digits", "--test", "digits:test"]


def run(*arguments):
    """The exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ratios(tmp_path_factory):
    """Two cells, fine-tuned; the second was killed on its way, and the command given again."""
    out = tmp_path_factory.mktemp("ablations") / "ratios"
    command = [
        "ablate",
        "mae",
        "--vary",
        "mask-ratio=0.5,0.75",
        "--steps",
        "20",
        "--finetune-steps",
        "3",
        *SMALL,
        "--out",
        out,
    ]
    original, calls = Run.log, []

    def log(self, values):
        calls.append(values["step"])
        if len(calls) == 20 + 3 + 15:
            raise KeyboardInterrupt
        return original(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", log)
        assert run(*command) == 130
        calls.append("again")
        assert run(*command) == 0
    return out, command, calls


def test_a_killed_ablation_goes_on_where_it_stopped(ratios):
    _, _, calls = ratios
    again = calls[calls.index("again") + 1 :]
    assert again == [
        *range(15, 21),
        1,
        2,
        3,
    ]  # the rest of the second cell from its last checkpoint, and its fine-tuning


def test_the_table_is_what_the_runs_own_files_say(ratios):
    out, _, _ = ratios
    result = read(out / "ablation.json")
    assert [cell["name"] for cell in result["cells"]] == ["mask_ratio=0.5", "mask_ratio=0.75"]
    assert [cell["usual"] for cell in result["cells"]] == [False, True] and result["reference"] == "mask_ratio=0.75"
    for cell, row in zip(result["cells"], csv.DictReader((out / "ablation.csv").open()), strict=True):
        of = Run(out / cell["name"])
        assert of.settings["method_settings"]["mask_ratio"] == cell["values"]["mask_ratio"]
        linear, tuned = of.read("probe.json")["linear"]["trained"], of.read("finetune/result.json")["test"]
        for key in ("accuracy", "low", "high"):
            assert cell["linear"][key] == linear[key] and cell["finetune"][key] == tuned[key]
        done = of.read("result.json")
        assert cell["seconds"] == pytest.approx(sum(line["seconds"] for line in of.history()))
        assert cell["loss"] == done["loss"] and cell["encoder_parameters"] == done["encoder_parameters"]
        assert float(row["linear"]) == linear["accuracy"] and row["status"] == cell["status"] == "finished"
    assert result["cells"][0]["times"] > 1.15 and result["cells"][1]["times"] == 1  # twice as many patches are encoded
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert (
        result["sentence"] in page
        and 'href="mask_ratio=0.5/report.html"' in page
        and "http://" not in page
        and "https://" not in page
    )


def test_more_values_train_only_what_is_new_and_each_share_its_own(ratios, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(ratios[0], tmp_path / "more")
    trained = []

    def pretrain(method, settings, own):
        trained.append((settings.out.name, own.mask_ratio))
        raise unmask.BadInput("the disk is full\nvery full")

    monkeypatch.setattr("unmask.verbs.ablate.pretrain", pretrain)
    command = [*ratios[1][:-1], out, "--vary", "mask_ratio=0.5,0.75,0.25"]
    assert command.count("--vary") == 2  # the same setting twice is a slip
    assert run(*command) == 2 and "varied twice" in capsys.readouterr().err
    del command[2:4]
    assert run(*command, "--share", "2/3") == 0 and trained == []
    result = read(out / "ablation.json")
    assert [cell["status"] for cell in result["cells"]] == ["finished", "finished", "not finished"]
    assert run(*command, "--share", "3/3") == 0 and trained == [("mask_ratio=0.25", 0.25)]
    said = capsys.readouterr().out
    assert "mask_ratio=0.25: the disk is full" in said.replace("\n", " ")
    result = read(out / "ablation.json")
    assert [cell["status"] for cell in result["cells"]] == ["finished", "finished", "failed"]
    assert result["cells"][2]["linear"] is None and "mask_ratio 0.5" in result["sentence"]


def test_a_cell_that_diverges_does_not_stop_the_others(tmp_path, capsys):
    out = tmp_path / "rates"
    small = ["--steps", "10", "--finetune-steps", "0", *SMALL, "--out", out]
    small[small.index("--base-lr") : small.index("--base-lr") + 2] = []
    assert run("ablate", "mae", "--vary", "base_lr=1e30,0.004", *small) == 0
    first, second = read(out / "ablation.json")["cells"]
    assert first["status"] == "diverged" and first["linear"] is None and first["why"]
    assert second["status"] == "finished" and second["linear"] and second["finetune"] is None
    assert "diverged" in capsys.readouterr().out
    assert run("ablate", "mae", "--vary", "base_lr=1e30,0.004", *small) == 0  # and it is not tried again
    assert "2 finished, 0 to train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mae"], "nothing is varied"),
        (["mae", "--vary", "mask_ratio"], "a setting and its values"),
        (["mae", "--vary", "mask_ratoi=0.5"], "did you mean mask_ratio?"),
        (["mae", "--vary", "mask_ratio=0.5,half"], "mask_ratio takes a number"),
        (["mae", "--vary", "steps=5,5.5"], "steps takes a whole number"),
        (["mae", "--vary", "masking=random,blok"], "masking takes one of random, block, grid"),
        (["mae", "--vary", "norm_pix=yes"], "norm_pix takes true or false"),
        (["mae", "--vary", "crop_scale=0.2,1"], "a space between them, in quotes"),
        (["mae", "--vary", "mask_ratio=0.5,0.5"], "a value is there twice"),
        (["mae", "--vary", "mask_ratio=0.5,1.5"], "mask_ratio=1.5: --mask-ratio is 1.5"),
        (["mae", "--vary", "encoder=vit-tiny/4,vit-tinny/4"], "encoder=vit-tinny-4: no encoder"),
        (["mae", "--vary", "mask_ratio=0.5,0.6", "--mask-ratio", "0.7"], "--mask-ratio 0.7 is fixed, and varied"),
        (["mae", "--vary", "data=a,b"], "the same for all cells"),
        (["mae", "--vary", "seed=0,1", "--share", "3/2"], "--share 3/2"),
        (["mae", "--vary", "seed=0,1", "--labelled", "{bare}"], "no labels to judge by"),
        (["simclr", "--grid", "mask-ratio"], "of MAE's settings"),
        (["simclr", "--vary", "mask_ratio=0.5,0.6"], "no setting of simclr is called so"),
        (["maee"], "no method is called"),
    ],
)
def test_a_slip_is_one_line_before_anything_is_trained(arguments, says, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "bare" / "a.png")
    arguments = [argument.format(bare=tmp_path / "bare") for argument in arguments]
    small = SMALL if "--vary" not in arguments or "encoder" not in arguments[2] else SMALL[2:]
    assert run("ablate", *arguments, *small, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert says in said and said.startswith("unmask: ") and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_another_ablation_in_the_folder_is_refused(ratios, tmp_path, capsys):
    _, command, _ = ratios
    for changed, says in (
        (["--steps", "30"], "--steps 30 (it began with 20)"),
        (["--no-norm-pix"], "--norm-pix false (it began with true)"),
        (["--data", "digits:test"], "--data digits:test (it began with digits)"),
        (["--vary", "decoder_depth=1,2"], "varies mask_ratio, not mask_ratio, decoder_depth"),
    ):
        assert run(*command, *changed) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").touch()
    assert run(*command[:-1], tmp_path / "other") == 2
    assert "not empty and holds no ablation" in capsys.readouterr().err


@pytest.fixture
def built_only(monkeypatch):
    """Cells are built, as always before the first is trained, and nothing more."""

    def built(make, *_):
        with torch.device("meta"):
            make()
        return Needs(**dict.fromkeys(Needs.__dataclass_fields__, 1))

    monkeypatch.setattr("unmask.verbs.ablate.needs", built)
    monkeypatch.setattr("unmask.verbs.ablate.train_cell", lambda *_: None)


@pytest.mark.usefixtures("built_only")
def test_ready_made_grids_show_what_was_published_beside_what_is_found(tmp_path, capsys):
    result = unmask.ablate("mae", data="digits", out=tmp_path / "target", grid="target", encoder="vit-tiny/4", steps=5)
    assert {cell["name"]: cell["published"] for cell in result["cells"]} == {
        "target=pixels": {"finetune": 84.9, "linear": 73.5},
        "target=normalised-pixels": {"finetune": 85.4, "linear": 73.9},
        "target=components": {"finetune": 84.6, "linear": 72.3},
    }
    assert "needs a tokenizer" in result["left_out"][0] and result["published"]
    assert "85.4/73.9" in capsys.readouterr().out and "84.6/72.3" in (tmp_path / "target" / "report.html").read_text()
    options = {"data": "digits", "encoder": "vit-tiny/4", "image_size": 32, "batch_size": 16}
    for grid in set(GRIDS) - {"target", "length"}:
        result = unmask.ablate("mae", out=tmp_path / grid, grid=grid, steps=5, **options)
        assert len(result["cells"]) == len(GRIDS[grid].points) and any(cell["usual"] for cell in result["cells"])
    result = unmask.ablate("simclr", out=tmp_path / "length", grid="length", epochs=8, **options)
    assert [cell["values"]["epochs"] for cell in result["cells"]] == [1, 2, 4, 8, 16]


def test_mask_tokens_in_the_encoder_cost_what_the_paper_says():
    """Table 1c: 3.3 times the operations, for ViT-L with a decoder of 8 blocks."""

    def flops(inside):
        def make():
            vit = build("vit-large/16", image_size=(224, 224), channels=3, positions="sincos")
            return MAE(vit, Settings(mask_token_in_encoder=inside))

        return needs(make, 1, "float32", "adamw").flops

    assert flops(True) / flops(False) == pytest.approx(3.3, abs=0.1)


def test_several_settings_of_any_kind_vary_from_python(tmp_path, monkeypatch):
    cells = []
    monkeypatch.setattr("unmask.verbs.ablate.train_cell", lambda method, settings, cell, labelled: cells.append(cell))
    vary = {"encoder": ("vit-tiny/4", "vit-tiny/2"), "crop_scale": ((0.2, 1), (0.5, 1.0)), "norm_pix": (True, False)}
    result = unmask.ablate("mae", data="digits", out=tmp_path / "all", vary=vary, steps=2, labelled="digits:test")
    assert len(cells) == len(result["cells"]) == 8
    assert cells[0].name == "encoder=vit-tiny-4,crop_scale=0.2-1,norm_pix=true"
    assert cells[-1].general.encoder == "vit-tiny/2" and cells[-1].own.crop_scale == (0.5, 1.0)
    assert cells[-1].own.norm_pix is False and cells[-1].general.probe is None
    assert torch.tensor([cell["times"] for cell in result["cells"]]).max() > 1.5


@pytest.mark.usefixtures("built_only")
def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    options = {"data": "digits", "encoder": "vit-tiny/4", "steps": 2, "out": tmp_path / "out", "vary": {"seed": (0, 1)}}
    unmask.ablate("mae", **options)
    with (tmp_path / "out" / "seed=1" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unmask.ablate("mae", **options)
    assert "seed=1 is being trained by another process" in capsys.readouterr().out
