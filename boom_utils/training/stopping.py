"""Reasons to stop a training run, and what to say then: signals, numbers that are not finite, too little memory."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType
from typing import Any

import torch

from boom_utils.errors import TrainingError
from boom_utils.training.gradients import TrainingJob, batch_texts
from boom_utils.training.plan import Batch


class StopSignals:
    """Notes Ctrl-C and SIGTERM instead of dying in the middle of a step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals there alone
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True  # nothing is logged here: a handler may interrupt the very write that logs


def check_finite(step: int, batch: Batch, found: tuple[float, float], scaler: torch.amp.GradScaler) -> bool:
    """Refuse a step whose numbers are not finite; True when fp16 overflowed and the step is to be skipped instead.

    Args:
        step: Number of the step.
        batch: What it was made of.
        found: Loss and gradient norm.
        scaler: Of fp16: it lowers its scale after an overflow, so the next step may succeed.

    Raises:
        TrainingError: Before the optimizer step, naming step, dataset and rows.
    """
    named = dict(zip(("loss", "gradient norm"), found, strict=True))
    wrong = {name: value for name, value in named.items() if not math.isfinite(value)}
    if wrong and "loss" not in wrong and scaler.is_enabled() and scaler.get_scale() > 1:
        return True
    if wrong:
        raise TrainingError(
            "training stopped: " + " and ".join(f"the {name} is {value}" for name, value in wrong.items()),
            where=f"step {step}, dataset '{batch.dataset}', rows {batch.rows.tolist()}",
            expected="finite numbers; the weights are still those before this step",
            fix="look at these rows; else lower learning_rate or raise temperature",
        )
    return False


def out_of_memory(error: BaseException, step: int, batch: Batch, job: TrainingJob) -> TrainingError | None:
    """The one message for too little memory, with sizes and remedies; None when ``error`` is something else."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not known and not any(text in str(error) for text in ("out of memory", "can't allocate memory")):
        return None
    queries, passages = batch_texts(batch, job.tokens)
    lengths, config = [len(text) for text in queries + passages], job.config
    kept = config.tokens_in_memory or sum(lengths)
    return TrainingError(
        "there is not enough memory for a training step",
        where=f"step {step}, dataset '{batch.dataset}'",
        found=f"{len(queries)} queries x {batch.group_size} passages, {sum(lengths)} tokens, the longest text "
        f"{max(lengths)}; tokens_in_memory {config.tokens_in_memory}, tokens_per_micro_batch "
        f"{config.tokens_per_micro_batch}, {config.precision}, gradient_checkpointing {config.gradient_checkpointing}",
        fix="in this order: "
        f"1. training.tokens_in_memory: {max(1, min(kept, sum(lengths)) // 2)} (the same gradient, up to a third more "
        f"time) and tokens_per_micro_batch: {max(1, min(config.tokens_per_micro_batch, sum(lengths)) // 2)}; "
        "2. gradient_checkpointing: true (the same gradient, more time); "
        "3. a smaller passage_max_len or per_device_train_batch_size, or more processes (other results)",
    )
