"""unmask ablate METHOD: the same pre-training over a grid of settings, each judged by a linear probe and by fine-tuning, with
what it cost: one table, one figure, one page."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import os
import re
import time
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import tyro
import yaml
from rich.table import Table

from unmask import figures, report
from unmask.data.decode import Preprocess
from unmask.data.source import Source, require_classes
from unmask.data.sources import open_source
from unmask.data.survey import Survey, survey
from unmask.errors import BadInput
from unmask.evaluate.finetune import Settings as Tuning
from unmask.methods import METHODS
from unmask.methods.method import Method
from unmask.screen import console, warn
from unmask.training import distributed, engine, health
from unmask.training.run import Run, plain, write
from unmask.verbs.choices import paper_for
from unmask.verbs.finetune import Finetune, finetune
from unmask.verbs.grids import GRIDS, PUBLISHED, Axis, Point, lengths
from unmask.verbs.load import load_tokenizer
from unmask.verbs.plan import Needs, needs
from unmask.verbs.pretrain import Pretrain, built, pretrain, settled
from unmask.verbs.probe import Probe, aligned, probe
from unmask.verbs.train import check

try:
    import fcntl
except ImportError:  # not on Windows, where nothing keeps two processes from one cell but --share
    fcntl = None

TESTS = {"finetune": "fine-tuned", "linear": "linear probe"}
SHARED = ("data", "out", "resume", "probe", "shard", "image", "label", "group", "strict", "device")
"""Settings of `unmask pretrain` that cannot be varied."""
FREE = ("out", "resume", "probe", "device", "workers", "hold", "shard")
"""Those that may be others when an ablation is gone on with."""


HELP = """Pre-train over a grid of settings, and see which is worth what it costs. Each cell of the grid is a run like any
other, in a folder of its own in --out; then a linear layer is fitted to its frozen encoder, and the encoder is fine-tuned. The
same command goes on where it was stopped, and with more values only what is new is trained.

  unmask ablate mae --vary mask_ratio=0.15,0.5,0.75,0.9 --data images/ --test held-out/ --out runs/ratio
  unmask ablate mae --vary decoder_depth=1,4 --vary seed=0,1,2 --epochs 100 --data images/ --out runs/depth
  unmask ablate mae --grid target --tokens runs/dvae --data images/ --test held-out/ --out runs/target

