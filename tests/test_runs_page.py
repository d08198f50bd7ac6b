"""Runs and Study in the browser: runs beside each other, those that go on, those that are broken, and reports of both."""

import json
import math
import os
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import yaml
from playwright.sync_api import expect

from unmask import figures
from unmask.web import curves, pages, records, runs
from unmask.web.shelf import Shelf

HOSTILE = "<img src=x onerror=\"document.title='taken'\"> {{7*7}} ${7*7}"
DAY = 86_400


def line(step, loss=0.9, **more):
    told = {"step": step, "epoch": step / 10, "loss": loss, "uninformed": 1.0, "ratio": loss, "update_ratio": 1e-3}
    return told | {"lr": 1e-3, "grad_norm": 1.0, "rank": 20.0, "feature_std": 0.3} | more


def write(folder, steps=40, losses=(), result=None, age=None, seconds=0.1, **settings):
    """A run as training writes one, of so many lines, without the training."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"steps": steps, "lr": 1e-3, "batch_size": 8, "encoder": "vit-tiny/8", "out": str(folder), **settings}
    data = {"name": settings.get("data", "photos"), "images": 80, "fingerprint": "abc"}
    stated = {"method": "mae", "date": "2026-01-01T10:00:00+00:00", "command": "unmask pretrain mae", "settings": told}
    (folder / "settings.yaml").write_text(
        yaml.safe_dump(stated | {"data": data, "method_settings": {"mask_ratio": 0.75}})
    )
    grow(folder, losses, seconds)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if age is not None:
        for file in folder.iterdir():
            os.utime(file, (time.time() - age,) * 2)
    return folder


def grow(folder, losses, seconds=0.1):
    log = folder / "metrics.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    with log.open("a") as metrics, (folder / "timing.jsonl").open("a") as timing:
        for step, loss in enumerate(losses, done + 1):
            metrics.write(json.dumps(line(step, loss)) + "\n")
            timing.write(
                json.dumps({"step": step, "images_per_second": 80, "loader_wait": 0.0, "seconds": seconds}) + "\n"
            )


def learnt(loss, advice=()):
    return {
        "verdict": "learning",
        "sentence": f"the loss is {loss:.0%}",
        "advice": list(advice),
        "loss": loss,
        "uninformed_loss": 1.0,
    }


PROBE = {"test": 500, "knn": {"trained": {"accuracy": 0.61, "low": 0.58, "high": 0.64}, "untrained": {"accuracy": 0.4}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    falling = np.linspace(1.0, 0.5, 40)
    good = write(folder / "good", losses=falling, result=learnt(0.5, ["more --epochs will do"]), data=HOSTILE)
    (good / "probe.json").write_text(json.dumps(PROBE))
    (good / "report.html").write_text(
        f"<html><body><h1>Report of good</h1><script>document.title='ran'</script>{HOSTILE}</body></html>"
    )
    (good / "figures").mkdir()
    (good / "figures" / "reconstruction.png").write_bytes(figures.loss([line(1), line(2)]))
    write(
        folder / "sweep" / "flat",
        losses=[1.0] * 40,
        result={**learnt(1.0), "verdict": "no better than uninformed"},
        lr=1e-6,
    )
    (folder / "torn").mkdir()
    (folder / "torn" / "settings.yaml").write_text("settings: {steps: [1")
    study = folder / "flint"
    (study / "tables").mkdir(parents=True)
    (study / "settings.yaml").write_text("date: '2026-01-01'")
    answer = {
        "verdict": "these data cannot answer",
        "sentence": "One novice & two experts.",
        "cannot_answer": ["One novice <b>"],
    }
    answer |= {
        "title": "Flint",
        "particles": 300,
        "tests": [{"name": "PERMANOVA", "on": "measures", "p": 0.3, "smallest_p": 0.1}],
    }
    answer["classification"] = [
        {"protocol": "new", "model": "forest", "accuracy": 0.5, "low": 0.4, "high": 0.6, "majority": 0.33}
    ]
    (study / "result.json").write_text(json.dumps(answer))
    (study / "report.html").write_text(
        "<html><body style='margin:0'><p style='height:3000px'>The report of flint</p></body></html>"
    )
    for number in range(180):  # many must not make the page slow
        write(folder / "many" / f"{number:03}", losses=[0.9] * 12, result=learnt(0.9), age=DAY + number)
    return folder


@pytest.fixture(scope="module")
def shelf(folder):
    return Shelf((folder,), None, None, {})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def address(served, shelf):
    with served(shelf) as where:
        yield where


def tick(page, name):
    page.locator(f'tr[data-name="{name}"] input').check()


def chosen(page, name):
    return page.locator(f'#runs-verdicts .card:has(h3 span[title="{name}"])')


def test_a_run_of_dqn_is_judged_by_its_score_and_not_by_its_loss(tmp_path):
    def played(name, scores):
        write(tmp_path / name, losses=[0.1] * 20)
        stated = yaml.safe_load((tmp_path / name / "settings.yaml").read_text())
        (tmp_path / name / "settings.yaml").write_text(yaml.safe_dump(stated | {"method": "dqn"}))
        log = [json.loads(each) for each in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for each, score in zip(log, scores, strict=True):
            told = {"q": 0.5, "q_spread": 0.3, "epsilon": 1.0 if each["step"] == 1 else 0.1}
            each |= told | {"score": score, "scores": [score, score]}
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
        return records.record(name, tmp_path / name)

    flat, rising = played("flat", [-20.0] * 20), played("rising", [*([-20.0] * 10), *range(-10, 0)])
    assert flat.verdict is not None and flat.verdict.word == "no better than uninformed"
    assert rising.verdict is not None and rising.verdict.word == "learning"
    assert rising.verdict.sentence.startswith("a score of -5.5 [") and rising.score == (
        "score so far",
        -1.0,
        None,
        None,
    )
    assert "80 steps/s" in runs.progress(rising)
    drawn = runs.curves_of([("#000", rising)], "steps", False)
    assert "spread of Q" in drawn and "steps per second" in drawn and "images per second" not in drawn


CONTRAST = """(selector) => {
  const pixel = document.createElement("canvas").getContext("2d");
  const light = (colours) => {
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    const parts = [...pixel.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const contrasts = [...document.querySelectorAll(selector)].map((shown) => {
    const ink = getComputedStyle(shown)[shown instanceof SVGElement ? "fill" : "color"];
    const [low, high] = [light([paper]), light([paper, ink])].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
  return [paper, Math.min(...contrasts), contrasts.length];
}"""
"""The colour of the page, and the least contrast of texts with it (WCAG 2.2, "relative luminance" and "contrast ratio")."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_said_beside_can_be_read_by_day_and_by_night(address, visit, scheme):
    page = visit(address, "Runs", scheme=scheme)
    page.locator(".curve small").first.wait_for()
    papers = set()
    for selector in (".picks .count", ".picks thead th", ".picks .state", ".curve small", ".curve svg text", ".ends b"):
        paper, contrast, texts = page.evaluate(CONTRAST, selector)
        papers.add(paper)
        assert texts and contrast >= 4.5, (selector, contrast)
    (paper,) = papers
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_two_runs_beside_each_other(address, visit):
    page = visit(address, "Runs")
    tick(page, "good")
    tick(page, "sweep/flat")
    expect(chosen(page, "good")).to_contain_text("more --epochs will do")
    expect(chosen(page, "sweep/flat")).to_contain_text("no better than uninformed")
    expect(page.locator(".legend span")).to_have_count(len(page.locator("tr.chosen").all()))
    loss = page.locator("figure.curve").first
    assert loss.locator("polyline").count() == 2 * page.locator("tr.chosen").count()  # each with its dashed line
    assert loss.locator("polyline[stroke-dasharray]").count() == page.locator("tr.chosen").count()
    # the settings that differ stand open; the others are folded
    differ = page.locator("#runs-beside section", has_text="Settings that differ")
    expect(differ.locator("tr", has_text="steps").first).to_be_hidden()
    expect(page.locator("#runs-beside")).to_contain_text("0.610 [0.580–0.640]")
    expect(page.locator("#runs-pictures img")).to_have_count(1)
    # what comes from files is text
    expect(page.locator('tr[data-name="good"]')).to_contain_text(HOSTILE)
    assert page.title() != "taken" and page.locator("img[onerror]").count() == 0
    # a colour is a run's own as long as it is chosen
    colour = page.locator('tr[data-name="sweep/flat"]').evaluate("row => row.style.getPropertyValue('--chip')")
    page.locator('tr[data-name="good"] input').uncheck()
    expect(chosen(page, "good")).to_have_count(0)
    stroke = page.locator('figure.curve polyline:not([stroke-dasharray]):has(title:text("sweep/flat"))').first
    assert stroke.get_attribute("stroke") == colour
    page.locator("#runs-unit").get_by_text("minutes").click()
    expect(page.locator("figure.curve svg").first).to_contain_text("minutes")


def test_the_table_is_sieved_and_broken_runs_are_said(address, visit):
    page = visit(address, "Runs")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator('tr[data-name="torn"]')).to_contain_text("settings.yaml cannot be read (line 1): it is damaged")
    page.locator(".picks input[type=search]").fill("no better")
    expect(page.locator(".count")).to_contain_text("1 of 183")
    expect(page.locator('tr[data-name="many/007"]')).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_is_followed_while_it_grows(address, visit, folder):
    run = write(folder / "growing", steps=100, losses=[0.99] * 20)
    page = visit(address, "Runs")
    tick(page, "growing")
    card = chosen(page, "growing")
    expect(card).to_contain_text("step 20 of 100 · 80 images/s · 8 s left")
    expect(card).to_contain_text("no better than uninformed, so far")
    grow(run, np.linspace(0.9, 0.5, 30))
    expect(card).to_contain_text("step 50 of 100")
    expect(card).to_contain_text("learning, so far")
    expect(page.locator("figure.curve .ends").first).to_contain_text("0.5")
    (run / "result.json").write_text(json.dumps(learnt(0.5)))
    expect(card.locator(".state")).to_contain_text("finished")


def get(where):
    try:
        with urllib.request.urlopen(where, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_a_report_is_opened_and_may_run_nothing(address, visit):
    page = visit(address, "Runs")
    tick(page, "good")
    link = chosen(page, "good").get_by_role("link", name="its report")
    with page.context.expect_page() as opened:
        link.click()
    report = opened.value
    expect(report.locator("h1")).to_have_text("Report of good")
    assert report.title() == ""
    status, headers, _ = get(f"{address}/{pages.address('sweep/flat')}")
    assert status == 404 and "sandbox" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e%252fetc%252fpasswd",
        "..%5c..%5cetc",
        "%2fetc%2fpasswd",
        "good/../good",
        "good/report.html",
        "good%00",
        "%ff%fe",
        "torn",
        "",
    ],
)
def test_no_name_leads_off_the_shelf(address, name):
    status, _, said = get(f"{address}/report/{name}")
    assert status == 404 and "root:" not in said


def test_a_study_answers(address, visit):
    page = visit(address, "Study")
    answer = page.locator("#study-answer")
    expect(answer).to_contain_text("✗ these data cannot answer One novice & two experts.")
    expect(answer.locator("li")).to_have_text("One novice <b>")
    frame = page.frame_locator("#study-report iframe")
    expect(frame.locator("p")).to_have_text("The report of flint")
    page.wait_for_function("document.querySelector('#study-report iframe').offsetHeight > 2900")


def test_an_empty_shelf_says_what_to_run(served, visit, tmp_path):
    with served(Shelf((tmp_path,), None, None, {})) as where:  # type: ignore[arg-type]
        page = visit(where, "Runs")
        expect(page.locator("#runs-table")).to_contain_text("unmask quickstart")
        page.get_by_role("tab", name="Study").click()
        expect(page.locator("#study-answer")).to_contain_text("unmask study simulate")


# Without a browser

ODD = (
    json.dumps({"step": "one", "verdict": 3, "test": [], "settings": "x", "data": [1], "method_settings": 4, "knn": 3})
    + "\n"
)
WILD = json.dumps(dict.fromkeys([*line(1), "seconds", "images_per_second", "loader_wait", "information"], math.inf))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "stopped"),
        ({"age": None}, "training"),
        ({"age": 60}, "stopped"),
        ({"age": 60, "seconds": 30.0}, "training"),  # lines of half a minute
        ({"age": 60, "steps": 12}, "being judged"),
        ({"age": 60, "losses": ()}, "stopped"),
        ({"age": None, "losses": ()}, "training"),
        ({"result": learnt(0.9)}, "finished"),
        ({"result": {"seconds": 3}}, "stopped"),
    ],
)
def test_whether_it_trains(tmp_path, change, expected):
    folder = write(tmp_path / "run", **{"age": DAY, "losses": [0.9] * 12, **change})
    assert records.record("run", folder).state == expected


