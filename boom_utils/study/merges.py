"""The nodes of merged models, and of how their members lie to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Node, write_json
from boom_utils.cards import CARD, Provenance, training_data
from boom_utils.config import MergeConfig, Profile
from boom_utils.data.manifest import Manifest
from boom_utils.merging.recipe import METHOD_RULES
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
    """Inner products with their base: of the scored members of samples, and of those that methods compare."""
    samples = [name for name in profile.experiments.sampled if name in profile.scored_models]
    made = {"geometry": _geometry(samples, nodes)}
    if compared := compared_members(profile):
        made["geometry/compared"] = _geometry(compared, nodes)
    return made


def compared_members(profile: Profile) -> list[str]:
    """The members that methods are compared on first, unless these are samples of all datasets; else none."""
    groups = profile.experiments.methods
    found = {*profile.trained_members(groups[0][0])} if groups else set()
    return [] if found & {*profile.experiments.sampled} else [one.name for one in profile.members if one.name in found]


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
