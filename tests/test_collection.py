"""Neighbours and Map in the browser: who is near whom is counted anew here, and what is clicked is what is shown."""

import io
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import expect

import unmask
from unmask.data.decode import Preprocess
from unmask.data.loader import centred
from unmask.data.source import Source
from unmask.data.sources import Pixels as Held
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate.features import Pixels, scales, standardise
from unmask.verbs.load import load, load_mae
from unmask.web import collection, maps
from unmask.web.collection import PIXELS, UNTRAINED, Asked, Index, Indices, spread, unit
from unmask.web.maps import FLAT, NEAR, PLAIN, View, colourable, coloured, framed, laid_out
from unmask.web.shelf import OWN, Shelf


def index_of(vectors, **columns):
    """An index of vectors (N, D) as they are, over images of no interest."""
    n = len(vectors)
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], **columns})
    classes = tuple(sorted({x for x in columns.get("label", ()) if x is not None}))
    source = Source("made", table, classes, Held(np.zeros((n, 1, 4, 4), dtype=np.uint8)), np.arange(n))
    vectors = torch.as_tensor(vectors, dtype=torch.float32)
    scale = scales(vectors)
    told = (Pixels(), Preprocess(1, (0.5,), (0.5,)), (4, 4), torch.device("cpu"), "float32")
    return Index(source, np.arange(n), n, {}, unit(vectors, scale), scale, *told)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 15), st.integers(0, 2**31), st.booleans())
def test_neighbours_are_those_of_a_search_through_all(n, D, k, seed, twins):
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.normal(size=(n, D)) * rng.uniform(0.01, 100, D) + rng.normal(size=D))
    if twins:  # as many images of a collection are there twice
        vectors[n // 2 :] = vectors[: n - n // 2].clone()
    index = index_of(vectors)
    (standard,) = standardise(vectors.float())
    away = 1 - F.cosine_similarity(standard[:, None].double(), standard[None].double(), dim=2)
    query = int(rng.integers(n))
    images, distances = index.nearest(query, k)
    others = [i for i in range(n) if i != query]
    assert len(images) == len(set(images)) == min(k, n - 1) and query not in images
    assert distances == sorted(distances)
    assert distances == pytest.approx(away[query, images].tolist(), abs=1e-5)
    assert distances == pytest.approx(sorted(away[query, others].tolist())[:k], abs=1e-5)
    # the same vector from elsewhere finds the image itself, or its twin
    found, distance = index.nearest(index.vectors[query], 1)
    assert distance[0] == pytest.approx(0, abs=1e-5) or standard[query].norm() < 1e-6
    assert away[query, found[0]] < 1e-5 or standard[query].norm() < 1e-6


def test_agreement_is_that_of_each_image_in_turn():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 80)
    labels = [None if i % 10 == 0 else "abc"[kind[i]] for i in range(80)]
    index = index_of(rng.normal(size=(80, 6)) + 1.5 * np.eye(3, 6)[kind], label=labels)
    shared, chance = [], []
    for i in range(80):
        if labels[i] is not None:
            shared.append(sum(labels[j] == labels[i] for j in index.nearest(i)[0]))
            chance.append(12 * (labels.count(labels[i]) - 1) / 79)
    assert index.agreement == pytest.approx((np.mean(shared), np.mean(chance)))
    assert index.agreement[0] > 1.4 * index.agreement[1]
    assert index_of(rng.normal(size=(9, 2))).agreement is None
    assert index_of(rng.normal(size=(9, 2)), label=["a"] * 8 + [None]).agreement is None


