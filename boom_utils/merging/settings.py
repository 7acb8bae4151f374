"""What a model folder says besides its weights, in one comparable form: config, tokenizer, modules, pooling, prompts.

Files written by different versions of transformers or sentence-transformers say the same thing in different words;
here they come out equal, so that a difference that is reported is one of meaning. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boom_utils.artifacts import sha256_file
from boom_utils.model_folder import is_sentence_transformer, module_folders, read_json, read_mapping, read_modules

# Which program wrote the file, and in which precision: no part of what the model computes.
CONFIG_NOISE = frozenset(
    {"_attn_implementation_autoset", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    | {"use_cache"}
)
VOCABULARY_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
POOLING_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

Settings = dict[str, dict[str, Any]]


def model_settings(folder: Path) -> Settings:
    """config.json and tokenizer of a model folder: for each file, its settings as a flat mapping.

    Raises:
        CheckpointError: A file is malformed.
    """
    return {"config.json": _config(read_mapping(folder / "config.json")), **_tokenizer(folder)}


def encoder_settings(folder: Path) -> Settings:
    """Modules, pooling, prompts and input length of a sentence-transformers folder; empty for any other folder.

    Raises:
        CheckpointError: A file is malformed, or modules.json points outside the folder.
    """
    if not is_sentence_transformer(folder):
        return {}
    extra = read_mapping(folder / "config_sentence_transformers.json")
    prompts = {f"prompts.{name}": text for name, text in (extra.get("prompts") or {}).items()}
    kept = {
        "default_prompt_name": extra.get("default_prompt_name"),
        "similarity_fn_name": extra.get("similarity_fn_name") or "cosine",
    }
    settings: Settings = {
        "modules.json": _modules(folder),
        "config_sentence_transformers.json": {**prompts, **kept},
        "sentence_bert_config.json": _input_rules(folder),
    }
    for path in module_folders(folder):
        settings.update(_module_files(folder, path))
    return settings


def setting_differences(ours: Settings, theirs: Settings) -> list[tuple[str, Any, Any]]:
    """Where two folders disagree: (file and key, our value, their value).

    A missing key is equal to null, false, zero or empty: that is what newer versions write for what older ones omit.
    A file that only one folder has is one difference, not one per key.
    """
    found: list[tuple[str, Any, Any]] = []
    for file in sorted({*ours, *theirs}):
        mine, other = ours.get(file, {}), theirs.get(file, {})
        if not any(mine.values()) and not any(other.values()):
            continue
        if not any(mine.values()) or not any(other.values()):
            found.append((file, _presence(mine), _presence(other)))
            continue
        keys = sorted({*mine, *other})
        pairs = ((key, mine.get(key) or None, other.get(key) or None) for key in keys)
        found += [(f"{file}: {key}", a, b) for key, a, b in pairs if a != b]
    return found


def _presence(settings: Mapping[str, Any]) -> str:
    return "present" if any(settings.values()) else "missing"


def _config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without noise, rotary settings in one spelling (transformers 5 moved them to ``rope_parameters``)."""
    kept = {key: value for key, value in config.items() if key not in CONFIG_NOISE}
    rope = {"rope_theta": kept.pop("rope_theta", None), **(kept.pop("rope_scaling", None) or {})}
    rope |= kept.pop("rope_parameters", None) or {}
    kind = rope.pop("rope_type", None) or rope.pop("type", None)
    rope["rope_type"] = None if kind == "default" else kind
    kept |= {f"rope.{key}": value for key, value in rope.items()}
    if set(kept.get("layer_types") or []) == {"full_attention"}:
        del kept["layer_types"]  # the default, which older files do not spell out
    return kept


def _tokenizer(folder: Path) -> Settings:
    """The tokenizer by its sections, or the vocabulary files by their bytes where there is no tokenizer.json."""
    tokenizer = read_mapping(folder / "tokenizer.json")
    if not tokenizer:
        found = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
        return {name: {"sha256": sha256_file(folder / name)} for name in found}
    # What the last call to the tokenizer left behind is saved with it.
    sections = {key: value for key, value in tokenizer.items() if key not in ("truncation", "padding", "model")}
    model = dict(tokenizer.get("model") or {})
    if model.get("merges"):  # "a b" in older files, ["a", "b"] in newer ones
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {"tokenizer.json": sections | {f"model.{key}": value for key, value in model.items()}}


def _modules(folder: Path) -> dict[str, Any]:
    # Classes moved between Python modules from version to version; their names did not change.
    modules = read_modules(folder)
    return {
        f"module {n}": f"{module['type'].rsplit('.', 1)[-1]} in {module['path'] or '.'}"
        for n, module in enumerate(modules)
    }


def _input_rules(folder: Path) -> dict[str, Any]:
    """Longest input in tokens (newer versions keep it with the tokenizer) and lower-casing."""
    rules = read_mapping(folder / "sentence_bert_config.json")
    longest = rules.get("max_seq_length") or read_mapping(folder / "tokenizer_config.json").get("model_max_length")
    return {"max_seq_length": longest, "do_lower_case": rules.get("do_lower_case")}


def _module_files(folder: Path, module: str) -> Settings:
    """The files of one module: configuration by meaning, anything else (weights of a Dense layer) by its bytes."""
    found: Settings = {}
    for path in sorted(p for p in (folder / module).rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        config = read_json(path) if path.suffix == ".json" else None
        found[name] = _pooling(config) if isinstance(config, dict) else {"sha256": sha256_file(path)}
    return found


def _pooling(config: dict[str, Any]) -> dict[str, Any]:
    """A module's configuration, with the older spelling of pooling turned into the newer one."""
    kept = {key: value for key, value in config.items() if key not in POOLING_NAMES}
    if "word_embedding_dimension" in kept:
        kept["embedding_dimension"] = kept.pop("word_embedding_dimension")
    if modes := [new for old, new in POOLING_NAMES.items() if config.get(old)]:
        kept["pooling_mode"] = modes[0] if len(modes) == 1 else modes
        kept.setdefault("include_prompt", True)
    return kept
