"""Batch plans: which rows meet in which step, decided before training and kept in a file.

Every batch comes from one dataset, and the last incomplete batch of each dataset is left out (FlagEmbedding's
same-dataset batches). The batches of a stage are shuffled together; stages follow one another. One stage of all
datasets is batch-level shuffling, the paper's strongest schedule; the others are in `boom_utils.training.schedules`.
The plan also fixes the positive and the negatives of every row, so it determines training completely.

Shapes: B rows of a batch, G group size (1 positive + G-1 negatives), W processes.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from boom_utils.artifacts import atomic_path, derive_seed
from boom_utils.errors import DataError

log = logging.getLogger(__name__)

_ROWS_A_DRAW = 65_536

GroupRule = Literal["train_group_size", "one_negative", "first_row", "positive_only"]


@dataclass(frozen=True)
class DatasetRules:
    """What FlagEmbedding hides in folder names and type strings (its AbsDataset), made explicit.

    Args:
        in_batch_negatives: Other rows' passages are negatives too; otherwise only the row's own group is.
        halve_batch: Half as many queries a step (every ``symmetric_*`` type).
        group: ``train_group_size``; ``one_negative`` -> 2; ``first_row`` -> negatives of the first row + 1, at most
            train_group_size (``symmetric_class``); ``positive_only`` -> 1 (pairs without own negatives).
    """

    in_batch_negatives: bool = True
    halve_batch: bool = False
    group: GroupRule = "train_group_size"

    def batch_size(self, per_device: int, processes: int = 1) -> int:
        """Queries of one global batch."""
        return max(1, per_device // 2 if self.halve_batch else per_device) * processes

    def group_size(self, train_group_size: int, first_row_negatives: int) -> int:
        """Passages a query, G."""
        first = min(first_row_negatives + 1, train_group_size)
        return {"positive_only": 1, "one_negative": 2, "first_row": first}.get(self.group, train_group_size)


@dataclass(frozen=True)
class PlanInput:
    """One dataset as the plan sees it.

    Args:
        rules: How its batches are made.
        rows: uint32 (rows of the subset,), ids into the dataset.
        positives: int (rows of the dataset,), how many positives each example has.
        negatives: int (rows of the dataset,), how many negatives each example has.
    """

    rules: DatasetRules
    rows: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step: a dataset, B of its rows, and what is drawn for them.

    Args:
        dataset: Name of the dataset.
        rows: uint32 (B,).
        positives: uint32 (B,), index into each row's positives.
        negatives: uint32 (B, G-1), indices into each row's negatives.
    """

    dataset: str
    rows: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @property
    def group_size(self) -> int:
        """G: one positive and the negatives."""
        return 1 + int(self.negatives.shape[1])

    def share(self, rank: int, processes: int) -> Batch:
        """The part of this batch that one of W processes works on: its rows, in order, none twice."""
        size = len(self.rows) // processes
        return self.part(rank * size, (rank + 1) * size)

    def part(self, start: int, end: int) -> Batch:
        """The rows from ``start`` up to ``end``, with what is drawn for them."""
        return Batch(self.dataset, self.rows[start:end], self.positives[start:end], self.negatives[start:end])


@dataclass(frozen=True)
class PlanOptions:
    """Everything a plan depends on besides the data.

    Args:
        per_device_train_batch_size: Queries a device and step.
        train_group_size: Passages a query, its positive included.
        num_train_epochs: Times a stage goes over its rows.
        processes: Devices the batch is meant for: a global batch has this many times the queries of one device,
            whatever number of devices it is later trained on.
        seed: Of all draws.
    """

    per_device_train_batch_size: int
    train_group_size: int
    num_train_epochs: int = 1
    processes: int = 1
    seed: int = 0


