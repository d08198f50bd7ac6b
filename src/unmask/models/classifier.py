"""An encoder with a head that names classes: what learning from labels makes, and what predicts."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.models import Encoder, interop
from unmask.training.run import write


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


HEAD = "norm.", "linear."
"""Beginnings of the names of all that is not the encoder."""


def save(classifier: Classifier, run: Path, config: dict[str, Any]) -> None:
    """Write the encoder into `run`/encoder, as interop.save does with `config`, and the head into `run`/head:
    model.safetensors and a config.json with the classes."""
    interop.save(classifier.encoder, run / "encoder", config)
    (run / "head").mkdir(exist_ok=True)
    state = {name: value for name, value in classifier.state_dict().items() if name.startswith(HEAD)}
    interop.save_whole(state, run / "head" / "model.safetensors")
    facts = {
        "classes": list(classifier.classes),
        "several": classifier.several,
        "batch_norm": isinstance(classifier.norm, nn.BatchNorm1d),
        "width": classifier.linear.in_features,
    }
    write(run / "head" / "config.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def load(run: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a run, in evaluation mode, and the config of its encoder. BadInput where there is none, or it is
    damaged."""
    run = Path(run)
    if not (run / "head" / "config.json").is_file():
        raise BadInput(f"{run} holds no classifier: name a run of `unmask finetune` or `unmask distill`")
    encoder, config = interop.load(run)
    facts = interop.read_config(run / "head")
    if (kind := facts.get("kind", "classifier")) != "classifier":
        raise BadInput(f"{run} holds a {kind}, not a classifier: `unmask predict` says what it finds")
    try:
        classes, several = tuple(facts["classes"]), facts["several"]
        classifier = Classifier(encoder, classes, facts["width"], several=several, batch_norm=facts["batch_norm"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{run / 'head' / 'config.json'} describes no head that this version of unmask knows") from None
    path = run / "head" / "model.safetensors"
    state = interop.read_state(path)
    whole = classifier.state_dict()
    interop.check(state, {name: value for name, value in whole.items() if name.startswith(HEAD)}, path)
    classifier.load_state_dict(whole | state)
    return classifier.eval(), config
