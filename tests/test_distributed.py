"""Several processes are one: the same losses, the same weights, one run folder that any number of them goes on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unmask.training import distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SETTINGS = ["--encoder", "vit-tiny/4", "--image-size", "16", "--steps", "40", "--batch-size", "8", "--workers", "0"]
SETTINGS += ["--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def start(processes: int, *options: object) -> subprocess.Popen:
    python = [sys.executable] if processes == 1 else [*TORCHRUN, "--nproc-per-node", str(processes)]
    command = [*python, "-m", "unmask", "pretrain", "mae", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pretrain(processes: int, *options: object) -> str:
    """Run to the end; what it printed."""
    process = start(processes, *options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def until_logged(run: Path, lines: int, process: subprocess.Popen) -> None:
    log = run / "metrics.jsonl"
    while not log.is_file() or log.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain(1, "--data", pictures, "--out", out, *SETTINGS)
    return out


@pytest.mark.parametrize("options", [["--accumulate", "2"], ["--shard"]])
def test_two_processes_train_as_one(alone, pictures, tmp_path, options):
    out = pretrain(2, "--data", pictures, "--out", tmp_path / "run", *SETTINGS, *options)
    assert out.count("mae on 40 images") == 1 and out.count("Report:") == 1  # rank 0 alone speaks
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(alone), rtol=0, atol=1e-5)
    one, two = (load_file(run / "encoder" / "model.safetensors") for run in (alone, tmp_path / "run"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)
    assert (tmp_path / "run" / "report.html").is_file()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-000000036.pt",
        "step-000000040.pt",
    ]


def test_a_sharded_run_stopped_by_its_scheduler_goes_on_in_one_process(alone, pictures, tmp_path):
    run = tmp_path / "run"
    process = start(2, "--data", pictures, "--out", run, *SETTINGS, "--shard")
    until_logged(run, 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "the checkpoint of step" in err
    stopped = len(losses(run))
    assert 3 <= stopped < 40
    pretrain(1, "--out", run, "--resume")
    assert len(losses(run)) == 40
    np.testing.assert_allclose(losses(run), losses(alone), rtol=0, atol=1e-5)


def test_one_process_that_dies_ends_the_rest(pictures, tmp_path):
    run = tmp_path / "run"
    process = start(2, "--data", pictures, "--out", run, *SETTINGS, "--steps", "4000")
    until_logged(run, 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [child for child in children if b"unmask" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert (process.returncode != 0 and "SIGKILL" in err) or "exitcode: -9" in err.replace(" ", "")


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.BatchNorm1d(64, affine=False)
    )


def loss(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Each row of this process against the rows of all, as contrastive losses have it."""
    z = module(x)
    return (z @ distributed.gather(z).T).square().mean()


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    module, x = network(), torch.load(folder / "x.pt")
    distributed.synchronise(module)
    parallel = distributed.spread(module, shard=False)
    value = loss(parallel, x[rank * 6 : rank * 6 + 6])
    value.backward()
    found = {"loss": distributed.mean(value), **module.state_dict()}
    found |= {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_batch_norm_and_gathered_rows_are_those_of_one_process(tmp_path):
    x = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.save(x, tmp_path / "x.pt")
    torch.multiprocessing.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method="spawn")
    module = network()
    value = loss(module, x)
    value.backward()
    wanted = {"loss": value, **module.state_dict()}
    wanted |= {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_batch_norms_that_are_replaced_keep_what_they_are():
    module = network().double()
    module[1].weight.requires_grad_(False)
    before = dict(module.named_parameters()) | dict(module.named_buffers())
    distributed.synchronise(module)
    after = dict(module.named_parameters()) | dict(module.named_buffers())
    assert all(type(module[i]) is distributed.SyncBatchNorm for i in (1, 3))
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
