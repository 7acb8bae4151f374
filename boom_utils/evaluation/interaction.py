"""Which datasets help and which disturb one another: held-out loss of joint minus separate training, and clusters.

The paper takes, for each pair of datasets, the difference between their loss when they are trained together and when
each is trained alone, and clusters datasets by it. Which loss it is, how long is trained and how clusters are joined is
not known. The kit's choices: held-out InfoNCE; a pair's number is the mean of both directions; average linkage.

Intervals resample held-out batches, paired: all models meet the same ones. They say how far a number would move with
other held-out batches, not with other training seeds.

Shapes: N datasets, B bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import ConfigError, ResultsError, bullet_list
from boom_utils.evaluation.comparison import student_ratio
from boom_utils.evaluation.statistics import Bootstrap, Estimate
from boom_utils.training.batch_losses import BatchLosses

Matrix = NDArray[np.float64]
ModelLosses = Mapping[str, BatchLosses]
"""Held-out losses of one model, by dataset."""
Linkage = Literal["average", "complete", "single"]
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
        matrices = {name: _plain(getattr(self, name)) for name in _MATRICES}
        facts = {"datasets": [*self.datasets], "batches": [*self.batches], "confidence": self.confidence}
        return {**facts, "unit": "nats, joint minus separate training", **matrices}

    @classmethod
    def from_json(cls, stored: Any) -> Interaction:
        """The inverse of `as_json`.

        Raises:
            ResultsError: A field is missing or of another shape, a number is not finite, ``values`` not symmetric.
        """
        try:
            names = tuple(str(name) for name in stored["datasets"])
            matrices = [np.array(stored[name], dtype=np.float64) for name in _MATRICES]
            batches = tuple(int(count) for count in stored["batches"])
            confidence = float(stored["confidence"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(repr(error)) from None
        shape = (len(names), len(names))
        wrong = [f"{name}: {m.shape}" for name, m in zip(_MATRICES, matrices, strict=True) if m.shape != shape]
        if wrong or len(batches) != len(names) or len(set(names)) != len(names):
            raise _damaged("; ".join(wrong) or f"datasets {names}, batches {batches}")
        numbers = dict(zip(_MATRICES, matrices, strict=True))
        finite = all(np.isfinite(numbers[name]).all() for name in ("changes", "values"))
        if not finite or not np.array_equal(numbers["values"], numbers["values"].T):
            raise _damaged("a number that is not finite, or values that are not symmetric")
        return cls(names, batches, confidence, *matrices)


def interaction_matrix(
    separate: Mapping[str, ModelLosses],
    joint: Mapping[tuple[str, str], ModelLosses],
    bootstrap: Bootstrap | None = None,
) -> Interaction:
    """Joint minus separate held-out loss of every pair of datasets, in the order of ``separate``.

    Args:
        separate: Dataset -> losses of the model trained on it alone, its own among them.
        joint: Pair of datasets (in either order, once) -> losses of the model trained on both, on both of them.
        bootstrap: How intervals are made.

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
    names, bootstrap = tuple(separate), bootstrap or Bootstrap()
    problems = _problems(separate, joint)
    if problems:
        raise ResultsError(
            "the interaction of datasets cannot be computed",
            found=bullet_list(problems),
            fix="train and evaluate every dataset alone and every pair, on the same held-out batches",
        )
    shape = (len(names), len(names))
    found = {name: np.zeros(shape) for name in _MATRICES}
    draws: dict[tuple[int, int], np.ndarray] = {}
    for a, b in permutations(range(len(names)), 2):
        together = joint[_key(joint, names[a], names[b])][names[a]]
        change = np.subtract(together.values, separate[names[a]][names[a]].values)
        draws[a, b] = batch_draws(change, names[a], bootstrap)
        _set(found, "changes", (a, b), bootstrap.estimate(float(change.mean()), draws[a, b]))
    for a, b in combinations(range(len(names)), 2):
        value = float(found["changes"][a, b] + found["changes"][b, a]) / 2
        estimate = bootstrap.estimate(value, (draws[a, b] + draws[b, a]) / 2)
        _set(found, "", (a, b), estimate)
        _set(found, "", (b, a), estimate)
    batches = tuple(len(separate[name][name].values) for name in names)
    return Interaction(names, batches, bootstrap.confidence, **found)


