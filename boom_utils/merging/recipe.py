"""Merge recipes: mergekit's YAML schema, so that the same file runs in mergekit.

As in mergekit, a parameter is a number; a gradient, a list of numbers spread over the layers; or a list of
``{filter, value}``, of which the first one counts whose filter is part of the tensor's name (none: fits all).
Nothing of a recipe is ignored: a key that means nothing to the method is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import yaml
from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, create_model, field_validator

from boom_utils.config import MergeMethod
from boom_utils.errors import MergeError
from boom_utils.merging.methods import Settings, weights_cancel
from boom_utils.model_folder import model_parts
from boom_utils.yaml_files import Frozen, parse, read_yaml

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Base = Literal["no", "optional", "required", "member"]
Values = TypeVar("Values")

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
"""The part of a tensor's name that says in which layer it is."""
OWN_METHODS = frozenset({"linear_norm_matched"})


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

    of_models: Mapping[str, float | None]
    of_method: Mapping[str, float | None]
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
_SETTINGS = {"eps": "eps", "lambda": "scale", "t": "t", "select_topk": "selected", "tol": "tol"}  # fields of Settings


class Case(Frozen, Generic[Values]):
    """One ``{filter, value}`` of a parameter: one value, or several along the layers."""

    filter: str | None = None
    value: Values


def _as_cases(written: Any) -> Any:
    """A parameter in the one form that all others are short for: a list of cases."""
    parts = written if isinstance(written, list | tuple) else [written]
    return parts if any(isinstance(part, dict) for part in parts) else [{"value": written}]


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _cases(kind: Any, most: int | None = None) -> Any:
    several = BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value])
    values = Annotated[tuple[kind, ...], several, Field(min_length=1, max_length=most)]
    return Annotated[tuple[Case[values], ...], BeforeValidator(_as_cases)]


def _number(limits: Any = None) -> Any:
    return _cases(Annotated[float, BeforeValidator(_no_flag), limits])


_FLAG = _cases(StrictBool, most=1)  # a flag cannot change gradually along the layers
_PARAMETERS: Mapping[str, Any] = {
    **dict.fromkeys(("weight", "t", "lambda"), _number()),
    **dict.fromkeys(("density", "select_topk"), _number(Field(ge=0, le=1))),
    **dict.fromkeys(("eps", "tol"), _number(Field(gt=0))),
    "max_iter": _number(Field(ge=1, le=1e6)),
    **dict.fromkeys(("normalize", "normalize_weights", "int8_mask"), _FLAG),
    "filter_wise": _cases(Literal[False], most=1),  # the other way is not computed here
    "nuslerp_flatten": _cases(Literal[True], most=1),
}


@dataclass(frozen=True)
class Place:
    """A tensor as settings see it.

    Attributes:
        name: Its name, with the prefix ``model.``.
        depth: 0 at the first layer, 1 at the last one (and at the only one); 0 outside the layers.
    """

    name: str
    depth: float


ANYWHERE = Place("", 0.0)


def places_of(names: Sequence[str]) -> dict[str, Place]:
    """Where every tensor of a model (unified names) stands among its layers."""
    layers = {name: int(match[1]) for name in names if (match := LAYER.search(name))}
    last = max(layers.values(), default=0)

    def depth(name: str) -> float:
        if name not in layers:
            return 0.0
        return layers[name] / last if last else 1.0

    return {name: Place(name if name.startswith("lm_head") else f"model.{name}", depth(name)) for name in names}


def value_at(setting: Any, place: Place) -> float | None:
    """The value of a parameter, as written, at a tensor; None where no filter fits.

    >>> value_at([0.0, 1.0], Place("model.layers.1.mlp.up_proj.weight", 0.25))
    0.25
    >>> value_at([{"filter": "mlp", "value": 0.3}, {"value": 0.7}], Place("model.layers.1.mlp.up_proj.weight", 0.25))
    0.3
    """
    for case in () if setting is None else _as_cases(setting):
        if case.get("filter") in (None, "*") or case["filter"] in place.name:
            values = case["value"] if isinstance(case["value"], list | tuple) else [case["value"]]
            # Spread evenly from 0 to 1, and a line between two of them.
            position = place.depth * (len(values) - 1)
            left = min(int(position), len(values) - 1)
            low, high = float(values[left]), float(values[min(left + 1, len(values) - 1)])
            return low + (position - left) * (high - low)
    return None