def test_a_collapsed_encoder_finds_nobody_near():
    index = index_of(torch.full((20, 4), 3.0) + 1e-9)
    assert index.nearest(0, 3)[1] == [1, 1, 1]
    layout = laid_out(index, FLAT)
    assert np.isfinite(layout.places).all() and layout.inside.all()
    assert "the same vector" in index.said()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_what_is_clicked_is_the_nearest_point_that_is_seen(n, seed, x, y):
    rng = np.random.default_rng(seed)
    layout = framed(rng.standard_t(2, size=(n, 2)) * (5, 0.3), "")
    assert (
        layout.inside.mean() >= 0.97
        and ((layout.places[layout.inside] >= 0) & (layout.places[layout.inside] <= 1)).all()
    )
    clicked = layout.at(x, y)
    assert layout.inside[clicked]
    away = [np.hypot(*(layout.places[i] - (x, y))) for i in range(n) if layout.inside[i]]
    assert np.hypot(*(layout.places[clicked] - (x, y))) == pytest.approx(min(away))
    at = layout.at(*layout.places[clicked])
    assert (layout.places[at] == layout.places[clicked]).all()


def test_the_plane_keeps_directions_and_one_scale():
    layout = framed(np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]]), "")
    left, right, top = layout.places
    assert right[0] > left[0] and top[1] < left[1]  # up is up
    assert right[0] - left[0] == pytest.approx(2 * (left[1] - top[1]))


def test_colours_are_those_of_the_commonest_and_of_numbers():
    rng = np.random.default_rng(0)
    n = 200
    many = [f"k{i:02d}" for i in np.minimum(rng.geometric(0.12, n), 30)]
    size = np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n))
    columns = {
        "size": size,
        "many": many,
        "own": [str(i) for i in range(n)],
        "flag": rng.random(n) < 0.5,
        "same": ["x"] * n,
    }
    index = index_of(rng.normal(size=(n, 3)), **columns, label=["a", "b"] * 99 + [None, None])
    assert colourable(index) == ["label", "size", "many", "flag"]
    by = coloured(index, "many")
    counts = pd.Series(many).value_counts()
    assert [entry[1] for entry in by.entries[:-1]] == [counts[entry[0]] for entry in by.entries[:-1]]
    assert len(by.entries) == 13 and by.entries[-1][0] == f"{len(counts) - 12} others"
    assert sum(entry[1] for entry in by.entries) == n
    assert all(by.entries[by.entry[i]][2] == by.of[i] for i in range(n))
    assert min(counts[entry[0]] for entry in by.entries[:-1]) >= sorted(counts)[-12]
    by = coloured(index, "size")
    assert (by.of[np.isnan(size)] == maps.OTHERS).all() and by.entries[1] == (
        "unknown",
        int(np.isnan(size).sum()),
        maps.OTHERS,
    )
    assert by.of[np.nanargmin(size)] == "#440154" and by.of[np.nanargmax(size)] == "#fde725"
    assert coloured(index, "label").entries[-1][:2] == ("unknown", 2)
    assert len(coloured(index, PLAIN).entries) == 1
    with pytest.raises(BadInput, match="coloured"):
        coloured(index, "own")


def test_a_picture_of_every_kind_is_drawn():
    rng = np.random.default_rng(0)
    index = index_of(rng.normal(size=(30, 3)), label=["a", "b", "c"] * 10)
    layout = laid_out(index, FLAT)
    pictures = []
    for view in (View(None), View(None, only=1), View(None, only=1, chosen=4)):
        pictures.append(maps.draw(layout, coloured(index, "label"), view, maps.around(index, view)))
        assert pictures[-1].startswith(b"\x89PNG")
    assert len(set(pictures)) == 3
    assert laid_out(index, FLAT) is layout
    with pytest.raises(BadInput, match="10 images"):
        laid_out(index_of(rng.normal(size=(9, 3))), NEAR)


