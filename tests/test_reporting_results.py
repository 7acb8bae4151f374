"""Results that pool seeds: means over all of them, paired differences, and intervals that know how few they are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from made_up_results import write_made_up_results

from boom_utils.evaluation.seed_spread import moved
from boom_utils.reporting.claims import claims_table
from boom_utils.reporting.results import Results, read_results

SEEDS = {"full": (0.01, -0.02), "boom": (0.015, -0.005), "plain": ()}


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    seeds = {name: moves for name, moves in SEEDS.items() if moves}
    return read_results(write_made_up_results(tmp_path_factory.mktemp("pooled"), draws=2500, seeds=seeds))


def score(results: Results, name: str, task: str) -> float:
    return results.numbers.samples[name, task].score()


def test_a_mean_is_that_of_all_seeds(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    expected = np.mean([score(pooled, name, task) for name in pooled.seeds("full") for task in tasks])
    assert pooled.seeds("full") == ["full", "full.seed2", "full.seed3"]
    assert pooled.mean("full", tasks).value == pytest.approx(expected)
    assert pooled.seeds("boom-equal") == ["boom-equal"]


def test_a_comparison_of_several_seeds_has_the_mean_over_them_and_their_spread(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom", "full", tasks)
    by_seed = [
        [np.mean([score(pooled, name, task) for task in tasks]) for name in pooled.seeds(model)]
        for model in ("full", "boom")
    ]
    assert found.estimate.value == pytest.approx(np.mean(by_seed[1]) - np.mean(by_seed[0]))
    assert (found.levels, found.seeds) == (("queries", "seeds"), 3)
    boom, full = pooled.shares("boom"), pooled.shares("full")
    member = np.var(by_seed, axis=1, ddof=1).sum() / (moved(boom, {}) + moved(full, {}))
    assert found.seed_variance == pytest.approx(member * moved(boom, full))
    assert found.standard_error() > math.sqrt(found.seed_variance / 3)


def test_a_model_of_one_seed_is_compared_with_the_first_one_and_the_spread_of_the_others(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom-equal", "full", tasks)
    assert (found.levels, found.seeds) == (("queries", "seeds"), 1)
    expected = np.mean([score(pooled, "boom-equal", task) - score(pooled, "full", task) for task in tasks])
    assert found.estimate.value == pytest.approx(expected)
    several = pooled.comparison("boom", "full", tasks)
    shares = {name: pooled.shares(name) for name in ("boom-equal", "boom", "full")}
    units = [moved(shares[name], shares["full"]) for name in ("boom-equal", "boom")]
    assert found.seed_variance / units[0] == pytest.approx(several.seed_variance / units[1])


def test_what_nobody_trained_is_the_same_for_every_seed(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    for found in (pooled.comparison("full", "base", tasks), pooled.comparison("base", "full", tasks)):
        assert found.seeds == 3
        assert abs(found.estimate.value) == pytest.approx(
            pooled.mean("full", tasks).value - pooled.mean("base", tasks).value
        )
    untrained = pooled.comparison("base", "random", tasks)
    assert (untrained.levels, untrained.seeds) == (("queries",), 1)


def test_a_claim_says_how_many_seeds_are_behind_its_verdict(pooled: Results) -> None:
    limits = claims_table(pooled).set_index("comparison")["what limits it"].fillna("")
    assert limits["boom minus full, in-domain"].startswith("3 seeds")
    assert limits["full minus two-stage, in-domain"].startswith("one seed, with the spread of the others")


def test_a_difference_that_seeds_do_not_agree_on_is_no_finding(tmp_path: Path) -> None:
    gain = {"boom": 0.02, "full": 0.0}
    sure = read_results(write_made_up_results(tmp_path / "one", gain))
    unsure = read_results(
        write_made_up_results(tmp_path / "three", gain, seeds={"boom": (-0.05, 0.01), "full": (0, 0)})
    )
    tasks = sure.tasks("in-domain")
    assert sure.difference("boom", "full", tasks).excludes_zero
    assert not unsure.difference("boom", "full", tasks).excludes_zero
    assert unsure.comparison("boom", "full", tasks).p_value > sure.comparison("boom", "full", tasks).p_value
