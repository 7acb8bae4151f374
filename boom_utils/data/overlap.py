"""Texts of evaluation sets among what models are trained on: exact after normalisation, and near-duplicates.

A known text with few words is compared by its character shingles, every other one by its word shingles (one changed
word takes three word shingles away, which is most of a short text). Candidates come from a MinHash index (Broder 1997;
Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) of the library `rensa`, and each is verified by the
exact Jaccard similarity of its shingles, so nothing is reported that is not similar; what the index may miss is in
`NearDuplicates.recall`. Only evaluated texts are kept in memory; training rows are read in a stream.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rensa
from numpy.typing import NDArray

from boom_utils.data.examples import TrainingExample, batches, iter_examples, normalise
from boom_utils.data.manifest import EvaluationTask
from boom_utils.errors import DataError

ROWS_AT_ONCE, TEXTS_AT_ONCE = 2048, 1024
_EXAMPLES = 3
_SLOTS_A_SHINGLE, _MULTIPLIER = 8, np.uint64(0x9E3779B97F4A7C15)
_SPARE = 1.25
"""How many more shingles than decide in the worst case a first look takes: some are known, or the same, by chance."""
_MOST_MISSED = 1e-4
"""Share of pairs at the threshold that the index may miss: bands are as few as this allows."""


# --- near-duplicates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearOptions:
    """What counts as a near-duplicate.

    Args:
        threshold: Least Jaccard similarity of two sets of shingles.
        word_shingle: Words of a shingle.
        character_shingle: Characters of a shingle of a short text.
        short_words: A known text with fewer words is compared by characters. From 30 words on, a text with one word
            changed keeps a Jaccard similarity of 0.8 over shingles of three.
        permutations: Length of a MinHash signature.
        seed: Of the permutations.
    """

    threshold: float = 0.8
    word_shingle: int = 3
    character_shingle: int = 5
    short_words: int = 30
    permutations: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.word_shingle, self.character_shingle, self.short_words, self.permutations)
        if not 0 < self.threshold <= 1 or min(sizes) < 1 or self.short_words < self.word_shingle:
            raise ValueError(f"expected 0 < threshold <= 1, sizes of at least 1, short_words >= word_shingle: {self}")

    def missed(self, height: int) -> float:
        """Chance that no band of ``height`` values is the same in two texts at the threshold."""
        return float((1 - self.threshold**height) ** (self.permutations // height))

    @property
    def bands(self) -> int:
        """Parts of a signature, one of which must be the same: as few as miss at most one pair in ten thousand."""
        heights = [rows for rows in range(1, self.permutations + 1) if self.permutations % rows == 0]
        return self.permutations // max((rows for rows in heights if self.missed(rows) <= _MOST_MISSED), default=1)


NEAR = NearOptions()


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


class NearDuplicates:
    """Known texts, to be asked which of them a text nearly repeats.

    Args:
        texts: Known texts, normalised, distinct and not empty.
        options: What counts as near.
    """

    def __init__(self, texts: Sequence[str], options: NearOptions = NEAR) -> None:
        self.recall = 1 - options.missed(options.permutations // options.bands)
        """Expected share of pairs exactly at the threshold that are found; more similar pairs are found more."""
        by_words, by_characters = dict[int, str](), dict[int, str]()
        for number, text in enumerate(texts):
            (by_characters if text.count(" ") + 1 < options.short_words else by_words)[number] = text
        self._indexes = []
        if by_words:
            self._indexes.append(_Index(by_words, options, by_words=True))
        if by_characters:
            self._indexes.append(_Index(by_characters, options, by_words=False))

    def find(self, texts: Sequence[str]) -> list[list[tuple[int, float]]]:
        """Ask for many texts at once.

        Args:
            texts: Normalised texts, not empty.

        Returns:
            For each text: number and exact Jaccard similarity of every known text found, ascending by number.
        """
        found: list[list[tuple[int, float]]] = []
        for part in batches(texts, TEXTS_AT_ONCE):
            matches: list[list[tuple[int, float]]] = [[] for _ in part]
            for index in self._indexes:
                for place, number, similarity in index.find(part):
                    matches[place].append((number, similarity))
            found += map(sorted, matches)
        return found


class _Index:
    """Known texts that are compared by the same shingles.

    Args:
        texts: By number, one at least.
        options: What counts as near.
        by_words: Compared by word shingles, else by character shingles.
    """

    def __init__(self, texts: Mapping[int, str], options: NearOptions, *, by_words: bool) -> None:
        self._texts, self._options, self._by_words = texts, options, by_words
        self._size = options.word_shingle if by_words else options.character_shingle
        self._lsh = rensa.RMinHashLSH(options.threshold, options.permutations, options.bands)
        bits = (_SLOTS_A_SHINGLE * sum(map(self._units, texts.values()))).bit_length()
        self._known, self._shift, sizes = np.zeros(2**bits, dtype=bool), np.uint64(64 - bits), list[int]()
        for numbers in batches(texts, TEXTS_AT_ONCE):
            part = [texts[number] for number in numbers]
            sets = [self._shingles(text) for text in part]
            self._lsh.insert_pairs(list(zip(numbers, self._signatures(sets), strict=True)))
            self._known[self._slots(part, [self._units(text) for text in part])[0]] = True
            sizes += map(len, sets)
        # Two sets of this similarity have sizes of this ratio at least.
        self._fewest = min(sizes) * options.threshold - 1e-9
        self._most = max(sizes) / options.threshold + 1e-9

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Place of the text, and number and similarity of a known text, for every pair found."""
        places = self.possible(texts)
        sets = [self._shingles(texts[place]) for place in places]
        for place, shingles, numbers in zip(places, sets, self._lsh.query_all(self._signatures(sets)), strict=True):
            for number in numbers:
                similarity = jaccard(shingles, self._shingles(self._texts[number]))
                if similarity >= self._options.threshold:
                    yield place, number, similarity

    def possible(self, texts: Sequence[str]) -> list[int]:
        """Places of the texts that may be near a known one, by a quick look: only texts that cannot be are left out.

        Of a text A near a known text B at most (1 - t) |A| shingles are unknown, because |A & B| >= t |A | B| >= t |A|.
        So the last few shingles of a text decide about most.
        """
        units = np.array([self._units(text) for text in texts], dtype=np.int64)
        at_most = np.maximum(units - self._size + 1, 1)
        may_be_new = (1 - self._options.threshold) * np.minimum(at_most, self._most) + 1e-9
        decisive = np.where(at_most > self._most, self._most, may_be_new)
        slots, rows = self._slots(
            texts, np.minimum(units, _SPARE * decisive + 1 + self._size).astype(np.int64).tolist()
        )
        # Two shingles of one slot count once, so a text is rather kept than lost.
        keys = np.sort(rows * len(self._known) + slots)  # np.unique is far slower: it sorts what it has hashed
        rows, slots = np.divmod(keys[np.diff(keys, prepend=-1) != 0], len(self._known))
        distinct, new = (np.bincount(part, minlength=len(texts)) for part in (rows, rows[~self._known[slots]]))
        kept: list[int] = np.flatnonzero(
            (at_most >= self._fewest) & (distinct <= self._most) & (new <= may_be_new)
        ).tolist()
        return kept

    def _slots(self, texts: Sequence[str], units: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place in the table for the shingles of the last ``units`` of each text, and the text each belongs to."""
        if self._by_words:
            words = (word for text, last in zip(texts, units, strict=True) for word in text.rsplit(" ", last)[-last:])
            numbers = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=sum(units))
        else:
            joined = "".join(text[-last:] for text, last in zip(texts, units, strict=True))
            numbers = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
        rows, starts = np.repeat(np.arange(len(texts)), units), max(0, len(numbers) - self._size + 1)
        mixed = np.zeros(starts, dtype=np.uint64)
        for offset in range(self._size):
            mixed = (mixed + numbers[offset : offset + starts]) * _MULTIPLIER
        inside = rows[:starts] == rows[len(rows) - starts :]
        return (mixed[inside] >> self._shift).astype(np.int64), rows[:starts][inside]

    def _units(self, text: str) -> int:
        return text.count(" ") + 1 if self._by_words else len(text)

    def _shingles(self, text: str) -> frozenset[str]:
        return (word_shingles if self._by_words else character_shingles)(text, self._size)

    def _signatures(self, sets: Sequence[frozenset[str]]) -> list[Any]:
        return list(rensa.RMinHash.from_token_sets(sets, self._options.permutations, self._options.seed))


# --- overlap ----------------------------------------------------------------------------------------------------------


@dataclass
class Shared:
    """What one evaluation set shares with one training set.

    Args:
        exact: Numbers of the distinct evaluated texts that a training text repeats.
        near: Numbers of those that a training text nearly repeats.
        rows: Training rows that hold such a text, from 0.
        examples: Up to three pairs of an evaluated and a training text, normalised, of the first rows.
    """

    exact: set[int] = field(default_factory=set)
    near: set[int] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)
    examples: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, number: int, row: int, texts: tuple[str, str], similarity: float) -> None:
        """Note that a row's text repeats an evaluated one: ``texts`` are the evaluated and the training text."""
        (self.exact if texts[0] == texts[1] else self.near).add(number)
        self.rows.add(row)
        example = {"evaluated": texts[0], "trained": texts[1], "similarity": round(similarity, 4)}
        if len(self.examples) < _EXAMPLES and example not in self.examples:
            self.examples.append(example)


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
                "near": len(found.near - found.exact),
                "rows": len(found.rows),
                "examples": found.examples,
            }
            for (task, name), found in sorted(self.shared.items(), key=lambda entry: entry[0])
        ]

    def offending(self, name: str) -> NDArray[np.int64]:
        """Rows of a training set that hold an evaluated text, exact or near: ascending int64, from 0."""
        rows = set[int]().union(*(found.rows for (_, of), found in self.shared.items() if of == name))
        return np.array(sorted(rows), dtype=np.int64)

    def seen(self, task: str, trained: Iterable[str]) -> tuple[int, int]:
        """Distinct texts of one evaluation set that some of the training sets repeat: exactly, and only nearly."""
        pairs = [self.shared[task, name] for name in trained]
        exact = set[int]().union(*(found.exact for found in pairs))
        return len(exact), len(set[int]().union(*(found.near for found in pairs)) - exact)


