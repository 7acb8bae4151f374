"""Benchmarks of mteb: which tasks they are, restricted to the splits and subsets they name, their prompts and data.

Asking needs no network; mteb is imported only when there is a benchmark to ask for. The data are fetched once into the
hub's cache at the revision mteb names, and read from there: a task loads them by path, so that nothing asks the hub,
which the loaders of mteb do even when all is in the libraries' own cache. ``BOOM_MIRROR`` works as for a corpus.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from boom_utils.artifacts import default_workspace, digest_of, write_text
from boom_utils.config import EvaluationConfig
from boom_utils.data.files import MEGABYTE, hub_snapshot
from boom_utils.errors import (
    BoomError,
    ConfigError,
    DownloadError,
    EvaluationError,
    UnreachableError,
    bullet_list,
    nearest,
)

log = logging.getLogger(__name__)

LISTS = Path(__file__).with_name("benchmark_lists.yaml")
RELEASED = Path(__file__).with_name("released_prompts.yaml")
"""Instructions of the released models, data of mteb as they were at a named version: another one changes no score."""
_KEYED = ("name", "family", "metric", "splits", "subsets", "dataset")
UNKNOWN_SIZE = 10**7
"""Characters of a task whose texts nobody counted."""
_ENDS = ("parquet", "json", "jsonl", "csv", "tsv", "txt", "gz", "zip", "zst", "bz2", "xz", "arrow", "md")
PATTERNS = tuple(f"*.{end}" for end in _ENDS)
"""Files that `datasets` reads; README.md says which of them belong together."""


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
        size: How much there is to encode, about: characters, as mteb counted them.
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
    size: int = UNKNOWN_SIZE
    prompt: str = ""

    def described(self) -> dict[str, Any]:
        """Everything of it that a score depends on, as JSON."""
        return {name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in _KEYED}


@dataclass(frozen=True)
class Benchmarks:
    """What some benchmarks ask for.

    Args:
        tasks: Name -> task; one that two of them have is here once.
        members: Benchmark -> names of its tasks.
    """

    tasks: Mapping[str, BenchmarkTask]
    members: Mapping[str, tuple[str, ...]]


@functools.cache
def mteb_version() -> str:
    """Version of the installed mteb; it is not imported."""
    return importlib.metadata.version("mteb")


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the global random generators back as they were: mteb seeds all three when it is imported or makes a task."""
    import torch

    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


