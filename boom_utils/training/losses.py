"""InfoNCE, with in-batch negatives or with each row's own negatives only.

Shapes: Q queries, G passages a query (its positive first), P = Q * G passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def info_nce(
    queries_QD: Tensor,
    passages_PD: Tensor,
    temperature: float,
    *,
    in_batch_negatives: bool = True,
    false_negatives_QP: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each query's positive among its candidates, averaged over queries.

    Passages stand in groups of G = P / Q, one group a query, the positive first. With in-batch negatives a query is
    compared with all P passages, otherwise with its own G (FlagEmbedding's two losses).

    Args:
        queries_QD: float (Q, D), unit length.
        passages_PD: float (Q * G, D), unit length.
        temperature: Divides the inner products; 0.02 in the paper.
        in_batch_negatives: False for datasets whose other rows may share the label.
        false_negatives_QP: bool (Q, P), candidates to leave out; see `false_negatives`. None compares with all.

    Returns:
        float scalar, in the precision of the embeddings.

    Raises:
        ValueError: P is not a multiple of Q.

    >>> queries = torch.eye(2)
    >>> round(float(info_nce(queries, queries, temperature=1.0)), 4)  # log(1 + 1/e): one negative each
    0.3133
    """
    count_Q, count_P = len(queries_QD), len(passages_PD)
    if count_Q == 0 or count_P % count_Q:
        raise ValueError(f"{count_P} passages do not divide into groups for {count_Q} queries")
    group, rows_Q = count_P // count_Q, torch.arange(count_Q, device=queries_QD.device)
    if in_batch_negatives:
        scores, targets_Q = queries_QD @ passages_PD.T / temperature, rows_Q * group
    else:
        scores = torch.einsum("qd,qgd->qg", queries_QD, passages_PD.view(count_Q, group, -1)) / temperature
        targets_Q = torch.zeros_like(rows_Q)
    if false_negatives_QP is not None:
        mask = false_negatives_QP
        if not in_batch_negatives:
            mask = mask.view(count_Q, count_Q, group)[rows_Q, rows_Q]
        scores = scores.masked_fill(mask, float("-inf"))
    return torch.nn.functional.cross_entropy(scores, targets_Q)


def false_negatives(passages: Sequence[np.ndarray], group: int) -> Tensor:
    """Candidates whose text is the text of the query's positive: right answers that would count as wrong.

    The paper does not mask them; the option is off by default. Where a text repeats, a query keeps its own positive
    and leaves out the other copies.

    Args:
        passages: Token ids of the P passages, groups of ``group``, the positive first.
        group: G.

    Returns:
        bool (Q, P) on CPU.
    """
    numbers: dict[bytes, int] = {}
    text_P = torch.tensor([numbers.setdefault(np.asarray(ids).tobytes(), len(numbers)) for ids in passages])
    positions_Q = torch.arange(0, len(passages), group)
    mask_QP = text_P[positions_Q][:, None] == text_P[None, :]
    mask_QP[torch.arange(len(positions_Q)), positions_Q] = False
    return mask_QP
