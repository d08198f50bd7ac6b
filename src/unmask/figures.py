"""Pictures of a run: what it painted, how it went, what its encoder learnt. Arrays in, PNG bytes out, no state between.

Images are float tensors (C, H, W) in [0, 1] with any number of channels.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from unmask.data.annotations import Objects
from unmask.evaluate.corruptions import KINDS, called
from unmask.evaluate.detection import Found
from unmask.layers import patchify, unpatchify

# Okabe & Ito's colours, told apart by colour-blind eyes too
BLUE, VERMILION = "#0072B2", "#D55E00"
SERIES = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CLASSES = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#333333"),
    *("#9933FF", "#CCFFB3", "#663300", "#4D0066", "#00FFE6", "#4D33B3", "#9980FF", "#99B366"),
    *("#000000", "#993366", "#CC0033", "#80E666", "#331A00", "#E6B3B3", "#803380", "#1A0080"),
)
"""Of the classes of pixels: theirs, a dark grey, then each as far as can be from all before it, to eyes of all kinds (nearest
distance in CIELAB as trichromats, protanopes, deuteranopes and tritanopes see it, after Machado et al. 2009)."""
INK, GREY, FAINT = "#222222", "#666666", "#DDDDDD"
DPI = 160
HEAT = colormaps["inferno"]
LEFT = colormaps["Blues"]
"""How much of an accuracy is left."""
HIDDEN = 0.5
"""The grey of a hidden patch."""

# key in metrics.jsonl, what it is, how to read it
PANELS = (
    ("rank", "effective rank of the features", "RankMe; 1 is collapse"),
    ("feature_std", "spread of the features over images", "0 is collapse"),
    ("information", "what the teacher tells of an image, nats", "0 is collapse"),
    ("teacher_entropy", "entropy of the teacher's outputs, nats", "with information 0: one output, or all alike"),
    ("kl", "student away from the teacher, nats", "below the information: it foretells it"),
    ("accuracy", "right answers to the task itself", "its own other view, token or class, picked from all"),
    ("target_std", "how far the targets are apart", "0 to 1; below 0.4 is collapse"),
    ("perplexity", "tokens in use, as if evenly", "below 2 is collapse"),
    ("token_kl", "what a token may say, nats", "below 0.1 is collapse"),
    ("test_accuracy", "right on images it does not learn from", "nothing is chosen by it"),
    ("test_miou", "mIoU on images it does not learn from", "nothing is chosen by it"),
    ("knn", "k-NN accuracy while training", "higher is better"),
    ("score", "score", "of the episodes that ended since the last point"),
    ("q", "Q", "mean over held states of the best action's worth"),
    ("q_spread", "spread of Q", "over the held states; 0 is collapse"),
    ("epsilon", "epsilon", "share of actions at random"),
    ("lr", "learning rate", "warm-up, then cosine"),
    ("grad_norm", "norm of the gradient", "jumps are a warning"),
    ("update_ratio", "one step, relative to the weights", "about 0.001 is healthy"),
    ("images_per_second", "images per second", "loading and training together"),
    ("loader_wait", "time spent waiting for images", "above 30%: add workers or pack"),
)


# Images


def displayable(image: Tensor) -> NDArray[np.float32]:
    """An image (C, H, W) as RGB (H, W, 3): one in grey, of two the first, of many the first three."""
    image = image.detach().float().cpu().clamp(0, 1)
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).numpy()


def channels_shown(channels: int) -> str:
    """What `displayable` leaves out, in words; empty where it shows all."""
    if channels in (1, 3):
        return ""
    return "channel 1 of 2, in grey" if channels == 2 else f"channels 1 to 3 of {channels}, as red, green, blue"


def masked_image(image: Tensor, keep: Tensor, patch_size: int) -> Tensor:
    """An image (C, H, W) with all patches but those at `keep` (K,), counted row by row, in mid-grey."""
    patches = patchify(image[None], patch_size)  # (1, N, P*P*C)
    shown = torch.full_like(patches, HIDDEN)
    shown[:, keep] = patches[:, keep]
    return unpatchify(shown, (image.shape[1], image.shape[2]), patch_size)[0]


def attended(image: Tensor, looks: Tensor, kept: Tensor) -> Tensor:
    """An image (C, H, W) as RGB (3, H, W) with what is looked at in the colours of how much, and the rest dark.

    looks: weights (rows, columns) of its patches; kept: which of them are shown, bool (rows, columns)."""
    size = image.shape[1:]
    grey = torch.from_numpy(displayable(image)).mean(dim=-1)  # (H, W)
    strength, kept = (
        F.interpolate(x[None, None].float(), size=size, mode="nearest")[0, 0].cpu() for x in (looks / looks.max(), kept)
    )
    colour = torch.from_numpy(HEAT(strength.numpy())[..., :3]).float() * (0.35 + 0.65 * grey[..., None])
    return torch.where(kept.bool()[..., None], colour, 0.25 * grey[..., None]).permute(2, 0, 1)


def cut_out(image: Tensor, mask: Tensor) -> Tensor:
    """An image (C, H, W) as RGB (3, H, W) with what is outside the mask, bool (H, W), faint, and a line around it."""
    shown = torch.from_numpy(displayable(image).copy())
    faint = 0.75 + 0.25 * shown.mean(dim=-1, keepdim=True)
    shown = torch.where(mask[..., None], shown, faint.expand_as(shown))
    wide = max(1, min(mask.shape) // 100)
    grown = F.max_pool2d(mask[None, None].float(), 2 * wide + 1, stride=1, padding=wide)[0, 0].bool()
    shown[grown & ~mask] = torch.tensor(to_rgb(VERMILION))
    return shown.permute(2, 0, 1)


def reconstruction(
    rows: Sequence[dict[str, Tensor]],
    headings: Sequence[str] = ("original", "masked", "reconstruction", "pasted"),
    note: str = "",
) -> bytes:
    """A table of pictures: an image a row, what was done to it a column, headings above.

    rows: for each image {heading: (C, H, W)}, all of one height and width. Small images are enlarged without smoothing, so
    that pixels show; more than four are laid in two groups side by side where there are few columns. note: a line below.
    """
    C, H, W = rows[0][headings[0]].shape
    groups = 2 if len(rows) > 4 and W <= 1.5 * H and len(headings) < 5 else 1
    enlarge, tile = fit_tile(H, W, side=192 if groups == 2 else max(96, min(224, 1344 // len(headings))))
    height, width = tile
    gap, between = 8, 40
    lines = -(-len(rows) // groups)
    size = min(30, max(12, int(0.12 * width)))  # of the letters, in pixels
    cell = max(width, 8 * size)  # narrow pictures leave room for the longest heading
    top, below = 2 * size, 2 * size
    note = "; ".join(text for text in (note, channels_shown(C)) if text)
    group = len(headings) * (cell + gap) - gap
    canvas = np.ones(
        (top + lines * (height + gap) + (below if note else gap), 2 * gap + groups * (group + between) - between, 3),
        dtype=np.float32,
    )
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    for i, row in enumerate(rows):
        column, line = divmod(i, lines)
        y = top + line * (height + gap)
        for j, heading in enumerate(headings):
            x = gap + column * (group + between) + j * (cell + gap) + (cell - width) // 2
            frame(canvas, enlarge(row[heading]), y, x)
            if line == 0:
                write(figure, heading, x + width / 2, top / 2, size, align="center")
    if note:
        write(figure, note, gap, canvas.shape[0] - below / 2, 0.9 * size, color=GREY)
    figure.figimage(canvas, origin="upper", zorder=-1)
    return png(figure)


def fit_tile(height: int, width: int, side: int):
    """How to bring an image (C, height, width) to about `side` pixels: the function, and the size (h, w) it gives.

    It grows by whole multiples without smoothing, so that each pixel stays a square, and shrinks by averages.
    """
    scale = max(1, round(side / max(height, width)))
    shrink = min(1.0, 2 * side / max(height, width))
    tile = (round(height * scale * shrink), round(width * scale * shrink))

    def enlarge(image: Tensor) -> NDArray[np.float32]:
        if shrink < 1:
            image = F.interpolate(image[None].float().cpu(), size=tile, mode="bilinear", antialias=True)[0]
        return displayable(image).repeat(scale, axis=0).repeat(scale, axis=1)

    return enlarge, tile


def frame(canvas: NDArray[Any], picture: NDArray[Any], y: int, x: int) -> None:
    """Lay a picture on the canvas, in a hairline: white pictures must not melt into white paper."""
    height, width = picture.shape[:2]
    canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = 0.75
    canvas[y : y + height, x : x + width] = picture


SURE = 0.5
"""Score from which a find is drawn."""


def found(images: Sequence[Tensor], finds: Sequence[Found], truths: Sequence[Objects], classes: Sequence[str]) -> bytes:
    """What a detector found in images (C, H, W): boxes in the colours of their classes, those of the truth dashed in white.

    Of finds only those with a score of at least 0.5 are drawn; how many are right is not: see the figures beside."""
    across = min(3, len(images))
    down = -(-len(images) // across)
    tall = max(image.shape[1] / image.shape[2] for image in images)
    figure = Figure(figsize=(11, 11 / across * tall * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, each, truth in zip(grid.flat, images, finds, truths, strict=False):
        axes.imshow(displayable(image), interpolation="bilinear")
        for j, (box, number, score) in enumerate(zip(each.boxes.tolist(), each.classes, each.scores, strict=True)):
            if score < SURE:
                continue
            colour = SERIES[number % len(SERIES)]
            if each.masks:
                from pycocotools import mask as coding

                shape = coding.decode(each.masks[j])  # type: ignore[arg-type]
                layer = np.zeros((*shape.shape, 4), dtype=np.float32)
                layer[..., :3], layer[..., 3] = to_rgb(colour), 0.45 * shape
                axes.imshow(layer, interpolation="nearest")
            axes.add_patch(outline(box, colour, 2.0, "solid", 1.0))
        for box in truth.boxes.tolist():
            axes.add_patch(outline(box, "white", 1.2, (0, (3, 2)), 1.0))
    drawn = range(min(len(classes), len(SERIES)))
    keys = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=SERIES[k], linewidth=2) for k in drawn]
    names = [shortened(classes[k], 20) + ("" if len(classes) <= len(SERIES) else ", …") for k in drawn]
    keys.append(Rectangle((0, 0), 1, 1, facecolor="#888888", edgecolor="white", linewidth=1.6, linestyle=(0, (2, 2))))
    figure.legend(
        keys, [*names, "the truth"], loc="outside lower center", ncols=min(7, len(keys)), frameon=False, fontsize=11
    )
    return png(figure)


def outline(box: Sequence[float], colour: str, width: float, style: Any, alpha: float) -> Rectangle:
    left, top, right, bottom = box
    return Rectangle(
        (left, top),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=colour,
        linewidth=width,
        linestyle=style,
        alpha=alpha,
    )


def palette(count: int) -> NDArray[np.uint8]:
    """A colour for each of so many classes, (count, 3); those beyond 24 begin anew."""
    colours = [to_rgb(CLASSES[k % len(CLASSES)]) for k in range(count)]
    return (255 * np.array(colours).reshape(-1, 3)).round().astype(np.uint8)


def segments(rows: Sequence[tuple[Tensor, Tensor, Tensor, str]], classes: Sequence[str]) -> bytes:
    """Images (C, H, W), the classes of their pixels in truth and as they were predicted, (H, W) uint8, and a word on each: an
    image a row. Numbers that are no class are void, and white."""
    colours = np.full((256, 3), 255, dtype=np.uint8)
    colours[: len(classes)] = palette(len(classes))
    heights = [image.shape[1] / image.shape[2] for image, *_ in rows]
    everything = torch.cat([maps.flatten() for _, truth, said, _ in rows for maps in (truth, said)])
    pixels = everything.bincount(minlength=256).numpy()
    listed = sorted(np.argsort(-pixels[: len(classes)], kind="stable")[: len(CLASSES)].tolist())
    shown = [int(k) for k in listed if pixels[k]]
    figure = Figure(figsize=(10.4, 3.25 * sum(heights) + 0.9 + 0.3 * -(-len(shown) // 6)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for line, (image, truth, said, words) in zip(grid, rows, strict=True):
        pictures = displayable(image), colours[truth.numpy()], colours[said.numpy()]
        for axes, shot in zip(line, pictures, strict=True):
            axes.imshow(shot, interpolation="antialiased" if shot is pictures[0] else "nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#BBBBBB")
        line[0].set_ylabel(words, fontsize=11.5, color=INK)
    for axes, heading in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(heading, fontsize=13, color=INK)
    keys = [Rectangle((0, 0), 1, 1, facecolor=colours[k] / 255, edgecolor="#888888", linewidth=0.6) for k in shown]
    names = [shortened(classes[k], 22) for k in shown]
    if pixels[len(classes) :].any():
        keys.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#888888", linewidth=0.6))
        names.append("void: not judged")
    figure.legend(keys, names, loc="outside lower center", ncols=min(6, len(keys)), frameon=False, fontsize=11.5)
    return png(figure)


# Curves

TITLES = {"knn": "k-NN", "linear": "linear probe"}


def loss(history: Sequence[dict[str, Any]]) -> bytes:
    """The loss beside the loss of a model that learnt nothing, over the run. history: the lines of metrics.jsonl."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots()
    x, y, unit = series(history, "loss")
    x0, y0, _ = series(history, "uninformed")
    marker = "o" if len(x) < 3 else None
    axes.plot(x0, y0, color=VERMILION, linewidth=1.8, linestyle=(0, (5, 3)), marker=marker)
    axes.plot(x, y, color=BLUE, linewidth=2.4, marker=marker, clip_on=False)
    tidy(axes, unit, x)
    values = np.concatenate([y, y0])
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    elif len(values):
        span = max(np.ptp(values), 0.02 * abs(values).max(), 1e-9)
        axes.set_ylim(values.min() - 0.12 * span, values.max() + 0.18 * span)
    axes.set_ylabel("loss", fontsize=12, color=GREY)
    label = {"textcoords": "offset points", "fontsize": 12, "annotation_clip": False}
    if len(x0):
        middle = len(x0) // 2
        axes.annotate(
            "a model that learnt nothing", (x0[middle], y0[middle]), (0, 7), color=VERMILION, ha="center", **label
        )
    if len(x):
        words = f"this model: {y[-1]:.3g}"
        if len(y0) == len(y) and y0[-1] > 0:
            words += f"\n{y[-1] / y0[-1]:.0%} of the dashed line"
        axes.annotate(words, (x[-1], y[-1]), (8, 0), color=BLUE, va="center", **label)
    return png(figure)