All other options are those of unmask pretrain METHOD, the same for all cells. The whole is in OUT/report.html, ablation.png,
ablation.csv and ablation.json."""


@dataclass(frozen=True)
class Ablate(Pretrain):
    """Pre-train over a grid of settings, and see which is worth what it costs."""

    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE,VALUE…")] = ()
    """A setting, the method's own or of any training, and its values: mask_ratio=0.5,0.75. Of several, every combination is a
    cell. A value of two numbers has a space between them, in quotes: "crop_scale=0.2 1,0.5 1"; yes and no are true and false."""
    grid: typing.Literal[tuple(GRIDS)] | None = None  # type: ignore[valid-type]
    """What the MAE paper varies, with its values, and what it published beside what is found here."""
    labelled: str | None = None
    """Labelled images to judge with: to fit the linear layer to, and to fine-tune on. Default: --data, if it has labels."""
    test: str | None = None
    """Labelled images to be judged on. Without it the linear layer is judged by five folds, fine-tuning by a fifth held out."""
    finetune_epochs: float | None = None
    """Passes over the labelled images in fine-tuning; 0 leaves it out. Default: what `unmask finetune` takes."""
    finetune_steps: int | None = None
    """Steps of fine-tuning, instead of --finetune-epochs; 0 leaves it out."""
    share: str | None = None
    """K/N: train every Nth cell only, beginning with cell K, in this process; N processes with K from 1 to N, here or on other
    machines that see the folder, train them all. Each writes the table of all that are finished."""
    probe: tyro.conf.Suppress[str | None] = None
    resume: tyro.conf.Suppress[bool] = False
    shard: tyro.conf.Suppress[bool] = False


@dataclass(frozen=True)
class Cell:
    """One pre-training among those of a grid."""

    name: str
    """Of its folder."""
    points: tuple[Point, ...]
    """One of each axis."""
    general: Pretrain
    own: Any

    @property
    def usual(self) -> bool:
        return all(point.usual for point in self.points)

    @property
    def settings(self) -> dict[str, Any]:
        return {name: value for point in self.points for name, value in point.settings.items()}


def ablate(method: str, settings: Ablate, own: Any) -> dict[str, Any]:
    """Train and judge every cell that is not finished, or this process's share; return what ablation.json says of all of them.

    Raises BadInput, before anything is trained, for a setting that there is not, a value that it cannot have, and a cell that
    could not be trained.
    """
    check(settings)
    assert settings.out is not None
    device = distributed.start(engine.choose_device(settings.device))
    if distributed.world() > 1:
        raise BadInput("unmask ablate trains each cell in one process: leave out torchrun, and use --share 1/N to N/N")
    out, mine = settings.out, share(settings.share)
    left_out, axes = axes_of(method, settings, own)
    cells = cells_of(axes, settings, own)
    labelled = settings.labelled or str(settings.data)
    sources = judged_by(settings, labelled)
    fixed = stated(method, settings, own, axes, sources)
    agree(out, fixed)
    seen = survey(sources["data"], sample=2000)
    needed = {cell.name: reckon(method, cell, seen, device) for cell in cells}
    begin(out, fixed)

    def gathered() -> dict[str, Any]:
        return gather(method, settings, own, axes, cells, needed, left_out)

    todo = [cell for number, cell in enumerate(cells) if mine(number)]
    waiting = [cell for cell in todo if not finished(settings, cell)]
    announce(method, settings, axes, cells, todo, waiting, left_out)
    failed: dict[str, str] = {}
    began = time.monotonic()
    for number, cell in enumerate(waiting, 1):
        with alone(out / cell.name) as free:
            if not free:
                console.print(f"\n[bold]{cell.name}[/] is being trained by another process: it is left to that")
                continue
            console.print(f"\n[bold]{cell.name}[/] ({number} of {len(waiting)} to train)")
            try:
                train_cell(method, settings, cell, labelled)
            except (BadInput, torch.OutOfMemoryError, health.Diverged) as error:
                failed[cell.name] = str(error).splitlines()[0]
                warn(f"[red]{cell.name} failed[/]: {failed[cell.name]}")
        left = (time.monotonic() - began) / number * (len(waiting) - number)
        if left:
            console.print(f"{len(waiting) - number} of {len(waiting)} left to train: about {report.duration(left)}")
        keep(out, with_failures(gathered(), failed))
    result = with_failures(gathered(), failed)
    keep(out, result)
    show(result)
    page, picture, table = (out / name for name in ("report.html", "ablation.png", "ablation.csv"))
    console.print(f"Report: {page}   figure: {picture}   table: {table}")
    return result


# What is varied


def axes_of(method: str, settings: Ablate, own: Any) -> tuple[list[str], list[Axis]]:
    """What was left out of a ready-made grid, and why; and all that is varied. BadInput for what cannot be."""
    if not settings.vary and settings.grid is None:
        raise BadInput(
            f"nothing is varied: add --vary, as in --vary mask_ratio=0.5,0.75, or --grid, one of {', '.join(GRIDS)}"
        )
    left_out: list[str] = []
    axes = [] if settings.grid is None else [ready(method, settings, own, left_out)]
    axes += [parsed(method, text) for text in settings.vary]
    told: dict[str, str] = {}
    for axis in axes:
        for name in {name for point in axis.points for name in point.settings}:
            if name in told:
                raise BadInput(f"{name} is varied twice, by {told[name]} and {axis.name}: keep one")
            told[name] = axis.name
            given = next((each for each in (settings, own) if hasattr(each, name)), None)
            default = next(field.default for field in dataclasses.fields(given) if field.name == name)  # type: ignore[arg-type]
            value = getattr(given, name)
            if value != default and not (settings.grid == "length" and axis is axes[0]):  # which is in shares of it
                raise BadInput(
                    f"--{name.replace('_', '-')} {said(value)} is fixed, and varied by {axis.name}: leave one out"
                )
    return left_out, axes


def ready(method: str, settings: Ablate, own: Any, left_out: list[str]) -> Axis:
    """A ready-made grid, as it fits this method and these settings."""
    name = str(settings.grid)
    if name not in GRIDS:
        raise BadInput(f"no grid is called {name!r}: use one of {', '.join(GRIDS)}")
    if name == "length":
        if settings.steps is not None:
            return lengths("steps", settings.steps)
        papers = METHODS[method].PAPERS
        first = next(iter(papers.values())).encoder
        usual = settings.epochs or paper_for(papers, settings.encoder or first).epochs
        return lengths("epochs", usual)
    if method != "mae":
        raise BadInput(f"--grid {name} is of MAE's settings: use unmask ablate mae, or --grid length")
    axis = GRIDS[name]
    if name == "target" and own.tokens is None:
        left_out.append(
            "target=tokens is left out, for it needs a tokenizer: train one by `unmask pretrain dvae`, then name its run by "
            "--tokens"
        )
        axis = replace(axis, points=tuple(point for point in axis.points if point.label != "tokens"))
    return axis


def parsed(method: str, text: str) -> Axis:
    """One --vary, its values read as the command line would read them. BadInput for a slip."""
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not values.strip():
        raise BadInput(f"--vary {text}: give a setting and its values, as in --vary mask_ratio=0.5,0.75")
    kinds = (Pretrain, METHODS[method].Settings)
    known = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
    known = {key: field for key, field in known.items() if key not in SHARED}
    if name not in known:
        why = f"--{name.replace('_', '-')} is the same for all cells" if name in SHARED else ""
        near = difflib.get_close_matches(name, known, n=1)
        raise BadInput(
            f"--vary {name}: "
            + (why or f"no setting of {method} is called so" + (f": did you mean {near[0]}?" if near else ""))
            + ("" if why or near else f"; unmask pretrain {method} --help lists them")
        )
    hint = typing.get_type_hints(next(kind for kind in kinds if name in kind.__dataclass_fields__))[name]
    points, default = [], known[name].default
    for typed in values.split(","):
        value = read(name, hint, typed.strip())
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        points.append(Point(said(value), {name: value}, usual=default is not None and value == default, value=number))
    if len({point.label for point in points}) < len(points):
        raise BadInput(f"--vary {text}: a value is there twice")
    return Axis(name, tuple(points))


def read(name: str, hint: Any, typed: str) -> Any:
    """A value as the command line reads it. BadInput, saying what fits, for another."""
    kinds = (
        [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if type(None) in typing.get_args(hint)
        else [hint]
    )
    kind = kinds[0]
    several = typing.get_origin(kind) is tuple
    words = typed.split() if several else [typed.capitalize() if kind is bool else typed]
    silent = io.StringIO()
    try:
        with contextlib.redirect_stderr(silent), contextlib.redirect_stdout(silent):
            return tyro.cli(kind, args=words)
    except SystemExit:
        fits = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind)
        if typing.get_origin(kind) is typing.Literal:
            fits = f"one of {', '.join(map(str, typing.get_args(kind)))}"
        fits = fits or ("numbers with a space between them, in quotes" if several else "another value")
        raise BadInput(f"--vary {name}={typed}: {name} takes {fits}") from None


def said(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple | list):
        return " ".join(map(said, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def cells_of(axes: Sequence[Axis], settings: Ablate, own: Any) -> list[Cell]:
    """Every combination of what is varied, with all its settings. BadInput for two of one name."""
    base: dict[str, Any] = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Pretrain)}
    assert settings.out is not None
    cells = []
    for points in itertools.product(*(axis.points for axis in axes)):
        label = ",".join(f"{axis.name}={point.label}" for axis, point in zip(axes, points, strict=True))
        name = re.sub(r"[^\w.=,+-]+", "-", label)
        told = {key: value for axis in axes for key, value in axis.unless.items() if getattr(own, key) is None}
        told |= {key: value for point in points for key, value in point.settings.items()}
        mine = {key: value for key, value in told.items() if key not in base}
        theirs = own if "target" not in told or told["target"] == "tokens" else replace(own, tokens=None)
        asked = {key: value for key, value in told.items() if key in base}
        general = Pretrain(**{**base, **asked, "resume": True})
        probed = settings.test if settings.labelled is None else None
        general = replace(general, out=settings.out / name, probe=probed)
        cells.append(Cell(name, points, general, replace(theirs, **mine)))
    names = [cell.name for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"two cells would be called {twice[0]}: vary settings whose values differ in letters or digits")
    return cells


def share(text: str | None) -> Any:
    """Whether a cell, by its number from 0, is for this process. BadInput for anything but K/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise BadInput(f"--share {text}: give K/N with K from 1 to N, as in 1/4 for the first of four processes")
    first, count = int(match[1]) - 1, int(match[2])
    return lambda number: number % count == first


