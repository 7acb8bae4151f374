"""Losses of one model on the same batches of one dataset that other models meet too. Numbers only: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from boom_utils.errors import ResultsError


@dataclass(frozen=True)
class BatchLosses:
    """InfoNCE of one model on every batch of one dataset, in the order of the batch plan.

    Args:
        values: Mean loss over the queries of each batch, nats. All batches have the same number of queries.
        rows: Rows that are in a batch.
        rows_in_no_batch: Rows that fill no batch (the last incomplete one).
        batches: Digest of batches, tokens and loss: two models can be compared batch by batch only if it is the same.
    """

    values: tuple[float, ...]
    rows: int
    rows_in_no_batch: int
    batches: str

    @property
    def mean(self) -> float:
        """Mean loss over all queries, nats."""
        return math.fsum(self.values) / len(self.values)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``loss`` is the mean, for readers."""
        return {"loss": self.mean, **asdict(self), "values": list(self.values)}

    @classmethod
    def from_json(cls, stored: Any) -> BatchLosses:
        """The inverse of `as_json`.

        Raises:
            ResultsError: A field is missing, a value is not a finite number, or there are none.
        """
        try:
            values = tuple(float(value) for value in stored["values"])
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"values {values}")
            found = cls(values, int(stored["rows"]), int(stored["rows_in_no_batch"]), str(stored["batches"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(
                "these are not the losses of batches",
                expected="values (finite numbers), rows, rows_in_no_batch, batches",
                found=repr(error),
                fix="compute the held-out losses again",
            ) from None
        return found


def losses_as_json(losses: Mapping[str, BatchLosses]) -> dict[str, Any]:
    """Losses of one model on several datasets as plain values."""
    return {dataset: found.as_json() for dataset, found in sorted(losses.items())}


def losses_from_json(stored: Any) -> dict[str, BatchLosses]:
    """The inverse of `losses_as_json`.

    Raises:
        ResultsError: As `BatchLosses.from_json`, or it is not a mapping.
    """
    if not isinstance(stored, Mapping):
        raise ResultsError("these are not the losses of datasets", expected="dataset -> losses", found=type(stored))
    return {str(dataset): BatchLosses.from_json(found) for dataset, found in stored.items()}
