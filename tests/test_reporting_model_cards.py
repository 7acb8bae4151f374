"""Scores on a model card: those of the tables, with intervals, for readers and for the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from made_up_results import score_rows, with_study

from boom_utils.cards import Card, write_card
from boom_utils.errors import ResultsError
from boom_utils.reporting.model_cards import named_card, read_card, scored_card
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import NO_BREAK_SPACE


@pytest.fixture
def card(tmp_path: Path) -> str:
    write_card(tmp_path, Card("boom", "Merged.", {}, merged=True))
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_scored_card_has_the_scores_of_the_tables_with_intervals(results: Results, card: str) -> None:
    text = scored_card(card, results, "boom")
    gap = results.difference("boom", "full", results.tasks("in-domain"))
    for estimate, sign in ((results.domain_mean("boom", "in-domain"), ""), (gap, "+")):
        value, low, high = (f"{100 * number:{sign}.1f}" for number in (estimate.value, estimate.low, estimate.high))
        assert f"| {value} [{low}, {high}] |" in text.replace(NO_BREAK_SPACE, " ")
    assert text.index("## Scores") < text.index("## Limits") < text.index("## Citation")
    assert "not with other seeds" in text
    assert "minus full" not in scored_card(card, results, "full")
    assert named_card('SentenceTransformer("OWNER/NAME")', "me/mine") == 'SentenceTransformer("me/mine")'


def test_a_card_is_of_one_model_also_where_tables_pool_its_seeds(results: Results, card: str) -> None:
    pooled = with_study(results, seeds={"boom": ["boom", "boom-equal"]})
    assert pooled.domain_mean("boom", "in-domain") != results.domain_mean("boom", "in-domain")
    assert scored_card(card, pooled, "boom") == scored_card(card, results, "boom")


def test_scores_of_before_are_replaced_and_the_rest_of_a_card_stays(results: Results, card: str) -> None:
    once = scored_card(card, results, "boom")
    assert scored_card(once, results, "boom") == once
    other = scored_card(once, results, "full")
    assert other == scored_card(card, results, "full")
    made, own = read_card(once), read_card(card)
    assert {**made.data.to_dict(), "model-index": None} == {**own.data.to_dict(), "model-index": None}
    before, after = own.text.split("## Limits")
    assert made.text.startswith(before)
    assert made.text.endswith("## Limits" + after)


def test_the_hub_library_reads_one_result_a_task_in_the_names_of_mteb(results: Results, card: str) -> None:
    told = {"dataset_revision": "abc", "scores": {"test": [{"hf_subset": "default", "main_score": 0.5}]}}
    told_of = score_rows({("boom", "code"): results.numbers.samples["boom", "code"]}, told)
    results = replace(results, numbers=replace(results.numbers, scores=told_of))
    data = ModelCard(scored_card(card, results, "boom")).data
    assert data.model_name == "boom"
    found = {one.dataset_name: one for one in data.eval_results}
    assert [*found] == [task["name"] for task in results.study["tasks"]]
    code = found["code"]
    assert (code.task_type, code.metric_type, code.dataset_type) == ("Retrieval", "ndcg_at_10", "boom/code")
    assert (code.dataset_config, code.dataset_split, code.dataset_revision) == ("default", "test", "abc")
    assert code.metric_value == pytest.approx(100 * results.mean("boom", ["code"]).value, abs=1e-3)


def test_a_card_of_others_gets_scores_too_and_no_scores_and_a_broken_front_matter_are_errors(
    results: Results, card: str
) -> None:
    text = scored_card("# Mine\n\nA text.\n", results, "boom")
    assert text.startswith("---\nmodel-index:") and "# Mine\n\nA text.\n\n## Scores\n" in text
    with pytest.raises(ResultsError, match=r"no scores of 'bom'.*'boom'"):
        scored_card(card, results, "bom")
    for broken in ("---\n- a list\n---\n\n# x\n", "---\na: [\n---\n\n# x\n"):
        with pytest.raises(ResultsError, match="front matter"):
            scored_card(broken, results, "boom")
