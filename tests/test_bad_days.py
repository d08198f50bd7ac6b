"""What happens to a run when the world around it does not hold still: one clear line, and nothing that was whole is lost."""

import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unmask.cli import main
from unmask.training.run import Run

SETTINGS = ["--encoder", "vit-tiny/4", "--image-size", "16", "--steps", "6", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def line_of(capsys) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def limited(size: int, *arguments: object) -> subprocess.CompletedProcess:
    """The command where no file can be larger than `size` bytes, as on a disk that is full from there on."""
    return subprocess.run(
        [sys.executable, "-m", "unmask", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_says_so(pictures, tmp_path):
    out = tmp_path / "run"
    none = limited(2_000_000, "pretrain", "mae", "--data", pictures, "--out", out, *SETTINGS)
    assert none.returncode == 2 and "there is no checkpoint yet" in none.stderr and "Traceback" not in none.stderr
    assert not list((out / "checkpoints").iterdir())
    assert run("pretrain", "mae", "--out", out, "--resume") == 0
    # the last checkpoint once more, with no room for it
    newest = Run(out).checkpoints()[-1]
    newest.unlink()
    kept = Run(out).checkpoints()[-1].read_bytes()
    full = limited(2_000_000, "pretrain", "mae", "--out", out, "--resume")
    assert full.returncode == 2 and "step-000000005.pt is whole" in full.stderr and full.stderr.count("\n") == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000005.pt"]
    assert Run(out).checkpoints()[-1].read_bytes() == kept


def test_a_folder_that_vanishes_or_is_a_file(pictures, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    assert run("pretrain", "mae", "--data", pictures, "--out", tmp_path / "file" / "run", *SETTINGS) == 2
    assert "cannot be written" in line_of(capsys)
    out, saved = tmp_path / "run", Run.save

    def save_then_lose(self, *arguments, **options):
        saved(self, *arguments, **options)
        shutil.rmtree(out)

    monkeypatch.setattr(Run, "save", save_then_lose)
    assert run("pretrain", "mae", "--data", pictures, "--out", out, *SETTINGS) == 2
    assert "the log cannot be written (No such file or directory)" in line_of(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(pictures, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run("pretrain", "mae", "--data", pictures, "--out", tmp_path / "locked" / "run", *SETTINGS) == 2
    assert "cannot be written (Permission denied)" in line_of(capsys)


def test_images_that_vanish_or_change_while_training_are_named_and_replaced(pictures, tmp_path, capsys, monkeypatch):
    out, logged = tmp_path / "run", Run.log

    def log_then_change(self, values):
        logged(self, values)
        if values["step"] == 1:
            (pictures / "3.png").unlink(missing_ok=True)
            (pictures / "4.png").write_bytes(b"not a picture any more")

    monkeypatch.setattr(Run, "log", log_then_change)
    monkeypatch.setattr("unmask.data.loader.KEPT", 0)  # so that each epoch reads again
    assert run("pretrain", "mae", "--data", pictures, "--out", out, *SETTINGS, "--workers", "0") == 0
    assert dict(Run(out).read("result.json")["unreadable"]) == {
        "3.png": "no such file",
        "4.png": "not an image, or of a format that is not read",
    }
    capsys.readouterr()
    assert run("pretrain", "mae", "--out", out, "--resume") == 2
    assert "is not what the run" in line_of(capsys)


def test_every_checkpoint_torn_begins_again_and_says_so(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("pretrain", "mae", "--data", pictures, "--out", out, *SETTINGS) == 0
    expected = [(out / name).read_bytes() for name in ("metrics.jsonl", "encoder/model.safetensors")]
    for path in Run(out).checkpoints():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # one bit among millions
        path.write_bytes(content)
    capsys.readouterr()
    assert run("pretrain", "mae", "--out", out, "--resume") == 0
    assert capsys.readouterr().out.count("passed over") == 2
    assert [(out / name).read_bytes() for name in ("metrics.jsonl", "encoder/model.safetensors")] == expected


def test_a_table_with_duplicate_rows_and_missing_files_says_which(pictures, tmp_path, capsys):
    rows = [{"image": f"pictures/{i}.png", "label": "a" if i % 2 else "b"} for i in range(12)]
    rows += [{"image": "pictures/2.png", "label": "a"}, {"image": "pictures/99.png", "label": "b"}]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    assert run("inspect", tmp_path / "table.csv") == 0
    seen = " ".join(capsys.readouterr().out.split())
    assert "99.png" in seen and "duplicate" in seen
    out = tmp_path / "run"
    assert run("pretrain", "mae", "--data", tmp_path / "table.csv", "--out", out, *SETTINGS) == 0
    assert [path for path, _ in Run(out).read("result.json")["unreadable"]] == ["pictures/99.png"]
