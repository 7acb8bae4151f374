"""The loop: learning rate, clipping, logs, determinism, reasons to stop, LoRA, precision."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job
from test_training_state import steps_kept
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.errors import ConfigError, TrainingError
from boom_utils.hyperparameters import LoraConfig, WeightAverage
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder
from boom_utils.training.gradients import Gradients, TrainingJob
from boom_utils.training.loop import LOG, MEASURED, _Trainer, learning_rate, train
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
from boom_utils.training.processes import Processes

GOLDEN = PROJECT_ROOT / "tests" / "golden" / "toy_losses.txt"
TEN = TOY.model_copy(update={"num_train_epochs": 10, "save_steps": 1000})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def _unmeasured(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def changed(job: TrainingJob, **changes: object) -> TrainingJob:
    return replace(job, config=job.config.model_copy(update=changes))


Trained = tuple[list[dict[str, Any]], bytes, dict[str, Any]]


def trained(folder: Path, seed: int = 0, **changes: object) -> Trained:
    """Log, weights and facts of a training of ten epochs."""
    encoder = random_encoder(TEXTS, tiny_config(), {})
    folder.mkdir(exist_ok=True)
    job = changed(toy_job(encoder, folder, config=TEN), **changes)
    table = job.tokens["toy"]
    given = PlanInput(DatasetRules(), np.arange(8, dtype=np.uint32), table.positive_counts, table.negative_counts)
    job = replace(job, plan=plan_batches({"toy": given}, PlanOptions(4, 3, 10, seed=seed)))
    facts = train(encoder, job, folder)
    assert {parameter.dtype for parameter in encoder.transformer.parameters()} == {torch.float32}
    encoder.save(folder / "model")
    return lines_of(folder), (folder / "model" / "model.safetensors").read_bytes(), facts


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("ten"))


def test_training_lowers_the_loss_and_logs_every_step(ten: Trained) -> None:
    lines, _, facts = ten
    assert len(lines) == facts["steps"] == 20
    fields = {"step", "dataset", "queries", "loss", "learning_rate", "grad_norm", "tokens", "padding_share", *MEASURED}
    assert fields <= set(lines[0])
    assert all(line["padding_share"] == 0 and line["peak_memory_mb"] > 0 for line in lines)
    assert facts["tokens"] == sum(line["tokens"] for line in lines)
    assert np.mean([line["loss"] for line in lines[-4:]]) < 0.5 * np.mean([line["loss"] for line in lines[:4]])
    expected = [0.0, 0.5, *[(20 - step) / 18 for step in range(2, 20)]]
    assert [line["learning_rate"] / 1e-2 for line in lines] == pytest.approx(expected)


def test_padding_is_counted_where_texts_are_padded(encoder: Encoder, tmp_path: Path) -> None:
    train(encoder, changed(toy_job(encoder, tmp_path), packing=False), tmp_path)
    assert all(0 < line["padding_share"] < 0.5 for line in lines_of(tmp_path))


def test_the_learning_rate_is_that_of_transformers(encoder: Encoder, tmp_path: Path) -> None:
    from transformers import get_linear_schedule_with_warmup

    job = toy_job(encoder, tmp_path, config=TEN)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=TEN.learning_rate)
    peer = get_linear_schedule_with_warmup(optimizer, 2, len(job.plan))
    for step in range(len(job.plan)):
        assert learning_rate(step, job.plan, TEN) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


def test_restarted_stages_warm_up_and_decay_by_themselves(encoder: Encoder, tmp_path: Path) -> None:
    plan = replace(toy_job(encoder, tmp_path, config=TEN).plan, stage_starts=(0, 10))
    once = [learning_rate(step, plan, TEN) for step in range(20)]
    again = [learning_rate(step, plan, TEN, restart=True) for step in range(20)]
    assert again[:10] == again[10:]
    assert again[0] == 0 and max(again[:10]) == TEN.learning_rate
    assert once[10:] != again[10:]


def test_gradients_are_clipped(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(encoder, changed(toy_job(encoder, tmp_path), max_grad_norm=0.01), tmp_path)
    assert len(norms) == 2
    assert max(norms) <= 0.01 + 1e-6


@pytest.mark.promise(18)
def test_the_same_seed_gives_the_same_weights_byte_for_byte_and_another_seed_others(
    ten: Trained, tmp_path: Path
) -> None:
    same, other = trained(tmp_path / "same"), trained(tmp_path / "other", seed=1)
    assert _unmeasured(same[0]) == _unmeasured(ten[0])
    assert same[1] == ten[1]
    assert other[1] != ten[1]


@pytest.mark.promise(19)
def test_the_golden_loss_curve_is_unchanged(ten: Trained, pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_training_loop.py --regenerate-golden` writes it anew after a deliberate change."""
    losses = [line["loss"] for line in ten[0]]
    if pytestconfig.getoption("--regenerate-golden"):
        GOLDEN.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    assert losses == pytest.approx([float(line) for line in GOLDEN.read_text().split()], rel=2e-3)


