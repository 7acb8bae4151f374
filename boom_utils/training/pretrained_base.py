"""Stage: a pretrained base in the kit's layout, so that everything made from it needs to know nothing of its source."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import ModuleList
from transformers import PreTrainedModel
from transformers.utils import is_gguf_available

from boom_utils.cards import Card, write_card
from boom_utils.config import PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError
from boom_utils.model_folder import (
    EncoderSpec,
    content_hash,
    find_weight_files,
    is_adapter,
    is_sentence_transformer,
    length_limits,
    read_spec,
    refuse_code_and_pickles,
    whole_folder,
)
from boom_utils.models import Encoder, open_transformer
from boom_utils.training.base_source import BaseFiles, check_weights, fetch_base, source_kind

log = logging.getLogger(__name__)


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
    with _plain_folder(files, config) as folder:
        encoder = open_base(folder, config, prompts)
    encoder.save(out)
    count = sum(parameter.numel() for parameter in encoder.transformer.parameters())
    embedding = encoder.transformer.get_input_embeddings().weight.numel()
    facts = {**files.facts, "parameters": count, "embedding_parameters": embedding, "content_hash": content_hash(out)}
    spec = {"pooling": encoder.spec.pooling, "normalize": encoder.spec.normalize}
    shown = {name: facts[name] for name in ("name", "revision", "parameters") if name in facts} | spec
    write_card(out, Card("base", "A pretrained model in the layout of the kit, weights unchanged.", shown))
    return facts


@contextmanager
def _plain_folder(files: BaseFiles, config: PretrainedBase) -> Iterator[Path]:
    """The folder of a base; for a GGUF file a temporary one with its weights in float32 and its tokenizer.

    Last-token pooling reads the end token. A language model's tokenizer appends none to a text, so it is made to.
    """
    if not files.gguf:
        yield files.folder
        return
    if not is_gguf_available():
        what, fix = "the base is a GGUF file, which is read with the package gguf", "pip install 'boom-utils[decoder]'"
        raise ConfigError(what, where=f"base_model.name: {config.name}", fix=fix)
    with TemporaryDirectory(prefix="boom-") as place:
        whole, plain = Path(place, "model.gguf"), Path(place, "plain")
        with whole.open("wb") as target:
            for part in files.gguf:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)
        check_weights(config, whole)
        transformer, tokenizer = open_transformer(whole.parent, torch.float32, gguf=whole.name)
        whole.unlink()
        if config.pooling == "lasttoken":
            tokenizer.add_eos_token = True
        del transformer.config.quantization_config, transformer.hf_quantizer  # what is saved is no longer quantised
        transformer.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        del transformer
        yield plain


def open_base(folder: Path, config: PretrainedBase, prompts: Mapping[str, str]) -> Encoder:
    """Read a model folder of sentence-transformers or transformers, or a LoRA adapter of one, as an encoder.

    Raises:
        ConfigError: Pooling is neither in the profile nor in the folder, or texts may be longer than its positions.
        CheckpointError: The folder is incomplete, brings code or pickles, has no fast tokenizer, or embeds in a way
            that is not trained here.
    """
    with whole_folder(folder) as place:
        refuse_code_and_pickles(place)
        find_weight_files(place)
        spec = _spec(place, config, prompts)
        most = length_limits(place)[1]
        if most is not None and config.max_seq_length > most:
            raise ConfigError(
                "texts may be longer than the base has positions",
                where="base_model.max_seq_length",
                expected=f"at most {most}",
                found=config.max_seq_length,
            )
        adapter, longest = folder if is_adapter(folder) else None, spec.max_seq_length
        transformer, tokenizer = open_transformer(place, torch.float32, adapter, model_max_length=longest)
    if not tokenizer.is_fast:
        raise CheckpointError("the base has no fast tokenizer", where=folder, expected="tokenizer.json")
    if config.layers is not None:
        _keep_first_layers(transformer, config.layers)
    return Encoder(transformer, tokenizer, spec)


def _keep_first_layers(transformer: PreTrainedModel, count: int) -> None:
    """Leave out all layers but the first ``count``; what follows the last one, such as its norm, stays."""
    config = transformer.config
    parts = [(owner, name, part) for owner in transformer.modules() for name, part in owner.named_children()]
    stacks = [found for found in parts if isinstance(found[2], ModuleList)]
    if count > config.num_hidden_layers or [len(part) for *_, part in stacks] != [config.num_hidden_layers]:
        found = f"{', '.join(f'{name} of {len(part)}' for _, name, part in stacks) or 'none'}"
        raise ConfigError(
            "the base has no such first layers",
            where="base_model.layers",
            expected=f"one stack of at least {count} layers",
            found=found,
        )
    [(owner, name, part)] = stacks
    setattr(owner, name, part[:count])
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _spec(folder: Path, config: PretrainedBase, prompts: Mapping[str, str]) -> EncoderSpec:
    """What the profile says of the base, and its own folder where the profile says nothing."""
    if not is_sentence_transformer(folder):
        if config.pooling is None:
            raise ConfigError(
                "the base does not say how token states become an embedding",
                where=folder,
                fix="set base_model.pooling to lasttoken (decoders), mean or cls",
            )
        return EncoderSpec(config.pooling, config.normalize, config.max_seq_length, dict(prompts))
    own = read_spec(folder)
    if own.beyond:
        raise CheckpointError(
            "members of this base cannot be trained: what its folder asks for is not reproduced in training",
            where=folder,
            expected="a transformer, its pooling (lasttoken, mean or cls) and optionally normalisation",
            found="; ".join(own.beyond),
            fix="save the model without it, if it was trained without it; `boom evaluate` takes the folder as it is",
        )
    for name, chosen in (("pooling", config.pooling), ("normalize", config.normalize)):
        if chosen not in (None, getattr(own, name)):
            log.warning("base: %s is %s, in its own folder it is %s", name, chosen, getattr(own, name))
    return replace(
        own,
        pooling=config.pooling or own.pooling,
        normalize=config.normalize,
        max_seq_length=config.max_seq_length,
        prompts=dict(prompts),
        default_prompt_name=own.default_prompt_name if own.default_prompt_name in prompts else None,
    )
