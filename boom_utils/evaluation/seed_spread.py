"""How far training again with another seed moves a score, measured on all models that have several seeds.

Three seeds of a pair of models say little of their spread (Student's quantile with two degrees of freedom is 4.3), so
it is taken to be the same for all models of a study and measured on all of them. Seeds are the same for every model:
what a seed does to all of them alike (the same rows, the same order) is no part of a difference. That is the additive
two-way layout of the analysis of variance, without replication: the mean square of the residuals of M models and S
seeds has (M - 1)(S - 1) degrees of freedom. With two models it is the paired t test of their seeds. A model of one seed
is given the same spread.

Shapes: M models, S seeds, B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from boom_utils.artifacts import derive_seed
from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison, two_sided_p
from boom_utils.evaluation.statistics import Bootstrap


@dataclass(frozen=True)
class SeedSpread:
    """Variance of a score between training runs that differ in nothing but their seed, and what it is known from.

    Args:
        variance: Of one run.
        freedom: Degrees of freedom behind it.
        models: How many models it was measured on.
    """

    variance: float
    freedom: int
    models: int


def spread_of_differences(scores_MS: np.ndarray) -> SeedSpread:
    """The spread that matters to differences of models: what a seed does to all models alike is taken out.

    Raises:
        ResultsError: There are fewer than two models or two seeds.
    """
    models, seeds = _checked(scores_MS)
    residuals_MS = scores_MS - scores_MS.mean(axis=0) - scores_MS.mean(axis=1, keepdims=True) + scores_MS.mean()
    freedom = (models - 1) * (seeds - 1)
    return SeedSpread(float((residuals_MS**2).sum() / freedom), freedom, models)


def spread_of_scores(scores_MS: np.ndarray) -> SeedSpread:
    """The spread that matters to the score of one model: all that seeds do.

    The seeds of all models are the same, so that there are no more independent ones than S: S - 1 degrees of freedom.

    Raises:
        ResultsError: There are fewer than two models or two seeds.
    """
    models, seeds = _checked(scores_MS)
    return SeedSpread(float(scores_MS.var(axis=1, ddof=1).mean()), seeds - 1, models)


def _checked(scores_MS: np.ndarray) -> tuple[int, int]:
    models, seeds = scores_MS.shape
    if models < 2 or seeds < 2:
        raise ResultsError(
            "a spread of seeds needs two models with two seeds each, at least", found=f"{models} and {seeds}"
        )
    return models, seeds


def with_spread(found: Comparison, spread: SeedSpread, trained: int, runs: int, bootstrap: Bootstrap) -> Comparison:
    """A comparison by queries alone, with seeds as a second level.

    Args:
        found: Of the mean of all runs.
        spread: Of one run.
        trained: How many of the compared models were trained: 2, or 1 where the other one is the base, or of a mean.
        runs: Seeds of each.
        bootstrap: As of ``found``.
    """
    generator = np.random.default_rng(derive_seed(bootstrap.seed, "bootstrap", "spread of seeds"))
    variance = trained * spread.variance
    moved_B = generator.standard_normal(bootstrap.draws) * math.sqrt(variance / runs)
    drawn = replace(found.drawn, by_seeds=moved_B, seed_freedom=spread.freedom)
    return replace(
        found,
        estimate=bootstrap.estimate(found.estimate.value, drawn.at(bootstrap.confidence)),
        p_value=drawn.p_value(two_sided_p),
        levels=("queries", "seeds", *found.levels[1:]),
        seeds=runs,
        seed_variance=variance,
        seed_freedom=max(1, spread.models - 1),
        drawn=drawn,
        pooled_freedom=spread.freedom,
    )
