"""Docstrings as plain text: summary, description and parameters of numpydoc, Google and Sphinx style.

Markup is reduced to the words a reader sees; directives, doctests, code blocks and citations are left out. Nothing
is imported or run: the input is a string.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_RULER = r"[ ]*([-=~])\{}{{2,}}[ ]*$"
_FIELD = r":(?:param|parameter|arg|type|returns?|rtype|raises?|keyword|key|kwarg|yields?)\b[^`\n]*?:"
_TITLES = (
    "Args?|Arguments|Params|Parameters|Other Parameters|Keyword Args|Keyword Arguments|Kwargs|Returns?|Yields?|Raises|"
    "Examples?|Example usage|Usage|Notes?|Attributes|References|See also|Warnings?|Todo|Tips?|Methods|Options|Input|"
    "Output|Related|Call signatures"
)
_UNDERLINED = rf"^(?!{_RULER.format(1)})[ ]*(?P<underlined>\S+(?:[ ]+\S+){{0,4}})[ ]*\n{_RULER.format(3)}"
_HEADING = re.compile(rf"{_UNDERLINED}|^(?P<title>(?=[A-Z])(?i:{_TITLES}))::?[ ]*$", re.M)
PARAMETER_SECTIONS = frozenset({"args", "arg", "arguments", "params", "parameters", "other parameters"})
_NUMPY_ITEM = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)(?:\s*:.*)?$")
_GOOGLE_ITEM = re.compile(r"[`*\\]*(\w+)`?\s*(?:\(.*?\))?\s*:(?:\s+(.*))?$")
_SPHINX_ITEM = re.compile(
    rf"^[ ]*:(?:param|parameter|arg)\s+(?:[^:\n]*?\s)?\*{{0,2}}(\w+)\s*:[ ]*(.*(?:\n[ ]+(?!{_FIELD})\S.*)*)", re.M
)
_DEEPER = r"(?:(?:[ ]*\n)*\1[ ]+\S.*\n?)"
_BLOCKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^[ ]*(?:```|~~~)(?:.*\n)*?(?:[ ]*(?:```|~~~).*\n?|.*\Z)", re.M), ""),
    (re.compile(rf"^([ ]*)(?:\.\.(?:[ ]|$)|{_FIELD}).*\n?{_DEEPER}*", re.M), ""),
    (re.compile(r"^[ ]*(?:>>>|In \[).*\n?(?:.*\S.*\n?)*", re.M), ""),
    (re.compile(rf"^([ ]*)((?! ).*::)[ ]*\n{_DEEPER}+", re.M), r"\1\2\n"),
    (re.compile(rf"^{_RULER.format(1)}\n?", re.M), ""),
    (re.compile(r"^[ ]*(?:[-*•][ ]|\d+[.)][ ]|\+[-=]|[|])", re.M), ""),
)
"""Code blocks, directives and fields, doctests, literal blocks, rulers and bullets, and what is left of them."""
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r":[\w:.+-]+:`!?~?([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :func:`text <target>`
    (re.compile(r":[\w:.+-]+:`!?(?:~(?:[\w.]*\.)?|\.?)([^`]*)`"), r"\1"),  # :class:`~module.Name`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <url>`_
    (re.compile(r"\[`~?(?:\w+\.)*([\w.]+)`\](?:\([^)]*\))?"), r"\1"),  # [`~module.Name`]
    (re.compile(r"\[([^\]\[]{2,80})\]\([^)\s]*[/.#][^)\s]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\s*\[[\w*#-]+\]_|`+(?:_{1,2}(?!\w))?"), ""),  # [1]_ and `name`_
    (re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*\n]+?)(?<=\S)\*{1,2}(?![\w*])"), r"\1"),  # *emphasis*
    (re.compile(r"\|(\w[\w ]*)\|"), r"\1"),  # |substitution|
    (re.compile(r"</?(?:Tip|Added|Deprecated|b|i|code|p|br|pre|a)\b[^>]*>"), " "),
    (re.compile(r"\$([^$]{1,60})\$"), r"\1"),
    (re.compile(r"::(?=\s|$)"), ":"),
    (re.compile(r"\\(?=[*_|`\s])|(?:Read more|See|For more \w+,? see)[^.]{0,20} User Guide( for [^.]{0,60})?\."), ""),
    (re.compile(r"\(?\bhttps?://[^\s)]+\)?"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=[a-z])- (?!and |or |to )(?=[a-z])"), "-"),  # a word wrapped at its hyphen
    (re.compile(r"\s+(?=[.,;:)](?:\s|$))"), ""),
)
_SENTENCE_END = re.compile(r"(?<![\s.(]e\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)[.!?](?=\s+[A-Z\"'(\[])")
_RUBBLE = re.compile(r"%\(\w+\)s|\\[a-zA-Z]{2,}|>>>|https?://|\{\{|@\w+@|\bTODO\b|\bFIXME\b|&\w+;")
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

    @property
    def text(self) -> str:
        """All of it: docstrings of the same text count as one."""
        return " ".join([self.summary, self.description, *(parameter.text for parameter in self.parameters)])


def parse_docstring(raw: str) -> Docstring:
    """Split a docstring as it stands in the source into summary, description and parameters.

    Args:
        raw: The docstring with its indentation; any of the three styles.

    Returns:
        Plain text without markup; parts that are markup only come out empty.
    """
    text = inspect.cleandoc(raw)
    headings = list(_HEADING.finditer(text))
    titles = [(match["underlined"] or match["title"]).rstrip(":").lower() for match in headings]
    starts, ends = [match.end() for match in headings], [match.start() for match in headings]
    body, *sections = [text[start:end] for start, end in zip([0, *starts], [*ends, None], strict=True)]
    parameters: dict[str, Parameter] = {}
    for title, section in zip(["", *titles], [body, *sections], strict=True):
        for name, lines in _parameters(title, section):
            if said := " ".join(_paragraphs(inspect.cleandoc(lines))).strip():
                parameters[name] = parameters.pop(name, Parameter(name, said))
    first, *rest = _paragraphs(body) or [""]
    end = _SENTENCE_END.search(first)
    summary, more = (first[: end.end()], first[end.end() :]) if end else (first, "")
    return Docstring(summary.strip(), " ".join(" ".join([more, *rest]).split()), tuple(parameters.values()))


def _parameters(title: str, section: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions of the parameters in one section; Sphinx fields stand before the first one."""
    if title not in PARAMETER_SECTIONS:
        yield from _SPHINX_ITEM.findall(section) if not title or title.startswith("keyword") else ()
        return
    for item in re.split(r"\n(?=\S)", textwrap.dedent(section).strip("\n")):
        header, _, below = item.partition("\n")
        google, numpy = _GOOGLE_ITEM.match(header), _NUMPY_ITEM.match(header.rstrip())
        said = google[2] or "" if google else ""
        # After "name:" stands a description (Google), after "name : " a type (numpydoc).
        is_sentence = len(said.split()) >= 6 and " : " not in header and "optional" not in said[-12:]
        if numpy and below.strip() and not is_sentence:
            name, text = numpy[1].split(",")[0].strip(" *"), below
        else:
            name, text = google[1] if google else "", f"{said}\n{below}"
        if name not in ("", "args", "kwargs"):
            yield name, text


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of prose without markup; code, directives, tables and fields are left out."""
    for pattern, replacement in _BLOCKS:
        text = pattern.sub(replacement, text)
    return [clean_text(" ".join(part.split())) for part in re.split(r"\n[ ]*\n", text) if part.strip()]


def clean_text(text: str) -> str:
    """Reduce reStructuredText and Markdown inline markup to the words a reader sees; white space is collapsed."""
    for pattern, replacement in _INLINE:
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
