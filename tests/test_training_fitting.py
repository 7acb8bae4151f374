"""What a training step keeps for its backward pass is counted and small, and its size does not change the gradient."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job
from transformers import AutoModel, BertConfig, Qwen3Config

from boom_utils.config import LoraConfig
from boom_utils.machine import autocast
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training import fitting
from boom_utils.training.base_model import random_encoder
from boom_utils.training.fitting import checkpoint_layers, token_bytes
from boom_utils.training.gradients import Gradients
from boom_utils.training.loop import add_adapters
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
