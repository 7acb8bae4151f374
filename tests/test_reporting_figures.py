"""Figures: what they show is what tables and pairs say, marks are those of the intervals."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from made_up_results import with_study
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from boom_utils.artifacts import write_json
from boom_utils.errors import ResultsError
from boom_utils.evaluation.interaction import Interaction, clusters
from boom_utils.reporting.experiments import lifetime_costs
from boom_utils.reporting.figures import (
    forgetting_curves,
    granularity_comparison,
    incremental_comparison,
    interaction_heat_map,
    member_against_merge,
    model_means,
    plan_strips,
    sampling_ratios,
    seed_means,
    study_figures,
    task_deltas,
    update_cost,
    write_figures,
)
from boom_utils.reporting.frontier import frontier
from boom_utils.reporting.panels import DIVERGING, HEIGHT, MOST_WITH_NUMBERS, SLIDE, STYLE, WIDTH, model_colour
from boom_utils.reporting.regime import effective_members, regime, regime_table
from boom_utils.reporting.results import Results


def test_no_figure_is_larger_than_a_screen_however_many_models_and_tasks_there_are(results: Results) -> None:
    many = [model for model in results.models for _ in range(8)]
    crowded = with_study(results, models=many, tasks=[task for task in results.study["tasks"] for _ in range(9)])
    drawn = [draw(results) for draw in study_figures(results).values()]
    for figure in [model_means(crowded), task_deltas(crowded), *drawn]:
        width, height = figure.get_size_inches()
        assert width <= WIDTH and height <= HEIGHT


def dots(axis: Any) -> list[Any]:
    """The marks of a panel of intervals."""
    return [one for one in axis.collections if isinstance(one, PathCollection) and len(one.get_offsets())]


def test_a_marker_is_filled_only_where_the_interval_excludes_zero(results: Results) -> None:
    figure = granularity_comparison(results)
    for axis, domain in zip(figure.axes, results.domains, strict=False):
        rows = ["boom", "datasets", "families", "clusters"]
        found = [results.difference(model, "full", results.tasks(domain)) for model in rows]
        (marks,) = dots(axis)
        faces = [[*face] != [1, 1, 1, 1] for face in marks.get_facecolors()]
        assert faces == [one.excludes_zero for one in found]
        places = np.asarray(marks.get_offsets())
        assert places[:, 0] == pytest.approx([100 * one.value for one in found], abs=1e-4)
        assert places[:, 1].tolist() == [0, 1, 2, 3]


def test_updates_have_a_panel_a_group_of_tasks_and_what_has_to_be_trained(results: Results) -> None:
    figure = incremental_comparison(results)
    assert [axis.get_title() for axis in figure.axes] == ["old (4 tasks)", "new (1 task)", "out-of-domain (3 tasks)"]
    assert [text.get_text() for text in figure.axes[-1].texts][-1] == "800", "on-40"


def test_a_model_has_one_colour_and_the_roles_of_a_study_have_their_own(results: Results) -> None:
    colours = {model: model_colour(results, model) for model in results.models}
    assert len({colours[name] for name in ("base", "full", "boom", "retrained", "boom-equal", "on-0")}) == 6
    ratios = [colours[name] for name in ("s20", "s40", "s60", "s80")]
    assert sorted(ratios, key=lambda one: -sum(to_rgb(one))) == ratios, "the more data, the darker"
    for draw in (seed_means, sampling_ratios, member_against_merge):
        assert draw(results).axes


def test_every_member_stands_at_its_distance_from_the_mean_of_the_members(results: Results) -> None:
    axis, tasks = member_against_merge(results).axes[0], results.tasks("in-domain")
    order = [text.get_text() for text in axis.get_yticklabels()]
    members = results.parts["boom"]
    gains = [results.difference("boom", members, [task]).value for task in order]
    assert gains == sorted(gains, reverse=True) and {*order} == {*tasks}
    marks = {one.get_label(): np.asarray(one.get_offsets())[:, 0] for one in dots(axis)}
    assert sum(marks[member] for member in members) == pytest.approx(np.zeros(len(tasks)), abs=1e-9)


@pytest.mark.promise(32)
def test_a_figure_is_written_with_the_same_bytes_and_words_for_who_does_not_see_it_and_a_slide_is_wide(
    results: Results, tmp_path: Path
) -> None:
    for name, style in (("page", STYLE), ("again", STYLE), ("slide", SLIDE)):
        write_figures(results, tmp_path / name, {"update_cost": update_cost}, style)
    page, again, slide = ((tmp_path / name / "update_cost.svg").read_text() for name in ("page", "again", "slide"))
    assert page == again and "<title>What updates cost" in page and "<desc>Left, the mean" in page
    assert 'width="648pt" height="364.5pt"' in slide


@pytest.mark.parametrize(
    "plans", [{"long": ["b", "a", "b", "c"], "short": ["c", "a"]}, {"all": [f"set{number}" for number in range(9)]}]
)
def test_a_strip_has_one_cell_a_step_and_one_colour_a_dataset(plans: dict[str, list[str]]) -> None:
    figure = plan_strips(plans)
    image, datasets = figure.axes[0].images[0], sorted({name for plan in plans.values() for name in plan})
    for row, plan in zip(np.ma.filled(image.get_array(), np.nan), plans.values(), strict=True):
        assert [datasets[int(cell)] for cell in row[~np.isnan(row)]] == plan
    colours = {image.to_rgba(np.array([number])).tobytes() for number in range(len(datasets))}
    assert len(colours) == len(datasets)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == datasets


# --- controls ---------------------------------------------------------------------------------------------------------


def drawn(results: Results) -> Figure:
    figure = frontier(results)
    figure.draw_without_rendering()
    return figure


def test_every_arm_stands_at_its_two_means_with_its_intervals_and_the_area_of_its_cost(controlled: Results) -> None:
    axis = drawn(controlled).axes[0]
    marks = {tuple(one.get_offsets()[0]): one for one in dots(axis) if len(one.get_offsets()) == 1}
    names = ["full", *controlled.experiments.frontier]
    assert len(names) == 10 and {len(one.get_paths()) for one in marks.values()} == {1}
    for name in names:
        x, y = (controlled.domain_mean(name, domain) for domain in controlled.domains)
        mark = next(one for at, one in marks.items() if at == pytest.approx((100 * x.value, 100 * y.value), abs=1e-3))
        assert mark.get_sizes()[0] == pytest.approx(22 * max(0.5, controlled.cost(name)))
        hollow = mark.get_facecolor()[0].tolist() == [1, 1, 1, 1]
        assert hollow == (name == "ensemble")
    bars = [one.get_segments()[0] for one in axis.collections if hasattr(one, "get_segments")]
    x, y = (controlled.domain_mean("boom", domain) for domain in controlled.domains)
    ends = {tuple(np.ptp(bar, axis=0).round(3)) for bar in bars}
    assert {(round(100 * (x.high - x.low), 3), 0.0), (0.0, round(100 * (y.high - y.low), 3))} <= ends


def test_names_beside_the_curve_cover_no_other_and_stay_within_the_panel(controlled: Results) -> None:
    figure = drawn(controlled)
    axis, renderer = figure.axes[0], FigureCanvasAgg(figure).get_renderer()
    boxes = {text.get_text(): Text.get_window_extent(text, renderer) for text in axis.texts}
    assert {"base", "full", "0.2", "0.5", "0.7", *controlled.experiments.frontier} == {*boxes}
    window = axis.get_window_extent(renderer)
    for name, box in boxes.items():
        assert window.contains(*box.min) and window.contains(*box.max), name
        assert [other for other, at in boxes.items() if box.overlaps(at)] == [name]


def test_surpluses_stand_beside_it_by_cost_the_highest_first(controlled: Results) -> None:
    axis = drawn(controlled).axes[1]
    rows = [text.get_text() for text in axis.get_yticklabels()]
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.endswith(":"):
            groups[row] = []
        else:
            found = controlled.surplus(row.removesuffix(" \N{DAGGER}"), "out-of-domain")
            assert row.endswith("\N{DAGGER}") == found.beyond
            groups[[*groups][-1]].append(found.measured.value)
    assert {"1 pass:", "3 passes:"} <= {*groups} and sum(map(len, groups.values())) == 9
    assert all(values == sorted(values, reverse=True) for values in groups.values())


def test_the_regime_of_members_is_as_worked_out_by_hand(controlled: Results, tmp_path: Path) -> None:
    table = regime_table(controlled).set_index("model")
    assert {"all members", "full", "boom", "boom-halves", "s40", "boom-80-100"} <= {*table.index}
    boom = table.loc["boom"]
    assert boom[["length ~ steps to the", "length, full's is 1", "median cosine"]].to_list() == [0.5, 0.5, 0.1]
    assert boom["effective members by weights"] == pytest.approx(9 / 2.2, abs=1e-3)
    assert boom["steps clipped"] == boom["steps with loss below 0.001"] == 0.2, "one member of five"
    assert pd.isna(table.loc["full", "median cosine"]) and pd.isna(table.loc["mean", "length, full's is 1"])
    assert regime(controlled).axes
    weights, lengths = np.array([0.5, 0.3, 0.2]), np.ones(3)
    assert effective_members(weights, lengths, np.full((3, 3), 0.4)) == pytest.approx(1 / (weights**2).sum())
    uneven = np.array([2.0, 1.0]), np.eye(2)
    assert effective_members(np.array([0.5, 0.5]), *uneven) == pytest.approx(2.5 / 1.25)
    write_json(tmp_path / "regime.json", {"seeds": [{"members": ["full"]}]})
    with pytest.raises(ResultsError, match="no geometry of arms"):
        regime_table(replace(controlled, folder=tmp_path))


def test_the_cost_of_updates_over_a_lifetime_is_as_worked_out_by_hand(results: Results) -> None:
    """New data of 0.4 passes arrive again and again; the second update's old data are 1.4 passes."""
    costs = lifetime_costs(results, 2)
    assert costs["retrain on everything"] == pytest.approx([1.0, 2.4, 4.2])
    core = [0.2 * 1.0 + 0.4, 0.2 * 1.4 + 0.4]
    assert costs["boom + update with 20 % of the old"] == pytest.approx([3.0, 3.0 + core[0], 3.0 + sum(core)])
    assert costs["full + update with 20 % of the old"] == pytest.approx([1.0, 1.0 + core[0], 1.0 + sum(core)])
    assert costs["boom + update without old data"] == pytest.approx([3.0, 3.4, 3.8])
    labels = [line.get_label() for line in update_cost(results).axes[1].lines]
    assert "boom + update with 20 % of the old: cheaper from update 3 on" in labels
    assert lifetime_costs(with_study(results, experiments={}), 2) == {}


