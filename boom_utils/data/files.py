"""Where bytes come from: files by https (pooch), files of the Hugging Face hub (huggingface_hub), or a mirror of both.

The libraries fetch, resume and keep; ours is that the sha256 of every file is compared before a row of it is read, and
a lock file beside the downloads that keeps what the first download of a hub dataset found and no manifest states.
``BOOM_MIRROR=<folder>`` has ``<folder>/<host>/<path>`` read instead of the network, files of the hub too. ``HF_HOME``,
``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to the hub's library. No text of a server and
no address with a query gets into an error or a log: it may hold a signature.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from boom_utils.artifacts import default_workspace, sha256_file, write_json
from boom_utils.errors import BoomError, ConfigError, DownloadError, ManifestError, UnreachableError, bullet_list
from boom_utils.progress import progress
from boom_utils.yaml_files import Frozen

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
MEGABYTE = 10**6
TOKENS = "https://huggingface.co/settings/tokens"
RETRIES, TIMEOUTS = 3, (5, 30)
"""How often a file is tried again, and seconds until a server has to answer, and to go on."""
LATER = "try again later, what is finished is kept"
MIRROR = "set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead"
NETWORK = f"look at the network and at proxies (HTTPS_PROXY), then run again, what is finished is kept; or {MIRROR}"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_PART = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:[./]|$))[A-Za-z0-9._~&()+=,-]{1,200}(?<!\.)"
"""A part of a path that is a safe file name on every system."""
_URL = re.compile(rf"https://[a-z0-9][a-z0-9.-]{{0,250}}(?:/{_PART})+")
_BELOW = re.compile(r"^(?!(?:.*/)?\.\.(?:/|$))[^/\\\s][^\\\s]*$")
"""A path that does not leave its folder, or a pattern of such paths."""


# --- what is asked for ------------------------------------------------------------------------------------------------


class RemoteFile(Frozen):
    """One file on the web, pinned by url, sha256 and size."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused url may hold a password

    url: str = Field(max_length=1000)
    sha256: Sha256
    bytes: int = Field(ge=0)

    def problems(self) -> Iterator[str]:
        """An address that is no safe path."""
        if not _URL.fullmatch(self.url):
            names = "names that are safe on every system: letters, digits and ._~&()+=,-, at most 200 of them"
            yield f"url is no plain https address of a file: a host (no user, no port), then {names}"

    @property
    def path(self) -> PurePosixPath:
        """Where it lies below a folder or a mirror: ``<host>/<path>``."""
        return PurePosixPath(self.url.removeprefix("https://"))


class HubFile(Frozen):
    """One file of a hub repository, or a pattern (``*``, ``?``, ``[…]``) for several; None: nobody has stated it."""

    path: str = Field(pattern=_BELOW, max_length=300)
    sha256: Sha256 | None = None


class LockFile(Frozen):
    """What the first download of a hub dataset found: its commit, and the sha256 of every file."""

    revision: str
    files: dict[str, Sha256]


