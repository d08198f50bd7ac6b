"""unmask predict RUN: what a classifier says of images, what a detector finds in them, what a segmenter says of their pixels."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tyro.conf import Positional

from unmask import figures
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate import metrics, predictions
from unmask.evaluate.detection import find
from unmask.evaluate.features import extract
from unmask.evaluate.segmentation import labels
from unmask.figures import SURE
from unmask.models.heads import kind_of
from unmask.screen import console
from unmask.training import engine
from unmask.training.run import whole, write
from unmask.verbs.detect import table as objects_table
from unmask.verbs.load import load_classifier, load_detector, load_segmenter
from unmask.verbs.train import Unreadable


@dataclass(frozen=True)
class Predict:
    """Name what is in each image of a source: path, label where it is known, prediction, and the probability of each class. Of a
    detector's run: a row for each object that is found, with its class, score and box in pixels of the image. Of a segmenter's: a
    folder of label maps, a PNG an image, and of each the share that a class has."""

    run: Positional[str]
    """A run of `unmask finetune`, `unmask distill`, `unmask detect` or `unmask segment`."""
    data: str
    """Images: a folder, a table, hf:…, wds:…, digits or photos."""
    out: Path | None = None
    """The table (.csv or .parquet); of a segmenter a folder, to be created. Default: predictions-NAME.csv, or labelled-NAME, in
    the run, after the name of the images."""
    image: str = "image"
    """Column of tables with the images."""
    label: str = "label"
    """Column of tables with the classes, where they are known: then it is said how many are right."""
    group: str = "group"
    """Column of tables with the groups."""
    strict: bool = False
    """Fail at the first unreadable image instead of leaving it out."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware."""
    workers: int = 1
    """Processes that read images."""


def predict(settings: Predict) -> pd.DataFrame:
    """Write and return the table. BadInput for a run without a classifier, a detector or a segmenter."""
    return {"detector": detected, "segmenter": segmented}.get(kind_of(settings.run), classified)(settings)


def begun(settings: Predict, kind: str = "predictions") -> tuple[Source, Path, torch.device, str, Unreadable]:
    """The images, the table's file or (kind "labelled") the folder, what to compute on and in, and who is told of images that
    cannot be read."""
    source = open_source(settings.data, image=settings.image, label=settings.label, group=settings.group)
    name = "".join(c if c.isalnum() else "-" for c in Path(settings.data).stem or "images")
    out = settings.out or Path(settings.run) / (f"{kind}-{name}" + ".csv" * (kind == "predictions"))
    if kind == "predictions":
        predictions.check(out)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already: choose another --out, a folder for the label maps")
    device = engine.choose_device(settings.device)
    precision, _ = engine.choose_precision(settings.precision, device)
    return source, out, device, precision, Unreadable([], settings.strict)


def detected(settings: Predict) -> pd.DataFrame:
    """What a detector finds."""
    model, preprocess = load_detector(settings.run)
    source, out, device, precision, left_out = begun(settings)
    reading = {"device": device, "precision": precision, "unreadable": left_out, "title": "looking"}
    found = find(model, source, preprocess, model.encoder.image_size, **reading)
    table = objects_table(found, source.table, model.classes)
    predictions.write(out, table)
    sure = sum(score >= SURE for score in table["score"])
    console.print(
        f"{len(table):,} objects found in {len(source) - len(left_out.reasons):,} images, {sure:,} with a score of {SURE} or "
        f"more, into {out}; {len(left_out.reasons)} images left out"
    )
    return table


def segmented(settings: Predict) -> pd.DataFrame:
    """What a segmenter says of every pixel: an 8-bit PNG with a palette for each image, of the same subfolder and name, whose
    values are class numbers; classes.txt, which names them; and labels.csv, the share of each class in each image."""
    model, preprocess = load_segmenter(settings.run)
    source, out, device, precision, left_out = begun(settings, "labelled")
    reading = {"device": device, "precision": precision, "unreadable": left_out, "title": "labelling"}
    names, colours = places(source.table["path"].tolist()), figures.palette(len(model.classes)).tobytes()
    rows = []
    for i, said in labels(model, source, preprocess, **reading):
        picture = Image.fromarray(said.numpy())
        picture.putpalette(colours)
        with whole(out / names[i]) as beside:
            picture.save(beside)
        shares = np.bincount(said.numpy().ravel(), minlength=len(model.classes)) / said.numel()
        rows.append((source.table["path"].iat[i], str(names[i]), *shares.round(6).tolist()))
    table = pd.DataFrame(rows, columns=["path", "labels", *(f"share_{name}" for name in model.classes)])
    predictions.write(out / "labels.csv", table)
    write(out / "classes.txt", "".join(f"{name}\n" for name in model.classes))
    console.print(
        f"{len(table):,} label maps, labels.csv and classes.txt in {out}; {len(left_out.reasons)} images left out"
    )
    return table


def places(paths: list[str]) -> list[Path]:
    """Where the label map of each image goes: its own subfolder and name, as .png; the suffix stays where two differ by it."""
    inside = [Path(*(part for part in Path(path).parts if part not in ("..", Path(path).anchor))) for path in paths]
    counts = Counter(path.with_suffix("") for path in inside)
    return [Path(f"{path}.png") if counts[path.with_suffix("")] > 1 else path.with_suffix(".png") for path in inside]


def classified(settings: Predict) -> pd.DataFrame:
    """What a classifier says."""
    model, preprocess = load_classifier(settings.run)
    source, out, device, precision, left_out = begun(settings)
    logits, index = extract(
        model,
        source,
        preprocess,
        model.encoder.image_size,
        device=device,
        precision=precision,
        workers=settings.workers,
        unreadable=left_out,
        title="predicting",
    )
    probabilities = model.probabilities(logits).numpy()
    seen = source.subset(index.numpy())
    table = predictions.table(seen.table, probabilities, model.classes, multilabel=model.several)
    predictions.write(out, table)
    said = f"{len(table):,} images named, into {out}; {len(left_out.reasons)} left out"
    if not model.several and "label" in table:
        known = table["label"].isin(model.classes).to_numpy()
        number = {name: i for i, name in enumerate(model.classes)}
        targets = np.array([number[label] for label in table["label"][known]], dtype=np.int64)
        groups = seen.table["group"].to_numpy()[known] if "group" in seen.table else None
        if groups is not None and (len(set(groups)) < 2 or any(group is None for group in groups)):
            groups = None
        if len(targets):
            found = metrics.score(probabilities[known].argmax(axis=1), targets, len(model.classes), groups=groups)
            said += f"\nOf {found.n:,} with a known label {found.accuracy:.1%} are right [{found.low:.1%}, {found.high:.1%}]"
            said += f", {found.balanced:.1%} of each class on average"
    console.print(said)
    return table
