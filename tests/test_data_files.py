"""Files of the web and of the hub: nothing has its name before it was hashed, and every way to fail says what to do."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HANGS, plain_smoke
from hub_server import REVISION, HubServer
from pydantic import ValidationError

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import Profile
from boom_utils.data import files
from boom_utils.data.fetching import chosen_datasets, files_of
from boom_utils.data.files import HubFile, HubSet, RemoteFile, fetch, fetch_hub, hub_paths, read_lock
from boom_utils.data.manifest import load_manifest
from boom_utils.errors import BoomError, ConfigError, DownloadError, ManifestError, UnreachableError

BODY = b"one line\n" * 40_000
ROWS = {f"data/part-{number}.jsonl": b'{"query": "a"}\n' * (number + 1) for number in range(3)}


def remote(name: str = "owner/data/resolve/main/file.txt", body: bytes = BODY, **changes: Any) -> RemoteFile:
    facts = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    return RemoteFile(url=f"https://files.example/{name}", **{**facts, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def repository(request: pytest.FixtureRequest) -> None:
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").repos["owner/data"] = {**ROWS, "notes.md": b"notes", "file.txt": BODY}


@pytest.fixture
def web(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same server answers for https://files.example, and pooch does not wait."""
    import pooch

    get = pooch.HTTPDownloader.__call__

    def local(self: Any, url: str, *to: Any) -> Any:
        return get(self, url.replace("https://files.example", hub.endpoint), *to)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", local)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    return hub


# --- what a manifest may name -----------------------------------------------------------------------------------------


BAD = (
    "http://h.org/f ftp://h.org/f file:///etc/x /etc/x ../x C:\\x \\\\host\\s https://h.org https://h.org/ "
    "https://h.org/a//b https://h.org/../x https://h.org/a/%2e%2e/b https://h.org/a%2fb https://u:secret@h.org/f "
    "https://h.org:1/f https://h.org/f?token=secret https://h.org/f#secret https://h.org/a%20b https://h.org/a\x00b "
    "https://h.org/é https://h.org/nul https://h.org/com1.txt https://h.org/a. https://h.org/a/./b https://H.org/f https://h.org/a\\b"
)


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    "url", [*BAD.split(" "), "https://h.org/a b", f"https://h.org/{'a' * 201}", "https://h.org" + "/abc" * 300]
)
def test_only_safe_addresses_are_accepted_and_no_secret_is_shown(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RemoteFile(url=url, sha256="0" * 64, bytes=1)
    assert "secret" not in str(caught.value)


@pytest.mark.promise(5)
def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "files.example").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="symbolic link"):
        fetch([remote()], tmp_path / "downloads")


# --- https ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (503, "answers 503"),
        ("truncate", "ChunkedEncodingError|ConnectionError|found: sha256"),
        ("corrupt", "found: sha256 [0-9a-f]{64}\n"),
    ],
)
def test_what_came_wrong_is_fetched_again_and_what_stays_wrong_names_url_expected_found_and_the_mirror(
    web: HubServer, tmp_path: Path, trouble: Any, said: str
) -> None:
    web.faults["file.txt"] = [trouble] * (1 + files.RETRIES)
    with pytest.raises(DownloadError) as caught:
        fetch([remote()], tmp_path / "downloads")
    text = str(caught.value)
    assert re.search(said, text) and remote().url in text and remote().sha256 in text and "BOOM_MIRROR" in text
    assert names(tmp_path / "downloads") == [] and web.gets("file.txt") == 1 + files.RETRIES
    web.faults["file.txt"] = [trouble]
    assert fetch([remote()], tmp_path / "downloads") == [remote()]
    assert (tmp_path / "downloads" / remote().path).read_bytes() == BODY
    assert names(tmp_path / "downloads") == [str(remote().path)]
    assert fetch([remote()], tmp_path / "downloads") == [] and web.gets("file.txt") == 3 + files.RETRIES


@pytest.mark.promise(3)
def test_a_file_that_was_changed_is_found_and_never_replaced_in_silence(web: HubServer, tmp_path: Path) -> None:
    fetch([remote()], tmp_path)
    (tmp_path / remote().path).write_bytes(b"edited")
    with pytest.raises(DownloadError, match=r"(?s)expected: sha256 .*found: sha256 .*was changed.*delete the file"):
        fetch([remote()], tmp_path)
    assert (tmp_path / remote().path).read_bytes() == b"edited" and web.gets("file.txt") == 1


KILLED = """
import os, sys
from pathlib import Path
from boom_utils.data import files

def killed(source, target):
    with open(source, "rb") as read, open(target, "wb", buffering=0) as write:
        write.write(read.read(160_000))
    os.kill(os.getpid(), 9)

files.shutil.copyfile = killed
files.fetch([files.RemoteFile.model_validate_json(sys.argv[2])], Path(sys.argv[1]))
"""


