"""Every file of a report leads back to the data, with its workspace and without; what changed since is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import plain_smoke

from boom_utils.artifacts import Artifact, Node, Workspace, write_json, write_text
from boom_utils.cli import main
from boom_utils.config import Profile
from boom_utils.data.manifest import load_manifest
from boom_utils.errors import ConfigError, ResultsError
from boom_utils.reporting import trace
from boom_utils.reporting.lineage import corpus_entries, read_lineage
from boom_utils.reporting.trace import trace_text
from boom_utils.study import runner
from boom_utils.study.graph import Study
from boom_utils.study.runner import publish

GEOMETRY = {
    "members": ["s20", "full"],
    "has_base": True,
    "cosines": [[1, 0.2], [0.2, 1]],
    "distances": [[0, 0.3], [0.3, 0]],
    "relative_updates": [0.1, 0.2],
    "layers": ["embedding", "layer 0"],
    "by_layer": [[0.05, 0.1], [0.15, 0.3]],
}
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
        elif node.stage == "geometry":
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
    content["evaluation"]["bootstrap_draws"] = 100
    made = Study(Profile.model_validate(content), Workspace(tmp_path_factory.mktemp("study") / "workspace"))
    for name, node in made.nodes.items():
        if name not in ("results", "report"):
            object.__setattr__(node, "make", made_up(node, made))
    made.build("report")
    return made


@pytest.fixture
def published(study: Study, tmp_path: Path) -> Path:
    folder = publish(study, tmp_path / "results")
    assert folder is not None
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A workspace that holds nothing."""
    return tmp_path / "nothing"


def steps(text: str) -> list[str]:
    """The lines of a tree without where they are known from."""
    return [line for line in text.splitlines() if not line.startswith("known from")]


def test_results_keep_everything_they_were_made_from(study: Study, published: Path) -> None:
    kept = read_lineage(published)
    artifacts = {name: study.workspace.find(node) for name, node in study.nodes.items()}
    wanted = {made.key[:20] for name, made in artifacts.items() if made and name not in ("results", "report")}
    unused = {key for key in wanted if key not in kept}
    assert all(study.workspace.root.joinpath("subset", key).is_dir() for key in unused), "subsets nobody trains on"
    assert all(made in kept for source in kept.values() for made in source.inputs.values())
    examples = [source for source in kept.values() if source.stage == "examples"]
    assert {
        "distribution": "numpy",
        "version": study.node("examples").config["found"]["distributions"]["numpy"],
    } in list(examples[0].corpus)
    assert (published / "lineage.json").stat().st_size < 100_000


@pytest.mark.promise(32)
def test_the_way_back_is_the_same_with_the_workspace_and_without_and_says_which(
    study: Study, published: Path, elsewhere: Path
) -> None:
    scores = "scores/boom/exception_class/samples.json"
    for name in ("tables/models.csv", "figures/model_means.svg", "claims.md", "report.html", scores):
        with_it = trace_text(published / name, workspace=study.workspace.root)
        without = trace_text(published / name, workspace=elsewhere)
        assert steps(with_it) == steps(without)
        assert f"known from the records of {study.workspace.root}" in with_it
        assert "lineage.json; no workspace has the records" in without
        assert "examples of python_docs" in with_it
        assert "WARNING" not in with_it


def test_a_table_leads_over_scores_members_plans_and_base_to_the_versions(published: Path, elsewhere: Path) -> None:
    lines = steps(trace_text(published / "tables" / "headline.csv", workspace=elsewhere))
    order = ["tables/headline.csv: sha256", "the report of profile smoke", "the results of profile smoke"]
    order += ["scores of 4 models on 7 tasks: base, boom, full, plain-mean", "2 merged models: boom, plain-mean"]
    order += ["5 members: full, s20, s40, s60, s80", "5 batch plans", "base model", "6 subsets: half, p20"]
    order += ["tokens of the training examples", "examples of python_docs", "installed distributions: datasets"]
    places = [next(place for place, line in enumerate(lines) if text in line) for text in order]
    assert places == sorted(places)
    assert len({len(line) - len(line.lstrip()) for line in lines}) >= 9, "each step is further in"


def test_a_file_is_traced_to_what_it_was_drawn_from_and_to_nothing_else(published: Path, elsewhere: Path) -> None:
    losses = trace_text(published / "figures" / "training_losses.svg", workspace=elsewhere)
    assert "5 members: full, s20, s40, s60, s80" in losses
    assert "scores of" not in losses
    assert "geometry of the task vectors" in trace_text(
        published / "figures" / "layer_updates.png", workspace=elsewhere
    )
    corpus = steps(trace_text(published / "tables" / "corpus.csv", workspace=elsewhere))
    assert not [line for line in corpus if "member" in line]
    one = trace_text(published / "training" / "s20" / "training_log.jsonl", workspace=elsewhere)
    assert "member s20" in one
    assert "full" not in one
    deviations = trace_text(published / "deviations.csv", workspace=elsewhere)
    assert deviations.splitlines()[-2].endswith("<- study.json, nothing else of the results")
    members = trace_text(published / "tables" / "members.csv", workspace=elsewhere)
    assert "10 members: full" in members
    assert "scores of" not in members
    theirs = trace_text(published / "tables" / "published_mteb_code_v1.csv", workspace=elsewhere)
    assert "published/published_scores.csv, sha256" in theirs


