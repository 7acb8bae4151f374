"""Profiles: every problem at once, with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from boom_utils.config import PROFILES, Profile, load_profile, profile_names, trained_members
from boom_utils.errors import ConfigError


def edited(tmp_path: Path, **changes: Any) -> Path:
    """The smoke profile with some top-level parts replaced."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_of_the_kit_is_valid(name: str) -> None:
    assert load_profile(name).name == name


def test_a_profile_that_does_not_exist_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_profile("smoky")


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
    with pytest.raises(ConfigError) as caught:
        load_profile(edited(tmp_path, members=members, merges=merges))
    text = str(caught.value)
    for part in (
        "model 'a' is named twice",
        "no subset 'p2'; did you mean",
        "no member or earlier merge 'b'",
        "2 weights for 1 members",
    ):
        assert part in text


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)'name' is given twice.*line 2"):
        load_profile(path)


def test_a_subset_needs_exactly_one_rule(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one of `ratio` and `complement_of`"):
        load_profile(edited(tmp_path, subsets=[{"name": "a", "ratio": 0.5, "complement_of": "b"}]))


def smoke_content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))
    return content


def test_a_merge_may_name_an_earlier_merge_and_no_later_one_nor_itself(tmp_path: Path) -> None:
    first = {"name": "first", "method": "linear", "members": ["s20", "s40"], "weights": "equal"}
    second = {"name": "second", "method": "linear", "members": ["first", "full"], "weights": [1, 2]}
    profile = load_profile(edited(tmp_path, merges=[first, second]))
    assert profile.merge_weights(profile.merges[1]) == [1.0, 2.0]
    assert profile.trained_members("second") == ["s20", "s40", "full"]
    with pytest.raises(ConfigError, match="merge 'second': no member or earlier merge 'first'"):
        load_profile(edited(tmp_path, merges=[second, first]))
    with pytest.raises(ConfigError, match="merge 'first': no member or earlier merge 'first'"):
        load_profile(edited(tmp_path, merges=[{**first, "members": ["s20", "first"]}]))


def test_a_merge_has_no_ratio_to_weigh_it_by(tmp_path: Path) -> None:
    merges = [{"name": "first", "method": "linear", "members": ["s20", "s40"]}]
    merges += [{"name": "second", "method": "linear", "members": ["first", "full"], "weights": "ratio"}]
    with pytest.raises(ConfigError, match="merge 'second': 'first' is a merge and has no ratio"):
        load_profile(edited(tmp_path, merges=merges))


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


def test_weights_by_ratio_are_those_of_the_released_recipe() -> None:
    profile = load_profile("smoke")
    boom = next(merge for merge in profile.merges if merge.name == "boom")
    assert profile.merge_weights(boom) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_complement_holds_what_the_other_left() -> None:
    profile = load_profile("smoke")
    assert profile.ratio(profile.subset("half-rest")) == pytest.approx(0.5)


def test_a_profile_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_profile("smoke").training.learning_rate = 1.0  # type: ignore[misc]
