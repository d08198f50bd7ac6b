"""The tab Runs: all of them in a table, up to six beside each other, and those that train now as they go."""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from unmask import report
from unmask.figures import PANELS, SERIES, VERMILION
from unmask.methods import METHODS
from unmask.report import BANNERS, FEATURES, PROBES, duration, interval, text
from unmask.training import health
from unmask.training.state import at, number, stamp, words
from unmask.web import canvas, pages
from unmask.web.curves import Curve, panel
from unmask.web.records import Record, record
from unmask.web.shelf import Shelf
from unmask.web.uploads import told

JS = (Path(__file__).parent / "picks.js").read_text(encoding="utf-8")
MOST = len(SERIES)
"""Runs side by side: as many as there are colours."""
UNITS = ("steps", "epochs", "minutes")
LOGARITHMIC = ("loss", "grad_norm", "update_ratio")
"""What is drawn on a logarithmic axis where it spans more than a factor of 20."""
FROM_ZERO = ("rank", "feature_std", "lr", "images_per_second", "loader_wait")
GAMES = {
    "images_per_second": ("steps per second", "playing and learning together"),
    "loader_wait": ("time spent waiting for the games", "of all time"),
}
"""What figures.PANELS call otherwise, where all that was chosen are games."""
PICTURES = {
    "reconstruction": "reconstruction",
    "found": "what it finds",
    "segments": "what it says of pixels",
    "attention": "attention",
    "pooling": "sequence pooling",
    "confusion": "confusions",
    "recalls": "recalls",
    "reliability": "calibration",
    "mistaken": "pixels mistaken",
    "robustness": "robustness",
    "positions": "position embeddings",
    "filters": "filters",
}
"""Files in the folder figures of a run, and what they show."""
OWN = ("out", "resume", "lr", "device", "workers", "hold")
"""Settings that say little about what was trained, or follow from others: not among those that differ."""
SIGNS = {"training": "●", "being judged": "●", "finished": "✓", "stopped": "■", "broken": "✗"}

Places = list[str | None]
"""Names of the runs that are chosen; the place gives the colour, and a run that is taken away leaves its own free."""


def picks_of(**options: Any) -> gr.HTML:
    """A table of runs to choose up to six from: `chosen` with event data {"places": Places}. Its value is what `dump` gives."""
    template = (
        '<div class="picks"><p><input type="search" aria-label="Filter the runs" '
        'placeholder="Filter: a name, a method, a verdict …"> <span class="count" role="status"></span></p>'
        '<div class="cells"></div></div>'
    )
    return gr.HTML(value="", html_template=template, js_on_load=JS, apply_default_css=False, **options)


