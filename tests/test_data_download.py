"""Downloads: what has its final name is the right file, whatever the server, the disk or a kill does."""

from __future__ import annotations

import email.utils
import errno
import gzip
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HANGS, SHARED
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import Frozen
from boom_utils.data import download, stored_files
from boom_utils.data.download import FetchOptions, fetch, fetch_locked, lock_entries
from boom_utils.data.remote_files import LockEntry, RemoteFile, read_lock, relative_path, url_problem, write_lock
from boom_utils.data.transfer import retry_after
from boom_utils.errors import BoomError, ConfigError, DownloadError, ManifestError
from boom_utils.yaml_files import parse

Answer = Callable[["Handler", bytes], None]


def content(size: int, name: str = "x") -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


# --- a server with faults ---------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [])
        if self.path not in self.server.files and not answers:
            return status(404)(self, b"")
        answer = answers.pop(0) if answers else serve
        return answer(self, self.server.files.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        pass

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)


class Server(ThreadingHTTPServer):
    """Serves ``files``; the answers listed for a path are given first, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, *_: object) -> None:
        pass  # clients that were killed

    def file(self, path: str, body: bytes, *answers: Answer, **changes: Any) -> RemoteFile:
        self.files[path], self.answers[path] = body, list(answers)
        facts = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), **changes}
        return remote(f"http://127.0.0.1:{self.server_address[1]}{path}", **facts)

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]


def remote(url: str, **facts: Any) -> RemoteFile:
    return RemoteFile.model_validate({"url": url, **facts}, context={"loopback": True})


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def rest_of(handler: Handler, body: bytes) -> bytes:
    """Send the head that the request asks for; returns the body still to be sent."""
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    if handler.headers.get("If-Range", etag(body)) != etag(body):
        start = 0
    if start == 0:
        handler.head(200, Content_Length=len(body), ETag=etag(body))
    elif start >= len(body):
        handler.head(416, Content_Length=0, Content_Range=f"bytes */{len(body)}")
    else:
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(206, Content_Length=len(body) - start, Content_Range=span, ETag=etag(body))
    return body[start:]


def serve(handler: Handler, body: bytes) -> None:
    handler.wfile.write(rest_of(handler, body))


def drop_after(count: int) -> Answer:
    def answer(handler: Handler, body: bytes) -> None:
        handler.wfile.write(rest_of(handler, body)[:count])
        handler.hang_up()

    return answer


def ignore_range(handler: Handler, body: bytes) -> None:
    handler.head(200, Content_Length=len(body))
    handler.wfile.write(body)


def status(code: int, body: bytes = b"no", **headers: object) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.head(code, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return answer


def page(handler: Handler, _: bytes) -> None:
    status(200, b"<html>please sign in</html>", Content_Type="text/html; charset=utf-8")(handler, b"")


def send(other: bytes, **headers: object) -> Answer:
    return status(200, other, **headers)


def without_length(other: bytes) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        handler.head(200, Connection="close")
        handler.wfile.write(other)
        handler.hang_up()

    return answer


def endless(handler: Handler, _: bytes) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    try:
        while True:
            handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")
            handler.server.asked.append(("block", {}))
    except OSError:
        handler.close_connection = True


def redirect(location: str, code: int = 302) -> Answer:
    return status(code, b"", Location=location)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("BOOM_MIRROR", raising=False)


class Pauses(list[float]):
    """Stands for sleeping: remembers how long it would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def options(**changes: Any) -> FetchOptions:
    return FetchOptions(**{"allow_loopback_http": True, "sleep": Pauses(), "timeout": 5.0, **changes})


