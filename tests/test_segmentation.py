"""Segmentation: the heads, the task, what is said of an image of any size, the figures of merit, and the command."""

import pytest
import torch
from torch import nn

from unmask import models
from unmask.errors import BadInput
from unmask.models import segmentation
from unmask.models.pyramid import Pyramid
from unmask.models.segmentation import FCN, LastMap, Segmenter, UPerNet

THEIRS = (  # ours, transformers'
    ("pools.", "psp_modules."),
    ("pooled.", "bottleneck."),
    ("laterals.", "lateral_convs."),
    ("smooth.", "fpn_convs."),
    ("fuse.", "fpn_bottleneck."),
    ("name.", "classifier."),
)


def translated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our head's weights under the names of transformers'."""
    found = {}
    for name, value in state.items():
        before, after = next(pair for pair in THEIRS if name.startswith(pair[0]))
        parts = (after + name.removeprefix(before)).split(".")
        if before == "pools.":  # psp_modules.0.1.conv.weight
            parts[2:3] = {"1": ["1", "conv"], "2": ["1", "batch_norm"]}[parts[2]]
        elif before != "name.":
            parts[-2] = {"0": "conv", "1": "batch_norm"}[parts[-2]]
        found[".".join(parts)] = value
    return found


@pytest.mark.parametrize("sizes", [((16, 24), (8, 12), (4, 6), (2, 3)), ((60, 80), (30, 40), (15, 20), (7, 10))])
def test_upernet_computes_what_transformers_does(sizes):
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    torch.manual_seed(0)
    config = UperNetConfig(hidden_size=16, num_labels=5, auxiliary_channels=16, auxiliary_num_convs=1)
    ours, theirs = UPerNet(16, 5), UperNetHead(config, [16] * 4)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    nn.init.normal_(ours.name.weight)
    theirs.load_state_dict(translated(ours.state_dict()))
    maps = tuple(torch.randn(2, 16, *size) for size in sizes)
    found, wanted = ours.eval()(maps), theirs.eval()(maps)
    assert found.shape == (2, 5, *sizes[0]) and wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    ours, theirs = FCN(16, 5), UperNetFCNHead(config, [16] * 4)
    names = {"conv.0": "convs.0.conv", "conv.1": "convs.0.batch_norm", "name": "classifier"}
    state = {
        next(name.replace(a, b) for a, b in names.items() if a in name): v for name, v in ours.state_dict().items()
    }
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))


def small(way: str | None = "simple", size=(64, 96), **options) -> Segmenter:
    torch.manual_seed(0)
    if way == "fpn":
        maps = Pyramid(models.build("resnet18", image_size=size), "fpn", 32)
    else:
        encoder = models.ViT(size, 16, 3, 64, 4, 2, **{"positions": "sincos", "pool": "mean", **options})
        maps = LastMap(encoder) if way is None else Pyramid(encoder, way, 32)  # type: ignore[arg-type]
    return Segmenter(maps, ("a", "b", "c"))


@pytest.mark.parametrize("way", ["simple", "subsets", "fpn", None])
def test_a_segmenter_is_saved_and_comes_back(way, tmp_path):
    segmenter, images = small(way), torch.randn(2, 3, 64, 96)
    segmenter.train()(images)  # statistics of batch norms move
    segmentation.save(segmenter.eval(), tmp_path, {"preprocess": 1})
    again, config = segmentation.load(tmp_path)
    assert config["preprocess"] == 1 and again.classes == ("a", "b", "c") and not again.training
    assert torch.equal(again(images), segmenter(images)) and segmenter(images).shape == (2, 3, 64, 96)
    larger = again(torch.randn(1, 3, 96, 160))
    assert larger.shape == (1, 3, 96, 160)
    config = tmp_path / "head" / "config.json"
    config.write_text(config.read_text().replace("segmenter", "detector"))
    with pytest.raises(BadInput, match="holds no segmenter"):
        segmentation.load(tmp_path)


def test_the_linear_head_sees_normalised_tokens_of_the_last_block():
    for pool in ("mean", "mean-then-norm"):
        segmenter, images = small(None, pool=pool).eval(), torch.randn(2, 3, 64, 96)
        tokens = segmenter.encoder.forward_features(images).blocks[-1][:, 1:]
        (found,) = segmenter.maps(images)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), segmenter.encoder.norm(tokens))
    with pytest.raises(BadInput, match="makes no map"):
        LastMap(models.build("cct-2/3x1", image_size=(16, 16)))
