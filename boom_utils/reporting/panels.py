"""What figures are made of: one style, and rows of estimates, panels of curves, coloured tables and bars.

Colours are those of Okabe and Ito, safe for colour-blind readers; markers and lines repeat what colours say, for print.
No figure is larger than a screen.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from boom_utils.evaluation.statistics import Estimate

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
DOMAIN_COLOURS = {"in-domain": BLUE, "out-of-domain": ORANGE}
FAMILY_COLOURS = dict(
    zip(("retrieval", "reranking", "sts", "classification", "clustering", "code"), COLOURS, strict=False)
)
DIVERGING = LinearSegmentedColormap.from_list("boom_diverging", [BLUE, "#FFFFFF", ORANGE])
LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1)))
"""Styles of lines: after the last colour they begin again with the next."""
WIDTH, HEIGHT = 11.0, 8.5
"""Inches of a screen."""
MOST_WITH_NUMBERS = 28
"""Rows or columns of a coloured table above which cells are too small for numbers; stars remain."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "boom",
    "svg.fonttype": "path",
    "figure.dpi": 110,
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "savefig.dpi": 150,
}


def colours_for(count: int) -> list[Any]:
    """That many distinct colours."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [mpl.colormaps["turbo"](position) for position in np.linspace(0.05, 0.95, count)]


def row_panels(labels: Sequence[str], titles: Sequence[str], xlabel: str) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their rows, which have the labels; the first row is on top."""
    lines = max(1, sum(label.count("\n") + 1 for label in labels))
    row = min(0.3, (HEIGHT - 1.3) / lines)
    figure = Figure(figsize=(min(WIDTH, 2.6 + 2.9 * len(titles)), max(2.0, 1.3 + row * lines)), layout="constrained")
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    axes[0].set_yticks(range(len(labels)), labels, fontsize=min(9.0, 58 * row))
    axes[0].set_ylim(max(1, len(labels)) - 0.5, -0.5)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.tick_params(axis="y", length=0)
    figure.supxlabel(textwrap.fill(xlabel, int(16 * figure.get_figwidth())), fontsize=8)
    return figure, axes


def estimates(
    axis: Axes, found: Sequence[Estimate], colours: Sequence[str], *, line: float | None = None, hollow: bool = False
) -> None:
    """A row an estimate, times 100: a dot with its interval.

    Args:
        axis: Of `row_panels`.
        found: From the top; one without an interval gets none, NaN leaves its row empty.
        colours: One each.
        line: What the rows are compared with, in the estimates' unit.
        hollow: Draw differences: no filled dot where the interval includes 0.
    """
    for row, (estimate, colour) in enumerate(zip(found, colours, strict=True)):
        axis.plot([100 * estimate.low, 100 * estimate.high], [row, row], color=colour, lw=1.5, solid_capstyle="butt")
        face = "white" if hollow and not estimate.excludes_zero else colour
        axis.plot(100 * estimate.value, row, marker="o", ms=4.5, mfc=face, mec=colour, ls="")
    if line is not None:
        axis.axvline(100 * line, color=GREY, lw=0.9, ls="--", zorder=0)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", lw=0.4, alpha=0.5)


def bars(axis: Axes, numbers: Sequence[float], colours: Sequence[str], shown: str = "{:,.3g}") -> None:
    """A bar a row, with its number behind it."""
    axis.barh(range(len(numbers)), numbers, height=0.55, color=colours)
    for row, number in enumerate(numbers):
        axis.text(number, row, " " + shown.format(number), va="center", fontsize=8)
    axis.set_xlim(0, 1.35 * (max(numbers, default=0) or 1))


def curve_panels(titles: Sequence[str], xlabel: str, ylabel: str, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A panel a title, in rows, with one axis of x for all."""
    columns = max(1, min(columns, len(titles)))
    rows = max(1, math.ceil(len(titles) / columns))
    size = (min(WIDTH, max(4.0, 0.6 + 2.4 * columns)), min(HEIGHT, 1.0 + 2.0 * rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).ravel())
    for number, axis in enumerate(axes):
        axis.set_visible(number < len(titles))
        axis.tick_params(labelbottom=number >= len(titles) - columns)
        axis.grid(lw=0.4, alpha=0.5)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title.replace("_", " "), loc="left", fontsize=8)
    figure.supxlabel(xlabel, fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    return figure, axes[: max(1, len(titles))]


def line_style(number: int) -> dict[str, Any]:
    """Colour and line of the n-th of many."""
    return {"color": COLOURS[number % len(COLOURS)], "ls": LINES[number // len(COLOURS) % len(LINES)]}


def running_mean(values_N: np.ndarray, width: int = 7) -> np.ndarray:
    """Mean over a window around each step, shorter at both ends."""
    half = width // 2
    return np.array([values_N[max(0, n - half) : n + half + 1].mean() for n in range(len(values_N))])


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
    limit = max((abs(v) for v in np.ma.compressed(values) if v == v), default=0.0) or 1.0
    low, high = scale or (-limit, limit)
    colours: Colormap = mpl.colormaps["cividis"] if scale else DIVERGING
    image = axis.imshow(values, cmap=colours.with_extremes(bad="#E4E4E4"), vmin=low, vmax=high, aspect="auto")
    axis.set_yticks(range(values.shape[0]), names[0], fontsize=9 if values.shape[0] <= 20 else 7)
    axis.set_xticks(range(values.shape[1]), names[1], rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    rgba = image.to_rgba(np.ma.filled(values, 0.0))
    linear = np.where(rgba <= 0.04045, rgba / 12.92, ((rgba + 0.055) / 1.055) ** 2.4)[..., :3]
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    numbers = max(values.shape) <= MOST_WITH_NUMBERS
    for place in np.argwhere(~np.ma.getmaskarray(values)):
        row, column = map(int, place)
        star = "*" if stars is not None and stars[row, column] else ""
        value = float(values[row, column])
        # Adding nothing to what is shown as nothing takes its minus sign away.
        text = "n/a" if math.isnan(value) else shown.format(0.0 if float(shown.format(value)) == 0 else value)
        axis.text(
            column,
            row,
            f"{text}{star}" if numbers else star,
            ha="center",
            va="center",
            fontsize=7.5 if max(values.shape) <= 14 or not numbers else 5.5,
            fontweight="bold" if star else "normal",
            color="white" if luminance[row, column] < 0.22 else "black",  # contrast 4 or more for both
        )
    return image


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 6) -> None:
    """One legend above all panels, each name once."""
    found = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(
            found.values(),
            found.keys(),
            frameon=False,
            fontsize=7.5,
            loc="outside upper center",
            ncols=max(1, min(columns, len(found))),
        )
