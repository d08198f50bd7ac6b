"""unmask detect: learn to find objects, on from an encoder that was trained before or from scratch, and be judged on images
never seen."""

import dataclasses
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch

from unmask import figures
from unmask.data.annotations import Annotated, open_annotations
from unmask.data.decode import Preprocess
from unmask.errors import BadInput
from unmask.evaluate import predictions, splits
from unmask.evaluate.detection import LAYER_DECAY, PAPERS, Detection, Found, Settings, blind, find, report, usual_anchor
from unmask.methods.method import Paper
from unmask.models import Encoder
from unmask.models import detection as models
from unmask.models.detection import SAMPLED, Detector
from unmask.models.vit import ViT
from unmask.screen import mute
from unmask.training import distributed, engine, health
from unmask.training.run import Run
from unmask.verbs import dense
from unmask.verbs.choices import Choice, parse_size
from unmask.verbs.dense import Dense
from unmask.verbs.train import Outcome, check, conclude, divided, resumed, same_data, train

Own = Settings


@dataclass(frozen=True)
class Detect(Dense):
    """Learn to find objects: Faster R-CNN, or Mask R-CNN where objects have masks, on an encoder that was trained before, or on a
    new one."""

    data: str | None = None
    """Images with their objects to learn from: a COCO .json file, or a Pascal VOC folder, of a split as FOLDER:train."""
    test: str | None = None
    """The same to be judged on. Without it a fifth of --data is held out."""
    images: str | None = None
    """Folder of the images of --data and --test, where they are not found beside the annotations."""


def detect(settings: Detect, own: Settings) -> dict[str, Any]:
    """Train as told and return what result.json says. BadInput for what cannot be used."""
    check(settings)
    assert settings.out is not None
    stored = None
    if settings.resume and ((settings.out / "settings.yaml").is_file() or settings.data is None):
        stored = Run(settings.out).settings
        settings, own = resumed(stored, "detect", settings, own)
    whole = open_annotations(str(settings.data), settings.images, strict=settings.strict)
    same_data(stored, whole, settings.out)
    dense.say(whole.remarks, whole.name)
    learnt, test, protocol = parted(whole, settings)
    if not any(len(objects) for objects in learnt.objects):
        raise BadInput(f"{whole.name}: no image to learn from has an object in it")
    began = dense.begun(settings)

    device = distributed.start(engine.choose_device(settings.device))
    if distributed.rank() > 0:
        mute()
    precision, why_precision = engine.choose_precision(settings.precision, device)
    choices, paper = chosen(settings, own, began, learnt, device)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    divided(value["batch_size"], settings.accumulate)
    own = dataclasses.replace(own, **{name: value[name] for name in ("masks", "anchor", "proposals", "layer_decay")})
    size = parse_size(value["image_size"])
    pyramid, preprocess = dense.prepared(settings, value, began, stored, learnt.source)
    told = {name: value[name] for name in ("masks", "anchor", "proposals")}
    trained = Detection(Detector(pyramid, learnt.classes, **told), own, learnt, size)
    outcome = train(
        "detect",
        trained,
        learnt.source,
        settings,
        own,
        choices,
        paper,
        preprocess,
        unreadable=[],
        device=device,
        facts={
            "data": {"name": whole.name, "images": len(whole), "fingerprint": whole.fingerprint()},
            "classes": list(learnt.classes),
            "protocol": protocol,
            "remarks": [list(remark) for remark in whole.remarks],
        },
        said=f"; judged on {len(test):,} images ({protocol})",
    )
    if distributed.rank() > 0:
        return {"verdict": "diverged" if outcome.failure else "left to rank 0"}
    return finish(
        outcome, trained, value, learnt, test, preprocess, protocol, {"device": device, "precision": precision}
    )


def parted(whole: Annotated, settings: Detect) -> tuple[Annotated, Annotated, str]:
    """Images to learn from, images to be judged on, and how they were told apart: a test set, or a fifth, with the rarest classes
    in proportion."""
    if settings.test is not None:
        test = open_annotations(settings.test, settings.images, classes=whole.classes, strict=settings.strict)
        dense.say(test.remarks, test.name)
        return whole, test, "test set"
    if len(whole) < 2:
        raise BadInput(f"{whole.name}: one image alone cannot be learnt from and judged on: name others by --test")
    there = np.array([np.bincount(objects.classes, minlength=len(whole.classes)) > 0 for objects in whole.objects])
    learnt, held = splits.held_out(there.astype(np.int64), None, seed=settings.seed)
    return whole.subset(learnt), whole.subset(held), "held-out fifth by image"


def chosen(
    settings: Detect,
    own: Settings,
    began: tuple[Encoder, Preprocess] | None,
    learnt: Annotated,
    device: torch.device,
) -> tuple[dict[str, Choice], Paper]:
    """Every setting with its reason, and the recipe's paper."""
    choices, paper, _ = dense.chosen(settings, began, learnt.source, PAPERS, device, multiple=32)
    size = parse_size(choices["image_size"].value)
    anchor, small = usual_anchor(learnt, size)
    decay, why_decay = 1.0, ""
    if began is not None and isinstance(began[0], ViT):
        depth, steps = began[0].config["depth"], choices["steps"].value
        decay, why_decay = LAYER_DECAY[min(LAYER_DECAY, key=lambda known: abs(known - depth))], "ViTDet's"
        if paper.updates is not None and steps < paper.updates:
            why_decay = f"{steps:,} steps are too few to hold the first layers back (ViTDet: {decay}, of 184,375)"
            decay = 1.0
    on_cpu = device.type == "cpu"
    usual = {
        "masks": (learnt.masked, "every object has a mask" if learnt.masked else ""),
        "anchor": (
            anchor,
            f"in {size[0]}x{size[1]} pixels a small object is {small:.0f} pixels a side (5% are smaller)",
        ),
        "proposals": (128 if on_cpu else SAMPLED, f"the paper's {SAMPLED}" + ", a quarter on a CPU" * on_cpu),
        "layer_decay": (decay, why_decay),
    }
    for name, (value, reason) in usual.items():
        given = getattr(own, name)
        choices[name] = Choice(value, reason) if given is None else Choice(given, "as asked")
    if choices["masks"].value and not learnt.masked:
        raise BadInput(
            f"--masks: {learnt.source.name} has objects without a mask: leave it out, and only boxes are learnt"
        )
    if choices["anchor"].value <= 0 or choices["proposals"].value < 1:
        raise BadInput("--anchor and --proposals: give numbers above 0")
    return choices, paper


