"""unmask report RUN: write the page of a run anew from what lies in its folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from unmask import report
from unmask.screen import console
from unmask.training.run import Run


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew, from its log, results and pictures."""

    run: Positional[str]
    """The folder of the run."""


def write_report(folder: str | Path) -> Path:
    """RUN/report.html, from the log and the pictures as they stand."""
    run = Run(folder)
    pictures = {path.stem: path.read_bytes() for path in sorted((run.folder / "figures").glob("*.png"))}
    return report.write(run, pictures)


def rewrite(settings: Report) -> Path:
    """Write the report and say where it is. BadInput if the folder is no run."""
    path = write_report(settings.run)
    console.print(f"Report: {path}")
    return path
