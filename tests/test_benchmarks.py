"""The benchmark's workload, clock and peer: the same bytes each time, and arithmetic that can be checked by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import boom_train
import data_scale
import encode_throughput
import merge_reference
import merge_throughput
import numpy as np
import pytest
import train_gpu
import train_throughput
from make_merge_family import FamilyOptions, write_family
from make_workload import WorkloadOptions, workload_digest, write_workload
from safetensors.numpy import save_file
from workload import StepClock, build_report

from boom_utils.evaluation.benchmarks import random_state_kept

TINY = WorkloadOptions(steps=8, batch=4, models=False)
FAMILY = FamilyOptions("tiny")


Printed = Callable[[ModuleType, list[Any]], list[Any]]


@pytest.fixture
def printed_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a script says when it is run with some arguments, here: a process would import everything again."""

    def run(script: ModuleType, arguments: list[Any]) -> list[Any]:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()
        return capsys.readouterr().out.splitlines()

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workload_and_family_are_the_bytes_of_the_first_measurement_and_another_seed_gives_others(
    tmp_path: Path,
) -> None:
    """Also fails when another NumPy draws differently: older timings are then of another workload."""
    for name, seed in (("tiny", 0), ("again", 0), ("other", 1)):
        write_workload(tmp_path / name, replace(TINY, seed=seed))
    assert content(tmp_path / "again") == content(tmp_path / "tiny")
    assert not {*content(tmp_path / "other").values()} & {*content(tmp_path / "tiny").values()}
    assert workload_digest(tmp_path / "tiny") == "be1975360cb1088cf0c3550a8ba206da1a9ae1fe30218140dd516672a23e6b72"
    one, other = (write_family(tmp_path / f"f{seed}", replace(FAMILY, seed=seed))["fingerprint"] for seed in (0, 1))
    assert one == "2719277745542e331b169a979222adf2b79e10f80b68b1982188e6330a535731" != other


def test_the_report_leaves_the_warm_up_steps_out() -> None:
    clock = StepClock(1, wall_marks=[0.0, 50.0, 51.0, 54.0], cpu_marks=[0.0, 90.0, 92.0, 97.0])
    clock.step_tokens = [999, 120, 200]
    report = build_report("toy 1.0 fp32", clock, 16, [500, 60, 180], [3.0, 2.00000049, 1.5])
    assert report.pop("peak_memory_mb") > 0
    assert report == {
        "implementation": "toy 1.0 fp32",
        "examples_per_second": 2 * 16 / 4,
        "real_tokens_per_second": 240 / 4,
        "padding_share": 1 - 240 / 320,
        "wall_seconds": 4.0,
        "cpu_seconds": 7.0,
        "steps": 2,
        "losses": [3.0, 2.0, 1.5],
        "real_tokens": 240,
        "computed_tokens": 320,
    }


@pytest.mark.promise(15)
def test_the_throughput_comparison_trains_both_sides_on_the_same_batches_to_the_same_losses(
    tmp_path: Path, printed_by: Printed
) -> None:
    """sentence-transformers, through its own trainer, is the oracle of our whole step: data, loss, AdamW, schedule."""
    write_workload(tmp_path, WorkloadOptions(steps=4, batch=4, vocabulary=512))
    arguments = [str(tmp_path), str(tmp_path / "models" / "qwen3_tiny"), "--steps", "4", "--warmup-steps", "1"]
    theirs = train_throughput.run(train_throughput.THEIRS, arguments)
    ours = json.loads(*printed_by(boom_train, arguments))
    assert theirs.keys() < ours.keys()
    assert theirs["implementation"].startswith("sentence-transformers 6.")
    assert theirs["steps"] == ours["steps"] == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in theirs["losses"])
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert ours["real_tokens"] == theirs["real_tokens"] < theirs["computed_tokens"]
    assert ours["computed_tokens"] == ours["distinct_tokens"] <= ours["real_tokens"], "no padding"


def test_a_side_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "side.py").write_text("import sys; sys.exit('no workload in ' + sys.argv[1])")
    with pytest.raises(RuntimeError, match=r"(?s)side\.py failed.*no workload in here"):
        train_throughput.run(tmp_path / "side.py", ["here"])


def test_the_gpu_benchmark_runs_on_any_machine_with_a_tiny_shape() -> None:
    options = train_gpu.Options(
        "tiny", 4, 2, 16, 3, precision="fp32", tokens_per_micro_batch=1024, tokens_in_memory=256, mixed=True
    )
    result = train_gpu.measure(options)
    assert result["examples_per_second"] > 0
    assert 0 < result["mfu"] < 1
    assert len(result["loss"]) == 3


