"""Models made with several seeds: everything behind them again, under names of their own.

The first seed is that of the profile's own lines; the others are copies of these lines (``boom.seed2`` of ``s20.seed2``
of ``p20.seed2``). With ``own_rows`` each seed draws from rows of its own, a part of every dataset. Copies are members
and merges like any other, but no table shows them: results pool them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boom_utils.config import Profile
from boom_utils.reporting.results import run_name

STRIDE = 1000
"""Between the seeds of a line and of its next copy: profiles number their own seeds closer than that."""


def seeds_of(profile: Profile) -> dict[str, list[str]]:
    """Every model with several seeds -> its names, one a seed, the first of which is its own."""
    seeds = profile.seeds
    if seeds is None:
        return {}
    numbers = range(1, seeds.count + 1)
    return {model: [run_name(model, n) for n in numbers if model in seeds.with_seed(n)] for model in seeds.models}


def parts_of(profile: Profile) -> dict[str, tuple[str, ...]]:
    """What every member, merge and ensemble is made from, besides the base."""
    merged = {one.name: one.members for one in profile.mixed}
    return merged | {member.name: (member.start,) if member.start else () for member in profile.members}


def with_seeds(profile: Profile) -> Profile:
    """The profile with a line for every model and subset of every seed; itself where there is one seed only."""
    if profile.seeds is None:
        return profile
    drawn_from = {subset.name: (subset.complement_of,) if subset.complement_of else () for subset in profile.subsets}
    count, subsets = profile.seeds.count, [*profile.subsets]
    if profile.seeds.own_rows:
        subsets = [one.model_copy(update={"part": (1, count)}) for one in subsets]
    members, merges, ensembles = [*profile.members], [*profile.merges], [*profile.ensembles]
    for number in range(2, count + 1):
        later, seeded = STRIDE * (number - 1), profile.seeds.with_seed(number)
        scored, behind = {*seeded} & {*profile.scored_models}, _closure(seeded, parts_of(profile))
        drawn = _closure([member.subset for member in profile.members if member.name in behind], drawn_from)

        def copy(name: str | None, number: int = number) -> str | None:
            return name and run_name(name, number)

        for subset in (one for one in profile.subsets if one.name in drawn):
            change: dict[str, Any] = {"name": copy(subset.name), "seed": subset.seed + later}
            change |= {"part": (number, count)} if profile.seeds.own_rows else {}
            subsets.append(subset.model_copy(update={**change, "complement_of": copy(subset.complement_of)}))
        for member in (one for one in profile.members if one.name in behind):
            change = {"name": copy(member.name), "seed": member.seed + later, "scored": member.name in scored}
            change |= {"subset": copy(member.subset), "start": copy(member.start)}
            members.append(member.model_copy(update=change))
        for merge in (one for one in profile.merges if one.name in behind):
            change = {"name": copy(merge.name), "scored": merge.name in scored}
            merges.append(merge.model_copy(update={**change, "members": tuple(map(copy, merge.members))}))
        for one in (one for one in profile.ensembles if one.name in behind):
            change = {"name": copy(one.name), "members": tuple(map(copy, one.members))}
            ensembles.append(one.model_copy(update=change))
    lines: dict[str, list[Any]] = {"subsets": subsets, "members": members, "merges": merges, "ensembles": ensembles}
    return profile.model_copy(update={**{key: tuple(some) for key, some in lines.items()}, "seeds": None})


def _closure(names: Iterable[str], parts: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Some names, and all that is behind them."""
    found, todo = set(), [*names]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += parts.get(name, ())
    return found
