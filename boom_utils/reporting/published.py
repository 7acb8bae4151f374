"""Scores that others published, beside ours: never averaged over fewer tasks, never called the paper's number.

The files are read-only data (``results/published``, described there) and read strictly: a wrong cell is an error with
file and line. A mean is shown only over a complete set of tasks. The paper's own tables are an empty slot that a reader
fills; until then a column says "not filled".
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.errors import ResultsError, bullet_list
from boom_utils.reporting.headline import headline_models
from boom_utils.reporting.panels import COLOURS, HEIGHT
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import Table

PUBLISHED = PROJECT_ROOT / "results" / "published"
"""Scores that come with the project."""
PUBLISHED_FILES = ("published_scores.csv", "published_means.csv", "paper_tables.csv")
NOT_FILLED = "not filled"
PAPER = "paper"
"""Name of the table beside the paper's own."""
RELEASED = "ICT-TIME-and-Querit/"
"""Before the names of the models that the paper's authors released."""
MEAN_TASK, MEAN_TYPE = "mean (task)", "mean (type)"
_MARKERS = "osD^v<>P*"
_COLUMNS: Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "published_scores.csv": (
        ("model", "revision", "benchmark", "task"),
        ("task_type", "main_score", "source"),
        ("prompt",),
    ),
    "published_means.csv": (
        ("model", "revision", "benchmark"),
        ("tasks_found", "tasks_in_benchmark", "mean_task", "mean_type", "per_type(mean,n)"),
        ("missing",),
    ),
    "paper_tables.csv": (("table", "row", "column"), ("value", "page"), ()),
}
"""File -> columns that no two rows share, further columns, and those that may be empty."""
_NUMBERS = {
    **dict.fromkeys(("main_score", "mean_task", "mean_type"), (0.0, 100.0)),
    **dict.fromkeys(("tasks_found", "tasks_in_benchmark", "page"), (1.0, math.inf)),
    "value": (-math.inf, math.inf),
}
_SOURCE = re.compile(r"https://\S+/[0-9a-f]{40}/\S+\.json \(n=\d+ splits=\S+ mteb=(?P<mteb>\S+)\)")
"""An address with a commit in it, then what was averaged and the mteb version."""


class PaperCell(NamedTuple):
    """One number a reader copied from a table of the paper, on the paper's scale."""

    table: str
    row: str
    column: str
    value: float
    page: int


