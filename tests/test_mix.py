"""Mixup, CutMix, smoothing and erasing: what timm makes of the same draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target
from timm.data.random_erasing import RandomErasing

from unmask.data.mix import Mix, draw_mix, erase, soft

IMAGES, CLASSES = (
    torch.randn(6, 3, 12, 10, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 3, 1, 1, 4, 2]),
)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_batches_and_targets_as_timm_mixes_them(mixup, cutmix):
    theirs, kinds = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=5), set()
    for seed in range(20):
        np.random.seed(seed)
        share, boxed = theirs._params_per_batch()
        box = None
        if boxed:
            (top, bottom, left, right), share = cutmix_bbox_and_lam(IMAGES.shape, share)
            box = (int(top), int(bottom), int(left), int(right))
        np.random.seed(seed)
        images, targets = theirs(IMAGES.clone(), CLASSES)
        ours = Mix(float(share), box)
        torch.testing.assert_close(ours.images(IMAGES.clone()), images, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.targets(soft(CLASSES, 5, 0.1)), targets, rtol=1e-5, atol=1e-6)
        kinds.add(boxed)
    assert len(kinds) == (2 if mixup and cutmix else 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_as_timm_has_them(smoothing):
    torch.testing.assert_close(soft(CLASSES, 5, smoothing), mixup_target(CLASSES, 5, smoothing=smoothing))
    several = torch.randint(2, (6, 5))
    theirs = mixup_target(several, 5, smoothing=smoothing, multi_label=True)
    torch.testing.assert_close(soft(several, 5, smoothing), theirs)


@given(st.integers(0, 10**6), st.integers(4, 40), st.integers(4, 40))
def test_the_share_is_that_of_the_pixels_that_stay(seed, height, width):
    torch.manual_seed(seed)
    mix = draw_mix((height, width), 0.0, 1.0)
    mine, other = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width)
    mixed = mix.images(torch.cat([mine, other]))
    assert float(mixed[0].mean()) == pytest.approx(1 - mix.share, abs=1e-6)
    assert float(mixed[1].mean()) == pytest.approx(mix.share, abs=1e-6)


def test_shares_are_drawn_from_the_beta_distribution():
    torch.manual_seed(0)
    shares = torch.tensor([draw_mix((100, 100), 0.8, 0.0).share for _ in range(2000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(a, a)
    boxed = [draw_mix((100, 100), 0.8, 1.0).box is not None for _ in range(2000)]
    assert sum(boxed) / 2000 == pytest.approx(0.5, abs=0.05)
    assert draw_mix((100, 100), 0.0, 0.0) == Mix(1.0)


def test_what_is_erased_is_as_much_as_timm_erases():
    torch.manual_seed(0)
    blank = torch.full((3000, 2, 24, 36), 9.0)
    erased = (erase(blank.clone(), 0.25) != 9.0).all(dim=1)  # (B, H, W), noise is never 9
    theirs = RandomErasing(0.25, mode="pixel", device="cpu")(blank.clone()) != 9.0
    mine, other = (x.flatten(1).float().mean(dim=1) for x in (erased, theirs.all(dim=1)))
    for summary in (lambda x: (x > 0).float().mean(), lambda x: x[x > 0].mean(), lambda x: x[x > 0].std()):
        assert float(summary(mine)) == pytest.approx(float(summary(other)), abs=0.03)
    for area, box in zip(mine[mine > 0], erased[mine > 0], strict=True):
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert math.isclose(area * 24 * 36, rows.sum() * columns.sum(), rel_tol=1e-4)  # one rectangle
    noise = erase(blank.clone(), 1.0)
    assert float(noise[noise != 9.0].std()) == pytest.approx(1.0, abs=0.01)
    assert (erase(blank[:50].clone(), 0.0) == 9.0).all()
