"""unmask segment: learn the class of every pixel, on from an encoder that was trained before or from scratch, and be judged on
images never seen."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from unmask import figures
from unmask.data.decode import Preprocess, UnreadableImage
from unmask.data.masks import Masked, open_masks
from unmask.errors import BadInput
from unmask.evaluate import predictions, splits
from unmask.evaluate.segmentation import (
    LAYER_DECAY,
    LINEAR,
    PAPERS,
    Segmentation,
    Settings,
    ious,
    labels,
    means,
    rates,
    report,
    sums,
    tally,
)
from unmask.methods.method import Paper
from unmask.models import Encoder
from unmask.models import segmentation as models
from unmask.models.segmentation import LastMap, Segmenter
from unmask.models.vit import ViT
from unmask.screen import mute
from unmask.training import distributed, engine, health
from unmask.training.run import Run
from unmask.verbs import dense
from unmask.verbs.choices import Choice, parse_size
from unmask.verbs.dense import Dense
from unmask.verbs.probe import groups_of
from unmask.verbs.train import Outcome, Unreadable, check, conclude, divided, resumed, same_data, train

Own = Settings
LEAST = 32
"""Pixels that a place of UPerNet's coarsest map stands for."""


@dataclass(frozen=True)
class Segment(Dense):
    """Learn the class of every pixel: UPerNet on an encoder that was trained before, or on a new one; or a linear layer that
    tests what an encoder knows. A mask is a PNG of its image's size whose values are class numbers."""

    data: str | None = None
    """Images to learn from: a folder, whose masks lie beside it or in --masks, or a table with the columns `image` and `mask`."""
    test: str | None = None
    """The same to be judged on. Without it a fifth of --data is held out, by --group where there is one."""
    masks: str | None = None
    """Folder of the masks of --data, each of the name and subfolder of its image. Default: where a folder in the path is called
    images, the same path with masks in its place."""
    test_masks: str | None = None
    """The same of --test."""
    mask: str = "mask"
    """Column of tables with the masks."""
    classes: str | None = None
    """File with the name of a class a line, the first that of number 0. Default: classes.txt beside the folders or the table, or
    the numbers themselves."""
    ignore: tuple[int, ...] = ()
    """Class numbers that are neither learnt nor judged, as 255 never is."""


def segment(settings: Segment, own: Settings) -> dict[str, Any]:
    """Train as told and return what result.json says. BadInput for what cannot be used."""
    check(settings)
    assert settings.out is not None
    stored = None
    if settings.resume and ((settings.out / "settings.yaml").is_file() or settings.data is None):
        stored = Run(settings.out).settings
        settings, own = resumed(stored, "segment", settings, own)
    whole = opened(settings, str(settings.data), settings.masks, settings.classes)
    same_data(stored, whole, settings.out)
    dense.say(whole.remarks, whole.name)
    learnt, test, protocol = parted(whole, settings)
    began = dense.begun(settings)

    device = distributed.start(engine.choose_device(settings.device))
    if distributed.rank() > 0:
        mute()
    precision, why_precision = engine.choose_precision(settings.precision, device)
    choices, paper = chosen(settings, own, began, learnt, device)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    divided(value["batch_size"], settings.accumulate)
    own = dataclasses.replace(own, **{name: value[name] for name in ("jitter", "layer_decay")})
    size = parse_size(value["image_size"])
    maps, preprocess = looking(settings, own, value, began, stored, learnt)
    trained = Segmentation(Segmenter(maps, learnt.classes), own, learnt.counts, size)
    reading = {"device": device, "precision": precision}
    remarks = [*whole.remarks, *(() if test is whole or settings.test is None else test.remarks)]
    outcome = train(
        "segment",
        trained,
        learnt.source,
        settings,
        own,
        choices,
        paper,
        preprocess,
        unreadable=[],
        device=device,
        maps=learnt.masks,
        probe=watch(trained.segmenter, test, preprocess, reading),
        facts={
            "data": {"name": whole.name, "images": len(whole), "fingerprint": whole.fingerprint()},
            "classes": list(learnt.classes),
            "protocol": protocol,
            "remarks": [list(remark) for remark in remarks],
        },
        said=f"; judged on {len(test):,} images ({protocol})",
    )
    if distributed.rank() > 0:
        return {"verdict": "diverged" if outcome.failure else "left to rank 0"}
    return finish(outcome, trained, value, learnt, test, preprocess, protocol, reading)


# What is learnt from


def opened(settings: Segment, spec: str, masks: str | None, classes: Any) -> Masked:
    """The images with their masks, as the settings say."""
    named = {name: getattr(settings, name) for name in ("ignore", "image", "mask", "group", "strict")}
    return open_masks(spec, masks=masks, classes=classes, **named)


