"""unmask pack SRC: images decoded and shrunk once, into a store that training reads many times faster."""

import dataclasses
import json
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from unmask.data.decode import UnreadableImage
from unmask.data.packed import Layout, begun, no_jpeg
from unmask.data.packed import pack as write_store
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.screen import bar, console
from unmask.training.run import write
from unmask.verbs.choices import Choice
from unmask.verbs.train import Unreadable


@dataclass(frozen=True)
class Pack:
    """Decode and shrink each image once, into a store: a folder of a few large files that `--data` takes like any other
    source, and from which training reads several times faster than from JPEG files. Labels, groups and other columns come
    along. Packing that was stopped goes on when the same command is typed again."""

    data: Positional[str]
    """Images: a folder, a table, hf:…, wds:…, digits or photos."""
    out: Path | None = None
    """Folder of the store, to be created."""
    short_side: int = 256
    """Pixels. Images whose shorter side has more are shrunk to it (bicubic, antialiased); none is enlarged. Random crops
    of 224 pixels want about 256; take more for larger crops."""
    format: Literal["raw", "jpeg"] | None = None
    """raw keeps pixels as they are and is fastest; jpeg (quality 90, 8-bit grey or RGB only) takes about an eighth of the room.
    Default: raw where that fits into half of the memory and half of the free disk, else jpeg."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes, which becomes the store's column `label`."""
    group: str = "group"
    """Column of tables that must not be on both sides of a split, which becomes the store's column `group`."""
    strict: bool = False
    """Fail at the first unreadable image, instead of keeping its row with the reason."""
    workers: int | None = None
    """Processes that decode. Default: one a core."""


def pack(settings: Pack) -> dict[str, Any]:
    """Write the store and return what its result.json says. BadInput for what cannot be packed."""
    if settings.out is None:
        raise BadInput("--out is missing: name a folder for the store, as in --out packed/photos")
    if settings.short_side < 1:
        raise BadInput(f"--short-side is {settings.short_side}: give pixels, 1 or more")
    source = open_source(settings.data, image=settings.image, label=settings.label, group=settings.group)
    before = begun(settings.out)
    if settings.format is not None:
        form = Choice(settings.format, "as asked")
    elif before is not None:
        form = Choice(before["format"], "as it was begun")
    else:
        form = choose_format(source, settings.short_side, settings.out)
    layout = Layout(settings.short_side, form.value)
    began, finished = time.perf_counter(), (settings.out / "store.json").is_file()
    if not finished:
        what = f"{len(source):,} images of {source.name} as {form.value} ({form.reason})"
        console.print(f"[bold]pack[/] {what}, into {settings.out}")
    with bar(None if finished else "packing", len(source)) as show:
        store = write_store(
            source,
            settings.out,
            layout,
            command=command(settings),
            workers=settings.workers if settings.workers is not None else os.cpu_count() or 1,
            unreadable=Unreadable([], settings.strict),
            progress=show,
        )
    unreadable = store.unreadable()
    size = int(store.sizes().clip(min=0).sum())
    result = {
        "images": len(source) - len(unreadable),
        "unreadable": unreadable,
        "bytes": size,
        "seconds": time.perf_counter() - began,
        "format": form.value,
        "short_side": settings.short_side,
        "source": source.name,
    }
    if finished and (settings.out / "result.json").is_file():
        result["seconds"] = json.loads((settings.out / "result.json").read_text(encoding="utf-8"))["seconds"]
    try:
        write(settings.out / "result.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"{settings.out}/result.json cannot be written ({error.strerror}); the store is whole") from None
    done = "were packed before" if finished else f"packed in {result['seconds']:,.0f} s"
    console.print(
        f"{result['images']:,} images {done}, {len(unreadable):,} unreadable; {amount(size)} in {settings.out}. "
        f"Next: unmask pretrain mae --data {shlex.quote(str(settings.out))} --out runs/first"
    )
    return result


def command(settings: Pack) -> str:
    """What to type to go on; the format is kept in the store."""
    words = ["unmask", "pack", settings.data, "--out", str(settings.out)]
    for field in dataclasses.fields(Pack):
        value = getattr(settings, field.name)
        if field.name not in ("data", "out", "format", "workers", "strict") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def amount(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def choose_format(source: Source, short_side: int, out: Path) -> Choice:
    """raw where a sample of headers says that it fits, or that JPEG does not do."""
    sample = np.random.default_rng(0).permutation(len(source))[:1000]
    sizes = []
    for i in sample.tolist():
        try:
            channels, height, width, kind = source.header(i)
        except UnreadableImage:
            continue
        if (why := no_jpeg(channels, height, width, kind)) is not None:
            return Choice("raw", f"{source.table['path'].iat[i]} {why.split(';')[0]}")
        shrunk = min(1.0, short_side / min(height, width))
        sizes.append(channels * height * width * shrunk**2)
    need = float(np.mean(sizes or [0])) * len(source)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    disk = shutil.disk_usage(there).free
    about = f"raw takes about {amount(need)}"
    for room, name in ((memory, "memory"), (disk, "free disk")):
        if need > room / 2:
            return Choice("jpeg", f"{about}, more than half of the {amount(room)} of {name}")
    return Choice("raw", f"{about}: half of the {amount(memory)} of memory holds that, and reading is fastest")
