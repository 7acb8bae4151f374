"""What must hold within a profile: names that resolve, and sources that speak of values the profile has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from boom_utils.errors import nearest

if TYPE_CHECKING:
    from boom_utils.config import Profile

SOURCES = ("paper", "authors' script", "model card", "third-party summary", "ours")
"""Where a value of a profile may come from; a note follows after a colon."""


def repeated(profile: Profile) -> list[str]:
    """Names that are given twice."""
    groups: dict[str, Sequence[str]] = {
        "dataset": [*profile.corpus.datasets, *profile.corpus.new_datasets],
        "subset": [subset.name for subset in profile.subsets],
        "model": profile.model_names,
        "task": [*profile.evaluation.in_domain, *profile.evaluation.out_of_domain],
        "benchmark": [*profile.evaluation.in_domain_benchmarks, *profile.evaluation.out_of_domain_benchmarks],
    }
    return [
        f"{kind} '{n}' is named twice" for kind, names in groups.items() for n, k in Counter(names).items() if k > 1
    ]


def unresolved(profile: Profile) -> list[str]:
    """Names that lead nowhere, and what does not fit together."""
    subsets = [subset.name for subset in profile.subsets]
    members = [member.name for member in profile.members]
    merges = [merge.name for merge in profile.merges]
    uses: list[tuple[str, str, str, Sequence[str]]] = []
    uses += [(f"member '{m.name}'", "subset", m.subset, subsets) for m in profile.members]
    for number, merge in enumerate(profile.merges):
        known = [*members, *merges[:number]]
        uses += [(f"merge '{merge.name}'", "member or earlier merge", name, known) for name in merge.members]
    for number, subset in enumerate(profile.subsets):
        if subset.complement_of is not None:
            uses.append((f"subset '{subset.name}'", "earlier subset", subset.complement_of, subsets[:number]))
    uses.append(("evaluation.reference", "scored model", profile.evaluation.reference, profile.scored_models))
    if profile.seeds is not None:
        uses += [("seeds", "member or merge", name, [*members, *merges]) for name in profile.seeds.models]
    uses += [(key, "member or merge", name, [*members, *merges]) for key, name in profile.experiments.names()]
    uses += _more_uses(profile, [*members, *merges])
    problems = [
        f"{who}: no {kind} '{name}'{nearest(name, known)}" for who, kind, name, known in uses if name not in known
    ]
    for merge in profile.merges:
        if not isinstance(merge.weights, str) and len(merge.weights) != len(merge.members):
            problems.append(f"merge '{merge.name}': {len(merge.weights)} weights for {len(merge.members)} members")
        if merge.weights == "ratio" and (found := sorted({*merge.members} & {*merges})):
            problems.append(f"merge '{merge.name}': '{found[0]}' is a merge and has no ratio; give equal, or numbers")
    return [
        *problems,
        *_circles(profile),
        *_misplaced_new_data(profile),
        *_misplaced_clusters(profile),
        *_domains(profile),
        *_sources(profile),
    ]


def _more_uses(profile: Profile, models: Sequence[str]) -> list[tuple[str, str, str, Sequence[str]]]:
    """Names that datasets, starting models and the interaction analysis refer to: who, what kind, name, known names."""
    subsets = [subset.name for subset in profile.subsets]
    uses: list[tuple[str, str, str, Sequence[str]]] = []
    for member in profile.members:
        if member.subset in subsets:
            held = [*profile.corpus.datasets, *profile.new_datasets(profile.subset(member.subset))]
            uses += [(f"member '{member.name}'", "dataset", name, held) for name in member.datasets or ()]
        if member.start is not None:
            uses.append((f"member '{member.name}'", "model to start from", member.start, models))
    if profile.watch is not None:
        uses.append(("watch", "subset", profile.watch.subset, subsets))
    if (found := profile.interaction) is not None:
        uses += [("interaction", "subset", name, subsets) for name in (found.subset, found.held_out)]
    return uses


def _circles(profile: Profile) -> list[str]:
    """Members that would go on from a model that is made of them."""
    made_of = {merge.name: set(merge.members) for merge in profile.merges}
    made_of |= {member.name: {member.start} if member.start else set() for member in profile.members}

    def behind(name: str, seen: frozenset[str]) -> bool:
        return any(part in seen or behind(part, seen | {part}) for part in made_of.get(name, ()))

    return [
        f"member '{member.name}' goes on from '{member.start}', which is made of it"
        for member in profile.members
        if member.start and behind(member.name, frozenset({member.name}))
    ]


def _misplaced_clusters(profile: Profile) -> list[str]:
    """Clusters without an analysis, or more than it makes; held-out rows that are trained on."""
    found, problems = profile.interaction, []
    for member in profile.members:
        if member.cluster is not None and (found is None or member.cluster > found.clusters):
            known = "there is no `interaction`" if found is None else f"`interaction` makes {found.clusters}"
            problems.append(f"member '{member.name}': cluster {member.cluster}, but {known}")
    if found is not None and found.clusters > len(profile.corpus.datasets):
        problems.append(f"interaction: {found.clusters} clusters of {len(profile.corpus.datasets)} datasets")
    if found is not None and found.held_out in (names := {subset.name: subset for subset in profile.subsets}):
        held_out = names[found.held_out]
        if held_out.complement_of != found.subset:
            problems.append(f"interaction: '{held_out.name}' is not `complement_of: {found.subset}`, it may share rows")
    return problems


def _misplaced_new_data(profile: Profile) -> list[str]:
    holding = [subset.name for subset in profile.subsets if subset.new_data is not None]
    problems = [
        f"subset '{subset.name}': '{subset.complement_of}' holds new data, a complement of it is not defined"
        for subset in profile.subsets
        if subset.complement_of in holding
    ]
    if holding and not profile.corpus.new_datasets:
        problems.append(f"subset '{holding[0]}': there are no new data, corpus.new_datasets is empty")
    return problems


def _domains(profile: Profile) -> list[str]:
    found = profile.evaluation
    named = (*found.in_domain, *found.in_domain_benchmarks, *found.out_of_domain, *found.out_of_domain_benchmarks)
    return [] if named else ["evaluation: name at least one task, in or out of domain, or a benchmark of mteb"]


def _sources(profile: Profile) -> list[str]:
    values, problems = profile.model_dump(mode="json"), []
    for key, text in profile.sources.items():
        source = text.partition(":")[0].strip()
        if source not in SOURCES:
            problems.append(f"sources.{key}: no source '{source}'{nearest(source, SOURCES)}")
        if (missing := _first_missing(values, key)) is not None:
            problems.append(f"sources.{key}: the profile has no {missing}")
    return problems


def _first_missing(values: Any, key: str) -> str | None:
    """What of a dotted key is not there, with the nearest key that is; None when all is."""
    place = values
    for part in key.split("."):
        known = entries_of(place)
        if part not in known:
            return f"'{part}'{nearest(part, known)}"
        place = known[part]
    return None


def entries_of(value: Any) -> Mapping[str, Any]:
    """The parts of a piece of a profile by the names a dotted key uses: keys, or the names of a list's entries."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list):
        return {str(entry["name"]): entry for entry in value if isinstance(entry, Mapping) and "name" in entry}
    return {}
