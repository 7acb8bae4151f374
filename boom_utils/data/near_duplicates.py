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
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import rensa
from numpy.typing import NDArray

_MOST_MISSED = 1e-4
"""Share of pairs at the threshold that the index may miss: bands are as few as this allows."""
_BITS_A_SHINGLE = 16
_SPARE = 1.25
"""How many more shingles than decide in the worst case a first look takes: some are known, or the same, by chance."""
_TEXTS_A_CHUNK = 4096
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

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
    permutations: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.word_shingle, self.character_shingle, self.short_words, self.permutations)
        if not 0 < self.threshold <= 1 or min(sizes) < 1 or self.short_words < self.word_shingle:
            raise ValueError(f"expected 0 < threshold <= 1, sizes of at least 1, short_words >= word_shingle: {self}")


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
    return both / (len(left) + len(right) - both)


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
    return frozenset(text[start : start + size] for start in range(max(1, len(text) - size + 1)))


class NearDuplicates:
    """Known texts, to be asked which of them a text nearly repeats.

    Args:
        texts: Known texts, normalised, distinct and not empty.
        options: What counts as near.
    """

    def __init__(self, texts: Sequence[str], options: NearOptions | None = None) -> None:
        self.options = options or NearOptions()
        short = [_word_count(text) < self.options.short_words for text in texts]
        words = _Kind(self.options.word_shingle, word_shingles, _word_units, _word_count)
        characters = _Kind(self.options.character_shingle, character_shingles, _character_units, len)
        self._indexes = [
            _Index([number for number, other in enumerate(short) if other == chosen], texts, kind, self.options)
            for chosen, kind in ((False, words), (True, characters))
        ]

    @property
    def recall(self) -> float:
        """Expected share of pairs exactly at the threshold that the index finds; more similar pairs are found more."""
        return 1 - _missed(rows_a_band(self.options), self.options)

    def find(self, texts: Sequence[str]) -> list[list[tuple[int, float]]]:
        """Ask for many texts at once.

        Args:
            texts: Normalised texts, not empty.

        Returns:
            For each text: number and exact Jaccard similarity of every known text found, ascending by number.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in texts]
        for start in range(0, len(texts), _TEXTS_A_CHUNK):
            chunk = texts[start : start + _TEXTS_A_CHUNK]
            for index in self._indexes:
                for place, number, similarity in index.find(chunk):
                    found[start + place].append((number, similarity))
        return [sorted(matches) for matches in found]


def rows_a_band(options: NearOptions) -> int:
    """Signature values of one band: as many as miss at most one pair at the threshold in ten thousand, else one."""
    divisors = [rows for rows in range(1, options.permutations + 1) if options.permutations % rows == 0]
    return max((rows for rows in divisors if _missed(rows, options) <= _MOST_MISSED), default=1)


def _missed(rows: int, options: NearOptions) -> float:
    """Chance that no band of two texts at the threshold is the same."""
    return float((1 - options.threshold**rows) ** (options.permutations // rows))


@dataclass(frozen=True)
class _Kind:
    """How texts become shingles: as sets of strings, and quickly as hashes of units (words or characters)."""

    size: int
    shingles: Callable[[str, int], frozenset[str]]
    units: Callable[[Sequence[str], Sequence[int]], Hashes]
    count: Callable[[str], int]


class _Index:
    """Known texts of one kind: a table of bits for the shingles they have, and the bands of their signatures."""

    def __init__(self, numbers: Sequence[int], texts: Sequence[str], kind: _Kind, options: NearOptions) -> None:
        self._numbers, self._kind, self._options = numbers, kind, options
        self._texts = [texts[number] for number in numbers]
        self._shingles = lru_cache(_TEXTS_A_CHUNK)(lambda place: kind.shingles(self._texts[place], kind.size))
        units = [kind.count(text) for text in self._texts]
        self._bits = np.zeros(2 ** math.ceil(math.log2(_BITS_A_SHINGLE * (64 + sum(units)))) // 8, dtype=np.uint8)
        self._sizes = np.zeros(len(units), dtype=np.int64)
        bands = [np.zeros((0, options.permutations // rows_a_band(options)), dtype=np.uint64)]
        for start in range(0, len(units), _TEXTS_A_CHUNK):
            part = slice(start, start + _TEXTS_A_CHUNK)
            hashes, rows = self._hashes(self._texts[part], units[part])
            byte, bit = self._place(hashes)
            np.bitwise_or.at(self._bits, byte, bit)
            bands.append(self._bands(hashes, rows, len(units[part])))
            self._sizes[part] = [len(kind.shingles(text, kind.size)) for text in self._texts[part]]
        together = np.concatenate(bands)
        order = np.argsort(together, axis=None, kind="stable")
        self._band_keys, self._band_owners = together.ravel()[order], (order // together.shape[1]).astype(np.int32)

    def find(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Place of the text, and number and similarity of a known text, for every pair found."""
        left = self.possible(texts)
        if not left:
            return
        asked = [texts[place] for place in left]
        hashes, rows = self._hashes(asked, [self._kind.count(text) for text in asked])
        previous, shingles = -1, frozenset[str]()
        for row, known in self._candidates(self._bands(hashes, rows, len(asked))).tolist():
            if row != previous:
                previous, shingles = row, self._kind.shingles(asked[row], self._kind.size)
            sizes = len(shingles), int(self._sizes[known])
            if min(sizes) < self._options.threshold * max(sizes) - 1e-9:
                continue
            similarity = jaccard(shingles, self._shingles(known))
            if similarity >= self._options.threshold:
                yield left[row], self._numbers[known], similarity

    def possible(self, texts: Sequence[str]) -> list[int]:
        """Places of the texts that may be near a known one; only texts that cannot be are left out.

        Of a text A near a known text B at most (1 - t) |A| shingles are unknown, because |A & B| >= t |A | B| >= t |A|,
        and t |B| <= |A| <= |B| / t. So the last few shingles of a text decide about most.
        """
        if not self._texts:
            return []
        threshold, units = self._options.threshold, np.array([self._kind.count(text) for text in texts], dtype=np.int64)
        shingles, largest = np.maximum(units - self._kind.size + 1, 1), self._sizes.max() / threshold + 1e-9
        budget = np.minimum(shingles, largest) * (1 - threshold) + 1e-9
        decisive = np.where(shingles > largest, largest, budget)
        wanted = np.minimum(units, (_SPARE * decisive).astype(np.int64) + 1 + self._kind.size)
        places = np.flatnonzero(shingles >= self._sizes.min() * threshold - 1e-9)
        distinct, unknown = self._look([texts[place] for place in places.tolist()], wanted[places].tolist())
        kept: list[int] = places[(distinct <= largest) & (unknown <= budget[places])].tolist()
        return kept

    def _look(self, texts: Sequence[str], wanted: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Distinct shingles among the last units of each text, and how many of them no known text has; never more."""
        hashes, rows = self._hashes(texts, wanted)
        # By 40 bits of the hash: two shingles that fall together count once, so a text is rather kept than lost.
        hashes >>= np.uint64(24)
        keys = np.sort((rows.astype(np.uint64) << np.uint64(40)) | hashes)
        keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
        rows = (keys >> np.uint64(40)).astype(np.int64)
        byte, bit = self._place(keys << np.uint64(24))
        new = (self._bits[byte] & bit) == 0
        return np.bincount(rows, minlength=len(texts)), np.bincount(rows[new], minlength=len(texts))

    def _place(self, hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Byte and bit of each hash in the table of known shingles, from bits 24 and up."""
        byte = (hashes >> np.uint64(27)) & np.uint64(len(self._bits) - 1)
        return byte.astype(np.int64), np.left_shift(
            np.uint8(1), ((hashes >> np.uint64(24)) & np.uint64(7)).astype(np.uint8)
        )

    def _hashes(self, texts: Sequence[str], wanted: Sequence[int]) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of the shingles of the last ``wanted`` units of each text, and the text each belongs to."""
        units, size = self._kind.units(texts, wanted), self._kind.size
        rows = np.repeat(np.arange(len(texts)), wanted)
        last = max(0, len(units) - size + 1)
        mixed = units[:last].copy()
        for offset in range(1, size):
            mixed *= _MULTIPLIER
            mixed += units[offset : offset + last]
        inside = rows[:last] == rows[size - 1 :][:last]
        return _mixed(mixed[inside]), rows[:last][inside]

    def _bands(self, hashes: Hashes, rows: NDArray[np.int64], texts: int) -> Hashes:
        """A key for every band of every text's MinHash signature: uint64 (texts, bands)."""
        options, height = self._options, rows_a_band(self._options)
        starts = np.searchsorted(rows, np.arange(texts + 1)).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, options.permutations, options.seed)
        signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(texts, -1, height)
        keys = np.broadcast_to(np.arange(signatures.shape[1], dtype=np.uint64), signatures.shape[:2]).copy()
        for column in range(height):
            keys = _mixed(keys * _MULTIPLIER + signatures[:, :, column])
        return keys

    def _candidates(self, bands: Hashes) -> NDArray[np.int64]:
        """Distinct pairs (text, known text) with an equal band, ascending: int64 (pairs, 2)."""
        first = np.searchsorted(self._band_keys, bands.ravel(), side="left")
        count = np.searchsorted(self._band_keys, bands.ravel(), side="right") - first
        hit = np.flatnonzero(count)
        first, count = first[hit], count[hit]
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        owners = self._band_owners[np.repeat(first, count) + inside]
        texts = np.repeat(hit // bands.shape[1], count)
        pairs: NDArray[np.int64] = np.unique(texts * len(self._texts) + owners)
        return np.stack(np.divmod(pairs, len(self._texts)), axis=1)


def _mixed(hashes: Hashes) -> Hashes:
    """Spread over all bits, in place (the finaliser of splitmix64, without its last multiplication)."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MULTIPLIER
    hashes ^= hashes >> np.uint64(27)
    return hashes


def _word_count(text: str) -> int:
    return text.count(" ") + 1


def _word_units(texts: Sequence[str], wanted: Sequence[int]) -> Hashes:
    # The same in every process, as hash() is not.
    words = (word for text, count in zip(texts, wanted, strict=True) for word in text.rsplit(" ", count)[-count:])
    return np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=sum(wanted))


def _character_units(texts: Sequence[str], wanted: Sequence[int]) -> Hashes:
    joined = "".join(text[-count:] for text, count in zip(texts, wanted, strict=True))
    return np.frombuffer(joined.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
