"""Pretrained bases: the same embeddings as in sentence-transformers, at the start and after training and merging."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, TOY, bert_folder, tiny_config, toy_job
from safetensors.torch import load_file, save_file
from test_evaluation import retrieval_task

from boom_utils.artifacts import sha256_file
from boom_utils.config import PretrainedBase
from boom_utils.errors import CheckpointError, ConfigError
from boom_utils.evaluation.run import evaluate_task
from boom_utils.hyperparameters import LoraConfig
from boom_utils.merging.recipe import make_recipe
from boom_utils.merging.writer import merge
from boom_utils.models import Encoder
from boom_utils.training import pretrained_base
from boom_utils.training.base_model import random_encoder
from boom_utils.training.base_source import describe_base
from boom_utils.training.member import MemberJob, train_member
from boom_utils.training.plan import DatasetRules
from boom_utils.training.pretrained_base import open_base, prepare_base

PROMPTS = {"toy": "Instruct: find it\nQuery: "}
MIXED = [text * times for text, times in zip(TEXTS, (1, 3, 1, 2, 1, 1, 4, 1), strict=True)]


def config(folder: Path, **changes: Any) -> PretrainedBase:
    return PretrainedBase.model_validate({"kind": "pretrained", "name": str(folder), "max_seq_length": 48, **changes})


def theirs(folder: Path, texts: list[str] = MIXED, **options: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=3, **options))


def trained_member(base: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """One member from base to encoder folder, as a study trains it."""
    training = TOY.model_copy(update={"num_train_epochs": 3, **changes})
    (folder / "tokens").mkdir(parents=True)
    toy_job(Encoder.load(base), folder / "tokens", config=training).plan.save(folder / "plan.npz")
    files = base, (folder / "tokens",), folder / "plan.npz"
    return train_member(MemberJob(*files, {"toy": DatasetRules()}, training, PROMPTS, "m", "A."), folder / "out")


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("lasttoken", False)])
def test_a_prepared_base_embeds_as_the_model_it_was_made_from(tmp_path: Path, pooling: str, normalize: bool) -> None:
    model = bert_folder(tmp_path / "model", pooling=pooling, normalize=normalize)
    facts = prepare_base(config(model, normalize=normalize), PROMPTS, tmp_path / "base")
    encoder = Encoder.load(tmp_path / "base")
    assert encoder.spec.pooling == pooling
    assert np.abs(encoder.encode(MIXED) - theirs(model)).max() < 1e-5
    assert np.abs(encoder.encode(MIXED, PROMPTS["toy"]) - theirs(tmp_path / "base", prompt_name="toy")).max() < 1e-5
    assert facts["parameters"] == sum(value.numel() for value in load_file(model / "model.safetensors").values())


def test_a_member_of_a_bert_trains_merges_evaluates_and_loads_elsewhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    prepare_base(config(bert_folder(tmp_path / "model")), PROMPTS, base)
    facts = trained_member(base, tmp_path / "m")
    assert facts["steps"] == 6
    member = tmp_path / "m" / "out"
    changed = load_file(member / "model.safetensors")
    before = load_file(base / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], changed[name])}
    assert {name for name in before if not name.startswith("pooler.")} == moved  # the pooler is not used
    models = [{"model": path, "parameters": {"weight": weight}} for path, weight in ((base, 0.4), (member, 1.0))]
    merge(make_recipe({"merge_method": "multislerp", "models": models, "dtype": "float32"}), tmp_path / "merged")
    for folder in (member, tmp_path / "merged"):
        ours = Encoder.load(folder).encode(MIXED, PROMPTS["toy"])
        assert np.abs(ours - theirs(folder, prompt_name="toy")).max() < 1e-5
        (scores := tmp_path / f"{folder.name}-scores").mkdir()
        score = evaluate_task("m", folder, retrieval_task(scores / "set"), scores)
        assert 0 < score["main_score"] <= 1
    assert np.abs(Encoder.load(member).encode(MIXED) - Encoder.load(base).encode(MIXED)).max() > 1e-3


def test_a_qwen3_from_elsewhere_trains_with_lora_and_loads_elsewhere(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    encoder = random_encoder(TEXTS, tiny_config(), {})
    encoder.transformer.to(torch.bfloat16).save_pretrained(plain)  # as on the hub: no modules.json, half precision
    encoder.tokenizer.save_pretrained(plain)
    facts = prepare_base(config(plain, pooling="lasttoken"), PROMPTS, tmp_path / "base")
    assert facts["embedding_parameters"] == encoder.transformer.embed_tokens.weight.numel()
    weights = load_file(tmp_path / "base" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    trained_member(tmp_path / "base", tmp_path / "m", lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1))
    member = tmp_path / "m" / "out"
    assert list(load_file(member / "model.safetensors")) == list(weights)
    assert "packed" not in (member / "config.json").read_text()
    ours = Encoder.load(member).encode(MIXED, PROMPTS["toy"])
    assert np.abs(ours - theirs(member, prompt_name="toy")).max() < 1e-5
    assert np.abs(ours - Encoder.load(tmp_path / "base").encode(MIXED, PROMPTS["toy"])).max() > 1e-3


def test_equal_sources_give_equal_bytes_and_the_random_state_is_left_alone(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model")
    weights = {n: v for n, v in load_file(model / "model.safetensors").items() if not n.startswith("pooler.")}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})  # the pooler has to be made up
    hashes = [prepare_base(config(model), PROMPTS, tmp_path / name)["content_hash"] for name in ("a", "b")]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("change", ["include_prompt", "do_lower_case"])
def test_a_base_that_embeds_in_a_way_that_is_not_trained_is_refused(tmp_path: Path, change: str) -> None:
    model = bert_folder(tmp_path / "model")
    path = model / ("1_Pooling/config.json" if change == "include_prompt" else "sentence_bert_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), change: change != "include_prompt"}))
    with pytest.raises(CheckpointError, match=f"(?s)cannot be trained.*{change}"):
        open_base(model, config(model), PROMPTS)


def test_an_adapter_is_a_base(tmp_path: Path) -> None:
    from peft import LoraConfig as Adapter
    from peft import get_peft_model

    model = bert_folder(tmp_path / "model")
    with torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(
            Encoder.load(model).transformer, Adapter(target_modules=["query", "value"], init_lora_weights=False)
        )
    wrapped.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**stored, "base_model_name_or_path": "../model"})
    )
    prepare_base(config(tmp_path / "adapter"), PROMPTS, tmp_path / "base")
    found = Encoder.load(tmp_path / "base").encode(MIXED)
    assert np.abs(found - Encoder.load(tmp_path / "adapter").encode(MIXED)).max() < 1e-6
    assert np.abs(found - Encoder.load(model).encode(MIXED)).max() > 1e-3
    described = describe_base(config(tmp_path / "adapter"))
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    assert describe_base(config(tmp_path / "adapter")) != described


def test_what_a_base_lacks_or_a_profile_asks_in_vain_is_refused(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match="not those the profile names"):
        prepare_base(config(model, weights_sha256="0" * 64), PROMPTS, tmp_path / "base")
    with pytest.raises(ConfigError, match=r"set base_model\.pooling"):
        open_base(tmp_path / "model-plain", config(tmp_path), PROMPTS)
    with pytest.raises(ConfigError, match="at most 64"):
        open_base(model, config(model, max_seq_length=65), PROMPTS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        open_base(model, config(model), PROMPTS)


def test_another_pooling_than_the_bases_own_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bert_folder(tmp_path / "model")
    with caplog.at_level(logging.WARNING, logger="boom_utils"):
        assert open_base(model, config(model, pooling="cls"), PROMPTS).spec.pooling == "cls"
    assert "pooling is cls, in its own folder it is mean" in caplog.text


@pytest.mark.promise(20)
def test_a_base_that_is_unsafe_or_not_whole_is_refused(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model")

    def refused(pattern: str) -> None:
        with pytest.raises(CheckpointError, match=pattern):
            open_base(model, config(model), PROMPTS)

    settings, weights = (model / "config.json").read_text(), load_file(model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({**json.loads(settings), "auto_map": {"AutoModel": "evil.Model"}}))
    refused("code of its own")
    (model / "config.json").write_text(settings)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    refused(r"encoder\.layer\.1\.output\.dense\.weight")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused("pickle")


def test_of_a_base_only_its_first_layers_are_kept_where_the_profile_says_so(tmp_path: Path) -> None:
    model = bert_folder(tmp_path / "model")
    prepare_base(config(model, layers=1), PROMPTS, tmp_path / "base")
    prepare_base(config(model), PROMPTS, tmp_path / "whole")
    encoder, whole = Encoder.load(tmp_path / "base"), Encoder.load(tmp_path / "whole")
    assert encoder.transformer.config.num_hidden_layers == 1
    kept = dict(encoder.transformer.named_parameters())
    expected = {name: one for name, one in whole.transformer.named_parameters() if ".layer.1." not in name}
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], one) for name, one in expected.items())
    ids = torch.tensor([whole.tokenize(TEXTS[:1])[0]])
    first = whole.transformer(ids, output_hidden_states=True).hidden_states[1]
    assert torch.equal(encoder.transformer(ids).last_hidden_state, first)
    with pytest.raises(ConfigError, match=r"(?s)base_model.layers.*at least 3 layers.*of 2"):
        prepare_base(config(model, layers=3), PROMPTS, tmp_path / "none")


def gguf_file(path: Path) -> dict[str, np.ndarray]:
    """A tiny random Gemma 3 with a vocabulary of bytes; its weights under GGUF's names."""
    gguf = pytest.importorskip("gguf", reason="GGUF files are written and read with the package gguf (extra: decoder)")
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{number:02X}>" for number in range(256)), "▁"]
    kinds = [3, 3, 3, 2, *[6] * 256, 1]  # control, unknown, byte, normal
    width, heads, inner = 32, 2 * 16, 48
    shapes = {"token_embd": (len(words), width), "output_norm": (width,)}
    block = {"attn_q": (heads, width), "attn_k": (16, width), "attn_v": (16, width), "attn_output": (width, heads)}
    block |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    block |= dict.fromkeys(("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), (width,))
    shapes |= {f"blk.0.{name}": shape for name, shape in (block | {"attn_q_norm": (16,), "attn_k_norm": (16,)}).items()}
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.normal(1, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(48)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_file_becomes_a_base_with_its_weights_and_an_end_token_where_the_last_one_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / "tiny.gguf"
    stored = gguf_file(path)["token_embd.weight"]
    chosen = config(path.parent, pooling="lasttoken", weights_sha256=sha256_file(path))
    before = describe_base(chosen)
    prepare_base(chosen, PROMPTS, tmp_path / "base")
    encoder = Encoder.load(tmp_path / "base")
    assert np.array_equal(encoder.transformer.get_input_embeddings().weight.detach().numpy(), stored)
    ids = encoder.tokenize(["ab", "abcd"], 5)
    assert [row[0] for row in ids] == [2, 2] and [row[-1] for row in ids] == [1, 1] and len(ids[1]) == 5
    assert encoder.packs and np.isfinite(encoder.encode(TEXTS)).all()
    prepare_base(config(path.parent, pooling="mean"), PROMPTS, tmp_path / "mean")
    assert Encoder.load(tmp_path / "mean").tokenize(["ab"])[0] == ids[0][:-1]
    with pytest.raises(ConfigError, match="not those the profile names"):
        prepare_base(config(path.parent, pooling="mean", weights_sha256="0" * 64), PROMPTS, tmp_path / "none")
    path.write_bytes(path.read_bytes() + b"0")
    assert describe_base(chosen) != before


def test_a_gguf_file_that_cannot_be_read_here_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(pretrained_base, "is_gguf_available", lambda: False)
    with pytest.raises(ConfigError, match=r"(?s)the package gguf.*pip install 'boom-utils\[decoder\]'"):
        prepare_base(config(tmp_path, pooling="lasttoken"), PROMPTS, tmp_path / "base")
