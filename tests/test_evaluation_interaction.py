"""Interaction of datasets: signs, paired intervals, and clusters that depend on the differences alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem, t

from boom_utils.errors import ConfigError, ResultsError
from boom_utils.evaluation.interaction import (
    Clusters,
    Interaction,
    clusters,
    interaction_matrix,
)
from boom_utils.evaluation.statistics import plain_mean
from boom_utils.training.batch_losses import BatchLosses

Separate = dict[str, dict[str, BatchLosses]]
Joint = dict[tuple[str, str], dict[str, BatchLosses]]


def batch_losses(values: np.ndarray, batches: str = "same") -> BatchLosses:
    return BatchLosses(tuple(values.tolist()), 4 * len(values), 0, batches)


def made(names: str, change: Callable[[str, str], np.ndarray | float], batches: int = 10) -> tuple[Separate, Joint]:
    """Losses of models on datasets of ten batches; ``change`` is what training with another does to one."""
    rng = np.random.default_rng(0)
    alone = {name: rng.uniform(1, 3, batches) for name in sorted(names)}
    separate = {name: {name: batch_losses(alone[name])} for name in names}
    joint = {
        (a, b): {a: batch_losses(alone[a] + change(a, b)), b: batch_losses(alone[b] + change(b, a))}
        for a, b in combinations(names, 2)
    }
    return separate, joint


def interaction(values: np.ndarray, names: tuple[str, ...] | None = None) -> Interaction:
    """An interaction with these values, which are made symmetric, and empty intervals."""
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0.0)
    names = names or tuple(f"d{number:02d}" for number in range(len(values)))
    return Interaction(names, (3,) * len(names), 0.95, *(values,) * 6)


def test_a_loss_that_falls_in_company_is_negative_and_the_pair_is_the_mean_of_both_directions() -> None:
    found = interaction_matrix(*made("ab", lambda of, _: {"a": -0.3, "b": 0.1}[of]))
    assert found.change("a", "b").value == pytest.approx(-0.3)
    assert found.change("b", "a").value == pytest.approx(0.1)
    assert found.pair("a", "b").value == found.pair("b", "a").value == pytest.approx(-0.1)
    assert found.pair("a", "a").value == 0
    assert found.batches == (10, 10)


def test_rows_are_the_dataset_whose_loss_it_is_and_columns_the_company() -> None:
    effect = {"a": 0.1, "b": 0.2, "c": 0.4}
    found = interaction_matrix(*made("abc", lambda of, by: effect[of] + 10 * effect[by]))
    assert found.changes[0] == pytest.approx([0, 0.1 + 2, 0.1 + 4])
    assert found.values[0, 2] == pytest.approx((0.1 + 4 + 0.4 + 1) / 2)


def test_intervals_are_paired_so_what_two_models_share_does_not_widen_them() -> None:
    found = interaction_matrix(*made("ab", lambda *_: 0.25))
    assert (found.low, found.high) == (pytest.approx(found.values), pytest.approx(found.values))
    assert found.pair("a", "b").excludes_zero


def test_intervals_are_students_over_the_batches_of_each_direction() -> None:
    rng = np.random.default_rng(3)
    noise = {pair: rng.normal(0.05, 0.1, 10) for pair in (("a", "b"), ("b", "a"))}
    found = interaction_matrix(*made("ab", lambda of, by: noise[of, by]))
    low, high = t.interval(0.95, 9, noise["a", "b"].mean(), sem(noise["a", "b"]))
    assert [found.changes_low[0, 1], found.changes_high[0, 1]] == pytest.approx([low, high])
    error = np.hypot(*(sem(one) for one in noise.values())) / 2
    half = (found.high[1, 0] - found.low[1, 0]) / 2
    assert t.ppf(0.975, 18) * error <= half <= t.ppf(0.975, 9) * error
    assert found.low[0, 1] < found.values[0, 1] < found.high[0, 1]


@pytest.mark.parametrize("batches", [2, 3, 6])
def test_an_interval_over_few_batches_is_wide_enough(batches: int) -> None:
    rng, missed, trials = np.random.default_rng(batches), 0, 400
    for _ in range(trials):
        values = rng.normal(0.3, 0.1, batches)
        estimate = plain_mean(values).estimate()
        missed += not estimate.low < 0.3 < estimate.high
    assert missed / trials < 0.09


def test_one_batch_has_no_interval_and_decides_nothing() -> None:
    found = interaction_matrix(*made("ab", lambda *_: 0.25, batches=1))
    assert found.pair("a", "b").value == pytest.approx(0.25)
    assert np.isnan(found.low[0, 1])
    assert not found.pair("a", "b").excludes_zero
    again = Interaction.from_json(json.loads(json.dumps(found.as_json(), allow_nan=False)))
    assert np.array_equal(again.low, found.low, equal_nan=True)
    assert np.array_equal(again.values, found.values)


def test_pairs_may_be_named_in_either_order_and_datasets_too() -> None:
    def change(of: str, by: str) -> float:
        return (ord(of) - 2 * ord(by)) / 100

    separate, joint = made("abc", change)
    found = interaction_matrix(separate, {pair[::-1]: losses for pair, losses in joint.items()})
    turned = interaction_matrix(dict(reversed(separate.items())), joint)
    assert turned.datasets == ("c", "b", "a")
    for of in "abc":
        for by in "abc":
            assert turned.change(of, by) == found.change(of, by)
            assert turned.pair(of, by) == found.pair(of, by)


def test_everything_that_is_missing_or_not_comparable_is_one_error() -> None:
    separate, joint = made("abcd", lambda *_: 0.1)
    del joint["a", "c"], joint["a", "d"]["d"], separate["b"]["b"]
    joint["c", "d"]["c"] = replace(joint["c", "d"]["c"], batches="others")
    with pytest.raises(ResultsError) as caught:
        interaction_matrix(separate, joint)
    for problem in (
        "a with c: no loss on a",
        "d with a: no loss on d",
        "b alone: no loss on itself",
        "c with d: other batches of c than alone",
    ):
        assert problem in str(caught.value)
    with pytest.raises(ResultsError, match="two are needed"):
        interaction_matrix({"a": {}}, {})


# --- clusters ---------------------------------------------------------------------------------------------------------


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Datasets of a few blocks: differences within are far below those between."""
    labels = draw(st.lists(st.integers(0, 3), min_size=2, max_size=12))
    seed = draw(st.integers(0, 2**32 - 1))
    same = np.array(labels)[:, None] == np.array(labels)[None, :]
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, same.shape)
    return np.where(same, -0.5, 0.5) + noise, labels


