"""From records to training rows: each shape's rule, and a reason for everything that is left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import load_manifest
from boom_utils.data.rows import training_rows
from boom_utils.data.text_files import COLUMNS

DATASET = load_manifest("open_text").dataset("medquad")
SHAPES = ("pairs", "candidates", "labelled", "graded", "judged_pairs", "nli")


def made(
    shape: str, *rows: tuple[Any, ...], negatives: int = 2, limit: int | None = None, seed: int = 0
) -> tuple[list[TrainingExample], Counter[str]]:
    table = pa.table({name: list(column) for name, column in zip(COLUMNS[shape], zip(*rows, strict=True), strict=True)})
    return training_rows(shape, table, DATASET, negatives, limit, np.random.default_rng(seed))  # type: ignore[arg-type]


PAIRS = [("who sat", "the cat sat"), ("Who  sat", "a dog sat"), ("what is red", "the mat is red")]


def test_pairs_of_one_query_are_one_row_and_what_is_of_no_use_is_counted() -> None:
    rows, dropped = made("pairs", *PAIRS, PAIRS[0], ("The cat sat", "the cat sat"))
    assert [(row.query, row.pos, set(row.neg)) for row in rows] == [
        ("who sat", ("the cat sat", "a dog sat"), {"the mat is red"}),
        ("what is red", ("the mat is red",), {"the cat sat", "a dog sat"}),
    ]
    assert (rows[0].prompt, rows[0].type) == (DATASET.prompt, DATASET.example_type)
    assert dropped == {"repeated pair": 1, "both texts are equal": 1, "query without a positive": 1}


def row_of(pair: tuple[str, str]) -> tuple[Any, ...]:
    return pair[0], (pair[1],), (), DATASET.prompt, DATASET.example_type


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
    rows, _ = made("candidates", ("q", "a", "0"), ("q", "a", "1"), ("q", "b", "0"))
    assert [(row.pos, row.neg) for row in rows] == [(("a",), ("b",))], "a candidate of both labels is right"


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


def test_graded_pairs_take_low_scores_and_the_nearest_sentences_of_low_pairs_as_negatives() -> None:
    rows, dropped = made(
        "graded",
        ("a man runs", "a man is running", 4.0),
        ("a man runs", "a man walks", 2.5),
        ("a bird sings", "a man runs", 2.0),
        ("a man walks", "a ship sinks", 0.0),
        ("snow falls", "it rains", 2.9),
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


def test_negatives_of_graded_pairs_are_near_to_the_query() -> None:
    far = [(f"ship {number} sinks", f"{number} birds sing", 0.0) for number in range(40)]
    near = [("a man runs in a park", "snow falls", 1.0), ("the man in the park", "rain falls", 1.0)]
    rows, _ = made("graded", ("a man runs in the park", "somebody jogs", 3.0), *far, *near, negatives=2)
    assert {*rows[0].neg} == {"a man runs in a park", "the man in the park"}


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
        (row,), dropped = made("nli", *records, seed=seed, negatives=7)
        assert (row.query, row.pos, len(row.neg)) == ("he sleeps", ("he rests", "he is not awake"), 1)
        seen |= set(row.neg)
        assert dropped == {"query without a negative": 1, "query without a positive": 1}
    assert seen == {"he runs", "he jumps"}


def test_labelled_texts_answer_each_other_within_a_label_and_those_of_no_use_are_counted() -> None:
    records = [(f"{label} {number}", label) for label in ("joy", "fear", "love") for number in range(6)]
    rows, dropped = made("labelled", *records, negatives=4)
    assert len(rows) == 18 and not dropped
    for row in rows:
        assert len(row.pos) == 3 and len(set(row.neg)) == 4
    records = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("A", "x"), ("two", "x"), ("Two", "y"), ("lone", "z")]
    rows, dropped = made("labelled", *records)
    assert [row.query for row in rows] == ["a", "b", "c", "d"]
    assert dropped == {"repeated text": 2, "text of two labels": 1, "only text of its label, or no other label": 1}
    assert made("labelled", ("a", "x"), ("b", "x"))[0] == []
