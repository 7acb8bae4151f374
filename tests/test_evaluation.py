"""Scores by mteb on sets of the corpus with known answers, and how texts are encoded for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from conftest import TEXTS, tiny_config
from made_up_tasks import Words, use_words
from mteb.models import ModelMeta
from mteb.types import PromptType
from scipy.stats import spearmanr

from boom_utils.data.examples import write_jsonl
from boom_utils.errors import EvaluationError
from boom_utils.evaluation import encoding
from boom_utils.evaluation.encoding import Ensemble, MtebEncoder
from boom_utils.evaluation.run import evaluate_task
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.evaluation.tasks import LocalTask, build_task
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.reporting.results import read_samples
from boom_utils.training.base_model import random_encoder

META = ModelMeta.create_empty({"name": "boom/m", "revision": "0" * 40})
Rows = list[dict[str, Any]]
RNG = np.random.default_rng(5)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    use_words(monkeypatch)


def local(folder: Path, kind: str, **files: Rows) -> LocalTask:
    """A task of some files."""
    for name, rows in files.items():
        write_jsonl(folder / "set" / f"{name}.jsonl", rows)
    return LocalTask("mock", kind, folder / "set")


def retrieval_task(folder: Path, kind: str = "retrieval", judged: Mapping[str, str] | None = None) -> LocalTask:
    """q1 finds its document first, q2 second, q3 third of three; to be reranked, q1 has to choose between b and c."""
    ranked = {"q1": ["c", "b"], "q2": ["a", "b", "c"], "q3": ["c", "b", "a"]}
    return local(
        folder,
        kind,
        corpus=[{"id": n, "text": t} for n, t in (("a", "1 0"), ("b", "1 1"), ("c", "0 1"))],
        queries=[{"id": n, "text": "1 0.1"} for n in ("q1", "q2", "q3")],
        qrels=[{"query": q, "document": d} for q, d in (judged or {"q1": "a", "q2": "b", "q3": "c"}).items()],
        top_ranked=[{"query": q, "documents": d} for q, d in ranked.items()],
    )


def noisy(label: int) -> str:
    """A text whose embedding lies near an axis of its label."""
    vector = RNG.normal(0, 0.7, 3)
    vector[label] += 1
    return " ".join(f"{value:.4f}" for value in vector)


@pytest.mark.promise(28)
def test_scores_of_ranks_are_known_and_kept_for_every_query_and_mteb_reads_them(words: None, tmp_path: Path) -> None:
    for task, expected in (
        (retrieval_task(tmp_path / "all"), {"q1": 1.0, "q2": 1 / np.log2(3), "q3": 0.5}),
        # document a would have been first for q1, but is not among its candidates
        (
            retrieval_task(tmp_path / "some", "reranking", {"q1": "b", "q2": "b", "q3": "c"}),
            {"q1": 1.0, "q2": 1 / 2, "q3": 1 / 3},
        ),
    ):
        facts = evaluate_task("mock", tmp_path, task, tmp_path)
        assert facts["main_score"] == pytest.approx(np.mean(list(expected.values())), abs=1e-5)
        kept = read_samples(tmp_path)
        assert dict(zip(kept.ids, kept.columns["value"], strict=True)) == pytest.approx(expected, abs=1e-5)
        text = (tmp_path / "mock.json").read_text()
        assert mteb.results.TaskResult.from_disk(tmp_path / "mock.json").get_score() == facts["main_score"]
        assert "0x7" not in text and not list(tmp_path.glob("*predictions*"))
        evaluate_task("mock", tmp_path, task, tmp_path)
        assert (tmp_path / "mock.json").read_text() == text, "a result states when it was made"


@pytest.mark.promise(28)
def test_judgements_may_be_graded_and_a_revision_is_the_content_of_the_set(words: None, tmp_path: Path) -> None:
    task = retrieval_task(tmp_path, "code_retrieval")
    first = build_task(task).metadata.dataset["revision"]
    assert build_task(task).metadata.dataset["revision"] == first
    judged = [{"query": q, "document": d, "score": s} for q in ("q1", "q2", "q3") for d, s in (("a", 1), ("c", 3))]
    write_jsonl(task.folder / "qrels.jsonl", judged)
    facts = evaluate_task("mock", tmp_path, task, tmp_path)
    assert facts["main_score"] == pytest.approx((1 + 3 / 2) / (3 + 1 / np.log2(3)), abs=1e-5)
    assert build_task(task).metadata.dataset["revision"] != first


SEPARATE = [{"text": f"{1 - label} {label} {n / 1000}", "label": label} for label in (0, 1) for n in range(20)]
NOISY = [{"text": noisy(label), "label": label} for label in (0, 1, 2) for _ in range(40)]
PAIRS = [{"sentence1": noisy(0), "sentence2": noisy(n % 2), "label": int(RNG.integers(2))} for n in range(60)]
GRADED = [{"sentence1": "1 0", "sentence2": f"1 {n / 4}", "score": 5 - n} for n in range(6)]


@pytest.mark.promise(28)
@pytest.mark.parametrize(
    ("kind", "files", "low", "high"),
    [
        ("classification", {"train": SEPARATE, "test": SEPARATE}, 1, 1),
        ("clustering", {"test": SEPARATE}, 1, 1),
        ("clustering", {"test": NOISY}, 0.05, 0.9),
        ("sts", {"test": GRADED}, 1, 1),
        ("pair_classification", {"test": [*PAIRS, *PAIRS[:5]]}, 0.2, 0.9),
    ],
)
def test_a_score_is_made_again_from_the_kept_values(
    words: None, tmp_path: Path, kind: str, files: dict[str, Rows], low: float, high: float
) -> None:
    facts = evaluate_task("mock", tmp_path, local(tmp_path, kind, **files), tmp_path)
    assert low - 1e-6 <= facts["main_score"] <= high + 1e-6
    kept = read_samples(tmp_path)
    assert (kept.score, len(kept.ids)) == (pytest.approx(facts["main_score"], abs=1e-6), facts["samples"])
    if kind == "clustering":
        reported = json.loads((tmp_path / "mock.json").read_text())["scores"]["test"][0]["v_measures"]["Level 0"]
        assert kept.columns["value"].tolist() == pytest.approx(reported, abs=1e-6)
        assert kept.columns["draw"].tolist() == [float(number // 2) for number in range(100)]


def test_an_sts_is_scored_by_the_similarity_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Lengths(Words):
        spec = EncoderSpec("mean", False, 8, similarity="dot")

        def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:
            return np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)

    use_words(monkeypatch, Lengths())
    rows = [{"sentence1": "1 1", "sentence2": f"{number} {9 - 2 * number}", "score": 4 - number} for number in range(5)]
    facts = evaluate_task("mock", tmp_path, local(tmp_path, "sts", test=rows), tmp_path)
    assert (facts["main_score"], facts["metric"], facts["similarity"]) == (pytest.approx(1.0), "spearman", "dot")


def test_an_ensemble_is_scored_by_the_mean_of_its_models_embeddings_and_loads_each_once(
    monkeypatch: pytest.MonkeyPatch, encoder_folder: Path, tmp_path: Path
) -> None:
    other, loaded = tmp_path / "other", list[Path]()
    random_encoder(TEXTS[:5], tiny_config(seed=7), {}).save(other)
    plain = Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda folder, *rest: loaded.append(folder) or plain(folder, *rest))
    pairs = [{"sentence1": one, "sentence2": two, "score": n} for n, (one, two) in enumerate(pairwise(TEXTS[:7]))]
    task = replace(local(tmp_path, "sts", test=pairs), prompt="P ")

    def facts(*folders: Path) -> dict[str, Any]:
        return evaluate_task("mock", folders, task, tmp_path)

    alone, twice, both = facts(encoder_folder), facts(encoder_folder, encoder_folder), facts(encoder_folder, other)
    assert twice["main_score"] == pytest.approx(alone["main_score"], abs=1e-6)
    vectors = [
        sum(plain(folder).encode([row[column] for row in pairs], "P ") for folder in (encoder_folder, other))
        for column in ("sentence1", "sentence2")
    ]
    cosines = np.sum(vectors[0] * vectors[1], axis=1) / np.prod(
        [np.linalg.norm(one, axis=1) for one in vectors], axis=0
    )
    assert both["main_score"] == pytest.approx(spearmanr(cosines, [row["score"] for row in pairs]).statistic)
    assert len({one["revision"] for one in (alone, twice, both)}) == 3
    assert facts(encoder_folder, other) == both and loaded.count(other) == 1, "not again for every task"
    mean_ND = Ensemble([plain(encoder_folder), plain(other)]).encode(TEXTS, "P ")
    assert mean_ND.dtype == np.float32 and np.linalg.norm(mean_ND, axis=1) == pytest.approx(np.ones(len(TEXTS)))
    random_encoder(TEXTS, tiny_config(hidden_size=64), {}).save(tmp_path / "wide")
    with pytest.raises(EvaluationError, match=r"(?s)have no mean.*32 dimensions.*64 dimensions"):
        facts(encoder_folder, tmp_path / "wide")


class Spy(Words):
    """Notes the texts of every call, by prompt."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str]]] = []

    def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:
        self.seen.append((prompt, list(texts)))
        return super().encode(texts)


