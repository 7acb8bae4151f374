"""safetensors files: their headers read strictly, their tensors read and written piece by piece.

Files are mapped: values are taken from the system's page cache without a copy. Before a piece is read the file's size
is looked at, so that a file that was truncated is an error and not a crash. Pieces are written past the page cache,
where the system can: taking new pages, filling them and waiting for the disk costs more than a whole merge.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from boom_utils.errors import CheckpointError
from boom_utils.model_folder import INDEX

# Name in a safetensors header -> how NumPy holds an element, in the order in which safetensors lays tensors out: widest
# first, so that every tensor is aligned. NumPy has no bfloat16: its 16 bits stand for it.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I32": np.dtype("<i4"),
    "BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}  # fmt: skip
FLOATS: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BLOCK_BYTES = 1 << 20  # written at once; a multiple of every disk's block
_WRAPPED = re.compile(r"^(?:_orig_mod\.|module\.)+")
# Not in DistilBERT, whose layers have such a name.
_PREFIX = re.compile(
    r"^(?:model|bert|roberta|distilbert|mpnet|electra|albert|deberta|ernie|nomic_bert|transformer(?!\.layer\.))\."
)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored and what it looks like, from the header of its file.

    Attributes:
        stored: Its name in the file.
        file: Its file.
        dtype: Its dtype in safetensors' spelling, such as ``BF16``.
        shape: Its shape.
        start: Where its bytes begin in the file.
    """

    stored: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def is_float(self) -> bool:
        """Whether it is merged; a tensor of another kind has to be the same in all models and is carried over."""
        return self.dtype in FLOATS

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.size * DTYPES[self.dtype].itemsize


def plain_name(stored: str) -> str:
    """The name that libraries look for: without what a compiled or wrapped module put before it."""
    return _WRAPPED.sub("", stored)


def unified_name(stored: str) -> str:
    """The name in a model without a head; transformers also takes it with the prefix that a model with a head has."""
    return _PREFIX.sub("", plain_name(stored))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading a safetensors file into a `CheckpointError` that names it."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError, OverflowError) as error:
        fine = "a whole safetensors file"
        raise CheckpointError("a weight file cannot be read", where=path, expected=fine, found=error) from error


