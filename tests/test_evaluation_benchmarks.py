"""Benchmarks of mteb: their tasks, prompts and scores as nodes, and their data from a hub on this machine."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import REVISION, HubServer
from made_up_tasks import NAME, benchmark, retrieval_split, task_class, use_words
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from released_prompts import installed_prompts, write_prompts

from boom_utils.artifacts import Node, Workspace
from boom_utils.cli import main
from boom_utils.config import PROFILES, Profile, load_profile
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.errors import ConfigError, EvaluationError
from boom_utils.evaluation import benchmarks, run
from boom_utils.evaluation.benchmarks import (
    RELEASED,
    BenchmarkTask,
    fetch_benchmarks,
    find_benchmarks,
    random_state_kept,
)
from boom_utils.study import scoring

NAMES = ("MTEB(eng, v2)", "MTEB(Code, v1)", "RTEB(beta)", "NanoBEIR")


# --- lists and prompts ------------------------------------------------------------------------------------------------


def test_the_benchmarks_of_the_paper_have_the_tasks_they_had_then_each_once() -> None:
    found = find_benchmarks(NAMES)
    assert {name: len(tasks) for name, tasks in found.members.items()} == dict(
        zip(NAMES, (41, 12, 16, 13), strict=True)
    )
    assert len(found.tasks) == 41 + 12 + 16 + 13 - 1  # AppsRetrieval is in two
    assert found.tasks["AppsRetrieval"].benchmark == "MTEB(Code, v1)"
    assert "SWEbenchCodeRetrieval" not in found.tasks  # added after the paper
    with pytest.raises(ConfigError, match=r"no benchmark 'MTEB\(eng, v3\)'; did you mean 'MTEB\(eng, v"):
        find_benchmarks(["MTEB(eng, v3)"])


def test_a_task_of_many_languages_keeps_those_its_benchmark_names() -> None:
    tasks = find_benchmarks(NAMES[:2]).tasks
    assert (tasks["STS22.v2"].subsets, tasks["STS22.v2"].splits) == (("en",), ("test",))
    assert tasks["MassiveIntentClassification"].splits == ("test",)
    made = benchmarks.make_benchmark_task(tasks["STS22.v2"])
    assert (made.hf_subsets, made.eval_splits) == (["en"], ["test"])
    families = {task.family for task in tasks.values()}
    assert families == {
        *("retrieval", "reranking", "classification", "clustering", "sts", "pair_classification", "summarization")
    }


def test_the_released_prompts_are_those_of_the_installed_mteb(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--regenerate-golden"):
        write_prompts()
    assert yaml.safe_load(RELEASED.read_text(encoding="utf-8")) == installed_prompts()


def test_a_prompt_is_the_released_one_then_the_tasks_own_then_that_of_its_kind() -> None:
    tasks = find_benchmarks(NAMES).tasks
    assert tasks["STS12"].instruction == ("Retrieve semantically similar text.", "released")
    claim = "Given a claim, find documents that refute the claim"
    assert tasks["NanoArguAnaRetrieval"].instruction == (claim, "task")
    assert tasks["AILACasedocs"].instruction[1] == "kind"


# --- scores as nodes --------------------------------------------------------------------------------------------------


def retrieval(name: str) -> type[AbsTask]:
    data = {"default": {"test": retrieval_split({"q1": "a", "q2": "b", "q3": "c"})}}
    return task_class(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", data, name=name)


def smoke(**evaluation: Any) -> tuple[Profile, Manifest]:
    """Smoke, with the made-up benchmark in domain, and the base scored alone."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    chosen = {"in_domain_benchmarks": [NAME], "reference": "base", **evaluation}
    content["evaluation"] = {"out_of_domain": ["docstring_to_code"], **chosen}
    profile = Profile.model_validate(content)
    return profile, load_manifest(profile.manifest)


