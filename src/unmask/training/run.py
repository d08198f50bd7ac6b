"""A run: one folder on disk with settings, log, checkpoints and results."""

import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from unmask.errors import BadInput
from unmask.training import distributed
from unmask.training.state import TIMES


def write(path: Path, text: str) -> None:
    """Write a whole text file or none: beside, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A path beside `out`, of the same ending, to write to; what is there at the end becomes `out`, whole or not at all.
    BadInput if it cannot be written."""
    beside = out.with_name(f".{out.stem}.part{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another --out") from None


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as YAML can hold it."""
    values = dataclasses.asdict(settings)
    return {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v for k, v in values.items()}


def revive(kind: type, values: dict[str, Any]) -> Any:
    """The inverse of `plain`."""
    known = {field.name for field in dataclasses.fields(kind)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    if "out" in values:
        values["out"] = Path(values["out"])
    return kind(**values)


class Run:
    """The folder of one run. `Run.create` begins one, `Run(folder)` opens one that exists. Of several processes only
    rank 0 writes; all must see the folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "settings.yaml").is_file():
            raise BadInput(
                f"{folder} is not a run (it has no settings.yaml): give the --out folder of `unmask pretrain` or another training"
            )
        self._board: SummaryWriter | None = None
        self.torn: list[Path] = []
        """Checkpoints that the last `restore` passed over."""

    @classmethod
    def create(cls, folder: str | Path, settings: dict[str, Any], resume: bool = False) -> "Run":
        """Begin a run, or with `resume` go on with the one that is there. BadInput if the folder cannot be used."""
        folder = Path(folder)
        if distributed.rank() > 0:
            distributed.wait()
            return cls(folder)
        begun = (folder / "settings.yaml").is_file()
        if begun and not resume:
            raise BadInput(f"{folder} already holds a run: choose another --out, or go on with it by --resume")
        if not begun and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BadInput(f"{folder} is not empty and holds no run: choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not begun:
                write(folder / "settings.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            (folder / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise BadInput(f"{folder} cannot be written ({error.strerror}): choose another --out") from None
        distributed.wait()
        return cls(folder)

    @property
    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "settings.yaml").read_text(encoding="utf-8"))

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, or {} where it is not there yet."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        write(self.folder / name, json.dumps(content, indent=2) + "\n")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """BadInput, in one line, if it cannot be written: a full disk, a folder that is gone or read-only."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save turns the one into the other
            why = (
                getattr(error, "strerror", None) or getattr(error.__context__, "strerror", None) or "the disk is full?"
            )
            there = self.checkpoints()
            kept = f"{there[-1].name} is whole" if there else "there is no checkpoint yet"
            raise BadInput(
                f"{self.folder}: {what} cannot be written ({why}); {kept}: make room, then go on by --resume"
            ) from None

    # The log

    def history(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, with what timing.jsonl adds to it."""
        timing = {line["step"]: line for line in self._lines("timing.jsonl")}
        return [line | timing.get(line["step"], dict.fromkeys(TIMES, 0.0)) for line in self._lines("metrics.jsonl")]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget what was logged after `step`, and return the rest: where a resumed run goes on."""
        kept = [line for line in self.history() if line["step"] <= step]
        if distributed.rank() == 0:
            with self.writing("the log"):
                for name in ("metrics.jsonl", "timing.jsonl"):
                    lines = [line for line in self._lines(name) if line["step"] <= step]
                    write(self.folder / name, "".join(json.dumps(line) + "\n" for line in lines))
                self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        return kept

    def log(self, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl and one of timing.jsonl, and the same for TensorBoard."""
        if distributed.rank() > 0:
            return
        times = {name: values[name] for name in ("step", *TIMES) if name in values}
        with self.writing("the log"):
            for name, line in (
                ("timing.jsonl", times),
                ("metrics.jsonl", {k: v for k, v in values.items() if k not in TIMES}),
            ):
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            if self._board is None:
                self._board = SummaryWriter(str(self.folder / "tensorboard"))
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, values["step"])

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any], keep: int = 2) -> None:
        """A checkpoint, written beside, brought to the disk and renamed; the newest `keep` stay."""
        if distributed.rank() > 0:
            return
        path = self.folder / "checkpoints" / f"step-{step:09d}.pt"
        beside = path.with_suffix(".part")
        with self.writing(f"the checkpoint of step {step:,}"):
            try:
                with beside.open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            for old in self.checkpoints()[:-keep]:
                old.unlink()

    def restore(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, None if there is none; `torn` names those passed over on the way. BadInput for
        one that holds code, which is not run."""
        self.torn = []
        for path in reversed(self.checkpoints()):
            try:
                with zipfile.ZipFile(path) as file:
                    damaged = file.testzip() is not None
                if not damaged:
                    return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise BadInput(f"{path} holds more than numbers, perhaps code: it is not opened; delete it") from None
            except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, NotImplementedError):
                pass
            self.torn.append(path)
        return None

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def replace(self, name: str, source: Path) -> None:
        """Put the folder `source`, written beside, in the place of the run's folder `name`."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        source.replace(target)
