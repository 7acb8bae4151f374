"""Encoder folders: sentence-transformers is the oracle; unsafe or incomplete folders are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, tiny_config
from safetensors.torch import load_file, save_file

from boom_utils.errors import CheckpointError
from boom_utils.model_folder import EncoderSpec, content_hash, read_spec
from boom_utils.models import Encoder, pool
from boom_utils.packing import length_sorted_batches
from boom_utils.training.base_model import random_encoder

PROMPT = "Instruct: find it\nQuery: "
MIXED = [text * times for text, times in zip(TEXTS, (1, 3, 1, 2, 1, 1, 4, 1), strict=True)]


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_encoder_gives_the_same_embeddings_in_sentence_transformers(
    encoder: Encoder, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    encoder.spec = EncoderSpec(pooling, normalize, 40, {"toy": PROMPT})  # type: ignore[arg-type]
    encoder.save(tmp_path / "model")
    peer = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    theirs = peer.encode(MIXED, prompt_name="toy", batch_size=3)
    ours = Encoder.load(tmp_path / "model").encode(MIXED, PROMPT, tokens_per_batch=64)
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_folder_written_by_sentence_transformers_reads_the_same(encoder_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(encoder_folder), device="cpu").save(str(tmp_path / "theirs"))
    assert read_spec(tmp_path / "theirs") == read_spec(encoder_folder)
    ours, theirs = (Encoder.load(path).encode(MIXED) for path in (encoder_folder, tmp_path / "theirs"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("budget", [1, 50, 10_000])
def test_micro_batches_change_neither_values_nor_order(encoder: Encoder, budget: int) -> None:
    one_by_one = np.concatenate([encoder.encode([text]) for text in MIXED])
    assert np.abs(encoder.encode(MIXED, tokens_per_batch=budget) - one_by_one).max() < 1e-5


def test_padding_never_reaches_an_embedding_of_a_model_that_sees_both_sides(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tokenizer = random_encoder(TEXTS, tiny_config(), {}).tokenizer
    with torch.random.fork_rng(devices=[]):
        bert = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
            )
        ).eval()
    encoder = Encoder(bert, tokenizer, EncoderSpec("mean", True, 40))
    one_by_one = np.concatenate([encoder.encode([text]) for text in MIXED])
    assert np.abs(encoder.encode(MIXED, tokens_per_batch=10_000) - one_by_one).max() < 1e-5


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert pool(states, mask, EncoderSpec("lasttoken", False, 8)).tolist() == [[0.0, 4.0]]
    assert pool(states, mask, EncoderSpec("mean", False, 8)).tolist() == [[1.5, 2.0]]
    assert pool(states, mask, EncoderSpec("mean", True, 8)).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_a_cut_text_keeps_its_end_token(encoder: Encoder) -> None:
    tokens = encoder.tokenize(["word " * 500], max_length=10)[0]
    assert len(tokens) == 10
    assert tokens[-1] == encoder.tokenizer.eos_token_id


def test_every_text_is_in_exactly_one_batch_within_the_budget() -> None:
    lengths = [7, 1, 30, 4, 4, 9, 2]
    batches = list(length_sorted_batches(lengths, 16))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= 16 for batch in batches)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_the_content_hash_changes_with_everything_a_score_depends_on(encoder_folder: Path, encoder: Encoder) -> None:
    seen = {content_hash(encoder_folder), content_hash(encoder_folder, "bfloat16")}
    for changed in (
        EncoderSpec("mean", True, 48, encoder.spec.prompts),
        EncoderSpec("lasttoken", False, 48, encoder.spec.prompts),
        EncoderSpec("lasttoken", True, 47, encoder.spec.prompts),
        EncoderSpec("lasttoken", True, 48, {"toy": "Instruct: find it\nQuery:"}),
    ):
        encoder.spec = changed
        encoder.save(encoder_folder)
        seen.add(content_hash(encoder_folder))
    weights = load_file(encoder_folder / "model.safetensors")
    weights["norm.weight"][0] += 1e-6
    save_file(weights, encoder_folder / "model.safetensors", metadata={"format": "pt"})
    assert len(seen | {content_hash(encoder_folder)}) == 7


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.canary,)  # type: ignore[return-value]


@pytest.mark.promise(20)
def test_a_pickle_is_refused_and_not_run(encoder_folder: Path, tmp_path: Path) -> None:
    (encoder_folder / "model.safetensors").unlink()
    (encoder_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    with pytest.raises(CheckpointError, match="pickle"):
        Encoder.load(encoder_folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.promise(20)
def test_a_model_that_brings_its_own_code_is_refused(encoder_folder: Path) -> None:
    config = json.loads((encoder_folder / "config.json").read_text())
    (encoder_folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(CheckpointError, match="its own code"):
        Encoder.load(encoder_folder)


def test_a_plain_transformers_folder_is_refused_instead_of_being_mean_pooled(encoder_folder: Path) -> None:
    (encoder_folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"modules\.json is missing"):
        Encoder.load(encoder_folder)


def test_an_unknown_module_is_refused(encoder_folder: Path) -> None:
    modules = json.loads((encoder_folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (encoder_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="Dense"):
        Encoder.load(encoder_folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        Encoder.load(tmp_path / "nowhere")