def left_in(folder: Path) -> list[str]:
    """What lies in a folder, but notes about it."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files if path.parts[0] != stored_files.STATE)


# --- the plain way ----------------------------------------------------------------------------------------------------


@pytest.mark.promise(1)
def test_files_lie_at_host_and_path_and_are_asked_for_once(server: Server, tmp_path: Path) -> None:
    bodies = {f"/a/{name}.txt": content(5000, name) for name in "abcdefg"}
    files = [server.file(path, body) for path, body in bodies.items()]
    found = fetch([*files, files[0]], tmp_path, options())
    assert found == [tmp_path / "127.0.0.1" / path[1:] for path in [*bodies, "/a/a.txt"]]
    assert [path.read_bytes() for path in found[:-1]] == list(bodies.values())
    assert fetch(files, tmp_path, options()) == found[:-1]
    assert len(server.asked) == 7
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.asked)
    assert left_in(tmp_path) == sorted(f"127.0.0.1{path}" for path in bodies)


def test_an_empty_file_and_a_page_that_is_the_file_are_files(server: Server, tmp_path: Path) -> None:
    html = b"<html>the file itself</html>"
    files = [
        server.file("/empty", b""),
        server.file("/page.html", html, send(html, Content_Type="text/html"), sha256=None, bytes=None),
        server.file("/text", html, send(html, Content_Type="text/html")),
    ]
    assert [path.read_bytes() for path in fetch(files, tmp_path, options())] == [b"", html, html]


def test_a_per_cent_sign_is_decoded_in_the_name_and_sent_as_it_is(server: Server, tmp_path: Path) -> None:
    file = server.file("/a%20b/%C3%A9_(1),&.txt", content(10))
    assert fetch([file], tmp_path, options()) == [tmp_path / "127.0.0.1" / "a b" / "é_(1),&.txt"]
    assert server.asked[0][0] == "/a%20b/%C3%A9_(1),&.txt"


def test_progress_of_a_large_file_is_logged_sparsely(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def shown(items: Any, total: int, label: str) -> Any:
        seen.append((total, label))
        return items

    monkeypatch.setattr("boom_utils.data.transfer.progress", shown)
    body = content(17 * 2**20)
    assert fetch([server.file("/large.bin", body)], tmp_path, options())[0].read_bytes() == body
    assert seen == [(17, "large.bin (MiB)")]


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(2)
@pytest.mark.parametrize("known", [True, False])
def test_a_broken_transfer_goes_on_where_it_broke_off(server: Server, tmp_path: Path, known: bool) -> None:
    body, pauses = content(100_000), Pauses()
    facts = {} if known else {"sha256": None, "bytes": None}
    file = server.file("/f", body, drop_after(30_000), drop_after(0), drop_after(20_000), **facts)
    [path] = fetch([file], tmp_path, options(sleep=pauses))
    assert path.read_bytes() == body
    assert server.ranges() == [None, "bytes=30000-", "bytes=30000-", "bytes=50000-"]
    assert all(headers["If-Range"] == etag(body) for _, headers in server.asked[1:])
    assert [0.5 * 2**k <= pause <= 2**k for k, pause in enumerate(pauses)] == [True] * 3


@pytest.mark.promise(2)
def test_a_server_that_ignores_the_range_makes_it_start_anew(server: Server, tmp_path: Path) -> None:
    body = content(50_000)
    file = server.file("/f", body, drop_after(30_000), ignore_range)
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges() == [None, "bytes=30000-"]


@pytest.mark.promise(2)
def test_a_file_that_changed_between_two_parts_is_not_glued_together(server: Server, tmp_path: Path) -> None:
    old, new = content(50_000, "old"), content(50_000, "new")

    def careless(handler: Handler, body: bytes) -> None:  # heeds no If-Range
        start = int(handler.headers["Range"][6:-1])
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.head(206, Content_Length=len(body) - start, Content_Range=span)
        handler.wfile.write(body[start:])

    def drop_old(handler: Handler, _: bytes) -> None:
        drop_after(20_000)(handler, old)

    file = server.file("/f", new, drop_old, careless)
    assert fetch([file], tmp_path, options())[0].read_bytes() == new
    assert server.ranges() == [None, "bytes=20000-", None]
    unknown = server.file("/g", new, drop_old, sha256=None, bytes=None)
    assert fetch([unknown], tmp_path, options())[0].read_bytes() == new


@pytest.mark.promise(2)
@pytest.mark.parametrize("answer", [status(416), status(206, content(9), Content_Range="bytes 0-8/9"), status(206)])
def test_a_range_that_is_refused_or_is_another_one_makes_it_start_anew(
    server: Server, tmp_path: Path, answer: Answer
) -> None:
    body = content(50_000)
    file = server.file("/f", body, drop_after(30_000), answer)
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges() == [None, "bytes=30000-", None]


@pytest.mark.promise(2)
def test_a_range_from_another_place_is_not_put_after_the_bytes_that_are_there(server: Server, tmp_path: Path) -> None:
    body = content(50_000)
    other = status(206, body[10_000:40_000], Content_Range="bytes 10000-39999/50000")
    file = server.file("/f", body, drop_after(20_000), other, sha256=None, bytes=None)
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges() == [None, "bytes=20000-", None]


@pytest.mark.promise(2)
def test_bytes_without_sha256_and_without_validator_are_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    body = content(50_000)

    def drop(handler: Handler, body: bytes) -> None:
        handler.head(200, Content_Length=len(body), ETag='W/"weak"')
        handler.wfile.write(body[:20_000])
        handler.hang_up()

    file = server.file("/f", body, drop, sha256=None)
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges() == [None, None]


@pytest.mark.promise(2)
@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path, code: int) -> None:
    body = content(100)
    file = server.file("/f", body, status(code), status(code))
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert len(server.asked) == 3


@pytest.mark.promise(2)
def testretry_after_is_heeded_as_seconds_and_as_a_date(server: Server, tmp_path: Path) -> None:
    date, pauses = email.utils.formatdate(time.time() + 40, usegmt=True), Pauses()
    answers = [status(429, Retry_After=7), status(503, Retry_After=date), status(503, Retry_After="soon")]
    fetch([server.file("/f", b"x", *answers)], tmp_path, options(sleep=pauses))
    assert pauses[0] == 7
    assert 35 <= pauses[1] <= 40
    assert pauses[2] <= 4
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.promise(2)
def test_a_server_that_wants_us_back_tomorrow_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", b"x", status(429, Retry_After=86400))
    with pytest.raises(DownloadError, match="come back in 86400 s"):
        fetch([file], tmp_path, options())
    assert len(server.asked) == 1


@pytest.mark.promise(2)
def test_attempts_end_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    body = content(50_000)
    file = server.file("/f", body, drop_after(10_000), *[status(500)] * 5)
    with pytest.raises(DownloadError, match=r"no success in 3 attempts: the server answers 500") as caught:
        fetch([file], tmp_path, options(attempts=3))
    explains(caught.value, file)
    assert f"10000 bytes so far, sha256 {hashlib.sha256(body[:10_000]).hexdigest()}" in str(caught.value)
    assert left_in(tmp_path) == ["127.0.0.1/f.partial"]
    server.answers["/f"].clear()
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges()[-1] == "bytes=10000-"


@pytest.mark.promise(2)
def test_progress_gives_new_attempts(server: Server, tmp_path: Path) -> None:
    body = content(10 * 2**20)
    file = server.file("/f", body, *[drop_after(2**20 + 2**16)] * 8)
    assert fetch([file], tmp_path, options(attempts=2))[0].read_bytes() == body


def explains(error: DownloadError, file: RemoteFile) -> None:
    """The message names the file, what it should be, and a way out."""
    for part in (file.url, file.sha256, f"{file.bytes} bytes", "BOOM_MIRROR"):
        assert str(part) in str(error)


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (send(content(500, "other")), "found: sha256 " + hashlib.sha256(content(500, "other")).hexdigest()),
        (send(content(400)), "found: 400 bytes according to the server"),
        (send(content(600)), "found: 600 bytes according to the server"),
        (page, "an HTML page"),
        (endless, "longer than the file"),
        (without_length(content(600)), "longer than the file"),
        (send(gzip.compress(content(500)), Content_Encoding="gzip"), "found: Content-Encoding 'gzip'"),
        (status(404, b"<html></html>", Content_Type="text/html"), "answers 404 Not Found"),
        (status(403), "answers 403"),
        (status(401), "answers 401"),
        (status(204), "answers 204"),
        (status(304), "answers 304"),
        (redirect("https://example.org:port/"), "no url"),
    ],
)
def test_what_is_not_the_file_is_refused_at_once(server: Server, tmp_path: Path, answer: Answer, said: str) -> None:
    file = server.file("/f", content(500), answer)
    with pytest.raises(DownloadError) as caught:
        fetch([file], tmp_path, options())
    assert said in str(caught.value)
    explains(caught.value, file)
    assert len([path for path, _ in server.asked if path == "/f"]) == 1
    assert caught.value.exit_code == 1
    folder = tmp_path / "127.0.0.1"
    assert not (folder / "f").exists()
    assert not (folder / "f.partial").exists() or (folder / "f.partial").stat().st_size == 0
    assert fetch([file], tmp_path, options())[0].read_bytes() == content(500)  # a later run is not hindered


@pytest.mark.promise(2)
def test_an_endless_body_is_cut_off_before_it_fills_the_disk(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(100_000), endless)
    with pytest.raises(DownloadError, match="longer than the file"):
        fetch([file], tmp_path, options())
    assert len([path for path, _ in server.asked if path == "block"]) < 5000


@pytest.mark.promise(2)
def test_a_body_that_always_ends_early_is_given_up(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(500), *[without_length(content(100))] * 9)
    with pytest.raises(DownloadError, match="ended after 100 of 500 bytes") as caught:
        fetch([file], tmp_path, options(attempts=3))
    explains(caught.value, file)


def test_a_page_or_a_body_of_unknown_length_is_no_file_where_nothing_is_known(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", b"", page, without_length(b"perhaps a part"), sha256=None, bytes=None)
    with pytest.raises(DownloadError, match="an HTML page"):
        fetch([file], tmp_path, options())
    with pytest.raises(DownloadError, match="nobody states how long"):
        fetch([file], tmp_path, options())


@pytest.mark.promise(2)
def test_a_silent_server_counts_as_a_broken_connection(server: Server, tmp_path: Path) -> None:
    done = threading.Event()

    def silent(handler: Handler, body: bytes) -> None:
        handler.wfile.write(rest_of(handler, body)[:100])
        done.wait(10)

    file = server.file("/f", content(500), silent)
    assert fetch([file], tmp_path, options(timeout=0.2))[0].read_bytes() == content(500)
    done.set()


@pytest.mark.promise(2)
def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with Server() as gone:
        file = gone.file("/f", b"x")
    with pytest.raises(
        DownloadError, match=r"no success in 2 attempts: the connection failed \(ConnectError"
    ) as caught:
        fetch([file], tmp_path, options(attempts=2))
    explains(caught.value, file)


@pytest.mark.promise(2)
def test_errors_of_all_files_are_reported_together_and_the_others_come(server: Server, tmp_path: Path) -> None:
    good, lost = server.file("/good", content(50)), server.file("/lost", content(51), status(404))
    wrong = server.file("/wrong", content(52), send(content(52, "other")))
    with pytest.raises(DownloadError, match="2 of 3 files cannot be used") as caught:
        fetch([lost, good, wrong], tmp_path, options())
    assert lost.url in str(caught.value)
    assert wrong.url in str(caught.value)
    assert left_in(tmp_path) == ["127.0.0.1/good"]


# --- redirects --------------------------------------------------------------------------------------------------------


def test_redirects_are_followed_five_times(server: Server, tmp_path: Path) -> None:
    body = content(1000)
    file = server.file("/0", body, redirect("/1", 301))
    for step in range(1, 5):
        server.file(f"/{step}", body, redirect(f"/{step + 1}", 307))
    server.file("/5", body)
    assert fetch([file], tmp_path, options())[0] == tmp_path / "127.0.0.1" / "0"
    circle = server.file("/circle", body, *[redirect("/circle")] * 9)
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        fetch([circle], tmp_path, options())


@pytest.mark.parametrize(
    "location",
    ["http://example.org/f", "ftp://example.org/f", "file:///etc/passwd", "https://me:hf_canary@example.org/f", ""],
)
@pytest.mark.promise(36)
def test_a_redirect_away_from_https_is_refused_and_credentials_are_not_shown(
    server: Server, tmp_path: Path, location: str
) -> None:
    file = server.file("/f", content(10), redirect(location))
    with pytest.raises(DownloadError, match="not safe") as caught:
        fetch([file], tmp_path, options())
    assert "hf_canary" not in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.promise(36)
def test_the_signature_of_a_redirect_is_neither_logged_nor_in_an_error(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = server.file("/f", content(10), redirect("/signed?token=hf_canary"))
    with caplog.at_level(logging.INFO), pytest.raises(DownloadError) as caught:
        fetch([file], tmp_path, options())
    assert server.asked[-1][0] == "/signed?token=hf_canary"
    assert "/signed" in caplog.text
    assert "hf_canary" not in caplog.text + str(caught.value)


# --- kills and rivals -------------------------------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from boom_utils.data.download import FetchOptions, fetch
from boom_utils.data.remote_files import RemoteFile
{before}
file = RemoteFile.model_validate(json.loads(sys.argv[1]), context={{"loopback": True}})
print(fetch([file], Path(sys.argv[2]), FetchOptions(allow_loopback_http=True, timeout=20))[0].name)
"""


