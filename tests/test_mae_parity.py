"""Our ViT and MAE compute the numbers of other people's: timm, Hugging Face, lightly."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import timm
import torch
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.utils import get_at_index, set_at_index
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from unmask.layers import patchify, sincos_positions, take
from unmask.methods.mae import MAE, Settings
from unmask.models import interop
from unmask.models.vit import ViT

SHAPE = {"image_size": (32, 32), "patch_size": 8, "width": 48, "depth": 3, "heads": 3}
DECODER = {"decoder_width": 64, "decoder_depth": 2}


def random_mae(**options) -> MAE:
    torch.manual_seed(0)
    encoder = ViT(**SHAPE, positions="sincos")
    return randomised(MAE(encoder, Settings(**{**DECODER, "mask_ratio": 0.75, **options})))


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def huggingface() -> ViTMAEForPreTraining:
    """Hugging Face's MAE with the weights of `random_mae`. It reads norm_pix_loss and mask_ratio as it runs."""
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        layer_norm_eps=1e-6,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
    )
    weights = interop.to_huggingface_mae(random_mae().state_dict(), 8)
    model, told = ViTMAEForPreTraining.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert not any(told.values()), told
    return model.eval()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
def test_mae_is_that_of_hugging_face(huggingface, norm_pix, mask_ratio):
    ours = random_mae(norm_pix=norm_pix, mask_ratio=mask_ratio)
    theirs = huggingface
    theirs.config.norm_pix_loss, theirs.config.mask_ratio = norm_pix, mask_ratio
    images, noise = pictures(3, 3, 32, 32), torch.rand(3, 16)
    with torch.no_grad():
        expected = theirs(images, noise=noise)

    order = noise.argsort(dim=1)
    visible = int(16 * (1 - mask_ratio))
    keep, masked = order[:, :visible], order[:, visible:]
    assert torch.equal(torch.zeros(3, 16).scatter(1, masked, 1.0), expected.mask)
    with torch.no_grad():
        assert difference(ours.loss(images, keep, masked)["loss"], expected.loss) < 1e-5
        assert difference(ours.decode(images, keep, masked, everywhere=False), take(expected.logits, masked)) < 1e-5
        assert difference(ours.decode(images, keep, masked, everywhere=True), take(expected.logits, order)) < 1e-5
        if not norm_pix:
            painted = take(patchify(ours.reconstruct(images, keep), 8), masked)
            assert difference(painted, take(patchify(theirs.unpatchify(expected.logits), 8), masked)) < 1e-5


@pytest.mark.parametrize("norm_pix", [True, False])
def test_gradients_are_those_of_hugging_face(huggingface, norm_pix):
    ours, theirs = random_mae(norm_pix=norm_pix), huggingface
    theirs.config.norm_pix_loss, theirs.config.mask_ratio = norm_pix, 0.75
    theirs.zero_grad()
    images, noise = pictures(3, 3, 32, 32), torch.rand(3, 16)
    order = noise.argsort(dim=1)
    ours.loss(images, order[:, :4], order[:, 4:])["loss"].backward()
    theirs(images, noise=noise).loss.backward()
    # positions are fixed in ours, and have no gradient, but a place in the maps
    gradients = {key: torch.zeros_like(p) if "pos" in key else p.grad for key, p in theirs.named_parameters()}
    expected = interop.from_mae(interop.from_huggingface(gradients))
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        assert difference(parameter.grad, expected[key]) < 1e-5, key


def test_loss_on_all_patches_counts_all(huggingface):
    ours, theirs = random_mae(loss_on="all", norm_pix=False), huggingface
    theirs.config.mask_ratio = 0.75
    images, noise = pictures(3, 3, 32, 32), torch.rand(3, 16)
    order = noise.argsort(dim=1)
    with torch.no_grad():
        expected = (theirs(images, noise=noise).logits - patchify(images, 8)).square().mean()
        assert difference(ours.loss(images, order[:, :4], order[:, 4:])["loss"], expected) < 1e-5


def test_normalised_reconstruction_shows_the_visible_patches_as_a_perfect_model_would():
    """A model that predicts its targets gets every visible patch back, and hidden ones with borrowed statistics."""
    ours = random_mae(norm_pix=True, loss_on="all")
    images, order = pictures(2, 3, 32, 32), torch.stack([torch.randperm(16), torch.randperm(16)])
    keep = order[:, :4]
    target = ours.targets(patchify(images, 8))
    ours.decode = lambda images, keep, masked, everywhere: take(target, torch.cat([keep, masked], dim=1))
    painted = patchify(ours.reconstruct(images, keep), 8)
    assert difference(take(painted, keep), take(patchify(images, 8), keep)) < 1e-4
    assert painted.mean(-1).max() <= take(patchify(images, 8), keep).mean(-1).max() + 1e-5


