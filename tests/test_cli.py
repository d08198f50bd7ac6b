"""The command line as people live with it: what to do next, JSON, quiet, progress, completion, the doctor."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unmask.cli import PURPOSES, VERBS, commands, main, plain
from unmask.errors import BadInput
from unmask.screen import Line, fitting
from unmask.verbs import completion, doctor

TINY = ["--encoder", "vit-tiny/4", "--image-size", "8", "--batch-size", "4", "--workers", "0", "--steps", "2"]


def run(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def quiet(pictures, shallow, tmp_path_factory):
    """A run that was told to be quiet, one of whose pictures is torn; and what it said on either way out."""
    torn, folder = tmp_path_factory.mktemp("torn"), tmp_path_factory.mktemp("here") / "runs" / "first"
    shutil.copytree(pictures, torn, dirs_exist_ok=True)
    (torn / "bad.png").write_bytes((torn / "0.png").read_bytes()[:60])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert run("pretrain", "mae", "--quiet", "--data", torn, "--out", folder, *TINY) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(quiet):
    return quiet[0]


# The table


def test_every_verb_has_one_purpose():
    assert sorted(verb for verbs in PURPOSES.values() for verb in verbs) == sorted(VERBS)


# What to do next


def test_alone_it_says_how_to_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    said = capsys.readouterr().out
    assert "No run is here yet" in said and "unmask quickstart" in said and "pretrain, finetune" in said
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "dogs").mkdir()
    (tmp_path / "photos" / "cats" / "a.JPG").touch()
    (tmp_path / "photos" / "dogs" / "b.jpg").touch()
    assert run() == 0
    assert "unmask inspect photos " in capsys.readouterr().out
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)["begin"][0] == "unmask inspect photos"


def test_alone_it_says_what_follows_from_each_run(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = json.loads((trained / "result.json").read_text())

    def kept(name: str, age: float, **changed):
        folder = tmp_path / "runs" / name
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        (folder / "result.json").unlink()
        if changed:
            (folder / "result.json").write_text(json.dumps(result | changed))
        for path in folder.iterdir():
            os.utime(path, (time.time() - age,) * 2)
        return folder

    kept("good", 400, verdict="learning", sentence="the loss is 60%", advice=[])
    kept("bad one", 500, verdict="collapsed", sentence="all images look alike", advice=["lower the learning rate"])
    kept("cut", 1000)  # after its last step it may be judged for a quarter of an hour
    kept("now", 1)
    (kept("broken", 1100) / "settings.yaml").write_text("method: [")
    assert run() == 0
    said = capsys.readouterr().out
    first = [line.split("  ")[0] for line in said.splitlines() if line.startswith(("runs/", "'runs/"))]
    assert [name.strip("'") for name in first] == [
        f"runs/{name}" for name in ("now", "good", "bad one", "cut", "broken")
    ] or (
        first[0].strip("'") == "runs/broken"  # it was touched just now
    )
    assert "learning: the loss is 60%\n  unmask probe runs/good --data" in said
    assert "collapsed: all images look alike. Try: lower the learning rate" in said
    assert "stopped: at step 2; go on with\n  unmask pretrain mae --out runs/cut --resume" in said
    assert "being judged: at step 2" in said and "unreadable" in said


# JSON and silence


def test_json_is_one_document_and_all_else_is_on_standard_error(trained, pictures, tmp_path, capsys):
    assert run("inspect", pictures, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["count"] == 8 and "8 images" in said.err
    assert run("embed", trained, "--json", "--data", pictures, "--out", tmp_path / "v.csv") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 8 and len(rows[0]["embedding"]) == 384 and rows[0]["path"].endswith(".png")
    assert run("report", trained, "--json") == 0
    assert json.loads(capsys.readouterr().out) == str(trained / "report.html")


def test_json_of_what_fails(tmp_path, capsys):
    assert run("inspect", tmp_path / "nothing", "--json") == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "no such file" in told["error"] and told["exit_code"] == 2 and said.err == f"unmask: {told['error']}\n"
    assert run("inspect", "--nonsense", "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert run("prob", "--json") == 2
    assert "did you mean probe" in json.loads(capsys.readouterr().out)["error"]


def test_quiet_lets_warnings_through(quiet, pictures, tmp_path, capsys):
    assert run("inspect", pictures, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    _, out, err = quiet
    assert out == "" and "skipped" in err and "bad.png" in err and "Report:" not in err
    assert run("inspect", tmp_path / "nothing", "--quiet") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_verb_returns_is_json():
    @dataclasses.dataclass
    class Found:
        where: Path
        numbers: np.ndarray

    table = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan]})
    value = {
        1: Found(Path("a/b"), np.array([1.0, np.inf])),
        "t": table,
        "s": {"x"},
        "f": np.float32(2),
        "n": torch.ones(2),
    }
    assert plain(value) == {
        "1": {"where": "a/b", "numbers": [1.0, None]},
        "t": [{"a": 1, "b": 0.5}, {"a": 2, "b": None}],
        "s": ["x"],
        "f": 2.0,
        "n": [1.0, 1.0],
    }
    json.dumps(plain(value), allow_nan=False)


# Progress

TRAINS = """
import sys, time
from unmask.screen import bar, console, warn
with bar("pre-training", 200, unit="steps", pause=0) as show:
    for step in range(1, 201):
        time.sleep(0.003)
        show(step, "loss 0.6123", "61% of uninformed", "1,234 images/s", "k-NN 0.412")
        if step == 100:
            warn("[yellow]skipped[/] a.png")
