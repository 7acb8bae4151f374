"""Checkpoints: killed at any point, resumed bit by bit; damaged ones are passed over, foreign ones refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HANGS, TEXTS, TOY, tiny_config, toy_job

from boom_utils.artifacts import digest_of, write_json
from boom_utils.config import LoraConfig, TrainingConfig
from boom_utils.errors import CheckpointError
from boom_utils.models import Encoder
from boom_utils.training.base_model import random_encoder
from boom_utils.training.loop import LOG, MEASURED, train
from boom_utils.training.plan import DatasetRules

LONG = TOY.model_copy(update={"num_train_epochs": 5})  # ten steps, a checkpoint every three
HARD = {"lora": LoraConfig(r=4, lora_dropout=0.2), "tokens_in_memory": 100, "precision": "fp16"}
CONFIGS = {"all weights": LONG, "lora, dropout, fp16, two passes": LONG.model_copy(update=HARD)}

RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_training_state import CONFIGS, fresh_encoder, saved, train, toy_job
from boom_utils.training import gradients, state

folder, when = Path(sys.argv[1]), sys.argv[2]
kind, _, number = when.partition(":")
calls = {"step": 0, "write": 0, "rename": 0, "drop": 0}

def die_at(name):
    calls[name] += 1
    if kind == name and calls[name] == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

add, save_file, rename, sync = gradients.Gradients.add, state.save_file, Path.rename, state._sync

def adding(self, step, batch):
    die_at("step")
    return add(self, step, batch)

def writing(tensors, path):
    save_file(tensors, path)
    if kind == "write" and calls["write"] + 1 == int(number):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # as far as the disk had got
    die_at("write")

def renaming(self, target):
    die_at("rename")
    return rename(self, target)

def syncing(path):
    sync(path)
    if path == folder / "checkpoints":
        die_at("drop")

gradients.Gradients.add, state.save_file, Path.rename, state._sync = adding, writing, renaming, syncing
encoder = fresh_encoder()
train(encoder, toy_job(encoder, folder, config=CONFIGS[sys.argv[4]]), folder)
saved(encoder, folder)
"""


def fresh_encoder() -> Encoder:
    return random_encoder(TEXTS, tiny_config(), {})


def saved(encoder: Encoder, folder: Path) -> bytes:
    encoder.save(folder / "model")
    return (folder / "model" / "model.safetensors").read_bytes()


def run(folder: Path, when: str, config: str) -> int:
    """Train in a process of its own that kills itself with SIGKILL at a point; its exit code."""
    (folder.parent / "run.py").write_text(RUN)
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(folder.parent / "run.py"), str(folder), when, str(Path(__file__).parent), config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=os.environ, check=False)
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


def loss_lines(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    ("config", "deaths"),
    [
        # Before the first checkpoint, between two, twice while the second is written, before it gets its name, and
        # before the ones before it are dropped; each attempt goes on from what the last one left.
        ("all weights", ["step:2", "step:5", "write:1", "write:2", "rename:1", "drop:1"]),
        ("lora, dropout, fp16, two passes", ["step:8"]),
    ],
)
def test_killed_with_sigkill_and_resumed_the_final_weights_are_identical_byte_for_byte(
    tmp_path: Path, config: str, deaths: list[str]
) -> None:
    whole = fresh_encoder()
    (tmp_path / "whole").mkdir()
    train(whole, toy_job(whole, tmp_path / "whole", config=CONFIGS[config]), tmp_path / "whole")
    expected = saved(whole, tmp_path / "whole")
    for death in deaths:
        assert run(tmp_path / "killed", death, config) == -9
        assert not (tmp_path / "killed" / "model").exists()
    assert run(tmp_path / "killed", "never", config) == 0
    assert (tmp_path / "killed" / "model" / "model.safetensors").read_bytes() == expected
    assert loss_lines(tmp_path / "killed") == loss_lines(tmp_path / "whole")


def interrupted(folder: Path, steps: int, config: TrainingConfig = LONG) -> None:
    """Train some steps, then stop as by Ctrl-C."""
    encoder, left = fresh_encoder(), iter(range(1, 1000))
    folder.mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        train(encoder, toy_job(encoder, folder, config=config), folder, stop=lambda: next(left) == steps)


def resumed(folder: Path, config: TrainingConfig = LONG, **options: object) -> bytes:
    encoder = fresh_encoder()
    train(encoder, toy_job(encoder, folder, config=config), folder, **options)  # type: ignore[arg-type]
    return saved(encoder, folder)


