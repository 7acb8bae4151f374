"""The exact gradient of one global batch, whatever the number of devices and however little memory there is.

Embeddings first, then the loss on detached embeddings, then the encoder's backward pass micro-batch by micro-batch
(the idea of GradCache, arXiv 2101.06983). While the activations of a batch fit into ``tokens_in_memory`` nothing is
computed twice; otherwise those that fit are kept and only the rest is repeated. A loss over own negatives splits by
query, so such batches are cut into parts and need no second pass at all.

Shapes: Q queries, G passages a query, P = Q * G passages, U distinct texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boom_utils.artifacts import derive_seed
from boom_utils.data.tokens import TokenTable
from boom_utils.errors import TrainingError
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.machine import autocast
from boom_utils.models import Encoder
from boom_utils.training.losses import false_negatives, info_nce
from boom_utils.training.plan import Batch, BatchPlan, DatasetRules
from boom_utils.training.processes import Processes


@dataclass(frozen=True)
class TrainingJob:
    """What to train on, in which order, and how.

    Args:
        tokens: Token table of each dataset.
        rules: Batch and loss rules of each dataset.
        plan: The batches.
        config: Hyper-parameters.
        label: Shown with the progress.
        restart_rate: Every stage of the plan warms up and decays by itself.
        watched: Batches of each dataset whose loss is looked at along the training; they change nothing of it.
        points: How often it is looked at them, evenly spaced, the start and the end among them.
    """

    tokens: Mapping[str, TokenTable]
    rules: Mapping[str, DatasetRules]
    plan: BatchPlan
    config: TrainingConfig
    label: str = "training"
    restart_rate: bool = False
    watched: Mapping[str, TrainingJob] = field(default_factory=dict)
    points: int = 2


@dataclass(frozen=True)
class BatchFacts:
    """What one process's share of a batch came to.

    Args:
        loss: Its part of the batch's mean loss; the parts of all processes add up to it.
        tokens: Tokens of its texts.
        distinct: Tokens of its distinct texts.
        computed: Tokens of one forward pass over them, padding counted.
    """

    loss: float
    tokens: int
    distinct: int
    computed: int


@dataclass(frozen=True)
class Gradients:
    """Adds the gradient of batches to an encoder's parameters.

    Args:
        encoder: The model in training.
        job: Data and hyper-parameters.
        processes: This process among all.
        scaler: Scales gradients under fp16.
    """

    encoder: Encoder
    job: TrainingJob
    processes: Processes
    scaler: torch.amp.GradScaler

    def add(self, step: int, batch: Batch) -> BatchFacts:
        """Add this process's part of the gradient of the global ``batch``; summed over processes it is the whole.

        Raises:
            TrainingError: The plan names a dataset or row the token tables do not have.
        """
        return self._run(batch, (step, self.processes.rank), learn=True)

    def loss(self, batch: Batch) -> float:
        """This process's part of the loss of the global ``batch``, as in `BatchFacts`, without a gradient.

        The encoder is to be in evaluation mode: no dropout masks are drawn.

        Raises:
            TrainingError: As `add`.
        """
        return self._run(batch, (), learn=False).loss

    def _run(self, batch: Batch, seed: tuple[int, ...], *, learn: bool) -> BatchFacts:
        parts, across = self._parts(batch)
        facts = [
            _PartOfBatch(self, batch, part, (*seed, number)).run(across=across, learn=learn)
            for number, part in enumerate(parts)
        ]
        return BatchFacts(*(sum(getattr(fact, name) for fact in facts) for name in BatchFacts.__dataclass_fields__))

    def _parts(self, batch: Batch) -> tuple[list[Batch], bool]:
        """What this process takes of a batch, cut where the loss splits; whether it compares across processes."""
        rules, config = self.job.rules[batch.dataset], self.job.config
        share = batch.share(self.processes.rank, self.processes.count)
        across = rules.in_batch_negatives and config.negatives_cross_device
        if across:
            return [share], across
        if rules.in_batch_negatives:  # as many separate losses as the batch is meant for devices
            count = self.job.plan.options.processes // self.processes.count
            return [share.share(number, count) for number in range(count)], across
        # Masks of dropout are drawn for a part: they must not depend on how much fits into memory.
        return _fitting_parts(share, self.job.tokens, None if self.has_dropout else config.sizes[1]), across

    def forward(self, rows: Sequence[np.ndarray], seed: tuple[int, ...]) -> Tensor:
        """Embeddings of one micro-batch; the same ``seed`` gives the same dropout masks."""
        if self.has_dropout:
            torch.manual_seed(derive_seed(self.job.plan.options.seed, "dropout", *seed))
        return self.encoder.embed_micro_batch(rows)

    def precision(self) -> Any:
        """Context of the passes: autocast to bf16 or fp16, or nothing."""
        config = self.job.config
        # Selective recomputation repeats the operations of a layer one by one, so each pass must make the same ones.
        cache = config.gradient_checkpointing != "selective"
        return autocast(config.precision, self.processes.device.type, cache=cache)

    @cached_property
    def has_dropout(self) -> bool:
        """Whether two passes over the same text differ."""
        return has_dropout(self.encoder.transformer)


def has_dropout(transformer: torch.nn.Module) -> bool:
    """Whether two passes of a transformer over the same text differ, in the mode it is in."""
    return any(
        module.training
        and ((isinstance(module, torch.nn.Dropout) and module.p > 0) or getattr(module, "attention_dropout", 0.0) > 0)
        for module in transformer.modules()
    )


@dataclass
class _PartOfBatch:
    """Queries whose loss is one number: a whole batch, or a part of it that the loss splits into."""

    gradients: Gradients
    batch: Batch
    part: Batch
    seed: tuple[int, ...]

    def run(self, *, across: bool, learn: bool) -> BatchFacts:
        """Loss of this part, and its gradient if it is to ``learn``.

        Args:
            across: Compares with the passages of all processes.
            learn: Adds the gradient to the encoder's parameters.
        """
        encoder, config = self.gradients.encoder, self.gradients.job.config
        queries, passages = batch_texts(self.part, self.gradients.job.tokens)
        texts = queries + passages
        rows, inverse = _distinct(texts) if not self.gradients.has_dropout else (texts, torch.arange(len(texts)))
        lengths = [len(row) for row in rows]
        tokens, most_kept = config.sizes
        chunks = encoder.micro_batches(lengths, tokens)
        kept = _kept(chunks, lengths, most_kept if learn else 0)
        outputs = self._embed(rows, chunks, kept)
        leaf_UD = torch.cat([output.detach() for output in outputs])[_places(chunks, outputs[0].device)]
        leaf_UD.requires_grad_(learn)
        flat = leaf_UD[inverse.to(leaf_UD.device)]
        loss = self._loss(flat[: len(queries)], flat[len(queries) :], across)
        if learn:
            torch.autograd.backward(loss)
            graphs = [output if keep else None for output, keep in zip(outputs, kept, strict=True)]
            del outputs, flat  # from here on `graphs` alone holds activations, and lets each go as it is used
            self._backward_chunks(rows, chunks, graphs, leaf_UD.grad)
        computed = sum(sum(lengths[n] for n in c) if encoder.packs else len(c) * lengths[c[0]] for c in chunks)
        part = loss.item() / (self.gradients.processes.count if across else 1)
        return BatchFacts(part, sum(map(len, texts)), sum(lengths), computed)

    def _embed(self, rows: Sequence[np.ndarray], chunks: Sequence[list[int]], kept: Sequence[bool]) -> list[Tensor]:
        """Embeddings of every micro-batch, with their graphs where they are ``kept``."""
        outputs: list[Tensor | None] = [None] * len(chunks)
        # Two contexts: autocast reuses its copies of the weights, and one made without gradient must not be reused.
        for keep in (False, True):
            with torch.set_grad_enabled(keep), self.gradients.precision():
                for number in (number for number, flag in enumerate(kept) if flag == keep):
                    outputs[number] = self._forward(rows, chunks, number)
        return [output for output in outputs if output is not None]

    def _backward_chunks(
        self, rows: Sequence[np.ndarray], chunks: Sequence[list[int]], graphs: list[Tensor | None], grad_UD: Any
    ) -> None:
        for number, chunk in enumerate(chunks):
            output, graphs[number] = graphs[number], None
            if output is None:
                with self.gradients.precision():
                    output = self._forward(rows, chunks, number)
            torch.autograd.backward(output, self.gradients.scaler.scale(grad_UD[chunk]))

    def _forward(self, rows: Sequence[np.ndarray], chunks: Sequence[list[int]], number: int) -> Tensor:
        return self.gradients.forward([rows[row] for row in chunks[number]], (*self.seed, number))

    def _loss(self, queries_QD: Tensor, passages_PD: Tensor, across: bool) -> Tensor:
        """Mean loss of this part, weighted with its share of the batch's queries."""
        processes, job = self.gradients.processes, self.gradients.job
        if across:
            queries_QD, passages_PD = (
                torch.cat(
                    [x if rank == processes.rank else other for rank, other in enumerate(processes.gather(x.detach()))]
                )
                for x in (queries_QD, passages_PD)
            )
        compared = self.batch if across else self.part
        mask = None
        if job.config.mask_false_negatives:
            mask = false_negatives(batch_texts(compared, job.tokens)[1], compared.group_size).to(queries_QD.device)
        in_batch = job.rules[self.batch.dataset].in_batch_negatives
        loss = info_nce(
            queries_QD, passages_PD, job.config.temperature, in_batch_negatives=in_batch, false_negatives_QP=mask
        )
        return loss * (len(compared.rows) / len(self.batch.rows))


