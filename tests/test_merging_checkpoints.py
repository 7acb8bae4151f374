import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from boom_utils.errors import CheckpointError, MergeError
from boom_utils.merging.checkpoints import Checkpoint, compare_checkpoints, require_compatible
from boom_utils.merging.family import open_checkpoints
from boom_utils.merging.gram import family_grams
from boom_utils.merging.planner import geometry_of

CONFIG = {
    "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_size": 4, "vocab_size": 6, "num_hidden_layers": 1,
    "tie_word_embeddings": True, "dtype": "float32", "transformers_version": "5.23.0",
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}  # fmt: skip
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def tensors_of(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A model's tensors: a common part, and an update of one percent that depends on the seed (none for 0)."""
    made = {}
    shapes = {"embed_tokens.weight": (6, 4), "layers.0.mlp.up_proj.weight": (5, 4), "norm.weight": (4,)}
    for n, (name, shape) in enumerate(shapes.items()):
        common = torch.randn(shape, generator=torch.Generator().manual_seed(n))
        update = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + n))
        made[name] = (common + (0.01 * update if seed else 0)).to(dtype)
    return made


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_folder(folder: Path, seed: int = 1, **changes: object) -> Path:
    """A plain model folder: config.json and model.safetensors; ``changes`` go into the config."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG | changes)
    save_file(tensors_of(seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def make_encoder(folder: Path, seed: int = 1) -> Path:
    """A folder in the sentence-transformers layout."""
    make_folder(folder, seed)
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 128})
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 4, "pooling_mode": "lasttoken"})
    prompts = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": None}
    write_json(folder / "config_sentence_transformers.json", prompts)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    return folder


def change_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def shard(folder: Path) -> dict[str, str]:
    """Split a folder's weights into one file per tensor; returns the index."""
    (folder / "model.safetensors").unlink()
    index = {}
    for n, (name, tensor) in enumerate(tensors_of(1).items(), start=1):
        index[name] = f"model-{n:05d}-of-00003.safetensors"
        save_file({name: tensor}, folder / index[name])
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return index


def differences(*folders: Path, base: Path | None = None) -> list[str]:
    return compare_checkpoints(open_checkpoints(folders), [Checkpoint(base)] if base else [])


def fingerprint(model: Checkpoint) -> str:
    return family_grams([model], has_base=False).fingerprints[0]


def test_names_with_and_without_prefix_are_one_name(tmp_path):
    flat = Checkpoint(make_folder(tmp_path / "flat"))
    make_folder(tmp_path / "prefixed")
    save_file({f"model.{name}": t for name, t in tensors_of(1).items()}, tmp_path / "prefixed" / "model.safetensors")
    prefixed = Checkpoint(tmp_path / "prefixed")
    assert list(flat.tensors) == list(prefixed.tensors) == sorted(tensors_of(1))
    assert prefixed.tensors["norm.weight"].stored == "model.norm.weight"
    assert compare_checkpoints([flat, prefixed]) == []
    assert fingerprint(flat) == fingerprint(prefixed) != fingerprint(Checkpoint(make_folder(tmp_path / "other", 2)))


def test_one_name_for_two_tensors_is_refused(tmp_path):
    make_folder(tmp_path / "a")
    tensors = tensors_of(1)
    save_file({**tensors, "model.norm.weight": tensors["norm.weight"].clone()}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight and norm\.weight"):
        Checkpoint(tmp_path / "a")


def test_a_tied_head_is_the_embedding_and_left_out(tmp_path):
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "b")
    tensors = tensors_of(1)
    save_file(
        {**tensors, "lm_head.weight": tensors["embed_tokens.weight"].clone()}, tmp_path / "b" / "model.safetensors"
    )
    assert differences(tmp_path / "a", tmp_path / "b") == []
    save_file({**tensors, "lm_head.weight": torch.zeros(6, 4)}, tmp_path / "b" / "model.safetensors")
    assert differences(tmp_path / "a", tmp_path / "b") == [
        "b: lm_head.weight is not the embedding that config.json ties it to"
    ]
    change_json(tmp_path / "b" / "config.json", tie_word_embeddings=False)
    assert differences(tmp_path / "a", tmp_path / "b") == [
        "b: has lm_head.weight, a has not",
        "b: config.json: tie_word_embeddings: None, in a True",
    ]


