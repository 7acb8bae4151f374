"""Probed losses are the loss of training on batches that are the same for every model; probing changes no training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job, toy_tokens
from hypothesis import given
from hypothesis import strategies as st
from test_training_member import member_job
from test_training_state import CONFIGS, LONG, Died, die_at, fresh_encoder, loss_lines, saved

from boom_utils.artifacts import write_json
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, open_tokens, write_tokens
from boom_utils.errors import CheckpointError, DataError, ResultsError, TrainingError
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.models import Encoder
from boom_utils.training import probe as module
from boom_utils.training.base_model import random_encoder
from boom_utils.training.batch_losses import WATCHED_LOSSES, BatchLosses, read_points
from boom_utils.training.gradients import Gradients, TrainingJob
from boom_utils.training.loop import train
from boom_utils.training.member import Watch, train_member
from boom_utils.training.plan import DatasetRules
from boom_utils.training.probe import encoder_losses, held_out_jobs, held_out_losses, probed_steps
from boom_utils.training.processes import this_process

ROWS = np.array([6, 0, 5, 1, 7, 2, 4], dtype=np.uint32)
RULES = {"toy": DatasetRules(), "other": DatasetRules(in_batch_negatives=False)}
TWO = TOY.model_copy(update={"per_device_train_batch_size": 2})

# --- of a model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder's folder, and two token tables made with it."""
    folder, encoder = tmp_path_factory.mktemp("probed"), random_encoder(TEXTS, tiny_config(), {})
    encoder.save(folder / "base")
    (folder / "tokens").mkdir()
    toy_tokens(encoder, folder / "tokens" / "toy.arrow")
    labels = [  # four rows of each of two labels: right answers stand among the others' passages
        TrainingExample(text, (TEXTS[number % 2],), (TEXTS[1 - number % 2], TEXTS[2]))
        for number, text in enumerate(TEXTS)
    ]
    write_tokens(folder / "tokens" / "other.arrow", labels, TextRules("", "", 40, 40), encoder.tokenize)
    return folder / "base"