@dataclass(frozen=True)
class HubSet:
    """Files of one dataset repository of the hub.

    Args:
        repo: ``owner/name``.
        revision: Commit; None takes the newest one, which the lock file then keeps.
        files: Files and patterns.
        lock: The lock file; other ones for another revision or other files.
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


def _absent(names: Sequence[str], what: str, where: object = None) -> DownloadError:
    fix = "run `boom data fetch` where there is a network, or " + MIRROR
    return DownloadError(what, where=where, found=bullet_list(names), fix=fix)


def _check_space(needed: int, folder: Path) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        fix = "free some space, or set BOOM_HOME (for files of the hub: HF_HOME) to another disk; then run again"
        parts = {"expected": f"{needed:,} bytes free", "found": f"{free:,} bytes free"}
        raise DownloadError("no space left on the disk", where=folder, **parts, fix=fix)


def _kind(error: BaseException) -> str:
    """An error without its text, which may hold an address with a signature."""
    if status := _status(error):
        return f"the server answers {status}"
    parts = (error.strerror, error.filename) if isinstance(error, OSError) else ()
    return ": ".join(str(part) for part in parts if part) or type(error).__name__


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


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
        UnreachableError: A server cannot be reached; no other file is then tried.
        DownloadError: Files cannot be had, or are not those the manifest names; all others are there.
        ConfigError: The mirror is no folder.
    """
    source = mirror()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in {file.url: file for file in files}.values() if not _is_there(file, folder)]
    if source and (absent := [str(file.path) for file in missing if not (source / file.path).is_file()]):
        raise _absent(absent, f"{len(absent)} of {len(missing)} files are not in the mirror", source)
    if missing and offline() and source is None:
        raise _absent([file.url for file in missing], "offline, and files are missing")
    _check_space(sum(file.bytes for file in missing), folder)
    for parent in {(folder / file.path).parent for file in missing}:  # pooch's own way fails in several threads at once
        parent.mkdir(parents=True, exist_ok=True)
    failed = list[DownloadError]()
    with ThreadPoolExecutor(8, thread_name_prefix="download") as pool:
        tried = as_completed([pool.submit(_download, file, folder, source) for file in missing])

        def came() -> Iterator[object]:
            for one in tried:
                if isinstance(error := one.exception(), DownloadError) and not isinstance(error, UnreachableError):
                    failed.append(error)
                else:
                    yield one.result()

        try:
            list(progress(came(), len(missing), "download files"))
        finally:
            pool.shutdown(cancel_futures=True)
    if failed[1:]:
        what = f"{len(failed)} of {len(missing)} files cannot be had, the others are there"
        found = bullet_list(sorted(f"{one.parts['where']}: {one.parts['found']}" for one in failed))
        raise DownloadError(what, found=found, fix=f"{LATER}, or {MIRROR}")
    for error in failed:
        raise error
    return missing


def _is_there(file: RemoteFile, folder: Path) -> bool:
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()):
        fix = "replace the link by a folder, or choose another folder to download to"
        raise ManifestError("a file to download would be written through a symbolic link", where=file.path, fix=fix)
    if path.exists() and (found := sha256_file(path)) != file.sha256:
        fix = "delete the file to download it again (from BOOM_MIRROR where that is set), or correct the manifest"
        raise _another(file, f"sha256 {found}; {path} was changed, or is another version", fix)
    return path.exists()


def _another(file: RemoteFile, found: str, fix: str) -> DownloadError:
    expected = f"sha256 {file.sha256}, {file.bytes} bytes"
    return DownloadError("not the file the manifest names", where=file.url, expected=expected, found=found, fix=fix)


def _download(file: RemoteFile, folder: Path, source: Path | None) -> None:
    """One file under a temporary name, hashed, then under its own; pooch tries again where it came wrong."""
    import pooch

    def copy(url: str, output_file: Any, pooch: Any) -> None:
        shutil.copyfile(Path(str(source)) / file.path, output_file)

    pooch.get_logger().setLevel(logging.ERROR)
    name, tries = str(file.path), RETRIES if source is None else 0
    get: Any = pooch.HTTPDownloader(timeout=TIMEOUTS, chunk_size=2**18) if source is None else copy
    try:
        store = pooch.create(folder, "", registry={name: file.sha256}, urls={name: file.url}, retry_if_failed=tries)
        store.fetch(name, downloader=get)
    except ValueError as error:
        digest = re.sub(r"(?s).* but got ([0-9a-f]{64}).*|.*", r"\1", str(error), count=1)
        fix = f"if it was changed at its source, correct the manifest; else {LATER}, or {MIRROR}"
        raise _another(file, f"sha256 {digest}{' in BOOM_MIRROR' if source else ''}", fix) from None
    except OSError as error:  # those of requests are of this kind
        _check_space(file.bytes, folder)
        if reason := getattr(error.args[0] if error.args else None, "reason", None):  # of urllib3: no connection
            host, said = file.path.parts[0], re.search(r"\[Errno -?\d+\] [^'\")]+", str(reason))
            found = said[0] if said else type(reason).__name__
            raise UnreachableError("the server cannot be reached", where=host, found=found, fix=NETWORK) from None
        found, fix = f"{_kind(error)}, instead of sha256 {file.sha256}", f"{LATER}, or {MIRROR}"
        raise DownloadError("a file cannot be had", where=file.url, found=found, fix=fix) from None


