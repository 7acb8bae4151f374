"""Tables of the paper's experiments: the headline, granularities, methods, BOOM variants, merges, costs."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd

from boom_utils.config import trained_members
from boom_utils.evaluation.statistics import moved
from boom_utils.merging.recipe import METHOD_RULES
from boom_utils.reporting import experiments
from boom_utils.reporting.controls import CONTROL_TABLES
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import (
    ROLES,
    Table,
    beside,
    compare,
    describe,
    estimate_columns,
    fewer_seeds,
    seeds_of,
)

BASE, REFERENCE, BOOM, CONTROL = "base", "full corpus", "BOOM", "plain mean"


def headline_models(results: Results) -> dict[str, str]:
    """The models of the headline table -> what they are: the base, the full corpus, BOOM, controls of the same members.

    Empty for a study without a model of the full corpus or without a BOOM merge.
    """
    known = results.experiments
    if known.full is None or known.boom is None:
        return {}
    found = {"base": BASE} if "base" in results.models else {}
    found |= {known.full: REFERENCE, known.boom: BOOM}
    members = {*trained_members(known.boom, results.parts)}
    for merge in known.averages:
        if merge != known.boom and {*trained_members(merge, results.parts)} == members:
            found[merge] = CONTROL if merge in known.controls else "other weights"
    return found


def headline_table(results: Results) -> pd.DataFrame:
    """BOOM against full-corpus training: means in and out of domain, paired differences with a verdict, and the cost.

    ``better`` or ``worse`` is said where the interval of the difference excludes zero, before any correction for the
    number of comparisons: claims are judged in `boom_utils.reporting.claims`.
    """
    chosen, full = headline_models(results), results.full
    facts = [{"model": model, "what": what, **seeds_of(results, model)} for model, what in chosen.items()]
    cost = [
        {"corpus passes": results.cost(model), "examples": sum(one["examples"] for one in results.trained(model))}
        for model in chosen
    ]
    return beside(facts, compare(results, [*chosen], results.groups, full, over_tasks=True), more=cost)


def cost_table(results: Results) -> pd.DataFrame:
    """What training took, a row a member and the base: from the training logs. Times are of the machine they ran on."""
    rows = []
    for model in ("base", *results.study["members"]):
        log, facts = results.training_log(model), results.study["members"].get(model, {})
        if not log:
            continue
        row: dict[str, Any] = {"model": model, "what": ROLES.get(model, "member"), "steps": len(log)}
        row["examples"] = sum(line["queries"] for line in log)
        tokens = sum(line.get("tokens", 0) for line in log)
        seconds = sum(line.get("seconds", 0.0) for line in log)
        row |= {"tokens": tokens or facts.get("tokens"), "seconds": round(seconds, 1) if seconds else None}
        row["tokens per second"] = round(tokens / seconds) if seconds else None
        row["peak memory, MB"] = max((line.get("peak_memory_mb", 0) for line in log), default=0) or None
        rows.append(row)
    return pd.DataFrame(rows)


def seed_table(results: Results) -> pd.DataFrame:
    """How far seeds move the mean of each model that has several, beside what one spread for all members expects.

    One row a model: standard deviations of its seeds, in points; empty for a study of one seed. Nothing is expected
    where seeds have their own rows, which move all models together.
    """
    rows = []
    for model in results.study.get("seeds", {}):
        seeds = results.seeds(model)
        units = moved(results.shares(model)) * len(seeds)  # shares are those of the mean over seeds
        row: dict[str, Any] = {"model": model, "seeds": len(seeds)}
        row |= {} if results.own_rows else {"members' variance in it": round(units, 4)}
        for domain in results.domains:
            tasks = results.tasks(domain)
            found = [results.run_mean(name, tasks) for name in seeds]
            row |= {f"{domain} deviation": round(100 * statistics.stdev(found), 3)}
            if spread := results.spread(tasks):
                row |= {f"{domain} deviation expected": round(100 * math.sqrt(units * spread[0]), 3)}
        rows.append(row)
    return pd.DataFrame(rows)


def granularity_table(results: Results) -> pd.DataFrame:
    """Merges of models of a dataset, a family or a cluster each, beside the reference and BOOM, with what each cost.

    Empty for a study without such merges.

    Args:
        results: Of a finished study.

    Returns:
        One row a model.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> "by-dataset" in set(granularity_table(results)["model"])
    True
    """
    known, merges = results.experiments, experiments.granularity_merges(results)
    found = {results.reference: "reference"} | ({known.boom: "BOOM: one model a sample"} if known.boom else {})
    found = found | {merge: experiments.GRANULARITIES[kind] for merge, kind in merges.items()} if merges else {}
    facts = [
        {"model": model, "granularity": what, "models trained": len(experiments.merged_members(results, model))}
        | _cost(results, model)
        for model, what in found.items()
    ]
    return beside(facts, compare(results, [*found], results.groups, results.reference))


def method_table(results: Results) -> pd.DataFrame:
    """Every method on the weights and on the task vectors of the same members, compared with multislerp on the weights.

    Empty for a study without two methods on the same members.

    Args:
        results: Of a finished study.

    Returns:
        One row a merge.

    Raises:
        ResultsError: A file of the results is missing or damaged.

    >>> from boom_utils.reporting.results import read_results
    >>> results = read_results(Path("results/smoke"))  # after `boom run --profile smoke`
    >>> {"ties", "multislerp"} <= set(method_table(results)["method"])
    True
    """
    facts, plain, said = [], dict[str, str | None](), []
    for number, group in enumerate(experiments.method_groups(results), start=1):
        for merge in group:
            weights = experiments.weights_kind(results, merge)
            other = plain[merge] = experiments.plain_multislerp(results, group, weights)
            row: dict[str, Any] = {"group": number, "merged": experiments.members_text(results, merge), "model": merge}
            row["method"] = experiments.method_label(results, merge)
            facts.append(row | {"parameters": _parameters(results, merge)})
            alike = other is None or experiments.weights_kind(results, other) == weights
            said.append({"multislerp": other if alike else f"{other}, other weights"})
    against = compare(results, [*plain], results.groups, plain, title="multislerp")
    against = against[[name for name in against if " minus " in str(name) or str(name).endswith("verdict")]]
    against = against.rename(columns=lambda name: name.replace("verdict", "verdict against multislerp"))
    return beside(facts, compare(results, [*plain], results.groups, results.reference), pd.DataFrame(said), against)


def variant_table(results: Results) -> pd.DataFrame:
    """BOOM variants: ratios, weights, cost, means and differences to the reference. Empty with fewer than two."""
    found = results.experiments.variants if len(results.experiments.variants) > 1 else ()
    facts = [
        {"model": merge, "ratios": experiments.ratio_text(results, merge)}
        | {"weights": experiments.weights_kind(results, merge)}
        | _cost(results, merge)
        for merge in found
    ]
    return beside(facts, compare(results, found, results.groups, results.reference))


def merge_table(results: Results) -> pd.DataFrame:
    """Every merge beside the base, the mean of what was merged and the best of it, with paired differences.

    The best is chosen for each domain on the very tasks of the difference, which therefore is a little too low. Where
    a part was not scored, only the base stands beside the merge.
    """
    rows = []
    for merge in (name for name in results.models if name in results.parts):
        row: dict[str, Any] = {"model": merge, "what": describe(results, merge)}
        parts = results.parts[merge] if {*results.parts[merge]} <= {*results.models} else []
        for domain in results.domains:
            tasks = results.tasks(domain)
            row |= estimate_columns(domain, results.domain_mean(merge, domain))
            beside: dict[str, Any] = {"base": "base"} if "base" in results.models else {}
            if parts:
                best = max(parts, key=lambda part: results.domain_mean(part, domain).value)
                row[f"{domain} best part"] = best
                beside |= {"mean part": parts, "best part": best}
            for name, other in beside.items():
                row |= estimate_columns(f"{domain} minus {name}", results.difference(merge, other, tasks))
                row |= fewer_seeds(results, merge, other, f"{domain} {name}" if name == "best part" else name)
        rows.append(row)
    return pd.DataFrame(rows)


def _cost(results: Results, model: str) -> dict[str, Any]:
    passes, unit = results.cost(model), results.cost(results.reference)
    return {"corpus passes": round(passes, 4), "cost of the reference": round(passes / unit, 4) if unit else None}


def _parameters(results: Results, merge: str) -> str:
    facts = results.study["merges"][merge]
    weighted = "weight" in METHOD_RULES[facts["method"]].of_models
    settings = {"weights": experiments.weights_kind(results, merge)} if weighted else {}
    settings |= facts.get("parameters") or {}
    return ", ".join(
        f"{name} {value:g}" if not isinstance(value, str) else f"{name} {value}" for name, value in settings.items()
    )


ABLATION_TABLES: dict[str, Table] = {
    **CONTROL_TABLES,
    "headline": headline_table,
    "costs": cost_table,
    "seeds": seed_table,
    "granularities": granularity_table,
    "methods": method_table,
    "variants": variant_table,
    "merges": merge_table,
}
