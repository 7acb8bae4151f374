"""Tables of the paper's ablations: granularities, methods, BOOM variants, updates, datasets; see `experiments`.

Scores are times 100. Differences are paired; their verdict is ``better`` or ``worse`` where the interval excludes zero,
else ``inconclusive``, before any correction for their number: claims are judged in `boom_utils.reporting.claims`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.evaluation.statistics import Estimate
from boom_utils.merging.recipe import METHOD_RULES
from boom_utils.reporting.experiments import (
    GRANULARITIES,
    granularity_merges,
    members_text,
    merged_members,
    method_groups,
    method_label,
    plain_multislerp,
    ratio_text,
    read_interaction,
    variants,
    weights_kind,
)
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import Table, compared, describe, estimate_columns, verdict_of


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
    rows = []
    for model, what in granularity_rows(results).items():
        trained = len(merged_members(results, model)) if model in results.parts else 1
        row: dict[str, Any] = {"model": model, "granularity": what, "models trained": trained}
        rows.append(row | _cost(results, model) | _against(results, model, results.reference))
    return pd.DataFrame(rows)


def granularity_rows(results: Results) -> dict[str, str]:
    """Model -> what it is, in the order of table and figure; nothing without a merge of some granularity."""
    merges = granularity_merges(results)
    if not merges:
        return {}
    first = {results.reference: "reference"}
    if boom := results.experiments.boom:
        first[boom] = "BOOM: one model a sample"
    return first | {merge: GRANULARITIES[kind] for merge, kind in merges.items()}


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
    >>> {"ties", "sce"} <= set(method_table(results)["method"])
    True
    """
    rows = []
    for number, group in enumerate(method_groups(results), start=1):
        for merge in group:
            plain = plain_multislerp(results, group, weights_kind(results, merge))
            row: dict[str, Any] = {"group": number, "merged": members_text(results, merge), "model": merge}
            row |= {"method": method_label(results, merge), "parameters": _parameters(results, merge)}
            row |= _against(results, merge, results.reference)
            for domain in results.domains if plain else []:
                gap, verdict = compared(results, merge, str(plain), results.tasks(domain))
                same = weights_kind(results, merge) == weights_kind(results, str(plain))
                row |= {"multislerp": plain if same else f"{plain}, other weights"}
                row |= estimate_columns(f"{domain} minus multislerp", gap)
                row |= {f"{domain} verdict against multislerp": verdict}
            rows.append(row)
    return pd.DataFrame(rows)


def variant_table(results: Results) -> pd.DataFrame:
    """BOOM variants: ratios, weights, cost, means and differences to the reference. Empty with fewer than two."""
    found = variants(results)
    rows = []
    for merge in found if len(found) > 1 else []:
        row: dict[str, Any] = {"model": merge, "ratios": ratio_text(results, merge)}
        row |= {"weights": weights_kind(results, merge)} | _cost(results, merge)
        rows.append(row | _against(results, merge, results.reference))
    return pd.DataFrame(rows)


def pareto_table(results: Results) -> pd.DataFrame:
    """Quality against training cost, a domain after the other: which models no other one beats in both.

    ``not dominated``: no model is as good at less cost, or better at the same. ``step up`` compares each such model
    with the next cheaper one: where the interval of the paired difference includes zero, it is inconclusive.
    """
    rows = []
    models = pareto_models(results)
    for domain in results.domains if models else []:
        tasks, front = results.tasks(domain), pareto_front(results, domain)
        for model in sorted(models, key=lambda name: (results.cost(name), models.index(name))):
            row: dict[str, Any] = {"domain": domain, "model": model, "what": describe(results, model)}
            row |= _cost(results, model) | estimate_columns("mean", results.domain_mean(model, domain))
            row["not dominated"] = "yes" if model in front else "no"
            place = front.index(model) if model in front else 0
            gap = results.difference(model, front[place - 1], tasks) if place else Estimate(np.nan, np.nan, np.nan)
            row |= {"next cheaper": front[place - 1] if place else ""}
            row |= {"step up": verdict_of(gap, "better", "worse") if place else ""}
            rows.append(row)
    return pd.DataFrame(rows)


