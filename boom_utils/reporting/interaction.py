"""Figures of how datasets act on one another: the matrix of interactions with its clusters, and curves of forgetting.

Blue is for datasets that help one another, orange for those that disturb; signs and stars say the same, for print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boom_utils.errors import ResultsError, bullet_list
from boom_utils.evaluation.interaction import Clusters, Interaction, clusters
from boom_utils.reporting.panels import (
    FAMILY_COLOURS,
    GREY,
    HEIGHT,
    WIDTH,
    coloured_table,
    curve_panels,
    legend,
    line_style,
)

Curve = Sequence[tuple[float, float, float, float]]
"""Points of a curve: share of the steps done (0 to 1), loss, lower and upper end of its interval (nats)."""
_MARKERS = "osD^vPX"


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
    kind = ("changes", "changes_low", "changes_high") if directed else ("values", "low", "high")
    values, low, high = (getattr(interaction, name)[np.ix_(order, order)] for name in kind)
    names = [found.datasets[leaf].replace("_", " ") for leaf in order]
    width, height = min(WIDTH, 4.6 + 0.6 * size), min(HEIGHT, 2.6 + 0.5 * size)
    figure = Figure(figsize=(width, height), layout="constrained")
    tree, axis = figure.subplots(1, 2, sharey=True, width_ratios=(1, max(1.5, width - 3.5)))
    _draw_tree(tree, found, order)
    shown = np.ma.array(values, mask=np.eye(size, dtype=bool))
    number = "{:+.2f}" if np.abs(values).max() >= 0.1 else "{:+.3f}"
    image = coloured_table(axis, shown, (names, names), number, stars=(low > 0) | (high < 0))
    labels = [found.labels[leaf] for leaf in order]
    for row in (row for row in range(1, size) if labels[row] != labels[row - 1]):
        axis.axhline(row - 0.5, color="black", lw=1.4)
        axis.axvline(row - 0.5, color="black", lw=1.4)
    axis.tick_params(labelleft=True)
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
    titles = [name + (f"\n{families[name]}" if families and name in families else "") for name in datasets]
    figure, axes = curve_panels(titles, "share of steps done; bands: intervals over batches", "InfoNCE loss (nats)")
    for axis, dataset in zip(axes, datasets, strict=True):
        for number, (model, curves) in enumerate(losses.items()):
            if dataset in curves:
                x_P, y_P, low_P, high_P = np.array(curves[dataset], dtype=np.float64).T
                style = {**line_style(number), "marker": _MARKERS[number % len(_MARKERS)], "ms": 3.2, "lw": 1.3}
                axis.plot(x_P, y_P, label=model, **style)
                axis.fill_between(x_P, low_P, high_P, color=style["color"], alpha=0.18, lw=0)
    axes[0].set_xlim(-0.02, 1.02)
    legend(figure, axes, 4)
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
