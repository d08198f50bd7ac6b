"""LaTeX between $…$ and $$…$$ to MathML while the site is built: browsers set it themselves, and no page asks for a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
"""What pymdownx.arithmatex leaves of an equation."""


def on_page_content(content: str, **_: Any) -> str:
    return EQUATION.sub(as_mathml, content)


def as_mathml(found: re.Match[str]) -> str:
    """A displayed equation lies in a box of its own, which scrolls where the page is narrower than it."""
    tag, bracket, latex = found.groups()
    display = "block" if bracket == "[" else "inline"
    mathml = convert(html.unescape(latex).strip(), display=display)
    return f'<div class="equation">{mathml}</div>' if tag == "div" else mathml
