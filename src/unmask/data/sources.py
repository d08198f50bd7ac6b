"""Where images come from, and what is known of each: folders, tables, `datasets`, tar shards, stores, built-in sets."""

import glob
import importlib.util
import itertools
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from unmask.data.decode import SUFFIXES, UnreadableImage, decode, size_of
from unmask.data.packed import Packed, is_store
from unmask.data.source import Items, Source
from unmask.errors import BadInput

KINDS = "a folder, a .csv or .parquet table (or a glob of them), hf:NAME[:SPLIT], wds:PATTERN.tar, a packed store, "
KINDS += "digits or photos"
TABLES = (".csv", ".parquet")

CROP = 64  # pixels, height and width of a crop of `photos`
# Drawings, masks and plots among scikit-image's pictures, and the right eye's view of the scene in motorcycle_left
NOT_PHOTOGRAPHS = {"chessboard_GRAY", "chessboard_RGB", "clock_motion", "color", "horse", "logo", "motorcycle_right"}
NOT_PHOTOGRAPHS |= {"no_time_for_that_tiny", "phantom"}


def open_source(spec: str | Path, *, image: str = "image", label: str = "label", group: str = "group") -> Source:
    """Find images.

    Args:
        spec: one of

            - a folder, searched to any depth; hidden files and files that are not images are left out. Where images lie
              in two subfolders or more and none beside those, each subfolder is a class.
            - a .csv or .parquet table or a glob of them, a row an image: see `image`.
            - `hf:NAME[:SPLIT]`, by `datasets.load_dataset`; SPLIT is "train" unless given.
            - `wds:PATTERN`, WebDataset tar shards on a local disk, with {000..009} or * in the pattern; `cls` is the
              label (column `cls` if another is named), the fields of `json` are columns, and `txt` is one, too.
            - a packed store, the folder that `unmask pack` writes; its own columns can be named as those of a table.
            - `digits[:train|:test]`: scikit-learn's 1,797 digits of 8×8, grey, four fifths of each class in train.
            - `photos[:train|:test]`: 64×64 RGB crops of the photographs that scikit-image and scikit-learn carry, shrunk
              to 512 pixels at most, the photograph as label; train from the left half of each (every 16 pixels), test
              from the right (every 32).
        image: the column with a path (relative to the table), the bytes, or a struct of both as in Hugging Face data;
            of tar shards, the extension, which need not be given if a sample holds one image.
        label: the column with the class. Missing, empty, NaN, NA and, for named classes, -1: no label.
        group: the column with what must not be on both sides of a split.

    Raises:
        BadInput: nothing there, no images in it, no such column or split, or an extra that is not installed.
    """
    name = str(spec)
    columns = (image, label, group)
    if name.startswith("hf:"):
        return _open_datasets(name, columns)
    if name.startswith("wds:"):
        return _open_shards(name, columns)
    if match := re.fullmatch(r"(digits|photos)(?::(train|test))?", name):
        _no_columns(name, columns[1:])
        opened = _open_digits if match[1] == "digits" else _open_photos
        return opened(name, match[2] or "train")
    path = Path(name).expanduser()
    if path.is_dir():
        return (_open_store if is_store(path) else _open_folder)(name, path, columns)
    if path.is_file():
        return _open_tables(name, [path], columns)
    if glob.has_magic(name):
        paths = [Path(found) for found in _matches(str(path))]
        if not paths:
            raise BadInput(
                f"{name}: no file matches; check the pattern, and quote it so that the shell leaves it alone"
            )
        return _open_tables(name, paths, columns)
    raise BadInput(f"{name}: no such file or folder; a source is {KINDS}")


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207, Path.glob takes no absolute patterns


