"""Static mining of installed distributions: documented definitions and raise messages, read with `ast`.

Nothing of the mined packages is imported or run. The result depends on their versions only, not on where they are
installed or on the order in which a file system lists files.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import logging
import platform
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from boom_utils.data.docstrings import Docstring, parse_docstring
from boom_utils.data.manifest import Manifest
from boom_utils.errors import DataError

log = logging.getLogger(__name__)

STANDARD_LIBRARY = "python"
"""Package name under which the standard library's definitions are listed."""
# Vendored copies would repeat other packages' texts; the rest is missing from some builds of Python.
# fmt: off
SKIPPED_FOLDERS = frozenset((
    "test", "tests", "testing", "_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo",
    "distutils", "ensurepip", "tkinter", "pydoc_data", "__phello__", "_vendor", "externals", "extern", "_external",
    "vendored", "__pycache__",
))
# fmt: on
SKIPPED_FILES = ("test_", "_test", "conftest", "_sysconfigdata", "_pytesttester")
LONGEST_CODE = 40
"""Lines of source that are kept of a function."""
_PERCENT_FIELD = re.compile(r"%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[sdrifgxaeE]")
_BRACE_FIELD = re.compile(r"\{[^{}]*\}")
_SURROGATE = re.compile("[\ud800-\udfff]")
PLACEHOLDER = "<value>"


@dataclass(frozen=True, slots=True)
class Definition:
    """One documented function, method or class.

    Args:
        package: Distribution, or ``python`` for the standard library.
        module: Dotted name of its module.
        name: Qualified name inside the module.
        held_out: Whether its distribution is only evaluated.
        doc: Parsed docstring.
        code: Source without decorators and docstring, dedented; empty for classes.
    """

    package: str
    module: str
    name: str
    held_out: bool
    doc: Docstring
    code: str


@dataclass(frozen=True, slots=True)
class RaisedMessage:
    """The message of one raise statement and the class it raises; placeholders stand for formatted values."""

    package: str
    module: str
    held_out: bool
    text: str
    exception: str


@dataclass
class Mined:
    """Everything that was mined, in the order of package, module and line."""

    definitions: list[Definition] = field(default_factory=list)
    messages: list[RaisedMessage] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def corpus_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """What the mined corpus depends on beside the manifest; cheap, it reads no source.

    Returns:
        Installed version (None when missing) of every distribution, and the Python version when the standard library
        is mined. It belongs into the key of the artifact.
    """
    versions = {wanted.name: _installed_version(wanted.name) for wanted in manifest.installed.distributions}
    python = platform.python_version() if manifest.installed.standard_library else None
    return {"distributions": versions, "python": python}


def corpus_deviations(manifest: Manifest) -> list[str]:
    """One sentence for every distribution that is missing or has another version than the manifest names."""
    return [
        f"{wanted.name} {wanted.version} is named by the manifest, {installed or 'none'} is installed"
        for wanted in manifest.installed.distributions
        if (installed := _installed_version(wanted.name)) != wanted.version
    ]


def mine(manifest: Manifest) -> Mined:
    """Read every file of the manifest's distributions and of the standard library.

    Raises:
        DataError: No file was found at all.
    """
    mined = Mined()
    with _without_cycle_collection():
        for wanted in sorted(manifest.installed.distributions, key=lambda wanted: wanted.name.lower()):
            if _installed_version(wanted.name) is not None:
                _mine_package(wanted.name, distribution_files(wanted.name), wanted.held_out, mined)
        if manifest.installed.standard_library:
            _mine_package(STANDARD_LIBRARY, standard_library_files(), False, mined)
    if not mined.definitions:
        raise DataError(
            f"corpus '{manifest.name}' has no documented definition",
            found="; ".join(corpus_deviations(manifest)) or "packages without docstrings",
            fix="install the distributions that the manifest names",
        )
    return mined


def distribution_files(name: str) -> list[tuple[PurePosixPath, Path]]:
    """Relative and real path of every Python source of an installed distribution, tests and vendored code left out."""
    distribution = importlib.metadata.distribution(name)
    files = ((PurePosixPath(file.as_posix()), Path(str(file.locate()))) for file in distribution.files or ())
    return sorted((relative, path) for relative, path in files if _is_wanted(relative))


