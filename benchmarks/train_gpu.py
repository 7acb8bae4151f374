"""Training throughput, utilisation and peak memory of Qwen3's shapes (random weights) on one CUDA device.

    python benchmarks/train_gpu.py                                  # 0.6B, 32 queries, 8 passages each, bf16
    python benchmarks/train_gpu.py --mixed --compile                # texts of mixed lengths, compiled
    python benchmarks/train_gpu.py --shape qwen3-4b --batch 16 --lora
    python benchmarks/train_gpu.py --against-cpu                    # gradients of two layers beside those of the CPU
    python benchmarks/train_gpu.py --shape tiny --batch 4 --length 32 --group 2 --steps 3     # any machine, to try it

No tokenizer and no downloads: the texts are random token ids. The last line is one JSON object; ``mfu`` divides the
operations that the true tokens of a step need (no padding, no second forward pass) by the measured rate of a large
matrix product on the same device. No checkpoint is written. `gpu_day.sh` runs all of this and more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from boom_train import step_flops
from train_throughput import machine, product_rate, today
from transformers import Qwen3Config, Qwen3Model

from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.hyperparameters import LoraConfig, TrainingConfig
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training import state
from boom_utils.training.gradients import Gradients, TrainingJob
from boom_utils.training.loop import train
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
from boom_utils.training.processes import Processes, this_process

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-4b": {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}
Tokens = int | Literal["auto"]


@dataclass(frozen=True)
class Options:
    """What to train; see the command line."""

    shape: str = "qwen3-0.6b"
    batch: int = 32
    group: int = 8
    length: int = 512
    steps: int = 8
    mixed: bool = False
    precision: str = "bf16"
    lora: bool = False
    compile: bool = False
    gradient_checkpointing: str = "selective"
    tokens_per_micro_batch: Tokens = "auto"
    tokens_in_memory: Tokens = "auto"


def build_transformer(shape: str, length: int, **changes: int) -> Qwen3Model:
    """The shape with random weights in float32, made where it will compute."""
    config = Qwen3Config(
        **{**SHAPES[shape], **changes},
        max_position_embeddings=max(512, length),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    device = this_process().device
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return Qwen3Model(config)


def as_encoder(transformer: Qwen3Model, length: int) -> Encoder:
    """An encoder whose tokenizer is never asked."""
    return Encoder(transformer, SimpleNamespace(pad_token_id=0), EncoderSpec("lasttoken", True, length))


def build_job(options: Options, folder: Path) -> TrainingJob:
    """Random texts, no two alike, in one dataset with in-batch negatives; mixed lengths are log-normal, median 120."""
    rng, rows, words = np.random.default_rng(0), options.batch * options.steps, SHAPES[options.shape]["vocab_size"]

    def length() -> int:
        drawn = int(rng.lognormal(np.log(120), 0.8)) if options.mixed else options.length
        return min(max(8, drawn), options.length)

    def tokenize(texts: Any, limit: int) -> list[list[int]]:
        return [rng.integers(1, words, length()).tolist() if text else [] for text in texts]

    examples = [
        TrainingExample(f"q{row}", (f"p{row}",), tuple(f"n{row} {other}" for other in range(options.group - 1)))
        for row in range(rows)
    ]
    write_tokens(folder / "random.arrow", examples, TextRules("", "", options.length, options.length), tokenize)
    table, rules = TokenTable(folder / "random.arrow"), DatasetRules()
    data = PlanInput(rules, np.arange(rows, dtype=np.uint32), table.positive_counts, table.negative_counts)
    plan = plan_batches({"random": data}, PlanOptions(options.batch, options.group))
    memory: dict[str, Any] = {
        "gradient_checkpointing": {"none": False, "all": True}.get(options.gradient_checkpointing, "selective"),
        "tokens_in_memory": options.tokens_in_memory,
        "tokens_per_micro_batch": options.tokens_per_micro_batch,
    }
    config = TrainingConfig(
        learning_rate=5e-5,
        per_device_train_batch_size=options.batch,
        train_group_size=options.group,
        precision=options.precision,
        lora=LoraConfig(r=32, lora_alpha=64) if options.lora else None,
        torch_compile=options.compile,
        **memory,
    )
    return TrainingJob({"random": table}, {"random": rules}, plan, config)


def measure(options: Options) -> dict[str, Any]:
    """Train and sum up; the first two steps are a warm-up."""
    transformer = build_transformer(options.shape, options.length)
    if options.lora:
        transformer.to(torch.bfloat16).float()  # as released weights are, so training keeps the frozen ones in bf16
    encoder = as_encoder(transformer, options.length)
    # No checkpoint: gigabytes that nobody would read.
    with tempfile.TemporaryDirectory() as name, patch.object(state.Checkpoints, "save"):
        job = build_job(options, Path(name))
        train(encoder, job, Path(name))
        lines = [json.loads(line) for line in (Path(name) / "training_log.jsonl").read_text().splitlines()]
        flops = [step_flops(encoder, job, batch) for batch in job.plan.batches]
    timed = range(min(2, len(lines) - 1), len(lines))
    rate = product_rate(options.precision)
    return {
        "examples_per_second": round(statistics.median(options.batch / lines[step]["seconds"] for step in timed), 2),
        "tokens_per_second": round(statistics.median(lines[step]["tokens_per_second"] for step in timed)),
        "mfu": round(statistics.median(flops[step] / lines[step]["seconds"] for step in timed) / rate, 3),
        "padding_share": max(line["padding_share"] for line in lines),
        "matrix_product_tflops": round(rate / 1e12, 2),
        "peak_memory_mb": max(line["peak_memory_mb"] for line in lines),
        "first_step_seconds": lines[0]["seconds"],
        "loss": [line["loss"] for line in lines],
        **options.__dict__,
    }


def compare_gradients(options: Options) -> dict[str, Any]:
    """Loss and gradient of a batch through two layers, on this device and on the CPU in float32.

    Returns:
        Precision -> difference of the loss, and distance of all gradients divided by their norm.
    """
    device = this_process().device
    transformer = build_transformer(options.shape, options.length, num_hidden_layers=2, vocab_size=512)

    def found(place: torch.device, precision: str, job: TrainingJob) -> tuple[float, torch.Tensor]:
        copied = deepcopy(transformer).to(place).train()
        encoder = as_encoder(copied, options.length)
        job = replace(job, config=job.config.model_copy(update={"precision": precision}))
        scaler = torch.amp.GradScaler(place.type, enabled=False)
        facts = Gradients(encoder, job, Processes(0, 1, place), scaler).add(0, job.plan.batches[0])
        return facts.loss, torch.cat([p.grad.double().cpu().flatten() for p in copied.parameters()])

    plain = replace(options, gradient_checkpointing="none", tokens_per_micro_batch=1024, tokens_in_memory=4096)
    with tempfile.TemporaryDirectory() as name:
        job = build_job(replace(plain, shape="tiny", batch=8, steps=1, mixed=True), Path(name))
        loss, gradient = found(torch.device("cpu"), "fp32", job)
        compared = {}
        for precision in ("fp32", "bf16"):
            ours, other = found(device, precision, job)
            distance = float((other - gradient).norm() / gradient.norm())
            compared[precision] = {"loss_difference": abs(ours - loss), "gradient_distance": distance}
    return {"device": device.type, "layers": 2, "shape": options.shape, "against float32 on CPU": compared}


def write_model(options: Options, workload: Path) -> dict[str, Any]:
    """The shape as a model folder with the tokenizer of a workload, for trainers that read one."""
    folder = workload / "models" / options.shape
    shutil.copytree(workload / "models" / "qwen3_tiny", folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    build_transformer(options.shape, options.length).save_pretrained(folder)
    return {"model": str(folder)}


def main() -> None:
    """Do as the command line asks and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plain = Options()
    parser.add_argument("--shape", choices=list(SHAPES), default=plain.shape)
    parser.add_argument("--batch", type=int, default=plain.batch, help="queries a step")
    parser.add_argument("--group", type=int, default=plain.group, help="passages a query")
    parser.add_argument("--length", type=int, default=plain.length, help="tokens of every text, or the most of --mixed")
    parser.add_argument("--steps", type=int, default=plain.steps)
    parser.add_argument("--mixed", action="store_true", help="texts of mixed lengths")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default=plain.precision)
    parser.add_argument("--lora", action="store_true", help="adapters on a frozen bf16 base")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient-checkpointing", choices=["none", "all", "selective"], default="selective")
    for name in ("--tokens-per-micro-batch", "--tokens-in-memory"):
        parser.add_argument(name, type=lambda word: word if word == "auto" else int(word), default="auto")
    parser.add_argument("--against-cpu", action="store_true", help="compare gradients, train nothing")
    parser.add_argument(
        "--write-model", type=Path, metavar="WORKLOAD", help="write the shape as a model, train nothing"
    )
    words = vars(parser.parse_args())
    compares, workload = words.pop("against_cpu"), words.pop("write_model")
    options = Options(**words)
    made = compare_gradients(options) if compares else write_model(options, workload) if workload else measure(options)
    print(json.dumps({**made, "machine": machine(), "measured": today()}))  # noqa: T201


if __name__ == "__main__":
    main()
