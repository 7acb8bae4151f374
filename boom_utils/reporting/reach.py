"""What the comparisons of the ledger can find, queries or seeds that would find less, and what seeds move: tables."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd

from boom_utils.evaluation.comparison import Comparison
from boom_utils.evaluation.power import minimal_detectable_difference, queries_needed, seeds_needed
from boom_utils.evaluation.seed_spread import moved
from boom_utils.reporting.claim_list import MARGIN, Pair, all_claims
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import Table, estimate_columns

TARGETS = (MARGIN, MARGIN / 2)
"""True differences to be found, in scores from 0 to 1."""
NEVER, ONE_SEED = "no number", "unknown: one seed"


def reach_table(results: Results) -> pd.DataFrame:
    """One row a comparison of the claims ledger: the true difference within its reach, and what would do for less.

    ``detectable`` is found with a power of 80 % by an interval that is not corrected for other comparisons. Queries
    (pairs, texts) are those of every task, at the present number of seeds; seeds are runs a side, on the present
    queries. ``no number``: the other of the two alone moves the result too far, as far as can be seen.

    Args:
        results: Of a finished study.

    Returns:
        The table; empty for a study that tests no claim.
    """
    rows: dict[str, dict[str, Any]] = {}
    for claim in all_claims():
        for pair in claim.tests(results):
            if isinstance(pair, Pair) and pair.name not in rows:
                found = results.comparison(pair.model, pair.other, [*pair.tasks])
                rows[pair.name] = {"comparison": pair.name} | _reach(found)
    return pd.DataFrame(rows.values())


def _reach(found: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = estimate_columns("difference", found.estimate)
    row["seeds"] = found.seeds
    row["detectable"] = round(100 * minimal_detectable_difference(found), 2)
    for target in TARGETS:
        points = f"for {100 * target:g} point"
        queries = queries_needed(found, target)
        row[f"queries {points}"] = f"{queries / found.queries:.2g} times" if queries else NEVER
        row[f"seeds {points}"] = (seeds_needed(found, target) or NEVER) if "seeds" in found.levels else ONE_SEED
    return row


def seed_table(results: Results) -> pd.DataFrame:
    """How far seeds move the mean of each model that has several, beside what one spread for all members expects.

    Args:
        results: Of a finished study.

    Returns:
        One row a model: standard deviations of its seeds, in points; empty for a study of one seed.
    """
    rows = []
    for model in results.study.get("seeds", {}):
        row: dict[str, Any] = {"model": model, "seeds": len(results.seeds(model))}
        row["members' variance in it"] = round(moved(results.shares(model), {}), 4)
        for domain in results.domains:
            tasks = results.tasks(domain)
            found, spread = [results.run_mean(name, tasks) for name in results.seeds(model)], results.spread(tasks)
            expected = math.sqrt(moved(results.shares(model), {}) * spread.variance) if spread else math.nan
            row |= {f"{domain} deviation": round(100 * statistics.stdev(found), 3)}
            row |= {f"{domain} deviation expected": round(100 * expected, 3)}
        rows.append(row)
    return pd.DataFrame(rows)


REACH_TABLES: dict[str, Table] = {"reach": reach_table, "seeds": seed_table}
