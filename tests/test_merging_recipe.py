import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import HANGS

from boom_utils.errors import MergeError
from boom_utils.merging.methods import weights_cancel
from boom_utils.merging.recipe import Recipe, load_recipe, make_recipe, places_of, recipe_yaml, value_at


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


def refused(data: object) -> str:
    with pytest.raises(MergeError) as caught:
        make_recipe(data, "recipe.yaml")
    assert caught.value.exit_code == 2
    assert "recipe.yaml" in str(caught.value)
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
    path = write_recipe(tmp_path / "r.yaml", data)
    with pytest.raises(MergeError) as caught:
        load_recipe(path)
    text = str(caught.value)
    for part in (
        "'multislrep' is not supported; did you mean 'multislerp'?",
        "merge_metod: unknown key; did you mean 'merge_method'?",
        "'float31' is not supported; did you mean 'float32'?",
        "models.0.parameters.wieght: unknown key; did you mean 'weight'?",
        "parameters.normalise: unknown key; did you mean 'normalize'?",
        "supported: linear, slerp, nuslerp, multislerp",
        f"model folder not found: {tmp_path / 'models/zzz'}",
        str(path),
    ):
        assert part in text


@pytest.mark.parametrize("method", ["linear", "multislerp", "linear_norm_matched"])
def test_every_method_needs_a_weight_for_every_model(folders, method):
    data = recipe_data(*folders, merge_method=method)
    data["models"][1]["parameters"] = {}
    assert "models.1.parameters.weight: missing" in refused(data)


def test_all_missing_folders_are_named_at_once(tmp_path, folders):
    data = recipe_data(folders[0], tmp_path / "x", tmp_path / "y", base_model=str(tmp_path / "z"))
    with pytest.raises(MergeError) as caught:
        load_recipe(write_recipe(tmp_path / "r.yaml", data))
    assert all(str(tmp_path / name) in str(caught.value) for name in "xyz")


def test_a_folder_cannot_be_listed_twice_under_two_names(folders):
    assert "listed twice" in refused(recipe_data(folders[0], folders[0]))
    assert "listed twice" in refused(recipe_data(folders[0], folders[0].parent / "b" / ".." / "a"))
    assert "base_model and one of the models" in refused(recipe_data(*folders, base_model=str(folders[1])))


@pytest.mark.parametrize("weights", [(1, 1, -2), (0.1, 0.2, -0.3), (0, 0, 0)])
def test_weights_that_sum_to_zero_are_refused(folders, weights):
    data = recipe_data(*folders)
    for entry, weight in zip(data["models"], weights, strict=True):
        entry["parameters"]["weight"] = weight
    assert "zero" in refused(data)
    if any(weights):  # nothing is divided by their sum then
        make_recipe({**data, "parameters": {"normalize_weights": False}})


def test_a_parameter_that_the_method_would_ignore_is_refused(folders):
    assert "parameters.normalize: unknown key; did you mean 'normalize_weights'?" in refused(
        recipe_data(*folders, parameters={"normalize": True})
    )
    given = recipe_data(*folders, merge_method="linear", parameters={"eps": 1e-6, "normalize_weights": True})
    text = refused(given)
    assert "parameters.eps: unknown key" in text
    assert "parameters.normalize_weights: unknown key" in text
    assert "no use for a base" in refused(recipe_data(*folders, merge_method="linear", base_model="base"))


@pytest.mark.parametrize(
    "weight", [True, "heavy", float("nan"), float("inf"), [], [1, True], [1, {"value": 2}], {"vale": 2}, None]
)
def test_a_weight_is_one_finite_number(folders, weight):
    data = recipe_data(*folders)
    data["models"][0]["parameters"]["weight"] = weight
    assert "models.0.parameters.weight" in refused(data)


@pytest.mark.parametrize("data", [None, [], "linear", {"merge_method": "linear", "models": []}, {"models": "a"}])
def test_a_file_that_is_no_recipe_is_a_clean_error(tmp_path, data):
    refused(data)
    with pytest.raises(MergeError):
        load_recipe(write_recipe(tmp_path / "r.yaml", data))


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
    with pytest.raises(MergeError, match=r"(?s)'weight' is given twice.*line 5"):
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
    text = recipe_yaml(make_recipe(recipe_data(*folders)))
    assert set(yaml.safe_load(text)) == {"merge_method", "models", "dtype"}
    assert "#" not in text
    ours = recipe_yaml(make_recipe(recipe_data(*folders, merge_method="linear_norm_matched")))
    assert ours.startswith("# linear_norm_matched is a method of this kit only")


def test_a_recipe_cannot_be_changed(folders):
    recipe = make_recipe(recipe_data(*folders))
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.dtype = "float16"


def test_weights_cancel_up_to_rounding_only():
    assert weights_cancel([0.1, 0.2, -0.3])
    assert not weights_cancel([1.0, -0.999999])


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
