"""Stage: ready-made rows, of the hub or a user's own, become the training and evaluation files of a study.

Rows are streamed from file to file, so that memory does not grow with a corpus; only what is evaluated, and the row
numbers of a draw, are kept. Of a user's own data some queries can be held out, which then are a retrieval task.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed, sha256_file, write_json
from boom_utils.config import CorpusConfig
from boom_utils.data.docs_pairs import hash_share, normalise
from boom_utils.data.examples import BadLine, TrainingExample, write_examples, write_jsonl
from boom_utils.data.hub_files import known_files, known_rows
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.ready_rows import BadLines, chosen_rows, columns_of, count_ready, numbered_rows
from boom_utils.errors import DataError, bullet_list

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


@dataclass
class _Set:
    """What is known of one written set once its last row went by."""

    rows: int = 0
    dropped: int = 0
    words: dict[str, array[int]] = field(default_factory=lambda: defaultdict(lambda: array("I")))
    stated: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in STATES})
    offending: Counter[str] = field(default_factory=Counter)
    shared: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def note(self, example: TrainingExample, dataset: Dataset) -> None:
        self.rows += 1
        self.words["query_words"].append(len(example.query.split()))
        self.words["passage_words"].extend(len(text.split()) for text in (*example.pos, *example.neg))
        for name, used in (("prompt", dataset.prompt), ("type", dataset.example_type)):
            value = getattr(example, name)
            if value not in (None, used) and (value in self.stated[name] or len(self.stated[name]) < SHOWN):
                self.stated[name][value] += 1

    def facts(self) -> dict[str, Any]:
        return {"rows": self.rows, **{name: _lengths(counts) for name, counts in self.words.items()}}


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
        Rows of every set, what they were made from, deviations, rows dropped because they hold an evaluated text, and
        the number of evaluated texts that are still trained on.

    Raises:
        DataError: Files are not there or malformed, or a set has no rows.
    """
    wanted = _datasets(manifest, corpus)
    files = {dataset.id: ready_files(manifest, dataset, folder) for dataset in wanted}
    bad = {dataset.id: BadLines(corpus.on_bad_line) for dataset in wanted}
    held = {one.id: held_out_rows(one, files[one.id]) for one in wanted if one.local and one.local.held_out}
    sets: dict[str, dict[str, Any]] = {}
    evaluated: dict[str, list[str]] = defaultdict(list)
    for task in manifest.tasks:
        sets[f"evaluation/{task.id}"] = _write_task(task, held[task.dataset], corpus, out, evaluated)
    ledger, deviations, dropped = [], [], {}
    for name in (*corpus.datasets, *corpus.new_datasets):
        dataset = manifest.dataset(name)
        numbers, more = _numbers(dataset, files[name], held.get(name), corpus)
        rows = numbered_rows(files[name], columns_of(dataset), numbers)
        made = _Set()
        write_examples(out / "train" / f"{name}.jsonl", _kept(rows, made, dataset, evaluated, (corpus, bad[name])))
        sets[f"train/{name}"], dropped[name] = made.facts(), made.dropped
        ledger += _ledger(made, name, [task.id for task in manifest.tasks])
        deviations += [*more, *_deviations(made, dataset, folder)]
    _refuse_empty(sets)
    for deviation in deviations:
        log.warning("%s: %s", manifest.name, deviation)
    facts = {
        "rows": {name: found["rows"] for name, found in sets.items()},
        "fingerprint": ready_fingerprint(manifest, corpus, folder),
        "deviations": deviations,
        "dropped": dropped,
        "shared_texts": sum(entry["exact"] for entry in ledger) if corpus.overlap == "report" else 0,
    }
    malformed = {name: {"number": b.number, "first": [str(one) for one in b.first]} for name, b in bad.items()}
    write_json(out / "summary.json", {**facts, "sets": sets, "overlap": ledger, "bad_lines": malformed})
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
    deviations = [f"{dataset.id}: {select.rows} rows are wanted, its files have {total}"] if select and short else []
    if held is None:
        return chosen, deviations
    return held.others if chosen is None else held.others[chosen], deviations


def _kept(
    rows: Iterable[tuple[int, TrainingExample | BadLine]],
    made: _Set,
    dataset: Dataset,
    evaluated: Mapping[str, Sequence[str]],
    rules: tuple[CorpusConfig, BadLines],
) -> Iterator[TrainingExample]:
    """The rows to write; bad ones and those that hold an evaluated text are noted on the way."""
    corpus, bad = rules
    for _, example in rows:
        if isinstance(example, BadLine):
            bad.add(example)
            continue
        texts = (example.query, *example.pos, *example.neg) if evaluated else ()
        shared = {text for text in map(normalise, texts) if text in evaluated}
        for task in {task for text in shared for task in evaluated[text]}:
            made.offending[task] += 1
            made.shared[task] |= {text for text in shared if task in evaluated[text]}
        if shared and corpus.overlap == "drop":
            made.dropped += 1
        else:
            made.note(example, dataset)
            yield example
    bad.close()


