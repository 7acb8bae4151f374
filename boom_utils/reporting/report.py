"""All tables and figures of a results folder, its claims and its page, in one call.

Nothing but the folder is read, besides what others published: no workspace, no torch, no mteb.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boom_utils.artifacts import write_text
from boom_utils.errors import ConfigError, ResultsError, nearest
from boom_utils.reporting.ablations import ABLATION_TABLES
from boom_utils.reporting.claims import write_claims
from boom_utils.reporting.figures import study_figures, write_figures
from boom_utils.reporting.page import page
from boom_utils.reporting.panels import SLIDE
from boom_utils.reporting.published import PUBLISHED, published_tables, read_published
from boom_utils.reporting.regime import regime_table
from boom_utils.reporting.results import PAGE, Results, read_results, run_name
from boom_utils.reporting.tables import TABLES, write_tables


def write_report(folder: Path, out: Path, published: Path = PUBLISHED) -> dict[str, Any]:
    """Write ``tables/``, ``figures/``, claims and ``report.html`` to ``out``.

    Args:
        folder: The results; may be ``out`` itself.
        out: Where the report goes.
        published: Scores that others published; left out where there is no such folder.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        ResultsError: A result is missing or malformed; nothing is averaged without it.
    """
    results = read_results(folder)
    others = read_published(published) if published.is_dir() else None
    tables = {**TABLES, **ABLATION_TABLES, "regime": regime_table, **published_tables(others)}
    written = write_tables(results, out / "tables", tables)
    written += write_figures(results, out / "figures", study_figures(results))
    written += write_claims(results, out)
    names = [path.relative_to(out).as_posix() for path in written]
    write_text(out / PAGE, page(results, out, names))
    return {"written": [*names, PAGE]}


def regenerate(profile: str, root: Path, mteb: Path | None = None, *, slides: bool = False) -> Path:
    """Write the report of a profile anew in its results folder, from what is there alone.

    Args:
        profile: Name of the profile.
        root: Holds a folder a profile.
        mteb: Gets the results of mteb itself, as `mteb.ResultCache` reads them.
        slides: Also write the figures as slides, into ``figures-slide/``.

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
    if slides:
        results = read_results(folder)
        write_figures(results, folder / "figures-slide", study_figures(results), SLIDE)
    if mteb is not None:
        write_mteb_results(read_results(folder), mteb)
    return folder / PAGE


def write_mteb_results(results: Results, out: Path) -> None:
    """Write every result of mteb itself into ``out`` for ``mteb.ResultCache(out)``; needs mteb.

    Raises:
        ResultsError: The results keep none.
    """
    from boom_utils.evaluation.run import write_result

    for row in results.numbers.scores.to_dict("records"):
        if not isinstance(row.get("result"), str):
            fix = "run the study again, or evaluate with `boom evaluate`"
            raise ResultsError("mteb's own result is not kept", where=results.folder, found=row["task"], fix=fix)
        write_result(run_name(row["model"], row["seed"]), row["revision"], json.loads(row["result"]), out)
