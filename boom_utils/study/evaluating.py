"""``boom evaluate``: any encoder folder, or a model of a study, scored on the tasks of a profile."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boom_utils.artifacts import naming
from boom_utils.data.files import MOST_SHOWN, downloads_folder
from boom_utils.errors import ConfigError, bullet_list, nearest
from boom_utils.evaluation.statistics import measure
from boom_utils.model_folder import check_folder, whole_folder
from boom_utils.study.graph import Study
from boom_utils.study.scoring import local_task, profile_benchmarks, scoring_of
from boom_utils.study.stages import model_nodes, prompts_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What came of it.

    Args:
        table: For people: a line a task.
        failed: Tasks that could not be scored.
        folder: Where the results are.
    """

    table: str
    failed: Sequence[str]
    folder: Path


def evaluate_model(
    study: Study, model: str, tasks: Sequence[str] = (), out: Path | None = None, devices: int = 1
) -> Evaluated:
    """Score one model on the tasks of a profile; see `boom_utils.evaluation.collection`.

    Args:
        study: The profile's.
        model: Name of one of its models that is made, or an encoder folder.
        tasks: Names of tasks, or of the profile's benchmarks; none takes all of the profile's.
        out: Gets the results; None: ``evaluations`` in the workspace.
        devices: CUDA devices, or processes, that share the tasks.

    Raises:
        ConfigError: There is no such model or task.
        CheckpointError: The folder is no encoder.
    """
    from boom_utils.evaluation.collection import Candidate, collect_scores

    name, folder = find_model(study, model)
    chosen, place = find_tasks(study, tasks), out or study.workspace.root / "evaluations"
    scoring = scoring_of(study.profile, downloads_folder(study.workspace.root))
    if model not in model_nodes(study.profile) and any(own := stated_prompts(folder)):
        log.info("%s: queries get %r and documents %r, as its folder says, not the prompts of the profile", name, *own)
        chosen, scoring = [replace(task, prompt=own[0]) for task in chosen], replace(scoring, passage_prompt=own[1])
    with naming(place):
        found = collect_scores(Candidate(name, folder), chosen, place, scoring, devices)
    return Evaluated(_table(study, found), list(found.problems), place)


def stated_prompts(folder: Path) -> tuple[str, str]:
    """What a model folder itself puts before queries and documents (`EncoderSpec.own_prompts`).

    Raises:
        CheckpointError: The folder is no encoder.
    """
    with whole_folder(folder) as place:
        return check_folder(place).own_prompts


def find_model(study: Study, model: str) -> tuple[str, Path]:
    """Name and folder of a model: one of the study's, or a folder.

    Raises:
        ConfigError: It is neither, or the study has not made it yet.
    """
    places = model_nodes(study.profile)
    if model in places:
        artifact = study.workspace.find(study.node(places[model]))
        if artifact is None:
            raise ConfigError(
                f"model '{model}' of profile '{study.profile.name}' is not made yet",
                where=study.workspace.root,
                fix=f"boom run --profile {study.profile.name}",
            )
        return model, artifact.path
    folder = Path(model).expanduser()
    if not folder.is_dir():
        known = nearest(model, places)
        raise ConfigError(f"'{model}' is neither a folder nor a model of profile '{study.profile.name}'{known}")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name), folder


def find_tasks(study: Study, names: Sequence[str] = ()) -> list[Any]:
    """The tasks of a profile, or those named, as `boom_utils.evaluation.collection` takes them.

    Raises:
        ConfigError: Some are not the profile's; all of these are listed.
    """
    profile, manifest = study.profile, study.manifest
    benchmarks, prompts = profile_benchmarks(profile), prompts_of(profile, manifest, profile.evaluation.query_template)
    local = (*profile.evaluation.in_domain, *profile.evaluation.out_of_domain)
    known = [*local, *benchmarks.tasks]
    wanted = [one for name in names for one in benchmarks.members.get(name, (name,))] or known
    if unknown := [f"no task '{name}'{nearest(name, known)}" for name in wanted if name not in known]:
        raise ConfigError(f"profile '{profile.name}' has other tasks", found=bullet_list(unknown, MOST_SHOWN))
    examples = study.build("examples").path if {*wanted} & {*local} else Path()
    return [
        benchmarks.tasks.get(name) or local_task(manifest, name, prompts[manifest.task(name).dataset], examples)
        for name in dict.fromkeys(wanted)
    ]


def _table(study: Study, found: Any) -> str:
    """One line a task: metric, score, interval, samples, seconds; then what failed."""
    options = study.profile.evaluation
    rows = [("task", "metric", "score", f"{100 * options.confidence:g} % interval", "n", "s")]
    for one in found.scored:
        value = measure([(1.0, {one.task: one.samples})], [one.task]).estimate(options.confidence)
        interval = f"{value.low:.4f} .. {value.high:.4f}" if value.low == value.low else "n/a"
        seconds = "kept" if one.before else f"{one.facts['seconds']:.1f}"
        rows.append((one.task, one.samples.metric, f"{value.value:.4f}", interval, str(one.facts["samples"]), seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(rows) > 1:
        lines.append(
            "intervals: over queries, pairs, rows or experiments of a task; n/a: only subsets' scores are known"
        )
    lines = lines if len(rows) > 1 else []
    if found.problems:
        lines += ["", f"{len(found.problems)} tasks failed:" + bullet_list(_failures(found.problems), MOST_SHOWN)]
        fixes = dict.fromkeys(line.strip() for text in found.problems.values() for line in text.splitlines())
        lines += [f"  {line}" for line in fixes if line.startswith("what to do: ")]
    return "\n".join(lines)


def _failures(problems: Mapping[str, str]) -> list[str]:
    """What went wrong with each task; what to do is said once for all."""
    kept = {name: [line for line in text.splitlines() if "what to do: " not in line] for name, text in problems.items()}
    return [f"{name}: " + "\n      ".join(lines) for name, lines in kept.items()]
