"""Held-out losses are the loss of training, on batches that are the same for every model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_tokens

from boom_utils.config import TrainingConfig
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, open_tokens, write_tokens
from boom_utils.errors import CheckpointError, DataError, TrainingError
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder
from boom_utils.training.batch_losses import BatchLosses
from boom_utils.training.gradients import TrainingJob, batch_texts
from boom_utils.training.held_out import HeldOutOptions, encoder_losses, held_out_jobs, held_out_losses
from boom_utils.training.plan import Batch, DatasetRules

ROWS = np.array([6, 0, 5, 1, 7, 2, 4], dtype=np.uint32)
RULES = {"toy": DatasetRules(), "other": DatasetRules(in_batch_negatives=False)}
TWO = TOY.model_copy(update={"per_device_train_batch_size": 2})


@pytest.fixture
def base(encoder: Encoder, tmp_path: Path) -> Path:
    """The encoder's folder, and two token tables made with it."""
    encoder.save(tmp_path / "base")
    (tmp_path / "tokens").mkdir()
    toy_tokens(encoder, tmp_path / "tokens" / "toy.arrow")
    labels = [  # four rows of each of two labels: right answers stand among the others' passages
        TrainingExample(text, (TEXTS[number % 2],), (TEXTS[1 - number % 2], TEXTS[2]))
        for number, text in enumerate(TEXTS)
    ]
    write_tokens(tmp_path / "tokens" / "other.arrow", labels, TextRules("", "", 40, 40), encoder.tokenize)
    return tmp_path / "base"


def losses(
    base: Path,
    rules: dict[str, DatasetRules] = RULES,
    config: TrainingConfig = TWO,
    rows: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, BatchLosses]:
    rows = dict.fromkeys(rules, ROWS) if rows is None else rows
    return held_out_losses(base, [base.parent / "tokens"], rows, rules, HeldOutOptions(config, base, seed))


def plain_loss(
    encoder: Encoder, tables: dict[str, TokenTable], batch: Batch, rules: DatasetRules, config: TrainingConfig
) -> float:
    """InfoNCE by the book: float64, one text and one query at a time, nothing of the kit's loss."""
    queries, passages = batch_texts(batch, tables)
    with torch.no_grad():
        q, p = (
            [encoder.embed([text])[0].numpy().astype(np.float64) for text in texts] for texts in (queries, passages)
        )
    group, total = batch.group_size, 0.0
    for number, query in enumerate(q):
        own = range(number * group, (number + 1) * group)
        candidates = range(len(p)) if rules.in_batch_negatives else own
        masked = [
            n for n in candidates
            if config.mask_false_negatives and n != own[0] and np.array_equal(passages[n], passages[own[0]])
        ]  # fmt: skip
        scores = [float(query @ p[n]) / config.temperature for n in candidates if n not in masked]
        total += math.log(sum(math.exp(score) for score in scores)) - float(query @ p[own[0]]) / config.temperature
    return total / len(q)


CHOICES: dict[str, tuple[DatasetRules, dict[str, object]]] = {
    "in_batch": (DatasetRules(), {}),
    "own": (DatasetRules(in_batch_negatives=False), {"tokens_in_memory": 60}),
    "masked": (DatasetRules(), {"mask_false_negatives": True}),
    "halved": (DatasetRules(halve_batch=True, group="one_negative"), {"per_device_train_batch_size": 4}),
    "padded": (DatasetRules(), {"packing": False}),
}


@pytest.mark.parametrize("dataset", RULES)
@pytest.mark.parametrize("choice", CHOICES)
def test_the_loss_of_every_batch_is_infonce_by_the_book_in_float64(base: Path, choice: str, dataset: str) -> None:
    rules, changes = CHOICES[choice]
    config = TWO.model_copy(update=changes)
    found = losses(base, {dataset: rules}, config)[dataset]
    tables, plain = open_tokens(base.parent / "tokens"), Encoder.load(base)
    plain.use_packing(False)
    plain.transformer.double()
    plan = held_out_jobs(tables, {dataset: ROWS}, {dataset: rules}, HeldOutOptions(config, base))[dataset].plan
    expected = [plain_loss(plain, tables, batch, rules, config) for batch in plan.batches]
    assert found.values == pytest.approx(expected, abs=1e-5)
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-5)
    assert len(expected) == 3


def test_masking_right_answers_lowers_the_loss_where_labels_repeat(base: Path) -> None:
    masked = TWO.model_copy(update={"mask_false_negatives": True, "per_device_train_batch_size": 4})
    plain = masked.model_copy(update={"mask_false_negatives": False})
    rules = {"other": DatasetRules()}
    assert losses(base, rules, masked)["other"].mean < losses(base, rules, plain)["other"].mean - 0.1


def test_negatives_of_one_device_alone_are_as_many_losses_as_devices(base: Path) -> None:
    apart = TWO.model_copy(update={"negatives_cross_device": False, "processes": 2, "per_device_train_batch_size": 2})
    found = losses(base, {"toy": DatasetRules()}, apart)["toy"]
    tables, plain = open_tokens(base.parent / "tokens"), Encoder.load(base)
    plan = held_out_jobs(tables, {"toy": ROWS}, {"toy": DatasetRules()}, HeldOutOptions(apart, base))["toy"].plan
    shares = [plan.batches[0].share(rank, 2) for rank in (0, 1)]
    expected = np.mean([plain_loss(plain, tables, share, DatasetRules(), apart) for share in shares])
    assert found.values == pytest.approx([expected], abs=1e-5)