def tab(shelf: Shelf, page: gr.Blocks) -> None:
    """All runs, and those chosen beside each other."""
    gr.HTML(
        "<p>What was trained, the newest first. Tick up to six to see them side by side: what they learnt, their curves, "
        "their settings. Runs that train now are followed while they do.</p>"
    )
    places, seen, side, rows = gr.State([]), gr.State(()), gr.State(()), gr.State(())
    picks = picks_of(elem_id="runs-table")
    verdicts = gr.HTML(elem_id="runs-verdicts")
    with gr.Row(visible=False) as along:
        unit = gr.Radio(UNITS, value="steps", label="Curves along", elem_id="runs-unit", scale=2, min_width=260)
        log = gr.Checkbox(False, label="logarithmic", elem_id="runs-log", scale=1)
    drawn = gr.HTML(elem_id="runs-curves")
    beside = gr.HTML(elem_id="runs-beside")
    which = gr.Dropdown([], label="Pictures", visible=False, elem_id="runs-picture")
    pictures = gr.HTML(elem_id="runs-pictures")

    @told
    def all_of_them(before: Any) -> tuple[Any, Any]:
        runs = listed(shelf)
        return (gr.skip(), gr.skip()) if runs == before else (dump(runs), runs)

    @told
    def first() -> tuple[Any, ...]:
        runs = listed(shelf)
        whole = [each.name for each in records(shelf) if each.state != "broken"]
        chosen: Places = [*whole[:1]]
        return dump(runs, chosen), runs, chosen, *show(chosen, UNITS[0], False, None)

    def show(chosen: Places, unit: str, log: bool, picture: str | None) -> tuple[Any, ...]:
        there = picked(shelf, chosen)
        names = sorted({name for _, run in there for name in pictures_of(run)}, key=list(PICTURES).index)
        picture = picture if picture in names else next(iter(names), None)
        choices = [(PICTURES[name], name) for name in names]
        return (
            moving(there),
            resting(there),
            verdicts_of(there, chosen, shelf),
            gr.update(visible=any(run.log for _, run in there)),
            curves_of(there, unit, log),
            beside_of(there),
            gr.update(choices=choices, value=picture, visible=bool(names)),
            pictures_at(there, picture),
        )

    @told
    def choose(event: gr.EventData, unit: str, log: bool, picture: str | None) -> tuple[Any, ...]:
        chosen = checked(event.places)
        return chosen, *show(chosen, unit, log, picture)

    @told
    def follow(chosen: Places, before: Any, rest: Any, unit: str, log: bool, picture: str | None) -> tuple[Any, ...]:
        there = picked(shelf, chosen)
        now, still = moving(there), resting(there)
        if still != rest:
            return show(chosen, unit, log, picture)
        if now == before:
            return (gr.skip(),) * 8
        draw = gr.update(visible=any(run.log for _, run in there))
        return now, gr.skip(), verdicts_of(there, chosen, shelf), draw, curves_of(there, unit, log), *(gr.skip(),) * 3

    @told
    def redraw(chosen: Places, unit: str, log: bool) -> str:
        return curves_of(picked(shelf, chosen), unit, log)

    @told
    def turn(chosen: Places, picture: str | None) -> str:
        return pictures_at(picked(shelf, chosen), picture)

    everything = [seen, side, verdicts, along, drawn, beside, which, pictures]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(first, outputs=[picks, rows, places, *everything], **quiet)
    picks.chosen(choose, [unit, log, which], [places, *everything], trigger_mode="always_last", **quiet)
    for control in (unit, log):
        control.input(redraw, [places, unit, log], drawn, trigger_mode="always_last", **quiet)
    which.input(turn, [places, which], pictures, **quiet)
    gr.Timer(2.0).tick(follow, [places, seen, side, unit, log, which], everything, trigger_mode="once", **quiet)
    gr.Timer(10.0).tick(all_of_them, rows, [picks, rows], trigger_mode="once", **quiet)


# What is chosen


def records(shelf: Shelf) -> list[Record]:
    """Every run as it stands, the newest first."""
    return [record(name, path) for name, path in shelf.runs().items()]


def checked(places: Any) -> Places:
    """Places as a browser sends them: whatever else it sends is nobody's."""
    given = places[:MOST] if isinstance(places, list) else []
    return [name if isinstance(name, str) else None for name in given]


def picked(shelf: Shelf, places: Places) -> list[tuple[str, Record]]:
    """The runs that are chosen and still there, with their colours."""
    there = shelf.runs() if any(places) else {}
    named = zip(SERIES, places, strict=False)
    return [(colour, record(name, there[name])) for colour, name in named if name is not None and name in there]


def moving(there: Sequence[tuple[str, Record]]) -> tuple[Any, ...]:
    """Differs from itself once a verdict or a curve does."""
    return tuple(
        (run.name, run.state, run.step, len(run.log), run.path, stamp(run.path / "report.html")) for _, run in there
    )


def resting(there: Sequence[tuple[str, Record]]) -> tuple[Any, ...]:
    """Differs from itself once settings, probes or pictures do."""
    files = ("settings.yaml", "result.json", "probe.json", "test.json", "figures")
    return tuple((run.name, *(stamp(run.path / file) for file in files)) for _, run in there)


# The table


def listed(shelf: Shelf) -> str:
    """HTML of the table of all runs, or of what to do where there are none."""
    rows = [row(each) for each in records(shelf)]
    if not rows:
        where = ", ".join(str(root) for root in shelf.roots)
        return (
            f"<p>There is no run in {text(where)} yet. Begin with</p><pre>unmask quickstart</pre><p>or, with images of your "
            "own,</p><pre>unmask pretrain mae --data path/to/images --out runs/mine</pre><p>It appears here within seconds.</p>"
        )
    heads = ("run", "state", "verdict", "loss, of uninformed", "worth", "method", "encoder", "data", "steps", "when")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def dump(table: str, places: Places | None = None) -> str:
    """The value of the table to choose from."""
    return json.dumps({"table": table, "colours": SERIES, "places": places})


