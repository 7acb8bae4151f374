"""Near-duplicates of known texts: a prefilter that loses nothing, MinHash with LSH, and exact Jaccard at the end.

A known text with few words is compared by its character shingles, every other one by its word shingles (one changed
word takes three word shingles away, which is most of a short text). Candidates come from a MinHash index (Broder 1997;
Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3), and each is verified by the exact Jaccard
similarity of its shingles, so nothing is reported that is not similar; what the index may miss is in
`NearDuplicates.recall`. Only known texts are kept in memory.

Texts are expected normalised: the words are what single blanks separate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import rensa
from numpy.typing import NDArray

_MOST_MISSED = 1e-4
"""Share of pairs at the threshold that the index may miss: bands are as few as this allows."""
_BITS_A_SHINGLE = 16
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SPARE = 1.25
"""How many more shingles than can be unknown the first look takes, so that a known one by chance does not spoil it."""
_KEPT_SETS = 4096

Hashes = NDArray[np.uint64]


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
    permutations: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.word_shingle, self.character_shingle, self.short_words, self.permutations)
        if not 0 < self.threshold <= 1 or min(sizes) < 1 or self.short_words < self.word_shingle:
            raise ValueError(f"expected 0 < threshold <= 1, sizes of at least 1, short_words >= word_shingle: {self}")


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Shared shingles over all shingles of two texts.

    >>> jaccard(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    both = len(left & right)
    return both / (len(left) + len(right) - both)


def word_shingles(text: str, size: int) -> frozenset[str]:
    """All runs of ``size`` words of a normalised text; none when it has fewer words."""
    words = text.split(" ")
    return frozenset(map(" ".join, zip(*(words[start:] for start in range(size)), strict=False)))


def character_shingles(text: str, size: int) -> frozenset[str]:
    """All runs of ``size`` characters; the text itself when it is shorter."""
    return frozenset(text[start : start + size] for start in range(max(1, len(text) - size + 1)))


class NearDuplicates:
    """Known texts, to be asked which of them a text nearly repeats.

    Args:
        texts: Known texts, normalised, distinct and not empty.
        options: What counts as near.
    """

    def __init__(self, texts: Sequence[str], options: NearOptions | None = None) -> None:
        self.options = options or NearOptions()
        short = [text.count(" ") + 1 < self.options.short_words for text in texts]
        kinds = (
            _Kind(self.options.word_shingle, word_shingles, _word_units, _word_count),
            _Kind(self.options.character_shingle, character_shingles, _character_units, len),
        )
        self._indexes = [
            _Index([(number, text) for number, text in enumerate(texts) if short[number] == by_characters], kind, self)
            for by_characters, kind in zip((False, True), kinds, strict=True)
        ]

    @property
    def rows_a_band(self) -> int:
        """Signature values of one band of the index."""
        length = self.options.permutations
        fits = [rows for rows in range(1, length + 1) if length % rows == 0 and self._missed(rows) <= _MOST_MISSED]
        return max(fits, default=1)

    @property
    def recall(self) -> float:
        """Expected share of pairs exactly at the threshold that the index finds; more similar pairs are found more."""
        return 1 - self._missed(self.rows_a_band)

    def _missed(self, rows: int) -> float:
        return float((1 - self.options.threshold**rows) ** (self.options.permutations // rows))

    def find(self, texts: Sequence[str]) -> list[list[tuple[int, float]]]:
        """Ask for many texts at once.

        Args:
            texts: Normalised texts, not empty.

        Returns:
            For each text: number and exact Jaccard similarity of every known text found, ascending by number.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in texts]
        for index in self._indexes:
            for place, match in index.find(texts):
                found[place].append(match)
        return [sorted(matches) for matches in found]


@dataclass(frozen=True)
class _Kind:
    """How texts become shingles: as sets of strings, and quickly as hashes of units (words or characters)."""

    size: int
    shingles: Callable[[str, int], frozenset[str]]
    units: Callable[[Sequence[str], Sequence[int]], NDArray[np.uint64]]
    count: Callable[[str], int]


