"""The graph of a study: what each experiment is made from, which notebook makes it, and what makes it anew."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import mteb  # noqa: F401  (while it is imported it draws from torch's global generator)
import numpy as np
import pytest
import yaml
from conftest import bert_folder, only_known, plain_smoke

from boom_utils.artifacts import Node, Workspace, digest_of, write_json
from boom_utils.config import PROFILES, MergeConfig, MergeMethod, Profile, SubsetConfig
from boom_utils.data.examples import TrainingExample, write_examples, write_jsonl
from boom_utils.data.sampling import draw_subset
from boom_utils.data.tokens import open_tokens
from boom_utils.errors import ConfigError, DataError
from boom_utils.evaluation.interaction import Clusters
from boom_utils.merging.recipe import METHOD_NAMES
from boom_utils.model_folder import read_spec
from boom_utils.reporting.results import read_json_object
from boom_utils.study.graph import NOTEBOOKS, Study
from boom_utils.study.models import passes, recipe_of, regime
from boom_utils.study.seeds import seeds_of, with_seeds
from boom_utils.study.stages import stated_prompts
from boom_utils.training.plan import BatchPlan
from boom_utils.yaml_files import parse

DATASETS = ("summary_to_description", "parameter_question", "exception_class", "parameter_overlap_sts")
NEW = "docstring_to_code"


def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    return loaded


def profile_of(raw: Mapping[str, Any]) -> Profile:
    return parse(Profile, dict(raw), "test", ConfigError)


def opened(raw: Mapping[str, Any], folder: Path) -> Study:
    return Study(profile_of(raw), Workspace(folder))


def plain(folder: Path, *without: str, **member: object) -> Study:
    """The plain smoke study without some of its members, and with one more that is like `full`."""
    raw = plain_smoke()
    raw["members"] = [one for one in raw["members"] if one["name"] not in without]
    raw["members"] += [{"subset": "p100", "seed": 100, **member}] if member else []
    return opened(only_known(raw), folder)


def static(folder: Path, **corpus: object) -> Study:
    """The plain smoke study before the new data arrived."""
    raw = plain_smoke()
    raw["subsets"] = [subset for subset in raw["subsets"] if "new_data" not in subset]
    raw["members"] = [one for one in raw["members"] if one["name"] not in ("update", "retrained")]
    raw["merges"] = [one for one in raw["merges"] if one["name"] != "boom-updated"]
    raw["corpus"] |= {"new_datasets": [], **corpus}
    return opened(only_known(raw), folder)


def seeded(models: list[str], count: int = 3, **changes: Any) -> Profile:
    return profile_of({**plain_smoke(), **changes, "seeds": {"count": count, "models": models}})


def key_of(node: Node) -> str:
    """What an artifact is a function of, before any is made."""
    inputs = {name: key_of(child) for name, child in node.inputs.items()}
    return digest_of([node.stage, node.version, node.config, inputs])


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_every_artifact_is_made_by_a_notebook_and_what_one_trains_it_scores(tmp_path: Path) -> None:
    for study in (plain(tmp_path), opened(content(), tmp_path)):
        made = {name: set(study.nodes_of(name)) for name in NOTEBOOKS}
        assert set.union(*made.values()) == set(study.nodes)
        for names in made.values():
            trained = {name.removeprefix("member/") for name in names if name.startswith("member/")}
            scored = {name.split("/")[1] for name in names if name.startswith("scores/")}
            assert trained & {*study.profile.scored_models} <= scored


def trained_by(study: Study, notebook: str) -> list[str]:
    return [name.partition("/")[2] for name in study.nodes_of(notebook) if name.startswith("member/")]


def test_each_experiment_is_made_in_a_notebook_of_its_own(tmp_path: Path) -> None:
    study, whole = plain(tmp_path, name="full-reversed", schedule="sequential_datasets"), opened(content(), tmp_path)
    assert trained_by(study, "02_finetune_subsets") == ["s20", "s40", "s60", "s80", "full"]
    assert trained_by(study, "04_incremental_updates") == ["update", "retrained"]
    assert trained_by(study, "05_scheduling_ablations") == ["full", "seq-datasets", "two-stage"]
    assert {*trained_by(whole, "06_merging_ablations")} == {*whole.group("restricted")}
    assert trained_by(study, "07_tables_and_figures") == ["full-reversed"], "a member of no experiment"
    assert list(study.node("geometry").inputs) == ["base", "s20", "s40", "s60", "s80", "full"]
    earlier = {name for notebook in list(NOTEBOOKS)[:3] for name in study.nodes_of(notebook)}
    assert {name for name in earlier if re.search("update|retrained|everything|new", name)} == set()
    assert study.build_all("plan/", []) == {}
    with pytest.raises(ConfigError, match="did you mean 'plan/full'"):
        study.build_all("plan/", ["ful"])


def test_how_the_arms_of_the_frontier_lie_is_measured_seed_by_seed_where_a_profile_has_one(tmp_path: Path) -> None:
    raw = {**plain_smoke(), "seeds": {"count": 2, "models": ["boom", "full"]}}
    without = opened(raw, tmp_path)
    study = opened({**raw, "experiments": {**raw["experiments"], "frontier": ["boom"]}}, tmp_path)
    assert {*study.nodes} - {*without.nodes} == {"geometry/regime"} <= {*study.inputs["results"]}
    first, second = study.nodes["geometry/regime"].config["seeds"]
    assert {*first} == {"s20", "s40", "s60", "s80", "full", "boom"} and second == [f"{name}.seed2" for name in first]
    assert all(key_of(node) == key_of(study.nodes[name]) for name, node in without.nodes.items() if name[:2] != "re")
    finished = {name: study.nodes[name] for name in ("base", "member/full", "member/s20", "member/full.seed2")}
    assert regime(study.profile, finished).config["seeds"] == [["s20", "full"], ["full.seed2"]]


def test_a_study_without_an_experiment_asks_nothing_of_its_notebook(tmp_path: Path) -> None:
    for study, notebook, groups in (
        (static(tmp_path), "04_incremental_updates", ("incremental", "new_subsets")),
        (plain(tmp_path, "seq-datasets", "two-stage"), "05_scheduling_ablations", ("schedules",)),
    ):
        assert [study.group(name) for name in groups] == [[]] * len(groups)
        assert study.nodes_of(notebook) == {}


# --- what changes what ------------------------------------------------------------------------------------------------


def test_new_data_make_nothing_anew_that_was_there_before(tmp_path: Path) -> None:
    before, after = static(tmp_path).nodes, plain(tmp_path).nodes
    kept = set(before) - {"results", "report"}
    assert [name for name in kept if key_of(before[name]) != key_of(after[name])] == []
    added = {name for name in set(after) - set(before) if not name.startswith("scores/")}
    assert added == {
        *("subset/update", "subset/everything", "tokens/new", "merge/boom-updated"),
        *("plan/update", "member/update", "plan/retrained", "member/retrained"),
    }


def test_models_that_know_new_data_are_made_with_old_and_new_tokens(tmp_path: Path) -> None:
    study = plain(tmp_path)
    assert study.group("incremental") == ["boom", "update", "boom-updated", "retrained"]
    for name in ("update", "retrained"):
        inputs = study.node(f"member/{name}").inputs
        assert [inputs[one] for one in ("base", "tokens", "new_tokens")] == [
            study.node(one) for one in ("base", "tokens", "tokens/new")
        ]
        assert NEW in study.node(f"member/{name}").config["rules"]
    assert "new_tokens" not in study.node("member/full").inputs
    merged = study.node("merge/boom-updated")
    assert list(merged.inputs.values()) == [study.node("merge/boom"), study.node("member/update")]
    assert merged.config["weights"] == [1.0, 1.0]


def test_fine_tuning_goes_on_from_the_model_it_names_and_what_is_only_merged_is_not_scored(tmp_path: Path) -> None:
    study = opened(content(), tmp_path)
    assert study.nodes["member/continued"].inputs["base"] is study.nodes["merge/boom"]
    assert study.nodes["member/update-no-core"].inputs["base"] is study.nodes["base"]
    silent = {"only-sts", "cluster-1", "update-no-core", "family-slerp-2"}
    assert not silent & {name.split("/")[1] for name in study.nodes if name.startswith("scores/")}
    assert len([name for name in study.nodes if name.startswith("interaction/member/")]) == 4 + 6
    assert not [name for name in study.nodes["results"].inputs if name.startswith("interaction/")]


def test_a_member_is_planned_and_trained_with_its_own_hyper_parameters_and_no_other_is(tmp_path: Path) -> None:
    smoke, own = content(), {"num_train_epochs": 2, "learning_rate": 1e-5, "average": {"ema": 0.99}}
    twice = {"name": "twice", "subset": "p100", "seed": 100, "training": own}
    before, study = opened(smoke, tmp_path), opened(smoke | {"members": [*smoke["members"], twice]}, tmp_path)
    assert study.node("plan/twice").config["options"]["num_train_epochs"] == 2
    trained = study.node("member/twice").config["training"]
    assert trained == {**study.profile.training.model_dump(mode="json"), **own}
    assert "average" not in before.node("member/full").config["training"], "without an average nothing is keyed anew"
    for name in ("plan/full", "member/full"):
        assert study.node(name).config == before.node(name).config
    rows, datasets = dict.fromkeys((*DATASETS, NEW), 100), study.profile.corpus.datasets
    costs = {one.name: passes(study.profile, one, rows, datasets) for one in study.profile.members}
    assert (costs["full"], costs["twice"]) == (1.0, 2.0)


# --- what a profile may say -------------------------------------------------------------------------------------------


def test_the_methods_of_a_profile_are_those_the_engine_has() -> None:
    assert get_args(MergeMethod) == METHOD_NAMES


MEMBERS, INTERACTION = content()["members"], content()["interaction"]


def one_more(**member: Any) -> dict[str, Any]:
    return {"members": [*MEMBERS, {"name": "x", "subset": "p100", **member}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    (one_more(datasets=["exception_clas"]), "member 'x': no dataset 'exception_clas'; did you mean 'exception_class'?"),
    (one_more(cluster=3), "member 'x': cluster 3, but `interaction` makes 2"),
    (one_more(start="bom"), "member 'x': no model to start from 'bom'; did you mean 'boom'?"),
    (one_more(cluster=1, datasets=["exception_class"]), "give `datasets` or `cluster`, not both"),
    (one_more(training={"query_max_len": 9}), "query_max_len"),
    ({"members": [{**MEMBERS[0], "start": "boom"}, *MEMBERS[1:]]}, "'s20' goes on from 'boom', which is made of it"),
    ({"experiments": {"boom": "bom"}}, "experiments.boom: no member or merge 'bom'; did you mean 'boom'?"),
    ({"interaction": {**INTERACTION, "held_out": "half-rest"}}, "is not `complement_of: p20`"),
    ({"interaction": {**INTERACTION, "clusters": 5}}, "5 clusters of 4 datasets"),
    ({"interaction": {**INTERACTION, "subset": "halff"}}, "interaction: no subset 'halff'"),
    ({"interaction": None}, "cluster 1, but there is no `interaction`"),
    ({"ensembles": [{"name": "e", "members": ["full", "bom"]}]}, "ensemble 'e': no member or merge 'bom'"),
    ({"ensembles": [{"name": "boom", "members": ["full", "s20"]}]}, "model 'boom' is named twice"),
    ({"seeds": {"count": 3, "models": ["bom"]}}, "seeds: no member or merge 'bom'"),
    ({"seeds": {"count": 3, "models": ["boom"], "fewer": {"bom": 2}}}, "'bom' is none of `models`; did you mean"),
    ({"seeds": {"count": 3, "models": ["boom"], "fewer": {"boom": 3}}}, "3 seeds of 'boom', expected 2 to 2"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_names_in_a_profile_lead_to_what_there_is(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        profile_of(content() | changes)


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({"new_datasets": ["docstring_to_cod"]}, "corpus.new_datasets: no 'docstring_to_cod'; did you mean"),
        (
            {"datasets": [DATASETS[0]], "new_datasets": [DATASETS[2]]},
            "has the role train, not new_data",
        ),
        ({"evaluation_part": "validation"}, "validation is for corpora of files only"),
        ({"evaluation_part": "validation", "evaluation_queries": None}, "is what evaluation_queries leaves"),
    ],
)
def test_a_profile_asks_for_what_its_manifest_has(tmp_path: Path, corpus: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        static(tmp_path, **corpus)


def test_merges_that_no_recipe_can_say_are_refused_before_anything_runs(tmp_path: Path) -> None:
    wrong = [
        {"name": "a", "method": "ties", "members": ["s20", "s40"], "parameters": {"densty": 0.5}},
        {"name": "b", "method": "slerp", "members": ["s20", "s40", "s60"], "parameters": {"t": 0.5}},
        {"name": "c", "method": "linear", "members": ["s20"], "task_vectors": True},
    ]
    with pytest.raises(ConfigError) as caught:
        opened(content() | {"merges": [*content()["merges"], *wrong]}, tmp_path)
    said = str(caught.value)
    assert "merge 'a': parameters.densty: unknown key; did you mean 'density'?" in said
    assert "merge 'b': slerp merges exactly 2 models, found 3" in said
    assert "merge 'c'" in said


def test_a_recipe_has_weights_and_a_base_only_where_the_method_knows_them() -> None:
    places = {name: f"/{name}" for name in ("a", "b", "base")}

    def recipe(method: str, **more: Any) -> dict[str, Any]:
        config = MergeConfig(name="x", method=method, members=("a", "b"), **more)  # type: ignore[arg-type]
        return recipe_of(config, [1.0, 2.0], places)

    assert recipe("multislerp")["models"][1] == {"model": "/b", "parameters": {"weight": 2.0}}
    assert "base_model" not in recipe("multislerp")
    assert recipe("multislerp", task_vectors=True)["base_model"] == "/base"
    slerp = {"merge_method": "slerp", "models": [{"model": "/a"}, {"model": "/b"}], "dtype": "float32"}
    assert recipe("slerp", parameters={"t": 0.3}) == {**slerp, "parameters": {"t": 0.3}, "base_model": "/a"}
    assert recipe("ties")["base_model"] == recipe("model_stock")["base_model"] == "/base"


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_everything_behind_a_model_is_made_again_with_other_seeds_and_nothing_else(tmp_path: Path) -> None:
    first = profile_of(plain_smoke())
    assert with_seeds(first) is first and seeds_of(first) == {}
    profile = seeded(["boom"], count=2)
    whole, old = with_seeds(profile), {member.name: member for member in profile.members}
    parts = next(merge.members for merge in profile.merges if merge.name == "boom")
    new = [member for member in whole.members if member not in profile.members]
    assert [member.name for member in new] == [f"{name}.seed2" for name in parts]
    assert [merge.name for merge in whole.merges if merge not in profile.merges] == ["boom.seed2"]
    for member in new:
        before = old[member.name.removesuffix(".seed2")]
        assert (member.seed != before.seed, member.subset) == (True, f"{before.subset}.seed2")
        drawn, drawn_before = whole.subset(member.subset), profile.subset(before.subset)
        assert (drawn.seed != drawn_before.seed, drawn.ratio) == (True, drawn_before.ratio)
    assert len(whole.subsets) == len(profile.subsets) + len(parts)
    one, many = Study(first, Workspace(tmp_path)), Study(profile, Workspace(tmp_path))
    assert all(key_of(one.node(name)) == key_of(many.node(name)) for name in ("member/s20", "merge/boom", "subset/p20"))
    assert key_of(many.node("member/s20")) != key_of(many.node("member/s20.seed2"))


def test_only_the_named_models_are_scored_with_the_weights_of_their_first_seed(tmp_path: Path) -> None:
    raw = plain_smoke()
    raw["subsets"] = [*raw["subsets"], {"name": "rest", "complement_of": "p20"}]
    raw["members"] = [*raw["members"], {"name": "on", "subset": "rest", "start": "boom"}]
    study = opened({**raw, "seeds": {"count": 3, "models": ["boom", "full", "on"]}}, tmp_path)
    whole = study.whole
    later = [name for name in whole.scored_models if ".seed" in name]
    assert sorted(later) == [f"{name}.seed{number}" for name in ("boom", "full", "on") for number in (2, 3)]
    merges, members = ({one.name: one for one in some} for some in (whole.merges, whole.members))
    assert whole.merge_weights(merges["boom.seed3"]) == whole.merge_weights(merges["boom"])
    assert members["on.seed2"].start == "boom.seed2"
    assert whole.subset("rest.seed2").complement_of == "p20.seed2"
    score = f"scores/boom.seed2/{study.profile.evaluation.in_domain[0]}"
    assert score in study.nodes_of("06_merging_ablations") and score not in study.nodes_of("03_merge")
    assert study.group("averages").count("boom.seed2") == 0


def test_a_model_may_have_less_seeds_and_nothing_is_made_that_no_model_needs(tmp_path: Path) -> None:
    seeds = {"count": 4, "models": ["full", "s20", "boom"], "own_rows": True, "fewer": {"boom": 3, "s20": 2}}
    study = opened({**plain_smoke(), "seeds": seeds}, tmp_path)
    assert {model: len(names) for model, names in study.seeds.items()} == {"full": 4, "s20": 2, "boom": 3}
    fourth = [name.removesuffix(".seed4") for name in study.nodes if name.endswith(".seed4")]
    assert sorted(fourth) == ["member/full", "plan/full", "subset/p100"]
    assert study.whole.subset("p100.seed4").part == (4, 4) and study.whole.subset("p20.seed3").part == (3, 4)
    later = [name for name in study.whole.scored_models if name.startswith(("s20.", "boom."))]
    assert later == ["s20.seed2", "boom.seed2", "boom.seed3"], "the third s20 is in the third boom only"


def test_the_models_of_a_seed_are_those_that_have_it_and_a_seed_of_none_is_an_error(tmp_path: Path) -> None:
    study = Study(seeded(["boom"]), Workspace(tmp_path))
    assert study.of_seed(["s20", "boom", "plain-mean"], 1) == ["s20", "boom", "plain-mean"]
    assert study.of_seed(["s20", "boom", "plain-mean"], 3) == ["s20.seed3", "boom.seed3"]
    for seed in (0, 4):
        with pytest.raises(ConfigError, match=f"(?s)none of boom with this seed.*1 to 3.*found: {seed}"):
            study.of_seed(["boom"], seed)


def test_an_ensemble_is_scored_with_the_models_in_it_and_copied_with_its_seeds(tmp_path: Path) -> None:
    raw = {**plain_smoke(), "ensembles": [{"name": "together", "members": ["s20", "boom"]}]}
    study = opened({**raw, "seeds": {"count": 2, "models": ["together"]}}, tmp_path)
    task = study.profile.evaluation.in_domain[0]
    assert study.inputs[f"scores/together/{task}"] == ["examples", "member/s20", "merge/boom"]
    assert study.inputs[f"scores/together.seed2/{task}"] == ["examples", "member/s20.seed2", "merge/boom.seed2"]
    assert f"scores/together.seed2/{task}" in study.nodes_of("06_merging_ablations")
    assert not any(name.startswith("scores/boom.seed2/") for name in study.nodes), "it is behind one only"
    assert study.profile.trained_members("together") == ["s20", "s40", "s60", "s80", "full"]
    plain_node, other = opened(plain_smoke(), tmp_path).node("scores/boom/" + task), study.node("scores/boom/" + task)
    assert key_of(plain_node) == key_of(other)


def test_seeds_with_rows_of_their_own_share_none_and_keep_their_ratios() -> None:
    profile = seeded(["full", "boom"])
    assert profile.seeds is not None
    own = profile.model_copy(update={"seeds": profile.seeds.model_copy(update={"own_rows": True})})
    rows, whole = {"a": 300, "b": 31}, with_seeds(own)
    subset, small = (next(one.subset for one in whole.members if one.name == name) for name in ("full", "s20"))
    drawn = [draw_subset(rows, whole.subset(name)) for name in (subset, f"{subset}.seed2", f"{subset}.seed3")]
    for dataset, count in rows.items():
        assert sorted(row for one in drawn for row in one[dataset].tolist()) == [*range(count)]
    less = draw_subset(rows, whole.subset(small))["a"]
    assert len(less) == 20 and set(less) <= set(drawn[0]["a"])
    with pytest.raises(DataError, match="3 parts cannot be made of c"):
        draw_subset({"c": 2}, whole.subset(small))
    assert "part" not in profile.subset(small).rule()


def test_a_subset_of_new_data_alone_draws_nothing_of_the_old() -> None:
    drawn = draw_subset({"old": 10, "new": 4}, SubsetConfig(name="n", new_data=0.5), new=("new",))
    assert {name: len(rows) for name, rows in drawn.items()} == {"new": 2}
    for wrong in ({}, {"ratio": 0.5, "complement_of": "x"}, {"new_data": 0.5, "complement_of": "x"}):
        with pytest.raises(ValueError, match=r"`new_data` alone|not with `complement_of`"):
            SubsetConfig(name="n", **wrong)


# --- bases ------------------------------------------------------------------------------------------------------------


def based(folder: Path, **base: Any) -> Study:
    """Smoke on another base, with small batches."""
    raw = content()
    raw["base_model"] = {"kind": "pretrained", "name": "someone/model", "max_seq_length": 48, **base}
    raw["training"] |= {"per_device_train_batch_size": 4}
    return opened(raw, folder / "workspace")


def test_a_tiny_base_begins_at_a_random_model_and_a_pretrained_one_does_not(tmp_path: Path) -> None:
    tiny, study = opened(content(), tmp_path), based(tmp_path, pooling="mean")
    assert tiny.nodes["base"].inputs["random"] is tiny.nodes["random"]
    assert set(tiny.nodes["tokens"].inputs) == {"examples", "random"}
    assert not [name for name in study.nodes if "random" in name]
    assert study.profile.model_names[0] == "base"
    assert dict(study.nodes["base"].inputs) == {}
    assert set(study.nodes["tokens"].inputs) == {"examples", "base"}
    assert [one for one in NOTEBOOKS if not study.nodes_of(one)] == ["08_your_own_data"], "its study is its own"


def test_everything_is_made_anew_when_the_base_or_its_prompts_change_and_a_missing_one_is_an_error_when_wanted(
    tmp_path: Path,
) -> None:
    name = str(bert_folder(tmp_path / "model"))
    first = based(tmp_path, name=name).nodes["base"].config
    for same in ({}, {"parameters": 1e6, "embedding_parameters": 1e5}):
        assert based(tmp_path, name=name, **same).nodes["base"].config == first
    for other in ({"prompts": "none"}, {"max_seq_length": 40}):
        assert based(tmp_path, name=name, **other).nodes["base"].config != first
    nowhere = based(tmp_path, name=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no folder of that base"):
        nowhere.build("base")


def test_a_base_gets_instructions_or_its_own_prompts_or_those_of_the_profile_in_training_and_evaluation(
    tmp_path: Path,
) -> None:
    name = str(bert_folder(tmp_path / "model"))
    with pytest.raises(ConfigError, match="no prompts of its own"):
        based(tmp_path, name=name, prompts="own")
    config, stated = tmp_path / "model" / "config_sentence_transformers.json", {"query": "q: ", "document": "p: "}
    write_json(config, json.loads(config.read_text()) | {"prompts": stated})
    stated_prompts.cache_clear()
    for more, query, passage in (
        ({"prompts": "none"}, "", None),
        ({}, "Instruct:", None),
        ({"passage_prompt": "p: "}, "Instruct:", "p: "),
        ({"prompts": "own"}, "q: ", "p: "),
        ({"prompts": "none", "query_prompt": "q: ", "passage_prompt": "p: "}, "q: ", "p: "),
    ):
        nodes = based(tmp_path, name=name, **more).nodes
        base, tokens, score = (nodes[n].config for n in ("base", "tokens", "scores/base/parameter_question"))
        asked = [base["prompts"][DATASETS[0]], tokens["prompts"][DATASETS[0]][0], score["prompt"]]
        assert all(text.startswith(query) and bool(text) == bool(query) for text in asked)
        assert tokens.get("passage_prompt") == score.get("passage_prompt") == passage
        assert base["prompts"].get("document") == passage


# --- a study that is made ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Smoke on a random tiny BERT and made-up rows, with small batches."""
    folder = tmp_path_factory.mktemp("graph")
    made = based(folder, name=str(bert_folder(folder / "model")), prompts="none", passage_prompt="file ")

    def examples(out: Path, _: Any) -> dict[str, Any]:
        names = (*DATASETS, NEW)
        for dataset in names:
            rows = [TrainingExample(f"{dataset} {n}", (f"return {n}",), (f"a file {n}", f"no {n}")) for n in range(24)]
            write_examples(out / "train" / f"{dataset}.jsonl", rows)
        task = out / "evaluation" / "parameter_question"
        write_jsonl(task / "corpus.jsonl", [{"id": str(n), "text": f"return words {n}"} for n in range(5)])
        write_jsonl(task / "queries.jsonl", [{"id": "q", "text": "words 3"}])
        write_jsonl(task / "qrels.jsonl", [{"query": "q", "document": "3"}])
        write_json(out / "summary.json", {})
        return {"rows": {f"train/{name}": 24 for name in names}}

    object.__setattr__(made.nodes["examples"], "make", examples)
    return made


