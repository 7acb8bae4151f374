"""The training loop: one page on accelerate, for full contrastive fine-tuning by a batch plan.

Semantics and hyper-parameters are those of the authors' script: AdamW, linear warm-up then linear decay, gradient
clipping. All texts of a step are one flat list, sorted by length into micro-batches; rows go back in order before the
loss, so the gradient is that of the whole batch. One process here.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from boom_utils.artifacts import write_text
from boom_utils.cards import Card, write_card
from boom_utils.config import TrainingConfig
from boom_utils.data.tokens import TokenTable, open_tokens
from boom_utils.errors import TrainingError
from boom_utils.models import Encoder
from boom_utils.progress import progress
from boom_utils.training.losses import info_nce
from boom_utils.training.plan import Batch, BatchPlan, DatasetRules

log = logging.getLogger(__name__)
LOG = "training_log.jsonl"


@dataclass(frozen=True)
class TrainingJob:
    """What to train on, in which order, and how.

    Args:
        tokens: Token table of each dataset.
        rules: Batch and loss rules of each dataset.
        plan: The batches.
        config: Hyper-parameters.
        label: Shown with the progress.
    """

    tokens: Mapping[str, TokenTable]
    rules: Mapping[str, DatasetRules]
    plan: BatchPlan
    config: TrainingConfig
    label: str = "training"


@dataclass(frozen=True)
class MemberJob:
    """A member besides its files: rules of the datasets, hyper-parameters, prompts to keep in the folder, its name."""

    rules: Mapping[str, DatasetRules]
    config: TrainingConfig
    prompts: Mapping[str, str]
    label: str
    summary: str


def train(encoder: Encoder, job: TrainingJob, log_path: Path) -> dict[str, Any]:
    """Train ``encoder`` in place over the job's plan and write one JSON line a step to ``log_path``.

    Returns:
        Facts for the record: steps, examples, tokens, seconds, tokens a second, final loss.

    Raises:
        TrainingError: The loss or gradient is not finite; raised before the optimizer step.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    encoder.transformer.train()
    optimizer = torch.optim.AdamW(
        encoder.transformer.parameters(), lr=job.config.learning_rate, weight_decay=job.config.weight_decay
    )
    warmup = math.ceil(job.config.warmup_ratio * len(job.plan))
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, len(job.plan))
    encoder.transformer, optimizer = accelerator.prepare(encoder.transformer, optimizer)
    began, lines = time.perf_counter(), []
    for step, batch in enumerate(progress(job.plan.batches, len(job.plan), job.label)):
        rate = schedule.get_last_lr()[0]
        loss, tokens = batch_loss(encoder, batch, job)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(encoder.transformer.parameters(), job.config.max_grad_norm)
        _check_finite(step, batch, loss, norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        facts = {"loss": round(loss.item(), 6), "learning_rate": rate, "grad_norm": round(float(norm), 6)}
        lines.append({"step": step, "dataset": batch.dataset, "queries": len(batch.rows), "tokens": tokens, **facts})
    encoder.transformer = accelerator.unwrap_model(encoder.transformer).eval()
    accelerator.free_memory()
    write_text(log_path, "".join(json.dumps(line) + "\n" for line in lines))
    return _facts(job, lines, time.perf_counter() - began)


def train_member(base: Path, tokens: Path, plan: Path, job: MemberJob, out: Path) -> dict[str, Any]:
    """Stage: fine-tune the encoder in ``base`` by a plan over token tables; write an encoder folder to ``out``.

    Besides the model it writes ``training_log.jsonl`` (one line a step) and the card.
    """
    encoder = Encoder.load(base)
    encoder.spec = replace(encoder.spec, prompts={**encoder.spec.prompts, **job.prompts})
    batches = BatchPlan.load(plan)
    facts = train(encoder, TrainingJob(open_tokens(tokens), job.rules, batches, job.config, job.label), out / LOG)
    encoder.save(out)
    shown = {name: facts[name] for name in ("steps", "examples", "tokens", "mean_loss_last_tenth")}
    summary = f"Fine-tuned with InfoNCE and batch-level shuffling: {job.summary}."
    recipe = job.config.model_dump(mode="json")
    write_card(out, Card(job.label, summary, shown, parents=["the base model of the profile"], recipe=recipe))
    return facts


def batch_loss(encoder: Encoder, batch: Batch, job: TrainingJob) -> tuple[Tensor, int]:
    """The loss of one batch, with its graph, and how many tokens (no padding counted) it took.

    Raises:
        TrainingError: The plan names a dataset or row the token tables do not have.
    """
    queries, passages = _texts(batch, job.tokens)
    flat = queries + passages
    vectors_ND = encoder.embed(flat, job.config.tokens_per_micro_batch)
    queries_QD, passages_PD = vectors_ND[: len(queries)], vectors_ND[len(queries) :]
    in_batch = job.rules[batch.dataset].in_batch_negatives
    loss = info_nce(queries_QD, passages_PD, job.config.temperature, in_batch_negatives=in_batch)
    return loss, sum(map(len, flat))


def _texts(batch: Batch, tables: Mapping[str, TokenTable]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the B queries and of the B * G passages, each group's positive first."""
    if batch.dataset not in tables or int(batch.rows.max()) >= len(tables[batch.dataset]):
        raise TrainingError(
            "the plan does not belong to these tokens", where=batch.dataset, fix="make plan and tokens again"
        )
    table = tables[batch.dataset]
    passages = []
    for row, positive, negatives in zip(batch.rows, batch.positives, batch.negatives, strict=True):
        passages.append(table.positive(int(row), int(positive)))
        passages += [table.negative(int(row), int(draw)) for draw in negatives]
    return [table.query(int(row)) for row in batch.rows], passages


def _check_finite(step: int, batch: Batch, loss: Tensor, norm: Tensor | float | None) -> None:
    found = {"loss": loss.item(), "gradient norm": float(norm if norm is not None else 0.0)}
    wrong = {name: value for name, value in found.items() if not math.isfinite(value)}
    if wrong:
        raise TrainingError(
            "training stopped: " + " and ".join(f"the {name} is {value}" for name, value in wrong.items()),
            where=f"step {step}, dataset '{batch.dataset}', rows {batch.rows.tolist()}",
            expected="finite numbers; the weights are still those before this step",
            fix="look at these rows; else lower learning_rate or raise temperature",
        )


def _facts(job: TrainingJob, lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    tokens = sum(line["tokens"] for line in lines)
    last = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    return {
        "steps": len(lines),
        "examples": job.plan.examples,
        "tokens": tokens,
        "training_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "mean_loss_last_tenth": round(sum(last) / len(last), 4),
        "rows_in_no_batch": dict(job.plan.left_out),
    }
