"""Hyper-parameters of training, as profiles give them: of all members, and what differs for one."""

from __future__ import annotations

from collections.abc import Iterator
from operator import not_
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boom_utils.machine import Precision, on_this_machine
from boom_utils.yaml_files import Frozen

Count = Annotated[int, Field(gt=0)]
Checkpointing = bool | Literal["selective"]
MachinePrecision = Annotated[Precision, AfterValidator(on_this_machine)]
"""``auto`` is bf16 where this machine has it, else fp32: a study is keyed and recorded by what it is here."""


class LoraConfig(Frozen):
    """Low-rank adapters instead of all weights; defaults are those of the authors' script for Qwen3-4B."""

    r: int = Field(default=32, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"), min_length=1
    )


class WeightAverage(Frozen):
    """The mean of the weights along one training, in place of the last ones: exactly one of its two kinds."""

    # exponential mean over all steps, from the weights of the start: `ema` of the mean so far, the rest of the new ones
    ema: float | None = Field(default=None, gt=0, lt=1, exclude_if=not_)
    # equal mean of so many evenly spaced points of the second half of the steps, the last step among them (LAWA)
    last: int | None = Field(default=None, ge=2, exclude_if=not_)

    def problems(self) -> Iterator[str]:
        """Both kinds, or none."""
        if (self.ema is None) == (self.last is None):
            yield "give exactly one of `ema` and `last`"


class TrainingConfig(Frozen):
    """Hyper-parameters of contrastive training, under FlagEmbedding's names; profiles name the paper's values."""

    learning_rate: float = Field(gt=0)
    per_device_train_batch_size: int = Field(gt=0)  # queries a step; halved for `halve_batch` datasets
    processes: int = Field(default=1, gt=0)  # devices of the global batch, however many really run
    num_train_epochs: int = Field(default=1, gt=0)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    temperature: float = Field(default=0.02, gt=0)
    train_group_size: int = Field(default=8, ge=2)  # 1 positive + negatives a query
    query_max_len: int = Field(default=512, gt=0)  # tokens, prompt included
    passage_max_len: int = Field(default=512, gt=0)  # tokens
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    negatives_cross_device: bool = True  # in-batch negatives of all `processes`, not of one
    mask_false_negatives: bool = False  # leave out negatives identical to the positive
    lora: LoraConfig | None = None  # None trains all weights
    precision: MachinePrecision = "fp32"  # of the passes; weights stay fp32
    # less memory, more time, the same gradient; selective: much of the memory, little time
    gradient_checkpointing: Checkpointing = False
    torch_compile: bool | Literal["auto"] = False  # pays off on long runs; auto: on CUDA
    packing: bool | None = None  # no padding; None: where a trial shows that it is exact
    # memory only, the gradient is the same; auto: as many as fit a CUDA device, elsewhere the default
    tokens_per_micro_batch: Count | Literal["auto"] = 8192
    # most tokens whose activations are kept; more are computed twice, exactly; None: all; auto: likewise
    tokens_in_memory: Count | Literal["auto"] | None = None
    save_steps: int = Field(default=1000, gt=0)  # steps between checkpoints of a run
    # minutes at most between them; the usual number keys no artifact
    save_minutes: float = Field(default=10.0, gt=0, exclude_if=lambda minutes: minutes == 10.0)
    average: WeightAverage | None = Field(default=None, exclude_if=not_)  # None: the last weights; keys no artifact

    @property
    def sizes(self) -> tuple[int, int | None]:
        """Tokens of a micro-batch and most tokens kept; ``auto`` is as by default where nothing is measured."""
        micro_batch, kept = self.tokens_per_micro_batch, self.tokens_in_memory
        return 8192 if micro_batch == "auto" else micro_batch, None if kept == "auto" else kept


class TrainingChanges(Frozen):
    """Hyper-parameters of one member that differ from the profile's; what is not given does not."""

    learning_rate: float | None = Field(default=None, gt=0)
    per_device_train_batch_size: int | None = Field(default=None, gt=0)
    num_train_epochs: int | None = Field(default=None, gt=0)
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    temperature: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    average: WeightAverage | None = Field(default=None, exclude_if=not_)

    def of(self, training: TrainingConfig) -> TrainingConfig:
        """The profile's hyper-parameters with these in place of theirs."""
        return training.model_copy(update={name: value for name, value in self if value is not None})
