"""What figures are made of: one style, one colour a model, rows of estimates, panels of curves and coloured tables.

Colours are those of Okabe and Ito, safe for colour-blind readers; markers and lines repeat what colours say, for print.
No figure is larger than a screen. Sizes of type are relative to the style's, so that a slide is another style alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.reporting.results import Results

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
AMBER, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
COLOURS = (BLUE, GREEN, PURPLE, AMBER, SKY, ORANGE, BLACK)
FAMILY_COLOURS = dict(
    zip(("retrieval", "reranking", "sts", "classification", "clustering", "code"), COLOURS, strict=False)
)
DIVERGING = LinearSegmentedColormap.from_list("boom_diverging", [BLUE, "#FFFFFF", ORANGE])
MARKERS = "osD^vPX<>phH8d"
WIDTH, HEIGHT = 11.0, 8.5
"""Inches of a screen."""
MOST_WITH_NUMBERS = 28
"""Rows or columns of a coloured table above which cells are too small for numbers; stars remain."""
_REACHES = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 64.0, 84.0)
"""Points from a mark to its name that are tried."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "boom",
    "svg.fonttype": "path",
    "figure.dpi": 110,
    "figure.labelsize": "small",
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "grid.alpha": 0.5,
    "grid.linewidth": 0.4,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "savefig.dpi": 150,
}
"""For a page, of figures as large as what they show."""
SLIDE = {**STYLE, "figure.figsize": (9.0, 5.0625), "font.size": 10}
"""For a slide: every figure is 16:9, its type and marks are larger in it."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of these inches, at most a screen; in the style of slides it is a slide."""
    slide = tuple(mpl.rcParams["figure.figsize"]) == SLIDE["figure.figsize"]
    size = SLIDE["figure.figsize"] if slide else (min(WIDTH, width), min(HEIGHT, height))
    return Figure(figsize=size, layout="constrained")


def model_colour(results: Results, model: str) -> str:
    """The colour of a model in every figure.

    Base black, full corpus blue, BOOM orange, retrained green; members of samples are the darker blue the more data
    they had; schedules have their own; others are sky blue where trained, amber where merged, purple where asked
    together, grey where neither or on the interpolation curve.
    """
    known, members = results.experiments, results.study["members"]
    roles: dict[str | None, str] = dict(zip(results.schedules, COLOURS, strict=False))
    roles |= dict.fromkeys([name for _, name in results.interpolation], GREY)
    roles |= {"base": BLACK, known.full: BLUE, known.boom: ORANGE, results.retrained: GREEN}
    sampled = sorted({members[name]["ratio"] or 0.0 for name in known.sampled})
    if model in known.sampled and model not in roles and len(sampled) > 1:
        return to_hex(mpl.colormaps["Blues"](0.3 + 0.6 * sampled.index(members[model]["ratio"] or 0.0) / len(sampled)))
    kinds = {"members": SKY, "merges": AMBER, "ensembles": PURPLE}
    return roles.get(model) or next((kinds[kind] for kind in kinds if model in results.study.get(kind, ())), GREY)


def mark_style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th of some."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


# --- rows -------------------------------------------------------------------------------------------------------------


