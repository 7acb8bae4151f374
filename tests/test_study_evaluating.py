"""``boom evaluate``: any encoder folder on a profile's tasks; what is up to date stays, what fails is told last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb  # before any test: importing it seeds the global random generators
import pytest
import yaml
from conftest import TEXTS, tiny_config
from made_up_tasks import NAME, benchmark, retrieval_split, task_class
from mteb.abstasks import AbsTaskRetrieval

from boom_utils.artifacts import Artifact
from boom_utils.cli import main
from boom_utils.config import PROFILES, Profile
from boom_utils.data.examples import write_jsonl
from boom_utils.errors import ConfigError
from boom_utils.evaluation import collection, run
from boom_utils.evaluation.benchmarks import BenchmarkTask
from boom_utils.evaluation.collection import Candidate, Collection, collect_scores
from boom_utils.evaluation.run import Scoring
from boom_utils.evaluation.tasks import LocalTask
from boom_utils.study.evaluating import find_model, find_tasks
from boom_utils.study.graph import Study
from boom_utils.training.base_model import random_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    folder = tmp_path_factory.mktemp("models") / "mine"
    random_encoder(TEXTS, tiny_config(), {"toy": ""}).save(folder)
    return Candidate("mine", folder)


def local(folder: Path, name: str = "toy", kind: str = "retrieval") -> LocalTask:
    """Every query's document repeats it."""
    place = folder / "evaluation" / name
    write_jsonl(place / "corpus.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)])
    write_jsonl(place / "queries.jsonl", [{"id": f"q{n}", "text": text} for n, text in enumerate(TEXTS)])
    write_jsonl(place / "qrels.jsonl", [{"query": f"q{n}", "document": f"d{n}"} for n in range(len(TEXTS))])
    return LocalTask(name, kind, place)


def made(name: str) -> BenchmarkTask:
    known = ("retrieval", "ndcg_at_10", ("test",), ("default",), ("eng-Latn",), ("made-up/x", "1" * 40))
    return BenchmarkTask(name, NAME, *known, ("find it", "kind"))


def evaluated(monkeypatch: pytest.MonkeyPatch, *asked: Any, **options: Any) -> tuple[Collection, list[str]]:
    """What came, and the tasks that were scored for it, in order."""
    order: list[str] = []

    def spy(name: str, folder: Path, task: Any, out: Path, scoring: Scoring) -> Any:
        order.append(task.name)
        return run.evaluate_task(name, folder, task, out, scoring)

    monkeypatch.setattr(collection, "evaluate_task", spy)
    return collect_scores(*asked, **options), order


@pytest.mark.promise(29)
def test_what_is_up_to_date_stays_and_mteb_reads_all_of_it(
    monkeypatch: pytest.MonkeyPatch, model: Candidate, tmp_path: Path
) -> None:
    out, tasks = tmp_path / "out", [local(tmp_path, "one"), local(tmp_path, "two")]
    first, order = evaluated(monkeypatch, model, tasks, out, Scoring())
    assert order == ["one", "two"] and [one.facts["main_score"] for one in first.scored] == [1.0, 1.0]
    again, order = evaluated(monkeypatch, model, tasks, out, Scoring())
    assert order == [] and all(one.before for one in again.scored)
    results = mteb.ResultCache(out).load_results(validate_and_filter=False).model_results
    assert [(one.model_name, sorted(task.task_name for task in one.task_results)) for one in results] == [
        ("boom/mine", ["one", "two"])
    ]
    assert not list(out.rglob("*.tmp"))


@pytest.mark.promise(29)
def test_another_prompt_other_data_or_another_mteb_is_scored_again(
    monkeypatch: pytest.MonkeyPatch, model: Candidate, tmp_path: Path
) -> None:
    task = local(tmp_path)
    evaluated(monkeypatch, model, [task], tmp_path / "out", Scoring())
    prompted = LocalTask(task.name, task.kind, task.folder, "find: ")
    assert evaluated(monkeypatch, model, [prompted], tmp_path / "out", Scoring())[1] == ["toy"]
    assert evaluated(monkeypatch, model, [prompted], tmp_path / "out", Scoring(precision="bf16"))[1] == ["toy"]
    monkeypatch.setattr(collection, "mteb_version", lambda: "2.99.0")
    assert evaluated(monkeypatch, model, [prompted], tmp_path / "out", Scoring())[1] == ["toy"]
    write_jsonl(task.folder / "qrels.jsonl", [{"query": "q0", "document": "d1"}])
    assert evaluated(monkeypatch, model, [prompted], tmp_path / "out", Scoring())[1] == ["toy"]


def test_a_failure_is_told_at_the_end_and_stops_no_other_task(
    monkeypatch: pytest.MonkeyPatch, model: Candidate, tmp_path: Path
) -> None:
    data = {"default": {"test": retrieval_split({"q1": "a"})}}
    classes = [
        task_class(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", given, name=name)
        for name, given in (
            ("Fine", data),
            ("Broken", lambda: 1 / 0),
        )
    ]
    benchmark(monkeypatch, *classes)
    tasks = [made("Fine"), made("Broken"), local(tmp_path)]
    found, order = evaluated(monkeypatch, model, tasks, tmp_path / "out", Scoring())
    assert order == ["Fine", "Broken", "toy"]
    assert [one.task for one in found.scored] == ["Fine", "toy"]
    assert list(found.problems) == ["Broken"] and "division by zero" in found.problems["Broken"]


def test_processes_share_the_tasks_and_give_the_same_scores(model: Candidate, tmp_path: Path) -> None:
    tasks = [local(tmp_path, "one"), local(tmp_path, "two", kind="poetry"), local(tmp_path, "three")]
    found = collect_scores(model, tasks, tmp_path / "out", Scoring(), devices=2)
    assert {one.task: one.facts["main_score"] for one in found.scored} == {"one": 1.0, "three": 1.0}
    assert "no task class for 'poetry'" in found.problems["two"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Smoke with a made-up benchmark; its examples are two tasks."""
    data = {"default": {"test": retrieval_split({"q1": "a"})}}
    benchmark(monkeypatch, task_class(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", data, name="Fine"))
    names = ("parameter_question", "summary_to_description")
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["evaluation"] |= {"in_domain": list(names), "out_of_domain": [], "out_of_domain_benchmarks": [NAME]}
    for name in names:
        local(tmp_path, name)
    examples = Artifact(tmp_path, {"facts": {}})
    monkeypatch.setattr(Study, "build", lambda self, name: examples)
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "mine.yaml"


def test_the_command_scores_a_folder_and_its_table_says_score_interval_and_samples(
    profile: Path, model: Candidate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(model.folder), "--profile", str(profile), "--out", str(tmp_path / "out"), "--devices", "1"]
    assert main([*words, "--tasks", "parameter_question", NAME]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in table if line[:1] == ["parameter_question"])
    assert row[1] == "ndcg_at_10" and row[6] == "8" and float(row[3]) <= float(row[2]) <= float(row[5])
    assert any(line[:2] == ["Fine", "ndcg_at_10"] for line in table)
    stored = json.loads(next((tmp_path / "out" / "samples").rglob("Fine.json")).read_text())
    assert stored["facts"]["prompt"] == "Instruct: Retrieve text based on user query.\nQuery: "
    (tmp_path / "evaluation" / "parameter_question" / "qrels.jsonl").write_text("{", encoding="utf-8")
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "1 tasks failed" in said and "qrels.jsonl" in said
    assert "summary_to_description  ndcg_at_10" in said


CASES = ("plain", "include_prompt_false", "do_lower_case", "truncate_dim", "dot_product", "no_stated_length")


@pytest.mark.parametrize("case", [*CASES, "vocab_txt_only", "own_prompts", "trainer_output"])
def test_the_command_scores_the_folders_users_bring(
    profile: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder, out = cases / "models" / case, tmp_path / "out"
    assert main(["evaluate", str(folder), "--profile", str(profile), "--out", str(out), "--devices", "1"]) == 0
    stored = json.loads(next((out / "samples").rglob("parameter_question.json")).read_text())["facts"]
    assert 0 <= stored["main_score"] <= 1
    assert stored.get("similarity", "cosine") == ("dot" if case == "dot_product" else "cosine")
    own = case == "own_prompts"
    assert (stored["prompt"] == "query: ", stored.get("passage_prompt") == "passage: ") == (own, own)
    assert ("not the prompts of the profile" in capsys.readouterr().out) is own


def test_the_command_refuses_weights_that_are_not_the_models(
    profile: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cases / "models" / "compiled_names"
    assert main(["evaluate", str(folder), "--profile", str(profile), "--out", str(tmp_path / "out")]) == 1
    assert "_orig_mod." in capsys.readouterr().out and not list((tmp_path / "out").rglob("*.json"))


def test_models_and_tasks_that_are_not_there_are_named(profile: Path, model: Candidate) -> None:
    study = Study(Profile.model_validate(yaml.safe_load(profile.read_text())))
    assert find_model(study, str(model.folder)) == ("mine", model.folder)
    with pytest.raises(ConfigError, match="'full' of profile 'smoke' is not made yet"):
        find_model(study, "full")
    with pytest.raises(ConfigError, match=r"'fulll' is neither a folder nor a model.*did you mean 'full'"):
        find_model(study, "fulll")
    assert [task.name for task in find_tasks(study)] == ["parameter_question", "summary_to_description", "Fine"]
    with pytest.raises(ConfigError, match=r"(?s)no task 'fine'; did you mean 'Fine'.*no task 'sts'"):
        find_tasks(study, ["fine", "sts"])
