"""A study's results folder: the one source of every table and figure. Imports neither torch nor mteb.

Its numbers are tables, one parquet file each; the same rows give the same bytes. ``samples``: one row a value behind a
score (the query, pair, test row or experiment is its ``unit``; where a score is made of several values a unit, such as
``gold`` and ``predicted``, each is a ``column``). ``scores``: one row a model and task, with all that it was made with
and mteb's own result. ``training``: one row a step. ``losses``: one row a batch that was watched. A model of another
seed than the first has the same name and another number in ``seed``.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from boom_utils.artifacts import atomic_path
from boom_utils.config import trained_members
from boom_utils.errors import ResultsError
from boom_utils.evaluation.statistics import (
    Estimate,
    Measured,
    TaskSamples,
    added,
    mean_shares,
    measure,
    moved,
    place_on_curve,
    plain_mean,
    seed_spread,
    shares_of,
)
from boom_utils.experiments import Experiments

PAGE = "report.html"
"""Name of the page in a results folder."""
DOMAINS = ("in-domain", "out-of-domain")
RUN = ["model", "seed"]
_SCORE = ["task", "column", *RUN]
_SEED = re.compile(r"(?P<model>.+)\.seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Numbers:
    """All numbers of a study.

    Args:
        samples: Run (a model of one seed) and task -> the values behind its score.
        scores: One row a run and task: ``metric``, ``value``, versions, keys, and mteb's ``result`` as JSON.
        training: One row a step of a run, as its training log has it.
        losses: One row a watched batch of a run: ``step``, ``share``, ``dataset``, ``batch``, ``loss`` and more.
    """

    samples: Mapping[tuple[str, str], TaskSamples] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*RUN, "task"]))
    training: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=RUN))
    losses: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=RUN))


def run_name(model: str, seed: int) -> str:
    """Name of the run of a model with a seed, the first of which has the model's own name."""
    return model if seed == 1 else f"{model}.seed{seed}"


def run_of(name: str) -> dict[str, Any]:
    """Model and number of the seed of a run, as `run_name` puts them together."""
    found = _SEED.fullmatch(name)
    return {"model": found["model"], "seed": int(found["seed"])} if found else {"model": name, "seed": 1}


def rows_of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one run."""
    run = run_of(name)
    found: pd.DataFrame = frame[(frame["model"] == run["model"]) & (frame["seed"] == run["seed"])]
    return found


def read_numbers(folder: Path) -> Numbers:
    """The numbers in a results folder.

    Raises:
        ResultsError: A file is missing, no such table, or lacks values.
    """
    frame = _read(folder / "samples.parquet", [*_SCORE, "metric", "unit", "value"])
    values_N, units = frame["value"].to_numpy(), frame["unit"].to_numpy(dtype=object)
    columns: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
    samples: dict[tuple[str, str], TaskSamples] = {}
    places: Any = frame.groupby([*_SCORE, "metric"], observed=True, sort=False).indices
    for (task, column, model, seed, metric), rows in sorted(places.items(), key=lambda item: int(item[1][0])):
        key = (run_name(model, seed), task)
        columns[key][column] = values_N[rows]
        samples[key] = TaskSamples(metric, tuple(units[rows]), columns[key])
    scores = _read(folder / "scores.parquet", [*RUN, "task", "metric", "value"])
    return Numbers(samples, scores, *(_read(folder / f"{name}.parquet", RUN) for name in ("training", "losses")))


def write_numbers(folder: Path, numbers: Numbers) -> None:
    """Write the four tables, in an order that does not depend on how they were gathered."""
    _write(folder / "samples.parquet", _sample_frame(numbers.samples), _SCORE)
    _write(folder / "scores.parquet", numbers.scores, ["task", *RUN])
    _write(folder / "training.parquet", numbers.training, RUN)
    _write(folder / "losses.parquet", numbers.losses, RUN)


def _sample_frame(samples: Mapping[tuple[str, str], TaskSamples]) -> pd.DataFrame:
    """One row a value."""
    parts = [
        {"task": task, "column": column, **run_of(name), "metric": one.metric, "unit": one.ids, "value": values_S}
        for (name, task), one in samples.items()
        for column, values_S in one.columns.items()
    ]
    if not parts:
        return pd.DataFrame(columns=[*_SCORE, "metric", "unit", "value"])
    sizes = [len(part["unit"]) for part in parts]
    frame = {name: np.repeat([part[name] for part in parts], sizes) for name in (*_SCORE, "metric")}
    many = {name: np.concatenate([part[name] for part in parts]) for name in ("unit", "value")}
    return pd.DataFrame({**frame, **many}).astype({"unit": "category"})


def _write(path: Path, frame: pd.DataFrame, order: list[str]) -> None:
    """A table without an index and without versions of pandas; names that repeat are stored once."""
    named = {name: "category" for name in ("task", "column", "model", "metric", "dataset") if name in frame}
    frame = frame.sort_values(order, kind="stable").astype({**named, "seed": "int16"})
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    repeated = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    options = {"compression": "zstd", "compression_level": 19, "store_schema": False}
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, use_dictionary=repeated, row_group_size=max(1, len(frame)), **options)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table that has at least some columns, without holes in these."""
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise ResultsError("a results file is missing", where=path, fix="run the study again") from None
    except (pa.ArrowException, OSError) as error:
        raise ResultsError("this is no readable parquet file", where=path, found=error, fix="make it again") from None
    if missing := [name for name in columns if name not in frame or frame[name].isna().any()]:
        raise ResultsError("a table of the results lacks values", where=path, found=f"holes in {', '.join(missing)}")
    return frame


