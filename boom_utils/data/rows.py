"""Training rows from raw records: one stated rule for every shape of records.

Shared by all: texts are the same if they are equal after `normalise`; the records of one query are merged into one row;
what is no use is dropped and counted under its reason; rows keep the order of the records, and ``limit`` of them are
drawn before negatives are looked for. A row has at most ``negatives`` negatives, none of them twice, none equal to the
query or to one of its positives; a row that finds none is dropped.

* ``pairs``: query -> all its passages. Negatives by BM25 among the passages of all queries.
* ``candidates``: query -> its passages of label 1. Negatives are its passages of label 0; too few are filled by BM25
  among the passages of all queries.
* ``judged_pairs``: first sentence -> the second sentences it means the same as; one direction, so that a pair is
  learnt once. Negatives are sentences judged different from the query, in either order; filled with random sentences,
  as what shares words with such a sentence is often a paraphrase that nobody judged.
* ``graded``: sentence -> those of score 3 or more with it; both directions, as a score has none and there are few such
  pairs. Negatives are sentences of score 2 or less with the query; filled by BM25 among the sentences of such pairs,
  never one that has a score above 2 with the query. Few ranks are drawn from: at random, or from pairs that mean the
  same, an encoder that has met sentence pairs has nothing to learn.
* ``nli``: premise -> the hypotheses it entails, with exactly one of those it contradicts as negative, drawn.
* ``labelled``: text -> up to 3 other texts of its label, negatives are texts of other labels; both drawn
  (`labelled_examples`). A text of two labels is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import Labelled, TrainingExample, normalise
from boom_utils.data.manifest import Dataset
from boom_utils.data.negatives import RANKS, NegativePool
from boom_utils.data.sampling import draw
from boom_utils.data.text_files import Shape
from boom_utils.errors import DataError
from boom_utils.progress import progress

NEGATIVES = 7
"""Negatives a row, for the paper's group of 8 passages."""
POSITIVES = 3
"""Most positives of rows that could have very many."""
ALIKE, DIFFERENT = 3.0, 2.0
"""Score from which two sentences count as the same, and up to which as different."""
SENTENCE_RANKS = 10
"""Ranks that negatives of graded sentences are drawn from: their pools are small, and further down is nothing near."""

Columns = Sequence[Sequence[Any]]
Verdict = Literal["positive", "negative", "apart"] | None
VERDICTS: dict[str, dict[str, Verdict]] = {
    "candidates": {"1": "positive", "0": "negative"},
    "judged_pairs": {"1": "positive", "0": "negative"},
    "nli": {"entailment": "positive", "contradiction": "negative"},
}
"""What a label says of a passage: the answer to the query, a negative, or (apart) neither, though it is judged."""


@dataclass
class _Question:
    """A query and what is known about it: normalised text -> text; ``apart`` are no negatives, though not positives."""

    query: str
    pos: dict[str, str] = field(default_factory=dict)
    neg: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


def training_rows(
    shape: Shape,
    records: pa.Table,
    dataset: Dataset,
    negatives: int,
    limit: int | None,
    generator: np.random.Generator,
) -> tuple[list[TrainingExample], Counter[str]]:
    """Rows of one dataset by the rule of its shape.

    Args:
        shape: What the columns mean.
        records: Its training records: the part `train`, or what is left of it.
        dataset: Gives prompt and type of the rows.
        negatives: Most negatives of a row; 0 makes rows without.
        limit: Most rows, drawn; None for all.
        generator: Draws rows, then what each needs.

    Returns:
        The rows, and how many were dropped for each reason.

    Raises:
        DataError: A shape that is only evaluated.
    """
    if shape == "judged":
        raise DataError("records of shape 'judged' cannot be trained on", where=dataset.id, expected="another shape")
    dropped: Counter[str] = Counter()
    columns = [column.to_pylist() for column in records.columns]
    if shape == "labelled":
        usable, clear = _clear_labels(columns, dropped)
        made = labelled_examples(draw(usable, limit, generator), clear, dataset, generator, negatives)
        return list(made), +dropped
    questions = _questions(shape, columns, dropped)
    if shape == "nli":
        negatives, found = 1, len(questions)
        questions = [one for one in questions if one.neg]
        dropped["query without a negative"] += found - len(questions)
    chosen = draw(questions, limit, generator)
    own = [draw(list(one.neg.values()), negatives, generator) for one in chosen]
    pool, rows = _pool(shape, columns), []
    for one, known in progress(zip(chosen, own, strict=True), len(chosen), f"negatives of {dataset.id}"):
        apart, wanted = {normalise(one.query), *one.pos, *one.neg, *one.apart}, negatives - len(known)
        if wanted and shape == "judged_pairs":
            known += pool.random(apart, wanted, generator)
        elif wanted:
            ranks = SENTENCE_RANKS if shape == "graded" else RANKS
            known += pool.nearest(one.query, apart, wanted, generator, ranks)
        if known or not negatives:
            rows.append(example(one.query, list(one.pos.values()), known, dataset))
    dropped["query without a negative"] += len(chosen) - len(rows)
    return rows, +dropped


