"""unmask distill TEACHER: what a classifier knows, into another one, by way of images that need no labels."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.data.survey import survey
from unmask.errors import BadInput
from unmask.evaluate.distill import SMALL, Distilled, Settings, sureness, usual_crop
from unmask.evaluate.features import extract
from unmask.evaluate.finetune import recipe_for
from unmask.methods.method import length_of
from unmask.models.classifier import Classifier
from unmask.screen import mute
from unmask.training import distributed, engine
from unmask.training.run import Run
from unmask.verbs.choices import Choice, Choices, choose_optimiser, choose_reading, choose_schedule, parse_size
from unmask.verbs.finetune import Labelled, Part, finish, known, named, tested_on, watch
from unmask.verbs.load import load, load_classifier
from unmask.verbs.probe import few
from unmask.verbs.train import Training, check, divided, resumed, same_data, train

Own = Settings
NAMELESS = "name the run of a teacher first, as in unmask distill runs/teacher --data images/ --out runs/student"


@dataclass(frozen=True)
class Distill(Training):
    """Train a student to say of images what a teacher says, labels or none."""

    teacher: Annotated[Positional[str | None], tyro.conf.arg(metavar="TEACHER")] = None
    """A run of `unmask finetune`, or of `unmask distill`."""
    encoder: str | None = None
    """The student, from scratch: cct-2/3x2, vit-tiny/4, resnet18. Default: the teacher's own architecture."""
    student: str | None = None
    """The student, trained before: a run, or any encoder that `unmask.load` reads, instead of --encoder."""
    test: str | None = None
    """Labelled images to judge the student on."""


def distill(settings: Distill, own: Settings) -> dict[str, Any]:
    """Train as told and return what result.json says. BadInput for what cannot be used."""
    if settings.teacher is None and not settings.resume:
        raise BadInput(NAMELESS)
    check(settings)
    assert settings.out is not None
    stored = None
    if settings.resume and ((settings.out / "settings.yaml").is_file() or settings.data is None):
        stored = Run(settings.out).settings
        settings, own = resumed(stored, "distill", settings, own)
    if settings.teacher is None:
        raise BadInput(NAMELESS)
    if settings.encoder is not None and settings.student is not None:
        raise BadInput("--encoder is a student from scratch, --student one that was trained before: give one of them")
    teacher, theirs = load_classifier(settings.teacher)
    columns = {"image": settings.image, "label": settings.label, "group": settings.group}
    source = open_source(str(settings.data), **columns)
    same_data(stored, source, settings.out)
    whole = Labelled(source, targets_of(source, teacher, own), teacher.classes)
    test = None
    if settings.test is not None:
        if teacher.several:
            raise BadInput("--test: a teacher of several labels an image judges by `unmask predict`; leave it out")
        test = known(open_source(settings.test, **columns), None, whole)
    part, facts = Part("", settings.seed, whole, test), {"protocol": "test set", "warning": None}

    device = distributed.start(engine.choose_device(settings.device))
    if distributed.rank() > 0:
        mute()
    precision, why_precision = engine.choose_precision(settings.precision, device)
    before = load(settings.student) if settings.student is not None else None
    choices, paper = chosen(settings, teacher, theirs, before, source, device)
    choices["precision"] = Choice(precision, why_precision)
    value = {name: choice.value for name, choice in choices.items()}
    size = parse_size(value["image_size"])
    divided(value["batch_size"], settings.accumulate)
    if own.temperature is None:
        alike = settings.encoder is None and settings.student is None
        own = dataclasses.replace(own, temperature=0.1 if alike else 1.0)
        why = "teacher and student are of one architecture" if alike else "the student is of another architecture"
        choices["temperature"] = Choice(own.temperature, f"the paper's where {why}")
    if own.crop_scale is None:
        own = dataclasses.replace(own, crop_scale=(crop := usual_crop(size)))
        small = f"images of up to {SMALL} pixels have little to spare"
        choices["crop_scale"] = Choice("{:g} {:g}".format(*crop), small if max(size) <= SMALL else "the paper's")

    torch.manual_seed(settings.seed)
    preprocess, drop_path = theirs, value["drop_path"]
    if before is not None:
        preprocess, encoder = before[1], models.adapted(before[0], size, drop_path)
        if (preprocess.trim, preprocess.pad) != (theirs.trim, theirs.pad):
            raise BadInput(
                f"{settings.student} trims or pads images otherwise than {settings.teacher}: they would not see the same"
            )
    elif settings.encoder is not None:
        encoder = models.build(settings.encoder, image_size=size, channels=value["channels"], drop_path=drop_path)
    else:
        encoder = models.rebuild(teacher.encoder.config | {"image_size": list(size), "drop_path": drop_path})
    student = Classifier(encoder, teacher.classes, length_of(encoder), several=teacher.several)
    trained = Distilled(student, teacher, own, (preprocess, theirs))
    reading = {"device": device, "precision": precision, "workers": value["workers"]}
    outcome = train(
        "distill",
        trained,
        source,
        settings,
        own,
        choices,
        paper,
        preprocess,
        unreadable=[],
        device=device,
        targets=torch.from_numpy(whole.targets) if own.alpha < 1 else None,
        probe=watch(trained, test, preprocess, size, **reading),
        facts={"classes": list(teacher.classes)},
        said=tested_on(part, facts),
    )
    if distributed.rank() > 0:
        return {"verdict": "diverged" if outcome.failure else "left to rank 0"}
    if outcome.failure is None:
        some = few(source, 2000, seed=0)
        seen = (trained.student, preprocess), (teacher, theirs)
        ours, said = (extract(model, some, its, model.encoder.image_size, **reading)[0] for model, its in seen)
        trained.scale_by(sureness(ours, said, teacher.several))
    return finish(outcome, "distill", trained, value, part, preprocess, facts, reading)