def test_some_are_spread_evenly():
    some = spread(61_234, 1000)
    assert len(some) == 1000 and (np.diff(some) > 0).all() and some[-1] < 61_234
    assert (some // 61.234).astype(int).tolist() == pytest.approx(list(range(1000)), abs=1)
    assert spread(7, 1000).tolist() == list(range(7)) and (some == spread(61_234, 1000)).all()


# With an encoder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection") / "runs"
    images = tmp_path_factory.mktemp("images")  # without labels, so that nothing is probed
    for i in range(24):
        Image.fromarray(open_source("digits").image(i)[0].numpy()).save(images / f"{i}.png")
    told = {"encoder": "vit-tiny/8", "image_size": 32, "steps": 2, "batch_size": 8, "workers": 0}
    unmask.pretrain("mae", data=images, out=folder / "first", **told)
    return folder


@pytest.fixture(scope="module")
def shelf(runs, tmp_path_factory):
    """Photographs, digits, and a table of stones with a size, of which one is torn."""
    folder = tmp_path_factory.mktemp("stones")
    digits = open_source("digits:test")
    rows = []
    for i in range(40):
        Image.fromarray(digits.image(i)[0].numpy()).save(folder / f"{i}.png")
        site = "north<b>" if i % 3 else "south"
        rows.append({"image": f"{i}.png", "label": digits.table["label"].iat[i], "weight": i * 0.5, "site": site})
    (folder / "3.png").write_bytes(b"torn")
    pd.DataFrame(rows).to_csv(folder / "stones.csv", index=False)
    return Shelf((runs,), load, load_mae, {"stones": open_source(folder / "stones.csv"), "digits": digits})


def test_an_index_is_made_once_for_all_who_ask(shelf, monkeypatch):
    counted, made = [], collection.made
    monkeypatch.setattr(collection, "made", lambda *told: counted.append(told) or made(*told))
    indices, asked, seen = Indices(shelf), Asked("first", "stones"), []
    threads = [threading.Thread(target=lambda: seen.append(indices.index(asked))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 1 and len(seen) == 4 and len({id(index) for index in seen}) == 1
    index = seen[0]
    assert len(index) == 39 and 3 not in index.rows and len(index.unreadable) == 1
    assert index.said().startswith("All 40 images; 1 could not be read. Each is a vector of 384 numbers.")
    for by in (UNTRAINED, PIXELS):
        other = indices.index(Asked("first", "stones", by))
        assert len(other) == 39 and (other.vectors[:, :9] != index.vectors[:, :9]).any()
    assert other.vectors.shape[1] == 32 * 32
    assert len(indices.index(Asked("first", OWN))) == 24
    for _ in range(collection.KEPT + 2):  # never more than may be kept
        monkeypatch.setattr(shelf.__class__, "written", lambda self, name, turn=_: turn)
        indices.index(asked)
        assert len(indices.kept) <= collection.KEPT
    assert len(index.pictures([5, 0, 7])) == 3


def test_the_vector_of_an_image_from_elsewhere_is_that_of_the_index(shelf):
    index = Indices(shelf).index(Asked("first", "stones"))
    vector = index.vector(centred(index.source.image(8), index.preprocess, index.size))
    images, distances = index.nearest(vector, 1)
    assert images == [8] and distances[0] < 1e-3


def test_some_of_many_are_looked_at(shelf, monkeypatch):
    monkeypatch.setattr(collection, "MOST", 20)
    told = []
    index = collection.made(shelf, Asked("first", "stones"), lambda seen, total: told.append((seen, total)))
    assert len(index) + len(index.unreadable) == 20 and (np.diff(index.rows) > 0).all()
    assert told[-1][1] == 20 and index.said().startswith("20 of 40 images, evenly spread over the collection")
    assert index.known(0, "path") == f"{index.rows[0]}.png"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("none", "stones"), "load the page anew"),
        (Asked("first", "../etc"), "load the page anew"),
        (Asked("gone", OWN), ""),
    ],
)
def test_what_is_not_there_is_said(shelf, asked, said):
    with pytest.raises(BadInput, match=said):
        Indices(shelf).index(asked)


def test_own_images_that_are_gone_are_said_in_one_line(runs, shelf, tmp_path):
    settings = (runs / "first" / "settings.yaml").read_text()
    own = yaml.safe_load(settings)["data"]["name"]
    for name, words in (("gone/folder", "cannot be opened here"), ("hf:some/data", "--data hf:some/data")):
        other = tmp_path / name.replace("/", "-").replace(":", "-")
        other.mkdir()
        (other / "settings.yaml").write_text(settings.replace(own, name))
        with pytest.raises(BadInput, match=words) as error:
            Shelf((other,), load, load_mae, {}).own(other.name)
        assert "\n" not in str(error.value)
    assert len(shelf.own("first")) == 24


