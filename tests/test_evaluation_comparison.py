"""Comparisons, by simulation: intervals cover, tests err as often as they say, detectable differences are detected.

Limits are four standard errors of a binomial share over the number of simulated data sets, around what is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import (
    Comparison,
    Drawn,
    compare,
    compare_drawn,
    family,
    holm,
    student_ratio,
    two_sided_p,
)
from boom_utils.evaluation.power import minimal_detectable_difference, queries_needed, seeds_needed
from boom_utils.evaluation.statistics import Bootstrap, Estimate, TaskSamples, difference_estimate

QUICK = Bootstrap(draws=400)
TASKS = ("a", "b")


def samples(values: np.ndarray) -> TaskSamples:
    return TaskSamples("ndcg_at_10", tuple(str(number) for number in range(len(values))), {"value": values})


def two_sides(
    rng: np.random.Generator, gap: float = 0.0, queries: int = 120
) -> tuple[dict[str, TaskSamples], dict[str, TaskSamples]]:
    """Two models whose queries are alike, the first of them better by ``gap``."""
    hard = {task: rng.normal(0.5, 0.2, queries) for task in TASKS}
    ours, theirs = (
        {task: samples(hard[task] + rng.normal(shift, 0.1, queries)) for task in TASKS} for shift in (gap, 0.0)
    )
    return ours, theirs


def share(found: list[bool]) -> float:
    return float(np.mean(found))


def error(promised: float, count: int) -> float:
    return 4 * math.sqrt(promised * (1 - promised) / count)


def simulated(count: int, make: Callable[[np.random.Generator], Comparison], *key: int) -> list[Comparison]:
    return [make(np.random.default_rng([number, *key])) for number in range(count)]


def covers(found: Comparison, truth: float) -> bool:
    return found.estimate.low <= truth <= found.estimate.high


# --- queries ----------------------------------------------------------------------------------------------------------


def test_one_run_a_side_is_the_paired_bootstrap_of_the_tables() -> None:
    ours, theirs = two_sides(np.random.default_rng(0), gap=0.02)
    found = compare(ours, theirs, TASKS, QUICK)
    assert found.levels == ("queries",)
    expected = difference_estimate(ours, theirs, TASKS, QUICK)
    assert found.estimate.value == pytest.approx(expected.value)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((expected.low, expected.high))


def test_intervals_over_queries_cover_the_difference_as_often_as_they_say() -> None:
    count = 800
    found = simulated(count, lambda rng: compare(*two_sides(rng, gap=0.01), TASKS, QUICK))
    assert share([covers(one, 0.01) for one in found]) == pytest.approx(0.95, abs=error(0.95, count))


def test_two_equal_recipes_are_told_apart_as_rarely_as_promised() -> None:
    count = 800
    p = np.array([one.p_value for one in simulated(count, lambda rng: compare(*two_sides(rng), TASKS, QUICK), 1)])
    for alpha in (0.05, 0.2, 0.5):
        assert (p < alpha).mean() == pytest.approx(alpha, abs=error(alpha, count))


def test_a_p_value_agrees_with_its_interval() -> None:
    found = simulated(200, lambda rng: compare(*two_sides(rng, gap=0.02), TASKS, QUICK), 2)
    decided = [one for one in found if abs(one.p_value - 0.05) > 2 * 2 / (QUICK.draws + 1)]
    assert len(decided) > 150
    assert all((one.p_value < 0.05) == one.estimate.excludes_zero for one in decided)
    assert {one.estimate.excludes_zero for one in decided} == {True, False}


def test_a_p_value_counts_the_draws_beyond_zero() -> None:
    assert two_sided_p(np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])) == 2 * 2 / 10
    assert two_sided_p(np.arange(1.0, 10)) == 2 * 1 / 10
    assert two_sided_p(-np.arange(1.0, 10)) == 2 * 1 / 10
    assert two_sided_p(np.zeros(9)) == 1


def test_a_recipe_is_not_better_than_itself() -> None:
    ours, _ = two_sides(np.random.default_rng(0))
    found = compare(ours, ours, TASKS, QUICK)
    assert (found.estimate, found.p_value) == (Estimate(0, 0, 0), 1)


# --- families ---------------------------------------------------------------------------------------------------------


def test_holm_is_as_worked_out_by_hand_and_keeps_the_order_of_names() -> None:
    adjusted = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": 0.8})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"b": 0.04, "c": 0.06, "a": 0.06, "d": 0.8})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert holm({}) == {}


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1])
def test_what_is_no_p_value_is_refused(wrong: float) -> None:
    with pytest.raises(ResultsError, match=r"(?s)not p values.*'b'"):
        holm({"a": 0.5, "b": wrong})


def ten_comparisons(rng: np.random.Generator, gap: float, bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Ten recipes compared with one, which all share its luck; the first is ``gap`` better."""
    hard = rng.normal(0.5, 0.2, 80)
    baseline = {"a": samples(hard + rng.normal(0, 0.1, 80))}
    shifts = [gap, *[0.0] * 9]
    others = [{"a": samples(hard + rng.normal(shift, 0.1, 80))} for shift in shifts]
    return {str(number): compare(run, baseline, ["a"], bootstrap) for number, run in enumerate(others)}


