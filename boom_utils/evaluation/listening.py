"""mteb's task classes, by kind, that also keep the values behind a score: they listen where mteb has them in hand.

mteb does the scoring. A class of a task, made by `listening_class` or written as a subclass, only notes what passes by:
per query, pair, test row or clustering experiment, so that intervals can be made by resampling these. A kind without
such values keeps the score of every subset, of which no interval over samples can be made.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mteb._evaluators import retrieval_metrics
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

_PREDICTED = {"cosine_spearman": "cosine_scores", "spearman": "similarity_scores"}
"""Rank correlation -> what mteb makes it of."""
_MERGED = "max_over_subqueries_"
"""Before a main score of retrieval for which mteb first puts the queries of one user together."""


@dataclass
class Samples:
    """The values behind a score, of which `boom_utils.evaluation.statistics` makes it again; filled while mteb scores.

    Args:
        metric: mteb's name of the main score.
        parts: Group (split and subset, and level of a clustering) -> ids, and columns of one value an id each.
            ``value``: the score is its mean (nDCG@10, MAP, accuracy, V-measure, rank correlation of one text); ``gold``
            and ``predicted``: rank correlation; ``gold`` and several similarities: average precision of pairs;
            ``subset``: only the score of the group is known.
    """

    metric: str = ""
    parts: dict[str, tuple[list[str], Mapping[str, list[float]]]] = field(default_factory=dict)

    def put(self, group: str, ids: Iterable[str], columns: Mapping[str, list[float]]) -> None:
        """Set what is known of one group."""
        self.parts[group] = (list(ids), columns)

    def table(self) -> dict[str, Any]:
        """What samples.json holds: ``metric``, ``ids``, ``columns``; with several groups, also the number of each's.

        A score is the mean of the scores of its groups, as mteb's is of splits and subsets.
        """
        names = next(iter(self.parts.values()))[1] if self.parts else {}
        columns = {name: [value for _, part in self.parts.values() for value in part[name]] for name in names}
        plain = len(self.parts) == 1 or SUBSET in names
        ids = [one if plain else f"{group}: {one}" for group, (found, _) in self.parts.items() for one in found]
        if not plain:
            sizes = [len(found) for found, _ in self.parts.values()]
            columns[GROUP] = np.repeat(np.arange(len(sizes)), sizes).astype(float).tolist()
        return {"metric": self.metric, "ids": ids, "columns": columns}


class _Listening(AbsTask):  # type: ignore[misc]
    """Knows which split and subset is being scored."""

    samples: Samples
    group: str = ""

    def _evaluate_subset(self, *args: Any, hf_split: str, hf_subset: str, **options: Any) -> Any:
        self.group = f"{hf_split}/{hf_subset}"
        return super()._evaluate_subset(*args, hf_split=hf_split, hf_subset=hf_subset, **options)


class KeepsQueries(_Listening, AbsTaskRetrieval):  # type: ignore[misc]
    """Retrieval and reranking: the main score of every query."""

    def task_specific_scores(
        self, scores: Mapping[str, Mapping[str, float]], qrels: Any, results: Any, **where: Any
    ) -> Any:
        """What mteb's own class adds; the per-query scores are noted on their way."""
        wanted = self.metadata.main_score
        with _calls_of_trec() as made:
            added = super().task_specific_scores(scores, qrels, results, **where)
        found = made[-1] if wanted.startswith(_MERGED) else scores
        name, ids = str(trec_name(wanted)), sorted(found)
        self.samples.put(self.group, ids, {"value": [float(found[query][name]) for query in ids]})
        return added


class _calls_of_trec:  # noqa: N801
    """Per-query scores of every scoring that happens inside: mteb merges queries in a function that hands out none."""

    def __enter__(self) -> list[Mapping[str, Mapping[str, float]]]:
        self.function, made = retrieval_metrics.calculate_retrieval_scores, []

        def heard(*args: Any, **options: Any) -> Any:
            result = self.function(*args, **options)
            made.append(result[0])
            return result

        retrieval_metrics.calculate_retrieval_scores = heard
        return made

    def __exit__(self, *unused: object) -> None:
        retrieval_metrics.calculate_retrieval_scores = self.function


