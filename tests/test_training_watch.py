"""A watched training is the training that is not watched, and every point is there exactly once, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HANGS, TOY, toy_job, toy_tokens
from hypothesis import given
from hypothesis import strategies as st
from test_training_member import member_job
from test_training_state import CONFIGS, LONG, fresh_encoder, loss_lines, saved

from boom_utils.artifacts import write_json
from boom_utils.config import TrainingConfig
from boom_utils.data.tokens import open_tokens
from boom_utils.errors import CheckpointError, DataError, ResultsError, TrainingError
from boom_utils.models import Encoder
from boom_utils.training import watch as module
from boom_utils.training.batch_losses import BatchLosses
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.held_out import HeldOutOptions, encoder_losses, held_out_jobs, held_out_losses
from boom_utils.training.loop import train
from boom_utils.training.member import MemberJob, train_member
from boom_utils.training.plan import DatasetRules
from boom_utils.training.watch import Watch, WatchedJobs
from boom_utils.training.watched_losses import WATCHED_LOSSES, read_points

RULES = {"first": DatasetRules(), "second": DatasetRules(in_batch_negatives=False)}
ROWS = {"first": np.arange(8, dtype=np.uint32), "second": np.array([5, 0, 3, 2], dtype=np.uint32)}


def watched_job(
    encoder: Encoder, folder: Path, config: TrainingConfig = LONG, points: int = 4, seed: int = 0
) -> TrainingJob:
    """The toy job, and two datasets to watch that are not trained on."""
    folder.mkdir(exist_ok=True)
    job = toy_job(encoder, folder, config=config)
    tables = {name: toy_tokens(encoder, folder / f"{name}.arrow") for name in RULES}
    options = HeldOutOptions(config, folder, seed)
    return replace(job, watched=WatchedJobs(held_out_jobs(tables, ROWS, RULES, options), points))


def trained(folder: Path, config: TrainingConfig = LONG, **options: Any) -> bytes:
    encoder = fresh_encoder()
    train(encoder, watched_job(encoder, folder, config, **options), folder)
    return saved(encoder, folder)


def interrupted(folder: Path, steps: int, **options: Any) -> Encoder:
    """Train some steps, then stop as by Ctrl-C."""
    encoder, left = fresh_encoder(), iter(range(1, 1000))
    with pytest.raises(KeyboardInterrupt):
        train(encoder, watched_job(encoder, folder, **options), folder, stop=lambda: next(left) == steps)
    return encoder


def steps_of(folder: Path) -> list[int]:
    return [point.step for point in read_points(folder)]


MORE = {
    **CONFIGS,
    "gradient checkpointing, bf16, padding": LONG.model_copy(
        update={"gradient_checkpointing": True, "precision": "bf16", "packing": False}
    ),
}


@pytest.mark.parametrize("config", MORE)
def test_watching_changes_no_weight_and_no_number_of_the_training(tmp_path: Path, config: str) -> None:
    plain = fresh_encoder()
    (tmp_path / "plain").mkdir()
    train(plain, toy_job(plain, tmp_path / "plain", config=MORE[config]), tmp_path / "plain")
    expected = saved(plain, tmp_path / "plain")
    assert trained(tmp_path / "watched", MORE[config], points=11) == expected
    assert loss_lines(tmp_path / "watched") == loss_lines(tmp_path / "plain")
    assert steps_of(tmp_path / "watched") == list(range(11))
    assert not (tmp_path / "plain" / WATCHED_LOSSES).exists()


def test_a_compiled_model_is_watched_without_a_graph_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eager backend, which counts the graphs it is given."""
    graphs: list[int] = []
    compile_module = torch.nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(1)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, backend=backend, **options)
    )
    counts, weights = [], []
    for name in ("plain", "watched"):
        torch._dynamo.reset()
        graphs.clear()
        encoder = fresh_encoder()
        job = watched_job(encoder, tmp_path / name, TOY.model_copy(update={"torch_compile": True}))
        train(encoder, job if name == "watched" else replace(job, watched=None), tmp_path / name)
        counts.append(len(graphs))
        weights.append([value.clone() for value in encoder.transformer.parameters()])
    torch._dynamo.reset()
    assert counts[0] == counts[1] > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))
    assert steps_of(tmp_path / "watched") == [0, 1, 2]


