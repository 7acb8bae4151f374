"""The closed-form merge methods: coefficients of the models, computed from their inner products alone.

Each tensor is one flattened vector x_i with weight w_i, normalised to ŵ_i = w_i / Σw. v_i stands for what is merged:
x_i, or the task vector x_i - base when there is a base, which is added back. n_i = |v_i|.
Source: the methods of mergekit 0.1.5 as observed from its outputs, and the papers named below; no code of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import MergeError

if TYPE_CHECKING:
    from boom_utils.merging.gram import TensorGram

Array = NDArray[np.float64]

# A direction whose terms cancel down to this fraction of their length: float64 inner products give it to 1e-6 and no
# better, and a fine-tuned model says nothing at that scale.
SHORTEST_DIRECTION = 1e-5
PARALLEL = 0.9995  # cosine from which slerp is linear


@dataclass(frozen=True)
class Settings:
    """Settings of a method at one tensor.

    Attributes:
        weights: The weights as written, one for each model.
        normalized: Whether to divide the weights by their sum.
        eps: Added to norms before dividing by them; models whose mean is this fraction of them cancel.
        scale: ``lambda``, the factor of the merged task vector.
        t: Share of the second model in slerp.
        first: Number of the model slerp starts from.
        densities: Share of every task vector's elements that TIES keeps, one for each model.
        selected: ``select_topk`` of SCE, the share of the elements it selects.
        max_iter: Most steps of the Karcher mean.
        tol: Length of a step (radians) at which it stops.
    """

    weights: tuple[float, ...]
    normalized: bool = True
    eps: float = 1e-8
    scale: float = 1.0
    t: float = 0.5
    first: int = 0
    densities: tuple[float, ...] = ()
    selected: float = 1.0
    max_iter: int = 10
    tol: float = 1e-5


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

    Returns:
        The coefficient of each model, and of the base.

    Raises:
        MergeError: Three or more models cancel; or the weights sum to zero and are to be normalised.

    >>> from boom_utils.merging.gram import tensor_gram
    >>> vectors = np.array([[2.0, 0.0], [0.0, 1.0]])
    >>> gram = tensor_gram("w", vectors, has_base=False, labels=["a", "b"])
    >>> (multislerp(gram, Settings((1.0, 1.0))).members @ vectors).round(4).tolist()  # 1.5 long, half-way in angle
    [1.0607, 1.0607]
    """
    if len(settings.weights) == 1:
        return Coefficients(0.0, np.ones(1))
    weights, length = used_weights(settings), gram.lengths
    direction = np.where(length > 0, weights / (length + settings.eps), 0.0)
    return _of_length(gram, weights, direction, settings)


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
    return _of_length(gram, weights, weights, settings)


def task_arithmetic(gram: TensorGram, settings: Settings) -> Coefficients:
    """Base + λ Σ w_i (x_i - base), weights as written unless they are to be normalised (Ilharco et al., 2023).

    Args:
        gram: Inner products of M models and their base.
        settings: Their M weights; ``normalized``; ``scale`` is λ.

    Raises:
        MergeError: The weights sum to zero and are to be normalised.
    """
    return _combination(gram, settings.scale * used_weights(settings))


def slerp(gram: TensorGram, settings: Settings) -> Coefficients:
    """Spherical interpolation between two models: sin((1 - t)θ) / sin θ x_first + sin(tθ) / sin θ x_other.

    θ is the angle between them; models nearly parallel or opposite (|cos θ| > 0.9995) are interpolated linearly.

    Args:
        gram: Inner products of two models.
        settings: ``t``, the share of the second; ``first``, the number of the model it starts from.
    """
    return _combination(gram, _arc(gram, settings.t, settings.first))


def nuslerp(gram: TensorGram, settings: Settings) -> Coefficients:
    """Slerp of two models, or of their task vectors, at t = w_2 / (w_1 + w_2).

    Args:
        gram: Inner products of two models, and of the base if there is one.
        settings: Two weights.

    Raises:
        MergeError: The weights sum to zero.
    """
    return _combination(gram, _arc(gram, float(used_weights(settings)[1]), 0, parallel=1.0 - 1e-9))


def karcher(gram: TensorGram, settings: Settings) -> Coefficients:
    """The Riemannian mean of the directions, equal shares each, as long as the mean of the lengths.

    From the normalised mean, steps along the mean of the logarithms, until one is shorter than ``tol`` or after
    ``max_iter`` of them. (One such step, with weights, is what "Multi-SLERP" is often taken for; its own tangent step
    is zero.) A zero tensor adds nothing to direction and length.

    Args:
        gram: Inner products of M models.
        settings: ``max_iter``, ``tol``.

    Raises:
        MergeError: Three or more models cancel.
    """
    length = gram.lengths
    if len(length) == 1:
        return Coefficients(0.0, np.ones(1))
    active = length > 0
    share = active / max(active.sum(), 1)
    direction = np.where(active, share / np.where(active, length, 1.0), 0.0)
    start = _of_length(gram, share, direction, settings)
    if start.note:
        return start
    point = direction / _length_of_mean(gram, direction, settings)
    for _ in range(settings.max_iter):
        step = _mean_logarithm(gram, point, share, length)
        size = gram.length(step)[0]
        if size < settings.tol:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
        point = point / gram.length(point)[0]
    return _combination(gram, float(length.mean()) * point)


