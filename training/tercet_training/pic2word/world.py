"""The processes that train together, as `torchrun` starts them: one, or several that exchange features."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tercet.errors import InputError
from tercet_training.pic2word.recipe import PRECISIONS

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process's number, how many there are, and its device; a context that ends their group."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(b, ...) of every process -> (b * size, ...) in the order of ranks; no gradient."""
        if self.size == 1:
            return rows.detach()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def gather_mine_with_gradient(self, rows: Tensor) -> Tensor:
        """`gather`, with a gradient through this process's own rows.

        Every process computes the same loss from these. Each one's gradient is the part that goes through its
        own rows, and their sum (`sum_gradients`) is that of one process with all rows.
        """
        if self.size == 1:
            return rows
        parts = list(self.gather(rows).split(len(rows)))
        parts[self.rank] = rows
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(total.view_as(gradient))

    def objects(self, mine: Any) -> list[Any]:
        """Any value of every process, in the order of ranks."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def autocast(self, precision: str) -> AbstractContextManager:
        """Mixed precision around the networks; nothing in fp32."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[precision])


def join(device: str = "auto") -> World:
    """The world that torchrun's environment describes, a single process without it.

    Args:
        device: "auto" is this process's GPU where there is one, else the CPU; or a device as torch names it.

    Raises:
        InputError: there is no such device, or fewer GPUs than processes.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}): give --device cpu, or start "
            f"as many processes as there are GPUs (here {torch.cuda.device_count()})"
        ) from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted`, or for "auto" what the device is fast in: bf16 or fp16 on a GPU, fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
