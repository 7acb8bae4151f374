"""Figures of a study: one function each, from its tables; the same data give the same bytes.

Means and differences are times 100. A difference is filled where its interval excludes zero, hollow where it is
inconclusive. What each shows is said in ``page.yaml``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from boom_utils.reporting import experiments, panels
from boom_utils.reporting.ablations import granularity_table, method_table, variant_table
from boom_utils.reporting.frontier import frontier
from boom_utils.reporting.panels import BLUE, GREEN, GREY, HEIGHT, ORANGE, WIDTH
from boom_utils.reporting.regime import REGIME, regime
from boom_utils.reporting.results import Results, read_json_object
from boom_utils.reporting.tables import UPDATES, incremental_table, model_table, schedule_table

_PLACES = re.compile(r' d="[^"]*"|translate\([^)]*\)| [xy]="[^"]*"')
_DIGITS = re.compile(r"(?<=\.\d\d)\d+")
"""In an SVG: where lengths in points stand, and what of them nobody sees, which is a sixth of its bytes."""
MOST_UPDATES = 8
"""Updates that `update_cost` looks ahead."""
Draw = Callable[[Results], Figure]
Curve = Sequence[Sequence[float]]
"""Points of a curve: share of the steps done (0 to 1) or step, and loss (nats), with its interval or without."""


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
    geometry = results.folder / "geometry.json"
    measured = geometry.is_file()  # not while a study is unfinished
    wanted: dict[str, tuple[object, Draw]] = {
        "frontier": (results.interpolation and results.domains[1:] and experiments.arms(results), frontier),
        "model_means": (True, model_means),
        "task_deltas": (True, task_deltas),
        "training_losses": (True, training_losses),
        "task_vector_geometry": (measured, lambda _: angles_and_sizes(read_json_object(geometry))),
        "layer_updates": (measured, lambda _: layer_heat_map(read_json_object(geometry))),
        "schedule_strips": (results.schedules, schedule_strips),
        "schedule_comparison": (results.schedules, schedule_comparison),
        "schedule_losses": (results.schedules, schedule_losses),
        "incremental_comparison": (results.experiments.incremental.models, incremental_comparison),
        "update_cost": (experiments.lifetime_costs(results, 1), update_cost),
        "granularity_comparison": (experiments.granularity_merges(results), granularity_comparison),
        "method_comparison": (experiments.method_groups(results), method_comparison),
        "variant_comparison": (len(results.experiments.variants) > 1, variant_comparison),
        "core_ratio_sweep": (experiments.sweep(results, "core_ratios"), core_ratio_sweep),
        "merge_weight_sweep": (experiments.sweep(results, "weights"), merge_weight_sweep),
        "regime": ((results.folder / REGIME).is_file(), regime),
        "interaction": (
            experiments.read_interaction(results),
            lambda found: interaction_heat_map(*(experiments.read_interaction(found) or ())),
        ),
    }
    return {name: draw for name, (has, draw) in wanted.items() if has}


def write_figures(results: Results, out: Path, figures: Mapping[str, Draw]) -> list[Path]:
    """Write every figure as ``<name>.svg`` into ``out``, without a date and to a hundredth of a point."""
    written = []
    with mpl.rc_context(panels.STYLE):
        for name, draw in figures.items():
            drawing = io.StringIO()
            draw(results).savefig(drawing, format="svg", metadata={"Date": None})
            written.append(out / f"{name}.svg")
            small = drawing.getvalue().replace("DejaVuSans-", "g")  # ids of glyphs, one for every letter drawn
            write_text(written[-1], _PLACES.sub(lambda found: _DIGITS.sub("", found[0]), small))
    return written


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
    text = f"mean score x 100, {interval_text(results)}; blue: trained, orange: merged; dashed: {results.reference}"
    colours = [panels.model_colour(results.study, name) for name in frame["model"]]
    titles = [_title(domain, results.tasks(domain)) for domain in results.domains]
    figure, axes = panels.row_panels(frame["model"], titles, text)
    for axis, domain in zip(axes, results.domains, strict=True):
        panels.intervals(axis, frame, domain, colours, line=100 * results.domain_mean(results.reference, domain).value)
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
    compared = [member != baseline for member, baseline in results.schedules.items()]
    frame = schedule_table(results)[compared]
    return _differences(results, frame, [*frame.get("member", ())], "batch-level shuffling", "shuffling")


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
    return _differences(results, frame, frame["granularity"] + "\n" + frame["model"])


def variant_comparison(results: Results) -> Figure:
    """The BOOM variants: paired difference to the reference in and out of domain, and the cost."""
    frame = variant_table(results)
    return _differences(results, frame, frame["ratios"] + ", " + frame["weights"] + "\n" + frame["model"])


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
        label = group["method"].where(
            ~group["method"].duplicated(keep=False), group["method"] + ", " + group["parameters"]
        )
        label += (group["model"] == group["multislerp"]).map({True: " (compared with)", False: ""})
        head = pd.DataFrame({"label": [f"{group['merged'].iloc[0]}:"]})  # a row of its own, without a model
        frames += [head, group.assign(label=label)]
    frame = pd.concat(frames, ignore_index=True)
    return _differences(results, frame, frame["label"])


def _differences(
    results: Results, frame: pd.DataFrame, labels: Iterable[str], said: str = "", baseline: str = ""
) -> Figure:
    """A panel of paired differences a domain, and one of what training cost where the table says it.

    Args:
        results: Of the study.
        frame: A table with columns ``<domain> minus <baseline>``.
        labels: Of its rows.
        said: What the baseline is called; else it is the reference.
        baseline: As the columns have it.
    """
    cost = ["passes over the corpus"] if "corpus passes" in frame else []
    hollow = "hollow: inconclusive, the interval includes 0"
    text = f"points minus {said or results.reference}, {interval_text(results)}; {hollow}"
    titles = [_title(domain, results.tasks(domain)) for domain in results.domains]
    figure, axes = panels.row_panels(labels, titles + cost, text)
    for axis, domain in zip(axes, results.domains, strict=False):
        column, colours = (
            f"{domain} minus {baseline or results.reference}",
            [panels.DOMAIN_COLOURS[domain]] * len(frame),
        )
        panels.intervals(axis, frame, column, colours, line=0, hollow=True)
    if cost:
        panels.bars(axes[-1], frame["corpus passes"], ["#BBBBBB"] * len(frame))
        axes[-1].axvline(results.cost(results.reference), color=GREY, lw=0.9, ls="--")
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
    frame, groups = _updates(results), results.task_groups
    kinds = {"existing": GREY, UPDATES["retrained"]: GREEN, UPDATES["merged"]: ORANGE}
    colours = [kinds.get(kind, BLUE) for kind in frame["kind"]]
    titles = [*(_title(group, tasks) for group, tasks in groups.items()), "examples to train"]
    text = f"mean score x 100, {interval_text(results)}; dashed: retrained; grey: before the new data"
    labels = [_update_label(row) for row in frame.reset_index().to_dict("records")]
    figure, axes = panels.row_panels(labels, titles, text)
    for axis, group in zip(axes, groups, strict=False):
        panels.intervals(axis, frame, group, colours, line=frame[group].get(results.retrained) if len(frame) else None)
    panels.bars(axes[-1], frame["examples to train"], colours, "{:,.0f}")
    return figure


def _updates(results: Results) -> pd.DataFrame:
    """The table of updates by model, with its columns also where there are none."""
    columns = ["model", "kind", "old data in the update", "weight", "examples to train"]
    return pd.concat([pd.DataFrame(columns=columns), incremental_table(results)]).set_index("model")


def _update_label(row: Mapping[Any, Any]) -> str:
    """Name of a model, and what kind of update it is: colours alone would not say it."""
    word = {UPDATES["alone"]: "unmerged", UPDATES["continued"]: "continued"}.get(row["kind"], row["model"])
    parts = [word] if word != row["model"] else []
    if row["kind"] != UPDATES["retrained"] and pd.notna(row["old data in the update"]):
        parts.append(f"{100 * row['old data in the update']:g} % old")
    parts += [f"weight {row['weight']:.2g}"] if pd.notna(row["weight"]) else []
    return f"{row['model']} ({', '.join(parts)})" if parts else str(row["model"])


def task_deltas(results: Results) -> Figure:
    """Paired difference of every average of members to the reference on every task; a star where it excludes zero.

    A study that merges nothing has its other models there.
    """
    others = [model for model in results.models if model not in ("random", results.reference)]
    models = [*results.experiments.averages] or others
    tasks = [task for domain in results.domains for task in results.tasks(domain)]
    found = [[results.difference(model, results.reference, [task]) for model in models] for task in tasks]
    points = np.array([[100 * estimate.value for estimate in row] for row in found]).reshape(len(tasks), len(models))
    stars = np.array([[estimate.excludes_zero for estimate in row] for row in found]).reshape(points.shape)
    figure, axis = panels.matrix(points, (tasks, models), "{:+.1f}", "points", stars=stars)
    axis.axhline(len(results.tasks(results.domains[0])) - 0.5, color="black", lw=1.2)
    axis.set_title(f"minus {results.reference}; above the line: {results.domains[0]}", loc="left")
    figure.supxlabel(f"* the {interval_text(results)} leaves out 0", fontsize=8)
    return figure


def update_cost(results: Results) -> Figure:
    """All training so far over the number of updates, with a ring where an update's way becomes cheaper for good."""
    costs = experiments.lifetime_costs(results, MOST_UPDATES)
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axis, again = figure.subplots(), costs["retrain on everything"]
    for number, (name, passes) in enumerate(costs.items()):
        cheaper = next((k for k in range(1, len(passes)) if passes[k] < again[k]), None)
        said = "" if passes is again else f": never cheaper in {MOST_UPDATES}"
        said = f": cheaper from update {cheaper} on" if cheaper else said
        axis.plot(passes, label=name + said, lw=1.4, marker=panels.MARKERS[number], ms=4, **panels.line_style(number))
        if cheaper:
            axis.plot(cheaper, passes[cheaper], marker="o", ms=13, mfc="none", mec="black", mew=1.1, ls="")
    axis.set_xlabel("updates with new data")
    axis.set_ylabel("passes over the old corpus, all training so far")
    axis.set_ylim(bottom=0)
    axis.grid(lw=0.4, alpha=0.5)
    panels.legend(figure, [axis], 2)
    return figure


