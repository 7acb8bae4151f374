"""Figures of a study: one function each, from its results; the same data give the same bytes.

Means and differences are times 100. A difference is filled where its interval excludes zero, hollow where it is
inconclusive. See `boom_utils.reporting.experiments` for which models belong to which experiment.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.ablations import (
    granularity_rows,
    pareto_front,
    pareto_models,
)
from boom_utils.reporting.experiments import (
    Update,
    average_merges,
    core_sweep,
    members_text,
    method_groups,
    method_label,
    plain_multislerp,
    ratio_text,
    read_interaction,
    updates,
    variants,
    weight_sweep,
    weights_kind,
)
from boom_utils.reporting.interaction import interaction_heat_map
from boom_utils.reporting.panels import (
    BLUE,
    DOMAIN_COLOURS,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    STYLE,
    WIDTH,
    bars,
    coloured_table,
    colours_for,
    curve_panels,
    estimates,
    legend,
    line_style,
    row_panels,
    running_mean,
)
from boom_utils.reporting.results import Results, read_json_object

_PLACES = re.compile(r' d="[^"]*"|translate\([^)]*\)| [xy]="[^"]*"')
_DIGITS = re.compile(r"(?<=\.\d\d)\d+")
"""In an SVG: where lengths in points stand, and what of them nobody sees, which is a sixth of its bytes."""
Draw = Callable[[Results], Figure]
_NOTHING = Estimate(np.nan, np.nan, np.nan)
_DASHED = (0, (3, 2))


def study_figures(results: Results) -> dict[str, Draw]:
    """Name -> figure, for what the study has.

    Args:
        results: Of a finished study.

    Returns:
        Name -> function that draws it from results.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "method_comparison" in study_figures(results)
    True
    """
    wanted: dict[str, tuple[object, Draw]] = {
        "model_means": (True, model_means),
        "task_deltas": (True, task_deltas),
        "training_losses": (True, training_losses),
        "task_vector_geometry": (True, task_vector_geometry),
        "layer_updates": (True, layer_updates),
        "corpus_rows": (True, corpus_rows),
        "schedule_strips": (results.schedules, schedule_strips),
        "schedule_comparison": (results.schedules, schedule_comparison),
        "schedule_losses": (results.schedules, schedule_losses),
        "incremental_comparison": (results.incremental, incremental_comparison),
        "granularity_comparison": (granularity_rows(results), granularity_comparison),
        "method_comparison": (method_groups(results), method_comparison),
        "variant_comparison": (len(variants(results)) > 1, variant_comparison),
        "pareto": (pareto_models(results), pareto),
        "core_ratio_sweep": (core_sweep(results), core_ratio_sweep),
        "merge_weight_sweep": (weight_sweep(results), merge_weight_sweep),
        "interaction": (read_interaction(results), interaction),
    }
    return {name: draw for name, (has, draw) in wanted.items() if has}


def write_figures(results: Results, out: Path, figures: Mapping[str, Draw]) -> list[Path]:
    """Write every figure as ``<name>.svg`` into ``out``, without a date and to a hundredth of a point."""
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in figures.items():
            drawing = io.StringIO()
            draw(results).savefig(drawing, format="svg", metadata={"Date": None})
            written.append(out / f"{name}.svg")
            small = drawing.getvalue().replace("DejaVuSans-", "g")  # ids of glyphs, one for every letter drawn
            write_text(written[-1], _PLACES.sub(lambda found: _DIGITS.sub("", found[0]), small))
    return written


# --- scores -----------------------------------------------------------------------------------------------------------


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
    titles = [_title(domain, results.tasks(domain)) for domain in results.domains]
    text = f"mean score x 100, {interval_text(results)}; blue: trained, orange: merged; dashed: {results.reference}"
    figure, axes = row_panels(results.models, titles, text)
    for axis, domain in zip(axes, results.domains, strict=True):
        found = [results.domain_mean(model, domain) for model in results.models]
        line = found[results.models.index(results.reference)].value
        estimates(axis, found, [_colour(results, model) for model in results.models], line=line)
    return figure


def task_deltas(results: Results) -> Figure:
    """Paired difference of every average of members to the reference on every task; a star where it excludes zero.

    A study that merges nothing has its other models there.
    """
    others = [model for model in results.models if model not in ("random", results.reference)]
    models = average_merges(results) or others
    tasks = [task for domain in results.domains for task in results.tasks(domain)]
    found = [[results.difference(model, results.reference, [task]) for model in models] for task in tasks]
    points = np.array([[100 * estimate.value for estimate in row] for row in found]).reshape(len(tasks), len(models))
    stars = np.array([[estimate.excludes_zero for estimate in row] for row in found]).reshape(points.shape)
    size = (min(WIDTH, 3.6 + 0.62 * len(models)), min(HEIGHT, 1.9 + 0.24 * len(tasks)))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    image = coloured_table(axis, points, (tasks, models), "{:+.1f}", stars=stars)
    axis.axhline(len(results.tasks(results.domains[0])) - 0.5, color="black", lw=1.2)
    axis.set_title(f"minus {results.reference}; above the line: {results.domains[0]}", loc="left")
    figure.colorbar(image, ax=axis, label="points", fraction=0.05, pad=0.02)
    figure.supxlabel(f"* the {interval_text(results)} leaves out 0", fontsize=8)
    return figure


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
    pairs = {member: baseline for member, baseline in results.schedules.items() if member != baseline}
    return _differences(results, {member: member for member in pairs}, pairs, "batch-level shuffling")


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
    return _with_costs(results, {model: f"{what}\n{model}" for model, what in rows.items()})


def variant_comparison(results: Results) -> Figure:
    """The BOOM variants: paired difference to the reference in and out of domain, and the cost."""
    found = variants(results)
    labels = {merge: f"{ratio_text(results, merge)}, {weights_kind(results, merge)}\n{merge}" for merge in found}
    return _with_costs(results, labels)


def method_comparison(results: Results) -> Figure:
    """Every merge method on the same members: paired difference to the reference in and out of domain.

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
    labels: dict[str, str] = {}
    for group in method_groups(results):
        labels[f" {group[0]}"] = f"{members_text(results, group[0])}:"  # a row of its own, without a model
        alike = [method_label(results, merge) for merge in group]
        for merge, label in zip(group, alike, strict=True):
            mark = " (compared with)" if merge == plain_multislerp(results, group) else ""
            labels[merge] = label + (f", {weights_kind(results, merge)}" if alike.count(label) > 1 else "") + mark
    return _differences(results, labels, {}, results.reference)


