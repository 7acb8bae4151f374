"""Rows that users bring, and those of hub datasets: read from a file, a folder or a hub dataset.

Read as strictly as the kit's own files: a row of a wrong shape is an error with file, row and rule, or left out and
listed. Memory does not grow with a file, but for a JSON array, which is parsed whole. What a row is follows from the
names of its columns, in every kind of file alike:

* examples: FlagEmbedding's ``query``, ``pos``, ``neg`` (``prompt``, ``type``), or sentence-transformers' ``anchor``,
  ``positive``, ``negative``, ``negative_1``…; each one text or a list of texts; negatives may be missing.
* graded: ``sentence1``, ``sentence2`` and a ``score`` from 0 to 5, or from 0 to 1.
* labelled: ``text`` and ``label``.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from boom_utils.data.examples import (
    LONGEST_LINE,
    BadLine,
    BadLines,
    BrokenRuleError,
    TrainingExample,
    check_row,
    check_text,
    json_row,
    lines_of,
    tried,
)
from boom_utils.data.files import hub_snapshot
from boom_utils.data.manifest import READABLE, Column
from boom_utils.errors import ConfigError, DataError, DownloadError, bullet_list, nearest

log = logging.getLogger(__name__)

Kind = Literal["examples", "graded", "labelled"]
Record = TrainingExample | tuple[str, str, float] | tuple[str, str]  # example; sentences and score; text and label
Row = Mapping[str, Any]

ROWS_AT_A_TIME = 256  # of a columnar file; a row of some datasets holds a hundred long texts
_NAMES: dict[Kind, tuple[str, ...]] = {
    "examples": ("query anchor question", "pos positive answer"),
    "graded": ("sentence1 sentence_A text1", "sentence2 sentence_B text2", "score similarity_score label"),
    "labelled": ("text sentence", "label"),
}  # what each column of a row may be called
_NEGATIVES = re.compile(r"neg|negatives?(_\d+)?")
_HUB_FILE = re.compile(r"hf://datasets/([^/]+/[^/@]+)@([^/]+)/(.+)")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


# --- files ------------------------------------------------------------------------------------------------------------


def own_datasets(place: str | Path, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """The datasets of a place, and the files of each.

    Args:
        place: A file, a folder (one dataset a file, or all ``-00000-of-00002`` parts of one), or a dataset of the hub:
            ``owner/name``, ``owner/name:config``; of that the training split.
        names: Of a folder, only these datasets; None takes all.

    Returns:
        Dataset -> its files, by name. What is no data in a folder is left out, and logged.

    Raises:
        ConfigError: There is none, or one of the named ones is missing.
        DownloadError: The hub does not tell what the dataset consists of.

    >>> from boom_utils.data.examples import write_jsonl
    >>> for name in ("code", "faq"):
    ...     _ = write_jsonl(Path(f"{name}.jsonl"), [{"query": "a question", "pos": ["its answer"]}])
    >>> own_datasets(".", ["faq"])
    {'faq': ['faq.jsonl']}
    """
    path = Path(place).expanduser()
    if not path.exists() and _HUB_NAME.fullmatch(str(place)) and not READABLE.search(str(place)):
        return _of_the_hub(str(place))
    files = [path] if path.is_file() else sorted(path.glob("*"))
    left_out = [
        file.name for file in files if not READABLE.search(file.name) or file.name in _NO_DATA or not file.is_file()
    ]
    found: dict[str, list[str]] = {}
    for file in files:
        if file.name not in left_out:
            found.setdefault(_SHARD.sub("", READABLE.sub("", file.name)), []).append(str(file))
    if left_out and path.is_dir():
        log.warning("%s: left out as no data: %s", path.name, ", ".join(left_out))
    if missing := [f"no {name}{nearest(name, found)}" for name in names or () if name not in found]:
        raise ConfigError(f"datasets are missing in {path.name}", found=bullet_list(missing))
    if not found:
        raise ConfigError(
            "there are no training files",
            where=path,
            expected="a file of rows (jsonl, json, csv, tsv, parquet, arrow; .gz, .zst), a folder of them, or the name "
            "of a hub dataset",
            found=", ".join(left_out) or ("an empty folder" if path.is_dir() else "nothing"),
        )
    return found if names is None else {name: found[name] for name in names}


def _of_the_hub(place: str) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    repo, _, config = place.partition(":")
    try:
        files = load_dataset_builder(repo, config or None).config.data_files or {}
    except (OSError, ValueError) as error:  # not found, offline, or several configurations to choose from
        raise DownloadError(
            f"the hub dataset {place} cannot be looked at",
            # A connection's text may hold an address with a signature; what configurations there are is the library's.
            found=error if isinstance(error, ValueError) else type(error).__name__,
            fix="correct the name (owner/name, owner/name:config), or give a file or folder that is there",
        ) from None
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


# --- rows of a file ---------------------------------------------------------------------------------------------------


def numbered_rows(
    files: Iterable[Path], columns: Mapping[Column, str] = {}, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Record | BadLine]]:
    """Stream rows with their number, from 0 over all files.

    Args:
        files: In order.
        columns: ``query``, ``pos``, ``neg`` -> column, where they have names of their own; empty: each name says it.
        wanted: bool[rows]; rows that are not wanted are not parsed. None gives all.

    Raises:
        DataError: A file is damaged, or of no known kind.
    """
    number, end = 0, None if wanted is None else np.flatnonzero(wanted).max(initial=-1) + 1
    for path in files:
        header = bool({".csv", ".tsv"}.intersection(path.suffixes))
        for place, make in enumerate(_rows(path), start=1 + header):
            if number == end:
                return
            if wanted is None or wanted[number]:
                yield number, tried(f"{path.name}:{place}", _record, make, columns)
            number += 1


def count_rows_of(path: Path) -> int:
    """Rows of a file, from the foot of a parquet file or by counting; none is kept in memory.

    Raises:
        DataError: The file is damaged, or of no known kind.
    """
    import pyarrow.parquet as pq

    if path.suffix != ".parquet":
        return sum(1 for _ in _rows(path))
    with _explained(path, "parquet"):
        return int(pq.read_metadata(path).num_rows)


Make = Callable[[], Any]  # parses one row; raises `BrokenRuleError`


def _rows(path: Path) -> Iterator[Make]:
    if not (kind := READABLE.search(path.name)):
        raise DataError(f"{path.name} is of no kind that can be read", expected="jsonl, json, csv, tsv, parquet, arrow")
    readers: dict[str, Callable[[Path], Iterator[Make]]] = {"json": _json, "csv": _csv, "parquet": _parquet}
    readers |= {"tsv": partial(_csv, delimiter="\t"), "arrow": _arrow}
    with _explained(path, kind[1]):
        yield from readers.get(kind[1], _json_lines)(path)


@contextmanager
def _explained(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path.name) from None
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        what = f"{path.name} is damaged, cut off or no {kind} file"
        raise DataError(what, where=path.name, found=error, fix="get it again") from None


def _opened(path: Path) -> io.BufferedReader:
    """A file that may be compressed, known by its name."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(path), 2**20)


