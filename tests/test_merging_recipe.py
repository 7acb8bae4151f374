import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import HANGS

from boom_utils.errors import MergeError
from boom_utils.merging.family import open_family
from boom_utils.merging.methods import weights_cancel
from boom_utils.merging.recipe import load_recipe, make_recipe, places_of, recipe_yaml, value_at


def recipe_data(*folders: object, **changes: object) -> dict[str, object]:
    models = [{"model": str(folder), "parameters": {"weight": n + 1.0}} for n, folder in enumerate(folders)]
    return {"merge_method": "multislerp", "models": models, "dtype": "float32", **changes}


def write_recipe(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "models" / name for name in ("a", "b", "c")]
    for folder in made:
        folder.mkdir(parents=True)
    return made


def refused(data: object, path: Path) -> str:
    """What a file with this recipe is refused with."""
    with pytest.raises(MergeError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_recipe_reads_without_torch():
    code = "import sys, boom_utils.merging.recipe; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANGS)


def test_defaults_are_those_of_mergekit(folders):
    recipe = make_recipe(recipe_data(*folders))
    assert recipe.settings_at().normalized
    assert recipe.settings_at().eps == 1e-8
    assert recipe.settings_at().weights == recipe.weights == (1.0, 2.0, 3.0)
    plain = {"normalize_weights": False}
    assert not make_recipe(recipe_data(*folders, parameters=plain)).settings_at().normalized
    linear = make_recipe(recipe_data(*folders, merge_method="linear", parameters={"normalize": False}))
    assert not linear.settings_at().normalized
    ties = make_recipe(recipe_data(*folders[:2], merge_method="ties", base_model=str(folders[2]))).settings_at()
    assert (ties.normalized, ties.scale, ties.densities) == (True, 1.0, (1.0, 1.0))
    arithmetic = recipe_data(*folders[:2], merge_method="task_arithmetic", base_model=str(folders[2]))
    assert not make_recipe(arithmetic).settings_at().normalized


def test_eps_without_a_dot_is_still_a_number(tmp_path, folders):
    # YAML 1.1 reads 1e-6 as a string.
    path = write_recipe(tmp_path / "r.yaml", recipe_data(*folders))
    path.write_text(path.read_text() + "parameters:\n  eps: 1e-6\n")
    assert load_recipe(path).settings_at().eps == 1e-6


def test_paths_are_looked_up_beside_the_recipe_then_in_the_current_folder(tmp_path, folders, monkeypatch):
    path = write_recipe(tmp_path / "recipes" / "r.yaml", recipe_data("models/a", "models/b"))
    monkeypatch.chdir(tmp_path)
    assert [entry.model for entry in load_recipe(path).models] == folders[:2]
    beside = tmp_path / "recipes" / "models" / "a"
    beside.mkdir(parents=True)
    assert [entry.model for entry in load_recipe(path).models] == [beside, folders[1]]


def test_every_problem_is_listed_with_the_nearest_valid_name(tmp_path, folders):
    data = recipe_data("models/a", "models/b", merge_metod="linear", dtype="float31", merge_method="multislrep")
    data["models"][0]["parameters"]["wieght"] = 1
    data["models"][1] = {"model": "models/zzz"}
    data["parameters"] = {"normalise": True}
    text = refused(data, write_recipe(tmp_path / "r.yaml", data))
    for part in (
        "(found 'multislrep'); did you mean 'multislerp'?",
        "merge_metod: unknown key; did you mean 'merge_method'?",
        "(found 'float31'); did you mean 'float32'?",
        "models.0.parameters.wieght: unknown key; did you mean 'weight'?",
        "parameters.normalise: unknown key; did you mean 'normalize'?",
        "'linear', 'slerp', 'nuslerp', 'multislerp'",
    ):
        assert part in text


def weights(*values, **changes):
    """A recipe for the folders a, b, c with these weights."""
    data = recipe_data(*"abc"[: len(values)], **changes)
    for entry, value in zip(data["models"], values, strict=True):
        entry["parameters"] = {} if value == "absent" else {"weight": value}
    return data


BAD_WEIGHTS = [True, "heavy", float("nan"), float("inf"), [], [1, True], [1, {"value": 2}], {"vale": 2}, None, {}]
REFUSED = [
    *((weights(value, 2), "models.0.parameters.weight") for value in BAD_WEIGHTS),
    *((weights(1, "absent", merge_method=method), "models.1.parameters.weight: missing")
      for method in ("linear", "multislerp", "linear_norm_matched")),
    *((weights(*values), "zero") for values in [(1, 1, -2), (0.1, 0.2, -0.3), (0, 0, 0)]),
    (recipe_data("a", "a"), "listed twice"),
    (recipe_data("a", "x/../a"), "listed twice"),
    (recipe_data("a", "b", base_model="b"), "base_model and one of the models"),
    (recipe_data("a", "b", merge_method="linear", base_model="c"), "no use for a base"),
    (recipe_data("a", "b", merge_method="ties"), "ties needs a base_model"),
    (recipe_data("a", "b", "c", merge_method="nuslerp"), "nuslerp merges exactly 2 models, found 3"),
    (recipe_data("a", "b", parameters={"normalize": True}),
     "parameters.normalize: unknown key; did you mean 'normalize_weights'?"),
    (recipe_data("a", "b", merge_method="linear", parameters={"eps": 1e-6}), "parameters.eps: unknown key"),
    (recipe_data("a", "b", parameters={"eps": 0}), "eps.0.value.0: Input should be greater than 0 (found 0)"),
    (recipe_data("a", "b", parameters={"normalize_weights": [True, False]}), "parameters.normalize_weights"),
    (recipe_data("a", "b", merge_method="model_stock", base_model="c", parameters={"filter_wise": True}),
     "filter_wise.0.value.0: Input should be False (found True)"),
    *((data, "") for data in (None, [], "linear", {"merge_method": "linear", "models": []}, {"models": "a"})),
]  # fmt: skip


@pytest.mark.parametrize(("data", "said"), REFUSED)
def test_a_recipe_that_says_nothing_or_too_much_is_refused(tmp_path, data, said):
    assert said in refused(data, write_recipe(tmp_path / "recipe.yaml", data))


def test_weights_that_sum_to_zero_are_fine_where_nothing_is_divided_by_them():
    make_recipe(weights(1, 1, -2, parameters={"normalize_weights": False}))
    assert weights_cancel([0.1, 0.2, -0.3])
    assert not weights_cancel([1.0, -0.999999])


def test_all_missing_folders_are_named_at_once(tmp_path, folders):
    data = recipe_data(folders[0], tmp_path / "x", tmp_path / "y", base_model=str(tmp_path / "z"))
    with pytest.raises(MergeError) as caught:
        open_family([make_recipe(data)])
    assert all(f"not found: {tmp_path / name}" in str(caught.value) for name in "xyz")


@pytest.mark.parametrize(
    "content", [b"models: [", b"? [a, b]\n: 1\n", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"]
)
def test_a_file_that_is_no_yaml_is_a_clean_error(tmp_path, content):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(MergeError, match=r"r\.yaml is not valid YAML"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(MergeError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_key_given_twice_is_an_error_instead_of_the_last_one_winning(tmp_path):
    text = "models:\n- model: a\n  parameters:\n    weight: 0.2\n    weight: 0.8\nmerge_method: linear\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(MergeError, match=r"(?s)line 5.*'weight' is given twice"):
        load_recipe(tmp_path / "r.yaml")


def test_a_written_recipe_reads_back_the_same(tmp_path, folders):
    changes = {"base_model": str(tmp_path), "parameters": {"eps": 1e-6}, "out_dtype": "bfloat16"}
    recipe = make_recipe(recipe_data(*folders, **changes))
    (tmp_path / "r.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    text = recipe_yaml(recipe, relative_to=tmp_path / "out")
    assert str(tmp_path) not in text
    assert "../models/a" in text
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "r.yaml").write_text(text)
    assert [p.resolve() for p in load_recipe(tmp_path / "out" / "r.yaml").folders] == list(recipe.folders)


def test_a_written_recipe_holds_only_keys_of_mergekit_and_says_when_mergekit_cannot_run_it(folders):
    assert set(yaml.safe_load(recipe_yaml(make_recipe(recipe_data(*folders))))) == {"merge_method", "models", "dtype"}
    ours = recipe_yaml(make_recipe(recipe_data(*folders, merge_method="linear_norm_matched")))
    assert ours.startswith("# linear_norm_matched is a method of this kit only")


@pytest.mark.promise(25)
@pytest.mark.parametrize(
    ("layers", "values", "expected"),
    [
        (5, [0.1, 0.9], [0.1, 0.3, 0.5, 0.7, 0.9]),
        (5, [0.1, 0.6, 0.9], [0.1, 0.35, 0.6, 0.75, 0.9]),
        (2, [0.2, 0.5, 0.8], [0.2, 0.8]),
        (1, [0.2, 0.5, 0.8], [0.8]),
        (3, [0.4], [0.4, 0.4, 0.4]),
    ],
)
def test_a_gradient_is_spread_over_the_layers_as_mergekit_spreads_it(layers, values, expected):
    names = [f"layers.{n}.mlp.up_proj.weight" for n in range(layers)]
    outside = ["embed_tokens.weight", "norm.weight", "lm_head.weight"]
    places = places_of([*names, *outside])
    assert [value_at(values, places[name]) for name in names] == pytest.approx(expected)
    assert {value_at(values, places[name]) for name in outside} == {values[0]}  # as observed: also after the layers


@pytest.mark.promise(25)
def test_a_filter_is_a_part_of_the_prefixed_name_and_the_first_that_fits_counts():
    places = places_of(["layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight", "norm.weight", "lm_head.weight"])
    setting = [{"filter": "model.norm", "value": 1}, {"filter": "mlp", "value": [2, 4]}, {"filter": "mlp", "value": 9}]
    assert [value_at(setting, place) for place in places.values()] == [2, 4, 1, None]
    assert value_at([{"filter": "mlp.*proj", "value": 1}], places["layers.0.mlp.up_proj.weight"]) is None
    assert value_at({"filter": "*", "value": 3}, places["lm_head.weight"]) == 3
    assert value_at([{"value": 5}, {"filter": "mlp", "value": 1}], places["layers.0.mlp.up_proj.weight"]) == 5