def finish(
    outcome: Outcome,
    trained: Detection,
    value: dict[str, Any],
    learnt: Annotated,
    test: Annotated,
    preprocess: Preprocess,
    protocol: str,
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Save, judge and draw what was trained, say so, and return what result.json says."""
    run, tested = outcome.run, None
    size = trained.views[0].size
    if outcome.failure is None:
        name = value.get("encoder") or str(trained.encoder.config.get("backbone") or type(trained.encoder).__name__)
        told = {"name": name, "method": "detect", "preprocess": preprocess.to_dict(), "unmask": version("unmask")}
        models.save(trained.detector, run.folder, told)
        tested = examine(run, trained.detector, learnt, test, preprocess, size, protocol, reading)
    verdict = health.judge(outcome.history, value["lr"], value["usual_lr"], outcome.failure)
    if (
        tested is not None
        and tested["ap50"] is not None
        and verdict.word in ("learning", "starved by the loader")
        and tested["ap50_low"] <= tested["blind"]["ap50"]
    ):
        sentence = f"{verdict.sentence}, but on images it never saw {tested['sentence'].lower()}"
        advice = ("train longer: give more --epochs or --steps", *verdict.advice)
        verdict = health.Verdict("no better than uninformed", sentence.rstrip("."), advice)
    result = outcome.result(verdict, trained, len(learnt), value["precision"], reading["device"])
    kept = ("protocol", "sentence", "ap50", "ap50_low", "ap50_high", "ap", "ap_low", "ap_high", "n", "objects")
    result["test"] = None if tested is None else {name: tested[name] for name in kept}
    conclude(run, result)
    return result


def examine(
    run: Run,
    detector: Detector,
    learnt: Annotated,
    test: Annotated,
    preprocess: Preprocess,
    size: tuple[int, int],
    protocol: str,
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Judge a detector on test images: test.json, predictions.csv and the figure of a run."""
    found = find(detector, test.source, preprocess, size, title="judging", **reading)
    told = report(found, test)
    if detector.masks and test.masked:
        shapes = report(found, test, masks=True)
        told["masks"] = {key: shapes[key] for key in shapes if key.startswith("ap")}
    unseen = report(blind(learnt, test), test, resamples=1)
    told["blind"] = {name: unseen[name] for name in ("ap50", "ap")}
    told = {"kind": "detection", "data": test.name, "train": len(learnt), "protocol": protocol, **told}
    told["sentence"] = sentence(told)
    run.write("test.json", told)
    predictions.write(run.folder / "predictions.csv", table(found, test.source.table, test.classes))
    (run.folder / "figures").mkdir(exist_ok=True)
    (run.folder / "figures" / "found.png").write_bytes(picture(found, test, preprocess))
    return told


def sentence(told: dict[str, Any]) -> str:
    """What the test says, in words."""
    if told["ap50"] is None or told["ap50_low"] is None:
        return "The test images hold no object: nothing can be said"
    parts = (
        f"Average precision at half overlap is {told['ap50']:.3f} [{told['ap50_low']:.3f}, {told['ap50_high']:.3f}], "
    )
    parts += f"over overlaps from 0.5 to 0.95 {told['ap']:.3f} [{told['ap_low']:.3f}, {told['ap_high']:.3f}]"
    if "masks" in told:
        parts += f"; of masks {told['masks']['ap50']:.3f} and {told['masks']['ap']:.3f}"
    blind_says = told["blind"]["ap50"] or 0.0
    return f"{parts}; always finding the same boxes would give {blind_says:.3f} at half overlap."


def table(found: list[Found | None], known: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """A row for each object that was found: path, class, score, and its box in pixels of the image."""
    rows = [
        (path, classes[number], round(float(score), 4), *(round(float(edge), 1) for edge in box))
        for path, each in zip(known["path"], found, strict=True)
        if each is not None
        for box, number, score in zip(each.boxes, each.classes, each.scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["path", "class", "score", "left", "top", "right", "bottom"])


SHOWN = 6
"""Test images that are drawn."""


def picture(found: list[Found | None], test: Annotated, preprocess: Preprocess) -> bytes:
    """What was found, and what is there, in test images evenly spread over the set."""
    there = [i for i, each in enumerate(found) if each is not None]
    some = [there[i] for i in np.linspace(0, len(there) - 1, min(SHOWN, len(there))).round().astype(int)]
    images = [preprocess.denormalise(preprocess.normalise(preprocess.prepare(test.source.image(i), 1.0))) for i in some]
    return figures.found(images, [found[i] for i in some], [test.objects[i] for i in some], test.classes)  # type: ignore
