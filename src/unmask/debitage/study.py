"""A study: which assemblages there are, what is known of each, and a row a particle.

STUDY.yaml names assemblages, each with its knapper, years of experience, raw material, technique, session and instrument,
and where its particle images and its analyser's export lie:

    title: Six knappers
    assemblages:
      - name: K1-flint
        knapper: K1
        years: 2
        skill: novice
        material: flint
        technique: hard hammer
        session: day 1
        instrument: PartAn 3D
        images: images/K1-flint      # the picture of particle 104 is 104.png, or 104_1.png, 104_2.png … frame by frame
        table: tables/K1-flint.csv   # the analyser's export
        scale: 0.02                  # mm a pixel of the images

or, in place of assemblages, one table with a row a particle, and what is asked of which of its columns:

    title: Late Palaeolithic artefacts
    particles: {table: artefacts.csv, image: image, assemblage: source_image, scale: scale_cm_per_pixel, scale_in: cm}
    question: {label: label, unit: group, nuisances: [region, source_image], strata: region}
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from unmask.data.decode import SUFFIXES
from unmask.debitage import tables
from unmask.errors import BadInput

Frame = Any
"""A pandas DataFrame. The types that pandas states make a Series of any cell, so that no type checker can follow it."""
KNOWN = ("material", "technique", "session", "instrument")
"""What may differ between assemblages beside the hand, and so may pass for it."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what must be told apart from it. All are columns of `Study.particles`."""

    label: str = "skill"
    """Classes to tell apart."""
    unit: str = "knapper"
    """Whom a label belongs to, and who is never on both sides of a split: the unit of replication."""
    covariate: str | None = "years"
    """A number a unit has, such as years of experience."""
    nuisances: tuple[str, ...] = KNOWN
    """What may pass for the label: each is audited."""
    strata: str | None = None
    """Units are only ever permuted among those of the same, such as a region."""


@dataclass(frozen=True)
class Study:
    """What is asked, and of which particles."""

    title: str
    path: Path
    """Of STUDY.yaml."""
    question: Question
    particles: Frame
    """A row a particle, RangeIndex: "particle" (str, unique), "assemblage" (str), the question's columns (str; the covariate
    float64), "image" (str, absolute path of its first picture, or missing), "frames" (tuple of such paths), "scale" (mm a pixel,
    or NaN), "order" (place in its table), and its measures (float64, NaN where not measured)."""
    measures: tuple[str, ...] = ()
    """Columns of `particles` that are measures, named as in `tables.MEASURES`."""
    notes: tuple[str, ...] = ()
    """What was noticed while reading, a sentence each."""

    @property
    def units(self) -> Frame:
        """A row a unit: its label, covariate and stratum (None or NaN where it has none or several), its number of
        "particles" and of "assemblages". Index: the unit's name."""
        q = self.question
        by = self.particles.groupby(q.unit, sort=True)
        columns = [name for name in (q.label, q.covariate, q.strata) if name is not None]
        units = pd.DataFrame({name: by[name].agg(_only) for name in dict.fromkeys(columns)})
        return units.assign(particles=by.size(), assemblages=by["assemblage"].nunique())

    def replace(self, **changes: Any) -> "Study":
        return dataclasses.replace(self, **changes)


def _only(values: Any) -> Any:
    """The one value there is, None where there are several or none."""
    found = values.dropna().unique()
    return found[0] if len(found) == 1 else None


