"""The page in the browser: what people do with it, and what strangers might try."""

import base64
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from playwright.sync_api import expect

import unmask
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.verbs.load import load, load_mae
from unmask.web import uploads
from unmask.web.reconstruct import kept
from unmask.web.shelf import Shelf


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    (folder / "images").mkdir()
    photos = open_source("photos:test")
    for i in range(8):
        Image.fromarray(photos.image(100 * i).permute(1, 2, 0).numpy()).save(folder / f"images/{i}.png")
    told = {"encoder": "vit-tiny/8", "image_size": 32, "steps": 2, "batch_size": 8, "workers": 0}
    unmask.pretrain("mae", data=folder / "images", out=folder / "runs/first", **told)
    return folder / "runs"


@pytest.fixture(scope="module")
def shelf(runs):
    return Shelf((runs,), load, load_mae, {"photos:test": open_source("photos:test"), "digits": open_source("digits")})


@pytest.fixture(scope="module")
def address(served, shelf):
    with served(shelf) as where:
        yield where


def file(pixels, kind="PNG", **told):
    with io.BytesIO() as data:
        Image.fromarray(pixels).save(data, format=kind, **told)
        return data.getvalue()


def pictures(page, where):
    """The pictures shown, as arrays, by their words."""
    found = {}
    for figure in page.locator(f"{where} figure").all():
        data = figure.locator("img").get_attribute("src").split(",")[1]
        found[figure.inner_text()] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def hidden(page):
    """How many of 16 patches are hidden, as the page says."""
    return int(re.match(r"\s*(\d+) of 16 patches hidden", page.locator("#painted p.note").inner_text())[1])


def test_the_ratio_is_dragged_and_a_mask_painted(address, visit, shelf):
    page = visit(address)
    note = page.locator("#painted p.note")
    expect(note).to_contain_text("12 of 16 patches hidden")
    slider = page.locator("input[type=range]").first
    slider.focus()
    for _ in range(25):
        page.keyboard.press("ArrowLeft")
    expect(note).to_contain_text("8 of 16 patches hidden")
    seen = pictures(page, "#painted")
    assert list(seen)[:3] == ["original", "reconstruction", "with what was seen"]
    assert all(picture.shape == (32, 32, 3) for picture in seen.values())
    first_row = ~as_seen(seen)[0]
    box = page.locator("#paint canvas").bounding_box()
    cell, count = box["width"] / 4, 8
    for hide in (not first_row[0], bool(first_row[0])):  # along the upper edge and back, whatever was hidden there
        page.mouse.move(box["x"] + 0.5 * cell, box["y"] + 0.5 * cell)
        page.mouse.down()
        page.mouse.move(box["x"] + 3.5 * cell, box["y"] + 0.5 * cell, steps=8)
        page.mouse.up()
        count, first_row = count + (4 * hide - int(first_row.sum())), np.full(4, hide)
        expect(note).to_contain_text(f"{count} of 16 patches hidden")
    assert (as_seen(pictures(page, "#painted"))[0] == ~first_row).all()


def as_seen(seen):
    """Which of 4 x 4 patches are pasted as they are, because the model saw them."""
    return (seen["original"] == seen["with what was seen"]).all(axis=2).reshape(4, 8, 4, 8).all(axis=(1, 3))


def put(page, data, name):
    """Upload a file in the open tab."""
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def test_ones_own_image_is_taken(address, visit):
    page = visit(address)
    expect(page.locator("#painted p.note")).to_contain_text("patches hidden")
    stripes = np.zeros((40, 40), dtype=np.uint16)
    stripes[::4] = 65535
    put(page, file(stripes), "sixteen-bits.png")
    page.wait_for_function("""() => {
        const image = document.querySelector("#painted img"), canvas = document.createElement("canvas");
        canvas.width = canvas.height = 32;
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        const pixel = pen.getImageData(5, 5, 1, 1).data;
        return pixel[0] === pixel[1] && pixel[1] === pixel[2];
    }""")  # grey, as no sample is
    assert pictures(page, "#painted")["original"].std() > 20


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("torn.png", file(np.zeros((64, 64, 3), dtype=np.uint8))[:60], "torn.png"),
        ("words.jpg", b"no image at all", "words.jpg"),
        ("huge.png", file(np.zeros((10_000, 10_000), dtype=bool)), "100,000,000 pixels"),
        ("many.tif", "channels", "12 channels"),
    ],
)
def test_what_cannot_be_taken_is_said_in_one_line(address, visit, name, data, said):
    if data == "channels":
        with io.BytesIO() as buffer:
            tifffile.imwrite(
                buffer, np.zeros((12, 16, 16), dtype=np.uint8), photometric="minisblack", planarconfig="separate"
            )
            data = buffer.getvalue()
    page = visit(address)
    expect(page.locator("#painted p.note")).to_contain_text("patches hidden")
    before = pictures(page, "#painted")["original"]
    put(page, data, name)
    expect(page.locator(".toast-body" if name == "many.tif" else ".drop output").first).to_contain_text(said)
    assert "Traceback" not in page.content()
    assert (pictures(page, "#painted")["original"] == before).all()


