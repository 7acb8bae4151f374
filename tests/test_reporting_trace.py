"""Every file of a report leads back to the data, with its workspace and without; what changed since is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from conftest import plain_smoke
from made_up_results import GEOMETRY

from boom_utils.artifacts import Artifact, Node, Workspace, sha256_file, write_json, write_text
from boom_utils.cli import main
from boom_utils.config import Profile
from boom_utils.data.manifest import load_manifest
from boom_utils.errors import ConfigError, ResultsError, WorkspaceError
from boom_utils.reporting.figures import model_means, task_deltas
from boom_utils.reporting.report import write_mteb_results
from boom_utils.reporting.results import read_numbers, read_results
from boom_utils.reporting.trace import corpus_entries, trace_text
from boom_utils.study import runner
from boom_utils.study.graph import Study
from boom_utils.study.runner import publish

LOG = "\n".join(json.dumps({"step": n, "dataset": name, "queries": 2, "loss": 1.0}) for n, name in enumerate("abab"))


def made_up(node: Node, study: Study) -> Callable[[Path, Mapping[str, Artifact]], Mapping[str, Any] | None]:
    """What stands in for a stage: files of the right names, nothing trained."""

    def make(out: Path, found: Mapping[str, Artifact]) -> Mapping[str, Any] | None:
        if node.stage == "examples":
            write_json(out / "summary.json", {"sets": {"train/a": {"rows": 8, "query_words": {"median": 3.0}}}})
            corpus = study.profile.corpus
            return {"rows": {f"train/{name}": 8 for name in (*corpus.datasets, *corpus.new_datasets)}}
        if node.stage == "scores":
            model, task = node.config["model"], node.config["task"]["id"]
            values = np.random.default_rng([*map(ord, model + task)]).uniform(0, 1, 12).round(4).tolist()
            samples = {"metric": "ndcg_at_10", "ids": [*map(str, range(12))], "columns": {"value": values}}
            write_json(out / "samples.json", samples)
            found = {"test": [{"main_score": 0.5, "hf_subset": "default", "languages": ["eng-Latn"]}]}
            told = {"task_name": task, "dataset_revision": "1", "mteb_version": "2", "evaluation_time": 0.1}
            write_json(out / f"{task}.json", {**told, "scores": found, "kg_co2_emissions": None})
            return {"metric": "ndcg_at_10", "main_score": 0.5, "revision": f"of {model}"}
        if node.stage == "geometry":
            write_json(out / "geometry.json", GEOMETRY)
        else:
            write_text(out / ("training_log.jsonl" if node.stage in ("member", "base") else "made.txt"), LOG)
        facts = {"steps": 4, "examples": 8, "tokens": 64, "mean_loss_last_tenth": 1.0, "device": "toy", "processes": 2}
        return {**facts, "datasets": sorted(node.config.get("rules", {}))}

    return make


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The plain smoke study, from made-up stages to a real report."""
    content = plain_smoke()
    made = Study(Profile.model_validate(content), Workspace(tmp_path_factory.mktemp("study") / "workspace"))
    for name, node in made.nodes.items():
        if name not in ("results", "report"):
            object.__setattr__(node, "make", made_up(node, made))
    some = {"model_means": model_means, "task_deltas": task_deltas}  # nobody looks at the other figures here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boom_utils.reporting.report.study_figures", lambda _: some)
        made.build("report")
    return made


@pytest.fixture
def published(study: Study, tmp_path: Path) -> Path:
    folder = publish(study, tmp_path / "results")
    assert folder is not None
    return folder


