"""unmask study run | audit | simulate: does the debris of knappers of different experience differ, and can these data say so?"""

import dataclasses
import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import tyro
import yaml
from tyro.conf import Positional

from unmask.debitage import audit as audits
from unmask.debitage import classify, look, mixed, page, pictures, power, shapes, simulate, statistics
from unmask.debitage.classify import Folds
from unmask.debitage.findings import Finding, plural
from unmask.debitage.study import Frame, Study, load
from unmask.errors import BadInput
from unmask.evaluate import splits
from unmask.screen import console, warn
from unmask.training.run import whole, write
from unmask.verbs import faces, networks
from unmask.verbs.networks import Networks

KEPT = 96
"""Pixels of the pictures that are cut out."""
FEW_UNITS = 15
"""Up to so many, it is tried to name the unit itself."""
REMARKS = 5
"""On the data that are printed; the report has them all."""
STUDY = Annotated[Positional[Path], tyro.conf.arg(metavar="STUDY.yaml")]


@dataclass(frozen=True)
class Run:
    """Judge a study from end to end: what its data can answer, whether assemblages differ, what can be told of whom, and on
    what that rests. One folder comes out: report.html, tables/*.csv, figures/, and the runs of the networks."""

    study: STUDY
    """What is asked and of which assemblages; `unmask study simulate` writes one to begin with."""
    out: Path
    """Folder of the results. The same command goes on where it was stopped."""
    quick: bool = False
    """A first look, by measures alone: no networks, and a fifth of the permutations."""
    permutations: int = 999
    """Of each test, where there are more arrangements than that."""
    epochs: float | None = None
    """Passes over the particles, for each network in each fold. Default: 8, and more of fewer than 500."""
    pretrain_epochs: float = 60
    """Passes of MAE over all particles, without their labels."""
    vit: str = "vit-lite-4/8"
    """The transformer that learns from scratch, and after MAE."""
    resnet: str = "resnet18"
    """The convolutional network, from scratch."""
    pixels: int = 72
    """Height and width that the networks see."""
    beside: tuple[str, ...] = ()
    """Columns to split by as well, such as the plate: leaky tests, to be shown beside the honest one."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Of everything drawn."""


@dataclass(frozen=True)
class Audit:
    """Say what the data of a study cannot answer, before anything is modelled."""

    study: STUDY
    """What is asked and of which assemblages."""
    seed: int = 0
    """Of the negative controls."""


@dataclass(frozen=True)
class Simulate:
    """Write a study of flakes that were never knapped, whose truth is known: study.yaml, images and the analyser's tables."""

    out: Path
    """Folder to be created."""
    design: Literal["balanced", "three-knappers", "null"] = "balanced"
    """balanced: six knappers of three levels, each with two stones. three-knappers: one novice and two experts, each with
    another stone, as published. null: as balanced, but all alike."""
    particles: int = 960
    """In all."""
    effect: float | None = None
    """Multiplies the difference that skill makes: 0 is none. Default: 1, for null 0."""
    seed: int = 0
    """Of everything drawn."""


def required() -> None:
    """BadInput where what studies need beyond the rest is not installed."""
    for package in ("umap", "openpyxl"):
        if find_spec(package) is None:
            raise BadInput(f"a study needs {package}: pip install 'unmask[study]'")


# The three commands


def write_simulated(settings: Simulate) -> Path:
    """Write a simulated study and return the path of its study.yaml."""
    required()
    simulate.simulate(settings.design, settings.out, settings.particles, seed=settings.seed, effect=settings.effect)
    path = settings.out / "study.yaml"
    console.print(f"{settings.particles:,} particles of the design {settings.design}, into {settings.out}")
    console.print(f"Next: unmask study run {path} --out {settings.out}-results")
    return path


def audit(settings: Audit) -> list[Finding]:
    """Print what the data cannot answer, and return it."""
    required()
    study = load(settings.study)
    if not study.measures and (study.particles["frames"].str.len() > 0).any():
        study, notes = measured(study)
        study = study.replace(notes=(*study.notes, *notes))
    findings = audits.audit(study, seed=settings.seed)
    print_findings(study, findings)
    return findings


