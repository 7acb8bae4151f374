"""The claims ledger: every claim of the paper, what tests it here, and whether it holds; nothing in it is typed.

A claim says where a difference lies: above zero, below it, or within a margin. Two one-sided tests on the same
bootstrap draws ask whether the difference lies there, and whether it lies outside. The smaller p value, doubled, is the
row's; for a claim of a difference it is the two-sided p value of `boom_utils.evaluation.comparison`. All p values of
the ledger are corrected together (Holm). *Supported* and *not supported* need the corrected p value below 1 -
confidence, and the whole interval on that side; everything else is *inconclusive*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison, family, holm
from boom_utils.evaluation.power import minimal_detectable_difference
from boom_utils.reporting.claim_list import MARGIN, Claim, Expected, Pair, Share, all_claims
from boom_utils.reporting.published import NOT_FILLED, PaperCell
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import markdown

SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTED = "supported", "not supported", "inconclusive", "not tested by this profile"
ONE_SEED = "one seed: intervals over queries only; another seed may differ"


@dataclass(frozen=True)
class Finding:
    """What one comparison says of a claim.

    Args:
        comparison: The difference; its p value is that of the claim, see the module.
        holds: Whether the smaller p value is that of the claim holding.
    """

    comparison: Comparison
    holds: bool


def examine(results: Results, pair: Pair, expected: Expected) -> Finding:
    """Test whether a difference lies where a claim expects it, or outside."""
    tasks = [*pair.tasks]
    found = results.comparison(pair.model, pair.other, tasks)

    def doubled(against_B: np.ndarray) -> float:
        """P value from the draws that speak against, one added as in `two_sided_p`."""
        return min(1.0, 2 * (1 + int(against_B.sum())) / (len(against_B) + 1))

    def inside(drawn_B: np.ndarray) -> float:
        return max(doubled(drawn_B <= expected.low), doubled(drawn_B >= expected.high))

    def outside(drawn_B: np.ndarray) -> float:
        return min(doubled(drawn_B >= expected.low), doubled(drawn_B <= expected.high))

    p_inside, p_outside = found.drawn.p_value(inside), found.drawn.p_value(outside)
    return Finding(replace(found, p_value=min(p_inside, p_outside)), p_inside < p_outside)


def verdict(found: Finding, expected: Expected, adjusted: float) -> str:
    """The verdict on one row, from its p value corrected for all rows."""
    estimate = found.comparison.estimate
    if adjusted >= 1 - found.comparison.confidence:
        return INCONCLUSIVE
    if found.holds and expected.low < estimate.low and estimate.high < expected.high:
        return SUPPORTED
    outside = estimate.high < expected.low or estimate.low > expected.high
    return REFUTED if not found.holds and outside else INCONCLUSIVE


def claims_table(results: Results, paper: Sequence[PaperCell] = ()) -> pd.DataFrame:
    """The ledger: one row a claim and comparison, or one that says that the study does not test it.

    ``difference`` is in points of a score of 0 to 100, or in the unit named beside it; ``p (Holm)`` is corrected over
    all rows; ``paper`` is the same difference of the values that a reader copied from the paper's tables, on its own
    scale; ``detectable`` is the smallest true difference that such a comparison finds with a power of 80 %.
    """
    entries: list[tuple[Claim, Pair | Share | None]] = []
    for claim in all_claims():
        entries += [(claim, test) for test in claim.tests(results)] or [(claim, None)]
    found = {
        str(number): examine(results, test, claim.expected)
        for number, (claim, test) in enumerate(entries)
        if isinstance(test, Pair)
    }
    adjusted, warning = _corrected({key: one.comparison for key, one in found.items()}, results)
    rows = []
    for number, (claim, test) in enumerate(entries):
        row: dict[str, Any] = {"claim": claim.text, "part": claim.part, "known from": claim.known_from}
        if isinstance(test, Pair):
            row |= _pair_row(claim, test, found[str(number)], adjusted[str(number)], warning)
            row["paper"] = paper_difference(paper, test)
        elif isinstance(test, Share):
            row |= _share_row(claim, test)
        else:
            row |= {"expected": claim.expected.text, "verdict": UNTESTED, "what limits it": "no models for it"}
        rows.append(row)
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = [
    *("claim", "part", "known from", "comparison", "expected", "difference", "difference low", "difference high"),
    *("unit", "paper", "p (Holm)", "verdict", "detectable", "what limits it"),
]


def _pair_row(claim: Claim, pair: Pair, found: Finding, adjusted: float, warning: str) -> dict[str, Any]:
    comparison = found.comparison
    judged = verdict(found, claim.expected, adjusted)
    limits = [_seeds_text(comparison), pair.note]
    uncorrected = verdict(found, claim.expected, comparison.p_value)
    if judged != uncorrected:
        limits.append(f"{uncorrected} before the correction for all rows")
    estimate = comparison.estimate
    return {
        "comparison": pair.name,
        "expected": claim.expected.text,
        "difference": round(100 * estimate.value, 4),
        "difference low": round(100 * estimate.low, 4),
        "difference high": round(100 * estimate.high, 4),
        "unit": "points",
        "p (Holm)": round(adjusted, 4),
        "verdict": judged,
        "detectable": round(100 * minimal_detectable_difference(comparison), 2),
        "what limits it": "; ".join(text for text in (*limits, warning) if text),
    }


def paper_difference(cells: Sequence[PaperCell], pair: Pair) -> str:
    """The difference of two models in a table of the paper, as far as a reader has filled both values in.

    Args:
        cells: As in ``results/published/paper_tables.csv``: ``row`` is a model of ours, ``column`` a group of tasks.
        pair: The two models and the group.
    """
    values = {(cell.table, cell.row): cell.value for cell in cells if cell.column == pair.where}
    for table in sorted({table for table, _ in values}):
        if {(table, pair.model), (table, pair.other)} <= {*values}:
            return f"{values[table, pair.model] - values[table, pair.other]:+.6g} (table {table})"
    return NOT_FILLED


def _seeds_text(comparison: Comparison) -> str:
    if "seeds" not in comparison.levels:
        return ONE_SEED
    return "one seed, with the spread of the others" if comparison.seeds == 1 else f"{comparison.seeds} seeds"


def _share_row(claim: Claim, share: Share) -> dict[str, Any]:
    inside, outside = share.high < share.limit, share.low >= share.limit
    return {
        "comparison": share.comparison,
        "expected": claim.expected.text,
        "difference": round(100 * share.value, 4),
        "difference low": round(100 * share.low, 4),
        "difference high": round(100 * share.high, 4),
        "unit": share.unit,
        "verdict": SUPPORTED if inside else REFUTED if outside else INCONCLUSIVE,
        "what limits it": share.note,
    }


def _corrected(comparisons: dict[str, Comparison], results: Results) -> tuple[dict[str, float], str]:
    """Holm's p values of all rows, and a warning where there are too few draws for any to be small enough."""
    try:
        return family(comparisons, results.bootstrap), ""
    except ResultsError:
        warning = f"{results.bootstrap.draws} draws are too few for {len(comparisons)} comparisons"
        return holm({key: found.p_value for key, found in comparisons.items()}), warning


