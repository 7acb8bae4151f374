"""The loss of training on fixed batches, without a gradient: of a finished model, or at some points of a training.

The loss is that of training (`boom_utils.training.gradients`), on a batch plan that depends on the dataset, its rows
and the options alone. So every model meets the very same batches, whichever other datasets are looked at with it, and
two models can be compared batch by batch.

Probing changes nothing of a training: no weight, no gradient, no mode, no random draw. Points are written before the
checkpoint after them, so a run that goes on from a checkpoint finds every point up to it, and drops those after.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from boom_utils.artifacts import digest_of
from boom_utils.data.tokens import TokenTable, open_tokens
from boom_utils.errors import DataError, TrainingError, bullet_list
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.models import Encoder
from boom_utils.training.batch_losses import BatchLosses, WatchedPoint, read_points, write_points
from boom_utils.training.gradients import Gradients, TrainingJob
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
from boom_utils.training.processes import Processes, this_process

log = logging.getLogger(__name__)
RowIds = NDArray[np.uint32]
_LOSS = {"temperature", "negatives_cross_device", "mask_false_negatives", "precision"}
"""Hyper-parameters the loss depends on, besides those in the plan."""


def held_out_losses(
    model: Path,
    token_folders: Iterable[Path],
    rows: Mapping[str, RowIds],
    rules: Mapping[str, DatasetRules],
    training: TrainingConfig,
    seed: int = 0,
) -> dict[str, BatchLosses]:
    """InfoNCE of a model folder on held-out rows of every dataset, batch by batch.

    Args:
        model: Encoder folder; its tokenizer is the one the tokens were made with.
        token_folders: Folders of token tables that hold the rows' datasets.
        rows: Held-out row ids of each dataset, uint32 (rows,); their order does not matter.
        rules: Batch and loss rules of each dataset.
        training: Hyper-parameters of the training whose loss it is; epochs and optimizer do not count.
        seed: Of the batches and of the draws of positives and negatives.

    Returns:
        Dataset -> losses, by name. The loss of a dataset does not depend on the others.

    Raises:
        DataError: Rows do not fill a batch; all datasets.
        TrainingError: A loss is not finite.
    """
    jobs = held_out_jobs(open_tokens(*token_folders), rows, rules, training, seed)
    encoder = Encoder.load(model)
    encoder.transformer.to(this_process().device)
    encoder.use_packing(training.packing)
    return encoder_losses(encoder, jobs)


def held_out_jobs(
    tables: Mapping[str, TokenTable],
    rows: Mapping[str, RowIds],
    rules: Mapping[str, DatasetRules],
    training: TrainingConfig,
    seed: int = 0,
) -> dict[str, TrainingJob]:
    """One job a dataset: the batches of its held-out rows and the loss. For use with `encoder_losses`.

    Raises:
        DataError: As `held_out_losses`.
    """
    sizes = {name: rules[name].batch_size(training.per_device_train_batch_size, training.processes) for name in rows}
    missing = {name: size for name, size in sizes.items() if len(rows[name]) < size}
    if missing:
        short = (f"'{name}': {len(rows[name])} rows, a batch has {size}" for name, size in missing.items())
        raise DataError("held-out rows do not fill a batch", found=bullet_list(short), fix="hold out more rows")
    options = PlanOptions(training.per_device_train_batch_size, training.train_group_size, 1, training.processes, seed)
    jobs = {}
    for name in sorted(rows):
        table, rule = tables[name], rules[name]
        # The plan draws in the order it is given: the same rows are always the same batches.
        given = PlanInput(rule, np.sort(rows[name]), table.positive_counts, table.negative_counts)
        jobs[name] = TrainingJob({name: table}, {name: rule}, plan_batches({name: given}, options), training, name)
    return jobs


def encoder_losses(encoder: Encoder, jobs: Mapping[str, TrainingJob]) -> dict[str, BatchLosses]:
    """InfoNCE of an encoder on the batches of `held_out_jobs`; it may be in the middle of its training.

    Its weights, gradients and mode are left as they were, and nothing is drawn from a random generator.

    Raises:
        TrainingError: A loss is not finite.
    """
    modes = {module: module.training for module in encoder.transformer.modules()}
    encoder.transformer.eval()
    try:
        return {name: _losses(name, encoder, job) for name, job in sorted(jobs.items())}
    finally:
        for module, training in modes.items():
            module.training = training


def _losses(name: str, encoder: Encoder, job: TrainingJob) -> BatchLosses:
    alone = Processes(0, 1, encoder.device)
    gradients = Gradients(encoder, job, alone, torch.amp.GradScaler(alone.device.type, enabled=False))
    values = []
    for number, batch in enumerate(job.plan.batches):
        loss = gradients.loss(batch)
        if not math.isfinite(loss):
            raise TrainingError(
                f"a held-out loss is {loss}",
                where=f"dataset '{name}', batch {number}, rows {batch.rows.tolist()}",
                expected="a finite number",
                fix="look at the model's weights and at these rows",
            )
        values.append(loss)
    return BatchLosses(tuple(values), job.plan.examples, job.plan.left_out[name], batches_digest(name, job))


def batches_digest(name: str, job: TrainingJob) -> str:
    """What the losses of two models on a dataset must have in common to be compared batch by batch (hex)."""
    config = job.config.model_dump(mode="json", include=_LOSS)
    return digest_of([job.plan.fingerprint, job.tokens[name].fingerprint, asdict(job.rules[name]), config])


def probed_steps(points: int, total: int) -> tuple[int, ...]:
    """Numbers of steps done at which to look, ascending, 0 and ``total`` among them; halves are rounded up.

    A training of ``total`` steps with fewer of them than ``points`` is looked at after every step.
    """
    gaps = points - 1
    return tuple(sorted({(2 * point * total + gaps) // (2 * gaps) for point in range(points)}))


def look(encoder: Encoder, job: TrainingJob, out: Path, processes: Processes, done: int) -> None:
    """Evaluate ``encoder`` on what its training watches, if a point is due after ``done`` steps.

    The points of an earlier attempt stay in the file of the folder ``out`` up to this one; without a checkpoint nothing
    says that it had this base, and the start makes the file anew. The first process looks, the others wait; all of them
    must call.

    Raises:
        TrainingError: A watched loss is not finite.
        ResultsError: The file with the points before this one is missing or damaged.
    """
    total = len(job.plan)
    if not job.watched or done not in probed_steps(job.points, total):
        return
    began = time.perf_counter()
    earlier = [point for point in read_points(out) if point.step < done] if done and processes.first else []
    losses: dict[str, BatchLosses] = {}
    for name, watched in sorted(job.watched.items()):
        if processes.first:
            # A compiled model keeps the graphs of its training: none is made for this.
            with torch.compiler.set_stance("force_eager") if watched.config.torch_compile else nullcontext():
                losses |= encoder_losses(encoder, {name: watched})
        processes.barrier()  # after every dataset: no process waits for all of them at once
    if processes.first:
        write_points(out, [*earlier, WatchedPoint(done, done / total, losses)])
        taken = time.perf_counter() - began
        log.info("watched losses of %d datasets after step %d of %d: %.1f s", len(losses), done, total, taken)
