"""Draws, views and batches."""

import io
import multiprocessing
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.data.augment import View, sample_seeds, uniform
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader, _begin_worker
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.errors import BadInput

GREY = Preprocess(1, (0.5,), (0.25,))


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(0, 10**6))
def test_draws_depend_on_seed_epoch_and_sample_alone(seed, epoch, sample):
    alone = uniform(sample_seeds(seed, epoch, torch.tensor([sample])), 8)
    among = uniform(sample_seeds(seed, epoch, torch.tensor([5, sample, 7])), 16)[1:2, :8]
    assert torch.equal(alone, among)
    assert torch.equal(uniform(sample_seeds(seed, epoch, torch.tensor([sample])), 3, stream=5), alone[:, 5:])
    assert ((alone >= 0) & (alone < 1)).all()
    for other in (
        sample_seeds(seed + 1, epoch, torch.tensor([sample])),
        sample_seeds(seed, epoch + 1, torch.tensor([sample])),
    ):
        assert not torch.equal(alone, uniform(other, 8))


def test_draws_are_uniform_and_uncorrelated():
    draws = uniform(sample_seeds(0, 3, torch.arange(4000)), 20).numpy()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi_square = ((counts - draws.size / 20) ** 2 / (draws.size / 20)).sum()
    assert chi_square < 43.8  # 99.9% of the distribution with 19 degrees of freedom
    assert np.abs(np.corrcoef(draws.T) - np.eye(20)).max() < 0.08
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.06


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64), st.integers(1, 64))
def test_crops_lie_inside_the_image(height, width, rows, columns):
    view = View((rows, columns))
    seeds = sample_seeds(0, 0, torch.arange(50))
    sizes = torch.full((50,), height), torch.full((50,), width)
    for one in (view, View((rows, columns), crop_scale=None)):
        top, left, h, w, flipped = one.draw(seeds, *sizes).unbind(1)
        assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
        assert (top + h <= height).all() and (left + w <= width).all()
        assert set(flipped.tolist()) <= {0, 1}
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    assert view.render(image, view.draw(seeds, *sizes)[0]).shape == (1, rows, columns)