def test_queries_get_the_prompt_documents_their_own_or_none_and_symmetric_tasks_give_it_to_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for task, prompts in (
        (retrieval_task(tmp_path / "one"), {"P ", ""}),
        (local(tmp_path / "two", "sts", test=GRADED), {"P "}),
    ):
        spy = use_words(monkeypatch, Spy())
        evaluate_task("mock", tmp_path, replace(task, prompt="P "), tmp_path)
        assert {prompt for prompt, _ in spy.seen} == prompts
        assert all(set(texts) == {"1 0", "1 1", "0 1"} for prompt, texts in spy.seen if not prompt)
    for symmetric in (False, True):
        wrapped = MtebEncoder(spy, META, "query: ", prompt_documents=symmetric, passage_prompt="passage: ")
        wrapped.encode(batches(numbers(2 + symmetric)), prompt_type=PromptType.document)
    assert [prompt for prompt, _ in spy.seen[-2:]] == ["passage: ", "query: "]


@pytest.mark.parametrize(
    ("kind", "file", "content", "found"),
    [
        ("reranking", "top_ranked", '{"query": "q1", "documents": ["b"]}', "no documents to rank for q2, q3"),
        ("reranking", "top_ranked", '{"query": "q1", "docu', "top_ranked.jsonl:1"),
        ("reranking", "top_ranked", '{"query": NaN}', "top_ranked.jsonl:1"),
        ("reranking", "top_ranked", None, "top_ranked.jsonl"),
        ("retrieval", "qrels", '{"query": "q1"}', "'document'"),
        ("clustering", "test", '{"text": "1 0", "label": 1}', "the same label"),
        ("pair_classification", "test", '{"sentence1": "1", "sentence2": "1", "label": 1}', "the same label"),
    ],
)
def test_a_set_that_is_broken_or_decides_nothing_is_refused(
    words: None, tmp_path: Path, kind: str, file: str, content: str | None, found: str
) -> None:
    task = retrieval_task(tmp_path, kind)
    path = task.folder / f"{file}.jsonl"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(EvaluationError, match=f"(?s)not usable.*set.*{found}"):
        evaluate_task("mock", tmp_path, task, tmp_path)


