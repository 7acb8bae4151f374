"""Inner products of the models of a merge: everything a closed-form method, an angle or a norm is computed from.

The Gram matrix is that of a pivot p and the differences x_i - p, not of the models x_i: siblings differ by less than a
percent, so |x_i - x_j|^2 taken from the products of the models themselves would lose its digits even in float64.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from boom_utils.artifacts import atomic_path
from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging.checkpoints import CHUNK, Checkpoint, Tensor, digest_chunks, each_tensor, fingerprints
from boom_utils.merging.kernels import Rows, add_products
from boom_utils.progress import progress

Array = NDArray[np.float64]

_COLUMNS = ("models", "fingerprints", "has_base", "names", "sizes", "matrices")
PIECE = 1 << 16  # elements that are digested and multiplied together: those of a few models stay in the cache


@dataclass(frozen=True, eq=False)
class TensorGram:
    """Inner products of one tensor's M versions, flattened, or of a whole model's.

    Attributes:
        name: The tensor, or what the sum of tensors is called.
        size: Number of elements.
        has_base: Whether the pivot p is the base; it is the first member otherwise.
        matrix: (1 + M, 1 + M), inner products of [p, x_1 - p, ..., x_M - p].
    """

    name: str
    size: int
    has_base: bool
    matrix: Array

    def view(self, members: Sequence[int], base: int | None = None) -> TensorGram:
        """The Gram matrix of a merge of some of the models, on another pivot where that one is not the first.

        Args:
            members: Numbers of the models to merge, the pivot of this one being 0.
            base: Number of their base.
        """
        pivot = members[0] if base is None else base
        change = np.zeros((1 + len(members), len(self.matrix)))
        change[0, 0] = 1.0
        for row, model in enumerate((pivot, *members)):
            change[row, model] += model > 0
            if row > 0:
                change[row, pivot] -= pivot > 0
        return TensorGram(self.name, self.size, base is not None, change @ self.matrix @ change.T)

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

    @property
    def lengths(self) -> Array:
        """(M,), of what a merge combines."""
        return norms(self.merged)

    @property
    def cosines(self) -> Array:
        """(M, M), between what a merge combines; NaN where a vector is zero."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(self.merged / np.outer(self.lengths, self.lengths), -1.0, 1.0)

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
    """Lengths of vectors from their inner products.

    Args:
        gram: float (M, M).

    Returns:
        float (M,).

    >>> norms(np.array([[25.0, 0.0], [0.0, 4.0]])).tolist()
    [5.0, 2.0]
    """
    return np.sqrt(np.clip(np.diag(gram), 0.0, None))


def distances(gram: TensorGram) -> Array:
    """(M, M), |x_i - x_j|, taken from the differences to the pivot."""
    inner = gram.matrix[1:, 1:]
    square = np.diag(inner)
    return np.sqrt(np.clip(square[:, None] + square[None, :] - 2 * inner, 0.0, None))


@dataclass(frozen=True, eq=False)
class GramTable:
    """The Gram matrices of all tensors of a family of models: a small file from which any merge can be planned.

    Attributes:
        models: What the R models are called, in order.
        fingerprints: A digest of the weights of each.
        has_base: Whether the first model is the base of the others.
        tensors: One entry a floating-point tensor, by name; their pivot is the first model.
    """

    models: tuple[str, ...]
    fingerprints: tuple[str, ...]
    has_base: bool
    tensors: tuple[TensorGram, ...]

    def views(self, members: Sequence[int] | None = None, base: int | None = None) -> list[TensorGram]:
        """Every tensor as a merge of some models sees it; without arguments, of all of them, on their base if any."""
        if members is None:
            members, base = range(self.has_base, len(self.models)), 0 if self.has_base else None
        return [tensor.view(members, base) for tensor in self.tensors]

    def of(self, members: Sequence[str]) -> GramTable:
        """The same table for some of the models, in that order, with the base if there is one.

        Raises:
            MergeError: One of them is not in the table.
        """
        if missing := [name for name in members if name not in self.models]:
            raise MergeError("models are not in this table", expected=", ".join(self.models), found=", ".join(missing))
        kept = [*range(self.has_base), *map(self.models.index, members)]
        tensors = tuple(one.view(kept[1:], kept[0]) for one in self.tensors)
        names, prints = ([column[number] for number in kept] for column in (self.models, self.fingerprints))
        return GramTable(tuple(names), tuple(prints), self.has_base, tensors)


