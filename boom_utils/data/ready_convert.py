"""Stage: ready-made rows, of the hub or a user's own, become the training and evaluation files of a study.

Rows are streamed from file to file, so that memory does not grow with a corpus; only what is evaluated, and the row
numbers of a draw, are kept. Of a user's own data some queries can be held out, which then are a retrieval task.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed, sha256_file, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.example_sets import WrittenSets, draw_retrieval, word_numbers
from boom_utils.data.examples import BadLine, TrainingExample, hash_share, iter_examples, normalise, write_examples
from boom_utils.data.hub_files import known_files, known_rows
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.overlap import Overlap, find_overlap, task_domains
from boom_utils.data.ready_rows import BadLines, chosen_rows, columns_of, count_ready, numbered_rows
from boom_utils.errors import DataError, bullet_list
from boom_utils.progress import progress

log = logging.getLogger(__name__)

SHOWN = 3
"""Texts, prompts or types of a kind that a report shows."""
STATES = ("prompt", "type")
"""What a row may state about itself, and the manifest states about the dataset."""


@dataclass(frozen=True)
class HeldOut:
    """Rows of a dataset whose query is evaluated, and the numbers of all others.

    Args:
        rows: Normalised query -> its rows, in the file's order.
        others: Sorted numbers, int64[rows]; bad rows are among them.
    """

    rows: Mapping[str, list[TrainingExample]]
    others: NDArray[np.int64]


class _Seen:
    """What is known of the rows of a set once the last one went by.

    Args:
        dataset: Whose rows they are.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.rows = 0
        self.words = {"query_words": array("I"), "passage_words": array("I")}
        self.stated: dict[str, Counter[str]] = {name: Counter() for name in STATES}
        self._used = {"prompt": dataset.prompt, "type": dataset.example_type}

    def pass_on(self, examples: Iterable[TrainingExample]) -> Iterator[TrainingExample]:
        """The same examples, looked at on their way."""
        for example in examples:
            self.rows += 1
            self.words["query_words"].append(len(example.query.split()))
            self.words["passage_words"].extend(len(text.split()) for text in (*example.pos, *example.neg))
            for name, used in self._used.items():
                value, counts = getattr(example, name), self.stated[name]
                if value not in (None, used) and (value in counts or len(counts) < SHOWN):
                    counts[value] += 1
            yield example

    def facts(self) -> dict[str, Any]:
        """Rows, and numbers of words."""
        return {"rows": self.rows, **{name: word_numbers(counts) for name, counts in self.words.items()}}

    def deviations(self) -> list[str]:
        """Where rows say something else than the manifest."""
        return [
            f"{number} rows state the {name} '{value}', the manifest uses '{self._used[name]}'"
            for name, values in self.stated.items()
            for value, number in sorted(values.items())
        ]


def ready_files(manifest: Manifest, dataset: Dataset, folder: Path) -> list[Path]:
    """The files of a dataset, in the order of its rows.

    Args:
        manifest: Of a corpus of ready-made rows.
        dataset: One of its datasets.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there.
    """
    if dataset.local is not None:
        paths = [manifest.folder / name for name in dataset.local.files]
        absent = [name for name, path in zip(dataset.local.files, paths, strict=True) if not path.is_file()]
        fix = "correct the paths; they are relative to the manifest's file"
    elif dataset.hub is not None:
        known = known_files(dataset.id, dataset.hub, folder)
        places = [(file, folder / file.path) for file in known or ()]
        paths = [path for _, path in places]
        right = [path.is_file() and path.stat().st_size == file.bytes for file, path in places]
        absent = [path.name for path, there in zip(paths, right, strict=True) if not there]
        absent += [] if known else ["all of them: it was never fetched"]
        fix = f"boom data fetch --manifest {manifest.name} --only {dataset.id}"
    else:
        raise DataError(f"dataset '{dataset.id}' has no ready-made rows", where=f"corpus '{manifest.name}'")
    if absent:
        raise DataError(f"files of dataset '{dataset.id}' are not there", found=bullet_list(absent), fix=fix)
    return paths