def damage(folder: Path, how: str) -> None:
    if how == "missing optimizer":
        (folder / "optimizer.safetensors").unlink()
    elif how == "truncated":
        path = folder / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
    elif how == "bit flip":
        path = folder / "weights.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(content)
    elif how == "no state":
        (folder / "state.json").unlink()
    elif how == "edited state":
        path = folder / "state.json"
        path.write_text(path.read_text().replace('"step": 7', '"step": 7.0'))
    else:
        (folder / "state.json").write_text("{")


@pytest.mark.promise(13)
@pytest.mark.parametrize(
    "how", ["missing optimizer", "truncated", "bit flip", "no state", "edited state", "broken state"]
)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = resumed(whole)
    interrupted(tmp_path / "run", 7)
    last, before = sorted((tmp_path / "run" / "checkpoints").glob("step-*"), reverse=True)
    damage(last, how)
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        assert resumed(tmp_path / "run") == expected
    assert f"checkpoint {last.name} is damaged" in caplog.text
    assert f"resumed after step 6 (checkpoint {before.name})" in caplog.text


@pytest.mark.promise(13)
def test_when_every_checkpoint_is_damaged_nothing_starts_from_scratch_in_silence(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 7)
    for folder in (tmp_path / "run" / "checkpoints").glob("step-*"):
        damage(folder, "truncated")
    with pytest.raises(CheckpointError, match=r"(?s)every checkpoint.*damaged.*delete the folder to start again"):
        resumed(tmp_path / "run")


@pytest.mark.promise(12)
def test_a_changed_config_plan_base_or_data_is_refused_with_a_list_of_the_differing_fields(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 4)
    config = LONG.model_copy(update={"learning_rate": 0.5, "train_group_size": 2})
    expected = (
        r"(?s)belongs to another run.*training\.learning_rate: was 0\.01, is 0\.5"
        r".*training\.train_group_size: was 3, is 2.*plan: was [0-9a-f]{64}, is [0-9a-f]{64}"
    )
    with pytest.raises(CheckpointError, match=expected) as caught:
        resumed(tmp_path / "run", config)
    assert "warmup_ratio" not in str(caught.value)
    encoder = fresh_encoder()
    with torch.no_grad():
        encoder.transformer.norm.weight.mul_(2)
    job = toy_job(encoder, tmp_path / "run", DatasetRules(in_batch_negatives=False), LONG)
    with pytest.raises(CheckpointError, match=r"(?s)rules\.toy: was .*base: was"):
        train(encoder, job, tmp_path / "run")


@pytest.mark.promise(12)
def test_a_change_that_is_allowed_by_name_goes_on(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 4)
    config = LONG.model_copy(update={"save_steps": 2})
    with pytest.raises(CheckpointError, match=r"training\.save_steps: was 3, is 2"):
        resumed(tmp_path / "run", config)
    assert resumed(tmp_path / "run", config, allow_changes=["training.save_steps"])


def test_another_version_of_torch_is_said_but_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path / "run", 4)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/state.json"):
        stored = json.loads(path.read_text().replace(torch.__version__, "1.0"))
        del stored["digest"]
        write_json(path, {**stored, "digest": digest_of(stored)})
    resumed(tmp_path / "run")
    assert f"torch was 1.0, is {torch.__version__}: the result may differ in the last bits" in caplog.text


def test_only_the_last_two_checkpoints_are_kept_and_no_temporary_folder(tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    resumed(tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [".lock", "step-00000009", "step-00000010"]


def test_two_runs_into_one_folder_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    from boom_utils.errors import TrainingError
    from boom_utils.training import state

    monkeypatch.setattr(state, "LOCK_SECONDS", 0.2)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    held = FileLock(tmp_path / "run" / "checkpoints" / ".lock")
    with held, pytest.raises(TrainingError, match="another process trains into the same folder"):
        resumed(tmp_path / "run")


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boom_utils.training import state

    save_file, calls = state.save_file, []

    def full(tensors: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        save_file(tensors, path)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "save_file", full)
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="No space left"):
        resumed(tmp_path / "run")
    monkeypatch.setattr(state, "save_file", save_file)
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    (tmp_path / "whole").mkdir()
    assert resumed(tmp_path / "run") == resumed(tmp_path / "whole")


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 4)
    names = {path.name for path in next((tmp_path / "run" / "checkpoints").glob("step-*")).iterdir()}
    assert names == {"weights.safetensors", "optimizer.safetensors", "log.jsonl", "state.json"}
