"""Negative controls: the label predicted from what holds nothing of it, and labels that mean nothing.

Where the background of the pictures, the file, the instrument, the session, the place in the table or the mere absence of
a measure tells the label as well as the particle does, a result rests on them. Each control is judged twice: by units none
of which is on both sides (a knapper not seen before), and by particles, as is often published, where every unit is on both
sides. Both stand beside always naming the commonest label.
"""

# To pandas' own types a column may always be a table, and a sum anything
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.naive_bayes import CategoricalNB

from unmask.data.decode import UnreadableImage, content, decode
from unmask.debitage.findings import listed, plural, whole_labels
from unmask.debitage.study import Study
from unmask.errors import BadInput
from unmask.evaluate.metrics import score
from unmask.evaluate.splits import FOLDS, folds

PARTICLES = 2000
"""Looked at, at most, in proportion to the assemblages."""
PICTURES = 1000
"""Read, at most, of them at most 100 of an assemblage."""
TREES = 50
"""Extremely randomised (Geurts et al. 2006), each leaf of five particles at least."""
LEVEL = 0.99
"""Of the intervals: some fifteen controls are tried, and one false alarm in forty each would be too many."""
MARGIN = 0.02
"""By which balanced accuracy must exceed chance, too, before it is called better."""
SHUFFLES = 3
"""Of labels that mean nothing; their predictions are judged together."""
SIZES = ("da", "feret_length", "dp", "ellipse_length", "area", "perimeter", "volume", "length", "caliper")
"""What may stand for the size of a particle, the first that is there (also as the beginning of a name, as in area_cm2)."""
FIGURES = ("accuracy", "low", "high", "majority", "balanced", "balanced_low", "balanced_high", "chance")
COLUMNS = ["control", "protocol", "particles", *FIGURES, "better", "verdict"]


def size_of(study: Study) -> str | None:
    """The measure that stands for size, or None."""
    for name in SIZES:
        for measure in study.measures:
            if measure == name or (
                measure.startswith(f"{name}_") and measure not in ("length_thickness", "length_width")
            ):
                return measure
    return None


def sampled(rows: pd.DataFrame, most: int, *, each: int | None = None, seed: int = 0) -> pd.DataFrame:
    """At most so many rows, in proportion to the assemblages, and at most `each` of one; in their order."""
    rng = np.random.default_rng(seed)
    shuffled = rows.iloc[rng.permutation(len(rows))]
    place = shuffled.groupby("assemblage", sort=False).cumcount()
    if each is not None:
        shuffled, place = shuffled[place < each], place[place < each]
    share = (place + rng.random(len(place))) / shuffled.groupby("assemblage")["assemblage"].transform("size")
    return shuffled.iloc[np.argsort(share.to_numpy(), kind="stable")[:most]].sort_index()


# What is looked at


@dataclass(frozen=True)
class Clues:
    """What a control may use of some particles."""

    name: str
    rows: np.ndarray
    """Places in `Study.particles`, (n,) int64."""
    values: np.ndarray
    """(n, F), float64; or codes from 0 of names, int64."""


def clues(study: Study, *, seed: int = 0) -> list[Clues]:
    """All that there is to be tried on this study."""
    q, particles = study.question, study.particles
    rows = sampled(particles[particles[q.label].notna()], PARTICLES, seed=seed)
    found: list[Clues] = []

    def add(name: str, frame: pd.DataFrame) -> None:
        """Clues of the rows that have them all, unless they are the same for all."""
        frame = frame.dropna().astype(float)
        frame = frame.loc[:, frame.nunique() > 1]
        if frame.shape[1]:
            found.append(Clues(name, frame.index.to_numpy(), frame.to_numpy()))

    def add_names(name: str, frame: pd.DataFrame) -> None:
        frame = frame.loc[:, frame.nunique(dropna=False) > 1]
        if frame.shape[1]:
            codes = np.stack([pd.factorize(frame[c], use_na_sentinel=False)[0] for c in frame], axis=1)
            found.append(Clues(name, frame.index.to_numpy(), codes.astype(np.int64)))

    of_stone = [name for name in q.nuisances if name in ("material", "technique")]
    others = [name for name in q.nuisances if name not in of_stone]
    for names in (others, of_stone):
        if names:
            add_names(f"{listed(names)} alone", rows[names])
    measures = rows[list(study.measures)]
    absent = measures.isna()
    add_names("which measures are missing", absent.loc[:, absent.any()])
    if (size := size_of(study)) is not None:
        add(f"size alone ({size})", rows[[size]])
    rank = particles.groupby("assemblage")["order"].rank(pct=True).loc[rows.index]
    place = pd.DataFrame({"order": rank})
    if "image_id" in rows:
        number = pd.to_numeric(rows["image_id"], errors="coerce")
        place = place.assign(image_id=number) if number.notna().all() else place
    add("place in the table and picture number" if "image_id" in place else "place in the table", place)
    if rows["image"].notna().any():
        seen = pictures(rows, seed=seed)
        add("background of the pictures alone", seen[list(BACKGROUND)])
        add("properties of the picture files alone", seen.drop(columns=list(BACKGROUND)).fillna(-1.0).astype(float))
    return found


