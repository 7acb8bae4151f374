"""One function a stage: the node it is in the graph, and the call of the package that does the work.

The last two stages, which gather the results and draw from them, are in `boom_utils.study.gathering`.

``VERSION`` of a stage is raised when a change of code changes its numbers; everything made from it is then made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Artifact, Node, write_json
from boom_utils.config import MemberConfig, MergeConfig, PretrainedBase, Profile, SubsetConfig, TinyBase, query_prompt
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.errors import EvaluationError
from boom_utils.reporting.results import shuffled_members

VERSION: Mapping[str, int] = {
    "examples": 2,
    "subset": 1,
    "random": 1,
    "base": 2,
    "tokens": 2,
    "plan": 2,
    "member": 2,
    "merge": 2,
    "geometry": 2,
    "scores": 1,
    "results": 3,
    "report": 3,
}

Nodes = Mapping[str, Node]
Inputs = Mapping[str, Artifact]


def model_nodes(profile: Profile) -> dict[str, str]:
    """Every scored model -> name of the node that makes it."""
    members = {member.name: f"member/{member.name}" for member in profile.members}
    merges = {merge.name: f"merge/{merge.name}" for merge in profile.merges}
    first = {"random": "random"} if isinstance(profile.base_model, TinyBase) else {}
    return {**first, "base": "base", **members, **merges}


def examples(profile: Profile, manifest: Manifest, downloads: Path) -> Node:
    """Training examples and evaluation sets from the manifest's source; keyed by what the study uses of it."""
    from boom_utils.data import corpora

    tasks, corpus = _tasks(profile), profile.corpus

    def make(out: Path, _: Inputs) -> Mapping[str, Any]:
        return corpora.make_examples(manifest, corpus, tasks, downloads, out)

    # Text for readers is no reason to make a corpus anew; what is installed is in "found".
    prose = {"description", "homepage", "licence", "licence_note", "notes", "oddities", "version", "known"}
    datasets = corpora.used_datasets(manifest, corpus, tasks)
    config = {
        "source": _without(manifest.source.model_dump(mode="json"), prose),
        "datasets": _without({one.id: one.model_dump(mode="json", exclude_none=True) for one in datasets}, prose),
        "tasks": {name: manifest.task(name).model_dump(mode="json") for name in sorted(tasks)},
        "corpus": corpus.model_dump(mode="json", exclude=corpora.unread_fields(manifest)),
        "found": corpora.found_now(manifest, corpus),
    }
    return Node("examples", VERSION["examples"], f"examples of {manifest.name}", config, make)


def _tasks(profile: Profile) -> tuple[str, ...]:
    return (*profile.evaluation.in_domain, *profile.evaluation.out_of_domain)


def _without(value: Any, keys: set[str]) -> Any:
    """JSON without some keys, at any depth: text for readers is no reason to make a corpus anew."""
    if isinstance(value, dict):
        return {key: _without(part, keys) for key, part in value.items() if key not in keys}
    return [_without(part, keys) for part in value] if isinstance(value, list) else value


def subset(profile: Profile, config: SubsetConfig, nodes: Nodes) -> Node:
    """One subset: row ids of every training dataset, and of the new ones if it holds new data."""
    from boom_utils.data import sampling

    datasets, new = profile.corpus.datasets, profile.new_datasets(config)
    inputs = {"examples": nodes["examples"]}
    if config.complement_of is not None:
        inputs["complement_of"] = nodes[f"subset/{config.complement_of}"]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        rows = sampling.corpus_rows(found["examples"].path, (*datasets, *new))
        other = sampling.load_subset(found["complement_of"].path) if "complement_of" in found else None
        return sampling.save_subset(out, sampling.make_subset(rows, config, other, new))

    described = {"subset": config.rule(), "datasets": sorted(datasets)}
    if new:
        described["new_datasets"] = sorted(new)
    return Node("subset", VERSION["subset"], f"subset {config.name}", described, make, inputs)


def prompts_of(profile: Profile, manifest: Manifest) -> dict[str, str]:
    """Dataset -> text before its queries, as every encoder folder keeps it."""
    style = profile.base_model.prompts if isinstance(profile.base_model, PretrainedBase) else "instruct"
    asked = {manifest.task(name).dataset for name in _tasks(profile)}
    used = {*profile.corpus.datasets, *profile.corpus.new_datasets, *asked}
    # What a study does not use is left out: a manifest that grows changes no tokenizer and no model.
    return {one.id: query_prompt(one.prompt, style) for one in manifest.datasets if one.id in used}


