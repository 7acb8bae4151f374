"""Packed forward passes: the same embeddings and gradients as padded ones, and never where they would not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_config
from transformers import AutoModel, BertConfig, Gemma3TextConfig, Qwen3Config, RobertaConfig

from boom_utils.errors import CheckpointError
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder

SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
SMALL: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA: dict[str, Any] = {
    **SMALL,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 40,  # the scale of attention is not that of its heads
    "layer_types": ["sliding_attention", "full_attention"],
}


def build(kind: str) -> Encoder:
    """A small encoder of that architecture around the tokenizer of the tiny Qwen3."""
    tiny = random_encoder(TEXTS, tiny_config(), {})
    if kind == "qwen":
        return tiny
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "head_dim": 16}
    config = {
        "bert": BertConfig(**SMALL),
        "gemma": Gemma3TextConfig(**GEMMA, sliding_window=48),
        "gemma with a shorter window": Gemma3TextConfig(**GEMMA, sliding_window=47),
        "roberta": RobertaConfig(**SMALL, pad_token_id=0),
        "qwen with a sliding window": Qwen3Config(**SMALL, **sliding, num_key_value_heads=1),
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModel.from_config(config)
    spec = EncoderSpec("lasttoken" if "qwen" in kind or "gemma" in kind else "mean", True, 48)
    return Encoder(model.eval(), tiny.tokenizer, spec)


def ragged(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 250, length).astype(np.int32) for length in (7, 1, 23, 7, 12, 7, 30, 2)]


def gradient_of(encoder: Encoder, packed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    encoder.use_packing(packed)
    encoder.transformer.zero_grad()
    vectors = encoder.embed(ragged(), 50)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    gradients = [p.grad.flatten() for p in encoder.transformer.parameters() if p.grad is not None]
    return vectors.detach(), torch.cat(gradients)


@pytest.mark.promise(15)
@pytest.mark.parametrize("kind", ["qwen", "bert", "gemma"])
def test_packed_embeddings_and_gradients_are_the_padded_ones(kind: str) -> None:
    encoder = build(kind)
    encoder.transformer.train()
    assert encoder.packs and encoder.transformer.training  # tried on CPU without being asked
    encoder.transformer.eval()
    (packed, packed_gradient), (padded, padded_gradient) = (gradient_of(encoder, flag) for flag in (True, False))
    assert torch.allclose(packed, padded, atol=2e-6)
    assert float((packed_gradient - padded_gradient).norm() / padded_gradient.norm()) < 5e-6


def test_packed_gradients_of_a_sliding_decoder_are_the_padded_ones_to_the_rounding_of_half_precision() -> None:
    encoder = build("gemma")
    reference = gradient_of(encoder, False)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (_, packed), (_, padded) = (gradient_of(encoder, flag) for flag in (True, False))
    rounding = float((padded - reference).norm() / reference.norm())
    assert 0 < float((packed - reference).norm() / reference.norm()) < 2 * rounding


@pytest.mark.parametrize("kind", ["roberta", "qwen with a sliding window", "gemma with a shorter window"])
def test_a_model_whose_embeddings_would_change_is_padded_and_cannot_be_made_to_pack(kind: str) -> None:
    half = build(kind)
    half.transformer.bfloat16()
    assert not half.packs, "seen in half precision too"
    encoder = build(kind)
    alone = torch.cat([encoder._embed_padded([text]) for text in ragged()]).detach()
    assert not encoder.packs
    assert torch.allclose(encoder.embed(ragged(), 50).detach(), alone, atol=2e-6)
    with pytest.raises(CheckpointError, match="cannot be packed"):
        encoder.use_packing(True)
    assert torch.allclose(encoder.embed(ragged(), 50).detach(), alone, atol=2e-6), "still works, padded"


@pytest.mark.promise(15)
@pytest.mark.parametrize("kind", ["qwen", "bert"])
def test_the_kernel_for_texts_of_any_lengths_gets_what_makes_padded_embeddings_and_gradients(
    kind: str, flash_on_cpu: list[tuple[Any, ...]]
) -> None:
    encoder = build(kind)
    encoder.transformer.double()
    (packed, packed_gradient), (padded, padded_gradient) = (gradient_of(encoder, flag) for flag in (True, False))
    assert torch.allclose(packed, padded, rtol=0, atol=1e-6)
    assert float((packed_gradient - padded_gradient).norm() / padded_gradient.norm()) < 1e-6
    causal, heads = kind == "qwen", 1 if kind == "qwen" else 2
    micro_batches = [given for given in flash_on_cpu if given[0][0] > 16]  # without the two texts that are tried
    assert {given[0] for given in micro_batches} == {(30, 2, 16), (49, 2, 16)}  # and one of 10 tokens
    for q, k, starts, longest, *more in micro_batches:
        assert k == (q[0], heads, 16)
        assert starts.dtype == torch.int32
        assert starts[0] == 0 and starts[-1] == q[0] and longest == int(starts.diff().max())
        assert more == [longest, causal, [-1, 0 if causal else -1], causal]
    assert len({id(given[2]) for given in micro_batches}) == 2, "lengths are added up once a pass, not once a layer"


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["qwen", "bert"])
def test_on_cuda_texts_are_packed_and_the_kernel_gives_the_padded_gradient_to_its_rounding(kind: str) -> None:
    encoder = build(kind)
    encoder.to("cuda")
    assert encoder.packs
    reference = gradient_of(encoder, False)[1]
    half = build(kind)
    half.transformer.bfloat16()
    half.to("cuda")
    assert half.packs
    with torch.autocast("cuda", dtype=torch.bfloat16):
        (_, packed), (_, padded) = (gradient_of(encoder, flag) for flag in (True, False))
    rounding = float((padded - reference).norm() / reference.norm())
    assert float((packed - reference).norm() / reference.norm()) < max(2 * rounding, 1e-2)
