"""``report.html``: one page that shows a study to readers. It needs no other file, no script and no network.

It shows what the report's CSV and SVG files hold, and links them. Beside this module, ``page.html.j2`` says what stands
where, ``page.yaml`` what tables and figures are called; this module makes cells of values, and finds the answer that
the page opens with. Text from data is escaped by the template alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pandas.api.types import is_numeric_dtype

from boom_utils.reporting.ablations import BOOM, headline_models
from boom_utils.reporting.claims import INCONCLUSIVE, REFUTED, SUPPORTED, UNTESTED, judges, scope, word
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import SEEN, WIDER, layout, points, shown_columns

MINUS = "\N{MINUS SIGN}"
_TONES = {
    **dict.fromkeys((SUPPORTED, "better", "yes"), "good"),
    **dict.fromkeys((REFUTED, "worse", "no"), "bad"),
    **dict.fromkeys((INCONCLUSIVE, "described", UNTESTED), "open"),
}
"""How a verdict is coloured; its word says the same."""
_JUDGED = ("verdict", "step up")
_GROUPS = {"claims": "part", "settings": "status", "tasks": "family"}
"""Tables whose rows are folded by a column, and which."""
_SOURCES = {"claims": "claims.csv"}
"""Tables that are not in ``tables/``, and where they are."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a note in small, and how it is coloured."""

    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table of the page.

    Args:
        columns: The columns -> whether they are numbers.
        groups: What rows are folded by (``""``: nothing) -> rows of cells.
        left_out: Whether the file has other columns.
    """

    columns: Mapping[str, bool]
    groups: Mapping[str, Sequence[Sequence[Cell]]]
    left_out: bool


def page(results: Results, folder: Path, files: Collection[str]) -> str:
    """The page.

    Args:
        results: The study.
        folder: Of the report: holds its tables, figures and claims.
        files: Their names in it; others in the folder are no part of the page.
    """

    def table(name: str, source: str) -> ShownTable | None:
        if source not in files:
            return None
        frame = read_table(folder / source)
        return shown_table(name, _tasks(frame, results) if name == "tasks" else frame, results.reference)

    names = {kind: _names(files, f"{kind}/", suffix) for kind, suffix in (("tables", ".csv"), ("figures", ".svg"))}
    main = "headline" if "headline" in names["tables"] else "models"
    opening = ["in_against_out" if "in_against_out" in names["figures"] else "model_means", main]
    if "equal_cost" in names["tables"]:
        opening = ["frontier", "hypotheses", "equal_cost"]
    found = read_table(folder / f"tables/{'hypotheses' if 'hypotheses' in names['tables'] else main}.csv")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.do"]}
    loader = PackageLoader("boom_utils", "reporting")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    environment.filters |= {"code": marked, "breakable": breakable}
    return environment.get_template("page.html.j2").render(
        study=results.study,
        models=results.models,
        full=results.full,
        domains={domain: len(results.tasks(domain)) for domain in results.domains},
        opening=opening,
        answer=answer(found, results),
        judges=judges(results),
        scope=scope(results),
        reading=_reading(results),
        layout=layout(),
        sources=_SOURCES,
        read_table=table,
        drawing=lambda name: drawing(folder / "figures" / f"{name}.svg"),
        style=Markup(resources.files("boom_utils.reporting").joinpath("page.css").read_text(encoding="utf-8")),
        **names,
    )


def _names(files: Collection[str], start: str, end: str) -> list[str]:
    return sorted(Path(file).stem for file in files if file.startswith(start) and file.endswith(end))


def _reading(results: Results) -> str:
    """Link to the reading beside the folders of results where it reads this study, else nothing."""
    path = results.folder.parent / "README.md"
    read = path.is_file() and f"]({results.folder.name}/tables/" in path.read_text(encoding="utf-8")
    return "../README.md" if read else ""


def answer(frame: pd.DataFrame, results: Results) -> str:
    """What a study found, in a sentence.

    Args:
        frame: The table that the page opens with: of hypotheses, for how many are decided; the headline, for the
            difference of BOOM and the full corpus; or all models, for the highest means.
        results: The study.
    """
    rows, names = frame.to_dict("records"), [str(name) for name in frame]
    if "against" in frame:
        decided = sum(row["verdict"] != INCONCLUSIVE for row in rows)
        return f"{decided} of {len(rows)} comparisons that the study was made for are decided."
    found = []
    for domain in results.domains:
        if "what" in frame and BOOM in set(frame["what"]):
            row = next(row for row in rows if row["what"] == BOOM)
            cell, lead = _cell(row, f"{domain} minus {results.full}", names, ""), f"{row['model']} minus {results.full}"
            found.append(f"{domain.replace('-', ' ')} {cell.text} ({cell.note})")
        else:
            row, lead = max(rows, key=lambda row: float(row[domain])), "Highest mean score"
            found.append(f"{domain.replace('-', ' ')} {row['model']} {_cell(row, domain, names, '').text}")
    return f"{lead}, in points of 100: {'; '.join(found)}."


# --- what is shown of some tables -------------------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was written; an empty cell is missing, "n/a" and "none" are text."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def _tasks(frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    """One row a task: what it is scored by, and the scores of the headline's models, or of base and reference."""
    about = [name for name in ("task", "family", SEEN, "metric") if name in frame]
    columns = [frame[about].drop_duplicates("task").set_index("task")]
    known = headline_models(results) or [name for name in ("base", results.reference) if name in results.models]
    for model in known:
        scores = frame[frame["model"] == model].set_index("task")[["score", "score low", "score high"]]
        columns.append(scores.set_axis([model, f"{model} low", f"{model} high"], axis=1))
    return pd.concat(columns, axis=1).reset_index()


