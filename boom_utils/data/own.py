"""A user's own rows, or those of hub datasets: where they lie, and how they become the files of a study.

Examples are streamed from file to file, so that memory does not grow with a corpus; only what is evaluated, the numbers
of rows and the pool of mined negatives are kept. Graded pairs and labelled texts take the rules of open_text
(`boom_utils.data.rows`), which look at all of them. Of own data some rows can be held out by a hash of their query
(first sentence, text), and are evaluated.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed, sha256_file
from boom_utils.config import CorpusConfig
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.examples import (
    BadRows,
    Kind,
    Record,
    TrainingExample,
    count_rows,
    hash_share,
    iter_examples,
    kind_of,
    normalise,
    record_of,
    rows_of,
)
from boom_utils.data.fetching import hub_set, used_datasets
from boom_utils.data.files import hub_errors, hub_paths, hub_snapshot, read_lock
from boom_utils.data.manifest import READABLE, Dataset, EvaluationTask, Manifest
from boom_utils.data.negatives import NegativePool
from boom_utils.data.text_files import Raw, table_of
from boom_utils.errors import ConfigError, DataError, DownloadError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)

POOL = 100_000  # most rows whose passages negatives are mined among
_HUB_FILE = re.compile(r"hf://datasets/([^/]+/[^/@]+)@([^/]+)/(.+)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


# --- where rows lie ---------------------------------------------------------------------------------------------------


def own_datasets(place: str | Path) -> dict[str, list[str]]:
    """The datasets of a place, and the files of each.

    Args:
        place: A file, a folder (one dataset a file, or all ``-00000-of-00002`` parts of one), or a dataset of the hub:
            ``owner/name``, ``owner/name:config``; of that the training split.

    Returns:
        Dataset -> its files, by name. What is no data in a folder is left out, and logged.

    Raises:
        ConfigError: There is none, or the hub has no such dataset, or several configurations of it.
        DownloadError: The hub does not tell what the dataset consists of.

    >>> from boom_utils.data.examples import write_jsonl
    >>> _ = write_jsonl(Path("faq.jsonl"), [{"query": "a question", "pos": ["its answer"]}])
    >>> own_datasets("faq.jsonl")
    {'faq': ['faq.jsonl']}
    """
    path = Path(place).expanduser()
    if not path.exists() and _HUB_NAME.fullmatch(str(place)) and not READABLE.search(str(place)):
        return _of_the_hub(str(place))
    found, left_out = defaultdict[str, list[str]](list), []
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        if READABLE.search(file.name) and file.name not in _NO_DATA and file.is_file():
            found[_SHARD.sub("", READABLE.sub("", file.name))].append(str(file))
        else:
            left_out.append(file.name)
    if not found:
        kinds = "a file of rows (jsonl, json, csv, tsv, parquet, arrow; .gz, .zst), a folder of them, or a hub dataset"
        shown = ", ".join(left_out) or "nothing"
        raise ConfigError("there are no training files", where=path, expected=kinds, found=shown)
    if left_out:
        log.warning("%s: left out as no data: %s", path.name, ", ".join(left_out))
    return dict(found)


def _of_the_hub(place: str) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    repo, _, config = place.partition(":")
    try:
        with hub_errors(f"datasets/{place}"):
            files = load_dataset_builder(repo, config or None).config.data_files or {}
    except ValueError as error:  # the library names the configurations
        fix = "write owner/name:config with one of them"
        raise ConfigError(f"the hub dataset {place} has several configurations", found=error, fix=fix) from None
    split = "train" if "train" in files else next(iter(files), "")
    log.info("%s: %d files of split %s", place, len(files[split]), split)
    return {place.partition("/")[2].replace(":", "-"): list(files[split])}


def local_path(name: str, folder: Path = Path()) -> Path:
    """Where a file of a dataset lies; one of the hub (``hf://datasets/owner/name@revision/path``) is fetched.

    Args:
        name: As `own_datasets` and manifests give it.
        folder: What its path is relative to.

    Raises:
        DownloadError, ConfigError: It cannot be had, as `boom_utils.data.files.hub_snapshot` says.
    """
    if not (parts := _HUB_FILE.fullmatch(name)):
        return folder / name
    repo, revision, path = parts.groups()
    with suppress(DownloadError):  # of one commit: nobody needs to be asked for what is there
        if (there := hub_snapshot(repo, [path], revision, cached=True) / path).is_file():
            return there
    return hub_snapshot(repo, [path], revision) / path


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
    for one in used_datasets(manifest, corpus, [task.id for task in manifest.tasks]):
        lock = read_lock(hub_set(one, folder)) if one.hub else None
        paths = own_paths(manifest, one, folder)
        found[one.id] = {name: lock.files[name] if lock else sha256_file(path) for name, path in paths.items()}
    return found


# --- a first look -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What the files of a dataset hold.

    Args:
        kind: Of its rows.
        rows: Good ones.
        without_negatives: Examples among them that bring no negative.
        first: The first good one.
        bad: Malformed rows: their number, and the first ten.
    """

    kind: Kind
    rows: int
    without_negatives: int
    first: Record
    bad: BadRows


def check_files(files: Iterable[str], most: int | None = None) -> Checked:
    """Read the rows of a dataset without keeping them; malformed ones are logged.

    Args:
        files: As `own_datasets` gives them.
        most: Stop after that many good rows; None reads all.

    Returns:
        What they hold.

    Raises:
        DataError: A file is damaged, or no row is good.
        DownloadError: A file of the hub cannot be had.

    >>> from boom_utils.data.examples import write_jsonl
    >>> _ = write_jsonl(Path("mine.jsonl"), [{"anchor": "question", "positive": "answer"}, {"anchor": "no answer"}])
    >>> found = check_files(["mine.jsonl"])
    >>> found.kind, found.rows, found.without_negatives, found.bad.number
    ('examples', 1, 1, 1)
    """
    names, bad = list(files), BadRows(skip=True)
    first, rows, bare = None, 0, 0
    for _, record in islice(rows_of(map(local_path, names), record_of, bad), most):
        first, rows = first or record, rows + 1
        bare += isinstance(record, TrainingExample) and not record.neg
    if first is None:
        shown = ", ".join(name.rpartition("/")[2] for name in names)
        raise DataError(f"no good row in {shown}", found=bullet_list(bad.first) or "no row")
    return Checked(kind_of(first), rows, bare, first, bad)


# --- the corpus -------------------------------------------------------------------------------------------------------


def chosen_rows(rows: NDArray[np.int64], *draws: tuple[int | None, int]) -> NDArray[np.int64]:
    """Numbers of the rows to use, in their order.

    Args:
        rows: Numbers to choose from, int64[rows].
        draws: Most rows, and the seed they are drawn with; each draws among those before it. None takes them all.

    Returns:
        int64[chosen].
    """
    for most, seed in draws:
        if most is not None and most < len(rows):
            rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False, shuffle=False))]
    return rows