class _Index:
    """Known texts of one kind."""

    def __init__(self, texts: Sequence[tuple[int, str]], kind: _Kind, owner: NearDuplicates) -> None:
        self._kind, self._options = kind, owner.options
        self._numbers = [number for number, _ in texts]
        self._texts = [text for _, text in texts]
        self._shingles = lru_cache(_KEPT_SETS)(lambda place: kind.shingles(self._texts[place], kind.size))
        self._lsh = rensa.RMinHashLSH(
            owner.options.threshold, owner.options.permutations, owner.options.permutations // owner.rows_a_band
        )
        most = sum(kind.count(text) for text in self._texts)
        self._bits = np.zeros(2 ** max(10, math.ceil(math.log2(max(1, most) * _BITS_A_SHINGLE))) // 8, dtype=np.uint8)
        self._largest = 0
        for start in range(0, len(self._texts), _KEPT_SETS):
            self._add(self._texts[start : start + _KEPT_SETS], start)

    def _add(self, texts: Sequence[str], start: int) -> None:
        sets = [self._kind.shingles(text, self._kind.size) for text in texts]
        self._largest = max(self._largest, *map(len, sets))
        self._lsh.insert_many(self._signatures(sets), start)
        hashes, _ = self._hashes(texts, [self._kind.count(text) for text in texts])
        byte, bit = self._place(hashes)
        np.bitwise_or.at(self._bits, byte, bit)

    def _signatures(self, sets: Sequence[frozenset[str]]) -> list[rensa.RMinHash]:
        # Sorted, so that nothing depends on the order of a set.
        ordered = [sorted(shingles) for shingles in sets]
        return list(rensa.RMinHash.from_token_sets(ordered, self._options.permutations, self._options.seed))

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[int, float]]]:
        """Place of the text, and number and similarity of a known text, for every pair found."""
        left = self._possible(texts)
        sets = [self._kind.shingles(texts[place], self._kind.size) for place in left]
        candidates = self._lsh.query_all(self._signatures(sets)) if left else []
        for place, shingles, known in zip(left, sets, candidates, strict=True):
            for other in known:
                similarity = jaccard(shingles, self._shingles(other))
                if similarity >= self._options.threshold:
                    yield place, (self._numbers[other], similarity)

    def _possible(self, texts: Sequence[str]) -> list[int]:
        """Places of the texts that may be near a known one; only texts that cannot be are left out.

        Of a text A near a known text B at most (1 - t) |A| shingles are unknown, because |A & B| >= t |A | B| >= t |A|,
        and |A| <= |B| / t. So a few of its last shingles decide about most texts; then all decide about the others.
        """
        units = [self._kind.count(text) for text in texts]
        most = self._largest / self._options.threshold
        shingles = [min(most, max(1, count - self._kind.size + 1)) for count in units]
        budget = np.floor(np.array(shingles) * (1 - self._options.threshold) + 1e-9).astype(np.int64)
        left = [place for place, count in enumerate(units) if count and self._texts]
        for whole in (False, True):
            if not left:
                break
            wanted = [
                units[place] if whole else min(units[place], int(_SPARE * budget[place]) + 1 + self._kind.size)
                for place in left
            ]
            unknown = self._unknown([texts[place] for place in left], wanted)
            left = [place for place, count in zip(left, unknown.tolist(), strict=True) if count <= budget[place]]
        return left

    def _unknown(self, texts: Sequence[str], wanted: Sequence[int]) -> NDArray[np.int64]:
        """At least how many distinct shingles among the last units of each text no known text has."""
        hashes, rows = self._hashes(texts, wanted)
        byte, bit = self._place(hashes)
        new = (self._bits[byte] & bit) == 0
        # Distinct by 40 bits of the hash: two that fall together count once, so a text is rather kept than lost.
        keys = np.sort((rows[new].astype(np.uint64) << np.uint64(40)) | (hashes[new] >> np.uint64(24)))
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        return np.bincount((keys[first] >> np.uint64(40)).astype(np.int64), minlength=len(texts))

    def _place(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Byte and bit of each hash in the table of known shingles."""
        place = (hashes >> np.uint64(3)) & np.uint64(len(self._bits) - 1)
        return place.astype(np.int64), np.left_shift(np.uint8(1), (hashes & np.uint64(7)).astype(np.uint8))

    def _hashes(self, texts: Sequence[str], wanted: Sequence[int]) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of the shingles of the last ``wanted`` units of each text, and the text each belongs to."""
        units, size = self._kind.units(texts, wanted), self._kind.size
        rows = np.repeat(np.arange(len(texts)), wanted)
        if len(units) < size:
            return np.zeros(0, dtype=np.uint64), rows[:0]
        last = len(units) - size + 1
        mixed = units[:last].copy()
        for offset in range(1, size):
            mixed = mixed * _MULTIPLIER + units[offset : offset + last]
        mixed ^= mixed >> np.uint64(29)
        mixed *= _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
        inside = rows[:last] == rows[size - 1 :]
        return mixed[inside], rows[:last][inside]


def _word_count(text: str) -> int:
    return text.count(" ") + 1


def _word_units(texts: Sequence[str], wanted: Sequence[int]) -> NDArray[np.uint64]:
    # hash() differs between processes: only the prefilter sees it, and that loses no pair whatever the hashes are.
    parts = (hash(word) for text, count in zip(texts, wanted, strict=True) for word in text.rsplit(" ", count)[-count:])
    return np.fromiter(parts, dtype=np.int64, count=sum(wanted)).view(np.uint64)


def _character_units(texts: Sequence[str], wanted: Sequence[int]) -> NDArray[np.uint64]:
    joined = "".join(text[-count:] for text, count in zip(texts, wanted, strict=True))
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
