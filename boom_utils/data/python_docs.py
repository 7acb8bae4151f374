"""Stage: the embedded corpus `python_docs`, from installed distributions to training and evaluation files.

Mining reads sources with `ast` (`boom_utils.data.mining`), candidates are built and split in
`boom_utils.data.docs_pairs`, rows are drawn in `boom_utils.data.docs_rows`; this module decides what goes into which
file and proves that no evaluated text is trained on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from boom_utils.artifacts import derive_seed, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.docs_pairs import (
    PAIRS,
    Described,
    Labelled,
    Pair,
    Split,
    Unit,
    exception_class,
    merge_duplicates,
    normalise,
    parameter_overlap,
    split_definitions,
)
from boom_utils.data.docs_rows import (
    classification_rows,
    graded_rows,
    overlap_examples,
    pair_examples,
    retrieval_rows,
)
from boom_utils.data.example_sets import WrittenSets, draw, labelled_examples
from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.mining import Mined, corpus_deviations, corpus_fingerprint, mine
from boom_utils.data.overlap import overlap_ledger, shared_texts
from boom_utils.errors import DataError, ManifestError

log = logging.getLogger(__name__)

CLASSIFICATION = "exception_class"
STS = "parameter_overlap_sts"
PRETRAINING = "summary_to_description"
"""Dataset whose pre-training split the tiny base learns from."""

AnyUnit = TypeVar("AnyUnit", bound=Unit)

__all__ = ["Corpus", "build_corpus", "corpus_fingerprint", "make_examples"]


@dataclass(frozen=True)
class Corpus:
    """Candidates of every dataset after merging, and what was dropped to keep splits apart.

    Args:
        pairs: Query-document candidates of retrieval and code datasets.
        labelled: Candidates of the classification.
        described: Candidates of the STS dataset.
        dropped: Candidates dropped for sharing a text with an evaluation set or the pre-training pairs, by dataset.
    """

    pairs: Mapping[str, list[Pair]]
    labelled: list[Labelled]
    described: list[Described]
    dropped: Mapping[str, int]


def make_examples(manifest: Manifest, corpus: CorpusConfig, out: Path) -> dict[str, Any]:
    """Mine the corpus and write training rows, pre-training pairs and evaluation sets.

    Args:
        manifest: The `python_docs` manifest (or one of its shape).
        corpus: Limits, seed, and the training datasets to write; datasets of role ``new_data`` are always written.
        out: Empty folder; gets ``train/``, ``pretraining.jsonl``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, distributions found, deviations, rows dropped and the number of shared texts (zero).

    Raises:
        ManifestError: A dataset that this corpus cannot make.
        DataError: Nothing to mine, a set without rows, or an evaluated text among the training texts.
    """
    datasets = _wanted_datasets(manifest, corpus)
    for deviation in (deviations := corpus_deviations(manifest)):
        log.warning("python_docs: %s", deviation)
    mined = mine(manifest)
    built = build_corpus(mined, corpus.seed)
    report = WrittenSets(out)
    for dataset in datasets:
        _write_train(dataset, built, corpus, report)
    _write_pretraining(built, corpus, report)
    for task in manifest.tasks:
        _write_task(task, built, corpus, report)
    ledger = overlap_ledger(report.trained_on, report.evaluated)
    _check(report, ledger)
    facts = {
        "rows": report.rows,
        "fingerprint": corpus_fingerprint(manifest),
        "deviations": deviations,
        "dropped": dict(built.dropped),
        "shared_texts": shared_texts(ledger),
    }
    mining = {"files": mined.files, "unreadable": mined.unreadable, "definitions": len(mined.definitions)}
    write_json(out / "summary.json", {**facts, "mining": mining, "sets": report.sets, "overlap": ledger})
    return facts


def build_corpus(mined: Mined, seed: int) -> Corpus:
    """Candidates of every dataset, duplicates merged, with no text in two of evaluation, pre-training and training.

    Args:
        mined: What `boom_utils.data.mining.mine` found.
        seed: Draws the wording of questions; the splits do not depend on it.
    """
    definitions = split_definitions(mined)
    pairs = {name: merge_duplicates(build(definitions, seed)) for name, build in PAIRS.items()}
    labelled = merge_duplicates(exception_class(mined))
    described = merge_duplicates(parameter_overlap(definitions))
    everything: list[Sequence[Unit]] = [*pairs.values(), labelled, described]
    evaluated = _texts_of((unit for units in everything for unit in units), "evaluation", "held_out")
    pretrained = _texts_of(pairs[PRETRAINING], "pretraining")
    dropped: Counter[str] = Counter()

    def keep(name: str, units: Iterable[AnyUnit]) -> list[AnyUnit]:
        return [unit for unit in units if not _offends(name, unit, evaluated, pretrained, dropped)]

    kept = {name: keep(name, units) for name, units in pairs.items()}
    return Corpus(kept, keep(CLASSIFICATION, labelled), keep(STS, described), dropped)


def _texts_of(units: Iterable[Unit], *splits: Split) -> set[str]:
    return {normalise(text) for unit in units if unit.split in splits for text in unit.texts}


def _offends(name: str, unit: Unit, evaluated: set[str], pretrained: set[str], dropped: Counter[str]) -> bool:
    """Whether a unit that is learnt from holds a text it must not; counted if so."""
    texts = {normalise(text) for text in unit.texts}
    learnt_from = unit.split in ("train", "pretraining")
    offends = (learnt_from and bool(texts & evaluated)) or (unit.split == "train" and bool(texts & pretrained))
    dropped[name] += offends
    return offends


def _wanted_datasets(manifest: Manifest, corpus: CorpusConfig) -> list[Dataset]:
    known = {*PAIRS, CLASSIFICATION, STS}
    unknown = [dataset.id for dataset in manifest.datasets if dataset.id not in known]
    if unknown:
        raise ManifestError(
            f"python_docs has no rule for {', '.join(unknown)}",
            where=f"manifest '{manifest.name}'",
            expected=f"datasets among {', '.join(sorted(known))}",
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
    if dataset.id == CLASSIFICATION:
        labelled = _part(built.labelled, "train")
        rows = list(labelled_examples(labelled, labelled, dataset, generator))
    elif dataset.id == STS:
        described = _part(built.described, "train")
        rows = list(overlap_examples(described, described, dataset, generator))
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
    limit = corpus.evaluation_queries
    if task.dataset == CLASSIFICATION:
        fit, test, labels = classification_rows(_part(built.labelled, split), limit, generator)
        files = {"train": fit, "test": test}
        write_json(report.folder / "evaluation" / task.id / "labels.json", labels)
    elif task.dataset == STS:
        files = {"test": graded_rows(_part(built.described, split), limit, generator)}
    else:
        pool = _part(built.pairs[task.dataset], split)
        queries, documents, judgements = retrieval_rows(pool, limit, corpus.evaluation_documents, generator)
        files = {"queries": queries, "corpus": documents, "qrels": judgements}
    report.write_task(task.id, files)


def _part(units: Sequence[AnyUnit], split: Split) -> list[AnyUnit]:
    return [unit for unit in units if unit.split == split]


def _check(report: WrittenSets, ledger: Sequence[Mapping[str, Any]]) -> None:
    """Refuse empty sets and any evaluated text among those that models learn from."""
    report.refuse_empty("install the distributions that the manifest names")
    if shared_texts(ledger):
        raise DataError(
            "evaluated texts are also trained on",
            found=[entry for entry in ledger if entry["shared"]],
            fix="this is a fault of the kit: please report it",
        )
