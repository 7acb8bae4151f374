"""The models of some recipes, opened once and compared, and what each recipe says of each of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging.adapters import AdapterCheckpoint, adapter_base, is_adapter
from boom_utils.merging.checkpoints import Checkpoint, require_compatible
from boom_utils.merging.parameters import Settings, places_of
from boom_utils.merging.recipe import Recipe, missing_folders
from boom_utils.model_folder import model_parts


def open_checkpoints(folders: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[Checkpoint]:
    """Open models.

    Args:
        folders: Model folders, LoRA adapters (with the base that their configuration names), or ``BASE+ADAPTER``.
        names: What messages call them; as much of each path as tells it from the others where none is given.

    Raises:
        CheckpointError: One of them cannot be read or is not safe to read.
    """
    models: list[Checkpoint] = []
    for folder, label in zip(folders, _labels(folders), strict=True):
        *base, last = model_parts(Path(folder))
        label = (names or {}).get(folder, label)
        if base or is_adapter(last):
            models.append(AdapterCheckpoint(base[0] if base else adapter_base(last), last, label))
        else:
            models.append(Checkpoint(last, label))
    return models


def open_family(recipes: Sequence[Recipe], names: Mapping[Path, str] | None = None) -> dict[Path, Checkpoint]:
    """Open every model of some recipes once, and compare them; every problem is reported at once.

    Returns:
        The models, by their paths in the recipes: bases first, then the others in the recipes' order.

    Raises:
        MergeError: Models are missing or do not fit.
        CheckpointError: A folder cannot be read.
    """
    if missing := [sentence for recipe in recipes for sentence in missing_folders(recipe.folders)]:
        raise MergeError("models of the recipe are missing" + bullet_list(dict.fromkeys(missing)))
    bases = [recipe.task_base for recipe in recipes if recipe.task_base is not None]
    folders = list(dict.fromkeys([*bases, *(folder for recipe in recipes for folder in recipe.folders)]))
    family = dict(zip(folders, open_checkpoints(folders, names), strict=True))
    members = dict.fromkeys(entry.model for recipe in recipes for entry in recipe.models)
    undecided = any(recipe.dtype is None and recipe.out_dtype is None for recipe in recipes)
    only_bases = [model for folder, model in family.items() if folder not in members]
    require_compatible([family[folder] for folder in members], only_bases, one_dtype=undecided)
    return family


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


def _labels(folders: Sequence[Path]) -> list[str]:
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [str(path) for path in paths]
