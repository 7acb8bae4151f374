"""From any file of results or of a workspace back to the data: what it was made from, stage by stage.

A workspace says it in its records. The results of a study keep it in study.json (``lineage``) and, of scores, in their
table, so that it is known where no workspace is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from boom_utils.artifacts import RECORD, sha256_file
from boom_utils.errors import ConfigError, ResultsError, WorkspaceError, nearest
from boom_utils.reporting.results import read_json_object, read_numbers, run_name

KEY_LETTERS = 20
"""Of a key, as in the name of its folder in the workspace."""
_SHOWN = 3
_LETTERS = 12
Sources = dict[str, dict[str, Any]]
"""Key (20 hex digits) -> an artifact that something was made from: ``stage``, which is also the folder under the
workspace; ``label``; ``sha256`` over its files; ``inputs`` (role -> key of what it was made from); of examples
``corpus``, what they were made of: one entry a file (``file``, ``sha256``, ``bytes``, ``dataset``) or installed
distribution (``distribution``, ``version``)."""


def trace_text(path: Path, *, whole: bool = False) -> str:
    """The way back from a file to the data, as text.

    Args:
        path: A file below a results folder, a file or folder of a workspace.
        whole: Name every artifact and file, instead of a few of each kind.

    Raises:
        ConfigError: There is no such file, or nothing is known of it.
        ResultsError: The results do not say where they come from.
        WorkspaceError: Artifacts it was made from are gone.
    """
    path = path.absolute()
    if not path.exists():
        near = nearest(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
        fix = "name a file of a report, such as results/smoke/figures/model_means.svg, or a folder of the workspace"
        raise ConfigError(f"there is no such file{near}", where=path, fix=fix)
    for folder in (path, *path.parents):
        name = path.relative_to(folder).as_posix()
        if record := _read_record(folder):
            sources = sources_of(folder.parent.parent, [record])
            if record["stage"] != "examples":
                del sources[record["key"][:KEY_LETTERS]]
            return "\n".join([*_of_artifact(folder, name, record), *_steps(sources, whole)])
        if (folder / "study.json").is_file():
            digest = f" (sha256 {sha256_file(path)[:_LETTERS]})" if path.is_file() else ""
            first = f"{name}{digest}, of the results in {folder.name}"
            return "\n".join([first, *_steps(_kept_sources(folder), whole)])
    raise ConfigError(
        "nothing says where this file comes from",
        where=path,
        expected="a file below results/<profile>/, or one of a folder of the workspace that has a record.json",
    )


def sources_of(root: Path, records: Iterable[Mapping[str, Any]]) -> Sources:
    """Some artifacts of a workspace, by their records, and everything they were made from; each record is read once.

    Raises:
        WorkspaceError: An input's folder is gone.
    """
    found: Sources = {}
    waiting = {record["key"][:KEY_LETTERS]: record for record in records}
    while waiting:
        key = next(iter(waiting))
        record = waiting.pop(key)
        inputs = {role: made["key"][:KEY_LETTERS] for role, made in record["inputs"].items()}
        found[key] = {"stage": record["stage"], "label": record["label"], "sha256": record["digest"], "inputs": inputs}
        found[key]["corpus"] = corpus_entries(record["config"]) if record["stage"] == "examples" else []
        for made, place in zip(record["inputs"].values(), inputs.values(), strict=True):
            if place not in found and place not in waiting:
                folder = root / made["stage"] / place
                if (parent := _read_record(folder)) is None:
                    what = f"what {record['label']} was made from is gone"
                    raise WorkspaceError(what, where=folder, fix="run the study again")
                waiting[place] = parent
    return found


def lineage_of(root: Path, records: Iterable[Mapping[str, Any]]) -> Sources:
    """What study.json keeps of some artifacts and everything behind them; of scores their table says as much."""
    kept = {key: one for key, one in sources_of(root, records).items() if one["stage"] != "scores"}
    return {key: {name: value for name, value in facts.items() if value} for key, facts in kept.items()}


def corpus_entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What examples were made of, from the config of their stage: files, or installed distributions."""
    entries: list[dict[str, Any]] = []
    found, datasets = config.get("found", {}), config.get("datasets", {})
    for name, facts in datasets.items():
        place = facts.get("origin") or facts.get("hub") or {}
        for stated in place.get("files", ()):
            file = dict(stated) if isinstance(stated, Mapping) else {"path": stated}
            inside = f"{place.get('repo')}@{place.get('revision') or 'not chosen'}/{file.get('path')}"
            known = {key: file[key] for key in ("sha256", "bytes") if file.get(key) is not None}
            entries.append({"file": file.get("url") or inside, **known, "dataset": name})
        entries += [{"file": file, "sha256": sha, "dataset": name} for file, sha in found.get(name, {}).items()]
    python = {"python": found["python"]} if isinstance(found.get("python"), str) else {}
    versions = {**found.get("distributions", {}), **python}
    return entries + [{"distribution": name, "version": version} for name, version in versions.items()]


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an artifact's folder; None for a folder that is none."""
    record = read_json_object(folder / RECORD) if (folder / RECORD).is_file() else {}
    return record if {"stage", "key", "inputs", "outputs", "digest"} <= {*record} else None


