"""Processes that train together: who is who, how a finished model is sharded, and the collectives the loop needs.

FSDP2 (`torch.distributed.fsdp.fully_shard`) on any number of processes, over gloo on CPUs and nccl on GPUs. A run that
is one process and computes in float32 shards nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from mixlogit_align.alignment.config import Precision
from mixlogit_align.errors import InvalidInputError, MixlogitError, explain

T = TypeVar("T")
CPU = torch.device("cpu")
SETTLE_SECONDS = 0.25  # many times what a thread waits for its turn where tens of others are ready to run


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together; alone by default.

    Parameters
    ----------
    rank, size : int
    device : torch.device
        Where this process computes.
    grouped : bool
        Whether there is a process group: it can be one of a single process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    grouped: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's contiguous share of ``rows``; the first processes have one more where it does not divide."""
        least, more = divmod(len(rows), self.size)
        start = self.rank * least + min(self.rank, more)
        return rows[start : start + least + (self.rank < more)]

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Join the (n, C) shares of all processes, as `share` made them, to (total, C), in the order of the rows."""
        if self.size == 1:
            return rows
        most = -(-total // self.size)
        padded = rows.new_zeros(most, rows.shape[1])
        padded[: len(rows)] = rows
        joined = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(joined, padded)
        sizes = [total // self.size + (rank < total % self.size) for rank in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(joined, sizes, strict=True)])

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, error: Exception | None) -> None:
        """Raise on every process when something went wrong on one of them, so that none waits for the others.

        Parameters
        ----------
        error : exception or None
            What this process met.
        """
        met = self.each(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(met):
            if text is not None:
                raise MixlogitError(f"process {rank} of {self.size} failed: {text}")

    def each(self, value: T) -> list[T]:
        """What every process says, in the order of ranks, on every process."""
        said = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(said, value)
        return said

    def tell(self, value: T) -> T:
        """What the main process says, on every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        said: T = box[0]
        return said

    def on_main(self, act: Callable[[], T]) -> T:
        """What the main process finds by ``act``, on every process; what it raises is raised on every process."""
        value: Any = None
        met: Exception | None = None
        if self.is_main:
            try:
                value = act()
            except Exception as error:
                met = error
        self.agree(met)
        said: T = self.tell(value)
        return said


@contextlib.contextmanager
def join(device: str, precision: Precision) -> Iterator[World]:
    """The processes that this run trains on.

    A process group that exists is used; under torchrun one is made (nccl on GPUs, gloo else), and taken down at the
    end. A single process needs one only for bfloat16 compute over float32 parameters, which FSDP2 does.

    Parameters
    ----------
    device : str
        "cuda" means the GPU of the process's local rank.
    precision : str

    Raises
    ------
    InvalidInputError
        When torch cannot use the device.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    here = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if launched else None)
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    ours = False
    if not dist.is_initialized():
        if launched:
            dist.init_process_group(backend)
            ours = True
        elif resolved(precision, device) == "bfloat16":
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            ours = True
    try:
        if dist.is_initialized():
            atexit.unregister(_settle)  # once is enough
            atexit.register(_settle)
            yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=here, grouped=True)
        else:
            yield World(device=here)
        if ours:
            dist.barrier()  # none leaves while another still speaks
    finally:
        if ours:
            dist.destroy_process_group()


def _settle() -> None:
    """Let gloo's threads be done before the interpreter ends.

    They let go of a collective's tensors a moment after it has returned, which takes the interpreter; where that is
    ending, torch 2.13 aborts the process (SIGABRT). To destroy the group does not stop them, as what DTensor remembers
    of its meshes keeps the group, and nothing tells when they are done.
    """
    time.sleep(SETTLE_SECONDS)


def resolved(precision: Precision, device: str) -> Precision:
    """What "auto" means on this device."""
    if precision == "auto":
        return "bfloat16" if torch.device(device).type == "cuda" else "float32"
    return precision


def _device(name: str, local_rank: int | None) -> torch.device:
    try:
        device = torch.device(name)
        if device.type == "cuda" and ":" not in name:
            device = torch.device("cuda", local_rank or 0)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (AssertionError, RuntimeError) as error:  # torch raises either
        raise InvalidInputError(
            explain(
                "device",
                got=f"{name!r} ({str(error).splitlines()[0].rstrip('.')})",
                expected="a device that torch can use on this machine",
                hint="`device: cpu`",
            )
        ) from error
    return device


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the list of modules that holds most of its parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=[]))


def recompute_activations(model: nn.Module) -> None:
    """Let every transformer block recompute its activations in the backward pass (before `shard`)."""
    for block in transformer_blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module, world: World, precision: Precision) -> None:
    """Shard a finished model in place: each transformer block, then the rest.

    Parameters
    ----------
    model : nn.Module
        Everything that touches its parameters happens inside its ``forward``.
    world : World
        Without a process group nothing happens.
    precision : {"float32", "bfloat16", "bfloat16_parameters"}
        "bfloat16" gathers parameters in bfloat16 and adds gradients up in float32; the parameters stay float32.
    """
    if not world.grouped:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    compute = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def average_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Average the gradients of parameters that are not sharded, as FSDP2 averages those of the others."""
    if world.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradients' joint norm at ``max_norm``; returns the norm they had, 0-d and the same on every process."""
    norm: Any = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
