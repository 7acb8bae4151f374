"""Training throughput, utilisation and peak memory of the Qwen3-0.6B shape (random weights) on one CUDA device.

    python benchmarks/train_gpu.py                      # 32 queries, 8 passages each, 512 tokens, bf16
    python benchmarks/train_gpu.py --shape tiny --batch 4 --length 32 --group 2 --steps 3     # any machine, to try it

No tokenizer and no downloads: the texts are random token ids, all of full length, so there is no padding to save and
the number is that of the engine alone. The last line is one JSON object; ``mfu`` divides the operations a step needs (a
second forward pass is not credited) by the measured rate of a large matrix product on the same device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from boom_train import step_flops
from train_throughput import machine, matrix_product_rate
from transformers import Qwen3Config, Qwen3Model

from boom_utils.config import TrainingConfig
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.loop import train
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2},
}
VOCABULARY = {"qwen3-0.6b": 151_936, "tiny": 512}


@dataclass(frozen=True)
class Options:
    """What to train; see the command line."""

    shape: str
    batch: int
    group: int
    length: int
    steps: int
    precision: str
    tokens_in_memory: int | None
    tokens_per_micro_batch: int
    gradient_checkpointing: bool


def build_encoder(options: Options) -> Encoder:
    """The shape with random weights; its tokenizer is never asked."""
    shape = SHAPES[options.shape]
    config = Qwen3Config(
        **shape,
        vocab_size=VOCABULARY[options.shape],
        num_key_value_heads=shape["num_attention_heads"] // 2,
        head_dim=128 if options.shape == "qwen3-0.6b" else 32,
        max_position_embeddings=max(512, options.length),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(
            Qwen3Model(config), SimpleNamespace(pad_token_id=0), EncoderSpec("lasttoken", True, options.length)
        )


def build_job(options: Options, folder: Path) -> TrainingJob:
    """Random texts of full length, no two alike, in one dataset with in-batch negatives."""
    rng, rows = np.random.default_rng(0), options.batch * options.steps

    def tokenize(texts: Any, limit: int) -> list[list[int]]:
        return [rng.integers(1, VOCABULARY[options.shape], options.length).tolist() if text else [] for text in texts]

    examples = [
        TrainingExample(f"q{row}", (f"p{row}",), tuple(f"n{row} {other}" for other in range(options.group - 1)))
        for row in range(rows)
    ]
    write_tokens(folder / "random.arrow", examples, TextRules("", "", options.length, options.length), tokenize)
    table, rules = TokenTable(folder / "random.arrow"), DatasetRules()
    data = PlanInput(rules, np.arange(rows, dtype=np.uint32), table.positive_counts, table.negative_counts)
    plan = plan_batches({"random": data}, PlanOptions(options.batch, options.group))
    config = TrainingConfig(
        learning_rate=5e-5,
        per_device_train_batch_size=options.batch,
        train_group_size=options.group,
        precision=options.precision,
        gradient_checkpointing=options.gradient_checkpointing,
        tokens_in_memory=options.tokens_in_memory,
        tokens_per_micro_batch=options.tokens_per_micro_batch,
        save_steps=10**6,
    )
    return TrainingJob({"random": table}, {"random": rules}, plan, config)


def measure(options: Options) -> dict[str, Any]:
    """Train and sum up; the first two steps are a warm-up."""
    encoder = build_encoder(options)
    with tempfile.TemporaryDirectory() as name:
        job = build_job(options, Path(name))
        train(encoder, job, Path(name))
        lines = [json.loads(line) for line in (Path(name) / "training_log.jsonl").read_text().splitlines()]
        flops = step_flops(encoder, job, job.plan.batches[-1])
    seconds = statistics.median(line["seconds"] for line in lines[min(2, len(lines) - 1) :])
    rate = matrix_product_rate(options.precision)
    return {
        "examples_per_second": round(options.batch / seconds, 2),
        "tokens_per_second": round(lines[-1]["tokens"] / seconds),
        "mfu": round(flops / seconds / rate, 3),
        "matrix_product_tflops": round(rate / 1e12, 2),
        "peak_memory_mb": max(line["peak_memory_mb"] for line in lines),
        "loss": [line["loss"] for line in lines],
        **options.__dict__,
        "machine": machine(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    """Measure as the command line asks and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-0.6b")
    parser.add_argument("--batch", type=int, default=32, help="queries a step")
    parser.add_argument("--group", type=int, default=8, help="passages a query")
    parser.add_argument("--length", type=int, default=512, help="tokens of every text")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--tokens-in-memory", type=int)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=16_384)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    print(json.dumps(measure(Options(**vars(parser.parse_args())))))  # noqa: T201


if __name__ == "__main__":
    main()
