"""The merge methods that look at every element: TIES and SCE, on streamed chunks.

What they need of a whole tensor (the magnitude down to which elements are kept) is found exactly from two histograms,
so that memory holds a chunk of every model and no tensor. Elements equal to the smallest one kept are all kept.
Source: the papers named below and mergekit 0.1.5 as observed from its outputs; no code of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.merging import kernels
from boom_utils.merging.parameters import Settings
from boom_utils.merging.streaming import Rows, Streams

Array = NDArray[np.float64]
Merge = Callable[[Rows, Array], Any]
"""Fills the merged elements (N,) float64 from a chunk's rows (1 + M, N), the base first."""

NO_MAGNITUDE = np.float32(0.0)  # everything is kept


def prepare_ties(streams: Streams, name: str, rows: Sequence[int], settings: Settings) -> Merge:
    """TIES (Yadav et al., 2023): trim each task vector to its largest elements, elect signs, merge what agrees.

    base + λ Σ w_i d_i / Σ w_i over the models whose kept d_i has the sign of Σ w_i d_i (a sum of zero counts as
    positive); without ``normalized`` nothing is divided by the weights.

    Args:
        streams: The models.
        name: The tensor.
        rows: Which models: the base, then the M members.
        settings: Their M weights and densities; ``normalized``; ``scale`` is λ.
    """
    size = streams.models[0].tensors[name].size
    wanted = {m + 1: _kept(density, size) for m, density in enumerate(settings.densities) if density < 1}
    smallest = np.full(len(rows) - 1, NO_MAGNITUDE)
    for row, value in _thresholds(streams, name, rows, wanted).items():
        smallest[row - 1] = value
    weights = np.array(settings.weights, dtype=np.float64)
    rule = np.array([settings.scale, float(settings.normalized)])
    return lambda chunk, merged: kernels.ties(chunk, weights, smallest, rule, merged)


def prepare_sce(streams: Streams, name: str, rows: Sequence[int], settings: Settings) -> Merge:
    """SCE (Wan et al., 2024): select by variance, calculate weights from energy, erase what disagrees.

    Elements whose variance over the models is among the ``selected`` largest; weights in proportion to Σ d_i² over
    them (equal ones if their mean is below 1e-6); of each element, the models with the sign of Σ d_i.

    Args:
        streams: The models.
        name: The tensor.
        rows: Which models: the base, then the M members.
        settings: ``selected``.
    """
    smallest = NO_MAGNITUDE
    size = streams.models[0].tensors[name].size
    if settings.selected < 1:
        moving = _nonzero(streams, name, rows)
        smallest = _thresholds(streams, name, rows, {0: int(settings.selected * moving)})[0]
    squares = sum(streams.map(name, functools.partial(_squares, smallest=smallest), rows))
    weights = np.asarray(squares, dtype=np.float64) / max(size, 1)
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else np.full(len(weights), 1 / len(weights))
    return lambda chunk, merged: kernels.sce(chunk, weights, smallest, merged)


ELEMENTWISE: Mapping[str, Callable[[Streams, str, Sequence[int], Settings], Merge]] = {
    "ties": prepare_ties,
    "sce": prepare_sce,
}


def _kept(density: float, size: int) -> int:
    """Number of elements a density keeps: rounded down, but one at least unless it is 0."""
    return max(int(density * size), 1) if density > 0 else 0


def _squares(rows: Rows, start: int, smallest: np.float32) -> Array:
    found = np.zeros(len(rows) - 1)
    kernels.add_selected_squares(rows, smallest, found)
    return found


def _nonzero(streams: Streams, name: str, rows: Sequence[int]) -> int:
    """Number of elements in which the models do not all agree."""

    def count(chunk: Rows, start: int) -> int:
        values = streams.scratch("magnitudes", chunk.shape[1], np.float32)
        kernels.magnitudes(chunk, 0, values)
        return int(np.count_nonzero(values))

    return sum(streams.map(name, count, rows))


def _thresholds(streams: Streams, name: str, rows: Sequence[int], wanted: Mapping[int, int]) -> dict[int, np.float32]:
    """For each row of a chunk (0: the variance over all), the value of its ``wanted``-th largest magnitude.

    Infinity where none is wanted. Magnitudes are float32; their bits are ordered as they are, so that the upper half of
    the bits is found from one histogram and the lower half from a second one of the values that share it.
    """
    if not wanted:
        return {}
    uppers = _histograms(streams, name, rows, dict.fromkeys(wanted, -1))
    found: dict[int, np.float32] = {}
    halves: dict[int, tuple[int, int]] = {}
    for row, count in wanted.items():
        if count < 1:
            found[row] = np.float32(np.inf)
        else:
            halves[row] = _largest(uppers[row], count)
    lowers = _histograms(streams, name, rows, {row: upper for row, (upper, _) in halves.items()})
    for row, (upper, left) in halves.items():
        bits = np.array([(upper << 16) | _largest(lowers[row], left)[0]], dtype=np.uint32)
        found[row] = bits.view(np.float32)[0]
    return found


def _histograms(
    streams: Streams, name: str, rows: Sequence[int], uppers: Mapping[int, int]
) -> dict[int, NDArray[np.int64]]:
    """Numbers of magnitudes of each row by the upper half of their bits (-1), or by the lower one under that upper."""
    total = np.zeros((len(uppers), 1 << 16), dtype=np.int64)
    adding = threading.Lock()

    def count(chunk: Rows, start: int) -> None:
        values = streams.scratch("magnitudes", chunk.shape[1], np.float32)
        counts = np.zeros_like(total)
        for place, (row, upper) in enumerate(uppers.items()):
            kernels.magnitudes(chunk, row, values)
            kernels.count_keys(values, upper, counts[place])
        with adding:  # whole numbers: their order does not matter
            np.add(total, counts, out=total)

    if uppers:
        streams.map(name, count, rows)
    return dict(zip(uppers, total, strict=True))


def _largest(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The highest key at and above which ``wanted`` values lie, and how many of them lie at it."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))
    return len(counts) - 1 - place, wanted - int(above[place - 1] if place else 0)
