"""The pictures and the page: what they show, and that a page is whole, offline and safe whatever is missing."""

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from unmask import figures, report
from unmask.evaluate import metrics
from unmask.layers import sincos_positions
from unmask.training.run import Run

HOSTILE = "photos/<script>alert(1)</script>\"'&.jpg"


def opened(png: bytes) -> np.ndarray:
    """The RGB pixels of a PNG (H, W, 3), of a size that a page can show."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and 100 <= image.width <= 2400 and 80 <= image.height <= 2400, image.size
    return np.asarray(image.convert("RGB"))


def log(lines: int) -> list[dict]:
    return [
        {
            "step": 10 * i,
            "epoch": i / 4,
            "loss": 0.5 + math.exp(-i),
            "uninformed": 1.0,
            "ratio": 0.5 + math.exp(-i),
            "images_per_second": 1000.0,
            "loader_wait": 0.05,
            "seconds": 1.0,
            "lr": 1e-3 / i,
            "grad_norm": 2.0 / i,
            "update_ratio": 1e-3,
        }
        | ({"rank": 10.0 + i, "feature_std": 0.3} if i % 2 else {})
        for i in range(1, lines + 1)
    ]


def score(accuracy: float) -> dict:
    interval = {"low": accuracy - 0.02, "high": accuracy + 0.02}
    return {"accuracy": accuracy, **interval, "balanced": accuracy - 0.1, "n": 500} | {
        f"balanced_{side}": value - 0.1 for side, value in interval.items()
    }


def three(trained: float) -> dict:
    return {"trained": score(trained), "untrained": score(0.4), "raw_pixels": score(0.45)}


def judged(n: int, K: int, absent: int = -1, sharp: float = 2.0, name: str = "class") -> dict:
    """A test of n images with K classes of which one may be absent, as test.json holds it."""
    rng = np.random.default_rng(0)
    targets = rng.choice(np.setdiff1d(np.arange(K), [absent]), size=n)
    logits = sharp * (rng.normal(size=(n, K)) + 2 * np.eye(K)[targets])
    names = [f"{name} {i}" for i in range(K)]
    found = metrics.report(
        torch.softmax(torch.from_numpy(logits), 1), targets, names, train_targets=targets, resamples=20
    )
    return found | {"protocol": "held-out fifth by group", "data": HOSTILE, "warning": None}


def drawn(test: dict) -> dict[str, bytes]:
    names = [one["name"] for one in test["classes"]]
    return {
        "confusion": figures.confusion(test["confusion"], names),
        "reliability": figures.reliability(test["calibration"]),
        "recalls": figures.recalls(test["classes"]),
    }


def a_run(folder: Path, history=(), method: str = "mae", **files: dict) -> Run:
    folder.mkdir()
    settings = {
        "unmask": "0.1.0",
        "date": "2025-01-02T03:04:05",
        "method": method,
        "command": f"unmask pretrain mae --data '{HOSTILE}'",
        "settings": {"data": HOSTILE, "lr": 6e-4, "encoder": "vit-tiny/4", "image_size": [32, 32], "compile": False},
        "method_settings": {"mask_ratio": 0.75, "decoder_width": None},
        "reasons": {"lr": "0.0006 = 1.5e-4 × 1024 / 256"},
        "data": {"name": HOSTILE, "images": 1234, "fingerprint": "abc"},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Run(folder)


class Page(HTMLParser):
    """Checks that tags are balanced and that nothing is fetched; collects the words."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.words, self.images = [], [], 0
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "data", "action") or value.startswith("data:"), (tag, name)
            assert not name.startswith("on"), name
            assert name != "style" or "url(" not in value, value
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def written(run: Run, pictures: dict[str, bytes] | None = None) -> Page:
    path = report.write(run, pictures or {})
    assert path == run.folder / "report.html"
    assert not list(run.folder.glob(".*")), "nothing half-written is left"
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_page(tmp_path):
    result = {
        "verdict": "learning",
        "sentence": "The loss fell to 51%.",
        "advice": ["Train longer & wider."],
        "loss": 0.5123,
        "uninformed_loss": 0.9987,
        "steps": 2119,
        "seconds": 480.0,
        "images_per_second": 1100.0,
        "loader_wait": 0.04,
        "rank": 98.7,
        "device": "cpu",
        "unreadable": [[HOSTILE, "truncated"]] + [[f"{i}.png", "empty"] for i in range(79)],
    }
    probe = {"protocol": "test set", "train": 2000, "test": 500, "classes": ["a", "b"], "sentence": "It beats pixels."}
    probe |= {"knn": three(0.61), "linear": three(0.72), "logistic": three(0.73), "majority": score(0.2)}
    picture = figures.filters(torch.randn(32, 48), 4, 3)
    pictures = dict.fromkeys(("reconstruction", "positions", "filters"), picture)
    page = written(a_run(tmp_path / "a <b> 'c'", log(20), result=result, probe=probe), pictures)
    for words in (
        "✓ learning",
        "The loss fell to 51%.",
        "Train longer & wider.",
        "0.5123",
        "0.9987",
        "1,234 images",
        "8 min",
        "0.610 [0.590–0.630]",
        "0.720",
        "0.510 [0.490–0.530]",
        "It beats pixels.",
        "0.0006 = 1.5e-4 × 1024 / 256",
        "80 files were left out",
        HOSTILE,
        "and 30 more",
        "unmask 0.1.0",
    ):
        assert words in page.text, words
    assert page.images == 5


