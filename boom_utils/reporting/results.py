"""Read a results folder: the one source of every table and figure. Imports neither torch nor mteb."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.config import trained_members
from boom_utils.errors import ResultsError
from boom_utils.evaluation.comparison import Comparison, compare_drawn
from boom_utils.evaluation.seed_spread import SeedSpread, moved, seed_spread, shares_of, with_spread
from boom_utils.evaluation.statistics import Bootstrap, Estimate, TaskSamples, score_draws
from boom_utils.reporting.roles import (
    SHUFFLED,
    compared_schedules,
    from_base,
    incremental_models,
    shuffled_members,
    updated_merges,
)
from boom_utils.reporting.stored import RUN, Numbers, checked, read_numbers, rows_of

PAGE = "report.html"
"""Name of the page in a results folder."""
DOMAINS = ("in-domain", "out-of-domain")


@dataclass(frozen=True)
class Results:
    """One study's results folder.

    Args:
        folder: Holds study.json, the tables of numbers, corpus/, geometry.json and interaction.json.
        study: The content of study.json.
        numbers: All values, scores and training logs.
    """

    folder: Path
    study: Mapping[str, Any]
    numbers: Numbers = field(default_factory=Numbers)

    @property
    def models(self) -> list[str]:
        """Scored models in table order."""
        return list(self.study["models"])

    @property
    def reference(self) -> str:
        """The model every other one is compared with."""
        return str(self.study["evaluation"]["reference"])

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are made."""
        return Bootstrap(*(self.study["evaluation"][key] for key in ("bootstrap_draws", "confidence", "seed")))

    @property
    def shuffled(self) -> list[str]:
        """Scored members of the static setting trained with batch-level shuffling on all datasets, in table order."""
        return [name for name in shuffled_members(self.study["members"]) if name in self.models]

    @property
    def static_merges(self) -> list[str]:
        """Scored merged models that know old data only."""
        updated = updated_merges(self.study["members"], self.parts)
        return [name for name in self.study["merges"] if name not in updated and name in self.models]

    @property
    def incremental(self) -> list[str]:
        """Scored models that know new data, after those they update; see `incremental_models`."""
        found = incremental_models(self.study["members"], self.parts)
        return [name for name in found if name in self.models]

    @property
    def full(self) -> str | None:
        """The member trained on all old data with batch-level shuffling: the reference, or the first there is."""
        members = self.study["members"]
        found = [name for name in self.shuffled if members[name]["ratio"] == 1.0 and name in self.models]
        return self.reference if self.reference in found else next(iter(found), None)

    @property
    def retrained(self) -> str | None:
        """The member trained on all old and all new data with batch-level shuffling: what updates are compared with."""
        wanted = {"schedule": SHUFFLED, "ratio": 1.0, "new_data": 1.0}
        for name, facts in self.study["members"].items():
            if name in self.models and from_base(facts) and all(facts[key] == wanted[key] for key in wanted):
                return str(name)
        return None

    @property
    def schedules(self) -> dict[str, str]:
        """Scored members that differ in nothing but their schedule; see `compared_schedules`."""
        found = compared_schedules(self.study["members"])
        return {name: baseline for name, baseline in found.items() if {name, baseline} <= {*self.models}}

    def tasks(self, domain: str) -> list[str]:
        """Names of the tasks of a domain (``in-domain`` or ``out-of-domain``)."""
        return [task["name"] for task in self.study["tasks"] if task["domain"] == domain]

    @property
    def task_groups(self) -> dict[str, list[str]]:
        """The incremental setting's groups of tasks, those that have any.

        ``old``: in-domain tasks. ``new``: tasks of the new data, out of domain until these are learnt.
        ``out-of-domain``: tasks that stay so.
        """
        groups: dict[str, list[str]] = {"old": [], "new": [], "out-of-domain": []}
        for task in self.study["tasks"]:
            known = "old" if task["domain"] == "in-domain" else "out-of-domain"
            groups["new" if task["new_data"] else known].append(task["name"])
        return {group: tasks for group, tasks in groups.items() if tasks}

    def cost(self, model: str) -> float:
        """Training cost in passes over the old corpus: of all members behind the model; 0 for untrained ones."""
        members = self.study["members"]
        passes = sum(members[name]["passes"] for name in self.behind(model) if name in members)
        return round(float(passes), 9)  # 3 times 0.6 costs what 0.8 and 1.0 do

    def update_cost(self, model: str) -> dict[str, int]:
        """What has to be trained for the model when the new data arrive: examples and steps."""
        members = self.study["members"]
        behind = [members[name] for name in self.behind(model) if name in members]
        trained = [facts for facts in behind if facts["new_data"] is not None]
        return {key: sum(facts[key] for facts in trained) for key in ("examples", "steps")}

    def behind(self, model: str) -> list[str]:
        """Everything trained for a model: the members in it, and what they started from instead of the base."""
        found: list[str] = []
        for name in trained_members(model, self.parts):
            start = self.study["members"].get(name, {}).get("start")
            found += [*(self.behind(start) if start else []), name]
        return list(dict.fromkeys(found))

    def training_log(self, model: str) -> list[dict[str, Any]]:
        """One dict a training step of a model, in order; empty for a model that was not trained."""
        rows = rows_of(self.numbers.training, model).drop(columns=RUN).to_dict("records")
        return [{str(name): value for name, value in row.items() if pd.notna(value)} for row in rows]

    def samples(self, model: str) -> dict[str, TaskSamples]:
        """The values behind every score of a model."""
        return {task: self._at(model, task) for domain in DOMAINS for task in self.tasks(domain)}

    def task_score(self, model: str, task: str) -> Estimate:
        """Score of a model on one task."""
        return self.mean(model, [task])

    @property
    def domains(self) -> list[str]:
        """The domains that have tasks."""
        return [domain for domain in DOMAINS if self.tasks(domain)]

    def domain_mean(self, model: str, domain: str) -> Estimate:
        """Mean score of a model over the tasks of a domain."""
        return self.mean(model, self.tasks(domain))

    @property
    def levels(self) -> str:
        """What intervals speak of, in words."""
        return "queries and seeds" if self.study.get("seeds") else "queries"

    def seeds(self, model: str) -> list[str]:
        """The model of every seed, the first of which has its name; one where it was made once."""
        return list(self.study.get("seeds", {}).get(model, [model]))

    def mean(self, model: str, tasks: list[str]) -> Estimate:
        """Mean score of a model over ``tasks`` and its seeds.

        Raises:
            ResultsError: There are no tasks.
        """
        if not tasks:
            raise ResultsError("a mean over no tasks", found=model)
        made = self.seeds(model)
        found, shares, spread = self._compared([made], tasks), self.shares(model), self.spread(tasks)
        if not shares or spread is None:
            return found.estimate
        return with_spread(found, spread, moved(shares, {}), len(made), self.bootstrap).estimate

    def run_mean(self, name: str, tasks: list[str]) -> float:
        """Mean score of one run, which is the model of one seed, over ``tasks``."""
        return float(self._scores([name], tasks).mean())

    def difference(self, model: str, other: str, tasks: list[str], *, draw_tasks: bool = False) -> Estimate:
        """Paired difference of two models' means over ``tasks``; see `comparison`."""
        return self.comparison(model, other, tasks, draw_tasks=draw_tasks).estimate

    def comparison(self, model: str, other: str, tasks: list[str], *, draw_tasks: bool = False) -> Comparison:
        """What is known of the difference of two models' means over ``tasks``, from draws that are made once.

        Seeds are paired; of two models of which one has more seeds, those that both have are compared. Where some
        models of the study have several, the spread of seeds they show is a second level of every comparison; see
        `boom_utils.evaluation.seed_spread`. With ``draw_tasks``, tasks are one too: other tasks of their kind.

        Raises:
            ResultsError: There are no tasks, or the two models were scored on different queries.
        """
        if not tasks:
            raise ResultsError("a comparison over no tasks", found=f"{model} and {other}")
        ours, theirs = self._paired(model, other)
        for task in tasks:
            if len({self._at(name, task).ids for name in (*ours, *theirs)}) > 1:
                raise ResultsError("two models were scored on different queries", where=task, fix="evaluate both again")
        found, shares = self._compared([ours, theirs], tasks, draw_tasks), [*map(self.shares, (model, other))]
        spread = self.spread(tasks) if any(shares) else None
        return with_spread(found, spread, moved(*shares), len(ours), self.bootstrap) if spread else found

    def shares(self, model: str) -> dict[str, float]:
        """The trained members in a model; see `shares_of`."""
        return shares_of(model, self.study["members"], self.study["merges"])

    def _paired(self, model: str, other: str) -> tuple[list[str], list[str]]:
        """The models of the seeds that two models have in common; what nobody trained is the same for every seed."""
        made = [self.seeds(name) for name in (model, other)]
        counts = [len(names) for name, names in zip((model, other), made, strict=True) if self.shares(name)]
        common = min(counts, default=1)
        ours, theirs = (names[:common] if len(names) >= common else names * common for names in made)
        return ours, theirs

    def _compared(self, sides: list[list[str]], tasks: list[str], draw_tasks: bool = False) -> Comparison:
        """A mean over runs and tasks, or the difference of two, by queries alone."""
        drawn = [self._drawn(made, tasks).mean(axis=0) for made in sides]
        values = [float(self._scores(made, tasks).mean()) for made in sides]
        queries = min(len(self._at(sides[0][0], task).ids) for task in tasks)
        gap, value = (drawn[0] - drawn[1], values[0] - values[1]) if len(sides) == 2 else (drawn[0], values[0])
        return compare_drawn(gap, value, queries, self.bootstrap, draw_tasks=draw_tasks)

    def spread(self, tasks: list[str]) -> SeedSpread | None:
        """The spread of seeds of one member, from all models that have several; None where none has."""
        many = {model: list(names) for model, names in self.study.get("seeds", {}).items()}
        if not many:
            return None
        count = min(map(len, many.values()))
        scores_MS = np.array([self._scores(names[:count], tasks).mean(axis=1) for names in many.values()])
        return seed_spread(scores_MS, [self.shares(model) for model in many])

    def _scores(self, made: list[str], tasks: list[str]) -> np.ndarray:
        """Score of every model on every task, (R, T)."""
        return np.array([[self._score(name, task) for task in tasks] for name in made])

    def _drawn(self, made: list[str], tasks: list[str]) -> np.ndarray:
        """Scores of every model, task and draw, float (R, T, B)."""
        return np.array([[self._draws(name, task) for task in tasks] for name in made])

    @property
    def parts(self) -> dict[str, list[str]]:
        """Every merge, scored or not, with what is merged."""
        return {name: facts["members"] for name, facts in self.study["merges"].items()}

    def _at(self, model: str, task: str) -> TaskSamples:
        try:
            return self.numbers.samples[model, task]
        except KeyError:
            where, fix = self.folder / "samples.parquet", "run the study again"
            raise ResultsError("a score is missing", where=where, found=f"nothing of {model}/{task}", fix=fix) from None

    def _score(self, model: str, task: str) -> float:
        known = self._known
        if (model, task) not in known:
            known[model, task] = self._at(model, task).score()
        return known[model, task]

    def _draws(self, model: str, task: str) -> np.ndarray:
        """Bootstrap scores of one model on one task: made once for all the tables and figures they are in."""
        known = self._drawn_before
        if (model, task) not in known:
            known[model, task] = score_draws({task: self._at(model, task)}, self.bootstrap)[task]
        return known[model, task]

    @functools.cached_property
    def _known(self) -> dict[tuple[str, str], float]:
        return {}

    @functools.cached_property
    def _drawn_before(self) -> dict[tuple[str, str], np.ndarray]:
        return {}

    def stored_result(self, model: str, task: str) -> dict[str, Any]:
        """The result of mteb itself for a model and task; empty where it is not kept."""
        rows = rows_of(self.numbers.scores, model)
        found = [] if "result" not in rows else rows.loc[rows["task"] == task, "result"].dropna().to_list()
        return dict(json.loads(found[0])) if found else {}

    def place(self, name: str) -> Path:
        """Where a document of the results is."""
        return self.folder / name


