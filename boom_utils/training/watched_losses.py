"""The file of losses along a training: one line a point, read by whoever compares or draws. No torch.

The rows are watched, not held out: they may be trained on too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError
from boom_utils.training.batch_losses import BatchLosses, losses_as_json, losses_from_json

WATCHED_LOSSES = "watched_losses.jsonl"
"""Its name in the folder of a member."""


@dataclass(frozen=True)
class WatchedPoint:
    """Losses of a model at one moment of its training.

    Args:
        step: Steps done; 0 is the base.
        share: Steps done of all steps, 0 to 1.
        losses: Dataset -> losses, on the same batches at every point.
    """

    step: int
    share: float
    losses: Mapping[str, BatchLosses]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"step": self.step, "share": self.share, "losses": losses_as_json(self.losses)}

    @classmethod
    def from_json(cls, stored: Any) -> WatchedPoint:
        """The inverse of `as_json`.

        Raises:
            ResultsError: A field is missing or of another kind.
        """
        try:
            step, share, losses = int(stored["step"]), float(stored["share"]), stored["losses"]
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(
                "this is no point of a training", expected="step, share, losses", found=repr(error)
            ) from None
        return cls(step, share, losses_from_json(losses))


def write_points(folder: Path, points: Sequence[WatchedPoint]) -> None:
    """Write the file of a member's folder, atomically and with the same bytes for the same losses."""
    lines = (json.dumps(point.as_json(), allow_nan=False) + "\n" for point in points)
    write_text(folder / WATCHED_LOSSES, "".join(lines))


def read_points(folder: Path) -> list[WatchedPoint]:
    """All points of a member's training, in order.

    Raises:
        ResultsError: The file is missing or empty, a line is damaged, or points are out of order, of other datasets or
            of other batches than the first one; the message names the line.
    """
    path = folder / WATCHED_LOSSES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(
            "there are no watched losses of this training", where=path, found=error, fix="train it with a watch"
        ) from None
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            points.append(WatchedPoint.from_json(json.loads(line)))
        except (ValueError, ResultsError) as error:
            raise _damaged(path, number, error) from None
    if not points:
        raise _damaged(path, 1, "no line")
    for number, (before, point) in enumerate(pairwise(points), start=2):
        if not (before.step < point.step and 0 <= before.share < point.share <= 1):
            raise _damaged(path, number, f"step {point.step} (share {point.share}) after step {before.step}")
        if (ours := _batches(point)) != (first := _batches(points[0])):
            other = sorted(name for name in ours | first if ours.get(name) != first.get(name))
            raise _damaged(path, number, f"other datasets or batches than in line 1: {', '.join(other)}")
    return points


def read_watched(folder: Path) -> dict[str, list[tuple[float, BatchLosses]]]:
    """Losses on the same rows at some points of one training; for `boom_utils.evaluation.forgetting`.

    Args:
        folder: Of a trained member.

    Returns:
        Dataset -> share of steps done and losses there, in order.

    Raises:
        ResultsError: As `read_points`.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.study.graph import Study
    >>> watched = read_watched(Study(load_profile("smoke")).build("member/two-stage").path)
    >>> [share for share, _ in watched["exception_class"]][-1]
    1.0
    """
    points = read_points(folder)
    return {name: [(point.share, point.losses[name]) for point in points] for name in sorted(points[0].losses)}


def _batches(point: WatchedPoint) -> dict[str, tuple[str, int]]:
    return {name: (found.batches, len(found.values)) for name, found in point.losses.items()}


def _damaged(path: Path, number: int, found: object) -> ResultsError:
    return ResultsError(
        "the watched losses of a training are damaged", where=f"{path}:{number}", found=found, fix="train it again"
    )
