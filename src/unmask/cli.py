"""The command line: a table of verbs; parse, call, print."""

import atexit
import contextlib
import dataclasses
import difflib
import importlib
import json
import math
import os
import signal
import sys
from pathlib import Path
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
    "dqn": ("dqn", "Dqn", "dqn", "learn to play an Atari game from its pixels and its score"),
    "dqn play": ("play", "Play", "play", "let an agent play: its score with an interval, and a film"),
    "dqn record": ("play", "Record", "record", "collect what is seen in a game, to pre-train an encoder on"),
    "doctor": ("doctor", "Doctor", "doctor", "what this machine can do, what is slow on it and why, and the cure"),
    "completion": (
        "completion",
        "Completion",
        "completion",
        "a script by which bash, zsh or fish completes what you type",
    ),
}

# what for: which verbs
PURPOSES = {
    "begin": ("quickstart",),
    "look": ("inspect", "plan", "pack"),
    "learn": ("pretrain", "finetune", "detect", "segment", "distill", "ablate"),
    "judge": ("probe", "compare", "robustness", "report"),
    "use": ("ui", "reconstruct", "attend", "embed", "predict", "export"),
    "study": ("study simulate", "study audit", "study run"),
    "play": ("dqn", "dqn play", "dqn record"),
    "help": ("doctor", "completion"),
}

HELP = """unmask: pre-train, judge and use vision transformers on the images you have.
{verbs}

  unmask                    what to do next, from what is here
  unmask VERB --help        what a verb takes

Every verb takes, wherever it stands behind it:
  --json    print one JSON document on standard output, what the verb found, and all else on standard error. Where it
            fails that is {{"error": the line, "exit_code": 2}}, and standard error says the same.
  --quiet   print nothing but warnings and errors.
Exit codes: 0 done, 1 the training diverged, 2 input that cannot be used, 130 Ctrl-C, 143 SIGTERM.

Begin with  unmask quickstart  or, with images of your own,
  unmask inspect path/to/images
  unmask pretrain mae --data path/to/images --out runs/first
  unmask probe runs/first --data path/to/labelled
  unmask finetune runs/first --data path/to/labelled --out runs/tuned"""

EVERYWHERE = ("--json", "--quiet")
BESIDE = "Also --json (one JSON document on standard output, all else on standard error) and --quiet (warnings and errors only)."


def main(arguments: list[str] | None = None) -> None:
    """Run one verb and exit: with code 2 and one line for input that cannot be used, 1 for a run that diverged, 130 for Ctrl-C.
    With --json standard output is one JSON document, whatever happens."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    given = {word for word in arguments if word in EVERYWHERE}
    arguments = [word for word in arguments if word not in EVERYWHERE]
    as_json = "--json" in given and not {"-h", "--help"} & set(arguments)
    first, result, code, words = int(os.environ.get("RANK", "0")) == 0, None, 0, None
    try:
        with (
            contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(),
            hushed("--quiet" in given),
        ):
            result = answer(arguments)
        code = 1 if isinstance(result, dict) and result.get("verdict") == "diverged" else 0
        if as_json and first:
            print(json.dumps(plain(result), indent=2, ensure_ascii=False))
    except BadInput as error:
        code, words = 2, str(error)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # a full disk, a folder that is gone
        code, words = 2, (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "number", signal.SIGINT)
        words = f"{str(stop) or 'stopped'}; the same command goes on, with --resume where it has that"
        print(file=sys.stderr)
    except SystemExit as stop:  # options that tyro cannot read, which it has said; or help
        if as_json and first and stop.code:
            print(
                json.dumps({"error": "these options cannot be read: standard error says why", "exit_code": stop.code})
            )
        raise
    except Exception as error:  # a mistake of ours
        if as_json and first:
            print(json.dumps({"error": f"{type(error).__name__}: {error}", "exit_code": 1}))
        raise
    if words is not None:
        print(f"unmask: {words}", file=sys.stderr)
        if as_json and first:
            print(json.dumps({"error": words, "exit_code": code}, ensure_ascii=False))
    if not first:
        leave(code)
    sys.exit(code)


def leave(code: int) -> None:
    """End at once a process that worked for another, which may still be judging what they trained: to take torch's threads apart
    at the end of Python aborted one such process in some hundreds, and torchrun then ended the first one, too."""
    from unmask.training import distributed

    if distributed.world() > 1:
        atexit._run_exitfuncs()  # of loaders' workers and process groups
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM outside of training ends the command as Ctrl-C does."""
    stop = KeyboardInterrupt("terminated")
    stop.number = number  # type: ignore[attr-defined]
    raise stop


def hushed(quiet: bool) -> contextlib.AbstractContextManager[None]:
    """Nothing but warnings and errors meanwhile, if so asked."""
    if not quiet:
        return contextlib.nullcontext()
    from unmask.screen import quietly

    return quietly()