def losses(
    base: Path,
    rules: dict[str, DatasetRules] = RULES,
    config: TrainingConfig = TWO,
    rows: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> dict[str, BatchLosses]:
    rows = dict.fromkeys(rules, ROWS) if rows is None else rows
    model = changes.pop("model", base)
    return held_out_losses(model, [base.parent / "tokens"], rows, rules, config, **changes)


CHOICES: dict[str, tuple[DatasetRules, dict[str, object]]] = {
    "in_batch": (DatasetRules(), {}),
    "own": (DatasetRules(in_batch_negatives=False), {"tokens_in_memory": 60}),
    "masked": (DatasetRules(), {"mask_false_negatives": True}),
    "halved": (DatasetRules(halve_batch=True, group="one_negative"), {"per_device_train_batch_size": 4}),
    "padded": (DatasetRules(), {"packing": False}),
    "of_one_device": (DatasetRules(), {"negatives_cross_device": False, "processes": 2}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_probed_loss_is_that_of_a_training_on_that_batch(base: Path, choice: str) -> None:
    rules, changes = CHOICES[choice]
    config = TWO.model_copy(update=changes)
    found = losses(base, dict.fromkeys(RULES, rules), config)
    jobs = held_out_jobs(
        open_tokens(base.parent / "tokens"), dict.fromkeys(RULES, ROWS), dict.fromkeys(RULES, rules), config
    )
    for name, job in jobs.items():
        encoder = Encoder.load(base)
        encoder.use_packing(config.packing)
        gradients = Gradients(encoder, job, this_process(), torch.amp.GradScaler("cpu", enabled=False))
        expected = [gradients.add(0, batch).loss for batch in job.plan.batches]
        assert found[name].values == pytest.approx(expected, abs=1e-6)
        assert found[name].mean == pytest.approx(np.mean(expected), abs=1e-6)
        used = np.concatenate([batch.rows for batch in job.plan.batches])
        assert len({*used}) == len(used) == found[name].rows
        assert {*used} <= {*ROWS} and found[name].rows_in_no_batch == len(ROWS) - len(used)


def test_neither_order_nor_other_datasets_change_a_loss(base: Path) -> None:
    both = losses(base)
    assert losses(base, dict(reversed(RULES.items()))) == both
    assert losses(base, {"toy": RULES["toy"]}) == {"toy": both["toy"]}
    assert losses(base, rows={name: ROWS[::-1].copy() for name in RULES}) == both


def test_every_model_meets_the_same_batches_and_another_seed_or_loss_is_told_apart(base: Path, tmp_path: Path) -> None:
    ours = losses(base)["toy"]
    random_encoder(TEXTS, tiny_config(seed=5), {}).save(tmp_path / "member")
    theirs = losses(base, model=tmp_path / "member")["toy"]
    assert theirs.batches == ours.batches
    assert theirs.values != ours.values
    changed = [{"temperature": 0.2}, {"mask_false_negatives": True}, {"train_group_size": 2}]
    digests = {losses(base, config=TWO.model_copy(update=change))["toy"].batches for change in changed}
    assert len({*digests, losses(base, seed=1)["toy"].batches, ours.batches}) == 5


def test_an_encoder_in_training_keeps_its_mode_and_gets_no_dropout_and_no_gradient(base: Path) -> None:
    encoder = Encoder.load(base)
    encoder.use_packing(None)
    jobs = held_out_jobs(open_tokens(base.parent / "tokens"), dict.fromkeys(RULES, ROWS), RULES, TWO)
    for layer in encoder.transformer.layers:
        layer.self_attn.attention_dropout = 0.5
    encoder.transformer.train()
    encoder.transformer.layers[0].eval()
    assert encoder_losses(encoder, jobs) == losses(base)
    assert encoder.transformer.training
    assert not encoder.transformer.layers[0].training
    assert all(parameter.grad is None for parameter in encoder.transformer.parameters())


def test_rows_that_fill_no_batch_are_one_error_that_lists_all_datasets(base: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)'toy': 1 rows, a batch has 2.*'other': 0 rows, a batch has 2"):
        losses(base, rows={"toy": ROWS[:1], "other": ROWS[:0]})


# --- along a training -------------------------------------------------------------------------------------------------

WATCHED_RULES = {"first": DatasetRules(), "second": DatasetRules(in_batch_negatives=False)}
WATCHED_ROWS = {"first": np.arange(8, dtype=np.uint32), "second": np.array([5, 0, 3, 2], dtype=np.uint32)}


def watched_job(
    encoder: Encoder, folder: Path, config: TrainingConfig = LONG, points: int = 4, seed: int = 0
) -> TrainingJob:
    """The toy job, and two datasets to watch that are not trained on."""
    folder.mkdir(exist_ok=True)
    job = toy_job(encoder, folder, config=config)
    tables = {name: toy_tokens(encoder, folder / f"{name}.arrow") for name in WATCHED_RULES}
    watched = held_out_jobs(tables, WATCHED_ROWS, WATCHED_RULES, config, seed)
    return replace(job, watched=watched, points=points)


def trained(folder: Path, config: TrainingConfig = LONG, **options: Any) -> bytes:
    encoder = fresh_encoder()
    train(encoder, watched_job(encoder, folder, config, **options), folder)
    return saved(encoder, folder)


def interrupted(folder: Path, steps: int, **options: Any) -> Encoder:
    """Train some steps, then stop as by Ctrl-C."""
    encoder, left = fresh_encoder(), iter(range(1, 1000))
    with pytest.raises(KeyboardInterrupt):
        train(encoder, watched_job(encoder, folder, **options), folder, stop=lambda: next(left) == steps)
    return encoder


def steps_of(folder: Path) -> list[int]:
    return [point.step for point in read_points(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A watched training that nothing interrupted, and its weights."""
    folder = tmp_path_factory.mktemp("watched") / "whole"
    return folder, trained(folder)


PADDED = LONG.model_copy(update={"gradient_checkpointing": True, "precision": "bf16", "packing": False})


@pytest.mark.parametrize("config", [PADDED, CONFIGS["lora, dropout, fp16, two passes"]])
def test_watching_changes_no_weight_and_no_number_of_the_training(tmp_path: Path, config: TrainingConfig) -> None:
    plain = fresh_encoder()
    (tmp_path / "plain").mkdir()
    train(plain, toy_job(plain, tmp_path / "plain", config=config), tmp_path / "plain")
    expected = saved(plain, tmp_path / "plain")
    assert trained(tmp_path / "watched", config, points=11) == expected
    assert loss_lines(tmp_path / "watched") == loss_lines(tmp_path / "plain")
    assert steps_of(tmp_path / "watched") == list(range(11))
    assert not (tmp_path / "plain" / WATCHED_LOSSES).exists()


def test_points_are_the_losses_of_the_base_of_the_model_at_that_step_and_of_the_member(tmp_path: Path) -> None:
    job = member_job(tmp_path, LONG)
    for name in WATCHED_RULES:
        toy_tokens(Encoder.load(job.base), tmp_path / "tokens" / f"{name}.arrow")
    write_json(tmp_path / "rows.json", {name: ids.tolist() for name, ids in WATCHED_ROWS.items()})
    job = replace(job, rules={**job.rules, **WATCHED_RULES}, watch=Watch(tmp_path / "rows.json", 3, seed=2))
    facts = train_member(job, tmp_path / "out")
    base, middle, end = read_points(tmp_path / "out")
    assert [base.step, middle.step, end.step] == [0, 5, facts["steps"]]
    assert [base.share, middle.share, end.share] == [0, 0.5, 1]
    for folder, point in ((job.base, base), (tmp_path / "out", end)):
        assert held_out_losses(folder, job.tokens, WATCHED_ROWS, WATCHED_RULES, LONG, 2) == point.losses
    half = interrupted(tmp_path / "half", 5, seed=2)
    jobs = held_out_jobs(open_tokens(tmp_path / "half"), WATCHED_ROWS, WATCHED_RULES, LONG, 2)
    assert encoder_losses(half, jobs) == middle.losses
    assert middle.losses["first"].values != base.losses["first"].values


@given(points=st.integers(2, 40), total=st.integers(1, 500))
def test_points_are_evenly_spaced_from_the_start_to_the_end(points: int, total: int) -> None:
    steps = probed_steps(points, total)
    assert (steps[0], steps[-1]) == (0, total)
    assert len(steps) == min(points, total + 1)
    exact = total * np.arange(points) / (points - 1)
    assert all(np.abs(exact - step).min() <= 0.5 + 1e-9 for step in steps)
    assert np.diff(steps).max() - np.diff(steps).min() <= 1


def test_ended_at_any_point_and_resumed_every_point_is_there_once_with_the_same_bytes(
    tmp_path: Path, whole: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Points after 0, 3, 7 and 10 steps, checkpoints after 3, 6, 9 and 10: with a point but not its checkpoint, and with
    # a point that the last checkpoint is before.
    folder, write = tmp_path / "run", module.write_points

    def written(out: Path, points: list[Any]) -> None:
        write(out, points)
        if points[-1].step == 3:
            raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(module, "write_points", written)
        trained(folder)
    with monkeypatch.context() as patch, pytest.raises(Died):
        die_at(patch, "step", 9)
        trained(folder)
    assert steps_of(folder) == [0, 3, 7]
    assert trained(folder) == whole[1]
    expected, path = (whole[0] / WATCHED_LOSSES).read_bytes(), folder / WATCHED_LOSSES
    assert path.read_bytes() == expected
    monkeypatch.setattr(module, "encoder_losses", None)  # finished ones are not made again
    trained(folder)
    assert path.read_bytes() == expected


def test_a_training_that_was_watched_otherwise_before_its_checkpoint_is_refused(tmp_path: Path) -> None:
    folder, encoder = tmp_path / "run", fresh_encoder()
    interrupted(folder, 4)
    more, other = watched_job(encoder, folder, points=11), watched_job(encoder, folder, seed=1)
    for job, message in (
        (more, r"watched\.points: was 4, is 11"),
        (other, r"(?s)watched\.first: was .*watched\.second: was "),
        (replace(more, watched={}), r"(?s)watched\.first: was .*, is None.*watched\.points: was 4, is None"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(fresh_encoder(), job, folder)


def test_a_damaged_file_is_an_error_with_a_checkpoint_and_made_again_without_one(
    tmp_path: Path, whole: tuple[Path, bytes]
) -> None:
    interrupted(tmp_path / "run", 4)
    path = tmp_path / "run" / WATCHED_LOSSES
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ResultsError, match=r"(?s)damaged.*watched_losses\.jsonl:2"):
        trained(tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        checkpoint.rename(tmp_path / checkpoint.name)
    trained(tmp_path / "run")
    assert path.read_bytes() == (whole[0] / WATCHED_LOSSES).read_bytes()


def test_a_base_without_a_finite_loss_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    encoder = fresh_encoder()
    with torch.no_grad():
        encoder.transformer.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"(?s)held-out loss is nan.*'first', batch 0"):
        train(encoder, watched_job(encoder, tmp_path / "run"), tmp_path / "run")
    assert not loss_lines(tmp_path / "run")
