"""What a training step keeps for its backward pass is counted and small, and its size does not change the gradient."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import TEXTS, TOY, tiny_config, toy_job
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModel, BertConfig, Qwen3Config

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.hyperparameters import LoraConfig
from boom_utils.machine import autocast
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training import fitting
from boom_utils.training.base_model import random_encoder
from boom_utils.training.fitting import (
    SIZES,
    FittingGradients,
    TokenBytes,
    checkpoint_layers,
    compile_layers,
    halve_frozen,
    seconds_compiling,
    token_bytes,
)
from boom_utils.training.gradients import Gradients
from boom_utils.training.loop import LOG, add_adapters, train
from boom_utils.training.plan import DatasetRules
from boom_utils.training.processes import this_process

BFLOAT = partial(autocast, "bf16", "cpu", cache=False)


def qwen3_06b(layers: int) -> Encoder:
    """Layers of the shape of Qwen3-0.6B, with random weights and few words."""
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(config)
    return Encoder(model.train(), None, EncoderSpec("lasttoken", True, 512))


def kept_a_layer(kind: Any) -> float:
    """KiB that a layer keeps of every token."""
    counts = []
    for layers in (1, 2):
        encoder = qwen3_06b(layers)
        encoder._packs = True
        encoder.transformer.set_attn_implementation("boom_packed")
        checkpoint_layers(encoder.transformer, kind)
        counts.append(token_bytes(encoder, BFLOAT, length=16).kept)
    return (counts[1] - counts[0]) / 1024


def test_a_layer_of_qwen3_keeps_at_most_40_kib_a_token_under_bf16() -> None:
    assert kept_a_layer("selective") <= 40
    assert kept_a_layer(True) == 4  # its input, float32
    assert 80 < kept_a_layer(False) < 90


def learner(kind: str) -> Encoder:
    tiny = random_encoder(TEXTS, tiny_config(hidden_size=64), {})
    if kind == "bert with dropout":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 64}
        config = BertConfig(**sizes, vocab_size=512, num_hidden_layers=2, num_attention_heads=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return Encoder(AutoModel.from_config(config).train(), tiny.tokenizer, EncoderSpec("mean", True, 48))
    if kind == "lora with dropout":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            tiny.transformer = add_adapters(tiny.transformer, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2))
        for name, value in tiny.transformer.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(value, 0.01)
    tiny.transformer.train()
    return tiny


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["qwen", "bert with dropout", "lora with dropout"])
def test_selective_recomputation_gives_the_same_bits_with_dropout_and_in_two_passes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    monkeypatch.setattr(fitting, "_LONG_SUM", 16)  # the model is small
    for memory in (None, 1):
        gradients = []
        for checkpointing in (False, "selective"):
            encoder = learner(kind)
            checkpoint_layers(encoder.transformer, checkpointing)
            options = {"precision": precision, "gradient_checkpointing": checkpointing, "tokens_in_memory": memory}
            job = toy_job(encoder, tmp_path, config=TOY.model_copy(update=options))
            with torch.random.fork_rng(devices=[]):
                scaler = torch.amp.GradScaler("cpu", enabled=False)
                Gradients(encoder, job, this_process(), scaler).add(0, job.plan.batches[0])
            gradients.append([p.grad for p in encoder.transformer.parameters() if p.grad is not None])
        assert len(gradients[0]) == len(gradients[1]) > 0
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def losses_of(folder: Path, encoder: Encoder, rules: DatasetRules, **changes: Any) -> list[dict[str, Any]]:
    """The log of a short training."""
    folder.mkdir()
    train(encoder, toy_job(encoder, folder, rules, TOY.model_copy(update=changes)), folder)
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


AUTO: dict[str, Any] = dict.fromkeys(SIZES, "auto")


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_step_that_does_not_fit_is_repeated_with_half_of_it_and_has_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dropout: float, in_batch: bool
) -> None:
    def learner() -> Encoder:
        encoder = random_encoder(TEXTS, tiny_config(), {})
        for layer in encoder.transformer.layers:
            layer.self_attn.attention_dropout = dropout
        return encoder

    rules = DatasetRules(in_batch_negatives=in_batch)
    default = {"tokens_per_micro_batch": 8192}
    expected = losses_of(tmp_path / "whole", learner(), rules, **(default | {"tokens_in_memory": None}))
    graphs: list[int] = []
    embed = Encoder.embed_micro_batch

    def small(self: Encoder, tokens: Any) -> torch.Tensor:
        graphs.append(sum(map(len, tokens)) if torch.is_grad_enabled() else 0)
        if graphs[-1] > 100 if dropout == 0 else len(graphs) == 1:
            raise torch.OutOfMemoryError
        return embed(self, tokens)

    monkeypatch.setattr(Encoder, "embed_micro_batch", small)
    found = losses_of(tmp_path / "small", learner(), rules, **AUTO)
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in expected], abs=1.1e-6)
    if dropout == 0:
        assert max(graphs) > 100 >= found[-1]["tokens_per_micro_batch"] == found[0]["tokens_per_micro_batch"]
    else:
        assert "tokens_per_micro_batch" not in found[0], "masks are drawn for a micro-batch"
    assert 0 < found[0]["tokens_in_memory"] < found[0]["tokens"]
    assert "did not fit into memory" in caplog.text


def test_free_memory_is_filled_with_the_tokens_that_were_counted_and_a_resumed_run_takes_the_same(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.transformer.train()
    job = toy_job(encoder, tmp_path, config=TOY.model_copy(update=AUTO))
    trained = sum(weight.numel() for weight in encoder.transformer.parameters())
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 12 * trained + 2_000_000)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    gradients = FittingGradients(Gradients(encoder, job, this_process(), scaler))
    gradients.add(0, job.plan.batches[0])
    counted = token_bytes(encoder, gradients._gradients.precision)
    micro_batch, kept = (gradients.sizes[name] or 0 for name in SIZES)
    assert 0.8 * 2_000_000 < kept * counted.kept + micro_batch * counted.peak <= 0.85 * 2_000_000
    assert gradients.job.config.sizes == (micro_batch, kept)
    other = FittingGradients(Gradients(encoder, job, this_process(), scaler))
    other.resume([{"tokens_per_micro_batch": 7, "tokens_in_memory": 9}])
    other.add(0, job.plan.batches[0])
    assert other.sizes == {"tokens_per_micro_batch": 7, "tokens_in_memory": 9}
    assert TokenBytes(kept=1, peak=10).sizes(10**9)["tokens_per_micro_batch"] == 32_768, "larger ones are no faster"


def test_texts_of_other_lengths_compile_nothing_anew_and_the_gradient_is_the_plain_one(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, flash_on_cpu: list[Any]
) -> None:
    """With the backend that cuts graphs for the backward pass but makes no code, and a plain kernel of attention."""
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, backend=counter, **options)
    )
    monkeypatch.setattr(fitting, "_LONG_SUM", 16)
    torch._dynamo.reset()
    frames, gradients = [], []
    for compiled in (False, True):
        encoder.transformer.train().zero_grad()
        checkpoint_layers(encoder.transformer, "selective")
        if compiled:
            compile_layers(encoder.transformer)
        for lengths in ((9, 5, 5), (12, 3), (20, 7, 7, 2), (33,), (8, 8, 8), (31, 30)):
            with BFLOAT():
                vectors = encoder.embed_micro_batch([np.arange(length) for length in lengths])
            vectors.square().mean(0).norm().backward()
            frames.append(counter.frame_count)
        gradients.append([p.grad.clone() for p in encoder.transformer.parameters() if p.grad is not None])
    compiling = seconds_compiling()
    torch._dynamo.reset()
    assert frames[:6] == [0] * 6
    assert 0 < frames[6] <= frames[-1] <= 3, "six lengths in two layers share their graphs"
    assert compiling > 0
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_nothing_is_compiled_where_two_passes_must_draw_the_same_masks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    with caplog.at_level("INFO"):
        compile_layers(learner("lora with dropout").transformer)
    assert "nothing is compiled, because dropout" in caplog.text


def test_a_base_published_in_bf16_is_held_in_it_beside_float32_adapters_with_the_same_bits(tmp_path: Path) -> None:
    gradients = []
    for half in (False, True):
        encoder = learner("lora with dropout")
        with torch.no_grad():
            for weight in encoder.transformer.parameters():
                weight.copy_(weight.bfloat16())
        encoder.transformer.layers[0].mlp.up_proj.base_layer.weight[0, 0] = 1 + 2**-20  # not a number of bf16
        encoder.use_packing(True)  # it is tried without autocast, and so before
        if half:
            halve_frozen(encoder.transformer, torch.bfloat16)
        job = toy_job(encoder, tmp_path, config=TOY.model_copy(update={"precision": "bf16"}))
        with torch.random.fork_rng(devices=[]):
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            Gradients(encoder, job, this_process(), scaler).add(0, job.plan.batches[0])
        gradients.append([p.grad for p in encoder.transformer.parameters() if p.grad is not None])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    kept = {name for name, weight in encoder.transformer.named_parameters() if weight.dtype == torch.float32}
    assert {name for name in kept if "base_layer" in name} == {
        name for name in kept if "layers.0.mlp.up_proj.base" in name
    }
    assert all(weight.dtype == torch.float32 for weight in encoder.transformer.parameters() if weight.requires_grad)


def test_lora_on_qwen3_4b_fits_80_gb_at_the_papers_batch_and_the_record_is_what_is_counted() -> None:
    record = json.loads((PROJECT_ROOT / "results" / "benchmarks" / "training_bytes.json").read_text())
    large, small = record["shapes"]["qwen3-4b, LoRA"], record["shapes"]["qwen3-0.6b"]
    assert large["planned_gb"] <= 80 and small["planned_gb"] <= 80
    assert large["kib_a_token_and_layer"] <= 90 and small["kib_a_token_and_layer"] <= 40
    assert large["tokens_per_micro_batch"] == 8192, "with dropout it is the default"
    assert large["tokens_in_memory"] > 8192 and small["tokens_in_memory"] > 32_768
    assert small["kib_a_token_and_layer"] == pytest.approx(kept_a_layer("selective"), abs=0.1)
