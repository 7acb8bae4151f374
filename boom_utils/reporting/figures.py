"""Figures: one function each, from a results folder; the same data give the same bytes.

Colours are those of Okabe and Ito, safe for colour-blind readers; markers repeat what colours say, for print.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from boom_utils.artifacts import atomic_path
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.experiments import average_merges, updates
from boom_utils.reporting.geometry import angles_and_sizes, layer_heat_map
from boom_utils.reporting.results import Results, read_json_object

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1)))
"""Styles of lines: after the last colour they begin again with the next."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "boom",
    "svg.fonttype": "path",
    "figure.dpi": 110,
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "savefig.dpi": 150,
}


def model_means(results: Results) -> Figure:
    """Mean score of every model in and out of domain, with intervals; a line marks the reference.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(model_means(results).axes)
    2
    """
    figure = Figure(figsize=(8, 0.34 * len(results.models) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(results.domains), sharey=True, squeeze=False)[0]
    for axis, domain in zip(axes, results.domains, strict=True):
        found = [results.domain_mean(model, domain) for model in results.models]
        _dots(axis, found, [_colour(results, model) for model in results.models])
        axis.axvline(100 * found[results.models.index(results.reference)].value, color=GREY, lw=0.8, ls="--", zorder=0)
        axis.set_title(f"{domain} ({len(results.tasks(domain))} tasks)")
        axis.set_xlabel(f"mean score x 100, {interval_text(results)}")
    axes[0].set_yticks(range(len(results.models)), results.models)
    axes[0].set_ylim(len(results.models) - 0.5, -0.5)
    return figure


def task_deltas(results: Results) -> Figure:
    """Difference of every average of members to the reference on every task, paired, with intervals.

    A study that merges nothing has its other models there.
    """
    others = [model for model in results.models if model not in ("random", results.reference)]
    models, tasks = average_merges(results) or others, [task["name"] for task in results.study["tasks"]]
    columns = max(1, min(3, len(models)))
    rows = max(1, math.ceil(len(models) / columns))
    figure = Figure(figsize=(max(8, 2.2 + 2.6 * columns), rows * (0.26 * len(tasks) + 1.4)), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).ravel()
    for axis in axes[len(models) :]:
        axis.remove()
    for axis, model in zip(axes, models, strict=False):
        found = [results.difference(model, results.reference, [task]) for task in tasks]
        _dots(axis, found, [BLUE if task in results.tasks("in-domain") else ORANGE for task in tasks])
        axis.axvline(0, color=GREY, lw=0.8, zorder=0)
        axis.set_title(f"{model} minus {results.reference}")
        axis.set_xlabel(f"points, {interval_text(results)}")
    labels = [f"{task['name']} ({'in' if task['domain'] == 'in-domain' else 'out'})" for task in results.study["tasks"]]
    axes[0].set_yticks(range(len(tasks)), labels)
    axes[0].invert_yaxis()
    return figure


def training_losses(results: Results) -> Figure:
    """Training loss of every member of `Results.shuffled`, one panel a dataset, over the share of its steps."""
    logs = {member: results.training_log(member) for member in results.shuffled}
    datasets = sorted({line["dataset"] for log in logs.values() for line in log})
    columns = min(5, max(1, len(datasets)))
    rows = max(1, math.ceil(len(datasets) / columns))
    figure = Figure(figsize=(max(5.0, 2.1 * columns), 2.1 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis in axes[len(datasets) :]:
        axis.remove()
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, (member, log) in enumerate(logs.items()):
            points = [(line["step"] / max(1, len(log) - 1), line["loss"]) for line in log if line["dataset"] == dataset]
            x_N, y_N = np.array(points).reshape(-1, 2).T
            style = LINES[number // len(COLOURS) % len(LINES)]
            axis.plot(x_N, _running_mean(y_N), color=COLOURS[number % len(COLOURS)], ls=style, lw=1.2, label=member)
        axis.set_title(dataset.replace("_", " "), fontsize=8)
        axis.set_ylim(bottom=0)
    axes[0].set_xlim(-0.02, 1.02)
    figure.supxlabel("share of steps done", fontsize=9)
    figure.supylabel("InfoNCE loss (nats), running mean", fontsize=9)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=7, loc="outside upper center", ncols=6)
    return figure


def task_vector_geometry(results: Results) -> Figure:
    """Angles between the members' task vectors, their distances, and the size of each update."""
    return angles_and_sizes(read_json_object(results.place("geometry.json")))


def layer_updates(results: Results) -> Figure:
    """How far each member has moved from the base in each layer."""
    return layer_heat_map(read_json_object(results.place("geometry.json")))


def corpus_rows(results: Results) -> Figure:
    """Rows of the training datasets that the batches of each member of `Results.shuffled` hold."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for member in results.shuffled:
        for line in results.training_log(member):
            rows[line["dataset"]][member] = rows[line["dataset"]].get(member, 0) + line["queries"]
    members = results.shuffled
    figure = Figure(figsize=(7, max(3, 0.3 * len(members) + 1.2)), layout="constrained")
    axis, left, colours = figure.subplots(), np.zeros(len(members)), _colours(len(rows))
    for (dataset, counts), colour in zip(sorted(rows.items()), colours, strict=True):
        width = np.array([counts.get(member, 0) for member in members])
        axis.barh(members, width, left=left, color=colour, edgecolor="white", lw=0.4, label=dataset.replace("_", " "))
        left = left + width
    axis.invert_yaxis()
    axis.set_xlabel("examples trained on")
    figure.legend(frameon=False, fontsize=7, loc="outside upper center", ncols=min(5, max(1, len(rows))))
    return figure


def plan_strips(sequences: Mapping[str, Sequence[str]]) -> Figure:
    """Plans as strips: one cell a step, one colour a dataset.

    Args:
        sequences: Name of the plan -> dataset of each step.

    Returns:
        The figure.

    >>> len(plan_strips({"shuffled": ["nq", "sts", "nq"], "sequential": ["nq", "nq", "sts"]}).axes)
    2
    """
    datasets = sorted({dataset for sequence in sequences.values() for dataset in sequence})
    colours = dict(zip(datasets, _colours(len(datasets)), strict=True))
    figure = Figure(figsize=(8, 0.32 * len(sequences) + 1.0), layout="constrained")
    axes = figure.subplots(max(1, len(sequences)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, sequence) in zip(axes, sequences.items(), strict=False):
        numbers = [datasets.index(dataset) for dataset in sequence]
        axis.imshow(
            [numbers],
            cmap=ListedColormap(list(colours.values())),
            vmin=-0.5,
            vmax=len(datasets) - 0.5,
            extent=(0, len(numbers), 0, 1),
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_yticks([0.5], [name])
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelbottom=axis is axes[-1], length=3 if axis is axes[-1] else 0)
        axis.spines[:].set_visible(False)
    axes[0].set_xlim(0, max([1, *map(len, sequences.values())]))
    axes[-1].set_xlabel("step")
    handles = [Patch(color=colour, label=dataset.replace("_", " ")) for dataset, colour in colours.items()]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside upper center", ncols=min(4, len(handles)))
    return figure


def schedule_strips(results: Results) -> Figure:
    """What each schedule trained on at each step, from the training logs."""
    return plan_strips(
        {member: [line["dataset"] for line in results.training_log(member)] for member in results.schedules}
    )


def schedule_comparison(results: Results) -> Figure:
    """Paired difference of every schedule to batch-level shuffling in and out of domain, with intervals.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(schedule_comparison(results).axes)
    2
    """
    pairs = [(member, baseline) for member, baseline in results.schedules.items() if member != baseline]
    figure = Figure(figsize=(8, 0.4 * len(pairs) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(results.domains), sharey=True, squeeze=False)[0]
    for axis, domain, colour in zip(axes, results.domains, (BLUE, ORANGE), strict=False):
        tasks = results.tasks(domain)
        _dots(axis, [results.difference(*pair, tasks) for pair in pairs], [colour] * len(pairs))
        axis.axvline(0, color=GREY, lw=0.8, ls="--", zorder=0)
        axis.set_title(f"{domain} ({len(tasks)} tasks)")
        axis.set_xlabel(f"points minus batch-level shuffling,\n{interval_text(results)}")
    axes[0].set_yticks(range(len(pairs)), [member for member, _ in pairs])
    axes[0].set_ylim(max(1, len(pairs)) - 0.5, -0.5)
    return figure


def schedule_losses(results: Results) -> Figure:
    """Training loss along the run under every schedule, one panel a dataset: when it is seen, and at which loss.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(schedule_losses(results).axes) >= 2
    True
    """
    logs = {member: results.training_log(member) for member in results.schedules}
    datasets = sorted({line["dataset"] for log in logs.values() for line in log})
    figure = Figure(figsize=(8, 1.35 * len(datasets) + 0.8), layout="constrained")
    axes = figure.subplots(max(1, len(datasets)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, dataset in zip(axes, datasets, strict=False):
        for (member, log), colour in zip(logs.items(), _colours(len(logs)), strict=True):
            points = [(line["step"], line["loss"]) for line in log if line["dataset"] == dataset]
            x_N, y_N = np.array(points).reshape(-1, 2).T
            axis.plot(x_N, _running_mean(y_N), color=colour, lw=1.4, label=member)
        axis.set_title(dataset.replace("_", " "), loc="left")
        axis.grid(lw=0.4, alpha=0.5)
    axes[0].set_xlim(0, max([1, *map(len, logs.values())]))
    figure.supylabel("InfoNCE loss (nats), running mean of 7 steps", fontsize=9)
    axes[-1].set_xlabel("step")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=4)
    return figure


def incremental_comparison(results: Results) -> Figure:
    """Old, new and other tasks after an update and after retraining, with intervals, and what has to be trained.

    A dashed line marks the retrained model.

    Args:
        results: Of a finished study.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> len(incremental_comparison(results).axes) >= 3
    True
    """
    models, groups, retrained = results.incremental, results.task_groups, results.retrained
    colours = [_incremental_colour(results, model) for model in models]
    figure = Figure(figsize=(9, 0.42 * len(models) + 1.2), layout="constrained")
    *axes, cost = figure.subplots(1, len(groups) + 1, sharey=True, squeeze=False)[0]
    for axis, (group, tasks) in zip(axes, groups.items(), strict=True):
        _dots(axis, [results.mean(model, tasks) for model in models], colours)
        if retrained:
            axis.axvline(100 * results.mean(retrained, tasks).value, color=GREY, lw=0.8, ls="--", zorder=0)
        axis.set_title(f"{group} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})")
    examples = [results.update_cost(model)["examples"] for model in models]
    cost.barh(range(len(models)), examples, height=0.55, color=colours)
    for row, count in enumerate(examples):
        cost.text(count, row, f" {count:,}" if count else " nothing", va="center", fontsize=8)
    cost.set_title("examples to train")
    cost.set_xlim(0, 1.35 * max([1, *examples]))
    cost.set_yticks(range(len(models)), _update_labels(results, models))
    cost.set_ylim(max(1, len(models)) - 0.5, -0.5)
    figure.supxlabel(f"mean score x 100, {interval_text(results)}; on the right: when the new data arrive", fontsize=9)
    return figure


def _update_labels(results: Results, models: Sequence[str]) -> list[str]:
    """Names of the models, and what the updates among them are: colours alone would not say it."""
    found = {update.model: update for update in updates(results)}
    labels = []
    for model in models:
        update = found.get(model)
        parts = [] if update is None else {"merged": [], "alone": ["unmerged"]}.get(update.kind, [update.kind])
        if update and update.kind == "retrained":
            parts = [] if model == "retrained" else parts
        elif update and update.core is not None:
            parts.append(f"{100 * update.core:g} % old")
        if update and update.weight is not None:
            parts.append(f"weight {update.weight:.2g}")
        labels.append("\n".join(text for text in (model, ", ".join(parts)) if text))
    return labels


Draw = Callable[[Results], Figure]
FIGURES: dict[str, Draw] = {
    "model_means": model_means,
    "task_deltas": task_deltas,
    "training_losses": training_losses,
    "task_vector_geometry": task_vector_geometry,
    "layer_updates": layer_updates,
    "corpus_rows": corpus_rows,
}
SCHEDULE_FIGURES: dict[str, Draw] = {
    "schedule_strips": schedule_strips,
    "schedule_comparison": schedule_comparison,
    "schedule_losses": schedule_losses,
}
"""Of studies that compare schedules."""
INCREMENTAL_FIGURES: dict[str, Draw] = {"incremental_comparison": incremental_comparison}
"""Of studies in which new data arrive."""


def wanted_figures(results: Results) -> dict[str, Draw]:
    """Name -> figure, for what the study has; without its ablations, see `ablation_figures`."""
    wanted = FIGURES | (SCHEDULE_FIGURES if results.schedules else {})
    return wanted | (INCREMENTAL_FIGURES if results.incremental else {})


def write_figures(results: Results, out: Path, more: Mapping[str, Draw] | None = None) -> list[Path]:
    """Write every figure, then ``more``, as ``<name>.svg`` and ``<name>.png`` into ``out``, without dates.

    A figure of ``more`` takes the place of one with the same name.
    """
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in (wanted_figures(results) | dict(more or {})).items():
            figure = draw(results)
            for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                path = out / f"{name}.{suffix}"
                with atomic_path(path) as temporary:
                    figure.savefig(temporary, format=suffix, metadata=metadata)
                written.append(path)
    return written


def _dots(axis: Axes, found: Sequence[Estimate], colours: Sequence[str]) -> None:
    for row, (estimate, colour) in enumerate(zip(found, colours, strict=True)):
        low, high = 100 * estimate.low, 100 * estimate.high
        axis.plot([low, high], [row, row], color=colour, lw=1.6, solid_capstyle="butt")
        axis.plot(100 * estimate.value, row, marker="o", ms=5, color=colour)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", lw=0.4, alpha=0.5)


def _colours(count: int) -> list[Any]:
    """That many distinct colours."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [mpl.colormaps["turbo"](position) for position in np.linspace(0.05, 0.95, count)]


def _running_mean(y_N: np.ndarray, width: int = 7) -> np.ndarray:
    """Mean over a window around each step, shorter at both ends."""
    half = width // 2
    return np.array([y_N[max(0, n - half) : n + half + 1].mean() for n in range(len(y_N))])


def _colour(results: Results, model: str) -> str:
    if model in results.study["merges"]:
        return ORANGE
    return BLUE if model in results.study["members"] else GREY


def _incremental_colour(results: Results, model: str) -> str:
    """Grey for what was there before the new data, green for the retrained model, else as everywhere."""
    if model == results.retrained:
        return GREEN
    return _colour(results, model) if results.update_cost(model)["examples"] else GREY


def interval_text(results: Results) -> str:
    """What intervals are, for an axis."""
    return f"{100 * results.bootstrap.confidence:g} % interval over {results.levels}"
