import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, or a skip that says what is missing."""
    folder = os.environ.get("UNMASK_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("UNMASK_DATA_DIR does not name the folder of real data sets")
    return Path(folder)
