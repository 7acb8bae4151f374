"""``boom evaluate``: any encoder folder on a profile's tasks; what is up to date stays, what fails is told last."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mteb  # before any test: importing it seeds the global random generators
import pytest
import yaml
from conftest import TEXTS, tiny_config
from made_up_tasks import NAME, benchmark, retrieval_split, task_class
from mteb.abstasks import AbsTaskRetrieval

from boom_utils.artifacts import Node
from boom_utils.cli import main
from boom_utils.config import PROFILES, Profile
from boom_utils.data.examples import write_jsonl
from boom_utils.errors import ConfigError
from boom_utils.study import stages
from boom_utils.study.evaluating import evaluate_models, find_tasks
from boom_utils.study.graph import Study
from boom_utils.training.base_model import random_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mine"
    random_encoder(TEXTS, tiny_config(), {"toy": ""}).save(folder)
    return folder


ESTIMATE = re.compile(r"([+-]?[\d.]+) \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")
TASKS = ("parameter_question", "summary_to_description")


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Smoke with a made-up benchmark, of two tasks in whose sets every query's document repeats it."""

    def make(out: Path, _: Any) -> None:
        for place in (out / "evaluation" / name for name in TASKS):
            write_jsonl(place / "corpus.jsonl", [{"id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)])
            write_jsonl(place / "queries.jsonl", [{"id": f"q{n}", "text": text} for n, text in enumerate(TEXTS)])
            write_jsonl(place / "qrels.jsonl", [{"query": f"q{n}", "document": f"d{n}"} for n in range(len(TEXTS))])

    data = {"default": {"test": retrieval_split({"q1": "a"})}}
    given = {"Fine": data, "Broken": lambda: 1 / 0}
    kinds = [task_class(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", one, name=name) for name, one in given.items()]
    benchmark(monkeypatch, *kinds)
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["evaluation"] |= {"in_domain": list(TASKS), "out_of_domain": [], "out_of_domain_benchmarks": [NAME]}
    monkeypatch.setattr(stages, "examples", lambda *_: Node("examples", 1, "examples", {}, make))
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "mine.yaml"


def opened(profile: Path) -> Study:
    return Study(Profile.model_validate(yaml.safe_load(profile.read_text())))


@pytest.mark.promise(29)
def test_what_is_up_to_date_stays_mteb_reads_all_of_it_and_a_failure_stops_no_other_task(
    profile: Path, model: Path, tmp_path: Path
) -> None:
    study, folder, out = opened(profile), shutil.copytree(model, tmp_path / "mine"), tmp_path / "out"
    for kept in (False, True):
        table, failed = evaluate_models(study, [str(folder)], ["Broken", *TASKS], out)
        assert [*failed] == ["mine, Broken"] and "division by zero" in table
        rows = [line.split() for line in table.splitlines()]
        assert {row[0]: row[-1] == "kept" for row in rows if row and row[0] in TASKS} == dict.fromkeys(TASKS, kept)
    results = mteb.ResultCache(out).load_results(validate_and_filter=False).model_results
    assert [(one.model_name, sorted(task.task_name for task in one.task_results)) for one in results] == [
        ("boom/mine", sorted(TASKS))
    ]
    assert all(0 < task.get_score() <= 1 for task in results[0].task_results)
    config = folder / "sentence_bert_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_seq_length": 4}))
    assert "kept" not in evaluate_models(opened(profile), [str(folder)], TASKS[:1], out)[0], "another model"


def test_the_command_scores_a_folder_and_its_table_says_score_interval_and_samples(
    profile: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(model), "--profile", str(profile), "--out", str(tmp_path / "out")]
    assert main([*words, "--tasks", "parameter_question", NAME]) == 1
    said = capsys.readouterr().out
    assert "1 tasks failed" in said and "division by zero" in said
    table = [line.split() for line in said.splitlines()]
    row = next(line for line in table if line[:1] == ["parameter_question"])
    low, high = (float(cell.strip("[,]")) for cell in row[3:5])
    assert row[1] == "ndcg_at_10" and row[5] == "8" and low <= float(row[2]) <= high and high > 1, "in points of 100"
    assert "mean: n/a (missing: Broken)" in said
    assert any(line[:2] == ["Fine", "ndcg_at_10"] for line in table)
    assert len(list((tmp_path / "out").rglob("Fine.json"))) == 1


def test_two_models_are_compared_task_by_task_on_the_same_queries(profile: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine"  # of the same name as the first: both are called by their paths
    random_encoder(TEXTS, tiny_config().model_copy(update={"seed": 5}), {"toy": ""}).save(other)
    table, failed = evaluate_models(opened(profile), [str(model), str(other)], TASKS, tmp_path / "out")
    assert not failed and f"{other} minus {model}" in table
    mean = next(line for line in table.splitlines() if line.startswith("mean of 2 tasks"))
    one, two, gap, *_ = ([float(value) for value in found] for found in ESTIMATE.findall(mean))
    assert gap[0] == pytest.approx(two[0] - one[0], abs=0.11) and gap[1] <= gap[0] <= gap[2]


def facts_of(home: Path, task: str) -> dict[str, Any]:
    """What the only score on a task was made with."""
    (folder,) = (path.parent for path in (home / "scores").rglob(f"{task}.json"))
    return dict(json.loads((folder / "record.json").read_text())["facts"])


CASES = ("plain", "include_prompt_false", "do_lower_case", "truncate_dim", "dot_product", "no_stated_length")


@pytest.mark.parametrize("case", [*CASES, "vocab_txt_only", "own_prompts", "trainer_output"])
def test_the_command_scores_the_folders_users_bring(
    profile: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder, out = cases / "models" / case, tmp_path / "out"
    assert main(["evaluate", str(folder), "--profile", str(profile), "--out", str(out), "--tasks", TASKS[0]]) == 0
    stored = facts_of(tmp_path / "home", TASKS[0])
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


def test_an_ensemble_is_scored_by_its_name_as_the_study_does(profile: Path, model: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(profile.read_text()) | {"ensembles": [{"name": "together", "members": ["s20", "s40"]}]}
    study = Study(Profile.model_validate(content))

    def make(out: Path, _: Any) -> dict[str, Any]:
        shutil.copytree(model, out, dirs_exist_ok=True)
        return {}

    for name in (one for one in study.nodes if not one.startswith(("scores/", "examples"))):
        object.__setattr__(study.nodes[name], "make", make)
    study.build("member/s20")
    with pytest.raises(ConfigError, match="'s40' of profile 'smoke' is not made yet"):
        evaluate_models(study, ["together"], TASKS, tmp_path / "out")
    study.build("member/s40")
    table, failed = evaluate_models(study, ["together"], TASKS, tmp_path / "out")
    assert not failed and "together" in table
    assert study.workspace.find(study.node(f"scores/together/{TASKS[0]}")) is not None


def test_models_and_tasks_that_are_not_there_are_named(profile: Path, model: Path) -> None:
    study = opened(profile)
    assert study.model_folder(str(model)) == (model, None)
    with pytest.raises(ConfigError, match="'full' of profile 'smoke' is not made yet"):
        evaluate_models(study, ["full"])
    with pytest.raises(ConfigError, match=r"'fulll' is neither a folder nor a model.*did you mean 'full'"):
        evaluate_models(study, [str(model), "fulll"])
    assert find_tasks(study) == [*TASKS, "Fine", "Broken"]
    with pytest.raises(ConfigError, match=r"(?s)no task 'fine'; did you mean 'Fine'.*no task 'sts'"):
        find_tasks(study, ["fine", "sts"])
