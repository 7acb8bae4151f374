"""From the text files of a dataset to records, strictly: what does not parse or breaks a rule is named with its place.

It reads lines, delimited tables and JSON, and checks what becomes of their rows; it knows no dataset: these are in
`boom_utils.data.open_text`. Every row is read, is left out by a rule that states how many it leaves out, or is
malformed; nothing goes missing in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from boom_utils.data.examples import BadRows, MalformedError
from boom_utils.data.manifest import DataFile, Origin
from boom_utils.errors import DataError, bullet_list, nearest

Shape = Literal["pairs", "candidates", "labelled", "graded", "judged_pairs", "nli", "judged"]
COLUMNS: dict[str, tuple[str, ...]] = {
    "pairs": ("query", "passage"),
    "candidates": ("query", "passage", "label"),
    "labelled": ("text", "label"),
    "graded": ("sentence1", "sentence2", "score"),
    "judged_pairs": ("sentence1", "sentence2", "label"),
    "nli": ("sentence1", "sentence2", "label"),
    "corpus": ("id", "text"),
    "queries": ("id", "text"),
    "qrels": ("query", "document", "score"),
}
"""Columns of the records of a shape; the shape ``judged`` has three parts, each with columns of its own."""
HIGHEST_SCORE = 5.0
"""Scores are given as 0 to 5."""
_SURROGATE = re.compile("[\ud800-\udfff]")

Values = Mapping[str, Any]
Row = tuple[str, Values | str]
"""Where a row is, as it stands after the file's name (``:12`` or ``, record 3``); its values, or what is wrong."""
Parts = dict[str, list[dict[str, Any]]]
"""Part -> its records: columns, whatever else a rule looks at, and the place under ``at``."""


@dataclass(frozen=True)
class Source:
    """Text of one file, or of parallel files by the column that each is."""

    role: str
    texts: Mapping[str, str]

    @property
    def text(self) -> str:
        """Of the one file."""
        (text,) = self.texts.values()
        return text


@dataclass(frozen=True)
class Raw:
    """Records of one dataset.

    Args:
        shape: What the columns mean (`COLUMNS`).
        parts: Part -> table; train, dev and test, or corpus, queries and qrels. All columns are strings but ``score``.
        bad: Malformed rows that were left out; none unless that was asked for.
    """

    shape: Shape
    parts: Mapping[str, pa.Table]
    bad: BadRows = field(default_factory=BadRows)


