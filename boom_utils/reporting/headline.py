"""What a study found, in a few rows: BOOM beside the full corpus; and what its training cost."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd

from boom_utils.config import trained_members
from boom_utils.evaluation.statistics import moved
from boom_utils.reporting.experiments import average_merges
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import ROLES, Table, compared, estimate_columns

BASE, REFERENCE, BOOM, CONTROL = "base", "full corpus", "BOOM", "plain mean"


WIDER = ", over tasks too"
"""Ends the name of a column whose interval speaks of other tasks of the same kind, too."""


def headline_models(results: Results) -> dict[str, str]:
    """The models of the headline table -> what they are: the base, the full corpus, BOOM, controls of the same members.

    Empty for a study without a model of the full corpus or without a BOOM merge.
    """
    full, boom = results.full, results.experiments.boom
    if full is None or boom is None:
        return {}
    found = {"base": BASE} if "base" in results.models else {}
    found |= {full: REFERENCE, boom: BOOM}
    members = set(trained_members(boom, results.parts))
    for merge in average_merges(results):
        if merge != boom and set(trained_members(merge, results.parts)) == members:
            method = results.study["merges"][merge]["method"]
            found[merge] = CONTROL if method == "linear" else "other weights"
    return found


def headline_table(results: Results) -> pd.DataFrame:
    """BOOM against full-corpus training: means in and out of domain, paired differences with a verdict, and the cost.

    ``better`` or ``worse`` is said where the interval of the difference excludes zero, before any correction for the
    number of comparisons: claims are judged in `boom_utils.reporting.claims`.
    """
    chosen = headline_models(results)
    full, members = results.full, results.study["members"]
    rows = []
    for model, what in chosen.items():
        row: dict[str, Any] = {"model": model, "what": what}
        if results.study.get("seeds"):
            row["seeds"] = len(results.seeds(model))
        for domain in results.domains:
            row |= estimate_columns(domain, results.domain_mean(model, domain))
            gap, verdict = compared(results, model, str(full), results.tasks(domain))
            row |= estimate_columns(f"{domain} minus {full}", gap) | {f"{domain} verdict": verdict}
            tasks = results.tasks(domain)
            if model != full and len(tasks) > 1:
                wider = results.difference(model, str(full), tasks, over_tasks=True)
                row |= estimate_columns(f"{domain} minus {full}{WIDER}", wider)
        row["corpus passes"] = results.cost(model)
        row["examples"] = sum(members[name]["examples"] for name in results.behind(model) if name in members)
        rows.append(row)
    return pd.DataFrame(rows)


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

    One row a model: standard deviations of its seeds, in points; empty for a study of one seed.
    """
    rows = []
    for model in results.study.get("seeds", {}):
        seeds = results.seeds(model)
        units = moved(results.shares(model)) * len(seeds)  # shares are those of the mean over seeds
        row: dict[str, Any] = {"model": model, "seeds": len(seeds), "members' variance in it": round(units, 4)}
        for domain in results.domains:
            tasks = results.tasks(domain)
            found, spread = [results.run_mean(name, tasks) for name in seeds], results.spread(tasks)
            expected = math.sqrt(units * spread[0]) if spread else math.nan
            row |= {f"{domain} deviation": round(100 * statistics.stdev(found), 3)}
            row |= {f"{domain} deviation expected": round(100 * expected, 3)}
        rows.append(row)
    return pd.DataFrame(rows)


HEADLINE_TABLES: dict[str, Table] = {"headline": headline_table, "costs": cost_table, "seeds": seed_table}
