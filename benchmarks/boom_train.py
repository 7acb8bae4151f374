"""This kit's trainer on a workload folder: our side of `train_throughput.py` and `train_memory.py`.

Prints the report of `peers/workload.py` as one JSON line. Tokenising the timed steps is part of their time, although
the kit does it once for all epochs and members.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent / "peers"))

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from workload import StepClock, Workload, build_report, load_workload

from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.gradients import Gradients, TrainingJob, batch_texts
from boom_utils.training.loop import train
from boom_utils.training.plan import Batch, BatchPlan, DatasetRules, PlanOptions
from boom_utils.training.processes import this_process


@dataclass(frozen=True)
class Options:
    """How to train.

    Args:
        bf16: Passes in bfloat16.
        pooling: ``lasttoken`` or ``mean``.
        tokens_in_memory: Most tokens whose activations are kept; None keeps all.
        tokens_per_micro_batch: Tokens of one forward pass.
        warmup_steps: Steps at the start that are not timed.
        profile: Also say where the time of a few more steps goes.
    """

    bf16: bool = False
    pooling: str = "lasttoken"
    tokens_in_memory: int | None = None
    tokens_per_micro_batch: int = 2048
    warmup_steps: int = 3
    profile: bool = False


def load_encoder(folder: Path, workload: Workload, options: Options) -> Encoder:
    """The plain transformers folder of a workload as an encoder."""
    spec = EncoderSpec(options.pooling, True, workload.meta["max_len"])
    return Encoder(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), spec)


def make_job(workload: Workload, encoder: Encoder, options: Options, folder: Path) -> TrainingJob:
    """Token tables and the plan of exactly the workload's batches, each row's first positive and first negatives."""
    meta, tables, batches = workload.meta, {}, []
    for name in {step.dataset for step in workload.steps}:
        steps = [step for step in workload.steps if step.dataset == name]
        texts = [pair for step in steps for pair in zip(step.queries, step.groups, strict=True)]
        examples = [TrainingExample(query, (group[0],), tuple(group[1:])) for query, group in texts]
        rules = TextRules("", "", meta["max_len"], meta["max_len"])  # the prompts are in the texts already
        write_tokens(folder / f"{name}.arrow", examples, rules, encoder.tokenize)
        tables[name] = TokenTable(folder / f"{name}.arrow")
    seen = dict.fromkeys(tables, 0)
    for step in workload.steps:
        size, first = len(step.queries), seen[step.dataset]
        rows = np.arange(first, first + size, dtype=np.uint32)
        negatives = np.tile(np.arange(meta["negs"], dtype=np.uint32), (size, 1))
        batches.append(Batch(step.dataset, rows, np.zeros(size, dtype=np.uint32), negatives))
        seen[step.dataset] = first + size
    plan = BatchPlan(tuple(batches), {}, PlanOptions(meta["batch"], meta["negs"] + 1))
    rules_of = {step.dataset: DatasetRules(step.in_batch_negatives) for step in workload.steps}
    return TrainingJob(tables, rules_of, plan, _config(meta, options))


def _config(meta: dict[str, Any], options: Options) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=meta["lr"],
        per_device_train_batch_size=meta["batch"],
        warmup_ratio=meta["warmup_ratio"],
        weight_decay=meta["weight_decay"],
        max_grad_norm=meta["grad_clip"],
        temperature=meta["temperature"],
        train_group_size=meta["negs"] + 1,
        precision="bf16" if options.bf16 else "fp32",
        tokens_in_memory=options.tokens_in_memory,
        tokens_per_micro_batch=options.tokens_per_micro_batch,
        save_steps=10**6,
    )


def run(model_folder: Path, workload: Workload, options: Options) -> dict[str, Any]:
    """Train on the workload and return the report."""
    encoder, clock = load_encoder(model_folder, workload, options), StepClock(options.warmup_steps)
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        job = make_job(workload, encoder, options, folder)
        tokenising = (time.perf_counter() - began) / len(workload.steps)

        def end_of_step() -> bool:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.end_step()
            return False

        clock.start()
        train(encoder, job, folder, stop=end_of_step)
        lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
        distinct = [_distinct_tokens(batch, job) for batch in job.plan.batches]
        flops = [step_flops(encoder, job, batch) for batch in job.plan.batches]
    clock.wall_marks[-1] += tokenising * clock.steps
    clock.step_tokens = [round(n / (1 - line["padding_share"])) for n, line in zip(distinct, lines, strict=True)]
    losses, real = [line["loss"] for line in lines], [line["tokens"] for line in lines]
    name = f"boom_utils {'bf16' if options.bf16 else 'fp32'}"
    report = build_report(name, clock, workload.meta["batch"], real, losses)
    timed = range(clock.warmup_steps, len(distinct))
    report["distinct_tokens"] = sum(distinct[step] for step in timed)
    report["flops"] = sum(flops[step] for step in timed)
    return report | ({"time_shares": _time_shares(encoder, job)} if options.profile else {})


def _distinct_tokens(batch: Batch, job: TrainingJob) -> int:
    return sum(len(text) // 4 for text in _distinct(batch, job))


def _distinct(batch: Batch, job: TrainingJob) -> set[bytes]:
    queries, passages = batch_texts(batch, job.tokens)
    return {text.tobytes() for text in queries + passages}  # int32: four bytes a token


def step_flops(encoder: Encoder, job: TrainingJob, batch: Batch) -> float:
    """Operations one step needs: 6 a weight and token outside the embedding table (4 if frozen), and attention's.

    Distinct texts only, no padding, a second forward pass not credited; attention counts half where it is causal.
    """
    model, config = encoder.transformer, encoder.transformer.config
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    table = {id(parameter) for module in embeddings for parameter in module.parameters()}
    weights = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in table)
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    heads = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    lengths = np.array([len(text) // 4 for text in _distinct(batch, job)], dtype=float)
    attention = 12 * config.num_hidden_layers * heads * float((lengths**2).sum()) * (0.5 if causal else 1.0)
    return float((4 if job.config.lora else 6) * weights * lengths.sum() + attention)


_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "optimizer": ("_foreach", "_fused", "aten::lerp", "aten::addcdiv", "aten::addcmul"),
    "copies and indexing": ("copy", "index", "cat", "clone", "embedding", "scatter", "gather", "zero", "fill"),
}


def _time_shares(encoder: Encoder, job: TrainingJob) -> dict[str, float]:
    """Shares of the operators' own time in four steps, by kind; the rest is norms and activations."""
    from torch.profiler import ProfilerActivity, profile

    gradients = Gradients(encoder, job, this_process(), torch.amp.GradScaler("cpu", enabled=False))
    optimizer = torch.optim.AdamW(encoder.transformer.parameters(), lr=1e-5)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for step, batch in enumerate(job.plan.batches[:4]):
            gradients.add(step, batch)
            torch.nn.utils.clip_grad_norm_(encoder.transformer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    spent = dict.fromkeys([*_KINDS, "elementwise and the rest"], 0.0)
    for event in profiled.key_averages():
        kinds = (kind for kind, names in _KINDS.items() if any(name in event.key for name in names))
        spent[next(kinds, "elementwise and the rest")] += event.self_cpu_time_total
    return {kind: round(time_of / sum(spent.values()), 3) for kind, time_of in spent.items()}


def main() -> None:
    """Train as the command line asks and print the report."""
    parser = argparse.ArgumentParser(description="Train this kit on a workload.")
    parser.add_argument("workload", type=Path, help="folder of make_workload.py")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--steps", type=int, help="steps of the plan, from its start; all without it")
    parser.add_argument("--dataset", help="only steps of this dataset")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--pooling", choices=["lasttoken", "mean"], default="lasttoken")
    parser.add_argument("--tokens-in-memory", type=int, help="most tokens whose activations are kept")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=2048, help="tokens of one forward pass")
    parser.add_argument("--warmup-steps", type=int, default=3, help="steps at the start that are not timed")
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    arguments = vars(parser.parse_args())
    workload = load_workload(arguments.pop("workload"))
    dataset, steps = arguments.pop("dataset"), arguments.pop("steps")
    chosen = [step for step in workload.steps if dataset is None or step.dataset == dataset][:steps]
    workload = Workload(workload.meta, chosen)
    print(json.dumps(run(arguments.pop("model"), workload, Options(**arguments))))  # noqa: T201


if __name__ == "__main__":
    main()
