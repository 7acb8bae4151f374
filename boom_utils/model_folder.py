"""Model folders on disk: their files, what an encoder's must hold, how it is described, hashed and written. No torch.

Shapes: D dimensions of an embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from boom_utils.artifacts import sha256_file, write_json
from boom_utils.config import QUERY_TEMPLATE, Pooling
from boom_utils.errors import CheckpointError, bullet_list

_POOLING_KEYS: dict[Pooling, str] = {
    "lasttoken": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
}
_MODULES = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
VOCABULARY_FILES = frozenset(
    {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes"}
    | {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model"}
)
TOKENIZER_FILES = VOCABULARY_FILES | {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_MODEL_FILES = TOKENIZER_FILES | {
    *("config.json", "modules.json", "config_sentence_transformers.json", "generation_config.json"),
    *("chat_template.jinja", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE"),
}
_OF_MODULES = ("_config.json", ".safetensors", ".safetensors.index.json")
RUN_FILES = frozenset({"training_log.jsonl", "watched_losses.jsonl", "watched_rows.json"})
"""What the kit writes beside a model about its training."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


@dataclass(frozen=True)
class EncoderSpec:
    """What turns token states into embeddings, besides the weights.

    Args:
        pooling: ``lasttoken``, ``mean`` or ``cls`` (the first token).
        normalize: Scale embeddings to length 1.
        max_seq_length: Most tokens of a text, prompt and end token included.
        prompts: Prompt name (a dataset, or ``query``) to the text put before queries.
    """

    pooling: Pooling
    normalize: bool
    max_seq_length: int
    prompts: dict[str, str] = field(default_factory=dict)


def read_json(path: Path) -> Any:
    """Parse a JSON file; None when there is no such file.

    Raises:
        CheckpointError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("a file of a model folder cannot be read as JSON", where=path, found=error) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object; an empty dict when there is no such file.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError("a file of a model folder is malformed", where=path, expected="a JSON object")
    return value or {}


def is_sentence_transformer(folder: Path) -> bool:
    """Whether the folder is in the sentence-transformers layout (it has a modules.json)."""
    return (folder / "modules.json").is_file()


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of modules.json, each with a ``path`` and a ``type``; empty when there is no such file.

    Raises:
        CheckpointError: modules.json is malformed.
    """
    modules = read_json(folder / "modules.json") or []
    fine = isinstance(modules, list) and all(
        isinstance(module, dict) and isinstance(module.get("path"), str) and isinstance(module.get("type"), str)
        for module in modules
    )
    if not fine:
        raise CheckpointError(
            "modules.json is malformed", where=folder / "modules.json", expected="a list of objects with type and path"
        )
    return list(modules)


def module_folders(folder: Path) -> list[str]:
    """The subfolders that modules.json names, such as ``1_Pooling``; existing or not (Normalize writes no file).

    Raises:
        CheckpointError: modules.json is malformed or names a place outside the folder.
    """
    paths = [module["path"] for module in read_modules(folder) if module["path"]]
    for path in paths:
        if path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
            raise CheckpointError("a module lies outside the model folder", where=folder / "modules.json", found=path)
    return paths


def model_files(folder: Path) -> list[Path]:
    """The files a model consists of, but for weights at the top and its card; what else lies there is not its own.

    Raises:
        CheckpointError: modules.json is malformed or names a place outside the folder.
    """
    top = [*(folder / name for name in _MODEL_FILES), *folder.glob("sentence_*_config.json")]
    inside = [path for module in module_folders(folder) for path in module_files(folder, module)]
    return sorted(path for path in {*top, *inside} if path.is_file())


def module_files(folder: Path, module: str) -> list[Path]:
    """The files of a module in a subfolder: settings, vocabulary, weights."""
    files = (path for path in (folder / module).rglob("*") if path.is_file())
    return sorted(path for path in files if path.name in _MODEL_FILES or path.name.endswith(_OF_MODULES))


def model_parts(path: Path, exists: Callable[[Path], bool] = Path.exists) -> tuple[Path, ...]:
    """The folders that a recipe's entry names: one, or the two of ``BASE+ADAPTER``.

    Args:
        path: As it is written; a plus sign may also be part of a name.
        exists: Whether such a folder is there.
    """
    text = str(path)
    if "+" not in text or exists(path):
        return (path,)
    cuts = [n for n, letter in enumerate(text) if letter == "+"]
    cut = next((n for n in cuts if exists(Path(text[:n]))), cuts[0])
    return (Path(text[:cut]), Path(text[cut + 1 :]))


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files that hold the weights of a model folder.

    Returns:
        The files, and the index (tensor name to file name; empty for a model in a single file).

    Raises:
        CheckpointError: There are none, or only pickles; the index names a file that is missing or lies outside the
            folder; or there are safetensors files that belong to nothing.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    index = _weight_map(folder) if (folder / INDEX).is_file() else {}
    if index and WEIGHTS in present and WEIGHTS not in index.values():
        raise CheckpointError("two sets of weights in one folder", where=folder, found=f"{WEIGHTS} and {INDEX}")
    wanted = set(index.values()) or {WEIGHTS}
    if not wanted & present:
        raise no_weights(folder)
    problems = [f"missing: {name}" for name in sorted(wanted - present)]
    problems += [f"belongs to nothing: {name}" for name in sorted(present - wanted)]
    if problems:
        raise CheckpointError("the weight files are not what they should be" + bullet_list(problems), where=folder)
    return [folder / name for name in sorted(wanted)], index


