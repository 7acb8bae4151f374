"""Figures of interactions: the numbers are those of the pairs, marks those of the intervals, and the bytes the same."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from boom_utils.errors import ResultsError
from boom_utils.evaluation.interaction import Interaction, clusters
from boom_utils.reporting.figures import forgetting_curves, interaction_heat_map
from boom_utils.reporting.panels import DIVERGING, MOST_WITH_NUMBERS, STYLE

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


def cells(figure: Figure) -> dict[tuple[str, str], str]:
    axis = figure.axes[1]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    places = [tuple(map(int, text.get_position())) for text in axis.texts]
    return {(rows[y], columns[x]): text.get_text() for (x, y), text in zip(places, axis.texts, strict=True)}


def svg(figure: Figure) -> bytes:
    page = io.BytesIO()
    figure.savefig(page, format="svg", metadata={"Date": None})
    return page.getvalue()


def test_every_pair_has_its_number_and_a_star_where_the_interval_leaves_out_zero() -> None:
    given = interaction()
    given.values[1, 2] = given.values[2, 1] = -1e-6
    found = cells(interaction_heat_map(given))
    assert len(found) == 12
    assert found["alpha set", "gamma"] == found["gamma", "alpha set"] == "-0.18*"
    assert found["alpha set", "beta"] == "+0.11"
    assert found["beta", "gamma"] == "+0.00", "what rounds to nothing has no minus sign"


def test_rows_columns_and_tree_have_the_order_of_the_clusters_with_lines_between_them() -> None:
    given = interaction()
    groups = clusters(given, count=2)
    tree, axis = interaction_heat_map(given, groups).axes[:2]
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows == [label.get_text() for label in axis.get_xticklabels()]
    assert rows == [NAMES[leaf].replace("_", " ") for leaf in groups.leaves]
    assert {frozenset(rows[:2]), frozenset(rows[2:])} == {
        frozenset({"alpha set", "gamma"}),
        frozenset({"beta", "delta"}),
    }
    assert [line.get_ydata()[0] for line in axis.lines if len(set(line.get_ydata())) == 1] == [1.5]
    assert [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1] == [1.5]
    assert sorted(line.get_color() == "black" for line in tree.lines) == [False, True, True]
    assert {y for line in tree.lines for y in line.get_ydata()} >= {0, 1, 2, 3}, "leaves stand at their rows"
    assert tree.get_ylim() == axis.get_ylim()


def test_colours_are_centred_at_zero_and_the_diagonal_has_none() -> None:
    image = interaction_heat_map(interaction()).axes[1].images[0]
    low, high = image.get_clim()
    assert low == -high
    assert image.get_array().mask.diagonal().all()
    assert min(DIVERGING(0.5)[:3]) > 0.99


@pytest.mark.parametrize(("size", "numbers"), [(2, True), (MOST_WITH_NUMBERS, True), (MOST_WITH_NUMBERS + 1, False)])
def test_from_two_datasets_to_many_there_is_a_figure_and_numbers_where_there_is_room(size: int, numbers: bool) -> None:
    figure = interaction_heat_map(interaction(size))
    with mpl.rc_context(STYLE):
        assert svg(figure)
    assert any("." in text for text in cells(figure).values()) == numbers


def test_nothing_but_zeros_is_drawn_too() -> None:
    found = interaction_heat_map(Interaction(("a", "b"), (1, 1), 0.95, *(np.zeros((2, 2)),) * 6))
    assert svg(found)
    assert set(cells(found).values()) == {"+0.000"}


def test_clusters_of_other_datasets_are_refused() -> None:
    with pytest.raises(ResultsError, match="other datasets"):
        interaction_heat_map(interaction(), clusters(interaction(5), count=2))


def test_curves_have_a_panel_a_dataset_a_line_of_one_colour_a_model_and_bands() -> None:
    figure = forgetting_curves(LOSSES)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["a", "b set", "c"]
    assert [len(axis.lines) for axis in shown] == [len(axis.collections) for axis in shown] == [2, 1, 2]
    assert shown[0].lines[1].get_ydata().tolist() == [2.0, 1.5]
    assert shown[0].lines[1].get_color() == shown[2].lines[1].get_color() != shown[0].lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["shuffled", "sequential"]


@pytest.mark.promise(32)
def test_figures_of_interactions_are_byte_for_byte_the_same() -> None:
    with mpl.rc_context(STYLE):
        one, two = ([svg(interaction_heat_map(interaction())), svg(forgetting_curves(LOSSES))] for _ in range(2))
    assert one == two