def loss_estimate(losses: BatchLosses, dataset: str, bootstrap: Bootstrap | None = None) -> Estimate:
    """Mean loss of one model on ``dataset``, with its interval over batches; for curves of forgetting."""
    bootstrap = bootstrap or Bootstrap()
    return bootstrap.estimate(losses.mean, batch_draws(np.array(losses.values), dataset, bootstrap))


def batch_draws(values_N: np.ndarray, dataset: str, bootstrap: Bootstrap) -> np.ndarray:
    """Means of values drawn anew from few batches, float (B,), far enough apart for an interval of percentiles.

    A few numbers know little of their own spread: of two, no draw lies outside them. So deviations are widened as for
    few tasks, see `boom_utils.evaluation.comparison`. One batch knows nothing of it: its draws are NaN, and so is its
    interval.

    Args:
        values_N: One value a batch.
        dataset: Whose batches they are: other models' are drawn alike.
        bootstrap: How many draws, for which confidence.
    """
    count, mean = len(values_N), values_N.mean()
    if count == 1:
        return np.full(bootstrap.draws, np.nan)
    drawn_B = values_N[bootstrap.positions(dataset, count)].mean(axis=1)
    widened = math.sqrt(count / (count - 1)) * student_ratio(count - 1, bootstrap.confidence)
    return np.asarray(mean + (drawn_B - mean) * widened)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Datasets that belong together, and the tree they come from.

    Args:
        datasets: Names, in the order of the interaction.
        labels: Cluster of each dataset, from 1, numbered by the first dataset of each.
        linkage: float (N - 1, 4), scipy's linkage matrix over ``datasets``: two nodes, their distance, their size.
        shift: What was subtracted from the differences to make distances; distance + shift is nats again.
        method: How the distance of two clusters is made of those of their datasets.
    """

    datasets: tuple[str, ...]
    labels: tuple[int, ...]
    linkage: Matrix
    shift: float
    method: Linkage

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
            "method": self.method,
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
            tree, method = np.array(stored["linkage"], dtype=np.float64), stored["method"]
            shift = float(stored["shift"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(repr(error)) from None
        fits = tree.shape == (len(names) - 1, 4) and len(labels) == len(names) and np.isfinite(tree).all()
        if not fits or set(labels) != set(range(1, max(labels) + 1)) or method not in get_args(Linkage):
            raise _damaged(f"{len(names)} datasets, labels {labels}, linkage {tree.shape}, {method}")
        return cls(names, labels, tree, shift, method)


def clusters(
    interaction: Interaction,
    count: int | None = None,
    threshold: float | None = None,
    linkage: Linkage = "average",
) -> Clusters:
    """Hierarchical clusters of datasets that help one another most, or disturb one another least.

    The distance of two datasets is their ``values`` entry minus the smallest entry of all pairs: not negative, 0 for
    the pair that helps most. Such a shift changes no cluster: with the three linkages the distance of two clusters is
    a mean, maximum or minimum. Ties are broken by name, so the order of datasets changes no cluster either.

    Args:
        interaction: The differences.
        count: Number of clusters. Give this or ``threshold``.
        threshold: Clusters are joined while their difference is at most this, nats; 0 joins what does not conflict.
        linkage: ``average`` (mean of pairs), ``complete`` (worst pair) or ``single`` (best pair).

    Returns:
        The clusters and their tree.

    Raises:
        ConfigError: Not exactly one of count and threshold is given, or one is out of range.

    >>> values = np.array([[0.0, -0.2, 0.3], [-0.2, 0.0, 0.4], [0.3, 0.4, 0.0]])
    >>> seen = Interaction(("nq", "fiqa", "sts"), (2, 2, 2), 0.95, *[values] * 6)
    >>> clusters(seen, threshold=0.0).groups
    (('nq', 'fiqa'), ('sts',))
    """
    from scipy.cluster.hierarchy import linkage as join
    from scipy.spatial.distance import squareform

    size = len(interaction.datasets)
    _check(size, count, threshold, linkage)
    order = sorted(range(size), key=lambda n: interaction.datasets[n])
    values = interaction.values[np.ix_(order, order)]
    shift = float(values[~np.eye(size, dtype=bool)].min())
    distances = values - shift
    np.fill_diagonal(distances, 0.0)
    tree = np.asarray(join(squareform(distances, checks=False), method=linkage), dtype=np.float64)
    for row in tree:  # nodes below N are datasets: back to the order of the interaction
        row[:2] = sorted(order[int(node)] if node < size else node for node in row[:2])
    joined = size - count if count is not None else int((tree[:, 2] <= float(threshold or 0) - shift).sum())
    return Clusters(interaction.datasets, _labels(tree, joined), tree, shift, linkage)


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


def _check(size: int, count: int | None, threshold: float | None, linkage: str) -> None:
    problems = []
    if (count is None) == (threshold is None):
        problems.append("give exactly one of count and threshold")
    if count is not None and not 1 <= count <= size:
        problems.append(f"count {count}: there are {size} datasets")
    if threshold is not None and not math.isfinite(threshold):
        problems.append(f"threshold {threshold} is not finite")
    if linkage not in get_args(Linkage):
        problems.append(f"linkage '{linkage}' is none of {', '.join(get_args(Linkage))}")
    if problems:
        raise ConfigError("datasets cannot be clustered so", found=bullet_list(problems))


def _problems(separate: Mapping[str, ModelLosses], joint: Mapping[tuple[str, str], ModelLosses]) -> list[str]:
    """Why these losses make no matrix."""
    names = list(separate)
    if len(names) < 2:
        return [f"{len(names)} dataset(s), two are needed"]
    found = [f"{name} alone: no loss on itself" for name in names if name not in separate[name]]
    for pair in combinations(names, 2):
        keys = [key for key in (pair, pair[::-1]) if key in joint]
        if len(keys) != 1:
            found.append(f"{pair[0]} with {pair[1]}: {'given twice' if keys else 'missing'}")
            continue
        for name in pair:
            ours, theirs = joint[keys[0]].get(name), separate[name].get(name)
            if ours is None:
                found.append(f"{pair[0]} with {pair[1]}: no loss on {name}")
            elif theirs is not None and (ours.batches, len(ours.values)) != (theirs.batches, len(theirs.values)):
                found.append(f"{pair[0]} with {pair[1]}: other batches of {name} than alone")
    strange = sorted({name for key in joint for name in key} - set(names))
    return [*found, *(f"{name}: in a pair, but not alone" for name in strange)]


def _plain(matrix: Matrix) -> list[list[float | None]]:
    """Rows for JSON; None where there is no interval."""
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]


def _key(joint: Mapping[tuple[str, str], ModelLosses], a: str, b: str) -> tuple[str, str]:
    return (a, b) if (a, b) in joint else (b, a)


def _set(found: Mapping[str, Matrix], kind: str, place: tuple[int, int], estimate: Estimate) -> None:
    prefix = f"{kind}_" if kind else ""
    found[kind or "values"][place] = estimate.value
    found[f"{prefix}low"][place], found[f"{prefix}high"][place] = estimate.low, estimate.high


def _cell(matrices: Sequence[Matrix], place: tuple[int, int]) -> Estimate:
    value, low, high = (float(matrix[place]) for matrix in matrices)
    return Estimate(value, low, high)


def _damaged(found: str) -> ResultsError:
    return ResultsError(
        "this is not an interaction of datasets", expected="what as_json gives", found=found, fix="compute it again"
    )