# --- means of the weights ---------------------------------------------------------------------------------------------


def exponential(path: list[np.ndarray]) -> np.ndarray:
    mean = path[0]
    for weights in path[1:]:
        mean = 0.9 * mean + 0.1 * weights
    return mean


@pytest.mark.parametrize(
    ("average", "mean", "lora"),
    [
        (WeightAverage(ema=0.9), exponential, None),
        (
            WeightAverage(last=5),
            lambda path: np.mean([path[step] for step in (12, 14, 16, 18, 20)], axis=0),
            LoraConfig(r=4, lora_dropout=0.0),
        ),
    ],
)
def test_the_member_is_the_mean_of_the_weights_and_its_path_is_that_of_a_training_without(
    ten: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: WeightAverage, mean: Any, lora: Any
) -> None:
    """Against a loop over all weights in float64; of LoRA the adapters are averaged, not their products."""
    path: list[np.ndarray] = []
    finish = _Trainer.finish

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = torch.cat([weights.detach().flatten() for weights in optimizer.param_groups[0]["params"]])
        path.append(weights.double().numpy())

    def finished(trainer: _Trainer) -> None:
        finish(trainer)
        look(trainer.optimizer)

    monkeypatch.setattr(_Trainer, "finish", finished)
    before = register_optimizer_step_pre_hook(lambda *given: None if path else look(*given))
    after = register_optimizer_step_post_hook(look)
    try:
        lines, _, facts = trained(tmp_path, average=average, lora=lora)
    finally:
        before.remove()
        after.remove()
    *path, found = path
    assert len(path) == 21
    assert np.abs(found - mean(path)).max() < 1e-6 < np.abs(found - path[-1]).max()
    if lora is None:
        assert _unmeasured(lines) == _unmeasured(ten[0])
        assert facts["steps"] == ten[2]["steps"], "it costs no further step"


# --- reasons to stop --------------------------------------------------------------------------------------------------


@pytest.mark.promise(14)
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step(encoder: Encoder, tmp_path: Path) -> None:
    job = toy_job(encoder, tmp_path)
    with torch.no_grad():
        encoder.transformer.norm.weight[0] = float("nan")
    before = {name: value.clone() for name, value in encoder.transformer.state_dict().items()}
    with pytest.raises(TrainingError, match=r"(?s)loss is nan.*step 0, dataset 'toy', rows \["):
        train(encoder, job, tmp_path)
    after = encoder.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) or "norm.weight" in name for name in before)
    assert (tmp_path / LOG).read_text() == ""


