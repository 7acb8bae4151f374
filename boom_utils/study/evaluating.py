"""``boom evaluate``: encoder folders, or models of a study, scored on the tasks of a profile; two are compared."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boom_utils.artifacts import Artifact, Node, naming
from boom_utils.data.files import downloads_folder
from boom_utils.errors import BoomError, ConfigError, bullet_list, nearest, some_of
from boom_utils.evaluation.statistics import TaskSamples, measure
from boom_utils.model_folder import content_hash
from boom_utils.reporting.results import read_samples
from boom_utils.reporting.tables import points, with_interval
from boom_utils.study.graph import Study
from boom_utils.study.scoring import Brought, profile_benchmarks, score_nodes
from boom_utils.study.stages import corpus_tasks, model_nodes, stated_prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What is known of one model.

    Args:
        samples: Task -> the values behind its score.
        seconds: Task -> how long it took, or ``kept`` where the score was up to date.
        problems: Task that could not be scored -> why.
    """

    samples: dict[str, TaskSamples] = field(default_factory=dict)
    seconds: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def evaluate_models(
    study: Study, models: Sequence[str], tasks: Sequence[str] = (), out: Path | None = None
) -> tuple[str, Mapping[str, str]]:
    """Score models on the tasks of a profile, as the study does; a failure stops no other task.

    Scores are artifacts of the workspace like those of the study: what was made with just this stays.

    Args:
        study: The profile's.
        models: One or two: names of its models that are made, ensembles of such, or encoder folders.
        tasks: Names of tasks, or of the profile's benchmarks; none takes all of the profile's.
        out: Gets the results as `mteb.ResultCache` reads them; None: ``evaluations`` in the workspace.

    Returns:
        A table for people, a line a task, of two models with the difference of the second and the first; and what went
        wrong, by model and task.

    Raises:
        ConfigError: There is no such model or task.
        CheckpointError: A folder is no encoder.
    """
    wanted, place = find_tasks(study, tasks), out or study.workspace.root / "evaluations"
    found = [_model(study, model) for model in models]  # all, before the first is scored
    names = [name for name, _, _ in found]
    labels = names if len({*names}) == len(names) else models  # folders of one name are told apart by their paths
    scored = {label: _scored(study, *one, wanted, place) for label, one in zip(labels, found, strict=True)}
    problems = {f"{name}, {task}": text for name, one in scored.items() for task, text in one.problems.items()}
    table = _table(scored, wanted, study.profile.evaluation.confidence)
    return "\n".join([*table, *_failures(problems), str(place)]), problems


def _model(study: Study, model: str) -> tuple[str, list[Node], Brought | None]:
    """What a model is called, what its scores are made from, and how it is asked where it is a folder of its own."""
    parts = study.whole.encoding_models(model)  # several, where it is an ensemble
    found = [study.model_folder(one) for one in parts]
    folder, made = found[0]
    if made is not None:
        return model, [study.node(model_nodes(study.whole)[one]) for one in parts], None
    name, own = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name), stated_prompts(folder)
    brought = Brought(folder, own if any(own) else None)
    if brought.prompts:
        said = "%s: queries get %r and documents %r, as its folder says, not the prompts of the profile"
        log.info(said, name, *brought.prompts)
    return name, [Node("folder", 1, name, {"content": content_hash(folder)}, lambda *_: {})], brought


