"""Every kind of task of mteb, made up: the score is the known one, and the kept values make it again."""

from __future__ import annotations

from pathlib import Path

import mteb  # noqa: F401  before any test: importing it seeds the global random generators
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from made_up_tasks import retrieval_split, rows, scored, task_class
from mteb._evaluators import retrieval_metrics
from mteb.abstasks import AbsTask, AbsTaskBitextMining, AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval
from mteb.abstasks.text.summarization import AbsTaskSummarization
from mteb.mocks import mock_tasks
from sklearn.exceptions import UndefinedMetricWarning

from boom_utils.evaluation.statistics import measure
from boom_utils.models import Encoder
from boom_utils.reporting.results import read_samples

TWO = {"en": ["eng-Latn"], "de": ["deu-Latn"]}
JUDGED = {"q1": "a", "q2": "b", "q3": "c"}
NDCG = (1.0, 1 / np.log2(3), 0.5)


def merged_retrieval(name: str = "MadeUpMind") -> type[AbsTask]:
    """User u has two queries, v one; mteb takes the best similarity of a user's queries to each document."""
    queries = {"u_0": "1 0.1", "u_1": "0 1", "v_0": "1 0"}
    data = {"default": {"test": retrieval_split({"u_0": "a", "u_1": "a", "v_0": "a"}, queries)}}

    def specific(self: object, scores: object, qrels: object, results: object, **_: object) -> object:
        return retrieval_metrics.max_over_subqueries(qrels, results, (1, 1000))

    wanted = "max_over_subqueries_map_at_1000"
    return task_class(AbsTaskRetrieval, "Reranking", wanted, data, name=name, task_specific_scores=specific)


def summaries() -> DatasetDict:
    """Text 0 in the judges' order, text 2 with two of three swapped; all summaries of text 1 are as good."""
    columns = ("text", "human_summaries", "machine_summaries", "relevance")
    in_order = ["1 0", "1 1", "1 2"]
    values = [("x", ["1 0"], in_order, judged) for judged in ([3, 2, 1], [2, 2, 2], [3, 1, 2])]
    return rows(*columns, values=values)


KINDS: dict[str, tuple[type[AbsTask], str, list[float]]] = {
    "reranking": (merged_retrieval(), "u v", [0.5, 1.0]),
    # of text 1 there is no rank correlation
    "summarization": (
        task_class(AbsTaskSummarization, "Summarization", "cosine_spearman", summaries(), min_score=1, max_score=3),
        "0 2",
        [1.0, 0.5],
    ),
    "classification": (
        task_class(
            AbsTaskClassification,
            "Classification",
            "accuracy",
            DatasetDict(
                train=Dataset.from_list([{"text": f"{1 - n} {n}", "label": n} for n in (0, 1)] * 9),
                test=Dataset.from_list([{"text": "1 0", "label": n} for n in (0, 0, 0, 1)]),
            ),
        ),
        "0 1 2 3",
        [1.0, 1.0, 1.0, 0.0],
    ),
}


@pytest.mark.promise(28)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_kept_values_are_the_known_ones_and_make_the_score_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder
) -> None:
    made, ids, values = KINDS[kind]
    facts, samples = scored(monkeypatch, made, tmp_path), read_samples(tmp_path)
    assert (facts["main_score"], samples.score) == pytest.approx((np.mean(values),) * 2, abs=1e-5)
    assert (samples.ids, samples.columns["value"].tolist()) == (tuple(ids.split()), pytest.approx(values, abs=1e-5))
    # The precision of a class that nobody predicts is nothing to warn of.
    assert not [one for one in recwarn if issubclass(one.category, UndefinedMetricWarning)]


@pytest.mark.promise(28)
def test_a_score_over_languages_is_the_mean_of_theirs_however_many_queries_each_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = {"en": {"test": retrieval_split({"q1": "a"})}, "de": {"test": retrieval_split(JUDGED)}}
    made = task_class(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", data, languages=TWO)
    facts, samples = scored(monkeypatch, made, tmp_path), read_samples(tmp_path)
    assert facts["main_score"] == pytest.approx((1 + np.mean(NDCG)) / 2, abs=1e-5)
    assert samples.score == pytest.approx(facts["main_score"], abs=1e-5)
    assert samples.ids == ("test/en: q1", "test/de: q1", "test/de: q2", "test/de: q3")
    assert samples.columns["group"].tolist() == [0, 1, 1, 1]
    assert [len(group) for group in samples.values] == [1, 3]


@pytest.mark.promise(28)
def test_the_levels_of_a_clustering_are_groups_of_experiments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = [(f"{1 - n} {n} {k / 1000}", [n, k % 2]) for n in (0, 1) for k in range(20)]
    more = {"max_fraction_of_documents_to_embed": None, "max_documents_per_cluster": 40}
    data = rows("sentences", "labels", values=values)
    facts = scored(monkeypatch, task_class(AbsTaskClustering, "Clustering", "v_measure", data, **more), tmp_path)
    samples = read_samples(tmp_path)
    assert samples.columns["group"].tolist() == [0.0] * 10 + [1.0] * 10
    assert samples.columns["value"][:10].tolist() == [1.0] * 10
    assert 0.5 < facts["main_score"] < 0.9 and samples.score == pytest.approx(facts["main_score"], abs=1e-6)
    # The first level is the same in every experiment: what the score moves by is half of what the second does.
    second = samples.values[1].std(ddof=1)
    assert measure([(1.0, {"t": samples})], ["t"]).error == pytest.approx(second / 2)


def test_a_kind_without_values_of_samples_has_a_score_and_no_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pairs = [("1 0", "1 0.1"), ("0 1", "0.1 1"), ("1 1", "1 1.1")]
    data = rows("sentence1", "sentence2", values=pairs)
    facts = scored(monkeypatch, task_class(AbsTaskBitextMining, "BitextMining", "f1", data), tmp_path)
    samples = read_samples(tmp_path)
    assert facts["main_score"] == samples.score == 1.0
    assert samples.ids == ("test/default",) and list(samples.columns) == ["subset"]
    found = measure([(1.0, {"t": samples})], ["t"])
    assert np.isnan([found.estimate().low, found.estimate().high]).all() and not found.estimate().excludes_zero
    assert found.p_value == 1


@pytest.mark.promise(28)
def test_every_kind_of_text_task_that_mteb_has_can_be_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: Encoder
) -> None:
    """On mteb's own mocks, one a kind: a score that the kept values do not make up would be an error."""
    known = [one for one in vars(mock_tasks).values() if isinstance(one, type) and issubclass(one, AbsTask)]
    kinds = {
        one.metadata.type: one for one in known if hasattr(one, "metadata") and one.metadata.modalities == ["text"]
    }
    assert {"InstructionRetrieval", "MultilabelClassification", "Regression", "BitextMining"} <= {*kinds}
    for kind, made in kinds.items():
        (out := tmp_path / kind).mkdir()
        facts = scored(monkeypatch, made, out, encoder)
        assert len(read_samples(out).ids) == facts["samples"] > 0, kind