def batch_texts(batch: Batch, tables: Mapping[str, TokenTable]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of the Q queries and of the Q * G passages, each group's positive first.

    Raises:
        TrainingError: The plan names a dataset, row or text the token tables do not have.
    """
    try:
        table = tables[batch.dataset]
        queries = [table.query(int(row)) for row in batch.rows]
        passages = []
        for row, positive, negatives in zip(batch.rows, batch.positives, batch.negatives, strict=True):
            passages.append(table.positive(int(row), int(positive)))
            passages += [table.negative(int(row), int(draw)) for draw in negatives]
    except (KeyError, IndexError) as error:
        raise TrainingError(
            "the plan does not belong to these tokens",
            where=batch.dataset,
            found=error,
            fix="make plan and tokens again",
        ) from None
    return queries, passages


def _fitting_parts(batch: Batch, tables: Mapping[str, TokenTable], limit: int | None) -> list[Batch]:
    """Cut a batch into runs of queries whose texts stay within ``limit`` tokens (at least one query each)."""
    if limit is None:
        return [batch]
    queries, passages = batch_texts(batch, tables)
    starts, used = [0], 0
    for number, query in enumerate(queries):
        own = passages[number * batch.group_size : (number + 1) * batch.group_size]
        size = len(query) + sum(map(len, own))
        if used and used + size > limit:
            starts.append(number)
            used = 0
        used += size
    return [batch.part(start, end) for start, end in pairwise([*starts, len(queries)])]


def _kept(chunks: Sequence[Sequence[int]], lengths: Sequence[int], limit: int | None) -> list[bool]:
    """Which micro-batches keep their activations until the loss is known: the last ones, as many as fit."""
    kept, used = [], 0
    for chunk in reversed(chunks):
        used += sum(lengths[row] for row in chunk)
        kept.append(limit is None or used <= limit)
    return kept[::-1]


def _distinct(texts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], Tensor]:
    """Every text once, and where each of the given ones is among them: equal texts are embedded once."""
    keys = [text.tobytes() for text in texts]
    rows = dict(zip(keys, texts, strict=True))
    numbers = {key: number for number, key in enumerate(rows)}
    return list(rows.values()), torch.tensor([numbers[key] for key in keys])


def _places(chunks: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Puts embeddings that stand chunk after chunk back into the order of the rows."""
    return torch.argsort(torch.tensor([row for chunk in chunks for row in chunk], device=device))
