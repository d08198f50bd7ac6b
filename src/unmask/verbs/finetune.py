"""unmask finetune: learn from labels, on from an encoder that was trained before or from scratch, and be judged honestly."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from unmask import figures, models
from unmask.data.decode import Preprocess
from unmask.data.source import Source, require_classes
from unmask.data.sources import open_source
from unmask.data.survey import Survey, survey
from unmask.errors import BadInput
from unmask.evaluate import metrics, predictions, splits
from unmask.evaluate.distill import Distilled
from unmask.evaluate.features import extract
from unmask.evaluate.finetune import RECIPES, Recipe, Settings, Supervised, pool_for, recipe_for
from unmask.methods.method import length_of
from unmask.models import Encoder, classifier
from unmask.models.classifier import Classifier
from unmask.screen import console, mute, warn
from unmask.training import distributed, engine, health
from unmask.training.run import Run, plain
from unmask.verbs.choices import (
    Choice,
    Choices,
    choose_encoder,
    choose_optimiser,
    choose_pixels,
    choose_reading,
    choose_schedule,
    parse_size,
)
from unmask.verbs.load import load, load_classifier
from unmask.verbs.probe import groups_of, labelled
from unmask.verbs.train import Outcome, Training, check, conclude, divided, measured, resumed, same_data, train

Own = Settings


@dataclass(frozen=True)
class Finetune(Training):
    """Learn from labels: all of an encoder, its last blocks, or a linear layer on it; or a new one from scratch."""

    run: Annotated[Positional[str | None], tyro.conf.arg(metavar="RUN")] = None
    """A run, or any encoder that `unmask.load` reads, to go on from. Without it --encoder is trained from scratch."""
    encoder: str | None = None
    """From scratch: a compact transformer such as cct-7/3x1, cvt-7/4 or vit-lite-7/4, a ViT such as vit-small/16, or a model of
    timm such as resnet18."""
    test: str | None = None
    """Labelled images to be judged on. Without it a fifth of --data is held out, by --group where there is one."""
    folds: int | None = None
    """Without --test: be judged on all of --data, each of so many parts by a model that was trained on the others."""
    labels: str | None = None
    """Learn from so few of the labels: a share as in 1%, or a number of images in all, with the classes in proportion."""
    seeds: int = 1
    """Train so many times, from --seed on, and report mean and deviation."""
    separator: str | None = None
    """What stands between several labels of an image, such as "|". Without it an image has one."""


@dataclass(frozen=True)
class Labelled:
    """Images with what they are."""

    source: Source
    targets: np.ndarray
    """(N,) int64, or (N, K) float32 of 0 and 1 where an image may have several labels."""
    classes: tuple[str, ...]

    @property
    def several(self) -> bool:
        return self.targets.ndim == 2

    @property
    def groups(self) -> np.ndarray | None:
        return groups_of(self.source)

    @cached_property
    def survey(self) -> Survey:
        return survey(self.source, sample=2000)

    def subset(self, indices: np.ndarray) -> "Labelled":
        return Labelled(self.source.subset(indices), self.targets[indices], self.classes)

    def frequencies(self) -> Tensor:
        """As `Supervised` wants them, (K,)."""
        if self.several:
            return torch.from_numpy(self.targets).double().mean(dim=0)
        return torch.from_numpy(np.bincount(self.targets, minlength=len(self.classes))).double()


@dataclass(frozen=True)
class Part:
    """One training among those of a command."""

    name: str
    """Of its folder in the run; "" for the run itself."""
    seed: int
    train: Labelled
    test: Labelled | None


def finetune(settings: Finetune, own: Settings) -> dict[str, Any]:
    """Train as told and return what result.json says. BadInput for what cannot be used."""
    check(settings)
    assert settings.out is not None
    stored = None
    if settings.resume and ((settings.out / "settings.yaml").is_file() or settings.data is None):
        stored = Run(settings.out).settings
        settings, own = resumed(stored, "finetune", settings, own)
    data, test = gather(settings)
    same_data(stored, data.source, settings.out)
    began = load(settings.run) if settings.run is not None else None
    parts = divide(settings, data, test)
    protocol, warning = protocol_of(settings, data, test)
    facts = {"protocol": protocol, "warning": warning}
    if warning:
        warn(f"[yellow]warning[/] {warning}")

    def learn(part: Part) -> dict[str, Any]:
        out = settings.out / part.name if part.name else settings.out  # type: ignore[operator]
        told = dataclasses.replace(settings, out=out, seed=part.seed, resume=settings.resume or bool(part.name))
        return learn_part(told, own, began, data, part, facts, stored)

    if len(parts) == 1:
        return learn(parts[0])
    return together(settings, own, data, parts, learn, facts)


# What is learnt from


def gather(settings: Finetune) -> tuple[Labelled, Labelled | None]:
    """The labelled images to learn from, and those to be judged on where there are. BadInput without two classes."""
    for name, least in (("folds", 2), ("seeds", 1)):
        if (value := getattr(settings, name)) is not None and value < least:
            raise BadInput(f"--{name} is {value}: give {least} or more")
    if settings.folds is not None and settings.test is not None:
        raise BadInput("--folds judges on --data itself: leave out --folds or --test")
    if settings.run is not None and settings.encoder is not None:
        raise BadInput(f"--encoder {settings.encoder} is for training from scratch: leave it out, or {settings.run}")
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    source = open_source(str(settings.data), **columns)
    if "label" not in source.table:
        raise BadInput(f"{source.name}: no labels to learn from; use a subfolder a class, or name a column by --label")
    require_classes(source)
    data = known(source, settings.separator, None)
    if settings.test is None:
        return data, None
    test = open_source(settings.test, **columns)
    if "label" not in test.table:
        raise BadInput(f"{test.name}: no labels to be judged by; name the column by --label")
    return data, known(test, settings.separator, data)


def known(source: Source, separator: str | None, train: Labelled | None) -> Labelled:
    """What the images of a source are, those without a label left out, classes numbered as in `train`. BadInput for others
    than it has."""
    source = labelled(source)
    if separator is None:
        classes = source.classes if train is None else train.classes
        strange = [name for name in source.classes if name not in classes]
        source = dataclasses.replace(source, classes=classes)
        targets = np.empty(0) if strange else source.targets()
    else:
        names = [[name.strip() for name in str(text).split(separator)] for text in source.table["label"]]
        there = sorted({name for some in names for name in some if name})
        classes = tuple(there) if train is None else train.classes
        strange = [name for name in there if name not in classes]
        number = {name: i for i, name in enumerate(classes)}
        targets = np.zeros((len(source), len(classes)), dtype=np.float32)
        for row, some in zip(targets, [] if strange else names, strict=bool(not strange)):
            row[[number[name] for name in some if name]] = 1
        if len(classes) < 2:
            raise BadInput(
                f'{source.name}: split at "{separator}" the labels name {len(classes)} class; two are needed'
            )
    if strange:
        raise BadInput(
            f"{source.name} has classes that are not learnt from: {', '.join(strange[:5])}; it can only name what it is shown"
        )
    return Labelled(source, targets, classes)


def divide(settings: Finetune, data: Labelled, test: Labelled | None) -> list[Part]:
    """The trainings that are asked for, a seed or a fold each. What is tested is the same for all seeds."""
    if test is not None:
        pairs = [("", data, test)]
    else:
        if settings.folds is None:
            cuts = [splits.held_out(data.targets, data.groups, seed=settings.seed)]
        else:
            cuts = splits.folds(data.targets, data.groups, k=settings.folds, seed=settings.seed)
        names = [f"fold-{i + 1}" if len(cuts) > 1 else "" for i in range(len(cuts))]
        pairs = [(name, data.subset(a), data.subset(b)) for name, (a, b) in zip(names, cuts, strict=True)]
    parts = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for name, learnt, held in pairs:
            if settings.labels is not None:
                strata = splits.strata(learnt.targets.astype(bool), None, 2) if learnt.several else learnt.targets
                learnt = learnt.subset(splits.label_some(strata, settings.labels, seed=seed))
            where = "-".join(filter(None, [f"seed-{seed}" if settings.seeds > 1 else "", name]))
            parts.append(Part(where, seed, learnt, held))
    return parts


def protocol_of(settings: Finetune, data: Labelled, test: Labelled | None) -> tuple[str, str | None]:
    """How is judged, in words, and what is to be feared of it."""
    by = "by image" if data.groups is None else "by group"
    if test is not None:
        shared = set(data.groups) & set(test.groups) if data.groups is not None and test.groups is not None else set()
        if shared:
            return "test set", (
                f"{len(shared)} groups, such as {min(shared)}, are in {data.source.name} and in {test.source.name}: whoever "
                "recognises the group is right there; leave them out on one side"
            )
        return "test set", None
    confounded = None
    if data.groups is not None and not data.several:
        confounded = splits.confounded(data.targets, data.groups, data.classes)
    return (f"{settings.folds} folds {by}" if settings.folds else f"held-out fifth {by}"), confounded


# One training


def learn_part(
    settings: Finetune,
    own: Settings,
    began: tuple[Encoder, Preprocess] | None,
    data: Labelled,
    part: Part,
    facts: dict[str, Any],
    stored: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train one part into settings.out, judge it, and return what its result.json says. One that has a result is left as it
    is."""
    assert settings.out is not None
    if part.name and (settings.out / "result.json").is_file():
        return Run(settings.out).read("result.json")
    device = distributed.start(engine.choose_device(settings.device))
    if distributed.rank() > 0:
        mute()
    precision, why_precision = engine.choose_precision(settings.precision, device)
    choices, own, recipe = chosen(settings, own, began, data, len(part.train.source), device)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    size = parse_size(value["image_size"])
    divided(value["batch_size"], settings.accumulate)
    if began is not None:
        preprocess = began[1]
    elif stored and "preprocess" in stored:
        preprocess = Preprocess.from_dict(stored["preprocess"])
    else:
        preprocess = measured(part.train.source, settings, value, size, None)

    torch.manual_seed(settings.seed)
    if began is None:
        encoder = models.build(
            value["encoder"], image_size=size, channels=value["channels"], drop_path=value["drop_path"], **pooled(own)
        )
    else:
        encoder = models.adapted(began[0], size, value["drop_path"], own.pool)
    head = Classifier(
        encoder,
        part.train.classes,
        length_of(encoder),
        several=part.train.several,
        batch_norm=own.blocks == 0,
        std=0.01 if own.blocks == 0 else 0.02 if began is None else 2e-5,
    )
    trained = Supervised(head, own, part.train.frequencies())
    reading = {"device": device, "precision": precision, "workers": value["workers"]}
    outcome = train(
        "finetune",
        trained,
        part.train.source,
        settings,
        own,
        choices,
        recipe.paper,
        preprocess,
        unreadable=[],
        device=device,
        targets=torch.from_numpy(part.train.targets),
        probe=watch(trained, part.test, preprocess, size, **reading),
        facts={"recipe": recipe.source, "classes": list(part.train.classes), "data": of(data), **facts},
        said=tested_on(part, facts),
    )
    if distributed.rank() > 0:
        return {"verdict": "diverged" if outcome.failure else "left to rank 0"}
    return finish(outcome, "finetune", trained, value, part, preprocess, facts, reading)


