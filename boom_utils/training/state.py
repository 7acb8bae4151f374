"""Checkpoints of a training run: written whole or not at all, checked before use, resumed bit by bit.

A checkpoint is one safetensors file, named after its step and its content: the trainable weights and their means where
they are averaged, the optimizer's state and, as bytes of JSON, the log so far. Nothing else is needed: the batches and
the learning rate follow from the plan and the step, and every dropout mask from the seed and the step. It does not hold
a finished model; see `boom_utils.models`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boom_utils.artifacts import locked, sha256_file
from boom_utils.errors import CheckpointError, TrainingError, bullet_list

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the last one, and one to fall back to."""
LOCK_SECONDS = 60.0
"""How long a run waits for another one in its folder, which may be saving its last checkpoint."""
_RECORD = "record"
_NEVER = ("training.average",)
"""Fields that no run may change on its way: its checkpoints lack what another value needs."""


@dataclass(frozen=True)
class TrainingState:
    """What training changes.

    Args:
        parameters: The trainable ones, by name.
        optimizer: AdamW over them, in this order.
        scaler: The gradient scaler of fp16.
        means: Means of parameters along the training, by name; none where nothing is averaged.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    means: Mapping[str, Tensor]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of all weights, their means and the optimizer's state, in memory of the processor."""
        for name, parameter in self.parameters.items():
            yield f"weights.{name}", parameter.detach().cpu()
        for name, mean in self.means.items():
            yield f"means.{name}", mean.cpu()
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                yield f"optimizer.{number}.{name}", value.cpu()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
        """Put back what `tensors` gave, and the state of the scaler."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weights.{name}"])
        for name, mean in self.means.items():
            mean.copy_(tensors[f"means.{name}"])
        numbered: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                numbered.setdefault(int(number), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        if scaler:
            self.scaler.load_state_dict(dict(scaler))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Holds ``step-00000100.HASH.safetensors`` and so on.
        fields: What must be the same to resume: config, plan, data, base, processes.
        environment: What should be the same for a bit-identical resume: versions, device, threads.
        allow_changes: Those of ``fields`` that may differ.
    """

    folder: Path
    fields: Mapping[str, Any]
    environment: Mapping[str, Any]
    allow_changes: Sequence[str] = ()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder: two runs must not write the same checkpoints.

        Raises:
            TrainingError: On entering, if another process still trains here after a minute.
        """
        fix = "wait for it, or stop it"
        busy = TrainingError("another process trains into the same folder", where=self.folder, fix=fix)
        return locked(self.folder / ".lock", LOCK_SECONDS, busy)

    def save(self, state: TrainingState, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the state after the steps of the log ``lines``; drop all checkpoints but the last two."""
        record = {"lines": lines, "scaler": state.scaler.state_dict()}
        record |= {"fields": dict(self.fields), "environment": dict(self.environment)}
        content = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        temporary = self.folder / ".new.tmp"
        save_file({_RECORD: content, **dict(state.tensors())}, temporary)
        _sync(temporary)
        temporary.rename(self.folder / f"step-{len(lines):08d}.{_hash(temporary)}.safetensors")
        _sync(self.folder)
        for old in self._found()[:-KEPT]:
            old.unlink()

    def restore(self, state: TrainingState) -> list[dict[str, Any]]:
        """Put the newest sound checkpoint back into ``state``.

        Returns:
            The log up to there, one dict a step: as many as steps were made. Empty when there is no checkpoint.

        Raises:
            CheckpointError: Every checkpoint is damaged, or the newest sound one belongs to another run; the message
                lists the fields that differ.
        """
        found = self._found()
        for path in reversed(found):
            step, written = path.name.split(".")[:2]
            if _hash(path) != written:
                log.warning("checkpoint %s is damaged; falling back to the one before", step)
                continue
            tensors = load_file(path)
            record = json.loads(tensors[_RECORD].numpy().tobytes())
            self._check(record, path)
            state.load(tensors, record["scaler"])
            lines: list[dict[str, Any]] = record["lines"]
            log.info("resumed after step %d (checkpoint %s)", len(lines), step)
            return lines
        if found:
            raise CheckpointError(
                "every checkpoint of this run is damaged", where=self.folder, fix="delete the folder to start again"
            )
        return []

    def _found(self) -> list[Path]:
        """By step; a step that was made again after its first file was damaged has two."""
        return sorted(self.folder.glob("step-*.safetensors"), key=lambda path: (path.name[:13], path.stat().st_mtime))

    def _check(self, stored: Mapping[str, Any], path: Path) -> None:
        changed = {
            name: (before, now)
            for name, before, now in _differences(stored["fields"], self.fields)
            if name not in self.allow_changes or name in _NEVER
        }
        if changed:
            raise CheckpointError(
                "this checkpoint belongs to another run, so training cannot go on from it",
                where=path,
                found=bullet_list(f"{name}: was {before}, is {now}" for name, (before, now) in changed.items()),
                fix="undo the change, or delete the folder to start again; --allow-change FIELD goes on all the same, "
                f"but not of {', '.join(_NEVER)}",
            )
        for name, before, now in _differences(stored["environment"], self.environment):
            log.warning("%s was %s, is %s: the result may differ in the last bits", name, before, now)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    plain = json.loads(json.dumps(dict(now)))
    names = [*before, *(name for name in plain if name not in before)]
    return [(name, before.get(name), plain.get(name)) for name in names if before.get(name) != plain.get(name)]


def _hash(path: Path) -> str:
    return sha256_file(path)[:16]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
