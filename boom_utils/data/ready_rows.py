"""Rows that are ready to train on, streamed from parquet and JSONL files: a query, its positives and its negatives.

Read as strictly as any training file: a row of a wrong shape is an error with file, row and rule, or left out and
listed. Memory does not grow with a file: parquet is read a few rows at a time, JSONL a line at a time.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count as numbers
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from boom_utils.data.examples import LONGEST_LINE, BadLine, TrainingExample, example_of_line, example_of_row
from boom_utils.data.manifest_hub import Columns, Selection
from boom_utils.errors import DataError, bullet_list

if TYPE_CHECKING:
    import pyarrow as pa

    from boom_utils.data.manifest import Dataset

log = logging.getLogger(__name__)

OnBadLine = Literal["error", "skip"]
Found = TrainingExample | BadLine
ROWS_AT_A_TIME = 256
"""Of a parquet file; a row of some datasets holds a hundred long texts."""
SHOWN = 10
"""Bad lines in an error, or in a summary."""
PLAIN = Columns()


class BadLines:
    """Bad lines as they come: counted, the first ones kept, an error as soon as there are enough of them.

    Args:
        on_bad_line: ``error`` or ``skip``.
    """

    def __init__(self, on_bad_line: OnBadLine) -> None:
        self.number, self.first = 0, list[BadLine]()
        self._on_bad_line = on_bad_line

    def add(self, bad: BadLine) -> None:
        """Note one.

        Raises:
            DataError: It is the tenth, and bad lines are errors.
        """
        self.number += 1
        if len(self.first) < SHOWN:
            self.first.append(bad)
            if self._on_bad_line == "skip":
                log.warning("skipped %s", bad)
        if self.number == SHOWN:
            self.close()

    def close(self) -> None:
        """Look at what there was.

        Raises:
            DataError: There were bad lines, and they are errors.
        """
        if self.number and self._on_bad_line == "error":
            raise DataError(
                f"{self.number}{' or more' if self.number == SHOWN else ''} malformed row(s)",
                found=bullet_list(str(bad) for bad in self.first),
                fix="correct the rows, or set on_bad_line: skip to leave them out and have them listed",
            )


def iter_ready(
    dataset: Dataset, files: Iterable[Path], on_bad_line: OnBadLine = "error", bad_lines: BadLines | None = None
) -> Iterator[TrainingExample]:
    """Stream the rows of a dataset.

    Args:
        dataset: Says which column is what.
        files: ``.parquet``, ``.jsonl`` or ``.jsonl.gz``, in the order of the rows.
        on_bad_line: ``skip`` leaves bad rows out, and logs the first ten.
        bad_lines: Where to note them; made when None.

    Raises:
        DataError: A file is damaged or lacks a column, or rows are malformed: ten of them, or all when the end is
            reached before.
    """
    bad_lines = bad_lines or BadLines(on_bad_line)
    for _, found in numbered_rows(files, columns_of(dataset)):
        if isinstance(found, BadLine):
            bad_lines.add(found)
        else:
            yield found
    bad_lines.close()


def columns_of(dataset: Dataset) -> Columns:
    """Which column is what; FlagEmbedding's names where the manifest does not say."""
    return PLAIN if dataset.hub is None else dataset.hub.columns


def numbered_rows(
    files: Iterable[Path], columns: Columns = PLAIN, wanted: NDArray[np.int64] | None = None
) -> Iterator[tuple[int, Found]]:
    """Stream rows with their number, from 0 over all files.

    Args:
        files: In order.
        columns: Which column is what.
        wanted: Sorted numbers of the rows to give, int64[rows]; None gives all. Other rows are not looked at.

    Raises:
        DataError: A file is damaged, lacks a column, or is of no known kind.
    """
    start = 0
    for path in files:
        if wanted is None:
            end = start
            for number, found in _rows_of(path, columns, None):
                yield start + number, found
                end = start + number + 1
        else:
            end = start + count_ready(path)
            here = wanted[(wanted >= start) & (wanted < end)] - start
            for number, found in _rows_of(path, columns, here) if len(here) else ():
                yield start + number, found
        start = end


def count_ready(path: Path) -> int:
    """Rows of a file, from a parquet file's foot or by counting lines; none is kept in memory.

    Raises:
        DataError: The file is damaged, or of no known kind.
    """
    if path.suffix == ".parquet":
        with _parquet(path) as opened:
            return int(opened.metadata.num_rows)
    return sum(1 for _ in _lines(path))


