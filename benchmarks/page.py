"""How fast the page in the browser answers: from the slider's move to the new picture on the screen.

    uv run python benchmarks/page.py [RUN]

RUN: a run of MAE, by default a vit-tiny/8 at 64 px of two steps, whose speed is that of any other. Chromium drags the mask ratio
over 60 values, one after the other; a moment is from the event to the next frame that shows the answer. What the server needs
alone is timed beside it, in the same process. Writes benchmarks/results/page.json.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import uvicorn
from playwright.sync_api import sync_playwright

import unmask
from unmask.data.sources import open_source
from unmask.verbs.load import load, load_mae
from unmask.web import app
from unmask.web.reconstruct import show
from unmask.web.samples import Chosen, seen
from unmask.web.shelf import Shelf

DRAG = """async (moves) => {
    const slider = document.querySelector("input[type=range]"), shown = document.querySelector("#painted");
    const times = [];
    for (let i = 0; i < moves; i++) {
        const answered = new Promise((done) => {
            const watch = new MutationObserver(() => {
                watch.disconnect();
                requestAnimationFrame(() => done(performance.now()));
            });
            watch.observe(shown, { childList: true, subtree: true, characterData: true, attributes: true });
        });
        const began = performance.now();
        slider.value = 0.2 + 0.6 * (i % 2 ? i / moves : 1 - i / moves);
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        times.push((await answered) - began);
        await new Promise((done) => setTimeout(done, 50));
    }
    return times;
}"""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, app.temporary():
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "run"
        if not run.exists():
            unmask.pretrain(
                "mae", data="digits", out=run, encoder="vit-tiny/8", image_size=64, channels=3, steps=2, workers=0
            )
        shelf = Shelf((run,), load, load_mae, {"photos:test": open_source("photos:test")})
        (name,) = shelf.autoencoders()
        method, preprocess = shelf.autoencoder(name)
        images = seen(shelf, Chosen("photos:test", 5), preprocess, method.encoder.image_size)
        alone = []
        for i in range(60):
            keep, _ = method.sample(torch.tensor([i]), method.encoder.grid)
            began = time.perf_counter()
            show(method, images, preprocess, keep, "a sample")
            alone.append(1000 * (time.perf_counter() - began))
        server = uvicorn.Server(uvicorn.Config(app.application(shelf), port=0, log_level="warning"))
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
            page.locator("#painted p.note").wait_for()
            page.evaluate(DRAG, 5)
            dragged = page.evaluate(DRAG, 60)
            browser.close()
        server.should_exit = server.force_exit = True
    found = {}
    for what, times in (("server alone, ms", alone[5:]), ("from the slider to the screen, ms", dragged)):
        found[what] = dict(
            zip(("median", "95%", "longest"), np.percentile(times, (50, 95, 100)).round(1).tolist(), strict=True)
        )
        print(f"{what}: {found[what]}")
    found["encoder"] = method.encoder.config
    Path(__file__).with_name("results").joinpath("page.json").write_text(
        json.dumps(found, indent=2, default=list) + "\n"
    )


if __name__ == "__main__":
    main()