def _write_task(
    task: EvaluationTask, held: HeldOut, corpus: CorpusConfig, out: Path, evaluated: dict[str, list[str]]
) -> dict[str, Any]:
    """Write a retrieval task: held-out queries, and every passage of the held-out rows as a document.

    ``evaluated`` gets the queries and relevant documents, normalised.
    """
    generator = np.random.default_rng(derive_seed(corpus.seed, "evaluation", task.id))
    asked = _drawn(sorted(held.rows), corpus.evaluation_queries, generator)
    relevant = {query: list(dict.fromkeys(text for row in held.rows[query] for text in row.pos)) for query in asked}
    needed = dict.fromkeys(text for texts in relevant.values() for text in texts)
    passages = (text for query in sorted(held.rows) for row in held.rows[query] for text in (*row.pos, *row.neg))
    others = [text for text in dict.fromkeys(passages) if text not in needed]
    room = None if corpus.evaluation_documents is None else max(0, corpus.evaluation_documents - len(needed))
    documents = [*needed, *_drawn(others, room, generator)]
    # Shuffled, so that no order of theirs breaks ties in favour of the relevant ones.
    order = generator.permutation(len(documents)).tolist()
    ids = {documents[place]: f"d{number}" for number, place in enumerate(order)}
    files: dict[str, list[dict[str, Any]]] = {
        "queries": [{"id": f"q{number}", "text": held.rows[query][0].query} for number, query in enumerate(asked)],
        "corpus": [{"id": name, "text": text} for text, name in ids.items()],
        "qrels": [
            {"query": f"q{number}", "document": ids[text]}
            for number, query in enumerate(asked)
            for text in relevant[query]
        ],
    }
    for name, rows in files.items():
        write_jsonl(out / "evaluation" / task.id / f"{name}.jsonl", rows)
    for text in {*asked, *map(normalise, needed)}:
        evaluated[text].append(task.id)
    words = {name: array("I", (len(row["text"].split()) for row in files[name])) for name in ("queries", "corpus")}
    counts = {f"{name}_rows": len(rows) for name, rows in files.items()}
    return {"rows": len(asked), **counts, **{f"{name}_words": _lengths(some) for name, some in words.items()}}


def _drawn(texts: Sequence[str], limit: int | None, generator: np.random.Generator) -> list[str]:
    """At most ``limit`` of the texts, in their order."""
    if limit is None or limit >= len(texts):
        return list(texts)
    return [texts[number] for number in np.sort(generator.choice(len(texts), limit, replace=False))]


def _ledger(made: _Set, name: str, tasks: Iterable[str]) -> list[dict[str, Any]]:
    """Which evaluated texts the rows of a dataset hold, before any was dropped; near duplicates are not looked for."""
    return [
        {
            "evaluation": task,
            "trained_on": name,
            "exact": len(made.shared[task]),
            "near": None,
            "rows": made.offending[task],
            "examples": sorted(made.shared[task])[:SHOWN],
        }
        for task in tasks
    ]


def _deviations(made: _Set, dataset: Dataset, folder: Path) -> list[str]:
    """Where rows say something else than the manifest."""
    used = {"prompt": dataset.prompt, "type": dataset.example_type}
    found = [
        f"{dataset.id}: {number} rows state the {name} '{value}', the manifest uses '{used[name]}'"
        for name, values in made.stated.items()
        for value, number in sorted(values.items())
    ]
    if dataset.hub is not None and dataset.hub.rows.source == "stated":
        counted = known_rows(dataset.id, dataset.hub, folder)
        if counted not in (None, dataset.hub.rows.value):
            found.append(f"{dataset.id}: {dataset.hub.rows.value} rows are stated, its files have {counted}")
    return found


def _refuse_empty(sets: Mapping[str, Mapping[str, Any]]) -> None:
    if empty := [name for name, facts in sets.items() if not facts["rows"]]:
        raise DataError(
            "some sets have no rows",
            found=", ".join(empty),
            fix="give more rows, hold out another share, or set overlap: report if all rows hold an evaluated text",
        )


def _lengths(counts: array[int]) -> dict[str, float]:
    """Minimum, median, 95th percentile and maximum of some numbers of words."""
    values = np.array(counts or [0])
    named = {"min": values.min(), "median": np.median(values), "p95": np.percentile(values, 95), "max": values.max()}
    return {name: round(float(value), 1) for name, value in named.items()}