def load(path: Path) -> Study:
    """Read STUDY.yaml and the tables it names; of images only the names. BadInput, in one line, for what cannot be used."""
    if path.is_dir():
        path = path / "study.yaml"
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; unmask study simulate --out DIR writes one to begin with") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())[:200]}") from None
    known(told, path, ("title", "assemblages", "particles", "question", "design"))
    if ("assemblages" in told) == ("particles" in told):
        raise BadInput(f"{path}: give either assemblages, a list, or particles, a table with a row a particle")
    asked: dict[str, Any] = known(
        told.get("question") or {}, f"{path}: question", [f.name for f in dataclasses.fields(Question)]
    )
    if "nuisances" in asked:
        asked = asked | {"nuisances": tuple(map(str, asked["nuisances"] or ()))}
    if "assemblages" in told:
        particles, measures, notes = gathered(told["assemblages"], path)
    else:
        particles, measures, notes = tabled(told["particles"], path)
        asked.setdefault("covariate", None)
    question = Question(**asked)
    given = [name for name in question.nuisances if name in particles and particles[name].notna().any()]
    if "nuisances" in asked and (missing := [name for name in question.nuisances if name not in particles]):
        raise BadInput(f"{path}: question: nuisances: no column {missing[0]!r}; there are {listed(particles)}")
    covariate = question.covariate
    if covariate not in particles or particles[covariate].isna().all():
        covariate = None
    question = dataclasses.replace(question, nuisances=tuple(given), covariate=covariate)
    for name in (question.label, question.unit, question.strata):
        if name is not None and (name not in particles or particles[name].isna().all()):
            raise BadInput(
                f"{path}: no {name} is given; name the column under question, or give it for each assemblage"
            )
    kept = particles[particles[question.unit].notna()].reset_index(drop=True)
    if len(kept) < len(particles):
        notes = (*notes, f"{len(particles) - len(kept):,} particles without a {question.unit} are left out.")
    for name in dict.fromkeys((question.label, question.unit, question.strata, *given)):
        if name is not None:
            kept[name] = kept[name].map(lambda value: str(value) if pd.notna(value) else None).astype(object)
    if covariate is not None:
        kept[covariate] = number(kept[covariate])
    return Study(str(told.get("title") or path.parent.name), path, question, kept, measures, notes)


def number(values: Any) -> Any:
    """A column as float64, NaN where it is no number."""
    numbers: Any = pd.to_numeric(values, errors="coerce")
    return numbers.astype(float)


def known(told: Any, where: Any, names: Sequence[str]) -> dict[str, Any]:
    """A mapping of these names alone. BadInput for another, with the one it resembles."""
    if not isinstance(told, dict):
        raise BadInput(f"{where}: a mapping of {', '.join(names)} is needed, not {str(told)[:40]!r}")
    for name in told:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            raise BadInput(f"{where}: {name!r} is not known" + (f": did you mean {near[0]}?" if near else ""))
    return dict(told)


def listed(frame: Frame) -> str:
    return ", ".join(map(str, frame.columns[:30]))


# Assemblages

FIELDS = ("name", "knapper", "years", "skill", *KNOWN, "images", "table", "scale")


def gathered(assemblages: Any, path: Path) -> tuple[Frame, tuple[str, ...], tuple[str, ...]]:
    """The particles of all assemblages, the measures they have, and what was noticed."""
    if not isinstance(assemblages, list) or not assemblages:
        raise BadInput(f"{path}: assemblages is empty: give a list of them, each with a name and a knapper")
    parts, exports, notes, seen = [], {}, [], set()
    for number, told in enumerate(assemblages, 1):
        where = f"{path}: assemblage {number}"
        told = known(told, where, FIELDS)
        name = str(told.get("name") or f"assemblage {number}")
        where = f"{path}: assemblage {name}"
        if name in seen:
            raise BadInput(f"{where}: two are called so; names must differ")
        seen.add(name)
        if "images" not in told and "table" not in told:
            raise BadInput(f"{where}: give images (a folder), table (the analyser's export), or both")
        scale = number_of(told.get("scale"), f"{where}: scale")
        years = number_of(told.get("years"), f"{where}: years")
        rows = None
        if told.get("table"):
            export = tables.read(path.parent / str(told["table"]))
            exports[name] = export
            rows = export.frame.assign(order=np.arange(len(export.frame)))
            notes += [f"{name}: {note}" for note in export.notes]
        if told.get("images"):
            pictures = pictured(path.parent / str(told["images"]), where)
            if rows is None:
                rows = pd.DataFrame({"id": list(pictures), "order": np.arange(len(pictures))})
            rows = joined(rows, pictures, where, notes)
        assert rows is not None
        about = {field: told.get(field) for field in ("knapper", "skill", *KNOWN)}
        rows = rows.assign(**about, years=years, scale=scale, assemblage=name)
        again = rows.groupby("id").cumcount()  # an Id that stands twice, which `tables.read` says
        names = [f"{name}/{i}" + (f"#{k + 1}" if k else "") for i, k in zip(rows["id"], again, strict=True)]
        rows.insert(0, "particle", names)
        parts.append(rows)
    if exports:
        notes += tables.differences(exports)
    particles = pd.concat(parts, ignore_index=True)
    for column, none in (("image", None), ("frames", ())):
        if column not in particles:
            particles[column] = [none] * len(particles)
    particles["frames"] = [each if isinstance(each, tuple) else () for each in particles["frames"]]
    particles["image"] = [each if isinstance(each, str) else None for each in particles["image"]]
    measures = tuple(n for n, measure in tables.MEASURES.items() if n in particles and measure.dimension != "flag")
    return particles, measures, tuple(notes)


