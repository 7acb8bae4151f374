"""A lazy view of a model folder under unified tensor names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from boom_utils.artifacts import digest_of
from boom_utils.errors import CheckpointError, bullet_list
from boom_utils.merging.kernels import widen_bfloat16
from boom_utils.merging.settings import Part, parts_of
from boom_utils.merging.weight_files import DTYPES, OpenFile, TensorInfo, read_header, unified_name
from boom_utils.model_folder import find_weight_files, refuse_code_and_pickles

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
CHUNK = 1 << 18  # elements of a tensor that are read, multiplied and written together

Values = NDArray[Any]


class Checkpoint:
    """The weights of a model folder, read lazily from safetensors.

    Names are unified (`unified_name`), because one model is saved with and without its head; a head tied to the
    embedding is left out, because it is the embedding.

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
    def parts(self) -> dict[str, Part]:
        """What it says besides its weights, file by file."""
        found = (parts_of(folder) for folder in self.sources)
        return {**next(found), **{file: part for parts in found for file, part in parts.items() if part.written}}

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

    def raw_chunks(self, info: TensorInfo) -> Iterator[Values]:
        """The elements of a tensor of any kind as they are stored, at most `CHUNK` at a time."""
        for start in range(0, info.size, CHUNK):
            raw = np.empty(min(CHUNK, info.size - start), DTYPES[info.dtype])
            self._files[info.file].read_into(info.start + start * raw.itemsize, raw)
            yield raw

    def head_differs(self) -> bool:
        """Whether the folder stores a head that its config calls tied but that is not the embedding."""
        head, embedding = self._tied_head, self.tensors.get(EMBEDDING)
        return head is not None and embedding is not None and not same_bytes(self, embedding, self, head)

    def _open_weights(self) -> None:
        files, index = find_weight_files(self.folder)
        infos = [info for file in files for info in read_header(file)]
        if index and (problems := _index_problems(infos, index)):
            raise CheckpointError("the index of the shards lies" + bullet_list(problems), where=self.folder)
        self._files = {file: OpenFile(file) for file in files}
        self.tensors = _unified(infos, self.folder)
        config = self.parts["config.json"]
        tied = HEAD in self.tensors and (config.loaded() or config.written).get("tie_word_embeddings")
        self._tied_head = self.tensors.pop(HEAD) if tied else None


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


def fingerprints(models: Sequence[Checkpoint], digests: Mapping[str, Sequence[str]]) -> list[str]:
    """One digest (hex) of each model's values, whatever its shards, its tensors' prefix and its 16 or 32 bits.

    Args:
        models: The models.
        digests: What `digest_chunks` says of every floating-point tensor in each model; the others are read here.
    """
    found = []
    for number, model in enumerate(models):
        parts = {name: ones[number] for name, ones in digests.items()}
        for name, info in model.tensors.items():
            if not info.is_float:
                raw = [xxhash.xxh3_128_hexdigest(chunk.data) for chunk in model.raw_chunks(info)]
                parts[name] = digest_chunks(DTYPES[info.dtype], raw)
        found.append(digest_of({name: [list(info.shape), parts[name]] for name, info in model.tensors.items()}))
    return found


def digest_chunks(dtype: np.dtype[Any], chunks: Sequence[str]) -> str:
    """The digest of a tensor from the xxh3 digests of its chunks of `CHUNK` elements, in order."""
    return xxhash.xxh3_128_hexdigest(f"{dtype.str} {' '.join(chunks)}".encode())


def same_bytes(one: Checkpoint, a: TensorInfo, two: Checkpoint, b: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes (which tells -0 from 0, and knows NaN from NaN)."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    pairs = zip(one.raw_chunks(a), two.raw_chunks(b), strict=True)
    return all(mine.tobytes() == theirs.tobytes() for mine, theirs in pairs)


def _unified(infos: Iterable[TensorInfo], where: Path) -> dict[str, TensorInfo]:
    """Tensors by their unified names, in the order of these."""
    names: dict[str, TensorInfo] = {}
    for info in infos:
        if (other := names.setdefault(unified_name(info.stored), info)) is not info:
            both = " and ".join(sorted((other.stored, info.stored)))
            raise CheckpointError("two tensors have one name", where=where, found=both)
    return dict(sorted(names.items()))


def _index_problems(infos: Iterable[TensorInfo], index: Mapping[str, str]) -> list[str]:
    """Where the files do not hold what the index says."""
    found: dict[str, list[str]] = {name: [] for name in index}
    for info in infos:
        found.setdefault(info.stored, []).append(info.file.name)
    return [
        f"{name}: the index says {index.get(name, 'nothing')}, it is in {' and '.join(files) or 'no file'}"
        for name, files in sorted(found.items())
        if files != [index.get(name)]
    ]
