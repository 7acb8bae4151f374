"""Scores of many resamples at once, as mteb defines them: rank correlation, average precision, V-measure.

Shapes: B draws, S samples of a task, E clustering experiments, G groups of samples (cells, thresholds).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

GOLD = "gold"
CLUSTER, TIMES = "cluster_", "times_"
"""Columns of one clustering experiment: the cluster of every text, and how often the experiment drew the text."""


def mean_value(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Mean of the column ``value``, float (B,)."""
    return np.asarray(columns["value"][draws_BS].mean(axis=1))


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


def v_measure(columns: Mapping[str, np.ndarray], draws_BS: np.ndarray) -> np.ndarray:
    """Mean V-measure of the clustering experiments, float (B,).

    A draw of texts keeps the cluster that each experiment gave to a text: nothing is clustered again.

    Args:
        columns: ``gold`` (label) and, an experiment, `CLUSTER` and `TIMES`; a text that was not drawn has 0 times.
        draws_BS: Sample positions of every draw.
    """
    gold_S = columns[GOLD]
    counts_BS = draw_counts(draws_BS, len(gold_S))
    experiments = [name.removeprefix(CLUSTER) for name in columns if name.startswith(CLUSTER)]
    weights = ((columns[CLUSTER + e], counts_BS * columns[TIMES + e]) for e in experiments)
    return np.asarray(np.mean([_v_measure(gold_S, cluster_S, weights_BS) for cluster_S, weights_BS in weights], axis=0))


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


def _v_measure(label_S: np.ndarray, cluster_S: np.ndarray, weights_BS: np.ndarray) -> np.ndarray:
    """Twice the mutual information over the sum of both entropies; 1 where there is one label and one cluster."""
    order = np.lexsort((cluster_S, label_S))
    weights_BS, label_S, cluster_S = weights_BS[:, order], label_S[order], cluster_S[order]
    starts = np.flatnonzero(np.append(True, np.diff(label_S) != 0) | np.append(True, np.diff(cluster_S) != 0))
    cells_BG = np.add.reduceat(weights_BS, starts, axis=1)
    label_B, cluster_B, both_B = (
        _entropy(group) for group in (_sums(cells_BG, label_S[starts]), _sums(cells_BG, cluster_S[starts]), cells_BG)
    )
    total_B = label_B + cluster_B
    return np.asarray(np.divide(2 * (total_B - both_B), total_B, out=np.ones(len(total_B)), where=total_B > 1e-12))


def _sums(cells_BG: np.ndarray, names_G: np.ndarray) -> np.ndarray:
    """Sums of the cells of one name each."""
    order = np.argsort(names_G, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(names_G[order]) != 0))
    return np.asarray(np.add.reduceat(cells_BG[:, order], starts, axis=1))


def _entropy(weights_BG: np.ndarray) -> np.ndarray:
    """Entropy in nats of the distributions the weights are proportional to, float (B,); 0 where there is no weight."""
    total_B = weights_BG.sum(axis=1, keepdims=True)
    share_BG = np.divide(weights_BG, total_B, out=np.zeros_like(weights_BG), where=total_B > 0)
    logs_BG = np.log(share_BG, out=np.zeros_like(share_BG), where=share_BG > 0)
    return np.asarray(-(share_BG * logs_BG).sum(axis=1))
