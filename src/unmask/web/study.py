"""The tab Study: what a study of debitage answers, in words and numbers, and its whole report below."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from unmask.report import interval, percent, table, text
from unmask.training.state import at, document, number, stamp, words
from unmask.web import pages
from unmask.web.shelf import Shelf
from unmask.web.uploads import told

JS = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
COLOURS = {"these data cannot answer": ("bad", "✗"), "a difference": ("good", "✓")}
"""Of verdicts; of no difference that was found, amber."""


def frame(**options: Any) -> gr.HTML:
    """A report in a frame as tall as it is; its value is what `framed` gives."""
    return gr.HTML(
        value="", html_template='<div class="framed"></div>', js_on_load=JS, apply_default_css=False, **options
    )


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """One study at a time."""
    gr.HTML(
        "<p>Do the flakes of knappers of different experience differ, or any other assemblages of particles? What a study "
        "answers, what it cannot, and the report that says why.</p>"
    )
    which = gr.Dropdown([], label="Study", elem_id="study-which", visible=False)
    answer = gr.HTML(elem_id="study-answer")
    report = frame(elem_id="study-report")
    again = gr.Button("Look again", size="sm", elem_id="study-again")

    @told
    def look(name: str | None) -> tuple[Any, ...]:
        names = list(shelf.studies())
        name = name if name in names else next(iter(names), None)
        return gr.update(choices=names, value=name, visible=bool(names)), *show(name)

    @told
    def show(name: str | None) -> tuple[str, str]:
        if name is None:
            return missing(shelf), ""
        folder = shelf.study(name)
        return answered(folder), framed(name, folder)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(look, which, [which, answer, report], **quiet)
    again.click(look, which, [which, answer, report], **quiet)
    which.input(show, which, [answer, report], **quiet)


def missing(shelf: Shelf) -> str:
    where = ", ".join(str(root) for root in shelf.roots)
    return (
        f"<p>There is no study in {text(where)} yet. Write one whose truth is known, and judge it:</p>"
        "<pre>unmask study simulate --out studies/flint\nunmask study run studies/flint/study.yaml --out runs/flint</pre>"
        "<p>or describe your own assemblages in a study.yaml. Then look again.</p>"
    )


def framed(name: str, folder: Path) -> str:
    """The value of the frame: nothing where there is no report yet."""
    written = stamp(folder / "report.html")
    if written is None:
        return ""
    return json.dumps({"address": pages.address(name), "title": f"report of {name}", "written": written[0]})


def answered(folder: Path) -> str:
    """The answer in words, then the numbers that it rests on."""
    result, trouble = document(folder / "result.json")
    if trouble:
        return f'<p class="note">{text(trouble)}: run the study again</p>'
    if not result:
        return (
            '<p class="note">It has no result yet: it still runs, or was stopped. The same command goes on with it.</p>'
        )
    verdict, title = words(result, "verdict"), words(result, "title")
    colour, sign = COLOURS.get(verdict, ("warn", "!"))
    unit = words(result, "question", "unit") or "unit"
    counts = [("particles", "particles"), ("assemblages", "assemblages"), ("units", f"units ({unit})")]
    sizes = " · ".join(f"{value:,.0f} {noun}" for key, noun in counts if (value := number(result, key)) is not None)
    parts = [
        f"<h3>{text(title)}</h3>" if title else "",
        f'<p class="note">{text(sizes)}</p>',
        f'<p><span class="badge {colour}">{sign} {text(verdict)}</span> {text(words(result, "sentence"))}</p>',
        findings("What these data cannot answer", at(result, "cannot_answer")),
        findings("What to be careful with", at(result, "warnings")),
        tests(at(result, "tests")),
        recognised(at(result, "classification")),
    ]
    report = "" if stamp(folder / "report.html") else '<p class="note">It has no report.html: run the study again</p>'
    return f'<article class="card answer">{"".join(parts)}</article>{report}'


def findings(title: str, found: Any) -> str:
    said = [line for line in found if isinstance(line, str)] if isinstance(found, list) else []
    return f"<h4>{title}</h4><ul>{''.join(f'<li>{text(line)}</li>' for line in said)}</ul>" if said else ""


def tests(found: Any) -> str:
    """Each test with its p, and the least that was possible."""
    rows = [
        (words(one, "name"), words(one, "on"), f"{p:.3g}", "" if least is None else f"{least:.2g}")
        for one in dicts(found)
        if (p := number(one, "p")) is not None
        for least in [number(one, "smallest_p")]
    ]
    if not rows:
        return ""
    heads = ("test", "on", "p", "least possible")
    return (
        f'<details><summary>{len(rows)} tests</summary><div class="cells">{table(heads, rows, kind="")}</div></details>'
    )


def recognised(found: Any) -> str:
    """Accuracy of each model on what it never saw, beside always naming the commonest label."""
    rows = []
    for one in dicts(found):
        accuracy, low, high, usual = (number(one, key) for key in ("accuracy", "low", "high", "majority"))
        if accuracy is None or low is None or high is None:
            continue
        mark = "" if usual is None else f'<u style="left:{percent(usual)}" title="the commonest: {usual:.3f}"></u>'
        track = f'<i style="left:{percent(low)};width:{percent(high - low)}"></i>{mark}'
        rows.append(
            f"<tr><td>{text(words(one, 'protocol'))}</td><td>{text(words(one, 'model'))}</td><td>"
            f"{interval({'accuracy': accuracy, 'low': low, 'high': high}, 'accuracy', 'low', 'high')}"
            f'<div class="track">{track}</div></td><td>{"" if usual is None else f"{usual:.3f}"}</td></tr>'
        )
    if not rows:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("tested on", "model", "accuracy", "always the commonest"))
    return (
        f"<details><summary>Recognised by {len(rows)} models</summary>"
        f'<div class="cells"><table><tr>{heads}</tr>{"".join(rows)}</table></div></details>'
    )


def dicts(found: Any) -> Iterable[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
