"""Texts of evaluation sets among what models are trained on: exact after normalisation, and near-duplicates.

Only the evaluated texts are kept in memory; training rows are read in a stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.data.examples import TrainingExample, batches, iter_examples, normalise
from boom_utils.data.manifest import EvaluationTask
from boom_utils.data.near_duplicates import NearDuplicates, NearOptions
from boom_utils.errors import DataError

Numbers = NDArray[np.uint32]

_ROWS_A_BATCH = 2048
_EXAMPLES = 3


@dataclass(frozen=True)
class OverlapOptions:
    """How texts are compared.

    Args:
        near: Near-duplicates too; otherwise only texts that are the same after normalisation.
        similarity: What counts as near.
    """

    near: bool = True
    similarity: NearOptions = field(default_factory=NearOptions)


@dataclass(frozen=True, eq=False)
class Shared:
    """What one evaluation set shares with one training set.

    Args:
        exact: Numbers of the distinct evaluated texts that a training text repeats, ascending uint32.
        near: Numbers of the other evaluated texts that a training text nearly repeats, ascending uint32.
        rows: Training rows that hold such a text, ascending uint32, from 0.
        examples: Up to three pairs of an evaluated and a training text, normalised, of the first rows.
    """

    exact: Numbers
    near: Numbers
    rows: Numbers
    examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Overlap:
    """What evaluation and training sets share.

    Args:
        shared: By the names of the evaluation set and the training set; every pair is there.
        texts: Distinct texts of every evaluation set.
        rows: Rows read of every training set.
    """

    shared: Mapping[tuple[str, str], Shared]
    texts: Mapping[str, int]
    rows: Mapping[str, int]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """One entry a pair of sets: distinct evaluated texts shared (exact, near), offending rows, up to 3 examples."""
        return [
            {
                "evaluation": task,
                "trained_on": name,
                "exact": len(found.exact),
                "near": len(found.near),
                "rows": len(found.rows),
                "examples": [dict(example) for example in found.examples],
            }
            for (task, name), found in sorted(self.shared.items())
        ]

    @property
    def exact(self) -> int:
        """Evaluated texts that are trained on, over all pairs of sets; zero where the sets are kept apart."""
        return sum(len(found.exact) for found in self.shared.values())

    @property
    def offending(self) -> dict[str, Numbers]:
        """Rows of every training set that hold an evaluated text, exact or near: ascending uint32, from 0."""
        return {name: _union(found.rows for (_, of), found in self.shared.items() if of == name) for name in self.rows}

    def seen(self, task: str, trained: Iterable[str]) -> tuple[int, int]:
        """Distinct texts of one evaluation set that some of the training sets repeat: exactly, and only nearly."""
        pairs = [self.shared[task, name] for name in trained]
        exact, near = _union(found.exact for found in pairs), _union(found.near for found in pairs)
        return len(exact), len(np.setdiff1d(near, exact))


def _union(parts: Iterable[Numbers]) -> Numbers:
    return np.unique(np.concatenate([np.zeros(0, dtype=np.uint32), *parts]))


def find_overlap(
    trained: Mapping[str, Sequence[TrainingExample] | Path],
    evaluated: Mapping[str, Iterable[str]],
    options: OverlapOptions | None = None,
) -> Overlap:
    """Find evaluated texts among queries, positives and negatives of training sets.

    Args:
        trained: Training sets by name: their examples, or a file of `write_examples`, which is read in a stream.
        evaluated: Texts of evaluation sets by name; empty ones are left out.
        options: How texts are compared.

    Returns:
        What every pair of sets shares. What near-duplicates may be missed is in `NearDuplicates.recall`.

    Raises:
        DataError: A training file is missing, malformed or empty.
    """
    options = options or OverlapOptions()
    known = _Known(evaluated, options)
    found = {(task, name): _Found() for task in known.texts_of for name in trained}
    rows: dict[str, int] = {}
    for name, source in sorted(trained.items()):
        rows[name] = 0
        examples = iter_examples(source) if isinstance(source, Path) else source
        for batch in batches(examples, _ROWS_A_BATCH):
            for row, text, similar in known.matches(batch):
                for number, similarity in similar.items():
                    for task in known.sets[number]:
                        texts = known.texts[number], text
                        found[task, name].add(number, rows[name] + row, texts, similarity)
            rows[name] += len(batch)
    return Overlap(
        {pair: of_pair.shared() for pair, of_pair in found.items()},
        {task: len(texts) for task, texts in known.texts_of.items()},
        rows,
    )


class _Known:
    """The distinct evaluated texts, and which sets each is in."""

    def __init__(self, evaluated: Mapping[str, Iterable[str]], options: OverlapOptions) -> None:
        self.texts_of = {task: {normalise(text) for text in texts} - {""} for task, texts in sorted(evaluated.items())}
        self.texts = sorted(set().union(*self.texts_of.values()))
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        self.sets: list[list[str]] = [[] for _ in self.texts]
        for task, texts in self.texts_of.items():
            for text in texts:
                self.sets[self._numbers[text]].append(task)
        self._near = NearDuplicates(self.texts, options.similarity) if options.near else None

    def matches(self, batch: Sequence[TrainingExample]) -> list[tuple[int, str, dict[int, float]]]:
        """Row in the batch, one of its texts, and number and similarity of every evaluated text that it repeats."""
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, example in enumerate(batch):
            for text in (example.query, *example.pos, *example.neg):
                rows[text].append(row)
        texts = [normalise(text) for text in rows]
        found = self._similar(texts)
        matches = [
            (row, text, similar)
            for places, text, similar in zip(rows.values(), texts, found, strict=True)
            for row in places
            if similar
        ]
        return sorted(matches, key=itemgetter(0))

    def _similar(self, texts: Sequence[str]) -> list[dict[int, float]]:
        found = [{self._numbers[text]: 1.0} if text in self._numbers else {} for text in texts]
        if self._near is not None:
            asked = [place for place, text in enumerate(texts) if text]
            near = self._near.find([texts[place] for place in asked])
            for place, similar in zip(asked, near, strict=True):
                found[place].update(similar)
        return found


class _Found:
    """What two sets share, while it is found."""

    def __init__(self) -> None:
        self._exact: set[int] = set()
        self._near: set[int] = set()
        self._rows: set[int] = set()
        self._examples: list[dict[str, Any]] = []

    def add(self, number: int, row: int, texts: tuple[str, str], similarity: float) -> None:
        """Note that a row's text repeats an evaluated one: ``texts`` are the evaluated and the training text."""
        evaluated, trained = texts
        (self._exact if evaluated == trained else self._near).add(number)
        self._rows.add(row)
        example = {"evaluated": evaluated, "trained": trained, "similarity": round(similarity, 4)}
        if len(self._examples) < _EXAMPLES and example not in self._examples:
            self._examples.append(example)

    def shared(self) -> Shared:
        """All of it, in order."""
        near = self._near - self._exact
        exact, alike, rows = (np.array(sorted(part), dtype=np.uint32) for part in (self._exact, near, self._rows))
        return Shared(exact, alike, rows, tuple(self._examples))


