"""The closed-form merge methods: coefficients of the models, computed from their inner products alone.

Each tensor is one flattened vector x_i with weight w_i, normalised to ŵ_i = w_i / Σw. v_i stands for what is merged:
x_i, or the task vector x_i - base when there is a base, which is added back. n_i = |v_i|.
Source: the methods of mergekit 0.1.5 as observed from its outputs; no code of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import MergeError
from boom_utils.merging.recipe import weights_cancel

if TYPE_CHECKING:
    from boom_utils.merging.gram import TensorGram

Array = NDArray[np.float64]

# A direction whose terms cancel down to this fraction of their length: float64 inner products give it to 1e-6 and no
# better, and a fine-tuned model says nothing at that scale.
SHORTEST_DIRECTION = 1e-5


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What a merged tensor is made of: base * x_base + Σ members_i * x_i.

    Attributes:
        base: Coefficient of the base, 0 when there is none.
        members: (M,).
        note: What was special about the tensor, for the record.
    """

    base: float
    members: Array
    note: str | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of a method.

    Attributes:
        weights: The weights as written, one for each model.
        normalized: Whether to divide the weights by their sum.
        eps: Added to norms before dividing by them; models whose mean is this fraction of them cancel.
    """

    weights: tuple[float, ...]
    normalized: bool = True
    eps: float = 1e-8


def linear(gram: TensorGram, settings: Settings) -> Coefficients:
    """The weighted mean: out = Σ ŵ_i x_i (with w_i for ŵ_i when weights are not normalised).

    Args:
        gram: Inner products of M models.
        settings: Their M weights; ``normalized``.

    Raises:
        MergeError: The weights sum to zero and are to be normalised.
    """
    return _combination(gram, used_weights(settings))


def multislerp(gram: TensorGram, settings: Settings) -> Coefficients:
    """The weighted mean of directions, as long as the weighted mean of lengths.

    out = (Σ ŵ_i n_i) m / |m|  with  m = Σ ŵ_i v_i / (n_i + eps), so that out = Σ c_i v_i with
    c_i = (ŵ·n) u_i / sqrt(uᵀ G u),  u_i = ŵ_i / (n_i + eps),  G the inner products of the v_i.

    The method is described as a mean on the sphere by way of a tangent space. Tangent vectors there are projections,
    not logarithms, and their weighted sum is the mean without its component along the mean: zero.

    A single model is returned as it is. A model with weight zero, or a zero v_i, takes no part. When nothing takes part
    (every model equals the base) the tensor is the base's. Two models that cancel are merged linearly. Both are noted.

    Args:
        gram: Inner products of M models, and of the base if there is one.
        settings: Their M weights; ``normalized`` (else the length grows with Σw); ``eps``.

    Raises:
        MergeError: Three or more models cancel; or the weights sum to zero and are to be normalised.
    """
    if len(settings.weights) == 1:
        return Coefficients(0.0, np.ones(1))
    weights = used_weights(settings)
    length = _lengths(gram)
    active = (weights != 0) & (length > 0)
    if not active.any():
        return _combination(gram, np.zeros_like(weights), _idle_note(gram))
    direction = np.where(active, weights / (length + settings.eps), 0.0)
    mean = _length_of_mean(gram, direction, settings)
    if mean == 0:
        return _cancelled(gram, weights)
    return _combination(gram, float(weights @ length) / mean * direction)


def linear_norm_matched(gram: TensorGram, settings: Settings) -> Coefficients:
    """The weighted mean rescaled to multislerp's length: out = (Σ ŵ_i n_i) l / |l| with l = Σ ŵ_i v_i.

    A control of this kit, not a method of mergekit: what multislerp gains over it comes from the direction, the rest of
    what it gains over the plain mean comes from the length.

    Args:
        gram: Inner products of M models, and of the base if there is one.
        settings: Their M weights.

    Raises:
        MergeError: Three or more models cancel, or the weights sum to zero.
    """
    weights = used_weights(settings)
    length = _lengths(gram)
    if not ((weights != 0) & (length > 0)).any():
        return _combination(gram, np.zeros_like(weights), _idle_note(gram))
    mean = _length_of_mean(gram, weights, settings)
    if mean == 0:
        return _cancelled(gram, weights)
    return _combination(gram, float(weights @ length) / mean * weights)


METHODS: Mapping[str, Callable[[TensorGram, Settings], Coefficients]] = {
    "linear": linear,
    "multislerp": multislerp,
    "linear_norm_matched": linear_norm_matched,
}


def used_weights(settings: Settings) -> Array:
    """The weights as the method uses them, (M,): divided by their sum if they are to be normalised.

    Raises:
        MergeError: They sum to zero and are to be normalised.
    """
    weights = np.array(settings.weights, dtype=np.float64)
    if not settings.normalized:
        return weights
    if weights_cancel(settings.weights):
        raise MergeError(
            "the weights sum to zero and cannot be normalised", found=list(settings.weights), fix="change the weights"
        )
    return np.asarray(weights / weights.sum())


def _combination(gram: TensorGram, coefficients: Array, note: str | None = None) -> Coefficients:
    """Σ c_i v_i, plus the base if there is one, in terms of the models."""
    base = 1.0 - float(coefficients.sum()) if gram.has_base else 0.0
    return Coefficients(base, coefficients, note)


def _lengths(gram: TensorGram) -> Array:
    """(M,), the n_i."""
    return np.asarray(np.sqrt(np.clip(np.diag(gram.merged), 0.0, None)))


def _length_of_mean(gram: TensorGram, coefficients: Array, settings: Settings) -> float:
    """|Σ c_i v_i|, or 0 where the terms cancel: down to eps of their length, or to what rounding has left of them."""
    mean, terms = gram.length(coefficients)
    whole = float(np.abs(coefficients) @ _lengths(gram))
    return mean if mean > max(settings.eps * whole, SHORTEST_DIRECTION * terms) else 0.0


def _idle_note(gram: TensorGram) -> str:
    return "no model differs from the base: the base's tensor" if gram.has_base else "zero in every model: zero"


def _cancelled(gram: TensorGram, weights: Array) -> Coefficients:
    """What becomes of models whose directions cancel: the weighted mean of two, an error for more."""
    if len(weights) == 2:
        return _combination(gram, weights, "the two directions cancel: merged linearly")
    raise MergeError(
        "the directions of the models cancel, so that their mean has none",
        where=gram.name,
        found=f"weights {[float(weight) for weight in weights]}",
        fix="change the weights, leave a model out, or merge linearly",
    )
