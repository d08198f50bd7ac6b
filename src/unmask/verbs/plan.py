"""unmask plan: what a training will need of memory and time, before it is begun."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from unmask import models
from unmask.data.loader import Batch
from unmask.errors import BadInput
from unmask.methods import METHODS
from unmask.methods.beit import BEiT
from unmask.methods.method import Method
from unmask.models.dvae import MEAN, STD, TokenEncoder, Tokenizer
from unmask.screen import bar, console
from unmask.training import engine
from unmask.training.engine import Clock, autocast
from unmask.training.optim import Optimiser, Recipe, optimisers_for
from unmask.training.run import write
from unmask.verbs.choices import paper_for, parse_size

GIB = 2**30

SECONDS = 4.0
"""How long steps are timed at least."""

TIMED = 1e12
"""Operations of a step that is timed on a CPU, a few seconds' worth: of a larger batch a part, at least 16 images, is timed."""

HELD = 1.6
"""Memory that a CPU's process holds while it trains, for each byte of tensors at their most: the C library finds no room
for a tensor between the freed ones. Measured for five encoders: 1.45 to 1.65 (benchmarks/plan.py)."""

IMAGENET = 1_281_167
"""Images that a method's sizes are chosen for where --images does not say."""


@dataclass(frozen=True)
class Plan:
    """What pre-training an encoder will need, before it is begun: parameters, operations, memory, hours, and the largest
    batch that fits. Nothing of the data is looked at. Where the device is here, a few steps are timed on it."""

    encoder: str | None = None
    """vit-tiny, vit-small, vit-base, vit-large or vit-huge, then / and the patch size in pixels: vit-base/16."""
    image_size: str = "224"
    """Pixels that the encoder sees: 224, or HEIGHTxWIDTH as in 160x224."""
    channels: int = 3
    """Channels of the images."""
    batch_size: int = 64
    """Images a step, of all processes together."""
    images: int | None = None
    """How many images there are to learn from. Without it no hours can be told."""
    epochs: float | None = None
    """Passes over the images. Default: the paper's."""
    method: str = "mae"
    """How it is trained, with the method's own defaults."""
    optimiser: Optimiser | None = None
    """adamw, muon, lars or sgd. Default: the paper's."""
    device: str = "auto"
    """auto, cpu or cuda. cuda may be planned where there is none: give --tflops and --memory."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto takes bf16 where the processor multiplies it in hardware; of a GPU that is not here that is assumed."""
    processes: int = 1
    """Processes that share the batch, each with a device of its own like the one planned for."""
    tflops: float | None = None
    """Rate of matrix products of one device, 10^12 operations a second, to reckon with instead of timing steps here."""
    share: float = 0.4
    """Share of --tflops that a whole step reaches."""
    memory: float | None = None
    """Memory of one device, GiB. Default: what is free here."""
    out: Path | None = None
    """Where the plan goes as well (.json)."""


@dataclass(frozen=True)
class Needs:
    """What one step of one process needs. Bytes; operations count a multiplication and an addition as two."""

    parameters: int
    encoder_parameters: int
    flops: int
    """Operations of matrix products, forwards and backwards, for all images of the step."""
    weights: int
    """Parameters and buffers."""
    gradients: int
    optimiser: int
    activations: int
    """What is there at the end of the forward pass beside weights and optimiser state: what it kept for the backward
    pass, with the images."""
    peak: int
    """The most tensors at any one time in a step, temporary ones included."""


