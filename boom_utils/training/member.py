"""Stage: one member, from files to an encoder folder, in this process or in several that torchrun starts.

Several processes never fork this one (a notebook may hold CUDA): they are a subprocess with its own log, whose progress
lines are passed on. What they need is files; what they return is files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from boom_utils import errors
from boom_utils.artifacts import write_json
from boom_utils.cards import Card, Cost, Provenance, write_card
from boom_utils.config import TrainingConfig
from boom_utils.data.tokens import open_tokens
from boom_utils.errors import BoomError, ConfigError, TrainingError
from boom_utils.models import Encoder
from boom_utils.progress import log_to_stdout
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.loop import check_shares, remove_checkpoints, train
from boom_utils.training.plan import BatchPlan, DatasetRules
from boom_utils.training.probe import held_out_jobs
from boom_utils.training.processes import Launcher, Processes, StopAsked, joined

log = logging.getLogger(__name__)
_MARK = "boom| "
"""Starts the lines of the processes' output that are meant for people; the rest goes to their log file."""


@dataclass(frozen=True)
class Watch:
    """What to look at along the training of a member, and how often.

    Args:
        rows: JSON file: dataset -> ids of its watched rows; they may be trained on too.
        points: Number of evenly spaced points, the start and the end among them.
        seed: Of the watched batches.
    """

    rows: Path
    points: int
    seed: int = 0


@pydantic_dataclass(frozen=True)
class MemberJob:
    """Everything a member is made from.

    Args:
        base: Encoder folder it starts from.
        tokens: Folders of token tables.
        plan: File of the batch plan.
        rules: Batch and loss rules of each dataset.
        config: Hyper-parameters.
        prompts: Prompts to keep in the encoder folder.
        label: Its name.
        summary: One sentence for the card.
        restart_rate: Every stage of the plan warms up and decays by itself.
        allow_changes: Fields in which a checkpoint may differ.
        watch: Losses to look at along the training.
        provenance: What the card says of its data and of what it starts from.
    """

    base: Path
    tokens: tuple[Path, ...]
    plan: Path
    rules: Mapping[str, DatasetRules]
    config: TrainingConfig
    prompts: Mapping[str, str]
    label: str
    summary: str
    restart_rate: bool = False
    allow_changes: tuple[str, ...] = ()
    watch: Watch | None = None
    provenance: Provenance = field(default_factory=Provenance)


_JOB_FORM = TypeAdapter(MemberJob)


def train_member(job: MemberJob, out: Path, processes: int = 1) -> dict[str, Any]:
    """Fine-tune the base by the plan; write an encoder folder to ``out``.

    Besides the model it writes ``training_log.jsonl`` (one line a step), the card and, if the job is watched,
    ``watched_losses.jsonl`` (see `boom_utils.training.batch_losses.read_watched`). If ``out`` holds checkpoints of
    this job, training goes on from them; they are removed when the model is written.

    Args:
        job: What to train.
        out: Folder that gets the encoder.
        processes: Devices to use; more than one are started with torchrun.

    Returns:
        Facts for the record.

    Raises:
        TrainingError: Training had to stop, or a process died.
        CheckpointError: ``out`` holds checkpoints of another job.
        KeyboardInterrupt: It was stopped; a checkpoint is kept.
    """
    if processes == 1:
        return _train_here(job, out)
    return _Launch(job, out, processes).run()