@pytest.mark.promise(27)
def test_shards_are_read_as_one_model(tmp_path):
    whole = Checkpoint(make_folder(tmp_path / "whole"))
    make_folder(tmp_path / "shards")
    shard(tmp_path / "shards")
    shards = Checkpoint(tmp_path / "shards")
    assert fingerprint(shards) == fingerprint(whole)
    assert np.array_equal(shards.read("norm.weight"), whole.read("norm.weight"))


@pytest.mark.promise(27)
@pytest.mark.parametrize(
    "outside", ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..", "", "a\\b"]
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, outside):
    make_folder(tmp_path / "other")
    index = shard(make_folder(tmp_path / "a"))
    write_json(tmp_path / "a" / "model.safetensors.index.json", {"weight_map": {**index, "norm.weight": outside}})
    with pytest.raises(CheckpointError, match="outside the model folder"):
        Checkpoint(tmp_path / "a")


@pytest.mark.promise(27)
def test_an_index_that_lies_about_its_shards_is_refused(tmp_path):
    folder = make_folder(tmp_path / "a")
    index = shard(folder)
    first, second, third = index
    swapped = {**index, first: index[second], "absent.weight": index[third]}
    write_json(folder / "model.safetensors.index.json", {"weight_map": {**swapped, second: index[first]}})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    assert all(f"- {name}: the index says" in str(caught.value) for name in (first, second, "absent.weight"))
    assert third not in str(caught.value)


@pytest.mark.promise(27)
def test_missing_and_extra_shards_are_refused(tmp_path):
    folder = make_folder(tmp_path / "a")
    index = shard(folder)
    shutil.copy(folder / index["norm.weight"], folder / "model-00004-of-00003.safetensors")
    (folder / index["embed_tokens.weight"]).unlink()
    with pytest.raises(CheckpointError, match=r"missing: model-00001(.|\n)*belongs to nothing: model-00004"):
        Checkpoint(folder)


@pytest.mark.promise(27)
@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": {"norm.weight": 3}}, {"weight_map": []}])
def test_a_malformed_index_is_refused(tmp_path, index):
    folder = make_folder(tmp_path / "a")
    shard(folder)
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match="malformed"):
        Checkpoint(folder)


def test_two_sets_of_weights_are_refused(tmp_path):
    folder = make_folder(tmp_path / "a")
    shard(folder)
    save_file(tensors_of(2), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="two sets of weights"):
        Checkpoint(folder)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


