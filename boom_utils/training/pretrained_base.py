"""Stage: a pretrained base in the kit's layout, so that everything made from it needs to know nothing of its source."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from boom_utils.cards import Card, write_card
from boom_utils.config import Pooling, PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError
from boom_utils.model_folder import (
    EncoderSpec,
    content_hash,
    find_weight_files,
    is_sentence_transformer,
    read_mapping,
    read_modules,
    read_spec,
    refuse_code_and_pickles,
)
from boom_utils.models import Encoder
from boom_utils.training.base_source import fetch_base, source_kind

log = logging.getLogger(__name__)

_POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Kinds of models whose first position has number 2 (padding id + 1): two fewer tokens than positions."""


def prepare_base(config: PretrainedBase, prompts: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Write the base as an encoder folder with float32 weights and the study's prompts to ``out``.

    Returns:
        Facts for the record: source, revision, number of parameters, content hash.

    Raises:
        ConfigError: The base is not there, or the profile asks of it what it does not have.
        CheckpointError: Its folder is incomplete, or unsafe or impossible to read.
        DownloadError: It cannot be fetched.
    """
    if config.revision is None and source_kind(config.name) != "folder":
        log.warning("base %s: no revision is named; whatever is there now is used", config.name)
    files = fetch_base(config)
    encoder = open_base(files.folder, config, prompts)
    encoder.save(out)
    count = sum(parameter.numel() for parameter in encoder.transformer.parameters())
    embedding = encoder.transformer.get_input_embeddings().weight.numel()
    facts = {**files.facts, "parameters": count, "embedding_parameters": embedding, "content_hash": content_hash(out)}
    spec = {"pooling": encoder.spec.pooling, "normalize": encoder.spec.normalize}
    shown = {name: facts[name] for name in ("name", "revision", "parameters") if name in facts} | spec
    write_card(out, Card("base", "A pretrained model in the layout of the kit, weights unchanged.", shown))
    return facts


def open_base(folder: Path, config: PretrainedBase, prompts: Mapping[str, str]) -> Encoder:
    """Read a model folder of sentence-transformers or transformers as an encoder.

    Raises:
        ConfigError: Pooling is neither in the profile nor in the folder, or texts may be longer than its positions.
        CheckpointError: The folder is incomplete, brings code or pickles, or has no fast tokenizer.
    """
    refuse_code_and_pickles(folder)
    find_weight_files(folder)
    spec = EncoderSpec(_pooling(folder, config), config.normalize, config.max_seq_length, dict(prompts))
    _check_length(folder, config)
    transformer = _transformer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=spec.max_seq_length)
    except (OSError, ValueError) as error:
        raise CheckpointError("the tokenizer of the base cannot be read", where=folder, found=error) from error
    if not tokenizer.is_fast:
        raise CheckpointError("the base has no fast tokenizer", where=folder, expected="tokenizer.json")
    return Encoder(transformer.eval(), tokenizer, spec)


def _pooling(folder: Path, config: PretrainedBase) -> Pooling:
    if not is_sentence_transformer(folder):
        if config.pooling is None:
            raise ConfigError(
                "the base does not say how token states become an embedding",
                where=folder,
                fix="set base_model.pooling to lasttoken (decoders), mean or cls",
            )
        return config.pooling
    own = read_spec(folder)
    if read_modules(folder)[0]["path"]:
        raise CheckpointError("the transformer lies in a subfolder", where=folder / "modules.json", expected="path ''")
    for name, chosen in (("pooling", config.pooling), ("normalize", config.normalize)):
        if chosen not in (None, getattr(own, name)):
            log.warning("base: %s is %s, in its own folder it is %s", name, chosen, getattr(own, name))
    return config.pooling or own.pooling


def _check_length(folder: Path, config: PretrainedBase) -> None:
    settings = read_mapping(folder / "config.json")
    positions = settings.get("max_position_embeddings")
    if not isinstance(positions, int):
        return
    most = positions - 2 if settings.get("model_type") in _POSITIONS_FROM_PADDING else positions
    if config.max_seq_length > most:
        raise ConfigError(
            "texts may be longer than the base has positions",
            where="base_model.max_seq_length",
            expected=f"at most {most}",
            found=config.max_seq_length,
        )


def _transformer(folder: Path) -> Any:
    """The transformer in float32; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a pooler that the checkpoint lacks gets the same values every time; nothing reads them
        try:
            transformer, loading = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError("the base cannot be opened", where=folder, found=error) from error
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{len(missing)} tensors of the base are not in its weights", where=folder, found=", ".join(missing[:5])
        )
    return transformer
