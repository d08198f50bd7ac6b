"""Finding objects: the model beside torchvision's own, average precision beside pycocotools', and learning."""

import dataclasses
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

import unmask
from unmask import models
from unmask.cli import main
from unmask.data.annotations import Objects, open_annotations
from unmask.data.augment import View
from unmask.data.decode import Preprocess
from unmask.data.loader import Loader
from unmask.errors import BadInput
from unmask.evaluate import detection
from unmask.evaluate.detection import (
    Detection,
    Found,
    Settings,
    average_precision,
    blind,
    evaluate,
    find,
    fitted,
    of_class,
    report,
)
from unmask.models.detection import Detector, load, save
from unmask.models.pyramid import Pyramid
from unmask.training.engine import Clock, fit
from unmask.training.optim import Recipe

CPU = {"device": torch.device("cpu"), "precision": "float32"}
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200)}


def drawn(folder: Path, count: int, seed: int = 0, masks: bool = True) -> Path:
    """Images of 64 x 64 noisy grey pixels with one to three squares in red or blue, as COCO has them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images, rows = [], []
    for i in range(count):
        pixels = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        for _ in range(rng.integers(1, 4)):
            side, k = int(rng.integers(12, 24)), int(rng.integers(2))
            x, y = (int(n) for n in rng.integers(0, 64 - side, 2))
            pixels[y : y + side, x : x + side] = list(COLOURS.values())[k]
            row = {"id": len(rows) + 1, "image_id": i, "category_id": k, "bbox": [x, y, side, side], "iscrowd": 0}
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            rows.append(row | {"area": side * side} | ({"segmentation": [corners]} if masks else {}))
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
    categories = [{"id": k, "name": name} for k, name in enumerate(COLOURS)]
    path = folder / "objects.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    return drawn(tmp_path_factory.mktemp("squares") / "train", 24)


def small(masks=False, **options):
    torch.manual_seed(0)
    encoder = models.ViT((64, 64), 8, 3, 64, 4, 2, positions="sincos", pool="mean")
    return Detector(
        Pyramid(encoder, "simple", 32), tuple(COLOURS), masks=masks, **{"anchor": 8.0, "proposals": 32, **options}
    )


def batch_of(annotated, size=(64, 64), count=4):
    preprocess = Preprocess(3, (0.45,) * 3, (0.2,) * 3)
    return next(Loader(annotated.source, preprocess, (View(size),), count)(0))


class Maps(torch.nn.Module):
    """A pyramid as torchvision's detectors want it."""

    def __init__(self, pyramid):
        super().__init__()
        self.pyramid, self.out_channels = pyramid, pyramid.channels

    def forward(self, images):
        maps = self.pyramid(images)
        named = {str(i): x for i, x in enumerate(maps)}
        return named | {"pool": torch.nn.functional.max_pool2d(maps[-1], 1, 2)}


