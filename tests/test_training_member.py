"""A member from files to a folder: alone, by two processes under torchrun, stopped, killed, and failing."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, tiny_config, toy_job
from pydantic import TypeAdapter

from boom_utils.cards import Cost, Provenance
from boom_utils.config import LoraConfig, TrainingConfig
from boom_utils.errors import CheckpointError, TrainingError
from boom_utils.models import Encoder
from boom_utils.training import member as module
from boom_utils.training.base_model import random_encoder
from boom_utils.training.loop import LOG, MEASURED
from boom_utils.training.member import MemberJob, train_member
from boom_utils.training.plan import DatasetRules
from boom_utils.training.processes import Launcher, StopAsked

COUNTS = {"seed": 0, "steps": 2, "examples": 8}
PROMPTS = {"toy": "Instruct: find it\nQuery: "}


def member_job(folder: Path, config: TrainingConfig = TOY, *, broken: bool = False) -> MemberJob:
    """Base, tokens and plan as files."""
    encoder = random_encoder(TEXTS, tiny_config(), {})
    if broken:
        with torch.no_grad():
            encoder.transformer.norm.weight[0] = float("nan")
    encoder.save(folder / "base")
    (folder / "tokens").mkdir()
    toy_job(encoder, folder / "tokens", config=config).plan.save(folder / "plan.npz")
    rules = {"toy": DatasetRules()}
    files = folder / "base", (folder / "tokens",), folder / "plan.npz"
    return MemberJob(*files, rules, config, PROMPTS, "toy", "A toy.")


def lines_of(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def test_a_job_survives_its_journey_to_another_process() -> None:
    config = TOY.model_copy(update={"lora": LoraConfig(r=2)})
    paths = Path("a"), (Path("b"), Path("new")), Path("c")
    job = MemberJob(*paths, {"toy": DatasetRules(group="first_row")}, config, PROMPTS, "toy", "A.", True, ("x",))
    before = {"s20": Cost(seed=1, steps=2, examples=3, tokens=4, rows={"toy": 3})}
    job = replace(job, provenance=Provenance(start="boom", passes=0.4, trained=before))
    form = TypeAdapter(MemberJob)
    assert form.validate_json(form.dump_json(job)) == job


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


@pytest.mark.promise(15)
def test_two_processes_train_the_member_of_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = TOY.model_copy(update={"processes": 2, "per_device_train_batch_size": 2, "num_train_epochs": 3})
    job = member_job(tmp_path, config)
    train_member(job, tmp_path / "one")
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        facts = train_member(job, tmp_path / "two", processes=2)
    assert facts["processes"] == 2
    assert "processes" not in {path.name for path in (tmp_path / "two").iterdir()}
    for ours, theirs in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert (ours["tokens"], ours["queries"], ours["step"]) == (theirs["tokens"], theirs["queries"], theirs["step"])
    one, two = (Encoder.load(tmp_path / name).encode(TEXTS) for name in ("one", "two"))
    assert np.abs(one - two).max() < 1e-3


@pytest.mark.promise(14)
def test_what_stops_a_process_is_the_error_of_the_whole_with_its_message(tmp_path: Path) -> None:
    job = member_job(tmp_path, broken=True)
    with pytest.raises(TrainingError, match=r"(?s)loss is nan.*step 0, dataset 'toy', rows \["):
        train_member(job, tmp_path / "out", processes=2)


def test_processes_that_die_without_a_word_are_an_error_with_the_end_of_their_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", "import os; print('last words', flush=True); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(module._Launch, "_command", lambda *_: words)
    with pytest.raises(TrainingError, match=r"(?s)a training process died.*last words.*too little memory"):
        train_member(member_job(tmp_path), tmp_path / "out", processes=2)


@pytest.mark.parametrize(
    ("devices", "changes", "expected"),
    [
        (0, {}, 1),
        (1, {}, 1),
        (2, {}, 2),
        (3, {}, 1),  # batches of four queries
        (4, {"processes": 2, "per_device_train_batch_size": 2, "negatives_cross_device": False}, 1),
    ],
)
def test_every_cuda_device_is_used_if_the_batches_divide_among_them_else_one_and_it_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    devices: int,
    changes: dict[str, object],
    expected: int,
) -> None:
    job = member_job(tmp_path, TOY.model_copy(update=changes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    assert module.usable_processes(job) == expected
    assert ("one of" in caplog.text) == (devices > expected)


LONG = TOY.model_copy(update={"num_train_epochs": 4000, "save_steps": 10_000})


@pytest.mark.promise(12)
@pytest.mark.promise(16)
def test_stopping_two_processes_saves_a_checkpoint_which_one_process_refuses_unless_allowed(tmp_path: Path) -> None:
    job, out = member_job(tmp_path, LONG), tmp_path / "out"

    def interrupt() -> None:
        while not (out / LOG).is_file() or len((out / LOG).read_text().splitlines()) < 5:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        train_member(job, out, processes=2)
    thread.join()
    made = len(lines_of(out))
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == [f"step-{made:08d}"]
    with pytest.raises(CheckpointError, match=r"processes: was 2, is 1"):
        train_member(job, out)
    stop = iter([False, True])
    original = module.train
    allowed = replace(job, allow_changes=("processes",))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "train", lambda *given: original(*given[:-1], lambda: next(stop)))
        train_member(allowed, out)
    assert len(lines_of(out)) == made + 2


def test_a_process_stops_when_its_launcher_asks_or_is_gone_whatever_numbers_processes_have_where_it_runs() -> None:
    code = (
        "import sys\nfrom boom_utils.training.processes import Launcher\n"
        "launcher = Launcher()\nprint(launcher.address, flush=True)\nsys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    asked = StopAsked(process.stdout.readline().strip())
    assert not asked() and not asked()
    process.kill()
    process.wait()
    assert asked()
    launcher = Launcher()
    asked = StopAsked(launcher.address)
    assert not asked()
    launcher.ask_to_stop()
    assert asked()


def test_processes_whose_parent_is_killed_save_and_end(tmp_path: Path) -> None:
    job, out = member_job(tmp_path, LONG), tmp_path / "out"
    code = (
        "import sys\nfrom pathlib import Path\nfrom pydantic import TypeAdapter\n"
        "from boom_utils.training.member import MemberJob, train_member\n"
        "train_member(TypeAdapter(MemberJob).validate_json(sys.argv[1]), Path(sys.argv[2]), 2)"
    )
    stored = TypeAdapter(MemberJob).dump_json(job).decode()
    parent = subprocess.Popen([sys.executable, "-c", code, stored, str(out)])
    deadline = time.monotonic() + 120
    while not (out / LOG).is_file() or len((out / LOG).read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while not list((out / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    made = len(lines_of(out))
    time.sleep(1)
    assert len(lines_of(out)) == made
