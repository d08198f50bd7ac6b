"""What learns from two views of an image, in two processes as in one."""

import pytest
import torch

from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.methods import METHODS
from unmask.models.vit import ViT
from unmask.training.engine import fit
from unmask.training.optim import Recipe

OPTIONS = {"simclr-v2": {"memory": 100}, "byol": {"hidden": 32, "projection": 16}}


def losses(name: str, part: int = 0, parts: int = 1) -> list[float]:
    torch.manual_seed(0)
    kind = METHODS[name]
    encoder = ViT((8, 8), 2, 1, width=32, depth=1, heads=2, positions="sincos", pool="class")
    method = kind(encoder, kind.Settings(crop_scale=(0.4, 1.0), flip=0.0, **OPTIONS[name]))
    preprocess = Preprocess(1, (0.3,), (0.37,))
    batches = Loader(open_source("digits"), preprocess, method.views, 32, part=part, parts=parts)
    return [line["loss"] for line in fit(method, batches, Recipe(6, 4e-3, warmup=1))]


def one_of_two(rank: int, folder) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: losses(name, rank, 2) for name in OPTIONS}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    """Batch norms see both, every view of the other process is among the negatives, and memories are alike."""
    torch.multiprocessing.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method="spawn")
    for name in OPTIONS:
        alone = losses(name)
        assert alone[0] != alone[-1]
        for rank in (0, 1):
            assert torch.load(tmp_path / f"{rank}.pt")[name] == pytest.approx(alone, abs=1e-5), name
