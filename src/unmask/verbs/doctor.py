"""unmask doctor: what this machine can do, what is slow on it and why, and the cure."""

import importlib
import importlib.util
import math
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.markup import escape
from rich.table import Table

from unmask.screen import console
from unmask.training.engine import choose_precision

GIB = 2**30
SECONDS = 0.4
"""How long each thing is measured."""
REMOTE = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
    "fuse.sshfs",
)
"""Kinds of file system whose files lie on another machine."""
EXTRAS = {
    "datasets": (("datasets",), "--data hf:NAME"),
    "webdataset": (("webdataset",), "--data wds:PATTERN.tar"),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "unmask export --to onnx"),
    "study": (("umap", "openpyxl"), "unmask study"),
    "ui": (("gradio", "umap"), "unmask ui"),
    "rl": (("ale_py", "gymnasium"), "unmask dqn"),
}
"""What is installed by pip install 'unmask[NAME]': its modules, and what needs them."""
# Where words change: set by hand
STARVED = 0.75
"""Share of a core's time that a thread gets, below which other processes are in the way."""
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 2 * GIB, 1 * GIB, GIB // 4
"""Below these, a checkpoint, a small training, or the batches that workers hand over may find no room."""


@dataclass(frozen=True)
class Doctor:
    """Look this machine over: processor, memory, GPUs, precision, decoder, disks and versions. It takes seconds."""

    out: Path = Path("runs")
    """Where runs are to go: its disk is looked at."""
    data: Path | None = None
    """Where images lie: its disk is looked at, too."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    value: str
    """What it is, with units."""
    state: Literal["ok", "slow", "broken"] = "ok"
    why: str = ""
    """What that means, where it is not plain."""
    cure: str = ""
    """What to do about it; "" where there is nothing to cure."""


def doctor(settings: Doctor) -> dict[str, Any]:
    """Print and return what was found: "findings", and the same in a "sentence"."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with console.status("looking this machine over"):
        findings = [
            *processor(),
            *memory(),
            *graphics(),
            *precision(device),
            *decoder(),
            *disks({"runs": settings.out, "images": settings.data, "temporary files": Path(tempfile.gettempdir())}),
            *shared(),
            *versions(),
            *extras(),
        ]
    show(findings)
    words = [f"{state}: {', '.join(names)}" for state in ("broken", "slow") if (names := named(findings, state))]
    sentence = "; ".join(words) + "." if words else "Nothing is broken, and nothing is slower than it must be."
    console.print(f"\n{sentence}")
    return {"sentence": sentence, "findings": findings}


def named(findings: list[Finding], state: str) -> list[str]:
    return [finding.name for finding in findings if finding.state == state]