@pytest.mark.promise(32)
def test_every_file_of_a_report_leads_over_scores_members_plans_and_base_to_the_versions(
    study: Study, published: Path
) -> None:
    order = ["scores of ", " merge boom (", " member s20 (", " batch plan of s20 (", " subset p20 ("]
    order += ["tokens of the training examples", "base model", "datasets "]
    order[-1] += study.node("examples").config["found"]["distributions"]["datasets"]
    for name in ("tables/headline.csv", "figures/model_means.svg", "claims.md", "report.html", "samples.parquet"):
        text = trace_text(published / name, whole=True)
        assert text.startswith(f"{name} (sha256 {sha256_file(published / name)[:12]}), of the results in smoke")
        places = [next(place for place, line in enumerate(text.splitlines()) if part in line) for part in order[:5]]
        assert places == sorted(places)
        assert all(part in text for part in order)
    kept = json.loads((published / "study.json").read_text())["lineage"]
    assert all(made in kept for source in kept.values() for made in source.get("inputs", {}).values())


def test_results_keep_the_artifacts_behind_them_and_no_others(study: Study, published: Path) -> None:
    kept = json.loads((published / "study.json").read_text())["lineage"]
    artifacts = {name: study.workspace.find(node) for name, node in study.nodes.items()}
    used = {name: one for name, one in artifacts.items() if one and one.path.name in kept}
    assert {name for name in artifacts if name.startswith(("member/", "merge/", "base", "examples"))} <= {*used}
    assert all(kept[one.path.name]["sha256"] == one.digest for one in used.values())
    assert len(kept) < len(artifacts), "subsets that nobody trains on, and scores, which their table names"
    scores = read_numbers(published).scores
    found = {(row["model"], row["task"]): row["key"] for row in scores.to_dict("records")}
    assert found["boom", "exception_class"] == study.build("scores/boom/exception_class").path.name
    assert (published / "study.json").stat().st_size < 100_000


def test_results_before_all_are_gathered_have_the_numbers_of_those_that_are(study: Study, published: Path) -> None:
    early, late = study.results_of(["full", "boom"]), read_results(published)
    assert {*early.models} == {"full", "boom"}
    for model in ("full", "boom"):
        for task, samples in early.samples(model).items():
            gathered = late.samples(model)[task]
            assert (samples.metric, samples.ids) == (gathered.metric, gathered.ids)
            assert np.array_equal(samples.columns["value"], gathered.columns["value"])
    assert early.training_log("full") == late.training_log("full") != []


def test_lists_are_short_unless_all_is_asked_for(published: Path) -> None:
    study = json.loads((published / "study.json").read_text())
    examples = next(one for one in study["lineage"].values() if one["stage"] == "examples")
    examples["corpus"] = [{"file": f"https://host/{n}", "sha256": str(n), "dataset": "d"} for n in range(9)]
    write_json(published / "study.json", study)
    short, whole = (trace_text(published / "tables" / "tasks.csv", whole=whole) for whole in (False, True))
    assert "9 files or installed distributions" in short and "and 6 more (--all)" in short
    assert "https://host/8 8 d" in whole and "more (--all)" not in whole
    for row in read_numbers(published).scores.to_dict("records"):
        assert f"scores of {row['model']} on {row['task']} ({row['key']}, sha256 {row['sha256'][:12]})" in whole


def test_mtebs_own_results_are_written_where_its_cache_reads_them(published: Path, tmp_path: Path) -> None:
    results = read_results(published)
    write_mteb_results(results, tmp_path / "mteb")
    found = mteb.ResultCache(tmp_path / "mteb").load_results(validate_and_filter=False).model_results
    assert {(one.model_name, one.model_revision, len(one.task_results)) for one in found} == {
        (f"boom/{model}", f"of {model}", len(results.study["tasks"])) for model in results.models
    }
    assert found[0].task_results[0].get_score() == 0.5