def _differences(results: Results, labels: Mapping[str, str], against: Mapping[str, str], other: str) -> Figure:
    """A panel of paired differences a domain, a row a label; without a baseline in ``against`` to the reference."""
    return _difference_panels(results, labels, against, other, [])[0]


def _with_costs(results: Results, labels: Mapping[str, str]) -> Figure:
    """Differences to the reference, and on the right what training cost."""
    figure, axes = _difference_panels(results, labels, {}, results.reference, ["passes over the corpus"])
    bars(axes[-1], [results.cost(model) for model in labels], ["#BBBBBB"] * len(labels))
    axes[-1].axvline(results.cost(results.reference), color=GREY, lw=0.9, ls="--")
    return figure


def _difference_panels(
    results: Results, labels: Mapping[str, str], against: Mapping[str, str], other: str, more: Sequence[str]
) -> tuple[Figure, list[Axes]]:
    titles = [_title(domain, results.tasks(domain)) for domain in results.domains]
    text = f"points minus {other}, {interval_text(results)}; hollow: inconclusive, the interval includes 0"
    figure, axes = row_panels([*labels.values()], [*titles, *more], text)
    for axis, domain in zip(axes, results.domains, strict=False):
        found = [
            results.difference(model, against.get(model, results.reference), results.tasks(domain))
            if model in results.models
            else _NOTHING
            for model in labels
        ]
        estimates(axis, found, [DOMAIN_COLOURS[domain]] * len(found), line=0, hollow=True)
    return figure, axes


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
    examples = [results.update_cost(model)["examples"] for model in models]
    colours = [
        GREEN if model == retrained else _colour(results, model) if count else GREY
        for model, count in zip(models, examples, strict=True)
    ]
    titles = [*(_title(group, tasks) for group, tasks in groups.items()), "examples to train"]
    text = f"mean score x 100, {interval_text(results)}; dashed: retrained; grey: before the new data"
    figure, axes = row_panels(_update_labels(results, models), titles, text)
    for axis, tasks in zip(axes, groups.values(), strict=False):
        line = results.mean(retrained, tasks).value if retrained else None
        estimates(axis, [results.mean(model, tasks) for model in models], colours, line=line)
    bars(axes[-1], examples, colours, "{:,.0f}")
    return figure


