"""The claims of the paper that a study can test, in our words, and the models whose comparison tests each.

Where a claim is known from is part of it: *primary* is the abstract, the authors' repository or model card; *secondary*
a summary by others, because the full text was not at hand. No number of the paper is in here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boom_utils.reporting.ablations import members_text, plain_multislerp, ratio_text
from boom_utils.reporting.experiments import (
    CARD_RATIOS,
    Update,
    granularity_merges,
    method_groups,
    method_of,
    ratios,
    read_interaction,
    updates,
    variants,
    weights_kind,
)
from boom_utils.reporting.results import Results

MARGIN = 0.01
"""Half the width of what counts as equally good: 1 point of a score of 0 to 100. Ours; the paper states none."""
CORE = 0.4
"""Share of the old data in the paper's core subset, as a summary by others says."""
_CORE_WEIGHT = 0.5
SCHEDULING, GRANULARITY, METHODS = "data scheduling", "merging granularity", "merge methods"
INTERACTION, STATIC, INCREMENTAL = "interaction of datasets", "BOOM, static", "BOOM, incremental"
_ABSTRACT, _SUMMARY = "primary: abstract", "secondary: summary by others"
_REPOSITORY = "primary: abstract; the ratios: repository"
_VARIANTS = "primary: abstract; which variants: summary by others"


@dataclass(frozen=True)
class Expected:
    """Where the difference lies if the claim holds: between ``low`` and ``high``, in scores from 0 to 1."""

    text: str
    low: float = -math.inf
    high: float = math.inf


ABOVE = Expected("above 0", low=0.0)
BELOW = Expected("below 0", high=0.0)
ALIKE = Expected(f"within {100 * MARGIN:g} point of 0", low=-MARGIN, high=MARGIN)
AT_LEAST = Expected(f"above -{100 * MARGIN:g} point", low=-MARGIN)


@dataclass(frozen=True)
class Pair:
    """Two models compared on a group of tasks."""

    model: str
    other: str
    where: str
    tasks: tuple[str, ...]
    note: str = ""

    @property
    def name(self) -> str:
        """What is compared, in words; the same for every claim it tests."""
        return f"{self.model} minus {self.other}, {self.where}"


