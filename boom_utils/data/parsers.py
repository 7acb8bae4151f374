"""From the bytes of one file (or of parallel files) to rows of keys and values, strictly: what does not parse is named.

One parser a format of `boom_utils.data.file_formats`. A parser knows no dataset: which key is which column, and what
becomes of a row, is `boom_utils.data.readers`' matter.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from boom_utils.data.file_formats import FileFormat, Json, Lines, Pattern, Reviews, Smart, SquadPages, Table, Xml

Kind = TypeVar("Kind", bound=FileFormat)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Args:
        place: Where it is, as it stands after the file's name: ``:12`` or ``, record 3``.
        values: Key -> value. Bytes that are not of the file's encoding come as lone surrogates.
        rule: What is wrong with the row, where it is malformed.
    """

    place: str
    values: Mapping[str, Any]
    rule: str | None = None


class BrokenFileError(Exception):
    """A file as a whole cannot be read: which rule it breaks, and where."""

    def __init__(self, rule: str, place: str = "") -> None:
        self.rule = rule
        self.place = place
        super().__init__(rule)


def parse(contents: Mapping[str, bytes], form: FileFormat) -> Iterator[Row]:
    """Rows of one file, or of parallel files.

    Args:
        contents: Column -> bytes of its file for parallel files, else the one file under any name.
        form: The format.

    Raises:
        BrokenFileError: The file as a whole is damaged or is not of this format.
    """
    if isinstance(form, Lines):
        return _parallel({name: _decode(content, form.encoding) for name, content in contents.items()})
    (content,) = contents.values()
    if isinstance(form, Json) and form.compression == "gzip":
        content = _unzip(content)
    return _PARSERS[type(form)](_decode(content, form.encoding), form)


def _decode(content: bytes, encoding: str) -> str:
    """Text in which a byte that is not of the encoding is a lone surrogate, which its row is then refused for."""
    text = content.decode(encoding, errors="surrogateescape")
    if text.startswith("\ufeff"):
        raise BrokenFileError("the file starts with a byte order mark; encoding utf-8-sig would allow it", ":1")
    return text