class _Source:
    """A dataset and what is known of its rows before any is written.

    Held out are the rows whose hash falls into the share, on any machine the same: the attribute ``held``. Of the
    others, ``numbers`` are those of examples, int64[rows], and ``kept`` the records of other kinds.

    Args:
        dataset: Whose they are.
        files: In order.
        skip: Malformed rows are left out; else they are an error.

    Raises:
        DataError: A file is damaged, or rows are malformed.
    """

    def __init__(self, dataset: Dataset, files: Sequence[Path], skip: bool) -> None:
        self.dataset, self.files, self.bad = dataset, files, BadRows(skip)
        self.kept, self.held, self.kind = list[Any](), list[Any](), cast(Kind | None, None)
        if dataset.local is None:
            self.kind, self.numbers = "examples", np.arange(sum(map(count_rows, files)))
            return
        share, numbers = dataset.local.held_out or 0.0, array("q")
        for number, record in rows_of(files, self.record, self.bad):
            if hash_share(record.query if isinstance(record, TrainingExample) else record[0]) < share:
                self.held.append(record)
            elif isinstance(record, TrainingExample):
                numbers.append(number)
            else:
                self.kept.append(record)
        self.numbers = np.array(numbers, dtype=np.int64)

    def record(self, row: Mapping[str, Any]) -> Record:
        """The record in a row, which is of the kind of those before it."""
        record = record_of(row, self.dataset.hub.columns if self.dataset.hub else {}, self.kind)
        self.kind = kind_of(record)
        return record

    def raw(self) -> Raw:
        """What is held out, and records to train on, as the rules of evaluation sets and of training rows take them."""
        if self.kind not in ("graded", "labelled"):
            return self._judged()
        parts = {"train": self.kept, "test": self.held}
        if self.kind == "graded" and max(row.score for rows in parts.values() for row in rows) <= 1:
            parts = {name: [row._replace(score=5 * row.score) for row in rows] for name, rows in parts.items()}
        return Raw(self.kind, {name: table_of(self.kind, rows) for name, rows in parts.items()})

    def _judged(self) -> Raw:
        """Held-out queries, each once, and every passage of their rows as a document."""
        queries = [list(rows) for _, rows in groupby(sorted(self.held, key=_asked), _asked)]
        # Sorted, so that no order of theirs breaks ties in favour of the relevant ones.
        texts = sorted({text for row in self.held for text in (*row.pos, *row.neg)})
        place = {text: number for number, text in enumerate(texts)}
        relevant = [sorted({place[text] for row in rows for text in row.pos}) for rows in queries]
        parts: dict[str, list[Any]] = {
            "corpus": [(f"d{number}", text) for number, text in enumerate(texts)],
            "queries": [(f"q{number}", rows[0].query) for number, rows in enumerate(queries)],
            "qrels": [(f"q{query}", f"d{text}", 1) for query, found in enumerate(relevant) for text in found],
        }
        return Raw("judged", {name: table_of(name, rows) for name, rows in parts.items()})