def read_header(path: Path) -> list[TensorInfo]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: It is not a valid safetensors file (holes and overlaps included), or has a dtype of another
            world.
    """
    with _reading(path):
        with safe_open(path, framework="np"):  # the library checks the header, and that it fits the file
            pass
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length), object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = [
            TensorInfo(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        ]
        if strange := [f"{info.stored} is {info.dtype}" for info in entries if info.dtype not in DTYPES]:
            raise ValueError(f"{', '.join(strange)}; supported are {', '.join(DTYPES)}")
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the library lets the last one win
        raise ValueError("a name is given twice in its header")
    return found


class MappedFile:
    """A weight file that is read where the system holds it, without a copy, from several threads.

    Args:
        path: The file.

    Raises:
        CheckpointError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path), path.open("rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)

    def elements(self, info: TensorInfo, start: int = 0, size: int | None = None) -> NDArray[Any]:
        """Elements of a tensor as they are stored, (size,), from number ``start`` on: a view that cannot be written.

        Raises:
            CheckpointError: The file has become shorter; reading it then would end the process.
        """
        stored, size = DTYPES[info.dtype], info.size - start if size is None else size
        begin = info.start + start * stored.itemsize
        with _reading(self.path):
            if (missing := begin + size * stored.itemsize - self._map.size()) > 0:
                raise ValueError(f"it ends {missing} bytes too early: was it changed meanwhile?")
        return np.frombuffer(self._map, stored, size, begin) if size else np.empty(0, stored)


class BlockFile:
    """A new file of known size, written in pieces, in any order and from several threads.

    Pieces are gathered in aligned blocks, which the disk takes from where they are. Every byte has to be written once;
    blocks that are only partly there are held in memory.

    Args:
        path: A file that does not exist.
        size: Its bytes.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._blocks: dict[int, tuple[NDArray[np.uint8], list[int]]] = {}  # bytes, and how many of them are there
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._direct: int | None = None
        self._plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(self._plain, size)
        except OSError:
            self.close(complete=False)
            raise
        with suppress(AttributeError, OSError):  # macOS, files in memory: through the page cache
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write the bytes of an array at ``start``; the array may change afterwards.

        Raises:
            OSError: The disk is full.
        """
        data = values.reshape(-1).view(np.uint8)
        while data.size:
            number, offset = divmod(start, BLOCK_BYTES)
            part = data[: BLOCK_BYTES - offset]
            with self._lock:
                block, sizes = self._blocks.get(number) or self._blocks.setdefault(number, (self._memory(), []))
            block[offset : offset + part.size] = part
            with self._lock:
                sizes.append(part.size)
                whole = sum(sizes) == min(BLOCK_BYTES, self._size - number * BLOCK_BYTES)
            if whole:
                self._put(number * BLOCK_BYTES, memoryview(block[: sum(sizes)].data))
                with self._lock:
                    del self._blocks[number]
                    self._spare.append(block)
            start, data = start + part.size, data[part.size :]

    def close(self, complete: bool = True) -> None:
        """Close the file; when it is ``complete``, after the disk has all of it.

        Raises:
            OSError: The disk has not taken it.
            ValueError: Bytes are missing.
        """
        numbers = [number for number in (self._plain, self._direct) if number is not None and number >= 0]
        try:
            if complete and self._blocks:
                raise ValueError(f"{len(self._blocks)} blocks of a file were not written whole")
            if complete and numbers:
                os.fsync(self._plain)
        finally:
            self._plain, self._direct = -1, None
            for number in numbers:
                os.close(number)

    def _memory(self) -> NDArray[np.uint8]:
        # An anonymous mapping begins at a page, which direct writing needs.
        return self._spare.pop() if self._spare else np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), dtype=np.uint8)

    def _put(self, place: int, view: memoryview) -> None:
        while view:
            direct = self._direct if len(view) == BLOCK_BYTES else None  # the end of the file is no whole block
            try:
                count = os.pwrite(self._plain if direct is None else direct, view, place)
            except OSError as error:
                if direct is None or error.errno != errno.EINVAL:
                    raise
                count = os.pwrite(self._plain, view, place)  # this file system has other ideas of alignment
            view, place = view[count:], place + count


class WeightWriter:
    """Weights written in any order, into one file or shards with their index; the bytes are those safetensors writes.

    Args:
        folder: An existing folder.
        layout: Name, dtype and shape of every tensor.
        max_shard_bytes: Most bytes of tensors in one file (a larger tensor has a file of its own); None: one file.

    Raises:
        OSError: The files cannot be made.
    """

    def __init__(self, folder: Path, layout: Iterable[TensorInfo], max_shard_bytes: int | None = None) -> None:
        named = {info.stored: info for info in layout}
        split = split_state_dict_into_shards_factory(
            named,
            get_storage_size=lambda info: info.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_bytes or sys.maxsize,
        )
        self._places: dict[str, tuple[BlockFile, int]] = {}
        self._files: list[BlockFile] = []
        try:
            for file, tensors in split.filename_to_tensors.items():
                self._create(folder / file, [named[name] for name in tensors])
        except BaseException:
            self.close(complete=False)
            raise
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, offset: int, values: NDArray[Any]) -> None:
        """Write elements of a tensor, of its dtype, beginning with its element number ``offset``.

        Raises:
            OSError: The disk is full.
        """
        file, start = self._places[name]
        file.write(start + offset * values.itemsize, values)

    def close(self, complete: bool = True) -> None:
        """Close the files; when they are ``complete``, after the disk has all of their bytes.

        Raises:
            OSError: The disk has not taken them.
        """
        for file in self._files:
            file.close(complete)

    def _create(self, path: Path, infos: Sequence[TensorInfo]) -> None:
        """A file with its header; the tensors begin behind it, one after another."""
        order, end = list(DTYPES), 0
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for info in sorted(infos, key=lambda info: (order.index(info.dtype), info.stored)):
            place = [end, end := end + info.nbytes]
            entries[info.stored] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": place}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        file = BlockFile(path, len(header) + end)
        self._files.append(file)
        file.write(0, np.frombuffer(header, dtype=np.uint8))
        for info in infos:
            self._places[info.stored] = (file, len(header) + entries[info.stored]["data_offsets"][0])