# --- sweeps -----------------------------------------------------------------------------------------------------------


def core_ratio_sweep(results: Results) -> Figure:
    """Old, new and other tasks of merged updates against the share of the old data in the update."""
    return _sweep(results, "core_ratios", "old data in the update", "share of the old data in the update")


def merge_weight_sweep(results: Results) -> Figure:
    """Old, new and other tasks of merged updates against the weight of the update."""
    return _sweep(results, "weights", "weight", "weight of the update in the merge")


def _sweep(results: Results, key: str, varied: str, label: str) -> Figure:
    """A panel a group of tasks: means of merged updates by what is varied, and lines of what they are compared with."""
    frame = _updates(results)
    titles = [_title(group, tasks) for group, tasks in results.task_groups.items()]
    figure, axes = panels.curve_panels(titles, f"{label}; bars: {interval_text(results)}", "mean score x 100", 3)
    of_kind = {kind: frame[frame["kind"] == UPDATES.get(kind, kind)] for kind in ("continued", "retrained", "existing")}
    continued = of_kind["continued"].dropna(subset=varied).sort_values(varied)
    merged = frame.loc[[update.model for update in experiments.sweep(results, key)]]
    for axis, group in zip(axes, results.task_groups, strict=True):
        for rows, name, look in ((merged, "merged update", "o-"), (continued, "existing model trained on", "s:")):
            if len(rows):
                errors = [rows[group] - rows[f"{group} low"], rows[f"{group} high"] - rows[group]]
                axis.errorbar(rows[varied].astype(float), rows[group], errors, fmt=look, ms=5, capsize=3, label=name)
        for kind, colour in (("retrained", GREEN), ("existing", GREY)):
            for model, mean in of_kind[kind][group].items():
                axis.axhline(mean, color=colour, ls="--", lw=1.2, label=f"{kind} ({model})")
    panels.legend(figure, axes)
    return figure


