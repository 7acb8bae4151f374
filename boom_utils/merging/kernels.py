"""Inner loops over the same elements of every model, compiled by numba: they release the lock and copy nothing.

Shapes: R rows (one for each model, the pivot or base first) of N elements, float32 or float64; all sums are float64.
Row r is ``values[starts[r] :][:N]`` (`Rows`): models lie in files of their own, and are read where these are mapped.
Loops over all rows walk over blocks of `BLOCK` elements, which stay in the first level of cache.

None of them may round in a way that depends on the number of threads: a piece is the work of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

BLOCK = 1 << 9


@dataclass(frozen=True, eq=False)
class Rows:
    """The same elements of R models, as compiled loops take arrays that lie anywhere in memory.

    Attributes:
        values: From the first element of the row that lies lowest in memory to the end of the highest one; what lies
            between rows is not to be touched.
        starts: (R,), where each row begins in ``values``.
        size: N, number of elements of each.
        held: The rows themselves.
    """

    values: NDArray[Any]
    starts: NDArray[np.int64]
    size: int
    held: Sequence[NDArray[Any]]

    @classmethod
    def of(cls, parts: Sequence[NDArray[Any]]) -> Rows:
        """R contiguous arrays (N,) of one dtype."""
        addresses = np.array([part.__array_interface__["data"][0] for part in parts], dtype=np.int64)
        lowest = parts[int(addresses.argmin())]
        starts = (addresses - addresses.min()) // lowest.itemsize
        span = int(starts.max()) + lowest.size
        return cls(as_strided(lowest, (span,), lowest.strides, writeable=False), starts, lowest.size, parts)

    def chosen(self, rows: Sequence[int]) -> Rows:
        """Some of the rows."""
        return replace(self, starts=self.starts[rows], held=[self.held[row] for row in rows])


# Sums may be taken in another order (in vector registers); NaN and infinity keep their meaning.
_SUM = {"reassoc", "contract", "nsz"}


def _kernel(fastmath: set[str]) -> Callable[[Function], Function]:
    """A decorator: compile at the first call, and keep what was compiled beside this file or in the user's cache."""

    def decorate(function: Function) -> Function:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            compiled: Function = njit(cache=True, **options)(function)
        except RuntimeError:  # neither can be written: a second more for each process
            compiled = njit(**options)(function)
        return compiled

    return decorate


_compiled = _kernel({"contract"})
_summing = _kernel(_SUM)


@_summing
def _four_products(a: Any, b: Any, c: Any, d: Any, size: int) -> Any:
    """a·c, a·d, b·c, b·d of the first elements: two loads for every product would leave the multipliers waiting."""
    ac, ad, bc, bd = 0.0, 0.0, 0.0, 0.0
    for n in range(size):
        ac += a[n] * c[n]
        ad += a[n] * d[n]
        bc += b[n] * c[n]
        bd += b[n] * d[n]
    return ac, ad, bc, bd


@_summing
def _two_products(a: Any, c: Any, d: Any, size: int) -> Any:
    """a·c and a·d of the first elements."""
    ac, ad = 0.0, 0.0
    for n in range(size):
        ac += a[n] * c[n]
        ad += a[n] * d[n]
    return ac, ad


@_summing
def _take_off(row: Any, pivot: Any, out: Any, size: int) -> None:
    for n in range(size):
        out[n] = np.float64(row[n]) - pivot[n]


@_summing
def add_products(values: Any, starts: Any, size: Any, gram: Any) -> None:
    """Add to ``gram`` the inner products of the first row and of the differences of the others to it.

    Args:
        values: R rows, the pivot first.
        starts: (R,), where they begin.
        size: N, their elements.
        gram: (R, R) float64, changed; only its upper triangle is meant.
    """
    count = starts.size
    even = count - count % 2
    # Whole rows of this are passed on, with a size: a slice of all of them at once would lose its contiguity.
    work = np.zeros((count, BLOCK))
    none = np.zeros(BLOCK)
    for start in range(0, size, BLOCK):
        width = min(BLOCK, size - start)
        _take_off(values[starts[0] + start :], none, work[0], width)
        for r in range(1, count):
            _take_off(values[starts[r] + start :], work[0], work[r], width)
        for r in range(0, even, 2):
            for s in range(r, even, 2):
                products = _four_products(work[r], work[r + 1], work[s], work[s + 1], width)
                gram[r, s] += products[0]
                gram[r, s + 1] += products[1]
                gram[r + 1, s] += products[2]
                gram[r + 1, s + 1] += products[3]
        if even < count:
            for r in range(0, even, 2):
                first, second = _two_products(work[even], work[r], work[r + 1], width)
                gram[r, even] += first
                gram[r + 1, even] += second
            gram[even, even] += _two_products(work[even], work[even], work[even], width)[0]


