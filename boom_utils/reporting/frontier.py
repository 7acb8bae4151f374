"""The figure of a study of controls: what each model has in and out of its domain, beside the interpolation curve.

The curve is that of models on the line from the base through a trained one, which cost no further training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting import panels
from boom_utils.reporting.experiments import arms
from boom_utils.reporting.results import DOMAINS, Results
from boom_utils.reporting.tables import estimate_columns

_LABELLED = (0.2, 0.5, 0.7)
"""Shares that are written beside the curve."""
_PASSES = (1, 3, 5)
"""Costs that the legend shows."""
_AREA = 22
"""Square points of a marker, a pass of training."""
_SURPLUS = "surplus"
_BEYOND = "\N{DAGGER}"
"""Marks arms whose other mean the curve never has."""


def frontier(results: Results) -> Figure:
    """Mean in against mean out of domain: the interpolation curve, and every arm with its intervals and its cost.

    Beside it, how far each arm lies above the curve out of domain, by what it cost.

    Args:
        results: Of a finished study that has an interpolation curve.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.
    """
    rows = _surplus_rows(results)
    figure = Figure(figsize=(8.8, min(panels.HEIGHT, max(4.8, 1.4 + 0.22 * len(rows)))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.9, 1))
    means = pd.DataFrame({name: _means(results, name) for name in _shown(results)}).T
    _draw_curve(left, means, results.interpolation)
    _draw_arms(left, means, results)
    colours = [panels.model_colour(results.study, name) for name in rows["model"].fillna("")]
    panels.intervals(right, rows, _SURPLUS, colours, line=0, hollow=True)
    right.set_yticks(range(len(rows)), rows["label"], fontsize=8)
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.tick_params(axis="y", length=0)
    right.set_title("surplus out of domain")
    right.set_xlabel("points above the curve")
    look: dict[str, Any] = {"loc": "outside upper center", "frameon": False, "fontsize": 8}
    figure.legend(*_legend(results), ncols=3, handler_map={tuple: HandlerTuple(None)}, **look)
    text = f"bars and band: {100 * results.confidence:g} % interval over {results.levels}"
    figure.supxlabel(text, fontsize=8)
    _label(left, means, results)
    return figure


def _shown(results: Results) -> list[str]:
    return [*dict.fromkeys([*(name for _, name in results.interpolation), *arms(results)])]


def _means(results: Results, model: str) -> dict[str, float]:
    """The columns of its mean in every domain.

    Rows differ between seeds, so a model that has not the seeds of the full run stands where it is from that, over the
    seeds that both have.
    """
    found, full = dict[str, float](), results.full
    others = results.own_rows and full and results.common_seeds([model]) != results.common_seeds([full])
    for domain in DOMAINS:
        mean = results.domain_mean(model, domain)
        if others and full and results.trained(model):
            there = results.domain_mean(full, domain).value
            there += results.difference(model, full, results.tasks(domain)).value
            mean = Estimate(there, there + mean.low - mean.value, there + mean.high - mean.value)
        found |= estimate_columns(domain, mean)
    return found


def _draw_curve(axis: Axes, means: pd.DataFrame, curve: Sequence[tuple[float, str]]) -> None:
    points = means.loc[[name for _, name in curve]]
    x, y = (points[domain] for domain in DOMAINS)
    axis.fill_between(x, points[f"{DOMAINS[1]} low"], points[f"{DOMAINS[1]} high"], color=panels.GREY, alpha=0.15, lw=0)
    axis.plot(x, y, color=panels.GREY, lw=1.2, marker="o", ms=2.5)
    axis.plot(x.iloc[:1], y.iloc[:1], color="black", marker="*", ms=11, mew=0, ls="")
    axis.set_xlabel("in-domain mean x 100")
    axis.set_ylabel("out-of-domain mean x 100")
    axis.grid(lw=0.4, alpha=0.5)


def _draw_arms(axis: Axes, means: pd.DataFrame, results: Results) -> None:
    for name in arms(results):
        row, colour = means.loc[name], panels.model_colour(results.study, name)
        x, y = (row[domain] for domain in DOMAINS)
        ends = [[[row[domain] - row[f"{domain} low"]], [row[f"{domain} high"] - row[domain]]] for domain in DOMAINS]
        axis.errorbar(x, y, ends[1], ends[0], ecolor=colour, elinewidth=0.7, alpha=0.55, fmt="none", zorder=2)
        axis.scatter(x, y, **_marker(results.cost(name), colour, hollow=name in results.ensembles), zorder=3)


def _marker(passes: float, colour: str, hollow: bool) -> dict[str, Any]:
    """A marker whose area is the cost; of an ensemble a hollow square."""
    look = {"facecolor": "white" if hollow else colour, "edgecolor": colour if hollow else "white"}
    return {
        "s": _AREA * max(passes, 0.5),
        "marker": "s" if hollow else "o",
        "linewidth": 1.3 if hollow else 0.6,
        **look,
    }


def _surplus_rows(results: Results) -> pd.DataFrame:
    """Surplus of every arm, the highest first among those of one cost, which has a row of its own without a number."""
    found = list[dict[str, Any]]()
    for name in arms(results)[1:]:
        surplus = results.surplus(name, DOMAINS[1])
        estimate = surplus.measured.estimate(results.confidence)
        label = f"{name} {_BEYOND}" if surplus.beyond else name
        columns = estimate_columns(_SURPLUS, estimate)
        found.append({"model": name, "label": label, "cost": round(results.cost(name), 2), **columns})
    rows: list[dict[str, Any]] = []
    for cost in sorted({one["cost"] for one in found}):
        rows.append({"label": f"{cost:g} pass{'' if cost == 1 else 'es'}:"})
        rows += sorted((one for one in found if one["cost"] == cost), key=lambda one: -one[_SURPLUS])
    return pd.DataFrame(rows)


def _legend(results: Results) -> tuple[list[Any], list[str]]:
    """What sizes, colours and marks mean."""

    def mark(**look: Any) -> Line2D:
        return Line2D([], [], **{"ls": "", "marker": "o", "mew": 0, **look})

    kinds = {"base": mark(marker="*", color="black", ms=9)}
    kinds["base to full, interpolated"] = mark(color=panels.GREY, ls="-", lw=1.2, ms=2.5)
    kinds |= {"trained": mark(color=panels.BLUE, ms=6), "merged": mark(color=panels.ORANGE, ms=6)}
    if results.ensembles:
        hollow = {"mfc": "white", "mec": panels.GREEN, "mew": 1.3, "ms": 6}
        kinds["ensemble: its cost is at inference, too"] = mark(marker="s", **hollow)
    sizes = tuple(mark(color="#AAAAAA", ms=(_AREA * passes) ** 0.5) for passes in _PASSES)
    return [*kinds.values(), sizes], [*kinds, f"{', '.join(map(str, _PASSES))} passes of training"]


def _label(axis: Axes, means: pd.DataFrame, results: Results) -> None:
    """Names of the arms, and shares of the curve."""
    curve, shown = results.interpolation, arms(results)
    labels = {name: name for name in shown} | {"base": "base", str(results.full): f"{results.full} = 1"}
    labels |= {name: f"{share:g}" for share, name in curve if share in _LABELLED and name not in labels}
    places = {text: tuple(means.loc[name, [*DOMAINS]]) for name, text in labels.items()}
    points = means.loc[[name for _, name in curve], [*DOMAINS]].to_numpy()
    way = np.linspace(0, len(points) - 1, 10 * len(points))
    along = np.stack([np.interp(way, range(len(points)), column) for column in points.T], axis=1)
    ends = [
        (row[x] if domain == DOMAINS[0] else row[DOMAINS[0]], row[x] if domain == DOMAINS[1] else row[DOMAINS[1]])
        for _, row in means.loc[shown].iterrows()
        for domain in DOMAINS
        for x in (f"{domain} low", f"{domain} high")
    ]
    panels.label_points(axis, places, np.concatenate([along, np.array(ends)]), bold=results.experiments.boom)