def test_folders_and_files_of_the_workspace_are_traced(study: Study) -> None:
    member, report = study.workspace.find(study.node("member/s20")), study.workspace.find(study.node("report"))
    assert member is not None and report is not None
    text = trace_text(member.path)
    assert text.startswith(f"member s20 (member/{member.path.name}, made 20")
    assert "batch plan of s20" in text and "base model" in text
    file = trace_text(member.path / "training_log.jsonl")
    assert file.startswith("training_log.jsonl, of\nmember s20 (")
    drawn = trace_text(report.path / "figures" / "task_deltas.svg")
    assert drawn.splitlines()[2].startswith("  <- results: 1 artifact") and "member s20 (" in drawn
    assert "installed distributions" in trace_text(study.build("examples").path)


def test_a_damaged_artifact_and_one_whose_inputs_are_gone_are_said(study: Study, tmp_path: Path) -> None:
    node = Node("base", 1, "base model", {}, lambda out, _: write_text(out / "x", "x"))
    place = Workspace(tmp_path).build(node).path
    (line,) = trace_text(place).splitlines()
    assert line.startswith("base model (base/"), "a stage without inputs is its own beginning"
    (place / "x").write_text("other")
    assert "WARNING: x CHANGED" in trace_text(place)
    (place / "x").unlink()
    assert "x IS GONE" in trace_text(place)
    shutil.copytree(study.build("plan/full").path, tmp_path / "plan" / "alone")
    with pytest.raises(WorkspaceError, match=r"what batch plan of full was made from is gone"):
        trace_text(tmp_path / "plan" / "alone")


def test_files_nothing_is_known_of_are_clear_errors(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean 'models\.csv'"):
        trace_text(published / "tables" / "model.csv")
    write_text(tmp_path / "alone" / "x.csv", "")
    with pytest.raises(ConfigError, match="nothing says where this file comes from"):
        trace_text(tmp_path / "alone" / "x.csv")
    for kept in (None, {"a": 1}):
        study = json.loads((published / "study.json").read_text())
        write_json(published / "study.json", {**study, "lineage": kept})
        with pytest.raises(ResultsError, match="do not say what they were made from"):
            trace_text(published / "tables" / "models.csv")


def test_files_of_a_manifest_are_named_with_their_sha256() -> None:
    dataset = load_manifest("open_text").dataset("squad_nqg").model_dump(mode="json")
    entries = corpus_entries({"datasets": {"squad_nqg": dataset}, "found": {}})
    assert {entry["sha256"] for entry in entries} == {file["sha256"] for file in dataset["origin"]["files"]}
    assert all(entry["file"].startswith("https://raw.githubusercontent.com/") for entry in entries)
    own = corpus_entries(
        {"datasets": {"mine": {"local": {"files": ["a.jsonl"]}}}, "found": {"mine": {"a.jsonl": "f00"}}}
    )
    assert own == [{"file": "a.jsonl", "sha256": "f00", "dataset": "mine"}]
    hub = {"repo": "a/b", "revision": None, "files": [{"path": "x.parquet", "sha256": None}]}
    assert corpus_entries({"datasets": {"h": {"hub": hub}}})[0]["file"] == "a/b@not chosen/x.parquet"


def test_the_command_prints_the_way_back_and_an_unknown_file_exits_with_2(
    published: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "nothing"))
    assert main(["trace", str(published / "claims.csv")]) == 0
    assert "of the results in smoke" in capsys.readouterr().out
    assert main(["trace", str(published / "claim.csv")]) == 2
    assert not (tmp_path / "nothing").exists(), "nothing is made"


def test_results_say_what_members_were_trained_on(published: Path) -> None:
    assert json.loads((published / "study.json").read_text())["environment"]["device"] == "2 x toy"
    assert "<dd>2 x toy</dd>" in (published / "report.html").read_text(encoding="utf-8")


def test_a_run_ends_by_naming_the_report(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_notebook", lambda *_: False)
    places = runner.run(study, runner.choose([], None), {"profile": "smoke"}, tmp_path / "results")
    assert list(places)[-1] == "report"
    assert places["report"] == tmp_path / "results" / "smoke" / "report.html"
    assert places["report"].is_file()
