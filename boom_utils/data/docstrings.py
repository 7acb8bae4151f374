"""Docstrings as plain text: summary, description and parameters of numpydoc, Google and Sphinx style.

Markup is reduced to the words a reader sees; directives, doctests, code blocks and citations are left out. Nothing
is imported or run: the input is a string.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass

# fmt: off
NUMPY_SECTIONS = frozenset((
    "parameters", "other parameters", "returns", "yields", "receives", "raises", "warns", "warnings", "see also",
    "notes", "note", "references", "examples", "example", "attributes", "methods", "explanation", "usage",
    "keyword arguments", "call signatures", "background", "caveats", "input", "output", "options", "return value",
    "algorithm", "description", "related", "mathematical properties",
))
# fmt: on
GOOGLE_SECTION = re.compile(
    r"(Args?|Arguments|Params|Parameters|Keyword Args|Keyword Arguments|Kwargs|Returns?|Yields?|Raises|Examples?|"
    r"Example usage|Usage|Notes?|Attributes|References|See also|See Also|Warnings?|Todo|Tips?)::?\s*$"
)
PARAMETER_SECTIONS = frozenset({"args", "arg", "arguments", "params", "parameters", "other parameters"})

_RULER = re.compile(r"\s*([-=~^])\1{2,}\s*$")
_NUMPY_ITEM = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)(?:\s*:.*)?$")
_GOOGLE_ITEM = re.compile(r"[`*\\]*(\w+)`?\s*(?:\(.*?\))?\s*:(?:\s+(.*))?$")
_SPHINX_ITEM = re.compile(r":(?:param|parameter|arg)\s+(?:[^:]*?\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_SPHINX_FIELD = re.compile(r":(?:param|parameter|arg|type|returns?|rtype|raises?|keyword|key|kwarg|yields?)\b[^`]*?:")
_DIRECTIVE = re.compile(r"\.\.(\s|$)")
_FENCE = re.compile(r"(```|~~~)")
_BULLET = re.compile(r"[-*•]\s|\d+[.)]\s|\+[-=]|[|]")
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r":[\w:.+-]+:`!?~?([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :func:`text <target>`
    (re.compile(r":[\w:.+-]+:`!?~(?:[\w.]*\.)?([^`]*)`"), r"\1"),  # :class:`~module.Name`
    (re.compile(r":[\w:.+-]+:`!?\.?([^`]*)`"), r"\1"),  # :class:`Name`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <url>`_
    (re.compile(r"\[`~?(?:\w+\.)*([\w.]+)`\](?:\([^)]*\))?"), r"\1"),  # [`~module.Name`]
    (re.compile(r"\[([^\]\[]{2,80})\]\([^)\s]*[/.#][^)\s]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\s*\[[\w*#-]+\]_"), ""),  # [1]_
    (re.compile(r"`+(?:_{1,2}(?!\w))?"), ""),
    (re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*\n]+?)(?<=\S)\*{1,2}(?![\w*])"), r"\1"),  # *emphasis*
    (re.compile(r"\|(\w[\w ]*)\|"), r"\1"),  # |substitution|
    (re.compile(r"</?(?:Tip|Added|Deprecated|b|i|code|p|br|pre|a)\b[^>]*>"), " "),
    (re.compile(r"\$([^$]{1,60})\$"), r"\1"),
    (re.compile(r"::(?=\s|$)"), ":"),
    (re.compile(r"\\(?=[*_|`\s])"), ""),
    (re.compile(r"(?:Read more|See|For more \w+,? see)[^.]{0,20} User Guide( for [^.]{0,60})?\."), ""),
    (re.compile(r"\(?\bhttps?://[^\s)]+\)?"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=[a-z])- (?!and |or |to )(?=[a-z])"), "-"),  # a word wrapped at its hyphen
    (re.compile(r"\s+(?=[.,;:)](?:\s|$))"), ""),
)
_SENTENCE_END = re.compile(r"(?<![\s.(]e\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)[.!?](?=\s+[A-Z\"'(\[])")
_RUBBLE = re.compile(r"%\(\w+\)s|\\[a-zA-Z]{2,}|>>>|https?://|^\W*$|\{\{|@\w+@|:\w+:`|\bTODO\b|\bFIXME\b|&\w+;")
_NO_LETTER = re.compile(r"[^A-Za-z ]+")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A documented parameter and what is said about it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Docstring:
    """The parts of a docstring that become training text; empty strings where a part is missing.

    Args:
        summary: First sentence.
        description: What follows it, up to the first section.
        parameters: Documented parameters with a text, in order.
    """

    summary: str
    description: str
    parameters: tuple[Parameter, ...]


def parse_docstring(raw: str) -> Docstring:
    """Split a docstring as it stands in the source into summary, description and parameters.

    Args:
        raw: The docstring with its indentation; any of the three styles.

    Returns:
        Plain text without markup; parts that are markup only come out empty.
    """
    lines = inspect.cleandoc(raw).splitlines()
    sections = _sections(lines)
    body = _prose(sections[0][1])
    summary, description = split_summary(body)
    found = [item for title, content in sections for item in _parameters(title, content)]
    items = [Parameter(name, text) for name, text in ((n, _first_paragraph(t)) for n, t in found) if text]
    return Docstring(summary, description, tuple({item.name: item for item in reversed(items)}.values())[::-1])


def clean_text(text: str) -> str:
    """Reduce reStructuredText and Markdown inline markup to the words a reader sees; white space is collapsed."""
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text.strip()


def is_readable(text: str, fewest: int, most: int) -> bool:
    """Whether a text has between ``fewest`` and ``most`` words, no rubble of markup, and is mostly ASCII letters."""
    if not fewest <= len(text.split()) <= most or _RUBBLE.search(text):
        return False
    return len(_NO_LETTER.sub("", text)) >= 0.7 * len(text)


def truncate_words(text: str, most: int) -> str:
    """Cut a text to ``most`` words, at the end of a sentence when that keeps at least half of them."""
    words = text.split(" ")
    if len(words) <= most:
        return text
    cut = " ".join(words[:most])
    ends = [match.end() for match in _SENTENCE_END.finditer(cut + " A")]
    return cut[: ends[-1]] if ends and ends[-1] * 2 >= len(cut) else cut


def split_summary(text: str) -> tuple[str, str]:
    """First sentence of a text (at most its first paragraph) and everything after it.

    >>> split_summary("Return the mean. The axis is optional.")
    ('Return the mean.', 'The axis is optional.')
    """
    first, _, rest = text.partition("\n")
    end = _SENTENCE_END.search(first)
    if end:
        first, rest = first[: end.end()], first[end.end() :] + "\n" + rest
    return first.strip(), " ".join(rest.split())


def _sections(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Titles (lower case) and lines of the sections; the first one, without title, is the text before them."""
    sections: list[tuple[str, list[str]]] = [("", [])]
    skip = False
    for number, line in enumerate(lines):
        if skip:
            skip = False
            continue
        following = lines[number + 1] if number + 1 < len(lines) else ""
        title = _title(line, following)
        if title is None:
            sections[-1][1].append(line)
        else:
            skip = bool(_RULER.match(following))
            sections.append((title, []))
    return sections


