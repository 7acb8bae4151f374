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

SMOKE: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
EVALUATION, NOTHING_SCORED = SMOKE["evaluation"], {**SMOKE["evaluation"], "in_domain": [], "out_of_domain": []}
FULL = {"members": [{"name": "full", "subset": "all"}], "merges": []}
WHOLE, REST = {"name": "all", "ratio": 1.0, "new_data": 1.0}, {"name": "rest", "complement_of": "all"}
FIRST = {"name": "first", "method": "linear", "members": ["s20", "s40"], "weights": "equal"}
SECOND = {"name": "second", "method": "linear", "members": ["first", "full"], "weights": [1, 2]}
FROM_BASE = [member for member in SMOKE["members"] if "start" not in member]
BASE = {"kind": "pretrained", "name": "someone/model", "max_seq_length": 128}
BENCHMARK = ["MTEB(eng, v2)"]


def edited(tmp_path: Path, **changes: Any) -> Path:
    """The smoke profile with some top-level parts replaced; without experiments where its models are."""
    experiments = {} if {"members", "merges"} & {*changes} else SMOKE["experiments"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMOKE, "experiments": experiments, **changes}), encoding="utf-8")
    return path


def extending(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": "smoke", "name": "mine", **changes}), encoding="utf-8")
    return path


PROBLEMS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "training": {**SMOKE["training"], "temprature": 1, "learning_rate": -1.0},
            "corpus": {**SMOKE["corpus"], "seeed": 1},
        },
        [
            *("3 problem(s)", "training.temprature: unknown key; did you mean 'temperature'?"),
            *("training.learning_rate", "corpus.seeed: unknown key; did you mean 'seed'?"),
        ],
    ),
    (
        {
            "members": [{"name": "a", "subset": "p2"}, {"name": "a", "subset": "p20"}],
            "merges": [
                {"name": "m", "method": "linear", "members": ["b"], "weights": [1, 2]},
                {"name": "n", "method": "linear", "members": ["m"], "weights": "ratio"},
            ],
        },
        [
            *("model 'a' is named twice", "no subset 'p2'; did you mean", "no member or earlier merge 'b'"),
            *("2 weights for 1 members", "merge 'n': 'm' is a merge and has no ratio"),
        ],
    ),
    ({"members": FROM_BASE, "merges": [SECOND, FIRST]}, ["merge 'second': no member or earlier merge 'first'"]),
    (
        {"members": FROM_BASE, "merges": [{**FIRST, "members": ["s20", "first"]}]},
        ["merge 'first': no member or earlier merge 'first'"],
    ),
    ({**FULL, "subsets": [WHOLE, REST]}, ["'all' holds new data, a complement of it is not defined"]),
    ({**FULL, "subsets": [WHOLE, {**REST, "new_data": 0.5}]}, ["`new_data` goes with `ratio`"]),
    (
        {**FULL, "subsets": [WHOLE], "corpus": {**SMOKE["corpus"], "new_datasets": []}},
        ["corpus.new_datasets is empty"],
    ),
    (
        {"corpus": {**SMOKE["corpus"], "new_datasets": ["docstring_to_code", "exception_class"]}},
        ["dataset 'exception_class' is named twice"],
    ),
    ({"base_model": {**BASE, "poling": "mean"}}, ["poling: unknown key; did you mean 'pooling'?"]),
    ({"base_model": {**BASE, "kind": "pretrain"}}, ["did you mean 'pretrained'?"]),
    ({"base_model": {**BASE, "parameters": 1e9}}, ["both of `parameters` and"]),
    ({"training": {**SMOKE["training"], "average": {}}}, ["training.average: give exactly one of `ema` and `last`"]),
    (
        {"training": {**SMOKE["training"], "average": {"ema": 1.0, "last": 1}}},
        ["training.average.ema: Input should be less than 1", "training.average.last: Input should be greater than or"],
    ),
    (
        {
            "experiments": {
                "interpolation": {"of": "full", "models": ["boom", "s20"]},
                "frontier": ["slerp-1"],
                "hypotheses": {"primary": [{"model": "boom", "against": "soup"}]},
            }
        },
        [
            "experiments.interpolation: 'boom' is no task_arithmetic of 'full' alone with a weight",
            "experiments.interpolation: 's20' is no merge",
            "experiments.frontier: no scored model 'slerp-1'",
            "experiments.hypotheses: no scored model 'soup'",
        ],
    ),
    (
        {"experiments": {"hypotheses": {"secondary": [{"model": "boom", "against": "interpolation"}]}}},
        ["experiments.hypotheses: one is against `interpolation`, and the experiments have none"],
    ),
    ({"evaluation": {**EVALUATION, "seen_by_base": ["nq"]}}, ["evaluation.seen_by_base: no task 'nq'"]),
    ({"subsets": [{**REST, "ratio": 0.5}]}, ["exactly one of `ratio` and `complement_of`"]),
    ({"evaluation": NOTHING_SCORED}, ["evaluation: name at least one task, in or out of domain, or a benchmark"]),
    (
        {"evaluation": {**EVALUATION, "in_domain_benchmarks": BENCHMARK, "out_of_domain_benchmarks": BENCHMARK}},
        ["benchmark 'MTEB(eng, v2)' is named twice"],
    ),
    (
        {"sources": {"training.learning_rat": "paper", "members.s21": "ours", "merges.boom": "papers: page 3"}},
        [
            "sources.training.learning_rat: the profile has no 'learning_rat'; did you mean 'learning_rate'?",
            "sources.members.s21: the profile has no 's21'",
            "sources.merges.boom: no source 'papers'; did you mean 'paper'?",
        ],
    ),
]