def curves(history: Sequence[dict[str, Any]]) -> bytes:
    """Small multiples of what else was logged: rank and spread of the features, k-NN, rate, gradient, speed, waiting.

    history: the lines of metrics.jsonl; what none of them holds gets no panel.
    """
    panels = [panel for panel in PANELS if len(series(history, panel[0])[0])]
    columns = min(2, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(5 * columns, 2.5 * lines), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "nothing but the loss was logged", ha="center", va="center", fontsize=13, color=GREY)
        return png(figure)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)  # type: ignore[union-attr]
    places = figure.subplots(lines, columns, squeeze=False).flat
    for (key, title, hint), axes in zip(panels, places, strict=False):  # in this order zip takes no place too many
        x, y, unit = series(history, key)
        axes.plot(x, y, color=BLUE, linewidth=1.8, marker="o" if len(x) < 30 else None, markersize=4, clip_on=False)
        tidy(axes, unit, x)
        axes.set_title(title, loc="left", fontsize=12.5, color=INK, pad=22)
        axes.text(0, 1.035, hint, transform=axes.transAxes, fontsize=10.5, color=GREY)
        low, high = float(y.min()), float(y.max())
        if key in ("grad_norm", "update_ratio") and low > 0 and high > 20 * low:
            axes.set_yscale("log")
        elif key == "loader_wait":
            axes.set_ylim(0, max(0.3, 1.1 * high))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        elif key in ("rank", "feature_std", "lr", "images_per_second"):
            axes.set_ylim(0, 1.12 * high if high > 0 else 1)
        if key == "lr":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    for axes in places:  # those left without a panel
        axes.set_axis_off()
    return png(figure)


