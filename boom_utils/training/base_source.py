"""Where a pretrained base comes from: the hub, a folder, or an installed Python distribution that carries one.

A folder or distribution holds safetensors weights, or a GGUF file, which distributions may carry in parts.

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
from boom_utils.errors import CheckpointError, ConfigError, DownloadError, some_of
from boom_utils.model_folder import adapter_base, is_adapter

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Files of a model that are read; weights only at the top, subfolders hold copies for other programs."""
_NOT_OF_THE_BASE = {"name", "parameters", "embedding_parameters", "query_prompt", "passage_prompt"}
_IGNORED = ("*/*.safetensors", "onnx/*", "openvino/*")
_GGUF = re.compile(r"(.+\.gguf)(\.part\d+)?")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base on this machine.

    Args:
        folder: Where they lie.
        facts: Kind of source, name and revision, for the record.
        gguf: Where the weights are a GGUF file: its path, or those of its parts in order.
    """

    folder: Path
    facts: dict[str, Any]
    gguf: tuple[Path, ...] = ()


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
    if not files.gguf:
        check_weights(config, files.folder / "model.safetensors")
    return files


def check_weights(config: PretrainedBase, path: Path) -> None:
    """Refuse a file of weights that is not the one the profile names, if it names one.

    Raises:
        ConfigError: It is another one, or not there.
    """
    expected = config.weights_sha256
    if expected is not None and (found := sha256_file(path) if path.is_file() else "no such file") != expected:
        what, fix = "are not those the profile names", "set base_model.weights_sha256, or use the model it belongs to"
        raise ConfigError(
            f"the weights of base '{config.name}' {what}", where=path, expected=expected, found=found, fix=fix
        )


def _from_folder(config: PretrainedBase) -> BaseFiles:
    folder = config.place
    if not folder.is_dir():
        raise ConfigError("there is no folder of that base", where=f"base_model.name: {config.name}")
    if config.revision is not None:
        raise ConfigError("a folder has no revision", where="base_model.revision", fix="leave it out")
    return BaseFiles(folder, {"kind": "folder"}, _gguf_of(folder))


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
    folders, facts = _model_folders(found), {"kind": "distribution", "name": config.name, "revision": found.version}
    parts = () if folders else tuple(Path(str(part.locate())) for part in _gguf_parts(found))
    if parts:
        return BaseFiles(parts[0].parent, facts, parts)
    if len(folders) != 1:
        raise ConfigError(
            f"the distribution '{config.name}' does not carry one model",
            expected="one folder with config.json and *.safetensors, or one GGUF file, whole",
            found=", ".join(folders) or "none",
            fix=f"if its parts are distributions of their own: pip install {config.name}=={found.version}",
        )
    return BaseFiles(Path(str(found.locate_file(folders[0]))), facts)


def _installed(name: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=name)), None)


def _model_folders(distribution: importlib.metadata.Distribution) -> list[str]:
    """Folders of an installed distribution that hold a config and safetensors weights."""
    files = [Path(str(path)) for path in distribution.files or ()]
    weights = {path.parent for path in files if path.suffix == ".safetensors"}
    return sorted(str(path.parent) for path in files if path.name == "config.json" and path.parent in weights)


def _gguf_parts(distribution: importlib.metadata.Distribution) -> list[importlib.metadata.PackagePath]:
    """The GGUF file that a distribution carries, or its parts, in order; they may be in distributions that it requires.

    None where there is not exactly one, or a distribution of a part is not installed.
    """
    name = distribution.metadata["Name"]
    required = [match[0] for text in distribution.requires or () if (match := re.match(r"[\w.-]+", text))]
    carriers = [distribution, *(_installed(one) for one in required if one.startswith(f"{name}-"))]
    if None in carriers:
        return []
    found = {path.name: path for one in carriers for path in (one and one.files) or () if _GGUF.fullmatch(path.name)}
    wholes = {_GGUF.sub(r"\1", part) for part in found}
    return [found[part] for part in sorted(found)] if len(wholes) == 1 else []


def _gguf_of(folder: Path) -> tuple[Path, ...]:
    """The GGUF file of a folder that has one, and no safetensors weights."""
    found = tuple(folder.glob("*.gguf"))
    return () if len(found) != 1 or any(folder.glob("*.safetensors")) else found


def _distribution_digest(name: str) -> str | None:
    """sha256 over the recorded hashes of a distribution's model files (hex)."""
    if (found := _installed(name)) is None:
        return None
    folders = tuple(f"{folder}/" for folder in _model_folders(found))
    paths = [path for path in found.files or () if str(path).startswith(folders)] if folders else _gguf_parts(found)
    files = {str(path): path.hash for path in paths}
    if not files:
        return None
    if folders and any(known is None for known in files.values()):  # no RECORD: read the files
        return _folder_digest(Path(str(found.locate_file(folders[0]))))
    return digest_of({path: known.value for path, known in files.items() if known})


def _folder_digest(folder: Path) -> str | None:
    """sha256 over names and contents of a folder's model files (hex); None where there are none."""
    paths = sorted({path for pattern in PATTERNS for path in folder.rglob(pattern) if path.is_file()})
    paths += _gguf_of(folder)
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
            expected=some_of(missing),
            found=some_of(sorted(names)),
            fix="take a revision or a model with safetensors weights; in an offline cache, fetch the missing files",
        )
    # The cache names a snapshot's folder after its commit.
    return BaseFiles(folder, {"kind": "hub", "name": config.name, "revision": folder.name})
