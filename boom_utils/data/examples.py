"""Rows of training data: what one is, the one check of it, and reading and writing files of rows.

Every file of rows is read here, the kit's own and those that users bring, as strictly: a malformed row is an error with
file, row and rule, or left out and listed. Memory does not grow with a file, but for a JSON array, which is parsed
whole, and a compressed arrow file. What a row is follows from the names of its columns, in every kind of file alike:

* examples: FlagEmbedding's ``query``, ``pos``, ``neg`` (``prompt``, ``type``), or sentence-transformers' ``anchor``,
  ``positive``, ``negative``, ``negative_1``…; each one text or a list of texts; negatives may be missing.
* graded: ``sentence1``, ``sentence2`` and a ``score`` from 0 to 5, or from 0 to 1.
* labelled: ``text`` and ``label``.

This module tokenises nothing and applies no prompt template.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json

from boom_utils.artifacts import atomic_path
from boom_utils.data.manifest import READABLE, Column
from boom_utils.errors import DataError, bullet_list

log = logging.getLogger(__name__)
Item = TypeVar("Item")

LONGEST_LINE = 16 * 2**20  # bytes; a longer line is no JSONL, but a JSON array on one line, or binary data
SHOWN = 10  # malformed rows in an error, or in a summary
ROWS_AT_A_TIME = 256  # of a columnar file; a row of some datasets holds a hundred long texts
Kind = Literal["examples", "graded", "labelled"]
Split = Literal["pretraining", "train", "evaluation", "held_out"]
_NEGATIVES = re.compile(r"neg|negatives?(_\d+)?")


# --- what a row is ----------------------------------------------------------------------------------------------------


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Input should be a text with something in it")
    return text


def _as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and value == value  # not NaN, which stands for nothing in a table
    return str(value) if is_number else value


Text = Annotated[str, AfterValidator(_not_blank)]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One row of contrastive training data.

    Args:
        query: The text searched with.
        pos: Relevant texts, at least one.
        neg: Hard negatives, possibly none.
        prompt: Instruction text of the row, None when the dataset's applies.
        type: FlagEmbedding's type string, None when the dataset's applies.
    """

    query: Text
    pos: Annotated[tuple[Text, ...], Field(min_length=1)]
    neg: tuple[Text, ...] = ()
    prompt: Text | None = None
    type: Text | None = None


class Graded(NamedTuple):
    """Two sentences and how similar they are."""

    sentence1: Text
    sentence2: Text
    score: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]


class Labelled(NamedTuple):
    """A text and its label: a raise message and its class, a documentation and its place."""

    text: Text
    label: Annotated[Text, BeforeValidator(_as_text)]
    split: Split = "train"


Record = TrainingExample | Graded | Labelled
_KINDS: dict[Kind, tuple[TypeAdapter[Any], tuple[str, ...]]] = {
    "examples": (TypeAdapter(TrainingExample), ("query anchor question", "pos positive answer")),
    "graded": (
        TypeAdapter(Graded),
        ("sentence1 sentence_A text1", "sentence2 sentence_B text2", "score similarity_score label"),
    ),
    "labelled": (TypeAdapter(Labelled), ("text sentence", "label")),
}  # what checks a row, and what each of its columns may be called; the first name is that of the field


def kind_of(record: Record) -> Kind:
    """The kind of a record."""
    return "examples" if isinstance(record, TrainingExample) else "graded" if isinstance(record, Graded) else "labelled"


def normalise(text: str) -> str:
    """Form in which two texts count as the same: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the normalised text only: splits by it hold on every machine.

    Args:
        text: Any text.

    Returns:
        The first 64 bits of the text's SHA-256, as a share of all.

    >>> hash_share("Two  words") == hash_share("two words")
    True
    >>> 0 <= hash_share("another text") < 1
    True
    """
    return int.from_bytes(hashlib.sha256(normalise(text).encode()).digest()[:8], "big") / 2**64


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items in their order; the last one may be shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


# --- the check of a row -----------------------------------------------------------------------------------------------


class MalformedError(Exception):
    """A row, or a file as a whole, breaks a rule, at a column of its line (from 1) where that says something."""

    def __init__(self, rule: str, column: str = "") -> None:
        self.column = column
        super().__init__(rule)


class BadRows:
    """Malformed rows as they come: counted, the first ones kept, an error as soon as there are enough of them.

    Args:
        skip: They are left out, and the first ones logged; else they are an error.
        where: What they are rows of, if that is not in their names.
    """

    def __init__(self, skip: bool = False, where: str | None = None) -> None:
        self.number, self.first = 0, list[str]()
        self._skip, self._where = skip, where

    def add(self, row: str) -> None:
        """Note one: ``file:line:column`` and the rule.

        Raises:
            DataError: It is the tenth, and they are an error.
        """
        self.number += 1
        if self.number <= SHOWN:
            self.first.append(row)
            if self._skip:
                log.warning("left out %s", row)
        if self.number == SHOWN:
            self.close()

    @property
    def facts(self) -> dict[str, Any]:
        """Their number, and the first ones."""
        return {"number": self.number, "first": self.first}

    def close(self) -> None:
        """Look at what there was.

        Raises:
            DataError: There were malformed rows, and they are an error.
        """
        if self.first and not self._skip:
            what = f"{self.number}{' or more' if self.number == SHOWN else ''} malformed row(s)"
            fix = 'correct them or get the files again, or leave them out and have them listed: on_bad_line "skip"'
            raise DataError(what, where=self._where, found=bullet_list(self.first), fix=fix)


