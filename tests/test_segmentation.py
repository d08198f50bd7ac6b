"""Segmentation: the heads, the task, what is said of an image of any size, the figures of merit, and the command."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import unmask
import unmask.verbs.load
from unmask import models
from unmask.cli import main
from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Batch, Loader
from unmask.data.masks import VOID, open_masks
from unmask.errors import BadInput
from unmask.evaluate import segmentation as evaluation
from unmask.evaluate.segmentation import (
    Segmentation,
    Settings,
    commonest,
    label,
    labels,
    report,
    starts,
    sums,
    tally,
)
from unmask.models import segmentation
from unmask.models.heads import kind_of
from unmask.models.pyramid import Pyramid
from unmask.models.segmentation import FCN, LastMap, Segmenter, UPerNet
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe
from unmask.verbs.predict import places

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


# The task

PLAIN = Settings(jitter=0.0, layer_decay=1.0, crop_scale=(0.5, 1.0))
CLOCK = Clock(0, 10, 0.0)


def task(way: str | None = "simple", own: Settings = PLAIN, counts=(50, 30, 20), **options) -> Segmentation:
    segmenter = small(way, **options)
    own = dataclasses.replace(own, head="linear" if way is None else "upernet")
    return Segmentation(segmenter, own, torch.tensor(counts), segmenter.encoder.image_size)


def batch(size: int = 3, void: float = 0.3) -> Batch:
    draw = torch.Generator().manual_seed(1)
    maps = torch.randint(3, (size, 64, 96), generator=draw)
    maps[torch.rand(maps.shape, generator=draw) < void] = VOID
    index = torch.arange(size)
    return Batch((torch.randn(size, 3, 64, 96, generator=draw),), index, index, maps=maps)


@pytest.mark.parametrize("way", ["simple", "subsets", "fpn"])
def test_every_weight_that_learns_gets_a_gradient(way):
    method = task(way, positions="learned") if way != "fpn" else task(way)
    method.train()(batch(), CLOCK)["loss"].backward()
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    idle = [name for name, p in learning.items() if p.grad is None or not p.grad.abs().sum()]
    # a key's bias shifts all scores alike; timm's blocks begin as their shortcut
    assert not [name for name in idle if "qkv.bias" not in name and way != "fpn"], idle
    assert not [name for name in idle if not name.startswith("segmenter.maps.encoder")], idle


def test_only_the_linear_head_learns_on_a_frozen_encoder():
    method = task(None, drop_path=0.9)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    b = batch()
    fit(method, lambda step: iter([b] * 3), Recipe(3, 1e-2))
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    head = "segmenter.head."
    assert moved == {f"{head}{name}" for name in ("name.weight", "name.bias")} | {
        f"{head}norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert not method.encoder.training and method.segmenter.head.training


@pytest.mark.parametrize("weights", [False, True])
def test_void_never_counts_and_uninformed_is_the_least_of_a_constant(weights):
    counts = torch.tensor([600, 300, 100, 0])
    segmenter = Segmenter(small().maps, tuple("abcd"))
    method = Segmentation(segmenter, dataclasses.replace(PLAIN, class_weights=weights), counts, (64, 96))
    truth = torch.multinomial(counts.double(), 40_000, replacement=True).view(1, 200, 200)
    guess = method.prior.clone().requires_grad_()
    loss = method.loss(guess[None, :, None, None].expand(1, 4, 200, 200), truth)
    torch.testing.assert_close(loss, method.blind(truth))
    (gradient,) = torch.autograd.grad(loss, guess)
    assert gradient.abs().max() < 0.02  # of what was drawn, not of the frequencies themselves
    # what is said at void places changes nothing, and nothing but void is no number at all
    truth[:, :50] = VOID
    logits = torch.randn(1, 4, 200, 200)
    other = torch.where((truth == VOID)[:, None], torch.randn_like(logits), logits)
    torch.testing.assert_close(method.loss(logits, truth), method.loss(other, truth), rtol=0, atol=0)
    wanted = F.cross_entropy(logits[:, :, 50:], truth[:, 50:], method.weights)
    torch.testing.assert_close(method.loss(logits, truth), wanted)
    assert method.loss(logits, torch.full_like(truth, VOID)) == method.blind(torch.full_like(truth, VOID)) == 0


def test_the_loss_is_that_of_both_heads():
    method, b = task().eval(), batch()
    found, maps = method(b, CLOCK), method.segmenter.maps(b.views[0])
    heads = [F.interpolate(head(maps), (64, 96), mode="bilinear") for head in (method.segmenter.head, method.auxiliary)]
    both = [F.cross_entropy(logits, b.maps, ignore_index=VOID) for logits in heads]
    torch.testing.assert_close(found["loss"], both[0] + 0.4 * both[1])
    prior = torch.tensor([0.5, 0.3, 0.2]).log()[None, :, None, None].expand_as(heads[0])
    torch.testing.assert_close(found["uninformed"], 1.4 * F.cross_entropy(prior, b.maps, ignore_index=VOID))
    known = b.maps != VOID
    assert found["accuracy"] == (heads[0].argmax(1) == b.maps)[known].float().mean()
    # before anything is learnt it says how often each class occurs, but for small random numbers
    assert abs(found["loss"] - found["uninformed"]) < 0.05 * found["uninformed"]
    with pytest.raises(BadInput, match="crop-scale"):
        task(own=dataclasses.replace(PLAIN, crop_scale=(0.5, 1.5)))


# What is said of new images


class Colours(nn.Module):
    """Says of each pixel which channel is largest, and that it is sure of it by how much."""

    def __init__(self, size):
        super().__init__()
        self.encoder, self.classes, self.sizes = SimpleNamespace(image_size=size), ("r", "g", "b"), set()

    def forward(self, images):
        self.sizes.add(tuple(images.shape[2:]))
        return images


PIXELS = Preprocess(3, (0.0,) * 3, (1.0,) * 3)
CPU = torch.device("cpu")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600))
def test_tiles_cover_a_line_and_each_other(length, side):
    length = max(length, side)
    found = starts(length, side)
    assert found[0] == 0 and found[-1] == length - side and found == sorted(found)
    steps = np.diff(found)
    assert len(steps) == 0 or steps.max() <= np.ceil(2 * side / 3)


@pytest.mark.parametrize("size", [(20, 30), (40, 60), (90, 31), (31, 200), (7, 5), (1, 1)])
def test_images_of_any_size_are_labelled_at_their_own(size):
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 3, (3, 4))
    truth = np.kron(coarse, np.ones((30, 50), dtype=int))[: size[0], : size[1]]
    image = torch.from_numpy(np.eye(3, dtype=np.uint8)[truth] * 255).permute(2, 0, 1)
    model = Colours((20, 30))
    said = label(model, image, PIXELS, CPU, "float32", batch_size=2)
    assert said.shape == size and said.dtype == torch.uint8 and model.sizes == {(20, 30)}
    assert (said.numpy() == truth).mean() > (0.9 if min(size) > 10 else 0.5)


def test_logits_are_averaged_where_tiles_overlap():
    class Place(Colours):
        def forward(self, images):  # sure in the middle of its tile, wrong at the edges
            x = torch.zeros(len(images), 3, 20, 30)
            x[:, 0] = 1
            x[:, 1, :, 5:25] = 3
            x[:, 2] = images[:, 0] * 0.1
            return x

    said = label(Place((20, 30)), torch.zeros(3, 20, 50, dtype=torch.uint8), PIXELS, CPU, "float32")
    # tiles at 0, 20: of columns 20 to 29 both speak, and one is sure
    assert said[:, :5].eq(0).all() and said[:, 5:45].eq(1).all() and said[:, 45:].eq(0).all()


def test_many_classes_are_compared_a_few_at_a_time(monkeypatch):
    logits = torch.randn(7, 5, 6)
    wanted = F.interpolate(logits[None], (9, 8), mode="bilinear")[0].argmax(0)
    for most in (1, 150, 10**9):
        monkeypatch.setattr(evaluation, "AT_ONCE", most)
        assert torch.equal(commonest(logits, (9, 8)).long(), wanted)


# How good that is


def test_figures_agree_with_scikit_learns():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

    draw = torch.Generator().manual_seed(0)
    truth = torch.multinomial(torch.tensor([0.6, 0.3, 0.1, 0.0]), 8 * 400, True, generator=draw).view(8, 20, 20)
    wrong = torch.randint(4, truth.shape, generator=draw)
    said = torch.where(torch.rand(truth.shape, generator=draw) < 0.3, wrong, truth).to(torch.uint8)
    truth = torch.where(torch.rand(truth.shape, generator=draw) < 0.1, VOID, truth).to(torch.uint8)
    tallies = [tally(a, b, 4) for a, b in zip(said, truth, strict=True)]
    found = report([sums(x) for x in tallies], sum(tallies), "abcd", 0)
    known = truth != VOID
    y, p = truth[known].numpy(), said[known].numpy()
    each = jaccard_score(y, p, labels=[0, 1, 2], average=None)
    assert [one["iou"] for one in found["classes"]] == [*map(pytest.approx, each), None]
    assert found["miou"] == pytest.approx(each.mean()) and found["accuracy"] == pytest.approx(accuracy_score(y, p))
    with warnings.catch_warnings(action="ignore"):  # of the class that is not there
        assert found["mean_accuracy"] == pytest.approx(balanced_accuracy_score(y, p))
        blind = jaccard_score(y, np.zeros_like(p), labels=[0, 1, 2], average="macro")
    assert found["majority"]["miou"] == pytest.approx(blind) and found["majority"]["name"] == "a"
    assert found["absent"] == ["d"] and "no test image has d" in found["sentence"] and found["pixels"] == known.sum()
    for name in ("miou", "accuracy", "mean_accuracy"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"] < found[f"{name}_low"] + 0.15
    assert np.array(found["confusion"]).sum() == known.sum() and json.loads(json.dumps(found)) == found
    # all right is 1, and a number that is no class is not spoken of
    perfect = report([sums(np.diag(np.diag(x))) for x in tallies], sum(tallies), "abcd", 0, void=(3,))
    assert perfect["miou"] == 1 and len(perfect["classes"]) == 3 and not perfect["absent"]


def test_groups_are_resampled_whole():
    draw = np.random.default_rng(0)
    alike = [np.diag([50, 50]) + np.array([[0, 1], [1, 0]]) * draw.integers(5, 45) for _ in range(6)]
    counted = [sums(each) for each in alike for _ in range(10)]
    by_image = report(counted, sum(alike), "ab", 0)
    by_group = report(counted, sum(alike), "ab", 0, groups=np.repeat(list("uvwxyz"), 10))
    assert by_group["miou"] == by_image["miou"] and by_group["resampled"] == "groups"
    width = [found["miou_high"] - found["miou_low"] for found in (by_image, by_group)]
    assert width[1] > 2 * width[0]


# Learning


def discs(folder: Path, count: int, seed: int) -> Path:
    """Pictures of one to three coloured discs on noise, of several sizes, and what each pixel is; the edge of a disc is void."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for i in range(count):
        height, width = draw.integers(70, 130, 2)
        picture, mask = draw.integers(60, 140, (height, width, 3)), np.zeros((height, width), dtype=np.uint8)
        rows, columns = np.mgrid[:height, :width]
        for _ in range(draw.integers(1, 4)):
            what, radius = draw.integers(1, 3), draw.integers(10, 28)
            away = np.hypot(rows - draw.integers(0, height), columns - draw.integers(0, width))
            picture[away < radius] = [(200, 60, 60), (60, 60, 200)][what - 1]
            mask[away < radius] = what
            mask[(away >= radius - 1) & (away < radius + 1)] = 255
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("ground\nred\nblue\n")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    return discs(folder / "learn", 40, 0), discs(folder / "test", 12, 1)


