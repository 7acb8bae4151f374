"""Embed many texts in one row without padding, through transformers' attention interface.

All texts stand behind one another in one long row, so every linear layer works on real tokens only; attention is done
text by text, texts of near-equal length together. The model itself is unmodified. Whether that is exact for a model
(position numbers, sliding windows, code that ignores the interface) is not assumed but tried: see `Encoder`.

Shapes: N texts, T tokens of all texts, H heads, K key/value heads, E head dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "boom_packed"
"""Name of the packed attention in transformers' registry."""
SLACK = 0.1
"""Texts share one attention call while the shorter ones are at most this share shorter than the longest."""


@dataclass(frozen=True)
class Group:
    """Texts of near-equal length, next to each other in the row.

    Args:
        start: First token of the group in the row.
        count: Number of texts.
        length: Tokens of the longest one.
        tokens: Tokens of all of them.
        index: long (count, length), place of every token in the row, any valid place for padding; None when all texts
            are equally long and the row can be viewed as (count, length).
        mask: bool (count, length), True for tokens of a text; None as above.
    """

    start: int
    count: int
    length: int
    tokens: int
    index: Tensor | None = None
    mask: Tensor | None = None


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


def pack(lengths: Sequence[int], device: torch.device) -> Packing:
    """Lay out texts, given longest first, in one row."""
    groups, first, start = [], 0, 0
    while first < len(lengths):
        least, last = (1 - SLACK) * lengths[first], first
        while last < len(lengths) and lengths[last] >= least:
            last += 1
        groups.append(_group(start, lengths[first:last], device))
        start, first = start + groups[-1].tokens, last
    return Packing(tuple(lengths), tuple(groups))


def _group(start: int, lengths: Sequence[int], device: torch.device) -> Group:
    count, length, tokens = len(lengths), lengths[0], sum(lengths)
    if lengths[-1] == length:
        return Group(start, count, length, tokens)
    of_text = torch.tensor(lengths)
    begin = start + torch.cumsum(of_text, 0) - of_text
    places = torch.arange(length)
    mask = places[None, :] < of_text[:, None]
    index = torch.where(mask, begin[:, None] + places[None, :], begin[:, None])
    return Group(start, count, length, tokens, index.to(device), mask.to(device))


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
    kernel = {
        "scale": options.get("scaling"),
        "dropout_p": options.get("dropout", 0.0),
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    parts = [_attend(group, (query[0], key[0], value[0]), causal, kernel) for group in packing.groups]
    return torch.cat(parts)[None], None


def _attend(group: Group, row: tuple[Tensor, Tensor, Tensor], causal: bool, kernel: dict[str, Any]) -> Tensor:
    """Attention of one group, float (tokens of the group, H, E)."""
    if group.index is None:
        tokens, shape = slice(group.start, group.start + group.tokens), (group.count, group.length)
        parts = [part[:, tokens].unflatten(1, shape).transpose(0, 1) for part in row]
    else:
        parts = [part[:, group.index].transpose(0, 1) for part in row]
    # Behind right padding a causal text cannot see the padding, so it needs no mask; the fast kernels take none.
    mask = None if causal or group.mask is None else group.mask[:, None, None, :]
    out = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=causal, **kernel)
    by_text = out.transpose(1, 2)  # (count, length, H, E)
    return by_text.flatten(0, 1) if group.mask is None else by_text[group.mask]


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
