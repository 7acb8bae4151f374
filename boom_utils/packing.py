"""Embed many texts in one row without padding, through transformers' attention interface.

All texts stand behind one another in one long row, so every linear layer works on real tokens only; attention is done
within each text, which no sliding window may cut: by one flash attention kernel for texts of any lengths (CUDA, bf16
and fp16), elsewhere by one call for all texts of a length. The model itself is unmodified. Whether that is exact for a
model (position numbers, sliding windows, code that ignores the interface) is not assumed but tried: see `Encoder`.

Shapes: N texts, T tokens of all texts, H heads, K key/value heads, E head dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "boom_packed"
"""Name of the packed attention in transformers' registry."""


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention within each text of a packed row; transformers calls it in place of its own.

    Args:
        module: The attention layer; its ``is_causal`` counts.
        query: float (1, H, T, E).
        key: float (1, K, T, E).
        value: float (1, K, T, E).
        attention_mask: Not used: a packed row has no padding.
        options: ``cu_seq_lens_q`` (int32 (N + 1,), where each text begins and the last one ends, longest text first),
            ``max_length_q`` (tokens of the longest), ``scaling``, ``sliding_window`` and ``dropout``.

    Returns:
        float (1, T, H, E), and None for the attention weights.

    Raises:
        ValueError: A text is longer than the layer's sliding window.
    """
    starts, longest, dropout = options["cu_seq_lens_q"], options["max_length_q"], options.get("dropout", 0.0)
    if (window := options.get("sliding_window")) is not None and longest > window:
        raise ValueError(f"packed texts may have {longest} tokens, the sliding window of a layer has {window}")
    causal, gqa = bool(getattr(module, "is_causal", False)), query.shape[1] != key.shape[1]
    dtype = _precision(query)
    if dropout == 0 and _flash_works(query.device.type, dtype):
        # autocast passes this kernel by
        q, k, v = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
        flash: Any = {"scale": options.get("scaling"), "window_size": (-1, 0 if causal else -1), "enable_gqa": gqa}
        made: Any = varlen_attn(q, k, v, starts, starts, longest, longest, **flash)
        return made[None], None
    kernel = {"is_causal": causal, "scale": options.get("scaling"), "dropout_p": dropout, "enable_gqa": gqa}
    equal = Counter(starts.diff().tolist())  # equally long texts stand next to each other: no padding, no copies
    sizes = [length * count for length, count in equal.items()]
    groups = zip(equal, *(part[0].split_with_sizes(sizes, dim=1) for part in (query, key, value)), strict=True)
    return torch.cat([_attend(length, group, kernel) for length, *group in groups])[None], None


def _precision(states: Tensor) -> torch.dtype:
    """In which attention computes: autocast's if it is on, else that of the states."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _flash_works(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernel for texts of any lengths is there: from Ampere on, in half precision."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


def _attend(length: int, group: Sequence[Tensor], kernel: Mapping[str, Any]) -> Tensor:
    """Attention of texts of one length, float (tokens of them all, H, E)."""
    query, key, value = (part.reshape(len(part), -1, length, part.shape[-1]).transpose(0, 1) for part in group)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **kernel)
    return out.transpose(1, 2).flatten(0, 1)


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask transformers would make for a packed row: none."""


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int, *, padded: bool = True) -> Iterator[list[int]]:
    """Cut texts, longest first, into batches within a token budget (at least one text each).

    Args:
        lengths: Tokens of each text.
        tokens_per_batch: Most tokens of a batch.
        padded: Whether padding counts towards the budget.

    >>> list(length_sorted_batches([3, 9, 4], tokens_per_batch=8))
    [[1], [2, 0]]
    >>> list(length_sorted_batches([3, 9, 4], tokens_per_batch=13, padded=False))
    [[1, 2], [0]]
    """
    batch: list[int] = []
    used = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        size = lengths[batch[0]] if batch and padded else lengths[row]
        if batch and used + size > tokens_per_batch:
            yield batch
            batch, used, size = [], 0, lengths[row]
        batch.append(row)
        used += size
    if batch:
        yield batch
