"""A user's own rows, or those of hub datasets, become the training and evaluation files of a study.

Examples are streamed from file to file, so that memory does not grow with a corpus; only what is evaluated, the numbers
of rows and the pool of mined negatives are kept. Graded pairs and labelled texts take the rules of open_text
(`boom_utils.data.rows`), which look at all of them. Of own data some rows can be held out by a hash of their query
(first sentence, text), and are evaluated.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed, sha256_file
from boom_utils.config import CorpusConfig
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.examples import (
    BadLine,
    BadLines,
    TrainingExample,
    count_rows,
    hash_share,
    iter_examples,
    normalise,
)
from boom_utils.data.fetching import hub_set
from boom_utils.data.files import hub_paths, read_lock
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.negatives import NegativePool, Wanted
from boom_utils.data.overlap import NEAR, NearOptions
from boom_utils.data.own import Kind, count_rows_of, kind_of, local_path, numbered_rows
from boom_utils.data.text_files import COLUMNS, Raw
from boom_utils.errors import DataError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)

SHOWN = 3  # values of a kind that a report shows
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
        found[one.id] = {name: lock.files[name] if lock else sha256_file(path) for name, path in paths.items()}
    return found


def chosen_rows(
    total: int, select: int | None, limit: int | None, select_seed: int, limit_seed: int
) -> NDArray[np.int64]:
    """Numbers of the rows to use.

    Args:
        total: Rows there are.
        select: Rows of it that the manifest has drawn; None takes all.
        limit: Most rows of the study, drawn from those; None takes them all.
        select_seed: For ``select``.
        limit_seed: For the limit.

    Returns:
        Sorted numbers, int64[rows].
    """
    chosen = np.arange(total)
    if select is not None and select < total:
        chosen = _draw(total, select, select_seed)
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


# --- the corpus -------------------------------------------------------------------------------------------------------


class OwnRows:
    """Rows of users or of hub datasets, whose files are there (see `boom_utils.data.convert.Source`).

    Args:
        manifest: Of a corpus of ready-made rows; all its tasks are evaluated.
        corpus: Datasets, limits and seed; ``hard_negatives`` are mined for rows that bring none.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there or malformed.
    """

    near: NearOptions | None = NEAR
    fix = "give more rows, hold out another share, or set overlap: report"

    def __init__(self, manifest: Manifest, corpus: CorpusConfig, folder: Path) -> None:
        self._manifest, self._corpus, self._folder = manifest, corpus, folder
        self._sources = {
            one.id: _Source(one, [*own_paths(manifest, one, folder).values()], BadLines(corpus.on_bad_line))
            for one in _datasets(manifest, corpus)
        }
        for source in self._sources.values():
            source.look()
        self.tasks: Sequence[EvaluationTask] = manifest.tasks
        trained = (*corpus.datasets, *corpus.new_datasets)
        self.sets: Mapping[str, Dataset] = {f"train/{name}": manifest.dataset(name) for name in trained}
        self._deviations, self._mined = list[str](), dict[str, int]()

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """What is held out; of examples, every passage of the held-out rows is a document."""
        source = self._sources[task.dataset]
        made = evaluation_set(source.raw(), source.dataset, limits, generator)
        if source.kind != "examples":
            return made
        # Only what is relevant counts as evaluated: a negative may be one of others too.
        needed = {row["document"] for row in made.files["qrels"]}
        relevant = [row["text"] for row in made.files["corpus"] if row["id"] in needed]
        return replace(made, evaluated=[*(row["text"] for row in made.files["queries"]), *relevant])

    def training(self, name: str) -> Raw | Iterator[TrainingExample]:
        """Examples as they come, or records of the other kinds."""
        source, corpus = self._sources[self.sets[name].id], self._corpus
        if source.kind != "examples":
            return source.raw()
        dataset, hub, total = source.dataset, source.dataset.hub, len(source.others)
        select = None if hub is None else hub.select
        seeds = derive_seed(corpus.seed, "select", dataset.id), derive_seed(corpus.seed, "train", dataset.id)
        wanted = np.zeros(int(source.others.max(initial=-1)) + 1, dtype=bool)
        wanted[source.others[chosen_rows(total, select, corpus.train_rows, *seeds)]] = True
        if select and total < select:
            self._deviations.append(f"{dataset.id}: {select} rows are wanted, its files have {total}")
        return self._examples(source, wanted)

    def _examples(self, source: _Source, wanted: NDArray[np.bool_]) -> Iterator[TrainingExample]:
        """Wanted rows in a stream; says at its end where they state something else than the manifest."""
        dataset, columns = source.dataset, source.dataset.hub.columns if source.dataset.hub else {}
        used = {"prompt": dataset.prompt, "type": dataset.example_type}
        stated: Counter[tuple[str, str]] = Counter()
        for number, found in numbered_rows(source.files, columns, wanted):
            if not isinstance(found, TrainingExample):
                other = BadLine(f"row {number + 1} of {dataset.id}", "not a query and its positives")
                source.bad.add(found if isinstance(found, BadLine) else other)
                continue
            for name in used:
                value = getattr(found, name)
                if value not in (None, used[name]) and ((name, value) in stated or len(stated) < SHOWN):
                    stated[name, value] += 1
            yield found
        source.bad.close()
        self._deviations += [
            f"{dataset.id}: {rows} rows state the {name} '{value}', the manifest uses '{used[name]}'"
            for (name, value), rows in sorted(stated.items())
        ]
        hub, total = dataset.hub, len(source.others)
        if hub and hub.rows.source == "stated" and hub.rows.value != total:
            self._deviations.append(f"{dataset.id}: {hub.rows.value} rows are stated, its files have {total}")

    def completed(self, name: str, file: Path, bare: int) -> Iterator[TrainingExample] | None:
        """The rows, with mined negatives where they bring none; with nothing to mine among, they keep to their batch.

        Rows without negatives beside rows with some are left out when none is found for them.
        """
        dataset, most = self.sets[name], self._corpus.hard_negatives
        if not bare or dataset.group_size == "positive_only":
            return None
        rows = count_rows(file)
        pool, positives = _pool(file, POOL / rows)
        if bare == rows and (not most or len(pool.texts) < 2):
            self._deviations.append(f"{dataset.id}: rows have no negatives of their own, only those of their batch")
            return None
        log.info("%s: negatives of %d of %d rows are mined among %d passages", dataset.id, bare, rows, len(pool.texts))
        self._mined[dataset.id] = bare
        generator = np.random.default_rng(derive_seed(self._corpus.seed, "negatives", dataset.id))

        def mined() -> Iterator[TrainingExample]:
            for example in progress(iter_examples(file), rows, f"negatives of {dataset.id}"):
                query = normalise(example.query)
                apart = {query, *map(normalise, example.pos), *positives.get(query, ())}
                neg = example.neg or (most and tuple(pool.nearest(Wanted(example.query, apart, most), generator)))
                if neg:
                    yield replace(example, neg=neg)

        return mined()

    def facts(self) -> dict[str, Any]:
        """The sha256 of the files, what is not as the manifest says, and rows that were mined for or left out."""
        bad = {name: one.bad for name, one in self._sources.items()}
        return {
            "fingerprint": own_fingerprint(self._manifest, self._corpus, self._folder),
            "deviations": self._deviations,
            "mined": self._mined,
            "bad_lines": {
                name: {"number": b.number, "first": [str(one) for one in b.first]} for name, b in bad.items()
            },
        }


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