def _title(name: str, tasks: Sequence[str]) -> str:
    return f"{name} ({len(tasks)} task{'s' if len(tasks) > 1 else ''})"


def interval_text(results: Results) -> str:
    """What intervals are, for an axis."""
    return f"{100 * results.confidence:g} % interval over {results.levels}"


# --- training ---------------------------------------------------------------------------------------------------------


def training_losses(results: Results) -> Figure:
    """Training loss of every member of `Experiments.sampled`, one panel a dataset, over the share of its steps."""
    return _losses(results, results.experiments.sampled, "share of steps done")


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
    curves: dict[str, dict[str, Any]] = {}
    for member in members:
        log = pd.DataFrame(results.training_log(member), columns=["step", "dataset", "loss"])
        last = max(1, len(log) - 1) if unit.startswith("share") else 1
        curves[member] = {
            str(name): np.stack([rows["step"] / last, rows["loss"].rolling(7, 1, center=True).mean()], axis=1)
            for name, rows in log.groupby("dataset")
        }
    figure = _curves(curves, unit, "InfoNCE loss (nats), running mean of 7 steps", 5)
    for axis in figure.axes:
        axis.set_ylim(bottom=0)
    return figure


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
    return _curves(losses, "share of steps done; bands: intervals over batches", "InfoNCE loss (nats)", 4)


