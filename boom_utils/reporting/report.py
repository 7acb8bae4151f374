"""All tables and figures of a results folder in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boom_utils.reporting.figures import write_figures
from boom_utils.reporting.results import read_results
from boom_utils.reporting.tables import write_tables


def write_report(folder: Path, out: Path) -> dict[str, Any]:
    """Write ``tables/`` and ``figures/`` of the results in ``folder`` to ``out``.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        ResultsError: A result is missing or malformed; nothing is averaged without it.
    """
    results = read_results(folder)
    written = [*write_tables(results, out / "tables"), *write_figures(results, out / "figures")]
    return {"written": [path.relative_to(out).as_posix() for path in written]}
