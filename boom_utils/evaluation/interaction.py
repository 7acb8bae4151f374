"""Which datasets help and which disturb one another: held-out loss of joint minus separate training, and clusters.

The paper takes, for each pair of datasets, the difference between their loss when they are trained together and when
each is trained alone, and clusters datasets by it. Which loss it is, how long is trained and how clusters are joined is
not known. The kit's choices: held-out InfoNCE; a pair's number is the mean of both directions; average linkage.

Intervals are Student's over held-out batches, paired: all models meet the same ones. They say how far a number would
move with other held-out batches, not with other training seeds. Of one batch there is none.

Shapes: N datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import ConfigError, ResultsError, bullet_list
from boom_utils.evaluation.statistics import Estimate, Measured, added, plain_mean
from boom_utils.training.batch_losses import BatchLosses

Matrix = NDArray[np.float64]
ModelLosses = Mapping[str, BatchLosses]
"""Held-out losses of one model, by dataset."""
_MATRICES = ("changes", "changes_low", "changes_high", "values", "low", "high")


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
        return _cell((self.values, self.low, self.high), self._place(a, b))

    def change(self, of: str, trained_with: str) -> Estimate:
        """Difference of the loss of one dataset when it is trained with another, with its interval."""
        return _cell((self.changes, self.changes_low, self.changes_high), self._place(of, trained_with))

    def _place(self, a: str, b: str) -> tuple[int, int]:
        return self.datasets.index(a), self.datasets.index(b)

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        rows = {name: getattr(self, name).tolist() for name in _MATRICES}
        matrices = {name: [[None if x != x else x for x in row] for row in found] for name, found in rows.items()}
        facts = {"datasets": [*self.datasets], "batches": [*self.batches], "confidence": self.confidence}
        return {**facts, "unit": "nats, joint minus separate training", **matrices}

    @classmethod
    def from_json(cls, stored: Any) -> Interaction:
        """The inverse of `as_json`.

        Raises:
            ResultsError: A field is missing or of another shape.
        """
        try:
            names, batches = tuple(map(str, stored["datasets"])), tuple(map(int, stored["batches"]))
            matrices = [np.array(stored[name], np.float64).reshape(len(names), len(batches)) for name in _MATRICES]
            return cls(names, batches, float(stored["confidence"]), *matrices)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from None


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
    problems = _problems(separate, joint)
    if problems:
        raise ResultsError(
            "the interaction of datasets cannot be computed",
            found=bullet_list(problems),
            fix="train and evaluate every dataset alone and every pair, on the same held-out batches",
        )
    found = {name: np.zeros((len(names), len(names))) for name in _MATRICES}
    changes: dict[tuple[int, int], Measured] = {}

    def put(kind: str, place: tuple[int, int], estimate: Estimate) -> None:
        for end, value in (("", estimate.value), ("low", estimate.low), ("high", estimate.high)):
            found["_".join(filter(None, (kind, end))) or "values"][place] = value

    for a, b in permutations(range(len(names)), 2):
        together = _pair(joint, names[a], names[b])[names[a]]
        changes[a, b] = plain_mean(np.subtract(together.values, separate[names[a]][names[a]].values))
        put("changes", (a, b), changes[a, b].estimate(confidence))
    for a, b in combinations(range(len(names)), 2):
        both = added([(0.5, changes[a, b]), (0.5, changes[b, a])])
        for place in ((a, b), (b, a)):
            put("", place, both.estimate(confidence))
    batches = tuple(len(separate[name][name].values) for name in names)
    return Interaction(names, batches, confidence, **found)


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
        return {
            "datasets": [*self.datasets],
            "labels": [*self.labels],
            "groups": [[*group] for group in self.groups],
            "method": "average",
            "shift": self.shift,
            "linkage": self.linkage.tolist(),
        }

    @classmethod
    def from_json(cls, stored: Any) -> Clusters:
        """The inverse of `as_json`.

        Raises:
            ResultsError: A field is missing or does not fit the others.
        """
        try:
            names, labels = tuple(map(str, stored["datasets"])), tuple(map(int, stored["labels"]))
            tree = np.array(stored["linkage"], dtype=np.float64).reshape(max(1, len(names) - 1), 4)
            dict(zip(names, labels, strict=True))
            return cls(names, labels, tree, float(stored["shift"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from None


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
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    size = len(interaction.datasets)
    if (
        (count is None) == (threshold is None)
        or count not in (None, *range(1, size + 1))
        or not math.isfinite(threshold or 0)
    ):
        expected = f"a count of 1 to {size} clusters, or a finite threshold, and not both"
        raise ConfigError("datasets cannot be clustered so", expected=expected, found=f"{count} and {threshold}")
    order = sorted(range(size), key=lambda n: interaction.datasets[n])
    values = interaction.values[np.ix_(order, order)]
    shift = float(values[~np.eye(size, dtype=bool)].min())
    distances = values - shift
    np.fill_diagonal(distances, 0.0)
    tree = np.asarray(linkage(squareform(distances, checks=False), method="average"), dtype=np.float64)
    for row in tree:  # nodes below N are datasets: back to the order of the interaction
        row[:2] = sorted(order[int(node)] if node < size else node for node in row[:2])
    joined = size - count if count is not None else int((tree[:, 2] <= float(threshold or 0) - shift).sum())
    return Clusters(interaction.datasets, _labels(tree, joined), tree, shift)


def _labels(tree: Matrix, joined: int) -> tuple[int, ...]:
    """Clusters after the first joins of a tree, numbered by their first dataset.

    Not scipy's ``fcluster``: where distances are equal it gives fewer clusters than are asked for.
    """
    size = len(tree) + 1
    members = {number: {number} for number in range(size)}
    for number, row in enumerate(tree[:joined]):
        members[size + number] = members.pop(int(row[0])) | members.pop(int(row[1]))
    numbers: dict[int, int] = {}
    for label, group in enumerate(sorted(members.values(), key=min), start=1):
        numbers |= dict.fromkeys(group, label)
    return tuple(numbers[number] for number in range(size))


def _cell(matrices: Sequence[Matrix], place: tuple[int, int]) -> Estimate:
    value, low, high = (float(matrix[place]) for matrix in matrices)
    return Estimate(value, low, high)


def _damaged(error: Exception) -> ResultsError:
    return ResultsError(
        "this is not an interaction of datasets",
        expected="what as_json gives",
        found=repr(error),
        fix="compute it again",
    )
