"""Scores of many resamples at once, as mteb defines them: means, rank correlation, average precision.

Shapes: B draws, S samples of a task, G thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

GOLD = "gold"
GROUP = "group"
"""Column with the number of each sample's group, where a score is the mean of the scores of several groups."""
SUBSET = "subset"
"""Column that stands alone where no more than the score of every group is known."""


def mean_value(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Mean of the column ``value``, float (B,)."""
    return np.asarray(columns["value"][draws_BS].mean(axis=1))


def mean_of_experiments(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Mean of the column ``value`` over clustering experiments, float (B,); spread as single experiments are.

    mteb draws the texts of an experiment with replacement and clusters them anew: what one experiment differs from
    another is what a score would differ with other texts, and more (k-means starts elsewhere each time). The plain
    resampled mean would only tell how far ten experiments determine their mean, so its deviations are widened by
    S / sqrt(S - 1). On made-up clusters such intervals were about twice as wide as needed; those of the plain mean
    covered 70 to 93 % instead of 95 %.
    """
    values_S = columns["value"]
    widened = len(values_S) / np.sqrt(max(1, len(values_S) - 1))
    return np.asarray(values_S.mean() + widened * (mean_value(columns, draws_BS) - values_S.mean()))


def spearman(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Rank correlation of ``gold`` and ``predicted``, ties given their mean rank, float (B,); 0 if one is constant."""
    from scipy.stats import rankdata

    x_BS, y_BS = (rankdata(columns[name][draws_BS], axis=1) for name in (GOLD, "predicted"))
    x_BS, y_BS = x_BS - x_BS.mean(axis=1, keepdims=True), y_BS - y_BS.mean(axis=1, keepdims=True)
    spread_B = np.sqrt((x_BS**2).sum(axis=1) * (y_BS**2).sum(axis=1))
    return np.asarray(np.divide((x_BS * y_BS).sum(axis=1), spread_B, out=np.zeros(len(x_BS)), where=spread_B > 0))


def max_average_precision(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Average precision of the similarity that does best, float (B,): mteb's ``max_ap``.

    Args:
        columns: ``gold`` (1 for a positive pair) and one column a similarity, higher where two texts are more alike.
        draws_BS: Sample positions of every draw.
    """
    counts_BS = draw_counts(draws_BS, len(columns[GOLD]))
    similarities = [values for name, values in columns.items() if name != GOLD]
    return np.asarray(np.max([_average_precision(columns[GOLD], values, counts_BS) for values in similarities], axis=0))


def draw_counts(draws_BS: np.ndarray, samples: int) -> np.ndarray:
    """How often each draw holds each sample, float (B, S)."""
    return np.array([np.bincount(row, minlength=samples) for row in draws_BS], dtype=float)


def _average_precision(gold_S: np.ndarray, predicted_S: np.ndarray, counts_BS: np.ndarray) -> np.ndarray:
    """Sum over thresholds of precision times gain in recall; equal predictions share one (as in scikit-learn)."""
    order = np.argsort(-predicted_S, kind="stable")
    sorted_S = predicted_S[order]
    ends = np.flatnonzero(np.append(sorted_S[1:] != sorted_S[:-1], True))
    found_BG = counts_BS[:, order].cumsum(axis=1)[:, ends]
    right_BG = (counts_BS * gold_S)[:, order].cumsum(axis=1)[:, ends]
    precision_BG = np.divide(right_BG, found_BG, out=np.zeros_like(right_BG), where=found_BG > 0)
    gained_BG = np.diff(right_BG, axis=1, prepend=0.0)
    positive_B = right_BG[:, -1]
    return np.asarray(
        np.divide(
            (precision_BG * gained_BG).sum(axis=1), positive_B, out=np.zeros(len(counts_BS)), where=positive_B > 0
        )
    )
