"""Evaluation sets from raw records: one stated rule for every kind of task.

Shared by all: the part ``test`` is evaluated where there is one, else ``dev``; texts are the same if they are equal
after `normalise`; what is left out is counted under its reason; sets larger than the limits are cut by drawing, in the
order of the records.

* retrieval (and code): the documents are all distinct passages, a query's relevant ones are those it was paired with.
  Collections with judgements of their own keep their ids; a judgement above 0 is relevant, and queries without one are
  left out. If documents are cut, all that are relevant to a drawn query stay.
* reranking: a query's distinct candidates, of which label 1 is relevant; queries need both labels. Documents are the
  candidates of the drawn queries.
* classification: the fitted part comes from ``dev`` where ``test`` is there too, else from ``train``. It is spread
  evenly over the labels: `FIT_ROWS` texts in all but at least `FIT_A_LABEL` a label, as far as there are, and at most
  half of a label's texts where the other half is trained on. What is fitted on is never tested, nor trained on.
* clustering: the texts and their labels.
* sts, pair_classification: the pairs as they are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boom_utils.data.example_sets import Item, Row, draw, draw_retrieval
from boom_utils.data.examples import normalise
from boom_utils.data.manifest import Dataset
from boom_utils.data.record_tables import columns_of, evaluated_part, part_of
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError

FIT_A_LABEL = 16
"""Twice what mteb fits a classifier on a label (``samples_per_label`` = 8), so that its ten experiments differ."""
FIT_ROWS = 1000

KINDS: dict[str, tuple[str, ...]] = {
    "retrieval": ("pairs", "judged"),
    "code": ("pairs", "judged"),
    "code_retrieval": ("pairs", "judged"),
    "reranking": ("candidates",),
    "classification": ("labelled",),
    "clustering": ("labelled",),
    "sts": ("graded",),
    "pair_classification": ("judged_pairs",),
}
"""Kind of a task -> shapes of records it can be made of."""


@dataclass(frozen=True)
class Limits:
    """Most rows of an evaluation set; None for all.

    Args:
        queries: Queries, pairs or tested texts.
        documents: Documents of a retrieval task.
        skip: Queries, pairs or texts that are passed over: those of another set, that this one must not hold.
    """

    queries: int | None = None
    documents: int | None = None
    skip: int = 0

    def draw(self, items: Sequence[Item], generator: np.random.Generator) -> list[Item]:
        """What is evaluated."""
        return draw(items, self.queries, generator, self.skip)


@dataclass(frozen=True)
class EvaluationSet:
    """Rows of the files of one task.

    Args:
        files: File name without ``.jsonl`` -> rows.
        labels: Names of the labels, in the order of their numbers; None where there are none.
        dropped: Reason -> how many records were left out.
    """

    files: dict[str, list[Row]]
    labels: list[str] | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def fitted_on(self) -> list[str]:
        """Texts a classifier is fitted on."""
        return [str(row["text"]) for row in self.files.get("train", ())]


def task_kind(dataset: Dataset) -> str:
    """How a dataset is evaluated: as its files say, else as its family is."""
    return dataset.family if dataset.origin is None else dataset.origin.task


def evaluation_set(raw: Raw, dataset: Dataset, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
    """The evaluation set of a dataset by the rule of its kind.

    Args:
        raw: Its records.
        dataset: Gives the kind, and the name in messages.
        limits: How large the set may be.
        generator: Draws what is kept.

    Returns:
        The rows of its files.

    Raises:
        DataError: Records of another shape than the kind is made of, or not as promised.
    """
    kind = task_kind(dataset)
    if raw.shape not in KINDS.get(kind, ()):
        raise DataError(
            f"no rule makes a {kind} task from records of shape '{raw.shape}'",
            where=dataset.id,
            expected=", ".join(KINDS.get(kind, ())) or f"one of the kinds {', '.join(KINDS)}",
        )
    dropped: Counter[str] = Counter()
    if raw.shape == "judged":
        parts = [part_of(raw, name, dataset.id) for name in ("corpus", "queries", "qrels")]
        return _cut(_judged([columns_of(part) for part in parts], dropped), limits, generator, dropped)
    columns = columns_of(evaluated_part(raw, dataset.id))
    if raw.shape == "pairs":
        return _cut(_paired(columns, dropped), limits, generator, dropped)
    rules: dict[str, Callable[..., EvaluationSet]] = {
        "reranking": _reranking,
        "clustering": _clustering,
        "sts": _sts,
        "pair_classification": _pair_classification,
    }
    if kind == "classification":
        fit = columns_of(part_of(raw, _fitted_part(raw), dataset.id))
        is_trained_on = _fitted_part(raw) == "train" and dataset.role != "evaluation"
        return _classification(columns, (fit, is_trained_on), limits, generator, dropped)
    return rules[kind](columns, limits, generator, dropped)


@dataclass(frozen=True)
class _Collection:
    """Texts and judgements of a retrieval task; ``relevant`` holds place -> score for every query."""

    queries: list[tuple[str, str]]
    documents: list[tuple[str, str]]
    relevant: list[dict[int, int]]


def _paired(columns: list[list[str]], dropped: Counter[str]) -> _Collection:
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    for query, passage in zip(*columns, strict=True):
        key, answer = normalise(query), normalise(passage)
        queries.setdefault(key, query)
        documents.setdefault(answer, passage)
        dropped["repeated pair"] += answer in relevant[key]
        relevant[key][answer] = 1
    place = {key: number for number, key in enumerate(documents)}
    return _Collection(
        [(f"q{number}", text) for number, text in enumerate(queries.values())],
        [(f"d{number}", text) for number, text in enumerate(documents.values())],
        [{place[answer]: 1 for answer in relevant[key]} for key in queries],
    )


def _judged(parts: list[list[list[Any]]], dropped: Counter[str]) -> _Collection:
    (document_ids, documents), (query_ids, queries), (asked, answers, scores) = parts
    place = {name: number for number, name in enumerate(document_ids)}
    relevant: dict[str, dict[int, int]] = defaultdict(dict)
    for query, document, score in zip(asked, answers, scores, strict=True):
        if score > 0:
            relevant[query][place[document]] = max(1, round(score))
    known = [(name, text) for name, text in zip(query_ids, queries, strict=True) if name in relevant]
    dropped["query without a relevant document"] += len(queries) - len(known)
    texts = list(zip(document_ids, documents, strict=True))
    return _Collection(known, texts, [relevant[name] for name, _ in known])


def _cut(found: _Collection, limits: Limits, generator: np.random.Generator, dropped: Counter[str]) -> EvaluationSet:
    """The files of a retrieval task; judgements have a score only where scores differ."""
    relevant = [list(places) for places in found.relevant]
    asked, kept = draw_retrieval(
        relevant, len(found.documents), (limits.queries, limits.documents), generator, limits.skip
    )
    graded = any(score != 1 for places in found.relevant for score in places.values())
    judgements: list[Row] = [
        {"query": found.queries[query][0], "document": found.documents[place][0]} | ({"score": score} if graded else {})
        for query in asked
        for place, score in found.relevant[query].items()
    ]
    files: dict[str, list[Row]] = {
        "queries": [{"id": found.queries[place][0], "text": found.queries[place][1]} for place in asked],
        "corpus": [{"id": found.documents[place][0], "text": found.documents[place][1]} for place in kept],
        "qrels": judgements,
    }
    return EvaluationSet(files, dropped=+dropped)


def _reranking(
    columns: list[list[str]], limits: Limits, generator: np.random.Generator, dropped: Counter[str]
) -> EvaluationSet:
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    candidates: dict[str, dict[str, bool]] = defaultdict(dict)
    for query, passage, label in zip(*columns, strict=True):
        key, answer = normalise(query), normalise(passage)
        queries.setdefault(key, query)
        documents.setdefault(answer, passage)
        dropped["repeated candidate"] += answer in candidates[key]
        candidates[key][answer] = candidates[key].get(answer, False) or label == "1"
    usable = [key for key in queries if len(set(candidates[key].values())) > 1]
    dropped["query without both labels"] += len(queries) - len(usable)
    chosen = limits.draw(usable, generator)
    query_id = {key: f"q{number}" for number, key in enumerate(queries)}
    document_id = {key: f"d{number}" for number, key in enumerate(documents)}
    shown = {answer for key in chosen for answer in candidates[key]}
    files: dict[str, list[Row]] = {
        "queries": [{"id": query_id[key], "text": queries[key]} for key in chosen],
        "corpus": [{"id": document_id[key], "text": text} for key, text in documents.items() if key in shown],
        "qrels": [
            {"query": query_id[key], "document": document_id[answer]}
            for key in chosen
            for answer, is_relevant in candidates[key].items()
            if is_relevant
        ],
        "top_ranked": [
            {"query": query_id[key], "documents": [document_id[answer] for answer in candidates[key]]} for key in chosen
        ],
    }
    return EvaluationSet(files, dropped=+dropped)


def _fitted_part(raw: Raw) -> str:
    return "dev" if {"dev", "test"} <= set(raw.parts) else "train"


def _classification(
    columns: list[list[str]],
    fitted: tuple[list[list[str]], bool],
    limits: Limits,
    generator: np.random.Generator,
    dropped: Counter[str],
) -> EvaluationSet:
    (given, is_trained_on), test = fitted, _distinct(columns, set(), dropped)
    # What of these is left out is not lost to training, and so not counted.
    usable = _distinct(given, {normalise(text) for text, _ in test}, Counter())
    fit = _spread(usable, 2 if is_trained_on else 1, generator)
    labels = sorted({label for _, label in fit})
    known = [(text, label) for text, label in test if label in labels]
    dropped["label that no classifier could be fitted on"] += len(test) - len(known)
    files = {"train": _numbered(fit, labels), "test": _numbered(limits.draw(known, generator), labels)}
    return EvaluationSet(files, labels, +dropped)


def _spread(rows: Sequence[tuple[str, str]], share: int, generator: np.random.Generator) -> list[tuple[str, str]]:
    """Rows to fit on, evenly many of each label as far as one in ``share`` of them goes, in their order."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, (_, label) in enumerate(rows):
        places[label].append(place)
    each = max(FIT_A_LABEL, FIT_ROWS // max(1, len(places)))
    drawn = [draw(places[label], min(each, -(-len(places[label]) // share)), generator) for label in sorted(places)]
    return [rows[place] for place in sorted(place for part in drawn for place in part)]


def _clustering(
    columns: list[list[str]], limits: Limits, generator: np.random.Generator, dropped: Counter[str]
) -> EvaluationSet:
    rows = _distinct(columns, set(), dropped)
    labels = sorted({label for _, label in rows})
    return EvaluationSet({"test": _numbered(limits.draw(rows, generator), labels)}, labels, +dropped)


def _sts(
    columns: list[list[Any]], limits: Limits, generator: np.random.Generator, dropped: Counter[str]
) -> EvaluationSet:
    rows = [
        {"sentence1": one, "sentence2": other, "score": round(float(score), 4)}
        for one, other, score in zip(*columns, strict=True)
    ]
    return EvaluationSet({"test": limits.draw(rows, generator)}, dropped=+dropped)


def _pair_classification(
    columns: list[list[str]], limits: Limits, generator: np.random.Generator, dropped: Counter[str]
) -> EvaluationSet:
    rows: list[Row] = [
        {"sentence1": one, "sentence2": other, "label": int(label)} for one, other, label in zip(*columns, strict=True)
    ]
    return EvaluationSet({"test": limits.draw(rows, generator)}, dropped=+dropped)


def _distinct(columns: list[list[str]], known: set[str], dropped: Counter[str]) -> list[tuple[str, str]]:
    """Texts and labels, each text once, with the label it has first, and none of the known ones."""
    seen = set(known)
    kept = []
    for text, label in zip(*columns, strict=True):
        if (key := normalise(text)) not in seen:
            kept.append((text, label))
        else:
            dropped["repeated text"] += 1
        seen.add(key)
    return kept


def _numbered(rows: Sequence[tuple[str, str]], labels: Sequence[str]) -> list[Row]:
    number = {label: place for place, label in enumerate(labels)}
    return [{"text": text, "label": number[label]} for text, label in rows]
