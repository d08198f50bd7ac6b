"""unmask inspect SRC: what is there, and the settings it asks for."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from tyro.conf import Positional

from unmask.data.sources import open_source
from unmask.data.survey import Survey, survey
from unmask.errors import BadInput
from unmask.methods.mae import MAE
from unmask.screen import console
from unmask.training.engine import choose_device
from unmask.training.run import write
from unmask.verbs.choices import choose
from unmask.verbs.pretrain import Pretrain


@dataclass(frozen=True)
class Inspect:
    """Look at a collection before anything is trained: count, sizes, channels, classes, groups, duplicates, unreadable
    files, and the settings that `unmask pretrain` would choose, each with its reason."""

    data: Positional[str]
    """Images: a folder, a table, hf:…, wds:…, digits or photos."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables that must not be on both sides of a split."""
    encoder: str | None = None
    """An encoder that you have in mind; the other choices follow it."""
    image_size: str | None = None
    """An image size that you have in mind."""
    sample: int | None = None
    """Look at so many images only, chosen at random."""
    strict: bool = False
    """Fail if an image is unreadable."""
    out: Path | None = None
    """Where the findings go as well (.json)."""


def inspect(settings: Inspect) -> dict[str, Any]:
    """Print and return what is there. BadInput where `unmask pretrain` would refuse the collection, too."""
    source = open_source(settings.data, image=settings.image, label=settings.label, group=settings.group)
    total = min(settings.sample or len(source), len(source))
    with console.status(f"looking at {total:,} of {len(source):,} images"):
        found = survey(source, sample=settings.sample)
    show(found)
    if settings.strict and found.unreadable:
        raise BadInput(f"{found.unreadable[0][0]}: {found.unreadable[0][1]}; without --strict it would be skipped")
    asked = dataclasses.asdict(Pretrain()) | {"encoder": settings.encoder, "image_size": settings.image_size}
    choices = choose(found, asked, choose_device("auto").type, MAE.PAPERS)
    table = Table(
        title="unmask pretrain mae would choose",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        show_header=False,
    )
    for name, choice in choices.items():
        if choice.reason:
            value = f"{choice.value:.4g}" if isinstance(choice.value, float) else str(choice.value)
            table.add_row(name, f"[bold]{value}[/]", f"[dim]{choice.reason}[/]")
    console.print()
    console.print(table)
    result = dataclasses.asdict(found)
    result["choices"] = {name: {"value": c.value, "reason": c.reason} for name, c in choices.items() if c.reason}
    if settings.out is not None:
        try:
            write(settings.out, json.dumps(result, indent=2, default=str) + "\n")
        except OSError as error:
            raise BadInput(f"{settings.out} cannot be written ({error.strerror}): choose another --out") from None
    troubles = len(found.unreadable) + sum(len(same) - 1 for same in found.exact_duplicates)
    console.print(
        f"\n{found.count:,} images; {len(found.unreadable)} unreadable, {troubles - len(found.unreadable)} exact copies. "
        f"Next: unmask pretrain mae --data {settings.data} --out runs/first"
    )
    return result


def show(found: Survey) -> None:
    """What is there, a line a fact."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    looked = "" if found.surveyed == found.count else f" ({found.surveyed:,} looked at)"
    table.add_row("images", f"{found.count:,}{looked}")
    for side, (least, median, most) in found.sizes.items():
        table.add_row(side, f"{least} to {most} pixels, median {median}")
    table.add_row(
        "aspect",
        "width/height {:.2f} to {:.2f} (5% and 95%), median {:.2f}".format(*(found.aspect[i] for i in (0, 2, 1))),
    )
    path, height, width = found.smallest
    table.add_row("smallest", f"{path}, {height} x {width}")
    channels = ", ".join(f"{c} in {n:,} images" for c, n in sorted(found.channels.items()))
    table.add_row("channels", channels + (" (all grey in fact)" if found.grey else ""))
    table.add_row("values", ", ".join(f"{kind} in {n:,}" for kind, n in found.kinds.items()))
    table.add_row(
        "content",
        f"fills {found.content_share:.0%} of an image; {found.blank_share:.0%} of pixels have the border's colour (medians)",
    )
    if found.classes:
        most = sorted(found.classes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {n:,}" for name, n in most[:12]) + (
            f", … ({len(most)} in all)" if len(most) > 12 else ""
        )
        table.add_row("classes", shown + (f"; {found.unlabelled:,} images without a label" if found.unlabelled else ""))
    else:
        table.add_row("classes", "no labels")
    if found.groups:
        groups = found.groups
        table.add_row(
            "groups",
            f"{groups['count']:,} of {groups['smallest']} to {groups['largest']} images, median {groups['median']}",
        )
    if found.label_group is not None:
        told = found.label_group
        words = f"the group alone tells {told.told:.0%} of the labels (the commonest class {told.majority:.0%})"
        table.add_row("", f"{words}; {told.mixed:,} groups have several labels")
    for copies in found.exact_duplicates[:5]:
        table.add_row("[yellow]same file[/]", " = ".join(copies[:3]) + (" …" if len(copies) > 3 else ""))
    if len(found.exact_duplicates) > 5:
        table.add_row("", f"… {len(found.exact_duplicates)} sets of exact copies in all")
    for one, other in found.near_duplicates[:5]:
        table.add_row("[yellow]look alike[/]", f"{one} ~ {other}")
    if len(found.near_duplicates) > 5:
        table.add_row("", f"… {len(found.near_duplicates):,} pairs in all, of {found.compared:,} images compared")
    for name, reason in found.unreadable[:10]:
        table.add_row("[red]unreadable[/]", f"{name}: {reason}")
    if len(found.unreadable) > 10:
        table.add_row("", f"… {len(found.unreadable)} in all")
    console.print(f"[bold]{found.name}[/]")
    console.print(table)
