"""Which particles a study's models were sure of, which they took for another's, what they looked at, and what is like what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unmask.data.decode import UnreadableImage, decode
from unmask.debitage import look, pictures
from unmask.debitage.classify import Folds
from unmask.debitage.study import Frame, Study
from unmask.evaluate.attention import last_attention
from unmask.models.vit import ViT
from unmask.verbs.load import load_classifier
from unmask.verbs.reconstruct import rendered

LOOKED = 6
"""Particles whose attention and occlusion are drawn."""


def picture(path: object) -> Tensor:
    """A particle's picture (C, H, W) in [0, 1]; grey where it has none."""
    try:
        return decode(Path(str(path))).float() / 255
    except UnreadableImage:
        return torch.full((1, 8, 8), 0.5)


def sheet(study: Study, probabilities: np.ndarray, folds: Folds) -> bytes | None:
    """A row a unit, of at most a dozen with the most particles: those judged right, and wrong, most surely."""
    q, frame = study.question, study.particles
    found = look.typical(probabilities, folds.targets.tolist(), frame[q.unit].tolist())
    most = study.units["particles"].sort_values(ascending=False, kind="stable").index[:12]
    rows = []
    for unit in sorted(map(str, most)):
        kinds: dict[str, list[pictures.Shown]] = {}
        for kind, indices in found.get(unit, {}).items():
            kinds[kind] = [
                pictures.Shown(
                    picture(frame["picture"].iat[i]),
                    (f"{folds.classes[probabilities[i].argmax()]} {probabilities[i].max():.0%}",),
                )
                for i in indices
            ]
        label = study.units[q.label].get(unit)
        word = label if isinstance(label, str) else ""  # particles of a unit may differ in label
        rows.append((unit, word, kinds.get("typical", []), kinds.get("misjudged", [])))
    return pictures.particles(rows)


def looked(study: Study, probabilities: np.ndarray, folds: Folds, run: Path, fold: int, vit: bool) -> bytes | None:
    """Where the network of one fold looked in particles it had not seen, evenly spread over how sure it was of the truth."""
    model, preprocess = load_classifier(run)
    test = folds.parts[fold][1]
    test = test[np.isfinite(probabilities[test]).all(axis=1)]
    if len(test) == 0:
        return None
    frame = study.particles
    order = test[np.argsort(probabilities[test, folds.targets[test]], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, LOOKED).round().astype(int))]
    size = model.encoder.image_size
    images = rendered([str(frame["picture"].iat[i]) for i in chosen], preprocess, size)
    attention = None
    if vit and isinstance(model.encoder, ViT):
        attention = last_attention(model.encoder, images)
    rows = []
    for k, i in enumerate(chosen):
        truth, said = folds.classes[folds.targets[i]], folds.classes[probabilities[i].argmax()]
        words = (str(frame[study.question.unit].iat[i]), f"is {truth}", f"{said} {probabilities[i].max():.0%}")
        falls = look.occlusion(model, images[k], model.classes.index(truth))
        shown = preprocess.denormalise(images[k : k + 1])[0]
        rows.append(pictures.Seen(shown, None if attention is None else attention[k], falls, words))
    return pictures.looked(rows)


def nearest(study: Study, vectors: np.ndarray, seed: int) -> tuple[bytes | None, Frame]:
    """Particles beside those that MAE's encoder finds most like them among other units, and how often these share the label:
    with chance, the share that the label has among other units."""
    q, frame = study.question, study.particles
    there = np.flatnonzero(np.isfinite(vectors).all(axis=1) & frame[q.label].notna().to_numpy())
    units, labels = frame[q.unit].to_numpy()[there], frame[q.label].to_numpy()[there]
    some = look.evenly(units, 2000, seed)
    near, _ = look.neighbours(vectors[there], units, some.tolist(), 5, own=False)
    rows = []
    for k, i in enumerate(some):
        known = near[k][near[k] >= 0]
        others = labels[units != units[i]]
        if len(known):
            share, chance = float(np.mean(labels[known] == labels[i])), float(np.mean(others == labels[i]))
            rows.append({"unit": units[i], "label": labels[i], "same_label": share, "chance": chance})
    table: Frame = pd.DataFrame(rows)
    if len(table):
        table = table.groupby(["unit", "label"], as_index=False).mean()
    queries = look.evenly(units[some], 8, seed + 1)
    sheets: list[tuple[pictures.Shown, Sequence[pictures.Shown]]] = []
    for k in queries:
        own = int(some[k])
        beside = [
            pictures.Shown(
                picture(frame["picture"].iat[there[j]]), (f"{units[j]}, {labels[j]}",), bool(labels[j] == labels[own])
            )
            for j in near[k]
            if j >= 0
        ]
        shown = pictures.Shown(picture(frame["picture"].iat[there[own]]), (f"{units[own]}, {labels[own]}",))
        sheets.append((shown, beside))
    return pictures.neighbours(sheets), table
