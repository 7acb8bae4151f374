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
  (`boom_utils.data.example_sets.labelled_examples`). A text of two labels is left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from boom_utils.data.example_sets import draw, example, labelled_examples
from boom_utils.data.examples import Labelled, TrainingExample, normalise
from boom_utils.data.manifest import Dataset
from boom_utils.data.negatives import How, NegativePool, Wanted, mine_negatives
from boom_utils.data.record_tables import columns_of
from boom_utils.data.text_files import Shape
from boom_utils.errors import DataError

ALIKE, DIFFERENT = 4.0, 2.0
"""Score from which two sentences count as the same, and up to which as different."""


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


@dataclass
class _Question:
    """A query and what is known about it: normalised text -> text."""

    query: str
    pos: dict[str, str] = field(default_factory=dict)
    neg: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


_Questions = dict[str, _Question]
_Pair = tuple[str, str]
_Rule = Callable[[list[list[str]], RowOptions, np.random.Generator, Counter[str]], list[TrainingExample]]


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
    rules: dict[str, _Rule] = {
        "pairs": _pairs,
        "candidates": _candidates,
        "judged_pairs": _judged_pairs,
        "graded": _graded,
        "nli": _nli,
        "labelled": _labelled,
    }
    if shape not in rules:
        raise DataError(
            f"records of shape '{shape}' cannot be trained on", where=options.dataset.id, expected=", ".join(rules)
        )
    dropped: Counter[str] = Counter()
    rows = rules[shape](columns_of(records), options, generator, dropped)
    return rows, +dropped


def _pairs(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
    queries, passages = columns
    questions = _ask(zip(queries, passages, strict=True), queries, dropped)
    return _rows(questions, passages, options, generator, dropped)


def _candidates(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
    queries, passages, labels = columns
    records = list(zip(queries, passages, labels, strict=True))
    questions = _ask(((q, p) for q, p, label in records if label == "1"), queries, dropped)
    _add_negatives(questions, ((q, p) for q, p, label in records if label == "0"))
    return _rows(questions, passages, options, generator, dropped)


def _judged_pairs(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
    first, second, labels = columns
    records = list(zip(first, second, labels, strict=True))
    same = [(one, other) for one, other, label in records if label == "1"]
    questions = _ask(same, first, dropped)
    _add_negatives(questions, _both_ways((one, other) for one, other, label in records if label == "0"))
    _set_apart(questions, _both_ways(same))
    return _rows(questions, [*first, *second], options, generator, dropped, "random")


def _graded(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
    first, second, scores = columns
    records = [(one, other, float(score)) for one, other, score in zip(first, second, scores, strict=True)]
    high = _both_ways((one, other) for one, other, score in records if score >= ALIKE)
    questions = _ask(high, [*first, *second], dropped)
    low = [(one, other) for one, other, score in records if score <= DIFFERENT]
    _add_negatives(questions, _both_ways(low))
    _set_apart(questions, _both_ways((one, other) for one, other, score in records if score > DIFFERENT))
    return _rows(questions, [text for pair in low for text in pair], options, generator, dropped, "random")


def _nli(
    columns: list[list[str]], options: RowOptions, generator: np.random.Generator, dropped: Counter[str]
) -> list[TrainingExample]:
    premises, hypotheses, labels = columns
    records = list(zip(premises, hypotheses, labels, strict=True))
    questions = _ask(((p, h) for p, h, label in records if label == "entailment"), premises, dropped)
    _add_negatives(questions, ((p, h) for p, h, label in records if label == "contradiction"))
    whole = [question for question in questions.values() if question.neg]
    dropped["query without a negative"] += len(questions) - len(whole)
    return [
        example(one.query, list(one.pos.values()), draw(list(one.neg.values()), 1, generator), options.dataset)
        for one in draw(whole, options.limit, generator)
    ]


def _labelled(
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


def _ask(positives: Iterable[_Pair], queries: Iterable[str], dropped: Counter[str]) -> _Questions:
    """One question for every query that has a positive; queries without, and pairs of no use, are counted."""
    questions: _Questions = {}
    for query, passage in positives:
        key, answer = normalise(query), normalise(passage)
        if key == answer:
            dropped["both texts are equal"] += 1
            continue
        question = questions.setdefault(key, _Question(query))
        dropped["repeated pair"] += answer in question.pos
        question.pos.setdefault(answer, passage)
    dropped["query without a positive"] += len({normalise(query) for query in queries} - questions.keys())
    return questions


def _add_negatives(questions: _Questions, pairs: Iterable[_Pair]) -> None:
    """Note known negatives of the questions; a text that is also a positive stays one."""
    for query, passage in pairs:
        key, answer = normalise(query), normalise(passage)
        if key in questions and answer != key and answer not in questions[key].pos:
            questions[key].neg.setdefault(answer, passage)


def _set_apart(questions: _Questions, pairs: Iterable[_Pair]) -> None:
    """Note texts that are no negatives of a question, though not its positives."""
    for query, passage in pairs:
        key, answer = normalise(query), normalise(passage)
        if key in questions:
            questions[key].apart.add(answer)
            questions[key].neg.pop(answer, None)


def _both_ways(pairs: Iterable[_Pair]) -> list[_Pair]:
    return [pair for one, other in pairs for pair in dict.fromkeys(((one, other), (other, one)))]


def _rows(
    questions: _Questions,
    passages: Sequence[str],
    options: RowOptions,
    generator: np.random.Generator,
    dropped: Counter[str],
    how: How = "nearest",
) -> list[TrainingExample]:
    """Rows of drawn questions: their own negatives, drawn, then those that are found."""
    chosen = draw(list(questions.values()), options.limit, generator)
    own = [draw(list(one.neg.values()), options.negatives, generator) for one in chosen]
    wanted = [
        Wanted(one.query, {normalise(one.query), *one.pos, *one.neg, *one.apart}, options.negatives - len(known))
        for one, known in zip(chosen, own, strict=True)
    ]
    found = mine_negatives(NegativePool(passages), wanted, generator, f"negatives of {options.dataset.id}", how)
    rows = []
    for one, known, more in zip(chosen, own, found, strict=True):
        if options.negatives and not (known or more):
            dropped["query without a negative"] += 1
        else:
            rows.append(example(one.query, list(one.pos.values()), [*known, *more], options.dataset))
    return rows