def plan(settings: Plan) -> dict[str, Any]:
    """Print and return what pre-training will need. BadInput for settings that no training could have."""
    check(settings)
    kind = METHODS[settings.method]
    paper = paper_for(kind.PAPERS, str(settings.encoder))
    settings = replace(
        settings, epochs=settings.epochs or paper.epochs, optimiser=settings.optimiser or paper.optimiser
    )
    size, local = parse_size(settings.image_size), settings.batch_size // settings.processes
    here = settings.device != "cuda" or torch.cuda.is_available()
    device = engine.choose_device(settings.device) if here else torch.device("cuda")
    precision, why = settings.precision, "as asked"
    if here:
        precision, why = engine.choose_precision(settings.precision, device)
    elif precision == "auto":
        precision, why = "bf16", "what GPUs are fast at"

    def build() -> Method:
        own = kind.suit(kind.Settings(), settings.images or IMAGENET, settings.batch_size, size, 1)[0]
        options = {"channels": settings.channels, **kind.built_with(own)}
        encoder = models.build(str(settings.encoder), image_size=size, **options)
        return kind(encoder, own, **({"tokenizer": tokenizer(settings)} if kind is BEiT else {}))

    @functools.cache
    def play(batch_size: int) -> Needs:
        return needs(build, batch_size, precision, settings.optimiser)

    with console.status("playing a step through, without computing it"):
        need = play(local)
        underway = need.gradients if settings.processes > 1 else 0  # what DistributedDataParallel sends, a copy
        free, whose = memory(settings.memory, device, here)
        held = HELD if device.type == "cpu" else 1.0
        most = 0 if free is None else largest(play, local, math.floor(free / held) - underway)
    rate, how = None, "unknown: give --tflops of a GPU that is not here"
    if settings.tflops is not None:
        rate = settings.share * settings.tflops * 1e12 * local / need.flops
        how = f"{settings.share:.0%} (--share) of {settings.tflops:g} TFLOP/s, as if the rest cost no time"
    elif here and most == 0:
        how = "not timed, for not one image fits"
    elif here:
        part = max(16, round(TIMED * local / need.flops)) if device.type == "cpu" else local
        timed = min(local, most, part)
        rate = measured(build(), timed, device, precision, settings.optimiser)
        how = f"steps of {timed} images timed here: {rate * need.flops / local / 1e12:.3g} TFLOP/s"
    if settings.processes > 1:
        how += f"; x {settings.processes} at best, for what they tell each other takes time, too"

    every = dataclasses.asdict(need)
    result = {name: getattr(settings, name) for name in ("encoder", "method", "batch_size", "processes")} | every
    result |= {"image_size": size, "device": str(device), "precision": precision, "flops": need.flops // local}
    result["peak"] = round((need.peak + underway) * held)
    result |= {"tensors": need.peak + underway, "memory": free, "largest_batch_size": most * settings.processes}
    result["images_per_second"] = None if rate is None else rate * settings.processes
    result |= duration(settings, result["images_per_second"])
    table(settings, result, local, (why, whose, how))
    enough = free is None or result["peak"] <= free
    fits = "fits" if enough else f"does not fit: use --batch-size {most} or --accumulate"
    console.print(
        f"\n{settings.encoder} at {size[0]} x {size[1]} pixels, {settings.batch_size:,} images a step: "
        f"{gib(result['peak'])} a process, which {fits}; {spoken(result['hours'])}."
    )
    if settings.out is not None:
        try:
            write(settings.out, json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise BadInput(f"{settings.out} cannot be written ({error.strerror}): choose another --out") from None
    return result


def tokenizer(settings: Plan) -> Tokenizer:
    """One as large as DALL-E's, with which BEiT was published."""
    encoder, channels = (
        models.build("dvae-base/8", image_size=(112, 112), channels=settings.channels),
        settings.channels,
    )
    assert isinstance(encoder, TokenEncoder)
    return Tokenizer(encoder, (0.5,) * channels, (0.5,) * channels, (MEAN,) * channels, (STD,) * channels)


def check(settings: Plan) -> None:
    if settings.encoder is None:
        raise BadInput("--encoder is missing: name one, as in --encoder vit-base/16")
    if settings.method not in METHODS:
        raise BadInput(f"no method is called {settings.method!r}: use one of {', '.join(METHODS)}")
    for name in ("channels", "batch_size", "images", "epochs", "processes", "tflops", "share", "memory"):
        if (value := getattr(settings, name)) is not None and value <= 0:
            raise BadInput(f"--{name.replace('_', '-')} is {value}: give a number above 0")
    if settings.batch_size % settings.processes:
        raise BadInput(f"{settings.processes} processes do not divide a --batch-size of {settings.batch_size}")
    if settings.images is not None and settings.images < settings.batch_size:
        raise BadInput(f"--batch-size {settings.batch_size} is more than the {settings.images} images there are")


# Memory and operations


def needs(build: Callable[[], Method], batch_size: int, precision: str, optimiser: Any) -> Needs:
    """What a step needs, from playing two steps through on tensors that have a shape and nothing in them: each operation
    is counted, and each allocation from when it is made to when it is given back. As on a CPU: on a GPU the weights of
    attention are not kept, so it needs less."""
    device = torch.device("cpu")
    with torch.device("meta"):
        method = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = method.to_empty(device=device).train()
        batch, clock = blank(method, batch_size, device), Clock(0, 1, 0.0)
        optimisers = optimisers_for(method, Recipe(1, 1e-3, optimiser=optimiser))
        with FlopCounterMode(display=False) as operations, Allocations() as there:
            there.count([*method.parameters(), *method.buffers()])
            weights = there.now
            there.count([batch.views, batch.index, batch.seed])
            with autocast(device, precision):
                loss = method(batch, clock)["loss"]
            loss.backward()
            flops = operations.get_total_flops()
            gradients = sum(p.grad.nbytes for p in method.parameters() if p.grad is not None)
            for each in optimisers:
                each.step()
            method.zero_grad(set_to_none=True)
            del loss
            images = sum(view.nbytes for view in batch.views)
            before, there.peak = there.now, 0  # from here on as in every later step
            with autocast(device, precision):
                loss = method(batch, clock)["loss"]
            activations = there.now - before + images
            loss.backward()
            for each in optimisers:
                each.step()
    return Needs(
        parameters=count(method),
        encoder_parameters=count(method.encoder),
        flops=flops,
        weights=weights,
        gradients=gradients,
        optimiser=before - weights - images,
        activations=activations,
        peak=there.peak,
    )


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, until they are given back."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(out)
        return out

    def count(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, id(storage), storage.nbytes())

    def forget(self, name: int, size: int) -> None:
        self.seen.discard(name)
        self.now -= size


def blank(method: Method, batch_size: int, device: torch.device) -> Batch:
    """A batch of black images."""
    channels, names = method.encoder.channels, torch.zeros(batch_size, dtype=torch.int64, device=device)
    views = tuple(torch.zeros(batch_size, channels, *view.size, device=device) for view in method.views)
    return Batch(views, names, names)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def memory(given: float | None, device: torch.device, here: bool) -> tuple[int | None, str]:
    """Bytes that are free, and whose; None where nobody knows."""
    if given is not None:
        return round(given * GIB), "as --memory says"
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0], "free on this GPU") if here else (None, "")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024, "free here"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "in this machine"


