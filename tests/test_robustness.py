"""Corruptions, attacks, and what they leave of a classifier's accuracy."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage import color, data
from torch import nn

import unmask
from unmask import figures
from unmask.cli import main
from unmask.data.augment import sample_seeds
from unmask.data.decode import Preprocess
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.evaluate import corruptions
from unmask.evaluate.corruptions import CORRUPTIONS, KINDS, SEVERITIES, corrupt
from unmask.evaluate.robustness import attack, fgsm, pgd, robustness, summary
from unmask.models import classifier as classifiers
from unmask.models.classifier import Classifier
from unmask.models.vit import ViT

DIGITS = Preprocess(1, (0.3,), (0.37,))
CPU = {"device": torch.device("cpu"), "precision": "float32"}


def difference(image, name, severity, index=0):
    """Mean squared, in levels."""
    return np.square(corrupt(image, name, severity, seed=0, index=index).astype(float) - image).mean()


# Corruptions


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.sampled_from(SEVERITIES), st.integers(0, 2**31))
def test_any_image_keeps_its_shape_and_comes_again(name, H, W, C, severity, seed):
    image = np.random.default_rng(seed).integers(0, 256, (H, W, C), dtype=np.uint8)
    before = image.copy()
    made = corrupt(image, name, severity, seed=seed, index=3)
    assert made.shape == image.shape and made.dtype == np.uint8 and np.array_equal(image, before)
    assert np.array_equal(made, corrupt(image, name, severity, seed=seed, index=3))


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "motion_blur", "snow", "fog", "elastic_transform"])
def test_other_images_and_seeds_are_drawn_otherwise(name):
    image = data.astronaut()[:64, 150:214]
    first, *others = (corrupt(image, name, 3, seed=seed, index=index) for seed, index in ((0, 0), (0, 1), (1, 0)))
    assert all((first != other).mean() > 0.1 for other in others)


@pytest.mark.parametrize("side", [224, 32])
def test_noise_is_as_strong_as_its_parameter_says(side):
    sigmas = (0.08, 0.12, 0.18) if side == 224 else (0.04, 0.06, 0.08, 0.09, 0.10)
    photons = (60, 25, 12) if side == 224 else (500, 250, 100, 75, 50)
    shares = (0.03, 0.06, 0.09, 0.17, 0.27) if side == 224 else (0.01, 0.02, 0.03, 0.05, 0.07)
    grey = np.full((side, side, 16 if side == 224 else 256), 102, dtype=np.uint8)  # 0.4

    def made(name, severity):
        return corrupt(grey, name, severity, seed=0, index=0) / 255

    for severity, sigma in enumerate(sigmas, 1):
        assert made("gaussian_noise", severity).std() == pytest.approx(sigma, rel=0.03)
    for severity, count in enumerate(photons, 1):
        found = made("shot_noise", severity)
        assert found.mean() == pytest.approx(0.4, rel=0.02) and found.var() == pytest.approx(0.4 / count, rel=0.05)
    for severity, share in enumerate(shares, 1):
        found = made("impulse_noise", severity)
        assert (found == 0).mean() == pytest.approx(share / 2, rel=0.1) == (found == 1).mean()


def test_blurs_spread_light_and_keep_its_sum():
    for radius, sigma in ((3, 0.1), (10, 0.5), (0.3, 0.4), (1.5, 0.1)):
        kernel = corruptions.disk(radius, sigma)
        assert kernel.sum() == pytest.approx(1, abs=1e-5) and np.allclose(kernel, kernel[::-1, ::-1])
    assert (corruptions.disk(4, 0.1) > 0.01).sum() == 49  # whole pixels within four of the middle
    point = np.zeros((101, 101, 1), dtype=np.float32)
    point[50, 50] = 1
    for degrees in (-135, -45, 0, 30):
        spread = corruptions.smear(point, 15, 8.0, degrees)
        assert spread.sum() == pytest.approx(1, abs=1e-5)
        y, x = np.array(ndimage.center_of_mass(spread[..., 0])) - 50
        assert np.degrees(np.arctan2(-y, -x)) == pytest.approx(degrees, abs=3)  # it comes from along the line
    flat = np.full((40, 50, 3), 77, dtype=np.uint8)
    for name in KINDS["blur"]:
        assert (corrupt(flat, name, 5, seed=0, index=0) == 77).all(), name


def test_glass_takes_neighbours_one_after_the_other():
    rng, H, W, reach = np.random.default_rng(1), 13, 17, 3
    inner = (H - 2 * reach, W - 2 * reach)
    down, right = np.random.default_rng(1).integers(-reach, reach, size=(2, *inner))
    pixels = np.arange(H * W).reshape(H, W)
    for y in range(H - reach, reach, -1):
        for x in range(W - reach, reach, -1):
            at = y - reach - 1, x - reach - 1
            pixels[y, x] = pixels[y + down[at], x + right[at]]
    assert np.array_equal(corruptions.taken_from((H, W), reach, rng), pixels)


@pytest.mark.parametrize(("H", "W", "zoom"), [(224, 224, 1.11), (224, 224, 4.5), (32, 32, 1.75), (31, 40, 1.2)])
def test_zoom_is_that_of_scipy(H, W, zoom):
    x = np.random.default_rng(0).random((H, W, 2), dtype=np.float32)
    h, w = -int(-H // zoom), -int(-W // zoom)
    top, left = (H - h) // 2, (W - w) // 2
    theirs = ndimage.zoom(x[top : top + h, left : left + w], (zoom, zoom, 1), order=1)
    top, left = (theirs.shape[0] - H) // 2, (theirs.shape[1] - W) // 2
    assert np.abs(corruptions.zoomed(x, zoom) - theirs[top : top + H, left : left + W]).max() < 1e-4


def test_brightness_is_that_of_hsv():
    image = data.astronaut()[::8, ::8]
    theirs = color.rgb2hsv(image)
    theirs[..., 2] = (theirs[..., 2] + 0.15).clip(0, 1)
    ours = corrupt(image, "brightness", 3, seed=0, index=0)
    assert np.abs(ours - 255 * color.hsv2rgb(theirs)).max() <= 0.51
    black = np.zeros((8, 8, 1), dtype=np.uint8)
    assert (corrupt(black, "brightness", 3, seed=0, index=0) == round(0.15 * 255)).all()


def test_elastic_pulls_smoothly_and_stretches_from_the_middle(monkeypatch):
    noise = np.random.default_rng(0).random((20, 30))
    theirs = ndimage.gaussian_filter(noise, 4.0, mode="reflect", truncate=3)
    assert np.allclose(corruptions.smoothed(noise, 4.0), theirs)
    ramp = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[:, None], 25, axis=1)[..., None]

    class Still:
        def uniform(self, low, high, size):
            return np.zeros(size)

    for severity in SEVERITIES:  # without luck nothing moves
        assert np.array_equal(corruptions.elastic_transform(ramp, severity, Still()), ramp)


def test_fog_has_no_pattern_of_its_own():
    heights = np.stack([corruptions.plasma(64, 2.0, np.random.default_rng(i)) for i in range(60)])
    assert heights.min() == 0 and heights.max() == 1
    middle = heights.mean(axis=0)
    assert abs(middle[:32].mean() - middle[32:].mean()) < 0.1
    steps = np.abs(np.diff(heights, axis=1)).mean()
    assert steps < 0.1 < heights.std()  # swaths, not grains


def monotone(images, name):
    found = [np.mean([difference(image, name, s, i) for i, image in enumerate(images)]) for s in SEVERITIES]
    return found[0] > 0 and (np.diff(found) > 0).all()


# The paper's own tables do not rise by this measure: glass that blurs more shuffles less, an elastic transform turns from a
# stretch of the whole into a pull on pixels, and a longer reach of the same Gaussian is hardly longer. Fog rises on average only.
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"glass_blur", "fog", "elastic_transform"}))
def test_each_severity_is_worse_on_photographs(name):
    source = open_source("photos")
    photos = [source.image(i).permute(1, 2, 0).numpy() for i in range(0, len(source), 83)]
    assert name == "motion_blur" or monotone(photos, name)
    assert monotone([data.chelsea()[:224:2, 100:324:2]] * 4, name)


@pytest.mark.parametrize("name", ["glass_blur", "fog", "elastic_transform", "motion_blur"])
def test_these_change_photographs_too(name):
    photo = data.astronaut()[:200:4, 150:350:4]
    assert all(difference(photo, name, severity) > 50 for severity in SEVERITIES)


def test_what_there_is_not_is_refused():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(BadInput, match="no corruption is called 'frost'"):
        corrupt(image, "frost", 1, seed=0, index=0)
    with pytest.raises(BadInput, match="severity 6"):
        corrupt(image, "fog", 6, seed=0, index=0)
    assert [name for names in KINDS.values() for name in names] == list(CORRUPTIONS)


# Attacks

COLOUR = Preprocess(3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), (0.0, 0.1, 0.0), (1.0, 0.9, 0.8))


def linear(channels=3, classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, classes)).requires_grad_(True)


def test_attacks_on_a_linear_model_are_its_closed_form():
    model, epsilon = linear(), 3 / 255
    images = COLOUR.normalise(torch.rand(8, 3, 4, 4) * 0.5 + 0.2)  # far from black and white
    targets = torch.arange(8) % 2
    # of two classes the loss grows with (w_other - w_target) x, so each value goes by epsilon along its sign
    weight = model[1].weight.detach()
    slope = (weight[1 - targets] - weight[targets]).view(8, 3, 4, 4)
    reach = epsilon * torch.tensor([1.0, 0.8, 0.8]) / torch.tensor([0.2, 0.3, 0.25])
    expected = images + reach[:, None, None] * slope.sign()
    assert torch.allclose(fgsm(model, images, targets, epsilon, COLOUR), expected, atol=1e-6)
    assert torch.allclose(pgd(model, images, targets, epsilon, COLOUR, seeds=torch.arange(8)), expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_few_steps_of_pgd_go_as_far_as_they_go():
    model = linear()
    images = COLOUR.normalise(torch.full((1, 3, 4, 4), 0.4))
    start, once = (
        pgd(model, images, torch.zeros(1).long(), 0.1, COLOUR, seeds=torch.ones(1).long(), step=0.01, steps=steps)
        for steps in (0, 1)
    )
    away = ((once - start) * torch.tensor([0.2, 0.3, 0.25])[:, None, None]).abs() / torch.tensor([1, 0.8, 0.8])[
        :, None, None
    ]
    inside = (start - images).abs() < 0.08 / 0.3
    assert inside.any() and torch.allclose(away[inside], torch.tensor(0.01), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 0.3), st.integers(0, 1000), st.booleans())
def test_attacks_stay_within_epsilon_and_between_black_and_white(epsilon, seed, beyond):
    torch.manual_seed(seed)
    pixels = torch.rand(3, 3, 4, 4) * (2 if beyond else 0.8)
    if not beyond:
        pixels = pixels.clamp(0.1, 0.8)
    images, targets = COLOUR.normalise(pixels), torch.tensor([0, 1, 0])
    low, high = (torch.tensor(values)[:, None, None] for values in (COLOUR.low, COLOUR.high))
    mean, std = (torch.tensor(values)[:, None, None] for values in (COLOUR.mean, COLOUR.std))
    model = linear(seed=seed)
    for attacked in (
        fgsm(model, images, targets, epsilon, COLOUR),
        pgd(model, images, targets, epsilon, COLOUR, seeds=torch.arange(3), steps=3),
    ):
        found = attacked * std + mean
        assert ((found - pixels).abs() <= epsilon * (high - low) + 1e-5).all()
        assert (found >= torch.minimum(low, pixels) - 1e-5).all() and (
            found <= torch.maximum(high, pixels) + 1e-5
        ).all()


def test_what_lies_beyond_white_or_black_may_stay():
    images = COLOUR.normalise(torch.rand(4, 3, 4, 4) * 3 - 1)
    nothing = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    nn.init.zeros_(nothing[1].weight)
    assert torch.equal(fgsm(nothing, images, torch.zeros(4).long(), 0.1, COLOUR), images)


def test_what_is_fooled_stays_fooled():
    model, epsilons = linear(classes=10), (0.1, 0.2, 0.4)
    images = COLOUR.normalise(torch.rand(32, 3, 4, 4))
    said = model(images).argmax(dim=1)
    _, by_pgd = attack(model, images, (said + 1) % 10, epsilons, COLOUR, torch.arange(32))
    assert (by_pgd == said[:, None]).all()  # wrong from the first
    by_fgsm, by_pgd = attack(model, images, said, epsilons, COLOUR, torch.arange(32))
    for answers in (by_fgsm, by_pgd):
        assert answers.shape == (32, 3) and (answers[:, 2] != said).all()
    fooled = by_pgd[:, 0] != said
    assert fooled.any() and (by_pgd[fooled] == by_pgd[fooled][:, :1]).all()


@pytest.fixture(scope="module")
def digits():
    """A small ViT that reads digits, and images it never saw."""
    torch.manual_seed(0)
    encoder = ViT((8, 8), 2, 1, width=32, depth=2, heads=2, pool="mean")
    model = Classifier(encoder, tuple(map(str, range(10))), 32)
    train, test = open_source("digits:train"), open_source("digits:test")
    images = DIGITS.normalise(torch.stack([train.image(i) for i in range(len(train))]))
    targets = torch.from_numpy(train.targets())
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        batch = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(images[batch]), targets[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval(), test


def test_pgd_hurts_at_least_as_much_as_fgsm_and_that_more_than_nothing(digits):
    model, test = digits
    images = DIGITS.normalise(torch.stack([test.image(i) for i in range(128)]))
    targets = torch.from_numpy(test.targets()[:128])
    for epsilon in (4 / 255, 16 / 255):
        attacked = fgsm(model, images, targets, epsilon, DIGITS)
        harder = pgd(model, images, targets, epsilon, DIGITS, seeds=sample_seeds(0, 0, torch.arange(128)))
        clean, once, often = (F.cross_entropy(model(x), targets).item() for x in (images, attacked, harder))
        assert often >= once > 1.1 * clean


# Both together


@pytest.fixture(scope="module")
def found(digits):
    model, test = digits
    return robustness(model, test, DIGITS, images=80, seed=1, epsilons=[8 / 255, 1 / 255, 32 / 255], **CPU)


def test_what_is_left(digits, found):
    model, test = digits
    chosen = np.sort(np.random.default_rng(1).permutation(len(test))[:80])
    images = DIGITS.normalise(torch.stack([test.image(int(i)) for i in chosen]))
    with torch.no_grad():
        right = (model(images).argmax(dim=1).numpy() == test.targets()[chosen]).mean()
    assert found["n"] == 80 and found["clean"]["accuracy"] == pytest.approx(right) and right > 0.7
    assert list(found["corruptions"]) == list(CORRUPTIONS)
    table = np.array([[score["accuracy"] for score in scores] for scores in found["corruptions"].values()])
    assert table.shape == (14, 5)
    assert [score["accuracy"] for score in found["mean"]] == pytest.approx(table.mean(axis=0))
    assert found["all"]["accuracy"] == pytest.approx(table.mean())
    assert found["kept"] == pytest.approx(table.mean() / right)
    scores = [found["clean"], found["all"], *found["mean"], *found["corruptions"]["fog"], *found["attacks"]["pgd"]]
    assert all(score["low"] <= score["accuracy"] <= score["high"] for score in scores)
    # many corruptions of one image are not as many images
    wide = found["clean"]["high"] - found["clean"]["low"]
    assert found["all"]["high"] - found["all"]["low"] > 0.5 * wide
    attacks = found["attacks"]
    assert attacks["epsilons"] == [1 / 255, 8 / 255, 32 / 255]
    fooled = [right, *(score["accuracy"] for score in attacks["pgd"])]
    assert (np.diff(fooled) <= 0).all() and fooled[-1] < 0.5 * right
    assert fooled[-1] <= attacks["fgsm"][-1]["accuracy"]


def test_a_figure_is_had_again_alone_and_by_workers(digits, found):
    model, test = digits
    options = {"images": 80, "seed": 1, "epsilons": (), **CPU}
    again = robustness(model, test, DIGITS, corruptions=["glass_blur"], severities=[2, 3], workers=1, **options)
    assert again["corruptions"]["glass_blur"] == found["corruptions"]["glass_blur"][1:3]
    assert again["clean"] == found["clean"] and "attacks" not in again


def test_images_of_floats_are_scaled_to_bytes_and_back(digits):
    model, test = digits

    class Floats:
        def __getitem__(self, i):
            return test.items[i].float() * 4 - 300  # a scale of their own

        def sizes(self):
            return test.items.sizes()

    floats = dataclasses.replace(test, items=Floats())
    scale = Preprocess(1, (0.3 * 1020 - 300,), (0.37 * 1020,), (-300.0,), (720.0,))
    options = {"corruptions": ["contrast", "gaussian_noise"], "severities": [1, 4], "images": 60, "epsilons": [2 / 255]}
    bytes_, found = (
        robustness(model, test, DIGITS, **options, **CPU),
        robustness(model, floats, scale, **options, **CPU),
    )
    for name in options["corruptions"]:
        for a, b in zip(bytes_["corruptions"][name], found["corruptions"][name], strict=True):
            assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.02)
    assert bytes_["attacks"]["pgd"][0]["accuracy"] == pytest.approx(found["attacks"]["pgd"][0]["accuracy"], abs=0.02)


def test_intervals_are_over_groups_where_there_are_any(digits, found):
    model, test = digits
    table = test.table.assign(group=[f"g{i % 4}" for i in range(len(test))])
    options = {"corruptions": ["contrast"], "severities": [5], "images": 80, "epsilons": (), **CPU}
    grouped = robustness(model, dataclasses.replace(test, table=table), DIGITS, **options)
    alone = robustness(model, test, DIGITS, **options)
    assert grouped["clean"]["accuracy"] == alone["clean"]["accuracy"] and grouped["clean"] != alone["clean"]
    one = dataclasses.replace(test, table=test.table.assign(group="all"))
    with pytest.raises(BadInput, match="one group"):
        robustness(model, one, DIGITS, **options)


def test_many_corruptions_of_an_image_are_one_observation(digits):
    _, test = digits
    test = test.subset(np.arange(200))
    rng = np.random.default_rng(0)
    answers = np.where(rng.random(200) < 0.6, test.targets(), (test.targets() + 1) % 10)
    result = summary(test, ["fog", "snow"], [1, 2, 3], [], np.repeat(answers[:, None], 7, axis=1), [])
    for score in (*result["mean"], result["all"]):
        assert all(score[key] == pytest.approx(result["clean"][key], abs=0.015) for key in ("accuracy", "low", "high"))


def test_images_without_label_or_that_cannot_be_read_are_left_out(digits, tmp_path):
    model, test = digits
    paths = []
    for i in range(6):
        Image.fromarray(test.image(i)[0].numpy()).save(path := tmp_path / f"{i}.png")
        paths.append(str(path))
    (tmp_path / "2.png").write_bytes(b"no image")
    labels = [str(label) for label in test.targets()[:6]]
    labels[4] = None
    pd.DataFrame({"image": paths, "label": labels}).to_csv(tmp_path / "table.csv", index=False)
    told = []
    options = {
        "corruptions": ["contrast"],
        "severities": [1],
        "unreadable": lambda *failure: told.append(failure),
        **CPU,
    }
    result = robustness(model, open_source(tmp_path / "table.csv"), DIGITS, **options)
    assert result["n"] == 4 and result["clean"]["n"] == 4 and len(told) == 1 and told[0][0].endswith("2.png")


def test_what_cannot_be_judged_is_refused(digits):
    model, test = digits
    for change, words in (
        ({"corruptions": ["frost"]}, "no corruption is called 'frost'"),
        ({"corruptions": []}, "at least one"),
        ({"severities": [0]}, "severity 0"),
        ({"images": 1}, "at least two"),
    ):
        with pytest.raises(BadInput, match=words):
            robustness(model, test, DIGITS, **CPU, **change)
    fewer = Classifier(model.encoder, model.classes[:9], 32)
    with pytest.raises(BadInput, match="not taught: 9"):
        robustness(fewer, test, DIGITS, **CPU)
    several = Classifier(model.encoder, model.classes, 32, several=True)
    with pytest.raises(BadInput, match="several labels"):
        robustness(several, test, DIGITS, **CPU)


def test_the_classifier_stays_as_it_was(digits):
    model, test = digits
    model.train()
    try:
        robustness(model, test, DIGITS, corruptions=["contrast"], severities=[1], images=4, **CPU)
        assert model.training and model.encoder.training
        assert all(parameter.requires_grad for parameter in model.parameters())
    finally:
        model.eval()


# Picture and verb


def test_figure(found):
    few = {key: value for key, value in found.items() if key != "attacks"}
    few["corruptions"] = {name: found["corruptions"][name] for name in ("fog", "pixelate")}
    large, small = (Image.open(io.BytesIO(figures.robustness(result))).size for result in (found, few))
    assert 2400 > large[0] > small[0] > 1000 and large[1] > small[1]


def test_the_verb_leaves_figures_a_picture_and_a_section(digits, tmp_path, capsys):
    model, _ = digits
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    classifiers.save(model, run, {"preprocess": DIGITS.to_dict()})
    (run / "settings.yaml").write_text("method: finetune\n")
    command = [
        "robustness",
        str(run),
        "--data",
        "digits:test",
        "--images",
        "40",
        "--workers",
        "0",
        "--precision",
        "float32",
    ]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--corruptions", "fog", "contrast"])
    result = json.loads((run / "robustness.json").read_text())
    assert list(result["corruptions"]) == ["fog", "contrast"] and len(result["attacks"]["pgd"]) == 5
    said = " ".join(capsys.readouterr().out.split())
    assert result["sentence"] in said and "under PGD of 2/255" in said and "worst: " in said
    assert Image.open(run / "figures" / "robustness.png").size[0] > 1000
    page = (run / "report.html").read_text()
    assert "What is left when images get worse?" in page and "clean accuracy" in page

    out = tmp_path / "else" / "where.json"
    options = {"images": 20, "workers": 0, "attacks": False, "corruptions": ("contrast",), "out": out}
    result = unmask.robustness(run, data="digits:test", **options)
    assert out.is_file() and out.with_suffix(".png").is_file() and "PGD" not in result["sentence"]
    for words, change in (("at least 2", {"images": 1}), ("--out", {"out": tmp_path / "x.png"})):
        with pytest.raises(BadInput, match=words):
            unmask.robustness(run, data="digits:test", **(options | change))
