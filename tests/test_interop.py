"""Encoders in and out of every layout, and the files that are refused."""

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from unmask.errors import BadInput
from unmask.methods.mae import MAE, Settings
from unmask.models import interop
from unmask.models.vit import ViT

SHAPE = {"image_size": (16, 16), "patch_size": 8, "width": 32, "depth": 2, "heads": 2}
HUGGING_FACE = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DECODER = {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 256,
}


def small(**options) -> ViT:
    torch.manual_seed(0)
    vit = ViT(**{**SHAPE, **options})
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vit.eval()


def small_mae(**options) -> MAE:
    return MAE(small(positions="sincos"), Settings(decoder_width=64, decoder_depth=1, **options)).eval()


def pictures(vit: ViT, batch: int = 2) -> Tensor:
    return torch.randn(batch, vit.channels, *vit.image_size, generator=torch.Generator().manual_seed(1))


def same(a: ViT, b: ViT) -> None:
    images = pictures(a)
    with torch.no_grad():
        torch.testing.assert_close(a(images), b(images), rtol=0, atol=1e-6)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def official(state: dict[str, Tensor]) -> dict:
    """What the reference code's save_model writes."""
    args = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, lr=None, blr=1.5e-4, epochs=800)
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "scaler": {}, "args": args}


# Our own folders


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "sincos", "pool": "mean"},
        {"image_size": (16, 24), "channels": 5, "class_token": False, "pool": "mean", "layer_scale": 0.1},
        {"mlp_ratio": 2.5, "norm_eps": 1e-5},
    ],
)
def test_own_folder(tmp_path, options):
    vit = small(**options)
    told = {"name": "vit-tiny/8", "preprocess": {"mean": [0.5], "std": [0.25]}}
    interop.save(vit, tmp_path / "run" / "encoder", told)
    for path in (tmp_path / "run", tmp_path / "run" / "encoder"):
        again, config = interop.load(path)
        equal(again.state_dict(), vit.state_dict())
        assert config == {**told, "encoder": vit.config}
        assert not again.training
        same(again, vit)
    assert sorted(file.name for file in (tmp_path / "run" / "encoder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    interop.save(vit, tmp_path / "run" / "encoder", {})  # again, over what is there
    assert interop.load(tmp_path / "run")[1] == {"encoder": vit.config}


# timm and facebookresearch/mae


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": False, "pool": "mean"}, {"layer_scale": 0.1, "channels": 2}, {"pool": "mean-then-norm"}],
)
def test_timm_state_dict(tmp_path, suffix, options):
    vit, path = small(**options), tmp_path / f"vit{suffix}"
    state = interop.to_timm(vit) | {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    again, config = interop.load(path, heads=2)
    equal(again.state_dict(), vit.state_dict())
    same(again, vit)
    assert config["layout"] == "timm"
    begun = {"layer_scale": config["encoder"]["layer_scale"]}  # where it began is in no state dict
    assert config["encoder"] == {**vit.config, **begun}


def test_timm_facts_are_read_off_the_shapes(tmp_path):
    vit = small(image_size=(16, 40), channels=4, mlp_ratio=77 / 32, depth=3)
    torch.save(interop.to_timm(vit), tmp_path / "a.pth")
    again, _ = interop.load(tmp_path / "a.pth", image_size=(16, 40), heads=2)
    same(again, vit)
    for odd in range(1, 200):  # int(width * ratio) must give the hidden width back
        state = {**interop.to_timm(vit), "blocks.0.mlp.fc1.weight": torch.empty(odd, 32)}
        assert int(32 * interop.facts_of(state, tmp_path, (16, 40), 2, 1e-6)["mlp_ratio"]) == odd
    for width, heads in ((192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)):
        torch.save(interop.to_timm(small(width=width, depth=1, heads=heads, mlp_ratio=0.1)), tmp_path / "b.pth")
        assert interop.load(tmp_path / "b.pth")[1]["encoder"]["heads"] == heads


def test_half_precision_positions_are_known_as_fixed(tmp_path):
    vit = small(positions="sincos")
    torch.save({key: value.half() for key, value in interop.to_timm(vit).items()}, tmp_path / "a.pth")
    again, config = interop.load(tmp_path / "a.pth", heads=2)
    assert config["encoder"]["positions"] == "sincos"
    assert next(again.parameters()).dtype == torch.float32


@pytest.mark.parametrize("wrapped", [True, False])
def test_official_mae_checkpoint(tmp_path, wrapped):
    mae = small_mae()
    full = interop.to_mae(mae.state_dict(), 8)
    encoder_only = {key: value for key, value in full.items() if not interop.of_decoder(key)}
    for name, state in (("full.pth", full), ("encoder.pth", encoder_only)):
        torch.save(official(state) if wrapped else state, tmp_path / name)
        vit, config = interop.load(tmp_path / name, heads=2)
        same(vit, mae.encoder)
        assert config == {"encoder": mae.encoder.config, "layout": "timm"}  # positions are seen to be the fixed ones
    state, facts = interop.load_mae(tmp_path / "full.pth", heads=2)
    equal(state, mae.state_dict())
    assert facts == {
        "encoder": mae.encoder.config,
        "decoder_width": 64,
        "decoder_depth": 1,
        "norm_eps": 1e-6,
        "norm_pix": None,
    }
    with pytest.raises(BadInput, match="without a decoder"):
        interop.load_mae(tmp_path / "encoder.pth", heads=2)


def test_official_layout_has_the_reference_keys_and_shapes():
    state = interop.to_mae(small_mae().state_dict(), 8)
    shapes = {key: tuple(value.shape) for key, value in state.items() if "blocks" not in key}
    assert shapes == {  # facebookresearch/mae, models_mae.py
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 5, 32),
        "mask_token": (1, 1, 64),
        "decoder_pos_embed": (1, 5, 64),
        "patch_embed.proj.weight": (32, 3, 8, 8),
        "patch_embed.proj.bias": (32,),
        "norm.weight": (32,),
        "norm.bias": (32,),
        "decoder_embed.weight": (64, 32),
        "decoder_embed.bias": (64,),
        "decoder_norm.weight": (64,),
        "decoder_norm.bias": (64,),
        "decoder_pred.weight": (192, 64),
        "decoder_pred.bias": (192,),
    }
    block = {key.removeprefix("decoder_blocks.0.") for key in state if key.startswith("decoder_blocks.0.")}
    linear = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert block == {f"{name}.{part}" for name in linear for part in ("weight", "bias")}


def test_what_the_official_layout_has_no_place_for():
    with pytest.raises(BadInput, match="mask token"):
        interop.to_mae(small_mae(mask_token_in_encoder=True).state_dict(), 8)
    headless = MAE(small(positions="sincos", class_token=False, pool="mean"), Settings(decoder_width=64))
    with pytest.raises(BadInput, match="class token"):
        interop.to_mae(headless.state_dict(), 8)
    state = interop.to_mae(small_mae().state_dict(), 8)
    state["decoder_pos_embed"] = state["decoder_pos_embed"] + 1
    with pytest.raises(BadInput, match="position"):
        interop.from_mae(state)


def test_a_fine_tuned_mae_is_read_with_the_norm_behind_the_mean(tmp_path):
    """As its code saves it with global_pool: fc_norm instead of norm, and a classifier."""
    vit = small(pool="mean-then-norm")
    state = interop.to_timm(vit) | {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    assert "norm.weight" not in state and torch.equal(state["fc_norm.weight"], vit.norm.weight)
    torch.save(official(state), tmp_path / "tuned.pth")
    again, config = interop.load(tmp_path / "tuned.pth", heads=2)
    assert config["encoder"] == vit.config
    same(again, vit)
    with pytest.raises(BadInput, match="without a decoder"):
        interop.load_mae(tmp_path / "tuned.pth", heads=2)
    with pytest.raises(BadInput, match="norms their mean alone"):
        MAE(again)


# Hugging Face


@pytest.mark.parametrize("spelling", ["saved", "modules"])
def test_hugging_face_mae_folder(tmp_path, spelling):
    """Files as this transformers saves them, and with the names that its modules have."""
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**HUGGING_FACE, **DECODER, norm_pix_loss=True)).eval()
    theirs.save_pretrained(tmp_path)
    if spelling == "modules":
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    state, facts = interop.load_mae(tmp_path)
    assert (facts["decoder_width"], facts["decoder_depth"], facts["norm_pix"]) == (64, 1, True)
    assert facts["norm_eps"] == 1e-12
    mae = MAE(ViT(**facts["encoder"]), Settings(decoder_width=64, decoder_depth=1), facts["norm_eps"])
    mae.load_state_dict(state)
    vit, config = interop.load(tmp_path)
    assert config["layout"] == "huggingface"
    same(vit, mae.eval().encoder)
    images, noise = pictures(vit), torch.rand(2, 4)
    order = noise.argsort(dim=1)
    with torch.no_grad():
        loss = mae.loss(images, order[:, :1], order[:, 1:])["loss"]
        torch.testing.assert_close(loss, theirs(images, noise=noise).loss, rtol=0, atol=1e-5)


