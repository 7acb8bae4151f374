"""The models of some recipes, opened once and compared, and what each recipe says of each of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging.checkpoints import Checkpoint, open_checkpoints, require_compatible
from boom_utils.merging.parameters import Settings, places_of
from boom_utils.merging.recipe import Recipe, missing_folders


def open_family(recipes: Sequence[Recipe], names: Mapping[Path, str] | None = None) -> list[Checkpoint]:
    """Open every model of some recipes once, and compare them; every problem is reported at once.

    Returns:
        The models: the base of the first recipe that has one, then the others in the recipes' order.

    Raises:
        MergeError: Models are missing or do not fit.
        CheckpointError: A folder cannot be read.
    """
    if missing := [sentence for recipe in recipes for sentence in missing_folders(recipe.folders)]:
        raise MergeError("models of the recipe are missing" + bullet_list(dict.fromkeys(missing)))
    bases = [recipe.task_base for recipe in recipes if recipe.task_base is not None]
    folders = list(dict.fromkeys([*bases, *(folder for recipe in recipes for folder in recipe.folders)]))
    models = open_checkpoints(folders)
    for model, folder in zip(models, folders, strict=True):
        model.label = (names or {}).get(folder, model.label)
    merged = {entry.model for recipe in recipes for entry in recipe.models}
    members = [model for model, folder in zip(models, folders, strict=True) if folder in merged]
    undecided = any(recipe.dtype is None and recipe.out_dtype is None for recipe in recipes)
    require_compatible(members, [model for model in models if model not in members], one_dtype=undecided)
    return models


def settings_of(recipe: Recipe, names: Sequence[str]) -> dict[str, Settings]:
    """What the method of a recipe is told at each tensor.

    Raises:
        MergeError: A parameter has no value at some tensors, or weights cancel there; all are named.
    """
    found, problems = {}, []
    for name, place in places_of(names).items():
        try:
            found[name] = recipe.settings_at(place)
        except MergeError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [str(problem).replace("\n ", ";") for problem in problems[:20]]
        more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise MergeError("the recipe does not fit these models" + bullet_list([*lines, *more]))
    return found