def start_download(file: RemoteFile, folder: Path, before: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", CHILD.format(before=before), file.model_dump_json(), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


class Stalling:
    """Sends some bytes, says so, and then no more."""

    def __init__(self, count: int) -> None:
        self.count, self.sent, self.go_on = count, threading.Event(), threading.Event()

    def __call__(self, handler: Handler, body: bytes) -> None:
        rest = rest_of(handler, body)
        handler.wfile.write(rest[: self.count])
        self.sent.set()
        self.go_on.wait(HANGS)
        handler.wfile.write(rest[self.count :])


@pytest.mark.promise(1)
def test_a_killed_download_leaves_no_final_name_and_goes_on_later(server: Server, tmp_path: Path) -> None:
    body = content(400_000)
    stalls = [Stalling(count) for count in (0, 1, 1000, 65_536, 65_537, 7, 99_999, 30_000, 50_000, 20_000, 4097, 3)]
    file = server.file("/f", body, *stalls)
    partial = tmp_path / "127.0.0.1" / "f.partial"
    for stall in stalls:
        process = start_download(file, tmp_path)
        assert stall.sent.wait(HANGS)
        time.sleep(0.02 * (stall.count % 3))  # at other moments between receiving and writing
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=HANGS)
        stall.go_on.set()
        assert not partial.with_name("f").exists()
        assert not partial.exists() or body.startswith(partial.read_bytes())
    assert partial.stat().st_size > 200_000
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert server.ranges()[-1] is not None
    assert left_in(tmp_path) == ["127.0.0.1/f"]


