"""Run the notebooks of a study headless, in order, with papermill; what is up to date starts no kernel.

An executed notebook is an artifact keyed by its source, its parameters and the artifacts it makes. One run a profile
and workspace at a time. The kit has no scheduler: this is a loop.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from pydantic import TypeAdapter

from boom_utils.artifacts import PROJECT_ROOT, Artifact, Node, atomic_path, digest_of, locked, process_alive, write_text
from boom_utils.errors import ConfigError, NotebookError, WorkspaceError, bullet_list, nearest
from boom_utils.reporting.results import PAGE
from boom_utils.study.graph import NOTEBOOKS, Study

log = logging.getLogger(__name__)

NOTEBOOK_FOLDER = PROJECT_ROOT / "notebooks"
VERSION = 1
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_SECRET_NAME = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run(
    study: Study,
    notebooks: Sequence[str],
    parameters: Mapping[str, str],
    results: Path | None = None,
    *,
    force_unlock: bool = False,
) -> dict[str, Path]:
    """Execute some notebooks that are not up to date, publish the results, and say where everything is.

    Args:
        study: The opened study.
        notebooks: As `choose` gives them.
        parameters: Values for the notebooks' ``parameters`` cells, as text: ``profile`` (a name, or the whole path of a
            YAML file), and what else they declare.
        results: Folder that gets ``<profile>/``; the project's ``results/`` when None.
        force_unlock: Take over the lock of a run on a machine that is gone.

    Returns:
        Name -> place, for the closing message.

    Raises:
        ConfigError: A parameter that does not exist, or a value of another type; nothing has run then.
        NotebookError: A cell failed or the kernel died.
        WorkspaceError: Another run holds the workspace.
    """
    values = typed_parameters(notebooks, parameters)
    executed = study.workspace.root / "executed" / study.profile.name
    with run_lock(study, force=force_unlock):
        for number, name in enumerate(notebooks, start=1):
            began = time.monotonic()
            fresh = run_notebook(study, name, values[name], executed)
            took = f"executed in {time.monotonic() - began:.0f} s" if fresh else "up to date"
            log.info("[%d/%d] %s: %s", number, len(notebooks), name, took)
        places = {"executed notebooks (.ipynb and .html)": executed}
        if published := publish(study, results):
            places |= {name: published / name for name in ("tables", "figures")}
            places["report"] = published / PAGE
    return places


def choose(only: Sequence[str], start: str | None) -> list[str]:
    """Names of the notebooks of some numbers or names, or of one and all after it, in order; all where none is named.

    Raises:
        ConfigError: A number or name that fits none.
    """
    names = {text: name for name in NOTEBOOKS for text in (name, name[:2], name[:2].lstrip("0"))}
    for text in (*only, *([start] if start else [])):
        if text not in names:
            what = f"there is no notebook '{text}'{nearest(text, NOTEBOOKS)}"
            raise ConfigError(what, expected=", ".join(NOTEBOOKS))
    if only:
        return sorted({names[text] for text in only})
    return [name for name in NOTEBOOKS if start is None or name >= names[start]]


def typed_parameters(notebooks: Sequence[str], texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The values of some parameters for each notebook that has them, of the types its ``parameters`` cell gives them.

    Args:
        notebooks: Names of notebooks.
        texts: Name of every parameter -> its value as text. A text stays as it is; a list is written ``[a, b]``.

    Raises:
        ConfigError: Parameters that no notebook declares, values of another type, and values that look like
            secrets: all together.
    """
    problems = [
        f"{name}: looks like a secret; executed notebooks keep parameters, so set HF_TOKEN instead"
        for name, text in texts.items()
        if _SECRET_NAME.search(name) or _TOKEN.search(text)
    ]
    cells = {name: papermill.inspect_notebook(str(NOTEBOOK_FOLDER / f"{name}.ipynb")) for name in notebooks}
    known = sorted(set().union(*cells.values()))
    problems += [f"{', '.join(notebooks)}: no parameter '{n}'{nearest(n, known)}" for n in texts if n not in known]
    values: dict[str, dict[str, Any]] = {notebook: {} for notebook in notebooks}
    for notebook, name in ((one, name) for one in notebooks for name in texts if name in cells[one]):
        default = ast.literal_eval(cells[notebook][name]["default"])
        try:
            values[notebook][name] = _typed(texts[name], default)
        except (ValueError, yaml.YAMLError):
            problems.append(f"{notebook}: '{name}' takes a value such as {default!r}, not '{texts[name]}'")
    if problems:
        raise ConfigError("parameters the notebooks cannot take", found=bullet_list(problems), fix="see --help")
    return values