def _asked(example: TrainingExample) -> str:
    return normalise(example.query)


class OwnRows:
    """Rows of users or of hub datasets, whose files are there (see `boom_utils.data.convert.Source`).

    Args:
        manifest: Of a corpus of ready-made rows; all its tasks are evaluated.
        corpus: Datasets, limits and seed; ``hard_negatives`` are mined for rows that bring none.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there or malformed.
    """

    near = True
    fix = "give more rows, hold out another share, or set overlap: report"

    def __init__(self, manifest: Manifest, corpus: CorpusConfig, folder: Path) -> None:
        self._fingerprint = partial(own_fingerprint, manifest, corpus, folder)
        self._corpus = corpus
        self._sources = {
            one.id: _Source(one, [*own_paths(manifest, one, folder).values()], corpus.on_bad_line == "skip")
            for one in used_datasets(manifest, corpus, [task.id for task in manifest.tasks])
        }
        self.tasks: Sequence[EvaluationTask] = manifest.tasks
        trained = (*corpus.datasets, *corpus.new_datasets)
        self.sets: Mapping[str, Dataset] = {f"train/{name}": manifest.dataset(name) for name in trained}
        self._deviations, self._mined = list[str](), dict[str, int]()

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """What is held out; of examples, every passage of the held-out rows is a document.

        Raises:
            DataError: No rank correlation exists, as all scores are equal.
        """
        source = self._sources[task.dataset]
        made = evaluation_set(source.raw(), source.dataset, limits, generator)
        if source.kind == "graded" and len({row["score"] for row in made.files["test"]}) == 1:
            what = f"all held-out pairs of dataset '{task.dataset}' have one score: no model can be compared by them"
            raise DataError(what, expected="pairs of different scores", fix="give more rows, or hold out another share")
        if source.kind in ("graded", "labelled"):
            return made
        # Only what is relevant counts as evaluated: a negative may be one of others too.
        needed = {row["document"] for row in made.files["qrels"]}
        relevant = [row["text"] for row in made.files["corpus"] if row["id"] in needed]
        return replace(made, evaluated=[*(row["text"] for row in made.files["queries"]), *relevant])

    def training(self, name: str) -> Raw | Iterator[TrainingExample]:
        """Examples as they come, or records of the other kinds."""
        dataset, corpus = self.sets[name], self._corpus
        source, select = self._sources[dataset.id], dataset.hub.select if dataset.hub else None
        if source.kind in ("graded", "labelled"):
            return source.raw()
        selecting, limiting = (derive_seed(corpus.seed, what, dataset.id) for what in ("select", "train"))
        chosen = chosen_rows(source.numbers, (select, selecting), (corpus.train_rows, limiting))
        wanted = np.zeros(int(chosen.max(initial=-1)) + 1, dtype=bool)
        wanted[chosen] = True
        return self._examples(source, wanted)

    def _examples(self, source: _Source, wanted: NDArray[np.bool_]) -> Iterator[TrainingExample]:
        """Wanted rows in a stream; says at its end where they state something else than the manifest."""
        dataset, hub, total = source.dataset, source.dataset.hub, len(source.numbers)
        used = {"prompt": dataset.prompt, "type": dataset.example_type}
        stated, first = Counter[str](), dict[str, str]()
        for _, record in rows_of(source.files, source.record, source.bad, wanted):
            assert isinstance(record, TrainingExample)
            for name, ours in used.items():
                if (value := getattr(record, name)) not in (None, ours):
                    stated[name] += 1
                    first.setdefault(name, value)
            yield record
        self._deviations += [
            f"{dataset.id}: {stated[name]} rows state another {name} than the manifest, the first '{value}'"
            for name, value in sorted(first.items())
        ]
        stated_rows = hub.rows.value if hub and hub.rows.source == "stated" else None
        if hub and (total < (hub.select or 0) or stated_rows not in (None, total)):
            what = f"{stated_rows or 'no number of'} rows are stated, {hub.select or 'all'} are wanted"
            self._deviations.append(f"{dataset.id}: {what}, its files have {total}")

    def completed(self, name: str, file: Path) -> Iterator[TrainingExample] | None:
        """The rows, with mined negatives where they bring none; with nothing to mine among, they keep to their batch.

        Rows without negatives beside rows with some are left out when none is found for them.
        """
        dataset, most = self.sets[name], self._corpus.hard_negatives
        rows, bare = count_rows(file), sum(not example.neg for example in iter_examples(file))
        if not bare or dataset.group_size == "positive_only":
            return None
        step, passages, positives = -(-rows // POOL), list[str](), defaultdict[str, set[str]](set)
        for example in islice(iter_examples(file), 0, None, step):
            passages += example.pos
            positives[normalise(example.query)].update(map(normalise, example.pos))
        pool = NegativePool(passages)
        if bare == rows and (not most or len(pool.texts) < 2):
            self._deviations.append(f"{dataset.id}: rows have no negatives of their own, only those of their batch")
            return None
        what = f"{len(pool.texts)} passages, those of one row in {step}"
        log.info("%s: negatives of %d of %d rows are mined among %s", dataset.id, bare, rows, what)
        self._mined[dataset.id] = bare
        generator = np.random.default_rng(derive_seed(self._corpus.seed, "negatives", dataset.id))

        def mined() -> Iterator[TrainingExample]:
            for example in progress(iter_examples(file), rows, f"negatives of {dataset.id}"):
                query = normalise(example.query)
                apart = {query, *map(normalise, example.pos), *positives.get(query, ())}
                neg = example.neg or (most and tuple(pool.nearest(example.query, apart, most, generator)))
                if neg:
                    yield replace(example, neg=neg)

        return mined()

    def facts(self) -> dict[str, Any]:
        """The sha256 of the files, what is not as the manifest says, and rows that were mined for or left out."""
        bad = {name: one.bad.facts for name, one in self._sources.items()}
        facts = {"deviations": self._deviations, "mined": self._mined, "bad_lines": bad}
        return {"fingerprint": self._fingerprint(), **facts}
