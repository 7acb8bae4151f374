"""Tables: one function each, from a results folder, as data frames; written as CSV (all digits) and Markdown (rounded).

Scores are shown times 100. ``low`` and ``high`` bound the interval named in the profile; differences are paired. Their
verdict is ``better`` or ``worse`` where the interval excludes zero, else ``inconclusive``, before any correction for
their number: claims are judged in `boom_utils.reporting.claims`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from boom_utils.artifacts import write_text
from boom_utils.config import EvaluationConfig
from boom_utils.evaluation.benchmarks import tasks_by_domain
from boom_utils.evaluation.statistics import Estimate, TaskSamples, measure
from boom_utils.reporting.experiments import updates
from boom_utils.reporting.results import Results

SHUFFLED = "batch_shuffled"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
ROLES = {"random": "random initialisation", "base": "base, before fine-tuning"}
SCHEDULES = {
    SHUFFLED: "batch-level shuffling",
    "sequential_datasets": "one dataset after another",
    "sequential_families": "one family after another",
    "two_stage": "two stages",
}
"""What the schedules are called."""
AVERAGES = {"ema": "exponential mean of weights {:g}", "last": "mean of the last {:g} checkpoints"}
"""What the averages along a training are called."""
WIDER = ", over tasks too"
"""Ends the name of a column whose interval speaks of other tasks of the same kind, too."""
SEEN = "in the base's training data"
"""Column that marks tasks; only in studies that know of some."""
NOTHING = Estimate(math.nan, math.nan, math.nan)
UPDATES = {
    "merged": "update merged into the existing model",
    "continued": "existing model trained on",
    "alone": "update before it is merged",
    "retrained": "retrained from the base",
}
"""What the kinds of updates are called."""


def compare(
    results: Results,
    models: Sequence[str],
    groups: Mapping[str, list[str]],
    baseline: str | Mapping[str, str | None] | None = None,
    *,
    title: str = "",
    over_tasks: bool = False,
) -> pd.DataFrame:
    """Means of models on groups of tasks beside what each is compared with: what the tables of comparisons are made of.

    Args:
        results: Of a finished study.
        models: One row each.
        groups: Name -> tasks.
        baseline: What they are compared with, or model -> what it is compared with; None: with nothing.
        title: What columns call the baseline; its name where it is one for all.
        over_tasks: Add the interval that speaks of other tasks of their kind, too.

    Returns:
        For each group its mean, the paired difference ``GROUP minus TITLE``, both with ``low`` and ``high``, and
        ``GROUP verdict``. A model that is its own baseline has no difference, and the verdict ``reference``. Where
        seeds have their own rows, ``seeds minus TITLE`` says how many both have, if they have different numbers.
    """
    against = baseline if isinstance(baseline, Mapping) else dict.fromkeys(models, baseline)
    rows = []
    for model in models:
        row, other = dict[str, Any](), against[model]
        for group, tasks in groups.items():
            row |= estimate_columns(group, results.mean(model, tasks))
            if baseline is None:
                continue
            name = f"{group} minus {title or baseline}"
            gap = results.difference(model, other, tasks) if other and other != model else NOTHING
            row |= estimate_columns(name, gap)
            row[f"{group} verdict"] = (
                verdict_of(gap, "better", "worse") if gap is not NOTHING else other and "reference"
            )
            if over_tasks and len(tasks) > 1:
                wide = NOTHING if gap is NOTHING else results.difference(model, str(other), tasks, over_tasks=True)
                row |= estimate_columns(f"{name}{WIDER}", wide)
        row |= fewer_seeds(results, model, other, title or str(baseline)) if other else {}
        rows.append(row)
    return pd.DataFrame(rows)


def fewer_seeds(results: Results, model: str, other: str | Sequence[str], title: str) -> dict[str, int]:
    """Over how many seeds a difference is where seeds have their own rows and not every side has all of them."""
    sides = [model, *([other] if isinstance(other, str) else other)]
    common = len(results.common_seeds(sides))
    fewer = results.own_rows and common < max(len(results.seeds(one)) for one in sides)
    return {f"seeds minus {title}": common} if fewer else {}


def beside(
    facts: Sequence[Mapping[str, Any]], *frames: pd.DataFrame, more: Sequence[Mapping[str, Any]] = ()
) -> pd.DataFrame:
    """One table of facts of every model, what `compare` says of it, and more facts."""
    return pd.concat([pd.DataFrame(facts), *frames, pd.DataFrame(more)], axis=1)


def model_table(results: Results) -> pd.DataFrame:
    """The study's main table: every model's mean in and out of domain, and its difference to the reference.

    Args:
        results: Of a finished study.

    Returns:
        One row a model; scores times 100, with ``low`` and ``high`` beside each.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> list(model_table(results)["model"])[:2]
    ['random', 'base']
    """
    facts = [
        {"model": model, "what": describe(results, model), "corpus passes": results.cost(model)}
        | seeds_of(results, model)
        for model in results.models
    ]
    frame = compare(results, results.models, results.groups, results.reference)
    return beside(facts, frame[[name for name in frame if not str(name).endswith("verdict")]])


def seeds_of(results: Results, model: str) -> dict[str, Any]:
    """How many seeds a model has, in a study that has several of any."""
    return {"seeds": len(results.seeds(model))} if results.study.get("seeds") else {}


def task_table(results: Results) -> pd.DataFrame:
    """Score of every model on every task, one row a task and model."""
    rows = []
    seen = results.study["evaluation"].get("seen_by_base", ())
    for task in results.study["tasks"]:
        for model in results.models:
            samples = results.samples(model)[task["name"]]
            row = {"task": task["name"], "family": task["family"], "domain": task["domain"], "metric": samples.metric}
            row |= {SEEN: "yes" if task["name"] in seen else ""} if seen else {}
            row |= {"samples": len(samples.ids), "model": model}
            rows.append(row | estimate_columns("score", results.mean(model, [task["name"]])))
    return pd.DataFrame(rows)


def member_table(results: Results) -> pd.DataFrame:
    """What each member was trained on and how its training ended.

    Args:
        results: Of a finished study.

    Returns:
        One row a member.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> member_table(results)["member"].iloc[0]
    's20'
    """
    rows = [
        {"member": name, "subset": facts["subset"], "seed": facts["seed"], "schedule": SCHEDULES[facts["schedule"]]}
        | {"ratio": facts["ratio"] or 0.0, "new data": facts["new_data"] or 0.0}
        | {key: facts[key] for key in ("steps", "examples", "tokens")}
        | {"mean loss, last tenth of steps": facts["mean_loss_last_tenth"]}
        for name, facts in results.study["members"].items()
    ]
    return pd.DataFrame(rows)


def schedule_table(results: Results) -> pd.DataFrame:
    """The schedules on the same batches: means, and paired differences to batch-level shuffling with a verdict.

    ``better`` or ``worse`` is said where the interval of the difference excludes zero, else ``inconclusive``.
    Empty for a study that compares no schedules.

    Args:
        results: Of a finished study.

    Returns:
        One row a schedule.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> {"full", "two-stage"} <= set(schedule_table(results)["member"])
    True
    """
    found, members = results.schedules, results.study["members"]
    facts = [
        {"member": name, "schedule": SCHEDULES[members[name]["schedule"]]}
        | {"order of the stages": _stage_order(members[name]), "steps": members[name]["steps"]}
        for name in found
    ]
    return beside(facts, compare(results, [*found], results.groups, found, title="shuffling"))


def incremental_table(results: Results) -> pd.DataFrame:
    """When new data arrive: means on old, new and other tasks, compared with retraining, and what has to be trained.

    Any number of updates: with more or less old data beside the new, merged with other weights, or trained on from the
    existing model. Differences to the retrained model are paired, verdicts as in `schedule_table`. Empty for a study
    without new data.

    Args:
        results: Of a finished study.

    Returns:
        One row a model.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "retrained" in set(incremental_table(results)["model"])
    True
    """
    experiment, found = results.experiments.incremental, {update.model: update for update in updates(results)}
    facts, costs, retrained = [], [], experiment.baseline
    for model in experiment.models:
        update = found.get(model)
        row: dict[str, Any] = {"model": model, "what": describe(results, model)}
        row |= {"kind": UPDATES[update.kind] if update else "existing"}
        row |= {"old data in the update": update.core if update else None, "weight": update.weight if update else None}
        facts.append(row)
        cost = results.update_cost(model)
        share = round(cost["examples"] / results.update_cost(retrained)["examples"], 4) if retrained else None
        row = {f"{key} to train": count for key, count in cost.items()}
        costs.append(row | ({"share of retraining": share} if retrained else {}))
    return beside(facts, compare(results, experiment.models, results.task_groups, retrained), more=costs)


def checks_table(results: Results) -> pd.DataFrame:
    """What has to hold for the study to mean anything: the base beats random, fine-tuned models beat the base.

    Members trained with other schedules than batch-level shuffling or on some datasets only, and merges of those or by
    other methods than an average, are left out: they may be worse than the base, and that is a finding.

    Args:
        results: Of a finished study.

    Returns:
        One row a comparison, with its interval and verdict; none where nothing is evaluated in domain.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "base" in set(checks_table(results)["model"])
    True
    """
    in_domain = results.tasks("in-domain")
    known = results.experiments
    fine_tuned = dict.fromkeys((*known.sampled, *known.averages, *known.incremental.models))
    made_here = [("base", "random")] if "random" in results.models else []  # a pretrained base has no random model
    pairs = [*made_here, *((name, "base") for name in fine_tuned)] if in_domain else []
    rows = []
    for model, other in pairs:
        found = results.difference(model, other, in_domain)
        columns = estimate_columns("in-domain difference", found)
        rows.append({"model": model, "beats": other, **columns, "verdict": verdict_of(found, "yes", "no")})
    return pd.DataFrame(rows)


def verdict_of(difference: Estimate, above: str, below: str) -> str:
    """What a difference with its interval allows to say.

    Args:
        difference: An estimate with its interval.
        above: The word for above zero.
        below: The word for below zero.

    Returns:
        ``above`` or ``below`` where the interval lies on that side of zero, else ``inconclusive``.

    >>> verdict_of(Estimate(0.5, 0.1, 0.9), "better", "worse"), verdict_of(Estimate(0.5, -0.1, 1.1), "better", "worse")
    ('better', 'inconclusive')
    """
    if not difference.excludes_zero:
        return "inconclusive"
    return above if difference.low > 0 else below


def score_frame(scores: Mapping[str, Mapping[str, TaskSamples]], evaluation: EvaluationConfig) -> pd.DataFrame:
    """Scores of a few models while a study is under way, as text: one row a model, one column a task, then the means.

    Args:
        scores: Model -> task -> the values behind the score.
        evaluation: Which tasks are in and out of domain, and how intervals are made.

    Returns:
        Text like ``41.2 [39.8, 42.5]``, scores times 100.

    Raises:
        ResultsError: A task of the means is missing.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.reporting.results import read_samples
    >>> from boom_utils.study.graph import Study
    >>> study = Study(load_profile("smoke"))  # scored by `boom run --profile smoke`
    >>> samples = {task: read_samples(one.path) for task, one in study.scores_of(["base"])["base"].items()}
    >>> list(score_frame({"base": samples}, study.profile.evaluation))[-2:]
    ['in-domain mean', 'out-of-domain mean']
    """
    domains = tasks_by_domain(evaluation)
    groups = {name: [name] for names in domains.values() for name in names}
    groups |= {f"{domain} mean": names for domain, names in domains.items()}
    rows = {}
    for model, samples in scores.items():
        found = {n: measure([(1.0, samples)], tasks).estimate(evaluation.confidence) for n, tasks in groups.items()}
        rows[model] = {n: with_interval(100 * e.value, 100 * e.low, 100 * e.high) for n, e in found.items()}
    return pd.DataFrame(rows).T


Table = Callable[[Results], pd.DataFrame]
TABLES: dict[str, Table] = {
    "models": model_table,
    "tasks": task_table,
    "members": member_table,
    "schedules": schedule_table,
    "incremental": incremental_table,
    "checks": checks_table,
}


def markdown(frame: pd.DataFrame, missing: str = "reference") -> str:
    """A Markdown table in which a value, its low and its high share one cell: ``41.2 [39.8, 42.5]``.

    Args:
        frame: The table.
        missing: What stands where such a value is not a number.

    Returns:
        The table, one line a row.

    >>> text = markdown(pd.DataFrame({"model": ["boom"], "mean": [41.2], "mean low": [39.8], "mean high": [42.5]}))
    >>> print(text.replace(NO_BREAK_SPACE, " ").rstrip())  # no line breaks inside a cell
    | model | mean |
    |---|---|
    | boom | 41.2 [39.8, 42.5] |
    """
    shown = pd.DataFrame(index=frame.index)
    for column in frame.columns:
        if not column.endswith((" low", " high")):
            bounds = [f"{column} low", f"{column} high"]
            known = bounds[0] in frame
            shown[column] = frame.apply(
                _cell, axis=1, column=column, bounds=bounds if known else [], missing=missing if known else ""
            )
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def merge_plan_text(geometry: Mapping[str, Any], forecasts: Mapping[str, Mapping[str, Any]]) -> str:
    """The report of a planned merge as Markdown: its members, how far each layer has moved, and what it would give.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it.
        forecasts: Name -> a `boom_utils.merging.planner.MergeForecast` as a mapping; none for methods that look at
            every element.
    """
    kind, origin = ("task vectors", "the base") if geometry["has_base"] else ("models", "their mean")
    names, moved = geometry["members"], np.array(geometry["relative_updates"], dtype=float)
    members = {"member": names, "norm": geometry["norms"], f"from {origin}, %": 100 * moved}
    members |= {f"cos {name}": row for name, row in zip(names, geometry["cosines"], strict=True)}  # symmetric
    layers = pd.DataFrame(100 * np.array(geometry["by_layer"], dtype=float), columns=names)
    layers.insert(0, "tensors", geometry["layers"])
    parts = [f"Members (cosines of their {kind}, all tensors together)", markdown(pd.DataFrame(members))]
    parts += [f"Distance from {origin} by layer, %", markdown(layers)]
    if forecasts:
        merges = [
            {"merge": name, **{f"c {member}": c for member, c in found["coefficients"].items()}}
            | {"c base": found["base"], "norm": found["norm"]}
            | {"from the base, %": 100 * np.array(found["relative_update"], dtype=float)}
            | {"from the mean": found["from_mean"], "cos with it": found["cosine_to_mean"]}
            | {"special tensors": len(found["notes"])}
            for name, found in forecasts.items()
        ]
        note = "c: mean coefficient; from the mean: in units of the members' own distance from their weighted mean"
        parts += [f"The merge ({note})", markdown(pd.DataFrame(merges))]
        parts += [f"  {name}: {note}" for found in forecasts.values() for name, note in found["notes"].items()]
    return "\n".join(parts)


@cache
def layout() -> dict[str, Any]:
    """The content of ``page.yaml``: sections, captions, and columns that are in CSV files alone."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("page.yaml").read_text(encoding="utf-8"))
    return found


