"""Comparisons of two models: p values, Holm's correction, tasks as a further level.

Three things can be drawn anew, and every result says which of them were:

- queries of each task, always, as in `boom_utils.evaluation.statistics`: how far a score would move with other queries;
- tasks, if asked for: with other tasks of the same kind;
- seeds, with other training runs: `boom_utils.evaluation.seed_spread` adds them.

Both models of a draw see the same queries. A percentile interval over few tasks would be too narrow: with n of them it
knows the spread of only n numbers. So their deviations are widened by ``sqrt(n / (n - 1))`` times the ratio of
Student's quantile with n - 1 degrees of freedom to the normal one, which makes the interval of a plain mean of n
numbers about Student's. Hesterberg's expanded percentiles ("What teachers should know about the bootstrap", 2015) have
the same aim.

Shapes: T tasks, B bootstrap draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from boom_utils.artifacts import derive_seed
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Bootstrap, Estimate, TaskSamples, mean_estimate, score_draws

Run = Mapping[str, TaskSamples]
"""One trained model: task -> the values behind its score."""
_LARGEST_ALPHA = 0.99


@dataclass(frozen=True)
class Drawn:
    """What each draw gives, float (B,) each: the value by queries, and how far seeds and tasks move it from there."""

    by_queries: np.ndarray
    by_seeds: np.ndarray | float = 0.0
    by_tasks: np.ndarray | float = 0.0
    seed_freedom: float = 1
    task_freedom: float = 1

    def at(self, confidence: float) -> np.ndarray:
        """Draws for an interval of this confidence, widened for few seeds and tasks, float (B,)."""
        moved_B = self.by_seeds * student_ratio(self.seed_freedom, confidence)
        return np.asarray(self.by_queries + moved_B + self.by_tasks * student_ratio(self.task_freedom, confidence))

    def p_value(self, of: Callable[[np.ndarray], float]) -> float:
        """The p value that ``of`` makes of draws; with seeds or tasks the smallest alpha whose draws have one below it.

        Widening depends on alpha, so that the draws themselves do.
        """
        if not np.isfinite(self.by_queries).all():
            return 1.0  # a score without values behind it decides nothing
        if np.ndim(self.by_seeds) == np.ndim(self.by_tasks) == 0:
            return of(self.by_queries)
        low, high = 0.0, _LARGEST_ALPHA
        if of(self.at(1 - high)) > high:
            return 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (low, middle) if of(self.at(1 - middle)) <= middle else (middle, high)
        return high


@dataclass(frozen=True)
class Comparison:
    """A difference of means (or a mean), with what is behind its interval.

    Args:
        estimate: Value and interval at the bootstrap's confidence.
        p_value: Two-sided, of no difference, from the same draws: see `two_sided_p`. Where seeds or tasks are drawn, it
            is the smallest alpha at which the interval of confidence 1 - alpha, widened for that alpha, excludes zero.
        levels: What was drawn anew: ``queries``, then ``seeds`` and ``tasks`` where they were.
        confidence: Of the interval.
        queries: Samples of the smallest task.
        seeds: Training runs of each side.
        query_variance: Of the estimate, by drawing queries.
        seed_variance: Of a difference of one run a side, by seeds; NaN where they are no level.
        seed_freedom: Degrees of freedom that every seed beyond the first would add.
        task_variance: Of the estimate, by drawing tasks; 0 where they were not.
        drawn: The draws themselves.
        pooled_freedom: Degrees of freedom behind ``seed_variance``.
    """

    estimate: Estimate
    p_value: float
    levels: tuple[str, ...]
    confidence: float
    queries: int
    seeds: int
    query_variance: float
    seed_variance: float
    seed_freedom: float
    task_variance: float
    drawn: Drawn = field(repr=False, compare=False)
    pooled_freedom: float = 0.0

    def standard_error(self, query_factor: float = 1, seeds: int | None = None) -> float:
        """Of the estimate, if there were ``query_factor`` times as many queries and ``seeds`` runs a side."""
        runs = seeds or self.seeds
        seed_part = 0.0
        if "seeds" in self.levels:
            widened = student_ratio(max(self.seed_freedom * (runs - 1), self.pooled_freedom), self.confidence)
            seed_part = self.seed_variance / runs * widened**2
        return math.sqrt(self.query_variance / query_factor + seed_part + self.task_variance)


def compare(
    ours: Run, theirs: Run, names: Sequence[str], bootstrap: Bootstrap, *, draw_tasks: bool = False
) -> Comparison:
    """Difference of two models' mean scores over the tasks ``names``, on the same draws of queries.

    Args:
        ours: One model.
        theirs: The other.
        names: Tasks, each with the same weight.
        bootstrap: Draws, confidence and seed.
        draw_tasks: Tasks are drawn anew too.

    Raises:
        ResultsError: A task is missing, the two were scored on different queries, or there are too few tasks.
    """
    _check_queries([ours, theirs], names)
    (value_ours, ours_TB), (value_theirs, theirs_TB) = (_drawn(side, names, bootstrap) for side in (ours, theirs))
    queries = min(len(ours[name].ids) for name in names)
    return compare_drawn(ours_TB - theirs_TB, value_ours - value_theirs, queries, bootstrap, draw_tasks=draw_tasks)


def compare_drawn(
    drawn_TB: np.ndarray, value: float, queries: int, bootstrap: Bootstrap, *, draw_tasks: bool = False
) -> Comparison:
    """A comparison (or a mean) from its draws: of queries, and around each the deviations by drawing tasks.

    Args:
        drawn_TB: Score, or difference of two, of every task and draw.
        value: The estimate itself.
        queries: Samples of the smallest task.
        bootstrap: How the draws were made.
        draw_tasks: Tasks are drawn anew too.

    Raises:
        ResultsError: There are too few tasks to be drawn.
    """
    tasks, _ = drawn_TB.shape
    drawn, task_variance = Drawn(drawn_TB.mean(axis=0)), 0.0
    if draw_tasks:
        if tasks < 2:
            raise ResultsError("tasks cannot be drawn anew", expected="two at least", found=tasks)
        drawn = replace(drawn, by_tasks=_deviations(drawn_TB, bootstrap), task_freedom=tasks - 1)
        task_variance = float(np.var(drawn.by_tasks, ddof=1)) * student_ratio(tasks - 1, bootstrap.confidence) ** 2
    return Comparison(
        bootstrap.estimate(value, drawn.at(bootstrap.confidence)),
        drawn.p_value(two_sided_p),
        ("queries", *(["tasks"] if draw_tasks else [])),
        bootstrap.confidence,
        queries,
        1,
        float(np.var(drawn.by_queries, ddof=1)),
        math.nan,
        math.nan,
        task_variance,
        drawn,
    )


def _deviations(values_TB: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """How far each draw's mean moves when its tasks are drawn anew, with their unbiased spread, (B,)."""
    count, draws = values_TB.shape
    rng = np.random.default_rng(derive_seed(bootstrap.seed, "bootstrap", "level", "tasks"))
    chosen_TB = rng.integers(0, count, size=(count, draws))
    moved_B = np.take_along_axis(values_TB, chosen_TB, axis=0).mean(axis=0) - values_TB.mean(axis=0)
    return np.asarray(moved_B * math.sqrt(count / (count - 1)))