def test_holm_keeps_the_family_wise_error_over_ten_comparisons_and_single_tests_do_not() -> None:
    count, bootstrap, alone, together = 400, Bootstrap(draws=1200), [], []
    for number in range(count):
        found = ten_comparisons(np.random.default_rng([number, 3]), 0.0, bootstrap)
        alone.append(any(one.p_value < 0.05 for one in found.values()))
        together.append(any(p < 0.05 for p in family(found, bootstrap).values()))
    assert share(together) <= 0.05 + error(0.05, count)
    assert share(alone) > 0.15
    assert share(together) > 0, "a test that never errs is no test"


def test_holm_still_finds_a_difference_that_is_there() -> None:
    bootstrap = Bootstrap(draws=1200)
    found = [family(ten_comparisons(np.random.default_rng([n, 4]), 0.08, bootstrap), bootstrap) for n in range(30)]
    assert share([adjusted["0"] < 0.05 for adjusted in found]) > 0.9


def test_too_few_draws_for_a_family_are_an_error_not_a_finding() -> None:
    ours, theirs = two_sides(np.random.default_rng(0))
    found = compare(ours, theirs, TASKS, Bootstrap(draws=300))
    with pytest.raises(ResultsError, match=r"(?s)300 draws cannot tell 10 comparisons.*more than 400"):
        family({str(number): found for number in range(10)}, Bootstrap(draws=300))


# --- what could be detected -------------------------------------------------------------------------------------------


def test_the_minimal_detectable_difference_is_detected_as_often_as_it_says() -> None:
    pilot = compare(*two_sides(np.random.default_rng(0), queries=200), TASKS, Bootstrap(draws=4000))
    gap, count = minimal_detectable_difference(pilot), 400
    # Known: 2 tasks, 200 queries, differences of two draws with spread 0.1.
    assert gap == pytest.approx((1.96 + 0.8416) * 0.1 * math.sqrt(2) / math.sqrt(400), rel=0.1)
    found = simulated(count, lambda rng: compare(*two_sides(rng, gap=gap, queries=200), TASKS, QUICK), 5)
    # Ten per cent of spread in the pilot are eight points of power.
    assert share([one.estimate.excludes_zero for one in found]) == pytest.approx(0.8, abs=error(0.8, count) + 0.08)


def test_with_the_queries_it_asks_for_a_difference_is_detected_as_often_as_it_says() -> None:
    pilot = compare(*two_sides(np.random.default_rng(0), queries=200), TASKS, Bootstrap(draws=4000))
    needed = queries_needed(pilot, 0.03)
    assert needed is not None
    assert needed == pytest.approx(200 * (minimal_detectable_difference(pilot) / 0.03) ** 2, abs=1)
    found = simulated(400, lambda rng: compare(*two_sides(rng, gap=0.03, queries=needed), TASKS, QUICK), 6)
    assert share([one.estimate.excludes_zero for one in found]) == pytest.approx(0.8, abs=error(0.8, 400) + 0.08)


def given(query_variance: float, seed_variance: float, seeds: int = 3, task_variance: float = 0.0) -> Comparison:
    levels = ("queries", "seeds", *(["tasks"] if task_variance else []))
    spread = (query_variance, seed_variance, 1, task_variance)
    return Comparison(Estimate(0, 0, 0), 1.0, levels, 0.95, 100, seeds, *spread, Drawn(np.zeros(1)))


