"""Held-out losses compared: which datasets help and which disturb one another, and what a training forgets again.

**Interaction.** The paper takes, for each pair of datasets, the difference between their loss when they are trained
together and when each is trained alone, and clusters datasets by it. Which loss it is, how long is trained and how
clusters are joined is not known. The kit's choices: held-out InfoNCE; a pair's number is the mean of both directions;
average linkage.

**Forgetting.** The paper explains the scheduling strategies by catastrophic forgetting and gives no measure of it. The
kit's: mean InfoNCE at the end of a training minus the lowest at any earlier point.

Intervals are Student's over held-out batches, paired: all models, or points, meet the same ones. They say how far a
number would move with other batches, not with other training seeds. Of one batch there is none.

Shapes: N datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import ConfigError, ResultsError, bullet_list
from boom_utils.evaluation.statistics import Estimate, added, plain_mean
from boom_utils.training.batch_losses import BatchLosses

Matrix = NDArray[np.float64]
ModelLosses = Mapping[str, BatchLosses]
"""Held-out losses of one model, by dataset."""
_MATRICES = ("changes", "changes_low", "changes_high", "values", "low", "high")
Watched = Mapping[str, Sequence[tuple[float, BatchLosses]]]
"""Dataset -> share of the steps done (0 to 1) and losses there, as `training.batch_losses.read_watched` gives it."""
CurvePoint = tuple[float, float, float, float]
"""Share of the steps done, loss, lower and upper end of its interval (nats)."""


@dataclass(frozen=True, eq=False)
class Interaction:
    """Loss differences of all pairs of datasets, nats. Negative: they help one another; positive: they disturb.

    Args:
        datasets: Names, in the order of rows and columns.
        batches: Held-out batches of each dataset, in that order.
        confidence: Of the intervals, which are those of each cell alone.
        changes: float (N, N), held-out loss of the row's dataset, trained with the column's minus trained alone.
        changes_low: Lower end of the interval of ``changes``.
        changes_high: Upper end.
        values: float (N, N), symmetric: mean of ``changes`` over both directions.
        low: Lower end of the interval of ``values``.
        high: Upper end.

    The diagonal of every matrix is 0: a dataset is not trained with itself.
    """

    datasets: tuple[str, ...]
    batches: tuple[int, ...]
    confidence: float
    changes: Matrix
    changes_low: Matrix
    changes_high: Matrix
    values: Matrix
    low: Matrix
    high: Matrix

    def pair(self, a: str, b: str) -> Estimate:
        """Mean difference of a pair, with its interval."""
        return self._cell(a, b, "values", "low", "high")

    def change(self, of: str, trained_with: str) -> Estimate:
        """Difference of the loss of one dataset when it is trained with another, with its interval."""
        return self._cell(of, trained_with, "changes", "changes_low", "changes_high")

    def _cell(self, a: str, b: str, *matrices: str) -> Estimate:
        place = self.datasets.index(a), self.datasets.index(b)
        return Estimate(*(float(getattr(self, name)[place]) for name in matrices))

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        rows = {name: getattr(self, name).tolist() for name in _MATRICES}
        matrices = {name: [[None if x != x else x for x in row] for row in found] for name, found in rows.items()}
        facts = {"datasets": [*self.datasets], "batches": [*self.batches], "confidence": self.confidence}
        return {**facts, "unit": "nats, joint minus separate training", **matrices}

    @classmethod
    def from_json(cls, stored: Any) -> Interaction:
        """The inverse of `as_json`."""
        matrices = [np.array(stored[name], np.float64) for name in _MATRICES]
        return cls(tuple(stored["datasets"]), tuple(stored["batches"]), stored["confidence"], *matrices)


def interaction_matrix(
    separate: Mapping[str, ModelLosses],
    joint: Mapping[tuple[str, str], ModelLosses],
    confidence: float = 0.95,
) -> Interaction:
    """Joint minus separate held-out loss of every pair of datasets, in the order of ``separate``.

    Args:
        separate: Dataset -> losses of the model trained on it alone, its own among them.
        joint: Pair of datasets (in either order, once) -> losses of the model trained on both, on both of them.
        confidence: Of the intervals.

    Returns:
        Differences with intervals, nats: negative where the two help one another.

    Raises:
        ResultsError: Fewer than two datasets, a loss is missing, or two models met different batches; all problems.

    >>> def losses(value):
    ...     return BatchLosses((value, value), rows=8, rows_in_no_batch=0, batches="b")
    >>> alone = {"nq": {"nq": losses(1.0)}, "stsb": {"stsb": losses(0.5)}}
    >>> found = interaction_matrix(alone, {("nq", "stsb"): {"nq": losses(1.25), "stsb": losses(0.5)}})
    >>> found.pair("nq", "stsb").value
    0.125
    """
    names = tuple(separate)
    if problems := _problems(separate, joint):
        fix = "train and evaluate every dataset alone and every pair, on the same held-out batches"
        raise ResultsError("the interaction of datasets cannot be computed", found=bullet_list(problems), fix=fix)
    changes, values = np.zeros((2, 3, len(names), len(names)))
    measured = {}
    for a, b in permutations(range(len(names)), 2):
        together = _pair(joint, names[a], names[b])[names[a]]
        measured[a, b] = plain_mean(np.subtract(together.values, separate[names[a]][names[a]].values))
        changes[:, a, b] = astuple(measured[a, b].estimate(confidence))
    for a, b in combinations(range(len(names)), 2):
        both = added([(0.5, measured[a, b]), (0.5, measured[b, a])]).estimate(confidence)
        values[:, a, b] = values[:, b, a] = astuple(both)
    batches = tuple(len(separate[name][name].values) for name in names)
    return Interaction(names, batches, confidence, *changes, *values)


def _pair(joint: Mapping[tuple[str, str], ModelLosses], a: str, b: str) -> ModelLosses:
    """Losses of the model trained on two datasets, named in either order."""
    return joint.get((a, b)) or joint.get((b, a)) or {}


def _problems(separate: Mapping[str, ModelLosses], joint: Mapping[tuple[str, str], ModelLosses]) -> list[str]:
    """Why these losses make no matrix."""
    found = [f"{len(separate)} dataset(s), two are needed"] if len(separate) < 2 else []
    found += [f"{name} alone: no loss on itself" for name, losses in separate.items() if name not in losses]
    for a, b in permutations(separate, 2):
        ours, theirs = _pair(joint, a, b).get(a), separate[a].get(a)
        if ours is None:
            found.append(f"{a} with {b}: no loss on {a}")
        elif theirs is not None and (ours.batches, len(ours.values)) != (theirs.batches, len(theirs.values)):
            found.append(f"{a} with {b}: other batches of {a} than alone")
    return found


@dataclass(frozen=True, eq=False)
class Clusters:
    """Datasets that belong together, and the tree they come from.

    Args:
        datasets: Names, in the order of the interaction.
        labels: Cluster of each dataset, from 1, numbered by the first dataset of each.
        linkage: float (N - 1, 4), scipy's linkage matrix over ``datasets``: two nodes, their distance, their size.
        shift: What was subtracted from the differences to make distances; distance + shift is nats again.
    """

    datasets: tuple[str, ...]
    labels: tuple[int, ...]
    linkage: Matrix
    shift: float

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Datasets of each cluster, in order."""
        pairs = list(zip(self.datasets, self.labels, strict=True))
        return tuple(tuple(n for n, label in pairs if label == k) for k in range(1, max(self.labels) + 1))

    @property
    def leaves(self) -> tuple[int, ...]:
        """Positions of the datasets from left to right in the tree; clusters stand together."""
        from scipy.cluster.hierarchy import leaves_list

        return tuple(int(leaf) for leaf in leaves_list(self.linkage))

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers; ``groups`` is for readers."""
        names = {"datasets": [*self.datasets], "labels": [*self.labels], "groups": [[*group] for group in self.groups]}
        return {**names, "method": "average", "shift": self.shift, "linkage": self.linkage.tolist()}

    @classmethod
    def from_json(cls, stored: Any) -> Clusters:
        """The inverse of `as_json`."""
        tree = np.array(stored["linkage"], np.float64)
        return cls(tuple(stored["datasets"]), tuple(stored["labels"]), tree, stored["shift"])


def clusters(interaction: Interaction, count: int | None = None, threshold: float | None = None) -> Clusters:
    """Hierarchical clusters of datasets that help one another most, or disturb one another least.

    The distance of two datasets is their ``values`` entry minus the smallest entry of all pairs: not negative, 0 for
    the pair that helps most. Such a shift changes no cluster: the distance of two clusters is the mean of those of
    their datasets. Ties are broken by name, so the order of datasets changes no cluster either.

    Args:
        interaction: The differences.
        count: Number of clusters. Give this or ``threshold``.
        threshold: Clusters are joined while their difference is at most this, nats; 0 joins what does not conflict.

    Returns:
        The clusters and their tree.

    Raises:
        ConfigError: Not exactly one of count and threshold is given, or one is out of range.

    >>> values = np.array([[0.0, -0.2, 0.3], [-0.2, 0.0, 0.4], [0.3, 0.4, 0.0]])
    >>> seen = Interaction(("nq", "fiqa", "sts"), (2, 2, 2), 0.95, *[values] * 6)
    >>> clusters(seen, threshold=0.0).groups
    (('nq', 'fiqa'), ('sts',))
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    size = len(interaction.datasets)
    in_range = count in (None, *range(1, size + 1)) and math.isfinite(threshold or 0)
    if (count is None) == (threshold is None) or not in_range:
        expected = f"a count of 1 to {size} clusters, or a finite threshold, and not both"
        raise ConfigError("datasets cannot be clustered so", expected=expected, found=f"{count} and {threshold}")
    order = sorted(range(size), key=lambda n: interaction.datasets[n])
    values = interaction.values[np.ix_(order, order)]
    shift = float(values[~np.eye(size, dtype=bool)].min())
    distances = values - shift
    np.fill_diagonal(distances, 0.0)
    tree = np.asarray(linkage(squareform(distances, checks=False), method="average"), dtype=np.float64)
    joined = size - count if count is not None else int((tree[:, 2] <= float(threshold or 0) - shift).sum())
    # Not `fcluster`: where distances are equal it gives fewer clusters than are asked for.
    found = dict(zip(order, cut_tree(tree, n_clusters=size - joined)[:, 0].tolist(), strict=True))
    numbers = {label: number for number, label in enumerate(dict.fromkeys(found[n] for n in range(size)), start=1)}
    for row in tree:  # nodes below N are datasets: back to the order of the interaction
        row[:2] = sorted(order[int(node)] if node < size else node for node in row[:2])
    return Clusters(interaction.datasets, tuple(numbers[found[n]] for n in range(size)), tree, shift)


