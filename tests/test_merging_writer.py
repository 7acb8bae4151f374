import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import HANGS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from test_merging_checkpoints import change_tensors, make_encoder, make_folder, shard, tensors_of

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.errors import MergeError
from boom_utils.merging import writer
from boom_utils.merging.gram import tensor_gram
from boom_utils.merging.methods import METHODS
from boom_utils.merging.recipe import METHOD_RULES, load_recipe, make_recipe
from boom_utils.merging.weight_files import DTYPES, TensorInfo, WeightWriter
from boom_utils.merging.writer import MergeOptions, merge, merge_all, round_once

PARITY = PROJECT_ROOT.parent / "shared" / "parity"
BF16_CASES = {"linear_bf16in_bf16out", "multislerp_bf16in_bf16out"}


def recipe_of(*folders, method="multislerp", weighted=True, **changes):
    parameters = [{"weight": n + 1.0} if weighted else {} for n in range(len(folders))]
    models = [{"model": folder, "parameters": own} for folder, own in zip(folders, parameters, strict=True)]
    return make_recipe({"merge_method": method, "models": models, **changes})


def merged_tensors(out):
    return load_file(out / "model.safetensors")


def digests(folder):
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def relative_l2(found, expected):
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.fixture
def encoders(tmp_path):
    return [make_encoder(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]


CASES = json.loads((PARITY / "index.json").read_text())["cases"] if (PARITY / "index.json").is_file() else []
# A frozen tensor stops mergekit; the kit keeps the base's.
BAD = [case["case"] for case in CASES if case.get("has_nan") or re.match(r"(err_|dup)(?!.*frozen)", case["case"])]
GOOD = [case["case"] for case in CASES if case["case"] not in BAD and "expected" in case]


@pytest.fixture
def parity(monkeypatch):
    if not CASES:
        pytest.skip("the reference outputs of mergekit (../shared/parity) are not on this machine")
    monkeypatch.chdir(PARITY)  # the paths of the recipes are relative to it
    return {case["case"]: case for case in CASES}


@pytest.mark.promise(25)
@pytest.mark.parametrize("name", GOOD or ["absent"])
def test_output_agrees_with_that_of_mergekit(parity, tmp_path, name, record_property):
    facts = merge(load_recipe(PARITY / parity[name]["config"]), tmp_path / "out")
    found, expected = merged_tensors(tmp_path / "out"), load_file(PARITY / parity[name]["expected"])
    kept = name != "multislerp_bf16_nodtype"  # mergekit computes and writes in the inputs' dtype then, the kit float32
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in expected.items()}
    assert {t.dtype for t in found.values()} == ({t.dtype for t in expected.values()} if kept else {torch.float32})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == (parity[name]["config_dtype"] if kept else "float32")
    if name == "multislerp_antipodal2":  # mergekit's own output is rounding noise; linear gives zero
        assert set(facts["notes"].values()) == {"the two directions cancel: merged linearly"}
        assert len(facts["notes"]) == len(found)
        assert not any(tensor.any() for tensor in found.values())
        return
    worst = max(relative_l2(found[key], expected[key]) for key in expected)
    record_property("relative_l2", worst)
    if name in BF16_CASES:  # the same float32 numbers, but for some that fall on the other side of a rounding boundary
        assert worst < 1e-3
        for key, there in expected.items():
            noise = 1e-6 * float(there.double().abs().max())  # of float32 sums, where terms cancel
            step = torch.finfo(torch.bfloat16).eps * there.double().abs()
            assert ((found[key].double() - there.double()).abs() <= step + noise).all()
    else:
        assert worst <= (1e-2 if name == "multislerp_bf16_nodtype" else 1e-6)
    assert facts["notes"] == {}


