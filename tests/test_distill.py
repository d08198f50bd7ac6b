"""Distillation: the equation, and a student that learns what its teacher knows."""

import json

import numpy as np
import pytest
import torch

from unmask import models
from unmask.cli import main
from unmask.data.decode import Preprocess
from unmask.data.loader import Batch, Loader
from unmask.data.sources import open_source
from unmask.evaluate.distill import Distilled, Settings, sureness
from unmask.evaluate.features import extract
from unmask.models import classifier
from unmask.models.classifier import Classifier
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe
from unmask.verbs.load import load_classifier

CLOCK, GREY = Clock(0, 10, 0.0), Preprocess(1, (0.3,), (0.37,))


def pair(several: bool = False, **settings) -> Distilled:
    torch.manual_seed(0)
    made = []
    for name, size in (("vit-tiny/4", (8, 8)), ("cct-2/3x1", (12, 12))):
        encoder = models.build(name, image_size=size, channels=1)
        made.append(Classifier(encoder, tuple("abc"), encoder.width, several=several, std=1.0))
    other = Preprocess(1, (0.5,), (0.2,))
    return Distilled(*made, Settings(**({"temperature": 2.0} | settings)), (GREY, other)).eval()


def batch(targets=None) -> Batch:
    index = torch.arange(5)
    return Batch((torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)),), index, index, targets)


def test_the_loss_is_equation_3():
    targets = torch.tensor([0, 2, -1, 1, -1])
    distilled, b = pair(alpha=0.7), batch(targets)
    found = distilled(b, CLOCK)
    pixels = b.views[0] * 0.37 + 0.3  # what both see
    seen = torch.nn.functional.interpolate((pixels - 0.5) / 0.2, (12, 12), mode="bicubic", antialias=True)
    theirs, ours = distilled.teacher(seen).double(), distilled.student(b.views[0]).double()
    p, q = (theirs / 2).exp(), (ours / 2).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    teacher = -(p * q.log()).sum(1).mean() + (p * p.log()).sum(1).mean()
    labels = -ours.log_softmax(1)[[0, 1, 3], [0, 2, 1]].mean()
    torch.testing.assert_close(found["loss"].double(), 0.7 * teacher + 0.3 * labels, rtol=1e-4, atol=1e-5)
    average = p.mean(0)
    nothing = -(average * average.log()).sum() + (p * p.log()).sum(1).mean()
    torch.testing.assert_close(pair()(b, CLOCK)["uninformed"].double(), nothing, rtol=1e-4, atol=1e-5)


def test_several_labels_are_distilled_one_by_one():
    distilled, b = pair(several=True), batch()
    p, logits = distilled.say(b.views[0]).double(), distilled.student(b.views[0]).double() / 2
    q = logits.sigmoid()
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(distilled(b, CLOCK)["loss"].double(), divergence, rtol=1e-3, atol=1e-4)


def test_a_student_that_says_what_its_teacher_says_has_no_loss_and_the_teacher_stays():
    distilled = pair()
    same = Distilled(distilled.teacher, distilled.teacher, Settings(temperature=1.0), (GREY, GREY)).eval()
    assert abs(float(same(Batch((torch.randn(3, 1, 12, 12),), *[torch.arange(3)] * 2), CLOCK)["loss"])) < 1e-5
    distilled = pair().train()
    before = {name: value.clone() for name, value in distilled.teacher.state_dict().items()}
    fit(distilled, lambda step: iter([batch()] * 3), Recipe(3, 1e-2))
    assert all(torch.equal(value, before[name]) for name, value in distilled.teacher.state_dict().items())
    assert not distilled.teacher.training and all(p.grad is None for p in distilled.teacher.parameters())


def teacher_of_digits() -> Classifier:
    """A linear layer on pixels, as a classifier, that is right for nine of ten digits: fitted in closed form."""
    source = open_source("digits")
    images = torch.stack([source.image(i) for i in range(1200)])
    x, y = GREY.normalise(images).flatten(1).double(), torch.from_numpy(source.targets()[:1200])
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    weights = torch.linalg.solve(ones.mT @ ones + 10 * torch.eye(65), ones.mT @ torch.nn.functional.one_hot(y).double())
    encoder = models.build("vit-tiny/8", image_size=(8, 8), channels=1)
    made = Classifier(encoder, source.classes, 64)
    made.encoder.forward = lambda images: images.flatten(1)  # type: ignore[method-assign]
    made.linear.weight.data, made.linear.bias.data = 8 * weights[:-1].mT.float(), 8 * weights[-1].float()
    return made