def row(run: Record) -> str:
    name = f'<label><input type="checkbox"> <span title="{text(run.name)}">{text(run.name)}</span></label>'
    if run.state == "broken":
        return f'<tr data-name="{text(run.name)}"><td>{name}</td><td colspan="9">{state(run)} {text(run.trouble[0])}</td></tr>'
    cells = (
        state(run),
        badge(run),
        share(run),
        worth(run),
        text(run.method),
        cut(run.encoder),
        cut(run.data),
        f"{run.step:,}" + (f" of {run.steps:,}" if run.steps and run.steps != run.step else ""),
        text(words(run.settings, "date")[:16].replace("T", " ")),
    )
    return f'<tr data-name="{text(run.name)}"><td>{name}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def state(run: Record) -> str:
    return f'<span class="state {run.state.split()[0]}">{SIGNS[run.state]} {run.state}</span>'


def badge(run: Record) -> str:
    """The verdict in its colour, and whether it is the last word."""
    if run.verdict is None:
        return '<span class="note">too early to say</span>' if run.state != "stopped" else ""
    colour, sign = BANNERS.get(run.verdict.word, ("warn", "!"))
    return f'<span class="badge {colour}">{sign} {text(run.verdict.word)}{"" if run.state == "finished" else ", so far"}</span>'


def share(run: Record) -> str:
    """The loss, and what share that is of the loss of a model that learnt nothing."""
    if run.loss is None:
        return ""
    own, uninformed = run.loss
    part = f"<b>{own / uninformed:.0%}</b> " if uninformed > 0 else ""
    return f"{part}<small>{own:.3g} of {uninformed:.3g}</small>"


def worth(run: Record) -> str:
    if run.score is None:
        return ""
    called, value, low, high = run.score
    within = f" <small>[{low:.3f}–{high:.3f}]</small>" if low is not None and high is not None else ""
    return f"{called} <b>{value:.3f}</b>{within}"


def cut(name: str) -> str:
    """A name whose end is in sight where it is too long: there paths differ."""
    return f'<span class="cut" title="{text(name)}"><bdi>{text(name)}</bdi></span>'


# The runs that are chosen


def verdicts_of(there: Sequence[tuple[str, Record]], places: Places, shelf: Shelf) -> str:
    """What each is and amounts to, with all advice."""
    gone = [name for name in places if name and name not in {run.name for _, run in there}]
    lost = "".join(f'<p class="note">{text(name)} is gone</p>' for name in gone)
    if not there:
        return lost + ('<p class="note">Tick a run to see what became of it.</p>' if shelf.runs() else "")
    return f'<div class="cards">{"".join(card(colour, run) for colour, run in there)}</div>{lost}'


def card(colour: str, run: Record) -> str:
    images = number(run.settings, "data", "images")
    about = (run.method, run.encoder, run.data, f"{images:,.0f} images" if images else "")
    parts = [
        f'<h3 style="--chip:{colour}"><span title="{text(run.name)}">{text(run.name)}</span> {state(run)}</h3>',
        f'<p class="note">{text(" · ".join(word for word in about if word))}</p>',
    ]
    if run.state in ("training", "being judged"):
        parts.append(progress(run))
    if run.verdict is not None:
        sentence = text(run.verdict.sentence.rstrip("."))
        parts.append(f"<p>{badge(run)} {sentence}.</p>")
        if run.verdict.advice:
            parts.append(f"<ul>{''.join(f'<li>{text(line)}</li>' for line in run.verdict.advice)}</ul>")
    elif run.state != "broken":
        parts.append(f"<p>{badge(run) or 'It was stopped before its log said anything.'}</p>")
    for judged in (run.probe, run.test):
        parts += [f"<p>{text(words(judged, key))}</p>" for key in ("sentence", "warning") if words(judged, key)]
    if run.state == "stopped":
        parts.append(f'<p class="note">Stopped at step {run.step:,}{of(run)}. To go on: {resuming(run)}</p>')
    parts += [f'<p class="note">{text(line)}</p>' for line in run.trouble]
    if stamp(run.path / "report.html"):
        parts.append(f'<p><a href="{pages.address(run.name)}" target="_blank" rel="noopener">its report</a></p>')
    return f'<article class="card">{"".join(parts)}</article>'


