"""Model folders on disk: their files, what an encoder's must hold, how it is described, hashed and written. No torch.

`read_spec` also says which settings of a folder go beyond what the kit's own encoding reproduces.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from boom_utils.artifacts import sha256_file, write_json
from boom_utils.config import QUERY_TEMPLATE
from boom_utils.errors import CheckpointError, bullet_list, some_of

_POOLING_KEYS: dict[str, str] = {
    "lasttoken": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
}
_PLAIN_INPUT = {
    "do_lower_case": False,
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_PLAIN_POOLING = {"word_embedding_dimension", "embedding_dimension", "include_prompt", "pooling_mode"}
_MODULES = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
_LIBRARY = "sentence_transformers."
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
FIT = "fit.json"
RUN_FILES = frozenset({"training_log.jsonl", "watched_losses.jsonl", "watched_rows.json", FIT})
"""What the kit writes beside a model about its training."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


_POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Kinds of models whose first position has number 2 (padding id + 1): two fewer tokens than positions."""
_SEES_PADDING = ("convbert", "nystromformer", "funnel")
"""Kinds of models whose embedding of a text depends on how far it is padded: only the same batches are the same."""
NO_LIMIT = 10**6
"""Most tokens of a text where neither the folder nor its positions set a limit."""


@dataclass(frozen=True)
class EncoderSpec:
    """What turns texts into embeddings, besides the weights and the tokenizer.

    Args:
        pooling: ``lasttoken``, ``mean`` or ``cls`` (the first token); another name where ``beyond`` says so.
        normalize: Scale embeddings to length 1.
        max_seq_length: Most tokens of a text, prompt and end token included.
        prompts: Prompt name (a dataset, ``query``, ``document``) to the text put before texts.
        default_prompt_name: The prompt that sentence-transformers uses where no other is asked for.
        similarity: How two embeddings are compared: ``cosine``, ``dot``, ``euclidean`` or ``manhattan``.
        truncate_dim: Leading dimensions that are kept; None: all.
        beyond: Settings that only sentence-transformers itself reproduces.
    """

    pooling: str
    normalize: bool
    max_seq_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
    beyond: tuple[str, ...] = ()

    @property
    def own_prompts(self) -> tuple[str, str]:
        """What the model itself puts before queries and before documents; empty where it says nothing.

        A filled template is no prompt of the model's own: such a model takes the instruction of each dataset.

        >>> EncoderSpec("mean", True, 64, {"query": "query: ", "passage": "passage: "}).own_prompts
        ('query: ', 'passage: ')
        """
        stated = {name: text for name, text in self.prompts.items() if text}
        default = stated.get(self.default_prompt_name or "", "")
        names = ("document", "passage", "corpus")
        query, document = stated.get("query", default), next((stated[one] for one in names if one in stated), default)
        return ("", "") if query.startswith(QUERY_TEMPLATE.partition(" ")[0]) else (query, document)


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
    """The entries of modules.json, each with a ``path`` in the folder and a ``type``; empty without such a file.

    Raises:
        CheckpointError: modules.json is malformed or names a place outside the folder.
    """
    where = folder / "modules.json"
    modules = read_json(where) or []
    fine = isinstance(modules, list) and all(
        isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("path", "type"))
        for module in modules
    )
    if not fine:
        raise CheckpointError("modules.json is malformed", where=where, expected="a list of objects with type and path")
    for path in (module["path"] for module in modules):
        if path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
            raise CheckpointError("a module lies outside the model folder", where=where, found=path)
    return list(modules)


def module_folders(folder: Path) -> list[str]:
    """The subfolders that modules.json names, such as ``1_Pooling``; existing or not (Normalize writes no file)."""
    return [module["path"] for module in read_modules(folder) if module["path"]]


def model_files(folder: Path) -> list[Path]:
    """The files a model consists of, but for weights at the top and its card; what else lies there is not its own.

    Raises:
        CheckpointError: modules.json is malformed or names a place outside the folder.
    """
    top = [*(folder / name for name in _MODEL_FILES), *folder.glob("sentence_*_config.json")]
    inside = [path for module in module_folders(folder) for path in (folder / module).rglob("*")]
    inside = [path for path in inside if path.name in _MODEL_FILES or path.name.endswith(_OF_MODULES)]
    return sorted(path for path in {*top, *inside} if path.is_file())


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


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    whole = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    return (folder / ADAPTER_CONFIG).is_file() and not whole


def adapter_base(folder: Path) -> Path:
    """The folder of the model an adapter was trained on, from its configuration (relative to the adapter or to here).

    Raises:
        CheckpointError: The configuration names no folder of this computer.
    """
    named = str(read_mapping(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    for place in (folder / named, Path(named)):
        if named and place.is_dir():
            return place
    raise CheckpointError(
        "the base model of an adapter is not a folder on this computer",
        where=folder / ADAPTER_CONFIG,
        found=f"base_model_name_or_path: {named!r}",
        fix="have the base model in a folder and name it there; a merge recipe also takes BASE+ADAPTER",
    )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The folder itself, or for an adapter a temporary one with the files of its base and, before them, its own.

    The adapter's weights and their settings are not in it: its base's weights are, to which they are added.

    Raises:
        CheckpointError: The base of an adapter is not on this computer, or the adapter has no safetensors weights.
    """
    if not is_adapter(folder):
        yield folder
        return
    if not (folder / ADAPTER).is_file():
        raise no_weights(folder, ADAPTER)
    with TemporaryDirectory(prefix="boom-") as place:
        for source in (adapter_base(folder), folder):
            others = shutil.ignore_patterns(ADAPTER, ADAPTER_CONFIG)
            shutil.copytree(source, place, copy_function=_link, dirs_exist_ok=True, ignore=others)
        yield Path(place)


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    Path(target).symlink_to(Path(source).resolve())


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files that hold the weights of a model folder.

    Returns:
        The files, and the index (tensor name to file name; empty for a model in a single file).

    Raises:
        CheckpointError: There are none, or only pickles; the index names a file that is not in the
            folder; or there are safetensors files that belong to nothing.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    index = read_mapping(folder / INDEX).get("weight_map") or {}
    if not isinstance(index, dict) or ((folder / INDEX).is_file() and not index):
        raise CheckpointError("the index of the shards names none", where=folder / INDEX, expected="weight_map")
    if index and WEIGHTS in present and WEIGHTS not in index.values():
        raise CheckpointError("two sets of weights in one folder", where=folder, found=f"{WEIGHTS} and {INDEX}")
    # What is not the name of a file beside the index, as ../model.safetensors, is missing too.
    wanted = {*map(str, index.values())} or {WEIGHTS}
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
    modules = module_folders(folder)
    for config in (folder / module / "config.json" for module in ("", *modules)):
        if "auto_map" in read_mapping(config):
            raise _own_code(config, ["auto_map"])
    files = (path for module in modules for path in (folder / module).rglob("*"))
    if pickles := sorted(str(path.relative_to(folder)) for path in files if path.suffix in PICKLES):
        raise _pickled(folder, pickles)