def partition(found: Clusters) -> set[frozenset[str]]:
    return {frozenset(group) for group in found.groups}


def expected(labels: list[int], names: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(n for n, k in zip(names, labels, strict=True) if k == label) for label in labels}


@settings(deadline=None)  # the first example imports scipy
@given(blocks())
def test_blocks_are_found_again_by_their_number_and_by_a_threshold(case: tuple[np.ndarray, list[int]]) -> None:
    values, labels = case
    given_ = interaction(values)
    assert partition(clusters(given_, count=len(set(labels)))) == expected(labels, given_.datasets)
    assert partition(clusters(given_, threshold=0.0)) == expected(labels, given_.datasets)


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_neither_names_nor_order_of_datasets_change_the_clusters(size: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (size, size)) * 0.5 if ties else rng.normal(size=(size, size))
    given_, order = interaction(values.astype(float)), rng.permutation(size)
    moved = replace(
        given_, datasets=tuple(given_.datasets[n] for n in order), values=given_.values[np.ix_(order, order)]
    )
    for count in range(1, size + 1):
        found = clusters(given_, count=count)
        assert len(found.groups) == count
        assert partition(clusters(moved, count=count)) == partition(found)
    if not ties:
        named = replace(given_, datasets=tuple(rng.permutation([f"x{n}" for n in range(size)]).tolist()))
        assert clusters(named, count=2).labels == clusters(given_, count=2).labels


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_a_constant_added_to_all_differences_moves_only_the_threshold(size: int, seed: int, constant: float) -> None:
    values = np.random.default_rng(seed).normal(size=(size, size))
    given_, moved = interaction(values), interaction(values + constant)
    assert clusters(moved, count=2).labels == clusters(given_, count=2).labels
    assert clusters(moved, threshold=0.2 + constant).labels == clusters(given_, threshold=0.2).labels
    assert clusters(moved, count=2).shift == pytest.approx(clusters(given_, count=2).shift + constant)