def resuming(run: Record) -> str:
    """What goes on with it."""
    command = words(run.settings, "command")
    if run.method in METHODS:
        return f"<pre>unmask pretrain {run.method} --out {text(shlex.quote(str(run.path)))} --resume</pre>"
    return f"<pre>{text(command)} --resume</pre>" if command.startswith("unmask ") else "the same call with resume"


def of(run: Record) -> str:
    return f" of {run.steps:,}" if run.steps else ""


def progress(run: Record) -> str:
    """How far it is, how fast, and how long it still takes."""
    done = min(1.0, run.step / run.steps) if run.steps else 0.0
    said = [f"step {run.step:,}{of(run)}"]
    if run.log:
        rate = health.median([line["images_per_second"] for line in run.log[-11:]])
        said.append(f"{rate:,.0f} {'steps' if run.method == 'dqn' else 'images'}/s")
    if run.left:
        said.append(f"{duration(run.left)} left")
    bar = f'<div class="bar"><span style="width:{done:.1%}"></span></div>'
    return f'{bar}<p class="note">{" · ".join(said)}</p>'


def curves_of(there: Sequence[tuple[str, Record]], unit: str, log: bool) -> str:
    """A figure a quantity, a line a run."""

    def lines(key: str, dashed: bool = False) -> list[Curve]:
        return [Curve(run.name, *points(run, key, unit), colour, dashed) for colour, run in there]

    own, uninformed = lines("loss"), lines("uninformed", dashed=True)
    shares = lines("ratio")
    ends = [(curve.x[0], curve.x[-1]) for curve in shares if len(curve.x)]
    if not ends:
        return ""
    first, last = (max(end) for end in zip(*ends, strict=True))
    nothing = Curve(
        "a model that learnt nothing", np.array([first if log else 0.0, last]), np.ones(2), VERMILION, dashed=True
    )
    drawn = [
        panel(
            "loss", "dashed: of a model that learnt nothing", [*own, *uninformed], unit, log, wide([*own, *uninformed])
        ),
        panel(
            "loss, of a model's that learnt nothing", "1 is nothing learnt", [*shares, nothing], unit, log, wide(shares)
        ),
    ]
    games = GAMES if all(run.method == "dqn" for _, run in there) else {}
    for key, title, hint in PANELS:
        of_it, (title, hint) = lines(key), games.get(key, (title, hint))
        floor = 0.0 if key in FROM_ZERO else None
        drawn.append(panel(title, hint, of_it, unit, log, key in LOGARITHMIC and wide(of_it), floor))
    return f'{legend(there)}<div class="curves">{"".join(drawn)}</div>'


