"""Scores, their variance by level, by simulation: intervals cover, tests err as often as they say, families hold.

Limits are four standard errors of a binomial share over the number of simulated data sets, around what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy.stats import sem, spearmanr, t, ttest_ind, ttest_rel
from sklearn.metrics import average_precision_score

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import (
    Estimate,
    Measured,
    TaskSamples,
    average_precision,
    difference_estimate,
    gatekeeping,
    holm,
    mean_shares,
    measure,
    moved,
    place_on_curve,
    plain_mean,
    seed_spread,
    shares_of,
)

TASKS = ("a", "b")
Run = Mapping[str, TaskSamples]


def samples(metric: str = "ndcg_at_10", **columns: np.ndarray) -> TaskSamples:
    count = len(next(iter(columns.values())))
    return TaskSamples(metric, tuple(map(str, range(count))), columns)


def two_sides(rng: np.random.Generator, gap: float = 0.0, queries: int = 120) -> tuple[Run, Run]:
    """Two models whose queries are alike, the first of them better by ``gap``."""
    hard = {task: rng.normal(0.5, 0.2, queries) for task in TASKS}
    ours, theirs = (
        {task: samples(value=hard[task] + rng.normal(shift, 0.1, queries)) for task in TASKS} for shift in (gap, 0.0)
    )
    return ours, theirs


def compare(ours: Run, theirs: Run, over_tasks: bool = False) -> Measured:
    return measure([(1.0, ours), (-1.0, theirs)], [*ours], over_tasks=over_tasks)


def error(promised: float, count: int) -> float:
    return 4 * math.sqrt(promised * (1 - promised) / count)


def simulated(count: int, make: Callable[[np.random.Generator], Measured], *key: int) -> list[Measured]:
    return [make(np.random.default_rng([number, *key])) for number in range(count)]


def covered(found: list[Measured], truth: float) -> float:
    return float(np.mean([one.estimate().low <= truth <= one.estimate().high for one in found]))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_rank_correlation_and_average_precision_are_those_of_the_libraries_also_with_ties() -> None:
    rng = np.random.default_rng(4)
    gold, predicted = rng.integers(0, 6, 60).astype(float), rng.normal(size=60)
    found = samples("cosine_spearman", gold=gold, predicted=predicted)
    assert found.score == pytest.approx(spearmanr(gold, predicted)[0])
    gold, first, second = rng.integers(0, 2, 40).astype(float), rng.integers(0, 9, 40) / 9, rng.normal(size=40)
    expected = max(average_precision_score(gold, values) for values in (first, second))
    assert samples("max_ap", gold=gold, first=first, second=second).score == pytest.approx(expected, abs=1e-12)
    assert average_precision(np.zeros(3), np.arange(3.0)) == 0


@pytest.mark.parametrize("metric", ["spearman", "max_ap"])
def test_the_error_of_a_score_that_is_no_mean_is_that_of_a_bootstrap(metric: str) -> None:
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 2 if metric == "max_ap" else 5, 150).astype(float)
    predicted = gold + rng.normal(0, 1.2, 150)
    drawn = rng.integers(0, 150, (1500, 150))
    scores = [samples(metric, gold=gold[row], predicted=predicted[row]).score for row in drawn]
    whole = {"a": samples(metric, gold=gold, predicted=predicted)}
    assert measure([(1.0, whole)], ["a"]).error == pytest.approx(np.std(scores), rel=0.15)


def test_many_samples_are_left_out_in_parts_with_the_same_error() -> None:
    rng = np.random.default_rng(6)
    gold = rng.normal(size=2000)
    many = samples("spearman", gold=gold, predicted=gold + rng.normal(0, 1, 2000))
    few = samples("spearman", gold=gold[:500], predicted=many.columns["predicted"][:500])
    errors = [measure([(1.0, {"a": one})], ["a"]).error for one in (many, few)]
    assert len(many.values[0]) == 500 and errors[0] == pytest.approx(errors[1] / 2, rel=0.15)


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(31)
def test_a_difference_on_one_task_is_the_paired_t_test_and_nothing_is_drawn() -> None:
    ours, theirs = two_sides(np.random.default_rng(0), gap=0.02)
    found = measure([(1.0, ours), (-1.0, theirs)], ["a"])
    expected = ttest_rel(ours["a"].values[0], theirs["a"].values[0])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert [found.estimate().low, found.estimate().high] == pytest.approx([*expected.confidence_interval(0.95)])
    whole, turned = compare(ours, theirs), measure([(1.0, ours), (-1.0, theirs)], ["b", "a"])
    assert (whole.value, whole.error) == pytest.approx((turned.value, turned.error), abs=1e-15)
    assert difference_estimate(ours, theirs, TASKS) == whole.estimate()
    assert whole.error < 0.8 * measure([(1.0, ours)], TASKS).error  # pairing narrows
    assert (compare(ours, ours).estimate(), compare(ours, ours).p_value) == (Estimate(0, 0, 0), 1)


@pytest.mark.promise(31)
def test_intervals_over_queries_cover_and_equal_models_are_told_apart_as_often_as_promised() -> None:
    count = 800
    found = simulated(count, lambda rng: compare(*two_sides(rng, gap=0.01)))
    assert covered(found, 0.01) == pytest.approx(0.95, abs=error(0.95, count))
    assert all((one.p_value < 0.05) == one.estimate().excludes_zero for one in found)
    p = np.array([one.p_value for one in simulated(count, lambda rng: compare(*two_sides(rng)), 1)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p < alpha).mean() == pytest.approx(alpha, abs=error(alpha, count))


def test_experiments_on_the_same_texts_take_what_k_means_does_out_of_the_interval() -> None:
    """Of old results, with one k-means a draw of texts, both stand for other texts."""
    texts, starts, found, plain = 0.02, 0.04, [], []
    for number in range(300):
        rng = np.random.default_rng(number)
        values = np.repeat(rng.normal(0.5, texts, 50), 2) + rng.normal(0, starts, 100)
        pairs = np.arange(100) // 2.0
        found.append(measure([(1.0, {"a": samples("v_measure", value=values, draw=pairs)})], ["a"]).error)
        plain.append(measure([(1.0, {"a": samples("v_measure", value=values[:20:2])})], ["a"]).error)
    assert math.sqrt(np.mean(np.square(found))) == pytest.approx(math.hypot(texts, starts / 10), rel=0.05)
    assert math.sqrt(np.mean(np.square(plain))) == pytest.approx(math.hypot(texts, starts), rel=0.05)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_over_tasks_it_is_students_interval_of_the_tasks_and_covers_their_kind() -> None:
    alone, both = [], []
    for number in range(400):
        rng = np.random.default_rng([number, 10])
        run = {f"t{n}": samples(value=rng.normal(luck, 0.1, 40)) for n, luck in enumerate(rng.normal(0, 0.05, 8))}
        zero = {name: samples(value=np.zeros(40)) for name in run}
        both.append(compare(run, zero, over_tasks=True))
        alone.append(compare(run, zero))
    means, last = [one.score for one in run.values()], both[-1].estimate()
    assert (last.low, last.high) == pytest.approx(t.interval(0.95, 7, np.mean(means), sem(means)))
    assert 0.95 - error(0.95, 400) <= covered(both, 0.0) <= 0.99
    assert covered(alone, 0.0) < 0.75
    alike = dict.fromkeys(TASKS, samples(value=np.random.default_rng(0).normal(0, 0.1, 40)))
    errors = [measure([(1.0, alike)], TASKS, over_tasks=over).error for over in (True, False)]
    assert errors[0] == errors[1] > 0, "tasks that happen to agree make no interval narrower than their queries do"


# --- families ---------------------------------------------------------------------------------------------------------


def test_holm_is_as_worked_out_by_hand_and_keeps_the_order_of_names() -> None:
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.8})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.8})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    with pytest.raises(ResultsError, match=r"(?s)not p values.*'b'"):
        holm({"a": 0.5, "b": math.nan})


@pytest.mark.parametrize(
    ("primary", "expected"),
    [
        ({"a": 0.01, "b": 0.02}, {"a": 0.02, "b": 0.04, "c": 0.008, "d": 0.03}),
        ({"a": 0.01, "b": 0.5}, {"a": 0.02, "b": 1.0, "c": 0.016, "d": 0.06}),
        ({"a": 0.3, "b": 0.5}, {"a": 0.6, "b": 1.0, "c": 1.0, "d": 1.0}),
        ({}, {"c": 0.008, "d": 0.03}),
    ],
)
def test_secondary_comparisons_get_the_part_of_alpha_that_primary_ones_earned(
    primary: dict[str, float], expected: dict[str, float]
) -> None:
    assert gatekeeping(primary, {"c": 0.004, "d": 0.03}, 0.05) == pytest.approx(expected)


def test_gatekeeping_keeps_the_family_wise_error_and_single_tests_do_not() -> None:
    together, alone = [], []
    for number in range(1500):
        p = np.random.default_rng(number).random(6)
        # The first is a true difference: it opens the gate, and is never an error itself.
        adjusted = gatekeeping({"0": 1e-9, "1": p[1]}, {str(n): p[n] for n in range(2, 6)}, 0.05)
        together.append(any(adjusted[str(n)] < 0.05 for n in range(1, 6)))
        alone.append((p[1:] < 0.05).any())
    assert 0 < np.mean(together) <= 0.05 + error(0.05, 1500)
    assert np.mean(alone) > 0.15


@pytest.mark.promise(30)
def test_what_cannot_be_compared_is_refused_and_a_missing_task_does_not_make_a_mean_smaller() -> None:
    ours, theirs = two_sides(np.random.default_rng(0))
    other = {**theirs, "b": samples(value=np.zeros(7))}
    for runs, tasks, over, message in (
        ([(1.0, ours)], ["a", "c"], False, r"n/a \(missing: c\)"),
        ([(1.0, ours)], [], False, "over no tasks"),
        ([(1.0, ours)], ["a"], True, "one task does not stand for others"),
        ([(1.0, ours), (-1.0, other)], TASKS, False, r"(?s)different queries.*b"),
    ):
        with pytest.raises(ResultsError, match=message):
            measure(runs, tasks, over_tasks=over)
    alone = plain_mean([0.5])
    assert math.isnan(alone.estimate().low) and alone.p_value == 1


# --- the interpolation curve ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "between", "way", "slope", "beyond"),
    [
        (0.62, (0, 1), 0.4, 0.2, False),
        (0.66, (1, 2), 0.5, -2.0, False),  # also between the last two, where the curve is lower
        (0.60, (0, 1), 0.0, 0.2, False),
        (0.67, (1, 2), 1.0, -2.0, False),
        (0.70, (2, 2), 0.0, 0.0, True),
        (0.50, (0, 0), 0.0, 0.0, True),
    ],
)
def test_a_curve_is_read_where_it_is_highest_and_at_the_nearest_end_of_its_range(
    at: float, between: tuple[int, int], way: float, slope: float, beyond: bool
) -> None:
    found = place_on_curve([0.60, 0.65, 0.67, 0.64], [0.73, 0.74, 0.70, 0.60], at)
    assert (found.between, found.beyond) == (between, beyond)
    assert (found.way, found.slope) == pytest.approx((way, slope))


# --- seeds ------------------------------------------------------------------------------------------------------------

SIGMA, QUERY = 0.01, 0.004
RATIOS = {"s20": 0.2, "s40": 0.4, "s60": 0.6, "s80": 0.8, "full": 1.0}
MEMBERS = {name: {"start": None} for name in (*RATIOS, "half", "rest", "two-stage", "update", "retrained")}
MEMBERS |= {"continued": {"start": "boom"}}
MERGES = {
    "boom": {"method": "multislerp", "members": [*RATIOS], "weights": [*RATIOS.values()]},
    "plain-mean": {"method": "linear", "members": [*RATIOS], "weights": [1.0] * 5},
    "boom-80-100": {"method": "multislerp", "members": ["s80", "full"], "weights": [0.8, 1.0]},
    "boom-halves": {"method": "multislerp", "members": ["half", "rest"], "weights": [0.5, 0.5]},
    "boom-updated": {"method": "multislerp", "members": ["boom", "update"], "weights": [1.0, 1.0]},
    "sum": {"method": "task_arithmetic", "members": ["half", "rest"], "weights": [1.0, 1.0]},
    "between": {"method": "slerp", "members": ["half", "rest"], "weights": [1.0, 1.0], "parameters": {"t": 0.2}},
}
POOLED = ("full", "retrained", "boom", "plain-mean", "boom-80-100", "boom-halves", "boom-updated")
"""Models with several seeds; many share members, as in a study of BOOM."""


def shares(model: str) -> dict[str, float]:
    return shares_of(model, MEMBERS, MERGES)


def seeded(rng: np.random.Generator, models: tuple[str, ...], seeds: int) -> dict[str, np.ndarray]:
    """Scores (S,) of models of equal quality, each moved by its members."""
    moves = {name: rng.normal(0, SIGMA, seeds) for name in MEMBERS}
    return {model: 0.5 + sum(share * moves[name] for name, share in shares(model).items()) for model in models}


@pytest.mark.parametrize(
    ("ours", "theirs", "runs", "pooled"),
    [
        ("boom", "full", 3, POOLED),
        ("boom-updated", "retrained", 3, POOLED),
        ("boom", "plain-mean", 3, POOLED),
        ("full", "two-stage", 1, POOLED),
        ("continued", "boom", 1, POOLED),
        ("boom", "base", 3, POOLED),
        ("full", "base", 3, ("full",)),
    ],
)
def test_intervals_with_seeds_cover_as_often_as_they_say_also_where_members_are_shared(
    ours: str, theirs: str, runs: int, pooled: tuple[str, ...]
) -> None:
    trials, rng, found = 500, np.random.default_rng(7), []
    units = moved(mean_shares([(1.0, shares(ours)), (-1.0, shares(theirs))]))
    for _ in range(trials):  # the true difference is zero; queries move it too
        scores = seeded(rng, (*dict.fromkeys((*pooled, ours, theirs)),), 3)
        spread = seed_spread(np.array([scores[model] for model in pooled]), [shares(model) for model in pooled])
        value = float((scores[ours] - scores[theirs])[:runs].mean()) + rng.normal(0, QUERY)
        found.append(Measured(value, {"queries": (QUERY**2, 1e6)}).also("seeds", units * spread[0] / runs, spread[1]))
    assert covered(found, 0.0) == pytest.approx(0.95, abs=error(0.95, trials))
    assert (spread[1] == 2) == (pooled == ("full",))


def test_the_variance_of_a_member_is_right_on_average_whatever_shares_members() -> None:
    rng, made = np.random.default_rng(0), [shares(model) for model in POOLED]
    spreads = [seed_spread(np.array([*seeded(rng, POOLED, 3).values()]), made) for _ in range(3000)]
    variances = np.array([one[0] for one in spreads])
    assert variances.mean() == pytest.approx(SIGMA**2, rel=0.05)
    # Satterthwaite: a scaled chi-square of so many degrees of freedom has the same variance.
    assert spreads[0][1] == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.15)


def test_with_models_that_share_nothing_it_is_the_t_test_of_their_seeds() -> None:
    both = np.array([*seeded(np.random.default_rng(3), ("full", "retrained"), 5).values()])
    variance, freedom = seed_spread(both, [{"full": 1.0}, {"retrained": 1.0}])
    expected = ttest_ind(*both)
    assert (both[0] - both[1]).mean() / math.sqrt(2 * variance / 5) == pytest.approx(expected.statistic)
    assert freedom == pytest.approx(expected.df)


def test_shares_follow_merges_of_merges_starts_and_the_rules_of_methods() -> None:
    assert shares("boom") == pytest.approx({name: ratio / 3 for name, ratio in RATIOS.items()})
    assert shares("boom-updated") == pytest.approx({**{n: r / 6 for n, r in RATIOS.items()}, "update": 0.5})
    assert shares("continued") == pytest.approx({"continued": 1.0, **shares("boom")})
    assert shares("sum") == {"half": 1.0, "rest": 1.0}
    assert shares("between") == pytest.approx({"half": 0.8, "rest": 0.2})
    assert shares("base") == {}


@pytest.mark.parametrize(("shape", "made"), [((1, 1), [{"a": 1.0}]), ((2, 3), [{"a": 1.0}, {}]), ((0, 3), [])])
def test_a_spread_of_one_seed_or_of_what_nobody_trained_is_refused(
    shape: tuple[int, int], made: list[dict[str, float]]
) -> None:
    with pytest.raises(ResultsError, match="a trained model with two seeds"):
        seed_spread(np.zeros(shape), made)
