"""What every corpus needs to write an examples folder: drawing, rows of labelled texts, and the facts of each set.

Every function that draws gets its own generator and keeps the order of what it draws from, so equal input gives equal
rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from boom_utils.data.examples import Labelled, TrainingExample, write_examples, write_jsonl
from boom_utils.data.manifest import Dataset
from boom_utils.errors import DataError, bullet_list

NEGATIVES = 7
"""Negatives a row, for the paper's group of 8 passages."""
POSITIVES = 3
"""Most positives of rows that could have very many."""

Item = TypeVar("Item")
Row = dict[str, Any]


def draw(items: Sequence[Item], limit: int | None, generator: np.random.Generator, skip: int = 0) -> list[Item]:
    """At most ``limit`` items without replacement, in their own order; all when ``limit`` is None.

    With ``skip``, as many as that are passed over first: with a generator of the same seed, and ``skip`` the limit of
    another draw, no item is in both.
    """
    if limit is None or limit >= len(items):
        return list(items)[:0] if skip else list(items)
    return [items[place] for place in np.sort(generator.permutation(len(items))[skip : skip + limit])]


def draw_retrieval(
    relevant: Sequence[Sequence[int]],
    documents: int,
    limits: tuple[int | None, int | None],
    generator: np.random.Generator,
    skip: int = 0,
) -> tuple[list[int], list[int]]:
    """Queries and documents of a retrieval task.

    Args:
        relevant: Places of the relevant documents of every query.
        documents: Number of documents there are.
        limits: Most queries and most documents, None for all; what is relevant to a drawn query is always there, the
            rest are distractors.
        generator: Draws queries, then distractors.
        skip: Queries that are passed over first; see `draw`.

    Returns:
        Places of the queries, and of the documents, in order.
    """
    asked = draw(range(len(relevant)), limits[0], generator, skip)
    needed = {place for query in asked for place in relevant[query]}
    rest = [place for place in range(documents) if place not in needed]
    spare = None if limits[1] is None else max(0, limits[1] - len(needed))
    return asked, sorted(needed.union(draw(rest, spare, generator)))


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


@dataclass
class WrittenSets:
    """Writes the sets of an examples folder and keeps what the ledger and the summary need of them.

    Args:
        folder: The examples folder.
        sets: Rows and numbers of words of every set.
        trained_on: Texts of every set that models learn from.
        evaluated: Texts of every evaluation set.
    """

    folder: Path
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained_on: dict[str, list[str]] = field(default_factory=dict)
    evaluated: dict[str, list[str]] = field(default_factory=dict)

    def write_examples(self, name: str, examples: Sequence[TrainingExample]) -> None:
        """Write training rows as ``<name>.jsonl``."""
        write_examples(self.folder / f"{name}.jsonl", examples)
        passages = [text for example in examples for text in (*example.pos, *example.neg)]
        self.trained_on[name] = [*(example.query for example in examples), *passages]
        words = {"query_words": _lengths(e.query for e in examples), "passage_words": _lengths(passages)}
        self.sets[name] = {"rows": len(examples), **words}

    def write_task(self, task: str, files: Mapping[str, Sequence[Row]]) -> None:
        """Write the files of one evaluation task as ``evaluation/<task>/<file>.jsonl``."""
        for name, rows in files.items():
            write_jsonl(self.folder / "evaluation" / task / f"{name}.jsonl", rows)
        texts = {
            name: [str(row[key]) for row in rows for key in ("text", "sentence1", "sentence2") if key in row]
            for name, rows in files.items()
            if name not in ("qrels", "top_ranked")
        }
        self.evaluated[task] = [text for part in texts.values() for text in part]
        main = next(iter(set(files) & {"queries", "test"}))
        facts: Row = {"rows": len(files[main]), **{f"{name}_rows": len(rows) for name, rows in files.items()}}
        self.sets[f"evaluation/{task}"] = facts | {f"{name}_words": _lengths(part) for name, part in texts.items()}

    @property
    def rows(self) -> dict[str, int]:
        """Rows of every set; of an evaluation set, its queries, pairs or tested texts."""
        return {name: facts["rows"] for name, facts in self.sets.items()}

    def refuse_empty(self, fix: str, dropped: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """Check that every set has rows.

        Args:
            fix: What the user can do about it.
            dropped: What was left out of each set, by reason, if that is known.

        Raises:
            DataError: Some have none.
        """
        empty = [name for name, rows in self.rows.items() if not rows]
        left_out = [f"{name}, left out: {dict(dropped[name])}" for name in empty if dropped and name in dropped]
        if empty:
            raise DataError(
                "the corpus is too small for some sets",
                found=f"no rows in {', '.join(empty)}{bullet_list(left_out)}",
                fix=fix,
            )


def word_numbers(counts: Iterable[int]) -> dict[str, float]:
    """Minimum, median, 95th percentile and maximum of some numbers of words; zeros where there are none."""
    found = np.fromiter(counts, dtype=np.int64)
    found = found if len(found) else np.zeros(1, dtype=np.int64)
    values = {"min": found.min(), "median": np.median(found), "p95": np.percentile(found, 95), "max": found.max()}
    return {name: round(float(value), 1) for name, value in values.items()}


def _lengths(texts: Iterable[str]) -> dict[str, float]:
    return word_numbers(len(text.split()) for text in texts)
