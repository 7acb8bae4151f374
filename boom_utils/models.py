"""Encoder folders: load, save, embed, hash, compare.

An encoder is a transformer, a pooling rule, normalisation, a maximum length and its prompts. On disk it is always the
sentence-transformers layout, so every model of the kit loads there, in transformers and in mteb. Only safetensors
weights are read, and no code from a model folder is ever run.

Shapes: N texts, L tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from boom_utils.artifacts import sha256_file, write_json
from boom_utils.config import QUERY_TEMPLATE
from boom_utils.errors import CheckpointError

log = logging.getLogger(__name__)

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


class Encoder:
    """A transformer with its tokenizer and `EncoderSpec`.

    Args:
        transformer: A transformers model that returns ``last_hidden_state``.
        tokenizer: Its fast tokenizer; truncation keeps the end token the tokenizer itself appends.
        spec: Pooling, normalisation, maximum length, prompts.
    """

    def __init__(self, transformer: Any, tokenizer: Any, spec: EncoderSpec) -> None:
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.spec = spec
        # Behind right padding a causal model cannot see the pad tokens, so no mask is needed and attention is faster.
        self._causal = any(getattr(module, "is_causal", False) for module in transformer.modules())

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
        """Read an encoder folder.

        Raises:
            CheckpointError: The folder is not a complete sentence-transformers folder, or is unsafe to read.
        """
        folder = Path(folder)
        check_folder(folder)
        transformer = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(transformer.eval(), tokenizer, read_spec(folder))

    def save(self, folder: Path) -> None:
        """Write the sentence-transformers layout into ``folder`` (weights as safetensors, in their own dtype)."""
        folder = Path(folder)
        self.transformer.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_spec(folder, self.spec, self.dimension)

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return int(self.transformer.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(iter(self.transformer.parameters())).device)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length`` (the spec's when None)."""
        limit = min(max_length or self.spec.max_seq_length, self.spec.max_seq_length)
        ids = self.tokenizer(list(texts), truncation=True, max_length=limit, return_attention_mask=False)["input_ids"]
        return [list(row) for row in ids]

    def embed(self, tokens: Sequence[Sequence[int]], tokens_per_batch: int = 8192) -> Tensor:
        """Embeddings of tokenised texts, in their order; differentiable.

        Texts are sorted by length into micro-batches of at most ``tokens_per_batch`` tokens, padding counted; this
        changes neither the values (beyond rounding) nor the order of the rows.

        Returns:
            float (N, D) on the model's device.
        """
        batches = list(length_sorted_batches([len(row) for row in tokens], tokens_per_batch))
        parts = [self._embed_padded([tokens[row] for row in rows]) for rows in batches]
        order = torch.tensor([row for rows in batches for row in rows], device=self.device)
        return torch.cat(parts)[torch.argsort(order)]

    def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int = 8192) -> np.ndarray:
        """Embeddings of texts without gradients, ``prompt`` put before each of them.

        Returns:
            float32 (N, D).
        """
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        with torch.inference_mode():
            vectors_ND = self.embed(self.tokenize([prompt + text for text in texts]), tokens_per_batch)
        return vectors_ND.float().cpu().numpy()

    def _embed_padded(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        lengths_N = torch.tensor([len(row) for row in tokens], device=self.device)
        ids_NL = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in tokens], batch_first=True, padding_value=self._padding_id
        ).to(self.device)
        mask_NL = torch.arange(ids_NL.shape[1], device=self.device)[None, :] < lengths_N[:, None]
        options: dict[str, Any] = {"use_cache": False} if self._causal else {"attention_mask": mask_NL.long()}
        states_NLD = self.transformer(input_ids=ids_NL, **options).last_hidden_state
        return pool(states_NLD, mask_NL, self.spec)

    @property
    def _padding_id(self) -> int:
        padding = self.tokenizer.pad_token_id
        return int(padding) if padding is not None else 0


def pool(states_NLD: Tensor, mask_NL: Tensor, spec: EncoderSpec) -> Tensor:
    """Pool token states of right-padded texts into embeddings.

    Args:
        states_NLD: float (N, L, D), last hidden states.
        mask_NL: bool (N, L), True for tokens of the text; at least one a row.
        spec: Pooling and normalisation.

    Returns:
        float (N, D).
    """
    if spec.pooling == "lasttoken":
        # From the mask, never from the pad id: with pad == eos the id cannot tell the end of a text.
        last_N = mask_NL.sum(dim=1) - 1
        pooled_ND = states_NLD[torch.arange(len(states_NLD), device=states_NLD.device), last_N]
    else:
        weights_NL1 = mask_NL.unsqueeze(-1).to(states_NLD.dtype)
        pooled_ND = (states_NLD * weights_NL1).sum(dim=1) / weights_NL1.sum(dim=1)
    return torch.nn.functional.normalize(pooled_ND, dim=-1) if spec.normalize else pooled_ND


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Cut texts, longest first, into batches whose padded size stays within a token budget (at least one text each).

    >>> list(length_sorted_batches([3, 9, 4], tokens_per_batch=8))
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        width = max(1, tokens_per_batch // max(1, lengths[order[start]]))
        yield order[start : start + width]
        start += width


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
