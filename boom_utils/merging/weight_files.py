"""The safetensors files of a model folder: which ones they are, opened safely, and written without holding a model.

The format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from boom_utils.errors import CheckpointError, bullet_list
from boom_utils.merging.settings import module_folders, read_mapping

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

# Name in a safetensors header for each dtype the kit carries, in the order in which safetensors lays tensors out:
# widest first, so that every tensor is aligned.
DTYPES: Mapping[str, torch.dtype] = {
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "BF16": torch.bfloat16,
    "F16": torch.float16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
Chunks = Callable[[str], Iterator[Tensor]]


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files that hold the weights of a model folder.

    Returns:
        The files, and the index (tensor name to file name; empty for a model in a single file).

    Raises:
        CheckpointError: There are none, or only pickles or an adapter; the index names a file that is missing or lies
            outside the folder; or there are safetensors files that belong to nothing.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    index = _weight_map(folder) if (folder / INDEX).is_file() else {}
    if index and WEIGHTS in present and WEIGHTS not in index.values():
        raise CheckpointError("two sets of weights in one folder", where=folder, found=f"{WEIGHTS} and {INDEX}")
    wanted = set(index.values()) or {WEIGHTS}
    if not wanted & present:
        raise _no_weights(folder)
    problems = [f"missing: {name}" for name in sorted(wanted - present)]
    problems += [f"belongs to nothing: {name}" for name in sorted(present - wanted)]
    if problems:
        raise CheckpointError("the weight files are not what they should be" + bullet_list(problems), where=folder)
    return [folder / name for name in sorted(wanted)], index


def refuse_module_pickles(folder: Path) -> None:
    """Refuse pickled weights in the subfolders of a sentence-transformers model, such as an old Dense layer's.

    Raises:
        CheckpointError: There are some; all are named.
    """
    files = (path for module in module_folders(folder) for path in (folder / module).rglob("*"))
    if pickles := sorted(str(path.relative_to(folder)) for path in files if path.suffix in PICKLES):
        raise _pickled(folder, pickles)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading a safetensors file into a `CheckpointError` that names it."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(
            "a weight file cannot be read", where=path, expected="a whole safetensors file", found=error
        ) from error


def open_weights(path: Path) -> Any:
    """Open a safetensors file for lazy reading (the handle maps the file; tensors come in as they are asked for).

    Raises:
        CheckpointError: It is not a valid safetensors file.
    """
    with reading(path):
        return safe_open(path, framework="pt")


def write_safetensors(path: Path, layout: Layout, chunks: Chunks) -> None:
    """Write tensors to a new safetensors file as they are made, so that memory holds one chunk and not the model.

    The bytes are those that ``safetensors.torch.save_file`` writes for the same tensors.

    Args:
        path: The file, which must not exist.
        layout: Dtype and shape of each tensor.
        chunks: Called with a name; yields that tensor's elements as flat tensors, in order.

    Raises:
        OSError: The disk is full, or the file cannot be written; a part of it may be left.
    """
    order = list(DTYPES.values())
    names = sorted(layout, key=lambda name: (order.index(layout[name][0]), name))
    with path.open("xb") as handle:
        handle.write(_header(names, layout))
        for name in names:
            for chunk in chunks(name):
                handle.write(chunk.contiguous().view(torch.uint8).numpy().data)
        handle.flush()
        os.fsync(handle.fileno())


def _header(names: list[str], layout: Layout) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _weight_map(folder: Path) -> dict[str, str]:
    where = folder / INDEX
    index = read_mapping(where).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(
            "the index of the shards is malformed", where=where, expected="weight_map: names to files"
        )
    # Only the name of a file beside the index: anything else could read a file of another place.
    outside = sorted({name for name in index.values() if Path(name).name != name or "\\" in name or name in ("", "..")})
    if outside:
        raise CheckpointError(
            "the index names files outside the model folder", where=where, found=", ".join(map(repr, outside))
        )
    return index


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if Path(name).suffix in PICKLES]:
        return _pickled(folder, pickles)
    adapter = "adapter_config.json" in names
    return CheckpointError(
        "no weights in the model folder",
        where=folder,
        expected=f"{WEIGHTS}, or shards with {INDEX}",
        found="a LoRA adapter" if adapter else ", ".join(names[:10]) or "nothing",
        fix="merge the adapter into its base model first" if adapter else None,
    )


def _pickled(folder: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        "the weights are pickled; reading a pickle can run any program it carries, so the kit does not",
        where=folder,
        expected="safetensors files",
        found=", ".join(names),
        fix="convert the model to safetensors in a place where it may do no harm",
    )
