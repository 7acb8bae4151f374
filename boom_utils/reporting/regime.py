"""In which regime of training a study was: how members' updates lie to one another, and how steps went.

``regime.json`` says, for every seed, how long the update (the difference from the base) of every model behind
`Experiments.frontier` is, and the cosines of these updates; the training log says what every step was like.

Shapes: M members of a merge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import place_on_curve
from boom_utils.reporting import panels
from boom_utils.reporting.experiments import arms
from boom_utils.reporting.results import DOMAINS, Results, read_json_object, run_name, run_of

REGIME = "regime.json"
SMALL_LOSS = 1e-3
"""Nats below which a step teaches next to nothing."""
CLIPPED = "steps clipped"
LEARNT = f"steps with loss below {SMALL_LOSS:g}"
_MEASURES = {
    "length": "length of the update, of full's",
    "cosine": "median cosine of members' updates",
    "effective": "effective number of members",
}


@dataclass(frozen=True)
class Updates:
    """What one seed of an arm was made of.

    Args:
        seed: Its number.
        cosines: (M * (M - 1) / 2,), between these updates.
        length: Of its own update over that of the full corpus' model; NaN where nothing was merged, as in an ensemble.
        effective: Effective number of members, see `effective_members`; NaN for one member.
    """

    seed: int
    cosines: np.ndarray
    length: float
    effective: float

    @property
    def cosine(self) -> float:
        """The median cosine; NaN for one member."""
        return float(np.median(self.cosines)) if len(self.cosines) else math.nan


def effective_members(weights_M: np.ndarray, lengths_M: np.ndarray, cosines_MM: np.ndarray) -> float:
    """How many equal members would average as much noise away as these do with their weights.

    Updates are a part that all share, whose square is the mean inner product of two of them, and noise of their own: a
    weighted mean keeps all of the first and the squares of the weights of the second. For members of equal length this
    is one over the sum of the squared weights.

    Args:
        weights_M: Shares, float (M,), with sum 1.
        lengths_M: Of the updates.
        cosines_MM: Between them.

    Returns:
        The number; NaN for one member, or where no noise is left to average.

    >>> effective_members(np.full(4, 0.25), np.ones(4), np.full((4, 4), 0.1))
    4.0
    """
    pairs_MM = np.outer(weights_M, weights_M) * (1 - np.eye(len(weights_M)))
    if not pairs_MM.sum():
        return math.nan
    shared = (pairs_MM * cosines_MM * np.outer(lengths_M, lengths_M)).sum() / pairs_MM.sum()
    noise_M = lengths_M**2 - shared
    before, after = float(weights_M @ noise_M), float(weights_M**2 @ noise_M)
    return round(before / after, 9) if before > 0 and after > 0 else math.nan


@dataclass(frozen=True)
class Seed:
    """How the models of one seed lie to the base.

    Args:
        number: Of the seed.
        places: Run -> its number among the K models.
        lengths: (K,), |update| / |base|.
        cosines: (K, K), between updates.
    """

    number: int
    places: Mapping[str, int]
    lengths: np.ndarray
    cosines: np.ndarray

    def place(self, model: str | None) -> int | None:
        """Number of a model's run with this seed; None where it has none."""
        return self.places.get(run_name(model or "", self.number))


def read_regime(results: Results) -> list[Seed]:
    """What is known of every seed; nothing where the study did not measure it.

    Raises:
        ResultsError: ``regime.json`` is no such document.
    """
    path = results.folder / REGIME
    if not path.is_file():
        return []
    try:
        return [
            Seed(
                int(run_of(one["members"][0])["seed"]),
                {name: place for place, name in enumerate(one["members"])},
                np.array(one["relative_updates"], dtype=float),
                np.array(one["cosines"], dtype=float),
            )
            for one in read_json_object(path)["seeds"]
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        fix = "run the study again"
        raise ResultsError("this is no geometry of arms", where=path, found=repr(error), fix=fix) from error


def updates_of(results: Results, seeds: Sequence[Seed], model: str) -> list[Updates]:
    """What each seed of an arm was made of, as far as all of it was measured."""
    shares = {name: share for (name, number), share in results.shares(model).items() if number == 0 and share}
    found = []
    for seed in seeds:
        places = [place for name in shares if (place := seed.place(name)) is not None]
        if not places or len(places) < len(shares) or run_name(model, seed.number) not in results.seeds(model):
            continue
        lengths, between = seed.lengths[places], seed.cosines[np.ix_(places, places)]
        own, full = seed.place(model), seed.place(results.full)
        length = math.nan if own is None or full is None else float(seed.lengths[own] / seed.lengths[full])
        weights = np.array([*shares.values()]) / sum(shares.values())
        effective = effective_members(weights, lengths, between)
        found.append(Updates(seed.number, between[np.triu_indices(len(places), 1)], length, effective))
    return found


def steps_exponent(results: Results, seeds: Sequence[Seed], members: Sequence[str]) -> float:
    """The power of the number of steps that lengths of updates go with, over members and seeds: 0.5 is a random walk.

    NaN where the members have one number of steps.
    """
    steps = {name: results.study["members"][name]["steps"] for name in members}
    places = [(seed, name, seed.place(name)) for seed in seeds for name in members]
    points = [(steps[name], seed.lengths[place]) for seed, name, place in places if place is not None]
    if len({count for count, _ in points}) < 2:
        return math.nan
    steps_N, lengths_N = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(steps_N, lengths_N, 1)[0])