def find_overlap(
    trained: Mapping[str, Sequence[TrainingExample] | Path],
    evaluated: Mapping[str, Iterable[str]],
    near: NearOptions | None = NEAR,
) -> Overlap:
    """Find evaluated texts among queries, positives and negatives of training sets.

    Args:
        trained: Training sets by name: their examples, or a file of `write_examples`, which is read in a stream.
        evaluated: Texts of evaluation sets by name; empty ones are left out.
        near: What counts as near; None finds only texts that are the same after normalisation.

    Returns:
        What every pair of sets shares. What near-duplicates may be missed is in `NearDuplicates.recall`.

    Raises:
        DataError: A training file is missing, malformed or empty.
    """
    texts_of = {task: {normalise(text) for text in texts} - {""} for task, texts in sorted(evaluated.items())}
    sets: dict[str, list[str]] = defaultdict(list)
    for task, texts in texts_of.items():
        for text in texts:
            sets[text].append(task)
    known = sorted(sets)
    numbers = {text: number for number, text in enumerate(known)}
    index = NearDuplicates(known, near) if near else None
    shared = {(task, name): Shared() for task in texts_of for name in trained}
    rows: dict[str, int] = {}
    for name, source in sorted(trained.items()):
        rows[name] = 0
        for batch in batches(iter_examples(source) if isinstance(source, Path) else source, ROWS_AT_ONCE):
            for row, text, similar in _matches(batch, numbers, index):
                for number, similarity in similar.items():
                    for task in sets[known[number]]:
                        shared[task, name].add(number, rows[name] + row, (known[number], text), similarity)
            rows[name] += len(batch)
    return Overlap(shared, {task: len(texts) for task, texts in texts_of.items()}, rows)


