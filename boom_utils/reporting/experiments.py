"""Which models of a study belong to which of the paper's experiments: found from what was trained, never from names.

A merge is of one kind:

- granularity: a model behind it was trained on some datasets only (one each, those of a cluster, or those of a family);
- incremental: a model behind it was trained on new data;
- variant: multislerp on the weights of members that differ in their samples of all datasets (what BOOM is);
- method: any other merge of such members.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_utils.config import trained_members
from boom_utils.evaluation.interaction import Clusters, Interaction
from boom_utils.reporting.results import Results, read_json_object

CARD_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of every dataset of the members that the released model is merged from (model card)."""
GRANULARITIES = {"dataset": "one model a dataset", "family": "one model a family", "cluster": "one model a cluster"}
"""The granularities of merging, and what is merged."""
AVERAGES = ("linear", "multislerp")


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


def ratios(results: Results, merge: str) -> tuple[float, ...]:
    """Share of every dataset that each member behind a merge was trained on, ascending."""
    return tuple(sorted(facts["ratio"] or 0.0 for facts in merged_members(results, merge)))


def granularity_of(results: Results, merge: str) -> str | None:
    """``dataset``, ``family`` or ``cluster``; None where every member was trained on all datasets."""
    members = merged_members(results, merge)
    if any(facts.get("cluster") for facts in members):
        return "cluster"
    chosen = [facts.get("datasets") for facts in members]
    if not any(chosen):
        return None
    return "dataset" if all(names and len(names) == 1 for names in chosen) else "family"


def granularity_merges(results: Results) -> dict[str, str]:
    """Merge -> its granularity, coarsest last; of several of one granularity those by multislerp on the weights."""
    found: dict[str, list[str]] = defaultdict(list)
    for merge in results.static_merges:
        if kind := granularity_of(results, merge):
            found[kind].append(merge)
    chosen: dict[str, str] = {}
    for kind in GRANULARITIES:
        plain = [merge for merge in found[kind] if method_of(results, merge) == ("multislerp", False)]
        chosen |= dict.fromkeys(plain or found[kind], kind)
    return chosen


def method_of(results: Results, merge: str) -> tuple[str, bool]:
    """Method of a merge, and whether it merges task vectors instead of weights."""
    facts = results.study["merges"][merge]
    return str(facts["method"]), bool(facts.get("task_vectors", False))


def is_nested(results: Results, merge: str) -> bool:
    """Whether a merge merges other merges."""
    return any(part in results.parts for part in results.parts[merge])


def average_merges(results: Results) -> list[str]:
    """Plain averages of all-dataset members, on the weights: by multislerp or linear."""
    return [
        merge
        for merge in results.static_merges
        if granularity_of(results, merge) is None
        and method_of(results, merge) in [(method, False) for method in AVERAGES]
        and not is_nested(results, merge)
    ]


def variants(results: Results) -> list[str]:
    """The BOOM variants, in the profile's order."""
    return [merge for merge in average_merges(results) if method_of(results, merge)[0] == "multislerp"]


def boom_merge(results: Results) -> str | None:
    """The variant of the released model's ratios, weighted by them; else the first variant there is."""
    found = variants(results)
    for merge in found:
        if ratios(results, merge) == CARD_RATIOS and weights_kind(results, merge) == "by ratio":
            return merge
    return next(iter(found), None)


def weights_kind(results: Results, merge: str) -> str:
    """``equal``, ``by ratio`` (for members that differ in it), or the normalised weights."""
    weights = [float(weight) for weight in results.study["merges"][merge]["weights"]]
    shares = [weight / sum(weights) if sum(weights) else weight for weight in weights]
    members = [results.study["members"].get(part, {}) for part in results.parts[merge]]
    parts = [facts.get("ratio") or 0.0 for facts in members]
    if max(shares) - min(shares) < 1e-9:
        return "equal"
    if sum(parts) and all(abs(share - part / sum(parts)) < 1e-9 for share, part in zip(shares, parts, strict=True)):
        return "by ratio"
    return ", ".join(f"{share:.2g}" for share in shares)


def method_groups(results: Results) -> list[list[str]]:
    """Scored static merges of the same trained members by more than one method; family by family first, then largest.

    The paper compares methods on the models of the task families.
    """
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for merge in results.static_merges:
        groups[frozenset(trained_members(merge, results.parts))].append(merge)
    found = [group for group in groups.values() if len({method_of(results, merge) for merge in group}) > 1]
    return sorted(found, key=lambda group: (granularity_of(results, group[0]) != "family", -len(group)))


def updates(results: Results) -> list[Update]:
    """The scored models that learnt new data, in the order of `Results.incremental`."""
    members = results.study["members"]
    found = []
    for model in results.incremental:
        if model in results.parts:
            if any(facts["new_data"] is not None for facts in merged_members(results, model)):
                found.append(_merged(results, model))
        elif members[model]["new_data"] is not None:
            facts = members[model]
            kind = "continued" if facts.get("start") else "retrained" if model == results.retrained else "alone"
            found.append(Update(model, kind, facts.get("start"), facts["ratio"] or 0.0))
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


def core_sweep(results: Results) -> list[Update]:
    """Merged updates of one existing model with the same weight and method, by their share of old data; or nothing."""
    return _sweep(results, lambda update: (update.existing, update.method, update.weight), "core")


def weight_sweep(results: Results) -> list[Update]:
    """Merged updates of one existing model with the same share of old data and method, by weight; or nothing."""
    return _sweep(results, lambda update: (update.existing, update.method, update.core), "weight")


def _sweep(results: Results, same: Any, varied: str) -> list[Update]:
    """The largest group that is alike in all but one value, one of each value of it, ascending."""
    groups: dict[Any, dict[float, Update]] = defaultdict(dict)
    for update in updates(results):
        if update.kind == "merged" and update.existing and update.core is not None and update.weight is not None:
            groups[same(update)].setdefault(getattr(update, varied), update)
    largest: Sequence[Update] = max((list(group.values()) for group in groups.values()), key=len, default=[])
    return sorted(largest, key=lambda update: float(getattr(update, varied))) if len(largest) > 1 else []


def read_interaction(results: Results) -> tuple[Interaction, Clusters | None] | None:
    """The interaction of datasets and its clusters; None for a study that has none.

    Raises:
        ResultsError: The file is malformed.
    """
    path = results.place("interaction.json")
    if not path.is_file():
        return None
    stored = read_json_object(path)
    found = Clusters.from_json(stored["clusters"]) if stored.get("clusters") else None
    return Interaction.from_json(stored), found
