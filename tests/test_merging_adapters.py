import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_merging_checkpoints import make_encoder, write_json

from boom_utils.errors import CheckpointError, MergeError
from boom_utils.merging.checkpoints import AdapterCheckpoint
from boom_utils.merging.family import open_checkpoints, reconcile
from boom_utils.merging.recipe import load_recipe, make_recipe
from boom_utils.merging.writer import merge

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def base(tmp_path):
    """A tiny Qwen3 saved by transformers."""
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3Model(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train_adapter(base, folder, seed, **changes):
    """An adapter with random matrices, saved by peft; returns the tensors of the model peft makes of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(
            Qwen3Model.from_pretrained(base), LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **changes)
        )
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return dict(model.merge_and_unload().state_dict())


def read(model, name):
    """A whole tensor, in its shape."""
    return model.read(name).reshape(model.tensors[name].shape)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}},
                                     {"alpha_pattern": {"layers.1.mlp.down_proj": 1}}])  # fmt: skip
def test_an_adapter_is_read_as_the_model_that_peft_makes_of_it(base, tmp_path, changes):
    expected = train_adapter(base, tmp_path / "adapter", 1, **changes)
    model = AdapterCheckpoint(base, tmp_path / "adapter")
    assert set(model.tensors) == set(expected)
    plain = load_file(base / "model.safetensors")
    changed = {name for name in expected if not torch.equal(expected[name], plain[name])}
    assert changed == {name for name in expected if name.split(".")[-2] in TARGETS}
    for name, tensor in expected.items():
        found = read(model, name)
        assert found.shape == tensor.shape
        assert np.allclose(found, tensor.numpy(), rtol=1e-6, atol=1e-7)


def test_a_chunk_of_an_adapted_weight_is_that_part_of_the_whole(base, tmp_path):
    train_adapter(base, tmp_path / "adapter", 1)
    model = AdapterCheckpoint(base, tmp_path / "adapter")
    name = "layers.0.mlp.down_proj.weight"
    whole = read(model, name).reshape(-1)
    for start, size in ((0, 1), (5, 30), (23, 2), (24, 24), (100, 0), (380, 4)):
        assert np.allclose(model.read(name, start, size), whole[start : start + size], rtol=1e-12)


@pytest.mark.promise(24)
def test_adapters_merge_like_the_models_they_stand_for(base, tmp_path):
    adapters = [tmp_path / f"adapter{seed}" for seed in (1, 2)]
    wholes = [tmp_path / f"whole{seed}" for seed in (1, 2)]
    for seed, (adapter, whole) in enumerate(zip(adapters, wholes, strict=True), start=1):
        tensors = train_adapter(base, adapter, seed)
        whole.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, whole / "model.safetensors")
        (whole / "config.json").write_bytes((base / "config.json").read_bytes())
    text = "merge_method: multislerp\nbase_model: base\nmodels:\n"
    for name, first, second in (("named", "adapter1", "base+adapter2"), ("whole", "whole1", "whole2")):
        models = "".join(f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in (first, second))
        (tmp_path / f"{name}.yaml").write_text(text + models)
        facts = merge(load_recipe(tmp_path / f"{name}.yaml"), tmp_path / f"out-{name}")
    found, expected = (load_file(tmp_path / f"out-{name}" / "model.safetensors") for name in ("named", "whole"))
    assert set(found) == set(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7) for name in expected)
    assert set(facts["notes"]) == {name for name in expected if name.split(".")[-2] not in TARGETS}
    assert not (tmp_path / "out-named" / "adapter_config.json").exists()
    recipe = (tmp_path / "out-named" / "mergekit_config.yaml").read_text()
    assert "../base+../adapter2" in recipe
    merge(load_recipe(tmp_path / "out-named" / "mergekit_config.yaml"), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out-named" / "model.safetensors"
    ).read_bytes()


LORA = "base_model.model.layers.0.mlp.up_proj.lora_{}.weight"


def adapter_folder(folder, tensors=(), **changes):
    """An adapter of rank 1 on ../base."""
    folder.mkdir(exist_ok=True)
    fine = {LORA.format("A"): torch.ones(1, 4), LORA.format("B"): torch.ones(5, 1)}
    save_file(fine | dict(tensors), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "../base"}
    write_json(folder / "adapter_config.json", config | changes)
    return folder


def test_an_adapter_takes_tokenizer_and_modules_from_its_base_or_brings_its_own(tmp_path):
    make_encoder(tmp_path / "base", 0)
    folders = [adapter_folder(tmp_path / name) for name in ("one", "two")]
    models = [{"model": folder, "parameters": {"weight": 1}} for folder in folders]
    merge(make_recipe({"merge_method": "linear", "models": models}), tmp_path / "out")
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"modules.json", "1_Pooling", "tokenizer.json", "config.json"} <= kept
    (tmp_path / "two" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"z": 0}}}))
    with pytest.raises(MergeError, match=r"two: tokenizer\.json: model\.vocab"):
        reconcile(open_checkpoints(folders))


@pytest.mark.promise(20)
@pytest.mark.parametrize("name", ["adapter_model.bin", "2_Dense/pytorch_model.bin"])
def test_a_pickled_adapter_or_module_of_it_is_refused(tmp_path, name):
    make_encoder(tmp_path / "base", 0)
    folder = adapter_folder(tmp_path / "adapter")
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "2_Dense", "type": "models.Dense"}])
    open_checkpoints([folder])
    if "/" not in name:
        (folder / "adapter_model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match=rf"pickled(.|\n)*{name}"):
        open_checkpoints([folder])


@pytest.mark.parametrize(
    ("changes", "tensors", "said"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"bias": "all"}, {}, "bias"),
        ({"peft_type": "LOHA"}, {}, "LOHA"),
        ({"init_lora_weights": "pissa"}, {}, "changes the base"),
        ({}, {"base_model.model.norm.weight": torch.ones(4)}, "no LoRA matrix"),
        ({}, {"base_model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(1, 4)}, "lora_A .1, 4. cannot"),
        ({}, {LORA.format("A"): torch.ones(1, 3)}, "cannot be added to layers"),
        ({"base_model_name_or_path": "someone/model"}, {}, r"BASE\+ADAPTER"),
    ],
)
def test_an_adapter_that_is_more_than_two_matrices_a_weight_is_refused(tmp_path, changes, tensors, said):
    make_encoder(tmp_path / "base", 0)
    assert len(open_checkpoints([adapter_folder(tmp_path / "adapter")])[0].tensors) == 3
    with pytest.raises(CheckpointError, match=said):
        open_checkpoints([adapter_folder(tmp_path / "adapter", tensors, **changes)])