def shown_columns(name: str, columns: Sequence[str], reference: str) -> list[str]:
    """The columns of a table that readers see at once; its CSV file has all of them.

    Args:
        name: The table's.
        columns: All of its columns.
        reference: What ``{reference}`` in the patterns of ``page.yaml`` stands for.
    """
    left_out = [pattern.format(reference=reference) for pattern in layout()["left_out"].get(name, ())]

    def hidden(column: str) -> bool:
        whole = column.removesuffix(" low").removesuffix(" high").removesuffix(WIDER)
        return any(fnmatchcase(whole, pattern) for pattern in (*left_out, "seeds minus *"))

    return [column for column in columns if not hidden(column)]


def short_markdown(name: str, frame: pd.DataFrame, reference: str) -> str:
    """A table as Markdown with the columns that readers see at once, and where the others are."""
    names = shown_columns(name, [str(column) for column in frame], reference)
    judged = [column for column in names if " verdict" in column or WIDER in column]  # of differences beside them
    shown = frame[[column for column in names if column not in judged]]
    text = markdown(shown, "not scored" if name == "merges" else "reference")
    return text if len(shown.columns) == len(frame.columns) else f"{text}\nAll columns: `{name}.csv`.\n"


def write_tables(results: Results, out: Path, more: Mapping[str, Table] | None = None) -> list[Path]:
    """Write every table that is not empty as ``<name>.csv`` and ``<name>.md`` into ``out``: `TABLES`, then ``more``."""
    written = []
    for name, make in {**TABLES, **(more or {})}.items():
        frame = make(results)
        if frame.empty:
            continue
        texts = {"csv": frame.to_csv(index=False, lineterminator="\n")}
        texts["md"] = short_markdown(name, frame, results.reference)
        for suffix, text in texts.items():
            write_text(out / f"{name}.{suffix}", text)
            written.append(out / f"{name}.{suffix}")
    return written


