"""The command line and the Python face, from end to end, on small real images."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import unmask
from unmask.cli import VERBS, main
from unmask.data.sources import open_source
from unmask.training.run import Run

pytestmark = pytest.mark.usefixtures("hasty_probes", "shallow")
SMALL = ["--image-size", "8", "--batch-size", "64", "--workers", "0", "--precision", "float32", "--base-lr", "4e-3"]


def run(*arguments):
    """The exit code of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A short run on scikit-learn's digits, probed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["pretrain", "mae", "--data", "digits", "--probe", "digits:test", "--out", folder, *SMALL]
    assert run(*arguments, "--encoder", "vit-tiny/2", "--steps", "60", "--mask-ratio", "0.5") == 0
    return folder


def test_a_run_leaves_everything_behind(digits):
    there = {path.name for path in digits.iterdir()}
    assert there >= {
        "settings.yaml",
        "metrics.jsonl",
        "checkpoints",
        "encoder",
        "report.html",
        "result.json",
        "probe.json",
    }
    assert there >= {"tensorboard", "figures"}
    result = json.loads((digits / "result.json").read_text())
    assert result["verdict"] in ("learning", "starved by the loader")  # by what else the machine does
    assert result["steps"] == 60 and result["loss"] < 0.95 * result["uninformed_loss"]
    probe = json.loads((digits / "probe.json").read_text())
    for test in ("knn", "linear", "logistic"):
        for who in ("trained", "untrained", "raw_pixels"):
            assert probe[test][who]["low"] <= probe[test][who]["accuracy"] <= probe[test][who]["high"]
    assert probe["knn"]["raw_pixels"]["accuracy"] > 0.95 > 0.2 > probe["majority"]["accuracy"]
    page = (digits / "report.html").read_text()
    assert "learning" in page and "data:image/png;base64" in page
    assert "src=http" not in page and 'src="http' not in page and 'href="http' not in page
    for picture in ("reconstruction", "positions", "filters"):
        assert Image.open(digits / "figures" / f"{picture}.png").size[0] > 200


def test_a_run_leaves_a_card_that_the_hub_reads(digits):
    read = ModelCard.load(digits / "encoder" / "README.md")
    assert [result.dataset_name for result in read.data.eval_results] == ["digits:test"] * 3
    assert "1,437 images of digits" in read.content and "after 60 steps" in read.content


