"""Overlap of trained and evaluated texts: the ledger, offending rows, and how far out of domain a task is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boom_utils.data.examples import TrainingExample, write_examples
from boom_utils.data.manifest import EvaluationTask
from boom_utils.data.overlap import Overlap, OverlapOptions, find_overlap, task_domains
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
    assert {name: rows.tolist() for name, rows in overlap.offending.items()} == {"code": [], "nq": [0, 1, 2]}
    assert all(rows.dtype == np.uint32 for rows in overlap.offending.values())
    assert overlap.texts == {"empty": 0, "other": 2, "task": 3}
    assert overlap.rows == {"code": 1, "nq": 3}


def test_examples_show_both_texts_and_how_similar_they_are() -> None:
    first, second = entry(find_overlap(TRAINED, EVALUATED), "task", "nq")["examples"]
    assert first == {"evaluated": "goethe wrote faust.", "trained": "goethe wrote faust.", "similarity": 1.0}
    assert (second["evaluated"], second["trained"]) == (LONG, ALMOST)
    assert second["similarity"] == round(57 / 59, 4)


def test_texts_that_differ_in_case_and_white_space_are_the_same_and_in_more_than_that_are_not() -> None:
    trained = {"nq": [TrainingExample("\tSTRASSE  und\nWeg ", ("x",))]}
    exact = OverlapOptions(near=False)
    same = find_overlap(trained, {"task": ["straße und weg"], "no": ["strasse, und weg"]}, exact)
    assert [(e["evaluation"], e["exact"], e["near"]) for e in same.ledger] == [("no", 0, 0), ("task", 1, 0)]


def test_without_near_duplicates_only_repeats_are_counted() -> None:
    overlap = find_overlap(TRAINED, EVALUATED, OverlapOptions(near=False))
    assert sum(e["near"] for e in overlap.ledger) == 0
    assert overlap.offending["nq"].tolist() == [0, 1, 2]
    assert entry(overlap, "task", "nq")["rows"] == 2


def test_a_text_that_is_repeated_and_nearly_repeated_counts_once_as_repeated() -> None:
    trained = {"nq": [TrainingExample("q", (ALMOST,)), TrainingExample("q", (LONG,))]}
    found = entry(find_overlap(trained, {"task": [LONG]}), "task", "nq")
    assert (found["exact"], found["near"], found["rows"]) == (1, 0, 2)


def test_words_in_another_order_are_near_only_if_their_shingles_are() -> None:
    words = LONG.split()
    swapped, backwards = " ".join(words[30:] + words[:30]), " ".join(words[::-1])
    overlap = find_overlap({"nq": [TrainingExample(swapped, (backwards,))]}, {"task": [LONG]})
    assert (entry(overlap, "task", "nq")["near"], entry(overlap, "task", "nq")["examples"][0]["trained"]) == (
        1,
        swapped,
    )


def test_a_file_gives_what_its_examples_give_and_its_order_of_sets_does_not_matter(tmp_path: Path) -> None:
    for name, examples in TRAINED.items():
        write_examples(tmp_path / f"{name}.jsonl", examples)
    files: dict[str, Path] = {name: tmp_path / f"{name}.jsonl" for name in reversed(TRAINED)}
    reference = find_overlap(TRAINED, EVALUATED)
    found = find_overlap(files, dict(reversed(EVALUATED.items())))
    assert found.ledger == reference.ledger
    assert [e["evaluation"] for e in found.ledger] == sorted(e["evaluation"] for e in found.ledger)
    assert {n: r.tolist() for n, r in found.offending.items()} == {
        n: r.tolist() for n, r in reference.offending.items()
    }


def test_rows_are_numbered_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boom_utils.data.overlap._ROWS_A_BATCH", 2)
    rows = [
        TrainingExample(f"query {number}", (LONG if number in (1, 4) else f"text {number}",)) for number in range(7)
    ]
    assert find_overlap({"nq": rows}, {"task": [LONG]}).offending["nq"].tolist() == [1, 4]


def test_a_training_file_that_is_missing_malformed_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        find_overlap({"nq": tmp_path / "nq.jsonl"}, EVALUATED)
    (tmp_path / "nq.jsonl").write_bytes(b'{"query": "q", "pos": ["p"], "neg": []}\n{"query": NaN}\n')
    with pytest.raises(DataError, match=r"nq\.jsonl:2: not JSON: NaN"):
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
