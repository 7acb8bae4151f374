"""From the downloaded files of a dataset to records, as the ``read`` section of its manifest says.

Every row is read, or is left out by a rule that the manifest names with the number of rows it leaves out, or is
malformed; nothing goes missing in silence. Does not download and makes no training examples.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa

from boom_utils.data.cleaning import clean
from boom_utils.data.examples import BadLine
from boom_utils.data.file_formats import FileFormat, Lines
from boom_utils.data.manifest import Dataset
from boom_utils.data.manifest_files import DataFile, Origin
from boom_utils.data.parsers import BrokenFileError, Row, parse
from boom_utils.data.read_rules import (
    HasValue,
    HoldsNothing,
    IsRepeated,
    IsShared,
    IsShorter,
    IsUnjudged,
    Reading,
    Shape,
    SplitByColumn,
    SplitByHash,
    SplitByPosition,
)
from boom_utils.data.records import BrokenRuleError, Record, check_values, fields_of, text_of
from boom_utils.errors import DataError, bullet_list, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Raw:
    """Records of one dataset.

    Args:
        shape: What the columns mean (`boom_utils.data.read_rules.COLUMNS`).
        parts: Part -> table; train, dev and test, or corpus, queries and qrels. All columns are strings but ``score``.
        bad_lines: Malformed rows that were left out; empty unless that was asked for.
    """

    shape: Shape
    parts: Mapping[str, pa.Table]
    bad_lines: tuple[BadLine, ...]


@dataclass
class _Found:
    """What has been read so far."""

    parts: dict[str, list[Record]]
    bad_lines: list[BadLine] = field(default_factory=list)
    left_out: Counter[int] = field(default_factory=Counter)
    """Number of a rule of ``leave_out`` -> rows."""


def read_dataset(dataset: Dataset, folder: Path, on_bad_line: Literal["error", "skip"] = "error") -> Raw:
    """Read all files of a dataset.

    Args:
        dataset: From a manifest of files; it has a ``read`` section.
        folder: The downloads; a file lies at ``<host>/<path>`` below it.
        on_bad_line: ``skip`` leaves malformed rows out, and files that are damaged as a whole, and lists them.

    Returns:
        The records, in the order of the files.

    Raises:
        DataError: A file is missing; rows are malformed (the first ten are shown with file, line and rule); a part has
            no rows, or other numbers of rows than the manifest states.
    """
    origin = dataset.origin
    if origin is None or origin.read is None:
        raise DataError(f"the manifest does not say how dataset '{dataset.id}' is read", expected="origin.read")
    reading = origin.read
    found = _Found({part: [] for part in reading.parts})
    for role, files in _groups(origin, reading):
        _read_group(_Group(role, files, origin, reading, folder), found)
    for number, rule in enumerate(reading.leave_out):
        if isinstance(rule, IsShared | IsRepeated | IsUnjudged):
            _leave_out_of_parts(rule, number, found, reading)
    if reading.shape == "judged":
        _leave_out_what_nothing_is_known_of(found)
    found.bad_lines = list(dict.fromkeys(found.bad_lines))  # a file of several roles is read once for each
    _refuse_bad_lines(dataset, found, on_bad_line)
    _check_numbers(dataset, reading, found)
    parts = {part: _as_table(rows, reading, part) for part, rows in found.parts.items() if rows}
    return Raw(reading.shape, parts, tuple(found.bad_lines))


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Files that are read together as one role: parallel ones, or a single one."""

    role: str
    files: Sequence[DataFile]
    origin: Origin
    reading: Reading
    folder: Path

    @property
    def form(self) -> FileFormat:
        return self.reading.format_of(self.role)

    @property
    def name(self) -> str:
        """The file as messages name it: its path inside the repository."""
        return self.file_name(self.files[0])

    def file_name(self, file: DataFile) -> str:
        parts = file.path.parts
        return "/".join(parts[parts.index(self.origin.commit) + 1 :]) if self.origin.commit in parts else str(file.path)

    def contents(self) -> dict[str, bytes]:
        """Bytes of the files by ``part``.

        Raises:
            DataError: A file is not there.
        """
        contents = {}
        for file in self.files:
            try:
                contents[file.part or ""] = (self.folder / file.path).read_bytes()
            except FileNotFoundError:
                raise DataError(
                    f"the file {self.file_name(file)} has not been downloaded",
                    where=self.folder / file.path,
                    fix="run `boom data fetch` for this corpus first",
                ) from None
        return contents


