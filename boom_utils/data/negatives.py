"""Hard negatives: passages that share words with a query but are not its answer, found by BM25 and drawn by seed.

BM25 is that of `bm25s` (Lucene's formula, k1 = 1.5, b = 0.75). Its own top-k leaves the order of equal scores open, so
ranks are made here: by score, then by place in the pool.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from boom_utils.data.examples import normalise
from boom_utils.data.sampling import draw

if TYPE_CHECKING:
    import bm25s

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every step of an index through a handler of its own

RANKS = 30
"""Negatives are drawn among the first so many ranks: the very first alone would be the same for many queries."""
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Hiragana, Katakana and Han: written without spaces."""
_RUNS = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def words(text: str) -> list[str]:
    """The terms BM25 counts: case-folded runs of letters and digits; character bigrams where words are not spaced.

    Chinese and Japanese runs give their overlapping pairs of characters (a lone character gives itself). An underscore
    ends a word, so that names in code give their parts. No stop words, no stemming: the texts have many languages.

    >>> words("Get_value of 機械学習")
    ['get', 'value', 'of', '機械', '械学', '学習']
    """
    found: list[str] = []
    for run in _RUNS.findall(text.casefold()):
        is_spaced = len(run) == 1 or not _IS_UNSPACED.match(run)
        found += [run] if is_spaced else map("".join, pairwise(run))
    return found


class NegativePool:
    """Passages to find negatives in, each text once (after `normalise`), in the order they were given.

    Args:
        passages: Candidates of all queries.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        self.texts: dict[str, str] = {}
        for passage in passages:
            self.texts.setdefault(normalise(passage), passage)
        self._keys = list(self.texts)
        self._place = {key: place for place, key in enumerate(self._keys)}

    @cached_property
    def _index(self) -> tuple[bm25s.BM25, dict[str, int]]:
        """The index and its vocabulary, made when it is first asked: rows that want random passages need none."""
        import bm25s  # it brings numba: slow to import, and a study is opened more often than negatives are mined

        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in self.texts.values()]
        index = bm25s.BM25(auto_compile=False)  # compiled scoring would cost more to compile than it saves here
        if vocabulary:
            index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        return index, vocabulary

    def ranked(self, query: str, apart: Collection[str], most: int = RANKS) -> list[int]:
        """Places of the passages nearest to a query, best first; equal scores in the pool's order.

        Args:
            query: The text searched with; words that no passage has count nothing.
            apart: Normalised texts to leave out; ranks are counted without them.
            most: Last rank.

        Returns:
            At most ``most`` places; passages that share no word with the query have no rank.
        """
        index, vocabulary = self._index
        known = [vocabulary[word] for word in words(query) if word in vocabulary]
        scores = index.get_scores_from_ids(known) if known else np.zeros(len(self._keys), dtype=np.float32)
        scores[[self._place[key] for key in apart if key in self._place]] = 0
        places = np.flatnonzero(scores)
        if len(places) > most:
            least = np.partition(scores[places], -most)[-most]
            places = places[scores[places] >= least]
        return [int(place) for place in places[np.argsort(-scores[places], kind="stable")][:most]]

    def nearest(
        self, query: str, apart: Collection[str], number: int, generator: np.random.Generator, most: int = RANKS
    ) -> list[str]:
        """Negatives drawn among the first ranks of a query; where these are too few, all of them and random passages.

        Args:
            query: The text they are to be near to.
            apart: Normalised texts that are no negatives of it: itself, its positives, those it has already.
            number: How many.
            generator: Draws them.
            most: Last rank that is drawn from.

        Returns:
            As many as wanted, or fewer where the pool has no more; none twice.
        """
        chosen = [self._keys[place] for place in draw(self.ranked(query, apart, most), number, generator)]
        more = self.random({*apart, *chosen}, number - len(chosen), generator) if len(chosen) < number else []
        return [*(self.texts[key] for key in chosen), *more]

    def random(self, apart: Collection[str], number: int, generator: np.random.Generator) -> list[str]:
        """Negatives drawn among all passages, each as likely as another; fewer where the pool has no more."""
        places = generator.permutation(len(self._keys))[: number + len(apart)].tolist()
        keys = (self._keys[place] for place in places)
        return [self.texts[key] for key in keys if key not in apart][:number]
