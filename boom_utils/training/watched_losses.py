"""The file of losses along a training: one line a point, read by whoever compares or draws. No torch.

The rows are watched, not held out: they may be trained on too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def write_points(folder: Path, points: Sequence[WatchedPoint]) -> None:
    """Write the file of a member's folder, atomically and with the same bytes for the same losses."""
    stored = [{"step": p.step, "share": p.share, "losses": losses_as_json(p.losses)} for p in points]
    lines = (json.dumps(line, allow_nan=False) + "\n" for line in stored)
    write_text(folder / WATCHED_LOSSES, "".join(lines))


def read_points(folder: Path) -> list[WatchedPoint]:
    """All points of a member's training, in order.

    Raises:
        ResultsError: The file is missing or empty, or a line is damaged; the message names it.
    """
    path = folder / WATCHED_LOSSES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(
            "there are no watched losses of this training", where=path, found=error, fix="train it with a watch"
        ) from None
    points = []
    for number, line in enumerate(lines or [""], start=1):
        try:
            stored = json.loads(line)
            points.append(WatchedPoint(int(stored["step"]), float(stored["share"]), losses_from_json(stored["losses"])))
        except (ValueError, KeyError, TypeError, ResultsError) as error:
            what, fix = "the watched losses of a training are damaged", "train it again"
            raise ResultsError(what, where=f"{path}:{number}", found=repr(error), fix=fix) from None
    return points


def read_watched(folder: Path) -> dict[str, list[tuple[float, BatchLosses]]]:
    """Losses on the same rows at some points of one training; for `boom_utils.evaluation.interaction`.

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