def number_of(value: Any, where: str) -> float:
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{where} is {value!r}: give a number") from None


def pictured(folder: Path, where: str) -> dict[str, tuple[str, ...]]:
    """The pictures of each particle, by its id, frames in order: 104.png, or 104_1.png, 104_2.png …; any other file is a
    particle of its own."""
    if not folder.is_dir():
        raise BadInput(f"{where}: images: {folder} is not a folder")
    found: dict[str, list[tuple[int, str]]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in SUFFIXES:
            continue
        match = re.fullmatch(r"0*(\d+)(?:_(\d+))?", file.stem)
        identity = match[1] if match else str(file.relative_to(folder).with_suffix(""))
        found.setdefault(identity, []).append((int(match[2] or 0) if match else 0, str(file.resolve())))
    if not found:
        raise BadInput(f"{where}: images: no images in {folder}")
    return {identity: tuple(path for _, path in sorted(frames)) for identity, frames in found.items()}


def joined(rows: Frame, pictures: dict[str, tuple[str, ...]], where: str, notes: list[str]) -> pd.DataFrame:
    """Rows with their pictures. BadInput where no row has one."""
    frames = [pictures.get(str(identity), ()) for identity in rows["id"]]
    without, over = sum(not each for each in frames), len(set(pictures) - set(map(str, rows["id"])))
    if without == len(rows):
        raise BadInput(
            f"{where}: none of its {len(pictures):,} pictures is named after an Id of its table, as in {rows['id'].iloc[0]}.png"
        )
    if without or over:
        notes.append(
            f"{where.split(': assemblage ')[-1]}: {without:,} rows of its table have no picture and {over:,} pictures no row."
        )
    return rows.assign(frames=frames, image=[each[0] if each else None for each in frames])


# One table


def tabled(told: Any, path: Path) -> tuple[Frame, tuple[str, ...], tuple[str, ...]]:
    """Particles as a table has them, a row each, its columns under their own names."""
    where = f"{path}: particles"
    told = known(told, where, ("table", "image", "assemblage", "scale", "scale_in", "measures"))
    file = path.parent / str(told.get("table"))
    try:
        frame = pd.read_csv(file) if file.suffix.lower() == ".csv" else pd.read_parquet(file)
    except FileNotFoundError:
        raise BadInput(f"{where}: {file}: no such file") from None
    except (OSError, ValueError, UnicodeDecodeError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise BadInput(f"{where}: {file}: {' '.join(str(error).split())[:200]}") from None
    for key in ("image", "assemblage", "scale"):
        if key in told and told[key] not in frame:
            raise BadInput(f"{where}: {key}: no column {told[key]!r} in {file}; there are {listed(frame)}")
    measures = tuple(map(str, told.get("measures") or ()))
    for name in measures:
        if name not in frame:
            raise BadInput(f"{where}: measures: no column {name!r} in {file}; there are {listed(frame)}")
    unit = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3}
    if (of := str(told.get("scale_in", "mm"))) not in unit:
        raise BadInput(f"{where}: scale_in is {of!r}: use mm, cm, m or um, a pixel")
    paths = [
        str((file.parent / each).resolve()) if isinstance(each, str) else None
        for each in (frame[told["image"]] if "image" in told else [None] * len(frame))
    ]
    scale = number(frame[told["scale"]]) * unit[of] if "scale" in told else np.nan
    particles = frame.assign(
        particle=[str(i + 1) for i in range(len(frame))],
        order=np.arange(len(frame)),
        assemblage=frame[told["assemblage"]].astype(str) if "assemblage" in told else "all",
        image=paths,
        frames=[(each,) if each else () for each in paths],
        scale=scale,
    )
    return particles, measures, ()