@dataclass(frozen=True)
class Shown:
    """One score of a table: 0-100, with what decides whether it can be compared; None: not known."""

    score: float
    mteb_version: str | None
    prompt: str | None
    revision: str


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark as it was published: the revisions whose scores were put together.

    Args:
        label: Short name of model and revision, unique in its benchmark.
        model: Its whole name.
        revision: As published_means.csv states it: one, several joined by ``+``, or ``*``.
        scores: Task -> its score.
    """

    label: str
    model: str
    revision: str
    scores: Mapping[str, Shown]


@dataclass(frozen=True)
class Published:
    """The content of a folder of published scores.

    Args:
        tasks: Benchmark -> task -> task type, of all its tasks; the type is empty for a task nobody has scored.
        entries: Benchmark -> its models, in the order of published_means.csv.
        paper: What a reader filled in from the paper; empty as it comes.
    """

    tasks: Mapping[str, Mapping[str, str]]
    entries: Mapping[str, Sequence[Entry]]
    paper: Sequence[PaperCell] = ()


def read_published(folder: Path) -> Published:
    """Read published_scores.csv, published_means.csv and paper_tables.csv.

    Raises:
        ResultsError: A file is missing or not as its README says (all problems at once, with file and line), or a
            stated mean is not what the scores give.
    """
    problems: list[str] = []
    scores, means, paper = (_read(folder / name, problems) for name in PUBLISHED_FILES)
    tasks, entries = _assembled(scores, means, problems) if not problems else ({}, {})
    if problems:
        raise ResultsError(
            "published scores cannot be used",
            where=folder,
            found=bullet_list(problems, 20),
            fix="take the files of the repository again; README.md there describes them",
        )
    cells = [(row["table"], row["row"], row["column"], float(row["value"]), int(row["page"])) for row in paper]
    return Published(tasks, entries, tuple(map(PaperCell._make, cells)))


def _read(path: Path, problems: list[str]) -> list[dict[str, str]]:
    """The rows of a file, with ``line`` as a further cell; what is wrong with it is added to ``problems``."""
    key, more, optional = _COLUMNS[path.name]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = list(reader), list(reader.fieldnames or [])
    except FileNotFoundError:
        problems.append(f"{path.name}: the file is missing")
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path.name}: {error}")
        return []
    needed = {*key, *more, *(optional if "missing" in optional else ())}
    wrong = [f"missing column '{name}'" for name in sorted(needed - {*header})]
    wrong += [f"unknown column '{name}'" for name in header if name not in {*needed, *optional}]
    wrong += [f"repeated column '{name}'" for name in sorted({*header}) if header.count(name) > 1]
    problems += [f"{path.name}, line 1: {one}" for one in wrong]
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows if not wrong else [], 2):
        row["line"] = line = f"{path.name}, line {number}"
        if None in row or None in row.values():
            problems.append(f"{line}: not {len(header)} cells, as many as there are columns")
            continue
        problems += [f"{line}: {name} is empty" for name in (*key, *more) if not row[name].strip()]
        for name in {*_NUMBERS} & {*header}:
            low, high = _NUMBERS[name]
            if not low <= _number(row[name]) <= high or math.isinf(_number(row[name])):
                problems.append(f"{line}: {name} is {row[name]!r}, expected a number from {low:g} to {high:g}")
        if (first := seen.setdefault(tuple(row[name] for name in key), number)) != number:
            problems.append(f"{line}: the same as line {first} ({', '.join(row[name] for name in key)})")
    return rows


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _assembled(
    scores: Sequence[Mapping[str, str]], means: Sequence[Mapping[str, str]], problems: list[str]
) -> tuple[dict[str, dict[str, str]], dict[str, list[Entry]]]:
    """Task sets and entries of every benchmark; adds to ``problems`` what does not fit together."""
    tasks: dict[str, dict[str, str]] = defaultdict(dict)
    shown: dict[str, Shown] = {}
    for row in scores:
        if tasks[row["benchmark"]].setdefault(row["task"], row["task_type"]) != row["task_type"]:
            problems.append(f"{row['line']}: task {row['task']} has two types")
        if (source := _SOURCE.fullmatch(row["source"])) is None:
            expected = "ADDRESS/COMMIT/FILE.json (n=... splits=... mteb=...)"
            problems.append(f"{row['line']}: source is not '{expected}': {row['source']!r}")
            continue
        version = None if source["mteb"] == "None" else source["mteb"]
        shown[row["line"]] = Shown(float(row["main_score"]), version, row.get("prompt") or None, row["revision"])
    for mean in means:
        for task in filter(None, mean["missing"].split(";")):
            tasks[mean["benchmark"]].setdefault(task, "")
    entries, unused = defaultdict[str, list[Entry]](list), {row["line"]: row for row in scores}
    for mean in means if not problems else []:
        own = [row for row in scores if _covers(mean, row)]
        found = {row["task"]: shown[row["line"]] for row in own}
        unused = {line: row for line, row in unused.items() if row not in own}
        if twice := sorted({row["task"] for row in own if [one["task"] for one in own].count(row["task"]) > 1}):
            who = mean["model"]
            problems.append(f"{mean['line']}: {who} has two scores of {', '.join(twice)} among its revisions")
        entries[mean["benchmark"]].append(Entry(_label(mean, means), mean["model"], mean["revision"], found))
        problems += _disagreements(mean, found, tasks[mean["benchmark"]])
    problems += [f"{line}: no row of published_means.csv is over this score" for line in (unused if means else ())]
    return {name: dict(sorted(known.items())) for name, known in tasks.items()}, dict(entries)


def _covers(mean: Mapping[str, str], score: Mapping[str, str]) -> bool:
    same = all(mean[name] == score[name] for name in ("model", "benchmark"))
    return same and (mean["revision"] == "*" or score["revision"] in mean["revision"].split("+"))


def _label(mean: Mapping[str, str], means: Sequence[Mapping[str, str]]) -> str:
    """The model's own name; its revision too where the model is there twice."""
    name = mean["model"].split("/")[-1]
    same = [o for o in means if o["benchmark"] == mean["benchmark"] and o["model"].split("/")[-1] == name]
    return f"{name} @{mean['revision'][:8]}" if len(same) > 1 else name


