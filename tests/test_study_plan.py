"""What a study would cost: by hand on small numbers, facts before assumptions, unknown stays unknown."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from boom_utils.artifacts import Artifact, Workspace, write_json
from boom_utils.cli import main
from boom_utils.config import PROFILES, EnsembleConfig, Profile, load_profile
from boom_utils.data.examples import TrainingExample, write_jsonl
from boom_utils.data.manifest import load_manifest
from boom_utils.data.tokens import TextRules, write_tokens
from boom_utils.study import plan as module
from boom_utils.study.graph import Study
from boom_utils.study.plan import (
    SECONDS_A_TASK,
    StudyPlan,
    known_rows,
    plan_study,
    plan_text,
    seconds_to_make,
    total,
)
from boom_utils.training.base_source import BaseFiles

ROWS = {
    "summary_to_description": 100,  # 16 rows a batch
    "parameter_question": 40,
    "exception_class": 40,  # 8 rows a batch
    "parameter_overlap_sts": 40,  # 8 rows a batch
    "docstring_to_code": 50,
}


def study_of(workspace: Path, corpus: Mapping[str, Any] | None = None, **training: Any) -> Study:
    """Smoke, with other options of training and corpus."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["training"] |= {"query_max_len": 10, "passage_max_len": 20, **training}
    content["corpus"] |= corpus or {}
    content["subsets"].append({"name": "rest", "complement_of": "p40"})
    content["members"].append({"name": "rest", "subset": "rest"})
    return Study(Profile.model_validate(content), Workspace(workspace))


