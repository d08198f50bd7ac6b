"""What the folder of a run says, read so that a broken file is a line of words and never an error; read again only when it was
written anew."""

import functools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unmask.training import health
from unmask.training.run import TIMES

Stamp = tuple[int, int] | None
"""When a file was last written, in nanoseconds, and its bytes; None where there is none."""
Lines = tuple[dict[str, Any], ...]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast
NEEDED = ("step", "epoch", "loss", "uninformed", "ratio", "update_ratio")
"""Numbers without which a line of the log says nothing."""
PATIENCE = 20.0
"""Seconds that a log may be silent, at least, before its run counts as stopped; five lines' time where that is more."""
BEGINNING, JUDGING = 180.0, 900.0
"""The same before the first line, while images are read, and after the last, while the encoder is judged."""
EARLY = 10
"""Lines of the log below which nothing is said of a run that goes on."""


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


@dataclass(frozen=True)
class Record:
    """One run as it stands."""

    name: str
    path: Path
    settings: dict[str, Any]
    result: dict[str, Any]
    probe: dict[str, Any]
    test: dict[str, Any]
    log: Lines
    """Whole lines of metrics.jsonl, with what timing.jsonl adds."""
    state: str
    """training, being judged, finished, stopped, or broken: without settings that can be read."""
    trouble: tuple[str, ...]
    """What could not be read, a line each."""

    @property
    def chosen(self) -> dict[str, Any]:
        """Its settings, general ones and its method's."""
        told = (at(self.settings, name) for name in ("settings", "method_settings"))
        return {str(key): value for each in told if isinstance(each, dict) for key, value in each.items()}

    @property
    def method(self) -> str:
        return words(self.settings, "method")

    @property
    def encoder(self) -> str:
        """What it trains, or the run that it goes on from."""
        named = words(self.settings, "encoder", "name") or words(self.settings, "settings", "encoder")
        return named or words(self.settings, "settings", "run")

    @property
    def data(self) -> str:
        return words(self.settings, "data", "name") or words(self.settings, "settings", "data")

    @property
    def step(self) -> int:
        """Steps made."""
        return int(self.log[-1]["step"]) if self.log else int(number(self.result, "steps") or 0)

    @property
    def steps(self) -> int | None:
        """Steps to make."""
        told = number(self.settings, "settings", "steps")
        return None if told is None else int(told)

    @property
    def loss(self) -> tuple[float, float] | None:
        """The loss, and that of a model that learnt nothing, over the last tenth of the log."""
        if (own := number(self.result, "loss")) is not None and self.state == "finished":
            return own, number(self.result, "uninformed_loss") or 0.0
        if not self.log:
            return None
        tail = self.log[-max(1, len(self.log) // 10) :]
        return health.mean([line["loss"] for line in tail]), health.mean([line["uninformed"] for line in tail])

    @property
    def left(self) -> float | None:
        """Seconds until the last step, as the last lines went."""
        if len(self.log) < 2 or not self.steps:
            return None
        tail = self.log[-11:]
        seconds, made = sum(line["seconds"] for line in tail[1:]), tail[-1]["step"] - tail[0]["step"]
        return (self.steps - self.step) * seconds / made if made > 0 and 0 < seconds < math.inf else None

    @property
    def score(self) -> tuple[str, float, float | None, float | None] | None:
        """What it is worth: of which test, how much, and the interval; k-NN while it trains has none."""
        test = at(self.result, "test")
        for key, called in (("ap50", "AP50"), ("miou", "mIoU"), ("map", "mAP"), ("accuracy", "accuracy")):
            if (value := number(test, key)) is not None:
                low, high = ("low", "high") if key == "accuracy" else (f"{key}_low", f"{key}_high")
                return called, value, number(test, low), number(test, high)
        if (value := number(self.probe, "knn", "trained", "accuracy")) is not None:
            return (
                "k-NN",
                value,
                number(self.probe, "knn", "trained", "low"),
                number(self.probe, "knn", "trained", "high"),
            )
        for line in reversed(self.log):
            for key, called in (("knn", "k-NN"), ("test_accuracy", "accuracy"), ("test_miou", "mIoU")):
                if (value := number(line, key)) is not None:
                    return f"{called} so far", value, None, None
        return None

    @functools.cached_property
    def verdict(self) -> health.Verdict | None:
        """What result.json says; of a run without one, what its log says so far, None before there is enough of it."""
        if self.state == "finished":
            advice = at(self.result, "advice")
            told = tuple(line for line in advice if isinstance(line, str)) if isinstance(advice, list) else ()
            return health.Verdict(words(self.result, "verdict"), words(self.result, "sentence"), told)
        if len(self.log) < EARLY:
            return None
        lr = number(self.settings, "settings", "lr") or 0.0
        try:
            found = health.judge(list(self.log), lr, lr)
        except (KeyError, TypeError, ValueError, ArithmeticError):  # a log of another making
            return None
        going = ("train longer", "the loss was still falling")  # it will be, anyway
        return health.Verdict(
            found.word, found.sentence, tuple(line for line in found.advice if not line.startswith(going))
        )


SHOWN = (
    "settings.yaml",
    "metrics.jsonl",
    "timing.jsonl",
    "result.json",
    "probe.json",
    "test.json",
    "report.html",
    "figures",
)


def record(name: str, path: Path) -> Record:
    """The run in a folder, as it stands now: the same object as long as nothing in it changes."""
    settings, trouble = document(path / "settings.yaml")
    now = "broken" if trouble else state(path, settings, document(path / "result.json")[0], history(path)[0])
    return _record(name, path, now, tuple(stamp(path / shown) for shown in SHOWN))


@functools.lru_cache(maxsize=1024)
def _record(name: str, path: Path, now: str, written: tuple[Stamp, ...]) -> Record:
    found = [document(path / file) for file in ("settings.yaml", "result.json", "probe.json", "test.json")]
    log, broken = history(path)
    trouble = [why for _, why in found if why]
    if broken:
        trouble.append(f"metrics.jsonl: {broken:,} of its lines cannot be read, and are left out")
    settings, result, probe, test = (content for content, _ in found)
    return Record(name, path, settings, result, probe, test, log, now, tuple(trouble))


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
