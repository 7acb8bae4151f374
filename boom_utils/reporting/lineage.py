"""What results come from: the artifacts behind them, down to the files or versions the corpus was made of.

A workspace says it in its records. Results keep it in ``lineage.json``, so that it is known where no workspace is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boom_utils.artifacts import RECORD, write_json
from boom_utils.errors import ResultsError, WorkspaceError

LINEAGE = "lineage.json"
KEY_LETTERS = 20
"""Of a key, as in the name of its folder in the workspace."""


@dataclass(frozen=True)
class Source:
    """One artifact something was made from.

    Args:
        stage: Its stage; also the folder under the workspace.
        label: What people call it.
        sha256: Digest over its files, see `boom_utils.artifacts.Artifact.digest`.
        inputs: Role -> key of what it was made from.
        corpus: Of examples: what they were made of, one entry a file (``file``, ``sha256``, ``bytes``, ``dataset``) or
            installed distribution (``distribution``, ``version``).
    """

    stage: str
    label: str
    sha256: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    corpus: tuple[Mapping[str, Any], ...] = ()


Sources = dict[str, Source]
"""Key (20 hex digits) -> the artifact."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an artifact's folder; None for a folder that is none.

    Raises:
        WorkspaceError: There is a record, but it cannot be read.
    """
    try:
        record = dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise WorkspaceError("an artifact's record cannot be read", where=folder / RECORD, found=error) from error
    return record if {"stage", "key", "inputs", "outputs", "digest"} <= set(record) else None


def workspace_sources(root: Path, records: Iterable[Mapping[str, Any]]) -> Sources:
    """Some artifacts of a workspace, by their records, and everything they were made from.

    Args:
        root: The workspace.
        records: Records of the artifacts to begin with.

    Raises:
        WorkspaceError: An input's folder is gone.
    """
    found: Sources = {}
    waiting = list(records)
    while waiting:
        record = waiting.pop()
        if (key := record["key"][:KEY_LETTERS]) in found:
            continue
        inputs = {role: (made["stage"], made["key"][:KEY_LETTERS]) for role, made in record["inputs"].items()}
        found[key] = Source(
            record["stage"],
            record["label"],
            record["digest"],
            {role: made for role, (_, made) in inputs.items()},
            tuple(corpus_entries(record["config"])) if record["stage"] == "examples" else (),
        )
        for stage, made in sorted(set(inputs.values()) - {(found[one].stage, one) for one in found}):
            folder = root / stage / made
            if (parent := read_record(folder)) is None:
                raise WorkspaceError(
                    f"what {record['label']} was made from is gone", where=folder, fix="run the study again"
                )
            waiting.append(parent)
    return found


def corpus_entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What examples were made of, from the config of their stage: files, or installed distributions."""
    entries: list[dict[str, Any]] = []
    for name, facts in config.get("datasets", {}).items():
        place = facts.get("origin") or facts.get("hub") or {}
        for stated in place.get("files", ()):
            file = dict(stated) if isinstance(stated, Mapping) else {"path": stated}
            inside = f"{place.get('repo')}@{place.get('revision') or 'not chosen'}/{file.get('path')}"
            known = {key: file[key] for key in ("sha256", "bytes") if file.get(key) is not None}
            entries.append({"file": file.get("url") or inside, **known, "dataset": name})
    found = config.get("found", {})
    for name, version in {**found.get("distributions", {}), **_python(found)}.items():
        entries.append({"distribution": name, "version": version})
    for name, files in found.items():
        if name in config.get("datasets", {}):
            entries += [{"file": file, "sha256": digest, "dataset": name} for file, digest in files.items()]
    return entries


def _python(found: Mapping[str, Any]) -> dict[str, str]:
    return {"python": found["python"]} if isinstance(found.get("python"), str) else {}


def write_lineage(path: Path, sources: Sources) -> None:
    """Write sources as JSON, in the order of their keys; what is empty is left out."""
    rows = {
        key: {name: value for name, value in asdict(source).items() if value} for key, source in sorted(sources.items())
    }
    write_json(path, rows)


def read_lineage(folder: Path) -> Sources:
    """The sources that a results folder keeps.

    Raises:
        ResultsError: It keeps none, or the file is malformed.
    """
    path = folder / LINEAGE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {key: Source(**{**facts, "corpus": tuple(facts.get("corpus", ()))}) for key, facts in rows.items()}
    except FileNotFoundError:
        raise ResultsError(
            "these results do not say what they were made from",
            where=path,
            fix="run the study again: it gathers its results anew",
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ResultsError("this is no lineage", where=path, found=error, fix="run the study again") from error


def behind(sources: Sources, keys: Iterable[str]) -> Sources:
    """Those of the sources that some were made from, with these; keys that are not known are left out."""
    found: Sources = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in sources and key not in found:
            found[key] = sources[key]
            waiting += sources[key].inputs.values()
    return found
