"""Whether models can be merged: opened once, and compared in all that their libraries make of their folders.

Versions of transformers and sentence-transformers write one setting in different words, or leave out what is their
default. Files that are written alike say the same; of others it counts what the libraries make of them.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from boom_utils.artifacts import digest_of, sha256_file
from boom_utils.errors import MergeError, bullet_list
from boom_utils.merging.checkpoints import AdapterCheckpoint, Checkpoint, same_bytes
from boom_utils.merging.methods import Settings
from boom_utils.merging.recipe import Recipe, places_of
from boom_utils.model_folder import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    adapter_base,
    is_adapter,
    is_sentence_transformer,
    model_files,
    model_parts,
    read_mapping,
    read_modules,
    read_spec,
)

log = logging.getLogger(__name__)

Values = Mapping[str, Any]
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_ENCODING = "encoding"
"""The part that only an embedding model has: `boom_utils.model_folder.EncoderSpec`, and its other modules."""
# What transformers makes anew when it opens a model, and a head that none of its states of tokens goes through.
_NOT_READ = re.compile(r"(?:^|\.)(?:position_ids|token_type_ids|inv_freq)$|^pooler\.")
# Who wrote config.json, in which precision, for which training and which head: embeddings do not depend on it.
_NOISE = frozenset(
    {"_attn_implementation_autoset", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    | {"use_cache", "gradient_checkpointing", "id2label", "label2id"}
)
# What older versions of transformers took where nothing was written.
_POSITIONS = {"position_embedding_type": "absolute"}


@dataclass(frozen=True)
class _Part:
    """A file of a model folder, or the files of its tokenizer.

    Attributes:
        written: What stands there; empty where there is no such file.
        load: Gives what the libraries make of it, flat.
    """

    written: Values
    load: Callable[[], Values]

    def loaded(self) -> Values | None:
        """What the libraries make of it; None where they cannot open it."""
        try:
            return self.load()
        except Exception as error:  # they let through whatever their own parts raise
            log.debug("compared as it is written: %s", error)
            return None


_ABSENT = _Part({}, dict)


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
    parts = dict.fromkeys(part for recipe in recipes for folder in recipe.folders for part in model_parts(folder))
    if missing := [f"model folder not found: {folder}" for folder in parts if not folder.is_dir()]:
        fix = "models are folders on this computer: download a model of the Hub first"
        raise MergeError("models of the recipe are missing" + bullet_list(missing), fix=fix)
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
    looked at when they are read: `boom_utils.merging.gram.check_finite` names all that cannot be merged.

    Args:
        members: The models to merge.
        bases: Models that are only the base of others.
        one_dtype: Whether members of several dtypes are a difference too.

    Returns:
        One sentence for everything in which they differ without meaning to, which is logged too.

    Raises:
        MergeError: They differ; every difference is listed.
    """
    models = [*members, *bases]
    parts = {model: _parts(model) for model in models}
    problems = [problem for model in models for problem in _leave_out_tied_head(model, parts[model])]
    notes = _leave_out_not_read(models, _ENCODING in parts[members[0]])
    for other in models[1:]:
        problems += _tensor_differences(members[0], other, one_dtype and other not in bases)
        differences, respelled = _compare(members[0], other, parts, only_base=other in bases)
        problems += differences
        notes += respelled
    if problems:
        raise MergeError(
            "the models cannot be merged, because they differ" + bullet_list(problems, most=None),
            fix="merge models that were trained from one base, with one tokenizer, pooling and set of prompts",
        )
    if notes:
        log.info("the models differ in nothing but spelling and what is not read%s", bullet_list(notes))
    return notes


