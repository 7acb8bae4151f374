"""The ``read`` section of a manifest: how the files of a dataset become records, said in data and not in code.

A rule names a format, which key of the file each column of the record is, how texts are cleaned, which rows belong to
which part and which rows are left out and how many those are. Reads no file; `boom_utils.data.readers` applies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from boom_utils.config import Frozen
from boom_utils.data.cleaning import Step
from boom_utils.data.file_formats import FileFormat, Lines, refuse
from boom_utils.errors import nearest

Shape = Literal["pairs", "candidates", "labelled", "graded", "judged_pairs", "nli", "judged"]
Part = Literal["train", "dev", "test"]
AnyPart = Literal["train", "dev", "test", "corpus", "queries", "qrels"]
PARTS = ("train", "dev", "test")
JUDGED_PARTS = ("corpus", "queries", "qrels")
COLUMNS: dict[Shape, tuple[str, ...]] = {
    "pairs": ("query", "passage"),
    "candidates": ("query", "passage", "label"),
    "labelled": ("text", "label"),
    "graded": ("sentence1", "sentence2", "score"),
    "judged_pairs": ("sentence1", "sentence2", "label"),
    "nli": ("sentence1", "sentence2", "label"),
}
"""Columns of the records of a shape; those of ``judged`` differ by part."""
JUDGED_COLUMNS = {"corpus": ("id", "text"), "queries": ("id", "text"), "qrels": ("query", "document", "score")}
LABELS_OF_SHAPE: dict[Shape, tuple[str, ...]] = {
    "candidates": ("0", "1"),
    "judged_pairs": ("0", "1"),
    "nli": ("entailment", "neutral", "contradiction"),
}
"""The only labels a record of these shapes may have."""
Why = Annotated[str, Field(min_length=10, max_length=500)]


# --- parts ------------------------------------------------------------------------------------------------------------


class SplitByRole(Frozen):
    """The role of a file is the part of its rows, or says which part."""

    rule: Literal["role"] = "role"
    parts: dict[str, Part] = Field(default_factory=dict, description="role of a file -> part")


class SplitByHash(Frozen):
    """md5 of a column (utf-8), as one big hexadecimal number, modulo ``modulo``: small ones are test."""

    rule: Literal["md5"]
    column: str
    steps: tuple[Step, ...] = Field(default=(), description="applied to a copy of the text before it is hashed")
    modulo: int = Field(gt=1)
    test_below: int = Field(gt=0)


class SplitByColumn(Frozen):
    """A column of the file names the part."""

    rule: Literal["column"]
    column: str
    parts: dict[str, Part] = Field(min_length=1)


class SplitByPosition(Frozen):
    """Part -> its first and last row in the file, counted from 1."""

    rule: Literal["position"]
    parts: dict[Part, tuple[int, int]] = Field(min_length=1)


SplitRule = Annotated[SplitByRole | SplitByHash | SplitByColumn | SplitByPosition, Field(discriminator="rule")]


# --- rows left out ----------------------------------------------------------------------------------------------------


class _LeaveOut(Frozen):
    rows: int = Field(gt=0, description="exactly so many rows are left out by this rule")
    why: Why


class HasValue(_LeaveOut):
    """Rows whose column has one of some values, as it stands in the file."""

    rule: Literal["value"]
    part: AnyPart | None = Field(default=None, description="only rows of files of this part")
    column: str
    values: tuple[str, ...] = Field(min_length=1)


class IsShorter(_LeaveOut):
    """Rows whose column is shorter than ``fewest`` characters or words, after cleaning."""

    rule: Literal["shorter"]
    column: str
    unit: Literal["characters", "words"]
    fewest: int = Field(gt=0)


class IsShared(_LeaveOut):
    """Rows of ``part`` that have a value in one of the columns which ``other`` has in the same column."""

    rule: Literal["shared"]
    part: AnyPart
    other: AnyPart
    columns: tuple[str, ...] = Field(min_length=1)
    steps: tuple[Step, ...] = Field(default=(), description="applied to copies before they are compared")


class IsRepeated(_LeaveOut):
    """Rows of ``part`` that repeat an earlier row in all columns of the record."""

    rule: Literal["repeated"]
    part: AnyPart


class IsUnjudged(_LeaveOut):
    """Queries that no judgement names."""

    rule: Literal["unjudged"]


class HoldsNothing(_LeaveOut):
    """Files without a row; ``rows`` counts these files."""

    rule: Literal["empty_file"]


LeaveOut = Annotated[
    HasValue | IsShorter | IsShared | IsRepeated | IsUnjudged | HoldsNothing, Field(discriminator="rule")
]


# --- all together -----------------------------------------------------------------------------------------------------


class ScoreRange(Frozen):
    """Lowest and highest score there may be; scores are rescaled from this range to 0-5."""

    lowest: float
    highest: float

    @model_validator(mode="after")
    def _is_a_range(self) -> ScoreRange:
        refuse([] if self.lowest < self.highest else ["lowest is not below highest"])
        return self


class Reading(Frozen):
    """How the files of one dataset are read."""

    shape: Shape
    files: FileFormat | None = Field(default=None, description="format of every file")
    by_role: dict[str, FileFormat] = Field(default_factory=dict, description="shape judged: format by role")
    clean: dict[str, tuple[Step, ...]] = Field(default_factory=dict, description="column -> steps, in order")
    labels: dict[str, str] | tuple[str, ...] | None = Field(
        default=None, description="label in the file -> label of the record, or those that stay; no other is known"
    )
    score: ScoreRange | None = None
    split: SplitRule = SplitByRole()
    leave_out: tuple[LeaveOut, ...] = ()
    rows: dict[AnyPart, int] = Field(default_factory=dict, description="rows of every part, after all rules")
    differs: Why | None = Field(default=None, description="why these are not the numbers of rows stated elsewhere")

    @model_validator(mode="after")
    def _agrees_with_its_shape(self) -> Reading:
        refuse([*self._format_problems(), *self._column_problems(), *self._value_problems()])
        return self

    @property
    def label_names(self) -> dict[str, str]:
        """Label in the file -> label of the record."""
        labels = self.labels or ()
        return dict(labels) if isinstance(labels, dict) else {label: label for label in labels}

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts a dataset of this shape may have."""
        return JUDGED_PARTS if self.shape == "judged" else PARTS

    def columns(self, part: str) -> tuple[str, ...]:
        """Columns of the records of a part."""
        return JUDGED_COLUMNS[part] if self.shape == "judged" else COLUMNS[self.shape]

    def format_of(self, role: str) -> FileFormat:
        """How a file of a role is read."""
        found = self.by_role[role] if self.shape == "judged" else self.files
        assert found is not None  # validated
        return found

    def part_of(self, role: str) -> str | None:
        """The part of all rows of a file of this role; None where every row has its own."""
        if self.shape == "judged":
            return role
        return self.split.parts.get(role, role) if isinstance(self.split, SplitByRole) else None

    def _format_problems(self) -> Iterator[str]:
        if self.shape == "judged":
            if self.files or set(self.by_role) != set(JUDGED_PARTS):
                yield f"shape judged needs by_role with {', '.join(JUDGED_PARTS)}, and no files"
        elif self.files is None or self.by_role:
            yield f"shape {self.shape} needs files, and no by_role"
        for part in self.rows:
            if part not in self.parts:
                yield f"rows.{part}: shape {self.shape} has no part '{part}'"

    def _column_problems(self) -> Iterator[str]:
        formats = self.by_role if self.shape == "judged" else {"files": self.files}
        known: set[str] = set()
        for role, form in formats.items():
            if form is None or (self.shape == "judged" and role not in JUDGED_PARTS):
                continue
            wanted = self.columns(role)
            given = form.keys()
            known |= set(wanted) | set(given)
            if not isinstance(form, Lines):
                yield from (f"{role}: no field '{name}'{nearest(name, given)}" for name in wanted if name not in given)
        used = set(self.clean) | {one.column for one in self.leave_out if isinstance(one, HasValue | IsShorter)}
        if isinstance(self.split, SplitByHash | SplitByColumn):
            used.add(self.split.column)
        yield from (f"no column '{name}'{nearest(name, known)}" for name in sorted(used - known))

    def _value_problems(self) -> Iterator[str]:
        if (self.score is not None) != (self.shape == "graded"):
            yield f"shape {self.shape} " + ("needs a score range" if self.shape == "graded" else "has no score range")
        has_label = "label" in COLUMNS.get(self.shape, ())
        if has_label != bool(self.labels):
            yield f"shape {self.shape} " + ("needs labels" if has_label else "has no labels")
        allowed = LABELS_OF_SHAPE.get(self.shape)
        for name in self.label_names.values():
            if allowed and name not in allowed:
                yield f"labels: '{name}' is none of {', '.join(allowed)}{nearest(name, allowed)}"