def _source(name: str, items: Items, paths: list[str], known: pd.DataFrame, schema: Sequence[str] | None) -> Source:
    """`known`: columns other than path, "label" and "group" already cleaned to str or None."""
    if not paths:
        raise BadInput(f"{name}: no images in it")
    known.insert(0, "path", pd.Series(paths, dtype=object))
    classes: Sequence[str] = ()
    if "label" in known:
        classes = schema or sorted({x for x in known["label"] if x is not None}, key=_natural)
    return Source(name, known, tuple(classes), items, np.arange(len(paths)))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key: numbers by value, also inside names, before words."""
    try:
        return [(0, float(text), "")]
    except ValueError:
        parts = re.split(r"(\d+)", text)
        return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts if part]


def _no_columns(name: str, columns: tuple[str, ...]) -> None:
    asked = [column for column in columns if column not in ("image", "label", "group")]
    if asked:
        raise BadInput(f'{name}: has no columns, so no "{asked[0]}"; columns come with a .csv or .parquet table')


def _clean(values: Sequence[Any], where: str) -> pd.Series:
    """Labels or groups as str, None where missing."""

    def text(value: Any) -> str | None:
        if isinstance(value, (list, dict, tuple, np.ndarray)):
            raise BadInput(f"{where}: holds lists or records; one value an image is needed")
        if pd.isna(value):
            return None
        if isinstance(value, float) and value.is_integer():  # whole numbers become floats where some are missing
            value = int(value)
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        text = text.strip()
        return None if text in ("", "nan", "NaN", "NA") else text  # NA is how R writes what is missing

    return pd.Series([text(value) for value in values], dtype=object)


# --- folders


@dataclass(frozen=True)
class Files:
    """Images in files; None where a row of a table names no file."""

    paths: tuple[str | None, ...]

    def __getitem__(self, i: int) -> Path:
        if (path := self.paths[i]) is None:
            raise UnreadableImage("no path in its row")
        return Path(path)

    def sizes(self) -> np.ndarray:
        return np.fromiter(map(_file_size, self.paths), dtype=np.int64, count=len(self.paths))


def _file_size(path: str | None) -> int:
    try:
        return -1 if path is None else Path(path).stat().st_size
    except OSError:
        return -1


def _open_folder(name: str, folder: Path, columns: tuple[str, str, str]) -> Source:
    _no_columns(name, columns)
    found, tables, seen = [], [], set()
    for root, folders, files in os.walk(folder, followlinks=True):  # class folders are often links, links may loop
        folders[:] = sorted(x for x in folders if not x.startswith("."))
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            suffix = Path(file).suffix.lower()
            if suffix in SUFFIXES and not file.startswith("."):
                found.append(Path(root, file).relative_to(folder))
            elif suffix in TABLES:
                tables.append(Path(root, file))
    if not found:
        hint = (
            f"; it holds tables, name one: {min(tables)}"
            if tables
            else f"; suffixes read: {' '.join(sorted(SUFFIXES))}"
        )
        raise BadInput(f"{name}: no images in this folder{hint}")
    found.sort()
    table = pd.DataFrame(index=range(len(found)))
    one_down = {path.parts[0] for path in found if len(path.parts) == 2}
    if len(one_down) >= 2 and all(len(path.parts) > 1 for path in found):
        table["label"] = pd.Series([path.parts[0] for path in found], dtype=object)
    items = Files(tuple(str(folder / path) for path in found))
    return _source(name, items, [path.as_posix() for path in found], table, None)


# --- tables


@dataclass(frozen=True)
class Encoded:
    """Images in a column of Arrow data: bytes, or structs of bytes and path. A worker reads the column again."""

    origin: tuple[str, ...] | Any
    """Parquet files, or a `datasets.Dataset`, which is mapped into memory."""
    column: str

    @cached_property
    def _parts(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None, tuple[str, ...], np.ndarray]:
        """Bytes, paths if any, the folder of each file, and the first row of each file."""
        if isinstance(self.origin, tuple):
            # Zero copy is not to be had from Parquet; one read into Arrow buffers, without a Python object an image
            read = [pq.read_table(file, columns=[self.column], memory_map=True).column(0) for file in self.origin]
            folders = tuple(str(Path(file).parent) for file in self.origin)
        else:
            read, folders = [self.origin.data.column(self.column)], ("",)
        if len(kinds := {str(column.type) for column in read}) > 1:
            raise BadInput(
                f'column "{self.column}" differs between tables: {" and ".join(sorted(kinds))}; give one kind'
            )
        starts = np.cumsum([0] + [len(column) for column in read[:-1]])
        paths = None
        if pa.types.is_struct(kind := read[0].type):
            fields = [column.flatten() for column in read]
            has_path = kind.get_field_index("path") >= 0
            paths = [field[kind.get_field_index("path")] for field in fields] if has_path else None
            read = [field[kind.get_field_index("bytes")] for field in fields]
        return _chain(read), None if paths is None else _chain(paths), folders, starts

    def __getstate__(self) -> dict[str, Any]:
        return {"origin": self.origin, "column": self.column}

    def __getitem__(self, i: int) -> bytes | Path:
        contents, paths, folders, starts = self._parts
        if (data := contents[i].as_py()) is not None:
            return data
        path = None if paths is None else paths[i].as_py()
        if not path:
            raise UnreadableImage("neither bytes nor a path in its row")
        return Path(folders[int(np.searchsorted(starts, i, side="right")) - 1], path)

    def names(self, stems: Sequence[str]) -> list[str]:
        """The path of each image where there is one, else stem#row, with a stem a file."""
        contents, paths, _, starts = self._parts
        given = [None] * len(contents) if paths is None else paths.to_pylist()
        file = np.searchsorted(starts, np.arange(len(given)), side="right") - 1
        return [path or f"{stems[f]}#{i - starts[f]}" for i, (path, f) in enumerate(zip(given, file, strict=True))]

    def sizes(self) -> np.ndarray:
        return pc.call_function("binary_length", [self._parts[0]]).fill_null(-1).to_numpy().astype(np.int64)


