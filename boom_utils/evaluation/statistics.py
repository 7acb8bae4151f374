"""Scores with their variance by queries, tasks and seeds; intervals and p values of Student's distribution; Holm.

What could have come out otherwise is said everywhere, as levels of a `Measured` number:

- ``queries``: other queries, pairs or texts of the same tasks. A score is the mean of one value a sample, or is made so
  by the jackknife (rank correlation, average precision); its variance is that of a mean. It is what a bootstrap over
  the samples tends to, without the error of its draws. Models are paired: the variance is that of the difference.
- ``tasks``: other tasks of the same kind, from the spread of the scores (or differences) over the tasks.
- ``seeds``: other training runs, see `seed_spread`.

Degrees of freedom over several tasks are Satterthwaite's. Nothing is drawn: the same values give the same numbers.

Shapes: T tasks, S samples of a task, G parts of them; of seeds: M models, S seeds, K members.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from boom_utils.errors import ResultsError

GOLD, GROUP, SUBSET, DRAW = "gold", "group", "subset", "draw"
"""Columns with a meaning of their own: the right answer; the number of a sample's group, where a score is the mean over
groups; the score of a group of which nothing else is known; which texts a clustering experiment was made on."""
RANKED = ("cosine_spearman", "spearman")
_MOST_PARTS = 500
"""Samples are left out one at a time, or in this many parts."""
_SMALLEST = -15
"""Power of ten below which p values are not told apart."""


@dataclass(frozen=True)
class TaskSamples:
    """The values behind one score of one model.

    Args:
        metric: ``spearman``, ``cosine_spearman`` and ``max_ap`` are made of several columns; any other is the mean of
            the column ``value``, of which ``v_measure`` has one an experiment.
        ids: Query ids or row numbers, the same for every model of a task.
        columns: float (S,) each; ``group`` numbers the groups, if there are several; ``subset`` stands alone.
    """

    metric: str
    ids: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TaskSamples:
        """What samples.json holds."""
        columns = {name: np.asarray(values, dtype=float) for name, values in stored["columns"].items()}
        return cls(stored["metric"], tuple(stored["ids"]), columns)

    @cached_property
    def score(self) -> float:
        """The score itself: with groups, the mean of theirs."""
        return float(np.mean([_score(self, part) for part in self.groups]))

    @cached_property
    def groups(self) -> list[slice]:
        """Where the samples of every group are."""
        if SUBSET in self.columns:
            return [slice(0, len(self.ids))]
        number_S = self.columns.get(GROUP, np.zeros(len(self.ids)))
        ends = np.flatnonzero(np.append(number_S[1:] != number_S[:-1], True)) + 1
        return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    @cached_property
    def values(self) -> list[np.ndarray]:
        """Values of every group whose mean is its score, float (S,); pseudo-values (G,) where it is no plain mean."""
        if SUBSET in self.columns:
            return [np.full(2, np.nan)]
        return [
            self.columns["value"][part] if "value" in self.columns else _pseudo_values(self, part)
            for part in self.groups
        ]


def _score(samples: TaskSamples, kept: slice | np.ndarray) -> float:
    """The score of some samples."""
    columns = {name: values[kept] for name, values in samples.columns.items() if name != GROUP}
    if (plain := columns.get(SUBSET, columns.get("value"))) is not None:
        return float(np.mean(plain))
    gold = columns.pop(GOLD)
    return max((_spearman if samples.metric in RANKED else average_precision)(gold, one) for one in columns.values())


def _pseudo_values(samples: TaskSamples, part: slice) -> np.ndarray:
    """The jackknife's values of one group: how much the score leans on each sample, float (G,)."""
    positions = np.arange(part.start, part.stop)
    parts = positions % min(len(positions), _MOST_PARTS)
    whole, count = _score(samples, part), int(parts.max()) + 1
    if samples.metric in RANKED:
        gold_G, predicted_G = (samples.columns[name][part] for name in samples.columns if name != GROUP)
        without = _spearman_without(gold_G, predicted_G, parts, count)
    else:
        without = np.array([_score(samples, positions[parts != number]) for number in range(count)])
    return np.asarray(whole + (count - 1) * (without.mean() - without))


