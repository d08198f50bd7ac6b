"""Where an encoder looks: the maps, what holds most of them, the main object, the command."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import unmask
from unmask import figures, models
from unmask.cli import main
from unmask.data.decode import Preprocess
from unmask.data.sources import open_source
from unmask.evaluate.attention import holding, last_attention, main_object, pooling_weights
from unmask.models import interop
from unmask.models.vit import ViT
from unmask.verbs.attend import attention_picture, pooling_picture

TINY = {"image_size": (16, 16), "patch_size": 4, "width": 32, "depth": 2, "heads": 2}


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_attention_is_the_class_tokens_over_the_patches_in_the_last_block(positions):
    torch.manual_seed(0)
    vit = ViT(**TINY, positions=positions).eval()
    for name, parameter in vit.named_parameters():
        if name.endswith("table"):
            nn.init.normal_(parameter)
    images = torch.randn(3, 3, 16, 24)
    with torch.no_grad():
        whole = vit.forward_features(images, attention=True).attention[-1][:, :, 0, 1:]
    maps = last_attention(vit, images)
    assert maps.shape == (3, 2, 4, 6)
    torch.testing.assert_close(maps.flatten(2), whole / whole.sum(-1, keepdim=True))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 2))


def test_without_a_class_token_it_is_the_mean_over_all_patches():
    torch.manual_seed(0)
    vit = ViT(**TINY, class_token=False, pool="mean").eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        whole = vit.forward_features(images, attention=True).attention[-1].mean(dim=2)
    torch.testing.assert_close(last_attention(vit, images).flatten(2), whole)


def pooling(name):
    """A compact transformer, with positions for more than one size, whose pooling is not nearly even."""
    torch.manual_seed(0)
    encoder = models.build(name, image_size=(16, 16)).eval()
    nn.init.normal_(encoder.pool.attention.weight)
    return encoder


@pytest.mark.parametrize("name", ["cct-2/3x2", "cct-2/5x1-sine", "cvt-2/4"])
def test_pooling_shows_the_tokens_that_make_the_vector(name):
    encoder, images = pooling(name), torch.randn(3, 3, 16, 24)
    weights, maps = pooling_weights(encoder, images), last_attention(encoder, images)
    grid = {"cct-2/3x2": (4, 6), "cct-2/5x1-sine": (8, 12), "cvt-2/4": (4, 6)}[name]
    assert weights.shape == (3, *grid) and maps.shape == (3, 2, *grid)
    with torch.no_grad():
        tokens = encoder.encode(encoder.embed(images))
        torch.testing.assert_close((weights.flatten(1)[:, :, None] * tokens).sum(dim=1), encoder(images))
    assert weights.flatten(1).amax(dim=1).min() > 1.5 / (grid[0] * grid[1])
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(3, 2))


def test_attention_of_a_cct_is_the_mean_over_all_tokens():
    encoder, images = pooling("cct-2/3x2"), torch.randn(2, 3, 16, 16)
    seen = []
    last = encoder.blocks[-1].attention
    last.register_forward_hook(lambda module, inputs, out: seen.append(module.maps(inputs[0])))
    with torch.no_grad():
        encoder(images)
    torch.testing.assert_close(last_attention(encoder, images).flatten(2), seen[0].mean(dim=2))


def test_the_pooling_has_a_column_of_its_own(monkeypatch):
    encoder, images = pooling("cct-2/3x2"), torch.rand(1, 3, 16, 16)
    preprocess, columns = Preprocess(3, (0.5,) * 3, (0.25,) * 3), []
    monkeypatch.setattr(figures, "reconstruction", lambda rows, headings, note: columns.append(headings))
    for draw, drawn in ((pooling_picture, encoder), (attention_picture, encoder), (attention_picture, ViT(**TINY))):
        draw(drawn, images, preprocess)
    heads = ["mean", "head 1", "head 2"]
    assert columns == [["image", "pooling"], ["image", "object", "pooling", *heads], ["image", "object", *heads]]


@given(st.integers(0, 999), st.floats(0.05, 0.95))
def test_the_kept_patches_are_those_of_the_paper(seed, mass):
    maps = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = holding(maps, mass)
    for one, mask in zip(maps.flatten(1), kept.flatten(1), strict=True):
        values, order = (one / one.sum()).sort()  # as visualize_attention.py has it
        expected = torch.zeros(20, dtype=torch.bool)
        expected[order] = values.cumsum(0) > 1 - mass
        assert torch.equal(mask, expected)
        assert one[mask].sum() >= mass * one.sum() - 1e-9


def test_the_object_is_the_largest_piece_without_its_holes():
    looks = torch.full((16, 16), 1e-6)
    looks[2:9, 2:9] = 1.0
    looks[5, 5] = 1e-6
    looks[12:14, 12:14] = 1.0
    mask = main_object(looks, (64, 64), 0.95)
    assert mask.shape == (64, 64) and mask[12:32, 12:32].all() and not mask[44:, 44:].any()
    assert 0.7 < mask.sum() / 28**2 < 1.3


@pytest.fixture
def folder(tmp_path):
    def save(encoder):
        known = {"preprocess": Preprocess(3, (0.5,) * 3, (0.25,) * 3).to_dict()}
        interop.save(encoder, tmp_path / "encoder", known)
        pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        for name in ("a.png", "b.png"):
            Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path

    return save


def attend(*arguments):
    try:
        main(["attend", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_the_command_draws_an_encoder_folder(folder, capsys):
    there = folder(ViT(**TINY))
    out = there / "new" / "looks.png"
    assert attend(there / "encoder", there / "a.png", there / "b.png", "--out", out) == 0
    assert "2 heads look in 2 images" in capsys.readouterr().out
    size = Image.open(out).size
    assert attend(there, there / "a.png", "--out", out, "--image-size", "32x48", "--mass", "0.3") == 0
    assert Image.open(out).size != size


def test_the_command_draws_a_cct_at_any_size(folder, capsys):
    there = folder(models.build("cct-2/3x2", image_size=(16, 16)))
    assert attend(there, there / "a.png", "--out", there / "looks.png", "--image-size", "30x21") == 0
    assert "2 heads look in 1 images" in capsys.readouterr().out and (there / "looks.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mass", "1.5"], "between 0 and 1"),
        (["--image-size", "30"], "do not tile"),
        (["--out", "looks.jpg"], "written as .png"),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder, arguments, says, capsys):
    there = folder(ViT(**TINY))
    out = [] if "--out" in arguments else ["--out", there / "looks.png"]
    assert attend(there, there / "a.png", *out, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error


def test_a_resnet_has_no_attention(folder, capsys):
    there = folder(models.build("resnet18", image_size=(32, 32)))
    assert attend(there, there / "a.png", "--out", there / "looks.png") == 2
    error = capsys.readouterr().err.strip()
    assert "holds no ViT" in error and "\n" not in error


@pytest.mark.parametrize("encoder", ["vit-tiny/4", "cct-2/3x2", "resnet18"])
def test_a_run_of_dino_ends_with_a_verdict_and_where_it_looks(tmp_path, encoder):
    source, run = open_source("photos"), tmp_path / "run"
    (tmp_path / "pieces").mkdir()
    for i in range(16):
        Image.fromarray(source.image(23 * i)[:, :16, :16].permute(1, 2, 0).numpy()).save(tmp_path / f"pieces/{i}.png")
    options = {"encoder": encoder, "steps": 2, "batch_size": 8, "workers": 0, "local_crops": 2, "head_width": 32}
    assert unmask.pretrain("dino", data=tmp_path / "pieces", out=run, **options)["verdict"]
    page, looks = (run / "report.html").read_text(), encoder != "resnet18"
    assert (run / "figures" / "attention.png").is_file() == ("Where it looks" in page) == looks
    assert ("What the vector is made of" in page) == (encoder == "cct-2/3x2")
    assert (attend(run, tmp_path / "pieces", "--out", tmp_path / "looks.png") == 0) == looks