@pytest.mark.parametrize("masks", [False, True])
def test_it_computes_what_torchvisions_detectors_do(squares, masks):
    """On shared weights: the same losses in training (the same samples drawn), the same finds afterwards."""
    ours = small(masks)
    sizes = tuple((8.0 * 2**i,) for i in range(5))
    kind, options = (MaskRCNN, {}) if masks else (FasterRCNN, {})
    if masks:
        options = {"mask_head": ours.heads.mask_head, "mask_predictor": ours.heads.mask_predictor}
    before = {"rpn_pre_nms_top_n_train": 128, "rpn_post_nms_top_n_train": 128}
    before |= {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 300, "box_batch_size_per_image": 32}
    theirs = kind(
        Maps(ours.pyramid),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        rpn_head=ours.rpn.head,
        box_head=ours.heads.box_head,
        box_predictor=ours.heads.box_predictor,
        min_size=64,
        max_size=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        **before,
        **options,
    )
    annotated = open_annotations(squares)
    method = Detection(ours, Settings(), annotated, (64, 64))
    batch = batch_of(annotated)
    targets = method.targets(batch)
    assert all(len(each["boxes"]) for each in targets)
    torch.manual_seed(1)
    losses, blind_losses = ours.train().losses(batch.views[0], targets)
    torch.manual_seed(1)
    theirs.train().transform.eval()  # which would draw a size, and so other samples
    expected = theirs(list(batch.views[0]), targets)
    names = {"objectness": "loss_objectness", "proposals": "loss_rpn_box_reg", "classes": "loss_classifier"}
    names |= {"boxes": "loss_box_reg"} | ({"masks": "loss_mask"} if masks else {})
    assert losses.keys() == names.keys() == blind_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-4, atol=1e-5)
    ours.heads.score_thresh = theirs.roi_heads.score_thresh = 0.2
    with torch.no_grad():
        found, expected = ours.eval()(batch.views[0]), theirs.eval()(list(batch.views[0]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["scores"], other["scores"])
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(one["classes"] + 1, other["labels"])


def test_what_a_blind_model_loses_is_what_the_best_constants_lose(squares):
    """Heads that give every box the same, the best constants for this batch, lose what is called uninformed."""
    detector = small(masks=True)
    annotated = open_annotations(squares)
    batch = batch_of(annotated, count=8)
    targets = Detection(detector, Settings(), annotated, (64, 64)).targets(batch)
    with torch.no_grad():
        for module in (detector.rpn.head, detector.heads.box_predictor, detector.heads.mask_predictor):
            for parameter in module.parameters():
                parameter.zero_()
        losses, blind_losses = detector.train().losses(batch.views[0], targets)
    assert losses["objectness"] == pytest.approx(np.log(2), rel=1e-4)
    assert losses["classes"] == pytest.approx(np.log(3), rel=1e-4)
    assert losses["masks"] == pytest.approx(np.log(2), rel=1e-4)
    for name in ("proposals", "boxes"):  # moving nothing is what the blind model does
        assert losses[name] == pytest.approx(float(blind_losses[name]), rel=0.1)
    for name in ("objectness", "classes", "masks"):
        assert 0 < blind_losses[name] < losses[name]


def test_all_that_learns_gets_a_gradient_and_objects_follow_the_crop(squares):
    annotated = open_annotations(squares)
    method = Detection(small(masks=True), Settings(), annotated, (64, 64))
    batch = batch_of(annotated, count=8)
    values = method.train()(batch, Clock(0, 10, 0.0))
    values["loss"].backward()
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    own = {"objectness_loss", "proposals_loss", "classes_loss", "boxes_loss", "masks_loss"}
    assert values.keys() == {"loss", "uninformed", *own}
    preprocess = Preprocess(3, (0.45,) * 3, (0.2,) * 3)
    shown = preprocess.denormalise(batch.views[0])
    for image, target in zip(shown, method.targets(batch), strict=True):
        for box, label in zip(target["boxes"].round().int().tolist(), target["labels"].tolist(), strict=True):
            left, top, right, bottom = box
            middle = image[:, (top + bottom) // 2, (left + right) // 2]
            strongest = {0: "red", 2: "blue"}.get(int(middle.argmax()))
            others = sum(
                b[0] <= (left + right) / 2 <= b[2] and b[1] <= (top + bottom) / 2 <= b[3]
                for b in target["boxes"].tolist()
            )
            assert others > 1 or strongest == list(COLOURS)[label - 1]


def test_it_learns_to_find_squares_and_is_kept(squares, tmp_path):
    annotated = open_annotations(squares)
    method = Detection(small(), Settings(), annotated, (64, 64))
    preprocess = Preprocess(3, (0.45,) * 3, (0.2,) * 3)
    loader = Loader(annotated.source, preprocess, method.views, 8)
    history = fit(method, loader, Recipe(steps=120, lr=1e-3, warmup=10, weight_decay=0.01))
    assert history[-1]["loss"] < 0.6 * history[-1]["uninformed"]
    test = open_annotations(drawn(tmp_path / "test", 12, seed=1))
    found = find(method.detector, test.source, preprocess, (64, 64), **CPU)
    told = report(found, test, resamples=50)
    unseen = report(blind(annotated, test), test, resamples=1)
    assert told["ap50"] > 0.5 > 0.3 > unseen["ap50"] and told["ap50_low"] > unseen["ap50"]

    save(method.detector, tmp_path, {"name": "small", "preprocess": preprocess.to_dict()})
    again, config = load(tmp_path)
    assert config["name"] == "small"
    for one, other in zip(find(again, test.source, preprocess, (64, 64), **CPU), found, strict=True):
        assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)


# Average precision

box = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(3, 40), st.integers(3, 40))
thing = st.tuples(box, st.integers(0, 1), st.floats(0.05, 1.0), st.booleans())


