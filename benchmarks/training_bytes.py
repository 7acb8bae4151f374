"""Bytes that training keeps a token, and what of a batch of the paper fits into 80 GB; counted, on any machine.

    python benchmarks/training_bytes.py > results/benchmarks/training_bytes.json

Layers of the true shape are counted on this processor, under bf16 autocast with selective recomputation; weights,
gradients and moments follow from the shape. Every layer costs the same.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import torch
from train_throughput import machine
from transformers import AutoModel, Qwen3Config

from boom_utils.hyperparameters import LoraConfig
from boom_utils.machine import autocast
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.fitting import TokenBytes, checkpoint_layers, halve_frozen, token_bytes
from boom_utils.training.loop import add_adapters

DEVICE = 80e9
HEADS = {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "vocab_size": 151_936}
SMALL = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
LARGE = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
SHAPES: dict[str, tuple[dict[str, Any], LoraConfig | None]] = {
    "qwen3-0.6b": ({**HEADS, **SMALL}, None),
    "qwen3-4b, LoRA": ({**HEADS, **LARGE}, LoraConfig()),
}


def build(shape: dict[str, Any], lora: LoraConfig | None, **changes: Any) -> Any:
    """A transformer as training prepares it."""
    model = AutoModel.from_config(Qwen3Config(**{**shape, **changes}))
    model.set_attn_implementation("boom_packed")
    checkpoint_layers(model, "selective")
    return (add_adapters(model, lora) if lora else model).train()


def resident(shape: dict[str, Any], lora: LoraConfig | None) -> int:
    """Bytes of weights, gradients and moments: float32 where trained, matrices in bf16 where not."""
    with torch.device("meta"):
        model = build(shape, lora)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return sum(
        weight.numel() * (16 if weight.requires_grad else 2 if id(weight) in matrices else 4)
        for weight in model.parameters()
    )


def count(shape: dict[str, Any], lora: LoraConfig | None) -> dict[str, Any]:
    """What one shape costs."""
    counted = []
    for layers in (1, 2):
        model = build(shape, lora, num_hidden_layers=layers, vocab_size=64)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
        halve_frozen(model, torch.bfloat16)
        encoder = Encoder(model, None, EncoderSpec("lasttoken", True, 512))
        encoder._packs = True
        counted.append(token_bytes(encoder, partial(autocast, "bf16", "cpu", cache=False), length=16))
    one, two = counted
    layer = two.kept - one.kept
    rest = (shape["num_hidden_layers"] - 1) * layer
    whole, held = TokenBytes(one.kept + rest, one.peak + rest), resident(shape, lora)
    sizes = whole.sizes(DEVICE - held, 8192 if lora else None)  # with dropout the micro-batch is the default
    planned = held + sizes["tokens_per_micro_batch"] * whole.peak + sizes["tokens_in_memory"] * whole.kept
    return {
        "kib_a_token_and_layer": round(layer / 2**10, 1),
        "mib_a_token": round(whole.kept / 2**20, 2),
        "mib_a_token_at_most": round(whole.peak / 2**20, 2),
        "resident_gb": round(held / 1e9, 1),
        **sizes,
        "planned_gb": round(planned / 1e9, 1),
    }


def main() -> None:
    """Count all shapes and print the record."""
    with torch.random.fork_rng(devices=[]):
        shapes = {name: count(*shape) for name, shape in SHAPES.items()}
    facts = {"device_gb": DEVICE / 1e9, "shapes": shapes, "machine": machine()}
    print(json.dumps({**facts, "measured": time.strftime("%Y-%m-%d", time.gmtime())}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
