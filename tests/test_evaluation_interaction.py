"""Interaction and forgetting: signs, paired intervals, and clusters that depend on the differences alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import sem, t

from boom_utils.errors import ConfigError, ResultsError
from boom_utils.evaluation.interaction import (
    Clusters,
    Interaction,
    clusters,
    forgotten,
    interaction_matrix,
    loss_curves,
)
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


def interaction(values: np.ndarray) -> Interaction:
    """An interaction with these values, which are made symmetric, and empty intervals."""
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0.0)
    names = tuple(f"d{number:02d}" for number in range(len(values)))
    return Interaction(names, (3,) * len(names), 0.95, *(values,) * 6)


def test_rows_are_the_dataset_whose_loss_it_is_columns_the_company_and_a_pair_the_mean_of_both() -> None:
    effect = {"a": 0.1, "b": -0.2, "c": 0.4}
    found = interaction_matrix(*made("abc", lambda of, by: effect[of] + 10 * effect[by]))
    assert found.changes[0] == pytest.approx([0, 0.1 - 2, 0.1 + 4])
    assert found.change("a", "b").value == pytest.approx(0.1 - 2)
    assert found.pair("a", "c").value == found.pair("c", "a").value == pytest.approx((0.1 + 4 + 0.4 + 1) / 2)
    assert found.pair("a", "a").value == 0 and found.batches == (10,) * 3
    assert (found.low, found.high) == (pytest.approx(found.values), pytest.approx(found.values))  # paired


def test_intervals_are_students_over_the_batches_of_each_direction() -> None:
    rng = np.random.default_rng(3)
    noise = {pair: rng.normal(0.05, 0.1, 10) for pair in (("a", "b"), ("b", "a"))}
    found = interaction_matrix(*made("ab", lambda of, by: noise[of, by]))
    low, high = t.interval(0.95, 9, noise["a", "b"].mean(), sem(noise["a", "b"]))
    assert [found.changes_low[0, 1], found.changes_high[0, 1]] == pytest.approx([low, high])
    error, half = np.hypot(*(sem(one) for one in noise.values())) / 2, (found.high[1, 0] - found.low[1, 0]) / 2
    assert t.ppf(0.975, 18) * error <= half <= t.ppf(0.975, 9) * error


def test_pairs_may_be_named_in_either_order_and_datasets_too() -> None:
    separate, joint = made("abc", lambda of, by: (ord(of) - 2 * ord(by)) / 100)
    found = interaction_matrix(separate, {pair[::-1]: losses for pair, losses in joint.items()})
    turned = interaction_matrix(dict(reversed(separate.items())), joint)
    assert turned.datasets == ("c", "b", "a")
    for of, by in ((of, by) for of in "abc" for by in "abc"):
        assert (turned.change(of, by), turned.pair(of, by)) == (found.change(of, by), found.pair(of, by))


def test_everything_that_is_missing_or_not_comparable_is_one_error() -> None:
    separate, joint = made("abcd", lambda *_: 0.1)
    del joint["a", "c"], joint["a", "d"]["d"], separate["b"]["b"]
    joint["c", "d"]["c"] = replace(joint["c", "d"]["c"], batches="others")
    with pytest.raises(ResultsError) as caught:
        interaction_matrix(separate, joint)
    for problem in ("a with c", "d with a", "b alone", "c with d: other batches"):
        assert problem in str(caught.value)
    with pytest.raises(ResultsError, match="two are needed"):
        interaction_matrix({"a": {}}, {})


def test_interactions_and_clusters_survive_json_and_one_batch_has_no_interval() -> None:
    for batches in (1, 10):
        found = interaction_matrix(*made("abc", lambda of, by: (ord(of) - 2 * ord(by)) / 100, batches))
        again = Interaction.from_json(json.loads(json.dumps(found.as_json(), allow_nan=False)))
        assert again.as_json() == found.as_json()
        assert np.isnan(found.low[0, 1]) == (batches == 1) != found.pair("a", "b").excludes_zero
        groups = clusters(found, count=2)
        back = Clusters.from_json(json.loads(json.dumps(groups.as_json(), allow_nan=False)))
        assert (back.as_json(), back.leaves) == (groups.as_json(), groups.leaves)


# --- clusters ---------------------------------------------------------------------------------------------------------


def partition(found: Clusters) -> set[frozenset[str]]:
    return {frozenset(group) for group in found.groups}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 2**32 - 1), st.floats(-5, 5))
def test_blocks_are_found_again_by_their_number_and_by_a_threshold_wherever_zero_is(
    labels: list[int], seed: int, constant: float
) -> None:
    same = np.array(labels)[:, None] == np.array(labels)[None, :]
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, same.shape)
    given_ = interaction(np.where(same, -0.5, 0.5) + noise + constant)
    pairs = list(zip(given_.datasets, labels, strict=True))
    expected = {frozenset(name for name, label in pairs if label == one) for one in labels}
    assert partition(clusters(given_, count=len(set(labels)))) == expected
    assert partition(clusters(given_, threshold=constant)) == expected


@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_the_order_of_datasets_changes_no_cluster_and_there_are_as_many_as_asked_for(
    size: int, seed: int, ties: bool
) -> None:
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


def test_clusters_are_numbered_by_their_first_dataset_and_stand_together_in_a_tree_of_mean_differences() -> None:
    labels = np.array([2, 0, 2, 1, 0, 1])
    found = clusters(interaction(np.where(labels[:, None] == labels, -1.0, 1.0)), count=3)
    assert found.labels == (1, 2, 1, 3, 2, 3)
    assert found.groups == (("d00", "d02"), ("d01", "d04"), ("d03", "d05"))
    shown = [found.labels[leaf] for leaf in found.leaves]
    assert sorted(found.leaves) == list(range(6)) and sum(np.diff(shown) != 0) == 2
    tree = clusters(interaction(np.array([[0, -0.4, 0.1], [-0.4, 0, 0.3], [0.1, 0.3, 0]])), threshold=0.1)
    assert tree.linkage[:, 2] + tree.shift == pytest.approx([-0.4, 0.2]) and tree.labels == (1, 1, 2)


@pytest.mark.parametrize(
    "options", [{}, {"count": 2, "threshold": 0.0}, {"count": 0}, {"count": 4}, {"threshold": float("nan")}]
)
def test_clusters_that_make_no_sense_are_refused(options: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a count of 1 to 3 clusters, or a finite threshold"):
        clusters(interaction(np.zeros((3, 3))), **options)


# --- forgetting -------------------------------------------------------------------------------------------------------

EASE = np.random.default_rng(0).uniform(0, 4, 12)
"""Batches differ far more among themselves than between points."""
Points = list[tuple[float, BatchLosses]]


def points(*losses: float | np.ndarray, batches: str = "same", end: float = 1.0) -> Points:
    """Points of one dataset, evenly spaced, with losses as far above those of ``EASE``."""
    shares = np.linspace(0, end, len(losses)).tolist()
    return [(share, batch_losses(EASE + loss, batches)) for share, loss in zip(shares, losses, strict=True)]


@pytest.mark.parametrize(
    ("losses", "difference", "lowest_at"),
    [
        ((3.0, 1.0, 2.0, 1.5, 1.75), 0.75, 0.25),  # what rises again is forgotten
        ((3.0, 2.0, 1.5), -0.5, 0.5),  # best at the end
        ((1.0, 2.0, 1.5), 0.5, 0.0),  # the base was best
        ((2.0, 1.0, 1.0, 1.5), 0.5, 1 / 3),  # of equal points the first
    ],
)
def test_forgotten_is_the_end_minus_the_lowest_before_paired_over_batches(
    losses: tuple[float, ...], difference: float, lowest_at: float
) -> None:
    found = forgotten({"b": points(2.0, 1.0), "a": points(*losses)})["a"]
    assert (found.lowest_at, found.end) == (pytest.approx(lowest_at), pytest.approx(EASE.mean() + losses[-1]))
    assert [found.difference.value, found.difference.low, found.difference.high] == pytest.approx([difference] * 3)
    assert found.lowest == pytest.approx(found.end - difference)


def test_intervals_are_students_over_batches_between_the_same_two_points() -> None:
    noise = np.random.default_rng(1).normal(0, 0.5, 12)
    found = forgotten({"a": points(3.0, 1.0, noise + 1.1)})["a"].difference
    assert [found.low, found.high] == pytest.approx(t.interval(0.95, 11, (noise + 0.1).mean(), sem(noise)))
    curve = loss_curves({"a": points(3.0, 1.0, end=0.5)})["a"]  # a training that is not at its end has curves
    assert np.array(curve)[:, :2] == pytest.approx(np.array([[0.0, EASE.mean() + 3], [0.5, EASE.mean() + 1]]))
    assert all(low < loss < high for _, loss, low, high in curve)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "no dataset"),
        ({"a": []}, r"a: 0 point\(s\)"),
        ({"b": points(1.0, 2.0), "a": points(1.0)}, r"a: 1 point\(s\)"),
        ({"a": points(2.0, 1.0, end=0.5)}, "not up to the end"),
        ({"a": [points(2.0)[0], (1.0, points(1.0, batches="others")[0][1])]}, "points on different batches"),
        ({"a": [points(2.0)[0], (1.0, BatchLosses((1.0,), 4, 0, "same"))]}, "points on different batches"),
    ],
)
def test_points_that_cannot_be_compared_are_one_error(wrong: dict[str, Points], message: str) -> None:
    with pytest.raises(ResultsError, match=f"(?s)cannot be compared.*{message}"):
        forgotten(wrong)