def model_stock(gram: TensorGram, settings: Settings) -> Coefficients:
    """The mean of the models, moved towards the base the more the wider their task vectors stand apart.

    base + t (mean - base) with t = N c / (1 + (N - 1) c), c the mean cosine of two task vectors (Jang et al., 2024,
    equation 6). A tensor that no model changed is the base's.

    Args:
        gram: Inner products of N models and their base.
        settings: Not used.
    """
    count = len(gram.updates)
    if not gram.lengths.any():
        return _combination(gram, np.zeros(count), _idle_note(gram))
    cosine = float(np.nan_to_num(gram.cosines)[np.triu_indices(count, 1)].mean())
    below = 1 + (count - 1) * cosine
    if abs(below) < 1e-12:  # all of them point away from one another
        return _combination(gram, np.zeros(count), "the task vectors cancel: the base's tensor")
    return _combination(gram, np.full(count, cosine / below))


_CLOSED = (linear, slerp, nuslerp, multislerp, karcher, task_arithmetic, model_stock, linear_norm_matched)
METHODS: Mapping[str, Callable[[TensorGram, Settings], Coefficients]] = {method.__name__: method for method in _CLOSED}


def used_weights(settings: Settings) -> Array:
    """The weights as the method uses them, (M,): divided by their sum if they are to be normalised.

    Raises:
        MergeError: They sum to zero and are to be normalised.
    """
    weights = np.array(settings.weights, dtype=np.float64)
    if not settings.normalized:
        return weights
    if weights_cancel(settings.weights):
        what = "the weights sum to zero and cannot be normalised"
        raise MergeError(what, found=list(settings.weights), fix="change the weights")
    return np.asarray(weights / weights.sum())


def weights_cancel(weights: Sequence[float]) -> bool:
    """Whether the weights sum to zero up to rounding (0.1 + 0.2 - 0.3 does), so that they cannot be normalised."""
    return abs(math.fsum(weights)) <= 1e-9 * math.fsum(abs(weight) for weight in weights)


def _arc(gram: TensorGram, t: float, first: int, parallel: float = PARALLEL) -> Array:
    """(2,), coefficients of two vectors at ``t`` of the way from one to the other along the arc between them."""
    length = gram.lengths
    shares = np.array([1 - t, t] if first == 0 else [t, 1 - t])
    if not length.all():  # no angle: mergekit's is a right one
        return np.sin(shares * math.pi / 2)
    cosine = float(np.clip(gram.merged[0, 1] / length[0] / length[1], -1.0, 1.0))
    if abs(cosine) > parallel:
        return shares
    angle = math.acos(cosine)
    return np.asarray(np.sin(shares * angle) / math.sin(angle))


def _mean_logarithm(gram: TensorGram, point: Array, share: Array, length: Array) -> Array:
    """(M,), Σ share_i Log_p(v_i / n_i) in terms of the v_i, p = Σ point_i v_i being a unit vector."""
    total = np.zeros_like(point)
    for number in np.flatnonzero(share):
        unit = np.zeros_like(point)
        unit[number] = 1 / length[number]
        # The angle from the chord: an arccos would lose half of its digits for vectors that are nearly parallel.
        chord = gram.length(unit - point)[0]
        angle = 2 * math.asin(min(chord / 2, 1.0))
        if 0 < angle < math.pi:
            total += share[number] * angle / math.sin(angle) * (unit - math.cos(angle) * point)
    return total


def _combination(gram: TensorGram, coefficients: Array, note: str | None = None) -> Coefficients:
    """Σ c_i v_i, plus the base if there is one, in terms of the models."""
    base = 1.0 - float(coefficients.sum()) if gram.has_base else 0.0
    return Coefficients(base, coefficients, note)


def _length_of_mean(gram: TensorGram, coefficients: Array, settings: Settings) -> float:
    """|Σ c_i v_i|, or 0 where the terms cancel: down to eps of their length, or to what rounding has left of them."""
    mean, terms = gram.length(coefficients)
    whole = float(np.abs(coefficients) @ gram.lengths)
    return mean if mean > max(settings.eps * whole, SHORTEST_DIRECTION * terms) else 0.0


def _of_length(gram: TensorGram, weights: Array, direction: Array, settings: Settings) -> Coefficients:
    """A direction Σ direction_i v_i, as long as the weighted mean of lengths; what becomes of it where it has none."""
    length = gram.lengths
    if not ((weights != 0) & (length > 0)).any():
        return _combination(gram, np.zeros_like(weights), _idle_note(gram))
    mean = _length_of_mean(gram, direction, settings)
    if mean > 0:
        return _combination(gram, float(weights @ length) / mean * direction)
    if len(weights) == 2:
        return _combination(gram, weights, "the two directions cancel: merged linearly")
    raise MergeError(
        "the directions of the models cancel, so that their mean has none",
        where=gram.name,
        found=f"weights {[float(weight) for weight in weights]}",
        fix="change the weights, leave a model out, or merge linearly",
    )


def _idle_note(gram: TensorGram) -> str:
    return "no model differs from the base: the base's tensor" if gram.has_base else "zero in every model: zero"
