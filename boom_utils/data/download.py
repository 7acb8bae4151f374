"""Downloads the files of a corpus, each checked against its sha256 and size before it has its final name.

`fetch` is the one way in: from the network, from a mirror (``BOOM_MIRROR``) or, offline, from what is there. It can be
killed at any time and run again, also twice at once. How to ask the Hugging Face hub is `boom_utils.data.hub_files`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from boom_utils.data.remote_files import LockEntry, RemoteFile, check_files, complete, read_lock, write_lock
from boom_utils.data.stored_files import (
    MIB,
    STATE,
    PartialFile,
    Target,
    disk_full,
    failure,
    is_cached,
    stored_facts,
)
from boom_utils.data.transfer import Transfer, make_client
from boom_utils.errors import ConfigError, DownloadError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)
MOST_SHOWN = 10
"""Most files that an error names."""
Get = Callable[[Target], None]
Network = Callable[[threading.Event], Get]
"""Given what is set when all work is to end: how one file comes over the network."""


def mirror_from_environment() -> Path | None:
    """``$BOOM_MIRROR``, or None."""
    return Path(folder).expanduser() if (folder := os.environ.get("BOOM_MIRROR")) else None


def offline_from_environment() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set, in the spellings huggingface_hub heeds."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class FetchOptions:
    """How files are fetched; none of it changes what comes.

    Args:
        mirror: Folder to read ``<host>/<path>`` from instead of the network.
        offline: Use no network. A mirror is none.
        verify: Hash files that are there, also when size and time of change are those of the finished download.
        threads: Files at a time.
        attempts: In a row without progress, before a file is given up.
        timeout: Seconds without a byte before a connection counts as broken.
        allow_loopback_http: Accept ``http://127.0.0.1``; for a test server.
        sleep: Waits between attempts; tests need not.
        lock_timeout: Seconds to wait for another process that downloads the same file.
    """

    mirror: Path | None = field(default_factory=mirror_from_environment)
    offline: bool = field(default_factory=offline_from_environment)
    verify: bool = False
    threads: int = 4
    attempts: int = 6
    timeout: float = 30.0
    allow_loopback_http: bool = False
    sleep: Callable[[float], object] | None = None
    lock_timeout: float = 3600.0


def fetch(
    files: Sequence[RemoteFile], folder: Path, options: FetchOptions | None = None, network: Network | None = None
) -> list[Path]:
    """Make sure that the files are in a folder, each at ``<folder>/<host>/<path>``.

    Args:
        files: What to fetch; a file named twice is fetched once.
        folder: Where to; made when it is not there.
        options: How; by default as the environment says.
        network: How a file comes over the network; None asks for its url.

    Returns:
        Their paths, in the order of ``files``.

    Raises:
        ManifestError: A url is not safe, or two files would lie at one place.
        DownloadError: Files cannot be had, or are not those the manifest names; all of them are reported.
        ConfigError: The mirror is no folder.
    """
    options = options or FetchOptions()
    targets = [Target(file, folder) for file in check_files(files, loopback=options.allow_loopback_http)]
    folder.mkdir(parents=True, exist_ok=True)
    if missing := _missing(targets, options.verify):
        _check_space(missing, folder)
        if options.mirror is not None:
            _from_mirror(missing, options.mirror, options)
        elif options.offline:
            raise DownloadError(
                f"offline, and {len(missing)} of {len(targets)} files are not there",
                found=bullet_list((target.file.url for target in missing), MOST_SHOWN, _total(missing)),
                fix="unset HF_HUB_OFFLINE, or set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead",
            )
        elif network is not None:
            stopped = threading.Event()
            _get_all(missing, network(stopped), options, stopped)
        else:
            _from_network(missing, options)
    return [folder / file.path for file in files]


def fetch_locked(
    files: Sequence[RemoteFile], folder: Path, lock: Path, options: FetchOptions | None = None
) -> dict[str, LockEntry]:
    """`fetch`, with facts the manifest does not state taken from a lock file, which new ones are written to.

    Args:
        files: What to fetch.
        folder: Where to.
        lock: The lock file of the corpus; made when it is not there.
        options: How.

    Returns:
        sha256, size and (where known) rows of every file, by url.

    Raises:
        ManifestError: As `fetch`, or manifest and lock file contradict each other.
        DownloadError: As `fetch`.
    """
    known = complete(files, read_lock(lock))
    fetch(known, folder, options)
    found = lock_entries(known, folder)
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with FileLock(folder / STATE / f"{lock.name}.lock", timeout=60):
        entries = read_lock(lock)
        # What another process wrote in the meantime is checked, not overwritten.
        if any(url not in entries or entries[url].sha256 != entry.sha256 for url, entry in found.items()):
            write_lock(lock, found)
            entries = read_lock(lock)
    return {url: entries[url] for url in found}


def lock_entries(files: Iterable[RemoteFile], folder: Path) -> dict[str, LockEntry]:
    """sha256 and size of fetched files, by url.

    Args:
        files: What was fetched.
        folder: Where to.

    Raises:
        DownloadError: One of them was not.
    """
    return {file.url: stored_facts(Target(file, folder)) for file in files}


def _missing(targets: Sequence[Target], verify: bool) -> list[Target]:
    missing, problems = [], []
    looked_at: Iterable[Target] = progress(targets, len(targets), "verify files") if verify else targets
    for target in looked_at:
        target.refuse_links()
        try:
            if not is_cached(target, verify=verify):
                missing.append(target)
        except DownloadError as problem:
            problems.append(problem)
    _raise_all(problems, len(targets))
    return missing


def _raise_all(problems: Sequence[DownloadError], total: int) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        texts = [str(problem).replace("\n", "\n      ") for problem in problems]
        shown = bullet_list(sorted(texts), MOST_SHOWN)
        raise DownloadError(f"{len(problems)} of {total} files cannot be used", found=shown)


def _total(targets: Sequence[Target]) -> str:
    """Size of some files together, as far as it is known."""
    sizes = [target.file.bytes for target in targets]
    known = f"{sum(size or 0 for size in sizes) / 10**6:,.1f} MB in all"
    return f"at least {known}" if None in sizes else known


def _check_space(missing: Sequence[Target], folder: Path) -> None:
    """Refuse to begin what cannot end."""
    needed = unknown = 0
    for target in missing:
        if target.file.bytes is None:
            unknown += 1
        else:
            there = target.partial.stat().st_size if target.partial.is_file() else 0
            needed += max(0, target.file.bytes - there)
    free = shutil.disk_usage(folder).free
    if needed > free:
        more = f", and {unknown} file(s) of unknown size" if unknown else ""
        raise DownloadError(
            f"not enough space on the disk for {len(missing)} files",
            expected=f"{needed:,} bytes{more}",
            found=f"{free:,} bytes free",
            fix="free some space or download to another disk; nothing was started",
        )


def _from_mirror(missing: Sequence[Target], mirror: Path, options: FetchOptions) -> None:
    if not mirror.is_dir():
        raise ConfigError(
            "BOOM_MIRROR is no folder", where=mirror, fix="correct it, or unset it to download from the network"
        )
    if absent := [target for target in missing if not (mirror / target.file.path).is_file()]:
        names = (f"{target.file.path} ({target.file.url})" for target in absent)
        raise DownloadError(
            f"{len(absent)} of {len(missing)} files are not in the mirror",
            where=mirror,
            found=bullet_list(names, MOST_SHOWN, _total(absent)),
            fix="add the files to the mirror, or unset BOOM_MIRROR to download from the network",
        )
    stopped = threading.Event()
    _get_all(missing, lambda target: _copy(target, mirror, stopped), options, stopped)


def _copy(target: Target, mirror: Path, stopped: threading.Event) -> None:
    """Read a file of the mirror as if it came over the network."""

    def blocks() -> Iterator[bytes]:
        with (mirror / file.path).open("rb") as source:
            while (block := source.read(MIB)) and not stopped.is_set():
                yield block

    file = target.file
    with PartialFile(target) as partial:
        if not partial.complete():
            partial.restart()
            size = (mirror / file.path).stat().st_size
            if file.bytes in (None, size):
                for _ in partial.store(blocks(), size):
                    pass
            if stopped.is_set():
                raise failure(file, "stopped before the file was complete", fix="run again")
            if partial.wrong() or partial.size != size:
                found = f"sha256 {partial.sha256}, " if partial.size else ""
                partial.discard()
                raise failure(
                    file,
                    "a file of the mirror is not the one the manifest names",
                    found=f"{found}{size} bytes, in BOOM_MIRROR",
                    fix="replace the file in the mirror, or unset BOOM_MIRROR to download from the network",
                )
        partial.finish()


def _from_network(missing: Sequence[Target], options: FetchOptions) -> None:
    stopped = threading.Event()
    with make_client(options.timeout, loopback=options.allow_loopback_http) as client:
        transfer = Transfer(
            client,
            attempts=options.attempts,
            loopback=options.allow_loopback_http,
            pause=stopped.wait if options.sleep is None else options.sleep,
            stopped=stopped,
        )
        _get_all(missing, transfer.get, options, stopped)


def _get_all(missing: Sequence[Target], get: Get, options: FetchOptions, stopped: threading.Event) -> None:
    """Get files, a few at a time; one that cannot be had does not keep the others from coming."""
    problems: list[DownloadError] = []
    with ThreadPoolExecutor(max_workers=options.threads, thread_name_prefix="download") as pool:
        futures = {pool.submit(_get_one, target, get, options.lock_timeout, stopped): target for target in missing}
        try:
            for future in progress(as_completed(futures), len(futures), "download files"):
                try:
                    future.result()
                except DownloadError as problem:
                    problems.append(problem)
        except BaseException:
            # Ctrl-C, or an error of ours: the threads end at their next block, what has come is kept.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _raise_all(problems, len(missing))


def _get_one(target: Target, get: Get, timeout: float, stopped: threading.Event) -> None:
    try:
        with _locked(target, timeout, stopped):
            # Another process may have finished it while this one waited.
            if not is_cached(target):
                get(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise disk_full(target.file, target.folder, target.file.bytes) from error
        reason = error.strerror or type(error).__name__
        raise failure(
            target.file, f"a file cannot be read or written: {reason}", fix="look at the rights of the folder"
        ) from error


@contextmanager
def _locked(target: Target, timeout: float, stopped: threading.Event) -> Iterator[None]:
    path, until = target.state(".lock"), time.monotonic() + timeout
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waiting = FileLock(path), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if stopped.is_set() or time.monotonic() >= until:
                raise failure(
                    target.file,
                    f"another process has been downloading the file for {timeout:.0f} s",
                    fix="wait for it or stop it, then run again",
                ) from None
            if not waiting:
                log.info("%s: another process is downloading it; waiting", target.file.path.name)
            waiting = True
            stopped.wait(0.1)  # not in one long wait, which Ctrl-C could not end
    try:
        yield
    finally:
        lock.release()


__all__ = [
    "FetchOptions",
    "LockEntry",
    "RemoteFile",
    "fetch",
    "fetch_locked",
    "lock_entries",
    "read_lock",
    "write_lock",
]