def learnt(pictures) -> float:
    """mIoU on the test images after so few steps."""
    train, test = (open_masks(folder) for folder in pictures)
    torch.manual_seed(0)
    encoder = models.ViT((64, 64), 8, 3, 48, 4, 2, positions="sincos", pool="mean")
    segmenter = Segmenter(Pyramid(encoder, "simple", 32), train.classes)
    own = dataclasses.replace(PLAIN, crop_scale=(0.3, 1.0))
    method = Segmentation(segmenter, own, train.counts, (64, 64))
    preprocess = Preprocess(3, (0.4,) * 3, (0.2,) * 3)
    loader = Loader(train.source, preprocess, method.views, 8, maps=train.masks)
    fit(method, loader, Recipe(60, 6e-3, 5, warmup=5))
    tallies = [tally(said, test.masks(i), 3) for i, said in labels(segmenter, test.source, preprocess, **READING)]
    return report([sums(each) for each in tallies], sum(tallies), test.classes, 0)["miou"]


READING = {"device": CPU, "precision": "float32"}


def test_it_learns_discs_and_not_where_maps_are_cropped_otherwise(pictures, monkeypatch):
    assert learnt(pictures) > 0.8
    whole = lambda view, classes, drawn: F.interpolate(classes[None, None], view.size, mode="nearest")[0, 0]  # noqa: E731
    monkeypatch.setattr(View, "render_map", whole)
    assert learnt(pictures) < 0.5


