"""What the hub of `hub_server` does with what is sent to it: repositories made, large files stored, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

WRITER = "hf_canarythatmaywrite0123"
"""The only token that may write, and only to repositories of ``owner``."""


def body_of(handler: Any) -> bytes:
    """The body of a request, of known length or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return bytes(handler.rfile.read(int(handler.headers.get("Content-Length", 0))))
    parts = []
    while size := int(handler.rfile.readline(), 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


def take(hub: Any, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
    """Status and answer to what was sent; an answer of None has no body."""
    if found := re.fullmatch(r"/objects/([0-9a-f]{64})", path):  # storage is another service: the address is the key
        hub.objects[found[1]] = body
        return (200, {}) if hashlib.sha256(body).hexdigest() == found[1] else (400, None)
    kind, repo = _meant(path)
    if (status := hub.fault(kind)) is not None:
        return status, {"errors": [{"message": "bad"}], "error": f"no, {headers.get('Authorization')}"}
    if headers.get("Authorization") != f"Bearer {WRITER}":
        return 401, None
    sent = [json.loads(line) for line in body.splitlines()] if kind == "commit" else json.loads(body)
    return _ANSWERS[kind](hub, repo, sent)


def _meant(path: str) -> tuple[str, str]:
    if path in ("/api/repos/create", "/api/validate-yaml"):
        return path.rpartition("/")[2], ""
    for pattern, kind in (
        (r"/api/models/([^/]+/[^/]+)/preupload/main", "preupload"),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (r"/api/models/([^/]+/[^/]+)/commit/main", "commit"),
    ):
        if found := re.fullmatch(pattern, path):
            return kind, found[1]
    raise AssertionError(path)


def _create(hub: Any, _: str, sent: dict[str, Any]) -> tuple[int, Any]:
    repo = f"{sent['organization']}/{sent['name']}"
    if sent["organization"] != "owner":
        return 403, None
    if repo in hub.repos:
        return 409, {"url": f"{hub.endpoint}/{repo}"}
    hub.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs"}
    hub.private |= {repo} if sent.get("visibility") == "private" else set()
    return 200, {"url": f"{hub.endpoint}/{repo}"}


def _valid(hub: Any, _: str, sent: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"errors": [], "warnings": []}


def _modes(hub: Any, repo: str, sent: dict[str, Any]) -> tuple[int, Any]:
    large = [one["path"].endswith(".safetensors") for one in sent["files"]]
    modes = zip(sent["files"], large, strict=True)
    return 200, {
        "files": [
            {"path": one["path"], "uploadMode": "lfs" if big else "regular", "shouldIgnore": False}
            for one, big in modes
        ]
    }


def _batch(hub: Any, repo: str, sent: dict[str, Any]) -> tuple[int, Any]:
    objects = [
        {**one, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{one['oid']}"}}} for one in sent["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}


def _commit(hub: Any, repo: str, sent: list[dict[str, Any]]) -> tuple[int, Any]:
    files = {}
    for one in sent[1:]:
        value = one["value"]
        large = one["key"] == "lfsFile"
        files[value["path"]] = hub.objects[value["oid"]] if large else base64.b64decode(value["content"])
        hub.plain |= set() if large else {value["path"]}
    hub.repos[repo] |= files
    hub.commits.append(sorted(files))
    oid = "f" * 40
    return 200, {"commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid}


_ANSWERS = {"create": _create, "validate-yaml": _valid, "preupload": _modes, "batch": _batch, "commit": _commit}