def reckon(method: str, cell: Cell, seen: Survey, device: torch.device) -> dict[str, Any]:
    """What a step of a cell needs, played through without computing it: BadInput for one that could not be trained."""
    kind, general = METHODS[method], cell.general
    try:
        check(general)
        choices, own = settled(kind, general, cell.own, seen, device)
        value = {name: choice.value for name, choice in choices.items()}
        tokens, channels = getattr(own, "tokens", None), value["channels"]
        given: dict[str, Any] = {}
        if tokens:
            given["tokenizer"] = load_tokenizer(tokens, Preprocess(channels, (0.5,) * channels, (0.25,) * channels))

        def make() -> Method:
            return kind(built(kind, value, own), own, **given)

        precision, _ = engine.choose_precision(general.precision, device)
        local = value["batch_size"] // general.accumulate
        with console.status(f"{cell.name}: playing a step through"):
            need: Needs = needs(make, local, precision, value["optimiser"])
    except BadInput as error:
        raise BadInput(f"{cell.name}: {error}") from None
    return {
        "gflop": need.flops / local / 1e9,
        "parameters": need.parameters,
        "encoder_parameters": need.encoder_parameters,
        "encoder": value["encoder"],
        "steps": value["steps"],
        "batch_size": value["batch_size"],
    }


