"""``report.html``: one page that shows a study to readers. It needs no other file and no network.

It shows what the report's CSV and SVG files hold, and links them. Beside this module, ``page.html.j2`` says what stands
where, ``page.yaml`` what tables and figures are called; this module makes cells of values, and finds the answer that
the page opens with. Text from data is escaped by the template alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.reporting.ablations import BOOM
from boom_utils.reporting.claims import INCONCLUSIVE, REFUTED, SUPPORTED, UNTESTED
from boom_utils.reporting.published import Published, table_name
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import SEEN, WIDER, points

MINUS = "\N{MINUS SIGN}"
_TONES = {
    **dict.fromkeys((SUPPORTED, "better", "yes"), "good"),
    **dict.fromkeys((REFUTED, "worse", "no"), "bad"),
    **dict.fromkeys((INCONCLUSIVE, "described", UNTESTED), "open"),
}
"""How a verdict is coloured; its word says the same."""
_JUDGED = ("verdict", "step up")
_NO_NUMBER = ("n/a", "reference", "not ")
"""How texts begin that stand where a number would."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number it is sorted by (None: it comes last), a note in small, and how it is coloured."""

    text: str
    value: float | None = None
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table of the page.

    Args:
        columns: The columns -> whether they are numbers.
        rows: By row, the group it is filtered by, and its cells.
        groups: Group -> rows of it, in the order of the buttons; empty where nothing is filtered.
    """

    columns: Mapping[str, bool]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    groups: Mapping[str, int]


def page(results: Results, folder: Path, files: Collection[str], published: Published | None) -> str:
    """The page.

    Args:
        results: The study.
        folder: Of the report: holds its tables, figures and claims.
        files: Their names in it; others in the folder are no part of the page.
        published: What others published; None where it is not at hand.
    """

    def table(name: str, source: str, groups: str, missing: str) -> ShownTable | None:
        if source not in files:
            return None
        frame, shape = read_table(folder / source), _SHAPES.get(name.partition("_")[0])
        return shown_table(shape(frame, results) if shape else frame, groups, missing)

    names = {kind: _names(files, f"{kind}/", suffix) for kind, suffix in (("tables", ".csv"), ("figures", ".svg"))}
    captions = yaml.safe_load(_text("page.yaml"))
    if published:
        for benchmark in published.benchmarks:
            shown = published.released(benchmark)[["model", "revision"]].drop_duplicates().to_numpy()
            text = f"Revisions: {', '.join(f'{model} at {revision[:8]}' for model, revision in shown)}."
            captions["tables"][table_name(benchmark)] = (f"{benchmark}: the released models", text)
    main = "headline" if "headline" in names["tables"] else "models"
    layout: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.do"]}
    loader = PackageLoader("boom_utils", "reporting")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **layout)
    environment.filters |= {"code": marked, "breakable": breakable}
    return environment.get_template("page.html.j2").render(
        study=results.study,
        models=results.models,
        reference=results.reference,
        full=results.full,
        domains={domain: len(results.tasks(domain)) for domain in results.domains},
        main=main,
        found=answer(read_table(folder / f"tables/{main}.csv"), results),
        verdicts=Counter(map(_word, read_table(folder / "claims.csv")["verdict"])) if "claims.csv" in files else {},
        tones=_TONES,
        captions=captions,
        read_table=table,
        drawing=lambda name: drawing(folder / "figures" / f"{name}.svg"),
        published=published is not None,
        notebooks=sorted(path.stem for path in (PROJECT_ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
        **names,
    )


def _text(name: str) -> str:
    return resources.files("boom_utils.reporting").joinpath(name).read_text(encoding="utf-8")


def _names(files: Collection[str], start: str, end: str) -> list[str]:
    return sorted(Path(file).stem for file in files if file.startswith(start) and file.endswith(end))


def answer(frame: pd.DataFrame, results: Results) -> list[tuple[str, str, Cell]]:
    """What a study found, by domain: domain, model and value.

    Args:
        frame: The headline, for the difference of BOOM and the full corpus; or all models, for the highest mean.
        results: The study.
    """
    found, rows, names = [], frame.to_dict("records"), [str(name) for name in frame]
    for domain in results.domains:
        if "what" in frame and BOOM in set(frame["what"]):
            row, column = next(row for row in rows if row["what"] == BOOM), f"{domain} minus {results.full}"
        else:
            row, column = max(rows, key=lambda row: float(row[domain])), domain
        found.append((domain, str(row["model"]), _cell(row, column, names, "")))
    return found


# --- what is shown of some tables -------------------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    """A table as it was written; an empty cell is missing, "n/a" and "none" are text."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def _tasks(frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    """One row a task: what it is scored by, and the number of values behind a score."""
    new = {task["name"]: "yes" for task in results.study["tasks"] if task["new_data"]}
    wanted = ("task", "family", "domain", SEEN, "metric", "samples")
    shown = frame[[name for name in wanted if name in frame]].drop_duplicates("task")
    shown.insert(3, "of the new data", shown["task"].map(new))
    return shown.rename(columns={"samples": "values behind a score"})


def _two_decimals(cell: Any) -> Any:
    return cell if (number := number_of(cell)) is None else f"{number:.2f}"


_SHAPES: dict[str, Callable[[pd.DataFrame, Results], pd.DataFrame]] = {
    "headline": lambda frame, results: frame.drop(columns="examples"),
    "studied": _tasks,
    "claims": lambda frame, results: frame.rename(columns={"unit": "difference note"}),
    "published": lambda frame, results: frame.map(_two_decimals),
}
"""First word of a table's name -> what is shown of it; the others are shown as they are."""


