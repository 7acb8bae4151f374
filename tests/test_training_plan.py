"""Batch plans and schedules: what meets in a step, in which order, and that a plan's file decides it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boom_utils.config import ScheduleConfig
from boom_utils.errors import ConfigError, DataError
from boom_utils.training import plan as planning
from boom_utils.training.plan import BatchPlan, DatasetRules, PlanInput, PlanOptions, draw_negatives, plan_batches
from boom_utils.training.schedules import schedule_stages

OPTIONS = PlanOptions(per_device_train_batch_size=4, train_group_size=3, seed=1)


def data(rows: int, rules: DatasetRules | None = None, negatives: int = 5, positives: int = 2) -> PlanInput:
    full = np.full(rows, positives), np.full(rows, negatives)
    return PlanInput(rules or DatasetRules(), np.arange(rows, dtype=np.uint32), *full)


def same(left: BatchPlan, right: BatchPlan) -> bool:
    pairs = zip(left.batches, right.batches, strict=True)
    return all(
        a.dataset == b.dataset
        and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("rows", "positives", "negatives"))
        for a, b in pairs
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(10)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(4, 40), min_size=1), st.integers(0, 5))
def test_every_row_is_in_at_most_one_batch_and_only_the_last_incomplete_batch_is_left_out(
    sizes: dict[str, int], seed: int
) -> None:
    plan = plan_batches({name: data(size) for name, size in sizes.items()}, replace(OPTIONS, seed=seed))
    for name, size in sizes.items():
        rows = [row for batch in plan.batches if batch.dataset == name for row in batch.rows.tolist()]
        assert len(rows) == len(set(rows)) == size - size % 4
        assert plan.left_out[name] == size % 4


def test_symmetric_types_have_half_as_many_queries_a_batch() -> None:
    plan = plan_batches({"a": data(40), "s": data(40, DatasetRules(halve_batch=True))}, OPTIONS)
    assert {batch.dataset: len(batch.rows) for batch in plan.batches} == {"a": 4, "s": 2}


def test_a_global_batch_has_as_many_queries_as_all_processes_together() -> None:
    plan = plan_batches({"a": data(40)}, replace(OPTIONS, processes=2))
    assert {len(batch.rows) for batch in plan.batches} == {8}


@pytest.mark.parametrize(
    ("rule", "first_row", "expected"),
    [
        ("train_group_size", 9, 3),
        ("one_negative", 9, 2),
        ("first_row", 1, 2),
        ("first_row", 9, 3),
        ("positive_only", 0, 1),
        ("train_group_size", 0, 1),  # in-batch negatives only
    ],
)
def test_the_group_size_follows_the_type(rule: str, first_row: int, expected: int) -> None:
    plan = plan_batches({"a": data(8, DatasetRules(group=rule), negatives=first_row)}, OPTIONS)  # type: ignore[arg-type]
    assert {batch.group_size for batch in plan.batches} == {expected}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 15), st.integers(0, 9))
def test_negatives_are_drawn_without_replacement_and_repeated_only_when_too_few(
    counts: list[int], size: int, seed: int
) -> None:
    drawn = draw_negatives(np.array(counts), size, np.random.default_rng(seed))
    assert drawn.shape == (len(counts), size)
    for row, count in zip(drawn.tolist(), counts, strict=True):
        most = -(-size // count) if size else 0
        assert all(0 <= index < count for index in row)
        assert max((row.count(index) for index in row), default=0) <= most


def test_negatives_are_the_same_however_many_rows_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(4).integers(1, 5, size=200)
    whole = draw_negatives(counts, 3, np.random.default_rng(0))
    for rows in (1, 7, 64):
        monkeypatch.setattr(planning, "_ROWS_A_DRAW", rows)
        assert np.array_equal(draw_negatives(counts, 3, np.random.default_rng(0)), whole)


def test_the_bytes_of_a_plan_have_not_changed_since_the_first_version() -> None:
    # Also fails when another NumPy draws differently: a plan made before is then not made again.
    rng = np.random.default_rng(5)
    rules = [DatasetRules(), DatasetRules(halve_batch=True)]
    rules += [DatasetRules(group=group) for group in ("one_negative", "first_row", "positive_only")]  # type: ignore[arg-type]
    datasets = {}
    for number, rule in enumerate(rules):
        size = 90 + 7 * number
        rows = np.sort(rng.permutation(size)[: size - 11]).astype(np.uint32)
        datasets[f"d{number}"] = PlanInput(rule, rows, rng.integers(1, 4, size=size), rng.integers(1, 9, size=size))
    options = PlanOptions(per_device_train_batch_size=4, train_group_size=5, num_train_epochs=2, processes=2, seed=3)
    made = plan_batches(datasets, options, [("d0", "d2"), ("d1", "d3", "d4")])
    assert made.fingerprint == "8b05e9ecbc1bf4b82b858241739ee51ed604cc3bfb35e4b470f64510b6dfbe7e"


def test_adding_a_dataset_leaves_the_batches_of_the_others_as_they_are() -> None:
    alone = plan_batches({"a": data(40)}, OPTIONS)
    both = plan_batches({"a": data(40), "b": data(40)}, OPTIONS)
    assert sorted(batch.rows.tolist() for batch in alone.batches) == sorted(
        batch.rows.tolist() for batch in both.batches if batch.dataset == "a"
    )


@pytest.mark.promise(10)
def test_a_plan_of_stages_comes_back_from_its_file_with_the_same_bytes_and_a_damaged_one_is_an_error(
    tmp_path: Path,
) -> None:
    plan, path = planned(schedule="sequential_families"), tmp_path / "plan.npz"
    plan.save(path)
    loaded = BatchPlan.load(path)
    assert same(plan, loaded)
    assert (loaded.left_out, loaded.options, loaded.stage_starts) == (plan.left_out, plan.options, plan.stage_starts)
    assert loaded.fingerprint == plan.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert plan.fingerprint != planned().fingerprint
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a batch plan"):
        BatchPlan.load(path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (data(0, positives=1), "has no rows"),
        (data(8, positives=0), "no positive"),
        (data(8, DatasetRules(in_batch_negatives=False), negatives=0), "no negative"),
        (replace(data(8), negatives=np.array([2] * 7 + [0])), "no negative"),
        (data(3), "no dataset fills a single batch"),
    ],
)
def test_data_that_cannot_be_planned_is_an_error(broken: PlanInput, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_batches({"a": broken}, OPTIONS)


def test_a_dataset_too_small_for_one_batch_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_batches({"a": data(40), "tiny": data(3)}, OPTIONS)
    assert plan.left_out == {"a": 0, "tiny": 3}
    assert "'tiny' fills no batch, so none of its rows is trained on" in caplog.text


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.promise(10)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 5))
def test_the_shares_of_all_processes_are_the_batch_each_row_once_and_equally_many(processes: int, seed: int) -> None:
    plan = plan_batches({"a": data(40), "s": data(24, DatasetRules(halve_batch=True))}, replace(OPTIONS, processes=4))
    for batch in plan.batches:
        shares = [batch.share(rank, processes) for rank in range(processes)]
        assert {len(share.rows) for share in shares} == {len(batch.rows) // processes}
        assert {share.dataset for share in shares} == {batch.dataset}
        for name in ("rows", "positives", "negatives"):
            together = np.concatenate([getattr(share, name) for share in shares])
            assert np.array_equal(together, getattr(batch, name))


# --- schedules --------------------------------------------------------------------------------------------------------

FAMILIES = {"nq": "retrieval", "imdb": "classification", "fiqa": "retrieval", "sts": "sts"}
SIZES = {"nq": 40, "imdb": 12, "fiqa": 8, "sts": 20}


def planned(**schedule: object) -> BatchPlan:
    stages = schedule_stages(ScheduleConfig.model_validate(schedule), FAMILIES, SIZES)
    return plan_batches({name: data(size) for name, size in SIZES.items()}, OPTIONS, stages)


def runs(plan: BatchPlan) -> list[str]:
    """Names of the datasets in the order of the steps, each run of equal names once."""
    names = [batch.dataset for batch in plan.batches]
    return [name for number, name in enumerate(names) if not number or names[number - 1] != name]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("given", ["nq", "imdb", "fiqa", "sts"]),
        ("reversed", ["sts", "fiqa", "imdb", "nq"]),
        ("largest_first", ["nq", "sts", "imdb", "fiqa"]),
        ("smallest_first", ["fiqa", "imdb", "sts", "nq"]),
    ],
)
def test_sequential_datasets_finishes_each_before_the_next(order: str, expected: list[str]) -> None:
    plan = planned(schedule="sequential_datasets", order=order)
    assert runs(plan) == expected
    assert [plan.batches[start].dataset for start in plan.stage_starts] == expected


def test_sequential_datasets_makes_all_epochs_of_one_before_the_next() -> None:
    options = replace(OPTIONS, num_train_epochs=3)
    plan = plan_batches({"a": data(8), "b": data(8)}, options, [("b",), ("a",)])
    assert [batch.dataset for batch in plan.batches] == ["b"] * 6 + ["a"] * 6
    assert not np.array_equal(plan.batches[0].rows, plan.batches[2].rows)


def test_families_and_stages_are_shuffled_inside_and_follow_one_another() -> None:
    assert planned().stage_starts == (0,)
    families = planned(schedule="sequential_families")
    assert families.stage_starts == (0, 12, 15)
    assert {batch.dataset for batch in families.batches[:12]} == {"nq", "fiqa"}
    assert runs(families)[-2:] == ["imdb", "sts"]
    two = planned(schedule="two_stage", stages=[["retrieval", "sts"], ["classification"]])
    assert two.stage_starts == (0, 17)
    assert {batch.dataset for batch in two.batches[17:]} == {"imdb"}
    assert [two.stage_of(step) for step in (0, 16, 17)] == [range(17), range(17), range(17, 20)]
    assert all(len(runs(plan)) > len(SIZES) for plan in (planned(), families, two))


def test_every_schedule_has_the_same_batches_in_another_order() -> None:
    kinds = [{"schedule": "sequential_datasets"}, {"schedule": "sequential_families"}]
    kinds.append({"schedule": "two_stage", "stages": [["sts"], ["retrieval", "classification"]]})
    reference = sorted(batch.rows.tolist() + batch.negatives.ravel().tolist() for batch in planned().batches)
    for kind in kinds:
        other = planned(**kind)
        assert sorted(b.rows.tolist() + b.negatives.ravel().tolist() for b in other.batches) == reference
        assert not same(other, planned())


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["retrieval"], ["classification"]], "found: classification, retrieval"),
        ([["retrieval", "sts"], ["classification", "sts"]], "found: classification, retrieval, sts, sts"),
        ([["retrieval", "sts"], ["classification", "code"]], "found: classification, code, retrieval, sts"),
    ],
)
def test_stages_that_are_no_partition_of_the_families_are_refused(stages: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)every one of classification, retrieval, sts once.*{message}$"):
        planned(schedule="two_stage", stages=stages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "two_stage"},
        {"schedule": "batch_shuffled", "stages": [["a"], ["b"]]},
        {"schedule": "batch_shuffled", "order": "reversed"},
        {"schedule": "batch_shuffled", "learning_rate_stages": "restarted"},
    ],
)
def test_options_that_a_schedule_does_not_have_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScheduleConfig.model_validate(wrong)
