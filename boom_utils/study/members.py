"""The nodes of a member: which rows meet in which step, and the training."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_utils.artifacts import CHECKPOINTS, Node, write_json
from boom_utils.cards import CARD, Provenance, training_data
from boom_utils.config import MemberConfig, PretrainedBase, Profile, WatchConfig
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.study.gathering import passes
from boom_utils.study.stages import VERSION, Inputs, Nodes, model_nodes, prompts_of
from boom_utils.training.base_source import source_kind
from boom_utils.training.watched_losses import WATCHED_LOSSES

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from boom_utils.training.watch import Watch


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
    options = {
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "train_group_size": training.train_group_size,
        "num_train_epochs": training.num_train_epochs,
        "processes": training.processes,
        "seed": config.seed,
    }

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
    described = {"options": options, "rules": rules, "schedule": schedule, "families": families}
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

    described = {
        "training": hyper.model_dump(mode="json"),
        "rules": rules,
        "name": config.name,
        "restart_rate": restart,
    }
    compared = profile.experiments.scheduling
    watch = profile.watch if compared and config.name in (compared.baseline, *compared.models) else None
    start = "base" if config.start is None else model_nodes(profile)[config.start]
    inputs = {"base": nodes[start], **_tokens(profile, config, nodes), "plan": nodes[f"plan/{config.name}"]}
    if watch is not None:  # the name of its file counts: members that are not watched stay as they are
        described["watch"] = {**watch.model_dump(mode="json"), "file": WATCHED_LOSSES}
        inputs["watched"] = nodes[f"subset/{watch.subset}"]
    label = f"member {config.name}"
    return Node(
        "member",
        VERSION["member"],
        label,
        described,
        make,
        inputs,
        kept=(CHECKPOINTS, WATCHED_LOSSES),
        observations=("training_log.jsonl", CARD),
    )


def _watched_rows(watch: WatchConfig, subset: Path, datasets: Collection[str], out: Path) -> Watch:
    """Write down which rows are watched."""
    from boom_utils.data.sampling import load_subset
    from boom_utils.training.watch import Watch

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
    known = "tokens" in found
    return Provenance(
        start=start,
        on_hub=on_hub,
        data=training_data(manifest, datasets_of(profile, manifest, config)),
        passes=passes(profile, config, rows, trained_on) if known else None,
        trained=found["base"].facts.get("trained", {}),
    )


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
