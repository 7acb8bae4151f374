"""How far training again with another seed moves a score, measured on all models that have several seeds.

Three seeds of a pair of models say little of their spread (Student's quantile with two degrees of freedom is 4.3). So
it is measured on all models of a study together, by what they are made of. Every trained member moves the score by
itself, with one variance, the same for all of them; a merge moves by the mean of its members' moves, each with its
share of the weights. That is the first order: scores are taken to be linear in weights for moves as small as a seed's.
A merge of n members alike then has 1 / n of a member's variance, and what two models share is no part of their
difference. Merges of the same members with the same weights, by two methods, share all: of their difference no variance
by seeds is known, and a comparison has to say so.

The variance of a member is the sum of the models' variances over their seeds, divided by the sum of the variances that
one unit of a member's variance gives them. Models that share members say less together: the degrees of freedom are
Satterthwaite's. What a seed does to single queries is in the variance by queries too: intervals are a little too wide.

Shapes: M models, S seeds, K members.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from boom_utils.errors import ResultsError

Shares = Mapping[Any, float]
"""Trained member (of some seed) -> how much of its move is in a model's."""
_SUMS = ("task_arithmetic",)
"""Methods that do not divide weights by their sum."""


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
    facts = merges.get(model, {"members": []})
    return mean_shares(
        [
            (weight, shares_of(part, members, merges))
            for part, weight in zip(facts["members"], _weights(facts), strict=True)
        ]
    )


def mean_shares(parts: Sequence[tuple[float, Shares]]) -> dict[Any, float]:
    """Shares of several models added up, each with its weight."""
    found: dict[Hashable, float] = {}
    for weight, shares in parts:
        for name, share in shares.items():
            found[name] = found.get(name, 0.0) + weight * share
    return found


def _weights(merge: Mapping[str, Any]) -> list[float]:
    if not merge["members"]:
        return []
    if (second := merge.get("parameters", {}).get("t")) is not None:
        return [1 - second, second]
    total = 1.0 if merge["method"] in _SUMS else sum(merge["weights"])
    return [weight / total for weight in merge["weights"]]


def moved(shares: Shares) -> float:
    """Variance of a score that is made of these shares, in units of a member's; rounded weights differ in nothing.

    >>> moved({"a": 1.0, "b": -1.0}), moved({"a": -0.5, "b": 0.5}), moved({"a": 0.3333 - 1 / 3})
    (2.0, 0.5, 0.0)
    """
    return sum(share**2 for share in shares.values() if abs(share) > 1e-3) or 0.0


def seed_spread(scores_MS: np.ndarray, shares: Sequence[Shares]) -> tuple[float, float]:
    """Variance of one run of one member between its seeds, and degrees of freedom, from models with several seeds.

    Args:
        scores_MS: Score of every model and seed.
        shares: What each model is made of.

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
    return float(variance), float((seeds - 1) * np.trace(units_MM) ** 2 / (units_MM**2).sum())
