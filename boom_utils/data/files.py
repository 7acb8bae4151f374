"""Where bytes come from: files by https (pooch), files of the Hugging Face hub (huggingface_hub), or a mirror of both.

The libraries fetch, resume and keep; ours is that the sha256 of every file is compared before a row of it is read, and
a lock file beside the downloads that keeps what the first download of a hub dataset found and no manifest states.
``BOOM_MIRROR=<folder>`` has ``<folder>/<host>/<path>`` read instead of the network, files of the hub too. ``HF_HOME``,
``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to the hub's library. No text of a server and
no address with a query gets into an error or a log: it may hold a signature.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from pydantic import ConfigDict, Field, model_validator

from boom_utils.artifacts import default_workspace, sha256_file, write_json
from boom_utils.config import Frozen
from boom_utils.errors import BoomError, ConfigError, DownloadError, ManifestError, bullet_list
from boom_utils.progress import progress
from boom_utils.yaml_files import parse

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
MEGABYTE = 10**6
MOST_SHOWN = 5
"""Most files that an error names."""
TOKENS = "https://huggingface.co/settings/tokens"
RETRIES = 3
LATER = "try again later, what is finished is kept; without a way to the server, "
MIRROR = "set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_URL = re.compile(r"https://([a-z0-9][a-z0-9.-]{0,250}(?:/[^/\\?#@\s\x00-\x1f\x7f-\U0010ffff]+)+)")
_RESERVED = re.compile(r'[\x00-\x1f\x7f<>:"|?*%/\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE)
"""In no file name on some system, or (the per cent sign) encoded twice."""


# --- what is asked for ------------------------------------------------------------------------------------------------


class RemoteFile(Frozen):
    """One file on the web, pinned by url, sha256 and size."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused url may hold a password

    url: str
    sha256: Sha256
    bytes: int = Field(ge=0)

    @model_validator(mode="after")
    def _url_is_safe(self) -> RemoteFile:
        if problem := url_problem(self.url):
            shown = re.sub(r"^.*@", "…@", re.split(r"[?#]", self.url, maxsplit=1)[0], flags=re.DOTALL)[:300]
            raise ValueError(f"{shown} {problem}")
        return self

    @property
    def path(self) -> PurePosixPath:
        """Where it lies below a folder or a mirror: ``<host>/<path>``, per cent signs decoded."""
        return PurePosixPath(unquote_to_bytes(self.url.partition("://")[2]).decode())


class HubFile(Frozen):
    """One file of a hub repository, or a pattern (``*``, ``?``, ``[…]``) for several; None: nobody has stated it."""

    path: str = Field(pattern=r"^[^/\\\s][^\\\s]*$", max_length=300)
    sha256: Sha256 | None = None
    bytes: int | None = Field(default=None, gt=0)
    rows: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_below_the_root(self) -> HubFile:
        if ".." in PurePosixPath(self.path).parts:
            raise ValueError(f"{self.path} leaves the repository")
        if re.search(r"[*?\[]", self.path):
            if self.sha256 or self.bytes or self.rows:
                raise ValueError(f"{self.path} is a pattern: sha256, bytes and rows belong to one file")
        elif problem := url_problem(f"{HUB}/{self.path}"):
            raise ValueError(f"{self.path} {problem}")
        return self


class Locked(Frozen):
    """What the first download of one hub file found."""

    sha256: Sha256
    bytes: int = Field(ge=0)
    rows: int | None = Field(default=None, ge=0)


class LockFile(Frozen):
    """What the first download of a hub dataset found: its commit, and every file."""

    revision: str
    files: dict[str, Locked]


@dataclass(frozen=True)
class HubSet:
    """Files of one dataset repository of the hub.

    Args:
        repo: ``owner/name``.
        revision: Commit; None takes the newest one, which the lock file then keeps.
        files: Files and patterns.
        lock: The lock file.
    """

    repo: str
    revision: str | None
    files: Sequence[HubFile]
    lock: Path

    def __str__(self) -> str:
        return f"datasets/{self.repo}" + (f" at {self.revision}" if self.revision else "")


def mirror() -> Path | None:
    """``$BOOM_MIRROR``, or None.

    Raises:
        ConfigError: There is no such folder.
    """
    if not (name := os.environ.get("BOOM_MIRROR")):
        return None
    if not (folder := Path(name).expanduser()).is_dir():
        fix = "correct it, or unset it to download from the network"
        raise ConfigError("BOOM_MIRROR is no folder", where=folder, fix=fix)
    return folder


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set, in the spellings huggingface_hub heeds; a mirror is no network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def downloads_folder(workspace: Path | None = None) -> Path:
    """Where https files of all corpora lie, each at ``<host>/<path>``, and the lock files of the hub's."""
    return (workspace or default_workspace()) / "downloads"


