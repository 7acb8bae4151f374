"""From any file of results or of a workspace back to the data: what it was made from, stage by stage.

A workspace says it in its records. The results of a study keep it in study.json (``lineage``) and, of scores, in their
table, so that it is known where no workspace is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from boom_utils.artifacts import RECORD, sha256_file
from boom_utils.errors import ConfigError, ResultsError, WorkspaceError, nearest
from boom_utils.reporting.results import read_json_object, read_numbers, run_name

KEY_LETTERS = 20
"""Of a key, as in the name of its folder in the workspace."""
_NAMES = {"merge": "merged models", "plan": "batch plans", "losses": "held-out losses", "tokens": "tables of tokens"}
"""Stage -> what its artifacts are called together, where that is not the stage's own name and an s."""
_LABEL = re.compile(r"(?:member|merge|subset|batch plan of|held-out losses of) ")
_SHOWN = 8
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
    """Artifacts by stage, each step one indentation further in, down to the corpus."""
    order = [*TopologicalSorter({key: one["inputs"].values() for key, one in sources.items()}).static_order()]
    depth, level = dict.fromkeys(sources, 0), dict[str, int]()
    for key in reversed(order):
        stage = sources[key]["stage"]
        level[stage] = max(level.get(stage, 0), depth[key])
        depth |= {made: max(depth[made], depth[key] + 1) for made in sources[key]["inputs"].values()}
    steps = sorted({*level.values()})
    for stage in sorted({one["stage"]: 0 for one in sources.values()}, key=lambda name: level[name]):
        indent = "  " * (1 + steps.index(level[stage]))
        members = {key: one for key, one in sources.items() if one["stage"] == stage}
        yield f"{indent}<- {_group(stage, members)}"
        for key, one in members.items():
            if whole:
                inputs = ", ".join(one["inputs"])
                yield f"{indent}     {one['label']}: {key}, sha256 {one['sha256'][:_LETTERS]}, of {inputs}"
            yield from (f"{indent}  <- {line}" for line in _corpus(one["corpus"], whole))


def _group(stage: str, members: Sources) -> str:
    """Artifacts of one stage in a line: one with its key, of several how many and the names of a few."""
    labels = [one["label"] for one in members.values()]
    if len(members) == 1:
        ((key, one),) = members.items()
        return f"{labels[0]} ({key}, sha256 {one['sha256'][:_LETTERS]})"
    if stage == "scores":
        models, tasks = zip(*(label.removeprefix("scores of ").rsplit(" on ", 1) for label in labels), strict=True)
        return f"{len(labels)} scores: {_few(models, 'models')}; {_few(tasks, 'tasks')}"
    return _few([_LABEL.sub("", label) for label in labels], _NAMES.get(stage, f"{stage}s"))


def _few(names: Sequence[str], what: str) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}"


def _corpus(entries: Sequence[Mapping[str, Any]], whole: bool) -> list[str]:
    """What examples were made of: a line a file, or a few; and the distributions that text was mined from."""
    files = [entry for entry in entries if "file" in entry]
    versions = [f"{entry['distribution']} {entry['version']}" for entry in entries if "distribution" in entry]
    lines = [f"installed distributions: {', '.join(versions)}"] if versions else []
    lines += [f"{len(files)} files of {len({entry.get('dataset') for entry in files})} datasets of the manifest"]
    shown = files if whole else files[:3]
    lines += [f"  {entry['file']} sha256 {entry.get('sha256') or 'not stated'}" for entry in shown]
    lines += [f"  and {len(files) - len(shown)} more (--all)"] if len(files) > len(shown) else []
    return lines if files else lines[: len(versions) > 0]
