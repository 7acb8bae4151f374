"""Parts of the page of a report as HTML: tables that can be sorted, figures that need no file beside them.

Everything that comes from data is escaped here, and nowhere else.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

MINUS = "\N{MINUS SIGN}"
_ENDINGS = (" low", " high", " note")
_LONG = 60
"""Rows from which a table scrolls in a box of limited height."""
_CUT = 170
"""Letters of a cell that are shown before it is opened."""
_TONES = {
    **dict.fromkeys(("supported", "better", "yes"), "good"),
    **dict.fromkeys(("not supported", "worse", "no"), "bad"),
    **dict.fromkeys(("inconclusive", "not tested by this profile"), "open"),
}
"""How a verdict is coloured; its word says the same."""
_JUDGED = ("verdict", "step up")
_NO_NUMBER = re.compile(r"n/a|reference|not ")
"""How texts begin that stand where a number would."""


@dataclass(frozen=True)
class TableText:
    """What stands around a table.

    Args:
        anchor: Its id in the page.
        number: As in "Table 3".
        title: A few words.
        caption: What it shows, in sentences.
        source: Name of its file beside the page.
        groups: Column whose values the rows can be filtered by.
        missing: What stands where an estimate is not a number.
    """

    anchor: str
    number: int
    title: str
    caption: str
    source: str
    groups: str | None = None
    missing: str = "reference"


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number it is sorted by (None: it comes last), a note in small, and how it is coloured."""

    text: str
    value: float | None = None
    note: str = ""
    tone: str = ""


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was written; an empty cell is missing, "n/a" and "none" are text."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def html_table(frame: pd.DataFrame, text: TableText) -> str:
    """A table with caption, source and a box to scroll in; a value, its bounds and its verdict share a cell."""
    columns, records = shown_columns(frame), frame.to_dict("records")
    cells = {column: [_cell(row, column, [*frame], text.missing) for row in records] for column in columns}
    numeric = {column for column in columns if _is_numeric(cells[column])}
    head = "".join(_head(column, column in numeric) for column in columns)
    rows = []
    for position in range(len(frame)):
        group = "" if text.groups is None else f' data-group="{attribute(frame[text.groups].iloc[position])}"'
        parts = [_data(cells[column][position], column in numeric, first=column == columns[0]) for column in columns]
        rows.append(f"<tr{group}>{''.join(parts)}</tr>")
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>"
    long = " long" if len(frame) > _LONG else ""
    return (
        f'<figure class="table" id="{text.anchor}">\n'
        f'<figcaption id="{text.anchor}-caption"><b>Table {text.number}. {escape(text.title)}.</b> '
        f"{marked(text.caption)}</figcaption>\n{_filters(frame, text)}"
        f'<div class="scroll{long}" tabindex="0" role="region" aria-labelledby="{text.anchor}-caption">'
        f'<table class="data" aria-labelledby="{text.anchor}-caption">\n{body}\n</table></div>\n'
        f"{source_line(text.source)}</figure>\n"
    )


def shown_columns(frame: pd.DataFrame) -> list[str]:
    """Columns of a table's own, without empty ones; bounds, notes and verdicts stand in the cells they belong to."""
    names = [str(name) for name in frame.columns]
    inside = {name for name in names if name.endswith(_ENDINGS) and name.rsplit(" ", 1)[0] in names}
    inside |= {verdict for name in names if (verdict := _verdict_column(name, names))}
    return [name for name in names if name not in inside and frame[name].notna().any()]


def _verdict_column(column: str, names: Sequence[str]) -> str | None:
    """The column that says how a difference is judged: the one after its bounds."""
    after = names.index(column) + 3
    if " minus " not in column or f"{column} low" not in names or after >= len(names):
        return None
    return names[after] if "verdict" in names[after] else None


def _cell(row: Mapping[Any, Any], column: str, names: Sequence[str], missing: str) -> Cell:
    value, bounds = row[column], [f"{column} low", f"{column} high"]
    note, tone = row.get(f"{column} note"), ""
    notes = [note]
    if verdict := _verdict_column(column, names):
        notes, tone = [row[verdict], note], _TONES.get(str(row[verdict]), "")
    small = "; ".join(str(one) for one in notes if one is not None and not pd.isna(one))
    if bounds[0] not in names:
        shown = plain(value)
        return Cell(shown, number_of(value), small, _TONES.get(shown, "") if column.endswith(_JUDGED) else "")
    if pd.isna(value):
        return Cell(missing)
    sign = " minus " in column or "difference" in column
    low, high = (points(row[bound], sign) for bound in bounds)
    return Cell(f"{points(value, sign)} [{low}, {high}]", float(value), small, tone)


def points(value: float, sign: bool = False) -> str:
    """A score or difference with one decimal and a true minus.

    >>> points(-0.04, sign=True)
    '0.0'
    """
    shown = f"{value:+.1f}" if sign else f"{value:.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", MINUS)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    known = [cell for cell in cells if cell.text]
    return any(cell.value is not None for cell in known) and all(
        cell.value is not None or _NO_NUMBER.match(cell.text) for cell in known
    )


