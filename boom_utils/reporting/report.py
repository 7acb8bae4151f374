"""All tables and figures of a results folder, its claims and its deviations, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boom_utils.reporting.ablation_figures import ablation_figures
from boom_utils.reporting.ablations import ABLATION_TABLES
from boom_utils.reporting.claims import write_claims
from boom_utils.reporting.deviations import write_deviations
from boom_utils.reporting.figures import write_figures
from boom_utils.reporting.results import read_results
from boom_utils.reporting.tables import write_tables


def write_report(folder: Path, out: Path) -> dict[str, Any]:
    """Write ``tables/``, ``figures/``, the claims and the deviations of the results in ``folder`` to ``out``.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        ResultsError: A result is missing or malformed; nothing is averaged without it.
    """
    results = read_results(folder)
    written = [*write_tables(results, out / "tables", ABLATION_TABLES)]
    written += write_figures(results, out / "figures", ablation_figures(results))
    written += [*write_claims(results, out), *write_deviations(results, out)]
    return {"written": [path.relative_to(out).as_posix() for path in written]}
