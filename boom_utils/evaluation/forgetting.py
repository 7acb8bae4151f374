"""Forgetting along a training: loss on watched rows of every dataset at some points, and how much of it was lost again.

The paper explains the scheduling strategies by catastrophic forgetting and gives no measure of it. The kit's: mean
InfoNCE at the end minus the lowest at any earlier point. Intervals are over batches, paired: every
point meets the same ones. They say how far a number would move with other batches, not with other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from boom_utils.errors import ResultsError, bullet_list
from boom_utils.evaluation.statistics import Estimate, plain_mean
from boom_utils.training.batch_losses import BatchLosses

Watched = Mapping[str, Sequence[tuple[float, BatchLosses]]]
"""Dataset -> share of the steps done (0 to 1) and losses there, as `training.watched_losses.read_watched` gives it."""
CurvePoint = tuple[float, float, float, float]
"""Share of the steps done, loss, lower and upper end of its interval (nats)."""


@dataclass(frozen=True)
class Forgotten:
    """What a training lost again of one dataset.

    Args:
        difference: Loss at the end minus the lowest loss at an earlier point, nats, paired over batches. Positive:
            forgotten; negative: the end is the best of all points.
        lowest: The lowest mean loss at an earlier point, nats.
        lowest_at: Share of the steps done there; the first such point.
        end: Mean loss at the end, nats.
    """

    difference: Estimate
    lowest: float
    lowest_at: float
    end: float


def loss_curves(watched: Watched, confidence: float = 0.95) -> dict[str, list[CurvePoint]]:
    """Points (share of steps, loss, low, high) of every dataset of one model.

    `boom_utils.reporting.interaction.forgetting_curves` draws them; ``low`` and ``high`` are the interval over batches.

    Args:
        watched: Dataset -> (share of steps done, losses there), as `read_watched` reads them.
        confidence: Of the intervals.

    Returns:
        Dataset -> points, in order; losses in nats.

    Raises:
        ResultsError: A dataset has no point, points out of order, or points on different batches; all problems.

    >>> start, end = (BatchLosses(v, rows=8, rows_in_no_batch=0, batches="b") for v in ((2.0, 1.0), (0.5, 0.5)))
    >>> [(share, loss) for share, loss, low, high in loss_curves({"nq": [(0.0, start), (1.0, end)]})["nq"]]
    [(0.0, 1.5), (1.0, 0.5)]
    """
    _check(watched)
    curves = {}
    for dataset, points in watched.items():
        found = [(share, plain_mean(losses.values).estimate(confidence)) for share, losses in points]
        curves[dataset] = [(share, estimate.value, estimate.low, estimate.high) for share, estimate in found]
    return curves


def forgotten(watched: Watched, confidence: float = 0.95) -> dict[str, Forgotten]:
    """How much of every dataset one training lost again, by dataset.

    The point of the lowest loss is chosen once, on all batches, and is the same in every draw. The lowest of several
    points is a little too low by chance, and so the difference a little too high.

    Args:
        watched: As for `loss_curves`.
        confidence: Of the intervals.

    Returns:
        Dataset -> the difference of the end to the best earlier point.

    Raises:
        ResultsError: As `loss_curves`, or the end of the training or a point before it is missing.

    >>> half, end = (BatchLosses(v, rows=8, rows_in_no_batch=0, batches="b") for v in ((0.5, 0.5), (1.0, 0.75)))
    >>> found = forgotten({"nq": [(0.5, half), (1.0, end)]})["nq"]
    >>> found.lowest_at, found.difference.value
    (0.5, 0.375)
    """
    _check(watched, to_the_end=True)
    found = {}
    for dataset, points in watched.items():
        *earlier, (_, end) = points
        share, lowest = min(earlier, key=lambda point: point[1].mean)
        difference = plain_mean(np.subtract(end.values, lowest.values)).estimate(confidence)
        found[dataset] = Forgotten(difference, lowest.mean, share, end.mean)
    return found


def _check(watched: Watched, *, to_the_end: bool = False) -> None:
    problems = [] if watched else ["no dataset"]
    for dataset, points in watched.items():
        shares = [share for share, _ in points]
        ascending = all(0 <= share <= 1 for share in shares) and all(a < b for a, b in pairwise(shares))
        if not points or not ascending:
            problems.append(f"{dataset}: shares of steps not ascending from 0 to 1: {shares}")
        elif to_the_end and (len(points) < 2 or shares[-1] != 1):
            problems.append(
                f"{dataset}: {len(points)} point(s) up to {100 * shares[-1]:g} % of the steps, not up to the end"
            )
        if len({(losses.batches, len(losses.values)) for _, losses in points}) > 1:
            problems.append(f"{dataset}: points on different batches")
    if problems:
        raise ResultsError(
            "these losses along a training cannot be compared",
            found=bullet_list(problems),
            fix="train it again with a watch",
        )
