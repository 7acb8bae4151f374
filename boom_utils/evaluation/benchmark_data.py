"""The data of mteb's tasks: fetched once into the hub's cache at the revision mteb names, and read from there.

A task loads them by path: nothing of it asks the hub, which the loaders of mteb do even when all is in the libraries'
own cache. ``BOOM_MIRROR`` works as for the data of a corpus.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boom_utils.data.files import MEGABYTE, MOST_SHOWN, hub_snapshot
from boom_utils.errors import BoomError, DownloadError, EvaluationError, bullet_list
from boom_utils.evaluation.benchmarks import BenchmarkTask

log = logging.getLogger(__name__)

_ENDS = ("parquet", "json", "jsonl", "csv", "tsv", "txt", "gz", "zip", "zst", "bz2", "xz", "arrow", "md")
PATTERNS = tuple(f"*.{end}" for end in _ENDS)
"""Files that `datasets` reads; README.md says which of them belong together."""


def fetch_benchmarks(tasks: Iterable[BenchmarkTask]) -> dict[str, int]:
    """Fetch the data of some tasks, one repository after the other; what cannot be had does not stop the rest.

    Args:
        tasks: Of which benchmarks ever.

    Returns:
        Repository -> bytes of its files.

    Raises:
        DownloadError: At least one repository could not be fetched; the others are there.
    """
    places = list(dict.fromkeys(task.dataset for task in tasks))
    sizes: dict[str, int] = {}
    problems: dict[str, str] = {}
    for number, (repo, revision) in enumerate(places, 1):
        try:
            folder = hub_snapshot(repo, PATTERNS, revision)
        except BoomError as error:
            said = problems[repo] = error.what
        else:
            found = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            sizes[repo], said = sum(found), f"{len(found)} files, {sum(found) / MEGABYTE:.1f} MB"
        log.info("benchmark data %d of %d: %s: %s", number, len(places), repo, said)
    if problems:
        raise DownloadError(
            f"the data of {len(problems)} benchmark datasets could not be fetched, {len(sizes)} are there",
            found=bullet_list((f"{repo}: {what}" for repo, what in problems.items()), MOST_SHOWN),
            fix="run again, what is finished is kept; offline, set BOOM_MIRROR=<folder>",
        )
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
    try:
        try:
            folder = None if cache is None else hub_snapshot(task.dataset[0], PATTERNS, task.dataset[1])
        except DownloadError as error:  # mteb's own loader may have them elsewhere
            log.info("%s: %s", task.name, error.what)
            folder = None
        with _pointed_at(made, folder, cache):
            made.load_data()
    except EvaluationError:
        raise
    except Exception as error:  # whatever the libraries say when data are not there
        found = error.what if isinstance(error, BoomError) else f"{type(error).__name__}: {str(error)[:200]}"
        raise EvaluationError(
            f"the data of {task.name} cannot be loaded",
            where=f"datasets/{task.dataset[0]} at {task.dataset[1]}",
            found=found,
            fix="boom data fetch --profile <the profile>, where there is a network; what is there is then used offline",
        ) from error


@contextmanager
def _pointed_at(made: Any, folder: Path | None, cache: Path | None) -> Iterator[None]:
    """The task reads its data from a folder; its metadata name the repository again afterwards."""
    if folder is None or cache is None:
        yield
        return
    import datasets

    before, kept = datasets.config.HF_DATASETS_CACHE, made.metadata
    made.metadata = kept.model_copy(update={"dataset": {**kept.dataset, "path": str(folder.resolve())}})
    datasets.config.HF_DATASETS_CACHE = cache
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        made.__dict__.pop("metadata", None)
