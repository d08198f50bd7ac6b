"""What the page may open, by the names that it shows. A name that comes from a browser is looked up here and nowhere else: it
never becomes a path."""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.data.decode import Preprocess
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.methods.mae import MAE
from unmask.models import Encoder
from unmask.training.run import Run
from unmask.web.uploads import Uploads

DEPTH = 3
"""How far below a folder runs are looked for."""
OWN = "own"
"""What a run's own images are called among the collections, which are called by what was typed; `./own` is a folder."""
FRESH = 2.0
"""Seconds for which what was found there stands."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """Runs, encoders and collections by name. Safe to be asked from several threads."""

    roots: tuple[Path, ...]
    """Folders of runs, single runs, or encoders from elsewhere."""
    load: Callable[[Path], tuple[Encoder, Preprocess]]
    """Opens an encoder."""
    load_mae: Callable[[Path], tuple[MAE, Preprocess]]
    """Opens a whole masked autoencoder."""
    collections: Mapping[str, Source]
    """Images to pick samples from, and to look for neighbours in."""
    uploads: Uploads = field(default_factory=Uploads)
    """Images that visitors have sent."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def folders(self) -> dict[str, Path]:
        """Every folder with a settings.yaml, the newest first: runs and studies, as they are now."""
        return _folders(self.roots, int(time.monotonic() / FRESH))

    def studies(self) -> dict[str, Path]:
        """Folders that `unmask study run` wrote."""
        return {name: path for name, path in self.folders().items() if (path / "tables").is_dir()}

    def runs(self) -> dict[str, Path]:
        """Folders that a training wrote."""
        studies = self.studies()
        return {name: path for name, path in self.folders().items() if name not in studies}

    def encoders(self) -> dict[str, Path]:
        """Runs that have an encoder by now, and encoders from elsewhere."""
        trained = {name: path for name, path in self.runs().items() if (path / "encoder" / "config.json").is_file()}
        return trained | {
            root.name: root for root in self.roots if not any(_with_settings(root, DEPTH)) and _foreign(root)
        }

    def autoencoders(self) -> dict[str, Path]:
        """Of these the masked autoencoders of pixels, and what may be one."""
        return {name: path for name, path in self.encoders().items() if _reconstructs(path)}

    def encoder(self, name: str) -> tuple[Encoder, Preprocess]:
        """The encoder called so. BadInput where there is none, or it cannot be read."""
        return self._opened(self.load, self._named(self.encoders(), name))

    def autoencoder(self, name: str) -> tuple[MAE, Preprocess]:
        """The masked autoencoder called so. BadInput where there is none, or it cannot be read."""
        return self._opened(self.load_mae, self._named(self.autoencoders(), name))

    def run(self, name: str) -> Path:
        """The folder of the run called so. BadInput where there is none."""
        return self._named(self.runs(), name)

    def study(self, name: str) -> Path:
        """The folder of the study called so. BadInput where there is none."""
        return self._named(self.studies(), name)

    def collection(self, name: str) -> Source:
        """The images called so. BadInput where there are none."""
        return self._named(self.collections, name)

    def images(self, encoder: str | None, collection: str) -> Source:
        """The images called so; for OWN those that the encoder learnt from. BadInput where there are none."""
        return self.own(encoder or "") if collection == OWN else self.collection(collection)

    def offered(self, encoder: str | None) -> list[tuple[str, str]]:
        """What to call the collections beside an encoder, and their names: its own first, if it is a run."""
        own = [("its own images", OWN)] if encoder in self.runs() else []
        return own + [(name, name) for name in self.collections]

    def own(self, name: str) -> Source:
        """The images that the run called so learnt from, as they are now. BadInput where they cannot be opened any more, or would
        be fetched from elsewhere."""
        began = Run(self.run(name)).settings
        data, told = (began.get("data") or {}).get("name"), began.get("settings") or {}
        if not data:
            raise BadInput(f"{name} does not say what it learnt from: choose another collection")
        if data.startswith("hf:"):
            raise BadInput(
                f"{name} learnt from {data}, which may have to be fetched: start `unmask ui` with --data {data}"
            )
        columns = {column: str(told.get(column) or column) for column in ("image", "label", "group")}
        try:
            return _source(data, **columns)
        except (BadInput, OSError) as error:
            raise BadInput(f"{name} learnt from {data}, which cannot be opened here: {error}") from None

    def written(self, name: str) -> int:
        """When the encoder called so was last written, in nanoseconds."""
        return _written(self._named(self.encoders(), name))

    def _named(self, there: Mapping[str, Any], name: str) -> Any:
        if name not in there:
            raise BadInput(f"there is no {name!r} here any more: load the page anew")
        return there[name]

    def _opened(self, load: Callable, path: Path) -> Any:
        with self.lock:  # two who ask at once open it once
            return _open(load, path, _written(path))


@functools.lru_cache(maxsize=4)
def _folders(roots: tuple[Path, ...], now: int) -> dict[str, Path]:
    """Every folder with a settings.yaml by its name, the newest first; `now`, so that it is looked for anew after a while."""
    found: dict[str, Path] = {}
    for root in roots:
        for path in _with_settings(root, DEPTH):
            inside = path.relative_to(root).as_posix()
            name = inside if len(roots) == 1 and inside != "." else (root / inside).resolve().name
            while name in found:  # the same name below another root
                name = f"{name}′"
            found[name] = path
    return dict(sorted(found.items(), key=lambda each: -_changed(each[1] / "settings.yaml")))


@functools.lru_cache(maxsize=6)
def _open(load: Callable[[Path], Any], path: Path, newest: int) -> Any:
    """What `load` makes of a path; `newest`, when it was last written, so that a run that goes on is opened anew."""
    return load(path)


@functools.lru_cache(maxsize=6)
def _source(data: str, **columns: str) -> Source:
    """Images that a run learnt from, found once."""
    return open_source(data, **columns)


def _written(path: Path) -> int:
    return max(map(_changed, (path, *path.glob("encoder/*"), *path.glob("checkpoints/*"))))


def _changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 if it is gone by now."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _with_settings(root: Path, depth: int) -> list[Path]:
    """Folders with a settings.yaml at `root` or at most `depth` below; what lies inside of one is its own."""
    if (root / "settings.yaml").is_file():
        return [root]
    if depth == 0 or not root.is_dir():
        return []
    inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [found for path in inside for found in _with_settings(path, depth - 1)]


def _foreign(root: Path) -> bool:
    """Whether it may be an encoder from elsewhere: a file, or a folder with a config.json."""
    return root.is_file() or (root / "config.json").is_file()


@functools.lru_cache(maxsize=1024)
def _reconstructs(path: Path) -> bool:
    """Whether it is a run of MAE on pixels, or an encoder from elsewhere, which may be one."""
    if not (path / "settings.yaml").is_file():
        return True
    settings = Run(path).settings
    return settings.get("method") == "mae" and (settings.get("method_settings") or {}).get("target") != "tokens"
