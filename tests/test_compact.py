"""Compact transformers: as published, as vit-pytorch has them, and in the hands of the methods."""

import dataclasses
import io

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vit_pytorch.cct import CCT as Reference
from vit_pytorch.cct import TransformerClassifier

import unmask
from unmask import models
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.layers import drop, sine_positions
from unmask.methods import METHODS
from unmask.models import interop
from unmask.models.compact import SIZES
from unmask.models.dvae import TokenEncoder, Tokenizer
from unmask.training.engine import fit
from unmask.training.optim import Recipe

PUBLISHED = {
    "vit-lite-7/4": (3.717, 0.239),
    "cvt-7/4": (3.717, 0.236),
    "cct-2/3x2": (0.284, 0.033),
    "cct-4/3x2": (0.482, 0.046),
    "cct-7/3x2": (3.853, 0.275),
    "cct-7/3x1": (3.760, 0.947),
}
"""Millions of parameters and thousands of millions of multiply-adds, for 32 pixels and 10 classes."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    parameters, multiply_adds = PUBLISHED[name]
    encoder, head = models.build(name, image_size=(32, 32)).eval(), 10 * (SIZES[int(name.split("-")[-1][0])][0] + 1)
    assert round((sum(p.numel() for p in encoder.parameters()) + head) / 1e6, 3) == parameters
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.encode(encoder.embed(torch.zeros(1, 3, 32, 32)))  # all tokens: for a class token we compute fewer
    flops = {str(kind): count for kind, count in counter.get_flop_counts()["Global"].items()}
    matrices = sum(count for kind, count in flops.items() if "attention" not in kind)  # nor did they count attention
    assert matrices / 2e9 == pytest.approx(multiply_adds, abs=1e-3)  # they counted norms, a thousandth


def test_the_largest_is_the_published_one_too():
    encoder = models.build("cct-14/7x2", image_size=(224, 224))
    assert encoder.grid == (14, 14)
    assert (
        round((sum(p.numel() for p in encoder.parameters()) + 385 * 1000) / 1e6, 2) == 22.37
    )  # 22.36 by their rounding


def shared(ours: nn.Module, reference: Reference) -> None:
    """Our weights, in the reference's places."""
    state = {"classifier.positional_emb": ours.positions[None]}
    names = {
        "norm1.": "pre_norm.",
        "norm2.": "norm1.",
        "attention.qkv.": "self_attn.qkv.",
        "attention.projection.": "self_attn.proj.",
        "mlp.up.": "linear1.",
        "mlp.down.": "linear2.",
    }
    for key, value in ours.state_dict().items():
        if key.startswith("tokenizer."):
            key = f"tokenizer.conv_layers.{int(key.split('.')[1]) // 3}.0.weight"
        elif key.startswith("pool."):
            key = key.replace("pool.attention", "classifier.attention_pool")
        else:
            first, _, rest = key.partition("blocks.")
            number, _, part = rest.partition(".")
            part = next((part.replace(a, b) for a, b in names.items() if part.startswith(a)), part)
            key = f"classifier.blocks.{number}.{part}" if rest else f"classifier.{first}"
        state[key] = value
    state.pop("classifier.positions", None)
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert set(missing) == {"classifier.fc.weight", "classifier.fc.bias"} and not unexpected


