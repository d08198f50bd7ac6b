import os
from pathlib import Path

import pytest
import torch

from unmask.data.decode import Preprocess
from unmask.data.sources import open_source
from unmask.evaluate import knn, linear
from unmask.evaluate.features import extract, standardise

torch.set_num_threads(1)  # tiny tensors: a second thread only waits
os.environ["OMP_NUM_THREADS"] = "1"  # the same in processes that tests start


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, or a skip that says what is missing."""
    folder = os.environ.get("UNMASK_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNMASK_DATA_DIR does not name the folder of real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def knn_of():
    def judge(encoder) -> float:
        """k-NN accuracy on the digits: the first 1,200 judge the others."""
        source = open_source("digits")
        options = {"device": torch.device("cpu"), "precision": "float32"}
        vectors, _ = extract(encoder, source, Preprocess(1, (0.3,), (0.37,)), (8, 8), **options)
        targets = torch.from_numpy(source.targets())
        train, test = standardise(vectors[:1200], vectors[1200:])
        predicted, _ = knn.predict(train, targets[:1200], test, 10)
        return float((predicted == targets[1200:]).float().mean())

    return judge


@pytest.fixture(scope="session")
def unmoved():
    def check(history, golden) -> None:
        """Losses are those of an earlier run. Batch norms of small batches, and Adam's first steps, turn a rounding of 1e-7,
        another machine's, into 0.1% after one step and 2.5% within ten (seen by moving the weights so far)."""
        losses = [line["loss"] for line in history]
        assert losses[0] == pytest.approx(golden[0], rel=1e-4)
        assert losses[:2] == pytest.approx(golden[:2], rel=3e-3)
        assert losses == pytest.approx(golden, rel=0.05)

    return check


@pytest.fixture(scope="module")
def hasty_probes():
    """Probes that are not fitted to their end, for tests that look at none of their figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "LEAST_STEPS", 20)
        patch.setattr(linear, "PENALTIES", linear.PENALTIES[:2])
        yield
