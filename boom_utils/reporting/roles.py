"""What each model of a study is for, from facts about members and merges: nothing is known from names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boom_utils.config import trained_members

SHUFFLED = "batch_shuffled"


def from_base(facts: Mapping[str, Any]) -> bool:
    """Whether a member was trained from the base, on every dataset of its subset."""
    return not is_restricted(facts) and facts.get("start") is None


def is_restricted(facts: Mapping[str, Any]) -> bool:
    """Whether a member is trained on some of its subset's datasets only: chosen ones, or those of a cluster."""
    return facts.get("datasets") is not None or facts.get("cluster") is not None


def shuffled_members(members: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Members trained on all datasets of the old data, batch-level shuffled: the ones to merge in the static setting.

    Args:
        members: Name -> at least ``schedule`` and ``new_data`` (the share of the new data; None: of none).
    """
    return [
        name
        for name, facts in members.items()
        if facts["schedule"] == SHUFFLED and facts["new_data"] is None and from_base(facts)
    ]


def updated_merges(members: Mapping[str, Mapping[str, Any]], merges: Mapping[str, Sequence[str]]) -> list[str]:
    """Merges with new data in them: a member behind them was trained on some.

    Args:
        members: Name -> at least ``new_data``.
        merges: Name -> what is merged: members, or other merges.
    """
    new = {name for name, facts in members.items() if facts["new_data"] is not None}
    return [name for name in merges if new & {*trained_members(name, merges)}]


def incremental_models(members: Mapping[str, Mapping[str, Any]], merges: Mapping[str, Sequence[str]]) -> list[str]:
    """The models of the incremental setting, in the order tables show them.

    Args:
        members: Name -> at least ``new_data``.
        merges: Name -> what is merged: members, or other merges.

    Returns:
        Models with old data that are updated, by a merge or by further training; members that a merge adds to them;
        the updated merges; and the other members with new data (trained on from those models, or from the base).
    """
    updated = updated_merges(members, merges)
    new = [name for name, facts in members.items() if facts["new_data"] is not None]
    parts = dict.fromkeys(part for merge in updated for part in merges[merge])
    starts = [members[name]["start"] for name in new if members[name].get("start")]
    existing = dict.fromkeys(part for part in (*parts, *starts) if part not in (*new, *updated))
    return [*existing, *(name for name in new if name in parts), *updated, *(name for name in new if name not in parts)]


def compared_schedules(members: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Members of the static setting that differ in nothing but their schedule: on the same subset with the same seed.

    Every plan of theirs has the same batches; only the order differs (`boom_utils.training.plan.plan_batches`).

    Args:
        members: Name -> at least ``schedule``, ``subset``, ``seed`` and ``new_data``.

    Returns:
        Member -> the batch-level shuffled member it is compared with, which stands first and is its own; empty where
        no batch-level shuffled member has a counterpart.
    """
    found: dict[str, str] = {}
    shuffled = shuffled_members(members)
    for baseline in shuffled:
        alike = [
            name
            for name, facts in members.items()
            if name not in (*shuffled, *found)
            and facts["new_data"] is None
            and from_base(facts)
            and all(facts.get(key) == members[baseline].get(key) for key in ("subset", "seed", "training"))
        ]
        if alike:
            found |= dict.fromkeys((baseline, *alike), baseline)
    return found
