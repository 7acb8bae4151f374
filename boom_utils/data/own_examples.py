"""Stage: a user's own rows, or those of hub datasets, become the training and evaluation files of a study.

Examples are streamed from file to file, so that memory does not grow with a corpus; only what is evaluated, the numbers
of rows and the pool of mined negatives are kept. Graded pairs and labelled texts take the rules of open_text
(`boom_utils.data.rules`), which look at all of them. Of own data some rows can be held out by a hash of their query
(first sentence, text), and are evaluated.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed, sha256_file, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.evaluation_sets import Limits, evaluation_set
from boom_utils.data.example_sets import WrittenSets, word_numbers
from boom_utils.data.examples import (
    BadLine,
    BadLines,
    TrainingExample,
    hash_share,
    iter_examples,
    normalise,
    write_examples,
)
from boom_utils.data.fetching import hub_set
from boom_utils.data.files import hub_paths, read_lock
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.manifest_hub import Selection
from boom_utils.data.negatives import NegativePool, Wanted
from boom_utils.data.overlap import Overlap, find_overlap, task_domains
from boom_utils.data.own import PLAIN, Kind, count_rows_of, kind_of, local_path, numbered_rows
from boom_utils.data.record_tables import as_examples
from boom_utils.data.rules import RowOptions, training_rows
from boom_utils.data.text_files import COLUMNS, Raw
from boom_utils.errors import DataError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)

SHOWN = 3  # values of a kind that a report shows
_EVALUATED = "a text is evaluated, or nearly so"
POOL = 100_000  # most passages that negatives are mined among


# --- files and rows of a dataset --------------------------------------------------------------------------------------


def own_paths(manifest: Manifest, dataset: Dataset, folder: Path) -> dict[str, Path]:
    """The files of a dataset, in the order of its rows: name -> path.

    Args:
        manifest: Of a corpus of ready-made rows.
        dataset: One of its datasets.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there.
        DownloadError: Files of the hub were never fetched, or cannot be had.
    """
    if dataset.local is None:
        return hub_paths(hub_set(dataset, folder))
    paths = {name: local_path(name, manifest.folder) for name in dataset.local.files}
    if absent := [name for name, path in paths.items() if not path.is_file()]:
        fix = "correct the paths; they are relative to the manifest's file"
        raise DataError(f"files of dataset '{dataset.id}' are not there", found=bullet_list(absent), fix=fix)
    return paths


def own_fingerprint(manifest: Manifest, corpus: CorpusConfig, folder: Path) -> dict[str, dict[str, str]]:
    """What the rows of a study are made from: dataset -> name of a file -> its sha256.

    Args:
        manifest: Of a corpus of ready-made rows.
        corpus: Names the datasets.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there.
    """
    found = {}
    for one in _datasets(manifest, corpus):
        lock = read_lock(hub_set(one, folder)) if one.hub else None
        paths = own_paths(manifest, one, folder)
        found[one.id] = {name: lock.files[name].sha256 if lock else sha256_file(path) for name, path in paths.items()}
    return found


def chosen_rows(
    total: int, select: Selection | None, limit: int | None, select_seed: int, limit_seed: int
) -> NDArray[np.int64]:
    """Numbers of the rows to use.

    Args:
        total: Rows there are.
        select: The manifest's rule, or None.
        limit: Most rows of the study, drawn from those the rule gives; None takes them all.
        select_seed: For a rule that draws.
        limit_seed: For the limit.

    Returns:
        Sorted numbers, int64[rows].
    """
    chosen = np.arange(total)
    if select is not None and select.rows < total:
        chosen = chosen[: select.rows] if select.rule == "first" else _draw(total, select.rows, select_seed)
    if limit is not None and limit < len(chosen):
        chosen = chosen[_draw(len(chosen), limit, limit_seed)]
    return chosen


def _draw(total: int, number: int, seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(total, number, replace=False, shuffle=False)).astype(np.int64)


def _datasets(manifest: Manifest, corpus: CorpusConfig) -> list[Dataset]:
    """Those that are trained on, then those that are evaluated only."""
    names = [*corpus.datasets, *corpus.new_datasets, *(task.dataset for task in manifest.tasks)]
    return [manifest.dataset(name) for name in dict.fromkeys(names)]


@dataclass
class _Source:
    """A dataset and what is known of its rows before any is written.

    Args:
        dataset: Whose they are.
        files: In order.
        bad: Rows that break a rule.
        kind: Of the rows.
        others: Numbers of the examples that may be trained on, int64[rows].
        held: Examples whose query is held out, by normalised query.
        records: Graded pairs or labelled texts: those trained on, and those held out.
    """

    dataset: Dataset
    files: Sequence[Path]
    bad: BadLines
    kind: Kind = "examples"
    others: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    held: dict[str, list[TrainingExample]] = field(default_factory=lambda: defaultdict(list))
    records: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))

    def look(self) -> None:
        """Find out which rows are held out: those whose hash falls into the share, on any machine the same."""
        if self.dataset.local is None:
            self.others = np.arange(sum(count_rows_of(path) for path in self.files))
            return
        share, others, kinds = self.dataset.local.held_out or 0.0, array("q"), set[Kind]()
        for number, found in numbered_rows(self.files):
            if not isinstance(found, BadLine) and kind_of(found) not in (kinds := kinds or {kind_of(found)}):
                found = BadLine(f"row {number + 1} of {self.dataset.id}", "not of the kind of those before it")
            if isinstance(found, BadLine):
                self.bad.add(found)
            elif not isinstance(found, TrainingExample):
                self.records[hash_share(found[0]) < share].append(found)
            elif hash_share(found.query) < share:
                self.held[normalise(found.query)].append(found)
            else:
                others.append(number)
        self.bad.close()
        self.kind, self.others = next(iter(kinds), "examples"), np.array(others, dtype=np.int64)

    def raw(self) -> Raw:
        """What is held out, and records to train on, as the rules of evaluation sets and of training rows take them."""
        if self.kind == "examples":
            queries = sorted(self.held)
            held = [(number, row) for number, query in enumerate(queries) for row in self.held[query]]
            # Sorted, so that no order of theirs breaks ties in favour of the relevant ones.
            texts = sorted({text for _, row in held for text in (*row.pos, *row.neg)})
            place = {text: number for number, text in enumerate(texts)}
            judged = sorted({(number, place[text]) for number, row in held for text in row.pos})
            parts: dict[str, list[Any]] = {
                "corpus": [(f"d{number}", text) for number, text in enumerate(texts)],
                "queries": [(f"q{number}", self.held[query][0].query) for number, query in enumerate(queries)],
                "qrels": [(f"q{query}", f"d{text}", 1) for query, text in judged],
            }
            return Raw("judged", {name: _table(name, rows) for name, rows in parts.items()}, ())
        both = self.records
        if self.kind == "graded" and max(row[2] for part in both for row in part) <= 1:
            both = ([(*pair, 5 * score) for *pair, score in both[0]], [(*pair, 5 * score) for *pair, score in both[1]])
        return Raw(self.kind, {"train": _table(self.kind, both[0]), "test": _table(self.kind, both[1])}, ())


def _table(shape: str, rows: Sequence[Sequence[Any]]) -> pa.Table:
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(COLUMNS[shape])})


# --- the stage --------------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """What is made, and what is left out, while a corpus is written."""

    corpus: CorpusConfig
    written: WrittenSets
    deviations: list[str] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bare: dict[str, int] = field(default_factory=dict)
    mined: dict[str, int] = field(default_factory=dict)

    def generator(self, *names: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.corpus.seed, *names))

    def file(self, dataset: Dataset) -> Path:
        return self.written.folder / "train" / f"{dataset.id}.jsonl"

    def write(self, dataset: Dataset, rows: Iterable[TrainingExample]) -> list[str]:
        """Write the rows of a dataset, or write them anew; says where they state something else than the manifest."""
        used = {"prompt": dataset.prompt, "type": dataset.example_type}
        stated: dict[str, Counter[str]] = {name: Counter() for name in used}
        queries, passages, bare = array("I"), array("I"), 0

        def looked_at() -> Iterator[TrainingExample]:
            nonlocal bare
            for example in rows:
                queries.append(len(example.query.split()))
                passages.extend(len(text.split()) for text in (*example.pos, *example.neg))
                bare += not example.neg
                for name, counts in stated.items():
                    value = getattr(example, name)
                    if value not in (None, used[name]) and (value in counts or len(counts) < SHOWN):
                        counts[value] += 1
                yield example

        words = {"query_words": queries, "passage_words": passages}
        written = {"rows": write_examples(self.file(dataset), looked_at())}
        self.written.sets[f"train/{dataset.id}"] = written | {name: word_numbers(words[name]) for name in words}
        self.bare[dataset.id] = bare
        return [
            f"{number} rows state the {name} '{value}', the manifest uses '{used[name]}'"
            for name, values in stated.items()
            for value, number in sorted(values.items())
        ]


def make_examples(manifest: Manifest, corpus: CorpusConfig, folder: Path, out: Path) -> dict[str, Any]:
    """Write training rows, and the evaluation sets of what is held out.

    Args:
        manifest: Of a corpus of ready-made rows.
        corpus: Datasets, limits and seed; ``hard_negatives`` are mined for rows that bring none.
        folder: The downloads folder.
        out: Empty folder; gets ``train/``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, what they were made from, deviations, rows dropped and why, and the number of evaluated texts
        that are still trained on.

    Raises:
        DataError: Files are not there or malformed, or a set has no rows.
    """
    sources = {
        one.id: _Source(one, [*own_paths(manifest, one, folder).values()], BadLines(corpus.on_bad_line))
        for one in _datasets(manifest, corpus)
    }
    work = _Work(corpus, WrittenSets(out))
    for source in sources.values():
        source.look()
    for task in manifest.tasks:
        _write_task(task, sources[task.dataset], work)
    trained = [manifest.dataset(name) for name in (*corpus.datasets, *corpus.new_datasets)]
    for dataset in progress(trained, len(trained), "training rows"):
        _write_train(sources[dataset.id], work)
    work.written.refuse_empty("give more rows, or hold out another share", work.dropped)
    overlap = _without_evaluated(trained, work) if manifest.tasks else Overlap({}, {}, {})
    for dataset in trained:
        _add_negatives(dataset, work)
    work.written.refuse_empty("hold out another share, or set overlap: report", work.dropped)
    for deviation in work.deviations:
        log.warning("%s: %s", manifest.name, deviation)
    facts = {
        "rows": work.written.rows,
        "fingerprint": own_fingerprint(manifest, corpus, folder),
        "deviations": work.deviations,
        "dropped": {name: dict(+counts) for name, counts in work.dropped.items() if +counts},
        "shared_texts": overlap.exact if corpus.overlap == "report" else 0,
    }
    found = {
        "sets": work.written.sets,
        "overlap": overlap.ledger,
        "domains": task_domains(manifest.tasks, corpus.datasets, overlap) if manifest.tasks else [],
        "mined": work.mined,
        "bad_lines": {
            name: {"number": one.bad.number, "first": [str(bad) for bad in one.bad.first]}
            for name, one in sources.items()
        },
    }
    write_json(out / "summary.json", {**facts, **found})
    return facts


def _write_task(task: EvaluationTask, source: _Source, work: _Work) -> None:
    """Write what is held out; of examples, every passage of the held-out rows is a document."""
    limits = Limits(work.corpus.evaluation_queries, work.corpus.evaluation_documents)
    made = evaluation_set(source.raw(), source.dataset, limits, work.generator("evaluation", task.id))
    work.written.write_task(task.id, made.files)
    work.dropped[f"evaluation/{task.id}"] += made.dropped
    if made.labels is not None:
        write_json(work.written.folder / "evaluation" / task.id / "labels.json", made.labels)
    if source.kind == "examples":  # only what is relevant counts as evaluated: a negative may be one of others too
        needed = {row["document"] for row in made.files["qrels"]}
        relevant = [row["text"] for row in made.files["corpus"] if row["id"] in needed]
        work.written.evaluated[task.id] = [*(row["text"] for row in made.files["queries"]), *relevant]


def _write_train(source: _Source, work: _Work) -> None:
    """Write the rows of a dataset as they come, or by the rule of their kind."""
    dataset, corpus, hub = source.dataset, work.corpus, source.dataset.hub
    if source.kind != "examples":
        # Looked for among the records: an evaluated text must not come back as a negative of many rows.
        raw, keep = source.raw(), np.ones(len(source.records[0]), dtype=bool)
        if corpus.overlap == "drop" or source.kind == "labelled":  # a classifier is fitted on what it evaluates
            overlap = find_overlap({dataset.id: as_examples(raw.parts["train"])}, work.written.evaluated)
            keep[overlap.offending[dataset.id]] = False
        options = RowOptions(dataset, corpus.hard_negatives, corpus.train_rows)
        generator = work.generator("train", dataset.id)
        rows, dropped = training_rows(raw.shape, raw.parts["train"].filter(keep), options, generator)
        work.dropped[f"train/{dataset.id}"] += dropped + Counter({_EVALUATED: int((~keep).sum())})
        work.write(dataset, rows)
        return
    select, total = None if hub is None else hub.select, len(source.others)
    seeds = derive_seed(corpus.seed, "select", dataset.id), derive_seed(corpus.seed, "train", dataset.id)
    wanted = np.zeros(int(source.others.max(initial=-1)) + 1, dtype=bool)
    wanted[source.others[chosen_rows(total, select, corpus.train_rows, *seeds)]] = True
    notes = [f"{select.rows} rows are wanted, its files have {total}"] if select and total < select.rows else []
    notes += work.write(dataset, _examples(source, wanted))
    if hub and hub.rows.source == "stated" and hub.rows.value != total:
        notes.append(f"{hub.rows.value} rows are stated, its files have {total}")
    work.deviations += [f"{dataset.id}: {note}" for note in notes]


def _examples(source: _Source, wanted: NDArray[np.bool_]) -> Iterator[TrainingExample]:
    columns = PLAIN if source.dataset.hub is None else source.dataset.hub.columns
    for number, found in numbered_rows(source.files, columns, wanted):
        if isinstance(found, TrainingExample):
            yield found
        else:
            other = BadLine(f"row {number + 1} of {source.dataset.id}", "not a query and its positives")
            source.bad.add(found if isinstance(found, BadLine) else other)
    source.bad.close()


def _without_evaluated(datasets: Sequence[Dataset], work: _Work) -> Overlap:
    """Look for evaluated texts among the training rows, and write those sets anew that hold some."""
    overlap = find_overlap({one.id: work.file(one) for one in datasets}, work.written.evaluated)
    for dataset in datasets:
        offending = frozenset(overlap.offending[dataset.id].tolist())
        if offending and work.corpus.overlap == "drop":
            rows = enumerate(iter_examples(work.file(dataset)))
            work.write(dataset, (example for number, example in rows if number not in offending))
            work.dropped[f"train/{dataset.id}"][_EVALUATED] += len(offending)
    return overlap


def _add_negatives(dataset: Dataset, work: _Work) -> None:
    """Mine negatives for rows that bring none; where there is nothing to mine, pairs keep to those of their batch.

    Rows without negatives beside rows with some are left out when none is found for them.
    """
    file, bare, rows = work.file(dataset), work.bare[dataset.id], work.written.rows[f"train/{dataset.id}"]
    if not bare or dataset.group_size == "positive_only":
        return
    most, (pool, positives) = work.corpus.hard_negatives, _pool(file, POOL / rows)
    if bare == rows and (not most or len(pool.texts) < 2):
        work.deviations.append(f"{dataset.id}: rows have no negatives of their own, only those of their batch")
        return
    log.info("%s: negatives of %d of %d rows are mined among %d passages", dataset.id, bare, rows, len(pool.texts))
    generator = work.generator("negatives", dataset.id)

    def mined() -> Iterator[TrainingExample]:
        for example in progress(iter_examples(file), rows, f"negatives of {dataset.id}"):
            query = normalise(example.query)
            apart = {query, *map(normalise, example.pos), *positives.get(query, ())}
            neg = example.neg or (most and tuple(pool.nearest(Wanted(example.query, apart, most), generator)))
            work.dropped[f"train/{dataset.id}"]["query without a negative"] += not neg
            if neg:
                yield replace(example, neg=neg)

    work.write(dataset, mined())
    work.mined[dataset.id] = bare


def _pool(file: Path, share: float) -> tuple[NegativePool, dict[str, set[str]]]:
    """Positives to mine among, a share of them where there are very many, and which query they answer."""
    if share < 1:
        log.warning("%s: negatives are mined among %.1f %% of the positives", file.stem, 100 * share)
    passages, positives = list[str](), defaultdict[str, set[str]](set)
    for example in iter_examples(file):
        for text in example.pos:
            if share >= 1 or hash_share(text) < share:
                passages.append(text)
                positives[normalise(example.query)].add(normalise(text))
    return NegativePool(passages), positives