def _groups(origin: Origin, reading: Reading) -> Iterator[tuple[str, Sequence[DataFile]]]:
    """Role and files of every group, in the order of the manifest."""
    if reading.shape == "judged":
        yield from ((role, [file]) for file in origin.files for role in file.roles)
    elif isinstance(reading.files, Lines):
        for role in dict.fromkeys(file.role for file in origin.files):
            yield role, [file for file in origin.files if file.role == role]
    else:
        yield from ((file.role, [file]) for file in origin.files)


def _read_group(group: _Group, found: _Found) -> None:
    try:
        # All of it first: of a file that turns out to be damaged nothing is used.
        rows = list(parse(group.contents(), group.form))
    except BrokenFileError as error:
        found.bad_lines.append(BadLine(f"{group.name}{error.place}", error.rule))
        return
    if not rows:
        _leave_out_file(group, found)
    for number, row in enumerate(rows, start=1):
        _read_row(row, number, group, found)


def _read_row(row: Row, number: int, group: _Group, found: _Found) -> None:
    reading = group.reading
    try:
        if row.rule is not None:
            raise BrokenRuleError(row.rule)
        record = fields_of(row.values, group.form)
        if (rule := _rule_before_cleaning(record, group)) is not None:
            found.left_out[rule] += 1
            return
        record = {name: text_of(value, name, reading.clean.get(name, ())) for name, value in record.items()}
        if (rule := _rule_after_cleaning(record, reading)) is not None:
            found.left_out[rule] += 1
            return
        check_values(record, reading)
        found.parts[_part(record, number, group)].append(record)
    except BrokenRuleError as broken:
        found.bad_lines.append(BadLine(f"{group.name}{row.place}", str(broken)))


def _part(record: Record, number: int, group: _Group) -> str:
    split = group.reading.split
    if isinstance(split, SplitByHash):
        hashed = md5(clean(record[split.column], split.steps).encode(), usedforsecurity=False).hexdigest()
        return "test" if int(hashed, 16) % split.modulo < split.test_below else "train"
    if isinstance(split, SplitByColumn):
        value = record[split.column]
        if value not in split.parts:
            raise BrokenRuleError(f"{split.column} is '{value[:50]}', which is no part{nearest(value, split.parts)}")
        return split.parts[value]
    if isinstance(split, SplitByPosition):
        for part, (first, last) in split.parts.items():
            if first <= number <= last:
                return part
        raise BrokenRuleError(f"row {number} is in no part")
    part_of_role = group.reading.part_of(group.role)
    assert part_of_role is not None
    return part_of_role


# --- rows left out ----------------------------------------------------------------------------------------------------


def _leave_out_file(group: _Group, found: _Found) -> None:
    for number, rule in enumerate(group.reading.leave_out):
        if isinstance(rule, HoldsNothing):
            found.left_out[number] += 1
            return
    found.bad_lines.append(BadLine(group.name, "the file has no row of the form the manifest states"))


def _rule_before_cleaning(record: Record, group: _Group) -> int | None:
    """Number of the first rule that leaves a row out because of what stands in the file."""
    part = group.reading.part_of(group.role)
    for number, rule in enumerate(group.reading.leave_out):
        if isinstance(rule, HasValue) and rule.part in (None, part) and record.get(rule.column) in rule.values:
            return number
    return None


def _rule_after_cleaning(record: Record, reading: Reading) -> int | None:
    for number, rule in enumerate(reading.leave_out):
        if isinstance(rule, IsShorter):
            text = record[rule.column]
            if (len(text) if rule.unit == "characters" else len(text.split())) < rule.fewest:
                return number
    return None


