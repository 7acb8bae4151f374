"""Running notebooks: failures are said, parameters are checked first, secrets stay out, one run at a time."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from conftest import HANGS

from boom_utils.artifacts import PROJECT_ROOT, Artifact, Node, Workspace, write_text
from boom_utils.cli import _COMMANDS, _parser, main
from boom_utils.config import Ratio, load_profile
from boom_utils.errors import ConfigError, NotebookError, WorkspaceError
from boom_utils.reporting.figures import study_figures
from boom_utils.reporting.results import read_results
from boom_utils.study import runner
from boom_utils.study.graph import NOTEBOOKS, Study, checked_parameters
from boom_utils.study.runner import run, run_lock, typed_parameters

CANARY = "hf_canary0123456789abcdefghij"


SECRETS = {"hf_token": "x", "level": CANARY, "api_key": "1"}
PARAMETERS = """
profile = "smoke"
level = 1
share = 0.5
strict = True
prompt = "Given a question"  # of queries
names = ["a"]
sizes = [1, 2]
free = None
"""


class Setup:
    """A study of one notebook that makes one artifact."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.workspace = folder / "notebooks", Workspace(folder / "wörk space")
        self.folder.mkdir()
        monkeypatch.setattr(runner, "NOTEBOOK_FOLDER", self.folder)
        monkeypatch.setattr(runner, "NOTEBOOKS", {"01_toy": ("toy",)})
        monkeypatch.setattr(runner, "publish", lambda study, results: None)
        self.text = "one"
        self.study: Any = SimpleNamespace(
            profile=load_profile("smoke").model_copy(update={"name": "toy"}),
            workspace=self.workspace,
            nodes_of=lambda name: {"toy": self.node()},
        )

    def node(self) -> Node:
        def make(out: Path, _: Mapping[str, Artifact]) -> None:
            write_text(out / "file.txt", self.text)

        return Node("toy", 1, "toy", {"text": self.text}, make)

    def notebook(self, *sources: str) -> None:
        book = nbformat.v4.new_notebook()
        book.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        parameters = nbformat.v4.new_code_cell(PARAMETERS)
        parameters.metadata["tags"] = ["parameters"]
        book.cells = [parameters, *(nbformat.v4.new_code_cell(source) for source in sources)]
        nbformat.write(book, self.folder / "01_toy.ipynb")

    def run(self, **parameters: str) -> None:
        self.workspace.build(self.node())  # what the notebook would have made
        run(self.study, ["01_toy"], {"profile": "toy", **parameters})

    @property
    def executed(self) -> Path:
        return self.workspace.root / "executed" / "toy"

    def all_text(self) -> str:
        files = [path for path in self.workspace.root.rglob("*") if path.is_file()]
        return "\n".join(path.read_bytes().decode("utf-8", "replace") for path in files)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, monkeypatch)


def test_processes_started_by_a_command_are_quick_unless_the_user_has_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000")
    assert main(["run", "--profile", "smoky"]) == 2
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "67108864" and os.environ["MALLOC_MMAP_THRESHOLD_"] == "1000"


def test_bars_of_transformers_are_off_in_a_notebook_that_imports_it_first() -> None:
    script = "from transformers.utils import logging; from boom_utils.progress import log_to_stdout; log_to_stdout()"
    tested = f"{script}; assert not logging.is_progress_bar_enabled()"
    shown = {name: text for name, text in os.environ.items() if not name.endswith("DISABLE_PROGRESS_BARS")}
    subprocess.run([sys.executable, "-c", tested], env=shown, timeout=HANGS, check=True)


