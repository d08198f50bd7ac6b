"""Boxes and masks come out of COCO and Pascal VOC as they were drawn, follow their crop, and are refused in one line."""

import io
import json
import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from torchvision.ops import masks_to_boxes

from unmask.data.annotations import Annotated, Objects, open_annotations, render
from unmask.data.augment import View
from unmask.errors import BadInput

HEIGHT, WIDTH = 40, 60
BOX = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 10]}
TRIANGLE = [10, 5, 30, 5, 10, 15]


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **options)
    return path


def coco_file(root: Path, *annotations: dict, name: str = "boxes.json", **changes) -> Path:
    """Two images, a.jpg and b.jpg, beside the file; the first has the annotations."""
    content = {
        "images": [
            {"id": i, "file_name": f, "height": HEIGHT, "width": WIDTH} for i, f in ((1, "a.jpg"), (2, "b.jpg"))
        ],
        "categories": [{"id": 9, "name": "cell"}, {"id": 3, "name": "nucleus"}],
        "annotations": list(annotations),
        **changes,
    }
    for image in ("a.jpg", "b.jpg"):
        picture(root / image)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def voc(root: Path, *boxes: tuple[float, ...], name: str = "a", kind: str = "cell", size: str = "60 40") -> Path:
    width, height = size.split()
    things = "".join(
        f"<object><name>{kind}</name><difficult>{i % 2}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for i, (a, b, c, d) in enumerate(boxes)
    )
    text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{things}</annotation>"
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / f"Annotations/{name}.xml").write_text(text)
    picture(root / f"JPEGImages/{name}.jpg")
    return root


