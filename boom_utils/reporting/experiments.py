"""The models of a study's experiments, as its profile declares them (`boom_utils.experiments`), in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from boom_utils.config import trained_members
from boom_utils.errors import ResultsError
from boom_utils.evaluation.interaction import Clusters, Interaction
from boom_utils.reporting.results import Results, read_json_object

GRANULARITIES = {"dataset": "one model a dataset", "family": "one model a family", "cluster": "one model a cluster"}
"""The granularities of merging, and what is merged."""


@dataclass(frozen=True)
class Update:
    """A model that learnt new data.

    Args:
        model: Its name.
        kind: ``merged``, ``continued`` (an existing model trained on), ``alone`` (what a merge adds), ``retrained``.
        existing: The model that was updated; None where training began at the base.
        core: Share of the old data that was trained on with the new; 0: none of it. None where merges are nested.
        weight: Share of the update in the merge; None for members, and where several updates are merged at once.
        method: Of the merge, else empty.
    """

    model: str
    kind: str
    existing: str | None
    core: float | None
    weight: float | None = None
    method: str = ""


def merged_members(results: Results, merge: str) -> list[Mapping[str, Any]]:
    """What is known of the trained members of a merge."""
    members = results.study["members"]
    return [members[name] for name in trained_members(merge, results.parts) if name in members]


def granularity_merges(results: Results) -> dict[str, str]:
    """Merge -> its granularity, coarsest last."""
    return {merge: kind for kind, merge in results.experiments.granularities if merge}


def method_of(results: Results, merge: str) -> tuple[str, bool]:
    """Method of a merge, and whether it merges task vectors instead of weights."""
    facts = results.study["merges"][merge]
    return str(facts["method"]), bool(facts.get("task_vectors", False))


def weights_kind(results: Results, merge: str) -> str:
    """``equal``, ``by ratio`` (for members that differ in it), or the normalised weights."""
    weights = [float(weight) for weight in results.study["merges"][merge]["weights"]]
    shares = [weight / sum(weights) if sum(weights) else weight for weight in weights]
    parts = [results.study["members"].get(part, {}).get("ratio") or 0.0 for part in results.parts[merge]]
    if max(shares) - min(shares) < 1e-9:
        return "equal"
    if sum(parts) and all(abs(share - part / sum(parts)) < 1e-9 for share, part in zip(shares, parts, strict=True)):
        return "by ratio"
    return ", ".join(f"{share:.2g}" for share in shares)


def method_groups(results: Results) -> list[list[str]]:
    """Scored merges of the same trained members by several methods, the first group of which is that of the claims."""
    return [[*group] for group in results.experiments.methods if len(group) > 1]


def plain_multislerp(results: Results, group: Sequence[str], weights: str = "by ratio") -> str | None:
    """The merge by multislerp on the weights in a group of `method_groups`, with these weights if there are several."""
    found = [merge for merge in group if method_of(results, merge) == ("multislerp", False)]
    return next(iter([merge for merge in found if weights_kind(results, merge) == weights] or found), None)


def method_label(results: Results, merge: str) -> str:
    """``ties``, ``multislerp (task vectors)``, ``slerp (chain)``; equal weights are said where others are possible."""
    method, task_vectors = method_of(results, merge)
    notes = ["task vectors"] if task_vectors else []
    notes += ["chain"] if any(part in results.parts for part in results.parts[merge]) else []
    return f"{method} ({', '.join(notes)})" if notes else method


def members_text(results: Results, merge: str) -> str:
    """What the members of a merge have in common: how many, of which ratios or granularity."""
    members = merged_members(results, merge)
    alike = [kind for one, kind in granularity_merges(results).items() if merged_members(results, one) == members]
    return f"{len(members)} models, {GRANULARITIES[alike[0]] if alike else ratio_text(results, merge)}"


def ratio_text(results: Results, merge: str) -> str:
    """Shares of every dataset, in per cent, that the members behind a merge were trained on: ``{20, 40, 60}``."""
    ratios = sorted(facts["ratio"] or 0.0 for facts in merged_members(results, merge))
    return "{" + ", ".join(f"{100 * ratio:g}" for ratio in ratios) + "}"


def updates(results: Results) -> list[Update]:
    """The scored models that learnt new data, in the profile's order."""
    members, found, incremental = results.study["members"], [], results.experiments.incremental
    for model in incremental.models:
        facts = members.get(model)
        if facts and facts["new_data"] is not None:
            kind = "continued" if facts.get("start") else "retrained" if model == incremental.baseline else "alone"
            found.append(Update(model, kind, facts.get("start"), facts["ratio"] or 0.0))
        elif model in results.parts and any(one["new_data"] is not None for one in merged_members(results, model)):
            found.append(_merged(results, model))
    return found


