"""The paper's experiments in profiles: parts of the data, models on top of others, any merge method, clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import mteb  # noqa: F401  (while it is imported it draws from torch's global generator)
import numpy as np
import pytest
import yaml
from conftest import bert_folder

from boom_utils.artifacts import Workspace, write_json
from boom_utils.config import PROFILES, MergeConfig, MergeMethod, Profile, SubsetConfig
from boom_utils.data.examples import TrainingExample, write_examples
from boom_utils.data.sampling import draw_subset
from boom_utils.errors import ConfigError
from boom_utils.evaluation.interaction import Clusters
from boom_utils.merging.recipe import METHOD_NAMES
from boom_utils.reporting.results import read_json_object
from boom_utils.study.graph import Study
from boom_utils.study.models import passes, recipe_of
from boom_utils.training.plan import BatchPlan

DATASETS = ("summary_to_description", "parameter_question", "exception_class", "parameter_overlap_sts")


def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    return loaded


def problem(changes: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        Profile.model_validate(content() | changes)
    return str(caught.value)


def test_the_methods_of_a_profile_are_those_the_engine_has() -> None:
    assert get_args(MergeMethod) == METHOD_NAMES


# --- what a profile may say -------------------------------------------------------------------------------------------


def test_names_in_a_profile_lead_to_what_there_is() -> None:
    members, interaction, smoke = content()["members"], content()["interaction"], content()
    more = {
        "x": {"subset": "p100", "datasets": ["exception_clas"]},
        "y": {"subset": "p100", "cluster": 3},
        "z": {"subset": "p100", "start": "bom"},
        "w": {"subset": "new-only", "datasets": ["docstring_to_code"]},
    }
    said = problem({"members": [*members, *({"name": name, **one} for name, one in more.items())]})
    assert "member 'x': no dataset 'exception_clas'; did you mean 'exception_class'?" in said
    assert "member 'y': cluster 3, but `interaction` makes 2" in said
    assert "member 'z': no model to start from 'bom'; did you mean 'boom'?" in said
    assert "'w'" not in said, "new datasets are datasets of a subset that holds new data"
    both = {"name": "x", "subset": "p100", "cluster": 1, "datasets": ["exception_class"]}
    circle = [{**members[0], "start": "boom"}, *members[1:]]
    own = [{**members[0], "training": {"query_max_len": 9}}, *members[1:]]
    for changes, sentence in (
        ({"members": [both]}, "give `datasets` or `cluster`, not both"),
        ({"members": circle}, "member 's20' goes on from 'boom', which is made of it"),
        ({"members": own}, "query_max_len"),
        ({"experiments": {"boom": "bom"}}, "experiments.boom: no member or merge 'bom'; did you mean 'boom'?"),
        ({"interaction": {**interaction, "held_out": "half-rest"}}, "is not `complement_of: p20`"),
        ({"interaction": {**interaction, "clusters": 5}}, "5 clusters of 4 datasets"),
        ({"interaction": {**interaction, "subset": "halff"}}, "interaction: no subset 'halff'"),
    ):
        assert sentence in problem(changes)
    del smoke["interaction"]
    with pytest.raises(ValueError, match="cluster 1, but there is no `interaction`"):
        Profile.model_validate(smoke)


def test_a_subset_of_new_data_alone_draws_nothing_of_the_old() -> None:
    drawn = draw_subset({"old": 10, "new": 4}, SubsetConfig(name="n", new_data=0.5), new=("new",))
    assert {name: len(rows) for name, rows in drawn.items()} == {"new": 2}
    for wrong in ({}, {"ratio": 0.5, "complement_of": "x"}, {"new_data": 0.5, "complement_of": "x"}):
        with pytest.raises(ValueError, match=r"`new_data` alone|not with `complement_of`"):
            SubsetConfig(name="n", **wrong)


def test_merges_that_no_recipe_can_say_are_refused_before_anything_runs(tmp_path: Path) -> None:
    wrong = [
        {"name": "a", "method": "ties", "members": ["s20", "s40"], "parameters": {"densty": 0.5}},
        {"name": "b", "method": "slerp", "members": ["s20", "s40", "s60"], "parameters": {"t": 0.5}},
        {"name": "c", "method": "linear", "members": ["s20"], "task_vectors": True},
    ]
    profile = Profile.model_validate(content() | {"merges": [*content()["merges"], *wrong]})
    with pytest.raises(ConfigError) as caught:
        Study(profile, Workspace(tmp_path))
    said = str(caught.value)
    assert "merge 'a': parameters.densty: unknown key; did you mean 'density'?" in said
    assert "merge 'b': models: slerp merges exactly 2 models, found 3" in said
    assert "merge 'c'" in said


def test_a_recipe_has_weights_and_a_base_only_where_the_method_knows_them() -> None:
    places = {name: f"/{name}" for name in ("a", "b", "base")}

    def recipe(method: str, **more: Any) -> dict[str, Any]:
        config = MergeConfig(name="x", method=method, members=("a", "b"), **more)  # type: ignore[arg-type]
        return recipe_of(config, [1.0, 2.0], places)

    assert recipe("multislerp")["models"][1] == {"model": "/b", "parameters": {"weight": 2.0}}
    assert "base_model" not in recipe("multislerp")
    assert recipe("multislerp", task_vectors=True)["base_model"] == "/base"
    assert recipe("slerp", parameters={"t": 0.3}) == {
        "merge_method": "slerp",
        "models": [{"model": "/a"}, {"model": "/b"}],
        "dtype": "float32",
        "parameters": {"t": 0.3},
        "base_model": "/a",
    }
    assert recipe("ties")["base_model"] == recipe("model_stock")["base_model"] == "/base"


# --- what becomes of it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Smoke on a random tiny BERT and made-up rows, with small batches."""
    folder, smoke = tmp_path_factory.mktemp("experiments"), content()
    model = {"name": str(bert_folder(folder / "model")), "prompts": "none", "max_seq_length": 48}
    smoke["base_model"] = {"kind": "pretrained", **model}
    smoke["training"] |= {"per_device_train_batch_size": 4}
    made = Study(Profile.model_validate(smoke), Workspace(folder / "workspace"))

    def examples(out: Path, _: Any) -> dict[str, Any]:
        names = (*DATASETS, "docstring_to_code")
        for dataset in names:
            rows = [
                TrainingExample(f"{dataset} {n}", (f"return {dataset} {n}",), (f"a file {n}", f"no {n}"))
                for n in range(24)
            ]
            write_examples(out / "train" / f"{dataset}.jsonl", rows)
        write_json(out / "summary.json", {})
        return {"rows": {f"train/{name}": 24 for name in names}}

    object.__setattr__(made.nodes["examples"], "make", examples)
    return made


