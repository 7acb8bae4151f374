"""Tables and figures from a results folder: nothing is averaged that is not there, equal data give equal bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_results import add_numbers, samples_of

from boom_utils.artifacts import write_json
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Estimate, TaskSamples
from boom_utils.reporting.figures import (
    incremental_comparison,
    plan_strips,
    schedule_comparison,
    schedule_losses,
    schedule_strips,
)
from boom_utils.reporting.report import write_report
from boom_utils.reporting.results import Numbers, read_numbers, read_results, write_numbers
from boom_utils.reporting.tables import (
    checks_table,
    incremental_table,
    markdown,
    model_table,
    schedule_table,
    verdict_of,
)

TABLES = ("scores", "training", "losses")
TASKS = {"alpha": "in-domain", "beta": "in-domain", "gamma": "out-of-domain"}
SKILL = {"random": 0.1, "base": 0.4, "half": 0.55, "full": 0.6, "merged": 0.65}
MEMBER: dict[str, Any] = {"subset": "p100", "seed": 1, "schedule": "batch_shuffled", "order": "given", "stages": []}
MEMBER |= {"ratio": 1.0, "new_data": None, "passes": 1.0}
MEMBER |= {"learning_rate_stages": "continued", "steps": 4, "examples": 8, "tokens": 99, "mean_loss_last_tenth": 1.0}
SCHEDULES: dict[str, dict[str, Any]] = {
    "sets": {"schedule": "sequential_datasets", "order": "largest_first"},
    "stages": {"schedule": "two_stage", "stages": [["a", "b"], ["c"]], "learning_rate_stages": "restarted"},
    "seeds": {"schedule": "sequential_families", "seed": 2},
}
INCREMENTAL: dict[str, dict[str, Any]] = {
    "update": {"subset": "update", "ratio": 0.4, "new_data": 1.0, "passes": 0.65, "examples": 6, "steps": 3},
    "retrained": {"subset": "everything", "new_data": 1.0, "passes": 1.25, "examples": 10, "steps": 5},
}


def scores(model: str, task: str) -> TaskSamples:
    rng = np.random.default_rng([ord(task[0]), 1])
    return samples_of(np.clip(rng.normal(SKILL[model], 0.1, 50), 0, 1).round(4))


GEOMETRY = {
    "members": ["half", "full"],
    "has_base": True,
    "cosines": [[1, 0.2], [0.2, 1]],
    "distances": [[0, 0.3], [0.3, 0]],
    "relative_updates": [0.1, 0.2],
    "layers": ["embedding", "layer 0"],
    "by_layer": [[0.05, 0.1], [0.15, 0.3]],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    study = {
        "profile": "made-up",
        "models": list(SKILL),
        "members": {"half": {**MEMBER, "ratio": 0.5, "passes": 0.5, "subset": "p50"}, "full": MEMBER},
        "merges": {"merged": {"method": "multislerp", "members": ["half", "full"], "weights": [0.5, 1.0]}},
        "tasks": [
            {"name": name, "family": "retrieval", "domain": domain, "new_data": False} for name, domain in TASKS.items()
        ],
        "evaluation": {"reference": "full", "confidence": 0.95},
        "experiments": {"full": "full", "boom": "merged", "sampled": ["half", "full"], "variants": ["merged"]},
    }
    write_json(root / "study.json", study)
    samples = {(model, task): scores(model, task) for model in SKILL for task in TASKS}
    add_numbers(root, samples, {"half": "aabb", "full": "aabb"})
    write_json(
        root / "geometry.json",
        GEOMETRY,
    )
    write_json(root / "corpus" / "summary.json", {"sets": {"train/a": {"rows": 8, "query_words": {"median": 3.0}}}})
    return root


@pytest.fixture
def scheduled(folder: Path) -> Path:
    """The same study with two other schedules of `full`, and one that no shuffled member is like."""
    study = json.loads((folder / "study.json").read_text())
    for name, facts in SCHEDULES.items():
        study["members"][name] = {**MEMBER, **facts}
        study["models"].append(name)
    alike = {"sets": "half", "stages": "full", "seeds": "full"}
    samples = {(model, task): scores(other, task) for model, other in alike.items() for task in TASKS}
    add_numbers(folder, samples | {("stages", "gamma"): scores("merged", "gamma")}, dict.fromkeys(SCHEDULES, "bbaa"))
    study["experiments"]["scheduling"] = {"baseline": "full", "models": ["sets", "stages"]}
    write_json(folder / "study.json", study)
    return folder


@pytest.fixture
def updated(scheduled: Path) -> Path:
    """The same study after new data: `merged` is updated, `retrained` knows everything; a new task, `delta`."""
    study = json.loads((scheduled / "study.json").read_text())
    for name, facts in INCREMENTAL.items():
        study["members"][name] = {**MEMBER, **facts}
    study["merges"]["fresh"] = {"method": "multislerp", "members": ["merged", "update"], "weights": [1.0, 1.0]}
    study["models"] += [*INCREMENTAL, "fresh"]
    study["tasks"].append({"name": "delta", "family": "code", "domain": "out-of-domain", "new_data": True})
    alike = {"update": "half", "retrained": "full", "fresh": "merged"}
    samples = {
        (model, task): scores(alike.get(model, "half"), task)
        for model in study["models"]
        for task in (*TASKS, "delta")
        if task == "delta" or model in alike
    }
    samples |= {("fresh", "delta"): scores("base", "delta"), ("fresh", "gamma"): scores("full", "gamma")}
    add_numbers(scheduled, samples, dict.fromkeys(INCREMENTAL, "aabn"))
    study["experiments"]["incremental"] = {
        "baseline": "retrained",
        "models": ["merged", "update", "fresh", "retrained"],
    }
    write_json(scheduled / "study.json", study)
    return scheduled


@pytest.mark.promise(32)
def test_the_same_results_give_the_same_bytes(updated: Path, tmp_path: Path) -> None:
    written = [write_report(updated, tmp_path / name)["written"] for name in ("one", "two")]
    assert written[0] == written[1]
    assert {"tables/schedules.csv", "figures/schedule_strips.svg", "figures/schedule_losses.svg"} <= set(written[0])
    assert {"tables/incremental.csv", "figures/incremental_comparison.svg"} <= set(written[0])
    assert {"claims.md", "claims.csv", "figures/pareto.svg"} <= set(written[0])
    for name in written[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_means_and_paired_differences_are_those_of_the_values(folder: Path) -> None:
    table = model_table(read_results(folder)).set_index("model")
    values = {(m, t): scores(m, t).score for m in SKILL for t in TASKS}
    expected = 50 * (values["merged", "alpha"] + values["merged", "beta"])
    assert table.loc["merged", "in-domain"] == pytest.approx(expected, abs=1e-3)
    gap = 100 * (values["merged", "gamma"] - values["full", "gamma"])
    assert table.loc["merged", "out-of-domain minus full"] == pytest.approx(gap, abs=1e-3)
    assert pd.isna(table.loc["full", "in-domain minus full"])
    assert table.loc["merged", "corpus passes"] == pytest.approx(1.5)


def test_a_verdict_may_be_no_or_inconclusive(folder: Path) -> None:
    alike = {"half": "random", "full": "base"}
    samples = {(model, task): scores(other, task) for model, other in alike.items() for task in ("alpha", "beta")}
    add_numbers(folder, samples)
    verdicts = checks_table(read_results(folder)).set_index("model").verdict
    assert verdicts.to_dict() == {"base": "yes", "half": "no", "full": "inconclusive", "merged": "yes"}


def test_schedules_are_compared_with_the_shuffled_member_of_the_same_subset_and_seed(scheduled: Path) -> None:
    results = read_results(scheduled)
    assert results.schedules == {"full": "full", "sets": "full", "stages": "full"}
    table = schedule_table(results).set_index("member")
    assert table["order of the stages"].to_list() == [
        "one stage",
        "largest first",
        "a + b, then c; learning rate restarted",
    ]
    models = model_table(results).set_index("model")
    for domain in ("in-domain", "out-of-domain"):
        assert table[domain].to_list() == models.loc[list(table.index), domain].to_list()
        expected = models.loc[["sets", "stages"], f"{domain} minus full"]
        assert table.loc[["sets", "stages"], f"{domain} minus shuffling"].to_list() == expected.to_list()
    assert pd.isna(table.loc["full", "in-domain minus shuffling"])
    assert "| reference |" in markdown(schedule_table(results))
    assert "seeds" in models.index


def test_a_schedule_is_better_or_worse_only_where_the_interval_excludes_zero(scheduled: Path) -> None:
    table = schedule_table(read_results(scheduled)).set_index("member")
    assert table["in-domain verdict"].to_dict() == {"full": "reference", "sets": "worse", "stages": "inconclusive"}
    assert table["out-of-domain verdict"].to_dict() == {"full": "reference", "sets": "worse", "stages": "better"}
    estimates = {"above": Estimate(2, 0.1, 3), "below": Estimate(-2, -3, -0.1), "inconclusive": Estimate(2, -0.1, 3)}
    estimates |= {"above ": Estimate(1, 1e-9, 3)}
    for verdict, estimate in estimates.items():
        assert verdict_of(estimate, "above", "below") == verdict.strip()
    assert verdict_of(Estimate(0, 0, 0), "above", "below") == "inconclusive"


def test_a_study_of_one_schedule_and_no_new_data_has_no_table_and_no_figures_of_these(
    folder: Path, tmp_path: Path
) -> None:
    written = write_report(folder, tmp_path / "out")["written"]
    assert not [name for name in written if "schedule" in name or "incremental" in name]
    results = read_results(folder)
    assert schedule_table(results).empty
    assert incremental_table(results).empty
    for draw in (schedule_strips, schedule_comparison, schedule_losses, incremental_comparison):
        assert draw(results).axes, "a notebook of such a study still runs"


def test_an_update_is_compared_with_retraining_on_old_new_and_other_tasks(updated: Path) -> None:
    results = read_results(updated)
    assert results.task_groups == {"old": ["alpha", "beta"], "new": ["delta"], "out-of-domain": ["gamma"]}
    assert results.retrained == "retrained"
    table = incremental_table(results).set_index("model")
    assert list(table.index) == ["merged", "update", "fresh", "retrained"]
    gap = 100 * np.subtract(*(scores(model, "delta").columns["value"] for model in ("base", "full"))).mean()
    assert table.loc["fresh", "new minus retrained"] == pytest.approx(gap, abs=1e-3)
    verdicts = {group: table.loc["fresh", f"{group} verdict"] for group in results.task_groups}
    assert verdicts == {"old": "better", "new": "worse", "out-of-domain": "inconclusive"}
    assert table.loc["retrained", "old verdict"] == "reference"
    assert pd.isna(table.loc["retrained", "old minus retrained"])
    assert table.loc["update", "what"].endswith("40 % of every old dataset and 100 % of the new data")
    assert table.loc["fresh", "what"] == "multislerp of merged and update, weights 1, 1"


def test_an_update_costs_what_is_trained_when_the_new_data_arrive(updated: Path) -> None:
    results = read_results(updated)
    table = incremental_table(results).set_index("model")
    assert table["examples to train"].to_dict() == {"merged": 0, "update": 6, "fresh": 6, "retrained": 10}
    assert table["steps to train"].to_dict() == {"merged": 0, "update": 3, "fresh": 3, "retrained": 5}
    assert table.loc["fresh", "share of retraining"] == pytest.approx(0.6)
    passes = model_table(results).set_index("model")["corpus passes"]
    assert passes["fresh"] == pytest.approx(1.5 + 0.65), "from the start: all members behind it"
    assert passes["retrained"] == pytest.approx(1.25)


def test_hyper_parameters_of_its_own_are_said_of_a_member(scheduled: Path) -> None:
    study = json.loads((scheduled / "study.json").read_text())
    study["members"]["sets"]["training"] = {"learning_rate": 2e-5, "num_train_epochs": None}
    what = model_table(replace(read_results(scheduled), study=study)).set_index("model")["what"]
    assert what["sets"].endswith("learning_rate 2e-05")


def test_without_a_retrained_model_an_update_is_shown_and_compared_with_nothing(updated: Path) -> None:
    study = json.loads((updated / "study.json").read_text())
    study["experiments"]["incremental"]["baseline"] = None
    study["models"].remove("retrained")
    results = replace(read_results(updated), study=study)
    table = incremental_table(results)
    assert list(table.model) == ["merged", "update", "fresh"]
    assert not [name for name in table if "minus" in name or "verdict" in name or "share" in name]
    assert incremental_comparison(results).axes


def test_the_figure_of_an_update_has_a_panel_a_group_and_one_for_the_cost(updated: Path) -> None:
    figure = incremental_comparison(read_results(updated))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["old (2 tasks)", "new (1 task)", "out-of-domain (1 task)", "examples to train"]
    assert [patch.get_width() for patch in figure.axes[-1].patches] == [0, 6, 6, 10]


def test_a_strip_has_one_cell_a_step_and_one_colour_a_dataset() -> None:
    many = [f"set{number}" for number in range(9)]
    for sequences in ({"long": ["b", "a", "b", "c"], "short": ["c", "a"]}, {"all": many * 2}):
        figure = plan_strips(sequences)
        axis, datasets = figure.axes[0], sorted({name for sequence in sequences.values() for name in sequence})
        cells = np.ma.filled(axis.images[0].get_array(), np.nan)
        for row, sequence in zip(cells, sequences.values(), strict=True):
            assert [datasets[int(cell)] for cell in row[~np.isnan(row)]] == sequence
        assert len({axis.images[0].to_rgba(np.array([number])).tobytes() for number in range(len(datasets))}) == len(
            datasets
        )
        assert [text.get_text() for text in figure.legends[0].get_texts()] == datasets
        assert axis.get_xlim() == (0, max(map(len, sequences.values())))


def test_a_markdown_cell_holds_the_value_and_its_interval(folder: Path) -> None:
    text = markdown(model_table(read_results(folder)))
    row = next(line for line in text.splitlines() if line.startswith("| full"))
    assert "reference" in row
    assert len(text.splitlines()) == 2 + len(SKILL)
    assert " low" not in text


@pytest.mark.promise(30)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "nothing of merged/beta"),
        ("no table", r"no readable parquet file.*samples\.parquet"),
        ("hole", r"lacks values.*samples\.parquet.*holes in value"),
        ("other queries", "different queries"),
        ("gone", r"file is missing.*samples\.parquet"),
    ],
)
def test_a_missing_or_malformed_result_is_named_and_nothing_is_averaged(
    folder: Path, tmp_path: Path, damage: str, said: str
) -> None:
    numbers, path, one = read_numbers(folder), folder / "samples.parquet", scores("merged", "beta")
    if damage == "gone":
        path.unlink()
    elif damage == "no table":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        values = one.columns["value"].copy()
        values[3:] = np.nan if damage == "hole" else values[3:]
        fewer = samples_of(values[:-1] if damage == "other queries" else values)
        samples = {**numbers.samples, ("merged", "beta"): fewer}
        if damage == "missing":
            del samples["merged", "beta"]
        write_numbers(folder, replace(numbers, samples=samples))
    with pytest.raises(ResultsError, match=f"(?s){said}"):
        write_report(folder, tmp_path / "out")


@pytest.mark.promise(32)
def test_numbers_come_back_as_they_were_and_the_same_numbers_give_the_same_bytes(updated: Path, tmp_path: Path) -> None:
    numbers = read_numbers(updated)
    pairs = TaskSamples("max_ap", ("b", "a"), {"gold": np.array([1.0, 0.0]), "cosine": np.array([0.1, 1 / 3])})
    numbers = replace(numbers, samples={("full.seed2", "pairs"): pairs, **numbers.samples})
    write_numbers(tmp_path / "one", numbers)
    found = read_numbers(tmp_path / "one")
    assert {*found.samples} == {*numbers.samples}
    again = found.samples["full.seed2", "pairs"]
    assert (again.metric, again.ids) == ("max_ap", ("b", "a"))
    assert {name: values.tolist() for name, values in again.columns.items()} == {"gold": [1, 0], "cosine": [0.1, 1 / 3]}
    other_order = dict(sorted(found.samples.items(), reverse=True))
    write_numbers(tmp_path / "two", Numbers(other_order, *(getattr(found, name)[::1] for name in TABLES)))
    for name in ("samples", *TABLES):
        one, two = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("one", "two"))
        assert one == two, name
        assert b"pandas" not in one


def test_a_folder_that_holds_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"study\.json"):
        read_results(tmp_path)
    write_json(tmp_path / "study.json", {"models": []})
    with pytest.raises(ResultsError, match="no tasks, evaluation, members, merges, experiments"):
        read_results(tmp_path)