@pytest.mark.promise(34)
@pytest.mark.promise(36)
def test_a_failing_cell_ends_the_command_with_its_message_no_record_and_no_token(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr("boom_utils.study.graph.Study", lambda profile, **_: setup.study)
    setup.notebook("import os\ntoken = os.environ['HF_TOKEN']\nraise RuntimeError(f'cannot use {token}')", "print(0)")
    setup.workspace.build(setup.node())
    assert main(["run", "--profile", "smoke"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"(?s)01_toy failed: RuntimeError: cannot use .*01_toy\.failed\.ipynb", said)
    assert "RuntimeError" in (setup.executed / "01_toy.failed.ipynb").read_text()
    assert not (setup.workspace.root / "notebook").exists() and not (setup.executed / "01_toy.ipynb").exists()
    assert CANARY not in said + setup.all_text()


@pytest.mark.promise(34)
def test_a_dead_kernel_is_reported(setup: Setup) -> None:
    setup.notebook("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match=r"the kernel died \(it was killed, or there was not enough memory"):
        setup.run()


@pytest.mark.promise(34)
def test_notebooks_are_run_by_this_python_whatever_kernel_is_registered(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    argv = [str(tmp_path / "other" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_text(kernel, json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    setup.notebook("import sys; assert sys.executable == " + repr(sys.executable))
    setup.run()


@pytest.mark.promise(35)
def test_a_parameter_is_given_to_the_notebooks_that_have_it() -> None:
    chosen = ["01_data", "05_scheduling_ablations"]
    assert typed_parameters(chosen, {"rows_shown": "5"}) == {chosen[0]: {"rows_shown": 5}, chosen[1]: {}}
    with pytest.raises(ConfigError, match=r"01_data, 05_scheduling_ablations: no parameter 'rows_show'; did you mean"):
        typed_parameters(chosen, {"rows_show": "5"})


@pytest.mark.promise(35)
@pytest.mark.promise(36)
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("levle", "2", r"01_toy: no parameter 'levle'; did you mean 'level'\?"),
        *(("level", text, f"01_toy: 'level' takes a value such as 1, not '{text}'") for text in ("many", "2.5", "")),
        ("share", "half", "'share' takes a value such as 0.5"),
        ("strict", "perhaps", "'strict' takes a value such as True"),
        *(("names", text, r"'names' takes a value such as \['a'\]") for text in ("a: 1", "[a")),
        ("sizes", "[1, x]", r"'sizes' takes a value such as \[1, 2\]"),
        *(
            (name, text, "looks like a secret")
            for name, text in (("hf_token", "x"), ("level", CANARY), ("api_key", "1"))
        ),
    ],
)
def test_an_unknown_parameter_a_value_of_another_type_or_a_secret_is_an_error_before_anything_runs(
    setup: Setup, name: str, text: str, message: str
) -> None:
    setup.notebook("raise SystemExit('must not run')")
    with pytest.raises(ConfigError, match=message):
        setup.run(**{name: text})
    assert not setup.workspace.root.joinpath("executed").exists()


@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("prompt", text, text) for text in ("query: ", "no", "", "12", "[a]", "null", "a=b")),
        *(("level", "0012", 12), ("level", "-3", -3), ("share", "1e-3", 0.001), ("share", "1", 1.0)),
        *(("strict", text, text == "true") for text in ("true", "false")),
        *(("names", "[no, 1, 'x y']", ["no", "1", "x y"]), ("names", "[]", []), ("sizes", "[3]", [3])),
        ("free", "{a: 1}", {"a": 1}),
    ],
)
def test_a_parameter_keeps_the_type_that_its_notebook_gives_it(
    setup: Setup, name: str, text: str, value: object
) -> None:
    setup.notebook("pass")
    found = typed_parameters(["01_toy"], {name: text})["01_toy"][name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.promise(35)
@pytest.mark.promise(36)
@pytest.mark.promise(38)
def test_a_notebook_runs_again_exactly_if_its_source_parameters_or_inputs_change_and_never_shows_a_token(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boom_utils.study.graph.Study", lambda profile, **_: setup.study)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    execute, seen = runner.papermill.execute_notebook, []
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda *a, **k: (seen.append(1), execute(*a, **k)))
    setup.notebook("import os; print('told', repr(prompt), os.environ['HF_TOKEN'], dict(os.environ))")
    for times, prompt, text in ((1, "query: ", "one"), (1, "query: ", "one"), (2, "no", "one"), (3, "no", "two")):
        setup.text = text
        setup.workspace.build(setup.node())
        assert main(["run", "--set", f"prompt={prompt}"]) == 0
        assert len(seen) == times
        assert f"told '{prompt}' [HF_TOKEN removed]" in (setup.executed / "01_toy.ipynb").read_text()
        assert CANARY not in setup.all_text()
    setup.notebook("pass")
    setup.run()
    assert len(seen) == 4


def test_a_notebook_that_does_not_make_what_the_graph_says_is_an_error(setup: Setup) -> None:
    setup.notebook("print('does nothing')")
    with pytest.raises(NotebookError, match="did not make: toy"):
        run(setup.study, ["01_toy"], {})


@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        *((int, value, "Input should be a valid integer") for value in ("5", 1.5, True)),
        (Ratio, 2.0, "Input should be less than or equal to 1"),
        (str, 3, "Input should be a valid string"),
    ],
)
def test_a_value_of_another_type_in_an_open_notebook_is_the_kits_error(kind: Any, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)parameters of this notebook.*level: {said}.*what to do"):
        checked_parameters({"level": value, "name": "a"}, name=str, level=kind)


@pytest.mark.parametrize("notebook", [name for name in NOTEBOOKS if name < "08"])
def test_a_notebook_opens_with_a_figure_that_the_committed_results_have(notebook: str) -> None:
    book = nbformat.read(runner.NOTEBOOK_FOLDER / f"{notebook}.ipynb", as_version=4)
    first = next(cell.source for cell in book.cells if cell.cell_type == "code")
    shown = re.search(r"committed_figure\((.*)\)", first)
    assert shown, first
    name, study = (*ast.literal_eval(f"({shown[1]},)"), "mini")[:2]
    assert name in study_figures(read_results(PROJECT_ROOT / "results" / study))


HOLD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from boom_utils.artifacts import Workspace
from boom_utils.study.runner import run_lock
with run_lock(SimpleNamespace(profile=SimpleNamespace(name="toy"), workspace=Workspace(Path(sys.argv[1])))):
    print("held", flush=True)
    time.sleep(3600)
"""


NO_LOCKS = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""
"""Of a file system without locks."""


def holding(root: Path, before: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", before + HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.promise(37)
@pytest.mark.parametrize("flock", ["", NO_LOCKS])
def test_a_second_run_names_the_first_and_goes_on_once_that_is_killed(
    setup: Setup, caplog: pytest.LogCaptureFixture, flock: str
) -> None:
    process = holding(setup.workspace.root, flock)
    expected = rf"(?s)process {process.pid} on {re.escape(socket.gethostname())}, since 20.*--force-unlock"
    with pytest.raises(WorkspaceError, match=expected), run_lock(setup.study):
        pass
    with pytest.raises(WorkspaceError), run_lock(setup.study, force=True):
        pytest.fail("a lock of a living process must not be taken over")
    process.kill()
    process.wait()
    with caplog.at_level(logging.INFO, logger="boom_utils"), run_lock(setup.study):
        assert f"process {process.pid}" in caplog.text and "going on from there" in caplog.text


@pytest.mark.promise(37)
@pytest.mark.parametrize("flock", ["", NO_LOCKS])
def test_force_unlock_takes_over_the_lock_of_a_machine_that_is_gone(setup: Setup, flock: str) -> None:
    process = holding(setup.workspace.root, flock)
    note = setup.workspace.root / ".locks" / "run-toy.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "host": "gone"}))
    with run_lock(setup.study, force=True):
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize("wrong", [["--only", "09"], ["--from", "12_x"], ["--set", "novalue"], ["--profile", "smoky"]])
def test_a_wrong_argument_exits_with_2_and_makes_nothing(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path))
    assert main(["run", *wrong]) == 2
    assert not list(tmp_path.iterdir())


def test_notebooks_are_chosen_by_number_or_name() -> None:
    assert runner.choose(["3"], None) == ["03_merge"]
    assert runner.choose(["07", "01_data"], None) == ["01_data", "07_tables_and_figures"]
    assert runner.choose([], "03") == list(NOTEBOOKS)[2:]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/far/away"), ["No space left", "where: /far/away", "free some space"]),
        (PermissionError(13, "Permission denied", "/far/x"), ["where: /far/x", "a folder that you may write"]),
        (OSError(18, "Invalid cross-device link", "/a", None, "/b"), ["where: /a -> /b", "on a sound disk"]),
        (KeyboardInterrupt(), ["boom run --profile smoke"]),
    ],
)
def test_an_error_of_the_operating_system_or_ctrl_c_is_said_with_its_file_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, said: list[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("boom_utils.study.runner.run", failing)
    assert main(["run", "--profile", "smoke"]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    shown = capsys.readouterr().out
    assert [text for text in said if text not in shown] == []


def test_a_terminal_that_is_not_utf_8_gets_escapes_and_no_traceback() -> None:
    command, ascii_only = (
        [sys.executable, "-m", "boom_utils", "run", "--profile", "größe"],
        {"PYTHONIOENCODING": "ascii"},
    )
    done = subprocess.run(command, capture_output=True, timeout=HANGS, env={**os.environ, **ascii_only}, check=False)
    assert done.returncode == 2
    assert b"error: there is no profile 'gr" in done.stdout
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Logging error" not in done.stderr


def test_the_options_of_the_command_are_those_that_were_decided(capsys: pytest.CaptureFixture[str]) -> None:
    decided = {
        "run": "force-unlock from only profile results set",
        "build": "profile receipt",
        "plan": "device-tflops gpus jobs profile",
        "train": "allow-change nproc profile",
        "merge": "plan profile shard-gb threads",
        "evaluate": "out profile tasks",
        "fit": "base compare held-out method most-rows out prompt ratios update",
        "data fetch": "manifest offline only profile",
        **dict.fromkeys(("data convert", "data sample", "data overlap"), "on-bad-line profile"),
        "report": "figures finished mteb profile results",
        "trace": "all",
        "card": "profile",
        "push": "dry-run profile public repo yes",
        "check": "profile",
    }
    for command, expected in decided.items():
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        said = capsys.readouterr().out
        assert f"Example: boom {command} " in said
        found = set(re.findall(r"--([a-z-]+)", said)) - {"help"}
        assert sorted(found) == expected.split(), command


def test_the_example_of_every_command_names_what_the_smoke_study_has() -> None:
    study = Study(smoke_profile := load_profile("smoke"))
    tasks = [*smoke_profile.evaluation.in_domain, *smoke_profile.evaluation.out_of_domain]
    known = {"node": study.nodes, "member": [one.name for one in smoke_profile.members], "tasks": tasks}
    known |= {
        **dict.fromkeys(("model", "other"), smoke_profile.model_names),
        "recipe": [one.name for one in smoke_profile.merges],
    }
    known |= {"profile": ["smoke", "mini"], "only": runner.choose([], None)}
    for name, (function, _) in _COMMANDS.items():
        example = (function.__doc__ or "").partition("Example: boom ")[2]
        assert example.startswith(name), name
        options = vars(_parser().parse_args(shlex.split(example)))
        for option, names in known.items():
            given = options.get(option) or []
            for one in [given] if isinstance(given, str) else given:
                assert any(str(have).startswith(one) for have in names), (name, option, one)


@pytest.mark.promise(40)
def test_a_read_only_project_gets_its_results_in_the_workspace(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.os, "access", lambda path, mode: False)
    assert runner.results_folder(setup.study) == setup.workspace.root / "results" / "toy"
    assert runner.results_folder(setup.study, Path("given")) == Path("given") / "toy"
