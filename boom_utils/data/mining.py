"""Static mining of installed distributions: documented definitions and raise messages, read with `ast`.

Nothing of the mined packages is imported or run. The result depends on their versions only, not on where they are
installed or on the order in which a file system lists files. Docstrings of numpydoc, Google and Sphinx style become
plain text: markup is reduced to the words a reader sees; directives, doctests, code blocks and citations are left out.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import inspect
import platform
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from pathlib import Path, PurePosixPath
from typing import Any

from boom_utils.data.manifest import Manifest

STANDARD_LIBRARY = "python"  # package name under which its definitions are listed
# Tests; vendored copies, which would repeat other packages' texts; what is missing from some builds of Python.
_UNWANTED = re.compile(
    r"^(\.\.|config-)|(^|/)(test_|_test|conftest|_sysconfigdata|_pytesttester)[^/]*$|(^|/)(tests?|testing|_test|"
    r"_vendor|vendored|externals|extern|_external|idlelib|lib2to3|(site|dist)-packages|turtledemo|distutils|ensurepip|"
    r"tkinter|pydoc_data|__phello__|__pycache__)/"
)
CODE_LINES, CODE_WORDS, CODE_CHARACTERS = 40, 60, 480  # most of a source that is kept, from its beginning
PLACEHOLDER = "<value>"  # stands for a formatted value in a message
_PERCENT_FIELD = re.compile(r"%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[sdrifgxaeE]")
_BRACE_FIELD = re.compile(r"\{[^{}]*\}")
# What handles errors comes last: of two definitions with one text, the one for the usual case is taken.
_BLOCKS_OF_STATEMENTS = ("body", "orelse", "finalbody", "cases", "handlers")
_SIMPLE = (ast.Expr, ast.Assign, ast.Return, ast.Raise, ast.Assert)  # most statements, and no block is in them
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Definition:
    """One documented function, method or class.

    Args:
        package: Distribution, or ``python`` for the standard library.
        module: Dotted name of its module.
        held_out: Whether its distribution is only evaluated.
        name: Qualified name inside the module.
        code: First lines of the source without decorators and docstring, dedented; empty for classes.
        summary: First sentence of its docstring.
        description: What follows the summary, up to the first section.
        parameters: Documented parameter -> what is said about it, in order.
    """

    package: str
    module: str
    held_out: bool
    name: str
    code: str
    summary: str
    description: str
    parameters: dict[str, str]

    @property
    def text(self) -> str:
        """All that is said about it: definitions of the same text count as one."""
        return " ".join([self.summary, self.description, *self.parameters.values()])


@dataclass
class Mined:
    """What was mined, in the order of package, module and line.

    Args:
        definitions: Documented definitions.
        messages: Text and exception class of every raise statement outside held-out distributions.
        deviations: A sentence for every distribution that is not as the manifest says, and every unreadable file.
    """

    definitions: list[Definition] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)


# --- sources ----------------------------------------------------------------------------------------------------------


def corpus_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """What the mined corpus depends on beside the manifest; cheap, it reads no source.

    Returns:
        Installed version (None when missing) of every distribution, and the Python version when the standard library
        is mined. It belongs into the key of the artifact.
    """
    source = manifest.installed
    versions = {one.name: found.version if (found := _installed(one.name)) else None for one in source.distributions}
    return {"distributions": versions, "python": platform.python_version() if source.standard_library else None}


def _installed(name: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=name)), None)


def corpus_deviations(manifest: Manifest) -> Iterator[str]:
    """One sentence for every distribution that is missing or has another version than the manifest names."""
    found = corpus_fingerprint(manifest)["distributions"]
    for one in manifest.installed.distributions:
        if found[one.name] != one.version:
            yield f"{one.name} {one.version} is named by the manifest, {found[one.name] or 'none'} is installed"


def mine(manifest: Manifest) -> Mined:
    """Read every file of the manifest's distributions, as far as they are installed, and of the standard library."""
    held_out = {one.name: one.held_out for one in manifest.installed.distributions}
    packages = sorted(held_out, key=str.lower) + [STANDARD_LIBRARY] * manifest.installed.standard_library
    mined = Mined(deviations=list(corpus_deviations(manifest)))
    thresholds = gc.get_threshold()
    gc.set_threshold(0)  # syntax trees hold no cycles; looking for some costs a third of the mining time
    try:
        for package in packages:
            for relative, path in source_files(package):
                module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
                place = package, module, held_out.get(package, False)
                try:
                    read_source(path.read_text(encoding="utf-8"), place, mined)
                except (OSError, ValueError, SyntaxError, RecursionError) as error:
                    mined.deviations.append(f"{relative} was not mined: {type(error).__name__}")
    finally:
        gc.set_threshold(*thresholds)
    return mined