def refuse_code_and_pickles(folder: Path) -> None:
    """Refuse a model that could run code: one that brings its own, or pickled weights of a module (an old Dense layer).

    Raises:
        CheckpointError: It does; all pickles are named.
    """
    if "auto_map" in read_mapping(folder / "config.json"):
        raise CheckpointError(
            "the model brings code of its own, which the kit does not run",
            where=folder / "config.json",
            found="auto_map",
        )
    files = (path for module in module_folders(folder) for path in (folder / module).rglob("*"))
    if pickles := sorted(str(path.relative_to(folder)) for path in files if path.suffix in PICKLES):
        raise _pickled(folder, pickles)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is incomplete or could run code.

    Raises:
        CheckpointError: Everything that is wrong with it.
    """
    if not folder.is_dir():
        raise CheckpointError("there is no model folder", where=folder, fix="check the path")
    names = {path.name for path in folder.iterdir()}
    problems = [f"{name} is missing" for name in ("config.json", "modules.json") if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
        hint = f"; {', '.join(pickles)} is a pickle, which can run code: convert it" if pickles else ""
        problems.append(f"no .safetensors weights{hint}")
    if "config.json" in names and "auto_map" in read_mapping(folder / "config.json"):
        problems.append("config.json has `auto_map`: the model wants to run its own code")
    if problems:
        raise CheckpointError(
            "not a model folder the kit reads",
            where=folder,
            expected="config.json, modules.json, tokenizer.json and *.safetensors (sentence-transformers layout)",
            found="; ".join(problems),
            fix="save the model with sentence-transformers, safe_serialization on",
        )


def read_spec(folder: Path) -> EncoderSpec:
    """Pooling, normalisation, maximum length and prompts of a sentence-transformers folder (layout of 2.x to 6.x).

    Raises:
        CheckpointError: A module or pooling mode the kit does not implement.
    """
    ordered = sorted(read_modules(folder), key=lambda module: int(module.get("idx", 0)))
    modules = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in ordered]
    unknown = [name for name, _ in modules if name not in {"Transformer", "Pooling", "Normalize"}]
    if unknown or [name for name, _ in modules][:2] != ["Transformer", "Pooling"]:
        raise CheckpointError(
            "the modules of this folder are not supported",
            where=folder / "modules.json",
            expected="Transformer, Pooling and optionally Normalize",
            found=[name for name, _ in modules],
        )
    return EncoderSpec(
        pooling=_read_pooling(folder / modules[1][1] / "config.json"),
        normalize=any(name == "Normalize" for name, _ in modules),
        max_seq_length=_read_max_length(folder),
        prompts=dict(read_mapping(folder / "config_sentence_transformers.json").get("prompts") or {}),
    )


def write_spec(folder: Path, spec: EncoderSpec, dimension: int) -> None:
    """Write the files of the sentence-transformers layout that are not the transformer's own.

    The names are those that every sentence-transformers since 2.x reads.
    """
    modules = _MODULES if spec.normalize else _MODULES[:2]
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (name, path) in enumerate(modules)
        ],
    )
    chosen = _POOLING_KEYS[spec.pooling]
    flags = {key: key == chosen for key in sorted(_POOLING_KEYS.values())}
    pooling = {"word_embedding_dimension": dimension, **flags, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if spec.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
        write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_seq_length, "do_lower_case": False})
    prompts = {"query": "", "document": "", **spec.prompts}
    similarity = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, **similarity})


def content_hash(folder: Path, dtype: str = "float32") -> str:
    """Revision of an encoder (hex, 40 digits): weights, tokenizer, prompts, pooling, normalisation, length, dtype.

    mteb caches scores by revision alone, so everything a score depends on must be in it.
    """
    names = sorted([*folder.glob("*.safetensors"), folder / "tokenizer.json"])
    parts = {path.name: sha256_file(path) for path in names}
    text = json.dumps([parts, asdict(read_spec(folder)), dtype, QUERY_TEMPLATE], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _read_pooling(path: Path) -> Pooling:
    config = read_mapping(path)
    mode = config.get("pooling_mode")  # 6.x writes one name, older versions one flag a mode
    modes = [mode] if mode else [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    names = {name: pooling for pooling, key in _POOLING_KEYS.items() for name in (pooling, key)}
    if len(modes) != 1 or modes[0] not in names:
        expected = ", ".join(_POOLING_KEYS)
        raise CheckpointError("this pooling is not supported", where=path, expected=expected, found=modes)
    return names[modes[0]]


def _read_max_length(folder: Path) -> int:
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = read_mapping(folder / name).get(key)
        if isinstance(value, int) and 0 < value < 10**7:
            return value
    raise CheckpointError(
        "the folder does not say how long a text may be",
        where=folder,
        expected="max_seq_length in sentence_bert_config.json or model_max_length in tokenizer_config.json",
    )


def _weight_map(folder: Path) -> dict[str, str]:
    where = folder / INDEX
    index = read_mapping(where).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(
            "the index of the shards is malformed", where=where, expected="weight_map: names to files"
        )
    # Only the name of a file beside the index: anything else could read a file of another place.
    outside = sorted({name for name in index.values() if Path(name).name != name or "\\" in name or name in ("", "..")})
    if outside:
        raise CheckpointError(
            "the index names files outside the model folder", where=where, found=", ".join(map(repr, outside))
        )
    return index


def no_weights(folder: Path, expected: str = f"{WEIGHTS}, or shards with {INDEX}") -> CheckpointError:
    """The error for a model folder without weights, or with pickled ones only."""
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if Path(name).suffix in PICKLES]:
        return _pickled(folder, pickles)
    return CheckpointError(
        "no weights in the model folder",
        where=folder,
        expected=expected,
        found=", ".join(names[:10]) or "nothing",
    )


def _pickled(folder: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        "the weights are pickled; reading a pickle can run any program it carries, so the kit does not",
        where=folder,
        expected="safetensors files",
        found=", ".join(names),
        fix="convert the model to safetensors in a place where it may do no harm",
    )
