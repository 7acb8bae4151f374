"""Encoder folders: sentence-transformers is the oracle; unsafe or incomplete folders are refused."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXTS, bert_folder
from safetensors.torch import load_file, save_file

from boom_utils.errors import CheckpointError
from boom_utils.model_folder import ADAPTER_CONFIG, EncoderSpec, content_hash, read_json, read_spec
from boom_utils.models import Encoder, OpenedEncoder

PROMPT = "Instruct: find it\nQuery: "
MIXED = [text * times for text, times in zip(TEXTS, (1, 3, 1, 2, 1, 1, 4, 1), strict=True)]


def opened(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    with torch.random.fork_rng(devices=[]):
        return SentenceTransformer(str(folder), device="cpu")


def theirs(folder: Path, texts: list[str] = MIXED, **prompt: str) -> np.ndarray:
    return np.asarray(opened(folder).encode(texts, batch_size=3, **(prompt or {"prompt": PROMPT})))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(read_json(path) or {}), **changes}))


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_saved_encoder_gives_the_same_embeddings_in_sentence_transformers(
    encoder: Encoder, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    encoder.spec = EncoderSpec(pooling, normalize, 40, {"toy": PROMPT})
    encoder.save(tmp_path / "model")
    loaded = Encoder.load(tmp_path / "model")
    ours = loaded.encode(MIXED, PROMPT, tokens_per_batch=64)
    assert np.abs(np.concatenate([loaded.encode([text], PROMPT) for text in MIXED]) - ours).max() < 1e-5
    assert loaded.encode([]).shape == (0, loaded.dimension)
    assert loaded.tokenize(["word " * 500], max_length=10)[0][-1] == loaded.tokenizer.eos_token_id
    assert np.abs(ours - theirs(tmp_path / "model", prompt_name="toy")).max() < 1e-5


def test_a_folder_written_by_sentence_transformers_reads_the_same(encoder_folder: Path, tmp_path: Path) -> None:
    opened(encoder_folder).save(str(tmp_path / "theirs"))
    assert read_spec(tmp_path / "theirs") == read_spec(encoder_folder)
    assert content_hash(tmp_path / "theirs") == content_hash(encoder_folder)
    ours, theirs = (Encoder.load(path).encode(MIXED) for path in (encoder_folder, tmp_path / "theirs"))
    assert np.array_equal(ours, theirs)


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


# --- what users bring -------------------------------------------------------------------------------------------------

CASES = ("plain", "include_prompt_false", "do_lower_case", "truncate_dim", "dot_product", "no_stated_length")
OTHERS = ("vocab_txt_only", "own_prompts", "trainer_output")


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_the_folders_users_bring_are_encoded_as_sentence_transformers_encodes_them(cases: Path, case: str) -> None:
    expected, folder = json.loads((cases / "expected.json").read_text()), cases / "models" / case
    wanted, encoder = expected["models"][case], Encoder.load(folder)
    found = encoder.encode(expected["texts"], expected["prompt"])
    assert np.abs(found - np.array(wanted["embeddings"])).max() < 1e-5
    assert encoder.spec.similarity == wanted["similarity"]
    assert encoder.spec.max_seq_length == wanted["max_seq_length"]
    same = case in ("plain", "trainer_output", "no_stated_length")
    assert (content_hash(folder) == content_hash(cases / "models" / "plain")) is same


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("change", ["module.", "_orig_mod.", ""])
def test_a_model_whose_weights_are_not_all_there_is_refused(tmp_path: Path, change: str, beyond: bool) -> None:
    folder = bert_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    kept = {f"{change}{one}": value for one, value in weights.items() if change or one != name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "1_Pooling" / "config.json", include_prompt=not beyond)
    with pytest.raises(
        CheckpointError, match=rf"(?s)not in its weights.*(embeddings|encoder\.layer\.1\.output)\..*{change}"
    ):
        Encoder.load(folder)


def module(name: str, *args: Any, **options: Any) -> Any:
    from sentence_transformers.sentence_transformer import modules

    return getattr(modules, name)(*args, **options)


MEAN = functools.partial(module, "Pooling", 32, pooling_mode="mean")
KINDS: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
    "max": (lambda: [MEAN(pooling_mode="max")], {}),
    "two poolings": (lambda: [MEAN(pooling_mode=("mean", "cls"))], {}),
    "without the prompt": (lambda: [MEAN(include_prompt=False)], {}),
    "normalised elsewhere": (lambda: [MEAN(), module("Normalize", module_output_name="other")], {}),
    "dense": (lambda: [MEAN(), module("Dense", 32, 16)], {"similarity_fn_name": "dot"}),
    "cut": (lambda: [MEAN()], {"truncate_dim": 8, "similarity_fn_name": "euclidean"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_module_of_sentence_transformers_is_encoded_as_it_is_there(tmp_path: Path, kind: str) -> None:
    modules, options = KINDS[kind]
    folder = bert_folder(tmp_path / "model", modules=modules, **options)
    encoder = Encoder.load(folder)
    assert isinstance(encoder, OpenedEncoder) is (kind != "cut")
    found = encoder.encode(MIXED, PROMPT)
    assert np.abs(found - theirs(folder)).max() < 1e-5
    assert found.shape == (len(MIXED), encoder.dimension)
    assert encoder.spec.similarity == options.get("similarity_fn_name", "cosine")
    assert content_hash(folder) != content_hash(bert_folder(tmp_path / "bert", normalize=False))
    encoder.save(tmp_path / "again")
    assert np.abs(Encoder.load(tmp_path / "again").encode(MIXED, PROMPT) - found).max() < 1e-6


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "modernbert", "llama", "convbert"])
def test_any_kind_of_transformer_is_encoded_as_sentence_transformers_does(tmp_path: Path, kind: str) -> None:
    folder = bert_folder(tmp_path / "model", kind=kind)
    encoder = Encoder.load(folder)
    assert isinstance(encoder, OpenedEncoder) is (kind == "convbert")  # its embeddings depend on the padding
    assert np.abs(encoder.encode(MIXED, PROMPT) - opened(folder).encode(MIXED, prompt=PROMPT)).max() < 1e-5


def test_texts_end_at_the_positions_whatever_the_folder_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, texts = bert_folder(tmp_path / "model"), ["word " * 500, "a file"]
    edit(folder / "sentence_bert_config.json", max_seq_length=512)
    with caplog.at_level(logging.WARNING, logger="boom_utils"):
        found = Encoder.load(folder).encode(texts)
    assert "64 tokens, its positions, not at 512" in caplog.text
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    assert np.array_equal(Encoder.load(folder).encode(texts), found)
    assert np.abs(found - theirs(folder, texts, prompt="")).max() < 1e-5
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    edit(folder / "sentence_bert_config.json", max_seq_length=512)
    assert np.abs(Encoder.load(folder).encode(texts) - found).max() < 1e-5


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mode", ["mean", "lasttoken"])
def test_a_text_without_tokens_is_the_zero_vector_as_in_sentence_transformers(
    tmp_path: Path, mode: str, packed: bool
) -> None:
    folder = bert_folder(tmp_path / "model", pooling=mode)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", **{**tokenizer, "post_processor": None})
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    texts = ["", "a file", "the mean of an array"]
    encoder = Encoder.load(folder)
    encoder.use_packing(packed)
    found = encoder.encode(texts)
    assert not found[0].any() and found[1:].any(axis=1).all()
    assert np.abs(found - theirs(folder, texts, prompt="")).max() < 1e-5
    assert not encoder.encode(["", ""]).any()
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    slower = Encoder.load(folder)
    assert np.abs(slower.encode(texts) - found).max() < 1e-5 and not slower.encode([""]).any()


@pytest.mark.parametrize("own_layout", [True, False])
def test_an_adapter_folder_is_its_base_with_the_adapter_added(tmp_path: Path, own_layout: bool) -> None:
    from peft import LoraConfig, get_peft_model

    base = bert_folder(tmp_path / "base")
    model, adapter = opened(base), tmp_path / "adapter"
    with torch.random.fork_rng(devices=[]):
        wrapped = get_peft_model(model[0].model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    wrapped.save_pretrained(adapter)
    if own_layout:
        model.tokenizer.save_pretrained(adapter)
        (adapter / "1_Pooling").mkdir()
        model[1].save_config(str(adapter / "1_Pooling"))
        for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            (adapter / name).write_bytes((base / name).read_bytes())
    edit(adapter / ADAPTER_CONFIG, base_model_name_or_path="../base")
    expected = model.encode(MIXED, prompt=PROMPT)
    assert np.abs(Encoder.load(adapter).encode(MIXED, PROMPT) - expected).max() < 1e-5
    assert np.abs(Encoder.load(base).encode(MIXED, PROMPT) - expected).max() > 1e-2
    before = content_hash(adapter)
    assert before != content_hash(base)
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("query", "question"): value for name, value in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    assert content_hash(adapter) != before
    with pytest.raises(CheckpointError, match=r"(?s)does not fit its base.*query.*question"):
        Encoder.load(adapter)
    edit(adapter / ADAPTER_CONFIG, base_model_name_or_path="someone/else")
    with pytest.raises(CheckpointError, match="not a folder on this computer"):
        Encoder.load(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        content_hash(adapter)


@pytest.mark.parametrize(
    ("prompts", "default", "own"),
    [
        ({"query": "query: ", "document": "passage: "}, "query", ("query: ", "passage: ")),
        ({"query": "query: ", "passage": "passage: "}, None, ("query: ", "passage: ")),
        ({"all": "text: "}, "all", ("text: ", "text: ")),
        ({"query": "", "document": "", "toy": PROMPT}, None, ("", "")),
        ({"query": PROMPT, "document": ""}, None, ("", "")),
    ],
)
def test_prompts_of_a_models_own_are_those_it_puts_before_all_queries_and_all_documents(
    prompts: dict[str, str], default: str | None, own: tuple[str, str]
) -> None:
    assert EncoderSpec("mean", True, 8, prompts, default).own_prompts == own


# --- what is unsafe or incomplete -------------------------------------------------------------------------------------


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


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def with_module(kind: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        own = {"idx": 3, "name": "3", "path": "3_Own", "type": kind}
        (folder / "modules.json").write_text(json.dumps([*read_json(folder / "modules.json"), own]))

    return add


REFUSED: dict[str, Callable[[Path], Any]] = {
    "code of its own": lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"}),
    r"code of its own(.|\n)*evil\.Module": with_module("evil.Module"),
    "NoSuchModule": with_module("sentence_transformers.models.NoSuchModule"),
    r"modules\.json is missing": lambda folder: (folder / "modules.json").unlink(),
    "no tokenizer": without_tokenizer,
    r"no model folder(.|\n)*encoder": shutil.rmtree,
}


@pytest.mark.promise(20)
@pytest.mark.parametrize("said", REFUSED)
def test_a_folder_that_is_incomplete_or_brings_code_is_refused(encoder_folder: Path, said: str) -> None:
    REFUSED[said](encoder_folder)
    with pytest.raises(CheckpointError, match=said):
        Encoder.load(encoder_folder)