def test_hugging_face_mae_encoder_folder(tmp_path):
    theirs = ViTMAEModel(ViTMAEConfig(**HUGGING_FACE, mask_ratio=0.0)).eval()
    theirs.save_pretrained(tmp_path)
    vit, _ = interop.load(tmp_path)
    images = pictures(vit)
    with torch.no_grad():
        expected = theirs(images, noise=torch.arange(4.0).expand(2, 4)).last_hidden_state
        torch.testing.assert_close(vit.forward_features(images).tokens, expected, rtol=0, atol=1e-5)


def test_hugging_face_classifier_folder(tmp_path):
    theirs = ViTForImageClassification(ViTConfig(**HUGGING_FACE)).eval()
    theirs.save_pretrained(tmp_path)
    vit, _ = interop.load(tmp_path)
    images = pictures(vit)
    with torch.no_grad():
        torch.testing.assert_close(theirs.classifier(vit(images)), theirs(images).logits, rtol=0, atol=1e-5)


def test_hugging_face_folder_there_and_back(tmp_path):
    vit = small(image_size=(16, 24), norm_eps=1e-5)
    interop.to_huggingface(vit, tmp_path)
    again, config = interop.load(tmp_path)
    equal(again.state_dict(), vit.state_dict())
    assert config == {"encoder": vit.config, "layout": "huggingface"}


