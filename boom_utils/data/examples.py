"""Training examples as FlagEmbedding JSONL, read strictly: no line is ever dropped in silence.

Also the JSONL reader and atomic writer of the whole data side. It does not tokenise and applies no prompt template.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from boom_utils.artifacts import atomic_path
from boom_utils.errors import DataError, bullet_list

log = logging.getLogger(__name__)
Item = TypeVar("Item")

LONGEST_LINE = 16 * 2**20
"""Bytes; a longer line is a file that is not JSONL (a JSON array on one line, binary data)."""
_SHOWN = 10
_BOM = b"\xef\xbb\xbf"
Split = Literal["pretraining", "train", "evaluation", "held_out"]
_SENTENCE_TRANSFORMERS_NEGATIVE = re.compile(r"negative(_\d+)?")


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

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    prompt: str | None = None
    type: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The JSON object FlagEmbedding reads."""
        row: dict[str, Any] = {"query": self.query, "pos": list(self.pos), "neg": list(self.neg)}
        extras = {"prompt": self.prompt, "type": self.type}
        return row | {key: value for key, value in extras.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label: a raise message and its class, a documentation and its place."""

    text: str
    label: str
    split: Split

    @property
    def texts(self) -> tuple[str, ...]:
        """The text."""
        return (self.text,)


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


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that breaks a rule: ``file:line:column`` and the rule."""

    where: str
    rule: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}"


@dataclass(frozen=True)
class ExampleFile:
    """Every good example of a file and every bad line of it."""

    examples: list[TrainingExample]
    bad_lines: list[BadLine]


class _BrokenRuleError(Exception):
    """A rule is broken at a column (1-based; None where a column says nothing)."""

    def __init__(self, rule: str, column: int | None = None) -> None:
        self.column = column
        super().__init__(rule)


def read_examples(path: Path, on_bad_line: Literal["error", "skip"] = "error") -> list[TrainingExample]:
    """Read a training file, of FlagEmbedding's keys or of sentence-transformers' columns.

    Args:
        path: A ``.jsonl`` file with ``query``/``pos``/``neg`` or ``anchor``/``positive``/``negative`` a line.
        on_bad_line: ``skip`` leaves bad lines out and logs each; use `check_examples` to get them as values.

    Returns:
        The examples in the file's order.

    Raises:
        DataError: A line is malformed (``file:line:column`` and the rule, for the first ten), or no example is left.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"query": "a question", "pos": ["its answer"], "neg": ["another text"]}])
    >>> read_examples(Path("mine.jsonl"))[0].pos
    ('its answer',)
    """
    return list(iter_examples(path, on_bad_line))


def iter_examples(path: Path, on_bad_line: Literal["error", "skip"] = "error") -> Iterator[TrainingExample]:
    """Read a training file in a stream, one line in memory at a time; arguments and order as `read_examples`.

    After a bad line nothing more is yielded: the rest of the file is only checked, so that the error lists them all.

    Args:
        path: The file.
        on_bad_line: ``error`` or ``skip``.

    Yields:
        The good examples.

    Raises:
        DataError: As `read_examples`; when the stream ends, so nothing made from a stream is good before its end.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"anchor": "a question", "positive": "its answer"}])
    >>> [example.query for example in iter_examples(Path("mine.jsonl"))]
    ['a question']
    """
    good = count = 0
    bad_lines: list[BadLine] = []
    for found in _examples_and_bad_lines(path):
        if isinstance(found, TrainingExample):
            good += 1
            if not bad_lines:
                yield found
        elif on_bad_line == "skip":
            log.warning("skipped %s", found)
        else:
            count += 1
            bad_lines = [*bad_lines, found][:_SHOWN]
    if bad_lines:
        raise DataError(
            f"{count} malformed line(s) in {path.name}",
            found=bullet_list(str(bad) for bad in bad_lines),
            fix='correct the lines, or read with on_bad_line="skip" to leave them out and have them listed',
        )
    if not good:
        raise DataError(f"{path.name} has no training examples", where=path.name, expected="at least one line")


def check_examples(path: Path) -> ExampleFile:
    """Read a training file completely and return good examples and bad lines side by side.

    Args:
        path: As for `read_examples`.

    Returns:
        All examples that can be read, and every line that cannot.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"anchor": "question", "positive": "answer"}, {"anchor": "no answer"}])
    >>> found = check_examples(Path("mine.jsonl"))
    >>> len(found.examples), [bad.where for bad in found.bad_lines]
    (1, ['mine.jsonl:2'])
    """
    found = list(_examples_and_bad_lines(path))
    good = [one for one in found if isinstance(one, TrainingExample)]
    return ExampleFile(good, [one for one in found if isinstance(one, BadLine)])


def _examples_and_bad_lines(path: Path) -> Iterator[TrainingExample | BadLine]:
    for number, line in _lines(path):
        yield example_of_line(line, path.name, number)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items in their order; the last one may be shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


