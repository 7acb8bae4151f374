"""One training process among several: who it is, and the few things all of them must agree on.

With one process everything here does nothing, so the loop is the same for one device and for many.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are.

    Args:
        rank: Number of this process, from 0.
        count: W, all of them.
        device: Where this one computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank (same shape and dtype everywhere); no gradient passes through."""
        if self.count == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place, in a few large messages."""
        if self.count == 1:
            return
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            torch._foreach_copy_(bucket, _like(flat, bucket))

    def total(self, value: float) -> float:
        """Sum of a number over all processes."""
        if self.count == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return float(summed)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()


_BUCKET = 32 * 2**20
"""Elements of one message; its copy is the memory it costs."""


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(part.numel() for part in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _like(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class Launcher:
    """What the process that starts the others keeps for them: a small server, which ends when it does."""

    def __init__(self) -> None:
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"localhost:{self._store.port}"

    def ask_to_stop(self) -> None:
        """Let every `StopAsked` of this launcher say so."""
        self._store.add(_STOP, 1)  # waits for the answer, which `set` does not


class StopAsked:
    """Whether the launcher asked to stop, or is gone; the first process asks, and all agree by `Processes.total`.

    A connection tells it, not a process number: that of the launcher means nothing on another machine.

    Args:
        launcher: Its `Launcher.address`.
    """

    def __init__(self, launcher: str) -> None:
        host, port = launcher.rsplit(":", 1)
        self._store = TCPStore(host, int(port), is_master=False)

    def __call__(self) -> bool:
        """True from the moment on when training should save and end."""
        try:
            return self._store.check([_STOP])
        except dist.DistError:  # the connection broke
            return True


_STOP = "stop"


def this_process() -> Processes:
    """This process alone, on the first CUDA device where there is one."""
    cuda = torch.cuda.is_available()
    return Processes(0, 1, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started (gloo on CPU, nccl on CUDA), and leave them at the end."""
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield Processes(rank, dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
