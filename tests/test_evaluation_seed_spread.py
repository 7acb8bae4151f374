"""The spread of seeds: right on average, and intervals with it cover as often as they say, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Measured, mean_shares, moved, seed_spread, shares_of

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


def simulated(rng: np.random.Generator, models: tuple[str, ...], seeds: int) -> dict[str, np.ndarray]:
    """Scores (S,) of models of equal quality, each moved by its members."""
    moves = {name: rng.normal(0, SIGMA, seeds) for name in MEMBERS}
    return {model: 0.5 + sum(share * moves[name] for name, share in shares(model).items()) for model in models}


def apart(ours: str, theirs: str) -> float:
    return moved(mean_shares([(1.0, shares(ours)), (-1.0, shares(theirs))]))


def compared(rng: np.random.Generator, ours: str, theirs: str, runs: int, pooled: tuple[str, ...] = POOLED) -> Measured:
    """Two models whose true difference is zero; queries move it too. What nobody trained always scores 0.5."""
    scores = simulated(rng, (*dict.fromkeys((*pooled, ours, theirs)),), 3)
    variance, freedom = seed_spread(np.array([scores[model] for model in pooled]), [shares(model) for model in pooled])
    value = float((scores[ours] - scores[theirs])[:runs].mean()) + rng.normal(0, QUERY)
    return Measured(value, {"queries": (QUERY**2, 1e6)}).also("seeds", apart(ours, theirs) * variance / runs, freedom)


@pytest.mark.parametrize(
    ("ours", "theirs", "runs"),
    [
        ("boom", "full", 3),
        ("boom-halves", "full", 3),
        ("boom-updated", "retrained", 3),
        ("boom", "plain-mean", 3),
        ("full", "two-stage", 1),
        ("continued", "boom", 1),
        ("full", "base", 3),
        ("boom", "base", 3),
    ],
)
def test_intervals_cover_and_tests_err_as_often_as_they_say_also_where_members_are_shared(
    ours: str, theirs: str, runs: int
) -> None:
    trials, rng = 500, np.random.default_rng(7)
    found = [compared(rng, ours, theirs, runs) for _ in range(trials)]
    missed = np.mean([one.estimate().excludes_zero for one in found])
    assert missed == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / trials))
    assert all((one.p_value < 0.05) == one.estimate().excludes_zero for one in found[:50])


def test_one_model_with_seeds_is_enough_and_has_few_degrees_of_freedom() -> None:
    rng, trials = np.random.default_rng(3), 500
    found = [compared(rng, "full", "base", 3, pooled=("full",)) for _ in range(trials)]
    assert {one.levels["seeds"][1] for one in found} == {2}
    missed = np.mean([one.estimate().excludes_zero for one in found])
    assert missed == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / trials))


def test_the_variance_of_a_member_is_right_on_average_whatever_shares_members() -> None:
    rng, made = np.random.default_rng(0), [shares(model) for model in POOLED]
    spreads = [seed_spread(np.array([*simulated(rng, POOLED, 3).values()]), made) for _ in range(3000)]
    variances = np.array([one[0] for one in spreads])
    assert variances.mean() == pytest.approx(SIGMA**2, rel=0.05)
    # Satterthwaite: a scaled chi-square of so many degrees of freedom has the same variance.
    assert spreads[0][1] == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.15)
    assert spreads[0][1] < 2 * len(POOLED)


def test_with_models_that_share_nothing_it_is_the_t_test_of_their_seeds() -> None:
    rng = np.random.default_rng(3)
    scores = simulated(rng, ("full", "retrained"), 5)
    scores["full"] += 0.01
    both = np.array([*scores.values()])
    spread = seed_spread(both, [{"full": 1.0}, {"retrained": 1.0}])
    expected = ttest_ind(*both)
    error = math.sqrt(2 * spread[0] / 5)
    assert (both[0] - both[1]).mean() / error == pytest.approx(expected.statistic)
    assert spread[1] == pytest.approx(expected.df)
    alone = seed_spread(both[:1], [{"full": 1.0}])
    expected = ttest_1samp(both[0], 0.5)
    assert (both[0].mean() - 0.5) / math.sqrt(alone[0] / 5) == pytest.approx(expected.statistic)
    assert alone[1] == pytest.approx(expected.df)


def test_shares_follow_merges_of_merges_starts_and_the_rules_of_methods() -> None:
    assert shares("boom") == pytest.approx({name: ratio / 3 for name, ratio in RATIOS.items()})
    assert shares("boom-updated") == pytest.approx({**{n: r / 6 for n, r in RATIOS.items()}, "update": 0.5})
    assert shares("continued") == pytest.approx({"continued": 1.0, **shares("boom")})
    assert shares("sum") == {"half": 1.0, "rest": 1.0}
    assert shares("between") == pytest.approx({"half": 0.8, "rest": 0.2})
    assert shares("base") == {}
    assert apart("boom", "boom") == 0
    assert apart("continued", "boom") == pytest.approx(1.0)


@pytest.mark.parametrize(("shape", "made"), [((1, 1), [{"a": 1.0}]), ((2, 3), [{"a": 1.0}, {}]), ((0, 3), [])])
def test_a_spread_of_one_seed_or_of_what_nobody_trained_is_refused(
    shape: tuple[int, int], made: list[dict[str, float]]
) -> None:
    with pytest.raises(ResultsError, match="a trained model with two seeds"):
        seed_spread(np.zeros(shape), made)
