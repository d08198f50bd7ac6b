"""Encoders as backbones: windows, pyramids, agreement with Hugging Face's ViTDet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unmask import models
from unmask.errors import BadInput
from unmask.layers import Windows
from unmask.models.pyramid import STRIDES, Pyramid


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_are_cut_and_joined_again(rows, columns, side):
    windows = Windows((rows, columns), side)
    x = torch.arange(1.0, 2 * rows * columns * 3 + 1).view(2, rows * columns, 3)
    cut = windows.cut(x)
    down, right = windows.counts
    assert cut.shape == (2 * down * right, side * side, 3)
    assert torch.equal(windows.join(cut), x)
    # the first window holds the first rows and columns, and zeros where the grid ends
    first = torch.zeros(side, side, 3)
    there = x[0].view(rows, columns, 3)[:side, :side]
    first[: there.shape[0], : there.shape[1]] = there
    assert torch.equal(cut[0], first.view(-1, 3))


def small(**options):
    torch.manual_seed(0)
    return models.ViT((64, 96), 16, 3, 64, 4, 2, **{"positions": "sincos", **options})


@pytest.mark.parametrize("way", ["simple", "subsets"])
@pytest.mark.parametrize("window", [None, 3, 50])
def test_maps_have_their_strides_and_everything_that_learns_gets_a_gradient(way, window):
    pyramid = Pyramid(small(positions="learned"), way, 32, window)
    maps = pyramid(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 32, 64 // s, 96 // s) for s in STRIDES]
    sum(x.square().mean() for x in maps).backward()
    missing = [name for name, p in pyramid.named_parameters() if p.requires_grad and p.grad is None]
    dead = [name for name, p in pyramid.named_parameters() if p.grad is not None and not p.grad.abs().sum()]
    assert not missing and not [name for name in dead if "qkv.bias" not in name]


def test_windows_confine_what_a_patch_sees_but_for_the_global_blocks():
    torch.manual_seed(0)
    encoder = models.ViT((64, 64), 8, 3, 64, 8, 2, positions="sincos")  # blocks 2, 4, 6, 8 attend everywhere
    pyramid = Pyramid(encoder, "simple", 32, window=4).eval()
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    tokens = encoder.embed(images)[:, 1:]
    windows = Windows((8, 8), 4)
    after = encoder.blocks[0](tokens, windows=windows)
    (seen,) = torch.autograd.grad(after[0, 0].sum(), images)
    assert seen[..., :32, :32].abs().sum() > 0 and not seen[..., 32:, :].any() and not seen[..., :, 32:].any()
    (seen,) = torch.autograd.grad(pyramid(images)[2][0, 0, 0, 0], images)
    assert seen[..., 32:, 32:].abs().sum() > 0


@pytest.mark.parametrize("window", [2, 3])
def test_relative_positions_know_the_same_offsets_in_a_window(window):
    """One block whose window is as large as the grid is one that attends everywhere."""
    encoder = small(positions="relative", class_token=False, pool="mean", layer_scale=None)
    for block in encoder.blocks:
        nn.init.normal_(block.attention.bias.table)
    pyramid = Pyramid(encoder, "simple", 32, window)
    tokens = encoder.embed(torch.randn(1, 3, 64, 96))
    part = pyramid.within((4, 6))
    whole = encoder.offsets((64, 96))
    bias, everywhere = encoder.blocks[0].attention.bias(part), encoder.blocks[0].attention.bias(whole)
    patches = (torch.arange(window)[:, None] * 6 + torch.arange(window)).flatten()
    torch.testing.assert_close(bias, everywhere[:, :, patches][..., patches])
    assert tokens.shape[1] == 24


def test_blocks_agree_with_hugging_face_vitdet():
    """Windows, global blocks and padding, on shared weights: the maps that the pyramid begins from."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VitDetConfig(
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=2,
        mlp_ratio=4,
        image_size=80,
        pretrain_image_size=80,
        patch_size=8,
        window_size=4,
        window_block_indices=[0, 2, 4, 6],
        use_relative_position_embeddings=False,
        use_absolute_position_embeddings=True,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
    )
    theirs = transformers.VitDetBackbone(config).eval()
    nn.init.normal_(theirs.embeddings.position_embeddings, std=0.5)
    ours = models.ViT((80, 80), 8, 3, 64, 8, 2, positions="learned")
    with torch.no_grad():
        embedding = theirs.embeddings
        ours.patch_embedding.weight.copy_(embedding.projection.weight.permute(0, 2, 3, 1).flatten(1))
        ours.patch_embedding.bias.copy_(embedding.projection.bias)
        ours.positions.copy_(embedding.position_embeddings[0, 1:])
        for block, other in zip(ours.blocks, theirs.encoder.layer, strict=True):
            pairs = (
                (block.norm1, other.norm1),
                (block.norm2, other.norm2),
                (block.attention.qkv, other.attention.qkv),
                (block.attention.projection, other.attention.proj),
                (block.mlp.up, other.mlp.fc1),
                (block.mlp.down, other.mlp.fc2),
            )
            for mine, its in pairs:
                mine.weight.copy_(its.weight)
                mine.bias.copy_(its.bias)
        images = torch.randn(2, 3, 80, 80)
        expected = theirs(images).feature_maps[-1]
        pyramid = Pyramid(ours, "simple", 32, window=4).eval()
        torch.testing.assert_close(pyramid.transformed(images)[-1], expected, atol=2e-5, rtol=1e-4)
        free = Pyramid(ours, "simple", 32, window=None).eval()
        assert (free.transformed(images)[-1] - expected).abs().max() > 1e-2


def test_an_fpn_on_the_stages_of_a_resnet():
    torch.manual_seed(0)
    pyramid = Pyramid(models.build("resnet18", image_size=(96, 128)), "fpn", 16)
    maps = pyramid(torch.randn(2, 3, 96, 128))
    assert pyramid.strides == STRIDES and [tuple(x.shape) for x in maps] == [
        (2, 16, 96 // s, 128 // s) for s in STRIDES
    ]
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None for p in pyramid.parameters() if p.requires_grad)
    assert Pyramid(models.build("resnet18", image_size=(240, 320)), "fpn", 16).strides == STRIDES  # 240 is 7.5 times 32


def test_what_gives_no_pyramid_is_told():
    with pytest.raises(BadInput, match="not for resnet18"):
        Pyramid(models.build("resnet18", image_size=(96, 96)), "simple")
    with pytest.raises(BadInput, match="not for ViT"):
        Pyramid(small(), "fpn")
    with pytest.raises(BadInput, match="four equal"):
        Pyramid(models.ViT((56, 56), 14, 3, 64, 4, 2), "simple")
    with pytest.raises(BadInput, match="four stages"):
        Pyramid(models.build("vit_tiny_patch16_224", image_size=(224, 224)), "fpn")
