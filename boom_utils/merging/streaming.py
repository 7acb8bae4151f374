"""Tensors of several models walked through together, chunk by chunk, by a few threads with bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from boom_utils.merging.checkpoints import CHUNK, Checkpoint

HELD_BYTES = 96 << 20  # of all models together: a tensor up to this size is kept from its first reading to its last
Rows = NDArray[Any]
Result = TypeVar("Result")
Work = Callable[[Rows, int], Result]


class Streams:
    """Threads that read the same chunk of every model and work on it.

    Memory is one chunk of every model for each thread, and three tensors of at most `HELD_BYTES` that are worked on,
    whatever the size of the models.

    Args:
        models: R models with equal tensors, the base first if there is one.
        threads: None: one for each processor of this process, at most 16.
    """

    def __init__(self, models: Sequence[Checkpoint], threads: int | None = None) -> None:
        self.models = list(models)
        self._pool = ThreadPoolExecutor(threads or min(available_processors(), 16), thread_name_prefix="merge")
        self._local = threading.local()
        self._held: dict[str, NDArray[Any]] = {}
        self._complete: set[str] = set()
        self._spare: list[NDArray[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, name: str, work: Work[Result], rows: Iterable[int] | None = None) -> list[Future[Result]]:
        """Start ``work(rows, start)`` on every chunk of a tensor.

        Args:
            name: Unified name of a floating-point tensor.
            work: Gets (R, N) float32, or float64 where one of the models is stored so, and the number of the first
                element. It has to be done with the rows when it returns: their memory is used again.
            rows: Which models to read, by number; all when None.

        Returns:
            One result for each chunk, in order.
        """
        numbers = range(len(self.models)) if rows is None else list(rows)
        size = self.models[0].tensors[name].size
        # A tensor without elements has one chunk without elements.
        starts = range(0, max(size, 1), CHUNK)

        def one(start: int) -> Result:
            return work(self._rows(name, start, min(CHUNK, size - start), numbers), start)

        return [self._pool.submit(one, start) for start in starts]

    def hold(self, name: str) -> None:
        """Keep what the next `submit` of a tensor reads of all models, if it is not too large, until `release`."""
        size = len(self.models) * self.models[0].tensors[name].size
        kind = self._kind(name, range(len(self.models)))
        if size * kind.itemsize <= HELD_BYTES:
            fitting = (n for n, spare in enumerate(self._spare) if spare.size >= size and spare.dtype == kind)
            place = next(fitting, None)
            self._held[name] = np.empty(size, kind) if place is None else self._spare.pop(place)

    def complete(self, name: str) -> None:
        """Say that all chunks of a held tensor were read."""
        self._complete.add(name)

    def release(self, name: str) -> None:
        """Forget a held tensor; its memory is used for another one."""
        self._complete.discard(name)
        if name in self._held:
            spare = sorted([*self._spare, self._held.pop(name)], key=lambda buffer: buffer.nbytes)
            self._spare = spare[-3:]

    def map(self, name: str, work: Work[Result], rows: Iterable[int] | None = None) -> list[Result]:
        """As `submit`, waiting for the results."""
        return gather(self.submit(name, work, rows))

    def scratch(self, label: str, size: int, kind: Any) -> NDArray[Any]:
        """Memory of this thread for intermediate values, (size,); its content is whatever the last user left."""
        held: dict[Any, NDArray[Any]] = self._local.__dict__.setdefault("held", {})
        key = (label, np.dtype(kind))
        if key not in held or held[key].size < size:
            held[key] = np.empty(size, kind)
        return held[key][:size]

    def _kind(self, name: str, numbers: Sequence[int]) -> np.dtype[Any]:
        return np.result_type(*(self.models[number].kind(name) for number in numbers))

    def _rows(self, name: str, start: int, size: int, numbers: Sequence[int]) -> Rows:
        every, held = list(numbers) == list(range(len(self.models))), self._held.get(name)
        # Chunks lie one after another in a flat buffer, so that the rows of each are contiguous.
        if held is not None and (every or name in self._complete):
            count = len(self.models)
            rows = held[count * start : count * (start + size)].reshape(count, size)
            if name in self._complete:
                return rows if every else rows[list(numbers)]
        else:
            rows = self.scratch("rows", len(numbers) * size, self._kind(name, numbers)).reshape(len(numbers), size)
        for row, number in zip(rows, numbers, strict=True):
            self.models[number].read_into(name, start, row)
        return rows


def gather(futures: Sequence[Future[Result]]) -> list[Result]:
    """Results of futures, in order."""
    return [future.result() for future in futures]


def available_processors() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