def objects_of(rows):
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), *_ in rows], dtype=torch.float32).view(-1, 4)
    classes = torch.tensor([k for _, k, *_ in rows], dtype=torch.int64)
    crowd = torch.tensor([c and i % 3 == 0 for i, (*_, c) in enumerate(rows)], dtype=torch.bool)
    return Objects(boxes, classes, crowd, (), (100, 100))


def finds_of(rows, jolt):
    boxes = np.array([[x + jolt, y, x + w + jolt, y + h] for (x, y, w, h), *_ in rows], dtype=np.float32).reshape(-1, 4)
    return Found(
        boxes, np.array([k for _, k, *_ in rows], dtype=np.int64), np.array([s for *_, s, _ in rows], dtype=np.float32)
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.lists(thing, max_size=5), st.lists(thing, max_size=6)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_average_precision_is_pycocotools(images, jolt):
    truths = tuple(objects_of(there) for there, _ in images)
    found = [finds_of([*there[:3], *more], jolt) for there, more in images]
    annotated = annotated_of(truths)
    with redirect_stdout(io.StringIO()):
        evaluated = evaluate(found, annotated, masks=False)
        evaluated.accumulate()
        evaluated.summarize()
    per_class = np.array([average_precision(of_class(evaluated, k), np.ones(len(images))) for k in range(2)])
    there = ~np.isnan(per_class[:, 0])
    if not there.any():
        assert evaluated.stats[0] == -1
    else:
        assert per_class[there].mean() == pytest.approx(evaluated.stats[0], abs=1e-9)
        assert per_class[there, 0].mean() == pytest.approx(evaluated.stats[1], abs=1e-9)
    # an image that counts twice is one that is there twice
    weights = np.array([2.0] + [1.0] * (len(images) - 1))
    doubled = annotated_of((truths[0], *truths))
    with redirect_stdout(io.StringIO()):
        again = evaluate([found[0], *found], doubled, masks=False)
    for k in range(2):
        one, other = of_class(evaluated, k), of_class(again, k)
        if len(set(one.scores)) == len(one.scores):  # the order of finds of equal scores is chance
            np.testing.assert_allclose(
                average_precision(one, weights), average_precision(other, np.ones(len(images) + 1)), atol=1e-9
            )


def annotated_of(truths):
    source = unmask.data.sources.open_source("digits").subset(np.arange(len(truths)))
    from unmask.data.annotations import Annotated

    return Annotated(source, tuple(COLOURS), truths, False)


def test_masks_are_judged_as_masks(squares):
    """The truth as finds is perfect by boxes and by masks; masks of the wrong half are not."""
    annotated = open_annotations(squares).subset([0, 1, 2])
    runs = [[detection.encoded(objects, j) for j in range(len(objects))] for objects in annotated.objects]
    found = [
        Found(o.boxes.numpy(), o.classes.numpy(), np.full(len(o), 0.9, dtype=np.float32), tuple(masks))
        for o, masks in zip(annotated.objects, runs, strict=True)
    ]
    for masks in (False, True):
        told = report(found, annotated, masks=masks, resamples=20)
        assert told["ap"] == pytest.approx(1.0) and told["ap50_low"] == pytest.approx(1.0)
    halves = []
    for each in found:
        shapes = [detection.coding().decode(run) for run in each.masks]
        for shape, (left, *_, right) in zip(shapes, each.boxes[:, [0, 1, 3, 2]].astype(int), strict=True):
            shape[:, (left + right) // 2 - 2 :] = 0
        cut = tuple(detection.coding().encode(np.asfortranarray(shape)) for shape in shapes)
        halves.append(dataclasses.replace(each, masks=cut))
    assert report(halves, annotated, masks=True, resamples=20)["ap50"] < 0.2
    assert report([None, *found[1:]], annotated, resamples=20)["ap50"] < 1.0


def test_an_image_is_seen_whole_whatever_its_shape():
    view, scale = fitted(torch.zeros(3, 100, 50), (64, 64))
    assert view.shape == (3, 64, 32) and scale == 0.64
    view, scale = fitted(torch.zeros(3, 10, 1000), (64, 96))
    assert view.shape == (3, 1, 96) and scale == 0.096


# The command


def test_the_command_is_gone_on_with_and_judged(squares, tmp_path, capsys):
    options = ["--data", str(squares), "--encoder", "vit-tiny/8", "--image-size", "64", "--map-channels", "32"]
    options += ["--proposals", "16", "--steps", "3", "--batch-size", "4", "--precision", "float32", "--seed", "3"]
    main_of(["detect", *options, "--out", str(tmp_path / "whole")])
    test = json.loads((tmp_path / "whole" / "test.json").read_text())
    assert (
        test["kind"] == "detection"
        and test["n"] == 5
        and test["train"] == 19
        and test["protocol"] == "held-out fifth by image"
    )
    assert "masks" in test  # every square has one
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "What it finds, in images it never saw" in page and test["sentence"].split(":")[0][:40] in page
    assert (tmp_path / "whole" / "figures" / "found.png").stat().st_size > 10_000

    # killed after a step, it ends in the same weights
    out = tmp_path / "halted"
    calls, real = [], Detection.forward

    def failing(self, batch, clock):
        calls.append(clock.step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detection, "forward", failing)
        with pytest.raises(KeyboardInterrupt):
            unmask.detect(
                data=squares, out=out, encoder="vit-tiny/8", image_size=64, map_channels=32, proposals=16, steps=3,
                batch_size=4, precision="float32", seed=3,
            )  # fmt: skip
    unmask.detect(out=out, resume=True)
    for name in ("encoder", "head"):
        one, other = ((folder / name / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", out))
        assert one == other

    # what was found by the command in new images, and by Python
    main_of(["predict", str(out), "--data", str(squares.parent), "--out", str(tmp_path / "found.csv")])
    table = unmask.predict(out, data=squares.parent, out=tmp_path / "again.parquet")
    assert list(table) == ["path", "class", "score", "left", "top", "right", "bottom"]
    assert (tmp_path / "found.csv").read_text().count("\n") == len(table) + 1
    with pytest.raises(BadInput, match="no classifier, but a detector"):
        unmask.distill(out, data=squares.parent, out=tmp_path / "student")
    encoder, _ = unmask.load(out)
    assert encoder.width == 192


def main_of(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None), arguments


BAD = {
    "--trim is": (["--trim"], "whole images"),
    "no multiple": (["--image-size", "50"], "multiples of 32"),
    "two encoders": (["RUN", "--encoder", "resnet18"], "from scratch"),
    "no such encoder": (["--encoder", "vit-tiny/7"], "do not tile"),
    "an fpn for a ViT": (["--encoder", "vit-tiny/8", "--pyramid", "fpn"], "not for ViT"),
    "a crop": (["--encoder", "vit-tiny/8", "--crop-scale", "0.5", "2"], "two shares"),
    "held": (["--hold"], "leave it out"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(squares, tmp_path, capsys, name):
    arguments, words = BAD[name]
    arguments = ["detect", *arguments, "--data", str(squares), "--out", str(tmp_path / "run")]
    if "--image-size" not in arguments:
        arguments += ["--image-size", "64"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and words in said
    assert not (tmp_path / "run").exists()


def test_boxes_without_masks_learn_no_masks(tmp_path):
    path = drawn(tmp_path / "data", 5, masks=False)
    with pytest.raises(BadInput, match="objects without a mask"):
        unmask.detect(data=path, out=tmp_path / "run", encoder="vit-tiny/8", image_size=64, masks=True)


def test_a_few_steps_on_blood_cells(data_dir, tmp_path):
    folder = data_dir / "bccd" / "BCCD"
    result = unmask.detect(
        data=f"{folder}:train", test=f"{folder}:val", out=tmp_path / "run", encoder="resnet18", image_size="96x128", steps=2,
        map_channels=32, proposals=16, batch_size=4, workers=0, strict=False,
    )  # fmt: skip
    assert result["test"]["n"] == 87 and result["test"]["objects"] > 1000
    assert 0 <= result["test"]["ap50"] < 0.5