def _typed(text: str, default: Any) -> Any:
    """A text as a value of the default's type; a list's entries as those of its first entry."""
    kind: Any = Any if default is None else type(default)
    value = text if isinstance(default, str | bool | int | float) else yaml.safe_load(text)
    if isinstance(default, list):
        kind, value = list[type(default[0]) if default else str], yaml.load(text, Loader=yaml.BaseLoader)  # type: ignore[misc]
    return TypeAdapter(kind).validate_python(value)


class OwnKernel(AsyncKernelManager):  # type: ignore[misc]
    """Starts the kernel with this interpreter, whatever Python the kernel registered with Jupyter belongs to."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How this interpreter starts a kernel."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def run_notebook(study: Study, name: str, values: Mapping[str, Any], executed: Path) -> bool:
    """Execute one notebook unless it is up to date; copy it and its HTML to ``executed``. True when it was executed."""
    fresh = study.workspace.root / ".tmp" / f"{study.profile.name}-{name}.ipynb"
    node = notebook_node(study, name, values, fresh)
    found = study.workspace.find(node)
    if needed := found is None:
        log.info("%s: started", name)
        _execute(name, fresh, values, executed)
        # Building what it did not make would hide that.
        if missing := [label for label, made in node.inputs.items() if study.workspace.find(made) is None]:
            fix = "restore it from the repository"
            raise NotebookError(f"notebook {name} did not make: {', '.join(missing)}", fix=fix)
        found = study.workspace.build(node)
        fresh.unlink()
    for file in found.record["outputs"]:
        _copy_if_changed(found.path / file, executed / file)
    (executed / f"{name}.failed.ipynb").unlink(missing_ok=True)
    return needed


def notebook_node(study: Study, name: str, values: Mapping[str, Any], fresh: Path) -> Node:
    """The executed notebook as a node: its source and parameters, and the artifacts it makes as inputs.

    It is made from ``fresh``, which papermill has written by then, and holds the notebook and its HTML.
    """

    def make(out: Path, _: Mapping[str, Artifact]) -> None:
        from nbconvert import HTMLExporter

        notebook = nbformat.reads(_shareable(fresh), as_version=4)
        write_text(out / f"{name}.ipynb", nbformat.writes(notebook))
        write_text(out / f"{name}.html", scrub(HTMLExporter().from_notebook_node(notebook)[0]))

    source = nbformat.read(NOTEBOOK_FOLDER / f"{name}.ipynb", as_version=4)
    cells = [[cell.cell_type, cell.source] for cell in source.cells]
    # A profile given by path stands for its content, which the inputs carry.
    shown = {**values, "profile": study.profile.name}
    config = {"notebook": name, "source": digest_of(cells), "parameters": shown}
    return Node("notebook", VERSION, f"executed copy of {name}", config, make, study.nodes_of(name))


def _execute(name: str, output: Path, values: Mapping[str, Any], executed: Path) -> None:
    """Let papermill run a notebook; a half-executed one is kept beside the others, marked as failed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    source = NOTEBOOK_FOLDER / f"{name}.ipynb"
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters=dict(values),
            kernel_name="python3",
            kernel_manager_class=OwnKernel,
            cwd=str(source.parent),
            progress_bar=False,
            log_output=True,
            extra_arguments=["--IPKernelApp.log_level=50"],  # its notes on sockets, at the start and when interrupted
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        what = "the kernel died (it was killed, or there was not enough memory; finished stages are kept)"
        if isinstance(error, PapermillExecutionError):
            what = scrub(f"{error.ename}: {_ANSI.sub('', str(error.evalue))}")
        place = executed / f"{name}.failed.ipynb"
        if output.is_file():
            write_text(place, _shareable(output))
            output.unlink()
        fix = "open it to see the cell and its traceback"
        raise NotebookError(f"notebook {name} failed: {what}", where=place, fix=fix) from error


