"""The workspace: every stage is a function of (name, version, config, inputs) and writes one folder.

A folder is built under a name of its own, completed by ``record.json`` and then renamed, so an artifact is either
whole or absent, whoever else makes it at the same time. Asking again for the same key returns the folder at once, in a
notebook and headless alike.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from boom_utils.errors import BoomError, WorkspaceError

log = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parent.parent
RECORD = "record.json"
CHECKPOINTS = "checkpoints"
"""Folder of a stage from which its next attempt goes on."""
RECORDED_PACKAGES = (
    *("torch", "transformers", "tokenizers", "sentence-transformers", "datasets"),
    *("peft", "safetensors", "mteb", "numba", "numpy", "pandas"),
)


def canonical_json(value: Any) -> str:
    """Serialise ``value`` so that equal values give equal text (sorted keys, no spaces, no NaN)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def derive_seed(root: int, *names: str | int) -> int:
    """A 63-bit seed for one named random stream, independent of every other name.

    Adding a dataset or a member therefore never changes what is drawn for the others.

    Args:
        root: The seed of the whole.
        names: What the stream is for: kind, dataset, epoch.

    Returns:
        A number in [0, 2^63).

    >>> derive_seed(0, "sample", "a") == derive_seed(0, "sample", "a")
    True
    >>> derive_seed(0, "sample", "a") == derive_seed(0, "sample", "b")
    False
    """
    return int(digest_of([root, *names])[:16], 16) >> 1


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system that names no file, such as a full disk while writing, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it is synced and renamed, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, seconds: float, busy: BoomError, waiting: str = "another process is at it") -> Iterator[None]:
    """Hold a lock that the system gives back when this process ends, however it does.

    A file system without such locks (NFS, some container mounts) is worked on without, with one warning: artifacts are
    whole all the same, but two processes may make one at the same time.

    Args:
        path: Of the lock; the file stays.
        seconds: How long to wait for somebody else.
        busy: Raised if that was too short.
        waiting: Logged while somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        with naming(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.log(logging.INFO if seconds else logging.DEBUG, "%s; waiting", waiting)
                lock.acquire(timeout=seconds)
    except Timeout:
        raise busy from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _warn_without_locks(path.parent)
    try:
        yield
    finally:
        lock.release()


@functools.lru_cache
def _warn_without_locks(folder: Path) -> None:
    fix = "run one process at a time, or set BOOM_HOME to a folder on a local disk"
    log.warning("%s: this file system has no locks (flock), so work may be done twice: %s", folder, fix)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, line ends as given, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON; NaN and infinities are refused."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def default_workspace() -> Path:
    """``$BOOM_HOME``, or ``workspace/`` in the project."""
    return Path(os.environ.get("BOOM_HOME") or PROJECT_ROOT / "workspace").expanduser()


def free_disk(folder: Path) -> tuple[int, Path]:
    """Bytes that are free where a folder is or will be, and the part of its path that is there."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free, there