SIGNS = {
    "cannot answer": "[red]✗ cannot answer[/]",
    "warning": "[yellow]! warning[/]",
    "note": "· note",
    "fine": "[green]✓[/]",
}


def print_findings(study: Study, findings: Sequence[Finding]) -> None:
    for note in study.notes[:REMARKS]:
        console.print(f"· {note}", highlight=False)
    if len(study.notes) > REMARKS:
        console.print(f"· and {len(study.notes) - REMARKS} more remarks on the data", highlight=False)
    for finding in findings:
        console.print(f"{SIGNS[finding.severity]} [bold]{finding.title}[/]", highlight=False)
        if finding.severity != "fine":
            console.print(f"    {finding.sentence}", highlight=False, markup=False)


def run(settings: Run) -> dict[str, Any]:
    """Judge a study and return what result.json says. BadInput for a study that cannot be read."""
    required()
    began = time.monotonic()
    study = load(settings.study)
    for name in settings.beside:
        if name not in study.particles:
            raise BadInput(f"--beside {name}: no such column in {study.path}")
    begin(settings, study)
    out = settings.out
    study = seen(study, out)
    found = judged(settings, study)
    result = told(found, time.monotonic() - began)
    save(settings, found, result)
    console.print(f"\n[bold]{result['verdict']}[/]: {result['sentence']}", highlight=False)
    console.print(f"Report: {out / 'report.html'}   tables: {out / 'tables'}", highlight=False)
    return result


# What goes in


FREE = ("out", "device")
"""Settings that may be others when a study is gone on with."""


def begin(settings: Run, study: Study) -> None:
    """The folder with settings.yaml; BadInput if it holds something else, or the same with other settings."""
    out, path = settings.out, settings.out / "settings.yaml"
    fixed: dict[str, Any] = {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items() if k not in FREE
    }
    fixed["study"] = str(settings.study)
    fixed |= {"particles": len(study.particles), "question": {**dataclasses.asdict(study.question)}}
    fixed["question"]["nuisances"] = list(study.question.nuisances)
    if path.is_file():
        before = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("fixed", {})
        other = [f"{k} {v} (it began with {before.get(k)})" for k, v in fixed.items() if before.get(k) != v]
        if other:
            raise BadInput(f"the study in {out} has other settings than {', '.join(other)}: choose another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty and holds no study: choose another --out")
    versions = {name: version(name) for name in ("unmask", "torch", "scikit-learn", "scikit-image", "scipy")}
    stated = {"fixed": fixed, "versions": versions | {"python": platform.python_version()}}
    stated["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        for folder in (out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
        write(path, yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror}): choose another --out") from None


def seen(study: Study, out: Path) -> Study:
    """The study with a picture of each particle cut out, and with measures where no analyser gave them."""
    if not (study.particles["frames"].str.len() > 0).any():
        return study.replace(particles=study.particles.assign(picture=None))
    notes: list[str] = []
    if not study.measures:
        study, notes = measured(study)
    paths, missed = shapes.cut(study.particles, out / "particles", size=KEPT)
    return study.replace(particles=study.particles.assign(picture=paths), notes=(*study.notes, *notes, *missed))


def measured(study: Study) -> tuple[Study, list[str]]:
    """The study with the measures of its particles' pictures, and what was noticed."""
    values: Frame
    values, notes = shapes.measure_images(study.particles, title="measuring")
    names = [name for name in values if values[name].notna().any()]
    particles = study.particles.drop(columns=[name for name in names if name in study.particles])
    particles = pd.concat([particles, values[names].reset_index(drop=True)], axis=1)
    return study.replace(particles=particles, measures=tuple(names)), list(notes)


# What is judged


