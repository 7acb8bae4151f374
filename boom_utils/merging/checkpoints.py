"""A lazy view of a model folder under unified tensor names, and everything in which folders to be merged disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from boom_utils.artifacts import digest_of
from boom_utils.errors import CheckpointError, MergeError, bullet_list
from boom_utils.merging.kernels import widen_bfloat16
from boom_utils.merging.settings import Settings, encoder_settings, model_settings, setting_differences
from boom_utils.merging.weight_files import DTYPES, FLOATS, OpenFile, TensorInfo, read_header
from boom_utils.model_folder import PREFIX, find_weight_files, read_mapping, refuse_code_and_pickles

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
CHUNK = 1 << 18  # elements of a tensor that are read, multiplied and written together

Values = NDArray[Any]
_NOT_FLOAT = frozenset(DTYPES) - FLOATS


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
        refuse_code_and_pickles(self.folder)
        self._open_weights()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders its files come from; of two files of one name the later folder's counts."""
        return (self.folder,)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return read_mapping(self.sources[0] / "config.json")

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding, according to config.json."""
        return bool(self.config.get("tie_word_embeddings"))

    @cached_property
    def model_settings(self) -> Settings:
        """config.json and the tokenizer."""
        parts = (item for folder in self.sources for item in model_settings(folder).items())
        return {file: found for file, found in parts if any(found.values())}

    @cached_property
    def encoder_settings(self) -> Settings:
        """Modules, pooling, prompts and input length; empty unless the folder is a sentence-transformers model."""
        return {file: found for folder in self.sources for file, found in encoder_settings(folder).items()}

    def kind(self, name: str) -> np.dtype[Any]:
        """How NumPy holds values of that tensor exactly: float32, or float64 where it is stored so."""
        return np.dtype(np.float64 if self.tensors[name].dtype == "F64" else np.float32)

    def read_into(self, name: str, start: int, values: Values) -> None:
        """Read elements of a floating-point tensor, flattened, beginning with element ``start``; exact.

        Args:
            name: Unified name.
            start: The first element.
            values: (N,) float32 or float64, overwritten; at least as wide as `kind`.

        Raises:
            CheckpointError: The file cannot be read.
        """
        info = self.tensors[name]
        read_values(self._files[info.file], info, start, values)

    def read(self, name: str) -> Values:
        """A whole floating-point tensor, in its shape; float32, or float64 where it is stored so.

        Raises:
            CheckpointError: The file cannot be read.
        """
        info = self.tensors[name]
        values = np.empty(info.size, self.kind(name))
        self.read_into(name, 0, values)
        return values.reshape(info.shape)

    def raw_chunks(self, name: str) -> Iterator[Values]:
        """The elements of a tensor of any kind as they are stored, at most `CHUNK` at a time."""
        info = self.info(name)
        for start in range(0, info.size, CHUNK):
            raw = np.empty(min(CHUNK, info.size - start), DTYPES[info.dtype])
            self._raw_into(name, start, raw)
            yield raw

    def head_differs(self) -> bool:
        """Whether the folder stores a head that config.json calls tied but that is not the embedding."""
        return self._own_head is not None and EMBEDDING in self.tensors and not same_bytes(self, EMBEDDING, self, HEAD)

    def info(self, name: str) -> TensorInfo:
        """Where a tensor is stored; also of a tied head that is left out."""
        return self._own_head if name == HEAD and self._own_head is not None else self.tensors[name]

    def _raw_into(self, name: str, start: int, raw: Values) -> None:
        info = self.info(name)
        self._files[info.file].read_into(info.start + start * raw.itemsize, raw)

    def _open_weights(self) -> None:
        files, index = find_weight_files(self.folder)
        entries: dict[str, TensorInfo] = {}
        found: dict[str, list[str]] = {}
        for file in files:
            for info in read_header(file):
                entries[info.stored] = info
                found.setdefault(info.stored, []).append(file.name)
        if problems := _index_problems(found, index):
            raise CheckpointError("the index of the shards lies" + bullet_list(problems), where=self.folder)
        self._files = {file: OpenFile(file) for file in files}
        self._own_head = entries.pop(HEAD, None) if self.tied else None
        self.tensors = unified(entries, self.folder)


def read_values(file: OpenFile, info: TensorInfo, start: int, values: Values) -> Values:
    """Read elements of a floating-point tensor of an open file, exactly, into ``values`` (float32 or float64).

    Raises:
        CheckpointError: The file cannot be read.
    """
    stored = DTYPES[info.dtype]
    raw = values if stored == values.dtype else np.empty(values.size, stored)
    file.read_into(info.start + start * stored.itemsize, raw)
    if info.dtype == "BF16":
        wide = values if values.dtype == np.float32 else np.empty(values.size, np.float32)
        widen_bfloat16(raw, wide)
        raw = wide
    if raw is not values:
        values[:] = raw
    return values


def unified(entries: Mapping[str, TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """Tensors by their unified names, in the order of these.

    Raises:
        CheckpointError: Two tensors have one unified name.
    """
    names: dict[str, TensorInfo] = {}
    for stored, info in entries.items():
        name = stored.removeprefix(PREFIX)
        if name in names:
            both = " and ".join(sorted((names[name].stored, stored)))
            raise CheckpointError("two tensors have one name", where=where, found=both)
        names[name] = info
    return dict(sorted(names.items()))


def fingerprint_of(model: Checkpoint, digests: Mapping[str, str]) -> str:
    """One digest (hex) of a model's values, whatever its shards, the prefix of its names and its 16 or 32 bits.

    Args:
        model: The model.
        digests: What `digest_chunks` says of its floating-point tensors; the others are read here.
    """
    parts = dict(digests)
    for name, info in model.tensors.items():
        if not info.is_float:
            raw = [xxhash.xxh3_128_hexdigest(chunk.data) for chunk in model.raw_chunks(name)]
            parts[name] = digest_chunks(DTYPES[info.dtype], raw)
    return digest_of({name: [list(info.shape), parts[name]] for name, info in model.tensors.items()})


def digest_chunks(dtype: np.dtype[Any], chunks: Sequence[str]) -> str:
    """The digest of a tensor from the xxh3 digests of its chunks of `CHUNK` elements, in order."""
    return xxhash.xxh3_128_hexdigest(f"{dtype.str} {' '.join(chunks)}".encode())


def require_compatible(
    members: Sequence[Checkpoint], bases: Sequence[Checkpoint] = (), one_dtype: bool = False
) -> None:
    """Refuse models that `compare_checkpoints` finds different.

    Args:
        members: The models to merge.
        bases: Models that are only the base of others.
        one_dtype: Whether members of several dtypes are a difference too.

    Raises:
        MergeError: They differ; every difference is listed.
    """
    if problems := [*compare_checkpoints(members, bases), *(_mixed_dtypes(members) if one_dtype else [])]:
        raise MergeError(
            "the models cannot be merged, because they differ" + bullet_list(problems),
            fix="merge models that were trained from one base, with one tokenizer, pooling and set of prompts",
        )


def compare_checkpoints(members: Sequence[Checkpoint], bases: Sequence[Checkpoint] = ()) -> list[str]:
    """All differences that make models unfit to be merged; each one is compared with the first member.

    Compared are names, shapes and kinds of the tensors, config.json, tokenizer, modules, pooling, prompts and input
    length. A base that is no embedding model (no modules.json) has nothing to say about the last four. Values are
    looked at when they are read: `not_finite` names all of them that cannot be merged.

    Args:
        members: The models to merge.
        bases: Models that are only the base of others.

    Returns:
        One sentence for each difference; empty when the models fit.
    """
    first = members[0]
    models = [*members, *bases]
    problems = [f"{model.label}: {HEAD} is not the embedding that config.json ties it to" for model in models
                if model.head_differs()]  # fmt: skip
    for other in models[1:]:
        problems += _tensor_differences(first, other)
        problems += _setting_differences(first, other, "model_settings")
        if other not in bases or other.encoder_settings:
            problems += _setting_differences(first, other, "encoder_settings")
    return problems


def same_bytes(one: Checkpoint, name: str, two: Checkpoint, other: str) -> bool:
    """Whether two tensors hold the same bytes (which tells -0 from 0, and knows NaN from NaN)."""
    a, b = one.info(name), two.info(other)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    pairs = zip(one.raw_chunks(name), two.raw_chunks(other), strict=True)
    return all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)


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
        elif not a.is_float and not same_bytes(first, name, other, name):
            problems.append(f"{other.label}: {name} ({a.dtype}, cannot be averaged) differs from {first.label}")
    return sorted(problems)


def _mixed_dtypes(members: Sequence[Checkpoint]) -> list[str]:
    first = members[0]
    return [
        f"{other.label}: {name} is {other.tensors[name].dtype}, in {first.label} {info.dtype}; the recipe sets no dtype"
        for other in members[1:]
        for name, info in first.tensors.items()
        if info.is_float and other.tensors.get(name, info).dtype not in (info.dtype, *_NOT_FLOAT)
    ]


def _setting_differences(first: Checkpoint, other: Checkpoint, kind: str) -> list[str]:
    found = setting_differences(getattr(first, kind), getattr(other, kind))
    return [f"{other.label}: {key}: {_short(b)}, in {first.label} {_short(a)}" for key, a, b in found]


def _short(value: Any) -> str:
    """The value, or its kind and a digest where it is long (a vocabulary)."""
    text = value if isinstance(value, str) and value in ("present", "missing") else repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} of sha256 {digest_of(value)[:8]}"