def source_files(package: str) -> list[tuple[PurePosixPath, Path]]:
    """Relative and real path of every Python source of a package, tests, vendored and generated code left out."""
    found: Iterable[tuple[PurePosixPath, Path]] = ()
    if package == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        found = ((PurePosixPath(path.relative_to(root).as_posix()), path) for path in root.rglob("*.py"))
    elif installed := _installed(package):
        found = ((file, Path(str(file.locate()))) for file in installed.files or ())
    return sorted(one for one in found if one[0].suffix == ".py" and not _UNWANTED.search(str(one[0])))


def read_source(source: str, place: tuple[str, str, bool], mined: Mined) -> None:
    """Add the definitions and messages of one module to ``mined``.

    Args:
        source: Text of the module.
        place: Its package, its dotted name, and whether the package is held out.
        mined: Gets what is found.

    Raises:
        SyntaxError: The source is not Python of the running version.
    """
    with warnings.catch_warnings(action="ignore"):  # those about the mined source are not ours to report
        tree = ast.parse(source)
    lines, held_out = source.splitlines(), place[2]
    for prefix, node, assigned in _statements(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=raised) | ast.Attribute(attr=raised), args=[argument, *_])):
                text = message_text(assigned.get(argument.id) if isinstance(argument, ast.Name) else argument)
                if text.strip() and not held_out:
                    mined.messages.append((" ".join(text.split()), raised))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                is_api = not name.startswith(("test_", "Test")) and (not name.startswith("__") or name == "__init__")
                if is_api and (raw := ast.get_docstring(node, clean=False)):
                    full_name = f"{prefix}{name}".replace(".__init__", "")
                    mined.definitions.append(Definition(*place, full_name, _code(node, lines), *parse_docstring(raw)))


def _statements(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST, dict[str, ast.expr]]]:
    """All statements with the names around them and what stands before them is assigned; no expression is entered."""
    assigned: dict[str, ast.expr] = {}
    for block in _BLOCKS_OF_STATEMENTS:
        for node in getattr(parent, block, ()):
            yield prefix, node, assigned
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned[node.targets[0].id] = node.value
            if not isinstance(node, _SIMPLE):
                yield from _statements(node, f"{prefix}{node.name}." if isinstance(node, _Documented) else prefix)


def _code(node: _Documented, lines: Sequence[str]) -> str:
    """First lines of a source without decorators and docstring; empty for classes, and where nothing else is there."""
    doc = node.body[0]
    if isinstance(node, ast.ClassDef) or len(node.body) < 2 or doc.lineno <= node.lineno:
        return ""
    kept = [*lines[node.lineno - 1 : doc.lineno - 1], *lines[doc.end_lineno or 0 : node.end_lineno]]
    code = textwrap.dedent("\n".join([line.rstrip() for line in kept if line.strip()][:CODE_LINES])).split("\n")
    words = accumulate(len(line.split()) for line in code)
    characters = accumulate(len(line.strip()) for line in code)
    fits = (w <= CODE_WORDS and c <= CODE_CHARACTERS for w, c in zip(words, characters, strict=True))
    return "\n".join(compress(code, fits))


