"""Stage: the examples of any corpus, from what it is made of to training rows and evaluation sets; the only entry.

A `Source` gives what differs between the kinds of corpora: mined (`boom_utils.data.python_docs`), files
(`boom_utils.data.open_text`), and rows of users and of the hub (`boom_utils.data.own`). Everything else is
here: what goes into which file, what is left out and counted, and that nothing that is evaluated is trained on. That is
looked for among *records*, before rows are made of them, so that a record with an evaluated text never comes back as
somebody's negative; of ready examples, it is looked for in the rows, before negatives are mined.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from boom_utils.artifacts import derive_seed, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data import open_text, own, python_docs
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, part_of
from boom_utils.data.examples import TrainingExample, iter_examples, normalise, write_examples, write_jsonl
from boom_utils.data.fetching import fetch_datasets, used_datasets
from boom_utils.data.manifest import Dataset, EvaluationTask, HttpsFiles, InstalledDistributions, LocalFiles, Manifest
from boom_utils.data.mining import corpus_fingerprint
from boom_utils.data.overlap import find_overlap, task_domains
from boom_utils.data.rows import training_rows
from boom_utils.data.text_files import Raw, Shape
from boom_utils.errors import DataError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)

NOT_TEXT = ("label", "score")
Facts = dict[str, Any]


class Source(Protocol):
    """A corpus that is there and was looked at.

    Args:
        tasks: What is evaluated.
        sets: What is trained on: name of the file below the examples folder -> dataset.
        near: Whether nearly the same text is looked for; not where the corpus keeps texts apart by itself.
        fix: What can be done about a set without rows.
    """

    tasks: Sequence[EvaluationTask]
    sets: Mapping[str, Dataset]
    near: bool
    fix: str

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """The evaluation set of a task."""

    def training(self, name: str) -> Raw | Iterable[TrainingExample]:
        """What a set is made of: records, whose part ``train`` is meant, or examples."""

    def completed(self, name: str, file: Path) -> Iterable[TrainingExample] | None:
        """The examples of a written set with what they lack; None: they lack nothing."""

    def facts(self) -> Facts:
        """``fingerprint`` of what it is made of, ``deviations`` from the manifest, and whatever a report shows.

        ``dropped``, if it is there, is added to what is left out here.
        """


# --- what a study asks ------------------------------------------------------------------------------------------------


def unread_fields(manifest: Manifest) -> set[str]:
    """Fields of the corpus config that change nothing of what is written.

    New datasets of a mined corpus are always mined with the rest: which of them a study uses makes no other corpus.
    """
    return {"new_datasets"} if isinstance(manifest.source, InstalledDistributions) else set()


def found_now(manifest: Manifest, corpus: CorpusConfig) -> Facts:
    """What the examples depend on that no manifest pins: versions of what is installed, content of a user's own files.

    It belongs into the key of the artifact. Files to download are pinned by their sha256, those of the hub by their
    revision and the lock file of the first download.

    Raises:
        DataError: A user's file is not there.
    """
    if isinstance(manifest.source, InstalledDistributions):
        return corpus_fingerprint(manifest)
    is_local = isinstance(manifest.source, LocalFiles)
    return dict(own.own_fingerprint(manifest, corpus, Path())) if is_local else {}


# --- the stage --------------------------------------------------------------------------------------------------------


def make_examples(manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], downloads: Path, out: Path) -> Facts:
    """Write training rows and evaluation sets; files that are not there yet are fetched.

    Args:
        manifest: The corpus.
        corpus: Datasets, limits, seed, what becomes of overlap and of bad lines.
        tasks: Evaluation tasks to write; of rows that users bring, all that are held out are written.
        downloads: As `boom_utils.data.files.downloads_folder` gives it.
        out: Empty folder; gets ``train/``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, ``fingerprint``, ``deviations``, ``dropped`` (set -> reason -> number) and ``shared_texts``:
        different texts that are evaluated and trained on, zero where overlap is dropped.

    Raises:
        ManifestError: A dataset or task that the corpus does not have.
        DownloadError: Files cannot be had.
        DataError: What was read breaks a rule, or a set has no rows.
    """
    source = _opened(manifest, corpus, tasks, downloads)
    work = _Work(corpus, source, out)
    for task in progress(source.tasks, len(source.tasks), "evaluation sets"):
        work.write_task(task)
    records = {name: work.candidates(name) for name in progress(list(source.sets), len(source.sets), "candidates")}
    work.refuse_empty()
    trained = {
        _short(name): texts_of(found[1]) if found else iter_examples(work.file(name)) for name, found in records.items()
    }
    overlap = find_overlap(trained, work.evaluated, near=source.near)
    for name in progress(list(records), len(records), "training rows"):
        work.write_rows(name, records.pop(name), overlap.offending(_short(name)))
    work.refuse_empty()
    shared = work.look_again()
    if shared and corpus.overlap == "drop":
        fix = "this is a fault of the kit: please report it"
        raise DataError(f"{shared} evaluated texts are also trained on", fix=fix)
    found = source.facts()
    for name, counts in found.pop("dropped", {}).items():
        work.dropped[name].update(counts)
    for deviation in found["deviations"]:
        log.warning("%s: %s", manifest.name, deviation)
    facts = {
        "rows": {name: known["rows"] for name, known in work.sets.items()},
        **{name: found.pop(name) for name in ("fingerprint", "deviations")},
        "dropped": {name: dict(+counts) for name, counts in work.dropped.items() if +counts},
        "shared_texts": shared,
    }
    domains = task_domains(source.tasks, corpus.datasets, overlap)
    found |= {"sets": work.sets, "overlap": overlap.ledger, "domains": domains}
    write_json(out / "summary.json", {**facts, **found})
    return facts


def _opened(manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], downloads: Path) -> Source:
    if isinstance(manifest.source, InstalledDistributions):
        return python_docs.PythonDocs(manifest, corpus, tasks)
    if not isinstance(manifest.source, LocalFiles):
        log.info("%s: %s", manifest.name, fetch_datasets(used_datasets(manifest, corpus, tasks), downloads))
    if isinstance(manifest.source, HttpsFiles):
        return open_text.OpenText(manifest, corpus, tasks, downloads)
    return own.OwnRows(manifest, corpus, downloads)


def _short(name: str) -> str:
    """Name of a training set in the ledger."""
    return name.removeprefix("train/")


def texts_of(records: pa.Table) -> Iterator[TrainingExample]:
    """The texts of every record as a row without label or score, to look for overlap in."""
    columns = [records[name].to_pylist() for name in records.column_names if name not in NOT_TEXT]
    return (TrainingExample(first, tuple(others)) for first, *others in zip(*columns, strict=True))


@dataclass
class _Work:
    """What is written and what is left out, while a corpus is made.

    Args:
        corpus: Limits and seed.
        source: The corpus.
        folder: The examples folder.
        sets: Rows and numbers of words of every set.
        evaluated: Texts of every evaluation set.
        dropped: Set -> reason -> number of what was left out.
        fitted_on: Dataset -> normalised texts that classifiers of its evaluation are fitted on.
    """

    corpus: CorpusConfig
    source: Source
    folder: Path
    sets: dict[str, Facts] = field(default_factory=dict)
    evaluated: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    fitted_on: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def file(self, name: str) -> Path:
        """Where a set lies."""
        return self.folder / f"{name}.jsonl"

    def _generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.corpus.seed, *names))

    def write_task(self, task: EvaluationTask) -> None:
        """Write the files of one evaluation task."""
        most, name = self.corpus.evaluation_queries, f"evaluation/{task.id}"
        skip = most if self.corpus.evaluation_part == "validation" and most is not None else 0
        limits = Limits(most, self.corpus.evaluation_documents, skip)
        made = self.source.evaluation(task, limits, self._generator("evaluation", task.id))
        for file, rows in made.files.items():
            write_jsonl(self.file(f"{name}/{file}"), rows)
        if made.labels is not None:
            write_json(self.folder / name / "labels.json", made.labels)
        self.evaluated[task.id] = made.evaluated or [text for part in made.texts.values() for text in part]
        self.fitted_on[task.dataset] |= made.fitted_on
        self.dropped[name] += made.dropped
        words = {f"{file}_words": _word_numbers([*map(_words, part)]) for file, part in made.texts.items()}
        self.sets[name] = {"rows": len(made.files["queries" if "queries" in made.files else "test"]), **words}

    def candidates(self, name: str) -> tuple[Shape, pa.Table] | None:
        """Records of a set without what classifiers are fitted on; examples are written as they are, for now."""
        found, dataset = self.source.training(name), self.source.sets[name]
        if not isinstance(found, Raw):
            self._write(name, found)
            return None
        records, unwanted = part_of(found, "train", dataset.id), self.fitted_on[dataset.id]
        if unwanted:
            keep = [unwanted.isdisjoint(map(normalise, (one.query, *one.pos))) for one in texts_of(records)]
            self.dropped[name]["classifiers of the evaluation are fitted on it"] += keep.count(False)
            records = records.filter(pa.array(keep, pa.bool_()))
        return found.shape, records

    def write_rows(self, name: str, records: tuple[Shape, pa.Table] | None, offending: np.ndarray) -> None:
        """Write a training set without what is evaluated, if that is to be dropped, and with what its rows lack."""
        corpus, dataset, dropped = self.corpus, self.source.sets[name], self.dropped[name]
        offending = offending[: None if corpus.overlap == "drop" else 0]
        dropped["a text is evaluated, or nearly so"] += len(offending)
        if records is not None:
            shape, table = records
            keep, generator = np.ones(table.num_rows, dtype=bool), self._generator("train", dataset.id)
            keep[offending] = False
            most = corpus.hard_negatives, corpus.train_rows
            rows, left_out = training_rows(shape, table.filter(keep), dataset, *most, generator)
            dropped += left_out
            self._write(name, rows)
            return
        if unwanted := set(offending.tolist()):
            kept = enumerate(iter_examples(self.file(name)))
            self._write(name, (example for row, example in kept if row not in unwanted))
        before = self.sets[name]["rows"]
        if before and (completed := self.source.completed(name, self.file(name))) is not None:
            self._write(name, completed)
            dropped["query without a negative"] += before - self.sets[name]["rows"]

    def _write(self, name: str, rows: Iterable[TrainingExample]) -> None:
        """Write a training set, or write it anew; no more than one row is kept in memory."""
        self.sets[name] = {"rows": write_examples(self.file(name), rows)}

    def look_again(self) -> int:
        """Read every training set as it was written, for its numbers of words; counts evaluated texts in them."""
        known = {normalise(text) for texts in self.evaluated.values() for text in texts}
        shared: set[str] = set()
        for name in self.source.sets:
            queries, passages = array("I"), array("I")
            for row in iter_examples(self.file(name)):
                queries.append(_words(row.query))
                passages.extend(map(_words, (*row.pos, *row.neg)))
                if known:
                    shared |= known.intersection(map(normalise, (row.query, *row.pos, *row.neg)))
            self.sets[name] |= {"query_words": _word_numbers(queries), "passage_words": _word_numbers(passages)}
        return len(shared)

    def refuse_empty(self) -> None:
        """Check that every set that was written has rows.

        Raises:
            DataError: Some have none.
        """
        empty = [name for name, facts in self.sets.items() if not facts["rows"]]
        left_out = [f"{name}, left out: {dict(+self.dropped[name])}" for name in empty if +self.dropped[name]]
        if empty:
            found = f"no rows in {', '.join(empty)}{bullet_list(left_out)}"
            raise DataError("the corpus is too small for some sets", found=found, fix=self.source.fix)


def _words(text: str) -> int:
    return len(text.split())


def _word_numbers(counts: Sequence[int] | array[int]) -> dict[str, float]:
    """Minimum, median, 95th percentile and maximum of some numbers of words; zeros where there are none."""
    found = np.percentile(counts or [0], (0, 50, 95, 100)).round(1).tolist()
    return dict(zip(("min", "median", "p95", "max"), found, strict=True))
