"""What every trainer of a comparison shares: reading a workload, marking time, and the report.

A workload is a folder of ``make_workload.py``. All sides train on the same batches in the same order, mark time with
the same clock and report the same keys, so that two reports can be divided.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

Tokenize = Callable[..., Any]


@dataclass(frozen=True)
class Step:
    """One batch.

    Attributes:
        dataset: Name of the dataset that all its rows come from.
        queries: Texts with the prompt applied.
        groups: For each query ``[positive, *negatives]``, with the prompt applied where the task is symmetric.
        in_batch_negatives: Whether the passages of the other queries are negatives too.
    """

    dataset: str
    queries: list[str]
    groups: list[list[str]]
    in_batch_negatives: bool

    @property
    def texts(self) -> list[str]:
        """All texts of the batch, repeated ones as often as they occur."""
        return [*self.queries, *(text for group in self.groups for text in group)]


@dataclass(frozen=True)
class Workload:
    """``meta.json`` and the batches in the order of the plan."""

    meta: dict[str, Any]
    steps: list[Step]


def load_workload(folder: Path, steps: int | None = None) -> Workload:
    """Read a folder of ``make_workload.py``.

    Args:
        folder: The workload.
        steps: How many steps of the plan, from its start; all without it.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    datasets = {path.stem: _read_lines(path) for path in sorted((folder / "data").glob("*.jsonl"))}
    plan = islice(_read_lines(folder / "plan.jsonl"), steps)
    return Workload(meta, [_step(line, datasets[line["dataset"]], meta) for line in plan])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _step(line: dict[str, Any], dataset: Sequence[dict[str, Any]], meta: dict[str, Any]) -> Step:
    rows = [dataset[index] for index in line["rows"]]
    queries = [meta["query_format"].format(prompt=row["prompt"], query=row["query"]) for row in rows]
    return Step(line["dataset"], queries, [_group(row, meta) for row in rows], line["in_batch_neg"])


def _group(row: dict[str, Any], meta: dict[str, Any]) -> list[str]:
    """The first positive and the row's negatives, in the form the model reads."""
    texts = [row["pos"][0], *row["neg"][: meta["negs"]]]
    if row["type"] not in meta["symmetric_types_prompt_passages"]:
        return texts
    return [meta["query_format"].format(prompt=row["prompt"], query=text) for text in texts]


def count_real_tokens(workload: Workload, tokenize: Tokenize) -> list[int]:
    """Tokens of all texts of each step after truncation, without padding.

    Args:
        workload: The batches.
        tokenize: A transformers tokenizer.
    """
    options = {"truncation": True, "max_length": workload.meta["max_len"], "padding": False}
    return [sum(len(ids) for ids in tokenize(step.texts, **options)["input_ids"]) for step in workload.steps]


@dataclass
class StepClock:
    """Marks of wall and CPU time between steps, and the tokens the model was given in each.

    The first steps are slow for reasons that do not last (allocators, kernels, caches), so times and tokens leave them
    out. CPU time is that of all threads of this process.

    Attributes:
        warmup_steps: Steps left out at the start.
        wall_marks: Seconds; the first mark is the start, then one after each step.
        cpu_marks: Seconds, at the same moments.
        step_tokens: Tokens computed in each step, padding included.
    """

    warmup_steps: int = 3
    wall_marks: list[float] = field(default_factory=list)
    cpu_marks: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)
    _tokens_of_this_step: int = 0

    def start(self) -> None:
        """Mark the start of the first step."""
        self.wall_marks.append(time.perf_counter())
        self.cpu_marks.append(time.process_time())

    def count(self, tokens: int) -> None:
        """Add tokens, padding included, that the model is given in this step."""
        self._tokens_of_this_step += tokens

    def end_step(self) -> None:
        """Mark the end of a step. On a GPU its work must be finished: synchronise before."""
        self.start()
        self.step_tokens.append(self._tokens_of_this_step)
        self._tokens_of_this_step = 0

    @property
    def steps(self) -> int:
        """Steps after the warm-up.

        Raises:
            ValueError: If there is none.
        """
        steps = len(self.step_tokens) - self.warmup_steps
        if steps < 1:
            raise ValueError(f"{len(self.step_tokens)} steps leave none after {self.warmup_steps} warm-up steps")
        return steps

    @property
    def wall_seconds(self) -> float:
        """Wall time of the steps after the warm-up."""
        return self.wall_marks[-1] - self.wall_marks[self.warmup_steps]

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the steps after the warm-up."""
        return self.cpu_marks[-1] - self.cpu_marks[self.warmup_steps]

    @property
    def computed_tokens(self) -> int:
        """Tokens, padding included, of the steps after the warm-up."""
        return sum(self.step_tokens[self.warmup_steps :])


def peak_memory_mb() -> float:
    """The most memory so far, in MiB: what torch allocated on the GPU, or without one what this process held."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux KiB


def build_report(
    implementation: str, clock: StepClock, examples_per_step: int, real_tokens: Sequence[int], losses: Sequence[float]
) -> dict[str, Any]:
    """The one line that a trainer prints.

    Args:
        implementation: Name, version and precision of the trainer.
        clock: Its marks.
        examples_per_step: Queries a batch.
        real_tokens: Tokens without padding of every step, those of the warm-up included.
        losses: Loss of every step, those of the warm-up included.

    Returns:
        Rates, times and token counts of the steps after the warm-up; the losses of all. ``padding_share`` is the share
        of the computed tokens that are not real; it is negative where a trainer computes repeated texts once.

    Raises:
        ValueError: If the clock, the tokens and the losses are not of the same steps, or the warm-up is all there is.
    """
    counts = {"timed": len(clock.step_tokens), "counted": len(real_tokens), "losses": len(losses)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"not of the same steps: {counts}")
    steps, seconds = clock.steps, clock.wall_seconds
    real, computed = sum(real_tokens[clock.warmup_steps :]), clock.computed_tokens
    return {
        "implementation": implementation,
        "examples_per_second": round(steps * examples_per_step / seconds, 2),
        "real_tokens_per_second": round(real / seconds, 1),
        "padding_share": round(1 - real / max(1, computed), 4),
        "peak_memory_mb": round(peak_memory_mb()),
        "wall_seconds": round(seconds, 3),
        "cpu_seconds": round(clock.cpu_seconds, 3),
        "steps": steps,
        "losses": [round(float(loss), 6) for loss in losses],
        "real_tokens": real,
        "computed_tokens": computed,
    }
