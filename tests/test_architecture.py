"""The house: imports point one way, importing is light, the text of the project is in order."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.study.graph import NOTEBOOKS

PACKAGE = PROJECT_ROOT / "boom_utils"
ROOMS = [
    {"errors", "yaml_files", "experiments", "hyperparameters", "config", "artifacts", "machine", "progress"},
    {"data"},
    {"model_folder"},
    {"packing", "fast_linear"},
    {"models", "cards"},
    {"training"},
    {"merging"},
    {"evaluation"},
    {"reporting"},
    {"study"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOK_FILES = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of all modules a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way_through_the_house(path: Path) -> None:
    if room(path) == "__init__":
        return
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("boom_utils.")} - {"__version__"}
    wrong = sorted(name for name in inside if LEVEL[name] > LEVEL[room(path)])
    assert not wrong, f"{path.name} imports {wrong}, which come after it"


def test_modules_import_one_another_in_no_circle_not_even_inside_functions_or_for_types() -> None:
    paths = {".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {name: (imported(path) & paths.keys()) - {name} for name, path in paths.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "name",
    [
        *("boom_utils", "boom_utils.reporting.report", "boom_utils.data.python_docs", "boom_utils.data.files"),
        *("boom_utils.study.graph", "boom_utils.study.plan", "boom_utils.training.base_source"),
        *("boom_utils.reporting.trace", "boom_utils.training.batch_losses", "boom_utils.evaluation.interaction"),
    ],
)
def test_drawing_tables_mining_text_and_asking_what_is_up_to_date_need_no_torch(name: str) -> None:
    heavy = "{'torch', 'transformers', 'mteb', 'sentence_transformers'}"
    code = f"import sys, {name}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.promise(41)
def test_importing_the_package_is_quick_and_touches_nothing(tmp_path: Path) -> None:
    code = """
import sys
events = []
def hook(name, arguments):
    if name.startswith("socket") or (name == "open" and "w" in str(arguments[1])):
        events.append(name)
sys.addaudithook(hook)
before = {name.partition(".")[0] for name in sys.modules}
import boom_utils
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(events, sorted(loaded - before - set(sys.stdlib_module_names)))
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment, cwd=tmp_path)
    assert said.strip() == "[] ['boom_utils']"
    assert not list(tmp_path.iterdir())


def described(node: ast.FunctionDef) -> int:
    """Lines of a docstring."""
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1 if ast.get_docstring(node) else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen_and_modules_tell_one_story(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    for node in functions:
        body = (node.end_lineno or 0) - node.body[0].lineno + 1 - described(node)
        arguments = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
        assert body <= 70, f"{path.name}: {node.name} has {body} lines"
        assert len(arguments) <= 6, f"{path.name}: {node.name} takes {len(arguments)} parameters"
    length = len(text.splitlines()) - sum(map(described, functions))
    assert length <= 520, f"{path.name} is long: does it tell two stories?"


def test_nothing_in_the_package_draws_from_a_global_generator() -> None:
    pattern = re.compile(
        r"np\.random\.(?!default_rng|Generator|get_state|set_state)|\brandom\.(random|sample|shuffle|choice)\(|np\.random\.seed"
    )
    for path in MODULES:
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found.group() if found else ''}"


# --- notebooks --------------------------------------------------------------------------------------------------------


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_every_notebook_of_the_study_is_there_and_no_other() -> None:
    assert [path.stem for path in NOTEBOOK_FILES] == list(NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_have_their_anatomy_short_cells_and_no_outputs(path: Path) -> None:
    code, text = cells(path, "code"), "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    sources = ["".join(cell["source"]) for cell in code]
    for source in sources:
        assert len(source.splitlines()) <= 20, source
        assert not re.search(r"^\s*class |!pip|%pip|/home/|/root/", source, flags=re.M), source
    assert "assert" in "\n".join(sources)
    parts = ["# ", "Question", "The paper", "Time and hardware", "real input", "by hand", "The stage"]
    places = {part: text.find(part) for part in (*parts, "Checks", "Pitfalls")}
    assert -1 not in places.values(), f"missing: {[part for part, place in places.items() if place < 0]}"
    assert all(before < after for before, after in pairwise(places.values()))


# --- the repository ---------------------------------------------------------------------------------------------------


def test_nothing_committed_names_a_place_on_one_machine() -> None:
    listed = subprocess.check_output(["git", "-C", str(PROJECT_ROOT), "ls-files"], text=True).splitlines()
    for name in listed:
        if re.search(r"(\.(py|md|ya?ml|ipynb|toml)|Makefile)$", name) and "test_architecture" not in name:
            assert not re.search(r"/(root|home/\w+|Users)/", (PROJECT_ROOT / name).read_text(encoding="utf-8")), name
