"""The nodes of models: members, merges, how members lie to one another, and how datasets get along in training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_utils.artifacts import CHECKPOINTS, Node, write_json
from boom_utils.cards import CARD, Provenance, training_data
from boom_utils.config import InteractionConfig, MemberConfig, MergeConfig, PretrainedBase, Profile
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.sampling import load_subset
from boom_utils.data.tokens import open_tokens
from boom_utils.evaluation.interaction import Clusters, clusters, interaction_matrix
from boom_utils.merging.recipe import METHOD_RULES, make_recipe
from boom_utils.reporting.results import read_json_object, run_name
from boom_utils.study.stages import Inputs, Nodes, model_nodes, prompts_of
from boom_utils.training.base_source import source_kind
from boom_utils.training.batch_losses import WATCHED_LOSSES, losses_as_json, losses_from_json
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches
from boom_utils.training.schedules import schedule_stages

if TYPE_CHECKING:
    from boom_utils.merging.gram import GramTable

log = logging.getLogger(__name__)
_LOSSES = "held_out_losses.json"


def datasets_of(profile: Profile, manifest: Manifest, member: MemberConfig) -> dict[str, Dataset]:
    """What a member may be trained on, by name, in the profile's order; of a cluster, what any cluster may hold."""
    subset = profile.subset(member.subset)
    names = (*(profile.corpus.datasets if profile.ratio(subset) else ()), *profile.new_datasets(subset))
    return {name: manifest.dataset(name) for name in names if member.datasets is None or name in member.datasets}


def rules_of(profile: Profile, manifest: Manifest, config: MemberConfig) -> dict[str, DatasetRules]:
    """Batch and loss rules of every dataset that a member may be trained on."""
    datasets = datasets_of(profile, manifest, config)
    return {name: DatasetRules(d.in_batch_negatives, d.halve_batch, d.group_size) for name, d in datasets.items()}


def _described(rules: Mapping[str, DatasetRules]) -> dict[str, Any]:
    return {name: asdict(rule) for name, rule in rules.items()}


def _tokens(profile: Profile, member: MemberConfig, nodes: Nodes) -> dict[str, Node]:
    """The inputs that hold the tokens of a member's datasets."""
    subset = profile.subset(member.subset)
    new = {"new_tokens": nodes["tokens/new"]} if profile.new_datasets(subset) else {}
    return ({"tokens": nodes["tokens"]} if profile.ratio(subset) else {}) | new


def _token_folders(found: Inputs) -> tuple[Path, ...]:
    return tuple(found[name].path for name in ("tokens", "new_tokens") if name in found)


