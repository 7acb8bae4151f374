"""Overlap of trained and evaluated texts: the ledger, offending rows, and how far out of domain a task is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import EvaluationTask
from boom_utils.data.overlap import (
    CHARACTERS,
    SHORT,
    THRESHOLD,
    WORDS,
    KnownTexts,
    Overlap,
    character_shingles,
    find_overlap,
    jaccard,
    task_domains,
    word_shingles,
)

LONG = " ".join(f"word{number}" for number in range(60))
ALMOST = LONG.replace("word0 ", "other ")
TRAINED = {
    "nq": [
        TrainingExample("who wrote faust", ("Goethe  wrote FAUST.",), ("a text about boats",)),
        TrainingExample("what is a boat", ("a text about boats", ALMOST), ()),
        TrainingExample("nothing else", ("of that",), ("Goethe wrote Faust.", "of that")),
    ],
    "code": [TrainingExample("sort a list", ("sorted(values)",))],
}
EVALUATED = {
    "task": ["Goethe wrote Faust.", "goethe wrote faust.", LONG, "reverse a string", ""],
    "other": [ALMOST, "never seen"],
    "empty": ["", " \n"],
}


def entry(overlap: Overlap, task: str, name: str) -> dict[str, Any]:
    (found,) = [e for e in overlap.ledger if (e["evaluation"], e["trained_on"]) == (task, name)]
    return found


@pytest.mark.promise(8)
def test_the_ledger_counts_planted_repeats_of_every_pair_of_sets() -> None:
    overlap = find_overlap(TRAINED, EVALUATED)
    counts = {
        (e["evaluation"], e["trained_on"]): (e["exact"], e["near"], e["rows"], len(e["examples"]))
        for e in overlap.ledger
    }
    assert counts == {
        ("task", "nq"): (1, 1, 3, 2),
        ("task", "code"): (0, 0, 0, 0),
        ("other", "nq"): (1, 0, 1, 1),
        ("other", "code"): (0, 0, 0, 0),
        ("empty", "nq"): (0, 0, 0, 0),
        ("empty", "code"): (0, 0, 0, 0),
    }
    assert [overlap.offending(name).tolist() for name in ("code", "nq")] == [[], [0, 1, 2]]
    assert overlap.texts == {"empty": 0, "other": 2, "task": 3}
    first, second = entry(overlap, "task", "nq")["examples"]
    assert first == {"evaluated": "goethe wrote faust.", "trained": "goethe wrote faust.", "similarity": 1.0}
    assert second == {"evaluated": LONG, "trained": ALMOST, "similarity": round(57 / 59, 4)}
    exact = find_overlap(TRAINED, EVALUATED, near=False)
    assert [(e["exact"], e["near"]) for e in exact.ledger] == [(e["exact"], 0) for e in overlap.ledger]


def test_texts_that_differ_in_case_and_white_space_are_the_same_and_in_more_than_that_are_not() -> None:
    trained = {"nq": [TrainingExample("\tSTRASSE  und\nWeg ", ("x",))]}
    same = find_overlap(trained, {"task": ["straße und weg"], "no": ["strasse, und weg"]}, near=False)
    assert [(e["evaluation"], e["exact"], e["near"]) for e in same.ledger] == [("no", 0, 0), ("task", 1, 0)]


# --- near-duplicates --------------------------------------------------------------------------------------------------


def compared(known: list[str], texts: list[str]) -> dict[str, dict[str, float]]:
    """Every text with every known one, in the plain way."""

    def similarity(left: str, right: str) -> float:
        if left == right:
            return 1.0
        if len(left.split(" ")) < SHORT:
            return jaccard(character_shingles(left, CHARACTERS), character_shingles(right, CHARACTERS))
        return jaccard(word_shingles(left, WORDS), word_shingles(right, WORDS))

    found = {text: {one: similarity(one, text) for one in known} for text in texts}
    near = {text: {one: value for one, value in row.items() if value >= THRESHOLD} for text, row in found.items()}
    return {text: row for text, row in near.items() if row}


few_words = st.lists(st.sampled_from(["ab", "cd", "efg", "h", "éß", "中文"]), min_size=1, max_size=34).map(" ".join)


@pytest.mark.promise(8)
@settings(max_examples=100)
@given(st.lists(few_words, max_size=8, unique=True), st.lists(few_words, max_size=8))
def test_what_is_found_is_what_comparing_every_pair_finds(known: list[str], texts: list[str]) -> None:
    assert KnownTexts(known).find(texts) == compared(known, texts)


# --- domains ----------------------------------------------------------------------------------------------------------


def task(name: str, dataset: str, *, held_out: bool = False) -> EvaluationTask:
    return EvaluationTask(id=name, dataset=dataset, family="retrieval", held_out=held_out)


def test_a_task_is_in_domain_if_its_dataset_is_trained_on_and_it_is_not_held_out() -> None:
    overlap = find_overlap(TRAINED, EVALUATED)
    tasks = [task("task", "nq"), task("other", "nq", held_out=True), task("empty", "code")]
    domains = [entry["domain"] for entry in task_domains(tasks, ["nq"], overlap)]
    assert domains == ["in-domain", "out-of-domain", "out-of-domain"]
    assert task_domains(tasks, ["nq", "code"], overlap)[2]["domain"] == "in-domain"
