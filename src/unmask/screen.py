"""What a person sees of a command: one console, warnings, and one line of progress.

Colours are for terminals: what is piped or kept in a file is plain text, and where NO_COLOR is set there is no colour.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

Each = TypeVar("Each")

# In a notebook nothing is drawn over again, and each line would else be a display of its own.
TERMINAL = False if "ipykernel" in sys.modules else None
console = Console(highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=TERMINAL)
"""Standard output."""
aside = Console(highlight=False, soft_wrap=True, stderr=True, force_jupyter=False, force_terminal=TERMINAL)
"""Standard error."""
PAUSE = 5.0
"""Seconds between two lines of progress in a log, at least: what is over sooner needs none."""


def warn(words: str) -> None:
    """Say what should be known even of a command that is told to be quiet: then on standard error."""
    (aside if console.quiet else console).print(words)


def mute() -> None:
    """Print nothing any more: of several processes only one speaks."""
    console.quiet = aside.quiet = True


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing but warnings meanwhile."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def live() -> bool:
    """Whether a line can be drawn over again."""
    return console.is_terminal and not console.is_dumb_terminal and not console.quiet


@contextlib.contextmanager
def bar(
    title: str | None, total: int, done: int = 0, unit: str = "images", pause: float = PAUSE
) -> Iterator[Callable[..., None]]:
    """One line of progress, as wide as the terminal has room for; on no terminal a plain line each tenth of the way.

    Yields show(done, *now): how many are done, and what is to be said of it now, the most important first; that much of it is
    shown as fits. pause: seconds between plain lines, at least. Nothing is shown without a title.
    """
    if title is None or console.quiet:
        yield lambda done, *now: None
    elif live():
        with Progress(Line(), console=console, refresh_per_second=5) as progress:
            task = progress.add_task(title, total=total, completed=done, unit=unit, now=())
            yield lambda done, *now: progress.update(task, completed=done, now=now)
    else:
        last, began, first = done, time.monotonic(), done
        since = began

        def show(done: int, *now: str) -> None:
            nonlocal last, since
            tenth = done * 10 // max(1, total) > last * 10 // max(1, total)
            if tenth and (time.monotonic() - since >= pause):
                last, since = done, time.monotonic()
                left = (since - began) / max(1, done - first) * (total - done)
                words = [f"{done:,}/{total:,} {unit}", *now, *([f"left {clock(left)}"] if done < total else [])]
                console.print(f"{title}: {'  '.join(words)}", markup=False)

        yield show


def track(each: Iterable[Each], title: str | None, total: int, unit: str = "images") -> Iterator[Each]:
    """Each of `total` things, with a bar."""
    with bar(title, total, unit=unit) as show:
        for done, one in enumerate(each, 1):
            yield one
            show(done)


class Line(ProgressColumn):
    """The whole line of a task: what matters most of it, as far as there is room."""

    def __init__(self):
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        total, done = int(task.total or 0), int(task.completed)
        share = done / total if total else 1.0
        rest = task.elapsed or 0.0 if task.finished else task.time_remaining
        filled = round(24 * min(1.0, share))
        drawn = Text.assemble(
            ("━" * filled, "green" if task.finished else "cyan"), ("━" * (24 - filled), "bright_black")
        )
        first, *more = (*task.fields["now"], "")
        times = f"{'in' if task.finished else 'left'} {'-:--' if rest is None else clock(rest)}"
        rate = (
            f"{task.speed:,.{0 if task.speed >= 10 else 1}f} {task.fields['unit']}/s"
            if task.speed and not first
            else ""
        )
        parts = [  # how important each is, in the order they stand in
            (1, Text(task.description, "bold")),
            (5, drawn),
            (0, Text(f"{share:.0%}", "cyan")),
            (4, Text(f"{done:,}/{total:,} {task.fields['unit']}")),
            (3, Text(first or rate)),
            *((6 + i, Text(word)) for i, word in enumerate(more)),
            (2, Text(times, "dim")),
        ]
        return fitting([(rank, part) for rank, part in parts if part.plain], console.width)


def fitting(parts: Sequence[tuple[int, Text]], width: int) -> Text:
    """The most important of the parts (the smallest numbers) that fit into so many columns together, in the order they stand
    in, two blanks apart; not all of the first where even that is too wide."""
    kept: list[int] = []
    room = width
    for _, place in sorted((rank, place) for place, (rank, _) in enumerate(parts)):
        need = parts[place][1].cell_len + (2 if kept else 0)
        if need <= room:
            kept.append(place)
            room -= need
    line = Text("  ").join(parts[place][1] for place in sorted(kept)) if kept else parts[0][1].copy()
    line.truncate(width, overflow="ellipsis")
    return line


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
