"""A survey finds what was put there."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from unmask.data import survey as survey_module
from unmask.data.sources import open_source
from unmask.data.survey import channels_for, survey
from unmask.errors import BadInput


def scene(seed: int, size: tuple[int, int] = (120, 90), mode: str = "RGB") -> Image.Image:
    """A smooth random picture, so that JPEG and resizing change it little: width, height."""
    rng = np.random.default_rng(seed)
    return (
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        .resize(size, Image.Resampling.BICUBIC)
        .convert(mode)
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        scene(i).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    return tmp_path


def test_counts_sizes_and_classes(folder):
    scene(50, (40, 200), "L").save(folder / "a" / "tall.png")
    calls = []
    found = survey(open_source(folder), progress=lambda done, total: calls.append((done, total)))
    assert (found.count, found.surveyed, found.compared) == (13, 13, 13)
    assert found.sizes == {"height": (90, 90, 200), "width": (40, 120, 120)}
    assert found.smallest == ("a/tall.png", 200, 40)
    assert found.channels == {1: 1, 3: 12} and found.channel_examples[1] == "a/tall.png"
    assert found.kinds == {"uint8": 13} and found.classes == {"a": 7, "b": 6} and found.groups == {}
    assert found.aspect[1] == pytest.approx(120 / 90) and found.aspect[0] < 1
    assert found.unreadable == [] and not found.grey and found.label_group is None
    assert calls[-1] == (39, 39)
    assert channels_for(found) == channels_for(open_source(folder)) == 3


def test_duplicates(folder):
    data = (folder / "a" / "0.png").read_bytes()
    (folder / "b" / "copy.png").write_bytes(data)
    scene(1).save(folder / "a" / "again.jpg", quality=85)
    scene(2, (480, 360)).save(folder / "b" / "large.png")
    for shade in (10, 11, 200):
        Image.new("RGB", (64, 64), (shade,) * 3).save(folder / f"a/blank{shade}.png")
    found = survey(open_source(folder))
    assert found.exact_duplicates == [["a/0.png", "b/copy.png"]]
    assert {frozenset(pair) for pair in found.near_duplicates} == {
        frozenset({"b/1.png", "a/again.jpg"}),
        frozenset({"a/2.png", "b/large.png"}),
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 63), max_size=4, unique=True), st.integers(0, 100))
def test_banding_finds_every_pair_within_two_bits(flipped, seed):
    rng = np.random.default_rng(seed)
    steps = rng.choice([-1.0, 1.0], size=(8, 8)) * rng.uniform(1, 2, size=(8, 8))
    other = steps.copy().reshape(-1)
    other[flipped] *= -1

    def image(steps: np.ndarray) -> np.ndarray:
        areas = 100 - np.concatenate([np.zeros((8, 1)), np.cumsum(steps.reshape(8, 8), axis=1)], axis=1)
        edges = np.linspace(0, 32, 10).round().astype(int)
        return np.repeat(np.repeat(areas, np.diff(edges), axis=1), 4, axis=0).astype(np.float32)

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(survey_module, "NEAR_LIKENESS", -1.0)
        patch.setattr(survey_module, "MIN_DETAIL", 0)
        found = survey_module._near_duplicates({3: image(steps), 9: image(other)})
    assert found == ([(3, 9)] if len(flipped) <= 2 else [])


def test_unreadable_are_named_and_the_rest_counted(folder):
    (folder / "a" / "broken.jpg").write_bytes(b"<html>not here</html>")
    (folder / "b" / "empty.png").write_bytes(b"")
    whole = io.BytesIO()
    scene(99).save(whole, "PNG")
    (folder / "b" / "cut.png").write_bytes(whole.getvalue()[:-2000])
    found = survey(open_source(folder))
    reasons = dict(found.unreadable)
    assert set(reasons) == {"a/broken.jpg", "b/empty.png", "b/cut.png"} and reasons["b/empty.png"] == "empty file"
    assert found.count == 15 and sum(found.channels.values()) == 13  # the header of the truncated one is whole
    for path in folder.glob("*/*"):
        path.write_bytes(b"nothing")
    for look in (survey, channels_for):
        with pytest.raises(BadInput, match=r"\.(png|jpg): not an image"):
            look(open_source(folder))


def test_a_sample(folder):
    found = survey(open_source(folder), sample=5, decode_sample=2, seed=3)
    assert (found.count, found.surveyed, found.compared) == (12, 5, 5) and sum(found.classes.values()) == 12
    assert found == survey(open_source(folder), sample=5, decode_sample=2, seed=3)


def test_silhouettes(tmp_path):
    for i in range(4):
        image = Image.new("1", (200, 100), 1)
        ImageDraw.Draw(image).ellipse((20 + i, 20, 69 + i, 69), fill=0)
        image.save(tmp_path / f"{i}.png")
    found = survey(open_source(tmp_path))
    assert 0.13 < found.content_share < 0.16 and 0.88 < found.blank_share < 0.92
    assert found.near_duplicates == []  # too little detail to say
    for i in range(4):
        Image.open(tmp_path / f"{i}.png").convert("RGB").save(tmp_path / f"{i}.png")
    assert survey(open_source(tmp_path)).grey


def test_mixed_channels_name_an_example_of_each(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((5, 8, 8), np.uint16), photometric="minisblack", planarconfig="separate"
    )
    assert channels_for(open_source(tmp_path)) == 5
    Image.new("RGB", (8, 8)).save(tmp_path / "b.tif")
    source = open_source(tmp_path)
    for images in (source, survey(source)):
        with pytest.raises(BadInput, match=r"a\.tif has 5, b\.tif has 3; keep one kind or pass --channels"):
            channels_for(images)
    assert survey(source).kinds == {"uint16": 1, "uint8": 1}


def test_groups_and_labels(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    rows = [("a", "p"), ("a", "p"), ("a", "p"), ("b", "p"), ("b", "q"), ("b", "q"), ("b", ""), ("", "r"), ("c", "s")]
    (tmp_path / "t.csv").write_text("image,label,group\n" + "".join(f"x.png,{x},{g}\n" for x, g in rows))
    found = survey(open_source(tmp_path / "t.csv"))
    assert found.groups == {"count": 4, "smallest": 1, "median": 1, "largest": 4}
    assert found.classes == {"a": 3, "b": 4, "c": 1} and found.unlabelled == 1
    assert found.label_group is not None
    # p tells its three a and not its b; of two b, q tells each by the other; s has nobody else to ask
    assert found.label_group.mixed == 1 and found.label_group.told == pytest.approx(5 / 7)
    assert found.label_group.majority == pytest.approx(3 / 7)


def test_real_silhouettes():
    if not (data := os.environ.get("UNMASK_DATA_DIR")):
        pytest.skip("UNMASK_DATA_DIR is not set: the folder of real data")
    found = survey(open_source(f"{data}/stone-tools/artefacts.csv"), sample=150, decode_sample=50)
    assert found.channels == {1: 150} and found.groups["count"] == 240 and found.unreadable == []
    assert found.blank_share > 0.8 and found.label_group is not None and found.label_group.mixed > 0