@dataclass(frozen=True)
class Share:
    """A share that is counted, not drawn; its bounds are what is certain. The claim is that it is below ``limit``."""

    comparison: str
    unit: str
    value: float
    low: float
    high: float
    limit: float
    note: str


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        text: What is claimed, in our words.
        part: Which part of the paper it belongs to.
        known_from: Where it is known from, and how surely.
        expected: Where the difference lies if it holds.
        tests: What of a study tests it; nothing where models are missing.
    """

    text: str
    part: str
    known_from: str
    expected: Expected
    tests: Callable[[Results], Sequence[Pair | Share]]


def all_claims() -> list[Claim]:
    """The claims, in the order of the ledger."""
    return [*_scheduling(), *_granularity(), *_methods(), *_static(), *_incremental(), _interaction()]


def _scheduling() -> list[Claim]:
    names = {
        "sequential_datasets": "one dataset after another",
        "sequential_families": "one task family after another",
        "two_stage": "training in two stages",
    }

    def _tests(schedule: str) -> Callable[[Results], Sequence[Pair]]:
        def find(results: Results) -> Sequence[Pair]:
            members = results.study["members"]
            pairs = results.schedules.items()
            found = [(baseline, name) for name, baseline in pairs if members[name]["schedule"] == schedule]
            return [pair for baseline, name in found for pair in _domains(results, baseline, name)]

        return find

    return [
        Claim(
            f"Batch-level shuffling beats {what}",
            SCHEDULING,
            _ABSTRACT if schedule == "two_stage" else _VARIANTS,
            ABOVE,
            _tests(schedule),
        )
        for schedule, what in names.items()
    ]


def _granularity() -> list[Claim]:
    def _tests(wanted: str) -> Callable[[Results], Sequence[Pair]]:
        def find(results: Results) -> Sequence[Pair]:
            merges = [merge for merge, kind in granularity_merges(results).items() if kind == wanted]
            return [pair for merge in merges if results.full for pair in _domains(results, merge, results.full)]

        return find

    return [
        Claim(f"Merging one model a {kind} does not reach batch-level shuffling", GRANULARITY, _VARIANTS, BELOW, find)
        for kind, find in ((kind, _tests(kind)) for kind in ("dataset", "family", "cluster"))
    ]


def _methods() -> list[Claim]:
    names = {"task_arithmetic": "task arithmetic", "ties": "TIES", "multislerp": "Multi-SLERP"}
    others = {**names, "slerp": "SLERP", "karcher": "the Karcher mean", "sce": "SCE"}
    alike = [("multislerp", "task_arithmetic"), ("multislerp", "ties"), ("task_arithmetic", "ties")]
    return [
        *(
            Claim(
                f"{names[a][0].upper()}{names[a][1:]} and {names[b]} are equally good",
                METHODS,
                _SUMMARY,
                ALIKE,
                _methods_compared(a, b),
            )
            for a, b in alike
        ),
        *(
            Claim(f"Model Stock is worse than {what}", METHODS, _SUMMARY, BELOW, _methods_compared("model_stock", key))
            for key, what in others.items()
        ),
    ]


def _methods_compared(a: str, b: str) -> Callable[[Results], Sequence[Pair]]:
    """Two methods on the same members: those of the task families where a study has them, as in the paper."""

    def find(results: Results) -> Sequence[Pair]:
        for group in method_groups(results):
            chosen = {method_of(results, merge)[0]: merge for merge in reversed(group)}
            chosen |= {"multislerp": plain} if (plain := plain_multislerp(results, group)) else {}
            if {a, b} <= {*chosen}:
                note = f"merged: {members_text(results, group[0])}"
                return _domains(results, chosen[a], chosen[b], note)
        return []

    return find


def _static() -> list[Claim]:
    sets = {CARD_RATIOS: "{20, 40, 60, 80, 100}", CARD_RATIOS[1:]: "{40, 60, 80, 100}"}

    def _tests(wanted: Sequence[float]) -> Callable[[Results], Sequence[Pair]]:
        def find(results: Results) -> Sequence[Pair]:
            merges = [merge for merge in variants(results) if ratios(results, merge) == tuple(wanted)]
            by_ratio = [merge for merge in merges if weights_kind(results, merge) == "by ratio"]
            return [pair for merge in by_ratio[:1] if results.full for pair in _domains(results, merge, results.full)]

        return find

    return [
        *(
            Claim(f"BOOM of samples {text} % beats batch-level shuffling", STATIC, _REPOSITORY, ABOVE, _tests(wanted))
            for wanted, text in sets.items()
        ),
        Claim("Weights by ratio and equal weights are equally good", STATIC, _SUMMARY, ALIKE, _weights_compared),
    ]


def _weights_compared(results: Results) -> Sequence[Pair]:
    found: dict[frozenset[str], dict[str, str]] = {}
    for merge in variants(results):
        found.setdefault(frozenset(results.parts[merge]), {}).setdefault(weights_kind(results, merge), merge)
    for kinds in found.values():
        if {"by ratio", "equal"} <= {*kinds}:
            return _domains(
                results, kinds["by ratio"], kinds["equal"], f"samples {ratio_text(results, kinds['equal'])} %"
            )
    return []


def _incremental() -> list[Claim]:
    text = "A merged update is on par with retraining on everything, or better"
    return [
        Claim(text, INCREMENTAL, _SUMMARY, AT_LEAST, _update_quality),
        Claim(
            "A merged update trains less than retraining", INCREMENTAL, _ABSTRACT, Expected("below 100 %"), _update_cost
        ),
    ]


def paper_update(results: Results) -> Update | None:
    """An existing model merged by multislerp with an update of the paper's core subset; equal weights come first."""
    wanted = ("merged", CORE, "multislerp")
    alike = [update for update in updates(results) if (update.kind, update.core, update.method) == wanted]
    found = [update for update in alike if update.existing]
    return min(found, key=lambda update: update.weight != _CORE_WEIGHT, default=None)


def _update_quality(results: Results) -> Sequence[Pair]:
    update, retrained = paper_update(results), results.retrained
    if update is None or retrained is None:
        return []
    note = f"weight of the update {update.weight:.2g}" if update.weight is not None else ""
    groups = results.task_groups.items()
    return [Pair(update.model, retrained, f"{name} tasks", tuple(tasks), note) for name, tasks in groups]


def _update_cost(results: Results) -> Sequence[Share]:
    update, retrained = paper_update(results), results.retrained
    if update is None or retrained is None:
        return []
    share = results.update_cost(update.model)["examples"] / results.update_cost(retrained)["examples"]
    comparison = f"examples trained on for {update.model} when new data arrive, of those for {retrained}"
    return [
        Share(
            comparison,
            "% of retraining",
            share,
            share,
            share,
            1.0,
            "counted in this study; the existing model is there",
        )
    ]


def _interaction() -> Claim:
    text = "Fewer than half of all pairs of datasets disturb one another"
    return Claim(text, INTERACTION, _ABSTRACT + "; the limit of a half is ours", Expected("below 50 %"), _conflicts)


def _conflicts(results: Results) -> Sequence[Share]:
    found = read_interaction(results)
    if found is None:
        return []
    interaction = found[0]
    names = interaction.datasets
    pairs = [interaction.pair(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    surely, surely_not = (sum(test) for test in zip(*((e.low > 0, e.high <= 0) for e in pairs), strict=True))
    value = sum(estimate.value > 0 for estimate in pairs) / len(pairs)
    comparison = (
        f"{len(pairs)} pairs trained together and apart: held-out loss surely higher for {surely}, "
        f"surely not for {surely_not}"
    )
    note = "bounds count what each pair's own interval leaves open; a share of pairs has no p value"
    return [Share(comparison, "% of pairs", value, surely / len(pairs), 1 - surely_not / len(pairs), 0.5, note)]


def _domains(results: Results, model: str, other: str, note: str = "") -> list[Pair]:
    return [Pair(model, other, domain, tuple(results.tasks(domain)), note) for domain in results.domains]