# In the browser


@pytest.fixture(scope="module")
def address(served, shelf):
    with served(shelf) as where:
        yield where


def look_at(page, name):
    page.get_by_label("Collection").locator("visible=true").click()
    page.get_by_role("option", name=name).click()
    page.get_by_role("button", name="Look at every image").locator("visible=true").click()


def places(page, where):
    """Which images a strip shows."""
    return [int(button.get_attribute("data-index")) for button in page.locator(f"{where} button").all()]


def test_neighbours_are_clicked(address, visit, shelf):
    page = visit(address, "Neighbours")
    expect(page.get_by_text("Nothing has been looked at yet").locator("visible=true")).to_be_visible()
    look_at(page, "stones")
    expect(page.locator("#near button")).to_have_count(12)
    expect(page.get_by_text("All 40 images; 1 could not be read").locator("visible=true")).to_be_visible()
    expect(page.locator("#query")).to_contain_text("share its label")
    assert len(places(page, "#neighbours-samples")) == 12
    index = Indices(shelf).index(Asked("first", "stones"))
    page.locator("#neighbours-samples button").nth(5).click()
    chosen = places(page, "#neighbours-samples")[5]
    expect(page.locator("#query")).to_contain_text(index.known(chosen, "path"))
    assert places(page, "#near") == index.nearest(chosen)[0]
    next_one = places(page, "#near")[2]
    page.locator("#near button").nth(2).click()
    expect(page.locator("#query")).to_contain_text(index.known(next_one, "path"))
    assert places(page, "#near") == index.nearest(next_one)[0]
    # by what it would be without learning
    page.get_by_label("raw pixels").click()
    expect(page.get_by_text("a vector of 1024 numbers").locator("visible=true")).to_be_visible()
    expect(page.locator("#query")).to_contain_text(index.known(next_one, "path"))
    assert places(page, "#near") == Indices(shelf).index(Asked("first", "stones", PIXELS)).nearest(next_one)[0]
    # one's own
    data = io.BytesIO()
    Image.fromarray(index.source.image(7)[0].numpy().astype(np.uint16) * 257).save(data, format="PNG")
    page.get_by_label("what it learnt").click()
    expect(page.get_by_text("a vector of 384 numbers").locator("visible=true")).to_be_visible()
    upload = page.locator(".drop input >> visible=true")
    upload.set_input_files({"name": "<i>own.png", "mimeType": "image/png", "buffer": data.getvalue()})
    expect(page.locator("#query")).to_contain_text("<i>own.png, uploaded")
    assert places(page, "#near")[0] == 7 and "north<b>" not in page.locator("#near").inner_html()


def test_the_map_is_clicked_and_coloured(address, visit, shelf):
    page = visit(address, "Map")
    page.set_viewport_size({"width": 390, "height": 844})  # where gradio folds the row of tabs
    look_at(page, "stones")
    expect(page.locator("#map canvas")).to_be_visible()
    expect(page.get_by_text("Two principal components hold").locator("visible=true")).to_be_visible()
    expect(page.locator("#legend button").first).to_contain_text("0")
    index = Indices(shelf).index(Asked("first", "stones"))
    layout = laid_out(index, FLAT)
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = layout.places[20]
    canvas.click(position={"x": x * box["width"], "y": y * box["height"]})
    clicked = layout.at(x, y)
    expect(page.locator("#point")).to_contain_text(index.known(clicked, "path"))
    assert places(page, "#around") == index.nearest(clicked, 6)[0]
    # coloured by a number, then by names that must not become tags
    for column, shown in (("weight", "weight: "), ("site", "north<b>")):
        page.get_by_label("Coloured by").click()
        page.get_by_role("option", name=column).click()
        expect(page.locator("#legend")).to_contain_text(shown)
    south = page.locator("#legend button", has_text="south")
    south.click()
    expect(south).to_have_attribute("aria-pressed", "true")
    neighbour = places(page, "#around")[1]
    page.locator("#around button").nth(1).click()
    expect(page.locator("#point")).to_contain_text(index.known(neighbour, "path"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
