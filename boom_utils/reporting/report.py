"""All tables and figures of a results folder, its claims, its deviations and its page, in one call.

Nothing but the folder is read, besides what others published: no workspace, no torch, no mteb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boom_utils.artifacts import write_text
from boom_utils.errors import ConfigError, nearest
from boom_utils.reporting.ablations import ABLATION_TABLES
from boom_utils.reporting.claims import write_claims
from boom_utils.reporting.deviations import write_deviations
from boom_utils.reporting.figures import study_figures, write_figures
from boom_utils.reporting.headline import HEADLINE_TABLES
from boom_utils.reporting.page import page
from boom_utils.reporting.provenance import PAGE, Notes, WatchedResults, write_provenance
from boom_utils.reporting.published import (
    PUBLISHED,
    PUBLISHED_FILES,
    read_published,
    shared_figures,
    side_by_side_tables,
)
from boom_utils.reporting.reach import REACH_TABLES
from boom_utils.reporting.results import read_results
from boom_utils.reporting.tables import TABLES, write_tables


def write_report(folder: Path, out: Path, published: Path = PUBLISHED) -> dict[str, Any]:
    """Write ``tables/``, ``figures/``, claims, deviations, ``report.html`` and ``provenance.json`` to ``out``.

    Args:
        folder: The results; may be ``out`` itself.
        out: Where the report goes.
        published: Scores that others published; left out where there is no such folder.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        ResultsError: A result is missing or malformed; nothing is averaged without it.
    """
    found = read_results(folder)
    results = WatchedResults(found.folder, found.study, found.places)
    others = read_published(published) if published.is_dir() else None
    beside, shared = side_by_side_tables(others), shared_figures(results, others)
    notes = Notes(results)
    tables = {**TABLES, **ABLATION_TABLES, **HEADLINE_TABLES, **REACH_TABLES, **beside}
    figures = {**study_figures(results), **shared}
    written = write_tables(results, out / "tables", notes.noting("tables", tables))
    written += write_figures(results, out / "figures", notes.noting("figures", figures))
    written += notes.note("claims", lambda: write_claims(results, out, others.paper if others else ()))
    written += notes.note("deviations", lambda: write_deviations(results, out))
    names = [path.relative_to(out).as_posix() for path in written]
    write_text(out / PAGE, page(found, out, names, others))
    written += [out / PAGE]
    holding = [
        *(f"tables/{name}" for name in beside),
        *(f"figures/{name}" for name in shared),
        "claims",
        Path(PAGE).stem,
    ]
    sources = [published / name for name in PUBLISHED_FILES] if others else []
    written += [write_provenance(notes, out, written, dict.fromkeys(holding if others else [], sources))]
    return {"written": [path.relative_to(out).as_posix() for path in written]}


def regenerate(profile: str, root: Path) -> Path:
    """Write the report of a profile anew in its results folder, from what is there alone.

    Args:
        profile: Name of the profile.
        root: Holds a folder a profile.

    Returns:
        The page.

    Raises:
        ConfigError: There are no results of that profile.
        ResultsError: As `write_report`.
    """
    folder = root / profile
    if not (folder / "study.json").is_file():
        known = sorted(path.parent.name for path in root.glob("*/study.json"))
        raise ConfigError(
            f"there are no results of profile '{profile}'{nearest(profile, known)}",
            where=folder,
            expected=", ".join(known) or "no profile has any here",
            fix=f"boom run --profile {profile}, or name another folder with --results",
        )
    written = set(write_report(folder, folder)["written"])
    for name in ("tables", "figures"):  # what an earlier study left
        for path in sorted((folder / name).iterdir()):
            if path.is_file() and path.relative_to(folder).as_posix() not in written:
                path.unlink()
    return folder / PAGE
