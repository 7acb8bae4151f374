"""Overlap of trained and evaluated texts: the ledger, offending rows, and how far out of domain a task is."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.data.examples import TrainingExample, write_examples
from boom_utils.data.manifest import EvaluationTask
from boom_utils.data.overlap import (
    NearDuplicates,
    NearOptions,
    Overlap,
    character_shingles,
    find_overlap,
    jaccard,
    task_domains,
    word_shingles,
)
from boom_utils.errors import DataError

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
    assert overlap.rows == {"code": 1, "nq": 3}
    first, second = entry(overlap, "task", "nq")["examples"]
    assert first == {"evaluated": "goethe wrote faust.", "trained": "goethe wrote faust.", "similarity": 1.0}
    assert second == {"evaluated": LONG, "trained": ALMOST, "similarity": round(57 / 59, 4)}
    exact = find_overlap(TRAINED, EVALUATED, None)
    assert [(e["exact"], e["near"]) for e in exact.ledger] == [(e["exact"], 0) for e in overlap.ledger]


def test_texts_that_differ_in_case_and_white_space_are_the_same_and_in_more_than_that_are_not() -> None:
    trained = {"nq": [TrainingExample("\tSTRASSE  und\nWeg ", ("x",))]}
    same = find_overlap(trained, {"task": ["straße und weg"], "no": ["strasse, und weg"]}, None)
    assert [(e["evaluation"], e["exact"], e["near"]) for e in same.ledger] == [("no", 0, 0), ("task", 1, 0)]


def test_a_text_that_is_repeated_and_nearly_repeated_counts_once_as_repeated() -> None:
    trained = {"nq": [TrainingExample("q", (ALMOST,)), TrainingExample("q", (LONG,))]}
    found = entry(find_overlap(trained, {"task": [LONG]}), "task", "nq")
    assert (found["exact"], found["near"], found["rows"]) == (1, 0, 2)


def test_a_file_gives_what_its_examples_give_and_its_order_of_sets_does_not_matter(tmp_path: Path) -> None:
    for name, examples in TRAINED.items():
        write_examples(tmp_path / f"{name}.jsonl", examples)
    files: dict[str, Path] = {name: tmp_path / f"{name}.jsonl" for name in reversed(TRAINED)}
    reference = find_overlap(TRAINED, EVALUATED)
    found = find_overlap(files, dict(reversed(EVALUATED.items())))
    assert found.ledger == reference.ledger
    assert [e["evaluation"] for e in found.ledger] == sorted(e["evaluation"] for e in found.ledger)
    assert found.offending("nq").tolist() == reference.offending("nq").tolist() != []


def test_a_training_file_that_is_missing_malformed_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        find_overlap({"nq": tmp_path / "nq.jsonl"}, EVALUATED)
    (tmp_path / "nq.jsonl").write_bytes(b'{"query": "q", "pos": ["p"], "neg": []}\n{"query": NaN}\n')
    with pytest.raises(DataError, match=r"nq\.jsonl:2:11: not JSON"):
        find_overlap({"nq": tmp_path / "nq.jsonl"}, EVALUATED)
    (tmp_path / "nq.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="no training examples"):
        find_overlap({"nq": tmp_path / "nq.jsonl"}, EVALUATED)


def test_memory_is_that_of_the_evaluated_texts_not_of_the_training_file(tmp_path: Path) -> None:
    def rows() -> Iterator[TrainingExample]:
        for number in range(12_000):
            yield TrainingExample(f"query {number}", (f"{number} " * 60,), (f"{number + 1} " * 60,))

    write_examples(tmp_path / "nq.jsonl", rows())
    find_overlap({}, EVALUATED)  # what is made once for all calls
    tracemalloc.start()
    find_overlap({"nq": tmp_path / "nq.jsonl"}, EVALUATED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "nq.jsonl").stat().st_size < peak * 20  # the measure is not of nothing
    short = [
        TrainingExample(f"query {number}", (f"{number} " * 60,), (f"{number + 1} " * 60,)) for number in range(2048)
    ]
    tracemalloc.start()
    find_overlap({"nq": short}, EVALUATED)
    assert peak < 2 * tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


# --- near-duplicates --------------------------------------------------------------------------------------------------

SMALL = NearOptions(threshold=0.5, word_shingle=2, character_shingle=3, short_words=6, permutations=96)


def compared(known: list[str], texts: list[str], options: NearOptions) -> list[list[tuple[int, float]]]:
    """Every text with every known one, in the plain way."""

    def similarity(left: str, right: str) -> float:
        if len(left.split(" ")) < options.short_words:
            size = options.character_shingle
            return jaccard(character_shingles(left, size), character_shingles(right, size))
        return jaccard(word_shingles(left, options.word_shingle), word_shingles(right, options.word_shingle))

    found = [[(number, similarity(one, text)) for number, one in enumerate(known)] for text in texts]
    return [[(number, value) for number, value in row if value >= options.threshold] for row in found]


def altered(text: str, changes: int, rng: np.random.Generator) -> str:
    """The text with words replaced, left out or put in."""
    words = text.split(" ")
    for _ in range(changes):
        place = int(rng.integers(len(words)))
        words[place : place + int(rng.integers(2))] = [f"new{rng.integers(1000)}"] * int(rng.integers(2))
        words = words or ["new"]
    return " ".join(words)


def sentences(count: int, longest: int, rng: np.random.Generator) -> list[str]:
    lengths = rng.integers(1, longest, size=count)
    return list(dict.fromkeys(" ".join(f"w{n}" for n in rng.integers(3000, size=length)) for length in lengths))


few_words = st.lists(st.sampled_from(["ab", "cd", "efg", "h", "éß", "中文"]), min_size=1, max_size=12).map(" ".join)


@pytest.mark.promise(8)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(few_words, max_size=8, unique=True), st.lists(few_words, max_size=8), st.sampled_from([0.3, 0.5, 0.8, 1.0])
)
def test_what_is_found_is_what_comparing_every_pair_finds(known: list[str], texts: list[str], threshold: float) -> None:
    options = NearOptions(threshold, 2, 3, 6, 96)
    assert NearDuplicates(known, options).find(texts) == compared(known, texts, options)


@pytest.mark.promise(8)
@pytest.mark.parametrize("options", [NearOptions(), SMALL], ids=["default", "small"])
def test_of_altered_texts_all_are_found_and_nothing_else(options: NearOptions) -> None:
    rng = np.random.default_rng(0)
    known = sentences(150, 90, rng)
    texts = [altered(text, changes, rng) for text in known for changes in (0, 1, 2, 4)] + sentences(150, 90, rng)
    # Far longer than any short known text, and made of its shingles alone.
    texts += [" ".join([text] * 40) for text in known if len(text.split()) < options.short_words]
    expected = compared(known, texts, options)
    assert sum(map(len, expected)) > 250
    assert sum(value < 1 for row in expected for _, value in row) > 100
    assert NearDuplicates(known, options).find(texts) == expected


def test_the_stated_recall_is_the_measured_one_and_the_default_misses_one_pair_in_ten_thousand() -> None:
    """At the threshold itself, where it is lowest; with few permutations, so that there is something to measure."""
    options = NearOptions(threshold=0.6, word_shingle=1, short_words=1, permutations=6)
    rng = np.random.default_rng(1)
    known = [" ".join(f"k{number}x{word}" for word in range(40)) for number in range(3000)]
    # 30 of 40 words shared and 10 new ones: 30 / 50 shingles of one word.
    texts = [" ".join([*text.split(" ")[:30], *(f"n{rng.integers(10**9)}" for _ in range(10))]) for text in known]
    index = NearDuplicates(known, options)
    found = index.find(texts)
    assert all(row in ([], [(number, 0.6)]) for number, row in enumerate(found))
    assert abs(sum(map(len, found)) / len(known) - index.recall) < 3 * np.sqrt(index.recall * (1 - index.recall) / 3000)
    assert all(NearDuplicates([], NearOptions(one)).recall >= 0.9999 for one in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0))


def test_the_same_is_found_in_every_process() -> None:
    """With few permutations a difference in candidates would show."""
    code = """