# --- the hub ----------------------------------------------------------------------------------------------------------


class _WithoutQueries(logging.Filter):
    """The library logs addresses it was redirected to; their queries may be signatures."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]+", "", record.getMessage()), ()
        return True


for _name in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
    logging.getLogger(_name).addFilter(_WithoutQueries())


@contextmanager
def hub_errors(where: object, kind: type[BoomError] | None = None) -> Iterator[None]:
    """What huggingface_hub raises, as the kit's errors; of one kind, where that is given.

    Raises:
        ConfigError: There is no such repository, revision or file, or access needs a token.
        DownloadError: The hub cannot be reached or must not be asked, or files cannot be written.
    """
    import httpx
    from huggingface_hub import errors

    token = f"set HF_TOKEN to a token that may do this ({TOKENS})"
    nothing = "the hub has no such repository, or does not show it to this token"
    known: list[tuple[Any, tuple[int, ...], str, str]] = [
        (errors.GatedRepoError, (), "it is gated", f"accept its terms on its page at the hub, then {token}"),
        (errors.RevisionNotFoundError, (), "the hub has no such revision", "correct the revision"),
        (errors.RemoteEntryNotFoundError, (), "the repository has no such file", "correct the path"),
        (errors.RepositoryNotFoundError, (401, 404), nothing, f"correct its name, or {token}"),
        ((), (403,), "the hub does not let this token do this", token),
        ((), (409, 412), "the repository was changed meanwhile", "look at what is there, then start again"),
        (errors.HFValidationError, (), "that is no name of a repository", "write owner/name"),
    ]
    try:
        yield
    except BoomError:
        raise
    except Exception as error:
        causes = (error, error.__cause__, error.__context__)
        for cause in causes:
            for class_, statuses, what, fix in known:
                if isinstance(cause, class_) or _status(cause) in statuses:
                    raise (kind or ConfigError)(what, where=where, fix=fix) from None
        # `datasets` hides the library's error behind one of its own.
        if any(isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for cause in causes):
            missing = re.search(r"file\(s\) are missing \((.*?)\)\. ", str(error))
            what = "it is not, or not whole, in the hub's cache on this machine, and "
            lost = isinstance(error.__cause__, httpx.TransportError)
            refused = "cannot be reached" if lost else "does not give it"
            what += "HF_HUB_OFFLINE forbids to fetch it" if offline() else f"the hub {refused}"
            fix = "look at the network and at proxies, set HF_ENDPOINT, or set HF_HOME to a cache that has it"
            found = f"missing: {missing[1]}" if missing else error.__cause__ and _kind(error.__cause__)
            raise (UnreachableError if lost else DownloadError)(what, where=where, found=found, fix=fix) from None
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "huggingface_hub")):
            raise
        fix = f"check what was found: the disk (HF_HOME), the network, HF_ENDPOINT or proxies; {LATER}"
        raise (kind or DownloadError)("the hub cannot be used now", where=where, found=_kind(error), fix=fix) from None


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
        cached: Ask nobody and hash nothing: what is on this machine, or an error.

    Raises:
        ConfigError, DownloadError: As `hub_errors`; or what came is not what the hub lists, twice.
    """
    where = f"{kind}s/{repo}" + (f" at {revision}" if revision else "")
    if kind == "dataset" and (folder := mirror()) is not None:
        above = folder / HUB.partition("://")[2] / "datasets" / repo / "resolve"
        there = sorted(path.name for path in above.glob(revision or "*") if path.is_dir())
        if len(there) != 1:
            raise _absent(there, f"the mirror has {len(there)} revisions of {where}, one is needed", above)
        return above / there[0]
    from huggingface_hub import snapshot_download

    asked: dict[str, Any] = {"repo_id": repo, "repo_type": kind, "revision": revision}
    asked |= {"allow_patterns": list(patterns), "ignore_patterns": list(ignore)}
    asked |= {"local_files_only": cached or offline(), "endpoint": os.environ.get("HF_ENDPOINT") or None}
    with hub_errors(where):
        for _ in range(2):
            root = Path(snapshot_download(**asked))
            damaged = [] if cached else [one for one in _matching(root, patterns) if not _is_its_blob(root / one)]
            if not damaged:
                return root
            for name in damaged:  # the cache names a file by its content: it is no file of the user's
                (root / name).resolve().unlink()
                (root / name).unlink()
    fix = "run again; if it happens again, a proxy or a mirror of the hub (HF_ENDPOINT) damages files"
    raise DownloadError("the hub sent damaged files", where=where, found=bullet_list(damaged), fix=fix)


