"""What a family of models looks like and what a merge of it would do, from the Gram matrices alone.

The checkpoints are read once, for `family_grams`; angles, distances and the coefficients of any closed-form
merge with any weights follow without reading them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.errors import MergeError, nearest
from boom_utils.merging.elementwise import ELEMENTWISE
from boom_utils.merging.family import open_family, settings_of
from boom_utils.merging.gram import GramTable, TensorGram, distances, family_grams, norms, whole_model
from boom_utils.merging.methods import METHODS, Coefficients, Settings
from boom_utils.merging.recipe import LAYER, Recipe

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Geometry:
    """How M members lie to one another and to their base (without a base: to the members' plain mean).

    Attributes:
        members: Their names.
        has_base: Whether there is a base.
        norms: (M,), |x_i|, each model flattened into one vector.
        relative_updates: (M,), |x_i - base| / |base|.
        cosines: (M, M), of the task vectors with a base, of the models without.
        distances: (M, M), |x_i - x_j| / |base|.
        layers: Names of groups of tensors: each layer, and what lies before and after them.
        by_layer: (layers, M), relative update of each group.
    """

    members: tuple[str, ...]
    has_base: bool
    norms: Array
    relative_updates: Array
    cosines: Array
    distances: Array
    layers: tuple[str, ...]
    by_layer: Array

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and lists; NaN (a cosine with a zero vector) becomes null."""
        return {key: _plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True)
class MergeForecast:
    """What a closed-form merge would give, all tensors together.

    Attributes:
        method: The method.
        coefficients: Mean coefficient of each member over all parameters.
        base: The same of the base; 0 without one.
        norm: |merged|.
        relative_update: |merged - base| / |base|; None without a base.
        from_mean: |merged - mean| over the root mean square of |x_i - mean|: how far it is from the members' weighted
            mean, in units of how far they are themselves.
        cosine_to_mean: Between merged and mean, or their task vectors with a base.
        notes: Tensor -> what was special about it.
    """

    method: str
    coefficients: Mapping[str, float]
    base: float
    norm: float
    relative_update: float | None
    from_mean: float
    cosine_to_mean: float
    notes: Mapping[str, str]


def geometry_of(table: GramTable) -> Geometry:
    """Norms, angles and distances of a family.

    Args:
        table: Its Gram matrices; the first model is the base if it says so.
    """
    views = table.views()
    whole = whole_model(views)
    groups: dict[str, list[TensorGram]] = {}
    for view in sorted(views, key=lambda view: _group(view.name)):
        groups.setdefault(_group(view.name)[-1], []).append(view)
    return Geometry(
        members=tuple(table.models[table.has_base :]),
        has_base=table.has_base,
        norms=norms(whole.models),
        relative_updates=_relative_updates(whole),
        cosines=whole.cosines,
        distances=distances(whole) / (_reference(whole) or 1.0),
        layers=tuple(groups),
        by_layer=np.array([_relative_updates(whole_model(group)) for group in groups.values()]),
    )


def coefficients_of(
    table: GramTable, method: str, settings: Mapping[str, Settings] | Settings, on_base: bool | None = None
) -> dict[str, Coefficients]:
    """The coefficients of a closed-form merge of all members, tensor by tensor.

    Args:
        table: The Gram matrices of the members, and of their base if there is one.
        method: A closed-form method.
        settings: Its settings at each tensor, or the same ones for all.
        on_base: Whether to merge task vectors; None: if there is a base.

    Raises:
        MergeError: The method looks at every element and cannot be planned, or the models cancel.
    """
    if method not in METHODS:
        raise MergeError(
            f"'{method}' has no coefficients that follow from inner products{nearest(method, METHODS)}",
            expected=", ".join(METHODS),
            fix="ties and sce look at every element: run the merge instead" if method in ELEMENTWISE else None,
        )
    on_base = table.has_base if on_base is None else on_base
    members = range(table.has_base, len(table.models))
    views = table.views(members, 0 if on_base else None)
    settings = _everywhere(table, settings)
    return {view.name: METHODS[method](view, settings[view.name]) for view in views}


def forecast(
    table: GramTable, method: str, settings: Mapping[str, Settings] | Settings, on_base: bool | None = None
) -> MergeForecast:
    """What a closed-form merge of all members would give.

    Args:
        table: The Gram matrices.
        method: A closed-form method.
        settings: Its settings at each tensor, or the same ones for all.
        on_base: Whether to merge task vectors; None: if there is a base.

    Returns:
        Coefficients, length, and distance to the base and to the weighted mean; nothing is merged for it.

    Raises:
        MergeError: As `coefficients_of`.

    >>> from boom_utils.config import load_profile
    >>> from boom_utils.study.graph import Study
    >>> from boom_utils.merging.gram import load_grams
    >>> table = load_grams(Study(load_profile("smoke")).build("geometry").path / "grams.npz")
    >>> seen = forecast(table, "linear", Settings((1.0,) * (len(table.models) - 1)), on_base=False)
    >>> round(sum(seen.coefficients.values()), 9), round(seen.from_mean, 6)
    (1.0, 0.0)
    """
    made_of = coefficients_of(table, method, settings, on_base)
    views = table.views()
    settings = _everywhere(table, settings)
    both = whole_model([_with_merge(view, made_of[view.name], np.array(settings[view.name].weights)) for view in views])
    apart = distances(both)[:-1, -1]
    spread = float(np.sqrt(np.mean(apart[:-1] ** 2)))
    shares = np.array([view.size for view in views]) / both.size
    mean = shares @ np.array([made_of[view.name].members for view in views])
    names = table.models[table.has_base :]
    return MergeForecast(
        method=method,
        coefficients=dict(zip(names, map(float, mean), strict=True)),
        base=float(shares @ np.array([made_of[view.name].base for view in views])),
        norm=float(norms(both.models)[-2]),
        relative_update=float(_relative_updates(both)[-2]) if table.has_base and _reference(both) else None,
        from_mean=float(apart[-1]) / spread if spread else 0.0,
        cosine_to_mean=float(both.cosines[-2, -1]),
        notes={name: found.note for name, found in made_of.items() if found.note},
    )


def plan(recipe: Recipe, threads: int | None = None) -> tuple[GramTable, dict[str, Any]]:
    """Read the models of a recipe once, and say what they are like and what the merge would give; nothing is written.

    Returns:
        The Gram matrices (base first, then the models in the recipe's order), and as plain data: ``geometry``, and
        ``forecasts`` by method, empty for methods that look at every element.

    Raises:
        MergeError: As `merge_all`, for the recipe and its models.
        CheckpointError: A model folder cannot be read.
    """
    models = list(open_family([recipe])[0].values())
    table = family_grams(models, recipe.task_base is not None, threads)
    settings = settings_of(recipe, [tensor.name for tensor in table.tensors])
    forecasts = {}
    if recipe.merge_method in METHODS:
        found = asdict(forecast(table, recipe.merge_method, settings))
        forecasts[recipe.merge_method] = {key: _plain(value) for key, value in found.items()}
    return table, {"geometry": geometry_of(table).as_json(), "forecasts": forecasts}


def _everywhere(table: GramTable, settings: Mapping[str, Settings] | Settings) -> Mapping[str, Settings]:
    names = (tensor.name for tensor in table.tensors)
    return dict.fromkeys(names, settings) if isinstance(settings, Settings) else settings


def _with_merge(view: TensorGram, made_of: Coefficients, weights: Array) -> TensorGram:
    """One tensor of M members beside their merge and their weighted mean: M + 2 of them."""
    total, count = weights.sum(), len(weights)
    shares = weights / total if abs(total) > 0 else np.full(count, 1 / count)
    merged = np.concatenate(([made_of.base + made_of.members.sum() - 1], made_of.members))
    change = np.vstack([np.eye(1 + count), merged, np.concatenate(([0.0], shares))])
    return TensorGram(view.name, view.size, view.has_base, change @ view.matrix @ change.T)


def _group(name: str) -> tuple[int, int, str]:
    """The layer of a tensor, or what lies before or after the layers, behind two numbers that sort it."""
    if match := LAYER.search(name):
        return 1, int(match[1]), f"layer {match[1]}"
    return (0, 0, "embedding") if "embed" in name else (2, 0, "after the layers")


def _reference(gram: TensorGram) -> float:
    """|base|, or the length of the first member without one."""
    return float(np.sqrt(max(gram.matrix[0, 0], 0.0)))


def _relative_updates(gram: TensorGram) -> Array:
    """(M,), |x_i - base|, or |x_i - mean of the members| without a base, by the reference; 0 where that is 0."""
    count, reference = len(gram.matrix) - 1, _reference(gram)
    centred = np.eye(count) - (0 if gram.has_base else 1 / count)
    moved = norms(centred @ gram.matrix[1:, 1:] @ centred)
    return moved / reference if reference else np.zeros(count)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
