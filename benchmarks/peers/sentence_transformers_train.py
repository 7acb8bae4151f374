"""Train with sentence-transformers on the exact batches of a workload and print one line of JSON.

    python benchmarks/peers/sentence_transformers_train.py WORKLOAD MODEL [--steps N] [--bf16] [--cached MICRO_BATCH]

WORKLOAD is a folder of ``make_workload.py`` and MODEL one of its models. This is the trainer as its users run it: its
own collator, padding and loop; only the order of the batches is given. ``workload.py`` describes the report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # idle threads must not spin beside another busy process

import sentence_transformers
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parent))
from workload import StepClock, Workload, build_report, count_real_tokens, load_workload


@dataclass(frozen=True)
class PeerOptions:
    """How to train.

    Attributes:
        bf16: Autocast to bfloat16 instead of float32.
        pooling: ``lasttoken`` or ``mean``.
        cached: Texts a micro-batch of the cached loss; 0 for the plain loss.
        attention: Attention implementation of transformers.
        warmup_steps: Steps at the start that are not timed.
    """

    bf16: bool = False
    pooling: str = "lasttoken"
    cached: int = 0
    attention: str = "sdpa"
    warmup_steps: int = 3

    @property
    def implementation(self) -> str:
        """Name for the report."""
        words = ["sentence-transformers", sentence_transformers.__version__, "bf16" if self.bf16 else "fp32"]
        words += [f"cached {self.cached}"] if self.cached else []
        words += [self.attention] if self.attention != "sdpa" else []
        return " ".join(words)


class OwnNegativesLoss(torch.nn.Module):
    """InfoNCE of each query over its own positive and negatives, for datasets without in-batch negatives."""

    def __init__(self, model: SentenceTransformer, scale: float) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, features: list[dict[str, torch.Tensor]], labels: torch.Tensor | None = None) -> torch.Tensor:
        """The mean cross-entropy; the positive is the first passage of each group."""
        queries_QD, *columns_QD = embed_columns(self.model, features)
        passages_QPD = torch.stack(columns_QD, dim=1)
        scores_QP = torch.einsum("qd,qpd->qp", queries_QD, passages_QPD) * self.scale
        positives_Q = torch.zeros(len(scores_QP), dtype=torch.long, device=scores_QP.device)
        return torch.nn.functional.cross_entropy(scores_QP, positives_Q)


class ClockCallback(TrainerCallback):  # type: ignore[misc]
    """Marks the clock when training starts and after each step."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        """Mark the start."""
        self.clock.start()

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        """Mark the end of a step, once the GPU has finished it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.clock.end_step()


def build_model(folder: Path, workload: Workload, options: PeerOptions) -> SentenceTransformer:
    """The model with pooling and normalisation, in float32."""
    transformer = Transformer(
        str(folder),
        max_seq_length=workload.meta["max_len"],
        model_kwargs={"attn_implementation": options.attention},
    )
    pooling = Pooling(transformer.get_embedding_dimension(), options.pooling)
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


def count_tokens(model: SentenceTransformer, clock: StepClock) -> None:
    """Let the clock count what the embedding table is asked for.

    Only passes that build a graph count: the first pass of the cached loss repeats the same tokens and is no padding.
    """

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            clock.count(inputs[0].numel())

    model[0].model.get_input_embeddings().register_forward_pre_hook(hook)


def training_data(workload: Workload) -> tuple[DatasetDict, list[list[int]]]:
    """The rows in the trainer's form, and the plan's batches.

    Returns:
        One dataset a name with the columns anchor, positive, negative_0 …, each in the order of the plan; and for every
        step the indices of its rows in the concatenation of these datasets.
    """
    columns = ["anchor", "positive", *(f"negative_{i}" for i in range(workload.meta["negs"]))]
    rows: dict[str, list[tuple[str, ...]]] = {name: [] for name in sorted({s.dataset for s in workload.steps})}
    places = []
    for step in workload.steps:
        taken = rows[step.dataset]
        places.append((step.dataset, len(taken), len(step.queries)))
        taken += [(query, *group) for query, group in zip(step.queries, step.groups, strict=True)]
    first_row = dict(zip(rows, accumulate(map(len, rows.values()), initial=0), strict=False))
    batches = [list(range(first_row[name] + start, first_row[name] + start + size)) for name, start, size in places]
    tables = {name: dict(zip(columns, zip(*taken, strict=True), strict=True)) for name, taken in rows.items()}
    return DatasetDict({name: Dataset.from_dict(table) for name, table in tables.items()}), batches


