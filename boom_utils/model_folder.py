"""Encoder folders on disk: what they must hold, how they are described, hashed and written. Imports no torch.

Shapes: D dimensions of an embedding.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from boom_utils.artifacts import sha256_file, write_json
from boom_utils.config import QUERY_TEMPLATE
from boom_utils.errors import CheckpointError

Pooling = Literal["lasttoken", "mean"]

_POOLING_KEYS = {"lasttoken": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens"}
_MODULES = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class EncoderSpec:
    """What turns token states into embeddings, besides the weights.

    Args:
        pooling: ``lasttoken`` or ``mean``.
        normalize: Scale embeddings to length 1.
        max_seq_length: Most tokens of a text, prompt and end token included.
        prompts: Prompt name (a dataset, or ``query``) to the text put before queries.
    """

    pooling: Pooling
    normalize: bool
    max_seq_length: int
    prompts: dict[str, str] = field(default_factory=dict)


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
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        hint = f"; {', '.join(pickles)} is a pickle, which can run code: convert it" if pickles else ""
        problems.append(f"no .safetensors weights{hint}")
    if "config.json" in names and "auto_map" in _read_json(folder / "config.json"):
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
    modules = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in _modules(folder)]
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
        prompts=dict(_read_json(folder / "config_sentence_transformers.json").get("prompts") or {}),
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
    flags = {key: key == chosen for key in ("pooling_mode_cls_token", *_POOLING_KEYS.values())}
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


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = _read_json(folder / "modules.json")
    return sorted(modules, key=lambda module: int(module["idx"]))


def _read_pooling(path: Path) -> Pooling:
    config = _read_json(path)
    mode = config.get("pooling_mode")  # 6.x writes one name, older versions one flag a mode
    modes = [mode] if mode else [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    names: dict[str, Pooling] = {"lasttoken": "lasttoken", "mean": "mean"}
    names |= {"pooling_mode_lasttoken": "lasttoken", "pooling_mode_mean_tokens": "mean"}
    if len(modes) != 1 or modes[0] not in names:
        raise CheckpointError("this pooling is not supported", where=path, expected="lasttoken or mean", found=modes)
    return names[modes[0]]


def _read_max_length(folder: Path) -> int:
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = _read_json(folder / name).get(key)
        if isinstance(value, int) and 0 < value < 10**7:
            return value
    raise CheckpointError(
        "the folder does not say how long a text may be",
        where=folder,
        expected="max_seq_length in sentence_bert_config.json or model_max_length in tokenizer_config.json",
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError("this file is not valid JSON", where=path, found=error) from None