def _scored(
    study: Study, name: str, sources: list[Node], brought: Brought | None, wanted: Sequence[str], place: Path
) -> Scored:
    downloads, examples = downloads_folder(study.workspace.root), study.node("examples")
    nodes = score_nodes(study.profile, study.manifest, {name: sources}, examples, downloads, brought)
    from boom_utils.evaluation.run import write_result  # mteb: only when model and tasks are found

    found = Scored()
    for number, task in enumerate(wanted, 1):
        node = nodes[f"scores/{name}/{task}"]
        try:
            kept = study.workspace.find(node) is not None
            artifact: Artifact = study.workspace.build(node)
        except Exception as error:  # mteb, its loaders and scikit-learn raise what they like
            log.debug("%s", task, exc_info=True)
            text = str(error) if isinstance(error, BoomError) else f"{type(error).__name__}: {error!s:.500}"
            found.problems[task] = text
        else:
            found.samples[task] = read_samples(artifact.path)
            found.seconds[task] = "kept" if kept else f"{artifact.record['wall_seconds']:.1f}"
            result = json.loads((artifact.path / f"{task}.json").read_text(encoding="utf-8"))
            with naming(place):
                write_result(name, artifact.facts["revision"], result, place)
        said = "failed" if task in found.problems else "done"
        log.info("%s, task %d of %d: %s: %s", name, number, len(wanted), task, said)
    return found


def find_tasks(study: Study, names: Sequence[str] = ()) -> list[str]:
    """The tasks of a profile, or those named, each once.

    Raises:
        ConfigError: Some are not the profile's; all of these are listed.
    """
    profile, benchmarks = study.profile, profile_benchmarks(study.profile)
    known = [*corpus_tasks(profile), *benchmarks.tasks]
    wanted = [one for name in names for one in benchmarks.members.get(name, (name,))] or known
    if unknown := [f"no task '{name}'{nearest(name, known)}" for name in wanted if name not in known]:
        what = f"profile '{profile.name}' has other tasks"
        raise ConfigError(what, expected=some_of(known), found=bullet_list(unknown))
    return list(dict.fromkeys(wanted))


def _table(scored: Mapping[str, Scored], wanted: Sequence[str], confidence: float) -> list[str]:
    """One line a task that all models were scored on, and one for the mean; scores and differences are times 100."""
    common = [task for task in wanted if all(task in one.samples for one in scored.values())]
    missing = [task for task in wanted if task not in common]
    columns = {name: [(1.0, one.samples)] for name, one in scored.items()}
    first, last = next(iter(columns)), [*columns][-1]
    if last != first:
        columns[f"{last} minus {first}"] = [*columns[last], (-1.0, scored[first].samples)]
    rows = [["task", "metric", *columns, "n", *("s" for _ in scored)]]
    for task in common:
        samples, seconds = scored[first].samples[task], [one.seconds[task] for one in scored.values()]
        scores = [_estimate(sides, [task], confidence) for sides in columns.values()]
        rows.append([task, samples.metric, *scores, str(len(samples.ids)), *seconds])
    if len(common) > 1 and not missing:
        means = [_estimate(sides, common, confidence) for sides in columns.values()]
        rows.append([f"mean of {len(common)} tasks", "", *means, "", *("" for _ in scored)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"mean: n/a (missing: {', '.join(missing)})"] if missing else []
    note = f"times 100, with {100 * confidence:g} % intervals over queries, pairs, rows or experiments of a task"
    return [*lines, f"{note}; n/a: only subsets' scores are known"] if common else []


def _estimate(sides: Sequence[tuple[float, Mapping[str, TaskSamples]]], tasks: Sequence[str], confidence: float) -> str:
    """A mean, or the paired difference of two, with its interval."""
    found, sign = measure(sides, tasks).estimate(confidence), len(sides) > 1
    if math.isnan(found.low):
        return f"{points(100 * found.value, sign)} [n/a]"
    return with_interval(100 * found.value, 100 * found.low, 100 * found.high, sign)


def _failures(problems: Mapping[str, str]) -> list[str]:
    if not problems:
        return []
    texts = {name: text.partition("\n  what to do: ") for name, text in problems.items()}
    failures = [f"{name}: {what}".replace("\n", "\n    ") for name, (what, _, _) in texts.items()]
    fixes = dict.fromkeys(fix for _, _, fix in texts.values() if fix)  # said once for all tasks
    said = [f"  what to do: {fix}" for fix in fixes]
    return ["", f"{len(problems)} tasks failed:" + bullet_list(failures), *said]