def parted(whole: Masked, settings: Segment) -> tuple[Masked, Masked, str]:
    """Images to learn from, images to be judged on, and how they were told apart: a test set, or a fifth, with the rarest classes
    in proportion and no group on both sides."""
    if settings.test is None and settings.test_masks is not None:
        raise BadInput(f"--test-masks {settings.test_masks}: name the images, too, by --test")
    if settings.test is not None:
        test = opened(settings, settings.test, settings.test_masks, whole.classes)
        dense.say(test.remarks, test.name)
        return whole, test, "test set"
    if len(whole) < 2:
        raise BadInput(f"{whole.name}: one image alone cannot be learnt from and judged on: name others by --test")
    groups = groups_of(whole.source)
    learnt, held = splits.held_out((whole.tallies > 0).astype(np.int64), groups, seed=settings.seed)
    return whole.subset(learnt), whole.subset(held), f"held-out fifth by {'image' if groups is None else 'group'}"


def chosen(
    settings: Segment, own: Settings, began: tuple[Encoder, Preprocess] | None, learnt: Masked, device: torch.device
) -> tuple[dict[str, Choice], Paper]:
    """Every setting with its reason, and the recipe's paper."""
    linear = own.head == "linear"
    if linear:
        for name in ("pyramid", "map_channels", "window"):
            if getattr(settings, name) is not None:
                raise BadInput(
                    f"--{name.replace('_', '-')}: a linear head sees the last block alone, without windows; leave it out"
                )
    patch = getattr(began[0], "patch_size", 16) if began is not None else patch_of(settings.encoder)
    papers = {"vit": LINEAR, "resnet": LINEAR} if linear else PAPERS
    choices, paper, _ = dense.chosen(
        settings, began, learnt.source, papers, device, patch if linear else max(16, patch)
    )
    size = parse_size(choices["image_size"].value)
    if not linear and min(size) < LEAST:
        raise BadInput(
            f"--image-size {size[0]}x{size[1]}: UPerNet looks at places of {LEAST} pixels: use {LEAST} or more"
        )
    if linear:
        for name in ("pyramid", "map_channels", "window"):
            choices.pop(name, None)
    parts = settings.accumulate * distributed.world()
    if not linear and choices["batch_size"].value // parts < 2:
        raise BadInput(
            f"--batch-size {choices['batch_size'].value}: UPerNet's batch norms need two images at least at a time: use "
            f"{2 * parts} or more"
        )
    tuned = not linear and began is not None and isinstance(began[0], ViT)
    why_linear = "the encoder stays as it is: a test of what it knows"
    if began is None:
        why_linear = "the encoder stays as it begins, untrained: what a trained one is set beside"
    usual = {
        "head": (own.head, why_linear if linear else ""),
        "jitter": (0.0, "") if linear else (1.0, "mmsegmentation's"),
        "layer_decay": (LAYER_DECAY, "BEiT's and MAE's") if tuned else (1.0, ""),
    }
    for name, (value, reason) in usual.items():
        given = getattr(own, name)
        choices[name] = Choice(value, reason) if given is None or name == "head" else Choice(given, "as asked")
    if linear and choices["layer_decay"].value != 1:
        raise BadInput("--layer-decay: under a linear head the encoder does not learn; leave it out")
    if choices["jitter"].value < 0:
        raise BadInput(f"--jitter is {choices['jitter'].value:g}: give 0 or more")
    there = learnt.counts[learnt.counts > 0]
    if (most := float(there.max() / there.min())) >= UNEVEN:
        why = f"the commonest class has {most:,.0f} times the pixels of the rarest; --class-weights counts them alike"
        choices["class_weights"] = Choice(own.class_weights, why)
    return choices, paper


UNEVEN = 10
"""How many times as many pixels as the rarest class the commonest must have for a word on class weights."""


def patch_of(encoder: str | None) -> int:
    """Pixels a side of the patches of an encoder of this name; 16 where it has none, or is yet to be chosen."""
    after = (encoder or "").rpartition("/")[2]
    return max(1, int(after)) if after.isdigit() else 16


def looking(
    settings: Segment,
    own: Settings,
    value: dict[str, Any],
    began: tuple[Encoder, Preprocess] | None,
    stored: dict[str, Any] | None,
    learnt: Masked,
) -> tuple[Any, Preprocess]:
    """What makes maps of images, and what is done to every image."""
    if own.head == "upernet":
        return dense.prepared(settings, value, began, stored, learnt.source)
    encoder, preprocess = dense.encoder_for(settings, value, began, stored, learnt.source)
    return LastMap(encoder), preprocess


# What came of it


WATCHED = 32
"""Test images that are looked at while it trains."""


def watch(
    segmenter: Segmenter, test: Masked, preprocess: Preprocess, reading: dict[str, Any]
) -> Callable[..., dict[str, float]]:
    """For the log: mIoU on a few images that are not learnt from. Nothing is chosen by it."""
    some = test.subset(np.random.default_rng(0).permutation(len(test))[:WATCHED])

    def seen(encoder: Any) -> dict[str, float]:
        found, _, _ = compared(segmenter, some, preprocess, reading, lambda path, reason: None)
        return {"test_miou": float(rates(found.sum(0))["miou"])} if len(found) else {}

    return seen


