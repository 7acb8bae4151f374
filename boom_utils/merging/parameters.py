"""Parameters of merge recipes: what each method knows, and the value a setting has at one tensor.

As in mergekit, a setting is a number; a gradient, a list of numbers spread over the layers; or a list of
``{filter, value}``, of which the first one counts whose filter is part of the tensor's name (none: fits all).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from boom_utils.errors import nearest

Scalar = float | bool
Base = Literal["no", "optional", "required", "member"]

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
"""The part of a tensor's name that says in which layer it is."""


@dataclass(frozen=True)
class MethodRules:
    """What a merge method takes.

    Attributes:
        of_models: Parameters of the models; a value under the recipe's own ``parameters`` counts for every model
            without one.
        of_method: Parameters of the method.
        base: Whether it merges task vectors (``optional``, ``required``), needs one of its two models named as the
            place it starts from (``member``), or has no use for a base.
        models: Fewest and most models (None: any number).
    """

    of_models: Mapping[str, Scalar | None]
    of_method: Mapping[str, Scalar | None]
    base: Base = "no"
    models: tuple[int, int | None] = (1, None)


# Defaults are mergekit 0.1.5's; None: has to be given.
METHOD_RULES: Mapping[str, MethodRules] = {
    "linear": MethodRules({"weight": None}, {"normalize": True}),
    "slerp": MethodRules({}, {"t": None}, "member", (2, 2)),
    "nuslerp": MethodRules({"weight": None}, {"nuslerp_flatten": True}, "optional", (2, 2)),
    "multislerp": MethodRules({"weight": None}, {"normalize_weights": True, "eps": 1e-8}, "optional"),
    "karcher": MethodRules({}, {"max_iter": 10, "tol": 1e-5}),
    "task_arithmetic": MethodRules({"weight": None}, {"normalize": False, "lambda": 1.0}, "required"),
    "ties": MethodRules(
        {"weight": None, "density": 1.0}, {"normalize": True, "lambda": 1.0, "int8_mask": False}, "required"
    ),
    "sce": MethodRules({}, {"select_topk": 1.0, "int8_mask": False}, "required"),
    "model_stock": MethodRules({}, {"filter_wise": False}, "required", (2, None)),
    "linear_norm_matched": MethodRules({"weight": None}, {}, "optional"),
}
METHOD_NAMES = tuple(METHOD_RULES)
# The range a value has to be in, and the ones the kit does not compute.
_RANGES: Mapping[str, tuple[float, float]] = {"density": (0, 1), "select_topk": (0, 1), "max_iter": (1, 1e6)}
_POSITIVE = frozenset({"eps", "tol"})
_ONLY: Mapping[str, bool] = {"filter_wise": False, "nuslerp_flatten": True}
_FLAGS = frozenset({"normalize", "normalize_weights", "int8_mask", "filter_wise", "nuslerp_flatten"})


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


@dataclass(frozen=True)
class Place:
    """A tensor as settings see it.

    Attributes:
        name: Its name, with the prefix ``model.``.
        depth: 0 at the first layer, 1 at the last one (and at the only one); 0 outside the layers.
    """

    name: str
    depth: float


def places_of(names: Sequence[str]) -> dict[str, Place]:
    """Where every tensor of a model (unified names) stands among its layers."""
    layers = {name: int(match[1]) for name in names if (match := LAYER.search(name))}
    last = max(layers.values(), default=0)

    def depth(name: str) -> float:
        if name not in layers:
            return 0.0
        return layers[name] / last if last else 1.0

    return {name: Place(name if name.startswith("lm_head") else f"model.{name}", depth(name)) for name in names}


def value_at(setting: Any, place: Place) -> Scalar | None:
    """The value of a setting at a tensor; None where no filter fits.

    >>> value_at([0.0, 1.0], Place("model.layers.1.mlp.up_proj.weight", 0.25))
    0.25
    >>> value_at([{"filter": "mlp", "value": 0.3}, {"value": 0.7}], Place("model.layers.1.mlp.up_proj.weight", 0.25))
    0.3
    """
    setting = [setting] if isinstance(setting, dict) else setting
    if not isinstance(setting, list | tuple):
        return None if setting is None else _number(setting)
    if not any(isinstance(part, dict) for part in setting):
        return _along(setting, place.depth)
    for case in setting:
        if case.get("filter") in (None, "*") or case["filter"] in place.name:
            return value_at(case["value"], place)
    return None


