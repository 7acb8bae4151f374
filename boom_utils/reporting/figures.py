"""Figures of a study: one function each, from its tables; the same data give the same bytes.

Means and differences are in points of 100. A difference is filled where its interval excludes zero, hollow where it is
inconclusive. What each shows is said in ``page.yaml``.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError
from boom_utils.evaluation.interaction import Clusters, Interaction, clusters
from boom_utils.evaluation.statistics import Estimate, plain_mean
from boom_utils.reporting import experiments, panels
from boom_utils.reporting.ablations import granularity_table, method_table, variant_table
from boom_utils.reporting.frontier import frontier, shown_arms
from boom_utils.reporting.panels import GREY, model_colour
from boom_utils.reporting.regime import REGIME, regime
from boom_utils.reporting.results import Results, read_json_object, run_of
from boom_utils.reporting.tables import (
    UPDATES,
    estimate_columns,
    incremental_table,
    layout,
    model_table,
    schedule_table,
)

_PLACES = re.compile(r' d="[^"]*"|translate\([^)]*\)| [xy]="[^"]*"')
_DIGITS = re.compile(r"(?<=\.\d\d)\d+")
"""In an SVG: where lengths in points stand, and what of them nobody sees, which is a sixth of its bytes."""
GEOMETRY = "geometry.json"
MOST_UPDATES = 8
"""Updates that `update_cost` looks ahead."""
Draw = Callable[[Results], Figure]
Curve = Sequence[Sequence[float]]
"""Points of a curve: share of the steps done (0 to 1), loss (nats), and its interval."""


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
    known, curve, plane = results.experiments, bool(results.interpolation), shown_arms(results)[1:]
    ratios = known.averages and {results.cost(name) for name in known.sampled}
    wanted: dict[str, tuple[object, Draw]] = {
        "frontier": (curve and plane, frontier),
        "in_against_out": (plane and not curve, frontier),
        "model_means": (not plane, model_means),
        "sampling_ratios": (len(ratios) > 2, sampling_ratios),
        "member_against_merge": (_scored_parts(results), member_against_merge),
        "variant_comparison": (len(known.variants) > 1 and not curve, variant_comparison),
        "granularity_comparison": (experiments.granularity_merges(results), granularity_comparison),
        "method_comparison": (experiments.method_groups(results), method_comparison),
        "schedule_comparison": (results.schedules, schedule_comparison),
        "schedule_strips": (results.schedules, schedule_strips),
        "forgetting": (len(results.numbers.losses), forgetting),
        "incremental_comparison": (known.incremental.models, incremental_comparison),
        "update_cost": (experiments.lifetime_costs(results, 1), update_cost),
        "interaction": (experiments.read_interaction(results), _interaction),
        "task_vector_geometry": ((results.folder / GEOMETRY).is_file(), _geometry),  # not while it is unfinished
        "regime": ((results.folder / REGIME).is_file(), regime),
        "task_deltas": (True, task_deltas),
        "seeds": (len(_seeded(results)) > 1, seed_means),
    }
    return {name: draw for name, (has, draw) in wanted.items() if has}


def write_figures(
    results: Results, out: Path, figures: Mapping[str, Draw], style: Mapping[Any, Any] = panels.STYLE
) -> list[Path]:
    """Write every figure as ``<name>.svg`` into ``out``, without a date and to a hundredth of a point.

    Its title and description, which a reader hears who does not see it, are those of the page.
    """
    written, said = [], layout()["figures"]
    with mpl.rc_context(dict(style)):
        for name, draw in figures.items():
            drawing, (title, text) = io.StringIO(), said.get(name, (name, ""))
            draw(results).savefig(drawing, format="svg", metadata={"Date": None, "Title": title})
            small = drawing.getvalue().replace("DejaVuSans-", "g")  # ids of glyphs, one for every letter drawn
            small = small.replace("</title>", f"</title>\n <desc>{html.escape(text)}</desc>", 1)
            written.append(out / f"{name}.svg")
            write_text(written[-1], _PLACES.sub(lambda found: _DIGITS.sub("", found[0]), small))
    return written


def interval_text(results: Results) -> str:
    """What intervals are, for an axis."""
    return f"{100 * results.confidence:g} % interval over {results.levels}"


def _titles(groups: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{name} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})" for name, tasks in groups.items()]


# --- rows of intervals ------------------------------------------------------------------------------------------------


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
    frame = model_table(results)
    text = f"mean main score (%), {interval_text(results)}; dashed: {results.reference}"
    return _rows(results, frame, frame["model"], text)


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
    compared = [member != baseline for member, baseline in results.schedules.items()]
    frame = schedule_table(results)[compared].rename(columns={"member": "model"})
    labels = [f"{row['model']}: {row['schedule']}" for row in frame.to_dict("records")]
    return _differences(results, frame, labels, "shuffling", f"batch-level shuffling ({results.reference})")


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
    frame = granularity_table(results).query("model != @results.reference")
    return _differences(results, frame, frame["model"] + ": " + frame["granularity"].str.removeprefix("BOOM: "))


def variant_comparison(results: Results) -> Figure:
    """The BOOM variants: paired difference to the reference in and out of domain, and the cost."""
    frame = variant_table(results)
    return _differences(results, frame, frame["model"] + "\n" + frame["ratios"] + " " + frame["weights"])


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
    frames = []
    for _, group in method_table(results).groupby("group"):
        alike = group["method"].duplicated(keep=False)
        label = group["method"].where(~alike, group["method"] + ", " + group["parameters"])
        head = pd.DataFrame({"label": [f"{group['merged'].iloc[0]}:"]})  # a row of its own, without a model
        frames += [head, group.assign(label=label)]
    frame = pd.concat(frames, ignore_index=True)
    return _differences(results, frame, frame["label"])


def _differences(results: Results, frame: pd.DataFrame, rows: Iterable[str], minus: str = "", said: str = "") -> Figure:
    """Paired differences, in columns ``<domain> minus <minus>`` of a table; to the reference unless it is given."""
    minus = minus or results.reference
    text = f"points minus {said or minus}, {interval_text(results)}; hollow: the interval includes 0"
    return _rows(results, frame, rows, text, f" minus {minus}")


def _rows(results: Results, frame: pd.DataFrame, labels: Iterable[str], text: str, ending: str = "") -> Figure:
    """A panel a domain, or a group of tasks in the table of updates, and what training cost where a table says that.

    Args:
        results: Of the study.
        frame: One row a model; rows without one are headings.
        labels: Of its rows.
        text: Of the axis.
        ending: Of the columns that are shown: empty for means, what is subtracted for differences.
    """
    groups, against = results.groups, results.reference
    if "kind" in frame:
        groups, against = results.task_groups, results.retrained or ""
    colours = [model_colour(results, name) for name in frame.get("model", pd.Series(dtype=str)).fillna("")]
    figure, axes = panels.row_panels(labels, _titles(groups), text)
    for axis, (group, tasks) in zip(axes, groups.items(), strict=True):
        line = 0.0 if ending else 100 * results.mean(against, tasks).value if against else None
        panels.intervals(axis, frame, group + ending, colours, line)
    for cost in frame.columns.intersection(["corpus passes", "examples to train"])[:1]:
        panels.column(axes[-1], cost.replace(" ", "\n", 1), [f"{number:,.4g}" for number in frame[cost]])
    return figure


def member_against_merge(results: Results) -> Figure:
    """BOOM beside its own members on every task: paired difference to their mean, and where each member is."""
    boom, parts = str(results.experiments.boom), _scored_parts(results)
    figure = panels.new_figure(9.6, 1.4 + 0.24 * max(map(len, results.groups.values())))
    axes = list(figure.subplots(1, len(results.domains), squeeze=False)[0])
    for axis, title, tasks in zip(axes, _titles(results.groups), results.groups.values(), strict=True):
        found = {task: results.difference(boom, parts, [task]) for task in tasks}
        order = sorted(tasks, key=lambda task: -found[task].value)
        means = np.array([[results.mean(part, [task]).value for task in order] for part in parts])
        for part, scores in zip(parts, 100 * (means - means.mean(axis=0)), strict=True):
            look: dict[str, Any] = {"marker": "|", "s": 60, "linewidth": 2.2, "color": model_colour(results, part)}
            axis.scatter(scores, range(len(order)), label=part, **look)
        panels.label_rows(axis, order)
        frame = pd.DataFrame([estimate_columns("difference", found[task]) for task in order])
        panels.intervals(axis, frame, "difference", [model_colour(results, boom)] * len(order), line=0)
        axis.scatter([], [], label=boom, color=model_colour(results, boom))
        axis.set_title(title, loc="left")
    panels.legend(figure, axes, 8)
    figure.supxlabel(f"points minus the mean of the members, {interval_text(results)}; hollow: the interval includes 0")
    return figure


def _scored_parts(results: Results) -> list[str]:
    """The members that BOOM merges, where all of them are scored."""
    parts = results.parts.get(results.experiments.boom or "", [])
    return parts if {*parts} <= {*results.models} else []


def seed_means(results: Results) -> Figure:
    """Mean of every seed of the models that have several, in and out of domain; lines join seeds of the same rows."""
    models = _seeded(results)
    numbers = sorted({int(run_of(name)["seed"]) for model in models for name in results.seeds(model)})
    text = "mean main score (%), a mark a seed" + ("; lines join seeds of the same rows" * results.own_rows)
    figure, axes = panels.row_panels(models, _titles(results.groups), text)
    for axis, tasks in zip(axes, results.groups.values(), strict=True):
        for place, number in enumerate(numbers):
            runs = {model: name for model in models for name in results.seeds(model) if run_of(name)["seed"] == number}
            scores = [100 * results.run_mean(runs[model], tasks) if model in runs else np.nan for model in models]
            look = panels.mark_style(place) | {"ls": ":" if results.own_rows else "", "label": f"seed {number}"}
            axis.plot(scores, range(len(models)), ms=5, lw=0.9, **look)
        axis.locator_params(axis="x", nbins=6)
    panels.legend(figure, axes, 10)
    return figure


def _seeded(results: Results) -> list[str]:
    """Models with several seeds, without those on the interpolation curve between its ends."""
    curve = {name for _, name in results.interpolation} - {results.full}
    return [model for model in results.models if len(results.seeds(model)) > 1 and model not in curve]


def task_deltas(results: Results) -> Figure:
    """Paired difference of every arm or average of members to the reference on every task; stars exclude zero.

    A study that merges nothing has its other models there.
    """
    others = [model for model in results.models if model not in ("random", results.reference)]
    models = experiments.arms(results)[1:] or [*results.experiments.averages] or others
    tasks = [task for domain in results.domains for task in results.tasks(domain)]
    found = [[results.difference(model, results.reference, [task]) for model in models] for task in tasks]
    cells = np.array([[(100 * one.value, one.excludes_zero) for one in row] for row in found])
    figure = panels.new_figure(3.6 + 0.62 * len(models), 1.9 + 0.22 * len(tasks))
    axis = figure.subplots()
    image = panels.coloured_table(axis, cells[..., 0], (tasks, models), "{:+.1f}", stars=cells[..., 1])
    figure.colorbar(image, ax=axis, label="points", fraction=0.05, pad=0.02)
    axis.axhline(len(results.tasks(results.domains[0])) - 0.5, color="black", lw=1.2)
    axis.set_title(f"minus {results.reference}; above the line: {results.domains[0]}", loc="left")
    figure.supxlabel(f"* the {interval_text(results)} leaves out 0")
    return figure


# --- costs and updates ------------------------------------------------------------------------------------------------


def sampling_ratios(results: Results) -> Figure:
    """Means over what training took: of members, which is the share of the data they had, and of their merges."""
    sampled, merged = results.experiments.sampled, results.experiments.averages
    shown = [*(("base",) if "base" in results.models else ()), *sampled, *merged]
    costs = pd.Series({name: results.cost(name) for name in shown})
    figure = panels.new_figure(9.6, 4.6)
    text = "passes over the corpus that training took; of a member (line) the share of every dataset that it had"
    figure.supxlabel(f"{text}\nbars: {interval_text(results)}")
    axes = figure.subplots(1, len(results.domains), squeeze=False)[0]
    for axis, title, domain in zip(axes, _titles(results.groups), results.domains, strict=True):
        found = {name: results.domain_mean(name, domain) for name in shown}
        line = pd.Series({name: 100 * found[name].value for name in shown if name not in merged}).groupby(costs).mean()
        axis.plot(line.index, line, color=GREY, lw=0.9, zorder=1)
        axis.set_title(title, loc="left")
        _over_cost(axis, results, costs, found, [name for name in shown if name not in sampled or name == results.full])
    axes[0].set_ylabel("mean main score (%)")
    return figure


def _over_cost(
    axis: Axes, results: Results, costs: pd.Series, found: dict[str, Estimate], named: Iterable[str]
) -> None:
    """Estimates of models with their intervals over what each cost, some with their names."""
    for model, one in found.items():
        ends = 100 * np.array([[one.value - one.low], [one.high - one.value]])
        look: dict[str, Any] = {"fmt": "o", "ms": 5, "lw": 0.8, "color": model_colour(results, model)}
        axis.errorbar(costs[model], 100 * one.value, ends, **look)
    axis.grid()
    places = {name: (costs[name], 100 * found[name].value) for name in named}
    taken = np.array([(costs[name], 100 * one.value) for name, one in found.items()])
    panels.label_points(axis, places, taken, bold=results.experiments.boom)


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
    frame = incremental_table(results)
    labels = [_update_label(row) for row in frame.to_dict("records")]
    text = f"mean main score (%), {interval_text(results)}; dashed: {results.retrained}"
    return _rows(results, frame, labels, text)


def _update_label(row: Mapping[Any, Any]) -> str:
    """Name of a model, and what kind of update it is: colours alone would not say it."""
    word = {UPDATES["alone"]: "unmerged", UPDATES["continued"]: "continued"}.get(row["kind"], row["model"])
    parts = [word] if word != row["model"] else []
    if row["kind"] != UPDATES["retrained"] and pd.notna(row["old data in the update"]):
        parts.append(f"{100 * row['old data in the update']:g} % old")
    parts += [f"weight {row['weight']:.2g}"] if pd.notna(row["weight"]) else []
    return f"{row['model']} ({', '.join(parts)})" if parts else str(row["model"])


def update_cost(results: Results) -> Figure:
    """Quality over the cost of one update, and all training so far over the number of updates.

    The legend says from which update on a way is cheaper than retraining.
    """
    figure = panels.new_figure(11.0, 4.8)
    left, right = figure.subplots(1, 2)
    _draw_lifetime(right, results)
    tasks = [task for group in results.task_groups.values() for task in group]
    models = results.experiments.incremental.models
    found = {name: results.difference(name, results.retrained or "", tasks) for name in models}
    costs = pd.Series({name: results.update_cost(name)["examples"] for name in models})
    for key, ls in (("core_ratios", "-"), ("weights", ":")):
        swept = [update.model for update in experiments.sweep(results, key)]
        left.plot(costs[swept], [100 * found[name].value for name in swept], color=GREY, lw=0.9, ls=ls, zorder=1)
    left.axhline(0, color=GREY, lw=0.9, ls="--", zorder=0)
    left.set_title("after one update, all tasks\nlines: more old data; dotted: more weight", loc="left")
    ylabel = f"points minus {results.retrained}, {interval_text(results)}"
    left.set(xlabel="examples to train when the new data arrive", ylabel=ylabel)
    _over_cost(left, results, costs, found, models)
    return figure


def _draw_lifetime(axis: Axes, results: Results) -> None:
    costs = experiments.lifetime_costs(results, MOST_UPDATES)
    again = costs["retrain on everything"]
    for number, (name, passes) in enumerate(costs.items()):
        cheaper = next((k for k in range(1, len(passes)) if passes[k] < again[k]), None)
        said = f": cheaper from update {cheaper} on" if cheaper else ""
        model = str(results.retrained) if passes is again else name.partition(" + ")[0]
        look: dict[str, Any] = {"color": model_colour(results, model), "marker": panels.MARKERS[number]}
        axis.plot(passes, label=name + said, lw=1.4, ms=4, **look)
    axis.set_title("over a lifetime of updates (computed)", loc="left")
    axis.set(xlabel="updates with new data", ylabel="passes over the old corpus, all training so far")
    axis.set_ylim(0, 1.45 * max(map(max, costs.values())))
    axis.grid()
    axis.legend(loc="upper left")


# --- training ---------------------------------------------------------------------------------------------------------


def forgetting(results: Results) -> Figure:
    """Loss on the same rows along the training of every member that was watched: what it learns and loses again."""
    found: dict[Any, dict[Any, list[Any]]] = {}
    for (model, dataset, share), rows in results.numbers.losses.groupby(["model", "dataset", "share"], observed=True):
        one = plain_mean(rows["loss"].to_numpy()).estimate(results.confidence)
        found.setdefault(model, {}).setdefault(dataset, []).append((share, one.value, one.low, one.high))
    return forgetting_curves({name: found[name] for name in results.study["members"] if name in found})


def forgetting_curves(losses: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Loss on the same rows along the training of every model, one panel a dataset; bands are the intervals.

    Args:
        losses: Model -> dataset -> points, in the order of the share of steps done.

    Returns:
        The figure.

    >>> figure = forgetting_curves({"full": {"nq": [(0.0, 1.5, 1.4, 1.6), (1.0, 0.5, 0.4, 0.6)]}})
    >>> figure.axes[0].get_title(loc="left")
    'nq'
    """
    datasets = sorted({dataset for curves in losses.values() for dataset in curves})
    columns, rows = max(1, min(5, len(datasets))), max(1, -(-len(datasets) // 5))
    figure = panels.new_figure(max(4.0, 0.6 + 2.4 * columns), 1.0 + 2.0 * rows)
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).ravel())
    for axis in axes[len(datasets) :]:
        axis.set_visible(False)
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, (model, curves) in enumerate(losses.items()):
            if dataset in curves:
                x_P, y_P, low_P, high_P = np.array(curves[dataset], dtype=np.float64).T
                look = panels.mark_style(number)
                axis.plot(x_P, y_P, label=model, lw=1.2, ms=3.2, **look)
                axis.fill_between(x_P, low_P, high_P, color=look["color"], alpha=0.15, lw=0)
        axis.set_title(dataset.replace("_", " "), loc="left", fontsize="small")
        axis.set_ylim(bottom=0)
        axis.grid()
    figure.supxlabel("share of steps done; bands: intervals over batches")
    figure.supylabel("InfoNCE loss (nats)")
    panels.legend(figure, axes)
    return figure


