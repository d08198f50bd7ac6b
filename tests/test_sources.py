"""Every kind of source opens, knows its classes and groups, pickles, and refuses what it cannot use in one line."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unmask.data import sources
from unmask.data.decode import UnreadableImage
from unmask.data.source import Source, require_classes
from unmask.data.sources import Crops, open_source
from unmask.errors import BadInput


def shade(value: int) -> bytes:
    """A 6×4 PNG of one grey."""
    file = io.BytesIO()
    Image.new("L", (6, 4), value).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, *names: str) -> Path:
    """PNGs of grey 0, 1, 2, …, in the order of the names."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(shade(value))
    return folder


def shades(source: Source) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def refused(spec, **columns) -> str:
    with pytest.raises(BadInput) as caught:
        open_source(spec, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hugging_face(path: Path, images: list, labels: list, names: list[str] | None = None, **columns) -> Path:
    """A Parquet file as the `datasets` library writes it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64()), **columns})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_flat_and_nested_folders_have_no_classes(tmp_path):
    source = open_source(fill(tmp_path / "a", "b.png", "a.PNG", ".hidden.png", ".git/x.png"))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    assert source.table["path"].tolist() == ["a.PNG", "b.png"] and shades(source) == [1, 0]
    assert source.classes == () and list(source.table.columns) == ["path"]
    with pytest.raises(BadInput, match="no labels"):
        source.targets()
    assert open_source(fill(tmp_path / "top", "x/a.png", "y/b.png", "c.png")).classes == ()
    assert open_source(fill(tmp_path / "deep", "x/y/a.png", "x/z/b.png")).classes == ()
    assert open_source(fill(tmp_path / "one", "x/a.png", "x/b.png")).classes == ()


def test_a_subfolder_a_class(tmp_path):
    source = open_source(fill(tmp_path, "10/a.png", "9/b.png", "9/far/down/c.png", "flint/d.png"))
    assert source.classes == ("9", "10", "flint")
    assert dict(zip(source.table["path"], source.targets().tolist(), strict=True)) == {
        "10/a.png": 1,
        "9/b.png": 0,
        "9/far/down/c.png": 0,
        "flint/d.png": 2,
    }
    assert source.header(0) == (1, 4, 6, "uint8") and source.stored(0) == tmp_path / "10/a.png"


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere", "a.png")
    fill(tmp_path / "all", "cat/b.png")
    (tmp_path / "all" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "cat" / "loop").symlink_to(tmp_path / "all")
    assert open_source(tmp_path / "all").table["path"].tolist() == ["cat/b.png", "dog/a.png"]


def test_folders_that_hold_nothing(tmp_path):
    assert "no images in this folder" in refused(tmp_path)
    (tmp_path / "t.csv").write_text("image\n")
    assert "t.csv" in refused(tmp_path)
    missing = refused(tmp_path / "nowhere")
    assert "no such file" in missing and "hf:NAME" in missing
    assert "no file matches" in refused(str(tmp_path / "*.parquet"))
    assert "no columns" in refused(fill(tmp_path, "a.png"), label="taxon")
    (tmp_path / "notes.txt").write_text("x")
    assert "not a source" in refused(tmp_path / "notes.txt")


def test_csv(tmp_path):
    fill(tmp_path, "im/0.png", "im/1.png", "im/2.png", "im/3.png")
    (tmp_path / "t.csv").write_text(
        "\ufeffimage,label,group,width_cm,path,taxon\n"
        "im/0.png,01,None,1.5,p0,x\n"
        f"{tmp_path}/im/1.png,2,a,,p1,\n"
        "im/2.png,,b,2,p2,x\n"
        "im/none.png,NA,,3,p3,y\n",
        encoding="utf-8",
    )
    source = open_source(tmp_path / "t.csv")
    assert source.classes == ("01", "2") and source.targets().tolist() == [0, 1, -1, -1]
    assert source.table["group"].tolist() == ["None", "a", "b", None]
    assert source.table["width_cm"].tolist()[::2] == [1.5, 2.0] and source.table["column_path"].tolist()[0] == "p0"
    assert [int(source.image(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    with pytest.raises(UnreadableImage, match="no such file"):
        source.image(3)
    other = open_source(tmp_path / "t.csv", label="taxon", group="label")
    assert other.classes == ("x", "y") and other.table["group"].tolist() == ["01", "2", None, None]
    assert other.table["taxon"].isna().sum() == 1 and other.table["column_group"].tolist()[1] == "a"


def test_tables_that_cannot_be_used(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,label\na.png,x\n")
    assert 'no column "image"; its columns: file, label; choose one with --image' in refused(table)
    assert 'no column "taxon"; its columns: file, label; choose one with --label' in refused(
        table, image="file", label="taxon"
    )
    assert "--group" in refused(table, image="file", group="site")
    table.write_text("image,label\n")
    assert "no images" in refused(table)
    table.write_text("")
    assert "cannot be read as csv" in refused(table)
    table.write_bytes(b"image\n\xff\xfe\n")
    assert "cannot be read as csv" in refused(table)
    parquet = tmp_path / "t.parquet"
    parquet.write_bytes(b"PAR1 but no more")
    assert "cannot be read as parquet" in refused(parquet)
    pq.write_table(pa.table({"image": [1, 2]}), parquet)
    assert 'column "image" is int64' in refused(parquet)
    pq.write_table(pa.table({"image": ["a.png"], "label": [["x", "y"]]}), parquet)
    assert "one value an image" in refused(parquet)
    bytes_too = hugging_face(tmp_path / "u.parquet", [{"bytes": shade(1), "path": None}], [0])
    pq.write_table(pa.table({"image": ["a.png"]}), parquet)
    assert bytes_too.exists() and "one kind at a time" in refused(str(tmp_path / "*.parquet"))
    pq.write_table(pa.table({"image": [shade(1)]}), parquet)
    assert "differs between tables" in refused(str(tmp_path / "*.parquet"))


def test_parquet_of_paths_and_of_bytes(tmp_path):
    fill(tmp_path, "im/0.png", "im/1.png")
    table = pa.table({"picture": ["im/0.png", "im/1.png"], "label": pa.array([3, None]), "mass_g": [0.5, 1.5]})
    pq.write_table(table, tmp_path / "paths.parquet")
    source = open_source(tmp_path / "paths.parquet", image="picture")
    assert shades(source) == [0, 1] and source.classes == ("3",) and source.targets().tolist() == [0, -1]
    assert source.table["mass_g"].tolist() == [0.5, 1.5]
    for kind in (pa.binary(), pa.large_binary()):
        pq.write_table(pa.table({"image": pa.array([shade(5), None], kind)}), tmp_path / "bytes.parquet")
        source = open_source(tmp_path / "bytes.parquet")
        assert source.table["path"].tolist() == ["bytes#0", "bytes#1"] and source.image(0).unique().tolist() == [5]
        with pytest.raises(UnreadableImage, match="neither bytes nor a path"):
            source.image(1)


def test_hugging_face_structs_in_several_tables(tmp_path):
    fill(tmp_path, "im/0.png")
    names = ["zebra", "ant", "unseen"]
    null = {"bytes": None, "path": "im/0.png"}
    hugging_face(tmp_path / "train-0.parquet", [{"bytes": shade(7), "path": "x.png"}, null, null], [0, 1, -1], names)
    hugging_face(tmp_path / "train-1.parquet", [{"bytes": shade(9), "path": None}], [1], names)
    source = open_source(str(tmp_path / "train-*.parquet"))
    assert shades(source) == [7, 0, 0, 9] and source.classes == ("zebra", "ant", "unseen")
    assert source.targets().tolist() == [0, 1, -1, 1]
    assert source.table["path"].tolist() == ["x.png", "im/0.png", "im/0.png", "train-1#0"]
    assert isinstance(source.stored(0), bytes) and source.stored(1) == tmp_path / "im/0.png"


def test_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"bytes": shade(i), "path": f"{i}.png"} for i in range(10)]
    hugging_face(folder / "train.parquet", rows, [0, 1] * 5, ["no", "yes"], site=pa.array(list("abcdefghij")))
    hugging_face(folder / "test.parquet", rows[:3], [1, 0, -1], ["no", "yes"], site=pa.array(list("abc")))
    source = open_source(f"hf:{folder}", group="site")
    assert (
        len(source) == 10 and source.classes == ("no", "yes") and source.table["group"].tolist() == list("abcdefghij")
    )
    test = open_source(f"hf:{folder}:test")
    assert shades(test) == [0, 1, 2] and test.targets().tolist() == [1, 0, -1]
    few = open_source(f"hf:{folder}:train[:20%]+train[-10%:]")
    assert shades(few) == shades(pickle.loads(pickle.dumps(few))) == [0, 1, 9]
    assert "load_dataset failed" in refused(f"hf:{folder}:validation")
    assert "its columns: image, label, site" in refused(f"hf:{folder}:test", image="picture")
    assert open_source(folder / "test.parquet").fingerprint() == test.fingerprint()


def shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tar_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    meta = {"__meta__/x": b"skipped"}
    shard(tmp_path / "s-0.tar", {**meta, "a/1.png": shade(1), "a/1.cls": b"4", "a/2.png": shade(2), "a/2.cls": b"10\n"})
    record = json.dumps({"group": "site", "mass": 2.5}).encode()
    shard(tmp_path / "s-1.tar", {"3.png": shade(3), "3.json": record, "3.txt": b"a scraper", "lone.json": b"{}"})
    spec = f"wds:{tmp_path}/s-{{0..1}}.tar"
    source = open_source(spec)
    assert source.table["path"].tolist() == ["s-0.tar/a/1.png", "s-0.tar/a/2.png", "s-1.tar/3.png"]
    assert shades(source.subset([2, 0, 1])) == [3, 1, 2] and source.classes == ("4", "10")
    assert source.targets().tolist() == [0, 1, -1] and source.table["group"].tolist() == [None, None, "site"]
    assert source.table["mass"].tolist()[2] == 2.5 and source.table["txt"].tolist()[2] == "a scraper"
    ours = [source.stored(i) for i in range(3)]
    theirs = [x["png"] for x in wds.WebDataset(spec.removeprefix("wds:"), shardshuffle=False) if "png" in x]
    assert ours == theirs
    assert open_source(f"wds:{tmp_path}/s-*.tar").fingerprint() == source.fingerprint()
    assert open_source(spec, label="cls").classes == ("4", "10")
    assert "s-2.tar" in refused(f"wds:{tmp_path}/s-{{1..2}}.tar")
    assert "no column" in refused(spec, label="taxon")
    shard(tmp_path / "two.tar", {"1.left.png": shade(1), "1.right.png": shade(2)})
    assert "--image" in refused(f"wds:{tmp_path}/two.tar")
    assert shades(open_source(f"wds:{tmp_path}/two.tar", image="right.png")) == [2]
    (tmp_path / "bad.tar").write_bytes(b"not a tar file" * 100)
    assert "not a plain tar file" in refused(f"wds:{tmp_path}/bad.tar")


def test_extras_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "webdataset.shardlists", None)
    assert 'pip install "unmask[datasets]"' in refused("hf:anything")
    assert 'pip install "unmask[webdataset]"' in refused("wds:a.tar")


def test_digits():
    train, test = open_source("digits"), open_source("digits:test")
    assert len(train) == 1437 and len(test) == 360 and train.classes == tuple("0123456789")
    assert not set(train.table["path"]) & set(test.table["path"])
    assert np.abs(np.bincount(test.targets()) - 36).max() <= 1
    image = train.image(0)
    assert image.shape == (1, 8, 8) and image.dtype == torch.uint8
    assert max(int(train.image(i).max()) for i in range(20)) == 255
    assert torch.equal(train.stored(0), image) and train.header(0) == (1, 8, 8, "uint8")
    assert "no columns" in refused("digits", group="writer")


def test_photos_train_and_test_share_no_pixel():
    train, test = open_source("photos"), open_source("photos:test")
    assert train.classes == test.classes and len(train.classes) >= 15
    covered = {}
    for source in (train, test):
        items = source.items
        assert isinstance(items, Crops)
        for file in np.unique(items.file):
            mine = items.file == file
            columns = np.unique((items.left[mine][:, None] + np.arange(sources.CROP)).ravel())
            covered.setdefault(items.files[file], []).append(set(columns.tolist()))
    assert all(len(halves) == 2 and not halves[0] & halves[1] for halves in covered.values())
    for source in (train, test):
        for i in range(0, len(source), len(source) // 20):
            image = source.image(i)
            assert image.shape == (3, 64, 64) and image.dtype == torch.uint8
    before = train.image(0)
    train.image(0).zero_()  # what is kept must not be what is handed out
    assert (train.image(0) == before).all()


def test_every_source_pickles_small_and_subsets(tmp_path):
    big = os.urandom(300_000)
    rows = [{"bytes": shade(i), "path": f"{i}.png"} for i in range(4)] + [{"bytes": big, "path": "noise"}]
    parquet = hugging_face(tmp_path / "t.parquet", rows, [0, 1, 0, 1, 0])
    folder = fill(tmp_path / "f", "a/0.png", "a/1.png", "b/2.png", "b/3.png")
    for spec in (parquet, folder, "digits:test", "photos:test"):
        source = open_source(spec)
        source.image(0)  # whatever is kept from now on is not sent along
        data = pickle.dumps(source)
        again = pickle.loads(data)
        assert len(data) < 250_000 and (again.image(3) == source.image(3)).all()
        assert again.fingerprint() == source.fingerprint() and again.table.equals(source.table)
        part = source.subset([3, 1]).subset(np.array([1, 0]))
        assert len(part) == 2 and part.classes == source.classes and list(part.table.index) == [0, 1]
        assert part.targets().tolist() == source.targets()[[1, 3]].tolist()
        assert (part.image(0) == source.image(1)).all() and part.fingerprint() != source.fingerprint()


def test_fingerprint_notices_names_and_sizes(tmp_path):
    first = open_source(fill(tmp_path, "a.png", "b.png")).fingerprint()
    assert open_source(tmp_path).fingerprint() == first
    with (tmp_path / "b.png").open("ab") as file:
        file.write(b"more")
    second = open_source(tmp_path).fingerprint()
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert len({first, second, open_source(tmp_path).fingerprint()}) == 3


def test_require_classes(tmp_path):
    fill(tmp_path, "0.png")
    table = tmp_path / "t.csv"
    for rows, match in (("x\n0.png,x", "one class only"), ("\n0.png,", "every label is missing")):
        table.write_text(f"image,label\n0.png,{rows}\n")
        with pytest.raises(BadInput, match=match):
            require_classes(open_source(table))
    table.write_text("image\n0.png\n")
    with pytest.raises(BadInput, match="no labels"):
        require_classes(open_source(table))
    require_classes(open_source("digits:test"))


@pytest.fixture(scope="session")
def data() -> Path:
    folder = os.environ.get("UNMASK_DATA_DIR")
    if not folder:
        pytest.skip("UNMASK_DATA_DIR is not set: the folder of real data")
    return Path(folder)


def test_real_tables_and_folders(data):
    cifar = open_source(data / "cifar10" / "test.parquet")
    assert (
        len(cifar) == 10_000 and cifar.classes[0] == "airplane" and np.bincount(cifar.targets()).tolist() == [1000] * 10
    )
    tiny = open_source(str(data / "tiny-imagenet-100" / "train-*.parquet"))
    assert len(tiny) == 50_000 and len(tiny.classes) == 100 and tiny.image(49_999).shape[1:] == (64, 64)
    stones = open_source(data / "stone-tools" / "artefacts.csv", label="taxon", group="source_image")
    assert (
        len(stones) == 5_212 and stones.image(0).shape[0] == 1 and pd.api.types.is_float_dtype(stones.table["area_cm2"])
    )
    assert len(open_source(data / "imagenet-samples")) == 200


def test_the_same_through_datasets(data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    mine, theirs = open_source(data / "cifar10" / "test.parquet"), open_source(f"hf:{data / 'cifar10'}:test")
    assert mine.fingerprint() == theirs.fingerprint() and (mine.targets() == theirs.targets()).all()
    assert (mine.image(7) == theirs.image(7)).all()