@pytest.mark.parametrize(("changes", "said"), PROBLEMS)
def test_all_problems_of_a_profile_are_reported_together_with_the_nearest_names(
    tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile(edited(tmp_path, **changes))
    assert [part for part in said if part not in str(caught.value)] == []


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)line 2.*'name' is given twice"):
        load_profile(path)


def test_a_merge_may_be_of_merges_whose_members_are_named_once_each_with_weights_by_ratio(tmp_path: Path) -> None:
    profile, smoke = load_profile(edited(tmp_path, merges=[FIRST, SECOND], members=FROM_BASE)), load_profile("smoke")
    assert profile.merge_weights(profile.merges[1]) == [1.0, 2.0]
    assert profile.trained_members("second") == ["s20", "s40", "full"]
    boom = next(merge for merge in smoke.merges if merge.name == "boom")
    assert smoke.merge_weights(boom) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert smoke.ratio(smoke.subset("half-rest")) == pytest.approx(0.5)
    merges = {"inner": ["a", "b"], "outer": ["inner", "b", "c"], "beside": ["outer", "inner"]}
    assert trained_members("beside", merges) == ["a", "b", "c"]


def test_a_subset_speaks_of_new_data_only_if_it_holds_some() -> None:
    profile = Profile.model_validate(SMOKE)
    assert "new_data" not in profile.subset("p20").rule()
    assert profile.subset("update").rule()["new_data"] == 1.0
    assert profile.new_datasets(profile.subset("p20")) == ()
    assert profile.new_datasets(profile.subset("update")) == ("docstring_to_code",)


def test_a_base_is_made_or_pretrained_and_a_study_may_have_benchmarks_alone_and_sources(tmp_path: Path) -> None:
    sources = {"training.learning_rate": "paper", "members.s20.seed": "ours: any", "merges.boom": "model card: weights"}
    evaluation = {**NOTHING_SCORED, "in_domain_benchmarks": BENCHMARK}
    profile = load_profile(edited(tmp_path, base_model=BASE, evaluation=evaluation, sources=sources))
    assert isinstance(profile.base_model, PretrainedBase) and profile.sources == sources
    assert profile.model_names[:2] == ["base", "s20"]
    assert load_profile("smoke").model_names[:2] == ["random", "base"]


# --- the profiles of the kit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_of_the_kit_is_valid(name: str) -> None:
    assert load_profile(name).name == name


def stated(value: Any, key: str = "") -> list[str]:
    """Dotted keys of everything a profile states."""
    parts = entries_of(value)
    return [name for part, below in parts.items() for name in stated(below, f"{key}.{part}".lstrip("."))] or [key]


@pytest.mark.parametrize("name", ["paper-0.6b", "paper-4b"])
def test_every_value_of_the_papers_profiles_carries_its_source(name: str) -> None:
    path, profile = PROFILES / f"{name}.yaml", load_profile(name)
    own = {"name", "description", "experiments", "sources"}
    content = extended(read_yaml(path, ConfigError), path)
    keys = [key for part, value in content.items() if part not in own for key in stated(value, part)]
    covered = tuple(profile.sources)
    assert not [key for key in keys if not any(key == c or key.startswith(f"{c}.") for c in covered)]
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