def tokens(profile: Profile, manifest: Manifest, nodes: Nodes, *, new: bool = False) -> Node:
    """Token tables of all training datasets, or of all new ones: apart, so that these make nothing old anew."""
    training, prompts = profile.training, prompts_of(profile, manifest)
    tokenizer = "random" if "random" in nodes else "base"
    names = profile.corpus.new_datasets if new else profile.corpus.datasets
    datasets = [manifest.dataset(name) for name in names]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.data.examples import iter_examples
        from boom_utils.data.tokens import TextRules, write_tokens
        from boom_utils.models import Encoder

        encoder, counts = Encoder.load(found[tokenizer].path), {}
        for dataset in datasets:
            rows = iter_examples(found["examples"].path / "train" / f"{dataset.id}.jsonl")
            passage_prompt = prompts[dataset.id] if dataset.instruction_on_passages else ""
            rules = TextRules(prompts[dataset.id], passage_prompt, training.query_max_len, training.passage_max_len)
            counts[dataset.id] = write_tokens(out / f"{dataset.id}.arrow", rows, rules, encoder.tokenize)
        return {"rows": counts}

    described = {
        "prompts": {dataset.id: [prompts[dataset.id], dataset.instruction_on_passages] for dataset in datasets},
        "lengths": [training.query_max_len, training.passage_max_len],
    }
    inputs = {"examples": nodes["examples"], tokenizer: nodes[tokenizer]}
    label = "tokens of the new examples" if new else "tokens of the training examples"
    return Node("tokens", VERSION["tokens"], label, described, make, inputs)


def _datasets(profile: Profile, manifest: Manifest, member: MemberConfig) -> dict[str, Dataset]:
    """What a member is trained on, by name, in the profile's order: new datasets only if its subset holds some."""
    names = (*profile.corpus.datasets, *profile.new_datasets(profile.subset(member.subset)))
    return {name: manifest.dataset(name) for name in names}


def _tokens(profile: Profile, member: MemberConfig, nodes: Nodes) -> dict[str, Node]:
    """The inputs that hold the tokens of a member's datasets."""
    new = profile.new_datasets(profile.subset(member.subset))
    return {"tokens": nodes["tokens"]} | ({"new_tokens": nodes["tokens/new"]} if new else {})


def _token_folders(found: Inputs) -> tuple[Path, ...]:
    return tuple(found[name].path for name in ("tokens", "new_tokens") if name in found)


