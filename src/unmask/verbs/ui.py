"""unmask ui [RUNS]: runs, reconstructions, attention, neighbours and studies, in the browser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.verbs.load import load, load_mae


@dataclass(frozen=True)
class Ui:
    """Open a page in the browser that shows your runs and lets you play with what they learnt. It is served to this machine
    only, fetches nothing from any other, and writes nothing but temporary files."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("runs",)
    """Folders of runs, single runs, or any encoders that `unmask.load` reads."""
    data: tuple[str, ...] = ()
    """Collections for Neighbours and Map, and to pick samples from: folders, tables, hf:…, wds:…, digits or photos."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables with the groups."""
    port: int = 7860
    """Where it listens."""
    host: str = "127.0.0.1"
    """Who may ask: this machine only. Another address, such as 0.0.0.0, lets others on the network see your runs and images."""


def ui(settings: Ui) -> None:
    """Serve the page until Ctrl-C. BadInput where gradio is missing, the port is taken, or there is nothing to show."""
    try:
        from unmask.web import app
        from unmask.web.shelf import Shelf
    except ModuleNotFoundError as error:
        raise BadInput(f"unmask ui needs {error.name}: pip install 'unmask[ui]'") from None
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    collections = {name: open_source(name, **columns) for name in settings.data}
    for name in ("photos:test", "digits"):
        collections.setdefault(name, open_source(name))
    roots = tuple(Path(name) for name in settings.runs)
    if missing := [root for root in roots if not root.exists()]:
        raise BadInput(f"{missing[0]} is not there: name a folder of runs, or begin with `unmask quickstart`")
    app.serve(Shelf(roots, load, load_mae, collections), settings.host, settings.port)