def _shareable(path: Path) -> str:
    """A notebook's text without papermill's notes of absolute paths, tokens and private paths."""
    notebook = nbformat.read(path, as_version=4)
    for key in ("input_path", "output_path", "environment_variables"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    return scrub(nbformat.writes(notebook))


def scrub(text: str) -> str:
    """``text`` without access tokens (those of the environment, and everything shaped like one) and private paths."""
    for variable in _TOKEN_VARIABLES:
        if value := os.environ.get(variable):
            text = text.replace(value, f"[{variable} removed]")
    for place, name in ((str(PROJECT_ROOT), "."), (sys.prefix, "<environment>"), (str(Path.home()), "~")):
        text = text.replace(place + "/", name + "/")
    return _TOKEN.sub("[token removed]", text)


def _copy_if_changed(source: Path, target: Path) -> None:
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def publish(study: Study, results: Path | None) -> Path | None:
    """Copy results, tables, figures and their page to ``<results>/<profile>``; None while they are not made yet."""
    found = study.workspace.find_all({name: study.node(name) for name in ("results", "report")})
    if len(found) < 2:
        return None
    folder = results_folder(study, results)
    wanted = {Path(name): artifact.path / name for artifact in found.values() for name in artifact.record["outputs"]}
    for name, source in wanted.items():
        _copy_if_changed(source, folder / name)
    for path in sorted(folder.rglob("*")):  # of an earlier, different study
        if path.is_file() and path.relative_to(folder) not in wanted:
            path.unlink()
    return folder


def results_folder(study: Study, results: Path | None = None) -> Path:
    """``<results>/<profile>``: as given, else the project's ``results/``, else (read-only project) the workspace's."""
    root = results or PROJECT_ROOT / "results"
    if results is None and not os.access(root if root.is_dir() else PROJECT_ROOT, os.W_OK):
        root = study.workspace.root / "results"
    return root / study.profile.name


@contextmanager
def run_lock(study: Study, *, force: bool = False) -> Iterator[None]:
    """Hold the workspace for one run of a profile.

    The lock is the kernel's, so it goes when its process does, however it ends; the note beside it only says who holds
    it. ``force`` is for a lock left on a shared disk by a machine that is gone.

    Raises:
        WorkspaceError: Another run holds it: who, since when, and what to do.
    """
    path = study.workspace.root / ".locks" / f"run-{study.profile.name}.lock"
    note = path.with_suffix(".json")
    holder: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        holder |= {**json.loads(note.read_text(encoding="utf-8")), "seen": note.stat().st_mtime}
    alive = holder.get("host") == socket.gethostname() and process_alive(holder.get("pid"), holder["seen"])
    if force and not alive:
        path.unlink(missing_ok=True)
    busy = WorkspaceError(
        f"another run of profile '{study.profile.name}' is at work in this workspace",
        where=study.workspace.root,
        found=f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}",
        fix="wait for it or stop it; if that machine is gone, run with --force-unlock",
    )
    if alive:  # also where the file system has no locks
        raise busy
    with locked(path, 0, busy):
        try:
            if holder:
                log.info("an earlier run (process %(pid)s, since %(since)s) ended early; going on from there", holder)
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_text(note, json.dumps(facts))
            yield
        finally:
            note.unlink(missing_ok=True)
