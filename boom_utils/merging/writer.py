"""From recipes to merged model folders, each of which appears whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from boom_utils.artifacts import process_alive
from boom_utils.cards import Card, Provenance, write_card
from boom_utils.errors import MergeError
from boom_utils.merging import kernels, methods
from boom_utils.merging.checkpoints import Checkpoint, Tensor, each_tensor, fingerprints
from boom_utils.merging.elementwise import ELEMENTWISE, Fill
from boom_utils.merging.family import open_family, settings_of
from boom_utils.merging.gram import StreamedGram, TensorGram, check_finite, stream_gram
from boom_utils.merging.kernels import Rows
from boom_utils.merging.methods import Settings
from boom_utils.merging.recipe import Recipe, recipe_yaml
from boom_utils.merging.weight_files import DTYPES, FLOATS, TensorInfo, WeightWriter, plain_name
from boom_utils.model_folder import ADAPTER, ADAPTER_CONFIG, INDEX, model_files, module_folders, read_mapping
from boom_utils.progress import progress

log = logging.getLogger(__name__)

RECIPE_FILE = "mergekit_config.yaml"


@dataclass(frozen=True)
class MergeOptions:
    """How a merge is carried out; none of it changes a value.

    Args:
        names: What messages, facts and the model card call the folders; as much of each path as tells them apart
            where none is given.
        max_shard_bytes: Most bytes in one weight file.
        threads: Threads; None: two more than processors, at most 16.
        provenance: What the model card says of the members' data and of what they took.
        place: Where a folder will lie that is moved once it is made: paths in its recipe are relative to this.
    """

    names: Mapping[Path, str] = field(default_factory=dict)
    max_shard_bytes: int | None = 5_000_000_000
    threads: int | None = None
    provenance: Provenance = field(default_factory=Provenance)
    place: Path | None = None


@dataclass
class _Job:
    """One merge of a family whose models were opened and found to fit.

    Attributes:
        recipe: The recipe.
        out: Its output.
        models: Numbers of its models in the family, in the recipe's order.
        base: Number of its base.
        settings: What its method is told, tensor by tensor.
        layout: The tensors it writes, by unified name: as they are called in its first model's files.
        notes: What was special about single tensors, by unified name; filled while tensors are merged.
        folder: Where it is made.
        writer: Writes its weights there.
        facts: What the record says of it.
    """

    recipe: Recipe
    out: Path
    models: list[int]
    base: int | None
    settings: Mapping[str, Settings]
    layout: Mapping[str, TensorInfo]
    notes: dict[str, str] = field(default_factory=dict)
    folder: Path = field(init=False)
    writer: WeightWriter = field(init=False)
    facts: dict[str, Any] = field(default_factory=dict)

    def fill(self, tensor: Tensor, gram: TensorGram) -> Fill:
        """How the tensor whose inner products are given is merged, piece by piece."""
        method, settings = self.recipe.merge_method, self.settings[tensor.name]
        if method in ELEMENTWISE and self.base is not None:
            rows = [self.base, *self.models]
            merge = ELEMENTWISE[method](tensor, rows, settings)
            everything = rows == list(range(len(tensor.models)))
            return merge if everything else lambda chunk, merged: merge(chunk.chosen(rows), merged)
        made_of = methods.METHODS[method](gram.view(self.models, self.base), settings)
        if made_of.note:
            self.notes[tensor.name] = made_of.note
        factors = np.zeros(len(tensor.models))
        factors[self.models] = made_of.members
        if self.base is not None:
            factors[self.base] = made_of.base
        return lambda chunk, merged: kernels.combine(chunk.values, chunk.starts, factors, merged)


def merge(recipe: Recipe, out: Path, options: MergeOptions | None = None) -> dict[str, Any]:
    """Merge the models of a recipe into a new model folder; see `merge_all`."""
    return merge_all([(recipe, out)], options)[0]


def merge_all(recipes: Sequence[tuple[Recipe, Path]], options: MergeOptions | None = None) -> list[dict[str, Any]]:
    """Make any number of merged models of one family of models from one pass over it.

    Tensor by tensor: inner products in float64, coefficients, combination in float64, one rounding to the output dtype.
    An output has the tensor names, config, tokenizer, modules and prompts of its recipe's first model
    (`boom_utils.model_folder.model_files`, and nothing else of that folder); a card of its own; and the recipe as
    ``mergekit_config.yaml``, with paths relative to the output. Equal inputs and places give equal bytes, whatever the
    number of threads.

    Args:
        recipes: What to merge, and the folder to make: one that does not exist, or an empty one, which is replaced.
        options: How.

    Returns:
        Facts for a record, for each output: method, weights as used, fingerprint of every input, dtype, notes on
        single tensors (unified names), the files of the first model that were left out, and in what the models differ
        without meaning to.

    Raises:
        MergeError: An output is in use, models are missing or do not fit, values are not finite, or models cancel.
        CheckpointError: A model folder cannot be read or is not safe to read.
        OSError: The disk is full. As after any other failure, nothing is left of the outputs.
    """
    options = options or MergeOptions()
    outs = [out.resolve() for _, out in recipes]
    if len(set(outs)) < len(outs):
        raise MergeError("two merges have one output folder", found=", ".join(map(str, outs)))
    for out in outs:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            fix = "name another folder, or remove this one first"
            raise MergeError("the output folder already exists", where=out, fix=fix)
    family, reconciled = open_family([recipe for recipe, _ in recipes], options.names)
    models, labels = list(family.values()), {folder: model.label for folder, model in family.items()}
    jobs = [_job(recipe, out, family) for (recipe, _), out in zip(recipes, outs, strict=True)]
    _require_space(jobs)
    with ExitStack() as stack:
        for job in jobs:
            job.folder = stack.enter_context(_prepared(job.out))
            left_out = _copy_folder(models[job.models[0]], job.folder)
            job.facts = {"left_out": left_out, "reconciled": reconciled}
            job.writer = WeightWriter(job.folder, job.layout.values(), options.max_shard_bytes)
            stack.callback(job.writer.close, complete=False)
        prints = _write_weights(models, jobs, options.threads)
        for job in jobs:
            job.facts = {**_facts(job, models, prints), **job.facts}
            _write_config(job.folder, {info.dtype for info in job.layout.values() if info.is_float})
            text = recipe_yaml(job.recipe, relative_to=options.place or job.out)
            (job.folder / RECIPE_FILE).write_text(text, encoding="utf-8")
            _write_card(job, labels, options.provenance)
        for job in jobs:
            job.folder.rename(job.out)  # replaces an empty folder, fails on any other
            if job.notes:
                log.warning("%d of %d tensors were special cases; see the notes", len(job.notes), len(job.settings))
            log.info("merged %d models by %s", len(job.models), job.recipe.merge_method)
    return [job.facts for job in jobs]


def _job(recipe: Recipe, out: Path, family: Mapping[Path, Checkpoint]) -> _Job:
    numbers = {folder: number for number, folder in enumerate(family)}
    first = family[recipe.models[0].model]
    # Of the dtype the recipe says, or float32; tensors that are no floating-point numbers stay what they are.
    asked = {name: short for short, name in FLOATS.items()}.get(recipe.out_dtype or recipe.dtype or "")
    layout = {}
    for name, info in first.tensors.items():
        dtype = (asked or ("F64" if info.dtype == "F64" else "F32")) if info.is_float else info.dtype
        layout[name] = replace(info, stored=plain_name(info.stored), dtype=dtype)
    settings = settings_of(recipe, [name for name, info in layout.items() if info.is_float])
    base = None if recipe.task_base is None else numbers[recipe.task_base]
    return _Job(recipe, out, [numbers[entry.model] for entry in recipe.models], base, settings, layout)


def _require_space(jobs: Sequence[_Job]) -> None:
    needed: Counter[Path] = Counter()
    for job in jobs:
        place = next(parent for parent in job.out.parents if parent.exists())
        needed[place] += sum(info.nbytes for info in job.layout.values())
    for place, size in needed.items():
        if (free := shutil.disk_usage(place).free) < size:
            what, fix = "not enough space for the merged model", "free some space or name a folder on another disk"
            sizes = {"expected": f"{size / 2**20:.0f} MiB", "found": f"{free / 2**20:.0f} MiB free"}
            raise MergeError(what, where=place, fix=fix, **sizes)


@contextmanager
def _prepared(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, removed unless it was renamed; what killed merges into ``out`` have left goes, too."""
    for old in out.parent.glob(f".{out.name}.*.tmp"):
        number = old.name.split(".")[-2]
        if number.isdigit() and not process_alive(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(models: Sequence[Checkpoint], jobs: Sequence[_Job], threads: int | None) -> list[str]:
    """Write the weights of every job; returns the fingerprints of the models."""
    names, problems = list(jobs[0].settings), list[str]()

    def merge_tensor(tensor: Tensor) -> StreamedGram:
        found = stream_gram(tensor)
        problems.extend(found.problems)
        if not problems:  # else nothing will be kept; the rest is only looked at, to name every problem at once
            fills = [(job.writer, job.layout[tensor.name], job.fill(tensor, found.gram)) for job in jobs]
            tensor.map(lambda start, rows: _write_chunk(tensor.name, start, rows, fills))
        return found

    merged = progress(each_tensor(models, names, merge_tensor, threads), len(names), "merge")
    found = {one.gram.name: one for one in merged}
    check_finite(found[name] for name in names)
    for job in jobs:
        first = models[job.models[0]]
        for name, info in first.tensors.items():
            if not info.is_float:
                job.writer.write(job.layout[name].stored, 0, first.raw(info))
        job.writer.close()
    return fingerprints(models, {name: found[name].digests for name in names})


def _write_chunk(name: str, start: int, rows: Rows, fills: Sequence[tuple[WeightWriter, TensorInfo, Fill]]) -> None:
    for writer, info, fill in fills:
        direct = info.dtype in ("F32", "F64")
        merged = np.empty(rows.size, DTYPES[info.dtype] if direct else np.float64)
        fill(rows, merged)
        values = merged if direct else round_once(merged, info.dtype)
        # BF16 stands there as bits, of which those of the exponent are all ones where a value is not finite.
        fine = (values & 0x7F80) != 0x7F80 if info.dtype == "BF16" else np.isfinite(values)
        if not fine.all():
            what, fix = f"merged values are too large for {info.dtype}", "choose a wider out_dtype"
            raise MergeError(what, where=name, fix=fix)
        writer.write(info.stored, start, values)


def round_once(merged: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Round float64 (N,) to F16 or BF16 (its bits) as NumPy holds it, to nearest and ties to even, once."""
    with np.errstate(over="ignore"):
        if dtype == "F16":
            return merged.astype(np.float16)  # NumPy rounds float64 to float16 in one step
        narrow = merged.astype(np.float32)
    # Rounded twice, by way of float32, unless the first step rounds to odd, which keeps what the second one has to
    # know (Boldo and Melquiond, 2008): towards zero, and the last bit says whether anything was cut off.
    bits, wide = narrow.view(np.uint32), narrow.astype(np.float64)
    bits = (bits - (np.abs(wide) > np.abs(merged))) | (wide != merged)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint16)


def _copy_folder(model: Checkpoint, target: Path) -> list[str]:
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


def _write_config(folder: Path, dtypes: set[str]) -> None:
    """Name the dtype of the merged weights in config.json, which is otherwise the first model's."""
    config = read_mapping(folder / "config.json")
    if len(dtypes) != 1 or not config:
        return
    inner = [part for part in config.values() if isinstance(part, dict) and {"dtype", "torch_dtype"} & set(part)]
    for part in (config, *inner):
        part["torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"] = FLOATS[min(dtypes)]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _facts(job: _Job, models: Sequence[Checkpoint], prints: Sequence[str]) -> dict[str, Any]:
    recipe, infos = job.recipe, job.layout.values()
    weighted = "weight" in recipe.rules.of_models
    plain = weighted and all(isinstance(weight, float) for weight in recipe.weights)
    used = methods.used_weights(next(iter(job.settings.values()))) if plain and job.settings else [None] * len(prints)
    members = [
        {
            "name": models[number].label,
            "weight": weight if weighted else None,
            "used_weight": None if share is None else float(share),
            "fingerprint": prints[number],
        }
        for number, weight, share in zip(job.models, recipe.weights, used, strict=False)
    ]
    return {
        "method": recipe.merge_method,
        "members": members,
        "base": None if job.base is None else {"name": models[job.base].label, "fingerprint": prints[job.base]},
        "dtype": sorted({info.dtype for info in infos if info.is_float}),
        "tensors": len(infos),
        "parameters": sum(info.size for info in infos),
        "notes": {name: job.notes[name] for name in job.settings if name in job.notes},
    }


def _write_card(job: _Job, labels: Mapping[Path, str], provenance: Provenance) -> None:
    """The model card: method, members with weights and fingerprints, and the recipe under their names.

    It names no path, so that equal merges have equal cards.
    """
    shown, recipe = {}, job.recipe
    for member in job.facts["members"]:
        weight = member["weight"]
        weighed = f"weight {weight:g}, " if isinstance(weight, float) else f"weight {json.dumps(weight)}, "
        shown[member["name"]] = f"{'' if weight is None else weighed}fingerprint {member['fingerprint'][:12]}"
    base, on_base, known = job.facts["base"], "", list(shown)
    if base is not None:
        on_base = f", as task vectors on {base['name']} (fingerprint {base['fingerprint'][:12]})"
        known = known if base["name"] in shown else [base["name"], *known]
    summary = (
        f"Merged by {recipe.merge_method}{on_base}. A fingerprint is a digest of a model's weights. "
        f"{RECIPE_FILE}, where the model was made, is the recipe with the folders it was run on."
    )
    named = yaml.safe_load(recipe_yaml(recipe.with_paths(lambda path: Path(labels.get(path, path.name)))))
    title = f"{recipe.merge_method} of {len(shown)} models"
    write_card(job.folder, Card(title, summary, shown, list(shown), known, True, recipe=named, provenance=provenance))
