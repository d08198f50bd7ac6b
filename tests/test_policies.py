"""RandAugment, AutoAugment and shifts of whole batches, beside timm's and Pillow's of single images."""

from dataclasses import replace

import numpy as np
import pytest
import timm.data.auto_augment as timm_policies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unmask.data.augment import View, sample_seeds
from unmask.data.decode import Preprocess
from unmask.data.loader import Key, Loader, Renderer, altered
from unmask.data.policies import NOTHING, OPERATIONS, apply, draw, draw_shift, shifted
from unmask.data.sources import open_source

COLOUR = Preprocess(3, (0.5, 0.4, 0.3), (0.25,) * 3)
MEAN = torch.tensor(COLOUR.mean)
FILL = 128, 102, 76  # the mean of RandAugment in levels
FACTORS = ("brightness", "contrast", "saturation", "sharpness")
AMOUNTS = {
    "posterise": (1, 2, 3, 5),
    "solarise": (0, 26, 199.1, 256),
    "solarise_add": (0, 60, 99, 110),
    **dict.fromkeys(FACTORS, (0.1, 0.19, 0.7, 1.3, 1.81, 1.9)),
    "rotate": (-30, -27.3, 20 / 3, 28),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.1, 0.27)),
    **dict.fromkeys(("translate_x", "translate_y"), (-0.447, 0.057, 0.413)),
}
TIMM = {
    "autocontrast": timm_policies.auto_contrast,
    "equalise": timm_policies.equalize,
    "invert": timm_policies.invert,
    "posterise": timm_policies.posterize,
    "solarise": timm_policies.solarize,
    "solarise_add": timm_policies.solarize_add,
    "brightness": timm_policies.brightness,
    "contrast": timm_policies.contrast,
    "saturation": timm_policies.color,
    "sharpness": timm_policies.sharpness,
    "shear_x": timm_policies.shear_x,
    "shear_y": timm_policies.shear_y,
    "rotate": timm_policies.rotate,
    "translate_x": timm_policies.translate_x_rel,
    "translate_y": timm_policies.translate_y_rel,
}


def plan(*operations: tuple[str, float]) -> Tensor:
    """A row as of `draw`, (1, 2, 2)."""
    rows = [(OPERATIONS.index(name), amount) for name, amount in operations]
    return torch.tensor([rows + [(NOTHING, 0.0)] * (2 - len(rows))], dtype=torch.float32)


def by_timm(image: Tensor, name: str, amount: float, **how) -> Tensor:
    """One image (C, H, W) uint8, C 1 or 3, through timm's operation."""
    amounts = () if name not in AMOUNTS else (int(amount),) if name in ("posterise", "solarise_add") else (amount,)
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    changed = TIMM[name](Image.fromarray(pixels.numpy()), *amounts, **how)
    return torch.from_numpy(np.array(changed)).view(*image.shape[1:], -1).permute(2, 0, 1)


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    source = open_source("photos")
    return [source.image(i) for i in range(0, 60, 6)]


def hard(seed: int, height: int, width: int, channels: int = 3) -> list[Tensor]:
    """Noise, one colour, two colours, and few values near each other."""
    generator = torch.Generator().manual_seed(seed)
    ends = ((0, 256), (77, 78), (200, 202), (90, 103))
    return [
        torch.randint(low, high, (channels, height, width), dtype=torch.uint8, generator=generator)
        for low, high in ends
    ]


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_timms(name, photographs):
    """What changes values to the byte, what moves pixels within a level, and nearly everywhere to the byte."""
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
    same, bound = [], 0 if name in OPERATIONS[:10] else 1
    for amount in AMOUNTS.get(name, (0.0,)):
        row = plan((name, amount))
        for image in [*photographs, *hard(0, 33, 50)]:
            ours = apply(image[None], "rand", row, MEAN)[0]
            off = (ours.int() - by_timm(image, name, float(row[0, 0, 1]), **how).int()).abs()
            assert off.max() <= bound, amount
            same.append((off == 0).float().mean().item())
    assert np.mean(same) > 0.97


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(OPERATIONS[:10]),
    st.floats(0.1, 1.9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from((1, 3)),
    st.integers(0, 99),
)
def test_operations_on_values_are_pillows_at_any_size(name, share, height, width, channels, seed):
    if channels == 1 and name == "saturation":
        return
    largest = {"posterise": 3.9, "solarise": 134, "solarise_add": 57}.get(name, 1)
    row = plan((name, np.float32(share) * largest if name in FACTORS else 1 + round(share * largest)))
    images = hard(seed, height, width, channels)
    theirs = torch.stack([by_timm(image, name, float(row[0, 0, 1])) for image in images])
    ours = apply(torch.stack(images), "rand", row.expand(4, 2, 2), MEAN[:channels])
    if min(height, width) >= 3 or name != "sharpness":  # Pillow makes black of what its filter does not fit in
        assert torch.equal(ours, theirs)