@pytest.mark.promise(20)
@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pth", "model.safetensors", "1_Pooling/pytorch_model.bin"],
)
def test_a_pickle_is_refused_and_its_payload_does_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = make_encoder(tmp_path / "a")
    if "/" not in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match=r"pickled|cannot be read"):
        Checkpoint(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.promise(20)
def test_a_zip_called_safetensors_and_a_model_with_code_are_refused(tmp_path):
    torch.save(tensors_of(1), make_folder(tmp_path / "zip") / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint(tmp_path / "zip")
    with pytest.raises(CheckpointError, match="auto_map"):
        Checkpoint(make_folder(tmp_path / "code", auto_map={"AutoModel": "modeling.Evil"}))


def raw_safetensors(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.promise(21)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**62) + b"{}",
        raw_safetensors(b"not json"),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}),
        raw_safetensors({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
        raw_safetensors({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}),
        raw_safetensors(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
        ),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12),
        raw_safetensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}),
        raw_safetensors({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4),
        raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 80),
    ],
)
def test_a_damaged_weight_file_is_a_clean_error(tmp_path, content):
    (make_folder(tmp_path / "a") / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint(tmp_path / "a")


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(CheckpointError, match="not found"):
        Checkpoint(tmp_path / "absent")
    folder = make_folder(tmp_path / "a")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no weights(.|\n)*adapter_model"):
        Checkpoint(folder)


@pytest.mark.promise(23)
def test_every_difference_between_models_is_listed_at_once(tmp_path):
    first, other = make_encoder(tmp_path / "a"), make_encoder(tmp_path / "b")
    tensors = tensors_of(2)
    del tensors["norm.weight"]
    tensors["layers.0.mlp.up_proj.weight"] = torch.zeros(4, 5)
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"].int()
    save_file({**tensors, "extra.weight": torch.zeros(1)}, other / "model.safetensors")
    change_json(other / "config.json", vocab_size=7, rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
    model = {**TOKENIZER["model"], "vocab": {"a": 1, "b": 0, "ab": 2}}
    change_json(other / "tokenizer.json", model=model, post_processor={"type": "ByteLevel"})
    change_json(other / "1_Pooling" / "config.json", pooling_mode="mean")
    write_json(other / "modules.json", MODULES[:2])
    change_json(other / "config_sentence_transformers.json", prompts={"query": "Q: "}, similarity_fn_name="dot")
    change_json(other / "sentence_bert_config.json", max_seq_length=64)
    with pytest.raises(MergeError) as caught:
        require_compatible(open_checkpoints([first, other]))
    text = str(caught.value)
    for part in (
        "b: has no norm.weight, a has",
        "b: has extra.weight, a has not",
        "b: layers.0.mlp.up_proj.weight has shape [4, 5], in a [5, 4]",
        "b: embed_tokens.weight is I32, in a F32",
        "b: config.json: vocab_size: 7, in a 6",
        "b: config.json: rope.rope_theta: 5.0, in a 10000.0",
        "b: tokenizer.json: model.vocab: ",
        "b: tokenizer.json: post_processor: ",
        "b: 1_Pooling/config.json: pooling_mode: 'mean', in a 'lasttoken'",
        "b: modules.json: module 2: None, in a 'Normalize in 2_Normalize'",
        "b: config_sentence_transformers.json: prompts.query: 'Q: ', in a 'q: '",
        "b: config_sentence_transformers.json: similarity_fn_name: 'dot', in a 'cosine'",
        "b: sentence_bert_config.json: max_seq_length: 64, in a 128",
    ):
        assert part in text
    assert text.count("\n    - ") == 13


@pytest.mark.promise(23)
@pytest.mark.parametrize("file", ["tokenizer.json", "modules.json"])
def test_a_file_that_only_one_model_has_is_a_difference(tmp_path, file):
    first, other = make_encoder(tmp_path / "a"), make_encoder(tmp_path / "b")
    (other / file).unlink()
    assert f"b: {file}: missing, in a present" in differences(first, other)
    assert f"a: {file}: present, in b missing" in differences(other, first)


def test_the_same_settings_in_the_words_of_other_versions_are_no_difference(tmp_path):
    new, old = make_encoder(tmp_path / "new"), make_encoder(tmp_path / "old")
    config = {
        **CONFIG,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
    }
    config |= {"architectures": ["Qwen3ForCausalLM"], "transformers_version": "4.51.0", "_name_or_path": "x"}
    del config["rope_parameters"], config["dtype"]
    write_json(old / "config.json", config)
    change_json(new / "config.json", layer_types=["full_attention"])
    model = {**TOKENIZER["model"], "merges": ["a b"]}
    change_json(old / "tokenizer.json", model=model, truncation={"max_length": 9}, padding={"pad_id": 0})
    pooling = {"word_embedding_dimension": 4, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    write_json(old / "1_Pooling" / "config.json", pooling)
    change_json(new / "1_Pooling" / "config.json", include_prompt=True)
    (new / "sentence_bert_config.json").unlink()  # the length is the tokenizer's then
    write_json(
        old / "modules.json", [{**m, "type": m["type"].replace(".base.modules.transformer", "")} for m in MODULES]
    )
    assert differences(new, old) == []


@pytest.mark.promise(23)
def test_weights_of_a_dense_module_have_to_agree(tmp_path):
    first, other = make_encoder(tmp_path / "a"), make_encoder(tmp_path / "b")
    for n, folder in enumerate((first, other)):
        dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
        write_json(folder / "modules.json", [*MODULES, dense])
        (folder / "3_Dense").mkdir()
        save_file({"linear.weight": torch.full((2, 4), float(n))}, folder / "3_Dense" / "model.safetensors")
    (problem,) = differences(first, other)
    assert problem.startswith("b: 3_Dense/model.safetensors: sha256: ")


def test_modules_outside_the_folder_are_refused(tmp_path):
    folder = make_encoder(tmp_path / "a")
    write_json(folder / "modules.json", [*MODULES[:1], {**MODULES[1], "path": "../b/1_Pooling"}])
    with pytest.raises(CheckpointError, match="outside the model folder"):
        Checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["{", '"text"', "[3]", '[{"path": 3}]'])
def test_malformed_settings_are_a_clean_error_or_a_difference(tmp_path, file, content):
    first, other = make_encoder(tmp_path / "a"), make_encoder(tmp_path / "b")
    (other / file).write_text(content)
    try:
        assert differences(first, other)
    except CheckpointError as error:
        assert file.rsplit("/", 1)[-1] in str(error)


def test_a_base_that_is_no_embedding_model_needs_no_pooling(tmp_path):
    members = [make_encoder(tmp_path / name, seed) for seed, name in enumerate("ab", start=1)]
    base = make_folder(tmp_path / "base", 0)
    write_json(base / "tokenizer.json", TOKENIZER)
    assert differences(*members, base=base) == []
    change_json(base / "config.json", hidden_size=8)
    (base / "tokenizer.json").unlink()
    assert differences(*members, base=base) == [
        "base: config.json: hidden_size: 8, in a 4",
        "base: tokenizer.json: missing, in a present",
    ]
    assert any("1_Pooling" in problem for problem in differences(members[0], base))


def test_models_of_one_name_are_told_apart(tmp_path):
    folders = [make_folder(tmp_path / name / "model") for name in ("a", "b")]
    assert [model.label for model in open_checkpoints(folders)] == ["a/model", "b/model"]


def test_integers_have_to_be_equal(tmp_path):
    for n, name in enumerate("ab"):
        make_folder(tmp_path / name)
        tensors = {**tensors_of(1), "position_ids": torch.arange(3) + n}
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert differences(tmp_path / "a", tmp_path / "b") == ["b: position_ids (I64, cannot be averaged) differs from a"]


def test_cosines_and_sizes_of_updates_are_those_of_whole_models(tmp_path):
    base = make_folder(tmp_path / "base", 0)
    members = [make_folder(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]
    flat = np.array(
        [np.concatenate([t.numpy().ravel() for t in tensors_of(seed).values()]) for seed in range(4)], float
    )
    updates = flat[1:] - flat[0]
    length = np.linalg.norm(updates, axis=1)
    found = geometry_of(family_grams(open_checkpoints([base, *members]), has_base=True))
    assert np.allclose(found.cosines, updates @ updates.T / np.outer(length, length), rtol=1e-10)
    assert np.allclose(found.relative_updates, length / np.linalg.norm(flat[0]), rtol=1e-10)
    apart = np.linalg.norm(flat[1:, None] - flat[None, 1:], axis=2)
    assert np.allclose(found.distances, apart / np.linalg.norm(flat[0]), rtol=1e-8, atol=1e-9)
    assert found.layers == ("embedding", "layer 0", "after the layers")
