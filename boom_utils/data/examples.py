"""Training examples as FlagEmbedding JSONL: the one check of a row, and strict reading and atomic writing of JSONL.

What a user brings in other shapes and files is read by `boom_utils.data.own`, with the same check. This module
tokenises nothing and applies no prompt template.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from boom_utils.artifacts import atomic_path
from boom_utils.errors import DataError, bullet_list

log = logging.getLogger(__name__)
Item = TypeVar("Item")

LONGEST_LINE = 16 * 2**20  # bytes; a longer line is no JSONL, but a JSON array on one line, or binary data
SHOWN = 10  # bad lines in an error, or in a summary
OnBadLine = Literal["error", "skip"]
Split = Literal["pretraining", "train", "evaluation", "held_out"]


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


# --- bad lines --------------------------------------------------------------------------------------------------------


class BrokenRuleError(Exception):
    """A row breaks a rule, at a column of its line (1-based) where that says something."""

    def __init__(self, rule: str, column: int | None = None) -> None:
        self.column = column
        super().__init__(rule)


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that breaks a rule: ``file:line:column`` and the rule."""

    where: str
    rule: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}"


def tried(where: str, make: Callable[..., Item], *given: Any) -> Item | BadLine:
    """What a function makes of a row, or the rule that the row breaks.

    Args:
        where: File and line.
        make: May raise `BrokenRuleError`.
        given: Its arguments.
    """
    try:
        return make(*given)
    except BrokenRuleError as broken:
        return BadLine(where if broken.column is None else f"{where}:{broken.column}", str(broken))


class BadLines:
    """Bad lines as they come: counted, the first ones kept, an error as soon as there are enough of them.

    Args:
        on_bad_line: ``error``, ``skip`` (which logs them), or None: only note them.
    """

    def __init__(self, on_bad_line: OnBadLine | None) -> None:
        self.number, self.first = 0, list[BadLine]()
        self._on_bad_line = on_bad_line

    def add(self, bad: BadLine) -> None:
        """Note one.

        Raises:
            DataError: It is the tenth, and bad lines are errors.
        """
        self.number += 1
        if len(self.first) < SHOWN:
            self.first.append(bad)
            if self._on_bad_line == "skip":
                log.warning("skipped %s", bad)
        if self.number == SHOWN:
            self.close()

    def close(self) -> None:
        """Look at what there was.

        Raises:
            DataError: There were bad lines, and they are errors.
        """
        if self.number and self._on_bad_line == "error":
            raise DataError(
                f"{self.number}{' or more' if self.number == SHOWN else ''} malformed row(s)",
                found=bullet_list(str(bad) for bad in self.first),
                fix='correct them, or leave them out and have them listed: on_bad_line "skip"',
            )


# --- the check of a row -----------------------------------------------------------------------------------------------


def check_row(row: Mapping[str, Any]) -> TrainingExample:
    """The example in a row of FlagEmbedding's keys; ``neg`` may be missing.

    Raises:
        BrokenRuleError: A key is missing, a value is of a wrong type, or a text is empty.
    """
    if missing := [key for key in ("query", "pos") if key not in row]:
        raise BrokenRuleError(f"missing key {', '.join(missing)}; found {', '.join(sorted(row)) or 'no key'}")
    query, pos = check_text(row["query"], "query"), _texts(row["pos"], "pos")
    if not pos:
        raise BrokenRuleError("pos is empty: at least one relevant text is needed")
    extras = {key: check_text(row[key], key) for key in ("prompt", "type") if row.get(key) not in (None, "")}
    return TrainingExample(query, pos, _texts(row.get("neg", []), "neg"), **extras)


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BrokenRuleError(f"{key} must be a list of strings, found {_kind(value)}")
    return tuple(check_text(text, f"{key}[{place}]") for place, text in enumerate(value))


