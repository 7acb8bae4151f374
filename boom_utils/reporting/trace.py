"""From any file of a report, of results or of a workspace back to the data: what it was made from, step by step."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boom_utils.artifacts import RECORD, default_workspace, sha256_file
from boom_utils.errors import ConfigError, WorkspaceError, nearest
from boom_utils.reporting.lineage import (
    KEY_LETTERS,
    LINEAGE,
    Source,
    Sources,
    behind,
    read_lineage,
    read_record,
    workspace_sources,
)
from boom_utils.reporting.provenance import PROVENANCE, parts_of, result_files, results_digest
from boom_utils.reporting.results import read_json_object

_NAMES = {
    "scores": "scores",
    "geometry": "geometry of task vectors",
    "interaction": "interaction of datasets",
    "losses": "held-out losses",
    "merge": "merged models",
    "member": "members",
    "plan": "batch plans",
    "subset": "subsets",
    "tokens": "token tables",
    "base": "base model",
    "random": "random initialisation",
    "examples": "examples",
}
"""Stage -> what its artifacts are called together."""
_LABEL = re.compile(r"(?:member|merge|subset|batch plan of|held-out losses of|scores of) (.+)")
_SCORES = re.compile(r"scores of (.+) on (.+)")
_SHOWN = 8
_LETTERS = 12


@dataclass(frozen=True)
class Found:
    """What is known of a file.

    Args:
        lines: What the file is, one line a step from it to the results.
        keys: Of the artifacts it was made from.
        sources: These and everything behind them.
        known_from: Where that is known from.
        warnings: What is no longer as it was recorded.
        besides: Other files that are in it.
    """

    lines: Sequence[str]
    keys: Sequence[str]
    sources: Sources
    known_from: str
    warnings: Sequence[str] = ()
    besides: Sequence[str] = ()


def trace_text(path: Path, *, whole: bool = False, workspace: Path | None = None) -> str:
    """The way back from a file to the data, as text.

    Args:
        path: A file below a results folder, a file or folder of a workspace.
        whole: Name every artifact and file, instead of a few of each kind.
        workspace: Where records are looked for; `default_workspace()` when None.

    Raises:
        ConfigError: There is no such file, or nothing is known of it.
        ResultsError: The results do not say where they come from.
        WorkspaceError: Artifacts it was made from are gone.
    """
    if not path.exists():
        near = nearest(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"there is no such file{near}", where=path)
    folders = [path, *path.absolute().parents] if path.is_dir() else [*path.absolute().parents]
    for folder in folders:
        if record := read_record(folder):
            found = _of_artifact(path, folder, record)
            break
        if (folder / "study.json").is_file():
            found = _of_results(path, folder, workspace or default_workspace())
            break
    else:
        raise ConfigError(
            "nothing says where this file comes from",
            where=path,
            expected="a file below results/<profile>/, or one of a folder of the workspace that has a record.json",
        )
    return "\n".join(_tree(found, whole))


def _of_artifact(path: Path, folder: Path, record: Mapping[str, Any]) -> Found:
    """Of a folder of the workspace, or a file in it."""
    root, key = folder.parent.parent, record["key"][:KEY_LETTERS]
    label = f"{record['label']} ({record['stage']}/{key}, made {record['finished']})"
    name = path.absolute().relative_to(folder.absolute()).as_posix()
    warnings: list[str] = []
    if name == ".":
        lines = [label]
        warnings += [text for inside in record["outputs"] if (text := _changed(folder, inside, record["outputs"]))]
    else:
        state = "the record itself" if name == RECORD else _state(folder, name, record["outputs"], RECORD)
        lines = [f"{name}: {state}", f"of {label}"]
    sources = workspace_sources(root, [record])
    keys = _drawn_from(root, folder, name, record) or list(sources[key].inputs.values())
    if record["stage"] == "examples":
        keys = [key]
    return Found(lines, keys, sources, f"the records of the workspace {root}", warnings)


def _drawn_from(root: Path, folder: Path, name: str, record: Mapping[str, Any]) -> list[str]:
    """Keys of what one file of the report stage was drawn from; nothing for other stages."""
    if record["stage"] != "report" or not (folder / PROVENANCE).is_file():
        return []
    made = record["inputs"]["results"]
    results = read_record(root / made["stage"] / made["key"][:KEY_LETTERS])
    entry = read_json_object(folder / PROVENANCE)["report"].get(name)
    if results is None or entry is None:
        return []
    return _keys(parts_of(entry), {role: one["key"] for role, one in results["inputs"].items()})


def _of_results(path: Path, folder: Path, workspace: Path) -> Found:
    """Of a file of a results folder: by the workspace's records if these results are there, else by what they keep."""
    name = path.absolute().relative_to(folder.absolute()).as_posix()
    kept = read_json_object(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    known, report = kept.get("results", {}).get("files", {}), kept.get("report", {})
    profile = read_json_object(folder / "study.json").get("profile", folder.name)
    if name in report:
        lines = [f"{name}: {_state(folder, name, report, PROVENANCE)}", f"of the report of profile {profile}"]
        parts = parts_of(report[name])
    elif name in known or name in result_files(folder):
        recorded = {file: {"sha256": digest} for file, digest in known.items()}
        lines, parts = [f"{name}: {_state(folder, name, recorded, PROVENANCE)}"], [_part_of(name)]
    else:
        what = "a folder" if path.is_dir() else "not a file of these results"
        raise ConfigError(f"{name} is {what}", where=folder, fix="name one of its files, or a folder of the workspace")
    now = result_files(folder)
    warnings = [f"changed since the report was drawn: {file}" for file in known if now.get(file) != known[file]]
    stored, record = kept.get("results", {}).get("sha256"), None
    if stored is not None:
        record = _results_record(workspace, stored)
    lines.append(f"of the results of profile {profile} (sha256 {(stored or results_digest(now))[:_LETTERS]})")
    sources = None if record is None else _still_there(workspace, record)
    if record is not None and sources is not None:
        roles, known_from = (
            {role: made["key"] for role, made in record["inputs"].items()},
            f"the records of {workspace}",
        )
    else:
        stated = read_json_object(folder / "study.json").get("sources", {})
        roles = {role: key for role, (_, key) in stated.items()}
        sources, known_from = read_lineage(folder), f"{folder / LINEAGE}; no workspace has the records"
    published = kept.get("published", {})
    besides = [
        f"published/{file}, sha256 {published[file][:_LETTERS]}" for file in report.get(name, {}).get("published", ())
    ]
    keys = _keys(parts, roles)
    if not keys and not besides:  # study.json holds the profile, and facts of members and plans
        besides = ["study.json, nothing else of the results"]
        made = (
            [] if name.startswith("deviations") else [role for role in roles if role.startswith(("member/", "plan/"))]
        )
        keys = [roles[role][:KEY_LETTERS] for role in made]
    return Found(lines, keys, sources, known_from, warnings, besides)


def _results_record(workspace: Path, digest: str) -> dict[str, Any] | None:
    """The record of the results in a workspace that have this digest."""
    for folder in sorted((workspace / "results").glob("*")):
        record = read_record(folder)
        if record is not None and record["digest"] == digest:
            return record
    return None


def _still_there(workspace: Path, record: Mapping[str, Any]) -> Sources | None:
    """Everything behind some results in a workspace; None when parts of it were deleted."""
    try:
        return workspace_sources(workspace, [record])
    except WorkspaceError:
        return None


def _part_of(name: str) -> str:
    """The part of the results that a file belongs to."""
    pieces = name.split("/")
    return "/".join(pieces[:-1]) if pieces[0] in ("scores", "training") else name


def _keys(parts: Iterable[str], roles: Mapping[str, str]) -> list[str]:
    """Keys of the artifacts that parts of the results were gathered from; of all where a part is of all."""
    found: dict[str, None] = {}
    for part in parts:
        kind, _, rest = part.partition("/")
        if kind == "training":
            wanted = ["base" if rest == "base" else f"member/{rest}"]
        elif kind == "corpus":
            wanted = ["examples"]
        elif part in ("study.json", "lineage.json"):
            wanted = [*roles]
        else:
            wanted = [part.removesuffix(".json")]
        found |= {roles[role][:KEY_LETTERS]: None for role in wanted if role in roles}
    return list(found)


def _state(folder: Path, name: str, recorded: Mapping[str, Mapping[str, Any]], where: str) -> str:
    """Whether a file is as recorded."""
    if name not in recorded:
        return f"not in {where}: it was added later, or is no output"
    if text := _changed(folder, name, recorded):
        return text
    return f"sha256 {recorded[name]['sha256'][:_LETTERS]}, as in {where}"


def _changed(folder: Path, name: str, recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with a file; nothing if it is as recorded."""
    path, wanted = folder / name, recorded[name]["sha256"]
    if not path.is_file():
        return f"{name} IS GONE"
    found = sha256_file(path)
    return "" if found == wanted else f"{name} CHANGED: sha256 {found[:_LETTERS]}, recorded {wanted[:_LETTERS]}"


def _tree(found: Found, whole: bool) -> list[str]:
    """Lines, each step one indentation further in: the file, the results, then artifacts by stage, then the corpus."""
    lines = [f"{'  ' * depth}{'<- ' if depth else ''}{text}" for depth, text in enumerate(found.lines)]
    first = len(lines)
    used = behind(found.sources, found.keys)
    lines += [f"{'  ' * first}<- {text}" for text in found.besides]
    depths = _depths(used, found.keys)
    groups: dict[str, list[str]] = defaultdict(list)
    for key in used:
        groups[used[key].stage].append(key)
    level = {stage: max(depths[key] for key in keys) for stage, keys in groups.items()}
    steps = {depth: place for place, depth in enumerate(sorted(set(level.values())))}
    for stage in sorted(groups, key=lambda name: (level[name], [*_NAMES].index(name) if name in _NAMES else 99, name)):
        indent = "  " * (first + steps[level[stage]])
        members = {key: used[key] for key in sorted(groups[stage], key=lambda key: _natural(used[key].label))}
        lines.append(f"{indent}<- {_group(stage, members, whole)}")
        if whole:
            lines += [
                f"{indent}     {one.label}: {key}, sha256 {one.sha256[:_LETTERS]}" for key, one in members.items()
            ]
        for one in members.values():
            lines += [f"{indent}  <- {text}" for text in _corpus(one.corpus, whole)]
    lines.append(f"known from {found.known_from}")
    return lines + [f"WARNING: {text}" for text in found.warnings]


def _depths(used: Sources, keys: Iterable[str]) -> dict[str, int]:
    """Steps from the file to each artifact, the longest way."""
    depths = dict.fromkeys((key for key in keys if key in used), 0)
    waiting = list(depths)
    while waiting:
        key = waiting.pop()
        for made in used[key].inputs.values():
            if made in used and depths.get(made, -1) < depths[key] + 1:
                depths[made] = depths[key] + 1
                waiting.append(made)
    return depths


def _group(stage: str, members: Mapping[str, Source], whole: bool) -> str:
    """Artifacts of one stage in a line."""
    if len(members) == 1:
        key, only = next(iter(members.items()))
        return f"{only.label} ({key}, sha256 {only.sha256[:_LETTERS]})"
    name = _NAMES.get(stage, stage)
    pairs = [match.groups() for one in members.values() if (match := _SCORES.fullmatch(one.label))]
    if stage == "scores" and len(pairs) == len(members):
        models, tasks = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
        complete = "" if len(members) == len(models) * len(tasks) else f", {len(members)} in all"
        counts = f"{_count(len(models), 'model')} on {_count(len(tasks), 'task')}{complete}"
        return f"{name} of {counts}: {_few(models, whole)} on {_few(tasks, whole)}"
    names = [match[1] if (match := _LABEL.fullmatch(one.label)) else one.label for one in members.values()]
    return f"{len(members)} {name}: {_few(list(dict.fromkeys(names)), whole)}"


def _corpus(entries: Sequence[Mapping[str, Any]], whole: bool) -> list[str]:
    """What examples were made of: a line a file, or a few in one line."""
    files = [entry for entry in entries if "file" in entry]
    versions = [f"{entry['distribution']} {entry['version']}" for entry in entries if "distribution" in entry]
    lines = [f"installed distributions: {', '.join(versions)}"] if versions else []
    if files:
        datasets = {entry.get("dataset") for entry in files}
        lines.append(f"{_count(len(files), 'file')} of {_count(len(datasets), 'dataset')} of the manifest")
        shown = files if whole else files[:3]
        lines += [f"  {entry['file']} sha256 {entry.get('sha256') or 'not stated'}" for entry in shown]
        lines += [f"  and {len(files) - len(shown)} more (--all)"] if len(files) > len(shown) else []
    return lines


def _few(names: Sequence[str], whole: bool) -> str:
    if whole or len(names) <= _SHOWN:
        return ", ".join(names)
    return ", ".join(names[:_SHOWN]) + f" and {len(names) - _SHOWN} more"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which s9 comes before s10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
