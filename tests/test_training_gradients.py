"""The gradient of a batch is exact: packed or padded, chunked or whole, one process or two, LoRA or all weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job
from torch.multiprocessing import spawn

from boom_utils.errors import TrainingError
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder
from boom_utils.training.gradients import BatchFacts, Gradients, TrainingJob, batch_texts
from boom_utils.training.losses import false_negatives, info_nce
from boom_utils.training.plan import Batch, DatasetRules
from boom_utils.training.processes import joined, this_process

Vector = torch.Tensor
EXACT = 1e-6
"""The weights are float64 here, but RMSNorm computes in float32 whatever it is given."""
CHOICES = {
    "in_batch": (DatasetRules(), {}),
    "own": (DatasetRules(in_batch_negatives=False), {}),
    "masked": (DatasetRules(), {"mask_false_negatives": True}),
    "per_device": (DatasetRules(), {"negatives_cross_device": False, "processes": 2, "per_device_train_batch_size": 2}),
}


def double_encoder() -> Encoder:
    encoder = random_encoder(TEXTS, tiny_config(), {})
    encoder.transformer.double()
    return encoder


def gradient(encoder: Encoder) -> Vector:
    return torch.cat([p.grad.flatten() for p in encoder.transformer.parameters() if p.grad is not None])


def added(encoder: Encoder, job: TrainingJob, step: int = 0) -> tuple[Vector, BatchFacts]:
    """The gradient of one batch as the engine makes it."""
    encoder.use_packing(job.config.packing)
    encoder.transformer.zero_grad()
    encoder.transformer.train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    facts = Gradients(encoder, job, this_process(), scaler).add(step, job.plan.batches[step])
    return gradient(encoder).clone(), facts


def naive(encoder: Encoder, job: TrainingJob, step: int = 0) -> tuple[Vector, float]:
    """The same, one text at a time with one graph for all of them."""
    batch, config = job.plan.batches[step], job.config
    shares = 1 if config.negatives_cross_device else config.processes
    encoder.transformer.zero_grad()
    encoder.use_packing(False)
    total = torch.zeros((), dtype=torch.float64)
    for number in range(shares):
        part = batch.share(number, shares)
        queries, passages = batch_texts(part, job.tokens)
        vectors = [torch.cat([encoder.embed([text]) for text in texts]) for texts in (queries, passages)]
        mask = false_negatives(passages, part.group_size) if config.mask_false_negatives else None
        in_batch = job.rules[batch.dataset].in_batch_negatives
        loss = info_nce(*vectors, config.temperature, in_batch_negatives=in_batch, false_negatives_QP=mask)
        total = total + loss / shares
    total.backward()
    return gradient(encoder).clone(), float(total.detach())


def distance(ours: Vector, theirs: Vector) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.promise(15)
@pytest.mark.parametrize("choice", CHOICES)
def test_loss_and_gradient_are_those_of_one_text_at_a_time_in_float64(tmp_path: Path, choice: str) -> None:
    rules, changes = CHOICES[choice]
    encoder = double_encoder()
    job = toy_job(encoder, tmp_path, rules, TOY.model_copy(update=changes))
    theirs, loss = naive(encoder, job)
    for packing, memory in product((True, False), (None, 100, 1)):
        config = job.config.model_copy(update={"packing": packing, "tokens_in_memory": memory})
        ours, facts = added(encoder, replace(job, config=config))
        assert facts.loss == pytest.approx(loss, abs=EXACT), (packing, memory)
        assert distance(ours, theirs) < EXACT, (packing, memory)


def test_in_single_precision_the_gradient_is_the_float64_one_to_rounding(tmp_path: Path) -> None:
    encoder = random_encoder(TEXTS, tiny_config(), {})
    job = toy_job(encoder, tmp_path)
    exact, _ = naive(double_encoder(), job)
    for changes in ({"packing": True}, {"packing": False}, {"packing": True, "tokens_in_memory": 1}):
        changed = TrainingJob(job.tokens, job.rules, job.plan, TOY.model_copy(update=changes))
        ours, _ = added(encoder, changed)
        assert distance(ours.double(), exact) < 2e-6


@pytest.mark.parametrize(
    ("in_batch", "tokens_in_memory", "passes"),
    [(True, None, (1, 1)), (True, 10_000, (1, 1)), (True, 120, (1.1, 1.9)), (True, 1, (2, 2)), (False, 130, (1, 1))],
)
def test_nothing_is_computed_twice_unless_memory_asks_for_it_and_never_for_own_negatives_or_equal_texts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_batch: bool,
    tokens_in_memory: int | None,
    passes: tuple[float, float],
) -> None:
    encoder = random_encoder(TEXTS, tiny_config(), {})
    config = TOY.model_copy(update={"tokens_in_memory": tokens_in_memory})
    job = toy_job(encoder, tmp_path, DatasetRules(in_batch_negatives=in_batch), config)
    seen: list[int] = []
    embed = Encoder.embed_micro_batch
    monkeypatch.setattr(
        Encoder, "embed_micro_batch", lambda self, tokens: (seen.append(sum(map(len, tokens))), embed(self, tokens))[1]
    )
    _, facts = added(encoder, job)
    assert passes[0] * facts.distinct <= sum(seen) <= passes[1] * facts.distinct
    assert facts.distinct < facts.tokens or not in_batch


def with_dropout() -> Encoder:
    encoder = random_encoder(TEXTS, tiny_config(), {})
    for layer in encoder.transformer.layers:
        layer.self_attn.attention_dropout = 0.2
    return encoder


@pytest.mark.parametrize("packing", [True, False])
def test_with_dropout_the_second_pass_draws_the_masks_of_the_first(tmp_path: Path, packing: bool) -> None:
    encoder = with_dropout()
    gradients = []
    with torch.random.fork_rng(devices=[]):
        for tokens_in_memory in (None, 1):
            config = TOY.model_copy(update={"packing": packing, "tokens_in_memory": tokens_in_memory})
            gradients.append(added(encoder, toy_job(encoder, tmp_path, config=config))[0])
        other_step, _ = added(encoder, toy_job(encoder, tmp_path, config=config), step=1)
    assert distance(gradients[1], gradients[0]) < 2e-6
    assert distance(other_step, gradients[0]) > 0.1


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("tokens_in_memory", [None, 1])
def test_bf16_and_gradient_checkpointing_give_the_same_gradient_to_their_rounding(
    tmp_path: Path, changes: dict[str, object], tokens_in_memory: int | None
) -> None:
    encoder = random_encoder(TEXTS, tiny_config(), {})
    reference, _ = added(encoder, toy_job(encoder, tmp_path))
    if "gradient_checkpointing" in changes:
        encoder.transformer.activation_checkpointing_enable({"use_reentrant": False})
    config = TOY.model_copy(update={**changes, "tokens_in_memory": tokens_in_memory})
    ours, _ = added(encoder, toy_job(encoder, tmp_path, config=config))
    assert distance(ours, reference) < (5e-2 if "precision" in changes else 2e-6)


def test_a_plan_of_other_data_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path)
    none = np.zeros((1, 2), dtype=np.uint32)
    for foreign in (
        Batch("toy", np.array([99], dtype=np.uint32), np.array([0]), none),
        Batch("toy", np.array([0], dtype=np.uint32), np.array([7]), none),
        Batch("other", np.array([0], dtype=np.uint32), np.array([0]), none),
    ):
        with pytest.raises(TrainingError, match="does not belong to these tokens"):
            batch_texts(foreign, job.tokens)


# --- several processes ------------------------------------------------------------------------------------------------


def found_by_one_of_two(rank: int, out: Path) -> None:
    """Loss and gradient of every choice, in a file."""
    found = {}
    with joined(rank, 2, out) as processes, torch.random.fork_rng(devices=[]):
        folder = out / f"rank{rank}"
        folder.mkdir()
        for choice, (rules, changes) in CHOICES.items():
            for memory in (None, 1):
                config = TOY.model_copy(update={**changes, "tokens_in_memory": memory})
                encoder = double_encoder()
                job = toy_job(encoder, folder, rules, config)
                encoder.transformer.train()
                scaler = torch.amp.GradScaler("cpu", enabled=False)
                facts = Gradients(encoder, job, processes, scaler).add(0, job.plan.batches[0])
                processes.sum_gradients(list(encoder.transformer.parameters()))
                found[f"{choice}-{memory}"] = [processes.total(facts.loss), gradient(encoder)]
        torch.save(found, folder / "found.pt")


@pytest.mark.promise(15)
def test_two_processes_have_loss_and_gradient_of_one_with_and_without_chunks(tmp_path: Path) -> None:
    spawn(found_by_one_of_two, (tmp_path,), 2)
    ranks = [torch.load(tmp_path / f"rank{rank}" / "found.pt") for rank in (0, 1)]
    for choice, (rules, changes) in CHOICES.items():
        encoder = double_encoder()
        job = toy_job(encoder, tmp_path, rules, TOY.model_copy(update=changes))
        theirs, loss = naive(encoder, job)
        for memory in (None, 1):
            for found in ranks:
                shared_loss, ours = found[f"{choice}-{memory}"]
                assert shared_loss == pytest.approx(loss, abs=EXACT), choice
                assert distance(ours, theirs) < EXACT, choice
