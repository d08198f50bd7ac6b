"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) on a pyramid of maps (Lin et al. 2017).

Anchors, matching, sampling, box coding, RoIAlign, heads and losses are torchvision's, with its settings; what runs is written
out here: maps in the precision of the run, all that measures boxes in float32; and what a model that knows nothing of the
image would lose on the very same samples.

Deviations from torchvision: anchors are laid by the true stride of each map, also where the image is no multiple of it; their
smallest size is a setting. From MAE's and ViTDet's detectors: torchvision's heads (two linear layers for boxes, four
convolutions for masks) without their norms.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    fastrcnn_loss,
    maskrcnn_inference,
    maskrcnn_loss,
    project_masks_on_boxes,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from unmask.models import Encoder, heads
from unmask.models.pyramid import Pyramid

RATIOS = 0.5, 1.0, 2.0
"""Height over width of the anchors of each size."""
SAMPLED = 512
"""Proposals of an image that learn (torchvision's; He et al. 2017 with FPN)."""
MASK_SIDE = 28
"""Pixels a side that a mask is predicted in, within its box."""

Target = dict[str, Tensor]
"""Objects of an image: "boxes" (n, 4) float32, left, top, right, bottom in pixels; "labels" (n,) int64, from 1 on (0 is the
ground); "masks" (n, H, W) uint8 where masks are learnt."""


