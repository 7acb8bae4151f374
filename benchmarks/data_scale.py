"""The data side at the size of the published corpora: rows a second of every stage, and memory.

    python benchmarks/data_scale.py --output result.json

A corpus is made by script (rows of a query, one positive and six hard negatives; lengths as in web search data) and
goes through the kit: conversion from a columnar file to JSONL, strict reading, tokenising with a byte-level BPE trained
on the spot, and the search for evaluated texts with near-duplicates, some of which are planted and must be found.
Sampling (five ratios, saved) and planning (all rows, saved) take counts of rows only, as their inputs are index files
and token tables. Every stage is a process of its own, so that its peak of memory is its own; libraries are included.

The last line is one JSON object: rows a second of converting and tokenising, seconds of sampling and planning, and the
most resident memory that any stage had.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from merge_throughput import processor
from process_meter import measure

HERE = Path(__file__).parent
NEGATIVES = 6
ROWS_AT_ONCE = 10_000
PLANTED = 50
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
SCHEMA = pa.schema([("query", pa.string()), ("pos", pa.list_(pa.string())), ("neg", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Args:
        rows: Rows of the corpus with texts.
        evaluated: Evaluated texts, half queries and half documents.
        planned_rows: Rows that are sampled and planned, over all datasets.
        datasets: Datasets that these rows belong to.
        seed: Of everything that is drawn.
    """

    rows: int = 200_000
    evaluated: int = 20_000
    planned_rows: int = 2_800_000
    datasets: int = 31
    seed: int = 0


# --- what is made -----------------------------------------------------------------------------------------------------


