"""``report.html``: one page that shows a study to readers. It needs no other file and no network.

It shows what the report's CSV and SVG files hold, and links them; the style and the script beside this module are
written into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

import pandas as pd

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.reporting import page_sections as sections
from boom_utils.reporting.captions import FIGURES, title_and_caption
from boom_utils.reporting.page_parts import TableText, html_figure, html_table, read_table
from boom_utils.reporting.published import Published
from boom_utils.reporting.results import Results

MAIN_TABLES = ("headline", "reach", "seeds")
COST_TABLES = ("members", "costs")
ORDER = (
    *("models", "checks", "schedules", "incremental", "variants", "pareto", "granularities", "methods", "datasets"),
    *("tasks", "corpus"),
)
"""Of the tables that have no section of their own; others come after them."""
MISSING = {"claims": "", "datasets": "", "paper": "not measured"}
"""What stands where an estimate of a table is not a number; elsewhere it is the reference's own difference."""


@dataclass
class Page:
    """A page being written: numbers its tables and figures, and remembers what the contents list.

    Args:
        folder: Of the report.
        files: Names of its files; others in the folder are no part of it.
    """

    folder: Path
    files: Collection[str]
    tables: int = 0
    figures: int = 0
    contents: list[tuple[str, str, list[tuple[str, str]]]] = field(default_factory=list)

    def section(self, anchor: str, title: str, body: str) -> str:
        """A section with its heading; empty for one without a body."""
        return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{body}</section>\n' if body else ""

    def begin(self, anchor: str, title: str) -> None:
        """Open an entry of the contents."""
        self.contents.append((anchor, title, []))

    def table(self, name: str, frame: pd.DataFrame | None = None, **given: str | None) -> str:
        """A table by its file's name below ``tables/``, or a frame with its texts; nothing where it does not exist."""
        source = given.get("source") or f"tables/{name}.csv"
        if frame is None:
            if source not in self.files:
                return ""
            frame = read_table(self.folder / source)
        title, caption = title_and_caption("tables", name)
        title, caption = given.get("title") or title, given.get("caption") or caption
        self.tables += 1
        self.contents[-1][2].append((f"t-{name}", f"Table {self.tables}. {title}"))
        missing = MISSING.get(name, "reference")
        text = TableText(f"t-{name}", self.tables, title, caption, source, given.get("groups"), missing)
        return html_table(frame, text)

    def figure(self, path: Path) -> str:
        """A figure by its SVG."""
        title, caption = title_and_caption("figures", path.stem)
        if not caption and path.stem.startswith("published_"):
            title, caption = sections.published_figure_text(path.stem)
        self.figures += 1
        self.contents[-1][2].append((f"f-{path.stem}", f"Figure {self.figures}. {title}"))
        return html_figure(path, f"f-{path.stem}", self.figures, title, caption)