def step_shares(results: Results, members: Sequence[str]) -> dict[str, float]:
    """Of all steps of some members with all their seeds, the share that was clipped, and that had next to no loss."""
    log = results.numbers.training
    rows = log[log["model"].isin([*members])]
    stated = {one["key"]: one["value"] for one in results.study.get("deviations", ())}
    most = stated.get("training.max_grad_norm")
    known = "grad_norm" in rows and most is not None and len(rows) > 0
    clipped = float((rows["grad_norm"] > float(str(most))).mean()) if known else math.nan
    return {CLIPPED: clipped, LEARNT: float((rows["loss"] < SMALL_LOSS).mean()) if len(rows) else math.nan}


def regime_table(results: Results) -> pd.DataFrame:
    """In which regime the arms were trained: angles and lengths of updates, and what steps were like.

    All seeds together. The first row is of all members that were trained on old data alone. Empty for a study that
    measured nothing for it.

    Args:
        results: Of a finished study.

    Returns:
        One row an arm with trained members.

    Raises:
        ResultsError: A file of the results is missing or damaged.
    """
    seeds, known = read_regime(results), results.study["members"]
    if not seeds:
        return pd.DataFrame()
    old = [name for name, facts in known.items() if facts["new_data"] is None]
    rows: list[dict[str, Any]] = [{"model": "all members", "members": len(old), "seeds": len(seeds)}]
    rows[0] |= step_shares(results, old)
    for model in arms(results):
        if found := updates_of(results, seeds, model):
            members = [name for name in results.behind(model) if name in known]
            row: dict[str, Any] = {"model": model, "members": len(members), "seeds": len(found)}
            row["length ~ steps to the"] = steps_exponent(results, seeds, members)
            rows.append(row | _lie_of(results, model, found) | step_shares(results, members))
    frame = pd.DataFrame(rows).round(4)
    return frame[[*frame.columns.drop([CLIPPED, LEARNT]), CLIPPED, LEARNT]]


def _lie_of(results: Results, model: str, found: Sequence[Updates]) -> dict[str, float]:
    """Angles, lengths and effective numbers of an arm, all seeds together."""
    pairs, lengths = np.concatenate([one.cosines for one in found]), np.array([one.length for one in found])
    row = {"length, full's is 1": lengths.mean(), "shortest": lengths.min(), "longest": lengths.max()}
    if len(pairs):
        row |= {"median cosine": np.median(pairs), "lowest cosine": pairs.min(), "highest cosine": pairs.max()}
        shares = np.array([share for (_, number), share in results.shares(model).items() if number == 0])
        row |= {"effective members by weights": shares.sum() ** 2 / (shares**2).sum()}
        row |= {"effective members by noise": np.mean([one.effective for one in found])}
    return {name: float(value) for name, value in row.items()}


def regime(results: Results) -> Figure:
    """Surplus over the interpolation curve out of domain, or over the full corpus, against angles and lengths.

    A point a seed of every arm that averages several members.

    Args:
        results: Of a finished study that has ``regime.json``.

    Returns:
        The figure.

    Raises:
        ResultsError: A file of the results is missing or damaged.
    """
    seeds, curve, full = read_regime(results), [name for _, name in results.interpolation], str(results.full)
    figure = panels.new_figure(9.6, 4.2)
    axes = figure.subplots(1, len(_MEASURES), sharey=True)
    for number, model in enumerate(arms(results)):
        common = results.common_seeds([model, full, *curve])
        found = [one for one in updates_of(results, seeds, model) if len(one.cosines) and one.seed in common]
        look: dict[str, Any] = {"color": panels.model_colour(results, model), "marker": panels.MARKERS[number % 14]}
        for axis, measure in zip(axes, _MEASURES, strict=True) if found else ():
            points = [(getattr(one, measure), 100 * _surplus(results, model, one.seed)) for one in found]
            axis.plot(*np.array(points).T, ls="", ms=5.5, alpha=0.85, label=model, **look)
    for axis, text in zip(axes, _MEASURES.values(), strict=True):
        axis.axhline(0, color=panels.GREY, lw=0.9, ls="--", zorder=0)
        axis.grid()
        axis.set_xlabel(text)
    axes[0].set_ylabel(f"out of domain, points above {'the curve' if curve else full}")
    panels.legend(figure, axes)
    return figure


def _surplus(results: Results, model: str, seed: int) -> float:
    """Of one seed, out of domain, over the curve of that seed, or over the full corpus where there is no curve."""
    curve = [name for _, name in results.interpolation] or [str(results.full)]
    runs = [results.run(name, seed) for name in (model, *curve)]
    held, gained = ([results.run_mean(run, results.tasks(domain)) for run in runs] for domain in DOMAINS)
    if not results.interpolation:
        return gained[0] - gained[1]
    place = place_on_curve(held[1:], gained[1:], held[0])
    first, second = (gained[1 + number] for number in place.between)
    return float(gained[0] - first - place.way * (second - first))
