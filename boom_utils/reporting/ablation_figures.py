"""Figures of the paper's ablations; see `boom_utils.reporting.experiments` for what is in each.

A filled marker is a difference whose interval excludes zero, a hollow one is inconclusive: nothing is said by colour
alone. Figures of experiments that a study does not have are not in `ablation_figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.ablations import (
    granularity_rows,
    members_text,
    method_label,
    pareto_front,
    pareto_models,
    plain_multislerp,
    ratio_text,
)
from boom_utils.reporting.experiments import (
    Update,
    core_sweep,
    method_groups,
    read_interaction,
    updates,
    variants,
    weight_sweep,
    weights_kind,
)
from boom_utils.reporting.figures import BLUE, GREEN, GREY, ORANGE, Draw, interval_text
from boom_utils.reporting.interaction import interaction_heat_map
from boom_utils.reporting.results import Results


def ablation_figures(results: Results) -> dict[str, Draw]:
    """Name -> figure, for what the study has.

    Args:
        results: Of a finished study.

    Returns:
        Name -> function that draws it from results.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "method_comparison" in ablation_figures(results)
    True
    """
    wanted: dict[str, tuple[object, Draw]] = {
        "granularity_comparison": (granularity_rows(results), granularity_comparison),
        "method_comparison": (method_groups(results), method_comparison),
        "variant_comparison": (len(variants(results)) > 1, variant_comparison),
        "pareto": (pareto_models(results), pareto),
        "core_ratio_sweep": (core_sweep(results), core_ratio_sweep),
        "merge_weight_sweep": (weight_sweep(results), merge_weight_sweep),
        "interaction": (read_interaction(results), interaction),
    }
    return {name: draw for name, (has, draw) in wanted.items() if has}


def granularity_comparison(results: Results) -> Figure:
    """Merges of every granularity and BOOM: paired difference to the reference in and out of domain, and the cost.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(granularity_comparison(results).axes) >= 2
    True
    """
    rows = {model: what for model, what in granularity_rows(results).items() if model != results.reference}
    return _differences(results, {model: f"{what}\n{model}" for model, what in rows.items()}, "merging granularities")


def variant_comparison(results: Results) -> Figure:
    """The BOOM variants: paired difference to the reference in and out of domain, and the cost."""
    found = variants(results)
    labels = {merge: f"{ratio_text(results, merge)}, {weights_kind(results, merge)}\n{merge}" for merge in found}
    return _differences(results, labels, "BOOM variants: samples in per cent, weights")


def method_comparison(results: Results) -> Figure:
    """Every merge method on the same members: paired difference to the reference in and out of domain.

    A dashed line marks multislerp on the weights. One row of panels a set of members.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(method_comparison(results).axes) >= 2
    True
    """
    groups = method_groups(results)
    heights = [len(group) + 2.2 for group in groups] or [1.0]
    figure = Figure(figsize=(8, max(1.6, 0.33 * sum(heights))), layout="constrained")
    axes = figure.subplots(
        max(1, len(groups)), len(results.domains), sharex="col", squeeze=False, height_ratios=heights
    )
    for number, group in enumerate(groups):
        plain = plain_multislerp(results, group)
        for axis, domain, colour in zip(axes[number], results.domains, (BLUE, ORANGE), strict=False):
            tasks = results.tasks(domain)
            found = {merge: results.difference(merge, results.reference, tasks) for merge in group}
            _marked(axis, list(found.values()), colour)
            if plain:
                axis.axvline(100 * found[plain].value, color=GREY, lw=1.0, ls="--", zorder=0)
            axis.set_title(f"{domain}; {members_text(results, group[0])}", fontsize=9, loc="left")
        labels = [_method_row(results, merge, group) for merge in group]
        _rows(axes[number], labels)
    _explain(figure, f"points minus {results.reference}, {interval_text(results)}; dashed: multislerp on the weights")
    return figure


def _method_row(results: Results, merge: str, group: Sequence[str]) -> str:
    label = method_label(results, merge)
    same = [other for other in group if method_label(results, other) == label]
    return f"{label}, {weights_kind(results, merge)}" if len(same) > 1 else label


def _differences(results: Results, labels: Mapping[str, str], title: str) -> Figure:
    """A panel of paired differences a domain, and one of costs; one row a model."""
    models = list(labels)
    figure = Figure(figsize=(9, 0.46 * len(models) + 1.7), layout="constrained")
    *axes, cost = figure.subplots(1, len(results.domains) + 1, sharey=True, squeeze=False)[0]
    for axis, domain, colour in zip(axes, results.domains, (BLUE, ORANGE), strict=False):
        tasks = results.tasks(domain)
        found = [results.difference(model, results.reference, tasks) for model in models]
        _marked(axis, found, colour)
        axis.set_title(f"{domain} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})")
    passes = [results.cost(model) for model in models]
    cost.barh(range(len(models)), passes, height=0.5, color="#BBBBBB")
    for row, count in enumerate(passes):
        cost.text(count, row, f" {count:.3g}", va="center", fontsize=8)
    cost.axvline(results.cost(results.reference), color=GREY, lw=0.8, ls="--")
    cost.set_xlim(0, 1.25 * max([1.0, *passes]))
    cost.set_title("passes over the corpus")
    _rows([*axes, cost], list(labels.values()))
    figure.suptitle(title, fontsize=10)
    reference = f"points minus {results.reference}, {interval_text(results)}; right: dashed: {results.reference}"
    _explain(figure, reference)
    return figure


def _marked(axis: Axes, found: Sequence[Estimate], colour: str) -> None:
    """Differences as dots with intervals: filled where the interval excludes zero."""
    for row, estimate in enumerate(found):
        axis.plot([100 * estimate.low, 100 * estimate.high], [row, row], color=colour, lw=1.6, solid_capstyle="butt")
        face = colour if estimate.excludes_zero else "white"
        axis.plot(100 * estimate.value, row, marker="o", ms=5.5, mfc=face, mec=colour, mew=1.4, ls="")
    axis.axvline(0, color="black", lw=0.8, zorder=0)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", lw=0.4, alpha=0.5)


def _rows(axes: Sequence[Axes], labels: Sequence[str]) -> None:
    for axis in axes:
        axis.set_ylim(max(1, len(labels)) - 0.5, -0.5)
        axis.set_yticks(range(len(labels)), ["" for _ in labels])
    axes[0].set_yticks(range(len(labels)), labels)
    for axis in axes[1:]:
        axis.tick_params(axis="y", length=0)


def _explain(figure: Figure, text: str) -> None:
    figure.supxlabel(f"{text}\nfilled: the interval excludes 0; hollow: inconclusive", fontsize=8)


def pareto(results: Results) -> Figure:
    """Mean score against training cost in units of the reference's, a panel a domain.

    Squares are merges, circles members. Filled: no model is as good at less cost. The line joins these: solid where the
    paired difference of the two is certain, dashed where its interval includes zero.
    """
    models = pareto_models(results)
    unit = results.cost(results.reference) or 1.0
    figure = Figure(figsize=(5.2 * len(results.domains), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(results.domains), squeeze=False)[0]
    for axis, domain in zip(axes, results.domains, strict=True):
        front = pareto_front(results, domain)
        for model in models:
            estimate = results.domain_mean(model, domain)
            x, y = results.cost(model) / unit, 100 * estimate.value
            colour = ORANGE if model in results.parts else BLUE
            axis.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, lw=1.0, alpha=0.55)
            marker = "s" if model in results.parts else "o"
            axis.plot(x, y, marker=marker, ms=6, mfc=colour if model in front else "white", mec=colour, ls="", zorder=3)
        _draw_front(axis, results, domain, unit)
        axis.set_title(f"{domain} ({len(results.tasks(domain))} tasks)")
        axis.set_xlabel("training cost, 1 = the reference's")
        axis.set_xlim(0, 1.22 * max([1.0, *(results.cost(model) / unit for model in models)]))
        axis.grid(lw=0.4, alpha=0.5)
    axes[0].set_ylabel(f"mean score x 100, {interval_text(results)}")
    figure.legend(handles=_pareto_legend(), frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis, domain in zip(axes, results.domains, strict=True):
        points = {m: (results.cost(m) / unit, 100 * results.domain_mean(m, domain).value) for m in models}
        place_labels(axis, points)
    return figure


def _pareto_legend() -> list[Line2D]:
    return [
        Line2D([], [], marker="s", mec=ORANGE, mfc="white", ls="", label="merged"),
        Line2D([], [], marker="o", mec=BLUE, mfc="white", ls="", label="one member"),
        Line2D([], [], marker="s", color="black", ls="", label="filled: not dominated"),
        Line2D([], [], color=GREY, lw=1.2, label="step up certain (paired)"),
        Line2D([], [], color=GREY, lw=1.2, ls=(0, (3, 2)), label="step up inconclusive: the interval includes 0"),
    ]


def _draw_front(axis: Axes, results: Results, domain: str, unit: float) -> None:
    front, tasks = pareto_front(results, domain), results.tasks(domain)
    for cheaper, dearer in pairwise(front):
        sure = results.difference(dearer, cheaper, tasks).excludes_zero
        axis.plot(
            [results.cost(model) / unit for model in (cheaper, dearer)],
            [100 * results.domain_mean(model, domain).value for model in (cheaper, dearer)],
            color=GREY,
            lw=1.2,
            ls="-" if sure else (0, (3, 2)),
            zorder=1,
        )


def place_labels(axis: Axes, points: Mapping[str, tuple[float, float]], fontsize: float = 7.5) -> None:
    """Write a name at every point, so that no two names and no name and marker overlap; a thin line leads there.

    Of the places without overlaps it takes those that cross fewest lines of the axis, then the nearest. The layout of
    the figure has to be settled, and its canvas has to be able to measure text.
    """
    renderer = axis.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixels, inside = axis.figure.dpi / 72, axis.get_window_extent(renderer)
    places = {name: axis.transData.transform(point) for name, point in points.items()}
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    lines = _line_points(axis)
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1], name)):
        text = axis.annotate(name, points[name], (7, 0), textcoords="offset points", fontsize=fontsize, va="center")
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        first = text.get_window_extent(renderer).padded(1)
        best: tuple[float, float, float] | None = None
        for dx, dy in _offsets():
            box = first.translated((dx - 7) * pixels - (first.width if dx < 0 else 0), dy * pixels)
            corners = [(box.x0, box.y0), (box.x1, box.y1)]
            if not all(inside.contains(*corner) for corner in corners) or box.count_overlaps(taken):
                continue
            crossed = ((lines > box.min) & (lines < box.max)).all(axis=1).sum()
            leader = np.linspace(places[name], places[name] + pixels * np.array([dx, dy]), 20)[4:]
            hidden = sum(
                ((leader > other.min) & (leader < other.max)).all(axis=1).any() for other in taken[len(places) :]
            )
            cost = 3.0 * crossed + 25.0 * hidden + 1.3 * math.hypot(dx, 1.5 * dy)
            if best is None or cost < best[0]:
                best = (cost, dx, dy)
        dx, dy = best[1:] if best else (7.0, 0.0)
        text.set_position((dx, dy))
        text.set_horizontalalignment("left" if dx > 0 else "right")
        taken.append(text.get_window_extent(renderer).padded(1))
        if abs(dy) > 8 or abs(dx) > 9:
            x, y = axis.transData.inverted().transform(places[name] + pixels * np.array([dx, dy]))
            axis.plot([points[name][0], x], [points[name][1], y], color=GREY, lw=0.5, zorder=0)
            lines = np.concatenate([lines, np.linspace(places[name], places[name] + pixels * np.array([dx, dy]), 20)])


def _line_points(axis: Axes) -> np.ndarray:
    """Points in pixels along the lines of an axis, float (N, 2)."""
    found = [np.zeros((0, 2))]
    for line in axis.lines:
        ends = axis.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
        for start, end in pairwise(ends):
            count = max(2, int(np.hypot(*(end - start)) / 3))
            found.append(np.linspace(start, end, count))
    return np.concatenate(found)


def _offsets() -> list[tuple[float, float]]:
    """Where a label may stand, in points from its own."""
    return [(side * dx, dy) for side in (1, -1) for dx in (7, 18, 32, 48) for dy in range(-90, 91, 5)]


def core_ratio_sweep(results: Results) -> Figure:
    """Old, new and other tasks of merged updates against the share of the old data in the update."""
    found = core_sweep(results)
    texts = f"weight of the update {found[0].weight:.2g}" if found else ""
    return _sweep(results, found, "core", f"share of the old data in the update; {texts}")


def merge_weight_sweep(results: Results) -> Figure:
    """Old, new and other tasks of merged updates against the weight of the update."""
    found = weight_sweep(results)
    texts = f"share of the old data in it {found[0].core:.2g}" if found else ""
    return _sweep(results, found, "weight", f"weight of the update in the merge; {texts}")


def _sweep(results: Results, found: Sequence[Update], varied: str, label: str) -> Figure:
    """A panel a group of tasks: means of the updates with bands, and lines of what they are compared with."""
    groups = results.task_groups
    figure = Figure(figsize=(3.0 * len(groups) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(groups), sharex=True, squeeze=False)[0]
    lines = _sweep_lines(results, found, varied)
    x_N = [float(getattr(update, varied)) for update in found]
    for axis, (group, tasks) in zip(axes, groups.items(), strict=True):
        _band(axis, x_N, [results.mean(update.model, tasks) for update in found], (BLUE, "o", "-"), "merged update")
        if varied == "core":
            more = [update for update in updates(results) if update.kind == "continued" and update.core is not None]
            more.sort(key=lambda update: update.core or 0.0)
            style = (ORANGE, "s", (0, (1, 1)))
            means = [results.mean(update.model, tasks) for update in more]
            _bars(axis, [float(update.core or 0) for update in more], means, style, "existing model trained on")
        for name, (model, colour, dashes) in lines.items():
            axis.axhline(100 * results.mean(model, tasks).value, color=colour, ls=dashes, lw=1.2, label=name)
        axis.set_title(f"{group} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})")
        axis.grid(lw=0.4, alpha=0.5)
    axes[0].set_ylabel("mean score x 100")
    figure.supxlabel(f"{label}; bands and bars: {interval_text(results)}", fontsize=8)
    named = axes[0].get_legend_handles_labels()
    figure.legend(*named, frameon=False, fontsize=8, loc="outside upper center", ncols=4)
    return figure


def _band(axis: Axes, x_N: Sequence[float], found: Sequence[Estimate], style: tuple[str, str, Any], label: str) -> None:
    if not x_N:
        return
    colour, marker, dashes = style
    axis.fill_between(x_N, [100 * e.low for e in found], [100 * e.high for e in found], color=colour, alpha=0.18, lw=0)
    values = [100 * estimate.value for estimate in found]
    axis.plot(x_N, values, color=colour, marker=marker, ls=dashes, ms=5, lw=1.4, label=label)


def _bars(axis: Axes, x_N: Sequence[float], found: Sequence[Estimate], style: tuple[str, str, Any], label: str) -> None:
    """As `_band`, with bars instead of a band: two bands would hide each other."""
    if not x_N:
        return
    colour, marker, dashes = style
    values = np.array([100 * estimate.value for estimate in found])
    bounds = [values - [100 * e.low for e in found], [100 * e.high for e in found] - values]
    axis.errorbar(x_N, values, bounds, color=colour, marker=marker, ls=dashes, ms=5, lw=1.2, capsize=3, label=label)


def _sweep_lines(results: Results, found: Sequence[Update], varied: str) -> dict[str, tuple[str, str, Any]]:
    lines: dict[str, tuple[str, str, Any]] = {}
    if results.retrained:
        lines[f"retrained ({results.retrained})"] = (results.retrained, GREEN, (0, (5, 2)))
    existing = found[0].existing if found else None
    if existing and existing in results.models:
        lines[f"before the update ({existing})"] = (existing, GREY, (0, (1, 2)))
    return lines


def interaction(results: Results) -> Figure:
    """Loss differences of all pairs of datasets with their clusters.

    Raises:
        ResultsError: The study has no interaction analysis.
    """
    found = read_interaction(results)
    if found is None:
        raise ResultsError("this study has no interaction analysis", where=results.place("interaction.json"))
    return interaction_heat_map(*found)
