"""How a training step fits its device: what layers keep for the backward pass, counted, and how many tokens fit.

Of a layer, products of matrices and attention are worth keeping; norms, rotations and activations are computed again in
the backward pass, which is exact and takes little time: 32 KiB a token instead of 84 in a layer of Qwen3-0.6B.

Shapes: T tokens.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._dynamo
from torch.nn.attention import varlen  # noqa: F401  # registers its operation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from boom_utils.hyperparameters import Checkpointing
from boom_utils.models import Encoder
from boom_utils.training.gradients import BatchFacts, Gradients, TrainingJob, batch_texts, has_dropout
from boom_utils.training.plan import Batch

log = logging.getLogger(__name__)
SIZES = ("tokens_per_micro_batch", "tokens_in_memory")
"""Hyper-parameters that may be ``auto``; what they came to is in the log of each step."""
_ATEN = torch.ops.aten
_MATRIX_PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default}
_VARLEN = torch.ops.torch_attn._varlen_attn.default
_ATTENTION = {
    _VARLEN,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}
_LONG_SUM = 128
"""Products to a number from which on it is kept; those of LoRA's small matrices are computed again."""


def checkpoint_layers(transformer: Any, kind: Checkpointing) -> None:
    """Let the layers of a transformer keep less for their backward pass, with the same gradient.

    Args:
        transformer: Of transformers; in training mode alone it matters.
        kind: True keeps the input of each layer, ``selective`` also matrix products and attention, False everything.
    """
    if kind:
        contexts = partial(create_selective_checkpoint_contexts, _worth_keeping)
        selective = {"context_fn": contexts} if kind == "selective" else {}
        transformer.activation_checkpointing_enable({"use_reentrant": False, **selective})


def _worth_keeping(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation in _MATRIX_PRODUCTS:
        keep = args[-2].shape[-1] >= _LONG_SUM
    else:  # dropout, a positive number before the scale, is drawn again: all draws of a layer are repeated in order
        # (the kernel for texts of any lengths has no dropout, and its scale stands there)
        dropout = operation is not _VARLEN and any(isinstance(each, float) and each > 0 for each in args)
        keep = operation in _ATTENTION and not dropout
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def halve_frozen(transformer: Any, dtype: torch.dtype) -> None:
    """Hold the matrices that are not trained in ``dtype`` where that loses nothing, as for a base published in it.

    Under autocast the numbers of a pass stay the same; other weights (norms, embeddings) stay as they are.
    """
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
            half = module.weight.data.to(dtype)
            if torch.equal(half.to(module.weight.dtype), module.weight):
                module.weight.data = half


def compile_layers(transformer: Any) -> None:
    """Compile each layer, once for texts of any lengths; what layers keep for the backward pass stays as it was.

    Not with dropout: the masks of a compiled pass that keeps a graph need not be those of one that keeps none.
    """
    if has_dropout(transformer):
        log.info("nothing is compiled, because dropout draws its masks twice")
        return
    for layer in transformer.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)


def seconds_compiling() -> float:
    """Seconds that this process has compiled layers for, so far."""
    return float(torch._dynamo.utils.calculate_time_spent()["total_wall_time"])


class TokenBytes(NamedTuple):
    """Bytes that every further token of a pass costs.

    Args:
        kept: From the forward pass until its backward pass.
        peak: Most at one time during forward and backward pass of a micro-batch, what is kept included.
    """

    kept: float
    peak: float

    def sizes(self, free: float, micro_batch: int | None = None) -> dict[str, int]:
        """Tokens of a micro-batch, in a quarter of the free bytes unless given, and tokens kept, in the rest."""
        usable = _USED * free
        micro_batch = micro_batch or max(1, int(min(_LARGEST, usable / 4 / self.peak)))
        return dict(zip(SIZES, (micro_batch, max(1, int((usable - micro_batch * self.peak) / self.kept))), strict=True))


_USED, _LARGEST = 0.85, 32_768
"""Share of free memory that is planned for, and tokens from which on a pass gets no faster a token."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes of all tensors that operations make within it and that still live; on every device.

    Args:
        known: Tensors that are not counted, such as weights.
    """

    def __init__(self, known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage())._cdata not in self._seen:
                self._seen.add(place._cdata)
                self.now += place.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(place, self._gone, place._cdata, place.nbytes())
        return made

    def _gone(self, number: int, size: int) -> None:
        self._seen.discard(number)
        self.now -= size