BACKGROUND = ("red", "green", "blue", "deviation", "across", "down", "noise")


def pictures(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """What background and file of the first picture of some of these particles are like: a row each, NaN where unreadable.

    Background: the pixels of a frame along the border, a twentieth of the shorter side wide, that are not of the particle:
    mean of each channel (grey: thrice the same), deviation, slope across and down (mean of one half less that of the other),
    and noise (mean absolute difference of neighbours in a row); all on the scale of 0 to 255.
    """
    chosen = sampled(rows[rows["image"].notna()], PICTURES, each=100, seed=seed)
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        seen = pd.DataFrame(list(pool.map(_picture, chosen["image"])), index=chosen.index)
    return seen.assign(frames=chosen["frames"].map(len), scale=chosen["scale"])


def _picture(path: str) -> dict[str, float]:
    try:
        image = decode(Path(path))
        size = Path(path).stat().st_size
    except (UnreadableImage, OSError):
        return dict.fromkeys((*BACKGROUND, "height", "width", "channels", "bytes"), float("nan"))
    channels, height, width = image.shape
    about = {"height": height, "width": width, "channels": channels, "bytes": size}
    wide = max(2, min(height, width) // 20)
    outside = ~content(image)
    outside[wide:-wide, wide:-wide] = False
    pixels = image.numpy().astype(np.float32)
    pixels = pixels if image.numpy().dtype == np.uint8 else pixels * 255
    if outside.sum() < 16:
        return dict.fromkeys(BACKGROUND, float("nan")) | about
    means = [float(plane[outside].mean()) for plane in pixels[:3]]
    grey = pixels[:3].mean(0)

    def half(where: np.ndarray) -> float:
        return float(grey[where].mean()) if where.any() else float(grey[outside].mean())

    right, low = np.arange(width) >= width / 2, np.arange(height)[:, None] >= height / 2
    pairs = outside[:, 1:] & outside[:, :-1]
    apart = np.abs(np.diff(grey, axis=1))[pairs]
    background = (
        *(means if len(means) == 3 else means[:1] * 3),
        float(grey[outside].std()),
        half(outside & right) - half(outside & ~right),
        half(outside & low) - half(outside & ~low),
        float(apart.mean()) if len(apart) else 0.0,
    )
    return dict(zip(BACKGROUND, background, strict=True)) | about


# How well it tells the label


def controls(study: Study, *, seed: int = 0) -> pd.DataFrame:
    """A row a control and protocol ("by knapper": none on both sides; "by particle"): "control", "protocol", "particles",
    "accuracy" with the 99% interval "low" to "high" (bootstrap of units, or of particles), "majority" (that of always naming
    the commonest label), the same of "balanced" accuracy, "chance" (1 / K of K labels, what naming one label always gets
    there), whether it is "better", and the "verdict" in words. NaN where it cannot be tested, and the verdict says why.

    Labels weigh alike in training, and balanced accuracy decides: to leave a unit out makes its label rarer among the others,
    and who guesses the commonest is then wrong more often than by chance.

    The last controls are labels that mean nothing: shuffled among particles (of these nothing may be told), and shuffled among
    units, or within units where these have several labels. What is "recognised" of the latter by particle is the unit.
    """
    q, particles = study.question, study.particles
    labels = particles[q.label]
    rows: list[dict[str, object]] = []
    if labels.nunique() < 2:
        return pd.DataFrame(columns=COLUMNS)
    for clue in clues(study, seed=seed):
        truth = labels.loc[clue.rows].to_numpy()
        rows += [judged(study, clue, [truth], by_unit, seed=seed) for by_unit in (True, False)]
    if (measured := measures(study, seed=seed)) is not None:
        truth, units = (particles.loc[measured.rows, name].to_numpy() for name in (q.label, q.unit))
        strata = None if q.strata is None else particles.loc[measured.rows, q.strata].to_numpy()
        rng = np.random.default_rng(seed)
        shuffled = Clues(f"{q.label} shuffled among particles, from the measures", measured.rows, measured.values)
        drawn = [rng.permutation(truth) for _ in range(SHUFFLES)]
        rows += [judged(study, shuffled, drawn, by_unit, seed=seed, nonsense=True) for by_unit in (True, False)]
        drawn = [shuffle(truth, units, strata, whole=whole_labels(study), rng=rng) for _ in range(SHUFFLES)]
        if drawn := [labels for labels in drawn if labels is not None]:
            how = "among" if whole_labels(study) else "within"
            name = f"{q.label} shuffled {how} {plural(q.unit)}, from the measures"
            shuffled = Clues(name, measured.rows, measured.values)
            rows += [judged(study, shuffled, drawn, by_unit, seed=seed, nonsense=True) for by_unit in (True, False)]
    return pd.DataFrame(rows, columns=COLUMNS)


def measures(study: Study, *, seed: int = 0) -> Clues | None:
    """The measures that are there of most particles of every assemblage, gaps filled with the median; without such those of
    most particles, of the particles that have them all. None without any."""
    q = study.question
    known = study.particles[study.particles[q.label].notna()]
    names = [name for name in study.measures if known[name].nunique() > 1]
    there = known[names].notna()
    always = [name for name in names if (there[name].groupby(known["assemblage"]).mean() >= 0.5).all()]
    mostly = [name for name in names if there[name].mean() >= 0.5]
    rows = sampled(known if always else known[there[mostly].all(axis=1)], PARTICLES, seed=seed)
    values = rows[always or mostly]
    if values.shape[1] == 0 or len(values) == 0:
        return None
    return Clues("measures", rows.index.to_numpy(), values.fillna(values.median()).to_numpy(float))


def shuffle(
    labels: np.ndarray, units: np.ndarray, strata: np.ndarray | None, *, whole: bool, rng: np.random.Generator
) -> np.ndarray | None:
    """Labels (n,) that mean nothing: given to other units of the same stratum, whole; or where units have several, to other
    particles of the same unit. None if no other than the true division of the units was met in 20 tries."""
    if not whole:
        shuffled = labels.copy()
        for unit in np.unique(units):
            at = np.flatnonzero(units == unit)
            shuffled[at] = labels[rng.permutation(at)]
        return shuffled
    about = pd.DataFrame({"label": labels, "unit": units, "stratum": "" if strata is None else strata})
    about = about.groupby("unit", sort=True).first()
    for _ in range(20):
        drawn = about.groupby("stratum", group_keys=False)["label"].transform(lambda x: rng.permutation(x.to_numpy()))
        pairs = pd.DataFrame({"true": about["label"], "drawn": drawn}).drop_duplicates()
        if len(pairs) > about["label"].nunique():  # else the same units are together as in truth, under other names
            return drawn.loc[units].to_numpy()
    return None


def judged(
    study: Study, clue: Clues, targets: Sequence[np.ndarray], by_unit: bool, *, seed: int = 0, nonsense: bool = False
) -> dict[str, object]:
    """A row of `controls`. targets: one or more labellings (n,) of the particles, judged together."""
    q = study.question
    units = study.particles.loc[clue.rows, q.unit].to_numpy()
    row: dict[str, object] = {"control": clue.name, "protocol": f"by {q.unit if by_unit else 'particle'}"}
    names = np.unique(np.concatenate(targets))
    shuffled = nonsense and "among particles" in clue.name  # then each particle stands for itself
    right, groups, codes, n = [], [], [], 0
    for labels in targets:
        kept, why = testable(labels, units if by_unit else None, q.label, q.unit)
        if why:
            nothing = dict.fromkeys(FIGURES, float("nan"))
            return row | {"particles": len(labels), **nothing, "better": False, "verdict": f"cannot be tested: {why}"}
        y = np.searchsorted(names, labels[kept])
        values, owners, n = clue.values[kept], units[kept], len(y)
        said = predictions(values, y, parts(y, owners if by_unit else None, seed), seed)
        codes.append(y)
        right.append(said)
        groups.append(np.arange(n) if shuffled else owners)
    y, said = np.concatenate(codes), np.concatenate(right)
    owners = np.concatenate(groups)
    got = score(said, y, len(names), groups=owners if by_unit or shuffled else None, level=LEVEL, seed=seed)
    majority = float(np.mean([np.bincount(each).max() / len(each) for each in codes]))
    chance = 1 / len(np.unique(y))
    margin = max(MARGIN, 0.25 / len(np.unique(owners))) if by_unit else MARGIN  # a bootstrap of few units is too sure
    better = got.balanced_low > chance and got.balanced > chance + margin
    common = names[np.bincount(codes[0]).argmax()]
    if nonsense and better:
        why = (
            "the test itself leaks" if shuffled or (by_unit and "within" not in clue.name)
            else f"{plural(q.unit)} of like composition resemble each other" if by_unit
            else f"a split by particle recognises the {q.unit}, not the {q.label}"
        )  # fmt: skip
        verdict = f"made-up labels are recognised: {why}"
    elif nonsense:
        verdict = "at chance, as it must be"
    elif better:
        verdict = f"tells the {q.label}" + (f" of a {q.unit} not seen before, too" if by_unit else " of a particle")
    else:
        verdict = f"no better than always saying {common}"
    balanced = (got.balanced, got.balanced_low, got.balanced_high)
    figures = dict(zip(FIGURES, (got.accuracy, got.low, got.high, majority, *balanced, chance), strict=True))
    return row | {"particles": n, **figures, "better": bool(better), "verdict": verdict}


def testable(labels: np.ndarray, units: np.ndarray | None, label: str, unit: str) -> tuple[np.ndarray, str | None]:
    """Which samples (n,) bool are of a label that can be both learnt and tested, and if fewer than two can, why."""
    if units is None:
        counts = pd.Series(labels).value_counts()
        few, least, what = counts[counts < FOLDS], FOLDS, "particles"
    else:
        counts = pd.DataFrame({"label": labels, "unit": units}).drop_duplicates()["label"].value_counts()
        few, least, what = counts[counts < 2], 2, plural(unit)
    if len(counts) - len(few) < 2:
        if len(counts) < 2:
            return np.zeros(len(labels), bool), f"one {label} only"
        names = listed([f"{name} ({count})" for name, count in few.items()][:4])
        return np.zeros(len(labels), bool), f"fewer than {least} {what} of {names}"
    return ~np.isin(labels, few.index.to_numpy()), None


def parts(y: np.ndarray, units: np.ndarray | None, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test indices: five folds of particles or, of more than ten units, of units; else each unit by itself."""
    if units is None:
        return folds(y, None, FOLDS, seed)
    names = np.unique(units)
    if len(names) > 10:
        try:
            return folds(y, units, FOLDS, seed)
        except BadInput:  # units too unequal
            pass
    return [(np.flatnonzero(units != name), np.flatnonzero(units == name)) for name in names]


def predictions(values: np.ndarray, y: np.ndarray, made: list[tuple[np.ndarray, np.ndarray]], seed: int) -> np.ndarray:
    """The class (n,) said of each sample by what was learnt from the others: trees for numbers, for names a naive Bayes."""
    said = np.zeros(len(y), np.int64)
    for train, test in made:
        if len(np.unique(y[train])) < 2:
            said[test] = y[train][0]
            continue
        if values.dtype.kind == "i":
            bayes = CategoricalNB(min_categories=(values.max(0) + 1).tolist(), fit_prior=False).fit(
                values[train], y[train]
            )
            sure = bayes.predict_log_proba(values[test]).round(6)  # else rounding would decide between equals
            said[test] = bayes.classes_[sure.argmax(1)]
        else:
            trees = ExtraTreesClassifier(TREES, min_samples_leaf=5, class_weight="balanced", random_state=seed)
            said[test] = trees.fit(values[train], y[train]).predict(values[test])
    return said
