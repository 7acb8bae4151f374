"""The spread of seeds: right on average, and intervals with it cover as often as they say, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison, compare_drawn
from boom_utils.evaluation.power import minimal_detectable_difference, seeds_needed
from boom_utils.evaluation.seed_spread import SeedSpread, spread_of_differences, spread_of_scores, with_spread
from boom_utils.evaluation.statistics import Bootstrap

QUICK = Bootstrap(draws=1000)
SIGMA, QUERY = 0.01, 0.004


def simulated(rng: np.random.Generator, models: int, seeds: int, shared: float = 0.02) -> np.ndarray:
    """Scores of models of equal quality: what a seed does to all, and what it does to each."""
    return 0.5 + rng.normal(0, shared, (1, seeds)) + rng.normal(0, SIGMA, (models, seeds))


def compared(scores_MS: np.ndarray, runs: int, rng: np.random.Generator) -> Comparison:
    """The first model against the second, whose true difference is zero; queries move it too."""
    value = float((scores_MS[0, :runs] - scores_MS[1, :runs]).mean()) + rng.normal(0, QUERY)
    drawn_TB = (value + rng.normal(0, QUERY, QUICK.draws))[None, :]
    found = compare_drawn(drawn_TB, value, 100, QUICK)
    return with_spread(found, spread_of_differences(scores_MS), 2, runs, QUICK)


@pytest.mark.parametrize(("models", "seeds", "runs"), [(6, 3, 3), (6, 3, 1), (2, 4, 4), (9, 2, 2)])
def test_intervals_with_seeds_cover_and_tests_err_as_often_as_they_say(models: int, seeds: int, runs: int) -> None:
    trials, rng = 500, np.random.default_rng(7)
    found = [compared(simulated(rng, models, seeds), runs, rng) for _ in range(trials)]
    error = 4 * math.sqrt(0.05 * 0.95 / trials)
    missed = np.mean([one.estimate.excludes_zero for one in found])
    assert missed == pytest.approx(0.05, abs=error)
    assert np.mean([one.p_value < 0.05 for one in found]) == pytest.approx(missed, abs=0.01)


def test_the_spread_is_right_on_average_and_what_seeds_do_to_all_models_is_no_part_of_it() -> None:
    rng = np.random.default_rng(0)
    for shared in (0.0, 0.1):
        spreads = [spread_of_differences(simulated(rng, 5, 3, shared)) for _ in range(2000)]
        assert np.mean([one.variance for one in spreads]) == pytest.approx(SIGMA**2, rel=0.05)
        assert {one.freedom for one in spreads} == {8}
    wide = np.mean([spread_of_scores(simulated(rng, 5, 3, 0.1)).variance for _ in range(2000)])
    assert wide == pytest.approx(SIGMA**2 + 0.1**2, rel=0.1)


def test_with_two_models_it_is_the_paired_t_test_of_their_seeds() -> None:
    scores_MS = simulated(np.random.default_rng(3), 2, 5)
    scores_MS[0] += 0.01
    spread = spread_of_differences(scores_MS)
    standard_error = math.sqrt(2 * spread.variance / 5)
    expected = ttest_rel(*scores_MS)
    assert (scores_MS[0] - scores_MS[1]).mean() / standard_error == pytest.approx(expected.statistic)
    assert spread.freedom == expected.df


def test_one_seed_is_judged_more_carefully_than_three_and_three_less_than_none_at_all() -> None:
    rng = np.random.default_rng(1)
    scores_MS = simulated(rng, 6, 3)
    value = 0.02
    found = compare_drawn((value + rng.normal(0, QUERY, QUICK.draws))[None, :], value, 100, QUICK)
    spread = spread_of_differences(scores_MS)
    one, three = (with_spread(found, spread, 2, runs, QUICK) for runs in (1, 3))
    reach = [minimal_detectable_difference(comparison) for comparison in (found, three, one)]
    assert reach == sorted(reach)
    assert found.p_value <= three.p_value <= one.p_value
    base = with_spread(found, spread, 1, 3, QUICK)
    assert minimal_detectable_difference(base) < reach[1], "what nobody trained has no spread of its own"


def test_more_seeds_are_asked_for_where_seeds_limit() -> None:
    found = compare_drawn(np.full((1, QUICK.draws), 0.01), 0.01, 100, QUICK)
    few = with_spread(found, SeedSpread(SIGMA**2, 8, 5), 2, 3, QUICK)
    needed = seeds_needed(few, 0.01)
    assert needed is not None
    assert needed > 3
    # Normal theory: 2 sigma^2 (1.96 + 0.84)^2 / 0.01^2 = 15.7; a few more with few degrees of freedom.
    assert needed == pytest.approx(16, abs=2)


def test_a_spread_of_one_model_or_one_seed_is_refused() -> None:
    for shape in ((1, 3), (3, 1)):
        for measure in (spread_of_differences, spread_of_scores):
            with pytest.raises(ResultsError, match="two models with two seeds"):
                measure(np.zeros(shape))
