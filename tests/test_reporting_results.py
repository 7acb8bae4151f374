"""Results that pool seeds: means over all of them, paired differences, and intervals that know how few they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_results import write_made_up_results

from boom_utils.evaluation.statistics import mean_shares, moved, shares_of
from boom_utils.reporting.ablations import merge_table, seed_table
from boom_utils.reporting.results import Results, read_results

SEEDS = {"full": (0.01, -0.02), "boom": (0.015, -0.005), "plain": ()}


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    seeds = {name: moves for name, moves in SEEDS.items() if moves}
    return read_results(write_made_up_results(tmp_path_factory.mktemp("pooled"), seeds=seeds))


def score(results: Results, name: str, task: str) -> float:
    return results.numbers.samples[name, task].score


def test_a_mean_is_that_of_all_seeds(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    expected = np.mean([score(pooled, name, task) for name in pooled.seeds("full") for task in tasks])
    assert pooled.seeds("full") == ["full", "full.seed2", "full.seed3"]
    assert pooled.mean("full", tasks).value == pytest.approx(expected)
    assert pooled.seeds("boom-equal") == ["boom-equal"]


def test_a_comparison_of_several_seeds_has_the_mean_over_them_and_their_spread(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom", "full", tasks)
    by_seed = [[pooled.run_mean(name, tasks) for name in pooled.seeds(model)] for model in ("full", "boom")]
    assert found.value == pytest.approx(np.mean(by_seed[1]) - np.mean(by_seed[0]))
    boom, full = (shares_of(name, pooled.study["members"], pooled.study["merges"]) for name in ("boom", "full"))
    member = np.var(by_seed, axis=1, ddof=1).sum() / (moved(boom) + moved(full))
    apart = moved(mean_shares([(1.0, boom), (-1.0, full)]))
    assert found.levels["seeds"][0] == pytest.approx(member * apart / 3)


@pytest.mark.parametrize("other", ["full", "boom", "base"])
def test_a_difference_is_that_of_the_means_that_tables_show_however_many_seeds_each_side_has(
    pooled: Results, other: str
) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom-equal", other, tasks)
    assert found.value == pytest.approx(pooled.mean("boom-equal", tasks).value - pooled.mean(other, tasks).value)
    several = pooled.comparison("full", "base", tasks).levels["seeds"][0]
    assert found.levels["seeds"][0] > 0
    assert pooled.comparison("two-stage", "base", tasks).levels["seeds"][0] == pytest.approx(3 * several)


def test_the_mean_of_several_models_is_compared_as_one(pooled: Results) -> None:
    tasks, parts = pooled.tasks("in-domain"), ["half", "half-rest"]
    gap = pooled.difference("boom-halves", parts, tasks)
    means = [pooled.mean(name, tasks).value for name in parts]
    assert gap.value == pytest.approx(pooled.mean("boom-halves", tasks).value - np.mean(means))
    table = merge_table(pooled).set_index("model").loc["boom-halves"]
    assert table["in-domain minus mean part"] == pytest.approx(100 * gap.value, abs=1e-4)
    assert table["in-domain best part"] in parts
    assert table["in-domain minus best part"] <= table["in-domain minus mean part"]
    assert table["in-domain minus base"] > 0


def test_where_only_the_method_differs_real_seeds_are_taken_and_without_them_none(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    assert "seeds" not in pooled.comparison("stock", "ties", tasks).levels
    assert "seeds" not in pooled.comparison("base", "random", tasks).levels
    seeds = {**pooled.study["seeds"], "stock": pooled.seeds("full"), "ties": pooled.seeds("boom")}
    real = replace(pooled, study={**pooled.study, "seeds": seeds}).comparison("stock", "ties", tasks)
    ours, theirs = ([pooled.run_mean(name, tasks) for name in seeds[model]] for model in ("stock", "ties"))
    gaps = np.subtract(ours, theirs)
    assert real.levels["seeds"] == pytest.approx((np.var(gaps, ddof=1) / 3, 2))


def test_what_seeds_move_stands_beside_what_is_expected(pooled: Results) -> None:
    table = seed_table(pooled).set_index("model")
    assert list(table.index) == ["full", "boom"]
    units, expected = table["members' variance in it"], table["in-domain deviation expected"]
    assert units["full"] == 1
    assert expected["boom"] / expected["full"] == pytest.approx(units["boom"] ** 0.5, abs=1e-2)
    assert (expected**2).sum() == pytest.approx((table["in-domain deviation"] ** 2).sum(), rel=1e-2)


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