# --- interactions and forgetting --------------------------------------------------------------------------------------

NAMES = ("alpha_set", "beta", "gamma", "delta")
CURVE = [(0.0, 2.0, 1.9, 2.1), (0.5, 1.5, 1.4, 1.6), (1.0, 1.75, 1.6, 1.9)]
LOSSES = {"shuffled": {"a": CURVE, "b_set": CURVE, "c": CURVE}, "sequential": {"a": CURVE[:2], "c": CURVE}}


def interaction(size: int = 4) -> Interaction:
    """alpha_set with gamma and beta with delta help one another, surely; all others disturb, perhaps."""
    values = np.fromfunction(lambda a, b: np.where((a + b) % 2 == 0, -0.2, 0.1) + 0.01 * (a + b), (size, size))
    np.fill_diagonal(values, 0.0)
    names = NAMES if size == 4 else tuple(f"set_{number}" for number in range(size))
    spread = np.where(values < 0, 0.05, 0.5)
    np.fill_diagonal(spread, 0.0)
    return Interaction(names, (5,) * size, 0.95, *(values, values - spread, values + spread) * 2)


def labels(axis: Any) -> tuple[list[str], list[str]]:
    rows, columns = ([one.get_text() for one in get()] for get in (axis.get_yticklabels, axis.get_xticklabels))
    return rows, columns


