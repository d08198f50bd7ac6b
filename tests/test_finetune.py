"""Learning from labels: the task, the layers that learn, and the command."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.loss import SoftTargetCrossEntropy
from torch import nn

import unmask
from unmask import models
from unmask.cli import main
from unmask.data.decode import Preprocess
from unmask.data.loader import Batch, Loader
from unmask.data.mix import soft
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate.finetune import RECIPES, TUNED, Settings, Supervised, learning, pool_for, recipe_for
from unmask.models.classifier import Classifier
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe, optimisers_for, schedule

PLAIN = dataclasses.replace(RECIPES["linear"].settings, crop_scale=(1.0, 1.0), flip=0.0)
CLOCK = Clock(0, 10, 0.0)


def task(
    name: str = "vit-tiny/4", settings: Settings = PLAIN, frequencies=None, classes: int = 5, **options
) -> Supervised:
    torch.manual_seed(0)
    encoder = models.build(name, image_size=(16, 16), **options)
    several = bool(frequencies is not None and float(frequencies.max()) < 1)
    head = Classifier(encoder, tuple(map(str, range(classes))), encoder.width, several=several)
    return Supervised(head, settings, torch.ones(classes) if frequencies is None else frequencies)


def batch(classes: int = 5, size: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(1)
    images, index = torch.randn(size, 3, 16, 16, generator=draw), torch.arange(size)
    return Batch((images,), index, index, torch.randint(classes, (size,), generator=draw))


# The task


def test_the_loss_is_timms_of_soft_targets():
    supervised, b = task(settings=dataclasses.replace(PLAIN, smoothing=0.1)).eval(), batch()
    found = supervised(b, CLOCK)
    logits, targets = supervised.classifier(b.views[0]), soft(b.targets, 5, 0.1)
    torch.testing.assert_close(found["loss"], SoftTargetCrossEntropy()(logits, targets))
    assert found["accuracy"] == (logits.argmax(1) == b.targets).float().mean()


def test_uninformed_is_the_least_that_a_constant_can_have():
    frequencies = torch.tensor([50.0, 30.0, 10.0, 5.0, 5.0])
    drawn = torch.multinomial(frequencies, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    for own in (PLAIN, dataclasses.replace(PLAIN, smoothing=0.2), dataclasses.replace(PLAIN, class_weights=True)):
        supervised = task(settings=own, frequencies=frequencies)
        targets = soft(drawn, 5, own.smoothing or 0.0)
        guess = supervised.prior.clone().requires_grad_()
        loss = supervised.loss(guess.expand(len(targets), -1), targets)
        (gradient,) = torch.autograd.grad(loss, guess)
        assert gradient.abs().max() < 0.02  # of what was drawn, not of the frequencies themselves
        assert loss < supervised.loss(torch.zeros(len(targets), 5), targets) + 1e-6


def test_several_labels_an_image_are_yes_or_no_each():
    shares = torch.tensor([0.5, 0.2, 0.1, 0.7, 0.3])
    supervised, b = task(frequencies=shares).eval(), batch()
    b.targets = (torch.rand(6, 5, generator=torch.Generator().manual_seed(2)) < shares).float()
    found = supervised(b, CLOCK)
    logits = supervised.classifier(b.views[0])
    torch.testing.assert_close(found["loss"], nn.functional.binary_cross_entropy_with_logits(logits, b.targets))
    torch.testing.assert_close(supervised.prior.sigmoid(), shares)
    assert "accuracy" not in found


def test_a_weighted_image_counts_by_how_rare_its_class_is():
    supervised = task(
        settings=dataclasses.replace(PLAIN, class_weights=True), frequencies=torch.tensor([60.0, 20, 10, 5, 5])
    )
    weights = supervised.weights
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(3.0))
    torch.testing.assert_close((weights * torch.tensor([0.6, 0.2, 0.1, 0.05, 0.05])).sum(), torch.tensor(1.0))


def test_mixing_ends_where_it_should_and_erasing_stays():
    own = dataclasses.replace(TUNED, augment="none", mix_until=0.5, erasing=0.0, smoothing=0.0)
    supervised, seen = task(settings=own), []
    supervised.classifier.forward = lambda images: (seen.append(images.clone()), torch.zeros(len(images), 5))[1]
    for step in (0, 4, 5, 9):
        torch.manual_seed(3)
        supervised(batch(), Clock(step, 10, 0.0))
    assert not torch.equal(seen[0], batch().views[0]) and torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], batch().views[0]) and torch.equal(seen[3], batch().views[0])
    supervised.settings = dataclasses.replace(own, erasing=1.0)
    supervised(batch(), Clock(9, 10, 0.0))
    assert not torch.equal(seen[4], batch().views[0])


# What learns, and how fast


@pytest.mark.parametrize("name", ["vit-tiny/4", "cvt-2/4", "cct-2/3x1"])
@pytest.mark.parametrize("blocks, begin", [(0, 99), (0.5, -0.5), (1, -1), (2, -2), (None, -99)])
def test_the_last_blocks_learn_and_the_rest_stays(name, blocks, begin):
    own = dataclasses.replace(PLAIN, blocks=blocks, mixup=0.8, mix_until=1.0, flip=0.0)
    supervised = task(name, own, **({"pool": "mean"} if name.startswith("vit") else {}), drop_path=0.5)
    depth = len(supervised.encoder.blocks)
    before = {key: value.clone() for key, value in supervised.state_dict().items()}
    fit(supervised, lambda step: iter([batch()] * 3), Recipe(3, 1e-2))
    moved = {key for key, value in supervised.state_dict().items() if not torch.equal(value, before[key])}
    wanted = {"classifier.linear.weight", "classifier.linear.bias"}
    for key in before:
        part = key.removeprefix("classifier.encoder.")
        if part == key or key.endswith(("num_batches_tracked",)):
            continue
        block = int(part.split(".")[1]) - depth if part.startswith("blocks.") else None
        late = part.startswith(("norm.", "pool."))
        half = block == -1 and ("mlp" in part or "norm2" in part)
        is_buffer = key not in dict(supervised.named_parameters())
        inside = block is not None and block >= begin
        if not is_buffer and (blocks is None or (late and blocks) or inside or (blocks == 0.5 and half)):
            wanted.add(key)
    assert moved == wanted - ({"classifier.encoder.class_token"} if blocks is None and "cvt" in name else set())


def test_blocks_that_are_not_there_are_refused():
    encoder = models.build("vit-tiny/4", image_size=(16, 16))
    for blocks in (13, 1.5, -1):
        with pytest.raises(BadInput, match="a whole number up to 12"):
            learning(encoder, blocks)
    with pytest.raises(BadInput, match="no blocks"):
        learning(models.build("resnet18", image_size=(32, 32)), 1)


def test_what_stays_is_not_in_training():
    supervised = task("cct-2/3x1", dataclasses.replace(PLAIN, blocks=1), drop_path=0.5).train()
    first, last = supervised.encoder.blocks
    assert not first.training and not supervised.encoder.tokenizer.training and last.training
    assert supervised.classifier.linear.training


def test_rates_fall_from_layer_to_layer_as_in_maes_code():
    supervised = task("vit-tiny/4", pool="mean-then-norm")
    (adamw,) = optimisers_for(supervised, recipe := Recipe(10, 1.0, layer_decay=0.65))
    schedule([adamw], recipe, 5)
    rates = {id(p): group["lr"] for group in adamw.param_groups for p in group["params"]}
    full = recipe.lr * 0.5 * (1 + np.cos(np.pi * 0.5))
    for name, parameter in supervised.named_parameters():
        part = name.removeprefix("classifier.encoder.")
        if part.startswith("blocks."):
            layer = int(part.split(".")[1]) + 1
        else:  # lr_decay.py: get_layer_id_for_vit
            layer = 0 if part.startswith(("class_token", "positions", "class_position", "patch_embedding")) else 13
        assert rates[id(parameter)] == pytest.approx(full * 0.65 ** (13 - layer)), name
    with pytest.raises(BadInput, match="layer-decay"):
        task("resnet18", dataclasses.replace(PLAIN, layer_decay=0.65))


def test_an_average_of_the_weights_is_kept_and_judged():
    supervised = task(settings=dataclasses.replace(PLAIN, average=0.5))
    before = supervised.classifier.linear.weight.detach().clone()
    fit(supervised, lambda step: iter([batch()]), Recipe(1, 1e-2))
    after = supervised.classifier.linear.weight.detach()
    torch.testing.assert_close(supervised.best.linear.weight, (before + after) / 2)
    assert supervised.encoder is supervised.best.encoder and not torch.equal(before, after)


def test_every_weight_gets_a_gradient():
    for name, options in (
        ("vit-tiny/4", {"pool": "mean-then-norm"}),
        ("cvt-2/4", {}),
        ("cct-2/3x1", {}),
        ("resnet18", {}),
    ):
        supervised = task(name, **options)
        supervised(batch(), CLOCK)["loss"].backward()
        idle = [n for n, p in supervised.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        # a patch's mean does not see the class token's own place; a last block's keys shift all scores alike
        assert all("class" in n for n in idle) or name == "resnet18", (name, idle)


def test_recipes_by_what_is_trained():
    build = lambda name: models.build(name, image_size=(16, 16))  # noqa: E731
    assert recipe_for("cct-7/3x1") is RECIPES["compact"] and recipe_for("vit-small/4") is RECIPES["scratch"]
    assert recipe_for("resnet18") is RECIPES["resnet"] and recipe_for(build("vit-tiny/4")) is RECIPES["tuned base"]
    assert (
        recipe_for(build("vit-tiny/4"), 0) is RECIPES["linear"]
        and recipe_for(build("resnet18")) is RECIPES["tuned resnet"]
    )
    assert recipe_for(build("cvt-2/4"), trained=False) is RECIPES["compact"]
    mae = models.build("vit-tiny/4", image_size=(16, 16), pool="class+mean").config
    assert pool_for(mae, None) == "mean-then-norm" and pool_for(mae, 0) == "class+mean"
    assert pool_for(models.build("cvt-2/4", image_size=(16, 16), pool="mean").config, None) == "sequence"
    assert pool_for(build("vit-tiny/4").config, None) == "class" and pool_for(build("resnet18").config, None) is None


def test_it_learns_digits():
    source = open_source("digits")
    targets = torch.from_numpy(source.targets())
    torch.manual_seed(0)
    encoder = models.build("cct-2/3x1", image_size=(8, 8), channels=1)
    head = Classifier(encoder, source.classes, encoder.width)
    supervised = Supervised(head, dataclasses.replace(PLAIN, smoothing=0.1, crop_scale=(0.8, 1.0)), torch.ones(10))
    train = source.subset(np.arange(1200))
    loader = Loader(train, Preprocess(1, (0.3,), (0.37,)), supervised.views, 64, targets=targets[:1200])
    history = fit(supervised, loader, Recipe(120, 3e-3, 18, warmup=10))
    images = torch.stack([source.image(i) for i in range(1200, len(source))])
    with torch.no_grad():
        right = supervised.eval().best(Preprocess(1, (0.3,), (0.37,)).normalise(images)).argmax(1) == targets[1200:]
    assert right.float().mean() > 0.9  # 0.1 by chance
    assert history[-1]["loss"] < 0.6 * history[-1]["uninformed"]


# The command


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


QUICK = [
    "--encoder",
    "cct-2/3x1",
    "--augment",
    "none",
    "--flip",
    "0",
    "--steps",
    "40",
    "--batch-size",
    "32",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    assert run("finetune", "--data", "digits", "--out", out, *QUICK, "--base-lr", "0.02") == 0
    return out


def test_a_run_leaves_a_classifier_its_judgement_and_a_page(tuned, capsys):
    result, test = (json.loads((tuned / name).read_text()) for name in ("result.json", "test.json"))
    assert result["verdict"] == "learning" and result["test"]["protocol"] == "held-out fifth by image"
    assert test["low"] <= test["accuracy"] <= test["high"] and test["accuracy"] > 0.5 > test["majority"]["high"]
    assert np.sum(test["confusion"]) == test["n"] == 288 and 0 <= test["calibration"]["ece"] < 1
    table = pd.read_csv(tuned / "predictions.csv", dtype={"label": str, "prediction": str})
    assert list(table.columns[:4]) == ["path", "label", "prediction", "probability"] and len(table) == 288
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(test["accuracy"])
    assert all((tuned / "figures" / f"{name}.png").is_file() for name in ("confusion", "reliability", "recalls"))
    assert "images it never saw" in (tuned / "report.html").read_text()
    trained = load_file(tuned / "head" / "model.safetensors")
    assert trained["linear.weight"].shape == (10, 128)
    # what is held out is not learnt from
    held = set(table["path"])
    assert result["images"] == len(open_source("digits")) - len(held)
    assert run("finetune", "--data", "digits", "--out", tuned, *QUICK) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_predictions_of_new_images(tuned, tmp_path, capsys):
    assert run("predict", tuned, "--data", "digits:test", "--out", tmp_path / "table.parquet", "--device", "cpu") == 0
    said = capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert "360 images named" in said and "are right" in said and len(table) == 360
    np.testing.assert_allclose(table[[f"p_{i}" for i in range(10)]].sum(axis=1), 1, rtol=1e-4)
    encoder, preprocess = unmask.load(tuned)  # and the encoder is one as any other
    image = preprocess.normalise(open_source("digits:test").image(0)[None])
    assert encoder(image).shape == (1, 128)
    assert run("predict", tuned / "encoder", "--data", "digits:test") == 2
    assert "holds no classifier" in capsys.readouterr().err


def test_a_run_goes_on_as_if_nothing_had_happened(tuned, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(tuned, again)
    for path in [*sorted((again / "checkpoints").glob("*.pt"))[-1:], again / "result.json", again / "test.json"]:
        path.unlink()
    assert run("finetune", "--out", again, "--resume") == 0
    for name in ("encoder/model.safetensors", "head/model.safetensors", "metrics.jsonl", "test.json"):
        assert (again / name).read_bytes() == (tuned / name).read_bytes(), name


def test_on_from_a_run_whole_in_part_and_linear(tuned, tmp_path):
    quick = ["--data", "digits", "--test", "digits:test", "--device", "cpu", "--batch-size", "32", "--flip", "0"]
    before = load_file(tuned / "encoder" / "model.safetensors")
    for name, options, learnt in (
        ("linear", ["--blocks", "0", "--steps", "5"], set()),
        ("half", ["--blocks", "0.5", "--steps", "5"], {"blocks.1.mlp", "blocks.1.norm2", "norm", "pool"}),
        ("whole", ["--steps", "5", "--labels", "10%", "--image-size", "12"], None),
    ):
        assert run("finetune", tuned, "--out", tmp_path / name, *quick, *options) == 0
        after = load_file(tmp_path / name / "encoder" / "model.safetensors")
        moved = {
            key for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
        }
        assert learnt is None or all(any(key.startswith(part) for part in learnt) for key in moved), name
        assert bool(moved) == (learnt != set())
    (tmp_path / "half" / "result.json").unlink()
    assert run("finetune", "--out", tmp_path / "half", "--resume") == 0
    settings = unmask.training.run.Run(tmp_path / "linear").settings["settings"]
    assert settings["optimiser"] == "lars" and "norm.running_mean" in load_file(
        tmp_path / "linear" / "head" / "model.safetensors"
    )
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["images"] == 144 and json.loads((tmp_path / "whole" / "encoder" / "config.json").read_text())


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A hundred and twenty pictures of twelve sites, bright or dark, and of one label or several."""
    folder, draw = tmp_path_factory.mktemp("grouped"), np.random.default_rng(0)
    rows = []
    for i in range(120):
        bright, site = i % 2, f"site {i // 10}"
        image = draw.integers(0, 120, (12, 12, 3), dtype=np.uint8) + np.uint8(120 * bright)
        from PIL import Image

        Image.fromarray(image).save(folder / f"{i}.png")
        both = "bright|noisy" if bright else "noisy"
        rows.append((f"{i}.png", "bright" if bright else "dark", site, both, "west" if i < 60 else "east"))
    pd.DataFrame(rows, columns=["image", "label", "group", "both", "coast"]).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