def _parts(model: Checkpoint) -> dict[str, _Part]:
    """What a model says besides its weights; an adapter brings parts of its own or takes those of its base.

    Raises:
        CheckpointError: A file is malformed, or modules.json points outside the folder.
    """
    found: dict[str, _Part] = {}
    for folder in model.sources:
        config, tokenizer = read_mapping(folder / _CONFIG), _written_tokenizer(folder)
        parts = {
            _CONFIG: _Part(_flat(config, _NOISE), partial(_loaded_config, config)),
            _TOKENIZER: _Part(tokenizer, partial(_loaded_tokenizer, folder) if tokenizer else dict),
        } | ({_ENCODING: _encoding(folder)} if is_sentence_transformer(folder) else {})
        found |= {file: part for file, part in parts.items() if part.written or file not in found}
    return found


def _leave_out_tied_head(model: Checkpoint, parts: Mapping[str, _Part]) -> list[str]:
    """Take a head that is the embedding out of a model; what is wrong with it where it is not."""
    config = parts[_CONFIG]
    if HEAD not in model.tensors or not (config.loaded() or config.written).get("tie_word_embeddings"):
        return []
    model.tensors = dict(model.tensors)
    head, embedding = model.tensors.pop(HEAD), model.tensors.get(EMBEDDING)
    if embedding is None or same_bytes(model, embedding, model, head):
        return []
    return [f"{model.label}: {HEAD} is not the embedding that config.json ties it to"]


def _leave_out_not_read(models: Sequence[Checkpoint], encoders: bool) -> list[str]:
    in_all, notes = set.intersection(*(set(model.tensors) for model in models)), []
    for model in models:
        # In the file of a model with a head, the prefix is that of the model without one.
        inside = {name for name, info in model.tensors.items() if info.stored != name}
        heads = {name for name in model.tensors if name.startswith("lm_head.") or (inside and name not in inside)}
        not_read = {name for name in model.tensors if _NOT_READ.search(name) or (encoders and name in heads)}
        if out := sorted(not_read - in_all):
            model.tensors = {name: info for name, info in model.tensors.items() if name not in out}
            notes.append(f"{model.label}: left out {', '.join(out)}, which not every model has and none reads")
    return notes


def _compare(
    first: Checkpoint, other: Checkpoint, parts: Mapping[Checkpoint, Mapping[str, _Part]], only_base: bool
) -> tuple[list[str], list[str]]:
    """Differences of two models' files in meaning, and those in their spelling alone.

    In settings, a missing key is equal to null, false, zero or empty: that is what newer versions write for what older
    ones omit. A part that only one folder has is one difference, not one per key.
    """
    differences, respelled = list[str](), list[str]()
    ours, theirs = parts[first], parts[other]
    for file in sorted({_CONFIG, _TOKENIZER} if only_base and _ENCODING not in theirs else {*ours, *theirs}):
        mine, its = ours.get(file, _ABSENT), theirs.get(file, _ABSENT)
        if mine.written == its.written:
            continue
        a, b = mine.loaded(), its.loaded()
        a, b = (mine.written, its.written) if a is None or b is None else (a, b)
        if any(a.values()) == any(b.values()):
            found = {f"{file}: {key}": (repr(a.get(key)), repr(b.get(key))) for key in sorted({*a, *b})
                     if (a.get(key) or None) != (b.get(key) or None)}  # fmt: skip
        else:
            found = {file: ("present", "missing") if any(a.values()) else ("missing", "present")}
        for key, (one, two) in found.items():
            differences.append(f"{other.label}: {key}: {_short(two)}, in {first.label} {_short(one)}")
        respelled += [] if found else [file]
    notes = [f"{other.label}: {', '.join(respelled)}: spelt otherwise than in {first.label}, same meaning"]
    notes = notes if respelled else []
    if (own := _prefixes(first)) != (prefixes := _prefixes(other)):
        notes.append(f"{other.label}: names of tensors begin with {prefixes}, in {first.label} with {own}")
    return differences, notes


def _prefixes(model: Checkpoint) -> str:
    found = {info.stored.removesuffix(name) for name, info in model.tensors.items()} - {""}
    return " and ".join(sorted(found)) or "nothing"


