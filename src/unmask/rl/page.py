"""The page of a run of DQN: does it play, how its score rose, what it thinks the future is worth, and a film."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from unmask import figures, report
from unmask.report import section, text
from unmask.training.run import Run
from unmask.training.run import write as write_whole

WINDOW = 20
"""Episodes whose scores are averaged to a line."""


def page(run: Run) -> str:
    """The whole page, from the run's own files. What is missing there is absent from it."""
    settings, result, history = run.settings, run.read("result.json"), run.history()
    game = str(settings["data"]["name"])
    title = f"DQN on {game}"
    about = f"{settings['encoder']['name']} · {str(settings.get('date', ''))[:16].replace('T', ' ')}"
    parts = [
        f'<header><h1>{text(title)}</h1><p class="soft">{text(about)}</p></header>',
        report.banner(result),
        facts(result),
        film(run),
        scores(history, result),
        judged(result),
        worth(history),
        report.all_settings(settings),
        commands(run, game),
        report.versions(settings, result),
    ]
    return report.document(title, parts)


def write(run: Run) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path."""
    path = run.folder / "report.html"
    write_whole(path, page(run))
    return path


def facts(result: dict[str, Any]) -> str:
    score = result.get("score") or {}
    shown = [
        ("mean score", report.number(score.get("mean"))),
        ("best score", report.number(score.get("best"))),
        ("of a human's, above random", report.share((result.get("human_normalised") or {}).get("mean"))),
        ("steps", report.count(result.get("steps"))),
        ("frames", report.count(result.get("frames"))),
        ("steps per second", report.count(result.get("images_per_second"))),
        ("time", report.duration(result.get("seconds"))),
        ("parameters", report.count(result.get("encoder_parameters"))),
    ]
    tiles = "".join(f"<div><b>{text(value)}</b><span>{name}</span></div>" for name, value in shown if value)
    return f'<div class="facts">{tiles}</div>' if tiles else ""


def film(run: Run) -> str:
    path = run.folder / "play.gif"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    words = "The episode whose score is the median of those by which it was judged."
    style = "image-rendering:pixelated;width:320px;min-width:0"
    body = (
        f'<figure><div><img src="data:image/gif;base64,{data}" alt="The game, played" style="{style}"></div></figure>'
    )
    return section("How it plays", words, body)


def scores(history: list[dict[str, Any]], result: dict[str, Any]) -> str:
    png = score_curve(history, result)
    if png is None:
        return ""
    words = (
        "A dot for each episode that ended while it learnt, a share epsilon of its actions at random; the line is the mean of "
        f"{WINDOW}. Dashed: an agent that plays at random, and the human tester of the paper."
    )
    return section("Score", words, report.picture(png, "Scores of episodes over the steps of the run."))


def judged(result: dict[str, Any]) -> str:
    """The table of the agent beside others."""
    if not result.get("score"):
        return ""

    def row(name: str, s: dict[str, Any]) -> tuple[str, ...]:
        return (
            name,
            f"{s['mean']:,.1f}",
            f"{s['low']:,.1f} to {s['high']:,.1f}",
            f"{s['best']:,.0f}",
            str(s["episodes"]),
        )

    rows = [row("this agent", result["score"]), row("at random", result["random"])]
    if published := result.get("published"):
        rows += [
            (f"{who}, published", f"{published[key]:,.1f}", "", "", "")
            for who, key in (("at random", "random"), ("a human", "human"))
        ]
    words = f"Whole episodes, {result['epsilon']:.0%} of the actions at random, scores as the game counts them; 95% bootstrap "
    words += "intervals over episodes. Published: Mnih et al. 2015, extended data table 2."
    if own := result.get("human_normalised"):
        words += (
            f" Between random play (0%) and the human (100%): {own['mean']:.0%} [{own['low']:.0%}, {own['high']:.0%}]."
        )
    return section(
        "How well it plays", words, report.table(("", "mean score", "95% interval", "best", "episodes"), rows)
    )


def worth(history: list[dict[str, Any]]) -> str:
    if not history:
        return ""
    words = (
        "The mean over the same 256 states, met before anything was learnt, of what the best action is thought to be worth: "
        "smoother than the score, and it should rise with it. A spread near 0 means that all states look alike; the error "
        "should be below that of the best constant."
    )
    return section(
        "What it thinks",
        words,
        report.picture(small_curves(history), "Q, its spread, its error, epsilon and speed over the run."),
    )


def commands(run: Run, game: str) -> str:
    folder = text(run.folder)
    lines = [
        ("watch it", f"unmask dqn play {folder} --out {folder}/film.gif --episodes 30"),
        ("collect what it sees, to pre-train an encoder on", f"unmask dqn record --run {folder} --out frames.parquet"),
        ("go on after a stop", f"unmask dqn --out {folder} --resume"),
    ]
    body = "".join(f'<p class="soft">{what}</p><pre>{line}</pre>' for what, line in lines)
    return section("How to go on", "", body)


# Pictures


def episodes(history: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The step by which each episode had ended, and its score."""
    pairs = [(line["step"], score) for line in history for score in line.get("scores", ())]
    x, y = np.array(pairs, dtype=float).reshape(-1, 2).T
    return x, y


