"""Inner products of the models of a merge: everything a closed-form method, an angle or a norm is computed from.

The Gram matrix is that of a pivot p and the differences x_i - p, not of the models x_i: siblings differ by less than a
percent, so |x_i - x_j|^2 taken from the products of the models themselves would lose its digits even in float64.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boom_utils.errors import MergeError
from boom_utils.merging.checkpoints import Checkpoint, open_checkpoints, require_compatible

Array = NDArray[np.float64]

BLOCK = 1 << 12  # elements multiplied at once
CHUNK = 1 << 18  # elements converted to float64 at once, a multiple of BLOCK


@dataclass(frozen=True, eq=False)
class TensorGram:
    """Inner products of one tensor's M versions, flattened, or of a whole model's.

    Attributes:
        name: The tensor, or what the sum of tensors is called.
        size: Number of elements.
        has_base: Whether the pivot is the base; it is the first member otherwise.
        matrix: (1 + M, 1 + M), inner products of [p, x_1 - p, ..., x_M - p].
    """

    name: str
    size: int
    has_base: bool
    matrix: Array

    @cached_property
    def models(self) -> Array:
        """(M, M), inner products of the x_i themselves."""
        pivot, cross = self.matrix[0, 0], self.matrix[0, 1:]
        return np.asarray(pivot + cross[:, None] + cross[None, :] + self.matrix[1:, 1:])

    @property
    def updates(self) -> Array:
        """(M, M), inner products of the task vectors x_i - base.

        Raises:
            ValueError: There is no base.
        """
        if not self.has_base:
            raise ValueError("task vectors need a base")
        return self.matrix[1:, 1:]

    @property
    def merged(self) -> Array:
        """(M, M), inner products of what a merge combines: the task vectors if there is a base, else the models."""
        return self.updates if self.has_base else self.models

    def length(self, coefficients: Array) -> tuple[float, float]:
        """Length of a combination of the task vectors (with a base) or of the models (without).

        Args:
            coefficients: (M,).

        Returns:
            The length, and how long the terms are that may cancel in it: their ratio tells what rounding left of it.
        """
        # Written in the pivot's terms, the large common part is one term and cancels once, not M * M times.
        z = np.concatenate(([0.0 if self.has_base else coefficients.sum()], coefficients))
        square = float(z @ self.matrix @ z)
        terms = float(np.abs(z) @ np.abs(self.matrix) @ np.abs(z))
        return max(square, 0.0) ** 0.5, terms**0.5


def norms(gram: Array) -> Array:
    """(M,), lengths of the vectors whose inner products (M, M) are given."""
    return np.sqrt(np.clip(np.diag(gram), 0.0, None))


def cosines(gram: Array) -> Array:
    """(M, M), cosines from inner products; NaN where a vector is zero."""
    length = norms(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(gram / np.outer(length, length), -1.0, 1.0)


def distances(gram: TensorGram) -> Array:
    """(M, M), |x_i - x_j|, taken from the differences to the pivot."""
    inner = gram.matrix[1:, 1:]
    square = np.diag(inner)
    return np.sqrt(np.clip(square[:, None] + square[None, :] - 2 * inner, 0.0, None))


def chunks_of(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Walk through equally shaped tensors together: flat pieces of at most `CHUNK` elements, in order."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in flat)


def tensor_gram(name: str, tensors: Sequence[Tensor], has_base: bool, labels: Sequence[str]) -> TensorGram:
    """Accumulate the Gram matrix of one tensor.

    Products of at most `BLOCK` elements and their sum are float64, and the order of the summation is fixed: the result
    does not depend on the number of threads. (``torch.norm`` on CPU sums float32 one by one and is 1.8 % short at 155 M
    elements.)

    Args:
        name: The tensor's name, for messages.
        tensors: The versions x_1 ... x_M, preceded by the base if there is one; all of one shape.
        has_base: Whether the first of ``tensors`` is the base.
        labels: What messages call the owners of ``tensors``.

    Raises:
        MergeError: A value is NaN or infinite, or too large for its square.
    """
    members = len(tensors) - has_base
    matrix = np.zeros((1 + members, 1 + members))
    for pieces in chunks_of(tensors):
        matrix += _products(pieces, has_base)
    if not np.isfinite(matrix).all():
        raise _not_finite(name, tensors, labels)
    return TensorGram(name, tensors[0].numel(), has_base, matrix)


def model_grams(members: Sequence[Checkpoint], base: Checkpoint | None = None) -> list[TensorGram]:
    """The Gram matrix of every floating-point tensor, in the order of their names.

    Raises:
        MergeError: The models do not fit (all differences listed), or a value is not finite.
    """
    require_compatible(members, base)
    models = [*members] if base is None else [base, *members]
    labels = [model.label for model in models]
    return [
        tensor_gram(name, [model.read(name) for model in models], base is not None, labels)
        for name, info in members[0].tensors.items()
        if info.is_float
    ]


def whole_model(grams: Sequence[TensorGram], name: str = "all tensors") -> TensorGram:
    """The Gram matrix of models flattened into one vector each: the sum of those of their tensors."""
    matrix = np.sum([gram.matrix for gram in grams], axis=0)
    return TensorGram(name, sum(gram.size for gram in grams), grams[0].has_base, matrix)


def update_gram(base_folder: Path, member_folders: Sequence[Path]) -> TensorGram:
    """The Gram matrix of M whole models and the base they were trained from; reads every model once.

    Raises:
        MergeError: The models do not fit, or a value is not finite.
        CheckpointError: A folder cannot be read.
    """
    base, *members = open_checkpoints([base_folder, *member_folders])
    return whole_model(model_grams(members, base))


def task_vector_cosines(base_folder: Path, member_folders: Sequence[Path]) -> Array:
    """(M, M), cosines between the updates x_i - base, each model flattened into one vector."""
    return cosines(update_gram(base_folder, member_folders).updates)


def relative_update_sizes(base_folder: Path, member_folders: Sequence[Path]) -> Array:
    """(M,), |x_i - base| / |base|, each model flattened into one vector."""
    gram = update_gram(base_folder, member_folders)
    return np.asarray(norms(gram.updates) / np.sqrt(gram.matrix[0, 0]))


def save_grams(path: Path, grams: Sequence[TensorGram]) -> None:
    """Write Gram matrices to an ``.npz`` file (equal matrices give equal bytes)."""
    np.savez(
        path,
        names=np.array([gram.name for gram in grams]),
        sizes=np.array([gram.size for gram in grams], dtype=np.int64),
        has_base=np.array([gram.has_base for gram in grams]),
        matrices=np.stack([gram.matrix for gram in grams]),
    )


def load_grams(path: Path) -> list[TensorGram]:
    """Read what `save_grams` wrote.

    Raises:
        MergeError: The file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            columns = [saved[key] for key in ("names", "sizes", "has_base", "matrices")]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise MergeError("the file holds no Gram matrices", where=path, found=error) from error
    rows = zip(*columns, strict=True)
    return [TensorGram(str(name), int(size), bool(base), matrix) for name, size, base, matrix in rows]


def _products(pieces: Sequence[Tensor], has_base: bool) -> Array:
    """(1 + M, 1 + M), inner products over one chunk of [pivot, members - pivot]."""
    pivot = pieces[0].double()
    members = pieces[1:] if has_base else pieces
    rows = torch.stack([pivot, *(piece.double() - pivot for piece in members)])
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % BLOCK))
    # One small product per block, and NumPy to add them up: neither is split between threads.
    blocks = padded.reshape(len(rows), -1, BLOCK).transpose(0, 1)
    return np.asarray(torch.bmm(blocks, blocks.transpose(1, 2)).numpy().sum(axis=0), dtype=np.float64)


def _not_finite(name: str, tensors: Sequence[Tensor], labels: Sequence[str]) -> MergeError:
    guilty = [label for label, tensor in zip(labels, tensors, strict=True) if not torch.isfinite(tensor).all()]
    return MergeError(
        "a model holds values that are not finite" if guilty else "values are too large for their squares",
        where=name,
        expected="finite numbers",
        found=f"NaN or infinity in {', '.join(guilty)}" if guilty else "overflow in float64",
        fix="train or download the model again; a merge would spread the damage over the whole tensor",
    )
