"""How far training again with another seed moves a score, measured on all models that have several seeds.

Three seeds of a pair of models say little of their spread (Student's quantile with two degrees of freedom is 4.3). So
it is measured on all models of a study together, by what they are made of. Every trained member moves the score by
itself, with one variance, the same for all of them; a merge moves by the mean of its members' moves, each with its
share of the weights. That is the first order: scores are taken to be linear in weights for moves as small as a seed's.
A merge of n members alike then has 1 / n of a member's variance, and what two models share is no part of their
difference. Seeds have nothing in common otherwise: each member of each seed draws its rows and its order anew.

The variance of a member is the sum of the models' variances over their seeds, divided by the sum of the variances that
one unit of a member's variance gives them. Models that share members say less together: the degrees of freedom are
Satterthwaite's. What a seed does to single queries is in the draws of queries too: intervals are a little too wide.

Shapes: M models, S seeds, K members, B bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boom_utils.artifacts import derive_seed
from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison, two_sided_p
from boom_utils.evaluation.statistics import Bootstrap

Shares = Mapping[str, float]
"""Trained member -> how much of its move is in a model's."""
_SUMS = ("task_arithmetic",)
"""Methods that do not divide weights by their sum."""


@dataclass(frozen=True)
class SeedSpread:
    """Variance of a score between training runs of one member that differ in nothing but their seed.

    Args:
        variance: Of one run of one member.
        freedom: Degrees of freedom behind it.
        seeds: Seeds of every model it was measured on.
    """

    variance: float
    freedom: float
    seeds: int


def shares_of(model: str, members: Mapping[str, Any], merges: Mapping[str, Any]) -> dict[str, float]:
    """What is trained in a model: its members, or those behind its merges and its start, with their shares.

    Args:
        model: A member, a merge, or something that nobody trained.
        members: Name -> facts; ``start`` is the model that its training began at, None for the base.
        merges: Name -> ``method``, ``members``, ``weights``; ``parameters`` of slerp.

    Returns:
        Shares; empty where nothing was trained.

    >>> merges = {"boom": {"method": "multislerp", "members": ["half", "full"], "weights": [0.5, 1.5]}}
    >>> shares_of("boom", {"half": {"start": None}, "full": {"start": None}}, merges)
    {'half': 0.25, 'full': 0.75}
    """
    if model in members:
        start = members[model].get("start")
        return {model: 1.0} | (shares_of(start, members, merges) if start else {})
    found: dict[str, float] = {}
    facts = merges.get(model, {"members": []})
    for part, weight in zip(facts["members"], _weights(facts), strict=True):
        for name, share in shares_of(part, members, merges).items():
            found[name] = found.get(name, 0.0) + weight * share
    return found


def _weights(merge: Mapping[str, Any]) -> list[float]:
    if not merge["members"]:
        return []
    if (second := merge.get("parameters", {}).get("t")) is not None:
        return [1 - second, second]
    total = 1.0 if merge["method"] in _SUMS else sum(merge["weights"])
    return [weight / total for weight in merge["weights"]]


def moved(ours: Shares, theirs: Shares) -> float:
    """Variance of the difference of two models of one seed, in units of a member's; of one model beside nothing.

    >>> moved({"a": 1.0}, {"b": 1.0}), moved({"a": 0.5, "b": 0.5}, {"a": 1.0}), moved({"a": 1.0}, {})
    (2.0, 0.5, 1.0)
    """
    return sum((ours.get(name, 0.0) - theirs.get(name, 0.0)) ** 2 for name in sorted({*ours, *theirs}))


def seed_spread(scores_MS: np.ndarray, shares: Sequence[Shares]) -> SeedSpread:
    """The spread of one member, from models with several seeds.

    Args:
        scores_MS: Score of every model and seed.
        shares: What each model is made of.

    Returns:
        Its variance, and what it is known from.

    Raises:
        ResultsError: There are fewer than two seeds, no model, or one that nobody trained.
    """
    models, seeds = scores_MS.shape
    if models < 1 or seeds < 2 or not all(shares):
        raise ResultsError(
            "a spread of seeds needs a trained model with two seeds, at least", found=f"{models} models, {seeds} seeds"
        )
    names = sorted({name for one in shares for name in one})
    shares_MK = np.array([[one.get(name, 0.0) for name in names] for one in shares])
    units_MM = shares_MK @ shares_MK.T  # covariances of the models, for members of variance 1
    variance = scores_MS.var(axis=1, ddof=1).sum() / np.trace(units_MM)
    freedom = (seeds - 1) * np.trace(units_MM) ** 2 / (units_MM**2).sum()
    return SeedSpread(float(variance), float(freedom), seeds)


def with_spread(found: Comparison, spread: SeedSpread, units: float, runs: int, bootstrap: Bootstrap) -> Comparison:
    """A comparison by queries alone, with seeds as a second level.

    Args:
        found: Of the mean of all runs.
        spread: Of one member.
        units: How much of it is in the difference of one run a side, or in one run of a mean: see `moved`.
        runs: Seeds of each.
        bootstrap: As of ``found``.
    """
    generator = np.random.default_rng(derive_seed(bootstrap.seed, "bootstrap", "spread of seeds"))
    variance = units * spread.variance
    moved_B = generator.standard_normal(bootstrap.draws) * math.sqrt(variance / runs)
    drawn = replace(found.drawn, by_seeds=moved_B, seed_freedom=spread.freedom)
    return replace(
        found,
        estimate=bootstrap.estimate(found.estimate.value, drawn.at(bootstrap.confidence)),
        p_value=drawn.p_value(two_sided_p),
        levels=("queries", "seeds", *found.levels[1:]),
        seeds=runs,
        seed_variance=variance,
        seed_freedom=spread.freedom / (spread.seeds - 1),
        drawn=drawn,
        pooled_freedom=spread.freedom,
    )
