"""The reference of the command line, written while the site is built: from the table of verbs, and from the settings that
each takes with the docstrings below them. What `--help` says and what stands there have one source."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mkdocs.structure.files import File, Files
from tyro.conf import Positional

from unmask.cli import VERBS
from unmask.methods import METHODS
from unmask.verbs.pretrain import Pretrain
from unmask.verbs.train import Training

WHERE = {"moco-v2": "../methods/moco.md", "simclr-v2": "../methods/simclr.md"}
"""Methods that share a page with an earlier version."""
POSITIONAL = get_args(Positional[int])[1]
INTRODUCTION = """# The command line

Each verb is a command, `unmask VERB`; `unmask VERB --help` says what stands here. Options may stand in any order. One without
a default may be left out: what is taken then is chosen from the data and said, or nothing is. Every verb also takes `--json`
(one JSON document on standard output, all else on standard error) and `--quiet` (warnings and errors only).

| verb | |
|---|---|
"""
SHARED = """
## What every training is told { #training }

Options of all verbs that train; what a verb adds, and where its defaults differ, stands below its name.

"""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    files.append(File.generated(config, "reference/commands.md", content=page()))
    return files


def page() -> str:
    """All verbs in the order of `unmask --help`, methods below the verb that takes them."""
    parts = [INTRODUCTION]
    parts += [f"| [`{verb}`](#{anchor(verb)}) | {row[-1]} |\n" for verb, row in VERBS.items()]
    parts += [SHARED, *options(Training).values()]
    for verb, (module, settings, *_rest) in VERBS.items():
        module = importlib.import_module(f"unmask.verbs.{module}")
        kind, own = getattr(module, settings), getattr(module, "Own", None)
        parts.append(f"\n## unmask {verb} {{ #{anchor(verb)} }}\n\n{usage(verb, kind)}\n\n{prose(kind)}\n\n")
        told = options(kind)
        if issubclass(kind, Training):
            parts.append("With the options of [every training](#training):\n\n")
            shared = options(Training)
            told = {name: entry for name, entry in told.items() if entry != shared.get(name)}
        parts += [*told.values(), *(options(own).values() if own else ())]
        for name, method in METHODS.items() if kind is Pretrain else ():
            title = f"### unmask pretrain {name} {{ #{anchor(f'pretrain {name}')} }}"
            words = f"[{method.SUMMARY}]({WHERE.get(name, f'../methods/{name}.md')}). {prose(method.Settings)}"
            parts += [f"\n{title}\n\n{words}\n\n", *options(method.Settings).values()]
    return "".join(parts)


def anchor(command: str) -> str:
    return "unmask-" + command.replace(" ", "-")


def usage(verb: str, kind: type) -> str:
    """The command in one line, of what it cannot do without."""
    words = ["unmask", verb] + (["METHOD"] if verb in ("pretrain", "ablate") else [])
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        positional, values = read(hints[field.name])
        if positional:
            words.append(place(field.name, values))
        elif required(field):
            words += [flag(field.name), values]
    return f"```usage\n{' '.join(words)} [options]\n```"


def options(kind: type) -> dict[str, str]:
    """An entry of a definition list for each field of a dataclass: how it is typed, its default, its docstring."""
    said, hints, entries = documented(kind), get_type_hints(kind, include_extras=True), {}
    for field in dataclasses.fields(kind):
        positional, values = read(hints[field.name])
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        name = flag(field.name)
        if positional:
            typed = f"`{place(field.name, values)}`"
        else:
            typed = f"`{name}`, `--no-{name[2:]}`" if values == "BOOL" else f"`{name} {values}`"
        if required(field):
            typed += " (required)"
        elif default not in (None, (), False):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            typed += f" (default: `{name if shown is True else shown}`)"
        text = textwrap.indent(said[field.name], "    ").strip().replace("*", r"\*").replace("<", "&lt;")
        entries[field.name] = f"{typed}\n:   {text}\n\n"
    return entries


def place(name: str, values: str) -> str:
    """What stands for a setting that is given without its name: the name itself, but where `--help` has a better word."""
    return name.upper() + (" …" if values.endswith("…") else "") if values.split()[0].isupper() else values


def required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def prose(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def documented(kind: type) -> dict[str, str]:
    """The docstring below each field, its bases' too."""
    said = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                said[field.target.id] = inspect.cleandoc(text.value.value)
    return said


def read(hint: Any) -> tuple[bool, str]:
    """Whether a setting is given without its name, and what may be given, in the words of `--help`: INT, a|b|c, STR …"""
    if get_origin(hint) is Annotated:
        hint, *told = get_args(hint)
        metavar = next((word for word in (getattr(one, "metavar", None) for one in told) if word), None)
        positional, values = read(hint)
        return positional or POSITIONAL in told, metavar or values
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) in (Union, UnionType):
        return any(read(kind)[0] for kind in kinds), "|".join(read(kind)[1] for kind in kinds)
    if get_origin(hint) is Literal:
        return False, "|".join(map(str, kinds))
    if get_origin(hint) in (tuple, list, dict):
        return False, " ".join("…" if kind is Ellipsis else read(kind)[1] for kind in kinds)
    return False, "PATH" if hint is Path else hint.__name__.upper()
