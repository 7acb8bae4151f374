"""Scores by mteb on mock sets with known answers, and intervals whose behaviour is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boom_utils.data.examples import write_jsonl
from boom_utils.errors import EvaluationError, ResultsError
from boom_utils.evaluation import run
from boom_utils.evaluation.run import evaluate_task
from boom_utils.evaluation.statistics import Bootstrap, TaskSamples, difference_estimate, mean_estimate, score_draws
from boom_utils.evaluation.tasks import LocalTask


class Words:
    """An encoder whose embedding of a text is read off its numbers: ``3 4`` -> (3, 4) scaled to length 1."""

    def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int = 0) -> np.ndarray:
        vectors = np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_loaded", lambda folder: (Words(), "0" * 40))


def retrieval_task(folder: Path) -> LocalTask:
    """q1 finds its document first, q2 second, q3 third of three."""
    write_jsonl(folder / "corpus.jsonl", [{"id": n, "text": t} for n, t in (("a", "1 0"), ("b", "1 1"), ("c", "0 1"))])
    queries = (("q1", "1 0.1"), ("q2", "1 0.1"), ("q3", "1 0.1"))
    write_jsonl(folder / "queries.jsonl", [{"id": n, "text": t} for n, t in queries])
    relevant = (("q1", "a"), ("q2", "b"), ("q3", "c"))
    write_jsonl(folder / "qrels.jsonl", [{"query": q, "document": d} for q, d in relevant])
    return LocalTask("mock_retrieval", "retrieval", folder)


def samples(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "samples.json").read_text()))


@pytest.mark.promise(28)
def test_ndcg_of_ranks_one_two_three_is_known_and_kept_for_every_query(words: None, tmp_path: Path) -> None:
    facts = evaluate_task("mock", tmp_path, retrieval_task(tmp_path / "set"), tmp_path)
    expected = {"q1": 1.0, "q2": 1 / np.log2(3), "q3": 0.5}
    assert facts["main_score"] == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
    kept = samples(tmp_path)
    assert dict(zip(kept["ids"], kept["columns"]["value"], strict=True)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.promise(28)
def test_a_separable_classification_is_fully_right(words: None, tmp_path: Path) -> None:
    rows = [{"text": f"{1 - label} {label}", "label": label} for label in (0, 1) for _ in range(20)]
    for split in ("train", "test"):
        write_jsonl(tmp_path / "set" / f"{split}.jsonl", rows)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_classes", "classification", tmp_path / "set"), tmp_path)
    assert facts["main_score"] == 1.0
    assert samples(tmp_path)["columns"]["value"] == [1.0] * 40


@pytest.mark.promise(28)
def test_an_sts_in_perfect_order_has_rank_correlation_one(words: None, tmp_path: Path) -> None:
    rows = [{"sentence1": "1 0", "sentence2": f"1 {number / 4}", "score": 5 - number} for number in range(6)]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_sts", "sts", tmp_path / "set"), tmp_path)
    assert facts["main_score"] == pytest.approx(1.0)


@pytest.mark.promise(28)
def test_mteb_reads_the_result_back(words: None, tmp_path: Path) -> None:
    from mteb.results import TaskResult

    facts = evaluate_task("mock", tmp_path, retrieval_task(tmp_path / "set"), tmp_path)
    with run.random_state_kept():
        score = TaskResult.from_disk(tmp_path / "mock_retrieval.json").get_score()
    assert score == facts["main_score"]
    assert "0x7" not in (tmp_path / "mock_retrieval.json").read_text()


def test_the_dataset_revision_is_the_content_of_the_set(words: None, tmp_path: Path) -> None:
    revisions = set()
    for extra in ("", " "):
        task = retrieval_task(tmp_path / "set")
        write_jsonl(task.folder / "queries.jsonl", [{"id": "q1", "text": "1 0.1" + extra}])
        evaluate_task("mock", tmp_path, task, tmp_path)
        revisions.add(json.loads((tmp_path / "mock_retrieval.json").read_text())["dataset_revision"])
    assert len(revisions) == 2


def test_queries_get_the_prompt_documents_do_not_and_symmetric_tasks_give_it_to_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, set[str]] = {"": set(), "P ": set()}

    class Spy(Words):
        def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int = 0) -> np.ndarray:
            seen[prompt].update(texts)
            return super().encode(texts)

    monkeypatch.setattr(run, "_loaded", lambda folder: (Spy(), "0" * 40))
    task = retrieval_task(tmp_path / "set")
    evaluate_task("mock", tmp_path, LocalTask(task.name, "retrieval", task.folder, "P "), tmp_path)
    assert seen == {"": {"1 0", "1 1", "0 1"}, "P ": {"1 0.1"}}
    write_jsonl(
        tmp_path / "sts" / "test.jsonl", [{"sentence1": "1 0", "sentence2": f"1 {n}", "score": n} for n in range(4)]
    )
    seen[""].clear()
    evaluate_task("mock", tmp_path, LocalTask("mock_sts", "sts", tmp_path / "sts", "P "), tmp_path)
    assert not seen[""]


def test_an_embedding_that_is_not_finite_names_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken(Words):
        def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int = 0) -> np.ndarray:
            return super().encode(texts) * np.nan

    monkeypatch.setattr(run, "_loaded", lambda folder: (Broken(), "0" * 40))
    with pytest.raises(EvaluationError, match=r"(?s)not finite.*text 0"):
        evaluate_task("mock", tmp_path, retrieval_task(tmp_path / "set"), tmp_path)


def test_a_family_without_a_task_class_is_an_error(words: None, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no task class for family 'poetry'"):
        evaluate_task("mock", tmp_path, LocalTask("x", "poetry", tmp_path), tmp_path)


# --- statistics -------------------------------------------------------------------------------------------------------


def task(values: np.ndarray) -> TaskSamples:
    return TaskSamples("accuracy", tuple(map(str, range(len(values)))), {"value": values})


@pytest.mark.promise(31)
def test_intervals_are_the_same_for_the_same_seed_and_in_any_order_of_tasks() -> None:
    rng, bootstrap = np.random.default_rng(0), Bootstrap(500)
    tasks = {name: task(rng.random(40)) for name in "abc"}
    turned = dict(reversed(tasks.items()))
    first = mean_estimate(tasks, score_draws(tasks, bootstrap), list(tasks), bootstrap)
    second = mean_estimate(turned, score_draws(turned, bootstrap), list(turned), bootstrap)
    assert (first.low, first.high) == pytest.approx((second.low, second.high), abs=1e-12)


@pytest.mark.promise(31)
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, bootstrap = np.random.default_rng(1), Bootstrap(400)
    hits = 0
    for _ in range(300):
        tasks = {"a": task(rng.beta(2, 1, 80)), "b": task(rng.beta(1, 2, 80))}
        found = mean_estimate(tasks, score_draws(tasks, bootstrap), ["a", "b"], bootstrap)
        hits += found.low <= 0.5 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.promise(31)
def test_two_equal_models_rarely_differ() -> None:
    rng, bootstrap = np.random.default_rng(2), Bootstrap(400)
    false = 0
    for _ in range(300):
        ability = rng.random(80)
        ours, theirs = ({"a": task(ability + rng.normal(0, 0.2, 80))} for _ in range(2))
        false += difference_estimate(ours, theirs, ["a"], bootstrap).excludes_zero
    assert false / 300 <= 0.09


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng, bootstrap = np.random.default_rng(3), Bootstrap(500)
    ability = rng.random(200)
    ours, theirs = {"a": task(ability + 0.02)}, {"a": task(ability)}
    gap = difference_estimate(ours, theirs, ["a"], bootstrap)
    alone = mean_estimate(ours, score_draws(ours, bootstrap), ["a"], bootstrap)
    assert gap.high - gap.low < 0.01 * (alone.high - alone.low)
    assert gap.value == pytest.approx(0.02)


def test_rank_correlation_is_that_of_scipy_also_with_ties() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    gold, predicted = rng.integers(0, 6, 60).astype(float), rng.normal(size=60)
    sts = TaskSamples("cosine_spearman", tuple(map(str, range(60))), {"gold": gold, "predicted": predicted})
    draws = rng.integers(0, 60, (20, 60))
    expected = [spearmanr(gold[row], predicted[row])[0] for row in draws]
    assert sts.scores(draws) == pytest.approx(expected)


@pytest.mark.promise(30)
def test_a_missing_task_makes_a_mean_not_available_instead_of_smaller() -> None:
    tasks, bootstrap = {"a": task(np.ones(5))}, Bootstrap(100)
    with pytest.raises(ResultsError, match=r"n/a \(missing: b\)"):
        mean_estimate(tasks, score_draws(tasks, bootstrap), ["a", "b"], bootstrap)


def test_models_scored_on_different_queries_are_not_compared() -> None:
    other = TaskSamples("accuracy", tuple("vwxyz"), {"value": np.ones(5)})
    with pytest.raises(ResultsError, match="different queries"):
        difference_estimate({"a": task(np.ones(5))}, {"a": other}, ["a"], Bootstrap(100))
