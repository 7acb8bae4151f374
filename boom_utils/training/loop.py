"""The training loop: one page, the same for one device and for many.

Semantics and hyper-parameters are those of the authors' script: AdamW, linear warm-up then linear decay, gradient
clipping at norm 1. Batches come from a plan, gradients from `boom_utils.training.gradients`, checkpoints from
`boom_utils.training.state`; a run that is stopped or killed goes on from the last checkpoint to the same weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from boom_utils import __version__
from boom_utils.artifacts import CHECKPOINTS, derive_seed, write_text
from boom_utils.errors import ConfigError, TrainingError
from boom_utils.hyperparameters import LoraConfig, TrainingConfig
from boom_utils.machine import dtype_of
from boom_utils.models import Encoder
from boom_utils.progress import progress
from boom_utils.training.averages import MeanWeights
from boom_utils.training.fitting import (
    FittingGradients,
    checkpoint_layers,
    compile_layers,
    halve_frozen,
    seconds_compiling,
)
from boom_utils.training.gradients import BatchFacts, Gradients, TrainingJob, batch_texts
from boom_utils.training.plan import Batch, BatchPlan
from boom_utils.training.probe import batches_digest, look
from boom_utils.training.processes import Processes, StopSignals, this_process
from boom_utils.training.state import Checkpoints, TrainingState

log = logging.getLogger(__name__)
LOG = "training_log.jsonl"
MEASURED = ("seconds", "tokens_per_second", "peak_memory_mb")
"""Fields of the log that differ from run to run; all others are the same for the same job."""


def train(
    encoder: Encoder,
    job: TrainingJob,
    out: Path,
    processes: Processes | None = None,
    allow_changes: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train ``encoder`` in place over the job's plan.

    Writes one JSON line a step to ``out/training_log.jsonl`` and a checkpoint under ``out/checkpoints`` every
    ``save_steps`` and ``save_minutes`` and at the end; remove that folder (`remove_checkpoints`) once the encoder is
    saved. Called again with the same job after it was stopped or killed, it goes on from the last checkpoint to the
    same weights, bit by bit on the same build and machine. What ``job.watched`` asks for goes to
    ``out/watched_losses.jsonl``.

    Args:
        encoder: The base; its own weights are changed. At the end they are averaged if the config says so, and LoRA
            adapters are merged.
        job: Data, plan and hyper-parameters.
        out: Folder of the log and the checkpoints.
        processes: This process among several; alone when None.
        allow_changes: Fields in which a checkpoint may differ from this job.
        stop: Asked after every step; True saves a checkpoint and ends the run.

    Returns:
        Facts for the record: steps, examples, tokens, seconds, tokens a second, final loss.

    Raises:
        TrainingError: The loss or gradient is not finite (raised before the optimizer step), or memory is too small.
        ConfigError: The batches do not divide among the processes.
        CheckpointError: There is a checkpoint, but of another job.
        KeyboardInterrupt: Stopped by Ctrl-C, SIGTERM or ``stop``; the checkpoint is saved.
    """
    processes = processes or this_process()
    check_shares(job.plan, job.config, processes.count)
    devices = [processes.device.index] if processes.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # torch's global generator is seeded for this run, and put back
        torch.manual_seed(derive_seed(job.plan.options.seed, "training"))
        trainer = _Trainer(encoder, job, out, processes)
        environment = {"torch": torch.__version__, "device": _device_name(processes.device)}
        checkpoints = Checkpoints(out / CHECKPOINTS, trainer.identity(), environment, allow_changes)
        with checkpoints.locked() if processes.first else nullcontext():
            trainer.run(checkpoints, stop)
        trainer.finish()
    return trainer.facts()


