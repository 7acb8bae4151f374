"""Where a pretrained base comes from: the hub, a folder, or an installed Python distribution that carries one.

Finds the files and says what they are, so that artifacts can be keyed by it. Opens no model and imports no torch. On
the hub only JSON, text and safetensors files are fetched; a repository with nothing but pickles is refused before that.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.config import PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError, DownloadError
from boom_utils.model_folder import PICKLES

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""Files of a model that are read; weights only at the top, subfolders hold copies for other programs."""
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
    else:
        found = _distribution_digest(config.name)
    kept = config.model_dump(mode="json", exclude={"name", "parameters", "embedding_parameters"})
    return {**kept, kind: found}


def find_base(config: PretrainedBase) -> BaseFiles | None:
    """The files of a base if they are on this machine, without asking the network; None otherwise."""
    kind = source_kind(config.name)
    try:
        if kind == "hub":
            return _from_hub(config, offline=True)
        return _from_folder(config) if kind == "folder" else _from_distribution(config)
    except (ConfigError, CheckpointError, DownloadError):
        return None


def fetch_base(config: PretrainedBase) -> BaseFiles:
    """The files of a base; those of the hub are fetched into its cache if need be.

    Raises:
        ConfigError: There is no such folder, distribution, repository or revision, or its weights are other ones.
        CheckpointError: The repository has no safetensors weights.
        DownloadError: The hub wants a token, cannot be reached, or must not be asked (``HF_HUB_OFFLINE``).
    """
    kind = source_kind(config.name)
    if kind == "hub":
        files = _from_hub(config, offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"))
    else:
        files = _from_folder(config) if kind == "folder" else _from_distribution(config)
    _check_weights(config, files.folder)
    return files


def _check_weights(config: PretrainedBase, folder: Path) -> None:
    if config.weights_sha256 is None:
        return
    path = folder / "model.safetensors"
    found = sha256_file(path) if path.is_file() else "no such file"
    if found != config.weights_sha256:
        raise ConfigError(
            f"the weights of base '{config.name}' are not those the profile names",
            where=path,
            expected=config.weights_sha256,
            found=found,
            fix="set base_model.weights_sha256, or use the model it belongs to",
        )


def _from_folder(config: PretrainedBase) -> BaseFiles:
    folder = config.place
    if not folder.is_dir():
        raise ConfigError("there is no folder of that base", where=f"base_model.name: {config.name}")
    if config.revision is not None:
        raise ConfigError("a folder has no revision", where="base_model.revision", fix="leave it out")
    return BaseFiles(folder, {"kind": "folder"})


def _from_distribution(config: PretrainedBase) -> BaseFiles:
    try:
        found = importlib.metadata.distribution(config.name)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"the base '{config.name}' is a Python distribution that is not installed",
            fix=f"pip install {config.name}{'==' + config.revision if config.revision else ''}, or name another base "
            "(a hub repository is owner/name, a folder starts with ./ or /)",
        ) from None
    if config.revision not in (None, found.version):
        raise ConfigError(
            f"another version of '{config.name}' is installed",
            expected=config.revision,
            found=found.version,
            fix=f"pip install {config.name}=={config.revision}",
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


def _model_folders(distribution: importlib.metadata.Distribution) -> list[str]:
    """Folders of an installed distribution that hold a config and safetensors weights."""
    files = [Path(str(path)) for path in distribution.files or ()]
    weights = {path.parent for path in files if path.suffix == ".safetensors"}
    return sorted(str(path.parent) for path in files if path.name == "config.json" and path.parent in weights)


def _distribution_digest(name: str) -> str | None:
    """sha256 over the recorded hashes of a distribution's model files (hex)."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
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


def _from_hub(config: PretrainedBase, *, offline: bool) -> BaseFiles:
    from huggingface_hub import snapshot_download

    endpoint, revision = os.environ.get("HF_ENDPOINT") or None, config.revision
    with _hub_errors(config, offline=offline):
        if not offline:
            revision = _hub_commit(config, endpoint)
        folder = snapshot_download(
            config.name,
            revision=revision,
            endpoint=endpoint,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(_IGNORED),
            local_files_only=offline,
        )
    # The cache names a snapshot's folder after its commit.
    return BaseFiles(Path(folder), {"kind": "hub", "name": config.name, "revision": Path(folder).name})


def _hub_commit(config: PretrainedBase, endpoint: str | None) -> str:
    """The commit of a repository, after a look at whether it has weights that may be read."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(config.name, revision=config.revision)
    names = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
        raise CheckpointError(
            "the weights are pickled; reading a pickle can run any program it carries, so the kit does not"
            if pickles
            else "the repository has no weights",
            where=f"{config.name} at {info.sha}",
            expected="*.safetensors",
            found=", ".join(pickles or sorted(names)[:10]) or "nothing",
            fix="take a revision or a model with safetensors weights",
        )
    return str(info.sha)


@contextmanager
def _hub_errors(config: PretrainedBase, *, offline: bool) -> Iterator[None]:
    """The hub's own errors as the kit's."""
    from huggingface_hub import errors as hub

    where = config.name if config.revision is None else f"{config.name} at {config.revision}"
    try:
        yield
    except hub.GatedRepoError as error:
        raise DownloadError(
            "the hub asks for permission to use this base",
            where=where,
            fix="accept its terms on its page, then set HF_TOKEN",
            found=_first_line(error),
        ) from None
    except (hub.RevisionNotFoundError, hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        what = "revision" if isinstance(error, hub.RevisionNotFoundError) else "repository"
        raise ConfigError(
            f"the hub has no such {what}",
            where=where,
            fix="check base_model.name and base_model.revision; a private one needs HF_TOKEN",
            found=_first_line(error),
        ) from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError, OSError) as error:
        why = "HF_HUB_OFFLINE forbids to fetch it" if offline else "the hub does not give it"
        raise DownloadError(
            f"the base is not in the hub's cache on this machine, and {why}",
            where=where,
            fix="allow the network, set HF_ENDPOINT or HF_HOME, or name a folder or distribution that has the model",
            found=_first_line(error),
        ) from None
    except Exception as error:
        # The hub's HTTP client is its own affair and has changed its name before.
        if not type(error).__module__.startswith("httpx"):
            raise
        raise DownloadError(
            "the hub cannot be reached",
            where=where,
            fix="check the network, HF_ENDPOINT and proxies; what is in the hub's cache needs HF_HUB_OFFLINE=1",
            found=_first_line(error),
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
