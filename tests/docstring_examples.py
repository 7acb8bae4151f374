"""The examples in the docstrings of the package, found and run as a reader would run them."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

import boom_utils

COMMON = {"Path": Path, "np": np, "pd": pd, "torch": torch}
"""What every example may use besides what its module knows; all else it imports itself."""
FINISHED_RUN = ("results/smoke", "Study(", "open_study(")
"""Signs of an example that needs the smoke profile to have been run."""


def modules() -> list[ModuleType]:
    names = [found.name for found in pkgutil.walk_packages(boom_utils.__path__, "boom_utils.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


@cache
def examples() -> dict[str, doctest.DocTest]:
    """Full name of the function -> its example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in modules() for test in finder.find(module, extraglobs=COMMON) if test.examples]
    return {test.name: test for test in found}


def needs_a_finished_run(test: doctest.DocTest) -> bool:
    return any(sign in example.source for example in test.examples for sign in FINISHED_RUN)


def run(test: doctest.DocTest) -> str:
    """What differs from the text; empty if nothing does."""
    said: list[str] = []
    fresh = doctest.DocTest(test.examples, dict(test.globs), test.name, test.filename, test.lineno, test.docstring)
    doctest.DocTestRunner(verbose=False).run(fresh, out=said.append)
    return "".join(said)


def taught_functions(notebooks: list[Path]) -> dict[str, set[str]]:
    """Full name of everything that notebooks import from the package -> the notebooks."""
    found: dict[str, set[str]] = {}
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(line for line in cell["source"] if not line.startswith(("%", "!")))
            tree = ast.parse(source) if cell["cell_type"] == "code" else ast.Module([], [])
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("boom_utils."):
                    for alias in node.names:
                        found.setdefault(f"{node.module}:{alias.name}", set()).add(path.stem)
    return found