def token_bytes(encoder: Encoder, precision: Callable[[], Any], length: int = 128) -> TokenBytes:
    """Count what tokens cost a step of this encoder: the difference between passes over few and over more of them.

    Args:
        encoder: In training mode on its device; gradients are dropped.
        precision: Makes the context of the passes.
        length: Tokens of a text.
    """
    text = np.arange(length) % encoder.transformer.get_input_embeddings().num_embeddings
    few, more = (_counted(encoder, precision, [text] * texts) for texts in (2, 4))
    kept, peak = ((large - small) / (2 * length) for small, large in zip(few, more, strict=True))
    return TokenBytes(kept, peak)


def _counted(encoder: Encoder, precision: Callable[[], Any], texts: list[np.ndarray]) -> tuple[int, int]:
    """Bytes kept after a forward pass, and most of forward and backward pass, besides weights and their gradients."""
    model = encoder.transformer
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    known = [
        *model.parameters(),
        *model.buffers(),
        *(weight.grad for weight in model.parameters() if weight.requires_grad),
    ]
    with torch.compiler.set_stance("force_eager"), LiveBytes(known) as live:
        with precision():
            out_ND = encoder.embed_micro_batch(texts)
        kept = live.now
        torch.autograd.backward(out_ND.sum())
    model.zero_grad()
    return kept, live.most


class FittingGradients:
    """`Gradients` in micro-batches that fit the device: ``auto`` sizes are measured, and halved where memory ends.

    They change neither loss nor gradient beyond rounding, so they are no part of what a training is.

    Args:
        gradients: Of this process.
    """

    def __init__(self, gradients: Gradients) -> None:
        config = gradients.job.config
        self.sizes: dict[str, int | None] = {}
        self._gradients = gradients
        self._auto = [name for name in SIZES if getattr(config, name) == "auto"]
        if "tokens_per_micro_batch" in self._auto and gradients.has_dropout:
            self._auto.remove("tokens_per_micro_batch")  # masks are drawn for a micro-batch: it is always the default

    @property
    def job(self) -> TrainingJob:
        """The training, with the sizes in use."""
        return self._gradients.job

    def resume(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take the sizes of the last step of an earlier attempt: sums in another order would differ in last bits."""
        if lines and {*self._auto} <= {*lines[-1]}:
            self._use({name: lines[-1][name] for name in self._auto})

    def add(self, step: int, batch: Batch) -> BatchFacts:
        """As `Gradients.add`; where memory ends and a size is ``auto``, once more with half of it.

        Raises:
            torch.OutOfMemoryError: Nothing is left to halve, or other processes wait for this one.
        """
        if self._auto and not self.sizes:
            self._measure()
        while True:
            try:
                return self._gradients.add(step, batch)
            except torch.OutOfMemoryError:
                if not self._halve(step, batch):
                    raise
            self._gradients.encoder.transformer.zero_grad()  # only here has the error let go of the tensors it met

    def _use(self, sizes: Mapping[str, int | None]) -> None:
        self.sizes = {name: sizes[name] for name in self._auto}
        job = self.job
        self._gradients = replace(self._gradients, job=replace(job, config=job.config.model_copy(update=self.sizes)))

    def _measure(self) -> None:
        encoder, free = self._gradients.encoder, free_bytes(self._gradients.processes.device)
        sizes: dict[str, int | None] = dict(zip(SIZES, self.job.config.sizes, strict=True))
        if free is not None:
            trained = sum(weight.numel() for weight in encoder.transformer.parameters() if weight.requires_grad)
            counted = token_bytes(encoder, self._gradients.precision)
            free -= 12 * trained  # a gradient and two moments, float32, are still to come
            sizes |= counted.sizes(free, None if SIZES[0] in self._auto else sizes[SIZES[0]])
            shown = free / 2**30, counted.kept / 2**10, counted.peak / 2**10
            log.info("%.1f GiB free, %.0f KiB kept a token, at most %.0f in a pass: %s", *shown, sizes)
        self._use(sizes)

    def _halve(self, step: int, batch: Batch) -> bool:
        """Whether there is something to try again with."""
        tokens = sum(len(text) for texts in batch_texts(batch, self.job.tokens) for text in texts)
        smaller = {name: max(1, min(size or tokens, tokens) // 2) for name, size in self.sizes.items()}
        if self._gradients.processes.count > 1 or smaller == self.sizes:
            return False
        self._use(smaller)
        log.warning("step %d did not fit into memory; it is repeated, from now on with %s", step, self.sizes)
        return True


def free_bytes(device: torch.device) -> int | None:
    """What a CUDA device has left for this process; None on others, where memory is not all there is to a size."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
