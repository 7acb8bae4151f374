"""Training rows from raw records: one stated rule for every shape of records.

Shared by all: texts are the same if they are equal after `normalise`; the records of one query are merged into one row;
what is no use is dropped and counted under its reason; rows keep the order of the records, and ``limit`` of them are
drawn before negatives are looked for. A row has at most ``negatives`` negatives, none of them twice, none equal to the
query or to one of its positives; a row that finds none is dropped.

* ``pairs``: query -> all its passages. Negatives by BM25 among the passages of all queries.
* ``candidates``: query -> its passages of label 1. Negatives are its passages of label 0; too few are filled by BM25
  among the passages of all queries.
* ``judged_pairs``: first sentence -> the second sentences it means the same as; one direction, so that a pair is
  learnt once. Negatives are sentences judged different from the query, in either order; filled with random sentences.
* ``graded``: sentence -> those of score 4 or more with it; both directions, as a score has none and there are few such
  pairs. Negatives are sentences of score 2 or less with the query; filled with random sentences of such pairs, never
  one that has a score above 2 with the query. Neither takes BM25: what shares words with such a sentence is often a
  paraphrase that nobody judged.
* ``nli``: premise -> the hypotheses it entails, with exactly one of those it contradicts as negative, drawn.
* ``labelled``: text -> up to 3 other texts of its label, negatives are texts of other labels; both drawn
  (`labelled_examples`). A text of two labels is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import Labelled, TrainingExample, normalise
from boom_utils.data.manifest import Dataset
from boom_utils.data.negatives import How, NegativePool, Wanted, mine_negatives
from boom_utils.data.sampling import draw
from boom_utils.data.text_files import Shape
from boom_utils.errors import DataError

NEGATIVES = 7
"""Negatives a row, for the paper's group of 8 passages."""
POSITIVES = 3
"""Most positives of rows that could have very many."""
ALIKE, DIFFERENT = 4.0, 2.0
"""Score from which two sentences count as the same, and up to which as different."""

_Pair = tuple[str, str]


@dataclass(frozen=True)
class RowOptions:
    """How rows of one dataset are made.

    Args:
        dataset: Gives prompt and type of the rows.
        negatives: Most negatives of a row; 0 makes rows without.
        limit: Most rows, drawn; None for all.
    """

    dataset: Dataset
    negatives: int
    limit: int | None = None


@dataclass(frozen=True)
class _Judged:
    """What records say: pairs that belong together, all queries, pairs that do not, and where more negatives are."""

    positives: Iterable[_Pair]
    queries: Iterable[str]
    negatives: Iterable[_Pair] = ()
    apart: Iterable[_Pair] = ()
    pool: Sequence[str] = ()
    how: How = "nearest"


@dataclass
class _Question:
    """A query and what is known about it: normalised text -> text; ``apart`` are no negatives, though not positives."""

    query: str
    pos: dict[str, str] = field(default_factory=dict)
    neg: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


def training_rows(
    shape: Shape, records: pa.Table, options: RowOptions, generator: np.random.Generator
) -> tuple[list[TrainingExample], Counter[str]]:
    """Rows of one dataset by the rule of its shape.

    Args:
        shape: What the columns mean.
        records: Its training records: the part `train`, or what is left of it.
        options: How many rows and negatives.
        generator: Draws rows, then what each needs.

    Returns:
        The rows, and how many were dropped for each reason.

    Raises:
        DataError: A shape that is only evaluated.
    """
    dropped: Counter[str] = Counter()
    columns = [column.to_pylist() for column in records.columns]
    if shape == "labelled":
        return _labelled_rows(columns, options, generator, dropped), +dropped
    if shape == "judged":
        raise DataError(
            f"records of shape '{shape}' cannot be trained on", where=options.dataset.id, expected="another shape"
        )
    judged = _judged(shape, columns)
    questions = list(_questions(judged, dropped).values())
    if shape == "nli":
        whole = [one for one in questions if one.neg]
        dropped["query without a negative"] += len(questions) - len(whole)
        questions, options = whole, RowOptions(options.dataset, 1, options.limit)
    return _rows(questions, judged, options, generator, dropped), +dropped


