"""The nodes of merged models, and of how their members lie to one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Node, write_json
from boom_utils.cards import CARD, Provenance, training_data
from boom_utils.config import MergeConfig, Profile
from boom_utils.data.manifest import Manifest
from boom_utils.merging.parameters import METHOD_RULES
from boom_utils.reporting.roles import is_restricted, shuffled_members
from boom_utils.study.stages import VERSION, Inputs, Nodes, model_nodes


def recipe_of(config: MergeConfig, weights: Sequence[float], places: Mapping[str, Any]) -> dict[str, Any]:
    """The mergekit recipe of a merge.

    Args:
        config: Which.
        weights: One a member; left out where the method knows none.
        places: Folder of every member, and of the base.
    """
    rules = METHOD_RULES[config.method]
    weighted = "weight" in rules.of_models
    recipe: dict[str, Any] = {
        "merge_method": config.method,
        "models": [
            {"model": places[name]} | ({"parameters": {"weight": weight}} if weighted else {})
            for name, weight in zip(config.members, weights, strict=True)
        ],
        "dtype": "float32",
    }
    if config.parameters:
        recipe["parameters"] = dict(config.parameters)
    if needs_base(config):
        recipe["base_model"] = places["base"]
    elif rules.base == "member":
        recipe["base_model"] = places[config.members[0]]
    return recipe


def needs_base(config: MergeConfig) -> bool:
    """Whether a merge reads the base: on task vectors, or by a method that knows nothing else."""
    return config.task_vectors or METHOD_RULES[config.method].base == "required"


def merge(profile: Profile, manifest: Manifest, config: MergeConfig, nodes: Nodes) -> Node:
    """One merged model, of members or of earlier merges."""
    weights, places = profile.merge_weights(config), model_nodes(profile)

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.merging.recipe import make_recipe
        from boom_utils.merging.writer import MergeOptions
        from boom_utils.merging.writer import merge as write_merged

        recipe = recipe_of(config, weights, {name: artifact.path for name, artifact in found.items()})
        trained: dict[str, Any] = {}
        for artifact in found.values():
            trained |= artifact.facts.get("trained", {})  # a member behind two merges counts once; a base has none
        data = training_data(manifest, (*profile.corpus.datasets, *profile.corpus.new_datasets))
        provenance = Provenance(data=data, trained=trained)
        names = {artifact.path: name for name, artifact in found.items()}
        facts = write_merged(make_recipe(recipe), out, MergeOptions(names, provenance=provenance))
        return {**facts, "trained": trained}

    described = {**config.model_dump(mode="json", exclude={"scored"}), "weights": weights, "dtype": "float32"}
    inputs = {name: nodes[places[name]] for name in config.members}
    if needs_base(config):
        inputs["base"] = nodes["base"]
    label = f"merge {config.name}"
    return Node("merge", VERSION["merge"], label, described, make, inputs, observations=(CARD,))


def geometry_nodes(profile: Profile, nodes: Nodes) -> dict[str, Node]:
    """Inner products with their base: of the scored batch-level shuffled members, and of those that methods compare."""
    shuffled = [name for name in shuffled_members(profile.member_facts()) if name in profile.scored_models]
    made = {"geometry": _geometry(shuffled, nodes)}
    if compared := compared_members(profile):
        made["geometry/compared"] = _geometry(compared, nodes)
    return made


def compared_members(profile: Profile) -> list[str]:
    """The members that most merges share, where methods are compared on them; none where every merge has its own."""
    sets = [frozenset(profile.trained_members(merge.name)) for merge in profile.merges]
    restricted = {name for name, facts in profile.member_facts().items() if is_restricted(facts)}
    counts = Counter(found for found in sets if found <= restricted)
    if not counts or max(counts.values()) < 2:
        return []
    most = max(counts, key=lambda found: counts[found])
    return [member.name for member in profile.members if member.name in most]


def _geometry(names: list[str], nodes: Nodes) -> Node:
    """Inner products of some members and their base; angles and sizes."""

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.merging.family import open_checkpoints, reconcile
        from boom_utils.merging.gram import family_grams, save_grams
        from boom_utils.merging.planner import geometry_of

        folders = {found[name].path: name for name in ("base", *names)}
        models = open_checkpoints(list(folders), folders)
        reconcile(models[1:], models[:1])
        table = family_grams(models, has_base=True)
        save_grams(out / "grams.npz", table)
        write_json(out / "geometry.json", geometry_of(table).as_json())

    inputs = {"base": nodes["base"], **{name: nodes[f"member/{name}"] for name in names}}
    return Node("geometry", VERSION["geometry"], "geometry of the task vectors", {"members": names}, make, inputs)
