"""Tables of a particle analyser: how its exports are read and written, how they differ, whether they agree with themselves.

An export has a row a particle, under a header and, mostly, a row of units. The layout is that of Microtrac's PartAn 3D; other
analysers' headers are found where they stand for the same thing. What people's programs have done to it on the way (broken
superscripts, decimal commas, lines above the header, lost columns) is mended where there is one way to read it, and each
mending is said; where there are two, the file is refused.
"""

import csv
import io
import itertools
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unmask.debitage.measures import IDENTITY, MEASURES, POWERS, WRITTEN, Measure, factor, headed, is_unit, plain
from unmask.errors import BadInput
from unmask.training.run import whole

__all__ = ["MEASURES", "Export", "Measure", "agreement", "bounds", "check", "differences", "read", "write"]

# Reading

MOST_BYTES = 256 * 2**20
"""Of a file, or of what a workbook unpacks to."""
HEADER_WITHIN = 60
"""The header is looked for in so many lines."""
Cell = str | float


@dataclass(frozen=True)
class Export:
    """What an analyser wrote of one sample."""

    path: Path
    frame: pd.DataFrame
    """A row a particle, RangeIndex: "id" (str), "image_id" (int64, or str where not all are whole numbers; only if the table
    has it), the measures it has, as in MEASURES: float64 in mm, mm², mm³, degrees, NaN where there is none; flags str. Then
    columns that are not known, under their header, float64 if all numbers, else str."""
    units: dict[str, str] = field(default_factory=dict)
    """Of each measure that has one, as it was written."""
    missing: tuple[str, ...] = ()
    """Measures that the table lacks."""
    constant: tuple[str, ...] = ()
    """Measures that are the same in all rows, or empty."""
    notes: tuple[str, ...] = ()
    """What was mended or is strange, a sentence each."""


def read(path: Path) -> Export:
    """Read an analyser's export, .csv, .txt or .xlsx, whatever its ending says. BadInput, in one line, for what is none."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"{path}: larger than {MOST_BYTES >> 20} MiB: split it by assemblage")
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise BadInput(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    notes: list[str] = []
    if content[:4] == b"PK\x03\x04":
        rows, first, comma = workbook(content, path, notes)
    elif content[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise BadInput(f"{path}: an old Excel file (.xls): save it as .xlsx or .csv")
    else:
        rows, first, comma = lines(decoded(content, path, notes), path, notes)
    return tabled(rows, first, comma, path, notes)


def decoded(content: bytes, path: Path, notes: list[str]) -> str:
    """The text of a file, by its mark of byte order, else UTF-8 if it is that, else Windows' Latin (cp1252)."""
    if not content.strip():
        raise BadInput(f"{path}: the file is empty: export it again")
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encodings = [name for mark, name in marks if content.startswith(mark)]
    if not encodings:
        start = content[:2000]
        even, odd = start[::2].count(0), start[1::2].count(0)
        if max(even, odd) > len(start) // 6:
            encodings = ["utf-16-le" if odd > even else "utf-16-be"]
        else:
            encodings = ["utf-8", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise BadInput(f"{path}: no text in {encodings[0]}, as it begins: export it again as CSV (UTF-8)")
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise BadInput(f"{path}: no table, but binary data: give the analyser's export as CSV or XLSX")
    if encoding in ("cp1252", "latin-1"):
        notes.append(f"Read as {encoding}, since it is not UTF-8.")
    return text


def lines(text: str, path: Path, notes: list[str]) -> tuple[list[list[Cell]], int, bool]:
    """The rows from the header on, the header's line (from 1), and whether the separator is a comma. It is the one under
    which the most columns are known."""
    best: tuple[int, str, int] = (0, ",", 0)
    for separator in (",", ";", "\t", "|"):
        try:
            start = list(
                itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), HEADER_WITHIN)
            )
        except csv.Error:
            continue
        found, at = header_of(start)
        best = max(best, (found, separator, at), key=lambda each: each[0])
    if not best[0]:
        raise unknown(text.split("\n", 1)[0], path)
    try:
        rows: list[list[Cell]] = [list(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=best[1])]
    except csv.Error as error:
        raise BadInput(f"{path}: no table of text ({error}): a quotation mark may be open") from None
    return rows[best[2] :], best[2] + 1, best[1] == ","