def test_a_patch_is_clicked(address, visit):
    page = visit(address, "Attention")
    expect(page.locator("#looks")).to_contain_text("the main object")
    before = pictures(page, "#looks")
    assert list(before) == ["the main object", "mean of the heads", "head 1", "head 2", "head 3"]
    box = page.locator("#look canvas").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    expect(page.locator("#looks")).to_contain_text("from the clicked patch")
    after = pictures(page, "#looks")["head 1"]
    assert after.shape == (32, 32, 3) and (after != before["head 1"]).any()
    page.get_by_role("button", name="From the whole image").click()
    expect(page.locator("#looks")).to_contain_text("the main object")


def asked(address, path, body=None, **headers):
    """The status of a request, and what was answered."""
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["/tmp/secret.png", "http://127.0.0.1:9/secret.png", "../../etc/passwd"])
def test_a_path_from_a_browser_reaches_no_file(address, path):
    for door in ("/gradio_api/file=", "/file=", "/gradio_api/proxy=", "/gradio_api/upload", "/static/../", "/report/"):
        assert asked(address, door + urllib.parse.quote(path, safe=""))[0] in (403, 404)
    claimed = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([claimed], [{"deep": [claimed]}], [json.dumps(claimed), claimed]):
        body = {"data": data, "fn_index": 0, "session_hash": "stranger"}
        assert asked(address, "/gradio_api/queue/join", json.dumps(body).encode())[0] == 400
    assert asked(address, "/gradio_api/queue/join", b"{" * 100_000)[0] == 400
    assert asked(address, "/gradio_api/queue/join", b" " * 2**21)[0] == 400


def test_uploads_are_limited_and_known_by_names_nobody_can_guess(address, shelf):
    status, answer = asked(address, "/upload?name=large.png", b"0" * (uploads.MOST_BYTES + 1))
    assert status == 413 and "32 MiB" in answer
    image = file(np.zeros((8, 8, 3), dtype=np.uint8))
    status, answer = asked(address, "/upload?name=../../x.png", image)
    token = json.loads(answer)["token"]
    assert status == 200 and shelf.uploads.image(token).shape == (3, 8, 8) and len(token) >= 16
    with pytest.raises(BadInput):
        shelf.uploads.image("../../x.png")
    assert asked(address, "/upload", image, Origin="http://elsewhere.example")[0] == 403


def test_the_oldest_uploads_go_first(monkeypatch):
    image = file(np.zeros((8, 8, 3), dtype=np.uint8))
    monkeypatch.setattr(uploads, "KEPT", 2 * len(image))
    kept = uploads.Uploads()
    tokens = [kept.put(f"{i}.png", image) for i in range(3)]
    with pytest.raises(BadInput):
        kept.image(tokens[0])
    assert [kept.name(token) for token in tokens[1:]] == ["1.png", "2.png"]


def test_only_who_asks_by_its_own_name_is_answered(address):
    assert asked(address, "/", Host="elsewhere.example")[0] == 421
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_strokes_and_clicks_that_no_page_sends():
    for hidden in (None, "all", [16], [-1], [1.5], [True], ["1"]):
        with pytest.raises(BadInput):
            kept(hidden, 16)
    assert kept([0, 1, 2], 4).tolist() == [3]


def test_two_who_look_at_once_see_their_own(address, visit):
    first, second = visit(address), visit(address)
    for page in (first, second):
        expect(page.locator("#painted p.note")).to_contain_text("12 of 16")
    first.get_by_label("block").check()
    first.locator("input[type=range]").first.focus()
    for _ in range(25):
        first.keyboard.press("ArrowLeft")
    expect(first.locator("#painted p.note")).to_contain_text("8 of 16")
    expect(second.locator("#painted p.note")).to_contain_text("12 of 16")


def test_it_is_used_with_a_finger_on_a_telephone(address, visit):
    page = visit(address, width=390, height=844)
    expect(page.locator("#painted p.note")).to_contain_text("12 of 16")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    padding = "parseFloat(getComputedStyle(document.querySelector('.main.fillable')).paddingLeft)"
    assert 12 <= page.evaluate(padding) < 20
    box = page.locator("#paint canvas").bounding_box()
    page.locator("#paint canvas").tap(position={"x": box["width"] / 8, "y": box["height"] / 8})
    page.wait_for_function("!document.querySelector('#painted p.note').innerText.startsWith('12 ')")
    assert hidden(page) in (11, 13)


def test_all_lies_in_a_folder_that_is_gone_at_the_end(served, shelf, visit, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served(shelf) as address:
        page = visit(address)
        expect(page.locator("#painted p.note")).to_contain_text("patches hidden")
        put(page, file(np.full((20, 20, 3), 200, dtype=np.uint8)), "mine.png")
        page.wait_for_timeout(1500)
        assert not list(tmp_path.rglob("*.png"))  # uploads stay in memory
        assert not list(Path(uploads.__file__).parent.glob("*.pyi"))  # as gradio writes beside the source of a class
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_nothing_the_page_says_what_to_run(served, visit, tmp_path):
    with served(Shelf((tmp_path,), load, load_mae, {"digits": open_source("digits")})) as address:
        expect(visit(address).locator("#painted")).to_contain_text("unmask quickstart")


def test_a_port_that_is_taken_and_a_folder_that_is_not_there(capsys, address, tmp_path):
    from unmask.cli import main

    port = address.rsplit(":", 1)[1]
    for arguments, said in (
        ([str(tmp_path), "--port", port], f"cannot listen on 127.0.0.1:{port}"),
        ([str(tmp_path), "--port", "70000"], "a port is a number from 0 to 65535"),
        ([str(tmp_path / "nowhere")], "is not there"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["ui", *arguments])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1