def trec_name(main_score: str) -> str | None:
    """trec_eval's name of a score of one query, None where it has none: ``ndcg_at_10`` is ``ndcg_cut_10``."""
    found = re.fullmatch(r"(ndcg|map|recall|precision)_at_(\d+)", main_score.removeprefix(_MERGED))
    if found is None:
        return None
    return {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}[found[1]] + f"_{found[2]}"


class KeepsTestRows(_Listening, AbsTaskClassification):  # type: ignore[misc]
    """Classification: for every test row, its share of correct experiments."""

    experiments: Sequence[np.ndarray] = ()

    def _evaluate_subset(self, *args: Any, **options: Any) -> Any:
        self.experiments = []
        return super()._evaluate_subset(*args, **options)

    def _run_experiment(self, train: Any, test: Any, *args: Any, **kwargs: Any) -> Any:
        scores, predictions = super()._run_experiment(train, test, *args, **kwargs)
        correct = np.asarray(predictions) == np.asarray(test[self.label_column_name])
        self.experiments = [*self.experiments, correct]
        values = np.mean(self.experiments, axis=0).tolist()
        self.samples.put(self.group, map(str, range(len(correct))), {"value": values})
        return scores, predictions

    def _calculate_scores(self, y_test: Any, y_pred: Any) -> Any:
        # A column is read row by row from its table each time it is used, and every metric uses it several times.
        return super()._calculate_scores(np.asarray(y_test), y_pred)