def test_sincos_positions_are_those_of_hugging_face():
    for rows, columns, width in ((14, 14, 192), (5, 3, 32)):
        theirs = build_2d_sinusoidal_position_embedding(rows, columns, width)
        theirs = torch.cat([theirs[:, width // 2 :], theirs[:, : width // 2]], dim=1)  # as its ViTMAE rotates them
        assert difference(sincos_positions(width, (rows, columns)), theirs) < 1e-6


TIMM = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"pool": "class"}, {"global_pool": "token"}),
        ({"pool": "mean"}, {"global_pool": "avg", "fc_norm": False}),
        ({"pool": "mean-then-norm"}, {"global_pool": "avg"}),
        ({"pool": "mean", "class_token": False}, {"global_pool": "avg", "fc_norm": False, "class_token": False}),
        ({"layer_scale": 0.1, "channels": 5, "mlp_ratio": 2.0}, {"init_values": 0.1, "in_chans": 5, "mlp_ratio": 2.0}),
        ({"positions": "sincos"}, {}),
    ],
)
def test_vit_is_that_of_timm(ours, theirs):
    torch.manual_seed(0)
    vit = randomised(ViT(**{**SHAPE, "image_size": (32, 48), **ours}))
    reference = VisionTransformer(**{**TIMM, **theirs})
    reference.load_state_dict(interop.to_timm(vit), strict=True)
    reference.eval()
    images = pictures(2, vit.channels, 32, 48)
    with torch.no_grad():
        features = vit.forward_features(images)
        tokens, blocks = reference.forward_intermediates(
            images, return_prefix_tokens=vit.prefix > 0, output_fmt="NLC", norm=False
        )  # tokens as forward_features gives them: normalised, unless that is left to fc_norm
        assert difference(vit(images), reference(images)) < 1e-5
    assert difference(features.tokens, tokens) < 1e-5
    assert len(blocks) == len(features.blocks) == 3
    for mine, block in zip(features.blocks, blocks, strict=True):
        if vit.prefix:
            block = torch.cat([block[1], block[0]], dim=1)
        assert difference(mine, block) < 1e-5


@pytest.mark.parametrize(("pool", "theirs"), [("class", "token"), ("mean-then-norm", "avg")])
def test_named_models_of_timm_take_our_weights(pool, theirs):
    torch.manual_seed(0)
    vit = ViT((32, 32), 16, width=192, depth=12, heads=3, pool=pool)
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, global_pool=theirs)
    reference.load_state_dict(interop.to_timm(vit), strict=True)
    images = pictures(1, 3, 32, 32)
    with torch.no_grad():
        assert difference(vit.eval()(images), reference.eval()(images)) < 1e-5


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_vit_is_that_of_hugging_face(tmp_path, size):
    torch.manual_seed(0)
    vit = randomised(ViT(**{**SHAPE, "image_size": size, "norm_eps": 1e-5}))
    interop.to_huggingface(vit, tmp_path)
    reference, told = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(told.values()), told
    images = pictures(2, 3, *size)
    with torch.no_grad():
        out = reference.eval()(images, output_hidden_states=True)
        features = vit.forward_features(images)
    assert difference(features.tokens, out.last_hidden_state) < 1e-5
    assert difference(vit(images), out.last_hidden_state[:, 0]) < 1e-5
    for mine, theirs in zip(features.blocks[:-1], out.hidden_states[1:], strict=False):
        assert difference(mine, theirs) < 1e-5


def test_mae_is_that_of_lightly():
    """lightly builds MAE from a timm encoder and a decoder of timm blocks."""
    ours = random_mae()
    weights = interop.to_mae(ours.state_dict(), 8)
    vit = VisionTransformer(**{**TIMM, "img_size": 32})
    backbone = MaskedVisionTransformerTIMM(vit=vit, mask_token=torch.nn.Parameter(torch.zeros(1, 1, 48))).eval()
    vit.load_state_dict({key: value for key, value in weights.items() if not interop.of_decoder(key)})
    decoder = MAEDecoderTIMM(
        in_chans=3,
        num_patches=16,
        patch_size=8,
        embed_dim=48,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=2,
        mlp_ratio=4.0,
    ).eval()
    decoder.load_state_dict({key: value for key, value in weights.items() if interop.of_decoder(key)})

    images, order = pictures(3, 3, 32, 32), torch.rand(3, 16).argsort(dim=1)
    keep, masked = order[:, :4], order[:, 4:]
    seen = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)  # its indices count the class token
    with torch.no_grad():  # as in lightly's examples/pytorch/mae.py
        encoded = decoder.embed(backbone.encode(images, idx_keep=seen))
        tokens = set_at_index(decoder.mask_token.repeat(3, 17, 1), seen, encoded)
        expected = decoder.predict(get_at_index(decoder.decode(tokens), masked + 1))
        assert difference(ours.decode(images, keep, masked, everywhere=False), expected) < 1e-5