def _disagreements(mean: Mapping[str, str], found: Mapping[str, Shown], known: Mapping[str, str]) -> list[str]:
    """What a stated mean says otherwise than its scores; 0.001 is two roundings to three digits."""
    given = means_of({task: one.score for task, one in found.items()}, known) if found else (math.nan, math.nan)
    said: list[tuple[str, float | str, float | str]] = [
        ("tasks_found", int(mean["tasks_found"]), len(found)),
        ("tasks_in_benchmark", int(mean["tasks_in_benchmark"]), len(known)),
        ("missing", ";".join(sorted(filter(None, mean["missing"].split(";")))), ";".join(sorted({*known} - {*found}))),
        ("mean_task", float(mean["mean_task"]), given[0]),
        ("mean_type", float(mean["mean_type"]), given[1]),
    ]
    return [
        f"{mean['line']}: {name} is {stated}, the scores give {computed}"
        for name, stated, computed in said
        if stated != computed and not (isinstance(stated, float) and abs(stated - float(computed)) <= 1e-3)
    ]


def means_of(scores: Mapping[str, float], types: Mapping[str, str]) -> tuple[float, float]:
    """Mean over tasks, and mean over task types of their tasks' means; of whatever tasks are given."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for task, score in scores.items():
        by_type[types[task]].append(score)
    return float(np.mean(list(scores.values()))), float(np.mean([np.mean(group) for group in by_type.values()]))


# --- tables -----------------------------------------------------------------------------------------------------------


def table_name(benchmark: str) -> str:
    """Name of a benchmark's table, figure and place in the page.

    >>> table_name("MTEB(eng, v2)")
    'published_mteb_eng_v2'
    """
    return "published_" + re.sub(r"[^a-z0-9]+", "_", benchmark.lower()).strip("_")


def released(published: Published, benchmark: str) -> list[str]:
    """Labels of the authors' models on a benchmark."""
    return [entry.label for entry in published.entries[benchmark] if entry.model.startswith(RELEASED)]


def side_by_side_tables(published: Published | None) -> dict[str, Table]:
    """A table a benchmark that released models were scored on, and one beside the paper's; none if nothing is known.

    Where a task was scored by both, ours stand in the same table; else it holds the released models alone.
    """
    if published is None:
        return {}
    tables: dict[str, Table] = {
        table_name(benchmark): partial(_benchmark_table, published=published, benchmark=benchmark)
        for benchmark in published.tasks
        if released(published, benchmark)
    }
    return tables | {PAPER: partial(_paper_tables, published=published)}


def _benchmark_table(results: Results, published: Published, benchmark: str) -> pd.DataFrame:
    """Ours, of the headline's models, and the released ones."""
    frame = published_table(results, published, benchmark, released(published, benchmark))
    ours = set(measured_scores(results, published.tasks[benchmark])) - set(headline_models(results) or results.models)
    return frame[[name for name in frame if str(name).removesuffix(" note") not in ours]]


def _paper_tables(results: Results, published: Published) -> pd.DataFrame:
    """Ours beside every table of the paper that a reader filled in; "not filled" where none is."""
    shown = headline_models(results) or dict.fromkeys(results.models, "")
    frames = []
    for table in sorted({cell.table for cell in published.paper}) or [""]:
        frame = paper_table(results, published, table)
        known = {cell.row for cell in published.paper if cell.table == table}
        frames.append(frame[frame["row"].isin({*shown, *known})].assign(table=table))
    whole = pd.concat(frames, ignore_index=True)
    return whole[["table", *(name for name in whole if name != "table")]]