def test_points_are_the_losses_of_the_base_of_the_model_at_that_step_and_of_the_member(tmp_path: Path) -> None:
    job = member_job(tmp_path, LONG)
    encoder = Encoder.load(job.base)
    toy_tokens(encoder, tmp_path / "tokens" / "first.arrow")
    toy_tokens(encoder, tmp_path / "tokens" / "second.arrow")
    write_json(tmp_path / "rows.json", {name: ids.tolist() for name, ids in ROWS.items()})
    job = replace(job, rules={**job.rules, **RULES}, watch=Watch(tmp_path / "rows.json", 3, seed=2))
    facts = train_member(job, tmp_path / "out")
    base, middle, end = read_points(tmp_path / "out")
    assert [base.step, middle.step, end.step] == [0, 5, facts["steps"]]
    assert [base.share, middle.share, end.share] == [0, 0.5, 1]
    options = HeldOutOptions(LONG, job.base, 2)
    for folder, point in ((job.base, base), (tmp_path / "out", end)):
        assert held_out_losses(folder, job.tokens, ROWS, RULES, options) == point.losses
    half = interrupted(tmp_path / "half", 5, seed=2)
    tables = open_tokens(tmp_path / "half")
    assert encoder_losses(half, held_out_jobs(tables, ROWS, RULES, options)) == middle.losses
    assert middle.losses["first"].values != base.losses["first"].values


@given(points=st.integers(2, 40), total=st.integers(1, 500))
def test_points_are_evenly_spaced_from_the_start_to_the_end(points: int, total: int) -> None:
    steps = WatchedJobs({}, points).steps(total)
    assert (steps[0], steps[-1]) == (0, total)
    assert len(steps) == min(points, total + 1)
    exact = total * np.arange(points) / (points - 1)
    assert all(np.abs(exact - step).min() <= 0.5 + 1e-9 for step in steps)
    assert np.diff(steps).max() - np.diff(steps).min() <= 1


# --- killed and resumed -----------------------------------------------------------------------------------------------

RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_training_watch import trained
from boom_utils.training import gradients, watch

kind, _, number = sys.argv[2].partition(":")
calls = {"step": 0, "write": 0}

def dying(name, function, after):
    def called(*given):
        calls[name] += 1
        dies = kind == name and calls[name] == int(number)
        if after or not dies:
            result = function(*given)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called

