"""Tables of a study that has an interpolation curve or hypotheses: arms beside the curve, and what is decided.

A model that was merged, or trained in parts, has to be better than what costs nothing: the models on the line from the
base to one trained model. What it has over them is in `boom_utils.reporting.results.Results.surplus`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from boom_utils.evaluation.statistics import Estimate, Measured
from boom_utils.experiments import CURVE, Hypothesis
from boom_utils.reporting.claims import NO_SEEDS, RANKS, correct
from boom_utils.reporting.experiments import arms
from boom_utils.reporting.results import Results, Surplus
from boom_utils.reporting.tables import WIDER, Table, beside, compare, describe, estimate_columns, seeds_of

WANTED = 0.005
"""Half the width of an interval that a study should reach: half a point of a score of 0 to 100."""
PLACE = "it is not sure that the model is beyond the curve"
_MOST_SEEDS = 200
OUTSIDE = "out-of-domain"


def arms_of(results: Results) -> list[str]:
    """The base and `boom_utils.reporting.experiments.arms`; none in a study that declares none."""
    found = arms(results)
    return [*(("base",) if found and "base" in results.models else ()), *found]


def equal_cost_table(results: Results) -> pd.DataFrame:
    """Every arm by what its training costs: its means, how far it is above the curve out of domain, from base and full.

    Of one cost the best above the curve stands first. Empty for a study that declares no frontier.
    """
    shown, full = arms_of(results), results.full
    facts = [{"model": name, "what": describe(results, name), **_cost(results, name)} for name in shown]
    frames = [
        compare(results, shown, results.groups, dict.fromkeys(shown, other), title=title)
        for other, title in (("base", "base"), (full, "full"))
        if other in shown
    ]
    frames = [frame[[name for name in frame if "minus" in str(name)]] for frame in frames]
    above = pd.DataFrame([_above(results, name) for name in shown])
    found = beside(facts, compare(results, shown, results.groups), above, *frames)
    best = next((name for name in (f"{OUTSIDE} minus curve", OUTSIDE) if name in found), None)
    if best is None:
        return found
    order = pd.DataFrame({"cost": found["corpus passes"].round(2), "above": -found[best].fillna(0.0)})
    return found.loc[order.sort_values(["cost", "above"], kind="stable").index].reset_index(drop=True)


def domain_table(results: Results) -> pd.DataFrame:
    """The arms in domain, and out of domain on code and on other tasks, and on those that the base was not trained on.

    Differences are to the base. Empty for a study that declares no frontier.
    """
    shown, outside = arms_of(results), results.tasks(OUTSIDE)
    code = {task["name"] for task in results.study["tasks"] if task["family"] == "code"}
    seen = {*results.study["evaluation"].get("seen_by_base", ())}
    groups = {
        "in-domain": results.tasks("in-domain"),
        f"{OUTSIDE} code": [name for name in outside if name in code],
        f"{OUTSIDE} other": [name for name in outside if name not in code],
    }
    if seen:
        groups[f"{OUTSIDE} new to the base"] = [name for name in outside if name not in seen]
    groups = {name: tasks for name, tasks in groups.items() if tasks}
    base = "base" if "base" in shown else None
    return beside([{"model": name} for name in shown], compare(results, shown, groups, base, over_tasks=True))


def hypothesis_table(results: Results) -> pd.DataFrame:
    """What the study was made to decide: a row a hypothesis and domain, with p values corrected for all of them.

    Primary ones share alpha; secondary ones are tested with what the decided ones pass on, see
    `boom_utils.evaluation.statistics.gatekeeping`. ``higher`` and ``lower`` are on these tasks where the same test over
    tasks does not decide. Empty for a study that declares none.
    """
    found, rows = results.experiments.hypotheses, list[dict[str, Any]]()
    for rank, hypotheses in zip(RANKS, (found.primary, found.secondary), strict=False):
        rows += [{"rank": rank} | _tested(results, one, domain) for one in hypotheses for domain in results.domains]
    correct(rows, 1 - results.confidence)
    order = ["verdict", "rank", "model", "against", "domain", "difference", "difference low", "difference high"]
    order += [*(f"difference{WIDER}{end}" for end in ("", " low", " high")), "p", "p (corrected)"]
    order += [f"p{WIDER} (corrected)", "seeds", "place on the curve", "what limits it"]
    return pd.DataFrame(rows, columns=order if rows else [])


def _tested(results: Results, hypothesis: Hypothesis, domain: str) -> dict[str, Any]:
    """Cells of one difference, with p values that are not corrected."""
    model, other = hypothesis.model, hypothesis.against
    row: dict[str, Any] = {"model": model, "against": other, "domain": domain, f"p{WIDER}": 1.0}
    row["seeds"] = len(results.common_seeds([model, other]))

    def measured(over_tasks: bool) -> tuple[Measured, Estimate, float]:
        if other == CURVE:
            above = results.surplus(model, domain, over_tasks)
            row["place on the curve"], row["seeds"] = _place(above), above.seeds
            return above.measured, above.estimate, above.p_value
        one = results.comparison(model, other, results.tasks(domain), over_tasks=over_tasks)
        return one, one.estimate(results.confidence), one.p_value

    found, estimate, p_value = measured(False)
    row["word"] = "higher" if found.value > 0 else "lower"
    row |= {"p": float(f"{p_value:.3g}"), **estimate_columns("difference", estimate)}
    if min(len(tasks) for tasks in results.groups.values()) > 1:
        _, wider, row[f"p{WIDER}"] = measured(True)
        row |= estimate_columns(f"difference{WIDER}", wider)
    unsure = estimate.low < found.estimate(results.confidence).low
    limit = PLACE if unsure else what_limits(found, row["seeds"], results.confidence)
    return row | {"what limits it": limit}


def what_limits(found: Measured, seeds: int, confidence: float) -> str:
    """What makes an interval wide, and how many more of it would bring half its width to half a point.

    >>> what_limits(Measured(0.0, {"queries": (1e-6, 1e9), "seeds": (2e-5, 4.0)}), 5, 0.95)
    'seeds: 21 instead of 5 would do'
    """
    if "seeds" not in found.levels:
        return NO_SEEDS
    halves = {level: _half({level: of}, confidence) ** 2 for level, of in found.levels.items()}
    widest, whole = max(halves, key=lambda level: halves[level]), sum(halves.values())
    if whole <= WANTED**2:
        return f"{widest}, within half a point"
    left = WANTED**2 - (whole - halves[widest])
    if widest == "seeds" and left > 0:
        one = found.levels["seeds"][0] * seeds
        for more in range(seeds + 1, _MOST_SEEDS):
            if _half({"seeds": (one / more, more - 1.0)}, confidence) ** 2 <= left:
                return f"seeds: {more} instead of {seeds} would do"
    if widest == "queries" and left > 0:
        return f"queries: {halves[widest] / left:.2g} times as many would do"
    return f"queries and seeds: {whole / WANTED**2:.2g} times as many of both would do"


def _half(levels: Mapping[str, tuple[float, float]], confidence: float) -> float:
    return Measured(0.0, levels).estimate(confidence).high


def _cost(results: Results, model: str) -> dict[str, Any]:
    """What training it costs, how many models answer where these are several, and over how many seeds it was made."""
    found = results.ensembles
    asked = {"models asked": len(results.parts[model]) if model in found else 1} if found else {}
    return {"corpus passes": results.cost(model), **asked, **seeds_of(results, model)}


def _above(results: Results, model: str) -> dict[str, Any]:
    """Cells of what a model has over the curve out of domain; none where there is no curve, or it is on it."""
    curve = results.interpolation
    if not curve or len(results.domains) < 2 or model in {name for _, name in curve}:
        return {}
    found, name = results.surplus(model, OUTSIDE), f"{OUTSIDE} minus curve"
    row = estimate_columns(name, found.estimate)
    if min(len(tasks) for tasks in results.groups.values()) > 1:
        row |= estimate_columns(f"{name}{WIDER}", results.surplus(model, OUTSIDE, over_tasks=True).estimate)
    return {**row, "place on the curve": _place(found)}


def _place(found: Surplus) -> str:
    """Share of the way from the base, or the end of the curve that a model lies beyond."""
    return f"beyond {found.share:.2g}" if found.beyond else f"{found.share:.2g}"


CONTROL_TABLES: dict[str, Table] = {
    "hypotheses": hypothesis_table,
    "equal_cost": equal_cost_table,
    "domains": domain_table,
}