KILL = """
import os
from pathlib import Path
from boom_utils.data import stored_files
replace = Path.replace
def kill(*_):
    os.kill(os.getpid(), 9)
def around(self, to):
    if self.suffix == ".partial" and early:
        kill()
    replace(self, to)
    if self.suffix == ".partial":
        kill()
"""


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("moment", "visible"),
    [
        ("os.fsync = kill", False),
        ("stored_files._remember = kill", False),
        ("early, Path.replace = True, around", False),
        ("early, Path.replace = False, around", True),
    ],
    ids=["sync", "note", "before renaming", "after renaming"],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_kill_at_the_end_leaves_no_final_name_or_the_right_file(
    server: Server, tmp_path: Path, moment: str, visible: bool, known: bool
) -> None:
    body = content(1000)
    file = server.file("/f", body, **({} if known else {"sha256": None, "bytes": None}))
    process = start_download(file, tmp_path, KILL + moment)
    process.communicate(timeout=HANGS)
    assert process.returncode == -9
    final = tmp_path / "127.0.0.1" / "f"
    assert final.exists() == visible
    assert fetch([file], tmp_path, options())[0].read_bytes() == body
    assert len(server.asked) == 1 or not known
    assert lock_entries([file], tmp_path)[file.url].sha256 == hashlib.sha256(body).hexdigest()


def test_two_processes_at_once_download_a_file_once(server: Server, tmp_path: Path) -> None:
    body, stall = content(100_000), Stalling(50_000)
    file = server.file("/f", body, stall)
    first = start_download(file, tmp_path)
    assert stall.sent.wait(HANGS)
    said = "import logging; logging.basicConfig(level=logging.INFO)"
    second = start_download(file, tmp_path, said)
    assert second.stderr is not None
    assert "another process is downloading it; waiting" in second.stderr.readline()
    stall.go_on.set()
    assert [process.communicate(timeout=HANGS)[0] for process in (first, second)] == ["f\n", "f\n"]
    assert len(server.asked) == 1
    assert (tmp_path / "127.0.0.1" / "f").read_bytes() == body


