"""The merge methods that look at every element: TIES and SCE, on streamed chunks.

What they need of a whole tensor (the magnitude down to which elements are kept) is found exactly from two histograms,
so that memory holds a chunk of every model and no tensor. Elements equal to the smallest one kept are all kept.
Source: the papers named below and mergekit 0.1.5 as observed from its outputs; no code of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.merging import kernels
from boom_utils.merging.checkpoints import Tensor, Values
from boom_utils.merging.kernels import Rows
from boom_utils.merging.methods import Settings

Array = NDArray[np.float64]
Fill = Callable[[Rows, Values], Any]
"""Fills the merged elements (N,) from those of the R models."""

_EVERYTHING = np.float32(0.0)  # the smallest magnitude that is kept, where all are


def prepare_ties(tensor: Tensor, rows: Sequence[int], settings: Settings) -> Fill:
    """TIES (Yadav et al., 2023): trim each task vector to its largest elements, elect signs, merge what agrees.

    base + λ Σ w_i d_i / Σ w_i over the models whose kept d_i has the sign of Σ w_i d_i (a sum of zero counts as
    positive); without ``normalized`` nothing is divided by the weights.

    Args:
        tensor: The tensor.
        rows: Which models: the base, then the M members.
        settings: Their M weights and densities; ``normalized``; ``scale`` is λ.
    """
    # Rounded down, but one at least unless the density is 0.
    kept = [max(int(density * tensor.size), 1) if density > 0 else 0 for density in settings.densities]
    wanted = {m + 1: kept[m] for m, density in enumerate(settings.densities) if density < 1 and tensor.size}
    smallest = np.full(len(rows) - 1, _EVERYTHING)
    for row, value in _thresholds(tensor, rows, wanted).items():
        smallest[row - 1] = value
    weights = np.array(settings.weights, dtype=np.float64)
    rule = np.array([settings.scale, float(settings.normalized)])
    return lambda rows, merged: kernels.ties(rows.values, rows.starts, weights, smallest, rule, merged)


def prepare_sce(tensor: Tensor, rows: Sequence[int], settings: Settings) -> Fill:
    """SCE (Wan et al., 2024): select by variance, calculate weights from energy, erase what disagrees.

    Elements whose variance over the models is among the ``selected`` largest; weights in proportion to Σ d_i² over
    them (equal ones if their mean is below 1e-6); of each element, the models with the sign of Σ d_i.

    Args:
        tensor: The tensor.
        rows: Which models: the base, then the M members.
        settings: ``selected``.
    """
    smallest = _EVERYTHING
    if settings.selected < 1:
        still = _histograms(tensor, rows, {0: 0})[0][0]  # variances of zero: both halves of their bits are
        smallest = _thresholds(tensor, rows, {0: int(settings.selected * (tensor.size - int(still)))})[0]

    def squares(_: int, rows: Rows) -> Array:
        found = np.zeros(len(rows.starts) - 1)
        kernels.add_selected_squares(rows.values, rows.starts, rows.size, smallest, found)
        return found

    weights = np.asarray(sum(tensor.map(squares, rows)), dtype=np.float64) / max(tensor.size, 1)
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else np.full(len(weights), 1 / len(weights))
    return lambda rows, merged: kernels.sce(rows.values, rows.starts, weights, smallest, merged)


ELEMENTWISE: Mapping[str, Callable[[Tensor, Sequence[int], Settings], Fill]] = {
    "ties": prepare_ties,
    "sce": prepare_sce,
}


def _thresholds(tensor: Tensor, rows: Sequence[int], wanted: Mapping[int, int]) -> dict[int, np.float32]:
    """For each row of a chunk (0: the variance over all), the value of its ``wanted``-th largest magnitude.

    Infinity where none is wanted. Magnitudes are float32; their bits are ordered as they are, so that the upper half of
    the bits is found from one histogram and the lower half from a second one of the values that share it.
    """
    found = {row: np.float32(np.inf) for row in wanted}
    uppers = _histograms(tensor, rows, {row: -1 for row, count in wanted.items() if count > 0})
    halves = {row: _largest(counts, wanted[row]) for row, counts in uppers.items()}
    for row, counts in _histograms(tensor, rows, {row: upper for row, (upper, _) in halves.items()}).items():
        upper, left = halves[row]
        found[row] = np.array([(upper << 16) | _largest(counts, left)[0]], dtype=np.uint32).view(np.float32)[0]
    return found


def _histograms(tensor: Tensor, rows: Sequence[int], uppers: Mapping[int, int]) -> dict[int, NDArray[np.int64]]:
    """Numbers of magnitudes of each row by the upper half of their bits (-1), or by the lower one under that upper."""
    total = np.zeros((len(uppers), 1 << 16), dtype=np.int64)
    adding = threading.Lock()

    def count(_: int, rows: Rows) -> None:
        counts, values = np.zeros_like(total), np.empty(rows.size, np.float32)
        for place, (row, upper) in enumerate(uppers.items()):
            kernels.magnitudes(rows.values, rows.starts, row, values)
            kernels.count_keys(values, upper, counts[place])
        with adding:  # whole numbers: their order does not matter
            np.add(total, counts, out=total)

    if uppers:
        tensor.map(count, rows)
    return dict(zip(uppers, total, strict=True))


def _largest(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The highest key at and above which ``wanted`` values lie, and how many of them lie at it."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, wanted))
    return len(counts) - 1 - place, wanted - int(above[place - 1] if place else 0)