def test_seeds_needed_are_the_fewest_whose_difference_is_within_reach() -> None:
    found = given(1e-4, 4e-4)
    needed = seeds_needed(found, 0.03)
    assert needed is not None
    assert minimal_detectable_difference(replace(found, seeds=needed)) <= 0.03
    assert minimal_detectable_difference(replace(found, seeds=needed - 1)) > 0.03
    assert needed > 4e-4 / ((0.03 / (1.96 + 0.8416)) ** 2 - 1e-4), "few seeds cost more than the normal quantile says"


def test_more_seeds_do_not_help_where_queries_limit_and_the_other_way_round() -> None:
    assert seeds_needed(given(1e-2, 1e-6), 0.01) is None
    assert queries_needed(given(1e-6, 1e-2), 0.01) is None
    assert queries_needed(given(1e-6, 1e-9, task_variance=1e-2), 0.01) is None
    with pytest.raises(ResultsError, match="one seed says nothing"):
        seeds_needed(replace(given(1e-4, math.nan, seeds=1), levels=("queries",)), 0.01)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ResultsError, match="above zero"):
            queries_needed(given(1e-4, 1e-4), wrong)
    with pytest.raises(ResultsError, match="power"):
        minimal_detectable_difference(given(1e-4, 1e-4), power=1.0)


# --- tasks ------------------------------------------------------------------------------------------------------------


def task_runs(rng: np.random.Generator, tasks: int, spread: float) -> dict[str, TaskSamples]:
    return {
        f"t{number}": samples(rng.normal(luck, 0.1, 40)) for number, luck in enumerate(rng.normal(0, spread, tasks))
    }


@pytest.mark.parametrize("tasks", [5, 12])
def test_intervals_over_tasks_cover_the_mean_of_all_tasks_of_the_kind(tasks: int) -> None:
    alone, both = [], []
    for number in range(400):
        run = task_runs(np.random.default_rng([number, 10, tasks]), tasks, 0.05)
        zero = {name: samples(np.zeros(40)) for name in run}
        found = compare(run, zero, list(run), QUICK, draw_tasks=True)
        both.append(covers(found, 0.0))
        alone.append(covers(compare(run, zero, list(run), QUICK), 0.0))
    assert found.levels == ("queries", "tasks")
    assert 0.95 - error(0.95, 400) <= share(both) <= 0.995
    assert share(alone) < 0.75


def test_a_widened_interval_of_a_plain_mean_is_about_students() -> None:
    rng = np.random.default_rng(0)
    lucks = rng.normal(0, 1, 8)
    bootstrap = Bootstrap(draws=20000)
    found = compare_drawn(np.tile(lucks[:, None], bootstrap.draws), 0.0, 4, bootstrap, draw_tasks=True)
    half = 2.3646 * lucks.std(ddof=1) / math.sqrt(8)
    assert found.estimate.high - found.estimate.low == pytest.approx(2 * half, rel=0.06)
    assert found.standard_error() == pytest.approx(lucks.std(ddof=1) / math.sqrt(8) * student_ratio(7, 0.95), rel=0.02)


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    ours, theirs = two_sides(np.random.default_rng(0))
    found = compare(ours, theirs, TASKS, QUICK, draw_tasks=True)
    again, other = (compare(ours, theirs, TASKS, one, draw_tasks=True) for one in (QUICK, replace(QUICK, seed=1)))
    assert (found.estimate, found.p_value) == (again.estimate, again.p_value)
    assert found.estimate != other.estimate


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused() -> None:
    ours, theirs = two_sides(np.random.default_rng(0))
    with pytest.raises(ResultsError, match=r"n/a \(missing: c\)"):
        compare(ours, theirs, ["a", "c"], QUICK)
    with pytest.raises(ResultsError, match="over no tasks"):
        compare(ours, theirs, [], QUICK)
    with pytest.raises(ResultsError, match=r"(?s)tasks cannot be drawn anew.*1"):
        compare(ours, theirs, ["a"], QUICK, draw_tasks=True)
    with pytest.raises(ResultsError, match=r"(?s)different queries.*b"):
        compare(ours, {**theirs, "b": samples(np.zeros(7))}, TASKS, QUICK)