def test_hugging_face_layout_there_and_back():
    mae = small_mae()
    state = interop.to_huggingface_mae(mae.state_dict(), 8)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    assert "decoder.decoder_layers.0.attention.output.dense.weight" in state
    equal(interop.from_mae(interop.from_huggingface(state)), mae.state_dict())


def test_what_hugging_face_has_no_place_for(tmp_path):
    for options in ({"layer_scale": 0.1}, {"class_token": False, "pool": "mean"}, {"pool": "mean-then-norm"}):
        with pytest.raises(BadInput, match="timm"):
            interop.to_huggingface(small(**options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ONNX


@pytest.mark.parametrize(
    "options",
    [{"pool": "mean-then-norm"}, {"positions": "sincos", "pool": "mean", "image_size": (16, 24), "channels": 2}],
)
def test_onnx(tmp_path, options):
    vit = small(**options).train()
    interop.to_onnx(vit, tmp_path / "encoder.onnx")
    assert vit.training
    vit.eval()
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = pictures(vit, batch)
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(features, vit(images).numpy(), rtol=0, atol=1e-4)


def test_onnx_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BadInput, match=r"pip install 'unmask\[onnx\]'"):
        interop.to_onnx(small(), tmp_path / "encoder.onnx")


# Refused


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = interop.to_timm(small())
    for number, content in enumerate((Bomb(), {"model": state, "args": Bomb()}, {"model": state, "f": Bomb})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(BadInput, match=r"holds code \(.+\), which is never run"):
            interop.load(tmp_path / f"{number}.pth")
    assert not (tmp_path / "exploded").exists()


def refused(path, match, **options):
    with pytest.raises(BadInput, match=match) as caught:
        interop.load(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=64), st.sampled_from(["any.pth", "any.safetensors"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with pytest.raises(BadInput):
        interop.load(path)


def test_files_that_are_no_encoder(tmp_path):
    refused(tmp_path / "nowhere.pth", "not there")
    refused(tmp_path, "nothing and no config.json")
    for name, content in (("a.pth", b""), ("b.pth", b"hello, world"), ("c.safetensors", b"hello, world, hello")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not a checkpoint")
    torch.save(interop.to_timm(small()), tmp_path / "d.pth")
    (tmp_path / "d.pth").write_bytes((tmp_path / "d.pth").read_bytes()[:2000])
    refused(tmp_path / "d.pth", "damaged")
    torch.save([1, 2], tmp_path / "e.pth")
    refused(tmp_path / "e.pth", "list")
    torch.save({"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)}, tmp_path / "f.pth")
    refused(tmp_path / "f.pth", "conv1.weight, bn1.weight.*timm")
    torch.save(small().state_dict(), tmp_path / "g.pth")
    refused(tmp_path / "g.pth", "give the folder")
    torch.save(interop.timm_to_huggingface(interop.to_timm(small())), tmp_path / "h.pth")
    refused(tmp_path / "h.pth", "give the folder")


def test_state_dicts_that_compute_something_else(tmp_path):
    state, path = interop.to_timm(small()), tmp_path / "a.pth"
    changes = [
        ({"fc_norm.weight": torch.ones(32)}, "a norm before and after the mean"),
        ({"reg_token": torch.zeros(1, 4, 32)}, "also has reg_token"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(16)}, "also has blocks.1.attn.q_norm.weight"),
        ({"norm.weight": None}, "lacks norm.weight"),
        ({"blocks.1.norm1.weight": torch.ones(31)}, "blocks.1.norm1.weight is"),
        ({"pos_embed": torch.zeros(1, 7, 32)}, "6 patches.*image_size"),
        ({"pos_embed": torch.zeros(1, 5, 31)}, "positions is"),
        ({"patch_embed.proj.weight": torch.zeros(32, 3, 8, 4)}, r"\(3, 8, 4\)"),
    ]
    for change, match in changes:
        torch.save({key: value for key, value in (state | change).items() if value is not None}, path)
        refused(path, match, heads=2)
    torch.save(state, path)
    refused(path, "heads=")
    refused(path, "image of 16x24", heads=2, image_size=(16, 24))


def test_folders_that_are_no_encoder(tmp_path):
    for content, match in (("{", "not the JSON"), ("[]", "not the JSON"), ('{"model_type": "bert"}', "'bert'")):
        (tmp_path / "config.json").write_text(content)
        refused(tmp_path, match)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_act": "quick_gelu"}')
    refused(tmp_path, "quick_gelu")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    refused(tmp_path, "neither")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(tmp_path, "lacks blocks.0")
    interop.save(small(), tmp_path, {})
    refused(tmp_path, "itself", heads=2)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (({"depth": 3}, "lacks blocks.2"), ({"rings": 4}, "describes no encoder")):
        changed = {**config, "encoder": {**config["encoder"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        refused(tmp_path, match)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="not there"):
        interop.load(tmp_path)
