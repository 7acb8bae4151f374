"""Scores and their variance, by simulation: intervals cover, tests err as often as they say, families are corrected.

Limits are four standard errors of a binomial share over the number of simulated data sets, around what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy.stats import sem, t, ttest_rel

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import (
    Estimate,
    Measured,
    TaskSamples,
    average_precision,
    difference_estimate,
    gatekeeping,
    holm,
    measure,
    plain_mean,
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


def covers(found: Measured, truth: float) -> bool:
    estimate = found.estimate()
    return estimate.low <= truth <= estimate.high


# --- scores -----------------------------------------------------------------------------------------------------------


def test_rank_correlation_and_average_precision_are_those_of_the_libraries_also_with_ties() -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(4)
    gold, predicted = rng.integers(0, 6, 60).astype(float), rng.normal(size=60)
    assert samples("cosine_spearman", gold=gold, predicted=predicted).score == pytest.approx(
        spearmanr(gold, predicted)[0]
    )
    gold, first, second = rng.integers(0, 2, 40).astype(float), rng.integers(0, 9, 40) / 9, rng.normal(size=40)
    expected = max(average_precision_score(gold, values) for values in (first, second))
    assert samples("max_ap", gold=gold, first=first, second=second).score == pytest.approx(expected, abs=1e-12)
    assert average_precision(np.zeros(3), np.arange(3.0)) == 0


@pytest.mark.parametrize("metric", ["spearman", "max_ap"])
def test_the_error_of_a_score_that_is_no_mean_is_that_of_a_bootstrap(metric: str) -> None:
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 2 if metric == "max_ap" else 5, 150).astype(float)
    predicted = gold + rng.normal(0, 1.2, 150)
    whole = samples(metric, gold=gold, predicted=predicted)
    drawn = rng.integers(0, 150, (1500, 150))
    scores = [samples(metric, gold=gold[row], predicted=predicted[row]).score for row in drawn]
    assert measure([(1.0, {"a": whole})], ["a"]).error == pytest.approx(np.std(scores), rel=0.15)


def test_many_samples_are_left_out_in_parts_with_the_same_error() -> None:
    rng = np.random.default_rng(6)
    gold = rng.normal(size=2000)
    many = samples("spearman", gold=gold, predicted=gold + rng.normal(0, 1, 2000))
    assert len(many.values[0]) == 500
    few = {"a": samples("spearman", gold=gold[:500], predicted=many.columns["predicted"][:500])}
    assert measure([(1.0, {"a": many})], ["a"]).error == pytest.approx(measure([(1.0, few)], ["a"]).error / 2, rel=0.15)


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(31)
def test_a_difference_on_one_task_is_the_paired_t_test_and_nothing_is_drawn() -> None:
    ours, theirs = two_sides(np.random.default_rng(0), gap=0.02)
    found, expected = (
        measure([(1.0, ours), (-1.0, theirs)], ["a"]),
        ttest_rel(ours["a"].values[0], theirs["a"].values[0]),
    )
    assert found.p_value == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate().low, found.estimate().high) == pytest.approx((low, high))
    turned = measure([(1.0, ours), (-1.0, theirs)], ["b", "a"])
    whole = compare(ours, theirs)
    assert (whole.value, whole.error) == pytest.approx((turned.value, turned.error), abs=1e-15)
    gap = difference_estimate(ours, theirs, TASKS)
    assert (gap.low, gap.high) == (whole.estimate().low, whole.estimate().high)


@pytest.mark.promise(31)
def test_intervals_over_queries_cover_and_equal_models_are_told_apart_as_often_as_promised() -> None:
    count = 800
    found = simulated(count, lambda rng: compare(*two_sides(rng, gap=0.01)))
    assert np.mean([covers(one, 0.01) for one in found]) == pytest.approx(0.95, abs=error(0.95, count))
    p = np.array([one.p_value for one in simulated(count, lambda rng: compare(*two_sides(rng)), 1)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p < alpha).mean() == pytest.approx(alpha, abs=error(alpha, count))


def test_skewed_scores_are_covered_too() -> None:
    def one(rng: np.random.Generator) -> Measured:
        return measure([(1.0, {"a": samples(value=rng.beta(2, 1, 80)), "b": samples(value=rng.beta(1, 2, 80))})], TASKS)

    assert np.mean([covers(found, 0.5) for found in simulated(600, one)]) == pytest.approx(0.95, abs=error(0.95, 600))


def test_a_p_value_agrees_with_its_interval_and_a_recipe_is_not_better_than_itself() -> None:
    found = simulated(200, lambda rng: compare(*two_sides(rng, gap=0.02)), 2)
    assert all((one.p_value < 0.05) == one.estimate().excludes_zero for one in found)
    assert {one.estimate().excludes_zero for one in found} == {True, False}
    ours, _ = two_sides(np.random.default_rng(0))
    same = compare(ours, ours)
    assert (same.estimate(), same.p_value) == (Estimate(0, 0, 0), 1)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    ability = np.random.default_rng(3).random(200)
    ours, theirs = {"a": samples(value=ability + 0.02)}, {"a": samples(value=ability)}
    gap = compare(ours, theirs)
    assert gap.value == pytest.approx(0.02)
    assert gap.error < 0.01 * measure([(1.0, ours)], ["a"]).error


# --- clustering -------------------------------------------------------------------------------------------------------


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
        found = compare(run, zero, over_tasks=True)
        both.append(covers(found, 0.0))
        alone.append(covers(compare(run, zero), 0.0))
    means = [one.score for one in run.values()]
    low, high = t.interval(0.95, 7, np.mean(means), sem(means))
    assert (found.estimate().low, found.estimate().high) == pytest.approx((low, high))
    assert list(found.levels) == ["tasks"]
    assert 0.95 - error(0.95, 400) <= np.mean(both) <= 0.99
    assert np.mean(alone) < 0.75


def test_tasks_that_happen_to_agree_do_not_make_an_interval_narrower_than_their_queries_do() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 40)
    run = {name: samples(value=values) for name in TASKS}
    assert measure([(1.0, run)], TASKS, over_tasks=True).error == measure([(1.0, run)], TASKS).error > 0


# --- families ---------------------------------------------------------------------------------------------------------


def test_holm_is_as_worked_out_by_hand_and_keeps_the_order_of_names() -> None:
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.8})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.8})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert holm({}) == {}
    with pytest.raises(ResultsError, match=r"(?s)not p values.*'b'"):
        holm({"a": 0.5, "b": math.nan})


def test_secondary_comparisons_get_the_part_of_alpha_that_primary_ones_earned() -> None:
    secondary = {"c": 0.004, "d": 0.03}
    both = gatekeeping({"a": 0.01, "b": 0.02}, secondary, 0.05)
    assert both == pytest.approx({"a": 0.02, "b": 0.04, "c": 0.008, "d": 0.03})
    half = gatekeeping({"a": 0.01, "b": 0.5}, secondary, 0.05)
    assert half == pytest.approx({"a": 0.02, "b": 1.0, "c": 0.016, "d": 0.06})
    assert gatekeeping({"a": 0.3, "b": 0.5}, secondary, 0.05) == {"a": 0.6, "b": 1.0, "c": 1.0, "d": 1.0}
    assert gatekeeping({}, secondary, 0.05) == holm(secondary)


def test_gatekeeping_keeps_the_family_wise_error_and_single_tests_do_not() -> None:
    together, alone = [], []
    for number in range(1500):
        p = np.random.default_rng(number).random(6)
        # The first is a true difference: it opens the gate, and is never an error itself.
        primary, secondary = {"0": 1e-9, "1": p[1]}, {str(n): p[n] for n in range(2, 6)}
        adjusted = gatekeeping(primary, secondary, 0.05)
        together.append(any(adjusted[str(n)] < 0.05 for n in range(1, 6)))
        alone.append((p[1:] < 0.05).any())
    assert 0 < np.mean(together) <= 0.05 + error(0.05, 1500)
    assert np.mean(alone) > 0.15


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(30)
def test_what_cannot_be_compared_is_refused_and_a_missing_task_does_not_make_a_mean_smaller() -> None:
    ours, theirs = two_sides(np.random.default_rng(0))
    with pytest.raises(ResultsError, match=r"n/a \(missing: c\)"):
        measure([(1.0, ours)], ["a", "c"])
    with pytest.raises(ResultsError, match="over no tasks"):
        measure([(1.0, ours)], [])
    with pytest.raises(ResultsError, match=r"(?s)one task does not stand for others"):
        measure([(1.0, ours)], ["a"], over_tasks=True)
    with pytest.raises(ResultsError, match=r"(?s)different queries.*b"):
        compare(ours, {**theirs, "b": samples(value=np.zeros(7))})
    alone = plain_mean([0.5])
    assert math.isnan(alone.estimate().low) and alone.p_value == 1
