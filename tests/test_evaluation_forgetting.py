"""Forgetting: the end minus the best before it, paired over batches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import sem, t

from boom_utils.errors import ResultsError
from boom_utils.evaluation.interaction import forgotten, loss_curves
from boom_utils.reporting.interaction import forgetting_curves
from boom_utils.training.batch_losses import BatchLosses

EASE = np.random.default_rng(0).uniform(0, 4, 12)
"""Batches differ far more among themselves than between points."""
Points = list[tuple[float, BatchLosses]]


def points(*losses: float | np.ndarray, batches: str = "same", shares: tuple[float, ...] | None = None) -> Points:
    """Points of one dataset, evenly spaced, with losses as far above those of ``EASE``."""
    shares = shares or tuple(np.linspace(0, 1, len(losses)).tolist())
    return [
        (share, BatchLosses(tuple((EASE + loss).tolist()), 48, 0, batches))
        for share, loss in zip(shares, losses, strict=True)
    ]


def test_what_rises_again_is_forgotten_by_the_end_minus_the_lowest_before() -> None:
    found = forgotten({"a": points(3.0, 1.0, 2.0, 1.5, 1.75)})["a"]
    assert found.difference.value == pytest.approx(0.75)
    assert (found.lowest, found.end) == (pytest.approx(EASE.mean() + 1), pytest.approx(EASE.mean() + 1.75))
    assert found.lowest_at == 0.25
    assert found.difference.excludes_zero


def test_a_dataset_that_is_best_at_the_end_has_a_negative_number() -> None:
    found = forgotten({"a": points(3.0, 2.0, 1.5)})["a"]
    assert (found.difference.value, found.lowest_at) == (pytest.approx(-0.5), 0.5)


def test_a_base_that_was_best_counts_as_a_point_and_of_equal_points_the_first() -> None:
    assert forgotten({"a": points(1.0, 2.0, 1.5)})["a"].lowest_at == 0
    assert forgotten({"a": points(2.0, 1.0, 1.0, 1.5)})["a"].lowest_at == pytest.approx(1 / 3)


def test_intervals_are_paired_over_batches_so_what_all_points_share_does_not_widen_them() -> None:
    found = forgotten({"a": points(3.0, 1.0, 1.25)})["a"].difference
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_intervals_are_students_over_batches_between_the_same_two_points() -> None:
    noise = np.random.default_rng(1).normal(0, 0.5, 12)
    found = forgotten({"a": points(3.0, 1.0, noise + 1.1)})["a"].difference
    assert [found.low, found.high] == pytest.approx(t.interval(0.95, 11, (noise + 0.1).mean(), sem(noise)))


def test_a_dataset_does_not_depend_on_the_others() -> None:
    both = forgotten({"b": points(2.0, 1.0, 3.0), "a": points(1.0, 2.0, 1.5)})
    assert forgotten({"a": points(1.0, 2.0, 1.5)})["a"] == both["a"]
    assert list(both) == ["b", "a"]


def test_curves_are_what_the_figure_draws() -> None:
    watched = {"a": points(3.0, 1.0, 2.0), "b": points(1.0, 0.5, 0.25)}
    curves = loss_curves(watched)
    assert [(share, loss) for share, loss, _, _ in curves["a"]] == [
        (share, pytest.approx(EASE.mean() + loss)) for share, loss in ((0.0, 3.0), (0.5, 1.0), (1.0, 2.0))
    ]
    assert all(low < loss < high for _, loss, low, high in curves["a"])
    figure = forgetting_curves({"shuffled": curves})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], r"a: 0 point\(s\)"),
        (points(1.0), r"a: 1 point\(s\)"),
        (points(2.0, 1.0, shares=(0.0, 0.5)), "not up to the end"),
        ([points(2.0)[0], (1.0, points(1.0, batches="others")[0][1])], "points on different batches"),
        ([points(2.0)[0], (1.0, BatchLosses((1.0,), 4, 0, "same"))], "points on different batches"),
    ],
)
def test_points_that_cannot_be_compared_are_one_error(wrong: Points, message: str) -> None:
    with pytest.raises(ResultsError, match=f"(?s)cannot be compared.*{message}"):
        forgotten({"b": points(1.0, 2.0), "a": wrong})


def test_a_training_that_is_not_at_its_end_has_curves_but_no_number() -> None:
    half = {"a": points(2.0, 1.0, shares=(0.0, 0.5))}
    assert len(loss_curves(half)["a"]) == 2
    with pytest.raises(ResultsError, match="not up to the end"):
        forgotten(half)
    with pytest.raises(ResultsError, match="no dataset"):
        forgotten({})
    with pytest.raises(ResultsError, match="different batches"):
        loss_curves({"a": [points(2.0)[0], (1.0, points(1.0, batches="others")[0][1])]})