def judged(settings: Run, study: Study) -> page.Found:
    """Everything: audit, tests between assemblages, classification, power, pictures."""
    q, frame = study.question, study.particles
    permutations = settings.permutations // 5 if settings.quick else settings.permutations
    options: dict[str, Any] = {"permutations": permutations, "seed": settings.seed}
    with networks.said("auditing"):
        findings = audits.audit(study, seed=settings.seed)
    print_findings(study, findings)
    notes = list(study.notes)

    with networks.said("testing assemblages against each other"):
        X, names, left = statistics.features(study)
        notes += left
        tests = [("measures", test) for test in statistics.between(study, **options)] if names else []
        effects = mixed.mixed(study) if names else pd.DataFrame()
    console.print(f"{len(tests)} tests between assemblages, {len(effects)} measures", highlight=False)

    nets, pretrained, vectors = None, None, None
    if not settings.quick and frame["picture"].notna().any():
        nets = Networks(
            settings.out / "models", settings.vit, settings.resnet, settings.pixels, settings.epochs,
            settings.pretrain_epochs, settings.seed, settings.device,
        )  # fmt: skip
        pictured = frame[frame["picture"].notna()]
        pretrained = networks.pretrained(nets, pictured, q.unit)
        there = frame["picture"].notna().to_numpy()
        some = networks.vectors(nets, pretrained, pictured, q.unit)
        vectors = np.full((len(frame), some.shape[1]), np.nan)
        vectors[there] = some
        if there.all() and np.isfinite(vectors).all():
            tests += [
                ("MAE's features", test) for test in statistics.between(study, statistics.principal(vectors), **options)
            ]

    contests = [
        contest(settings, study, each, X, names, vectors, nets, pretrained) for each in protocols(settings, study)
    ]
    rows, votes = [row for each in contests for row in each.rows], [row for each in contests for row in each.votes]
    for each in contests:
        notes += [note for note in each.folds.notes if note not in notes]
    table = pd.DataFrame([{"on": on, **test.to_dict()} for on, test in tests])
    strength, sentence = planned(effects, settings, q.unit)
    with networks.said("drawing"):
        beside = side_by_side(study, tests, effects, contests, settings.seed)
        shown, crossing = drawn(settings, study, beside, effects, contests, strength, X, vectors)
    return page.Found(
        study=study, findings=findings, tests=table, beside=beside, effects=effects, judged=pd.DataFrame(rows),
        votes=pd.DataFrame(votes), predictions=predictions(study, contests), power=strength, power_sentence=sentence,
        crossing=crossing, notes=notes, pictures=shown,
    )  # fmt: skip


def protocols(settings: Run, study: Study) -> list[tuple[str, bool, Folds]]:
    """Every way to test, by name: whether it is honest, and its folds. Those that leave units whole first."""
    q = study.question
    found = [(f"{q.label}, new {q.unit}", True, classify.folds(study, "skill", seed=settings.seed))]
    if len(study.units) <= FEW_UNITS:
        found.append((f"{q.unit}, new assemblage", True, classify.folds(study, "unit", seed=settings.seed)))
    naive = classify.folds(study, "skill", naive=True, seed=settings.seed)
    for column in settings.beside:
        parts = splits.folds(naive.targets, study.particles[column].astype(str), seed=settings.seed)
        words = f"a fifth held out, by {column}"
        found.append(
            (f"{q.label}, by {column}", False, dataclasses.replace(naive, parts=tuple(parts[:1]), protocol=words))
        )
    one = dataclasses.replace(naive, parts=naive.parts[:1], protocol="a fifth held out, by particle")
    return [*found, (f"{q.label}, by particle", False, one)]


@dataclass
class Contest:
    """What every model got right by one protocol."""

    name: str
    honest: bool
    folds: Folds
    rows: list[dict[str, Any]]
    votes: list[dict[str, Any]]
    probabilities: dict[str, np.ndarray]