@pytest.mark.parametrize(
    ("name", "size", "kernel", "convolutions", "positions"),
    [
        ("cct-2/3x2", (32, 32), 3, 2, "learnable"),
        ("cct-7/3x1-sine", (32, 32), 3, 1, "sine"),
        ("cct-6/7x2", (64, 48), 7, 2, "learnable"),
    ],
)
def test_a_cct_computes_what_vit_pytorch_does(name, size, kernel, convolutions, positions):
    torch.manual_seed(0)
    ours = models.build(name, image_size=size)
    width, heads, ratio = SIZES[len(ours.blocks)]
    reference = Reference(
        img_size=size,
        embedding_dim=width,
        n_conv_layers=convolutions,
        kernel_size=kernel,
        stride=max(1, kernel // 2 - 1),
        padding=kernel // 2,
        num_layers=len(ours.blocks),
        num_heads=heads,
        mlp_ratio=ratio,
        positional_embedding=positions,
    ).eval()
    if positions == "sine":
        torch.testing.assert_close(reference.classifier.positional_emb[0], ours.positions, atol=3e-5, rtol=0)
    shared(ours, reference)
    reference.classifier.fc = nn.Identity()
    x = torch.randn(3, 3, *size)
    torch.testing.assert_close(ours.eval()(x), reference(x), atol=1e-5, rtol=1e-5)
    # in training, too: one attention in ten is left out, by the same rule
    torch.testing.assert_close(ours.blocks[0].attention.dropout, reference.classifier.blocks[0].self_attn.attn_drop.p)


@pytest.mark.parametrize(
    "name", ["vit-lite-2/4", "cvt-2/4", "cvt-2/4-sine", "cct-2/3x1", "cct-2/3x2-none", "cct-2/5x1-sine"]
)
def test_it_is_rebuilt_from_its_config_and_takes_other_sizes(name):
    torch.manual_seed(0)
    encoder = models.build(name, image_size=(32, 32), channels=2).eval()
    again = models.rebuild(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    for size in ((32, 32), (32, 48), (16, 16)):
        x = torch.randn(2, 2, *size)
        torch.testing.assert_close(encoder(x), again(x))
        assert encoder(x).shape == (2, 128)


def test_a_cct_takes_any_size():
    encoder = models.build("cct-2/3x2", image_size=(33, 47)).eval()
    assert encoder.grid == (9, 12) and encoder(torch.zeros(1, 3, 31, 50)).shape == (1, 128)


def test_sine_positions_are_those_of_the_transformer():
    positions = sine_positions(8, 5)
    assert positions[0].tolist() == [0, 1] * 4
    assert positions[3, 2].item() == pytest.approx(torch.tensor(3 / 10000 ** (2 / 8)).sin().item())


def test_a_pooling_that_looks_at_one_token_returns_it():
    encoder = models.build("cvt-2/4", image_size=(8, 8))
    tokens = torch.randn(2, 4, 128)
    with torch.no_grad():
        encoder.pool.attention.weight.copy_(1e3 * tokens[0, 2])
    torch.testing.assert_close(encoder.pool(tokens)[0], tokens[0, 2])
    torch.testing.assert_close(encoder.pool.weights(tokens).sum(dim=1), torch.ones(2))


def test_attention_is_dropped_in_training_only():
    torch.manual_seed(0)
    encoder = models.build("vit-lite-2/4", image_size=(8, 8))
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    torch.testing.assert_close(encoder(x), encoder(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1e-9])
def test_dropout_keeps_the_mean(rate, dtype):
    torch.manual_seed(0)
    x = torch.ones(3, 5, 20011, dtype=dtype, requires_grad=True)
    out = drop(x, rate)
    assert set(out.unique().tolist()) <= {0.0, torch.tensor(1.0, dtype=dtype).mul(1 / (1 - rate)).item()}
    share = (out == 0).double().mean(dim=2)
    assert (share - rate).abs().max() < 4 * (rate * (1 - rate) / 20011) ** 0.5 + 2e-4
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out)
    assert not torch.equal(drop(x, rate), out) or rate < 1e-4
    torch.manual_seed(0)
    assert torch.equal(drop(x, rate), out)


SMALL = {"dino": {"out_dim": 16, "local_crops": 2, "head_width": 32}, "mae": {"mask_ratio": 0.5}}


@pytest.mark.parametrize("name", ["vit-lite-2/4", "cvt-2/4", "cct-2/3x2"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "dvae"])
def test_methods_train_them(method, name):
    """And reach every weight of the encoder that is not left alone on purpose."""
    torch.manual_seed(0)
    kind = METHODS[method]
    own = dataclasses.replace(kind.Settings(), **SMALL.get(method, {}))
    own, _ = kind.suit(own, 1437, 32, (16, 16), 2)
    encoder = models.build(name, image_size=(16, 16), channels=1, **kind.built_with(own))
    tokens = {}
    if method == "beit":
        tokens = {
            "tokenizer": Tokenizer(TokenEncoder((8, 8), 1, 32, width=16, groups=2), (0.3,), (0.37,), (0.5,), (0.5,))
        }
    if method in ("mae", "beit") and name.startswith("cct"):
        with pytest.raises(BadInput, match=r"^--encoder cct-2/3x2: .*use a ViT of ours.*cvt-7/4$"):
            kind(encoder, own, **tokens)
        return
    trained = kind(encoder, own, **tokens)
    loader = Loader(open_source("digits"), Preprocess(1, (0.3,), (0.37,)), trained.views, 16)
    before = {key: value.clone() for key, value in encoder.named_parameters()}
    fit(trained, loader, Recipe(2, 1e-3, weight_decay=0))
    still = {key for key, value in encoder.named_parameters() if torch.equal(value, before[key])}
    still.discard("pool.attention.bias")  # added to all weights before a softmax: only rounding moves it
    frozen = method == "moco-v3" and name != "cct-2/3x2"
    assert still == ({"patch_embedding.weight", "patch_embedding.bias"} if frozen else set())


def test_dino_treats_a_cct_as_a_transformer():
    """Its crops are a ViT's, small ones of any size; and nothing is dropped at random in its teacher."""
    encoder = models.build("cct-2/3x2", image_size=(32, 48), drop_path=0.1)
    trained = METHODS["dino"](encoder, METHODS["dino"].Settings(out_dim=16, head_width=32))
    assert [view.size for view in trained.views[1:3]] == [(32, 48), (14, 21)]
    assert [view.crop_scale for view in trained.views[1:3]] == [(0.4, 1.0), (0.05, 0.4)]
    assert METHODS["moco-v3"](encoder).temperature == 0.2
    x = torch.randn(2, 3, 14, 21)
    torch.testing.assert_close(trained.train().encoder(x), trained.encoder(x), rtol=0, atol=0)
    assert not torch.equal(trained.student(x), trained.student(x))


def test_the_grid_is_that_of_the_tokenizer():
    for kernel, convolutions, size in (
        (3, 1, (32, 33)),
        (3, 2, (31, 18)),
        (7, 2, (224, 100)),
        (5, 3, (9, 1)),
        (6, 2, (40, 47)),
    ):
        encoder = models.build(f"cct-2/{kernel}x{convolutions}", image_size=(16, 16))
        with torch.no_grad():
            assert encoder.grid_for(size) == encoder.tokenizer(torch.zeros(1, 3, *size)).shape[2:]


# Weights of SHI-Labs/Compact-Transformers


class ReferencePatches(nn.Module):
    """Their CVT, or with a class token their ViT-Lite (src/cvt.py, src/vit.py), of vit-pytorch's parts."""

    def __init__(self, size: int, class_token: bool, positions: str):
        super().__init__()
        self.tokenizer = nn.Module()
        self.tokenizer.conv_layers = nn.Sequential(nn.Sequential(nn.Conv2d(3, 128, 4, 4)))
        self.classifier = TransformerClassifier(
            not class_token,
            128,
            2,
            2,
            1.0,
            dropout_rate=0.0,
            positional_embedding=positions,
            sequence_length=(size // 4) ** 2,
        )

    def forward(self, images):
        return self.classifier(self.tokenizer.conv_layers(images).flatten(2).transpose(1, 2))


def reference_cct(size: int, kernel: int, convolutions: int, positions: str) -> Reference:
    shape = {
        "kernel_size": kernel,
        "stride": max(1, kernel // 2 - 1),
        "padding": kernel // 2,
        "n_conv_layers": convolutions,
    }
    shape |= {"num_layers": 2, "num_heads": 2, "mlp_ratio": 1, "embedding_dim": 128, "num_classes": 10}
    return Reference(size, positional_embedding=positions, **shape)


@pytest.mark.parametrize(
    ("make", "size", "name"),
    [
        (lambda: reference_cct(48, 3, 1, "learnable"), 48, "cct-2/3x1"),
        (lambda: reference_cct(32, 3, 2, "none"), 32, "cct-2/3x2-none"),
        (lambda: reference_cct(64, 7, 2, "sine"), 64, "cct-2/7x2"),
        (lambda: ReferencePatches(24, False, "learnable"), 24, "cvt-2/4"),
        (lambda: ReferencePatches(32, True, "learnable"), 32, "vit-lite-2/4"),
        (lambda: ReferencePatches(16, True, "sine"), 16, "vit-lite-2/4"),
    ],
)
def test_weights_of_the_reference_are_read(make, size, name, tmp_path):
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours, config = interop.load(tmp_path / "theirs.pth")
    assert config["layout"] == "compact" and ours.config == models.build(name, image_size=(size, size)).config
    x = torch.randn(2, 3, size, size)
    fc = theirs.classifier.fc
    with torch.no_grad():
        torch.testing.assert_close(fc(ours(x)), theirs(x), rtol=0, atol=2e-5)
    cifar = fc.out_features == 10
    assert (unmask.load(tmp_path / "theirs.pth")[1].mean == (0.4914, 0.4822, 0.4465)) == cifar  # otherwise ImageNet's
    if config["encoder"]["positions"] != "none":
        with pytest.raises(BadInput, match="image of 8x8: give image_size"):
            interop.load(tmp_path / "theirs.pth", image_size=(8, 8))


def test_other_sizes_and_damaged_weights_of_the_reference(tmp_path):
    state, path = reference_cct(32, 3, 2, "learnable").state_dict(), tmp_path / "a.pth"
    torch.save(state, path)
    assert interop.load(path, image_size=(16, 64))[0].grid == (4, 16)
    wide = {key: value for key, value in state.items() if "positional" not in key}
    torch.save(wide, path)
    assert interop.load(path, image_size=(20, 40))[0].grid == (5, 10)
    changes = [
        ({"classifier.norm.weight": None}, "lacks norm.weight"),
        ({"classifier.blocks.1.linear1.weight": torch.ones(64, 128)}, "blocks.1.mlp.up.weight is"),
        ({"classifier.blocks.0.linear1.weight": torch.ones(128, 96)}, "give heads="),
        ({"tokenizer.conv_layers.0.0.weight": torch.ones(64, 3, 3, 5)}, r"shape \(3, 3, 5\)"),
    ]
    for change, match in changes:
        torch.save({key: value for key, value in (state | change).items() if value is not None}, path)
        with pytest.raises(BadInput, match=match):
            interop.load(path)


def test_a_run_of_a_cct_is_opened_again(tmp_path):
    out = tmp_path / "run"
    options = {"steps": 2, "batch_size": 32, "workers": 0, "precision": "float32"}
    pictures = open_source("digits").subset(range(64))
    table = pd.DataFrame({"image": [encoded(pictures.image(i)) for i in range(64)]})
    table.to_parquet(tmp_path / "digits.parquet")
    unmask.pretrain("simclr", data=tmp_path / "digits.parquet", out=out, encoder="cct-2/3x1", **options)
    assert {path.stem for path in (out / "figures").iterdir()} == {"filters", "positions", "pooling"}
    page = (out / "report.html").read_text()
    assert "What the vector is made of" in page and "unmask attend" in page and "Where it looks" not in page
    encoder, _ = unmask.load(out)
    assert encoder(torch.zeros(1, 1, *encoder.image_size)).shape == (1, 128)


@pytest.mark.parametrize("name", ["cvt-2/4", "cct-2/3x1"])
def test_other_layouts_are_refused_in_one_line(name, tmp_path):
    encoder = models.build(name, image_size=(8, 8))
    for write in (lambda: interop.to_timm(encoder), lambda: interop.to_huggingface(encoder, tmp_path)):
        with pytest.raises(BadInput, match="export to unmask"):
            write()


def encoded(pixels: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[0].numpy()).save(file, "PNG")
    return file.getvalue()
