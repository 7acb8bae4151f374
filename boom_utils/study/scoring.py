"""The scores of a study: one node for every scored model and task, of the corpus or of a benchmark of mteb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boom_utils.artifacts import Make, Node
from boom_utils.config import Profile, query_prompt
from boom_utils.data.manifest import Manifest
from boom_utils.errors import ConfigError
from boom_utils.evaluation.benchmarks import Benchmarks, BenchmarkTask, find_benchmarks, mteb_version, tasks_by_domain
from boom_utils.study.stages import VERSION, Inputs, Nodes, fixed_prompts, model_nodes, prompts_of

if TYPE_CHECKING:
    from boom_utils.evaluation.run import Scoring
    from boom_utils.evaluation.tasks import LocalTask


def profile_benchmarks(profile: Profile) -> Benchmarks:
    """The tasks of a profile's benchmarks, each with its prompt; mteb is imported only if there are some.

    Raises:
        ConfigError: mteb has no such benchmark, or one of its tasks is called like a task of the corpus.
    """
    evaluation, fixed = profile.evaluation, fixed_prompts(profile)[0]
    found = find_benchmarks((*evaluation.in_domain_benchmarks, *evaluation.out_of_domain_benchmarks))
    if twice := sorted({*found.tasks} & {*evaluation.in_domain, *evaluation.out_of_domain}):
        raise ConfigError("tasks of the corpus are called like tasks of a benchmark", found=", ".join(twice))
    prompts = {
        name: query_prompt(one.instruction[0], evaluation.query_template) if fixed is None else fixed
        for name, one in found.tasks.items()
    }
    return replace(found, tasks={name: replace(one, prompt=prompts[name]) for name, one in found.tasks.items()})


def task_facts(profile: Profile, manifest: Manifest, benchmarks: Benchmarks) -> list[dict[str, Any]]:
    """Every task with family and domain, as study.json lists it; of mteb's, also benchmark, metric and languages."""
    facts: list[dict[str, Any]] = []
    more: dict[str, Any]
    for domain, names in tasks_by_domain(profile.evaluation, benchmarks).items():
        for name in names:
            if (task := benchmarks.tasks.get(name)) is not None:
                family, is_new = task.family, False
                more = {"benchmark": task.benchmark, "metric": task.metric, "languages": list(task.languages)}
            else:
                known = manifest.task(name)
                family, is_new, more = known.family, known.dataset in profile.corpus.new_datasets, {}
            facts.append({"name": name, "family": family, "domain": domain, "new_data": is_new, **more})
    return facts


def score_nodes(profile: Profile, manifest: Manifest, nodes: Nodes, downloads: Path) -> dict[str, Node]:
    """``scores/<model>/<task>`` of every scored model.

    Args:
        profile: What is studied.
        manifest: Its corpus.
        nodes: All that come before.
        downloads: Where the data of benchmarks are.
    """
    evaluation, places = profile.evaluation, model_nodes(profile)
    prompts, benchmarks = prompts_of(profile, manifest, evaluation.query_template), profile_benchmarks(profile)
    made: dict[str, Node] = {}
    for model in profile.scored_models:
        source = nodes[places[model]]
        for name in (*evaluation.in_domain, *evaluation.out_of_domain):
            prompt, inputs = prompts[manifest.task(name).dataset], {"model": source, "examples": nodes["examples"]}
            made[f"scores/{model}/{name}"] = _local(profile, manifest, (model, name), prompt, inputs)
        for name, task in benchmarks.tasks.items():
            made[f"scores/{model}/{name}"] = _of_mteb(profile, model, source, task, downloads)
    return made


def local_task(manifest: Manifest, name: str, prompt: str, examples: Path) -> LocalTask:
    """A task of the corpus as `boom_utils.evaluation` takes it.

    Args:
        manifest: The corpus.
        name: One of its tasks.
        prompt: Put before queries.
        examples: Folder of the examples made of the corpus.
    """
    from boom_utils.evaluation.tasks import LocalTask

    declared = manifest.task(name)
    origin = manifest.dataset(declared.dataset).origin
    return LocalTask(name, declared.family if origin is None else origin.task, examples / "evaluation" / name, prompt)


def scoring_of(profile: Profile, downloads: Path | None = None) -> Scoring:
    """How the models of a profile are scored."""
    from boom_utils.evaluation.run import Scoring

    options, passage_prompt = profile.evaluation, fixed_prompts(profile)[1]
    return Scoring(options.query_template, options.precision, downloads, passage_prompt)


def _local(
    profile: Profile, manifest: Manifest, names: tuple[str, str], prompt: str, inputs: Mapping[str, Node]
) -> Node:
    """Scores of one model on one task of the corpus."""
    model, name = names

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.evaluation.run import evaluate_task

        task = local_task(manifest, name, prompt, found["examples"].path)
        return evaluate_task(model, found["model"].path, task, out, scoring_of(profile))

    return _node(profile, model, manifest.task(name).model_dump(mode="json"), prompt, inputs, make)


def _of_mteb(profile: Profile, model: str, source: Node, task: BenchmarkTask, downloads: Path) -> Node:
    """Scores of one model on one task of mteb."""

    def make(out: Path, found: Inputs) -> Mapping[str, Any]:
        from boom_utils.evaluation.run import evaluate_task

        return evaluate_task(model, found["model"].path, task, out, scoring_of(profile, downloads))

    return _node(profile, model, task.described(), task.prompt, {"model": source}, make)


def _node(
    profile: Profile, model: str, task: Mapping[str, Any], prompt: str, inputs: Mapping[str, Node], make: Make
) -> Node:
    """What a score depends on besides the model (its folder says length and pooling): another value, another score."""
    made_with = {"prompt": prompt, "precision": profile.evaluation.precision, "mteb": mteb_version()}
    if passage_prompt := fixed_prompts(profile)[1]:
        made_with["passage_prompt"] = passage_prompt
    label = f"scores of {model} on {task.get('id', task.get('name'))}"
    described = {"model": model, "task": dict(task), **made_with}
    return Node("scores", VERSION["scores"], label, described, make, inputs, one_of_many=True)