@dataclass(frozen=True)
class BatchPlan:
    """Batches in the order they are trained on.

    Args:
        batches: One a step.
        left_out: Rows of each dataset that are in no batch.
        options: What the plan was made with.
        stage_starts: First step of every stage, ascending, the first one 0.
    """

    batches: tuple[Batch, ...]
    left_out: Mapping[str, int]
    options: PlanOptions
    stage_starts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def examples(self) -> int:
        """Rows trained on, over all epochs."""
        return sum(len(batch.rows) for batch in self.batches)

    def stage_of(self, step: int) -> range:
        """Steps of the stage that ``step`` belongs to."""
        number = bisect.bisect_right(self.stage_starts, step) - 1
        ends = (*self.stage_starts[1:], len(self))
        return range(self.stage_starts[number], ends[number])

    @property
    def fingerprint(self) -> str:
        """sha256 of the plan's file (hex): the same for the same batches in the same order."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the plan as one npz file, atomically and with the same bytes for the same plan."""
        with atomic_path(path) as temporary:
            temporary.write_bytes(self._bytes())

    def _bytes(self) -> bytes:
        names = sorted({batch.dataset for batch in self.batches})
        numbers = {name: number for number, name in enumerate(names)}
        arrays = {
            "dataset": np.array([numbers[batch.dataset] for batch in self.batches], dtype=np.uint32),
            "shape": np.array([batch.negatives.shape for batch in self.batches], dtype=np.uint32).reshape(-1, 2),
            "rows": _joined([batch.rows for batch in self.batches]),
            "positives": _joined([batch.positives for batch in self.batches]),
            "negatives": _joined([batch.negatives.ravel() for batch in self.batches]),
            "stage_starts": np.array(self.stage_starts, dtype=np.uint32),
        }
        facts = {"datasets": names, "left_out": dict(self.left_out), "options": asdict(self.options)}
        arrays["facts"] = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> BatchPlan:
        """Read a plan.

        Raises:
            DataError: The file is missing, damaged or not a plan.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            facts = json.loads(arrays["facts"].tobytes())
            batches = tuple(_unpacked(arrays, facts["datasets"]))
        except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise DataError("this is not a batch plan", where=path, found=error, fix="make the plan again") from error
        starts = tuple(int(start) for start in arrays["stage_starts"])
        return cls(batches, facts["left_out"], PlanOptions(**facts["options"]), starts)


def plan_batches(
    datasets: Mapping[str, PlanInput], options: PlanOptions, stages: Sequence[Sequence[str]] | None = None
) -> BatchPlan:
    """Plan the batches of every stage, shuffled together within the stage.

    Every random stream has its own seed derived from (seed, epoch, dataset), so a dataset's batches are the same under
    every schedule and beside every other dataset; only the order differs.

    Args:
        datasets: What to train on, by name.
        options: Sizes and seed.
        stages: Names of the datasets of each stage; one stage of all when None.

    Returns:
        The batches in the order of training.

    Raises:
        DataError: A dataset has no rows, a row has no positive, or has no negative where its group needs some (in a
            dataset without any negative, those of the batch are enough where its rules allow them).

    >>> rows = PlanInput(DatasetRules(), np.arange(8, dtype=np.uint32), np.ones(8, int), np.ones(8, int))
    >>> options = PlanOptions(per_device_train_batch_size=4, train_group_size=2)
    >>> plan = plan_batches({"nq": rows, "stsb": rows}, options, stages=[["nq"], ["stsb"]])
    >>> [batch.dataset for batch in plan.batches]
    ['nq', 'nq', 'stsb', 'stsb']
    """
    batches: list[Batch] = []
    starts, left_out = [], dict.fromkeys(datasets, 0)
    for stage, names in enumerate(stages if stages is not None else [sorted(datasets)]):
        starts.append(len(batches))
        for epoch in range(options.num_train_epochs):
            made = {name: list(_dataset_batches(name, datasets[name], options, epoch)) for name in sorted(names)}
            for name, of_dataset in made.items():
                left_out[name] += len(datasets[name].rows) - sum(len(batch.rows) for batch in of_dataset)
            together = [batch for of_dataset in made.values() for batch in of_dataset]
            rng = np.random.default_rng(derive_seed(options.seed, "order", stage, epoch))
            batches += [together[position] for position in rng.permutation(len(together))]
    _report(batches, left_out)
    kept = sorted({start for start in starts if start < len(batches)})  # a stage too small for a batch has no steps
    return BatchPlan(tuple(batches), left_out, options, tuple(kept))


def draw_negatives(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` of each row's negatives without replacement (FlagEmbedding AbsDataset).

    A row with too few has its list repeated ceil(size / count) times first, so every negative is used before one is
    used twice as often as that repetition allows.

    Args:
        counts: int (B,), negatives each row has, all > 0 when size > 0.
        size: Negatives wanted a row.
        rng: The stream to draw from.

    Returns:
        uint32 (B, size), indices into each row's negatives.

    >>> drawn = draw_negatives(np.array([2, 5]), 3, np.random.default_rng(0))
    >>> drawn.shape, len(set(drawn[0].tolist())), len(set(drawn[1].tolist()))
    ((2, 3), 2, 3)
    """
    drawn = np.zeros((len(counts), size), dtype=np.uint32)
    for count in np.unique(counts) if size else ():
        repeated = count * -(-size // count)
        every = np.flatnonzero(counts == count)
        # Part after part: the stream is the same, and only the keys of one part are in memory.
        for rows in np.split(every, range(_ROWS_A_DRAW, len(every), _ROWS_A_DRAW)):
            keys = rng.random((len(rows), repeated))
            drawn[rows] = np.argsort(keys, axis=1)[:, :size] % count
    return drawn


def _dataset_batches(name: str, data: PlanInput, options: PlanOptions, epoch: int) -> Iterator[Batch]:
    if not len(data.rows):
        raise DataError(f"dataset '{name}' has no rows", fix="raise its ratio, or take it out of the profile")
    if len(empty := data.rows[data.positives[data.rows] == 0]):
        raise DataError(f"an example of '{name}' has no positive", where=f"row {empty[0]}", fix="repair the dataset")
    rng = np.random.default_rng(derive_seed(options.seed, "rows", epoch, name))
    rows = rng.permutation(data.rows)
    size = data.rules.batch_size(options.per_device_train_batch_size, options.processes)
    group = data.rules.group_size(options.train_group_size, int(data.negatives[0]))
    if data.rules.in_batch_negatives and not data.negatives.any():
        group = 1  # a dataset of pairs: the other rows of a batch give all negatives
    short = rows[data.negatives[rows] == 0] if group > 1 else rows[:0]
    if len(short):
        raise DataError(
            f"an example of '{name}' has no negative", where=f"row {short[0]}", expected=f"a group of {group} passages"
        )
    positives = rng.integers(0, data.positives[rows]).astype(np.uint32)
    negatives = draw_negatives(data.negatives[rows], group - 1, rng)
    rows = rows.astype(np.uint32)
    whole = Batch(name, rows, positives, negatives)
    yield from (whole.part(start, start + size) for start in range(0, len(rows) - size + 1, size))


def _report(batches: Sequence[Batch], left_out: Mapping[str, int]) -> None:
    planned = {batch.dataset for batch in batches}
    for name in left_out:
        if name not in planned:
            log.warning("plan: '%s' fills no batch, so none of its rows is trained on", name)
    if not batches:
        raise DataError("no dataset fills a single batch", fix="lower per_device_train_batch_size or take more rows")


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.uint32) if parts else np.zeros(0, dtype=np.uint32)


def _unpacked(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[Batch]:
    row = draw = 0
    for dataset, (size, negatives) in zip(arrays["dataset"], arrays["shape"].astype(int), strict=True):
        rows = slice(row, row + size)
        drawn = arrays["negatives"][draw : draw + size * negatives].reshape(size, negatives)
        yield Batch(names[dataset], arrays["rows"][rows], arrays["positives"][rows], drawn)
        row, draw = row + size, draw + size * negatives
