"""From records to evaluation sets: each kind's rule, cut by seed, never a text that is both fitted and tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from boom_utils.data.evaluation_sets import (
    FIT_A_LABEL,
    FIT_ROWS,
    KINDS,
    EvaluationSet,
    Limits,
    evaluation_set,
    task_kind,
)
from boom_utils.data.manifest import Dataset, load_manifest
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError

NAMES = {
    "pairs": ("query", "passage"),
    "candidates": ("query", "passage", "label"),
    "labelled": ("text", "label"),
    "graded": ("sentence1", "sentence2", "score"),
    "judged_pairs": ("sentence1", "sentence2", "label"),
    "corpus": ("id", "text"),
    "queries": ("id", "text"),
    "qrels": ("query", "document", "score"),
}
OF_KIND = {
    "retrieval": "squad_dev",
    "reranking": "wikiqa",
    "classification": "banking77",
    "only evaluated": "clinc150",
    "clustering": "searchsnippets",
    "sts": "stsbenchmark",
    "pair_classification": "mrpc",
}
"""A dataset of the manifest for every kind: only its kind, role and name are used."""


@pytest.fixture(scope="module")
def datasets() -> dict[str, Dataset]:
    manifest = load_manifest("open_text")
    return {kind: manifest.dataset(name) for kind, name in OF_KIND.items()}


def table(names: str, *rows: tuple[Any, ...]) -> pa.Table:
    return pa.table({name: list(column) for name, column in zip(NAMES[names], zip(*rows, strict=True), strict=True)})


def made(raw: Raw, dataset: Dataset, limits: Limits | None = None, seed: int = 0) -> EvaluationSet:
    return evaluation_set(raw, dataset, limits or Limits(), np.random.default_rng(seed))


def pairs(*rows: tuple[str, str]) -> Raw:
    return Raw("pairs", {"test": table("pairs", *rows)}, ())


def test_retrieval_has_every_passage_once_and_all_that_belongs_to_a_query(datasets: dict[str, Dataset]) -> None:
    found = made(
        pairs(("who", "the cat"), ("why", "The  cat"), ("Who", "a dog"), ("who", "a dog")),
        datasets["retrieval"],
    )
    assert found.files == {
        "queries": [{"id": "q0", "text": "who"}, {"id": "q1", "text": "why"}],
        "corpus": [{"id": "d0", "text": "the cat"}, {"id": "d1", "text": "a dog"}],
        "qrels": [
            {"query": "q0", "document": "d0"},
            {"query": "q0", "document": "d1"},
            {"query": "q1", "document": "d0"},
        ],
    }
    assert found.labels is None
    assert found.dropped == {"repeated pair": 1}


@pytest.mark.parametrize(("queries", "documents"), [(5, 20), (5, 1), (None, 30), (100, 100)])
def test_a_smaller_collection_keeps_all_that_is_relevant(
    datasets: dict[str, Dataset], queries: int | None, documents: int
) -> None:
    raw = pairs(*((f"query {number // 2}", f"passage {number}") for number in range(40)))
    limits = Limits(queries, documents)
    found = made(raw, datasets["retrieval"], limits)
    asked = {row["id"] for row in found.files["queries"]}
    kept = {row["id"] for row in found.files["corpus"]}
    assert len(asked) == min(queries or 20, 20)
    assert {row["query"] for row in found.files["qrels"]} == asked
    assert {row["document"] for row in found.files["qrels"]} <= kept
    assert len(found.files["qrels"]) == 2 * len(asked)
    assert len(kept) == max(min(documents, 40), 2 * len(asked))
    assert found == made(raw, datasets["retrieval"], limits)
    if queries == 5:
        assert found != made(raw, datasets["retrieval"], limits, seed=1)


def judged(qrels: list[tuple[str, str, float]]) -> Raw:
    parts = {
        "corpus": table("corpus", ("a1", "one"), ("a2", "two"), ("a4", "four")),
        "queries": table("queries", ("b1", "first"), ("b2", "second"), ("b3", "third")),
        "qrels": table("qrels", *qrels),
    }
    return Raw("judged", parts, ())


def test_a_judged_collection_keeps_its_ids_and_scores(datasets: dict[str, Dataset]) -> None:
    qrels = [("b1", "a1", 2.0), ("b1", "a2", 1.0), ("b2", "a1", 0.0), ("b3", "a4", 0.0)]
    found = made(judged(qrels), datasets["retrieval"])
    assert found.files["queries"] == [{"id": "b1", "text": "first"}]
    assert [row["id"] for row in found.files["corpus"]] == ["a1", "a2", "a4"]
    assert found.files["qrels"] == [
        {"query": "b1", "document": "a1", "score": 2},
        {"query": "b1", "document": "a2", "score": 1},
    ]
    assert found.dropped == {"query without a relevant document": 2}


def test_judgements_that_are_all_alike_have_no_score(datasets: dict[str, Dataset]) -> None:
    found = made(judged([("b1", "a1", 1.0), ("b2", "a1", 1.0)]), datasets["retrieval"])
    assert found.files["qrels"] == [{"query": "b1", "document": "a1"}, {"query": "b2", "document": "a1"}]


def test_reranking_needs_right_and_wrong_candidates(datasets: dict[str, Dataset]) -> None:
    rows = [
        ("who", "x", "0"),
        ("who", "the cat", "1"),
        ("who", "X", "0"),
        ("who", "The Cat", "0"),
        ("why", "because", "1"),
        ("when", "x", "0"),
        ("where", "x", "1"),
        ("where", "there", "0"),
    ]
    raw = Raw("candidates", {"test": table("candidates", *rows)}, ())
    found = made(raw, datasets["reranking"])
    assert found.files == {
        "queries": [{"id": "q0", "text": "who"}, {"id": "q3", "text": "where"}],
        "corpus": [
            {"id": "d0", "text": "x"},
            {"id": "d1", "text": "the cat"},
            {"id": "d3", "text": "there"},
        ],
        "qrels": [{"query": "q0", "document": "d1"}, {"query": "q3", "document": "d0"}],
        "top_ranked": [{"query": "q0", "documents": ["d0", "d1"]}, {"query": "q3", "documents": ["d0", "d3"]}],
    }
    assert found.dropped == {"repeated candidate": 2, "query without both labels": 2}
    one = made(raw, datasets["reranking"], Limits(1, 1))
    shown = {name for row in one.files["top_ranked"] for name in row["documents"]}
    assert len(one.files["queries"]) == 1
    assert {row["id"] for row in one.files["corpus"]} == shown


def labelled(name: str, each: int, labels: str = "xyz") -> list[tuple[str, str]]:
    return [(f"{name} {label} {number}", label) for number in range(each) for label in labels]


def test_a_classifier_is_fitted_on_half_of_what_is_trained_on_and_never_tested_there(
    datasets: dict[str, Dataset],
) -> None:
    parts = {
        "train": table("labelled", *labelled("train", 10), ("TEST x  0", "x"), ("test y 1", "x")),
        "test": table("labelled", *labelled("test", 4), ("test x 0", "y"), ("unheard", "new")),
    }
    found = made(Raw("labelled", parts, ()), datasets["classification"])
    assert found.labels == ["x", "y", "z"]
    fit, test = found.files["train"], found.files["test"]
    assert [sum(row["label"] == label for row in fit) for label in range(3)] == [5, 5, 5]
    assert found.fitted_on == [row["text"] for row in fit]
    assert {row["text"] for row in test} == {text for text, _ in labelled("test", 4)}
    assert not {row["text"].casefold() for row in fit} & {row["text"] for row in test}
    assert found.dropped == {"repeated text": 1, "label that no classifier could be fitted on": 1}


def test_a_classifier_is_fitted_on_dev_or_on_all_where_nobody_trains(datasets: dict[str, Dataset]) -> None:
    parts = {name: table("labelled", *labelled(name, 6)) for name in ("train", "dev", "test")}
    found = made(Raw("labelled", parts, ()), datasets["classification"])
    assert {text.split()[0] for text in found.fitted_on} == {"dev"}
    assert len(found.fitted_on) == 18
    del parts["dev"]
    assert len(made(Raw("labelled", parts, ()), datasets["classification"]).fitted_on) == 9
    assert len(made(Raw("labelled", parts, ()), datasets["only evaluated"]).fitted_on) == 18


@pytest.mark.parametrize(("number", "each"), [(2, FIT_ROWS // 2), (100, FIT_A_LABEL)])
def test_no_more_is_fitted_on_than_mteb_needs(datasets: dict[str, Dataset], number: int, each: int) -> None:
    labels = "".join(chr(ord("一") + place) for place in range(number))
    parts = {
        "train": table("labelled", *labelled("train", 1200 if number == 2 else 40, labels)),
        "test": table("labelled", *labelled("test", 5, labels)),
    }
    found = made(Raw("labelled", parts, ()), datasets["classification"], Limits(7))
    assert len(found.files["train"]) == each * number
    assert len(found.files["test"]) == 7, "the limit is for tested texts"


def test_clustering_has_each_text_once(datasets: dict[str, Dataset]) -> None:
    raw = Raw("labelled", {"test": table("labelled", *labelled("t", 3, "ba"), ("T  b 0", "a"))}, ())
    found = made(raw, datasets["clustering"])
    assert found.labels == ["a", "b"]
    assert found.files["test"][:2] == [{"text": "t b 0", "label": 1}, {"text": "t a 0", "label": 0}]
    assert len(found.files["test"]) == 6
    assert found.dropped == {"repeated text": 1}
    assert len(made(raw, datasets["clustering"], Limits(4)).files["test"]) == 4


def test_pairs_of_sentences_stay_as_they_are(datasets: dict[str, Dataset]) -> None:
    graded = Raw("graded", {"test": table("graded", ("a", "b", 3.75), ("c", "c", 5))}, ())
    assert made(graded, datasets["sts"]).files["test"] == [
        {"sentence1": "a", "sentence2": "b", "score": 3.75},
        {"sentence1": "c", "sentence2": "c", "score": 5.0},
    ]
    pairs_of = Raw("judged_pairs", {"dev": table("judged_pairs", ("a", "b", "1"), ("c", "d", "0"))}, ())
    found = made(pairs_of, datasets["pair_classification"])
    assert [row["label"] for row in found.files["test"]] == [1, 0]
    assert len(made(pairs_of, datasets["pair_classification"], Limits(1)).files["test"]) == 1


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("retrieval", Raw("labelled", {"test": table("labelled", ("a", "x"))}, ()), "no rule makes a retrieval task"),
        ("retrieval", Raw("pairs", {"train": table("pairs", ("a", "b"))}, ()), "no part 'test'"),
        ("retrieval", Raw("judged", {"corpus": table("corpus", ("a", "b"))}, ()), "no part 'queries'"),
        ("classification", Raw("labelled", {"test": table("labelled", ("a", "x"))}, ()), "no part 'train'"),
    ],
)
def test_records_of_the_wrong_kind_are_refused_by_name(
    datasets: dict[str, Dataset], kind: str, raw: Raw, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        made(raw, datasets[kind])
    assert OF_KIND[kind] in str(error.value)


def test_every_task_of_the_manifest_has_a_kind_with_a_rule() -> None:
    manifest = load_manifest("open_text")
    assert {task_kind(manifest.dataset(task.dataset)) for task in manifest.tasks} <= set(KINDS)


def test_the_validation_part_shares_no_row_with_the_reported_one(datasets: dict[str, Dataset]) -> None:
    many = 50
    raws = {
        "retrieval": pairs(*((f"question {n}", f"passage {n}") for n in range(many))),
        "sts": Raw("graded", {"test": table("graded", *((f"a {n}", f"b {n}", 1.0) for n in range(many)))}, ()),
        "clustering": Raw("labelled", {"test": table("labelled", *((f"t {n}", f"l{n % 5}") for n in range(many)))}, ()),
    }
    keys = {"retrieval": ("queries", "text"), "sts": ("test", "sentence1"), "clustering": ("test", "text")}
    for kind, raw in raws.items():
        file, key = keys[kind]
        reported, validation = (made(raw, datasets[kind], Limits(20, 30, skip)).files[file] for skip in (0, 20))
        assert len(reported) == len(validation) == 20
        assert not {row[key] for row in reported} & {row[key] for row in validation}
        rest = made(raw, datasets[kind], Limits(30, 30, 30)).files[file]
        assert len(rest) == many - 30, "what is left, where that is less than the limit"


def test_a_set_that_is_reported_whole_leaves_nothing_to_validate_on(datasets: dict[str, Dataset]) -> None:
    raw = pairs(*((f"question {n}", f"passage {n}") for n in range(9)))
    assert made(raw, datasets["retrieval"], Limits(9, None, 9)).files["queries"] == []
