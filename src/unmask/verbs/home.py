"""unmask, alone: what to do next, from what is here. It looks quickly, and imports nothing heavy."""

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from unmask.screen import clock, console
from unmask.training.state import document, history, state

DEPTH, LOOKED_AT = 3, 2000
"""How far below a folder runs are looked for, and in how many entries of folders at most."""
SHOWN = 5
"""Runs that are named."""
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
COLOURS = {"learning": "green", "study": "green", "training": "cyan", "being judged": "cyan", "stopped": "yellow"}
SUPERVISED = ("finetune", "distill", "detect", "segment")


@dataclass(frozen=True)
class Next:
    """A folder that some command wrote, and what follows from it."""

    folder: str
    state: str
    """Its verdict; or "training", "being judged", "stopped", "unreadable"."""
    sentence: str
    command: str | None
    """The command that follows."""


def home(folder: Path) -> dict[str, Any]:
    """Print and return what to do next in `folder`: of the newest runs below it their verdicts, and the command that follows
    from each; without any, how to begin."""
    runs, studies, pictures = found(folder)
    shown = [following(path) for path in runs[:SHOWN]]
    for one in shown:
        colour = COLOURS.get(one.state, "red")
        console.print(f"[bold]{escape(one.folder)}[/]  [{colour}]{one.state}[/]: {escape(one.sentence)}")
        if one.command:
            console.print(f"  {escape(one.command)}")
    if len(runs) > SHOWN:
        console.print(f"[dim]and {len(runs) - SHOWN} older runs[/]")
    begin = []
    for path in studies[:1]:
        if not any((run / "tables").is_dir() for run in runs):
            out = shlex.quote(f"{path.parent}-results")
            begin.append((f"unmask study run {shlex.quote(str(path))} --out {out}", "judge this study"))
    if pictures is not None:
        begin.append(
            (f"unmask inspect {shlex.quote(str(pictures))}", "what these images are, and the settings to take")
        )
    if not runs:
        console.print("No run is here yet.")
        begin.append(("unmask quickstart", "real photographs that came along, in minutes"))
        if pictures is None:
            begin.append(("unmask inspect path/to/images", "your own: what they are, and the settings to take"))
    if begin:
        console.print("\nBegin with" if not runs else "\nAlso here")
        for command, what in begin:
            console.print(f"  [bold]{escape(command)}[/]   {what}")
    return {"runs": shown, "older": max(0, len(runs) - SHOWN), "begin": [command for command, _ in begin]}


def found(folder: Path) -> tuple[list[Path], list[Path], Path | None]:
    """Runs at or below a folder, the newest first; files study.yaml that wait to be judged; and a folder of images that is not
    of a run, if there is one."""
    runs, studies, pictures, left = [], [], [], LOOKED_AT

    def entries(here: Path) -> Iterator[os.DirEntry[str]]:
        nonlocal left
        try:
            with os.scandir(here) as inside:
                for entry in inside:
                    if (left := left - 1) < 0:
                        return
                    yield entry
        except OSError:
            return

    def look(here: Path, depth: int) -> None:
        inside = list(entries(here))
        names = {entry.name for entry in inside}
        if names & {"settings.yaml", "ablation.json"}:
            runs.append(here)
        if "study.yaml" in names:
            studies.append(here / "study.yaml")
        elif not names & {"settings.yaml", "ablation.json", "store.json"}:
            if any(name.lower().endswith(PICTURES) for name in names):
                pictures.append(here)
            for entry in inside if depth else ():
                if not entry.name.startswith((".", "__")) and entry.is_dir(follow_symlinks=False):
                    look(Path(entry.path), depth - 1)

    look(folder, DEPTH)
    shallow = min(pictures, key=lambda path: len(path.parts), default=None)
    if (
        shallow is not None
        and len(pictures) > 1
        and shallow != folder
        and all(p.parent == shallow.parent for p in pictures)
    ):
        shallow = shallow.parent  # a folder a class
    return sorted(runs, key=written, reverse=True), studies, shallow


def written(run: Path) -> float:
    """When a run last wrote something, in seconds."""
    names = ("settings.yaml", "metrics.jsonl", "result.json", "probe.json", "ablation.json")
    return max((path.stat().st_mtime for name in names if (path := run / name).is_file()), default=0.0)


def following(run: Path) -> Next:
    """What came of a run, and the command that follows from it."""
    name = shlex.quote(str(run))
    try:
        if (run / "ablation.json").is_file():
            told, _ = document(run / "ablation.json")
            return Next(name, "ablation", f"{told['sentence']} Its page: {name}/report.html", None)
        settings, result, probe = (document(run / file)[0] for file in ("settings.yaml", "result.json", "probe.json"))
        now = state(run, settings, result, history(run)[0])
        if "fixed" in settings:
            if now == "finished":
                said = f"{result['verdict']}: {result['sentence']} Its page: {name}/report.html"
                return Next(name, "study", said, None)
            again = f"unmask study run {shlex.quote(settings['fixed']['study'])} --out {name}"
            return unfinished(name, run, now, again)
        method = settings["method"]
        if now != "finished":
            verb = method if method in (*SUPERVISED, "dqn") else f"pretrain {method}"
            return unfinished(name, run, now, f"unmask {verb} --out {name} --resume")
        if result["verdict"] in ("learning", "starved by the loader"):
            return Next(name, result["verdict"], one_line(result, probe), then(name, method, settings, probe))
        advice = "; ".join(result.get("advice", ())[:1])
        return Next(
            name, result["verdict"], f"{result['sentence']}. Try: {advice}" if advice else result["sentence"], None
        )
    except (KeyError, TypeError, AttributeError):
        return Next(name, "unreadable", "its files are damaged, or of another version of unmask", None)


def unfinished(name: str, run: Path, now: str, again: str) -> Next:
    """A run without a result: `now` training, being judged or stopped; `again` is the command that goes on with it."""
    log, _ = history(run)
    where = f"at step {log[-1]['step']:,}" if log else "before its first line of the log"
    if now == "stopped":
        return Next(name, now, f"{where}; go on with", again)
    since = clock(time.time() - written(run))
    return Next(name, now, f"{where}; it wrote {since} ago. If it was killed:", again)


def one_line(result: dict[str, Any], probe: dict[str, Any]) -> str:
    """What a run is worth: the probe where there is one, else what its verdict rests on."""
    if scores := probe.get("linear"):
        ours, raw = scores["trained"], scores["raw_pixels"]
        return f"linear probe {ours['accuracy']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}], raw pixels {raw['accuracy']:.3f}"
    return result["sentence"]


def then(name: str, method: str, settings: dict[str, Any], probe: dict[str, Any]) -> str:
    """The command that follows from a run that learnt."""
    if method == "dqn":
        return f"unmask dqn play {name} --out {name}/film.gif"
    if method in SUPERVISED:
        return f"unmask predict {name} --data new/images"
    told = settings["settings"]
    data = shlex.quote(str(told.get("data") or "path/to/images"))
    if method == "dvae":
        return f"unmask pretrain beit --tokens {name} --data {data} --out {name}-beit"
    if "linear" not in probe:
        return f"unmask probe {name} --data path/to/labelled"
    labelled = data if not told.get("probe") else f"{data} --test {shlex.quote(str(told['probe']))}"
    return f"unmask finetune {name} --data {labelled} --out {name}-tuned"
