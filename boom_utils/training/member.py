"""Stage: one member, from files to an encoder folder, in this process or in several.

Several processes are new ones and never forks of this one, which may be a notebook that holds CUDA. They read the same
files; the first of them logs and writes.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import ProcessException, start_processes

from boom_utils.cards import Card, Cost, Provenance, write_card
from boom_utils.data.tokens import open_tokens
from boom_utils.errors import BoomError, ConfigError, TrainingError
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.models import Encoder
from boom_utils.progress import log_to_stdout, quick_processes
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.loop import check_shares, remove_checkpoints, train
from boom_utils.training.plan import BatchPlan, DatasetRules
from boom_utils.training.probe import held_out_jobs
from boom_utils.training.processes import Processes, StopSignals, joined

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
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


def train_member(job: MemberJob, out: Path, processes: int = 1) -> dict[str, Any]:
    """Fine-tune the base by the plan; write an encoder folder to ``out``.

    Besides the model it writes ``training_log.jsonl`` (one line a step), the card and, if the job is watched,
    ``watched_losses.jsonl`` (see `boom_utils.training.batch_losses.read_watched`). If ``out`` holds checkpoints of
    this job, training goes on from them; they are removed when the model is written.

    Args:
        job: What to train.
        out: Folder that gets the encoder.
        processes: Devices to use, a process each.

    Returns:
        Facts for the record.

    Raises:
        TrainingError: Training had to stop, or a process died.
        CheckpointError: ``out`` holds checkpoints of another job.
        KeyboardInterrupt: It was stopped; a checkpoint is kept.
    """
    facts = _train_here(job, out) if processes == 1 else _train_in_several(job, out, processes)
    remove_checkpoints(out)
    return facts


def _train_here(job: MemberJob, out: Path, processes: Processes | None = None) -> dict[str, Any]:
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
    facts = train(encoder, training, out, processes, job.allow_changes)
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
    return facts


def _cost(job: MemberJob, plan: BatchPlan, facts: Mapping[str, Any]) -> Cost:
    """What the member's own training took."""
    batches = {name: [batch.rows for batch in plan.batches if batch.dataset == name] for name in job.rules}
    rows = {name: len(np.unique(np.concatenate(some))) for name, some in batches.items() if some}
    counts = {name: facts[name] for name in ("steps", "examples", "tokens")}
    return Cost(seed=plan.options.seed, passes=job.provenance.passes, rows=rows, **counts)


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


def _train_in_several(job: MemberJob, out: Path, count: int) -> dict[str, Any]:
    """Train in ``count`` new processes of this machine, and return the facts of the first."""
    quick_processes()
    results = get_context("spawn").SimpleQueue()
    with StopSignals() as signals, tempfile.TemporaryDirectory() as meeting:
        ranks = start_processes(_rank, (count, Path(meeting), job, out, results), count, join=False)  # type: ignore[no-untyped-call]
        try:
            while not ranks.join(timeout=0.5):
                if signals.seen:  # each finishes its step; they agree, and the first writes a checkpoint
                    for process in ranks.processes:
                        process.terminate()
        except ProcessException as error:
            if results.empty():
                raise TrainingError(
                    "a training process died",
                    where=job.label,
                    found=str(error).strip(),
                    fix="read the lines above; killed without a message mostly means too little memory",
                ) from None
    if results.empty():  # they were stopped, and this process was not
        raise KeyboardInterrupt
    found = results.get()
    if isinstance(found, Exception):
        raise found
    return dict(found)


def _rank(rank: int, count: int, meeting: Path, job: MemberJob, out: Path, results: Any) -> None:
    """One of several processes; the launcher gets its error, or the first one's facts."""
    log_to_stdout(level=logging.INFO if rank == 0 else logging.WARNING)
    try:
        with joined(rank, count, meeting) as processes:
            facts = _train_here(job, out, processes)
            processes.barrier()
    except (BoomError, OSError) as error:
        results.put(error)
        raise
    if rank == 0:
        results.put(facts)
