"""The one loop that trains everything.

It knows no model, no method and no source: it is handed a method (images in, loss out), a function that yields batches
from any step on, a recipe, and, where the run is to be kept, a run.
"""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from unmask.errors import BadInput
from unmask.training import health
from unmask.training.optim import Recipe, optimisers_for, rate
from unmask.training.run import Run

console = Console(highlight=False, soft_wrap=True)


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


def fit(
    method: Any,
    batches: Callable[[int], Iterator[Any]],
    recipe: Recipe,
    run: Run | None = None,
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    precision: str = "float32",
    compiled: bool = False,
    watch: Tensor | None = None,
    probe: Callable[[nn.Module], dict[str, float]] | None = None,
    title: str | None = None,
) -> list[dict[str, Any]]:
    """Train `method` and return the log, a dict for each line: at most 200 lines and never fewer than one in 50 steps.

    method: an nn.Module whose forward(batch, clock) gives {"loss", "uninformed", …}; see unmask.methods.method.
    batches: batches(n) yields batches from number n on, endlessly; the same n always the same batches.
    run: where log and checkpoints go; a run with a checkpoint is gone on with. None keeps nothing.
    watch: images (B, C, H, W) whose features are watched for collapse. probe: judges the encoder five times a run.
    title: what the progress bar says; None for no bar.

    Raises health.Diverged when a loss or a weight is NaN or infinite, before that reaches a checkpoint.
    """
    if device.type == "cpu":
        keep_memory()
    method.to(device).train()
    optimisers = optimisers_for(method, recipe)
    step, history = 0, []
    if run is not None and (state := run.restore()) is not None:
        step = state["step"]
        method.load_state_dict(state["method"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        torch.set_rng_state(state["rng"])
        history = run.rewind(step)
    log_every = min(50, max(1, recipe.steps // 200))
    parameters = [p for p in method.parameters() if p.requires_grad]
    forward = torch.compile(method) if compiled else method
    stream = batches(step * recipe.accumulate)
    meter = Meter()

    def due(times: int) -> bool:
        """Whether this line of the log is one of so many, evenly spread, the last one among them."""
        return step * times // recipe.steps > (step - log_every) * times // recipe.steps or step == recipe.steps

    with bar(title, recipe.steps, step) as show:
        while step < recipe.steps:
            clock = Clock(step, recipe.steps, step / recipe.steps_per_epoch)
            lr = rate(recipe, step)
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = lr
            for _ in range(recipe.accumulate):
                with meter.waiting():
                    batch = next(stream)
                with autocast(device, precision):
                    values = forward(batch, clock)
                (values["loss"] / recipe.accumulate).backward()
                meter.add(values, len(batch.index))
            method.after_backward(clock)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if recipe.clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
            logs = (step + 1) % log_every == 0 or step + 1 == recipe.steps
            before = health.snapshot(method) if logs else []
            for optimiser in optimisers:
                optimiser.step()
            method.after_step(clock)
            step += 1
            if logs:
                health.check(method, batch, values, step)  # type: ignore[possibly-unbound]
                line = {"step": step, "epoch": step / recipe.steps_per_epoch, **meter.read()}
                line |= {"lr": lr, "grad_norm": norm.item(), "update_ratio": health.update_ratio(method, before)}
                if watch is not None and due(10):
                    line |= health.features(encode(method.encoder, watch, device))
                if probe is not None and due(5):
                    line |= probe(method.encoder)
                history.append(line)
                show(line)
                if run is not None:
                    run.log(line)
                    if due(10):
                        kept = [optimiser.state_dict() for optimiser in optimisers]
                        state = {"method": method.state_dict(), "optimisers": kept, "step": step}
                        run.save(step, {**state, "rng": torch.get_rng_state()})
                meter.reset()
            method.zero_grad(set_to_none=True)
    return history


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, device: torch.device, batch_size: int = 64) -> Tensor:
    """Vectors (B, D) of images (B, C, H, W), the encoder in evaluation mode meanwhile. In float32: the rounding of bf16,
    0.4%, would hide how alike the vectors of a collapsed encoder are."""
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
        means = {name: (total / self.batches).item() for name, total in self.totals.items()}
        seconds = time.perf_counter() - self.began
        means["ratio"] = means["loss"] / max(means["uninformed"], 1e-12)
        return means | {
            "images_per_second": self.images / seconds,
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