def test_a_student_learns_digits_from_a_teacher_without_labels():
    source, teacher = open_source("digits"), teacher_of_digits()
    torch.manual_seed(0)
    encoder = models.build("cct-2/3x1", image_size=(8, 8), channels=1)
    own = Settings(temperature=1.0, crop_scale=(0.8, 1.0), flip=0.0)
    distilled = Distilled(Classifier(encoder, source.classes, 128), teacher, own, (GREY, GREY))
    loader = Loader(source.subset(np.arange(1200)), GREY, distilled.views, 64)
    history = fit(distilled, loader, Recipe(120, 3e-3, 18, warmup=10))
    images = GREY.normalise(torch.stack([source.image(i) for i in range(1200, len(source))]))
    with torch.no_grad():
        right = distilled.eval().best(images).argmax(1) == torch.from_numpy(source.targets()[1200:])
    assert right.float().mean() > 0.8  # 0.1 by chance
    assert history[-1]["loss"] < 0.4 * history[-1]["uninformed"]


@pytest.mark.parametrize("several", [False, True])
def test_a_student_becomes_as_sure_as_its_teacher(several):
    """Not surer than what it names allows: one factor, found without labels, that changes no name."""
    teacher = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    assert sureness(0.04 * teacher, teacher, several) == pytest.approx(25, rel=1e-3)
    noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    assert sureness(teacher + 3 * noise, teacher, several) < 0.9  # it is wrong more often
    distilled, b = pair(several), batch()
    before = distilled.student(b.views[0])
    distilled.scale_by(7.0)
    torch.testing.assert_close(distilled.student(b.views[0]), 7 * before, rtol=1e-4, atol=1e-4)


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("teacher"), open_source("digits")
    encoder = models.build("cct-2/3x1", image_size=(8, 8), channels=1)
    made = Classifier(encoder, source.classes, 128, std=1.0)
    classifier.save(made, folder, {"preprocess": GREY.to_dict()})
    return folder


def test_the_command(teacher, tmp_path, capsys):
    quick = ["--data", "digits", "--steps", "6", "--batch-size", "32", "--device", "cpu"]
    assert run("distill", teacher, "--out", tmp_path / "own", *quick, "--test", "digits:test") == 0
    settings = (tmp_path / "own" / "settings.yaml").read_text()
    assert "temperature: 0.1" in settings  # of its own kind
    assert "crop_scale:\n  - 0.8\n  - 1.0" in settings
    test = json.loads((tmp_path / "own" / "test.json").read_text())
    assert test["n"] == 360 and (tmp_path / "own" / "head" / "config.json").is_file()
    source, models_of = open_source("digits"), (load_classifier(tmp_path / "own"), load_classifier(teacher))
    reading = {"device": torch.device("cpu"), "precision": "float32"}
    logits = [extract(model, source, its, (8, 8), **reading)[0] for model, its in models_of]
    assert sureness(*logits, several=False) == pytest.approx(1, rel=0.05)  # as sure as its teacher
    assert (
        run("distill", teacher, "--out", tmp_path / "other", *quick, "--encoder", "vit-lite-2/4", "--alpha", "0.5") == 0
    )
    assert "temperature: 1.0" in (tmp_path / "other" / "settings.yaml").read_text()
    for name in ("own", "other"):
        took = json.loads((tmp_path / name / "result.json").read_text())["seconds"]
        assert run("distill", "--out", tmp_path / name, "--resume") == 0
        assert json.loads((tmp_path / name / "result.json").read_text())["seconds"] == took > 0  # of all its training
    capsys.readouterr()
    for arguments, line in (
        ([], "name the run of a teacher"),
        ([teacher, "--data", "digits", "--channels", "3"], "trained with 1"),
        ([teacher, "--data", "digits", "--alpha", "0"], "--alpha is 0"),
        ([tmp_path, "--data", "digits"], "holds no classifier"),
        ([teacher, "--data", "digits", "--encoder", "cct-2/3x1", "--student", teacher], "give one of them"),
    ):
        assert run("distill", *arguments, "--out", tmp_path / "bad", "--steps", "2", "--device", "cpu") == 2
        said = capsys.readouterr().err.strip()
        assert line in said and "\n" not in said
        assert not (tmp_path / "bad").exists()
