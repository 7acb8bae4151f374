"""The corpus' held-out sets as mteb tasks, each of which also keeps the values behind its score.

mteb does the scoring; these classes only override ``load_data`` and listen where mteb has per-query values in hand, so
that intervals can be made by resampling queries, pairs, test rows or clustering experiments. The global seeds mteb's
own loaders set are not touched: nothing is downloaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTask

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.data.examples import read_jsonl
from boom_utils.errors import DataError, EvaluationError
from boom_utils.evaluation.listening import (
    KeepsExperiments,
    KeepsLabelledPairs,
    KeepsPairs,
    KeepsQueries,
    KeepsTestRows,
    Samples,
)

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
        description: For mteb's metadata.
    """

    name: str
    kind: str
    folder: Path
    prompt: str = ""
    description: str = "Held-out examples of a corpus of the BOOM kit"

    @property
    def size(self) -> int:
        """How much there is to encode, about: bytes."""
        return sum(path.stat().st_size for path in self.folder.glob("*.jsonl"))


def build_task(task: LocalTask) -> AbsTask:
    """The mteb task of a local one; its ``samples`` hold the values behind the score after evaluation.

    Kinds: ``retrieval``, ``code`` and ``code_retrieval`` (the same thing), ``reranking``, ``classification``,
    ``clustering``, ``sts``, ``pair_classification``.

    Raises:
        EvaluationError: A kind without a task class, files that are missing, or rows that contradict each other.
    """
    if task.kind not in _KINDS:
        raise EvaluationError(f"no task class for '{task.kind}'", where=task.name, expected=sorted(_KINDS))
    if not task.folder.is_dir():
        raise EvaluationError("the evaluation set is missing", where=task.folder, fix="make the examples again")
    kind, mteb_type, metric = _KINDS[task.kind]
    missing = [f"{name}.jsonl" for name in kind.files if not (task.folder / f"{name}.jsonl").is_file()]
    if missing:
        raise EvaluationError(
            f"an evaluation set of {task.kind} lacks files",
            where=task.folder,
            found=f"no {', '.join(missing)}",
            fix="make the examples again",
        )
    # mteb drops the metadata an instance carries once it is scored, so each task is a class of its own.
    bound = {"metadata": _metadata(task, mteb_type, metric), "folder": task.folder, "samples": Samples(metric)}
    return type(kind.__name__, (kind,), bound)()