def test_settings_are_resolved_with_reasons(digits):
    stored = Run(digits).settings
    assert stored["settings"]["lr"] == pytest.approx(4e-3 * 64 / 256)
    assert stored["settings"]["channels"] == 1 and stored["reasons"]["channels"]
    assert stored["method_settings"]["mask_ratio"] == 0.5
    assert stored["data"]["images"] == 1437 and len(stored["preprocess"]["mean"]) == 1


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A flat folder of 40 crops of real photographs, 32 x 48, without labels."""
    folder, source = tmp_path_factory.mktemp("crops"), open_source("photos")
    for i in range(40):
        Image.fromarray(source.image(23 * i)[:, :32, :48].permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


def test_resume_gives_the_same_run(crops, tmp_path, monkeypatch):
    from unmask.training import engine

    common = ["pretrain", "mae", "--data", crops, "--encoder", "vit-tiny/8", "--image-size", "32", "--batch-size", "8"]
    common += ["--steps", "24", "--workers", "0"]
    assert run(*common, "--out", tmp_path / "whole") == 0
    assert json.loads((tmp_path / "whole" / "probe.json").read_text())["protocol"] == "no labels"
    original, steps = engine.schedule, []

    def schedule(optimisers, recipe, step):
        steps.append(step)
        if steps == list(range(18)):
            raise KeyboardInterrupt
        return original(optimisers, recipe, step)

    monkeypatch.setattr(engine, "schedule", schedule)
    assert run(*common, "--out", tmp_path / "cut") == 130
    steps.clear()
    assert run("pretrain", "mae", "--out", tmp_path / "cut", "--resume") == 0
    assert steps[0] == 17  # the last checkpoint, and on to the end
    whole, cut = (load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_resume_refuses_other_settings(digits, capsys):
    assert run("pretrain", "mae", "--out", digits, "--resume", "--batch-size", "32", "--mask-ratio", "0.6") == 2
    line = capsys.readouterr().err
    assert "--batch-size 32 (it began with 64)" in line and "--mask-ratio 0.6 (it began with 0.5)" in line


def test_probe_embed_reconstruct_report_and_export(digits, tmp_path, capsys):
    assert run("probe", digits, "--data", "digits", "--out", tmp_path / "probe.json", "--precision", "float32") == 0
    assert json.loads((tmp_path / "probe.json").read_text())["protocol"] == "by image"
    for name in ("v.parquet", "v.csv", "v.npz"):
        assert run("embed", digits, "--data", "digits:test", "--out", tmp_path / name, "--precision", "float32") == 0
    vectors = np.stack(pd.read_parquet(tmp_path / "v.parquet")["embedding"].to_list())
    assert vectors.shape == (360, 384)
    assert np.allclose(pd.read_csv(tmp_path / "v.csv").filter(regex=r"^e\d+$"), vectors, atol=1e-5)
    arrays = np.load(tmp_path / "v.npz", allow_pickle=False)
    assert np.array_equal(arrays["embedding"], vectors) and len(arrays["label"]) == 360
    assert run("reconstruct", digits, "digits:test", "--out", tmp_path / "r.png", "--mask-ratio", "0.75") == 0
    assert run("reconstruct", digits, "digits:test", "--out", tmp_path / "k.png", "--keep", "0", "5", "10") == 0
    assert Image.open(tmp_path / "r.png").size == Image.open(tmp_path / "k.png").size
    assert run("report", digits) == 0
    for to, name in (("timm", "t.safetensors"), ("huggingface", "hf"), ("mae", "m.safetensors"), ("unmask", "u")):
        assert run("export", digits, "--to", to, "--out", tmp_path / name) == 0
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "t.safetensors")
    again = unmask.embed(tmp_path / "u", data="digits:test", precision="float32")
    assert np.allclose(np.stack(again["embedding"].to_list()), vectors, atol=1e-5)


def test_the_python_face_is_the_command_line(crops, tmp_path):
    small = {"encoder": "vit-tiny/8", "image_size": (32, 48), "steps": 3, "batch_size": 8, "workers": 0}
    result = unmask.pretrain("mae", data=crops, out=tmp_path / "run", mask_ratio=0.5, **small)
    assert result["steps"] == 3
    encoder, preprocess = unmask.load(tmp_path / "run")
    assert encoder(preprocess.normalise(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))).shape == (2, 384)
    assert unmask.inspect(crops)["count"] == 40
    assert unmask.reconstruct(tmp_path / "run", crops, out=tmp_path / "r.png") == tmp_path / "r.png"
    assert unmask.attend(tmp_path / "run", crops, out=tmp_path / "a.png", mass=0.5) == tmp_path / "a.png"
    assert Image.open(tmp_path / "r.png").width > 100 and Image.open(tmp_path / "a.png").width > 100
    timm = unmask.export(tmp_path / "run", out=tmp_path / "t.safetensors")
    assert "blocks.0.attn.qkv.weight" in load_file(timm)
    with pytest.raises(unmask.BadInput, match="no layout is called 'caffe'"):
        unmask.export(tmp_path / "run", out=tmp_path / "t.safetensors", to="caffe")
    assert unmask.plan("vit-tiny/8", image_size="32", batch_size=4, device="cpu")["parameters"] > 8e5
    with pytest.raises(unmask.BadInput, match="batchsize"):
        unmask.pretrain("mae", data=crops, out=tmp_path / "other", batchsize=3)


def test_five_channels_of_16_bits(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "tiffs").mkdir()
    for i in range(20):
        pixels = rng.integers(0, 4000, (5, 48, 60), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "tiffs" / f"{i}.tif", pixels, photometric="minisblack", planarconfig="separate")
    common = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--encoder",
        "vit-tiny/16",
        "--image-size",
        "32x48",
    ]
    assert run("pretrain", "mae", "--data", tmp_path / "tiffs", "--out", tmp_path / "run", *common) == 0
    encoder, preprocess = unmask.load(tmp_path / "run")
    assert encoder.channels == 5 and encoder.image_size == (32, 48) and len(preprocess.mean) == 5
    assert 0.02 < preprocess.high[0] < 0.07  # 12 bits of 16: shown stretched


def test_an_oblong_size(crops, tmp_path):
    common = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--encoder",
        "vit-tiny/16",
        "--image-size",
        "160x224",
    ]
    assert run("pretrain", "mae", "--data", crops, "--out", tmp_path / "oblong", *common) == 0
    assert run("reconstruct", tmp_path / "oblong", crops / "1.png", crops / "2.png", "--out", tmp_path / "o.png") == 0
    assert Image.open(tmp_path / "o.png").size[0] > 400


def test_unreadable_images_are_skipped_counted_and_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    whole = (folder / "3.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    common = ["pretrain", "mae", "--data", folder, "--image-size", "16", "--encoder", "vit-tiny/4", "--batch-size", "7"]
    common += ["--steps", "4", "--workers", "0"]
    assert run(*common, "--out", tmp_path / "run") == 0
    unreadable = json.loads((tmp_path / "run" / "result.json").read_text())["unreadable"]
    assert [path.rpartition("/")[2] for path, _ in unreadable] == ["broken.jpg", "torn.png"]
    assert "torn.png" in (tmp_path / "run" / "report.html").read_text()
    assert run(*common, "--out", tmp_path / "strict", "--strict") == 2
    assert not (tmp_path / "strict" / "encoder").exists()


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name in ("empty", "mixed", "tiny", "one"):
        (folder / name).mkdir()
    for i, channels in enumerate((3, 5)):
        pixels = np.zeros((channels, 32, 32), dtype=np.uint8)
        tifffile.imwrite(folder / "mixed" / f"{i}.tif", pixels, photometric="minisblack", planarconfig="separate")
    Image.new("L", (64, 64)).save(folder / "tiny" / "a.png")
    Image.new("L", (5, 3)).save(folder / "tiny" / "b.png")
    rows = []
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(folder / "one" / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": "same"})
    pd.DataFrame(rows).to_csv(folder / "one" / "table.csv", index=False)
    pd.DataFrame(rows).rename(columns={"image": "picture"}).to_csv(folder / "one" / "other.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "{bad}/nothing"], "no such file or folder"),
        (["inspect", "{bad}/empty"], "no images in"),
        (["inspect", "{bad}/one/other.csv"], "image"),
        (["pretrain", "mae", "--data", "{bad}/mixed", "--out", "{out}"], "mixed channel counts"),
        (
            ["pretrain", "mae", "--data", "{bad}/tiny", "--out", "{out}", "--encoder", "vit-tiny/16"],
            "smaller than one 16-pixel patch",
        ),
        (
            ["pretrain", "mae", "--data", "{bad}/one/table.csv", "--probe", "{bad}/one/table.csv", "--out", "{out}"],
            "one class only",
        ),
        (
            ["pretrain", "mae", "--data", "digits", "--out", "{out}", "--image-size", "30", "--encoder", "vit-tiny/4"],
            "do not tile",
        ),
        (["pretrain", "mae", "--data", "digits", "--out", "{out}", "--encoder", "resnet81"], "no encoder is called"),
        (["pretrain", "mae", "--data", "digits", "--out", "{out}", "--encoder", "resnet18"], "MAE shows its encoder"),
        (
            ["pretrain", "mae", "--data", "digits", "--out", "{out}", "--batch-size", "5000"],
            "more than the 1437 images",
        ),
        (["pretrain", "mae", "--data", "digits", "--out", "{out}", "--mask-ratio", "1.5"], "between 0 and 1"),
        (["pretrain", "mae", "--data", "digits", "--out", "{out}", "--steps", "0"], "above 0"),
        (["pretrain", "mae", "--data", "digits", "--out", "{bad}/one"], "not empty"),
        (["pretrain", "mae", "--data", "digits"], "--out is missing"),
        (["pretrain", "mae", "--out", "{out}"], "--data is missing"),
        (["pretrain", "maee", "--data", "digits"], "no method is called"),
        (["pretrian"], "did you mean pretrain"),
        (["probe", "{bad}/empty", "--data", "digits"], "empty"),
        (["reconstruct", "{bad}/empty", "digits", "--out", "x.png"], "empty"),
        (["report", "{bad}/empty"], "not a run"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, says, bad, tmp_path, capsys):
    arguments = [argument.format(bad=bad, out=tmp_path / "run") for argument in arguments]
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and error.startswith("unmask: ") and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_help_teaches(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    for verb in VERBS:
        arguments = ["pretrain", "mae", "--help"] if verb == "pretrain" else [verb, "--help"]
        assert run(*arguments) == 0
        assert len(capsys.readouterr().out) > 200


def test_help_is_quick_because_it_imports_nothing_heavy():
    for arguments in (["--help"], []):
        code = f"import sys; from unmask.cli import answer; answer({arguments}); assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
