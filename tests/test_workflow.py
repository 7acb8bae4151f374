"""Studies on a cluster: single nodes are made by name, and a study's nodes are bundled into jobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HANGS, TEXTS, bert_folder

from boom_utils.artifacts import PROJECT_ROOT, Workspace
from boom_utils.cli import main
from boom_utils.config import load_profile
from boom_utils.data.examples import write_jsonl
from boom_utils.study.fit import Fit, write_study
from boom_utils.study.graph import Study
from boom_utils.study.jobs import jobs_of
from boom_utils.study.plan import plan_study

WORKFLOW = PROJECT_ROOT / "workflow"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of sixty rows and a tiny model."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"query": f"{text} {n}", "pos": [f"answer {n} {text}"], "neg": [f"other {n}"]}
        for n in range(8)
        for text in TEXTS
    ]
    write_jsonl(folder / "faq.jsonl", rows)
    base, ratios = str(bert_folder(folder / "model")), (0.4, 0.7, 1.0)
    own = Fit({"faq": [str(folder / "faq.jsonl")]}, base, prompt="Find it.", held_out=0.2, ratios=ratios)
    return write_study(own, folder / "study")


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "workspace"))
    return Workspace(tmp_path / "workspace")


# --- boom build -------------------------------------------------------------------------------------------------------


def test_named_nodes_are_made_with_what_they_are_made_of_once_and_the_receipt_says_what_came_out(
    profile: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, names = tmp_path / "receipts" / "a.json", ["subset/p40", "subset/p70"]
    assert main(["build", *names, "--profile", str(profile), "--receipt", str(receipt)]) == 0
    said, written = capsys.readouterr().out, receipt.read_bytes()
    assert "examples of own_data: started" in said
    found = workspace.find_all(Study(load_profile(profile), workspace).nodes)
    assert {*found} == {"examples", *names}
    assert json.loads(written) == {
        name: {"key": found[name].key, "digest": found[name].digest, "seconds": found[name].record["wall_seconds"]}
        for name in names
    }
    assert main(["build", *names, "--profile", str(profile), "--receipt", str(receipt)]) == 0
    assert "started" not in capsys.readouterr().out
    assert receipt.read_bytes() == written


def test_an_unknown_node_is_an_error_before_anything_is_made(
    profile: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "subset/p40", "member/ful", "--profile", str(profile)]) == 2
    assert "no 'member/ful'; did you mean 'member/full'?" in capsys.readouterr().out
    assert not workspace.root.exists()


# --- boom plan --jobs -------------------------------------------------------------------------------------------------


Jobs = dict[str, dict[str, Any]]
MEASURED = {"parameters": 2e6, "matrices": 1e6, "flops_per_second": 1e9, "encoding_flops_per_second": 1e9}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Study, dict[int | None, Jobs]]]:
    """Studies, and their jobs by name with the devices of the profile and without any."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boom_utils.machine.measure", lambda *_: MEASURED)
        for name in ("smoke", "paper-0.6b"):
            study = Study(load_profile(name), Workspace(tmp_path_factory.mktemp(name)))
            plan = plan_study(study)
            found[name] = (
                study,
                {most: {one["name"]: one for one in jobs_of(study, plan, most)} for most in (None, 0)},
            )
    return found


@pytest.mark.parametrize("name", ["smoke", "paper-0.6b"])
def test_every_node_is_in_one_job_and_everything_it_is_made_of_comes_before(
    name: str, studies: dict[str, tuple[Study, dict[int | None, Jobs]]]
) -> None:
    study, jobs = studies[name][0], studies[name][1][None]
    done: dict[str, set[str]] = {}
    for job in jobs.values():
        made = set().union(*(done[other] for other in job["after"]))
        for node in job["nodes"]:
            assert {*study.inputs[node]} <= made, "it waits for what it reads"
            made.add(node)
        done[job["name"]] = {*job["nodes"]}
    assert sorted(node for nodes in done.values() for node in nodes) == sorted(study.nodes)
    assert len(jobs) < len(study.nodes) / 3
    kinds = {"data", "base", "tokens", "member", "pair", "merge", "scores", "report"}
    assert {job["kind"] for job in jobs.values()} == kinds


