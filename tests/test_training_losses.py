"""InfoNCE against two loops in float64, sentence-transformers, and FlagEmbedding's two losses by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.training.losses import false_negatives, info_nce


def naive_loss(
    queries: np.ndarray, passages: np.ndarray, temperature: float, in_batch: bool, left_out: np.ndarray | None = None
) -> float:
    """InfoNCE as two loops in float64."""
    group, losses = len(passages) // len(queries), []
    for number, query in enumerate(queries):
        own = range(number * group, (number + 1) * group)
        candidates = list(range(len(passages)) if in_batch else own)
        if left_out is not None:
            candidates = [index for index in candidates if not left_out[number, index]]
        scores = {index: float(query @ passages[index]) / temperature for index in candidates}
        losses.append(np.log(sum(np.exp(score) for score in scores.values())) - scores[own[0]])
    return float(np.mean(losses))


@pytest.mark.promise(15)
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_loss_is_that_of_two_loops_in_float64(in_batch: bool, group: int) -> None:
    rng = np.random.default_rng(group)
    queries, passages = rng.normal(size=(5, 8)), rng.normal(size=(5 * group, 8))
    ours = info_nce(torch.tensor(queries), torch.tensor(passages), 0.7, in_batch_negatives=in_batch)
    assert ours.dtype == torch.float64
    assert float(ours) == pytest.approx(naive_loss(queries, passages, 0.7, in_batch), abs=1e-12)


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_gradient_is_that_of_finite_differences(in_batch: bool) -> None:
    rng = np.random.default_rng(7)
    queries = torch.tensor(rng.normal(size=(3, 4)), requires_grad=True)
    passages = torch.tensor(rng.normal(size=(6, 4)), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, p: info_nce(q, p, 0.5, in_batch_negatives=in_batch), (queries, passages), fast_mode=True
    )


def test_the_loss_is_that_of_sentence_transformers(encoder_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rng = np.random.default_rng(1)
    queries, positives, negatives = (
        torch.nn.functional.normalize(torch.tensor(rng.normal(size=(4, 32)), dtype=torch.float32), dim=-1)
        for _ in range(3)
    )
    peer = MultipleNegativesRankingLoss(SentenceTransformer(str(encoder_folder), device="cpu"), scale=50.0)
    theirs = peer.compute_loss_from_embeddings([queries, positives, negatives], None)
    ours = info_nce(queries, torch.stack([positives, negatives], dim=1).flatten(0, 1), 0.02)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("in_batch", [True, False])
@given(texts=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_masked_false_negatives_do_not_count(in_batch: bool, texts: list[int]) -> None:
    rng = np.random.default_rng(0)
    known, queries = rng.normal(size=(4, 5)), rng.normal(size=(2, 5))
    passages = known[texts]
    mask = false_negatives([np.array([text, 9]) for text in texts], group=3)
    expected = np.array([[texts[j] == texts[3 * i] and j != 3 * i for j in range(6)] for i in range(2)])
    assert np.array_equal(mask.numpy(), expected)
    ours = info_nce(
        torch.tensor(queries), torch.tensor(passages), 0.3, in_batch_negatives=in_batch, false_negatives_QP=mask
    )
    assert float(ours) == pytest.approx(naive_loss(queries, passages, 0.3, in_batch, expected), abs=1e-10)