def _update_labels(results: Results, models: Sequence[str]) -> list[str]:
    """Names of the models, and what the updates among them are: colours alone would not say it."""
    found = {update.model: update for update in updates(results)}
    labels = []
    for model in models:
        update = found.get(model)
        word = {"merged": "", "alone": "unmerged"}.get(update.kind, update.kind) if update else ""
        parts = [word] if word not in ("", model) else []
        if update and update.core is not None and update.kind != "retrained":
            parts.append(f"{100 * update.core:g} % old")
        if update and update.weight is not None:
            parts.append(f"weight {update.weight:.2g}")
        labels.append(f"{model} ({', '.join(parts)})" if parts else model)
    return labels


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
    """A panel a group of tasks: means of the updates, and lines of what they are compared with."""
    groups = results.task_groups
    titles = [_title(group, tasks) for group, tasks in groups.items()]
    figure, axes = curve_panels(titles, f"{label}; bars: {interval_text(results)}", "mean score x 100", 3)
    lines = {f"retrained ({results.retrained})": (results.retrained, GREEN, (0, (5, 2)))}
    existing = found[0].existing if found else None
    lines |= {f"before the update ({existing})": (existing, GREY, (0, (1, 2)))}
    more = [update for update in updates(results) if update.kind == "continued" and update.core is not None]
    more = sorted(more, key=lambda update: update.core or 0.0) if varied == "core" else []
    for axis, tasks in zip(axes, groups.values(), strict=True):
        for some, name, style in (
            (found, "merged update", {"color": BLUE, "marker": "o"}),
            (more, "existing model trained on", {"color": ORANGE, "marker": "s", "ls": (0, (1, 1))}),
        ):
            if some:
                means = [results.mean(update.model, tasks) for update in some]
                values, low, high = 100 * np.array([(one.value, one.low, one.high) for one in means]).T
                x_N = [float(getattr(update, varied)) for update in some]
                axis.errorbar(x_N, values, [values - low, high - values], ms=5, capsize=3, label=name, **style)
        for name, (model, colour, dashes) in lines.items():
            if model in results.models:
                axis.axhline(100 * results.mean(model, tasks).value, color=colour, ls=dashes, lw=1.2, label=name)
    legend(figure, axes)
    return figure


def pareto(results: Results) -> Figure:
    """Mean score against training cost in units of the reference's, a panel a domain; models have numbers.

    Squares are merges, circles members. Filled: no model is as good at less cost. The line joins these: solid where the
    paired difference of the two is certain, dashed where its interval includes zero.
    """
    models, unit = pareto_models(results), results.cost(results.reference) or 1.0
    figure = Figure(figsize=(min(WIDTH, 2.2 + 4.2 * len(results.domains)), 4.8), layout="constrained")
    axes = figure.subplots(1, len(results.domains), squeeze=False)[0]
    for axis, domain in zip(axes, results.domains, strict=True):
        front = pareto_front(results, domain)
        points = {model: (results.cost(model) / unit, results.domain_mean(model, domain)) for model in models}
        for model, (x, mean) in points.items():
            colour, marker = (ORANGE, "s") if model in results.parts else (BLUE, "o")
            axis.plot([x, x], [100 * mean.low, 100 * mean.high], color=colour, lw=1.0, alpha=0.45)
            face = colour if model in front else "white"
            axis.plot(x, 100 * mean.value, marker=marker, ms=6, mfc=face, mec=colour, ls="", zorder=3)
        for pair in pairwise(front):
            sure = results.difference(pair[1], pair[0], results.tasks(domain)).excludes_zero
            step = [(points[model][0], 100 * points[model][1].value) for model in pair]
            axis.plot(*zip(*step, strict=True), color=GREY, lw=1.2, ls="-" if sure else _DASHED, zorder=1)
        axis.set_title(_title(domain, results.tasks(domain)))
        axis.set_xlim(right=1.12 * max([1.0, *(x for x, _ in points.values())]))
        axis.grid(lw=0.4, alpha=0.5)
        _number_points(axis, [(x, 100 * mean.value) for x, mean in points.values()])
    axes[0].set_ylabel(f"mean score x 100, {interval_text(results)}")
    figure.supxlabel("training cost, 1 = the reference's; solid step: certain, dashed: inconclusive", fontsize=8)
    known = [Line2D([], [], ls="", label=f"{number} {model}") for number, model in enumerate(models, 1)]
    known += [
        Line2D([], [], marker="s", mec=ORANGE, mfc="white", ls="", label="merged"),
        Line2D([], [], marker="o", mec=BLUE, mfc="white", ls="", label="trained"),
        Line2D([], [], marker="s", color="black", ls="", label="filled: not dominated"),
    ]
    figure.legend(handles=known, frameon=False, fontsize=7.5, loc="outside right upper", handlelength=1)
    return figure


