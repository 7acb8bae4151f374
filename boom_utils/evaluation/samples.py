"""mteb's task classes that also keep the values behind a score: per query, pair, test row or clustering experiment.

mteb does the scoring. `keeping_class` makes a class of a task that takes the predictions mteb would save and turns them
into the values its score is made of, so that intervals can be made of these. A kind without such values keeps the
score of every subset, of which no interval over samples can be made.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets.arrow_dataset import Column
from mteb._evaluators.retrieval_metrics import pytrec_eval
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.text.summarization import AbsTaskSummarization

from boom_utils.evaluation.statistics import DRAW, GOLD, GROUP, SUBSET

Columns = Mapping[str, Sequence[float]]
"""``value``: a score is its mean (nDCG@10, MAP, accuracy, V-measure, rank correlation of one text); ``gold`` and
``predicted``: rank correlation; ``gold`` and several similarities: average precision of pairs; ``subset``: only the
score of the group is known."""
Values = tuple[Sequence[str], Columns]
"""Ids of the samples of one group, and columns of one value an id."""

_PREDICTED = {"cosine_spearman": "cosine_scores", "spearman": "similarity_scores"}
"""Rank correlation -> what mteb makes it of."""
_MERGED = "max_over_subqueries_"
"""Before a main score of retrieval for which mteb first puts the queries of one user together."""
_SIMILARITIES = ("similarity_scores", "cosine_scores", "dot_scores")
_DISTANCES = ("manhattan_distances", "euclidean_distances")


def keeping_class(task: type[AbsTask]) -> type[AbsTask]:
    """A class like ``task`` whose instances keep the values behind their score in ``samples``, by group.

    A group is a split and subset, and of a clustering a level of the hierarchy of labels.
    """
    main = task.metadata.main_score
    one_label = task._evaluate_subset is AbsTaskClassification._evaluate_subset and not task.is_cross_validation
    kinds: list[tuple[type[AbsTask], object, Callable[..., dict[str, Values]]]] = [
        (AbsTaskRetrieval, trec_name(main), _queries),
        (AbsTaskClassification, main == "accuracy" and one_label, _test_rows),
        (AbsTaskClustering, main == "v_measure", _experiments),
        (AbsTaskSTS, main == "cosine_spearman", _pairs),
        (AbsTaskPairClassification, main == "max_ap", _labelled_pairs),
        (AbsTaskSummarization, main == "cosine_spearman", _texts),
    ]
    values = next((values for kind, fits, values in kinds if fits and issubclass(task, kind)), None)
    return type(task.__name__, (_Keeping, task), {"samples": {}, "values": values and staticmethod(values)})


def table(metric: str, parts: Mapping[str, Values]) -> dict[str, Any]:
    """What samples.json holds: ``metric``, ``ids``, ``columns``; with several groups, also the number of each's.

    A score is the mean of the scores of its groups, as mteb's is of splits and subsets.
    """
    names = next(iter(parts.values()))[1] if parts else {}
    columns = {name: [value for _, part in parts.values() for value in part[name]] for name in names}
    plain = len(parts) == 1 or SUBSET in names
    ids = [one if plain else f"{group}: {one}" for group, (found, _) in parts.items() for one in found]
    if not plain:
        sizes = [len(found) for found, _ in parts.values()]
        columns[GROUP] = np.repeat(np.arange(len(sizes)), sizes).astype(float).tolist()
    return {"metric": metric, "ids": ids, "columns": columns}


def compare_as_model(task: AbsTask, similarity: str) -> None:
    """Score texts by the similarity of the model, where mteb's main score is by cosine whatever the model.

    Args:
        task: Its main score becomes the one mteb calls without ``cosine_``.
        similarity: The model's.
    """
    main = task.metadata.main_score
    if similarity != "cosine" and main.startswith("cosine_"):
        task.metadata = task.metadata.model_copy(update={"main_score": main.removeprefix("cosine_")})


def trec_name(main_score: str) -> str | None:
    """trec_eval's name of a score of one query, None where it has none: ``ndcg_at_10`` is ``ndcg_cut_10``."""
    found = re.fullmatch(r"(ndcg|map|recall|precision)_at_(\d+)", main_score.removeprefix(_MERGED))
    if found is None:
        return None
    return {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}[found[1]] + f"_{found[2]}"