with bar("probing", 10) as show:
    for done in range(10):
        show(done + 1)
console.print("[bold green]learning[/]")
"""


def seen_in_a_terminal(width: int, **environment: str) -> str:
    """What the program writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment = kept | {"TERM": "xterm-256color"} | environment
    with subprocess.Popen([sys.executable, "-c", TRAINS], stdin=slave, stdout=slave, stderr=slave, env=environment):
        os.close(slave)
        parts = []
        while True:
            try:
                parts.append(os.read(master, 65536))
            except OSError:  # the other end is closed
                break
            if not parts[-1]:
                break
    os.close(master)
    return b"".join(parts).decode()


@pytest.mark.parametrize("width", [20, 40, 120])
def test_progress_stays_on_one_line_of_any_terminal(width):
    seen = seen_in_a_terminal(width)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen))
    assert max(map(len, lines)) <= width and any("100%" in line for line in lines)
    assert any("loss 0.6123" in line for line in lines) == (width > 20)
    assert any("1,234 images/s" in line for line in lines) == (width > 100)
    assert "\x1b[1;32mlearning" in seen and "skipped" in seen


def test_no_color_is_heeded():
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen_in_a_terminal(60, NO_COLOR="1"))


def test_a_log_has_a_plain_line_a_tenth():
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert sum(line.startswith("pre-training: ") for line in lines) == 10
    assert "pre-training: 200/200 steps  loss 0.6123  61% of uninformed  1,234 images/s  k-NN 0.412" in lines
    assert not any(line.startswith("probing") for line in lines)  # it was over at once
    assert lines[-1] == "learning"


def test_what_matters_most_is_kept():
    from rich.text import Text

    parts = [(1, Text("title")), (3, Text("long detail")), (0, Text("50%")), (2, Text("left 0:10"))]
    assert fitting(parts, 80).plain == "title  long detail  50%  left 0:10"
    assert fitting(parts, 22).plain == "title  50%  left 0:10"
    assert fitting(parts, 10).plain == "title  50%"
    assert fitting(parts, 4).plain == "50%" and fitting(parts, 2).plain == "t…"
    assert Line().get_table_column().no_wrap


# Completion


@pytest.fixture(scope="module")
def options():
    return {command: completion.options(kinds) for command, kinds in commands().items()}


