"""One training process among several: who it is, and the few things all of them must agree on.

With one process everything here does nothing, so the loop is the same for one device and for many.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


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
        """Add up the gradients of all processes, in place; all sums are on their way at once, without a copy."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for sent in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            sent.wait()

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


def this_process() -> Processes:
    """This process alone, on the first CUDA device where there is one."""
    cuda = torch.cuda.is_available()
    return Processes(0, 1, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))


@contextmanager
def joined(rank: int, count: int, meeting: Path) -> Iterator[Processes]:
    """Join the other processes (gloo on CPU, nccl on CUDA), and leave them at the end.

    Args:
        rank: Number of this process, and of its CUDA device.
        count: Processes on this machine; its processors are shared among them.
        meeting: A folder that all of them know, empty at first.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        f"file://{meeting}/addresses",
        rank=rank,
        world_size=count,
        device_id=device if cuda else None,
    )
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


class StopSignals:
    """Notes Ctrl-C and SIGTERM until what must not be cut is done, then raises KeyboardInterrupt.

    A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals there alone
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.seen:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True  # nothing is logged here: a handler may interrupt the very write that logs
