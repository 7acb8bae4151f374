"""Encoding for mteb: the same bytes with and without the cache, one pass over shared texts, blocks of a stream."""

from __future__ import annotations

from dataclasses import replace

import mteb  # noqa: F401  before any test: importing it seeds the global random generators
import numpy as np
import pytest
from conftest import TEXTS
from made_up_tasks import Words
from mteb.models import ModelMeta
from mteb.types import PromptType

from boom_utils.errors import EvaluationError
from boom_utils.evaluation import encoding
from boom_utils.evaluation.encoding import EmbeddingCache, MtebEncoder
from boom_utils.models import Encoder

META = ModelMeta.create_empty({"name": "boom/m", "revision": "0" * 40})


def batches(texts: list[str], size: int = 3) -> list[dict[str, list[str]]]:
    return [{"text": texts[place : place + size]} for place in range(0, len(texts), size)]


def numbers(count: int) -> list[str]:
    return [f"1 {number}" for number in range(count)]


def test_embeddings_are_the_same_bytes_with_and_without_the_cache(encoder: Encoder) -> None:
    texts = TEXTS * 3
    plain = encoder.encode(texts, "find: ")
    cache = EmbeddingCache()
    for _ in range(2):
        assert cache.encode(encoder, texts, "find: ", None).tobytes() == plain.tobytes()
    wrapped = MtebEncoder(encoder, META, "find: ", prompt_documents=False)
    assert wrapped.encode(batches(texts)).tobytes() == plain.tobytes()
    assert wrapped.encode(batches(texts), prompt_type=PromptType.document).tobytes() == encoder.encode(texts).tobytes()


def test_two_tasks_over_the_same_documents_encode_them_once() -> None:
    encoder = Words()
    tasks = [MtebEncoder(encoder, META, prompt, prompt_documents=False) for prompt in ("one: ", "two: ")]
    found = [task.encode(batches(numbers(5)), prompt_type=PromptType.document) for task in tasks]
    assert encoder.calls == 1 and np.array_equal(*found)
    for task in tasks:
        task.encode(batches(numbers(5)), prompt_type=PromptType.query)
    assert encoder.calls == 3  # another prompt is another text
    MtebEncoder(Words(), META, "", prompt_documents=False).encode(batches(numbers(5)))
    assert encoder.calls == 3


def test_the_cache_stays_within_its_size_and_forgets_the_least_recently_used() -> None:
    encoder, cache = Words(), EmbeddingCache(size=2 * 4 * 2 * 4)  # two blocks of four texts, two float32 each
    for texts in (["1 0"] * 4, ["1 1"] * 4, ["1 0"] * 4, ["1 2"] * 4, ["1 0"] * 4):
        cache.encode(encoder, texts, "", None)
    assert encoder.calls == 3
    cache.encode(encoder, ["1 1"] * 4, "", None)
    cache.encode(encoder, numbers(100), "", None)
    cache.encode(encoder, numbers(100), "", None)  # larger than all of it: never kept
    assert encoder.calls == 6
    assert sum(kept.nbytes for kept in cache._kept.values()) <= cache.size


def test_a_stream_is_encoded_block_by_block_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 8)
    held = []

    class Spy(Words):
        def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:  # type: ignore[override]
            held.append(len(texts))
            return super().encode(texts)

    found = MtebEncoder(Spy(), META, "", prompt_documents=False).encode(iter(batches(numbers(21))))
    assert held == [8, 8, 5] and found.dtype == np.float32
    assert np.array_equal(found, Words().encode(numbers(21)))


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_embeddings_are_compared_as_the_model_says(encoder: Encoder, name: str) -> None:
    from sentence_transformers import SimilarityFunction

    encoder.spec = replace(encoder.spec, similarity=name, normalize=False)
    wrapped, texts = MtebEncoder(encoder, META, "", prompt_documents=False), encoder.encode(TEXTS)
    other = texts[::-1].copy()
    wanted = SimilarityFunction.to_similarity_fn(name)(texts, other)
    assert np.allclose(wrapped.similarity(texts, other), wanted, atol=1e-6)
    assert np.allclose(wrapped.similarity_pairwise(texts, other), np.diag(wanted), atol=1e-6)


def test_documents_get_their_own_prompt_unless_all_texts_are_queries() -> None:
    found = []

    class Spy(Words):
        def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:  # type: ignore[override]
            found.append(prompt)
            return super().encode(texts)

    for symmetric in (False, True):
        task = MtebEncoder(Spy(), META, "query: ", prompt_documents=symmetric, passage_prompt="passage: ")
        task.encode(batches(numbers(2)), prompt_type=PromptType.document)
    assert found == ["passage: ", "query: "]


def test_a_text_that_is_not_finite_is_counted_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 4)
    with pytest.raises(EvaluationError, match="text 6: 'nan 1'"):
        MtebEncoder(Words(), META, "", prompt_documents=False).encode(batches([*numbers(6), "nan 1"]))
