"""The data of mteb's tasks: fetched once into the workspace at the revision mteb names, and read from there.

The files of a repository lie where the downloader puts those of any hub dataset, hashed as they came, so an interrupted
fetch goes on and ``BOOM_MIRROR`` works. A task then loads them by path: nothing of it asks the hub, which the loaders
of mteb do even when all is in the libraries' own cache.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from boom_utils.artifacts import write_json
from boom_utils.data.download import MOST_SHOWN, FetchOptions, Get, fetch
from boom_utils.data.hub_client import HubClient, Place
from boom_utils.data.hub_files import file_url
from boom_utils.data.remote_files import RemoteFile, url_problem
from boom_utils.data.stored_files import Target
from boom_utils.errors import BoomError, DownloadError, EvaluationError, bullet_list
from boom_utils.evaluation.benchmarks import BenchmarkTask

log = logging.getLogger(__name__)

_READ = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zip", ".zst", ".bz2", ".xz", ".arrow", ".md")
"""Ends of the files that `datasets` reads; README.md says which of them belong together."""
MEGABYTE = 10**6


@dataclass(frozen=True)
class FetchedBenchmarks:
    """What `fetch_benchmarks` did.

    Args:
        sizes: Repository -> bytes of its files.
        before: Those of them that were there.
        problems: Repository -> why it could not be had.
        seconds: How long it took.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def raise_problems(self) -> None:
        """Raise one error of all that could not be had, if anything.

        Raises:
            DownloadError: At least one repository could not be fetched.
        """
        if self.problems:
            raise DownloadError(
                f"the data of {len(self.problems)} benchmark datasets could not be fetched, "
                f"{len(self.sizes)} are there",
                found=bullet_list((f"{repo}: {what}" for repo, what in self.problems.items()), MOST_SHOWN),
                fix="run again, what is finished is kept; offline, set BOOM_MIRROR=<folder>",
            )


def fetch_benchmarks(
    tasks: Iterable[BenchmarkTask], downloads: Path, options: FetchOptions | None = None
) -> FetchedBenchmarks:
    """Fetch the data of some tasks, one repository after the other; what cannot be had does not stop the rest.

    Args:
        tasks: Of which benchmarks ever.
        downloads: The downloads folder of the workspace.
        options: How; by default as the environment says.
    """
    options, began = options or FetchOptions(), time.monotonic()
    places = list(dict.fromkeys(task.dataset for task in tasks))
    done = FetchedBenchmarks()
    for number, (repo, revision) in enumerate(places, 1):
        before = _listed(repo, revision, downloads)
        try:
            if before and _all_there(before, downloads):
                files = before
                if options.verify:
                    fetch(files, downloads, options)
            else:
                files = _fetch(repo, revision, downloads, options)
        except DownloadError as error:
            done.problems[repo] = _reason(error)
            log.info("benchmark data %d of %d: %s: %s", number, len(places), repo, done.problems[repo])
            continue
        done.sizes[repo] = sum(file.bytes or 0 for file in files)
        if files is before:
            done.before.append(repo)
        else:
            size = done.sizes[repo] / MEGABYTE
            log.info("benchmark data %d of %d: %s: %d files, %.1f MB", number, len(places), repo, len(files), size)
    return FetchedBenchmarks(done.sizes, done.before, done.problems, time.monotonic() - began)


def data_folder(task: BenchmarkTask, downloads: Path) -> Path | None:
    """Where the data of a task lie, or None when they were not fetched completely; a quick look, nothing is read."""
    files = _listed(*task.dataset, downloads)
    return _root(*task.dataset, downloads) if files and _all_there(files, downloads) else None


def load_benchmark_data(made: Any, task: BenchmarkTask, downloads: Path | None) -> None:
    """Have an mteb task load its data: those of the workspace, fetched now where they are not there.

    Args:
        made: The task.
        task: What it is made of.
        downloads: The downloads folder; None leaves all to mteb and the Hugging Face libraries.

    Raises:
        EvaluationError: The data cannot be had or read.
    """
    folder, options = None, FetchOptions()
    try:
        if downloads is not None and (folder := data_folder(task, downloads)) is None and _can_fetch(options):
            log.info("%s: fetching its data, datasets/%s", task.name, task.dataset[0])
            _fetch(*task.dataset, downloads, options)
            folder = data_folder(task, downloads)
        with _pointed_at(made, folder, downloads):
            made.load_data()
    except EvaluationError:
        raise
    except Exception as error:  # whatever the libraries say when data are not there
        what = _reason(error) if isinstance(error, BoomError) else f"{type(error).__name__}: {str(error)[:200]}"
        raise EvaluationError(
            f"the data of {task.name} cannot be loaded",
            where=f"datasets/{task.dataset[0]} at {task.dataset[1]}",
            found=what,
            fix="boom data fetch --profile <the profile>, where there is a network; what is there is then used offline",
        ) from error


