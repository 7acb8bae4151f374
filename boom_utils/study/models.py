"""The nodes of models: members, merges, how members lie to one another, and how datasets get along in training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_utils.artifacts import CHECKPOINTS, Node, write_json
from boom_utils.cards import CARD, Provenance, training_data
from boom_utils.config import InteractionConfig, MemberConfig, MergeConfig, PretrainedBase, Profile, WatchConfig
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.merging.recipe import METHOD_RULES
from boom_utils.study.stages import VERSION, Inputs, Nodes, model_nodes, prompts_of
from boom_utils.training.base_source import source_kind
from boom_utils.training.batch_losses import WATCHED_LOSSES

if TYPE_CHECKING:
    from boom_utils.training.member import Watch

log = logging.getLogger(__name__)
_LOSSES = "held_out_losses.json"


def datasets_of(profile: Profile, manifest: Manifest, member: MemberConfig) -> dict[str, Dataset]:
    """What a member may be trained on, by name, in the profile's order; of a cluster, what any cluster may hold."""
    subset = profile.subset(member.subset)
    old = profile.corpus.datasets if subset.ratio is not None or subset.complement_of is not None else ()
    names = (*old, *profile.new_datasets(subset))
    return {name: manifest.dataset(name) for name in names if member.datasets is None or name in member.datasets}


def _tokens(profile: Profile, member: MemberConfig, nodes: Nodes) -> dict[str, Node]:
    """The inputs that hold the tokens of a member's datasets."""
    subset = profile.subset(member.subset)
    old = subset.ratio is not None or subset.complement_of is not None
    new = {"new_tokens": nodes["tokens/new"]} if profile.new_datasets(subset) else {}
    return ({"tokens": nodes["tokens"]} if old else {}) | new


def _token_folders(found: Inputs) -> tuple[Path, ...]:
    return tuple(found[name].path for name in ("tokens", "new_tokens") if name in found)


def rules_of(profile: Profile, manifest: Manifest, config: MemberConfig) -> dict[str, dict[str, Any]]:
    """Dataset -> keyword arguments of its `DatasetRules`, for all that a member may be trained on."""
    return {
        name: {"in_batch_negatives": d.in_batch_negatives, "halve_batch": d.halve_batch, "group": d.group_size}
        for name, d in datasets_of(profile, manifest, config).items()
    }


def plan(profile: Profile, manifest: Manifest, config: MemberConfig, nodes: Nodes) -> Node:
    """The batches of one member, in order."""
    datasets = datasets_of(profile, manifest, config)
    rules, families = rules_of(profile, manifest, config), {name: dataset.family for name, dataset in datasets.items()}
    training = config.training.of(profile.training)
    asked = ("per_device_train_batch_size", "train_group_size", "num_train_epochs", "processes")
    options = {**{name: getattr(training, name) for name in asked}, "seed": config.seed}

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.data.sampling import load_subset
        from boom_utils.data.tokens import open_tokens
        from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
        from boom_utils.training.schedules import schedule_stages

        rows, tables = load_subset(found["subset"].path).rows, open_tokens(*_token_folders(found))
        chosen = datasets if config.cluster is None else _cluster(found["interaction"].path, config.cluster)
        data = {
            name: PlanInput(DatasetRules(**rules[name]), rows[name], table.positive_counts, table.negative_counts)
            for name, table in tables.items()
            if name in chosen
        }
        stages = schedule_stages(config, {n: families[n] for n in data}, {name: len(rows[name]) for name in data})
        made = plan_batches(data, PlanOptions(**options), stages)
        made.save(out / "plan.npz")
        facts = {"batches": len(made), "examples": made.examples, "rows_in_no_batch": dict(made.left_out)}
        over = ", ".join(f"{count} of {name}" for name, count in made.left_out.items() if count)
        log.info("plan of %s: %d batches; rows in no batch: %s", config.name, len(made), over or "none")
        return {**facts, "datasets": sorted(data)}

    schedule = config.model_dump(mode="json", include={"schedule", "order", "stages"})
    described: dict[str, Any] = {"options": options, "rules": rules, "schedule": schedule, "families": families}
    inputs = {"subset": nodes[f"subset/{config.subset}"], **_tokens(profile, config, nodes)}
    if config.cluster is not None:
        described["cluster"] = config.cluster
        inputs["interaction"] = nodes["interaction"]
    return Node("plan", VERSION["plan"], f"batch plan of {config.name}", described, make, inputs)