def ready_fingerprint(manifest: Manifest, corpus: CorpusConfig, folder: Path) -> dict[str, dict[str, str]]:
    """What the rows of a study are made from: dataset -> name of a file -> its sha256.

    Args:
        manifest: Of a corpus of ready-made rows.
        corpus: Names the datasets.
        folder: The downloads folder.

    Raises:
        DataError: Files are not there.
    """
    found = {}
    for dataset in _datasets(manifest, corpus):
        paths = ready_files(manifest, dataset, folder)
        if dataset.hub is not None:
            known = known_files(dataset.id, dataset.hub, folder) or []
            found[dataset.id] = {str(file.path): str(file.sha256) for file in known}
        elif dataset.local is not None:
            found[dataset.id] = {name: sha256_file(path) for name, path in zip(dataset.local.files, paths, strict=True)}
    return found


def convert_ready(manifest: Manifest, corpus: CorpusConfig, folder: Path, out: Path) -> dict[str, Any]:
    """Write training rows, and the evaluation sets of held-out queries.

    Args:
        manifest: Of a corpus of ready-made rows.
        corpus: Datasets, limits and seed; ``hard_negatives`` is not read, rows bring their own.
        folder: The downloads folder.
        out: Empty folder; gets ``train/``, ``evaluation/`` and ``summary.json``.

    Returns:
        Rows of every set, what they were made from, deviations, rows dropped because they hold an evaluated text (or
        nearly repeat it), and the number of evaluated texts that are still trained on.

    Raises:
        DataError: Files are not there or malformed, or a set has no rows.
    """
    wanted = _datasets(manifest, corpus)
    files = {dataset.id: ready_files(manifest, dataset, folder) for dataset in wanted}
    bad = {dataset.id: BadLines(corpus.on_bad_line) for dataset in wanted}
    held = {one.id: held_out_rows(one, files[one.id]) for one in wanted if one.local and one.local.held_out}
    written, deviations = WrittenSets(out), list[str]()
    for task in manifest.tasks:
        _write_task(task, held[task.dataset], corpus, written)
    trained = [manifest.dataset(name) for name in (*corpus.datasets, *corpus.new_datasets)]
    for dataset in progress(trained, len(trained), "training rows"):
        numbers, more = _numbers(dataset, files[dataset.id], held.get(dataset.id), corpus)
        rows = numbered_rows(files[dataset.id], columns_of(dataset), numbers)
        seen = _write_train(dataset, _good(rows, bad[dataset.id]), written)
        notes = [*more, *seen.deviations(), *_miscounted(dataset, folder)]
        deviations += [f"{dataset.id}: {note}" for note in notes]
    written.refuse_empty("give more rows, or hold out another share")
    overlap, dropped = _without_evaluated(trained, corpus, written) if manifest.tasks else (Overlap({}, {}, {}), {})
    for deviation in deviations:
        log.warning("%s: %s", manifest.name, deviation)
    facts = {
        "rows": written.rows,
        "fingerprint": ready_fingerprint(manifest, corpus, folder),
        "deviations": deviations,
        "dropped": dropped,
        "shared_texts": overlap.exact if corpus.overlap == "report" else 0,
    }
    malformed = {name: {"number": b.number, "first": [str(one) for one in b.first]} for name, b in bad.items()}
    domains = task_domains(manifest.tasks, corpus.datasets, overlap) if manifest.tasks else []
    found = {"sets": written.sets, "overlap": overlap.ledger, "domains": domains, "bad_lines": malformed}
    write_json(out / "summary.json", {**facts, **found})
    return facts


def held_out_rows(dataset: Dataset, files: Sequence[Path]) -> HeldOut:
    """Find the rows whose query is held out: those whose hash falls into the dataset's share, on any machine the same.

    Args:
        dataset: A user's own, with a share.
        files: Its files.
    """
    share = dataset.local.held_out if dataset.local and dataset.local.held_out else 0.0
    rows: dict[str, list[TrainingExample]] = defaultdict(list)
    others = array("q")
    for number, found in numbered_rows(files, columns_of(dataset)):
        # A bad row is met again, and reported, when the others are written.
        if isinstance(found, BadLine) or hash_share(found.query) >= share:
            others.append(number)
        else:
            rows[normalise(found.query)].append(found)
    return HeldOut(rows, np.array(others, dtype=np.int64))


def _datasets(manifest: Manifest, corpus: CorpusConfig) -> list[Dataset]:
    """Those that are trained on, then those that are evaluated only."""
    names = [*corpus.datasets, *corpus.new_datasets, *(task.dataset for task in manifest.tasks)]
    return [manifest.dataset(name) for name in dict.fromkeys(names)]


