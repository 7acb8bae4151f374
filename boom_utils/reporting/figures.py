"""Figures: one function each, from a results folder; the same data give the same bytes.

Colours are those of Okabe and Ito, safe for colour-blind readers; markers repeat what colours say, for print.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from boom_utils.artifacts import atomic_path
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.results import DOMAINS, Results, read_json_object, read_training_log

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "boom",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "savefig.dpi": 150,
}


def model_means(results: Results) -> Figure:
    """Mean score of every model in and out of domain, with intervals; a line marks the reference."""
    figure = Figure(figsize=(8, 0.34 * len(results.models) + 1.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, domain in zip(axes, DOMAINS, strict=True):
        found = [results.domain_mean(model, domain) for model in results.models]
        _dots(axis, found, [_colour(results, model) for model in results.models])
        axis.axvline(100 * found[results.models.index(results.reference)].value, color=GREY, lw=0.8, ls="--", zorder=0)
        axis.set_title(f"{domain} ({len(results.tasks(domain))} tasks)")
        axis.set_xlabel(f"mean score x 100, {_interval(results)}")
    axes[0].set_yticks(range(len(results.models)), results.models)
    axes[0].invert_yaxis()
    return figure


def task_deltas(results: Results) -> Figure:
    """Difference of every merged model to the reference on every task, paired, with intervals."""
    merges, tasks = list(results.study["merges"]), [task["name"] for task in results.study["tasks"]]
    figure = Figure(figsize=(8, 0.42 * len(tasks) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(merges), sharey=True, sharex=True, squeeze=False)[0]
    for axis, merge in zip(axes, merges, strict=True):
        found = [results.difference(merge, results.reference, [task]) for task in tasks]
        _dots(axis, found, [BLUE if task in results.tasks("in-domain") else ORANGE for task in tasks])
        axis.axvline(0, color=GREY, lw=0.8, zorder=0)
        axis.set_title(f"{merge} minus {results.reference}")
        axis.set_xlabel(f"points, {_interval(results)}")
    labels = [f"{task['name']} ({'in' if task['domain'] == 'in-domain' else 'out'})" for task in results.study["tasks"]]
    axes[0].set_yticks(range(len(tasks)), labels)
    axes[0].invert_yaxis()
    return figure


def training_losses(results: Results) -> Figure:
    """Training loss of every member (running mean of 7 steps), one panel a dataset, over the share of its steps."""
    logs = {member: read_training_log(results.folder, member) for member in results.study["members"]}
    datasets = sorted({line["dataset"] for log in logs.values() for line in log})
    figure = Figure(figsize=(2.1 * len(datasets), 2.6), layout="constrained")
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        for number, (member, log) in enumerate(logs.items()):
            points = [(line["step"] / max(1, len(log) - 1), line["loss"]) for line in log if line["dataset"] == dataset]
            x_N, y_N = np.array(points).reshape(-1, 2).T
            axis.plot(x_N, _running_mean(y_N), color=COLOURS[number % len(COLOURS)], lw=1.2, label=member)
        axis.set_title(dataset.replace("_", " "))
        axis.set_xlabel("share of steps done")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("InfoNCE loss (nats), running mean")
    axes[-1].legend(frameon=False, fontsize=7)
    return figure


def task_vector_geometry(results: Results) -> Figure:
    """Cosines between the members' task vectors, and the size of each update relative to the base."""
    stored = read_json_object(results.folder / "geometry.json")
    names, cosines_MM = stored["members"], np.asarray(stored["cosines"])
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    image = left.imshow(cosines_MM, vmin=0, vmax=1, cmap="cividis")
    for row, column in np.ndindex(*cosines_MM.shape):
        value = cosines_MM[row, column]
        left.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    left.set_xticks(range(len(names)), names)
    left.set_yticks(range(len(names)), names)
    left.set_title("cosine of task vectors (all weights)")
    figure.colorbar(image, ax=left, shrink=0.8)
    right.bar(names, 100 * np.asarray(stored["relative_updates"]), color=BLUE)
    right.set_title("size of the update")
    right.set_ylabel("|member - base| / |base|, %")
    return figure


def corpus_rows(results: Results) -> Figure:
    """Rows of the training datasets that each member's batches hold."""
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for member in results.study["members"]:
        for line in read_training_log(results.folder, member):
            rows[line["dataset"]][member] = rows[line["dataset"]].get(member, 0) + line["queries"]
    members = list(results.study["members"])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis, left = figure.subplots(), np.zeros(len(members))
    for number, (dataset, counts) in enumerate(sorted(rows.items())):
        width = np.array([counts.get(member, 0) for member in members])
        axis.barh(members, width, left=left, color=COLOURS[number % len(COLOURS)], label=dataset.replace("_", " "))
        left = left + width
    axis.invert_yaxis()
    axis.set_xlabel("examples trained on")
    figure.legend(frameon=False, fontsize=7, loc="outside upper center", ncols=len(rows))
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "model_means": model_means,
    "task_deltas": task_deltas,
    "training_losses": training_losses,
    "task_vector_geometry": task_vector_geometry,
    "corpus_rows": corpus_rows,
}


def write_figures(results: Results, out: Path) -> list[Path]:
    """Write every figure as ``<name>.svg`` and ``<name>.png`` into ``out``, without dates."""
    written = []
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
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
    axis.grid(axis="x", lw=0.4, alpha=0.5)


def _running_mean(y_N: np.ndarray, width: int = 7) -> np.ndarray:
    """Mean over a window around each step, shorter at both ends."""
    half = width // 2
    return np.array([y_N[max(0, n - half) : n + half + 1].mean() for n in range(len(y_N))])


def _colour(results: Results, model: str) -> str:
    if model in results.study["merges"]:
        return ORANGE
    return BLUE if model in results.study["members"] else GREY


def _interval(results: Results) -> str:
    return f"{100 * results.bootstrap.confidence:g} % interval over queries"