def test_autoaugment_takes_nearest_pixels_and_fills_with_grey(photographs):
    how = {"resample": Image.Resampling.NEAREST, "fillcolor": (128,) * 3}
    for name, amount in (("rotate", 20 / 3), ("translate_x", 0.4531), ("translate_y", -0.1511)):
        for image in photographs:
            row = plan((name, amount))
            ours = apply(image[None], "auto", row, MEAN)[0]
            assert (ours == by_timm(image, name, float(row[0, 0, 1]), **how)).float().mean() > 0.998
    corner = apply(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "auto", plan(("shear_x", 0.3)), MEAN)
    assert corner[0, :, -1, -1].tolist() == [128] * 3


def test_nothing_is_left_of_an_image_of_no_bits():
    assert not apply(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), "rand", plan(("posterise", 0)), MEAN).any()


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 9))
def test_what_is_drawn_depends_on_seed_epoch_sample_and_view_alone(seed, epoch, sample, number):
    alone = sample_seeds(seed, epoch, torch.tensor([sample]))
    among = sample_seeds(seed, epoch, torch.tensor([5, sample, 7]))
    for policy in ("rand", "auto"):
        assert draw(policy, alone, number).shape == (1, 2, 2)
        assert torch.equal(draw(policy, alone, number), draw(policy, among, number)[1:2])
    assert torch.equal(draw_shift(4, alone, number), draw_shift(4, among, number)[1:2])


def signed(name: str, level: np.ndarray) -> np.ndarray:
    """Amounts of RandAugment at levels from 0 to 1, by timm; without the sign."""
    of = {
        "posterise": "PosterizeIncreasing",
        "solarise": "SolarizeIncreasing",
        "solarise_add": "SolarizeAdd",
        **{name: "ColorIncreasing" for name in FACTORS},
        **{"rotate": "Rotate", "shear_x": "ShearX", "shear_y": "ShearY"},
        **{"translate_x": "TranslateXRel", "translate_y": "TranslateYRel"},
    }
    return np.array([timm_policies.LEVEL_TO_ARG[of[name]](10 * each, {})[0] for each in level])


def test_randaugment_is_drawn_as_timm_draws_it():
    n = 30_000
    drawn = draw("rand", sample_seeds(1, 0, torch.arange(n)), 1).double().numpy()
    which, amount = drawn[..., 0].astype(int), drawn[..., 1]
    done = which != NOTHING
    assert abs(done.mean() - 0.5) < 0.01 and abs(done.all(axis=1).mean() - 0.25) < 0.01
    counts = np.bincount(which[done], minlength=15)
    assert ((counts - n / 15) ** 2 / (n / 15)).sum() < 36.1  # 99.9% of chi-square, 14 degrees of freedom
    again = (which[:, 0] == which[:, 1])[done.all(axis=1)].mean()  # with replacement
    assert abs(again - 1 / 15) < 0.015
    level = np.clip(np.random.default_rng(0).normal(9, 0.5, 4000), 0, 10) / 10
    for number, name in enumerate(OPERATIONS):
        found = amount[which == number]
        if name not in AMOUNTS:
            assert not found.any()
            continue
        if name in ("posterise", "solarise", "solarise_add"):
            theirs = signed(name, level)
            assert found.min() >= theirs.min() - 3 and found.max() <= theirs.max() + 12
            assert abs(found.mean() - theirs.mean()) < 0.05 * theirs.std() + 0.1 * theirs.std()
            continue
        centre, full = (1, 0.9) if name in FACTORS else (0, abs(signed(name, np.ones(1))[0]))
        away = (found - centre) / full
        assert abs((away > 0).mean() - 0.5) < 0.06
        assert np.abs(away).max() <= 1 + 1e-6 and abs(np.abs(away).mean() - level.mean()) < 0.01
        assert abs((np.abs(away) > 1 - 1e-6).mean() - 0.023) < 0.015  # cut off at 10
    views = [draw("rand", sample_seeds(1, 0, torch.arange(2000)), number)[:, 0, 0].numpy() for number in range(2)]
    assert abs(np.corrcoef(*views)[0, 1]) < 0.07


