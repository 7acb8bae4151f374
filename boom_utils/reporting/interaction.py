"""Figures of how datasets act on one another: the matrix of interactions with its clusters, and curves of forgetting.

Blue is for datasets that help one another, orange for those that disturb; signs and stars say the same, for print.

Shapes: N datasets, P points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from boom_utils.errors import ResultsError, bullet_list
from boom_utils.evaluation.interaction import Clusters, Interaction, clusters
from boom_utils.reporting.corpus import FAMILY_COLOURS
from boom_utils.reporting.figures import BLUE, COLOURS, GREY, ORANGE

Curve = Sequence[tuple[float, float, float, float]]
"""Points of a curve: share of the steps done (0 to 1), loss, lower and upper end of its interval (nats)."""
DIVERGING = LinearSegmentedColormap.from_list("boom_diverging", [BLUE, "#FFFFFF", ORANGE])
_MARKERS = "osD^vPX"
_MOST_WITH_NUMBERS = 24
"""Datasets above which cells are too small for numbers; stars remain."""


def interaction_heat_map(interaction: Interaction, found: Clusters | None = None, *, directed: bool = False) -> Figure:
    """Loss differences of all pairs, in the order of their tree, which stands beside them; lines between clusters.

    Args:
        interaction: The differences.
        found: Clusters of the same datasets; None joins what does not conflict (threshold 0, average linkage).
        directed: Show each direction by itself: the row's dataset, trained with the column's.

    Returns:
        The figure.

    Raises:
        ResultsError: The clusters are those of other datasets.

    >>> values = np.array([[0.0, -0.2, 0.3], [-0.2, 0.0, 0.4], [0.3, 0.4, 0.0]])
    >>> seen = Interaction(("nq", "fiqa", "sts"), (2, 2, 2), 0.95, *[values] * 6)
    >>> len(interaction_heat_map(seen).axes) >= 2
    True
    """
    found = found or clusters(interaction, threshold=0)
    if found.datasets != interaction.datasets:
        raise ResultsError(
            "the clusters are of other datasets",
            expected=interaction.datasets,
            found=found.datasets,
            fix="cluster anew",
        )
    order, size = list(found.leaves), len(found.datasets)
    kind = "changes" if directed else ""
    values, low, high = (
        getattr(interaction, name)[np.ix_(order, order)]
        for name in (kind or "values", f"{kind}_low".lstrip("_"), f"{kind}_high".lstrip("_"))
    )
    names = [found.datasets[leaf].replace("_", " ") for leaf in order]
    cell = 0.62 if size <= 12 else 0.46 if size <= _MOST_WITH_NUMBERS else 0.28
    room = 0.075 * max(map(len, names))
    figure = Figure(figsize=(3.4 + room + cell * size, 1.7 + 0.7 * room + cell * size), layout="constrained")
    tree, axis = figure.subplots(1, 2, sharey=True, width_ratios=(1.1 + 0.03 * size, max(1.5, cell * size)))
    _draw_tree(tree, found, order)
    shown = np.ma.array(values, mask=np.eye(size, dtype=bool))
    limit = float(np.abs(values).max()) or 1.0
    image = axis.imshow(shown, cmap=DIVERGING.with_extremes(bad="#E4E4E4"), vmin=-limit, vmax=limit, aspect="auto")
    _write_cells(axis, values, (low > 0) | (high < 0), image.to_rgba(values))
    _separate(axis, [found.labels[leaf] for leaf in order])
    axis.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), names)
    axis.tick_params(length=0, labelleft=True)
    axis.spines[:].set_visible(False)
    axis.set_title("row's loss when trained with column" if directed else "mean of both directions", loc="left")
    figure.colorbar(image, ax=axis, label="nats; - synergy, + conflict", fraction=0.05, pad=0.02)
    figure.suptitle("Held-out loss: trained together minus apart", fontsize=10)
    fewest, most = min(interaction.batches), max(interaction.batches)
    counts = f"{fewest} held-out batches" if fewest == most else f"{fewest} to {most} held-out batches"
    interval = f"{100 * interaction.confidence:g} % interval over {counts}"
    figure.supxlabel(f"* the {interval} leaves out 0; lines: {len(found.groups)} cluster(s)", fontsize=8)
    return figure


def forgetting_curves(losses: Mapping[str, Mapping[str, Curve]], families: Mapping[str, str] | None = None) -> Figure:
    """Loss on the same rows along the training of every model, one panel a dataset; bands are the intervals.

    Args:
        losses: Model -> dataset -> points, in the order of the share of steps done.
        families: Dataset -> family: panels stand family by family, and say which it is. Without it they stand in the
            order of ``losses``.

    Returns:
        The figure.

    Raises:
        ResultsError: There is nothing to draw, or points are not in order or not finite; all problems.

    >>> figure = forgetting_curves({"full": {"nq": [(0.0, 1.5, 1.4, 1.6), (1.0, 0.5, 0.4, 0.6)]}})
    >>> figure.axes[0].get_title(loc="left")
    'nq'
    """
    datasets = _by_family([*dict.fromkeys(dataset for curves in losses.values() for dataset in curves)], families)
    problems = [
        p for model, curves in losses.items() for name, curve in curves.items() for p in _problems(curve, model, name)
    ]
    if problems or not datasets:
        raise ResultsError("curves of forgetting cannot be drawn", found=bullet_list(problems) or "no dataset")
    columns = min(4, len(datasets))
    rows = math.ceil(len(datasets) / columns)
    figure = Figure(figsize=(max(4.0, 2.4 * columns), 2.1 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, (model, curves) in enumerate(losses.items()):
            if dataset in curves:
                _draw_curve(axis, curves[dataset], number, model)
        family = f"\n{families[dataset]}" if families and dataset in families else ""
        axis.set_title(dataset.replace("_", " ") + family, fontsize=8, loc="left")
        axis.grid(lw=0.4, alpha=0.5)
    for axis in axes[len(datasets) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(datasets) - columns) : len(datasets)]:
        axis.tick_params(labelbottom=True)
    axes[0].set_xlim(-0.02, 1.02)
    figure.supylabel("InfoNCE loss (nats)", fontsize=9)
    figure.supxlabel("share of steps done; bands: intervals over batches", fontsize=9)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    wanted = [model for model in losses if model in handles]
    figure.legend(
        [handles[model] for model in wanted],
        wanted,
        frameon=False,
        fontsize=8,
        loc="outside upper center",
        ncols=min(columns, len(wanted)),
    )
    return figure


def _draw_tree(axis: Axes, found: Clusters, order: Sequence[int]) -> None:
    """The tree on its side, leaves at the rows of the matrix; what is joined within clusters is dark."""
    size = len(order)
    place = {leaf: float(row) for row, leaf in enumerate(order)}
    deepest, highest = found.shift, found.shift + float(found.linkage[-1, 2])
    ends = deepest - 0.08 * ((highest - deepest) or abs(deepest) or 1.0)  # so that the first join is seen too
    height = dict.fromkeys(range(size), ends)
    for number, (left, right, distance, _) in enumerate(found.linkage):
        a, b, node = int(left), int(right), size + number
        place[node], height[node] = (place[a] + place[b]) / 2, distance + found.shift
        within = number < size - len(found.groups)
        axis.plot(
            [height[a], height[node], height[node], height[b]],
            [place[a], place[a], place[b], place[b]],
            color="black" if within else GREY,
            lw=1.4 if within else 1.0,
            ls="-" if within else (0, (3, 2)),
        )
    axis.invert_xaxis()
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelleft=False)
    axis.set_xlabel("joined at (nats)", fontsize=8)
    axis.locator_params(axis="x", nbins=3)
    axis.tick_params(axis="x", labelsize=7)


def _write_cells(axis: Axes, values: np.ndarray, marked: np.ndarray, colours: np.ndarray) -> None:
    """The numbers, with a star where they are ``marked``, in black or white: whichever is easier to read there."""
    size, decimals = len(values), 2 if np.abs(values).max() >= 0.1 else 3
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)[..., :3]
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    for row, column in np.ndindex(*values.shape):
        if row == column:
            continue
        star = "*" if marked[row, column] else ""
        number = round(float(values[row, column]), decimals) + 0.0  # no "-0.00"
        axis.text(
            column,
            row,
            f"{number:+.{decimals}f}{star}" if size <= _MOST_WITH_NUMBERS else star,
            ha="center",
            va="center",
            fontsize=7.5 if size <= 12 or size > _MOST_WITH_NUMBERS else 5.5,
            fontweight="bold" if star else "normal",
            color="white" if luminance[row, column] < 0.22 else "black",  # contrast 4 or more for both
        )


def _separate(axis: Axes, labels: Sequence[int]) -> None:
    """Lines between clusters."""
    for row in (row for row in range(1, len(labels)) if labels[row] != labels[row - 1]):
        axis.axhline(row - 0.5, color="black", lw=1.4)
        axis.axvline(row - 0.5, color="black", lw=1.4)


def _draw_curve(axis: Axes, curve: Curve, number: int, model: str) -> None:
    x_P, y_P, low_P, high_P = np.array(curve, dtype=np.float64).T
    colour = COLOURS[number % len(COLOURS)]
    marker = _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)]
    axis.fill_between(x_P, low_P, high_P, color=colour, alpha=0.18, lw=0)
    axis.plot(x_P, y_P, color=colour, lw=1.3, marker=marker, ms=3.2, label=model)


def _by_family(datasets: Sequence[str], families: Mapping[str, str] | None) -> list[str]:
    """Datasets family by family, in the kit's order of families; unknown families last."""
    if families is None:
        return list(datasets)
    order = list(FAMILY_COLOURS)
    place = {name: order.index(family) if family in order else len(order) for name, family in families.items()}
    return sorted(datasets, key=lambda name: (place.get(name, len(order) + 1), families.get(name, "")))


def _problems(curve: Curve, model: str, dataset: str) -> list[str]:
    points = np.array(curve, dtype=np.float64)
    where = f"{model}, {dataset}"
    if points.ndim != 2 or points.shape[1] != 4:
        return [f"{where}: points of shape {points.shape}, not (share, loss, low, high)"]
    if not np.isfinite(points[:, :2]).all():  # one batch has no interval
        return [f"{where}: a number is not finite"]
    shares = points[:, 0]
    ascending = shares[0] >= 0 and shares[-1] <= 1 and (np.diff(shares) > 0).all()
    return [] if ascending else [f"{where}: shares of steps not ascending from 0 to 1: {shares.tolist()}"]