def _of_artifact(folder: Path, name: str, record: Mapping[str, Any]) -> list[str]:
    """Of a folder of the workspace, or a file in it, and whether its files are as they were recorded."""
    outputs = record["outputs"]
    lines = [] if name == "." else [f"{name}, {'' if name in outputs else f'not in {RECORD}, '}of"]
    lines.append(f"{record['label']} ({record['stage']}/{folder.name}, made {record['finished']})")
    for file in outputs if name == "." else outputs.keys() & {name}:
        now = sha256_file(folder / file)[:_LETTERS] if (folder / file).is_file() else None
        if now != (wanted := outputs[file]["sha256"][:_LETTERS]):
            lines.append(f"WARNING: {file} " + (f"CHANGED: sha256 {now}, was {wanted}" if now else "IS GONE"))
    return lines


def _kept_sources(folder: Path) -> Sources:
    """What a results folder keeps of the artifacts it comes from."""
    kept: Any = read_json_object(folder / "study.json").get("lineage")
    try:
        found = {key: {"inputs": {}, "corpus": [], **facts} for key, facts in kept.items()}
    except (AttributeError, TypeError) as error:
        what, fix = "these results do not say what they were made from", "run the study again"
        raise ResultsError(what, where=folder / "study.json", found=error, fix=fix) from error
    scores = read_numbers(folder).scores
    for row in scores.to_dict("records") if "made_from" in scores else ():
        label = f"scores of {run_name(row['model'], row['seed'])} on {row['task']}"
        models = row["made_from"].split()  # an ensemble has several
        inputs = {f"model {number}" if len(models) > 1 else "model": key for number, key in enumerate(models, 1)}
        facts = {"label": label, "sha256": row["sha256"], "inputs": inputs, "corpus": []}
        found[row["key"]] = {"stage": "scores", **facts}
    return found


def _steps(sources: Sources, whole: bool) -> Iterator[str]:
    """Artifacts by stage, what was made last first, down to the corpus."""
    graph = {key: one["inputs"].values() for key, one in sources.items()}
    order = reversed([*TopologicalSorter(graph).static_order()])
    for stage in dict.fromkeys(sources[key]["stage"] for key in order):
        found = {key: one for key, one in sources.items() if one["stage"] == stage}
        lines = [f"{one['label']} ({key}, sha256 {one['sha256'][:_LETTERS]})" for key, one in found.items()]
        yield f"  <- {stage}: {len(lines)} artifact{'s' if len(lines) > 1 else ''}"
        yield from _few(lines, whole)
        for entries in (one["corpus"] for one in found.values() if one["corpus"]):
            yield f"  <- what they were made of: {len(entries)} files or installed distributions"
            yield from _few([" ".join(map(str, entry.values())) for entry in entries], whole)


def _few(lines: list[str], whole: bool) -> Iterator[str]:
    shown = lines if whole else lines[:_SHOWN]
    yield from (f"       {line}" for line in shown)
    if len(lines) > len(shown):
        yield f"       and {len(lines) - len(shown)} more (--all)"