def pareto_models(results: Results) -> list[str]:
    """The base, which costs nothing, batch-level shuffled members and the BOOM variants; none without variants."""
    found, base = variants(results), [name for name in ("base",) if name in results.models]
    return [*base, *results.shuffled, *found] if found else []


def pareto_front(results: Results, domain: str) -> list[str]:
    """The models no other one beats in cost and mean score both, from cheap to dear."""
    points = [(results.cost(name), -results.domain_mean(name, domain).value, name) for name in pareto_models(results)]
    front: list[str] = []
    best = np.inf
    for _, negative, name in sorted(points):
        if negative < best:
            front.append(name)
            best = negative
    return front


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
        rows.append(row)
    return pd.DataFrame(rows)


def dataset_table(results: Results) -> pd.DataFrame:
    """Every dataset with its family, its cluster, and those that help and disturb it most when trained together.

    Differences of its own held-out loss in nats (times 1000), of which the interval is that pair's alone, over so many
    held-out batches. Empty for a study without the interaction analysis.
    """
    found = read_interaction(results)
    if found is None:
        return pd.DataFrame()
    interaction, clusters = found
    families = dataset_families(results)
    rows = []
    for place, name in enumerate(interaction.datasets):
        others = [other for other in interaction.datasets if other != name]
        changes = {other: interaction.change(name, trained_with=other) for other in others}
        row: dict[str, Any] = {"dataset": name, "family": families.get(name, "")}
        row["cluster"] = clusters.labels[place] if clusters else ""
        row["held-out batches"] = interaction.batches[place]
        for title, pick in (("strongest synergy", min), ("strongest conflict", max)):
            other = pick(others, key=lambda key: changes[key].value)
            exists = changes[other].value < 0 if title.endswith("synergy") else changes[other].value > 0
            row |= _milli(title, other if exists else "none", changes[other] if exists else None)
        rows.append(row)
    return pd.DataFrame(rows)


def dataset_families(results: Results) -> dict[str, str]:
    """Dataset -> task family, as study.json says."""
    return dict(results.study.get("families", {}))


def _milli(title: str, other: str, change: Estimate | None) -> dict[str, Any]:
    shown = f"{1000 * change.value:+.1f}" if change else ""
    if change and not math.isnan(change.low):
        shown += f" [{1000 * change.low:+.1f}, {1000 * change.high:+.1f}]"
    return {title: other, f"{title}, nats x 1000": shown}


def _cost(results: Results, model: str) -> dict[str, Any]:
    passes, unit = results.cost(model), results.cost(results.reference)
    return {"corpus passes": round(passes, 4), "cost of the reference": round(passes / unit, 4) if unit else None}


def _against(results: Results, model: str, baseline: str) -> dict[str, Any]:
    """Mean, paired difference to the baseline and verdict in every domain."""
    row: dict[str, Any] = {}
    for domain in results.domains:
        row |= estimate_columns(domain, results.domain_mean(model, domain))
        gap, verdict = compared(results, model, baseline, results.tasks(domain))
        row |= estimate_columns(f"{domain} minus {baseline}", gap) | {f"{domain} verdict": verdict}
    return row


def _parameters(results: Results, merge: str) -> str:
    facts = results.study["merges"][merge]
    weighted = "weight" in METHOD_RULES[facts["method"]].of_models
    settings = {"weights": weights_kind(results, merge)} if weighted else {}
    settings |= facts.get("parameters") or {}
    return ", ".join(
        f"{name} {value:g}" if not isinstance(value, str) else f"{name} {value}" for name, value in settings.items()
    )


ABLATION_TABLES: dict[str, Table] = {
    "granularities": granularity_table,
    "methods": method_table,
    "variants": variant_table,
    "merges": merge_table,
    "pareto": pareto_table,
    "datasets": dataset_table,
}