def schedule_strips(results: Results) -> Figure:
    """What each schedule trained on at each step, from the training logs."""
    return plan_strips({name: [line["dataset"] for line in results.training_log(name)] for name in results.schedules})


def plan_strips(sequences: Mapping[str, Sequence[str]]) -> Figure:
    """Plans as strips: one cell a step, one colour a dataset.

    Args:
        sequences: Name of the plan -> dataset of each step.

    Returns:
        The figure.

    >>> len(plan_strips({"shuffled": ["nq", "sts", "nq"], "sequential": ["nq", "nq", "sts"]}).axes)
    1
    """
    datasets = sorted({dataset for sequence in sequences.values() for dataset in sequence})
    many = mpl.colormaps["viridis"].resampled(len(datasets)) if len(datasets) > len(panels.COLOURS) else None
    colours = many or ListedColormap(panels.COLOURS[: len(datasets)] or ["white"])
    steps = zip_longest(*([datasets.index(one) for one in sequence] for sequence in sequences.values()))
    cells = np.array([*steps], dtype=float).reshape(-1, max(1, len(sequences))).T  # None is NaN
    longest = max(1, cells.shape[1])
    figure = panels.new_figure(8, 0.32 * len(sequences) + 1.0 + 0.2 * (len(datasets) > 4))
    axis = figure.subplots()
    look: dict[str, Any] = {"cmap": colours, "vmin": -0.5, "vmax": len(datasets) - 0.5}
    axis.imshow(cells, extent=(0, longest, len(cells) - 0.5, -0.5), aspect="auto", interpolation="nearest", **look)
    axis.set_yticks(range(len(sequences)), list(sequences))
    axis.hlines(np.arange(1, len(cells)) - 0.5, 0, longest, color="white", lw=5)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("step")
    for number, dataset in enumerate(datasets):
        axis.plot([], [], "s", ms=7, color=colours(number), label=dataset.replace("_", " "))
    panels.legend(figure, [axis], 5)
    return figure


