"""Formats that files of a corpus come in, and which key of a file each column of a record is.

What a manifest may say about a format, checked before a file is read; `boom_utils.data.parsers` has a parser for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from boom_utils.config import Frozen


def refuse(problems: Iterable[str]) -> None:
    """Raise one error with all problems, if there are any.

    Raises:
        ValueError: As pydantic wants it from a validator.
    """
    if found := list(problems):
        raise ValueError("; ".join(found))


# --- where a column of the record comes from --------------------------------------------------------------------------


class Joined(Frozen):
    """Several keys of the file, put together."""

    join: tuple[str, ...] = Field(min_length=2)
    by: str
    optional: tuple[str, ...] = Field(default=(), description="keys that a row may lack")


class FirstOf(Frozen):
    """The first of several keys whose value is not null."""

    first: tuple[str, ...] = Field(min_length=2)


class Constant(Frozen):
    """The same value in every record."""

    constant: str


def _kind_of_field(rule: object) -> str | None:
    if isinstance(rule, str):
        return "key"
    kinds = ("join", "first", "constant")
    return next((kind for kind in kinds if (kind in rule if isinstance(rule, dict) else hasattr(rule, kind))), None)


FieldRule = Annotated[
    Annotated[str, Tag("key")]
    | Annotated[Joined, Tag("join")]
    | Annotated[FirstOf, Tag("first")]
    | Annotated[Constant, Tag("constant")],
    Discriminator(
        _kind_of_field,
        custom_error_type="field_rule",
        custom_error_message="expected a key of the file, or a mapping with join, first or constant",
    ),
]


# --- formats ----------------------------------------------------------------------------------------------------------


class _Format(Frozen):
    encoding: Literal["utf-8", "utf-8-sig", "ascii", "latin-1"] = Field(
        default="utf-8", description="utf-8-sig: utf-8 that may start with a byte order mark"
    )
    fields: dict[str, FieldRule] = Field(
        default_factory=dict, description="column of the record <- key of the file; none: the keys are the columns"
    )

    def keys(self) -> tuple[str, ...]:
        """Columns a record gets, as far as the format itself says."""
        return tuple(self.fields)


class Table(_Format):
    """Delimited columns, one row a line (or more lines, where quotes allow it)."""

    kind: Literal["table"]
    delimiter: str = Field(min_length=1, max_length=1)
    quoting: Literal["none", "double"] = Field(description="double: as RFC 4180; none: quotes are text")
    columns: tuple[str, ...] = Field(min_length=2, description="of every row, in order")
    header: bool = Field(description="the first line holds exactly these names")

    def keys(self) -> tuple[str, ...]:
        """Columns a record gets."""
        return tuple(self.fields) or self.columns


class Lines(_Format):
    """Parallel files: line i of each belongs together; ``part`` of a file names its column."""

    kind: Literal["lines"]


class Pattern(_Format):
    """One row a line, taken apart by a regular expression whose named groups are the keys."""

    kind: Literal["pattern"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        refuse([] if groups else ["the pattern has no named group"])
        return pattern

    def keys(self) -> tuple[str, ...]:
        """Columns a record gets."""
        return tuple(self.fields) or tuple(re.compile(self.pattern).groupindex)


class Json(_Format):
    """JSON; ``each`` goes down into lists, and what stands beside a list is part of every row of it."""

    kind: Literal["json"]
    layout: Literal["document", "lines"] = Field(description="one document a file, or one a line")
    compression: Literal["gzip"] | None = None
    each: tuple[str, ...] = ()
    entries_as: tuple[str, str] | None = Field(
        default=None, description="the document is an object: its keys and values get these two names"
    )


class Xml(_Format):
    """XML; a row is an element, its keys are the tags of its children."""

    kind: Literal["xml"]
    record: str = Field(pattern=r"^[A-Za-z]+(/[A-Za-z]+)*$", description="path of the element below the root")


class Reviews(_Format):
    """Blocks of <review>, each field as <tag>, its lines, </tag>, every tag on a line of its own; not XML."""

    kind: Literal["reviews"]


class Smart(_Format):
    """Records that start with ``.I <number>``; fields start with a line of a dot and a capital letter."""

    kind: Literal["smart"]


class SquadPages(_Format):
    """HTML pages of the SQuAD explorer: keys ``context``, ``question`` and ``id``."""

    kind: Literal["squad_pages"]


FileFormat = Annotated[Table | Lines | Pattern | Json | Xml | Reviews | Smart | SquadPages, Field(discriminator="kind")]