def read_samples(folder: Path) -> TaskSamples:
    """The values behind one score, from the folder that holds its ``samples.json``.

    Raises:
        ResultsError: The file is missing, malformed or empty.
    """
    path = folder / "samples.json"
    stored = read_json_object(path)
    try:
        columns = {name: np.asarray(values, dtype=float) for name, values in stored["columns"].items()}
        samples = TaskSamples(stored["metric"], tuple(stored["ids"]), columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError("these are not the values behind a score", where=path, found=repr(error)) from error
    return checked(samples, str(path))


def read_results(folder: Path) -> Results:
    """Open a results folder.

    Args:
        folder: ``results/PROFILE``, or a copy of it.

    Returns:
        The results; all numbers are read and checked now, a model or task that is missing when it is asked for.

    Raises:
        ResultsError: A file is missing or damaged.

    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> results.models[:2]
    ['random', 'base']
    """
    study = read_json_object(folder / "study.json")
    missing = [key for key in ("models", "tasks", "evaluation", "members", "merges") if key not in study]
    if missing:
        raise ResultsError("study.json lacks keys", where=folder / "study.json", found=f"no {', '.join(missing)}")
    return Results(folder, study, read_numbers(folder))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        ResultsError: The file is missing or not JSON.

    >>> "cosines" in read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    True
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ResultsError("a results file is missing", where=path, fix="run the study again") from None
    except ValueError as error:
        raise ResultsError(
            "this results file is not valid JSON", where=path, found=error, fix="make it again"
        ) from None
