"""From a recipe to a merged model folder, which appears whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boom_utils.cards import Card, write_card
from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging import methods
from boom_utils.merging.checkpoints import Checkpoint, TensorInfo, open_checkpoints, require_compatible
from boom_utils.merging.gram import chunks_of, tensor_gram
from boom_utils.merging.recipe import Recipe, missing_folders, recipe_yaml
from boom_utils.merging.settings import module_folders, read_mapping
from boom_utils.merging.weight_files import DTYPE_NAMES, DTYPES, INDEX, PICKLES, WEIGHTS, write_safetensors

log = logging.getLogger(__name__)

RECIPE_FILE = "mergekit_config.yaml"
# Files of the first model that say something about it and would be false, or unsafe, beside merged weights.
WEIGHT_SUFFIXES = PICKLES | {".safetensors", ".onnx", ".onnx_data", ".xml", ".gguf", ".h5", ".msgpack", ".npz"}
NOT_KEPT = frozenset({INDEX, RECIPE_FILE, "record.json", "README.md", "trainer_state.json"})


@dataclass
class _Job:
    """A merge whose inputs were opened and found to fit.

    Attributes:
        recipe: The recipe.
        members: Its models, in order.
        base: Its base.
        notes: What was special about single tensors, by unified name; filled while tensors are merged.
    """

    recipe: Recipe
    members: list[Checkpoint]
    base: Checkpoint | None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[Checkpoint]:
        """Everything that is read: the base if there is one, then the members."""
        return self.members if self.base is None else [self.base, *self.members]

    @property
    def settings(self) -> methods.Settings:
        """What the method needs to know."""
        return methods.Settings(self.recipe.weights, self.recipe.normalized, self.recipe.eps)

    def output_dtype(self, info: TensorInfo) -> torch.dtype:
        """Dtype of a merged tensor: the recipe's, or that of the inputs; never changed for what is not merged."""
        wanted = self.recipe.out_dtype or self.recipe.dtype
        return getattr(torch, wanted) if wanted and info.is_float else DTYPES[info.dtype]


