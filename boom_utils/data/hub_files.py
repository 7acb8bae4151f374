"""The files of hub datasets: which they are, where they lie, what is known of them, and fetching them.

A manifest names a repository, a commit and patterns. What these stand for, with sha256, bytes and rows of every file,
is noted in a lock file beside the files at the first download, and holds from then on: bytes that differ from it are an
error. Files lie where those of any other host would, below ``huggingface.co/``, also when ``HF_ENDPOINT`` names another
hub, so that ``BOOM_MIRROR`` works for them too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from threading import Event
from urllib.parse import quote, unquote

from filelock import FileLock

from boom_utils.artifacts import digest_of
from boom_utils.data.download import MOST_SHOWN, FetchOptions, Get, fetch, lock_entries
from boom_utils.data.hub_client import Entry, HubClient, Place, nearest_entry
from boom_utils.data.manifest_hub import HUB, HubFile, HubOrigin
from boom_utils.data.own import count_rows_of
from boom_utils.data.remote_files import RemoteFile, complete, read_lock, url_problem, write_lock
from boom_utils.data.stored_files import STATE, Target
from boom_utils.errors import DownloadError, ManifestError, bullet_list

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of some hub datasets.

    Args:
        files: Dataset -> its files, sorted by name.
        places: Url -> where on the hub it is.
    """

    files: Mapping[str, Sequence[RemoteFile]] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)


def file_url(repo: str, revision: str, path: str) -> str:
    """The name of a file: its address on the hub, whoever is asked for it."""
    return f"{HUB}/datasets/{repo}/resolve/{revision}/{quote(path)}"


def lock_path(name: str, origin: HubOrigin, folder: Path) -> Path:
    """The lock file of one dataset; another one where the manifest names other files.

    Args:
        name: The dataset.
        origin: Its files.
        folder: The downloads folder.
    """
    asked = digest_of([origin.revision, [file.path for file in origin.files]])[:8]
    return folder / HUB.partition("://")[2] / "datasets" / origin.repo / f"{name}-{asked}.lock.json"


def known_files(name: str, origin: HubOrigin, folder: Path) -> list[RemoteFile] | None:
    """The files of a dataset as its lock file names them, or None when it was never downloaded completely.

    Args:
        name: The dataset.
        origin: Its files.
        folder: The downloads folder.

    Raises:
        ManifestError: The lock file is none, or contradicts the manifest.
    """
    path = lock_path(name, origin, folder)
    lock = read_lock(path)
    if not lock:
        return None
    prefix = f"{HUB}/datasets/{origin.repo}/resolve/{origin.revision or ''}"
    if wrong := [url for url in lock if not url.startswith(prefix)]:
        raise ManifestError("a lock file names files of another repository", where=path.name, found=bullet_list(wrong))
    stated = {file.path: file for file in origin.files}
    files = [_remote(url, stated.get(_path_in_repo(url))) for url in sorted(lock)]
    return complete(files, lock)


def known_rows(name: str, origin: HubOrigin, folder: Path) -> int | None:
    """Rows of a dataset as counted at its download, or None when it was not downloaded completely.

    Args:
        name: The dataset.
        origin: Its files.
        folder: The downloads folder.
    """
    counts = [entry.rows for entry in read_lock(lock_path(name, origin, folder)).values()]
    return sum(count or 0 for count in counts) if counts and None not in counts else None


def find_files(origins: Mapping[str, HubOrigin], folder: Path, options: FetchOptions) -> Listing:
    """Find out which files some datasets have; asks the hub, or looks into the mirror, for those never downloaded.

    Args:
        origins: By dataset.
        folder: The downloads folder.
        options: How to ask.

    Raises:
        DownloadError: The hub does not tell, a pattern stands for no file, or it is offline and nobody knows.
        ManifestError: A lock file contradicts the manifest.
    """
    known = {name: known_files(name, origin, folder) for name, origin in origins.items()}
    pending = {name: origins[name] for name, files in known.items() if files is None}
    if pending and options.mirror is None and options.offline:
        raise DownloadError(
            f"offline, and nobody knows which files {len(pending)} of {len(origins)} datasets have",
            found=bullet_list((f"{name}: datasets/{origin.repo}" for name, origin in pending.items()), MOST_SHOWN),
            fix="unset HF_HUB_OFFLINE, or set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead",
        )
    client, trees = HubClient(options, Event()), dict[tuple[str, str | None], tuple[str, dict[str, Entry]]]()
    files: dict[str, Sequence[RemoteFile]] = {}
    blobs: dict[str, str] = {}
    problems: list[str] = []
    for name, origin in origins.items():
        if (locked := known[name]) is not None:
            files[name] = locked
            continue
        key = (origin.repo, origin.revision)
        if key not in trees:
            mirror = options.mirror
            trees[key] = _asked(client, origin) if mirror is None else _in_mirror(mirror, origin)
        revision, tree = trees[key]
        chosen, wrong = _matching(origin, revision, tree)
        files[name] = [file for file, _ in chosen]
        blobs |= {file.url: entry.blob_id for file, entry in chosen}
        problems += [f"dataset '{name}': {problem}" for problem in wrong]
    if problems:
        raise DownloadError(
            f"{len(problems)} problem(s) with the files of hub datasets",
            found=bullet_list(problems),
            fix="correct `files` in the manifest",
        )
    urls = {file.url: origins[name] for name, some in files.items() for file in some}
    return Listing(files, {url: _place(url, origin, blobs.get(url)) for url, origin in urls.items()})


