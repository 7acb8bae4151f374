"""The functions that notebooks teach are described in full, and the examples of all docstrings work."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docstring_examples import examples, needs_a_finished_run, run, taught_functions

from boom_utils.artifacts import PROJECT_ROOT

TAUGHT = taught_functions(sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb")))


def taught() -> dict[str, Callable[..., Any]]:
    found = {}
    for name in TAUGHT:
        module, attribute = name.split(":")
        value = getattr(importlib.import_module(module), attribute, None)  # None: a module
        if inspect.isfunction(value):
            found[f"{value.__module__}.{value.__name__}"] = value
    return found


FUNCTIONS = taught()


@pytest.mark.promise(43)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_notebooks_use_says_what_it_takes_and_gives_and_shows_it(name: str) -> None:
    function = FUNCTIONS[name]
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    described = text.partition("Args:")[2].partition("\nReturns:")[0].partition("\nYields:")[0]
    missing = [parameter for parameter in signature.parameters if f"\n    {parameter}: " not in described]
    assert not missing, f"{name}: `Args:` lacks {missing}"
    assert "\nReturns:\n" in text or "\nYields:\n" in text, f"{name} does not say what it returns"
    assert name in examples(), f"{name} has no example"


@pytest.mark.promise(43)
@pytest.mark.parametrize("name", [name for name, test in examples().items() if not needs_a_finished_run(test)])
def test_the_example_of_a_docstring_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not run(examples()[name])