# What all cells have in common


def opened(name: str, settings: Pretrain) -> Source:
    return open_source(name, image=settings.image, label=settings.label, group=settings.group)


def judged_by(settings: Ablate, labelled: str) -> dict[str, Source]:
    """The images of the whole, by what they are for. BadInput where there are no labels to judge by."""
    sources = {"data": opened(str(settings.data), settings), "labelled": opened(labelled, settings)}
    if "label" not in sources["labelled"].table:
        raise BadInput(
            f"{labelled}: no labels to judge by; name labelled images by --labelled, or the column by --label"
        )
    require_classes(sources["labelled"])
    if settings.test is not None:
        sources["test"] = aligned(opened(settings.test, settings), sources["labelled"])
    return sources


def stated(method: str, settings: Ablate, own: Any, axes: Sequence[Axis], sources: dict[str, Source]) -> dict[str, Any]:
    """What ablation.yaml says: all that must be the same whenever the ablation is gone on with."""
    general = {key: value for key, value in plain(settings).items() if key not in (*FREE, "vary", "grid", "share")}
    return {
        "unmask": version("unmask"),
        "method": method,
        "varied": [axis.name for axis in axes],
        "settings": general,
        "method_settings": plain(own),
        "fingerprints": {name: source.fingerprint() for name, source in sources.items()},
    }


def agree(out: Path, fixed: dict[str, Any]) -> None:
    """BadInput, naming each difference, if the folder holds another ablation, or something else."""
    path = out / "ablation.yaml"
    if not path.is_file():
        if out.is_dir() and any(not inside.name.startswith(".") for inside in out.iterdir()):
            raise BadInput(f"{out} is not empty and holds no ablation: choose another --out")
        return
    began = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, what in (("method", "is of"), ("varied", "varies")):
        if began[key] != fixed[key]:
            theirs, ours = (", ".join([each] if isinstance(each, str) else each) for each in (began[key], fixed[key]))
            raise BadInput(f"the ablation in {out} {what} {theirs}, not {ours}: choose another --out")
    other = []
    for key in ("settings", "method_settings"):
        for name, value in fixed[key].items():
            before = began[key].get(name)
            if value != before and not (name.startswith("finetune_") and not tunes(began["settings"])):
                other.append(f"--{name.replace('_', '-')} {said(value)} (it began with {said(before)})")
    if other:
        raise BadInput(
            f"the ablation in {out} has other settings than {', '.join(other)}: its cells could not be compared; use the "
            "same settings, or another --out"
        )
    for name, before in began["fingerprints"].items():
        if fixed["fingerprints"].get(name) != before:
            raise BadInput(
                f"--{name}: these are not the images that the ablation in {out} began with: bring them back, or choose "
                "another --out"
            )


