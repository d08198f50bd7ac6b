"""Every kind of file decodes to the pixels that were written; damaged ones say why."""

import contextlib
import importlib.util
import inspect
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from unmask.data.decode import (
    Preprocess,
    UnreadableImage,
    border_colour,
    content,
    content_box,
    decode,
    decode_shrunk,
    measure,
    size_of,
    thumbnail,
)
from unmask.errors import BadInput


def pixels(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, size=shape, dtype=dtype, endpoint=True)


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png16(array: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W, C), which Pillow cannot write."""
    height, width, channels = array.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def agrees(data: bytes) -> torch.Tensor:
    """Decode, checking that the header told the truth."""
    image = decode(data)
    channels, height, width, kind = size_of(data)
    assert (channels, height, width) == tuple(image.shape)
    assert image.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
    return image


LOSSLESS = {
    "1": ("PNG", "TIFF", "BMP"),
    "L": ("PNG", "TIFF", "BMP", "GIF"),
    "RGB": ("PNG", "TIFF", "BMP", "WEBP"),
    "P": ("PNG", "TIFF", "BMP", "GIF"),
    "LA": ("PNG", "TIFF"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "CMYK": ("TIFF",),
}


@st.composite
def written(draw) -> tuple[Image.Image, bytes]:
    mode = draw(st.sampled_from(sorted(LOSSLESS)))
    form = draw(st.sampled_from(LOSSLESS[mode]))
    height, width, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 2**16))
    noise = Image.fromarray(pixels(height, width, 4, seed=seed), "RGBA")
    image = noise.convert("RGB").quantize(draw(st.integers(2, 256))) if mode == "P" else noise.convert(mode)
    options = {}
    if form == "TIFF":
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    if form == "WEBP":
        options = {"lossless": True, "exact": True}
    if mode == "P" and form in ("PNG", "GIF") and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255)) % len(image.getcolors(256) or [0])
    return image, encode(image, form, **options)


@settings(max_examples=150, deadline=None)
@given(written())
def test_lossless_formats_give_the_pixels_written(case):
    image, data = case
    got = agrees(data)
    again = Image.open(io.BytesIO(data))
    if again.has_transparency_data:
        rgba = np.asarray(again.convert("RGBA"), dtype=np.float64)
        alpha = rgba[..., 3:] / 255
        wanted = rgba[..., :3] * alpha + 255 * (1 - alpha)
        wanted = wanted if got.shape[0] == 3 else wanted[..., :1]
        np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), wanted, atol=1.01)
        return
    wanted = np.asarray(image.convert("L" if got.shape[0] == 1 else "RGB"))
    wanted = wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)
    np.testing.assert_array_equal(got.numpy(), wanted)


def test_jpeg_and_one_bit():
    smooth = Image.fromarray(np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8))
    got = agrees(encode(smooth, "JPEG", quality=95))
    assert got.shape == (1, 48, 64) and (got[0].int() - torch.from_numpy(np.array(smooth)).int()).abs().max() < 8
    assert agrees(encode(smooth.convert("RGB"), "JPEG")).shape == (3, 48, 64)
    one = agrees(encode(smooth.convert("1"), "PNG"))
    assert one.dtype == torch.uint8 and set(one.unique().tolist()) == {0, 255}


def by_pillow(data: bytes, factor: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    pixels = np.asarray(ImageOps.exif_transpose(image).convert("L" if image.mode == "L" else "RGB"))
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).astype(int)


@pytest.mark.parametrize("size", [(64, 48), (97, 131), (1, 1), (8, 1), (15, 17), (1, 600)])
@pytest.mark.parametrize("mode", ["RGB", "L", "4:4:4", "4:2:2", "progressive", "turned", "restarts"])
def test_jpeg_is_decoded_within_two_levels_of_pillow(size, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "progressive": {"progressive": True},
        "turned": {"exif": exif},
        "restarts": {"restart_marker_rows": 1},
    }
    smooth = np.add.outer(np.arange(size[1]), 2 * np.arange(size[0]))[..., None] + np.array([0, 90, 200])
    image = Image.fromarray(((smooth + pixels(size[1], size[0], 3) // 8) % 256).astype(np.uint8))
    data = encode(image.convert("L") if mode == "L" else image, "JPEG", quality=90, **options.get(mode, {}))
    assert np.abs(agrees(data).numpy().astype(int) - by_pillow(data)).max() <= 2
    for factor in (2, 4, 8):
        seen = []
        found = decode_shrunk(data, lambda *size, k=factor, seen=seen: seen.append(size) or k + 0.5)
        assert seen == [(found.height, found.width)] and (found.height, found.width) == agrees(data).shape[1:]
        assert found.factor == factor and found.pixels.shape[1] == -(-found.height // factor)
        if min(size) >= 15:
            assert np.abs(found.pixels.numpy().astype(int) - by_pillow(data, factor)).max() <= 2


def test_photographs_are_decoded_within_two_levels_of_pillow(data_dir):
    for path in sorted((data_dir / "imagenet-samples").glob("*.JPEG"))[::8]:
        assert np.abs(decode(path).numpy().astype(int) - by_pillow(path.read_bytes())).max() <= 2


def test_cmyk_jpeg_becomes_rgb():
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    got = agrees(encode(red, "JPEG", quality=95))
    assert got.shape[0] == 3 and (got[:, 8, 8].float() - torch.tensor([220.0, 30, 30])).abs().max() < 12


def test_alpha_is_composited_on_white_and_opaque_is_left_alone():
    rgba = pixels(5, 6, 4)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(
        agrees(encode(Image.fromarray(rgba), "PNG")).numpy(), rgba[..., :3].transpose(2, 0, 1)
    )
    rgba[..., 3] = 0
    assert (agrees(encode(Image.fromarray(rgba), "PNG")) == 255).all()
    la = np.dstack([np.full((4, 4), 100, np.uint8), np.full((4, 4), 51, np.uint8)])
    assert (agrees(encode(Image.fromarray(la, "LA"), "PNG")) == round(100 * 0.2 + 255 * 0.8)).all()


def test_gif_and_tiff_stacks_give_the_first():
    frames = [Image.new("L", (8, 6), shade) for shade in (10, 200)]
    assert (agrees(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == 10).all()
    stack = pixels(4, 20, 30, dtype=np.uint16)
    got = agrees(tiff(stack, photometric="minisblack", metadata=None))
    np.testing.assert_allclose(got.numpy(), stack[:1] / 65535, atol=1e-7)
    np.testing.assert_allclose(
        agrees(tiff(stack, imagej=True, metadata={"axes": "ZYX"})).numpy(), stack[:1] / 65535, atol=1e-7
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, form):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 250, 0, 0
    upright[:8, 16:] = 0, 250, 0
    upright[8:, :8] = 0, 0, 250
    stored = {  # as a camera held that way stores it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 98, "subsampling": 0} if form == "JPEG" else {}
    got = agrees(encode(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options))
    assert (got.permute(1, 2, 0).int() - torch.from_numpy(upright).int()).abs().max() < 16


def test_orientation_of_a_tiff_of_many_channels():
    array = pixels(5, 8, 12, dtype=np.uint16)
    tag = (0x0112, "H", 1, 6, True)
    got = agrees(tiff(array, photometric="minisblack", planarconfig="separate", extratags=[tag]))
    np.testing.assert_allclose(got.numpy(), np.rot90(array / 65535, -1, axes=(1, 2)), atol=1e-7)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(channels):
    array = pixels(9, 7, channels, dtype=np.uint16)
    wanted = array.transpose(2, 0, 1) / 65535
    if channels in (2, 4):
        wanted = wanted[:-1] * wanted[-1:] + 1 - wanted[-1:]
    data = png16(array)
    assert size_of(data)[3] == "uint16"
    np.testing.assert_allclose(agrees(data).numpy(), wanted, atol=1e-6)
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) - 40])


@pytest.mark.parametrize("planar", ["separate", "contig"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.float32, np.float64])
def test_tiff_of_five_channels(planar, dtype):
    array = pixels(5, 20, 30, dtype=dtype)
    stored = array if planar == "separate" else np.ascontiguousarray(array.transpose(1, 2, 0))
    got = agrees(tiff(stored, photometric="minisblack", planarconfig=planar, compression="zlib"))
    scale = np.iinfo(dtype).max if np.dtype(dtype).kind in "ui" and dtype != np.uint8 else 1
    np.testing.assert_allclose(got.numpy(), array / scale, rtol=1e-6)


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
def test_tiff_whose_metadata_call_the_pages_channels(options):
    array = pixels(2, 5, 20, 30, dtype=np.uint16)
    got = agrees(tiff(array, metadata={"axes": "ZCYX" if "imagej" in options else "TCYX"}, **options))
    np.testing.assert_allclose(got.numpy(), array[0] / 65535, atol=1e-7)


@pytest.mark.parametrize("planar", ["separate", "contig"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colour_tiff(planar, dtype):
    array = pixels(3, 10, 12, dtype=dtype)
    stored = array if planar == "separate" else np.ascontiguousarray(array.transpose(1, 2, 0))
    got = agrees(tiff(stored, photometric="rgb", planarconfig=planar))
    np.testing.assert_allclose(got.numpy(), array / (65535 if dtype == np.uint16 else 1), rtol=1e-6)


def test_tiff_fourth_channel_is_alpha_only_if_it_says_so():
    array = pixels(6, 7, 4, dtype=np.uint16)
    assert agrees(tiff(array, photometric="rgb", extrasamples=["unspecified"])).shape[0] == 4
    got = agrees(tiff(array, photometric="rgb", extrasamples=["unassalpha"])).permute(1, 2, 0).numpy()
    alpha = array[..., 3:] / 65535
    np.testing.assert_allclose(got, array[..., :3] / 65535 * alpha + 1 - alpha, atol=1e-6)


def test_grey_tiff_16_bit_white_is_zero_and_cmyk():
    array = pixels(6, 7, dtype=np.uint16)
    np.testing.assert_allclose(agrees(tiff(array, photometric="miniswhite")).numpy()[0], 1 - array / 65535, atol=1e-6)
    np.testing.assert_allclose(agrees(tiff(array, byteorder=">")).numpy()[0], array / 65535, atol=1e-7)
    ink = pixels(6, 7, 4, dtype=np.uint16)
    got = agrees(tiff(ink, photometric="separated")).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, (1 - ink[..., :3] / 65535) * (1 - ink[..., 3:] / 65535), atol=1e-6)


def test_float_tiff_is_unchanged_and_must_be_finite():
    array = pixels(6, 7, dtype=np.float32) * 1000
    np.testing.assert_array_equal(agrees(tiff(array)).numpy()[0], array)
    array[2, 2] = np.nan
    for planes in (array, np.stack([array] * 5)):
        with pytest.raises(UnreadableImage, match="not finite"):
            decode(tiff(planes, photometric="minisblack"))


JPEG = encode(Image.fromarray(pixels(40, 40, 3)), "JPEG")
PNG = encode(Image.fromarray(pixels(40, 40, 3)), "PNG")
DAMAGED = {
    "empty": b"",
    "html": b"<!doctype html><title>404</title>",
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "truncated png": PNG[: len(PNG) // 2],
    "truncated gif": encode(Image.fromarray(pixels(40, 40)), "GIF")[:300],
    "truncated webp": encode(Image.fromarray(pixels(40, 40, 3)), "WEBP")[:200],
    "truncated bmp": encode(Image.fromarray(pixels(40, 40, 3)), "BMP")[:300],
    "truncated tiff": encode(Image.fromarray(pixels(40, 40, 3)), "TIFF")[:300],
    "truncated tiff of five channels": tiff(pixels(5, 40, 40), photometric="minisblack", planarconfig="separate")[:-99],
    "tiff header": b"II*\0\x08\0\0\0",
    "magic only": PNG[:8],
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_say_so_in_one_short_line(name, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(DAMAGED[name])
    for data in (DAMAGED[name], path):
        with pytest.raises(UnreadableImage) as caught:
            decode(data)
        assert 0 < len(str(caught.value)) <= 120 and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        decode(tmp_path / "nowhere.png")
    with pytest.raises(UnreadableImage):
        size_of(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(DAMAGED) - {"empty"})), st.binary(max_size=64), st.integers(0, 400))
def test_no_bytes_raise_anything_else(name, noise, position):
    data = DAMAGED[name]
    data = data[:position] + noise + data[position + len(noise) :]
    for read in (decode, size_of):
        with contextlib.suppress(UnreadableImage):
            read(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes our own filter
def test_bombs_are_refused_before_their_pixels_are_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    png = encode(Image.new("1", (40, 40)), "PNG")
    planes = tiff(
        np.zeros((5, 40, 40), np.uint8), photometric="minisblack", planarconfig="separate", compression="zlib"
    )
    huge = encode(Image.new("1", (400, 400)), "PNG")  # twice over the limit, where Pillow itself raises
    for data in (png, planes, huge):
        for read in (decode, size_of):
            with pytest.raises(UnreadableImage, match="limit"):
                read(data)


def test_nothing_is_warned_of_or_logged(monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"  # promises entries that are not there
    files = [
        encode(Image.new("L", (8, 8)), "JPEG", exif=exif),
        encode(Image.new("1", (90, 90)), "PNG"),
        *DAMAGED.values(),
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for data in files:  # else the files would prove nothing
            with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
                image.getexif()
        assert len(caught) >= 2
        caught.clear()
        # A second copy of the module, because pytest undoes the filters that the first one set
        spec = importlib.util.spec_from_file_location("decode_again", inspect.getfile(decode))
        assert spec is not None and spec.loader is not None
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
        for data in files:
            for read in (again.decode, again.size_of):
                with contextlib.suppress(again.UnreadableImage):
                    read(data)
        assert not caught and not caplog.records


def test_thumbnail_is_the_mean_of_areas():
    array = pixels(64, 96, 3)
    wanted = array.reshape(8, 8, 8, 12, 3).mean(axis=(1, 3, 4))
    np.testing.assert_allclose(thumbnail(encode(Image.fromarray(array), "PNG"), 8, 8).numpy(), wanted, rtol=1e-5)
    smooth = Image.fromarray(np.linspace(0, 255, 640 * 480).reshape(480, 640).astype(np.uint8))
    by_draft, in_full = (thumbnail(encode(smooth, form), 8, 9).numpy() for form in ("JPEG", "PNG"))
    np.testing.assert_allclose(by_draft, in_full, atol=2)
    assert thumbnail(encode(Image.new("L", (3, 2), 7), "PNG"), 8, 9).eq(7).all()


def framed(colour: int = 200) -> torch.Tensor:
    image = torch.full((3, 100, 80), colour, dtype=torch.uint8)
    image[:, 40:60, 30:50] = 10
    return image


def test_trim_keeps_the_content_with_a_margin():
    assert content_box(content(framed())) == (39, 61, 29, 51)
    assert border_colour(framed()).flatten().tolist() == [200, 200, 200]
    assert content_box(content(framed().float() * 3 - 9)) == (39, 61, 29, 51)
    trimmed = Preprocess(3, (0,) * 3, (1,) * 3, trim=True).prepare(framed(), 1.0)
    assert trimmed.shape == (3, 22, 22) and (trimmed[:, 1:-1, 1:-1] == 10).all()
    blank = torch.full((1, 9, 9), 3, dtype=torch.uint8)
    assert Preprocess(1, (0,), (1,), trim=True).prepare(blank, 1.0).shape == (1, 9, 9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.5, 1.0, 4 / 3, 2.0]))
def test_pad_reaches_the_aspect_and_keeps_every_pixel(height, width, aspect):
    image = torch.from_numpy(pixels(1, height, width))
    padded = Preprocess(1, (0,), (1,), pad=True).prepare(image, aspect)
    _, new_height, new_width = padded.shape
    assert new_height >= height and new_width >= width and (new_height == height or new_width == width)
    assert abs(new_width - new_height * aspect) <= 1 + aspect
    top, left = (new_height - height) // 2, (new_width - width) // 2
    assert (padded[:, top : top + height, left : left + width] == image).all()


def test_padding_does_not_make_a_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="limit"):
        Preprocess(1, (0,), (1,), pad=True).prepare(torch.zeros(1, 1, 500, dtype=torch.uint8), 1.0)


def test_channels_are_converted_or_refused():
    grey, rgb, five = (torch.from_numpy(pixels(n, 4, 4)) for n in (1, 3, 5))
    assert (Preprocess(3, (0,) * 3, (1,) * 3).prepare(grey, 1) == grey).all()
    luma = Preprocess(1, (0,), (1,)).prepare(rgb, 1)
    reference = np.array(Image.fromarray(rgb.permute(1, 2, 0).numpy()).convert("L"))
    assert luma.dtype == torch.uint8 and (luma[0].int() - torch.from_numpy(reference).int()).abs().max() <= 1
    with pytest.raises(UnreadableImage, match="has 5 channels, 3 wanted"):
        Preprocess(3, (0,) * 3, (1,) * 3).prepare(five, 1)


class Tensors:
    """The least that `measure` needs."""

    name = "tensors"

    def __init__(self, images: list[torch.Tensor | None]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> torch.Tensor:
        if (image := self.images[i]) is None:
            raise UnreadableImage("damaged")
        return image


def test_measure_normalise_denormalise():
    images = [torch.from_numpy(pixels(3, 16, 16, seed=i) // (i + 1)) for i in range(8)]
    found = measure(Tensors([*images, None]), channels=3, trim=False, pad=False, aspect=1.0)
    stack = torch.stack(images)
    assert (found.low, found.high) == ((), ())
    np.testing.assert_allclose(found.mean, stack.double().mean((0, 2, 3)) / 255, rtol=1e-5)
    np.testing.assert_allclose(
        found.std, stack.double().transpose(0, 1).flatten(1).std(1, correction=0) / 255, rtol=1e-5
    )
    normal = found.normalise(stack)
    assert normal.dtype == torch.float32 and normal.mean().abs() < 1e-4
    torch.testing.assert_close(found.denormalise(normal), stack / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.denormalise(normal[0]), stack[0] / 255, atol=1e-5, rtol=0)
    assert measure(Tensors(images), channels=3, trim=False, pad=False, aspect=1.0, sample=2, seed=1) == measure(
        Tensors(images), channels=3, trim=False, pad=False, aspect=1.0, sample=2, seed=1
    )


def test_measure_floats_and_constant_channels():
    images = [torch.rand(2, 32, 32) * torch.tensor([500.0, 0.0])[:, None, None] - 100 for _ in range(6)]
    found = measure(Tensors(images), channels=2, trim=False, pad=False, aspect=1.0)
    assert abs(found.low[0] + 98) < 8 and abs(found.high[0] - 398) < 8
    assert found.high[1] > found.low[1] and min(found.std) > 0
    assert torch.isfinite(found.normalise(images[0])).all()
    shown = found.denormalise(found.normalise(images[0]))
    assert shown.min() >= 0 and shown.max() <= 1 and shown[0].std() > 0.2
    with pytest.raises(BadInput, match=r"none of 2 images tried could be used \(damaged\)"):
        measure(Tensors([None, None]), channels=1, trim=False, pad=False, aspect=1.0)


def test_preprocess_through_a_dict():
    settings = Preprocess(2, (0.1, 0.2), (0.3, 0.4), (0.0, 1.0), (5.0, 6.0), trim=True, pad=True)
    assert Preprocess.from_dict(settings.to_dict()) == settings
    good = settings.to_dict()
    bad = [
        {},
        {**good, "channels": 3},
        {**good, "channels": "two"},
        {**good, "std": [0.0, 1.0]},
        {**good, "mean": [float("nan"), 0.0]},
        {**good, "high": [0.0, 0.0]},
        {**good, "low": []},
        {**good, "trim": "yes"},
        {**good, "colour": 1},
        None,
    ]
    for values in bad:
        with pytest.raises(BadInput, match="preprocess settings") as caught:
            Preprocess.from_dict(values)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_decode_takes_a_path(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert (decode(tmp_path / "a.png") == decode(PNG)).all() and size_of(tmp_path / "a.png") == (3, 40, 40, "uint8")
