"""What the parts of a manifest must be to fit together, for every kind of source.

What is wrong with one entry by itself is said where the entry is defined; this module looks at all of them at once.
"""

from __future__ import annotations

import typing

from boom_utils.data.manifest_files import HttpsFiles, file_problems, twice
from boom_utils.data.manifest_hub import hub_problems

if typing.TYPE_CHECKING:
    from boom_utils.data.manifest import Manifest


def source_problems(manifest: Manifest) -> list[str]:
    """What does not fit the kind of a corpus's source, one sentence each."""
    key = {"https_files": "origin", "hub_files": "hub", "local_files": "local"}.get(manifest.source.kind)
    kind = manifest.source.kind.replace("_", " ")
    problems = [
        f"dataset '{dataset.id}' has {'files' if key is None else other}, but the source is {kind}"
        for dataset in manifest.datasets
        for other in ("origin", "hub", "local")
        if other != key and getattr(dataset, other) is not None
    ]
    if key is None:
        return problems + _of_distributions(manifest)
    problems += [
        f"dataset '{dataset.id}' has no {key}: it lists no files"
        for dataset in manifest.datasets
        if getattr(dataset, key) is None
    ]
    return problems + (_of_files(manifest) if key == "origin" else _of_ready_rows(manifest))


def _of_distributions(manifest: Manifest) -> list[str]:
    """What does not fit a corpus that is mined."""
    problems = []
    for dataset in manifest.datasets:
        if dataset.role == "evaluation":
            problems.append(f"dataset '{dataset.id}' is only evaluated: hold out distributions instead")
    if not any(distribution.held_out for distribution in manifest.installed.distributions):
        for task in manifest.tasks:
            if task.held_out:
                problems.append(f"task '{task.id}' needs held-out distributions, but none is held out")
    return problems


def _of_files(manifest: Manifest) -> list[str]:
    """What does not fit a corpus of files."""
    assert isinstance(manifest.source, HttpsFiles)
    roles = {dataset.id: dataset.role for dataset in manifest.datasets}
    evaluated = {task.dataset for task in manifest.tasks}
    problems = []
    for name, role in roles.items():
        if role == "evaluation" and name not in evaluated:
            problems.append(f"dataset '{name}' is only evaluated, but no task evaluates it")
    for task in manifest.tasks:
        if task.held_out and roles.get(task.dataset, "evaluation") != "evaluation":
            problems.append(f"task '{task.id}' is held out, but its dataset is trained on")
    return problems + file_problems(manifest.source, manifest.origins)


def _of_ready_rows(manifest: Manifest) -> list[str]:
    """What does not fit a corpus of rows that are ready to train on."""
    problems = hub_problems(manifest.hubs)
    problems += [f"dataset '{one.id}' is only evaluated" for one in manifest.datasets if one.role == "evaluation"]
    held_out = {name for name, local in manifest.locals.items() if local.held_out is not None}
    evaluated = [task.dataset for task in manifest.tasks]
    problems += twice("evaluated dataset", evaluated)
    problems += [f"dataset '{name}' holds queries out, but no task evaluates them" for name in held_out - {*evaluated}]
    for task in manifest.tasks:
        if task.dataset not in held_out:
            problems.append(f"task '{task.id}': its dataset has no held_out share, so that nothing is left to evaluate")
        if task.family not in ("retrieval", "code", "sts", "classification") or task.held_out:
            problems.append(
                f"task '{task.id}' must be retrieval, code, sts or classification, and in-domain: it is held-out rows"
            )
    return sorted(problems)
