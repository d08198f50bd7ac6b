"""unmask probe RUN: what a frozen encoder knows, beside one that was never trained and beside raw pixels."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from tyro.conf import Positional

from unmask.data.decode import Preprocess
from unmask.data.source import Source, require_classes
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate import knn, linear, metrics, splits
from unmask.evaluate.features import extract, pixels, standardise
from unmask.models import rebuild
from unmask.screen import console
from unmask.training import engine, health
from unmask.training.run import write
from unmask.verbs.load import load, load_projection
from unmask.verbs.report import write_report

NAMES = {
    "trained": "trained encoder",
    "projection": "behind its projection head",
    "untrained": "same encoder, untrained",
    "raw_pixels": "raw pixels",
}
TESTS = {"knn": "k-NN", "linear": "linear", "logistic": "logistic regression"}


@dataclass(frozen=True)
class Probe:
    """Test a frozen encoder: weighted k-NN, a linear layer, logistic regression."""

    run: Positional[str]
    """A run, or any encoder that `unmask.load` reads."""
    data: str
    """Labelled images to learn the classes from."""
    test: str | None = None
    """Labelled images to be judged on. Without it, --data is split into five folds, by --group where there is one."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes."""
    group: str = "group"
    """Column of tables that must not be on both sides of a split: patient, site, knapper."""
    out: Path | None = None
    """Where the figures go (.json). Default: probe.json in the run."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    workers: int = 1
    """Processes that read images."""
    seed: int = 0
    """Of the untrained encoder, the folds and the resampling."""


def probe(settings: Probe) -> dict[str, Any]:
    """Judge an encoder as `settings` say and return what probe.json says. BadInput for data without two classes."""
    encoder, preprocess = load(settings.run)
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    train = open_source(settings.data, **columns)
    test = open_source(settings.test, **columns) if settings.test else None
    if "label" in train.table:
        require_classes(train)
    device = engine.choose_device(settings.device)
    precision, _ = engine.choose_precision(settings.precision, device)
    torch.manual_seed(settings.seed)
    result = judge(
        encoder.to(device),
        rebuild(encoder.config).to(device),
        train,
        test,
        preprocess,
        encoder.image_size,
        seed=settings.seed,
        device=device,
        precision=precision,
        workers=settings.workers,
        projection=load_projection(settings.run),
    )
    show(result)
    inside = Path(settings.run) / "settings.yaml"
    out = settings.out or (Path(settings.run) / "probe.json" if inside.is_file() else None)
    if out is not None:
        write(out, json.dumps(result, indent=2) + "\n")
        console.print(f"Figures: {out}")
    if inside.is_file():
        console.print(f"Report: {write_report(settings.run)}")
    return result


def judge(
    encoder: nn.Module,
    untrained: nn.Module,
    train: Source,
    test: Source | None,
    preprocess: Preprocess,
    size: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    precision: str,
    workers: int,
    title: str | None = "probing",
    projection: nn.Module | None = None,
) -> dict[str, Any]:
    """What probe.json says of an encoder: every test, beside the same encoder untrained, raw pixels and the majority; and,
    where there is a `projection` head that was trained on it and thrown away, beside what that makes of its vectors.

    With a test source it is judged there. Without one, five folds of `train` are each predicted from the other four: by
    group where there are groups, and beside it by image, to show what a split that ignores groups would have claimed.
    Without labels: how varied the features are, which needs none.
    """
    options: dict[str, Any] = {"workers": workers, "title": title}
    extractor = {"device": device, "precision": precision, **options}
    if "label" not in train.table or len(set(train.targets()) - {-1}) < 2:
        seen, _ = extract(encoder, few(train, 2000, seed), preprocess, size, **extractor)
        found = health.features(seen)
        words = (
            f"No labels to test with. Label-free quality: effective rank {found['rank']:.1f} of at most "
            f"{min(seen.shape)}, relative deviation of features {found['feature_std']:.0%}."
        )
        return {"protocol": "no labels", "sentence": words, **found}

    train = labelled(train)
    sources = [train] if test is None else [train, labelled(aligned(test, train))]
    vectors: dict[str, Sequence[Tensor]] = {}
    for name, module in (("trained", encoder), ("untrained", untrained)):
        vectors[name], read = zip(
            *(extract(module, source, preprocess, size, **extractor) for source in sources), strict=True
        )
    if projection is not None:
        whole = nn.Sequential(encoder, projection)
        vectors["projection"] = [extract(whole, source, preprocess, size, **extractor)[0] for source in sources]
    vectors["raw_pixels"] = [pixels(source, preprocess, size, **options)[0] for source in sources]
    sources = [source.subset(index.numpy()) for source, index in zip(sources, read, strict=True)]
    targets = [source.targets() for source in sources]
    classes = len(train.classes)

    if test is not None:
        everything = np.arange(len(sources[0]))
        scores = compare(vectors, targets, [(everything, None)], classes, seed, groups_of(sources[-1]))
        result = {"protocol": "test set", "train": len(sources[0]), "test": len(sources[1]), **scores}
    else:
        groups = groups_of(sources[0])
        result = {
            "protocol": "by image" if groups is None else "by group",
            "train": len(sources[0]),
            "test": len(sources[0]),
        }
        result |= compare(vectors, targets, splits.folds(targets[0], groups, seed=seed), classes, seed, groups)
        if groups is not None:
            leaky = compare(vectors, targets, splits.folds(targets[0], None, seed=seed), classes, seed, None)
            leaky["why"] = why(result["linear"]["trained"], leaky["linear"]["trained"], groups)
            result["by_image"] = leaky
    result["classes"] = list(train.classes)
    result["sentence"] = sentence(result)
    return result


def why(by_group: dict[str, float], by_image: dict[str, float], groups: np.ndarray) -> str:
    """Why a split that ignores groups gives another figure, or another interval."""
    count = len(set(groups))
    theirs, ours = by_image["accuracy"], by_group["accuracy"]
    told = (
        f"Split by image, nearly every test image has siblings of its group among the training images ({count} groups of "
        f"{len(groups) / count:.0f} images on average), so a probe could answer by recognising the group. "
    )
    if theirs - ours > 0.02:
        told += f"It did: linear accuracy {theirs:.3f}, against {ours:.3f} on groups never seen. "
    else:
        told += f"It hardly did: linear accuracy {theirs:.3f}, and {ours:.3f} on groups never seen. "
    return told + (
        f"The interval by image, {by_image['high'] - by_image['low']:.3f} wide against "
        f"{by_group['high'] - by_group['low']:.3f}, takes siblings for independent evidence. "
        "What holds for a new group is the figure by group."
    )


def compare(
    vectors: dict[str, Sequence[Tensor]],
    targets: Sequence[np.ndarray],
    parts: Sequence[tuple[np.ndarray, np.ndarray | None]],
    classes: int,
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Any]:
    """Scores of every test on every kind of vectors, over parts (train, test) of which a test None is the second source.

    `groups` of the tested samples, in whose resampling the intervals are made.
    """
    tested = [np.arange(len(targets[-1])) if test is None else test for _, test in parts]
    order, known = np.concatenate(tested), targets[-1]
    inside = groups if parts[0][1] is not None else None  # the groups that training samples have, too
    result: dict[str, Any] = {test: {} for test in TESTS}
    for name, sets in vectors.items():
        answers: dict[str, list[Tensor]] = {test: [] for test in TESTS}
        for (fit_on, _), held_out in zip(parts, tested, strict=True):
            a, b, wanted = sets[0][fit_on], sets[-1][held_out], torch.from_numpy(targets[0][fit_on])
            scaled, scaled_test = standardise(a, b)
            answers["knn"].append(knn.predict(scaled, wanted, scaled_test, classes)[0])
            answers["linear"].append(linear.linear(a, wanted, b, classes, seed=seed)[0])
            if len(a) <= linear.SMALL:
                kept_apart = None if inside is None else inside[fit_on]
                answers["logistic"].append(linear.logistic(a, wanted, b, classes, groups=kept_apart, seed=seed)[0])
        for test, parts_of in answers.items():
            if parts_of:
                predicted = torch.cat(parts_of).numpy()
                together = None if groups is None else groups[order]
                result[test][name] = metrics.score(predicted, known[order], classes, groups=together).to_dict()
    together = None if groups is None else groups[order]
    result["majority"] = metrics.majority(targets[0], known[order], classes, groups=together).to_dict()
    return {name: scores for name, scores in result.items() if scores}


def watch_probe(
    train: Source, test: Source | None, preprocess: Preprocess, size: tuple[int, int], **extractor: Any
) -> Callable:
    """A quick k-NN for the log: 1,500 images of `train` judge 500 of `test`, or without one of a fifth of `train`."""
    require_classes(train)
    train = labelled(train)
    if test is None:
        learnt, held = splits.held_out(train.targets(), groups_of(train), seed=0)
        train, test = train.subset(learnt), train.subset(held)
    train = few(train, 1500, seed=0)
    test = few(labelled(aligned(test, train)), 500, seed=0)

    def accuracy(encoder: nn.Module) -> dict[str, float]:
        (a, i), (b, j) = (extract(encoder, source, preprocess, size, **extractor) for source in (train, test))
        wanted = torch.from_numpy(train.targets())[i]
        a, b = standardise(a, b)
        predicted, _ = knn.predict(a, wanted, b, len(train.classes))
        return {"knn": float((predicted == torch.from_numpy(test.targets())[j]).float().mean())}

    return accuracy


def few(source: Source, most: int, seed: int) -> Source:
    """At most so many images, drawn at random."""
    return source if len(source) <= most else source.subset(np.random.default_rng(seed).permutation(len(source))[:most])


def labelled(source: Source) -> Source:
    """The images that have a label."""
    return source.subset(np.flatnonzero(source.targets() >= 0))


def aligned(test: Source, train: Source) -> Source:
    """The test source with its classes numbered as in training. BadInput if it has none, or others."""
    if "label" not in test.table:
        raise BadInput(f"{test.name}: no labels to test with; name the column by --label")
    new = [name for name in test.classes if name not in train.classes]
    if new:
        raise BadInput(
            f"{test.name} has classes that {train.name} lacks: {', '.join(new[:5])}; a probe can only name what it was shown"
        )
    return dataclasses.replace(test, classes=train.classes)


def groups_of(source: Source) -> np.ndarray | None:
    """The group of each image, or None without a column of groups. BadInput where some have none."""
    if "group" not in source.table:
        return None
    groups = source.table["group"].to_numpy()
    if any(group is None for group in groups):
        raise BadInput(
            f"{source.name}: {sum(g is None for g in groups)} images have no group; fill the column, or name another by --group"
        )
    return groups


def sentence(result: dict[str, Any]) -> str:
    """Both probes in one line, with what they stand beside."""
    parts = []
    for test in ("knn", "linear"):
        ours, others = result[test]["trained"], {name: result[test][name] for name in ("untrained", "raw_pixels")}
        beaten = [name for name, other in others.items() if ours["low"] > other["high"]]
        word = (
            "clearly above both"
            if len(beaten) == 2
            else f"clearly above {NAMES[beaten[0]]} only"
            if beaten
            else "not clearly above them"
        )
        beside = ", ".join(f"{NAMES[name]} {other['accuracy']:.3f}" for name, other in others.items())
        parts.append(f"{TESTS[test]} {ours['accuracy']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}], {word} ({beside})")
    where = {"test set": "the test images", "by group": "groups never seen", "by image": "held-out images"}[
        result["protocol"]
    ]
    return f"On {where} ({result['test']:,}): {'; '.join(parts)}; the commonest class {result['majority']['accuracy']:.3f}."


def show(result: dict[str, Any]) -> None:
    """The table and the sentence, on the screen."""
    for scores, title in ((result, result["protocol"]), (result.get("by_image"), "by image (groups on both sides)")):
        if not scores or "knn" not in scores:
            continue
        kinds = [kind for kind in NAMES if kind in scores["knn"]]
        table = Table(
            "", *(NAMES[kind] for kind in kinds), title=title, title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for test, name in TESTS.items():
            if test in scores:
                cells = [scores[test][kind] for kind in kinds]
                table.add_row(
                    name,
                    *(
                        f"{s['accuracy']:.3f} [dim]{s['low']:.3f}–{s['high']:.3f}[/]  balanced {s['balanced']:.3f}"
                        for s in cells
                    ),
                )
        console.print(table)
    if "by_image" in result:
        console.print(result["by_image"]["why"])
    console.print(result["sentence"])