class RecipeModel(Frozen):
    """One model of a recipe: its folder (or ``BASE+ADAPTER``, a LoRA adapter on its base) and its parameters."""

    model: Path
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class Recipe(Frozen):
    """A merge: which models, by which method, with which parameters, into which dtype.

    Attributes:
        merge_method: A name of `METHOD_NAMES`.
        models: The models in order; the first one gives tokenizer, config, pooling and prompts to the output.
        base_model: Merge task vectors (model - base) and add the base back; for slerp, the model it starts from; one of
            the models, and without effect, where the method has no base.
        parameters: Parameters of the method, and values for models that give none of their own. Each is a number, a
            list of numbers along the layers, or a list of ``{filter, value}``.
        dtype: mergekit's computing dtype. This kit computes in float64 whatever it says, and uses it as the output
            dtype when ``out_dtype`` is not given.
        out_dtype: Dtype of the merged weights; float32 when neither is given (float64 for models stored so).
    """

    merge_method: MergeMethod
    base_model: Path | None = None
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    models: tuple[RecipeModel, ...]
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None

    @field_validator("models")
    @classmethod
    def _without_base(cls, models: tuple[RecipeModel, ...], info: ValidationInfo) -> tuple[RecipeModel, ...]:
        """Recipes for mergekit list the base of task vectors too, to no effect."""
        rules, base = METHOD_RULES.get(info.data.get("merge_method", "")), info.data.get("base_model")
        unused = rules is not None and rules.base == "required"
        return tuple(one for one in models if one.parameters or not (unused and _same(one.model, base)))

    def problems(self) -> Iterator[str]:
        """Parameters that are missing, folders that do not fit the method, weights that leave nothing."""
        rules = self.rules
        needed = [name for name, value in rules.of_method.items() if value is None]
        yield from (f"parameters.{name}: missing" for name in needed if name not in self.parameters)
        for n, entry in enumerate(self.models):
            needed = [name for name, value in rules.of_models.items() if value is None]
            missing = [name for name in needed if name not in {**self.parameters, **entry.parameters}]
            yield from (f"models.{n}.parameters.{name}: missing (every model needs a {name})" for name in missing)
        yield from _folder_problems(self.merge_method, [entry.model for entry in self.models], self.base_model)
        if "weight" in rules.of_models and all(isinstance(weight, float) for weight in self.weights):
            if not any(self.weights):
                yield "every weight is zero"
            elif self._normalized(ANYWHERE) and weights_cancel(self.weights):
                yield f"the weights sum to zero and cannot be normalised: {list(self.weights)}"

    @property
    def rules(self) -> MethodRules:
        """What its method takes."""
        return METHOD_RULES[self.merge_method]

    @property
    def weights(self) -> tuple[Any, ...]:
        """The weights as written, one for each model; 1 for methods that take none."""
        shared = self.parameters.get("weight", 1.0)
        written = (entry.parameters.get("weight", shared) for entry in self.models)
        return tuple(float(weight) if isinstance(weight, int | str) else weight for weight in written)

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders it reads: the models in order, then the base if there is one and it is not among them."""
        models = tuple(entry.model for entry in self.models)
        return models if self.task_base is None else (*models, self.task_base)

    @property
    def task_base(self) -> Path | None:
        """The model whose weights are taken off the others before they are merged, if there is one."""
        return self.base_model if self.rules.base in ("optional", "required") else None

    def settings_at(self, place: Place = ANYWHERE) -> Settings:
        """What the method is told at one tensor.

        Raises:
            MergeError: A parameter has no value there, or the weights sum to zero and are to be normalised.
        """
        shared, rules = self.parameters, self.rules
        found = {name: _first(name, place, shared.get(name), default) for name, default in rules.of_method.items()}
        weights, densities = (
            # mergekit's rule: what a model leaves open the recipe may say
            tuple(_first(name, place, entry.parameters.get(name), shared.get(name), default) for entry in self.models)
            for name, default in (("weight", rules.of_models.get("weight", 1.0)), ("density", 1.0))
        )
        normalized = self._normalized(place)
        if normalized and "weight" in rules.of_models and weights_cancel(weights):
            raise MergeError("the weights sum to zero and cannot be normalised", where=place.name, found=list(weights))
        named = {field: found[name] for name, field in _SETTINGS.items() if name in found}
        first = rules.base == "member" and _same(self.models[1].model, self.base_model)
        steps = int(found.get("max_iter", 10))
        return Settings(weights, normalized, densities=densities, first=int(first), max_iter=steps, **named)

    def _normalized(self, place: Place) -> bool:
        name = next((name for name in ("normalize", "normalize_weights") if name in self.rules.of_method), None)
        return name is None or bool(_first(name, place, self.parameters.get(name), self.rules.of_method[name]))

    def with_paths(self, change: Callable[[Path], Path], exists: Callable[[Path], bool] = Path.exists) -> Self:
        """The same recipe with ``change(path)`` in place of every path (each of the two of ``BASE+ADAPTER``)."""

        def changed(path: Path) -> Path:
            return Path("+".join(str(change(part)) for part in model_parts(path, exists)))

        models = tuple(entry.model_copy(update={"model": changed(entry.model)}) for entry in self.models)
        base = None if self.base_model is None else changed(self.base_model)
        return self.model_copy(update={"models": models, "base_model": base})


def _first(name: str, place: Place, *written: Any) -> float:
    """The first value that there is for a tensor."""
    found = next((value for setting in written if (value := value_at(setting, place)) is not None), None)
    if found is None:
        fix = "add a last entry with a value and no filter"
        raise MergeError(f"no filter of '{name}' fits a tensor", where=place.name, fix=fix)
    return found


def make_recipe(data: Any, where: object = "the recipe") -> Recipe:
    """Validate a recipe given as plain Python data.

    Args:
        data: What a recipe file holds: a mapping with ``merge_method``, ``models`` and so on.
        where: Named in the error: the file the data came from.

    Raises:
        MergeError: The recipe is not valid; every problem is listed.
    """
    parse(_typed(str(data.get("merge_method")) if isinstance(data, dict) else ""), data, str(where), MergeError)
    return parse(Recipe, data, str(where), MergeError)


@cache
def _typed(method: str) -> type[Frozen]:
    """A recipe whose parameters have the types they have in a method; of any method, where that is unknown."""
    names = dict.fromkeys(_PARAMETERS, 1.0)
    rules = METHOD_RULES.get(method, MethodRules(names, names))

    def parameters(names: Iterable[str]) -> Any:
        fields = {name: (_PARAMETERS[name], ()) for name in names}
        return create_model("Parameters", __base__=Frozen, **fields), {}  # type: ignore[call-overload]

    entry = create_model("Entry", __base__=Frozen, model=(Path, ...), parameters=parameters(rules.of_models))
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in Recipe.model_fields.items()}
    fields["parameters"] = parameters({**rules.of_models, **rules.of_method})
    fields["models"] = (tuple[entry, ...], ...)
    return create_model("Typed", __base__=Frozen, **fields)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    A relative model path is looked up in the recipe's own folder first (a recipe that travels with its models works
    from anywhere), then in the current folder, which is mergekit's rule. The paths of the result are absolute.

    Raises:
        MergeError: The file is missing or not a valid recipe; every problem is listed.
    """
    path, folder = Path(path), Path(path).resolve().parent

    def place(part: Path) -> Path:
        here, there = folder / part, Path.cwd() / part
        return there if there.exists() and not here.exists() else here

    try:
        data = read_yaml(path, MergeError)
    except OSError as error:
        fix = "name a .yaml file in mergekit's form (docs/merging.md)"
        raise MergeError("the recipe cannot be read", where=path, found=error.strerror, fix=fix) from error
    recipe = make_recipe(data, path).with_paths(place, lambda part: place(part).exists())
    return make_recipe(_written(recipe), path)  # two paths may be one folder


