"""Lazy views of model folders under unified tensor names, and several models read together, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from boom_utils.artifacts import digest_of
from boom_utils.errors import CheckpointError, bullet_list
from boom_utils.merging.kernels import Rows
from boom_utils.merging.weight_files import MappedFile, TensorInfo, read_header, unified_name
from boom_utils.model_folder import (
    ADAPTER,
    find_weight_files,
    no_weights,
    refuse_code_and_pickles,
)

CHUNK = 1 << 18  # elements of a tensor over which sums and digests are taken before they are put together
LARGE = 1 << 23  # elements from which on all threads work on one tensor

Values = NDArray[Any]
Result = TypeVar("Result")
Work = Callable[[int, Rows], Result]
"""Works on a chunk: the number of its first element, and the elements of R models, whose memory may be used again."""


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
        self.sources: tuple[Path, ...] = (self.folder,)  # of two files of one name the later folder's counts
        if not self.folder.is_dir():
            raise CheckpointError("model folder not found", where=self.folder)
        refuse_code_and_pickles(self.folder)
        files, index = find_weight_files(self.folder)
        infos = [info for file in files for info in read_header(file)]
        if index and (problems := _index_problems(infos, index)):
            raise CheckpointError("the index of the shards lies" + bullet_list(problems), where=self.folder)
        self._files = {file: MappedFile(file) for file in files}
        self.tensors = _unified(infos, self.folder)

    def kind(self, name: str) -> np.dtype[Any]:
        """How NumPy holds values of that tensor exactly: float32, or float64 where it is stored so."""
        return np.dtype(np.float64 if self.tensors[name].dtype == "F64" else np.float32)

    def read(self, name: str, start: int = 0, size: int | None = None) -> Values:
        """Elements of a floating-point tensor, flattened, (size,), from number ``start`` on; exact, not to be written.

        Raises:
            CheckpointError: The file has become shorter.
        """
        info = self.tensors[name]
        raw = self._files[info.file].elements(info, start, size)
        # BF16 is the upper half of the bits of a float32.
        return np.left_shift(raw, 16, dtype=np.uint32).view(np.float32) if info.dtype == "BF16" else raw

    def raw(self, info: TensorInfo) -> Values:
        """All elements of a tensor of any kind as they are stored, flattened; not to be written."""
        return self._files[info.file].elements(info)


class AdapterCheckpoint(Checkpoint):
    """A base model with a LoRA adapter that peft adds to it, in float32.

    While it is opened, the whole model is in memory, then in a temporary folder. A head, which peft's model has not, is
    the base's.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter, as peft saves it.
        label: What messages call it.

    Raises:
        CheckpointError: One of the two cannot be read, or the adapter does not fit the base.
    """

    def __init__(self, base: Path, adapter: Path, label: str | None = None) -> None:
        import torch

        from boom_utils.models import open_transformer

        super().__init__(base, label or adapter.name)
        refuse_code_and_pickles(adapter)
        if not (adapter / ADAPTER).is_file():
            raise no_weights(adapter, ADAPTER)
        self.sources = (self.folder, adapter)
        with TemporaryDirectory(prefix="boom-") as place:
            open_transformer(base, torch.float32, adapter)[0].save_pretrained(place)
            self._adapted = Checkpoint(Path(place))  # its files are mapped: their names may go

    def read(self, name: str, start: int = 0, size: int | None = None) -> Values:
        """As `Checkpoint.read`, with the adapter added."""
        held = self._adapted.read if name in self._adapted.tensors else super().read
        return held(name, start, size)


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
                raw = model.raw(info)
                chunks = [raw[start : start + CHUNK] for start in range(0, raw.size, CHUNK)]
                parts[name] = digest_chunks(raw.dtype, [xxhash.xxh3_128_hexdigest(chunk.data) for chunk in chunks])
        found.append(digest_of({name: [list(info.shape), parts[name]] for name, info in model.tensors.items()}))
    return found


def digest_chunks(dtype: np.dtype[Any], chunks: Sequence[str]) -> str:
    """The digest of a tensor from the xxh3 digests of its chunks of `CHUNK` elements, in order."""
    return xxhash.xxh3_128_hexdigest(f"{dtype.str} {' '.join(chunks)}".encode())


def same_bytes(one: Checkpoint, a: TensorInfo, two: Checkpoint, b: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes (which tells -0 from 0, and knows NaN from NaN)."""
    same_form = (a.dtype, a.shape) == (b.dtype, b.shape)
    return same_form and np.array_equal(one.raw(a).view(np.uint8), two.raw(b).view(np.uint8))


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


class Tensor:
    """A floating-point tensor in all models, gone through any number of times, chunk by chunk.

    Args:
        name: Its unified name.
        models: R models with equal tensors.
        pool: Threads that share the chunks of a large tensor.
    """

    def __init__(self, name: str, models: Sequence[Checkpoint], pool: Executor) -> None:
        self.name, self.models = name, models
        self.size = models[0].tensors[name].size
        self.kind = np.result_type(*(model.kind(name) for model in models))
        self.large = self.size > LARGE
        self._each = pool.map if self.large else map

    def map(self, work: Work[Result], rows: Iterable[int] | None = None) -> list[Result]:
        """``work`` on every chunk.

        Args:
            work: Gets elements in float32, or float64 where one of the models is stored so.
            rows: Which models, by number; all when None.

        Returns:
            One result for each chunk, in order (a tensor without elements has one chunk without elements).
        """
        models = self.models if rows is None else [self.models[number] for number in rows]
        starts = range(0, max(self.size, 1), CHUNK)
        return list(self._each(lambda start: work(start, self._chunk(start, models)), starts))

    def _chunk(self, start: int, models: Sequence[Checkpoint]) -> Rows:
        parts = [model.read(self.name, start, min(CHUNK, self.size - start)) for model in models]
        fit = [part.dtype == self.kind and part.flags.aligned for part in parts]
        return Rows.of(parts if all(fit) else [np.array(part, self.kind) for part in parts])


def each_tensor(
    models: Sequence[Checkpoint], names: Iterable[str], work: Callable[[Tensor], Result], threads: int | None = None
) -> Iterator[Result]:
    """``work`` on every tensor, in no certain order: one thread a small tensor, all threads on each large one.

    There are two threads more than processors, so that some compute while others wait for the disk. Each holds a chunk
    of every model at most, whatever the size of the models; a tensor that is gone through again is read again.

    Args:
        models: R models with equal tensors, the base first if there is one.
        names: Unified names.
        work: What to do.
        threads: None: two more than this process has processors, at most 16.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads or min(processors + 2, 16), thread_name_prefix="merge")
    try:
        tensors = [Tensor(name, models, pool) for name in names]
        yield from (work(tensor) for tensor in tensors if tensor.large)
        yield from pool.map(work, (tensor for tensor in tensors if not tensor.large))
    finally:
        pool.shutdown(cancel_futures=True)
