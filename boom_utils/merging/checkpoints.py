"""A lazy view of a model folder under unified tensor names, and everything in which folders to be merged disagree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boom_utils.artifacts import digest_of
from boom_utils.errors import CheckpointError, MergeError, bullet_list
from boom_utils.merging.settings import Settings, encoder_settings, model_settings, read_mapping, setting_differences
from boom_utils.merging.weight_files import (
    DTYPES,
    FLOATS,
    find_weight_files,
    open_weights,
    reading,
    refuse_module_pickles,
)

PREFIX = "model."
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
BLOCK = 1 << 20  # elements looked at together when bytes are compared or hashed


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored and what it looks like, from the header of its file.

    Attributes:
        stored: Its name in the file; the unified name is this one without a leading ``model.``.
        file: Its file.
        dtype: Its dtype in safetensors' spelling, such as ``BF16``.
        shape: Its shape.
    """

    stored: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it is merged; a tensor of another kind has to be the same in all models and is carried over."""
        return self.dtype in FLOATS


class Checkpoint:
    """The weights of a model folder, read lazily from safetensors.

    Names are unified, because the same model is saved with and without the prefix ``model.`` (with and without its
    language-modelling head); a head tied to the embedding is left out, because it is the embedding.

    Args:
        folder: The model folder.
        label: What messages call it; the name of the folder when None.

    Raises:
        CheckpointError: The folder has no readable safetensors weights, has pickled ones, or asks for code of its own.
    """

    def __init__(self, folder: Path, label: str | None = None) -> None:
        self.folder = Path(folder)
        self.label = label or self.folder.name
        if not self.folder.is_dir():
            raise CheckpointError("model folder not found", where=self.folder)
        self.config: Mapping[str, Any] = read_mapping(self.folder / "config.json")
        if "auto_map" in self.config:
            raise CheckpointError(
                "the model brings code of its own, which the kit does not run",
                where=self.folder / "config.json",
                found="auto_map",
            )
        refuse_module_pickles(self.folder)
        self._handles: dict[Path, Any] = {}
        self._stored = self._read_headers()
        self.tensors: Mapping[str, TensorInfo] = self._unified()

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding, according to config.json."""
        return bool(self.config.get("tie_word_embeddings"))

    @cached_property
    def model_settings(self) -> Settings:
        """config.json and the tokenizer."""
        return model_settings(self.folder)

    @cached_property
    def encoder_settings(self) -> Settings:
        """Modules, pooling, prompts and input length; empty unless the folder is a sentence-transformers model."""
        return encoder_settings(self.folder)

    def read(self, name: str) -> Tensor:
        """The tensor of that unified name; its pages come in from the mapped file as they are used.

        Raises:
            CheckpointError: The file cannot be read.
        """
        return self._read(self.tensors[name])

    def content_sha256(self) -> str:
        """sha256 (hex) of names, dtypes, shapes and values, whatever the shards and the prefix of the names."""
        return digest_of({name: self._tensor_facts(name) for name in self.tensors})

    def head_differs(self) -> bool:
        """Whether the folder stores a head that config.json calls tied but that is not the embedding."""
        head, embedding = self._stored.get(HEAD), self.tensors.get(EMBEDDING)
        if not self.tied or head is None or embedding is None:
            return False
        return not same_bytes(self._read(head), self._read(embedding))

    def _read(self, info: TensorInfo) -> Tensor:
        with reading(info.file):
            tensor: Tensor = self._handles[info.file].get_tensor(info.stored)
        return tensor

    def _tensor_facts(self, name: str) -> list[Any]:
        digest = hashlib.sha256()
        for block in _byte_blocks(self.read(name)):
            digest.update(block.numpy().data)
        info = self.tensors[name]
        return [info.dtype, list(info.shape), digest.hexdigest()]

    def _read_headers(self) -> dict[str, TensorInfo]:
        files, index = find_weight_files(self.folder)
        entries: dict[str, TensorInfo] = {}
        found: dict[str, list[str]] = {}
        for file in files:
            self._handles[file] = handle = open_weights(file)
            for name in handle.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                entries[name] = _header_entry(handle, name, file)
                found.setdefault(name, []).append(file.name)
        if problems := _index_problems(found, index):
            raise CheckpointError("the index of the shards lies" + bullet_list(problems), where=self.folder)
        return entries

    def _unified(self) -> dict[str, TensorInfo]:
        unified: dict[str, TensorInfo] = {}
        for stored in sorted(self._stored):
            name = stored.removeprefix(PREFIX)
            if name == HEAD and self.tied:
                continue
            if name in unified:
                raise CheckpointError(
                    "two tensors have one name", where=self.folder, found=f"{unified[name].stored} and {stored}"
                )
            unified[name] = self._stored[stored]
        return unified


