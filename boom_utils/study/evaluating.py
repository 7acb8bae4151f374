"""``boom evaluate``: any encoder folder, or a model of a study, scored on the tasks of a profile."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from boom_utils.artifacts import Artifact, Node, naming
from boom_utils.data.files import downloads_folder
from boom_utils.errors import BoomError, ConfigError, bullet_list, nearest
from boom_utils.evaluation.statistics import measure
from boom_utils.model_folder import content_hash
from boom_utils.reporting.results import read_samples
from boom_utils.study.graph import Study
from boom_utils.study.scoring import Brought, profile_benchmarks, score_nodes
from boom_utils.study.stages import corpus_tasks, model_nodes, stated_prompts

log = logging.getLogger(__name__)


def evaluate_model(
    study: Study, model: str, tasks: Sequence[str] = (), out: Path | None = None
) -> tuple[str, Mapping[str, str]]:
    """Score one model on the tasks of a profile, as the study does; a failure stops no other task.

    Scores are artifacts of the workspace like those of the study: what was made with just this stays.

    Args:
        study: The profile's.
        model: Name of one of its models that is made, or an encoder folder.
        tasks: Names of tasks, or of the profile's benchmarks; none takes all of the profile's.
        out: Gets the results as `mteb.ResultCache` reads them; None: ``evaluations`` in the workspace.

    Returns:
        A table for people, a line a task, and what went wrong with tasks that could not be scored.

    Raises:
        ConfigError: There is no such model or task.
        CheckpointError: The folder is no encoder.
    """
    (folder, made), wanted = study.model_folder(model), find_tasks(study, tasks)
    place, brought = out or study.workspace.root / "evaluations", None
    if made is not None:
        name, source = model, study.node(model_nodes(study.whole)[model])
    else:
        name, own = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name), stated_prompts(folder)
        brought = Brought(folder, own if any(own) else None)
        source = Node("folder", 1, name, {"content": content_hash(folder)}, lambda *_: {})
        if brought.prompts:
            said = "%s: queries get %r and documents %r, as its folder says, not the prompts of the profile"
            log.info(said, name, *brought.prompts)
    downloads, examples = downloads_folder(study.workspace.root), study.node("examples")
    nodes = score_nodes(study.profile, study.manifest, {name: [source]}, examples, downloads, brought)
    from boom_utils.evaluation.run import write_result  # mteb: only when model and tasks are found

    scored, problems = dict[str, tuple[Artifact, bool]](), dict[str, str]()
    for number, task in enumerate(wanted, 1):
        node = nodes[f"scores/{name}/{task}"]
        try:
            kept = study.workspace.find(node) is not None
            artifact = study.workspace.build(node)
        except Exception as error:  # mteb, its loaders and scikit-learn raise what they like
            log.debug("%s", task, exc_info=True)
            problems[task] = str(error) if isinstance(error, BoomError) else f"{type(error).__name__}: {error!s:.500}"
        else:
            scored[task] = artifact, kept
            result = json.loads((artifact.path / f"{task}.json").read_text(encoding="utf-8"))
            with naming(place):
                write_result(name, artifact.facts["revision"], result, place)
        log.info("task %d of %d: %s: %s", number, len(wanted), task, "failed" if task in problems else "done")
    return f"{_table(study, scored, problems)}\n{place}", problems


def find_tasks(study: Study, names: Sequence[str] = ()) -> list[str]:
    """The tasks of a profile, or those named, each once.

    Raises:
        ConfigError: Some are not the profile's; all of these are listed.
    """
    profile, benchmarks = study.profile, profile_benchmarks(study.profile)
    known = [*corpus_tasks(profile), *benchmarks.tasks]
    wanted = [one for name in names for one in benchmarks.members.get(name, (name,))] or known
    if unknown := [f"no task '{name}'{nearest(name, known)}" for name in wanted if name not in known]:
        raise ConfigError(f"profile '{profile.name}' has other tasks", found=bullet_list(unknown))
    return list(dict.fromkeys(wanted))


def _table(study: Study, scored: Mapping[str, tuple[Artifact, bool]], problems: Mapping[str, str]) -> str:
    """One line a task: metric, score, interval, samples, seconds; then what failed."""
    confidence = study.profile.evaluation.confidence
    rows = [("task", "metric", "score", f"{100 * confidence:g} % interval", "n", "s")]
    for task, (artifact, kept) in scored.items():
        samples = read_samples(artifact.path)
        value = measure([(1.0, {task: samples})], [task]).estimate(confidence)
        interval = f"{value.low:.4f} .. {value.high:.4f}" if value.low == value.low else "n/a"
        seconds = "kept" if kept else f"{artifact.record['wall_seconds']:.1f}"
        rows.append((task, samples.metric, f"{value.value:.4f}", interval, str(len(samples.ids)), seconds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = "intervals: over queries, pairs, rows or experiments of a task; n/a: only subsets' scores are known"
    lines = [*lines, note] if scored else []
    if problems:
        texts = {name: text.partition("\n  what to do: ") for name, text in problems.items()}
        failures = [f"{name}: {what}".replace("\n", "\n    ") for name, (what, _, _) in texts.items()]
        fixes = dict.fromkeys(fix for _, _, fix in texts.values() if fix)  # said once for all tasks
        lines += ["", f"{len(problems)} tasks failed:" + bullet_list(failures)]
        lines += [f"  what to do: {fix}" for fix in fixes]
    return "\n".join(lines)
