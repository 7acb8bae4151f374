"""Asks the Hugging Face hub, through huggingface_hub: what a repository holds, and one file of it.

``HF_ENDPOINT``, ``HF_HOME`` and ``HF_TOKEN`` are heeded because that library does the asking. What it lacks is here:
waiting and asking again where that can help, errors that say what to do, and a hash over what came, because it accepts
any bytes of the right number. No text of the server and no address with a query gets into an error or a log.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from boom_utils.artifacts import derive_seed
from boom_utils.data.stored_files import MIB, PartialFile, Target, failure
from boom_utils.data.transfer import LONGEST_PAUSE, LONGEST_RETRY_AFTER, WORTH_RETRYING, retry_after
from boom_utils.errors import DownloadError, nearest

if TYPE_CHECKING:
    from boom_utils.data.download import FetchOptions

log = logging.getLogger(__name__)
Result = TypeVar("Result")

TOKENS = "https://huggingface.co/settings/tokens"
NOT_THERE = "correct the manifest, or set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead"


class _WithoutQueries(logging.Filter):
    """The library logs addresses it was redirected to; their queries may be signatures."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]+", "", record.getMessage()), ()
        return True


for _name in ("huggingface_hub.file_download", "huggingface_hub.utils._http", "httpx2"):
    logging.getLogger(_name).addFilter(_WithoutQueries())


@dataclass(frozen=True)
class Place:
    """A dataset repository of the hub at one commit (None: at its newest), and a file in it if one is meant."""

    repo: str
    revision: str | None
    path: str | None = None
    blob_id: str | None = None
    """git's hash of the file, which is all the hub tells of small ones."""

    def __str__(self) -> str:
        at = f"datasets/{self.repo}" + (f" at {self.revision}" if self.revision else "")
        return at if self.path is None else f"{self.path} of {at}"


@dataclass(frozen=True)
class Entry:
    """One file as the hub lists it; sha256 is known of those in large file storage, that is of nearly all data."""

    path: str
    bytes: int
    sha256: str | None
    blob_id: str


class _PassingError(Exception):
    """Asking failed in a way that may pass; ``after`` are the seconds the server asks to wait."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


class _StoppedError(Exception):
    """All work is to end."""


class HubClient:
    """Asks one hub; may be used by several threads at once.

    Args:
        options: Attempts, time-outs, and how to wait.
        stopped: Set when all work is to end.
    """

    def __init__(self, options: FetchOptions, stopped: Event) -> None:
        self._options, self._stopped = options, stopped
        self._endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None

    def newest(self, repo: str) -> str:
        """The commit that a repository is at now (40 hex digits).

        Raises:
            DownloadError: The hub does not tell.
        """
        place = Place(repo, None)
        found = self._patiently(place, lambda: self._api().dataset_info(repo).sha)
        if not re.fullmatch(r"[0-9a-f]{40}", found or ""):
            raise DownloadError("the hub names no commit", where=place, found=str(found)[:80])
        return str(found)

    def entries(self, repo: str, revision: str) -> list[Entry]:
        """All files of a repository at a commit.

        Raises:
            DownloadError: The hub does not tell, or there is no such repository or commit.
        """

        def ask() -> list[Entry]:
            tree = self._api().list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
            return [
                Entry(one.path, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
                for one in tree
                if hasattr(one, "blob_id")
            ]

        return self._patiently(Place(repo, revision), ask)

    def get(self, target: Target, place: Place) -> None:
        """Download one file; it has its final name afterwards, and not before it was hashed.

        Raises:
            DownloadError: It cannot be had, or what came is not the file.
        """
        import huggingface_hub

        folder = target.state(".hub")
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process; nobody vouches for its bytes
        try:
            came = self._patiently(
                place,
                lambda: huggingface_hub.hf_hub_download(
                    place.repo,
                    str(place.path),
                    repo_type="dataset",
                    revision=place.revision,
                    local_dir=folder,
                    endpoint=self._endpoint,
                    etag_timeout=self._options.timeout,
                    tqdm_class=_stopping_bar(self._stopped),
                ),
            )
            target.partial.parent.mkdir(parents=True, exist_ok=True)
            Path(came).replace(target.partial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with PartialFile(target) as partial:
            blob = None if target.file.sha256 or place.blob_id is None else _blob_id(target.partial)
            if partial.wrong() or blob not in (None, place.blob_id):
                found = f"sha256 {partial.sha256}, {partial.size} bytes" + (f", git blob {blob}" if blob else "")
                partial.discard()
                raise failure(
                    target.file,
                    "the hub sent another file than it lists, or a damaged one",
                    expected=f"git blob {place.blob_id}" if blob else None,
                    found=found,
                    fix="run again; if it happens again, a proxy or a mirror of the hub (HF_ENDPOINT) damages files",
                )
            partial.finish()

    def _api(self) -> Any:
        import huggingface_hub

        return huggingface_hub.HfApi(endpoint=self._endpoint)

    def _patiently(self, place: Place, ask: Callable[[], Result]) -> Result:
        """Ask until it works, a few times."""
        jitter = random.Random(derive_seed(os.getpid(), "hub", str(place)))
        pause = self._options.sleep or self._stopped.wait
        failures = 0
        while True:
            try:
                try:
                    return ask()
                except Exception as error:
                    _explain(error, place)
            except _PassingError as problem:
                failures += 1
                if failures >= self._options.attempts:
                    raise DownloadError(
                        f"no success in {failures} attempts: {problem}",
                        where=place,
                        fix=f"try again later, what is finished is kept; or {NOT_THERE.partition(', or ')[2]}",
                    ) from None
                seconds = problem.after
                if seconds is None:
                    seconds = min(LONGEST_PAUSE, 2.0 ** (failures - 1)) * jitter.uniform(0.5, 1.0)
                log.info("%s: %s; again in %.1f s", place, problem, seconds)
            pause(seconds)
            if self._stopped.is_set():
                raise DownloadError("stopped before the file was complete", where=place, fix="run again")


@functools.cache
def _bar_class() -> type:
    from huggingface_hub import utils

    return utils.tqdm  # type: ignore[attr-defined]


def _stopping_bar(stopped: Event) -> Any:
    """A progress bar that ends a download: it is told of every block, and Ctrl-C cannot reach another thread."""

    class Bar(_bar_class()):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise _StoppedError
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


def _blob_id(path: Path) -> str:
    """The name git gives to a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(MIB):
            digest.update(block)
    return digest.hexdigest()