# --- cells ------------------------------------------------------------------------------------------------------------


def shown_table(name: str, frame: pd.DataFrame, reference: str = "") -> ShownTable:
    """Cells of a table, without empty columns; a value, its bounds, its verdict and its notes share one.

    Args:
        name: The table's.
        frame: As `read_table` gives it.
        reference: The model that others are compared with.
    """
    names, records, groups = [str(column) for column in frame], frame.to_dict("records"), _GROUPS.get(name, "")
    inside = {f"{column}{end}" for column in names for end in (" low", " high", " note", WIDER)} | {groups}
    inside |= {verdict for column in names if (verdict := _verdict_column(column, names))}
    wanted = [column for column in names if column not in inside and frame[column].notna().any()]
    columns = [column for column in shown_columns(name, wanted, reference) if column in wanted]
    missing = {"merges": "not scored", "claims": ""}.get(name, "reference")
    cells = {column: [_cell(row, column, names, missing) for row in records] for column in columns}
    rows: dict[str, list[Sequence[Cell]]] = {}
    for row, shown in zip(records, zip(*cells.values(), strict=True), strict=True):
        rows.setdefault(str(row[groups]) if groups else "", []).append(shown)
    numeric = {column: is_numeric_dtype(frame[column]) for column in columns}
    return ShownTable(numeric, rows, len(columns) < len(wanted))


def _verdict_column(column: str, names: Sequence[str]) -> str | None:
    """The column that says how a difference is judged: the one after its bounds."""
    after = names[names.index(column) + 3 :][:1]
    return after[0] if " minus " in column and f"{column} low" in names and "verdict" in "".join(after) else None


def _cell(row: Mapping[Any, Any], column: str, names: Sequence[str], missing: str) -> Cell:
    value, verdict, sign = row[column], _verdict_column(column, names), " minus " in column or "difference" in column
    notes = [row.get(verdict), row.get(f"{column} note")]
    if pd.notna(row.get(f"{column}{WIDER} low")):
        notes.append(f"tasks too: {_interval(row, column + WIDER, sign)}")
    note = "; ".join(str(one) for one in notes if pd.notna(one))
    tone = _TONES.get(word(row[verdict] if verdict else value), "") if verdict or column.endswith(_JUDGED) else ""
    if f"{column} low" not in names:
        return Cell(plain(value), note, tone)
    if pd.isna(value):
        return Cell(missing)
    return Cell(f"{points(value, sign).replace('-', MINUS)} {_interval(row, column, sign)}", note, tone)


def _interval(row: Mapping[Any, Any], column: str, sign: bool) -> str:
    return f"[{points(row[f'{column} low'], sign)}, {points(row[f'{column} high'], sign)}]".replace("-", MINUS)


def plain(value: Any) -> str:
    """A value as text: whole numbers with separators from 1,000 on, nothing for what is missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) or pd.isna(value):
        return value if isinstance(value, str) else ""
    return f"{value:{',.0f' if float(value).is_integer() and abs(value) >= 1_000 else 'g'}}".replace("-", MINUS)


def breakable(text: str) -> Markup:
    """Text that may break inside names."""
    return Markup(re.sub(r"(?<=_)|(?<=[a-z])(?=[A-Z])", "<wbr>", str(escape(text))))


def marked(text: str) -> Markup:
    """Text with ``code`` between backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def drawing(path: Path) -> dict[str, Any]:
    """A figure's SVG as the source of an image, and its width and height in CSS pixels, from its viewBox in points."""
    content = path.read_text(encoding="utf-8")
    found = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', content)
    width, height = (round(float(part) * 4 / 3) for part in (found.groups() if found else (720, 480)))
    as_is = " \t()*+,-./:;<=>?@[]^_{|}~!$'"  # in a quoted attribute; base64 would make the page a third larger
    source = "data:image/svg+xml," + quote(content.replace('"', "'").replace("\n", " "), safe=as_is)
    return {"source": Markup(source), "width": width, "height": height}
