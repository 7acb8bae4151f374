"""Score one encoder on one task with mteb, and keep the values behind the score.

The revision mteb files a score under is the content hash of everything it depends on (weights, tokenizer, prompts,
pooling, normalisation, length, dtype): mteb tells scores apart by revision alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType

from boom_utils.artifacts import write_json
from boom_utils.errors import EvaluationError
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.evaluation.tasks import LocalTask, Samples, build_task
from boom_utils.model_folder import content_hash
from boom_utils.models import Encoder

SYMMETRIC = ("classification", "clustering", "sts", "pair_classification")
"""Kinds of tasks all of whose texts are queries: every text gets the prompt."""


class MtebEncoder:
    """An `Encoder` behind mteb's encoder protocol, with one task's prompt.

    Args:
        encoder: The model.
        meta: Its mteb metadata (name and content-hash revision).
        prompt: Put before queries; before every text where ``prompt_documents``.
        prompt_documents: True for the kinds of `SYMMETRIC`.
        tokens_per_batch: Tokens of one forward pass; None: as `Encoder.encode` chooses.
    """

    def __init__(
        self,
        encoder: Encoder,
        meta: ModelMeta,
        prompt: str,
        *,
        prompt_documents: bool,
        tokens_per_batch: int | None = None,
    ) -> None:
        self.encoder, self.mteb_model_meta = encoder, meta
        self.prompt, self.prompt_documents, self.tokens_per_batch = prompt, prompt_documents, tokens_per_batch

    def encode(self, inputs: Iterable[Any], *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Embeddings of all batches, float32 (N, D).

        Raises:
            EvaluationError: An embedding is not finite.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        plain = prompt_type == PromptType.document and not self.prompt_documents
        vectors_ND = self.encoder.encode(texts, "" if plain else self.prompt, self.tokens_per_batch)
        if not np.isfinite(vectors_ND).all():
            row = int(np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))[0])
            raise EvaluationError("an embedding is not finite", where=f"text {row}: {texts[row][:80]!r}")
        return vectors_ND

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every pair, (N1, N2)."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine row by row, (N,)."""
        return pairwise_cos_sim(embeddings1, embeddings2)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global generators back as they were: mteb seeds all three when a task is made, and draws from them."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Encoder, str]:
    """The encoder of a folder and its content hash; the last one stays loaded for the next task."""
    return Encoder.load(folder), content_hash(folder)


def evaluate_task(model: str, folder: Path, task: LocalTask, out: Path) -> dict[str, Any]:
    """Score the encoder in ``folder`` on one task; write mteb's result JSON and the per-query values to ``out``.

    Args:
        model: Name in tables; mteb's name is ``boom/<model>``.
        folder: An encoder folder that does not change while it exists.
        task: What to score it on.
        out: Gets ``<task>.json`` (mteb's TaskResult) and ``samples.json``.

    Returns:
        Facts: main score, metric, revision, mteb version.

    Raises:
        EvaluationError: mteb failed, or its score and the per-query values disagree.
    """
    encoder, revision = _loaded(folder)
    meta = ModelMeta.create_empty({"name": f"boom/{model}", "revision": revision})
    symmetric = task.kind in SYMMETRIC
    wrapped = MtebEncoder(encoder, meta, task.prompt, prompt_documents=symmetric)
    options: dict[str, Any] = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
    with random_state_kept():
        made = build_task(task)
        result = mteb.evaluate(
            wrapped, made, encode_kwargs={"batch_size": 1024, "show_progress_bar": False}, **options
        ).task_results[0]
    result.to_disk(out / f"{task.name}.json")
    score = float(result.get_score())
    _check_samples(task, score, made.samples)
    write_json(out / "samples.json", asdict(made.samples))
    return {
        "main_score": score,
        "metric": made.samples.metric,
        "samples": len(made.samples.ids),
        "revision": revision,
        "mteb_version": str(result.mteb_version),
        "prompt": task.prompt,
    }


def _check_samples(task: LocalTask, score: float, samples: Samples) -> None:
    """The score made of the kept values must be mteb's (which rounds nDCG, MAP and mean accuracy to 5 digits)."""
    columns = {name: np.asarray(values) for name, values in samples.columns.items()}
    made = TaskSamples(samples.metric, tuple(samples.ids), columns).score()
    # A rank correlation of a constant is NaN for mteb and 0 here.
    if abs(made - score) > 1e-4:
        raise EvaluationError(
            "the values behind the score do not make up mteb's score",
            where=task.name,
            expected=score,
            found=made,
            fix="this mteb version scores differently: use the locked one",
        )
