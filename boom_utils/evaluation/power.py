"""What a comparison could have found: the smallest difference in reach, and the queries or seeds that would do."""

from __future__ import annotations

import math

from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison

POWER = 0.8
_MOST_SEEDS = 10_000


def minimal_detectable_difference(found: Comparison, power: float = POWER) -> float:
    """The smallest true difference that a comparison like this one detects with probability ``power``.

    Detected means that the two-sided interval excludes zero: (normal quantile of the confidence + that of the power)
    times the standard error of the bootstrap.
    """
    return _reach(found.confidence, power) * found.standard_error()


def queries_needed(found: Comparison, difference: float, power: float = POWER) -> int | None:
    """Queries the smallest task would need, all tasks growing alike, to detect ``difference``.

    None: no number is enough, because seeds or tasks alone move the result too far.

    Raises:
        ResultsError: The difference is not above zero.
    """
    room = _squared_error_allowed(found, difference, power) - found.standard_error(query_factor=math.inf) ** 2
    return math.ceil(found.queries * found.query_variance / room) if room > 0 else None


def seeds_needed(found: Comparison, difference: float, power: float = POWER) -> int | None:
    """Runs a side that would be needed to detect ``difference`` on the same queries.

    None: no number is enough (queries or tasks alone move the result too far).

    Raises:
        ResultsError: The difference is not above zero, or seeds are no level of this comparison.
    """
    allowed = math.sqrt(_squared_error_allowed(found, difference, power))
    if "seeds" not in found.levels:
        raise ResultsError("one seed says nothing about the spread of seeds", fix="compare two seeds at least")
    if found.query_variance + found.task_variance >= allowed**2:
        return None
    if found.standard_error(seeds=1) <= allowed:
        return 1
    low, high = 1, 2
    while found.standard_error(seeds=high) > allowed:
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found.standard_error(seeds=middle) <= allowed else (middle, high)
    return high


def _squared_error_allowed(found: Comparison, difference: float, power: float) -> float:
    if not difference > 0:
        raise ResultsError("a difference to detect is above zero", found=difference)
    return (difference / _reach(found.confidence, power)) ** 2


def _reach(confidence: float, power: float) -> float:
    """Standard errors between zero and a difference that is detected with probability ``power``."""
    from scipy.stats import norm

    if not 0 < power < 1:
        raise ResultsError("power is between 0 and 1", found=power)
    return float(norm.ppf((1 + confidence) / 2) + norm.ppf(power))