def show(findings: list[Finding]) -> None:
    """A line a finding, what is wrong with it and its cure below."""
    signs = {"ok": "[green]ok[/]", "slow": "[yellow]slow[/]", "broken": "[red]broken[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for finding in findings:
        said = escape(finding.value)
        said += f"\n[dim]{escape(finding.why)}[/]" if finding.why else ""
        said += f"\n→ {escape(finding.cure)}" if finding.cure else ""
        table.add_row(signs[finding.state], finding.name, said)
    console.print(table, soft_wrap=False)


# Processor and memory


def affinity() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, the innermost first: what limits one limits those within."""
    lines = Path("/proc/self/cgroup")
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        _, controllers, inside = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / (controllers and controller)
            yield from (root / parent for parent in (Path(inside.strip("/")), *Path(inside.strip("/")).parents))


def limits(controller: str, *names: str) -> Iterator[list[str]]:
    """The words in each of the files so called, of every control group."""
    for folder in groups(controller):
        for name in names:
            if (folder / name).is_file():
                yield (folder / name).read_text().split()


def quota() -> float:
    """Cores whose time the control group allows, inf where it does not limit that."""
    found = [int(words[0]) / int(words[1]) for words in limits("cpu", "cpu.max") if words[0] != "max"]
    for folder in groups("cpu"):
        if (folder / "cpu.cfs_quota_us").is_file():  # the first version of control groups
            most, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found += [most / period] if most > 0 else []
    return min(found, default=math.inf)


def model() -> str:
    """What the processor calls itself."""
    path = Path("/proc/cpuinfo")
    told = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return told[1] if told else platform.processor() or platform.machine()


def processor() -> Iterator[Finding]:
    """Cores, the threads that torch takes, and what share of them it gets."""
    usable, allowed, there = affinity(), quota(), os.cpu_count() or 1
    cores = max(1, math.ceil(min(usable, allowed)))
    said = f"{model()}, {cores} of {there} cores to be used"
    if allowed < usable:
        yield Finding("processor", said, "ok", f"a quota allows the time of {allowed:g} cores")
    else:
        yield Finding("processor", said)
    threads, asked, share = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), granted()
    said = f"{threads}" + (f", by OMP_NUM_THREADS={asked}" if asked else "")
    if threads > cores:
        why = f"{threads} threads on {cores} cores wait for each other"
        yield Finding("threads", said, "slow", why, f"export OMP_NUM_THREADS={cores}")
    elif asked and threads < cores and share >= STARVED:
        why = f"{cores - threads} of {cores} cores are left to others"
        yield Finding("threads", said, "slow", why, "unset OMP_NUM_THREADS, unless others need them")
    else:
        yield Finding("threads", said)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    said = f"load {load:.1f} on {there} cores; a thread gets {share:.0%} of a core's time"
    if share < STARVED:
        free = max(1, round(threads * share))
        cure = f"wait until they are done, or export OMP_NUM_THREADS={free}"
        why = "other processes hold the cores: threads wait for the one that was put aside"
        yield Finding("load", said, "slow", why, cure if free < threads else "wait until they are done")
    else:
        yield Finding("load", said)


def granted() -> float:
    """The share of a core's time that each of torch's threads gets while all of them multiply."""
    a = torch.ones(768, 768)
    torch.mm(a, a)
    began, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < SECONDS:
        torch.mm(a, a)
    return min(1.0, (time.process_time() - used) / (time.perf_counter() - began) / torch.get_num_threads())


def memory() -> Iterator[Finding]:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return
    told = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(), re.MULTILINE)}
    total = told["MemTotal"]
    most = min([total, *(int(w[0]) for w in limits("memory", "memory.max", "memory.limit_in_bytes") if w[0] != "max")])
    free, swapped = min(most, told["MemAvailable"]), told.get("SwapTotal", 0) - told.get("SwapFree", 0)
    said = f"{most / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free" + (", by a limit" if most < total else "")
    if free < LEAST_MEMORY:
        yield Finding(
            "memory", said, "broken", "a training may be killed", "end what else runs, or take a smaller --batch-size"
        )
    elif swapped > GIB // 2 and free < total / 10:
        why = f"{swapped / GIB:.1f} GiB lie on the disk, and come back slowly"
        yield Finding("memory", said, "slow", why, "end what else runs, or take a smaller --batch-size")
    else:
        yield Finding("memory", said)


# GPUs and precision


def graphics() -> Iterator[Finding]:
    """A finding a GPU; what keeps torch from one that is there."""
    built = torch.version.cuda or torch.version.hip
    kernel = Path("/proc/driver/nvidia/version")
    driver = re.search(r"Kernel Module\D*([\d.]+)", kernel.read_text()) if kernel.is_file() else None
    named = f"driver {driver[1]}" if driver else "driver of unknown version"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            said = f"{known.name}, {total / GIB:.0f} GiB, {free / GIB:.0f} GiB of it free; {named}"
            if free < total / 2:
                cure = "end them (nvidia-smi names them), or take a smaller --batch-size"
                yield Finding(f"GPU {number}", said, "slow", "other processes hold its memory", cure)
            else:
                yield Finding(f"GPU {number}", said)
    elif kernel.is_file() or shutil.which("nvidia-smi"):
        if built is None:
            why = "this torch is built for processors only"
            yield Finding("GPU", f"there is one ({named})", "slow", why, "install a torch that is built with CUDA")
        else:
            try:
                torch.cuda.init()
                why = "torch sees none: perhaps CUDA_VISIBLE_DEVICES hides it"
            except (RuntimeError, AssertionError) as error:
                why = str(error).splitlines()[0]
            yield Finding(
                "GPU", f"there is one ({named})", "broken", why, f"a driver that knows CUDA {built}, or another torch"
            )
    else:
        yield Finding(
            "GPU", "none", why="all is reckoned on the processor: small encoders and images first (unmask plan)"
        )


def precision(device: torch.device) -> Iterator[Finding]:
    """How fast matrices are multiplied, and in which precision a training would."""
    rates = {"float32": rate(device, torch.float32), "bf16": rate(device, torch.bfloat16)}
    chosen, why = choose_precision("auto", device)
    said = ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in rates.items()) + f"; trained in {chosen}"
    other = "float32" if chosen == "bf16" else "bf16"
    if rates[chosen] < 0.8 * rates[other]:
        cure = f"--precision {other}"
        yield Finding("precision", said, "slow", f"{why}, and yet {other} is faster here", cure)
    elif chosen == "float32" and device.type == "cpu" and has("avx512_bf16", "amx_bf16"):
        why = "the processor multiplies bf16 in hardware, and this torch does not know"
        yield Finding("precision", said, "slow", why, "a newer torch, and no ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY")
    elif chosen == "float32":
        yield Finding("precision", said, "slow", why, "nothing to set: a processor with AMX or AVX-512 bf16, or a GPU")
    else:
        yield Finding("precision", said, why=why)


def has(*flags: str) -> bool:
    """Whether the processor says that it can do one of these."""
    path = Path("/proc/cpuinfo")
    told = re.search(r"^flags\s*:(.+)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return told is not None and bool(set(flags) & set(told[1].split()))


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP a second of square matrices multiplied."""
    side = 8192 if device.type == "cuda" else 1024
    a, times, spent = torch.ones(side, side, device=device, dtype=dtype), 0, 0.0
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.mm(a, a)
    finish()
    began = time.perf_counter()
    while spent < SECONDS:
        torch.mm(a, a)
        finish()
        times, spent = times + 1, time.perf_counter() - began
    return 2 * side**3 * times / spent / 1e9


# Images and disks


def decoder() -> Iterator[Finding]:
    """How fast JPEG is decoded, measured on a photograph that came along."""
    try:
        from unmask.data.decode import decode, size_of
    except ImportError as error:
        yield Finding("decoder", "missing", "broken", str(error), "pip install --force-reinstall simplejpeg")
        return
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    photograph = Path(spec.origin).parent / "datasets" / "images" / "china.jpg"
    if not photograph.is_file():
        yield Finding("decoder", f"simplejpeg {version('simplejpeg')}, not measured: the photograph is gone")
        return
    encoded, times, spent = photograph.read_bytes(), 0, 0.0
    _, height, width, _ = size_of(encoded)
    began = time.thread_time()  # whatever else the core does
    while spent < SECONDS:
        decode(encoded)
        times, spent = times + 1, time.thread_time() - began
    speed = times / spent
    said = f"simplejpeg {version('simplejpeg')}: {speed:,.0f} JPEGs of {width} x {height} a second and core"
    yield Finding("decoder", f"{said}, {speed * height * width / 1e6:,.0f} megapixels/s")


def disks(places: dict[str, Path | None]) -> Iterator[Finding]:
    """Room on each disk, and whether it is one of another machine."""
    for name, path in places.items():
        if path is None:
            continue
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        free, kind = shutil.disk_usage(there).free, kind_of(there)
        said = f"{free / GIB:,.1f} GiB free" + (f", {kind}" if kind else "")
        if not os.access(there, os.W_OK) and name != "images":
            yield Finding(
                f"disk of {name}", said, "broken", f"{there} cannot be written", "another --out, or the right to write"
            )
        elif free < LEAST_DISK and name != "images":
            cure = "make room, or another --out" if name == "runs" else "make room, or export TMPDIR=another/folder"
            yield Finding(f"disk of {name}", said, "broken", "a checkpoint of ViT-B takes 1.3 GB", cure)
        elif kind in REMOTE:
            cure = (
                "unmask pack it to a disk of this machine" if name == "images" else "a folder on a disk of this machine"
            )
            yield Finding(
                f"disk of {name}", said, "slow", "its files lie on another machine: small ones are slow to open", cure
            )
        else:
            yield Finding(f"disk of {name}", said)


def kind_of(path: Path) -> str:
    """The kind of file system that a path lies on, "" where the system does not say."""
    mounts = Path("/proc/mounts")
    lines = [line.split() for line in mounts.read_text().splitlines()] if mounts.is_file() else []
    found = [(len(words[1]), words[2]) for words in lines if path.resolve().is_relative_to(words[1])]
    return max(found, key=lambda each: each[0], default=(0, ""))[1]


def shared() -> Iterator[Finding]:
    """The memory through which workers hand over batches."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    free = shutil.disk_usage(path).free
    if free < LEAST_SHARED:
        why = "the workers of a loader hand batches over through it, and die when it is full"
        yield Finding(
            "shared memory", f"{free / 2**20:,.0f} MiB free", "broken", why, "docker run --shm-size 8g, or --workers 0"
        )
    else:
        yield Finding("shared memory", f"{free / GIB:,.1f} GiB free")


# What is installed


def versions() -> Iterator[Finding]:
    names = ("unmask", "torch", "torchvision", "timm", "numpy", "safetensors", "huggingface_hub", "scikit-learn")
    said = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            said.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(name, "missing", "broken", "unmask needs it", f"pip install {name}")
    yield Finding("versions", ", ".join(said))
    try:
        importlib.import_module("torchvision")
        torch.ops.torchvision.nms  # noqa: B018
        yield Finding("torchvision", f"fits torch {torch.__version__}")
    except (ImportError, AttributeError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        yield Finding(
            "torchvision", "does not fit torch", "broken", why, "pip install --upgrade torch torchvision, both together"
        )


def extras() -> Iterator[Finding]:
    """What is optional, and what needs it."""
    for name, (modules, use) in EXTRAS.items():
        there = all(importlib.util.find_spec(module) for module in modules)
        said = "installed" if there else f"not installed: pip install 'unmask[{name}]'"
        yield Finding(f"extra {name}", f"{said}, for {use}")
