"""A run that is killed, at whatever moment, and called again ends as if nothing had happened, to the last bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SETTINGS = ["--encoder", "vit-lite-2/4", "--image-size", "16", "--steps", "30", "--batch-size", "8"]
SETTINGS += ["--drop-path", "0.2", "--workers", "1", "--device", "cpu", "--resume"]

# Python takes seconds to import torch: one process imports it once, and forks a child for each life of the run.
LIVES = """
import os, signal, sys, time, random
from unmask.cli import main
import torch, unmask.verbs.pretrain
torch.set_num_threads(1)
def life():
    child = os.fork()
    if child == 0:
        try:
            main(sys.argv[3:])
            os._exit(0)
        except SystemExit as end:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(end.code or 0)
    return child
draw, kills = random.Random(int(sys.argv[2])), 0
number, longest = getattr(signal, sys.argv[1].split(":")[0]), float(sys.argv[1].split(":")[1])
while True:
    child = life()
    if longest:
        time.sleep(draw.uniform(0, longest))
        longest *= 1.1  # on a machine so busy that no life gets anywhere, later ones do
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        break
    assert code in (-number, 128 + number), code
    kills += 1
print("kills", kills)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def live(pictures: Path, out: Path, how: str, seed: int = 0) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-c",
        LIVES,
        how,
        str(seed),
        "pretrain",
        "mae",
        "--data",
        str(pictures),
        "--out",
        str(out),
    ]
    return subprocess.run([*command, *SETTINGS], capture_output=True, text=True, timeout=900, check=False)


def outcome(run: Path) -> tuple[bytes, bytes]:
    return (run / "encoder" / "model.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


def test_killed_at_random_moments_it_ends_the_same(pictures, tmp_path):
    whole = live(pictures, tmp_path / "whole", "SIGKILL:0")
    assert whole.returncode == 0, whole.stderr
    expected, kills, seed = outcome(tmp_path / "whole"), 0, 0
    while kills < 20:
        killed = live(pictures, tmp_path / f"killed{seed}", "SIGKILL:2.5", seed)
        assert killed.returncode == 0, killed.stderr
        assert outcome(tmp_path / f"killed{seed}") == expected
        kills += int(killed.stdout.split()[-1])
        seed += 1
    steps = [json.loads(line)["step"] for line in expected[1].decode().splitlines()]
    assert steps == list(range(1, 31))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_at_once_and_a_clear_line(pictures, tmp_path, name):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "unmask", "pretrain", "mae", "--data", str(pictures), "--out", str(run), *SETTINGS]
    long = [*command, "--steps", "5000"]  # a tenth of it would be a long way to the first checkpoint
    process = subprocess.Popen(
        long, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while not ((run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size):  # a step is made
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, getattr(signal, name))  # the workers of the loader get it, too, as from a terminal
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    (line,) = err.strip().splitlines()
    step = int(re.search(r"the checkpoint of step ([\d,]+) is kept", line)[1].replace(",", ""))
    assert "--resume" in line and (run / "checkpoints" / f"step-{step:09d}.pt").is_file()