def check_folder(folder: Path) -> EncoderSpec:
    """Refuse a folder that is incomplete or could run code; else what it says of its encoding.

    Raises:
        CheckpointError: What is wrong with it.
    """
    if not folder.is_dir():
        raise CheckpointError("there is no model folder", where=folder, fix="check the path")
    refuse_code_and_pickles(folder)
    if not any(folder.rglob("*.safetensors")):
        raise no_weights(folder)
    if foreign := [kind for one in read_modules(folder) if not (kind := one["type"]).startswith(_LIBRARY)]:
        raise _own_code(folder, foreign)
    return read_spec(folder)


def read_spec(folder: Path) -> EncoderSpec:
    """What a sentence-transformers folder says of its encoding (layout of 2.x to 6.x).

    Raises:
        CheckpointError: A file is malformed, or there is no modules.json.
    """
    modules = [(module["type"].rsplit(".", 1)[-1], module["path"]) for module in read_modules(folder)]
    if not modules:
        raise CheckpointError(
            "not a model folder the kit reads: modules.json is missing",
            where=folder,
            expected="the layout of sentence-transformers: modules.json, tokenizer and *.safetensors",
            fix="save the model with sentence-transformers, with the pooling it was trained with",
        )
    names, core = [name for name, _ in modules], folder / modules[0][1]
    fine = names in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) and core == folder
    beyond = [] if fine else ["modules " + ", ".join(f"{name} in {path or '.'}" for name, path in modules)]
    pooling, odd = _read_pooling(next((folder / path for name, path in modules if name == "Pooling"), None))
    scaling = [read_mapping(folder / path / "config.json") for name, path in modules if name == "Normalize"]
    beyond += [
        f"Normalize: {key} {name}" for one in scaling for key, name in one.items() if name != "sentence_embedding"
    ]
    general, limits = read_mapping(folder / "config_sentence_transformers.json"), length_limits(core)
    return EncoderSpec(
        pooling=pooling,
        normalize="Normalize" in names,
        max_seq_length=min((limit for limit in limits if limit), default=NO_LIMIT),
        prompts=dict(general.get("prompts") or {}),
        default_prompt_name=general.get("default_prompt_name"),
        similarity=general.get("similarity_fn_name") or "cosine",
        truncate_dim=general.get("truncate_dim"),
        beyond=(*beyond, *odd, *_read_input(core)),
    )


def length_limits(folder: Path) -> tuple[int | None, int | None]:
    """Most tokens of a text as the folder of a transformer states it, and as its positions allow; None: unknown.

    Raises:
        CheckpointError: A file is malformed.
    """
    stated, config = None, read_mapping(folder / "config.json")
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        value = read_mapping(folder / name).get(key)
        stated = value if isinstance(value, int) and 0 < value < 10**7 else stated
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return stated, None
    return stated, positions - 2 if config.get("model_type") in _POSITIONS_FROM_PADDING else positions


