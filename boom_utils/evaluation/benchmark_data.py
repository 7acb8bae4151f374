"""The data of mteb's tasks: fetched once into the hub's cache at the revision mteb names, and read from there.

A task loads them by path: nothing of it asks the hub, which the loaders of mteb do even when all is in the libraries'
own cache. ``BOOM_MIRROR`` works as for the data of a corpus.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
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
    sizes: dict[str, int] = {}
    problems = []
    for repo, revision in dict.fromkeys(task.dataset for task in tasks):
        try:
            folder = hub_snapshot(repo, PATTERNS, revision)
        except BoomError as error:
            problems.append(f"{repo}: {error.what}")
            continue
        sizes[repo] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        log.info("benchmark data: %s: %.1f MB", repo, sizes[repo] / MEGABYTE)
    if problems:
        raise DownloadError(
            f"the data of {len(problems)} benchmark datasets could not be fetched, {len(sizes)} are there",
            found=bullet_list(problems, MOST_SHOWN),
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
        raise EvaluationError(
            f"the data of {task.name} cannot be loaded",
            where=f"datasets/{task.dataset[0]} at {task.dataset[1]}",
            found=error.what if isinstance(error, BoomError) else f"{type(error).__name__}: {str(error)[:200]}",
            fix="boom data fetch --profile <the profile>, where there is a network; what is there is then used offline",
        ) from error
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        made.__dict__.pop("metadata", None)