def _leave_out_of_parts(rule: IsShared | IsRepeated | IsUnjudged, number: int, found: _Found, reading: Reading) -> None:
    """Apply a rule that needs all rows of a part."""
    if isinstance(rule, IsUnjudged):
        judged = {record["query"] for record in found.parts["qrels"]}
        part, kept = "queries", [record for record in found.parts["queries"] if record["id"] in judged]
    elif isinstance(rule, IsRepeated):
        part, columns = rule.part, reading.columns(rule.part)
        first = {tuple(record[name] for name in columns): record for record in reversed(found.parts[part])}
        kept = [record for record in found.parts[part] if first[tuple(record[name] for name in columns)] is record]
    else:
        part = rule.part
        other = {name: {clean(record[name], rule.steps) for record in found.parts[rule.other]} for name in rule.columns}
        kept = [
            record
            for record in found.parts[part]
            if not any(clean(record[name], rule.steps) in other[name] for name in rule.columns)
        ]
    found.left_out[number] += len(found.parts[part]) - len(kept)
    found.parts[part] = kept


# --- checks and tables ------------------------------------------------------------------------------------------------


def _refuse_bad_lines(dataset: Dataset, found: _Found, on_bad_line: str) -> None:
    if found.bad_lines and on_bad_line == "error":
        raise DataError(
            f"{len(found.bad_lines)} malformed line(s) in the files of dataset '{dataset.id}'",
            found=bullet_list(str(bad) for bad in found.bad_lines[:10]),
            fix='fetch the files again, correct the manifest, or set on_bad_line to "skip" to leave these lines out',
        )
    for bad in found.bad_lines:
        log.warning("skipped %s", bad)


def _leave_out_what_nothing_is_known_of(found: _Found) -> None:
    """Call texts that repeat an id bad lines, and judgements of queries and documents there are none of."""
    known: dict[str, set[str]] = {}
    for part in ("corpus", "queries"):
        first = {record["id"]: record for record in reversed(found.parts[part])}
        again = [record for record in found.parts[part] if first[record["id"]] is not record]
        found.bad_lines += [BadLine(part, f"the id '{record['id']}' is given twice") for record in again]
        found.parts[part] = [record for record in found.parts[part] if first[record["id"]] is record]
        known[part] = set(first)
    kept = []
    for record in found.parts["qrels"]:
        if record["query"] not in known["queries"]:
            found.bad_lines.append(BadLine("qrels", f"there is no query '{record['query']}'"))
        elif record["document"] not in known["corpus"]:
            found.bad_lines.append(BadLine("qrels", f"there is no document '{record['document']}' in the corpus"))
        else:
            kept.append(record)
    found.parts["qrels"] = kept


def _check_numbers(dataset: Dataset, reading: Reading, found: _Found) -> None:
    """Compare numbers of rows with those of the manifest; where rows were skipped, only what is empty is an error."""
    empty = [part for part in reading.rows if not found.parts[part]]
    if empty or not any(found.parts.values()):
        raise DataError(
            f"dataset '{dataset.id}' has no rows" + (f" for {', '.join(empty)}" if empty else ""),
            expected="rows that can be read",
            fix="fetch the files again, or correct the manifest",
        )
    if found.bad_lines:
        return
    problems = [
        f"rule '{rule.rule}' left out {found.left_out[number]} rows instead of {rule.rows}"
        for number, rule in enumerate(reading.leave_out)
        if found.left_out[number] != rule.rows
    ]
    problems += [
        f"part '{part}' has {len(found.parts[part])} rows instead of {rows}"
        for part, rows in reading.rows.items()
        if len(found.parts[part]) != rows
    ]
    if reading.shape == "candidates":
        problems += [f"part '{part}': candidates of one query are not adjacent" for part in _torn(found.parts)]
    if problems:
        raise DataError(
            f"the files of dataset '{dataset.id}' have other rows than the manifest states",
            found=bullet_list(problems),
            fix="fetch the files again, or correct the manifest",
        )


def _torn(parts: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """Parts in which a query comes again after another one."""
    for part, records in parts.items():
        queries = [record["query"] for record in records]
        if sum(1 for _ in groupby(queries)) != len(set(queries)):
            yield part


def _as_table(records: Sequence[Record], reading: Reading, part: str) -> pa.Table:
    columns = {}
    for name in reading.columns(part):
        values = [record[name] for record in records]
        columns[name] = pa.array(map(float, values), pa.float64()) if name == "score" else pa.array(values, pa.string())
    return pa.table(columns)
