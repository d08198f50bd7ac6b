"""One offline HTML page a run: is it working, what did it learn, what to do next.

Everything is in the file: styles inline, pictures as data, no script; its content policy forbids it to load anything.
"""

import base64
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from unmask import figures
from unmask.training.run import Run
from unmask.training.run import write as write_whole

# verdict: class of the banner (its colour) and a sign that says the same without colour
BANNERS = {
    "learning": ("good", "✓"),
    "no better than uninformed": ("bad", "✗"),
    "collapsed": ("bad", "✗"),
    "diverged": ("bad", "✗"),
    "starved by the loader": ("warn", "!"),
}
PROBES = {
    "knn": ("k-NN", "the label of the nearest training images; nothing is fitted"),
    "linear": ("linear probe", "one linear layer on the frozen features"),
    "logistic": ("logistic regression", "the same fitted to its end, the penalty chosen by cross-validation"),
}
FEATURES = {
    "trained": "this encoder",
    "projection": "behind its projection head, which is thrown away",
    "untrained": "untrained",
    "raw_pixels": "raw pixels",
}
PROTOCOLS = {
    "test set": "a test set of its own",
    "by group": "groups kept apart",
    "by image": "images split at random",
}
WHY_GROUPS = (
    "Images of one group resemble each other. Split by image, pictures of one group stand on both sides and the test "
    "can be passed by knowing the group again; split by group, only what carries over to new groups counts."
)
LISTED = 50
"""How many unreadable files, or classes, are named."""
SUPERVISED = ("finetune", "distill")
"""Methods that learn from labels, or from a teacher's answers, and give a classifier."""

HEADED = {"detect": "Objects found", "segment": "Pixels named"}
"""Methods that put more than a classifier on an encoder, and what they do."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #5b636d; --line: #d9dde2; --tint: #f4f6f8;
  --bar: #b9c4cf; --own: #0072b2; --good: #00704f; --warn: #8a5a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e8eaed; --soft: #a3abb5; --line: #353b42;
  --tint: #1e2328; --bar: #56616c; --own: #4aa8e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .4rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft, small, figcaption { color: var(--soft); font-size: .92rem; }
.banner { border-radius: .6rem; padding: 1rem 1.3rem; margin: 1.2rem 0; color: #fff; background: #4a5560; }
.banner.good { background: var(--good); } .banner.warn { background: var(--warn); }
.banner.bad { background: var(--bad); }
.banner b { display: block; font-size: 1.5rem; line-height: 1.3; }
.banner p { max-width: none; } .banner ul { margin: .5rem 0 0; padding-left: 1.2rem; }
.facts { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(max(8.5rem, 22%), 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--tint); border-radius: .5rem; padding: .5rem .8rem; }
.facts b { display: block; font-size: 1.2rem; }
.facts span { color: var(--soft); font-size: .85rem; }
figure { margin: .8rem 0; }
figure div { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; overflow-x: auto; }
img { display: block; width: 100%; min-width: 34rem; height: auto; margin: auto; }
.names td:first-child, .names th { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.scores td { vertical-align: middle; } .scores th { border: 0; padding-top: 1.1rem; }
.scores th small { font-weight: normal; display: block; }
.scores .heads th { padding: .6rem 0 0; color: var(--soft); font-weight: normal; }
.scores .heads + tr th { padding-top: 0; }
.scores td:first-child { width: 9rem; white-space: nowrap; } .scores .number { width: 9.5rem; }
.scores .own td { font-weight: 600; }
.track { position: relative; height: 1.1rem; min-width: 4rem; background: var(--tint); }
.track * { position: absolute; }
.fill { inset: 0 auto 0 0; background: var(--bar); } .own .fill { background: var(--own); }
.whisker { top: 50%; height: 2px; margin-top: -1px; background: var(--ink); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -4px; height: 10px; width: 2px;
  background: var(--ink); }
.whisker::after { right: 0; }
.majority { top: -.35rem; bottom: -.35rem; border-left: 2px dashed #d55e00; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 2.5rem; }
.sides .scores td:first-child, .sides .scores .number { width: 6rem; }
.sides .number small { display: block; font-size: .8rem; font-weight: normal; }
.key { color: #d55e00; font-weight: 600; }
a { color: var(--own); } .cells { overflow-x: auto; } .cells th { white-space: nowrap; }
code, pre { font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--tint); border-radius: .5rem; padding: .8rem 1rem; white-space: pre-wrap; margin: .5rem 0; }
details { margin: .8rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { font-size: .95rem; } .scores td { padding-right: .4rem; } .scores td:last-child,
  .scores .heads th:last-child { display: none; } .scores td:first-child, .scores .number { width: 6rem; }
  .scores .number small { display: block; font-size: .8rem; } }
"""


