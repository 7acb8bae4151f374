"""The merged model's folder beside its weights: files kept of the first model, configuration, recipe, card, facts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import process_alive
from boom_utils.cards import Card, Provenance, write_card
from boom_utils.errors import MergeError
from boom_utils.merging.checkpoints import Checkpoint
from boom_utils.merging.recipe import Recipe, recipe_yaml
from boom_utils.merging.weight_files import FLOAT_NAMES
from boom_utils.model_folder import ADAPTER, ADAPTER_CONFIG, INDEX, model_files, module_folders, read_mapping

RECIPE_FILE = "mergekit_config.yaml"


def require_free(out: Path) -> None:
    """Refuse an output folder that holds something.

    Raises:
        MergeError: It does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(
            "the output folder already exists", where=out, fix="name another folder, or remove this one first"
        )


def temporary_folder(out: Path) -> Path:
    """Make the folder in which ``out`` is prepared, and remove what killed merges into ``out`` have left."""
    for old in out.parent.glob(f".{out.name}.*.tmp"):
        number = old.name.split(".")[-2]
        if number.isdigit() and not process_alive(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def copy_folder(model: Checkpoint, target: Path) -> list[str]:
    """Copy what a model consists of beside its weights; returns what else lies in its folder (only top names)."""
    weights = {INDEX, ADAPTER, ADAPTER_CONFIG, *(info.file.name for info in model.tensors.values())}
    left_out: set[str] = set()
    for source in model.sources:
        kept = {path.relative_to(source) for path in model_files(source)}
        for name in sorted(kept):
            (target / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
        for module in module_folders(source):  # a module without files still has its folder
            (target / module).mkdir(parents=True, exist_ok=True)
        others = {path.relative_to(source) for path in source.rglob("*") if path.is_file()} - kept
        left_out |= {name.parts[0] + "/" * (len(name.parts) > 1) for name in others if str(name) not in weights}
    return sorted(left_out)


def write_config(folder: Path, dtypes: set[str]) -> None:
    """Name the dtype of the merged weights in config.json, which is otherwise the first model's."""
    config = read_mapping(folder / "config.json")
    if len(dtypes) != 1 or not config:
        return
    parts = [
        config,
        *(part for part in config.values() if isinstance(part, dict) and {"dtype", "torch_dtype"} & set(part)),
    ]
    for part in parts:
        key = "torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"
        part[key] = FLOAT_NAMES[next(iter(dtypes))]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_recipe(folder: Path, recipe: Recipe, out: Path) -> None:
    """The recipe as a file that makes the model again, with paths relative to the output."""
    (folder / RECIPE_FILE).write_text(recipe_yaml(recipe, relative_to=out), encoding="utf-8")


def write_merge_card(
    folder: Path, recipe: Recipe, facts: Mapping[str, Any], labels: Mapping[Path, str], provenance: Provenance
) -> None:
    """The model card: method, members with weights and fingerprints, and the recipe under their names.

    It names no path, so that equal merges have equal cards.
    """
    members = facts["members"]
    shown = {member["name"]: _short(member) for member in members}
    base = facts["base"]
    on_base = "" if base is None else f", as task vectors on {base['name']} ({_named(base)})"
    summary = (
        f"Merged by {recipe.merge_method}{on_base}. A fingerprint is a digest of a model's weights. "
        f"{RECIPE_FILE}, where the model was made, is the recipe with the folders it was run on."
    )
    named = yaml.safe_load(recipe_yaml(recipe.with_paths(lambda path: Path(labels.get(path, path.name)))))
    title = f"{recipe.merge_method} of {len(shown)} models"
    parents = list(shown)
    known = parents if base is None or base["name"] in shown else [base["name"], *parents]
    write_card(folder, Card(title, summary, shown, parents, known, True, recipe=named, provenance=provenance))


def _short(member: Mapping[str, Any]) -> str:
    weight = member["weight"]
    shown = f"{weight:g}" if isinstance(weight, float) else json.dumps(weight)
    return _named(member) if weight is None else f"weight {shown}, {_named(member)}"


def _named(model: Mapping[str, Any]) -> str:
    return f"fingerprint {model['fingerprint'][:12]}"
