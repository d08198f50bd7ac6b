"""The colours of a view: what is drawn, and what is made of it, beside torchvision's operations on the same numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import kstest
from torch import Tensor

from unmask.data.augment import OPERATIONS, UNCHANGED, View, sample_seeds
from unmask.data.decode import Preprocess
from unmask.data.loader import Key, Loader, Renderer, altered
from unmask.data.source import Source
from unmask.data.sources import open_source

ALL = View((24, 20), jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5, solarise=0.2)
COLOUR = Preprocess(3, (0.5,) * 3, (0.25,) * 3)
LEFT_ALONE = torch.tensor([[*UNCHANGED, 0.0, 1.0, 2.0, 3.0]])
BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA, SOLARISE = range(7)


def drawn(view: View, count: int, seed: int = 0, number: int = 0) -> Tensor:
    return view.draw_colour(sample_seeds(seed, 0, torch.arange(count)), number)


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Bytes: noise, smooth colours, and what is hard about hues: greys and pure colours."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, height, width, generator=generator)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    images[::3] = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[::3]
    images[1::3] = (images[1::3] * 2).round() / 2
    return (images * 255).round().to(torch.uint8)


def by_torchvision(image: Tensor, row: Tensor, view: View) -> Tensor:
    """One image (3, H, W), uint8 or float32, through its row of `draw_colour` (11,), one operation after the other."""
    numbers = row.tolist()
    jitter = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    for which in sorted(range(4), key=lambda which: numbers[7 + which]):
        image = jitter[which](image, numbers[which])
    if numbers[GREY]:
        image = reference.rgb_to_grayscale(image, 3)
    if numbers[SIGMA]:
        radius = min(math.ceil(3 * view.blur_sigma[1]), min(image.shape[1:]) - 1)
        image = reference.gaussian_blur(image, [2 * radius + 1] * 2, [numbers[SIGMA]] * 2)
    if numbers[SOLARISE]:
        image = reference.solarize(image, 128 if image.dtype == torch.uint8 else 128 / 255)
    return image


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 9))
def test_what_is_drawn_depends_on_seed_epoch_sample_and_view_alone(seed, epoch, sample, number):
    alone = ALL.draw_colour(sample_seeds(seed, epoch, torch.tensor([sample])), number)
    among = ALL.draw_colour(sample_seeds(seed, epoch, torch.tensor([5, sample, 7])), number)
    assert alone.shape == (1, 11) and alone.dtype == torch.float32
    assert torch.equal(alone, among[1:2])
    assert sorted(alone[0, 7:].tolist()) == [0, 1, 2, 3]
    sizes = torch.tensor([300]), torch.tensor([200])
    seeds = sample_seeds(seed, epoch, torch.tensor([sample]))
    assert torch.equal(ALL.draw(seeds, *sizes, number), View(ALL.size).draw(seeds, *sizes, number))


def test_what_is_drawn_is_distributed_as_torchvision_draws_it():
    view = View((8, 8), jitter=(0.8, 0.4, 1.5, 0.2), jitter_p=0.7, grey=0.2, blur=0.5, solarise=0.1)
    found = drawn(view, 6000, seed=2)
    jittered = found[:, BRIGHTNESS] != 1
    for column, (low, high) in enumerate(((0.2, 1.8), (0.6, 1.4), (0.0, 2.5), (-0.2, 0.2))):
        assert kstest(found[jittered, column], "uniform", (low, high - low)).pvalue > 0.001
        assert (found[~jittered, column] == (0 if column == HUE else 1)).all()
    sigma = found[:, SIGMA]
    assert kstest(sigma[sigma > 0], "uniform", (0.1, 1.9)).pvalue > 0.001
    orders = np.unique(found[:, 7:].numpy(), axis=0, return_counts=True)[1]
    assert len(orders) == 24 and ((orders - 250) ** 2 / 250).sum() < 49.7  # 99.9% of chi-square, 23 degrees of freedom
    coins = {jittered: 0.7, found[:, GREY] == 1: 0.2, sigma > 0: 0.5, found[:, SOLARISE] == 1: 0.1}
    for coin, chance in coins.items():
        assert abs(coin.float().mean() - chance) < 0.02
    sizes = torch.full((6000,), 300), torch.full((6000,), 400)
    boxes = view.draw(sample_seeds(2, 0, torch.arange(6000)), *sizes)
    columns = torch.cat([torch.stack(list(coins), dim=1), found[:, :4], boxes], dim=1)[jittered]
    correlation = np.corrcoef(columns[:, 1:].double().numpy().T)[:7, 7:]  # of colours with the crop and the flip
    assert np.abs(correlation).max() < 0.06
    assert not torch.equal(found, drawn(view, 6000, seed=2, number=1))


def test_a_strength_of_nothing_leaves_its_operation_out():
    assert torch.equal(drawn(View((8, 8)), 20)[:, :7], LEFT_ALONE[:, :7].expand(20, 7))
    assert not View((8, 8)).colourful and not View((8, 8), jitter=(0, 0, 0, 0)).colourful
    assert View((8, 8), jitter=(0, 0, 0, 0.1)).colourful and View((8, 8), solarise=0.1).colourful
    assert (
        drawn(View((8, 8), jitter=(0.4, 0, 0.4, 0), jitter_p=1), 50)[:, [CONTRAST, HUE]] == torch.tensor([1, 0])
    ).all()


@pytest.mark.parametrize("column", range(7), ids=OPERATIONS)
@settings(max_examples=12, deadline=None)
@given(amount=st.floats(0, 1), height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_each_operation_is_torchvisions(column, amount, height, width, seed):
    """On bytes within two levels: torchvision cuts off the grey that it mixes in and the result, unmask rounds."""
    view = View((height, width), blur=1.0, blur_sigma=(0.1, 3.0))
    row = LEFT_ALONE.clone()
    row[0, column] = {HUE: amount - 0.5, GREY: 1, SIGMA: 0.1 + 2.9 * amount, SOLARISE: 1}.get(column, 1.8 * amount)
    images = pictures(3, 3, height, width, seed)
    ours = view.colour(images, row.expand(3, 11))
    theirs = torch.stack([by_torchvision(image, row[0], view) for image in images])
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= (2 if column in (CONTRAST, SATURATION) else 1)
    floats = images.float() / 255
    theirs = torch.stack([by_torchvision(image, row[0], view) for image in floats])
    assert (view.colour(floats, row.expand(3, 11)) - theirs).abs().max() <= (1 if column == SOLARISE else 0.2) / 255


@pytest.mark.parametrize("size", [(24, 20), (70, 33)])
def test_all_operations_in_their_order_are_torchvisions(size):
    """In floats; torchvision's on bytes cut off after each operation, what is left differs by a level on average."""
    view = View(size, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5, solarise=0.2)
    images, rows = pictures(200, 3, *size), drawn(view, 200)
    theirs = torch.stack([by_torchvision(image, row, view) for image, row in zip(images / 255, rows, strict=True)])
    assert (view.colour(images / 255, rows) - theirs).abs().max() * 255 <= 1.01
    assert (view.colour(images, rows) - theirs * 255).abs().max() <= 1.01
    on_bytes = torch.stack([by_torchvision(image, row, view) for image, row in zip(images, rows, strict=True)])
    assert (view.colour(images, rows).float() - on_bytes).abs().mean() < 1.5