def _title(line: str, following: str) -> str | None:
    """The section a line opens, None when it opens none; a heading of any name ends the description."""
    name = line.strip()
    if _RULER.match(following) and name and not _RULER.match(line) and len(name.split()) <= 5:
        return name.rstrip(":").lower()
    if line[:1].strip() and (name.rstrip(":").lower() in NUMPY_SECTIONS and name[0].isupper() and len(name) < 24):
        return name.rstrip(":").lower() if name.endswith(":") else None
    if line[:1].strip() and GOOGLE_SECTION.match(name):
        return name.rstrip(": ").lower()
    return None


def _parameters(title: str, lines: list[str]) -> Iterable[tuple[str, list[str]]]:
    """Names and description lines of the parameters in one section; Sphinx fields may stand anywhere."""
    if title in PARAMETER_SECTIONS:
        indent = min((_indent(line) for line in lines if line.strip()), default=0)
        yield from _items([line[indent:] for line in lines])
    elif not title or title.startswith("keyword"):
        yield from _sphinx_items(lines)


def _items(lines: list[str]) -> list[tuple[str, list[str]]]:
    items: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines):
        following = next((other for other in lines[number + 1 :] if other.strip()), "")
        if not line.strip() or _indent(line):
            if items:
                items[-1][1].append(line)
        elif found := _item_start(line, following):
            items.append(found)
        else:
            items.append(("", [line]))
    return [(name, text) for name, text in items if name and name not in ("args", "kwargs")]


def _item_start(line: str, following: str) -> tuple[str, list[str]] | None:
    google = _GOOGLE_ITEM.match(line)
    numpy = _NUMPY_ITEM.match(line.rstrip())
    if google and google[2] and " :" not in line and not following.startswith((" ", "\t")):
        return google[1], [google[2]]
    if numpy and following.startswith((" ", "\t")) and not (google and _is_sentence(google[2], line)):
        return numpy[1].split(",")[0].strip(" *"), []
    return (google[1], [google[2] or ""]) if google else None


def _is_sentence(text: str | None, line: str) -> bool:
    """Whether what follows ``name:`` is a description (Google) rather than a type (numpydoc, ``name : type``)."""
    is_type = " : " in line or "optional" in str(text)[-12:]
    return bool(text) and not is_type and len(str(text).split()) >= 6


def _sphinx_items(lines: list[str]) -> list[tuple[str, list[str]]]:
    items: list[tuple[str, list[str]]] = []
    is_open = False
    for line in lines:
        found = _SPHINX_ITEM.match(line.strip())
        if found:
            items.append((found[1], [found[2]]))
        elif is_open and line.strip() and _indent(line) and not _SPHINX_FIELD.match(line.strip()):
            items[-1][1].append(line.strip())
        is_open = bool(found) or (is_open and bool(line.strip()) and not _SPHINX_FIELD.match(line.strip()))
    return items


def _first_paragraph(lines: list[str]) -> str:
    return _prose(inspect.cleandoc("\n".join(lines)).splitlines()).replace("\n", " ").strip()


def _prose(lines: list[str]) -> str:
    """Clean paragraphs, one a line; code, directives, tables and fields are left out."""
    paragraphs: list[list[str]] = [[]]
    hidden_below: int | None = None  # indentation of the block that hides what is indented deeper
    fenced = in_doctest = False
    for line in lines:
        text, indent = line.strip(), _indent(line)
        if _FENCE.match(text):
            fenced = not fenced
            continue
        if not text:
            paragraphs.append([])
            in_doctest = False
        if in_doctest or fenced or not text or (hidden_below is not None and indent > hidden_below):
            continue
        hidden_below = None
        in_doctest = text.startswith((">>>", "In ["))
        if _DIRECTIVE.match(text) or _SPHINX_FIELD.match(text):
            hidden_below = indent
        elif not in_doctest and not _RULER.match(line):
            paragraphs[-1].append(_BULLET.sub("", text, count=1) if _BULLET.match(text) else text)
            hidden_below = indent if text.endswith("::") else None
    return "\n".join(clean_text(" ".join(paragraph)) for paragraph in paragraphs if paragraph)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