def base_scores(workspace: Path, **evaluation: Any) -> dict[str, Node]:
    """Nodes of the base's scores; the base is an empty file."""
    source = Node("base", 1, "base", {}, lambda out, _: (out / "x").write_text("x") and {})
    nodes = scoring.score_nodes(*smoke(**evaluation), {"base": [source]}, source, workspace / "downloads")
    return {name.split("/")[2]: node for name, node in nodes.items()}


@pytest.mark.promise(29)
def test_another_template_precision_revision_or_mteb_is_another_score(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_words(monkeypatch)
    with monkeypatch.context() as patch:
        benchmark(patch, retrieval("One"))
        workspace, nodes = Workspace(tmp_path), base_scores(tmp_path)
        facts = workspace.build(nodes["One"]).facts
        assert facts["prompt"] == "Instruct: Retrieve text based on user query.\nQuery: "
        assert (facts["template"], facts["dtype"]) == ("Instruct: {instruction}\nQuery: ", "fp32")
        assert facts["instruction_from"] == "kind"
        assert facts["mteb_version"] == benchmarks.mteb_version()
        assert workspace.find(base_scores(tmp_path)["One"])
        for changed in ({"query_template": "Instruct: {instruction}\nQuery:"}, {"precision": "bf16"}):
            assert workspace.find(base_scores(tmp_path, **changed)["One"]) is None
        patch.setattr(scoring, "mteb_version", lambda: "2.99.0")
        assert workspace.find(base_scores(tmp_path)["One"]) is None
    newer = retrieval("One")
    newer.metadata = newer.metadata.model_copy(update={"dataset": {**newer.metadata.dataset, "revision": "2" * 40}})
    benchmark(monkeypatch, newer)
    assert workspace.find(base_scores(tmp_path)["One"]) is None


def test_study_facts_list_the_tasks_of_a_benchmark_beside_those_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark(monkeypatch, retrieval("One"), retrieval("Two"))
    profile, manifest = smoke()
    facts = scoring.task_facts(profile, manifest, scoring.profile_benchmarks(profile))
    shared = {"family": "retrieval", "domain": "in-domain", "new_data": False, "benchmark": NAME}
    shared |= {"metric": "ndcg_at_10", "languages": ["eng-Latn"]}
    assert facts[:2] == [{"name": "One", **shared}, {"name": "Two", **shared}]
    (corpus,) = facts[2:]
    assert (corpus["name"], corpus["domain"], corpus["new_data"]) == ("docstring_to_code", "out-of-domain", True)
    domains = benchmarks.tasks_by_domain(profile.evaluation)
    assert domains == {"in-domain": ["One", "Two"], "out-of-domain": ["docstring_to_code"]}


def test_a_base_without_instructions_is_scored_without_prompts() -> None:
    content = load_profile("mini").model_dump(mode="json")
    content["evaluation"] |= {"in_domain": [], "out_of_domain": [], "in_domain_benchmarks": ["NanoBEIR"]}
    content["base_model"]["prompts"] = "none"
    assert {task.prompt for task in scoring.profile_benchmarks(Profile.model_validate(content)).tasks.values()} == {""}


def test_a_template_has_one_place_for_the_instruction() -> None:
    for template in ("Query: ", "{instruction} {instruction}", "{query}"):
        with pytest.raises(ValueError, match="query_template"):
            smoke(query_template=template)


# --- data -------------------------------------------------------------------------------------------------------------


def parquet(*rows: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def card(**files: Mapping[str, str]) -> bytes:
    """A README that says which files make up which configuration."""
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in some.items()]}
        for name, some in files.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()


RETRIEVAL = {
    "README.md": card(**{name: {"test": f"{name}/test.parquet"} for name in ("corpus", "queries", "qrels")}),
    "corpus/test.parquet": parquet(*({"id": n, "title": "", "text": t} for n, t in (("a", "1 0"), ("b", "0 1")))),
    "queries/test.parquet": parquet({"id": "q", "text": "1 0.1"}),
    "qrels/test.parquet": parquet({"query-id": "q", "corpus-id": "a", "score": 1}),
    "picture.png": b"no data",
}
CLASSES = {
    "README.md": card(default={"train": "train.parquet", "test": "test.parquet"}),
    "train.parquet": parquet(*[{"text": f"{1 - n} {n}", "label": n} for n in (0, 1)] * 9),
    "test.parquet": parquet(*[{"text": f"{1 - n} {n}", "label": n} for n in (0, 1)] * 2),
}