def test_lists_are_grouped_unless_all_is_asked_for(published: Path, elsewhere: Path) -> None:
    short = trace_text(published / "tables" / "tasks.csv", workspace=elsewhere)
    whole = trace_text(published / "tables" / "tasks.csv", workspace=elsewhere, whole=True)
    assert "and 7 more on" in short
    assert "scores of boom on exception_class" not in short
    kept = read_lineage(published)
    for key, source in kept.items():
        if source.stage == "scores":
            assert f"{source.label}: {key}, sha256 {source.sha256[:12]}" in whole


def test_a_changed_or_added_file_is_said(published: Path, elsewhere: Path) -> None:
    table = published / "tables" / "models.csv"
    table.write_text(table.read_text().replace("full", "fool"))
    samples = published / "scores" / "boom" / "exception_class" / "samples.json"
    samples.write_text(samples.read_text() + " ")
    said = trace_text(table, workspace=elsewhere)
    assert "tables/models.csv CHANGED: sha256" in said
    assert "WARNING: changed since the report was drawn: scores/boom/exception_class/samples.json" in said
    assert "CHANGED" in trace_text(samples, workspace=elsewhere)
    added = published / "scores" / "boom" / "exception_class" / "more.json"
    added.write_text("{}")
    assert "it was added later" in trace_text(added, workspace=elsewhere)


def test_folders_and_files_of_the_workspace_are_traced(study: Study) -> None:
    member, report = study.workspace.find(study.node("member/s20")), study.workspace.find(study.node("report"))
    assert member is not None
    assert report is not None
    text = trace_text(member.path)
    assert text.startswith(f"member s20 (member/{member.path.name}, made 20")
    assert "batch plan of s20" in text
    assert "base model" in text
    file = trace_text(member.path / "training_log.jsonl")
    assert file.startswith("training_log.jsonl: sha256")
    losses = trace_text(report.path / "figures" / "training_losses.svg")
    assert "5 members" in losses
    assert "scores of" not in losses
    assert "installed distributions" in trace_text(study.build("examples").path)


def test_a_damaged_artifact_is_said(study: Study, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(study.workspace.root, copied)
    made = study.workspace.find(study.node("plan/full"))
    assert made is not None
    place = copied / "plan" / made.path.name
    (place / "made.txt").write_text("other")
    assert "WARNING: made.txt CHANGED" in trace_text(place)
    (place / "made.txt").unlink()
    assert "made.txt IS GONE" in trace_text(place)


def test_results_are_traced_by_what_they_keep_when_parts_of_the_workspace_are_gone(
    study: Study, published: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(study.workspace.root, copied)
    shutil.rmtree(copied / "plan")
    text = trace_text(published / "tables" / "models.csv", workspace=copied)
    assert "batch plans" in text
    assert "no workspace has the records" in text


def test_files_nothing_is_known_of_are_clear_errors(published: Path, elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean 'models\.csv'"):
        trace_text(published / "tables" / "model.csv")
    write_text(tmp_path / "alone" / "x.csv", "")
    with pytest.raises(ConfigError, match="nothing says where this file comes from"):
        trace_text(tmp_path / "alone" / "x.csv")
    write_text(published / "notes.txt", "")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a file of these results"):
        trace_text(published / "notes.txt", workspace=elsewhere)
    (published / "lineage.json").unlink()
    with pytest.raises(ResultsError, match="do not say what they were made from"):
        trace_text(published / "tables" / "models.csv", workspace=elsewhere)
    write_text(published / "lineage.json", '{"a": 1}')
    with pytest.raises(ResultsError, match="this is no lineage"):
        trace_text(published / "tables" / "models.csv", workspace=elsewhere)


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


def test_the_way_back_ends_at_a_few_files_or_at_all() -> None:
    entries = [{"file": f"https://host/{n}", "sha256": str(n), "dataset": "d"} for n in range(9)]
    few, everything = trace._corpus(entries, whole=False), trace._corpus(entries, whole=True)
    assert few[0] == everything[0] == "9 files of 1 dataset of the manifest"
    assert few[-1].strip() == "and 6 more (--all)"
    assert len(everything) == 10


def test_the_command_prints_the_way_back_and_an_unknown_file_exits_with_2(
    published: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("BOOM_HOME", str(elsewhere))
    assert main(["trace", str(published / "claims.csv")]) == 0
    assert "<- of the results of profile smoke" in capsys.readouterr().out
    assert main(["trace", str(published / "claim.csv")]) == 2
    assert not elsewhere.exists(), "nothing is made"


def test_results_say_what_members_were_trained_on(published: Path) -> None:
    assert json.loads((published / "study.json").read_text())["environment"]["device"] == "2 x toy"
    assert "<dd>2 x toy</dd>" in (published / "report.html").read_text(encoding="utf-8")


def test_a_run_ends_by_naming_the_report(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_notebook", lambda *_: False)
    places = runner.run(study, "smoke", runner.RunOptions(results=tmp_path / "results"))
    assert list(places)[-1] == "report"
    assert places["report"] == tmp_path / "results" / "smoke" / "report.html"
    assert places["report"].is_file()


def test_a_stage_without_inputs_is_its_own_beginning(tmp_path: Path) -> None:
    node = Node("base", 1, "base model", {}, lambda out, _: write_text(out / "x", "x"))
    lines = trace_text(Workspace(tmp_path).build(node).path).splitlines()
    assert lines[0].startswith("base model (base/")
    assert len(lines) == 2