def tensor_gram(name: str, tensors: Sequence[ArrayLike], has_base: bool, labels: Sequence[str]) -> TensorGram:
    """The Gram matrix of one tensor in memory.

    Products and sums are float64, and their order is fixed: the result does not depend on the number of threads.
    (``torch.norm`` on CPU sums float32 one by one and is 1.8 % short at 155 M elements.)

    Args:
        name: The tensor's name, for messages.
        tensors: The versions x_1 ... x_M, preceded by the base if there is one; all of one shape.
        has_base: Whether the first of ``tensors`` is the base.
        labels: What messages call the owners of ``tensors``.

    Returns:
        Inner products, M versions beside one another.

    Raises:
        MergeError: A value is NaN or infinite, or too large for its square.

    >>> gram = tensor_gram("w", [np.array([3.0, 4.0]), np.array([0.0, 2.0])], has_base=False, labels=["a", "b"])
    >>> gram.models.tolist()
    [[25.0, 8.0], [8.0, 4.0]]
    """
    flat = [np.asarray(tensor).reshape(-1) for tensor in tensors]
    kind = np.result_type(np.float32, *flat)
    kinds, starts = [kind] * len(flat), range(0, max(flat[0].size, 1), CHUNK)
    parts = ([np.ascontiguousarray(row[start : start + CHUNK], dtype=kind) for row in flat] for start in starts)
    found = _put_together(name, kinds, [_chunk(Rows.of(part), kinds) for part in parts], labels)
    check_finite([found])
    return found.gram.view(range(has_base, len(flat)), 0 if has_base else None)


@dataclass(frozen=True, eq=False)
class StreamedGram:
    """What one pass over one tensor of a family found, or over a chunk of it.

    Attributes:
        gram: The Gram matrix; the pivot is the first model.
        digests: A digest of each model's values.
        problems: Which models hold NaN or infinities there, as sentences; the matrix means nothing then.
    """

    gram: TensorGram
    digests: tuple[str, ...]
    problems: tuple[str, ...] = ()


def stream_gram(tensor: Tensor) -> StreamedGram:
    """The Gram matrix of a tensor, and what else one pass over it tells.

    Raises:
        CheckpointError: A file cannot be read.
    """
    kinds = [model.kind(tensor.name) for model in tensor.models]
    chunks = tensor.map(lambda _, rows: _chunk(rows, kinds))
    return _put_together(tensor.name, kinds, chunks, [model.label for model in tensor.models])


def family_grams(models: Sequence[Checkpoint], has_base: bool, threads: int | None = None) -> GramTable:
    """Read every model once and keep the Gram matrices of all floating-point tensors.

    Args:
        models: Models found to fit (`boom_utils.merging.family.reconcile`), the base first if there is one.
        has_base: Whether the first one is the base of the others.
        threads: As for `each_tensor`.

    Raises:
        MergeError: Values are not finite; every model and tensor is named.
        CheckpointError: A file cannot be read.
    """
    names = [name for name, info in models[0].tensors.items() if info.is_float]
    streamed = progress(each_tensor(models, names, stream_gram, threads), len(names), "products")
    passed = {one.gram.name: one for one in streamed}
    check_finite(passed[name] for name in names)
    prints = fingerprints(models, {name: passed[name].digests for name in names})
    tensors = tuple(passed[name].gram for name in names)
    return GramTable(tuple(model.label for model in models), tuple(prints), has_base, tensors)


