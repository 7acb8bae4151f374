"""What others published, beside ours: scores of benchmarks, and the paper's settings.

The scores are read-only data (``results/published``, described there) and read strictly: a wrong cell is an error with
its line. A mean is shown only over a complete set of tasks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.errors import ResultsError, bullet_list
from boom_utils.reporting.ablations import headline_models
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import Table

PUBLISHED = PROJECT_ROOT / "results" / "published"
"""Scores that come with the project."""
RELEASED = "ICT-TIME-and-Querit/"
"""Before the names of the models that the paper's authors released."""
UNSCORED = {"RTEB(beta) open tasks": {"SWEbenchCodeRetrieval": "not stated"}}
"""Benchmark -> its tasks, with their types, that nobody has scored."""
SCORES = "published_scores.csv"
_KEY = ["model", "revision", "benchmark", "task"]
"""Columns that no two rows share."""
_COLUMNS = [*_KEY, "task_type", "main_score", "source"]
_SOURCE = r"https://\S+/[0-9a-f]{40}/\S+\.json \(n=\d+ splits=\S+ mteb=(\S+)\)"
"""An address with a commit in it, then what was averaged and the mteb version."""


@dataclass(frozen=True)
class Published:
    """Scores that others published.

    Args:
        scores: One row a model, revision and task: as in the file, with ``mteb`` (the version) and ``label``, which is
            the model's short name, with the revision where several revisions were scored on the same task.
    """

    scores: pd.DataFrame

    @property
    def benchmarks(self) -> list[str]:
        """Their names."""
        return list(self.scores["benchmark"].unique())

    def tasks(self, benchmark: str) -> dict[str, str]:
        """All tasks of a benchmark by name -> task type."""
        found = self.scores[self.scores["benchmark"] == benchmark]
        scored = dict(zip(found["task"], found["task_type"], strict=True))
        return dict(sorted({**scored, **UNSCORED.get(benchmark, {})}.items()))

    def released(self, benchmark: str) -> pd.DataFrame:
        """Scores of the authors' models on a benchmark."""
        kept = self.scores["model"].str.startswith(RELEASED) & (self.scores["benchmark"] == benchmark)
        return self.scores[kept]


def read_published(folder: Path) -> Published:
    """Read the published scores.

    Raises:
        ResultsError: The file is missing or not as its README says: all problems at once, with their lines.
    """
    try:
        scores = pd.read_csv(folder / SCORES, dtype=str, keep_default_na=False, skip_blank_lines=False).fillna("")
    except (OSError, ValueError) as error:
        problems = [str(error)]
    else:
        problems = _problems(scores)
    if problems:
        raise ResultsError(
            "published scores cannot be used",
            where=folder / SCORES,
            found=bullet_list(problems),
            fix="take the file of the repository again; README.md beside it describes it",
        )
    scores["mteb"] = scores["source"].str.extract(_SOURCE)[0].replace("None", "")
    scores["label"] = scores["model"].str.split("/").str[-1]
    twice = scores.duplicated(["benchmark", "label", "task"], keep=False)
    apart = twice.groupby([scores["benchmark"], scores["label"]]).transform("any")
    scores["label"] += (" @" + scores["revision"].str[:8]).where(apart, "")
    return Published(scores.astype({"main_score": float}))


def _problems(scores: pd.DataFrame) -> list[str]:
    """What is wrong with the cells of the file."""
    if missing := [name for name in _COLUMNS if name not in scores]:
        return [f"line 1: there is no column {', '.join(missing)}"]
    wrong = {
        f"two rows with the same {', '.join(_KEY)}": scores.duplicated(_KEY),
        "main_score is no number from 0 to 100": ~pd.to_numeric(scores["main_score"], errors="coerce").between(0, 100),
        "source is not ADDRESS/COMMIT/FILE.json (n=... splits=... mteb=...)": ~scores["source"].str.fullmatch(_SOURCE),
    }
    return [f"line {place + 2}: {what}" for what, rows in wrong.items() for place in np.flatnonzero(rows)]


def means_of(scores: pd.Series[float], types: Mapping[str, str]) -> tuple[float, float] | None:
    """Mean over tasks, and over task types of their tasks' means; None where a task of the benchmark is missing.

    Args:
        scores: By task.
        types: All tasks of the benchmark -> task type.
    """
    if {*types} - {*scores.index}:
        return None
    return float(scores.mean()), float(scores.groupby(scores.index.map(dict(types))).mean().mean())


