"""Profiles: every problem at once, with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from boom_utils.config import (
    PROFILES,
    PretrainedBase,
    Profile,
    entries_of,
    extended,
    load_profile,
    profile_names,
    trained_members,
)
from boom_utils.errors import ConfigError
from boom_utils.yaml_files import read_yaml


def edited(tmp_path: Path, **changes: Any) -> Path:
    """The smoke profile with some top-level parts replaced; without experiments where its models are."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    content["experiments"] = {} if {"members", "merges"} & {*changes} else content["experiments"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_of_the_kit_is_valid(name: str) -> None:
    assert load_profile(name).name == name


def test_all_problems_of_a_profile_are_reported_together_with_the_nearest_names(tmp_path: Path) -> None:
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    training = {**content["training"], "temprature": 1, "learning_rate": -1.0}
    with pytest.raises(ConfigError) as caught:
        load_profile(edited(tmp_path, training=training, corpus={**content["corpus"], "seeed": 1}))
    text = str(caught.value)
    assert "3 problem(s)" in text
    assert "training.temprature: unknown key; did you mean 'temperature'?" in text
    assert "training.learning_rate" in text
    assert "corpus.seeed: unknown key; did you mean 'seed'?" in text


def test_names_that_lead_nowhere_are_all_reported(tmp_path: Path) -> None:
    members = [{"name": "a", "subset": "p2"}, {"name": "a", "subset": "p20"}]
    merges = [{"name": "m", "method": "linear", "members": ["b"], "weights": [1, 2]}]
    merges += [{"name": "n", "method": "linear", "members": ["m"], "weights": "ratio"}]
    with pytest.raises(ConfigError) as caught:
        load_profile(edited(tmp_path, members=members, merges=merges))
    text = str(caught.value)
    for part in (
        "model 'a' is named twice",
        "no subset 'p2'; did you mean",
        "no member or earlier merge 'b'",
        "2 weights for 1 members",
        "merge 'n': 'm' is a merge and has no ratio",
    ):
        assert part in text


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)'name' is given twice.*line 2"):
        load_profile(path)


def smoke_content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    return content


def test_a_merge_may_name_an_earlier_merge_and_no_later_one_nor_itself(tmp_path: Path) -> None:
    first = {"name": "first", "method": "linear", "members": ["s20", "s40"], "weights": "equal"}
    second = {"name": "second", "method": "linear", "members": ["first", "full"], "weights": [1, 2]}
    members = [member for member in smoke_content()["members"] if "start" not in member]

    def edit(*merges: dict[str, object]) -> Path:
        return edited(tmp_path, merges=[*merges], members=members)

    profile = load_profile(edit(first, second))
    assert profile.merge_weights(profile.merges[1]) == [1.0, 2.0]
    boom = next(merge for merge in load_profile("smoke").merges if merge.name == "boom")
    assert load_profile("smoke").merge_weights(boom) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert profile.ratio(profile.subset("half-rest")) == pytest.approx(0.5)
    assert profile.trained_members("second") == ["s20", "s40", "full"]
    with pytest.raises(ConfigError, match="merge 'second': no member or earlier merge 'first'"):
        load_profile(edit(second, first))
    with pytest.raises(ConfigError, match="merge 'first': no member or earlier merge 'first'"):
        load_profile(edit({**first, "members": ["s20", "first"]}))


def test_the_members_behind_a_merge_of_merges_are_named_once_each() -> None:
    merges = {"inner": ["a", "b"], "outer": ["inner", "b", "c"], "beside": ["outer", "inner"]}
    assert trained_members("beside", merges) == ["a", "b", "c"]
    assert trained_members("a", merges) == ["a"]


def test_new_data_are_drawn_by_ratio_from_datasets_that_are_declared_new(tmp_path: Path) -> None:
    def problems(subsets: list[dict[str, Any]], **corpus: Any) -> str:
        changed = {**smoke_content()["corpus"], **corpus}
        members = [{"name": "full", "subset": "all"}]
        with pytest.raises(ConfigError) as caught:
            load_profile(edited(tmp_path, subsets=subsets, members=members, merges=[], corpus=changed))
        return str(caught.value)

    everything = {"name": "all", "ratio": 1.0, "new_data": 1.0}
    rest = {"name": "rest", "complement_of": "all"}
    assert "'all' holds new data, a complement of it is not defined" in problems([everything, rest])
    assert "`new_data` goes with `ratio`" in problems([everything, {**rest, "new_data": 0.5}])
    assert "corpus.new_datasets is empty" in problems([everything], new_datasets=[])
    twice = ["docstring_to_code", "exception_class"]
    assert "dataset 'exception_class' is named twice" in problems([everything], new_datasets=twice)