def _json_lines(path: Path) -> Iterator[Make]:
    with _opened(path) as handle:
        for number, line in enumerate(lines_of(handle), start=1):
            yield partial(json_row, line, number)


def _json(path: Path) -> Iterator[Make]:
    """An array of objects; or one object a line, under this name."""
    with _opened(path) as handle:
        if not handle.peek(100).lstrip().startswith(b"["):
            yield from _json_lines(path)
            return
        try:
            rows = json.load(handle)
        except ValueError as error:
            raise DataError(f"{path.name} is no JSON array", where=path.name, found=error) from None
    yield from (lambda row=row: row for row in rows)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Make]:
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(_opened(path), "utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names = next(lines, [])
        yield from (partial(_of_cells, names, cells) for cells in lines if cells)


def _of_cells(names: Sequence[str], cells: Sequence[str]) -> Row:
    row = {name: cell or None for name, cell in zip(names, cells, strict=False)}
    if len(row) != len(cells) or len(cells) != len(names):
        raise BrokenRuleError(f"{len(cells)} cells, the header has {len(set(names))} different names")
    return row


def _parquet(path: Path) -> Iterator[Make]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as opened:
        yield from _of_batches(opened.iter_batches(ROWS_AT_A_TIME))


def _arrow(path: Path) -> Iterator[Make]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            batches = iter(pa.ipc.open_stream(source))  # what `datasets` writes
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(source)
            batches = map(opened.get_batch, range(opened.num_record_batches))
        for batch in batches:
            yield from _of_batches(batch.slice(at, ROWS_AT_A_TIME) for at in range(0, len(batch), ROWS_AT_A_TIME))


def _of_batches(batches: Iterable[Any]) -> Iterator[Make]:
    for batch in batches:
        rows = cache(batch.to_pylist)  # once, and only where a row of the batch is wanted
        yield from (lambda rows=rows, place=place: rows()[place] for place in range(len(batch)))


# --- what a row is ----------------------------------------------------------------------------------------------------


def _record(make: Make, columns: Mapping[Column, str]) -> Record:
    row = make()
    if not isinstance(row, dict):
        raise BrokenRuleError("expected a JSON object")
    if columns:
        if missing := [name for name in columns.values() if name not in row]:
            raise BrokenRuleError(f"missing key {', '.join(missing)}; found {', '.join(sorted(row)) or 'no key'}")
        row = {name: row[of] for name, of in columns.items()}
    kind, names, negatives = _shape(tuple(row))
    first, second, *rest = (row[name] for name in names)
    if kind == "examples":
        neg = [text for name in negatives for text in _texts(row[name])]
        stated = row if names[1] == "pos" else {}  # FlagEmbedding's prompt and type
        return check_row({**stated, "query": first, "pos": _texts(second), "neg": neg})
    if kind == "graded":
        return check_text(first, names[0]), check_text(second, names[1]), _score(rest[0], names[2])
    if second is None or isinstance(second, list | dict) or second != second:  # NaN
        raise BrokenRuleError(f"{names[1]} must be a text or a number")
    return check_text(first, names[0]), check_text(str(second), names[1])


@lru_cache(maxsize=256)
def _shape(found: tuple[str, ...]) -> tuple[Kind, list[str], list[str]]:
    """Kind of a row, its columns in order, and those of its negatives."""
    for kind, columns in _NAMES.items():
        names = [next((name for name in column.split() if name in found), "") for column in columns]
        if all(names):
            return kind, names, [name for name in found if _NEGATIVES.fullmatch(name)]
    raise BrokenRuleError(
        f"no columns of a training row in {', '.join(sorted(found)) or 'an empty object'}; expected query and pos, "
        "anchor and positive, sentence1 and sentence2 and score, or text and label"
    )


def _texts(value: Any) -> Any:
    """A cell of positives or negatives as a list; what says nothing holds none."""
    if isinstance(value, str) and value.startswith(('["', "['", "[]")):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            raise BrokenRuleError('a text that looks like a list must be JSON: ["…", "…"]') from None
    return [] if value is None else value if isinstance(value, list) else [value]


def _score(value: Any, name: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 5:
        raise BrokenRuleError(f"{name} must be a number from 0 to 5, or from 0 to 1")
    return score


def kind_of(record: Record) -> Kind:
    """The kind of a record."""
    return "examples" if isinstance(record, TrainingExample) else "labelled" if len(record) == 2 else "graded"


@dataclass(frozen=True)
class Checked:
    """What the files of a dataset hold.

    Args:
        kind: Of its rows.
        rows: Good ones.
        without_negatives: Examples among them that bring no negative.
        first: The first good one.
        bad: Rows that break a rule: their number, and the first ten.
    """

    kind: Kind
    rows: int
    without_negatives: int
    first: Record
    bad: BadLines


def check_files(files: Iterable[str], most: int | None = None) -> Checked:
    """Read the rows of a dataset without keeping them.

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
    >>> found.kind, found.rows, found.without_negatives, [bad.where for bad in found.bad.first]
    ('examples', 1, 1, ['mine.jsonl:2'])
    """
    names = list(files)
    first, rows, bare, bad = None, 0, 0, BadLines(None)
    for _, found in numbered_rows(local_path(name) for name in names):
        if isinstance(found, BadLine):
            bad.add(found)
            continue
        first, rows = first or found, rows + 1
        bare += isinstance(found, TrainingExample) and not found.neg
        if rows == most:
            break
    if first is None:
        shown = ", ".join(name.rpartition("/")[2] for name in names)
        raise DataError(f"no good row in {shown}", found=bullet_list(str(one) for one in bad.first) or "no row")
    return Checked(kind_of(first), rows, bare, first, bad)