def url_problem(url: str) -> str | None:
    """What is wrong with a url, in words that go on after it, or None: plain https, and a safe path on every system."""
    if (found := _URL.fullmatch(url)) is None:
        return "is no plain https address of a file (no user, port, query, fragment, blank, backslash or non-ASCII)"
    try:
        names = [unquote_to_bytes(segment).decode() for segment in found[1].split("/")]
    except UnicodeDecodeError:
        return "is not UTF-8 once decoded"
    if len(url) > 1000 or any(len(name.encode()) > 200 for name in names):
        return "is too long: 1000 bytes, or 200 a path segment, at most"
    for name in names:
        if not name.isprintable() or _RESERVED.search(name) or unicodedata.normalize("NFC", name) != name:
            return f"has a part that is no safe file name on every system: {name!r}"
    return None


def _absent(names: Sequence[str], what: str, where: object = None) -> DownloadError:
    fix = "run `boom data fetch` where there is a network, or " + MIRROR
    return DownloadError(what, where=where, found=bullet_list(names, MOST_SHOWN), fix=fix)


def _no_space(needed: int | None, folder: Path) -> DownloadError:
    return DownloadError(
        "no space left on the disk",
        where=folder,
        expected=None if needed is None else f"{needed:,} bytes free",
        found=f"{shutil.disk_usage(folder).free:,} bytes free",
        fix="free some space, or set BOOM_HOME (for files of the hub: HF_HOME) to another disk; then run again",
    )


def _check_space(needed: int, folder: Path) -> None:
    if needed > shutil.disk_usage(folder).free:
        raise _no_space(needed, folder)


def _kind(error: BaseException) -> str:
    """An error without its text, which may hold an address with a signature."""
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return f"the server answers {status}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return type(error).__name__


# --- https ------------------------------------------------------------------------------------------------------------