def chosen_rows(
    total: int, select: Selection | None, limit: int | None, select_seed: int, limit_seed: int
) -> NDArray[np.int64] | None:
    """Numbers of the rows to use.

    Args:
        total: Rows there are.
        select: The manifest's rule, or None.
        limit: Most rows of the study, drawn from those the rule gives; None takes them all.
        select_seed: For a rule that draws.
        limit_seed: For the limit.

    Returns:
        Sorted numbers, int64[rows], or None where all rows are used.
    """
    chosen = None
    if select is not None and select.rows < total:
        chosen = np.arange(select.rows) if select.rule == "first" else _draw(total, select.rows, select_seed)
    size = total if chosen is None else len(chosen)
    if limit is not None and limit < size:
        drawn = _draw(size, limit, limit_seed)
        chosen = drawn if chosen is None else chosen[drawn]
    return chosen


def _draw(total: int, number: int, seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(total, number, replace=False, shuffle=False)).astype(np.int64)


def _reshape(columns: Columns) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """How a row of other columns, or one text where a list is meant, becomes FlagEmbedding's."""

    def reshaped(row: Mapping[str, Any]) -> Mapping[str, Any]:
        extras = {name: row[name] for name in ("prompt", "type") if columns == PLAIN and name in row}
        pos, neg = row[columns.pos], [] if columns.neg is None else row[columns.neg]
        return {"query": row[columns.query], "pos": _listed(pos), "neg": _listed(neg)} | extras

    return reshaped


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _rows_of(path: Path, columns: Columns, wanted: NDArray[np.int64] | None) -> Iterator[tuple[int, Found]]:
    if path.suffix == ".parquet":
        for number, row in _parquet_rows(path, columns, wanted):
            yield number, example_of_row(row, path.name, number + 1, _reshape(columns))
        return
    reshape = None if columns == PLAIN else _reshape(columns)
    targets = numbers() if wanted is None else iter(wanted.tolist())
    target = next(targets, -1)
    for number, line in enumerate(_lines(path)):
        if number == target:
            yield number, example_of_line(line, path.name, number + 1, reshape)
            if (target := next(targets, -1)) < 0:
                return


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that may be packed; no more of a line is kept than it takes to see that it is too long."""
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".json.gz")):
        raise DataError(
            f"{path.name} is of no kind that can be read", expected="a name ending in .parquet, .jsonl or .jsonl.gz"
        )
    try:
        with cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as handle:
            while line := handle.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    while (rest := handle.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                yield line
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path.name) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path.name} is damaged or cut off", where=path.name, found=error, fix="fetch it again"
        ) from None


# --- parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path.name) from None
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path.name} is no whole parquet file", where=path.name, found=error, fix="fetch it again")


def _parquet_rows(
    path: Path, columns: Columns, wanted: NDArray[np.int64] | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows and their numbers; of row groups that hold no wanted row nothing is read."""
    import pyarrow as pa

    with _parquet(path) as opened:
        names = _checked_names(path, opened.schema_arrow, columns)
        start = 0
        try:
            for group in range(opened.num_row_groups):
                end = start + opened.metadata.row_group(group).num_rows
                inside = None if wanted is None else wanted[(wanted >= start) & (wanted < end)]
                if inside is None or len(inside):
                    batches = opened.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=names)
                    yield from _of_batches(batches, start, inside)
                start = end
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def _of_batches(
    batches: Iterable[pa.RecordBatch], start: int, wanted: NDArray[np.int64] | None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for batch in batches:
        end = start + batch.num_rows
        if wanted is None:
            yield from zip(numbers(start), batch.to_pylist(), strict=False)
        else:
            here = wanted[(wanted >= start) & (wanted < end)]
            yield from zip(here.tolist(), batch.take(here - start).to_pylist(), strict=True)
        start = end


def _checked_names(path: Path, schema: pa.Schema, columns: Columns) -> Sequence[str]:
    """The columns to read: those of a row, and FlagEmbedding's ``prompt`` and ``type`` where they are.

    Raises:
        DataError: A column is missing, or of another type than text or a list of texts.
    """
    problems = []
    for name, lists in [(columns.query, False), (columns.pos, True), (columns.neg, True)]:
        if name is None:
            continue
        if name not in schema.names:
            problems.append(f"no column {name}; there are {', '.join(schema.names)}")
        elif not _holds_text(schema.field(name).type, lists=lists):
            kind = "text or a list of texts" if lists else "text"
            problems.append(f"column {name} is {schema.field(name).type}, not {kind}")
    if problems:
        raise DataError(f"{path.name} has not the columns of training rows", found=bullet_list(problems))
    extras = [name for name in ("prompt", "type") if columns == PLAIN and name in schema.names]
    return [*columns.names, *extras]


def _holds_text(kind: pa.DataType, *, lists: bool) -> bool:
    import pyarrow as pa

    if lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
