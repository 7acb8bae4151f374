"""Merge recipes: mergekit's YAML schema, so that the same file runs in mergekit.

Nothing of a recipe is ignored: a key that means nothing to the method is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from boom_utils.config import Frozen
from boom_utils.errors import MergeError, bullet_list, nearest
from boom_utils.merging.parameters import (
    METHOD_NAMES,
    METHOD_RULES,
    MethodRules,
    Place,
    Settings,
    key_problems,
    value_at,
    weight_problems,
    weights_cancel,
)
from boom_utils.model_folder import model_parts
from boom_utils.yaml_files import read_yaml

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
OWN_METHODS = frozenset({"linear_norm_matched"})
ANYWHERE = Place("", 0.0)


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

    merge_method: str
    base_model: Path | None = None
    parameters: Mapping[str, Any] = Field(default_factory=dict, validate_default=True)
    models: tuple[RecipeModel, ...]
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None

    # Field validators rather than one model validator: they run even when another field is wrong, so that one error
    # can list everything.
    @field_validator("merge_method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHOD_RULES:
            raise ValueError(
                f"{method!r} is not supported{nearest(method, METHOD_NAMES)} (supported: {', '.join(METHOD_NAMES)})"
            )
        return method

    @field_validator("parameters")
    @classmethod
    def _parameters_fit(cls, parameters: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        method, rules = _rules(info)
        problems = list(key_problems(parameters, {**rules.of_method, **rules.of_models}, method))
        missing = [name for name, value in rules.of_method.items() if value is None and name not in parameters]
        problems += [f"{name}: missing ({method} needs it)" for name in missing]
        _complain([f"parameters.{problem}" for problem in problems])
        return parameters

    @field_validator("models")
    @classmethod
    def _models_fit(cls, models: tuple[RecipeModel, ...], info: ValidationInfo) -> tuple[RecipeModel, ...]:
        _, rules = _rules(info)
        base = info.data.get("base_model")
        if rules.base == "required" and base is not None:  # recipes for mergekit list the base too, to no effect
            models = tuple(entry for entry in models if entry.parameters or not _same(entry.model, base))
        _complain([*_model_problems(models, info), *_folder_problems(models, base, rules)])
        return models

    @property
    def rules(self) -> MethodRules:
        """What its method takes."""
        return METHOD_RULES[self.merge_method]

    @property
    def weights(self) -> tuple[Any, ...]:
        """The weights as written, one for each model; 1 for methods that take none."""
        return tuple(self._of_model(entry, "weight") for entry in self.models)

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
        found = {name: self._of_method(name, default, place) for name, default in self.rules.of_method.items()}
        weights = tuple(self._number(entry, "weight", place) for entry in self.models)
        densities = tuple(self._number(entry, "density", place) for entry in self.models)
        normalized = bool(found.get("normalize", found.get("normalize_weights", True)))
        if normalized and "weight" in self.rules.of_models and weights_cancel(weights):
            raise MergeError("the weights sum to zero and cannot be normalised", where=place.name, found=list(weights))
        numbers = {"eps": "eps", "lambda": "scale", "t": "t", "select_topk": "selected", "tol": "tol"}
        named = {field: float(found[name]) for name, field in numbers.items() if name in found}
        steps = int(found.get("max_iter", 10))
        first = self._first()
        return Settings(weights, normalized, densities=densities, first=first, max_iter=steps, **named)

    def with_paths(self, change: Callable[[Path], Path]) -> Self:
        """The same recipe with ``change(path)`` in place of every path (each of the two of ``BASE+ADAPTER``)."""

        def changed(path: Path) -> Path:
            return Path("+".join(str(change(part)) for part in model_parts(path)))

        models = tuple(entry.model_copy(update={"model": changed(entry.model)}) for entry in self.models)
        base = None if self.base_model is None else changed(self.base_model)
        return self.model_copy(update={"models": models, "base_model": base})

    def _of_model(self, entry: RecipeModel, name: str) -> Any:
        """A parameter of one model as written: its own, or the recipe's, or the default."""
        default = self.rules.of_models.get(name, 1.0)
        value = entry.parameters.get(name, self.parameters.get(name, default))
        return float(value) if isinstance(value, int | str) else value

    def _number(self, entry: RecipeModel, name: str, place: Place) -> float:
        value = value_at(self._of_model(entry, name), place)
        if value is None and name in entry.parameters:  # mergekit's rule: what a model leaves open the recipe may say
            value = value_at(self.parameters.get(name), place)
        default = self.rules.of_models.get(name)
        return float(_given(default if value is None else value, name, f"{place.name} of {entry.model}"))

    def _of_method(self, name: str, default: Any, place: Place) -> Any:
        value = value_at(self.parameters.get(name), place)
        return _given(default if value is None else value, name, place.name)

    def _first(self) -> int:
        if self.rules.base != "member" or self.base_model is None:
            return 0
        return next(n for n, entry in enumerate(self.models) if _same(entry.model, self.base_model))


