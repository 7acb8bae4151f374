"""Hard negatives: ranks by score and then by place, without the answer, the same draw every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.examples import normalise
from boom_utils.data.negatives import RANKS, NegativePool

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


@given(st.integers(0, 1000), st.integers(0, 9), st.sets(st.sampled_from(PASSAGES)))
def test_negatives_are_wanted_ones_only_and_never_twice(seed: int, number: int, apart: set[str]) -> None:
    pool, unwanted = NegativePool(PASSAGES * 2), {normalise(text) for text in apart}
    near = pool.nearest("the cat and 学習", unwanted, number, generator(seed))
    for found in (near, pool.random(unwanted, number, generator(seed))):
        assert len(found) == len(set(found)) == min(number, len(PASSAGES) - len(apart))
        assert not set(found) & apart


def test_negatives_come_from_the_first_ranks_before_any_random_one() -> None:
    assert NegativePool(["a", "c d", "b a", "a b", "b"]).ranked("A b", ()) == [2, 3, 0, 4], "equal ones as they stand"
    passages = [f"shared word {number}" for number in range(RANKS + 5)] + ["nothing alike"] * 1
    pool = NegativePool(passages)
    drawn = {text for seed in range(40) for text in pool.nearest("shared", (), 7, generator(seed))}
    assert drawn == set(passages[:RANKS])
    few = NegativePool(["shared", "other", "else", "shared too"])
    assert all({"shared", "shared too"} <= set(few.nearest("shared", (), 3, generator(seed))) for seed in range(5))