def test_crops_are_those_of_random_resized_crop():
    """Area and aspect are distributed as torchvision's, which MAE uses."""
    from torchvision.transforms import RandomResizedCrop

    view, n = View((64, 64)), 3000
    sizes = torch.full((n,), 300), torch.full((n,), 400)
    drawn = view.draw(sample_seeds(1, 0, torch.arange(n)), *sizes).double()
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(torch.empty(1, 300, 400), [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    theirs = torch.tensor(theirs, dtype=torch.float64)
    quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    for name, of in (
        ("top", lambda box: box[:, 0]),
        ("left", lambda box: box[:, 1]),
        ("area", lambda box: box[:, 2] * box[:, 3]),
        ("aspect", lambda box: box[:, 3] / box[:, 2]),
    ):
        a, b = of(drawn), of(theirs)
        spread = b.quantile(0.95) - b.quantile(0.05)
        assert ((a.quantile(quantiles) - b.quantile(quantiles)).abs() < 0.1 * spread).all(), name
    assert 0.46 < drawn[:, 4].mean() < 0.54


def test_a_view_without_crop_is_the_largest_centred_box():
    image = torch.arange(4 * 8).reshape(1, 4, 8).to(torch.uint8)
    view = View((4, 4), crop_scale=None, flip=0)
    drawn = view.draw(torch.zeros(1, dtype=torch.int64), torch.tensor([4]), torch.tensor([8]))
    assert torch.equal(view.render(image, drawn[0]), image[:, :, 2:6])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve grey images whose value says which they are; number 5 is broken."""
    folder, rows = tmp_path_factory.mktemp("images"), []
    for i in range(12):
        file = io.BytesIO()
        Image.fromarray(np.full((9, 9), 20 * i, dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue() if i != 5 else b"\x89PNG broken", "label": f"c{i % 3}"})
    pd.DataFrame(rows).to_parquet(folder / "table.parquet")
    return open_source(folder / "table.parquet")


def values(batch):
    return (GREY.denormalise(batch.views[0])[:, 0, 0, 0] * 255 / 20).round().long().tolist()


def test_batches_are_the_same_from_any_step_and_with_any_workers(table):
    told = []
    views = (View((8, 8)), View((4, 4), crop_scale=(0.05, 0.4)))
    loader = Loader(table, GREY, views, 4, seed=3, unreadable=lambda *why: told.append(why))
    stream = loader()
    first = [next(stream) for _ in range(8)]
    for start, workers in ((0, 1), (5, 0)):
        again = Loader(table, GREY, views, 4, seed=3, workers=workers)(start)
        for batch in first[start:]:
            other = next(again)
            assert torch.equal(batch.index, other.index) and torch.equal(batch.seed, other.seed)
            assert all(torch.equal(a, b) for a, b in zip(batch.views, other.views, strict=True))
    for batch in first:
        assert values(batch) == batch.index.tolist()
        assert batch.views[0].shape == (4, 1, 8, 8) and batch.views[1].shape == (4, 1, 4, 4)
    epoch = torch.cat([batch.index for batch in first[:3]]).tolist()
    assert sorted(epoch) == sorted([0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11])  # 5 was replaced by 6
    assert len({*torch.cat([batch.seed for batch in first]).tolist()}) == 32
    assert told and told[0][0] == table.table["path"][5]


def test_one_pass_in_order_leaves_out_what_cannot_be_read(table):
    batches = list(Loader(table, GREY, (View((8, 8), crop_scale=None),), 5).once())
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_large_photographs_are_decoded_at_a_fraction_and_give_the_same_picture(tmp_path):
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(128, 60, (4, 3, 12, 16))).float()
    smooth = torch.nn.functional.interpolate(coarse, (600, 800), mode="bicubic").clamp(0, 255).byte()
    for i, picture in enumerate(smooth):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.jpg", quality=95)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    source, colour = open_source(tmp_path), Preprocess(3, (0.5,) * 3, (0.25,) * 3)
    views = (View((48, 48)), View((32, 32), crop_scale=(0.3, 0.6)))
    decoded = []
    shrunk = Source.shrunk

    def noted(self, i, most):
        found = shrunk(self, i, most)
        decoded.append(found.factor)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "shrunk", noted)
        batch = next(Loader(source.subset(range(0, 8, 2)), colour, views, 4)())
        wanted = next(Loader(source.subset(range(1, 8, 2)), colour, views, 4)())
    assert set(decoded[:4]) <= {2, 4} and set(decoded[4:]) == {1}  # JPEG, PNG
    for one, other in zip(batch.views, wanted.views, strict=True):
        off = (one - other).abs() * 0.25 * 255
        assert off.mean() < 3 and off.max() < 40  # half a pixel of the smaller image is what a box may be off
    again = next(Loader(source.subset(range(0, 8, 2)), colour, views, 4, workers=1)())
    assert all(torch.equal(a, b) for a, b in zip(batch.views, again.views, strict=True))


def test_a_source_of_broken_images_is_refused(tmp_path):
    pd.DataFrame({"image": [b"x", b"y"]}).to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(BadInput, match="no image can be read"):
        next(Loader(open_source(tmp_path / "broken.parquet"), GREY, (View((8, 8)),), 2)())


def test_what_is_held_is_seen_as_what_workers_read(table):
    """The same samples and seeds, and the same views within 2 of 255 levels."""
    views = (View((8, 8)), View((12, 6), crop_scale=(0.05, 0.4)))
    told = []
    held = Loader(table, GREY, views, 4, seed=3, hold=True, workers=1, unreadable=lambda *why: told.append(why))(2)
    read = Loader(table, GREY, views, 4, seed=3)(2)
    for _ in range(6):
        ours, theirs = next(held), next(read)
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.seed, theirs.seed)
        for a, b in zip(ours.views, theirs.views, strict=True):
            assert (a - b).abs().max() * GREY.std[0] * 255 <= 2.01
    assert [path for path, _ in told] == [table.table["path"][5]]


def test_images_of_several_sizes_are_not_held(tmp_path):
    for side in (9, 12):
        Image.new("L", (side, side)).save(tmp_path / f"{side}.png")
    with pytest.raises(BadInput, match="several sizes"):
        next(Loader(open_source(tmp_path), GREY, (View((8, 8)),), 2, hold=True)())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_a_batch_is_rendered_as_each_of_its_images(height, width, rows, columns, seed):
    images = torch.randint(
        0, 256, (6, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    view = View((rows, columns), crop_scale=(0.1, 1.0))
    drawn = view.draw(sample_seeds(seed, 0, torch.arange(6)), torch.full((6,), height), torch.full((6,), width))
    for pixels, most in ((images, 2), (images.float() / 255, 1e-4)):
        each = torch.stack([view.render(image, row) for image, row in zip(pixels, drawn, strict=True)])
        together = view.render_batch(pixels, drawn)
        assert together.dtype == pixels.dtype
        assert (together.double() - each.double()).abs().max() <= most


def test_several_parts_make_the_batch(table):
    whole = Loader(table, GREY, (View((8, 8)),), 4, seed=3)()
    parts = [Loader(table, GREY, (View((8, 8)),), 4, seed=3, part=part, parts=2)() for part in range(2)]
    for _ in range(4):
        batch, halves = next(whole), [next(part) for part in parts]
        assert torch.equal(batch.views[0], torch.cat([half.views[0] for half in halves]))
        assert torch.equal(batch.seed, torch.cat([half.seed for half in halves]))


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")
def test_a_worker_ends_where_its_parent_is_gone_before_it_began():
    for parent, code in ((os.getpid(), 0), (os.getpid() + 1, 1)):
        worker = multiprocessing.Process(target=_begin_worker, args=(parent, 0))
        worker.start()
        worker.join()
        assert worker.exitcode == code