def cells(figure: Figure) -> dict[tuple[str, str], str]:
    axis = figure.axes[1]
    rows, columns = labels(axis)
    places = [tuple(map(int, text.get_position())) for text in axis.texts]
    return {(rows[y], columns[x]): text.get_text() for (x, y), text in zip(places, axis.texts, strict=True)}


def svg(figure: Figure) -> bytes:
    page = io.BytesIO()
    figure.savefig(page, format="svg", metadata={"Date": None})
    return page.getvalue()


def test_every_pair_has_its_number_and_a_star_where_the_interval_leaves_out_zero() -> None:
    given = interaction()
    given.values[1, 2] = given.values[2, 1] = -1e-6
    figure = interaction_heat_map(given)
    found, image = cells(figure), figure.axes[1].images[0]
    assert len(found) == 12
    assert found["alpha set", "gamma"] == found["gamma", "alpha set"] == "-0.18*"
    assert found["alpha set", "beta"] == "+0.11"
    assert found["beta", "gamma"] == "+0.00", "what rounds to nothing has no minus sign"
    assert image.get_clim()[0] == -image.get_clim()[1] and min(DIVERGING(0.5)[:3]) > 0.99
    assert image.get_array().mask.diagonal().all()
    with pytest.raises(ResultsError, match="other datasets"):
        interaction_heat_map(given, clusters(interaction(5), count=2))