def test_a_file_another_process_holds_for_too_long_is_reported(server: Server, tmp_path: Path) -> None:
    stall = Stalling(10)
    file = server.file("/f", content(100), stall)
    process = start_download(file, tmp_path)
    assert stall.sent.wait(HANGS)
    with pytest.raises(DownloadError, match="another process"):
        fetch([file], tmp_path, options(lock_timeout=0.2))
    process.kill()
    process.communicate()
    stall.go_on.set()


@pytest.mark.parametrize("pausing", [True, False])
def test_ctrl_c_ends_it_soon_and_keeps_what_came(server: Server, tmp_path: Path, pausing: bool) -> None:
    body, stall = content(200_000), Stalling(50_000)
    answers = [drop_after(50_000), status(503, Retry_After=500)] if pausing else [stall]
    file = server.file("/f", body, *answers)
    process = start_download(file, tmp_path)
    wait_until(lambda: len(server.asked) == 2 if pausing else stall.sent.is_set())
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    stall.go_on.set()  # a thread that reads ends at the next block
    _, said = process.communicate(timeout=HANGS)
    assert "KeyboardInterrupt" in said
    assert (tmp_path / "127.0.0.1" / "f.partial").stat().st_size >= 50_000
    assert fetch([file], tmp_path, options())[0].read_bytes() == body


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


# --- files that are there ---------------------------------------------------------------------------------------------


@pytest.mark.promise(3)
def test_a_cached_file_that_changed_is_reported_and_not_replaced(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(100))
    [path] = fetch([file], tmp_path, options())
    path.write_bytes(content(100, "other"))
    for verify in (False, True):
        with pytest.raises(DownloadError, match="not the file the manifest names") as caught:
            fetch([file], tmp_path, options(verify=verify))
        explains(caught.value, file)
        assert f"found: sha256 {hashlib.sha256(content(100, 'other')).hexdigest()}, 100 bytes" in str(caught.value)
        assert "delete the file" in str(caught.value)
    assert path.read_bytes() == content(100, "other")
    path.unlink()
    assert fetch([file], tmp_path, options())[0].read_bytes() == content(100)