def remove_checkpoints(out: Path) -> None:
    """Delete the checkpoints of a finished run; call it when its model is safely written."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def learning_rate(step: int, plan: BatchPlan, config: TrainingConfig, *, restart: bool = False) -> float:
    """Learning rate of a step: linear warm-up from 0, then linear decay to 0, over the plan or over each stage.

    The first step has rate 0, as in transformers' linear schedule.

    Args:
        step: From 0.
        plan: The steps there are, and where stages begin.
        config: The highest rate and the share of steps that warm up.
        restart: Whether every stage warms up and decays by itself.

    Returns:
        The rate, from 0 to ``config.learning_rate``.

    >>> from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
    >>> rows = PlanInput(DatasetRules(), np.arange(40, dtype=np.uint32), np.ones(40, int), np.ones(40, int))
    >>> plan = plan_batches({"nq": rows}, PlanOptions(per_device_train_batch_size=4, train_group_size=2))
    >>> config = TrainingConfig(learning_rate=1.0, per_device_train_batch_size=4, warmup_ratio=0.2)
    >>> [round(learning_rate(step, plan, config), 3) for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """
    steps = plan.stage_of(step) if restart else range(len(plan))
    done, total = step - steps.start, len(steps)
    warmup = math.ceil(config.warmup_ratio * total)
    share = done / max(1, warmup) if done < warmup else (total - done) / max(1, total - warmup)
    return config.learning_rate * share


class _Trainer:
    """Model, optimizer and log of one run."""

    def __init__(self, encoder: Encoder, job: TrainingJob, out: Path, processes: Processes) -> None:
        self.encoder, self.job, self.processes, self.out = encoder, job, processes, out
        _prepare(encoder, job.config, processes)
        self.parameters = {name: p for name, p in encoder.transformer.named_parameters() if p.requires_grad}
        config = job.config
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(processes.device.type, init_scale=1024.0, enabled=config.precision == "fp16")
        self.gradients = FittingGradients(Gradients(encoder, job, processes, self.scaler))
        self.mean = MeanWeights(self.parameters, config.average, len(job.plan))
        self.lines: list[dict[str, Any]] = []

    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this run belongs to."""
        job = self.job
        fields = {f"training.{name}": value for name, value in job.config.model_dump(mode="json").items()}
        fields |= {f"rules.{name}": asdict(rules) for name, rules in job.rules.items()}
        fields |= {f"tokens.{name}": table.fingerprint for name, table in job.tokens.items()}
        fields |= {f"watched.{name}": batches_digest(name, watched) for name, watched in job.watched.items()}
        fields |= {"watched.points": job.points} if job.watched else {}
        fields |= {"plan": job.plan.fingerprint, "restart_rate": job.restart_rate}
        return fields | {"base": _weights_digest(self.encoder), "processes": self.processes.count, "kit": __version__}

    def run(self, checkpoints: Checkpoints, stop: Callable[[], bool]) -> None:
        """Make all steps that are still to be made."""
        state = TrainingState(self.parameters, self.optimizer, self.scaler, self.mean.weights)
        total = len(self.job.plan)
        self.lines = checkpoints.restore(state)
        self.gradients.resume(self.lines)
        if self.processes.first:
            write_text(self.out / LOG, "".join(json.dumps(line) + "\n" for line in self.lines))
        watch = partial(look, self.encoder, self.job, self.out, self.processes)
        with StopSignals() as signals:
            if not self.lines:
                watch(0)
            steps, saved = range(len(self.lines), total), time.monotonic()
            for step in progress(steps, len(steps), self.job.label) if self.processes.first else steps:
                self._step(step)
                self.mean.add(step + 1)
                watch(step + 1)  # before the checkpoint, which vouches for the point
                stopped = self.processes.total(float(signals.seen or stop())) > 0
                if self.processes.first and (stopped or self._due(step + 1, time.monotonic() - saved)):
                    checkpoints.save(state, self.lines)  # the others wait where they need this process next
                    saved = time.monotonic()
                if stopped:
                    self.processes.barrier()
                    log.info("%s: stopped after step %d of %d; its checkpoint is kept", self.job.label, step + 1, total)
                    raise KeyboardInterrupt

    def _due(self, done: int, seconds: float) -> bool:
        """Whether a checkpoint is to be written after ``done`` steps, ``seconds`` after the last one."""
        config = self.job.config
        return done % config.save_steps == 0 or done == len(self.job.plan) or seconds >= 60 * config.save_minutes

    def _step(self, step: int) -> None:
        batch, began, compiling = self.job.plan.batches[step], time.perf_counter(), seconds_compiling()
        try:
            facts, norm = self._backward(step, batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if (explained := out_of_memory(error, step, batch, self.gradients.job)) is not None:
                raise explained from error
            raise
        loss = self.processes.total(facts.loss)
        skipped = check_finite(step, batch, (loss, norm), self.scaler)
        rate = learning_rate(step, self.job.plan, self.job.config, restart=self.job.restart_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        line = {"step": step, "dataset": batch.dataset, "queries": len(batch.rows), "loss": round(loss, 6)}
        line |= {"learning_rate": rate, "grad_norm": round(norm, 6) if math.isfinite(norm) else None}
        if skipped:
            line["skipped"] = True
        if self.job.config.precision != "fp32":
            line["precision"] = self.job.config.precision
        self._write(line, facts, seconds := time.perf_counter() - began)
        if (compiling := seconds_compiling() - compiling) > 0:
            log.info("step %d took %.1f s, of which %.1f s compiling", step, seconds, compiling)

    def _backward(self, step: int, batch: Batch) -> tuple[BatchFacts, float]:
        """Gradient of the batch over all processes, unscaled and clipped; its norm before clipping."""
        facts = self.gradients.add(step, batch)
        parameters = list(self.parameters.values())
        self.processes.sum_gradients(parameters)
        self.scaler.unscale_(self.optimizer)
        return facts, float(torch.nn.utils.clip_grad_norm_(parameters, self.job.config.max_grad_norm))

    def _write(self, line: dict[str, Any], facts: BatchFacts, seconds: float) -> None:
        tokens = round(self.processes.total(facts.tokens))
        line |= {"tokens": tokens, "padding_share": round(1 - facts.distinct / facts.computed, 4)}
        line |= {"seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds)}
        line |= {"peak_memory_mb": _peak_memory(self.processes.device), **self.gradients.sizes}
        self.lines.append(line)
        if self.processes.first:
            with (self.out / LOG).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """Make the encoder an ordinary one again: of mean weights if asked, adapters merged, no training switches."""
        self.mean.use()
        if self.job.config.lora is not None:
            self.encoder.transformer = self.encoder.transformer.float().merge_and_unload()  # alpha / r of them
        if self.job.config.gradient_checkpointing:
            self.encoder.transformer.activation_checkpointing_disable()
        self.encoder.transformer.eval()
        self.optimizer.zero_grad()

    def facts(self) -> dict[str, Any]:
        """What the record says of the run."""
        lines = self.lines
        tokens, seconds = sum(line["tokens"] for line in lines), sum(line["seconds"] for line in lines)
        last = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
        return {
            "steps": len(lines),
            "examples": self.job.plan.examples,
            "tokens": tokens,
            "training_seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "peak_memory_mb": max(line["peak_memory_mb"] for line in lines),
            "mean_loss_last_tenth": round(sum(last) / len(last), 4),
            "rows_in_no_batch": dict(self.job.plan.left_out),
            "processes": self.processes.count,
            "precision": self.job.config.precision,
            "device": _device_name(self.processes.device),
        }


def _device_name(device: torch.device) -> str:
    """What people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _prepare(encoder: Encoder, config: TrainingConfig, processes: Processes) -> None:
    """Put the model on its device, into training mode, with the switches of the config."""
    encoder.transformer.to(processes.device)
    cuda = processes.device.type == "cuda"
    compiled = config.torch_compile is True or (config.torch_compile == "auto" and cuda)
    one_kernel = cuda and config.precision != "fp32"  # elsewhere packed attention has a call a length: not one graph
    encoder.use_packing(config.packing if one_kernel or not compiled else False)
    checkpoint_layers(encoder.transformer, config.gradient_checkpointing)
    if config.lora is not None:
        encoder.transformer = add_adapters(encoder.transformer, config.lora)
        halve_frozen(encoder.transformer, dtype_of(config.precision))
    encoder.transformer.train()
    if compiled:
        compile_layers(encoder.transformer)


def add_adapters(transformer: Any, config: LoraConfig) -> Any:
    """Freeze ``transformer`` and put trainable float32 adapters of peft on its target modules (authors' 4B script).

    At the end they are merged, so that merging, scoring and loading elsewhere need to know nothing of them. Their first
    values come from torch's global generator: seed and restore it around the call.

    Raises:
        TrainingError: A target module is not in the model.
    """
    from peft import LoraConfig as PeftConfig
    from peft import TaskType, get_peft_model

    modules = {name.rsplit(".", 1)[-1]: module for name, module in transformer.named_modules()}
    if missing := [target for target in config.target_modules if target not in modules]:
        linear = sorted(name for name, module in modules.items() if isinstance(module, torch.nn.Linear))
        raise TrainingError(
            f"LoRA targets are not in this model: {', '.join(missing)}",
            where=type(transformer).__name__,
            expected="names of linear layers, such as " + ", ".join(linear),
            fix="set training.lora.target_modules",
        )
    targets = list(config.target_modules)
    settings = PeftConfig(**{**config.model_dump(), "target_modules": targets}, task_type=TaskType.FEATURE_EXTRACTION)
    return get_peft_model(transformer, settings)


def check_shares(plan: BatchPlan, config: TrainingConfig, count: int) -> None:
    """Refuse a number of processes among which the batches do not divide.

    Raises:
        ConfigError: With the sizes, and what would do.
    """
    sizes = {len(batch.rows): f"batches of {len(batch.rows)} queries" for batch in plan.batches}
    if not config.negatives_cross_device:  # every process must hold whole device batches
        sizes[plan.options.processes] = f"{plan.options.processes} device batches (training.processes)"
    if wrong := [sizes[size] for size in sorted(sizes) if size % count]:
        raise ConfigError(
            f"the batches do not divide among {count} processes",
            found=", ".join(wrong),
            fix="use a number of processes that divides them, or another per_device_train_batch_size",
        )


def _weights_digest(encoder: Encoder) -> str:
    """sha256 over names and values of all weights (hex)."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.transformer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


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
    micro_batch, kept = config.sizes[0], config.sizes[1] or sum(lengths)
    return TrainingError(
        "there is not enough memory for a training step",
        where=f"step {step}, dataset '{batch.dataset}'",
        found=f"{len(queries)} queries x {batch.group_size} passages, {sum(lengths)} tokens, the longest text "
        f"{max(lengths)}; tokens_in_memory {config.tokens_in_memory}, tokens_per_micro_batch "
        f"{config.tokens_per_micro_batch}, {config.precision}, gradient_checkpointing {config.gradient_checkpointing}",
        fix="in this order: "
        f"1. training.tokens_in_memory: {max(1, min(kept, sum(lengths)) // 2)} (the same gradient, up to a third more "
        f"time) and tokens_per_micro_batch: {max(1, min(micro_batch, sum(lengths)) // 2)}; "
        "2. gradient_checkpointing: true (the same gradient, more time); "
        "3. a smaller passage_max_len or per_device_train_batch_size, or more processes (other results)",
    )
