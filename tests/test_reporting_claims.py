"""The claims ledger: every verdict is reached from scores alone, effects may be reversed, and nothing is typed."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_results import made_up_interaction, unscored, with_gain, with_study

from boom_utils.artifacts import write_json
from boom_utils.evaluation.statistics import Measured
from boom_utils.reporting.claims import (
    DESCRIBED,
    INCONCLUSIVE,
    NO_SEEDS,
    REFUTED,
    SUPPORTED,
    UNTESTED,
    claims_table,
    counts_of,
    examine,
    verdict,
    write_claims,
)
from boom_utils.reporting.results import Results

BOOM = "BOOM of samples {20, 40, 60, 80, 100} % beats batch-level shuffling"
ALIKE_METHODS = "Multi-SLERP and TIES are equally good"
ON_PAR = "A merged update is on par with retraining on everything, or better"
COST = "A merged update trains less than retraining"
PAIRS = "Fewer than half of all pairs of datasets disturb one another"


@pytest.fixture(scope="module")
def ledger(results: Results) -> pd.DataFrame:
    return claims_table(results)


def verdicts(frame: pd.DataFrame, claim: str) -> list[str]:
    return frame.loc[frame["claim"] == claim, "verdict"].to_list()


HERE = f"{SUPPORTED} on these trainings"
"""The made-up study has one seed of each model."""


def test_a_claim_is_supported_where_the_models_differ_as_it_says_and_described_where_it_is_not_ranked(
    ledger: pd.DataFrame,
) -> None:
    assert verdicts(ledger, BOOM) == [HERE, f"{SUPPORTED} on these tasks and trainings"]
    overall, *domains = verdicts(ledger, "Batch-level shuffling beats one dataset after another")
    assert overall.startswith(SUPPORTED) and domains == [DESCRIBED, DESCRIBED]
    assert verdicts(ledger, "Model Stock is worse than SLERP") == [DESCRIBED] * 2
    assert verdicts(ledger, ON_PAR)[0].startswith(SUPPORTED)
    assert verdicts(ledger, COST) == [SUPPORTED]
    assert ledger["rank"].value_counts()[["primary", "secondary"]].tolist() == [2, 4]
    described = ledger[ledger["rank"] == "described"]
    assert described["p (corrected)"].isna().all() and described["difference low"].notna().all()


def test_a_reversed_effect_is_not_supported(results: Results) -> None:
    frame = claims_table(with_gain(results, {"boom": -0.03, "seq-datasets": 0.03, "updated-40": -0.06}))
    for claim in (BOOM, "Batch-level shuffling beats one dataset after another", ON_PAR):
        assert verdicts(frame, claim)[0].startswith(REFUTED)


def test_what_the_interval_leaves_open_is_inconclusive_and_so_is_what_no_primary_comparison_opens(
    results: Results,
) -> None:
    frame = claims_table(with_gain(results, {"boom": 0.0}))
    assert verdicts(frame, BOOM) == [INCONCLUSIVE] * 2
    assert set(frame.loc[frame["rank"] == "secondary", "verdict"]) == {INCONCLUSIVE}
    assert set(frame.loc[frame["rank"] == "secondary", "p (corrected)"]) == {1.0}


def test_no_number_of_the_ledger_is_drawn(
    results: Results, ledger: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(*_: object, **__: object) -> None:
        raise AssertionError("a number is drawn")

    for module, name in ((np.random, "default_rng"), (np.random, "RandomState"), (random, "Random")):
        monkeypatch.setattr(module, name, drawn)
    pd.testing.assert_frame_equal(claims_table(replace(results)), ledger)


def test_a_verdict_says_that_it_is_on_these_tasks_where_it_is_none_on_others_of_their_kind() -> None:
    assert verdict(SUPPORTED, True, True, seeds=True) == SUPPORTED
    assert verdict(REFUTED, True, False, seeds=True) == f"{REFUTED} on these tasks"
    assert verdict(SUPPORTED, True, False, seeds=False) == f"{SUPPORTED} on these tasks and trainings"
    assert verdict(SUPPORTED, False, False, seeds=True) == INCONCLUSIVE
    counts = counts_of([SUPPORTED, f"{SUPPORTED} on these tasks", DESCRIBED, UNTESTED])
    assert (counts[SUPPORTED], counts[REFUTED], counts[DESCRIBED], counts[UNTESTED]) == (2, 0, 1, 1)


def test_a_difference_that_hangs_on_one_task_is_on_these_tasks_only(results: Results) -> None:
    samples = {**results.numbers.samples}
    one = samples["boom", "known_0"]
    samples["boom", "known_0"] = replace(one, columns={"value": one.columns["value"] + 0.2})
    numbers = replace(results.numbers, samples=samples)
    row = claims_table(replace(results, numbers=numbers)).query("claim == @BOOM").iloc[0]
    assert row["difference low"] > 0 > row["difference, over tasks too low"]
    assert row["verdict"] == f"{SUPPORTED} on these tasks and trainings"


def test_merges_of_the_same_members_and_weights_have_no_variance_between_seeds_and_the_row_says_so(
    pooled: Results,
) -> None:
    limits = claims_table(pooled).set_index("comparison")["what limits it"].fillna("")
    assert limits["stock minus ties, in-domain"] == NO_SEEDS
    assert limits["boom minus full, in-domain"] == limits["full minus two-stage, in-domain"] == ""


def test_a_claim_without_models_is_listed_as_not_tested(results: Results, ledger: pd.DataFrame) -> None:
    assert verdicts(ledger, "Model Stock is worse than the Karcher mean") == [UNTESTED]
    assert ledger["known from"].str.startswith(("primary: ", "secondary: ")).all()
    members = {name: results.study["members"][name] for name in ("full", "s80")}
    bare = with_study(results, members=members, merges={}, models=["random", "base", "s80", "full"])
    frame = claims_table(replace(bare, folder=results.folder / "nowhere"))
    assert set(frame["verdict"]) == {UNTESTED}
    assert frame["claim"].to_list() == ledger["claim"].drop_duplicates().to_list()
    assert frame["difference"].isna().all()


@pytest.mark.parametrize(
    ("expected", "value", "error", "wanted"),
    [
        ("within 1 point of 0", 0.0, 0.003, True),
        ("within 1 point of 0", 0.005, 0.001, True),
        ("within 1 point of 0", 0.0, 0.05, None),
        ("within 1 point of 0", 0.02, 0.003, False),
        ("within 1 point of 0", -0.02, 0.003, False),
        ("above -1 point", -0.005, 0.001, True),
        ("above -1 point", -0.03, 0.003, False),
        ("above -1 point", -0.01, 0.003, None),
        ("above 0", 0.01, 0.003, True),
        ("above 0", -0.01, 0.003, False),
        ("below 0", -0.01, 0.003, True),
        ("below 0", 0.01, 0.006, None),
    ],
)
def test_a_difference_is_judged_by_where_its_whole_interval_lies(
    expected: str, value: float, error: float, wanted: bool | None
) -> None:
    """Equality is not claimed from the lack of a difference."""
    found = Measured(value, {"queries": (error**2, 1e6)})
    p, holds = examine(found, expected)
    assert (p < 0.05) == (wanted is not None)
    assert wanted in (None, holds)
    if expected.endswith(" 0") and not expected.startswith("within"):
        assert p == pytest.approx(found.p_value)


@pytest.mark.parametrize(("conflicts", "wanted"), [(True, REFUTED), (False, INCONCLUSIVE)])
def test_conflicting_pairs_are_counted_with_what_their_intervals_leave_open(
    results: Results, tmp_path: Path, conflicts: bool, wanted: str
) -> None:
    write_json(tmp_path / "interaction.json", made_up_interaction(conflicts))
    row = claims_table(replace(results, folder=tmp_path)).query("claim == @PAIRS").iloc[0]
    assert row["verdict"] == wanted
    bounds = (row["difference low"], row["difference high"])
    assert bounds == ((80.0, 80.0) if conflicts else (0.0, 80.0))
    assert math.isnan(row["p (corrected)"])


def test_an_update_that_costs_more_than_retraining_or_is_merged_with_the_members_is_not_the_papers(
    results: Results,
) -> None:
    members, merges = dict(results.study["members"]), dict(results.study["merges"])
    members["update-40"] = {**members["update-40"], "examples": 2000}
    assert verdicts(claims_table(with_study(results, members=members)), COST) == [REFUTED]
    other = {"members": ["s80", "full", "update-40"], "weights": [1.0, 1.0, 1.0]}
    merges |= {name: merges[name] | other for name in ("updated-40", "updated-w25", "updated-w75")}
    assert verdicts(claims_table(with_study(results, merges=merges)), ON_PAR) == [UNTESTED]


def test_the_text_says_what_the_study_can_say_and_has_a_table_for_every_part(
    results: Results, ledger: pd.DataFrame, tmp_path: Path
) -> None:
    csv, page = (path.read_text(encoding="utf-8") for path in write_claims(results, tmp_path))
    assert "judges no claim of the paper" in page, "one seed"
    assert page.count("\n## ") == ledger["part"].nunique() == 6
    assert "reference |" not in page
    assert "nan" not in page
    assert len(csv.splitlines()) == len(ledger) + 1
    assert not [name for name in unscored() if f" {name} minus" in page]