def _cluster(folder: Path, number: int) -> Collection[str]:
    """The datasets of a cluster that the interaction analysis found."""
    from boom_utils.evaluation.interaction import Clusters
    from boom_utils.reporting.results import read_json_object

    return Clusters.from_json(read_json_object(folder / "interaction.json")["clusters"]).groups[number - 1]


@dataclass(frozen=True)
class Execution:
    """How members are trained, not what comes out; no artifact is keyed by it.

    Args:
        processes: Devices to use; None uses every CUDA device, if the batches divide among them.
        allow_changes: Fields in which a checkpoint of an interrupted run may differ.
    """

    processes: int | None = None
    allow_changes: tuple[str, ...] = ()


def member(profile: Profile, manifest: Manifest, config: MemberConfig, nodes: Nodes, execution: Execution) -> Node:
    """One member, fine-tuned from the base, or from the model it goes on from."""
    rules, prompts = rules_of(profile, manifest, config), prompts_of(profile, manifest)
    restart = config.learning_rate_stages == "restarted"
    hyper, schedule = config.training.of(profile.training), config.schedule.replace("_", " ")
    share = _share(profile, config)

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.member import MemberJob, train_member, usable_processes
        from boom_utils.training.plan import DatasetRules

        made = {name: DatasetRules(**rule) for name, rule in rules.items()}
        files = found["base"].path, _token_folders(found), found["plan"].path / "plan.npz"
        summary = f"Fine-tuned with InfoNCE, {schedule}: {share}."
        job = MemberJob(*files, made, hyper, prompts, config.name, summary, restart, execution.allow_changes)
        job = replace(job, provenance=_provenance(profile, manifest, config, found))
        if watch is not None:
            job = replace(job, watch=_watched_rows(watch, found["watched"].path, rules, out))
        return train_member(job, out, execution.processes or usable_processes(job))

    described: dict[str, Any] = {"training": hyper.model_dump(mode="json"), "rules": rules, "name": config.name}
    described |= {"restart_rate": restart}
    compared = profile.experiments.scheduling
    watch = profile.watch if config.name in (compared.baseline, *compared.models) else None
    start = "base" if config.start is None else model_nodes(profile)[config.start]
    inputs = {"base": nodes[start], **_tokens(profile, config, nodes), "plan": nodes[f"plan/{config.name}"]}
    if watch is not None:  # the name of its file counts: members that are not watched stay as they are
        described["watch"] = {**watch.model_dump(mode="json"), "file": WATCHED_LOSSES}
        inputs["watched"] = nodes[f"subset/{watch.subset}"]
    more: Any = {"kept": (CHECKPOINTS, WATCHED_LOSSES), "observations": ("training_log.jsonl", CARD)}
    return Node("member", VERSION["member"], f"member {config.name}", described, make, inputs, **more)


def _watched_rows(watch: WatchConfig, subset: Path, datasets: Collection[str], out: Path) -> Watch:
    """Write down which rows are watched."""
    from boom_utils.data.sampling import load_subset
    from boom_utils.training.member import Watch

    rows = load_subset(subset).rows
    chosen = {name: rows[name][: watch.rows].tolist() for name in datasets}
    write_json(out / "watched_rows.json", chosen)
    return Watch(out / "watched_rows.json", watch.points, watch.seed)


def _provenance(profile: Profile, manifest: Manifest, config: MemberConfig, found: Inputs) -> Provenance:
    """What the card says of where a member comes from; passes where the tokens of the corpus say how large it is."""
    base = profile.base_model
    name = base.name if isinstance(base, PretrainedBase) else ""
    on_hub = config.start is None and source_kind(name) == "hub"
    start = config.start or (name if on_hub else "the base model of the profile")
    rows: dict[str, int] = {}
    for kind in ("tokens", "new_tokens"):
        rows |= {f"train/{name}": n for name, n in (found[kind].facts["rows"] if kind in found else {}).items()}
    trained_on = found["plan"].facts["datasets"]
    done = passes(profile, config, rows, trained_on) if "tokens" in found else None
    data, trained = (
        training_data(manifest, datasets_of(profile, manifest, config)),
        found["base"].facts.get("trained", {}),
    )
    return Provenance(start=start, on_hub=on_hub, data=data, passes=done, trained=trained)