def _chain(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=columns[0].type)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _open_tables(name: str, paths: list[Path], columns: tuple[str, str, str]) -> Source:
    image = columns[0]
    known: list[pd.DataFrame] = []
    classes: dict[str, None] = {}
    files: list[str | None] = []
    printed: list[str] = []
    encoded: list[Path] = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in TABLES:
            raise BadInput(f"{path}: not a source; a source is {KINDS}")
        try:
            raw, names = _read_csv(path, columns) if suffix == ".csv" else _read_parquet(path, columns)
        except BadInput:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise BadInput(f"{path}: cannot be read as {suffix[1:]} ({_one_line(error)})") from None
        classes |= dict.fromkeys(names or ())
        if image in raw:
            values = _clean(raw.pop(image).tolist(), f'{path}: column "{image}"')
            files += [None if value is None else str(path.parent / value) for value in values]
            printed += [f"{path.stem}#{i}" if value is None else value for i, value in enumerate(values)]
        else:
            encoded.append(path)
        known.append(_known(str(path), raw, columns, names))
    if encoded and files:
        raise BadInput(f'{name}: some tables hold bytes in "{image}" and some hold paths; give one kind at a time')
    table = known[0] if len(known) == 1 else pd.concat(known, ignore_index=True)
    for column in {"label", "group"} & set(table.columns):  # missing where only some of the tables have it
        table[column] = table[column].where(table[column].notna(), None)
    if not encoded:
        return _source(name, Files(tuple(files)), printed, table, list(classes))
    items = Encoded(tuple(map(str, encoded)), image)
    try:
        return _source(name, items, items.names([path.stem for path in encoded]), table, list(classes))
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f'{name}: column "{image}" cannot be read ({_one_line(error)})') from None


def _read_csv(path: Path, columns: tuple[str, str, str]) -> tuple[pd.DataFrame, None]:
    raw = pd.read_csv(path, encoding="utf-8-sig", low_memory=False)
    _require_columns(str(path), list(raw.columns), columns)
    # Ours again as text, so that class 01 stays "01" and None stays a word
    ours = [column for column in raw.columns if column in columns]
    text = pd.read_csv(path, encoding="utf-8-sig", usecols=ours, dtype=str, keep_default_na=False)[ours]
    raw[ours] = text.where(text != "", None)
    return raw, None


def _read_parquet(path: Path, columns: tuple[str, str, str]) -> tuple[pd.DataFrame, list[str] | None]:
    """The columns, without that of the images if they are in the table, and the class names that the schema gives."""
    schema = pq.read_schema(path)
    image, label, _ = columns
    _require_columns(str(path), schema.names, columns)
    kind = schema.field(image).type
    if not (_holds_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadInput(f'{path}: column "{image}" is {kind}; paths, bytes or a struct of bytes and path are needed')
    wanted = [column for column in schema.names if column != image or not _holds_bytes(kind)]
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(label)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return _to_pandas(pq.read_table(path, columns=wanted)), names


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(ignore_metadata=True)
    return frame if len(frame.columns) else pd.DataFrame(index=range(table.num_rows))


def _require_columns(name: str, has: Sequence[str], columns: tuple[str, str, str]) -> None:
    """The image's column must be there, and each that was asked for by a name of its own."""
    for column, option in zip(columns, ("image", "label", "group"), strict=True):
        if column not in has and (option == "image" or column != option):
            raise BadInput(f'{name}: no column "{column}"; its columns: {", ".join(has)}; choose one with --{option}')


def _known(name: str, raw: pd.DataFrame, columns: tuple[str, str, str], names: list[str] | None) -> pd.DataFrame:
    """Label and group as str or None, integer labels by `names`, and the other columns, out of the way of ours."""
    _, label, group = columns
    known = pd.DataFrame(index=range(len(raw)))
    if label in raw:
        values = raw[label].tolist()
        if names:
            values = [None if pd.isna(x) or not 0 <= x < len(names) else names[int(x)] for x in values]
        known["label"] = _clean(values, f'{name}: column "{label}"')
    if group in raw:
        known["group"] = _clean(raw[group].tolist(), f'{name}: column "{group}"')
    for column in raw.columns:
        if column not in {"label", "group"} & {label, group}:
            known[f"column_{column}" if column in ("path", "label", "group") else column] = raw[column].to_numpy()
    return known


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else text[:197] + "...") or type(error).__name__