def largest(play: Callable[[int], Needs], batch_size: int, free: int) -> int:
    """The largest batch whose peak fits into so many bytes, 0 for none. Activations grow in proportion to it: that tells
    where to begin, above it, and what is found is played through."""
    one, two = play(batch_size), play(2 * batch_size)
    fixed = one.weights + one.optimiser
    found = math.floor((free - fixed) / ((two.activations - one.activations) / batch_size))
    while found > 0 and (peak := play(found).peak) > free:
        found = min(found - 1, math.floor(found * (free - fixed) / (peak - fixed)))
    return max(0, found)


# Time


class Enough(Exception):
    """The steps that were to be timed are done."""


def measured(method: Method, batch_size: int, device: torch.device, precision: str, optimiser: Any) -> float:
    """Images a second of real steps on this device: at least three, for at least SECONDS, after one to warm up."""
    batch, starts = blank(method, batch_size, device), []
    with bar("timing steps", round(SECONDS), unit="seconds") as show:

        def batches(first: int) -> Iterator[Batch]:
            while len(starts) < 5 or starts[-1] - starts[1] < SECONDS:
                yield batch
                if device.type == "cuda":
                    torch.cuda.synchronize()
                starts.append(time.perf_counter())
                show(min(round(SECONDS), int(starts[-1] - starts[min(1, len(starts) - 1)])))
            raise Enough

        with contextlib.suppress(Enough):
            engine.fit(method, batches, Recipe(10**6, 1e-6, optimiser=optimiser), device=device, precision=precision)
    return batch_size * (len(starts) - 2) / (starts[-1] - starts[1])


