"""Which published scores a report shows beside a study's, as tables and figures of the report.

Where a task was scored by both, ours stand in the same table; else the table holds the released models alone.
"""

from __future__ import annotations

import re
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.reporting.figures import Draw
from boom_utils.reporting.headline import headline_models
from boom_utils.reporting.published import Published, measured_scores, paper_table, published_figure, published_table
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import Table

RELEASED = "ICT-TIME-and-Querit/"
"""Before the names of the models that the paper's authors released."""
PUBLISHED = PROJECT_ROOT / "results" / "published"
"""Scores that come with the project."""
PUBLISHED_FILES = ("published_scores.csv", "published_means.csv", "paper_tables.csv")
PAPER = "paper"
"""Name of the table beside the paper's own."""


def table_name(benchmark: str) -> str:
    """Name of a benchmark's table, figure and place in the page.

    >>> table_name("MTEB(eng, v2)")
    'published_mteb_eng_v2'
    """
    return "published_" + re.sub(r"[^a-z0-9]+", "_", benchmark.lower()).strip("_")


def side_by_side_tables(results: Results, published: Published | None) -> dict[str, Table]:
    """A table a benchmark that released models were scored on, and one beside the paper's; none if nothing is known."""
    if published is None:
        return {}
    named = {table_name(benchmark): benchmark for benchmark in published.tasks if released(published, benchmark)}
    tables: dict[str, Table] = {
        name: partial(_benchmark_table, published=published, benchmark=benchmark) for name, benchmark in named.items()
    }
    return tables | {PAPER: partial(_paper_table, published=published)}


def shared_figures(results: Results, published: Published | None) -> dict[str, Draw]:
    """A figure a benchmark of which the study has scored a task."""
    if published is None:
        return {}
    return {
        table_name(benchmark): partial(_benchmark_figure, published=published, benchmark=benchmark)
        for benchmark, types in published.tasks.items()
        if {task["name"] for task in results.study["tasks"]} & set(types)
    }


def released(published: Published, benchmark: str) -> list[str]:
    """Labels of the authors' models on a benchmark."""
    return [entry.label for entry in published.entries[benchmark] if entry.stated.model.startswith(RELEASED)]


def _benchmark_table(results: Results, published: Published, benchmark: str) -> pd.DataFrame:
    """Ours, of the headline's models, and the released ones."""
    frame = published_table(results, published, benchmark, released(published, benchmark))
    ours = set(measured_scores(results, published.tasks[benchmark])) - set(headline_models(results) or results.models)
    return frame[[name for name in frame if str(name).removesuffix(" note") not in ours]]


def _benchmark_figure(results: Results, published: Published, benchmark: str) -> Figure:
    return published_figure(published, benchmark, results, released(published, benchmark))


def _paper_table(results: Results, published: Published) -> pd.DataFrame:
    """Ours beside every table of the paper that a reader filled in; "not filled" where none is."""
    shown = headline_models(results) or dict.fromkeys(results.models, "")
    frames = []
    for table in sorted({cell.table for cell in published.paper}) or [""]:
        frame = paper_table(results, published, table)
        known = {cell.row for cell in published.paper if cell.table == table}
        frames.append(frame[frame["row"].isin({*shown, *known})].assign(table=table))
    whole = pd.concat(frames, ignore_index=True)
    return whole[["table", *(name for name in whole if name != "table")]]