def _tensor_differences(first: Checkpoint, other: Checkpoint, one_dtype: bool) -> list[str]:
    ours, theirs = first.tensors, other.tensors
    problems = [f"{other.label}: has no {name}, {first.label} has" for name in ours if name not in theirs]
    problems += [f"{other.label}: has {name}, {first.label} has not" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            problems.append(f"{other.label}: {name} has shape {list(b.shape)}, in {first.label} {list(a.shape)}")
        elif a.dtype != b.dtype and not (a.is_float and b.is_float):
            problems.append(f"{other.label}: {name} is {b.dtype}, in {first.label} {a.dtype}")
        elif a.dtype != b.dtype and one_dtype:
            said = f"{name} is {b.dtype}, in {first.label} {a.dtype}; the recipe sets no dtype"
            problems.append(f"{other.label}: {said}")
        elif not a.is_float and not same_bytes(first, a, other, b):
            problems.append(f"{other.label}: {name} ({a.dtype}, cannot be averaged) differs from {first.label}")
    return sorted(problems)


def _short(text: str) -> str:
    """The text, or its beginning and a digest where it is long (a vocabulary)."""
    return text if len(text) <= 60 else f"{text[:24]}... of sha256 {digest_of(text)[:8]}"


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
            problems.append(str(error).replace("\n ", ";"))
    if problems:
        raise MergeError("the recipe does not fit these models" + bullet_list(problems))
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [str(path) for path in paths]


def _loaded_config(config: Values) -> Values:
    """config.json with the defaults of its kind of model."""
    from transformers import CONFIG_MAPPING

    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    found = {key: value for key, value in _flat(loaded.to_dict(), _NOISE).items() if value is not None}
    return {**_POSITIONS, **found}


def _flat(values: Values, noise: Set[str] = frozenset(), prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in noise:
            name = f"{prefix}{key}"
            found |= _flat(value, noise, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _written_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json by its sections, the other files by their bytes; empty where there is no vocabulary."""
    others = TOKENIZER_FILES - {_TOKENIZER}
    found = {name: sha256_file(folder / name) for name in others if (folder / name).is_file()}
    sections = _sections(read_mapping(folder / _TOKENIZER))
    return {**sections, **found} if sections or VOCABULARY_FILES & found.keys() else {}


def _loaded_tokenizer(folder: Path) -> Values:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    sections = _sections(json.loads(tokenizer.backend_tokenizer.to_str()))
    # Only what stands around one text; pairs of texts are joined differently from version to version.
    return {**sections, "post_processor": tokenizer("").input_ids, "truncation_side": tokenizer.truncation_side}


def _sections(tokenizer: Values) -> dict[str, Any]:
    """What decides how a text becomes tokens; not what the last call left behind, nor how they become text again."""
    model = {f"model.{key}": value for key, value in (tokenizer.get("model") or {}).items()}
    if merges := model.get("model.merges"):  # "a b" in older files, ["a", "b"] in newer ones
        model["model.merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    unread = {"version", "truncation", "padding", "decoder", "model"}
    return {**{key: value for key, value in tokenizer.items() if key not in unread}, **model}


def _encoding(folder: Path) -> _Part:
    """What the files of sentence-transformers say, all as one part; of modules of other kinds (Dense) their bytes."""
    files = [path.relative_to(folder) for path in model_files(folder) if path.name not in TOKENIZER_FILES]
    written = {str(path): sha256_file(folder / path) for path in files if str(path) != _CONFIG}
    spec, plain = asdict(read_spec(folder)), (".Transformer", ".Pooling", ".Normalize")
    others = {module["path"] for module in read_modules(folder) if not module["type"].endswith(plain)}
    said = {**_flat(spec, {"beyond"}), **dict.fromkeys(spec["beyond"], "asked for")}
    said |= {name: digest for name, digest in written.items() if name.split("/")[0] in others}
    return _Part(written, lambda: said)