def check_text(value: Any, key: str) -> str:
    """A value that must be a text with something in it.

    Raises:
        BrokenRuleError: It is none.
    """
    if not isinstance(value, str):
        raise BrokenRuleError(f"{key} must be a string, found {_kind(value)}")
    if not value.strip():
        raise BrokenRuleError(f"{key} is an empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BrokenRuleError(f"{key} holds a lone surrogate at character {error.start + 1}") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# --- JSONL ------------------------------------------------------------------------------------------------------------


def lines_of(handle: IO[bytes]) -> Iterator[bytes]:
    """Lines of an open file; of one that is too long no more is kept than it takes to see that.

    JSON may hold U+2028, so only the newline byte separates.
    """
    while line := handle.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            while (rest := handle.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
        yield line


def json_row(line: bytes, number: int) -> dict[str, Any]:
    """The JSON object on a line.

    Args:
        line: Its bytes.
        number: Of the line, from 1.

    Raises:
        BrokenRuleError: It holds anything else.
    """
    if len(line) > LONGEST_LINE:
        raise BrokenRuleError(f"longer than {LONGEST_LINE // 2**20} MiB: one JSON object a line is expected")
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
        raise BrokenRuleError("the file starts with a byte order mark: save it as UTF-8 without BOM", 1)
    try:
        value = json.loads(line.decode("utf-8").rstrip("\r\n"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BrokenRuleError("not UTF-8", error.start + 1) from None
    except json.JSONDecodeError as error:
        raise BrokenRuleError(f"not JSON: {error.msg}" if line.strip() else "empty line", error.colno) from None
    except RecursionError:
        raise BrokenRuleError("not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise BrokenRuleError(f"expected a JSON object, found {_kind(value)}", 1)
    return value


def _no_constant(name: str) -> None:
    raise BrokenRuleError(f"not JSON: {name} is not a JSON number")


def _rows(path: Path, make: Callable[[bytes, int], Item], on_bad_line: OnBadLine = "error") -> Iterator[Item]:
    bad = BadLines(on_bad_line)
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(lines_of(handle), start=1):
                if isinstance(found := tried(f"{path.name}:{number}", make, line, number), BadLine):
                    bad.add(found)
                else:
                    yield found
    except FileNotFoundError:
        raise DataError(f"there is no file {path.name}", where=path) from None
    bad.close()


def iter_examples(path: Path, on_bad_line: OnBadLine = "error") -> Iterator[TrainingExample]:
    """Read a training file of the kit in a stream, one line in memory at a time.

    Args:
        path: A ``.jsonl`` file with ``query``, ``pos`` and ``neg`` a line.
        on_bad_line: ``skip`` leaves bad lines out and logs the first ten.

    Yields:
        The examples in the file's order.

    Raises:
        DataError: Lines are malformed (``file:line:column`` and the rule, ten at most), or no example is left; when the
            stream ends, so nothing made from a stream is good before its end.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"query": "a question", "pos": ["its answer"], "neg": ["another text"]}])
    >>> [example.pos for example in iter_examples(Path("mine.jsonl"))]
    [('its answer',)]
    """
    good = 0
    for example in _rows(path, lambda line, number: check_row(json_row(line, number)), on_bad_line):
        good += 1
        yield example
    if not good:
        raise DataError(f"{path.name} has no training examples", where=path.name, expected="at least one line")


def read_examples(path: Path, on_bad_line: OnBadLine = "error") -> list[TrainingExample]:
    """Read a training file of the kit.

    Args:
        path: As for `iter_examples`.
        on_bad_line: As for `iter_examples`.

    Returns:
        The examples in the file's order.

    Raises:
        DataError: As `iter_examples`.

    >>> _ = write_jsonl(Path("mine.jsonl"), [{"query": "a question", "pos": ["its answer"], "neg": ["another text"]}])
    >>> read_examples(Path("mine.jsonl"))[0].pos
    ('its answer',)
    """
    return list(iter_examples(path, on_bad_line))


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
        DataError: Malformed lines, as ``file:line:column`` and the rule.

    >>> write_jsonl(Path("queries.jsonl"), [{"id": "q1", "text": "a question"}])
    1
    >>> read_jsonl(Path("queries.jsonl"))
    [{'id': 'q1', 'text': 'a question'}]
    """
    return list(_rows(path, json_row))


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