def published_table(
    results: Results | None, published: Published, benchmark: str, models: Sequence[str] | None = None
) -> pd.DataFrame:
    """Scores side by side: one row a task, then the two means; two columns a model, its score and its note.

    A note says what keeps a score from being compared: an mteb version other than ours, a prompt that is another or
    not published. Without ours it says the mteb version. A score that is not there is "n/a"; a mean over fewer tasks
    than the benchmark has is "n/a (missing: ...)".

    Args:
        results: Our study; its models are shown where they were scored on tasks of the benchmark. None: only others'.
        published: What `read_published` gave.
        benchmark: A name of `Published.tasks`.
        models: Published models to show, by label; all when None.

    Raises:
        ResultsError: No such benchmark or model.
    """
    types, ours, columns = _columns(results, published, benchmark, models)
    reference = next(iter(ours.values()), {})
    rows = [{"task": task, "type": kind or "not stated"} for task, kind in types.items()]
    rows += [{"task": label, "type": ""} for label in (MEAN_TASK, MEAN_TYPE)]
    frame = pd.DataFrame(rows)
    for name, scores in columns.items():
        missing = [task for task in types if task not in scores]
        means: list[Any] = [f"n/a (missing: {', '.join(missing)})"] * 2
        if not missing:
            means = [round(mean, 4) for mean in means_of({task: scores[task].score for task in types}, types)]
        frame[name] = [*(scores[task].score if task in scores else "n/a" for task in types), *means]
        notes = [_note(scores[task], reference.get(task), name in ours) if task in scores else "" for task in types]
        frame[f"{name} note"] = [*notes, *[_mixture(scores)] * 2]
    return frame.astype(object)


def _columns(
    results: Results | None, published: Published, benchmark: str, models: Sequence[str] | None
) -> tuple[Mapping[str, str], dict[str, dict[str, Shown]], dict[str, Mapping[str, Shown]]]:
    """Task types of a benchmark, our scores, and all scores by model, ours first."""
    if benchmark not in published.tasks:
        raise ResultsError(f"no benchmark '{benchmark}' is published", expected=list(published.tasks))
    types, known = published.tasks[benchmark], {one.label: one.scores for one in published.entries[benchmark]}
    if unknown := sorted({*(models or ())} - {*known}):
        raise ResultsError(f"nothing is published of {', '.join(unknown)}", where=benchmark, expected=list(known))
    ours = measured_scores(results, types) if results else {}
    return types, ours, {**ours, **{name: known[name] for name in (known if models is None else models)}}


def measured_scores(results: Results, types: Mapping[str, str]) -> dict[str, dict[str, Shown]]:
    """Our models' scores on the tasks of a benchmark, times 100; models without any are left out.

    The mteb version is that of mteb's own result, the prompt from the study's task where it is stated there.
    """
    found: dict[str, dict[str, Shown]] = {}
    for model in results.models:
        for task in results.study["tasks"]:
            name = task["name"]
            if name not in types:
                continue
            version = results.stored_result(model, name).get("mteb_version")
            score = 100 * results.task_score(model, name).value
            shown = Shown(round(score, 4), version, task.get("prompt"), "ours")
            found.setdefault(model, {})[name] = shown
    return found


def _note(shown: Shown, ours: Shown | None, is_ours: bool) -> str:
    """What keeps one score from being compared with ours; its mteb version where there is no score of ours."""
    version = f"mteb {shown.mteb_version or 'version not stated'}"
    parts = [] if shown.revision != "external" else ["revision not stated"]
    if is_ours or ours is None:
        return "; ".join([version, *parts])
    if shown.mteb_version is None or shown.mteb_version != ours.mteb_version:
        parts.append(f"{version}, ours {ours.mteb_version or 'not stated'}")
    if shown.prompt is None:
        parts.append("prompt not published")
    elif ours.prompt is None:
        parts.append("our prompt not stated")
    elif shown.prompt != ours.prompt:
        parts.append("another prompt than ours")
    return "; ".join(parts)


