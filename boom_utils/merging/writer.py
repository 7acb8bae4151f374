"""From recipes to merged model folders, each of which appears whole or not at all."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.cards import Provenance
from boom_utils.errors import MergeError
from boom_utils.merging import kernels, methods, output
from boom_utils.merging.checkpoints import Checkpoint, fingerprints
from boom_utils.merging.elementwise import ELEMENTWISE
from boom_utils.merging.family import open_family, settings_of
from boom_utils.merging.gram import FamilyGram, not_finite, stream_grams
from boom_utils.merging.parameters import Settings
from boom_utils.merging.recipe import Recipe
from boom_utils.merging.streaming import Rows, Streams, gather
from boom_utils.merging.weight_files import DTYPES, FLOAT_NAMES, TensorInfo, WeightWriter, plain_name
from boom_utils.progress import progress

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Fill = Callable[[Rows, Array], Any]
"""Fills the merged elements (N,) from a chunk's rows (R, N)."""


@dataclass(frozen=True)
class MergeOptions:
    """How a merge is carried out; none of it changes a value.

    Args:
        names: What messages, facts and the model card call the folders; as much of each path as tells them apart
            where none is given.
        max_shard_bytes: Most bytes in one weight file.
        threads: Threads; None: one for each processor, at most 16.
        provenance: What the model card says of the members' data and of what they took.
    """

    names: Mapping[Path, str] = field(default_factory=dict)
    max_shard_bytes: int | None = 5_000_000_000
    threads: int | None = None
    provenance: Provenance = field(default_factory=Provenance)


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
    """

    recipe: Recipe
    out: Path
    models: list[int]
    base: int | None
    settings: Mapping[str, Settings]
    layout: Mapping[str, TensorInfo]
    notes: dict[str, str] = field(default_factory=dict)

    def fill(self, streams: Streams, gram: FamilyGram) -> Fill:
        """How the tensor whose inner products are given is merged, chunk by chunk."""
        method, settings = self.recipe.merge_method, self.settings[gram.name]
        if method in ELEMENTWISE and self.base is not None:
            rows = [self.base, *self.models]
            merge = ELEMENTWISE[method](streams, gram.name, rows, settings)
            everything = rows == list(range(len(streams.models)))
            return merge if everything else lambda chunk, merged: merge(chunk[rows], merged)
        made_of = methods.METHODS[method](gram.view(self.models, self.base), settings)
        if made_of.note:
            self.notes[gram.name] = made_of.note
            log.info("%s: %s", gram.name, made_of.note)
        factors = np.zeros(len(streams.models))
        factors[self.models] = made_of.members
        if self.base is not None:
            factors[self.base] = made_of.base
        return lambda chunk, merged: kernels.combine(chunk, factors, merged)


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
        output.require_free(out)
    family, jobs, notes = _checked(list(zip((recipe for recipe, _ in recipes), outs, strict=True)), options)
    models = list(family.values())
    _require_space(jobs)
    with ExitStack() as stack:
        folders = [stack.enter_context(_prepared(job.out)) for job in jobs]
        pairs = list(zip(jobs, folders, strict=True))
        left_out = [output.copy_folder(models[job.models[0]], folder) for job, folder in pairs]
        prints = _write_weights(models, jobs, folders, options)
        labels = {folder: model.label for folder, model in family.items()}
        all_facts = []
        for job, folder, left in zip(jobs, folders, left_out, strict=True):
            facts = {**_facts(job, models, prints), "left_out": left, "reconciled": notes}
            output.write_config(folder, {info.dtype for info in job.layout.values() if info.is_float})
            output.write_recipe(folder, job.recipe, job.out)
            output.write_merge_card(folder, job.recipe, facts, labels, options.provenance)
            all_facts.append(facts)
        for job, folder in pairs:
            folder.rename(job.out)  # replaces an empty folder, fails on any other
            if job.notes:
                log.warning("%d of %d tensors were special cases; see the notes", len(job.notes), len(job.settings))
            log.info("merged %d models by %s", len(job.models), job.recipe.merge_method)
    return all_facts


def _checked(
    recipes: Sequence[tuple[Recipe, Path]], options: MergeOptions
) -> tuple[dict[Path, Checkpoint], list[_Job], list[str]]:
    family, reconciled = open_family([recipe for recipe, _ in recipes], options.names)
    numbers = {folder: number for number, folder in enumerate(family)}
    floats = [name for name, info in next(iter(family.values())).tensors.items() if info.is_float]
    jobs = []
    for recipe, out in recipes:
        base = None if recipe.task_base is None else numbers[recipe.task_base]
        settings = settings_of(recipe, floats)
        layout = _layout(recipe, family[recipe.models[0].model])
        jobs.append(_Job(recipe, out, [numbers[entry.model] for entry in recipe.models], base, settings, layout))
    return family, jobs, reconciled


@contextmanager
def _prepared(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that is removed unless it was renamed."""
    folder = output.temporary_folder(out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _layout(recipe: Recipe, first: Checkpoint) -> dict[str, TensorInfo]:
    """The merged tensors: of the dtype the recipe says, or float32; those of another kind stay what they are."""
    shorts = {name: short for short, name in FLOAT_NAMES.items()}
    asked = shorts.get(recipe.out_dtype or recipe.dtype or "")
    layout = {}
    for name, info in first.tensors.items():
        dtype = (asked or ("F64" if info.dtype == "F64" else "F32")) if info.is_float else info.dtype
        layout[name] = replace(info, stored=plain_name(info.stored), dtype=dtype)
    return layout


def _require_space(jobs: Sequence[_Job]) -> None:
    needed: dict[Path, int] = {}
    for job in jobs:
        place = next(parent for parent in job.out.parents if parent.exists())
        size = sum(info.nbytes for info in job.layout.values())
        needed[place] = needed.get(place, 0) + size
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if free < size:
            raise MergeError(
                "not enough space for the merged model",
                where=place,
                expected=f"{size / 2**20:.0f} MiB",
                found=f"{free / 2**20:.0f} MiB free",
                fix="free some space or name a folder on another disk",
            )


def _write_weights(
    models: Sequence[Checkpoint], jobs: Sequence[_Job], folders: Sequence[Path], options: MergeOptions
) -> list[str]:
    """Write the weights of every job; returns the fingerprints of the models."""
    digests: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    with ExitStack() as stack:
        writers = [_open_writer(stack, job, folder, options) for job, folder in zip(jobs, folders, strict=True)]
        streams = stack.enter_context(Streams(models, options.threads))
        names = list(jobs[0].settings)
        writing: tuple[str, list[Future[None]]] = ("", [])
        for found in progress(stream_grams(streams, names, hold=True), len(names), "merge"):
            name = found.gram.name
            digests[name] = found.digests
            problems += found.problems
            if problems:  # nothing will be kept; the rest is only looked at, to name every problem at once
                streams.release(name)
                continue
            fills = [job.fill(streams, found.gram) for job in jobs]
            gather(writing[1])
            streams.release(writing[0])
            work = functools.partial(_write_chunk, streams, list(zip(jobs, writers, fills, strict=True)), name)
            writing = (name, streams.submit(name, work))
        gather(writing[1])
        streams.release(writing[0])
        if problems:
            raise not_finite(problems)
        for job, writer in zip(jobs, writers, strict=True):
            _copy_others(models[job.models[0]], job, writer)
            writer.close()
    return fingerprints(models, digests)


def _open_writer(stack: ExitStack, job: _Job, folder: Path, options: MergeOptions) -> WeightWriter:
    writer = WeightWriter(folder, job.layout.values(), options.max_shard_bytes)
    stack.callback(writer.close, complete=False)
    return writer


def _write_chunk(
    streams: Streams, merges: Sequence[tuple[_Job, WeightWriter, Fill]], name: str, rows: Rows, start: int
) -> None:
    size = rows.shape[1]
    merged = streams.scratch("merged", size, np.float64)
    for job, writer, fill in merges:
        fill(rows, merged)
        info = job.layout[name]
        values = round_once(merged, info.dtype, streams.scratch("rounded", size, DTYPES[info.dtype]))
        if values is None:
            too_large = f"merged values are too large for {info.dtype}"
            raise MergeError(too_large, where=name, fix="choose a wider out_dtype")
        writer.write(info.stored, start, values)


def round_once(merged: Array, dtype: str, out: NDArray[Any]) -> NDArray[Any] | None:
    """Round float64 to an output dtype, to nearest and ties to even, once.

    Args:
        merged: (N,).
        dtype: F64, F32, F16 or BF16.
        out: (N,) as NumPy holds that dtype, overwritten.

    Returns:
        ``out``, or None where a value does not fit.
    """
    if dtype in ("F32", "BF16"):
        fine = (kernels.round_to_float32 if dtype == "F32" else kernels.round_to_bfloat16)(merged, out)
    else:
        with np.errstate(over="ignore"):
            out[:] = merged  # NumPy rounds float64 to float16 in one step
        fine = bool(np.isfinite(out).all())
    return out if fine else None


def _copy_others(first: Checkpoint, job: _Job, writer: WeightWriter) -> None:
    for name, info in first.tensors.items():
        place = 0
        for raw in () if info.is_float else first.raw_chunks(info):
            writer.write(job.layout[name].stored, place, raw)
            place += raw.size


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
    base = None if job.base is None else {"name": models[job.base].label, "fingerprint": prints[job.base]}
    return {
        "method": recipe.merge_method,
        "members": members,
        "base": base,
        "dtype": sorted({info.dtype for info in infos if info.is_float}),
        "tensors": len(infos),
        "parameters": sum(info.size for info in infos),
        "notes": job.notes,
    }