Reshape = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def example_of_line(line: bytes, name: str, number: int, reshape: Reshape | None = None) -> TrainingExample | BadLine:
    """The example on one line of a JSONL file, or which rule the line breaks.

    Args:
        line: Its bytes.
        name: Of the file, for the message.
        number: Of the line, from 1.
        reshape: Gives an object of other keys those of FlagEmbedding; a `KeyError` of it names a key that is missing.
    """
    try:
        row = _as_object(line, first=number == 1)
    except _BrokenRuleError as broken:
        return _bad(broken, name, number)
    return example_of_row(row, name, number, reshape)


def example_of_row(
    row: Mapping[str, Any], name: str, number: int, reshape: Reshape | None = None
) -> TrainingExample | BadLine:
    """The example in one row of any file, or which rule the row breaks; arguments as for `example_of_line`."""
    try:
        return _as_example(row if reshape is None else reshape(row))
    except KeyError as missing:
        rule = f"missing key {missing.args[0]}; found {', '.join(sorted(row)) or 'no key'}"
        return BadLine(f"{name}:{number}", rule)
    except _BrokenRuleError as broken:
        return _bad(broken, name, number)


def _bad(broken: _BrokenRuleError, name: str, number: int) -> BadLine:
    column = "" if broken.column is None else f":{broken.column}"
    return BadLine(f"{name}:{number}{column}", str(broken))


def write_examples(path: Path, examples: Iterable[TrainingExample]) -> int:
    """Write a training file atomically; returns the number of rows."""
    return write_jsonl(path, (example.as_row() for example in examples))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Args:
        path: The file, UTF-8.

    Returns:
        The objects, in order.

    Raises:
        DataError: The first malformed line, as ``file:line:column`` and the rule.

    >>> write_jsonl(Path("queries.jsonl"), [{"id": "q1", "text": "a question"}])
    1
    >>> read_jsonl(Path("queries.jsonl"))
    [{'id': 'q1', 'text': 'a question'}]
    """
    rows = []
    for number, line in _lines(path):
        try:
            rows.append(_as_object(line, first=number == 1))
        except _BrokenRuleError as broken:
            where = f"{path.name}:{number}" + ("" if broken.column is None else f":{broken.column}")
            raise DataError(f"malformed line in {path.name}", where=where, found=str(broken)) from None
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    r"""Write one JSON object a line (UTF-8, ``\n``, keys in the given order), atomically; returns the number."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
            count += 1
    return count


def count_rows(path: Path) -> int:
    """Number of rows of a JSONL file that the kit wrote (every line ends with a newline)."""
    with path.open("rb") as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(2**20), b""))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line; JSON may hold U+2028, so only the newline byte separates."""
    try:
        with path.open("rb") as handle:
            yield from enumerate(handle, start=1)
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path) from None


def _as_object(line: bytes, *, first: bool) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise _BrokenRuleError(f"longer than {LONGEST_LINE // 2**20} MiB: one JSON object a line is expected")
    if first and line.startswith(_BOM):
        raise _BrokenRuleError("the file starts with a byte order mark: save it as UTF-8 without BOM", 1)
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _BrokenRuleError("not UTF-8", error.start + 1) from None
    except json.JSONDecodeError as error:
        raise _BrokenRuleError(f"not JSON: {error.msg}" if line.strip() else "empty line", error.colno) from None
    except RecursionError:
        raise _BrokenRuleError("not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise _BrokenRuleError(f"expected a JSON object, found {_kind(value)}", 1)
    return value


def _no_constant(name: str) -> None:
    raise _BrokenRuleError(f"not JSON: {name} is not a JSON number")


def _as_example(row: Mapping[str, Any]) -> TrainingExample:
    if "query" not in row and "anchor" in row:
        row = _from_sentence_transformers(row)
    missing = [key for key in ("query", "pos", "neg") if key not in row]
    if missing:
        raise _BrokenRuleError(f"missing key {', '.join(missing)}; found {', '.join(sorted(row)) or 'no key'}")
    pos = _texts(row["pos"], "pos")
    if not pos:
        raise _BrokenRuleError("pos is empty: at least one relevant text is needed")
    query = _text(row["query"], "query")
    return TrainingExample(query, pos, _texts(row["neg"], "neg"), _optional(row, "prompt"), _optional(row, "type"))


def _from_sentence_transformers(row: Mapping[str, Any]) -> dict[str, Any]:
    if "positive" not in row:
        raise _BrokenRuleError("missing key positive beside anchor")
    names = [key for key in row if _SENTENCE_TRANSFORMERS_NEGATIVE.fullmatch(key)]
    negatives = [text for name in names for text in _as_list(row[name])]
    return {**row, "query": row["anchor"], "pos": _as_list(row["positive"]), "neg": negatives}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _BrokenRuleError(f"{key} must be a list of strings, found {_kind(value)}")
    return tuple(_text(text, f"{key}[{place}]") for place, text in enumerate(value))


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _BrokenRuleError(f"{key} must be a string, found {_kind(value)}")
    if not value.strip():
        raise _BrokenRuleError(f"{key} is an empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BrokenRuleError(f"{key} holds a lone surrogate at character {error.start + 1}") from None
    return value


def _optional(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    return _text(value, key)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