@pytest.mark.parametrize(
    "file", ["settings.yaml", "metrics.jsonl", "timing.jsonl", "result.json", "probe.json", "test.json"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00\xff", ODD, "\n".join([WILD] * 12) + "\n", "NaN"])
def test_whatever_lies_there_is_shown(tmp_path, file, content):
    folder = write(tmp_path / "run", losses=[0.9] * 12, result=learnt(0.9))
    (folder / "probe.json").write_text(json.dumps(PROBE))
    (folder / file).write_bytes(content.encode("latin-1"))
    shelf = Shelf((folder.parent,), None, None, {})  # type: ignore[arg-type]
    assert 'data-name="run"' in runs.listed(shelf)
    there = runs.picked(shelf, ["run"])
    assert runs.verdicts_of(there, ["run"], shelf)
    runs.curves_of(there, "steps", True)
    runs.beside_of(there)
    if file.endswith(".json") and content in ("{", "[]"):
        assert any(file in trouble for trouble in there[0][1].trouble)


def test_lines_that_are_half_written_are_left_out(tmp_path):
    folder = write(tmp_path / "run", losses=[0.9] * 12)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "ep\nnot JSON\n' + json.dumps(line(13, math.nan)) + '\n{"step": 14, "epo')
    run = records.record("run", folder)
    assert [each["step"] for each in run.log] == list(range(1, 14))
    assert "2 of its lines" in run.trouble[0]
    assert "<svg" in runs.curves_of([("#000", run)], "epochs", False)


def test_the_places_a_browser_sends():
    assert runs.checked([None, "a", 3, {}, "b", "c", "d"]) == [None, "a", None, None, "b", "c"]
    assert runs.checked("abc") == [] == runs.checked(None)


@pytest.mark.parametrize("log", [False, True])
def test_a_long_curve_keeps_its_spikes(log):
    x = np.arange(1, 20_001, dtype=float)
    y = np.ones(20_000)
    y[7777], y[123] = 50.0, 0.01
    kept = curves.thinned(curves.Curve("run", x, y, "#000"), log, log)
    assert len(kept.x) <= curves.MOST + 2 and kept.y.max() == 50 and kept.y.min() == 0.01
    assert kept.x[0] == 1 and kept.x[-1] == 20_000


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (0.2, 0.2, False), (-3, 12_345, False), (1, 800, True), (0.3, 0.4, True)]
)
def test_ticks_are_few_and_in_sight(low, high, log):
    found = curves.Axis(low, high, 50, 400, log).ticks(4)
    assert len(found) <= 7 and all(low <= value <= high for value in found)