def test_a_subset_speaks_of_new_data_only_if_it_holds_some() -> None:
    profile = Profile.model_validate(smoke_content())
    assert "new_data" not in profile.subset("p20").rule()
    assert profile.subset("update").rule()["new_data"] == 1.0
    assert profile.new_datasets(profile.subset("p20")) == ()
    assert profile.new_datasets(profile.subset("update")) == ("docstring_to_code",)


# --- bases, benchmarks, sources ---------------------------------------------------------------------------------------


def problem_with(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_profile(edited(tmp_path, **changes))
    return str(caught.value)


def test_a_base_is_made_or_pretrained_and_wrong_keys_of_either_are_named(tmp_path: Path) -> None:
    pretrained = {"kind": "pretrained", "name": "someone/model", "max_seq_length": 128}
    profile = load_profile(edited(tmp_path, base_model=pretrained))
    assert isinstance(profile.base_model, PretrainedBase)
    assert profile.model_names[:2] == ["base", "s20"]
    assert load_profile("smoke").model_names[:2] == ["random", "base"]
    said = problem_with(tmp_path, base_model={**pretrained, "poling": "mean"})
    assert "poling: unknown key; did you mean 'pooling'?" in said
    assert "did you mean 'pretrained'?" in problem_with(tmp_path, base_model={**pretrained, "kind": "pretrain"})
    said = problem_with(tmp_path, subsets=[{"name": "a", "ratio": 0.5, "complement_of": "b"}])
    assert "exactly one of `ratio` and `complement_of`" in said
    assert "both of `parameters` and" in problem_with(tmp_path, base_model={**pretrained, "parameters": 1e9})


def test_a_study_needs_a_task_or_a_benchmark_in_either_domain(tmp_path: Path) -> None:
    evaluation = smoke_content()["evaluation"]
    said = problem_with(tmp_path, evaluation={**evaluation, "in_domain": [], "out_of_domain": []})
    assert "evaluation: name at least one task, in or out of domain, or a benchmark of mteb" in said
    assert load_profile(edited(tmp_path, evaluation={**evaluation, "in_domain": []})).evaluation.in_domain == ()
    benchmarks = {**evaluation, "in_domain": [], "in_domain_benchmarks": ["MTEB(eng, v2)"]}
    assert load_profile(edited(tmp_path, evaluation=benchmarks)).evaluation.in_domain == ()
    twice = {**benchmarks, "out_of_domain_benchmarks": ["MTEB(eng, v2)"]}
    assert "benchmark 'MTEB(eng, v2)' is named twice" in problem_with(tmp_path, evaluation=twice)


def test_sources_speak_of_values_the_profile_has_and_come_from_a_known_place(tmp_path: Path) -> None:
    fine = {"training.learning_rate": "paper", "members.s20.seed": "ours: any", "merges.boom": "model card: weights"}
    assert load_profile(edited(tmp_path, sources=fine)).sources == fine
    said = problem_with(
        tmp_path,
        sources={"training.learning_rat": "paper", "members.s21": "ours", "merges.boom": "papers: page 3"},
    )
    assert "sources.training.learning_rat: the profile has no 'learning_rat'; did you mean 'learning_rate'?" in said
    assert "sources.members.s21: the profile has no 's21'" in said
    assert "sources.merges.boom: no source 'papers'; did you mean 'paper'?" in said


def stated(value: Any, key: str = "") -> list[str]:
    """Dotted keys of everything a profile states."""
    parts = entries_of(value)
    if not parts:
        return [key]
    return [name for part, below in parts.items() for name in stated(below, f"{key}.{part}".lstrip("."))]


@pytest.mark.parametrize("name", ["paper-0.6b", "paper-4b"])
def test_every_value_of_the_papers_profiles_carries_its_source(name: str) -> None:
    path = PROFILES / f"{name}.yaml"
    content, profile = extended(read_yaml(path, ConfigError), path), load_profile(name)
    own = {"name", "description", "experiments", "sources"}
    keys = [key for part, value in content.items() if part not in own for key in stated(value, part)]
    covered = tuple(profile.sources)
    missing = [key for key in keys if not any(key == c or key.startswith(f"{c}.") for c in covered)]
    assert not missing
    assert profile.evaluation.in_domain_benchmarks == ("MTEB(eng, v2)",)


def test_the_papers_profiles_have_the_values_of_its_scripts() -> None:
    small, large = load_profile("paper-0.6b").training, load_profile("paper-4b").training
    for training in (small, large):
        assert (training.learning_rate, training.temperature, training.warmup_ratio) == (5e-5, 0.02, 0.1)
        assert (training.query_max_len, training.passage_max_len, training.train_group_size) == (512, 512, 8)
        assert (training.processes, training.negatives_cross_device) == (8, True)
    assert (small.per_device_train_batch_size, small.precision, small.lora) == (32, "fp16", None)
    assert large.lora is not None
    assert (large.lora.r, large.lora.lora_alpha, large.lora.lora_dropout) == (32, 32, 0.1)
    assert len(load_profile("paper-0.6b").corpus.datasets) == 31
    assert len(load_profile("paper-4b").corpus.new_datasets) == 2 + 16 + 11 + 6


@pytest.mark.parametrize("name", ["mini", "mini-tenth", "open", "paper-0.6b", "paper-4b"])
def test_the_sampling_ratios_of_the_paper_are_all_there(name: str) -> None:
    profile = load_profile(name)
    ratios = {
        m.name: sorted(round(profile.member_ratio(n), 6) for n in m.members)
        for m in profile.merges[:6]
        if m.name.startswith("boom") and m.name != "boom-updated"
    }
    assert ratios["boom"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ratios["boom-40-100"] == [0.4, 0.6, 0.8, 1.0]
    assert ratios["boom-80-100"] == [0.8, 1.0]
    assert ratios["boom-halves"] == [0.5, 0.5]
    assert ratios["boom-sixties"] == [0.6, 0.6, 0.6]
    schedules = {member.schedule for member in profile.members}
    assert schedules == {"batch_shuffled", "sequential_datasets", "sequential_families", "two_stage"}
    if profile.corpus.new_datasets:
        assert (profile.member_ratio("update"), profile.member_subset("update").new_data) == (0.4, 1.0)
        assert (profile.member_ratio("retrained"), profile.member_subset("retrained").new_data) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["smoke", "mini", "mini-tenth", "open", "paper-0.6b", "paper-4b"])
def test_every_profile_declares_the_papers_experiments(name: str) -> None:
    profile = load_profile(name)
    assert {"slerp", "multislerp", "karcher", "task_arithmetic", "ties", "sce", "model_stock"} <= {
        merge.method for merge in profile.merges
    }
    parts = {merge.name: profile.trained_members(merge.name) for merge in profile.merges}
    members = {member.name: member for member in profile.members}
    held = [members[part].datasets for part in parts["by-dataset"]]
    assert sorted(held) == sorted((dataset,) for dataset in profile.corpus.datasets)
    for granularity in ("by-dataset", "by-family"):
        covered = [dataset for part in parts[granularity] for dataset in members[part].datasets or ()]
        assert sorted(covered) == sorted(profile.corpus.datasets)
    assert profile.interaction is not None
    clusters = [members[part].cluster for part in parts["by-cluster"]]
    assert clusters == list(range(1, profile.interaction.clusters + 1))
    assert {"boom", "boom-updated", "updated-no-core"} <= {*parts}
    assert members["continued"].start == "boom"


def extending(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "smoke", "name": "mine", **changes}), encoding="utf-8")
    return path