# --- weights and datasets ---------------------------------------------------------------------------------------------


def _geometry(results: Results) -> Figure:
    return angles_and_sizes(read_json_object(results.folder / GEOMETRY))


def angles_and_sizes(geometry: Mapping[str, Any]) -> Figure:
    """Angles between the members' updates, and how far each moved from the base, in all and by layer.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it, of members with a base.

    Returns:
        The figure.

    >>> from boom_utils.reporting.results import read_json_object
    >>> geometry = read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    >>> len(angles_and_sizes(geometry).axes) >= 2
    True
    """
    names, rows = geometry["members"], ["all weights", *geometry["layers"]]
    sizes_LM = 100 * np.array([geometry["relative_updates"], *geometry["by_layer"]], dtype=float)
    angles_MM = np.degrees(np.arccos(np.clip(np.array(geometry["cosines"], dtype=float), -1, 1)))
    angles_MM = np.ma.array(angles_MM, mask=np.triu(np.ones_like(angles_MM)) > 0)
    figure = panels.new_figure(3.2 + 0.9 * len(names), 2.2 + 0.26 * max(len(names), len(rows)))
    left, right = figure.subplots(1, 2)
    known = angles_MM.compressed()
    scale = (float(known.min(initial=90.0)), float(known.max(initial=0.0)) + 1e-9)
    panels.coloured_table(left, angles_MM, (names, names), "{:.0f}", scale=scale)
    left.set_title("angle between updates, degrees", loc="left")
    panels.coloured_table(right, sizes_LM, (rows, names), "{:.2g}", scale=(0, sizes_LM.max() or 1))
    right.axhline(0.5, color="white", lw=2)
    right.set_title("length of the update, % of the base's", loc="left")
    return figure