MATRICES = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384)
"""Of the tiny base: q and o 128 x 128, k and v 128 x 64; MLP: three of 128 x 384; two layers."""
RATE, ENCODING = 1e9, 3e9


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A machine that trains at 1 GFLOP/s and encodes at 3; what was measured on it."""
    seen: list[tuple[Any, ...]] = []

    def measure(*asked: Any) -> dict[str, float]:
        seen.append(asked)
        sizes = {"parameters": MATRICES + 8000 * 128, "matrices": MATRICES}
        return {**sizes, "flops_per_second": RATE, "encoding_flops_per_second": ENCODING}

    monkeypatch.setattr("boom_utils.machine.measure", measure)
    return seen


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    stated: dict[str, float] = dict(ROWS)
    monkeypatch.setattr(module, "known_rows", lambda manifest: stated)
    return stated


def cost_of(plan: StudyPlan, name: str) -> dict[str, Any]:
    """The row of a model."""
    return dict(plan.costs.set_index("name").loc[name])


def test_examples_steps_and_tokens_are_those_of_whole_batches(tmp_path: Path, rows: dict[str, float]) -> None:
    plan = plan_study(study_of(tmp_path))
    full = cost_of(plan, "full")
    assert full["steps"] == 100 // 16 + 40 // 16 + 40 // 8 + 40 // 8
    assert full["examples"] == 96 + 32 + 40 + 40
    assert full["tokens"] == (96 + 32 + 40 + 40) * (10 + 2 * 20)
    s40, rest = (cost_of(plan, name)["examples"] for name in ("s40", "rest"))
    assert s40 == 32 + 16 + 16 + 16
    assert rest == 48 + 16 + 24 + 24  # 60, 24, 24 and 24 rows are left
    assert cost_of(plan, "update")["examples"] == s40 + 48  # and all of the new dataset


@pytest.mark.parametrize(
    ("options", "per_weight"),
    [
        ({}, 6),
        ({"gradient_checkpointing": True}, 8),
        ({"lora": {}}, 4),
        ({"lora": {}, "gradient_checkpointing": True}, 6),
    ],
)
def test_flops_are_6_or_4_a_weight_and_token_and_2_more_with_recomputation(
    tmp_path: Path, rows: dict[str, float], options: dict[str, Any], per_weight: int
) -> None:
    plan = plan_study(study_of(tmp_path, **options), device_tflops=1e-3)
    full = cost_of(plan, "full")
    assert full["flops"] == pytest.approx(per_weight * MATRICES * full["tokens"])
    assert full["device_hours"] == pytest.approx(full["flops"] / (1e9 * 0.4) / 3600)
    assert full["seconds"] == pytest.approx(full["flops"] / RATE)
    assert full["model_bytes"] == (MATRICES + 8000 * 128) * 4
    assert math.isnan(full["checkpoint_bytes"]) is ("lora" in options)


def test_time_and_disk_are_those_of_this_machine_and_a_rented_device_is_for_who_asks_or_would_wait_a_day(
    tmp_path: Path, rows: dict[str, float], measured: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path)
    texts = [plan_text(plan_study(study)) for _ in range(2)]
    assert [(shape["model_type"], shape["hidden_size"], *rest) for shape, *rest in measured] == [
        ("qwen3", 128, "fp32", 20)
    ]
    assert f"- training: {RATE / 6 / MATRICES:,.0f} tokens a second in fp32 on one device, measured here" in texts[0]
    seconds = math.ceil(6 * MATRICES * 208 * 50 / RATE)
    full = next(line for line in texts[0].splitlines() if line.startswith("full "))
    assert f" 0:{seconds // 60:02}:{seconds % 60:02} " in full
    to_do = total(plan_study(study).costs)["seconds"]
    minutes, seconds = divmod(math.ceil(to_do), 60)
    assert f"time on this machine: >= 0:{minutes:02}:{seconds:02}; disk: 0.3 GB, there are " in texts[0]
    assert "device hours  " not in texts[0] and "rented" not in texts[0]
    assert "device hours  " in plan_text(plan_study(study), rented=True)
    monkeypatch.setattr(module, "A_DAY", 60.0)
    assert "rented" not in plan_text(plan_study(study)), "less than an hour of one"
    assert "on rented devices: " in plan_text(plan_study(study, device_tflops=1e-6))


def test_a_plan_shows_ten_models_and_counts_the_others(tmp_path: Path, rows: dict[str, float]) -> None:
    study = study_of(tmp_path)
    plan = plan_study(study)
    models = [*plan.costs[~plan.costs["kind"].isin(["pair", "scores"])]["name"]]
    shown = [line.split("  ")[0] for line in plan_text(plan).splitlines()[3:]]
    others = ["pairs of datasets", "scores", "all", "still to do"]
    assert shown[:15] == [*models[:10], f"and {len(models) - 10} more", *others]


def test_unknown_rows_stay_unknown_and_make_sums_lower_bounds(tmp_path: Path, rows: dict[str, float]) -> None:
    rows["exception_class"] = math.nan
    study = study_of(tmp_path, {"train_rows": None})
    plan = plan_study(study)
    full = cost_of(plan, "full")
    assert (full["examples"], full["at_least"], total(plan.costs)["at_least"]) == (168, True, True)
    assert plan.unknown_rows == ("exception_class",)
    assert "rows: unknown for 1 datasets, sums are lower bounds: exception_class" in plan_text(plan)
    assert ">= 168" in plan_text(plan)
    for name in rows:
        rows[name] = math.nan
    nothing = plan_study(study)
    full = cost_of(nothing, "full")
    assert (math.isnan(full["flops"]), full["at_least"]) == (True, True)
    assert "unknown" in plan_text(nothing)


@pytest.mark.parametrize("stated", [10**6, math.nan])
def test_rows_are_at_most_what_the_profile_takes(tmp_path: Path, rows: dict[str, float], stated: float) -> None:
    rows["summary_to_description"] = stated
    study = study_of(tmp_path)
    assert cost_of(plan_study(study), "full")["steps"] == study.profile.corpus.train_rows // 16 + 2 + 5 + 5


def test_known_rows_are_those_the_manifest_states() -> None:
    rows = known_rows(load_manifest("open_text"))
    assert rows["squad_nqg"] == 11877
    assert rows["medquad"] == 2002
    assert math.isnan(rows["sick_r"]), "nobody trains on it"
    assert all(map(math.isnan, known_rows(load_manifest("python_docs")).values()))


# --- facts of what is made --------------------------------------------------------------------------------------------


def fake(study: Study, name: str, facts: dict[str, Any], tokens: bool = False) -> None:
    """Make one node of the study, without doing its work."""

    def make(out: Path, _: Mapping[str, Artifact]) -> dict[str, Any]:
        if tokens:
            rows = [TrainingExample("a b", ("c d e",), ("f", "g h i"))] * 3
            for dataset in ROWS:
                write_tokens(
                    out / f"{dataset}.arrow",
                    rows,
                    TextRules("", "", 9, 9),
                    lambda t, n: [[1] * len(x.split()) for x in t],
                )
        return facts

    object.__setattr__(study.nodes[name], "make", make)
    study.build(name)


def test_texts_are_as_long_as_the_words_of_the_examples_until_there_are_tokens(
    tmp_path: Path, rows: dict[str, float]
) -> None:
    study = study_of(tmp_path)

    def make(out: Path, _: Mapping[str, Artifact]) -> dict[str, Any]:
        known = {"query_words": {"median": 3.0}, "passage_words": {"median": 40.0}}
        write_json(out / "summary.json", {"sets": {f"train/{name}": known for name in ROWS}})
        return {"rows": {f"train/{name}": 16 for name in ROWS}}

    object.__setattr__(study.nodes["examples"], "make", make)
    study.build("examples")
    plan = plan_study(study)
    assert cost_of(plan, "full")["tokens"] == pytest.approx(4 * 16 * (3 * 1.3 + 2 + 2 * 20)), "passages are cut"
    assert "- lengths: the examples' median words, 1.3 tokens each" in plan_text(plan)


def test_facts_of_finished_artifacts_come_before_assumptions(tmp_path: Path, rows: dict[str, float]) -> None:
    study = study_of(tmp_path)
    fake(study, "examples", {"rows": {f"train/{name}": 16 for name in ROWS}})
    assert cost_of(plan_study(study), "full")["examples"] == 4 * 16
    for name in ("subset/p100", "subset/half", "random"):
        fake(study, name, {})
    fake(study, "tokens", {}, tokens=True)
    plan = plan_study(study)
    assert cost_of(plan, "full")["tokens"] == pytest.approx(4 * 16 * (2 + 2 * 7 / 3))  # passages: 3, 1, 3
    assert plan.tokens_bytes == 5 * 16 * (2 + 3 + 4) * 4
    assert any(text.startswith("lengths: measured in 5 datasets") for text in plan.assumptions)
    fake(study, "base", {"examples": 7, "steps": 3, "tokens": 70, "tokens_per_second": 9})
    fake(study, "plan/full", {"batches": 5, "examples": 77})
    fake(study, "member/full", {"tokens": 1234, "tokens_per_second": 50, "steps": 5, "examples": 77})
    plan = plan_study(study)
    full, base = cost_of(plan, "full"), cost_of(plan, "base")
    assert [one["up_to_date"] for one in (full, base, cost_of(plan, "s20"))] == [True, True, False]
    assert [full[name] for name in ("examples", "steps", "tokens")] == [77, 5, 1234]
    assert base["steps"] == 3
    assert full["seconds"] == pytest.approx(1234 / 50)  # the speed it had
    assert "- training: 50 tokens a second, the median of the members that are made" in plan_text(plan)
    assert total(plan.costs[plan.costs["up_to_date"]])["steps"] == 5 + 3


def test_scores_take_what_encoding_their_texts_takes_until_some_are_made_and_an_ensemble_as_long_as_its_models(
    tmp_path: Path, rows: dict[str, float]
) -> None:
    together = EnsembleConfig(name="together", members=("s20", "s40"))
    study = Study(study_of(tmp_path).profile.model_copy(update={"ensembles": (together,)}), Workspace(tmp_path))

    def make(out: Path, _: Mapping[str, Artifact]) -> dict[str, Any]:
        (out / "evaluation" / "exception_class").mkdir(parents=True)
        texts = [{"text": "a" * 40, "label": "b" * 90}, {"title": "", "text": "a" * 4000}]
        write_jsonl(out / "evaluation" / "exception_class" / "test.jsonl", texts)
        return {"rows": {}}

    def seconds(model: str) -> float:
        costs = plan_study(study).costs
        return float(costs.loc[f"scores/{model}/exception_class", "seconds"])

    object.__setattr__(study.nodes["examples"], "make", make)
    study.build("examples")
    tokens = 40 / 4 + study.profile.base_model.max_seq_length  # a text is cut there
    one = 2 * MATRICES * tokens / ENCODING + SECONDS_A_TASK
    assert (seconds("full"), seconds("together")) == (pytest.approx(one), pytest.approx(2 * one))
    for name in ("random", "base", "scores/base/exception_class"):
        fake(study, name, {"examples": 1, "steps": 1, "tokens": 1})
    took = study.build("scores/base/exception_class").record["wall_seconds"]
    assert (seconds("full"), seconds("together")) == (took, 2 * took)
    assert "scores" in plan_text(plan_study(study))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_makes_nothing_but_the_measured_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "workspace"))
    for asked in ([], ["--device-tflops", "312"]):
        assert main(["plan", "--profile", "smoke", *asked]) == 0
        assert ("rented devices" in capsys.readouterr().out) is bool(asked)
    made = [path.relative_to(tmp_path / "workspace").parts[0] for path in tmp_path.rglob("record.json")]
    assert made == ["speed"]


def test_a_machine_is_measured_by_training_a_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from boom_utils.machine import measure

    before = torch.get_rng_state()
    shape = study_of(Path("nowhere")).profile.base_model.model_dump(include={"hidden_size", "intermediate_size"})
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 8000}
    found = measure({"model_type": "qwen3", "num_hidden_layers": 2, **shape, **heads}, "bf16", 16)
    norms = 2 * (2 * 128 + 2 * 32) + 128
    assert (found["matrices"], found["parameters"]) == (MATRICES + norms, MATRICES + norms + 8000 * 128)
    assert found["flops_per_second"] > 0 < found["encoding_flops_per_second"]
    assert torch.equal(torch.get_rng_state(), before)
    assert measure({"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 12}, "fp32", 4)["matrices"] > 0


@pytest.mark.parametrize("options", [["--gpus", "-1"], ["--device-tflops", "0"], ["--device-tflops", "nan"]])
def test_numbers_that_mean_nothing_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        raise SystemExit(main(["plan", *options]))


@pytest.mark.parametrize(("name", "model_bytes"), [("mini", 5e7), ("paper-0.6b", 1e9)])
def test_a_profile_of_files_or_of_the_hub_can_be_planned_where_its_base_is_not(
    name: str, model_bytes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boom_utils.training.base_source.find_base", lambda _: None)
    study = Study(load_profile(name), Workspace(tmp_path))
    plan = plan_study(study)
    models = plan.costs[~plan.costs["kind"].isin(["pair", "scores"])]
    assert [*models["name"]] == [n for n in study.whole.model_names if n != "random"]
    assert not models["up_to_date"].any()
    assert cost_of(plan, "full")["model_bytes"] > model_bytes
    assert "time on this machine: unknown; on rented devices: " in (said := plan_text(plan))
    assert "time here: unknown until the base is on this machine" in said


def test_a_base_of_first_layers_is_measured_with_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[tuple[Any, ...]]
) -> None:
    write_json(tmp_path / "config.json", {"model_type": "gemma3_text", "num_hidden_layers": 18})
    files = BaseFiles(tmp_path, {})
    monkeypatch.setattr("boom_utils.training.base_source.find_base", lambda _: files)
    plan_study(Study(load_profile("controls-decoder"), Workspace(tmp_path / "workspace")))
    assert [shape["num_hidden_layers"] for shape, *_ in measured] == [6]


def test_a_base_is_measured_as_it_was_made_with_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr("boom_utils.training.base_source.find_base", lambda _: None)
    study, shape = Study(load_profile("controls-decoder"), Workspace(tmp_path)), {"num_hidden_layers": 6}
    object.__setattr__(study.nodes["base"], "make", lambda out, _: write_json(out / "config.json", shape))
    study.build("base")
    plan_study(study)
    assert [asked[0] for asked in measured] == [shape]


def test_a_build_that_somebody_watches_says_before_it_begins_how_long_it_and_what_is_behind_it_take(
    tmp_path: Path, rows: dict[str, float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_of(tmp_path)
    plan = plan_study(study)
    together = cost_of(plan, "base")["seconds"] + cost_of(plan, "full")["seconds"]
    assert seconds_to_make(study, ["member/full"]) == pytest.approx(together)
    assert seconds_to_make(study, ["examples"]) == 0  # nobody can count it
    monkeypatch.setattr(module, "seconds_to_make", lambda *_: 200.0)
    monkeypatch.setattr(Workspace, "build", lambda *_: logging.getLogger("boom_utils").info("it begins"))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="boom_utils"):
        study.build("base")
        monkeypatch.setattr("boom_utils.study.graph.watched", lambda: True)
        study.build("base")
    assert caplog.messages == ["it begins", "base model: about 3 min on this machine", "it begins"]