def estimate_columns(name: str, estimate: Estimate) -> dict[str, float]:
    """Three columns of an estimate, times 100."""
    values = {name: estimate.value, f"{name} low": estimate.low, f"{name} high": estimate.high}
    return {key: round(100 * value, 4) for key, value in values.items()}


def _cell(row: pd.Series[Any], column: str, bounds: Sequence[str], missing: str) -> str:
    value = row[column]
    if pd.isna(value):
        return missing
    if not bounds:
        return f"{value:g}" if isinstance(value, float) else str(value)
    sign = " minus " in column or "difference" in column
    return with_interval(value, row[bounds[0]], row[bounds[1]], sign).replace(" ", NO_BREAK_SPACE)


def points(value: float, sign: bool = False) -> str:
    """A score or difference with one decimal and no zero below zero.

    >>> points(-0.04, sign=True), points(1.26, sign=True)
    ('0.0', '+1.3')
    """
    shown = f"{value:{'+' if sign else ''}.1f}"
    return "0.0" if float(shown) == 0 else shown


def with_interval(value: float, low: float, high: float, sign: bool = False) -> str:
    """A score or difference with its interval: ``41.2 [39.8, 42.5]``."""
    return f"{points(value, sign)} [{points(low, sign)}, {points(high, sign)}]"