from boom_utils.data.overlap import NearDuplicates, NearOptions
known = [" ".join(f"k{n}x{w}" for w in range(40)) for n in range(200)]
texts = [" ".join([*t.split(" ")[:30], *(f"n{w}" for w in range(10))]) for t in known]
print(NearDuplicates(known, NearOptions(0.6, 1, 5, 1, 2)).find(texts))
"""
    said = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, text=True, cwd=PROJECT_ROOT
        )
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert 0 < said.pop().count("0.6") < 200


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": float("nan")}, {"word_shingle": 0}, {"short_words": 2}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        NearOptions(**wrong)  # type: ignore[arg-type]


# --- domains ----------------------------------------------------------------------------------------------------------


def task(name: str, dataset: str, *, held_out: bool = False) -> EvaluationTask:
    return EvaluationTask(id=name, dataset=dataset, family="retrieval", held_out=held_out)


def test_a_task_is_in_domain_if_its_dataset_is_trained_on_and_it_is_not_held_out() -> None:
    overlap = find_overlap(TRAINED, EVALUATED)
    tasks = [task("task", "nq"), task("other", "nq", held_out=True), task("empty", "code")]
    domains = [entry["domain"] for entry in task_domains(tasks, ["nq"], overlap)]
    assert domains == ["in-domain", "out-of-domain", "out-of-domain"]
    assert task_domains(tasks, ["nq", "code"], overlap)[2]["domain"] == "in-domain"


def test_how_much_of_an_out_of_domain_task_was_seen_is_counted_once_a_text() -> None:
    trained = {**TRAINED, "more": [TrainingExample(LONG, ("Goethe wrote Faust.",))]}
    overlap = find_overlap(trained, EVALUATED)
    (facts,) = task_domains([task("task", "fever")], trained, overlap)
    assert facts == {
        "task": "task",
        "dataset": "fever",
        "domain": "out-of-domain",
        "texts": 3,
        "exact": 2,
        "near": 0,
        "seen": round(2 / 3, 6),
        "seen_in": {"more": {"exact": 2, "near": 0}, "nq": {"exact": 1, "near": 1}},
    }
    (only,) = task_domains([task("task", "fever")], ["nq"], overlap)
    assert (only["exact"], only["near"]) == (1, 1)
    (none,) = task_domains([task("empty", "fever")], ["nq"], overlap)
    assert (none["texts"], none["seen"], none["seen_in"]) == (0, 0.0, {})


def test_sets_that_the_overlap_does_not_cover_are_all_named() -> None:
    overlap = find_overlap(TRAINED, EVALUATED)
    with pytest.raises(DataError, match=r"(?s)evaluation set 'sts', training set 'fiqa'"):
        task_domains([task("sts", "nq")], ["nq", "fiqa"], overlap)
