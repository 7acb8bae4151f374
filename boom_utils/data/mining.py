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
from collections.abc import Iterable, Mapping
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
PLACEHOLDER = "<value>"
"""Stands for a formatted value in a message."""
_PERCENT_FIELD = re.compile(r"%(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[sdrifgxaeE]")
_BRACE_FIELD = re.compile(r"\{[^{}]*\}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # cannot be written as UTF-8
_Function = ast.FunctionDef | ast.AsyncFunctionDef


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


@dataclass
class Mined:
    """What was mined, in the order of package, module and line.

    Args:
        definitions: Documented definitions.
        messages: Text and exception class of every raise statement outside held-out distributions.
        files: Package -> number of its source files.
        unreadable: Files that were not read, and why.
    """

    definitions: list[Definition] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def corpus_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """What the mined corpus depends on beside the manifest; cheap, it reads no source.

    Returns:
        Installed version (None when missing) of every distribution, and the Python version when the standard library
        is mined. It belongs into the key of the artifact.
    """
    source = manifest.installed
    versions = {wanted.name: _installed_version(wanted.name) for wanted in source.distributions}
    return {"distributions": versions, "python": platform.python_version() if source.standard_library else None}


def corpus_deviations(manifest: Manifest) -> list[str]:
    """One sentence for every distribution that is missing or has another version than the manifest names."""
    return [
        f"{wanted.name} {wanted.version} is named by the manifest, {installed or 'none'} is installed"
        for wanted in manifest.installed.distributions
        if (installed := _installed_version(wanted.name)) != wanted.version
    ]


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def mine(manifest: Manifest) -> Mined:
    """Read every file of the manifest's distributions and of the standard library.

    Raises:
        DataError: No documented definition was found.
    """
    held_out = {wanted.name: wanted.held_out for wanted in manifest.installed.distributions}
    packages = [name for name in sorted(held_out, key=str.lower) if _installed_version(name) is not None]
    packages += [STANDARD_LIBRARY] if manifest.installed.standard_library else []
    mined = Mined()
    was_enabled = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; scanning them for some costs a third of the mining time
    try:
        for name in packages:
            _mine_package(name, held_out.get(name, False), mined)
    finally:
        if was_enabled:
            gc.enable()
    if not mined.definitions:
        raise DataError(
            f"corpus '{manifest.name}' has no documented definition",
            found="; ".join(corpus_deviations(manifest)) or "packages without docstrings",
            fix="install the distributions that the manifest names",
        )
    return mined


def _mine_package(package: str, held_out: bool, mined: Mined) -> None:
    files = source_files(package)
    mined.files[package] = len(files)
    for relative, path in files:
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        try:
            read_source(path.read_text(encoding="utf-8"), (package, module, held_out), mined)
        except (OSError, ValueError, SyntaxError, RecursionError) as error:
            mined.unreadable.append(f"{relative}: {type(error).__name__}")
            log.warning("%s was not mined: %s", relative, error)


def source_files(package: str) -> list[tuple[PurePosixPath, Path]]:
    """Relative and real path of every Python source of a package, tests, vendored and generated code left out."""
    if package == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        found = [(PurePosixPath(path.relative_to(root).as_posix()), path) for path in root.rglob("*.py")]
    else:
        files = importlib.metadata.files(package) or ()
        found = [(PurePosixPath(file.as_posix()), Path(str(file.locate()))) for file in files]
    return sorted((relative, path) for relative, path in found if _is_wanted(relative))


def _is_wanted(path: PurePosixPath) -> bool:
    is_source = path.suffix == ".py" and not path.name.startswith(SKIPPED_FILES)
    is_outside = path.parts[0].startswith(("..", "config-"))
    return is_source and not is_outside and not SKIPPED_FOLDERS & set(path.parts[:-1])


def read_source(source: str, place: tuple[str, str, bool], mined: Mined) -> None:
    """Add the definitions and messages of one module to ``mined``.

    Args:
        source: Text of the module.
        place: Its package, its dotted name, and whether the package is held out.
        mined: Gets what is found.

    Raises:
        SyntaxError: The source is not Python of the running version.
    """
    with warnings.catch_warnings(
        action="ignore"
    ):  # invalid escape sequences of the mined source are not ours to report
        tree = ast.parse(source)
    _Module(place, source.splitlines(), mined).visit(tree.body, "")


@dataclass(frozen=True)
class _Module:
    """Walks the statements of one module; expressions are not entered, which keeps it fast."""

    place: tuple[str, str, bool]
    lines: list[str]
    mined: Mined

    def visit(self, body: Iterable[ast.stmt], prefix: str) -> None:
        assigned: dict[str, ast.expr] = {}
        for node in body:
            if isinstance(node, _Function | ast.ClassDef):
                self._add_definition(node, prefix)
                self.visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Raise):
                self._add_message(node.exc, assigned)
            else:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    assigned[node.targets[0].id] = node.value
                for part in (node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                    for block in ("body", "orelse", "finalbody"):
                        self.visit(getattr(part, block, ()), prefix)

    def _add_definition(self, node: _Function | ast.ClassDef, prefix: str) -> None:
        raw = ast.get_docstring(node, clean=False)
        is_special = node.name.startswith("__") and node.name != "__init__"
        if raw and not is_special and not node.name.startswith(("test_", "Test")) and not _SURROGATE.search(raw):
            package, module, held_out = self.place
            name = f"{prefix}{node.name}".replace(".__init__", "")
            definition = Definition(package, module, name, held_out, parse_docstring(raw), self._code(node))
            self.mined.definitions.append(definition)

    def _code(self, node: _Function | ast.ClassDef) -> str:
        """Source without decorators and docstring; empty for classes, and when there is nothing but the docstring."""
        doc = node.body[0]
        if isinstance(node, ast.ClassDef) or len(node.body) < 2 or doc.lineno <= node.lineno:
            return ""
        lines = self.lines[node.lineno - 1 : doc.lineno - 1] + self.lines[int(doc.end_lineno or 0) : node.end_lineno]
        kept = [line.rstrip() for line in lines if line.strip()]
        return textwrap.dedent("\n".join(kept[:LONGEST_CODE]))

    def _add_message(self, call: ast.expr | None, assigned: Mapping[str, ast.expr]) -> None:
        if self.place[2] or not isinstance(call, ast.Call) or not call.args:
            return
        exception = getattr(call.func, "id", getattr(call.func, "attr", ""))
        argument = call.args[0]
        text = message_text(assigned.get(argument.id) if isinstance(argument, ast.Name) else argument)
        if exception and text.strip() and not _SURROGATE.search(text):
            self.mined.messages.append((" ".join(text.split()), exception))


def message_text(node: ast.expr | None) -> str:
    """The string an expression builds, with a placeholder for every value; empty when it is not a string literal."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in parts)
        case ast.BinOp(left=left, op=ast.Mod()):
            return _PERCENT_FIELD.sub(PLACEHOLDER, message_text(left))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            sides = message_text(left), message_text(right)
            return "".join(side or PLACEHOLDER for side in sides) if any(sides) else ""
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _BRACE_FIELD.sub(PLACEHOLDER, message_text(value))
    return ""
