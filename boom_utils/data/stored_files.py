"""A downloaded file on disk: unfinished under a temporary name, final only once its sha256 has matched.

Beside the files, ``.download/`` holds for each one what was found when it was finished (sha256, size, time of change),
so that a later look is quick. It does not know where the bytes come from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from boom_utils.artifacts import digest_of, sha256_file, write_json
from boom_utils.config import Frozen
from boom_utils.data.remote_files import PARTIAL, LockEntry, RemoteFile, Sha256, describe
from boom_utils.errors import DownloadError, ManifestError

STATE = ".download"
MIB = 2**20
FIX = "try again later; without a way to the server, set BOOM_MIRROR=<folder> to read <folder>/<host>/<path> instead"


class _Finished(Frozen):
    sha256: Sha256
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Target:
    """One file and the folder it is to lie in."""

    file: RemoteFile
    folder: Path

    @property
    def final(self) -> Path:
        """Where the file lies once it is whole and verified."""
        return self.folder / self.file.path

    @property
    def partial(self) -> Path:
        """Where its bytes lie until then."""
        return self.final.with_name(self.final.name + PARTIAL)

    def state(self, suffix: str) -> Path:
        """One of the small files kept about it."""
        return self.folder / STATE / f"{digest_of(str(self.file.path))[:32]}{suffix}"

    def refuse_links(self) -> None:
        """Make sure that nothing between folder and file leads elsewhere.

        Raises:
            ManifestError: The file, its unfinished part or a folder above it is a symbolic link.
        """
        below = [self.folder / parent for parent in self.file.path.parents if parent.name]
        for path in [self.partial, self.final, *below, self.folder / STATE]:
            if path.is_symlink():
                raise ManifestError(
                    "a file to download would be written through a symbolic link",
                    where=path.relative_to(self.folder),
                    fix="replace the link by a folder, or choose another folder to download to",
                )


def failure(
    file: RemoteFile, what: str, *, expected: object = None, found: object = None, fix: str = FIX
) -> DownloadError:
    """An error about one file; its url is one that may be shown."""
    return DownloadError(what, where=file.url, expected=expected or describe(file), found=found, fix=fix)


def disk_full(file: RemoteFile, folder: Path, needed: int | None) -> DownloadError:
    """The error for a disk that became full in the middle of a file."""
    rest = "an unknown number of" if needed is None else f"{needed:,}"
    return failure(
        file,
        "no space left on the disk",
        expected=f"{rest} bytes more for this file",
        found=f"{shutil.disk_usage(folder).free:,} bytes free",
        fix="free some space or download to another disk, then run again: what has come so far is kept",
    )


def is_cached(target: Target, *, verify: bool = False) -> bool:
    """Whether the file is there and is the right one; one that is wrong is never replaced silently.

    Args:
        target: The file.
        verify: Read and hash it, also when size and time of change are those of the finished download.

    Raises:
        DownloadError: There is a file, but another one than the manifest names.
    """
    if not target.final.is_file():
        if target.final.exists():
            raise failure(target.file, "there is a folder in place of a file", fix="delete it, then run again")
        return False
    facts, finished = target.final.stat(), _finished(target)
    unchanged = finished and (finished.bytes, finished.mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    expected = target.file.sha256 or (finished.sha256 if finished else None)
    if expected is None:
        raise failure(
            target.file,
            f"nobody knows whether {target.file.path} is the right file: it was not downloaded here",
            fix="delete the file to download it, or state its sha256 in the manifest",
        )
    found = finished.sha256 if finished and unchanged and not verify else sha256_file(target.final)
    if found != expected or target.file.bytes not in (None, facts.st_size):
        raise failure(
            target.file,
            f"{target.file.path} is not the file the manifest names; it was changed, or it is another version",
            expected=f"sha256 {expected}, {describe(target.file).partition(', ')[2]}",
            found=f"sha256 {found}, {facts.st_size} bytes",
            fix="delete the file to download it again (from BOOM_MIRROR where that is set), or correct the manifest",
        )
    if not unchanged:
        _remember(target, found)
    return True


def stored_facts(target: Target) -> LockEntry:
    """sha256 and size of a finished file, for the lock file.

    Raises:
        DownloadError: It was not downloaded here.
    """
    finished = _finished(target)
    if finished is None or not target.final.is_file():
        raise failure(target.file, "the file has not been downloaded", fix="download it first")
    return LockEntry(sha256=finished.sha256, bytes=finished.bytes)


def _finished(target: Target) -> _Finished | None:
    try:
        return _Finished.model_validate(json.loads(target.state(".json").read_bytes()))
    except (FileNotFoundError, ValueError, ValidationError):
        return None  # damaged notes are as good as none: the file is hashed again


def _remember(target: Target, sha256: str, path: Path | None = None) -> None:
    facts = (path or target.final).stat()
    finished = _Finished(sha256=sha256, bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)
    write_json(target.state(".json"), finished.model_dump())


def write_block(handle: BinaryIO, block: bytes) -> None:
    """Write all of ``block``; an unbuffered file may take it in several pieces."""
    rest = memoryview(block)
    while rest:
        rest = rest[handle.write(rest) :]


class PartialFile:
    """The bytes of a file so far, hashed as they come; what an earlier attempt left is read once and gone on with.

    Args:
        target: The file they will be.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        target.partial.parent.mkdir(parents=True, exist_ok=True)
        # Never through a link somebody put there in the meantime.
        number = os.open(target.partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        self._handle: BinaryIO = os.fdopen(number, "r+b", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0
        self.joined = False
        """Whether the bytes come from more than one answer, so that they may belong to two versions."""
        while block := self._handle.read(MIB):
            self._hash.update(block)
            self.size += len(block)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *unused: object) -> None:
        if not self._handle.closed:
            if os.fstat(self._handle.fileno()).st_size == 0:
                self.target.partial.unlink(missing_ok=True)  # nothing to go on with
            self._handle.close()

    @property
    def sha256(self) -> str:
        """sha256 (hex) of the bytes so far."""
        return self._hash.hexdigest()

    @property
    def etag(self) -> str | None:
        """The strong validator of the answer these bytes began with, if it had one."""
        try:
            return self.target.state(".etag").read_text(encoding="utf-8") or None
        except FileNotFoundError:
            return None

    def resumable(self) -> bool:
        """Whether more bytes may be put after these: the result can be checked, or the server vouches for it."""
        return self.size > 0 and (self.target.file.sha256 is not None or self.etag is not None)

    def complete(self) -> bool:
        """Whether the bytes are the whole file and no server need be asked."""
        return self.target.file.sha256 == self.sha256 and self.target.file.bytes in (None, self.size)

    def restart(self, etag: str | None = None) -> None:
        """Forget all bytes.

        Args:
            etag: Validator of the answer that comes now.
        """
        self._handle.seek(0)
        self._handle.truncate()
        self._hash, self.size, self.joined = hashlib.sha256(), 0, False
        path = self.target.state(".etag")
        path.unlink(missing_ok=True)
        if etag is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(etag, encoding="utf-8")

    def store(self, blocks: Iterable[bytes], limit: int) -> Iterator[int]:
        """Append blocks; yields the size whenever another MiB is on the disk, so that progress can be shown.

        Args:
            blocks: Any number of them, of any length.
            limit: Bytes the file may have in all.

        Raises:
            DownloadError: The disk is full, and what is written stays; or there are more bytes, and nothing stays: the
                first ones were not those of the file either.
        """
        shown = self.size // MIB
        for block in blocks:
            if self.size + len(block) > limit:
                self.discard()
                raise failure(
                    self.target.file,
                    "the body is longer than the file; the transfer was cut off",
                    found=f"more than {limit} bytes",
                )
            try:
                write_block(self._handle, block)
            except OSError as error:
                raise self._explained(error) from error
            self._hash.update(block)
            self.size += len(block)
            if self.size // MIB > shown:
                shown = self.size // MIB
                yield self.size

    def finish(self) -> None:
        """Give the file its final name: all bytes are on the disk first, and were compared by the caller.

        Raises:
            DownloadError: The disk is full.
        """
        try:
            os.fsync(self._handle.fileno())
            # Before the renaming: a final name without a note would look like a file somebody put there.
            _remember(self.target, self.sha256, self.target.partial)
        except OSError as error:
            raise self._explained(error) from error
        self._handle.close()
        self.target.partial.replace(self.target.final)
        folder = os.open(self.target.final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.target.state(".etag").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove bytes that no later attempt can use."""
        self.restart()
        self.target.partial.unlink(missing_ok=True)

    def wrong(self) -> bool:
        """Whether the bytes, all of them having come, are not the file the manifest names."""
        file = self.target.file
        return file.sha256 not in (None, self.sha256) or file.bytes not in (None, self.size)

    def _explained(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        size = self.target.file.bytes
        return disk_full(self.target.file, self.target.folder, None if size is None else size - self.size)
