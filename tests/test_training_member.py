"""A member from files to a folder: alone, by two processes, stopped, killed, and failing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job
from test_training_state import steps_kept
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, spawn

from boom_utils.artifacts import write_json
from boom_utils.errors import CheckpointError, TrainingError
from boom_utils.hyperparameters import TrainingConfig, WeightAverage
from boom_utils.models import Encoder
from boom_utils.training import member as module
from boom_utils.training.base_model import random_encoder
from boom_utils.training.batch_losses import read_points
from boom_utils.training.loop import LOG, MEASURED, train
from boom_utils.training.member import MemberJob, Watch, train_member
from boom_utils.training.plan import DatasetRules
from boom_utils.training.processes import joined

COUNTS = {"seed": 0, "steps": 2, "examples": 8}
PROMPTS = {"toy": "Instruct: find it\nQuery: "}


def member_job(folder: Path, config: TrainingConfig = TOY, *, broken: bool = False) -> MemberJob:
    """Base, tokens and plan as files."""
    encoder = random_encoder(TEXTS, tiny_config(), {})
    if broken:
        with torch.no_grad():
            encoder.transformer.norm.weight[0] = float("nan")
    encoder.save(folder / "base")
    (folder / "tokens").mkdir(parents=True)
    toy_job(encoder, folder / "tokens", config=config).plan.save(folder / "plan.npz")
    rules = {"toy": DatasetRules()}
    files = folder / "base", (folder / "tokens",), folder / "plan.npz"
    return MemberJob(*files, rules, config, PROMPTS, "toy", "A toy.")


def lines_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def test_a_member_is_a_whole_encoder_folder_with_log_and_card_and_nothing_else(tmp_path: Path) -> None:
    job = member_job(tmp_path)
    facts = train_member(job, tmp_path / "out")
    assert facts["processes"] == 1
    assert Encoder.load(tmp_path / "out").spec.prompts["toy"] == PROMPTS["toy"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", LOG, "modules.json", "model.safetensors"} <= names
    assert not names & {"checkpoints", "processes"}
    assert facts["trained"] == {"toy": {**COUNTS, "tokens": facts["tokens"], "passes": None, "rows": {"toy": 8}}}
    assert f"| toy | 0 | 2 | 8 | {facts['tokens']} |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_every_cuda_device_is_used_if_the_batches_divide_among_them_else_one_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"processes": 2, "per_device_train_batch_size": 2, "negatives_cross_device": False}
    four, of_two = member_job(tmp_path / "a"), member_job(tmp_path / "b", TOY.model_copy(update=changes))
    for job, devices, expected in ((four, 0, 1), (four, 1, 1), (four, 2, 2), (four, 3, 1), (of_two, 4, 1)):
        caplog.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=devices: count)
        assert module.usable_processes(job) == expected
        assert ("one of" in caplog.text) == (devices > expected)


# --- several processes ------------------------------------------------------------------------------------------------

CHANGES = {"processes": 2, "per_device_train_batch_size": 2, "num_train_epochs": 5, "average": WeightAverage(last=3)}
TWO = TOY.model_copy(update=CHANGES)


def in_one_launch(rank: int, meeting: Path, job: MemberJob, folder: Path) -> None:
    """Both of two processes: a whole training, one that a signal to the second stops, and what goes on from that."""
    steps = iter(range(1, 1000))

    def stop() -> bool:
        if rank == 1 and next(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
        return False

    with joined(rank, 2, meeting) as processes:
        module._train_here(job, folder / "whole", processes)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "train", partial(train, stop=stop))
            module._train_here(job, folder / "stopped", processes)
        processes.barrier()
        if rank == 0:
            shutil.copytree(folder / "stopped", folder / "seen")
        processes.barrier()
        module._train_here(job, folder / "stopped", processes)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MemberJob]:
    """What one launch of two processes left."""
    folder = tmp_path_factory.mktemp("two")
    write_json(folder / "rows.json", {"toy": [*range(8)]})
    job = replace(member_job(folder, TWO), watch=Watch(folder / "rows.json", 3))
    for name in ("meeting", "whole", "stopped"):
        (folder / name).mkdir()
    spawn(in_one_launch, (folder / "meeting", job, folder), 2)
    return folder, job


@pytest.mark.promise(15)
def test_two_processes_train_the_member_of_one(two: tuple[Path, MemberJob], tmp_path: Path) -> None:
    folder, job = two
    train_member(job, tmp_path / "one")
    for ours, theirs in zip(lines_of(folder / "whole"), lines_of(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert (ours["tokens"], ours["queries"], ours["step"]) == (theirs["tokens"], theirs["queries"], theirs["step"])
    one, both = (Encoder.load(made).encode(TEXTS) for made in (tmp_path / "one", folder / "whole"))
    assert np.abs(one - both).max() < 1e-3
    alone, seen = read_points(tmp_path / "one"), read_points(folder / "whole")
    assert [point.step for point in seen] == [0, 5, 10] and alone[0] == seen[0], "the first process looks"
    for mine, theirs in zip(alone, seen, strict=True):
        assert mine.losses["toy"].values == pytest.approx(theirs.losses["toy"].values, abs=1e-3)


@pytest.mark.promise(11)
@pytest.mark.promise(12)
@pytest.mark.promise(16)
def test_a_signal_to_one_process_stops_both_with_a_checkpoint_and_both_go_on_byte_for_byte_but_no_other_number(
    two: tuple[Path, MemberJob], tmp_path: Path
) -> None:
    folder, job = two
    assert len(lines_of(folder / "seen")) == 6
    assert "step-00000006" in steps_kept(folder / "seen")
    whole, stopped = ((folder / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert stopped == whole
    assert lines_of(folder / "stopped") == lines_of(folder / "whole")
    assert read_points(folder / "stopped") == read_points(folder / "whole")
    for name in ("refused", "allowed"):
        shutil.copytree(folder / "seen", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"processes: was 2, is 1"):
        train_member(job, tmp_path / "refused")
    train_member(replace(job, allow_changes=("processes",)), tmp_path / "allowed")
    assert lines_of(tmp_path / "allowed")[:6] == lines_of(folder / "whole")[:6]


# --- the launch -------------------------------------------------------------------------------------------------------

LONG = TOY.model_copy(update={"num_train_epochs": 120, "save_steps": 10_000})


def when_logged(out: Path, lines: int, do: Callable[[], None]) -> threading.Thread:
    """Do something once a log has so many lines."""

    def wait() -> None:
        while not (out / LOG).is_file() or len((out / LOG).read_text().splitlines()) < lines:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.promise(11)
@pytest.mark.promise(16)
def test_a_launch_whose_parent_is_killed_or_gets_sigterm_saves_ends_and_goes_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    job, out = member_job(tmp_path, LONG), tmp_path / "out"
    parent = get_context("fork").Process(target=module._train_in_several, args=(job, out, 1))
    parent.start()
    when_logged(out, 3, parent.kill).join()
    parent.join()
    deadline = time.monotonic() + 120
    while not steps_kept(out):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first = len(lines_of(out))
    assert steps_kept(out) == [f"step-{first:08d}"]
    thread = when_logged(out, first + 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):  # goes on from there: it has the lock, so that process is gone
        module._train_in_several(job, out, 1)
    thread.join()
    made = len(lines_of(out))
    assert first + 2 <= made < 240
    assert steps_kept(out) == [f"step-{first:08d}", f"step-{made:08d}"]
    facts = module._train_in_several(job, out, 1)
    assert (facts["steps"], facts["processes"]) == (240, 1)
    module._train_here(job, tmp_path / "here")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "here" / "model.safetensors").read_bytes()


class InThisProcess:
    """In place of new processes: the first one's work, done here."""

    processes = ()

    def __init__(self, function: Callable[..., None], given: tuple[Any, ...], *_: object, **__: object) -> None:
        self.work = partial(function, 0, *given)

    def join(self, timeout: float) -> bool:
        try:
            self.work()
        except Exception as error:
            raise ProcessRaisedException(str(error), 0, 0) from error
        return True


@pytest.mark.promise(14)
def test_what_stops_a_process_is_the_error_of_the_whole_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "start_processes", InThisProcess)
    monkeypatch.setattr(module, "log_to_stdout", lambda **_: None)
    with pytest.raises(TrainingError, match=r"(?s)loss is nan.*step 0, dataset 'toy', rows \["):
        module._train_in_several(member_job(tmp_path, broken=True), tmp_path / "out", 1)
    error = ProcessExitedException("process 0 terminated with signal SIGKILL", 0, 0, -9)
    monkeypatch.setattr(InThisProcess, "join", Mock(side_effect=error))
    with pytest.raises(TrainingError, match=r"(?s)a training process died.*toy.*SIGKILL.*too little memory"):
        module._train_in_several(member_job(tmp_path / "again"), tmp_path / "out", 1)