def test_groups_and_images_side_by_side(tmp_path):
    probe = {"protocol": "by group", "train": 2000, "test": 500, "knn": three(0.52), "majority": score(0.4)}
    probe["by_image"] = {"knn": three(0.81), "majority": score(0.4), "why": "One site, one light."}
    text = written(a_run(tmp_path / "run", probe=probe)).text
    assert "0.520" in text and "0.810" in text and "One site, one light." in text and "groups kept apart" in text


def test_no_labels(tmp_path):
    probe = {"protocol": "no labels", "sentence": "There are no labels.", "rank": 12.3, "feature_std": 0.2}
    text = written(a_run(tmp_path / "run", probe=probe)).text
    assert "There are no labels." in text and "12.3" in text and "whiskers" not in text


@pytest.mark.parametrize("method", report.SUPERVISED)
def test_a_classifier(tmp_path, method):
    test = judged(300, 4, absent=2, name="<b>class</b>")
    reports = [judged(300, 4, sharp=sharp) for sharp in (1.0, 2.0, 3.0)]
    test |= {"warning": "Labels can hardly be told from <groups>.", "seeds": metrics.seeds(reports)}
    result = {"verdict": "learning", "sentence": "It learns.", "loss": 0.5, "uninformed_loss": 1.4}
    run = a_run(tmp_path / "run", log(5), method=method, result=result, test=test)
    page = written(run, drawn(test))
    for words in (
        {"finetune": "vit-tiny/4 trained from scratch", "distill": "vit-tiny/4 taught by"}[method],
        "What it gets right, on images it never saw",
        test["sentence"],
        "Labels can hardly be told from <groups>.",
        f"{test['accuracy']:.3f} [{test['low']:.3f}–{test['high']:.3f}]",
        f"{test['calibration']['ece']:.3f} [",
        "held-out fifth by group · 300 images",
        HOSTILE,
        "Trained 3 times from different seeds: accuracy 0.",
        "<b>class</b> 2 0 no image",
        "how common each answer is",
        f"unmask predict {run.folder} --data new/images --out {run.folder}/predictions.csv",
    ):
        assert words in page.text, words
    assert page.images == 5 and "unmask probe" not in page.text
    assert "groups go together" not in written(a_run(tmp_path / "calm", method=method, test=judged(60, 2))).text


