"""Files of the hub against a hub on this machine: what comes, what is noted, and everything that can go wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HANGS, QUESTIONS, plain_smoke
from hub_server import REVISION, HubServer, git_blob

from boom_utils.cli import main
from boom_utils.config import Profile
from boom_utils.data.corpus_files import fetch_datasets, hub_files_of
from boom_utils.data.download import FetchOptions
from boom_utils.data.hub_files import fetch_files, file_url, find_files, known_files, known_rows, lock_path
from boom_utils.data.manifest import load_manifest
from boom_utils.data.manifest_hub import HubOrigin
from boom_utils.errors import DownloadError, ManifestError
from boom_utils.study.check import check_machine

SECRET = "hf_averysecrettoken"
ROWS = [{"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}"]} for n in range(5)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


FILES = {
    "README.md": b"# data\n",
    "data/nq-00000-of-00002.parquet": parquet(ROWS[:3]),
    "data/nq-00001-of-00002.parquet": parquet(ROWS[3:]),
    "data/nq_other-00000-of-00001.parquet": parquet(ROWS[:1]),
    "lines.jsonl": JSONL,
    "lines.jsonl.gz": gzip.compress(JSONL, mtime=0),
}


def origin(*files: str, **changes: object) -> HubOrigin:
    raw = {
        "repo": "owner/data",
        "revision": REVISION,
        "files": files or ("data/nq-*.parquet",),
        "licence": "undeclared",
        "homepage": "https://huggingface.co/datasets/owner/data",
    }
    return HubOrigin.model_validate({**raw, **changes})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that is asked although the tests are offline, and a library that does not wait."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    hurried = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
    for module in (huggingface_hub.file_download, huggingface_hub.utils._http):
        monkeypatch.setattr(module, "time", hurried)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with HubServer({"owner/data": dict(FILES)}) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.endpoint}/")
        yield server


WAITED: list[float] = []


def options(**changes: Any) -> FetchOptions:
    WAITED.clear()
    return FetchOptions(**{"mirror": None, "offline": False, "sleep": WAITED.append, "attempts": 3, **changes})


def fetch(folder: Path, made: HubOrigin | None = None, **changes: Any) -> dict[str, int]:
    origins, how = {"nq": made or origin()}, options(**changes)
    return fetch_files(origins, find_files(origins, folder, how), folder, how)


def place(folder: Path, path: str) -> Path:
    return folder / "huggingface.co/datasets/owner/data/resolve" / REVISION / path


def there(folder: Path) -> dict[str, bytes]:
    """Files that have a final name."""
    root = place(folder, "")
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def problem(folder: Path, made: HubOrigin | None = None, **changes: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(folder, made, **changes)
    assert caught.value.exit_code == 1
    assert SECRET not in str(caught.value)
    return str(caught.value)


# --- what comes -------------------------------------------------------------------------------------------------------


def test_patterns_become_files_with_sha256_bytes_and_rows_in_the_lock_file(hub: HubServer, tmp_path: Path) -> None:
    assert fetch(tmp_path) == {"nq": 5}
    names = ["data/nq-00000-of-00002.parquet", "data/nq-00001-of-00002.parquet"]
    assert there(tmp_path) == {name: FILES[name] for name in names}
    locked = json.loads(lock_path("nq", origin(), tmp_path).read_text(encoding="utf-8"))["files"]
    assert locked == {
        file_url("owner/data", REVISION, name): {
            "sha256": hashlib.sha256(FILES[name]).hexdigest(),
            "bytes": len(FILES[name]),
            "rows": rows,
        }
        for name, rows in zip(names, (3, 2), strict=True)
    }
    assert known_rows("nq", origin(), tmp_path) == 5
    assert not list((tmp_path / ".download").glob("*.hub"))


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.jsonl.gz"])
def test_jsonl_comes_too_and_what_is_there_is_not_asked_for_again(hub: HubServer, tmp_path: Path, name: str) -> None:
    assert fetch(tmp_path, origin(name)) == {"nq": 5}
    asked = len(hub.requests)
    assert fetch(tmp_path, origin(name)) == {"nq": 5}
    assert fetch(tmp_path, origin(name), offline=True) == {"nq": 5}
    assert len(hub.requests) == asked


def test_a_revision_that_is_not_chosen_yet_is_noted_and_kept(hub: HubServer, tmp_path: Path) -> None:
    made = origin(revision=None)
    fetch(tmp_path, made)
    assert {file.url.split("/")[7] for file in known_files("nq", made, tmp_path) or ()} == {REVISION}
    shutil.rmtree(place(tmp_path, ""))
    hub.repos["owner/data"]["data/nq-00002-of-00002.parquet"] = parquet(ROWS)  # a commit later
    assert fetch(tmp_path, made) == {"nq": 5}


def test_a_small_file_outside_large_file_storage_is_compared_by_its_git_hash(hub: HubServer, tmp_path: Path) -> None:
    hub.plain.add("lines.jsonl")
    assert fetch(tmp_path, origin("lines.jsonl")) == {"nq": 5}
    hub.faults["lines.jsonl"] = ["corrupt"]
    message = problem(tmp_path / "again", origin("lines.jsonl"))
    assert f"git blob {git_blob(JSONL)}" in message
    assert there(tmp_path / "again") == {}


def test_a_mirror_serves_the_hub_too(hub: HubServer, tmp_path: Path) -> None:
    fetch(tmp_path / "mirror")
    asked = len(hub.requests)
    assert fetch(tmp_path / "other", mirror=tmp_path / "mirror") == {"nq": 5}
    assert fetch(tmp_path / "third", origin(revision=None), mirror=tmp_path / "mirror") == {"nq": 5}
    assert "mirror has 0 revisions" in problem(tmp_path / "x", origin(repo="owner/no"), mirror=tmp_path / "mirror")
    assert len(hub.requests) == asked


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (origin(repo="owner/dta"), ["no such dataset", "private", "correct `repo`", "HF_TOKEN"]),
        (origin(revision="f" * 40), ["no such revision", "f" * 40]),
        (origin("data/nqq-*.parquet"), ["no file of datasets/owner/data is data/nqq-*.parquet", "dataset 'nq'"]),
        (origin("lines.json"), ["did you mean 'lines.jsonl'"]),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub: HubServer, tmp_path: Path, made: HubOrigin, said: list[str]) -> None:
    message = problem(tmp_path, made)
    for part in said:
        assert part in message
    assert there(tmp_path) == {}


def test_a_file_that_vanished_after_it_was_listed_is_named(hub: HubServer, tmp_path: Path) -> None:
    how, origins = options(), {"nq": origin()}
    listing = find_files(origins, tmp_path, how)
    del hub.repos["owner/data"]["data/nq-00001-of-00002.parquet"]
    with pytest.raises(DownloadError, match="no such file at this revision") as caught:
        fetch_files(origins, listing, tmp_path, how)
    assert "data/nq-00001-of-00002.parquet of datasets/owner/data" in str(caught.value)
    assert known_files("nq", origin(), tmp_path) is None  # a lock file is complete, or not there


def test_a_gated_dataset_says_how_to_be_let_in(hub: HubServer, tmp_path: Path) -> None:
    hub.gated.add("owner/data")
    message = problem(tmp_path, origin("lines.jsonl"))
    for part in ("gated", "accept the terms at https://huggingface.co/datasets/owner/data", "set HF_TOKEN"):
        assert part in message


@pytest.mark.parametrize(("status", "said"), [(401, "HF_TOKEN"), (403, "set HF_TOKEN"), (404, "the hub answers 404")])
def test_a_refusal_is_not_asked_for_again(hub: HubServer, tmp_path: Path, status: int, said: str) -> None:
    hub.faults["lines.jsonl"] = [status]
    assert said in problem(tmp_path, origin("lines.jsonl"))
    assert (WAITED, hub.gets("lines.jsonl"), there(tmp_path)) == ([], 1, {})


@pytest.mark.parametrize(("key", "waited"), [("lines.jsonl", [7.0, 7.0]), ("tree", [])])
def test_a_busy_hub_is_asked_again_after_the_time_it_names(
    hub: HubServer, tmp_path: Path, key: str, waited: list[float]
) -> None:
    """For a listing the library waits by itself, five times."""
    hub.faults[key], hub.retry_after = [503, 503], "7"
    assert fetch(tmp_path, origin("lines.jsonl")) == {"nq": 5}
    assert waited == WAITED


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_stays_busy_is_given_up_and_nothing_gets_a_name(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.faults["lines.jsonl"], hub.forever = [status], True
    message = problem(tmp_path, origin("lines.jsonl"))
    assert f"no success in 3 attempts: the hub answers {status}" in message
    assert "lines.jsonl of datasets/owner/data" in message
    assert len(WAITED) == 2
    assert there(tmp_path) == {}


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub: HubServer, tmp_path: Path) -> None:
    hub.faults["lines.jsonl"], hub.forever, hub.retry_after = [503], True, "3600"
    assert "asks to come back in 3600 s" in problem(tmp_path, origin("lines.jsonl"))
    assert WAITED == []


def test_a_truncated_body_is_completed_or_given_up(hub: HubServer, tmp_path: Path) -> None:
    hub.faults["lines.jsonl"] = ["truncate"]
    assert fetch(tmp_path / "one", origin("lines.jsonl")) == {"nq": 5}
    assert there(tmp_path / "one") == {"lines.jsonl": JSONL}
    hub.faults["lines.jsonl"], hub.forever = ["truncate"], True
    hub.repos["owner/data"]["lines.jsonl"] = JSONL * 200  # too long for the few bytes of every answer to add up
    assert "the body ended before the file was complete" in problem(tmp_path / "two", origin("lines.jsonl"))
    assert there(tmp_path / "two") == {}


def test_a_corrupt_body_of_the_right_size_never_gets_its_name(hub: HubServer, tmp_path: Path) -> None:
    """huggingface_hub accepts it: it compares sizes only."""
    hub.faults["data/nq-00000-of-00002.parquet"] = ["corrupt"]
    message = problem(tmp_path)
    assert hashlib.sha256(FILES["data/nq-00000-of-00002.parquet"]).hexdigest() in message
    assert "damaged" in message
    assert list(there(tmp_path)) == ["data/nq-00001-of-00002.parquet"]
    assert fetch(tmp_path) == {"nq": 5}


def test_a_later_download_that_differs_from_the_lock_file_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    fetch(tmp_path, origin("lines.jsonl"))
    place(tmp_path, "lines.jsonl").unlink()
    hub.repos["owner/data"]["lines.jsonl"] = JSONL.replace(b"query 0", b"query 9")
    assert hashlib.sha256(JSONL).hexdigest() in problem(tmp_path, origin("lines.jsonl"))
    assert there(tmp_path) == {}


def test_facts_of_the_manifest_are_compared_with_the_hub_the_lock_file_and_the_rows(
    hub: HubServer, tmp_path: Path
) -> None:
    size, digest = len(JSONL), hashlib.sha256(JSONL).hexdigest()
    right = {"path": "lines.jsonl", "sha256": digest, "bytes": size, "rows": 5}
    assert fetch(tmp_path, origin(files=[right])) == {"nq": 5}
    assert f"the hub lists sha256 {digest}" in problem(tmp_path / "a", origin(files=[{**right, "bytes": 7}]))
    with pytest.raises(ManifestError, match="has 5 rows"):
        fetch(tmp_path / "b", origin(files=[{**right, "rows": 6}]))
    with pytest.raises(ManifestError, match="in the manifest"):
        fetch(tmp_path, origin(files=[{**right, "sha256": "a" * 64}]))


def test_a_damaged_lock_file_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    fetch(tmp_path)
    path = lock_path("nq", origin(), tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ManifestError, match="lock file cannot be read"):
        fetch(tmp_path)


def test_the_disk_is_looked_at_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert "not enough space" in problem(tmp_path)
    assert hub.gets("data/nq-00000-of-00002.parquet") == 0


def test_offline_names_the_datasets_that_nobody_knows(hub: HubServer, tmp_path: Path) -> None:
    message = problem(tmp_path, offline=True)
    assert "nq: datasets/owner/data" in message
    assert "unset HF_HUB_OFFLINE" in message
    assert hub.requests == []
    fetch(tmp_path)
    place(tmp_path, "data/nq-00000-of-00002.parquet").unlink()
    assert "offline, and 1 of 2 files are not there" in problem(tmp_path, offline=True)


def test_the_token_is_sent_and_is_in_no_log_error_or_file(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults["data/nq-00000-of-00002.parquet"] = [503, "truncate"]
    fetch(tmp_path)
    problem(tmp_path, origin(repo="owner/no"))
    assert f"Bearer {SECRET}" in {one.headers.get("authorization") for one in hub.requests} | {
        one.headers.get("Authorization") for one in hub.requests
    }
    assert SECRET not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_signed_address_of_another_host_gets_no_token_and_is_in_no_log(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.signature = "averysecretsignature"
    hub.faults["lines.jsonl"] = [503, "truncate", None, "corrupt"]
    assert fetch(tmp_path, origin("lines.jsonl")) == {"nq": 5}
    problem(tmp_path / "again", origin("lines.jsonl"))
    stored = [one for one in hub.requests if one.path.startswith("/stored")]
    assert len(stored) >= 3
    assert not [one for one in stored if SECRET in str(one.headers)]
    assert hub.signature not in caplog.text


# --- the command ------------------------------------------------------------------------------------------------------


def raw_corpus(repo: str = "owner/data") -> dict[str, Any]:
    def dataset(name: str, *files: str) -> dict[str, Any]:
        hub = origin(*files, repo=repo).model_dump(mode="json")
        return {
            "id": name,
            **QUESTIONS,
            "hub": hub,
        }

    return {
        "name": "tiny",
        "description": "A corpus of a few small files.",
        "source": {"kind": "hub_files"},
        "benchmarks": ["MTEB(eng, v2)"],
        "datasets": [dataset("nq"), dataset("lines", "lines.jsonl.gz")],
    }


def start(folder: Path, hub: HubServer, *words: str) -> subprocess.Popen[str]:
    """`boom data fetch` as a process with the environment of a user who is online."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(raw_corpus()), encoding="utf-8")
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": SECRET, "BOOM_HOME": str(folder / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf")}
    command = [sys.executable, "-m", "boom_utils", "data", "fetch", "--manifest", str(folder / "tiny.yaml"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_commands_at_once_both_end_well_with_one_download_of_each_file(hub: HubServer, tmp_path: Path) -> None:
    both = [start(tmp_path, hub), start(tmp_path, hub)]
    said = [process.communicate(timeout=HANGS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "all files are right" in said[0]
    assert SECRET not in "".join(said)
    assert set(there(tmp_path / "home/downloads")) == {*[name for name in FILES if "nq-" in name], "lines.jsonl.gz"}
    assert hub.gets("lines.jsonl.gz") == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_leaves_no_file_under_a_final_name_and_the_next_one_ends_well(
    hub: HubServer, tmp_path: Path, how: signal.Signals
) -> None:
    name = "data/nq-00000-of-00002.parquet"
    rows = [{"query": os.urandom(400).hex(), "pos": [os.urandom(400).hex()], "neg": ["x"]} for _ in range(20_000)]
    hub.repos["owner/data"][name] = content = parquet(rows)
    hub.slow = 0.02
    process = start(tmp_path, hub, "--only", "nq")
    until = time.monotonic() + HANGS
    while not hub.gets(name) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(how)
    said = process.communicate(timeout=HANGS)[0]
    assert process.returncode == (-how if how == signal.SIGKILL else 130), said
    assert how == signal.SIGKILL or "To go on: boom data fetch" in said
    downloads = tmp_path / "home/downloads"
    assert name not in there(downloads)
    hub.slow = 0.0
    dataset = load_manifest(tmp_path / "tiny.yaml").dataset("nq")
    done = fetch_datasets([dataset], downloads, options())
    assert there(downloads)[name] == content
    assert done.table().splitlines()[-1].split()[:3] == ["all", "1", "2"]
    assert hub_files_of([dataset], downloads)[1] == []


def test_check_says_what_is_there_and_asks_nobody(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw_corpus()), encoding="utf-8")
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "tiny", "datasets": ["nq"], "new_datasets": ["lines"]}
    manifest = load_manifest(tmp_path / "tiny.yaml")
    monkeypatch.setenv("BOOM_HOME", str(tmp_path))
    for name in ("_packages", "_devices", "_disk", "_hub"):
        monkeypatch.setattr(f"boom_utils.study.check.{name}", list)
    monkeypatch.setattr("boom_utils.study.check.load_profile", lambda _: Profile.model_validate(raw))
    monkeypatch.setattr("boom_utils.study.check.load_manifest", lambda _: manifest)
    caplog.set_level("INFO", logger="boom_utils")
    assert check_machine("tiny") == 1  # offline, as all tests are, and nothing is there
    assert "0 of 0 known files are in the workspace, 2 datasets were never fetched" in caplog.text
    fetch_datasets(manifest.datasets, tmp_path / "downloads", options())
    asked = len(hub.requests)
    assert check_machine("tiny") == 0
    assert "3 of 3 known files are in the workspace" in caplog.text
    assert len(hub.requests) == asked


def test_own_files_have_nothing_to_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_corpus()
    raw["source"]["kind"] = "local_files"
    for dataset in raw["datasets"]:
        del dataset["hub"]
        dataset["local"] = {"files": ["a.jsonl"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert main(["data", "fetch", "--manifest", str(tmp_path / "tiny.yaml")]) == 0
    assert "nothing to fetch, its files are your own" in capsys.readouterr().out
