"""Models with several seeds: everything behind them is made again, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import plain_smoke

from boom_utils.artifacts import Node, Workspace
from boom_utils.config import Profile
from boom_utils.data.sampling import draw_subset
from boom_utils.errors import ConfigError, DataError
from boom_utils.study.graph import Study
from boom_utils.study.seeds import seeds_of, with_seeds
from boom_utils.yaml_files import parse


def seeded(models: list[str], count: int = 3, **changes: Any) -> Profile:
    raw = {**plain_smoke(), **changes, "seeds": {"count": count, "models": models}}
    return parse(Profile, raw, "test", ConfigError)


def test_a_profile_without_seeds_is_its_own_whole() -> None:
    profile = parse(Profile, plain_smoke(), "test", ConfigError)
    assert with_seeds(profile) is profile
    assert seeds_of(profile) == {}


def test_everything_behind_a_model_is_made_again_with_other_seeds_and_nothing_else() -> None:
    profile = seeded(["boom"], count=2)
    whole = with_seeds(profile)
    parts = next(merge.members for merge in profile.merges if merge.name == "boom")
    new = [member for member in whole.members if member not in profile.members]
    assert [member.name for member in new] == [f"{name}.seed2" for name in parts]
    assert [merge.name for merge in whole.merges if merge not in profile.merges] == ["boom.seed2"]
    old = {member.name: member for member in profile.members}
    for member in new:
        before = old[member.name.removesuffix(".seed2")]
        assert member.seed != before.seed
        assert member.subset == f"{before.subset}.seed2"
        drawn, drawn_before = whole.subset(member.subset), profile.subset(before.subset)
        assert drawn.seed != drawn_before.seed
        assert drawn.ratio == drawn_before.ratio
    assert len(whole.subsets) == len(profile.subsets) + len(parts)


def test_only_the_named_models_are_scored_with_the_weights_of_their_first_seed_on_parts_of_their_own() -> None:
    raw = plain_smoke()
    raw["subsets"] = [*raw["subsets"], {"name": "rest", "complement_of": "p20"}]
    raw["members"] = [*raw["members"], {"name": "on", "subset": "rest", "start": "boom"}]
    raw["seeds"] = {"count": 3, "models": ["boom", "full", "on"]}
    whole = with_seeds(parse(Profile, raw, "test", ConfigError))
    later = [name for name in whole.scored_models if ".seed" in name]
    assert sorted(later) == [f"{name}.seed{number}" for name in ("boom", "full", "on") for number in (2, 3)]
    merges, members = ({one.name: one for one in some} for some in (whole.merges, whole.members))
    assert whole.merge_weights(merges["boom.seed3"]) == whole.merge_weights(merges["boom"])
    assert members["on.seed2"].start == "boom.seed2"
    assert whole.subset("rest.seed2").complement_of == "p20.seed2"


def test_seeds_with_rows_of_their_own_share_none_and_keep_their_ratios() -> None:
    profile = seeded(["full", "boom"])
    assert profile.seeds is not None
    own = profile.model_copy(update={"seeds": profile.seeds.model_copy(update={"own_rows": True})})
    rows, whole = {"a": 300, "b": 31}, with_seeds(own)
    subset = next(one.subset for one in whole.members if one.name == "full")
    drawn = [draw_subset(rows, whole.subset(name)) for name in (subset, f"{subset}.seed2", f"{subset}.seed3")]
    for dataset, count in rows.items():
        found = [one[dataset].tolist() for one in drawn]
        assert sorted(row for ids in found for row in ids) == [*range(count)]
    small = next(one.subset for one in whole.members if one.name == "s20")
    assert len(draw_subset(rows, whole.subset(small))["a"]) == 20
    assert set(draw_subset(rows, whole.subset(small))["a"]) <= set(drawn[0]["a"])
    with pytest.raises(DataError, match="3 parts cannot be made of c"):
        draw_subset({"c": 2}, whole.subset(small))
    assert "part" not in profile.subset(small).rule()


def test_a_model_of_several_seeds_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"seeds: no member or merge 'bom'.*boom"):
        seeded(["bom"])


def identity(node: Node) -> Any:
    """All that a node's key is made of."""
    return (node.stage, node.version, node.config, {name: identity(one) for name, one in node.inputs.items()})


def test_a_study_has_nodes_for_every_seed_and_other_keys_for_each(tmp_path: Any) -> None:
    study = Study(seeded(["boom"], count=3), Workspace(tmp_path))
    made = [identity(study.node(f"member/s20{copy}")) for copy in ("", ".seed2", ".seed3")]
    assert made[0] != made[1] != made[2] != made[0]
    task = study.profile.evaluation.in_domain[0]
    assert f"scores/boom.seed3/{task}" in study.nodes
    assert f"scores/s20.seed3/{task}" not in study.nodes
    assert f"scores/boom.seed2/{task}" in study.nodes_of("06_merging_ablations")
    assert f"scores/boom.seed2/{task}" not in study.nodes_of("03_merge")
    assert study.group("averages").count("boom.seed2") == 0


def test_a_further_seed_changes_no_key_of_the_first(tmp_path: Any) -> None:
    one, many = (
        Study(profile, Workspace(tmp_path))
        for profile in (parse(Profile, plain_smoke(), "test", ConfigError), seeded(["boom"]))
    )
    for name in ("member/s20", "merge/boom", "subset/p20"):
        assert identity(one.node(name)) == identity(many.node(name))