def test_rows_used_and_left_over_are_counted_and_every_row_is_used_once(base: Path) -> None:
    found = losses(base)["toy"]
    assert (found.rows, found.rows_in_no_batch, len(found.values)) == (6, 1, 3)
    tables = open_tokens(base.parent / "tokens")
    plan = held_out_jobs(tables, {"toy": ROWS}, RULES, HeldOutOptions(TWO, base))["toy"].plan
    used = np.concatenate([batch.rows for batch in plan.batches])
    assert len(set(used)) == 6
    assert set(used) <= set(ROWS)


def test_neither_other_datasets_nor_their_order_nor_the_order_of_rows_changes_a_loss(base: Path) -> None:
    both = losses(base)
    assert losses(base, dict(reversed(RULES.items()))) == both
    assert losses(base, {"toy": RULES["toy"]}) == {"toy": both["toy"]}
    assert losses(base, rows={name: ROWS[::-1].copy() for name in RULES}) == both


def test_every_model_meets_the_same_batches_and_another_seed_or_loss_is_told_apart(base: Path) -> None:
    ours = losses(base)["toy"]
    other = random_encoder(TEXTS, tiny_config(seed=5), {})
    other.save(base.parent / "member")
    options = HeldOutOptions(TWO, base)
    theirs = held_out_losses(base.parent / "member", [base.parent / "tokens"], {"toy": ROWS}, RULES, options)["toy"]
    assert theirs.batches == ours.batches
    assert theirs.values != ours.values
    changed = [{"temperature": 0.2}, {"mask_false_negatives": True}, {"train_group_size": 2}]
    digests = {losses(base, config=TWO.model_copy(update=change))["toy"].batches for change in changed}
    digests |= {losses(base, seed=1)["toy"].batches, ours.batches}
    assert len(digests) == 5


def test_an_encoder_in_training_keeps_its_mode_and_gets_no_dropout_and_no_gradient(base: Path) -> None:
    encoder = Encoder.load(base)
    encoder.use_packing(None)
    jobs = held_out_jobs(
        open_tokens(base.parent / "tokens"), dict.fromkeys(RULES, ROWS), RULES, HeldOutOptions(TWO, base)
    )
    for layer in encoder.transformer.layers:
        layer.self_attn.attention_dropout = 0.5
    encoder.transformer.train()
    encoder.transformer.layers[0].eval()
    found = encoder_losses(encoder, jobs)
    assert encoder.transformer.training
    assert not encoder.transformer.layers[0].training
    assert found == losses(base)
    assert all(parameter.grad is None for parameter in encoder.transformer.parameters())


def test_a_model_of_another_tokenizer_or_size_is_refused_with_every_difference(base: Path) -> None:
    random_encoder(TEXTS[:1], tiny_config(vocab_size=520, hidden_size=16), {}).save(base.parent / "foreign")
    with pytest.raises(CheckpointError, match=r"(?s)another kind.*hidden_size: 16 instead of 32.*another tokenizer"):
        held_out_losses(
            base.parent / "foreign", [base.parent / "tokens"], {"toy": ROWS}, RULES, HeldOutOptions(TWO, base)
        )
    with pytest.raises(CheckpointError, match="there is no model folder"):
        held_out_losses(base.parent / "none", [base.parent / "tokens"], {"toy": ROWS}, RULES, HeldOutOptions(TWO, base))


def test_how_a_tokenizer_cuts_and_pads_is_no_difference(base: Path) -> None:
    encoder = Encoder.load(base)
    encoder.tokenize(TEXTS, 7)  # leaves its truncation in the tokenizer, and so in tokenizer.json
    encoder.save(base.parent / "cut")
    assert json.loads((base.parent / "cut" / "tokenizer.json").read_text())["truncation"]["max_length"] == 7
    options = HeldOutOptions(TWO, base)
    found = held_out_losses(base.parent / "cut", [base.parent / "tokens"], {"toy": ROWS}, RULES, options)
    assert found["toy"] == losses(base)["toy"]


def test_rows_that_do_not_fit_are_one_error_that_lists_all_problems(base: Path) -> None:
    rows = {"toy": np.array([1, 1, 8], dtype=np.uint32), "other": ROWS[:1], "others": ROWS}
    with pytest.raises(DataError) as caught:
        losses(base, rows=rows)
    problems = ("rows are repeated, or not in its table of 8", "1 rows do not fill a batch of 2")
    for problem in (*problems, "'others' has no tokens or rules; did you mean 'other'"):
        assert problem in str(caught.value)
    with pytest.raises(DataError, match="no dataset"):
        losses(base, rows={})


def test_a_loss_that_is_not_finite_is_an_error_that_names_dataset_batch_and_rows(base: Path) -> None:
    encoder = Encoder.load(base)
    with torch.no_grad():
        encoder.transformer.norm.weight[0] = float("nan")
    jobs = held_out_jobs(open_tokens(base.parent / "tokens"), {"toy": ROWS}, RULES, HeldOutOptions(TWO, base))
    assert isinstance(jobs["toy"], TrainingJob)
    with pytest.raises(TrainingError, match=r"(?s)loss is nan.*'toy', batch 0, rows \["):
        encoder_losses(encoder, jobs)