def _matching(root: Path, patterns: Sequence[str]) -> list[str]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _is_its_blob(path: Path) -> bool:
    """Whether a cached file is what its name in the cache says: sha256 of its content, or git's hash of small files."""
    from huggingface_hub.utils.sha import git_hash

    name = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name):
        return sha256_file(path) == name
    return not re.fullmatch("[0-9a-f]{40}", name) or git_hash(path.read_bytes()) == name


def fetch_hub(asked: HubSet) -> dict[str, Path]:
    """Make sure that the files of a hub set are on this machine and hashed; the first time, write its lock file.

    Returns:
        Path in the repository -> file.

    Raises:
        DownloadError, ConfigError: As `hub_snapshot`; or a file is not the one that manifest or lock file state.
        ManifestError: The lock file cannot be read.
    """
    lock = read_lock(asked)
    stated = asked.files if lock is None else [HubFile(path=name, sha256=one) for name, one in lock.files.items()]
    patterns = [one.path for one in stated]
    root = hub_snapshot(asked.repo, patterns, asked.revision if lock is None else lock.revision)
    names = _matching(root, patterns)
    found = {name: sha256_file(root / name) for name in progress(names, len(names), f"verify {asked.repo}")}
    problems = []
    for one in stated:
        matching = _matching(root, [one.path])
        problems += [] if matching else [f"no file is {one.path}"]
        wrong = [name for name in matching if one.sha256 not in (None, found[name])]
        problems += [f"{name}: sha256 {found[name]}, stated is {one.sha256}" for name in wrong]
    if problems:
        fix = "delete wrong files there and run again, or correct the manifest"
        raise DownloadError(f"files of {asked} are not those stated", where=root, found=bullet_list(problems), fix=fix)
    if lock is None:
        asked.lock.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.lock, {"revision": root.name, "files": found})
    return {name: root / name for name in names}


def read_lock(asked: HubSet) -> LockFile | None:
    """What the first download found, or None where there was none.

    Raises:
        ManifestError: The file is not a lock file.
    """
    if not asked.lock.is_file():
        return None
    try:
        return LockFile.model_validate_json(asked.lock.read_bytes())
    except ValueError as error:
        fix = "restore it, or delete it: the next download writes it again"
        raise ManifestError("a lock file cannot be read", where=asked.lock.name, found=error, fix=fix) from error


def hub_paths(asked: HubSet) -> dict[str, Path]:
    """Path in the repository -> file on this machine, as the lock file names them; asks nobody.

    Raises:
        DownloadError: The set was never fetched, or files are missing.
    """
    if (lock := read_lock(asked)) is None:
        raise _absent([str(asked)], "a dataset of the hub was never fetched")
    root = hub_snapshot(asked.repo, list(lock.files), lock.revision, cached=True)
    return {name: root / name for name in lock.files}