def workbook(content: bytes, path: Path, notes: list[str]) -> tuple[list[list[Cell]], int, bool]:
    """The rows from the header on of the first sheet with known columns, the header's row, and False."""
    try:
        import openpyxl
    except ImportError:
        raise BadInput(f'{path}: XLSX needs the openpyxl package; pip install "unmask[study]"') from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            if sum(each.file_size for each in packed.infolist()) > MOST_BYTES:
                raise BadInput(f"{path}: unpacks to more than {MOST_BYTES >> 20} MiB: split it by assemblage")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        sheets = book.worksheets
        for sheet in sheets:
            sheet.reset_dimensions()  # type: ignore[attr-defined]  # which other programs state wrongly
            rows: list[list[Cell]] = []
            cells = 0
            for row in sheet.iter_rows(values_only=True):
                kept = [cell_of(value) for value in row]
                while kept and kept[-1] == "":
                    kept.pop()
                rows.append(kept)
                cells += len(kept) + 1
                if cells > MOST_BYTES // 8:
                    raise BadInput(f"{path}: a sheet of more than {MOST_BYTES // 8:,} cells: split it by assemblage")
                if len(rows) == HEADER_WITHIN and not header_of(rows)[0]:
                    break
            found, at = header_of(rows[:HEADER_WITHIN])
            if found:
                if len(sheets) > 1:
                    notes.append(f"Of {len(sheets)} sheets, {sheet.title!r} was read.")
                return rows[at:], at + 1, False
    except BadInput:
        raise
    except Exception as error:  # openpyxl raises whatever it stumbles over
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise BadInput(f"{path}: a broken XLSX file ({why}): export it again, or as CSV") from None
    raise unknown("its sheets", path)