def begin(out: Path, fixed: dict[str, Any]) -> None:
    """The folder, with what all cells have in common. BadInput if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "ablation.yaml", yaml.safe_dump(fixed, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another --out") from None


# One cell


def tunes(settings: Any) -> bool:
    """Whether cells are fine-tuned."""
    told = settings if isinstance(settings, dict) else dataclasses.asdict(settings)
    return told["finetune_epochs"] != 0 and told["finetune_steps"] != 0


def probed_in(settings: Ablate, cell: Cell) -> str:
    """The file with what the linear probe of a cell found."""
    return "probe.json" if settings.labelled is None else "labelled.json"


def finished(settings: Ablate, cell: Cell) -> bool:
    """Whether nothing is left to do for a cell."""
    folder = cell.general.out
    assert folder is not None
    if not (folder / "result.json").is_file():
        return False
    if Run(folder).read("result.json")["verdict"] == "diverged":
        return True
    there = [folder / probed_in(settings, cell), *([folder / "finetune" / "result.json"] if tunes(settings) else [])]
    return all(path.is_file() for path in there)


def train_cell(method: str, settings: Ablate, cell: Cell, labelled: str) -> None:
    """Pre-train, probe and fine-tune what is not finished yet."""
    folder = cell.general.out
    assert folder is not None
    if not (folder / "result.json").is_file():
        pretrain(method, cell.general, cell.own)
    if Run(folder).read("result.json")["verdict"] == "diverged":
        return
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    common: dict[str, Any] = {**columns, "device": settings.device, "precision": settings.precision}
    judged = folder / probed_in(settings, cell)
    if not judged.is_file():
        workers = 1 if settings.workers is None else settings.workers
        told = {**common, "workers": workers, "seed": cell.general.seed, "out": judged}
        probe(Probe(str(folder), labelled, settings.test, **told))
    if tunes(settings) and not (folder / "finetune" / "result.json").is_file():
        lengths = {"epochs": settings.finetune_epochs, "steps": settings.finetune_steps}
        told = {**common, **lengths, "seed": cell.general.seed, "workers": settings.workers, "hold": settings.hold}
        out = folder / "finetune"
        finetune(Finetune(run=str(folder), data=labelled, test=settings.test, out=out, resume=True, **told), Tuning())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is at this cell; none will be meanwhile. The system gives the lock back when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        free = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:  # a file system without locks: --share alone keeps processes apart
                pass
        yield free


# What came out


def gather(
    method: str,
    settings: Ablate,
    own: Any,
    axes: Sequence[Axis],
    cells: Sequence[Cell],
    needed: dict[str, dict[str, Any]],
    left_out: list[str],
) -> dict[str, Any]:
    """What ablation.json says: of every cell what its own files say, whoever trained it."""
    reference = next((cell.name for cell in cells if cell.usual), cells[0].name)
    lines = [line_of(settings, axes, cell, needed[cell.name], needed[reference]["gflop"]) for cell in cells]
    judged = next((probe for line in lines if (probe := line.pop("probe", None))), {})
    for line in lines:
        line.pop("probe", None)
    first = needed[reference]
    facts = [f"{method} with {first['encoder']}" if len({n["encoder"] for n in needed.values()}) == 1 else method]
    if len({each["steps"] for each in needed.values()}) == 1:
        facts.append(f"{first['steps']:,} steps of {first['batch_size']}")
    result = {
        "method": method,
        "here": ", ".join([*facts, f"on {Path(str(settings.data)).name}"]),
        "data": settings.data,
        "labelled": settings.labelled or settings.data,
        "test": settings.test,
        "grid": settings.grid,
        "what": axes[0].what if settings.grid else "",
        "axes": [
            {"name": axis.name, "numeric": axis.numeric, "labels": [p.label for p in axis.points]} for axis in axes
        ],
        "reference": reference,
        "protocol": judged.get("protocol"),
        "majority": judged.get("majority", {}).get("accuracy"),
        "raw_pixels": judged.get("linear", {}).get("raw_pixels"),
        "published": PUBLISHED if any(line["published"] for line in lines) else None,
        "left_out": left_out,
        "constants": constants(settings, own),
        "cells": lines,
    }
    result["sentence"] = sentence(result)
    return result


def constants(settings: Ablate, own: Any) -> dict[str, Any]:
    """What was asked for, the same in all cells."""
    told = {}
    for given in (settings, own):
        for field in dataclasses.fields(given):
            if (value := getattr(given, field.name)) != field.default and field.name not in (
                *FREE,
                "vary",
                "grid",
                "share",
            ):
                told[field.name] = said(value)
    return told


def line_of(
    settings: Ablate, axes: Sequence[Axis], cell: Cell, need: dict[str, Any], reference: float
) -> dict[str, Any]:
    """One cell as ablation.json has it; "probe" is what its probe says whole."""
    folder, labels = cell.general.out, {axis.name: p.label for axis, p in zip(axes, cell.points, strict=True)}
    assert folder is not None
    line: dict[str, Any] = {
        "name": cell.name,
        "labels": labels,
        "values": {axis.name: p.value for axis, p in zip(axes, cell.points, strict=True) if axis.numeric},
        "settings": {name: said(value) for name, value in cell.settings.items()},
        "usual": cell.usual,
        "status": "not finished",
        "why": None,
        "finetune": None,
        "linear": None,
        "published": None,
        "gflop": need["gflop"],
        "times": need["gflop"] / reference,
        "parameters": need["parameters"],
        "encoder_parameters": need["encoder_parameters"],
    }
    if len(axes) == 1 and (published := cell.points[0].published):
        line["published"] = dict(zip(TESTS, published, strict=True))
    if not (folder / "result.json").is_file():
        return line
    run = Run(folder)
    done, judged = run.read("result.json"), run.read(probed_in(settings, cell))
    line |= {name: done.get(name) for name in ("verdict", "loss", "uninformed_loss", "images_per_second", "seconds")}
    if done["verdict"] == "diverged":
        return line | {"status": "diverged", "why": done["sentence"]}
    tuned = run.read("finetune/result.json") if tunes(settings) else {}
    line["status"] = "finished" if finished(settings, cell) else "not finished"
    if "linear" in judged:
        line["linear"] = brief(judged["linear"]["trained"])
        line["untrained"] = brief(judged["linear"]["untrained"])
        line["probe"] = judged
    if tuned:
        line["finetune_seconds"] = tuned["seconds"]
        if tuned.get("test"):
            line["finetune"] = brief(tuned["test"])
        else:
            line["why"] = f"fine-tuning: {tuned['verdict']}, {tuned['sentence']}"
    return line


def brief(score: dict[str, Any]) -> dict[str, float]:
    return {name: score[name] for name in ("accuracy", "low", "high")}


def with_failures(result: dict[str, Any], failed: dict[str, str]) -> dict[str, Any]:
    """The same, with why cells failed in this process."""
    for line in result["cells"]:
        if line["name"] in failed:
            line |= {"status": "failed", "why": failed[line["name"]]}
    return result


def sentence(result: dict[str, Any]) -> str:
    """Which cell is best, and which cannot be told from it."""
    parts = []
    for test, name in TESTS.items():
        lines = sorted((x for x in result["cells"] if x[test]), key=lambda x: -x[test]["accuracy"])
        if not lines:
            continue
        best, score = lines[0], lines[0][test]
        near = [label(line) for line in lines[1:] if line[test]["high"] >= score["low"]]
        figure = f"{label(best)} {score['accuracy']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        if len(lines) == 1:
            parts.append(f"{name}, {figure} alone is finished")
        elif len(near) == len(lines) - 1:
            parts.append(f"{name}, none is clearly better than any other, highest {figure}")
        else:
            told = f"not clearly above {', '.join(near)}" if near else "clearly above all others"
            parts.append(f"{name}, {figure} is best, {told}")
    if not parts:
        return "No cell is finished yet."
    words = "; ".join(parts) + "."
    dearest = max((line for line in result["cells"]), key=lambda line: line["times"])
    if dearest["times"] > 1.2:
        usual = next(line for line in result["cells"] if line["name"] == result["reference"])
        words += f" An image costs {dearest['times']:.1f} times as many operations with {label(dearest)} as with {label(usual)}."
    open_ = sum(line["status"] == "not finished" for line in result["cells"])
    if open_:
        words += f" {open_} of {len(result['cells'])} cells are not finished."
    return words[0].upper() + words[1:]


def label(line: dict[str, Any]) -> str:
    return " with ".join(f"{name} {value}" for name, value in line["labels"].items())


def keep(out: Path, result: dict[str, Any]) -> None:
    """ablation.json, .csv and .png and report.html, each whole or not at all."""
    png = figures.ablation(result)
    try:
        write(out / "ablation.json", json.dumps(result, indent=2) + "\n")
        write(out / "ablation.csv", pd.DataFrame([flat(line) for line in result["cells"]]).to_csv(index=False))
        write(out / "report.html", report.ablation(result, png))
        beside = out / f".ablation.png.{os.getpid()}"
        beside.write_bytes(png)
        beside.replace(out / "ablation.png")
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): make room, then give the same command") from None


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A cell as a row of the table."""
    row = {"cell": line["name"], **line["labels"], "status": line["status"]}
    for test in TESTS:
        for key in ("accuracy", "low", "high"):
            row[test if key == "accuracy" else f"{test}_{key}"] = (line[test] or {}).get(key)
    for test in TESTS:
        row[f"published_{test}"] = (line["published"] or {}).get(test)
    names = ("loss", "uninformed_loss", "gflop", "times", "parameters", "encoder_parameters", "images_per_second")
    return row | {name: line.get(name) for name in (*names, "seconds", "finetune_seconds")}