def _spearman(gold_S: np.ndarray, predicted_S: np.ndarray) -> float:
    """Rank correlation, ties given their mean rank; 0 if one of the two is constant."""
    x_S, y_S = (_ranks(values) - (len(values) + 1) / 2 for values in (gold_S, predicted_S))
    spread = math.sqrt(float(x_S @ x_S) * float(y_S @ y_S))
    return float(x_S @ y_S) / spread if spread else 0.0


def _spearman_without(gold_S: np.ndarray, predicted_S: np.ndarray, part_S: np.ndarray, count: int) -> np.ndarray:
    """Rank correlation without each of ``count`` parts, float (count,): what is left out moves the ranks of the rest.

    Ranks are halves of whole numbers, so that all sums are exact.
    """
    left_GS = part_S != np.arange(count)[:, None]
    x_GS, y_GS = (np.tile(_ranks(values), (count, 1)) for values in (gold_S, predicted_S))
    for values, ranks_GS in ((gold_S, x_GS), (predicted_S, y_GS)):
        for value, part in zip(values, part_S, strict=True):
            ranks_GS[part] -= (value < values) + (value == values) / 2
        ranks_GS -= (left_GS.sum(axis=1, keepdims=True) + 1) / 2
        ranks_GS *= left_GS
    spread_G = np.sqrt((x_GS * x_GS).sum(axis=1) * (y_GS * y_GS).sum(axis=1))
    return np.asarray((x_GS * y_GS).sum(axis=1) / np.where(spread_G > 0, spread_G, np.inf))


def _ranks(values_S: np.ndarray) -> np.ndarray:
    """From 1, ties given their mean rank."""
    _, place_S, count = np.unique(values_S, return_inverse=True, return_counts=True)
    return np.asarray((count.cumsum() - (count - 1) / 2)[place_S])