def test_autoaugment_draws_the_sub_policies_of_the_paper():
    n = 50_000
    which, amount = draw("auto", sample_seeds(0, 0, torch.arange(n))).double().numpy().transpose(2, 0, 1)
    done = which != NOTHING
    # sums over table 7 of the paper's probabilities of the first and of the second operation
    assert np.abs(done.mean(axis=0) - [13.4 / 25, 13.1 / 25]).max() < 0.01
    both = (which == OPERATIONS.index("translate_y")).all(axis=1)
    assert abs(both.mean() - 0.9 * 0.7 / 25) < 0.004
    rates = {"invert": (0.1, 0.1), "translate_y": (2.0, 1.4), "equalise": (2.1, 2.6), "saturation": (2.0, 0.9)}
    for name, expected in rates.items():
        assert np.abs((which == OPERATIONS.index(name)).mean(axis=0) - np.array(expected) / 25).max() < 0.006, name
    found = {name: set(amount[which == number].round(4)) for number, name in enumerate(OPERATIONS)}
    assert found["rotate"] == {6.6667} and found["posterise"] == {5.0}  # DeepVoltaire's rotation has no sign
    assert found["solarise"] == {round(256 - 256 * m / 9, 4) for m in (2, 3, 5, 8)}
    assert found["shear_y"] == {round(s * 0.3 * m / 9, 4) for s in (-1, 1) for m in (7, 8)}
    assert found["translate_x"] == {round(s * 150 / 331 * m / 9, 4) for s in (-1, 1) for m in (8, 9)}
    assert found["sharpness"] == {round(1 + s * 0.1 * m, 4) for s in (-1, 1) for m in (1, 3, 5, 6, 9)}
    assert not found["shear_x"] and not found["solarise_add"]


@pytest.mark.parametrize("policy", ["rand", "auto"])
def test_a_batch_is_changed_as_each_of_its_images(policy, photographs, monkeypatch):
    images = torch.stack(photographs * 8)
    rows, before = draw(policy, sample_seeds(0, 0, torch.arange(80))), images.clone()
    together = apply(images, policy, rows, MEAN)
    assert torch.equal(images, before) and together.dtype == torch.uint8
    each = torch.cat([apply(images[i : i + 1], policy, rows[i : i + 1], MEAN) for i in range(80)])
    assert torch.equal(together, each)
    monkeypatch.setattr("unmask.data.policies.CACHED", 4 * images[0].numel())
    assert torch.equal(together, apply(images.contiguous(memory_format=torch.channels_last), policy, rows, MEAN))
    same = (rows[..., 0] == NOTHING).all(dim=1)
    assert 0 < same.sum() < 40 and torch.equal(together[same], images[same])
    in_turn = apply(apply(images, policy, rows[:, :1], MEAN), policy, rows[:, 1:], MEAN)
    assert torch.equal(together, in_turn)
    assert apply(images[:0], policy, rows[:0], MEAN).shape == (0, 3, 64, 64)


def test_images_of_other_than_three_channels_have_no_saturation():
    images = torch.stack(hard(1, 20, 24, channels=5))
    rows = plan(("saturation", 0.2)).expand(4, 2, 2)
    assert torch.equal(apply(images, "rand", rows, torch.zeros(5)), images)
    for name in OPERATIONS:
        if name not in ("saturation", "contrast"):
            rows = plan((name, AMOUNTS.get(name, (0.0,))[0])).expand(4, 2, 2)
            one = torch.cat([apply(part, "rand", rows, torch.zeros(1)) for part in images.split(1, dim=1)], dim=1)
            assert torch.equal(apply(images, "rand", rows, torch.zeros(5)), one), name


def test_floats_are_changed_as_bytes_and_left_alone_where_nothing_is_drawn(photographs):
    images, seeds = torch.stack(photographs * 3) / 255, sample_seeds(0, 0, torch.arange(30))
    rows = draw("rand", seeds)
    wanted = apply((images * 255).round().to(torch.uint8), "rand", rows, MEAN) / 255
    images[:, :, 0, 0] += 0.0003  # which bytes could not tell
    found = apply(images, "rand", rows, MEAN)
    same = (rows[..., 0] == NOTHING).all(dim=1)
    assert torch.equal(found[same], images[same]) and (found - wanted)[~same].abs().max() < 1e-6
    low, high = torch.tensor([100.0, 0.0, -5.0]), torch.tensor([4000.0, 50.0, 5.0])
    mean = (MEAN * (high - low) + low).tolist()
    scaled = Preprocess(3, tuple(mean), (1.0,) * 3, tuple(low.tolist()), tuple(high.tolist()))
    low, span = low[:, None, None], (high - low)[:, None, None]
    view = View((64, 64), policy="rand")
    assert ((altered(images * span + low, view, seeds, 0, scaled) - low) / span - found).abs().max() < 1e-5


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_shifts_are_crops_of_what_is_padded_with_black(height, width, most):
    images = torch.stack(hard(0, height, width)) + 1
    steps = torch.tensor([[0, 0], [-most, most], [most, -1], [1, 0]])
    padded = torch.nn.functional.pad(images, (most,) * 4)
    for image, whole, (down, right) in zip(shifted(images, steps, most), padded, steps.tolist(), strict=True):
        top, left = most + down, most + right
        assert torch.equal(image, whole[:, top : top + height, left : left + width])
    assert torch.equal(shifted(images / 255, steps, most), shifted(images, steps, most) / 255)


