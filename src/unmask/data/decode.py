"""Files to tensors, and what is done to every image alike before any view: channels, crop to content, padding, scale.

All reading of image files is in this file: simplejpeg for what is plain about JPEG, Pillow for the usual formats,
torchvision for 16-bit colour PNG, tifffile for the TIFFs that Pillow would flatten to 8 bits or refuse (many channels,
16-bit colour, signed, double).
"""

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import simplejpeg
import tifffile
import torch
from PIL import Image, UnidentifiedImageError
from PIL import TiffImagePlugin as _TiffImagePlugin  # noqa: F401, each plugin adds its format on import
from PIL import WebPImagePlugin as _WebPImagePlugin  # noqa: F401
from tifffile import PHOTOMETRIC

from unmask.errors import BadInput

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

GREY_MODES = frozenset({"1", "L", "LA", "La"})
JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB"}  # Pillow's mode and simplejpeg's name
WIDE_MODES = {"I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "I;16N": "uint16", "F": "float32"}
TIFF_COLOURS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ALPHA_EXTRAS = (1, 2)  # TIFF 6.0, ExtraSamples: associated and unassociated alpha

ORIENTATION = 0x0112  # the EXIF and TIFF tag
TOLERANCE = 16  # of 255: wider than JPEG noise around an edge, narrower than a faint shadow
MARGIN = 0.03  # of the longer side of the content

# Both libraries talk of damaged metadata as they go; what matters is raised below. Set once, because
# warnings.catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class UnreadableImage(Exception):
    """An image that cannot be used; the message is the reason in a few words."""


def decode(data: bytes | Path) -> torch.Tensor:
    """The pixels of an encoded image, upright by its EXIF orientation.

    8-bit images give uint8; wider integers give float32, divided by the maximum of their type (so [0, 1], or [-1, 1]
    if signed); floats give float32 as they are. 1-bit images give {0, 255}; palettes and CMYK become RGB; alpha is
    composited on white (which changes nothing where it is opaque) and dropped. Of several frames or pages the first
    is taken, unless the file says that they are channels.

    Returns:
        (C, H, W), uint8 or float32. In memory the channels of a pixel may lie side by side: resizing them is faster.

    Raises:
        UnreadableImage: not an image, damaged, of more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or not finite.
    """
    return _decode(data, None).pixels


class Shrunk(NamedTuple):
    """An image, perhaps decoded at a fraction of its size."""

    pixels: torch.Tensor
    """(C, ceil(height / factor), ceil(width / factor)), as `decode` returns them."""
    height: int
    """Of the image at its full size."""
    width: int
    factor: int
    """1, 2, 4 or 8."""

    def box(self, drawn: torch.Tensor) -> torch.Tensor:
        """A row of `View.draw` for the image at its full size, (5,), as one for these pixels, to the nearest of them."""
        top, left, height, width, flipped = drawn.tolist()
        edges = [round(edge / self.factor) for edge in (top, left, top + height, left + width)]
        top, left, bottom, right = edges
        return torch.tensor([top, left, max(1, bottom - top), max(1, right - left), flipped])


def decode_shrunk(data: bytes | Path, most: Callable[[int, int], float]) -> Shrunk:
    """`decode`, but JPEG at 1/2, 1/4 or 1/8 of its size where that will do, which spares most of the work.

    Args:
        data: an encoded image.
        most: given height and width at full size, how many times smaller the image may become.

    Raises:
        UnreadableImage: as `decode` does.
    """
    return _decode(data, most)


def thumbnail(image: bytes | Path | torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A small grey version, each pixel the mean of its area: (height, width) float32 on the scale of `decode`.

    Args:
        image: an encoded image, or pixels (C, H, W).
        height: in pixels.
        width: in pixels.

    Raises:
        UnreadableImage: as `decode` does.
    """
    if not isinstance(image, torch.Tensor):
        image = decode_shrunk(image, lambda h, w: min(h // (4 * height), w // (4 * width))).pixels
    pixels = image.numpy()
    rows, columns = (np.arange(n) * size // n for n, size in zip((height, width), pixels.shape[1:], strict=True))
    # A block of no rows, in an image smaller than its thumbnail, is one row for reduceat
    heights, widths = (np.diff(x, append=n).clip(1) for x, n in zip((rows, columns), pixels.shape[1:], strict=True))
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float32), rows, axis=1), columns, axis=2)
    return torch.from_numpy(sums.mean(0) / np.outer(heights, widths).astype(np.float32))


def size_of(data: bytes | Path) -> tuple[int, int, int, str]:
    """What `decode` will return, from the header alone.

    Returns:
        Channels, height, width and kind: "uint8", "uint16" (any integer wider than 8 bits) or "float32".

    Raises:
        UnreadableImage: the header is not that of an image. A damaged body goes unnoticed.
    """
    with _reading(data) as (file, head):
        if head.startswith(TIFF_MAGIC) and (size := _tiff(file, header_only=True)) is not None:
            return size
        image = _open(file)
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) in range(5, 9):
            width, height = height, width
        if image.mode in WIDE_MODES:
            return 1, height, width, WIDE_MODES[image.mode]
        if _is_wide_png(head):
            return (1 if head[25] == 4 else 3), height, width, "uint16"
        return (1 if image.mode in GREY_MODES else 3), height, width, "uint8"


def label_map(path: Path) -> np.ndarray:
    """The numbers in an image whose pixels are classes, as they are stored: (H, W) uint8 or wider integers.

    Grey of 1 to 16 bits, or the indices of a palette, whatever its colours; upright by its EXIF orientation.

    Raises:
        UnreadableImage: missing, damaged, or of too many pixels.
        BadInput: of a kind that holds no class numbers: colours, alpha, floats, or a lossy format.
    """
    with _reading(path) as (file, head):
        image = _open(file)
        kind = f"{image.format} of mode {image.mode}"
        lossless = image.format in ("PNG", "BMP", "GIF", "TIFF")
        pixels = None
        if lossless and image.mode in ("1", "L", "P", "I", *WIDE_MODES) and image.mode != "F":
            orientation = 1 if image.format == "TIFF" else _orientation(image)
            image.load()
            pixels = np.array(image)
            pixels = pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.int64)
            if image.format == "PNG" and image.mode == "L":  # Pillow stretches grey of 2 and 4 bits to the scale of 8
                pixels //= {2: 85, 4: 17}.get(head[24], 1)
            pixels = _upright(torch.from_numpy(pixels)[None], orientation)[0].numpy()
    if pixels is None:
        wanted = "a PNG, 8-bit grey or with a palette, whose pixel values are class numbers"
        raise BadInput(f"{path}: is a {kind}; a mask is {wanted}")
    return pixels


def _decode(data: bytes | Path, most: Callable[[int, int], float] | None) -> Shrunk:
    with _reading(data) as (file, head):
        if head.startswith(TIFF_MAGIC) and (pixels := _tiff(file, header_only=False)) is not None:
            return _whole(pixels)
        image = _open(file)
        orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns TIFFs itself
        if image.format in ("JPEG", "MPO") and image.mode in JPEG_COLOURS:
            width, height = image.size
            if orientation in range(5, 9):
                width, height = height, width
            limit = 1.0 if most is None else most(height, width)
            factor = max((k for k in (2, 4, 8) if k <= limit), default=1)
            if (pixels := _jpeg(file, image, factor)) is not None:
                return Shrunk(_upright(pixels, orientation), height, width, factor)
        if _is_wide_png(head):
            from torchvision.io import decode_png  # takes seconds to import, and such images are rare

            file.seek(0)
            encoded = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
            pixels = _scale(decode_png(encoded).numpy(), 65535)
            if pixels.shape[0] in (2, 4):
                pixels = _on_white(pixels, associated=False)
        else:
            image.load()
            pixels = _pillow_pixels(image)
        return _whole(_upright(pixels, orientation))


def _whole(pixels: torch.Tensor) -> Shrunk:
    return Shrunk(pixels, pixels.shape[1], pixels.shape[2], 1)


def _jpeg(file: IO[bytes], image: Image.Image, factor: int) -> torch.Tensor | None:
    """The pixels of a JPEG that Pillow has opened, (C, H, W) not yet upright, the same as Pillow's but sooner; None if
    anything is odd about it. What Pillow makes of it then counts."""
    file.seek(0)
    width, height = (-(-side // factor) for side in image.size)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), JPEG_COLOURS[image.mode], min_height=height, min_width=width)
    except ValueError:  # any warning of libjpeg's is one
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape[:2] == (height, width) else None


@contextmanager
def _reading(data: bytes | Path) -> Iterator[tuple[IO[bytes], bytes]]:
    """The open file and its first bytes; whatever goes wrong meanwhile becomes UnreadableImage."""
    try:
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
            head = file.read(32)
            if not head:
                raise UnreadableImage("empty file")
            file.seek(0)
            yield file, head
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not an image, or of a format that is not read") from None
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except OSError as error:
        raise UnreadableImage(error.strerror or _one_line(error)) from None
    except Exception as error:  # decoders raise whatever they stumble over: SyntaxError, struct.error, zlib.error, …
        raise UnreadableImage(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 120 else text[:117] + "...") or type(error).__name__


def _open(file: IO[bytes]) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    _check_pixels(*image.size)
    return image


def _check_pixels(*sides: int) -> None:
    limit, pixels = Image.MAX_IMAGE_PIXELS, math.prod(sides)
    if limit is not None and pixels > limit:
        raise UnreadableImage(f"{pixels:,} pixels, more than the limit of {limit:,} (PIL.Image.MAX_IMAGE_PIXELS)")


def _orientation(image: Image.Image) -> int:
    # The base class's getexif: PNG's own decodes the whole image to look for EXIF behind the pixels.
    try:
        return Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # a photograph whose EXIF is damaged is still a photograph
        return 1


def _upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """Undo an EXIF orientation of 1 to 8: (C, H, W) to (C, H, W), or to (C, W, H) from 5 on."""
    if orientation not in range(2, 9):
        return image
    if orientation >= 5:
        image = image.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}[orientation]
    return image.flip(flips) if flips else image


def _is_wide_png(head: bytes) -> bool:
    """Whether it is a 16-bit PNG of more than one channel, which Pillow would cut down to 8 bits."""
    return head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 26 and head[24] == 16 and head[25] in (2, 4, 6)


def _pillow_pixels(image: Image.Image) -> torch.Tensor:
    if image.mode in WIDE_MODES:
        pixels = np.array(image)[None]
        return _scale(pixels, 65535 if WIDE_MODES[image.mode] == "uint16" else None)
    grey = image.mode in GREY_MODES
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _scale(pixels: np.ndarray, maximum: float | None) -> torch.Tensor:
    """float32, divided by `maximum`, or if None (images of floats) checked to be finite."""
    if maximum is not None:
        return torch.from_numpy((pixels / np.float64(maximum)).astype(np.float32))
    with np.errstate(over="ignore"):
        scaled = pixels.astype(np.float32)
    if not np.isfinite(scaled).all():
        raise UnreadableImage("has values that are not finite")
    return torch.from_numpy(scaled)


def _on_white(pixels: torch.Tensor, associated: bool) -> torch.Tensor:
    """Composite (C + 1, H, W), alpha last, on white: (C, H, W) of the same dtype."""
    white = 255.0 if pixels.dtype == torch.uint8 else 1.0
    colour, alpha = pixels[:-1].float(), pixels[-1:].float() / white
    image = (colour if associated else colour * alpha) + white * (1 - alpha)
    return image.round().clamp(0, white).to(torch.uint8) if pixels.dtype == torch.uint8 else image


def _tiff(file: IO[bytes], header_only: bool) -> Any:
    """The pixels of a TIFF, or its `size_of`; None (and the file rewound) if Pillow reads it without loss."""
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages.first
        channel_pages = "C" in series.axes and series.shape[series.axes.index("C")] > 1
        if not channel_pages and _pillow_reads(page):
            file.seek(0)
            return None

        # Only the planes that are channels are read as a stack; of any other stack, the first page.
        chosen = series if channel_pages else page
        axes, shape, dtype = chosen.axes, chosen.shape, np.dtype(page.dtype)
        if not {"Y", "X"} <= set(axes) or dtype.kind not in "buif" or page.photometric == PHOTOMETRIC.PALETTE:
            raise UnreadableImage(f"a TIFF of axes {axes}, {dtype}, photometric {page.photometric}")
        _check_pixels(*(n for axis, n in zip(axes, shape, strict=True) if axis not in "CS"))
        extras = list(page.extrasamples) if "S" in axes else []
        alpha = len(extras) > 0 and extras[-1] in ALPHA_EXTRAS
        cmyk = page.photometric == PHOTOMETRIC.SEPARATED and page.samplesperpixel - len(extras) == 4
        tag = page.tags.get(ORIENTATION)
        orientation = 1 if tag is None else tag.value

        if header_only:
            channels = math.prod(n for axis, n in zip(axes, shape, strict=True) if axis in "CS") - alpha - cmyk
            height, width = shape[axes.index("Y")], shape[axes.index("X")]
            if orientation in range(5, 9):
                height, width = width, height
            kind = "float32" if dtype.kind == "f" else "uint8" if dtype in (np.uint8, np.bool_) else "uint16"
            return channels, height, width, kind

        # One thread, because many workers read at once
        pixels = _planes(chosen.asarray(maxworkers=1).reshape(shape), axes)
    if page.photometric == PHOTOMETRIC.MINISWHITE and dtype.kind in "bu":
        pixels[:1] = ~pixels[:1]
    if dtype.kind == "b":
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        image = torch.from_numpy(pixels)
    else:
        image = _scale(pixels, None if dtype.kind == "f" else np.iinfo(pixels.dtype).max)
    if alpha:
        image = _on_white(image, associated=extras[-1] == 1)
    if cmyk:
        image = _cmyk_to_rgb(image)
    return _upright(image, orientation).contiguous()


def _planes(pixels: np.ndarray, axes: str) -> np.ndarray:
    """(C, H, W), writable, of an array with axes Y, X, perhaps C (channels), S (samples), and others: their first."""
    pixels = pixels[tuple(slice(None) if axis in "YXCS" else 0 for axis in axes)]
    kept = [axis for axis in axes if axis in "YXCS"]
    pixels = pixels.transpose([kept.index(axis) for axis in "CSYX" if axis in kept])
    return pixels.reshape(-1, *pixels.shape[-2:]).astype(pixels.dtype.newbyteorder("="), order="C", copy=True)


def _cmyk_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """(4, H, W) to (3, H, W) of the same dtype, as Pillow does without a colour profile."""
    white = 255 if image.dtype == torch.uint8 else 1
    ink = image.float() / white
    light = (1 - ink[:3]) * (1 - ink[3:]) * white
    return light.round().to(torch.uint8) if image.dtype == torch.uint8 else light


def _pillow_reads(page: Any) -> bool:
    """Whether Pillow has a mode for it. Preferred where it has, because it brings all the compressions along."""
    if page.samplesperpixel == 1 and page.photometric == PHOTOMETRIC.MINISBLACK and page.bitspersample > 8:
        return (page.sampleformat, page.bitspersample) in {(1, 16), (3, 32)}
    colours, extras = TIFF_COLOURS.get(page.photometric), tuple(page.extrasamples)
    known = colours is not None and page.samplesperpixel - len(extras) == colours
    alpha = not extras or (len(extras) == 1 and extras[0] in ALPHA_EXTRAS and colours in (1, 3))
    return page.bitspersample <= 8 and page.sampleformat == 1 and known and alpha


def border_colour(image: torch.Tensor) -> torch.Tensor:
    """Median of the outermost pixels of each channel: (C, H, W) to (C, 1, 1), same dtype."""
    edges = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    return edges.median(dim=1).values[:, None, None]


def content(image: torch.Tensor) -> np.ndarray:
    """Where an image (C, H, W) differs from its border colour: (H, W) bool.

    By more than 16 of 255 grey levels in any channel; in images of floats, by as much of the image's own range.
    """
    # NumPy compares bytes many times faster than torch, if the planes lie one after another
    pixels, border = image.contiguous().numpy(), border_colour(image).numpy()
    if image.dtype == torch.uint8:
        low, high = (
            border.clip(min=TOLERANCE) - np.uint8(TOLERANCE),
            border.clip(max=255 - TOLERANCE) + np.uint8(TOLERANCE),
        )
    else:
        tolerance = (pixels.max() - pixels.min()) * np.float32(TOLERANCE / 255)
        low, high = border - tolerance, border + tolerance
    return np.asarray(((pixels < low) | (pixels > high)).any(axis=0))


def content_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Top, bottom, left and right (ends excluded) of what is True in (H, W), with a small margin; None if none is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    margin = max(1, round(MARGIN * max(bottom - top, right - left)))
    height, width = mask.shape
    return max(0, top - margin), min(height, bottom + margin), max(0, left - margin), min(width, right + margin)


@dataclass(frozen=True)
class Preprocess:
    """What is done to every image alike, before any view is drawn and when it is shown again."""

    channels: int
    """Channels of the images handed on. Grey is repeated to make RGB, RGB is weighted (ITU-R 601) to make grey."""
    mean: tuple[float, ...]
    """Mean of each channel, on the scale of [0, 1] for integer images, of the file for images of floats."""
    std: tuple[float, ...]
    """Standard deviation of each channel on the same scale; never zero."""
    low: tuple[float, ...] = ()
    """What is shown as black, per channel on the same scale; empty: 0."""
    high: tuple[float, ...] = ()
    """What is shown as white, per channel on the same scale; empty: 1."""
    trim: bool = False
    """Crop to the content: the bounding box, with a small margin, of all that differs from the colour of the border."""
    pad: bool = False
    """Pad with the colour of the border to the aspect that the model sees, instead of cropping or stretching to it."""

    def prepare(self, image: torch.Tensor, aspect: float) -> torch.Tensor:
        """Convert channels, then trim, then pad.

        Args:
            image: (C, H, W), uint8 or float32.
            aspect: width / height of what the model sees.

        Returns:
            (channels, H', W'), same dtype.

        Raises:
            UnreadableImage: the channels cannot be converted, or padding would make a huge image.
        """
        image = _to_channels(image, self.channels)
        if not (self.trim or self.pad):
            return image
        image = image.contiguous()
        border = border_colour(image)
        if self.trim and (box := content_box(content(image))) is not None:
            top, bottom, left, right = box
            image = image[:, top:bottom, left:right]
        if self.pad:
            height, width = image.shape[1:]
            new_height, new_width = max(height, round(width / aspect)), max(width, round(height * aspect))
            if (new_height, new_width) != (height, width):
                _check_pixels(new_height, new_width)
                top, left = (new_height - height) // 2, (new_width - width) // 2
                padded = np.empty((len(border), new_height, new_width), dtype=border.numpy().dtype)
                padded[:] = border.numpy()
                padded[:, top : top + height, left : left + width] = image.numpy()
                image = torch.from_numpy(padded)
        return image

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) or (C, H, W), uint8 or float on any device, to float32 of zero mean and unit deviation."""
        scale = 255 if batch.dtype == torch.uint8 else 1
        mean, std = _per_channel(self.mean, batch), _per_channel(self.std, batch)
        # one copy, then in place: a batch is larger than a processor's caches, and passes over it are what takes time
        batch = batch.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return batch.sub_(mean * scale).div_(std * scale)

    def denormalise(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise`, stretched from `low`..`high` to [0, 1] and clamped, to be shown: float32."""
        x = x.float() * _per_channel(self.std, x) + _per_channel(self.mean, x)
        low = _per_channel(self.low or (0.0,) * self.channels, x)
        high = _per_channel(self.high or (1.0,) * self.channels, x)
        return ((x - low) / (high - low)).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`.

        Raises:
            BadInput: a setting is missing, unknown, of the wrong length, not finite, or would divide by zero.
        """
        try:
            numbers = {key: tuple(map(float, values.get(key, ()))) for key in ("mean", "std", "low", "high")}
            preprocess = Preprocess(**{**values, **numbers})
            lengths = {key: len(value) for key, value in numbers.items()}
            if not all(isinstance(flag, bool) for flag in (preprocess.trim, preprocess.pad)):
                raise ValueError("trim and pad are true or false")
            if (
                preprocess.channels < 1
                or lengths["mean"] != preprocess.channels
                or lengths["std"] != preprocess.channels
            ):
                raise ValueError(f"{preprocess.channels} channels, but {lengths['mean']} mean and {lengths['std']} std")
            if lengths["low"] != lengths["high"] or lengths["low"] not in (0, preprocess.channels):
                raise ValueError("low and high need a value for each channel, or none")
            if not all(math.isfinite(x) for value in numbers.values() for x in value):
                raise ValueError("a value is not finite")
            if min(preprocess.std) <= 0 or any(a >= b for a, b in zip(preprocess.low, preprocess.high, strict=True)):
                raise ValueError("std must be above 0 and high above low")
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"preprocess settings: {error}; give channels, mean, std and optionally low, high, trim, pad"
            ) from None
        return preprocess


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1)


def _to_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    has = image.shape[0]
    if has == channels:
        return image
    if (has, channels) == (1, 3):
        return image.repeat(3, 1, 1)
    if (has, channels) == (3, 1):
        luma = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
        return luma.round().to(torch.uint8) if image.dtype == torch.uint8 else luma
    raise UnreadableImage(f"has {has} channels, {channels} wanted")


class Images(Protocol):
    """What `measure` needs of a source."""

    @property
    def name(self) -> str: ...
    def __len__(self) -> int: ...
    def image(self, i: int) -> torch.Tensor: ...


def measure(
    source: Images, *, channels: int, trim: bool, pad: bool, aspect: float, sample: int = 1000, seed: int = 0
) -> Preprocess:
    """Mean and deviation per channel over a random sample of the prepared images, each image weighted alike.

    Args:
        source: the images.
        channels: channels wanted, see `Preprocess`.
        trim: crop to content, see `Preprocess`.
        pad: pad to `aspect`, see `Preprocess`.
        aspect: width / height of what the model sees.
        sample: how many images to read at most. Unreadable ones are skipped.
        seed: of the choice.

    Raises:
        BadInput: no image of the sample could be used.
    """
    preparing = Preprocess(channels, (0.0,) * channels, (1.0,) * channels, trim=trim, pad=pad)
    rng = np.random.default_rng(seed)
    sums, squares = np.zeros(channels), np.zeros(channels)
    used, eight_bit, reason = 0, True, "no images"
    pools: list[np.ndarray] = []  # some pixels of each image, for the display range: (C, n)
    for i in rng.permutation(len(source))[:sample]:
        try:
            image = preparing.prepare(source.image(int(i)), aspect)
        except UnreadableImage as error:
            reason = str(error)
            continue
        eight_bit &= image.dtype == torch.uint8
        pixels = image.flatten(1).numpy().astype(np.float32)  # (C, H·W)
        if image.dtype == torch.uint8:
            pixels /= 255
        sums += pixels.mean(axis=1, dtype=np.float64)
        squares += np.square(pixels).mean(axis=1, dtype=np.float64)
        used += 1
        pools.append(pixels[:, rng.integers(pixels.shape[1], size=1024)])
    if not used:
        raise BadInput(f"{source.name}: none of {min(sample, len(source)):,} images tried could be used ({reason})")
    mean = sums / used
    std = np.sqrt((squares / used - mean**2).clip(min=0))
    low, high = np.zeros(channels), np.ones(channels)
    if not eight_bit:
        low, high = np.quantile(np.concatenate(pools, axis=1), (0.005, 0.995), axis=1)
        high = np.where(high > low, high, np.concatenate(pools, axis=1).max(axis=1))  # nearly constant
        high = np.where(high > low, high, low + 1)
    # A constant channel has no deviation, and rounding noise must not be blown up to unit size: not below a thousandth
    # of the range, a quarter of one 8-bit grey level.
    std = np.maximum(std, 1e-3 * (high - low))
    return Preprocess(
        channels,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        () if eight_bit else tuple(low.tolist()),
        () if eight_bit else tuple(high.tolist()),
        trim,
        pad,
    )
