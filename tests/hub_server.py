"""A hub on this machine: as much of the protocol of the Hugging Face hub as listing and downloading takes.

Repositories are dictionaries of bytes; what goes wrong is told to it beforehand. It keeps every request.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Request(NamedTuple):
    """What was asked for."""

    method: str
    path: str


@dataclass
class HubServer:
    """The repositories of a hub, and what it does wrong.

    Args:
        repos: Repository -> path -> bytes.
        gated: Repositories whose files nobody gets.
        faults: Path of a file, or "tree" -> what goes wrong with the next answers, in order: a status, ``truncate``,
            ``corrupt``, or None. The last one stays if ``forever``.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    faults: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    forever: bool = False
    requests: list[Request] = field(default_factory=list)
    signature: str | None = None
    """If there is one, files are redirected to another host, with it in the query."""
    plain: set[str] = field(default_factory=set)
    """Files that are not in large file storage."""

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, key: str) -> Any:
        """What goes wrong now."""
        waiting = self.faults[key]
        return None if not waiting else waiting[0] if self.forever and len(waiting) == 1 else waiting.pop(0)

    def gets(self, path: str) -> int:
        """How often the body of a file was asked for."""
        return sum(one.method == "GET" and one.path.endswith(f"/{path}") for one in self.requests)


def git_blob(content: bytes) -> str:
    """What git calls these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *unused: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path))
        if found := re.fullmatch(
            r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", path
        ):
            self._api(*found.groups())
        elif found := re.fullmatch(r"(/stored)?(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._error(404, None)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _unknown(self, repo: str, revision: str | None) -> str | None:
        if repo in self.server_hub.repos:
            return None if revision in (None, "main", REVISION) else "RevisionNotFound"
        return "RepoNotFound"

    def _api(self, repo: str, kind: str | None, revision: str | None, folder: str | None) -> None:
        hub = self.server_hub
        if unknown := self._unknown(repo, revision):
            self._error(404, unknown)
        elif kind != "tree":
            facts = {"id": repo, "sha": REVISION, "private": False, "tags": []}
            siblings = [{"rfilename": path} for path in hub.repos[repo]]
            self._send(json.dumps({**facts, "siblings": siblings}).encode())
        elif (status := hub.fault("tree")) is not None:
            self._error(status, None)
        else:
            inside = f"{folder}/" if folder else ""
            found = [self._entry(*item) for item in hub.repos[repo].items() if item[0].startswith(inside)]
            self._send(json.dumps(found).encode())

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_blob(content)}
        if path not in self.server_hub.plain:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _file(self, stored: str | None, repo: str, revision: str, path: str) -> None:
        hub, files = self.server_hub, self.server_hub.repos.get(repo, {})
        fault = None if self.command == "HEAD" else hub.fault(path)
        if unknown := self._unknown(repo, revision):
            self._error(404, unknown)
        elif repo in hub.gated:
            self._error(403, "GatedRepo")
        elif path not in files:
            self._error(404, "EntryNotFound")
        elif isinstance(fault, int):
            self._error(fault, None)
        else:
            content = files[path]
            etag = f'"{git_blob(content) if path in hub.plain else hashlib.sha256(content).hexdigest()}"'
            headers = {"X-Repo-Commit": REVISION, "ETag": etag, "X-Linked-Etag": etag}
            headers["X-Linked-Size"] = str(len(content))
            if hub.signature and not stored:
                place = f"localhost:{urlsplit(hub.endpoint).port}/stored{urlsplit(self.path).path}"
                headers["Location"] = f"http://{place}?Signature={hub.signature}"
                self._send(b"", headers, status=302)
            else:
                content = bytes([content[0] ^ 1]) + content[1:] if fault == "corrupt" else content
                self._send(content, headers, cut=fault == "truncate")

    def _send(
        self, content: bytes, headers: dict[str, str] | None = None, *, cut: bool = False, status: int = 200
    ) -> None:
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
        self.send_response(206 if start else status)
        for name, value in (headers or {"Content-Type": "application/json"}).items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start : start + (len(content) - start) // 2] if cut else content[start:])
        if cut:
            self.close_connection = True

    def _error(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