def plan_sampler(batches: list[list[int]]) -> type[MultiDatasetDefaultBatchSampler]:
    """A batch sampler class, as the trainer wants it, that yields exactly these batches."""

    class PlanSampler(MultiDatasetDefaultBatchSampler):  # type: ignore[misc]
        def __iter__(self) -> Iterator[list[int]]:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    return PlanSampler


def build_losses(model: SentenceTransformer, workload: Workload, options: PeerOptions) -> Mapping[str, torch.nn.Module]:
    """The loss of each dataset; datasets with in-batch negatives share one."""
    scale = 1 / workload.meta["temperature"]
    own = OwnNegativesLoss(model, scale)
    if options.cached:
        shared = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=options.cached)
    else:
        shared = MultipleNegativesRankingLoss(model, scale=scale)
    return {step.dataset: shared if step.in_batch_negatives else own for step in workload.steps}


def training_arguments(
    folder: str, workload: Workload, batches: list[list[int]], options: PeerOptions
) -> SentenceTransformerTrainingArguments:
    """One epoch over the plan with the workload's learning rate, warm-up and clipping; the loss is logged each step."""
    meta = workload.meta
    return SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=meta["batch"],
        num_train_epochs=1,
        learning_rate=meta["lr"],
        warmup_steps=meta["warmup_ratio"],  # below 1 it is a share of the steps
        weight_decay=meta["weight_decay"],
        max_grad_norm=meta["grad_clip"],
        bf16=options.bf16,
        multi_dataset_batch_sampler=plan_sampler(batches),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def train(model_folder: Path, workload: Workload, options: PeerOptions) -> dict[str, Any]:
    """Train on the workload and return the report."""
    clock = StepClock(options.warmup_steps)
    model = build_model(model_folder, workload, options)
    count_tokens(model, clock)
    datasets, batches = training_data(workload)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=training_arguments(folder, workload, batches, options),
            train_dataset=datasets,
            loss=build_losses(model, workload, options),
            callbacks=[ClockCallback(clock)],
        )
        trainer.remove_callback(PrinterCallback)  # the standard output is for the report
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    real_tokens = count_real_tokens(workload, model.tokenizer)
    return build_report(options.implementation, clock, workload.meta["batch"], real_tokens, losses)


def main() -> None:
    """Train as the command line asks and print the report."""
    parser = argparse.ArgumentParser(description="Train sentence-transformers on a workload.")
    parser.add_argument("workload", type=Path, help="folder of make_workload.py")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--steps", type=int, help="steps of the plan, from its start; all without it")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--pooling", choices=["lasttoken", "mean"], default="lasttoken")
    parser.add_argument("--cached", type=int, default=0, metavar="MICRO_BATCH", help="texts a micro-batch, cached loss")
    parser.add_argument("--attention", choices=["sdpa", "flash_attention_2"], default="sdpa")
    parser.add_argument("--warmup-steps", type=int, default=3, help="steps at the start that are not timed")
    arguments = vars(parser.parse_args())
    workload = load_workload(arguments.pop("workload"), arguments.pop("steps"))
    model_folder, options = arguments.pop("model"), PeerOptions(**arguments)
    if len(workload.steps) <= options.warmup_steps:
        parser.error(f"{len(workload.steps)} steps leave none to time after {options.warmup_steps} warm-up steps")
    print(json.dumps(train(model_folder, workload, options)))  # noqa: T201


if __name__ == "__main__":
    main()
