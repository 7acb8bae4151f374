"""The tiny base of the `smoke` profile: a byte-level BPE tokenizer and a tiny Qwen3, built on the spot.

It stands in for Qwen3-0.6B: all members start from it, and it is clearly better than random because it is trained a
little, with InfoNCE on (summary, description) pairs of documents that no other set uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from boom_utils.cards import Card, write_card
from boom_utils.config import TinyBase
from boom_utils.data.examples import TrainingExample
from boom_utils.data.tokens import TextRules, TokenTable, write_tokens
from boom_utils.model_folder import EncoderSpec
from boom_utils.models import Encoder
from boom_utils.training.gradients import TrainingJob
from boom_utils.training.loop import remove_checkpoints, train
from boom_utils.training.plan import DatasetRules, PlanInput, PlanOptions, plan_batches

PAD, END = "<|pad|>", "<|end|>"


def train_tokenizer(texts: Iterable[str], config: TinyBase) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that appends an end token to every text (the one last-token pooling reads)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = [(END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=end)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=config.max_seq_length,
    )


def random_encoder(texts: Iterable[str], config: TinyBase, prompts: dict[str, str]) -> Encoder:
    """A tiny Qwen3 with random weights, last-token pooling and a tokenizer trained on ``texts``.

    The global random state is left as it was.
    """
    tokenizer = train_tokenizer(texts, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        transformer = Qwen3Model(_qwen3(config, len(tokenizer), tokenizer)).eval()
    _start_near_a_bag_of_words(transformer, tokenizer.eos_token_id)
    return Encoder(transformer, tokenizer, EncoderSpec("lasttoken", True, config.max_seq_length, prompts))


@torch.no_grad()
def _start_near_a_bag_of_words(transformer: Qwen3Model, end: int) -> None:
    """Let the end token's state begin as the mean of what the text's tokens say.

    With stock initial values a model this small memorises pairs before it learns that shared words matter. An end token
    of zeros has no query, so its first attention is the plain mean; a strong value path and quiet MLPs let it through.
    """
    transformer.embed_tokens.weight.mul_(2.5)
    transformer.embed_tokens.weight[end] = 0
    first = transformer.layers[0].self_attn
    first.v_proj.weight.mul_(4)
    first.o_proj.weight.mul_(4)
    for layer in transformer.layers:
        layer.mlp.down_proj.weight.mul_(0.1)


def pretrain(start: Path, pairs: Sequence[TrainingExample], prompt: str, config: TinyBase, out: Path) -> dict[str, Any]:
    """Stage: train the random encoder in ``start`` on (query, positive) pairs; write an encoder folder to ``out``.

    Args:
        start: Folder of `random_encoder`.
        pairs: Pairs of documents that no other set uses.
        prompt: Put before every query, so that the base has met the template it is evaluated with.
        config: Its ``pretraining`` part is what counts.
        out: Gets the encoder and ``training_log.jsonl``.
    """
    encoder, options = Encoder.load(start), config.pretraining
    path = out / "pretraining.arrow"
    write_tokens(path, pairs, TextRules(prompt, "", options.query_max_len, options.passage_max_len), encoder.tokenize)
    table = TokenTable(path)
    rules = DatasetRules(group="positive_only")
    rows = np.arange(len(table), dtype=np.uint32)
    batches = plan_batches(
        {table.name: PlanInput(rules, rows, table.positive_counts, table.negative_counts)},
        PlanOptions(options.per_device_train_batch_size, 2, options.num_train_epochs, options.processes, config.seed),
    )
    job = TrainingJob({table.name: table}, {table.name: rules}, batches, options, "pre-training of the tiny base")
    facts = train(encoder, job, out)
    encoder.save(out)
    remove_checkpoints(out)
    path.unlink()
    write_card(
        out, Card("tiny base", "A tiny Qwen3 weakly pre-trained on pairs of one corpus.", {"steps": facts["steps"]})
    )
    return facts


def _qwen3(config: TinyBase, vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    return Qwen3Config(
        vocab_size=vocabulary,
        **config.model_dump(include=sizes),
        head_dim=config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_seq_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
