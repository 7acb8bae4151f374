"""What a model folder says besides its weights: as its files are written, and as the libraries load them.

Versions of transformers and sentence-transformers write one setting in different words, or leave out what is their
default. Files that are written alike say the same; of others it counts what the libraries make of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from boom_utils.artifacts import sha256_file
from boom_utils.model_folder import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    is_sentence_transformer,
    model_files,
    read_mapping,
    read_modules,
    read_spec,
)

log = logging.getLogger(__name__)

Values = Mapping[str, Any]
OF_EVERY_MODEL = frozenset({"config.json", "tokenizer.json"})
"""The parts that are not those of an embedding model alone."""
ENCODING = "encoding"
"""The part that only an embedding model has: `boom_utils.model_folder.EncoderSpec`, and its other modules."""
# Who wrote config.json, in which precision, for which training and which head: embeddings do not depend on it.
_NOISE = frozenset(
    {"_attn_implementation_autoset", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    | {"use_cache", "gradient_checkpointing", "id2label", "label2id"}
)
# What older versions of transformers took where nothing was written.
_POSITIONS = {"position_embedding_type": "absolute"}


@dataclass(frozen=True)
class Part:
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


def parts_of(folder: Path) -> dict[str, Part]:
    """Config and tokenizer of a model folder; of an embedding model also how it encodes.

    Raises:
        CheckpointError: A file is malformed, or modules.json points outside the folder.
    """
    config = read_mapping(folder / "config.json")
    tokenizer = _written_tokenizer(folder)
    parts = {
        "config.json": Part(_flat(config, _NOISE), partial(_loaded_config, config)),
        "tokenizer.json": Part(tokenizer, partial(_loaded_tokenizer, folder) if tokenizer else dict),
    }
    return {**parts, ENCODING: _encoding(folder)} if is_sentence_transformer(folder) else parts


def compare_parts(ours: Mapping[str, Part], theirs: Mapping[str, Part]) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """What two folders say differently.

    A missing key is equal to null, false, zero or empty: that is what newer versions write for what older ones omit.
    A part that only one folder has is one difference, not one per key.

    Returns:
        Differences of meaning (file and key, our value, their value), and files that differ in their spelling alone.
    """
    differences: list[tuple[str, Any, Any]] = []
    respelled = []
    for file in sorted({*ours, *theirs}):
        mine, other = (parts.get(file, Part({}, dict)) for parts in (ours, theirs))
        if mine.written == other.written:
            continue
        a, b = mine.loaded(), other.loaded()
        if a is None or b is None:
            a, b = mine.written, other.written
        found = [(f"{file}: {key}", a.get(key), b.get(key)) for key in sorted({*a, *b})]
        found = [(key, one, two) for key, one, two in found if (one or None) != (two or None)]
        if any(a.values()) != any(b.values()):
            found = [(file, "present", "missing") if any(a.values()) else (file, "missing", "present")]
        differences += found
        respelled += [] if found else [file]
    return differences, respelled


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
    others = TOKENIZER_FILES - {"tokenizer.json"}
    found = {name: sha256_file(folder / name) for name in others if (folder / name).is_file()}
    sections = _sections(read_mapping(folder / "tokenizer.json"))
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


def _encoding(folder: Path) -> Part:
    """What the files of sentence-transformers say, all as one part."""
    files = [path.relative_to(folder) for path in model_files(folder) if path.name not in TOKENIZER_FILES]
    written = {str(path): sha256_file(folder / path) for path in files if str(path) != "config.json"}
    return Part(written, partial(_loaded_encoding, folder, asdict(read_spec(folder))))


def _loaded_encoding(folder: Path, spec: Values) -> Values:
    """The encoder's description, flat, and what its modules of other kinds load."""
    said = {**_flat(spec, {"beyond"}), **dict.fromkeys(spec["beyond"], "asked for")}
    for module in read_modules(folder):
        if not module["type"].endswith((".Transformer", ".Pooling", ".Normalize")):
            said |= {f"{module['path']}: {key}": value for key, value in _loaded_module(folder, module).items()}
    return said


def _loaded_module(folder: Path, module: Mapping[str, str]) -> Values:
    """Settings of a module, and digests of its weights (of a Dense layer)."""
    from sentence_transformers.util import import_from_string

    if not module["type"].startswith("sentence_transformers."):
        raise ValueError(f"{module['type']} is code of another place")
    made = import_from_string(module["type"]).load(str(folder), subfolder=module["path"], local_files_only=True)
    tensors = {name: tensor.double().numpy() for name, tensor in made.state_dict().items()}
    digests = {name: [values.shape, xxhash.xxh3_128_hexdigest(values.data)] for name, values in tensors.items()}
    return {**made.get_config_dict(), **digests}
