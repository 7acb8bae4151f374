"""Scores that others published, beside ours: never averaged over fewer tasks, never called the paper's number.

The files are read-only data (``results/published``, described there). A mean is shown only over a complete set of
tasks. The paper's own tables are an empty slot that a reader fills; until then a column says "not filled".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from boom_utils.errors import ResultsError
from boom_utils.reporting.panels import COLOURS
from boom_utils.reporting.published_files import PaperCell, PublishedMean, PublishedScore, read_rows
from boom_utils.reporting.results import Results, read_json_object

NOT_FILLED = "not filled"
MEAN_TASK, MEAN_TYPE = "mean (task)", "mean (type)"
_MARKERS = "osD^v<>P*"


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark as it was published: the revisions whose scores were put together.

    Args:
        label: Short name of model and revision, unique in its benchmark.
        stated: The row of published_means.csv it comes from.
        scores: Task -> its score.
    """

    label: str
    stated: PublishedMean
    scores: Mapping[str, PublishedScore]


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


@dataclass(frozen=True)
class Shown:
    """One score of a table: 0-100, with what decides whether it can be compared; None: not known."""

    score: float
    mteb_version: str | None
    prompt: str | None
    revision: str


def read_published(folder: Path) -> Published:
    """Read published_scores.csv, published_means.csv and paper_tables.csv.

    Raises:
        ResultsError: A file is missing or not as its README says (all problems at once, with file and line), or a
            stated mean is not what the scores give.
    """
    problems: list[str] = []
    scores = read_rows(folder / "published_scores.csv", PublishedScore, problems)
    means = read_rows(folder / "published_means.csv", PublishedMean, problems)
    paper = read_rows(folder / "paper_tables.csv", PaperCell, problems)
    tasks, entries = _assembled(scores, means, problems) if not problems else ({}, {})
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        raise ResultsError(
            "published scores cannot be used" + "".join(f"\n    - {problem}" for problem in shown),
            where=folder,
            fix="take the files of the repository again; README.md there describes them",
        )
    return Published(tasks, entries, tuple(paper))


def _assembled(
    scores: Sequence[PublishedScore], means: Sequence[PublishedMean], problems: list[str]
) -> tuple[dict[str, dict[str, str]], dict[str, list[Entry]]]:
    """Task sets and entries of every benchmark; adds to ``problems`` what does not fit together."""
    tasks: dict[str, dict[str, str]] = defaultdict(dict)
    for score in scores:
        if tasks[score.benchmark].setdefault(score.task, score.task_type) != score.task_type:
            problems.append(f"{score.line}: task {score.task} has two types")
    for mean in means:
        for task in mean.missing:
            tasks[mean.benchmark].setdefault(task, "")
    unused = [score for score in scores if not any(mean.covers(score) for mean in means)]
    problems += [f"{score.line}: no row of published_means.csv is over this score" for score in unused]
    entries: dict[str, list[Entry]] = defaultdict(list)
    for mean in means:
        found: dict[str, PublishedScore] = {}
        for score in scores:
            if mean.covers(score):
                if score.task in found:
                    problems.append(f"{mean.line}: {mean.model} has two scores of {score.task} among its revisions")
                found[score.task] = score
        entries[mean.benchmark].append(Entry(_label(mean, means), mean, found))
        problems += _disagreements(mean, found, tasks[mean.benchmark])
    return {name: dict(sorted(known.items())) for name, known in tasks.items()}, dict(entries)


def _label(mean: PublishedMean, means: Sequence[PublishedMean]) -> str:
    """The model's own name; its revision too where the model is there twice."""
    name = mean.model.split("/")[-1]
    alike = [other for other in means if other.benchmark == mean.benchmark and other.model.split("/")[-1] == name]
    return f"{name} @{mean.revision[:8]}" if len(alike) > 1 else name


def _disagreements(mean: PublishedMean, found: Mapping[str, PublishedScore], known: Mapping[str, str]) -> list[str]:
    """What a stated mean says otherwise than its scores; 0.001 is two roundings to three digits."""
    absent = sorted(set(known) - set(found))
    said: list[tuple[str, Any, Any, bool]] = [
        ("tasks_found", mean.tasks_found, len(found), mean.tasks_found == len(found)),
        ("tasks_in_benchmark", mean.tasks_in_benchmark, len(known), mean.tasks_in_benchmark == len(known)),
        ("missing", sorted(mean.missing), absent, sorted(mean.missing) == absent),
    ]
    if found:
        by_task, by_type = means_of({task: score.main_score for task, score in found.items()}, known)
        said.append(("mean_task", mean.mean_task, by_task, abs(mean.mean_task - by_task) <= 1e-3))
        said.append(("mean_type", mean.mean_type, by_type, abs(mean.mean_type - by_type) <= 1e-3))
    for kind in sorted({*mean.per_type, *(score.task_type for score in found.values())}):
        scores = [score.main_score for score in found.values() if score.task_type == kind]
        given, stated = (float(np.mean(scores)) if scores else math.nan, len(scores)), mean.per_type.get(kind)
        fits = stated is not None and stated[1] == given[1] and abs(stated[0] - given[0]) <= 1e-2
        said.append((f"per_type of {kind}", stated, given, fits))
    return [
        f"{mean.line}: {name} is {stated}, the scores give {given}" for name, stated, given, fits in said if not fits
    ]


