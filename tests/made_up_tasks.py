"""Made-up tasks of mteb with known answers, registered nowhere, and an encoder that reads embeddings off a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb  # before any test: importing it seeds the global random generators
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTask

from boom_utils.evaluation import benchmarks, run
from boom_utils.evaluation.benchmarks import BenchmarkTask, find_benchmarks, random_state_kept

NAME = "made-up"


class Words:
    """An encoder whose embedding of a text is read off its numbers: ``3 4`` -> (3, 4) scaled to length 1."""

    calls = 0

    def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:
        self.calls += 1
        vectors = np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def task_class(kind: type[AbsTask], mteb_type: str, main_score: str, data: Any, **more: Any) -> type[AbsTask]:
    """A class of mteb's whose data are given; ``languages``, ``splits`` and ``name`` go into its metadata."""
    languages, splits = more.pop("languages", ["eng-Latn"]), more.pop("splits", ["test"])
    name = more.pop("name", f"MadeUp{mteb_type}")
    metadata = TaskMetadata(
        name=name,
        description="made up",
        dataset={"path": f"made-up/{name.lower()}", "revision": "1" * 40},
        type=mteb_type,
        category="t2t",
        eval_splits=splits,
        eval_langs=languages,
        main_score=main_score,
        prompt=more.pop("prompt", None),
    )

    def load_data(self: Any, num_proc: int | None = None, **_: Any) -> None:
        self.dataset = data() if callable(data) else data
        self.data_loaded = True

    return type(name, (kind,), {"metadata": metadata, "load_data": load_data, **more})


def retrieval_split(judged: Mapping[str, str], queries: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Documents a, b, c, of which ``1 0.1`` finds a first, b second, c third."""
    texts = queries or dict.fromkeys(judged, "1 0.1")
    documents = (("a", "1 0"), ("b", "1 1"), ("c", "0 1"))
    return {
        "corpus": Dataset.from_list([{"id": one, "title": "", "text": text} for one, text in documents]),
        "queries": Dataset.from_list([{"id": one, "text": text} for one, text in texts.items()]),
        "relevant_docs": {query: {document: 1} for query, document in judged.items()},
        "top_ranked": None,
    }


def rows(*columns: str, values: Sequence[Sequence[Any]]) -> DatasetDict:
    """One split ``test``."""
    return DatasetDict({"test": Dataset.from_list([dict(zip(columns, row, strict=True)) for row in values])})


def benchmark(patch: pytest.MonkeyPatch, *classes: type[AbsTask], name: str = NAME) -> dict[str, BenchmarkTask]:
    """Make mteb know one benchmark more, and give its tasks."""
    known = mteb.get_benchmark

    def found(asked: str) -> Any:
        with random_state_kept():
            made = [one() for one in classes]
            return mteb.Benchmark(name=name, tasks=made) if asked == name else known(asked)

    patch.setattr(mteb, "get_benchmark", found)
    patch.setattr(benchmarks, "_tasks_of", benchmarks._asked)  # nothing of it is remembered
    return dict(find_benchmarks([name]).tasks)


def use_words(patch: pytest.MonkeyPatch, encoder: Any = None) -> Any:
    """Score this encoder whatever folder is named."""
    encoder = encoder or Words()
    patch.setattr(run, "_loaded", lambda *_: (encoder, "0" * 40))
    return encoder


def scored(patch: pytest.MonkeyPatch, made: type[AbsTask], out: Path, encoder: Any = None) -> dict[str, Any]:
    """Facts of the score of `Words`, or of an encoder, on one made-up task."""
    use_words(patch, encoder)
    (task,) = benchmark(patch, made).values()
    return run.evaluate_task("mock", out, task, out)
