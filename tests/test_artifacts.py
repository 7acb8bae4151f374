"""The workspace: whole or absent, made once, rebuilt exactly where an input changed."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import HANGS, damaged

from boom_utils.artifacts import (
    CHECKPOINTS,
    PROJECT_ROOT,
    RECORD,
    Artifact,
    Node,
    Workspace,
    atomic_path,
    canonical_json,
    derive_seed,
    write_json,
    write_text,
)
from boom_utils.errors import WorkspaceError


class Counter:
    """Makes nodes that write one file and count how often they were made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def node(self, name: str, text: str = "x", version: int = 1, **inputs: Node) -> Node:
        def make(out: Path, found: Mapping[str, Artifact]) -> dict[str, str]:
            self.made.append(name)
            write_text(out / "file.txt", text + "".join((a.path / "file.txt").read_text() for a in found.values()))
            return {"said": text}

        return Node(name, version, name, {"text": text}, make, inputs)


@pytest.mark.promise(38)
def test_what_is_finished_is_not_made_again_and_a_change_rebuilds_exactly_its_descendants(tmp_path: Path) -> None:
    counter, workspace = Counter(), Workspace(tmp_path)

    for text, version, made in (
        ("one", 1, ["left", "middle", "right", "sink"]),
        ("one", 1, []),
        ("two", 1, ["left", "middle", "sink"]),
        ("two", 2, ["left", "middle", "sink"]),
    ):
        counter.made.clear()
        left, right = counter.node("left", text, version), counter.node("right")
        workspace.build(counter.node("sink", left=counter.node("middle", left=left), right=right))
        assert sorted(counter.made) == made
    many = right
    for number in range(40):  # two ways from each to the one before: 2 ** 40 in all
        many = counter.node(str(number), left=many, right=many)
    assert list(workspace.find_all({"many": many, "right": right})) == ["right"]


KILLED = """
import sys, time
from pathlib import Path
from boom_utils.artifacts import Node, Workspace, write_text
def make(out, _):
    for number in range(1000):
        write_text(out / "checkpoints" / f"{number}.txt", "x" * 1000)
        write_text(out / f"{number}.txt", "x" * 1000)
        print(number, flush=True)
        time.sleep(0.005)
Workspace(Path(sys.argv[1])).build(Node("a", 1, "a", {}, make))
"""


@pytest.mark.parametrize(("after", "kept"), [(0, ()), (17, ()), (17, (CHECKPOINTS,))])
def test_kill_9_in_the_middle_leaves_no_artifact_and_the_next_run_makes_it_from_the_checkpoints(
    tmp_path: Path, after: int, kept: tuple[str, ...]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < after:
        pass
    process.kill()
    process.wait()
    found: set[str] = set()

    def make(out: Path, _: Mapping[str, Artifact]) -> None:
        found.update(path.relative_to(out).as_posix() for path in out.rglob("*.txt") if path.name[0] != ".")
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        write_text(out / "file.txt", "x")

    workspace, node = Workspace(tmp_path), Node("a", 1, "a", {}, make, kept=kept)
    assert workspace.find(node) is None
    assert sorted(path.name for path in workspace.build(node).path.iterdir()) == ["file.txt", RECORD]
    assert found >= {f"{CHECKPOINTS}/{number}.txt" for number in range(after if kept else 0)}
    assert all(name.startswith(CHECKPOINTS) for name in found) and bool(found) == bool(kept)
    assert not list((tmp_path / ".tmp").iterdir())


def test_two_processes_asking_for_one_artifact_make_it_once(tmp_path: Path) -> None:
    script = KILLED.replace("range(1000)", "range(40)").replace(
        "print(number, flush=True)", 'print("made", flush=True) if number == 0 else None'
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=HANGS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(said).count("made") == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_lock)
    counter = Counter()
    Workspace(tmp_path).build(counter.node("b", a=counter.node("a")))
    assert counter.made == ["a", "b"]
    assert caplog.text.count("this file system has no locks") == 1
    assert f"{tmp_path}/.locks" in caplog.text and "set BOOM_HOME to a folder on a local disk" in caplog.text


def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    def make(out: Path, _: Mapping[str, Artifact]) -> None:
        write_text(out / "half.txt", "half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError, match="No space left") as caught:
        Workspace(tmp_path).build(node := Node("a", 1, "stage a", {}, make))
    assert str(caught.value.filename).startswith(str(tmp_path / ".tmp" / "a-"))
    assert Workspace(tmp_path).find(node) is None
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_file_or_a_record_changed_later_is_an_error_not_an_input(tmp_path: Path) -> None:
    workspace, node = Workspace(tmp_path), Counter().node("a")
    made = workspace.build(node)
    (made.path / "file.txt").write_text("longer than before")
    with pytest.raises(WorkspaceError, match="changed after it was finished"):
        workspace.find(node)
    (made.path / "file.txt").write_text("y")
    found = workspace.find(node)
    assert found is not None
    assert damaged(found) == ["file.txt"]
    (made.path / RECORD).write_text("{half")
    with pytest.raises(WorkspaceError, match=r"(?s)record.json.*delete the folder"):
        workspace.find(node)


@pytest.mark.promise(39)
def test_a_record_holds_no_absolute_path_user_or_host(tmp_path: Path) -> None:
    counter = Counter()
    made = Workspace(tmp_path / "päth with spaces").build(counter.node("b", a=counter.node("a")))
    text = (made.path / RECORD).read_text(encoding="utf-8")
    for secret in (str(tmp_path), str(Path.home()), str(PROJECT_ROOT), os.uname().nodename):
        assert secret not in text
    record = json.loads(text)
    assert set(record["inputs"]["a"]) == {"stage", "key", "sha256"}
    assert record["environment"]["packages"]["torch"]


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"value": float("nan")})
    assert (tmp_path / "file").read_text() == "old"