def plan(profile: Profile, manifest: Manifest, config: MemberConfig, nodes: Nodes) -> Node:
    """The batches of one member, in order."""
    datasets, rules = datasets_of(profile, manifest, config), rules_of(profile, manifest, config)
    families = {name: dataset.family for name, dataset in datasets.items()}
    training = config.training.of(profile.training)
    asked = ("per_device_train_batch_size", "train_group_size", "num_train_epochs", "processes")
    options = {**{name: getattr(training, name) for name in asked}, "seed": config.seed}

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        rows, tables, chosen = load_subset(found["subset"].path).rows, open_tokens(*_token_folders(found)), [*datasets]
        if config.cluster is not None:
            groups = read_json_object(found["interaction"].path / "interaction.json")["clusters"]
            chosen = [*Clusters.from_json(groups).groups[config.cluster - 1]]
        data = {
            name: PlanInput(rules[name], rows[name], table.positive_counts, table.negative_counts)
            for name, table in tables.items()
            if name in chosen
        }
        stages = schedule_stages(config, {n: families[n] for n in data}, {name: len(rows[name]) for name in data})
        made = plan_batches(data, PlanOptions(**options), stages)
        made.save(out / "plan.npz")
        over = ", ".join(f"{count} of {name}" for name, count in made.left_out.items() if count)
        log.info("plan of %s: %d batches; rows in no batch: %s", config.name, len(made), over or "none")
        facts = {"batches": len(made), "examples": made.examples, "rows_in_no_batch": dict(made.left_out)}
        return {**facts, "datasets": sorted(data)}

    schedule = config.model_dump(mode="json", include={"schedule", "order", "stages"})
    described: dict[str, Any] = {"options": options, "rules": _described(rules)}
    described |= {"schedule": schedule, "families": families}
    inputs = {"subset": nodes[f"subset/{config.subset}"], **_tokens(profile, config, nodes)}
    if config.cluster is not None:
        described["cluster"] = config.cluster
        inputs["interaction"] = nodes["interaction"]
    return Node("plan", 2, f"batch plan of {config.name}", described, make, inputs)


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
    hyper, compared = config.training.of(profile.training), profile.experiments.scheduling
    watch = profile.watch if config.name in (compared.baseline, *compared.models) else None
    summary = f"Fine-tuned with InfoNCE, {config.schedule.replace('_', ' ')}: {_share(profile, config)}."

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.member import MemberJob, Watch, train_member, usable_processes

        files = found["base"].path, _token_folders(found), found["plan"].path / "plan.npz"
        job = MemberJob(*files, rules, hyper, prompts, config.name, summary, restart, execution.allow_changes)
        job = replace(job, provenance=_provenance(profile, manifest, config, found))
        if watch is not None:
            rows = load_subset(found["watched"].path).rows
            write_json(out / "watched_rows.json", {name: rows[name][: watch.rows].tolist() for name in rules})
            job = replace(job, watch=Watch(out / "watched_rows.json", watch.points, watch.seed))
        return train_member(job, out, execution.processes or usable_processes(job))

    described: dict[str, Any] = {"training": hyper.model_dump(mode="json"), "rules": _described(rules)}
    described |= {"name": config.name, "restart_rate": restart}
    start = "base" if config.start is None else model_nodes(profile)[config.start]
    inputs = {"base": nodes[start], **_tokens(profile, config, nodes), "plan": nodes[f"plan/{config.name}"]}
    if watch is not None:  # the name of its file counts: members that are not watched stay as they are
        described["watch"] = {**watch.model_dump(mode="json"), "file": WATCHED_LOSSES}
        inputs["watched"] = nodes[f"subset/{watch.subset}"]
    more: Any = {"kept": (CHECKPOINTS, WATCHED_LOSSES), "observations": ("training_log.jsonl", CARD)}
    return Node("member", 3, f"member {config.name}", described, make, inputs, **more)


def _provenance(profile: Profile, manifest: Manifest, config: MemberConfig, found: Inputs) -> Provenance:
    """What the card says of where a member comes from; passes where the tokens of the corpus say how large it is."""
    base = profile.base_model
    name = base.name if isinstance(base, PretrainedBase) else ""
    on_hub = config.start is None and source_kind(name) == "hub"
    rows = {
        one: n for kind in ("tokens", "new_tokens") if kind in found for one, n in found[kind].facts["rows"].items()
    }
    return Provenance(
        start=config.start or (name if on_hub else "the base model of the profile"),
        on_hub=on_hub,
        data=training_data(manifest, datasets_of(profile, manifest, config)),
        passes=passes(profile, config, rows, found["plan"].facts["datasets"]) if "tokens" in found else None,
        trained=found["base"].facts.get("trained", {}),
    )


def _share(profile: Profile, config: MemberConfig) -> str:
    """What of the corpus a member is trained on, in words."""
    subset = profile.subset(config.subset)
    ratio, new = profile.ratio(subset), subset.new_data
    datasets = ", ".join(config.datasets or ()) or f"every{' old' if new else ''} dataset"
    datasets += f" of cluster {config.cluster}" if config.cluster is not None else ""
    parts = [f"{100 * ratio:g} % of {datasets}"] if ratio else []
    return " and ".join([*parts, *([f"{100 * new:g} % of every new dataset"] if new else [])])