@functools.lru_cache(maxsize=4096)
def student_ratio(freedom: float, confidence: float) -> float:
    """Student's quantile with ``freedom`` degrees of freedom divided by the normal one; infinite for none."""
    from scipy.stats import norm, t

    tail = (1 + confidence) / 2
    return float(t.ppf(tail, freedom) / norm.ppf(tail)) if freedom > 0 else math.inf


def _drawn(run: Run, names: Sequence[str], bootstrap: Bootstrap) -> tuple[float, np.ndarray]:
    """Mean score of a model, and its score of every task and draw, float (T, B)."""
    wanted = {name: run[name] for name in names if name in run}
    scores = score_draws(wanted, bootstrap)
    value = mean_estimate(wanted, scores, names, bootstrap).value
    return value, np.array([scores[name] for name in names])


def _check_queries(runs: Sequence[Run], names: Sequence[str]) -> None:
    if not names:
        raise ResultsError("a comparison over no tasks")
    for name in names:
        if len({run[name].ids for run in runs if name in run}) > 1:
            raise ResultsError("models were scored on different queries", where=name, fix="evaluate them again")


def two_sided_p(drawn_B: np.ndarray) -> float:
    """Two-sided p value of no difference: twice the share of draws beyond zero, one draw added to each count.

    It agrees with the percentile interval: p is below 1 - confidence where the interval excludes zero (up to one draw).
    Never 0: with B draws no p below 2 / (B + 1) can be told apart.
    """
    below, above = int((drawn_B <= 0).sum()), int((drawn_B >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (len(drawn_B) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: those below alpha are significant with a family-wise error of at most alpha.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Raises:
        ResultsError: A p value is not between 0 and 1.
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise ResultsError("these are not p values", found=wrong, expected="0 to 1")
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = so_far
    return {name: adjusted[name] for name in p_values}


def family(comparisons: Mapping[str, Comparison], bootstrap: Bootstrap) -> dict[str, float]:
    """Adjusted p values of comparisons that are judged together (Holm).

    Raises:
        ResultsError: There are too few draws for so many comparisons: none of them could ever be significant.
    """
    alpha = 1 - bootstrap.confidence
    if comparisons and 2 * len(comparisons) / (bootstrap.draws + 1) >= alpha:
        raise ResultsError(
            f"{bootstrap.draws} draws cannot tell {len(comparisons)} comparisons apart",
            expected=f"more than {math.ceil(2 * len(comparisons) / alpha)} draws",
            fix="raise evaluation.bootstrap_draws in the profile",
        )
    return holm({name: found.p_value for name, found in comparisons.items()})