@pytest.mark.promise(3)
def test_a_change_that_hides_behind_size_and_time_is_found_by_verify(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(100))
    [path] = fetch([file], tmp_path, options())
    times = path.stat()
    path.write_bytes(content(100, "other"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    fetch([file], tmp_path, options())
    with pytest.raises(DownloadError, match="not the file the manifest names"):
        fetch([file], tmp_path, options(verify=True))


@pytest.mark.promise(3)
def test_the_quick_look_reads_no_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = server.file("/f", content(100))
    [path] = fetch([file], tmp_path, options())
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(stored_files, "sha256_file", counted)
    fetch([file], tmp_path, options())
    assert hashed == []
    fetch([file], tmp_path, options(verify=True))
    path.touch()
    fetch([file], tmp_path, options())
    fetch([file], tmp_path, options())
    assert hashed == [path, path]  # once to verify, once because the time of change was another one


@pytest.mark.promise(3)
def test_a_manifest_that_names_another_version_does_not_replace_the_file(server: Server, tmp_path: Path) -> None:
    fetch([server.file("/f", content(100))], tmp_path, options())
    with pytest.raises(DownloadError, match="another version"):
        fetch([server.file("/f", content(100, "new"))], tmp_path, options())


def test_a_file_put_there_by_hand_is_used_if_it_is_the_right_one(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(100))
    path = tmp_path / "127.0.0.1" / "f"
    path.parent.mkdir()
    path.write_bytes(content(100))
    fetch([file], tmp_path, options())
    assert server.asked == []
    shutil.rmtree(tmp_path / stored_files.STATE)
    with pytest.raises(DownloadError, match="nobody knows whether"):
        fetch([file.model_copy(update={"sha256": None})], tmp_path, options())


def test_damaged_notes_only_cost_another_look(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", content(100))
    fetch([file], tmp_path, options())
    [note] = (tmp_path / stored_files.STATE).glob("*.json")
    note.write_text("{")
    fetch([file], tmp_path, options())
    assert len(server.asked) == 1
    assert json.loads(note.read_text())["bytes"] == 100


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.promise(4)
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("from_mirror", [False, True])
def test_a_full_disk_is_explained_and_a_later_run_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, from_mirror: bool
) -> None:
    body = content(3 * 2**20)
    file = server.file("/f", body)
    mirror = make_mirror(tmp_path / "mirror", {file.url: body}) if from_mirror else None
    write, calls = stored_files.write_block, iter(range(10**6))

    def failing(handle: Any, block: bytes) -> None:
        if next(calls) == number:
            handle.write(block[: len(block) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle, block)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(stored_files, "write_block", failing)
        with pytest.raises(DownloadError, match="no space left on the disk") as caught:
            fetch([file], out, options(mirror=mirror))
    assert "bytes free" in str(caught.value)
    assert "bytes more for this file" in str(caught.value)
    assert left_in(out) == ["127.0.0.1/f.partial"]
    assert fetch([file], out, options(mirror=mirror))[0].read_bytes() == body
    assert from_mirror or server.ranges()[-1] is not None


@pytest.mark.promise(4)
def test_a_disk_that_turns_out_to_be_full_at_the_end_is_explained_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = server.file("/f", content(1000))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DownloadError, match="no space left on the disk"):
            fetch([file], tmp_path, options())
    assert left_in(tmp_path) == ["127.0.0.1/f.partial"]
    fetch([file], tmp_path, options())
    assert len(server.asked) == 1


@pytest.mark.promise(4)
def test_space_is_checked_before_anything_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [server.file("/f", content(700)), server.file("/g", content(600)), server.file("/h", b"x", bytes=None)]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="not enough space") as caught:
        fetch(files, tmp_path, options())
    assert "expected: 1,300 bytes, and 1 file(s) of unknown size" in str(caught.value)
    assert "found: 1,000 bytes free" in str(caught.value)
    assert server.asked == []
    partial = tmp_path / "127.0.0.1" / "f.partial"
    partial.parent.mkdir()
    partial.write_bytes(content(700)[:400])  # what is there counts
    assert fetch(files[:2], tmp_path, options())[0].read_bytes() == content(700)


def test_a_folder_that_cannot_be_written_is_an_error_of_the_kit(server: Server, tmp_path: Path) -> None:
    file = server.file("/f/g", content(10))
    (tmp_path / "127.0.0.1").write_text("a file in place of a folder")
    with pytest.raises(DownloadError, match="cannot be read or written"):
        fetch([file], tmp_path, options())
    (tmp_path / "127.0.0.1").unlink()
    (tmp_path / "127.0.0.1" / "f" / "g").mkdir(parents=True)
    with pytest.raises(DownloadError, match="a folder in place of a file"):
        fetch([file], tmp_path, options())


# --- names ------------------------------------------------------------------------------------------------------------

DANGEROUS = [
    *("../x", "/etc/x", "C:\\x", "\\\\host\\s", "a/../../b", "", "https://", "https:///x", "https://example.org"),
    *("https://example.org/", "https://example.org/a/", "https://example.org//x", "https://example.org/a//b"),
    *("https://example.org/../x", "https://example.org/a/../../b", "https://example.org/./x"),
    *("https://example.org/%2e%2e/x", "https://example.org/a%2fb", "https://example.org/a%5cb"),
    *("https://example.org/%252e%252e/x", "https://example.org/a%00b", "https://example.org/a\x00b"),
    *("https://example.org/a\nb", "https://example.org/a b", "https://example.org/a\\b", "https://example.org/é"),
    *("https://example.org/%ff", "https://example.org/e%CC%81", "https://example.org/C:/x", "https://example.org/a:b"),
    *("https://example.org/x.", "https://example.org/x%20", "https://example.org/con", "https://example.org/NUL.txt"),
    *("https://example.org/x.partial", "https://example.org/" + "a" * 201, "https://example.org/" + "a/" * 500 + "b"),
    *("https://example.org/%E2%80%AEx", "https://-example.org/x", "https://exa_mple.org/x", "https://a..b/x"),
    *("https://../x", "https://./x", "https://[::1]/x", "https://[/x", "https://example.org:99999/x"),
    *("https://example.org:8443/x", "http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"),
    *("http://127.0.0.1/x", "http://127.0.0.1:80/x", "http://localhost/x", "HTTP://127.0.0.1/x"),
    *("https://me:hf_canary@example.org/x", "https://hf_canary@example.org/x", "https:me:hf_canary@example.org/x"),
    *("https://example.org/x?token=hf_canary", "https://example.org/x#hf_canary", "https://example.org/x?"),
]


@pytest.mark.promise(5)
@pytest.mark.promise(36)
@pytest.mark.parametrize("url", DANGEROUS)
def test_a_dangerous_url_is_refused_and_its_secret_is_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(RemoteFile, {"url": url}, "files.yaml", ManifestError)
    with pytest.raises(ManifestError) as again:
        fetch([RemoteFile.model_construct(url=url, sha256=None, bytes=None)], tmp_path, FetchOptions(offline=True))
    with pytest.raises(ValidationError) as plain:
        RemoteFile(url=url)
    assert "hf_canary" not in f"{caught.value} {again.value} {plain.value}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(5)
@given(st.text(alphabet="aA./%25\\:x\0 ~@?#éÿ", max_size=30))
def test_a_url_is_refused_or_lies_below_its_folder(text: str) -> None:
    url = f"https://example.org/{text}"
    if url_problem(url) is None:
        parts = (Path("/folder") / relative_path(url)).parts
        assert parts[:3] == ("/", "folder", "example.org")
        assert len(parts) > 3
        assert not {"", ".", ".."} & set(parts)


@pytest.mark.promise(5)
def test_relative_paths_of_good_urls() -> None:
    base = "https://raw.githubusercontent.com/o/r/0a1b/"
    for path in ("kitchen_&_housewares/a.review", "Sky_(United_Kingdom).html", "Fresno,_California.html", ".hidden"):
        assert relative_path(base + path).as_posix() == "raw.githubusercontent.com/o/r/0a1b/" + path
    assert relative_path("https://EXAMPLE.org/a%20b").as_posix() == "example.org/a b"
    with pytest.raises(ManifestError, match="path segment"):
        relative_path("https://example.org/../x")


@pytest.mark.promise(5)
def test_a_test_server_is_accepted_only_by_an_option_of_the_download(server: Server, tmp_path: Path) -> None:
    file = server.file("/f", b"x")
    with pytest.raises(ManifestError, match="is not https"):
        fetch([file], tmp_path, FetchOptions())
    assert url_problem("http://127.0.0.2/x", loopback=True) == "is not https"


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a/x.txt", "A/X.txt"], "at the place of"),
        (["x", "%78"], "at the place of"),
        (["a", "a/b"], "a folder of"),
        (["a", "A/b/c"], "a folder of"),
    ],
)
def test_files_that_would_meet_at_one_place_are_refused(tmp_path: Path, names: list[str], said: str) -> None:
    files = [RemoteFile(url=f"https://example.org/{name}") for name in names]
    with pytest.raises(ManifestError, match=said):
        fetch(files, tmp_path, options())


