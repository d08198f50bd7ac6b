"""What the folder of a run says, read so that a broken file is a line of words and never an error, and whether the run trains
now. It imports nothing heavy."""

import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import yaml

Stamp = tuple[int, int] | None
"""When a file was last written, in nanoseconds, and its bytes; None where there is none."""
Lines = tuple[dict[str, Any], ...]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast
TIMES = ("images_per_second", "loader_wait", "seconds")
"""What of a line of the log goes to timing.jsonl: metrics.jsonl has only what is the same whenever it is run again."""
NEEDED = ("step", "epoch", "loss", "uninformed", "ratio", "update_ratio")
"""Numbers without which a line of the log says nothing."""
PATIENCE = 20.0
"""Seconds that a log may be silent, at least, before its run counts as stopped; five lines' time where that is more."""
BEGINNING, JUDGING = 180.0, 900.0
"""The same before the first line, while images are read, and after the last, while the encoder is judged."""


def at(found: Any, *keys: str) -> Any:
    """What stands there in nested dicts, None where nothing does."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def number(found: Any, *keys: str) -> float | None:
    """The number that stands there, None where there is none that is finite."""
    value = at(found, *keys)
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if real else None


def words(found: Any, *keys: str) -> str:
    """The text that stands there, empty where there is none."""
    value = at(found, *keys)
    return value if isinstance(value, str) else ""


def stamp(path: Path) -> Stamp:
    """When a file was last written, and how large it is."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size


def state(path: Path, settings: dict[str, Any], result: dict[str, Any], log: Lines) -> str:
    """Whether a run trains now: a log that is written to says so, as none else does."""
    logs = [path / "metrics.jsonl", *(path.glob("*/metrics.jsonl") if at(settings, "parts") else ())]
    written = max((told[0] for each in logs if (told := stamp(each))), default=0)
    finished = stamp(path / "result.json")
    if "verdict" in result and finished:
        whole = bool(log) and result.get("steps") == log[-1]["step"]  # whenever its files were copied here
        if whole or finished[0] >= written:
            return "finished"
    begun = stamp(path / "settings.yaml")
    silent = time.time() - max(written, begun[0] if begun else 0) / 1e9
    steps = number(settings, "settings", "steps")
    if log and steps and log[-1]["step"] >= steps:
        return "being judged" if silent < JUDGING else "stopped"
    usual = max((line["seconds"] for line in log[-5:]), default=0.0)
    return "training" if silent < (max(PATIENCE, 5 * usual) if written else BEGINNING) else "stopped"


def document(path: Path) -> tuple[dict[str, Any], str]:
    """A YAML or JSON file, {} where there is none or it cannot be read, and then why."""
    return _document(path, stamp(path))


@functools.lru_cache(maxsize=4096)
def _document(path: Path, written: Stamp) -> tuple[dict[str, Any], str]:
    if written is None:
        return {}, "" if path.suffix == ".json" else f"{path.name} is gone"
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=LOADER) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = min(mark.line, text.rstrip().count("\n")) + 1 if mark else getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        return {}, f"{path.name} cannot be read{where}: it is damaged or half-written"
    return (found, "") if isinstance(found, dict) else ({}, f"{path.name} does not say what it should: it is damaged")


def history(folder: Path) -> tuple[Lines, int]:
    """The lines of the log that can be read, and how many cannot. A last line that is being written is none of them."""
    return _history(folder, stamp(folder / "metrics.jsonl"), stamp(folder / "timing.jsonl"))


@functools.lru_cache(maxsize=256)
def _history(folder: Path, written: Stamp, timed: Stamp) -> tuple[Lines, int]:
    lines, broken = _lines(folder / "metrics.jsonl") if written else ([], 0)
    timing = {line["step"]: line for line in (_lines(folder / "timing.jsonl")[0] if timed else ()) if "step" in line}
    whole = [line for line in lines if all(key in line for key in NEEDED) and math.isfinite(line["step"])]
    times = [timing.get(line["step"], {}) for line in whole]
    told = tuple(
        {**line, **{name: time.get(name, 0.0) for name in TIMES}} for line, time in zip(whole, times, strict=True)
    )
    return told, broken + len(lines) - len(whole)


def _lines(path: Path) -> tuple[list[dict[str, float]], int]:
    """Lines of JSON with their numbers, NaN among them, and how many are none."""
    try:
        written = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return [], 0
    found, broken = [], 0
    for line in written[:-1]:
        try:
            values = json.loads(line).items()
        except (ValueError, AttributeError, RecursionError):
            broken += 1
            continue
        found.append({k: v for k, v in values if isinstance(v, int | float) and not isinstance(v, bool)})
    return found, broken