gradients.Gradients.add = dying("step", gradients.Gradients.add, False)
watch.write_points = dying("write", watch.write_points, True)
trained(Path(sys.argv[1]))
"""


def run(folder: Path, when: str) -> int:
    """Train in a process of its own that kills itself with SIGKILL at a point; its exit code."""
    (folder.parent / "run.py").write_text(RUN)
    command = [sys.executable, str(folder.parent / "run.py"), str(folder), when, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=os.environ, check=False)
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


def test_killed_with_sigkill_and_resumed_every_point_is_there_once_with_the_same_bytes(tmp_path: Path) -> None:
    expected = trained(tmp_path / "whole")
    # Points after 0, 3, 7 and 10 steps, checkpoints after 3, 6, 9 and 10: with a point but not its checkpoint, and with
    # a point that the last checkpoint is before.
    for death in ("write:2", "step:9"):
        assert run(tmp_path / "killed", death) == -9
    assert steps_of(tmp_path / "killed") == [0, 3, 7]
    assert run(tmp_path / "killed", "never") == 0
    files = [tmp_path / name / WATCHED_LOSSES for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert steps_of(tmp_path / "killed") == [0, 3, 7, 10]
    assert (tmp_path / "killed" / "model" / "model.safetensors").read_bytes() == expected


def test_points_after_the_checkpoint_that_is_gone_on_from_are_made_again(tmp_path: Path) -> None:
    trained(tmp_path / "whole", points=11)
    interrupted(tmp_path / "run", 7, points=11)
    (tmp_path / "run" / "checkpoints" / "step-00000007" / "weights.safetensors").unlink()
    assert steps_of(tmp_path / "run") == list(range(8))
    trained(tmp_path / "run", points=11)
    files = [tmp_path / name / WATCHED_LOSSES for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_whose_steps_are_all_made_looks_at_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "run")
    before = (tmp_path / "run" / WATCHED_LOSSES).read_bytes()
    monkeypatch.setattr(module, "encoder_losses", None)
    trained(tmp_path / "run")
    assert (tmp_path / "run" / WATCHED_LOSSES).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 11}, r"points after steps \[0, 3\] instead of \[0, 1, 2, 3\]"),
        ({"seed": 1}, r"(?s)'first': other rows or batches.*'second': other rows"),
        ({"only": "first"}, "'second': other rows or batches, or only now watched or no longer"),
        ({"unwatched": True}, r"points after steps \[\] instead of \[0, 3\]"),
    ],
)
def test_a_training_that_was_watched_otherwise_before_its_checkpoint_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    interrupted(tmp_path / "run", 4)
    encoder = fresh_encoder()
    job = watched_job(encoder, tmp_path / "run", **{k: v for k, v in change.items() if k in ("points", "seed")})
    if "only" in change:
        job = replace(job, watched=WatchedJobs({"first": job.watched.jobs["first"]}, 4))  # type: ignore[union-attr]
    if "unwatched" in change:
        (tmp_path / "run" / WATCHED_LOSSES).unlink()
    with pytest.raises(CheckpointError, match=message):
        train(encoder, job, tmp_path / "run")


def test_a_training_goes_on_without_its_watch_and_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 4)
    encoder = fresh_encoder()
    train(encoder, toy_job(encoder, tmp_path / "run", config=LONG), tmp_path / "run")
    assert not (tmp_path / "run" / WATCHED_LOSSES).exists()


def test_a_damaged_file_is_an_error_when_training_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 4)
    path = tmp_path / "run" / WATCHED_LOSSES
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ResultsError, match=r"(?s)damaged.*watched_losses\.jsonl:2"):
        trained(tmp_path / "run")


def test_without_a_checkpoint_the_points_of_an_earlier_attempt_are_not_trusted(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    interrupted(tmp_path / "run", 2)
    path = tmp_path / "run" / WATCHED_LOSSES
    stored = json.loads(path.read_text())
    stored["losses"]["first"]["values"][0] += 1  # as of another base
    path.write_text(json.dumps(stored) + "\n")
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (folder / "state.json").unlink()
        (folder / "weights.safetensors").unlink()
        (folder / "optimizer.safetensors").unlink()
        (folder / "log.jsonl").unlink()
        folder.rmdir()
    trained(tmp_path / "run")
    assert path.read_bytes() == (tmp_path / "whole" / WATCHED_LOSSES).read_bytes()


# --- several processes, time, errors ----------------------------------------------------------------------------------


def watched_member(folder: Path, rows: dict[str, Any], config: TrainingConfig = TOY) -> MemberJob:
    job = member_job(folder, config)
    toy_tokens(Encoder.load(job.base), folder / "tokens" / "first.arrow")
    write_json(folder / "rows.json", rows)
    rules = {**job.rules, "first": DatasetRules()}
    return replace(job, rules=rules, watch=Watch(folder / "rows.json", 3))


def test_of_several_processes_one_looks_and_the_points_are_those_of_one_process(tmp_path: Path) -> None:
    config = TOY.model_copy(update={"processes": 2, "per_device_train_batch_size": 2, "num_train_epochs": 3})
    job = watched_member(tmp_path, {"first": [0, 1, 2, 3, 4, 5, 6, 7]}, config)
    train_member(job, tmp_path / "one")
    train_member(job, tmp_path / "two", processes=2)
    one, two = read_points(tmp_path / "one"), read_points(tmp_path / "two")
    assert [point.step for point in two] == [0, 3, 6]
    assert one[0] == two[0]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.losses["first"].values == pytest.approx(theirs.losses["first"].values, abs=1e-3)


def test_time_spent_watching_is_no_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> dict[str, BatchLosses]:
        time.sleep(1)
        return {"first": BatchLosses((1.0,), 4, 0, "same")}

    monkeypatch.setattr(module, "encoder_losses", slow)
    facts = train_member(watched_member(tmp_path, {"first": [0, 1, 2, 3]}), tmp_path / "out")
    assert facts["training_seconds"] < 1 < 3
    assert len(read_points(tmp_path / "out")) == 3


def test_a_job_with_a_watch_survives_its_journey_to_another_process(tmp_path: Path) -> None:
    job = watched_member(tmp_path, {})
    assert MemberJob.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no dataset"),
        ({"first": [0, 1, 2, 8]}, "rows are repeated, or not in its table of 8"),
        ({"fist": [0, 1, 2, 3]}, r"'fist' has no tokens or rules; did you mean 'first'"),
    ],
)
def test_rows_that_cannot_be_watched_are_an_error_before_training(
    tmp_path: Path, rows: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        train_member(watched_member(tmp_path, rows), tmp_path / "out")


def test_a_base_whose_loss_is_not_finite_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    encoder = fresh_encoder()
    with torch.no_grad():
        encoder.transformer.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"(?s)held-out loss is nan.*'first', batch 0"):
        train(encoder, watched_job(encoder, tmp_path / "run"), tmp_path / "run")
    assert not loss_lines(tmp_path / "run")
