"""LoRA adapters in a recipe: each is the model that peft makes of it, and brings its own tokenizer and modules."""

import shutil

import pytest
import torch
from conftest import TEXTS, tiny_config
from safetensors.torch import load_file, save_file
from test_merging_checkpoints import change_json, write_json

from boom_utils.errors import CheckpointError, MergeError
from boom_utils.merging.checkpoints import AdapterCheckpoint
from boom_utils.merging.family import open_checkpoints, reconcile
from boom_utils.merging.recipe import load_recipe
from boom_utils.merging.writer import merge
from boom_utils.training.base_model import random_encoder

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def base(tmp_path):
    """A tiny Qwen3 in the layout of sentence-transformers, with a head of its own that no state goes through."""
    random_encoder(TEXTS, tiny_config(), {}).save(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    save_file({**tensors, "score.weight": torch.ones(3)}, tmp_path / "base" / "model.safetensors")
    return tmp_path / "base"


def train_adapter(base, folder, seed=1, **changes):
    """An adapter with random matrices, saved by peft; returns the tensors of the model peft makes of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **changes)
        model = get_peft_model(Qwen3Model.from_pretrained(base), config)
        for name, weight in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    change_json(folder / "adapter_config.json", base_model_name_or_path="../base")
    return dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"use_dora": True}])
def test_an_adapter_is_read_as_the_model_that_peft_makes_of_it(base, tmp_path, changes):
    expected = train_adapter(base, tmp_path / "adapter", **changes)
    model = AdapterCheckpoint(base, tmp_path / "adapter")
    assert set(model.tensors) == {*expected, "score.weight"}
    assert model.read("score.weight").tolist() == [1, 1, 1]
    for name, tensor in expected.items():
        assert torch.equal(torch.tensor(model.read(name)), tensor.reshape(-1))
    assert model.read("norm.weight", 5, 3).tolist() == expected["norm.weight"][5:8].tolist()


@pytest.mark.promise(24)
def test_adapters_merge_like_the_models_they_stand_for_into_a_whole_model_of_their_base(base, tmp_path):
    for seed in (1, 2):
        tensors = train_adapter(base, tmp_path / f"adapter{seed}", seed)
        whole = shutil.copytree(base, tmp_path / f"whole{seed}")
        save_file({**tensors, "score.weight": torch.ones(3)}, whole / "model.safetensors")
    text = "merge_method: multislerp\nbase_model: base\nmodels:\n"
    facts = []
    for name, first, second in (("named", "adapter1", "base+adapter2"), ("whole", "whole1", "whole2")):
        models = "".join(f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in (first, second))
        (tmp_path / f"{name}.yaml").write_text(text + models)
        facts.append(merge(load_recipe(tmp_path / f"{name}.yaml"), tmp_path / f"out-{name}"))
    out = tmp_path / "out-named"
    merge(load_recipe(out / "mergekit_config.yaml"), tmp_path / "again")
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("out-named", "out-whole", "again")}
    assert len(weights) == 1
    assert facts[0]["notes"] == facts[1]["notes"]
    assert {"modules.json", "1_Pooling", "tokenizer.json", "config.json"} <= {path.name for path in out.iterdir()}
    assert not (out / "adapter_config.json").exists()
    assert "../base+../adapter2" in (out / "mergekit_config.yaml").read_text()
    folders = [tmp_path / "adapter1", tmp_path / "adapter2"]
    write_json(folders[1] / "tokenizer.json", {"model": {"vocab": {"z": 0}}})
    with pytest.raises(MergeError, match=r"adapter2: tokenizer\.json: model\.vocab"):
        reconcile(open_checkpoints(folders))


def unlink(folder):
    (folder / "adapter_model.safetensors").unlink()


def pickled(name):
    def damage(folder):
        if "/" not in name:
            unlink(folder)
        write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "2_Dense", "type": "models.Dense"}])
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"a pickle")

    return damage


def foreign(folder):
    stored = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "query"): tensor for name, tensor in stored.items()}
    save_file(renamed, folder / "adapter_model.safetensors")


def lost(folder):
    change_json(folder / "adapter_config.json", base_model_name_or_path="someone/model")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *(
            pytest.param(pickled(name), rf"pickled(.|\n)*{name}", marks=pytest.mark.promise(20))
            for name in ("adapter_model.bin", "2_Dense/pytorch_model.bin")
        ),
        (unlink, "no weights"),
        (foreign, "does not fit its base"),
        (lost, r"BASE\+ADAPTER"),
    ],
)
def test_an_adapter_that_is_pickled_or_fits_no_base_is_refused(base, tmp_path, damage, said):
    train_adapter(base, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoints([tmp_path / "adapter"])
