"""Intervals: bootstrap over queries within tasks, for one model and for the paired difference of two.

What is resampled is said everywhere: here the queries, pairs or test rows of each task, never seeds or tasks. An
interval therefore says how far the score would move with other queries, not with another training run. Where a score is
the mean over groups (subsets of languages, say), samples are drawn within their group. For clustering
mteb's experiments are resampled, see `boom_utils.evaluation.metrics.mean_of_experiments`.

Shapes: T tasks, S samples of a task, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_utils.artifacts import derive_seed
from boom_utils.errors import ResultsError
from boom_utils.evaluation.metrics import (
    GOLD,
    GROUP,
    SUBSET,
    max_average_precision,
    mean_of_experiments,
    mean_value,
    spearman,
)

SCORES: Mapping[str, Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]] = {
    "cosine_spearman": spearman,
    "spearman": spearman,
    "max_ap": max_average_precision,
    "v_measure": mean_of_experiments,
}
"""Metrics that are no plain mean of one value a sample: columns and draws of positions (B, S) -> scores (B,)."""
POSITIONS_AT_ONCE = 2**22
"""Most positions of draws in memory: a task of a benchmark may have a hundred thousand samples."""


@dataclass(frozen=True)
class TaskSamples:
    """The values behind one score of one model.

    Args:
        metric: One of `SCORES` (each names its columns), or any metric that is the mean of the column ``value``.
        ids: Query ids or row numbers, the same for every model of a task.
        columns: float (S,) each; ``group`` numbers the groups, if there are several; ``subset`` stands alone.
    """

    metric: str
    ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    def score(self) -> float:
        """The score itself."""
        if SUBSET in self.columns:
            return float(np.mean(self.columns[SUBSET]))
        return float(self.scores(np.arange(len(self.ids))[None, :])[0])

    def scores(self, draws_BS: np.ndarray) -> np.ndarray:
        """The score of every draw of sample positions, float (B,): with groups, the mean of theirs.

        Position s of a draw is from the group of sample s. NaN where no values of samples are known.
        """
        if SUBSET in self.columns:
            return np.full(len(draws_BS), np.nan)
        rule = SCORES.get(self.metric, mean_value)
        if rule is spearman and GOLD not in self.columns:
            rule = mean_value  # one rank correlation a sample, as of summaries
        scores = []
        for start, end in self.groups:
            columns = {name: values_S[start:end] for name, values_S in self.columns.items()}
            scores.append(rule(columns, draws_BS[:, start:end] - start))
        return np.asarray(np.mean(scores, axis=0))

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First and last position (plus one) of every group of samples that stand together."""
        number_S = self.columns.get(GROUP, np.zeros(len(self.ids)))
        ends = np.flatnonzero(np.append(number_S[1:] != number_S[:-1], True)) + 1
        return [(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def drawn(self, task: str, bootstrap: Bootstrap) -> np.ndarray:
        """The score of every bootstrap draw, float (B,)."""
        blocks = bootstrap.blocks(task, len(self.ids), self.groups)
        return np.concatenate([self.scores(positions_bS) for positions_bS in blocks])


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; ``low`` and ``high`` are percentiles of the bootstrap draws."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of draws, confidence, seed."""

    draws: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def positions(self, task: str, samples: int) -> np.ndarray:
        """Sample positions of every draw, int (B, S); the same for every model, so differences are paired."""
        return np.concatenate(list(self.blocks(task, samples, [(0, samples)])))

    def blocks(self, task: str, samples: int, groups: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        """`positions` a few draws at a time, int (b, S), with each position drawn from its own group.

        Args:
            task: Names the random stream.
            samples: S.
            groups: First and last position (plus one) of every group.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "bootstrap", task))
        sizes = [end - start for start, end in groups]
        # One group takes the plain call, which draws from the stream as it always has.
        low, high = (np.repeat([pair[end] for pair in groups], sizes) for end in (0, 1))
        bounds: tuple[Any, Any] = (0, samples) if len(groups) == 1 else (low, high)
        step = max(1, POSITIONS_AT_ONCE // max(1, samples))
        for first in range(0, self.draws, step):
            yield rng.integers(*bounds, size=(min(step, self.draws - first), samples))

    def estimate(self, value: float, drawn_B: np.ndarray) -> Estimate:
        """The percentile interval of the draws around ``value``."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(drawn_B, [tail, 1 - tail])
        return Estimate(value, float(low), float(high))


def score_draws(tasks: Mapping[str, TaskSamples], bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Bootstrap scores of one model on each task, float (B,) each; made once, used by `mean_estimate`."""
    return {name: task.drawn(name, bootstrap) for name, task in tasks.items()}


def mean_estimate(
    tasks: Mapping[str, TaskSamples], draws: Mapping[str, np.ndarray], names: Sequence[str], bootstrap: Bootstrap
) -> Estimate:
    """Mean score over the tasks ``names`` of one model, each task with the same weight.

    Raises:
        ResultsError: A task is missing: a mean over fewer tasks would be another number.
    """
    _require(tasks, names)
    value = float(np.mean([tasks[name].score() for name in names]))
    return bootstrap.estimate(value, np.mean([draws[name] for name in names], axis=0))


def difference_estimate(
    ours: Mapping[str, TaskSamples], theirs: Mapping[str, TaskSamples], names: Sequence[str], bootstrap: Bootstrap
) -> Estimate:
    """Paired difference of two models' mean scores over the tasks ``names``, on the same draws of queries.

    Args:
        ours: Task -> the values behind the one model's score.
        theirs: The same of the other model.
        names: The tasks of the mean.
        bootstrap: How the interval is made.

    Returns:
        Ours minus theirs, in the unit of the scores.

    Raises:
        ResultsError: A task is missing, or the two were scored on different queries.

    >>> good, bad = (TaskSamples("accuracy", ("a", "b"), {"value": np.array(v)}) for v in ([1.0, 1.0], [1.0, 0.0]))
    >>> gap = difference_estimate({"task": good}, {"task": bad}, ["task"], Bootstrap(draws=200))
    >>> gap.value, gap.low, gap.high
    (0.5, 0.0, 1.0)
    """
    _require(ours, names)
    _require(theirs, names)
    for name in names:
        if ours[name].ids != theirs[name].ids:
            raise ResultsError("two models were scored on different queries", where=name, fix="evaluate both again")
    value = float(np.mean([ours[name].score() - theirs[name].score() for name in names]))
    draws = []
    for name in names:
        draws.append(ours[name].drawn(name, bootstrap) - theirs[name].drawn(name, bootstrap))
    return bootstrap.estimate(value, np.mean(draws, axis=0))


def _require(tasks: Mapping[str, TaskSamples], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in tasks]
    if missing:
        raise ResultsError(f"n/a (missing: {', '.join(missing)})", fix="evaluate the missing tasks")
