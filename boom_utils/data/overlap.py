"""Texts of evaluation sets among what models are trained on: exact after normalisation, and near-duplicates.

Two texts are nearly the same if the Jaccard similarity of their shingles is at least `THRESHOLD`. A known text with few
words is compared by its character shingles, every other one by its word shingles (one changed word takes three word
shingles away, which is most of a short text). Of a known text with n shingles at most (1 - t) n are missing in a text
that is near to it, so a few of its rarest ones find every candidate, and each candidate is compared whole: no pair is
missed, and none is found that is not similar. Only evaluated texts are kept in memory; training rows are read in a
stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boom_utils.data.examples import TrainingExample, batches, normalise
from boom_utils.data.manifest import EvaluationTask

THRESHOLD = 0.8
WORDS, CHARACTERS = 3, 5
"""Words, and characters, of a shingle."""
SHORT = 30
"""A known text with fewer words is compared by characters. From here on one changed word leaves a similarity of 0.8."""
ROWS_AT_ONCE, EXAMPLES = 256, 3
_SPARE, _BITS, _MULTIPLIER = 4, 22, np.uint64(0x9E3779B97F4A7C15)


# --- near-duplicates --------------------------------------------------------------------------------------------------


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared shingles over all shingles of two texts.

    Args:
        left: Shingles of the one.
        right: Shingles of the other.

    Returns:
        A share in [0, 1]; 0 when both are empty.

    >>> jaccard(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    both = len(left & right)
    return both / max(1, len(left) + len(right) - both)


def word_shingles(text: str, size: int) -> frozenset[str]:
    """All runs of ``size`` words of a normalised text; none when it has fewer words.

    Args:
        text: Words with one space between them.
        size: Words a run.

    Returns:
        The runs, each once.

    >>> sorted(word_shingles("one two three", 2))
    ['one two', 'two three']
    """
    words = text.split(" ")
    return frozenset(map(" ".join, zip(*(words[start:] for start in range(size)), strict=False)))


def character_shingles(text: str, size: int) -> frozenset[str]:
    """All runs of ``size`` characters; the text itself when it is shorter."""
    return frozenset([text[start : start + size] for start in range(max(1, len(text) - size + 1))])


class _Index:
    """Known texts that are compared by the same shingles.

    Args:
        texts: Normalised, distinct, one at least.
        by_words: Compared by word shingles, else by character shingles.
    """

    def __init__(self, texts: Sequence[str], *, by_words: bool) -> None:
        self._texts, self._by_words = texts, by_words
        hashes = [np.unique(self._hashed([text])[1]) for text in texts]
        self._sizes = np.array([len(own) for own in hashes])
        _, places, counts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
        missing = ((1 - THRESHOLD) * self._sizes + 1e-9).astype(int)
        # The rarest of a text: as many as one may lack and some more, so that one shared by chance is not enough.
        chosen = [
            own[np.argsort(counts[places[end - len(own) : end]], kind="stable")[: most + _SPARE]]
            for own, end, most in zip(hashes, np.cumsum(self._sizes).tolist(), missing.tolist(), strict=True)
        ]
        numbers = np.array([len(own) for own in chosen])
        self._needed = numbers - missing
        held, owners = np.concatenate(chosen), np.repeat(np.arange(len(texts)), numbers)
        order = np.argsort(held, kind="stable")
        self._owners = owners[order]
        self._held, starts = np.unique(held[order], return_index=True)
        self._starts = np.append(starts, len(held))  # the owners of a shingle stand together
        self._table = np.zeros(2**_BITS, dtype=bool)  # a quick look: most shingles of a text are of no known one
        self._table[self._slots(held)] = True

    def find(self, texts: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        """A text, a known text that is near to it, and their similarity, for every such pair."""
        places, hashes = self._hashed(texts)
        # No text may have many more shingles than a known one; of its own, it has at least as many as fall apart here.
        apart = np.zeros((len(texts), 2**10), dtype=bool)
        apart[places, (hashes >> np.uint64(54)).astype(np.int64)] = True
        at_least, at_most = apart.sum(1), np.bincount(places, minlength=len(texts))
        looked = self._table[self._slots(hashes)] & (at_least <= self._sizes.max() / THRESHOLD + 1e-9)[places]
        places, hashes = places[looked], hashes[looked]
        found = np.minimum(np.searchsorted(self._held, hashes), len(self._held) - 1)
        is_known = self._held[found] == hashes
        places, first, last = places[is_known], self._starts[found[is_known]], self._starts[found[is_known] + 1]
        numbers = last - first
        # All owners of all shingles: runs from first to last, one after the other.
        runs = np.repeat(first - (np.cumsum(numbers) - numbers), numbers) + np.arange(numbers.sum())
        hits = np.repeat(places, numbers) * len(self._texts) + self._owners[runs]
        pairs, counts = np.unique(hits, return_counts=True)
        place, owner = np.divmod(pairs, len(self._texts))
        size = self._sizes[owner]
        is_near = (at_least[place] * THRESHOLD <= size + 1e-9) & (size * THRESHOLD <= at_most[place] + 1e-9)
        is_near &= counts >= self._needed[owner]
        for one, other in zip(place[is_near].tolist(), owner[is_near].tolist(), strict=True):
            text, known = texts[one], self._texts[other]
            similarity = jaccard(_shingles(text, self._by_words), _shingles(known, self._by_words))
            if similarity >= THRESHOLD:
                yield text, known, similarity

    def _hashed(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Place of the text, and hash of the shingle, for every shingle of the texts; shorter texts have none."""
        if self._by_words:
            size, lengths = WORDS, [text.count(" ") + 1 for text in texts]
            units = np.fromiter(map(hash, " ".join(texts).split(" ")), dtype=np.int64).view(np.uint64)
        else:
            size, lengths = CHARACTERS, [*map(len, texts)]
            units = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        places, starts = np.repeat(np.arange(len(texts)), lengths), max(0, len(units) - size + 1)
        mixed = np.zeros(starts, dtype=np.uint64)
        for offset in range(size):
            mixed = (mixed + units[offset : offset + starts]) * _MULTIPLIER
        inside = places[:starts] == places[len(places) - starts :]
        return places[:starts][inside], mixed[inside]

    def _slots(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (hashes >> np.uint64(64 - _BITS)).astype(np.int64)


@lru_cache(maxsize=2**12)  # texts made by one template are looked at many times
def _shingles(text: str, by_words: bool) -> frozenset[str]:
    return word_shingles(text, WORDS) if by_words else character_shingles(text, CHARACTERS)


class KnownTexts:
    """Texts, to be asked which of them another text repeats.

    Args:
        texts: Normalised texts, none empty.
        near: Whether texts that are nearly repeated are found too.
    """

    def __init__(self, texts: Collection[str], *, near: bool = True) -> None:
        self._texts = frozenset(texts)
        short: dict[bool, list[str]] = {True: [], False: []}
        for text in sorted(self._texts) if near else ():
            short[text.count(" ") + 1 < SHORT].append(text)
        self._indexes = [_Index(some, by_words=not is_short) for is_short, some in short.items() if some]

    def find(self, texts: Sequence[str]) -> dict[str, dict[str, float]]:
        """Ask for many texts at once.

        Args:
            texts: Normalised texts, none empty.

        Returns:
            Text -> known text -> exact Jaccard similarity, of those that repeat any: themselves first, then by text.
        """
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for text in texts:
            if text in self._texts:
                found[text][text] = 1.0
        near = (match for index in self._indexes if texts for match in index.find(texts))
        for text, known, similarity in sorted(near):
            found[text].setdefault(known, similarity)
        return found


# --- overlap ----------------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """An evaluated text, the text of a training row that repeats it (both normalised), and the row, from 0."""

    evaluated: str
    trained: str
    similarity: float
    row: int


@dataclass(frozen=True)
class Overlap:
    """What evaluation and training sets share.

    Args:
        shared: By the names of the evaluation set and the training set, in the order of the rows; every pair is there.
        texts: Distinct texts of every evaluation set.
    """

    shared: Mapping[tuple[str, str], Sequence[Match]]
    texts: Mapping[str, int]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """One entry a pair of sets: distinct evaluated texts shared (exact, near), offending rows, up to 3 examples."""
        found = []
        for (task, name), matches in sorted(self.shared.items(), key=lambda entry: entry[0]):
            pairs = dict.fromkeys((one.evaluated, one.trained, round(one.similarity, 4)) for one in matches)
            keys = ("evaluated", "trained", "similarity")
            examples = [dict(zip(keys, pair, strict=True)) for pair in islice(pairs, EXAMPLES)]
            counts = {**self.seen(task, [name]), "rows": len({one.row for one in matches}), "examples": examples}
            found.append({"evaluation": task, "trained_on": name, **counts})
        return found

    def offending(self, name: str) -> NDArray[np.int64]:
        """Rows of a training set that hold an evaluated text, exact or near: ascending int64, from 0."""
        rows = {one.row for (_, of), matches in self.shared.items() if of == name for one in matches}
        return np.array(sorted(rows), dtype=np.int64)

    def seen(self, task: str, trained: Iterable[str]) -> dict[str, int]:
        """Distinct texts of one evaluation set that some training sets repeat: exactly, and only nearly."""
        matches = [one for name in trained for one in self.shared[task, name]]
        exact = {one.evaluated for one in matches if one.evaluated == one.trained}
        return {"exact": len(exact), "near": len({one.evaluated for one in matches} - exact)}


def find_overlap(
    trained: Mapping[str, Iterable[TrainingExample]], evaluated: Mapping[str, Iterable[str]], *, near: bool = True
) -> Overlap:
    """Find evaluated texts among queries, positives and negatives of training sets.

    Args:
        trained: Rows of training sets by name; streams are read once, if anything is evaluated.
        evaluated: Texts of evaluation sets by name; empty ones are left out.
        near: Whether near-duplicates are looked for, or only texts that are the same after normalisation.

    Returns:
        What every pair of sets shares.
    """
    texts_of = {task: {normalise(text) for text in texts} - {""} for task, texts in sorted(evaluated.items())}
    tasks_of: dict[str, list[str]] = defaultdict(list)
    for task, distinct in texts_of.items():
        for text in distinct:
            tasks_of[text].append(task)
    known = KnownTexts(tasks_of, near=near)
    shared: dict[tuple[str, str], list[Match]] = {(task, name): [] for task in texts_of for name in trained}
    for name, rows in sorted(trained.items()) if texts_of else ():
        start = 0
        for batch in batches(rows, ROWS_AT_ONCE):
            read = [[normalise(text) for text in (row.query, *row.pos, *row.neg)] for row in batch]
            found = known.find([text for text in dict.fromkeys(text for texts in read for text in texts) if text])
            for row, texts in enumerate(read, start):
                for text in texts:
                    for repeated, similarity in found[text].items() if text in found else ():
                        for task in tasks_of[repeated]:
                            shared[task, name].append(Match(repeated, text, similarity, row))
            start += len(batch)
    return Overlap(shared, {task: len(texts) for task, texts in texts_of.items()})


def task_domains(tasks: Iterable[EvaluationTask], trained: Collection[str], overlap: Overlap) -> list[dict[str, Any]]:
    """Say of every evaluation task whether it is in domain, and how much of it was seen in training all the same.

    In domain is what `EvaluationTask.domain` says: its dataset, or another one of the same kind, is trained on.

    Args:
        tasks: Evaluation tasks; their ids are the names of the evaluation sets of ``overlap``.
        trained: Names of the training sets that models learn from, all of them in ``overlap``.
        overlap: What the sets share.

    Returns:
        One entry a task: its domain, its distinct texts, how many of them training texts repeat (exact, near), and the
        share of both.
    """
    found = []
    for task in tasks:
        texts, counts = overlap.texts[task.id], overlap.seen(task.id, trained)
        share = round(sum(counts.values()) / max(1, texts), 6)
        found.append({"task": task.id, "domain": task.domain(trained), "texts": texts, **counts, "seen": share})
    return found