def record_of(row: Mapping[str, Any], columns: Mapping[Column, str] = {}, only: Kind | None = None) -> Record:
    """The record in a row.

    Args:
        row: Column -> value.
        columns: ``query``, ``pos``, ``neg`` -> column, where they have names of their own; empty: each name says it.
        only: The kind it must be of; None takes any.

    Raises:
        MalformedError: A column is missing, a value is of a wrong type, a text is empty, or it is of another kind.
    """
    if columns:
        if missing := [name for name in columns.values() if name not in row]:
            raise MalformedError(f"no column {', '.join(missing)}; found {', '.join(sorted(row))}")
        row = {name: row[of] for name, of in columns.items()}
    kind, names, negatives = _shape(tuple(row))
    if only not in (None, kind):
        raise MalformedError(f"a row of kind '{kind}' among those of kind '{only}'")
    values = {field: row[name] for field, name in names.items()}
    if kind == "examples":
        neg = [text for name in negatives for text in _listed(row[name])]
        stated = {key: row[key] for key in ("prompt", "type") if row.get(key) and names["pos"] == "pos"}
        values |= {"pos": _listed(values["pos"]), "neg": neg, **stated}
    record: Record = _checked(kind, values)
    return record


@lru_cache(maxsize=256)
def _shape(found: tuple[str, ...]) -> tuple[Kind, dict[str, str], list[str]]:
    """Kind of a row, the column of each of its fields, and those of its negatives."""
    for kind, (_, fields) in _KINDS.items():
        names = {one.split()[0]: next((name for name in one.split() if name in found), "") for one in fields}
        if all(names.values()):
            return kind, names, [name for name in found if _NEGATIVES.fullmatch(name)]
    raise MalformedError(
        f"no columns of a training row in {', '.join(sorted(found)) or 'an empty object'}; expected query and pos, "
        "anchor and positive, sentence1 and sentence2 and score, or text and label"
    )


def _listed(value: Any) -> list[Any]:
    """A cell of positives or negatives as a list; what says nothing holds none."""
    if isinstance(value, str) and value.startswith(('["', "['", "[]")):
        try:
            value = from_json(value)
        except ValueError:
            raise MalformedError('a text that looks like a list must be JSON: ["…", "…"]') from None
    return [] if value is None else value if isinstance(value, list) else [value]


def _checked(kind: Kind, values: Mapping[str, Any]) -> Any:
    try:
        return _KINDS[kind][0].validate_python(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise MalformedError(f"{place}: {wrong['msg']}, found {wrong['input']!r:.60}") from None


# --- rows of files ----------------------------------------------------------------------------------------------------


def rows_of(
    files: Iterable[Path],
    check: Callable[[dict[str, Any]], Item],
    bad: BadRows | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[int, Item]]:
    """Stream the good rows of files with their number, from 0 over all rows of all files.

    Args:
        files: In order; of any kind that `boom_utils.data.manifest.READABLE` names.
        check: Makes a record of a row (`record_of`), or raises `MalformedError`.
        bad: Gets the malformed rows; without it, they are an error.
        wanted: bool[rows]; rows that are not wanted, or beyond it, are not parsed. None gives all.

    Raises:
        DataError: A file is damaged, or of no known kind; or rows are malformed and that is an error, at the tenth or
            when the stream ends, so nothing made from a stream is good before its end.
    """
    bad, number = BadRows() if bad is None else bad, 0
    for path in files:
        header = {".csv", ".tsv"}.intersection(path.suffixes)
        for line, parse in enumerate(_rows(path), start=2 if header else 1):
            if wanted is None or (number < len(wanted) and wanted[number]):
                try:
                    if not isinstance(row := parse(), dict):
                        raise MalformedError(f"expected a JSON object, found {row!r:.60}")
                    record = check(row)
                except MalformedError as error:
                    bad.add(f"{path.name}:{line}{error.column and ':' + error.column}: {error}")
                else:
                    yield number, record
            number += 1
    bad.close()


def count_rows(path: Path) -> int:
    """Rows of a file, from the foot of a parquet file or by counting; none is kept in memory.

    Raises:
        DataError: The file is damaged, or of no known kind.
    """
    import pyarrow.parquet as pq

    if path.suffix != ".parquet":
        return sum(1 for _ in _rows(path))
    with _explained(path):
        return int(pq.read_metadata(path).num_rows)


Parse = Callable[[], Any]  # parses one row; raises `MalformedError`


def _rows(path: Path) -> Iterator[Parse]:
    import pyarrow as pa

    if not (kind := READABLE.search(path.name)):
        raise DataError(f"{path.name} is of no kind that can be read", expected="jsonl, json, csv, tsv, parquet, arrow")
    with _explained(path):
        if kind[1] in ("parquet", "arrow"):
            yield from _columnar(path, kind[1])
            return
        with io.BufferedReader(pa.input_stream(path), 2**16) as handle:
            if kind[1] in ("csv", "tsv"):
                yield from _cells(handle, "," if kind[1] == "csv" else "\t")
            elif kind[1] == "json" and handle.peek(100).lstrip().startswith(b"["):
                yield from (lambda row=row: row for row in from_json(handle.read()))
            else:
                yield from (partial(_json, line) for line in _lines(handle))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path.name) from None
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        what = f"{path.name} is damaged, cut off or not of the kind that its name says"
        raise DataError(what, where=path.name, found=error, fix="get it again") from None


