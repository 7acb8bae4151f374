"""Encoders: load, save, tokenise, embed.

An encoder is a transformer, a pooling rule, normalisation, a maximum length and its prompts. On disk it is always the
sentence-transformers layout (`boom_utils.model_folder`), so every model of the kit loads there, in transformers and in
mteb. What `EncoderSpec` describes is embedded here, without padding where that is exact; a model with any other setting
is opened and encoded by sentence-transformers. Only safetensors weights are read, and no code from a model folder is
ever run.

Shapes: N texts, L tokens, T tokens of all texts, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from boom_utils.errors import BoomError, CheckpointError, some_of
from boom_utils.fast_linear import fast_linear
from boom_utils.model_folder import (
    ADAPTER,
    NO_LIMIT,
    EncoderSpec,
    check_folder,
    is_adapter,
    length_limits,
    read_modules,
    whole_folder,
    write_spec,
)
from boom_utils.packing import ATTENTION, length_sorted_batches

log = logging.getLogger(__name__)

Tokens = Sequence[int] | np.ndarray
"""Token ids of one text."""
_PACKING_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.05}
"""Most by which packed and padded embeddings may lie apart, in units of their length, for weights that kernels round
differently; else 1e-4. A model that mixes the texts of a row is far beyond either."""


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
        self._packs: bool | None = None

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
        """Read an encoder folder, or the folder of a LoRA adapter whose base is on this computer.

        Raises:
            CheckpointError: The folder is not a complete sentence-transformers folder, lacks weights of its model, or
                is unsafe to read.
        """
        folder = Path(folder)
        with whole_folder(folder) as place:
            spec = check_folder(place)
            adapter = folder if is_adapter(folder) else None
            if spec.beyond:
                log.info("%s: encoded by sentence-transformers, for %s", folder, "; ".join(spec.beyond))
                return OpenedEncoder(place, spec, dtype, adapter)
            stated, positions = length_limits(place)
            if stated and positions and stated > positions:
                log.warning("%s: texts are cut at %d tokens, its positions, not at %d", folder, positions, stated)
            return cls(*open_transformer(place, dtype, adapter), spec)

    def save(self, folder: Path) -> None:
        """Write the sentence-transformers layout into ``folder`` (weights as safetensors, in their own dtype)."""
        folder = Path(folder)
        self.transformer.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_spec(folder, self.spec, int(self.transformer.config.hidden_size))

    def to(self, device: str | torch.device) -> None:
        """Move the weights to a device."""
        self.transformer.to(device)

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        width = int(self.transformer.config.hidden_size)
        return min(width, self.spec.truncate_dim or width)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(iter(self.transformer.parameters())).device)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length`` (the spec's when None)."""
        limit = min(max_length or self.spec.max_seq_length, self.spec.max_seq_length)
        ids = self.tokenizer(list(texts), truncation=True, max_length=limit, return_attention_mask=False)["input_ids"]
        return [list(row) for row in ids]

    def micro_batches(self, lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
        """Rows of texts that one forward pass takes together: sorted by length, within a token budget."""
        return list(length_sorted_batches(lengths, tokens_per_batch, padded=not self.packs))

    def embed(self, tokens: Sequence[Tokens], tokens_per_batch: int = 8192) -> Tensor:
        """Embeddings of tokenised texts, in their order; differentiable, and whole where `encode` keeps less of them.

        Texts are sorted by length into micro-batches of at most ``tokens_per_batch`` tokens; this changes neither the
        values (beyond rounding) nor the order of the rows.

        Returns:
            float32 (N, D) on the model's device.
        """
        batches = self.micro_batches([len(row) for row in tokens], tokens_per_batch)
        parts = [self.embed_micro_batch([tokens[row] for row in rows]) for rows in batches]
        order = torch.tensor([row for rows in batches for row in rows], device=self.device)
        return torch.cat(parts)[torch.argsort(order)]

    def embed_micro_batch(self, tokens: Sequence[Tokens]) -> Tensor:
        """Embeddings of texts, given longest first, by one forward pass; float (N, D), float32 at least."""
        return self._embed_packed(tokens) if self.packs else self._embed_padded(tokens)

    def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:
        """Embeddings of texts without gradients, ``prompt`` put before each of them.

        A text without a token (an empty one, with a tokenizer that adds none) has the zero vector: that is what mean
        and last-token pooling give it in sentence-transformers, beside other texts.

        Args:
            texts: In any order; they are sorted by length for encoding.
            prompt: Put before each.
            tokens_per_batch: Tokens of one forward pass; None: 2048 on CPU (a larger pass is slower), else 8192.

        Returns:
            float32 (N, D).
        """
        vectors_ND = np.zeros((len(texts), self.dimension), dtype=np.float32)
        tokens = self.tokenize([prompt + text for text in texts]) if texts else []
        rows = [row for row, ids in enumerate(tokens) if ids]
        if rows:
            budget = tokens_per_batch or (2048 if self.device.type == "cpu" else 8192)
            with torch.inference_mode(), fast_linear():
                found_ND = self.embed([tokens[row] for row in rows], budget)
            vectors_ND[rows] = found_ND[:, : self.dimension].float().cpu().numpy()
        return vectors_ND

    @property
    def packs(self) -> bool:
        """Whether texts stand in one row without padding: where the model gives the same embeddings so.

        Not assumed from the model's kind but tried once, on two short texts: position numbers, a sliding window shorter
        than the longest text or code that ignores the attention interface would show.
        """
        if self._packs is None:
            self.use_packing(None)
        return bool(self._packs)

    def use_packing(self, chosen: bool | None) -> None:
        """Choose packed or padded forward passes; None decides by trying.

        Raises:
            CheckpointError: Packing is asked for, but this model does not give the same embeddings with it.
        """
        if self._packs:
            self.transformer.set_attn_implementation("sdpa")
        self._packs = chosen is not False and not self.spec.beyond and self._packing_is_exact()
        if chosen and not self._packs:
            raise CheckpointError("this model cannot be packed: its embeddings would change", fix="leave packing off")

    @torch.no_grad()
    def _packing_is_exact(self) -> bool:
        """Try packing on two texts; the model is left with the packed attention if it is exact."""
        trained, before = self.transformer.training, self.transformer.config._attn_implementation
        size, device = self.transformer.get_input_embeddings().num_embeddings, self.device
        texts = [np.arange(11) % size, np.arange(3, 8) % size]
        self.transformer.eval()
        try:
            padded_ND = self._embed_padded(texts)
            self.transformer.set_attn_implementation(ATTENTION)
            packed_ND = self._embed_packed(texts, self.spec.max_seq_length)
            apart_N = (packed_ND - padded_ND).norm(dim=-1) / padded_ND.norm(dim=-1).clamp(min=1e-9)
            exact = bool(apart_N.max() <= _PACKING_TOLERANCE.get(self.transformer.dtype, 1e-4))
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            log.debug("packing does not work for %s on %s: %s", type(self.transformer).__name__, device, error)
            exact = False
        if not exact:
            self.transformer.set_attn_implementation(before)
        self.transformer.train(trained)
        return exact

    def _embed_padded(self, tokens: Sequence[Tokens]) -> Tensor:
        lengths_N, padding = self._lengths(tokens), self.tokenizer.pad_token_id
        ids_NL = torch.nn.utils.rnn.pad_sequence(
            [_as_tensor(row) for row in tokens], batch_first=True, padding_value=padding or 0
        ).to(self.device)
        # The mask is of the lengths, never of the pad id: where that ends a text too, it cannot tell where one ends.
        mask_NL = torch.arange(ids_NL.shape[1], device=self.device)[None, :] < lengths_N[:, None]
        options: dict[str, Any] = {"use_cache": False} if self._causal else {"attention_mask": mask_NL.long()}
        states_NLD = self.transformer(input_ids=ids_NL, **options).last_hidden_state
        return pool(states_NLD[mask_NL], lengths_N, self.spec)

    def _embed_packed(self, tokens: Sequence[Tokens], longest: int | None = None) -> Tensor:
        lengths_N = self._lengths(tokens)
        ids_T = torch.cat([_as_tensor(row) for row in tokens])
        places_T = torch.cat([torch.arange(len(row)) for row in tokens])
        # A causal model makes its own mask unless it is given one by kind of layer.
        kinds = getattr(self.transformer.config, "layer_types", None) or ["full_attention"]
        options = {"use_cache": False, "attention_mask": dict.fromkeys(kinds)} if self._causal else {}
        states_1TD = self.transformer(
            input_ids=ids_T[None].to(self.device),
            position_ids=places_T[None].to(self.device),
            cu_seq_lens_q=torch.nn.functional.pad(lengths_N.cumsum(0), (1, 0)).int(),
            max_length_q=longest or len(tokens[0]),
            **options,
        ).last_hidden_state
        return pool(states_1TD[0], lengths_N, self.spec)

    def _lengths(self, tokens: Sequence[Tokens]) -> Tensor:
        return torch.tensor([len(row) for row in tokens], device=self.device)


class OpenedEncoder(Encoder):
    """A model that sentence-transformers opens and encodes: slower, and right for each of its settings. Not trained.

    Args:
        folder: The model's, which holds all its files.
        spec: As `read_spec` reads it.
        dtype: Of the weights.
        adapter: Folder of a LoRA adapter that is added to the weights.

    Raises:
        CheckpointError: sentence-transformers cannot open it, or weights are missing.
    """

    def __init__(self, folder: Path, spec: EncoderSpec, dtype: torch.dtype, adapter: Path | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        with _opening(folder):
            options = {**_SAFELY, "dtype": dtype}
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
        if (inner := model.transformers_model) is not None:
            core = folder / read_modules(folder)[0]["path"]
            model[0].model, _ = open_transformer(core, dtype, adapter, type(inner))  # once more, and looked at
            model.max_seq_length = min(model.max_seq_length or NO_LIMIT, spec.max_seq_length)
        super().__init__(model.eval(), model.tokenizer, spec)

    def save(self, folder: Path) -> None:
        """Write the folder as sentence-transformers does."""
        self.transformer.save(str(folder))

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return int(self.transformer.get_embedding_dimension())

    def encode(self, texts: Sequence[str], prompt: str = "", tokens_per_batch: int | None = None) -> np.ndarray:
        """As `Encoder.encode`; ``tokens_per_batch`` does not count."""
        vectors_ND = np.zeros((len(texts), self.dimension), dtype=np.float32)
        words = self.tokenizer
        bare = isinstance(words, PreTrainedTokenizerBase) and not words.num_special_tokens_to_add()
        rows = [row for row, text in enumerate(texts) if not bare or words(prompt + text)["input_ids"]]
        if rows:
            found = self.transformer.encode([texts[row] for row in rows], prompt=prompt, show_progress_bar=False)
            vectors_ND[rows] = np.asarray(found, dtype=np.float32)
        return vectors_ND

    def embed_micro_batch(self, tokens: Sequence[Tokens]) -> Tensor:
        """Nothing: only what `EncoderSpec` describes is embedded, and so trained, here.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError("this model can be encoded but not trained", found="; ".join(self.spec.beyond))


_SAFELY: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}


@contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """What libraries raise at a folder as a `CheckpointError`; the global random state stays as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a pooler that the folder lacks gets the same values every time; nothing reads them
            yield
    except BoomError:
        raise
    except Exception as error:  # libraries raise what they like at a broken folder
        raise CheckpointError("the model or its tokenizer cannot be opened", where=folder, found=error) from error


def open_transformer(
    folder: Path,
    dtype: torch.dtype,
    adapter: Path | None = None,
    kind: Any = AutoModel,
    gguf: str | None = None,
    **tokenizer: Any,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The transformer of a folder, in evaluation mode, and its tokenizer; the global random state stays as it was.

    Args:
        folder: Of the model.
        dtype: Of the weights.
        adapter: Folder of a LoRA adapter that is added to the weights.
        kind: The class that reads them.
        gguf: Name of the GGUF file in the folder that holds model and tokenizer; its weights are dequantised.
        tokenizer: What transformers is told of the tokenizer.

    Raises:
        CheckpointError: They cannot be opened, or weights of the model are not in the folder.
    """
    file: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    with _opening(folder):
        transformer, loading = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **_SAFELY, **file)
        _require_weights(loading, folder)
        if adapter is not None:
            transformer = _add_adapter(transformer, adapter)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True, **file, **tokenizer)
    # Where its files are missing, transformers makes a tokenizer without words.
    if isinstance(words, PreTrainedTokenizerBase) and len(words) <= len(words.all_special_tokens):
        raise CheckpointError(
            "the model has no tokenizer", where=folder, expected="tokenizer.json, or the files of its vocabulary"
        )
    return transformer.eval(), words


def _require_weights(loading: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model of which weights are missing: transformers fills them in with random values."""
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        strange = sorted(loading["unexpected_keys"])
        raise CheckpointError(
            f"{len(missing)} tensors of the model are not in its weights",
            where=folder,
            expected=some_of(missing),
            found=some_of(strange) or "nothing in their place",
            fix="save the model again, whole; of a compiled or parallel module (names begin with `_orig_mod.` or "
            "`module.`) save what is inside",
        )


def _add_adapter(transformer: Any, folder: Path) -> Any:
    """The transformer with the LoRA adapter of a folder added to its weights."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    # The wrapper of a task asks for more than a bare transformer has, and the folder of the base may be a link.
    config.task_type = config.base_model_name_or_path = None
    wrapped = get_peft_model(transformer, config)
    # An adapter of a model with a head names the transformer inside it.
    stored = {
        name.replace("base_model.model.model.", "base_model.model."): value
        for name, value in load_file(folder / ADAPTER).items()
    }
    loaded = set_peft_model_state_dict(wrapped, stored)
    missing = [name for name in loaded.missing_keys if "lora_" in name or "modules_to_save" in name]
    if missing or loaded.unexpected_keys:
        raise CheckpointError(
            "this adapter does not fit its base",
            where=folder,
            found=f"not in the adapter: {missing[:5]}; not in the base: {loaded.unexpected_keys[:5]}",
        )
    return wrapped.merge_and_unload()


def _as_tensor(tokens: Tokens) -> Tensor:
    return torch.from_numpy(np.array(tokens, dtype=np.int64))  # a copy: tokens of a table are read-only views


def pool(states_TD: Tensor, lengths_N: Tensor, spec: EncoderSpec) -> Tensor:
    """Pool token states of texts that stand behind one another in one row; sums and lengths are float32 at least.

    Args:
        states_TD: float (T, D), last hidden states.
        lengths_N: long (N,), tokens of each text; their sum is T.
        spec: Pooling and normalisation.

    Returns:
        float (N, D), float32 at least.
    """
    if spec.pooling == "mean":
        pooled_ND = torch.segment_reduce(_at_least_single(states_TD), "mean", lengths=lengths_N)
    else:
        ends_N = torch.cumsum(lengths_N, 0)
        pooled_ND = _at_least_single(states_TD[ends_N - (1 if spec.pooling == "lasttoken" else lengths_N)])
    return torch.nn.functional.normalize(pooled_ND, dim=-1) if spec.normalize else pooled_ND


def _at_least_single(states: Tensor) -> Tensor:
    return states.float() if states.dtype in (torch.bfloat16, torch.float16) else states