def write_claims(results: Results, out: Path, paper: Sequence[PaperCell] = ()) -> list[Path]:
    """Write the ledger as ``claims.csv`` and ``claims.md`` into ``out``."""
    frame = claims_table(results, paper)
    write_text(out / "claims.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_text(out / "claims.md", claims_text(frame, results))
    return [out / "claims.csv", out / "claims.md"]


def claims_text(frame: pd.DataFrame, results: Results) -> str:
    """The ledger for readers: how to read it, how many verdicts of each kind, and a table for each part."""
    counts = Counter(frame["verdict"])
    confidence = 100 * results.bootstrap.confidence
    lines = [
        "# Claims of the paper, tested by this study",
        "",
        f"Profile `{results.study.get('profile', '')}`. "
        + ", ".join(f"{counts[name]} {name}" for name in (SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTED))
        + ".",
        "",
        "Claims are in our words; where each is known from stands beside it. Differences are ours: paired, in points",
        f"of a score of 0 to 100, with their {confidence:g} % interval over {results.levels}.",
        "A verdict needs a p value below",
        f"{1 - results.bootstrap.confidence:.2g} when corrected over all rows (Holm). Equally good means: the whole",
        f"interval lies within {100 * MARGIN:g} point, a margin of ours. Detectable: the true difference found with a",
        "power of 80 %, not corrected for the other rows.",
        "Paper: the same difference in the paper's tables, once a reader fills `results/published/paper_tables.csv`.",
        "Not supported means that our models show the opposite; it says nothing of other models and data.",
    ]
    for part in dict.fromkeys(frame["part"]):
        lines += ["", f"## {part[0].upper()}{part[1:]}", ""]
        shown = frame[frame["part"] == part].drop(columns="part")
        lines.append(markdown(shown, missing="").rstrip("\n"))
    return "\n".join(lines) + "\n"
