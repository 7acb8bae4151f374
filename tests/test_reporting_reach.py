"""What it would take: a row for every comparison of the ledger, and numbers that follow from what was seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_results import write_made_up_results

from boom_utils.reporting.claims import claims_table
from boom_utils.reporting.reach import NEVER, ONE_SEED, reach_table, seed_table
from boom_utils.reporting.results import Results, read_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(write_made_up_results(tmp_path_factory.mktemp("made-up"), draws=200))


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    seeds = {"full": (0.01, -0.02), "boom": (0.015, -0.005)}
    return read_results(write_made_up_results(tmp_path_factory.mktemp("pooled"), draws=200, seeds=seeds))


def test_every_comparison_of_the_ledger_has_one_row_with_the_same_difference(results: Results) -> None:
    ledger, reach = claims_table(results), reach_table(results).set_index("comparison")
    tested = ledger[ledger["unit"] == "points"].drop_duplicates("comparison").set_index("comparison")
    assert set(reach.index) == set(tested.index)
    assert reach.index.is_unique
    pd.testing.assert_frame_equal(
        reach[["difference", "detectable"]], tested.loc[reach.index, ["difference", "detectable"]]
    )


def test_queries_grow_with_the_square_of_what_is_to_be_seen_and_one_seed_says_nothing_of_others(
    results: Results,
) -> None:
    reach = reach_table(results)
    assert (reach["seeds"] == 1).all()
    for target in (1, 0.5):
        for _, row in reach.iterrows():
            times = float(row[f"queries for {target:g} point"].removesuffix(" times"))
            assert math.isclose(times, (row["detectable"] / target) ** 2, rel_tol=0.1, abs_tol=0.2)
        assert set(reach[f"seeds for {target:g} point"]) == {ONE_SEED}


def test_with_seeds_their_number_is_said_or_that_none_is_enough(pooled: Results) -> None:
    row = reach_table(pooled).set_index("comparison").loc["boom minus full, in-domain"]
    assert row["seeds"] == 3
    for target in (1, 0.5):
        seeds, queries = row[f"seeds for {target:g} point"], row[f"queries for {target:g} point"]
        assert seeds == NEVER or seeds >= 1
        assert queries == NEVER or queries.endswith(" times")
        if row["detectable"] > target:
            assert seeds == NEVER or seeds > row["seeds"]
            assert queries == NEVER or float(queries.split()[0]) > 1


def test_a_study_that_tests_no_claim_has_no_such_table(results: Results) -> None:
    study = {**results.study, "models": ["base"], "members": {}, "merges": {}}
    assert reach_table(replace(results, study=study)).empty


def test_what_seeds_move_stands_beside_what_is_expected(pooled: Results, results: Results) -> None:
    table = seed_table(pooled).set_index("model")
    assert list(table.index) == ["full", "boom"]
    tasks = pooled.tasks("in-domain")
    scores = [[pooled.run_mean(name, tasks) for name in pooled.seeds(model)] for model in table.index]
    assert table["in-domain deviation"].tolist() == pytest.approx([100 * np.std(s, ddof=1) for s in scores], abs=1e-3)
    units = table["members' variance in it"]
    assert units["full"] == 1
    expected = table["in-domain deviation expected"]
    assert expected["boom"] / expected["full"] == pytest.approx(units["boom"] ** 0.5, abs=1e-2)
    assert (expected**2).sum() == pytest.approx((table["in-domain deviation"] ** 2).sum(), rel=1e-2)
    assert seed_table(results).empty
