"""Raw records as rules take them: columns checked, lists by column, records left out and counted.

What is checked here is what a reader has promised (`boom_utils.data.readers.Raw`), so that a rule can rely on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from boom_utils.data.docs_pairs import normalise
from boom_utils.data.examples import TrainingExample
from boom_utils.errors import DataError, bullet_list

if TYPE_CHECKING:
    from boom_utils.data.readers import Raw, Shape

COLUMNS: dict[Shape, tuple[str, ...]] = {
    "pairs": ("query", "passage"),
    "candidates": ("query", "passage", "label"),
    "labelled": ("text", "label"),
    "graded": ("sentence1", "sentence2", "score"),
    "judged_pairs": ("sentence1", "sentence2", "label"),
    "nli": ("sentence1", "sentence2", "label"),
}
"""Columns of every part of a shape; texts first."""
JUDGED_COLUMNS = {"corpus": ("id", "text"), "queries": ("id", "text"), "qrels": ("query", "document", "score")}
"""Columns of the parts of the shape ``judged``."""
LABELS: dict[str, tuple[str, ...]] = {
    "candidates": ("0", "1"),
    "judged_pairs": ("0", "1"),
    "nli": ("entailment", "neutral", "contradiction"),
}
GRADES = 5
"""Highest score of a graded pair; the lowest is 0."""
NOT_TEXT = ("label", "score")


def part_of(raw: Raw, name: str, where: str) -> pa.Table:
    """One part of a dataset, checked.

    Args:
        raw: The dataset.
        name: Name of the part.
        where: The dataset, for the message.

    Returns:
        The part, with the shape's columns only.

    Raises:
        DataError: No such part, columns missing, values missing, labels or scores that are none; all together.
    """
    if name not in raw.parts:
        raise DataError(f"there is no part '{name}'", where=where, found=", ".join(raw.parts) or "no part at all")
    table = raw.parts[name]
    columns = JUDGED_COLUMNS[name] if raw.shape == "judged" else COLUMNS[raw.shape]
    if missing := [column for column in columns if column not in table.column_names]:
        found = ", ".join(table.column_names)
        raise DataError(f"no column {', '.join(missing)}", where=f"{where}, {name}", expected=raw.shape, found=found)
    problems = [f"{column}: {count} value(s) missing" for column in columns if (count := table[column].null_count)]
    if "label" in columns and (known := LABELS.get(raw.shape)):
        unknown = sorted(set(pc.unique(table["label"]).to_pylist()) - {*known, None})
        problems += [f"label: {label!r} is none of {', '.join(known)}" for label in unknown]
    if raw.shape == "graded":
        scores = table["score"].to_numpy(zero_copy_only=False).astype(float)
        wrong = int((~((scores >= 0) & (scores <= GRADES))).sum())
        problems += [f"score: {wrong} value(s) outside 0 to {GRADES}"] if wrong else []
    if problems:
        raise DataError("records are not as they were promised", where=f"{where}, {name}", found=bullet_list(problems))
    return table.select(columns)


def evaluated_part(raw: Raw, where: str) -> pa.Table:
    """What evaluation uses of a dataset: ``test`` where there is one, else ``dev``.

    Raises:
        DataError: Neither is there, or it is not as promised.
    """
    return part_of(raw, "test" if "test" in raw.parts or "dev" not in raw.parts else "dev", where)


def columns_of(table: pa.Table) -> list[list[Any]]:
    """The columns as lists, in the table's order."""
    return [column.to_pylist() for column in table.columns]


def text_columns(table: pa.Table) -> list[list[str]]:
    """The columns that hold texts, as lists."""
    return columns_of(table.drop_columns([name for name in NOT_TEXT if name in table.column_names]))


def without_texts(table: pa.Table, unwanted: Collection[str], reason: str, dropped: Counter[str]) -> pa.Table:
    """The records of which no text is blank, and none is unwanted; the others are counted.

    Args:
        table: Records.
        unwanted: Normalised texts.
        reason: What to count records under that hold one.
        dropped: Counts.
    """
    texts = [[normalise(text) for text in column] for column in text_columns(table)]
    blank = np.array([[not text for text in column] for column in texts]).any(axis=0)
    held = np.array([[text in unwanted for text in column] for column in texts]).any(axis=0) & ~blank
    dropped["a text is empty"] += int(blank.sum())
    dropped[reason] += int(held.sum())
    return table.filter(pa.array(~(blank | held)))


def as_examples(table: pa.Table) -> list[TrainingExample]:
    """Every record as a row of its texts alone, to look for overlap in: the first one searches, the second answers."""
    first, *others = text_columns(table)
    return [TrainingExample(query, tuple(rest)) for query, *rest in zip(first, *others, strict=True)]