def write(run: Run, pictures: dict[str, bytes]) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path.

    pictures: PNG bytes under the names "reconstruction", "attention", "pooling", "positions" and "filters", for a classifier
    "confusion", "reliability", "recalls" and "robustness", for a detector "found", for a segmenter "segments" and "mistaken",
    each optional. The loss, the curves, the probes and the test are drawn from the run's own files; what is missing there is
    absent from the page.
    """
    path = run.folder / "report.html"
    write_whole(path, page(run, pictures))
    return path


def page(run: Run, pictures: dict[str, bytes]) -> str:
    settings, result, probe, history = run.settings, run.read("result.json"), run.read("probe.json"), run.history()
    title, *about = heading(settings, result)
    parts = [
        f'<header><h1>{text(title)}</h1><p class="soft">{text(" · ".join(about))}</p></header>',
        banner(result),
        facts(result),
        tested(run.read("test.json"), pictures),
        found(run.read("test.json"), pictures),
        segmented(run.read("test.json"), pictures),
        loss(history, settings.get("method") in (*SUPERVISED, *HEADED)),
        reconstruction(pictures),
        attention(pictures),
        pooling(pictures),
        probes(probe, result),
        robustness(run.read("robustness.json"), pictures),
        curves(history),
        learnt(pictures),
        all_settings(settings),
        unreadable(result),
        commands(run, settings, pictures),
        versions(settings, result),
    ]
    return document(" · ".join([title, *about]), parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of its parts, those left out that say nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


NAMES = {"moco": "MoCo", "moco-v2": "MoCo v2", "moco-v3": "MoCo v3", "simclr": "SimCLR", "simclr-v2": "SimCLR v2"}
NAMES |= {"beit": "BEiT", "dvae": "Discrete VAE"}
"""Methods that are not written in capitals."""


# The parts of the page, in order; each is empty where it has nothing to say


def heading(settings: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """What was trained, on what, how many, when."""
    data = settings.get("data") or {}
    encoder = (settings.get("encoder") or {}).get("name") or (settings.get("settings") or {}).get("encoder") or ""
    images, method = result.get("images", data.get("images")), str(settings.get("method", "run"))
    title = f"{NAMES.get(method, method.upper())} {encoder}".strip()
    told = settings.get("settings") or {}
    if method in HEADED:
        begun = told.get("run") or f"{encoder} from scratch"
        title = f"{HEADED[method]} on {begun}"
    elif method == "finetune":
        title = f"Fine-tuned {told['run']}" if told.get("run") else f"{encoder} trained from scratch".strip()
    elif method == "distill":
        title = f"{encoder or told.get('student') or 'A copy'} taught by {told.get('teacher')}"
    words = [
        title,
        str(data.get("name", "")),
        f"{images:,} images" if images else "",
        str(settings.get("date", ""))[:16].replace("T", " "),
    ]
    return [word for word in words if word]


def banner(result: dict[str, Any]) -> str:
    if "verdict" not in result:
        return '<div class="banner"><b>no verdict yet</b><p>The run goes on, or was stopped before its end.</p></div>'
    colour, sign = BANNERS.get(result["verdict"], ("warn", "!"))
    sentence = result.get("sentence", "").rstrip(".") + "."
    advice = "".join(f"<li>{text(line)}</li>" for line in result.get("advice", ()))
    return (
        f'<div class="banner {colour}"><b>{sign} {text(result["verdict"])}</b><p>{text(sentence)}</p>'
        + (f"<ul>{advice}</ul>" if advice else "")
        + "</div>"
    )


def facts(result: dict[str, Any]) -> str:
    shown = [
        ("loss", number(result.get("loss"))),
        ("loss of a model that learnt nothing", number(result.get("uninformed_loss"))),
        ("steps", count(result.get("steps"))),
        ("images per second", count(result.get("images_per_second"))),
        ("time", duration(result.get("seconds"))),
        ("waiting for images", share(result.get("loader_wait"))),
        ("rank of the features", number(result.get("rank"))),
        ("parameters of the encoder", count(result.get("encoder_parameters"))),
    ]
    tiles = "".join(f"<div><b>{text(value)}</b><span>{name}</span></div>" for name, value in shown if value)
    return f'<div class="facts">{tiles}</div>' if tiles else ""


def tested(test: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """What test.json says: `unmask.evaluate.metrics.report`, or `report_multilabel`, with the protocol and the data."""
    if not test or "kind" in test:  # what has a kind is judged by more than names
        return ""
    several = "map" in test
    where = [test.get("data"), test.get("protocol"), f"{test['n']:,} images" if "n" in test else ""]
    body = f"<p><b>{text(test.get('sentence', ''))}</b></p>"
    if test.get("warning"):
        body += f'<div class="banner warn"><b>! labels and groups go together</b><p>{text(test["warning"])}</p></div>'
    body += f'<p class="soft">{text(" · ".join(str(word) for word in where if word))}</p>'
    body += measures(test)
    if test.get("seeds"):
        body += f"<p>{text(again(test['seeds']))}</p>"
    for name, title, words, alt, width in (
        CONFUSION,
        SEVERAL if several else RECALLS,
        RELIABILITY,
    ):
        if name in pictures:
            body += f"<h3>{title}</h3><p>{words}</p>{picture(pictures[name], alt, width)}"
    body += by_class(test.get("classes") or (), several)
    words = "Whether it is right where nobody told it the answer: none of these images was trained on."
    return section("What it gets right, on images it never saw", words, body)


def found(test: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """What test.json says of a detector: `unmask.evaluate.detection.report`, with the protocol and the data."""
    if test.get("kind") != "detection":
        return ""
    where = [test["data"], test["protocol"], f"{test['n']:,} images with {test['objects']:,} objects"]
    body = f"<p><b>{text(test['sentence'])}</b></p>"
    body += f'<p class="soft">{text(" · ".join(where))}. Brackets: 95% intervals over images.</p>'
    shown = [
        ("average precision at half overlap", test, "ap50"),
        ("average precision, overlaps 0.5 to 0.95", test, "ap"),
        ("at an overlap of 0.75", test, "ap75"),
        ("of masks, at half overlap", test.get("masks") or {}, "ap50"),
        ("of masks, overlaps 0.5 to 0.95", test.get("masks") or {}, "ap"),
        ("always finding the same boxes, at half overlap", test["blind"], "ap50"),
    ]
    body += tiles(shown)
    if "found" in pictures:
        body += picture(pictures["found"], "Test images with what was found and what is there.")
        body += "<p>Test images evenly spread over the set, not chosen. Of finds only those with a score of 0.5 or more.</p>"
    rows = [
        (one["name"], f"{one['n']:,}", *(spread(one, key) for key in ("ap50", "ap")))
        for one in sorted(test["classes"], key=lambda one: -1 if one["ap50"] is None else one["ap50"])[:LISTED]
    ]
    body += table(("class, the worst first", "objects", "at half overlap", "overlaps 0.5 to 0.95"), rows)
    words = (
        "Average precision is 1 where all objects are found, and nothing else is found with a higher score; a find counts if its "
        "box overlaps the true one by half (intersection over union), or by the share that is said."
    )
    return section("What it finds, in images it never saw", words, body)


def segmented(test: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """What test.json says of a segmenter: `unmask.evaluate.segmentation.report`, with the protocol and the data."""
    if test.get("kind") != "segmentation":
        return ""
    where = [test["data"], test["protocol"], f"{test['n']:,} images"]
    body = f"<p><b>{text(test['sentence'])}</b></p>"
    body += f'<p class="soft">{text(" · ".join(where))}. Brackets: 95% intervals over {test["resampled"]}.</p>'
    shown = [
        ("mIoU: mean over the classes", test, "miou"),
        ("pixels that are right", test, "accuracy"),
        ("of each class on average", test, "mean_accuracy"),
        (f"mIoU of always naming {test['majority']['name']}", test["majority"], "miou"),
        ("pixels right so", test["majority"], "accuracy"),
    ]
    body += tiles(shown)
    if "segments" in pictures:
        body += picture(pictures["segments"], "Test images, what they are and what is said of them.", "54rem")
        body += (
            "<p>Test images evenly spread from the worst to the best, by their own mIoU over the classes they have.</p>"
        )
    total = max(1, test["pixels"])
    rows = [
        (
            one["name"],
            f"{one['pixels'] / total:.2%}",
            f"{one['images']:,}",
            "none there" if one["iou"] is None else f"{one['iou']:.3f} [{one['low']:.3f}–{one['high']:.3f}]",
            share(one["recall"]),
            share(one["precision"]) if one["said"] else "never named",
        )
        for one in sorted(test["classes"], key=lambda one: math.inf if one["iou"] is None else one["iou"])[:LISTED]
    ]
    heads = ("class, the worst first", "of all pixels", "images", "IoU", "found", "right where named")
    body += table(heads, rows)
    if len(test["classes"]) > LISTED:
        body += f'<p class="soft">and {len(test["classes"]) - LISTED:,} more, in test.json</p>'
    if "mistaken" in pictures:
        words = "A row for each class, its pixels in brackets; a column for what they were called. Blue is right, vermilion not."
        body += f"<h3>What is taken for what</h3><p>{words}</p>"
        body += picture(pictures["mistaken"], "Pixels of each class under each name they were given.", "46rem")
    words = (
        "IoU, intersection over union, of a class: of the pixels that are of it or were called so, the share that is both. It is "
        "reckoned over the pixels of all images together, so a small class counts as much as a large one in the mean."
    )
    return section("What it says of every pixel, in images it never saw", words, body)


def tiles(shown: Iterable[tuple[str, dict[str, Any], str]]) -> str:
    """Figures with their intervals: what each is, and where it stands under which key."""
    told = "".join(
        f"<div><b>{interval(of, key, f'{key}_low', f'{key}_high')}</b><span>{text(name)}</span></div>"
        for name, of, key in shown
        if of.get(key) is not None
    )
    return f'<div class="facts">{told}</div>'


def spread(one: dict[str, Any], key: str) -> str:
    """A figure of a class with its interval, or that there was nothing to find."""
    return "none there" if one[key] is None else f"{one[key]:.3f} [{one[f'{key}_low']:.3f}–{one[f'{key}_high']:.3f}]"


CONFUSION = (
    "confusion",
    "What is taken for what",
    "A row for each class, its images in brackets; a column for what they were called. Blue, on the diagonal, is right; "
    "vermilion is not. A column of vermilion is a class that is named too often. Two classes that are taken for each other "
    "both ways look alike, or are labelled unevenly: look at those images first. A grey row had no image.",
    "Counts of each class under each name it was given.",
    "46rem",
)
RECALLS = (
    "recalls",
    "What of each class is found",
    "The worst class is on top. Where the lines of two classes overlap widely, this test does not tell which of them is found "
    "more often; of fewer than ten images little can be said at all. A class of which all were found has no line, however "
    "few they are: resampling cannot show the miss that has not been seen.",
    "Share of each class that was found, with 95% intervals.",
    "46rem",
)
SEVERAL = (
    *RECALLS[:2],
    "Average precision, the worst class on top: 100% if every image that has the class stands before all that have it not, "
    "and about the share of images that have it if probabilities say nothing.",
    "Average precision of each class, with 95% intervals.",
    "46rem",
)
RELIABILITY = (
    "reliability",
    "Whether it is as sure as it is right",
    "Of all images of which it was, say, 80% sure, 80% should be right: bars that end at the dashed line. Hatched in "
    "vermilion, it was surer than right; hatched in white, it was right more often than it said. Below, how many images each "
    "bar stands for: short ones there make noise above, and bars of fewer than ten images are faint. The calibration error "
    "is the mean distance from the line (Guo et al. 2017).",
    "How often the model is right, by how sure it is.",
    "34rem",
)


def measures(test: dict[str, Any]) -> str:
    """The figures of a test as tiles, each with its interval."""
    calibration, majority = test.get("calibration") or {}, test.get("majority") or {}
    shown = [
        ("accuracy", test, "accuracy", ""),
        ("balanced accuracy: every class counts alike", test, "balanced", "balanced_"),
        ("accuracy of always naming the commonest class", majority, "accuracy", ""),
        ("mean average precision", test, "map", ""),
        ("mean average precision of guessing", test, "by_chance", "by_chance_"),
        ("F1 of all labels together", test, "micro_f1", "micro_f1_"),
        ("calibration error: 0 is as sure as right", calibration, "ece", ""),
        ("Brier score: 0 is perfect", test, "brier", "brier_"),
        ("minus log of the probability of the truth", test, "nll", "nll_"),
    ]
    tiles = "".join(
        f"<div><b>{interval(of, key, f'{start}low', f'{start}high')}</b><span>{name}</span></div>"
        for name, of, key, start in shown
        if of.get(key) is not None
    )
    return f'<div class="facts">{tiles}</div>' if tiles else ""


def again(seeds: dict[str, Any]) -> str:
    """What training anew would change, in a sentence."""
    names = {"accuracy": "accuracy", "balanced": "balanced", "map": "mean average precision", "micro_f1": "F1"}
    names |= {"ece": "calibration error"}
    parts = [
        f"{name} {seeds[key]['mean']:.3f}"
        + (f" ± {seeds[key]['deviation']:.3f}" if seeds[key].get("deviation") is not None else "")
        for key, name in names.items()
        if key in seeds
    ]
    n = max((one["n"] for one in seeds.values()), default=0)
    return (
        f"Trained {n} times from different seeds: {', '.join(parts)} (mean ± standard deviation from run to run, which the "
        "intervals above do not hold)."
    )


def by_class(classes: Sequence[dict[str, Any]], several: bool) -> str:
    """A table of classes, the worst first."""
    if not classes:
        return ""
    key = "average_precision" if several else "recall"
    worst = sorted(classes, key=lambda one: (math.inf if one.get(key) is None else one[key], -one["n"]))
    rows = [
        (
            one["name"],
            f"{one['n']:,}",
            "no image" if one.get(key) is None else f"{one[key]:.3f} [{one['low']:.3f}–{one['high']:.3f}]",
            *((share(one.get("recall")),) if several else ()),
            share(one.get("precision")) or "never named",
            f"{one['predicted']:,}",
        )
        for one in worst[:LISTED]
    ]
    heads = ("class", "images", "average precision" if several else "found", *(("found at 0.5",) if several else ()))
    body = table((*heads, "right where named", "named"), rows)
    if len(classes) > LISTED:
        body += f'<p class="soft">and {len(classes) - LISTED:,} more, in test.json</p>'
    unfolded = " open" if len(classes) <= 12 else ""
    return f"<details{unfolded}><summary>{len(classes):,} classes, worst first</summary>{body}</details>"


def loss(history: list[dict[str, Any]], supervised: bool) -> str:
    if not history:
        return ""
    idle = "had only learnt how common each answer is" if supervised else "had learnt nothing of the image"
    return section(
        "Loss",
        f"The loss alone says little. The dashed line is what a model would score that {idle}, "
        "measured on the same batches: the further below it, the more was learnt.",
        picture(figures.loss(history), "Loss of this model and of a model that learnt nothing."),
    )


def reconstruction(pictures: dict[str, bytes]) -> str:
    if "reconstruction" not in pictures:
        return ""
    return section(
        "What it paints",
        "The model sees only the patches that are not grey in “masked”, and paints the rest. Blurred shapes in the "
        "right place are what a good masked autoencoder gives; flat grey or noise is not.",
        picture(pictures["reconstruction"], "Original, masked and reconstructed images."),
    )


def attention(pictures: dict[str, bytes]) -> str:
    if "attention" not in pictures:
        return ""
    return section(
        "Where it looks",
        "The attention of the class token in the last block, head by head, or of all tokens on average where there is none: in "
        "colour what holds most of it, brighter where it is more. Heads that pick out things are what DINO is known for; "
        "the same frame or corner in every image is not. “Object” is the largest piece of what the heads look at together.",
        picture(pictures["attention"], "Attention of each head over images, and the main object."),
    )


def pooling(pictures: dict[str, bytes]) -> str:
    if "pooling" not in pictures:
        return ""
    return section(
        "What the vector is made of",
        "This encoder learns how much each place of an image counts in the vector that stands for it: in colour the places "
        "that make most of it, brighter where it is more. Places that change with what is in the image say that it chooses; "
        "the same frame or corner in every image does not.",
        picture(pictures["pooling"], "Images, each beside the weights of its places in the vector."),
    )


def probes(probe: dict[str, Any], result: dict[str, Any]) -> str:
    if not probe:
        return ""
    sentence = f"<p><b>{text(probe['sentence'])}</b></p>" if probe.get("sentence") else ""
    if probe.get("protocol") == "no labels":
        rank, std = (probe.get(key, result.get(key)) for key in ("rank", "feature_std"))
        quality = [("effective rank (RankMe; 1 is collapse)", rank), ("spread of the features (0 is collapse)", std)]
        tiles = "".join(
            f"<div><b>{number(value)}</b><span>{name}</span></div>" for name, value in quality if value is not None
        )
        words = "" if sentence else "There were no labels, so no accuracy: what can be said without any is below."
        return section("How good are the features?", words, sentence + f'<div class="facts">{tiles}</div>')
    words = (
        "The encoder is frozen and asked for labels it never saw in training. It learnt something worth having where "
    )
    words += "its bar stands clear, whiskers included, of the same encoder untrained and of raw pixels."
    labels = f"{len(probe['classes'])} classes" if probe.get("classes") else ""
    sizes = [
        f"{probe[key]:,} images to {verb}"
        for key, verb in (("train", "learn from"), ("test", "test on"))
        if key in probe
    ]
    caption = ", ".join(word for word in (labels, *sizes, PROTOCOLS.get(probe.get("protocol", ""), "")) if word)
    key = "Brackets and whiskers: 95% intervals. Balanced accuracy: every class counts alike."
    body = f'{sentence}<p class="soft">{text(caption)}. {key}</p>'
    leaky = probe.get("by_image")
    if not leaky:
        return section("How good are the features?", words, body + scores(probe))
    why = leaky.get("why") or probe.get("why") or WHY_GROUPS
    body += f"<h3>The two splits</h3><p>{text(why)}</p>"
    body += f'<div class="sides"><div><h3>Groups kept apart: believe this one</h3>{scores(probe)}</div>'
    body += f"<div><h3>Split by image: groups on both sides</h3>{scores(leaky)}</div></div>"
    return section("How good are the features?", words, body)


def robustness(found: dict[str, Any], pictures: dict[str, bytes]) -> str:
    if not found or "robustness" not in pictures:
        return ""
    return section(
        "What is left when images get worse?",
        "Noise, blur, weather and compression at five severities, on labelled images the classifier never saw; and attacks that "
        "know it and move each value by a few levels at most. What a photograph in poor light would cost is on the left.",
        f"<p><b>{text(found['sentence'])}</b></p>"
        + picture(pictures["robustness"], "Accuracy by corruption and severity, and under attack."),
    )


def scores(probe: dict[str, Any]) -> str:
    """A table, a bar a line: accuracy with its interval, and the majority class as a dashed line through all."""
    majority = probe.get("majority")
    line = ""
    if majority:
        line = f'<span class="majority" style="left:{percent(majority["accuracy"])}"></span>'
    rows = []
    for key, (name, meaning) in PROBES.items():
        if not probe.get(key):
            continue
        rows.append(f'<tr><th colspan="4">{name}<small>{meaning}</small></th></tr>')
        rows += [score(FEATURES[which], probe[key][which], line, which) for which in FEATURES if probe[key].get(which)]
    if majority:
        rows.append('<tr><th colspan="4"><span class="key">┊</span> always the commonest class</th></tr>')
        rows.append(score("majority", majority, line, "majority"))
    heads = '<tr class="heads"><th></th><th></th><th>accuracy</th><th>balanced accuracy</th></tr>'
    return f'<table class="scores">{heads}{"".join(rows)}</table>'


def score(name: str, s: dict[str, Any], line: str, which: str) -> str:
    low, high = s.get("low", s["accuracy"]), s.get("high", s["accuracy"])
    bar = f'<span class="fill" style="width:{percent(s["accuracy"])}"></span>'
    bar += f'<span class="whisker" style="left:{percent(low)};width:{percent(high - low)}"></span>'
    balanced = interval(s, "balanced", "balanced_low", "balanced_high") if "balanced" in s else ""
    return (
        f'<tr class="{"own" if which == "trained" else "other"}"><td>{name}</td>'
        f'<td><div class="track">{bar}{line}</div></td>'
        f'<td class="number">{interval(s, "accuracy", "low", "high")}</td><td class="number">{balanced}</td></tr>'
    )


def curves(history: list[dict[str, Any]]) -> str:
    if not history:
        return ""
    return section("How training went", "", picture(figures.curves(history), "What was measured while training."))


def learnt(pictures: dict[str, bytes]) -> str:
    body = ""
    if "positions" in pictures:
        body += (
            "<h3>Where a patch is</h3><p>Each small map is one patch of the image: how alike its position embedding is "
        )
        body += "to that of every other patch. A bright spot that wanders with the patch is a sense of place.</p>"
        body += picture(pictures["positions"], "Similarity of position embeddings.", width="44rem")
    if "filters" in pictures:
        body += (
            "<h3>What the pixels say</h3><p>The main directions of the first layer's filters. Smooth gradients, edges "
        )
        body += "and colours have been learnt; salt and pepper has not.</p>"
        body += picture(pictures["filters"], "Principal components of the first layer's filters.", width="38rem")
    return section("What the encoder learnt", "", body) if body else ""


def all_settings(settings: dict[str, Any]) -> str:
    reasons = settings.get("reasons") or {}
    chosen = (settings.get("settings") or {}) | (settings.get("method_settings") or {})
    chosen |= {key: "" for key in reasons if key not in chosen}
    if not chosen:
        return ""
    # those with a reason first: the others are the defaults of the paper
    first, rest = ([key for key in chosen if bool(reasons.get(key)) is wanted] for wanted in (True, False))
    body = ""
    if first:
        body += table(("setting", "value", "why"), ((key, plain(chosen[key]), reasons[key]) for key in first))
    if rest:
        body += f"<details{'' if first else ' open'}><summary>{len(rest)} as given or by default</summary>"
        body += table(("setting", "value"), ((key, plain(chosen[key])) for key in rest)) + "</details>"
    for name in ("encoder", "preprocess", "data"):
        if settings.get(name):
            body += f"<details><summary>{name}</summary>"
            body += table(("", ""), ((key, plain(value)) for key, value in settings[name].items())) + "</details>"
    if settings.get("command"):
        body += f"<p>The command of this run:</p><pre>{text(settings['command'])}</pre>"
    return section("Settings", "", body)


def unreadable(result: dict[str, Any]) -> str:
    files = result.get("unreadable") or ()
    if not files:
        return ""
    body = table(("file", "why"), ((path, reason) for path, reason in files[:LISTED]), kind="")
    if len(files) > LISTED:
        body += f'<p class="soft">and {len(files) - LISTED:,} more, in result.json</p>'
    words = f"{len(files):,} {'file was' if len(files) == 1 else 'files were'} left out, for the reason beside each."
    return section("Unreadable files", words, body)


def commands(run: Run, settings: dict[str, Any], pictures: dict[str, bytes]) -> str:
    folder = shlex.quote(str(run.folder))
    data = shlex.quote(str((settings.get("settings") or {}).get("data") or "photos/"))
    names = ("embeddings.parquet", "painted.png", "attention.png")
    embeddings, painted, attended = (shlex.quote(str(run.folder / name)) for name in names)
    images = [("see what it paints for an image of yours", f"unmask reconstruct {folder} IMAGE --out {painted}")]
    looks = [("see where it looks in an image of yours", f"unmask attend {folder} IMAGE --out {attended}")]
    table = shlex.quote(str(run.folder / "predictions.csv"))
    first = ("judge it on images with labels", f"unmask probe {folder} --data {data} --test TEST")
    if settings.get("method") == "segment":
        named = shlex.quote(str(run.folder / "labelled"))
        first = (
            "name the pixels of new images, into label maps",
            f"unmask predict {folder} --data new/images --out {named}",
        )
    elif settings.get("method") in (*SUPERVISED, *HEADED):
        first = ("name new images, into a table", f"unmask predict {folder} --data new/images --out {table}")
    lines = [
        first,
        ("one vector an image, for your own analysis", f"unmask embed {folder} --data {data} --out {embeddings}"),
        *(images if "reconstruction" in pictures else ()),
        *(looks if pictures.keys() & {"attention", "pooling"} else ()),
        ("use the encoder in Python", f"import unmask\nencoder, preprocess = unmask.load({str(run.folder)!r})"),
    ]
    body = "".join(f'<p class="soft">{what}</p><pre>{text(line)}</pre>' for what, line in lines)
    return section("How to go on", "", body)


def versions(settings: dict[str, Any], result: dict[str, Any]) -> str:
    words = [f"{name} {settings[name]}" for name in ("unmask", "torch", "python") if settings.get(name)]
    words += [str(result[key]) for key in ("device", "precision") if result.get(key)]
    if fingerprint := (settings.get("data") or {}).get("fingerprint"):
        words.append(f"data {fingerprint}")
    return f'<footer><p class="soft">{text(" · ".join(words))}</p></footer>' if words else ""


# A grid of settings


def ablation(result: dict[str, Any], png: bytes) -> str:
    """The page of an ablation. result: what ablation.json says; png: its figure."""
    names = " × ".join(axis["name"] for axis in result["axes"])
    title, cells = f"Ablation of {names}", result["cells"]
    done = sum(cell["status"] == "finished" for cell in cells)
    words = f"{done} of {len(cells)} cells finished"
    colour, sign = ("good", "✓") if done == len(cells) else ("warn", "!")
    about = " · ".join(word for word in (result["here"], result["what"]) if word)
    left = "".join(f"<p>{text(word)}.</p>" for word in result["left_out"])
    told = "".join(
        f"<p><b>{text(cell['name'])}</b>: {text(cell['why'] or cell['verdict'])}</p>"
        for cell in cells
        if cell["why"] or cell.get("verdict") not in (None, "learning")
    )
    read = (
        "Whiskers and bands are 95% intervals over the test images: what other images might have given. They do not hold what "
        "another seed would: to see that, vary the seed, too. A ring or a star marks the default."
    )
    if result["published"]:
        read += (
            f" Below, or in the table: {result['published']} (He et al. 2022). Compare the shape, not the height: there the "
            "encoder is larger, the images are others, and pixels were not normalised where nothing else is said."
        )
    fixed = table(("setting", "value"), ((name, value) for name, value in result["constants"].items()))
    parts = [
        f'<header><h1>{text(title)}</h1><p class="soft">{text(about)}</p></header>',
        f'<div class="banner {colour}"><b>{sign} {words}</b><p>{text(result["sentence"])}</p></div>',
        section("What each is worth", read, picture(png, "Accuracy by setting, fine-tuned and by a linear probe.")),
        section("What each costs", COSTS, ablation_table(result) + told + left),
        section("The same in all cells", "", fixed),
    ]
    return document(f"{title} · {result['here']}", parts)


COSTS = (
    "Each name leads to the page of its run. The loss is a share of that of a model that learnt nothing, on the task of that "
    "cell: it says nothing across cells whose tasks differ. Operations are of one image's way through training, forwards and "
    "backwards, a multiplication and an addition counting as two; beside them, how many times those of the default, or of the "
    "first cell. The encoder is told by its parameters. Time is that of pre-training, as it went."
)


def ablation_table(result: dict[str, Any]) -> str:
    """A line a cell."""
    published = result["published"] is not None
    heads = ["", "fine-tuned", "linear probe", *(["published"] if published else [])]
    heads += ["loss", "operations", "encoder", "images/s", "time"]
    rows = []
    for cell in result["cells"]:
        name = ", ".join(f"{axis} {label}" for axis, label in cell["labels"].items()) + (" *" if cell["usual"] else "")
        page = f"{cell['name']}/report.html"
        link = f'<a href="{text(page)}">{text(name)}</a>' if cell.get("verdict") else text(name)
        scores = [
            interval(cell[test], "accuracy", "low", "high") if cell[test] else "" for test in ("finetune", "linear")
        ]
        if cell["status"] != "finished" and not any(scores):
            scores[0] = text(cell["status"])
        told = cell["published"]
        rows.append(
            [
                link,
                *scores,
                *([f"{told['finetune']:.1f}/{told['linear']:.1f}" if told else ""] if published else []),
                share(cell["loss"] / cell["uninformed_loss"]) if cell.get("loss") else "",
                f"{cell['gflop']:.3g} G <small>{cell['times']:.2f} ×</small>",
                f"{cell['encoder_parameters'] / 1e6:.3g} M",
                count(cell.get("images_per_second")),
                duration(cell.get("seconds")),
            ]
        )
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f'<td class="number">{value}</td>' for value in row) + "</tr>" for row in rows)
    return f'<div class="cells"><table><tr>{head}</tr>{body}</table></div>'


# Pieces


def section(title: str, words: str, body: str) -> str:
    return f"<section><h2>{title}</h2>" + (f"<p>{words}</p>" if words else "") + body + "</section>"


def picture(png: bytes, alt: str, width: str = "100%") -> str:
    data = base64.b64encode(png).decode()
    style = "" if width == "100%" else f' style="max-width:{width};min-width:0"'
    return f'<figure><div><img src="data:image/png;base64,{data}" alt="{text(alt)}"{style}></div></figure>'


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]], kind: str = ' class="names"') -> str:
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table{kind}><tr>{head}</tr>{body}</table>"


def text(value: Any) -> str:
    """Safe in HTML, as text or in an attribute. Bytes in a file name that are no text become question marks."""
    return escape(str(value).encode("utf-8", "replace").decode())


def plain(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return "by default" if value is None else str(value)


def number(value: Any) -> str:
    """Four digits at most, or all of a whole number."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def count(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def percent(value: float) -> str:
    """A share as a length in CSS."""
    return f"{100 * min(1.0, max(0.0, value)):.2f}%"


def interval(s: dict[str, Any], mean: str, low: str, high: str) -> str:
    return f"{s[mean]:.3f}" + (f" <small>[{s[low]:.3f}–{s[high]:.3f}]</small>" if low in s and high in s else "")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
