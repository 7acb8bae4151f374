"""How a training step fits its device: what layers keep for the backward pass, counted, and how many tokens fit.

Of a layer, products of matrices and attention are worth keeping; norms, rotations and activations are computed again in
the backward pass, which is exact and takes little time: 32 KiB a token instead of 84 in a layer of Qwen3-0.6B.

Shapes: T tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import varlen  # noqa: F401  # registers its operation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from boom_utils.config import Checkpointing
from boom_utils.models import Encoder

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


class TokenBytes(NamedTuple):
    """Bytes that every further token of a pass costs.

    Args:
        kept: From the forward pass until its backward pass.
        peak: Most at one time during forward and backward pass of a micro-batch, what is kept included.
    """

    kept: float
    peak: float


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
