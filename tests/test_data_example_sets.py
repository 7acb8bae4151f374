"""Drawing, rows of labelled texts, and the facts of the sets that are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.example_sets import WrittenSets, draw, draw_retrieval, labelled_examples
from boom_utils.data.examples import Labelled, TrainingExample, read_examples, read_jsonl
from boom_utils.data.manifest import load_manifest
from boom_utils.errors import DataError

DATASET = load_manifest("python_docs").dataset("exception_class")


@given(st.lists(st.integers()), st.none() | st.integers(0, 12), st.integers(0, 99))
def test_what_is_drawn_keeps_its_order_and_nothing_comes_twice(items: list[int], limit: int | None, seed: int) -> None:
    places = draw(range(len(items)), limit, np.random.default_rng(seed))
    assert places == sorted(set(places))
    assert len(places) == (len(items) if limit is None else min(limit, len(items)))
    assert draw(items, limit, np.random.default_rng(seed)) == [items[place] for place in places]


@given(
    st.lists(st.sets(st.integers(0, 9), min_size=1), max_size=8),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 12),
    st.integers(0, 99),
)
def test_relevant_documents_are_kept_and_distractors_fill_the_rest(
    relevant: list[set[int]], queries: int | None, documents: int | None, seed: int
) -> None:
    given_places = [sorted(places) for places in relevant]
    asked, kept = draw_retrieval(given_places, 10, (queries, documents), np.random.default_rng(seed))
    needed = {place for query in asked for place in relevant[query]}
    assert len(asked) == min(len(relevant), queries or len(relevant))
    assert needed <= set(kept)
    assert kept == sorted(set(kept))
    assert len(kept) == (10 if documents is None else max(len(needed), min(documents, 10)))


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy")), max_size=14), st.integers(0, 50))
def test_a_text_is_never_its_own_positive_even_if_the_pool_repeats_it(rows: list[tuple[str, str]], seed: int) -> None:
    units = [Labelled(f"{text} {label}", label, "train") for text, label in rows]
    made = list(labelled_examples(units, units, DATASET, np.random.default_rng(seed), 3))
    others = [unit for unit in units if any(unit.label == one.label and unit.text != one.text for one in units)]
    assert [row.query for row in made] == [unit.text for unit in others if len({one.label for one in units}) > 1]
    for row in made:
        assert row.query not in row.pos
        assert {text[-1] for text in row.pos} == {row.query[-1]}
        assert row.query[-1] not in {text[-1] for text in row.neg}
        assert 1 <= len(row.neg) <= 3


def test_facts_of_written_sets_agree_with_their_files(tmp_path: Path) -> None:
    sets = WrittenSets(tmp_path)
    sets.write_examples("train/toy", [TrainingExample("a b", ("c",), ("d e f",)), TrainingExample("g", ("h",))])
    files = {
        "queries": [{"id": "q0", "text": "who is it"}],
        "corpus": [{"id": "d0", "text": "nobody"}, {"id": "d1", "text": "somebody else"}],
        "qrels": [{"query": "q0", "document": "d0"}],
        "top_ranked": [{"query": "q0", "documents": ["d0", "d1"]}],
    }
    sets.write_task("task", files)
    assert len(read_examples(tmp_path / "train" / "toy.jsonl")) == 2
    assert {name: read_jsonl(tmp_path / "evaluation" / "task" / f"{name}.jsonl") for name in files} == files
    assert sets.rows == {"train/toy": 2, "evaluation/task": 1}
    assert sets.trained_on == {"train/toy": ["a b", "g", "c", "d e f", "h"]}
    assert sets.evaluated == {"task": ["who is it", "nobody", "somebody else"]}
    assert sets.sets["train/toy"]["passage_words"] == {"min": 1, "median": 1, "p95": 2.8, "max": 3}
    assert sets.sets["evaluation/task"]["corpus_rows"] == 2


def test_sets_without_rows_are_named_with_what_was_left_out(tmp_path: Path) -> None:
    sets = WrittenSets(tmp_path)
    sets.write_examples("train/full", [TrainingExample("a", ("b",))])
    sets.refuse_empty("more")
    sets.write_examples("train/none", [])
    sets.write_task("nothing", {"test": []})
    with pytest.raises(DataError) as error:
        sets.refuse_empty("take more", {"train/none": {"no positive": 3}})
    assert "no rows in train/none, evaluation/nothing" in str(error.value)
    assert "train/none, left out: {'no positive': 3}" in str(error.value)
    assert "take more" in str(error.value)