def comparison(result: dict[str, Any]) -> bytes:
    """Accuracy of several runs by k-NN and by a linear probe, with intervals; hollow: the same encoder untrained.

    result: what compare.json says, {"runs": {name: {"knn", "linear", "untrained"}}, "raw_pixels"}.
    """
    runs = sorted(result["runs"].items(), key=lambda item: item[1]["knn"]["accuracy"])
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(runs)), layout="constrained")
    for axes, (test, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items(), strict=True):
        for y, (_, run) in enumerate(runs):
            score, before = run[test], run["untrained"][test]
            axes.plot([score["low"], score["high"]], [y, y], color=BLUE, linewidth=2.4, solid_capstyle="round")
            axes.plot(score["accuracy"], y, "o", color=BLUE, markersize=7)
            axes.plot(before["accuracy"], y, "o", color=GREY, markersize=6, fillstyle="none")
            axes.annotate(
                f"{score['accuracy']:.3f}",
                (score["accuracy"], y),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=11,
                color=BLUE,
            )
        raw = result["raw_pixels"][test]["accuracy"]
        axes.axvline(raw, color=VERMILION, linewidth=1.5, linestyle=(0, (5, 3)))
        axes.annotate(
            "raw pixels",
            (raw, len(runs) - 0.45),
            (4, 0),
            textcoords="offset points",
            fontsize=11,
            color=VERMILION,
            va="center",
            annotation_clip=False,
        )
        axes.set_title(title, loc="left", fontsize=12.5, color=INK, pad=16)
        axes.set_ylim(-0.5, len(runs) - 0.3)
        axes.set_yticks(range(len(runs)), [name for name, _ in runs])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GREY)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, labelsize=11.5, labelcolor=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    figure.supxlabel("accuracy, with its 95% interval; hollow: the same encoder, untrained", fontsize=11, color=GREY)
    return png(figure)