def average_precision(gold_S: np.ndarray, predicted_S: np.ndarray) -> float:
    """Sum over thresholds of precision times gain in recall; equal predictions share one (as in scikit-learn)."""
    order = np.argsort(-predicted_S, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(predicted_S[order]) != 0, True))
    right = gold_S[order].cumsum()[ends]
    return float((right / (ends + 1) * np.diff(right, prepend=0.0)).sum() / right[-1]) if right[-1] else 0.0


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Measured:
    """A mean, or a difference of two, with its variance by level.

    Args:
        value: The number.
        levels: What could have been otherwise -> variance by it, and the degrees of freedom that is known from.
    """

    value: float
    levels: Mapping[str, tuple[float, float]]

    def also(self, level: str, variance: float, freedom: float) -> Measured:
        """The same number with one more level."""
        return Measured(self.value, {**self.levels, level: (variance, freedom)})

    @property
    def error(self) -> float:
        """Standard error over all levels."""
        return math.sqrt(sum(variance for variance, _ in self.levels.values()))

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The value with its interval."""
        half = self._reach((1 - confidence) / 2)
        return Estimate(self.value, self.value - half, self.value + half)

    def _reach(self, tail: float) -> float:
        """How far from the value an interval goes that leaves out ``tail`` on either side.

        Every level's deviation is multiplied by Student's quantile of its own degrees of freedom (Cochran, 1964): with
        a level of two degrees of freedom those of Welch and Satterthwaite give intervals that miss too often.
        """
        from scipy.stats import t

        return math.sqrt(sum(variance * float(t.isf(tail, df)) ** 2 for variance, df in self.levels.values()))

    def p_above(self, limit: float) -> float:
        """One-sided p value of the true number lying at ``limit`` or below it; 1 where nothing is known."""
        from scipy.optimize import brentq

        gap = self.value - limit
        if math.isnan(self.error) or self.error == 0:
            return 0.0 if self.error == 0 and gap > 0 else 1.0
        if self._reach(10.0**_SMALLEST) <= abs(gap):
            tail = 10.0**_SMALLEST
        else:
            tail = 10 ** float(brentq(lambda power: self._reach(10**power) - abs(gap), _SMALLEST, math.log10(0.5)))
        return tail if gap > 0 else 1 - tail

    def p_below(self, limit: float) -> float:
        """One-sided p value of the true number lying at ``limit`` or above it."""
        return Measured(-self.value, self.levels).p_above(-limit)

    @property
    def p_value(self) -> float:
        """Two-sided p value of zero: below 1 - confidence where the interval of that confidence excludes zero."""
        return min(1.0, 2 * Measured(abs(self.value), self.levels).p_above(0.0))


def plain_mean(values_N: Sequence[float] | np.ndarray, level: str = "queries") -> Measured:
    """The mean of a few numbers; of one alone the interval is not known.

    >>> found = plain_mean([1.0, 2.0, 3.0]).estimate()
    >>> found.value, round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    """
    values, count = np.asarray(values_N, dtype=float), len(values_N)
    variance = float(values.var(ddof=1)) / count if count > 1 else math.nan
    return Measured(float(values.mean()), {level: (variance, max(1, count - 1))})


def added(parts: Sequence[tuple[float, Measured]], level: str = "queries") -> Measured:
    """A weighted sum of independent numbers, as one over one level."""
    variances = [(weight**2 * variance, df) for weight, one in parts for variance, df in one.levels.values()]
    total = sum(variance for variance, _ in variances)
    known = sum(variance**2 / df for variance, df in variances)
    value = sum(weight * one.value for weight, one in parts)
    return Measured(value, {level: (total, total**2 / known if known else math.inf)})


Run = Mapping[str, TaskSamples]
"""One trained model: task -> the values behind its score."""


def measure(runs: Sequence[tuple[float, Run]], tasks: Sequence[str], *, over_tasks: bool = False) -> Measured:
    """A weighted sum of mean scores over the tasks, on the same queries: a mean over seeds, a difference of two models.

    Args:
        runs: Weight and samples of every run: ``[(0.5, a), (0.5, b), (-1, c)]``.
        tasks: Names; each has the same weight.
        over_tasks: Other tasks of their kind are a level instead of other queries of these. What they move is in the
            spread over tasks, queries included; it is never taken for less than what queries alone do.

    Returns:
        The sum with its variance by level, in the unit of the scores.

    Raises:
        ResultsError: There are no tasks, one is missing, the runs were scored on different queries, or one task alone
            is to stand for others.

    >>> good, bad = (TaskSamples("accuracy", ("a", "b"), {"value": np.array(v)}) for v in ([1.0, 0.75], [0.5, 0.25]))
    >>> measure([(1.0, {"task": good}), (-1.0, {"task": bad})], ["task"]).value
    0.5
    """
    if not tasks:
        raise ResultsError("a mean over no tasks")
    missing = dict.fromkeys(name for _, run in runs for name in tasks if name not in run)
    if missing:
        raise ResultsError(f"n/a (missing: {', '.join(missing)})", fix="evaluate the missing tasks")
    found = [_task([(weight, run[name]) for weight, run in runs], name) for name in tasks]
    whole = added([(1 / len(tasks), one) for one in found])
    if not over_tasks:
        return whole
    if len(tasks) < 2:
        raise ResultsError("one task does not stand for others", expected="two at least", found=tasks)
    wide = plain_mean([one.value for one in found], "tasks")
    return wide if not wide.error < whole.error else Measured(wide.value, {"tasks": (whole.error**2, len(tasks) - 1)})


def _task(runs: Sequence[tuple[float, TaskSamples]], name: str) -> Measured:
    """A weighted sum of scores of one task, paired by sample."""
    first = runs[0][1]
    if any(one.ids != first.ids for _, one in runs):
        raise ResultsError("models were scored on different queries", where=name, fix="evaluate them again")
    values = [one.values for _, one in runs]
    combined = [
        sum(weight * own[group] for (weight, _), own in zip(runs, values, strict=True))
        for group in range(len(values[0]))
    ]
    draws = first.columns.get(DRAW)
    parts = [
        _experiments(np.asarray(moved), None if draws is None else draws[part])
        if first.metric == "v_measure"
        else plain_mean(np.asarray(moved))
        for moved, part in zip(combined, first.groups, strict=True)
    ]
    value = sum(weight * one.score for weight, one in runs)
    return Measured(value, added([(1 / len(parts), part) for part in parts]).levels)


def _experiments(values_S: np.ndarray, draw_S: np.ndarray | None) -> Measured:
    """The mean of clustering experiments, each on texts drawn anew with replacement.

    How far it would move with other texts is how far the draws of texts lie apart. Where every draw was clustered twice
    from other starts, the part of k-means is known and taken out; it is left in the mean, divided by the experiments.
    Where it was clustered once, single experiments are taken: too wide, rather than too narrow.
    """
    count = len(values_S)
    if draw_S is None or count < 4:
        single = plain_mean(values_S)
        return Measured(single.value, {"queries": (count * single.error**2, max(1, count - 1))})
    pairs = values_S[np.argsort(draw_S, kind="stable")].reshape(-1, 2)
    starts = float(np.mean(np.diff(pairs, axis=1) ** 2)) / 2
    texts = max(0.0, float(pairs.mean(axis=1).var(ddof=1)) - starts / 2)
    return Measured(float(values_S.mean()), {"queries": (texts + starts / count, len(pairs) - 1)})


def difference_estimate(ours: Run, theirs: Run, names: Sequence[str], confidence: float = 0.95) -> Estimate:
    """Paired difference of two models' mean scores over the tasks ``names``, with its interval over queries.

    Args:
        ours: Task -> the values behind the one model's score.
        theirs: The same of the other model.
        names: The tasks of the mean.
        confidence: Of the interval.

    Returns:
        Ours minus theirs, in the unit of the scores.

    Raises:
        ResultsError: A task is missing, or the two were scored on different queries.

    >>> good, bad = (TaskSamples("accuracy", ("a", "b"), {"value": np.array(v)}) for v in ([1.0, 0.75], [0.5, 0.25]))
    >>> difference_estimate({"task": good}, {"task": bad}, ["task"]).value
    0.5
    """
    return measure([(1.0, ours), (-1.0, theirs)], names).estimate(confidence)


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


def gatekeeping(primary: Mapping[str, float], secondary: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Adjusted p values of primary and secondary comparisons; all errors together stay at most ``alpha``.

    Primary ones share alpha equally (Bonferroni). Those that are decided pass their part on to the secondary ones,
    which share it by Holm; while none is decided, no secondary one is. Source: Dmitrienko, Offen and Westfall,
    "Gatekeeping strategies for clinical trials that do not require all primary effects to be significant", 2003.
    """
    adjusted = {name: min(1.0, len(primary) * p) for name, p in primary.items()}
    open_share = float(np.mean([p < alpha for p in adjusted.values()])) if primary else 1.0
    later = {name: min(1.0, p / open_share) if open_share else 1.0 for name, p in holm(secondary).items()}
    return adjusted | later


