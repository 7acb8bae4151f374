"""Held-out losses at some points of a training: what a schedule forgets while it goes on to other datasets.

Watching changes nothing of the training: no weight, no gradient, no mode, no random draw. Points are written before
the checkpoint after them, so a run that goes on from a checkpoint finds every point before it, and drops those after.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boom_utils.data.tokens import TokenTable
from boom_utils.errors import CheckpointError, bullet_list
from boom_utils.models import Encoder
from boom_utils.training.batch_losses import BatchLosses
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.held_out import HeldOutOptions, batches_digest, encoder_losses, held_out_jobs
from boom_utils.training.plan import DatasetRules
from boom_utils.training.processes import Processes
from boom_utils.training.watched_losses import WATCHED_LOSSES, WatchedPoint, read_points, write_points

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What to look at along the training of a member, and how often.

    Args:
        rows: JSON file: dataset -> ids of its watched rows; they may be trained on too.
        points: Number of evenly spaced points, the start and the end among them. A training with fewer steps is looked
            at after every step.
        seed: Of the watched batches.
    """

    rows: Path
    points: int
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form for another process."""
        return {"rows": str(self.rows), "points": self.points, "seed": self.seed}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Watch:
        """The inverse of `to_json`."""
        return cls(Path(stored["rows"]), stored["points"], stored["seed"])

    def jobs(
        self, tables: Mapping[str, TokenTable], rules: Mapping[str, DatasetRules], options: HeldOutOptions
    ) -> WatchedJobs:
        """The batches to look at.

        Raises:
            DataError: The rows do not fit the tokens.
        """
        stored = json.loads(self.rows.read_text(encoding="utf-8"))
        rows = {name: np.array(ids, dtype=np.uint32) for name, ids in stored.items()}
        return WatchedJobs(held_out_jobs(tables, rows, rules, options), self.points)


@dataclass(frozen=True)
class WatchedJobs:
    """What a training looks at.

    Args:
        jobs: Held-out batches of every dataset, by `boom_utils.training.held_out.held_out_jobs`.
        points: As in `Watch`.
    """

    jobs: Mapping[str, TrainingJob]
    points: int

    def steps(self, total: int) -> tuple[int, ...]:
        """Numbers of steps done at which to look, ascending, 0 and ``total`` among them; halves are rounded up."""
        gaps = self.points - 1
        return tuple(sorted({(2 * point * total + gaps) // (2 * gaps) for point in range(self.points)}))


class Watcher:
    """Looks at an encoder along one training, and keeps the file of what it saw.

    Args:
        watched: What to look at; nothing when None.
        total: Steps of the training.
        out: Folder of the file.
        processes: The first process looks, the others wait; all of them must call.
    """

    def __init__(self, watched: WatchedJobs | None, total: int, out: Path, processes: Processes) -> None:
        self.jobs = watched.jobs if watched else {}
        self.steps = watched.steps(total) if watched else ()
        self.total, self.out, self.processes = total, out, processes
        self.points: list[WatchedPoint] = []

    def resume(self, done: int) -> None:
        """Keep the points of an earlier attempt up to its checkpoint after ``done`` steps, drop all others.

        Raises:
            CheckpointError: They are not those of this watch.
            ResultsError: The file is damaged.
        """
        # Without a checkpoint nothing says that an earlier attempt had this base: its points are made again.
        path = self.out / WATCHED_LOSSES
        if self.steps and done > 0:
            stored = read_points(self.out) if path.exists() else []
            self.points = [point for point in stored if point.step <= done]
            self._check(done)
        if self.processes.first and self.points:
            write_points(self.out, self.points)
        elif self.processes.first:
            path.unlink(missing_ok=True)

    def _check(self, done: int) -> None:
        expected = {name: batches_digest(name, job) for name, job in self.jobs.items()}
        steps = [point.step for point in self.points if point.step < done]
        due = [step for step in self.steps if step < done]
        problems = [f"points after steps {steps} instead of {due}"] if steps != due else []
        found = {name: losses.batches for name, losses in self.points[0].losses.items()} if self.points else {}
        problems += [
            f"'{name}': other rows or batches, or only now watched or no longer"
            for name in sorted(expected | found)
            if found.get(name) != expected.get(name)
        ]
        if problems:
            raise CheckpointError(
                "the training goes on from a checkpoint, but was watched in another way before it",
                where=self.out / WATCHED_LOSSES,
                found=bullet_list(problems),
                fix="undo the change, train without a watch, or delete the checkpoints to start again",
            )

    def look(self, encoder: Encoder, done: int) -> None:
        """Evaluate ``encoder`` if a point is due after ``done`` steps and not made yet.

        Raises:
            TrainingError: A watched loss is not finite.
        """
        if done not in self.steps or any(point.step == done for point in self.points):
            return
        began = time.perf_counter()
        losses: dict[str, BatchLosses] = {}
        for name, job in sorted(self.jobs.items()):
            if self.processes.first:
                # A compiled model keeps the graphs of its training: none is made for this.
                eager = torch.compiler.set_stance("force_eager") if job.config.torch_compile else nullcontext()
                with eager:
                    losses |= encoder_losses(encoder, {name: job})
            self.processes.barrier()  # after every dataset: no process waits for all of them at once
        self.points.append(WatchedPoint(done, done / self.total, losses))
        if self.processes.first:
            write_points(self.out, self.points)
            log.info(
                "watched losses of %d datasets after step %d of %d: %.1f s",
                *(len(losses), done, self.total, time.perf_counter() - began),
            )
