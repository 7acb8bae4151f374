"""Losses of one model on the same batches of a dataset that other models meet too, and their file along a training.

Numbers only: no torch. The rows that a training is watched on may be trained on too, so they are not called held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError

WATCHED_LOSSES = "watched_losses.jsonl"
"""Name of the losses along a training in the folder of its member, one line a point."""


@dataclass(frozen=True)
class BatchLosses:
    """InfoNCE of one model on every batch of one dataset, in the order of the batch plan.

    Args:
        values: Mean loss over the queries of each batch, nats. All batches have the same number of queries.
        rows: Rows that are in a batch.
        rows_in_no_batch: Rows that fill no batch (the last incomplete one).
        batches: Digest of batches, tokens and loss: two models can be compared batch by batch only if it is the same.
    """

    values: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    rows: int
    rows_in_no_batch: int
    batches: str

    @property
    def mean(self) -> float:
        """Mean loss over all queries, nats."""
        return math.fsum(self.values) / len(self.values)


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


_LOSSES, _POINT = TypeAdapter(dict[str, BatchLosses]), TypeAdapter(WatchedPoint)


def losses_as_json(losses: Mapping[str, BatchLosses]) -> dict[str, Any]:
    """Losses of one model on several datasets as plain values; ``loss`` is the mean, for readers."""
    plain = _LOSSES.dump_python(dict(sorted(losses.items())), mode="json")
    return {dataset: {"loss": losses[dataset].mean, **found} for dataset, found in plain.items()}


def losses_from_json(stored: Any) -> dict[str, BatchLosses]:
    """The inverse of `losses_as_json`.

    Raises:
        ResultsError: A field is missing, a value is not a finite number, or there are none.
    """
    try:
        return _LOSSES.validate_python(stored)
    except ValidationError as error:
        raise ResultsError(
            "these are not the losses of datasets", found=error, fix="compute the held-out losses again"
        ) from None


def write_points(folder: Path, points: Sequence[WatchedPoint]) -> None:
    """Write the file of a member's folder, atomically and with the same bytes for the same losses."""
    stored = [{"step": p.step, "share": p.share, "losses": losses_as_json(p.losses)} for p in points]
    write_text(folder / WATCHED_LOSSES, "".join(json.dumps(line, allow_nan=False) + "\n" for line in stored))


def read_points(folder: Path) -> list[WatchedPoint]:
    """All points of a member's training, in order.

    Raises:
        ResultsError: The file is missing or empty, or a line is damaged; the message names it.
    """
    path = folder / WATCHED_LOSSES
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ResultsError(
            "there are no watched losses of this training", where=path, found=error, fix="train it with a watch"
        ) from None
    points = []
    for number, line in enumerate(lines or [b""], start=1):
        try:
            points.append(_POINT.validate_json(line))
        except ValidationError as error:
            what, fix = "the watched losses of a training are damaged", "train it again"
            raise ResultsError(what, where=f"{path}:{number}", found=error, fix=fix) from None
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