def _judgements(shape: Shape, columns: Columns) -> Iterator[tuple[str, str, Verdict]]:
    """Query, passage and what is said of it, for every record; sentences are each other's query."""
    for one, other, *label in zip(*columns, strict=True):
        verdict: Verdict = "positive"
        if shape == "graded":
            score = float(label[0])
            verdict = "positive" if score >= ALIKE else "negative" if score <= DIFFERENT else "apart"
        elif label:
            verdict = VERDICTS[shape].get(label[0])
        yield one, other, verdict
        if shape in ("graded", "judged_pairs") and one != other:
            yield other, one, "apart" if shape == "judged_pairs" and verdict == "positive" else verdict


def _questions(shape: Shape, columns: Columns, dropped: Counter[str]) -> list[_Question]:
    """One question for every query that has a positive; queries without, and pairs of no use, are counted.

    A text that is a positive, or set apart, is no negative.
    """
    questions: dict[str, _Question] = {}
    negatives: list[tuple[str, str, str]] = []
    apart: dict[str, set[str]] = defaultdict(set)
    for query, passage, verdict in _judgements(shape, columns):
        key, answer = normalise(query), normalise(passage)
        if verdict == "positive" and key == answer:
            dropped["both texts are equal"] += 1
        elif verdict == "positive":
            question = questions.setdefault(key, _Question(query))
            dropped["repeated pair"] += answer in question.pos
            question.pos.setdefault(answer, passage)
        elif verdict == "negative":
            negatives.append((key, answer, passage))
        elif verdict == "apart":
            apart[key].add(answer)
    asked = [*columns[0], *columns[1]] if shape == "graded" else columns[0]
    dropped["query without a positive"] += len(set(map(normalise, asked)) - questions.keys())
    for key, answer, passage in negatives:
        if key in questions and answer not in {key, *questions[key].pos, *apart[key]}:
            questions[key].neg.setdefault(answer, passage)
    for key, question in questions.items():
        question.apart = apart[key]
    return list(questions.values())


def _pool(shape: Shape, columns: Columns) -> NegativePool:
    """Where more negatives are: passages of all queries, or sentences; none where a row has its own alone."""
    if shape == "graded":
        return NegativePool(text for *pair, score in zip(*columns, strict=True) if score <= DIFFERENT for text in pair)
    return NegativePool([] if shape == "nli" else [*columns[0], *columns[1]] if shape == "judged_pairs" else columns[1])


def _clear_labels(columns: Columns, dropped: Counter[str]) -> tuple[list[Labelled], list[Labelled]]:
    """Texts that rows can be made of, and all texts of one label, each once."""
    labels: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, Labelled] = {}
    for text, label in zip(*columns, strict=True):
        labels[normalise(text)].add(label)
        texts.setdefault(normalise(text), Labelled(text, label, "train"))
    clear = [unit for key, unit in texts.items() if len(labels[key]) == 1]
    sizes = Counter(unit.label for unit in clear)
    usable = [unit for unit in clear if sizes[unit.label] > 1 and len(sizes) > 1]
    dropped["repeated text"] += len(columns[0]) - len(texts)
    dropped["text of two labels"] += len(texts) - len(clear)
    dropped["only text of its label, or no other label"] += len(clear) - len(usable)
    return usable, clear


def labelled_examples(
    chosen: Sequence[Labelled],
    pool: Sequence[Labelled],
    dataset: Dataset,
    generator: np.random.Generator,
    most_negatives: int = NEGATIVES,
) -> Iterator[TrainingExample]:
    """Rows of a text, texts of its class and texts of other classes; a class of one text gives no row."""
    texts: dict[str, list[str]] = defaultdict(list)
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for unit in pool:
        places[unit.label, unit.text].append(len(texts[unit.label]))
        texts[unit.label].append(unit.text)
    for unit in chosen:
        # Classes can be large: a text's own places are counted out, the rest of its class is not copied.
        same, own = texts[unit.label], places[unit.label, unit.text]
        others = sorted(set(texts) - {unit.label})
        if len(same) > len(own) and others:
            labels = [others[place] for place in generator.integers(len(others), size=2 * most_negatives)]
            negatives = [texts[label][int(generator.integers(len(texts[label])))] for label in labels]
            distinct = list(dict.fromkeys(negatives))[:most_negatives]
            drawn = draw(range(len(same) - len(own)), POSITIVES, generator)
            yield example(unit.text, [same[_without(own, place)] for place in drawn], distinct, dataset)


def _without(taken: Sequence[int], place: int) -> int:
    """The place in a list of the ``place``-th item that is not at one of the taken places (ascending)."""
    for one in taken:
        place += place >= one
    return place


def example(query: str, pos: Sequence[str], neg: Sequence[str], dataset: Dataset) -> TrainingExample:
    """One training row with the prompt and type of its dataset."""
    return TrainingExample(query, tuple(pos), tuple(neg), dataset.prompt, dataset.example_type)