# --- cells ------------------------------------------------------------------------------------------------------------


def shown_table(frame: pd.DataFrame, groups: str = "", missing: str = "reference") -> ShownTable:
    """Cells of a table, without empty columns; a value, its bounds, its verdict and its notes share one.

    Args:
        frame: As `read_table` gives it.
        groups: Column whose values the rows can be filtered by.
        missing: What stands where a value with bounds is not a number.
    """
    names, records = [str(name) for name in frame], frame.to_dict("records")
    inside = {f"{name}{end}" for name in names for end in (" low", " high", " note", WIDER)}
    inside |= {verdict for name in names if (verdict := _verdict_column(name, names))}
    columns = [name for name in names if name not in inside and frame[name].notna().any()]
    cells = {name: [_cell(row, name, names, missing) for row in records] for name in columns}
    grouped = [str(row[groups]) if groups else "" for row in records]
    order = [*_TONES, *map(_word, grouped)]  # of one word the first row counts
    counts = sorted(Counter(grouped).items(), key=lambda one: order.index(_word(one[0])))
    rows = list(zip(grouped, zip(*cells.values(), strict=True), strict=True))
    return ShownTable({name: _is_numeric(cells[name]) for name in columns}, rows, dict(counts if groups else ()))


def _verdict_column(column: str, names: Sequence[str]) -> str | None:
    """The column that says how a difference is judged: the one after its bounds."""
    after = names[names.index(column) + 3 :][:1]
    return after[0] if " minus " in column and f"{column} low" in names and "verdict" in "".join(after) else None


def _word(verdict: object) -> str:
    """A verdict without what it is limited to: ``supported on these tasks`` is ``supported``."""
    return str(verdict).partition(" on these ")[0]


def _cell(row: Mapping[Any, Any], column: str, names: Sequence[str], missing: str) -> Cell:
    value, verdict, sign = row[column], _verdict_column(column, names), " minus " in column or "difference" in column
    notes = [row.get(verdict), row.get(f"{column} note")]
    if pd.notna(row.get(f"{column}{WIDER} low")):
        notes.append(f"tasks too: {_interval(row, column + WIDER, sign)}")
    note = "; ".join(str(one) for one in notes if pd.notna(one))
    tone = _TONES.get(_word(row[verdict] if verdict else value), "") if verdict or column.endswith(_JUDGED) else ""
    if f"{column} low" not in names:
        return Cell(plain(value), number_of(value), note, tone)
    if pd.isna(value):
        return Cell(missing)
    return Cell(f"{points(value, sign).replace('-', MINUS)} {_interval(row, column, sign)}", float(value), note, tone)


def _interval(row: Mapping[Any, Any], column: str, sign: bool) -> str:
    return f"[{points(row[f'{column} low'], sign)}, {points(row[f'{column} high'], sign)}]".replace("-", MINUS)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    texts = [cell.text for cell in cells if cell.text and cell.value is None]
    return all(text.startswith(_NO_NUMBER) for text in texts) and any(cell.value is not None for cell in cells)


def number_of(value: Any) -> float | None:
    """The number a cell is sorted by; None for text and for what is missing."""
    number = pd.to_numeric(value, errors="coerce")
    return None if isinstance(value, bool) or not math.isfinite(number) else float(number)


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