# --- errors -----------------------------------------------------------------------------------------------------------


def _explain(error: Exception, place: Place) -> NoReturn:
    """Raise what an error of the library means.

    Raises:
        _PassingError: It may go better next time.
        DownloadError: It will not.
        OSError: The disk is full, or a file cannot be written.
    """
    from huggingface_hub import errors

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and isinstance(cause, Exception):
        chain.append(cause)
    if isinstance(error, _StoppedError):
        raise DownloadError("stopped before the file was complete", where=place, fix="run again") from None
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain):
        raise DownloadError(
            "huggingface_hub is offline in this process", where=place, fix="unset HF_HUB_OFFLINE, and start again"
        ) from None
    answered = next((one for one in chain if isinstance(one, errors.HfHubHTTPError)), None)
    if answered is not None:
        _of_answer(answered, place)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise error
        raise _PassingError(f"the connection failed ({type(error).__name__})") from None
    if re.search("Consistency check failed|incomplete|complete message body", str(error)):
        raise _PassingError("the body ended before the file was complete") from None
    raise _PassingError(f"the connection failed ({type(chain[-1]).__name__})") from None


def _of_answer(error: Any, place: Place) -> NoReturn:
    """Raise what an answer of the hub means; none of its text is shown."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        what = f"the dataset is gated: its owners want you to accept their terms (the hub answers {status})"
        fix = f"sign in, accept the terms at https://huggingface.co/datasets/{place.repo}, make a token that may read"
        raise DownloadError(what, where=place, fix=f"{fix} at {TOKENS}, and set HF_TOKEN to it") from None
    if isinstance(error, errors.DisabledRepoError):
        raise DownloadError("the hub has disabled the dataset", where=place, fix=NOT_THERE) from None
    if isinstance(error, errors.RevisionNotFoundError):
        raise DownloadError("the dataset has no such revision", where=place, fix=NOT_THERE) from None
    if isinstance(error, errors.EntryNotFoundError):
        raise DownloadError("the dataset has no such file at this revision", where=place, fix=NOT_THERE) from None
    if isinstance(error, errors.RepositoryNotFoundError):
        raise DownloadError(
            f"the hub has no such dataset, or it is private (the hub answers {status})",
            where=place,
            fix="correct `repo` in the manifest; if it is a private one, set HF_TOKEN to a token that may read it",
        ) from None
    if status in (401, 403):
        fix = f"set HF_TOKEN to a token that may read the dataset ({TOKENS}), or unset it"
        raise DownloadError(f"the hub refuses access (it answers {status})", where=place, fix=fix) from None
    if status in WORTH_RETRYING or status >= 500:
        after = retry_after(error.response.headers.get("Retry-After"))
        if after is not None and after > LONGEST_RETRY_AFTER:
            raise DownloadError(
                f"the hub answers {status} and asks to come back in {after:.0f} s", where=place, fix="try again then"
            ) from None
        raise _PassingError(f"the hub answers {status}", after)
    raise DownloadError(f"the hub answers {status}", where=place, fix=NOT_THERE) from None


def nearest_entry(pattern: str, entries: Mapping[str, Entry]) -> str:
    """What to add to the message that nothing matches a pattern."""
    return nearest(pattern, entries) or f"; it has {len(entries)} files"