def _judged(shape: Shape, columns: list[list[Any]]) -> _Judged:
    """What the records of a shape say."""
    if shape == "pairs":
        queries, passages = columns
        return _Judged(zip(queries, passages, strict=True), queries, pool=passages)
    queries, passages, labels = columns
    both = [*queries, *passages]

    def of(*wanted: str) -> list[_Pair]:
        return [(one, other) for one, other, label in zip(*columns, strict=True) if label in wanted]

    if shape == "candidates":
        return _Judged(of("1"), queries, of("0"), pool=passages)
    if shape == "judged_pairs":
        return _Judged(of("1"), queries, _both_ways(of("0")), _both_ways(of("1")), both, "random")
    if shape == "nli":
        return _Judged(of("entailment"), queries, of("contradiction"))
    scored = [(one, other, float(score)) for one, other, score in zip(queries, passages, labels, strict=True)]
    high = _both_ways((one, other) for one, other, score in scored if score >= ALIKE)
    low = [(one, other) for one, other, score in scored if score <= DIFFERENT]
    apart = _both_ways((one, other) for one, other, score in scored if score > DIFFERENT)
    return _Judged(high, both, _both_ways(low), apart, [text for pair in low for text in pair], "random")


def _both_ways(pairs: Iterable[_Pair]) -> list[_Pair]:
    return [pair for one, other in pairs for pair in dict.fromkeys(((one, other), (other, one)))]


def _questions(judged: _Judged, dropped: Counter[str]) -> dict[str, _Question]:
    """One question for every query that has a positive; queries without, and pairs of no use, are counted.

    A text that is a positive, or set apart, is no negative.
    """
    questions: dict[str, _Question] = {}
    for query, passage in judged.positives:
        key, answer = normalise(query), normalise(passage)
        if key == answer:
            dropped["both texts are equal"] += 1
            continue
        question = questions.setdefault(key, _Question(query))
        dropped["repeated pair"] += answer in question.pos
        question.pos.setdefault(answer, passage)
    dropped["query without a positive"] += len({normalise(query) for query in judged.queries} - questions.keys())
    for query, passage in judged.negatives:
        key, answer = normalise(query), normalise(passage)
        if key in questions and answer != key and answer not in questions[key].pos:
            questions[key].neg.setdefault(answer, passage)
    for query, passage in judged.apart:
        key, answer = normalise(query), normalise(passage)
        if key in questions:
            questions[key].apart.add(answer)
            questions[key].neg.pop(answer, None)
    return questions


def _rows(
    questions: Sequence[_Question],
    judged: _Judged,
    options: RowOptions,
    generator: np.random.Generator,
    dropped: Counter[str],
) -> list[TrainingExample]:
    """Rows of drawn questions: their own negatives, drawn, then those that are found."""
    chosen = draw(questions, options.limit, generator)
    own = [draw(list(one.neg.values()), options.negatives, generator) for one in chosen]
    wanted = [
        Wanted(one.query, {normalise(one.query), *one.pos, *one.neg, *one.apart}, options.negatives - len(known))
        for one, known in zip(chosen, own, strict=True)
    ]
    pool, label = NegativePool(judged.pool), f"negatives of {options.dataset.id}"
    rows = []
    for one, known, more in zip(chosen, own, mine_negatives(pool, wanted, generator, label, judged.how), strict=True):
        if options.negatives and not (known or more):
            dropped["query without a negative"] += 1
        else:
            rows.append(example(one.query, list(one.pos.values()), [*known, *more], options.dataset))
    return rows


def _labelled_rows(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
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
    chosen = draw(usable, options.limit, generator)
    return list(labelled_examples(chosen, clear, options.dataset, generator, options.negatives))


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
