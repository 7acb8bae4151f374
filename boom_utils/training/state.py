"""Checkpoints of a training run: written whole or not at all, checked before use, resumed bit by bit.

A checkpoint holds the trainable weights, the optimizer's state and the log so far. Nothing else is needed: the batches
and the learning rate follow from the plan and the step, and every dropout mask from the seed and the step. It does not
hold a finished model; see `boom_utils.models`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boom_utils.artifacts import digest_of, locked, sha256_file, write_json, write_text
from boom_utils.errors import CheckpointError, TrainingError, bullet_list

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept: the last one, and one to fall back to."""
LOCK_SECONDS = 60.0
"""How long a run waits for another one in its folder, which may be saving its last checkpoint."""
_WEIGHTS, _OPTIMIZER, _LOG, _STATE = "weights.safetensors", "optimizer.safetensors", "log.jsonl", "state.json"


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to.

    Args:
        fields: What must be the same to resume: config, plan, data, base, processes.
        environment: What should be the same for a bit-identical resume: versions, device, threads.
    """

    fields: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingState:
    """What training changes.

    Args:
        parameters: The trainable ones, by name.
        optimizer: AdamW over them, in this order.
        scaler: The gradient scaler of fp16.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Holds ``step-00000100/`` and so on.
        identity: Of the run that is about to write or read them.
        allow_changes: Fields of the identity that may differ.
    """

    folder: Path
    identity: RunIdentity
    allow_changes: Sequence[str] = ()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder: two runs must not write the same checkpoints.

        Raises:
            TrainingError: On entering, if another process still trains here after a minute.
        """
        fix = "wait for it, or stop it"
        busy = TrainingError("another process trains into the same folder", where=self.folder, fix=fix)
        return locked(self.folder / ".lock", LOCK_SECONDS, busy)

    def save(self, step: int, state: TrainingState, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the state after ``step`` steps under a temporary name, rename it, and drop all but the last two."""
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({name: value.detach().cpu() for name, value in state.parameters.items()}, temporary / _WEIGHTS)
        save_file(_flat_optimizer(state.optimizer), temporary / _OPTIMIZER)
        write_text(temporary / _LOG, "".join(json.dumps(line) + "\n" for line in lines))
        files = {name: sha256_file(temporary / name) for name in (_WEIGHTS, _OPTIMIZER, _LOG)}
        identity = {"fields": dict(self.identity.fields), "environment": dict(self.identity.environment)}
        stored = {"step": step, "files": files, "scaler": state.scaler.state_dict(), **identity}
        write_json(temporary / _STATE, {**stored, "digest": digest_of(stored)})
        for path in (temporary / _WEIGHTS, temporary / _OPTIMIZER, temporary):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync(self.folder)
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, state: TrainingState) -> list[dict[str, Any]]:
        """Put the newest sound checkpoint back into ``state``.

        Returns:
            The log up to there, one dict a step: as many as steps were made. Empty when there is no checkpoint.

        Raises:
            CheckpointError: Every checkpoint is damaged, or the newest sound one belongs to another run; the message
                lists the fields that differ.
        """
        found = self._folders()
        for folder in reversed(found):
            try:
                stored, lines = _read(folder)
            except (OSError, ValueError, KeyError) as error:
                log.warning("checkpoint %s is damaged (%s); falling back to the one before", folder.name, error)
                continue
            self._check(stored, folder)
            _load(folder, stored, state)
            log.info("resumed after step %d (checkpoint %s)", len(lines), folder.name)
            return lines
        if found:
            raise CheckpointError(
                "every checkpoint of this run is damaged", where=self.folder, fix="delete the folder to start again"
            )
        return []

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _check(self, stored: Mapping[str, Any], folder: Path) -> None:
        changed = {
            name: (before, now)
            for name, before, now in _differences(stored["fields"], self.identity.fields)
            if name not in self.allow_changes
        }
        if changed:
            raise CheckpointError(
                "this checkpoint belongs to another run, so training cannot go on from it",
                where=folder,
                found=bullet_list(f"{name}: was {before}, is {now}" for name, (before, now) in changed.items()),
                fix="undo the change, or delete the folder to start again; --allow-change FIELD goes on all the same",
            )
        for name, before, now in _differences(stored["environment"], self.identity.environment):
            log.warning("%s was %s, is %s: the result may differ in the last bits", name, before, now)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    plain = json.loads(json.dumps(dict(now)))
    names = [*before, *(name for name in plain if name not in before)]
    return [(name, before.get(name), plain.get(name)) for name in names if before.get(name) != plain.get(name)]


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """State and log of a checkpoint whose files are all as they were written; ValueError says what is not."""
    stored = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if stored.pop("digest") != digest_of(stored):
        raise ValueError(f"changed after it was written: {_STATE}")
    wrong = [name for name, digest in stored["files"].items() if sha256_file(folder / name) != digest]
    if wrong:
        raise ValueError(f"changed after it was written: {', '.join(wrong)}")
    lines = [json.loads(line) for line in (folder / _LOG).read_text(encoding="utf-8").splitlines()]
    if len(lines) != stored["step"]:
        raise ValueError(f"{len(lines)} log lines for {stored['step']} steps")
    return stored, lines


def _load(folder: Path, stored: Mapping[str, Any], state: TrainingState) -> None:
    weights = load_file(folder / _WEIGHTS)
    with torch.no_grad():
        for name, parameter in state.parameters.items():
            parameter.copy_(weights[name])
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / _OPTIMIZER).items():
        number, name = key.split(".")
        numbered.setdefault(int(number), {})[name] = tensor
    state.optimizer.load_state_dict({"state": numbered, "param_groups": state.optimizer.state_dict()["param_groups"]})
    if stored["scaler"]:
        state.scaler.load_state_dict(stored["scaler"])


def _flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    stored = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value.cpu() for number, values in stored.items() for name, value in values.items()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
