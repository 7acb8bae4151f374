"""Precision follows the machine: auto takes what it has instructions for, what it emulates is named with its cost."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from boom_utils import machine
from boom_utils.artifacts import Workspace, canonical_json
from boom_utils.config import load_profile
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.study.graph import Study, open_study, say_precision

AVX2 = {"avx2": True, "cpu_name": "old"}
AMX = {**AVX2, "avx512_bf16": True, "amx_bf16": True}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What other tests have found out about this machine."""
    known = (machine.native_by, machine.on_this_machine)
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine without a CUDA device whose processor has these instructions."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(request.param))


def keys(folder: Path, precision: str | None = None) -> list[str]:
    """What a member and a score are functions of, with the profile's precision or another one."""
    profile = load_profile("mini-validation")
    if precision is not None:
        parts = {name: getattr(profile, name) for name in ("training", "evaluation")}
        changed = {name: part.model_copy(update={"precision": precision}) for name, part in parts.items()}
        profile = profile.model_copy(update=changed)
    study = Study(profile, Workspace(folder))
    return [canonical_json(study.node(name).config) for name in ("member/rate-5e-5", "scores/rate-5e-5/medquad")]


@pytest.mark.parametrize(
    ("processor", "precision", "said"),
    [
        (AMX, "bf16", "bf16, because this machine has it (amx_bf16, avx512_bf16)"),
        ({"bf16": True}, "bf16", "bf16, because this machine has it (bf16)"),  # ARM
        (AVX2, "fp32", "fp32, because this machine has no bf16 instructions"),
    ],
    indirect=["processor"],
)
def test_auto_is_bf16_where_the_machine_has_it_which_is_said_once_and_is_what_artifacts_are_keyed_by(
    processor: None, precision: str, said: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        profile = load_profile("mini")
    assert (profile.training.precision, profile.evaluation.precision) == (precision, precision)
    assert caplog.text.count("precision auto") == 1 and f"precision auto: {said}" in caplog.text
    auto = keys(tmp_path)
    assert auto == keys(tmp_path, precision)
    assert not {*auto} & {*keys(tmp_path, {"bf16": "fp32", "fp32": "bf16"}[precision])}


@pytest.mark.parametrize("processor", [AVX2], indirect=True)
def test_a_precision_that_is_only_emulated_is_named_and_not_refused(
    processor: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    say_precision(load_profile("paper-0.6b"))
    assert "precision fp16 is only emulated on this machine" in caplog.text
    caplog.clear()
    open_study("smoke", tmp_path)
    say_precision(load_profile("mini"))  # auto: what the machine has
    assert "emulated" not in caplog.text


def test_a_cuda_device_with_its_own_bf16_is_asked_and_not_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert (machine.native_by("bf16"), machine.native_by("fp16")) == (None, "a card")
    machine.native_by.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert machine.native_by("bf16") == "a card"


def test_a_profile_that_states_its_precision_is_read_without_torch() -> None:
    code = (
        "import sys; from boom_utils.config import load_profile; load_profile('smoke'); print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
    assert TrainingConfig(learning_rate=1e-4, per_device_train_batch_size=1).precision == "fp32"