@pytest.mark.promise(1)
def test_a_killed_download_leaves_no_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror" / remote().path).parent.mkdir(parents=True)
    (tmp_path / "mirror" / remote().path).write_bytes(BODY)
    monkeypatch.setenv("BOOM_MIRROR", str(tmp_path / "mirror"))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "downloads"), remote().model_dump_json()]
    assert subprocess.run(command, timeout=HANGS, cwd=PROJECT_ROOT).returncode == -signal.SIGKILL
    assert not (tmp_path / "downloads" / remote().path).exists()
    fetch([remote()], tmp_path / "downloads")
    assert (tmp_path / "downloads" / remote().path).read_bytes() == BODY


@pytest.mark.promise(2)
def test_without_a_network_the_first_refused_connection_ends_everything_and_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import requests

    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = list[str]()

    def refused(self: Any, url: str, *_: Any) -> None:
        asked.append(url)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            requests.get(f"http://127.0.0.1:{free.getsockname()[1]}/file?token=secret")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", refused)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setattr(files, "progress", partial(files.progress, every_seconds=-1))
    many = [remote(f"data/{number}.txt") for number in range(477)]
    said = r"(?s)cannot be reached.*where: files\.example\n.*refused\n.*network.*BOOM_MIRROR"
    with pytest.raises(UnreachableError, match=said) as caught:
        fetch(many, tmp_path)
    assert "secret" not in str(caught.value) and "to go" not in caplog.text
    assert len({*asked}) < len(many), "only those that were on their way"


def test_a_file_that_is_gone_stops_no_other_and_all_that_are_gone_are_named(web: HubServer, tmp_path: Path) -> None:
    gone = [remote(f"owner/data/resolve/main/gone-{number}.txt") for number in range(2)]
    with pytest.raises(DownloadError, match=r"(?s)2 of 3 files.*gone-0\.txt: the server answers 404.*gone-1\.txt"):
        fetch([gone[0], remote(), gone[1]], tmp_path)
    assert names(tmp_path) == [str(remote().path)]