def passes(profile: Profile, member: MemberConfig, rows: Mapping[str, int], datasets: Collection[str]) -> float:
    """Rows that a member is trained on, those of some datasets, every time; in units of the old corpus: its cost."""
    corpus, subset = profile.corpus, profile.subset(member.subset)
    epochs = member.training.of(profile.training).num_train_epochs
    old, new = (
        sum(rows[name] for name in names if name in datasets) for names in (corpus.datasets, corpus.new_datasets)
    )
    whole = sum(rows[name] for name in corpus.datasets)
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
        from boom_utils.merging.writer import MergeOptions
        from boom_utils.merging.writer import merge as write_merged

        recipe = recipe_of(config, weights, {name: artifact.path for name, artifact in found.items()})
        # A member behind two merges counts once; a base has none.
        trained = {name: cost for one in found.values() for name, cost in one.facts.get("trained", {}).items()}
        data = training_data(manifest, (*profile.corpus.datasets, *profile.corpus.new_datasets))
        provenance = Provenance(data=data, trained=trained)
        names = {artifact.path: name for name, artifact in found.items()}
        place = next(iter(names)).parents[1] / "merge" / "made"  # where it lies when it is finished: beside its inputs
        facts = write_merged(make_recipe(recipe), out, MergeOptions(names, provenance=provenance, place=place))
        return {**facts, "trained": trained}

    described = {**config.model_dump(mode="json", exclude={"scored"}), "weights": weights, "dtype": "float32"}
    needed = (*config.members, *(["base"] if needs_base(config) else []))
    inputs = {name: nodes[places.get(name, name)] for name in needed}
    return Node("merge", 2, f"merge {config.name}", described, make, inputs, observations=(CARD,))


def geometry_nodes(profile: Profile, nodes: Nodes) -> dict[str, Node]:
    """Inner products with their base: of the scored members of samples, and of those that methods compare first.

    Of all members where the profile declares no samples; a study without members has no geometry. Members that are
    samples of all datasets are not looked at twice.
    """
    found, members = profile.experiments, [one.name for one in profile.members]
    samples = [name for name in found.sampled if name in profile.scored_models] or members
    first = {*profile.trained_members(found.methods[0][0])} if found.methods else set()
    compared = [name for name in members if name in first and not first & {*found.sampled}]
    wanted = {"geometry": samples, "geometry/compared": compared}
    made = {name: _geometry(models, nodes) for name, models in wanted.items() if models}
    return made | ({"geometry/regime": regime(profile, nodes)} if found.frontier else {})


def _geometry(names: list[str], nodes: Nodes) -> Node:
    """Inner products of some members and their base; angles and sizes."""

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.merging.gram import save_grams
        from boom_utils.merging.planner import geometry_of

        table = _grams(names, found)
        save_grams(out / "grams.npz", table)
        write_json(out / "geometry.json", geometry_of(table).as_json())

    inputs = {"base": nodes["base"], **{name: nodes[f"member/{name}"] for name in names}}
    return Node("geometry", 3, "geometry of the task vectors", {"members": names}, make, inputs)


def _grams(names: list[str], found: Inputs) -> GramTable:
    from boom_utils.merging.family import open_checkpoints, reconcile
    from boom_utils.merging.gram import family_grams

    folders = {found[name].path: name for name in ("base", *names)}
    models = open_checkpoints(list(folders), folders)
    reconcile(models[1:], models[:1])
    return family_grams(models, has_base=True)


def regime(profile: Profile, nodes: Nodes) -> Node:
    """Angles and sizes of what stands behind the arms of `Experiments.frontier`, merges included, seed by seed.

    Of the models among ``nodes``, and the base.
    """
    found, count = profile.experiments, profile.seeds.count if profile.seeds else 1
    arms = [*found.sampled, *found.frontier, *([found.full] if found.full else [])]
    wanted = dict.fromkeys(name for arm in arms for name in (*profile.trained_members(arm), arm))
    places = {name.partition("/")[2]: name for name in nodes if name.startswith(("member/", "merge/"))}
    made = [[name for one in wanted if (name := run_name(one, n)) in places] for n in range(1, count + 1)]
    seeds = [names for names in made if names]

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.merging.planner import geometry_of

        kept = ("members", "relative_updates", "cosines")
        known = [geometry_of(_grams(names, found)).as_json() for names in seeds]
        write_json(out / "regime.json", {"seeds": [{key: one[key] for key in kept} for one in known]})

    inputs = {"base": nodes["base"], **{name: nodes[places[name]] for names in seeds for name in names}}
    return Node("geometry", 3, "geometry of the arms of every seed", {"seeds": seeds}, make, inputs)