def table_of(shape: str, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Records of a shape, or of a part of ``judged``, from rows of values in the order of `COLUMNS`."""
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(COLUMNS[shape])})


def collapse(text: str) -> str:
    """Every run of white space as one blank, none at the ends."""
    return " ".join(text.split())


# --- rows of a file ---------------------------------------------------------------------------------------------------


def _decoded(content: bytes, encoding: str) -> str:
    """Text of a file, unpacked; a byte not of the encoding is a lone surrogate, which its row is refused for."""
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise MalformedError(f"not a whole gzip file: {error}") from None
    return content.decode(encoding, errors="surrogateescape")


def _lines(text: str) -> list[str]:
    """Lines without their ends; only LF (or CRLF) ends one, whatever other separators a text may hold."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


Rows = Callable[[Source], Iterator[Row]]
"""From the text of a file to its rows; MalformedError where the file as a whole cannot be read."""


def parallel(source: Source) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of parallel files: line i of each belongs together.

    Raises:
        MalformedError: They have different numbers of lines.
    """
    columns = {name: _lines(text) for name, text in source.texts.items()}
    counts = {name: len(lines) for name, lines in columns.items()}
    if len(set(counts.values())) > 1:
        raise MalformedError(f"parallel files of different numbers of lines: {counts}")
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield f":{number}", dict(zip(columns, values, strict=True))


def matching(pattern: str) -> Rows:
    """One row a line, taken apart by a regular expression whose named groups are the columns."""

    def rows(source: Source) -> Iterator[Row]:
        for number, line in enumerate(_lines(source.text), start=1):
            found = re.fullmatch(pattern, line)
            yield f":{number}", found.groupdict() if found else f"not of the form {pattern}"

    return rows


def table(delimiter: str, names: str, header: str | None = None, quoted: bool = False) -> Rows:
    """Rows of delimited columns.

    Args:
        delimiter: One character.
        names: Of all columns, in order, with blanks between; ``-`` for one that is not wanted.
        header: The first line.
        quoted: Double quotes mean what they mean in CSV (RFC 4180); else they are text.
    """
    columns = names.split()

    def rows(source: Source) -> Iterator[Row]:
        # A StringIO ends lines at LF alone.
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        cells = csv.reader(io.StringIO(source.text), delimiter=delimiter, quoting=quoting, strict=True)
        if header is not None and (found := next(cells, [])) != header.split(delimiter):
            raise MalformedError(f"the header is not {header!r}: found {found}"[:300])
        began = cells.line_num + 1
        try:
            for row in cells:
                right = len(row) == len(columns)
                wrong = f"{len(row)} columns instead of {len(columns)}"
                yield f":{began}", dict(zip(columns, row, strict=True)) if right else wrong
                began = cells.line_num + 1
        except csv.Error as error:
            raise MalformedError(f"not CSV from line {began}: {error}") from None

    return rows


def json_rows(unfold: Callable[[Any], Iterable[Any]] = list, lines: bool = False) -> Rows:
    """Rows of JSON.

    Args:
        unfold: Finds the rows in a JSON value; by default it is a list of them.
        lines: The file has one value a line; else it is one value.
    """

    def rows(source: Source) -> Iterator[Row]:
        for line, piece in enumerate(_lines(source.text) if lines else [source.text], start=1):
            try:
                found = list(unfold(json.loads(piece, parse_constant=_no_constant)))
            except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
                yield f":{line}" if lines else "", f"not JSON of the expected layout: {type(error).__name__} {error}"
                continue
            for number, row in enumerate(found, start=1):
                place = f":{line}" if lines else f", record {number}"
                yield place, row if isinstance(row, dict) else "expected a JSON object"

    return rows


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# --- records of a dataset ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """How the files of one dataset are read.

    Args:
        shape: What the columns of its records mean.
        rows: Rows of a file, or of parallel files.
        clean: Applied to every column; leaves no white space at the ends.
        record: Columns from the values of a row; ``part`` says its part, where the role of the file does not.
        rules: Leave rows out, in order; the numbers of rows that the manifest states are those without them.
        scores: Lowest and highest score there may be; rescaled to 0-5.
        encoding: Of the files; a byte order mark may stand before utf-8.
    """

    shape: Shape
    rows: Rows
    clean: Callable[[str], str] = collapse
    record: Callable[[Values], Values] = dict
    rules: tuple[Callable[[Parts], None], ...] = ()
    scores: tuple[float, float] = (0.0, HIGHEST_SCORE)
    encoding: str = "utf-8-sig"

    @cached_property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Part -> the columns of its records, for all parts that a dataset of this shape may have."""
        if self.shape == "judged":
            return {part: COLUMNS[part] for part in ("corpus", "queries", "qrels")}
        return dict.fromkeys(("train", "dev", "test"), COLUMNS[self.shape])


def read_files(name: str, origin: Origin, reader: Reader, folder: Path, on_bad_line: Literal["error", "skip"]) -> Raw:
    """Read all files of a dataset.

    Args:
        name: The dataset.
        origin: Its files, its labels, and how many rows every part has.
        reader: How the files are read.
        folder: The downloads; a file lies at ``<host>/<path>`` below it.
        on_bad_line: ``skip`` leaves malformed rows out, and files that are damaged as a whole, and lists them.

    Returns:
        The records, in the order of the files.

    Raises:
        DataError: A file is missing; rows are malformed (the first ten are shown with file, place and rule); a part has
            no rows or not as many as the manifest states.
    """
    bad = BadRows(on_bad_line == "skip", f"the files of dataset '{name}'")
    parts = _records(origin, reader, folder, bad)
    for leave_out in reader.rules:
        leave_out(parts)
    for problem in _check_ids(parts) if reader.shape == "judged" else ():
        bad.add(problem)
    bad.close()
    # Where rows were skipped, only a part without any is wrong.
    wrong = [
        f"part '{part}': {found} rows instead of {rows}"
        for part, rows in origin.parts.items()
        if (found := len(parts[part])) != rows and not (bad.number and found)
    ]
    if wrong or not any(parts.values()):
        what, fix = "have other rows than are stated, or none", "fetch the files again, or correct the manifest"
        raise DataError(f"the files of dataset '{name}' {what}", found=bullet_list(wrong), fix=fix)
    tables = {
        part: pa.table({column: [record[column] for record in records] for column in reader.columns[part]})
        for part, records in parts.items()
        if records
    }
    return Raw(reader.shape, tables, bad)


def _records(origin: Origin, reader: Reader, folder: Path, bad: BadRows) -> Parts:
    """All good records, in the order of the files; ``bad`` gets what is malformed."""
    parts: Parts = {part: [] for part in reader.columns}
    groups: dict[str, list[DataFile]] = {}
    for file in origin.files:
        is_column = file.part in COLUMNS.get(reader.shape, ())
        groups.setdefault(file.role if is_column else file.url, []).append(file)
    for files in groups.values():
        name = files[0].url.partition(f"/{origin.commit}/")[2]
        part = next((role for role in files[0].role.split("+") if role in parts), "test")
        try:
            texts = {file.part or "": _decoded((folder / file.path).read_bytes(), reader.encoding) for file in files}
            # All of it first: of a file that turns out to be damaged nothing is used.
            rows = list(reader.rows(Source(files[0].role, texts)))
        except MalformedError as error:
            bad.add(f"{name}: {error}")
            continue
        except FileNotFoundError as error:
            what, fix = f"the file {name} has not been downloaded", "run `boom data fetch` for this corpus first"
            raise DataError(what, where=error.filename, fix=fix) from None
        for place, values in rows:
            try:
                record = _record(values, reader, part, origin.label_names)
            except MalformedError as error:
                bad.add(f"{name}{place}: {error}")
            else:
                parts[record["part"]].append({**record, "at": f"{name}{place}"})
    return parts


def _record(values: Values | str, reader: Reader, part: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Part and columns of a row: texts cleaned, label and score translated."""
    if isinstance(values, str):
        raise MalformedError(values)
    try:
        record = {"part": part, **reader.record(values)}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MalformedError(f"not of the expected layout: {type(error).__name__} {error}") from None
    if (columns := reader.columns.get(str(record["part"]))) is None:
        raise MalformedError(f"'{record['part']}' is no part")
    for name in columns:
        record[name] = _text(name, record.get(name), reader.clean)
    if "label" in columns:
        if record["label"] not in labels:
            raise MalformedError(f"unknown label '{record['label']}'{nearest(record['label'], labels)}"[:200])
        record["label"] = labels[record["label"]]
    if "score" in columns:
        record["score"] = _score(record["score"], *reader.scores)
    return record


def _text(name: str, value: Any, clean: Callable[[str], str]) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if not isinstance(value, str):
        raise MalformedError(f"'{name}' is missing, or neither a text nor a number")
    if not value.isascii() and _SURROGATE.search(value):
        raise MalformedError(f"{name} holds bytes that are not of the file's encoding, or half a character")
    if not (text := clean(value)):
        raise MalformedError(f"{name} is empty")
    return text


def _score(text: str, lowest: float, highest: float) -> float:
    try:
        score = float(text)
    except ValueError:
        raise MalformedError(f"the score is no number: '{text[:50]}'") from None
    if not lowest <= score <= highest:
        raise MalformedError(f"the score {score} is not between {lowest} and {highest}")
    return (score - lowest) * HIGHEST_SCORE / (highest - lowest)


def _check_ids(parts: Parts) -> Iterator[str]:
    """Leave out and list texts that repeat an id, and judgements of queries and documents there are none of."""
    known: dict[str, dict[str, Any]] = {"corpus": {}, "queries": {}}
    for part, first in known.items():
        for record in parts[part]:
            if first.setdefault(record["id"], record) is not record:
                yield f"{record['at']}: the id '{record['id']}' is given twice"
        parts[part] = list(first.values())
    judgements, parts["qrels"] = parts["qrels"], []
    for record in judgements:
        if record["query"] in known["queries"] and record["document"] in known["corpus"]:
            parts["qrels"].append(record)
        else:
            yield f"{record['at']}: no query '{record['query']}', or no document '{record['document']}'"
