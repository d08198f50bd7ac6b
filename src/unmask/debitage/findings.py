"""What an audit says: findings, the words that they are made of, and what decides how they are put."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from unmask.debitage.study import Study

SEVERITIES = ("cannot answer", "warning", "note", "fine")
"""Worst first."""
NOT_GIVEN = "(not given)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what was found."""

    key: str
    """Of the check, such as "label", "label-material", "channels", "size", "controls"; each is there once."""
    severity: str
    """One of SEVERITIES."""
    title: str
    """A line."""
    sentence: str
    """What it is, why it matters and what to do: one to four sentences."""
    table: pd.DataFrame | None = None
    """The figures behind it."""


def whole_labels(study: Study) -> bool:
    """Whether units have one label each, as a knapper has one skill, but for a few slips; a site has tools of several classes."""
    q = study.question
    each = study.particles.groupby(q.unit)[q.label].nunique()
    return bool(((each > 1).sum() <= len(each) / 10) | (q.unit == "knapper"))


# Words


def many(n: int, noun: str) -> str:
    return f"1 {noun}" if n == 1 else f"{n:,} {plural(noun)}"


def begun(text: str) -> str:
    """With a capital at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def plural(noun: str) -> str:
    if noun.endswith("s"):
        return f"{noun}es" if noun.endswith("ss") else noun
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return "taxa" if noun == "taxon" else f"{noun}s"


def listed(names: Sequence[object], most: int = 6) -> str:
    """a, b and c; or a, b, c and 4 more."""
    told = [str(name) for name in names]
    if len(told) > most:
        told = [*told[:most], f"{len(told) - most:,} more"]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}" if told else "none"