def batches(study: Study, member: str) -> list[tuple[str, tuple[int, ...]]]:
    plan = BatchPlan.load(study.build(f"plan/{member}").path / "plan.npz")
    return [(batch.dataset, tuple(map(int, batch.rows))) for batch in plan.batches]


def test_a_member_of_some_datasets_meets_their_batches_alone_and_an_update_without_core_only_new_rows(
    study: Study,
) -> None:
    only, full = batches(study, "only-exception"), batches(study, "full")
    assert {dataset for dataset, _ in only} == {"exception_class"}
    assert sorted(only) == sorted(batch for batch in full if batch[0] == "exception_class")
    assert {dataset for dataset, _ in batches(study, "only-retrieval")} == set(DATASETS[:2])
    assert {dataset for dataset, _ in batches(study, "update-no-core")} == {NEW}


def test_clusters_cover_every_dataset_once_and_their_members_are_trained_on_them(study: Study) -> None:
    found = read_json_object(study.build("interaction").path / "interaction.json")
    groups = Clusters.from_json(found["clusters"]).groups
    assert sorted(name for group in groups for name in group) == sorted(DATASETS)
    for number, group in enumerate(groups, start=1):
        assert {dataset for dataset, _ in batches(study, f"cluster-{number}")} == set(group)
        assert study.build(f"plan/cluster-{number}").facts["datasets"] == sorted(group)
    assert np.isfinite(found["values"]).all()


def test_every_method_merges(study: Study) -> None:
    merged = study.build_all("merge/", [name for name in study.group("comparisons") if name.startswith("family")])
    assert len(merged) == 7
    assert all((artifact.path / "model.safetensors").is_file() for artifact in merged.values())


def test_a_member_and_its_scores_are_made_from_a_pretrained_base_with_its_prompts(study: Study) -> None:
    from transformers import AutoTokenizer

    base, member = study.build("base"), study.build("member/s20")
    assert base.facts["kind"] == "folder"
    assert read_spec(base.path).prompts["parameter_question"] == ""
    assert 0 < study.build("scores/s20/parameter_question").facts["main_score"] <= 1
    assert member.facts["steps"] > 0
    assert read_spec(member.path).own_prompts == ("", "file ")
    table = open_tokens(study.build("tokens").path)["parameter_question"]
    words = AutoTokenizer.from_pretrained(member.path)
    assert words.decode(table.positive(0, 0)).startswith("[CLS] file return")
