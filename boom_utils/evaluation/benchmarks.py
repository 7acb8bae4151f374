"""Benchmarks of mteb: which tasks they are, restricted to the splits and subsets they name, and how each is prompted.

Asking needs no network; mteb is imported only when there is a benchmark to ask for.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boom_utils.config import EvaluationConfig
from boom_utils.errors import ConfigError, bullet_list, nearest
from boom_utils.evaluation.random_state import random_state_kept

LISTS = Path(__file__).with_name("benchmark_lists.yaml")
RELEASED = Path(__file__).with_name("released_prompts.yaml")
"""Instructions of the released models, data of mteb as they were at a named version: another one changes no score."""
_KEYED = ("name", "family", "metric", "splits", "subsets", "dataset")
UNKNOWN_SIZE = 10**7
"""Characters of a task whose texts nobody counted."""
CLOSED = "closed: its data are not public"


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of one or several benchmarks.

    Args:
        name: mteb's name.
        benchmark: The first benchmark, as it was asked for, that has it.
        family: mteb's type in the words of this kit: ``retrieval``, ``pair_classification``, ...
        metric: mteb's name of its main score.
        splits: What is scored of it.
        subsets: The same; languages, mostly.
        languages: Of these subsets.
        dataset: Repository on the hub and its revision.
        instruction: What the template is filled with, and where it is from (`instruction_of`).
        characters: Of its texts, as mteb counted them; None where it did not.
        prompt: Put before queries.
    """

    name: str
    benchmark: str
    family: str
    metric: str
    splits: tuple[str, ...]
    subsets: tuple[str, ...]
    languages: tuple[str, ...]
    dataset: tuple[str, str]
    instruction: tuple[str, str]
    characters: int | None = None
    prompt: str = ""

    @property
    def size(self) -> int:
        """How much there is to encode, about: characters."""
        return self.characters or UNKNOWN_SIZE

    def described(self) -> dict[str, Any]:
        """Everything of it that a score depends on, as JSON."""
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in _KEYED}


@dataclass(frozen=True)
class Benchmarks:
    """What some benchmarks ask for.

    Args:
        tasks: Name -> task; one that two of them have is here once.
        members: Benchmark -> names of its tasks.
        left_out: Benchmark -> task of the installed mteb that is not scored -> why.
    """

    tasks: Mapping[str, BenchmarkTask]
    members: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, Mapping[str, str]]


def mteb_version() -> str:
    """Version of the installed mteb; it is not imported."""
    return importlib.metadata.version("mteb")


def find_benchmarks(names: Sequence[str]) -> Benchmarks:
    """The tasks of some benchmarks, in their order.

    Args:
        names: As mteb calls them; none gives nothing, at no cost.

    Raises:
        ConfigError: mteb has no such benchmark, lacks a task of a list, or two of them define a task differently.
    """
    tasks: dict[str, BenchmarkTask] = {}
    members, left_out, problems = {}, {}, []
    for benchmark in names:
        found, left_out[benchmark] = _tasks_of(benchmark)
        members[benchmark] = tuple(found)
        for name, task in found.items():
            first = tasks.setdefault(name, task)
            if (first.splits, first.subsets) != (task.splits, task.subsets):
                problems.append(f"{name} has other splits or languages in {benchmark} than in {first.benchmark}")
    if problems:
        raise ConfigError(
            "a task is scored once, but two benchmarks define it differently",
            found=bullet_list(problems),
            fix="name one of them in the profile",
        )
    return Benchmarks(tasks, members, left_out)


