"""Several processes as one. torchrun starts them; each takes its part of every batch; rank 0 alone writes and speaks.

Without torchrun there is one process, rank 0 of 1, and nothing here does anything.
"""

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from unmask.errors import BadInput

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Checkpoints hold whole tensors by name: any number of processes can go on from them, sharded or not."""


def start(device: torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did, and return this one's own device: one GPU a process.

    Raises BadInput if there are more processes on this machine than GPUs.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        if device.type == "cuda":
            local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= there:
                raise BadInput(f"torchrun --nproc-per-node asks for more processes than there are GPUs here ({there})")
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        # gloo beside nccl: what is agreed on between steps does not wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return device


_apart = False


@contextmanager
def apart() -> Iterator[None]:
    """Meanwhile this process is on its own: what it trains, such as a probe, is no matter of the others."""
    global _apart
    _apart, before = True, _apart
    try:
        yield
    finally:
        _apart = before


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _apart else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() and not _apart else 1


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


def agreed(wish: bool) -> bool:
    """Whether any process wishes it: the same answer in all of them."""
    if world() == 1:
        return wish
    wishes = torch.tensor(float(wish))
    dist.all_reduce(wishes, dist.ReduceOp.MAX)
    return wishes.item() > 0


def mean(value: Tensor) -> Tensor:
    """The mean over all processes, without gradients."""
    if world() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.count = len(x)
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() * ctx.count : (rank() + 1) * ctx.count]


def gather(x: Tensor) -> Tensor:
    """(B, …) of each process to (world * B, …) in all, in the order of the ranks. Gradients flow back to where a row came
    from, summed over all processes that used it (so a loss that is a mean over local rows is to be averaged by DDP)."""
    return x if world() == 1 else _Gather.apply(x)  # type: ignore[return-value]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose mean and variance are those of all processes' samples, of which each has as many, with gradients
    through them. On any device: torch's own is for GPUs alone.

    drop, act: what comes behind it, for those of timm's batch norms that have an activation within.
    """

    def __init__(self, channels: int, drop: nn.Module | None = None, act: nn.Module | None = None, **options: Any):
        super().__init__(channels, **options)
        self.drop, self.act = drop or nn.Identity(), act or nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, …)."""
        if not self.training or world() == 1:
            return self.act(self.drop(super().forward(input)))
        axes, shape = [0, *range(2, input.ndim)], [1, -1] + [1] * (input.ndim - 2)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        means = x.mean(axes)
        stats = gather(torch.stack([means, (x - means.view(shape)).square().mean(axes)])[None])  # (world, 2, C)
        mean = stats[:, 0].mean(0)
        var = (stats[:, 1] + (stats[:, 0] - mean).square()).mean(0)
        if self.track_running_stats and self.num_batches_tracked is not None:
            n = world() * input.numel() // input.shape[1]
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
                self.running_var.lerp_(var * n / (n - 1), momentum)  # type: ignore[union-attr]
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return self.act(self.drop(x.to(input.dtype)))


def synchronise(module: nn.Module) -> None:
    """Let every batch norm within see the samples of all processes."""
    replace_batch_norms(module, SyncBatchNorm)


def replace_batch_norms(module: nn.Module, kind: Callable[..., nn.Module]) -> None:
    """Put kind(channels, …) in place of every batch norm within, with its options and its very parameters and buffers: those
    that are frozen stay so, on their device."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            options = {name: getattr(child, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
            behind = {name: part for name, part in child.named_children() if name in ("drop", "act")}
            into = kind(child.num_features, **behind, **options)
            for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(into, tensor, getattr(child, tensor))
            setattr(module, name, into.train(child.training))
        else:
            replace_batch_norms(child, kind)


# Models


def spread(method: nn.Module, shard: bool) -> nn.Module:
    """What to call instead of `method`, so that all processes end a backward pass with the same gradients: their mean.

    DistributedDataParallel keeps the whole model in each; `shard` cuts parameters, gradients and optimiser state into a
    part for each (FSDP2, fully_shard), block by block, in place.
    """
    if world() == 1:
        return method
    if getattr(method, "SYNCHRONISED", True):
        synchronise(method)
    if not shard:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a name that older torch lacks
            return DistributedDataParallel(method, broadcast_buffers=False)  # methods keep theirs alike themselves
    for module in list(method.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block)
    fully_shard(method)
    return method


@contextmanager
def alone(parallel: nn.Module, apart: bool) -> Iterator[None]:
    """Backward passes meanwhile keep their gradients to this process if `apart`: another part of the batch is to come."""
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(not apart)
    with parallel.no_sync() if apart and isinstance(parallel, DistributedDataParallel) else nullcontext():
        yield


def whole(tensor: Tensor) -> Tensor:
    """The tensor that a sharded one is a part of."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(method: nn.Module) -> dict[str, Any]:
    """The state dict of a sharded method, whole and on the CPU. To be called in all processes; rank 0 gets it."""
    return get_model_state_dict(method, options=WHOLE)


def state_of(method: nn.Module, optimisers: list[Optimizer]) -> dict[str, Any]:
    """Whole tensors by name, on the CPU: {"method", "optimisers"}. To be called in all processes; rank 0 gets it."""
    if rank() > 0 and not isinstance(method, FSDPModule):
        return {}
    model, kept = get_state_dict(method, optimisers, options=WHOLE)
    return {"method": model, "optimisers": kept}


def load(method: nn.Module, optimisers: list[Optimizer], state: dict[str, Any]) -> None:
    """The inverse of `state_of`, in all processes."""
    set_state_dict(
        method, optimisers, model_state_dict=state["method"], optim_state_dict=state["optimisers"], options=WHOLE
    )