@pytest.fixture
def repositories(hub: HubServer) -> HubServer:
    hub.repos.update({"tiny/retrieval": dict(RETRIEVAL), "tiny/classes": dict(CLASSES)})
    return hub


def hub_task(kind: type[AbsTask], mteb_type: str, repo: str, score: str) -> type[AbsTask]:
    """A task as mteb has them: its own loader reads the repository its metadata name."""
    metadata = task_class(kind, mteb_type, score, None, name=f"Tiny{mteb_type}").metadata
    named = metadata.model_copy(update={"dataset": {"path": repo, "revision": REVISION}})
    return type(f"Tiny{mteb_type}", (kind,), {"metadata": named})


def tiny_tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, BenchmarkTask]:
    return benchmark(
        monkeypatch,
        hub_task(AbsTaskRetrieval, "Retrieval", "tiny/retrieval", "ndcg_at_10"),
        hub_task(AbsTaskClassification, "Classification", "tiny/classes", "accuracy"),
    )


@pytest.mark.promise(6)
def test_fetched_data_are_scored_offline(
    monkeypatch: pytest.MonkeyPatch, repositories: HubServer, tmp_path: Path
) -> None:
    hub, tasks = repositories, tiny_tasks(monkeypatch)
    assert set(fetch_benchmarks(tasks.values())) == {"tiny/retrieval", "tiny/classes"}
    assert not hub.gets("picture.png")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    use_words(monkeypatch)
    asked = len(hub.requests)
    for name, task in tasks.items():
        facts = run.evaluate_task("m", tmp_path, task, tmp_path, run.Scoring(downloads=tmp_path / "downloads"))
        assert facts["main_score"] == 1.0, name
        stored = json.loads((tmp_path / f"{name}.json").read_text())
        assert stored["dataset_revision"] == REVISION and str(tmp_path) not in json.dumps(stored)
    with random_state_kept():
        made = benchmarks.make_benchmark_task(tasks["TinyRetrieval"])
        benchmarks.load_benchmark_data(made, tasks["TinyRetrieval"], tmp_path / "datasets")
    assert made.metadata.dataset == {"path": "tiny/retrieval", "revision": REVISION}
    assert len(fetch_benchmarks(tasks.values())) == 2 and len(hub.requests) == asked


def test_the_data_of_a_profile_are_those_of_its_corpus_and_its_benchmarks(
    monkeypatch: pytest.MonkeyPatch, repositories: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = repositories
    tiny_tasks(monkeypatch)
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(smoke()[0].model_dump(mode="json")), encoding="utf-8")
    hub.gated.add("tiny/classes")
    words = ["data", "fetch", "--profile", str(tmp_path / "mine.yaml")]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "it is mined from installed distributions" in said and "made-up: 2 tasks" in said
    assert "tiny/classes: it is gated" in said and "1 are there" in said
    came = hub.gets("corpus/test.parquet")
    hub.gated.clear()
    assert main(words) == 0
    assert "benchmark data: 2 repositories" in capsys.readouterr().out and hub.gets("corpus/test.parquet") == came


def test_absent_data_are_fetched_when_they_are_needed_or_name_the_command_that_does(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    use_words(monkeypatch)
    task, scoring = tiny_tasks(monkeypatch)["TinyRetrieval"], run.Scoring(downloads=tmp_path / "downloads")
    with pytest.raises(EvaluationError, match=r"(?s)data of TinyRetrieval.*tiny/retrieval at 0123.*boom data fetch"):
        run.evaluate_task("m", tmp_path, task, tmp_path, scoring)
    request.getfixturevalue("hub").repos["tiny/retrieval"] = dict(RETRIEVAL)
    assert run.evaluate_task("m", tmp_path, task, tmp_path, scoring)["main_score"] == 1.0
