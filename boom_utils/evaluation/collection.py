"""Scores of one model on many tasks, kept in a folder that mteb reads: what is up to date stays, what fails is told.

The folder holds ``results/<model>/<revision>/<task>.json`` as `mteb.ResultCache` lays them out, and the values behind
each score, with all that it was made with, under ``samples/``. A task is scored again when any of that differs.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boom_utils.artifacts import digest_of, sha256_file, write_json
from boom_utils.errors import BoomError
from boom_utils.evaluation.benchmarks import BenchmarkTask, mteb_version
from boom_utils.evaluation.run import Scoring, evaluate_task, write_result
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.evaluation.tasks import LocalTask
from boom_utils.model_folder import content_hash

log = logging.getLogger(__name__)

Task = LocalTask | BenchmarkTask


@dataclass(frozen=True)
class Candidate:
    """A model to be scored.

    Args:
        name: In tables and, after ``boom/``, in mteb's files.
        folder: An encoder folder.
    """

    name: str
    folder: Path


@dataclass(frozen=True)
class Scored:
    """One task's outcome.

    Args:
        task: Its name.
        facts: As `evaluate_task` gives them, with ``seconds``.
        samples: The values behind the score.
        before: Whether it was there already.
    """

    task: str
    facts: Mapping[str, Any]
    samples: TaskSamples
    before: bool


@dataclass(frozen=True)
class Collection:
    """What came of all tasks: those that could be scored, in the order asked for, and why others could not."""

    scored: Sequence[Scored]
    problems: Mapping[str, str]


def collect_scores(
    model: Candidate, tasks: Sequence[Task], out: Path, scoring: Scoring, devices: int = 1
) -> Collection:
    """Score a model on some tasks; what is finished is kept at once, a failure stops no other task.

    Args:
        model: What to score.
        tasks: On what.
        out: Gets the results; what is up to date there stays.
        scoring: How.
        devices: CUDA devices, or without any processes, that share the tasks.
    """
    revision, done, problems = content_hash(model.folder), dict[str, Scored](), dict[str, str]()
    for task in tasks:
        if (found := _read(_samples_path(model, revision, task, out), _made_with(revision, task, scoring))) is not None:
            done[task.name] = found
    missing = [task for task in tasks if task.name not in done]
    if done:
        log.info("%s: %d of %d tasks up to date", model.name, len(done), len(tasks))
    jobs = [_Job(model, revision, task, out, scoring) for task in missing]
    for number, (job, problem) in enumerate(_outcomes(jobs, devices), 1):
        name = job.task.name
        if problem is None:
            found = _read(job.samples_path, _made_with(revision, job.task, scoring))
            assert found is not None, name
            done[name] = Scored(name, found.facts, found.samples, before=False)
            said = f"{found.facts['metric']} {found.facts['main_score']:.4f} in {found.facts['seconds']:.1f} s"
        else:
            problems[name], said = problem, "failed"
        log.info("task %d of %d: %s: %s", number, len(missing), name, said)
    return Collection([done[task.name] for task in tasks if task.name in done], problems)


@dataclass(frozen=True)
class _Job:
    """One model on one task; goes to another process as it is."""

    model: Candidate
    revision: str
    task: Task
    out: Path
    scoring: Scoring

    @property
    def samples_path(self) -> Path:
        return _samples_path(self.model, self.revision, self.task, self.out)

    def run(self) -> str | None:
        """Score and keep; what went wrong, if anything did."""
        temporary, began = self.samples_path.with_name(f".{self.task.name}.tmp"), time.monotonic()
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            facts = evaluate_task(self.model.name, self.model.folder, self.task, temporary, self.scoring)
            self._keep(temporary, {**facts, "seconds": round(time.monotonic() - began, 2)})
        except BoomError as error:
            return str(error)
        except Exception as error:  # mteb, its loaders and scikit-learn raise what they like
            log.debug("%s", self.task.name, exc_info=True)
            return f"{type(error).__name__}: {str(error)[:500]}"
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return None

    def _keep(self, made: Path, facts: Mapping[str, Any]) -> None:
        """Put mteb's JSON in place, then the values behind it, which say that the task is finished."""
        result = json.loads((made / f"{self.task.name}.json").read_text(encoding="utf-8"))
        write_result(self.model.name, self.revision, result, self.out)
        samples = json.loads((made / "samples.json").read_text(encoding="utf-8"))
        made_with = _made_with(self.revision, self.task, self.scoring)
        write_json(self.samples_path, {"made_with": made_with, "facts": dict(facts), **samples})


def _outcomes(jobs: Sequence[_Job], devices: int) -> Iterator[tuple[_Job, str | None]]:
    """Every job with what went wrong, as they end."""
    if min(devices, len(jobs)) <= 1:
        yield from ((job, job.run()) for job in jobs)
        return
    with device_pool(min(devices, len(jobs))) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else f"its process ended: {error}"


@contextmanager
def device_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of which each has a device of its own."""
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, _take_device, (numbers, workers)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _take_device(numbers: Any, workers: int) -> None:
    import torch

    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


# --- files ------------------------------------------------------------------------------------------------------------


def _samples_path(model: Candidate, revision: str, task: Task, out: Path) -> Path:
    return out / "samples" / f"boom__{model.name}" / revision / f"{task.name}.json"


def _made_with(revision: str, task: Task, scoring: Scoring) -> dict[str, Any]:
    """Everything a score depends on."""
    if isinstance(task, BenchmarkTask):
        data: Any = task.described()
    else:
        files = {path.name: sha256_file(path) for path in sorted(task.folder.glob("*.jsonl"))}
        data = {"name": task.name, "kind": task.kind, "data": digest_of(files)}
    settings = {"prompt": task.prompt, "precision": scoring.precision, "mteb": mteb_version()}
    if scoring.passage_prompt:
        settings["passage_prompt"] = scoring.passage_prompt
    return {"model": revision, "task": data, **settings}


def _read(path: Path, made_with: Mapping[str, Any]) -> Scored | None:
    """A finished score that was made with just this; anything else is made again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["made_with"] != made_with:
            return None
        columns = {name: np.asarray(values, dtype=float) for name, values in stored["columns"].items()}
        samples = TaskSamples(stored["metric"], tuple(stored["ids"]), columns)
        return Scored(path.stem, stored["facts"], samples, before=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