RATIOS = {
    "boom": [0.2, 0.4, 0.6, 0.8, 1.0],
    "boom-40-100": [0.4, 0.6, 0.8, 1.0],
    "boom-80-100": [0.8, 1.0],
    "boom-halves": [0.5, 0.5],
    "boom-sixties": [0.6, 0.6, 0.6],
}


@pytest.mark.parametrize("name", ["smoke", "mini", "mini-tenth", "open", "paper-0.6b", "paper-4b"])
def test_every_profile_declares_the_papers_experiments(name: str) -> None:
    profile = load_profile(name)
    merges, members = ({one.name: one for one in some} for some in (profile.merges, profile.members))
    for merge, ratios in RATIOS.items() if name != "smoke" else ():
        assert sorted(round(profile.member_ratio(one), 6) for one in merges[merge].members) == ratios
    schedules = {"batch_shuffled", "sequential_datasets", "sequential_families", "two_stage"}
    assert name == "smoke" or {member.schedule for member in profile.members} == schedules
    assert {"slerp", "multislerp", "karcher", "task_arithmetic", "ties", "sce", "model_stock"} <= {
        merge.method for merge in profile.merges
    }
    parts = {merge: profile.trained_members(merge) for merge in merges}
    assert sorted(members[part].datasets or () for part in parts["by-dataset"]) == sorted(
        (dataset,) for dataset in profile.corpus.datasets
    )
    covered = [dataset for part in parts["by-family"] for dataset in members[part].datasets or ()]
    assert sorted(covered) == sorted(profile.corpus.datasets)
    assert profile.interaction is not None
    clusters = [members[part].cluster for part in parts["by-cluster"]]
    assert clusters == list(range(1, profile.interaction.clusters + 1))
    assert {"boom", "boom-updated", "updated-no-core"} <= {*parts}
    assert members["continued"].start == "boom"
    if profile.corpus.new_datasets and name != "smoke":
        assert (profile.member_ratio("update"), profile.member_subset("update").new_data) == (0.4, 1.0)
        assert (profile.member_ratio("retrained"), profile.member_subset("retrained").new_data) == (1.0, 1.0)


# --- one profile that extends another ---------------------------------------------------------------------------------


def test_a_profile_that_extends_another_differs_in_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    below, mine = load_profile("smoke"), load_profile(extending(tmp_path, training={"temperature": 0.02}))
    expected = below.model_dump()
    expected["name"], expected["training"]["temperature"] = "mine", 0.02
    assert mine.model_dump() == expected


def test_named_entries_take_the_place_of_their_namesakes_lists_are_replaced_and_null_takes_away(tmp_path: Path) -> None:
    changed = [{"name": "s40", "subset": "p20", "seed": 9}, {"name": "more", "subset": "p80"}]
    content = {"watch": None, "evaluation": {"out_of_domain": ["docstring_to_code"]}, "training": {"precision": None}}
    below, mine = load_profile("smoke"), load_profile(extending(tmp_path, **{"members+": changed, **content}))
    assert [member.name for member in mine.members] == [*(member.name for member in below.members), "more"]
    assert mine.member_subset("s40").name == "p20"
    assert mine.watch is None and mine.training.precision == "fp32"
    assert mine.evaluation.out_of_domain == ("docstring_to_code",)
    assert mine.evaluation.in_domain == below.evaluation.in_domain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extends": "smok"}, "no profile 'smok'; did you mean 'smoke'"),
        ({"extends": "mini-tenth"}, "'mini-tenth' extends a profile itself"),
        (
            {"training+": [{"name": "x"}]},
            "'training\\+' cannot add to 'training'(?s:.*)members\\+(?s:.*)write 'training'",
        ),
        ({"member+": [{"name": "x"}]}, "'member\\+' cannot add to 'member'; did you mean 'members'"),
        ({"members": []}, "no member or earlier merge 's20'\n(?s:.*)and \\d+ more(?s:.*)`members\\+`"),
        ({"trainin": {"temperature": 1}}, "unknown key"),
    ],
)
def test_extending_what_is_not_there_or_extends_itself_is_an_error(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_profile(extending(tmp_path, **changes))