def whole_model(grams: Sequence[TensorGram], name: str = "all tensors") -> TensorGram:
    """The Gram matrix of models flattened into one vector each: the sum of those of their tensors."""
    matrix = np.sum([gram.matrix for gram in grams], axis=0)
    return TensorGram(name, sum(gram.size for gram in grams), grams[0].has_base, matrix)


def save_grams(path: Path, table: GramTable) -> None:
    """Write Gram matrices to an ``.npz`` file (equal tables give equal bytes)."""
    names, sizes, matrices = zip(*((one.name, one.size, one.matrix) for one in table.tensors), strict=True)
    columns = (table.models, table.fingerprints, table.has_base, names, np.array(sizes, np.int64), matrices)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **dict(zip(_COLUMNS, map(np.array, columns), strict=True)))  # type: ignore[arg-type]


def load_grams(path: Path) -> GramTable:
    """Read what `save_grams` wrote.

    Args:
        path: The ``.npz`` file.

    Returns:
        Inner products of every tensor of the models.

    Raises:
        MergeError: The file is something else.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.study.graph import Study
    >>> table = load_grams(Study(load_profile("smoke")).build("geometry").path / "grams.npz")
    >>> table.models[0], table.has_base
    ('base', True)
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            models, prints, has_base, *columns = (saved[key] for key in _COLUMNS)
    except (OSError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise MergeError("the file holds no Gram matrices", where=path, found=error) from error
    tensors = tuple(TensorGram(str(name), int(size), True, one) for name, size, one in zip(*columns, strict=True))
    return GramTable(tuple(map(str, models)), tuple(map(str, prints)), bool(has_base), tensors)


def check_finite(found: Iterable[StreamedGram]) -> None:
    """Refuse models that hold values no merge may spread.

    Raises:
        MergeError: They do; all are named.
    """
    if problems := [problem for one in found for problem in one.problems]:
        what, expected = "values of the models cannot be merged", "finite numbers whose squares are finite too"
        fix = "train or download the model again; a merge would spread the damage over the whole tensor"
        raise MergeError(what + bullet_list(problems), expected=expected, fix=fix)


def _chunk(rows: Rows, kinds: Sequence[Any]) -> tuple[int, Array, list[str], set[int]]:
    """Of one chunk: its size, inner products, digests of the rows, and those that are not finite where a product is."""
    matrix, digests = np.zeros((len(kinds), len(kinds))), [xxhash.xxh3_128() for _ in kinds]
    for first in range(0, rows.size, PIECE):  # digested first, which fetches it into the cache
        for row, kind, digest in zip(rows.held, kinds, digests, strict=True):
            digest.update(row[first : first + PIECE].astype(kind, copy=False).data)
        add_products(rows.values, rows.starts + first, min(PIECE, rows.size - first), matrix)
    finite = np.isfinite(matrix).all()
    wrong = set() if finite else {number for number, row in enumerate(rows.held) if not np.isfinite(row).all()}
    return rows.size, matrix, [digest.hexdigest() for digest in digests], wrong


def _put_together(name: str, kinds: Sequence[Any], chunks: Sequence[Any], labels: Sequence[str]) -> StreamedGram:
    sizes, matrices, digests, wrong = zip(*chunks, strict=True)
    total = np.sum(matrices, axis=0)
    gram = TensorGram(name, sum(sizes), True, np.asarray(np.triu(total) + np.triu(total, 1).T))
    problems = [f"{name}: values are too large for their squares (overflow in float64)"]
    if rows := sorted(set().union(*wrong)):
        problems = [f"{name}: NaN or infinity in {', '.join(labels[row] for row in rows)}"]
    prints = tuple(digest_chunks(kind, parts) for kind, parts in zip(kinds, zip(*digests, strict=True), strict=True))
    return StreamedGram(gram, prints, () if np.isfinite(matrices).all() else tuple(problems))
