"""The one loop that trains everything.

It knows no model, no method and no source: it is handed a method (images in, loss out), a function that yields batches
from any step on, a recipe, and, where the run is to be kept, a run.
"""

import contextlib
import copy
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.training import distributed, health
from unmask.training.optim import Recipe, optimisers_for, schedule
from unmask.training.run import Run

NOTEBOOK = "ipykernel" in sys.modules
"""Where nothing is drawn over again, and each line would else be a display of its own."""
console = Console(highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=False if NOTEBOOK else None)

SAVE_EVERY = 600
"""Seconds between checkpoints, where a tenth of the run takes longer."""


@dataclass(frozen=True)
class Clock:
    """The only notion of time."""

    step: int
    """Steps of the optimiser done so far."""
    steps: int
    """Steps in the whole run."""
    epoch: float
    """Passes over the data done so far."""

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.step / self.steps


def choose_device(name: str) -> torch.device:
    """The device called auto, cpu or cuda. BadInput if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch sees no GPU here; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise BadInput(f"--device {name}: use auto, cpu or cuda") from None


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back to the system: every step would fault its
    pages in again. Elsewhere than on Linux it does nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
                libc.mallopt(option, value)


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """bf16 or float32, and why."""
    if name == "float32":
        return name, "as asked"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if name == "bf16":
        return name, "as asked" if fast else "as asked, though this processor only emulates it: slow"
    what = "this GPU" if device.type == "cuda" else "this processor"
    return ("bf16", f"{what} multiplies bf16 in hardware") if fast else ("float32", f"{what} has no bf16 in hardware")


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C was heeded: the run can go on from its last checkpoint. The message says so."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number
        """Of the signal."""


@contextlib.contextmanager
def signals(catch: bool):
    """Note SIGTERM and the first Ctrl-C in the list that is yielded; a second one acts at once."""
    caught: list[int] = []
    if not catch or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    method: Any,
    batches: Callable[[int], Iterator[Any]],
    recipe: Recipe,
    run: Run | None = None,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    precision: str = "float32",
    compiled: bool = False,
    shard: bool = False,
    watch: Tensor | None = None,
    probe: Callable[[nn.Module], dict[str, float]] | None = None,
    title: str | None = None,
) -> list[dict[str, Any]]:
    """Train `method` and return the log, a dict for each line: at most 200 lines and never fewer than one in 50 steps.

    method: an nn.Module whose forward(batch, clock) gives {"loss", "uninformed", …}; see unmask.methods.method.
    batches: batches(n) yields this process's batches from number n on, endlessly; the same n always the same batches.
    run: where log and checkpoints go; a run with a checkpoint is gone on with. None keeps nothing.
    shard: cut parameters and optimiser state into parts, one a process, instead of keeping them whole in each.
    watch: images (B, C, H, W) whose features are watched for collapse. probe: judges the encoder five times a run.
    title: what the progress bar says; None for no bar.

    Killed at any moment and called again, it ends with the same weights and the same log, to the last bit where the
    arithmetic of the device is repeatable (the CPU's is): nothing random outlives a step.

    Raises health.Diverged when a loss or a weight is NaN or infinite, before that reaches a checkpoint, and Stopped once
    a checkpoint is written after SIGTERM or Ctrl-C.
    """
    if device.type == "cpu":
        keep_memory()
    spare = copy.deepcopy(method) if shard and distributed.world() > 1 else None
    method.to(device).train()
    parallel = distributed.spread(method, shard)
    optimisers = optimisers_for(method, recipe)
    parameters = [p for p in method.parameters() if p.requires_grad]
    forward = torch.compile(parallel) if compiled else parallel
    meter, step, history = Meter(), 0, []
    state = run.restore() if run is not None else None
    for path in run.torn if run is not None else ():
        console.print(f"[yellow]torn[/] {path.name}: passed over for the one before")
    if state is not None:
        step = state["step"]
        distributed.load(method, optimisers, state)
        meter.totals, meter.batches = ({k: v.to(device) for k, v in state["meter"].items()}, state["batches"])
    if run is not None:
        history = run.rewind(step)  # a run killed before its first checkpoint has a log, too
    log_every = min(50, max(1, recipe.steps // 200))
    saved = (step, time.monotonic())

    def due(times: int) -> bool:
        """Whether this line of the log is one of so many, evenly spread, the last one among them."""
        return step * times // recipe.steps > (step - log_every) * times // recipe.steps or step == recipe.steps

    def save() -> None:
        nonlocal saved
        assert run is not None
        state = distributed.state_of(method, optimisers)
        run.save(step, {**state, "step": step, "meter": meter.totals, "batches": meter.batches})
        saved = (step, time.monotonic())

    def late() -> bool:
        return time.monotonic() - saved[1] > SAVE_EVERY

    def encoder() -> nn.Module:
        """The encoder to be judged by rank 0, whole. To be called in all processes."""
        if spare is None:
            return method.encoder
        if weights := distributed.whole_weights(method):
            spare.load_state_dict(weights)
        return copy.deepcopy(spare.encoder).to(device)

    def judged() -> dict[str, float]:
        """What watch and probe say, where they are due."""
        look, ask = (watch if due(10) else None), (probe if due(5) else None)
        found: dict[str, float] = {}
        if look is None and ask is None:
            return found
        module = encoder()
        if distributed.rank() == 0:  # the others wait at the next step
            if look is not None:
                found |= health.features(encode(module, look, device))
            if ask is not None:
                found |= ask(module)
        return found

    stop, random = False, torch.random.fork_rng([device] if device.type == "cuda" else [])
    with signals(run is not None) as caught, random, bar(title, recipe.steps, step) as show:
        stream = batches(step * recipe.accumulate)
        try:
            while step < recipe.steps and not stop:
                torch.manual_seed(seed_of(recipe.seed, step, distributed.rank()))
                clock = Clock(step, recipe.steps, step / recipe.steps_per_epoch)
                lr = schedule(optimisers, recipe, step)
                for part in range(recipe.accumulate):
                    with meter.waiting():
                        batch = next(stream)
                    with distributed.alone(parallel, part < recipe.accumulate - 1):
                        with autocast(device, precision):
                            values = forward(batch, clock)
                        (values["loss"] / recipe.accumulate).backward()
                    meter.add(values, len(batch.index))
                method.after_backward(clock)
                norm = distributed.whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
                if recipe.clip is not None:
                    nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
                logs = (step + 1) % log_every == 0 or step + 1 == recipe.steps
                before = health.snapshot(method) if logs else []
                for optimiser in optimisers:
                    optimiser.step()
                method.after_step(clock)
                step += 1
                stop = distributed.agreed(bool(caught))
                if logs or stop:
                    health.check(method, batch, values, step)  # type: ignore[possibly-unbound]
                if logs:
                    line = {"step": step, "epoch": step / recipe.steps_per_epoch, **meter.read()}
                    line |= {"lr": lr, "grad_norm": norm.item(), "update_ratio": health.update_ratio(method, before)}
                    line |= judged()
                    history.append(line)
                    show(line)
                    meter.reset()
                    if run is not None:
                        run.log(line)
                if run is not None and (stop or (logs and (due(10) or distributed.agreed(late())))):
                    save()
                method.zero_grad(set_to_none=True)
        except RuntimeError:  # the signal reached the workers of the loader, or another process, first
            if not caught:
                raise
            stop = True
    if stop:
        number = caught[0] if caught else signal.SIGTERM
        kept = f"the checkpoint of step {saved[0]:,} is kept" if saved[0] else "nothing is kept yet"
        raise Stopped(f"stopped at step {step:,} of {recipe.steps:,}; {kept}", number)
    return history


def seed_of(*numbers: int) -> int:
    """32 bits that depend on every one of the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, device: torch.device, batch_size: int = 16) -> Tensor:
    """Vectors (B, D) of images (B, C, H, W), the encoder in evaluation mode meanwhile. In float32: the rounding of bf16,
    0.4%, would hide how alike the vectors of a collapsed encoder are. Few at once: watching must not take the memory that
    training has to spare."""
    training = encoder.training
    encoder.eval()
    vectors = torch.cat([encoder(part.to(device)) for part in images.split(batch_size)])
    encoder.train(training)
    return vectors


