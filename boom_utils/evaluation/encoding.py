"""An encoder as mteb asks it: one task's prompt, and texts in blocks.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

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


class Ensemble:
    """Several encoders as one: the mean of their embeddings, of length 1 where theirs are.

    Args:
        encoders: Each gets the same texts and prompts as if it was alone.

    Raises:
        EvaluationError: They differ in dimension, normalisation, or how two embeddings are compared.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        kinds = {(one.dimension, one.spec.normalize, one.spec.similarity) for one in encoders}
        if len(kinds) > 1:
            shown = [f"{size} dimensions, normalize {unit}, {kind}" for size, unit, kind in sorted(kinds)]
            what, fix = "embeddings of these models have no mean", "put models of one base into an ensemble"
            raise EvaluationError(what, expected="one dimension, normalisation and similarity", found=shown, fix=fix)
        self.encoders, self.spec = encoders, encoders[0].spec

    def encode(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """Mean embeddings of texts, float32 (N, D)."""
        mean_ND = np.mean([one.encode(texts, prompt) for one in self.encoders], axis=0, dtype=np.float32)
        if self.spec.normalize:
            mean_ND /= np.maximum(np.linalg.norm(mean_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return np.asarray(mean_ND)


class MtebEncoder:
    """An `Encoder` behind mteb's encoder protocol, with one task's prompt.

    Args:
        encoder: The model, or several.
        meta: Its mteb metadata (name and content-hash revision).
        prompt: Put before queries; before every text where ``prompt_documents``.
        prompt_documents: True where every text of a task is a query.
        passage_prompt: Put before documents otherwise.
    """

    def __init__(
        self,
        encoder: Encoder | Ensemble,
        meta: ModelMeta,
        prompt: str,
        *,
        prompt_documents: bool,
        passage_prompt: str = "",
    ) -> None:
        self.encoder, self.mteb_model_meta, self.prompt = encoder, meta, prompt
        self.document_prompt = prompt if prompt_documents else passage_prompt
        self.similarity_name = getattr(getattr(encoder, "spec", None), "similarity", "cosine")
        self.similarity, self.similarity_pairwise = similarities(self.similarity_name)

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
            vectors_ND = self.encoder.encode(texts, prompt)
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
