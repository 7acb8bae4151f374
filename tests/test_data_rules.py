"""From records to training rows: each shape's rule, and a reason for everything that is left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import Dataset
from boom_utils.data.record_tables import as_examples, evaluated_part, part_of, without_texts
from boom_utils.data.rules import RowOptions, training_rows
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError

NAMES = {
    "pairs": ("query", "passage"),
    "candidates": ("query", "passage", "label"),
    "labelled": ("text", "label"),
    "graded": ("sentence1", "sentence2", "score"),
    "judged_pairs": ("sentence1", "sentence2", "label"),
    "nli": ("sentence1", "sentence2", "label"),
}
DATASET = Dataset(
    id="toy",
    family="retrieval",
    role="train",
    prompt="Given a question, find its answer.",
    in_batch_negatives=True,
    halve_batch=False,
    instruction_on_passages=False,
    group_size="train_group_size",
    example_type="normal",
    description="Rows made by hand.",
)


def table(shape: str, *rows: tuple[Any, ...]) -> pa.Table:
    return pa.table({name: list(column) for name, column in zip(NAMES[shape], zip(*rows, strict=True), strict=True)})


def made(
    shape: str, *rows: tuple[Any, ...], negatives: int = 2, limit: int | None = None, seed: int = 0
) -> tuple[list[TrainingExample], Counter[str]]:
    options = RowOptions(DATASET, negatives, limit)
    return training_rows(shape, table(shape, *rows), options, np.random.default_rng(seed))  # type: ignore[arg-type]


def texts(rows: list[TrainingExample]) -> list[tuple[str, tuple[str, ...], set[str]]]:
    return [(row.query, row.pos, set(row.neg)) for row in rows]


PAIRS = [("who sat", "the cat sat"), ("Who  sat", "a dog sat"), ("what is red", "the mat is red")]


def test_pairs_of_one_query_are_one_row_and_negatives_are_other_passages() -> None:
    rows, dropped = made("pairs", *PAIRS)
    assert texts(rows) == [
        ("who sat", ("the cat sat", "a dog sat"), {"the mat is red"}),
        ("what is red", ("the mat is red",), {"the cat sat", "a dog sat"}),
    ]
    assert (rows[0].prompt, rows[0].type) == (DATASET.prompt, "normal")
    assert not dropped


def test_pairs_of_no_use_are_counted() -> None:
    rows, dropped = made("pairs", *PAIRS, PAIRS[0], ("The cat sat", "the cat sat"))
    assert len(rows) == 2
    assert dropped == {"repeated pair": 1, "both texts are equal": 1, "query without a positive": 1}


def test_a_query_is_never_its_own_negative() -> None:
    rows, _ = made("pairs", ("the cat sat", "it sat"), ("other", "The cat  sat"), negatives=7)
    assert all(row.query.casefold() not in {text.casefold() for text in row.neg} for row in rows)


def test_a_row_that_finds_no_negative_is_dropped_unless_none_are_wanted() -> None:
    assert made("pairs", PAIRS[0])[1] == {"query without a negative": 1}
    rows, dropped = made("pairs", PAIRS[0], negatives=0)
    assert texts(rows) == [("who sat", ("the cat sat",), set())]
    assert not dropped


def test_candidates_keep_their_own_negatives_and_are_filled_by_bm25() -> None:
    rows, dropped = made(
        "candidates",
        ("who sat", "the cat sat", "1"),
        ("who sat", "no idea", "0"),
        ("what is red", "the mat is red", "1"),
        ("what is red", "roses", "0"),
        ("what is red", "blood", "0"),
        ("what is red", "who sat on what", "0"),
        ("why", "because", "0"),
        ("why", "The mat is red", "0"),
    )
    assert [row.query for row in rows] == ["who sat", "what is red"]
    assert rows[0].neg == ("no idea", "who sat on what")
    assert set(rows[1].neg) < {"roses", "blood", "who sat on what"} and len(rows[1].neg) == 2
    assert dropped == {"query without a positive": 1}


def test_a_candidate_of_both_labels_counts_as_right() -> None:
    rows, _ = made("candidates", ("q", "a", "0"), ("q", "a", "1"), ("q", "b", "0"))
    assert texts(rows) == [("q", ("a",), {"b"})]


def test_judged_pairs_go_one_way_and_know_their_differences_both_ways() -> None:
    rows, dropped = made(
        "judged_pairs",
        ("he runs", "he is running", "1"),
        ("he sits", "he runs", "0"),
        ("he is running", "she swims", "0"),
        ("it rains", "it is raining", "1"),
        ("it pours", "it rains", "1"),
    )
    found = {row.query: row for row in rows}
    assert list(found) == ["he runs", "it rains", "it pours"]
    assert found["he runs"].neg[0] == "he sits"
    assert "it pours" not in found["it rains"].neg, "they mean the same"
    assert dropped == {"query without a positive": 2}


def test_graded_pairs_take_low_scores_and_random_sentences_of_low_pairs_as_negatives() -> None:
    rows, dropped = made(
        "graded",
        ("a man runs", "a man is running", 4.0),
        ("a man runs", "a man walks", 2.5),
        ("a bird sings", "a man runs", 2.0),
        ("a man walks", "a ship sinks", 0.0),
        ("snow falls", "it rains", 3.9),
        negatives=7,
    )
    assert [(row.query, row.pos) for row in rows] == [
        ("a man runs", ("a man is running",)),
        ("a man is running", ("a man runs",)),
    ]
    assert rows[0].neg[0] == "a bird sings"
    assert set(rows[0].neg) == {"a bird sings", "a ship sinks"}, "a man walks has a score above 2 with the query"
    assert set(rows[1].neg) == {"a bird sings", "a ship sinks", "a man walks"}
    assert dropped == {"query without a positive": 5}


def test_nli_gives_entailed_hypotheses_and_exactly_one_contradiction() -> None:
    records = [
        ("he sleeps", "he rests", "entailment"),
        ("he sleeps", "he is not awake", "entailment"),
        ("he sleeps", "he runs", "contradiction"),
        ("he sleeps", "he jumps", "contradiction"),
        ("he sleeps", "he is old", "neutral"),
        ("it rains", "it is wet", "entailment"),
        ("she sings", "she is mute", "contradiction"),
    ]
    seen = set()
    for seed in range(8):
        rows, dropped = made("nli", *records, seed=seed, negatives=7)
        assert [(row.query, row.pos) for row in rows] == [("he sleeps", ("he rests", "he is not awake"))]
        assert len(rows[0].neg) == 1
        seen |= set(rows[0].neg)
        assert dropped == {"query without a negative": 1, "query without a positive": 1}
    assert seen == {"he runs", "he jumps"}


def test_labelled_texts_answer_each_other_within_a_label() -> None:
    records = [(f"{label} {number}", label) for label in ("joy", "fear", "love") for number in range(6)]
    rows, dropped = made("labelled", *records, negatives=4)
    assert len(rows) == 18
    for row in rows:
        label = row.query.split()[0]
        assert len(row.pos) == 3 and row.query not in row.pos
        assert {text.split()[0] for text in row.pos} == {label}
        assert len(set(row.neg)) == 4 and label not in {text.split()[0] for text in row.neg}
    assert not dropped


def test_labelled_texts_of_no_use_are_counted() -> None:
    records = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("A", "x"), ("two", "x"), ("Two", "y"), ("lone", "z")]
    rows, dropped = made("labelled", *records)
    assert [row.query for row in rows] == ["a", "b", "c", "d"]
    assert dropped == {"repeated text": 2, "text of two labels": 1, "only text of its label, or no other label": 1}
    assert made("labelled", ("a", "x"), ("b", "x"))[0] == []


@pytest.mark.parametrize("shape", NAMES)
def test_the_same_seed_gives_the_same_rows_and_a_limit_draws_among_them(shape: str) -> None:
    low_high = {"candidates": "01", "judged_pairs": "01", "nli": ("contradiction", "entailment"), "graded": (1.0, 5.0)}
    records: list[tuple[Any, ...]] = []
    for number in range(60):
        one, other = f"question {number // 4} of all", f"answer {number} word {number % 7}"
        if shape == "labelled":
            records.append((other, f"label {number % 3}"))
        else:
            records.append((one, other, low_high[shape][number % 4 == 3]) if shape in low_high else (one, other))
    rows, _ = made(shape, *records)
    assert rows == made(shape, *records)[0]
    assert rows != made(shape, *records, seed=1)[0]
    few, _ = made(shape, *records, limit=5)
    assert len(few) == 5
    order = [row.query for row in rows]
    assert [order.index(row.query) for row in few] == sorted(order.index(row.query) for row in few)
    assert len({row.query for row in few}) == 5


def test_a_collection_that_is_only_evaluated_gives_no_rows() -> None:
    with pytest.raises(DataError, match=r"shape 'judged' cannot be trained on[\s\S]*toy"):
        training_rows("judged", table("pairs", *PAIRS), RowOptions(DATASET, 7), np.random.default_rng(0))


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_part_that_is_missing_is_named() -> None:
    raw = Raw("pairs", {"train": table("pairs", ("a", "b"))}, ())
    with pytest.raises(DataError, match=r"'toy' has no part 'test'[\s\S]*train"):
        evaluated_part(raw, "toy")
    with pytest.raises(DataError, match=r"no part 'dev'"):
        part_of(raw, "dev", "toy")


def test_test_is_evaluated_where_there_is_one_and_dev_otherwise() -> None:
    parts = {name: table("pairs", (name, "x")) for name in ("train", "dev", "test")}
    assert evaluated_part(Raw("pairs", parts, ()), "toy")["query"].to_pylist() == ["test"]
    del parts["test"]
    assert evaluated_part(Raw("pairs", parts, ()), "toy")["query"].to_pylist() == ["dev"]


def test_unwanted_texts_take_their_record_with_them() -> None:
    dropped: Counter[str] = Counter()
    records = table("pairs", ("a", "x"), ("b", "SEEN  text"), ("seen text", "z"), ("c", "y"))
    assert without_texts(records, {"seen text"}, "seen", dropped).to_pylist() == [
        {"query": "a", "passage": "x"},
        {"query": "c", "passage": "y"},
    ]
    assert dropped == {"seen": 2}
    empty = records.slice(0, 0)
    assert without_texts(empty, {"seen text"}, "seen", dropped).num_rows == 0


def test_records_as_examples_hold_every_text_and_no_label() -> None:
    assert as_examples(table("nli", ("a", "b", "neutral"))) == [TrainingExample("a", ("b",))]
    assert as_examples(table("labelled", ("a", "x"))) == [TrainingExample("a", ())]