def write_spec(folder: Path, spec: EncoderSpec, dimension: int) -> None:
    """Write the files of the sentence-transformers layout that are not the transformer's own.

    The names are those that every sentence-transformers since 2.x reads.

    Args:
        folder: Gets them.
        spec: What they say.
        dimension: Length of a token's state.
    """
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_LIBRARY}models.{name}"}
        for number, (name, path) in enumerate(_MODULES if spec.normalize else _MODULES[:2])
    ]
    write_json(folder / "modules.json", modules)
    chosen = _POOLING_KEYS[spec.pooling]
    flags = {key: key == chosen for key in sorted(_POOLING_KEYS.values())}
    pooling = {"word_embedding_dimension": dimension, **flags, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if spec.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
        write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.max_seq_length, "do_lower_case": False})
    prompts = {"query": "", "document": "", **spec.prompts}
    general = {"default_prompt_name": spec.default_prompt_name, "similarity_fn_name": spec.similarity}
    cut = {} if spec.truncate_dim is None else {"truncate_dim": spec.truncate_dim}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, **general, **cut})


def content_hash(folder: Path, dtype: str = "float32") -> str:
    """Revision of an encoder (hex, 40 digits): all that an embedding depends on, and how two are compared.

    mteb caches scores by revision alone, so everything a score depends on must be in it. A setting that is not there,
    or is as it was before the kit knew it, leaves the revision as it was.
    """
    with whole_folder(folder) as place:
        spec = asdict(read_spec(place))
        del spec["default_prompt_name"]  # every prompt is named when texts are encoded
        usual = {"similarity": "cosine", "truncate_dim": None, "beyond": ()}
        more = {name: value for name, plain in usual.items() if (value := spec.pop(name)) != plain}
        weights = {path.name: sha256_file(path) for path in sorted(place.glob("*.safetensors"))}
        if "beyond" in more or not (place / "tokenizer.json").is_file():
            more["files"] = {str(path.relative_to(place)): sha256_file(path) for path in model_files(place)}
        else:
            weights["tokenizer.json"] = sha256_file(place / "tokenizer.json")
    if place != folder:
        settings = {**read_mapping(folder / ADAPTER_CONFIG), "base_model_name_or_path": None}
        more["adapter"] = [sha256_file(folder / ADAPTER), settings]
    text = json.dumps([weights, spec, dtype, QUERY_TEMPLATE, *([more] if more else [])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _read_pooling(folder: Path | None) -> tuple[str, Sequence[str]]:
    """The way of pooling, and what of it is not `EncoderSpec`'s to say."""
    if folder is None:
        return "none", ()
    config = read_mapping(folder / "config.json")
    mode = config.get("pooling_mode")  # 6.x writes one name, older versions one flag a mode
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    names = {key: pooling for pooling, key in _POOLING_KEYS.items()}
    modes = [mode] if isinstance(mode, str) else mode or [names.get(key, key) for key in flags] or ["mean"]
    beyond = [] if len(modes) == 1 and modes[0] in _POOLING_KEYS else [f"pooling {', '.join(modes)}"]
    beyond += ["include_prompt: false"] if config.get("include_prompt") is False else []
    odd = (key for key, value in config.items() if value and not key.startswith("pooling_mode_"))
    return "+".join(modes), [*beyond, *(f"pooling: {key}" for key in odd if key not in _PLAIN_POOLING)]


def _read_input(folder: Path) -> list[str]:
    """Settings of the transformer and its texts that change an embedding and are not `EncoderSpec`'s to say."""
    config, rules = read_mapping(folder / "config.json"), read_mapping(folder / "sentence_bert_config.json")
    plain = {**_PLAIN_INPUT, "max_seq_length": rules.get("max_seq_length")}
    beyond = [f"{key}: {json.dumps(value)}" for key, value in rules.items() if value and value != plain.get(key)]
    older = (path.name for path in folder.glob("sentence_*_config.json") if path.name != "sentence_bert_config.json")
    kind = str(config.get("model_type"))
    beyond += ["the encoder of an encoder-decoder"] if config.get("is_encoder_decoder") or "t5" in kind else []
    return [*beyond, *sorted(older), *([f"{kind}, which sees padding"] if kind in _SEES_PADDING else [])]


def _own_code(where: Path, found: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        "the model brings code of its own, which the kit does not run", where=where, found=", ".join(found)
    )


def no_weights(folder: Path, expected: str = f"{WEIGHTS}, or shards with {INDEX}") -> CheckpointError:
    """The error for a model folder without weights, or with pickled ones only."""
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if Path(name).suffix in PICKLES]:
        return _pickled(folder, pickles)
    found = some_of(names) or "nothing"
    return CheckpointError("no weights in the model folder", where=folder, expected=expected, found=found)


def _pickled(folder: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        "the weights are pickled; reading a pickle can run any program it carries, so the kit does not",
        where=folder,
        expected="safetensors files",
        found=", ".join(names),
        fix="convert the model to safetensors in a place where it may do no harm",
    )