@pytest.mark.promise(14)
def test_a_gradient_that_is_not_finite_stops_and_the_last_checkpoint_remains(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = changed(toy_job(encoder, tmp_path, config=TEN), save_steps=2)
    add = Gradients.add

    def poisoned(self: Gradients, step: int, batch: Any) -> Any:
        facts = add(self, step, batch)
        if step == 5:
            next(iter(self.encoder.transformer.parameters())).grad[0, 0] = float("inf")
        return facts

    monkeypatch.setattr(Gradients, "add", poisoned)
    with pytest.raises(TrainingError, match=r"(?s)the gradient norm is (inf|nan).*step 5"):
        train(encoder, job, tmp_path)
    assert steps_kept(tmp_path) == ["step-00000002", "step-00000004"]
    assert len(lines_of(tmp_path)) == 5


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_message_with_sizes_and_three_remedies_in_order(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = []

    def full(self: Gradients, step: int, batch: Any) -> None:
        calls.append(step)
        raise error

    monkeypatch.setattr(Gradients, "add", full)
    expected = (
        r"(?s)not enough memory.*step 0, dataset 'toy'.*4 queries x 3 passages, \d+ tokens, the longest text \d+"
        r".*1\. training\.tokens_in_memory: \d+.*2\. gradient_checkpointing.*3\. a smaller passage_max_len"
    )
    with pytest.raises(TrainingError, match=expected):
        train(encoder, toy_job(encoder, tmp_path), tmp_path)
    assert calls == [0], "no retry"


@pytest.mark.promise(16)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_stops_and_the_old_handlers_are_back(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    add = Gradients.add

    def interrupted(self: Gradients, step: int, batch: Any) -> Any:
        if step == 4:
            signal.raise_signal(number)
        return add(self, step, batch)

    monkeypatch.setattr(Gradients, "add", interrupted)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(encoder, toy_job(encoder, tmp_path, config=TEN), tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert steps_kept(tmp_path) == ["step-00000005"]
    assert len(lines_of(tmp_path)) == 5


@pytest.mark.parametrize(
    ("count", "message"), [(3, "(?s)among 3 processes.*batches of 4 queries"), (4, "2 device batches")]
)
def test_batches_that_do_not_divide_among_the_processes_are_refused(
    encoder: Encoder, tmp_path: Path, count: int, message: str
) -> None:
    config = TOY.model_copy(update={"processes": 2, "per_device_train_batch_size": 2, "negatives_cross_device": False})
    with pytest.raises(ConfigError, match=message):
        train(encoder, toy_job(encoder, tmp_path, config=config), tmp_path, Processes(0, count, torch.device("cpu")))


# --- LoRA, precision, compilation -------------------------------------------------------------------------------------


def lora(**changes: object) -> LoraConfig:
    return LoraConfig.model_validate({"r": 4, "lora_alpha": 8, **changes})


def test_lora_trains_adapters_and_merges_them_into_the_base_with_scale_alpha_over_r(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    before = {name: value.clone() for name, value in encoder.transformer.state_dict().items()}
    adapters: dict[str, torch.Tensor] = {}
    merge = LoraModel.merge_and_unload

    def seen(self: LoraModel) -> Any:
        adapters.update({name: value.clone() for name, value in self.state_dict().items() if "lora" in name})
        return merge(self)

    monkeypatch.setattr(LoraModel, "merge_and_unload", seen)
    train(encoder, toy_job(encoder, tmp_path, config=TEN.model_copy(update={"lora": lora()})), tmp_path)
    after = encoder.transformer.state_dict()
    assert list(after) == list(before)
    name = "layers.0.self_attn.q_proj"
    a, b = (adapters[f"model.{name}.lora_{part}.default.weight"] for part in "AB")
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * b @ a, atol=1e-6)
    assert b.abs().max() > 0
    assert torch.equal(after["embed_tokens.weight"], before["embed_tokens.weight"])
    lines = lines_of(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_lora_targets_that_the_model_does_not_have_are_named(encoder: Encoder, tmp_path: Path) -> None:
    config = TOY.model_copy(update={"lora": lora(target_modules=("q_proj", "query"))})
    with pytest.raises(TrainingError, match=r"(?s)not in this model: query.*down_proj"):
        train(encoder, toy_job(encoder, tmp_path, config=config), tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_single_precision_losses(ten: Trained, tmp_path: Path, precision: str) -> None:
    lines, _, facts = trained(tmp_path, precision=precision)
    assert facts["precision"] == precision
    assert all(line["precision"] == precision for line in lines)
    assert lines[0]["loss"] == pytest.approx(ten[0][0]["loss"], rel=0.02)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]


def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Gradients.add

    def overflowing(self: Gradients, step: int, batch: Any) -> Any:
        facts = add(self, step, batch)
        if step == 3:
            next(iter(self.encoder.transformer.parameters())).grad[0, 0] = float("inf")
        return facts

    monkeypatch.setattr(Gradients, "add", overflowing)
    train(encoder, changed(toy_job(encoder, tmp_path, config=TEN), precision="fp16"), tmp_path)
    skipped = [line["step"] for line in lines_of(tmp_path) if line.get("skipped")]
    assert 3 in skipped
    assert len(skipped) < 5


def test_a_compiled_model_has_the_losses_of_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager backend: what is tested is that compilation is wired to the passes, not torch's code generation."""
    compiled: list[object] = []
    compile_module = torch.nn.Module.compile

    def eager(self: torch.nn.Module, **options: Any) -> None:
        compiled.append(options)
        compile_module(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    losses = []
    for flag in (False, True):
        encoder = random_encoder(TEXTS, tiny_config(), {})
        (tmp_path / str(flag)).mkdir()
        train(encoder, changed(toy_job(encoder, tmp_path / str(flag)), torch_compile=flag), tmp_path / str(flag))
        losses.append([line["loss"] for line in lines_of(tmp_path / str(flag))])
    assert compiled == [{"dynamic": True}] * 2  # layers
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
