"""What learns from two views of an image: whole runs, and two processes as one."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import unmask
from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.methods import METHODS
from unmask.models.vit import ViT
from unmask.training.engine import fit
from unmask.training.optim import Recipe
from unmask.verbs.load import load_run

pytestmark = pytest.mark.usefixtures("hasty_probes", "shallow")
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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits as files, in a folder for each: 160 to learn from, 80 to test on."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    for i, (image, target) in enumerate(zip(digits.images[:240], digits.target, strict=False)):
        place = folder / ("train" if i < 160 else "test") / str(target)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * 15)).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "encoder"), [("simclr", "vit-tiny/4"), ("simclr-v2", "resnet18"), ("byol", "vit-tiny/4")]
)
def test_a_run_ends_with_a_verdict_and_tests_the_vectors_on_both_sides_of_the_head(pictures, tmp_path, name, encoder):
    run = tmp_path / "run"
    options = {"data": str(pictures / "train"), "probe": str(pictures / "test"), "image_size": "8", "channels": 1}
    result = unmask.pretrain(name, out=run, **options, encoder=encoder, steps=20, workers=0, precision="float32")
    assert (
        result["verdict"] in ("learning", "no better than uninformed", "starved by the loader")
        and result["steps"] == 20
    )
    probe = json.loads((run / "probe.json").read_text())
    for test in ("knn", "linear", "logistic"):
        assert set(probe[test]) == {"trained", "projection", "untrained", "raw_pixels"}
    assert probe["linear"]["projection"] != probe["linear"]["trained"]
    assert "behind its projection head" in (run / "report.html").read_text()
    method, _ = load_run(run)
    again, _ = unmask.load(run)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(method.encoder(x), again(x))
    assert method.projection(method.encoder(x)).shape == (2, method.settings.projection)
    later = unmask.probe(run, data=str(pictures / "train"), test=str(pictures / "test"), precision="float32", workers=0)
    assert {test: later[test]["projection"] for test in ("knn", "linear")} == {
        test: probe[test]["projection"] for test in ("knn", "linear")
    }


@pytest.mark.parametrize("name", ["simclr", "simclr-v2", "byol"])
def test_it_can_be_planned(name):
    """unmask plan builds methods of tensors without values."""
    kind = METHODS[name]
    with torch.device("meta"):
        method = kind(models.build("vit-tiny/4", image_size=(8, 8), **kind.ENCODER))
    assert (
        method.projection[0].weight.shape[1] == 192 if name == "byol" else method.middle()[1][0][0].in_features == 192
    )
