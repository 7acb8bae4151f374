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
from safetensors.torch import load_file, save_file

from boom_utils.errors import CheckpointError, TrainingError
from boom_utils.hyperparameters import LoraConfig, TrainingConfig, WeightAverage
from boom_utils.models import Encoder
from boom_utils.training import state
from boom_utils.training.base_model import random_encoder
from boom_utils.training.gradients import Gradients
from boom_utils.training.loop import LOG, MEASURED, train
from boom_utils.training.plan import DatasetRules

LONG = TOY.model_copy(update={"num_train_epochs": 5})  # ten steps, a checkpoint every three
HARD = {"lora": LoraConfig(r=4, lora_dropout=0.2), "tokens_in_memory": 100, "precision": "fp16"}
CONFIGS = {
    "all weights": LONG,
    "mean of all steps": LONG.model_copy(update={"average": WeightAverage(ema=0.8)}),
    "lora, dropout, fp16, two passes": LONG.model_copy(update={**HARD, "average": WeightAverage(last=5)}),
}


def fresh_encoder() -> Encoder:
    return random_encoder(TEXTS, tiny_config(), {})


def saved(encoder: Encoder, folder: Path) -> bytes:
    encoder.save(folder / "model")
    return (folder / "model" / "model.safetensors").read_bytes()


def loss_lines(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def resumed(folder: Path, config: TrainingConfig = LONG, **options: Any) -> bytes:
    encoder = fresh_encoder()
    folder.mkdir(exist_ok=True)
    train(encoder, toy_job(encoder, folder, config=config), folder, **options)
    return saved(encoder, folder)


def steps_kept(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in (folder / "checkpoints").glob("step-*"))


class Died(BaseException):
    """What no code of the kit catches."""


def raise_died() -> None:
    raise Died


def die_at(patch: pytest.MonkeyPatch, point: str, number: int, die: Callable[[], None] = raise_died) -> None:
    """Let a training end at the ``number``-th step, write of a checkpoint, renaming of it, or end of a write."""
    calls = iter(range(1, 1000))

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            ends = (point != "drop" or given[0].is_dir()) and next(calls) == number
            if ends and point in ("step", "rename"):
                die()
            result = function(*given)
            if ends and point == "write":
                given[1].write_bytes(
                    given[1].read_bytes()[: given[1].stat().st_size // 2]
                )  # as far as the disk had got
            if ends:
                die()
            return result

        return called

    places: dict[str, tuple[Any, str]] = {
        "step": (Gradients, "add"),
        "write": (state, "save_file"),
        "rename": (Path, "rename"),
        "drop": (state, "_sync"),
    }
    place, name = places[point]
    patch.setattr(place, name, dying(getattr(place, name)))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a training that nothing stopped."""
    return resumed(tmp_path_factory.mktemp("state") / "whole")


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    ("kind", "deaths"),
    [
        # Twice while the second checkpoint is written, before it gets its name, and before the one before is dropped.
        ("all weights", [("write", 1), ("write", 2), ("rename", 1), ("drop", 2)]),
        ("mean of all steps", [("step", 8)]),
        ("lora, dropout, fp16, two passes", [("step", 8)]),
    ],
)
def test_ended_at_any_point_and_resumed_the_final_weights_are_identical_byte_for_byte(
    tmp_path: Path, expected: bytes, kind: str, deaths: list[tuple[str, int]]
) -> None:
    """Each attempt goes on from what the last one left."""
    for point, number in deaths:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
            die_at(patch, point, number)
            resumed(tmp_path / "run", CONFIGS[kind])
    assert steps_kept(tmp_path / "run")[:2] == ["step-00000003", "step-00000006"]
    whole = expected if kind == "all weights" else resumed(tmp_path / "whole", CONFIGS[kind])
    assert resumed(tmp_path / "run", CONFIGS[kind]) == whole
    assert {path.name[:5] for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-", ".lock"}


RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import pytest
from test_training_state import die_at, resumed

die_at(pytest.MonkeyPatch(), "write", 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
resumed(Path(sys.argv[1]))
"""


@pytest.mark.promise(11)
def test_killed_with_sigkill_while_a_checkpoint_is_written_the_final_weights_are_identical_byte_for_byte(
    tmp_path: Path, expected: bytes
) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path / "killed"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, env=os.environ, check=False)
    assert done.returncode == -9, done.stderr[-3000:]
    assert steps_kept(tmp_path / "killed") == ["step-00000003", "step-00000006"]
    assert resumed(tmp_path / "killed") == expected


def test_a_checkpoint_comes_every_so_many_minutes_too_and_changes_nothing(
    tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = []
    monkeypatch.setattr(state.Checkpoints, "save", lambda self, state, lines: saves.append(len(lines)))
    assert resumed(tmp_path / "run", LONG.model_copy(update={"save_minutes": 1e-9, "save_steps": 100})) == expected
    assert saves == list(range(1, 11))
    assert "save_minutes" not in LONG.model_dump(), "the usual number is in no artifact's key"


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


@pytest.mark.promise(13)
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(
    stopped: Path, expected: bytes, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    last, before = sorted((stopped / "checkpoints").glob("step-*"), reverse=True)
    damage(last)
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        assert resumed(stopped) == expected
    assert "checkpoint step-00000007 is damaged" in caplog.text
    assert "resumed after step 6 (checkpoint step-00000006)" in caplog.text
    assert steps_kept(stopped) == ["step-00000009", "step-00000010"]
    assert before.suffix == ".safetensors", "no pickle"


@pytest.mark.promise(13)
def test_when_every_checkpoint_is_damaged_nothing_starts_from_scratch_in_silence(stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("step-*"):
        cut(path)
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
    for path in (stopped / "checkpoints").glob("step-*"):
        tensors = load_file(path)
        record = tensors["record"].numpy().tobytes().decode().replace(torch.__version__, "1.0")
        tensors["record"] = torch.frombuffer(bytearray(record.encode()), dtype=torch.uint8)
        save_file(tensors, path)
        path.rename(path.with_name(f"{path.name.split('.')[0]}.{state._hash(path)}.safetensors"))
    config = LONG.model_copy(update={"save_steps": 2})
    with pytest.raises(CheckpointError, match=r"training\.save_steps: was 3, is 2"):
        resumed(stopped, config)
    averaged = LONG.model_copy(update={"average": WeightAverage(last=2)})
    with pytest.raises(CheckpointError, match=r"not of training\.average"):  # checkpoints without a mean
        resumed(stopped, averaged, allow_changes=["training.average"])
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