def interaction_members(profile: Profile, config: InteractionConfig) -> list[MemberConfig]:
    """The models of the interaction analysis: one for every dataset and one for every pair.

    Their names are short, as names of two datasets together may be long: ``pair``, and their numbers in the profile.
    """
    numbers = {name: str(number) for number, name in enumerate(profile.corpus.datasets, 1)}
    return [
        MemberConfig(
            name="-".join([kind, *(numbers[name] for name in chosen)]),
            datasets=chosen,
            subset=config.subset,
            seed=config.seed,
        )
        for size, kind in ((1, "alone"), (2, "pair"))
        for chosen in combinations(numbers, size)
    ]


def interaction_nodes(profile: Profile, manifest: Manifest, nodes: Nodes, execution: Execution) -> dict[str, Node]:
    """All nodes of the analysis, under ``interaction/`` but for the last one; none if the profile has no analysis."""
    config = profile.interaction
    if config is None:
        return {}
    made, losses, sets = dict[str, Node](), dict[str, Node](), dict[str, tuple[str, ...]]()
    for trained in interaction_members(profile, config):
        batches = replace(plan(profile, manifest, trained, nodes), one_of_many=True)
        known = {**nodes, f"plan/{trained.name}": batches}
        model = replace(member(profile, manifest, trained, known, execution), one_of_many=True)
        made |= {f"interaction/plan/{trained.name}": batches, f"interaction/member/{trained.name}": model}
        measured = _losses(profile, config, rules_of(profile, manifest, trained), {**nodes, "model": model})
        losses[trained.name] = replace(measured, label=f"held-out losses of {trained.name}")
        sets[trained.name] = trained.datasets or ()

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        measured = {chosen: losses_from_json(read_json_object(found[n].path / _LOSSES)) for n, chosen in sets.items()}
        separate = {chosen[0]: one for chosen, one in measured.items() if len(chosen) == 1}
        joint = {(chosen[0], chosen[1]): one for chosen, one in measured.items() if len(chosen) == 2}
        matrix = interaction_matrix(separate, joint, profile.evaluation.confidence)
        grouped = clusters(matrix, config.clusters)
        write_json(out / "interaction.json", {**matrix.as_json(), "clusters": grouped.as_json()})
        return {"clusters": [list(group) for group in grouped.groups]}

    described: dict[str, Any] = {"sets": {name: list(chosen) for name, chosen in sets.items()}}
    described |= {"clusters": config.clusters, "intervals": {"confidence": profile.evaluation.confidence}}
    last = Node("interaction", 3, "interaction of the datasets", described, make, losses)
    return {**made, **{f"interaction/losses/{name}": node for name, node in losses.items()}, "interaction": last}


def _losses(profile: Profile, config: InteractionConfig, rules: Mapping[str, DatasetRules], nodes: Nodes) -> Node:
    """Held-out losses of one model on what it was trained on."""

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.training.probe import held_out_losses

        held_out = load_subset(found["held_out"].path).rows
        rows = {name: held_out[name][: config.rows] for name in rules}
        model, tokens = found["model"].path, [found["tokens"].path]
        losses = held_out_losses(model, tokens, rows, rules, profile.training, config.seed)
        write_json(out / _LOSSES, losses_as_json(losses))

    described = {"rules": _described(rules), "rows": config.rows, "seed": config.seed}
    described["training"] = profile.training.model_dump(mode="json")
    inputs = {
        "held_out": nodes[f"subset/{config.held_out}"],
        **{name: nodes[name] for name in ("model", "tokens", "base")},
    }
    return Node("losses", 2, "held-out losses", described, make, inputs, one_of_many=True)