# --- the interpolation curve ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A place on a curve through a few points.

    Args:
        between: Numbers of the two points it lies between.
        way: How far it is from the first to the second, 0 to 1.
        slope: What the curve gains a unit of the score that is held; 0 at an end.
        beyond: The curve does not reach it: it is the end that is nearest.
    """

    between: tuple[int, int]
    way: float
    slope: float
    beyond: bool


def place_on_curve(held_P: Sequence[float], gained_P: Sequence[float], at: float) -> Place:
    """Where a curve of straight pieces has the value ``at`` in the one score, and there the highest other score.

    A curve that turns has the value several times; nobody would choose the place that is worse in the other score. Of
    a value that it never has, the nearest end of its range stands for it.

    Args:
        held_P: The score that is held, of every point along the curve.
        gained_P: The other score.
        at: The value.

    >>> place_on_curve([0.5, 0.75, 0.5], [0.5, 0.75, 1.0], 0.625)
    Place(between=(1, 2), way=0.5, slope=-1.0, beyond=False)
    """
    best, highest = None, -math.inf
    for a, (low, high) in enumerate(pairwise(held_P)):
        if min(low, high) <= at <= max(low, high):
            rise, gain = high - low, gained_P[a + 1] - gained_P[a]
            way = (at - low) / rise if rise else float(gain > 0)
            if (value := gained_P[a] + way * gain) > highest:
                best, highest = Place((a, a + 1), way, gain / rise if rise else 0.0, False), value
    if best is not None:
        return best
    nearest = min(range(len(held_P)), key=lambda number: abs(held_P[number] - at))
    return Place((nearest, nearest), 0.0, 0.0, True)


# --- seeds ------------------------------------------------------------------------------------------------------------


Shares = Mapping[Any, float]
"""Trained member (of some seed) -> how much of its move is in a model's."""
_SUMS = ("task_arithmetic",)
"""Methods that do not divide weights by their sum."""


