"""Rows of the files of published scores, read strictly: a wrong cell is an error with file and line."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeVar

_SOURCE = re.compile(
    r"(?P<url>https://\S+/[0-9a-f]{40}/\S+\.json) \(n=(?P<n>\d+) splits=(?P<splits>\S+) mteb=(?P<mteb>\S+)\)"
)
"""An address with a commit in it, then what was averaged and the mteb version."""


class Row(Protocol):
    """A line of one kind of file."""

    REQUIRED: ClassVar[Sequence[str]]
    OPTIONAL: ClassVar[Sequence[str]]

    @classmethod
    def parse(cls, cells: Mapping[str, str], line: str) -> Self:
        """Make it from its cells; raises ValueError."""

    @property
    def key(self) -> tuple[str, ...]:
        """What no two rows of a file share."""


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class PublishedScore:
    """One score, 0-100; ``mteb_version`` and ``prompt`` are None where they are not stated."""

    model: str
    revision: str
    benchmark: str
    task: str
    task_type: str
    main_score: float
    source: str
    mteb_version: str | None
    prompt: str | None
    line: str

    REQUIRED: ClassVar[Sequence[str]] = ("model", "revision", "benchmark", "task", "task_type", "main_score", "source")
    OPTIONAL: ClassVar[Sequence[str]] = ("prompt",)

    @classmethod
    def parse(cls, cells: Mapping[str, str], line: str) -> Self:
        """Make it from its cells; raises ValueError."""
        source = _SOURCE.fullmatch(cells["source"])
        if source is None:
            raise ValueError(
                f"source is not 'ADDRESS/COMMIT/FILE.json (n=... splits=... mteb=...)': {cells['source']!r}"
            )
        version = None if source["mteb"] == "None" else source["mteb"]
        names = {name: _text(cells, name) for name in ("model", "revision", "benchmark", "task", "task_type")}
        score = _score(cells, "main_score")
        return cls(
            **names,
            main_score=score,
            source=cells["source"],
            mteb_version=version,
            prompt=cells.get("prompt") or None,
            line=line,
        )

    @property
    def key(self) -> tuple[str, ...]:
        """What no two rows of a file share."""
        return self.model, self.revision, self.benchmark, self.task


@dataclass(frozen=True)
class PublishedMean:
    """The means of one model on one benchmark, over ``tasks_found`` tasks; ``per_type``: mean and number of tasks."""

    model: str
    revision: str
    benchmark: str
    tasks_found: int
    tasks_in_benchmark: int
    mean_task: float
    mean_type: float
    per_type: Mapping[str, tuple[float, int]]
    missing: tuple[str, ...]
    line: str

    REQUIRED: ClassVar[Sequence[str]] = (
        *("model", "revision", "benchmark", "tasks_found", "tasks_in_benchmark"),
        *("mean_task", "mean_type", "per_type(mean,n)", "missing"),
    )
    OPTIONAL: ClassVar[Sequence[str]] = ()

    @classmethod
    def parse(cls, cells: Mapping[str, str], line: str) -> Self:
        """Make it from its cells; raises ValueError."""
        return cls(
            model=_text(cells, "model"),
            revision=_text(cells, "revision"),
            benchmark=_text(cells, "benchmark"),
            tasks_found=_count(cells, "tasks_found"),
            tasks_in_benchmark=_count(cells, "tasks_in_benchmark"),
            mean_task=_score(cells, "mean_task"),
            mean_type=_score(cells, "mean_type"),
            per_type=_per_type(cells),
            missing=tuple(name for name in cells["missing"].split(";") if name),
            line=line,
        )

    @property
    def key(self) -> tuple[str, ...]:
        """What no two rows of a file share."""
        return self.model, self.revision, self.benchmark

    def covers(self, score: PublishedScore) -> bool:
        """Whether a score is one of those this mean is over."""
        same = (self.model, self.benchmark) == (score.model, score.benchmark)
        return same and (self.revision == "*" or score.revision in self.revision.split("+"))


@dataclass(frozen=True)
class PaperCell:
    """One number a reader copied from a table of the paper, on the paper's scale."""

    table: str
    row: str
    column: str
    value: float
    page: int
    line: str

    REQUIRED: ClassVar[Sequence[str]] = ("table", "row", "column", "value", "page")
    OPTIONAL: ClassVar[Sequence[str]] = ()

    @classmethod
    def parse(cls, cells: Mapping[str, str], line: str) -> Self:
        """Make it from its cells; raises ValueError."""
        names = {name: _text(cells, name) for name in ("table", "row", "column")}
        return cls(**names, value=_number(cells, "value"), page=_count(cells, "page"), line=line)

    @property
    def key(self) -> tuple[str, ...]:
        """What no two rows of a file share."""
        return self.table, self.row, self.column


def read_rows(path: Path, kind: type[R], problems: list[str]) -> list[R]:
    """All rows of a CSV file; what is wrong with it is added to ``problems``, each with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            numbered = ((reader.line_num, cells) for cells in reader)
            return _parsed(numbered, path.name, kind, problems)
    except FileNotFoundError:
        problems.append(f"{path.name}: the file is missing")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"{path.name}: {error}")
    return []


def _parsed(lines: Iterator[tuple[int, list[str]]], name: str, kind: type[R], problems: list[str]) -> list[R]:
    _, header = next(lines, (1, []))
    unknown = [column for column in header if column not in (*kind.REQUIRED, *kind.OPTIONAL)]
    missing = [column for column in kind.REQUIRED if column not in header]
    twice = sorted({column for column in header if header.count(column) > 1})
    for what, columns in (("unknown", unknown), ("missing", missing), ("repeated", twice)):
        problems += [f"{name}, line 1: {what} column '{column}'" for column in columns]
    if unknown or missing or twice:
        return []
    rows: list[R] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, cells in lines:
        line = f"{name}, line {number}"
        if len(cells) != len(header):
            problems.append(f"{line}: {len(cells)} cells under {len(header)} columns")
            continue
        try:
            row = kind.parse(dict(zip(header, cells, strict=True)), line)
        except ValueError as error:
            problems.append(f"{line}: {error}")
            continue
        if row.key in seen:
            problems.append(f"{line}: the same as line {seen[row.key]} ({', '.join(row.key)})")
        seen.setdefault(row.key, number)
        rows.append(row)
    return rows


def _text(cells: Mapping[str, str], name: str) -> str:
    if not cells[name].strip():
        raise ValueError(f"{name} is empty")
    return cells[name]


def _number(cells: Mapping[str, str], name: str) -> float:
    try:
        number = float(cells[name])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {cells[name]!r}, expected a number")
    return number


def _score(cells: Mapping[str, str], name: str) -> float:
    score = _number(cells, name)
    if not 0 <= score <= 100:
        raise ValueError(f"{name} is {cells[name]}, expected 0 to 100")
    return score


def _count(cells: Mapping[str, str], name: str) -> int:
    if not cells[name].isdecimal() or int(cells[name]) == 0:
        raise ValueError(f"{name} is {cells[name]!r}, expected a whole number from 1 on")
    return int(cells[name])


def _per_type(cells: Mapping[str, str]) -> dict[str, tuple[float, int]]:
    """``{"STS": [82.3, 9]}``: mean and number of tasks of each task type."""
    stored = cells["per_type(mean,n)"]
    try:
        return {str(kind): (float(mean), int(count)) for kind, (mean, count) in json.loads(stored).items()}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"per_type(mean,n) is not an object of [mean, n]: {stored!r}") from None