class Words:
    """Texts of made-up words, whose frequencies fall as their rank rises (Zipf)."""

    def __init__(self, seed: int, count: int = 50_000) -> None:
        rng = np.random.default_rng(seed)
        letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
        weights = 1 / np.arange(2, 2 + len(letters))
        drawn = rng.choice(letters, size=(count, 12), p=weights / weights.sum())
        lengths = np.clip(rng.poisson(5.5, size=count), 2, 12)
        self._words = np.array([bytes(row[:length]).decode() for row, length in zip(drawn, lengths, strict=True)])
        self._cumulative = np.cumsum(1 / np.arange(1, count + 1))

    def texts(self, lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One text a length (in words)."""
        places = np.searchsorted(self._cumulative, rng.random(lengths.sum()) * self._cumulative[-1])
        words, ends = self._words[places].tolist(), np.cumsum(lengths).tolist()
        return [" ".join(words[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def queries(self, count: int, rng: np.random.Generator) -> list[str]:
        """Queries: a median of nine words."""
        return self.texts(np.clip(rng.lognormal(np.log(9), 0.4, size=count), 3, 40).astype(int), rng)

    def documents(self, count: int, rng: np.random.Generator) -> list[str]:
        """Documents: a median of seventy words."""
        return self.texts(np.clip(rng.lognormal(np.log(70), 0.6, size=count), 5, 400).astype(int), rng)


def make_corpus(folder: Path, scale: Scale) -> None:
    """Write ``raw.parquet`` and ``evaluated.json``; negatives are documents of other rows."""
    words, rng = Words(scale.seed), np.random.default_rng([scale.seed, 1])
    evaluated = words.queries(scale.evaluated // 2, rng) + words.documents(scale.evaluated // 2, rng)
    (folder / "evaluated.json").write_text(json.dumps(evaluated))
    documents = words.documents(scale.rows, rng)
    repeated, almost = evaluated[-PLANTED:], [f"{text} more" for text in evaluated[-2 * PLANTED : -PLANTED]]
    documents[: 2 * PLANTED] = (repeated + almost)[: scale.rows]
    with pq.ParquetWriter(folder / "raw.parquet", SCHEMA) as writer:
        for start in range(0, scale.rows, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, scale.rows - start)
            others = rng.integers(len(documents), size=(size, NEGATIVES)).tolist()
            columns = {
                "query": words.queries(size, rng),
                "pos": [[document] for document in documents[start : start + size]],
                "neg": [[documents[other] for other in row] for row in others],
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))


def dataset_rows(scale: Scale) -> dict[str, int]:
    """Rows of every dataset: some large, most small."""
    rng = np.random.default_rng([scale.seed, 2])
    shares = rng.dirichlet(np.full(scale.datasets, 0.7))
    rows = np.maximum(1, (shares * scale.planned_rows).astype(int))
    rows[rows.argmax()] += scale.planned_rows - rows.sum()
    return {f"dataset_{number:02}": int(count) for number, count in enumerate(rows)}


# --- the stages, each in a process of its own -------------------------------------------------------------------------


def convert(folder: Path, _: Scale) -> dict[str, Any]:
    """Columnar file to strict JSONL."""
    from boom_utils.data.examples import TrainingExample, write_examples

    def examples() -> Iterator[TrainingExample]:
        for batch in pq.ParquetFile(folder / "raw.parquet").iter_batches(ROWS_AT_ONCE):
            for query, pos, neg in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield TrainingExample(query, tuple(pos), tuple(neg))

    rows, seconds = timed(lambda: write_examples(folder / "train.jsonl", examples()))
    return {"rows": rows, **seconds, "bytes": (folder / "train.jsonl").stat().st_size}


def read(folder: Path, _: Scale) -> dict[str, Any]:
    """Strict reading, every line checked; and the count of rows, which parses nothing."""
    from boom_utils.data.examples import count_rows, iter_examples

    rows, seconds = timed(lambda: sum(1 for _ in iter_examples(folder / "train.jsonl")))
    counted, count_seconds = timed(lambda: count_rows(folder / "train.jsonl"))
    return {"rows": rows, **seconds, "counted": counted, "count_seconds": count_seconds["seconds"]}


def tokenise(folder: Path, _: Scale) -> dict[str, Any]:
    """Token table of a stream of rows; training the tokenizer is not timed."""
    from itertools import islice

    from boom_utils.config import TinyBase
    from boom_utils.data.examples import iter_examples
    from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
    from boom_utils.hyperparameters import TrainingConfig
    from boom_utils.training.base_model import train_tokenizer

    some = islice(iter_examples(folder / "train.jsonl"), 2000)
    texts = [text for example in some for text in (example.query, *example.pos)]
    training = TrainingConfig(learning_rate=1e-3, per_device_train_batch_size=1, temperature=0.1)  # of no use here
    config = TinyBase(kind="tiny_qwen3", vocab_size=16_384, max_seq_length=512, pretraining=training)
    tokenizer = train_tokenizer(texts, config)

    def tokenize(texts: Sequence[str], limit: int) -> list[list[int]]:
        found = tokenizer(list(texts), truncation=True, max_length=limit, return_attention_mask=False)
        return [list(row) for row in found["input_ids"]]

    path, rules = folder / "train.arrow", TextRules("Instruct: Find the document.\nQuery: ", "", 512, 512)
    rows, seconds = timed(lambda: write_tokens(path, iter_examples(folder / "train.jsonl"), rules, tokenize))
    table = TokenTable(path)
    tokens = sum(len(table.positive(row, 0)) for row in range(min(1000, len(table)))) / min(1000, len(table))
    return {"rows": rows, **seconds, "bytes": path.stat().st_size, "tokens_a_document": round(tokens, 1)}


def overlap(folder: Path, scale: Scale) -> dict[str, Any]:
    """Search for evaluated texts among all texts of the training file."""
    from boom_utils.data.examples import iter_examples
    from boom_utils.data.overlap import find_overlap

    evaluated = json.loads((folder / "evaluated.json").read_text())
    _, index_seconds = timed(lambda: find_overlap({}, {"task": evaluated}))
    found, seconds = timed(lambda: find_overlap({"train": iter_examples(folder / "train.jsonl")}, {"task": evaluated}))
    (entry,) = found.ledger
    texts = (2 + NEGATIVES) * scale.rows
    rates = {
        f"texts_{name}": round(texts / max(0.001, took))
        for name, took in (("s", seconds["seconds"]), ("cpu_s", seconds["cpu_seconds"]))
    }
    facts = {"rows": scale.rows, **seconds, "index_seconds": index_seconds["seconds"], "evaluated": len(evaluated)}
    return {**facts, **rates, "exact": entry["exact"], "near": entry["near"]}


def sampling(folder: Path, scale: Scale) -> dict[str, Any]:
    """Five subsets, drawn and saved."""
    from boom_utils.config import SubsetConfig
    from boom_utils.data.sampling import make_subset, save_subset

    rows = dataset_rows(scale)

    def draw() -> int:
        drawn = 0
        for ratio in RATIOS:
            subset = make_subset(rows, SubsetConfig(name=f"share_{round(100 * ratio)}", ratio=ratio, seed=scale.seed))
            save_subset(folder / "subsets" / subset.name, subset)
            drawn += sum(subset.sizes.values())
        return drawn

    drawn, seconds = timed(draw)
    return {"rows": sum(rows.values()), "datasets": len(rows), "drawn": drawn, **seconds}


def planning(folder: Path, scale: Scale) -> dict[str, Any]:
    """The plan of all rows: 32 queries a device, 8 devices, 7 negatives a query; saved."""
    from boom_utils.data.sampling import load_subset
    from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches

    rng = np.random.default_rng([scale.seed, 3])
    rules = [DatasetRules(), DatasetRules(halve_batch=True), DatasetRules(False), DatasetRules(group="first_row")]
    counts = {
        name: (rng.integers(1, 4, size=rows), rng.integers(7, 16, size=rows))
        for name, rows in dataset_rows(scale).items()
    }

    def plan() -> tuple[int, int]:
        subset = load_subset(folder / "subsets" / "share_100")
        data = {
            name: PlanInput(rules[number % len(rules)], rows, *counts[name])
            for number, (name, rows) in enumerate(sorted(subset.rows.items()))
        }
        made = plan_batches(data, PlanOptions(32, 8, processes=8, seed=scale.seed))
        made.save(folder / "plan.npz")
        return len(made), made.examples

    (batches, planned), seconds = timed(plan)
    facts = {"rows": scale.planned_rows, "planned": planned, "batches": batches, **seconds}
    return {**facts, "bytes": (folder / "plan.npz").stat().st_size}


STAGES: Mapping[str, Callable[[Path, Scale], dict[str, Any]]] = {
    stage.__name__: stage for stage in (convert, read, tokenise, overlap, sampling, planning)
}


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns, its wall seconds, and the CPU seconds of all threads of the process."""
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - began, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }


