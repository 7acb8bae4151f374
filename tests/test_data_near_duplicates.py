"""Near-duplicates: against every pair compared by hand, what the index may miss, and what the prefilter may not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.data.near_duplicates import (
    NearDuplicates,
    NearOptions,
    character_shingles,
    jaccard,
    word_shingles,
)

SMALL = NearOptions(threshold=0.5, word_shingle=2, character_shingle=3, short_words=6, permutations=96)


def compared(known: list[str], texts: list[str], options: NearOptions) -> list[list[tuple[int, float]]]:
    """Every text with every known one, in the plain way."""

    def similarity(left: str, right: str) -> float:
        if len(left.split(" ")) < options.short_words:
            size = options.character_shingle
            return jaccard(character_shingles(left, size), character_shingles(right, size))
        return jaccard(word_shingles(left, options.word_shingle), word_shingles(right, options.word_shingle))

    found = [[(number, similarity(one, text)) for number, one in enumerate(known)] for text in texts]
    return [[(number, value) for number, value in row if value >= options.threshold] for row in found]


def altered(text: str, changes: int, rng: np.random.Generator) -> str:
    """The text with words replaced, left out or put in."""
    words = text.split(" ")
    for _ in range(changes):
        place = int(rng.integers(len(words)))
        words[place : place + int(rng.integers(2))] = [f"new{rng.integers(1000)}"] * int(rng.integers(2))
        words = words or ["new"]
    return " ".join(words)


def sentences(count: int, longest: int, rng: np.random.Generator, words: int = 3000) -> list[str]:
    lengths = rng.integers(1, longest, size=count)
    return list(dict.fromkeys(" ".join(f"w{n}" for n in rng.integers(words, size=length)) for length in lengths))


words = st.lists(st.sampled_from("ab cd efg h éß 中文".split()), min_size=1, max_size=12).map(" ".join)


@pytest.mark.promise(8)
@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=8, unique=True), st.lists(words, max_size=8), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_what_is_found_is_what_comparing_every_pair_finds(known: list[str], texts: list[str], threshold: float) -> None:
    options = NearOptions(threshold, 2, 3, 6, 96)
    assert NearDuplicates(known, options).find(texts) == compared(known, texts, options)


@pytest.mark.promise(8)
@pytest.mark.parametrize("options", [NearOptions(), SMALL], ids=["default", "small"])
def test_of_altered_texts_all_are_found_and_nothing_else(options: NearOptions) -> None:
    rng = np.random.default_rng(0)
    known = sentences(150, 90, rng)
    texts = [altered(text, changes, rng) for text in known for changes in (0, 1, 2, 4)] + sentences(150, 90, rng)
    expected = compared(known, texts, options)
    pairs = sum(map(len, expected))
    assert pairs > 250
    assert sum(value < 1 for row in expected for _, value in row) > 100
    assert NearDuplicates(known, options).find(texts) == expected


def test_the_stated_recall_is_the_measured_one() -> None:
    """At the threshold itself, where it is lowest; with few permutations, so that there is something to measure."""
    options = NearOptions(threshold=0.6, word_shingle=1, short_words=1, permutations=6)
    rng = np.random.default_rng(1)
    known = [" ".join(f"k{number}x{word}" for word in range(40)) for number in range(3000)]
    # 30 of 40 words shared and 10 new ones: 30 / 50 shingles of one word.
    texts = [" ".join([*text.split(" ")[:30], *(f"n{rng.integers(10**9)}" for _ in range(10))]) for text in known]
    index = NearDuplicates(known, options)
    found = index.find(texts)
    assert all(row in ([], [(number, 0.6)]) for number, row in enumerate(found))
    assert index.rows_a_band == 1
    assert abs(sum(map(len, found)) / len(known) - index.recall) < 3 * np.sqrt(index.recall * (1 - index.recall) / 3000)


def test_the_default_index_misses_at_most_one_pair_in_ten_thousand() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        assert NearDuplicates([], NearOptions(threshold)).recall >= 0.9999


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=6, unique=True), st.lists(words, min_size=1, max_size=6))
def test_the_prefilter_never_drops_a_pair(known: list[str], texts: list[str]) -> None:
    for row, possible in zip(compared(known, texts, SMALL), passing(known, texts), strict=True):
        assert possible or not row


def passing(known: list[str], texts: list[str]) -> list[bool]:
    """Whether each text passes the prefilter of either kind."""
    indexes = NearDuplicates(known, SMALL)._indexes
    left = {place for index in indexes for place in index._possible(texts)}
    return [place in left for place in range(len(texts))]


def test_the_prefilter_drops_nearly_all_unrelated_texts() -> None:
    rng = np.random.default_rng(2)
    letters = list("etaoinshrdlu")
    vocabulary = ["".join(rng.choice(letters, size=rng.integers(2, 10))) for _ in range(2000)]
    texts = [" ".join(rng.choice(vocabulary, size=rng.integers(3, 90))) for _ in range(800)]
    index = NearDuplicates(texts[:400])
    assert sum(len(part._possible(texts[400:])) for part in index._indexes) < 8


def test_the_same_is_found_in_every_process() -> None:
    """Python's hashes differ between processes; with few permutations a difference in candidates would show."""
    code = """
from boom_utils.data.near_duplicates import NearDuplicates, NearOptions
known = [" ".join(f"k{n}x{w}" for w in range(40)) for n in range(200)]
texts = [" ".join([*t.split(" ")[:30], *(f"n{w}" for w in range(10))]) for t in known]
print(NearDuplicates(known, NearOptions(0.6, 1, 5, 1, 2)).find(texts))
"""
    said = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, text=True, cwd=PROJECT_ROOT
        )
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert 0 < said.pop().count("0.6") < 200


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": float("nan")}, {"word_shingle": 0}, {"short_words": 2}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        NearOptions(**wrong)  # type: ignore[arg-type]