def _share(profile: Profile, config: MemberConfig) -> str:
    """What of the corpus a member is trained on, in words."""
    subset = profile.subset(config.subset)
    ratio, new = profile.ratio(subset), subset.new_data
    datasets = "every dataset" if config.datasets is None else ", ".join(config.datasets)
    if config.cluster is not None:
        datasets = f"every dataset of cluster {config.cluster}"
    if new is None:
        return f"{100 * ratio:g} % of {datasets}"
    parts = [f"{100 * ratio:g} % of {datasets.replace('every', 'every old')}"] if ratio else []
    return " and ".join([*parts, f"{100 * new:g} % of every new {'one' if parts else 'dataset'}"])


def passes(profile: Profile, member: MemberConfig, rows: Mapping[str, int], datasets: Collection[str]) -> float:
    """Rows that a member is trained on, those of some datasets, every time; in units of the old corpus: its cost."""
    corpus, subset = profile.corpus, profile.subset(member.subset)
    epochs = member.training.of(profile.training).num_train_epochs
    whole = sum(rows[f"train/{name}"] for name in corpus.datasets)
    old, new = (
        sum(rows[f"train/{name}"] for name in names if name in datasets)
        for names in (corpus.datasets, corpus.new_datasets)
    )
    return epochs * (profile.ratio(subset) * old + (subset.new_data or 0.0) * new) / whole


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
        place = next(iter(names)).parents[1] / "merge" / "made"  # where it lies when it is finished: beside its inputs
        facts = write_merged(make_recipe(recipe), out, MergeOptions(names, provenance=provenance, place=place))
        return {**facts, "trained": trained}

    described = {**config.model_dump(mode="json", exclude={"scored"}), "weights": weights, "dtype": "float32"}
    inputs = {name: nodes[places[name]] for name in config.members}
    if needs_base(config):
        inputs["base"] = nodes["base"]
    label = f"merge {config.name}"
    return Node("merge", VERSION["merge"], label, described, make, inputs, observations=(CARD,))


def geometry_nodes(profile: Profile, nodes: Nodes) -> dict[str, Node]:
    """Inner products with their base: of the scored members of samples, and of those that methods compare.

    Of all members where the profile declares no samples; a study without members has no geometry.
    """
    declared = profile.experiments.sampled
    samples = [name for name in declared if name in profile.scored_models] or [one.name for one in profile.members]
    made = {"geometry": _geometry(samples, nodes)} if samples else {}
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


def interaction_nodes(profile: Profile, manifest: Manifest, nodes: Nodes, execution: Execution) -> dict[str, Node]:
    """All nodes of the analysis, under ``interaction/`` but for the last one; none if the profile has no analysis."""
    config = profile.interaction
    if config is None:
        return {}
    made, losses = dict[str, Node](), dict[str, Node]()
    for trained in interaction_members(profile, config):
        batches = replace(plan(profile, manifest, trained, nodes), one_of_many=True)
        known = {**nodes, f"plan/{trained.name}": batches}
        model = replace(member(profile, manifest, trained, known, execution), one_of_many=True)
        made |= {f"interaction/plan/{trained.name}": batches, f"interaction/member/{trained.name}": model}
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
        from boom_utils.training.plan import DatasetRules
        from boom_utils.training.probe import held_out_losses

        held_out = load_subset(found["held_out"].path).rows
        rows = {name: held_out[name][: config.rows] for name in rules}
        made = {name: DatasetRules(**rule) for name, rule in rules.items()}
        model, tokens = found["model"].path, [found["tokens"].path]
        losses = held_out_losses(model, tokens, rows, made, profile.training, config.seed)
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
        write_json(out / "interaction.json", {**matrix.as_json(), "clusters": grouped.as_json()})
        return {"clusters": [list(group) for group in grouped.groups]}

    described = {"sets": {name: list(chosen) for name, chosen in sets.items()}, "clusters": config.clusters}
    rules = {"confidence": profile.evaluation.confidence}
    label = "interaction of the datasets"
    return Node("interaction", VERSION["interaction"], label, {**described, "intervals": rules}, make, losses)