class KeepsExperiments(_Listening, AbsTaskClustering):  # type: ignore[misc]
    """Clustering: the V-measure of every experiment; the levels of a hierarchy are groups."""

    clustered: int = 1

    def _evaluate_subset(self, *args: Any, **options: Any) -> Any:
        twice = _Twice(self.seed)
        if self.clustered == 2:
            self.rng_state = twice
        with twice:
            scores = super()._evaluate_subset(*args, **options)
        for level, values in scores["v_measures"].items():
            columns = {"value": [float(value) for value in values]}
            if self.clustered == 2:
                columns[DRAW] = [float(number // 2) for number in range(len(values))]
            self.samples.put(f"{self.group}/{level}", map(str, range(len(values))), columns)
        return scores


class _Twice(random.Random):
    """Draws the same texts twice in a row, the second time in another order: k-means then starts elsewhere.

    From the first draw on one thread is enough: k-means of some hundred texts waits for its threads most of the time.
    """

    last: Sequence[int] = ()
    limits: Any = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *unused: object) -> None:
        if self.limits:
            self.limits.restore_original_limits()

    def choices(self, population: Any, *args: Any, **options: Any) -> list[Any]:
        """New ones, or the last ones in another order."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.limits = self.limits or threadpool_limits(1)
        again, self.last = self.last, ()
        if again:
            return self.sample(again, len(again))
        self.last = super().choices(population, *args, **options)
        return [*self.last]


class KeepsPairs(_Listening, AbsTaskSTS):  # type: ignore[misc]
    """STS: gold and predicted similarity of every pair."""

    def _calculate_scores(self, scores: Any, normalized_scores: list[float]) -> Any:
        predicted = [float(score) for score in scores[_PREDICTED[self.samples.metric]]]
        gold = [float(score) for score in normalized_scores]
        self.samples.put(self.group, map(str, range(len(gold))), {GOLD: gold, "predicted": predicted})
        return super()._calculate_scores(scores, normalized_scores)


class KeepsLabelledPairs(_Listening, AbsTaskPairClassification):  # type: ignore[misc]
    """Pair classification: the label of every pair, and every similarity mteb tries (the best one counts)."""

    def _compute_metrics(self, similarity_scores: Any, labels: Any) -> Any:
        columns = {GOLD: [float(label) for label in labels]}
        columns |= {name: [float(value) for value in similarity_scores[name]] for name in _SIMILARITIES}
        columns |= {name: [-float(value) for value in similarity_scores[name]] for name in _DISTANCES}
        self.samples.put(self.group, map(str, range(len(labels))), columns)
        return super()._compute_metrics(similarity_scores, labels)


_SIMILARITIES = ("similarity_scores", "cosine_scores", "dot_scores")
_DISTANCES = ("manhattan_distances", "euclidean_distances")


class KeepsTexts(_Listening, AbsTaskSummarization):  # type: ignore[misc]
    """Summarization: for every text, the rank correlation of its summaries' judgements and similarities."""

    evaluator: Any

    def _evaluate_subset(self, *args: Any, **options: Any) -> Any:
        task, plain = self, self.evaluator

        class Heard(plain):  # type: ignore[misc, valid-type]
            def _calculate_metrics(self, distances: Any) -> Any:
                task._note(self.gold_scores, distances)
                return super()._calculate_metrics(distances)

        self.evaluator = Heard
        try:
            return super()._evaluate_subset(*args, **options)
        finally:
            self.evaluator = plain

    def _note(self, gold: Sequence[Sequence[float]], distances: Any) -> None:
        from scipy.stats import spearmanr

        pairs = zip(distances["human_scores"], distances[_PREDICTED[self.samples.metric]], strict=True)
        values = [float(spearmanr(judged, predicted).statistic) for judged, predicted in pairs]
        # mteb leaves out texts whose judgements, or whose similarities, are all the same. The second depends on the
        # model: the ids then say so, and a comparison of two models refuses to pair them.
        rows = [str(row) for row, judged in enumerate(gold) if len(set(judged)) > 1]
        ids = rows if len(rows) == len(values) else [f"{place} of {len(values)} left" for place in range(len(values))]
        self.samples.put(self.group, ids, {"value": values})


class KeepsSubsets(AbsTask):  # type: ignore[misc]
    """Any other kind: the score of every subset."""

    samples: Samples

    def evaluate(self, model: Any, split: str = "test", *args: Any, **options: Any) -> Any:
        """What mteb's own class gives."""
        scores = super().evaluate(model, split, *args, **options)
        for subset, found in scores.items():
            name = f"{split}/{subset}"
            self.samples.put(name, [name], {SUBSET: [float(found["main_score"])]})
        return scores


def listening_class(task: type[AbsTask]) -> type[AbsTask]:
    """A class like ``task`` whose instances keep the values behind their score in ``samples``."""
    main, keeper = task.metadata.main_score, KeepsSubsets
    if issubclass(task, AbsTaskRetrieval) and trec_name(main):
        keeper = KeepsQueries
    elif issubclass(task, AbsTaskClassification) and main == "accuracy" and _is_plain(task):
        keeper = KeepsTestRows
    for kind, metric, found in (
        (AbsTaskClustering, "v_measure", KeepsExperiments),
        (AbsTaskSTS, "cosine_spearman", KeepsPairs),
        (AbsTaskPairClassification, "max_ap", KeepsLabelledPairs),
        (AbsTaskSummarization, "cosine_spearman", KeepsTexts),
    ):
        keeper = found if issubclass(task, kind) and main == metric else keeper
    return type(task.__name__, (keeper, task), {"samples": Samples(main)})


def compare_as_model(task: AbsTask, similarity: str) -> None:
    """Score texts by the similarity of the model, where mteb's main score is by cosine whatever the model.

    Args:
        task: With ``samples``; its main score becomes the one mteb calls without ``cosine_``.
        similarity: The model's.
    """
    main = task.metadata.main_score
    if similarity != "cosine" and main.startswith("cosine_"):
        task.metadata = task.metadata.model_copy(update={"main_score": main.removeprefix("cosine_")})
        task.samples.metric = task.metadata.main_score


def _is_plain(task: type[AbsTask]) -> bool:
    """Whether every experiment of a classification predicts one label for each row of the same test split."""
    return not task.is_cross_validation and task._evaluate_subset is AbsTaskClassification._evaluate_subset