def tasks_by_domain(evaluation: EvaluationConfig, found: Benchmarks | None = None) -> dict[str, list[str]]:
    """Names of all tasks of a profile, of the corpus and of benchmarks, by ``in-domain`` and ``out-of-domain``.

    Args:
        evaluation: Of the profile.
        found: The tasks of its benchmarks, where they are known already.

    Returns:
        Domain -> names, in the profile's order; a domain without tasks is left out.

    Raises:
        ConfigError: The installed mteb lacks tasks of a benchmark.

    >>> from boom_utils.config import load_profile
    >>> tasks_by_domain(load_profile("smoke").evaluation)["out-of-domain"]
    ['docstring_to_code', 'summary_to_description_held_out', 'parameter_question_held_out']
    """
    inside, outside = evaluation.in_domain_benchmarks, evaluation.out_of_domain_benchmarks
    tasks = (found or find_benchmarks((*inside, *outside))).tasks.values()
    domains = {
        "in-domain": [*evaluation.in_domain, *(task.name for task in tasks if task.benchmark in inside)],
        "out-of-domain": [*evaluation.out_of_domain, *(task.name for task in tasks if task.benchmark not in inside)],
    }
    return {domain: names for domain, names in domains.items() if names}


def _tasks_of(benchmark: str) -> tuple[dict[str, BenchmarkTask], dict[str, str]]:
    """Tasks of one benchmark, and those left out."""
    installed, fixed = _installed(benchmark), _yaml(LISTS).get(benchmark)
    left_out = {name: CLOSED for name, task in installed.items() if not task.metadata.is_public}
    if fixed is None:
        wanted = [name for name in installed if name not in left_out]
    else:
        wanted, unknown = fixed["tasks"], "not in the list that is fixed in this kit"
        reasons = {name: entry["reason"] for entry in fixed["left_out"] for name in entry["tasks"]}
        left_out = {name: reasons.get(name, unknown) for name in installed if name not in wanted}
    if missing := [name for name in wanted if name not in installed]:
        raise ConfigError(
            f"the installed mteb lacks tasks of {benchmark}", found=", ".join(missing), fix="install the locked version"
        )
    return {name: _described(installed[name], benchmark) for name in wanted}, left_out


@functools.cache
def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def instruction_of(task: Any) -> tuple[str, str]:
    """The instruction before queries of an mteb task, and where it is from: ``released``, ``task`` or ``kind``."""
    metadata, released = task.metadata, _yaml(RELEASED)["instructions"]
    if metadata.name in released:
        return released[metadata.name], "released"
    own = metadata.prompt.get("query") if isinstance(metadata.prompt, Mapping) else metadata.prompt
    return (str(own), "task") if own else (str(task.abstask_prompt), "kind")


def _installed(benchmark: str) -> dict[str, Any]:
    """The tasks that mteb itself has in a benchmark, by name."""
    with random_state_kept():
        import mteb

        try:
            return {task.metadata.name: task for task in mteb.get_benchmark(benchmark).tasks}
        except KeyError:
            known = [one.name for one in mteb.get_benchmarks()]
            raise ConfigError(f"mteb has no benchmark '{benchmark}'{nearest(benchmark, known)}") from None


def _described(task: Any, benchmark: str) -> BenchmarkTask:
    metadata, subsets = task.metadata, tuple(task.hf_subsets)
    spoken = metadata.hf_subsets_to_langscripts
    counted = [
        (metadata.descriptive_stats or {}).get(split, {}).get("number_of_characters") for split in task.eval_splits
    ]
    return BenchmarkTask(
        name=metadata.name,
        benchmark=benchmark,
        family="sts" if metadata.type == "STS" else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", metadata.type).lower(),
        metric=metadata.main_score,
        splits=tuple(task.eval_splits),
        subsets=subsets,
        languages=tuple(sorted({language for subset in subsets for language in spoken[subset]})),
        dataset=(metadata.dataset["path"], metadata.dataset["revision"]),
        instruction=instruction_of(task),
        characters=sum(counted) if all(counted) else None,
    )


def make_benchmark_task(task: BenchmarkTask) -> Any:
    """A new mteb task that keeps the values behind its score in ``samples``; see `boom_utils.evaluation.listening`.

    Raises:
        ConfigError: The installed mteb has no such benchmark.
    """
    from boom_utils.evaluation.listening import listening_class

    given = _installed(task.benchmark)[task.name]
    made = listening_class(type(given))()
    made.hf_subsets, made._eval_splits = list(task.subsets), list(task.splits)
    return made