# --- Hugging Face datasets


def _open_datasets(name: str, columns: tuple[str, str, str]) -> Source:
    try:
        import datasets
    except ImportError:
        raise BadInput(f'{name}: hf: needs the datasets package; pip install "unmask[datasets]"') from None
    split = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
    match = re.fullmatch(rf"(.+?)(?::({split}(?:\+{split})*))?", name.removeprefix("hf:"))
    if match is None:
        raise BadInput(f"{name}: no name; give hf:NAME or hf:NAME:SPLIT")
    try:
        dataset = datasets.load_dataset(match[1], split=match[2] or "train")
        _require_columns(name, dataset.column_names, columns)
        image, label, _ = columns
        dataset = dataset.cast_column(image, datasets.Image(decode=False)).with_format(None)
        if getattr(dataset, "_indices", None) is not None:  # the rows of its Arrow table must be the rows of the set
            dataset = dataset.flatten_indices()
    except BadInput:
        raise
    except Exception as error:  # the hub, the file system, builders and casts each raise their own
        raise BadInput(f"{name}: load_dataset failed ({_one_line(error)})") from None
    feature = dataset.features.get(label)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    raw = _to_pandas(dataset.data.table.select([column for column in dataset.column_names if column != image]))
    items = Encoded(dataset, image)
    stem = f"{Path(match[1]).name}:{match[2] or 'train'}"
    return _source(name, items, items.names([stem]), _known(name, raw, columns, names), names)


# --- tar shards


@dataclass(frozen=True)
class Members:
    """Images in uncompressed tar files, read by offset."""

    files: tuple[str, ...]
    file: np.ndarray
    """Index into `files` of each image, int32 (N,)."""
    offset: np.ndarray
    """First byte of each image, int64 (N,)."""
    length: np.ndarray
    """Bytes of each image, int64 (N,)."""

    def __getitem__(self, i: int) -> bytes:
        return _read_at(self.files[self.file[i]], int(self.offset[i]), int(self.length[i]))

    def sizes(self) -> np.ndarray:
        return self.length


def _read_at(file: str, offset: int, length: int) -> bytes:
    try:
        with Path(file).open("rb") as opened:
            opened.seek(offset)
            return opened.read(length)
    except OSError as error:
        raise UnreadableImage(f"{file}: {error.strerror}") from None


def _open_shards(name: str, columns: tuple[str, str, str]) -> Source:
    try:
        from webdataset.shardlists import expand_urls
        from webdataset.tariterators import group_by_keys
    except ImportError:
        raise BadInput(f'{name}: wds: needs the webdataset package; pip install "unmask[webdataset]"') from None
    expanded = [str(Path(shard).expanduser()) for shard in expand_urls(name.removeprefix("wds:"))]
    shards = [found for shard in expanded for found in (_matches(shard) if glob.has_magic(shard) else [shard])]
    absent = [shard for shard in shards if not Path(shard).is_file()]
    if not shards or absent:
        raise BadInput(f"{name}: no such file: {absent[0] if absent else name}; shards are local tar files")
    printed, spans, rows = [], [], []
    for number, shard in enumerate(shards):
        try:
            # Places instead of contents go through webdataset's own grouping of members into samples
            for sample in group_by_keys(_members(shard)):
                key, extension = sample["__key__"], _image_extension(name, sample, columns[0])
                if extension is not None:
                    printed.append(f"{Path(shard).name}/{key}.{extension}")
                    spans.append((number, *sample[extension]))
                    rows.append(_fields(shard, sample, columns[1]))
        except tarfile.TarError as error:
            raise BadInput(
                f"{shard}: not a plain tar file ({error}); compressed shards cannot be read at random"
            ) from None
        except ValueError as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{shard}: {_one_line(error)}") from None
    if not printed:
        raise BadInput(f"{name}: no images in these shards")
    raw = pd.DataFrame(rows, index=range(len(rows)))
    _require_columns(name, ["image", columns[0], *raw.columns], columns)
    file, offset, length = np.array(spans, dtype=np.int64).T
    items = Members(tuple(shards), file.astype(np.int32), offset, length)
    return _source(name, items, printed, _known(name, raw, columns, None), None)


def _members(shard: str):
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):  # webdataset's own metadata
                yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": shard}