def _merged(results: Results, merge: str) -> Update:
    facts, members = results.study["merges"][merge], results.study["members"]
    new = [part for part in facts["members"] if part in members and members[part]["new_data"] is not None]
    old = [part for part in facts["members"] if part not in new]
    total = sum(map(float, facts["weights"]))
    if len(new) != 1 or not total:
        return Update(merge, "merged", None, None, None, facts["method"])
    weight = float(facts["weights"][facts["members"].index(new[0])]) / total
    existing = old[0] if len(old) == 1 else None
    return Update(merge, "merged", existing, members[new[0]]["ratio"] or 0.0, round(weight, 9), facts["method"])


def sweep(results: Results, key: str) -> list[Update]:
    """The updates that differ in one thing alone, ascending; or nothing.

    Args:
        results: Of a finished study.
        key: What they differ in: ``core_ratios`` (their share of old data) or ``weights`` (theirs in the merge).
    """
    varied = {"core_ratios": "core", "weights": "weight"}[key]
    known = {update.model: update for update in updates(results) if getattr(update, varied) is not None}
    found = [known[name] for name in getattr(results.experiments.incremental, key) if name in known]
    return found if len(found) > 1 else []


def arms(results: Results) -> list[str]:
    """The model of the full corpus and what stands beside the interpolation curve, without the curve's own models."""
    found, curve = results.experiments, {name for _, name in results.interpolation}
    beside = [name for name in found.frontier if name not in curve and name in results.models]
    return [*dict.fromkeys([found.full, *beside] if beside and found.full else [])]


def lifetime_costs(results: Results, updates_made: int) -> dict[str, list[float]]:
    """Passes over the old corpus that all training took, after every update with as much new data as the study's.

    What arrived earlier is old data for the next update: it is trained on again by retraining, and drawn from by the
    core of an update. Only merged updates of one model are followed, the first with a core and the first without.

    Args:
        results: Of a finished study.
        updates_made: How many.

    Returns:
        What is done -> (1 + updates_made,) passes; empty for a study that merges no update of all new data.
    """
    full, retrained, members = results.full, results.retrained, results.study["members"]
    if not full or not retrained:
        return {}
    whole, new = results.cost(full), results.cost(retrained) - results.cost(full)
    merged = [one for one in updates(results) if one.kind == "merged" and one.existing and one.core is not None]
    kinds = {bool(one.core): one for one in reversed(merged)}
    if new <= 0 or True not in kinds:
        return {}
    growth = 1 + new / whole * np.arange(updates_made)

    def followed(existing: str, update: Update) -> list[float]:
        trained = sum(members[name]["passes"] for name in results.behind(update.model) if members[name]["new_data"])
        each = [0.0, *(new + (trained - new) * growth)]
        return [float(passes) for passes in results.cost(existing) + np.cumsum(each)]

    again = [float(passes) for passes in whole + np.cumsum([0.0, *(whole * growth + new)])]
    found, update, without = {"retrain on everything": again}, kinds[True], kinds.get(False)
    for existing, one in ((update.existing, update), (full, update), (without and without.existing, without)):
        if existing and one:
            share = f"with {100 * (one.core or 0):g} % of the old" if one.core else "without old data"
            found[f"{existing} + update {share}"] = followed(existing, one)
    return found


def read_interaction(results: Results) -> tuple[Interaction, Clusters | None] | None:
    """The interaction of datasets and its clusters; None for a study that has none.

    Raises:
        ResultsError: The file is malformed.
    """
    path = results.folder / "interaction.json"
    if not path.is_file():
        return None
    stored = read_json_object(path)
    try:
        found = Clusters.from_json(stored["clusters"]) if stored.get("clusters") else None
        return Interaction.from_json(stored), found
    except (KeyError, TypeError, ValueError) as error:
        fix = "run the study again"
        raise ResultsError("this is not an interaction of datasets", where=path, found=repr(error), fix=fix) from error