def test_a_classifier_of_many_classes_and_of_several_labels(tmp_path):
    text = written(a_run(tmp_path / "many", method="finetune", test=judged(500, 70))).text
    assert "70 classes, worst first" in text and "and 20 more, in test.json" in text
    rng = np.random.default_rng(0)
    targets = rng.random((80, 3)) < np.array([0.5, 0.3, 0])
    test = metrics.report_multilabel(rng.random((80, 3)), targets, ["a", "b", "c"], resamples=20)
    picture = {"recalls": figures.recalls(test["classes"])}
    page = written(a_run(tmp_path / "several", method="finetune", test=test), picture)
    assert f"{test['map']:.3f} [{test['low']:.3f}–" in page.text and "Average precision, the worst class" in page.text
    assert page.images == 1 and "c 0 no image" in page.text and "commonest" not in page.text


def test_nothing_but_settings(tmp_path):
    page = written(a_run(tmp_path / "run"))
    assert "no verdict yet" in page.text and page.images == 0


@pytest.mark.parametrize("verdict", report.BANNERS)
def test_every_verdict(tmp_path, verdict):
    result = {"verdict": verdict, "sentence": "Here is why.", "loss": math.nan, "images_per_second": math.inf}
    page = written(a_run(tmp_path / "run", result=result))
    assert verdict in page.text and "Here is why." in page.text


def test_a_log_without_one_finite_loss(tmp_path):
    assert written(a_run(tmp_path / "run", [log(1)[0] | {"loss": math.nan}])).images == 2


def test_a_page_with_bare_settings(tmp_path):
    (tmp_path / "settings.yaml").write_text("method: mae\n")
    assert "MAE" in written(Run(tmp_path)).text


def test_names_that_are_not_text(tmp_path):
    name = b"photos/\xff.jpg".decode("utf-8", "surrogateescape")
    assert "photos/?.jpg" in written(a_run(tmp_path / "run", result={"unreadable": [[name, "empty"]]})).text


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "rows"), [((32, 32), 8), ((160, 224), 2), ((8, 8), 1), ((640, 320), 3), ((64, 16), 6)]
)
def test_reconstruction(channels, size, rows):
    image = torch.rand(channels, *size)
    row = dict.fromkeys(("original", "masked", "reconstruction", "pasted"), image)
    pixels = opened(figures.reconstruction([row] * rows, note="75% hidden"))
    if size == (32, 32):  # each pixel is one square of 6 x 6, its colour exact
        square = (figures.displayable(image)[0, 0] * 255).round()
        size, x = int(0.12 * 192), 8
        block = pixels[2 * size : 2 * size + 6, x : x + 6].astype(int)
        assert np.abs(block - square).max() <= 1 and np.ptp(block.reshape(-1, 3), axis=0).max() == 0


def test_masked_image_hides_all_but_the_kept():
    image = torch.rand(3, 8, 12)
    masked = figures.masked_image(image, torch.tensor([0, 5]), 4)
    assert torch.equal(masked[:, :4, :4], image[:, :4, :4]) and torch.equal(masked[:, 4:, 8:], image[:, 4:, 8:])
    assert (masked[:, :4, 4:] == 0.5).all() and (masked[:, 4:, :8] == 0.5).all()


def test_channels_that_cannot_be_shown_are_named():
    assert figures.displayable(torch.rand(5, 4, 6)).shape == (4, 6, 3)
    assert [figures.channels_shown(n) for n in (1, 3)] == ["", ""]
    assert "1 of 2" in figures.channels_shown(2) and "of 5" in figures.channels_shown(5)


@pytest.mark.parametrize("lines", [0, 1, 30])
def test_curves(lines):
    opened(figures.loss(log(lines)))
    opened(figures.curves(log(lines)))
    opened(figures.curves([{"step": 1, "epoch": 0.1, "loss": 1.0}]))


