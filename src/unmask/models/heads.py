"""What learns on an encoder, as a run keeps it: the encoder in its folder encoder/, all else in head/, which says of what kind it
is: a "classifier", a "detector" or a "segmenter"."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.models import Encoder, interop
from unmask.training.run import write


class Headed(Protocol):
    """A module with an encoder somewhere in it."""

    @property
    def encoder(self) -> Encoder: ...
    def state_dict(self) -> dict[str, Tensor]: ...


Made = TypeVar("Made", bound=nn.Module)

VERBS = {
    "classifier": "`unmask finetune` or `unmask distill`",
    "detector": "`unmask detect`",
    "segmenter": "`unmask segment`",
}
"""What makes each."""


def of_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of the weights is not the encoder's."""
    return {name: value for name, value in state.items() if ".encoder." not in f".{name}"}


def kind_of(run: str | Path) -> str:
    """What stands on the encoder of a run, "" where nothing does."""
    head = Path(run) / "head"
    return interop.read_config(head).get("kind", "classifier") if (head / "config.json").is_file() else ""


def save(model: Headed, run: Path, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the encoder into `run`/encoder, as interop.save does with `config`, and the rest into `run`/head: model.safetensors
    and a config.json with `facts`, its kind among them."""
    interop.save(model.encoder, run / "encoder", config)
    (run / "head").mkdir(exist_ok=True)
    interop.save_whole(of_head(model.state_dict()), run / "head" / "model.safetensors")
    write(run / "head" / "config.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def load(run: str | Path, kind: str, make: Callable[[Encoder, dict[str, Any]], Made]) -> tuple[Made, dict[str, Any]]:
    """What a run has of this kind, in evaluation mode, and the config of its encoder.

    make: builds it on the encoder, from what its config.json says. BadInput where there is none, or it is damaged.
    """
    run = Path(run)
    if (there := kind_of(run)) != kind:
        but = f", but a {there}: `unmask predict` says what it finds" if there else f": name a run of {VERBS[kind]}"
        raise BadInput(f"{run} holds no {kind}{but}")
    encoder, config = interop.load(run)
    try:
        made = make(encoder, interop.read_config(run / "head"))
    except (KeyError, TypeError, ValueError):
        raise BadInput(
            f"{run / 'head' / 'config.json'} describes no {kind} that this version of unmask knows"
        ) from None
    path = run / "head" / "model.safetensors"
    state, whole = interop.read_state(path), made.state_dict()
    interop.check(state, of_head(whole), path)
    made.load_state_dict(whole | state)
    return made.eval(), config
