"""Checkpoints: killed at any point, resumed bit by bit; damaged ones are passed over, foreign ones refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HANGS, TEXTS, TOY, tiny_config, toy_job
from filelock import FileLock

from boom_utils.artifacts import digest_of, write_json
from boom_utils.config import LoraConfig, TrainingConfig
from boom_utils.errors import CheckpointError, TrainingError
from boom_utils.models import Encoder
from boom_utils.training import state
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
        # Twice while the second checkpoint is written, before it gets its name, and before the ones before it are
        # dropped; each attempt goes on from what the last one left.
        ("all weights", ["write:1", "write:2", "rename:1", "drop:1"]),
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


def resumed(folder: Path, config: TrainingConfig = LONG, **options: Any) -> bytes:
    encoder = fresh_encoder()
    folder.mkdir(exist_ok=True)
    train(encoder, toy_job(encoder, folder, config=config), folder, **options)
    return saved(encoder, folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nothing stopped."""
    return resumed(tmp_path_factory.mktemp("state") / "whole")


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was stopped as by Ctrl-C after seven of its ten steps."""
    folder, left = tmp_path_factory.mktemp("seven"), iter(range(1, 1000))
    with pytest.raises(KeyboardInterrupt):
        resumed(folder, stop=lambda: next(left) == 7)
    return folder


@pytest.fixture
def stopped(seven: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(seven, tmp_path / "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 7', '"step": 7.0'))


DAMAGES = [("optimizer.safetensors", Path.unlink), ("weights.safetensors", cut), ("weights.safetensors", flip)]


@pytest.mark.promise(13)
@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, *(("state.json", do) for do in (Path.unlink, edit, cut))])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    stopped: Path, expected: bytes, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    last, before = sorted((stopped / "checkpoints").glob("step-*"), reverse=True)
    names = ["log.jsonl", "optimizer.safetensors", "state.json", "weights.safetensors"]  # no pickle
    assert sorted(path.name for path in last.iterdir()) == names
    damage(last / name)
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        assert resumed(stopped) == expected
    assert f"checkpoint {last.name} is damaged" in caplog.text
    assert f"resumed after step 6 (checkpoint {before.name})" in caplog.text
    kept = sorted(path.name for path in (stopped / "checkpoints").iterdir())
    assert kept == [".lock", "step-00000009", "step-00000010"]


@pytest.mark.promise(13)
def test_when_every_checkpoint_is_damaged_nothing_starts_from_scratch_in_silence(stopped: Path) -> None:
    for folder in (stopped / "checkpoints").glob("step-*"):
        cut(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)every checkpoint.*damaged.*delete the folder to start again"):
        resumed(stopped)


@pytest.mark.promise(12)
def test_a_changed_config_plan_base_or_data_is_refused_with_a_list_of_the_differing_fields(stopped: Path) -> None:
    config = LONG.model_copy(update={"learning_rate": 0.5, "train_group_size": 2})
    message = (
        r"(?s)belongs to another run.*training\.learning_rate: was 0\.01, is 0\.5"
        r".*training\.train_group_size: was 3, is 2.*plan: was [0-9a-f]{64}, is [0-9a-f]{64}"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        resumed(stopped, config)
    assert "warmup_ratio" not in str(caught.value)
    encoder = fresh_encoder()
    with torch.no_grad():
        encoder.transformer.norm.weight.mul_(2)
    job = toy_job(encoder, stopped, DatasetRules(in_batch_negatives=False), LONG)
    with pytest.raises(CheckpointError, match=r"(?s)rules\.toy: was .*base: was"):
        train(encoder, job, stopped)


@pytest.mark.promise(12)
def test_a_change_that_is_allowed_by_name_and_another_version_of_torch_go_on(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (stopped / "checkpoints").glob("step-*/state.json"):
        stored = json.loads(path.read_text().replace(torch.__version__, "1.0"))
        del stored["digest"]
        write_json(path, {**stored, "digest": digest_of(stored)})
    config = LONG.model_copy(update={"save_steps": 2})
    with pytest.raises(CheckpointError, match=r"training\.save_steps: was 3, is 2"):
        resumed(stopped, config)
    assert resumed(stopped, config, allow_changes=["training.save_steps"])
    assert f"torch was 1.0, is {torch.__version__}: the result may differ in the last bits" in caplog.text


def test_two_runs_into_one_folder_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.2)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    held = FileLock(tmp_path / "run" / "checkpoints" / ".lock")
    with held, pytest.raises(TrainingError, match="another process trains into the same folder"):
        resumed(tmp_path / "run")


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_one_before(
    stopped: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(state, "save_file", full)
        resumed(stopped)
    assert resumed(stopped) == expected