def _curves(losses: Mapping[str, Mapping[str, Any]], xlabel: str, ylabel: str, columns: int) -> Figure:
    """A panel a dataset, a line a model, with a band where points have an interval."""
    datasets = sorted({dataset for curves in losses.values() for dataset in curves})
    figure, axes = panels.curve_panels(datasets, xlabel, ylabel, columns)
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, (model, curves) in enumerate(losses.items()):
            if dataset in curves:
                x_P, y_P, *band = np.array(curves[dataset], dtype=np.float64).T
                look = panels.line_style(number) | ({"marker": "osD^vPX"[number % 7], "ms": 3.2} if band else {})
                axis.plot(x_P, y_P, label=model, lw=1.2, **look)
                if band:
                    axis.fill_between(x_P, *band, color=look["color"], alpha=0.18, lw=0)
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
    colours, longest = panels.colours_for(len(datasets)), max([1, *map(len, sequences.values())])
    cells = np.full((max(1, len(sequences)), longest), np.nan)
    for row, sequence in zip(cells, sequences.values(), strict=False):
        row[: len(sequence)] = [datasets.index(dataset) for dataset in sequence]
    figure = Figure(figsize=(8, min(HEIGHT, 0.32 * len(sequences) + 1.0)), layout="constrained")
    axis = figure.subplots()
    look: dict[str, Any] = {"cmap": ListedColormap(colours or ["white"]), "vmin": -0.5, "vmax": len(datasets) - 0.5}
    axis.imshow(cells, extent=(0, longest, len(cells) - 0.5, -0.5), aspect="auto", interpolation="nearest", **look)
    axis.set_yticks(range(len(sequences)), list(sequences))
    axis.hlines(np.arange(1, len(cells)) - 0.5, 0, longest, color="white", lw=5)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("step")
    for dataset, colour in zip(datasets, colours, strict=True):
        axis.plot([], [], "s", ms=7, color=colour, label=dataset.replace("_", " "))
    panels.legend(figure, [axis], 4)
    return figure


# --- weights and datasets ---------------------------------------------------------------------------------------------


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
    panels.coloured_table(left, angles_MM, (names, names), "{:.0f}", scale=(0, max(90.0, np.nanmax(angles_MM))))
    left.set_title("angle of task vectors, degrees")
    panels.coloured_table(middle, distances_MM, (names, names), "{:.1f}", scale=(0, np.nanmax(distances_MM) or 1))
    middle.set_title("distance, % of |base|")
    panels.bars(right, sizes.tolist(), [BLUE] * len(names))
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
    sizes_LM = 100 * np.array(geometry["by_layer"], dtype=float)
    names, scale = (geometry["layers"], geometry["members"]), (0, sizes_LM.max() or 1)
    figure, axis = panels.matrix(sizes_LM, names, "{:.1f}", "% of the base's length there", scale=scale)
    axis.set_title("update by layer")
    return figure


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
    width, height = min(WIDTH, 4.6 + 0.6 * size), min(HEIGHT, 2.6 + 0.5 * size)
    figure = Figure(figsize=(width, height), layout="constrained")
    tree, axis = figure.subplots(1, 2, sharey=True, width_ratios=(1, max(1.5, width - 3.5)))
    _draw_tree(tree, found)
    shown = np.ma.array(values, mask=np.eye(size, dtype=bool))
    number = "{:+.2f}" if np.abs(values).max() >= 0.1 else "{:+.3f}"
    image = panels.coloured_table(axis, shown, (names, names), number, stars=(low > 0) | (high < 0))
    labels = np.array([found.labels[leaf] for leaf in order])
    for row in np.flatnonzero(labels[1:] != labels[:-1]) + 0.5:
        axis.axhline(row, color="black", lw=1.4)
        axis.axvline(row, color="black", lw=1.4)
    axis.tick_params(labelleft=True)
    axis.set_title("mean of both directions", loc="left")
    figure.colorbar(image, ax=axis, label="nats; - synergy, + conflict", fraction=0.05, pad=0.02)
    figure.suptitle("Held-out loss: trained together minus apart", fontsize=10)
    counts = " to ".join(str(count) for count in sorted({min(interaction.batches), max(interaction.batches)}))
    text = f"* the {100 * interaction.confidence:g} % interval over {counts} held-out batches leaves out 0"
    figure.supxlabel(f"{text}; lines: {len(found.groups)} cluster(s)", fontsize=8)
    return figure


def _draw_tree(axis: Axes, found: Clusters) -> None:
    """The tree on its side, leaves at the rows of the matrix; what is joined within clusters is dark."""
    from scipy.cluster.hierarchy import dendrogram

    linkage, size = found.linkage.copy(), len(found.datasets)
    gap = 0.08 * (linkage[-1, 2] or abs(found.shift) or 1.0)  # so that the first join, at no distance, is seen too
    linkage[:, 2] += gap
    cut = np.append(linkage[:, 2], np.inf)[size - len(found.groups)]
    drawn = dendrogram(linkage, no_plot=True)
    for ys, xs in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        within = xs[1] < cut
        look: dict[str, Any] = (
            {"color": "black", "lw": 1.4} if within else {"color": GREY, "lw": 1.0, "ls": (0, (3, 2))}
        )
        axis.plot(np.array(xs) - gap + found.shift, (np.array(ys) - 5) / 10, **look)
    axis.invert_xaxis()
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelleft=False)
    axis.set_xlabel("joined at (nats)", fontsize=8)
    axis.locator_params(axis="x", nbins=3)
    axis.tick_params(axis="x", labelsize=7)
