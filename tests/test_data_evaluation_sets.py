"""From records to evaluation sets: each kind's rule, cut by seed, never a text that is both fitted and tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.manifest import load_manifest
from boom_utils.data.text_files import COLUMNS, Raw, table_of

MANIFEST = load_manifest("open_text")
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


def raw(shape: Any, **parts: Any) -> Raw:
    return Raw(shape, {name: table_of(name if name in COLUMNS else shape, rows) for name, rows in parts.items()})


def made(kind: str, records: Raw, limits: Limits = Limits(), seed: int = 0) -> EvaluationSet:  # noqa: B008
    return evaluation_set(records, MANIFEST.dataset(OF_KIND[kind]), limits, np.random.default_rng(seed))


def texts(*rows: str) -> list[dict[str, str]]:
    return [dict(zip(("id", "text"), row.split(" ", 1), strict=True)) for row in rows]


def links(*rows: str) -> list[dict[str, str]]:
    return [dict(zip(("query", "document"), row.split(), strict=True)) for row in rows]


def test_retrieval_has_every_passage_once_and_all_that_belongs_to_a_query() -> None:
    rows = [("who", "the cat"), ("why", "The  cat"), ("Who", "a dog"), ("who", "a dog")]
    found = made("retrieval", raw("pairs", test=rows))
    assert found.files == {
        "queries": texts("q0 who", "q1 why"),
        "corpus": texts("d0 the cat", "d1 a dog"),
        "qrels": links("q0 d0", "q0 d1", "q1 d0"),
    }
    assert (found.labels, found.dropped) == (None, {"repeated pair": 1})
    assert found.texts == {"queries": ["who", "why"], "corpus": ["the cat", "a dog"]}


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=20),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 12),
    st.integers(0, 99),
)
def test_a_smaller_collection_keeps_all_that_is_relevant(
    pairs: list[tuple[int, int]], queries: int | None, documents: int | None, seed: int
) -> None:
    records = raw("pairs", test=[(f"query {one}", f"passage {other}") for one, other in pairs])
    whole = made("retrieval", records).files
    files = made("retrieval", records, Limits(queries, documents), seed).files
    asked, kept = ([row["id"] for row in files[name]] for name in ("queries", "corpus"))
    assert len(asked) == min(queries or 99, len(whole["queries"]))
    assert files["qrels"] == [row for row in whole["qrels"] if row["query"] in asked]
    needed = {row["document"] for row in files["qrels"]}
    assert needed <= set(kept)
    assert len(kept) == max(len(needed), min(documents or 99, len(whole["corpus"])))
    assert files["corpus"] == [row for row in whole["corpus"] if row["id"] in kept]
    assert files == made("retrieval", records, Limits(queries, documents), seed).files


def test_a_judged_collection_keeps_its_ids_and_scores_that_differ() -> None:
    def judged(*qrels: tuple[str, str, float]) -> Raw:
        corpus, queries = [("a1", "one"), ("a2", "two"), ("a4", "four")], [("b1", "1st"), ("b2", "2nd"), ("b3", "3rd")]
        return raw("judged", corpus=corpus, queries=queries, qrels=qrels)

    found = made("retrieval", judged(("b1", "a1", 2.0), ("b1", "a2", 1.0), ("b2", "a1", 0.0), ("b3", "a4", 0.0)))
    assert found.files["queries"] == texts("b1 1st")
    assert found.files["corpus"] == texts("a1 one", "a2 two", "a4 four")
    assert [row["score"] for row in found.files["qrels"]] == [2, 1]
    assert found.dropped == {"query without a relevant document": 2}
    alike = made("retrieval", judged(("b1", "a1", 1.0), ("b2", "a1", 1.0)))
    assert alike.files["qrels"] == links("b1 a1", "b2 a1")


def test_reranking_needs_right_and_wrong_candidates() -> None:
    rows = ["who|x|0", "who|the cat|1", "who|X|0", "who|The Cat|0", "why|because|1", "when|x|0", "where|x|1"]
    records = raw("candidates", test=[row.split("|") for row in (*rows, "where|there|0")])
    found = made("reranking", records)
    assert found.files == {
        "queries": texts("q0 who", "q3 where"),
        "corpus": texts("d0 x", "d1 the cat", "d3 there"),
        "qrels": links("q0 d1", "q3 d0"),
        "top_ranked": [{"query": "q0", "documents": ["d0", "d1"]}, {"query": "q3", "documents": ["d0", "d3"]}],
    }
    assert found.dropped == {"repeated candidate": 2, "query without both labels": 2}
    one = made("reranking", records, Limits(1, 1))
    (shown,) = one.files["top_ranked"]
    assert len(one.files["queries"]) == 1
    assert {row["id"] for row in one.files["corpus"]} == set(shown["documents"])


def labelled(name: str, each: int, labels: str = "xyz") -> list[tuple[str, str]]:
    return [(f"{name} {label} {number}", label) for number in range(each) for label in labels]


def test_a_classifier_is_fitted_on_half_of_what_is_trained_on_and_never_tested_there() -> None:
    train = [*labelled("train", 10), ("TEST x  0", "x"), ("test y 1", "x")]
    test = [*labelled("test", 4), ("test x 0", "y"), ("unheard", "new")]
    found = made("classification", raw("labelled", train=train, test=test))
    assert found.labels == ["x", "y", "z"]
    assert [sum(row["label"] == label for row in found.files["train"]) for label in range(3)] == [5, 5, 5]
    assert found.fitted_on == {row["text"] for row in found.files["train"]}
    assert {row["text"] for row in found.files["test"]} == {text for text, _ in labelled("test", 4)}
    assert found.dropped == {"repeated text": 1, "label that no classifier could be fitted on": 1}


def test_clustering_has_each_text_once_and_pairs_of_sentences_stay_as_they_are() -> None:
    found = made("clustering", raw("labelled", test=[*labelled("t", 3, "ba"), ("T  b 0", "a")]))
    assert (found.labels, found.dropped, len(found.files["test"])) == (["a", "b"], {"repeated text": 1}, 6)
    assert found.files["test"][:2] == [{"text": "t b 0", "label": 1}, {"text": "t a 0", "label": 0}]
    sts = made("sts", raw("graded", test=[("a", "b", 3.75), ("c", "c", 5)])).files["test"]
    assert sts[0] == {"sentence1": "a", "sentence2": "b", "score": 3.75} and sts[1]["score"] == 5.0
    pairs = made("pair_classification", raw("judged_pairs", dev=[("a", "b", "1"), ("c", "d", "0")]))
    assert pairs.files["test"][1] == {"sentence1": "c", "sentence2": "d", "label": 0}
    assert pairs.texts == {"test": ["a", "b", "c", "d"]}


@pytest.mark.parametrize("kind", ["retrieval", "sts", "clustering"])
def test_the_validation_part_shares_no_row_with_the_reported_one(kind: str) -> None:
    records, file, key = {
        "retrieval": (raw("pairs", test=[(f"q {n}", f"p {n}") for n in range(50)]), "queries", "text"),
        "sts": (raw("graded", test=[(f"a {n}", f"b {n}", 1.0) for n in range(50)]), "test", "sentence1"),
        "clustering": (raw("labelled", test=[(f"t {n}", f"l{n % 5}") for n in range(50)]), "test", "text"),
    }[kind]
    reported, validation = (made(kind, records, Limits(20, 30, skip)).files[file] for skip in (0, 20))
    assert len(reported) == len(validation) == 20
    assert not {row[key] for row in reported} & {row[key] for row in validation}
    assert len(made(kind, records, Limits(30, 30, 30)).files[file]) == 20, "what is left, where that is less"
    assert made(kind, records, Limits(50, None, 50)).files[file] == []
