"""The corpus' held-out sets as mteb tasks, each of which also keeps the values behind its score.

mteb does the scoring; these classes only override ``load_data`` and listen where mteb has per-query values in hand, so
that intervals can be made by resampling queries, pairs or test rows. The global seeds mteb's own loaders set are not
touched: nothing is downloaded.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb import TaskMetadata
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.errors import EvaluationError

SPLIT = "test"


@dataclass(frozen=True)
class LocalTask:
    """One held-out set of a corpus.

    Args:
        name: Name in tables and results.
        family: ``retrieval``, ``code``, ``classification`` or ``sts``.
        folder: Its files, as `boom_utils.data` writes them.
        prompt: Text put before queries (retrieval), before every text (classification, STS).
        description: For mteb's metadata.
    """

    name: str
    family: str
    folder: Path
    prompt: str = ""
    description: str = "Held-out examples of a corpus of the BOOM kit"


@dataclass
class Samples:
    """What a score is a mean or a correlation of; filled while mteb scores.

    Args:
        metric: ``ndcg_at_10`` or ``accuracy`` (score = mean of ``value``), or ``cosine_spearman`` (rank correlation of
            ``predicted`` with ``gold``).
        ids: Query id, or row number.
        columns: One value an id each.
    """

    metric: str = ""
    ids: list[str] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)


def build_task(task: LocalTask) -> AbsTask:
    """The mteb task of a local one; its ``samples`` hold the per-query values after evaluation.

    Raises:
        EvaluationError: A family without a task class, or files that are missing.
    """
    if task.family not in _KINDS:
        raise EvaluationError(f"no task class for family '{task.family}'", where=task.name, expected=sorted(_KINDS))
    if not task.folder.is_dir():
        raise EvaluationError("the evaluation set is missing", where=task.folder, fix="make the examples again")
    kind, mteb_type, metric = _KINDS[task.family]
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


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class LocalRetrieval(AbsTaskRetrieval):  # type: ignore[misc]
    """Retrieval over corpus.jsonl, queries.jsonl and qrels.jsonl; keeps nDCG@10 of every query."""

    folder: Path
    samples: Samples

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the three files."""
        relevant: dict[str, dict[str, int]] = defaultdict(dict)
        for row in _rows(self.folder / "qrels.jsonl"):
            relevant[row["query"]][row["document"]] = 1
        corpus = [{"title": "", **row} for row in _rows(self.folder / "corpus.jsonl")]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(_rows(self.folder / "queries.jsonl")),
            "relevant_docs": dict(relevant),
            "top_ranked": None,
        }
        self.dataset = {"default": {SPLIT: split}}
        self.data_loaded = True

    def task_specific_scores(self, scores: Mapping[str, Mapping[str, float]], *args: Any, **_: Any) -> dict[str, float]:
        """Keep the per-query scores mteb passes by; adds none."""
        self.samples.ids = sorted(scores)
        self.samples.columns = {"value": [float(scores[query]["ndcg_cut_10"]) for query in self.samples.ids]}
        return {}


class LocalClassification(AbsTaskClassification):  # type: ignore[misc]
    """Classification over train.jsonl and test.jsonl; keeps, for every test row, its share of correct experiments."""

    folder: Path
    samples: Samples
    experiments: Sequence[np.ndarray] = ()

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the two files."""
        splits = {name: Dataset.from_list(_rows(self.folder / f"{name}.jsonl")) for name in ("train", SPLIT)}
        self.dataset = DatasetDict(splits)
        self.data_loaded = True

    def _run_experiment(self, train: Any, test: Any, *args: Any, **kwargs: Any) -> Any:
        scores, predictions = super()._run_experiment(train, test, *args, **kwargs)
        correct = np.asarray(predictions) == np.asarray(test[self.label_column_name])
        self.experiments = [*self.experiments, correct]
        self.samples.ids = [str(row) for row in range(len(correct))]
        self.samples.columns = {"value": np.mean(self.experiments, axis=0).tolist()}
        return scores, predictions


class LocalSTS(AbsTaskSTS):  # type: ignore[misc]
    """STS over test.jsonl with scores from 0 to 5; keeps gold and predicted similarity of every pair."""

    folder: Path
    samples: Samples
    min_score = 0
    max_score = 5

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Read the file."""
        self.dataset = {"default": {SPLIT: Dataset.from_list(_rows(self.folder / f"{SPLIT}.jsonl"))}}
        self.data_loaded = True

    def _calculate_scores(self, scores: Any, normalized_scores: list[float]) -> Any:
        predicted = [float(score) for score in scores["cosine_scores"]]
        self.samples.ids = [str(row) for row in range(len(predicted))]
        self.samples.columns = {"gold": [float(score) for score in normalized_scores], "predicted": predicted}
        return super()._calculate_scores(scores, normalized_scores)


_KINDS: dict[str, tuple[type[AbsTask], str, str]] = {
    "retrieval": (LocalRetrieval, "Retrieval", "ndcg_at_10"),
    "code": (LocalRetrieval, "Retrieval", "ndcg_at_10"),
    "classification": (LocalClassification, "Classification", "accuracy"),
    "sts": (LocalSTS, "STS", "cosine_spearman"),
}
