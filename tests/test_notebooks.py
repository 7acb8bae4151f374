"""The whole smoke study, as a user runs it: notebooks by papermill, headless, offline, from another folder."""

from __future__ import annotations

import logging
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import HANGS, damaged
from docstring_examples import examples, needs_a_finished_run
from docstring_examples import run as run_example
from jupyter_client import KernelManager
from smoke_run import CANARY, Run, command, environment

from boom_utils.artifacts import PROJECT_ROOT, Workspace
from boom_utils.cli import main
from boom_utils.config import PROFILES, Profile, load_profile
from boom_utils.evaluation.benchmarks import random_state_kept
from boom_utils.merging.recipe import load_recipe
from boom_utils.reporting.claims import counts_of
from boom_utils.reporting.report import write_mteb_results, write_report
from boom_utils.reporting.results import read_results
from boom_utils.study.graph import NOTEBOOKS, Study
from boom_utils.study.runner import OwnKernel

pytestmark = pytest.mark.notebooks


@pytest.mark.promise(34)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_runs_headless_to_its_end(smoke: Run, name: str) -> None:
    executed = smoke.home / "executed" / "smoke"
    book = nbformat.read(executed / f"{name}.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert (executed / f"{name}.html").stat().st_size > 100_000


@pytest.fixture
def logging_is_put_back() -> Iterator[None]:
    """`open_study` makes logs a notebook's."""
    loggers = [logging.getLogger(name) for name in (None, "boom_utils")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.promise(43)
@pytest.mark.parametrize("name", [name for name, test in examples().items() if needs_a_finished_run(test)])
def test_the_example_of_a_docstring_works_after_the_run(
    smoke: Run, name: str, monkeypatch: pytest.MonkeyPatch, logging_is_put_back: None
) -> None:
    monkeypatch.chdir(smoke.results.parent.parent)
    monkeypatch.setenv("BOOM_HOME", str(smoke.home))
    assert not run_example(examples()[name])


@pytest.mark.promise(40)
def test_it_works_from_another_folder_in_a_path_with_spaces_and_writes_nothing_into_the_project(smoke: Run) -> None:
    assert smoke.source_untouched


def test_the_main_table_has_every_model_with_an_interval_in_and_out_of_domain(smoke: Run) -> None:
    table = smoke.table("models").set_index("model")
    assert list(table.index) == smoke.study.profile.scored_models
    assert {"random", "base", "full", "boom", "boom-updated", "by-dataset", "family-ties", "continued"} < {*table.index}
    for domain in ("in-domain", "out-of-domain"):
        assert (table[f"{domain} low"] < table[domain]).all()
        assert (table[domain] < table[f"{domain} high"]).all()
    assert table.loc["boom", "corpus passes"] == pytest.approx(3.0)
    assert table.loc["boom-updated", "corpus passes"] == pytest.approx(3.0 + table.loc["update", "corpus passes"])


def test_the_base_beats_random_by_more_than_its_interval_and_fine_tuned_models_are_above_the_base(smoke: Run) -> None:
    """A few hundred queries are too few to promise more of models that are three points apart."""
    checks = smoke.table("checks").set_index("model")
    assert checks.loc["base", "in-domain difference low"] > 0
    assert (checks.loc[["full", "plain-mean", "boom"], "in-domain difference"] > 0).all()


def test_an_update_is_compared_with_retraining_with_an_interval_and_a_verdict_each(smoke: Run) -> None:
    table = smoke.table("incremental").set_index("model")
    updates = ["boom-updated", "updated-no-core"]
    assert list(table.index) == ["boom", "update", *updates, "retrained", "continued"]
    others = table.drop(index="retrained")
    for group in ("old", "new", "out-of-domain"):
        gap, low, high = (others[f"{group} minus retrained{bound}"] for bound in ("", " low", " high"))
        assert ((low < gap) & (gap < high)).all()
        expected = np.where(low > 0, "better", np.where(high < 0, "worse", "inconclusive"))
        assert list(others[f"{group} verdict"]) == list(expected)
    assert table.loc["boom", "examples to train"] == 0
    assert table.loc["boom-updated", "examples to train"] == table.loc["update", "examples to train"]
    assert 0.4 < table.loc["update", "share of retraining"] < 0.6


def test_the_schedules_are_compared_with_an_interval_and_a_verdict_each(smoke: Run) -> None:
    table = smoke.table("schedules").set_index("member")
    assert list(table.index) == ["full", "seq-datasets", "two-stage"]
    assert table.loc["full"].filter(like="minus").isna().all()
    for domain in ("in-domain", "out-of-domain"):
        others = table.drop(index="full")
        gap, low, high = (others[f"{domain} minus shuffling{bound}"] for bound in ("", " low", " high"))
        assert ((low < gap) & (gap < high)).all()
        expected = np.where(low > 0, "better", np.where(high < 0, "worse", "inconclusive"))
        assert list(others[f"{domain} verdict"]) == list(expected)


def test_granularities_and_methods_are_compared_with_an_interval_each(smoke: Run) -> None:
    granularities, methods = smoke.table("granularities"), smoke.table("methods")
    assert {"by-dataset", "by-family", "by-cluster"} < {*granularities["model"]}
    assert {"ties", "slerp", "model_stock", "multislerp"} <= {
        word.split(",")[0].split(" ")[0] for word in methods["method"]
    }
    for table in (granularities, methods):
        compared = table[table["in-domain minus full"].notna()]
        assert len(compared) >= 3
        assert (compared["in-domain minus full low"] < compared["in-domain minus full high"]).all()


def test_every_claim_has_a_verdict_or_says_that_it_is_not_tested(smoke: Run) -> None:
    claims = pd.read_csv(smoke.results / "claims.csv")
    assert len(claims) >= 10
    counts = counts_of(claims["verdict"])
    assert sum(counts.values()) == len(claims)
    assert counts["described"] + counts["not tested by this profile"] < len(claims)
    assert (smoke.results / "claims.md").stat().st_size > 500
    assert (smoke.results / "tables" / "settings.md").stat().st_size > 500


@pytest.mark.promise(38)
def test_asked_again_with_nothing_changed_it_starts_no_kernel(smoke: Run) -> None:
    arguments = command("run", "--profile", "smoke", "--results", str(smoke.results.parent))
    done = subprocess.run(
        arguments, env=environment(smoke.home), capture_output=True, text=True, timeout=HANGS, check=True
    )
    assert done.stdout.count("up to date") == len(NOTEBOOKS)
    assert "started" not in done.stdout


@pytest.mark.promise(38)
def test_a_changed_merge_weight_asks_for_that_merge_and_what_follows_from_it_only(smoke: Run) -> None:
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["merges"][1]["weights"] = [1, 1, 1, 1, 2]
    study = Study(Profile.model_validate(content), Workspace(smoke.home))
    missing = {name for name, node in study.nodes.items() if study.workspace.find(node) is None}
    tasks = [*study.profile.evaluation.in_domain, *study.profile.evaluation.out_of_domain]
    # The others are made from the first.
    merges = ("boom", "boom-updated", "updated-no-core")
    scored = {f"scores/{model}/{task}" for model in (*merges, "continued") for task in tasks}
    assert missing == {"results", "report", "member/continued", *(f"merge/{merge}" for merge in merges), *scored}


@pytest.mark.promise(36)
@pytest.mark.promise(39)
def test_nothing_written_holds_the_token_an_absolute_path_or_the_host(smoke: Run) -> None:
    private = [str(smoke.home), str(Path.home()) + "/", f'"{socket.gethostname()}"', str(PROJECT_ROOT)]
    for path in (*smoke.home.rglob("*"), *smoke.results.rglob("*")):
        if path.is_file() and path.suffix in {
            ".json",
            ".jsonl",
            ".ipynb",
            ".html",
            ".md",
            ".yaml",
            ".csv",
            ".svg",
            ".yml",
        }:
            text = path.read_text(encoding="utf-8")
            assert CANARY not in text, path
            if path.name == "record.json" or smoke.results in path.parents or path.suffix in {".md", ".yaml"}:
                assert not [secret for secret in private if secret in text], path
    assert CANARY not in smoke.output


def test_every_artifact_is_what_its_record_says(smoke: Run) -> None:
    study = smoke.study
    for name, node in study.nodes.items():
        artifact = study.workspace.find(node)
        assert artifact is not None, name
        assert damaged(artifact) == [], name
        if name.startswith("merge/"):  # its recipe names the members from where the merged model lies
            recipe = load_recipe(artifact.path / "mergekit_config.yaml")
            assert all((entry.model / "model.safetensors").is_file() for entry in recipe.models), name


@pytest.mark.promise(32)
def test_tables_and_figures_come_out_byte_for_byte_the_same_from_the_results(smoke: Run, tmp_path: Path) -> None:
    written = write_report(smoke.results, tmp_path)["written"]
    assert len(written) >= 12
    for name in written:
        assert (tmp_path / name).read_bytes() == (smoke.results / name).read_bytes(), name


@pytest.mark.promise(28)
def test_mteb_reads_every_result(smoke: Run, tmp_path: Path) -> None:
    import mteb

    found = read_results(smoke.results)
    with random_state_kept():
        write_mteb_results(found, tmp_path)
        cache = mteb.ResultCache(tmp_path).load_results()
        scores = {
            (one.model_name.removeprefix("boom/"), result.task_name): result.get_score()
            for one in cache.model_results
            for result in one.task_results
        }
    expected = {(model, task["name"]) for model in found.models for task in found.study["tasks"]}
    assert {*scores} == expected
    for (model, task), score in scores.items():
        assert found.mean(model, [task]).value == pytest.approx(score, abs=1e-4)


def test_the_merged_model_loads_in_sentence_transformers_and_pools_like_its_members(smoke: Run) -> None:
    from sentence_transformers import SentenceTransformer

    from boom_utils.models import Encoder

    folder = smoke.study.build("merge/boom").path
    ours = Encoder.load(folder)
    prompt = ours.spec.prompts["parameter_question"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(["axis of mean"], prompt_name="parameter_question")
    assert np.abs(ours.encode(["axis of mean"], prompt) - theirs).max() < 1e-5
    assert prompt.startswith("Instruct: ")


def test_the_recipe_on_the_released_models_card_gives_the_studys_model(smoke: Run, tmp_path: Path) -> None:
    """Same keys, order and weights as the card's YAML; only the model paths are ours."""
    weights = {"s60": 0.6, "s20": 0.2, "s40": 0.4, "s80": 0.8, "full": 1.0}
    models = "".join(
        f"  - model: {smoke.study.build(f'member/{name}').path}\n    parameters:\n      weight: {weight}\n"
        for name, weight in weights.items()
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"models:\n{models}merge_method: multislerp\ndtype: float32\n", encoding="utf-8")
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 0
    from safetensors.numpy import load_file

    card = load_file(tmp_path / "out" / "model.safetensors")
    study = load_file(smoke.study.build("merge/boom").path / "model.safetensors")
    assert card.keys() == study.keys()
    assert max(float(np.abs(card[name] - study[name]).max()) for name in card) < 1e-6


@pytest.mark.promise(16)
def test_a_stage_that_is_killed_or_stopped_goes_on_when_it_is_asked_for_again_and_nothing_else_is_made(
    smoke: Run, tmp_path: Path
) -> None:
    """A member of a smaller base, in a workspace that holds the corpus: SIGKILL while the base trains, then SIGTERM."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    profile = tmp_path / "killed.yaml"
    base = {**content["base_model"], "hidden_size": 32}
    profile.write_text(yaml.safe_dump({**content, "name": "killed", "base_model": base}), encoding="utf-8")
    arguments, attempts = command("train", "full", "--profile", str(profile)), smoke.home / ".tmp"

    def begin() -> tuple[subprocess.Popen[str], Iterator[str]]:
        process = subprocess.Popen(arguments, env=environment(smoke.home), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, iter(process.stdout)

    process, said = begin()
    assert any("base model: started" in line for line in said)
    time.sleep(1)
    process.kill()
    process.wait()
    made = Study(load_profile(profile), Workspace(smoke.home))
    assert made.workspace.find(made.node("base")) is None
    process, said = begin()
    before = []
    for line in said:
        before.append(line)
        if "member full: started" in line:
            break
    while process.poll() is None and not [
        path for path in attempts.glob("member-*/*/training_log.jsonl") if path.stat().st_size
    ]:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    last = [*said]
    assert process.wait() == 130, last
    assert "base model: done" in "".join(before)
    assert "examples of python_docs: started" not in "".join(before)
    assert not list(attempts.glob("base-*"))
    assert f"To go on: boom train full --profile {tmp_path}" in last[-1]
    step = int(re.search(r"stopped after step (\d+) of 96", "".join(last))[1])  # type: ignore[index]
    process, said = begin()
    assert f"resumed after step {step} (checkpoint step-{step:08d})" in "".join(said)
    assert process.wait() == 0
    assert not list(attempts.glob("member-*"))


class OwnKernelNow(KernelManager):  # type: ignore[misc]
    kernel_spec = OwnKernel.kernel_spec


@pytest.mark.promise(16)
def test_a_cell_that_is_interrupted_goes_on_from_its_checkpoint_when_it_is_run_again(
    smoke: Run, tmp_path: Path
) -> None:
    profile = tmp_path / "again.yaml"
    profile.write_text(
        "extends: smoke\nname: again\nmembers+: [{name: other, subset: p100, seed: 9}]\n", encoding="utf-8"
    )
    cell = f"from boom_utils.study.graph import open_study\nopen_study({str(profile)!r}).build('member/other')"
    manager = OwnKernelNow()
    manager.start_kernel(env=environment(smoke.home))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=HANGS)
        first = client.execute(cell)
        while not [log for log in (smoke.home / ".tmp").glob("member-*/*/training_log.jsonl") if log.stat().st_size]:
            time.sleep(0.05)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=HANGS))["parent_header"].get("msg_id") != first:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        said: list[str] = []
        again = client.execute_interactive(
            cell, timeout=HANGS, output_hook=lambda message: said.append(message["content"].get("text", ""))
        )
        assert again["content"]["status"] == "ok"
        assert re.search(r"resumed after step \d+ \(checkpoint step-", "".join(said))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