def ablation(result: dict[str, Any]) -> bytes:
    """Fine-tuned and linear accuracy of every cell of a grid, side by side, with intervals; below, where two or more are known,
    what was published. Over one number, or a number and something else, as curves; else a line a cell.

    result: what ablation.json says.
    """
    tests = [test for test in ("finetune", "linear") if any(cell[test] for cell in result["cells"])] or ["linear"]
    axes, known = result["axes"], [cell for cell in result["cells"] if cell["published"]]
    number = next((axis["name"] for axis in axes if axis["numeric"]), None)
    curved = len(axes) <= 2 and number is not None
    below = len(known) > 1
    tall = 3.6 if curved else 1.3 + 0.5 * len(result["cells"])
    figure = Figure(figsize=(5.6 * len(tests), tall * (1 + below) + 0.3), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # type: ignore[union-attr]
    places = figure.subplots(1 + below, len(tests), squeeze=False)
    for row, panels in zip((False, True), places, strict=False):
        for panel, test in zip(panels, tests, strict=True):
            if curved:
                ablation_curves(panel, result, test, str(number), row)
            else:
                ablation_lines(panel, result, test, row, named=panel is panels[0])
            words = result["published"] if row else {"finetune": "fine-tuned", "linear": "linear probe"}[test]
            hint = {"finetune": "fine-tuned", "linear": "linear probe"}[test] if row else result["here"]
            panel.set_title(words, loc="left", fontsize=12.5, color=VERMILION if row else INK, pad=22)
            panel.text(0, 1.03, hint, transform=panel.transAxes, fontsize=10, color=GREY)
    if known and not below:
        told = [f"{known[0]['published'][test]:.1f}" for test in ("finetune", "linear")]
        where = ", ".join(known[0]["labels"].values())
        figure.supxlabel(
            f"{result['published']}, at {where}: {told[0]} fine-tuned, {told[1]} linear", fontsize=10, color=GREY
        )
    return png(figure)


def ablation_curves(axes: Axes, result: dict[str, Any], test: str, number: str, published: bool) -> None:
    """Accuracy over the setting that is a number, a line for each value of the other; a ring around the default."""
    cells = [cell for cell in result["cells"] if cell["published" if published else test]]
    other = next((axis for axis in result["axes"] if axis["name"] != number), None)
    lines = other["labels"] if other else [None]
    for i, name in enumerate(lines):
        colour = VERMILION if published else SERIES[i % len(SERIES)]
        mine = [cell for cell in cells if other is None or cell["labels"][other["name"]] == name]
        mine = sorted(mine, key=lambda cell: cell["values"][number])
        x = np.array([cell["values"][number] for cell in mine])
        if published:
            y = high = np.array([cell["published"][test] / 100 for cell in mine])
        else:
            y, low, high = (np.array([cell[test][key] for cell in mine]) for key in ("accuracy", "low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.vlines(x, low, high, color=colour, linewidth=1.6, alpha=0.6)
        label = None if other is None else f"{other['name']} {name}"
        axes.plot(x, y, "o-", color=colour, linewidth=2, markersize=6, label=label)
        for cell, place, middle, top in zip(mine, x, y, high, strict=True):
            if cell["usual"]:
                axes.plot(place, middle, "o", color=colour, markersize=13, fillstyle="none", markeredgewidth=1.4)
            if other is None:
                above = {"textcoords": "offset points", "ha": "center", "fontsize": 10, "color": colour}
                axes.annotate(f"{middle:.3f}", (place, top), (0, 10 if published else 5), **above)
    tidy(axes, number.replace("_", " "), np.empty(0))
    every = sorted({cell["values"][number] for cell in result["cells"]})
    if every[0] >= 1 and every[-1] / every[0] >= 8:
        axes.set_xscale("log")
    axes.set_xticks(every, [f"{value:g}" for value in every], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.2)
    if other is not None and cells:
        axes.legend(frameon=False, fontsize=10.5, labelcolor=INK)


def ablation_lines(axes: Axes, result: dict[str, Any], test: str, published: bool, named: bool) -> None:
    """A line a cell, the first on top, with a dot and its interval; a star behind the name of the default."""
    cells, colour = result["cells"], VERMILION if published else BLUE
    for y, cell in enumerate(cells):
        if published and cell["published"]:
            place = cell["published"][test] / 100
        elif not published and cell[test]:
            place = cell[test]["accuracy"]
            axes.plot(
                [cell[test]["low"], cell[test]["high"]], [y, y], color=colour, linewidth=2.4, solid_capstyle="round"
            )
        else:
            continue
        axes.plot(place, y, "o", color=colour, markersize=7)
        axes.annotate(
            f"{place:.3f}", (place, y), (0, 8), textcoords="offset points", ha="center", fontsize=10.5, color=colour
        )
    names = [", ".join(cell["labels"].values()) + (" *" if cell["usual"] else "") for cell in cells]
    axes.set_yticks(range(len(cells)), [shortened(name, 34) for name in names] if named else [""] * len(cells))
    axes.set_ylim(len(cells) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=11, labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))


def robustness(result: dict[str, Any]) -> bytes:
    """Accuracy of a classifier under each corruption at each severity, as a table; beside it, where there were attacks, under
    FGSM and PGD by how far they may go, with 95% intervals.

    result: what robustness.json says, see `unmask.evaluate.robustness`.
    """
    attacks = result.get("attacks")
    lines = len(result["corruptions"])
    figure = Figure(figsize=(13 if attacks else 7.5, max(4.2, 1.9 + 0.36 * lines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]
    if attacks:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        attack_curves(right, result)
    else:
        left = figure.subplots()
    corruption_table(left, result)
    return png(figure)


def corruption_table(axes: Axes, result: dict[str, Any]) -> None:
    """A row a corruption, by kind, a column a severity, and the means of both; the darker, the more is left."""
    least, most = result["majority"]["accuracy"], result["clean"]["accuracy"]
    wide = len(result["severities"])
    gap = 0.3

    def cell(x: float, y: float, accuracy: float, weight: str = "normal") -> None:
        share = min(1.0, max(0.0, (accuracy - least) / max(most - least, 1e-9)))
        axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=LEFT(0.85 * share), linewidth=0))
        ink = "white" if share > 0.75 else INK
        axes.text(x + 0.5, y + 0.52, f"{accuracy:.2f}", ha="center", va="center", fontsize=11, color=ink, weight=weight)

    def row(y: float, name: str, accuracies: list[float], overall: float, weight: str = "normal") -> None:
        axes.text(-0.15, y + 0.52, name, ha="right", va="center", fontsize=11.5, color=INK, weight=weight)
        for x, accuracy in enumerate(accuracies):
            cell(x, y, accuracy, weight)
        cell(wide + gap, y, overall, "bold")

    y = 0.0
    for kind, members in KINDS.items():
        shown = [name for name in members if name in result["corruptions"]]
        if shown:
            axes.text(-3.6, y + 0.52, kind, ha="left", va="center", fontsize=11.5, color=GREY, style="italic")
        for name in shown:
            accuracies = [score["accuracy"] for score in result["corruptions"][name]]
            row(y, called(name), accuracies, float(np.mean(accuracies)))
            y += 1
        y += gap if shown else 0
    row(y, "mean", [score["accuracy"] for score in result["mean"]], result["all"]["accuracy"], "bold")

    for x, severity in enumerate(result["severities"]):
        axes.text(x + 0.5, -0.15, str(severity), ha="center", va="bottom", fontsize=11, color=GREY)
    axes.text(wide + gap + 0.5, -0.15, "mean", ha="center", va="bottom", fontsize=11, color=GREY)
    axes.text(-0.15, -0.15, "severity", ha="right", va="bottom", fontsize=11, color=GREY)
    axes.set_xlim(-3.6, wide + gap + 1)
    axes.set_ylim(y + 1.05, -0.75)
    axes.set_axis_off()
    axes.set_title("Accuracy under common corruptions", loc="left", fontsize=12.5, color=INK, pad=10)
    words = f"darkest: {most:.2f}, as on clean images; white: {least:.2f}, always the commonest class"
    axes.text(0, -0.02, words, transform=axes.transAxes, fontsize=10.5, color=GREY, va="top")


def attack_curves(axes: Axes, result: dict[str, Any]) -> None:
    """FGSM and PGD over epsilon, in steps of equal width from none, beside the clean accuracy and the commonest class."""
    attacks, clean = result["attacks"], result["clean"]
    x = np.arange(len(attacks["epsilons"]) + 1)
    label = {"textcoords": "offset points", "fontsize": 11.5, "annotation_clip": False}
    for key, colour, style in (("fgsm", BLUE, "o-"), ("pgd", VERMILION, "s-")):
        scores = [clean, *attacks[key]]
        middle, low, high = (np.array([score[name] for score in scores]) for name in ("accuracy", "low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, middle, style, color=colour, linewidth=2.2, markersize=5.5, clip_on=False)
        away = 0 if abs(attacks["fgsm"][-1]["accuracy"] - attacks["pgd"][-1]["accuracy"]) > 0.04 else 8
        place = (9, away if key == "fgsm" else -away)
        axes.annotate(key.upper(), (x[-1], middle[-1]), place, color=colour, va="center", **label)
    commonest = result["majority"]["accuracy"]
    for accuracy, words, where in ((clean["accuracy"], "clean", "right"), (commonest, "the commonest class", "left")):
        axes.axhline(accuracy, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)
        at = (x[-1] if where == "right" else 0.1, accuracy)
        axes.annotate(f"{words}: {accuracy:.2f}", at, (0, 5), color=GREY, ha=where, **label)
    tidy(axes, "how far each value may move, in levels of 255", np.empty(0))
    axes.set_xticks(x, ["0", *(f"{255 * epsilon:.3g}" for epsilon in attacks["epsilons"])])
    axes.set_xlim(0, x[-1])
    axes.set_ylim(0, min(1.0, 1.15 * max(clean["high"], commonest)))
    axes.tick_params(axis="x", pad=7)
    axes.set_title("Accuracy under attack", loc="left", fontsize=12.5, color=INK, pad=10)


def series(history: Sequence[dict[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Times and values of one quantity where it is finite, and the unit of time: epoch, or step in a short run."""
    unit = "epoch" if history and history[-1].get("epoch", 0) >= 2 else "step"
    pairs = [(line[unit], line[key]) for line in history if line.get(key) is not None and np.isfinite(line[key])]
    x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return x, y, unit


def tidy(axes: Axes, unit: str, x: NDArray[np.float64]) -> None:
    """Few ticks, faint lines, no box."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=11, labelcolor=GREY)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(unit, fontsize=11, color=GREY)
    if len(x):
        axes.set_xlim(0, x[-1] if len(x) > 1 else 1.5 * x[-1])


# What a classifier gets right

COUNTED = 20
"""Classes up to which a confusion matrix has its counts written in."""
DOTS = 40
"""Classes whose recall is shown at most."""


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """What each class was taken for. counts: (K, K) whole numbers, rows the truth; the colour of a cell is its share of the
    row: blue what was right, vermilion what was not. A row without images is grey."""
    table, K = np.asarray(counts, dtype=np.int64), len(classes)
    totals = table.sum(1)
    shares = table / np.maximum(totals, 1)[:, None]
    own = np.eye(K, dtype=bool)[..., None]
    strength = np.sqrt(shares)[..., None]  # so that one in a hundred still shows
    picture = 1 - strength * (1 - np.where(own, to_rgb(BLUE), to_rgb(VERMILION)))
    picture[totals == 0] = to_rgb("#EEEEEE")
    cell = 1.0 if K <= 4 else 0.62 if K <= 10 else 0.5 if K <= COUNTED else min(0.5, 11 / K)  # inch
    size = 11 if K <= COUNTED else max(4.5, min(11, 58 * cell))  # points
    longest, every = 22 if K <= COUNTED else 16, -(-K // 110)  # of more names than that only some can be read
    names = [shortened(name, longest) for name in classes]
    figure = Figure(figsize=(max(4.2, cell * K + 2.2), max(3.2, cell * K + 2)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, interpolation="nearest")
    if K <= COUNTED:
        for i, j in zip(*np.nonzero(table), strict=True):
            dark = strength[i, j, 0] > 0.65
            axes.text(
                j,
                i,
                brief(int(table[i, j])),
                ha="center",
                va="center",
                fontsize=11 if K <= 10 else 8.5,
                color="white" if dark else INK,
            )
    axes.set_xticks(range(0, K, every), names[::every], rotation=90 if max(map(len, names)) * 0.1 > cell else 0)
    labels = [f"{name} ({total:,})" if K <= COUNTED else name for name, total in zip(names, totals, strict=True)]
    axes.set_yticks(range(0, K, every), labels[::every])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labelsize=size, labelcolor=INK)
    axes.set_xlabel("taken for", fontsize=12, color=GREY, labelpad=8)
    axes.set_ylabel("in truth", fontsize=12, color=GREY, labelpad=8)
    axes.spines[:].set_color(FAINT)
    if every == 1:
        axes.set_xticks(np.arange(K - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(K - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white" if K > COUNTED else FAINT, linewidth=0.8 if K <= COUNTED else 0.3)
        axes.tick_params(which="minor", length=0)
    return png(figure)


def reliability(calibration: dict[str, Any]) -> bytes:
    """How often the model is right where it is so sure (Guo et al. 2017, figure 1), above how often it is so sure.

    calibration: as `unmask.evaluate.metrics.report` gives it. Bars are what was right in each bin of confidence; what they
    lack to the confidence is hatched in vermilion, what they have above it in white. Bins of fewer than 10 images are faint.
    """
    bins = [one for one in calibration["bins"] if one["n"]]
    n = sum(one["n"] for one in bins)
    figure = Figure(figsize=(6.4, 7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, hspace=0.04)  # type: ignore[union-attr]
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for one in bins:
        left, width = one["low"], one["high"] - one["low"]
        right, sure = one["accuracy"], one["confidence"]
        faint = 0.35 if one["n"] < 10 else 1.0  # of a few images the bar is noise
        place = {"x": left, "width": width, "align": "edge"}
        axes.bar(height=right, color=BLUE, alpha=0.8 * faint, edgecolor="white", linewidth=1, **place)
        colour = VERMILION if sure > right else "white"
        axes.bar(
            height=abs(sure - right),
            bottom=min(sure, right),
            facecolor=(*to_rgb(VERMILION), 0.15 * faint) if sure > right else "none",
            edgecolor=(*to_rgb(colour), faint),
            linewidth=0,
            hatch="////",
            **place,
        )
        axes.plot([left, left + width], [sure, sure], color=colour, linewidth=1.6, alpha=faint)
        below.bar(height=one["n"] / n, color=GREY, edgecolor="white", linewidth=1, **place)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_ylabel("how often it is right", fontsize=12, color=GREY)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    gap, low, high = (calibration[key] for key in ("gap", "gap_low", "gap_high"))
    words = f"calibration error {calibration['ece']:.3f} [{calibration['low']:.3f}, {calibration['high']:.3f}]"
    hint = f"{calibration['by_chance']:.3f} would be chance on {n:,} images"
    hint += f"; too sure by {gap:.3f}" if low > 0 else f"; too unsure by {-gap:.3f}" if high < 0 else ""
    axes.set_title(words, loc="left", fontsize=12.5, color=INK, pad=24)
    axes.text(0, 1.025, hint, transform=axes.transAxes, fontsize=10.5, color=GREY)
    below.set_ylabel("images", fontsize=12, color=GREY)
    below.set_xlabel("how sure it is: probability of the class it names", fontsize=12, color=GREY)
    for panel in (axes, below):
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.spines["bottom"].set_color(GREY)
        panel.grid(axis="y", color=FAINT, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(which="both", length=0, labelsize=11, labelcolor=GREY)
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    below.yaxis.set_major_locator(MaxNLocator(3))
    return png(figure)


def recalls(classes: Sequence[dict[str, Any]]) -> bytes:
    """How much of each class was found, the worst on top, with 95% intervals: recall or, of several labels an image, average
    precision. classes: as `unmask.evaluate.metrics.report` gives them; those without images are named below."""
    key = next((key for key in ("average_precision", "recall") if classes and key in classes[0]), "recall")
    there = sorted((one for one in classes if one[key] is not None), key=lambda one: (one[key], -one["n"]))
    shown, more = there[:DOTS], len(there) - DOTS
    absent = [one["name"] for one in classes if one[key] is None]
    notes = [f"and {more:,} more classes, all {shown[-1][key]:.0%} or better"] if more > 0 else []
    if absent:
        listed = ", ".join(shortened(name, 22) for name in absent[:3]) + (", …" if len(absent) > 3 else "")
        notes.append(f"{len(absent):,} without a test image: {listed}")
    step = 0.3 if len(shown) > 15 else 0.38
    figure = Figure(figsize=(8, 1.3 + step * max(len(shown), 2) + 0.3 * len(notes)), layout="constrained")
    axes = figure.subplots()
    for y, one in enumerate(shown):
        colour = VERMILION if one["n"] < 10 else BLUE
        axes.plot([one["low"], one["high"]], [y, y], color=colour, linewidth=2.4, solid_capstyle="round", clip_on=False)
        axes.plot(one[key], y, "o", color=colour, markersize=7, clip_on=False)
    axes.set_yticks(range(len(shown)), [f"{shortened(one['name'], 28)} ({one['n']:,})" for one in shown])
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    if there:
        mean = float(np.mean([one[key] for one in there]))
        axes.axvline(mean, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)
        axes.annotate(
            f"mean {mean:.0%}",
            (mean, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=10.5,
            color=GREY,
        )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=11 if len(shown) <= 15 else 10, labelcolor=INK)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    what = "found of the images of a class" if key == "recall" else "average precision"
    few = "; vermilion: fewer than 10 images" if any(one["n"] < 10 for one in shown) else ""
    axes.set_xlabel("\n".join([f"{what}, with 95% intervals{few}", *notes]), fontsize=11, color=GREY)
    return png(figure)


def partial(points: dict[str, Sequence[dict[str, Any]]]) -> bytes:
    """Accuracy against how many of the last blocks are tuned (He et al. 2022, figure 9), a line each name.

    points: by name {"blocks", "accuracy", "low", "high"}, blocks 0 (a linear probe), 0.5 (the MLP of the last block), 1, 2,
    … or "all"; the steps are set at equal distances, as in the paper.
    """
    steps = {one["blocks"] for line in points.values() for one in line}
    order = sorted(steps, key=lambda blocks: (isinstance(blocks, str), blocks if not isinstance(blocks, str) else 0))
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    lines = [(name, sorted(line, key=lambda one: order.index(one["blocks"]))) for name, line in points.items()]
    shift = 0.06 * (np.arange(len(lines)) - (len(lines) - 1) / 2)  # so that whiskers stand side by side
    ends = []
    for i, (name, line) in enumerate(lines):
        colour = SERIES[i % len(SERIES)]
        x = np.array([order.index(one["blocks"]) for one in line]) + shift[i]
        y, low, high = (np.array([one[key] for one in line]) for key in ("accuracy", "low", "high"))
        axes.vlines(x, low, high, color=colour, linewidth=2, alpha=0.5)
        axes.plot(x, y, "o-", color=colour, linewidth=2, markersize=6.5)
        ends.append((float(y[-1]), name, colour))
    low, high = axes.get_ylim()
    least, before = 0.06 * (high - low), -np.inf  # between the middles of two names
    for y, name, colour in sorted(ends):
        place = before = max(y, before + least)
        axes.annotate(
            f"{shortened(name, 22)} {y:.3f}",
            (len(order) - 1 + shift[-1], place),
            (10, 0),
            textcoords="offset points",
            va="center",
            fontsize=11.5,
            color=colour,
            annotation_clip=False,
        )
    axes.set_ylim(low, max(high, before))
    axes.set_xlim(-0.3, len(order) - 0.7)
    axes.set_xticks(range(len(order)), [BLOCKS.get(blocks, f"{blocks}") for blocks in order])
    axes.set_xlabel("blocks tuned, from the last", fontsize=12, color=GREY)
    axes.set_ylabel("accuracy", fontsize=12, color=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=11, labelcolor=GREY)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return png(figure)


BLOCKS: dict[Any, str] = {0: "0\nlinear probe", 0.5: "½\nits MLP", "all": "all\nfine-tuning"}


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters, its middle left out: of long names the ends differ."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2 + 1]}…{name[-(most // 2 - 1) :]}"


def brief(count: int) -> str:
    """A count of at most four letters."""
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


# What the encoder learnt


def positions(similarity: Tensor, grid: tuple[int, int]) -> bytes:
    """How alike each patch's position embedding is to all others (Dosovitskiy et al. 2021, figure 7, centre).

    similarity: cosines (N, N), N = rows * columns of `grid`, without the class token. At most 8x8 patches are
    shown, evenly spread.
    """
    rows, columns = grid
    maps = similarity.detach().float().cpu().reshape(rows, columns, rows, columns).numpy()
    shown = [np.unique(np.linspace(0, n - 1, min(n, 8)).round().astype(int)) for n in grid]
    scale = -(-64 // max(grid))  # pixels a patch: enough that the gaps can be thin
    height, width, gap = rows * scale, columns * scale, max(3, max(grid) * scale // 16)
    mosaic = np.full((len(shown[0]) * (height + gap) - gap, len(shown[1]) * (width + gap) - gap), np.nan)
    for i, row in enumerate(shown[0]):
        for j, column in enumerate(shown[1]):
            y, x = i * (height + gap), j * (width + gap)
            mosaic[y : y + height, x : x + width] = maps[row, column].repeat(scale, axis=0).repeat(scale, axis=1)

    inch = 7 / max(mosaic.shape)
    figure = Figure(figsize=(max(2.5, mosaic.shape[1] * inch) + 1.8, max(2.5, mosaic.shape[0] * inch) + 0.7))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    picture = axes.imshow(mosaic, cmap="viridis", vmax=1.0, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=11, labelcolor=GREY)
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(len(shown[0]))], [str(n + 1) for n in shown[0]])
    axes.set_xticks([j * (width + gap) + width / 2 for j in range(len(shown[1]))], [str(n + 1) for n in shown[1]])
    axes.set_xlabel("column of the patch", fontsize=12, color=INK)
    axes.set_ylabel("row of the patch", fontsize=12, color=INK)
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, aspect=25, pad=0.03)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0, labelsize=11, labelcolor=GREY)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))
    bar.set_label("cosine similarity", fontsize=12, color=INK)
    return png(figure)


def filters(weight: Tensor, patch_size: int, channels: int) -> bytes:
    """The first 28 principal components of the patch embedding's filters (Dosovitskiy et al. 2021, figure 7, left), or of
    a first convolution's.

    weight: (D, P*P*C), each filter in the order (row, column, channel) as `patchify` cuts. Fewer where there are fewer.
    """
    centred = weight.detach().double().cpu()
    centred = centred - centred.mean(dim=0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    components = components[: min(28, len(centred) - 1)]
    # a component's sign means nothing: make its strongest entry bright, and 0 mid-grey
    strongest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    images = ((components / strongest + 1) / 2).reshape(-1, patch_size, patch_size, channels).permute(0, 3, 1, 2)
    enlarge, (side, _) = fit_tile(patch_size, patch_size, side=128)
    gap, size = 10, 24
    across = min(7, len(images))
    down = -(-len(images) // across)
    share = float(singular[: len(images)].square().sum() / singular.square().sum().clamp(min=1e-12))
    words = [f"{share:.0%} of the filters' variance"]
    words += [text for text in (channels_shown(channels),) if text]
    canvas = np.ones((down * (side + gap) + gap + len(words) * 2 * size, max(440, across * (side + gap) + gap), 3))
    for i, image in enumerate(images):
        y, x = (gap + k * (side + gap) for k in divmod(i, across))
        frame(canvas, enlarge(image), y, x)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    figure.figimage(canvas, origin="upper", zorder=-1)
    for i, text in enumerate(words):
        write(figure, text, gap, down * (side + gap) + gap + (2 * i + 1) * size, size, color=GREY)
    return png(figure)


# Ink


def write(figure: Figure, text: str, x: float, y: float, size: float, color: str = INK, align: str = "left") -> None:
    """Text `size` pixels high with its middle y pixels below the top and x pixels from the left."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, 1 - y / height, text, fontsize=size * 72 / DPI, color=color, ha=align, va="center")


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return file.getvalue()
