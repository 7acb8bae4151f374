"""Stage: the embedded corpus `python_docs`, from installed distributions to training and evaluation files.

Mining reads sources with `ast` (`boom_utils.data.mining`), candidates are built and split in
`boom_utils.data.docs_corpus`, rows are drawn in `boom_utils.data.docs_rows`; this module decides what goes into which
file and proves that no evaluated text is trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from boom_utils.artifacts import derive_seed, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.docs_corpus import DATASETS, LABELLED, PRETRAINING, RERANKING, STS, Corpus, build_corpus
from boom_utils.data.docs_names import same_name_examples, same_name_rows
from boom_utils.data.docs_pairs import Split, Unit
from boom_utils.data.docs_rows import (
    classification_rows,
    clustering_rows,
    graded_rows,
    overlap_examples,
    pair_examples,
    retrieval_rows,
)
from boom_utils.data.example_sets import Row, WrittenSets, draw, labelled_examples
from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.mining import corpus_deviations, corpus_fingerprint, mine
from boom_utils.data.overlap import Overlap, OverlapOptions, find_overlap, task_domains
from boom_utils.errors import DataError, ManifestError

log = logging.getLogger(__name__)

AnyUnit = TypeVar("AnyUnit", bound=Unit)

__all__ = ["Corpus", "build_corpus", "corpus_fingerprint", "make_examples"]


def make_examples(manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], out: Path) -> dict[str, Any]:
    """Mine the corpus and write training rows, pre-training pairs and evaluation sets.

    Args:
        manifest: The `python_docs` manifest (or one of its shape).
        corpus: Limits, seed, and the training datasets to write; datasets of role ``new_data`` are always written.
        tasks: The evaluation tasks to write. Which ones changes no row of the others, nor of the training datasets.
        out: Empty folder; gets ``train/``, ``pretraining.jsonl``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, distributions found, deviations, rows dropped and the number of shared texts (zero).

    Raises:
        ManifestError: A dataset that this corpus cannot make, or a task that the manifest does not have.
        DataError: Nothing to mine, a set without rows, or an evaluated text among the training texts.
    """
    datasets, evaluated = _wanted_datasets(manifest, corpus), [manifest.task(name) for name in tasks]
    for deviation in (deviations := corpus_deviations(manifest)):
        log.warning("python_docs: %s", deviation)
    mined = mine(manifest)
    built = build_corpus(mined, corpus.seed, {*(one.id for one in datasets), *(one.dataset for one in evaluated)})
    report = WrittenSets(out)
    for dataset in datasets:
        _write_train(dataset, built, corpus, report)
    _write_pretraining(built, corpus, report)
    for task in evaluated:
        _write_task(task, built, corpus, report)
    overlap = find_overlap(
        {name.removeprefix("train/"): out / f"{name}.jsonl" for name in report.trained_on},
        report.evaluated,
        OverlapOptions(near=False),
    )
    _check(report, overlap)
    facts = {
        "rows": report.rows,
        "fingerprint": corpus_fingerprint(manifest),
        "deviations": deviations,
        "dropped": dict(built.dropped),
        "shared_texts": overlap.exact,
    }
    mining = {"files": mined.files, "unreadable": mined.unreadable, "definitions": len(mined.definitions)}
    domains = task_domains(evaluated, corpus.datasets, overlap)
    found = {"mining": mining, "sets": report.sets, "overlap": overlap.ledger, "domains": domains}
    write_json(out / "summary.json", {**facts, **found})
    return facts


def _wanted_datasets(manifest: Manifest, corpus: CorpusConfig) -> list[Dataset]:
    unknown = [dataset.id for dataset in manifest.datasets if dataset.id not in DATASETS]
    if unknown:
        raise ManifestError(
            f"python_docs has no rule for {', '.join(unknown)}",
            where=f"manifest '{manifest.name}'",
            expected=f"datasets among {', '.join(sorted(DATASETS))}",
        )
    chosen = [manifest.dataset(name) for name in corpus.datasets]
    return chosen + [dataset for dataset in manifest.datasets if dataset.role == "new_data" and dataset not in chosen]


def _write_train(dataset: Dataset, built: Corpus, corpus: CorpusConfig, report: WrittenSets) -> None:
    generator = np.random.default_rng(derive_seed(corpus.seed, "train", dataset.id))
    examples = _train_examples(dataset, built, corpus.train_rows, generator)
    report.write_examples(f"train/{dataset.id}", examples)


def _train_examples(
    dataset: Dataset, built: Corpus, limit: int | None, generator: np.random.Generator
) -> list[TrainingExample]:
    """All rows are made before they are drawn: some candidates give none (no positive partner)."""
    if dataset.id in LABELLED:
        labelled = _part(built.labelled[dataset.id], "train")
        rows = list(labelled_examples(labelled, labelled, dataset, generator))
    elif dataset.id == STS:
        described = _part(built.described, "train")
        rows = list(overlap_examples(described, described, dataset, generator))
    elif dataset.id == RERANKING:
        rows = list(same_name_examples(_part(built.named, "train"), dataset, generator))
    else:
        pairs = _part(built.pairs[dataset.id], "train")
        rows = list(pair_examples(pairs, pairs, dataset, generator))
    return draw(rows, limit, generator)


def _write_pretraining(built: Corpus, corpus: CorpusConfig, report: WrittenSets) -> None:
    generator = np.random.default_rng(derive_seed(corpus.seed, "pretraining"))
    chosen = draw(_part(built.pairs[PRETRAINING], "pretraining"), corpus.pretraining_pairs, generator)
    examples = [TrainingExample(pair.query, (pair.document,)) for pair in chosen]
    report.write_examples("pretraining", examples)


def _write_task(task: EvaluationTask, built: Corpus, corpus: CorpusConfig, report: WrittenSets) -> None:
    generator = np.random.default_rng(derive_seed(corpus.seed, "evaluation", task.id))
    split: Split = "held_out" if task.held_out else "evaluation"
    files, labels = _task_rows(task, built, corpus, split, generator)
    if labels:
        write_json(report.folder / "evaluation" / task.id / "labels.json", labels)
    report.write_task(task.id, files)


def _task_rows(
    task: EvaluationTask, built: Corpus, corpus: CorpusConfig, split: Split, generator: np.random.Generator
) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows of every file of a task, and the names of the labels where it has any."""
    limit = corpus.evaluation_queries
    if task.dataset in LABELLED and task.family == "clustering":
        test, labels = clustering_rows(_part(built.labelled[task.dataset], split), limit, generator)
        return {"test": test}, labels
    if task.dataset in LABELLED:
        fit, test, labels = classification_rows(_part(built.labelled[task.dataset], split), limit, generator)
        return {"train": fit, "test": test}, labels
    if task.dataset == STS:
        return {"test": graded_rows(_part(built.described, split), limit, generator)}, []
    if task.dataset == RERANKING:
        asked = _part(built.named, split)
        # The held-out packages alone have few names in common: their functions are looked for in the others too.
        pool = [*asked, *_part(built.named, "evaluation")] if task.held_out else asked
        return same_name_rows(asked, pool, limit, generator), []
    queries, documents, judgements = retrieval_rows(
        _part(built.pairs[task.dataset], split), limit, corpus.evaluation_documents, generator
    )
    return {"queries": queries, "corpus": documents, "qrels": judgements}, []


def _part(units: Sequence[AnyUnit], split: Split) -> list[AnyUnit]:
    return [unit for unit in units if unit.split == split]


def _check(report: WrittenSets, overlap: Overlap) -> None:
    """Refuse empty sets and any evaluated text among those that models learn from."""
    report.refuse_empty("install the distributions that the manifest names")
    if overlap.exact:
        raise DataError(
            "evaluated texts are also trained on",
            found=[entry for entry in overlap.ledger if entry["exact"]],
            fix="this is a fault of the kit: please report it",
        )
