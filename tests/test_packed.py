"""A store holds what its source held, goes on where it was stopped, and names what is damaged."""

import errno
import io
import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import unmask
from unmask.cli import main
from unmask.data import packed
from unmask.data.augment import View
from unmask.data.decode import Preprocess, UnreadableImage
from unmask.data.loader import Loader
from unmask.data.packed import Layout, pack
from unmask.data.sources import open_source
from unmask.data.survey import survey
from unmask.errors import BadInput

RGB = Preprocess(3, (0.5,) * 3, (0.25,) * 3)
SIZES = [(40, 56), (64, 64), (130, 70), (20, 300), (1, 1), (33, 47)]


def encoded(i: int, form: str = "PNG", **options) -> bytes:
    """A smooth picture with some noise; grey every fourth."""
    height, width = SIZES[i % len(SIZES)]
    rng = np.random.default_rng(i)
    waves = np.sin(np.arange(height)[:, None, None] / 9 + i) + np.cos(np.arange(width)[:, None] / 7 + np.arange(3))
    pixels = (127 + 50 * waves + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if i % 4 == 3 else pixels).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """30 images in a table with classes, groups and other columns; number 7 is broken."""
    folder = tmp_path_factory.mktemp("table")
    rows = [
        {
            "image": {"bytes": encoded(i, "JPEG" if i % 2 else "PNG") if i != 7 else b"broken", "path": f"p{i}"},
            "label": f"class {i % 3}" if i % 5 else None,
            "group": f"site {i // 6}",
            "mass": i / 7 if i != 3 else None,
            "count": i,
            "taxon": "ab"[i % 2],
            "path": f"elsewhere/{i}",
        }
        for i in range(30)
    ]
    pd.DataFrame(rows).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def content(folder: Path) -> dict[str, bytes]:
    """All files of a store, but for that which says how long it took."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "result.json"
    }


def write(source, folder, short_side=256, form="raw", **options) -> packed.Packed:
    return pack(open_source(source), folder, Layout(short_side, form), command="unmask pack t --out s", **options)


def refused(*arguments, **options) -> str:
    with pytest.raises(BadInput) as caught:
        write(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_raw_store_holds_what_its_source_held(table, tmp_path, workers):
    there = open_source(table)
    write(table, tmp_path / "s", workers=workers)
    store = open_source(tmp_path / "s")
    pd.testing.assert_frame_equal(store.table, there.table, check_dtype=False)
    assert store.classes == there.classes and (store.targets() == there.targets()).all()
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "store.json",
        "index.parquet",
        "table.parquet",
        "shard-00000.bin",
    }
    for i in range(30):
        if i == 7:
            for read in (store.image, store.header, store.stored, there.image):
                with pytest.raises(UnreadableImage, match="not an image"):
                    read(i)
        else:
            assert torch.equal(store.image(i), there.image(i)) and store.header(i) == there.header(i)
    assert store.items.unreadable() == [("p7", "not an image, or of a format that is not read")]
    assert open_source(tmp_path / "s", label="taxon").classes == ("a", "b")
    assert open_source(tmp_path / "s", label="taxon").table["column_label"][1] == "class 1"
    with pytest.raises(BadInput, match='no column "species"'):
        open_source(tmp_path / "s", label="species")
    found = survey(store)
    assert found.unreadable == [("p7", "not an image, or of a format that is not read")]
    assert found.exact_duplicates == survey(there).exact_duplicates and found.sizes == survey(there).sizes


def test_classes_that_no_image_has_are_kept_in_the_order_of_the_schema(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["z", "b", "a"]}}
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table({"image": [encoded(0), encoded(1)], "label": [2, 0]})
    made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", tmp_path / "s")
    assert open_source(tmp_path / "s").classes == ("z", "b", "a")
    assert open_source(tmp_path / "s").targets().tolist() == [2, 0]


def test_training_sees_the_same_views_from_a_raw_store(table, tmp_path):
    write(table, tmp_path / "s")
    views = (View((16, 16)), View((8, 12), crop_scale=(0.05, 0.4)))
    told = {}
    pairs = []
    for source in (open_source(table), open_source(tmp_path / "s")):
        names = told.setdefault(source.name, [])
        batches = Loader(source, RGB, views, 5, seed=3, unreadable=lambda *why, names=names: names.append(why))()
        pairs.append([next(batches) for _ in range(14)])
    for one, other in zip(*pairs, strict=True):
        assert torch.equal(one.index, other.index) and torch.equal(one.seed, other.seed)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    first, second = told.values()
    assert first == second and first[0][0] == "p7"


def test_images_are_turned_upright_and_shrunk_but_never_enlarged(tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(6):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(encoded(i, "JPEG", quality=95, exif=exif))
    source = open_source(tmp_path / "in")
    for form, tolerance in (("raw", 1), ("jpeg", 45)):
        write(tmp_path / "in", tmp_path / form, 32, form)
        store = open_source(tmp_path / form)
        for i in range(6):
            whole, small = source.image(i), store.image(i)
            height, width = whole.shape[1:]
            assert (width, height) == SIZES[i]
            scale = min(1, 32 / min(height, width))
            assert small.shape[1:] == (round(height * scale), round(width * scale)) and small.shape[0] == whole.shape[0]
            picture = Image.fromarray(
                whole.permute(1, 2, 0).numpy().squeeze(2) if i == 3 else whole.permute(1, 2, 0).numpy()
            )
            wanted = np.asarray(picture.resize(small.shape[:0:-1], Image.Resampling.BICUBIC)).astype(int)
            wanted = wanted[..., None] if i == 3 else wanted
            off = np.abs(small.permute(1, 2, 0).numpy().astype(int) - wanted)
            assert off.max() <= tolerance and off.mean() < 6


def test_floats_and_many_channels_are_kept_raw_and_refused_as_jpeg(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "in" / "deep.tif", rng.integers(0, 65535, (50, 40), dtype=np.uint16))
    tifffile.imwrite(
        tmp_path / "in" / "five.tif",
        rng.integers(0, 255, (5, 30, 20), dtype=np.uint8),
        photometric="minisblack",
        planarconfig="separate",
    )
    write(tmp_path / "in", tmp_path / "s")
    there, store = open_source(tmp_path / "in"), open_source(tmp_path / "s")
    assert [store.image(i).dtype for i in range(2)] == [torch.float32, torch.uint8]
    assert all(torch.equal(store.image(i), there.image(i)) for i in range(2))
    write(tmp_path / "in", tmp_path / "small", 10)
    assert open_source(tmp_path / "small").image(0).shape == (1, 12, 10)
    assert "deep.tif" in (told := refused(tmp_path / "in", tmp_path / "j", form="jpeg")) and "--format raw" in told


def test_a_packing_that_was_killed_goes_on_and_ends_with_the_same_bytes(table, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD", 40_000)
    monkeypatch.setattr(packed, "CHUNK", 1)
    write(table, tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("shard-*.bin"))) >= 5
    rng, seen, packed_so_far = np.random.default_rng(0), [], 0
    fork = multiprocessing.get_context("fork")
    said = fork.Value("i", 0)

    def slowly(done: int) -> None:
        said.value = done
        time.sleep(0.03)

    for _ in range(4):
        child = fork.Process(target=write, args=(table, tmp_path / "s"), kwargs={"progress": slowly})
        child.start()
        until = time.monotonic() + 60
        while said.value < packed_so_far + 2 and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.06))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        packed_so_far = said.value
    with pytest.raises(BadInput, match="is not finished, run the same command again: unmask pack t --out s"):
        open_source(tmp_path / "s")
    write(table, tmp_path / "s", progress=seen.append)
    assert seen[0] > 0 and content(tmp_path / "s") == content(tmp_path / "whole")
    write(table, tmp_path / "s", progress=seen.clear)  # finished: nothing is done
    assert seen and content(tmp_path / "s") == content(tmp_path / "whole")


def test_other_settings_or_another_source_are_refused(table, tmp_path):
    write(table, tmp_path / "s")
    assert "--short-side 256, not 64" in refused(table, tmp_path / "s", 64)
    assert "--format raw, not jpeg" in refused(table, tmp_path / "s", form="jpeg")
    changed = pd.read_parquet(table)
    changed.loc[4, "taxon"] = "c"
    changed.to_parquet(tmp_path / "t.parquet")
    assert "other labels, groups or columns" in refused(tmp_path / "t.parquet", tmp_path / "s")
    changed.iloc[:20].to_parquet(tmp_path / "t.parquet")
    assert "images 30 then, 20 now" in refused(tmp_path / "t.parquet", tmp_path / "s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert "not empty" in refused(table, tmp_path / "full")
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(table, tmp_path / "file" / "s")
    pd.DataFrame({"image": [b"x"]}).to_parquet(tmp_path / "bad.parquet")
    assert "none of 1 images can be read" in refused(tmp_path / "bad.parquet", tmp_path / "bad")


def test_a_full_disk_leaves_what_is_whole(table, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHARD", 40_000)
    write(table, tmp_path / "whole")
    add, room = packed.ShardWriter.add, [100_000]

    def add_while_there_is_room(self, piece):
        room[0] -= len(piece.data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(packed.ShardWriter, "add", add_while_there_is_room)
        assert "disk is full; make room and run the same command again" in refused(table, tmp_path / "s")
    whole = content(tmp_path / "whole")
    shards = {name: data for name, data in content(tmp_path / "s").items() if name.startswith(("shard", "."))}
    assert 1 <= len(shards) < len(whole) and all(whole[name] == data for name, data in shards.items())
    write(table, tmp_path / "s")
    assert content(tmp_path / "s") == whole


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_a_damaged_image_is_named_and_the_others_are_read(table, tmp_path, form):
    write(table, tmp_path / "s", form=form)
    shard = tmp_path / "s" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    index = pd.read_parquet(tmp_path / "s" / "index.parquet")
    data[index["offset"][12] + index["length"][12] // 2] ^= 4
    shard.write_bytes(data)
    told = []
    loader = Loader(
        open_source(tmp_path / "s"), RGB, (View((8, 8)),), 10, unreadable=lambda path, why: told.append((path, why))
    )
    assert torch.cat([batch.index for batch in loader.once()]).tolist() == [i for i in range(30) if i not in (7, 12)]
    assert told[1] == ("p12", "damaged in s/shard-00000.bin")
    shard.write_bytes(data[: index["offset"][20]])
    source = open_source(tmp_path / "s")
    source.image(13)
    with pytest.raises(UnreadableImage, match="damaged"):
        source.image(20)
    shard.unlink()
    with pytest.raises(UnreadableImage, match=r"shard-00000.bin: No such file"):
        open_source(tmp_path / "s").image(0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Stores of six images, raw and JPEG, with what they give."""
    folder, stores = tmp_path_factory.mktemp("small"), {}
    pd.DataFrame({"image": [encoded(i) for i in range(6)], "label": list("ababab")}).to_parquet(folder / "t.parquet")
    for form in ("raw", "jpeg"):
        write(folder / "t.parquet", folder / form, 16, form)
        source = open_source(folder / form)
        stores[form] = folder / form, [source.image(i) for i in range(6)], source.table
    return stores


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["raw", "jpeg"]),
    st.sampled_from(["store.json", "index.parquet", "table.parquet", "shard-00000.bin"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)
def test_no_flipped_bit_goes_unnoticed(small, form, name, place, flip):
    folder, images, table = small[form]
    data = (folder / name).read_bytes()
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= flip
    (folder / name).write_bytes(damaged)
    try:
        source = open_source(folder)
        assert source.table.equals(table)
        for i, image in enumerate(images):
            try:
                assert torch.equal(source.image(i), image)
            except UnreadableImage as error:
                assert name == "shard-00000.bin" and "damaged" in str(error)
    except BadInput as error:
        assert name in str(error) and "pack" in str(error) and "\n" not in str(error)
    finally:
        (folder / name).write_bytes(data)


def test_the_command(table, tmp_path, capsys):
    def run(*arguments) -> int:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code  # type: ignore[return-value]

    assert run("pack", table, "--out", tmp_path / "s", "--workers", 0, "--short-side", 24) == 0
    said = capsys.readouterr().out
    assert "as raw (raw takes about" in said and "skipped p7: not an image" in said.replace("\n", " ")
    assert "29 images packed" in said and f"unmask pretrain mae --data {tmp_path / 's'}" in said.replace("\n", " ")
    result = json.loads((tmp_path / "s" / "result.json").read_text())
    assert result["images"] == 29 and result["unreadable"][0][0] == "p7" and result["format"] == "raw"
    assert unmask.pack(table, out=tmp_path / "s", short_side=24)["bytes"] == result["bytes"]
    assert "packed before" in capsys.readouterr().out
    for wrong in (["--format", "jpeg"], ["--short-side", "0"], []):
        assert run("pack", table, "--out", tmp_path / "s", *wrong) == 2
    with pytest.raises(BadInput, match="p7: not an image"):
        unmask.pack(table, out=tmp_path / "strict", strict=True, workers=0)
    small = ["--image-size", 4, "--encoder", "vit-tiny/1", "--batch-size", 4, "--workers", 0]
    assert run("pretrain", "mae", "--data", tmp_path / "s", "--out", tmp_path / "run", "--steps", 2, *small) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["unreadable"][0][0] == "p7"


def test_the_format_is_chosen_by_size(table, tmp_path, monkeypatch):
    from unmask.verbs import pack as verb

    source = open_source(table)
    assert verb.choose_format(source, 256, tmp_path / "s").value == "raw"
    monkeypatch.setattr(verb.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    choice = verb.choose_format(source, 256, tmp_path / "s")
    assert choice.value == "jpeg" and "more than half of" in choice.reason and "free disk" in choice.reason
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((9, 9), np.uint16))
    assert "deep.tif has more than 8 bits" in verb.choose_format(open_source(tmp_path), 256, tmp_path / "s").reason
