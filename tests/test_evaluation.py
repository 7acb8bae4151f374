"""Scores by mteb on mock sets with known answers, and intervals whose behaviour is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mteb.abstasks import AbsTaskClassification

from boom_utils.data.examples import write_jsonl
from boom_utils.errors import EvaluationError
from boom_utils.evaluation import run
from boom_utils.evaluation.run import evaluate_task
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.evaluation.tasks import LocalTask, build_task
from boom_utils.model_folder import EncoderSpec


class Words:
    """An encoder whose embedding of a text is read off its numbers: ``3 4`` -> (3, 4) scaled to length 1."""

    def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int = 0) -> np.ndarray:
        vectors = np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_loaded", lambda *_: (Words(), "0" * 40))


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


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 2], ["a", "b", "c"]])
def test_scores_of_a_classification_are_those_that_mteb_makes_of_the_column(labels: list[Any], tmp_path: Path) -> None:
    rows = [{"text": "1 0", "label": label} for label in labels * 5]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    made = build_task(LocalTask("mock_classes", "classification", tmp_path))
    made.load_data()
    truth, predicted = made.dataset["default"]["test"]["label"], np.array([*labels[:1] * 4, *(labels * 5)[4:]])
    plain = AbsTaskClassification._calculate_scores(made, truth, predicted)
    assert 0 < plain["accuracy"] < 1 and made._calculate_scores(truth, predicted) == plain


@pytest.mark.promise(28)
def test_an_sts_in_perfect_order_has_rank_correlation_one(words: None, tmp_path: Path) -> None:
    rows = [{"sentence1": "1 0", "sentence2": f"1 {number / 4}", "score": 5 - number} for number in range(6)]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_sts", "sts", tmp_path / "set"), tmp_path)
    assert facts["main_score"] == pytest.approx(1.0)


def test_an_sts_is_scored_by_the_similarity_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Lengths(Words):
        spec = EncoderSpec("mean", False, 8, similarity="dot")

        def encode(self, texts: list[str], prompt: str = "", tokens_per_batch: int = 0) -> np.ndarray:
            return np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)

    monkeypatch.setattr(run, "_loaded", lambda *_: (Lengths(), "0" * 40))
    rows = [{"sentence1": "1 1", "sentence2": f"{number} {9 - 2 * number}", "score": 4 - number} for number in range(5)]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_sts", "sts", tmp_path / "set"), tmp_path)
    assert (facts["main_score"], facts["metric"], facts["similarity"]) == (pytest.approx(1.0), "spearman", "dot")


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
        queries = [{"id": name, "text": "1 0.1" + extra} for name in ("q1", "q2", "q3")]
        write_jsonl(task.folder / "queries.jsonl", queries)
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

    monkeypatch.setattr(run, "_loaded", lambda *_: (Spy(), "0" * 40))
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

    monkeypatch.setattr(run, "_loaded", lambda *_: (Broken(), "0" * 40))
    with pytest.raises(EvaluationError, match=r"(?s)not finite.*text 0"):
        evaluate_task("mock", tmp_path, retrieval_task(tmp_path / "set"), tmp_path)


def test_a_kind_without_a_task_class_is_an_error(words: None, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no task class for 'poetry'"):
        evaluate_task("mock", tmp_path, LocalTask("x", "poetry", tmp_path), tmp_path)


def remade(out: Path) -> float:
    """The score made of the kept values, as tables and intervals make it."""
    kept = samples(out)
    columns = {name: np.array(values) for name, values in kept["columns"].items()}
    return TaskSamples(kept["metric"], tuple(kept["ids"]), columns).score


def noisy(rng: np.random.Generator, label: int, spread: float = 0.7) -> str:
    """A text whose embedding lies near an axis of its label."""
    vector = rng.normal(0, spread, 3)
    vector[label] += 1
    return " ".join(f"{value:.4f}" for value in vector)


@pytest.mark.promise(28)
def test_judgements_may_be_graded(words: None, tmp_path: Path) -> None:
    task = retrieval_task(tmp_path / "set")
    judged = [{"query": q, "document": d, "score": s} for q in ("q1", "q2", "q3") for d, s in (("a", 1), ("c", 3))]
    write_jsonl(task.folder / "qrels.jsonl", judged)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock", "code_retrieval", task.folder), tmp_path)
    assert facts["main_score"] == pytest.approx((1 + 3 / 2) / (3 + 1 / np.log2(3)), abs=1e-5)


def reranking_task(folder: Path) -> LocalTask:
    """q1 has to choose between b and c; q2 and q3 have all three."""
    task = retrieval_task(folder)
    ranked = {"q1": ["c", "b"], "q2": ["a", "b", "c"], "q3": ["c", "b", "a"]}
    write_jsonl(folder / "top_ranked.jsonl", [{"query": q, "documents": d} for q, d in ranked.items()])
    write_jsonl(
        folder / "qrels.jsonl", [{"query": q, "document": d} for q, d in (("q1", "b"), ("q2", "b"), ("q3", "c"))]
    )
    return LocalTask("mock_reranking", "reranking", task.folder)


@pytest.mark.promise(28)
def test_reranking_ranks_the_given_documents_only(words: None, tmp_path: Path) -> None:
    facts = evaluate_task("mock", tmp_path, reranking_task(tmp_path / "set"), tmp_path)
    kept = samples(tmp_path)
    expected = {"q1": 1.0, "q2": 1 / 2, "q3": 1 / 3}  # q1: document a would have been first
    assert dict(zip(kept["ids"], kept["columns"]["value"], strict=True)) == pytest.approx(expected)
    assert (kept["metric"], facts["main_score"]) == ("map_at_1000", round(remade(tmp_path), 5))


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("top_ranked", '{"query": "q1", "documents": ["b"]}', "no documents to rank for q2, q3"),
        ("top_ranked", '{"query": "q1", "docu', "top_ranked.jsonl:1"),
        ("top_ranked", '{"query": NaN}', "top_ranked.jsonl:1"),
        ("top_ranked", None, "top_ranked.jsonl"),
        ("qrels", '{"query": "q1"}', "'document'"),
    ],
)
def test_a_set_that_is_broken_or_contradicts_itself_is_refused(
    words: None, tmp_path: Path, file: str, content: str | None, found: str
) -> None:
    task = reranking_task(tmp_path / "set")
    path = task.folder / f"{file}.jsonl"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=f"(?s)not usable.*set.*{found}"):
        evaluate_task("mock", tmp_path, task, tmp_path)


@pytest.mark.promise(28)
def test_average_precision_of_pairs_is_made_again_from_the_kept_similarities(words: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [
        {"sentence1": noisy(rng, 0), "sentence2": noisy(rng, int(rng.integers(2))), "label": int(rng.integers(2))}
        for _ in range(60)
    ]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows + rows[:5])
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_pairs", "pair_classification", tmp_path / "set"), tmp_path)
    assert 0.2 < facts["main_score"] < 0.9
    assert remade(tmp_path) == pytest.approx(facts["main_score"], abs=1e-6)


def test_pairs_of_one_label_are_refused(words: None, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set" / "test.jsonl", [{"sentence1": "1 0", "sentence2": "0 1", "label": 1}] * 4)
    with pytest.raises(EvaluationError, match="the same label"):
        evaluate_task("mock", tmp_path, LocalTask("mock", "pair_classification", tmp_path / "set"), tmp_path)


@pytest.mark.promise(28)
def test_the_v_measure_is_made_again_from_the_experiments(words: None, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    rows = [{"text": noisy(rng, label), "label": label} for label in (0, 1, 2) for _ in range(40)]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows)
    facts = evaluate_task("mock", tmp_path, LocalTask("mock_clusters", "clustering", tmp_path / "set"), tmp_path)
    assert 0.05 < facts["main_score"] < 0.9
    assert remade(tmp_path) == pytest.approx(facts["main_score"], abs=1e-6)
    reported = json.loads((tmp_path / "mock_clusters.json").read_text())["scores"]["test"][0]
    assert samples(tmp_path)["columns"]["value"] == pytest.approx(reported["v_measures"]["Level 0"], abs=1e-6)
    assert facts["samples"] == 100
    assert samples(tmp_path)["columns"]["draw"] == [float(number // 2) for number in range(100)]


@pytest.mark.promise(28)
def test_clusters_of_well_separated_texts_are_found_and_one_label_is_refused(words: None, tmp_path: Path) -> None:
    rows = [
        {"text": f"{1 - label} {label} {number / 1000}", "label": label} for label in (0, 1) for number in range(20)
    ]
    write_jsonl(tmp_path / "set" / "test.jsonl", rows)
    task = LocalTask("mock_clusters", "clustering", tmp_path / "set")
    assert evaluate_task("mock", tmp_path, task, tmp_path)["main_score"] == pytest.approx(1.0)
    write_jsonl(tmp_path / "set" / "test.jsonl", rows[:20])
    with pytest.raises(EvaluationError, match="the same label"):
        evaluate_task("mock", tmp_path, task, tmp_path)


def test_a_score_that_the_kept_values_do_not_make_up_is_an_error(
    words: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(TaskSamples, "score", property(lambda self: 0.0))
    with pytest.raises(EvaluationError, match="do not make up"):
        evaluate_task("mock", tmp_path, retrieval_task(tmp_path / "set"), tmp_path)
