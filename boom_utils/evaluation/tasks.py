"""The corpus' held-out sets as mteb tasks: mteb does the scoring, these classes only override ``load_data``."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.data.examples import read_jsonl
from boom_utils.errors import DataError, EvaluationError
from boom_utils.evaluation.samples import keeping_class

SPLIT = "test"
CLUSTERED_TEXTS = 2048
"""Most texts of one clustering experiment (mteb's default, 16384, suits larger sets)."""
EXPERIMENTS = 100
"""Clustering experiments of a task: mteb's ten say little of how far other texts would move a score."""


@dataclass(frozen=True)
class LocalTask:
    """One held-out set of a corpus.

    Args:
        name: Name in tables and results.
        kind: How it is scored: one of the kinds of `build_task`.
        folder: Its files, as `boom_utils.data` writes them.
        prompt: Text put before queries (retrieval, reranking), before every text (the other kinds).
    """

    name: str
    kind: str
    folder: Path
    prompt: str = ""


def build_task(task: LocalTask) -> AbsTask:
    """The mteb task of a local one; its ``samples`` hold the values behind the score after evaluation.

    Kinds: ``retrieval``, ``code`` and ``code_retrieval`` (the same thing), ``reranking``, ``classification``,
    ``clustering``, ``sts``, ``pair_classification``.

    Raises:
        EvaluationError: A kind without a task class, or the set is missing. Loading it: files that are no such set.
    """
    if task.kind not in _KINDS:
        raise EvaluationError(f"no task class for '{task.kind}'", where=task.name, expected=sorted(_KINDS))
    if not task.folder.is_dir():
        raise EvaluationError("the evaluation set is missing", where=task.folder, fix="make the examples again")
    base, mteb_type, metric, names = _KINDS[task.kind]
    files = {path.name: sha256_file(path) for path in sorted(task.folder.iterdir())}
    metadata = TaskMetadata(
        name=task.name,
        description="Held-out examples of a corpus of the BOOM kit",
        dataset={"path": f"boom/{task.name}", "revision": digest_of(files)[:40]},
        type=mteb_type,
        category="t2t",
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score=metric,
    )
    # mteb drops the metadata an instance carries once it is scored, so each task is a class of its own.
    bound = {"metadata": metadata, "folder": task.folder, "files": names}
    bases = (base,) if issubclass(base, _Local) else (_Local, base)
    return keeping_class(type(base.__name__, bases, bound))()


class _Local(AbsTask):  # type: ignore[misc]
    folder: Path
    files: tuple[str, ...]
    label_column_name = "label"

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the files.

        Raises:
            EvaluationError: They cannot be read, or are no set of this kind.
        """
        try:
            rows = {name: read_jsonl(self.folder / f"{name}.jsonl") for name in self.files}
            self.dataset = {"default": self.splits(rows)}
        except (DataError, OSError, KeyError, TypeError, ValueError) as error:
            fix = "make the examples again"
            raise EvaluationError("an evaluation set is not usable", where=self.folder, found=error, fix=fix) from error
        self.data_loaded = True

    def splits(self, rows: dict[str, list[dict[str, Any]]]) -> Any:
        """What mteb calls splits, of the rows of each file."""
        labels = {row.get("label") for row in rows[SPLIT]}
        if len(labels) == 1 and labels != {None}:
            raise ValueError("all texts or pairs have the same label")  # every model would have the same score
        return DatasetDict({name: Dataset.from_list(found) for name, found in rows.items()})


class LocalRetrieval(_Local, AbsTaskRetrieval):  # type: ignore[misc]
    """Retrieval, or reranking where there are candidates; a judgement without ``score`` counts 1."""

    def splits(self, rows: dict[str, list[dict[str, Any]]]) -> Any:
        """As mteb has them: documents, queries, judgements, and the documents to rank for every query."""
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for row in rows["qrels"]:
            relevant[row["query"]][row["document"]] = int(row.get("score", 1))
        ranked = {row["query"]: list(row["documents"]) for row in rows["top_ranked"]} if "top_ranked" in rows else None
        if unranked := [] if ranked is None else [query for query in relevant if not ranked.get(query)]:
            raise ValueError(f"no documents to rank for {', '.join(unranked[:5])}")  # mteb would leave them out
        corpus = Dataset.from_list([{"title": "", **row} for row in rows["corpus"]])
        queries = Dataset.from_list(rows["queries"])
        return {SPLIT: {"corpus": corpus, "queries": queries, "relevant_docs": dict(relevant), "top_ranked": ranked}}


class LocalClustering(_Local, AbsTaskClustering):  # type: ignore[misc]
    """Clustering of test.jsonl: mteb draws texts with replacement and clusters them with k-means, a hundred times.

    Every draw of texts is clustered twice, so that what k-means does to a score is not taken for what other texts do.

    The V-measure is not adjusted for chance, and a text drawn twice lands in the same cluster: with few texts a label,
    even random embeddings score well above 0. All models of a task get the same draws of texts, so differences of two
    models are paired by experiment.
    """

    input_column_name = "text"
    max_fraction_of_documents_to_embed = None
    n_clusters, draws_twice = EXPERIMENTS, True

    def splits(self, rows: dict[str, list[dict[str, Any]]]) -> Any:
        """The texts; no more are drawn for an experiment than there are."""
        self.max_documents_per_cluster = min(len(rows[SPLIT]), CLUSTERED_TEXTS)
        return super().splits(rows)

    def _evaluate_subset(self, *args: Any, **options: Any) -> Any:
        self.rng_state = _Twice(self.seed)
        try:
            return super()._evaluate_subset(*args, **options)
        finally:
            if self.rng_state.threads:
                self.rng_state.threads.restore_original_limits()


class _Twice(random.Random):
    """Draws the same texts twice in a row, the second time in another order: k-means then starts elsewhere.

    From the first draw on one thread is enough: k-means of some hundred texts waits for its threads most of the time.
    """

    last: Sequence[int] = ()
    threads: Any = None

    def choices(self, population: Any, *args: Any, **options: Any) -> list[Any]:
        """New ones, or the last ones in another order."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.threads = self.threads or threadpool_limits(1)
        again, self.last = self.last, ()
        if again:
            return self.sample(again, len(again))
        self.last = super().choices(population, *args, **options)
        return [*self.last]


_RETRIEVAL = ("corpus", "queries", "qrels")
_KINDS: dict[str, tuple[Any, str, str, tuple[str, ...]]] = {
    **dict.fromkeys(("retrieval", "code", "code_retrieval"), (LocalRetrieval, "Retrieval", "ndcg_at_10", _RETRIEVAL)),
    "reranking": (LocalRetrieval, "Reranking", "map_at_1000", (*_RETRIEVAL, "top_ranked")),
    "classification": (AbsTaskClassification, "Classification", "accuracy", ("train", SPLIT)),
    "clustering": (LocalClustering, "Clustering", "v_measure", (SPLIT,)),
    "sts": (AbsTaskSTS, "STS", "cosine_spearman", (SPLIT,)),  # scores from 0 to 5
    "pair_classification": (AbsTaskPairClassification, "PairClassification", "max_ap", (SPLIT,)),
}
"""Kind -> class, mteb's name of the kind and of its main score, and the files of a set (``.jsonl``)."""
