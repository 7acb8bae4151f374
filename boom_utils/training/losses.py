"""InfoNCE, with in-batch negatives or with each row's own negatives only.

Shapes: Q queries, G passages a query (its positive first), D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(queries_QD: Tensor, passages_PD: Tensor, temperature: float, *, in_batch_negatives: bool = True) -> Tensor:
    """Cross-entropy of each query's positive among its candidates, averaged over queries.

    Passages stand in groups of G = P / Q, one group a query, the positive first. With in-batch negatives a query is
    compared with all P passages, otherwise with its own G (FlagEmbedding's two losses).

    Args:
        queries_QD: float (Q, D), unit length.
        passages_PD: float (Q * G, D), unit length.
        temperature: Divides the inner products; 0.02 in the paper.
        in_batch_negatives: False for datasets whose other rows may share the label.

    Returns:
        float scalar.

    Raises:
        ValueError: P is not a multiple of Q.
    """
    count_Q, count_P = len(queries_QD), len(passages_PD)
    if count_Q == 0 or count_P % count_Q:
        raise ValueError(f"{count_P} passages do not divide into groups for {count_Q} queries")
    group = count_P // count_Q
    if in_batch_negatives:
        scores = queries_QD @ passages_PD.T / temperature
        targets_Q = torch.arange(count_Q, device=scores.device) * group
    else:
        scores = torch.einsum("qd,qgd->qg", queries_QD, passages_PD.view(count_Q, group, -1)) / temperature
        targets_Q = torch.zeros(count_Q, dtype=torch.long, device=scores.device)
    return torch.nn.functional.cross_entropy(scores.float(), targets_Q)