@pytest.mark.parametrize("value", [-0.3, 0.0, 0.3])
def test_a_constant_matrix_is_one_cluster_or_as_many_as_are_asked_for(value: float) -> None:
    given_ = interaction(np.full((5, 5), value))
    assert clusters(given_, threshold=value).labels == (1, 1, 1, 1, 1)
    assert clusters(given_, threshold=value - 1e-9).labels == (1, 2, 3, 4, 5)
    assert len(clusters(given_, count=3).groups) == 3
    assert clusters(given_, count=3).labels == clusters(given_, count=3).labels
    assert clusters(given_, count=1).shift == value


def test_clusters_are_numbered_by_their_first_dataset_and_stand_together_in_the_tree() -> None:
    labels = [2, 0, 2, 1, 0, 1]
    same = np.array(labels)[:, None] == np.array(labels)[None, :]
    found = clusters(interaction(np.where(same, -1.0, 1.0)), count=3)
    assert found.labels == (1, 2, 1, 3, 2, 3)
    assert found.groups == (("d00", "d02"), ("d01", "d04"), ("d03", "d05"))
    shown = [found.labels[leaf] for leaf in found.leaves]
    assert sorted(found.leaves) == list(range(6))
    assert sum(a != b for a, b in pairwise(shown)) == 2


def test_heights_of_the_tree_are_mean_differences_again_when_shifted_back() -> None:
    values = np.array([[0, -0.4, 0.1], [-0.4, 0, 0.3], [0.1, 0.3, 0]])
    found = clusters(interaction(values), count=2)
    assert found.linkage[:, 2] == pytest.approx([0.0, 0.6])
    assert found.linkage[:, 2] + found.shift == pytest.approx([-0.4, 0.2])
    assert clusters(interaction(values), threshold=0.1).labels == (1, 1, 2)
    assert clusters(interaction(values), threshold=0.3).labels == (1, 1, 1)


@pytest.mark.parametrize(
    "options", [{}, {"count": 2, "threshold": 0.0}, {"count": 0}, {"count": 4}, {"threshold": float("nan")}]
)
def test_clusters_that_make_no_sense_are_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a count of 1 to 3 clusters, or a finite threshold"):
        clusters(interaction(np.zeros((3, 3))), **options)


# --- files ------------------------------------------------------------------------------------------------------------


def test_interaction_and_clusters_survive_json() -> None:
    found = interaction_matrix(*made("abc", lambda of, by: (ord(of) - 2 * ord(by)) / 100))
    again = Interaction.from_json(json.loads(json.dumps(found.as_json(), allow_nan=False)))
    assert again.as_json() == found.as_json()
    groups = clusters(found, count=2)
    back = Clusters.from_json(json.loads(json.dumps(groups.as_json(), allow_nan=False)))
    assert back.as_json() == groups.as_json()
    assert back.leaves == groups.leaves


def test_the_analysis_and_its_figures_need_no_torch() -> None:
    code = (
        "import sys, boom_utils.evaluation.interaction, boom_utils.reporting.interaction; print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