def test_a_batch_is_coloured_as_each_of_its_images(monkeypatch):
    images, rows = pictures(60, 3, *ALL.size), drawn(ALL, 60)
    before = images.clone()
    together = ALL.colour(images, rows)
    assert torch.equal(images, before)
    each = torch.cat([ALL.colour(images[i : i + 1], rows[i : i + 1]) for i in range(60)])
    assert torch.equal(together, each)
    monkeypatch.setattr("unmask.data.augment.CACHED", 4 * images[0].numel())
    assert torch.equal(together, ALL.colour(images.contiguous(memory_format=torch.channels_last), rows))
    same = (rows[:, :7] == LEFT_ALONE[:, :7]).all(dim=1)
    assert 0 < same.sum() < 60 and torch.equal(together[same], images[same])
    assert (together != images).flatten(1).any(dim=1).sum() > 0.9 * (~same).sum()  # a blur may be too narrow to see
    assert ALL.colour(images[:0], rows[:0]).shape == (0, 3, *ALL.size)
    assert torch.equal(ALL.colour(images[same], rows[same]), images[same])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_than_three_channels_have_no_hue(channels):
    images, rows = pictures(30, channels, *ALL.size), drawn(ALL, 30)
    without = rows.clone()
    without[:, [SATURATION, HUE, GREY]] = torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(ALL.colour(images, rows), ALL.colour(images, without))
    if channels == 1:
        theirs = torch.stack(
            [by_torchvision(image, row, ALL) for image, row in zip(images / 255, without, strict=True)]
        )
        assert (ALL.colour(images / 255, rows) - theirs).abs().max() * 255 <= 1.01