def shares_of(model: str, members: Mapping[str, Any], merges: Mapping[str, Any]) -> dict[str, float]:
    """What is trained in a model: its members, or those behind its merges and its start, with their shares.

    Args:
        model: A member, a merge, or something that nobody trained.
        members: Name -> facts; ``start`` is the model that its training began at, None for the base.
        merges: Name -> ``method``, ``members``, ``weights``; ``parameters`` of slerp.

    Returns:
        Shares; empty where nothing was trained.

    >>> merges = {"boom": {"method": "multislerp", "members": ["half", "full"], "weights": [0.5, 1.5]}}
    >>> shares_of("boom", {"half": {"start": None}, "full": {"start": None}}, merges)
    {'half': 0.25, 'full': 0.75}
    """
    if model in members:
        start = members[model].get("start")
        return {model: 1.0} | (shares_of(start, members, merges) if start else {})
    facts = merges.get(model, {"members": []})
    parts = zip(_weights(facts), facts["members"], strict=True)
    return mean_shares([(weight, shares_of(part, members, merges)) for weight, part in parts])


def mean_shares(parts: Sequence[tuple[float, Shares]]) -> dict[Any, float]:
    """Shares of several models added up, each with its weight."""
    found: dict[Hashable, float] = {}
    for weight, shares in parts:
        for name, share in shares.items():
            found[name] = found.get(name, 0.0) + weight * share
    return found


def _weights(merge: Mapping[str, Any]) -> list[float]:
    if not merge["members"]:
        return []
    if (second := merge.get("parameters", {}).get("t")) is not None:
        return [1 - second, second]
    total = 1.0 if merge["method"] in _SUMS else sum(merge["weights"])
    return [weight / total for weight in merge["weights"]]


def moved(shares: Shares) -> float:
    """Variance of a score that is made of these shares, in units of a member's; rounded weights differ in nothing.

    >>> moved({"a": 1.0, "b": -1.0}), moved({"a": -0.5, "b": 0.5}), moved({"a": 0.3333 - 1 / 3})
    (2.0, 0.5, 0.0)
    """
    return sum(share**2 for share in shares.values() if abs(share) > 1e-3) or 0.0


def seed_spread(scores_MS: np.ndarray, shares: Sequence[Shares]) -> tuple[float, float]:
    """Variance of one run of one member between its seeds, and degrees of freedom, from models with several seeds.

    Three seeds of a pair of models say little of their spread (Student's quantile with two degrees of freedom is 4.3).
    So it is measured on all models of a study together, by what they are made of. Every trained member moves the score
    by itself, with one variance, the same for all of them; a merge moves by the mean of its members' moves, each with
    its share of the weights. That is the first order: scores are taken to be linear in weights for moves as small as a
    seed's. A merge of n members alike then has 1 / n of a member's variance, and what two models share is no part of
    their difference. Merges of the same members with the same weights, by two methods, share all: of their difference
    no variance by seeds is known, and a comparison has to say so.

    The variance of a member is the sum of the models' variances over their seeds, divided by the sum of the variances
    that one unit of a member's variance gives them. Models that share members say less together: the degrees of freedom
    are Satterthwaite's. What a seed does to single queries is in the variance by queries too: intervals are a little
    too wide.

    Args:
        scores_MS: Score of every model and seed.
        shares: What each model is made of.

    Raises:
        ResultsError: There are fewer than two seeds, no model, or one that nobody trained.
    """
    models, seeds = scores_MS.shape
    if models < 1 or seeds < 2 or not all(shares):
        what = "a spread of seeds needs a trained model with two seeds, at least"
        raise ResultsError(what, found=f"{models} models, {seeds} seeds")
    names = sorted({name for one in shares for name in one})
    shares_MK = np.array([[one.get(name, 0.0) for name in names] for one in shares])
    units_MM = shares_MK @ shares_MK.T  # covariances of the models, for members of variance 1
    variance = scores_MS.var(axis=1, ddof=1).sum() / np.trace(units_MM)
    return float(variance), float((seeds - 1) * np.trace(units_MM) ** 2 / (units_MM**2).sum())
