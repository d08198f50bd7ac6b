"""Models of timm as encoders: their shapes, their way to disk and back, and through a run from end to end."""

import json
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import unmask
from unmask import methods, models
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.errors import BadInput
from unmask.methods.mae import MAE
from unmask.methods.method import Method
from unmask.models import interop
from unmask.models.backbones import Backbone
from unmask.models.vit import ViT
from unmask.training.distributed import synchronise
from unmask.training.optim import Recipe, optimisers_for

pytestmark = pytest.mark.usefixtures("hasty_probes")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pictures(encoder: Backbone | ViT, batch: int = 2) -> Tensor:
    return torch.randn(batch, encoder.channels, *encoder.image_size, generator=torch.Generator().manual_seed(1))


def lived_in(encoder: Backbone) -> Backbone:
    """With weights and running statistics unlike those it began with."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(2):
            encoder.train()(torch.randn(4, encoder.channels, *encoder.image_size))
    return encoder.eval()


# What is built


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvisions_and_in_their_cifar_form_but_for_the_stem(name):
    theirs = getattr(torchvision.models, name)()
    of_classifier = count(theirs.fc)
    large = models.build(name, image_size=(96, 128))
    assert isinstance(large, Backbone) and count(large) == count(theirs) - of_classifier
    assert count(large) == {"resnet18": 11_689_512, "resnet50": 25_557_032}[name] - of_classifier  # as published
    theirs.fc = nn.Identity()
    theirs.load_state_dict(large.model.state_dict())
    images = pictures(large)
    with torch.no_grad():
        torch.testing.assert_close(large.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)

    small = models.build(name, image_size=(64, 96), channels=5)
    assert large.config["cifar_stem"] is False and small.config["cifar_stem"] is True
    assert count(small) == count(large) - 64 * 3 * 7 * 7 + 64 * 5 * 3 * 3
    stem = small.model.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    with torch.no_grad():
        assert small.model.forward_features(pictures(small)).shape[2:] == (8, 12)  # three strides of 2 are left
        assert large.model.forward_features(pictures(large)).shape[2:] == (3, 4)


def test_the_cifar_form_can_be_chosen():
    assert Backbone("resnet18", (32, 32), cifar_stem=False).model.conv1.kernel_size == (7, 7)
    assert Backbone("resnet18", (80, 80), cifar_stem=True).model.conv1.kernel_size == (3, 3)
    assert not Backbone("resnet18d", (32, 32)).config["cifar_stem"]
    with pytest.raises(BadInput, match="resnet18d has no CIFAR form"):
        Backbone("resnet18d", (32, 32), cifar_stem=True)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("resnet18", (32, 40), 512),
        ("vit_tiny_patch16_224", (32, 48), 192),
        ("swin_tiny_patch4_window7_224", (64, 64), 768),
        ("convnext_atto", (48, 32), 320),
        ("mobilenetv3_small_050", (40, 40), 1024),  # wider behind its pooling than num_features says
        ("regnetx_002", (32, 32), 368),
    ],
)
def test_images_to_vectors(name, size, width, channels):
    torch.manual_seed(3)
    encoder = models.build(name, image_size=size, channels=channels, drop_path=0.1, positions="sincos", pool="mean")
    assert (encoder.image_size, encoder.channels, encoder.width) == (size, channels, width)
    torch.manual_seed(3)
    again = models.rebuild(json.loads(json.dumps(encoder.config)))
    assert again.config == encoder.config
    with torch.no_grad():
        assert encoder.training and encoder(pictures(encoder)).shape == (2, width)
        encoder.load_state_dict(again.state_dict())
        assert torch.equal(again.eval()(pictures(again)), encoder.eval()(pictures(encoder)))


def test_drop_path_reaches_the_blocks():
    def rates(**options):
        return [m.drop_prob for m in models.build("resnet18", **options).modules() if hasattr(m, "drop_prob")]

    assert max(rates(drop_path=0.1)) == pytest.approx(0.1) and not any(rates())


def test_an_untrained_resnet_is_its_stem_and_its_shortcuts():
    torch.manual_seed(0)
    model = models.build("resnet18", image_size=(32, 32)).eval().model
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = model.conv1(images).relu()
        for stage in (model.layer2, model.layer3, model.layer4):
            x = stage[0].downsample[0](x).relu()
        torch.testing.assert_close(model(images), x.mean(dim=(2, 3)), rtol=1e-3, atol=1e-5)


def test_our_own_names_come_first_and_slips_are_not_swallowed():
    assert isinstance(models.build("vit-tiny/8", image_size=(32, 32), positions="sincos"), ViT)
    for name in ("vit-tiny/8", "resnet18"):
        with pytest.raises(TypeError, match="position"):
            models.build(name, image_size=(32, 32), position="sincos")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet81", {}, r"'resnet81' \(near: resnet18.*vit-tiny/8"),
        ("vit-tinny/8", {}, r"near: vit-tiny"),
        ("vit-tiny/0", {}, "no encoder is called"),
        ("hf-hub:timm/resnet18", {}, "no encoder is called"),  # would go to the network
        ("inception_v3", {"image_size": (32, 32)}, "inception_v3 cannot take images of 3 channels and 32x32 pixels"),
        ("vit_tiny_patch16_224", {"image_size": (30, 32)}, "do not tile"),
        ("levit_128s", {"image_size": (8, 8), "channels": 2}, "levit_128s cannot take images of 2 channels and 8x8"),
        ("vgg11", {"drop_path": 0.1}, "vgg11 has no stochastic depth: leave --drop-path out"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(name, options, says):
    with pytest.raises(BadInput, match=says) as caught:
        models.build(name, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_mae_needs_a_vit():
    for name in ("resnet18", "vit_tiny_patch16_224"):
        with pytest.raises(BadInput, match=rf"--encoder {name}: MAE .* vit-tiny/8 or"):
            MAE(models.build(name, image_size=(32, 32), **MAE.ENCODER))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])  # the latter's batch norms hold its activations
def test_batch_norm_over_all_processes_leaves_the_rest_alone(name):
    encoder = lived_in(models.build(name, image_size=(32, 32)))
    images, state = pictures(encoder), encoder.state_dict()
    with torch.no_grad():
        before = encoder(images)
        synchronise(encoder)
        assert torch.equal(encoder(images), before)
    assert encoder.state_dict().keys() == state.keys()
    assert not any(type(m).__name__.startswith("BatchNorm") for m in encoder.modules())


def test_muon_needs_the_blocks_of_a_transformer():
    muon = Recipe(steps=1, lr=1e-3, optimiser="muon")
    assert len(optimisers_for(models.build("vit_tiny_patch16_224"), muon)) == 2
    with pytest.raises(BadInput, match=r"muon is for .*: use adamw"):
        optimisers_for(models.build("resnet18"), muon)


# In and out


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("resnet18", (32, 32), 2), ("swin_tiny_patch4_window7_224", (64, 64), 3)]
)
def test_own_folder(tmp_path, name, size, channels):
    encoder = lived_in(models.build(name, image_size=size, channels=channels, drop_path=0.1))
    interop.save(encoder, tmp_path / "encoder", {"name": name})
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["encoder"]["backbone"] == name
    again, config = interop.load(tmp_path)
    assert config == {"name": name, "encoder": encoder.config} and not again.training
    with torch.no_grad():
        assert torch.equal(again(pictures(encoder)), encoder(pictures(encoder)))
    for change, match in (({"cifar_stem": True, "backbone": "resnet34"}, "lacks"), ({"rings": 4}, "describes no")):
        changed = {**config, "encoder": config["encoder"] | change}
        (tmp_path / "encoder" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=match):
            interop.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("resnet18", (72, 72), {}), ("vit_tiny_patch16_224", (32, 48), {"img_size": (32, 48)})],
)
def test_timm_takes_what_is_exported_for_it(name, size, options):
    encoder = lived_in(models.build(name, image_size=size, channels=4))
    theirs = timm.create_model(name, num_classes=0, in_chans=4, **options).eval()
    theirs.load_state_dict(interop.to_timm(encoder))
    with torch.no_grad():
        assert torch.equal(theirs(pictures(encoder)), encoder(pictures(encoder)))


def test_what_other_layouts_have_no_place_for(tmp_path):
    small = models.build("resnet18", image_size=(32, 32))
    with pytest.raises(BadInput, match=r"CIFAR form.*unmask or onnx"):
        interop.to_timm(small)
    with pytest.raises(BadInput, match="ViTModel is no resnet18"):
        interop.to_huggingface(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx(tmp_path):
    encoder = lived_in(models.build("resnet18", image_size=(32, 32), channels=2))
    interop.to_onnx(encoder, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = pictures(encoder, batch)
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(features, encoder(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet18", (64, 2, 3, 3)), ("vit_tiny_patch16_224", (192, 2, 16, 16)), ("tresnet_m", None)],  # pixels regrouped
)
def test_first_filters(name, shape):
    found = models.build(name, image_size=(64, 64), channels=2).filters
    assert found is None if shape is None else found.shape == shape


# A run


@dataclass(frozen=True)
class Settings:
    """None."""


class Rotations(Method):
    """Which way is up (Gidaris et al. 2018): the shortest way to train anything without labels."""

    SUMMARY, Settings = "rotations", Settings
    ENCODER, PAPERS = MAE.ENCODER, {"resnet": MAE.PAPERS["vit"]}

    def __init__(self, encoder, settings):
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.views = (methods.mae.View(encoder.image_size),)
        self.head = nn.Linear(encoder.width, 4)

    def forward(self, batch, clock):
        turned = torch.cat([batch.views[0].rot90(k, (2, 3)) for k in range(4)])
        wanted = torch.arange(4).repeat_interleave(len(batch.index))
        loss = nn.functional.cross_entropy(self.head(self.encoder(turned)).float(), wanted)
        return {"loss": loss, "uninformed": torch.tensor(4.0).log()}


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty digits, ten of each of two classes, 8 x 8."""
    folder, source = tmp_path_factory.mktemp("images"), open_source("digits")
    for name in ("0", "1"):
        (folder / name).mkdir()
        for i in np.flatnonzero(source.table["label"].astype(str) == name)[:10]:
            Image.fromarray(source.image(int(i))[0].numpy()).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("runs") / "rotations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "rotations", Rotations)
        common = ["--encoder", "resnet18", "--image-size", "32", "--steps", "2", "--batch-size", "4", "--workers", "0"]
        told = ["--data", images, "--probe", images, "--precision", "float32", "--out", folder]
        assert run("pretrain", "rotations", *common, *told) == 0
        yield folder