def merge(recipe: Recipe, out: Path, names: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """Merge the models of a recipe into a new model folder.

    Tensor by tensor: inner products in float64, coefficients, combination in float64, one rounding to the output dtype.
    The output has the tensor names, config, tokenizer, modules and prompts of the first model, whose folder is kept but
    for its weights, its model card and files of other programs' runs; a card of its own; and the recipe as
    ``mergekit_config.yaml``, with paths relative to the output. Equal inputs and places give equal bytes, whatever the
    number of threads.

    Args:
        recipe: What to merge.
        out: Folder to make: one that does not exist, or an empty one, which is replaced.
        names: What messages, facts and the model card call the folders; as much of each path as tells them apart when
            None.

    Returns:
        Facts for a record: method, weights as used, content sha256 of every input, dtype, notes on single tensors
        (unified names) and the files of the first model that were left out.

    Raises:
        MergeError: ``out`` is in use, models are missing or do not fit, values are not finite, or models cancel.
        CheckpointError: A model folder cannot be read or is not safe to read.
        OSError: The disk is full. As after any other failure, nothing is left of the output.
    """
    out = out.resolve()
    _require_free(out)
    job = _checked(recipe, names or {})
    _require_space(job, out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        left_out = _copy_folder(job.members[0], temporary)
        _write_weights(job, temporary)
        _write_config(job, temporary)
        (temporary / RECIPE_FILE).write_text(recipe_yaml(recipe, relative_to=out), encoding="utf-8")
        facts = _facts(job, left_out)
        _write_card(job, temporary)
        temporary.rename(out)  # replaces an empty folder, fails on any other
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if job.notes:
        log.warning("%d of %d tensors were special cases; see the notes", len(job.notes), facts["tensors"])
    log.info("merged %d models by %s", len(job.members), recipe.merge_method)
    return facts


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to ``dtype``, to nearest and ties to even, once.

    torch converts float64 to 16 bits by way of float32 and so rounds twice; here the first step rounds to odd, which
    keeps what the second one has to know (Boldo and Melquiond, 2008).
    """
    if dtype.itemsize > 2:
        return values.to(dtype)
    nearest = values.float()
    too_far = nearest.double().abs() > values.abs()
    truncated = torch.where(too_far, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)
    inexact = (truncated.double() != values).int()
    return (truncated.view(torch.int32) | inexact).view(torch.float32).to(dtype)


def _require_free(out: Path) -> None:
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty:
        raise MergeError(
            "the output folder already exists", where=out, fix="name another folder, or remove this one first"
        )


def _checked(recipe: Recipe, names: Mapping[Path, str]) -> _Job:
    """Open the models of a recipe and compare them; every problem is reported at once."""
    if missing := missing_folders(recipe):
        raise MergeError("models of the recipe are missing" + bullet_list(missing))
    models = open_checkpoints(recipe.folders)
    for model in models:
        model.label = names.get(model.folder, model.label)
    count = len(recipe.models)
    job = _Job(recipe, models[:count], models[count] if recipe.base_model is not None else None)
    undecided = recipe.dtype is None and recipe.out_dtype is None
    require_compatible(job.members, job.base, _mixed_dtypes(job.members) if undecided else [])
    return job


def _mixed_dtypes(members: Sequence[Checkpoint]) -> list[str]:
    first = members[0]
    return [
        f"{other.label}: {name} is {other.tensors[name].dtype}, in {first.label} {info.dtype}; the recipe sets no dtype"
        for other in members[1:]
        for name, info in first.tensors.items()
        if info.is_float and other.tensors.get(name, info).dtype != info.dtype
    ]


def _require_space(job: _Job, out: Path) -> None:
    tensors = job.members[0].tensors.values()
    needed = sum(torch.Size(info.shape).numel() * job.output_dtype(info).itemsize for info in tensors)
    place = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MergeError(
            "not enough space for the merged model",
            where=place,
            expected=f"{needed / 2**20:.0f} MiB",
            found=f"{free / 2**20:.0f} MiB free",
            fix="free some space or name a folder on another disk",
        )


def _write_weights(job: _Job, folder: Path) -> None:
    # Under the names of the first model's files, not the unified ones.
    by_stored = {info.stored: name for name, info in job.members[0].tensors.items()}
    infos = job.members[0].tensors
    layout = {stored: (job.output_dtype(infos[name]), infos[name].shape) for stored, name in by_stored.items()}
    write_safetensors(folder / WEIGHTS, layout, lambda stored: _merged_chunks(job, by_stored[stored]))


def _merged_chunks(job: _Job, name: str) -> Iterator[Tensor]:
    info = job.members[0].tensors[name]
    if not info.is_float:
        yield job.members[0].read(name).reshape(-1)
        return
    tensors = [model.read(name) for model in job.models]
    gram = tensor_gram(name, tensors, job.base is not None, [model.label for model in job.models])
    made_of = methods.METHODS[job.recipe.merge_method](gram, job.settings)
    if made_of.note:
        job.notes[name] = made_of.note
        log.info("%s: %s", name, made_of.note)
    base = [] if job.base is None else [made_of.base]
    factors = [*base, *(float(factor) for factor in made_of.members)]
    dtype = job.output_dtype(info)
    for pieces in chunks_of(tensors):
        yield _finite(name, round_once(_combine(factors, pieces), dtype))


def _combine(factors: Sequence[float], pieces: Sequence[Tensor]) -> Tensor:
    """Σ factor * piece in float64; a factor of zero takes no part, so that one model alone comes out bit by bit."""
    terms = [factor * piece.double() for factor, piece in zip(factors, pieces, strict=True) if factor != 0]
    if not terms:
        return torch.zeros_like(pieces[0], dtype=torch.float64)
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def _finite(name: str, merged: Tensor) -> Tensor:
    if not torch.isfinite(merged).all():
        raise MergeError(
            f"merged values are too large for {DTYPE_NAMES[merged.dtype]}", where=name, fix="choose a wider out_dtype"
        )
    return merged


def _copy_folder(model: Checkpoint, target: Path) -> list[str]:
    """Copy a model folder, weights aside, without what is of that model only; returns the names of the latter."""
    source = model.folder
    replaced = {INDEX, *(info.file.name for info in model.tensors.values())}
    modules = tuple(f"{path}/" for path in module_folders(source))
    left_out = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        if name.as_posix().startswith(modules) or _kept(name):
            (target / name.parent).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
        elif name.as_posix() not in replaced:
            left_out.append(name.as_posix())
    for module in modules:  # a module without files still has its folder
        (target / module).mkdir(parents=True, exist_ok=True)
    return left_out


def _kept(name: Path) -> bool:
    run_files = any(part.startswith((".", "checkpoint-")) for part in name.parts)
    return not run_files and name.suffix not in WEIGHT_SUFFIXES | {".py"} and name.as_posix() not in NOT_KEPT


def _write_config(job: _Job, folder: Path) -> None:
    """Name the dtype of the merged weights in config.json, which is otherwise the first model's."""
    dtypes = {job.output_dtype(info) for info in job.members[0].tensors.values() if info.is_float}
    config = read_mapping(folder / "config.json")
    if len(dtypes) != 1 or not config:
        return
    name = str(dtypes.pop()).removeprefix("torch.")
    parts = [
        config,
        *(part for part in config.values() if isinstance(part, dict) and {"dtype", "torch_dtype"} & set(part)),
    ]
    for part in parts:
        part["torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"] = name
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _write_card(job: _Job, folder: Path) -> None:
    recipe = job.recipe
    shown = {model.label: f"{weight:g}" for model, weight in zip(job.members, recipe.weights, strict=True)}
    base = "" if job.base is None else f", as task vectors on {job.base.label}"
    summary = f"Merged by {recipe.merge_method}{base}; weights below. The recipe is in {RECIPE_FILE}."
    write_card(
        folder, Card(f"{recipe.merge_method} of {len(shown)} models", summary, shown, parents=list(shown), merged=True)
    )


def _facts(job: _Job, left_out: Sequence[str]) -> dict[str, Any]:
    used = methods.used_weights(job.settings)
    infos = job.members[0].tensors.values()
    members = [
        {"name": model.label, "weight": weight, "used_weight": float(share), "sha256": model.content_sha256()}
        for model, weight, share in zip(job.members, job.recipe.weights, used, strict=True)
    ]
    base = None if job.base is None else {"name": job.base.label, "sha256": job.base.content_sha256()}
    return {
        "method": job.recipe.merge_method,
        "members": members,
        "base": base,
        "dtype": sorted({DTYPE_NAMES[job.output_dtype(info)] for info in infos if info.is_float}),
        "tensors": len(job.members[0].tensors),
        "parameters": sum(torch.Size(info.shape).numel() for info in infos),
        "notes": job.notes,
        "left_out": list(left_out),
    }