@dataclass(frozen=True)
class Surplus:
    """What a model has over the interpolation curve.

    Args:
        measured: Its mean in one domain less that of the curve, where the curve has the model's mean in the other.
        share: Where that is: 0 at the base, 1 at the trained model.
        beyond: The curve never has the model's mean in the other domain: it is compared with the curve's nearest end.
        seeds: How many seeds it is over: those that the model and the curve have.
        estimate: With its interval. Where it is beyond, but not surely, the interval reaches down to what the model has
            over the curve where the lower end of its lead in the other domain would place it: far less at a turn.
        p_value: Of ``measured``; 1 where only this leaves open whether there is anything.
    """

    measured: Measured
    share: float
    beyond: bool
    seeds: int
    estimate: Estimate
    p_value: float


def _higher_behind(held_P: list[float], gained_P: list[float], end: int, back: float) -> float:
    """How much higher than at its end a curve is in the one score, ``back`` from there in the other one; at least 0."""
    place = place_on_curve(held_P, gained_P, held_P[end] + back)
    low, high = (gained_P[number] for number in place.between)
    return max(low + place.way * (high - low) - gained_P[end], 0.0)


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
    def confidence(self) -> float:
        """Of all intervals."""
        return float(self.study["evaluation"]["confidence"])

    @cached_property
    def experiments(self) -> Experiments:
        """Which of the scored models belong to which experiment."""
        return Experiments.model_validate(self.study.get("experiments", {})).of(self.models)

    @property
    def full(self) -> str | None:
        """The member trained on all old data with batch-level shuffling."""
        return self.experiments.full

    @property
    def retrained(self) -> str | None:
        """The member trained on all old and all new data: what updates are compared with."""
        return self.experiments.incremental.baseline

    @property
    def schedules(self) -> dict[str, str]:
        """Scored members of the same batches in other orders -> the one they are compared with, which stands first."""
        found = self.experiments.scheduling
        return dict.fromkeys((found.baseline, *found.models), found.baseline) if found.baseline else {}

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

    def trained(self, model: str) -> list[Mapping[str, Any]]:
        """What is known of every member that was trained for a model."""
        members = self.study["members"]
        return [members[name] for name in self.behind(model) if name in members]

    def cost(self, model: str) -> float:
        """Training cost in passes over the old corpus: of all members behind the model; 0 for untrained ones."""
        return round(float(sum(one["passes"] for one in self.trained(model))), 9)  # 3 times 0.6 costs what 0.8 and 1 do

    def update_cost(self, model: str) -> dict[str, int]:
        """What has to be trained for the model when the new data arrive: examples and steps."""
        trained = [one for one in self.trained(model) if one["new_data"] is not None]
        return {key: sum(one[key] for one in trained) for key in ("examples", "steps")}

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
        """The values behind every score of a model, or of a run."""
        return {task: self._at(model, task) for domain in DOMAINS for task in self.tasks(domain)}

    @property
    def groups(self) -> dict[str, list[str]]:
        """The domains that have tasks, with their tasks."""
        return {domain: tasks for domain in DOMAINS if (tasks := self.tasks(domain))}

    @property
    def domains(self) -> list[str]:
        """The domains that have tasks."""
        return [*self.groups]

    def domain_mean(self, model: str, domain: str) -> Estimate:
        """Mean score of a model over the tasks of a domain."""
        return self.mean(model, self.tasks(domain))

    @property
    def own_rows(self) -> bool:
        """Whether every seed drew from rows of its own."""
        return bool(self.study.get("own_rows"))

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
        return self.comparison(model, None, tasks).estimate(self.confidence)

    def run_mean(self, name: str, tasks: Sequence[str]) -> float:
        """Mean score of one run, which is the model of one seed, over ``tasks``."""
        return float(np.mean([self._at(name, task).score for task in tasks]))

    def difference(
        self, model: str, other: str | Sequence[str], tasks: list[str], *, over_tasks: bool = False
    ) -> Estimate:
        """Paired difference of two models' means over ``tasks``; see `comparison`."""
        return self.comparison(model, other, tasks, over_tasks=over_tasks).estimate(self.confidence)

    def comparison(
        self, model: str, other: str | Sequence[str] | None, tasks: list[str], *, over_tasks: bool = False
    ) -> Measured:
        """A model's mean over ``tasks`` and its seeds, or how far it is from another's, or from the mean of several.

        The difference is that of the means that tables show: over all seeds of either side. Where some models of the
        study have several, the spread they show is a level of every number, as far as the two sides differ in what was
        trained; see `boom_utils.evaluation.statistics.seed_spread`. Merges of the same members with the same weights
        differ in nothing that this knows of: then only the seeds that both have say how far they move, and with one
        ``seeds`` is no level.

        Where every seed has its own rows, all models of one seed move together with these. The difference is then
        that of the seeds that both sides have, and its variance by seeds that of their paired differences. What nobody
        trained stands for every seed.

        Args:
            model: Its name.
            other: What it is compared with; None for nothing.
            tasks: Names.
            over_tasks: Other tasks of their kind are a level too.

        Raises:
            ResultsError: There are no tasks, or the two models were scored on different queries.
        """
        others = () if other is None else (other,) if isinstance(other, str) else (*other,)
        return self._compared(model, others, (*tasks,), over_tasks)

    @cached_property
    def _compared(self) -> Callable[[str, tuple[str, ...], tuple[str, ...], bool], Measured]:
        """What `comparison` gives, computed once: tables, figures and claims ask for the same numbers."""
        return functools.cache(self._compare)

    def _compare(self, model: str, others: tuple[str, ...], tasks: tuple[str, ...], over_tasks: bool) -> Measured:
        sides = [(1.0, model), *((-1 / len(others), name) for name in others)]
        seeds = self.common_seeds([name for _, name in sides])
        runs = [(weight / len(self.seeds(name)), run) for weight, name in sides for run in self.seeds(name)]
        if self.own_rows:
            runs = [(weight / len(seeds), self.run(name, number)) for weight, name in sides for number in seeds]
        samples = [(weight, {task: self._at(run, task) for task in tasks}) for weight, run in runs]
        found = measure(samples, tasks, over_tasks=over_tasks)
        if (spread := self.spread(tasks)) and (units := moved(mean_shares([(w, self.shares(m)) for w, m in sides]))):
            return found.also("seeds", units * spread[0], spread[1])
        return self._over_seeds(found, sides, [(1.0, tasks)], seeds)

    def _over_seeds(
        self,
        found: Measured,
        sides: Sequence[tuple[float, str]],
        parts: Sequence[tuple[float, Sequence[str]]],
        seeds: Sequence[int],
    ) -> Measured:
        """A sum of models' means over some groups of tasks with the variance of what it is with each seed."""
        if len(seeds) < 2:
            return found
        sums = [
            sum(
                share * weight * self.run_mean(self.run(name, n), tasks)
                for share, tasks in parts
                for weight, name in sides
            )
            for n in seeds
        ]
        return found.also("seeds", *plain_mean(sums).levels["queries"])

    @property
    def interpolation(self) -> list[tuple[float, str]]:
        """The models of the interpolation curve with their shares, from the base at 0 on; empty without a curve.

        Of a study that is not finished those with the most seeds: with the others it would be a curve of fewer seeds.
        """
        found = self.experiments.interpolation
        if found.of is None or "base" not in self.models:
            return []
        seeds = {name: len(self.seeds(name)) for name in found.models if name != found.of}
        kept = [name for name, count in seeds.items() if count == max(seeds.values())]
        weights = {name: float(self.study["merges"][name]["weights"][0]) for name in kept}
        return sorted((share, name) for name, share in {"base": 0.0, found.of: 1.0, **weights}.items())

    def surplus(self, model: str, domain: str, over_tasks: bool = False) -> Surplus:
        """How far a model lies above the interpolation curve of the base and a trained model, paired.

        The curve runs straight from one scored share to the next, in means over the seeds that the model and all of
        the curve have. It is read where it has the model's own mean in the other domain; where it has that several
        times, at its highest. The surplus is then a sum of scores in ``domain`` and, times the slope of the curve
        there, in the other one; its variance is that of this sum (the delta method): by queries or tasks of the two
        domains, which are independent, and by seeds from the surplus of every seed.

        Args:
            model: Its name.
            domain: In which the surplus is; the other one is held.
            over_tasks: Other tasks of their kind are a level instead of other queries of these.

        Raises:
            ResultsError: The study has no curve, or lacks one of the domains.
        """
        curve, other = self.interpolation, next((name for name in self.domains if name != domain), None)
        if not curve or other is None or domain not in self.domains:
            fix = "name `experiments.interpolation`, and score in and out of domain"
            raise ResultsError("there is no interpolation curve", where=self.folder / "study.json", fix=fix)
        seeds = self.common_seeds([model, *(name for _, name in curve)])
        gained, held = self.tasks(domain), self.tasks(other)

        def means(names: Sequence[str], tasks: Sequence[str]) -> list[float]:
            return [float(np.mean([self.run_mean(self.run(name, n), tasks) for n in seeds])) for name in names]

        names = [name for _, name in curve]
        place = place_on_curve(means(names, held), means(names, gained), *means([model], held))
        first, second = (curve[number] for number in place.between)
        sides = [(1.0, model), (place.way - 1.0, first[1]), (-place.way, second[1])]
        runs = [(weight / len(seeds), self.samples(self.run(name, n))) for weight, name in sides for n in seeds]
        parts = [(1.0, gained), (-place.slope, held)] if place.slope else [(1.0, gained)]
        found = added(
            [(weight, measure(runs, tasks, over_tasks=over_tasks)) for weight, tasks in parts],
            "tasks" if over_tasks else "queries",
        )
        found = self._over_seeds(found, sides, parts, seeds)
        share = first[0] + place.way * (second[0] - first[0])
        known = sure = found.estimate(self.confidence)
        if place.beyond:
            lead = self.comparison(model, first[1], held, over_tasks=over_tasks).estimate(self.confidence)
            back = min(lead.low, 0.0) if lead.value > 0 else max(lead.high, 0.0)
            fall = _higher_behind(means(names, held), means(names, gained), place.between[0], back)
            known = replace(sure, low=sure.low - fall)
        p_value = 1.0 if sure.excludes_zero > known.excludes_zero else found.p_value
        return Surplus(found, share, place.beyond, len(seeds), known, p_value)

    def common_seeds(self, models: Sequence[str]) -> list[int]:
        """Numbers of the seeds that all of some models have; what nobody trained stands for every seed."""
        numbers = [{int(run_of(name)["seed"]) for name in self.seeds(one)} for one in models if self.trained(one)]
        return sorted(set.intersection(*numbers)) if numbers else [1]

    def run(self, model: str, seed: int) -> str:
        """Name of the run of a model with a seed; of what nobody trained there is one for all."""
        return {int(run_of(name)["seed"]): name for name in self.seeds(model)}.get(seed, model)

    def shares(self, model: str) -> dict[tuple[str, int], float]:
        """The trained members in the mean of a model's seeds: member and number of the seed -> share."""
        one, seeds = shares_of(model, self.study["members"], self._made), len(self.seeds(model))
        return {(name, number): share / seeds for name, share in one.items() for number in range(seeds)}

    def spread(self, tasks: Sequence[str]) -> tuple[float, float] | None:
        """Variance of one run of one member, from all models that have several seeds.

        None where none has, and where seeds have their own rows: what members of one seed move is not independent.
        """
        many = {model: list(names) for model, names in self.study.get("seeds", {}).items()}
        if not many or self.own_rows:
            return None
        count = min(map(len, many.values()))
        scores_MS = np.array([[self.run_mean(name, tasks) for name in names[:count]] for names in many.values()])
        return seed_spread(scores_MS, [shares_of(model, self.study["members"], self._made) for model in many])

    @property
    def parts(self) -> dict[str, list[str]]:
        """Every merge and ensemble, scored or not, with what is merged or asked."""
        return {name: list(facts["members"]) for name, facts in self._made.items()}

    @property
    def ensembles(self) -> dict[str, Mapping[str, Any]]:
        """Models that are the mean of their members' embeddings: nothing is merged, and all of them are asked."""
        return dict(self.study.get("ensembles", {}))

    @property
    def _made(self) -> dict[str, Mapping[str, Any]]:
        """Merges and ensembles; what seeds do to these is, to the first order, what they do to a mean of weights."""
        alike = {
            name: {"method": "linear", "weights": [1.0] * len(facts["members"]), **facts}
            for name, facts in self.ensembles.items()
        }
        return {**self.study["merges"], **alike}

    def _at(self, model: str, task: str) -> TaskSamples:
        try:
            return self.numbers.samples[model, task]
        except KeyError:
            where, fix = self.folder / "samples.parquet", "run the study again"
            raise ResultsError("a score is missing", where=where, found=f"nothing of {model}/{task}", fix=fix) from None

    def stored_result(self, model: str, task: str) -> dict[str, Any]:
        """The result of mteb itself for a model and task; empty where it is not kept."""
        rows = rows_of(self.numbers.scores, model)
        found = [] if "result" not in rows else rows.loc[rows["task"] == task, "result"].dropna().to_list()
        return dict(json.loads(found[0])) if found else {}


def read_samples(folder: Path) -> TaskSamples:
    """The values behind one score.

    Args:
        folder: Holds ``samples.json``: the artifact of one model and task.

    Returns:
        The values.

    Raises:
        ResultsError: The file is missing or not JSON.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> stored = {"metric": "accuracy", "ids": ["0", "1"], "columns": {"value": [1, 0]}}
    >>> _ = (folder / "samples.json").write_text(json.dumps(stored))
    >>> read_samples(folder).score
    0.5
    """
    return TaskSamples.from_json(read_json_object(folder / "samples.json"))


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
    missing = [key for key in ("models", "tasks", "evaluation", "members", "merges", "experiments") if key not in study]
    if missing:
        found, fix = f"no {', '.join(missing)}", "run the study again"
        raise ResultsError("study.json lacks keys", where=folder / "study.json", found=found, fix=fix)
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