def fetch(files: Iterable[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Make sure that files are in a folder, each at ``<folder>/<host>/<path>`` and hashed.

    Args:
        files: What to fetch.
        folder: Where to; made when it is not there.

    Returns:
        Those that were not there before.

    Raises:
        ManifestError: A file would be written through a link out of the folder.
        DownloadError: Files cannot be had, or are not those the manifest names.
        ConfigError: The mirror is no folder.
    """
    files, source = list({file.url: file for file in files}.values()), mirror()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not _is_there(file, folder)]
    absent = [str(file.path) for file in missing if source and not (source / file.path).is_file()]
    if absent or (missing and offline() and source is None):
        what = (
            f"{len(absent)} of {len(missing)} files are not in the mirror"
            if source
            else "offline, and files are missing"
        )
        raise _absent(absent or [file.url for file in missing], what, source)
    _check_space(sum(file.bytes for file in missing), folder)
    for file in missing:  # pooch makes folders too, but not from several threads at once
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(8, thread_name_prefix="download") as pool:
        tasks = [pool.submit(_download, file, folder, source) for file in missing]
        try:
            for task in progress(tasks, len(tasks), "download files"):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return missing


def _is_there(file: RemoteFile, folder: Path) -> bool:
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()):
        fix = "replace the link by a folder, or choose another folder to download to"
        raise ManifestError("a file to download would be written through a symbolic link", where=file.path, fix=fix)
    if path.exists() and (found := sha256_file(path)) != file.sha256:
        raise DownloadError(
            f"{file.path} is not the file the manifest names; it was changed, or it is another version",
            where=file.url,
            expected=f"sha256 {file.sha256}, {file.bytes} bytes",
            found=f"sha256 {found}, {path.stat().st_size} bytes",
            fix="delete the file to download it again (from BOOM_MIRROR where that is set), or correct the manifest",
        )
    return path.exists()


def _download(file: RemoteFile, folder: Path, source: Path | None) -> None:
    """One file under a temporary name, hashed, then under its own; pooch tries again where it came wrong."""
    import pooch

    def copy(url: str, output_file: Any, pooch: Any) -> None:
        shutil.copyfile(Path(str(source)) / file.path, output_file)

    pooch.get_logger().setLevel(logging.ERROR)
    get: Any = pooch.HTTPDownloader(timeout=30, chunk_size=2**18) if source is None else copy
    name, expected = str(file.path), f"sha256 {file.sha256}, {file.bytes} bytes"
    tries = RETRIES if source is None else 0
    try:
        store = pooch.create(folder, "", registry={name: file.sha256}, urls={name: file.url}, retry_if_failed=tries)
        store.fetch(name, downloader=get)
    except ValueError as error:
        got = re.search(r"got[^0-9a-f]*([0-9a-f]{64})", str(error))
        where, found = f"{file.url}{' in BOOM_MIRROR' if source else ''}", f"sha256 {got[1]}" if got else "another file"
        fix = f"if it was changed at its source, correct the manifest; else {LATER}{MIRROR}"
        raise DownloadError(
            "not the file the manifest names", where=where, expected=expected, found=found, fix=fix
        ) from None
    except OSError as error:  # those of requests are of this kind
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(file.bytes, folder) from error
        found, fix = _kind(error), LATER + MIRROR
        raise DownloadError("a file cannot be had", where=file.url, expected=expected, found=found, fix=fix) from None


# --- the hub ----------------------------------------------------------------------------------------------------------


class _WithoutQueries(logging.Filter):
    """The library logs addresses it was redirected to; their queries may be signatures."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]+", "", record.getMessage()), ()
        return True


for _name in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
    logging.getLogger(_name).addFilter(_WithoutQueries())


@contextmanager
def hub_errors(where: object) -> Iterator[None]:
    """What huggingface_hub raises, as the kit's errors.

    Raises:
        ConfigError: There is no such repository, revision or file, or access needs a token.
        DownloadError: The hub cannot be reached or must not be asked, or the disk is full.
    """
    from huggingface_hub import constants, errors

    token = f"set HF_TOKEN to a token that may read it ({TOKENS})"
    known: list[tuple[Any, str, str]] = [
        (errors.GatedRepoError, "it is gated", f"accept its terms on its page at the hub, then {token}"),
        (errors.RevisionNotFoundError, "the hub has no such revision", "correct the revision"),
        (errors.RemoteEntryNotFoundError, "the repository has no such file", "correct the path"),
        (errors.RepositoryNotFoundError, "the hub has no such repository, or it is private", f"correct it, or {token}"),
        (errors.HFValidationError, "that is no name of a repository", "write owner/name"),
    ]
    try:
        yield
    except (BoomError, KeyboardInterrupt):
        raise
    except Exception as error:
        causes = (error, error.__cause__, error.__context__)
        for kind, what, fix in known:
            if any(isinstance(cause, kind) for cause in causes):
                raise ConfigError(what, where=where, fix=fix) from None
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(None, Path(constants.HF_HUB_CACHE)) from error
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            missing = re.search(r"file\(s\) are missing \((.*?)\)\. ", str(error))
            why = ", and HF_HUB_OFFLINE forbids to fetch it" if offline() else ", and the hub does not give it"
            raise DownloadError(
                "it is not, or not whole, in the hub's cache on this machine" + why,
                where=where,
                found=f"missing: {missing[1]}" if missing else None,
                fix="allow the network, set HF_ENDPOINT, or set HF_HOME to a cache that has it",
            ) from None
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "huggingface_hub")):
            raise
        fix = f"check the network, HF_ENDPOINT and proxies; {LATER}set HF_HOME to a cache that has it"
        raise DownloadError("the hub does not give it", where=where, found=_kind(error), fix=fix) from None


def hub_snapshot(
    repo: str,
    patterns: Sequence[str],
    revision: str | None = None,
    kind: Literal["dataset", "model"] = "dataset",
    ignore: Sequence[str] = (),
    cached: bool = False,
) -> Path:
    """The folder of a repository at one commit, with all files that match; its name is the commit.

    Args:
        repo: ``owner/name``.
        patterns: Files and patterns of files to have there.
        revision: Commit, branch or tag; None takes the newest commit.
        kind: Kind of repository; a mirror has datasets only.
        ignore: Patterns of files to leave out.
        cached: Ask nobody: what is on this machine, or an error.

    Raises:
        ConfigError, DownloadError: As `hub_errors`; or what came is not what the hub lists, twice.
    """
    where = f"{kind}s/{repo}" + (f" at {revision}" if revision else "")
    if kind == "dataset" and (folder := mirror()) is not None:
        above = folder / HUB.partition("://")[2] / "datasets" / repo / "resolve"
        there = sorted(path.name for path in above.glob("*") if path.is_dir() and revision in (None, path.name))
        if len(there) != 1:
            raise _absent(there, f"the mirror has {len(there)} revisions of {where}, one is needed", above)
        return above / there[0]
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    asked: dict[str, Any] = {"repo_id": repo, "repo_type": kind, "revision": revision}
    asked |= {
        "allow_patterns": list(patterns),
        "ignore_patterns": list(ignore),
        "local_files_only": cached or offline(),
    }
    asked |= {"endpoint": os.environ.get("HF_ENDPOINT") or None}
    with hub_errors(where):
        if not (cached or offline()):
            cache.mkdir(parents=True, exist_ok=True)
            coming = [one for one in snapshot_download(**asked, dry_run=True) if one.will_download]
            _check_space(sum(one.file_size or 0 for one in coming), cache)
        for _ in range(2):
            root = Path(snapshot_download(**asked))
            files = (
                path for path in root.rglob("*") if any(fnmatchcase(str(path.relative_to(root)), p) for p in patterns)
            )
            if not (damaged := [path for path in files if not _is_its_blob(path)]):
                return root
            for path in damaged:  # the cache names a file by its content: it is no file of the user's
                path.resolve().unlink()
                path.unlink()
    names = [str(path.relative_to(root)) for path in damaged]
    fix = "run again; if it happens again, a proxy or a mirror of the hub (HF_ENDPOINT) damages files"
    raise DownloadError("the hub sent damaged files", where=where, found=bullet_list(names, MOST_SHOWN), fix=fix)


