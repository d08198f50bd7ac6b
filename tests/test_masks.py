"""Label maps are found, read as they are stored, counted, and refused in one line where they are none."""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unmask.data.decode import UnreadableImage
from unmask.data.masks import VOID, open_masks
from unmask.errors import BadInput

MAP = np.array([[0, 1, 2, 255], [1, 1, 2, 0]], dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def pair(root: Path, name: str = "a", pixels: np.ndarray = MAP) -> Path:
    """An image and its mask, in images/ and masks/."""
    save(root / f"images/{name}.jpg", np.zeros((*pixels.shape, 3), dtype=np.uint8))
    save(root / f"masks/{name}.png", pixels)
    return root


def refused(spec, **options) -> str:
    with pytest.raises(BadInput) as caught:
        open_masks(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_counts(tmp_path):
    opened = open_masks(pair(tmp_path))
    assert opened.classes == ("0", "1", "2")
    assert opened.counts.tolist() == [2, 3, 2] and opened.counts.dtype == torch.int64
    assert torch.equal(opened.masks(0), torch.from_numpy(MAP)) and opened.masks(0).dtype == torch.uint8
    assert opened.source.table["path"].tolist() == ["a.jpg"] and opened.remarks == ()
    assert torch.equal(pickle.loads(pickle.dumps(opened)).masks(0), opened.masks(0))


@pytest.mark.parametrize("where", [".", "images", "images/x", "named"])
def test_masks_are_found(tmp_path, where):
    pair(tmp_path, "x/a")
    pair(tmp_path, "y/a", np.ones((3, 3), dtype=np.uint8))
    options = {"masks": tmp_path / "masks"} if where == "named" else {}
    opened = open_masks(tmp_path / ("images" if options else where), **options)
    assert len(opened) == (1 if where == "images/x" else 2)
    assert opened.masks(0).shape == (2, 4)
    assert opened.source.classes == () and "label" not in opened.source.table


def test_names_beside_and_ignored_numbers(tmp_path):
    pair(tmp_path, "x/a")
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid\n")
    for spec in (tmp_path, tmp_path / "images", tmp_path / "images/x"):
        assert open_masks(spec).classes == ("sky", "road", "void")
    opened = open_masks(tmp_path, ignore=(2,))
    assert opened.classes == ("sky", "road") and opened.counts.tolist() == [2, 3]
    assert opened.masks(0).tolist() == [[0, 1, VOID, VOID], [1, 1, VOID, 0]]
    again = open_masks(tmp_path, classes=opened.classes, ignore=(2,))
    assert again.fingerprint() == opened.fingerprint() != open_masks(tmp_path).fingerprint()
    # a number keeps its place where one before it is ignored, so that the classes of one set fit another
    first = open_masks(tmp_path, ignore=(0,))
    assert first.classes == ("sky", "road", "void") and first.counts.tolist() == [0, 3, 2]
    assert open_masks(tmp_path, classes=first.classes, ignore=(0,)).counts.tolist() == [0, 3, 2]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("palette", [False, True])
def test_values_are_taken_as_they_are_stored(tmp_path, bits, palette):
    if palette and bits == 16:
        return
    pixels = np.arange(12).reshape(3, 4) % min(2**bits, 5)
    pair(tmp_path)
    file = tmp_path / "masks/a.png"
    if bits == 16:
        Image.fromarray(pixels.astype(np.uint16)).save(file)
    elif palette:
        image = Image.frombytes("P", (4, 3), pixels.astype(np.uint8).tobytes())
        image.putpalette([200, 10, 10] * 16)
        image.save(file, bits=bits)
    else:
        write_grey(file, pixels, bits)
    save(tmp_path / "images/a.jpg", np.zeros((3, 4, 3), dtype=np.uint8))
    assert open_masks(tmp_path).masks(0).tolist() == pixels.tolist()


def write_grey(path: Path, pixels: np.ndarray, bits: int) -> None:
    """A grey PNG of so many bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    spread = ((pixels[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(height, -1).astype(np.uint8)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in spread)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_table(tmp_path):
    pair(tmp_path)
    pair(tmp_path, "b", MAP[:, :3])
    rows = {"image": ["images/b.jpg", "images/a.jpg", "images/a.jpg"], "annotation": ["masks/b.png", "masks/a.png", ""]}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    opened = open_masks(tmp_path / "t.csv", mask="annotation")
    assert [opened.masks(i).shape for i in range(2)] == [(2, 3), (2, 4)]
    assert opened.tallies.tolist() == [[1, 3, 2], [2, 3, 2]]
    assert opened.remarks == (("images/a.jpg", 'no path in column "annotation"; left out'),)
    assert opened.subset([1]).masks(0).shape == (2, 4) and opened.subset([1]).counts.tolist() == [2, 3, 2]
    assert 'no column "mask"' in refused(tmp_path / "t.csv")
    assert "leave --masks out" in refused(tmp_path / "t.csv", masks=tmp_path)


def test_left_out_and_remarked(tmp_path):
    pair(tmp_path)
    for name in ("damaged", "empty", "missing", "size", "image"):
        pair(tmp_path, name)
    whole = (tmp_path / "masks/damaged.png").read_bytes()
    (tmp_path / "masks/damaged.png").write_bytes(whole[:50])
    save(tmp_path / "masks/empty.png", np.full_like(MAP, 255))
    (tmp_path / "masks/missing.png").unlink()
    save(tmp_path / "masks/size.png", MAP.T.copy())
    (tmp_path / "images/image.jpg").write_bytes(b"not an image")
    opened = open_masks(tmp_path)
    said = dict(opened.remarks)
    assert len(opened) == 1 and len(said) == 5
    assert "void everywhere" in said["empty.jpg"] and "no mask of its name" in said["missing.jpg"]
    assert "is 2 x 4 pixels (width x height), it is 4 x 2" in said["size.jpg"]
    assert "damaged.png" in said["damaged.jpg"] and "not an image" in said["image.jpg"]
    assert "\n" not in refused(tmp_path, strict=True)
    (tmp_path / "masks/a.png").unlink()
    assert "none of 6 images can be used" in refused(tmp_path)


def test_turned_by_exif(tmp_path):
    pair(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images/a.jpg", np.zeros((4, 2, 3), dtype=np.uint8), exif=exif)
    assert len(open_masks(tmp_path)) == 1  # the mask is as the image is shown
    save(tmp_path / "masks/a.png", MAP.T.copy())
    assert "4 x 2" in refused(tmp_path)


def test_refused(tmp_path):
    pair(tmp_path)
    said = refused(tmp_path, classes=("a", "b"))
    assert "a.png" in said and "value 2" in said and "--ignore 2" in said and "--classes" in said
    assert "0 names" in refused(tmp_path, classes=())
    assert "2 names" in refused(tmp_path, classes=("a", "a"))
    assert "No such file" in refused(tmp_path, classes=tmp_path / "none.txt")
    assert "--masks" in refused(tmp_path / "masks")
    assert "no such file or folder" in refused(tmp_path / "nothing")
    assert "no such folder" in refused(tmp_path, masks=tmp_path / "nothing")
    assert "only JPEGs" in refused(tmp_path / "images", masks=tmp_path / "images")
    save(tmp_path / "masks/a.png", np.where(MAP > 1, 255, 0).astype(np.uint8))
    assert "one class only" in refused(tmp_path) and "as 1 and the rest as 0" in refused(tmp_path)
    save(tmp_path / "masks/a.png", np.array([[0, 120, 250, 0]] * 2, dtype=np.uint8))
    assert "shades of grey" in refused(tmp_path)
    save(tmp_path / "masks/a.png", np.full((2, 4), 300, dtype=np.uint16))
    assert "value 300" in refused(tmp_path)
    for mode in ("RGB", "LA", "RGBA"):
        save(tmp_path / "masks/a.png", MAP, mode)
        assert mode in refused(tmp_path) and "8-bit grey or with a palette" in refused(tmp_path)


def test_a_mask_that_goes_later(tmp_path):
    opened = open_masks(pair(tmp_path))
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(UnreadableImage, match="no such file"):
        opened.masks(0)


def test_camvid(data_dir):
    opened = open_masks(data_dir / "camvid/images/train", ignore=(11,))
    assert len(opened) == 367 and len(opened.classes) == 11 and opened.classes[::10] == ("sky", "bicyclist")
    assert not opened.remarks
    path = data_dir / "camvid/masks/train" / f"{Path(opened.source.table['path'].iat[5]).stem}.png"
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(opened.masks(5).numpy(), np.where(pixels == 11, VOID, pixels))
    assert int(opened.counts.sum()) == opened.tallies.sum() < 367 * 360 * 480
    test = open_masks(data_dir / "camvid/images/test", classes=opened.classes, ignore=(11,))
    assert test.classes == opened.classes and len(test) == 233
