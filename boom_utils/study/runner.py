"""Run the notebooks of a study headless, in order, with papermill; what is up to date starts no kernel.

An executed notebook is an artifact keyed by its source, its parameters and the artifacts it makes. One run a profile
and workspace at a time. The kit has no scheduler: this is a loop.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from boom_utils.artifacts import PROJECT_ROOT, Artifact, Node, atomic_path, digest_of, process_alive, write_text
from boom_utils.errors import ConfigError, NotebookError, WorkspaceError, bullet_list, nearest
from boom_utils.progress import quick_processes
from boom_utils.reporting.provenance import PAGE
from boom_utils.study.graph import NOTEBOOKS, Study

log = logging.getLogger(__name__)

NOTEBOOK_FOLDER = PROJECT_ROOT / "notebooks"
VERSION = 1
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_SECRET_NAME = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class RunOptions:
    """What to run.

    Args:
        only: Numbers or names of notebooks (``03``); all when empty.
        start: Run this one and all after it.
        parameters: Values for the notebooks' ``parameters`` cells, besides ``profile``.
        results: Folder that gets ``<profile>/``; the project's ``results/`` when None.
        force_unlock: Take over the lock of a run on a machine that is gone.
    """

    only: Sequence[str] = ()
    start: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    results: Path | None = None
    force_unlock: bool = False


def run(study: Study, profile_argument: str, options: RunOptions) -> dict[str, Path]:
    """Execute the chosen notebooks that are not up to date, publish the results, and say where everything is.

    Args:
        study: The opened study.
        profile_argument: What the notebooks get as ``profile``: a name, or the path of a YAML file.
        options: What to run.

    Returns:
        Name -> place, for the closing message.

    Raises:
        ConfigError: A notebook or parameter that does not exist; nothing has run then.
        NotebookError: A cell failed or the kernel died.
        WorkspaceError: Another run holds the workspace.
    """
    chosen = choose(options.only, options.start)
    quick_processes()  # kernels inherit it
    profile_argument = _absolute_profile(profile_argument)
    values = {"profile": profile_argument, **options.parameters}
    check_parameters(chosen, values)
    executed = study.workspace.root / "executed" / study.profile.name
    with run_lock(study, force=options.force_unlock):
        for number, name in enumerate(chosen, start=1):
            began = time.monotonic()
            fresh = run_notebook(study, name, values, executed)
            took = f"executed in {time.monotonic() - began:.0f} s" if fresh else "up to date"
            log.info("[%d/%d] %s: %s", number, len(chosen), name, took)
        places = {"executed notebooks (.ipynb and .html)": executed}
        if published := publish(study, options.results):
            places |= {name: published / name for name in ("scores", "tables", "figures")}
            places["report"] = published / PAGE
    return places


def choose(only: Sequence[str], start: str | None) -> list[str]:
    """Names of the notebooks to run, in order.

    Raises:
        ConfigError: A number or name that fits none.
    """
    names = list(NOTEBOOKS)

    def named(text: str) -> str:
        fits = [name for name in names if name == text or name.split("_")[0] == text.zfill(2)]
        if not fits:
            raise ConfigError(f"there is no notebook '{text}'{nearest(text, names)}", expected=", ".join(names))
        return fits[0]

    if only:
        wanted = {named(text) for text in only}
        return [name for name in names if name in wanted]
    return names[names.index(named(start)) :] if start else names


def check_parameters(notebooks: Sequence[str], values: Mapping[str, Any]) -> None:
    """Refuse parameters that a notebook does not declare, and values that look like secrets, before anything runs.

    Raises:
        ConfigError: All problems together.
    """
    problems = []
    for name, value in values.items():
        if _SECRET_NAME.search(name) or _TOKEN.search(str(value)):
            problems.append(f"{name}: looks like a secret; executed notebooks keep parameters, so set HF_TOKEN instead")
    for notebook in notebooks:
        known = declared_parameters(notebook)
        unknown = [name for name in values if name not in known]
        problems += [f"{notebook}: no parameter '{name}'{nearest(name, known)}" for name in unknown]
    if problems:
        raise ConfigError("parameters the notebooks cannot take", found=bullet_list(problems), fix="see --help")


def declared_parameters(notebook: str) -> list[str]:
    """Names in the ``parameters`` cell of a notebook.

    Raises:
        ConfigError: The notebook is missing.
    """
    path = NOTEBOOK_FOLDER / f"{notebook}.ipynb"
    if not path.is_file():
        raise ConfigError(f"notebook {notebook} is missing", where=path.name, fix="restore it from the repository")
    return list(papermill.inspect_notebook(str(path)))


def run_notebook(study: Study, name: str, values: Mapping[str, Any], executed: Path) -> bool:
    """Execute one notebook unless it is up to date; copy it and its HTML to ``executed``. True when it was executed."""
    fresh = study.workspace.root / ".tmp" / f"{study.profile.name}-{name}.ipynb"
    node = notebook_node(study, name, values, fresh)
    found = study.workspace.find(node)
    if needed := found is None:
        log.info("%s: started", name)
        _execute(name, fresh, values, executed)
        _check_made(study, name, node)
        found = study.workspace.build(node)
        fresh.unlink()
    _copy(found, executed)
    return needed


def notebook_node(study: Study, name: str, values: Mapping[str, Any], fresh: Path) -> Node:
    """The executed notebook as a node: its source and parameters, and the artifacts it makes as inputs.

    It is made from ``fresh``, which papermill has written by then, and holds the notebook and its HTML.
    """

    def make(out: Path, _: Mapping[str, Artifact]) -> None:
        from nbconvert import HTMLExporter

        notebook = _without_paths(nbformat.read(fresh, as_version=4))
        write_text(out / f"{name}.ipynb", scrub(nbformat.writes(notebook)))
        page, _resources = HTMLExporter().from_notebook_node(notebook)
        write_text(out / f"{name}.html", scrub(page))

    source = nbformat.read(NOTEBOOK_FOLDER / f"{name}.ipynb", as_version=4)
    cells = [[cell.cell_type, cell.source] for cell in source.cells]
    # A profile given by path stands for its content, which the inputs carry.
    shown = {**values, "profile": study.profile.name}
    config = {"notebook": name, "source": digest_of(cells), "parameters": shown}
    return Node("notebook", VERSION, f"executed copy of {name}", config, make, study.nodes_of(name))


def _execute(name: str, output: Path, values: Mapping[str, Any], executed: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    source = NOTEBOOK_FOLDER / f"{name}.ipynb"
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            parameters=dict(values),
            kernel_name="python3",
            cwd=str(source.parent),
            progress_bar=False,
            log_output=True,
            extra_arguments=["--IPKernelApp.log_level=50"],  # its notes on sockets, at the start and when interrupted
        )
    except PapermillExecutionError as error:
        raise _failure(name, f"{error.ename}: {_ANSI.sub('', str(error.evalue))}", output, executed) from error
    except DeadKernelError as error:
        hint = "it was killed, or there was not enough memory; finished stages are kept, so run again with more memory"
        raise _failure(name, f"the kernel died ({hint})", output, executed) from error


def _failure(name: str, what: str, output: Path, executed: Path) -> NotebookError:
    """Keep the half-executed notebook beside the others, marked as failed, and say what happened."""
    place = executed / f"{name}.failed.ipynb"
    if output.is_file():
        write_text(place, scrub(nbformat.writes(_without_paths(nbformat.read(output, as_version=4)))))
        output.unlink()
    return NotebookError(
        f"notebook {name} failed: {scrub(what)}", where=place, fix="open it to see the cell and its traceback"
    )


def _check_made(study: Study, name: str, node: Node) -> None:
    """Refuse a notebook that ran but did not make its artifacts: building them here would hide that."""
    missing = [label for label, made in node.inputs.items() if study.workspace.find(made) is None]
    if missing:
        raise NotebookError(f"notebook {name} did not make: {', '.join(missing)}", fix="restore it from the repository")


def _without_paths(notebook: Any) -> Any:
    """Drop papermill's notes of absolute paths from the metadata."""
    for key in ("input_path", "output_path", "environment_variables"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    return notebook


def scrub(text: str) -> str:
    """``text`` without access tokens (those of the environment, and everything shaped like one) and private paths."""
    for variable in _TOKEN_VARIABLES:
        if value := os.environ.get(variable):
            text = text.replace(value, f"[{variable} removed]")
    for place, name in ((str(PROJECT_ROOT), "."), (sys.prefix, "<environment>"), (str(Path.home()), "~")):
        text = text.replace(place + "/", name + "/")
    return _TOKEN.sub("[token removed]", text)


def _copy(artifact: Artifact, folder: Path) -> None:
    for name in artifact.record["outputs"]:
        _copy_if_changed(artifact.path / name, folder / name)
        (folder / name).with_suffix(".failed.ipynb").unlink(missing_ok=True)


def _copy_if_changed(source: Path, target: Path) -> None:
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def publish(study: Study, results: Path | None) -> Path | None:
    """Copy results, tables, figures and their page to ``<results>/<profile>``; None while they are not made yet."""
    found = [study.workspace.find(study.node(name)) for name in ("results", "report")]
    if any(artifact is None for artifact in found):
        return None
    folder = results_folder(study, results)
    wanted = {Path(name): artifact.path / name for artifact in found if artifact for name in artifact.record["outputs"]}
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


def _absolute_profile(argument: str) -> str:
    """Notebooks run in their own folder, so a profile given as a file is passed by its absolute path."""
    return str(Path(argument).resolve()) if argument.endswith((".yaml", ".yml")) else argument


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
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = _holder(note)
    if force and not (holder.get("host") == socket.gethostname() and process_alive(holder.get("pid"))):
        path.unlink(missing_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WorkspaceError(
            f"another run of profile '{study.profile.name}' is at work in this workspace",
            where=study.workspace.root,
            found=f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}",
            fix="wait for it or stop it; if that machine is gone, run with --force-unlock",
        ) from None
    try:
        if holder:
            log.info("an earlier run (process %s, since %s) ended early; going on from there", *_brief(holder))
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        write_text(note, json.dumps(facts))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _brief(holder: Mapping[str, Any]) -> tuple[Any, Any]:
    return holder.get("pid"), holder.get("since")
