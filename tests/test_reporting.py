"""Tables from a results folder: nothing is averaged that is not there, differences are paired, seeds are pooled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_results import with_gain, with_study

from boom_utils.artifacts import write_json
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Estimate, TaskSamples, mean_shares, measure, moved, shares_of
from boom_utils.hyperparameters import TrainingChanges, WeightAverage
from boom_utils.reporting.ablations import (
    ABLATION_TABLES,
    granularity_table,
    merge_table,
    method_table,
    seed_table,
    variant_table,
)
from boom_utils.reporting.controls import CONTROL_TABLES
from boom_utils.reporting.experiments import method_groups, sweep, updates
from boom_utils.reporting.figures import incremental_comparison, schedule_comparison, study_figures
from boom_utils.reporting.results import Numbers, Results, read_numbers, read_results, write_numbers
from boom_utils.reporting.tables import TABLES, checks_table, incremental_table, markdown, model_table, schedule_table
from boom_utils.reporting.tables import verdict_of as verdict

# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.promise(30)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "nothing of full/unknown_0"),
        ("no table", r"no readable parquet file.*samples\.parquet"),
        ("hole", r"lacks values.*samples\.parquet.*holes in value"),
        ("other queries", "different queries"),
        ("gone", r"file is missing.*samples\.parquet"),
    ],
)
def test_a_missing_or_malformed_result_is_named_and_nothing_is_averaged(
    results: Results, tmp_path: Path, damage: str, said: str
) -> None:
    few = {key: one for key, one in results.numbers.samples.items() if key[0] in ("base", "full")}
    values = few["full", "unknown_0"].columns["value"].copy()
    values[3:] = np.nan if damage == "hole" else values[3:]
    values = values[:-1] if damage == "other queries" else values
    few["full", "unknown_0"] = TaskSamples("ndcg_at_10", tuple(map(str, range(len(values)))), {"value": values})
    if damage == "missing":
        del few["full", "unknown_0"]
    write_numbers(tmp_path, replace(results.numbers, samples=few))
    write_json(tmp_path / "study.json", {**results.study, "models": ["base", "full"]})
    path = tmp_path / "samples.parquet"
    if damage == "gone":
        path.unlink()
    elif damage == "no table":
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ResultsError, match=f"(?s){said}"):
        model_table(read_results(tmp_path))


@pytest.mark.promise(32)
def test_numbers_come_back_as_they_were_and_the_same_numbers_give_the_same_bytes(
    results: Results, tmp_path: Path
) -> None:
    pairs = TaskSamples("max_ap", ("b", "a"), {"gold": np.array([1.0, 0.0]), "cosine": np.array([0.1, 1 / 3])})
    numbers = replace(results.numbers, samples={("full.seed2", "pairs"): pairs, **results.numbers.samples})
    write_numbers(tmp_path / "one", numbers)
    found = read_numbers(tmp_path / "one")
    assert {*found.samples} == {*numbers.samples}
    again = found.samples["full.seed2", "pairs"]
    assert (again.metric, again.ids) == ("max_ap", ("b", "a"))
    assert {name: values.tolist() for name, values in again.columns.items()} == {"gold": [1, 0], "cosine": [0.1, 1 / 3]}
    turned = dict(sorted(found.samples.items(), reverse=True))
    write_numbers(tmp_path / "two", Numbers(turned, found.scores, found.training, found.losses))
    for name in ("samples", "scores", "training", "losses"):
        one, two = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("one", "two"))
        assert one == two and b"pandas" not in one, name


def test_a_folder_without_a_study_and_a_damaged_interaction_are_refused(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"study\.json"):
        read_results(tmp_path)
    write_json(tmp_path / "study.json", {"models": []})
    with pytest.raises(ResultsError, match="no tasks, evaluation, members, merges, experiments"):
        read_results(tmp_path)
    without = replace(results, folder=tmp_path)
    assert "interaction" not in study_figures(without)
    write_json(tmp_path / "interaction.json", {"datasets": ["a", "b"]})
    with pytest.raises(ResultsError, match="not an interaction"):
        study_figures(without)


# --- means, differences, verdicts -------------------------------------------------------------------------------------


def test_means_and_paired_differences_are_those_of_the_values(results: Results) -> None:
    table, tasks = model_table(results).set_index("model"), results.tasks("in-domain")
    values = {(model, task): one.score for (model, task), one in results.numbers.samples.items()}
    means = {name: 100 * np.mean([values[name, task] for task in tasks]) for name in ("boom", "full")}
    assert table.loc["boom", "in-domain"] == pytest.approx(means["boom"], abs=1e-3)
    assert table.loc["boom", "in-domain minus full"] == pytest.approx(means["boom"] - means["full"], abs=1e-3)
    assert pd.isna(table.loc["full", "in-domain minus full"])
    assert table.loc["boom", "corpus passes"] == pytest.approx(3)
    row = next(line for line in markdown(model_table(results)).splitlines() if line.startswith("| full"))
    assert "reference" in row and " low" not in markdown(model_table(results))
    found = results.comparison("boom", "full", tasks)
    assert found == measure([(1.0, results.samples("boom")), (-1.0, results.samples("full"))], tasks)
    with pytest.raises(ResultsError, match="no tasks"):
        results.comparison("boom", "full", [])


def test_a_verdict_is_reached_only_where_the_interval_excludes_zero(results: Results) -> None:
    for word, bounds in {"above": (1e-9, 3), "below": (-3, -0.1), "inconclusive": (-0.1, 3)}.items():
        assert verdict(Estimate(np.mean(bounds), *bounds), "above", "below") == word
    assert verdict(Estimate(0, 0, 0), "above", "below") == "inconclusive"
    verdicts = checks_table(with_gain(results, {"s20": -0.4, "s40": -0.2})).set_index("model").verdict
    assert verdicts[["base", "s20", "s40", "boom"]].to_list() == ["yes", "no", "inconclusive", "yes"]


def test_schedules_are_compared_with_batch_level_shuffling(results: Results) -> None:
    table = schedule_table(results).set_index("member")
    order = table["order of the stages"]
    assert order[["full", "seq-datasets"]].to_list() == ["one stage", "as in the profile"]
    assert order["two-stage"] == "retrieval + sts, then classification + clustering"
    assert table["in-domain verdict"].to_list() == ["reference", *["worse"] * 3]
    expected = model_table(results).set_index("model").loc[[*table.index], "in-domain minus full"]
    pd.testing.assert_series_equal(table["in-domain minus shuffling"], expected, check_names=False)


def test_a_study_without_an_experiment_has_neither_its_table_nor_its_figure(results: Results) -> None:
    merge = {**results.study["merges"]["boom-80-100"], "members": ["s20", "full"]}
    members = {name: results.study["members"][name] for name in ("s20", "full")}
    study = {"models": ["base", "s20", "full", "boom-80-100"], "members": members, "merges": {"boom-80-100": merge}}
    small = replace(with_study(results, **study), folder=results.folder / "nowhere")
    absent = {"schedules", "incremental", "headline", "seeds", "granularities", "methods", "variants"}
    absent |= {*CONTROL_TABLES}
    assert {name for name, make in {**TABLES, **ABLATION_TABLES}.items() if make(small).empty} == absent
    assert {*study_figures(small)} == {"in_against_out", "task_deltas"}
    for draw in (schedule_comparison, incremental_comparison):
        assert draw(small).axes, "a notebook of such a study still runs"
    known = {"in_against_out", "sampling_ratios", "member_against_merge", "update_cost", "interaction"}
    known |= {f"{name}_comparison" for name in ("variant", "granularity", "method", "schedule", "incremental")}
    assert known <= {*study_figures(results)}


# --- experiments ------------------------------------------------------------------------------------------------------


def test_granularities_are_told_with_what_their_members_cost(results: Results) -> None:
    table = granularity_table(results).set_index("model")
    assert table["models trained"].to_dict() == {"full": 1, "boom": 5, "datasets": 5, "families": 4, "clusters": 2}
    assert table["corpus passes"].to_list() == pytest.approx([1, 3, 1, 1, 1])
    assert table["in-domain verdict"].to_list() == ["reference", "better", *["worse"] * 3]


def test_methods_are_compared_on_the_same_trained_members_through_chains_of_merges(results: Results) -> None:
    first, second = method_groups(results)
    assert first == ["families", "ta", "ties", "stock", "sce", "slerp-all"], "as in the paper, families come first"
    assert second == ["boom", "boom-equal", "boom-vectors", "mean"]
    table = method_table(results).set_index("model")
    assert table.loc["slerp-all", "method"] == "slerp (chain)"
    assert table.loc["boom-vectors", "method"] == "multislerp (task vectors)"
    assert table.loc["ties", "parameters"] == "weights equal, density 0.5"
    assert table.loc["stock", "parameters"] == "", "model stock has no weights"
    assert table.loc["stock", "in-domain verdict against multislerp"] == "worse"
    assert table.loc[["families", "boom"], "in-domain verdict against multislerp"].to_list() == ["reference"] * 2
    assert "slerp-1" not in table.index, "what is not scored is in no table"


def test_variants_are_multislerp_of_samples_with_what_they_cost(results: Results) -> None:
    table = variant_table(results).set_index("model")
    assert list(table.index) == ["boom", "boom-40-100", "boom-80-100", "boom-halves", "boom-equal"]
    assert table["corpus passes"].to_list() == pytest.approx([3.0, 2.8, 1.8, 1.0, 3.0])
    assert table["weights"].to_list() == ["by ratio", "by ratio", "by ratio", "equal", "equal"]
    assert table.loc["boom-halves", ["ratios", "in-domain verdict"]].to_list() == ["{50, 50}", "worse"]


def test_an_update_is_compared_with_retraining_on_old_new_and_other_tasks(results: Results) -> None:
    assert {group: len(tasks) for group, tasks in results.task_groups.items()} == {
        "old": 4,
        "new": 1,
        "out-of-domain": 3,
    }
    table = incremental_table(results).set_index("model")
    gap = 100 * results.difference("updated-0", "retrained", ["code"]).value
    assert table.loc["updated-0", "new minus retrained"] == pytest.approx(gap, abs=1e-3)
    assert table.loc["boom", [f"{group} verdict" for group in ("old", "new")]].to_list() == ["better", "worse"]
    assert table.loc["retrained", "old verdict"] == "reference" and pd.isna(
        table.loc["retrained", "old minus retrained"]
    )
    what = table["what"]
    assert what["on-0"] == "fine-tuned from boom on nothing of the old and 100 % of the new data"
    assert what["updated-40"] == "multislerp of boom and update-40, weights 1, 1"
    assert what["retrained"].endswith("100 % of every old dataset and 100 % of the new data")
    incremental = {**results.study["experiments"]["incremental"], "baseline": None, "models": ["boom", "updated-0"]}
    alone = with_study(results, experiments={**results.study["experiments"], "incremental": incremental})
    columns = [*incremental_table(alone)]
    assert not [name for name in columns if "minus" in name or "verdict" in name or "share" in name]
    assert incremental_comparison(alone).axes


def test_an_update_costs_what_is_trained_when_the_new_data_arrive(results: Results) -> None:
    table = incremental_table(results).set_index("model")
    costs = table.loc[["boom", "updated-20", "retrained"], ["examples to train", "steps to train"]]
    assert costs.to_numpy().tolist() == [[0, 0], [600, 60], [1400, 140]]
    assert table.loc["updated-20", "share of retraining"] == pytest.approx(600 / 1400, abs=1e-4)
    assert results.behind("on-40") == ["s20", "s40", "s60", "s80", "full", "on-40"]
    assert results.cost("on-40") == pytest.approx(3.0 + 0.4 + 0.4), "from the start: all members behind it"
    assert results.update_cost("on-40") == {"examples": 800, "steps": 80}, "when new data arrive the start is there"


def test_updates_are_known_by_kind_core_and_weight_and_several_at_once_are_in_no_sweep(results: Results) -> None:
    found = {update.model: update for update in updates(results)}
    others = {name: update.kind for name, update in found.items() if update.kind != "merged"}
    assert others == {"on-0": "continued", "on-40": "continued", "retrained": "retrained"}
    assert [(found[name].core, found[name].weight) for name in ("updated-0", "updated-w75")] == [
        (0.0, 0.5),
        (0.4, 0.75),
    ]
    assert [update.model for update in sweep(results, "core_ratios")] == [
        "updated-0",
        "updated-20",
        "updated-40",
        "updated-100",
    ]
    assert [update.model for update in sweep(results, "weights")] == ["updated-w25", "updated-40", "updated-w75"]
    merge = {**results.study["merges"]["updated-40"], "members": ["boom", "update-20", "update-40"]}
    both = {**results.study["merges"], "updated-40": {**merge, "weights": [1, 1, 1]}}
    study = with_study(results, merges=both)
    assert "updated-40" not in [update.model for update in (*sweep(study, "core_ratios"), *sweep(study, "weights"))]


def test_hyper_parameters_of_its_own_are_said_of_a_member(results: Results) -> None:
    members = dict(results.study["members"])
    own = {
        "s20": (TrainingChanges(learning_rate=2e-5), "learning_rate 2e-05"),
        "s40": (TrainingChanges(average=WeightAverage(ema=0.99)), "exponential mean of weights 0.99"),
        "s60": (TrainingChanges(average=WeightAverage(last=5)), "mean of the last 5 checkpoints"),
    }
    for name, (changes, _) in own.items():
        members[name] = {**members[name], "training": changes.model_dump(mode="json")}
    what = model_table(with_study(results, members=members)).set_index("model")["what"]
    assert [name for name, (_, said) in own.items() if not what[name].endswith(f", {said}")] == []


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_a_comparison_of_several_seeds_has_the_mean_over_them_and_their_spread(
    pooled: Results, results: Results
) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom", "full", tasks)
    assert (pooled.seeds("full"), pooled.seeds("ties")) == (["full", "full.seed2", "full.seed3"], ["ties"])
    by_seed = [[pooled.run_mean(name, tasks) for name in pooled.seeds(model)] for model in ("full", "boom")]
    assert pooled.mean("full", tasks).value == pytest.approx(np.mean(by_seed[0]))
    assert found.value == pytest.approx(np.mean(by_seed[1]) - np.mean(by_seed[0]))
    boom, full = (shares_of(name, pooled.study["members"], pooled.study["merges"]) for name in ("boom", "full"))
    member = np.var(by_seed, axis=1, ddof=1).sum() / (moved(boom) + moved(full))
    apart = moved(mean_shares([(1.0, boom), (-1.0, full)]))
    assert found.levels["seeds"][0] == pytest.approx(member * apart / 3)
    assert found.p_value > results.comparison("boom", "full", tasks).p_value


@pytest.mark.parametrize("other", ["full", "boom", "base"])
def test_a_difference_is_that_of_the_means_that_tables_show_however_many_seeds_each_side_has(
    pooled: Results, other: str
) -> None:
    tasks = pooled.tasks("in-domain")
    found = pooled.comparison("boom-equal", other, tasks)
    assert found.value == pytest.approx(pooled.mean("boom-equal", tasks).value - pooled.mean(other, tasks).value)
    several = pooled.comparison("full", "base", tasks).levels["seeds"][0]
    assert found.levels["seeds"][0] > 0
    assert pooled.comparison("two-stage", "base", tasks).levels["seeds"][0] == pytest.approx(3 * several)


def test_the_mean_of_several_models_is_compared_as_one(pooled: Results) -> None:
    tasks, parts = pooled.tasks("in-domain"), ["half", "half-rest"]
    gap = pooled.difference("boom-halves", parts, tasks)
    means = [pooled.mean(name, tasks).value for name in parts]
    assert gap.value == pytest.approx(pooled.mean("boom-halves", tasks).value - np.mean(means))
    table = merge_table(pooled).set_index("model").loc["boom-halves"]
    assert table["in-domain minus mean part"] == pytest.approx(100 * gap.value, abs=1e-4)
    assert table["in-domain best part"] in parts
    assert table["in-domain minus best part"] <= table["in-domain minus mean part"] < table["in-domain minus base"]


def test_where_only_the_method_differs_real_seeds_are_taken_and_without_them_none(pooled: Results) -> None:
    tasks = pooled.tasks("in-domain")
    assert "seeds" not in pooled.comparison("stock", "ties", tasks).levels
    assert "seeds" not in pooled.comparison("base", "random", tasks).levels
    seeds = {**pooled.study["seeds"], "stock": pooled.seeds("full"), "ties": pooled.seeds("boom")}
    real = with_study(pooled, seeds=seeds).comparison("stock", "ties", tasks)
    gaps = np.subtract(*([pooled.run_mean(name, tasks) for name in seeds[model]] for model in ("stock", "ties")))
    assert real.levels["seeds"] == pytest.approx((np.var(gaps, ddof=1) / 3, 2))


def test_what_seeds_move_stands_beside_what_is_expected(pooled: Results) -> None:
    table = seed_table(pooled).set_index("model")
    assert list(table.index) == ["full", "boom"]
    units, expected = table["members' variance in it"], table["in-domain deviation expected"]
    assert units["full"] == 1
    assert expected["boom"] / expected["full"] == pytest.approx(units["boom"] ** 0.5, abs=1e-2)
    assert (expected**2).sum() == pytest.approx((table["in-domain deviation"] ** 2).sum(), rel=1e-2)
