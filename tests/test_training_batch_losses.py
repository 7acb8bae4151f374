"""Losses of batches: a mean, and files that are whole and in order or an error with the line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boom_utils.errors import ResultsError
from boom_utils.training.batch_losses import (
    WATCHED_LOSSES,
    BatchLosses,
    WatchedPoint,
    losses_as_json,
    losses_from_json,
    read_points,
    read_watched,
    write_points,
)

LOSSES = {"b": BatchLosses((1.0, 2.0), 8, 1, "same"), "a": BatchLosses((0.1, 0.2, 0.6), 12, 0, "same")}
POINTS = [WatchedPoint(step, step / 4, LOSSES) for step in (0, 1, 4)]


def test_losses_survive_json_and_stand_there_by_name_with_their_mean() -> None:
    stored = json.loads(json.dumps(losses_as_json(LOSSES)))
    assert losses_from_json(stored) == LOSSES
    assert list(stored) == ["a", "b"]
    assert list(stored["b"]) == ["loss", "values", "rows", "rows_in_no_batch", "batches"]
    assert (stored["b"]["loss"], stored["a"]["loss"]) == (1.5, pytest.approx(0.3))


@pytest.mark.parametrize(
    "change", [{"values": []}, {"values": [float("nan")]}, {"values": "x"}, {"rows": None}, {"batches": ...}]
)
def test_damaged_losses_are_refused(change: dict[str, Any]) -> None:
    stored = {**losses_as_json(LOSSES)["a"], **change}
    with pytest.raises(ResultsError, match="not the losses of datasets"):
        losses_from_json({"a": {key: value for key, value in stored.items() if value is not ...}})


def test_points_survive_their_file_and_are_read_with_the_share_of_steps_done(tmp_path: Path) -> None:
    write_points(tmp_path, POINTS)
    assert read_points(tmp_path) == POINTS
    found = read_watched(tmp_path)
    assert list(found) == ["a", "b"]
    assert [(share, losses.values) for share, losses in found["b"]] == [(n, (1.0, 2.0)) for n in (0.0, 0.25, 1.0)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[1].pop("step"), 2),
        (lambda lines: lines[1].pop("losses"), 2),
        (lambda lines: lines[2]["losses"]["b"].update(values=[1.0, float("nan")]), 3),
        (lambda lines: lines.clear(), 1),
        (lambda lines: lines.__setitem__(0, 7), 1),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(
    tmp_path: Path, change: Callable[[list[Any]], Any], line: int
) -> None:
    write_points(tmp_path, POINTS)
    path = tmp_path / WATCHED_LOSSES
    lines = [json.loads(one) for one in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(ResultsError, match=rf"(?s)are damaged.*{WATCHED_LOSSES}:{line}"):
        read_points(tmp_path)


def test_a_truncated_or_missing_file_is_an_error(tmp_path: Path) -> None:
    write_points(tmp_path, POINTS)
    path = tmp_path / WATCHED_LOSSES
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ResultsError, match=f"{WATCHED_LOSSES}:3"):
        read_watched(tmp_path)
    path.unlink()
    with pytest.raises(ResultsError, match="there are no watched losses of this training"):
        read_watched(tmp_path)


def test_a_loss_that_is_not_finite_is_none() -> None:
    with pytest.raises(ValueError, match="finite number"):
        BatchLosses((float("nan"),), 4, 0, "a")
