"""The reading of committed studies: sentences by people, in which every number is a link that fills itself in.

A link ``[...](mini/tables/models.md#boom/in-domain)`` leads to a table of the results; what follows ``#`` is the row,
named by what stands in its cells (``in-domain+boom`` where one is not enough), and the column, with ``%20`` for spaces.
The text of the link is the cell. Nothing is typed, and a test finds what has gone stale.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pandas as pd

from boom_utils.errors import ResultsError
from boom_utils.reporting.page import read_table
from boom_utils.reporting.tables import markdown

LINK = re.compile(
    r"\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<table>[\w./-]+)\.md#(?P<row>[^/)]+)/(?P<column>[^)]+)\)"
)


def with_values(text: str, root: Path) -> str:
    """A reading whose links into tables say what stands there now.

    Args:
        text: Markdown.
        root: What the links are relative to: ``results/``.

    Returns:
        The same text; other links are left as they are.

    Raises:
        ResultsError: A table, row or column that a link leads to does not exist, or several rows are meant.
    """
    return LINK.sub(partial(_filled, root=root), text)


def cell(frame: pd.DataFrame, row: str, column: str, where: object = None) -> str:
    """One cell of a table as a reader sees it, with its interval if it has one.

    Args:
        frame: The table.
        row: What stands in the row's cells, joined by ``+``; exactly one row has all of it.
        column: Name of the column.
        where: What messages call the table.

    Returns:
        Text like ``+0.3 [-0.1, +0.7]``.

    Raises:
        ResultsError: No row or several, or no such column.

    >>> cell(pd.DataFrame({"model": ["full", "boom"], "mean": [40.5, 41.2]}), "boom", "mean")
    '41.2'
    """
    parts = set(row.split("+"))
    found = [number for number, cells in enumerate(frame.astype(str).to_numpy()) if parts <= set(cells)]
    if len(found) != 1:
        raise ResultsError(f"a link means the row '{row}'", where=where, expected="one row", found=f"{len(found)}")
    if column not in frame:
        raise ResultsError(f"a link means the column '{column}'", where=where, found=", ".join(map(str, frame.columns)))
    columns = [name for name in (column, f"{column} low", f"{column} high") if name in frame]
    return markdown(frame.iloc[found][columns]).splitlines()[2].removeprefix("| ").removesuffix(" |")


def _filled(link: re.Match[str], root: Path) -> str:
    table, row, column = link["table"], unquote(link["row"]), unquote(link["column"])
    path = root / f"{table}.csv"
    if not path.is_file():
        raise ResultsError("a link leads to a table that does not exist", where=path)
    text = cell(read_table(path), row, column, where=path)
    return f"[{text}]({table}.md#{link['row']}/{link['column']})"