def open_checkpoints(folders: Sequence[Path]) -> list[Checkpoint]:
    """Open model folders, each labelled by as much of its path as tells it from the others."""
    return [Checkpoint(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def require_compatible(members: Sequence[Checkpoint], base: Checkpoint | None = None, more: Sequence[str] = ()) -> None:
    """Refuse models that `compare_checkpoints` finds different.

    Args:
        members: The models to merge.
        base: Their base.
        more: Further differences, found by the caller, to report in the same error.

    Raises:
        MergeError: They differ; every difference is listed.
    """
    if problems := [*compare_checkpoints(members, base), *more]:
        raise MergeError(
            "the models cannot be merged, because they differ" + bullet_list(problems),
            fix="merge models that were trained from one base, with one tokenizer, pooling and set of prompts",
        )


def compare_checkpoints(members: Sequence[Checkpoint], base: Checkpoint | None = None) -> list[str]:
    """All differences that make models unfit to be merged; each one is compared with the first member.

    Compared are names, shapes and kinds of the tensors, config.json, tokenizer, modules, pooling, prompts and input
    length. A base that is no embedding model (no modules.json) has nothing to say about the last four.

    Returns:
        One sentence for each difference; empty when the models fit.
    """
    first = members[0]
    models = [*members] if base is None else [*members, base]
    problems = [f"{model.label}: {HEAD} is not the embedding that config.json ties it to" for model in models
                if model.head_differs()]  # fmt: skip
    for other in models[1:]:
        problems += _tensor_differences(first, other)
        problems += _setting_differences(first, other, "model_settings")
        if other is not base or other.encoder_settings:
            problems += _setting_differences(first, other, "encoder_settings")
    return problems


def same_bytes(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same bytes (unlike ``torch.equal``, tells -0 from 0 and knows NaN from NaN)."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    pairs = zip(_byte_blocks(one), _byte_blocks(two), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def _byte_blocks(tensor: Tensor) -> Iterator[Tensor]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, data.numel(), BLOCK):
        yield data[start : start + BLOCK]


def _header_entry(handle: Any, name: str, file: Path) -> TensorInfo:
    with reading(file):
        header = handle.get_slice(name)
        info = TensorInfo(name, file, header.get_dtype(), tuple(header.get_shape()))
    if info.dtype not in DTYPES:
        raise CheckpointError(
            "a tensor has a dtype that is not supported",
            where=f"{name} in {file}",
            expected=", ".join(DTYPES),
            found=info.dtype,
        )
    return info


def _index_problems(found: Mapping[str, list[str]], index: Mapping[str, str]) -> list[str]:
    """Where the files do not hold what the index says (no index: no problem)."""
    problems = []
    for name in sorted({*found, *index}):
        says, is_in = index.get(name, "nothing"), found.get(name, [])
        if is_in != [says]:
            problems.append(f"{name}: the index says {says}, it is in {' and '.join(is_in) or 'no file'}")
    return problems if index else []


def _tensor_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    ours, theirs = first.tensors, other.tensors
    problems = [f"{other.label}: has no {name}, {first.label} has" for name in ours if name not in theirs]
    problems += [f"{other.label}: has {name}, {first.label} has not" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            problems.append(f"{other.label}: {name} has shape {list(b.shape)}, in {first.label} {list(a.shape)}")
        elif a.is_float != b.is_float or (not a.is_float and a.dtype != b.dtype):
            problems.append(f"{other.label}: {name} is {b.dtype}, in {first.label} {a.dtype}")
        elif not a.is_float and not same_bytes(first.read(name), other.read(name)):
            problems.append(f"{other.label}: {name} ({a.dtype}, cannot be averaged) differs from {first.label}")
    return sorted(problems)


def _setting_differences(first: Checkpoint, other: Checkpoint, kind: str) -> list[str]:
    found = setting_differences(getattr(first, kind), getattr(other, kind))
    return [f"{other.label}: {key}: {_short(b)}, in {first.label} {_short(a)}" for key, a, b in found]


def _short(value: Any) -> str:
    """The value, or its kind and a digest where it is long (a vocabulary)."""
    text = value if isinstance(value, str) and value in ("present", "missing") else repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} of sha256 {digest_of(value)[:8]}"


def _labels(folders: Sequence[Path]) -> list[str]:
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [str(path) for path in paths]