def plain(value: Any) -> Any:
    """What a verb returns as JSON has it: paths as strings, tables as records, arrays as lists, what is no number as null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, type):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a table
        return plain(value.to_dict("records"))
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def answer(arguments: list[str]) -> Any:
    """Do what the arguments say and return what came of it."""
    if not arguments:
        from unmask.verbs.home import home

        found = home(Path())
        verbs = "\n".join(f"  {purpose:8}{', '.join(verbs)}" for purpose, verbs in PURPOSES.items())
        print(f"\n{verbs}\n\n  unmask VERB --help says what a verb takes, unmask --help what each does")
        return found
    if arguments[0] in ("-h", "--help", "help"):
        lines = [f"\n{purpose}\n" + "\n".join(map(line, verbs)) for purpose, verbs in PURPOSES.items()]
        print(HELP.format(verbs="\n".join(lines)))
        return None
    if arguments[0] == "--version":
        import unmask

        print(f"unmask {unmask.__version__}")
        return {"version": unmask.__version__}
    if arguments[0] == "study":
        arguments = of_study(arguments[1:])
    if " ".join(arguments[:2]) in ("dqn play", "dqn record"):
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    return call(arguments[0], arguments[1:])


def line(verb: str) -> str:
    """A verb and what it does."""
    return f"  {verb:16}{VERBS[verb][3]}"


def of_study(arguments: list[str]) -> list[str]:
    """What follows `unmask study`, its verb as one word with it; without one, or with --help, the three are listed."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: unmask study simulate|audit|run …\n")
        print("\n".join(map(line, PURPOSES["study"])))
        print(
            "\nBegin with  unmask study simulate --out studies/first  and then  unmask study run studies/first/study.yaml …"
        )
        sys.exit(0)
    return [f"study {arguments[0]}", *arguments[1:]]


def call(verb: str, arguments: list[str]) -> Any:
    """Parse the verb's settings, call it, and return what it returns."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise BadInput(
            f"no verb is called {verb!r}" + (f": did you mean {near[0]}?" if near else "; unmask --help lists them")
        )
    import tyro  # after the checks above, so that a slip of the finger is answered at once

    module, settings, function, summary = VERBS[verb]
    module = importlib.import_module(f"unmask.verbs.{module}")
    act, first, own, words = getattr(module, function), (), getattr(module, "Own", None), None
    if verb in METHODICAL:
        from unmask.methods import METHODS

        if not arguments or arguments[0] in ("-h", "--help"):
            vary = "--vary NAME=VALUE,VALUE… " if verb == "ablate" else ""
            print(f"usage: unmask {verb} METHOD {vary}--data SRC --out RUN [options]\n\n{summary}\n\nMETHOD is one of:")
            for name, method in METHODS.items():
                print(f"  {name:11}{method.SUMMARY}")
            print(f"\nunmask {verb} METHOD --help shows all options of a method")
            return None
        name, *arguments = arguments
        if name not in METHODS:
            raise BadInput(
                f"no method is called {name!r}: use one of {', '.join(METHODS)}, as in unmask {verb} mae --data …"
            )
        words = METHODS[name].SUMMARY if verb == "pretrain" else module.HELP
        first, own, verb = (name,), METHODS[name].Settings, f"{verb} {name}"
    if verb == "completion":
        first = (commands(),)
    general = getattr(module, settings)
    told = {"prog": f"unmask {verb}", "args": arguments, "description": f"{words or general.__doc__}\n\n{BESIDE}"}
    if own is None:
        return act(*first, tyro.cli(tyro.conf.DisallowNone[general], **told))  # an option is given or left out
    fields = [
        (name, kind, dataclasses.field(default_factory=kind)) for name, kind in (("general", general), ("own", own))
    ]
    both = dataclasses.make_dataclass("Both", fields)
    quiet = tyro.conf.DisallowNone[tyro.conf.OmitArgPrefixes[both]]  # type: ignore[valid-type]
    given: Any = tyro.cli(quiet, **told)
    return act(*first, given.general, given.own)


METHODICAL = ("pretrain", "ablate")
"""Verbs that are followed by a method, whose settings they take, too."""


def commands() -> dict[str, tuple[type, ...]]:
    """Every command, the name of a method with it, and the settings that it takes."""
    from unmask.methods import METHODS

    found: dict[str, tuple[type, ...]] = {}
    for verb, (name, settings, *_) in VERBS.items():
        module = importlib.import_module(f"unmask.verbs.{name}")
        general, own = getattr(module, settings), getattr(module, "Own", None)
        if verb in METHODICAL:
            found |= {f"{verb} {name}": (general, method.Settings) for name, method in METHODS.items()}
        else:
            found[verb] = (general,) if own is None else (general, own)
    return found