def test_floats_are_coloured_between_what_is_shown_as_black_and_white():
    seeds = sample_seeds(0, 0, torch.arange(40))
    images = pictures(40, 3, *ALL.size) / 255
    wanted = ALL.colour(images, ALL.draw_colour(seeds, 1))
    scaled = Preprocess(3, (0.0,) * 3, (1.0,) * 3, (100.0, 0.0, -5.0), (4000.0, 50.0, 5.0))
    low, span = torch.tensor([100.0, 0.0, -5.0])[:, None, None], torch.tensor([3900.0, 50.0, 10.0])[:, None, None]
    found = altered(images * span + low, ALL, seeds, 1, scaled)
    assert ((found - low) / span - wanted).abs().max() < 1e-3


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i, image in enumerate(pictures(12, 3, 40, 40)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return open_source(folder)


DINO = (
    View((32, 32), (0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=1.0),
    View((32, 32), (0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.1, solarise=0.2),
    *[View((16, 16), (0.05, 0.4), jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=0.5)] * 3,
)


def test_what_is_held_is_coloured_as_what_workers_read(photographs):
    whole = tuple(replace(view, size=(40, 40), crop_scale=None) for view in DINO)
    for views, most in (
        (whole, 0.01),
        (DINO, 6),
    ):  # resized bytes differ by up to 2 levels, which the jitter may multiply
        held, read = Loader(photographs, COLOUR, views, 6, hold=True)(1), Loader(photographs, COLOUR, views, 6)(1)
        for _ in range(3):
            ours, theirs = next(held), next(read)
            for a, b in zip(ours.views, theirs.views, strict=True):
                off = (a - b).abs() * 0.25 * 255
                assert off.max() <= most and off.quantile(0.99) <= 2


def test_workers_colour_alike_and_read_an_image_once_for_all_views(photographs, monkeypatch):
    reads = []
    shrunk = Source.shrunk
    monkeypatch.setattr(Source, "shrunk", lambda self, i, most: reads.append(i) or shrunk(self, i, most))
    batch = next(Loader(photographs, COLOUR, DINO, 6)())
    assert [tuple(view.shape) for view in batch.views] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
    assert sorted(reads) == sorted(batch.index.tolist())
    again = next(Loader(photographs, COLOUR, DINO, 6, workers=1)())
    assert all(torch.equal(a, b) for a, b in zip(batch.views, again.views, strict=True))
    parts = [next(Loader(photographs, COLOUR, DINO, 6, part=part, parts=2)()) for part in range(2)]
    for number, view in enumerate(batch.views):
        assert torch.equal(view, torch.cat([part.views[number] for part in parts]))


def test_colours_on_a_device_are_those_of_a_worker(photographs):
    key = Key(2, np.arange(12))
    here, there = (Renderer(photographs, COLOUR, DINO, 7, True, colour, 0)[key] for colour in (True, False))
    for number, (view, ours, theirs) in enumerate(zip(DINO, here[0], there[0], strict=True)):
        assert ours.dtype == theirs.dtype == torch.uint8
        assert not torch.equal(ours, theirs)
        assert torch.equal(ours, altered(theirs, view, there[2], number, COLOUR))


def test_a_view_without_colours_is_left_as_it_was(photographs):
    plain = View((32, 32))
    images = torch.zeros(2, 3, 32, 32)
    assert altered(images, plain, torch.arange(2), 0, COLOUR) is images


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 400), (640, 512)])
def test_a_crop_of_fixed_size_is_7_8_of_the_shorter_side_anywhere(height, width):
    view, n = View((224, 224), crop_scale=None, crop_side=224 / 256), 4000
    seeds = sample_seeds(0, 0, torch.arange(n))
    top, left, h, w, flipped = view.draw(seeds, torch.full((n,), height), torch.full((n,), width)).unbind(1)
    side = min(height, width) * 7 // 8
    assert (h == side).all() and (w == side).all()
    for start, room in ((top, height - side), (left, width - side)):
        assert start.min() == 0 and start.max() == room
        assert start.double().mean().item() == pytest.approx(room / 2, rel=0.05)
    assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.05)
