"""Merge recipes: mergekit's YAML schema, so that the same file runs in mergekit.

Supported now: the methods ``linear`` and ``multislerp``, and ``linear_norm_matched``, a control of this kit that
mergekit does not have. Nothing of a recipe is ignored: a key that means nothing to the method is an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from boom_utils.config import Frozen, read_yaml
from boom_utils.errors import MergeError, bullet_list, nearest

Method = Literal["linear", "multislerp", "linear_norm_matched"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
METHODS: tuple[str, ...] = get_args(Method)

# Which global parameters mean something to which method; mergekit ignores the others without a word.
METHOD_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("normalize",),
    "multislerp": ("normalize_weights", "eps"),
    "linear_norm_matched": (),
}


def _not_a_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Number = Annotated[float, BeforeValidator(_not_a_bool), Field(allow_inf_nan=False)]


class ModelParameters(Frozen):
    """Parameters of one model: its ``weight`` (any finite number; zero leaves the model out)."""

    weight: Number


class RecipeModel(Frozen):
    """One model of a recipe: its folder and its parameters."""

    model: Path
    parameters: ModelParameters


class Parameters(Frozen):
    """Parameters of the method; None means the method's default.

    Attributes:
        normalize: ``linear``: divide the weights by their sum (default true).
        normalize_weights: ``multislerp``: the same under mergekit's other name (default true).
        eps: ``multislerp``: added to norms before dividing, and the shortest mean direction accepted (default 1e-8).
    """

    normalize: bool | None = None
    normalize_weights: bool | None = None
    eps: Annotated[Number, Field(gt=0)] | None = None


class Recipe(Frozen):
    """A merge: which models, with which weights, by which method, into which dtype.

    Attributes:
        merge_method: ``linear``, ``multislerp`` or ``linear_norm_matched``.
        models: The models in order; the first one gives tokenizer, config, pooling and prompts to the output.
        base_model: Merge task vectors (model - base) and add the base back; not for ``linear``.
        parameters: Parameters of the method.
        dtype: mergekit's computing dtype. This kit computes in float64 whatever it says, and uses it as the output
            dtype when ``out_dtype`` is not given.
        out_dtype: Dtype of the merged weights; the dtype of the inputs when neither is given.
    """

    merge_method: Method
    base_model: Path | None = None
    models: tuple[RecipeModel, ...]
    parameters: Parameters = Field(default=Parameters(), validate_default=True)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None

    # Field validators rather than one model validator: they run even when another field is wrong, so that one error
    # can list everything.
    @field_validator("models")
    @classmethod
    def _no_folder_twice(cls, models: tuple[RecipeModel, ...], info: ValidationInfo) -> tuple[RecipeModel, ...]:
        folders = [os.path.realpath(entry.model) for entry in models]
        # Not a length rule of the field: pydantic would count only the valid entries.
        _complain([] if models else ["no model is listed"])
        problems = [f"{folder} is listed twice" for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
        base = info.data.get("base_model")
        if base is not None and os.path.realpath(base) in folders:
            problems.append(f"{base} is the base_model and one of the models")
        _complain(problems)
        return models

    @field_validator("base_model")
    @classmethod
    def _base_has_a_use(cls, base: Path | None, info: ValidationInfo) -> Path | None:
        if base is not None and info.data.get("merge_method") == "linear":
            raise ValueError("linear averages the models themselves and has no use for a base; remove the line")
        return base

    @field_validator("parameters")
    @classmethod
    def _parameters_fit(cls, parameters: Parameters, info: ValidationInfo) -> Parameters:
        method = info.data.get("merge_method")
        known = METHOD_PARAMETERS.get(str(method), Parameters.model_fields)
        given = parameters.model_dump(exclude_none=True)
        has = ", ".join(known) or "no parameters"
        problems = [f"{name} is not a parameter of {method} (it has {has})" for name in given if name not in known]
        weights = [entry.parameters.weight for entry in info.data.get("models", ())]
        normalized = _normalizes(parameters)
        if weights and (not any(weights) or (normalized and weights_cancel(weights))):
            problems.append(f"the weights {weights} sum to zero" if any(weights) else "every weight is zero")
        _complain(problems)
        return parameters

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights as written, shape (M,)."""
        return tuple(entry.parameters.weight for entry in self.models)

    @property
    def normalized(self) -> bool:
        """Whether the weights are divided by their sum before use."""
        return _normalizes(self.parameters)

    @property
    def eps(self) -> float:
        """``eps`` of multislerp."""
        return 1e-8 if self.parameters.eps is None else self.parameters.eps

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders it reads: the models in order, then the base if there is one."""
        base = () if self.base_model is None else (self.base_model,)
        return (*(entry.model for entry in self.models), *base)

    def with_paths(self, change: Callable[[Path], Path]) -> Self:
        """The same recipe with ``change(path)`` in place of every path."""
        models = tuple(entry.model_copy(update={"model": change(entry.model)}) for entry in self.models)
        base = None if self.base_model is None else change(self.base_model)
        return self.model_copy(update={"models": models, "base_model": base})


def weights_cancel(weights: Sequence[float]) -> bool:
    """Whether the weights sum to zero up to rounding (0.1 + 0.2 - 0.3 does), so that they cannot be normalised."""
    return abs(math.fsum(weights)) <= 1e-9 * math.fsum(abs(weight) for weight in weights)


def missing_folders(recipe: Recipe) -> list[str]:
    """One sentence for every folder of the recipe that does not exist."""
    return _missing(recipe.folders)


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
    data, paths = _absolute_paths(data, path.resolve().parent)
    recipe, problems = _validated(data)
    problems += _missing(paths)
    if recipe is None or problems:
        raise _refusal(problems, path)
    return recipe


def recipe_yaml(recipe: Recipe, relative_to: Path | None = None) -> str:
    """The recipe as a YAML file that mergekit runs too (but for the method ``linear_norm_matched``).

    Args:
        recipe: The recipe.
        relative_to: Write the paths relative to this folder; as they are when None. mergekit then has to be run in it.
    """
    if relative_to is not None:
        start = relative_to.resolve()
        recipe = recipe.with_paths(lambda path: Path(os.path.relpath(path.resolve(), start)))
    data = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    note = ""
    if recipe.merge_method == "linear_norm_matched":
        note = "# linear_norm_matched is a method of this kit only: mergekit does not run this file.\n"
    return note + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _validated(data: Any) -> tuple[Recipe | None, list[str]]:
    """The recipe, or None and what is wrong with it."""
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, [_sentence(problem) for problem in error.errors()]


def _missing(folders: Iterable[Path]) -> list[str]:
    return [f"model folder not found: {folder}" for folder in folders if not folder.is_dir()]


def _normalizes(parameters: Parameters) -> bool:
    return parameters.normalize is not False and parameters.normalize_weights is not False


def _complain(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def _absolute_paths(data: Any, folder: Path) -> tuple[Any, list[Path]]:
    """``data`` with its model paths resolved, and these; what is not shaped like a recipe is left to validation."""
    if not isinstance(data, dict):
        return data, []
    models = data.get("models")
    entries = (
        [dict(entry) if isinstance(entry, dict) else entry for entry in models] if isinstance(models, list) else []
    )
    data = {**data, "models": entries} if entries else dict(data)
    places = [(entry, "model") for entry in entries if isinstance(entry, dict)] + [(data, "base_model")]
    found = []
    for place, key in places:
        if isinstance(place.get(key), str):
            place[key] = _resolve(place[key], folder)
            found.append(place[key])
    return data, found


def _resolve(path: str, folder: Path) -> Path:
    here, there = folder / path, Path.cwd() / path
    return there if there.exists() and not here.exists() else here


def _sentence(problem: Any) -> str:
    """One pydantic problem as one sentence, with the nearest valid name and what is supported."""
    place = ".".join(str(part) for part in problem["loc"])
    name = str(problem["loc"][-1]) if problem["loc"] else ""
    match problem["type"]:
        case "extra_forbidden":
            known = _known_keys(problem["loc"])
            return f"{place}: unknown key{nearest(name, known)} (supported here: {', '.join(known)})"
        case "missing":
            return f"{place}: missing" + (" (every model needs a weight)" if name in ("weight", "parameters") else "")
        case "literal_error":
            options = METHODS if name == "merge_method" else get_args(Dtype)
            value = problem["input"]
            return (
                f"{place}: {value!r} is not supported{nearest(str(value), options)} (supported: {', '.join(options)})"
            )
        case "value_error":
            return f"{place}: {problem['ctx']['error']}"
    return f"{place}: {problem['msg']}, found {problem['input']!r}"


def _known_keys(location: Sequence[Any]) -> list[str]:
    # The depth tells the place: key; parameters.key; models.0.key; models.0.parameters.key.
    table: dict[int, type[Frozen]] = {2: Parameters, 3: RecipeModel, 4: ModelParameters}
    return list(table.get(len(location), Recipe).model_fields)


def _refusal(problems: Sequence[str], where: object) -> MergeError:
    fix = "correct the recipe; models are folders on this computer, so download a model of the Hub first"
    return MergeError("the recipe cannot be used" + bullet_list(problems), where=where, fix=fix)