def _image_extension(name: str, sample: dict[str, Any], wanted: str) -> str | None:
    extensions = [x for x in sample if not x.startswith("__")]
    if wanted != "image":
        return wanted if wanted in extensions else None
    images = [x for x in extensions if f".{x.rpartition('.')[2]}" in SUFFIXES]
    if len(images) > 1:
        raise BadInput(
            f"{name}: {sample['__key__']} holds several images ({', '.join(images)}); choose with --image EXTENSION"
        )
    return images[0] if images else None


def _fields(shard: str, sample: dict[str, Any], label: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "json" in sample:
        record = json.loads(_read_at(shard, *sample["json"]))
        fields |= record if isinstance(record, dict) else {"json": record}
    for extension, column in (("txt", "txt"), ("cls", "label" if label == "label" else "cls")):
        if extension in sample:
            fields[column] = _read_at(shard, *sample[extension]).decode("utf-8", "replace").strip()
    return fields


# --- packed stores


def _open_store(name: str, folder: Path, columns: tuple[str, str, str]) -> Source:
    items = Packed(folder)
    raw = items.table.copy()
    paths = raw.pop("path").tolist()
    _require_columns(name, ["image", *raw.columns], columns)
    known = _known(name, raw, columns, None)
    return _source(name, items, paths, known, items.facts["classes"] if columns[1] == "label" else None)


# --- built-in


@dataclass(frozen=True)
class Pixels:
    """A few small images in memory: uint8 (N, C, H, W)."""

    pixels: np.ndarray

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.pixels[i])

    def sizes(self) -> np.ndarray:
        return np.full(len(self.pixels), self.pixels[0].nbytes, dtype=np.int64)


def _open_digits(name: str, split: str) -> Source:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 in the file
    train, test = train_test_split(np.arange(len(pixels)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = np.sort(train if split == "train" else test)
    table = pd.DataFrame({"label": pd.Series([str(x) for x in digits.target[chosen]], dtype=object)})
    return _source(name, Pixels(pixels[chosen]), [f"digits/{i}" for i in chosen], table, None)


@dataclass(frozen=True)
class Crops:
    """Square crops of a few photographs, which are read when first needed and kept."""

    files: tuple[str, ...]
    file: np.ndarray
    """Index into `files` of each crop, int64 (N,)."""
    top: np.ndarray
    left: np.ndarray
    """First row and column of each crop, int64 (N,) both."""

    def __getitem__(self, i: int) -> torch.Tensor:
        top, left = int(self.top[i]), int(self.left[i])
        return _photograph(self.files[self.file[i]])[:, top : top + CROP, left : left + CROP]

    def sizes(self) -> np.ndarray:
        return np.full(len(self.file), 3 * CROP * CROP, dtype=np.int64)


@cache
def _photograph(file: str) -> torch.Tensor:
    image = decode(Path(file))
    height, width = _shrunk(image.shape[1], image.shape[2])
    image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    return image.repeat(3, 1, 1) if image.shape[0] == 1 else image


def _shrunk(height: int, width: int) -> tuple[int, int]:
    """The size at which a photograph is cut up: 512 pixels at most along the longer side, so that none dominates."""
    scale = min(1.0, 512 / max(height, width))
    return round(height * scale), round(width * scale)


def _open_photos(name: str, split: str) -> Source:
    folders = []
    for package, parts in (("skimage", ("data",)), ("sklearn", ("datasets", "images"))):
        spec = importlib.util.find_spec(package)  # located without importing it, and without its downloader
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent.joinpath(*parts))
    files, labels, boxes = [], [], []
    for path in sorted(x for folder in folders for x in folder.glob("*") if x.suffix in (".png", ".jpg")):
        if path.stem in NOT_PHOTOGRAPHS:
            continue
        _, height, width, _ = size_of(path)
        height, width = _shrunk(height, width)
        # Training looks at the left half, the test at the right, with a gap wider than the filter that shrinks
        start, stop, stride = (0, width // 2 - 8, 16) if split == "train" else (width // 2 + 8, width, 32)
        corners = itertools.product(range(0, height - CROP + 1, stride), range(start, stop - CROP + 1, stride))
        crops = [(len(files), top, left) for top, left in corners]
        if crops:
            files.append(str(path))
            labels += [path.stem] * len(crops)
            boxes += crops
    if not boxes:
        raise BadInput(f"{name}: no photographs found in the installed scikit-image and scikit-learn; reinstall them")
    file, top, left = np.array(boxes, dtype=np.int64).T
    paths = [f"{label}/{y},{x}" for label, (_, y, x) in zip(labels, boxes, strict=True)]
    table = pd.DataFrame({"label": pd.Series(labels, dtype=object)})
    return _source(name, Crops(tuple(files), file, top, left), paths, table, None)