def _numbers(
    dataset: Dataset, files: Sequence[Path], held: HeldOut | None, corpus: CorpusConfig
) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Numbers of the rows to train on (None: all), and what about them is not as the manifest wants it."""
    total = sum(count_ready(path) for path in files) if held is None else len(held.others)
    select = None if dataset.hub is None else dataset.hub.select
    seeds = derive_seed(corpus.seed, "select", dataset.id), derive_seed(corpus.seed, "train", dataset.id)
    chosen = chosen_rows(total, select, corpus.train_rows, *seeds)
    short = select is not None and total < select.rows
    deviations = [f"{select.rows} rows are wanted, its files have {total}"] if select and short else []
    if held is None:
        return chosen, deviations
    return held.others if chosen is None else held.others[chosen], deviations


def _good(rows: Iterable[tuple[int, TrainingExample | BadLine]], bad: BadLines) -> Iterator[TrainingExample]:
    for _, found in rows:
        if isinstance(found, BadLine):
            bad.add(found)
        else:
            yield found
    bad.close()


def _train_file(dataset: Dataset, written: WrittenSets) -> Path:
    return written.folder / "train" / f"{dataset.id}.jsonl"


def _write_train(dataset: Dataset, rows: Iterable[TrainingExample], written: WrittenSets) -> _Seen:
    """Write the rows of a dataset, or write them anew without some."""
    seen = _Seen(dataset)
    write_examples(_train_file(dataset, written), seen.pass_on(rows))
    written.sets[f"train/{dataset.id}"] = seen.facts()
    return seen


def _without_evaluated(
    datasets: Sequence[Dataset], corpus: CorpusConfig, written: WrittenSets
) -> tuple[Overlap, dict[str, dict[str, int]]]:
    """Look for evaluated texts among the training rows, and write those sets anew that hold some.

    Returns:
        What was found, and the numbers of rows dropped, by set and reason.
    """
    overlap = find_overlap({one.id: _train_file(one, written) for one in datasets}, written.evaluated)
    dropped: dict[str, dict[str, int]] = {}
    for dataset in datasets:
        offending = frozenset(overlap.offending[dataset.id].tolist())
        if offending and corpus.overlap == "drop":
            rows = enumerate(iter_examples(_train_file(dataset, written)))
            _write_train(dataset, (example for number, example in rows if number not in offending), written)
            dropped[f"train/{dataset.id}"] = {"a text is evaluated, or nearly so": len(offending)}
    written.refuse_empty("hold out another share, or set overlap: report", dropped)
    return overlap, dropped


def _write_task(task: EvaluationTask, held: HeldOut, corpus: CorpusConfig, written: WrittenSets) -> None:
    """Write a retrieval task: held-out queries, and every passage of the held-out rows as a document.

    Only queries and what is relevant to them count as evaluated: a negative may well be a negative of others too.
    """
    generator = np.random.default_rng(derive_seed(corpus.seed, "evaluation", task.id))
    queries = sorted(held.rows)
    passages = (text for query in queries for row in held.rows[query] for text in (*row.pos, *row.neg))
    # Sorted, so that no order of theirs breaks ties in favour of the relevant ones.
    place = {text: number for number, text in enumerate(sorted(set(passages)))}
    texts = list(place)
    relevant = [sorted({place[text] for row in held.rows[query] for text in row.pos}) for query in queries]
    limits = corpus.evaluation_queries, corpus.evaluation_documents
    asked, documents = draw_retrieval(relevant, len(texts), limits, generator)
    judged = [(query, document) for query in asked for document in relevant[query]]
    files: dict[str, list[dict[str, Any]]] = {
        "queries": [{"id": f"q{query}", "text": held.rows[queries[query]][0].query} for query in asked],
        "corpus": [{"id": f"d{document}", "text": texts[document]} for document in documents],
        "qrels": [{"query": f"q{query}", "document": f"d{document}"} for query, document in judged],
    }
    written.write_task(task.id, files)
    needed = dict.fromkeys(document for _, document in judged)
    written.evaluated[task.id] = [*(row["text"] for row in files["queries"]), *(texts[number] for number in needed)]


def _miscounted(dataset: Dataset, folder: Path) -> list[str]:
    """Whether a stated number of rows is not that of the files."""
    if dataset.hub is None or dataset.hub.rows.source != "stated":
        return []
    stated, counted = dataset.hub.rows.value, known_rows(dataset.id, dataset.hub, folder)
    return [] if counted in (None, stated) else [f"{stated} rows are stated, its files have {counted}"]