def contest(
    settings: Run,
    study: Study,
    protocol: tuple[str, bool, Folds],
    X: np.ndarray,
    names: Sequence[str],
    vectors: np.ndarray | None,
    nets: Networks | None,
    pretrained: Path | None,
) -> Contest:
    """Every model by one protocol: of measures, of pictures, and of both."""
    name, honest, folds = protocol
    made = Contest(name, honest, folds, [], [], {})
    if not folds.parts:
        made.rows.append({"protocol": name, "honest": honest, "model": "none", "sentence": " ".join(folds.notes)})
        return made
    inputs = {}
    if names:
        inputs |= {"measures, random forest": (X, "forest"), "measures, logistic": (X, "logistic")}
    if vectors is not None:
        inputs["MAE frozen, logistic"] = (vectors, "logistic")
        if names:
            both = np.hstack(
                [statistics.scaled(X), statistics.scaled(statistics.principal(np.nan_to_num(vectors), 32))]
            )
            inputs["MAE frozen + measures, logistic"] = (both, "logistic")
            inputs["MAE frozen + measures, random forest"] = (both, "forest")
    for model, (values, kind) in inputs.items():
        with networks.said(f"{model}: {name}"):

            def fitted(folds: Folds, values: np.ndarray = values, kind: str = kind) -> np.ndarray:
                return classify.classify(values, folds, kind, settings.seed, jobs=-1)

            made.probabilities[model] = fitted(folds)
            again = fitted if honest and kind == "logistic" and len(study.units) <= FEW_UNITS else None
            verdict = classify.judge(
                study, folds.task, made.probabilities[model], folds, refit=again,
                permutations=min(199, settings.permutations), seed=settings.seed,
            )  # fmt: skip
            enter(made, model, verdict)
    if nets is not None:
        used = study.particles["picture"].notna().to_numpy() & (folds.targets >= 0)
        labels = np.array([folds.classes[t] if t >= 0 else "" for t in folds.targets], dtype=object)
        parts = [(train[used[train]], test[used[test]]) for train, test in folds.parts]
        for kind in nets.kinds:
            began = pretrained if kind == "ViT after MAE" else None
            made.probabilities[kind], unlearnt = networks.answers(
                nets, kind, folder(name), study.particles, labels, folds.classes, parts, study.question.unit, began
            )
            enter(made, kind, classify.judge(study, folds.task, made.probabilities[kind], folds, seed=settings.seed))
            made.rows[-1] |= {"parts": len(parts), "unlearnt": unlearnt}
            if unlearnt:
                warn(f"    [yellow]![/] {page.unlearnt(pd.DataFrame(made.rows[-1:]))}")
    return made


def folder(name: str) -> str:
    """A name as a folder has it."""
    return "-".join(re.findall(r"\w+", name.lower()))


def enter(made: Contest, model: str, verdict: classify.Judgement) -> None:
    """What a model got right, as a row, and how each assemblage was named by vote."""
    assert verdict.particles is not None and verdict.assemblages is not None
    score, vote = verdict.particles, verdict.assemblages
    keys = ("accuracy", "low", "high", "balanced", "balanced_low", "balanced_high", "n", "macro_f1")
    row = {"protocol": made.name, "honest": made.honest, "how": made.folds.protocol, "model": model}
    row |= {key: score[key] for key in keys} | {f"vote_{key}": vote[key] for key in ("accuracy", "low", "high", "n")}
    row |= {"majority": verdict.commonest, "majority_trained": verdict.majority, "classes": len(verdict.classes)}
    row |= {"p": verdict.p, "smallest_p": verdict.smallest_p, "sentence": verdict.sentence}
    made.rows.append(row)
    made.votes += [{"protocol": made.name, "model": model, **one} for one in verdict.votes]
    console.print(
        f"  {made.name}: {model}  {score['accuracy']:.3f} [{score['low']:.3f}, {score['high']:.3f}], balanced "
        f"{score['balanced']:.3f}, {vote['accuracy'] * vote['n']:.0f} of {vote['n']} assemblages", highlight=False,
    )  # fmt: skip