@_compiled
def combine(values: Any, starts: Any, factors: Any, merged: Any) -> None:
    """Merged = Σ factors_r * row_r in float64, rounded once; a factor of zero takes no part: one row alone is copied.

    Args:
        values: R rows.
        starts: (R,), where they begin.
        factors: (R,) float64.
        merged: (N,) float64 or float32, overwritten.
    """
    used = np.flatnonzero(factors)
    sums = np.zeros(BLOCK)
    for start in range(0, merged.size, BLOCK):
        out = merged[start : start + BLOCK]
        if used.size > 0:
            first, factor = values[starts[used[0]] + start :], factors[used[0]]
            for n in range(out.size):
                sums[n] = factor * np.float64(first[n])
        for k in range(1, used.size - 1, 2):
            one, two = values[starts[used[k]] + start :], values[starts[used[k + 1]] + start :]
            a, b = factors[used[k]], factors[used[k + 1]]
            for n in range(out.size):
                sums[n] = sums[n] + a * np.float64(one[n]) + b * np.float64(two[n])
        if used.size > 0 and used.size % 2 == 0:
            last, factor = values[starts[used[-1]] + start :], factors[used[-1]]
            for n in range(out.size):
                sums[n] = sums[n] + factor * np.float64(last[n])
        for n in range(out.size):
            out[n] = sums[n]


@_compiled
def ties(values: Any, starts: Any, weights: Any, smallest: Any, rule: Any, merged: Any) -> None:
    """TIES of the task vectors: trim by magnitude, elect a sign, average what agrees with it, add the base.

    Args:
        values: 1 + M rows, the base first.
        starts: (1 + M,), where they begin.
        weights: (M,) float64.
        smallest: (M,) float32, the smallest magnitude of a difference that is kept.
        rule: (2,) float64: the scale of the result, and whether the sum is divided by the weights in it (0 or 1).
        merged: (N,) float64 or float32, overwritten.
    """
    kept = np.empty(weights.size)
    for n in range(merged.size):
        base = np.float64(values[starts[0] + n])
        total = 0.0
        for m in range(weights.size):
            update = np.float64(values[starts[m + 1] + n]) - base
            kept[m] = weights[m] * update if abs(np.float32(update)) >= smallest[m] else 0.0
            total += kept[m]
        agreed, share = 0.0, 0.0
        for m in range(weights.size):
            if (kept[m] > 0 and total >= 0) or (kept[m] < 0 and total < 0):
                agreed += kept[m]
                share += weights[m]
        if rule[1] != 0 and abs(share) >= 1e-8:
            agreed /= share
        merged[n] = base + rule[0] * agreed


@_compiled
def sce(values: Any, starts: Any, weights: Any, smallest: Any, merged: Any) -> None:
    """SCE: select by variance over the models, calculate weights (given), erase the minority's sign, add the base.

    Args:
        values: 1 + M rows, the base first.
        starts: (1 + M,), where they begin.
        weights: (M,) float64, one for each task vector.
        smallest: The smallest variance over the models that is selected (float32).
        merged: (N,) float64 or float32, overwritten.
    """
    for n in range(merged.size):
        base = np.float64(values[starts[0] + n])
        merged[n] = base
        if smallest > 0 and _variance(values, starts, n) < smallest:
            continue
        total = 0.0
        for m in range(weights.size):
            total += np.float64(values[starts[m + 1] + n]) - base
        agreed, share = 0.0, 0.0
        for m in range(weights.size):
            update = np.float64(values[starts[m + 1] + n]) - base
            if (update > 0 and total >= 0) or (update < 0 and total < 0):
                agreed += weights[m] * update
                share += weights[m]
        merged[n] = base + agreed / max(share, 1e-6)


@_compiled
def _variance(values: Any, starts: Any, n: int) -> Any:
    """Variance (float32) of the differences to the base over the models, at one element."""
    base, count = np.float64(values[starts[0] + n]), starts.size - 1
    mean = 0.0
    for m in range(count):
        mean += (np.float64(values[starts[m + 1] + n]) - base) / count
    total = 0.0
    for m in range(count):
        off = np.float64(values[starts[m + 1] + n]) - base - mean
        total += off * off
    return np.float32(total / count)


@_compiled
def magnitudes(values: Any, starts: Any, row: int, out: Any) -> None:
    """|row - base| as float32, (N,); or the variance over all models when ``row`` is 0."""
    for n in range(out.size):
        if row == 0:
            out[n] = _variance(values, starts, n)
        else:
            out[n] = abs(np.float32(np.float64(values[starts[row] + n]) - np.float64(values[starts[0] + n])))


@_compiled
def count_keys(values: Any, upper: int, counts: Any) -> None:
    """Histogram of non-negative float32 values by half of their bits, which order them as the numbers are ordered.

    Args:
        values: (N,) float32, none negative.
        upper: -1 counts the upper 16 bits; otherwise the lower 16 bits of the values whose upper ones are these.
        counts: (65536,) int64, changed.
    """
    bits = values.view(np.uint32)
    for n in range(bits.size):
        high = np.int64(bits[n] >> np.uint32(16))
        if upper < 0:
            counts[high] += 1
        elif high == upper:
            counts[np.int64(bits[n] & np.uint32(0xFFFF))] += 1


@_compiled
def add_selected_squares(values: Any, starts: Any, size: int, smallest: Any, squares: Any) -> None:
    """Add to ``squares`` (M,) Σ (row_m - base)² over the elements whose variance is at least ``smallest``."""
    for n in range(size):
        if _variance(values, starts, n) >= smallest:
            base = np.float64(values[starts[0] + n])
            for m in range(squares.size):
                update = np.float64(values[starts[m + 1] + n]) - base
                squares[m] += update * update
