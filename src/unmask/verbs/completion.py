"""unmask completion SHELL: a script by which the shell completes commands, their options and the values of these.

The script holds all of it as text, so no Python starts while somebody types; it is as old as the unmask that wrote it.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional, Suppress

EVERYWHERE = {
    "--json": "Print one JSON document on standard output.",
    "--quiet": "Print warnings and errors only.",
    "--help": "Say what the command takes.",
}


@dataclass(frozen=True)
class Completion:
    """Print a script for the shell. To have it in every new one:

    bash:  unmask completion bash > ~/.local/share/bash-completion/completions/unmask
    zsh:   unmask completion zsh > ~/.zfunc/_unmask   (with fpath+=~/.zfunc before compinit in ~/.zshrc)
    fish:  unmask completion fish > ~/.config/fish/completions/unmask.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """For which shell."""


@dataclass(frozen=True)
class Option:
    """What may be typed after a command."""

    name: str
    """--with-dashes; "" for what stands without a name."""
    words: str
    """The first sentence of what it means."""
    values: tuple[str, ...] = ()
    """What it may be; () for anything, where files are offered."""
    flag: bool = False
    """Whether nothing follows it."""


def completion(commands: Mapping[str, tuple[type, ...]], settings: Completion) -> str:
    """Print and return the script. commands: the settings that each takes, and a method's beside them."""
    found = {command: options(kinds) for command, kinds in commands.items()}
    script = {"bash": bash, "zsh": zsh, "fish": fish}[settings.shell](found)
    print(script, end="")
    return script


def options(kinds: tuple[type, ...]) -> list[Option]:
    """Of settings dataclasses, in their order, and what every verb takes."""
    found = []
    for kind in kinds:
        words, hints = meant(kind), typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            hint, marks = bare(hints[field.name])
            if Suppress in marks:
                continue
            name = "" if Positional in marks else f"--{field.name.replace('_', '-')}"
            kinds_of = typing.get_args(hint) or (hint,)
            values = tuple(
                str(each) for part in kinds_of if typing.get_origin(part) is Literal for each in typing.get_args(part)
            )
            values = (
                tuple(str(each) for each in typing.get_args(hint)) if typing.get_origin(hint) is Literal else values
            )
            told = words.get(field.name, "")
            if bool in kinds_of:
                found += [Option(name, told, flag=True), Option(f"--no-{name[2:]}", f"Not {name}.", flag=True)]
            else:
                found.append(Option(name, told, DEVICES if name == "--device" else values))
    return found + [Option(name, words, flag=True) for name, words in EVERYWHERE.items()]


DEVICES = ("auto", "cpu", "cuda")


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what tyro is told of it, and that."""
    return (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())


def meant(kind: type) -> dict[str, str]:
    """The first sentence below each field of a dataclass, and of those that it builds on."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        for field, after in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                told = " ".join(str(after.value.value).split())
                found[field.target.id] = told.split(". ")[0].rstrip(".") + "."  # type: ignore[union-attr]
    return found


def first_words(commands: Mapping[str, Any]) -> dict[str, list[str]]:
    """What may stand first, and what may follow it where that is one of a few: methods, the verbs of a study, those of dqn."""
    found: dict[str, list[str]] = {}
    for command in commands:
        verb, *more = command.split()
        found.setdefault(verb, []).extend(more)
    return found


# The scripts

BASH = """# bash completion of unmask; written by `unmask completion bash`
_unmask() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="" verb="${{COMP_WORDS[1]}}"
    local second="" options="" choices="" flags="" values=""
    ((COMP_CWORD > 0)) && before="${{COMP_WORDS[COMP_CWORD-1]}}"
    ((${{#COMP_WORDS[@]}} > 2)) && second="${{COMP_WORDS[2]}}"
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{verbs} --help --version --json" -- "$current"))
        return
    fi
    case "$verb" in
{seconds}
    esac
    if [[ -n $choices ]]; then
        if ((COMP_CWORD == 2)) && [[ $current != -* ]]; then
            COMPREPLY=($(compgen -W "$choices --help" -- "$current"))
            return
        fi
        [[ " $choices " == *" $second "* ]] && verb="$verb $second"
    fi
    case "$verb" in
{options}
    esac
    if [[ $before == -* && " $flags " != *" $before "* ]]; then
        case "$verb $before" in
{values}
        esac
        if [[ -n $values ]]; then
            COMPREPLY=($(compgen -W "$values" -- "$current"))
            return
        fi
    elif [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options $flags" -- "$current"))
        return
    elif [[ -z $before || $before != -* || " $flags " == *" $before "* ]]; then
        case "$verb" in
{positional}
        esac
        if [[ -n $values ]]; then
            COMPREPLY=($(compgen -W "$values" -- "$current"))
            return
        fi
    fi
    compopt -o filenames -o nospace 2>/dev/null
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "$current"))
}}
complete -F _unmask unmask
"""