# --- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_the_reference_agrees_with_a_merge_by_hand(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_reference, "CHUNK", chunk)
    # Directions (1, 0, 0) and (0, 0, 1), norms 3 and 4, weights 1/4 and 3/4: their mean norm is 15/4.
    expected = 15 / 4 * np.array([1.0, 0.0, 3.0]) / math.sqrt(10)
    merged = {"exact": expected, "tenth": 1.1 * expected}
    for name, values in {"a": [3, 0, 0], "b": [0, 0, 4], **merged}.items():
        (tmp_path / name).mkdir()
        save_file({"x": np.array(values, dtype=np.float64)}, tmp_path / name / "model.safetensors")
    models = [tmp_path / "a", tmp_path / "b"]
    tensors = [merge_reference.stored_tensors(model)["x"] for model in models]
    assert merge_reference.merge_tensor(tensors, [0.1, 0.3]).read(0, 3) == pytest.approx(expected, rel=1e-7)
    assert merge_reference.relative_errors(models, [0.1, 0.3], tmp_path / "exact")["x"] < 1e-8
    assert merge_reference.relative_errors(models, [0.1, 0.3], tmp_path / "tenth")["x"] == pytest.approx(0.1, rel=1e-6)


def test_the_merge_benchmark_runs_on_a_tiny_family(tmp_path: Path, printed_by: Printed) -> None:
    arguments = ["--shape", "tiny", "--dtype", "fp32", "--pairs", 1, "--family", tmp_path]
    printed = printed_by(merge_throughput, [*arguments, "--output", tmp_path / "record.json"])
    result, record = json.loads(printed[-1]), json.loads((tmp_path / "record.json").read_text())
    assert list(result) == ["ratio_mergekit", "ratio_floor", "anonymous_gib", "max_relative_error"]
    assert result == {key: record[key] for key in result}
    assert result["ratio_mergekit"] is None
    assert result["ratio_floor"] > 0
    assert 0 < result["max_relative_error"] <= 1e-7
    if Path("/proc/self/status").exists():
        assert 0.01 < result["anonymous_gib"] < 2
    assert record["dtypes"] == {"inputs": "fp32", "output": "fp32"}
    assert record["versions"]["ours"].keys() == {"python", "boom_utils", "numba", "numpy", "safetensors"}
    assert len(record["pairs"]) == 1
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny-fp32"], "only the family is left"


# --- the data side at scale -------------------------------------------------------------------------------------------


def test_the_data_benchmark_finds_what_it_planted_and_measures_every_stage_by_itself(
    tmp_path: Path, printed_by: Printed
) -> None:
    sizes = ["--rows", 300, "--evaluated", 240, "--planned-rows", 9000, "--datasets", 4]
    last = json.loads(printed_by(data_scale, [*sizes, "--output", tmp_path / "r.json"])[-1])
    record = json.loads((tmp_path / "r.json").read_text())
    assert last == {key: record[key] for key in last}
    assert list(last) == ["convert_rows_s", "tokenise_rows_s", "sampling_s", "planning_s", "peak_gib"]
    stages = record["stages"]
    assert list(stages) == ["convert", "read", "tokenise", "overlap", "sampling", "planning"]
    assert [stages[name]["rows"] for name in stages] == [300] * 4 + [9000] * 2
    assert (stages["overlap"]["exact"], stages["overlap"]["near"]) == (50, 50)
    assert stages["read"]["counted"] == 300
    assert (stages["sampling"]["drawn"], stages["sampling"]["datasets"]) == (27_000, 4)
    assert 9000 - 4 * 256 < stages["planning"]["planned"] <= 9000
    assert last["peak_gib"] == max(stage["resident_gib"] for stage in stages.values()) > 0.05
    if Path("/proc/self/status").exists():
        # Tokenising opens torch; if one process did all of it, planning would have as much.
        assert stages["planning"]["resident_gib"] < stages["tokenise"]["resident_gib"] / 2
        assert all(0 < stage["anonymous_gib"] <= stage["resident_gib"] for stage in stages.values())


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_the_encoding_benchmark_compares_both_models_on_the_same_texts_and_finds_the_same_embeddings(
    tmp_path: Path, printed_by: Printed
) -> None:
    sizes = ["--pairs", 1, "--texts", 24, "--steps", 4, "--max-length", 48, "--vocabulary", 512]
    with random_state_kept():
        printed = list(map(json.loads, printed_by(encode_throughput, [*sizes, "--output", tmp_path / "record.json"])))
    result, record = printed[-1], json.loads((tmp_path / "record.json").read_text())
    assert list(result) == ["ratio", "max_difference"]
    assert [line["model"] for line in printed[:-1]] == ["smoke", "minilm"]
    assert all(line["texts"] == 24 and line["longest"] == 48 for line in printed[:-1])
    assert result["ratio"] == min(line["ratio"] for line in printed[:-1]) > 0
    assert 0 < result["max_difference"] <= 1e-5
    assert record["models"] == printed[:-1]
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()