def of(data: Labelled) -> dict[str, Any]:
    """What settings.yaml says of all the images there are, to be learnt from or held out."""
    return {"name": data.source.name, "images": len(data.source), "fingerprint": data.source.fingerprint()}


def tested_on(part: Part, facts: dict[str, Any]) -> str:
    return "" if part.test is None else f"; judged on {len(part.test.source):,} images ({facts['protocol']})"


def named(encoder: Encoder) -> str:
    return str(encoder.config.get("backbone") or type(encoder).__name__)


def pooled(own: Settings) -> dict[str, Any]:
    return {} if own.pool is None else {"pool": own.pool}


def chosen(
    settings: Finetune,
    own: Settings,
    began: tuple[Encoder, Preprocess] | None,
    data: Labelled,
    images: int,
    device: torch.device,
) -> tuple[dict[str, Choice], Settings, Recipe]:
    """Every setting with its reason, for so many images to learn from, and the recipe behind them."""
    choices, seen = Choices(dataclasses.asdict(settings)), dataclasses.replace(data.survey, count=images)
    if began is None:
        size = choose_pixels(choices, seen, "compact")
        patch = choose_encoder(choices, seen, size, "compact", RECIPES["compact"].paper.encoder)
        recipe = recipe_for(str(choices["encoder"].value), own.blocks)
        if own.blocks is not None:
            raise BadInput(
                f"--blocks {own.blocks:g}: what was never trained must learn whole; name a run, or leave it out"
            )
        pool = own.pool
    else:
        encoder, preprocess = began
        recipe, reason = recipe_for(encoder, own.blocks), "as the encoder was trained"
        choices["run"] = Choice(settings.run, f"to go on from: {named(encoder)}")
        for key, kept in (("channels", encoder.channels), ("trim", preprocess.trim), ("pad", preprocess.pad)):
            if settings.__dict__[key] not in (None, kept):
                raise BadInput(f"--{key}: {settings.run} was trained with {kept}, leave it out")
            choices[key] = Choice(kept, reason)
        choices.settle("image_size", "x".join(map(str, encoder.image_size)), reason)
        size, patch = parse_size(choices["image_size"].value), getattr(encoder, "patch_size", 4)
        pool = own.pool or pool_for(encoder.config, own.blocks)
    choose_schedule(choices, recipe.paper, images, size[0] * size[1] // patch**2, device.type)
    choose_optimiser(choices, recipe.paper)
    choose_reading(choices, seen, device.type)
    filled = {
        field.name: getattr(recipe.settings, field.name)
        for field in dataclasses.fields(own)
        if getattr(own, field.name) is None and getattr(recipe.settings, field.name) is not None
    }
    passes = choices["steps"].value * choices["batch_size"].value / images
    for key, none in (("augment", "none"), ("mixup", 0.0), ("cutmix", 0.0), ("erasing", 0.0)):
        theirs = getattr(recipe.settings, key)
        if passes < FEW_PASSES and theirs != none and getattr(own, key) is None:
            filled[key] = none
            choices[key] = Choice(
                none, f"each image is seen {passes:.1f} times: too few to tire of (the paper: {theirs})"
            )
    for key in ("augment", "smoothing", "erasing", "layer_decay"):
        if key in filled and key not in choices:
            choices[key] = Choice(filled[key], recipe.source)
    if not data.several and (most := float(data.frequencies().max() / data.frequencies().clamp(min=1).min())) >= UNEVEN:
        why = f"the commonest class has {most:.0f} times the images of the rarest; --class-weights counts them alike"
        choices["class_weights"] = Choice(own.class_weights, why)
    choices.setdefault("layer_decay", Choice(own.layer_decay, "as asked"))
    return dict(choices), dataclasses.replace(own, **filled, **({} if pool is None else {"pool": pool})), recipe


UNEVEN = 3
"""How many times as common as the rarest class the commonest must be for a word on class weights."""
FEW_PASSES = 20
"""Passes over the images below which nothing but crops and flips is done to them. Set by hand: CCT-2/3x2 on CIFAR-10 for 4
passes was right for 69.7 percent so, and for 63.2 with RandAugment."""


def watch(
    trained: Supervised | Distilled,
    test: Labelled | None,
    preprocess: Preprocess,
    size: tuple[int, int],
    **reading: Any,
) -> Callable[..., dict[str, float]] | None:
    """For the log: accuracy on 1,000 images that are not learnt from. Nothing is chosen by it."""
    if test is None or test.several:
        return None
    some = test.subset(np.random.default_rng(0).permutation(len(test.source))[:1000])

    def accuracy(encoder: Any) -> dict[str, float]:
        logits, index = extract(trained.best, some.source, preprocess, size, **reading)
        return {"test_accuracy": float((logits.argmax(dim=1).numpy() == some.targets[index.numpy()]).mean())}

    return accuracy


def answers(
    model: Classifier, source: Source, preprocess: Preprocess, title: str | None, **reading: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities (N', K) float32 of the images that can be read, and which those are, (N',)."""
    logits, index = extract(model, source, preprocess, model.encoder.image_size, title=title, **reading)
    return model.probabilities(logits).numpy(), index.numpy()


def judged(probabilities: np.ndarray, test: Labelled, train: Labelled, facts: dict[str, Any]) -> dict[str, Any]:
    """What test.json says."""
    if test.several:
        found = metrics.report_multilabel(probabilities, test.targets, test.classes, groups=test.groups)
    else:
        theirs = train.targets[train.targets >= 0]
        found = metrics.report(
            probabilities,
            test.targets,
            test.classes,
            groups=test.groups,
            train_targets=theirs if len(theirs) else None,
        )
    return {"data": test.source.name, "train": len(train.source), **found, **facts}


def finish(
    outcome: Outcome,
    method: str,
    trained: Supervised | Distilled,
    value: dict[str, Any],
    part: Part,
    preprocess: Preprocess,
    facts: dict[str, Any],
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Save, judge and draw what was trained, say so, and return what result.json says."""
    run, tested = outcome.run, None
    if outcome.failure is None:
        name = value.get("encoder") or named(trained.encoder)
        told = {"name": name, "method": method, "preprocess": preprocess.to_dict(), "unmask": version("unmask")}
        classifier.save(trained.best, run.folder, told)
        if part.test is not None:
            tested = examine(run, trained.best, part, part.test, preprocess, facts, reading)
    verdict = judge(health.judge(outcome.history, value["lr"], value["usual_lr"], outcome.failure), outcome, tested)
    result = outcome.result(verdict, trained, len(part.train.source), value["precision"], reading["device"])
    result["test"] = None if tested is None else brief(tested)
    conclude(run, result)
    return result


def examine(
    run: Run,
    model: Classifier,
    part: Part,
    test: Labelled,
    preprocess: Preprocess,
    facts: dict[str, Any],
    reading: dict[str, Any],
) -> dict[str, Any]:
    """Judge a model on test images: test.json, predictions.csv and the figures of a run."""
    probabilities, index = answers(model, test.source, preprocess, "judging", **reading)
    return put(run, probabilities, test.subset(index), part.train, facts)


def put(run: Run, probabilities: np.ndarray, test: Labelled, train: Labelled, facts: dict[str, Any]) -> dict[str, Any]:
    """Write test.json, predictions.csv and the figures."""
    found = judged(probabilities, test, train, {}) | facts
    run.write("test.json", found)
    table = predictions.table(test.source.table, probabilities, test.classes, test.targets)
    predictions.write(run.folder / "predictions.csv", table)
    (run.folder / "figures").mkdir(exist_ok=True)
    pictures = {"recalls": figures.recalls(found["classes"])}
    if not test.several:
        pictures["confusion"] = figures.confusion(found["confusion"], test.classes)
        pictures["reliability"] = figures.reliability(found["calibration"])
    for name, png in pictures.items():
        (run.folder / "figures" / f"{name}.png").write_bytes(png)
    return found


def brief(tested: dict[str, Any]) -> dict[str, Any]:
    """What result.json says of test.json."""
    names = ("accuracy", "low", "high", "balanced", "balanced_low", "balanced_high", "map", "map_low", "map_high", "n")
    return {name: tested[name] for name in ("protocol", "sentence", *names) if name in tested}


def judge(verdict: health.Verdict, outcome: Outcome, tested: dict[str, Any] | None) -> health.Verdict:
    """The verdict of the log, with what the test adds: whether what was learnt carries over to images never seen."""
    if tested is None or "majority" not in tested or verdict.word not in ("learning", "starved by the loader"):
        return verdict
    advice = list(verdict.advice)
    seen = [line["accuracy"] for line in outcome.history if "accuracy" in line]
    if tested["low"] <= tested["majority"]["accuracy"]:
        sentence = (
            f"{verdict.sentence}, but on images it never saw it is right for {tested['accuracy']:.0%}, where always naming "
            f"the commonest class would be for {tested['majority']['accuracy']:.0%}"
        )
        advice.insert(0, "label more images, or look whether the label can be seen in them at all")
        return health.Verdict("no better than uninformed", sentence, tuple(advice))
    if seen and (late := health.mean(seen[-max(1, len(seen) // 10) :])) - tested["high"] > 0.1:
        advice.insert(
            0,
            f"it is right for {late:.0%} of the images it learns from and for {tested['accuracy']:.0%} of new ones: more "
            "labelled images, an encoder pre-trained on unlabelled ones, or stronger --augment, --mixup and --cutmix",
        )
    return health.Verdict(verdict.word, verdict.sentence, tuple(advice))


# Several trainings


def together(
    settings: Finetune,
    own: Settings,
    data: Labelled,
    parts: list[Part],
    learn: Callable[[Part], dict[str, Any]],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Several trainings, each in a folder of its own, and what they say together: the folds of a seed as one test, the seeds
    by mean and deviation."""
    assert settings.out is not None
    stated = {
        "unmask": version("unmask"),
        "method": "finetune",
        "settings": plain(settings),
        "method_settings": plain(own),
        "data": of(data),
        "parts": [part.name for part in parts],
    }
    run = Run.create(settings.out, stated, resume=settings.resume)
    results = []
    for number, part in enumerate(parts, 1):
        console.print(f"\n[bold]{part.name}[/] ({number} of {len(parts)})")
        results.append(learn(part))
        if results[-1]["verdict"] == "diverged":
            raise BadInput(f"{part.name} of {settings.out} diverged: {results[-1]['sentence']}; see its report")
    if distributed.rank() > 0:
        return {"verdict": "left to rank 0"}

    reading = {"device": torch.device(results[0]["device"]), "precision": results[0]["precision"], "workers": 0}
    reports, pooled = [], []
    for seed in dict.fromkeys(part.seed for part in parts):
        found = [examined(settings.out / part.name, part, reading) for part in parts if part.seed == seed]
        pooled.append((np.concatenate([each for each, _ in found]), joined([test for _, test in found])))
        reports.append(judged(pooled[-1][0], pooled[-1][1], data, facts))
    best = reports[0]
    if len(reports) > 1:
        facts = {**facts, "seeds": metrics.seeds(reports)}
        what = "map" if "map" in best else "accuracy"
        over = facts["seeds"][what]
        best["sentence"] += f" Over {len(reports)} seeds {what} {over['mean']:.3f}, deviation {over['deviation']:.3f}."
    tested = put(run, pooled[0][0], pooled[0][1], data, {**facts, "sentence": best["sentence"]})
    worst = next((each for each in results if each["verdict"] != "learning"), results[0])
    kept = ("loss", "uninformed_loss", "images_per_second", "loader_wait")
    result = {
        **{name: worst[name] for name in ("verdict", "sentence", "advice")},
        **{name: health.mean([each[name] for each in results]) for name in kept},
        **{name: sum(each[name] for each in results) for name in ("steps", "seconds")},
        "images": len(data.source),
        "encoder_parameters": results[0]["encoder_parameters"],
        "parameters": results[0]["parameters"],
        "unreadable": sorted({tuple(line) for each in results for line in each["unreadable"]}),
        "parts": {part.name: each["test"] for part, each in zip(parts, results, strict=True)},
        "test": brief(tested),
    }
    conclude(run, result)
    return result


def examined(folder: Path, part: Part, reading: dict[str, Any]) -> tuple[np.ndarray, Labelled]:
    """What the model of a finished part says of its test images, and which those are."""
    assert part.test is not None
    model, preprocess = load_classifier(folder)
    probabilities, index = answers(model, part.test.source, preprocess, None, **reading)
    return probabilities, part.test.subset(index)


def joined(tests: list[Labelled]) -> Labelled:
    """The test images of several folds of one source, one after the other."""
    first = tests[0]
    table = pd.concat([test.source.table for test in tests], ignore_index=True)
    rows = np.concatenate([test.source.rows for test in tests])
    source = dataclasses.replace(first.source, table=table, rows=rows)
    return Labelled(source, np.concatenate([test.targets for test in tests]), first.classes)
