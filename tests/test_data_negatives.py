"""Hard negatives: the BM25 of a plain reference, ranks without the answer, the same draw every time."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.examples import normalise
from boom_utils.data.negatives import RANKS, NegativePool, words

PASSAGES = [
    "the cat sat on the mat",
    "a dog sat on a log",
    "cats and dogs",
    "the mat is red, the mat is old",
    "機械学習の本",
    "深層学習と機械",
]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def reference_scores(passages: list[str], query: str) -> list[float]:
    """BM25 as Lucene computes it, word by word: k1 = 1.5, b = 0.75."""
    texts = [words(passage) for passage in passages]
    mean = sum(map(len, texts)) / len(texts)
    holding = Counter(word for text in texts for word in set(text))
    scores = []
    for text in texts:
        score = 0.0
        for word in words(query):
            count = text.count(word)
            idf = math.log(1 + (len(texts) - holding[word] + 0.5) / (holding[word] + 0.5))
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=12),
    st.lists(st.sampled_from("abcdef"), max_size=5).map(" ".join),
    st.integers(1, 5),
)
def test_ranks_are_those_of_a_plain_reference(passages: list[str], query: str, most: int) -> None:
    pool = NegativePool(passages)
    distinct = list(dict.fromkeys(passages))
    scores = [round(score, 4) for score in reference_scores(distinct, query)]
    ranked = pool.ranked(query, (), most)
    assert [scores[place] for place in ranked] == sorted((s for s in scores if s > 0), reverse=True)[:most]


@given(st.integers(0, 1000), st.integers(0, 9), st.sets(st.sampled_from(PASSAGES)))
def test_negatives_are_wanted_ones_only_and_never_twice(seed: int, number: int, apart: set[str]) -> None:
    pool, unwanted = NegativePool(PASSAGES * 2), {normalise(text) for text in apart}
    near = pool.nearest("the cat and 学習", unwanted, number, generator(seed))
    for found in (near, pool.random(unwanted, number, generator(seed))):
        assert len(found) == len(set(found)) == min(number, len(PASSAGES) - len(apart))
        assert not set(found) & apart


def test_negatives_come_from_the_first_ranks_before_any_random_one() -> None:
    passages = [f"shared word {number}" for number in range(RANKS + 5)] + ["nothing alike"] * 1
    pool = NegativePool(passages)
    drawn = {text for seed in range(40) for text in pool.nearest("shared", (), 7, generator(seed))}
    assert drawn == set(passages[:RANKS])
    few = NegativePool(["shared", "other", "else", "shared too"])
    assert all({"shared", "shared too"} <= set(few.nearest("shared", (), 3, generator(seed))) for seed in range(5))
