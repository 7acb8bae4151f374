"""An encoder as mteb asks it: one task's prompt, texts in blocks, and no list of texts encoded twice.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType

from boom_utils.errors import EvaluationError
from boom_utils.models import Encoder
from boom_utils.progress import progress

BLOCK = 8192
"""Texts that are tokenised and sorted by length together; of a corpus of millions no more are held at a time."""
Similarity = Callable[[Any, Any], Any]
MOST_KEPT = 2**30
"""Most bytes of embeddings that are kept for the next task."""


class EmbeddingCache:
    """Embeddings of one encoder, by prompt and content of a block of texts; the least recently used ones go first.

    Whole blocks, not single texts: an embedding depends on the texts it shared a forward pass with in its last bits, so
    only the same block in the same order gives the same bytes as encoding anew. Two tasks over one corpus have that.

    Args:
        size: Most bytes that are kept.
    """

    def __init__(self, size: int = MOST_KEPT) -> None:
        self.size = size
        self._kept, self._bytes = OrderedDict[tuple[str, bytes], np.ndarray](), 0

    def encode(self, encoder: Encoder, texts: Sequence[str], prompt: str, tokens_per_batch: int | None) -> np.ndarray:
        """What `Encoder.encode` gives, float32 (N, D); not to be written to."""
        digest = hashlib.sha256()
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        key = (prompt, digest.digest())
        if key not in self._kept:
            vectors_ND = encoder.encode(texts, prompt, tokens_per_batch)
            vectors_ND.flags.writeable = False
            if vectors_ND.nbytes > self.size:
                return vectors_ND
            self._kept[key] = vectors_ND
            self._bytes += vectors_ND.nbytes
            while self._bytes > self.size:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


_CACHES: WeakKeyDictionary[Encoder, EmbeddingCache] = WeakKeyDictionary()
"""An encoder's embeddings go when it goes: weights, length and dtype need not be part of their key."""


class MtebEncoder:
    """An `Encoder` behind mteb's encoder protocol, with one task's prompt.

    Args:
        encoder: The model.
        meta: Its mteb metadata (name and content-hash revision).
        prompt: Put before queries; before every text where ``prompt_documents``.
        prompt_documents: True where every text of a task is a query.
        passage_prompt: Put before documents otherwise.
        tokens_per_batch: Tokens of one forward pass; None: as `Encoder.encode` chooses.
    """

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        prompt: str,
        *,
        prompt_documents: bool,
        passage_prompt: str = "",
        tokens_per_batch: int | None = None,
    ) -> None:
        self.encoder, self.mteb_model_meta = encoder, meta
        self.prompt, self.tokens_per_batch = prompt, tokens_per_batch
        self.document_prompt = prompt if prompt_documents else passage_prompt
        self.similarity_name = getattr(getattr(encoder, "spec", None), "similarity", "cosine")
        self.similarity, self.similarity_pairwise = similarities(self.similarity_name)
        self._cache = _CACHES.setdefault(encoder, EmbeddingCache())

    def encode(self, inputs: Iterable[Any], *, prompt_type: PromptType | None = None, **asked: Any) -> np.ndarray:
        """Embeddings of all batches, float32 (N, D).

        Raises:
            EvaluationError: An embedding is not finite.
        """
        prompt, blocks, done = self.prompt, [], 0
        if prompt_type == PromptType.document:
            prompt = self.document_prompt
        total, task = len(getattr(inputs, "dataset", ())), getattr(asked.get("task_metadata"), "name", "texts")
        for texts in progress(_blocks(inputs), math.ceil(total / BLOCK), f"encode {task}", every_seconds=60):
            vectors_ND = self._cache.encode(self.encoder, texts, prompt, self.tokens_per_batch)
            if not np.isfinite(vectors_ND).all():
                row = int(np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))[0])
                where = f"text {done + row}: {texts[row][:80]!r}"
                raise EvaluationError("an embedding is not finite", where=where)
            blocks.append(vectors_ND)
            done += len(texts)
        return np.concatenate(blocks) if blocks else self.encoder.encode([])


def similarities(name: str) -> tuple[Similarity, Similarity]:
    """How a model compares embeddings: of every pair, (N1, N2), and row by row, (N,)."""
    if name == "cosine":
        return cos_sim, pairwise_cos_sim
    from sentence_transformers import SimilarityFunction

    return SimilarityFunction.to_similarity_fn(name), SimilarityFunction.to_similarity_pairwise_fn(name)


def _blocks(inputs: Iterable[Any]) -> Iterator[list[str]]:
    """Texts of batches, `BLOCK` at a time."""
    texts = chain.from_iterable(batch["text"] for batch in inputs)
    return iter(lambda: list(islice(texts, BLOCK)), [])