class Detector(nn.Module):
    """Images to boxes, classes, scores, and masks where `masks`.

    pyramid: with the encoder. classes: their names. anchor: side in pixels of the smallest anchors, those of the finest map; the
    next map's are twice as large, and so on; a fifth map, every second place of the last one, makes the largest. proposals: how
    many of an image learn; four times as many are proposed in training, twice as many (at least 300) afterwards.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        classes: tuple[str, ...],
        *,
        masks: bool = False,
        anchor: float = 32.0,
        proposals: int = SAMPLED,
    ):
        super().__init__()
        self.pyramid, self.classes, self.masks = pyramid, classes, masks
        self.anchor, self.proposals = anchor, proposals
        channels, outputs = pyramid.channels, len(classes) + 1
        sizes = tuple((anchor * 2**i,) for i in range(5))
        before = {"training": 4 * proposals, "testing": max(300, 2 * proposals)}
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (RATIOS,) * 5),
            RPNHead(channels, len(RATIOS)),
            0.7,
            0.3,
            256,
            0.5,
            before,
            before,
            0.7,
        )
        levels = [str(i) for i in range(4)]
        masked: list[Any] = [None] * 3
        if masks:
            masked = [MultiScaleRoIAlign(levels, MASK_SIDE // 2, 2), MaskRCNNHeads(channels, (channels,) * 4, 1)]
            masked.append(MaskRCNNPredictor(channels, channels, outputs))
        self.heads = RoIHeads(
            MultiScaleRoIAlign(levels, 7, 2),
            TwoMLPHead(channels * 7**2, 1024),
            FastRCNNPredictor(1024, outputs),
            0.5,
            0.5,
            proposals,
            0.25,
            None,
            0.05,
            0.5,
            100,
            *masked,
        )

    @property
    def encoder(self) -> Any:
        return self.pyramid.encoder

    def propose(self, maps: list[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
        """Boxes that may hold something, (n, 4) an image; objectness (A, 1) and deltas (A, 4) of all anchors of all images, and
        those anchors, (a, 4) an image."""
        maps = [*maps, F.max_pool2d(maps[-1], 1, 2)]
        strides = [*self.pyramid.strides, 2 * self.pyramid.strides[-1]]
        generator = self.rpn.anchor_generator
        generator.set_cell_anchors(torch.float32, maps[0].device)
        grids = [list(x.shape[-2:]) for x in maps]
        laid = torch.cat(generator.grid_anchors(grids, [[torch.tensor(s)] * 2 for s in strides]))  # type: ignore[misc]
        anchors = [laid.to(maps[0].device)] * len(maps[0])

        there, moved = self.rpn.head(maps)
        counts = [x[0].numel() for x in there]
        objectness, deltas = concat_box_prediction_layers([x.float() for x in there], [x.float() for x in moved])
        boxes = self.rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
        found, _ = self.rpn.filter_proposals(boxes, objectness, [size] * len(anchors), counts)
        return found, objectness, deltas, anchors

    def looked(self, images: Tensor) -> list[Tensor]:
        """The maps, float32."""
        return [x.float() for x in self.pyramid(images)]

    def losses(self, images: Tensor, targets: list[Target]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses for images (B, C, H, W) and their objects, and those of a model that says the same of every box: how often a
        sampled one holds something, and each class; that no box need be moved; how often a pixel of a box is the object's."""
        size = (images.shape[2], images.shape[3])
        maps = self.looked(images)
        proposals, objectness, deltas, anchors = self.propose(maps, size)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        wanted = list(self.rpn.box_coder.encode(matched, anchors))
        there, moved = self.rpn.compute_loss(objectness, deltas, labels, wanted)
        losses = {"objectness": there, "proposals": moved}
        with torch.no_grad():
            blind = self.blind_proposals(labels, wanted)

        heads = self.heads
        proposals, which, classes, shifts = heads.select_training_samples(proposals, targets)
        logits, regression = self.judged(maps, proposals, size)
        losses["classes"], losses["boxes"] = fastrcnn_loss(logits, regression, classes, shifts)
        with torch.no_grad():
            every, some = torch.cat(classes), torch.cat(shifts)[torch.cat(classes) > 0]
            shares = torch.bincount(every, minlength=logits.shape[1]).float() / len(every)
            blind["classes"] = -(shares * shares.clamp(min=1e-12).log()).sum()
            blind["boxes"] = stay(some) / len(every)

        if self.masks:
            positive = [each > 0 for each in classes]
            inside = [boxes[held] for boxes, held in zip(proposals, positive, strict=True)]
            number = [each[held] for each, held in zip(which, positive, strict=True)]
            shapes = self.shapes(maps, inside, size)
            truth, names = [each["masks"] for each in targets], [each["labels"] for each in targets]
            losses["masks"] = maskrcnn_loss(shapes, inside, truth, names, number)
            with torch.no_grad():
                pixels = [
                    project_masks_on_boxes(*each, MASK_SIDE)
                    for each in zip(truth, inside, number, strict=True)
                    if len(each[1])
                ]
                share = torch.cat(pixels).mean() if pixels else images.new_tensor(0.0)
                blind["masks"] = binary_entropy(share)
        return losses, blind

    def blind_proposals(self, labels: list[Tensor], wanted: list[Tensor]) -> dict[str, Tensor]:
        """What the best constant would lose as proposals, on average over how anchors are sampled."""
        sampler = self.rpn.fg_bg_sampler
        most = int(sampler.batch_size_per_image * sampler.positive_fraction)
        positive = sum(min(int((each == 1).sum()), most) for each in labels)
        sampled = sum(
            (held := min(int((each == 1).sum()), most))
            + min(int((each == 0).sum()), sampler.batch_size_per_image - held)
            for each in labels
        )
        share = wanted[0].new_tensor(positive / max(1, sampled))
        held = torch.cat(wanted)[torch.cat(labels) == 1]
        return {"objectness": binary_entropy(share), "proposals": stay(held) / max(1, len(held)) * share}

    def judged(self, maps: list[Tensor], proposals: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits (n, K + 1) and moves (n, 4 (K + 1)) of all proposals, float32."""
        heads, levels = self.heads, named(maps)
        seen = heads.box_head(heads.box_roi_pool(levels, proposals, [size] * len(proposals)))
        logits, regression = heads.box_predictor(seen)
        return logits.float(), regression.float()

    def shapes(self, maps: list[Tensor], boxes: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Mask logits (n, K + 1, 28, 28) of all boxes, float32."""
        heads, levels = self.heads, named(maps)
        assert heads.mask_roi_pool is not None and heads.mask_head is not None and heads.mask_predictor is not None
        pooled = heads.mask_roi_pool(levels, boxes, [size] * len(boxes))
        return heads.mask_predictor(heads.mask_head(pooled)).float()

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """What is found in each image of (B, C, H, W): "boxes" (n, 4) float32 in its pixels, "classes" (n,) int64 from 0 on,
        "scores" (n,) from 0 to 1, falling; with masks "masks" (n, 28, 28), within the box."""
        size = (images.shape[2], images.shape[3])
        maps = self.looked(images)
        proposals, *_ = self.propose(maps, size)
        logits, regression = self.judged(maps, proposals, size)
        boxes, scores, labels = self.heads.postprocess_detections(logits, regression, proposals, [size] * len(images))
        found = [{"boxes": b, "classes": c - 1, "scores": s} for b, c, s in zip(boxes, labels, scores, strict=True)]
        if self.masks:
            for each, masks in zip(found, maskrcnn_inference(self.shapes(maps, boxes, size), labels), strict=True):
                each["masks"] = masks[:, 0]
        return found


def named(maps: list[Tensor]) -> dict[str, Tensor]:
    return OrderedDict((str(i), x) for i, x in enumerate(maps))


def stay(shifts: Tensor) -> Tensor:
    """The loss of moving no box, for the moves (n, 4) that were wanted."""
    return F.smooth_l1_loss(torch.zeros_like(shifts), shifts, beta=1 / 9, reduction="sum")


def binary_entropy(share: Tensor) -> Tensor:
    """The cross-entropy, in nats, of always saying this probability where it is the true share."""
    share = share.clamp(1e-6, 1 - 1e-6)
    return -(share * share.log() + (1 - share) * (1 - share).log())


def save(detector: Detector, run: Path, config: dict[str, Any]) -> None:
    """Write the encoder and all that stands on it into a run, see `unmask.models.heads`."""
    pyramid = detector.pyramid
    facts = {
        "kind": "detector",
        "classes": list(detector.classes),
        "masks": detector.masks,
        "anchor": detector.anchor,
        "proposals": detector.proposals,
        "pyramid": pyramid.way,
        "map_channels": pyramid.channels,
        "window": pyramid.window,
    }
    heads.save(detector, run, config, facts)


def load(run: str | Path) -> tuple[Detector, dict[str, Any]]:
    """The detector of a run, in evaluation mode, and its encoder's config. BadInput where there is none, or it is damaged."""

    def make(encoder: Encoder, facts: dict[str, Any]) -> Detector:
        pyramid = Pyramid(encoder, facts["pyramid"], facts["map_channels"], facts["window"])
        told = {name: facts[name] for name in ("masks", "anchor", "proposals")}
        return Detector(pyramid, tuple(facts["classes"]), **told)

    return heads.load(run, "detector", make)
