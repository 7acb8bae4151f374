"""The claims ledger: every verdict is reached from scores alone, effects may be reversed, and nothing is typed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_results import GAIN, made_up_interaction, made_up_scores, unscored, write_made_up_results

from boom_utils.artifacts import write_json
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.claim_list import ABOVE, ALIKE, AT_LEAST, BELOW, Expected, Pair, all_claims
from boom_utils.reporting.claims import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    UNTESTED,
    Finding,
    claims_table,
    examine,
    verdict,
    write_claims,
)
from boom_utils.reporting.published import NOT_FILLED, PaperCell
from boom_utils.reporting.results import Results, read_results

BOOM = "BOOM of samples {20, 40, 60, 80, 100} % beats batch-level shuffling"
ALIKE_METHODS = "Multi-SLERP and TIES are equally good"
ON_PAR = "A merged update is on par with retraining on everything, or better"
COST = "A merged update trains less than retraining"
PAIRS = "Fewer than half of all pairs of datasets disturb one another"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up_results(tmp_path_factory.mktemp("made-up"))


@pytest.fixture(scope="module")
def ledger(folder: Path) -> pd.DataFrame:
    return claims_table(read_results(folder))


def changed(folder: Path, gain: dict[str, float]) -> Results:
    """The same results with other scores of some models."""
    results, samples = read_results(folder), {}
    for model, value in gain.items():
        samples |= made_up_scores(model, {**GAIN, model: value})
    return replace(results, numbers=replace(results.numbers, samples={**results.numbers.samples, **samples}))


def verdicts(frame: pd.DataFrame, claim: str) -> list[str]:
    return frame.loc[frame["claim"] == claim, "verdict"].to_list()


def test_a_claim_is_supported_where_the_models_differ_as_it_says(ledger: pd.DataFrame) -> None:
    assert verdicts(ledger, BOOM) == [SUPPORTED, SUPPORTED]
    assert verdicts(ledger, "Batch-level shuffling beats one dataset after another") == [SUPPORTED, SUPPORTED]
    assert verdicts(ledger, "Merging one model a cluster does not reach batch-level shuffling") == [SUPPORTED] * 2
    assert verdicts(ledger, "Model Stock is worse than SLERP") == [SUPPORTED] * 2
    assert verdicts(ledger, ALIKE_METHODS) == [SUPPORTED] * 2
    assert verdicts(ledger, ON_PAR) == [SUPPORTED] * 3
    assert verdicts(ledger, COST) == [SUPPORTED]


def test_a_reversed_effect_is_not_supported(folder: Path, tmp_path: Path) -> None:
    reversed_gains = {"boom": -0.03, "seq-datasets": 0.03, "clusters": 0.04, "ties": 0.03, "updated-40": -0.06}
    frame = claims_table(changed(folder, reversed_gains))
    assert verdicts(frame, BOOM) == [REFUTED, REFUTED]
    assert verdicts(frame, "Batch-level shuffling beats one dataset after another") == [REFUTED] * 2
    assert verdicts(frame, "Merging one model a cluster does not reach batch-level shuffling") == [REFUTED] * 2
    assert verdicts(frame, ALIKE_METHODS) == [REFUTED] * 2
    old, new, other = verdicts(frame, ON_PAR)
    assert (old, new, other) == (REFUTED, SUPPORTED, REFUTED), "in this made-up world forgetting helps the new task"


def test_what_the_interval_leaves_open_is_inconclusive(folder: Path, tmp_path: Path) -> None:
    frame = claims_table(changed(folder, {"boom": 0.0, "ties": -0.05}))
    assert verdicts(frame, BOOM) == [INCONCLUSIVE] * 2
    assert verdicts(frame, ALIKE_METHODS)[0] == INCONCLUSIVE, "a difference of about the margin is neither"


def test_a_claim_without_models_is_listed_as_not_tested(folder: Path, ledger: pd.DataFrame) -> None:
    assert verdicts(ledger, "Model Stock is worse than the Karcher mean") == [UNTESTED]
    study = read_results(folder).study
    members = {name: study["members"][name] for name in ("full", "s80")}
    models = ["random", "base", "s80", "full"]
    bare = Results(folder / "nowhere", {**study, "members": members, "merges": {}, "models": models})
    frame = claims_table(bare)
    assert set(frame["verdict"]) == {UNTESTED}
    assert frame["claim"].to_list() == [claim.text for claim in all_claims()]
    assert frame["difference"].isna().all()


def test_every_row_says_where_the_claim_is_known_from_and_what_limits_it(ledger: pd.DataFrame) -> None:
    assert ledger["known from"].str.startswith(("primary: ", "secondary: ")).all()
    compared = ledger[ledger["unit"] == "points"]
    assert compared["what limits it"].str.contains("one seed: intervals over queries only").all()
    assert (compared["detectable"] > 0).all()
    assert (ledger["what limits it"] != "").all()


def test_p_values_are_corrected_over_all_rows_of_the_ledger(folder: Path, ledger: pd.DataFrame) -> None:
    results = read_results(folder)
    rows = int((ledger["unit"] == "points").sum())
    smallest = 2 / (results.bootstrap.draws + 1)
    row = ledger[ledger["claim"] == BOOM].iloc[0]
    assert row["p (Holm)"] == pytest.approx(rows * smallest, abs=1e-4)


def test_a_row_that_is_certain_only_by_itself_is_inconclusive_and_says_so(folder: Path, tmp_path: Path) -> None:
    results = changed(folder, {"boom": 0.0034})
    pair = Pair("boom", "full", "in-domain", tuple(results.tasks("in-domain")))
    found = examine(results, pair, ABOVE)
    alone = found.comparison.p_value
    assert 0.05 / 40 < alone < 0.05, "else this test shows nothing"
    assert verdict(found, ABOVE, alone) == SUPPORTED
    row = claims_table(results).query("claim == @BOOM").iloc[0]
    assert row["verdict"] == INCONCLUSIVE
    assert "supported before the correction for all rows" in row["what limits it"]


def test_the_p_value_of_a_difference_is_the_two_sided_one(folder: Path) -> None:
    results = read_results(folder)
    for model in ("boom", "mean", "boom-halves"):
        pair = Pair(model, "full", "in-domain", tuple(results.tasks("in-domain")))
        plain = results.comparison(model, "full", [*pair.tasks]).p_value
        assert examine(results, pair, ABOVE).comparison.p_value == plain
        assert examine(results, pair, BELOW).comparison.p_value == plain


ESTIMATES: list[tuple[Expected, Estimate, bool, str]] = [
    (ALIKE, Estimate(0.0, -0.009, 0.009), True, SUPPORTED),
    (ALIKE, Estimate(0.005, 0.001, 0.009), True, SUPPORTED),
    (ALIKE, Estimate(0.005, 0.001, 0.011), True, INCONCLUSIVE),
    (ALIKE, Estimate(0.02, 0.011, 0.03), False, REFUTED),
    (ALIKE, Estimate(-0.02, -0.03, -0.011), False, REFUTED),
    (ALIKE, Estimate(0.02, 0.009, 0.03), False, INCONCLUSIVE),
    (AT_LEAST, Estimate(0.5, 0.4, 0.6), True, SUPPORTED),
    (AT_LEAST, Estimate(-0.005, -0.009, -0.001), True, SUPPORTED),
    (AT_LEAST, Estimate(-0.03, -0.04, -0.011), False, REFUTED),
    (AT_LEAST, Estimate(-0.01, -0.02, 0.0), True, INCONCLUSIVE),
    (ABOVE, Estimate(0.01, 0.001, 0.02), True, SUPPORTED),
    (ABOVE, Estimate(-0.01, -0.02, -0.001), False, REFUTED),
    (BELOW, Estimate(-0.01, -0.02, -0.001), True, SUPPORTED),
    (BELOW, Estimate(0.01, -0.001, 0.02), False, INCONCLUSIVE),
]


@pytest.mark.parametrize(("expected", "estimate", "holds", "wanted"), ESTIMATES)
def test_a_verdict_needs_the_whole_interval_on_its_side(
    folder: Path, expected: Expected, estimate: Estimate, holds: bool, wanted: str
) -> None:
    results = read_results(folder)
    template = results.comparison("boom", "full", results.tasks("in-domain"))
    found = Finding(replace(template, estimate=estimate), holds)
    assert verdict(found, expected, adjusted=0.001) == wanted
    assert verdict(found, expected, adjusted=0.06) == INCONCLUSIVE


def test_equality_is_not_claimed_from_the_lack_of_a_difference(folder: Path) -> None:
    results = read_results(folder)
    wide = Finding(replace(results.comparison("boom", "full", ["code"]), estimate=Estimate(0.0, -0.05, 0.05)), True)
    assert verdict(wide, ALIKE, adjusted=0.0001) == INCONCLUSIVE


@pytest.mark.parametrize(("conflicts", "wanted"), [(True, REFUTED), (False, INCONCLUSIVE)])
def test_conflicting_pairs_are_counted_with_what_their_intervals_leave_open(
    folder: Path, tmp_path: Path, conflicts: bool, wanted: str
) -> None:
    study = read_results(folder)
    write_json(tmp_path / "interaction.json", made_up_interaction(conflicts))
    row = claims_table(replace(study, folder=tmp_path)).query("claim == @PAIRS").iloc[0]
    assert row["verdict"] == wanted
    bounds = (row["difference low"], row["difference high"])
    assert bounds == ((80.0, 80.0) if conflicts else (0.0, 80.0))
    assert math.isnan(row["p (Holm)"])


def test_an_update_that_costs_more_than_retraining_is_not_supported(folder: Path) -> None:
    study = json.loads((folder / "study.json").read_text())
    study["members"]["update-40"]["examples"] = 2000
    assert verdicts(claims_table(replace(read_results(folder), study=study)), COST) == [REFUTED]


def test_an_update_merged_with_the_members_themselves_is_not_the_papers(folder: Path) -> None:
    study = json.loads((folder / "study.json").read_text())
    for name in ("updated-40", "updated-w25", "updated-w75"):
        study["merges"][name] |= {"members": ["s80", "full", "update-40"], "weights": [1.0, 1.0, 1.0]}
    assert verdicts(claims_table(replace(read_results(folder), study=study)), ON_PAR) == [UNTESTED]


def test_too_few_draws_for_so_many_rows_are_said_and_support_nothing(folder: Path) -> None:
    study: dict[str, Any] = json.loads((folder / "study.json").read_text())
    study["evaluation"]["bootstrap_draws"] = 300
    frame = claims_table(replace(read_results(folder), study=study))
    compared = frame[frame["unit"] == "points"]
    assert set(compared["verdict"]) == {INCONCLUSIVE}
    assert compared["what limits it"].str.contains("300 draws are too few").all()


def test_the_page_counts_the_verdicts_and_has_a_table_for_every_part(
    folder: Path, ledger: pd.DataFrame, tmp_path: Path
) -> None:
    results = read_results(folder)
    csv, page = (path.read_text(encoding="utf-8") for path in write_claims(results, tmp_path))
    assert f"{(ledger['verdict'] == SUPPORTED).sum()} supported" in page
    assert page.count("\n## ") == ledger["part"].nunique() == 6
    assert "reference |" not in page
    assert "nan" not in page
    assert len(csv.splitlines()) == len(ledger) + 1
    again = write_claims(results, tmp_path / "again")
    assert again[1].read_text(encoding="utf-8") == page
    assert not [name for name in unscored() if f" {name} minus" in page]


def test_the_papers_difference_stands_beside_ours_once_a_reader_filled_both_values(folder: Path) -> None:
    results = read_results(folder)

    def cell(row: str, value: float, column: str = "in-domain") -> PaperCell:
        return PaperCell("2", row, column, value, 7)

    compared = "boom minus full, in-domain"

    def said(*cells: PaperCell) -> str:
        return str(claims_table(results, cells).set_index("comparison").loc[compared, "paper"])

    assert said() == said(cell("boom", 64.5)) == NOT_FILLED
    assert said(cell("boom", 64.5), cell("full", 64.25, "out-of-domain")) == NOT_FILLED
    assert said(cell("boom", 64.5), cell("full", 64.25)) == "+0.25 (table 2)"