def compared(
    segmenter: Segmenter,
    test: Masked,
    preprocess: Preprocess,
    reading: dict[str, Any],
    unreadable: Callable[[str, str], None],
    title: str | None = None,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """`sums` (n, 3, K) of each image that can be read, the sum of their tallies (K, K), and which images those are."""
    counted, confusion, index = [], np.zeros((len(test.classes),) * 2, dtype=np.int64), []
    for i, said in labels(segmenter, test.source, preprocess, unreadable=unreadable, title=title, **reading):
        try:
            truth = test.masks.check(i, said.shape[0], said.shape[1])
        except UnreadableImage as error:
            unreadable(test.source.table["path"].iat[i], str(error))
            continue
        tallied = tally(said, truth, len(test.classes))
        counted.append(sums(tallied))
        confusion += tallied
        index.append(i)
    return np.array(counted).reshape(-1, 3, len(test.classes)), confusion, index


def finish(
    outcome: Outcome,
    trained: Segmentation,
    value: dict[str, Any],
    learnt: Masked,
    test: Masked,
    preprocess: Preprocess,
    protocol: str,
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Save, judge and draw what was trained, say so, and return what result.json says."""
    run, tested = outcome.run, None
    if outcome.failure is None:
        name = value.get("encoder") or str(trained.encoder.config.get("backbone") or type(trained.encoder).__name__)
        told = {"name": name, "method": "segment", "preprocess": preprocess.to_dict(), "unmask": version("unmask")}
        models.save(trained.segmenter, run.folder, told)
        tested = examine(run, trained.segmenter, learnt, test, preprocess, protocol, reading)
    verdict = health.judge(outcome.history, value["lr"], value["usual_lr"], outcome.failure)
    if (
        tested is not None
        and verdict.word in ("learning", "starved by the loader")
        and tested["miou_low"] <= tested["majority"]["miou_high"]
    ):
        sentence = (
            f"{verdict.sentence}, but on images it never saw its mIoU is {tested['miou']:.3f}, where always naming "
            f"{tested['majority']['name']} would get {tested['majority']['miou']:.3f}"
        )
        advice = ("train longer: give more --epochs or --steps", "annotate more images", *verdict.advice)
        verdict = health.Verdict("no better than uninformed", sentence, advice)
    result = outcome.result(verdict, trained, len(learnt), value["precision"], reading["device"])
    kept = ("protocol", "sentence", "miou", "miou_low", "miou_high", "accuracy", "accuracy_low", "accuracy_high", "n")
    result["test"] = None if tested is None else {name: tested[name] for name in kept}
    conclude(run, result)
    return result


def examine(
    run: Run,
    segmenter: Segmenter,
    learnt: Masked,
    test: Masked,
    preprocess: Preprocess,
    protocol: str,
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Judge a segmenter on test images: test.json, predictions.csv and the figures of a run."""
    counted, confusion, index = compared(segmenter, test, preprocess, reading, Unreadable([], False), "judging")
    if not index:
        raise BadInput(f"{test.name}: none of {len(test)} images can be read")
    usual, groups = int(learnt.counts.argmax()), groups_of(test.source)
    told = report(
        counted,
        confusion,
        test.classes,
        usual,
        void=test.masks.ignore,
        groups=None if groups is None else groups[index],
    )
    told = {"kind": "segmentation", "data": test.name, "train": len(learnt), "protocol": protocol, **told}
    run.write("test.json", told)
    each = ious(counted)
    order = np.argsort(means(each), kind="stable")
    columns = {"path": test.source.table["path"].to_numpy()[index], **rates(counted)}
    columns |= {f"iou_{name}": each[:, k] for k, name in enumerate(test.classes)}
    predictions.write(run.folder / "predictions.csv", pd.DataFrame(columns).drop(columns="mean_accuracy"))
    (run.folder / "figures").mkdir(exist_ok=True)
    chosen = [index[order[i]] for i in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]
    png = picture(segmenter, test.subset(chosen), preprocess, reading)
    (run.folder / "figures" / "segments.png").write_bytes(png)
    (run.folder / "figures" / "mistaken.png").write_bytes(figures.confusion(confusion.tolist(), test.classes))
    return told


SHOWN = 6
"""Test images that are drawn."""


def picture(segmenter: Segmenter, test: Masked, preprocess: Preprocess, reading: dict[str, Any]) -> bytes:
    """Images, what they are, and what is said of them."""
    rows = []
    for i, said in labels(segmenter, test.source, preprocess, **reading):
        image = preprocess.prepare(test.source.image(i), 1.0)
        shown = preprocess.denormalise(preprocess.normalise(image))
        truth = test.masks(i)
        scored = float(rates(sums(tally(said, truth, len(test.classes))))["miou"])
        rows.append((shown, truth, said, "" if math.isnan(scored) else f"mIoU {scored:.2f}"))
    return figures.segments(rows, test.classes)