def message_text(node: ast.expr | None) -> str:
    """The string an expression builds, with a placeholder for every value; empty when it is not a string literal."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = message_text(left), message_text(right)
            return "".join(side or PLACEHOLDER for side in sides) if any(sides) else ""
        case ast.BinOp(left=left, op=ast.Mod()):
            return _PERCENT_FIELD.sub(PLACEHOLDER, message_text(left))
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _BRACE_FIELD.sub(PLACEHOLDER, message_text(value))
    return ""


# --- docstrings -------------------------------------------------------------------------------------------------------

_RULER = r"[ ]*([-=~])\{}{{2,}}[ ]*$"
_FIELD = r":(?:param|parameter|arg|type|returns?|rtype|raises?|keyword|key|kwarg|yields?)\b[^`\n]*?:"
_TITLES = (
    "Args?|Arguments|Parameters|Keyword Arguments|Returns?|Yields?|Raises|Examples?|Example usage|Usage|Notes?|Tips?|"
    "Todo|Attributes|References|See also|Methods|Options|Input|Output|Related|Call signatures"
)
_UNDERLINED = rf"^(?!{_RULER.format(1)})[ ]*(?P<underlined>\S+(?:[ ]+\S+){{0,4}})[ ]*\n{_RULER.format(3)}"
_HEADING = re.compile(rf"{_UNDERLINED}|^(?P<title>(?=[A-Z])(?i:{_TITLES}))::?[ ]*$", re.M)
PARAMETER_SECTIONS = frozenset({"args", "arg", "arguments", "params", "parameters", "other parameters"})
_NUMPY_ITEM = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)(?:\s*:.*)?$")
_GOOGLE_ITEM = re.compile(r"[`*\\]*(\w+)`?\s*(?:\(.*?\))?\s*:(?:\s+(.*))?$")
_SPHINX_ITEM = re.compile(rf"^[ ]*:param\s+(?:[^:\n]*?\s)?\*{{0,2}}(\w+)\s*:[ ]*(.*(?:\n[ ]+(?!{_FIELD})\S.*)*)", re.M)
_DEEPER = r"(?:(?:[ ]*\n)*\1[ ]+\S.*\n?)"
# Code blocks, directives and fields, doctests, literal blocks, rulers and bullets, and what is left of them.
_BLOCKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^[ ]*(?:```|~~~)(?:.*\n)*?(?:[ ]*(?:```|~~~).*\n?|.*\Z)", re.M), ""),
    (re.compile(rf"^([ ]*)(?:\.\.(?:[ ]|$)|{_FIELD}).*\n?{_DEEPER}*", re.M), ""),
    (re.compile(r"^[ ]*(?:>>>|In \[).*\n?(?:.*\S.*\n?)*", re.M), ""),
    (re.compile(rf"^([ ]*)((?! ).*::)[ ]*\n{_DEEPER}+", re.M), r"\1\2\n"),
    (re.compile(rf"^{_RULER.format(1)}\n?", re.M), ""),
    (re.compile(r"^[ ]*(?:[-*•][ ]|\d+[.)][ ]|\+[-=]|[|])", re.M), ""),
)
_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?::[\w:.+-]+:)?`!?~?([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # :func:`text <target>`, `text <url>`_
    (re.compile(r":[\w:.+-]+:`!?(?:~(?:[\w.]*\.)?|\.?)([^`]*)`"), r"\1"),  # :class:`~module.Name`
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
    (re.compile("[\ud800-\udfff]"), ""),  # a lone surrogate cannot be written as UTF-8
    (re.compile(r"(?<=[a-z])-\s+(?!and |or |to )(?=[a-z])"), "-"),  # a word wrapped at its hyphen
    (re.compile(r"\s+(?=[.,;:)](?:\s|$))"), ""),
)
_SENTENCE_END = re.compile(r"(?<![\s.(]e\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)[.!?](?=\s+[A-Z\"'(\[])")
_RUBBLE = re.compile(r"%\(\w+\)s|\\[a-zA-Z]{2,}|>>>|https?://|\{\{|@\w+@|\bTODO\b|\bFIXME\b|&\w+;")
_NO_LETTER = re.compile(r"[^A-Za-z ]+")


def parse_docstring(raw: str) -> tuple[str, str, dict[str, str]]:
    """Split a docstring as it stands in the source into summary, description and parameters.

    Args:
        raw: The docstring with its indentation; any of the three styles.

    Returns:
        The three as plain text without markup; parts that are missing or markup only come out empty. Parameters are
        those with a text.
    """
    body, *parts = _HEADING.split(inspect.cleandoc(raw))  # two groups are between a section and the next
    titles = [(line or title).rstrip(":").lower() for line, title in zip(parts[1::5], parts[3::5], strict=True)]
    parameters: dict[str, str] = {}
    for title, section in zip(["", *titles], [body, *parts[4::5]], strict=True):
        for name, lines in _parameters(title, section):
            if said := " ".join(_paragraphs(inspect.cleandoc(lines))).strip():
                parameters[name] = parameters.pop(name, said)
    first, *rest = _paragraphs(body) or [""]
    end = _SENTENCE_END.search(first)
    summary, more = (first[: end.end()], first[end.end() :]) if end else (first, "")
    return summary.strip(), " ".join(" ".join([more, *rest]).split()), parameters


def _parameters(title: str, section: str) -> Iterator[tuple[str, str]]:
    """Names and descriptions of the parameters in one section; Sphinx fields stand in any other."""
    if title not in PARAMETER_SECTIONS:
        yield from _SPHINX_ITEM.findall(section)
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
    return " ".join(text.split())


def is_readable(text: str, fewest: int, most: int = 1000) -> bool:
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