def _number_points(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write the number of each point to its right; numbers of points of about one cost are moved apart."""
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    columns: list[list[int]] = []
    for place in sorted(range(len(points)), key=lambda place: points[place]):
        if not columns or points[place][0] - points[columns[-1][0]][0] > 0.05 * (right - left):
            columns.append([])
        columns[-1].append(place)
    for column in columns:
        places = sorted(column, key=lambda place: points[place][1])
        wanted = [points[place][1] for place in places]
        ys = wanted[:1]
        for y in wanted[1:]:
            ys.append(max(y, ys[-1] + 0.045 * (top - bottom)))
        drift = (sum(ys) - sum(wanted)) / len(ys)
        x = max(points[place][0] for place in places) + 0.025 * (right - left)
        for place, y in zip(places, ys, strict=True):
            axis.plot([points[place][0], x], [points[place][1], y - drift], color=GREY, lw=0.5, zorder=1)
            axis.text(x, y - drift, str(place + 1), fontsize=7.5, va="center", zorder=4)


def _title(name: str, tasks: Sequence[str]) -> str:
    return f"{name} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})"


def _colour(results: Results, model: str) -> str:
    if model in results.study["merges"]:
        return ORANGE
    return BLUE if model in results.study["members"] else GREY


def interval_text(results: Results) -> str:
    """What intervals are, for an axis."""
    return f"{100 * results.confidence:g} % interval over {results.levels}"


# --- training ---------------------------------------------------------------------------------------------------------


def training_losses(results: Results) -> Figure:
    """Training loss of every member of `Results.shuffled`, one panel a dataset, over the share of its steps."""
    return _losses(results, results.shuffled, "share of steps done")


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
    return _losses(results, list(results.schedules), "step")


def _losses(results: Results, members: Sequence[str], unit: str) -> Figure:
    logs = {member: results.training_log(member) for member in members}
    datasets = sorted({line["dataset"] for log in logs.values() for line in log})
    figure, axes = curve_panels(datasets, unit, "InfoNCE loss (nats), running mean of 7 steps", 5)
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, (member, log) in enumerate(logs.items()):
            points = [(line["step"], line["loss"]) for line in log if line["dataset"] == dataset]
            x_N, y_N = np.array(points).reshape(-1, 2).T
            last = max(1, len(log) - 1) if unit.startswith("share") else 1
            axis.plot(x_N / last, running_mean(y_N), lw=1.2, label=member, **line_style(number))
        axis.set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def schedule_strips(results: Results) -> Figure:
    """What each schedule trained on at each step, from the training logs."""
    return plan_strips(
        {member: [line["dataset"] for line in results.training_log(member)] for member in results.schedules}
    )


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
    colours = colours_for(len(datasets))
    figure = Figure(figsize=(8, min(HEIGHT, 0.32 * len(sequences) + 1.0)), layout="constrained")
    axes = figure.subplots(max(1, len(sequences)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, sequence) in zip(axes, sequences.items(), strict=False):
        numbers = [[datasets.index(dataset) for dataset in sequence]]
        look: dict[str, Any] = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(datasets) - 0.5}
        axis.imshow(numbers, extent=(0, len(sequence), 0, 1), aspect="auto", interpolation="nearest", **look)
        axis.set_yticks([0.5], [name])
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelbottom=axis is axes[-1], length=3 if axis is axes[-1] else 0)
        axis.spines[:].set_visible(False)
    axes[0].set_xlim(0, max([1, *map(len, sequences.values())]))
    axes[-1].set_xlabel("step")
    handles = [
        Patch(color=colour, label=dataset.replace("_", " ")) for dataset, colour in zip(datasets, colours, strict=True)
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside upper center", ncols=min(4, len(handles)))
    return figure


def corpus_rows(results: Results) -> Figure:
    """Rows of the training datasets that the batches of each member of `Results.shuffled` hold."""
    members, rows = results.shuffled, defaultdict[str, dict[str, int]](dict)
    for member in members:
        for line in results.training_log(member):
            rows[line["dataset"]][member] = rows[line["dataset"]].get(member, 0) + line["queries"]
    figure = Figure(figsize=(8, min(HEIGHT, 0.3 * len(members) + 1.8)), layout="constrained")
    axis, left = figure.subplots(), np.zeros(len(members))
    for (dataset, counts), colour in zip(sorted(rows.items()), colours_for(len(rows)), strict=True):
        width = np.array([counts.get(member, 0) for member in members])
        axis.barh(members, width, left=left, color=colour, edgecolor="white", lw=0.4, label=dataset.replace("_", " "))
        left = left + width
    axis.invert_yaxis()
    axis.set_xlabel("examples trained on")
    legend(figure, [axis], 5)
    return figure


# --- weights and datasets ---------------------------------------------------------------------------------------------


def task_vector_geometry(results: Results) -> Figure:
    """Angles between the members' task vectors, their distances, and the size of each update."""
    return angles_and_sizes(read_json_object(results.place("geometry.json")))


def layer_updates(results: Results) -> Figure:
    """How far each member has moved from the base in each layer."""
    return layer_heat_map(read_json_object(results.place("geometry.json")))


def angles_and_sizes(geometry: Mapping[str, Any]) -> Figure:
    """Angles between the members' task vectors, their distances, and how far each has moved from the base.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it, of members with a base.

    Returns:
        The figure.

    >>> from boom_utils.reporting.results import read_json_object
    >>> geometry = read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    >>> len(angles_and_sizes(geometry).axes) >= 3
    True
    """
    names, sizes = geometry["members"], 100 * np.array(geometry["relative_updates"], dtype=float)
    angles_MM = np.degrees(np.arccos(np.clip(np.array(geometry["cosines"], dtype=float), -1, 1)))
    np.fill_diagonal(angles_MM, 0.0)
    distances_MM = 100 * np.array(geometry["distances"], dtype=float)
    figure = Figure(figsize=(WIDTH, min(HEIGHT, 2.2 + 0.26 * len(names))), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 1))
    coloured_table(left, angles_MM, (names, names), "{:.0f}", scale=(0, max(90.0, np.nanmax(angles_MM))))
    left.set_title("angle of task vectors, degrees")
    coloured_table(middle, distances_MM, (names, names), "{:.1f}", scale=(0, np.nanmax(distances_MM) or 1))
    middle.set_title("distance, % of |base|")
    bars(right, sizes.tolist(), [BLUE] * len(names))
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_title("update, |member - base| in % of |base|")
    return figure


def layer_heat_map(geometry: Mapping[str, Any]) -> Figure:
    """How far each member has moved from the base in each layer, per cent of the base's length there.

    Args:
        geometry: As for `angles_and_sizes`.

    Returns:
        The figure.

    >>> from boom_utils.reporting.results import read_json_object
    >>> geometry = read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    >>> len(layer_heat_map(geometry).axes) >= 1
    True
    """
    names, layers = geometry["members"], geometry["layers"]
    sizes_LM = 100 * np.array(geometry["by_layer"], dtype=float)
    size = (min(WIDTH, 2.2 + 0.6 * len(names)), min(HEIGHT, 1.5 + 0.28 * len(layers)))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    image = coloured_table(axis, sizes_LM, (layers, names), "{:.1f}", scale=(0, sizes_LM.max() or 1))
    axis.set_title("update by layer, % of the base's length")
    figure.colorbar(image, ax=axis)
    return figure


def interaction(results: Results) -> Figure:
    """Loss differences of all pairs of datasets with their clusters.

    Raises:
        ResultsError: The study has no interaction analysis.
    """
    found = read_interaction(results)
    if found is None:
        raise ResultsError("this study has no interaction analysis", where=results.place("interaction.json"))
    return interaction_heat_map(*found)