def _is_its_blob(path: Path) -> bool:
    """Whether a cached file is what its name in the cache says: sha256 of its content, or git's hash of small files."""
    name = path.resolve().name
    if not path.is_file() or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name):
        return True
    if len(name) == 64:
        return sha256_file(path) == name
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == name


def fetch_hub(asked: HubSet, count: Callable[[Path], int]) -> dict[str, Path]:
    """Make sure that the files of a hub set are on this machine and hashed; the first time, write its lock file.

    Args:
        asked: The set.
        count: Rows of a file.

    Returns:
        Path in the repository -> file.

    Raises:
        DownloadError, ConfigError: As `hub_snapshot`; or a file is not the one that manifest or lock file state.
        ManifestError: Manifest and lock file contradict each other.
    """
    lock = read_lock(asked)
    stated = {one.path: one for one in asked.files} if lock is None else lock.files
    root = hub_snapshot(asked.repo, list(stated), asked.revision if lock is None else lock.revision)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    chosen = {name: root / name for name in names if any(fnmatchcase(name, pattern) for pattern in stated)}
    problems = [f"no file is {one}" for one in stated if not any(fnmatchcase(name, one) for name in names)]
    found = {}
    for name, path in progress(chosen.items(), len(chosen), f"verify {asked.repo}"):
        facts: dict[str, Any] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        found[name] = Locked(**facts, rows=count(path) if lock is None else lock.files[name].rows)
        problems += _differences(name, stated.get(name), found[name])
    if problems:
        fix = "delete wrong files there and run again, or correct the manifest"
        raise DownloadError(f"files of {asked} are not those stated", where=root, found=bullet_list(problems), fix=fix)
    if lock is None:
        asked.lock.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.lock, LockFile(revision=root.name, files=found).model_dump(exclude_none=True))
    return chosen


def _differences(name: str, stated: HubFile | Locked | None, found: Locked) -> list[str]:
    facts = {} if stated is None else stated.model_dump(exclude={"path"}, exclude_none=True)
    wrong = {fact: value for fact, value in facts.items() if value != getattr(found, fact)}
    return [f"{name}: {fact} {getattr(found, fact)}, stated is {value}" for fact, value in wrong.items()]


def read_lock(asked: HubSet) -> LockFile | None:
    """What the first download found, or None where there was none.

    Raises:
        ManifestError: The file is not a lock file, or contradicts the manifest.
    """
    try:
        raw = json.loads(asked.lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        fix = "restore it, or delete it to have its facts found anew"
        raise ManifestError("a lock file cannot be read", where=asked.lock.name, found=error, fix=fix) from error
    lock = parse(LockFile, raw, asked.lock.name, ManifestError)
    problems = [] if asked.revision in (None, lock.revision) else [f"revision {lock.revision}, not {asked.revision}"]
    problems += [
        text
        for one in asked.files
        if one.path in lock.files
        for text in _differences(one.path, one, lock.files[one.path])
    ]
    if problems:
        fix = "correct the manifest; delete the lock file only where its facts are known to be wrong"
        raise ManifestError(
            "manifest and lock file differ", where=asked.lock.name, found=bullet_list(problems), fix=fix
        )
    return lock


def hub_paths(asked: HubSet) -> dict[str, Path]:
    """Path in the repository -> file on this machine, as the lock file names them; asks nobody.

    Raises:
        DownloadError: The set was never fetched, or files are missing.
    """
    from huggingface_hub import constants

    if (lock := read_lock(asked)) is None:
        raise _absent([str(asked)], "a dataset of the hub was never fetched")
    root = Path(constants.HF_HUB_CACHE, f"datasets--{asked.repo.replace('/', '--')}", "snapshots", lock.revision)
    if mirror() is not None:
        root = hub_snapshot(asked.repo, [], lock.revision)
    if absent := [name for name in lock.files if not (root / name).is_file()]:
        raise _absent(absent, f"{len(absent)} of {len(lock.files)} files of {asked} are missing", root)
    return {name: root / name for name in lock.files}