def _written(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def recipe_yaml(recipe: Recipe, relative_to: Path | None = None) -> str:
    """The recipe as a YAML file that mergekit runs too (but for the methods of `OWN_METHODS`).

    Args:
        recipe: The recipe.
        relative_to: Write the paths relative to this folder; as they are when None. mergekit then has to be run in it.
    """
    if relative_to is not None:
        start = relative_to.resolve()
        recipe = recipe.with_paths(lambda path: Path(os.path.relpath(path.resolve(), start)))
    note = f"# {recipe.merge_method} is a method of this kit only: mergekit does not run this file.\n"
    text = yaml.safe_dump(_written(recipe), sort_keys=False, allow_unicode=True)
    return (note if recipe.merge_method in OWN_METHODS else "") + text


def _real(model: Path) -> str:
    return "+".join(os.path.realpath(part) for part in model_parts(model))


def _same(one: Path, two: Path | None) -> bool:
    return two is not None and _real(one) == _real(two)


def _folder_problems(method: str, models: Sequence[Path], base: Path | None) -> Iterator[str]:
    """What is wrong with the folders: too few, one twice, the base among the models or not among them."""
    rules = METHOD_RULES[method]
    low, high = rules.models
    if not low <= len(models) <= (high or len(models)):
        yield f"{method} merges {'exactly' if high else 'at least'} {low} models, found {len(models)}"
    folders = [_real(model) for model in models]
    yield from (f"{folder} is listed twice" for folder in dict.fromkeys(folders) if folders.count(folder) > 1)
    inside = base is not None and _real(base) in folders
    if base is None and rules.base in ("required", "member"):
        yield f"{method} needs a base_model{', one of the two models' if rules.base == 'member' else ''}"
    if inside and rules.base in ("optional", "required"):
        yield f"{base} is the base_model and one of the models"
    if base is not None and not inside and rules.base == "no":  # in mergekit, it gives the tokenizer
        yield f"{method} averages the models themselves and has no use for a base; remove the line base_model"
    if base is not None and not inside and rules.base == "member" and models:
        yield f"the base_model {base} has to be one of the two models"