def test_rows_columns_and_tree_have_the_order_of_the_clusters_with_lines_between_them() -> None:
    given = interaction()
    groups = clusters(given, count=2)
    tree, axis = interaction_heat_map(given, groups).axes[:2]
    rows, columns = labels(axis)
    assert rows == columns == [NAMES[leaf].replace("_", " ") for leaf in groups.leaves]
    assert {*rows[:2]} in ({"alpha set", "gamma"}, {"beta", "delta"})
    assert [line.get_ydata()[0] for line in axis.lines if len(set(line.get_ydata())) == 1] == [1.5]
    assert [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1] == [1.5]
    assert sorted(line.get_color() == "black" for line in tree.lines) == [False, True, True]
    assert {y for line in tree.lines for y in line.get_ydata()} >= {0, 1, 2, 3}, "leaves stand at their rows"
    assert tree.get_ylim() == axis.get_ylim()


@pytest.mark.promise(32)
@pytest.mark.parametrize("size", [2, MOST_WITH_NUMBERS, MOST_WITH_NUMBERS + 1])
def test_from_two_datasets_to_many_there_is_a_figure_of_the_same_bytes_and_numbers_where_there_is_room(
    size: int,
) -> None:
    with mpl.rc_context(STYLE):
        drawn = interaction_heat_map(interaction(size))
        page = svg(drawn)
        assert size > 2 or page == svg(interaction_heat_map(interaction(size)))
    assert any("." in text for text in cells(drawn).values()) == (size <= MOST_WITH_NUMBERS)
    nothing = interaction_heat_map(Interaction(("a", "b"), (1, 1), 0.95, *(np.zeros((2, 2)),) * 6))
    assert {*cells(nothing).values()} == {"+0.000"}


@pytest.mark.promise(32)
def test_curves_have_a_panel_a_dataset_a_line_of_one_colour_a_model_and_bands() -> None:
    figure = forgetting_curves(LOSSES)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["a", "b set", "c"]
    assert [len(axis.lines) for axis in shown] == [len(axis.collections) for axis in shown] == [2, 1, 2]
    assert shown[0].lines[1].get_ydata().tolist() == [2.0, 1.5]
    assert shown[0].lines[1].get_color() == shown[2].lines[1].get_color() != shown[0].lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["shuffled", "sequential"]
