"""Files on the web, pinned by url, sha256 and size: where each lies below a folder, and what is known of it.

A url is refused unless it is a plain https address whose path is a safe path on every system. Facts that a manifest
does not state come from a lock file, which is filled at the first download. Opens no connection.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from boom_utils.artifacts import write_json
from boom_utils.config import Frozen
from boom_utils.errors import ManifestError, bullet_list
from boom_utils.yaml_files import parse

LOOPBACK = "127.0.0.1"
PARTIAL = ".partial"
LONGEST_NAME = 200
"""Bytes; file systems allow 255, and the name of a temporary file is longer than the final one."""
LONGEST_PATH = 1000
"""Bytes of host and path together."""

HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")
URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")
"""Printable ASCII but blank and backslash."""
RESERVED_CHARACTERS = re.compile(r'[\x00-\x1f\x7f<>:"|?*%/\\]')
"""No file name on some system, or (the per cent sign) encoded twice."""
RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices of Windows, with any extension."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RemoteFile(Frozen):
    """One file to download; facts that are not known yet are None, never guessed.

    Validation refuses a server on this machine unless the context says ``{"loopback": True}``, which a manifest cannot.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused url may hold a password

    url: str
    sha256: Sha256 | None = None
    bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _url_is_safe(self, info: ValidationInfo) -> RemoteFile:
        # A validator of the field alone would have the url printed with the problem.
        if problem := url_problem(self.url, loopback=bool(info.context and info.context.get("loopback"))):
            raise ValueError(f"{redacted(self.url)} {problem}")
        return self

    @property
    def path(self) -> PurePosixPath:
        """Where it lies below a folder or a mirror: ``<host>/<path>``."""
        return relative_path(self.url)


class LockEntry(Frozen):
    """What was found at the first download of one file."""

    sha256: Sha256
    bytes: int = Field(ge=0)
    rows: int | None = Field(default=None, ge=0)


class _LockFile(Frozen):
    files: dict[str, LockEntry]


def redacted(url: str) -> str:
    """``url`` as it may be shown: no user, password, query or fragment."""
    return re.sub(r"^.*@", "…@", re.split(r"[?#]", url, maxsplit=1)[0], flags=re.DOTALL)[:300]


def url_problem(url: str, *, loopback: bool = False) -> str | None:
    """What is wrong with a url, in words that go on after it, or None.

    Args:
        url: As a manifest states it.
        loopback: Also accept ``http://127.0.0.1:<port>``; for a test server.
    """
    if not URL_CHARACTERS.fullmatch(url):
        return "holds a blank, a backslash, or a character that is not printable ASCII"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "is no url"
    local = loopback and parts.scheme == "http" and host == LOOPBACK
    if "@" in parts.netloc:
        return "holds a user name or password; credentials do not belong in a manifest"
    if "?" in url or "#" in url:
        return "has a query or a fragment; it may hold a token, and it is no part of a file's name"
    if parts.scheme != "https" and not local:
        return "is not https"
    if not HOST.fullmatch(host) or len(host) > 253 or RESERVED_NAMES.fullmatch(host):
        return "names no proper host"
    if port is not None and not local:
        return "names a port"
    return _path_problem(parts.path, len(host))


def _path_problem(path: str, host_length: int) -> str | None:
    segments = path.split("/")[1:]
    if not segments:
        return "names no file"
    if host_length + len(unquote_to_bytes(path)) > LONGEST_PATH:
        return f"is longer than {LONGEST_PATH} bytes"
    return next((problem for segment in segments if (problem := _segment_problem(segment))), None)


def _segment_problem(segment: str) -> str | None:
    raw = unquote_to_bytes(segment)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8 once decoded"
    if name in ("", ".", ".."):
        return f"has the path segment '{name}'"
    if RESERVED_CHARACTERS.search(name) or unicodedata.normalize("NFC", name) != name or not name.isprintable():
        return "has a character in its path that is not safe in a file name (or is encoded twice)"
    if name != name.rstrip(". ") or RESERVED_NAMES.fullmatch(name):
        return "has a path segment that is no file name on some systems"
    if name.lower().endswith(PARTIAL):
        return f"ends in {PARTIAL}, the name of unfinished downloads"
    return f"has a path segment longer than {LONGEST_NAME} bytes" if len(raw) > LONGEST_NAME else None


def relative_path(url: str) -> PurePosixPath:
    """``<host>/<path>`` of a url, per cent signs decoded.

    Raises:
        ManifestError: The url is not safe.
    """
    if problem := url_problem(url, loopback=True):
        raise ManifestError(f"a url {problem}", where=redacted(url), fix="correct the url in the manifest")
    parts = urlsplit(url)
    return PurePosixPath(str(parts.hostname), *unquote_to_bytes(parts.path).decode("utf-8").split("/")[1:])