def number_of(value: Any) -> float | None:
    """The number a cell is sorted by; None for text and for what is missing."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> str:
    """A value as text: whole numbers with separators from 1,000 on, nothing for what is missing."""
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = float(value)
    if number == int(number) and abs(number) >= 1_000:
        return f"{int(number):,}".replace("-", MINUS)
    return f"{number:g}".replace("-", MINUS)


def _head(column: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind} data-kind="{"number" if numeric else "text"}">{escape(column)}</th>'


def _data(cell: Cell, numeric: bool, first: bool) -> str:
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    size = "words" if len(cell.text) > 34 else "phrase" if len(cell.text) > 14 else ""
    classes = ["number" if numeric else "name" if first and len(cell.text) <= 34 else size]
    classes += ["long-text"] if numeric and cell.value is None and len(cell.text) > 14 else []
    classes += [] if cell.note else [cell.tone]
    kind = f' class="{" ".join(filter(None, classes))}"' if any(classes) else ""
    sort = f' data-value="{cell.value!r}"' if numeric and cell.value is not None else ""
    tone = f' class="{cell.tone}"' if cell.tone else ""
    note = f"<small{tone}>{escape(cell.note)}</small>" if cell.note else ""
    return f"<{tag}{scope}{kind}{sort}>{_opened(cell.text)}{note}</{tag}>"


def _opened(text: str) -> str:
    """Text of a cell, which may break inside names; of a long one only the beginning until it is opened."""
    if len(text) <= _CUT:
        return _breakable(text)
    head = text[:_CUT].rsplit(" ", 1)[0]
    return f"<details><summary>{_breakable(head)} …</summary>{_breakable(text[len(head) :])}</details>"


def _breakable(text: str) -> str:
    return re.sub(r"(?<=_)|(?<=[a-z])(?=[A-Z])", "<wbr>", escape(text))


def _filters(frame: pd.DataFrame, text: TableText) -> str:
    """Buttons that leave some rows; hidden until the script makes them work."""
    if text.groups is None:
        return ""
    counts = frame[text.groups].value_counts(sort=False)
    order = sorted(counts.index, key=lambda name: [*_TONES].index(name) if name in _TONES else len(_TONES))
    choices = [("", "all", len(frame)), *((str(name), str(name), int(counts[name])) for name in order)]
    buttons = "".join(
        f'<button type="button" data-group="{attribute(value)}" aria-pressed="{"false" if value else "true"}">'
        f"{escape(label)} ({count})</button>"
        for value, label, count in choices
    )
    group = f'role="group" aria-label="Rows shown, by {attribute(text.groups)}"'
    return f'<p class="filters" data-table="{text.anchor}" {group} hidden>{buttons}<span role="status"></span></p>\n'


def html_figure(path: Path, anchor: str, number: int, title: str, caption: str) -> str:
    """A figure, its SVG embedded, with caption, text for those who cannot see it, and the names of its files."""
    drawing = path.read_text(encoding="utf-8")
    width, height = _size(drawing)
    data = "data:image/svg+xml;base64," + base64.b64encode(drawing.encode("utf-8")).decode("ascii")
    words = re.sub(r"[`*]", "", f"{title}. {caption}")
    folder = path.parent.name
    return (
        f'<figure class="drawing" id="{anchor}">\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{attribute(title)}">'
        f'<img src="{data}" alt="{attribute(words)}" width="{width}" height="{height}"></div>\n'
        f"<figcaption><b>Figure {number}. {escape(title)}.</b> {marked(caption)}</figcaption>\n"
        f"{source_line(f'{folder}/{path.name}', f'{folder}/{path.stem}.png')}</figure>\n"
    )


def _size(drawing: str) -> tuple[int, int]:
    """Width and height of a drawing in CSS pixels, from its viewBox in points."""
    found = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', drawing)
    width, height = (float(part) for part in found.groups()) if found else (720.0, 480.0)
    return round(width * 4 / 3), round(height * 4 / 3)


def source_line(*files: str) -> str:
    """The line that says from which file beside the page something is."""
    links = ", ".join(f'<a href="{attribute(name)}">{escape(name)}</a>' for name in files)
    return f'<p class="from">from results: {links}</p>\n'


def facts_list(facts: Mapping[str, str], *, raw: Sequence[str] = ()) -> str:
    """A list of names and values; values named in ``raw`` are HTML already."""
    rows = [f"<dt>{escape(name)}</dt><dd>{text if name in raw else escape(text)}</dd>" for name, text in facts.items()]
    return f"<dl>{''.join(rows)}</dl>\n"


def marked(text: str) -> str:
    """Text of ours with ``code`` between backticks, escaped."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def attribute(value: Any) -> str:
    """Text as it may stand in an attribute between double quotes."""
    return escape(str(value), quote=True)