def duration(settings: Plan, rate: float | None) -> dict[str, Any]:
    """Steps and hours of the whole run, where they are known."""
    if settings.images is None:
        return {"steps": None, "hours": None}
    assert settings.epochs is not None
    steps = max(1, round(settings.epochs * (settings.images // settings.batch_size)))
    return {"steps": steps, "hours": None if rate is None else steps * settings.batch_size / rate / 3600}


# Words


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def spoken(hours: float | None) -> str:
    if hours is None:
        return "hours need --images and a rate"
    if hours < 2:
        return f"{hours * 60:.0f} minutes" if hours > 1 / 30 else f"{hours * 3600:.0f} seconds"
    return f"{hours:,.0f} hours" if hours < 72 else f"{hours / 24:,.1f} days"


def table(settings: Plan, result: dict[str, Any], local: int, reasons: tuple[str, str, str]) -> None:
    """What was found, a line a fact, each with its reason."""
    why, whose, how = reasons
    rows = Table(box=None, padding=(0, 2, 0, 0), show_header=False)

    def row(name: str, value: str, reason: str) -> None:
        rows.add_row(name, f"[bold]{value}[/]", f"[dim]{reason}[/]")

    trainer = f"{result['parameters'] / 1e6:,.1f} M with what {settings.method} trains it with"
    row("parameters", f"{result['encoder_parameters'] / 1e6:,.1f} M", f"{settings.encoder}; {trainer}")
    row(
        "operations", f"{result['flops'] / 1e9:,.2f} GFLOP", "an image, forwards and backwards; a x b + c counts as two"
    )
    row("precision", result["precision"], why)
    divided = f"{settings.batch_size:,} / {settings.processes} processes" if settings.processes > 1 else "one process"
    row("batch", f"{local:,} images", divided)
    row("weights", gib(result["weights"]), "float32")
    row("gradients", gib(result["gradients"]), "float32; while they come, activations go")
    row("optimiser", gib(result["optimiser"]), f"what {settings.optimiser} remembers of each weight")
    row(
        "activations",
        gib(result["activations"]),
        f"at their most: {result['activations'] / local / 2**20:,.1f} MiB an image",
    )
    sent = "; DistributedDataParallel's copy of the gradients is in it" if settings.processes > 1 else ""
    row("at one time", gib(result["tensors"]), f"all of these at their most{sent}")
    held = (
        f"which takes {HELD:g} times as much memory on a CPU, measured; " if result["peak"] > result["tensors"] else ""
    )
    row("needs", gib(result["peak"]), f"{held}a process, beside Python, torch and the loader")
    if result["memory"] is not None:
        row("memory", gib(result["memory"]), whose)
        row("largest batch", f"{result['largest_batch_size']:,} images", "that this memory holds")
    rate = result["images_per_second"]
    row("speed", "unknown" if rate is None else f"{rate:,.4g} images/s", how)
    if result["steps"] is not None:
        epochs = f"{settings.epochs:g} epochs of {settings.images:,} images in batches of {settings.batch_size:,}"
        row("steps", f"{result['steps']:,}", epochs)
    if result["hours"] is not None:
        row("time", spoken(result["hours"]), "if images are read as fast as they are learnt from")
    console.print(rows)
