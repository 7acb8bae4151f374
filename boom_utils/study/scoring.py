"""Scores: one node for a model and task, of the corpus or of a benchmark of mteb; a study's, or of any model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boom_utils.artifacts import Node
from boom_utils.config import Profile, query_prompt
from boom_utils.data.manifest import Manifest
from boom_utils.errors import ConfigError
from boom_utils.evaluation.benchmarks import Benchmarks, find_benchmarks, mteb_version, tasks_by_domain
from boom_utils.study.stages import Inputs, fixed_prompts, prompts_of


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
    for domain, names in tasks_by_domain(profile.evaluation, benchmarks).items():
        for name in names:
            if (task := benchmarks.tasks.get(name)) is not None:
                more = {"benchmark": task.benchmark, "metric": task.metric, "languages": list(task.languages)}
                facts.append({"name": name, "family": task.family, "domain": domain, "new_data": False, **more})
            else:
                known, new = manifest.task(name), profile.corpus.new_datasets
                facts.append({"name": name, "family": known.family, "domain": domain, "new_data": known.dataset in new})
    return facts


@dataclass(frozen=True)
class Brought:
    """A model folder that no study made.

    Args:
        folder: Where it is.
        prompts: What it puts before queries and before documents by itself; None: it gets the prompts of the profile.
    """

    folder: Path
    prompts: tuple[str, str] | None


def score_nodes(
    profile: Profile,
    manifest: Manifest,
    models: Mapping[str, Sequence[Node]],
    examples: Node,
    downloads: Path,
    brought: Brought | None = None,
) -> dict[str, Node]:
    """``scores/<model>/<task>`` of some models on every task of a profile.

    Args:
        profile: What is studied.
        manifest: Its corpus.
        models: Name -> node of each model; of an ensemble, those of the models in it.
        examples: Node of the evaluation sets of the corpus.
        downloads: Where the data of benchmarks are.
        brought: Where the model is, if it is not in its node's artifact.
    """
    evaluation, benchmarks = profile.evaluation, profile_benchmarks(profile)
    prompts, passage_prompt = prompts_of(profile, manifest, evaluation.query_template), fixed_prompts(profile)[1]

    def node(model: str, sources: Sequence[Node], name: str) -> Node:
        task = benchmarks.tasks.get(name)
        query = prompts[manifest.task(name).dataset] if task is None else task.prompt
        query, passage = (brought and brought.prompts) or (query, passage_prompt)
        roles = {f"model {number}": one for number, one in enumerate(sources, 1)}
        roles = roles if len(sources) > 1 else {"model": sources[0]}

        def make(out: Path, found: Inputs) -> Mapping[str, Any]:
            from boom_utils.evaluation.run import Scoring, evaluate_task
            from boom_utils.evaluation.tasks import LocalTask

            folders = [found[role].path for role in roles] if brought is None else [brought.folder]
            scoring = Scoring(evaluation.query_template, evaluation.precision, downloads, passage)
            if task is not None:
                return evaluate_task(model, folders, replace(task, prompt=query), out, scoring)
            declared, place = manifest.task(name), found["examples"].path / "evaluation" / name
            origin = manifest.dataset(declared.dataset).origin
            kind = declared.family if origin is None else origin.task
            return evaluate_task(model, folders, LocalTask(name, kind, place, query), out, scoring)

        # What a score depends on besides the model (its folder says length and pooling): another value, another score.
        asked = manifest.task(name).model_dump(mode="json") if task is None else task.described()
        described = {"model": model, "task": asked, "prompt": query, "precision": evaluation.precision}
        described |= {"mteb": mteb_version(), **({"passage_prompt": passage} if passage else {})}
        inputs = roles if task else {**roles, "examples": examples}
        label = f"scores of {model} on {name}"
        return Node("scores", 4, label, described, make, inputs, one_of_many=True)

    names = (*evaluation.in_domain, *evaluation.out_of_domain, *benchmarks.tasks)
    return {f"scores/{model}/{name}": node(model, found, name) for model, found in models.items() for name in names}