# --- forgetting -------------------------------------------------------------------------------------------------------


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

    `boom_utils.reporting.figures.forgetting_curves` draws them; ``low`` and ``high`` are the interval over batches.

    Args:
        watched: Dataset -> (share of steps done, losses there), as `read_watched` reads them.
        confidence: Of the intervals.

    Returns:
        Dataset -> points, in order; losses in nats.

    Raises:
        ResultsError: A dataset has no point, or points on different batches; all problems.

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
    _check(watched, points=2)
    found = {}
    for dataset, points in watched.items():
        *earlier, (_, end) = points
        share, lowest = min(earlier, key=lambda point: point[1].mean)
        difference = plain_mean(np.subtract(end.values, lowest.values)).estimate(confidence)
        found[dataset] = Forgotten(difference, lowest.mean, share, end.mean)
    return found


def _check(watched: Watched, *, points: int = 1) -> None:
    """The same batches at every point, and as many points up to the end as are needed."""
    problems = [] if watched else ["no dataset"]
    for dataset, found in watched.items():
        if len(found) < points or (points > 1 and found[-1][0] != 1):
            problems.append(f"{dataset}: {len(found)} point(s), and not up to the end of the training")
        if len({(losses.batches, len(losses.values)) for _, losses in found}) > 1:
            problems.append(f"{dataset}: points on different batches")
    if problems:
        what, fix = "these losses along a training cannot be compared", "train it again with a watch"
        raise ResultsError(what, found=bullet_list(problems), fix=fix)
