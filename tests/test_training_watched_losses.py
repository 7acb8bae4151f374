"""Held-out losses along a training: a file that is whole and in order, or an error with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boom_utils.errors import ResultsError
from boom_utils.training.batch_losses import BatchLosses
from boom_utils.training.watched_losses import (
    WATCHED_LOSSES,
    WatchedPoint,
    read_points,
    read_watched,
    write_points,
)

POINTS = [
    WatchedPoint(step, step / 4, {"b": BatchLosses((2.0 - step, 1.0), 8, 1, "b"), "a": BatchLosses((0.5,), 4, 0, "a")})
    for step in (0, 1, 4)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_points(tmp_path, POINTS)
    return tmp_path


def test_points_survive_their_file(folder: Path) -> None:
    assert read_points(folder) == POINTS


def test_the_losses_of_a_dataset_are_read_with_the_share_of_steps_done(folder: Path) -> None:
    found = read_watched(folder)
    assert list(found) == ["a", "b"]
    assert [(share, losses.values) for share, losses in found["b"]] == [
        *((0.0, (2.0, 1.0)), (0.25, (1.0, 1.0)), (1.0, (-2.0, 1.0)))
    ]


def test_a_line_is_plain_json_with_the_mean_loss_for_readers(folder: Path) -> None:
    line = json.loads((folder / WATCHED_LOSSES).read_text().splitlines()[1])
    assert (line["step"], line["share"], line["losses"]["b"]["loss"]) == (1, 0.25, 1.0)


def without(key: str) -> Callable[[list[Any]], Any]:
    return lambda lines: lines[1].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("step"), "2"),
        (without("share"), "2"),
        (without("losses"), "2"),
        (lambda lines: lines[2]["losses"]["b"].update(values=[1.0, float("nan")]), "3"),
        (lambda lines: lines.clear(), "1"),
        (lambda lines: lines.__setitem__(0, 7), "1"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(
    folder: Path, change: Callable[[list[Any]], Any], message: str
) -> None:
    path = folder / WATCHED_LOSSES
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ResultsError, match=rf"(?s)are damaged.*{WATCHED_LOSSES}:{message}"):
        read_points(folder)


def test_a_truncated_or_missing_file_is_an_error(folder: Path) -> None:
    path = folder / WATCHED_LOSSES
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ResultsError, match=f"{WATCHED_LOSSES}:3"):
        read_watched(folder)
    path.unlink()
    with pytest.raises(ResultsError, match="there are no watched losses of this training"):
        read_watched(folder)


def test_a_loss_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    broken = WatchedPoint(0, 0.0, {"a": BatchLosses((float("nan"),), 4, 0, "a")})
    with pytest.raises(ValueError, match="JSON"):
        write_points(tmp_path, [broken])
    assert not list(tmp_path.iterdir())


def test_reading_and_comparing_needs_no_torch() -> None:
    names = "boom_utils.training.watched_losses, boom_utils.evaluation.interaction"
    code = f"import sys, {names}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
