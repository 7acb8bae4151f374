import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_merging_checkpoints import make_folder, tensors_of

from boom_utils.cli import main
from boom_utils.errors import MergeError
from boom_utils.merging.family import open_checkpoints
from boom_utils.merging.gram import family_grams, load_grams, save_grams
from boom_utils.merging.methods import METHODS, Settings
from boom_utils.merging.planner import coefficients_of, forecast, geometry_of, plan
from boom_utils.merging.recipe import METHOD_RULES, make_recipe
from boom_utils.merging.writer import merge
from boom_utils.reporting.tables import merge_plan_text


def flat(tensors):
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


@pytest.fixture
def family(tmp_path):
    return [make_folder(tmp_path / name, seed) for seed, name in enumerate(["base", "m1", "m2", "m3"])]


def recipe_for(method, folders, **parameters):
    """A recipe of any closed-form method for some folders, the base first."""
    rules = METHOD_RULES[method]
    members = folders[1 : 1 + (rules.models[1] or 3)]
    own = [{"weight": 0.5 + n} if "weight" in rules.of_models else {} for n in range(len(members))]
    models = [{"model": str(folder), "parameters": part} for folder, part in zip(members, own, strict=True)]
    base = {"no": None, "member": members[0]}.get(rules.base, folders[0])
    data = {
        "merge_method": method,
        "models": models,
        "parameters": parameters | ({"t": 0.3} if method == "slerp" else {}),
    }
    return make_recipe(data | ({} if base is None else {"base_model": str(base)}))


@pytest.mark.promise(24)
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_from_the_saved_inner_products_is_the_merge_of_the_files(tmp_path, family, method):
    recipe = recipe_for(method, family)
    table, described = plan(recipe)
    save_grams(tmp_path / "grams.npz", table)
    merge(recipe, tmp_path / "out")
    for folder in family[1:]:
        shutil.rmtree(folder)  # from here on nothing reads a member
    saved = load_grams(tmp_path / "grams.npz")
    found = load_file(tmp_path / "out" / "model.safetensors")
    settings = recipe.settings_at()
    models = [tensors_of(int(name[1])) for name in saved.models if name.startswith("m")]
    for name, made_of in coefficients_of(saved, method, settings).items():
        expected = sum(c * model[name].double() for c, model in zip(made_of.members, models, strict=True))
        expected = expected + made_of.base * tensors_of(0)[name].double()
        assert torch.allclose(found[name].double(), expected, rtol=1e-6, atol=1e-8)
    told = described["forecasts"][method]
    assert np.isclose(told["norm"], np.linalg.norm(flat(found)), rtol=1e-6)
    if saved.has_base:
        base = flat(tensors_of(0))
        relative = np.linalg.norm(flat(found) - base) / np.linalg.norm(base)
        assert np.isclose(told["relative_update"], relative, rtol=1e-4)
    members = np.array([flat(model) for model in models])
    mean = np.average(members, axis=0, weights=settings.weights)
    spread = np.sqrt(np.mean(np.sum((members - mean) ** 2, axis=1)))
    assert np.isclose(told["from_mean"], np.linalg.norm(flat(found) - mean) / spread, rtol=1e-3, atol=1e-4)


def test_any_weights_are_planned_from_one_pass_with_and_without_the_base(family, monkeypatch):
    table = family_grams(open_checkpoints(family), has_base=True)
    monkeypatch.setattr("boom_utils.merging.checkpoints.Checkpoint.read", lambda *_: pytest.fail("it read a model"))
    members = np.array([flat(tensors_of(seed)) for seed in (1, 2, 3)])
    for weights in ((1, 1, 1), (0.2, 0.6, 1.0), (3, 0, 1)):
        told = forecast(table, "linear", Settings(tuple(map(float, weights))), on_base=False)
        assert np.isclose(told.norm, np.linalg.norm(np.average(members, axis=0, weights=weights)), rtol=1e-9)
        assert told.from_mean < 1e-6
    on_base = forecast(table, "multislerp", Settings((1.0, 1.0, 1.0)))
    plain = forecast(table, "multislerp", Settings((1.0, 1.0, 1.0)), on_base=False)
    assert on_base.base < 0 < on_base.from_mean
    assert plain.base == 0
    with pytest.raises(MergeError, match="look at every element"):
        coefficients_of(table, "ties", Settings((1.0, 1.0, 1.0)))


def test_a_part_of_a_table_is_that_of_the_part_of_the_models(family):
    base, one, _, three = family
    whole = family_grams(open_checkpoints(family), has_base=True)
    part, alone = whole.of(["m3", "m1"]), family_grams(open_checkpoints([base, three, one]), has_base=True)
    assert (part.models, part.fingerprints) == (alone.models, alone.fingerprints)
    for method in ("linear", "multislerp"):
        for on_base in (True, False):
            told, expected = (forecast(t, method, Settings((0.3, 0.7)), on_base) for t in (part, alone))
            assert told.norm == pytest.approx(expected.norm, rel=1e-9)
            assert told.relative_update == pytest.approx(expected.relative_update, rel=1e-6)
    with pytest.raises(MergeError, match="not in this table"):
        whole.of(["strange"])


def test_a_plan_is_printed_and_saved_and_nothing_is_merged(tmp_path, family, capsys):
    recipe = recipe_for("multislerp", family)
    text = json.dumps(recipe.model_dump(mode="json", exclude_none=True))
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["merge", "--plan", str(tmp_path / "recipe.yaml"), str(tmp_path / "plan")]) == 0
    said = capsys.readouterr().out
    for part in ("| m2 |", "cos m1", "| layer 0 |", "| multislerp |", "c base"):
        assert part in said
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == ["grams.npz", "plan.json"]
    stored = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert merge_plan_text(stored["geometry"], stored["forecasts"]) in said
    assert load_grams(tmp_path / "plan" / "grams.npz").models == ("base", "m1", "m2", "m3")
    assert main(["merge", str(tmp_path / "recipe.yaml")]) == 2
    assert "no folder is named" in capsys.readouterr().out


def test_a_plan_without_a_base_or_of_an_elementwise_method_says_what_it_can(tmp_path, family):
    _, described = plan(recipe_for("karcher", family))
    assert "from their mean, %" in merge_plan_text(described["geometry"], described["forecasts"])
    models = [{"model": str(folder), "parameters": {"weight": 1}} for folder in family[1:]]
    _, described = plan(make_recipe({"merge_method": "ties", "base_model": str(family[0]), "models": models}))
    assert described["forecasts"] == {}
    assert "Members" in merge_plan_text(described["geometry"], {})


def test_a_member_that_is_its_base_has_no_angle_and_the_geometry_is_still_json(family):
    shutil.copy(family[0] / "model.safetensors", family[1] / "model.safetensors")
    found = geometry_of(family_grams(open_checkpoints(family), has_base=True)).as_json()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["cosines"][0][1] is None