def standard_library_files() -> list[tuple[PurePosixPath, Path]]:
    """Relative and real path of every Python source of the running interpreter's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = ((PurePosixPath(path.relative_to(root).as_posix()), path) for path in root.rglob("*.py"))
    return sorted((relative, path) for relative, path in files if _is_wanted(relative))


def read_source(source: str, package: str, module: str, held_out: bool, mined: Mined) -> None:
    """Add the definitions and messages of one module's source to ``mined``.

    Raises:
        SyntaxError: The source is not Python of the running version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences of the mined source are not ours to report
        tree = ast.parse(source)
    _Module(package, module, held_out, source.splitlines(), mined).visit(tree.body, "")


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Syntax trees hold no cycles; scanning them for some costs a third of the mining time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_wanted(path: PurePosixPath) -> bool:
    if path.suffix != ".py" or path.parts[0] == ".." or path.name.startswith(SKIPPED_FILES):
        return False
    return not (SKIPPED_FOLDERS & set(path.parts[:-1]) or path.parts[0].startswith("config-"))


def _mine_package(name: str, files: list[tuple[PurePosixPath, Path]], held_out: bool, mined: Mined) -> None:
    mined.files[name] = len(files)
    for relative, path in files:
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            read_source(path.read_text(encoding="utf-8"), name, module, held_out, mined)
        except (OSError, ValueError, SyntaxError, RecursionError) as error:
            mined.unreadable.append(f"{relative}: {type(error).__name__}")
            log.warning("%s was not mined: %s", relative, error)


_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class _Module:
    """Walks the statements of one module; expressions are not entered, which keeps it fast."""

    package: str
    module: str
    held_out: bool
    lines: list[str]
    mined: Mined

    def visit(self, body: Iterable[ast.stmt], prefix: str) -> None:
        assigned: dict[str, ast.expr] = {}
        for node in body:
            if isinstance(node, _Function | ast.ClassDef):
                self._add_definition(node, prefix)
                self.visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Raise):
                self._add_message(node, assigned)
            else:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assigned[node.targets[0].id] = node.value
                for block in _blocks(node):
                    self.visit(block, prefix)

    def _add_definition(self, node: _Function | ast.ClassDef, prefix: str) -> None:
        raw = ast.get_docstring(node, clean=False)
        if not raw or not _is_text(raw) or _is_special(node.name):
            return
        code = "" if isinstance(node, ast.ClassDef) else self._code(node)
        # Class "method" reads better than "method.<locals>": nested functions are named like methods.
        name = f"{prefix}{node.name}".replace(".__init__", "")
        doc = parse_docstring(raw)
        self.mined.definitions.append(Definition(self.package, self.module, name, self.held_out, doc, code))

    def _code(self, node: _Function) -> str:
        """Source without decorators and docstring; empty when nothing but the docstring is there."""
        if len(node.body) < 2 or node.body[0].lineno <= node.lineno:
            return ""
        header = self.lines[node.lineno - 1 : node.body[0].lineno - 1]
        rest = self.lines[int(node.body[0].end_lineno or 0) : node.end_lineno]
        kept = [line.rstrip() for line in [*header, *rest] if line.strip()]
        return textwrap.dedent("\n".join(kept[:LONGEST_CODE]))

    def _add_message(self, node: ast.Raise, assigned: dict[str, ast.expr]) -> None:
        call = node.exc
        if not isinstance(call, ast.Call) or not call.args:
            return
        exception = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        argument: ast.expr | None = call.args[0]
        if isinstance(argument, ast.Name):
            argument = assigned.get(argument.id)
        text = " ".join((message_text(argument) or "").split())
        if exception and text and _is_text(text):
            self.mined.messages.append(RaisedMessage(self.package, self.module, self.held_out, text, exception))


def message_text(node: ast.expr | None) -> str | None:
    """The string an expression builds, with a placeholder for every value; None when it is not a string literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [str(value.value) if isinstance(value, ast.Constant) else PLACEHOLDER for value in node.values]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        text = message_text(node.left)
        return None if text is None else _PERCENT_FIELD.sub(PLACEHOLDER, text)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = message_text(node.left), message_text(node.right)
        return None if left is None and right is None else f"{left or PLACEHOLDER}{right or PLACEHOLDER}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        text = message_text(node.func.value)
        return None if text is None else _BRACE_FIELD.sub(PLACEHOLDER, text)
    return None


def _blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a compound statement."""
    for name in ("body", "orelse", "finalbody"):
        yield getattr(node, name, [])
    for inner in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield inner.body


def _is_special(name: str) -> bool:
    return (name.startswith("__") and name != "__init__") or name.startswith(("test_", "Test"))


def _is_text(text: str) -> bool:
    """Whether a string of the source can be written as UTF-8 (it may hold escaped lone surrogates)."""
    return text.isascii() or _SURROGATE.search(text) is None