def _reason(error: BoomError) -> str:
    """What an error says first, in one line; of one that lists several, also the first of them."""
    listed = [line.strip(" -") for line in str(error).splitlines() if line.startswith("    - ")]
    return f"{error.what}: {listed[0]}" if listed else error.what


def _can_fetch(options: FetchOptions) -> bool:
    return options.mirror is not None or not options.offline


@contextmanager
def _pointed_at(made: Any, folder: Path | None, downloads: Path | None) -> Iterator[None]:
    """The task reads its data from a folder; its metadata name the repository again afterwards."""
    if folder is None or downloads is None:
        yield
        return
    import datasets

    cache, kept = datasets.config.HF_DATASETS_CACHE, made.metadata
    made.metadata = kept.model_copy(update={"dataset": {**kept.dataset, "path": str(folder.resolve())}})
    datasets.config.HF_DATASETS_CACHE = downloads.parent / "datasets"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = cache
        made.__dict__.pop("metadata", None)


# --- files of a repository --------------------------------------------------------------------------------------------


def _root(repo: str, revision: str, downloads: Path) -> Path:
    return downloads / RemoteFile(url=file_url(repo, revision, "README.md")).path.parent


def _listing(repo: str, revision: str, downloads: Path) -> Path:
    return _root(repo, revision, downloads).parent.parent / f"{revision}.files.json"


def _listed(repo: str, revision: str, downloads: Path) -> list[RemoteFile] | None:
    """The files of a repository, as noted when they were first asked for."""
    try:
        noted = json.loads(_listing(repo, revision, downloads).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [RemoteFile(url=file_url(repo, revision, path), **facts) for path, facts in noted.items()]


def _all_there(files: Sequence[RemoteFile], downloads: Path) -> bool:
    places = [(file, downloads / file.path) for file in files]
    return all(place.is_file() and place.stat().st_size == file.bytes for file, place in places)


def _fetch(repo: str, revision: str, downloads: Path, options: FetchOptions) -> list[RemoteFile]:
    """Fetch all data files of a repository at a revision, and note which they are.

    Raises:
        DownloadError: They cannot be had.
    """
    places: dict[str, Place] = {}
    found: dict[str, tuple[str | None, int]]
    if options.mirror is not None:
        root = options.mirror / RemoteFile(url=file_url(repo, revision, "README.md")).path.parent
        paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
        found = {path.relative_to(root).as_posix(): (None, path.stat().st_size) for path in paths}
    elif options.offline:
        raise DownloadError("offline, and its data are not there", where=f"datasets/{repo} at {revision}")
    else:
        entries = HubClient(options, Event()).entries(repo, revision)
        places = {file_url(repo, revision, one.path): Place(repo, revision, one.path, one.blob_id) for one in entries}
        found = {one.path: (one.sha256, one.bytes) for one in entries}
    chosen = {path: facts for path, facts in sorted(found.items()) if path.lower().endswith(_READ)}
    if not chosen:
        raise DownloadError("the repository has no data files", where=f"datasets/{repo} at {revision}")
    urls = {path: file_url(repo, revision, path) for path in chosen}
    if unsafe := [f"{path} {problem}" for path, url in urls.items() if (problem := url_problem(url))]:
        raise DownloadError("files have unsafe names", where=f"datasets/{repo}", found=bullet_list(unsafe, MOST_SHOWN))
    files = [RemoteFile(url=urls[path], sha256=sha256, bytes=size) for path, (sha256, size) in chosen.items()]

    def network(stopped: Event) -> Get:
        return partial(_get, HubClient(options, stopped), places)

    fetch(files, downloads, options, network)
    noted = {path: {"sha256": sha256, "bytes": size} for path, (sha256, size) in chosen.items()}
    write_json(_listing(repo, revision, downloads), noted)
    return files


def _get(client: HubClient, places: dict[str, Place], target: Target) -> None:
    client.get(target, places[target.file.url])
