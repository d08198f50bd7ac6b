"""The command line: a table of verbs; parse, call, print."""

import dataclasses
import difflib
import importlib
import os
import signal
import sys
from typing import Any

from unmask.errors import BadInput

# verb: (module, settings, function, what it does)
VERBS = {
    "quickstart": ("quickstart", "Quickstart", "quickstart", "the whole way once, on photographs that came along"),
    "inspect": ("inspect", "Inspect", "inspect", "what is in a collection, and the settings it asks for"),
    "plan": ("plan", "Plan", "plan", "the memory and the time that a training will need"),
    "pretrain": (
        "pretrain",
        "Pretrain",
        "pretrain",
        "learn from images without labels: an encoder, a verdict, a report",
    ),
    "finetune": (
        "finetune",
        "Finetune",
        "finetune",
        "learn from labels, on from an encoder or from scratch, and be judged on images never seen",
    ),
    "detect": (
        "detect",
        "Detect",
        "detect",
        "learn to find objects from boxes or masks, and be judged by average precision",
    ),
    "segment": (
        "segment",
        "Segment",
        "segment",
        "learn the class of every pixel from label maps, and be judged by mIoU",
    ),
    "distill": ("distill", "Distill", "distill", "teach a student what a classifier says of images without labels"),
    "predict": ("predict", "Predict", "predict", "name what is in new images: a table with probabilities"),
    "pack": (
        "pack",
        "Pack",
        "pack",
        "decode and shrink a collection once, into a store that is read many times faster",
    ),
    "probe": ("probe", "Probe", "probe", "test a frozen encoder, beside an untrained one and raw pixels"),
    "ablate": (
        "ablate",
        "Ablate",
        "ablate",
        "the same pre-training over a grid of settings: what each is worth, and costs",
    ),
    "compare": ("compare", "Compare", "compare", "several encoders on the same images: one table, one figure"),
    "robustness": (
        "robustness",
        "Robustness",
        "robustness",
        "how much of a classifier's accuracy noise, blur, snow and attacks leave",
    ),
    "reconstruct": (
        "reconstruct",
        "Reconstruct",
        "reconstruct",
        "draw what a masked autoencoder paints where it cannot see",
    ),
    "attend": ("attend", "Attend", "attend", "draw where an encoder looks, head by head, and the object"),
    "embed": ("embed", "Embed", "embed", "one vector an image, to a table"),
    "export": ("export", "Export", "export", "the encoder for timm, Hugging Face, facebookresearch/mae or ONNX"),
    "report": ("report", "Report", "rewrite", "write the page of a run anew"),
    "ui": ("ui", "Ui", "ui", "runs, reconstructions, attention, neighbours and studies, in the browser"),
    "study simulate": ("study", "Simulate", "write_simulated", "flakes whose knappers are known, as images and tables"),
    "study audit": ("study", "Audit", "audit", "what the data of a study cannot answer"),
    "study run": ("study", "Run", "run", "whether assemblages differ by their knappers' skill, and what that rests on"),
}

HELP = """unmask: pre-train, judge and use vision transformers on the images you have.

{verbs}

  unmask VERB --help        what a verb takes

Begin with  unmask quickstart  or, with images of your own,
  unmask inspect path/to/images
  unmask pretrain mae --data path/to/images --out runs/first
  unmask probe runs/first --data path/to/labelled
  unmask finetune runs/first --data path/to/labelled --out runs/tuned"""


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. Exit code 2 with one line for input that cannot be used, 1 for a run that diverged, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:16}{row[3]}" for verb, row in VERBS.items())))
        return
    if arguments[0] == "--version":
        import unmask

        print(f"unmask {unmask.__version__}")
        return
    if arguments[0] == "study":
        arguments = of_study(arguments[1:])
    try:
        sys.exit(call(arguments[0], arguments[1:]))
    except BadInput as error:
        print(f"unmask: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that is gone
        where = f"{error.filename}: " if error.filename else ""
        print(f"unmask: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(
            f"\nunmask: {str(stop) or 'stopped'}; the same command goes on, with --resume where it has that",
            file=sys.stderr,
        )
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM outside of training ends the command as Ctrl-C does."""
    stop = KeyboardInterrupt("terminated")
    stop.number = number  # type: ignore[attr-defined]
    raise stop


def of_study(arguments: list[str]) -> list[str]:
    """What follows `unmask study`, its verb as one word with it; without one, or with --help, the three are listed."""
    own = {verb: row[3] for verb, row in VERBS.items() if verb.startswith("study ")}
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: unmask study simulate|audit|run …\n")
        print("\n".join(f"  {verb:16}{words}" for verb, words in own.items()))
        print(
            "\nBegin with  unmask study simulate --out studies/first  and then  unmask study run studies/first/study.yaml …"
        )
        sys.exit(0)
    return [f"study {arguments[0]}", *arguments[1:]]


def call(verb: str, arguments: list[str]) -> int:
    """Parse the verb's settings, call it, and return the exit code."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise BadInput(
            f"no verb is called {verb!r}" + (f": did you mean {near[0]}?" if near else "; unmask --help lists them")
        )
    import tyro  # after the checks above, so that a slip of the finger is answered at once

    module, settings, function, summary = VERBS[verb]
    module = importlib.import_module(f"unmask.verbs.{module}")
    act, first, own, words = getattr(module, function), (), getattr(module, "Own", None), None
    if verb in ("pretrain", "ablate"):
        from unmask.methods import METHODS

        if not arguments or arguments[0] in ("-h", "--help"):
            vary = "--vary NAME=VALUE,VALUE… " if verb == "ablate" else ""
            print(f"usage: unmask {verb} METHOD {vary}--data SRC --out RUN [options]\n\n{summary}\n\nMETHOD is one of:")
            for name, method in METHODS.items():
                print(f"  {name:11}{method.SUMMARY}")
            print(f"\nunmask {verb} METHOD --help shows all options of a method")
            return 0
        name, *arguments = arguments
        if name not in METHODS:
            raise BadInput(
                f"no method is called {name!r}: use one of {', '.join(METHODS)}, as in unmask {verb} mae --data …"
            )
        words = METHODS[name].SUMMARY if verb == "pretrain" else module.HELP
        first, own, verb = (name,), METHODS[name].Settings, f"{verb} {name}"
    general = getattr(module, settings)
    if own is None:
        quiet = tyro.conf.DisallowNone[general]  # an option is given or left out
        act(*first, tyro.cli(quiet, prog=f"unmask {verb}", args=arguments))
        return 0
    fields = [
        (name, kind, dataclasses.field(default_factory=kind)) for name, kind in (("general", general), ("own", own))
    ]
    both = dataclasses.make_dataclass("Both", fields)
    quiet = tyro.conf.DisallowNone[tyro.conf.OmitArgPrefixes[both]]  # type: ignore[valid-type]
    given: Any = tyro.cli(quiet, prog=f"unmask {verb}", args=arguments, description=words or general.__doc__)
    result: dict[str, Any] = act(*first, given.general, given.own)
    return 1 if result.get("verdict") == "diverged" else 0