def row_panels(rows: Iterable[str], titles: Sequence[str], xlabel: str) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their rows, which have the labels; the first row is on top."""
    labels = list(rows)
    lines = max(1, sum(label.count("\n") + 1 for label in labels))
    figure = new_figure(2.6 + 2.9 * len(titles), max(2.0, 1.3 + 0.26 * lines))
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.tick_params(axis="y", length=0)
    label_rows(axes[0], labels)
    figure.supxlabel(textwrap.fill(xlabel, int(15 * figure.get_figwidth())))
    return figure, axes


def label_rows(axis: Axes, labels: Sequence[str]) -> None:
    """Rows of an axis, the first on top, in type that fits."""
    figure = cast("Figure", axis.figure)
    room = 58 * (figure.get_figheight() - 1.3) / max(1, sum(label.count("\n") + 1 for label in labels))
    axis.set_yticks(range(len(labels)), labels, fontsize=min(mpl.rcParams["font.size"], room))
    axis.set_ylim(max(1, len(labels)) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")


def column(axis: Axes, title: str, texts: Iterable[str]) -> None:
    """Texts to the right of a panel, one a row, below their title."""
    look: dict[str, Any] = {"fontsize": "small", "color": GREY}
    axis.text(1.02, 1.0, title, transform=axis.transAxes, va="bottom", **look)
    for row, text in enumerate(texts):
        axis.text(1.02, row, text, transform=axis.get_yaxis_transform(), va="center", **look)


def intervals(axis: Axes, frame: pd.DataFrame, column: str, colours: Sequence[Any], line: float | None = None) -> None:
    """A row of a table a row: a dot with its interval.

    Args:
        axis: Of `row_panels`.
        frame: A table with ``column`` and its ``low`` and ``high``; NaN leaves its row empty.
        column: What is shown.
        colours: One a row.
        line: What the rows are compared with; beside 0 no dot is filled whose interval includes that.
    """
    columns = [column, f"{column} low", f"{column} high"]
    value_R, low_R, high_R = frame.reindex(columns=columns).to_numpy(dtype=float).T
    rows, open_R = range(len(frame)), (line == 0) & (low_R <= 0) & (high_R >= 0)
    faces = ["white" if free else colour for free, colour in zip(open_R, colours, strict=True)]
    axis.hlines(rows, low_R, high_R, colors=colours, lw=1.5)
    axis.scatter(value_R, rows, s=20, facecolors=faces, edgecolors=colours, zorder=3)
    if line is not None:
        axis.axvline(line, color=GREY, lw=0.9, ls="--", zorder=0)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x")


# --- curves and points ------------------------------------------------------------------------------------------------


def label_points(
    axis: Axes, labels: dict[str, tuple[float, float]], taken: np.ndarray, bold: str | None = None
) -> None:
    """Write the name of each point near it, where it covers least, with a line to it.

    Places around the point are tried; what was written earlier stays.

    Args:
        axis: With all that is drawn, and its limits.
        labels: Name -> x and y, the most important first.
        taken: More places that names had better not cover, float (N, 2).
        bold: The name that readers look for.
    """
    figure, size = cast("Figure", axis.figure), 0.89 * mpl.rcParams["font.size"]
    figure.draw_without_rendering()  # where the axis lies is known afterwards
    inch, window = 72 / figure.dpi, axis.get_window_extent()
    low, high = inch * np.array(window.min), inch * np.array(window.max)
    points_N2 = inch * axis.transData.transform([*labels.values()])
    covered, lines, boxes = inch * axis.transData.transform(taken), points_N2, np.zeros((0, 2, 2))
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    ways_P2 = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(_REACHES), 1))
    reaches_P = np.repeat(_REACHES, len(angles))
    for text, place, point in zip(labels, labels.values(), points_N2, strict=True):
        half = size * np.array([(0.37 if text == bold else 0.34) * len(text) + 0.1, 0.6])
        moves_P2 = ways_P2 * reaches_P[:, None] + np.clip(1.5 * ways_P2, -1, 1) * half
        own = point + moves_P2[:, None] + np.array([[-1], [1]]) * half
        near_P2 = point + moves_P2 - np.clip(moves_P2, -half, half)  # where the line meets the text
        way_P = np.linspace(point + 0.3 * (near_P2 - point), near_P2, 9, axis=1)
        outside = np.maximum(low - own[:, 0], own[:, 1] - high).clip(0).sum(axis=1)
        common = (np.minimum(own[:, None, 1], boxes[:, 1]) - np.maximum(own[:, None, 0], boxes[:, 0])).clip(0)
        hidden = (np.abs(np.concatenate([covered, lines]) - (point + moves_P2)[:, None]) < half + 4).all(axis=2)
        others = lines[(lines != point).any(axis=1)]
        crossed = (np.linalg.norm(way_P[:, :, None] - others, axis=3) < 4).any(axis=2)
        costs = reaches_P + 50 * outside + 50 * common.prod(axis=2).sum(axis=1)
        best = int(np.argmin(costs + 8 * hidden.sum(axis=1) + 12 * crossed.sum(axis=1)))
        boxes, lines = np.concatenate([boxes, own[best : best + 1]]), np.concatenate([lines, way_P[best]])
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "arrowprops": line}
        look |= {"fontweight": "bold" if text == bold else "normal", "textcoords": "offset points"}
        axis.annotate(text, place, moves_P2[best], **look).set_in_layout(False)


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 6) -> None:
    """One legend above all panels, each name once."""
    found = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), ncols=max(1, min(columns, len(found))), loc="outside upper center")


# --- coloured tables --------------------------------------------------------------------------------------------------


def coloured_table(
    axis: Axes,
    values: np.ndarray,
    names: tuple[Sequence[str], Sequence[str]],
    shown: str,
    *,
    scale: tuple[float, float] | None = None,
    stars: np.ndarray | None = None,
) -> AxesImage:
    """A table of numbers in cells of colour.

    Args:
        axis: Where.
        values: (rows, columns); masked ones are grey and without a number, NaN is "n/a".
        names: Of rows and of columns.
        shown: Format of a number.
        scale: Ends of the colours; None: as far on both sides of 0, blue below and orange above.
        stars: Which cells get a star, (rows, columns).
    """
    limit = np.nanmax(np.ma.filled(np.abs(values), 0.0), initial=0.0) or 1.0
    low, high = scale or (-limit, limit)
    colours = mpl.colormaps["cividis"] if scale else DIVERGING
    image = axis.imshow(values, cmap=colours.with_extremes(bad="#E4E4E4"), vmin=low, vmax=high, aspect="auto")
    label_rows(axis, names[0])
    axis.grid(visible=False)
    look: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": "small"}
    axis.set_xticks(range(len(names[1])), names[1], **look)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    luminance = (image.to_rgba(np.ma.filled(values, 0.0))[..., :3] ** 2.2) @ np.array([0.2126, 0.7152, 0.0722])
    numbers, size = max(values.shape) <= MOST_WITH_NUMBERS, 5.5 if 14 < max(values.shape) <= MOST_WITH_NUMBERS else 7.5
    for row, column in np.argwhere(~np.ma.getmaskarray(values)):
        value, star = float(values[row, column]), "*" if stars is not None and stars[row, column] else ""
        text = ("n/a" if math.isnan(value) else shown.format(value)) if numbers else ""
        text = text.replace("-", "+" if "+" in shown else "") if text.strip("-0.") == "" else text  # no minus nothing
        white = luminance[row, column] < 0.22  # contrast 4 or more for both
        look = {"fontweight": "bold" if star else "normal", "color": "white" if white else "black"}
        axis.text(column, row, text + star, ha="center", va="center", fontsize=size, **look)
    return image


def committed_figure(name: str, study: str = "mini") -> Any:
    """A figure of the results that the project commits, for a notebook to display.

    Args:
        name: Of the figure.
        study: Whose results.

    Returns:
        The picture; where the results are absent, as in an installed package, a line that says so.

    >>> type(committed_figure("task_deltas")).__name__
    'SVG'
    >>> committed_figure("task_deltas", "none").data
    'There is no `results/none/figures/task_deltas.svg` here: it is in the repository, not in the installed package.'
    """
    from IPython.display import Markdown

    path = PROJECT_ROOT / "results" / study / "figures" / f"{name}.svg"
    if path.is_file():
        return shown_figure(path)
    place = path.relative_to(PROJECT_ROOT).as_posix()
    text = f"There is no `{place}` here: it is in the repository, not in the installed package."
    return Markdown(text)  # type: ignore[no-untyped-call]


def shown_figure(path: Path) -> Any:
    """A figure for a notebook to display, no wider than its page.

    Args:
        path: Its SVG file.

    Returns:
        The picture.

    >>> shown = shown_figure(PROJECT_ROOT / "results" / "mini" / "figures" / "task_deltas.svg")
    >>> "max-width: 100%" in shown.data
    True
    """
    from IPython.display import SVG

    drawing = path.read_text(encoding="utf-8").replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)
    return SVG(drawing)  # type: ignore[no-untyped-call]
