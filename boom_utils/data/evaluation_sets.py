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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import normalise
from boom_utils.data.manifest import Dataset
from boom_utils.data.sampling import Item, draw
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError

FIT_A_LABEL = 16
"""Twice what mteb fits a classifier on a label (``samples_per_label`` = 8), so that its ten experiments differ."""
FIT_ROWS = 1000

KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("retrieval", "code", "code_retrieval"), ("pairs", "judged")),
    "reranking": ("candidates",),
    "classification": ("labelled",),
    "clustering": ("labelled",),
    "sts": ("graded",),
    "pair_classification": ("judged_pairs",),
}
"""Kind of a task -> shapes of records it can be made of."""

Row = dict[str, Any]
Files = dict[str, list[Row]]
_Columns = Sequence[Sequence[Any]]


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
        evaluated: Texts that nothing may be trained on; None for all of the files.
    """

    files: Files
    labels: list[str] | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    evaluated: list[str] | None = None

    @property
    def texts(self) -> dict[str, list[str]]:
        """What a model reads of each file."""
        return {
            name: [str(row[key]) for row in rows for key in ("text", "sentence1", "sentence2") if key in row]
            for name, rows in self.files.items()
            if name not in ("qrels", "top_ranked")
        }

    @property
    def fitted_on(self) -> set[str]:
        """Texts a classifier is fitted on, normalised."""
        return {normalise(row["text"]) for row in self.files.get("train", ())}


def part_of(raw: Raw, name: str, dataset: str) -> pa.Table:
    """One part of the records of a dataset.

    Raises:
        DataError: There is no such part.
    """
    if name not in raw.parts:
        found = ", ".join(raw.parts) or "no part at all"
        raise DataError(f"dataset '{dataset}' has no part '{name}'", expected=name, found=found)
    return raw.parts[name]


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
        expected = ", ".join(KINDS.get(kind, ())) or f"one of the kinds {', '.join(KINDS)}"
        what = f"no rule makes a {kind} task from records of shape '{raw.shape}'"
        raise DataError(what, where=dataset.id, expected=expected)

    def columns(part: str) -> _Columns:
        return [column.to_pylist() for column in part_of(raw, part, dataset.id).columns]

    if raw.shape == "judged":
        collection = [dict(zip(*columns(part), strict=True)) for part in ("queries", "corpus")]
        known = {tuple(pair): max(1, round(score)) for *pair, score in zip(*columns("qrels"), strict=True) if score > 0}
        return _searched(collection, ((*pair, score) for pair, score in known.items()), limits, generator)
    tested = columns("test" if "test" in raw.parts or "dev" not in raw.parts else "dev")
    if raw.shape in ("pairs", "candidates"):
        texts, ids = zip(*(_identified(*one) for one in zip(tested, "qd", strict=False)), strict=True)
        scores = [1] * len(ids[0]) if raw.shape == "pairs" else [int(label == "1") for label in tested[2]]
        return _searched(texts, zip(*ids, scores, strict=True), limits, generator, candidates=raw.shape == "candidates")
    if kind == "classification":
        part = "dev" if {"dev", "test"} <= set(raw.parts) else "train"
        is_trained_on = part == "train" and dataset.role != "evaluation"
        return _classification(tested, columns(part), 2 if is_trained_on else 1, limits, generator)
    dropped: Counter[str] = Counter()
    if kind == "clustering":
        rows = _distinct(tested, set(), dropped)
        labels = sorted({label for _, label in rows})
        return EvaluationSet({"test": _numbered(limits.draw(rows, generator), labels)}, labels, +dropped)
    judged = [round(float(one), 4) if raw.shape == "graded" else int(one) for one in tested[2]]
    names = ("sentence1", "sentence2", "score" if raw.shape == "graded" else "label")
    pairs = [dict(zip(names, row, strict=True)) for row in zip(*tested[:2], judged, strict=True)]
    return EvaluationSet({"test": limits.draw(pairs, generator)})


# --- retrieval and reranking ------------------------------------------------------------------------------------------


def _identified(texts: Iterable[str], letter: str) -> tuple[dict[str, str], list[str]]:
    """Distinct texts by an id, numbered as they come, and the id of every text."""
    ids: dict[str, str] = {}
    found: dict[str, str] = {}
    named = []
    for text in texts:
        named.append(ids.setdefault(normalise(text), f"{letter}{len(ids)}"))
        found.setdefault(named[-1], text)
    return found, named


def _searched(
    texts: Sequence[Mapping[str, str]],
    judgements: Iterable[tuple[str, str, int]],
    limits: Limits,
    generator: np.random.Generator,
    *,
    candidates: bool = False,
) -> EvaluationSet:
    """Drawn queries, what is relevant to them, and as many other documents as there may be, or their candidates alone.

    Args:
        texts: Queries and documents by their ids.
        judgements: Query, document and score; what is judged above 0 is relevant.
        limits: How large the set may be.
        generator: Draws what is kept.
        candidates: Queries are to sort their own documents, and need right and wrong ones.
    """
    (queries, documents), dropped = texts, Counter[str]()
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    for query, document, score in judgements:
        dropped["repeated candidate" if candidates else "repeated pair"] += document in judged[query]
        judged[query][document] = max(judged[query].get(document, 0), score)
    least = 2 if candidates else 1
    usable = [query for query in queries if query in judged and len(set(judged[query].values())) >= least]
    reason = "query without both labels" if candidates else "query without a relevant document"
    dropped[reason] += len(queries) - len(usable)
    chosen = limits.draw(usable, generator)
    needed = {document for query in chosen for document in judged[query]}
    if not candidates:
        rest = [document for document in documents if document not in needed]
        spare = None if limits.documents is None else max(0, limits.documents - len(needed))
        needed.update(draw(rest, spare, generator))
    # Scores are written only where they differ.
    graded = any(score > 1 for scores in judged.values() for score in scores.values())
    files: Files = {
        "queries": [{"id": query, "text": queries[query]} for query in chosen],
        "corpus": [{"id": document, "text": text} for document, text in documents.items() if document in needed],
        "qrels": [
            {"query": query, "document": document} | ({"score": score} if graded else {})
            for query in chosen
            for document, score in judged[query].items()
            if score > 0
        ],
    }
    if candidates:
        files["top_ranked"] = [{"query": query, "documents": list(judged[query])} for query in chosen]
    return EvaluationSet(files, dropped=+dropped)


# --- labels -----------------------------------------------------------------------------------------------------------


def _classification(
    tested: _Columns, fitted: _Columns, share: int, limits: Limits, generator: np.random.Generator
) -> EvaluationSet:
    """Texts to test, and texts to fit on: evenly many of each label as far as one in ``share`` of them goes."""
    dropped: Counter[str] = Counter()
    test = _distinct(tested, set(), dropped)
    # What of these is left out is not lost to training, and so not counted.
    usable = _distinct(fitted, {normalise(text) for text, _ in test}, Counter())
    places: dict[str, list[int]] = defaultdict(list)
    for place, (_, label) in enumerate(usable):
        places[label].append(place)
    each = max(FIT_A_LABEL, FIT_ROWS // max(1, len(places)))
    labels = sorted(places)
    drawn = [draw(places[label], min(each, -(-len(places[label]) // share)), generator) for label in labels]
    fit = [usable[place] for place in sorted(place for part in drawn for place in part)]
    known = [(text, label) for text, label in test if label in places]
    dropped["label that no classifier could be fitted on"] += len(test) - len(known)
    files = {"train": _numbered(fit, labels), "test": _numbered(limits.draw(known, generator), labels)}
    return EvaluationSet(files, labels, +dropped)


def _distinct(columns: _Columns, known: set[str], dropped: Counter[str]) -> list[tuple[str, str]]:
    """Texts and labels, each text once, with the label it has first, and none of the known ones."""
    kept: dict[str, tuple[str, str]] = {}
    for text, label in zip(*columns, strict=True):
        key = normalise(text)
        if key in known or key in kept:
            dropped["repeated text"] += 1
        else:
            kept[key] = text, label
    return list(kept.values())


def _numbered(rows: Sequence[tuple[str, str]], labels: Sequence[str]) -> list[Row]:
    number = {label: place for place, label in enumerate(labels)}
    return [{"text": text, "label": number[label]} for text, label in rows]
