"""Tables of raw records as rules take them: the right part, lists by column, records left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

from boom_utils.data.examples import TrainingExample, normalise
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError

NOT_TEXT = ("label", "score")


def part_of(raw: Raw, name: str, dataset: str) -> pa.Table:
    """One part of a dataset.

    Raises:
        DataError: There is no such part.
    """
    if name not in raw.parts:
        found = ", ".join(raw.parts) or "no part at all"
        raise DataError(f"dataset '{dataset}' has no part '{name}'", expected=name, found=found)
    return raw.parts[name]


def evaluated_part(raw: Raw, dataset: str) -> pa.Table:
    """What evaluation uses of a dataset: ``test`` where there is one, else ``dev``.

    Raises:
        DataError: Neither is there.
    """
    return part_of(raw, "test" if "test" in raw.parts or "dev" not in raw.parts else "dev", dataset)


def columns_of(table: pa.Table) -> list[list[Any]]:
    """The columns as lists, in the table's order."""
    return [column.to_pylist() for column in table.columns]


def text_columns(table: pa.Table) -> list[list[str]]:
    """The columns that hold texts, as lists."""
    return columns_of(table.drop_columns([name for name in NOT_TEXT if name in table.column_names]))


def without_texts(table: pa.Table, unwanted: Collection[str], reason: str, dropped: Counter[str]) -> pa.Table:
    """The records that hold no unwanted text.

    Args:
        table: Records.
        unwanted: Normalised texts.
        reason: What to count the other records under.
        dropped: Counts.
    """
    if not unwanted:
        return table
    held = np.zeros(table.num_rows, dtype=bool)
    for column in text_columns(table):
        held |= np.array([normalise(text) in unwanted for text in column], dtype=bool)
    dropped[reason] += int(held.sum())
    return table.filter(pa.array(~held))


def as_examples(table: pa.Table) -> list[TrainingExample]:
    """Every record as a row of its texts alone, to look for overlap in: the first one searches, the second answers."""
    first, *others = text_columns(table)
    return [TrainingExample(query, tuple(rest)) for query, *rest in zip(first, *others, strict=True)]
