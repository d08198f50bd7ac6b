"""2,000 files as they lie about after years of copying: nothing crashes or hangs, each bad one is named, each good one read."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.augment import View
from unmask.data.decode import Preprocess, UnreadableImage, size_of
from unmask.data.loader import Loader
from unmask.data.sources import open_source

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif"}


def seeds() -> list[tuple[str, bytes]]:
    """Good files of each format: suffix and content."""
    rng, files = np.random.default_rng(0), []
    ramp = np.add.outer(np.arange(36) * 3, np.arange(44) * 2)[..., None] + np.array([0, 30, 60])
    picture = Image.fromarray((ramp + rng.integers(0, 40, (36, 44, 3))).clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8
    for form, suffix in FORMATS.items():
        variants = [(picture, {}), (picture.convert("L"), {}), (picture.resize((1, 1)), {})]
        if form == "JPEG":
            variants += [(picture, {"progressive": True, "exif": exif}), (picture.convert("CMYK"), {})]
            variants += [(picture, {"subsampling": 0, "quality": 95})]
        if form == "PNG":
            variants += [(picture.convert("P"), {}), (picture.convert("RGBA"), {}), (picture.convert("I;16"), {})]
        if form == "TIFF":
            variants += [(picture, {"compression": "tiff_lzw"}), (picture, {"compression": "jpeg"})]
        for image, options in variants:
            file = io.BytesIO()
            image.save(file, form, **options)
            files.append((suffix, file.getvalue()))
    return files


def bombs() -> list[tuple[str, bytes]]:
    """Small files that claim to be enormous."""
    by_suffix: dict[str, bytes] = {}
    for suffix, data in seeds():
        by_suffix.setdefault(suffix, data)
    png = bytearray(by_suffix["png"])
    png[16:24] = struct.pack(">II", 50_000, 50_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(by_suffix["jpg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    bmp = bytearray(by_suffix["bmp"])
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    gif = bytearray(by_suffix["gif"])
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    tiff = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(tiff, "TIFF", compression="group4")
    return [
        ("png", bytes(png)),
        ("jpg", bytes(jpeg)),
        ("bmp", bytes(bmp)),
        ("gif", bytes(gif)),
        ("tif", tiff.getvalue()),
    ]


# pytest undoes our own filter
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The name says what was done to a file: good, cut, flipped, zeroed, empty, other (no image), bomb."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(1)
    good, written = seeds(), 0

    def write(what: str, suffix: str, data: bytes) -> None:
        nonlocal written
        (folder / f"{what}-{written:04d}.{suffix}").write_bytes(data)
        written += 1

    suffixes = list(FORMATS.values())
    for suffix, data in good:
        write("good", suffix, data)
        write("good", suffixes[written % 6], data)  # whatever its name says
        write("empty", suffix, b"")
        write("zeroed", suffix, bytes(len(data)))
    wide = io.BytesIO()
    for size in ((30_000, 2), (2, 30_000)):
        for form, suffix in FORMATS.items():
            if form != "WEBP":  # 16,383 pixels a side
                wide = io.BytesIO()
                Image.new("RGB", size, (9, 99, 199)).save(wide, form)
                write("good", suffix, wide.getvalue())
    for suffix, data in bombs():
        write("bomb", suffix, data)
    for text in (b"<!doctype html>", b"version https://git-lfs", b"%PDF-1.7", b"PK\x03\x04", b"\xff\xd8\xff", b"II*\0"):
        write("other", suffixes[written % 6], text)
    while written < 2000:
        suffix, data = good[written % len(good)]
        if written % 3 == 0:
            write("cut", suffix, data[: int(len(data) * rng.uniform(0.01, 0.6))])
            continue
        damaged = bytearray(data)
        for place in rng.integers(0, len(data) if written % 2 else min(64, len(data)), rng.integers(1, 5)):
            damaged[place] ^= 1 << int(rng.integers(8))
        write("flipped", suffix, bytes(damaged))
    return folder


def test_every_file_is_read_or_named(files):
    began, source = time.monotonic(), open_source(files)
    assert len(source) == 2000
    readable = []
    for i, path in enumerate(source.table["path"]):
        what = path.split("-")[0]
        try:
            image = source.image(i)
            channels, height, width, kind = size_of(files / path)
            assert image.shape == (channels, height, width) and (image.dtype == torch.uint8) == (kind == "uint8")
            assert what in ("good", "flipped", "cut"), path
            readable.append(path)
        except UnreadableImage as error:
            assert what != "good", f"{path}: {error}"
            assert 0 < len(str(error)) <= 200 and "\n" not in str(error)
            if what == "bomb":
                assert "limit" in str(error), f"{path}: {error}"
    assert 300 < len(readable) < 1600
    assert sum(path.startswith("cut") for path in readable) < 10
    assert time.monotonic() - began < 60

    told: dict[str, str] = {}
    grey = Preprocess(3, (0.5,) * 3, (0.25,) * 3)
    loader = Loader(source, grey, (View((8, 8)),), 64, unreadable=told.__setitem__)
    used = torch.cat([batch.index for batch in loader.once()]).tolist()
    named = {path for path in told if not told[path].endswith("3 wanted")}  # a flipped bit may add channels
    assert {source.table["path"][i] for i in used} | set(told) == set(source.table["path"])
    assert named == set(source.table["path"]) - set(readable)
