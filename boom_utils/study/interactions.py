"""The nodes of the interaction analysis: every dataset alone and every pair trained and measured on held-out rows.

The models are members like any other, but for what they are trained on; nothing else of the study uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Node, write_json
from boom_utils.config import InteractionConfig, MemberConfig, Profile
from boom_utils.data.manifest import Manifest
from boom_utils.study.members import Execution, member, plan, rules_of
from boom_utils.study.stages import VERSION, Inputs, Nodes

FILE = "interaction.json"
_LOSSES = "held_out_losses.json"


def interaction_nodes(profile: Profile, manifest: Manifest, nodes: Nodes, execution: Execution) -> dict[str, Node]:
    """All nodes of the analysis, under ``interaction/`` but for the last one; none if the profile has no analysis."""
    config = profile.interaction
    if config is None:
        return {}
    made: dict[str, Node] = {}
    losses: dict[str, Node] = {}
    for trained in interaction_members(profile, config):
        plan_node = replace(plan(profile, manifest, trained, nodes), one_of_many=True)
        made[f"interaction/plan/{trained.name}"] = plan_node
        known = {**nodes, f"plan/{trained.name}": plan_node}
        model = replace(member(profile, manifest, trained, known, execution), one_of_many=True)
        made[f"interaction/member/{trained.name}"] = model
        losses[trained.name] = _losses(profile, manifest, trained, {**known, "model": model})
    made |= {f"interaction/losses/{name}": node for name, node in losses.items()}
    return {**made, "interaction": _interaction(profile, config, losses)}


def interaction_members(profile: Profile, config: InteractionConfig) -> list[MemberConfig]:
    """The models of the analysis: one for every dataset and one for every pair."""
    given = {"subset": config.subset, "seed": config.seed}
    return [MemberConfig(name=_name(profile, chosen), datasets=chosen, **given) for chosen in _sets(profile)]


def _sets(profile: Profile) -> list[tuple[str, ...]]:
    names = profile.corpus.datasets
    return [*((name,) for name in names), *combinations(names, 2)]


def _name(profile: Profile, chosen: tuple[str, ...]) -> str:
    """Short, as names of two datasets together may be long: their numbers in the profile."""
    numbers = [str(profile.corpus.datasets.index(name) + 1) for name in chosen]
    return "-".join(["alone" if len(chosen) == 1 else "pair", *numbers])


def _losses(profile: Profile, manifest: Manifest, trained: MemberConfig, nodes: Nodes) -> Node:
    """Held-out losses of one model on what it was trained on."""
    config, rules = profile.interaction, rules_of(profile, manifest, trained)
    assert config is not None

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.data.sampling import load_subset
        from boom_utils.training.batch_losses import losses_as_json
        from boom_utils.training.held_out import HeldOutOptions, held_out_losses
        from boom_utils.training.plan import DatasetRules

        held_out = load_subset(found["held_out"].path).rows
        rows = {name: held_out[name][: config.rows] for name in rules}
        made = {name: DatasetRules(**rule) for name, rule in rules.items()}
        options = HeldOutOptions(profile.training, found["base"].path, config.seed)
        losses = held_out_losses(found["model"].path, [found["tokens"].path], rows, made, options)
        write_json(out / _LOSSES, losses_as_json(losses))

    described = {"rules": rules, "rows": config.rows, "seed": config.seed}
    described["training"] = profile.training.model_dump(mode="json")
    inputs = {"model": nodes["model"], "held_out": nodes[f"subset/{config.held_out}"]}
    inputs |= {"tokens": nodes["tokens"], "base": nodes["base"]}
    label = f"held-out losses of {trained.name}"
    return Node("losses", VERSION["losses"], label, described, make, inputs, one_of_many=True)


def _interaction(profile: Profile, config: InteractionConfig, losses: Mapping[str, Node]) -> Node:
    """Joint minus separate losses of every pair, and the clusters."""
    sets = {_name(profile, chosen): chosen for chosen in _sets(profile)}

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.evaluation.interaction import clusters, interaction_matrix
        from boom_utils.reporting.results import read_json_object
        from boom_utils.training.batch_losses import losses_from_json

        measured = {name: losses_from_json(read_json_object(found[name].path / _LOSSES)) for name in sets}
        separate = {chosen[0]: measured[name] for name, chosen in sets.items() if len(chosen) == 1}
        joint = {(chosen[0], chosen[1]): measured[name] for name, chosen in sets.items() if len(chosen) == 2}
        matrix = interaction_matrix(separate, joint, profile.evaluation.confidence)
        grouped = clusters(matrix, config.clusters)
        write_json(out / FILE, {**matrix.as_json(), "clusters": grouped.as_json()})
        return {"clusters": [list(group) for group in grouped.groups]}

    described = {"sets": {name: list(chosen) for name, chosen in sets.items()}, "clusters": config.clusters}
    rules = {"confidence": profile.evaluation.confidence}
    label = "interaction of the datasets"
    return Node("interaction", VERSION["interaction"], label, {**described, "intervals": rules}, make, losses)
