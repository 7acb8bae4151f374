"""Stage: a corpus of files, from raw records to training and evaluation files.

Readers give records (`boom_utils.data.open_text`), `boom_utils.data.evaluation_sets` makes evaluation sets of them and
`boom_utils.data.rules` training rows; this module decides what goes into which file, and sees to it that nothing that
is evaluated is trained on. It looks for that among the *records*, before rows are made: so a record with an evaluated
text is left out once, and never comes back as somebody's negative.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from boom_utils.artifacts import derive_seed, digest_of, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.evaluation_sets import Limits, evaluation_set
from boom_utils.data.example_sets import WrittenSets
from boom_utils.data.examples import normalise
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.open_text import read_dataset
from boom_utils.data.overlap import Overlap, find_overlap, task_domains
from boom_utils.data.record_tables import as_examples, part_of, without_texts
from boom_utils.data.rules import RowOptions, training_rows
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError, ManifestError
from boom_utils.progress import progress

log = logging.getLogger(__name__)


@dataclass
class _Work:
    """What is read and what is left out, while a corpus is made."""

    corpus: CorpusConfig
    raws: dict[str, Raw]
    written: WrittenSets
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    fitted_on: dict[str, set[str]] = field(default_factory=dict)

    def generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.corpus.seed, *names))


def make_examples(
    manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], folder: Path, out: Path
) -> dict[str, Any]:
    """Read the files of a corpus and write training rows and evaluation sets.

    Args:
        manifest: A corpus of files.
        corpus: Training datasets (those that arrive later too), limits, seed, what becomes of overlap and bad lines.
        tasks: Evaluation tasks to write.
        folder: Where the downloaded files lie, each at ``<host>/<path>``.
        out: Empty folder; gets ``train/``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, fingerprint of the files, records dropped of every set and why, and how many different texts
        are evaluated and trained on (zero where overlap is dropped).

    Raises:
        ManifestError: A dataset or task that the corpus does not have, or nobody may train on.
        DataError: Bad lines, records that are not as promised, a set without rows.
    """
    datasets, chosen = _wanted(manifest, corpus, tasks)
    used = list(
        {dataset.id: dataset for dataset in (*datasets, *(manifest.dataset(t.dataset) for t in chosen))}.values()
    )
    raws = {one.id: read_dataset(one, folder, corpus.on_bad_line) for one in progress(used, len(used), "reading")}
    work = _Work(corpus, raws, WrittenSets(out))
    for task in progress(chosen, len(chosen), "evaluation sets"):
        _write_task(task, manifest.dataset(task.dataset), work)
    records = {dataset.id: _records(dataset, work) for dataset in datasets}
    overlap = _overlap(records, work)
    for dataset in progress(datasets, len(datasets), "training rows"):
        _write_train(dataset, records.pop(dataset.id), work)
    facts = {
        "rows": work.written.rows,
        "fingerprint": files_fingerprint(used),
        "deviations": [],
        "dropped": {name: dict(+counts) for name, counts in work.dropped.items() if +counts},
        "shared_texts": _shared_texts(work),
    }
    bad_lines = {name: [str(bad) for bad in raw.bad_lines] for name, raw in raws.items() if raw.bad_lines}
    _check(work, facts)
    write_json(
        out / "summary.json",
        {
            **facts,
            "bad_lines": bad_lines,
            "sets": work.written.sets,
            "overlap": overlap.ledger,
            "domains": task_domains(chosen, corpus.datasets, overlap),
        },
    )
    return facts


def files_fingerprint(datasets: Iterable[Dataset]) -> str:
    """Digest of the sha256 of all files of some datasets."""
    return digest_of({one.id: [file.sha256 for file in one.origin.files] for one in datasets if one.origin})


def _wanted(
    manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str]
) -> tuple[list[Dataset], list[EvaluationTask]]:
    """The datasets and tasks, each once; what nobody may train on is refused."""
    datasets = [manifest.dataset(name) for name in dict.fromkeys((*corpus.datasets, *corpus.new_datasets))]
    if wrong := [dataset.id for dataset in datasets if dataset.role == "evaluation"]:
        raise ManifestError(
            "datasets that are only evaluated cannot be trained on",
            where=f"manifest '{manifest.name}'",
            found=", ".join(wrong),
        )
    if without := [dataset.id for dataset in manifest.datasets if dataset.origin is None]:
        raise ManifestError("datasets without files", where=f"manifest '{manifest.name}'", found=", ".join(without))
    return datasets, [manifest.task(name) for name in dict.fromkeys(tasks)]


def _write_task(task: EvaluationTask, dataset: Dataset, work: _Work) -> None:
    most, corpus = work.corpus.evaluation_queries, work.corpus
    skip = most if corpus.evaluation_part == "validation" and most is not None else 0
    limits = Limits(most, corpus.evaluation_documents, skip)
    made = evaluation_set(work.raws[dataset.id], dataset, limits, work.generator("evaluation", task.id))
    work.written.write_task(task.id, made.files)
    if made.labels is not None:
        write_json(work.written.folder / "evaluation" / task.id / "labels.json", made.labels)
    work.dropped[f"evaluation/{task.id}"] = made.dropped
    work.fitted_on.setdefault(dataset.id, set()).update(normalise(text) for text in made.fitted_on)


def _records(dataset: Dataset, work: _Work) -> pa.Table:
    """What a dataset is trained on: never what its own evaluation fits a classifier on, overlap dropped or not."""
    dropped = work.dropped[f"train/{dataset.id}"] = Counter()
    records = part_of(work.raws[dataset.id], "train", dataset.id)
    return without_texts(
        records, work.fitted_on.get(dataset.id, ()), "classifiers of the evaluation are fitted on it", dropped
    )


def _overlap(records: dict[str, pa.Table], work: _Work) -> Overlap:
    """Look for evaluated texts among all records, and leave these records out if the corpus says so."""
    trained = {name: as_examples(table) for name, table in records.items()}
    overlap = find_overlap(trained, work.written.evaluated)
    offending_rows = overlap.offending
    for name, table in records.items():
        offending = offending_rows[name]
        if len(offending) and work.corpus.overlap == "drop":
            keep = np.ones(table.num_rows, dtype=bool)
            keep[offending] = False
            records[name] = table.filter(pa.array(keep))
            work.dropped[f"train/{name}"]["a text is evaluated, or nearly so"] += int((~keep).sum())
    return overlap


def _write_train(dataset: Dataset, records: pa.Table, work: _Work) -> None:
    name = f"train/{dataset.id}"
    options = RowOptions(dataset, work.corpus.hard_negatives, work.corpus.train_rows)
    rows, dropped = training_rows(work.raws[dataset.id].shape, records, options, work.generator("train", dataset.id))
    work.written.write_examples(name, rows)
    work.dropped[name].update(dropped)


def _shared_texts(work: _Work) -> int:
    """Different texts that are both evaluated and trained on, in what was written."""
    evaluated, trained = (
        {normalise(text) for text in set().union(*sets.values())}
        for sets in (work.written.evaluated, work.written.trained_on)
    )
    return len(evaluated & trained)


def _check(work: _Work, facts: Mapping[str, Any]) -> None:
    """Refuse empty sets, and evaluated texts among those trained on where there must be none."""
    work.written.refuse_empty("allow more rows, or leave these sets out", facts["dropped"])
    if work.corpus.overlap == "drop" and facts["shared_texts"]:
        raise DataError(
            f"{facts['shared_texts']} evaluated texts are also trained on",
            fix="this is a fault of the kit: please report it",
        )
