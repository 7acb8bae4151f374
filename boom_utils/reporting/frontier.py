"""Every arm of a study in the plane of its two means, in and out of domain, with what it cost to train.

Where a study has an interpolation curve (models on the line from the base through a trained one, which cost no further
training), it is drawn too, and beside it how far each arm lies above it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting import panels
from boom_utils.reporting.controls import OUTSIDE, equal_cost_table
from boom_utils.reporting.experiments import arms, granularity_merges
from boom_utils.reporting.results import DOMAINS, Results
from boom_utils.reporting.tables import estimate_columns

_LABELLED = (0.2, 0.5, 0.7)
"""Shares that are written beside the curve."""
_PASSES = (1, 3, 5)
"""Costs that the legend shows."""
_AREA = 22
"""Square points of a marker, a pass of training."""
_KINDS = {panels.BLUE: "full corpus", panels.ORANGE: "BOOM", panels.SKY: "trained", panels.AMBER: "merged"}
_SURPLUS = f"{OUTSIDE} minus curve"
_ENDS = [f"{DOMAINS[0]} low", f"{DOMAINS[0]} high"]
_BEYOND = " \N{DAGGER}"
"""Marks arms whose other mean the curve never has."""


def shown_arms(results: Results) -> list[str]:
    """The arms of the plane: those that a study declares, else the full corpus, BOOM and what may replace it."""
    known = results.experiments
    beside = [known.full, *known.averages, *granularity_merges(results)]
    return arms(results) or [name for name in dict.fromkeys(beside) if name] if results.domains[1:] else []


def frontier(results: Results) -> Figure:
    """Mean in against mean out of domain of every arm, with its intervals and its cost.

    Beside it, where there is an interpolation curve, how far each arm lies above the curve out of domain, by its cost.

    Args:
        results: Of a finished study with tasks in and out of domain.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.
    """
    curve, shown = [name for _, name in results.interpolation], shown_arms(results)
    rows = _surplus_rows(results) if curve else pd.DataFrame()
    figure = panels.new_figure(9.6, max(5.0 if curve else 4.2, 1.4 + 0.22 * len(rows)))
    left, *right = figure.subplots(1, 2 if curve else 1, width_ratios=(1.7, 1)[: 1 + bool(curve)], squeeze=False)[0]
    base = ["base"] if "base" in results.models else []
    means = pd.DataFrame({name: _means(results, name) for name in dict.fromkeys([*curve, *base, *shown])}).T
    _draw_plane(left, means, results)
    for axis in right:
        _draw_surplus(axis, rows, results)
    panels.legend(figure, [left], 5)
    sizes = [left.scatter([], [], s=_AREA * passes, color="#AAAAAA") for passes in _PASSES]
    names = [f"{passes} pass{'' if passes == 1 else 'es'} over the corpus" for passes in _PASSES]
    figure.legend(sizes, names, ncols=3, loc="outside lower center")
    text = f"{100 * results.confidence:g} % interval over {results.levels}\ncut at the frame"
    text += "; pale: fewer seeds than full" if any(_fewer_seeds(results, name) for name in shown) else ""
    left.set_title(f"bars{' and band' if curve else ''}: {text}", loc="left", fontsize="small")
    _label(left, means, results)
    return figure


def _means(results: Results, model: str) -> dict[str, float]:
    """The columns of its mean in every domain.

    Rows differ between seeds, so a model that has not the seeds of the full run stands where it is from that, over the
    seeds that both have.
    """
    found, full = dict[str, float](), results.full
    for domain in DOMAINS:
        mean = results.domain_mean(model, domain)
        if full and results.own_rows and _fewer_seeds(results, model):
            there = results.domain_mean(full, domain).value
            there += results.difference(model, full, results.tasks(domain)).value
            mean = Estimate(there, there + mean.low - mean.value, there + mean.high - mean.value)
        found |= estimate_columns(domain, mean)
    return found


def _fewer_seeds(results: Results, model: str) -> bool:
    """Whether the full run has seeds that a trained model lacks."""
    full = [results.full] if results.full else []
    return bool(results.trained(model)) and len(results.common_seeds([model, *full])) < len(results.common_seeds(full))


def _draw_plane(axis: Axes, means: pd.DataFrame, results: Results) -> None:
    """The curve with its band, and the arms; the frame is as large as the means ask for, and cuts wide intervals."""
    x, y = DOMAINS
    line = means.loc[[name for _, name in results.interpolation]]
    axis.fill_between(line[x], line[f"{y} low"], line[f"{y} high"], color=panels.GREY, alpha=0.13, lw=0)
    if len(line):
        label = f"base to {results.full}, interpolated: share of {results.full}"
        axis.plot(line[x], line[y], color=panels.GREY, lw=1.2, marker="o", ms=2.5, label=label)
    if "base" in means.index:
        look: dict[str, Any] = {"color": "black", "marker": "*", "ms": 12, "mew": 0, "ls": "", "label": "base"}
        axis.plot(*means.loc[["base"], [x, y]].to_numpy().T, zorder=3, **look)
    for name in shown_arms(results):
        row, colour = means.loc[name], panels.model_colour(results, name)
        ends = [[[row[domain] - row[f"{domain} low"]], [row[f"{domain} high"] - row[domain]]] for domain in DOMAINS]
        axis.errorbar(row[x], row[y], ends[1], ends[0], ecolor=colour, elinewidth=0.7, alpha=0.4, fmt="none", zorder=2)
        axis.scatter(row[x], row[y], **_marker(results, name), zorder=3)
    used = [(panels.model_colour(results, name), name in results.ensembles) for name in shown_arms(results)]
    for colour, kind in _KINDS.items():
        if (colour, False) in used:
            axis.scatter([], [], s=36, color=colour, label=kind)
    if results.ensembles:
        look = {"s": 36, "marker": "s", "facecolor": "white", "edgecolor": panels.PURPLE}
        axis.scatter([], [], label="ensemble: its cost is at inference, too", **look)
    for domain, letter, share in zip(DOMAINS, "xy", (0.1, 0.3), strict=True):
        room, number = share * (np.ptp(means[domain]) or 1.0), len(results.tasks(domain))
        limits = {f"{letter}lim": (means[domain].min() - room, means[domain].max() + room)}
        axis.set(**limits, **{f"{letter}label": f"{domain}: mean main score of {number} tasks (%)"})
    axis.grid()


def _marker(results: Results, model: str) -> dict[str, Any]:
    """A marker whose area is the cost: of an ensemble a hollow square, pale where seeds of the full run are missing."""
    colour, ensemble = panels.model_colour(results, model), model in results.ensembles
    pale = _fewer_seeds(results, model)
    look: dict[str, Any] = {"facecolor": "white" if ensemble else to_rgba(colour, 0.35 if pale else 1)}
    look |= {"edgecolor": colour if ensemble or pale else "white", "linewidth": 1.3 if ensemble else 0.8}
    return {"s": _AREA * max(results.cost(model), 0.5), "marker": "s" if ensemble else "o", **look}


def _surplus_rows(results: Results) -> pd.DataFrame:
    """The table of arms of equal cost, where they have a surplus; every cost has a row of its own as a heading."""
    frame = equal_cost_table(results)
    frame = frame[frame[_SURPLUS].notna()] if _SURPLUS in frame else frame[:0]
    beyond = frame["place on the curve"].str.startswith("beyond").map({True: _BEYOND, False: ""})
    frame = frame.assign(label=frame["model"] + beyond, cost=frame["corpus passes"].round(2))
    groups = [(f"{cost:g} pass{'' if cost == 1 else 'es'}:", rows) for cost, rows in frame.groupby("cost")]
    return pd.concat([part for head, rows in groups for part in (pd.DataFrame({"label": [head]}), rows)])


def _draw_surplus(axis: Axes, rows: pd.DataFrame, results: Results) -> None:
    names = rows["model"].fillna("")
    colours = [to_rgba(panels.model_colour(results, one), 0.5 if _fewer_seeds(results, one) else 1) for one in names]
    panels.label_rows(axis, [*rows["label"]])
    panels.intervals(axis, rows, _SURPLUS, colours, line=0)
    if results.study.get("seeds"):
        panels.column(axis, "seeds", ["" if np.isnan(count) else f"{count:g}" for count in rows["seeds"]])
    axis.set_title("above the curve out of domain", loc="left")
    axis.set_xlabel("points; hollow: the interval includes 0")


def _label(axis: Axes, means: pd.DataFrame, results: Results) -> None:
    """Names of the arms, and shares of the curve."""
    curve, shown = results.interpolation, shown_arms(results)
    labels = {name: name for name in means.index if name in (*shown, "base")}
    labels |= {name: f"{share:g}" for share, name in curve if share in _LABELLED and name not in labels}
    places = {text: tuple(means.loc[name, [*DOMAINS]]) for name, text in labels.items()}
    points = means.loc[[name for _, name in curve], [*DOMAINS]].to_numpy()
    way = np.linspace(0, max(0, len(points) - 1), 10 * len(points))
    along = np.stack([np.interp(way, range(len(points)), part) if curve else way for part in points.T], axis=1)
    bars = [
        (x, row[DOMAINS[1]])
        for _, row in means.loc[shown].iterrows()
        for x in np.linspace(row[_ENDS[0]], row[_ENDS[1]], 15)
    ]
    panels.label_points(axis, places, np.concatenate([along, np.array(bars)]), bold=results.experiments.boom)