def page(results: Results, folder: Path, files: Collection[str], published: Published | None) -> str:
    """The page.

    Args:
        results: The study.
        folder: Of the report: holds its tables, figures, claims and deviations.
        files: Their names in it.
        published: What others published; None where it is not at hand.
    """
    making = Page(folder, files)
    body = "".join(_sections(making, results, published))
    profile = escape(str(results.study.get("profile", "")))
    style, script = (
        resources.files("boom_utils.reporting").joinpath(f"page.{suffix}").read_text(encoding="utf-8")
        for suffix in ("css", "js")
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>BOOM reproduction: {profile}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">To the content</a>\n{_contents(making)}'
        f'<main id="content">\n<header><p class="kind">Reproduction report</p>\n'
        f"<h1>Bagging-based model merging for text embeddings: profile <code>{profile}</code></h1>\n"
        f"{sections.standfirst(results)}</header>\n{body}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _sections(making: Page, results: Results, published: Published | None) -> Iterator[str]:
    parts: dict[tuple[str, str], Callable[[], str]] = {
        ("headline", "Main result"): lambda: _headline(making, results),
        ("studied", "What was studied"): lambda: (
            sections.studied(results)
            + making.table(
                "studied_tasks",
                sections.task_frame(results),
                title="Tasks",
                caption="What models are scored on, and the values behind each score.",
                source="study.json",
            )
        ),
        ("claims", "Claims of the paper"): lambda: _claims(making, results),
        ("tables", "Tables"): lambda: "".join(making.table(name) for name in _other_tables(making.files)),
        ("figures", "Figures"): lambda: "".join(making.figure(path) for path in _figures(making)),
        ("cost", "Training costs"): lambda: "".join(making.table(name) for name in COST_TABLES),
        ("published", "Published scores"): lambda: _published(making, results, published),
        ("environment", "Environment"): lambda: sections.environment(results),
        ("deviations", "Deviations from the paper"): lambda: _deviations(making),
        ("notebooks", "Notebooks, and how to make this again"): lambda: sections.notebooks(results, _notebooks()),
    }
    for (anchor, title), make in parts.items():
        making.begin(anchor, title)
        if body := make():
            yield making.section(anchor, title, body)
        else:
            making.contents.pop()


def _headline(making: Page, results: Results) -> str:
    frame = read_table(making.folder / "tables/headline.csv") if "tables/headline.csv" in making.files else None
    table = ""
    if frame is not None:
        table = making.table("headline", sections.headline_frame(frame))
    return sections.headline_text(results, frame) + sections.limits(results) + table


def _claims(making: Page, results: Results) -> str:
    if "claims.csv" not in making.files:
        return ""
    frame = read_table(making.folder / "claims.csv")
    frame = frame.rename(columns={"unit": "difference note"})
    first = ["verdict", "claim", "comparison", "difference", "difference low", "difference high", "difference note"]
    last = ["part", "known from"]
    frame = frame[[*first, *(name for name in frame if name not in (*first, *last)), *last]]
    counts = Counter(frame["verdict"])
    table = making.table("claims", frame, title="Claims ledger", source="claims.csv", groups="verdict", caption=CLAIMS)
    return sections.claim_counts(counts, results) + table + making.table("reach") + making.table("seeds")


CLAIMS = (
    "Each claim of the paper in our words, what tests it here, and whether it holds. Differences are ours, paired, in "
    "the unit named beside them, with intervals; p values are corrected over all rows (Holm); `detectable` is the true "
    "difference found with a power of 80 %, not corrected for the other rows."
)


DEVIATIONS = (
    "Every value of the profile beside what is known of the paper's; `source` says where that is known from. Ours: the "
    "paper's value is not known, or it has no such thing."
)


def _deviations(making: Page) -> str:
    if "deviations.csv" not in making.files:
        return ""
    frame = sections.deviation_frame(read_table(making.folder / "deviations.csv"))
    return making.table(
        "deviations",
        frame,
        title="Deviation ledger",
        caption=DEVIATIONS,
        source="deviations.csv",
        groups="status",
    )


def _published(making: Page, results: Results, published: Published | None) -> str:
    if published is None:
        return "<p>The published scores are not beside this installation.</p>\n"
    found = [sections.published_intro()]
    for benchmark in published.tasks:
        name, title, caption = sections.published_text(results, published, benchmark)
        if (file := f"tables/{name}.csv") in making.files:
            frame = read_table(making.folder / file).map(sections.two_decimals)
            found.append(making.table(name, frame, title=title, caption=caption))
    return "".join([*found, making.table("paper")])


def _other_tables(files: Collection[str]) -> list[str]:
    """Names of the tables without a section of their own, in reading order."""
    names = [Path(file).stem for file in files if file.startswith("tables/") and file.endswith(".csv")]
    apart = {*MAIN_TABLES, *COST_TABLES, "paper", *(name for name in names if name.startswith("published_"))}
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted({*names} - apart, key=lambda name: (places.get(name, len(places)), name))


def _figures(making: Page) -> list[Path]:
    """The figures, in the order in which captions are listed, then others."""
    places = {name: place for place, name in enumerate(FIGURES)}
    found = [making.folder / file for file in making.files if file.startswith("figures/") and file.endswith(".svg")]
    return sorted(found, key=lambda path: (places.get(path.stem, len(places)), path.stem))


def _notebooks() -> list[str]:
    """Names of the project's notebooks."""
    return sorted(path.stem for path in (PROJECT_ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def _contents(making: Page) -> str:
    """The table of contents."""
    rows = []
    for anchor, title, inside in making.contents:
        entries = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in inside)
        nested = f"<ul>{entries}</ul>" if entries else ""
        rows.append(f'<li><a href="#{anchor}">{escape(title)}</a>{nested}</li>')
    listed = f"<ol>{''.join(rows)}</ol>"
    return f'<nav aria-label="Contents"><details open><summary>Contents</summary>{listed}</details></nav>\n'