def _train_here(
    job: MemberJob, out: Path, processes: Processes | None = None, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    encoder = Encoder.load(job.base)
    encoder.spec = replace(encoder.spec, prompts={**encoder.spec.prompts, **job.prompts})
    plan = BatchPlan.load(job.plan)
    tables = open_tokens(*job.tokens)
    training = TrainingJob(tables, job.rules, plan, job.config, job.label, job.restart_rate)
    if (watch := job.watch) is not None:
        stored = json.loads(watch.rows.read_text(encoding="utf-8"))
        rows = {name: np.array(ids, dtype=np.uint32) for name, ids in stored.items()}
        watched = held_out_jobs(tables, rows, job.rules, job.config, watch.seed)
        training = replace(training, watched=watched, points=watch.points)
    facts = train(encoder, training, out, processes, job.allow_changes, stop)
    if processes is None or processes.first:
        encoder.save(out)
        trained = {**job.provenance.trained, job.label: _cost(job, plan, facts)}
        facts["trained"] = {name: cost.model_dump(mode="json") for name, cost in trained.items()}
        start, shown = [job.provenance.start], ("steps", "examples", "tokens", "mean_loss_last_tenth")
        card = Card(
            job.label,
            job.summary,
            {name: facts[name] for name in shown},
            parents=start,
            base_models=start if job.provenance.on_hub else (),
            recipe=job.config.model_dump(mode="json"),
            provenance=job.provenance.model_copy(update={"trained": trained}),
        )
        write_card(out, card)
        remove_checkpoints(out)
    return facts


def _cost(job: MemberJob, plan: BatchPlan, facts: Mapping[str, Any]) -> Cost:
    """What the member's own training took."""
    batches = {name: [batch.rows for batch in plan.batches if batch.dataset == name] for name in job.rules}
    rows = {name: len(np.unique(np.concatenate(some))) for name, some in batches.items() if some}
    counts = {name: facts[name] for name in ("steps", "examples", "tokens")}
    return Cost(seed=plan.options.seed, passes=job.provenance.passes, rows=rows, **counts)


_FOLDER = "processes"
_JOB, _FACTS, _OUTPUT = (f"{_FOLDER}/{name}" for name in ("job.json", "facts.json", "output.log"))


def usable_processes(job: MemberJob) -> int:
    """Every CUDA device, if the batches divide among them; else one process, and a warning that says why."""
    devices = torch.cuda.device_count()
    if devices < 2:
        return 1
    try:
        check_shares(BatchPlan.load(job.plan), job.config, devices)
    except ConfigError as error:
        log.warning("one of %d devices is used: %s", devices, error)
        return 1
    return devices


@dataclass(frozen=True)
class _Launch:
    """A member trained by several processes, seen from the one that starts them."""

    job: MemberJob
    out: Path
    count: int

    def run(self) -> dict[str, Any]:
        """Start the processes, pass their lines on, and return rank 0's facts."""
        shutil.rmtree(self.out / _FOLDER, ignore_errors=True)
        write_json(self.out / _JOB, _JOB_FORM.dump_python(self.job, mode="json"))
        launcher = Launcher()
        process = subprocess.Popen(
            self._command(launcher.address),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process alone, which then asks the others to stop
            env={"GOMP_SPINCOUNT": "2000", **os.environ},
        )
        try:
            self._follow(process)
        except KeyboardInterrupt:
            log.info("stopping %d processes: this step is finished and a checkpoint is written first", self.count)
            launcher.ask_to_stop()
            self._follow(process)
            raise
        return self._result(process.wait())

    def _command(self, launcher: str) -> list[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.count)]
        return [*torchrun, "--module", "boom_utils.training.member", str(self.out), launcher]

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self.out / _OUTPUT).open("a", encoding="utf-8") as handle:
            for line in process.stdout:
                handle.write(line)
                handle.flush()
                if line.startswith(_MARK):
                    log.info("%s", line.removeprefix(_MARK).rstrip())
        process.wait()

    def _result(self, code: int) -> dict[str, Any]:
        for path in sorted((self.out / _FOLDER).glob("error-*.json")):
            stored = json.loads(path.read_text(encoding="utf-8"))
            raise getattr(errors, stored["class"])(stored["message"])
        if code or not (self.out / _FACTS).is_file():
            tail = "".join((self.out / _OUTPUT).read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
            raise TrainingError(
                f"a training process died (torchrun's exit code {code})",
                where=self.out / _OUTPUT,
                found="\n" + tail,
                fix="read the lines above; killed without a message mostly means too little memory",
            )
        facts: dict[str, Any] = json.loads((self.out / _FACTS).read_text(encoding="utf-8"))
        shutil.rmtree(self.out / _FOLDER)
        return facts


def worker(out: Path, launcher: str) -> int:
    """One of the processes that torchrun started; what `_Launch` reads back is files."""
    rank = int(os.environ["RANK"])
    log_to_stdout(_MARK, logging.INFO if rank == 0 else logging.WARNING)
    try:
        with joined() as processes:
            job = _JOB_FORM.validate_json((out / _JOB).read_bytes())
            facts = _train_here(job, out, processes, StopAsked(launcher) if processes.first else lambda: False)
            if processes.first:
                write_json(out / _FACTS, facts)
            processes.barrier()
    except KeyboardInterrupt:
        return 0  # asked to stop, checkpoint written
    except BoomError as error:
        write_json(out / _FOLDER / f"error-{rank}.json", {"class": type(error).__name__, "message": str(error)})
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(worker(Path(sys.argv[1]), sys.argv[2]))