def _metadata(task: LocalTask, kind: str, main_score: str) -> TaskMetadata:
    files = {path.name: sha256_file(path) for path in sorted(task.folder.iterdir())}
    return TaskMetadata(
        name=task.name,
        description=task.description,
        dataset={"path": f"boom/{task.name}", "revision": digest_of(files)[:40]},
        type=kind,
        category="t2t",
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


def _rows(folder: Path, name: str, *keys: str) -> list[dict[str, Any]]:
    """Rows of ``name``.jsonl, each with all of ``keys`` and no number that is not finite."""
    path = folder / f"{name}.jsonl"
    try:
        rows = read_jsonl(path)
    except DataError as error:
        raise EvaluationError("an evaluation set cannot be read", where=path, found=error) from error
    _refuse(
        path,
        (f"line {line}: no '{key}'" for line, row in enumerate(rows, 1) for key in keys if row.get(key) is None),
    )
    if not rows:
        raise EvaluationError("an evaluation set is empty", where=path, fix="make the examples again")
    return rows


def _refuse(where: Path, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        more = "" if len(found) <= 5 else f"; and {len(found) - 5} more"
        raise EvaluationError("an evaluation set is not usable", where=where, found="; ".join(found[:5]) + more)


class LocalRetrieval(KeepsQueries):
    """Retrieval over corpus.jsonl, queries.jsonl and qrels.jsonl; keeps nDCG@10 of every query."""

    files: tuple[str, ...] = ("corpus", "queries", "qrels")
    folder: Path

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the files; a judgement without ``score`` counts 1."""
        corpus, queries = (_rows(self.folder, name, "id", "text") for name in ("corpus", "queries"))
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for row in _rows(self.folder, "qrels", "query", "document"):
            relevant[row["query"]][row["document"]] = int(row.get("score", 1))
        known = {row["id"] for row in corpus}, {row["id"] for row in queries}
        _refuse(self.folder, _unknown(relevant, *known))
        split = {
            "corpus": Dataset.from_list([{"title": "", **row} for row in corpus]),
            "queries": Dataset.from_list(queries),
            "relevant_docs": dict(relevant),
            "top_ranked": self.candidates(relevant, *known),
        }
        self.dataset = {"default": {SPLIT: split}}
        self.data_loaded = True

    def candidates(
        self, relevant: Mapping[str, Any], documents: set[str], queries: set[str]
    ) -> dict[str, list[str]] | None:
        """The documents to rank for every query; None ranks them all."""
        return None


class LocalReranking(LocalRetrieval):
    """Retrieval among the documents that top_ranked.jsonl gives for a query; keeps MAP@1000 of every query."""

    files = (*LocalRetrieval.files, "top_ranked")

    def candidates(self, relevant: Mapping[str, Any], documents: set[str], queries: set[str]) -> dict[str, list[str]]:
        """The documents to rank; a judged query without any would silently be left out of the mean."""
        rows = _rows(self.folder, "top_ranked", "query", "documents")
        ranked = {row["query"]: list(row["documents"]) for row in rows}
        problems = [f"query '{query}' has no documents to rank" for query in relevant if not ranked.get(query)]
        _refuse(self.folder / "top_ranked.jsonl", [*problems, *_unknown(ranked, documents, queries)])
        return ranked


def _unknown(named: Mapping[str, Iterable[str]], documents: set[str], queries: set[str]) -> list[str]:
    """One sentence for every query and document that is named without being there."""
    problems = [f"there is no query '{query}'" for query in named if query not in queries]
    return problems + [f"there is no document '{d}'" for found in named.values() for d in found if d not in documents]


class LocalClassification(KeepsTestRows):
    """Classification over train.jsonl and test.jsonl; keeps, for every test row, its share of correct experiments."""

    files = ("train", SPLIT)
    folder: Path

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the two files."""
        splits = {name: Dataset.from_list(_rows(self.folder, name, "text", "label")) for name in self.files}
        self.dataset = DatasetDict(splits)
        self.data_loaded = True


class LocalClustering(KeepsExperiments):
    """Clustering of test.jsonl: mteb draws texts with replacement and clusters them with k-means, a hundred times.

    Every draw of texts is clustered twice, so that what k-means does to a score is not taken for what other texts do.

    Kept is the V-measure of every experiment. It is not adjusted for chance, and a text drawn twice lands in the same
    cluster: with few texts a label, even random embeddings score well above 0. All models of a task get the same draws
    of texts, so differences of two models are paired by experiment.
    """

    files = (SPLIT,)
    input_column_name = "text"
    label_column_name = "label"
    max_fraction_of_documents_to_embed = None
    n_clusters, clustered = EXPERIMENTS, 2
    folder: Path

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the file; no more texts are drawn for an experiment than there are."""
        rows = [{"text": row["text"], "label": int(row["label"])} for row in _rows(self.folder, SPLIT, "text", "label")]
        _refuse(self.folder, ["all texts have the same label"] if len({row["label"] for row in rows}) < 2 else [])
        self.max_documents_per_cluster = min(len(rows), CLUSTERED_TEXTS)
        self.dataset = {"default": {SPLIT: Dataset.from_list(rows)}}
        self.data_loaded = True


class LocalSTS(KeepsPairs):
    """STS over test.jsonl with scores from 0 to 5; keeps gold and predicted similarity of every pair."""

    files = (SPLIT,)
    folder: Path
    min_score = 0
    max_score = 5

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the file."""
        rows = _rows(self.folder, SPLIT, "sentence1", "sentence2", "score")
        self.dataset = {"default": {SPLIT: Dataset.from_list(rows)}}
        self.data_loaded = True


class LocalPairClassification(KeepsLabelledPairs):
    """Pairs of test.jsonl with label 0 or 1; keeps the label and every similarity mteb tries (the best one counts)."""

    files = (SPLIT,)
    label_column_name = "label"
    folder: Path

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the file."""
        rows = _rows(self.folder, SPLIT, "sentence1", "sentence2", "label")
        labels = {row["label"] for row in rows}
        _refuse(self.folder, [] if labels == {0, 1} else [f"labels are {sorted(labels)}, expected 0 and 1"])
        self.dataset = {"default": {SPLIT: Dataset.from_list(rows)}}
        self.data_loaded = True


_KINDS: dict[str, tuple[Any, str, str]] = {
    "retrieval": (LocalRetrieval, "Retrieval", "ndcg_at_10"),
    "code": (LocalRetrieval, "Retrieval", "ndcg_at_10"),
    "code_retrieval": (LocalRetrieval, "Retrieval", "ndcg_at_10"),
    "reranking": (LocalReranking, "Reranking", "map_at_1000"),
    "classification": (LocalClassification, "Classification", "accuracy"),
    "clustering": (LocalClustering, "Clustering", "v_measure"),
    "sts": (LocalSTS, "STS", "cosine_spearman"),
    "pair_classification": (LocalPairClassification, "PairClassification", "max_ap"),
}
