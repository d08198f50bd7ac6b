"""unmask report RUN: write the page of a run, and the card of its encoder, anew from what lies in its folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from unmask import card, report
from unmask.rl import page
from unmask.screen import console
from unmask.training.run import Run


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew, from its log, results and pictures."""

    run: Positional[str]
    """The folder of the run."""


def write_report(folder: str | Path) -> Path:
    """RUN/report.html, from the log and the pictures as they stand; and RUN/encoder/README.md, the card of its encoder."""
    run = Run(folder)
    if run.settings.get("method") == "dqn":
        return page.write(run)
    if (run.folder / "encoder" / "config.json").is_file():
        known = run.read("encoder/config.json")
        shown = known.get("preprocess") or run.settings["preprocess"]
        words = card.card(run.folder.resolve().name, "unmask", known["encoder"], shown, card.files_of(run))
        card.write(run.folder / "encoder" / "README.md", words)
    pictures = {path.stem: path.read_bytes() for path in sorted((run.folder / "figures").glob("*.png"))}
    return report.write(run, pictures)


def rewrite(settings: Report) -> Path:
    """Write the report and say where it is. BadInput if the folder is no run."""
    path = write_report(settings.run)
    console.print(f"Report: {path}")
    return path
