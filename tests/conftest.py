import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from unmask.data.decode import Preprocess
from unmask.data.sources import open_source
from unmask.evaluate import knn, linear
from unmask.evaluate.features import extract, standardise
from unmask.models.vit import SIZES

torch.set_num_threads(1)  # tiny tensors: a second thread only waits
os.environ["OMP_NUM_THREADS"] = "1"  # the same in processes that tests start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of them would compile torch's thousands of files: 10 seconds


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


@pytest.fixture(scope="module")
def shallow():
    """A vit-tiny of two blocks instead of twelve, for tests of what is done with an encoder, not of what it is worth."""
    width, _, heads = SIZES["vit-tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vit-tiny", (width, 2, heads))
        yield


@pytest.fixture(scope="session")
def chromium():
    """A headless browser, or a skip that says what is missing."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=12_000)  # of a busy machine
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def served():
    @contextmanager
    def serve(shelf):
        """The address of a page that shows a shelf, served by a thread of this process."""
        import uvicorn

        from unmask.web import app

        with app.temporary():
            server = uvicorn.Server(uvicorn.Config(app.application(shelf), port=0, log_level="warning"))
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            server.should_exit = server.force_exit = True  # whatever a browser still listens to
            thread.join(timeout=20)

    return serve


@pytest.fixture
def visit(chromium):
    """Opens an address in a browser window of its own; fails if the page asks another host, or its scripts fail."""
    contexts, wrong = [], []

    def open_page(address, tab=None, width=1280, height=900, scheme="light"):
        viewport = {"width": width, "height": height}
        context = chromium.new_context(viewport=viewport, has_touch=width < 600, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(60_000)
        own = (f"{address}/", "data:", "blob:")
        context.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        if tab is not None:
            page.get_by_role("tab", name="Reconstruct").wait_for()
            if not page.get_by_role("tab", name=tab).is_visible():  # narrow windows put the last tabs behind a button
                page.locator(".overflow-menu > button").first.click()
            page.get_by_role("tab", name=tab).or_(page.locator(".overflow-dropdown button", has_text=tab)).first.click()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