def test_every_shift_is_as_likely():
    steps = draw_shift(4, sample_seeds(0, 0, torch.arange(20_000)))
    counts = np.unique(steps.numpy(), axis=0, return_counts=True)[1]
    expected = 20_000 / 81
    assert len(counts) == 81 and ((counts - expected) ** 2 / expected).sum() < 124.9  # 99.9%, 80 degrees of freedom
    assert steps.abs().max() == 4
    assert not torch.equal(steps, draw_shift(4, sample_seeds(0, 0, torch.arange(20_000)), 1))


def test_flips_need_no_crop_and_change_no_other_draw():
    seeds, sides = sample_seeds(0, 0, torch.arange(2000)), (torch.full((2000,), 40), torch.full((2000,), 50))
    whole, still = (View((32, 32), crop_scale=None, flip=flip).draw(seeds, *sides, 1) for flip in (0.5, 0.0))
    assert torch.equal(whole[:, :4], still[:, :4]) and not still[:, 4].any()
    assert torch.equal(whole[:, 4], View((32, 32)).draw(seeds, *sides, 1)[:, 4])
    assert abs(whole[:, 4].float().mean() - 0.5) < 0.04


def test_the_mirror_of_a_whole_image_is_rendered():
    image = torch.arange(2 * 6, dtype=torch.uint8).view(1, 2, 6)
    view = View((2, 6), crop_scale=None, flip=1.0)
    row = view.draw(torch.tensor([3]), torch.tensor([2]), torch.tensor([6]))
    assert torch.equal(view.render(image, row[0]), image.flip(-1))
    assert torch.equal(view.render_batch(image[None], row)[0], image.flip(-1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs):
    path = tmp_path_factory.mktemp("photographs")
    for i, image in enumerate(photographs):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{i}.png")
    (path / "7.png").write_bytes(b"no image")
    return open_source(path)


CIFAR = View((64, 64), crop_scale=None, shift=4)
VIEWS = (replace(CIFAR, policy="rand"), replace(CIFAR, policy="auto"), replace(CIFAR, jitter=(0.4,) * 4, jitter_p=1.0))


def test_what_is_held_or_read_by_workers_is_changed_alike(folder):
    options = {"batch_size": 5, "seed": 3}
    read = Loader(folder, COLOUR, VIEWS, **options)(1)
    held = Loader(folder, COLOUR, VIEWS, **options, hold=True)(1)
    for _ in range(3):
        ours, theirs = next(held), next(read)
        for a, b in zip(ours.views, theirs.views, strict=True):
            assert (a - b).abs().max() * 0.25 * 255 < 0.01
    worked = next(Loader(folder, COLOUR, VIEWS, **options, workers=1)(1))
    first = next(Loader(folder, COLOUR, VIEWS, **options)(1))
    assert all(torch.equal(a, b) for a, b in zip(first.views, worked.views, strict=True))
    assert not torch.equal(first.views[0], first.views[1])


def test_a_device_changes_what_a_worker_leaves(folder):
    key = Key(2, np.arange(6))
    here, there = (Renderer(folder, COLOUR, VIEWS, 7, True, alter, 0)[key] for alter in (True, False))
    for number, (view, ours, theirs) in enumerate(zip(VIEWS, here[0], there[0], strict=True)):
        assert not torch.equal(ours, theirs)
        assert torch.equal(ours, altered(theirs, view, there[2], number, COLOUR))
    one, other = (replace(CIFAR, shift=30), replace(CIFAR, shift=30, flip=0.0))
    views, *_ = Renderer(folder, COLOUR, (one, one, other), 7, True, True, 0)[key]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])  # another view is another shift


@pytest.mark.parametrize("hold", [False, True])
def test_targets_are_those_of_the_images(folder, hold):
    """Also where one that can be read stands for one that cannot."""
    several = torch.rand(len(folder), 3)
    for targets in (torch.arange(len(folder)) * 10, several):
        batches = Loader(folder, COLOUR, VIEWS[:1], 5, hold=hold, targets=targets)()
        seen = []
        for _ in range(2):
            batch = next(batches)
            assert torch.equal(batch.targets, targets[batch.index]) and batch.targets.dtype == targets.dtype
            seen += batch.index.tolist()
        missing = folder.table["path"].tolist().index("7.png")
        assert missing not in seen and seen.count((missing + 1) % len(folder)) == 2
    assert next(Loader(folder, COLOUR, VIEWS[:1], 5, hold=hold)()).targets is None