def find_benchmarks(names: Sequence[str]) -> Benchmarks:
    """The tasks of some benchmarks, in their order.

    Args:
        names: As mteb calls them; none gives nothing, at no cost.

    Raises:
        ConfigError: mteb has no such benchmark, lacks a task of a list, or two of them define a task differently.
    """
    tasks: dict[str, BenchmarkTask] = {}
    members, problems = {}, []
    for benchmark in names:
        found = _tasks_of(benchmark)
        members[benchmark] = tuple(found)
        for name, task in found.items():
            first = tasks.setdefault(name, task)
            if (first.splits, first.subsets) != (task.splits, task.subsets):
                problems.append(f"{name} has other splits or languages in {benchmark} than in {first.benchmark}")
    if problems:
        what, fix = "a task is scored once, but two benchmarks define it differently", "name one of them in the profile"
        raise ConfigError(what, found=bullet_list(problems), fix=fix)
    return Benchmarks(tasks, members)


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
    ['docstring_to_code', 'summary_to_description_held_out']
    """
    inside, outside = evaluation.in_domain_benchmarks, evaluation.out_of_domain_benchmarks
    tasks = (found or find_benchmarks((*inside, *outside))).tasks.values()
    domains = {
        "in-domain": [*evaluation.in_domain, *(task.name for task in tasks if task.benchmark in inside)],
        "out-of-domain": [*evaluation.out_of_domain, *(task.name for task in tasks if task.benchmark not in inside)],
    }
    return {domain: names for domain, names in domains.items() if names}


def _tasks_of(benchmark: str) -> dict[str, BenchmarkTask]:
    """Tasks of one benchmark. The workspace remembers them: mteb takes seconds to import."""
    read = [path.read_text(encoding="utf-8") for path in (LISTS, RELEASED, Path(__file__))]
    path = default_workspace() / ".benchmarks" / f"{digest_of([benchmark, mteb_version(), *read])[:16]}.json"
    form = TypeAdapter(dict[str, BenchmarkTask])
    with suppress(OSError, ValidationError):
        return form.validate_json(path.read_bytes())
    found = _asked(benchmark)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, form.dump_json(found).decode())
    return found


def _asked(benchmark: str) -> dict[str, BenchmarkTask]:
    """Tasks of one benchmark: those fixed in this kit, or all whose data are public."""
    installed, fixed = _installed(benchmark), _yaml(LISTS).get(benchmark)
    wanted = fixed["tasks"] if fixed else [name for name, task in installed.items() if task.metadata.is_public]
    if missing := [name for name in wanted if name not in installed]:
        what, fix = f"the installed mteb lacks tasks of {benchmark}", "install the locked version"
        raise ConfigError(what, found=bullet_list(missing), fix=fix)
    return {name: _described(installed[name], benchmark) for name in wanted}


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
    counts = [(metadata.descriptive_stats or {}).get(one, {}).get("number_of_characters") for one in task.eval_splits]
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
        size=sum(counts) if all(counts) else UNKNOWN_SIZE,
    )


def make_benchmark_task(task: BenchmarkTask) -> Any:
    """A new mteb task that keeps the values behind its score in ``samples``; see `boom_utils.evaluation.samples`.

    Raises:
        ConfigError: The installed mteb has no such benchmark.
    """
    from boom_utils.evaluation.samples import keeping_class

    given = _installed(task.benchmark)[task.name]
    made = keeping_class(type(given))()
    made.hf_subsets, made._eval_splits = list(task.subsets), list(task.splits)
    return made


# --- data -------------------------------------------------------------------------------------------------------------


def fetch_benchmarks(tasks: Iterable[BenchmarkTask]) -> dict[str, int]:
    """Fetch the data of some tasks, one repository after the other; what cannot be had does not stop the rest.

    Args:
        tasks: Of which benchmarks ever.

    Returns:
        Repository -> bytes of its files.

    Raises:
        UnreachableError: The hub cannot be reached; the rest is not tried.
        DownloadError: At least one repository could not be fetched; the others are there.
    """
    sizes: dict[str, int] = {}
    problems = []
    for repo, revision in dict.fromkeys(task.dataset for task in tasks):
        try:
            folder = hub_snapshot(repo, PATTERNS, revision)
        except UnreachableError:
            raise
        except BoomError as error:
            problems.append(f"{repo}: {error.what}")
            continue
        sizes[repo] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        log.info("benchmark data: %s: %.1f MB", repo, sizes[repo] / MEGABYTE)
    if problems:
        what = f"the data of {len(problems)} benchmark datasets could not be fetched, {len(sizes)} are there"
        fix = "run again, what is finished is kept; offline, set BOOM_MIRROR=<folder>"
        raise DownloadError(what, found=bullet_list(problems), fix=fix)
    return sizes


def load_benchmark_data(made: Any, task: BenchmarkTask, cache: Path | None) -> None:
    """Have an mteb task load its data: those of the hub's cache or the mirror, fetched now where they are not there.

    Args:
        made: The task.
        task: What it is made of.
        cache: Where `datasets` keeps what it reads; None leaves all to mteb and the Hugging Face libraries.

    Raises:
        EvaluationError: The data cannot be had or read.
    """
    import datasets

    kept, before = made.metadata, datasets.config.HF_DATASETS_CACHE
    try:
        if cache is not None:
            with suppress(DownloadError):  # mteb's own loader may have them elsewhere
                folder = hub_snapshot(task.dataset[0], PATTERNS, task.dataset[1])
                made.metadata = kept.model_copy(update={"dataset": {**kept.dataset, "path": str(folder.resolve())}})
                datasets.config.HF_DATASETS_CACHE = cache
        made.load_data()
    except Exception as error:  # whatever the libraries say when data are not there
        where = f"datasets/{task.dataset[0]} at {task.dataset[1]}"
        found = error.what if isinstance(error, BoomError) else f"{type(error).__name__}: {str(error)[:200]}"
        fix = "boom data fetch --profile <the profile>, where there is a network; what is there is then used offline"
        what = f"the data of {task.name} cannot be loaded"
        raise EvaluationError(what, where=where, found=found, fix=fix) from error
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        made.__dict__.pop("metadata", None)
