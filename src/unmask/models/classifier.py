"""An encoder with a head that names classes: what learning from labels makes, and what predicts."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unmask.models import Encoder, heads


class Classifier(nn.Module):
    """Images (B, C, H, W) to logits (B, K): an encoder, then one linear layer.

    width: how long the encoder's vectors are. several: whether an image may have several of the classes at once; a logit is
    then for yes or no, and the others do not concern it. batch_norm: whether a batch norm without affine stands before the
    layer, as for MAE's linear probe (He et al. 2021, appendix A.1). std: deviation of the layer's first weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: tuple[str, ...],
        width: int,
        *,
        several: bool = False,
        batch_norm: bool = False,
        std: float = 0.02,
    ):
        super().__init__()
        self.encoder, self.classes, self.several = encoder, classes, several
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.linear = nn.Linear(width, len(classes))
        nn.init.trunc_normal_(self.linear.weight, std=std)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(self.encoder(images)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) float32 from logits (B, K): with sum 1, or where an image may have several classes from 0 to 1 each."""
        return logits.float().sigmoid() if self.several else logits.float().softmax(dim=1)


def save(classifier: Classifier, run: Path, config: dict[str, Any]) -> None:
    """Write the encoder and the head of a classifier into a run, see `unmask.models.heads`."""
    facts = {
        "kind": "classifier",
        "classes": list(classifier.classes),
        "several": classifier.several,
        "batch_norm": isinstance(classifier.norm, nn.BatchNorm1d),
        "width": classifier.linear.in_features,
    }
    heads.save(classifier, run, config, facts)


def load(run: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a run, in evaluation mode, and the config of its encoder. BadInput where there is none, or it is
    damaged."""

    def make(encoder: Encoder, facts: dict[str, Any]) -> Classifier:
        told = {"several": facts["several"], "batch_norm": facts["batch_norm"]}
        return Classifier(encoder, tuple(facts["classes"]), facts["width"], **told)

    return heads.load(run, "classifier", make)
