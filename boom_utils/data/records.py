"""One row of a file as a record: which key is which column, the text cleaned, label and score checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from boom_utils.data.cleaning import Step, clean
from boom_utils.data.file_formats import Constant, FieldRule, FileFormat, FirstOf, Joined
from boom_utils.data.read_rules import Reading
from boom_utils.errors import nearest

HIGHEST_SCORE = 5.0
"""Graded similarity is given as 0 to 5."""
_SURROGATE = re.compile("[\ud800-\udfff]")
Record = dict[str, str]


class BrokenRuleError(Exception):
    """A row breaks a rule."""


def fields_of(values: Mapping[str, Any], form: FileFormat) -> Record:
    """Columns of a record from the keys of a row.

    Raises:
        BrokenRuleError: A key is missing, or its value is no text.
    """
    if not form.fields:
        return {name: _string(value, name) for name, value in values.items()}
    return {name: _field(values, rule) for name, rule in form.fields.items()}


def _field(values: Mapping[str, Any], rule: FieldRule) -> str:
    if isinstance(rule, Constant):
        return rule.constant
    if isinstance(rule, Joined):
        there = [key for key in rule.join if key in values or key not in rule.optional]
        return rule.by.join(_string(_value(values, key), key) for key in there)
    if isinstance(rule, FirstOf):
        given = (key for key in rule.first if _value(values, key) is not None)
        rule = next(given, rule.first[-1])
    return _string(_value(values, rule), rule)


def _value(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise BrokenRuleError(f"missing key '{key}'{nearest(key, values)}")
    return values[key]


def _string(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise BrokenRuleError(f"'{key}' is neither a text nor a number")


def text_of(value: str, name: str, steps: Sequence[Step]) -> str:
    """A value after cleaning.

    Raises:
        BrokenRuleError: Nothing is left, or it is not of the file's encoding.
    """
    if not value.isascii() and _SURROGATE.search(value):
        raise BrokenRuleError(f"{name} holds bytes that are not of the file's encoding, or half a character")
    text = clean(value, steps)
    if not text or text.isspace():
        raise BrokenRuleError(f"{name} is empty")
    return text


def check_values(record: Record, reading: Reading) -> None:
    """Translate label and score of a record, in place.

    Raises:
        BrokenRuleError: The label is unknown, or the score is no number of the range.
    """
    labels = reading.label_names
    if labels:
        if record["label"] not in labels:
            raise BrokenRuleError(f"unknown label '{record['label']}'{nearest(record['label'], labels)}"[:200])
        record["label"] = labels[record["label"]]
    if "score" in record:
        record["score"] = repr(_score(record["score"], reading))


def _score(text: str, reading: Reading) -> float:
    try:
        score = float(text)
    except ValueError:
        raise BrokenRuleError(f"the score is no number: '{text[:50]}'") from None
    if not math.isfinite(score):
        raise BrokenRuleError(f"the score is {score}")
    if reading.score is None:
        if score < 0:
            raise BrokenRuleError(f"the score {score} is negative")
        return score
    lowest, highest = reading.score.lowest, reading.score.highest
    if not lowest <= score <= highest:
        raise BrokenRuleError(f"the score {score} is not between {lowest} and {highest}")
    return (score - lowest) * HIGHEST_SCORE / (highest - lowest)