def test_a_place_without_a_panel_is_empty():
    lines = [{"step": i, "epoch": 1.0, "loss": 1.0, "lr": 0.1, "rank": 3.0, "accuracy": 0.5} for i in (1, 2)]
    picture = np.asarray(Image.open(io.BytesIO(figures.curves(lines))).convert("L"))
    height, width = picture.shape
    assert (
        picture[height * 6 // 10 :, width * 6 // 10 :].min()
        == 255
        > picture[height * 6 // 10 :, : width * 4 // 10].min()
    )


@pytest.mark.parametrize("grid", [(8, 8), (10, 14), (1, 12), (16, 2)])
def test_positions(grid):
    positions = F.normalize(sincos_positions(32, grid), dim=-1)
    opened(figures.positions(positions @ positions.T, grid))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("width", "patch"), [(64, 16), (8, 2), (96, 4)])
def test_filters(width, patch, channels):
    opened(figures.filters(torch.randn(width, patch * patch * channels), patch, channels))


def test_filters_keep_the_order_of_a_patch():
    ramp = torch.arange(4.0).repeat_interleave(4)  # brighter with each row, whatever the column
    weight = torch.randn(64, 1) * (ramp - ramp.mean()) + 1e-4 * torch.randn(64, 16)
    pixels = opened(figures.filters(weight, 4, 1))[10:138, 10:138, 0].astype(int)
    assert np.ptp(pixels, axis=1).max() <= 2 and np.ptp(pixels, axis=0).min() > 100


@pytest.mark.parametrize(("n", "K", "absent"), [(12, 4, -1), (300, 2, -1), (400, 12, 3)])
def test_figures_of_a_classifier(n, K, absent):
    for picture in drawn(judged(n, K, absent, name="a class of a long and telling name")).values():
        opened(picture)


def test_confusion_of_many_classes_is_no_larger_than_a_page():
    opened(figures.confusion(np.eye(500, dtype=int), [f"class {i}" for i in range(500)]))


def test_confusion_shows_right_blue_and_wrong_vermilion():
    """Two classes: the first always taken for the second, of a third there is none."""
    pixels = opened(figures.confusion([[0, 50, 0], [0, 9, 0], [0, 0, 0]], ["a", "b", "c"])).astype(int)
    blue, vermilion, grey = (
        (abs(pixels - colour).max(-1) < 3) for colour in ([0, 0x72, 0xB2], [0xD5, 0x5E, 0], [0xEE] * 3)
    )
    assert min(blue.sum(), vermilion.sum()) > 10_000 and grey.sum() > 2.5 * blue.sum()
    rows = [np.flatnonzero(colour.any(1)).mean() for colour in (vermilion, blue, grey)]
    assert rows == sorted(rows), "the truth goes down"


@pytest.mark.parametrize("sure", [0.95, 0.55])
def test_reliability_tells_too_sure_from_too_unsure(sure):
    found = metrics.report(np.array([[sure, 1 - sure]] * 100), [0] * 75 + [1] * 25, ["a", "b"], resamples=50)
    pixels = opened(figures.reliability(found["calibration"])).astype(int)
    assert ((abs(pixels - [0xD5, 0x5E, 0]).max(-1) < 3).sum() > 1000) == (sure > 0.75)


def test_recalls_show_the_worst_and_say_what_is_left_out():
    classes = [{"name": f"c{i}", "n": 50, "recall": i / 60, "low": i / 60, "high": i / 60} for i in range(60)]
    forty, sixty = (opened(figures.recalls(classes[:n])) for n in (40, 60))
    assert abs(len(forty) - len(sixty)) < 100, "no more than forty, and a line"
    assert len(opened(figures.recalls(classes[:3]))) < len(forty) / 3
    opened(figures.recalls([{"name": "x", "n": 0, "recall": None, "low": None, "high": None}]))


def test_partial_draws_each_series_in_a_colour_of_its_own():
    def line(*blocks):
        return [{"blocks": b, "accuracy": 0.5, "low": 0.45, "high": 0.55} for b in blocks]

    pixels = opened(figures.partial({"MAE": line(0, 0.5, 1, 12, "all"), "DINO": line(1, "all")})).astype(int)
    for colour in figures.SERIES[:2]:
        assert (abs(pixels - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).max(-1) < 3).sum() > 500
    opened(figures.partial({"one": line(0)}))


def test_long_names_keep_both_ends():
    assert figures.shortened("Levallois core, preferential", 22) == "Levallois c…eferential"
    assert figures.shortened("short", 22) == "short" and len(figures.shortened("x" * 99, 16)) == 16
    assert [figures.brief(n) for n in (9999, 12_345, 2_500_000)] == ["9999", "12k", "2.5M"]