class Meter:
    """Means, rates and waits since the last line of the log. Values stay on the device until they are read."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.batches = self.images = 0
        self.waited, self.began = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def add(self, values: dict[str, Tensor], images: int) -> None:
        self.batches += 1
        self.images += images
        for name, value in values.items():
            value = value.detach().float()
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def read(self) -> dict[str, float]:
        means = {name: (distributed.mean(total) / self.batches).item() for name, total in self.totals.items()}
        seconds = time.perf_counter() - self.began
        means["ratio"] = means["loss"] / max(means["uninformed"], 1e-12)
        return means | {
            "images_per_second": self.images * distributed.world() / seconds,
            "loader_wait": self.waited / seconds,
            "seconds": seconds,
        }


@contextlib.contextmanager
def bar(title: str | None, steps: int, step: int):
    """A progress bar with rate, loss and time left; on no terminal, a line each tenth of the way."""
    if title is None:
        yield lambda line: None
        return
    columns = [TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TaskProgressColumn()]
    columns += [TextColumn("{task.fields[now]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task(title, total=steps, completed=step, now="")
        printed = step

        def show(line: dict[str, Any]) -> None:
            nonlocal printed
            now = f"step {line['step']}/{steps}  loss {line['loss']:.4f} ({line['ratio']:.0%} of uninformed)"
            now += f"  {line['images_per_second']:,.0f} images/s"
            if "knn" in line:
                now += f"  k-NN {line['knn']:.3f}"
            progress.update(task, completed=line["step"], now=now)
            if not console.is_terminal and (line["step"] - printed >= steps / 10 or line["step"] == steps):
                printed = line["step"]
                console.print(f"{title}: {now}")

        yield show
