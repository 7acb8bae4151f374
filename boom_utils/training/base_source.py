"""Where a pretrained base comes from: the hub, a folder, or an installed Python distribution that carries one.

Finds the files and says what they are, so that artifacts can be keyed by it. Opens no model and imports no torch. On
the hub only JSON, text and safetensors files are fetched; a repository with nothing but pickles is refused before that.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.config import PretrainedBase
from boom_utils.data.files import hub_snapshot
from boom_utils.errors import CheckpointError, ConfigError, DownloadError
from boom_utils.model_folder import adapter_base, is_adapter

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Files of a model that are read; weights only at the top, subfolders hold copies for other programs."""
_NOT_OF_THE_BASE = {"name", "parameters", "embedding_parameters", "query_prompt", "passage_prompt"}
_IGNORED = ("*/*.safetensors", "onnx/*", "openvino/*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base on this machine.

    Args:
        folder: Where they lie.
        facts: Kind of source, name and revision, for the record.
    """

    folder: Path
    facts: dict[str, Any]


def source_kind(name: str) -> Literal["hub", "folder", "distribution"]:
    """What a base's name is: ``owner/name`` is on the hub, any other path a folder, a bare word a distribution."""
    if _HUB_NAME.fullmatch(name):
        return "hub"
    return "folder" if re.search(r"[/\\]", name) or name in (".", "..", "~") else "distribution"


def describe_base(config: PretrainedBase) -> dict[str, Any]:
    """What a base is a function of, as far as this machine knows; never fails, never asks the network.

    Contents of a folder or distribution count, not where it lies; None where it is not there (yet).
    """
    kind = source_kind(config.name)
    if kind == "hub":
        found: Any = config.name
    elif kind == "folder":
        found = _folder_digest(config.place)
        if is_adapter(config.place):
            with suppress(CheckpointError):
                found = [found, _folder_digest(adapter_base(config.place))]
    else:
        found = _distribution_digest(config.name)
    kept = config.model_dump(mode="json", exclude=_NOT_OF_THE_BASE)
    return {**kept, kind: found}


def find_base(config: PretrainedBase) -> BaseFiles | None:
    """The files of a base if they are on this machine, without asking the network; None otherwise."""
    try:
        if source_kind(config.name) == "hub":
            return _from_hub(config, cached=True)
        return fetch_base(config)
    except (ConfigError, CheckpointError, DownloadError):
        return None


def fetch_base(config: PretrainedBase) -> BaseFiles:
    """The files of a base; those of the hub are fetched into its cache if need be.

    Raises:
        ConfigError: There is no such folder, distribution, repository or revision, or its weights are other ones.
        CheckpointError: The repository has no safetensors weights.
        DownloadError: The hub wants a token, cannot be reached, or must not be asked (``HF_HUB_OFFLINE``).
    """
    get = {"hub": _from_hub, "folder": _from_folder, "distribution": _from_distribution}[source_kind(config.name)]
    files = get(config)
    path, expected = files.folder / "model.safetensors", config.weights_sha256
    if expected is not None and (found := sha256_file(path) if path.is_file() else "no such file") != expected:
        what, fix = "are not those the profile names", "set base_model.weights_sha256, or use the model it belongs to"
        raise ConfigError(
            f"the weights of base '{config.name}' {what}", where=path, expected=expected, found=found, fix=fix
        )
    return files


def _from_folder(config: PretrainedBase) -> BaseFiles:
    folder = config.place
    if not folder.is_dir():
        raise ConfigError("there is no folder of that base", where=f"base_model.name: {config.name}")
    if config.revision is not None:
        raise ConfigError("a folder has no revision", where="base_model.revision", fix="leave it out")
    return BaseFiles(folder, {"kind": "folder"})


def _from_distribution(config: PretrainedBase) -> BaseFiles:
    found = _installed(config.name)
    if found is None or config.revision not in (None, found.version):
        raise ConfigError(
            f"the base '{config.name}' is a Python distribution that is not installed in the version asked for",
            expected=config.revision or "any",
            found=found.version if found else "none",
            fix=f"pip install {config.name}{'==' + config.revision if config.revision else ''}, or name another base "
            "(a hub repository is owner/name, a folder starts with ./ or /)",
        )
    folders = _model_folders(found)
    if len(folders) != 1:
        raise ConfigError(
            f"the distribution '{config.name}' does not carry one model",
            expected="one folder with config.json and *.safetensors",
            found=", ".join(folders) or "none",
        )
    facts = {"kind": "distribution", "name": config.name, "revision": found.version}
    return BaseFiles(Path(str(found.locate_file(folders[0]))), facts)


def _installed(name: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=name)), None)


def _model_folders(distribution: importlib.metadata.Distribution) -> list[str]:
    """Folders of an installed distribution that hold a config and safetensors weights."""
    files = [Path(str(path)) for path in distribution.files or ()]
    weights = {path.parent for path in files if path.suffix == ".safetensors"}
    return sorted(str(path.parent) for path in files if path.name == "config.json" and path.parent in weights)


def _distribution_digest(name: str) -> str | None:
    """sha256 over the recorded hashes of a distribution's model files (hex)."""
    if (found := _installed(name)) is None:
        return None
    folders = tuple(f"{folder}/" for folder in _model_folders(found))
    files = {str(path): path.hash for path in found.files or () if str(path).startswith(folders)}
    if not files:
        return None
    if any(known is None for known in files.values()):  # no RECORD: read the files
        return _folder_digest(Path(str(found.locate_file(folders[0]))))
    return digest_of({path: known.value for path, known in files.items() if known})


def _folder_digest(folder: Path) -> str | None:
    """sha256 over names and contents of a folder's model files (hex); None where there are none."""
    paths = sorted({path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file()})
    if not paths:
        return None
    stats = ((path, path.stat()) for path in paths)
    return digest_of({str(p.relative_to(folder)): _sha256(p, s.st_size, s.st_mtime_ns) for p, s in stats})


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    """sha256 of a file, read once while its size and time of change stay the same."""
    return sha256_file(path)


def _from_hub(config: PretrainedBase, *, cached: bool = False) -> BaseFiles:
    folder = hub_snapshot(config.name, PATTERNS, config.revision, "model", _IGNORED, cached)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    shards = set()
    for index in folder.glob("*.safetensors.index.json"):
        shards |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    expected = shards or {"model.safetensors"}
    if missing := sorted({"config.json", *expected} - names):
        raise CheckpointError(
            "the base is not whole: it has no weights that may be read (pickles are not), or files are missing",
            where=f"{config.name} at {folder.name}",
            expected=", ".join(missing),
            found=", ".join(sorted(names)[:10]),
            fix="take a revision or a model with safetensors weights; in an offline cache, fetch the missing files",
        )
    # The cache names a snapshot's folder after its commit.
    return BaseFiles(folder, {"kind": "hub", "name": config.name, "revision": folder.name})
