"""Tables and figures of the ablations: models are found from what was trained, costs add up, labels do not overlap."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from made_up_results import DATASETS, write_made_up_results
from matplotlib.backends.backend_agg import FigureCanvasAgg

from boom_utils.artifacts import write_json
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import measure
from boom_utils.reporting.ablations import (
    ABLATION_TABLES,
    dataset_table,
    granularity_table,
    method_table,
    pareto_front,
    pareto_table,
    variant_table,
)
from boom_utils.reporting.experiments import core_sweep, granularity_merges, method_groups, updates, weight_sweep
from boom_utils.reporting.figures import (
    core_ratio_sweep,
    granularity_comparison,
    model_means,
    pareto,
    study_figures,
    task_deltas,
)
from boom_utils.reporting.panels import HEIGHT, STYLE, WIDTH
from boom_utils.reporting.results import Results, read_results
from boom_utils.reporting.tables import incremental_table


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(write_made_up_results(tmp_path_factory.mktemp("made-up")))


def changed(results: Results, **changes: Any) -> Results:
    """The same results with another study."""
    return replace(results, study={**results.study, **changes})


def static_only(results: Results) -> Results:
    """What is left of the study with members, one merge, and nothing else."""
    members = {name: results.study["members"][name] for name in ("s20", "full")}
    merge = {**results.study["merges"]["boom-80-100"], "members": ["s20", "full"]}
    study = {**results.study, "models": ["base", "s20", "full", "boom-80-100"], "members": members}
    study["merges"] = {"boom-80-100": merge}
    return Results(results.folder / "nowhere", study, results.numbers)


def test_granularities_are_found_from_what_the_members_were_trained_on(results: Results) -> None:
    assert granularity_merges(results) == {"datasets": "dataset", "families": "family", "clusters": "cluster"}
    table = granularity_table(results).set_index("model")
    assert list(table.index) == ["full", "boom", "datasets", "families", "clusters"]
    assert table["models trained"].to_dict() == {"full": 1, "boom": 5, "datasets": 5, "families": 4, "clusters": 2}
    assert table["corpus passes"].to_dict() == pytest.approx(
        {"full": 1, "boom": 3, "datasets": 1, "families": 1, "clusters": 1}
    )
    assert set(table.loc[["datasets", "families", "clusters"], "in-domain verdict"]) == {"worse"}
    assert table.loc["boom", "in-domain verdict"] == "better"
    gap = 100 * results.difference("datasets", "full", results.tasks("in-domain")).value
    assert table.loc["datasets", "in-domain minus full"] == pytest.approx(gap, abs=1e-3)


def test_methods_are_compared_on_the_same_trained_members_through_chains_of_merges(results: Results) -> None:
    groups = method_groups(results)
    assert groups[0] == ["families", "ta", "ties", "stock", "sce", "slerp-all"], "as in the paper, families come first"
    assert groups[1] == ["boom", "boom-equal", "boom-vectors", "mean"]
    table = method_table(results).set_index("model")
    assert table.loc["slerp-all", "method"] == "slerp (chain)"
    assert table.loc["boom-vectors", "method"] == "multislerp (task vectors)"
    assert table.loc["ties", "parameters"] == "weights equal, density 0.5"
    assert table.loc["stock", "parameters"] == "", "model stock has no weights"
    assert table.loc["stock", "in-domain verdict against multislerp"] == "worse"
    assert table.loc[["families", "boom"], "in-domain verdict against multislerp"].to_list() == ["reference"] * 2
    assert "slerp-1" not in table.index, "what is not scored is in no table"


def test_variants_are_multislerp_of_samples_with_what_they_cost(results: Results) -> None:
    assert results.experiments.variants == ("boom", "boom-40-100", "boom-80-100", "boom-halves", "boom-equal")
    table = variant_table(results).set_index("model")
    assert table["corpus passes"].to_list() == pytest.approx([3.0, 2.8, 1.8, 1.0, 3.0])
    assert table["weights"].to_list() == ["by ratio", "by ratio", "by ratio", "equal", "equal"]
    assert table.loc["boom-halves", "ratios"] == "{50, 50}"
    assert table["in-domain verdict"].to_dict()["boom-halves"] == "worse"


def test_the_cost_of_further_training_holds_that_of_its_start(results: Results) -> None:
    assert results.behind("on-40") == ["s20", "s40", "s60", "s80", "full", "on-40"]
    assert results.cost("on-40") == pytest.approx(3.0 + 0.4 + 0.4)
    assert results.update_cost("on-40") == {"examples": 800, "steps": 80}, "when new data arrive the start is there"


def test_a_model_is_not_dominated_where_no_other_is_cheaper_and_better(results: Results) -> None:
    front = pareto_front(results, "in-domain")
    assert "boom-halves" not in front, "full costs the same and is better"
    assert "boom" not in front, "boom-40-100 is cheaper and better"
    assert front[:2] == ["base", "s20"], "what nobody trained costs nothing"
    assert front[-1] == "boom-40-100"
    costs = [results.cost(name) for name in front]
    means = [results.domain_mean(name, "in-domain").value for name in front]
    assert costs == sorted(costs)
    assert means == sorted(means)
    table = pareto_table(results).set_index(["domain", "model"])
    assert table.loc[("in-domain", "boom"), "not dominated"] == "no"
    assert table.loc[("in-domain", "boom-40-100"), "next cheaper"] == "boom-80-100"
    assert set(table["step up"]) >= {"better", "inconclusive"}


def test_of_two_models_at_the_same_cost_the_worse_one_is_dominated(results: Results) -> None:
    members = {**results.study["members"]}
    members["half"] = {**members["half"], "passes": 0.1 + 0.2}
    members["half-rest"] = {**members["half-rest"], "passes": 0.3}
    front = pareto_front(changed(results, members=members), "in-domain")
    assert "half" in front
    assert "half-rest" not in front, "0.1 + 0.2 is no more than 0.3"


def test_updates_are_known_by_kind_core_and_weight(results: Results) -> None:
    found = {update.model: update for update in updates(results)}
    assert {name: update.kind for name, update in found.items() if update.kind != "merged"} == {
        "on-0": "continued",
        "on-40": "continued",
        "retrained": "retrained",
    }
    assert (found["updated-0"].core, found["updated-0"].weight) == (0.0, 0.5)
    assert (found["updated-w75"].core, found["updated-w75"].weight) == (0.4, 0.75)
    assert [update.model for update in core_sweep(results)] == ["updated-0", "updated-20", "updated-40", "updated-100"]
    assert [update.model for update in weight_sweep(results)] == ["updated-w25", "updated-40", "updated-w75"]
    table = incremental_table(results).set_index("model")
    assert table.loc["boom", "kind"] == "existing"
    assert table.loc["updated-20", "share of retraining"] == pytest.approx(600 / 1400, abs=1e-4)
    assert table.loc["on-0", "what"] == "fine-tuned from boom on nothing of the old and 100 % of the new data"
    assert not [name for name in table.index if name.startswith("update-")], "updates by themselves are not scored here"


def test_several_updates_at_once_have_no_core_and_no_weight_and_are_in_no_sweep(results: Results) -> None:
    merge = {
        **results.study["merges"]["updated-40"],
        "members": ["boom", "update-20", "update-40"],
        "weights": [1, 1, 1],
    }
    study = changed(results, merges={**results.study["merges"], "updated-40": merge})
    found = next(update for update in updates(study) if update.model == "updated-40")
    assert (found.core, found.weight) == (None, None)
    assert "updated-40" not in [update.model for update in (*core_sweep(study), *weight_sweep(study))]


def test_a_comparison_of_results_is_the_one_of_the_evaluation(results: Results) -> None:
    tasks = results.tasks("out-of-domain")
    found = results.comparison("boom", "full", tasks)
    assert found == measure([(1.0, results.samples("boom")), (-1.0, results.samples("full"))], tasks)
    with pytest.raises(ResultsError, match="no tasks"):
        results.comparison("boom", "full", [])


def test_every_dataset_has_its_cluster_and_its_strongest_partners(results: Results) -> None:
    table = dataset_table(results).set_index("dataset")
    assert table["family"].to_dict() == DATASETS
    assert table.loc["nq", "strongest synergy"] == "fiqa"
    assert table.loc["nq", "strongest synergy, nats x 1000"] == "-200.0 [-250.0, -150.0]"
    assert table.loc["sts", "strongest synergy"] == "none"
    assert table.loc["nq", "cluster"] == table.loc["fiqa", "cluster"]


def test_a_damaged_interaction_is_an_error_and_none_is_no_figure(results: Results, tmp_path: Path) -> None:
    without = Results(tmp_path, results.study)
    assert dataset_table(without).empty
    assert "interaction" not in study_figures(without)
    write_json(tmp_path / "interaction.json", {"datasets": ["a", "b"]})
    with pytest.raises(ResultsError, match="not an interaction"):
        dataset_table(without)


def test_a_study_without_an_experiment_has_neither_its_table_nor_its_figure(results: Results) -> None:
    small = static_only(results)
    empty = {name for name, make in ABLATION_TABLES.items() if make(small).empty}
    assert empty == {"headline", "seeds", "granularities", "methods", "variants", "datasets"}
    assert list(study_figures(small))[5:] == ["pareto"]


def test_every_experiment_has_a_figure(results: Results) -> None:
    names = ["granularity_comparison", "method_comparison", "variant_comparison", "pareto", "core_ratio_sweep"]
    assert [*study_figures(results)][-7:] == [*names, "merge_weight_sweep", "interaction"]


def test_no_figure_is_larger_than_a_screen_however_many_models_and_tasks_there_are(results: Results) -> None:
    many = [f"{model}" for model in results.models for _ in range(8)]
    tasks = [task for task in results.study["tasks"] for _ in range(9)]
    crowded = changed(results, models=many, tasks=tasks)
    for figure in [
        model_means(crowded),
        task_deltas(crowded),
        *(draw(results) for draw in study_figures(results).values()),
    ]:
        width, height = figure.get_size_inches()
        assert width <= WIDTH
        assert height <= HEIGHT


def test_every_model_in_the_pareto_figure_has_a_number_and_no_two_numbers_overlap(results: Results) -> None:
    with mpl.rc_context(STYLE):
        figure = pareto(results)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        for axis in figure.axes:
            boxes = [text.get_window_extent(renderer) for text in axis.texts]
            assert {text.get_text() for text in axis.texts} == {name.split()[0] for name in named if name[0].isdigit()}
            assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_a_marker_is_filled_only_where_the_interval_excludes_zero(results: Results) -> None:
    figure = granularity_comparison(results)
    rows = ["boom", "datasets", "families", "clusters"]
    for axis, domain in zip(figure.axes, results.domains, strict=False):
        dots = [line for line in axis.lines if line.get_marker() == "o"]
        found = [results.difference(model, "full", results.tasks(domain)) for model in rows]
        assert len(dots) == len(rows)
        for dot, estimate in zip(dots, found, strict=True):
            assert (dot.get_markerfacecolor() != "white") == estimate.excludes_zero
            assert np.ravel(dot.get_xdata())[0] == pytest.approx(100 * estimate.value, abs=1e-4)


def test_the_sweep_shows_old_and_new_tasks_over_the_share_of_old_data(results: Results) -> None:
    figure = core_ratio_sweep(results)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "old (4 tasks)",
        "new (1 task)",
        "out-of-domain (3 tasks)",
    ]
    line = next(bars for bars in figure.axes[1].containers if bars.get_label() == "merged update").lines[0]
    assert list(np.asarray(line.get_xdata())) == [0.0, 0.2, 0.4, 1.0]
    expected = [100 * results.mean(f"updated-{percent}", ["code"]).value for percent in (0, 20, 40, 100)]
    assert list(np.asarray(line.get_ydata())) == pytest.approx(expected, abs=1e-4)