def batches(study: Study, member: str) -> list[tuple[str, tuple[int, ...]]]:
    plan = BatchPlan.load(study.build(f"plan/{member}").path / "plan.npz")
    return [(batch.dataset, tuple(map(int, batch.rows))) for batch in plan.batches]


def test_a_member_of_one_dataset_meets_the_batches_that_the_full_one_meets_of_it(study: Study) -> None:
    only, full = batches(study, "only-exception"), batches(study, "full")
    assert {dataset for dataset, _ in only} == {"exception_class"}
    assert sorted(only) == sorted(batch for batch in full if batch[0] == "exception_class")
    assert {dataset for dataset, _ in batches(study, "only-retrieval")} == set(DATASETS[:2])


def test_without_a_core_subset_only_new_rows_are_met(study: Study) -> None:
    assert {dataset for dataset, _ in batches(study, "update-no-core")} == {"docstring_to_code"}


def test_clusters_cover_every_dataset_once_and_their_members_are_trained_on_them(study: Study) -> None:
    found = read_json_object(study.build("interaction").path / "interaction.json")
    groups = Clusters.from_json(found["clusters"]).groups
    assert sorted(name for group in groups for name in group) == sorted(DATASETS)
    for number, group in enumerate(groups, start=1):
        assert {dataset for dataset, _ in batches(study, f"cluster-{number}")} == set(group)
        assert study.build(f"plan/cluster-{number}").facts["datasets"] == sorted(group)
    assert np.isfinite(found["values"]).all()


def test_fine_tuning_goes_on_from_the_model_it_names(study: Study) -> None:
    assert study.nodes["member/continued"].inputs["base"] is study.nodes["merge/boom"]
    assert study.nodes["member/update-no-core"].inputs["base"] is study.nodes["base"]


def test_what_is_only_merged_is_not_scored_and_every_method_merges(study: Study) -> None:
    silent = {"only-sts", "cluster-1", "update-no-core", "family-slerp-2"}
    assert not silent & {name.split("/")[1] for name in study.nodes if name.startswith("scores/")}
    merged = study.build_all("merge/", [name for name in study.group("comparisons") if name.startswith("family")])
    assert len(merged) == 7
    assert all((artifact.path / "model.safetensors").is_file() for artifact in merged.values())


def test_each_pair_of_datasets_is_trained_once_for_the_analysis_and_nothing_else_uses_it(study: Study) -> None:
    trained = [name for name in study.nodes if name.startswith("interaction/member/")]
    assert len(trained) == 4 + 6
    results = study.nodes["results"]
    assert not [name for name in results.inputs if name.startswith("interaction/")]


# --- hyper-parameters of a member of its own --------------------------------------------------------------------------


def test_a_member_is_planned_and_trained_with_its_own_hyper_parameters_and_no_other_is(tmp_path: Path) -> None:
    smoke = content()
    twice = {"name": "twice", "subset": "p100", "seed": 100, "training": {"num_train_epochs": 2, "learning_rate": 1e-5}}
    smoke["members"] = [*smoke["members"], twice]
    before, study = (Study(Profile.model_validate(one), Workspace(tmp_path)) for one in (content(), smoke))
    assert study.node("plan/twice").config["options"]["num_train_epochs"] == 2
    trained = study.node("member/twice").config["training"]
    assert trained == {**study.profile.training.model_dump(mode="json"), "num_train_epochs": 2, "learning_rate": 1e-5}
    for name in ("plan/full", "member/full"):
        assert study.node(name).config == before.node(name).config
    rows = dict.fromkeys((*study.profile.corpus.datasets, *study.profile.corpus.new_datasets), 100)
    members = {member.name: member for member in study.profile.members}
    costs = {
        name: passes(study.profile, members[name], rows, study.profile.corpus.datasets) for name in ("full", "twice")
    }
    assert costs == {"full": 1.0, "twice": 2.0}


def test_validation_needs_a_corpus_of_files_and_a_limit(tmp_path: Path) -> None:
    smoke = content()
    changed = {**smoke, "corpus": {**smoke["corpus"], "evaluation_part": "validation", "evaluation_queries": None}}
    with pytest.raises(ConfigError, match="validation is for corpora of files only") as caught:
        Study(Profile.model_validate(changed), Workspace(tmp_path))
    assert "validation is what evaluation_queries leaves" in str(caught.value)
