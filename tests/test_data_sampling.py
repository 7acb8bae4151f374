"""Subsets: exact sizes, without replacement, the same everywhere, independent of the other datasets."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.config import SubsetConfig
from boom_utils.data.sampling import draw_subset, load_subset, make_subset, save_subset, subset_size
from boom_utils.errors import DataError

names = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: name[0] != "_")
corpora = st.dictionaries(names, st.integers(1, 60), min_size=1, max_size=4)
ratios = st.integers(1, 100).map(lambda percent: percent / 100)
MODES = ("independent", "nested")
modes = st.sampled_from(MODES)


def rule(**keys: Any) -> SubsetConfig:
    return SubsetConfig(**{"name": "s", **keys})


def as_lists(rows: Any) -> dict[str, list[int]]:
    return {dataset: [int(row) for row in ids] for dataset, ids in rows.items()}


@pytest.mark.promise(9)
@given(corpora, ratios, modes, st.integers(0, 5))
def test_every_dataset_gives_its_exact_share_once(rows: dict[str, int], ratio: float, mode: str, seed: int) -> None:
    drawn = draw_subset(rows, rule(ratio=ratio, mode=mode, seed=seed))
    for dataset, count in rows.items():
        ids = drawn[dataset]
        exact = Fraction(round(ratio * 100), 100) * count
        assert len(ids) == max(1, int(exact + Fraction(1, 2)))  # half up
        assert ids.dtype == np.uint32
        assert (np.diff(ids.astype(int)) > 0).all()
        assert int(ids.max()) < count


@pytest.mark.promise(9)
@given(corpora, ratios, ratios, st.integers(0, 5))
def test_nested_subsets_are_nested(rows: dict[str, int], one: float, other: float, seed: int) -> None:
    small = draw_subset(rows, rule(name="small", ratio=min(one, other), mode="nested", seed=seed))
    large = draw_subset(rows, rule(name="large", ratio=max(one, other), mode="nested", seed=seed))
    assert all(set(small[dataset].tolist()) <= set(large[dataset].tolist()) for dataset in rows)


@pytest.mark.promise(9)
@given(corpora, st.integers(2, 9), st.integers(0, 5))
def test_blocks_of_the_nested_order_share_no_row_and_together_hold_all(
    rows: dict[str, int], parts: int, seed: int
) -> None:
    cuts = [round(number / parts, 4) for number in range(parts + 1)]
    rules = [
        {"ratio": round(end - start, 4), "skip": start, "mode": "nested", "seed": seed} for start, end in pairwise(cuts)
    ]
    blocks = [draw_subset(rows, rule(**one)) for one in rules]
    for dataset, count in rows.items():
        assert sorted(row for one in blocks for row in one[dataset].tolist()) == [*range(count)]
    assert "skip" not in rule(**rules[0]).rule()
    for wrong in ({"mode": "independent"}, {"skip": 0.9}, {"new_data": 0.5}):
        with pytest.raises(ValueError, match="`skip`"):
            rule(**{**rules[1], **wrong})


@pytest.mark.promise(9)
@given(corpora, st.integers(1, 60), ratios, modes, st.randoms())
def test_another_dataset_or_order_changes_no_sample(
    rows: dict[str, int], extra: int, ratio: float, mode: str, shuffler: random.Random
) -> None:
    config = rule(ratio=ratio, mode=mode)
    before = as_lists(draw_subset(rows, config))
    items = [*rows.items(), ("new-data", extra)]
    shuffler.shuffle(items)
    after = as_lists(draw_subset(dict(items), config))
    assert {dataset: after[dataset] for dataset in rows} == before


@pytest.mark.promise(9)
@given(corpora, st.integers(1, 60), ratios, ratios, modes)
def test_new_data_have_a_share_of_their_own_and_change_nothing_drawn_from_the_old(
    rows: dict[str, int], extra: int, ratio: float, share: float, mode: str
) -> None:
    old = as_lists(draw_subset(rows, rule(ratio=ratio, mode=mode)))
    everything = {**rows, "new-data": extra}
    update = as_lists(draw_subset(everything, rule(ratio=ratio, new_data=share, mode=mode), new=["new-data"]))
    assert len(update.pop("new-data")) == subset_size(share, extra)
    assert update == old
    assert as_lists(draw_subset(everything, rule(ratio=ratio, mode=mode), new=["new-data"])) == old


@pytest.mark.promise(9)
@given(corpora, ratios)
def test_a_complement_is_what_the_other_left(rows: dict[str, int], ratio: float) -> None:
    half = make_subset(rows, rule(name="half", ratio=ratio))
    rest = make_subset(rows, rule(name="rest", complement_of="half"), half)
    for dataset, count in rows.items():
        assert sorted([*half.rows[dataset].tolist(), *rest.rows[dataset].tolist()]) == list(range(count))


def test_a_small_draw_is_frozen() -> None:
    """A change here changes every published subset: raise the version of stage subset."""
    independent, nested = (as_lists(draw_subset({"a": 50}, rule(name="s20", ratio=0.2, mode=m))) for m in MODES)
    assert independent == {"a": [3, 7, 12, 13, 22, 28, 35, 37, 40, 48]}
    assert nested == {"a": [0, 17, 20, 21, 22, 26, 31, 33, 42, 48]}


def test_an_empty_corpus_or_an_unknown_complement_is_refused() -> None:
    with pytest.raises(DataError, match="no rows in b"):
        draw_subset({"a": 1, "b": 0}, rule(ratio=0.5))
    with pytest.raises(DataError, match="no rows in any file"):
        draw_subset({}, rule(ratio=0.5))
    half = make_subset({"a": 4}, rule(name="half", ratio=0.5))
    for rows, name, other in (({"a": 4}, "halff", half), ({"a": 5}, "half", half), ({"a": 4}, "half", None)):
        with pytest.raises(DataError, match="not drawn from these rows"):
            draw_subset(rows, rule(complement_of=name), other)


@pytest.mark.promise(9)
def test_a_subset_is_written_with_the_same_bytes_twice_and_refused_once_it_was_changed(tmp_path: Path) -> None:
    for run in ("one", "two"):
        facts = save_subset(tmp_path / run, make_subset({"b": 25, "a": 10}, rule(name="s20", ratio=0.2)))
    assert facts["sizes"] == {"a": 2, "b": 5}
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["a.npy", "b.npy", "rule.json"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    np.save(tmp_path / "one" / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"(?s)were changed.*a\.npy"):
        load_subset(tmp_path / "one")
    (tmp_path / "one" / "a.npy").unlink()
    (tmp_path / "two" / "rule.json").write_text("{}")
    for folder in ("one", "two"):
        with pytest.raises(DataError, match="cannot be read"):
            load_subset(tmp_path / folder)