def describe(results: Results, model: str) -> str:
    """What a model is, in a few words."""
    study = results.study
    if model in study["merges"]:
        merge = study["merges"][model]
        weights = ", ".join(f"{weight:g}" for weight in merge["weights"])
        named = len(merge["members"]) == 1 or any(part in study["merges"] for part in merge["members"])
        parts = " and ".join(merge["members"]) if named else f"{len(merge['members'])} members"
        return f"{merge['method']} of {parts}, weights {weights}"
    if model in results.ensembles:
        return f"mean of the embeddings of {len(results.parts[model])} members"
    if model in study["members"]:
        return _describe_member(study["members"][model])
    return ROLES.get(model, "")


def _describe_member(facts: Mapping[str, Any]) -> str:
    schedule = "" if facts["schedule"] == SHUFFLED else f", {SCHEDULES[facts['schedule']]}"
    start = f" from {facts['start']}" if facts.get("start") else ""
    which = "every dataset"
    if facts.get("cluster"):
        which = f"the datasets of cluster {facts['cluster']}"
    elif facts.get("datasets"):
        names = facts["datasets"]
        which = names[0].replace("_", " ") if len(names) == 1 else f"{len(names)} datasets"
    share = f"{100 * (facts['ratio'] or 0):g} % of {which}"
    if facts["new_data"] is not None:
        old = share.replace("every dataset", "every old dataset") if facts["ratio"] else "nothing of the old"
        share = f"{old} and {100 * facts['new_data']:g} % of the new data"
    changes = {**(facts.get("training") or {})}
    changes |= changes.pop("average", {})  # its two kinds have words of their own
    own = [AVERAGES.get(name, f"{name} {{:g}}").format(value) for name, value in changes.items() if value is not None]
    return f"fine-tuned{start} on {', '.join([share + schedule, *own])}"


def _stage_order(facts: Mapping[str, Any]) -> str:
    if facts["schedule"] == SHUFFLED:
        return "one stage"
    if facts["schedule"] == "two_stage":
        order = ", then ".join(" + ".join(stage) for stage in facts["stages"])
    else:
        order = {"given": "as in the profile", "reversed": "the profile's, reversed"}.get(
            facts["order"], facts["order"]
        )
    restarted = "; learning rate restarted" if facts["learning_rate_stages"] == "restarted" else ""
    return order.replace("_", " ") + restarted