@pytest.mark.promise(5)
def test_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    one = RemoteFile(url="https://example.org/x", sha256="a" * 64)
    files = [one, one.model_copy(update={"sha256": "b" * 64}), one.model_copy(update={"url": "https://example.org/.."})]
    with pytest.raises(ManifestError, match="2 problem") as caught:
        fetch(files, tmp_path, options())
    assert "https://example.org/x is named twice with different" in str(caught.value)

    class Files(Frozen):
        files: tuple[RemoteFile, ...]

    raw = [{"url": "http://example.org/x"}, {"url": one.url, "sha256": "A" * 64}, {"url": one.url, "size": 3}]
    with pytest.raises(ManifestError, match="3 problem") as caught:
        parse(Files, {"files": raw}, "files.yaml", ManifestError)
    assert "unknown key" in str(caught.value)


@pytest.mark.promise(5)
@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.1/a", "127.0.0.1/a/f", "127.0.0.1/a/f.partial", ".download"])
def test_nothing_is_written_through_a_symbolic_link(server: Server, tmp_path: Path, name: str) -> None:
    file, outside, folder = server.file("/a/f", content(10)), tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(ManifestError, match="symbolic link"):
        fetch([file], folder, options())
    assert list(outside.iterdir()) == []
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")  # the folder itself is the user's own choice
    assert fetch([file], tmp_path / "link", options())[0].read_bytes() == content(10)


# --- mirror -----------------------------------------------------------------------------------------------------------


def make_mirror(folder: Path, bodies: dict[str, bytes]) -> Path:
    for url, body in bodies.items():
        path = folder / relative_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def test_a_mirror_gives_the_same_result_as_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {"/a/b": content(5000), "/c": content(6000, "c"), "/empty": b""}
    files = [server.file(path, body, sha256=None if path == "/c" else hashlib.sha256(body).hexdigest(), bytes=None)
             for path, body in bodies.items()]  # fmt: skip
    fetch(files, tmp_path / "net", options())
    asked = len(server.asked)
    mirror = make_mirror(tmp_path / "mirror", dict(zip([file.url for file in files], bodies.values(), strict=True)))
    monkeypatch.setenv("BOOM_MIRROR", str(mirror))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a mirror is no network
    found = fetch(files, tmp_path / "copy", options())
    assert [path.read_bytes() for path in found] == list(bodies.values())
    assert len(server.asked) == asked
    assert lock_entries(files, tmp_path / "net") == lock_entries(files, tmp_path / "copy")
    assert left_in(tmp_path / "net") == left_in(tmp_path / "copy")
    shutil.rmtree(mirror)
    assert fetch(files, tmp_path / "copy", options(mirror=None)) == found  # nothing hangs on the mirror afterwards


def test_files_missing_in_the_mirror_are_all_named_and_not_looked_for_elsewhere(server: Server, tmp_path: Path) -> None:
    files = [server.file(path, content(10)) for path in ("/a", "/b", "/c")]
    mirror = make_mirror(tmp_path / "mirror", {files[1].url: content(10)})
    with pytest.raises(DownloadError, match="2 of 3 files are not in the mirror") as caught:
        fetch(files, tmp_path / "out", options(mirror=mirror))
    assert files[0].url in str(caught.value)
    assert files[2].url in str(caught.value)
    assert files[1].url not in str(caught.value)
    assert server.asked == []
    with pytest.raises(ConfigError, match="BOOM_MIRROR is no folder"):
        fetch(files, tmp_path / "out", options(mirror=tmp_path / "nowhere"))


@pytest.mark.parametrize("body", [content(10, "other"), content(9), content(11), b""])
def test_a_wrong_file_in_the_mirror_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    file = server.file("/a", content(10))
    mirror = make_mirror(tmp_path / "mirror", {file.url: body})
    with pytest.raises(DownloadError, match="not the one the manifest names") as caught:
        fetch([file], tmp_path / "out", options(mirror=mirror))
    explains(caught.value, file)
    assert left_in(tmp_path / "out") == []
    assert server.asked == []