# The command


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


QUICK = ["--image-size", "64", "--map-channels", "16", "--batch-size", "8", "--device", "cpu", "--workers", "0"]
QUICK += ["--precision", "float32"]


@pytest.fixture(scope="module")
def segmented(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "segmented"
    train, test = pictures
    told = ["--data", train, "--test", test, "--encoder", "vit-tiny/16", "--steps", "40", "--base-lr", "0.1"]
    assert run("segment", *told, "--out", out, *QUICK, "--layer-decay", "0.9") == 0
    return out


def test_a_run_leaves_a_segmenter_its_judgement_and_a_page(segmented, capsys):
    result, test = (json.loads((segmented / name).read_text()) for name in ("result.json", "test.json"))
    assert result["verdict"] == "learning" and result["test"]["protocol"] == "test set" and result["images"] == 40
    assert test["kind"] == "segmentation" and test["n"] == 12 and test["train"] == 40
    assert test["majority"]["miou_high"] < test["miou_low"] <= test["miou"] <= test["miou_high"]
    assert [one["name"] for one in test["classes"]] == ["ground", "red", "blue"]
    table = pd.read_csv(segmented / "predictions.csv")
    assert len(table) == 12 and {"path", "miou", "accuracy", "iou_ground", "iou_red", "iou_blue"} == set(table.columns)
    for name in ("segments", "mistaken"):
        assert (segmented / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (segmented / "report.html").read_text()
    assert "of every pixel" in page and "from the worst to the best" in page and "labelled" in page
    assert any("test_miou" in json.loads(line) for line in (segmented / "metrics.jsonl").read_text().splitlines())
    encoder, preprocess = unmask.load(segmented)  # and the encoder is one as any other
    assert encoder(preprocess.normalise(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))).shape == (1, 192)


def test_label_maps_of_new_images(segmented, pictures, tmp_path, capsys):
    out = tmp_path / "labelled"
    assert run("predict", segmented, "--data", pictures[1] / "images", "--out", out, "--precision", "float32") == 0
    assert "12 label maps" in capsys.readouterr().out
    table, test = pd.read_csv(out / "labels.csv"), open_masks(pictures[1])
    shares = table[["share_ground", "share_red", "share_blue"]].to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    tallies = []
    for path, name, share in zip(table["path"], table["labels"], shares, strict=True):
        picture = Image.open(out / name)
        assert picture.mode == "P" and Path(name).stem == Path(path).stem and picture.getpalette()[:3] == [0, 114, 178]
        said = torch.from_numpy(np.array(picture))
        assert (said == 0).float().mean() == pytest.approx(share[0], abs=1e-5)
        i = test.source.table["path"].tolist().index(path)
        tallies.append(tally(said, test.masks.check(i, *said.shape), 3))
    told = json.loads((segmented / "test.json").read_text())
    assert np.array_equal(sum(tallies), told["confusion"])
    again = open_masks(pictures[1] / "images", masks=out)  # to be learnt from
    assert again.classes == ("ground", "red", "blue") and len(again) == 12
    assert run("predict", segmented, "--data", pictures[1] / "images", "--out", out) == 2
    assert "there already" in capsys.readouterr().err
    assert [str(x) for x in places(["a/b.jpg", "a/b.png", "/c/d.tif", "../e.gif"])] == [
        "a/b.jpg.png",
        "a/b.png.png",
        "c/d.png",
        "e.png",
    ]


def test_a_run_goes_on_as_if_nothing_had_happened(segmented, tmp_path, pictures):
    again = tmp_path / "again"
    shutil.copytree(segmented, again)
    for path in [*sorted((again / "checkpoints").glob("*.pt"))[-1:], again / "result.json", again / "test.json"]:
        path.unlink()
    assert run("segment", "--out", again, "--resume") == 0
    for name in ("encoder/model.safetensors", "head/model.safetensors", "metrics.jsonl", "test.json"):
        assert (again / name).read_bytes() == (segmented / name).read_bytes(), name


def test_other_masks_are_not_gone_on_with(segmented, tmp_path, pictures, capsys):
    again, moved = tmp_path / "again", tmp_path / "moved"
    shutil.copytree(segmented, again)
    shutil.copytree(pictures[0], moved)
    text = (again / "settings.yaml").read_text().replace(f"data: {pictures[0]}", f"data: {moved}")
    (again / "settings.yaml").write_text(text)
    Image.fromarray(np.zeros(np.array(Image.open(moved / "masks" / "0.png")).shape, dtype=np.uint8)).save(
        moved / "masks" / "0.png"
    )
    assert run("segment", "--out", again, "--resume") == 2
    assert "is not what the run" in capsys.readouterr().err


def test_a_probe_of_a_run_and_a_table_with_a_held_out_fifth(segmented, pictures, tmp_path):
    files = sorted((pictures[0] / "images").glob("*.png"), key=lambda path: int(path.stem))[:20]
    rows = {"image": files, "what": [pictures[0] / "masks" / path.name for path in files]}
    rows["group"] = [f"site {i // 4}" for i in range(20)]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    shutil.copy(pictures[0] / "classes.txt", tmp_path / "names.txt")
    before = load_file(segmented / "encoder" / "model.safetensors")
    quick = [option for option in QUICK if option not in ("--map-channels", "16")]
    told = ["--data", tmp_path / "table.csv", "--mask", "what", "--classes", tmp_path / "names.txt", "--head", "linear"]
    assert run("segment", segmented, *told, "--out", tmp_path / "probe", "--steps", "4", *quick) == 0
    after = load_file(tmp_path / "probe" / "encoder" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    test = json.loads((tmp_path / "probe" / "test.json").read_text())
    assert test["protocol"] == "held-out fifth by group" and test["n"] == 4 and test["train"] == 16
    assert kind_of(tmp_path / "probe") == "segmenter"
    told += ["--encoder", "resnet18", "--out", tmp_path / "untrained", "--steps", "2", *quick]
    assert run("segment", *told) == 0  # what the other is to be set beside
    assert run("predict", tmp_path / "probe", "--data", files[0].parent, "--out", tmp_path / "maps") == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--test-masks", "somewhere"], "--test-masks somewhere"),
        (["--encoder", "vit-tiny/16", "--image-size", "50x64"], "use multiples of 16 pixels"),
        (["--encoder", "vit-tiny/16", "--image-size", "16x64"], "use 32 or more"),
        (["--encoder", "vit-tiny/8", "--batch-size", "1"], "use 2 or more"),
        (["--encoder", "vit-tiny/8", "--batch-size", "8", "--accumulate", "8"], "use 16 or more"),
        (["--encoder", "vit-tiny/8", "--crop-scale", "0", "1"], "--crop-scale"),
        (["--encoder", "vit-tiny/8", "--jitter", "-1"], "--jitter is -1"),
        (["--encoder", "resnet18", "--layer-decay", "0.5"], "--layer-decay"),
        (["--encoder", "vit-tiny/8", "--ignore", "1", "2"], "one class"),
        (["--encoder", "vit-tiny/8", "--trim"], "--trim"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, line, pictures, tmp_path, capsys):
    told = ["--image-size", "64", "--device", "cpu", "--steps", "2", "--workers", "0", "--map-channels", "16"]
    assert run("segment", "--data", pictures[0], "--out", tmp_path / "run", *told, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()


def test_a_linear_head_takes_no_pyramid(segmented, pictures, tmp_path, capsys):
    for option in (["--window", "4"], ["--layer-decay", "0.5"]):
        told = ["--data", pictures[0], "--out", tmp_path / "run", "--head", "linear", "--steps", "2", *option]
        assert run("segment", segmented, *told) == 2
        assert f"{option[0]}: " in capsys.readouterr().err


def test_camvid_begins(data_dir, tmp_path):
    folder = data_dir / "camvid"
    if not folder.is_dir():
        pytest.skip("CamVid is not in the folder of real data sets")
    some = tmp_path / "some"
    for part in ("images", "masks"):
        (some / part).mkdir(parents=True)
        for path in sorted((folder / part / "train").iterdir())[::37]:
            (some / part / path.name).symlink_to(path)
    shutil.copy(folder / "classes.txt", some)
    told = ["--data", some, "--ignore", "11", "--encoder", "vit-tiny/16", "--image-size", "96x128", "--steps", "3"]
    assert run("segment", *told, "--batch-size", "4", "--map-channels", "16", "--out", tmp_path / "run") == 0
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    assert len(test["classes"]) == 11 and test["protocol"] == "held-out fifth by image" and test["pixels"] > 100_000