def _mixture(scores: Mapping[str, Shown]) -> str:
    """What a mean mixes: several mteb versions, several revisions."""
    versions = sorted({shown.mteb_version or "not stated" for shown in scores.values()})
    revisions = sorted({shown.revision[:8] for shown in scores.values()})
    parts = [f"mteb versions {', '.join(versions)}"] if len(versions) > 1 else []
    return "; ".join(parts + ([f"revisions {', '.join(revisions)}"] if len(revisions) > 1 else []))


def shared_figures(results: Results, published: Published | None) -> dict[str, Any]:
    """A figure a benchmark of which the study has scored a task."""
    if published is None:
        return {}
    scored = {task["name"] for task in results.study["tasks"]}
    return {
        table_name(benchmark): partial(
            _benchmark_figure, published=published, benchmark=benchmark, models=released(published, benchmark)
        )
        for benchmark, types in published.tasks.items()
        if scored & {*types}
    }


def _benchmark_figure(results: Results, published: Published, benchmark: str, models: Sequence[str]) -> Figure:
    return published_figure(published, benchmark, results, models)


def published_figure(
    published: Published, benchmark: str, results: Results | None = None, models: Sequence[str] | None = None
) -> Figure:
    """Score of every task of a benchmark, a marker a model; hollow where the mteb version is not the first model's.

    Args:
        published: What `read_published` gave.
        benchmark: A name of `Published.tasks`.
        results: Our study, whose models come first.
        models: Published models to draw, by label; all when None.
    """
    types, ours, columns = _columns(results, published, benchmark, models)
    tasks = sorted(types, key=lambda task: (types[task], task))
    rows = {task: number for number, task in enumerate(tasks)}
    figure = Figure(figsize=(8, min(HEIGHT, 0.24 * len(tasks) + 0.2 * len(columns) + 1.2)), layout="constrained")
    axis = figure.subplots()
    first = next(iter(columns.values()), {})
    for number, (name, scores) in enumerate(columns.items()):
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        axis.plot([], [], marker, color=colour, ms=5, label=f"{name} ({len(scores)} of {len(tasks)} tasks)")
        for task, shown in scores.items():
            same = task in first and first[task].mteb_version == shown.mteb_version is not None
            face = colour if same else "none"
            axis.plot(shown.score, rows[task], marker, ms=5, color=colour, markerfacecolor=face)
    axis.set_yticks(range(len(tasks)), [f"{task} ({types[task] or 'not stated'})" for task in tasks], fontsize=7)
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_xlabel("main score x 100; hollow: mteb version not stated or not that of the first model")
    axis.set_title(f"{benchmark}: published scores" + (" and ours" if ours else ""))
    axis.grid(axis="both", lw=0.4, alpha=0.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def paper_table(results: Results, published: Published, table: str) -> pd.DataFrame:
    """Our means beside what a reader filled in from one table of the paper.

    Args:
        results: Our study.
        published: What `read_published` gave.
        table: The paper's table, as in the column ``table`` of paper_tables.csv.

    Returns:
        One row a model of ours and domain, times 100 with its interval; ``paper`` is the value that was filled in or
        "not filled", ``page`` where it stands. Values of the paper without a row of ours come last.
    """
    filled = {(cell.row, cell.column): cell for cell in published.paper if cell.table == table}
    rows: list[dict[str, Any]] = []
    for model in results.models:
        for domain in results.domains:
            mean, cell = results.domain_mean(model, domain), filled.pop((model, domain), None)
            row = {"row": model, "column": domain, "ours": round(100 * mean.value, 4)}
            row |= {"ours low": round(100 * mean.low, 4), "ours high": round(100 * mean.high, 4)}
            rows.append(row | _paper_columns(cell))
    for (name, column), cell in filled.items():
        row = {"row": name, "column": column, "ours": np.nan, "ours low": np.nan, "ours high": np.nan}
        rows.append(row | _paper_columns(cell))
    return pd.DataFrame(rows)


def _paper_columns(cell: PaperCell | None) -> dict[str, Any]:
    return {"paper": cell.value if cell else NOT_FILLED, "page": str(cell.page) if cell else ""}
