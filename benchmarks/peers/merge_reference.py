"""Multislerp computed again from its definition, with NumPy in float64, to compare merged weights with.

Nothing of the kit is used: the files are read here, and the sums are taken as they are written down,

    n_i = |x_i|,  u_i = w_i/(n_i + eps),  m = sum u_i x_i,  out = (sum w_i n_i) m/|m|

with weights w_i that sum to one. Tensors are read in chunks, so memory stays small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 18  # elements
EPS = 1e-8

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file.

    Attributes:
        path: The file.
        dtype: As the file names it.
        start: First byte.
        size: Elements.
    """

    path: Path
    dtype: str
    start: int
    size: int

    def read(self, first: int, count: int) -> Doubles:
        """Some of its elements.

        Raises:
            ValueError: Its dtype is not one of float32, float64, float16 and bfloat16.
        """
        types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        if self.dtype not in types:
            raise ValueError(f"{self.path}: the reference does not read {self.dtype}")
        kind = np.dtype(types[self.dtype])
        values = np.fromfile(self.path, kind, count, offset=self.start + first * kind.itemsize)
        if self.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float64)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model folder, whatever the number of its files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start = 8 + length + entry["data_offsets"][0]
                found[name] = StoredTensor(path, entry["dtype"], start, math.prod(entry["shape"]))
    return found


@dataclass(frozen=True)
class Reference:
    """The merge of one tensor: ``scale`` times the sum of ``factors[i]`` times tensor i."""

    tensors: Sequence[StoredTensor]
    factors: Sequence[float]
    scale: float

    def read(self, first: int, count: int) -> Doubles:
        """Some elements of the merged tensor."""
        return self.scale * mean_direction(self.tensors, self.factors, first, count)


def merge_tensor(tensors: Sequence[StoredTensor], weights: Sequence[float]) -> Reference:
    """Multislerp of one tensor of every model; three passes, of which the last is left to the reader."""
    size, total = tensors[0].size, math.fsum(weights)
    shares = [weight / total for weight in weights]
    norms = [math.sqrt(math.fsum(_squares(tensor.read(*chunk)) for chunk in chunks(size))) for tensor in tensors]
    factors = [share / (norm + EPS) for share, norm in zip(shares, norms, strict=True)]
    length = math.sqrt(math.fsum(_squares(mean_direction(tensors, factors, *chunk)) for chunk in chunks(size)))
    return Reference(tensors, factors, math.fsum(map(math.prod, zip(shares, norms, strict=True))) / length)


def mean_direction(tensors: Sequence[StoredTensor], factors: Sequence[float], first: int, count: int) -> Doubles:
    """Some elements of the sum of the tensors times their factors."""
    total = np.zeros(count)
    for tensor, factor in zip(tensors, factors, strict=True):
        total += factor * tensor.read(first, count)
    return total


def chunks(size: int) -> Iterator[tuple[int, int]]:
    """First element and number of elements of every chunk."""
    return ((first, min(CHUNK, size - first)) for first in range(0, size, CHUNK))


def _squares(values: Doubles) -> float:
    return float(np.einsum("i,i->", values, values))


def relative_errors(models: Sequence[Path], weights: Sequence[float], merged: Path) -> dict[str, float]:
    """|merged - reference| / |reference| of every tensor, norms taken in float64.

    Args:
        models: Folders of the models that were merged.
        weights: Their weights.
        merged: Folder of the merged model.

    Raises:
        ValueError: The merged model has other tensors than the models, or of other sizes.
    """
    inputs, found = [stored_tensors(model) for model in models], stored_tensors(merged)
    sizes = {name: tensor.size for name, tensor in found.items()}
    if any(sizes != {name: tensor.size for name, tensor in tensors.items()} for tensors in inputs):
        raise ValueError(f"{merged} has other tensors than the models it was merged from")

    def error(name: str) -> float:
        reference, differences, squares = merge_tensor([tensors[name] for tensors in inputs], weights), [], []
        for chunk in chunks(sizes[name]):
            expected = reference.read(*chunk)
            differences.append(_squares(found[name].read(*chunk) - expected))
            squares.append(_squares(expected))
        return math.sqrt(math.fsum(differences) / math.fsum(squares))

    with ThreadPoolExecutor(2) as threads:
        names = sorted(sizes, key=sizes.__getitem__, reverse=True)  # the longest first: both threads stay busy
        return dict(zip(names, threads.map(error, names), strict=True))
