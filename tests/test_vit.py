"""The encoder: on all patches or on some, of any grid, channel count, position and pooling."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask import models
from unmask.errors import BadInput
from unmask.layers import Attention, Block, DropPath, patchify, resample_positions, sincos_positions, take, unpatchify
from unmask.models.vit import ViT

KINDS = list(
    itertools.product(
        ("learned", "sincos", "relative"), ((True, "class"), (True, "mean"), (True, "class+mean"), (False, "mean"))
    )
)


def small(image_size=(32, 48), **options) -> ViT:
    """A ViT of 2 blocks with every parameter random, so that none hides another."""
    torch.manual_seed(0)
    vit = ViT(image_size, **{"patch_size": 8, "width": 32, "depth": 2, "heads": 4, **options})
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit.eval()


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch_size=st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_unpatchify_is_the_inverse_of_patchify(batch, channels, rows, columns, patch_size):
    images = pictures(batch, channels, rows * patch_size, columns * patch_size)
    patches = patchify(images, patch_size)
    assert patches.shape == (batch, rows * columns, patch_size**2 * channels)
    assert torch.equal(unpatchify(patches, (rows * patch_size, columns * patch_size), patch_size), images)
    corner = images[0, :, (rows - 1) * patch_size :, (columns - 1) * patch_size :]
    assert torch.equal(patches[0, -1], corner.permute(1, 2, 0).flatten())  # by row, column, channel


@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_keeping_all_patches_changes_nothing(positions, kind):
    vit = small(positions=positions, class_token=kind[0], pool=kind[1])
    images = pictures(2, 3, 32, 48)
    everything = torch.stack([torch.arange(24), torch.randperm(24)])
    close(vit(images), vit(images, keep=everything))


@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_a_kept_subset_is_all_that_is_seen(positions, kind):
    vit = small(positions=positions, class_token=kind[0], pool=kind[1])
    images = pictures(2, 3, 32, 48)
    keep = torch.stack([torch.randperm(24)[:7] for _ in images])
    hidden = torch.ones(2, 24, dtype=torch.bool).scatter(1, keep, False)
    patches = patchify(images, 8)
    patches[hidden] = 1e3
    elsewhere = unpatchify(patches, (32, 48), 8)
    assert torch.equal(vit(images, keep=keep), vit(elsewhere, keep=keep))
    order = torch.randperm(7)
    close(vit(images, keep=keep), vit(images, keep=keep[:, order]))
    tokens, permuted = vit.forward_features(images, keep).tokens, vit.forward_features(images, keep[:, order]).tokens
    close(tokens[:, vit.prefix :][:, order], permuted[:, vit.prefix :])
    # the same from the full embedding, gathered afterwards
    full = vit.embed(images)
    gathered = torch.cat([full[:, : vit.prefix], take(full[:, vit.prefix :], keep)], dim=1)
    close(vit.encode(gathered, vit.offsets((32, 48), keep)), tokens)


def test_pooling_is_of_normalised_tokens():
    images = pictures(2, 3, 32, 48)
    for pool, where in (("class", slice(0, 1)), ("mean", slice(1, None))):
        vit = small(pool=pool)
        features = vit.forward_features(images)
        close(vit(images), features.tokens[:, where].mean(dim=1))
        close(features.tokens, vit.norm(features.blocks[-1]))
        assert vit(images).shape == (2, 32)
        assert features.tokens.shape == (2, 25, 32)
    after = small(pool="mean-then-norm")  # normalised tokens would be another function
    features = after.forward_features(images)
    close(after(images), after.norm(features.blocks[-1][:, 1:].mean(dim=1)))
    assert (after(images) - small(pool="mean")(images)).abs().max() > 1e-3
    close(features.tokens, features.blocks[-1])
    close(after.encode(after.embed(images)), features.tokens)
    both = small(pool="class+mean")
    tokens = both.forward_features(images).tokens
    close(both(images), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
    for pool in ("class", "class+mean"):
        with pytest.raises(ValueError, match="class_token"):
            small(class_token=False, pool=pool)


def test_any_shape_and_channel_count():
    assert small((160, 224), patch_size=16, channels=5)(pictures(1, 5, 160, 224)).shape == (1, 32)
    grey = small((160, 224), patch_size=32, channels=1, pool="mean", class_token=False)
    assert grey(pictures(2, 1, 160, 224)).shape == (2, 32)
    assert models.build("vit-tiny/32", image_size=(160, 224), channels=5)(pictures(1, 5, 160, 224)).shape == (1, 192)


def test_positions_know_rows_from_columns():
    for positions in ("learned", "sincos", "relative"):
        vit = small((16, 32), positions=positions)
        images = pictures(1, 3, 16, 32)
        swapped = unpatchify(patchify(images, 8).flip(1), (16, 32), 8)
        assert (vit(images) - vit(swapped)).abs().max() > 1e-3
    table = sincos_positions(32, (3, 5)).view(3, 5, 32)
    close(table[:, :, :16], table[:1, :, :16].expand(3, 5, 16))  # the first half tells the column
    close(table[:, :, 16:], table[:, :1, 16:].expand(3, 5, 16))  # the second the row


def test_positions_are_resampled_for_another_grid():
    vit = small((32, 32))
    assert vit(pictures(1, 3, 48, 24)).shape == (1, 32)
    assert torch.equal(vit.positions_for((32, 32)), vit.positions)
    assert vit.positions_for((48, 24)).shape == (18, 32)
    ramp = torch.arange(4.0).repeat_interleave(4)[:, None].expand(16, 3)  # the row's number
    finer = resample_positions(ramp, (4, 4), (8, 8)).view(8, 8, 3)
    close(finer, finer[:, :1].expand_as(finer))
    assert (finer[1:, 0, 0] > finer[:-1, 0, 0]).all()
    close(finer.mean(), ramp.mean(), 1e-4)


@pytest.mark.parametrize(("positions", "kind"), KINDS)
def test_every_parameter_gets_a_gradient(positions, kind):
    vit = small(positions=positions, class_token=kind[0], pool=kind[1], layer_scale=0.1, drop_path=0.1).train()
    (vit(pictures(8, 3, 32, 48)) ** 2).sum().backward()
    silent = [name for name, parameter in vit.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []
    assert ("positions" in dict(vit.named_parameters())) == (positions == "learned")


def test_attention_maps_are_those_of_the_block():
    vit = small()
    features = vit.forward_features(pictures(2, 3, 32, 48), attention=True)
    assert features.attention[0].shape == (2, 4, 25, 25)
    close(features.attention[1].sum(dim=-1), torch.ones(2, 4, 25))
    block, before = vit.blocks[1], features.blocks[0]
    value = block.attention.qkv(block.norm1(before)).chunk(3, dim=-1)[2]
    value = value.unflatten(-1, (4, 8)).transpose(1, 2)  # (B, heads, T, D / heads)
    attended = (features.attention[1] @ value).transpose(1, 2).flatten(2)
    x = before + block.attention.projection(attended)
    close(x + block.mlp(block.norm2(x)), features.blocks[1])


def test_forward_features_agree_with_forward():
    vit, images, keep = small(), pictures(2, 3, 32, 48), torch.tensor([[3, 9], [0, 23]])
    close(vit.pooled(vit.forward_features(images, keep).tokens), vit(images, keep))
    features = vit.forward_features(images)
    assert len(features.blocks) == 2
    assert features.attention == ()
    close(vit.blocks[1](features.blocks[0]), features.blocks[1])


def test_some_queries_are_a_part_of_all():
    torch.manual_seed(0)
    attention, block, x = Attention(32, 4), Block(32, 4, layer_scale=0.5), torch.randn(2, 9, 32)
    for queries in (slice(0, 1), slice(-4, None), slice(-9, None)):
        close(attention(x, queries), attention(x)[:, queries])
        close(block(x, queries), block(x)[:, queries])


@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_attention_without_gradients_is_the_same(positions):
    vit, images = small(positions=positions), pictures(2, 3, 32, 48)
    with torch.no_grad():
        frozen = vit(images)
    close(frozen, vit(images))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(20000, 2, 2)
    y = drop(x)
    each = y.flatten(1)
    assert torch.equal(each, each[:, :1].expand_as(each))
    kept = (each[:, 0] != 0).float().mean().item()
    assert abs(kept - 0.7) < 0.015  # 4.6 standard deviations
    close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))
    assert torch.equal(drop.eval()(x), x)
    assert [block.drop_path.rate for block in small(depth=3, drop_path=0.2).blocks] == pytest.approx([0, 0.1, 0.2])


def test_layer_scale():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    assert torch.equal(Block(32, 4, layer_scale=0.0)(x), x)
    plain, scaled = Block(32, 4), Block(32, 4, layer_scale=1.0)
    scaled.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain(x), scaled(x))
    assert [name for name, _ in plain.named_parameters() if "scale" in name] == []


# Dosovitskiy et al. 2021, table 1 and Touvron et al. 2021, table 1, without the classifier
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit-tiny/16", 5.5),
        ("vit-small/16", 21.7),
        ("vit-base/16", 85.8),
        ("vit-large/16", 303.3),
        ("vit-huge/14", 630.8),
    ],
)
def test_sizes_are_the_published_ones(name, millions):
    with torch.device("meta"):
        vit = models.build(name)
    assert sum(parameter.numel() for parameter in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", ["vit-tiny", "vit-tiny/0", "vit-giant/14", "resnet51", "vit-tiny/16/2", ""])
def test_unknown_names(name):
    with pytest.raises(BadInput, match="vit-tiny"):
        models.build(name)


@pytest.mark.parametrize(
    ("name", "size"), [("vit-tiny/16", (100, 224)), ("vit-tiny/16", (8, 8)), ("vit-tiny/300", (224, 224))]
)
def test_patches_that_do_not_fit(name, size):
    with pytest.raises(BadInput, match="image-size"):
        models.build(name, image_size=size)


def test_images_that_patches_do_not_tile():
    with pytest.raises(BadInput, match="32x48"):
        small()(pictures(1, 3, 33, 47))
    with pytest.raises(BadInput, match="heads"):
        small(heads=5)


def test_config_builds_the_same_again():
    vit = small((32, 48), channels=2, layer_scale=0.1, pool="mean", mlp_ratio=2.0, norm_eps=1e-5)
    again = ViT(**vit.config)
    assert again.config == vit.config
    again.load_state_dict(vit.state_dict())
    assert torch.equal(again.eval()(pictures(1, 2, 32, 48)), vit(pictures(1, 2, 32, 48)))


def test_bfloat16_is_close_to_float32():
    vit, images = small(), pictures(4, 3, 32, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = vit(images)
    exact = vit(images)
    assert (rough.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_bfloat16_trains_every_parameter():
    vit = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vit(pictures(2, 3, 32, 48)).float().square().sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in vit.parameters())


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit-tiny/4", {}),
        ("vit-tiny/4", {"positions": "sincos", "pool": "class+mean"}),
        ("vit-tiny/4", {"positions": "relative", "pool": "mean", "layer_scale": 0.1}),
        ("cvt-2/4-sine", {}),
        ("cct-2/3x2", {}),
        ("cct-2/3x2-sine", {}),
        ("resnet18", {}),
    ],
)
def test_an_encoder_adapted_to_another_size_computes_what_it_did(name, options):
    encoder, images = models.build(name, image_size=(32, 32), **options).eval(), torch.randn(2, 3, 48, 40)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    made = models.adapted(encoder, (48, 40), drop_path=0.2).eval()
    assert made.image_size == (48, 40) and encoder.image_size == (32, 32)
    torch.testing.assert_close(made(images), encoder(images))
    assert models.adapted(encoder, (32, 32)).config == encoder.config