def _along(values: Sequence[float], depth: float) -> float:
    """A list of numbers, spread evenly from 0 to 1, at one point between."""
    position = depth * (len(values) - 1)
    left = min(int(position), len(values) - 1)
    right = min(left + 1, len(values) - 1)
    return float(values[left] + (position - left) * (values[right] - values[left]))


def _number(value: Any) -> Scalar:
    return value if isinstance(value, bool) else float(value)


def key_problems(given: Mapping[str, Any], known: Mapping[str, Any], method: str) -> Iterator[str]:
    """Parameters that the method does not have, or whose value it cannot use; one sentence each, name first."""
    everywhere = {name for rules in METHOD_RULES.values() for name in (*rules.of_models, *rules.of_method)}
    for name, value in given.items():
        if name in known:
            yield from (f"{name}: {problem}" for problem in setting_problems(name, value))
        elif name in everywhere:
            yield f"{name} is not a parameter of {method} here (it has {', '.join(known) or 'none'})"
        else:
            close = nearest(str(name), known) or nearest(str(name), everywhere)
            yield f"{name}: unknown key{close} (supported here: {', '.join(known) or 'none'})"


def weight_problems(own: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], rules: MethodRules) -> Iterator[str]:
    """Plain numbers as weights that leave nothing to merge; others are looked at tensor by tensor.

    Args:
        own: Parameters of every model.
        shared: Parameters of the recipe.
        rules: What the method takes.
    """
    written = [parameters.get("weight", shared.get("weight")) for parameters in own]
    plain = all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in written)
    if "weight" not in rules.of_models or not plain:
        return
    default = rules.of_method.get("normalize", rules.of_method.get("normalize_weights", True))
    if not any(written):
        yield "every weight is zero"
    elif shared.get("normalize", shared.get("normalize_weights", default)) is True and weights_cancel(written):
        yield f"the weights {written} sum to zero"


def weights_cancel(weights: Sequence[float]) -> bool:
    """Whether the weights sum to zero up to rounding (0.1 + 0.2 - 0.3 does), so that they cannot be normalised."""
    return abs(math.fsum(weights)) <= 1e-9 * math.fsum(abs(weight) for weight in weights)


def setting_problems(name: str, setting: Any) -> list[str]:
    """What is wrong with the form and the values of a setting, one sentence each."""
    parts = setting if isinstance(setting, list | tuple) else [setting]
    if not parts:
        return ["is an empty list"]
    cases = [part for part in parts if isinstance(part, dict)]
    if not cases and name in _FLAGS and isinstance(setting, list | tuple):
        return ["cannot change gradually along the layers; give {filter, value}"]
    if not cases:
        return [problem for value in parts for problem in _value_problems(name, value)]
    if len(cases) < len(parts):
        return ["mixes numbers with {filter, value}"]
    problems = []
    for case in cases:
        unknown = [key for key in case if key not in ("filter", "value")]
        problems += [f"has an unknown key {key!r}{nearest(str(key), ('filter', 'value'))}" for key in unknown]
        if not isinstance(case.get("filter"), str | None):
            problems.append(f"has a filter that is no text: {case['filter']!r}")
        if "value" not in case or isinstance(case["value"], dict):
            problems.append("has a filter without a value")
        else:
            problems += setting_problems(name, case["value"])
    return problems


def _value_problems(name: str, value: Any) -> list[str]:
    if name in _FLAGS:
        if not isinstance(value, bool):
            return [f"must be true or false, found {value!r}"]
        return [] if value == _ONLY.get(name, value) else [f"is supported as {_ONLY[name]} only"]
    if isinstance(value, bool):
        return [f"must be a number, not true or false, found {value}"]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return [f"must be a number, found {value!r}"]
    if not math.isfinite(number):
        return [f"must be finite, found {value}"]
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    if name in _POSITIVE and number <= 0:
        return [f"must be above 0, found {value}"]
    if not low <= number <= high:
        return [f"must be between {low:g} and {high:g}, found {value}"]
    return []
