"""The training loss of a model on rows it was not trained on: same batches, same negatives, no gradient, no dropout.

The loss is that of training (`boom_utils.training.gradients`), on a batch plan that depends on the dataset, its rows
and the options alone. So every model meets the very same batches, whichever other datasets are looked at with it, and
two models can be compared batch by batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from boom_utils.artifacts import digest_of
from boom_utils.config import TrainingConfig
from boom_utils.data.tokens import TokenTable, open_tokens
from boom_utils.errors import CheckpointError, DataError, TrainingError, bullet_list, nearest
from boom_utils.model_folder import check_folder, read_json, read_mapping
from boom_utils.models import Encoder
from boom_utils.training.batch_losses import BatchLosses
from boom_utils.training.gradients import Gradients, TrainingJob
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
from boom_utils.training.processes import Processes, this_process

log = logging.getLogger(__name__)
RowIds = NDArray[np.uint32]
_SIZES = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
_LOSS = ("temperature", "negatives_cross_device", "mask_false_negatives", "precision")
"""Hyper-parameters the loss depends on, besides those in the plan."""


@dataclass(frozen=True)
class HeldOutOptions:
    """What the losses depend on besides model and rows.

    Args:
        training: Hyper-parameters of the training whose loss it is; epochs and optimizer do not count.
        base: Encoder folder whose tokenizer made the tokens; every model must have its tokenizer and sizes.
        seed: Of the batches and of the draws of positives and negatives.
    """

    training: TrainingConfig
    base: Path
    seed: int = 0


def held_out_losses(
    model: Path,
    token_folders: Iterable[Path],
    rows: Mapping[str, RowIds],
    rules: Mapping[str, DatasetRules],
    options: HeldOutOptions,
) -> dict[str, BatchLosses]:
    """InfoNCE of a model folder on held-out rows of every dataset, batch by batch.

    Args:
        model: Encoder folder.
        token_folders: Folders of token tables that hold the rows' datasets.
        rows: Held-out row ids of each dataset, uint32 (rows,); their order does not matter.
        rules: Batch and loss rules of each dataset.
        options: The loss and the seed.

    Returns:
        Dataset -> losses, by name. The loss of a dataset does not depend on the others.

    Raises:
        CheckpointError: The folder is no encoder, or of another tokenizer or size than the base.
        DataError: Rows, rules and tokens do not fit together, or rows do not fill a batch; all problems.
        TrainingError: A loss is not finite.
    """
    require_same_kind(model, options.base)
    jobs = held_out_jobs(open_tokens(*token_folders), rows, rules, options)
    encoder = Encoder.load(model)
    encoder.transformer.to(this_process().device)
    encoder.use_packing(options.training.packing)
    return encoder_losses(encoder, jobs)


def held_out_jobs(
    tables: Mapping[str, TokenTable],
    rows: Mapping[str, RowIds],
    rules: Mapping[str, DatasetRules],
    options: HeldOutOptions,
) -> dict[str, TrainingJob]:
    """One job a dataset: the batches of its held-out rows and the loss. For use with `encoder_losses`.

    Raises:
        DataError: As `held_out_losses`.
    """
    training = options.training
    plan_options = PlanOptions(
        training.per_device_train_batch_size, training.train_group_size, 1, training.processes, options.seed
    )
    found = [_problem(name, rows[name], tables, rules, plan_options) for name in sorted(rows)]
    problems = [problem for problem in found if problem is not None]
    if problems or not rows:
        raise DataError(
            "held-out losses cannot be computed",
            found=bullet_list(problems) or "no dataset",
            fix="hold out more rows, or draw them again from the corpus the tokens were made of",
        )
    jobs = {}
    for name in sorted(rows):
        table, rule = tables[name], rules[name]
        # The plan draws in the order it is given: the same rows are always the same batches.
        given = PlanInput(rule, np.sort(rows[name]), table.positive_counts, table.negative_counts)
        jobs[name] = TrainingJob({name: table}, {name: rule}, plan_batches({name: given}, plan_options), training, name)
    return jobs


def require_same_kind(model: Path, base: Path) -> None:
    """Refuse a model that cannot read the tokens made for ``base``, or is of another size.

    Raises:
        CheckpointError: It has another tokenizer or size, or is no encoder folder; all problems.
    """
    for folder in (model, base):
        check_folder(folder)
    ours, theirs = (read_mapping(folder / "config.json") for folder in (model, base))
    problems = [
        f"{key}: {ours.get(key)} instead of {theirs.get(key)}" for key in _SIZES if ours.get(key) != theirs.get(key)
    ]
    if _tokenizer(model) != _tokenizer(base):
        problems.append("tokenizer.json: another tokenizer")
    if problems:
        raise CheckpointError(
            "the model is of another kind than the one the tokens were made for",
            where=model,
            expected=f"tokenizer and sizes of {base}",
            found=bullet_list(problems),
            fix="give a model fine-tuned from that base or merged from such models, or make tokens for this one",
        )


def encoder_losses(encoder: Encoder, jobs: Mapping[str, TrainingJob]) -> dict[str, BatchLosses]:
    """InfoNCE of an encoder on the batches of `held_out_jobs`; it may be in the middle of its training.

    Its weights, gradients and mode are left as they were, and nothing is drawn from a random generator.

    Args:
        encoder: The model.
        jobs: What to evaluate.

    Raises:
        TrainingError: A loss is not finite.
    """
    modes = {module: module.training for module in encoder.transformer.modules()}
    encoder.transformer.eval()
    try:
        found = {}
        for name, job in sorted(jobs.items()):
            found[name] = _losses(name, encoder, job)
            log.debug("held out: %s, %d rows in %d batches", name, found[name].rows, len(found[name].values))
        return found
    finally:
        for module, training in modes.items():
            module.training = training


def batches_digest(name: str, job: TrainingJob) -> str:
    """What the losses of two models on a dataset must have in common to be compared batch by batch (hex)."""
    config = job.config.model_dump(mode="json", include=set(_LOSS))
    return digest_of([job.plan.fingerprint, job.tokens[name].fingerprint, asdict(job.rules[name]), config])


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


def _problem(
    name: str, ids: RowIds, tables: Mapping[str, TokenTable], rules: Mapping[str, DatasetRules], options: PlanOptions
) -> str | None:
    """Why the held-out rows of a dataset cannot be used."""
    if name not in tables or name not in rules:
        return f"'{name}' has no tokens or rules{nearest(name, tables)}"
    size = rules[name].batch_size(options.per_device_train_batch_size, options.processes)
    if len(ids) < size:
        return f"'{name}': {len(ids)} rows do not fill a batch of {size}"
    if len(np.unique(ids)) < len(ids) or int(ids.max()) >= len(tables[name]):
        return f"'{name}': rows are repeated, or not in its table of {len(tables[name])}"
    return None


def _tokenizer(folder: Path) -> Any:
    """What the folder's tokenizer does to a text, besides cutting and padding it, which is the caller's choice."""
    stored = read_json(folder / "tokenizer.json")
    if not isinstance(stored, dict):
        raise CheckpointError("the model folder has no tokenizer the kit reads", where=folder / "tokenizer.json")
    return {key: value for key, value in stored.items() if key not in ("truncation", "padding")}