def test_a_profile_that_extends_another_differs_in_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    below, mine = load_profile("smoke"), load_profile(extending(tmp_path, training={"temperature": 0.02}))
    expected = below.model_dump()
    expected["name"], expected["training"]["temperature"] = "mine", 0.02
    assert mine.model_dump() == expected


def test_named_entries_take_the_place_of_their_namesakes_or_come_last(tmp_path: Path) -> None:
    changed = [{"name": "s40", "subset": "p20", "seed": 9}, {"name": "more", "subset": "p80"}]
    below, mine = load_profile("smoke"), load_profile(extending(tmp_path, **{"members+": changed}))
    assert [member.name for member in mine.members] == [*(member.name for member in below.members), "more"]
    assert mine.member_subset("s40").name == "p20"


def test_lists_are_replaced_and_null_takes_away(tmp_path: Path) -> None:
    content = {"watch": None, "evaluation": {"out_of_domain": ["docstring_to_code"]}, "training": {"precision": None}}
    mine = load_profile(extending(tmp_path, **content))
    assert mine.watch is None and mine.training.precision == "fp32"
    assert mine.evaluation.out_of_domain == ("docstring_to_code",)
    assert mine.evaluation.in_domain == load_profile("smoke").evaluation.in_domain


def test_extending_what_is_not_there_or_extends_itself_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'smoky'; did you mean 'smoke'"):
        load_profile("smoky")
    with pytest.raises(ConfigError, match=r"no profile 'smok' to extend.*did you mean 'smoke'"):
        load_profile(extending(tmp_path, extends="smok"))
    with pytest.raises(ConfigError, match="'mini-tenth' extends a profile itself"):
        load_profile(extending(tmp_path, extends="mini-tenth"))
    for key in ("training+", "nothing+"):
        with pytest.raises(ConfigError, match=r"adds to a list of entries with names"):
            load_profile(extending(tmp_path, **{key: [{"name": "x"}]}))
    with pytest.raises(ConfigError, match="unknown key"):
        load_profile(extending(tmp_path, trainin={"temperature": 1}))
