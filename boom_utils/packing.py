"""Embed many texts in one row without padding, through transformers' attention interface.

All texts stand behind one another in one long row, so every linear layer works on real tokens only; attention is done
text by text, texts of equal length together. The model itself is unmodified. Whether that is exact for a model
(position numbers, sliding windows, code that ignores the interface) is not assumed but tried: see `Encoder`.

Shapes: N texts, T tokens of all texts, H heads, K key/value heads, E head dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "boom_packed"
"""Name of the packed attention in transformers' registry."""


@dataclass(frozen=True)
class Group:
    """Equally long texts, next to each other in the row, so that the row can be viewed as (count, length).

    Args:
        start: First token of the group in the row.
        count: Number of texts.
        length: Tokens of each.
    """

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class Packing:
    """How N texts stand in one row.

    Args:
        lengths: Tokens of each text, in the order of the row (longest first).
        groups: What attention does together.
    """

    lengths: tuple[int, ...]
    groups: tuple[Group, ...]

    def positions(self, device: torch.device) -> Tensor:
        """Position of every token within its text, long (1, T)."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])[None]


def pack(lengths: Sequence[int]) -> Packing:
    """Lay out texts, given longest first, in one row.

    >>> pack([9, 4, 4]).groups
    (Group(start=0, count=1, length=9), Group(start=9, count=2, length=4))
    """
    groups, start = [], 0
    for length, run in groupby(lengths):
        groups.append(Group(start, len(list(run)), length))
        start += groups[-1].count * length
    return Packing(tuple(lengths), tuple(groups))


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
        options: ``packing`` (a `Packing`), ``scaling`` and ``dropout``.

    Returns:
        float (1, T, H, E), and None for the attention weights.
    """
    causal, packing = bool(getattr(module, "is_causal", False)), options["packing"]
    kernel: dict[str, Any] = {
        "scale": options.get("scaling"),
        "dropout_p": options.get("dropout", 0.0),
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    parts = [_attend(group, (query[0], key[0], value[0]), causal, kernel) for group in packing.groups]
    return torch.cat(parts)[None], None


def _attend(group: Group, row: tuple[Tensor, Tensor, Tensor], causal: bool, kernel: dict[str, Any]) -> Tensor:
    """Attention of one group, float (tokens of the group, H, E); no padding, so no mask and no copies."""
    tokens = slice(group.start, group.start + group.count * group.length)
    query, key, value = (
        part[:, tokens].reshape(len(part), group.count, group.length, -1).transpose(0, 1) for part in row
    )
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, **kernel)
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