def score_curve(history: list[dict[str, Any]], result: dict[str, Any]) -> bytes | None:
    """The score over the run, None before an episode has ended."""
    x, y = episodes(history)
    if not len(x):
        return None
    drawn = Figure(figsize=(10, 3.8), layout="constrained")
    axes = drawn.subplots()
    axes.plot(x, y, ".", color=figures.BLUE, alpha=0.25, markersize=5, markeredgewidth=0)
    width = min(WINDOW, len(y))
    means = np.convolve(y, np.ones(width) / width, "valid")
    axes.plot(x[width - 1 :], means, color=figures.BLUE, linewidth=2.4)
    # Written where the curve is not: it begins at the one, and ends at the other
    lines = {
        ("at random", "right"): (result.get("random") or {}).get("mean"),
        ("a human", "left"): (result.get("published") or {}).get("human"),
    }
    for (name, side), value in lines.items():
        if value is not None:
            axes.axhline(value, color=figures.VERMILION, linewidth=1.4, linestyle=(0, (5, 3)))
            axes.annotate(name, (0.995 if side == "right" else 0.005, value), (0, 4), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=11, color=figures.VERMILION, ha=side)  # fmt: skip
    along_steps(axes, x)
    axes.set_ylabel("score", fontsize=12, color=figures.GREY)
    axes.annotate(f"{means[-1]:,.1f}", (x[-1], means[-1]), (8, 0), textcoords="offset points", fontsize=12, color=figures.BLUE,
                  va="center", annotation_clip=False)  # fmt: skip
    return figures.png(drawn)


def along_steps(axes: Axes, x: np.ndarray) -> None:
    """No box, and steps as 750k."""
    figures.tidy(axes, "step", x)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


SMALL = (
    *(panel for panel in figures.PANELS if panel[0] in ("q", "q_spread", "epsilon", "update_ratio")),
    ("ratio", "error", "of Q, relative to that of the best constant"),
    ("images_per_second", "speed", "steps of the games a second"),
)


def small_curves(history: list[dict[str, Any]]) -> bytes:
    """Small multiples of what else was logged."""
    drawn = Figure(figsize=(10, 7), layout="constrained")
    for (key, title, hint), axes in zip(SMALL, drawn.subplots(3, 2).flat, strict=True):
        x = np.array([line["step"] for line in history], dtype=float)
        y = np.array([line.get(key, np.nan) for line in history], dtype=float)
        axes.plot(
            x, y, color=figures.BLUE, linewidth=1.8, marker="o" if len(x) < 30 else None, markersize=4, clip_on=False
        )
        along_steps(axes, x)
        axes.set_title(title, loc="left", fontsize=12.5, color=figures.INK, pad=22)
        axes.text(0, 1.035, hint, transform=axes.transAxes, fontsize=10.5, color=figures.GREY)
        if key == "ratio":
            axes.axhline(1, color=figures.VERMILION, linewidth=1.2, linestyle=(0, (5, 3)))
            axes.set_yscale("log")  # while no rewards come the best constant is right, and all else far off
            axes.yaxis.set_major_formatter("{x:g}")
        elif key not in ("q", "update_ratio"):
            axes.set_ylim(0, None)
    return figures.png(drawn)