def targets_of(source: Source, teacher: Classifier, own: Settings) -> np.ndarray:
    """Classes (N,) int64 of the images as the teacher numbers them, -1 for those without a label or of a class that it does
    not know. BadInput where labels are asked for and cannot be had."""
    if own.alpha == 1:
        return np.full(len(source), -1)
    if "label" not in source.table or teacher.several:
        raise BadInput(
            f"--alpha {own.alpha}: {source.name} has no labels of one class an image to weigh in; leave it out"
        )
    return dataclasses.replace(source, classes=teacher.classes).targets()


def chosen(
    settings: Distill,
    teacher: Classifier,
    theirs: Preprocess,
    before: tuple[models.Encoder, Preprocess] | None,
    source: Source,
    device: torch.device,
) -> tuple[dict[str, Choice], Any]:
    """Every setting with its reason, and the recipe's paper."""
    choices, reason = Choices(dataclasses.asdict(settings)), "as the teacher sees them"
    for key, kept in (("channels", teacher.encoder.channels), ("trim", theirs.trim), ("pad", theirs.pad)):
        if getattr(settings, key) not in (None, kept):
            raise BadInput(f"--{key}: {settings.teacher} was trained with {kept}, leave it out")
        choices[key] = Choice(kept, reason)
    size = before[0].image_size if before is not None else teacher.encoder.image_size
    choices.settle("image_size", "x".join(map(str, size)), reason if before is None else "as the student was trained")
    if before is None and settings.encoder is not None:
        choices["encoder"], recipe = Choice(settings.encoder, "as asked"), recipe_for(settings.encoder)
    elif before is None:
        choices["architecture"] = Choice(named(teacher.encoder), "the teacher's own")
        recipe = recipe_for(teacher.encoder, trained=False)
    else:
        choices["student"], recipe = Choice(settings.student, f"as asked: {named(before[0])}"), recipe_for(before[0])
    height, width = parse_size(choices["image_size"].value)
    patch = getattr(teacher.encoder, "patch_size", 4)
    choose_schedule(choices, recipe.paper, len(source), height * width // patch**2, device.type)
    choose_optimiser(choices, recipe.paper)
    choose_reading(choices, survey(source, sample=2000), device.type)
    return dict(choices), recipe.paper
