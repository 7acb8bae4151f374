"""safetensors files: their headers read strictly, their tensors read and written piece by piece.

Pieces are read with ``pread``, not mapped: a file that is truncated meanwhile is an error and not a crash, several
threads read at once, and memory holds what is asked for and no page more.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from boom_utils.errors import CheckpointError
from boom_utils.merging.direct_file import DirectFile
from boom_utils.model_folder import INDEX

# Name in a safetensors header -> how NumPy holds an element, in the order in which safetensors lays tensors out: widest
# first, so that every tensor is aligned. NumPy has no bfloat16: its 16 bits stand for it.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I32": np.dtype("<i4"),
    "BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("u1"),
}  # fmt: skip
_WRAPPED = re.compile(r"^(?:_orig_mod\.|module\.)+")
# Not in DistilBERT, whose layers have such a name.
_PREFIX = re.compile(
    r"^(?:model|bert|roberta|distilbert|mpnet|electra|albert|deberta|ernie|nomic_bert|transformer(?!\.layer\.))\."
)
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
FLOAT_NAMES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading a safetensors file into a `CheckpointError` that names it."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(
            "a weight file cannot be read", where=path, expected="a whole safetensors file", found=error
        ) from error


def read_header(path: Path) -> list[TensorInfo]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: It is not a valid safetensors file (holes and overlaps included), or has a dtype of another
            world.
    """
    with reading(path):
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
    for info in entries:
        if info.dtype not in DTYPES:
            raise CheckpointError(
                "a tensor has a dtype that is not supported",
                where=f"{info.stored} in {path}",
                expected=", ".join(DTYPES),
                found=info.dtype,
            )
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the library lets the last one win
        raise ValueError("a name is given twice in its header")
    return found


class OpenFile:
    """A file open for reading at any place, from several threads.

    Args:
        path: The file.

    Raises:
        CheckpointError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._number = os.open(path, os.O_RDONLY)

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the bytes at ``start``.

        Raises:
            CheckpointError: The file has become shorter, or cannot be read.
        """
        if not buffer.size:
            return
        view = memoryview(buffer.data).cast("B")
        done = 0
        with reading(self.path):
            while done < len(view):
                count = os.preadv(self._number, [view[done:]], start + done)
                if count == 0:
                    raise ValueError(f"it ends {len(view) - done} bytes too early: was it changed meanwhile?")
                done += count

    def __del__(self) -> None:
        number, self._number = getattr(self, "_number", -1), -1
        if number >= 0:
            os.close(number)


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
        self.places: dict[str, tuple[DirectFile, int]] = {}
        self._files: list[DirectFile] = []
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
        file, start = self.places[name]
        file.write(start + offset * values.itemsize, values)

    def close(self, complete: bool = True) -> None:
        """Close the files; when they are ``complete``, after the disk has all of their bytes.

        Raises:
            OSError: The disk has not taken them.
        """
        for file in self._files:
            file.close(complete)

    def _create(self, path: Path, infos: Sequence[TensorInfo]) -> None:
        order = list(DTYPES)
        infos = sorted(infos, key=lambda info: (order.index(info.dtype), info.stored))
        header, starts = _header(infos)
        file = DirectFile(path, len(header) + sum(info.nbytes for info in infos))
        self._files.append(file)
        self.places |= {name: (file, len(header) + start) for name, start in starts.items()}
        file.write(0, np.frombuffer(header, dtype=np.uint8))


def _header(infos: Sequence[TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the tensors, and where each tensor begins after them."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for info in infos:
        starts[info.stored], end = end, end + info.nbytes
        place = [starts[info.stored], end]
        entries[info.stored] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": place}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts
