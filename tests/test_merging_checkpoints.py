import json
import logging
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bert_folder
from safetensors.torch import load_file, save_file

from boom_utils.errors import CheckpointError, MergeError
from boom_utils.merging.checkpoints import Checkpoint
from boom_utils.merging.family import open_checkpoints, reconcile
from boom_utils.merging.gram import family_grams
from boom_utils.merging.planner import geometry_of
from boom_utils.merging.recipe import load_recipe, make_recipe
from boom_utils.merging.writer import merge
from boom_utils.study.push import Model, prepare

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


def change_json(path: Path, *dropped: str, **changes: object) -> None:
    found = (json.loads(path.read_text()) if path.exists() else {}) | changes
    write_json(path, {key: value for key, value in found.items() if key not in dropped})


def change_tensors(folder: Path, prefix: str = "", dropped: str = "-", **added: torch.Tensor) -> None:
    """Save the weights anew: other names, without some tensors, with more."""
    tensors = load_file(folder / "model.safetensors") | {name.replace("__", "."): one for name, one in added.items()}
    kept = {name if name.startswith("cls.") else prefix + name: one for name, one in tensors.items()
            if not name.startswith(dropped)}  # fmt: skip
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def old_words(folder: Path) -> None:
    """As sentence-transformers 2 and transformers 4 wrote it."""
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [f"sentence_transformers.models.{module['type'].rsplit('.', 1)[-1]}" for module in modules]
    write_json(folder / "modules.json", [m | {"type": kind} for m, kind in zip(modules, kinds, strict=True)])
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize" / "config.json").unlink()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    newer = ("tie_word_embeddings", "add_cross_attention", "is_decoder", "classifier_dropout", "dtype")
    change_json(folder / "config.json", *newer, position_embedding_type="absolute", gradient_checkpointing=False)