def bash(commands: Mapping[str, list[Option]]) -> str:
    def names(each: list[Option], flag: bool) -> str:
        return " ".join(option.name for option in each if option.name and option.flag == flag)

    words = first_words(commands)
    return BASH.format(
        verbs=" ".join(words),
        seconds="\n".join(f'        {verb}) choices="{" ".join(more)}" ;;' for verb, more in words.items() if more),
        options="\n".join(
            f'        "{command}") options="{names(each, False)}" flags="{names(each, True)}" ;;'
            for command, each in commands.items()
        ),
        values="\n".join(
            f'            "{command} {option.name}") values="{" ".join(option.values)}" ;;'
            for command, each in commands.items()
            for option in each
            if option.name and option.values
        ),
        positional="\n".join(
            f'            "{command}") values="{" ".join(option.values)}" ;;'
            for command, each in commands.items()
            for option in each
            if not option.name and option.values
        ),
    )


ZSH = """#compdef unmask
# zsh completion of unmask; written by `unmask completion zsh`
_unmask() {{
    local verb="${{words[2]}}"
    if (( CURRENT == 2 )); then
        compadd -- {verbs} --help --version --json
        return
    fi
    case "$verb" in
{seconds}
    esac
    case "$verb" in
{options}
        *) _files ;;
    esac
}}
if [[ "$funcstack[1]" == _unmask ]]; then
    _unmask "$@"
else
    compdef _unmask unmask
fi
"""


def zsh(commands: Mapping[str, list[Option]]) -> str:
    def spec(option: Option) -> str:
        told = option.words.translate(str.maketrans({"[": "(", "]": ")", ":": "\\:", "'": "’", "\\": "/"}))
        after = f":value:({' '.join(option.values)})" if option.values else ":value:_files"
        if not option.name:
            return f"'*{after}'"
        return f"'*{option.name}[{told}]{'' if option.flag else after}'"

    seconds, options = [], []
    for verb, more in first_words(commands).items():
        if more:
            seconds.append(
                f"        {verb})\n            if (( CURRENT == 3 )) && [[ ${{words[3]}} != -* ]]; then compadd -- {' '.join(more)} --help; return; fi\n"
                f'            [[ " {" ".join(more)} " == *" ${{words[3]}} "* ]] && verb="$verb ${{words[3]}}"\n            ;;'
            )
    for command, each in commands.items():
        named = [spec(option) for option in each if option.name]
        free = [spec(option) for option in each if not option.name][:1] or ["'*:file:_files'"]
        lines = " \\\n                ".join([*named, *free])
        move = f"shift {len(command.split())} words; (( CURRENT -= {len(command.split())} ))"
        options.append(
            f'        "{command}")\n            {move}\n            _arguments \\\n                {lines}\n            ;;'
        )
    return ZSH.format(verbs=" ".join(first_words(commands)), seconds="\n".join(seconds), options="\n".join(options))


def fish(commands: Mapping[str, list[Option]]) -> str:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = ["# fish completion of unmask; written by `unmask completion fish`"]
    words = first_words(commands)
    lines.append("complete -c unmask -n __fish_use_subcommand -f -a " + quoted(" ".join(words)))
    for verb, more in words.items():
        if more:
            fresh = f"__fish_seen_subcommand_from {verb}; and not __fish_seen_subcommand_from {' '.join(more)}"
            lines.append(f"complete -c unmask -n {quoted(fresh)} -f -a {quoted(' '.join(more))}")
    for command, each in commands.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.split())
        if " " not in command and words[command]:  # itself, and not what may follow it
            seen += f"; and not __fish_seen_subcommand_from {' '.join(words[command])}"
        for option in each:
            head = f"complete -c unmask -n {quoted(seen)}"
            values = f" -x -a {quoted(' '.join(option.values))}" if option.values else " -r -F"
            if option.name:
                lines.append(f"{head} -l {option.name[2:]} -d {quoted(option.words)}" + ("" if option.flag else values))
            elif option.values:
                lines.append(f"{head} -f -a {quoted(' '.join(option.values))}")
    return "\n".join(lines) + "\n"