FEW = [
    "--encoder",
    "cct-2/3x1",
    "--image-size",
    "8",
    "--augment",
    "none",
    "--steps",
    "12",
    "--device",
    "cpu",
    "--workers",
    "0",
]


def test_folds_and_seeds_are_judged_together_with_groups_apart(grouped, tmp_path):
    out = tmp_path / "folds"
    assert (
        run("finetune", "--data", grouped, "--out", out, "--folds", "2", "--seeds", "2", *FEW, "--base-lr", "0.02") == 0
    )
    test = json.loads((out / "test.json").read_text())
    assert test["protocol"] == "2 folds by group" and test["n"] == 120 and test["seeds"]["accuracy"]["n"] == 2
    parts = [out / f"seed-{seed}-fold-{fold}" for seed in (0, 1) for fold in (1, 2)]
    tables = [pd.read_csv(part / "predictions.csv") for part in parts]
    assert not set(tables[0]["group"]) & set(tables[1]["group"])
    assert set(tables[0]["path"]) == set(tables[2]["path"])  # the same folds for each seed
    assert not np.allclose(tables[0]["probability"], tables[2]["probability"])
    pooled = pd.read_csv(out / "predictions.csv")
    assert len(pooled) == 120 and test["accuracy"] == pytest.approx((pooled["label"] == pooled["prediction"]).mean())
    assert "deviation" in test["sentence"] and (out / "report.html").is_file()
    os.utime(parts[0] / "result.json", (0, 0))
    (out / "result.json").unlink()
    assert run("finetune", "--out", out, "--resume") == 0  # what is done is not done again
    assert (parts[0] / "result.json").stat().st_mtime == 0 and (out / "result.json").is_file()