def predictions(study: Study, contests: Sequence[Contest]) -> pd.DataFrame:
    """What each model says of each particle it was tested on: a row a particle, protocol and model."""
    parts = []
    for each in contests:
        for model, said in each.probabilities.items():
            rows = np.flatnonzero(np.isfinite(said).all(axis=1) & (each.folds.targets >= 0))
            names = np.array(each.folds.classes, dtype=object)
            about = {"particle": study.particles["particle"].to_numpy()[rows], "protocol": each.name, "model": model}
            about |= {"truth": names[each.folds.targets[rows]], "said": names[said[rows].argmax(axis=1)]}
            parts.append(pd.DataFrame(about | {"probability": said[rows].max(axis=1).round(4)}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def planned(effects: pd.DataFrame, settings: Run, unit: str) -> tuple[pd.DataFrame, str]:
    """How often differences would be found by so many units and particles, from the variances found here."""
    try:
        table = power.power(effects, simulations=400 if settings.quick else 2000, seed=settings.seed)
    except (BadInput, KeyError) as error:
        return pd.DataFrame(), f"Power is not known: {error}."
    return table, power.enough(table, unit=unit)


# What is drawn


def drawn(
    settings: Run,
    study: Study,
    tests: pd.DataFrame,
    effects: pd.DataFrame,
    contests: Sequence[Contest],
    strength: pd.DataFrame,
    X: np.ndarray,
    vectors: np.ndarray | None,
) -> tuple[dict[str, bytes], pd.DataFrame]:
    """All figures by name, those left out that have nothing to show; and how often likeness crosses units."""
    q, frame = study.question, study.particles
    labels, units = frame[q.label].to_numpy(), frame[q.unit].to_numpy()
    of_label = None if q.covariate is None else frame.groupby(q.label)[q.covariate].mean()
    order = () if of_label is None else tuple(map(str, of_label.sort_values().index))  # from novice to expert
    shown: dict[str, bytes | None] = {"tests": pictures.tests(tests) if len(tests) else None}
    for task in ("skill", "unit"):
        of = pd.DataFrame(
            [row for each in contests if each.folds.task == task for row in each.rows if "accuracy" in row]
        )
        if len(of):
            shown[f"classified-{task}"] = pictures.classification(of, int(of["classes"].iloc[0]))
    shown["effects"] = pictures.effects(effects) if len(effects) else None
    shown["power"] = pictures.power(strength, plural(q.unit)) if len(strength) else None
    if (name := audits.size_of(study)) is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            shown["sizes"] = pictures.sizes(
                np.log10(frame[name].to_numpy(float)), labels, units, order=order, what=f"{name}, mm"
            )
    if X.shape[1]:
        scaled = statistics.scaled(X)
        shown["map-measures"] = pictures.maps(
            look.flat(scaled, seed=settings.seed, units=units), labels, units, order=order
        )
        groups = frame["assemblage"] if len(study.units) <= FEW_UNITS else frame[q.unit]
        shown["tree"] = pictures.tree(scaled, groups, labels, order=order)
    crossing = pd.DataFrame()
    if vectors is not None:
        there = np.isfinite(vectors).all(axis=1)
        flat = look.flat(vectors[there], seed=settings.seed, units=units[there])
        shown["map-features"] = pictures.maps(flat, labels[there], units[there], order=order)
        shown["neighbours"], crossing = faces.nearest(study, vectors, settings.seed)
    for each in contests:  # of each task the first that could be tested: the honest one where there is one
        nets = [name for name in ("ViT after MAE", "ResNet") if name in each.probabilities]
        if not nets or f"particles-{each.folds.task}" in shown:
            continue
        shown[f"particles-{each.folds.task}"] = faces.sheet(study, each.probabilities[nets[0]], each.folds)
        for name in nets:
            run = settings.out / "models" / folder(each.name) / folder(name) / "fold-1"
            said = each.probabilities[name]
            shown[f"looked-{each.folds.task}-{folder(name)}"] = faces.looked(
                study, said, each.folds, run, 0, "ViT" in name
            )
    return {name: png for name, png in shown.items() if png is not None}, crossing


def side_by_side(
    study: Study,
    tests: Sequence[tuple[str, statistics.Test]],
    effects: pd.DataFrame,
    contests: Sequence[Contest],
    seed: int,
) -> pd.DataFrame:
    """The p of each test as it should be made, where whole units are dealt out, beside the p of what is mostly done, where
    particles are taken for replicates."""
    q = study.question
    try:
        naive = power.naive(study, seed)
    except (BadInput, ValueError):
        naive = {}
    rows = []
    asked = [(on, test) for on, test in tests if test.name.split(", ")[1].split(" among ")[0] in (q.label, q.covariate)]
    for number, (on, test) in enumerate(asked):
        own = naive.get("PERMANOVA, particles") if number == 0 and test.name.startswith("PERMANOVA") else None
        rows.append({"test": f"{test.name}, {on}", "honest": test.p, "naive": own, "smallest": test.smallest_p})
    own = effects[effects["stands"] == effects["measure"]] if len(effects) else effects
    if len(own):
        first = own.iloc[0]
        known = naive.get("ANOVA, particles, first measure")
        rows.append(
            {"test": f"mixed model, {first['measure']}", "honest": first["p"], "naive": known, "smallest": np.nan}
        )
    for each in contests[:1]:
        row = next((row for row in each.rows if row.get("p") is not None), None)
        if row is not None or naive:
            known = naive.get("forest, by particle, against the majority")
            p, least = (row["p"], row["smallest_p"]) if row else (np.nan, np.nan)
            rows.append({"test": f"{q.label} recognised from measures", "honest": p, "naive": known, "smallest": least})
    return pd.DataFrame(rows).astype({"honest": float, "naive": float, "smallest": float}) if rows else pd.DataFrame()


# What comes out


def told(found: page.Found, seconds: float) -> dict[str, Any]:
    """What result.json says: whether the data can answer, and what."""
    q = found.study.question
    word, sentence = page.verdict(found)
    best = found.judged[found.judged["honest"]] if len(found.judged) else found.judged
    return {
        "verdict": word,
        "sentence": sentence,
        "title": found.study.title,
        "particles": len(found.study.particles),
        "units": len(found.study.units),
        "assemblages": int(found.study.particles["assemblage"].nunique()),
        "question": {"label": q.label, "unit": q.unit, "covariate": q.covariate, "strata": q.strata},
        "cannot_answer": [finding.title for finding in found.findings if finding.severity == "cannot answer"],
        "warnings": [finding.title for finding in found.findings if finding.severity == "warning"],
        "tests": found.tests[["on", "name", "p", "smallest_p"]].to_dict("records") if len(found.tests) else [],
        "classification": [
            {key: row[key] for key in ("protocol", "model", "accuracy", "low", "high", "balanced", "majority")}
            for row in best.to_dict("records")
            if row.get("model") != "none"
        ],
        "power": found.power_sentence,
        "seconds": round(seconds, 1),
    }


def save(settings: Run, found: page.Found, result: dict[str, Any]) -> None:
    """tables/*.csv, figures/*.png, result.json and report.html, each whole or not at all."""
    out, frame = settings.out, found.study.particles
    tables = {
        "particles": frame.drop(columns=[c for c in ("frames",) if c in frame]),
        "units": found.study.units.reset_index(),
        "audit": pd.DataFrame(
            [{k: getattr(f, k) for k in ("key", "severity", "title", "sentence")} for f in found.findings]
        ),
        "tests": found.tests,
        "side-by-side": found.beside,
        "effects": found.effects,
        "classification": found.judged,
        "assemblages": found.votes,
        "predictions": found.predictions,
        "power": found.power,
        "neighbours": found.crossing,
    }
    tables |= {f"audit-{f.key}": f.table for f in found.findings if f.table is not None}
    for name, table in tables.items():
        if len(table):
            with whole(out / "tables" / f"{name}.csv") as beside:
                table.to_csv(beside, index=False)
    for name, png in found.pictures.items():
        with whole(out / "figures" / f"{name}.png") as beside:
            beside.write_bytes(png)
    write(out / "result.json", json.dumps(result, indent=1, default=float))
    stated = yaml.safe_load((out / "settings.yaml").read_text(encoding="utf-8"))
    write(out / "report.html", page.page(found, stated, result, sorted(p.name for p in (out / "tables").glob("*.csv"))))