def _lines(handle: IO[bytes]) -> Iterator[bytes]:
    """Lines of an open file; of one that is too long no more is kept than it takes to see that.

    JSON may hold U+2028, so only the newline byte separates.
    """
    while line := handle.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) >= LONGEST_LINE and not rest.endswith(b"\n"):
            rest = handle.readline(LONGEST_LINE)
        yield line


def _json(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        raise MalformedError(f"longer than {LONGEST_LINE // 2**20} MiB: one JSON object a line is expected")
    if line.startswith(b"\xef\xbb\xbf"):
        raise MalformedError("it starts with a byte order mark: save the file as UTF-8 without BOM", "1")
    try:
        return from_json(line.rstrip(), allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        rule, _, column = str(error).rpartition(" at line 1 column ")
        raise MalformedError(f"not JSON: {rule}", column) from None


def _cells(handle: IO[bytes], delimiter: str) -> Iterator[Parse]:
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(handle, "utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names = next(lines, [])
        yield from (partial(_of_cells, names, cells) for cells in lines if cells)


def _of_cells(names: list[str], cells: list[str]) -> dict[str, str | None]:
    if not len(cells) == len(names) == len(set(names)):
        raise MalformedError(f"{len(cells)} cells, the header has {len(set(names))} different names")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _columnar(path: Path, kind: str) -> Iterator[Parse]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pa.memory_map(str(path)) as source:
        if kind == "parquet":
            batches = pq.ParquetFile(source, pre_buffer=False).iter_batches(ROWS_AT_A_TIME)
        else:  # `datasets` writes streams
            opened = pa.ipc.open_file if source.read(6) == b"ARROW1" else pa.ipc.open_stream
            source.seek(0)
            batches = opened(source).read_all().to_batches(ROWS_AT_A_TIME)
        for batch in batches:
            rows = cache(batch.to_pylist)  # once, and only where a row of the batch is wanted
            yield from (lambda rows=rows, place=place: rows()[place] for place in range(len(batch)))


# --- files of the kit -------------------------------------------------------------------------------------------------


def iter_examples(path: Path) -> Iterator[TrainingExample]:
    """Read a training file of the kit in a stream, one line in memory at a time.

    Args:
        path: A ``.jsonl`` file with ``query``, ``pos`` and ``neg`` a line.

    Yields:
        The examples in the file's order.

    Raises:
        DataError: As `rows_of`; or there is none.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"query": "a question", "pos": ["its answer"], "neg": ["another text"]}])
    >>> [example.pos for example in iter_examples(Path("mine.jsonl"))]
    [('its answer',)]
    """
    example = None
    for _, example in rows_of([path], partial(_checked, "examples")):
        yield example
    if example is None:
        raise DataError(f"{path.name} has no training examples", where=path.name, expected="at least one line")


def read_examples(path: Path) -> list[TrainingExample]:
    """Read a training file of the kit.

    Args:
        path: As for `iter_examples`.

    Returns:
        The examples in the file's order.

    Raises:
        DataError: As `rows_of`.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"query": "a question", "pos": ["its answer"], "neg": ["another text"]}])
    >>> read_examples(Path("mine.jsonl"))[0].pos
    ('its answer',)
    """
    return list(iter_examples(path))


def write_examples(path: Path, examples: Iterable[TrainingExample]) -> int:
    """Write a training file atomically, as FlagEmbedding reads it; returns the number of rows."""
    return write_jsonl(path, (_KINDS["examples"][0].dump_python(one, exclude_none=True) for one in examples))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Args:
        path: The file, UTF-8.

    Returns:
        The objects, in order.

    Raises:
        DataError: Malformed lines, as ``file:line:column`` and the rule.

    >>> write_jsonl(Path("queries.jsonl"), [{"id": "q1", "text": "a question"}])
    1
    >>> read_jsonl(Path("queries.jsonl"))
    [{'id': 'q1', 'text': 'a question'}]
    """
    return [row for _, row in rows_of([path], dict)]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    r"""Write one JSON object a line (UTF-8, ``\n``, keys in the given order), atomically; returns the number."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
            count += 1
    return count