def _matches(
    batch: Sequence[TrainingExample], numbers: Mapping[str, int], index: NearDuplicates | None
) -> list[tuple[int, str, dict[int, float]]]:
    """Row in the batch, one of its texts, and number and similarity of every evaluated text that it repeats."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, example in enumerate(batch):
        for text in (example.query, *example.pos, *example.neg):
            rows[text].append(row)
    # An empty text is near none.
    texts = {text: same for text in rows if (same := normalise(text))}
    similar = index.find(list(texts.values())) if index else [[] for _ in texts]
    found = []
    for (text, same), near in zip(texts.items(), similar, strict=True):
        if matches := ({numbers[same]: 1.0} if same in numbers else {}) | dict(near):
            found += [(row, same, matches) for row in rows[text]]
    return sorted(found, key=lambda match: match[0])


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
    found = []
    for task in tasks:
        texts, (exact, near) = overlap.texts[task.id], overlap.seen(task.id, names)
        seen = {name: overlap.seen(task.id, [name]) for name in names}
        found.append(
            {
                "task": task.id,
                "dataset": task.dataset,
                "domain": task.domain(trained),
                "texts": texts,
                "exact": exact,
                "near": near,
                "seen": round((exact + near) / max(1, texts), 6),
                "seen_in": {name: {"exact": one, "near": other} for name, (one, other) in seen.items() if one + other},
            }
        )
    return found