def check_files(files: Iterable[RemoteFile], *, loopback: bool = False) -> list[RemoteFile]:
    """The files, each once; all that is wrong with them is reported together.

    Args:
        files: As a manifest names them. One that serves several datasets may be there several times.
        loopback: Also accept a test server on this machine.

    Raises:
        ManifestError: A url is not safe, facts of one url differ, or two files would lie at the same place, also on a
            file system that does not tell upper from lower case.
    """
    unique, problems = {file.url: file for file in files}, []
    for file in files:
        if problem := url_problem(file.url, loopback=loopback):
            problems.append(f"{redacted(file.url)} {problem}")
        elif file != unique[file.url]:
            problems.append(f"{file.url} is named twice with different sha256 or bytes")
    if not problems:
        problems = _colliding(unique.values())
    if problems:
        raise ManifestError(
            f"{len(problems)} problem(s) with the files to download",
            found=bullet_list(problems),
            fix="correct the urls in the manifest",
        )
    return list(unique.values())


def _colliding(files: Iterable[RemoteFile]) -> list[str]:
    urls: dict[str, str] = {}
    problems = []
    for file in files:
        place = str(file.path).casefold()
        if place in urls:
            problems.append(f"{file.url} would lie at the place of {urls[place]}")
        urls[place] = file.url
    folders = {str(parent): url for place, url in urls.items() for parent in PurePosixPath(place).parents}
    return problems + [
        f"{url} is a file, and a folder of {folders[place]}" for place, url in urls.items() if place in folders
    ]


# --- lock file --------------------------------------------------------------------------------------------------------


def read_lock(path: Path) -> dict[str, LockEntry]:
    """What earlier downloads found, by url; empty when there is no lock file yet.

    Raises:
        ManifestError: The file is not a lock file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ManifestError(
            "a lock file cannot be read", where=path.name, found=error, fix="restore it; nothing else knows its facts"
        ) from error
    return dict(parse(_LockFile, raw, path.name, ManifestError).files)


def write_lock(path: Path, entries: Mapping[str, LockEntry]) -> None:
    """Add entries to a lock file, atomically; what is there stays, unknown row counts are filled in.

    Args:
        path: The lock file; made when it is not there.
        entries: By url.

    Raises:
        ManifestError: An entry contradicts the one that is there, or its url is not safe.
    """
    known, problems = read_lock(path), []
    for url, entry in entries.items():
        there = known.get(url, entry)
        facts = {**there.model_dump(), **{k: v for k, v in entry.model_dump().items() if v is not None}}
        if problem := url_problem(url, loopback=True):
            problems.append(f"{redacted(url)} {problem}")
        elif any(value not in (None, facts[key]) for key, value in there.model_dump().items()):
            problems.append(f"{url}: {_facts(there)} in the file, {_facts(entry)} to be written")
        known[url] = LockEntry(**facts)
    if problems:
        raise _contradiction(path.name, problems)
    files = {url: known[url].model_dump(exclude_none=True) for url in sorted(known)}
    write_json(path, {"files": files})


def complete(files: Iterable[RemoteFile], lock: Mapping[str, LockEntry]) -> list[RemoteFile]:
    """The files with unknown facts filled in from a lock file.

    Args:
        files: As the manifest names them.
        lock: Entries by url.

    Raises:
        ManifestError: Manifest and lock contradict each other; all such files are named.
    """
    known, problems = [], []
    for file in files:
        entry = lock.get(file.url)
        if entry is None:
            known.append(file)
        elif file.sha256 not in (None, entry.sha256) or file.bytes not in (None, entry.bytes):
            problems.append(f"{file.url}: {_facts(file)} in the manifest, {_facts(entry)} in the lock file")
        else:
            known.append(file.model_copy(update={"sha256": entry.sha256, "bytes": entry.bytes}))
    if problems:
        raise _contradiction("manifest and lock file", problems)
    return known


def _contradiction(where: str, problems: list[str]) -> ManifestError:
    return ManifestError(
        f"{len(problems)} contradiction(s) with the lock file",
        where=where,
        found=bullet_list(problems),
        fix="find out which is right; if the file was meant to change, take its old entry out of the lock file",
    )


def _facts(known: RemoteFile | LockEntry) -> str:
    rows = f", {known.rows} rows" if isinstance(known, LockEntry) and known.rows is not None else ""
    return f"sha256 {known.sha256 or 'unknown'}, {known.bytes if known.bytes is not None else 'unknown'} bytes{rows}"


def describe(file: RemoteFile) -> str:
    """The facts a file is pinned by, in words."""
    return _facts(file)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
