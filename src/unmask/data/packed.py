"""A packed store: images decoded, shrunk and laid end to end in a few large files that are mapped into memory.

    DIR/store.json          what it was made of and how, written last: a store without it is not finished
        table.parquet       path, label, group and the other columns of the source, a row an image
        index.parquet       where each image lies, its shape, dtype and CRC-32, or why it was unreadable; the same rows
        shard-00000.bin …   the images: raw pixels in the order (H, W, C), in which resizing reads them, or JPEG
        begun.json, parts/  while it is being packed: settings, and the index of each shard that is whole

Only whole shards have their part of the index, so packing that was stopped goes on from there, and ends with the same bytes.
"""

import contextlib
import errno
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from unmask.data.decode import UnreadableImage
from unmask.data.source import Source
from unmask.errors import BadInput

VERSION = 1
SHARD = 2**28
"""Bytes of a shard at most, unless one image alone is larger."""
ALIGNED = 64
"""Every image begins at a multiple of so many bytes."""
CHUNK = 16
"""Images that a worker packs at a time."""
QUALITY = 90
"""Of JPEG, with chroma at half the resolution (4:2:0), as cameras write it."""
INDEX = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("channels", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("dtype", pa.string()),
        ("crc32", pa.uint32()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Layout:
    """How images are packed."""

    short_side: int = 256
    """Images whose shorter side has more pixels are shrunk to it; none is enlarged."""
    format: str = "raw"
    """"raw" pixels, or "jpeg"."""


# --- reading


@dataclass(frozen=True)
class Packed:
    """The images of a store, as pixels (C, H, W); those of a raw store lie in mapped memory."""

    folder: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What store.json says. Raises BadInput if the store is not finished, or damaged."""
        path = self.folder / "store.json"
        if not path.is_file():
            command = _read_json(self.folder / "begun.json").get("command", "unmask pack")
            raise BadInput(f"{self.folder} is not finished, run the same command again: {command}")
        facts = _read_json(path)
        if facts.get("version") != VERSION:
            raise BadInput(f"{self.folder} is a store of version {facts.get('version')}, not {VERSION}: pack it again")
        for name, checksum in facts["checksums"].items():
            if _checksum(self.folder / name) != checksum:
                raise BadInput(f"{self.folder / name} is damaged or missing: pack the images again into another folder")
        return facts

    @cached_property
    def table(self) -> pd.DataFrame:
        """What is known of each image."""
        self.facts  # noqa: B018, refuses what is damaged
        return pq.read_table(self.folder / "table.parquet").to_pandas(ignore_metadata=True)

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        self.facts  # noqa: B018
        index = pq.read_table(self.folder / "index.parquet")
        return {name: index[name].to_numpy() for name in index.column_names}

    @cached_property
    def _shards(self) -> dict[int, memoryview]:
        return {}

    @cached_property
    def _seen(self) -> np.ndarray:
        """Which images this process has found whole."""
        return np.zeros(len(self._index["shard"]), dtype=bool)

    def __getitem__(self, i: int) -> torch.Tensor:
        index = self._index
        self._require_readable(i)
        offset, length = int(index["offset"][i]), int(index["length"][i])
        data = self._shard(int(index["shard"][i]))[offset : offset + length]
        channels, dtype = int(index["channels"][i]), index["dtype"][i]
        # JPEG each time, which costs a fiftieth of decoding it; raw pixels when a process first sees them
        if dtype == "jpeg" or not self._seen[i]:
            if zlib.crc32(data) != index["crc32"][i]:
                raise UnreadableImage(f"damaged in {self.folder.name}/shard-{index['shard'][i]:05d}.bin")
            self._seen[i] = True
        if dtype == "jpeg":
            pixels = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB")
        else:
            pixels = np.frombuffer(data, dtype).reshape(int(index["height"][i]), int(index["width"][i]), channels)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def header(self, i: int) -> tuple[int, int, int, str]:
        """Channels, height, width and kind of image `i`, from the index alone."""
        index = self._index
        self._require_readable(i)
        channels, height, width = (int(index[name][i]) for name in ("channels", "height", "width"))
        return channels, height, width, "float32" if index["dtype"][i] == "float32" else "uint8"

    def sizes(self) -> np.ndarray:
        return np.where(self._index["shard"] < 0, -1, self._index["length"])

    def unreadable(self) -> list[tuple[str, str]]:
        """Path and reason of each image that could not be packed."""
        missing = np.flatnonzero(self._index["shard"] < 0)
        return [(self.table["path"].iat[i], self._index["reason"][i]) for i in missing]

    def _require_readable(self, i: int) -> None:
        if self._index["shard"][i] < 0:
            raise UnreadableImage(str(self._index["reason"][i]))

    def _shard(self, number: int) -> memoryview:
        if number not in self._shards:
            name = f"shard-{number:05d}.bin"
            try:
                with (self.folder / name).open("rb") as file:
                    # private to the process, so that a slip cannot write into the store
                    self._shards[number] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            except (OSError, ValueError) as error:  # ValueError: an empty file
                reason = error.strerror if isinstance(error, OSError) else "is empty"
                raise UnreadableImage(f"{self.folder.name}/{name}: {reason}") from None
        return self._shards[number]


def is_store(folder: Path) -> bool:
    """Whether it is a store, finished or begun."""
    return (folder / "store.json").is_file() or (folder / "begun.json").is_file()


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object that carries its own checksum."""
    try:
        content = json.loads(path.read_bytes())
        checksum = content.pop("crc32")
        if checksum != zlib.crc32(json.dumps(content).encode()):
            raise ValueError
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{path} is damaged: pack the images again into another folder") from None
    return content


def _checksum(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


# --- packing


class Piece(NamedTuple):
    """One image as it will lie in a shard, or the reason why it will not."""

    data: bytes
    shape: tuple[int, int, int]
    """Channels, height, width."""
    dtype: str
    """uint8, float32 or jpeg; "" where it is unreadable."""
    crc32: int
    reason: str | None
    refused: bool = False
    """The reason is one against the format, and ends the packing."""


@dataclass(frozen=True)
class Packer:
    """The part of packing that runs in workers: numbers of images in, their pieces out."""

    source: Source
    layout: Layout

    def __getitem__(self, numbers: np.ndarray) -> list[Piece]:
        return [self.piece(int(i)) for i in numbers]

    def piece(self, i: int) -> Piece:
        try:
            image = shrink(self.source.image(i), self.layout.short_side)
        except UnreadableImage as error:
            return Piece(b"", (0, 0, 0), "", 0, str(error))
        channels, height, width = image.shape
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        if self.layout.format == "raw":
            data, dtype = pixels.tobytes(), str(pixels.dtype)
        elif (why := no_jpeg(channels, height, width, str(pixels.dtype))) is not None:
            return Piece(b"", (0, 0, 0), "", 0, why, refused=True)
        else:
            colours, chroma = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
            data, dtype = simplejpeg.encode_jpeg(pixels, QUALITY, colours, chroma), "jpeg"
        return Piece(data, (channels, height, width), dtype, zlib.crc32(data), None)


def shrink(image: torch.Tensor, short_side: int) -> torch.Tensor:
    """(C, H, W) with a shorter side of at most `short_side` pixels: bicubic, antialiased; the same dtype."""
    height, width = image.shape[1:]
    if (short := min(height, width)) <= short_side:
        return image
    size = [max(1, round(side * short_side / short)) for side in (height, width)]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def no_jpeg(channels: int, height: int, width: int, dtype: str) -> str | None:
    """Why such an image cannot be kept as JPEG; None if it can."""
    if dtype != "uint8":
        return "has more than 8 bits a channel, which JPEG does not hold; use --format raw"
    if channels not in (1, 3):
        return f"has {channels} channels, JPEG holds 1 or 3; use --format raw"
    if max(height, width) > 65500:
        return f"is {height} x {width} pixels, JPEG holds 65,500 a side; use --format raw"
    return None


def pack(
    source: Source,
    folder: Path,
    layout: Layout,
    *,
    command: str,
    workers: int = 0,
    unreadable: Callable[[str, str], None] = lambda path, reason: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Packed:
    """Write a store, or go on with one that was begun.

    Args:
        source: the images.
        folder: of the store; created, if it is not there.
        layout: how they are packed.
        command: what to type to go on, if it is stopped.
        workers: processes that decode; 0: this one.
        unreadable: told the path and the reason of each image that cannot be read; may raise to end it all.
        progress: told how many images are done, many times.

    Raises:
        BadInput: the folder cannot be written or holds something else, the disk is full, the store was begun with
            other settings or from another source, an image does not fit the format, or no image can be read.
    """
    facts = {
        "version": VERSION,
        "source": source.name,
        "fingerprint": source.fingerprint(),
        "images": len(source),
        "classes": list(source.classes),
        **asdict(layout),
        "command": command,
    }
    table = _arrow(source)
    try:
        _begin(folder, facts, table)
        if not (folder / "store.json").is_file():
            _fill(source, folder, layout, workers, unreadable, progress)
            _finish(folder, facts)
        (folder / "begun.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "parts", ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full; make room and run the same command again" if full else "choose another --out"
        raise BadInput(f"{folder} cannot be written ({error.strerror}): {what}") from None
    return Packed(folder)


def begun(folder: Path) -> dict[str, Any] | None:
    """With what the store in a folder was begun or made; None if there is none."""
    for name in ("store.json", "begun.json"):
        if (folder / name).is_file():
            return _read_json(folder / name)
    return None


def _arrow(source: Source) -> pa.Table:
    try:
        return pa.Table.from_pandas(source.table, preserve_index=False).replace_schema_metadata()
    except pa.ArrowException as error:
        raise BadInput(f"{source.name}: a column holds values of several kinds ({error.args[-1]})") from None


def _begin(folder: Path, facts: dict[str, Any], table: pa.Table) -> None:
    """Make the folder, or check that what was begun there was begun with the same facts and table."""
    before = begun(folder)
    if before is None:
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BadInput(f"{folder} is not empty and holds no store: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "begun.json", facts)
        before = facts
    names = {"version": "version", "short_side": "--short-side", "format": "--format"}
    for key, name in names.items():
        if before[key] != facts[key]:
            raise BadInput(
                f"{folder} was begun with {name} {before[key]}, not {facts[key]}: choose another --out or the same {name}"
            )
    for key in ("images", "fingerprint", "classes"):
        if before[key] != facts[key]:
            was, now = (f"{x[key]:,}" if key == "images" else x[key] for x in (before, facts))
            what = f"{key} {was} then, {now} now" if key != "classes" else "other classes"
            raise BadInput(f"{folder} was begun from {before['source']} as it was then ({what}): choose another --out")
    if not (folder / "table.parquet").is_file():
        _write(folder / "table.parquet", lambda path: pq.write_table(table, path))
    elif not pq.read_table(folder / "table.parquet").equals(table):
        raise BadInput(
            f"{folder} was begun from {before['source']} with other labels, groups or columns: choose another --out"
        )


def _fill(
    source: Source,
    folder: Path,
    layout: Layout,
    workers: int,
    unreadable: Callable[[str, str], None],
    progress: Callable[[int], None],
) -> None:
    """Write the shards that are not there yet."""
    (folder / "parts").mkdir(exist_ok=True)
    done = shard = 0
    while (part := folder / "parts" / f"{shard:05d}.parquet").is_file():
        done, shard = done + pq.read_metadata(part).num_rows, shard + 1
    progress(done)
    paths = source.table["path"]
    writer: ShardWriter | None = None
    try:
        for piece in _pieces(source, layout, done, workers):
            if piece.refused:
                raise BadInput(f"{paths.iat[done]} {piece.reason}")
            if writer is not None and writer.full(piece):
                writer.close()
                shard, writer = shard + 1, None
            if writer is None:
                writer = ShardWriter(folder, shard)
            writer.add(piece)
            if piece.reason is not None:
                unreadable(paths.iat[done], piece.reason)
            done += 1
            progress(done)
        if writer is not None:
            writer.close()
            writer = None
    finally:
        if writer is not None:
            writer.discard()


def _pieces(source: Source, layout: Layout, first: int, workers: int) -> Iterator[Piece]:
    """Those of the images from number `first` on, in order."""
    numbers = np.arange(first, len(source))
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    loader = DataLoader(
        Packer(source, layout),  # type: ignore[arg-type]
        batch_size=None,
        sampler=chunks,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_is,
        prefetch_factor=4 if workers else None,
    )
    for chunk in loader:
        yield from chunk


def _as_is(chunk):
    return chunk


class ShardWriter:
    """One shard, written beside and renamed when it is whole; then its part of the index."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number
        self.beside = folder / f".shard-{number:05d}.part"
        self.file = self.beside.open("wb")
        self.rows: list[tuple] = []
        self.length = 0

    def full(self, piece: Piece) -> bool:
        return self.length > 0 and self.length + len(piece.data) > SHARD

    def add(self, piece: Piece) -> None:
        if piece.reason is not None:
            self.rows.append((-1, 0, 0, *piece.shape, piece.dtype, piece.crc32, piece.reason))
            return
        self.rows.append((self.number, self.length, len(piece.data), *piece.shape, piece.dtype, piece.crc32, None))
        padding = -len(piece.data) % ALIGNED
        self.file.write(piece.data)
        self.file.write(bytes(padding))
        self.length += len(piece.data) + padding

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.beside.replace(self.folder / f"shard-{self.number:05d}.bin")
        columns = dict(zip(INDEX.names, zip(*self.rows, strict=True), strict=True))
        part = pa.table(columns, schema=INDEX)
        _write(self.folder / "parts" / f"{self.number:05d}.parquet", lambda path: pq.write_table(part, path))

    def discard(self) -> None:
        """Leave nothing half-written behind."""
        with contextlib.suppress(OSError):  # what was buffered finds no room either
            self.file.close()
        self.beside.unlink(missing_ok=True)


def _finish(folder: Path, facts: dict[str, Any]) -> None:
    index = pa.concat_tables([pq.read_table(part) for part in sorted((folder / "parts").glob("[0-9]*.parquet"))])
    if index["reason"].null_count == 0:
        raise BadInput(f"{facts['source']}: none of {len(index):,} images can be read ({index['reason'][0]})")
    _write(folder / "index.parquet", lambda path: pq.write_table(index.combine_chunks(), path))
    checksums = {name: _checksum(folder / name) for name in ("table.parquet", "index.parquet")}
    _write_json(folder / "store.json", {**facts, "checksums": checksums})


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside, then rename: the file is whole or not there."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps({**content, "crc32": zlib.crc32(json.dumps(content).encode())}, indent=2) + "\n"
    _write(path, lambda beside: beside.write_text(text, encoding="utf-8"))