def announce(
    method: str,
    settings: Ablate,
    axes: Sequence[Axis],
    cells: Sequence[Cell],
    todo: Sequence[Cell],
    waiting: Sequence[Cell],
    left_out: list[str],
) -> None:
    """Say what is about to happen."""
    varied = " x ".join(f"{axis.name} ({', '.join(point.label for point in axis.points)})" for axis in axes)
    console.print(f"[bold]{method}[/] by {varied}: {len(cells)} cells, into {settings.out}")
    done = len(todo) - len(waiting)
    mine = f"; {len(todo)} are this process's" if settings.share else ""
    then = "pre-trained, probed and fine-tuned" if tunes(settings) else "pre-trained and probed"
    console.print(f"each {then}{mine}; {done} finished, {len(waiting)} to train")
    for words in left_out:
        warn(f"[yellow]{words}[/]")


def show(result: dict[str, Any]) -> None:
    """The table and the sentence, on the screen."""
    published = result["published"] is not None
    heads = [*(axis["name"] for axis in result["axes"]), *TESTS.values(), *(["published"] if published else [])]
    heads += ["loss", "GFLOP", "images/s", "time"]
    table = Table(*heads, title=result["here"], title_justify="left", box=None, padding=(0, 1, 0, 0))

    def cell(score: dict[str, float] | None) -> str:
        return "" if score is None else f"{score['accuracy']:.3f} [dim]±{(score['high'] - score['low']) / 2:.3f}[/]"

    for line in result["cells"]:
        row = list(line["labels"].values())
        row[-1] += " [dim]*[/]" if line["usual"] else ""
        if line["status"] in ("finished", "not finished") and line["linear"]:
            row += [cell(line[test]) for test in TESTS]
        else:
            row += [f"[{'red' if line['status'] in ('diverged', 'failed') else 'yellow'}]{line['status']}[/]", ""]
        if published:
            told = line["published"]
            row.append(f"{told['finetune']:.1f}/{told['linear']:.1f}" if told else "")
        row.append(report.share(line["loss"] / line["uninformed_loss"]) if line.get("loss") else "")
        row.append(f"{line['gflop']:.3g} [dim]{line['times']:.2f}x[/]")
        row += [report.count(line.get("images_per_second")), report.duration(line.get("seconds"))]
        table.add_row(*row)
    console.print()
    console.print(table)
    notes = (
        [f"*: the {'paper' if result['grid'] else 'method'}'s own"]
        if any(line["usual"] for line in result["cells"])
        else []
    )
    notes += ["loss: of that of a model that learnt nothing", "GFLOP: of training, an image", "time: of pre-training"]
    notes += [f"{result['published']}, fine-tuned / linear"] if published else []
    console.print(f"[dim]{'; '.join(notes)}[/]")
    for line in result["cells"]:
        if line["why"]:
            warn(f"[yellow]{line['name']}[/]: {line['why']}")
        elif line.get("verdict") not in ("learning", None):
            warn(f"[yellow]{line['name']}[/]: {line['verdict']}")
    console.print(result["sentence"])