def words_only(folder: Path) -> None:
    """A tokenizer as vocab.txt, as BERT's was."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocab, key=vocab.get)))
    (folder / "tokenizer.json").unlink()


def last_call(folder: Path) -> None:
    """What a call to the tokenizer leaves in its file, and files that other versions write beside it."""
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    change_json(folder / "tokenizer.json", truncation=truncation)
    change_json(folder / "tokenizer_config.json", "backend", name_or_path="elsewhere", model_max_length=512)
    write_json(folder / "special_tokens_map.json", {"unk_token": "[UNK]", "cls_token": "[CLS]"})
    change_json(folder / "sentence_bert_config.json", max_seq_length=48)


RESPELT = {
    "a buffer": lambda f: change_tensors(f, embeddings__position_ids=torch.arange(64)[None]),
    "no unused head": lambda f: change_tensors(f, dropped="pooler."),
    "a prefix and another head": lambda f: change_tensors(f, "bert.", "pooler.", cls__bias=torch.zeros(7)),
    "names of a compiled module": lambda f: change_tensors(f, "_orig_mod."),
    "old words": old_words,
    "vocab.txt": words_only,
    "the tokenizer's last call": last_call,
}
DIFFERENT = {
    "truncate_dim": ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim: 8, in a None"),
    "similarity": ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "'dot', in a 'cosine'"),
    "prompts": ("config_sentence_transformers.json", {"prompts": {"query": "q: "}}, "prompts.query: 'q: ', in a ''"),
    "include_prompt": (
        "1_Pooling/config.json",
        {"include_prompt": False},
        "include_prompt: false: 'asked for', in a None",
    ),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case: true: 'asked for', in a None"),
    "length": ("sentence_bert_config.json", {"max_seq_length": 32}, "max_seq_length: 32, in a 48"),
    "casing": ("tokenizer_config.json", {"do_lower_case": False}, "tokenizer.json: normalizer: "),
    "truncation": ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side: 'left', in a 'right'"),
    "activation": ("config.json", {"hidden_act": "relu"}, "hidden_act: 'relu', in a 'gelu'"),
    "Normalize": (
        "2_Normalize/config.json",
        {"module_output_name": "x"},
        "Normalize: module_output_name x: 'asked for', in a None",
    ),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert") / "a")


@pytest.fixture(scope="module")
def expected(bert) -> np.ndarray:
    return embeddings(bert)


@pytest.fixture
def siblings(bert, tmp_path) -> list[Path]:
    return [shutil.copytree(bert, tmp_path / name) for name in "ab"]


def merged(out: Path, *folders: Path) -> dict:
    models = [{"model": folder, "parameters": {"weight": 1}} for folder in folders]
    return merge(make_recipe({"merge_method": "linear", "models": models}), out)


def embeddings(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    with torch.random.fork_rng(devices=[]):  # a head that is not in the folder is drawn, and not read
        return SentenceTransformer(str(folder), device="cpu").encode(["Sort the values", "sort", "split " * 70])


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
    """What a refusal lists, line by line; nothing where the models can be merged."""
    try:
        reconcile(open_checkpoints(folders), [Checkpoint(base)] if base else [])
    except MergeError as error:
        return [line.removeprefix("    - ") for line in str(error).splitlines() if line.startswith("    - ")]
    return []


@pytest.mark.promise(26)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", RESPELT)
def test_what_differs_only_in_spelling_is_merged_and_said(siblings, expected, tmp_path, kind, turned, caplog):
    RESPELT[kind](siblings[1])
    with caplog.at_level(logging.INFO):
        facts = merged(tmp_path / "out", *(reversed(siblings) if turned else siblings))
    assert facts["reconciled"]
    assert all(note in caplog.text for note in facts["reconciled"])
    assert np.abs(embeddings(tmp_path / "out") - expected).max() < 1e-6
    one, two = facts["members"]
    assert one["fingerprint"] == two["fingerprint"]


@pytest.mark.promise(23)
@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_differs_in_meaning_is_refused_with_both_values(siblings, tmp_path, kind):
    file, changes, said = DIFFERENT[kind]
    RESPELT["a buffer"](siblings[1])
    change_json(siblings[1] / file, **changes)
    with pytest.raises(MergeError) as caught:
        merged(tmp_path / "out", *siblings)
    assert said in str(caught.value)
    assert str(caught.value).count("\n    - ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_recipes_over_models_that_users_bring(cases, tmp_path):
    recipes = {path.stem: load_recipe(path) for path in sorted((cases / "merge").glob("*.yaml"))}
    with pytest.raises(MergeError, match=r"truncate_dim: 8|truncate_dim: None, in truncate_dim 8"):
        merge(recipes.pop("different_truncation"), tmp_path / "out")
    facts = merge(recipes.pop("leaves_out_what_a_run_left"), tmp_path / "out")
    assert facts["left_out"] == ["README.md", "eval/", "runs/", "train_results.json", "wandb/"]
    assert not [path for path in (tmp_path / "out").rglob("*") if re.search("wandb|runs|eval|results", str(path.name))]
    assert "some-host" not in json.dumps(facts)
    assert prepare(Model(tmp_path / "out", (tmp_path / "out" / "README.md").read_text()), "me/merged").files
    assert not recipes
    plain = cases / "models" / "plain"
    same = {"compiled_names", "no_stated_length", "trainer_output", "vocab_txt_only"}
    found = {path.name: differences(plain, path) for path in (cases / "models").iterdir() if path != plain}
    assert {name for name, problems in found.items() if not problems} == same


def test_a_tied_head_is_the_embedding_and_left_out(tmp_path):
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b")
    change_tensors(b, lm_head__weight=tensors_of(1)["embed_tokens.weight"])
    assert differences(a, b) == []
    change_tensors(b, lm_head__weight=torch.zeros(6, 4))
    assert differences(a, b) == ["b: lm_head.weight is not the embedding that config.json ties it to"]
    change_json(b / "config.json", tie_word_embeddings=False)
    tied = "b: config.json: tie_word_embeddings: False, in a True"
    assert differences(a, b) == ["b: has lm_head.weight, a has not", tied]


SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in range(1, 5)]
LIES = {"embed_tokens.weight": SHARDS[1], "layers.0.mlp.up_proj.weight": SHARDS[0], "absent.weight": SHARDS[2]}
OUTSIDE = ["../other/model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..", "", "a\\b"]
BAD_SHARDS = [
    *(({"norm.weight": place}, (), f"missing: {re.escape(str(place))}") for place in [*OUTSIDE, 3]),
    *((index, (), "names none") for index in ([], None)),
    (LIES, (), r"absent\.weight: the index says(.|\n)*embed_tokens(.|\n)*layers\.0\.mlp\.up_proj\.weight: the index"),
    ({}, (f"-{SHARDS[0]}", f"+{SHARDS[3]}"), r"missing: model-00001(.|\n)*belongs to nothing: model-00004"),
    ({}, ("+model.safetensors",), "two sets of weights"),
]


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def bad_shards(index, files):
    def damage(folder: Path) -> None:
        found = shard(folder) | index if isinstance(index, dict) else index
        write_json(folder / "model.safetensors.index.json", {"weight_map": found})
        for change in files:
            save_file(tensors_of(2), folder / change[1:]) if change[0] == "+" else (folder / change[1:]).unlink()

    return damage


def pickled(name):
    def damage(folder: Path) -> None:
        if "/" not in name:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Payload()))

    return damage


def weights_are(content: bytes):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def raw_safetensors(header: object, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (2,), end: int = 8, start: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


TWICE = f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry("I64", (1,)))}}}'.encode()
DAMAGED = [
    *(b"", b"\0" * 7, struct.pack("<Q", 2**62) + b"{}", raw_safetensors(b"not json"), raw_safetensors(TWICE)),
    *(raw_safetensors({"a": one}) for one in (entry(end=800), entry(shape=(3,)), entry(shape=(2**40, 2**40)))),
    *(raw_safetensors({"a": one}) for one in (entry(shape=(-2,)), entry("F8_E4M3", (8,)))),
    raw_safetensors({"a": entry(), "b": entry()}),
    raw_safetensors({"a": entry(start=4, end=12)}, b"\0" * 12),
    *(raw_safetensors({"a": entry()}, b"\0" * size) for size in (4, 80)),
]
PICKLES = [
    "pytorch_model.bin",
    "model.pt",
    "model.ckpt",
    "model.pth",
    "model.safetensors",
    "1_Pooling/pytorch_model.bin",
]
BAD_FOLDERS = [
    *(pytest.param(bad_shards(index, files), said, marks=pytest.mark.promise(27)) for index, files, said in BAD_SHARDS),
    *(pytest.param(pickled(name), "pickled|cannot be read", marks=pytest.mark.promise(20)) for name in PICKLES),
    *(pytest.param(weights_are(content), r"model\.safetensors", marks=pytest.mark.promise(21)) for content in DAMAGED),
    (lambda f: torch.save(tensors_of(1), f / "model.safetensors"), "cannot be read"),
    (lambda f: change_json(f / "config.json", auto_map={"AutoModel": "modeling.Evil"}), "auto_map"),
    (lambda f: write_json(f / "modules.json", [{**MODULES[1], "path": "../b/1_Pooling"}]), "outside the model folder"),
    (lambda f: change_tensors(f, model__norm__weight=torch.ones(4)), r"model\.norm\.weight and norm\.weight"),
    (lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"), r"no weights(.|\n)*adapter_model"),
    (shutil.rmtree, "not found"),
]


@pytest.mark.parametrize(("damage", "said"), BAD_FOLDERS)
def test_a_folder_that_is_damaged_or_could_run_code_is_a_clean_error(tmp_path, monkeypatch, damage, said):
    monkeypatch.chdir(tmp_path)
    damage(folder := make_encoder(tmp_path / "a"))
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint(folder)
    assert "norm.weight:" not in str(caught.value)  # the one tensor that lies where the index says
    assert not (tmp_path / "canary").exists()


def test_a_weight_file_that_is_cut_short_while_it_is_open_is_an_error_and_no_crash(tmp_path):
    model = Checkpoint(make_folder(tmp_path / "a"))
    os.truncate(tmp_path / "a" / "model.safetensors", 300)
    with pytest.raises(CheckpointError, match="bytes too early"):
        model.read("norm.weight")


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
        reconcile(open_checkpoints([first, other]))
    text = str(caught.value)
    for part in (
        "b: has no norm.weight, a has",
        "b: has extra.weight, a has not",
        "b: layers.0.mlp.up_proj.weight has shape [4, 5], in a [5, 4]",
        "b: embed_tokens.weight is I32, in a F32",
        "b: config.json: vocab_size: 7, in a 6",
        "b: config.json: rope_parameters.rope_theta: 5.0, in a 10000.0",
        "b: tokenizer.json: model.vocab: ",
        "b: tokenizer.json: post_processor: ",
        "b: encoding: pooling: 'mean', in a 'lasttoken'",
        "b: encoding: normalize: False, in a True",
        "b: encoding: prompts.query: 'Q: ', in a 'q: '",
        "b: encoding: similarity: 'dot', in a 'cosine'",
        "b: encoding: max_seq_length: 64, in a 128",
    ):
        assert part in text
    assert text.count("\n    - ") == 13


@pytest.mark.promise(23)
@pytest.mark.parametrize(("file", "part"), [("tokenizer.json", "tokenizer.json"), ("modules.json", "encoding")])
def test_a_file_that_only_one_model_has_is_a_difference(tmp_path, file, part):
    first, other = make_encoder(tmp_path / "a"), make_encoder(tmp_path / "b")
    (other / file).unlink()
    assert f"b: {part}: missing, in a present" in differences(first, other)
    assert f"a: {part}: present, in b missing" in differences(other, first)


def test_the_same_settings_in_the_words_of_other_versions_are_no_difference(tmp_path):
    new, old = make_encoder(tmp_path / "new"), make_encoder(tmp_path / "old")
    rope = {"rope_theta": 10000.0, "rope_scaling": None, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
    change_json(old / "config.json", "rope_parameters", "dtype", **rope, transformers_version="4.51.0", is_decoder=None)
    change_json(new / "config.json", layer_types=["full_attention"])
    model = {**TOKENIZER["model"], "merges": ["a b"]}
    change_json(old / "tokenizer.json", model=model, truncation={"max_length": 9}, padding={"pad_id": 0})
    (new / "sentence_bert_config.json").unlink()  # the length is the tokenizer's then
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
    assert problem.startswith("b: encoding: 3_Dense/model.safetensors: ")


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
    assert any("encoding" in problem for problem in differences(members[0], base))


def test_models_of_one_name_are_told_apart(tmp_path):
    folders = [make_folder(tmp_path / name / "model") for name in ("a", "b")]
    assert [model.label for model in open_checkpoints(folders)] == ["a/model", "b/model"]


def test_integers_have_to_be_equal(tmp_path):
    for n, name in enumerate("ab"):
        change_tensors(make_folder(tmp_path / name), position_ids=torch.arange(3) + n)
    assert differences(tmp_path / "a", tmp_path / "b") == ["b: position_ids (I64, cannot be averaged) differs from a"]


def test_cosines_and_sizes_of_updates_are_those_of_whole_models(tmp_path):
    base = make_folder(tmp_path / "base", 0)
    members = [make_folder(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]
    models = (tensors_of(seed).values() for seed in range(4))
    flat = np.array([np.concatenate([tensor.numpy().ravel() for tensor in model]) for model in models], float)
    updates = flat[1:] - flat[0]
    length = np.linalg.norm(updates, axis=1)
    found = geometry_of(family_grams(open_checkpoints([base, *members]), has_base=True))
    assert np.allclose(found.cosines, updates @ updates.T / np.outer(length, length), rtol=1e-10)
    assert np.allclose(found.relative_updates, length / np.linalg.norm(flat[0]), rtol=1e-10)
    apart = np.linalg.norm(flat[1:, None] - flat[None, 1:], axis=2)
    assert np.allclose(found.distances, apart / np.linalg.norm(flat[0]), rtol=1e-8, atol=1e-9)
    assert found.layers == ("embedding", "layer 0", "after the layers")
