"""The models of some recipes, opened once and compared, and what each recipe says of each of their tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from boom_utils.artifacts import digest_of
from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging.adapters import AdapterCheckpoint
from boom_utils.merging.checkpoints import HEAD, Checkpoint, same_bytes
from boom_utils.merging.parameters import Settings, places_of
from boom_utils.merging.recipe import Recipe, missing_folders
from boom_utils.merging.settings import ENCODING, OF_EVERY_MODEL, compare_parts
from boom_utils.model_folder import adapter_base, is_adapter, model_parts

log = logging.getLogger(__name__)

# What transformers makes anew when it opens a model, and a head that none of its states of tokens goes through.
_NOT_READ = re.compile(r"(?:^|\.)(?:position_ids|token_type_ids|inv_freq)$|^pooler\.")


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


def open_family(
    recipes: Sequence[Recipe], names: Mapping[Path, str] | None = None
) -> tuple[dict[Path, Checkpoint], list[str]]:
    """Open every model of some recipes once, and compare them; every problem is reported at once.

    Returns:
        The models, by their paths in the recipes: bases first, then the others in the recipes' order; and what was
        reconciled.

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
    return family, reconcile([family[folder] for folder in members], only_bases, one_dtype=undecided)


def reconcile(members: Sequence[Checkpoint], bases: Sequence[Checkpoint] = (), one_dtype: bool = False) -> list[str]:
    """Find out whether models can be merged: whether all say the same once the libraries have loaded them.

    Compared with the first member are names, shapes and kinds of the tensors, config, tokenizer, modules, pooling,
    prompts and input length; a base that is no embedding model has nothing to say about the last four. Tensors that
    nothing reads (buffers, and heads of an embedding model) are left out of all models unless all have them. Values are
    looked at when they are read: `boom_utils.merging.gram.not_finite` names all that cannot be merged.

    Args:
        members: The models to merge.
        bases: Models that are only the base of others.
        one_dtype: Whether members of several dtypes are a difference too.

    Returns:
        One sentence for everything in which they differ without meaning to, which is logged too.

    Raises:
        MergeError: They differ; every difference is listed.
    """
    first, models = members[0], [*members, *bases]
    notes = _leave_out_not_read(models)
    problems = [f"{model.label}: {HEAD} is not the embedding that config.json ties it to" for model in models
                if model.head_differs()]  # fmt: skip
    for other in models[1:]:
        problems += _tensor_differences(first, other)
        some = OF_EVERY_MODEL if other in bases and ENCODING not in other.parts else {*first.parts, *other.parts}
        ours, theirs = ({file: model.parts[file] for file in some & model.parts.keys()} for model in (first, other))
        differences, respelled = compare_parts(ours, theirs)
        problems += [f"{other.label}: {key}: {_short(b)}, in {first.label} {_short(a)}" for key, a, b in differences]
        if respelled:
            notes.append(f"{other.label}: {', '.join(respelled)}: spelt otherwise than in {first.label}, same meaning")
        if (a := _prefixes(first)) != (b := _prefixes(other)):
            notes.append(f"{other.label}: names of tensors begin with {b}, in {first.label} with {a}")
    if problems := [*problems, *(_mixed_dtypes(members) if one_dtype else [])]:
        raise MergeError(
            "the models cannot be merged, because they differ" + bullet_list(problems),
            fix="merge models that were trained from one base, with one tokenizer, pooling and set of prompts",
        )
    if notes:
        log.info("the models differ in nothing but spelling and what is not read%s", bullet_list(notes))
    return notes


def _leave_out_not_read(models: Sequence[Checkpoint]) -> list[str]:
    in_all = set.intersection(*(set(model.tensors) for model in models))
    encoders, notes = ENCODING in models[0].parts, []
    for model in models:
        # In the file of a model with a head, the prefix is that of the model without one.
        inside = {name for name, info in model.tensors.items() if info.stored != name}
        heads = {name for name in model.tensors if name.startswith("lm_head.") or (inside and name not in inside)}
        not_read = {name for name in model.tensors if _NOT_READ.search(name) or (encoders and name in heads)}
        if out := sorted(not_read - in_all):
            model.tensors = {name: info for name, info in model.tensors.items() if name not in out}
            notes.append(f"{model.label}: left out {', '.join(out)}, which not every model has and none reads")
    return notes


def _prefixes(model: Checkpoint) -> str:
    found = {info.stored.removesuffix(name) for name, info in model.tensors.items()} - {""}
    return " and ".join(sorted(found)) or "nothing"


def _tensor_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    ours, theirs = first.tensors, other.tensors
    problems = [f"{other.label}: has no {name}, {first.label} has" for name in ours if name not in theirs]
    problems += [f"{other.label}: has {name}, {first.label} has not" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            problems.append(f"{other.label}: {name} has shape {list(b.shape)}, in {first.label} {list(a.shape)}")
        elif a.is_float != b.is_float or (not a.is_float and a.dtype != b.dtype):
            problems.append(f"{other.label}: {name} is {b.dtype}, in {first.label} {a.dtype}")
        elif not a.is_float and not same_bytes(first, a, other, b):
            problems.append(f"{other.label}: {name} ({a.dtype}, cannot be averaged) differs from {first.label}")
    return sorted(problems)


def _mixed_dtypes(members: Sequence[Checkpoint]) -> list[str]:
    first = members[0]
    return [
        f"{other.label}: {name} is {found.dtype}, in {first.label} {info.dtype}; the recipe sets no dtype"
        for other in members[1:]
        for name, info in first.tensors.items()
        if (found := other.tensors.get(name, info)).is_float and info.is_float and found.dtype != info.dtype
    ]


def _short(value: Any) -> str:
    """The value, or its kind and a digest where it is long (a vocabulary)."""
    text = value if isinstance(value, str) and value in ("present", "missing") else repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} of sha256 {digest_of(value)[:8]}"


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
        lines = [str(problem).replace("\n ", ";") for problem in problems]
        raise MergeError("the recipe does not fit these models" + bullet_list(lines, 20))
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [str(path) for path in paths]