def completed(script: Path, *words: str, folder: Path) -> set[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _unmask; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


def test_bash_completes(options, tmp_path):
    script = tmp_path / "unmask.bash"
    script.write_text(completion.bash(options))
    (tmp_path / "some pictures").mkdir()

    def after(*words: str) -> set[str]:
        return completed(script, "unmask", *words, folder=tmp_path)

    assert {"pretrain", "probe", "study", "doctor"} <= after("") and after("pre") == {"pretrain", "predict"}
    assert {"mae", "dino"} <= after("pretrain", "") and after("study", "") >= {"simulate", "audit", "run"}
    assert after("pretrain", "mae", "--mask-r") == {"--mask-ratio"}
    assert after("pretrain", "dino", "--mask-r") == set() and after("pretrain", "dino", "--teacher-t") >= {
        "--teacher-temperature"
    }
    assert after("pretrain", "mae", "--out", "x", "--precision", "") == {"auto", "bf16", "float32"}
    assert after("export", "runs/a", "--to", "t") == {"timm"} and after("completion", "") >= {"bash", "zsh", "fish"}
    assert after("embed", "runs/a", "--js") == {"--json"} and after("study", "run", "s.yaml", "--ou") == {"--out"}
    assert after("inspect", "so") == {"some pictures"} and after("pretrain", "mae", "--norm-pix", "so") == {
        "some pictures"
    }


def test_what_is_offered_is_what_tyro_takes(options, capsys):
    assert run("pretrain", "mae", "--help") == 0
    taken = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    offered = {option.name for option in options["pretrain mae"] if option.name and not option.name.startswith("--no-")}
    assert offered <= taken | {"--help"}
    assert all(option.words for option in options["pretrain mae"]), "each option is explained"
    assert next(o for o in options["plan"] if o.name == "--optimiser").values >= ("adamw",)
    assert "--resume" not in {option.name for option in options["ablate mae"]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_whole(options, shell, tmp_path):
    script = {"bash": completion.bash, "zsh": completion.zsh, "fish": completion.fish}[shell](options)
    for verb in VERBS:
        assert verb.split()[0] in script
    assert "mask-ratio" in script and "huggingface" in script
    if shell == "zsh":
        assert script.startswith("#compdef unmask\n") and script.count("'") % 2 == 0
    if shell == "fish":
        assert all(line.startswith(("complete -c unmask -n ", "#")) for line in script.splitlines())
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")
def test_fish_completes(options, tmp_path):
    script = tmp_path / "unmask.fish"
    script.write_text(completion.fish(options))

    def after(line: str) -> set[str]:
        asked = f"source {script}; complete -C 'unmask {line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", asked], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        return {each.split("\t")[0] for each in done.stdout.splitlines()}

    assert after("pre") == {"pretrain", "predict"} and after("study ") == {"simulate", "audit", "run"}
    assert after("pretrain m") >= {"mae", "moco", "moco-v2", "moco-v3"}
    assert after("pretrain mae --mask-r") == {"--mask-ratio"}
    assert after("pretrain mae --masking ") == {"random", "block", "grid"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_completes(options, tmp_path):
    """In a terminal, for zsh completes nowhere else: what the key Tab makes of a line."""
    (tmp_path / "script").write_text(completion.zsh(options))
    (tmp_path / "a picture.png").touch()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-f"], os.environ | {"TERM": "xterm", "PS1": "", "LISTMAX": "0"})
    said = ""

    def until(mark: str) -> str:
        nonlocal said
        while mark not in said:
            assert select.select([terminal], [], [], 20)[0], f"zsh waits, and said {said[-500:]!r}"
            said += os.read(terminal, 65536).decode()
        before, _, said = said.partition(mark)
        return before

    try:
        os.write(
            terminal, b"autoload -U compinit; compinit -u -D; source script; unmask() { print got ${(j:|:)@} end }\n"
        )
        for typed, made in (
            ("pretr", "pretrain"),
            ("pretrain mae --mask-r", "pretrain|mae|--mask-ratio"),
            ("pretrain mae --masking bl", "pretrain|mae|--masking|block"),
            ("study si", "study|simulate"),
            ("attend a", "attend|a picture.png"),
        ):
            os.write(terminal, f"unmask {typed}\t\n".encode())
            assert until(" end\r\n").rpartition("got ")[2] == made
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


# The doctor


def test_doctor_looks_at_everything_and_says_it_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "SECONDS", 0.02)
    assert run("doctor", "--json", "--out", tmp_path) == 0
    said = capsys.readouterr()
    found = {one["name"]: one for one in json.loads(said.out)["findings"]}
    assert {"processor", "threads", "load", "precision", "decoder", "disk of runs", "versions", "extra ui"} <= set(
        found
    )
    assert "GFLOP/s" in found["precision"]["value"] and "JPEGs" in found["decoder"]["value"]
    assert all(one["state"] == "ok" or (one["cure"] and (one["why"] or one["value"])) for one in found.values())
    assert "precision" in said.err and json.loads(said.out)["sentence"].split()[0] in said.err


def test_doctor_names_what_is_slow_and_its_cure(monkeypatch):
    monkeypatch.setattr(doctor, "affinity", lambda: 4)
    monkeypatch.setattr(doctor, "quota", lambda: 1.5)
    monkeypatch.setattr(doctor, "granted", lambda: 0.4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    found = {one.name: one for one in doctor.processor()}
    assert "1.5 cores" in found["processor"].why
    assert found["threads"].state == "slow" and found["threads"].cure == "export OMP_NUM_THREADS=2"
    assert found["load"].state == "slow" and "OMP_NUM_THREADS=2" in found["load"].cure
    monkeypatch.setattr(doctor, "rate", lambda device, dtype: 10.0 if dtype == torch.bfloat16 else 100.0)
    monkeypatch.setattr(doctor, "choose_precision", lambda name, device: ("bf16", "it says so"))
    (found,) = doctor.precision(torch.device("cpu"))
    assert found.state == "slow" and found.cure == "--precision float32"
    monkeypatch.setattr(doctor, "kind_of", lambda path: "nfs4")
    (found,) = doctor.disks({"images": Path.cwd()})
    assert found.state == "slow" and "unmask pack" in found.cure
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: os.terminal_size((1, 1)) and type("Disk", (), {"free": 2**20})
    )
    (found,) = doctor.shared()
    assert found.state == "broken" and "--workers 0" in found.cure


def test_a_quota_of_the_control_group_is_read(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(doctor, "groups", lambda controller: [tmp_path])
    assert doctor.quota() == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.quota() == float("inf")
    (tmp_path / "cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert doctor.quota() == 2.0


def test_bad_input_stays_bad_input():
    with pytest.raises(BadInput, match="no verb"):
        from unmask.cli import call

        call("dcotor-who", [])