def _given(value: Any, name: str, where: str) -> Any:
    if value is None:
        fix = "add a last entry with a value and no filter"
        raise MergeError(f"no filter of '{name}' fits a tensor", where=where, fix=fix)
    return value


def missing_folders(folders: Iterable[Path]) -> list[str]:
    """One sentence for every folder that does not exist, of models named as in a recipe."""
    parts = (part for folder in folders for part in model_parts(folder))
    return [f"model folder not found: {folder}" for folder in dict.fromkeys(parts) if not folder.is_dir()]


def make_recipe(data: Any, where: object = None) -> Recipe:
    """Validate a recipe given as plain Python data.

    Args:
        data: What a recipe file holds: a mapping with ``merge_method``, ``models`` and so on.
        where: Named in the error: the file the data came from.

    Raises:
        MergeError: The recipe is not valid; every problem is listed.
    """
    recipe, problems = _validated(data)
    if recipe is None:
        raise _refusal(problems, where)
    return recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    A relative model path is looked up in the recipe's own folder first (a recipe that travels with its models works
    from anywhere), then in the current folder, which is mergekit's rule. The paths of the result are absolute.

    Raises:
        MergeError: The file is missing or not a valid recipe, or model folders do not exist; every problem is listed.
    """
    path = Path(path)
    try:
        data = read_yaml(path, MergeError)
    except OSError as error:
        raise MergeError("the recipe cannot be read", where=path, found=error) from error
    paths = _make_absolute(data, path.resolve().parent)
    recipe, problems = _validated(data)
    problems += missing_folders(paths)
    if recipe is None or problems:
        raise _refusal(problems, path)
    return recipe


def recipe_yaml(recipe: Recipe, relative_to: Path | None = None) -> str:
    """The recipe as a YAML file that mergekit runs too (but for the methods of `OWN_METHODS`).

    Args:
        recipe: The recipe.
        relative_to: Write the paths relative to this folder; as they are when None. mergekit then has to be run in it.
    """
    if relative_to is not None:
        start = relative_to.resolve()
        recipe = recipe.with_paths(lambda path: Path(os.path.relpath(path.resolve(), start)))
    data = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    note = ""
    if recipe.merge_method in OWN_METHODS:
        note = f"# {recipe.merge_method} is a method of this kit only: mergekit does not run this file.\n"
    return note + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _validated(data: Any) -> tuple[Recipe | None, list[str]]:
    """The recipe, or None and what is wrong with it."""
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, [sentence for problem in error.errors() for sentence in _sentences(problem)]


def _rules(info: ValidationInfo) -> tuple[str, MethodRules]:
    """The method and its rules; rules that fit anything when the method is not known."""
    method = str(info.data.get("merge_method", "this method"))
    names = {name: 1.0 for rules in METHOD_RULES.values() for name in (*rules.of_models, *rules.of_method)}
    return method, METHOD_RULES.get(method, MethodRules(names, names, "optional"))


def _real(model: Path) -> str:
    return "+".join(os.path.realpath(part) for part in model_parts(model))


def _same(one: Path, two: Path) -> bool:
    return _real(one) == _real(two)


def _model_problems(models: Sequence[RecipeModel], info: ValidationInfo) -> Iterator[str]:
    """What is wrong with the parameters and the number of the models, and with the absence of a base."""
    method, rules = _rules(info)
    for n, entry in enumerate(models):
        yield from (f"models.{n}.parameters.{p}" for p in key_problems(entry.parameters, rules.of_models, method))
        for name, default in rules.of_models.items():
            everywhere = info.data.get("parameters", {name: None})
            if default is None and method in METHOD_NAMES and name not in entry.parameters and name not in everywhere:
                yield f"models.{n}.parameters.{name}: missing (every model needs a {name})"
    if method not in METHOD_NAMES or not models:
        return
    low, high = rules.models
    if not low <= len(models) <= (high or len(models)):
        yield f"{method} merges {'exactly' if high else 'at least'} {low} models, found {len(models)}"
    if info.data.get("base_model", "wrong") is None and rules.base in ("required", "member"):
        yield f"{method} needs a base_model{', one of the two models' if rules.base == 'member' else ''}"
    yield from weight_problems([entry.parameters for entry in models], info.data.get("parameters", {}), rules)


def _folder_problems(models: Sequence[RecipeModel], base: Path | None, rules: MethodRules) -> Iterator[str]:
    """What is wrong with the folders: none, one twice, the base among the models or not among them."""
    if not models:
        yield "no model is listed"
    folders = [_real(entry.model) for entry in models]
    yield from (f"{folder} is listed twice" for folder in dict.fromkeys(folders) if folders.count(folder) > 1)
    inside = base is not None and any(_same(entry.model, base) for entry in models)
    if inside and rules.base not in ("member", "no"):
        yield f"{base} is the base_model and one of the models"
    if base is not None and not inside and rules.base == "no":  # in mergekit, it gives the tokenizer
        yield "this method averages the models themselves and has no use for a base; remove the line base_model"
    if base is not None and not inside and rules.base == "member" and models:
        yield f"the base_model {base} has to be one of the two models"


def _complain(problems: Iterable[str]) -> None:
    if text := "\n".join(problems):
        raise ValueError(text)


def _make_absolute(data: Any, folder: Path) -> list[Path]:
    """Resolve the model paths in ``data``, and list them; what is not shaped like a recipe is left to validation."""
    models = data.get("models") if isinstance(data, dict) else None
    places = [(entry, "model") for entry in (models if isinstance(models, list) else [])] + [(data, "base_model")]
    found = []
    for place, key in places:
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = _resolve(place[key], folder)
            found.append(place[key])
    return found


def _resolve(path: str, folder: Path) -> Path:
    def place(part: Path) -> Path:
        here, there = folder / part, Path.cwd() / part
        return there if there.exists() and not here.exists() else here

    return Path("+".join(str(place(part)) for part in model_parts(Path(path), lambda part: place(part).exists())))


def _sentences(problem: Any) -> list[str]:
    """One pydantic problem, which may be several of ours, with the nearest valid name and what is supported."""
    place = ".".join(str(part) for part in problem["loc"])
    name = str(problem["loc"][-1]) if problem["loc"] else ""
    match problem["type"]:
        case "extra_forbidden":
            known = list((RecipeModel if len(problem["loc"]) > 1 else Recipe).model_fields)
            return [f"{place}: unknown key{nearest(name, known)} (supported here: {', '.join(known)})"]
        case "missing":
            return [f"{place}: missing"]
        case "literal_error":
            options, value = get_args(Dtype), str(problem["input"])
            return [f"{place}: {value!r} is not supported{nearest(value, options)} (supported: {', '.join(options)})"]
        case "value_error":
            lines = str(problem["ctx"]["error"]).split("\n")
            return [line if line.startswith(f"{place}.") else f"{place}: {line}" for line in lines]
    return [f"{place}: {problem['msg']}, found {problem['input']!r}"]


def _refusal(problems: Sequence[str], where: object) -> MergeError:
    fix = "correct the recipe; models are folders on this computer, so download a model of the Hub first"
    return MergeError("the recipe cannot be used" + bullet_list(problems), where=where, fix=fix)