def points(run: Record, key: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a quantity was logged, along steps, epochs or minutes, and what it was."""
    passed = np.cumsum([line["seconds"] for line in run.log]) / 60
    along = passed if unit == "minutes" else [line["epoch" if unit == "epochs" else "step"] for line in run.log]
    pairs = [(x, line[key]) for x, line in zip(along, run.log, strict=True) if key in line]
    x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return x, y


def wide(curves: Iterable[Curve]) -> bool:
    """Whether the curves span so much that only a logarithmic axis shows them."""
    values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves] or [np.empty(0)])
    return bool(len(values) and values.min() > 0 and values.max() > 20 * values.min())


def legend(there: Sequence[tuple[str, Record]]) -> str:
    keys = "".join(
        f'<span style="--chip:{colour}" title="{text(run.name)}">{text(run.name)}</span>' for colour, run in there
    )
    return f'<p class="legend">{keys}</p>'


def beside_of(there: Sequence[tuple[str, Record]]) -> str:
    """Probes and settings, a column a run."""
    return scores(there) + settings(there)


def columns(there: Sequence[tuple[str, Record]]) -> str:
    heads = "".join(f'<th style="--chip:{colour}"><span>{text(run.name)}</span></th>' for colour, run in there)
    return f"<tr><th></th>{heads}</tr>"


def scores(there: Sequence[tuple[str, Record]]) -> str:
    """What the encoders are worth: each probe beside the same encoder untrained, raw pixels and the commonest class."""
    rows = [
        (f"{name}, {what}", [at(run.probe, test, which) for _, run in there], which == "trained")
        for test, (name, _) in PROBES.items()
        for which, what in FEATURES.items()
    ]
    rows.append(("the commonest class", [at(run.probe, "majority") for _, run in there], False))
    rows.append(("on test images", [at(run.result, "test") for _, run in there], True))
    shown = ""
    for name, found, own in rows:
        if any(number(each, "accuracy") is not None for each in found):
            cells = "".join(score(each, colour) for each, (colour, _) in zip(found, there, strict=True))
            shown += f"<tr{' class=own' * own}><th>{name}</th>{cells}</tr>"
    if not shown:
        return ""
    sizes = sorted({f"{size:,.0f}" for _, run in there if (size := number(run.probe, "test")) is not None})
    note = "Accuracy with its 95% interval" + (f", on {' or '.join(sizes)} test images" if sizes else "")
    note += ". Runs that were judged on other images, or by other classes, cannot be compared."
    table = f'<div class="cells beside"><table>{columns(there)}{shown}</table></div>'
    return f'<section><h3>What they are worth</h3><p class="note">{note}</p>{table}</section>'


def score(found: Any, colour: str) -> str:
    accuracy, low, high = (number(found, key) for key in ("accuracy", "low", "high"))
    if accuracy is None:
        return "<td></td>"
    told = {"accuracy": accuracy} | ({"low": low, "high": high} if low is not None and high is not None else {})
    left, right = told.get("low", accuracy), told.get("high", accuracy)
    track = f'<i style="left:{report.percent(left)};width:{report.percent(right - left)}"></i>'
    return (
        f'<td style="--chip:{colour}">{interval(told, "accuracy", "low", "high")}<div class="track">{track}</div></td>'
    )


def settings(there: Sequence[tuple[str, Record]]) -> str:
    """Settings a line each: those that differ, and the others folded away."""
    stated = [stated_by(run) for _, run in there if run.state != "broken"]
    there = [each for each in there if each[1].state != "broken"]
    names = list(dict.fromkeys(name for each in stated for name in each))
    values = {name: [report.plain(each[name]) if name in each else "–" for each in stated] for name in names}
    differ = [name for name in names if name not in OWN and len(set(values[name])) > 1]
    rest = [name for name in names if name not in differ]

    def rows(some: Iterable[str]) -> str:
        body = "".join(
            f"<tr><th>{text(name)}</th>{''.join(f'<td>{text(value)}</td>' for value in values[name])}</tr>"
            for name in some
        )
        return f'<div class="cells beside"><table>{columns(there)}{body}</table></div>'

    if not names:
        return ""
    if len(there) == 1:
        return f"<section><details><summary>Its settings</summary>{rows(names)}</details></section>"
    told = rows(differ) if differ else '<p class="note">None: they were trained alike.</p>'
    folded = f"<details><summary>{len(rest)} others</summary>{rows(rest)}</details>" if rest else ""
    return f"<section><h3>Settings that differ</h3>{told}{folded}</section>"


def stated_by(run: Record) -> dict[str, Any]:
    """What a run was told, what it chose, and of which data and versions it is."""
    data = at(run.settings, "data")
    data = data if isinstance(data, dict) else {}
    more = {f"data: {name}": data[name] for name in ("images", "fingerprint") if name in data}
    versions = {name: run.settings[name] for name in ("unmask", "torch") if name in run.settings}
    return {"method": run.method, **run.chosen, **more, **versions}


def pictures_of(run: Record) -> list[str]:
    """Names of the pictures that lie in its folder."""
    try:
        there = {path.stem for path in (run.path / "figures").glob("*.png")}
    except OSError:
        return []
    return [name for name in PICTURES if name in there]


def pictures_at(there: Sequence[tuple[str, Record]], name: str | None) -> str:
    """One picture of each run that has it, side by side."""
    shown = []
    for colour, run in there:
        if name not in PICTURES or name not in pictures_of(run):
            continue
        png = (run.path / "figures" / f"{name}.png").read_bytes()
        words = f"{PICTURES[name]}: {run.name}"
        shown.append(
            f'<figure><figcaption style="--chip:{colour}"><span>{text(run.name)}</span></figcaption>'
            f'<div class="cells"><img src="{canvas.uri(png)}" alt="{text(words)}"></div></figure>'
        )
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""