def _rules(datasets: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Dataset -> keyword arguments of its `DatasetRules`."""
    return {
        name: {"in_batch_negatives": d.in_batch_negatives, "halve_batch": d.halve_batch, "group": d.group_size}
        for name, d in datasets.items()
    }


def plan(profile: Profile, manifest: Manifest, config: MemberConfig, nodes: Nodes) -> Node:
    """The batches of one member, in order."""
    datasets = _datasets(profile, manifest, config)
    rules, families = _rules(datasets), {name: dataset.family for name, dataset in datasets.items()}
    training = profile.training
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
        data = {
            name: PlanInput(DatasetRules(**rules[name]), rows[name], table.positive_counts, table.negative_counts)
            for name, table in tables.items()
        }
        stages = schedule_stages(config, families, {name: len(ids) for name, ids in rows.items()})
        made = plan_batches(data, PlanOptions(**options), stages)
        made.save(out / "plan.npz")
        return {"batches": len(made), "examples": made.examples, "rows_in_no_batch": dict(made.left_out)}

    schedule = config.model_dump(mode="json", include={"schedule", "order", "stages"})
    described = {"options": options, "rules": rules, "schedule": schedule, "families": families}
    inputs = {"subset": nodes[f"subset/{config.subset}"], **_tokens(profile, config, nodes)}
    return Node("plan", VERSION["plan"], f"batch plan of {config.name}", described, make, inputs)


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
    """One member, fine-tuned from the base."""
    rules, prompts = _rules(_datasets(profile, manifest, config)), prompts_of(profile, manifest)
    restart = config.learning_rate_stages == "restarted"
    schedule = config.schedule.replace("_", " ")
    share = f"{100 * profile.member_ratio(config.name):g} % of every dataset"
    if (new := profile.member_subset(config.name).new_data) is not None:
        share = f"{share.replace('every', 'every old')} and {100 * new:g} % of every new one"

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.training.member import MemberJob, train_member, usable_processes
        from boom_utils.training.plan import DatasetRules

        made = {name: DatasetRules(**rule) for name, rule in rules.items()}
        files = found["base"].path, _token_folders(found), found["plan"].path / "plan.npz"
        summary = f"Fine-tuned with InfoNCE, {schedule}: {share}."
        job = MemberJob(*files, made, profile.training, prompts, config.name, summary, restart, execution.allow_changes)
        return train_member(job, out, execution.processes or usable_processes(job))

    training = profile.training.model_dump(mode="json")
    described = {"training": training, "rules": rules, "name": config.name, "restart_rate": restart}
    inputs = {"base": nodes["base"], **_tokens(profile, config, nodes), "plan": nodes[f"plan/{config.name}"]}
    label = f"member {config.name}"
    return Node(
        "member",
        VERSION["member"],
        label,
        described,
        make,
        inputs,
        resumable=True,
        observations=("training_log.jsonl",),
    )


def merge(profile: Profile, config: MergeConfig, nodes: Nodes) -> Node:
    """One merged model, of members or of earlier merges."""
    weights, places = profile.merge_weights(config), model_nodes(profile)

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.merging.recipe import make_recipe
        from boom_utils.merging.writer import MergeOptions
        from boom_utils.merging.writer import merge as write_merged

        recipe: dict[str, Any] = {
            "merge_method": config.method,
            "models": [
                {"model": found[name].path, "parameters": {"weight": weight}}
                for name, weight in zip(config.members, weights, strict=True)
            ],
            "dtype": "float32",
        }
        if config.task_vectors:
            recipe["base_model"] = found["base"].path
        options = MergeOptions({artifact.path: name for name, artifact in found.items()})
        return write_merged(make_recipe(recipe), out, options)

    described = {**config.model_dump(mode="json"), "weights": weights, "dtype": "float32"}
    inputs = {name: nodes[places[name]] for name in config.members}
    if config.task_vectors:
        inputs["base"] = nodes["base"]
    return Node("merge", VERSION["merge"], f"merge {config.name}", described, make, inputs)


def geometry(profile: Profile, nodes: Nodes) -> Node:
    """Inner products of the batch-level shuffled members (the ones to merge) and their base; angles and sizes."""
    names = shuffled_members(profile.member_facts())

    def make(out: Path, found: Inputs) -> None:
        from boom_utils.merging.checkpoints import require_compatible
        from boom_utils.merging.family import open_checkpoints
        from boom_utils.merging.gram import family_grams, save_grams
        from boom_utils.merging.planner import geometry_of

        folders = {found[name].path: name for name in ("base", *names)}
        models = open_checkpoints(list(folders), folders)
        require_compatible(models[1:], models[:1])
        table = family_grams(models, has_base=True)
        save_grams(out / "grams.npz", table)
        write_json(out / "geometry.json", geometry_of(table).as_json())

    inputs = {"base": nodes["base"], **{name: nodes[f"member/{name}"] for name in names}}
    return Node("geometry", VERSION["geometry"], "geometry of the task vectors", {"members": names}, make, inputs)


def scores(
    manifest: Manifest, model: str, source: Node, task_name: str, nodes: Nodes, prompts: Mapping[str, str]
) -> Node:
    """Scores of one model on one task."""
    declared = manifest.task(task_name)
    origin = manifest.dataset(declared.dataset).origin
    kind = declared.family if origin is None else origin.task
    prompt = prompts[declared.dataset]

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.evaluation.run import evaluate_task
        from boom_utils.evaluation.tasks import LocalTask

        folder = found["examples"].path / "evaluation" / task_name
        task = LocalTask(task_name, kind, folder, prompt)
        return evaluate_task(model, found["model"].path, task, out)

    described = {"model": model, "task": declared.model_dump(mode="json"), "prompt": prompt}
    inputs = {"model": source, "examples": nodes["examples"]}
    label = f"scores of {model} on {task_name}"
    return Node("scores", VERSION["scores"], label, described, make, inputs, one_of_many=True)


def benchmark_scores(model: str, source: Node, benchmark: str) -> Node:
    """Scores of one model on one benchmark of mteb: declared, so that plans count it, but not run by this version."""

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        raise EvaluationError(
            f"this version of the kit does not run benchmarks of mteb ({benchmark})",
            where=model,
            fix=f"run mteb on the model folder yourself: {found['model'].path}",
        )

    described = {"model": model, "benchmark": benchmark}
    return Node("scores", VERSION["scores"], f"scores of {model} on {benchmark}", described, make, {"model": source})