def test_several_labels_an_image(grouped, tmp_path, capsys):
    out = tmp_path / "several"
    options = ["--label", "both", "--separator", "|", "--class-weights"]
    assert run("finetune", "--data", grouped, "--out", out, *options, *FEW) == 0
    test = json.loads((out / "test.json").read_text())
    assert [each["name"] for each in test["classes"]] == ["bright", "noisy"] and 0 <= test["map"] <= 1
    assert "predictions" in pd.read_csv(out / "predictions.csv")
    assert run("predict", out, "--data", grouped, "--out", tmp_path / "several.csv", "--device", "cpu") == 0


def test_labels_that_go_with_the_group_are_warned_of(grouped, tmp_path, capsys):
    options = ["--label", "coast", "--group", "coast2"]
    table = pd.read_csv(grouped)
    table["coast2"] = table["coast"] + (table.index % 2).astype(str)
    table["image"] = [str(grouped.parent / name) for name in table["image"]]
    table.to_csv(tmp_path / "table.csv", index=False)
    assert (
        run("finetune", "--data", tmp_path / "table.csv", "--out", tmp_path / "run", *options, *FEW, "--folds", "2")
        == 0
    )
    assert "told from groups" in capsys.readouterr().out
    assert "told from groups" in json.loads((tmp_path / "run" / "test.json").read_text())["warning"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data", "digits", "--folds", "1"], "--folds is 1"),
        (["--data", "digits", "--folds", "3", "--test", "digits:test"], "leave out --folds or --test"),
        (["--data", "digits", "--seeds", "0"], "--seeds is 0"),
        (["--data", "digits", "--labels", "3"], "ask for 10"),
        (["--data", "digits", "--labels", "many"], "as in 10%"),
        (["--data", "digits", "--encoder", "cct-9/3x1"], "cct-9"),
        (["--data", "digits", "--encoder", "cct-2/3x1", "--blocks", "1"], "--blocks 1"),
        (["--data", "digits", "--layer-decay", "0.5", "--encoder", "resnet18"], "--layer-decay"),
        (["nowhere", "--data", "digits"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, line, tmp_path, capsys):
    assert run("finetune", *arguments, "--out", tmp_path / "run", "--device", "cpu", "--steps", "2") == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