def _interaction(results: Results) -> Figure:
    return interaction_heat_map(*(experiments.read_interaction(results) or ()))


def interaction_heat_map(interaction: Interaction, found: Clusters | None = None) -> Figure:
    """Loss differences of all pairs, in the order of their tree, which stands beside them; lines between clusters.

    Blue is for datasets that help one another, orange for those that disturb; signs and stars say the same, for print.

    Args:
        interaction: The differences.
        found: Clusters of the same datasets; None joins what does not conflict (threshold 0, average linkage).

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
        fix = "cluster anew"
        raise ResultsError(
            "clusters are of other datasets", expected=interaction.datasets, found=found.datasets, fix=fix
        )
    order, size = list(found.leaves), len(found.datasets)
    values, low, high = (part[np.ix_(order, order)] for part in (interaction.values, interaction.low, interaction.high))
    names = [found.datasets[leaf].replace("_", " ") for leaf in order]
    figure = panels.new_figure(4.6 + 0.6 * size, 2.4 + 0.42 * size)
    tree, axis = figure.subplots(1, 2, sharey=True, width_ratios=(1, max(1.5, 0.5 * size)))
    _draw_tree(tree, found)
    shown = np.ma.array(values, mask=np.eye(size, dtype=bool))
    number = "{:+.2f}" if np.abs(values).max() >= 0.1 else "{:+.3f}"
    image = panels.coloured_table(axis, shown, (names, names), number, stars=(low > 0) | (high < 0))
    labels = np.array([found.labels[leaf] for leaf in order])
    for row in np.flatnonzero(labels[1:] != labels[:-1]) + 0.5:
        axis.axhline(row, color="black", lw=1.4)
        axis.axvline(row, color="black", lw=1.4)
    axis.tick_params(labelleft=True)
    axis.set_title("held-out loss, trained together minus apart", loc="left")
    figure.colorbar(image, ax=axis, label="nats; - synergy, + conflict", fraction=0.05, pad=0.02)
    text = f"* the {100 * interaction.confidence:g} % interval over held-out batches leaves out 0"
    figure.supxlabel(f"mean of both directions; {text}")
    return figure


def _draw_tree(axis: Axes, found: Clusters) -> None:
    """The tree on its side, leaves at the rows of the matrix; what is joined within clusters is dark."""
    from scipy.cluster.hierarchy import dendrogram

    size, heights = len(found.datasets), np.append(found.linkage[:, 2], np.inf)
    cut = heights[size - len(found.groups)]
    drawn = dendrogram(found.linkage, no_plot=True)
    for ys, xs in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        look: dict[str, Any] = {"color": "black", "lw": 1.4} if xs[1] < cut else {"color": GREY, "lw": 1.0, "ls": "--"}
        axis.plot(np.array(xs) + found.shift, (np.array(ys) - 5) / 10, **look)
    axis.set_xlim(*axis.get_xlim()[::-1])
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelleft=False)
    axis.set_xlabel("nats", fontsize="small")
    axis.locator_params(axis="x", nbins=3)