class _Keeping(AbsTask):  # type: ignore[misc]
    """Needs mteb to be given a folder for predictions; nothing is written there."""

    samples: dict[str, Values]
    values: Callable[..., dict[str, Values]] | None
    predictions: Any = None
    per_query: Mapping[str, Mapping[str, float]]

    def evaluate(self, model: Any, split: str = "test", *args: Any, **options: Any) -> Any:
        scores = super().evaluate(model, split, *args, **options)
        if self.values is None:
            for name, found in ((f"{split}/{subset}", found) for subset, found in scores.items()):
                self.samples[name] = [name], {SUBSET: [float(found["main_score"])]}
        return scores

    def _evaluate_subset(self, model: Any, data: Any, *, hf_split: str, hf_subset: str, **options: Any) -> Any:
        scores = super()._evaluate_subset(model, data, hf_split=hf_split, hf_subset=hf_subset, **options)
        if self.values is not None:
            rows = data[hf_split] if isinstance(data, Mapping) and hf_split in data else data
            for level, found in self.values(self, rows, scores).items():
                self.samples[f"{hf_split}/{hf_subset}{level}"] = found
        self.predictions = None  # of a large task: gigabytes
        return scores

    def _save_task_predictions(self, predictions: Any, *_: Any, **__: Any) -> None:
        self.predictions = predictions

    def task_specific_scores(self, scores: Any, *args: Any, **where: Any) -> Any:
        self.per_query = scores
        return super().task_specific_scores(scores, *args, **where)

    def _calculate_scores(self, first: Any, *more: Any) -> Any:
        # A column is read row by row from its table each time it is used, and every metric uses it several times.
        return super()._calculate_scores(np.asarray(first) if isinstance(first, Column) else first, *more)


def _rows(columns: Columns) -> dict[str, Values]:
    """One group, whose ids are row numbers."""
    return {"": ([str(row) for row in range(len(next(iter(columns.values()))))], columns)}


def _queries(task: Any, data: Any, _: Any) -> dict[str, Values]:
    """Retrieval and reranking: the main score of every query."""
    main = task.metadata.main_score
    name, found = str(trec_name(main)), task.per_query
    if main.startswith(_MERGED):
        found = _per_user(name, task.predictions, data["relevant_docs"])
    ids = sorted(found)
    return {"": (ids, {"value": [float(found[query][name]) for query in ids]})}


def _per_user(name: str, found: Any, judged: Mapping[str, Any]) -> Any:
    """Scores of users: of the similarities of a document to the queries of one user the best counts."""
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for query in judged:
        user = best[query.rpartition("_")[0]]
        for document, score in found[query].items():
            user[document] = max(score, user.get(document, score))
    right = {query.rpartition("_")[0]: documents for query, documents in judged.items()}
    return pytrec_eval.RelevanceEvaluator(right, {re.sub(r"_(\d+)$", r".\1", name)}).evaluate(best)


def _test_rows(task: Any, rows: Any, _: Any) -> dict[str, Values]:
    """Classification: for every test row, its share of correct experiments."""
    correct_ES = np.asarray(task.predictions) == np.asarray(rows[task.label_column_name])
    return _rows({"value": correct_ES.mean(axis=0).tolist()})


def _experiments(task: Any, _: Any, scores: Any) -> dict[str, Values]:
    """Clustering: the V-measure of every experiment; the levels of a hierarchy are groups."""
    found = {}
    for level, values in scores["v_measures"].items():
        draws = {DRAW: [float(number // 2) for number in range(len(values))]} if hasattr(task, "draws_twice") else {}
        found[f"/{level}"] = _rows({"value": [float(value) for value in values]} | draws)[""]
    return found


def _pairs(task: Any, rows: Any, _: Any) -> dict[str, Values]:
    """STS: gold and predicted similarity of every pair."""
    predicted = task.predictions[_PREDICTED[task.metadata.main_score]]
    gold = [float(task._normalize(score)) for score in rows["score"]]
    return _rows({GOLD: gold, "predicted": [float(score) for score in predicted]})


def _labelled_pairs(task: Any, rows: Any, _: Any) -> dict[str, Values]:
    """Pair classification: the label of every pair, and every similarity mteb tries (the best one counts)."""
    labels = (rows if len(rows) > 1 else rows[0])[task.label_column_name]  # old data sets have one row of lists
    columns = {GOLD: [float(label) for label in labels]}
    columns |= {name: [float(value) for value in task.predictions[name]] for name in _SIMILARITIES}
    return _rows(columns | {name: [-float(value) for value in task.predictions[name]] for name in _DISTANCES})


def _texts(task: Any, rows: Any, _: Any) -> dict[str, Values]:
    """Summarization: for every text, the rank correlation of its summaries' judgements and similarities."""
    from scipy.stats import spearmanr

    pairs = zip(task.predictions["human_scores"], task.predictions[_PREDICTED[task.metadata.main_score]], strict=True)
    values = [float(spearmanr(judged, predicted).statistic) for judged, predicted in pairs]
    # mteb leaves out texts whose judgements, or whose similarities, are all the same. The second depends on the
    # model: the ids then say so, and a comparison of two models refuses to pair them.
    gold = rows[task.relevancy_column_name]
    ids = [str(row) for row, judged in enumerate(gold) if len(set(judged)) > 1]
    if len(ids) != len(values):
        ids = [f"{place} of {len(values)} left" for place in range(len(values))]
    return {"": (ids, {"value": values})}