def refused(spec, *args, **options) -> str:
    with pytest.raises(BadInput) as caught:
        open_annotations(spec, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(path: Path) -> str:
    """The one remark that the first object causes, which is left out, and that a strict reading raises."""
    opened = open_annotations(path)
    remarks = [x for x in opened.remarks if "have no objects" not in x[1]]
    assert len(remarks) == 1 and remarks[0][1].endswith("; left out")
    line = ": ".join(remarks[0]).removesuffix("; left out")
    assert line == refused(path, strict=True)
    return line


def bitmap(*box: int) -> np.ndarray:
    """(HEIGHT, WIDTH), 1 in a box of whole pixels: left, top, right, bottom."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 1
    return pixels


def runs(pixels: np.ndarray, compressed: bool) -> dict:
    encoded = coco.encode(np.asfortranarray(pixels))
    if compressed:
        return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    flat = pixels.flatten("F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


# --- reading


def test_coco(tmp_path):
    crowd = {**BOX, "id": 8, "category_id": 9, "iscrowd": 1, "segmentation": runs(bitmap(0, 0, 9, 9), False)}
    opened = open_annotations(coco_file(tmp_path, {**BOX, "segmentation": [TRIANGLE]}, crowd))
    assert opened.classes == ("nucleus", "cell")  # by their ids
    first, second = opened.objects
    assert first.boxes.tolist() == [[10, 5, 30, 15]] * 2 and first.boxes.dtype == torch.float32
    assert first.classes.tolist() == [0, 1] and first.crowd.tolist() == [False, True] and first.size == (HEIGHT, WIDTH)
    assert first.masks[0][0].tolist() == [[10, 5], [30, 5], [10, 15]]
    assert np.array_equal(coco.decode(first.masks[1]), bitmap(0, 0, 9, 9))
    assert len(second) == 0 and second.boxes.shape == (0, 4) and second.masks == ()
    assert (
        opened.masked
        and opened.source.table.columns.tolist() == ["path"]
        and opened.source.image(1).shape[1:] == (40, 60)
    )
    assert [reason for _, reason in opened.remarks] == ["1 of 2 images have no objects; they are kept"]
    assert open_annotations(tmp_path / "boxes.json", classes=["cell", "x", "nucleus"]).objects[0].classes.tolist() == [
        2,
        0,
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_runs_are_read_as_pycocotools_reads_them(tmp_path, compressed):
    shapes = [
        np.random.default_rng(i).random((HEIGHT, WIDTH)) < share for i, share in enumerate((0, 0.002, 0.1, 0.5, 1))
    ]
    blobs = [*(x.astype(np.uint8) for x in shapes), bitmap(3, 2, 50, 31), bitmap(0, 0, 1, 1)]
    things = [{**BOX, "id": i, "segmentation": runs(blob, compressed)} for i, blob in enumerate(blobs)]
    opened = open_annotations(coco_file(tmp_path, *things), strict=True)
    for mask, blob in zip(opened.objects[0].masks, blobs, strict=True):
        assert np.array_equal(coco.decode(mask), blob)


def test_runs_are_resized_to_the_nearest_pixel():
    pixels = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    mask = {**coco.encode(np.asfortranarray(pixels))}
    for size in ((10, 15), (80, 120), (17, 23)):
        whole = torch.from_numpy(pixels)[None, None, 5:35, 10:50].float()
        expected = F.interpolate(whole, size, mode="nearest-exact")[0, 0]
        assert np.array_equal(render(mask, (5, 10, 30, 40), size), expected.numpy())


def test_voc(tmp_path):
    voc(tmp_path / "VOC2012", (1, 1, 60, 40), (11, 6, 30, 15))
    voc(tmp_path / "VOC2012", (2, 3, 4, 5), name="b", kind="animal", size="0 0")  # as some tools write it
    lists = tmp_path / "VOC2012/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\n\n")
    (lists / "cell_train.txt").write_text("b -1\n")
    opened = open_annotations(tmp_path)
    assert opened.classes == ("animal", "cell") and not opened.masked and not opened.remarks
    assert opened.objects[0].boxes.tolist() == [[0, 0, 60, 40], [10, 5, 30, 15]]
    assert opened.objects[0].crowd.tolist() == [False, True] and opened.objects[0].classes.tolist() == [1, 1]
    assert opened.objects[1].size == (40, 60)
    train = open_annotations(f"{tmp_path}:train")
    assert train.source.table["path"].tolist() == ["b.jpg"] and train.classes == ("animal",)
    assert refused(f"{tmp_path}:test").endswith('no split "test"; there is train')
    assert '"animal" is none of cell' in refused(f"{tmp_path}:train", classes=["cell"])


@pytest.mark.parametrize("place", [".", "images", "../train2017", "../images", "../images/train2017", "elsewhere"])
def test_places_of_images(tmp_path, place):
    path = coco_file(tmp_path / "annotations", BOX, name="instances_train2017.json")
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "annotations" / name).rename(picture(tmp_path / "annotations" / place / name))
    folder = tmp_path / "annotations/elsewhere" if place == "elsewhere" else None
    opened = open_annotations(path, folder)
    assert len(opened) == 2 and opened.source.image(0).shape == (3, HEIGHT, WIDTH)


def test_subset_fingerprint_and_pickle(tmp_path):
    opened = open_annotations(coco_file(tmp_path, BOX, {**BOX, "image_id": 2, "segmentation": [TRIANGLE]}))
    assert not opened.masked and "1 of 2 objects have no mask" in opened.remarks[0][1]
    part = opened.subset([1])
    assert len(part) == 1 and part.source.table["path"].tolist() == ["b.jpg"] and part.objects[0].masks
    prints = {opened.fingerprint(), part.fingerprint()}
    for change in ({"category_id": 9}, {"iscrowd": 1}, {"bbox": [10, 5, 20, 11]}, {"segmentation": [TRIANGLE]}):
        prints.add(open_annotations(coco_file(tmp_path, BOX | change, {**BOX, "image_id": 2})).fingerprint())
    assert len(prints) == 6 and all(len(x) == 12 for x in prints)
    copy: Annotated = pickle.loads(pickle.dumps(opened))
    assert copy.fingerprint() == opened.fingerprint()
    # a tensor sent to a spawned process is a file held open; the objects of many images must not be
    buffer = io.BytesIO()
    multiprocessing.reduction.ForkingPickler(buffer).dump(opened.objects[0])
    assert b"torch.multiprocessing" not in buffer.getvalue()


# --- cutting


def crops(draw):
    top, left = draw(st.integers(0, HEIGHT - 4)), draw(st.integers(0, WIDTH - 4))
    height, width = draw(st.integers(4, HEIGHT - top)), draw(st.integers(4, WIDTH - left))
    return torch.tensor([top, left, height, width, draw(st.integers(0, 1))])


@st.composite
def cases(draw):
    """Boxes of whole pixels, a crop and the size of a view."""
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        left, top = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
        boxes.append((left, top, draw(st.integers(left + 1, WIDTH)), draw(st.integers(top + 1, HEIGHT))))
    size = draw(st.tuples(st.integers(4, 90), st.integers(4, 90)))
    return boxes, crops(draw), size


def objects_of(boxes, masks=(), crowd=None) -> Objects:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kinds = torch.arange(len(boxes))
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return Objects(tensor, kinds, crowd, tuple(masks), (HEIGHT, WIDTH))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_boxes_follow_their_crop(case):
    boxes, crop, size = case
    cut = objects_of(boxes).cut(crop, size)
    top, left, height, width, flipped = crop.tolist()
    expected, kept = [], []
    for i, box in enumerate(boxes):  # counted in pixels, not reckoned with edges
        xs = [x for x in range(box[0], box[2]) if left <= x < left + width]
        ys = [y for y in range(box[1], box[3]) if top <= y < top + height]
        share = len(xs) * len(ys) / ((box[2] - box[0]) * (box[3] - box[1]))
        if not xs or not ys or share < 0.3 - 1e-6 or len(xs) * size[1] < width or len(ys) * size[0] < height:
            continue
        a, b = (xs[0] - left) * size[1] / width, (xs[-1] + 1 - left) * size[1] / width
        a, b = (size[1] - b, size[1] - a) if flipped else (a, b)
        expected.append([a, (ys[0] - top) * size[0] / height, b, (ys[-1] + 1 - top) * size[0] / height])
        kept.append(i)
    assert cut.which.tolist() == cut.classes.tolist() == kept
    torch.testing.assert_close(cut.boxes, torch.tensor(expected).reshape(-1, 4), rtol=1e-5, atol=1e-4)
    assert cut.masks is None and cut.boxes.dtype == torch.float32


@given(cases(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_masks_follow_their_boxes(case, polygons):
    boxes, crop, size = case
    if polygons:
        masks = [(np.array([[a, b], [c, b], [c, d], [a, d]], dtype=np.float32),) for a, b, c, d in boxes]
    else:
        masks = [{**coco.encode(np.asfortranarray(bitmap(*box))), "size": [HEIGHT, WIDTH]} for box in boxes]
    cut = objects_of(boxes, masks).cut(crop, size, masks=True)
    assert cut.masks is not None and cut.masks.shape == (len(cut.boxes), *size) and cut.masks.dtype == torch.uint8
    sides = cut.boxes[:, 2:] - cut.boxes[:, :2]
    for mask, box, side in zip(cut.masks, cut.boxes, sides, strict=True):
        if side.min() < 2:  # so thin that it may miss the middle of every pixel
            continue
        found = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])  # its ends are pixels, not edges
        assert (found - box).abs().max() <= 1


@given(cases())
@settings(max_examples=100, deadline=None)
def test_a_crop_at_full_size_is_a_piece_of_the_whole(case):
    boxes, crop, _ = case
    top, left, height, width, flipped = crop.tolist()
    triangles = [(np.array([[a, b], [c, b], [a, d]], dtype=np.float32),) for a, b, c, d in boxes]
    encoded = [coco.merge(coco.frPyObjects([x.ravel().tolist() for x in mask], HEIGHT, WIDTH)) for mask in triangles]
    for masks in (triangles, encoded):
        cut = objects_of(boxes, masks).cut(crop, (height, width), least=0, masks=True)
        for mask, i in zip(cut.masks, cut.which, strict=True):
            low = high = torch.from_numpy(coco.decode(encoded[i]))[None].float()
            if masks is triangles:  # pycocotools rounds to fifths of a pixel, towards the corner of the crop
                low, high = -F.max_pool2d(-low, 3, 1, 1), F.max_pool2d(high, 3, 1, 1)
            low, high = (x[0, top : top + height, left : left + width] for x in (low, high))
            found = mask.flip(1) if flipped else mask
            assert ((found >= low) & (found <= high)).all()


def test_masks_keep_their_area():
    """A disc drawn at the size of the view has the area of the disc, whole or as runs."""
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    disc = (np.stack([30 + 12 * np.cos(angles), 20 + 12 * np.sin(angles)], axis=1).astype(np.float32),)
    encoded = coco.merge(coco.frPyObjects([disc[0].ravel().tolist()], HEIGHT, WIDTH))
    for mask in (disc, encoded):
        cut = objects_of([[18, 8, 42, 32]], [mask]).cut(torch.tensor([4, 10, 30, 40, 1]), (120, 160), masks=True)
        assert abs(int(cut.masks.sum()) / (math.pi * 48**2) - 1) < 0.04
        assert cut.boxes.tolist() == [[32, 16, 128, 112]]
    fine = render(disc, (4, 10, 30, 40), (120, 160))
    assert abs(int(fine.sum()) / (math.pi * 48**2) - 1) < 0.01  # a bitmap resized would have steps


def test_crowds_stay_and_shares_count():
    crop = torch.tensor([0, 0, HEIGHT, 20, 0])
    box = [[10, 0, 50, 20]]  # a quarter inside
    assert len(objects_of(box).cut(crop, (40, 20)).boxes) == 0
    assert len(objects_of(box).cut(crop, (40, 20), least=0.25).boxes) == 1
    assert objects_of(box, crowd=[True]).cut(crop, (40, 20)).crowd.tolist() == [True]
    assert len(objects_of(box, crowd=[True]).cut(torch.tensor([30, 0, 10, 20, 0]), (40, 20)).boxes) == 0
    bare = objects_of(box).cut(torch.tensor([0, 0, HEIGHT, WIDTH, 0]), (HEIGHT, WIDTH), masks=True)
    assert bare.masks.shape == (1, HEIGHT, WIDTH) and not bare.masks.any()


def test_boxes_of_a_view_are_where_its_pixels_are():
    """A white box in a black image through the view itself."""
    image = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.uint8)
    image[:, 12:30, 20:44] = 255
    view = View((64, 64), crop_scale=(0.3, 1.0))
    seeds = torch.arange(20)
    for row in view.draw(seeds, torch.full((20,), HEIGHT), torch.full((20,), WIDTH)):
        cut = objects_of([[20, 12, 44, 30]]).cut(row, view.size, least=0.01)
        bright = view.render(image, row) > 127
        if len(cut.boxes):
            found = masks_to_boxes(bright)[0] + torch.tensor([0, 0, 1, 1])
            assert (found - cut.boxes[0]).abs().max() <= 1


# --- what is wrong with files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": [10, 5, 0, 10]}, "no width or height"),
        ({"bbox": [10, 5, -3, 10]}, "no width or height"),
        ({"bbox": [70, 5, 10, 10]}, "lies outside its image of 60 x 40"),
        ({"bbox": [10, 5, float("nan"), 10]}, "not finite"),
        ({"bbox": [10, 5, 10**400, 10]}, '"bbox" is not'),
        ({"bbox": [10, 5, 20]}, '"bbox" is not'),
        ({"bbox": None}, '"bbox" is not'),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "7 numbers"),
        ({"segmentation": [[1, 2, 3, 4]]}, "2 points, fewer than 3"),
        ({"segmentation": [[]]}, "0 points, fewer than 3"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "not finite"),
        ({"segmentation": [["a"] * 6]}, "not a list of numbers"),
        ({"segmentation": "x"}, "neither polygons"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "has the size [3, 4]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [12, 3]}}, "for 15 pixels, its image has 2,400"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [2410, -10]}}, "for 2,400 pixels"),
        ({"segmentation": {"size": [HEIGHT, WIDTH]}}, "no counts"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "P9z"}}, "character that cannot"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "PP"}}, "breaks off"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ""}}, "for 0 pixels"),
        ({"image_id": 5}, "image 5, which is not listed"),
    ],
)
def test_an_object_is_left_out(tmp_path, change, words):
    other = {**BOX, "id": 8, "image_id": 2, "segmentation": [TRIANGLE]}
    path = coco_file(tmp_path, {**BOX, "segmentation": [TRIANGLE], **change}, other)
    line = said(path)
    assert words in line and str(path) in line and "annotation 7" in line
    assert "a.jpg" in line or "image_id" in change
    assert sum(map(len, open_annotations(path).objects)) == 1


def test_boxes_that_stick_out_are_clipped(tmp_path):
    near, far = {**BOX, "bbox": [-1, 5, 20, 35.5]}, {**BOX, "id": 8, "bbox": [50, 30, 20, 20]}
    opened = open_annotations(coco_file(tmp_path, near, far))
    assert opened.objects[0].boxes.tolist() == [[0, 5, 19, 40], [50, 30, 60, 40]]
    (line,) = (reason for _, reason in opened.remarks if "clipped" in reason)
    assert line.startswith("1 of 2 boxes stick out") and "annotation 8, box [50, 30, 70, 50] in 60 x 40" in line
    open_annotations(tmp_path / "boxes.json", strict=True)  # what is only noted is not raised


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 5}, 'no list "images"'),
        ({"categories": [{"id": 3}]}, "category number 0"),
        ({"categories": [{"id": 3, "name": "x"}, {"id": 3, "name": "y"}]}, "two categories"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "two images have the id 1"),
        ({"images": [{"id": 1}]}, 'image number 0 has no "id" or no "file_name"'),
        ({"images": [{"id": 1, "file_name": "c.jpg"}]}, "none of its 1 images is there (looked in"),
        ({"images": [{"id": 1, "file_name": "c" * 999}]}, "none of its 1 images is there"),
        ({"categories": [{"id": 4, "name": "x"}]}, "a.jpg, annotation 7: category 3 is not listed"),
        ({"annotations": [5]}, "annotation number 0"),
        ({"annotations": []}, "no object in any of 2 images"),
    ],
)
def test_a_coco_file_is_refused(tmp_path, changes, words):
    path = coco_file(tmp_path, BOX, **changes)
    line = refused(path)
    assert words in line and str(path) in line


def test_files_are_refused(tmp_path):
    path = coco_file(tmp_path, BOX)
    assert 'annotation 7: class "nucleus" is none of cell' in refused(path, classes=["cell"])
    assert "no such folder" in refused(path, tmp_path / "nothing")
    assert "no folder Annotations" in refused(tmp_path) and "boxes.json" in refused(tmp_path)
    assert "not annotations" in refused(tmp_path / "a.jpg")
    assert "no such file or folder" in refused(tmp_path / "nothing.json")
    for text in ("{", "[" * 100_000, ""):
        path.write_text(text)
        assert "is not JSON" in refused(path)
    path.write_bytes(b"\xff\xfe\xfd")
    assert "is not JSON" in refused(path)
    path.write_text("[1]")
    assert 'no list "images"' in refused(path)


def test_images_are_left_out(tmp_path):
    path = coco_file(tmp_path, BOX, {**BOX, "image_id": 2})
    (tmp_path / "a.jpg").unlink()
    line = said(path)
    assert line.startswith("a.jpg: no such image") and str(tmp_path / "images") in line
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    assert "a.jpg: cannot be read (not an image" in said(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", exif=exif)  # upright, it is 40 wide and 60 high
    assert "is 40 x 60 pixels" in said(path) and "EXIF" in said(path)
    picture(tmp_path / "a.jpg", 2 * HEIGHT, 2 * WIDTH)
    assert "resized after it was annotated" in said(path)
    picture(tmp_path / "a.jpg", HEIGHT, WIDTH + 9)
    assert "says 60 x 40; find the image" in said(path)
    (tmp_path / "b.jpg").write_bytes(b"")
    assert "none of 2 images can be used" in refused(path)


def test_voc_slips(tmp_path):
    voc(tmp_path, (2, 3, 4, 5))
    voc(tmp_path, (2, 3, 2, 5), (4, 4, 9, 9), name="b")
    assert "b.xml, object 1: box xmin, ymin, xmax, ymax [2, 3, 2, 5] has no width" in said(tmp_path)
    voc(tmp_path, ("", 3, 2, 5), (4, 4, 9, 9), name="b")
    assert "bndbox has not the numbers" in said(tmp_path)
    voc(tmp_path, ("nan", 3, 2, 5), (4, 4, 9, 9), name="b")
    assert "not finite" in said(tmp_path)
    (tmp_path / "Annotations/b.xml").write_text("<annotation>")
    assert "b.xml: is not XML" in said(tmp_path)
    voc(tmp_path, (2, 3, 4, 5), name="b", kind="")
    assert "b.xml, object 1: it has no name" in refused(tmp_path)
    voc(tmp_path, (2, 3, 4, 5), name="b", size="40 60")
    assert "b.jpg: is 60 x 40" in said(tmp_path)
    (tmp_path / "JPEGImages/b.jpg").unlink()
    assert "b: no such image for" in said(tmp_path)
    voc(tmp_path / "two", (2, 3, 4, 5))
    voc(tmp_path / "one", (2, 3, 4, 5))
    (tmp_path / "Annotations").rename(tmp_path / "away")
    assert "several annotated folders" in refused(tmp_path)


def test_bccd(data_dir):
    parts = {split: open_annotations(f"{data_dir / 'bccd'}{split}") for split in ("", ":train", ":val", ":test")}
    assert [len(x) for x in parts.values()] == [364, 205, 87, 72]
    assert [sum(map(len, x.objects)) for x in parts.values()] == [4886, 2804, 1137, 945]
    assert all(x.classes == ("Platelets", "RBC", "WBC") and not x.masked for x in parts.values())
    # two boxes of all are clicks without width, and nothing else is wrong with it
    assert [len(x.remarks) for x in parts.values()] == [2, 1, 1, 0]
    first = parts[""].objects[0]
    assert first.boxes[0].tolist() == [259, 176, 491, 376] and first.classes[0] == 2 and first.size == (480, 640)