def _unzip(content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise BrokenFileError(f"not a whole gzip file: {error}") from None


def _lines(text: str) -> list[str]:
    """Lines without their ends; only LF (or CRLF) ends one, whatever other separators a text may hold."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def _parallel(texts: Mapping[str, str]) -> Iterator[Row]:
    columns = {name: _lines(text) for name, text in texts.items()}
    counts = {name: len(lines) for name, lines in columns.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BrokenFileError(f"parallel files of different lengths: {shown} lines", f":{min(counts.values()) + 1}")
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        yield Row(f":{number}", dict(zip(columns, values, strict=True)))


def _table(text: str, form: Table) -> Iterator[Row]:
    rows = _quoted(text, form.delimiter) if form.quoting == "double" else _unquoted(text, form.delimiter)
    if form.header:
        place, found = next(rows, (":1", "the file is empty"))
        if found != list(form.columns):
            shown = found if isinstance(found, str) else f"found {', '.join(found)}"
            raise BrokenFileError(f"the header is not {', '.join(form.columns)}: {shown}"[:300], place)
    for place, cells in rows:
        if isinstance(cells, str):
            yield Row(place, {}, cells)
        elif len(cells) != len(form.columns):
            yield Row(place, {}, f"{len(cells)} columns instead of {len(form.columns)}")
        else:
            yield Row(place, dict(zip(form.columns, cells, strict=True)))


def _unquoted(text: str, delimiter: str) -> Iterator[tuple[str, list[str] | str]]:
    for number, line in enumerate(_lines(text), start=1):
        yield f":{number}", line.split(delimiter)


def _quoted(text: str, delimiter: str) -> Iterator[tuple[str, list[str] | str]]:
    """Cells of every row, or what is wrong with it; a row begins on the line after the one before it ended."""
    # Only LF ends a line here too.
    lines = (found.group() for found in re.finditer(r"[^\n]*\n|[^\n]+", text))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        place = f":{reader.line_num + 1}"
        try:
            yield place, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, f"not CSV: {error}"


def _pattern(text: str, form: Pattern) -> Iterator[Row]:
    pattern = re.compile(form.pattern)
    for number, line in enumerate(_lines(text), start=1):
        found = pattern.fullmatch(line)
        yield (
            Row(f":{number}", found.groupdict())
            if found
            else Row(f":{number}", {}, "not of the form the manifest states")
        )


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(text: str, form: Json) -> Iterator[Row]:
    if form.layout == "lines":
        for number, line in enumerate(_lines(text), start=1):
            try:
                yield from _rows_of(_load(line), form, f":{number}")
            except BrokenFileError as error:
                yield Row(f":{number}", {}, error.rule)
        return
    for number, row in enumerate(_rows_of(_load(text), form, ""), start=1):
        yield Row(f", record {number}", row.values, row.rule)


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BrokenFileError(f"not JSON: {error.msg}" if text.strip() else "empty line", f":{error.lineno}") from None
    except RecursionError:
        raise BrokenFileError("not JSON: nested too deeply") from None


def _no_constant(name: str) -> None:
    raise BrokenFileError(f"not JSON: {name} is not a JSON number")


def _rows_of(value: Any, form: Json, place: str) -> Iterator[Row]:
    if form.entries_as is not None:
        if not isinstance(value, dict):
            raise BrokenFileError("expected a JSON object")
        names = form.entries_as
        value = [dict(zip(names, entry, strict=True)) for entry in value.items()]
    for one in value if isinstance(value, list) else [value]:
        yield from _below(one, form.each, {}, place)


def _below(value: Any, path: tuple[str, ...], above: Mapping[str, Any], place: str) -> Iterator[Row]:
    """Rows below one value: its own keys, those of what encloses it, and for a list the positions as keys."""
    if isinstance(value, list):
        value = {str(number): one for number, one in enumerate(value)}
    if not isinstance(value, dict):
        yield Row(place, {}, "expected a JSON object or list")
    elif not path:
        yield Row(place, {**above, **value})
    elif not isinstance(value.get(path[0]), list):
        yield Row(place, {}, f"'{path[0]}' is not a list, or is missing")
    else:
        beside = {**above, **{key: one for key, one in value.items() if key != path[0]}}
        for one in value[path[0]]:
            yield from _below(one, path[1:], beside, place)


# --- formats of one data set ------------------------------------------------------------------------------------------


def _xml(text: str, form: Xml) -> Iterator[Row]:
    try:
        root = SafeTree.fromstring(text.encode("utf-8", errors="surrogateescape"))
    except ParseError as error:
        raise BrokenFileError(f"not XML: {error}", f":{error.position[0]}") from None
    except DefusedXmlException as error:
        raise BrokenFileError(f"refused: the XML declares entities or refers to other files ({error})") from None
    for number, element in enumerate(root.findall(form.record), start=1):
        yield Row(f", record {number}", {child.tag: "".join(child.itertext()) for child in element})


_TAG = re.compile(r"<(/?)([a-z_]+)>")


def _reviews(text: str, form: Reviews) -> Iterator[Row]:
    values: dict[str, Any] | None = None
    began, tag = 0, ""
    inside: list[str] = []
    for number, line in enumerate(_lines(text), start=1):
        found = _TAG.fullmatch(line)
        closing, name = (found[1] == "/", found[2]) if found else (False, "")
        if tag:
            if closing and name == tag:
                assert values is not None
                values[tag], tag = "\n".join(inside).strip(), ""
            elif found and name == "review":
                yield Row(f":{began}", {}, f"<{tag}> is not closed")
                values, tag, began = (None, "", number) if closing else ({}, "", number)
            else:
                inside.append(line)
        elif found and name == "review":
            if closing == (values is None):
                yield Row(f":{number}", {}, "a <review> begins or ends inside of or without another")
            elif closing:
                assert values is not None
                yield Row(f":{began}", values)
            values, began = (None, number) if closing else ({}, number)
        elif found and not closing and values is not None:
            tag, inside = name, []
        elif line.strip() and name != "data":
            yield Row(f":{number}", {}, "text outside of a field")
    if values is not None:
        raise BrokenFileError("the last <review> is not closed: the file is cut off", f":{began}")


def _smart(text: str, form: Smart) -> Iterator[Row]:
    values: dict[str, list[str]] = {}
    began, field = 0, ""
    for number, line in enumerate(_lines(text), start=1):
        if line.startswith(".I "):
            if began:
                yield _smart_row(began, values)
            values, began, field = {"I": [line[3:].strip()]}, number, "I"
        elif not began:
            raise BrokenFileError("a record starts with .I and its number", f":{number}")
        elif re.fullmatch(r"\.[A-Z]\s*", line):
            field = line[1]
            values.setdefault(field, [])
        elif field == "I":
            yield Row(f":{number}", {}, "text outside of a field")
        else:
            values[field].append(line)
    if began:
        yield _smart_row(began, values)


def _smart_row(began: int, values: Mapping[str, list[str]]) -> Row:
    return Row(f":{began}", {name: "\n".join(lines) for name, lines in values.items()})


class _Page(HTMLParser):
    """Collects paragraphs and questions of one page of the SQuAD explorer."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[Row] = []
        self.open: list[str] = []
        """Elements that are read at the moment: pre, strong."""
        self.context = self.question = self.number = ""
        self.whole = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        classes = (facts.get("class") or "").split()
        if "para-wrap" in classes:
            self.context = ""
        elif "qa-wrap" in classes:
            self.number = facts.get("data-id") or ""
        elif tag == "pre" or (tag == "strong" and "question" in classes):
            self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["pre"]:
            self.context += data
        elif self.open:
            self.question += data

    def handle_endtag(self, tag: str) -> None:
        self.whole = self.whole or tag == "html"
        if self.open[-1:] == [tag]:
            self.open.pop()
            if tag == "strong":
                row = {"context": self.context, "question": self.question, "id": self.number}
                self.rows.append(Row(f", record {len(self.rows) + 1}", row))
                self.question = ""


def _squad_pages(text: str, form: SquadPages) -> Iterator[Row]:
    page = _Page()
    page.feed(text)
    page.close()
    if not page.whole:
        raise BrokenFileError("the page does not end with </html>: it is cut off")
    if not page.rows:
        raise BrokenFileError('the page has no <strong class="question">: it is no page of the SQuAD explorer')
    return iter(page.rows)


_PARSERS: dict[type, Callable[[str, Any], Iterator[Row]]] = {
    Table: _table,
    Pattern: _pattern,
    Json: _json,
    Xml: _xml,
    Reviews: _reviews,
    Smart: _smart,
    SquadPages: _squad_pages,
}