def task_domains(tasks: Iterable[EvaluationTask], trained: Collection[str], overlap: Overlap) -> list[dict[str, Any]]:
    """Say of every evaluation task whether it is in domain, and how much of it was seen in training all the same.

    In domain is what `EvaluationTask.domain` says: its dataset, or another one of the same kind, is trained on.

    Args:
        tasks: Evaluation tasks; their ids are the names of the evaluation sets of ``overlap``.
        trained: Names of the training sets that models learn from.
        overlap: What the sets share.

    Returns:
        One entry a task: its domain, its distinct texts, how many of them training texts repeat (exact, near), the
        share of both, and the same two counts for each training set that repeats any.

    Raises:
        DataError: A task or a training set is not in ``overlap``; all of them together.
    """
    tasks, names = list(tasks), sorted(trained)
    absent = [f"evaluation set '{task.id}'" for task in tasks if task.id not in overlap.texts]
    absent += [f"training set '{name}'" for name in names if name not in overlap.rows]
    if absent:
        raise DataError("the overlap does not cover these sets", found=", ".join(absent), fix="find the overlap anew")
    return [_domain(task, names, overlap) for task in tasks]


def _domain(task: EvaluationTask, trained: Sequence[str], overlap: Overlap) -> dict[str, Any]:
    texts, (exact, near) = overlap.texts[task.id], overlap.seen(task.id, trained)
    seen = {name: overlap.seen(task.id, [name]) for name in trained}
    return {
        "task": task.id,
        "dataset": task.dataset,
        "domain": task.domain(trained),
        "texts": texts,
        "exact": exact,
        "near": near,
        "seen": round((exact + near) / max(1, texts), 6),
        "seen_in": {name: {"exact": same, "near": alike} for name, (same, alike) in seen.items() if same + alike},
    }