def means_of(scores: Mapping[str, float], types: Mapping[str, str]) -> tuple[float, float]:
    """Mean over tasks, and mean over task types of their tasks' means; of whatever tasks are given."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for task, score in scores.items():
        by_type[types[task]].append(score)
    return float(np.mean(list(scores.values()))), float(np.mean([np.mean(group) for group in by_type.values()]))


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
    types = _types(published, benchmark)
    ours = measured_scores(results, types) if results else {}
    reference = next(iter(ours.values()), {})
    columns = {**ours, **_published_columns(published, benchmark, models)}
    rows: list[dict[str, Any]] = []
    for task, kind in types.items():
        row: dict[str, Any] = {"task": task, "type": kind or "not stated"}
        for name, scores in columns.items():
            shown = scores.get(task)
            row[name] = shown.score if shown else "n/a"
            row[f"{name} note"] = _note(shown, reference.get(task), name in ours) if shown else ""
        rows.append(row)
    for position, label in enumerate((MEAN_TASK, MEAN_TYPE)):
        row = {"task": label, "type": ""}
        for name, scores in columns.items():
            row |= {name: _mean_cell(scores, types, position), f"{name} note": _mixture(scores)}
        rows.append(row)
    return pd.DataFrame(rows)


def measured_scores(results: Results, types: Mapping[str, str]) -> dict[str, dict[str, Shown]]:
    """Our models' scores on the tasks of a benchmark, times 100; models without any are left out.

    The mteb version is read from mteb's result file, the prompt from the study's task where it is stated there.
    """
    found: dict[str, dict[str, Shown]] = {}
    for model in results.models:
        for task in results.study["tasks"]:
            name = task["name"]
            if name not in types:
                continue
            place = f"scores/{model}/{name}"
            stored = read_json_object(results.places.get(place, results.folder / place) / f"{name}.json")
            score = 100 * results.task_score(model, name).value
            shown = Shown(round(score, 4), stored.get("mteb_version"), task.get("prompt"), "ours")
            found.setdefault(model, {})[name] = shown
    return found


def _published_columns(
    published: Published, benchmark: str, models: Sequence[str] | None
) -> dict[str, dict[str, Shown]]:
    entries = {entry.label: entry for entry in published.entries[benchmark]}
    unknown = sorted(set(models or ()) - set(entries))
    if unknown:
        raise ResultsError(f"nothing is published of {', '.join(unknown)}", where=benchmark, expected=list(entries))
    return {
        label: {
            task: Shown(score.main_score, score.mteb_version, score.prompt, score.revision)
            for task, score in entries[label].scores.items()
        }
        for label in (models if models is not None else entries)
    }


def _types(published: Published, benchmark: str) -> Mapping[str, str]:
    if benchmark not in published.tasks:
        raise ResultsError(f"no benchmark '{benchmark}' is published", expected=list(published.tasks))
    return published.tasks[benchmark]


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


def _mean_cell(scores: Mapping[str, Shown], types: Mapping[str, str], position: int) -> float | str:
    missing = [task for task in types if task not in scores]
    if missing:
        return f"n/a (missing: {', '.join(missing)})"
    return round(means_of({task: scores[task].score for task in types}, types)[position], 4)


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
    types = _types(published, benchmark)
    ours = measured_scores(results, types) if results else {}
    columns = {**ours, **_published_columns(published, benchmark, models)}
    tasks = sorted(types, key=lambda task: (types[task], task))
    rows = {task: number for number, task in enumerate(tasks)}
    figure = Figure(figsize=(8, 0.24 * len(tasks) + 0.2 * len(columns) + 1.2), layout="constrained")
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


def published_changes(before: Published, after: Published) -> pd.DataFrame:
    """What another version of the files says otherwise: one row a score that is new, gone or changed."""
    old, new = (
        {
            (benchmark, entry.label, task): score.main_score
            for benchmark, entries in side.entries.items()
            for entry in entries
            for task, score in entry.scores.items()
        }
        for side in (before, after)
    )
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    lines = [(*key, old.get(key, np.nan), new.get(key, np.nan)) for key in keys]
    return pd.DataFrame(lines, columns=["benchmark", "model", "task", "before", "after"])