def environment_facts() -> dict[str, Any]:
    """Versions, processor count and commit a number depends on; no host name, user name or absolute path."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "git_commit": _git_commit(),
    }


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_commit() -> str | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def process_alive(pid: Any, seen: float = math.inf) -> bool:
    """Whether a process of that number, begun before the time ``seen`` (s), runs here; False for what is no number."""
    import psutil

    try:
        process = psutil.Process(int(pid))
        # Numbers are used again, soon where each container has its own; clocks differ a little.
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= seen + 2)
    except (psutil.Error, TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Artifact:
    """A finished folder of the workspace and the record that completed it."""

    path: Path
    record: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What the artifact is a function of (hex)."""
        return str(self.record["key"])

    @property
    def digest(self) -> str:
        """sha256 over the names and sha256 of its files (hex)."""
        return str(self.record["digest"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage had to say about its output (counts, warnings, deviations)."""
        return dict(self.record["facts"])


Make = Callable[[Path, Mapping[str, Artifact]], Mapping[str, Any] | None]


@dataclass(frozen=True, eq=False)
class Node:
    """One artifact to be: a stage applied to a config and to other nodes.

    Args:
        stage: Name of the stage; also the folder under the workspace.
        version: Bumped when a change of code changes the stage's numbers.
        label: What people call it, e.g. ``member s40``.
        config: JSON-able description of everything else the output depends on.
        inputs: Nodes whose artifacts the stage reads.
        make: Writes the outputs into the given empty folder; returns facts for the record.
        kept: Names of files and folders, such as checkpoints, that ``make`` finds again after an attempt that failed.
        observations: Outputs that say how it went, not what came out (a log with times): nothing that is made from the
            artifact depends on them, so they are not part of its digest.
        one_of_many: Its beginning and end are not worth a log line of their own.
    """

    stage: str
    version: int
    label: str
    config: Mapping[str, Any]
    make: Make = field(repr=False)
    inputs: Mapping[str, Node] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()
    one_of_many: bool = False

    @property
    def log_level(self) -> int:
        """Of the lines that say how far it is."""
        return logging.DEBUG if self.one_of_many else logging.INFO


class _Attempt:
    """A folder in which one process makes one artifact, under ``made``: no other process writes there.

    Checkpoints of an earlier attempt are taken over by renaming its folder, so one taker gets all of them. An attempt
    that lives on another machine, or seems dead and is not, finds its folder gone and cannot finish.

    Args:
        root: Folder of all attempts.
        name: Of the artifact.
        kept: Names of what is taken over; nothing for most stages.
    """

    def __init__(self, root: Path, name: str, kept: Sequence[str]) -> None:
        self.root, self.name, self.kept = root, name, kept
        self.folder = self._new(f"{platform.node()}-{os.getpid()}")
        self.path = self.folder / _MADE
        root.mkdir(parents=True, exist_ok=True)
        for other in sorted(root.glob(f"{name}.*"), key=self._checkpointed, reverse=True):
            host, pid = other.name.removeprefix(f"{name}.").rsplit("-", 2)[:2]
            changed, here = max(_changed(other), _changed(other / _MADE)), host == platform.node()
            if here and process_alive(pid, changed):
                continue
            if self._checkpointed(other) and not self.folder.exists():
                self._take_over(other)
            elif here or host == _LEFT or time.time() - changed > _A_DAY:
                shutil.rmtree(other, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self._inode = self.folder.stat().st_ino

    def _new(self, owner: str) -> Path:
        return self.root / f"{self.name}.{owner}-{secrets.token_hex(4)}"

    def _checkpointed(self, folder: Path) -> float:
        """When something to go on with was last written; 0 if there is nothing."""
        return max((_changed(folder / _MADE / name) for name in self.kept), default=0)

    def _take_over(self, other: Path) -> None:
        try:
            other.rename(self.folder)
        except FileNotFoundError:
            return  # somebody else was first
        for path in [*self.folder.iterdir(), *self.path.iterdir()]:
            if path.name not in (*self.kept, _MADE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def lost(self) -> bool:
        """Whether another attempt has taken the folder; one that was made again under its name is another folder."""
        return not self.folder.exists() or self.folder.stat().st_ino != self._inode

    def complete(self, record: Mapping[str, Any]) -> None:
        """Write the record; unlike `write_json` this never makes the folder again that somebody took."""
        with (self.path / RECORD).open("x", encoding="utf-8") as handle:
            handle.write(json_text(record))
            handle.flush()
            os.fsync(handle.fileno())

    def end(self, *, keep: bool) -> None:
        """Leave checkpoints to the next attempt; throw all else away."""
        if keep and not self.lost and self._checkpointed(self.folder):
            self.folder.rename(self._new(f"{_LEFT}-0"))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


_MADE, _LEFT, _A_DAY = "made", "left", 24 * 3600.0


def _changed(path: Path) -> float:
    """When a file or folder was last changed (s); 0 if there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


class Workspace:
    """The folder that holds all artifacts, addressed by key.

    Args:
        root: Where it is; `default_workspace()` when None.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root else default_workspace()

    def find(self, node: Node) -> Artifact | None:
        """The finished artifact of ``node``, or None when it or one of its inputs is still to be made."""
        return self._find(node, {})

    def find_all(self, nodes: Mapping[str, Node]) -> dict[str, Artifact]:
        """Those of some nodes that are finished, by name; many ways to one node are gone once."""
        seen: dict[Node, Artifact | None] = {}
        return {name: found for name, node in nodes.items() if (found := self._find(node, seen)) is not None}

    def _find(self, node: Node, seen: dict[Node, Artifact | None]) -> Artifact | None:
        if node not in seen:
            inputs = {name: self._find(child, seen) for name, child in node.inputs.items()}
            ready = {name: artifact for name, artifact in inputs.items() if artifact is not None}
            complete = len(ready) == len(inputs)
            seen[node] = self._read(self._folder(node, self._key(node, ready))) if complete else None
        return seen[node]

    def build(self, node: Node) -> Artifact:
        """The artifact of ``node``, made now if it does not exist yet (inputs first).

        Raises:
            WorkspaceError: Another process has held the same artifact for an hour.
            OSError: The disk is full; it names a file.
        """
        if found := self.find(node):
            log.log(node.log_level, "%s: up to date", node.label)
            return found
        inputs = {name: self.find(child) or self.build(child) for name, child in node.inputs.items()}
        folder = self._folder(node, key := self._key(node, inputs))
        lock = self.root / ".locks" / f"{node.stage}-{folder.name}.lock"
        fix = "stop the other process, then run again"
        busy = WorkspaceError(f"{node.label} has been locked for an hour", where=lock, fix=fix)
        with locked(lock, 3600, busy, f"{node.label}: another process is making it"):
            # Another process may have finished it while this one waited.
            return self._read(folder) or self._make(node, inputs, folder, key)

    def _key(self, node: Node, inputs: Mapping[str, Artifact]) -> str:
        used = {name: [artifact.key, artifact.digest] for name, artifact in inputs.items()}
        return digest_of([node.stage, node.version, node.config, used])

    def _folder(self, node: Node, key: str) -> Path:
        return self.root / node.stage / key[:20]

    def _read(self, folder: Path) -> Artifact | None:
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            sizes = {name: (folder / name).stat().st_size for name in record["outputs"]}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            what, fix = "an artifact's record cannot be read", "delete the folder"
            raise WorkspaceError(what, where=folder / RECORD, found=error, fix=fix) from error
        if wrong := [name for name, size in sizes.items() if size != record["outputs"][name]["size"]]:
            what, fix = "an artifact was changed after it was finished", "delete the folder; it will be made again"
            raise WorkspaceError(what, where=folder, found=f"other size than recorded: {', '.join(wrong)}", fix=fix)
        return Artifact(folder, record)

    def _make(self, node: Node, inputs: Mapping[str, Artifact], folder: Path, key: str) -> Artifact:
        attempt = _Attempt(self.root / ".tmp", f"{node.stage}-{folder.name}", node.kept)
        log.log(node.log_level, "%s: started", node.label)
        began = time.perf_counter()
        try:
            with naming(attempt.path):
                facts = node.make(attempt.path, inputs) or {}
                seconds = round(time.perf_counter() - began, 3)
                if not attempt.lost:
                    attempt.complete(self._record(node, inputs, key, facts, seconds, attempt.path))
                    self._publish(attempt.path, folder)
                    log.log(node.log_level, "%s: done in %.1f s", node.label, seconds)
        except Exception:
            if not attempt.lost:
                raise
            log.debug("%s: its folder was taken", node.label, exc_info=True)
        finally:
            attempt.end(keep=not (folder / RECORD).exists())
        if found := self._read(folder):
            return found
        fix = "let it finish, then run again: what it makes is used"
        raise WorkspaceError(f"another process goes on with {node.label}", where=attempt.path, fix=fix)

    def _publish(self, attempt: Path, folder: Path) -> None:
        """Rename a complete attempt to its place; if another one came first, that one stays."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and self._read(folder) is None:  # a folder without a record, or whose files are gone
            shutil.rmtree(folder)
        try:
            attempt.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _record(
        self, node: Node, inputs: Mapping[str, Artifact], key: str, facts: Mapping[str, Any], seconds: float, out: Path
    ) -> dict[str, Any]:
        files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        outputs = {name: {"sha256": sha256_file(path), "size": path.stat().st_size} for name, path in files.items()}
        return {
            "stage": node.stage,
            "version": node.version,
            "label": node.label,
            "key": key,
            "config": node.config,
            "inputs": {
                name: {"stage": artifact.record["stage"], "key": artifact.key, "sha256": artifact.digest}
                for name, artifact in inputs.items()
            },
            "facts": dict(facts),
            "wall_seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "environment": environment_facts(),
            "outputs": outputs,
            "digest": digest_of({n: facts["sha256"] for n, facts in outputs.items() if n not in node.observations}),
        }