# --- tables -----------------------------------------------------------------------------------------------------------


def published_tables(published: Published | None) -> dict[str, Table]:
    """Tables that put ours beside the paper's settings, and beside the released models on every benchmark."""
    tables: dict[str, Table] = {"settings": settings_table}
    if published is not None:
        for one in published.benchmarks:
            tables[table_name(one)] = partial(benchmark_table, published=published, benchmark=one)
    return tables


def table_name(benchmark: str) -> str:
    """Name of a benchmark's table.

    >>> table_name("MTEB(eng, v2)")
    'published_mteb_eng_v2'
    """
    return "published_" + re.sub(r"[^a-z0-9]+", "_", benchmark.lower()).strip("_")


def benchmark_table(results: Results, published: Published, benchmark: str) -> pd.DataFrame:
    """Scores side by side: one row a task, then the two means; two columns a model, its score and its note.

    A note says the mteb version, and that a revision is not stated; prompts are not published. A score that is not
    there is "n/a"; a mean over fewer tasks than the benchmark has is "n/a (missing: ...)". Empty for a study that
    scored nothing of the benchmark.

    Args:
        results: Our study: the models of its headline are shown where they were scored on tasks of the benchmark.
        published: What `read_published` gave.
        benchmark: Its name there.
    """
    types = published.tasks(benchmark)
    ours = measured_scores(results, types)
    if ours.empty:
        return ours
    frame = pd.DataFrame({"task": [*types, "mean (task)", "mean (type)"], "type": [*types.values(), "", ""]})
    for label, found in pd.concat([ours, published.released(benchmark)]).groupby("label", sort=False):
        rows = found.set_index("task")
        means = means_of(rows["main_score"], types)
        lacking = f"n/a (missing: {', '.join(sorted({*types} - {*rows.index}))})"
        scores = [rows["main_score"].get(task, "n/a") for task in types]
        scores += [round(mean, 4) for mean in means] if means else [lacking] * 2
        mixed = {what: sorted({*rows[what].str[:8]}) for what in ("mteb", "revision")}
        of_means = "; ".join(f"{what} {', '.join(one)}" for what, one in mixed.items() if len(one) > 1)
        frame[str(label)] = pd.Series(scores, dtype=object)
        frame[f"{label} note"] = [*(_note(rows, task) for task in types), of_means, of_means]
    return frame


def measured_scores(results: Results, tasks: Collection[str]) -> pd.DataFrame:
    """Scores on some tasks of our headline's models, or of all where there is none, as rows of `Published.scores`."""
    names = [task["name"] for task in results.study["tasks"] if task["name"] in tasks]
    rows = [
        {"label": model, "task": task, "main_score": round(100 * results.mean(model, [task]).value, 4)}
        | {"mteb": results.stored_result(model, task).get("mteb_version") or "", "revision": "ours"}
        for model in headline_models(results) or results.models
        for task in names
    ]
    return pd.DataFrame(rows)


def _note(rows: pd.DataFrame, task: str) -> str:
    """The mteb version of a score, and whether its model's revision is known."""
    if task not in rows.index:
        return ""
    version = f"mteb {rows['mteb'][task] or 'version not stated'}"
    return f"{version}; revision not stated" if rows["revision"][task] == "external" else version


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_table(results: Results) -> pd.DataFrame:
    """Every value of the study's profile beside the paper's, where that is known: those that differ come first.

    Returns:
        ``status`` is ``differs``, ``same`` or ``ours``: the paper's value is not known, or it has no such thing.

    Raises:
        ResultsError: An entry lacks a key.
    """
    names = {"key": "key", "value": "this study", "paper": "paper's value", "source": "source", "note": "note"}
    facts = results.study.get("deviations") or []
    if missing := sorted({key for entry in facts for key in names if key not in entry}):
        raise ResultsError("the deviations of study.json lack keys", found=f"no {', '.join(missing)}")
    frame = pd.DataFrame(facts, columns=list(names)).rename(columns=names)
    known, same = frame["paper's value"].notna(), frame["this study"] == frame["paper's value"]
    status = pd.Series("ours", frame.index).mask(known & same, "same").mask(known & ~same, "differs")
    frame.insert(1, "status", status.astype(pd.CategoricalDtype(["differs", "same", "ours"])))
    return frame.fillna({"paper's value": "not known"}).sort_values("status", kind="stable", ignore_index=True)