@pytest.mark.promise(4)
def test_a_full_disk_is_said_before_the_start_and_in_the_middle(
    web: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pooch.HTTPDownloader.__call__", full)
        with pytest.raises(DownloadError, match=r"(?s)found: No space left on device.*try again"):
            fetch([remote()], tmp_path)
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(DownloadError, match=r"(?s)no space.*expected: 360,000 bytes free.*found: 1,000 bytes free"):
            fetch([remote()], tmp_path)
    assert web.gets("file.txt") == 0 and names(tmp_path) == []
    assert fetch([remote()], tmp_path) == [remote()]


def test_a_mirror_is_read_instead_of_the_network_with_the_same_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOM_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(ConfigError, match="BOOM_MIRROR is no folder"):
        fetch([remote()], tmp_path / "downloads")
    place = tmp_path / "mirror" / remote().path
    place.parent.mkdir(parents=True)
    with pytest.raises(
        DownloadError, match=r"(?s)1 of 1 files are not in the mirror.*files\.example/owner/data/.*file"
    ):
        fetch([remote()], tmp_path / "downloads")
    place.write_bytes(b"damaged")
    with pytest.raises(DownloadError, match=r"(?s)not the file the manifest names.*found: sha256 \w+ in BOOM_MIRROR"):
        fetch([remote()], tmp_path / "downloads")
    assert names(tmp_path / "downloads") == []
    place.write_bytes(BODY)
    assert fetch([remote()], tmp_path / "downloads") == [remote()]


@pytest.mark.promise(6)
def test_offline_names_ten_missing_files_and_how_many_more(tmp_path: Path) -> None:
    many = [remote(f"data/{number}.txt") for number in range(17)]
    with pytest.raises(DownloadError, match=r"(?s)offline.*data/9\.txt\n    - and 7 more") as caught:
        fetch(many, tmp_path)
    assert "data/10.txt" not in str(caught.value)


# --- the hub ----------------------------------------------------------------------------------------------------------


def asked(tmp_path: Path, path: str = "data/part-*.jsonl", sha256: str | None = None, **changes: Any) -> HubSet:
    files, lock = [HubFile(path=path, sha256=sha256)], tmp_path / "d.lock.json"
    return HubSet(**{"repo": "owner/data", "revision": None, "files": files, "lock": lock, **changes})


@pytest.mark.promise(3)
def test_the_first_download_locks_what_nobody_stated_and_holds_to_what_the_manifest_states(
    hub: HubServer, tmp_path: Path
) -> None:
    for path, sha256, said in (
        ("data/part-1.jsonl", "0" * 64, r"part-1\.jsonl: sha256 .*, stated is 0000"),
        ("data/none-*", None, r"no file is data/none-\*"),
    ):
        with pytest.raises(DownloadError, match=rf"(?s)not those stated.*{said}"):
            fetch_hub(asked(tmp_path, path, sha256))
    assert not (tmp_path / "d.lock.json").exists()
    found = fetch_hub(asked(tmp_path))
    assert {name: path.read_bytes() for name, path in found.items()} == ROWS
    lock = read_lock(asked(tmp_path))
    assert lock is not None and lock.revision == REVISION
    assert lock.files == {name: hashlib.sha256(content).hexdigest() for name, content in ROWS.items()}
    before = len(hub.requests)
    assert hub_paths(asked(tmp_path)) == found and len(hub.requests) == before
    lock.files["data/part-0.jsonl"] = "0" * 64
    asked(tmp_path).lock.write_text(lock.model_dump_json())
    with pytest.raises(DownloadError, match=r"(?s)not those stated.*part-0\.jsonl: sha256 .*stated is 0000"):
        fetch_hub(asked(tmp_path))
    asked(tmp_path).lock.write_text("{")
    with pytest.raises(ManifestError, match="lock file cannot be read"):
        fetch_hub(asked(tmp_path))


@pytest.mark.promise(2)
@pytest.mark.parametrize(("trouble", "plain"), [("corrupt", False), ("corrupt", True), ("truncate", False)])
def test_bytes_that_come_damaged_from_the_hub_are_fetched_again(
    hub: HubServer, tmp_path: Path, trouble: str, plain: bool
) -> None:
    name = "data/part-2.jsonl"
    hub.plain |= {name} if plain else set()
    hub.faults[name] = [trouble, None]
    assert fetch_hub(asked(tmp_path))[name].read_bytes() == ROWS[name]
    (tmp_path / "hub-cache").rename(tmp_path / "old")
    hub.faults[name], hub.forever = ["corrupt"], True
    with pytest.raises(DownloadError, match=r"(?s)damaged files.*part-2\.jsonl.*HF_ENDPOINT"):
        fetch_hub(asked(tmp_path, lock=tmp_path / "e.lock.json"))


@pytest.mark.promise(6)
def test_offline_what_is_missing_of_the_hub_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DownloadError, match=r"(?s)never fetched.*owner/data.*boom data fetch"):
        hub_paths(asked(tmp_path))
    found = fetch_hub(asked(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests)
    assert fetch_hub(asked(tmp_path)) == found
    found["data/part-1.jsonl"].unlink()
    for get in (hub_paths, fetch_hub):
        with pytest.raises(DownloadError, match=r"(?s)HF_HUB_OFFLINE forbids.*missing: data/part-1\.jsonl.*HF_HOME"):
            get(asked(tmp_path))
    with pytest.raises(DownloadError, match=r"(?s)HF_HUB_OFFLINE forbids.*datasets/owner/other.*HF_HOME"):
        fetch_hub(asked(tmp_path, repo="owner/other", lock=tmp_path / "o.json"))
    assert len(hub.requests) == before


@pytest.mark.promise(36)
@pytest.mark.parametrize(
    ("trouble", "kind", "said"),
    [
        ("gated", ConfigError, r"gated.*accept its terms.*HF_TOKEN"),
        ("repo", ConfigError, r"no such repository.*HF_TOKEN"),
        ("revision", ConfigError, "no such revision"),
        ("tree", DownloadError, r"answers 500.*HF_ENDPOINT"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do_and_no_secret(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    trouble: str, kind: type[BoomError], said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_canary123")
    caplog.set_level(logging.DEBUG)
    hub.signature, hub.forever = "canary456", True
    hub.gated |= {"owner/data"} if trouble == "gated" else set()
    hub.faults["tree"] = [500] if trouble == "tree" else []
    other = {"repo": {"repo": "owner/gone"}, "revision": {"revision": "2" * 40}}
    with pytest.raises(kind, match=f"(?s){said}") as caught:
        fetch_hub(asked(tmp_path, **other.get(trouble, {})))
    assert "canary" not in str(caught.value) + caplog.text


# --- boom data fetch, boom check --------------------------------------------------------------------------------------


def profile_of_files(**corpus: object) -> Profile:
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "open_text", "datasets": ["squad_nqg"], "new_datasets": ["conala"], **corpus}
    raw["evaluation"] |= {"in_domain": ["squad_dev"], "out_of_domain": ["cisi"]}
    return Profile.model_validate(raw)


def test_a_profile_fetches_what_it_trains_on_and_what_it_evaluates_and_no_more() -> None:
    manifest = load_manifest("open_text")
    chosen = chosen_datasets(manifest, profile_of_files())
    assert [dataset.id for dataset in chosen] == ["squad_nqg", "conala", "squad_dev", "cisi"]
    assert len(files_of(chosen)) == 2 + 48 + 3 + 2
    with pytest.raises(ConfigError, match="no dataset 'cosqa'"):
        chosen_datasets(manifest, profile_of_files(), ["cosqa"])
    with pytest.raises(ManifestError, match="did you mean 'squad_nqg'"):
        chosen_datasets(manifest, profile_of_files(datasets=["squad_nqq"]))
    assert len(files_of([manifest.dataset("arxiv_s2s"), manifest.dataset("arxiv_p2p")])) == 1