def test_seeds_of_names_differ_and_they_and_keys_depend_on_no_order_or_hash_seed() -> None:
    assert len({derive_seed(0, "sample", str(number)) for number in range(200)}) == 200
    assert canonical_json({"a": 1, "b": [1, 2]}) == canonical_json({"b": [1, 2], "a": 1})
    command = [sys.executable, "-c", "from boom_utils.artifacts import derive_seed; print(derive_seed(3, 'x', 1))"]
    for seed in ("0", "random"):
        said = subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed})
        assert int(said) == derive_seed(3, "x", 1)


def test_an_attempt_goes_on_from_the_checkpoints_of_the_one_that_failed_and_from_nothing_else(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def make(out: Path, _: Mapping[str, Artifact]) -> None:
        seen.append(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()))
        write_text(out / CHECKPOINTS / f"step-{len(seen)}", "x")
        write_text(out / f"half-{len(seen)}", "x")
        if len(seen) < 3:
            raise KeyboardInterrupt if len(seen) == 1 else ValueError

    workspace = Workspace(tmp_path)
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            workspace.build(Node("a", 1, "a", {}, make, kept=(CHECKPOINTS,)))
    artifact = workspace.build(Node("a", 1, "a", {}, make, kept=(CHECKPOINTS,)))
    assert seen == [[], ["checkpoints/step-1"], ["checkpoints/step-1", "checkpoints/step-2"]]
    assert sorted(artifact.record["outputs"]) == [*(f"checkpoints/step-{n}" for n in (1, 2, 3)), "half-3"]
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.parametrize("kept", [(), (CHECKPOINTS,)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_where_locks_do_not_hold_two_writers_in_lock_step_make_one_whole_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: tuple[str, ...], elsewhere: bool
) -> None:
    """The second begins between two files of the first; on another machine it cannot know that the first one lives."""
    monkeypatch.setattr("boom_utils.artifacts.locked", lambda *_: nullcontext())
    began, go_on, found = threading.Event(), threading.Event(), []
    names = (f"{CHECKPOINTS}/1", "model", f"{CHECKPOINTS}/2", "card")

    def first(out: Path, _: Mapping[str, Artifact]) -> None:
        for name in names[:2]:
            write_text(out / name, name)
        began.set()
        assert go_on.wait(HANGS)
        for name in names[2:]:
            write_text(out / name, name)

    def second(out: Path, _: Mapping[str, Artifact]) -> None:
        found.extend(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
        write_text(out / names[0], names[0])
        go_on.set()
        if not (elsewhere and kept):
            thread.result(HANGS)  # the first one ends before the second has written all
        for name in names[1:]:
            write_text(out / name, name)

    with ThreadPoolExecutor() as pool:
        thread = pool.submit(Workspace(tmp_path).build, Node("a", 1, "a", {}, first, kept=kept))
        assert began.wait(HANGS)
        monkeypatch.setattr("platform.node", lambda: "another" if elsewhere else platform.uname().node)
        made = Workspace(tmp_path).build(Node("a", 1, "a", {}, second, kept=kept))
        try:
            assert thread.result(HANGS).path == made.path
        except WorkspaceError as error:
            assert elsewhere and kept and "another process goes on with a" in str(error)
    assert found == ([names[0]] if elsewhere and kept else [])
    assert sorted(made.record["outputs"]) == sorted(names) and damaged(made) == []
    assert not list((tmp_path / ".tmp").iterdir())


def test_what_killed_attempts_left_is_removed_when_nobody_can_live_in_it(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old, workspace, node = time.time() - 2 * 24 * 3600, Workspace(tmp_path), Counter().node("a")
    key = workspace.build(node).path.name
    shutil.rmtree(tmp_path / "a")
    left = {
        f"{platform.node()}-{ended.pid}-1": True,
        f"{platform.node()}-{os.getpid()}-1": False,
        f"{platform.node()}-{os.getpid()}-2": True,  # of a process that had the number before: older than this one
        "else.where-1-1": False,
        "else.where-1-2": True,
    }
    for name in left:
        write_text(tmp_path / ".tmp" / f"a-{key}.{name}" / "half.txt", "half")
        if name.endswith("2"):
            os.utime(tmp_path / ".tmp" / f"a-{key}.{name}", (old, old))
    workspace.build(node)
    there = {path.name.removeprefix(f"a-{key}.") for path in (tmp_path / ".tmp").iterdir()}
    assert there == {name for name, gone in left.items() if not gone}


def test_what_only_says_how_it_went_is_recorded_but_nothing_depends_on_it(tmp_path: Path) -> None:
    def node(log_text: str, text: str = "x") -> Node:
        def make(out: Path, _: Mapping[str, Artifact]) -> None:
            write_text(out / "model", text)
            write_text(out / "log", log_text)

        return Node("a", 1, "a", {}, make, observations=("log",))

    built = [Workspace(tmp_path / name).build(made) for name, made in {"1": node("3 s"), "2": node("4 s")}.items()]
    other = Workspace(tmp_path / "3").build(node("3 s", "y"))
    assert built[0].digest == built[1].digest != other.digest
    assert built[0].record["outputs"]["log"] != built[1].record["outputs"]["log"]
    assert damaged(built[0]) == []
