"""The commands that read what was found: ``boom report`` and ``boom trace``. Neither needs torch or a workspace."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger("boom_utils.cli")


def add_report(commands: Any) -> None:
    """Add ``boom report`` to the parser's commands."""
    report = commands.add_parser(
        "report", help="tables, figures, claims and the page of a profile, from its results alone"
    )
    report.add_argument("--profile", default="smoke", metavar="P", help="name of a profile, or a .yaml file (smoke)")
    report.add_argument("--results", type=Path, metavar="DIR", help="holds <profile>/ (the project's results/)")
    report.set_defaults(command=_report)


def add_trace(commands: Any) -> None:
    """Add ``boom trace`` to the parser's commands."""
    trace = commands.add_parser("trace", help="what a table, figure, score or artifact was made from, back to the data")
    trace.add_argument("file", type=Path, metavar="FILE", help="below results/<profile>/, or a folder of the workspace")
    trace.add_argument("--all", dest="whole", action="store_true", help="name every artifact and file, not a few")
    trace.set_defaults(command=_trace)


def _report(options: argparse.Namespace) -> None:
    from boom_utils.artifacts import PROJECT_ROOT, default_workspace
    from boom_utils.config import load_profile
    from boom_utils.reporting.report import regenerate

    name = options.profile
    if name.endswith((".yaml", ".yml")):
        name = load_profile(name).name
    root = options.results or PROJECT_ROOT / "results"
    if options.results is None and not (root / name).is_dir() and (default_workspace() / "results" / name).is_dir():
        root = default_workspace() / "results"  # where a run puts them when the project cannot be written
    log.info("report: %s", regenerate(name, root))


def _trace(options: argparse.Namespace) -> None:
    from boom_utils.reporting.trace import trace_text

    log.info("%s", trace_text(options.file, whole=options.whole))