@pytest.mark.promise(25)
@pytest.mark.promise(22)
@pytest.mark.parametrize("name", BAD or ["absent"])
def test_what_mergekit_cannot_merge_is_an_error_and_leaves_nothing(parity, tmp_path, name):
    with pytest.raises(MergeError) as caught:
        merge(load_recipe(PARITY / parity[name]["config"]), tmp_path / "out")
    if parity[name].get("has_nan") and name == "multislerp_nan":
        assert parity[name]["has_nan"][0].removeprefix("model.") in str(caught.value)
        assert "in nan\n" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(22)
def test_tensors_frozen_in_every_model_stay_those_of_the_base(parity, tmp_path):
    facts = merge(load_recipe(PARITY / parity["err_multislerp_frozen3_base"]["config"]), tmp_path / "out")
    found, base = merged_tensors(tmp_path / "out"), load_file(PARITY / "inputs" / "base" / "model.safetensors")
    frozen = {f"model.{name}" for name in facts["notes"]}
    assert frozen == {name for name in found if torch.equal(found[name], base[name])}
    assert 0 < len(frozen) < len(found)


@pytest.mark.promise(24)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_model_merges_to_itself_bit_by_bit(tmp_path, dtype):
    folder = make_folder(tmp_path / "a")
    tensors = {**tensors_of(1, dtype), "signs": torch.tensor([-0.0, 0.0, 1e-40, -1e-7]).to(dtype)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    merge(recipe_of(folder, out_dtype=str(dtype).removeprefix("torch.")), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    merge(recipe_of(folder), tmp_path / "default")
    for name, found in merged_tensors(tmp_path / "default").items():
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(found.to(dtype), tensors[name])


@pytest.mark.promise(24)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_is_its_reference_rounded_once(tmp_path, method, dtype):
    rules, models = METHOD_RULES[method], [tensors_of(seed) for seed in range(4)]
    folders = [make_folder(tmp_path / f"m{seed}", seed) for seed in range(4)]
    members, on_base = [1, 2, 3][: rules.models[1]], rules.base == "required"
    changes = {"base_model": folders[0 if on_base else 1]} if on_base or rules.base == "member" else {}
    changes |= {"parameters": {"t": 0.3}} if method == "slerp" else {}
    weighted = "weight" in rules.of_models
    recipe = recipe_of(*(folders[n] for n in members), method=method, weighted=weighted, out_dtype=dtype, **changes)
    merge(recipe, tmp_path / "out")
    for name, found in merged_tensors(tmp_path / "out").items():
        rows = np.array([model[name].double().numpy().ravel() for model in models])
        gram = tensor_gram(name, rows[[*([0] if on_base else []), *members]], on_base, "wxyz")
        made_of = METHODS[method](gram, recipe.settings_at())
        exact = torch.from_numpy(made_of.members @ rows[members] + made_of.base * rows[0]).reshape(found.shape)
        assert found.dtype == getattr(torch, dtype)
        neighbours = [torch.nextafter(found, torch.full_like(found, edge)) for edge in (float("-inf"), float("inf"))]
        gap = torch.stack([(found.double() - other.double()).abs() for other in neighbours]).amax(0)
        assert ((found.double() - exact).abs() <= gap * (8 if dtype == "float64" else 0.5) * (1 + 1e-6)).all()


@pytest.mark.promise(24)
@pytest.mark.parametrize("method", ["linear", "multislerp", "linear_norm_matched", "karcher"])
def test_equal_models_merge_to_that_model_bit_by_bit(tmp_path, method):
    folders = [make_folder(tmp_path / name, 1) for name in "abc"]
    merge(recipe_of(*folders, method=method, weighted=method != "karcher"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folders[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_16_bits_is_done_once(dtype):
    # Just above the middle of two neighbours; rounded to float32 first, it would be the middle and go down to even.
    one = torch.tensor([1.0, -1.0], dtype=torch.float64)
    middle = one * (1 + torch.finfo(dtype).eps / 2)
    above = middle * (1 + 2.0**-40)
    assert torch.equal(above.to(dtype).double(), one)

    def rounded(values):
        short = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
        return torch.from_numpy(round_once(values.numpy(), short).view(np.int16)).view(dtype)

    assert torch.equal(rounded(above).double(), one * (1 + torch.finfo(dtype).eps))
    assert torch.equal(rounded(middle).double(), one)
    values = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact_in_float = values.float().double()
    assert torch.equal(rounded(exact_in_float), exact_in_float.to(dtype))
    kept = torch.tensor([0.0, -0.0, 1e-45, -1e-300, 65504.0], dtype=torch.float64)
    assert torch.equal(rounded(kept).signbit(), kept.signbit())


@pytest.mark.promise(26)
def test_a_merged_folder_holds_what_a_model_consists_of_and_nothing_else(tmp_path, encoders):
    top = "README.md record.json training_log.jsonl optimizer.pt pytorch_model.bin modeling.py .hidden data_config.json"
    others = "checkpoint-10/model.safetensors onnx/model.onnx extra/note.txt 1_Pooling/note.txt"
    for name in [*top.split(), *others.split()]:
        (encoders[0] / name).parent.mkdir(exist_ok=True)
        (encoders[0] / name).write_text("of the first member only")
    (encoders[0] / "LICENSE").write_text("terms")
    (tmp_path / "out").mkdir()  # an empty folder may be there
    facts = merge(recipe_of(*encoders, out_dtype="bfloat16"), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert (tmp_path / "out").stat().st_mode == encoders[0].stat().st_mode
    recipe = (tmp_path / "out" / "mergekit_config.yaml").read_text()
    assert str(tmp_path) not in recipe
    assert yaml.safe_load(recipe)["models"][1] == {"model": "../m2", "parameters": {"weight": 2.0}}
    merge(load_recipe(tmp_path / "out" / "mergekit_config.yaml"), tmp_path / "again")
    out = digests(tmp_path / "out")
    assert digests(tmp_path / "again") == out
    kept = {"1_Pooling/config.json", "config_sentence_transformers.json", "modules.json", "LICENSE",
            "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert set(out) == kept | {"config.json", "model.safetensors", "mergekit_config.yaml", "README.md"}
    assert all(out[name] == digests(encoders[0])[name] for name in kept)
    assert (tmp_path / "out" / "2_Normalize").is_dir()
    assert set(facts["left_out"]) == {*top.split(), "checkpoint-10/", "onnx/", "extra/", "1_Pooling/"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((encoders[0] / "config.json").read_text()) | {"dtype": "bfloat16"}


def test_the_output_does_not_depend_on_the_number_of_threads(tmp_path):
    folders = []
    for seed in range(3):
        folders.append(make_folder(tmp_path / f"m{seed}"))
        weight = torch.randn(700, 901, generator=torch.Generator().manual_seed(seed))
        save_file({"big.weight": weight}, folders[-1] / "model.safetensors")
    for count in (1, 4):
        merge(recipe_of(*folders), tmp_path / f"out{count}", MergeOptions(threads=count))
    assert digests(tmp_path / "out1") == digests(tmp_path / "out4")


def test_facts_say_what_was_merged(tmp_path, encoders):
    base = make_encoder(tmp_path / "base", 0)
    facts = merge(recipe_of(*encoders, base_model=base, dtype="float32"), tmp_path / "out")
    assert facts["method"] == "multislerp"
    assert [member["name"] for member in facts["members"]] == ["m1", "m2", "m3"]
    assert [member["weight"] for member in facts["members"]] == [1.0, 2.0, 3.0]
    assert np.allclose([member["used_weight"] for member in facts["members"]], [1 / 6, 2 / 6, 3 / 6])
    assert len({member["fingerprint"] for member in facts["members"]} | {facts["base"]["fingerprint"]}) == 4
    assert (facts["dtype"], facts["tensors"], facts["parameters"]) == (["F32"], 3, 48)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert str(tmp_path) not in json.dumps(facts)


@pytest.mark.promise(27)
def test_shards_merge_like_a_single_file(tmp_path):
    whole, shards, other = make_folder(tmp_path / "w"), make_folder(tmp_path / "s"), make_folder(tmp_path / "o", 2)
    shard(shards)
    merge(recipe_of(whole, other), tmp_path / "one", MergeOptions({whole: "a", other: "b"}))
    merge(recipe_of(shards, other), tmp_path / "two", MergeOptions({shards: "a", other: "b"}))
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one.pop("mergekit_config.yaml") != two.pop("mergekit_config.yaml")
    assert one == two
    assert not (tmp_path / "two" / "model.safetensors.index.json").exists()


def test_what_is_no_floating_point_number_is_carried_over(tmp_path):
    folders = [make_folder(tmp_path / name, seed) for seed, name in enumerate("ab", start=1)]
    for folder in folders:
        change_tensors(folder, ids=torch.arange(3), flag=torch.tensor(True))
    merge(recipe_of(*folders, out_dtype="bfloat16"), tmp_path / "out")
    found = merged_tensors(tmp_path / "out")
    assert torch.equal(found["ids"], torch.arange(3))
    assert found["flag"].item() is True
    assert found["norm.weight"].dtype == torch.bfloat16


@pytest.mark.promise(23)
def test_members_of_several_precisions_need_a_dtype_in_the_recipe_and_are_merged_at_their_own(tmp_path):
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    folders = [make_folder(tmp_path / f"m{seed}", seed) for seed in range(1, 5)]
    for seed, (folder, dtype) in enumerate(zip(folders, dtypes, strict=True), start=1):
        save_file(tensors_of(seed, dtype), folder / "model.safetensors")
    with pytest.raises(MergeError, match=r"m2: norm\.weight is BF16, in m1 F32; the recipe sets no dtype"):
        merge(recipe_of(*folders), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(recipe_of(*folders, method="linear", dtype="float32"), tmp_path / "out")
    models = [tensors_of(seed, dtype) for seed, dtype in enumerate(dtypes, start=1)]
    for name, found in merged_tensors(tmp_path / "out").items():
        assert torch.equal(found, sum((n + 1) / 10 * model[name].double() for n, model in enumerate(models)).float())


def test_an_output_in_use_is_refused_and_left_alone(tmp_path, encoders):
    for used in (tmp_path / "file", tmp_path / "folder" / "file"):
        used.parent.mkdir(exist_ok=True)
        used.write_text("mine")
    for out in (tmp_path / "file", tmp_path / "folder", encoders[0]):
        before = digests(tmp_path)
        with pytest.raises(MergeError, match="already exists") as caught:
            merge(recipe_of(*encoders), out)
        assert caught.value.exit_code == 2
        assert digests(tmp_path) == before
    with pytest.raises(MergeError, match="two merges have one output"):
        merge_all([(recipe_of(*encoders), tmp_path / "out"), (recipe_of(*encoders), tmp_path / "x" / ".." / "out")])


@pytest.mark.promise(26)
@pytest.mark.parametrize("step", ["write", "close", "recipe_yaml", "write_card"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_at_any_step_leaves_nothing_behind(tmp_path, encoders, monkeypatch, step, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()

    def fail(*args, **kwargs):
        if step != "close" or kwargs.get("complete", True):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WeightWriter if step in ("write", "close") else writer, step, fail)
    with pytest.raises(OSError, match="No space left"):
        merge(recipe_of(*encoders), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m1", "m2", "m3", *(["out"] if exists else [])]
    assert not exists or not any(out.iterdir())
    monkeypatch.undo()
    merge(recipe_of(*encoders), out)


def small_disk(folders, monkeypatch):
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 10))


def vanish(folders, monkeypatch):
    for folder in folders[1:]:
        shutil.rmtree(folder)


def too_large(folders, monkeypatch):
    for folder in folders:
        change_tensors(folder, big__weight=torch.tensor([1e6]))


def infinite(folders, monkeypatch):
    for folder, name in ((folders[0], "norm.weight"), (folders[2], "embed_tokens.weight")):
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[2] = float("inf")
        save_file(tensors, folder / "model.safetensors")


@pytest.mark.promise(22)
@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (small_disk, "not enough space"),
        (vanish, r"m2\n(.|\n)*m3"),
        (too_large, r"too large for F16(.|\n)*big\.weight"),
        (infinite, r"embed_tokens\.weight: NaN or infinity in m3(.|\n)*norm\.weight: NaN or infinity in m1"),
    ],
)
def test_what_cannot_be_merged_is_an_error_that_names_all_of_it_and_leaves_nothing(
    tmp_path, encoders, monkeypatch, happens, said
):
    recipe = recipe_of(*encoders, out_dtype="float16")
    happens(encoders, monkeypatch)
    with pytest.raises(MergeError, match=said):
        merge(recipe, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"m1", "m2", "m3"}


def test_the_file_written_is_the_one_safetensors_writes(tmp_path):
    names = ("b", "a", "ü", "scalar", "empty")
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.float64, torch.bool)
    shapes = ((3, 5), (7,), (2,), (), (0, 4))
    tensors = {name: torch.ones(shape).to(kind) for name, kind, shape in zip(names, kinds, shapes, strict=True)}
    shorts = dict(zip(names, ("F32", "BF16", "I64", "F64", "BOOL"), strict=True))
    written = WeightWriter(tmp_path, [TensorInfo(n, tmp_path, shorts[n], tuple(tensors[n].shape)) for n in names])
    for name in reversed(names):
        flat = tensors[name].reshape(-1)
        raw = (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy().view(DTYPES[shorts[name]])
        for start in reversed(range(0, len(raw), 4)):
            written.write(name, start, raw[start : start + 4])
    written.close()
    assert (tmp_path / "model.safetensors").read_bytes() == save(tensors, {"format": "pt"})


@pytest.mark.promise(26)
@pytest.mark.parametrize("method", ["multislerp", "sce"])
def test_a_merge_holds_a_chunk_and_not_the_model(tmp_path, method):
    # In another process: the peak of this one belongs to all tests before.
    folders = [make_folder(tmp_path / f"m{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        weight = torch.randn(40_000, 1000, generator=torch.Generator().manual_seed(seed))
        save_file({"big.weight": weight}, folder / "model.safetensors")
    code = """
import sys, pathlib
from boom_utils.merging import recipe, writer
def anonymous():
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) // 1024
seen, write = [], writer.WeightWriter.write
def watched(*arguments):
    write(*arguments)
    seen.append(anonymous())
writer.WeightWriter.write = watched
models = [{"model": path, "parameters": {"weight": 1}} for path in sys.argv[2:4]]
changes = {"base_model": models.pop()["model"], "parameters": {}} if sys.argv[1] == "sce" else {}
models = models if not changes else [{"model": models[0]["model"]}]
made = recipe.make_recipe({"merge_method": sys.argv[1], "models": models, **changes})
writer.merge(made, pathlib.Path(sys.argv[4]))
print(max(seen))
"""
    if not Path("/proc/self/status").is_file():
        pytest.skip("anonymous memory is read from /proc")
    command = [sys.executable, "-c", code, method, *map(str, folders), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS, cwd=PROJECT_ROOT)
    assert int(done.stdout) < 300  # MiB, all libraries and the compiler included; the two models and the result: 458


@pytest.mark.promise(26)
def test_many_merges_are_made_from_one_reading_and_equal_those_made_alone(tmp_path, encoders, monkeypatch):
    base = make_encoder(tmp_path / "base", 0)
    on_base = {"base_model": base, "weighted": False}
    recipes = {
        "mean": recipe_of(*encoders, method="linear"),
        "pair": recipe_of(encoders[2], encoders[0], out_dtype="bfloat16"),
        "updates": recipe_of(*encoders, base_model=base),
        "arc": recipe_of(*encoders[1:], method="slerp", weighted=False, base_model=encoders[2], parameters={"t": 0.3}),
        "chosen": recipe_of(encoders[2], encoders[1], method="sce", parameters={"select_topk": 0.5}, **on_base),
        "stock": recipe_of(*encoders, method="model_stock", **on_base),
    }
    read, reads = writer.Checkpoint.read, []
    monkeypatch.setattr(writer.Checkpoint, "read", lambda self, *rest: (reads.append(1), read(self, *rest))[1])
    facts = merge_all([(recipe, tmp_path / "all" / name) for name, recipe in recipes.items()])
    plain = 4 * 3 * 2  # models, tensors, passes
    assert len(reads) <= plain + 3 * 3 * 4  # SCE looks at its three models four times more
    monkeypatch.undo()
    for (name, recipe), told in zip(recipes.items(), facts, strict=True):
        assert merge(recipe, tmp_path / "alone" / name)["method"] == told["method"]
        one, two = merged_tensors(tmp_path / "all" / name), merged_tensors(tmp_path / "alone" / name)
        assert all(torch.allclose(one[key], two[key], rtol=1e-6, atol=1e-8) for key in two), name
        assert {key: tensor.dtype for key, tensor in one.items()} == {key: tensor.dtype for key, tensor in two.items()}


@pytest.mark.promise(27)
def test_a_large_output_is_written_in_shards_that_transformers_and_the_kit_read(tmp_path):
    from transformers import AutoModel, Qwen3Config, Qwen3Model

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1)
    with torch.random.fork_rng():
        for name in "ab":
            torch.manual_seed(ord(name))
            Qwen3Model(config).save_pretrained(tmp_path / name)
    recipe = recipe_of(tmp_path / "a", tmp_path / "b")
    merge(recipe, tmp_path / "one")
    merge(recipe, tmp_path / "many", MergeOptions(max_shard_bytes=4000))
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole = merged_tensors(tmp_path / "one")
    assert max(path.stat().st_size for path in (tmp_path / "many").glob("*.safetensors")) < 6000
    loaded = AutoModel.from_pretrained(tmp_path / "many").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    merge(recipe_of(tmp_path / "many"), tmp_path / "again")
    assert all(torch.equal(merged_tensors(tmp_path / "again")[name], tensor) for name, tensor in whole.items())


@pytest.mark.promise(26)
def test_a_merge_killed_while_it_writes_leaves_no_output_and_the_next_one_cleans_up(tmp_path, encoders):
    code = """
import os, pathlib, signal, sys
from boom_utils.merging import recipe, writer
def die(self, complete=True):
    if complete:
        os.kill(os.getpid(), signal.SIGKILL)
writer.WeightWriter.close = die
models = [{"model": path, "parameters": {"weight": 1}} for path in sys.argv[1:3]]
writer.merge(recipe.make_recipe({"merge_method": "multislerp", "models": models}), pathlib.Path(sys.argv[3]))
"""
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(encoders[0]), str(encoders[1]), str(out)]
    assert subprocess.run(command, cwd=PROJECT_ROOT, timeout=HANGS).returncode == -9
    assert not out.exists()
    (left,) = tmp_path.glob(".out.*.tmp")
    assert (left / "model.safetensors").is_file()
    alive = tmp_path / f".out.{os.getppid()}.tmp"  # of a process that still works
    alive.mkdir()
    merge(recipe_of(*encoders[:2]), out)
    assert not left.exists()
    assert alive.exists()


def test_gradients_and_filters_give_every_tensor_its_own_weights(tmp_path):
    layers = [f"layers.{n}.{part}.weight" for n in range(3) for part in ("attn", "mlp")]
    names = ["embed_tokens.weight", *layers, "norm.weight"]
    folders = [make_folder(tmp_path / name, 1) for name in "ab"]
    models = []
    for seed, folder in enumerate(folders):
        generator = torch.Generator().manual_seed(seed)
        models.append({name: torch.randn(3, 4, generator=generator) for name in names})
        save_file(models[-1], folder / "model.safetensors")
    weight = [{"filter": "mlp", "value": [1.0, 0.0]}, {"filter": "model.norm", "value": 0.25}, {"value": 0.5}]
    entries = [{"model": folders[0], "parameters": {"weight": weight}}, {"model": folders[1], "parameters": {}}]
    recipe = make_recipe({
        "merge_method": "linear", "models": entries,
        "parameters": {"weight": 0.5, "normalize": [{"filter": "layers.2", "value": False}]},
    })  # fmt: skip
    facts = merge(recipe, tmp_path / "out")
    assert facts["members"][0]["weight"] == weight
    assert facts["members"][0]["used_weight"] is None
    expected = {"embed_tokens": 0.5, "attn": 0.5, "norm": 0.25, "0.mlp": 1.0, "1.mlp": 0.5, "2.mlp": 0.0}
    for name, found in merged_tensors(tmp_path / "out").items():
        first = next(value for part, value in reversed(expected.items()) if part in name)
        total = 1.0 if "layers.2" in name else first + 0.5
        exact = (first * models[0][name].double() + 0.5 * models[1][name].double()) / total
        assert torch.allclose(found.double(), exact, rtol=1e-6)
    merge(load_recipe(tmp_path / "out" / "mergekit_config.yaml"), tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_weights_that_cancel_in_some_layers_are_refused_before_work_and_named(tmp_path, encoders):
    entries = [
        {"model": encoders[0], "parameters": {"weight": [{"filter": "mlp", "value": -1}, {"value": 1}]}},
        {"model": encoders[1], "parameters": {"weight": [{"filter": "mlp", "value": 1}]}},
    ]
    with pytest.raises(MergeError) as caught:
        merge(make_recipe({"merge_method": "linear", "models": entries}), tmp_path / "out")
    said = str(caught.value)
    assert "sum to zero and cannot be normalised; where: model.layers.0.mlp.up_proj.weight" in said
    assert "no filter of 'weight' fits a tensor; where: model.norm.weight" in said
    assert not (tmp_path / "out").exists()


@st.composite
def families(draw):
    """Random tensors of a few models: names, shapes (scalars and empty ones too), a dtype for each model, weights."""
    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
    floats = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    dtypes = draw(st.lists(st.sampled_from(floats), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.05, 3), min_size=len(dtypes), max_size=len(dtypes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    models = [
        {f"layers.{n}.w": torch.randn(shape, generator=generator).to(dtype) for n, shape in enumerate(shapes)}
        for dtype in dtypes
    ]
    return models, weights, draw(st.booleans()), draw(st.integers(1, 200))


@pytest.mark.promise(24)
@given(family=families())
@settings(max_examples=40, deadline=None)
def test_any_shapes_dtypes_shards_and_weights_give_the_weighted_mean(tmp_path_factory, family):
    models, weights, prefixed, most = family
    place = tmp_path_factory.mktemp("family")
    folders = []
    for number, model in enumerate(models):
        folders.append(make_folder(place / f"m{number}"))
        prefix = "model." if prefixed and number % 2 else ""
        save_file({prefix + name: tensor for name, tensor in model.items()}, folders[-1] / "model.safetensors")
    entries = [{"model": f, "parameters": {"weight": w}} for f, w in zip(folders, weights, strict=True)]
    recipe = make_recipe({"merge_method": "linear", "models": entries, "out_dtype": "float64"})
    merge(recipe, place / "out", MergeOptions(max_shard_bytes=most, threads=2))
    found = {}
    for path in (place / "out").glob("*.safetensors"):
        found |= load_file(path)
    assert set(found) == set(models[0])
    for name, tensor in found.items():
        exact = sum(w / sum(weights) * model[name].double() for w, model in zip(weights, models, strict=True))
        assert tensor.shape == exact.shape
        assert torch.allclose(tensor, exact, rtol=1e-12, atol=1e-14)