def test_the_bundles_of_the_paper_are_a_model_or_a_pair_or_all_scores_of_a_model_and_ask_for_its_devices(
    studies: dict[str, tuple[Study, dict[int | None, Jobs]]],
) -> None:
    study, jobs = studies["paper-0.6b"]
    asked = [jobs[None][name] for name in ("member/full", "pair/pair-1-2", "scores/full", "merge/boom")]
    assert (len(study.nodes), len(jobs[None])) == (4736, 643)
    assert asked[0]["nodes"] == ["plan/full", "member/full"]
    assert asked[1]["nodes"] == [f"interaction/{kind}/pair-1-2" for kind in ("plan", "member", "losses")]
    assert asked[2]["nodes"] == [name for name in study.nodes if name.startswith("scores/full/")]
    assert [job["gpus"] for job in asked] == [8, 8, 1, 0]
    none = (*jobs[0].values(), *studies["smoke"][1][None].values())
    assert not any(job["gpus"] for job in none), "a tiny base is trained on processors"
    assert all(job["minutes"] > 0 and job["mem_mb"] > 0 for some in jobs.values() for job in some.values())


def test_jobs_keep_their_keys_until_what_they_do_changes(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boom_utils.machine.measure", lambda *_: MEASURED)

    def keys(ratio: float) -> dict[str, str]:
        content = yaml.safe_load(profile.read_text(encoding="utf-8"))
        content["subsets"][0]["ratio"] = ratio
        (changed := profile.with_name("changed.yaml")).write_text(yaml.safe_dump(content), encoding="utf-8")
        study = Study(load_profile(changed), Workspace(tmp_path))
        plan = plan_study(study)
        return {job["name"]: job["key"] for job in jobs_of(study, plan)}

    before, again, after = keys(0.4), keys(0.4), keys(0.5)
    assert before == again
    assert {name for name in before if before[name] == after[name]} == {
        *("base", "tokens", "member/s70", "member/full", "geometry", "scores/base", "scores/full")
    }


# --- Snakemake --------------------------------------------------------------------------------------------------------


def test_snakemake_makes_a_study_that_a_run_finds_up_to_date(
    profile: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snakemake = shutil.which(
        "snakemake", path=f"{PROJECT_ROOT / '.venv-cluster' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    )
    if snakemake is None:
        pytest.skip("Snakemake is not installed (make cluster)")
    content = yaml.safe_load(profile.read_text(encoding="utf-8"))
    content |= {"subsets": content["subsets"][-1:], "members": content["members"][-1:], "merges": [], "experiments": {}}
    (small := profile.with_name("small.yaml")).write_text(yaml.safe_dump(content), encoding="utf-8")
    jobs = tmp_path / "jobs.json"
    assert main(["plan", "--profile", str(small), "--jobs", str(jobs), "--gpus", "0"]) == 0
    command = [snakemake, "--snakefile", str(WORKFLOW / "Snakefile"), "--profile", str(WORKFLOW / "profiles" / "local")]
    command += ["--retries", "0", "--config", f"jobs={jobs}", "threads=1", f"boom={sys.executable} -m boom_utils"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    study = Study(load_profile(small), workspace)
    found = workspace.find_all(study.nodes)
    assert {*found} == {*study.nodes}
    receipts = [json.loads(path.read_text(encoding="utf-8")) for path in (workspace.root / "receipts").rglob("*.json")]
    assert {name: facts["digest"] for one in receipts for name, facts in one.items()} == {
        name: artifact.digest for name, artifact in found.items()
    }
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS, check=False)
    assert "Nothing to be done" in again.stderr + again.stdout
