"""The benchmark's workload, clock and peer: the same bytes each time, and arithmetic that can be checked by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import data_scale
import encode_throughput
import make_merge_family
import merge_reference
import merge_throughput
import numpy as np
import pyarrow.parquet as pq
import pytest
import train_gpu
import train_throughput
from conftest import SHARED
from data_scale import Scale
from make_merge_family import FamilyOptions, write_family
from make_workload import WorkloadOptions, workload_digest, write_workload
from process_meter import measure
from safetensors.numpy import load_file, save_file
from workload import Step, StepClock, build_report, count_real_tokens, load_workload

from boom_utils.artifacts import PROJECT_ROOT

PEERS = PROJECT_ROOT / "benchmarks" / "peers"
TINY = WorkloadOptions(steps=8, batch=4, models=False)
REPORT_KEYS = {
    "implementation",
    "examples_per_second",
    "real_tokens_per_second",
    "padding_share",
    "peak_memory_mb",
    "wall_seconds",
    "cpu_seconds",
    "steps",
    "losses",
    "real_tokens",
    "computed_tokens",
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workload")
    write_workload(folder, TINY)
    return folder


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tiny: Path, tmp_path: Path) -> None:
    write_workload(tmp_path / "again", TINY)
    write_workload(tmp_path / "other", replace(TINY, seed=1))
    assert content(tmp_path / "again") == content(tiny)
    assert workload_digest(tmp_path / "again") == workload_digest(tiny)
    changed = content(tmp_path / "other")
    assert changed.keys() == content(tiny).keys()
    assert not set(changed.values()) & set(content(tiny).values())


def test_the_bytes_have_not_changed_since_the_first_measurement(tiny: Path) -> None:
    # Also fails when another NumPy draws differently: older timings are then of another workload.
    assert workload_digest(tiny) == "be1975360cb1088cf0c3550a8ba206da1a9ae1fe30218140dd516672a23e6b72"


@pytest.mark.skipif(not (SHARED / "bench" / "make_workload.py").exists(), reason="the reference generator is not here")
def test_the_reference_generator_writes_the_same_workload(tiny: Path, tmp_path: Path) -> None:
    options = ["--steps", "8", "--batch", "4", "--negs", "3", "--seed", "0", "--no_models"]
    command = [sys.executable, str(SHARED / "bench" / "make_workload.py"), str(tmp_path), *options]
    subprocess.run(command, check=True, capture_output=True)
    assert content(tmp_path) == content(tiny)


def test_the_command_line_needs_no_torch(tiny: Path, tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.path.insert(0, {str(PEERS)!r}); sys.argv[1:] = {[str(tmp_path / 'out')]!r}"
    code += " + ['--steps', '8', '--batch', '4', '--no-models']; import make_workload; make_workload.main()"
    code += "; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    printed = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert printed == {"workload": str(tmp_path / "out"), "steps": 8, "sha256": workload_digest(tiny)}
    assert content(tmp_path / "out") == content(tiny)


def test_every_row_is_planned_once_in_batches_of_one_dataset(tiny: Path) -> None:
    plan = [json.loads(line) for line in (tiny / "plan.jsonl").read_text().splitlines()]
    assert len(plan) == 8
    for path in (tiny / "data").iterdir():
        batches = [step for step in plan if step["dataset"] == path.stem]
        rows = sorted(row for step in batches for row in step["rows"])
        assert rows == list(range(len(path.read_text().splitlines())))
        assert {step["in_batch_neg"] for step in batches} == {not path.stem.endswith("_no_in_batch_neg")}


@pytest.mark.parametrize(("name", "value"), [("steps", 3), ("batch", 0), ("negatives", 0), ("negatives", 24)])
def test_options_that_make_no_workload_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        replace(TINY, **{name: value})


def test_prompts_are_on_all_queries_and_on_passages_of_symmetric_tasks_only(tiny: Path) -> None:
    workload = load_workload(tiny)
    assert {step.dataset for step in workload.steps} == {path.stem for path in (tiny / "data").iterdir()}
    for step in workload.steps:
        symmetric = step.dataset.startswith(("sts", "clustering"))
        assert all(query.startswith("Instruct: ") and "\nQuery: " in query for query in step.queries)
        assert all(text.startswith("Instruct: ") == symmetric for group in step.groups for text in group)
        assert len(step.queries) == len(step.groups) == 4
        assert {len(group) for group in step.groups} == {1 + 3}
        assert step.in_batch_negatives == (step.dataset in ("retrieval", "sts"))


def test_a_step_holds_the_rows_of_the_plan_in_order(tiny: Path) -> None:
    line = json.loads((tiny / "plan.jsonl").read_text().splitlines()[0])
    rows = [json.loads(row) for row in (tiny / "data" / f"{line['dataset']}.jsonl").read_text().splitlines()]
    step = load_workload(tiny, steps=1).steps[0]
    assert [query.split("\nQuery: ")[1] for query in step.queries] == [rows[i]["query"] for i in line["rows"]]
    last = rows[line["rows"][-1]]
    assert [text.split("\nQuery: ")[-1] for text in step.groups[-1]] == [*last["pos"], *last["neg"]]
    assert len(load_workload(tiny, steps=3).steps) == 3


def test_real_tokens_are_counted_after_truncation(tiny: Path) -> None:
    workload = load_workload(tiny, steps=1)
    step = Step("toy", ["a b"], [["c", "d e f g"]], True)
    workload = replace(workload, meta={**workload.meta, "max_len": 3}, steps=[step, step])

    def tokenize(texts: list[str], *, truncation: bool, max_length: int, padding: bool) -> dict[str, list[list[str]]]:
        assert truncation
        assert not padding
        return {"input_ids": [text.split()[:max_length] for text in texts]}

    assert count_real_tokens(workload, tokenize) == [2 + 1 + 3] * 2


def test_the_report_leaves_the_warm_up_steps_out() -> None:
    clock = StepClock(1, wall_marks=[0.0, 50.0, 51.0, 54.0], cpu_marks=[0.0, 90.0, 92.0, 97.0])
    clock.step_tokens = [999, 120, 200]
    report = build_report("toy 1.0 fp32", clock, 16, [500, 60, 180], [3.0, 2.00000049, 1.5])
    assert report.keys() == REPORT_KEYS
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


def test_the_clock_marks_the_start_and_each_step() -> None:
    clock = StepClock(warmup_steps=0)
    clock.start()
    for counts in [(3, 4), (5,), ()]:
        for tokens in counts:
            clock.count(tokens)
        clock.end_step()
    assert clock.step_tokens == [7, 5, 0]
    assert clock.computed_tokens == 12
    assert len(clock.wall_marks) == len(clock.cpu_marks) == 1 + 3
    assert clock.wall_seconds >= 0
    assert clock.cpu_seconds >= 0


def test_a_report_of_nothing_or_of_different_steps_is_refused() -> None:
    clock = StepClock(2, wall_marks=[0.0, 1.0, 2.0], cpu_marks=[0.0, 1.0, 2.0], step_tokens=[5, 5])
    with pytest.raises(ValueError, match="2 steps leave none after 2 warm-up steps"):
        build_report("toy", clock, 4, [5, 5], [1.0, 1.0])
    with pytest.raises(ValueError, match="'losses': 1"):
        build_report("toy", clock, 4, [5, 5], [1.0])


@pytest.mark.promise(15)
def test_the_throughput_comparison_trains_both_sides_on_the_same_batches_to_the_same_losses(tmp_path: Path) -> None:
    """sentence-transformers, through its own trainer, is the oracle of our whole step: data, loss, AdamW, schedule."""
    write_workload(tmp_path, WorkloadOptions(steps=4, batch=4, vocabulary=512))
    arguments = [str(tmp_path), str(tmp_path / "models" / "qwen3_tiny"), "--steps", "4", "--warmup-steps", "1"]
    theirs, ours = (
        train_throughput.run(script, arguments) for script in (train_throughput.THEIRS, train_throughput.OURS)
    )
    assert theirs.keys() == REPORT_KEYS < ours.keys()
    assert theirs["implementation"].startswith("sentence-transformers 6.")
    assert theirs["steps"] == ours["steps"] == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in theirs["losses"])
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert ours["real_tokens"] == theirs["real_tokens"] < theirs["computed_tokens"]
    assert ours["computed_tokens"] == ours["distinct_tokens"] <= ours["real_tokens"], "no padding"


def test_the_comparison_takes_the_median_of_all_pairs_and_drops_none(tiny: Path) -> None:
    pair = {"mfu": 0.5, "gflops": 100, "ours": 6.0, "theirs": 2.0, "loss_difference": 1e-5}
    found = [{**pair, "ratio": ratio} for ratio in (9.0, 1.0, 3.0)]
    side = {"padding_share": 0.5, "peak_memory_mb": 10, "implementation": "x"}
    workload = tiny.parent / "with-stats"
    workload.mkdir(exist_ok=True)
    (workload / "meta.json").write_text('{"stats": {}}')
    result = train_throughput.summary(workload, found, [(side, side)])
    assert (result["ratio"], result["pairs"]) == (3.0, [9.0, 1.0, 3.0])
    assert {"max_loss_difference", "mfu", "machine"} <= result.keys()


def test_a_side_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)boom_train\.py failed.*meta\.json"):
        train_throughput.run(train_throughput.OURS, [str(tmp_path), str(tmp_path)])


def test_the_gpu_benchmark_runs_on_any_machine_with_a_tiny_shape() -> None:
    options = train_gpu.Options("tiny", 4, 2, 16, 3, "fp32", None, 1024, False)
    result = train_gpu.measure(options)
    assert result["examples_per_second"] > 0
    assert 0 < result["mfu"] < 1
    assert len(result["loss"]) == 3


# --- merging ----------------------------------------------------------------------------------------------------------

FAMILY = FamilyOptions("tiny")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family") / "tiny-fp32"
    write_family(folder, FAMILY)
    return folder


def weights_of(folder: Path, member: int = 1) -> dict[str, np.ndarray]:
    return load_file(folder / f"member_{member}" / "model.safetensors")


def test_a_family_is_the_same_bytes_each_time_and_another_seed_gives_others(family: Path, tmp_path: Path) -> None:
    meta = write_family(tmp_path / "again", FAMILY)
    assert content(tmp_path / "again") == content(family)
    assert meta["fingerprint"] == "2719277745542e331b169a979222adf2b79e10f80b68b1982188e6330a535731"
    assert write_family(tmp_path / "other", replace(FAMILY, seed=1))["fingerprint"] != meta["fingerprint"]


def test_a_family_is_used_again_only_if_it_is_whole_and_of_these_options(family: Path, tmp_path: Path) -> None:
    meta = write_family(tmp_path, FAMILY)
    assert make_merge_family.existing_family(tmp_path, FAMILY) == meta
    assert make_merge_family.existing_family(tmp_path, replace(FAMILY, seed=1)) is None
    assert make_merge_family.existing_family(tmp_path / "nothing", FAMILY) is None
    (tmp_path / "member_5" / "model.safetensors").write_bytes(b"half")
    assert make_merge_family.existing_family(tmp_path, FAMILY) is None


def test_a_family_in_bf16_is_the_one_in_fp32_rounded(family: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    write_family(tmp_path, replace(FAMILY, dtype="bf16"))
    rounded = load_torch(tmp_path / "member_2" / "model.safetensors")
    for name, values in weights_of(family, 2).items():
        assert torch.equal(torch.from_numpy(values).to(torch.bfloat16), rounded[name]), name


def test_updates_are_one_per_cent_of_the_base_and_far_from_parallel(family: Path) -> None:
    pools = make_merge_family.make_pools(FAMILY)
    base = np.random.default_rng(0).standard_normal(pools[0].size, dtype=np.float32)
    updates = [(pool - base).astype(np.float64) for pool in pools]
    sizes = [np.linalg.norm(update) for update in updates]
    assert np.array(sizes) / np.linalg.norm(base) == pytest.approx(0.01, rel=0.05)
    assert updates[0] @ updates[1] / (sizes[0] * sizes[1]) == pytest.approx(0.3, abs=0.03)
    name = "model.embed_tokens.weight"  # the windows of all members lie at the same places of their pools
    one, two, three = (weights_of(family, member)[name].ravel().astype(np.float64) for member in (1, 2, 3))
    first, second = one - two, one - three  # sums of updates: cosine 1/2 whatever they have in common
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) == pytest.approx(0.5, abs=0.05)
    assert np.linalg.norm(first) / np.linalg.norm(one) == pytest.approx(0.01 * math.sqrt(2 * 0.7), rel=0.1)


def test_a_member_is_a_model_folder_that_transformers_loads_whole(family: Path) -> None:
    from transformers import Qwen3ForCausalLM

    model, said = Qwen3ForCausalLM.from_pretrained(family / "member_1", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {name for name, _ in model.named_parameters()} == weights_of(family).keys()
    assert make_merge_family.SHAPES["qwen3_0.6b"].parameters == 596_049_920
    with pytest.raises(ValueError, match="no family is made of"):
        FamilyOptions("huge")


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


def test_the_reference_reads_every_dtype_and_refuses_another_set_of_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.tensor([1.0, -2.5, 3.140625])
    kinds = {"h": torch.float16, "b": torch.bfloat16, "f": torch.float32, "d": torch.float64}
    save_torch({name: values.to(kind) for name, kind in kinds.items()}, tmp_path / "model.safetensors")
    tensors = merge_reference.stored_tensors(tmp_path)
    assert all(tensors[name].read(1, 2).tolist() == [-2.5, 3.140625] for name in kinds)
    (tmp_path / "less").mkdir()
    save_torch({"f": values}, tmp_path / "less" / "model.safetensors")
    with pytest.raises(ValueError, match="has other tensors"):
        merge_reference.relative_errors([tmp_path], [1.0], tmp_path / "less")


def test_a_run_is_measured_with_its_children_and_fails_with_its_last_words(tmp_path: Path) -> None:
    hold = "x = b'1' * (48 << 20); import time; time.sleep(0.4)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    measured = measure([sys.executable, "-c", nested], {}, tmp_path)
    assert measured.wall_seconds > 0.4 > 0.01 < measured.cpu_seconds
    if Path("/proc/self/status").exists():
        assert measured.anonymous_bytes is not None
        assert 48 << 20 < measured.anonymous_bytes < 96 << 20
    with pytest.raises(RuntimeError, match=r"(?s)failed:.*this went wrong"):
        measure([sys.executable, "-c", "raise SystemExit('this went wrong')"], {}, tmp_path)


def test_the_floor_reads_all_blocks_once_and_writes_as_many_bytes_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_throughput, "BLOCK", 1 << 20)
    sizes, read = {"a": (3 << 20) + 5, "b": 7, "c": 0}, []
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    preadv = merge_throughput.os.preadv
    monkeypatch.setattr(merge_throughput.os, "preadv", lambda *arguments: read.append(preadv(*arguments)))
    merge_throughput.read_all([tmp_path / name for name in sizes])
    assert sorted(read) == [5, 7, 1 << 20, 1 << 20, 1 << 20]
    wrote, pwrite = [], merge_throughput.os.pwrite
    monkeypatch.setattr(merge_throughput.os, "pwrite", lambda *arguments: wrote.append(pwrite(*arguments)))
    assert merge_throughput.write_synced(tmp_path / "out", (2 << 20) + 3) > 0
    assert wrote == [1 << 20] * 3
    assert not (tmp_path / "out").exists()


def test_the_merge_comparison_takes_medians_of_all_pairs_and_the_worst_of_the_rest() -> None:
    numbers = [(9.0, 1.5, 0.1), (2.0, 3.0, 0.4), (4.0, 1.0, 0.2)]
    pairs = [{"ratio_mergekit": a, "ratio_floor": b, "ours": {"anonymous_gib": c}} for a, b, c in numbers]
    errors = {"ours": {"x": 1e-8, "y": 3e-8}, "mergekit": {"x": 1.0, "y": 2.0}}
    result = {"ratio_mergekit": 4.0, "ratio_floor": 1.5, "anonymous_gib": 0.4, "max_relative_error": 3e-8}
    assert merge_throughput.summary(pairs, errors) == result
    alone = [{**pair, "ratio_mergekit": None} for pair in pairs]
    assert merge_throughput.summary(alone, errors) == {**result, "ratio_mergekit": None}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_merge_benchmark_runs_on_a_tiny_family(dtype: str, tmp_path: Path) -> None:
    command = [sys.executable, str(PEERS.parent / "merge_throughput.py"), "--shape", "tiny", "--dtype", dtype]
    command += ["--pairs", "1", "--family", str(tmp_path), "--output", str(tmp_path / "record.json")]
    printed = subprocess.check_output(command, text=True).splitlines()
    result, record = json.loads(printed[-1]), json.loads((tmp_path / "record.json").read_text())
    assert list(result) == ["ratio_mergekit", "ratio_floor", "anonymous_gib", "max_relative_error"]
    assert result == {key: record[key] for key in result}
    assert result["ratio_mergekit"] is None
    assert result["ratio_floor"] > 0
    assert 0 < result["max_relative_error"] <= 1e-7
    if Path("/proc/self/status").exists():
        assert 0.01 < result["anonymous_gib"] < 2
    assert record["dtypes"] == {"inputs": dtype, "output": "fp32"}
    assert record["versions"]["ours"].keys() == {"python", "boom_utils", "numba", "numpy", "safetensors"}
    assert len(record["pairs"]) == 1
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"tiny-{dtype}"], "only the family is left"


# --- the data side at scale -------------------------------------------------------------------------------------------

SMALL_SCALE = Scale(rows=300, evaluated=240, planned_rows=9000, datasets=4)


def test_the_data_benchmark_finds_what_it_planted_and_measures_every_stage_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "benchmarks" / "data_scale.py"), "--output", str(tmp_path / "r.json")]
    command += ["--rows", "300", "--evaluated", "240", "--planned-rows", "9000", "--datasets", "4"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    record = json.loads((tmp_path / "r.json").read_text())
    last = json.loads(said.splitlines()[-1])
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


def test_the_corpus_of_the_data_benchmark_is_the_same_each_time_with_lengths_of_real_texts(tmp_path: Path) -> None:
    for name, scale in {"one": SMALL_SCALE, "two": SMALL_SCALE, "other": replace(SMALL_SCALE, seed=1)}.items():
        (tmp_path / name).mkdir()
        data_scale.make_corpus(tmp_path / name, scale)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "other")
    rows = pq.read_table(tmp_path / "one" / "raw.parquet").to_pylist()
    assert {len(row["pos"]) + len(row["neg"]) for row in rows} == {7}
    assert 7 <= np.median([len(row["query"].split()) for row in rows]) <= 11
    assert 60 <= np.median([len(row["pos"][0].split()) for row in rows]) <= 80


def test_the_rows_to_plan_are_shared_out_among_all_datasets() -> None:
    rows = data_scale.dataset_rows(Scale())
    assert (len(rows), sum(rows.values()), min(rows.values()) >= 1) == (31, 2_800_000, True)


def test_sizes_of_nothing_are_refused() -> None:
    command = [sys.executable, str(PROJECT_ROOT / "benchmarks" / "data_scale.py"), "--rows", "0"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "sizes are 1 or more" in said.stderr


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_the_encoding_benchmark_compares_both_models_on_the_same_texts_and_finds_the_same_embeddings(
    tmp_path: Path,
) -> None:
    command = [sys.executable, str(PEERS.parent / "encode_throughput.py"), "--pairs", "1", "--texts", "24"]
    command += ["--steps", "4", "--max-length", "48", "--vocabulary", "512", "--output", str(tmp_path / "record.json")]
    printed = [json.loads(line) for line in subprocess.check_output(command, text=True).splitlines()]
    result, record = printed[-1], json.loads((tmp_path / "record.json").read_text())
    assert list(result) == ["ratio", "max_difference"]
    assert [line["model"] for line in printed[:-1]] == ["smoke", "minilm"]
    assert all(line["texts"] == 24 and line["longest"] == 48 for line in printed[:-1])
    assert result["ratio"] == min(line["ratio"] for line in printed[:-1]) > 0
    assert 0 < result["max_difference"] <= 1e-5
    assert record["models"] == printed[:-1]
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()


def test_the_encoding_comparison_takes_medians_of_all_pairs_and_the_worst_of_models() -> None:
    def side(seconds: float, value: float) -> encode_throughput.Side:
        return encode_throughput.Side(seconds, 2 * seconds, np.full((2, 3), value))

    found = encode_throughput.summary([(side(1, 0), side(9, 0)), (side(1, 0), side(1, 0.5)), (side(2, 0), side(6, 0))])
    assert (found["ratio"], found["pairs"], found["cpu_ratio"]) == (3.0, [9.0, 1.0, 3.0], 3.0)
    assert found["max_difference"] == 0.5
    other = {"ratio": 1.5, "max_difference": 0.1}
    assert encode_throughput.result_of([found, other]) == {"ratio": 1.5, "max_difference": 0.5}