def fetch_files(
    origins: Mapping[str, HubOrigin], listing: Listing, folder: Path, options: FetchOptions
) -> dict[str, int]:
    """Fetch the files of a listing and note what came in the lock files.

    Args:
        origins: By dataset, as for `find_files`.
        listing: What that returned.
        folder: The downloads folder.
        options: How.

    Returns:
        Rows of every dataset, counted once.

    Raises:
        DownloadError: Files cannot be had, or are not those that the hub lists or the lock file names.
        ManifestError: The lock file contradicts what came.
    """
    files = [file for some in listing.files.values() for file in some]

    def network(stopped: Event) -> Get:
        return partial(_get, HubClient(options, stopped), listing.places)

    fetch(files, folder, options, network)
    return {name: _note(name, origin, listing.files[name], folder) for name, origin in origins.items()}


def _get(client: HubClient, places: Mapping[str, Place], target: Target) -> None:
    client.get(target, places[target.file.url])


def _note(name: str, origin: HubOrigin, files: Sequence[RemoteFile], folder: Path) -> int:
    """Write the lock file where there is none; all files of a dataset at once, so that one is always complete."""
    path = lock_path(name, origin, folder)
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with FileLock(folder / STATE / f"{path.name}.lock", timeout=3600):
        rows = known_rows(name, origin, folder)
        if rows is None:
            stated = {file.path: file.rows for file in origin.files}
            counted = {file.url: count_rows_of(folder / file.path) for file in files}
            for url, count in counted.items():
                if stated.get(_path_in_repo(url)) not in (None, count):
                    raise ManifestError(
                        f"{_path_in_repo(url)} has {count} rows",
                        where=f"dataset '{name}'",
                        expected=f"{stated[_path_in_repo(url)]}, as the manifest says",
                    )
            found = lock_entries(files, folder)
            write_lock(path, {url: entry.model_copy(update={"rows": counted[url]}) for url, entry in found.items()})
            rows = sum(counted.values())
    if origin.rows.source == "stated" and origin.rows.value != rows:
        log.warning("%s: %d rows are stated, the files have %d", name, origin.rows.value, rows)
    return rows


def _asked(client: HubClient, origin: HubOrigin) -> tuple[str, dict[str, Entry]]:
    revision = origin.revision or client.newest(origin.repo)
    log.info("datasets/%s: asking the hub for its files at %s", origin.repo, revision[:8])
    return revision, {entry.path: entry for entry in client.entries(origin.repo, revision)}


def _in_mirror(mirror: Path, origin: HubOrigin) -> tuple[str, dict[str, Entry]]:
    """What a mirror has of a repository; it is believed, as nobody else is asked."""
    above = mirror / HUB.partition("://")[2] / "datasets" / origin.repo / "resolve"
    there = sorted(path.name for path in above.glob("*") if path.is_dir())
    revisions = [name for name in there if origin.revision in (None, name)]
    if len(revisions) != 1:
        raise DownloadError(
            f"the mirror has {len(revisions)} revisions of datasets/{origin.repo}, one is needed",
            where=mirror,
            expected=f"<mirror>/huggingface.co/datasets/{origin.repo}/resolve/{origin.revision or '<revision>'}/",
            found=", ".join(there) or "nothing",
            fix="add the files to the mirror, or unset BOOM_MIRROR to download from the network",
        )
    root = above / revisions[0]
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    entries = (Entry(path.relative_to(root).as_posix(), path.stat().st_size, None, "") for path in paths)
    return revisions[0], {entry.path: entry for entry in entries}


def _matching(
    origin: HubOrigin, revision: str, tree: Mapping[str, Entry]
) -> tuple[list[tuple[RemoteFile, Entry]], list[str]]:
    """The files that the patterns of a dataset stand for, and what is wrong with them."""
    chosen: dict[str, tuple[RemoteFile, Entry]] = {}
    problems = []
    for asked in origin.files:
        found = [entry for path, entry in tree.items() if path == asked.path or fnmatchcase(path, asked.path)]
        if not found:
            problems.append(f"no file of datasets/{origin.repo} is {asked.path}{nearest_entry(asked.path, tree)}")
        for entry in found:
            url = file_url(origin.repo, revision, entry.path)
            if problem := url_problem(url):
                problems.append(f"{url} {problem}")
                continue
            if asked.sha256 not in (None, entry.sha256 or asked.sha256) or asked.bytes not in (None, entry.bytes):
                problems.append(f"{entry.path}: the hub lists sha256 {entry.sha256}, {entry.bytes} bytes")
            file = RemoteFile(url=url, sha256=asked.sha256 or entry.sha256, bytes=entry.bytes)
            chosen[url] = (file, entry)
    return [chosen[url] for url in sorted(chosen)], problems


def _remote(url: str, stated: HubFile | None) -> RemoteFile:
    return RemoteFile(url=url, sha256=stated.sha256 if stated else None, bytes=stated.bytes if stated else None)


def _path_in_repo(url: str) -> str:
    return unquote(url.partition("/resolve/")[2].partition("/")[2])


def _place(url: str, origin: HubOrigin, blob_id: str | None) -> Place:
    revision = url.partition("/resolve/")[2].partition("/")[0]
    return Place(origin.repo, revision, _path_in_repo(url), blob_id or None)
