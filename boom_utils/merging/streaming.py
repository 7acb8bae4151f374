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

Rows = NDArray[Any]
Result = TypeVar("Result")
Work = Callable[[Rows, int], Result]


class Streams:
    """Threads that read the same chunk of every model and work on it.

    Memory is one chunk of every model for each thread, whatever the size of the tensors.

    Args:
        models: R models with equal tensors, the base first if there is one.
        threads: None: one for each processor of this process, at most 16.
    """

    def __init__(self, models: Sequence[Checkpoint], threads: int | None = None) -> None:
        self.models = list(models)
        self._pool = ThreadPoolExecutor(threads or min(available_processors(), 16), thread_name_prefix="merge")
        self._local = threading.local()

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
        chosen = [self.models[r] for r in rows] if rows is not None else self.models
        size = self.models[0].tensors[name].size
        kind = np.result_type(*(model.kind(name) for model in chosen))
        # A tensor without elements has one chunk without elements.
        starts = range(0, max(size, 1), CHUNK)

        def one(start: int) -> Result:
            return work(self._read(chosen, name, start, min(CHUNK, size - start), kind), start)

        return [self._pool.submit(one, start) for start in starts]

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

    def _read(self, models: Sequence[Checkpoint], name: str, start: int, size: int, kind: Any) -> Rows:
        # Cut from a flat buffer, so that rows of a short chunk are as contiguous as those of a whole one.
        rows = self.scratch("rows", len(models) * size, kind).reshape(len(models), size)
        for row, model in zip(rows, models, strict=True):
            model.read_into(name, start, row)
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