def test_a_run_with_a_resnet(trained):
    drawn = {path.name for path in (trained / "figures").iterdir()}
    assert drawn == {"filters.png"} and Image.open(trained / "figures" / "filters.png").size[0] > 200
    result, probe = (json.loads((trained / f"{name}.json").read_text()) for name in ("result", "probe"))
    assert result["steps"] == 2 and result["encoder_parameters"] == 11_168_832 - 2 * 64 * 9
    assert probe["test"] == 20 and {"trained", "untrained"} <= probe["linear"].keys()
    page = (trained / "report.html").read_text()
    assert "resnet18" in page and "unmask reconstruct" not in page
    assert load_file(trained / "encoder" / "model.safetensors")["model.bn1.num_batches_tracked"] == 2


def test_probe_embed_and_export(trained, images, tmp_path, capsys):
    told = ["--data", images, "--precision", "float32"]
    assert run("probe", trained, *told, "--out", tmp_path / "probe.json") == 0
    table = unmask.embed(trained, data=images, precision="float32")
    assert np.stack(table["embedding"].to_list()).shape == (20, 512)
    encoder, preprocess = unmask.load(trained)
    assert encoder(preprocess.normalise(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))).shape == (2, 512)
    assert run("export", trained, "--to", "unmask", "--out", tmp_path / "u") == 0
    assert unmask.load(tmp_path / "u")[0].config == encoder.config
    capsys.readouterr()
    for to, says in (("timm", "CIFAR form"), ("mae", "another method"), ("huggingface", "ViTModel")):
        out = tmp_path / ("x" if to == "huggingface" else "x.safetensors")
        assert run("export", trained, "--to", to, "--out", out) == 2
        error = capsys.readouterr().err.strip()
        assert says in error and "\n" not in error and not out.exists()
