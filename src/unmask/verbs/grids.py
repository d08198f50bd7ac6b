"""Ready-made grids of `unmask ablate mae`: what the MAE paper varies, with what it published (He et al. 2021).

Published figures are top-1 accuracies in percent on ImageNet of ViT-L after 800 epochs, fine-tuned and by a linear probe, from
table 1; its pixels were not normalised, but for the row that says so. Figure 5 of the paper is a curve: of its points only
the one that table 1 has, too, is here.
"""

from dataclasses import dataclass, field, replace
from typing import Any

PUBLISHED = "published: ViT-L, 800 epochs on ImageNet"


@dataclass(frozen=True)
class Point:
    """One value of what is varied."""

    label: str
    settings: dict[str, Any]
    """What is set to have it."""
    published: tuple[float, float] | None = None
    """Fine-tuned, linear; percent."""
    usual: bool = False
    """Whether it is the default."""
    value: float | None = None
    """Where it is a number."""


@dataclass(frozen=True)
class Axis:
    """What is varied, and its values."""

    name: str
    points: tuple[Point, ...]
    what: str = ""
    """In the paper's words, with its place."""
    unless: dict[str, Any] = field(default_factory=dict)
    """Settings that all its cells have where nothing else is asked for."""

    @property
    def numeric(self) -> bool:
        return all(point.value is not None for point in self.points)


def numbers(name: str, usual: float, published: dict[float, tuple[float, float] | None], **more: Any) -> Axis:
    """An axis of one setting, a number."""
    points = [
        Point(f"{value:g}", {name: value}, figures, value == usual, float(value))
        for value, figures in published.items()
    ]
    return Axis(name, tuple(points), **more)


GRIDS = {
    "decoder-depth": numbers(
        "decoder_depth",
        8,
        {1: (84.8, 65.5), 2: (84.9, 70.0), 4: (84.9, 71.9), 8: (84.9, 73.5), 12: (84.4, 73.3)},
        what="blocks of the decoder (table 1a)",
    ),
    "decoder-width": numbers(
        "decoder_width",
        512,
        {128: (84.9, 69.1), 256: (84.8, 71.3), 512: (84.9, 73.5), 768: (84.4, 73.1)},
        what="width of the decoder (table 1b)",
        unless={"decoder_depth": 8},
    ),
    "mask-token": Axis(
        "mask tokens",
        (
            Point("in-decoder", {"mask_token_in_encoder": False}, (84.9, 73.5), usual=True),
            Point("in-encoder", {"mask_token_in_encoder": True}, (84.2, 59.6)),
        ),
        what="where mask tokens are seen first (table 1c; there the encoder that sees them takes 3.3 times the operations)",
    ),
    "target": Axis(
        "target",
        (
            Point("pixels", {"target": "pixels", "norm_pix": False}, (84.9, 73.5)),
            Point("normalised-pixels", {"target": "pixels", "norm_pix": True}, (85.4, 73.9), usual=True),
            Point("components", {"target": "pca"}, (84.6, 72.3)),
            Point("tokens", {"target": "tokens"}, (85.3, 71.6)),
        ),
        what="what is predicted of a hidden patch (table 1d)",
    ),
    "augmentation": Axis(
        "augment",
        (
            Point("none", {"augment": "none"}, (84.0, 65.7)),
            Point("fixed-crop", {"augment": "fixed"}, (84.7, 73.1)),
            Point("random-crop", {"augment": "crop"}, (84.9, 73.5), usual=True),
            Point("crop-and-colour", {"augment": "colour"}, (84.3, 71.9)),
        ),
        what="how images are varied (table 1e)",
    ),
    "mask-sampling": Axis(
        "masking",
        (
            Point("random-75", {"masking": "random", "mask_ratio": 0.75}, (84.9, 73.5), usual=True),
            Point("block-50", {"masking": "block", "mask_ratio": 0.5}, (83.9, 72.3)),
            Point("block-75", {"masking": "block", "mask_ratio": 0.75}, (82.8, 63.9)),
            Point("grid-75", {"masking": "grid", "mask_ratio": 0.75}, (84.0, 66.0)),
        ),
        what="how hidden patches are chosen, and how many (table 1f)",
    ),
    "mask-ratio": numbers(
        "mask_ratio",
        0.75,
        {0.15: None, 0.3: None, 0.45: None, 0.6: None, 0.75: (84.9, 73.5), 0.9: None},
        what="share of the patches that is hidden (figure 5)",
    ),
    "length": numbers(
        "length",
        1.0,
        {0.125: None, 0.25: None, 0.5: None, 1.0: (84.9, 73.5), 2.0: None},
        what="how long is trained (figure 7: 100 to 1600 epochs, 800 elsewhere)",
    ),
}
"""All but "length" are of MAE alone."""


def lengths(name: str, usual: float) -> Axis:
    """The grid "length", as epochs or steps, for the usual number of these."""
    points = []
    for point in GRIDS["length"].points:
        value = usual * (point.value or 1.0)
        value = max(1, round(value)) if name == "steps" else value
        points.append(replace(point, label=f"{value:g}", settings={name: value}, value=float(value)))
    return Axis(name, tuple(points), GRIDS["length"].what)