def resident_peak() -> int:
    """Most resident bytes of this process so far."""
    status = Path("/proc/self/status")
    found = (
        [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if status.is_file()
        else []
    )
    if found:  # getrusage would count what the parent had when it started this process
        return int(found[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_stage(name: str, folder: Path, scale: Scale) -> None:
    """Do one stage and write what it found beside its files; the process ends after it."""
    facts = STAGES[name](folder, scale)
    (folder / f"{name}.json").write_text(json.dumps({**facts, "resident_gib": round(resident_peak() / 2**30, 3)}))


def measured_stage(name: str, folder: Path, scale: Scale) -> dict[str, Any]:
    """One stage in a process of its own, measured from outside as well."""
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", name, "--folder", str(folder)]
    command += [part for key, value in asdict(scale).items() for part in (f"--{key.replace('_', '-')}", str(value))]
    taken = measure(command, {**os.environ, "GOMP_SPINCOUNT": "2000"}, HERE.parent)
    facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    anonymous = None if taken.anonymous_bytes is None else round(taken.anonymous_bytes / 2**30, 3)
    rate = round(facts["rows"] / max(0.001, facts["seconds"]), 1)
    return {**facts, "rows_s": rate, "anonymous_gib": anonymous}


# --- all of it --------------------------------------------------------------------------------------------------------


def summary(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The result, one line."""
    return {
        "convert_rows_s": stages["convert"]["rows_s"],
        "tokenise_rows_s": stages["tokenise"]["rows_s"],
        "sampling_s": stages["sampling"]["seconds"],
        "planning_s": stages["planning"]["seconds"],
        "peak_gib": max(stage["resident_gib"] for stage in stages.values()),
    }


def benchmark(folder: Path, scale: Scale) -> dict[str, Any]:
    """Make the corpus, run all stages, and return the whole record."""
    make_corpus(folder, scale)
    stages = {}
    for name in STAGES:
        load = os.getloadavg()[0]  # of other programs: before the stage begins
        stages[name] = {**measured_stage(name, folder, scale), "load_before": round(load, 2)}
        print(f"{name}: {json.dumps(stages[name])}", flush=True)  # noqa: T201
    names = ["boom_utils", "numpy", "pyarrow", "tokenizers"]
    return {
        **summary(stages),
        "stages": stages,
        "scale": asdict(scale),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
        "machine": processor(),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    """Measure as the command line asks; the last line printed is the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in asdict(Scale()).items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, default=value, metavar="N", help=f"({value})")
    parser.add_argument("--folder", type=Path, help="make the files here and leave them (a temporary folder)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the whole record here")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = Scale(**{key: getattr(options, key) for key in asdict(Scale())})
    if min(scale.rows, scale.evaluated, scale.datasets) < 1 or scale.planned_rows < scale.datasets:
        parser.error("sizes are 1 or more, and every dataset has a row")
    if options.stage:
        run_stage(options.stage, options.folder, scale)
        return
    with tempfile.TemporaryDirectory(prefix="data-scale-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        record = benchmark(folder, scale)
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in summary(record["stages"])}))  # noqa: T201


if __name__ == "__main__":
    main()