def cell_of(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    try:
        return float(value)
    except OverflowError:
        return "inf"


def header_of(rows: Sequence[Sequence[Cell]]) -> tuple[int, int]:
    """How many known columns the best header among these rows has, and its place; no measure among them is none."""
    best = (0, 0)
    for at, row in enumerate(rows):
        names = {name for name, _ in map(headed, row) if name is not None}
        if names & MEASURES.keys() and len(names) > best[0]:
            best = (len(names), at)
    return best


def unknown(start: str, path: Path) -> BadInput:
    begins = " ".join(start.split())[:60]
    return BadInput(
        f"{path}: no known column, such as Da, Area or Perimeter, in {begins!r}: give the analyser's export"
    )


SUMMARY = {
    "mean",
    "average",
    "median",
    "std",
    "stddev",
    "stdev",
    "sd",
    "min",
    "max",
    "minimum",
    "maximum",
    "sum",
    "total",
}


def tabled(rows: list[list[Cell]], first: int, comma: bool, path: Path, notes: list[str]) -> Export:
    """Rows, of which the header is the first, as a table."""
    if first > 1:
        notes.append(f"{counted(first - 1, 'line')} above the header {'was' if first == 2 else 'were'} passed over.")
    header = [cell if isinstance(cell, str) else number_text(cell) for cell in rows[0]]
    width = len(header)
    body = [(first + at, row) for at, row in enumerate(rows[1:], 1) if not blank(row)]
    for line, row in body:
        if not blank(row[width:]):
            why = ": decimal commas between commas? Export with semicolons, or decimal points" if comma else ""
            raise BadInput(f"{path}: line {line} has {len(row)} cells under {width} headers{why}")
    columns, extra = named(header, body, notes)
    units = {name: unit for name, (_, unit) in columns.items() if unit and name in MEASURES}
    if body and (row := unit_row(body[0][1], columns)) is not None:
        for name, unit in row.items():
            if name in units and factor_of(units[name], name, path, header) != factor_of(unit, name, path, header):
                raise BadInput(f"{path}: {name} is in {units[name]} by its header and in {unit} by the row below")
        again, units = body[0][1], units | row
        body = body[1:]
    else:
        again = None
    kept = [(line, row) for line, row in body if row != rows[0] and row != again]
    if len(kept) < len(body):
        notes.append(f"{counted(len(body) - len(kept), 'row')} that repeat the header or the units were left out.")
    body = kept
    at = columns["id"][0] if "id" in columns else None
    if at is not None:
        kept = [(line, row) for line, row in body if plain(str(cell(row, at))) not in SUMMARY]
        if len(kept) < len(body):
            notes.append(f"{counted(len(body) - len(kept), 'row')} of a summary (mean, total …) were left out.")
        body = kept
    if not body:
        raise BadInput(f"{path}: a header and no particles: export it again")
    short = [line for line, row in body if len(row) <= max(at for at, _ in columns.values())]
    if short:
        notes.append(f"{counted(len(short), 'row')} end before the last column, first in line {short[0]}: cut off?")

    factors = {name: factor_of(units.get(name, ""), name, path, header) for name in columns if name in MEASURES}
    sized = [name for name in factors if MEASURES[name].dimension in POWERS]
    if bare := [name for name in sized if name not in units]:
        which = "No units are given" if len(bare) == len(sized) else f"No unit is given for {listed(bare)}"
        notes.append(f"{which}: mm, mm² and mm³ are assumed.")
    if turned := [name for name in factors if factors[name] != 1]:
        as_is = ", ".join(dict.fromkeys(f"{units[name].strip()}" for name in turned))
        notes.append(
            f"{counted(len(turned), 'column')} in {as_is} turned into {'mm' if set(turned) & set(sized) else '1'}."
        )

    numeric = [name for name in factors if MEASURES[name].dimension != "flag"]
    cells = {name: [(line, cell(row, columns[name][0])) for line, row in body] for name in numeric}
    mark = decimal_mark(cells, comma, path, notes)
    frame: dict[str, Any] = {"id": identities(body, at, notes)}
    if "image_id" in columns:
        texts = [identity(cell(row, columns["image_id"][0])) for _, row in body]
        whole_numbers = all(re.fullmatch(r"-?[0-9]{1,18}", text) for text in texts)
        frame["image_id"] = np.array(texts, np.int64) if whole_numbers else pd.Series(texts, dtype=object)
    for name, measure in MEASURES.items():
        if name in numeric:
            frame[name] = numbers(cells[name], mark, measure, notes) * factors[name]
        elif name in factors:
            frame[name] = pd.Series([identity(cell(row, columns[name][0])) for _, row in body], dtype=object)
    for title, at in extra.items():
        frame[title] = loose([(line, cell(row, at)) for line, row in body], mark)
    table = pd.DataFrame(frame)
    if extra:
        notes.append(f"{counted(len(extra), 'column')} not known, kept as written: {listed(list(extra))}.")
    for name in numeric:
        zero = int(np.sum(table[name].to_numpy() == 0))
        if zero and MEASURES[name].dimension in POWERS:
            notes.append(f"{name} is 0 in {counted(zero, 'row')}: not determined, or less than the last digit shows.")
    notes += unexamined(table)
    given = [name for name in MEASURES if name in table]
    constant = tuple(name for name in given if len(table) > 1 and table[name].dropna().unique().size <= 1)
    missing = tuple(name for name in MEASURES if name not in table)
    return Export(path, table, {name: units[name] for name in given if name in units}, missing, constant, tuple(notes))


def unexamined(table: pd.DataFrame) -> list[str]:
    """Particles of a few pixels have an outline only: zeros for what the picture should tell are no measurements."""
    looks = [name for name in ("transparency", "angularity", "curvature") if name in table]
    none = np.all(table[looks].to_numpy() == 0, axis=1)
    if len(looks) < 2 or not none.any() or none.all():
        return []
    said = f"In {counted(int(none.sum()), 'row')} {listed(looks)} are all 0: the picture was not looked into"
    largest = f", in none larger than {table.loc[none, 'da'].max():.3g} mm" if "da" in table else ""
    return [f"{said}{largest}; these zeros are no measurements."]


def blank(row: Sequence[Cell]) -> bool:
    return all(isinstance(each, str) and not each.strip() for each in row)


def cell(row: Sequence[Cell], at: int) -> Cell:
    return row[at] if at < len(row) else ""


def counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    short = [name if len(name) <= 40 else name[:40] + "…" for name in names[:8]]
    return ", ".join(short) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def named(
    header: list[str], body: list[tuple[int, list[Cell]]], notes: list[str]
) -> tuple[dict[str, tuple[int, str]], dict[str, int]]:
    """Where each known column is, with the unit in its header, and where the unknown ones are. Of two columns of one name
    the first is read; the other is kept beside if it differs."""
    columns: dict[str, tuple[int, str]] = {}
    extra: dict[str, int] = {}
    taken = {*MEASURES, *IDENTITY}
    for at, title in enumerate(header):
        name, unit = headed(title)
        if name is not None and name not in columns:
            columns[name] = (at, unit)
            continue
        empty = all(blank([cell(row, at)]) for _, row in body)
        if empty and not (title.strip() and name is None):
            continue  # beyond the last column, or a copy without content
        title = " ".join(title.split())[:200] or f"column {at + 1}"
        if name is not None:
            if all(cell(row, at) == cell(row, columns[name][0]) for _, row in body):
                notes.append(f"The column {title} is there twice, the same; one was left out.")
                continue
            notes.append(f"Two columns of {name} differ: the first is read, column {at + 1} kept under its header.")
        while title in taken:
            title = f"{title} (column {at + 1})"
        taken.add(title)
        extra[title] = at
    return columns, extra


def unit_row(row: list[Cell], columns: Mapping[str, tuple[int, str]]) -> dict[str, str] | None:
    """The units in a row that has some under measures and no number, else None."""
    texts = {name: cell(row, at) for name, (at, _) in columns.items() if name not in MEASURES or is_numeric(name)}
    units = {name: text.strip() for name, text in texts.items() if isinstance(text, str) and name in MEASURES}
    numbered = any(not isinstance(text, str) or re.match(r"\s*[+-]?[.,]?[0-9]", text) for text in texts.values())
    if numbered or not any(map(is_unit, units.values())):
        return None
    return {name: unit for name, unit in units.items() if unit}


def is_numeric(name: str) -> bool:
    return MEASURES[name].dimension != "flag"


def factor_of(unit: str, name: str, path: Path, header: list[str]) -> float:
    if MEASURES[name].dimension == "flag":
        return 1.0
    try:
        return factor(unit, MEASURES[name].dimension)
    except ValueError as error:
        raise BadInput(f"{path}: {name}: {error}: mend the row of units") from None


# Numbers

EMPTY = re.compile(r"\s*(?:|-+|–|—|n/?a|n\.a\.|nan|null|none|missing)\s*", re.IGNORECASE)
INFINITE = re.compile(r"[+-]?\s*(?:inf|infinity|∞|1\.#inf|#div/0!)", re.IGNORECASE)
NUMBER = {
    mark: re.compile(
        rf"[+-]?(?:[0-9]+|[0-9]{{1,3}}(?:[{other} '’][0-9]{{3}})+)?(?:[{mark}][0-9]*)?(?:[eE][+-]?[0-9]{{1,4}})?"
    )
    for mark, other in ((".", ","), (",", "."))
}
"""A number by its decimal mark; groups of three may be parted by the other mark, a space or an apostrophe."""


def tidy(text: str) -> str:
    return re.sub(r"[\u00a0\u2009\u202f]", " ", text).replace("−", "-").strip()


def decimal_mark(cells: Mapping[str, Sequence[tuple[int, Cell]]], comma: bool, path: Path, notes: list[str]) -> str:
    """The decimal mark, "." or ",", of a whole table. 1,5 and 0,123 can only be decimals, 1,234,567 only thousands; 1,234
    is read as the rest is, and by itself as a decimal, for analysers write three and part no thousands. BadInput where
    cells contradict each other."""
    proofs: dict[str, tuple[str, int, str]] = {}
    unsure: tuple[str, int, str] | None = None
    for name, column in cells.items():
        for line, value in column:
            if not isinstance(value, str) or ("," not in value and "." not in value):
                continue
            text = tidy(value)
            reads = [mark for mark in ".," if any(map(str.isdigit, text)) and NUMBER[mark].fullmatch(text)]
            if len(reads) == 2 and re.match(r"[+-]?0", text):  # 0,123: no group of thousands begins with 0
                reads = ["," if "," in text else "."]
            if len(reads) == 1:
                proofs.setdefault(reads[0], (text, line, name))
            elif reads and "," in text:
                unsure = unsure or (text, line, name)
    if len(proofs) == 2:
        (a, line, name), (b, other, second) = proofs["."], proofs[","]
        raise BadInput(
            f"{path}: decimal points and decimal commas in one table, {a[:20]} (line {line}, {name}) and {b[:20]} (line {other}, "
            f"{second}): export it again with one of them"
        )
    if "," in proofs:
        notes.append("Decimal commas were read.")
        return ","
    if "." in proofs:
        if unsure:
            notes.append(f"Commas were read as marks of thousands, as in {unsure[0]} (line {unsure[1]}, {unsure[2]}).")
        return "."
    if unsure and not any("." in value for column in cells.values() for _, value in column if isinstance(value, str)):
        notes.append(
            f"{unsure[0]} (line {unsure[1]}, {unsure[2]}) and the like were read with a decimal comma: check one."
        )
        return ","
    return "."


def number(value: Cell, mark: str) -> float | None:
    """A cell as a number: NaN if it is empty, None if it is none."""
    if not isinstance(value, str):
        return float(value)
    text = tidy(value)
    if EMPTY.fullmatch(text):
        return math.nan
    if INFINITE.fullmatch(text):
        return math.inf
    if not re.search(r"[0-9]", text) or not NUMBER[mark].fullmatch(text):
        return None
    other = "," if mark == "." else "."
    try:
        return float(re.sub(rf"[{other} '’]", "", text).replace(mark, "."))
    except ValueError:  # an exponent alone
        return None


def numbers(column: Sequence[tuple[int, Cell]], mark: str, measure: Measure, notes: list[str]) -> np.ndarray:
    """A column as float64, NaN where there is no number or an impossible one, which is said with its first place."""
    values = np.full(len(column), math.nan)
    strange: dict[str, list[tuple[int, Cell]]] = {}
    for at, (line, value) in enumerate(column):
        found = number(value, mark)
        if found is None:
            strange.setdefault("no number", []).append((line, value))
        elif math.isinf(found):
            strange.setdefault("infinite", []).append((line, value))
        elif found < 0 and measure.dimension in POWERS:
            strange.setdefault("negative", []).append((line, value))
        else:
            values[at] = found
    for what, places in strange.items():
        line, value = places[0]
        shown = " ".join(str(value).split())[:20]
        notes.append(
            f"{measure.column.replace('  ', ' ')}: {counted(len(places), 'cell')} {'is' if len(places) == 1 else 'are'} {what} "
            f"and taken as missing, first {shown!r} in line {line}."
        )
    return values


def loose(column: Sequence[tuple[int, Cell]], mark: str) -> Any:
    """A column that is not known: float64 if all its cells are numbers, else str."""
    values = [number(value, mark) for _, value in column]
    if all(value is not None and not math.isinf(value) for value in values) and not all(map(math.isnan, values)):  # type: ignore[arg-type]
        return np.array(values, float)
    return pd.Series([identity(value) for _, value in column], dtype=object)


def identity(value: Cell) -> str:
    """A cell as a name: 104 for 104, 104.0 and 0104."""
    if not isinstance(value, str):
        return number_text(value) if math.isfinite(value) else str(value)
    text = value.strip()
    match = re.fullmatch(r"0*([0-9]+)(?:[.,]0*)?", text)
    return match[1] if match else text


def identities(body: list[tuple[int, list[Cell]]], at: int | None, notes: list[str]) -> pd.Series:
    """The id of each row, as pictures are named after it."""
    if at is None:
        notes.append("There is no column Id: particles are numbered from 1 in the order of the table.")
        return pd.Series([str(i + 1) for i in range(len(body))], dtype=object)
    ids = pd.Series([identity(cell(row, at)) for _, row in body], dtype=object)
    if (empty := ids == "").any():
        line = body[int(np.argmax(empty))][0]
        notes.append(
            f"{counted(int(empty.sum()), 'row')} have no Id, first in line {line}: they are named after their line."
        )
        ids[empty] = [f"line {line}" for (line, _), none in zip(body, empty, strict=True) if none]
    again = list(dict.fromkeys(ids.to_numpy()[ids.duplicated().to_numpy()]))
    if again:
        notes.append(
            f"{counted(len(again), 'Id')} stand{'s' if len(again) == 1 else ''} for more than one row, first "
            f"{again[0][:40]}: pictures named after {'it' if len(again) == 1 else 'them'} belong to either."
        )
    return ids


# Writing


def write(
    path: Path, frame: pd.DataFrame, *, decimal: str = ".", units: bool = True, encoding: str = "utf-8-sig"
) -> None:
    """Write a table as the analyser does: its headers and order, a row of units, three decimals, a mark of byte order; with
    decimal commas, semicolons between. `read` reads it back. Whole or not at all; BadInput where it cannot be written.

    frame: "id", "image_id" and measures as in `Export.frame`; other columns follow under their own name. Without "id",
    particles are numbered from 1.
    """
    if decimal not in (".", ","):
        raise BadInput(f"decimal {decimal!r}: use '.' or ','")
    if "id" not in frame:
        frame = frame.assign(id=[str(i + 1) for i in range(len(frame))])
    names = [name for name in (*IDENTITY, *MEASURES) if name in frame]
    names += [name for name in frame if name not in names]
    titles = [IDENTITY.get(n) or (MEASURES[n].column if n in MEASURES else str(n)) for n in names]

    def shown(value: Any) -> str:
        if isinstance(value, float | np.floating):
            if not math.isfinite(value):
                return ""
            text = f"{value:.3f}".rstrip("0").rstrip(".")
            return "0" if text == "-0" else text.replace(".", decimal)
        return "" if value is None or value is pd.NA else str(value)

    with whole(Path(path)) as beside:
        try:
            with beside.open("w", encoding=encoding, newline="") as file:
                rows = csv.writer(file, delimiter=";" if decimal == "," else ",")
                rows.writerow(titles)
                if units:
                    rows.writerow([WRITTEN.get(MEASURES[n].dimension, " ") if n in MEASURES else " " for n in names])
                rows.writerows([shown(value) for value in row] for row in zip(*(frame[n] for n in names), strict=True))
        except (UnicodeEncodeError, LookupError) as error:
            raise BadInput(f"{path}: cannot be written in {encoding} ({error}): use utf-8-sig") from None


# Comparing


def differences(exports: Mapping[str, Export]) -> list[str]:
    """What differs between the tables of a study before any particle is looked at, a sentence each: measures that some lack,
    that are constant in some but not in all, and units that differ. A classifier could tell the tables apart by these."""
    said = []
    for name, measure in MEASURES.items():
        title = f"{name} [{' '.join(measure.column.split())}]"
        lacking = [each for each, export in exports.items() if name in export.missing]
        having = [each for each in exports if each not in lacking]
        if lacking and having:
            said.append(f"{title} is missing in {listed(lacking)}, and there in {listed(having)}.")
        flat = [each for each in having if name in exports[each].constant]
        if flat and len(flat) < len(having):
            varied = [each for each in having if each not in flat]
            said.append(f"{title} is constant in {listed(flat)}, and varies in {listed(varied)}.")
        elif len(flat) > 1:
            values = {each: exports[each].frame[name].dropna().unique() for each in flat}
            if len({tuple(map(str, of)) for of in values.values()}) > 1:
                shown = ", ".join(f"{of[0] if len(of) else 'empty'} in {each}" for each, of in list(values.items())[:8])
                said.append(f"{title} is constant in each table, but not the same: {shown}.")
        units: dict[float, list[str]] = {}
        for each in having:
            units.setdefault(scale(exports[each], name), []).append(each)
        if len(units) > 1:
            told = [f"{exports[of[0]].units.get(name) or 'no unit'} in {listed(of)}" for of in units.values()]
            said.append(f"{title} is in {' and in '.join(told)}; all were turned into the same.")
    return said


def scale(export: Export, name: str) -> float:
    """What one of the unit that the measure was written in is in mm, mm², mm³."""
    return factor(export.units.get(name, ""), MEASURES[name].dimension) if is_numeric(name) else 1.0


# Checking


def bounds(export: Export | pd.DataFrame, name: str, decimals: int = 3) -> pd.DataFrame:
    """A measure recomputed by its formula: "exported", "recomputed", and "low" and "high", between which the exported value
    must lie, since each number was rounded to so many decimals of the unit it was written in: inputs are moved to both ends
    of what they may have been, in all combinations, and the exported value by half its last digit. Rows without one of the
    numbers, or with a 0 to divide by, are left out."""
    frame = export.frame if isinstance(export, Export) else export
    half = {
        each: 0.5 * 10.0**-decimals * (1 + 1e-6) * (scale(export, each) if isinstance(export, Export) else 1.0)
        for each in (name, *MEASURES[name].inputs)
    }
    formula, inputs = MEASURES[name].formula, MEASURES[name].inputs
    assert formula is not None, name
    values = [frame[each].to_numpy(float) for each in inputs]
    with np.errstate(all="ignore"):
        corners = np.stack(
            [
                formula(
                    *(np.maximum(v + sign * half[each], 0) for v, sign, each in zip(values, signs, inputs, strict=True))
                )
                for signs in itertools.product((-1, 1), repeat=len(inputs))
            ]
        )
        recomputed = np.asarray(formula(*values), float)
    free = np.isnan(corners).any(0)  # 0/0: anything may be
    low = np.where(free, -np.inf, corners.min(0)) - half[name]
    high = np.where(free, np.inf, corners.max(0)) + half[name]
    exported = frame[name].to_numpy(float)
    here = np.isfinite(exported) & np.isfinite(recomputed)
    columns = {"exported": exported, "recomputed": recomputed, "low": low, "high": high}
    return pd.DataFrame(columns, index=frame.index).loc[here]


def checked(export: Export | pd.DataFrame) -> list[str]:
    """Measures that can be recomputed from others of the table."""
    frame = export.frame if isinstance(export, Export) else export
    return [name for name, measure in MEASURES.items() if measure.formula and {name, *measure.inputs} <= set(frame)]


def check(export: Export | pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """A row for each exported value that its definition and the other columns do not explain, rounding granted: "id" (or the
    row's index where there is none), "measure", "exported", "recomputed", "low", "high"."""
    frame = export.frame if isinstance(export, Export) else export
    parts = []
    for name in checked(export):
        rows = bounds(export, name, decimals)
        off = rows[(rows["exported"] < rows["low"]) | (rows["exported"] > rows["high"])]
        ids = frame.loc[off.index, "id"] if "id" in frame else off.index.to_series()
        parts.append(off.assign(id=ids, measure=name))
    columns = ["id", "measure", "exported", "recomputed", "low", "high"]
    return pd.DataFrame(pd.concat(parts, ignore_index=True) if parts else None, columns=columns)


def agreement(export: Export | pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """A row a measure that can be recomputed: "n" values compared, "within" rounding, their "share", "worst" (how far the
    farthest lies outside, in its own unit), "particle" (whose that is, or None), and "sharpness" (median of half the
    interval over the value: how little rounding leaves to disagree with)."""
    frame = export.frame if isinstance(export, Export) else export
    rows = []
    for name in checked(export):
        table = bounds(export, name, decimals)
        exported, recomputed, low, high = table.to_numpy(float).T
        outside = np.maximum(np.maximum(low - exported, exported - high), 0)
        worst, at, particle = 0.0, int(outside.argmax()) if len(table) else 0, None
        if outside.any():
            worst, label = float(outside[at]), table.index[at]
            particle = str(frame.loc[label, "id"] if "id" in frame else label)
        here = np.isfinite(high - low) & (recomputed != 0)
        sharp = np.median((high - low)[here] / 2 / np.abs(recomputed[here])) if here.any() else math.nan
        within = int((outside == 0).sum())
        share = within / len(table) if len(table) else math.nan
        rows.append((name, len(table), within, share, worst, particle, float(sharp)))
    titles = ["measure", "n", "within", "share", "worst", "particle", "sharpness"]
    return pd.DataFrame(rows, columns=titles)  # type: ignore[arg-type]