def test_a_kind_without_a_task_class_and_values_that_make_up_no_score_are_errors(
    words: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="no task class for 'poetry'"):
        evaluate_task("mock", tmp_path, LocalTask("x", "poetry", tmp_path), tmp_path)
    monkeypatch.setattr(TaskSamples, "score", property(lambda self: 0.0))
    with pytest.raises(EvaluationError, match="do not make up"):
        evaluate_task("mock", tmp_path, retrieval_task(tmp_path), tmp_path)


# --- encoding ---------------------------------------------------------------------------------------------------------


def batches(texts: list[str], size: int = 3) -> list[dict[str, list[str]]]:
    return [{"text": texts[place : place + size]} for place in range(0, len(texts), size)]


def numbers(count: int) -> list[str]:
    return [f"1 {number}" for number in range(count)]


def test_mteb_gets_the_bytes_that_the_encoder_gives_with_the_prompt_of_queries_or_documents(encoder: Encoder) -> None:
    wrapped = MtebEncoder(encoder, META, "find: ", prompt_documents=False)
    assert wrapped.encode(batches(TEXTS)).tobytes() == encoder.encode(TEXTS, "find: ").tobytes()
    assert wrapped.encode(batches(TEXTS), prompt_type=PromptType.document).tobytes() == encoder.encode(TEXTS).tobytes()


def test_a_stream_is_encoded_block_by_block_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 8)
    spy = Spy()
    found = MtebEncoder(spy, META, "", prompt_documents=False).encode(iter(batches(numbers(21))))
    assert [len(texts) for _, texts in spy.seen] == [8, 8, 5] and found.dtype == np.float32
    assert np.array_equal(found, Words().encode(numbers(21)))
    with pytest.raises(EvaluationError, match=r"(?s)not finite.*text 10: 'nan 1'"):
        MtebEncoder(spy, META, "", prompt_documents=False).encode(batches([*numbers(10), "nan 1"]))


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_embeddings_are_compared_as_the_model_says(encoder: Encoder, name: str) -> None:
    from sentence_transformers import SimilarityFunction

    encoder.spec = replace(encoder.spec, similarity=name, normalize=False)
    wrapped, texts = MtebEncoder(encoder, META, "", prompt_documents=False), encoder.encode(TEXTS)
    other = texts[::-1].copy()
    wanted = SimilarityFunction.to_similarity_fn(name)(texts, other)
    assert np.allclose(wrapped.similarity(texts, other), wanted, atol=1e-6)
    assert np.allclose(wrapped.similarity_pairwise(texts, other), np.diag(wanted), atol=1e-6)