def test_real_files_of_the_mirror_are_those_its_list_names(tmp_path: Path) -> None:
    mirror = SHARED / "mirror"
    if not (mirror / "sources.yaml").is_file():
        pytest.skip("the mirror of the public corpora (../shared/mirror) is not on this machine")
    sources = yaml.load((mirror / "sources.yaml").read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader"))  # noqa: B009
    listed = [file for source in sources["datasets"] for file in source["files"]]
    files = [RemoteFile(url=file["url"], sha256=file["sha256"], bytes=file["bytes"]) for file in listed]
    awkward = [file for file in files if any(sign in file.url for sign in "&(),")]
    small = sorted(files, key=lambda file: (file.bytes, file.url))[:20]
    chosen = [*awkward, *small]
    found = fetch(chosen, tmp_path, FetchOptions(mirror=mirror))
    assert [path.stat().st_size for path in found] == [file.bytes for file in chosen]
    for path in found:  # names as they are in the mirror
        assert (mirror / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()
    download.check_files(files)


# --- offline ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(6)
def test_offline_uses_what_is_there_and_names_all_that_is_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [server.file(path, content(10)) for path in ("/a", "/b", "/c")]
    fetch(files[:1], tmp_path, options())
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(files[:1], tmp_path, options())[0].read_bytes() == content(10)
    with pytest.raises(DownloadError, match="offline, and 2 of 3 files are not there") as caught:
        fetch(files, tmp_path, options())
    assert [file.url in str(caught.value) for file in files] == [False, True, True]
    assert "HF_HUB_OFFLINE" in str(caught.value)
    with pytest.raises(DownloadError, match="offline"):
        fetch(files, tmp_path, options(offline=True))
    assert server.asked == []


def test_a_long_list_of_absent_files_is_cut_with_the_size_of_all(server: Server, tmp_path: Path) -> None:
    files = [server.file(f"/{number:02}", content(10**6)) for number in range(14)]
    for changes in ({"offline": True}, {"mirror": tmp_path}):
        with pytest.raises(DownloadError, match=r"14 of 14 files") as caught:
            fetch(files, tmp_path / "files", options(**changes))
        assert "and 4 more (14.0 MB in all)" in str(caught.value)
        assert [file.url in str(caught.value) for file in files] == [True] * 10 + [False] * 4


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("ON", True), ("0", False), ("", False)])
def test_offline_is_spelt_as_the_hub_spells_it(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert FetchOptions().offline is offline


# --- lock file --------------------------------------------------------------------------------------------------------


def test_unknown_facts_become_known_and_are_checked_from_then_on(server: Server, tmp_path: Path) -> None:
    body, lock = content(1000), tmp_path / "corpus.lock.json"
    file = server.file("/f", body, sha256=None, bytes=None)
    found = fetch_locked([file], tmp_path / "one", lock, options())
    assert found == read_lock(lock) == {file.url: LockEntry(sha256=hashlib.sha256(body).hexdigest(), bytes=1000)}
    server.files["/f"] = content(1000, "changed upstream")
    before = lock.read_bytes()
    with pytest.raises(DownloadError, match="another file") as caught:
        fetch_locked([file], tmp_path / "two", lock, options())
    assert hashlib.sha256(body).hexdigest() in str(caught.value)
    assert lock.read_bytes() == before
    fetch_locked([file], tmp_path / "one", lock, options())
    assert lock.read_bytes() == before


def test_manifest_and_lock_file_must_agree(server: Server, tmp_path: Path) -> None:
    lock, file = tmp_path / "corpus.lock.json", server.file("/f", content(10))
    other = server.file("/g", content(10), sha256=None)
    write_lock(lock, {file.url: LockEntry(sha256="a" * 64, bytes=10), other.url: LockEntry(sha256="b" * 64, bytes=11)})
    with pytest.raises(ManifestError, match="2 contradiction") as caught:
        fetch_locked([file, other], tmp_path / "out", lock, options())
    for part in (file.url, other.url, str(file.sha256), "a" * 64, "11 bytes"):
        assert part in str(caught.value)
    assert server.asked == []


def test_an_entry_of_the_lock_file_is_never_replaced(tmp_path: Path) -> None:
    lock, url = tmp_path / "lock.json", "https://example.org/x"
    entry = LockEntry(sha256="a" * 64, bytes=3)
    write_lock(lock, {url: entry, "https://example.org/a": entry})
    write_lock(lock, {url: entry.model_copy(update={"rows": 7})})
    write_lock(lock, {url: entry})  # rows stay
    assert read_lock(lock)[url].rows == 7
    assert list(json.loads(lock.read_text())["files"]) == ["https://example.org/a", url]
    before = lock.read_bytes()
    for change in ({"sha256": "b" * 64}, {"bytes": 4}, {"rows": 8}):
        with pytest.raises(ManifestError, match="1 contradiction"):
            write_lock(lock, {url: entry.model_copy(update=change), "https://example.org/new": entry})
    with pytest.raises(ManifestError) as caught:
        write_lock(lock, {"https://me:hf_canary@example.org/x": entry})
    assert "hf_canary" not in str(caught.value)
    assert lock.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"files": {"u": {"sha256": "x", "bytes": 1}}}', '{"files": {}, "more": 1}',
     '{"files": {"u": {}, "u": {}}}', '{"files": {"u": {"sha256": "' + "a" * 64 + '", "bytes": -1}}}'],
)  # fmt: skip
def test_a_damaged_lock_file_is_an_error(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "lock.json"
    lock.write_text(text)
    with pytest.raises(BoomError, match=r"lock\.json"):
        read_lock(lock)
    assert read_lock(tmp_path / "none.json") == {}
