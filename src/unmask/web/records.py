"""A run as the page shows it: what its folder says, read again only when it was written anew."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.rl import judge
from unmask.training import health
from unmask.training.state import Lines, Stamp, at, document, history, number, stamp, state, words

EARLY = 10
"""Lines of the log below which nothing is said of a run that goes on."""


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
        if (value := number(self.result, "score", "mean")) is not None:
            return "score", value, number(self.result, "score", "low"), number(self.result, "score", "high")
        for line in reversed(self.log):
            for key, called in (
                ("score", "score"),
                ("knn", "k-NN"),
                ("test_accuracy", "accuracy"),
                ("test_miou", "mIoU"),
            ):
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
            found = judge.so_far(list(self.log)) if self.method == "dqn" else health.judge(list(self.log), lr, lr)
        except (KeyError, TypeError, ValueError, ArithmeticError):  # a log of another making
            return None
        if found is None:
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
