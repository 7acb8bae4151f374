"""Losses of batches as numbers: a mean, and JSON that is refused when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from boom_utils.errors import ResultsError
from boom_utils.training.batch_losses import BatchLosses, losses_as_json, losses_from_json

LOSSES = {"b": BatchLosses((1.0, 2.0), 8, 1, "same"), "a": BatchLosses((0.1, 0.2, 0.6), 12, 0, "same")}


def test_the_mean_is_that_of_the_batches() -> None:
    assert LOSSES["a"].mean == pytest.approx(0.3)


def test_losses_survive_json_and_stand_there_by_name() -> None:
    stored = json.loads(json.dumps(losses_as_json(LOSSES)))
    assert losses_from_json(stored) == LOSSES
    assert list(stored) == ["a", "b"]
    assert stored["b"]["loss"] == 1.5


@pytest.mark.parametrize(
    "change", [{"values": []}, {"values": [float("nan")]}, {"values": "x"}, {"rows": None}, {"batches": ...}]
)
def test_damaged_losses_are_refused(change: dict[str, Any]) -> None:
    stored = {**losses_as_json(LOSSES)["a"], **change}
    stored = {key: value for key, value in stored.items() if value is not ...}
    with pytest.raises(ResultsError, match="not the losses of batches"):
        losses_from_json({"a": stored})


def test_a_list_is_no_set_of_losses() -> None:
    with pytest.raises(ResultsError, match="not the losses of datasets"):
        losses_from_json([1.0])


def test_reading_losses_needs_no_torch() -> None:
    code = "import sys, boom_utils.training.batch_losses; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
