"""The table of claims: every claim of the paper, what tests it here, and whether it holds; nothing in it is typed.

`claims.yaml` names the claims, the comparison that tests each, and its rank. A claim says where a difference lies:
above zero, below it, or within a margin. Two one-sided tests ask whether the difference lies there, and whether it lies
outside; the smaller p value, doubled, is the row's. Primary and secondary rows are corrected together
(`boom_utils.evaluation.statistics.gatekeeping`); a corrected p value below 1 - confidence decides. Rows that are only
described have their difference and interval, and no verdict.

A verdict says for what it stands: *on these tasks*, where it does not hold if other tasks of their kind are thought of;
*on these trainings*, where no variance between seeds is known. P values are computed, not drawn: they have no
Monte-Carlo error, and no verdict depends on a seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from boom_utils.artifacts import write_text
from boom_utils.evaluation.statistics import Measured, gatekeeping
from boom_utils.reporting import experiments
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import WIDER, estimate_columns, layout, markdown, shown_columns

SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTED = "supported", "not supported", "inconclusive", "not tested by this profile"
DESCRIBED = "described"
VERDICTS = (SUPPORTED, REFUTED, INCONCLUSIVE, DESCRIBED, UNTESTED)
HERE = " on these "
"""Before what a verdict is limited to."""
MARGIN = 0.01
"""Half the width of what counts as equally good: 1 point of a score of 0 to 100. Ours; the paper states none."""
CORE = 0.4
"""Share of the old data in the paper's core subset, as a summary by others says."""
RANKS = ("primary", "secondary", "described")
NO_SEEDS = "no variance between seeds known: over queries only"
_CORE_WEIGHT = 0.5
_EXPECTED = {
    "above 0": (0.0, math.inf),
    "below 0": (-math.inf, 0.0),
    "within 1 point of 0": (-MARGIN, MARGIN),
    "above -1 point": (-MARGIN, math.inf),
}
_DIFFERENCE = ("difference", "difference low", "difference high")
_COLUMNS = ["verdict", "claim", "comparison", *_DIFFERENCE, "unit", "rank", "expected", "p (corrected)"]
_COLUMNS += [*(f"difference{WIDER}{end}" for end in ("", " low", " high")), "what limits it", "part", "known from"]


def examine(found: Measured, expected: str) -> tuple[float, bool]:
    """Two-sided p value of a difference lying where a claim expects it, or outside; and whether it is inside.

    >>> p, holds = examine(Measured(0.03, {"queries": (1e-4, 100.0)}), "above 0")
    >>> round(p, 4), holds
    (0.0034, True)
    """
    low, high = _EXPECTED[expected]
    inside = 2 * max(found.p_above(low), found.p_below(high))
    outside = 2 * min(found.p_below(low), found.p_above(high))
    return min(1.0, inside, outside), inside < outside


def models_of(results: Results) -> dict[str, str]:
    """The models of a study by what they are: what `claims.yaml` names.

    ``full``, ``retrained``, ``update``; ``schedule two_stage``; ``granularity family``; ``method ties`` (of the first
    of `method_groups`: one model a family, as in the paper); ``variant {80, 100} by ratio``. The first of a kind
    counts.
    """
    found, members = {"full": results.full, "retrained": results.retrained}, results.study["members"]
    found |= {f"schedule {members[name]['schedule']}": name for name in reversed(results.schedules)}
    found |= {f"granularity {kind}": merge for merge, kind in reversed(experiments.granularity_merges(results).items())}
    for merge in reversed(results.experiments.variants):
        found[f"variant {experiments.ratio_text(results, merge)} {experiments.weights_kind(results, merge)}"] = merge
    for group in experiments.method_groups(results)[:1]:
        found |= {f"method {experiments.method_of(results, merge)[0]}": merge for merge in reversed(group)}
        found |= {"method multislerp": experiments.plain_multislerp(results, group) or found.get("method multislerp")}
    if update := paper_update(results):
        found["update"] = update.model
    return {role: model for role, model in found.items() if model}


def paper_update(results: Results) -> experiments.Update | None:
    """An existing model merged by multislerp with an update of the paper's core subset; equal weights come first."""
    wanted = ("merged", CORE, "multislerp")
    alike = [update for update in experiments.updates(results) if (update.kind, update.core, update.method) == wanted]
    found = [update for update in alike if update.existing]
    return min(found, key=lambda update: update.weight != _CORE_WEIGHT, default=None)


def claims_table(results: Results) -> pd.DataFrame:
    """The table of claims: one row a claim and comparison, or one that says that the study does not test it.

    ``difference`` is in points of a score of 0 to 100, or in the unit named beside it; ``…, over tasks too`` is its
    interval for other tasks of their kind.
    """
    listed = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    roles, groups = models_of(results), {domain: results.tasks(domain) for domain in results.domains}
    groups |= {"all tasks": [name for tasks in groups.values() for name in tasks]}
    groups |= {f"{name} tasks": tasks for name, tasks in results.task_groups.items()}
    counted = {"update cost": _update_cost, "conflicts": _conflicts}
    lines: list[dict[str, Any]] = []
    for claim in listed:
        line = {"claim": claim["claim"], "part": claim["part"], "known from": claim["source"]}
        line["expected"] = claim["expected"]
        pair = [roles.get(role, "") for role in claim.get("compare", ())]
        rows = [
            {"rank": rank} | _compared(results, pair, (where, groups[where]), claim["expected"])
            for rank in RANKS
            for where in claim.get(rank, ())
            if all(pair) and groups.get(where)
        ]
        rows += [counted[claim["count"]](results)] if "count" in claim else []
        untested = {"verdict": UNTESTED, "what limits it": "no models for it"}
        lines += [line | row for row in rows if row] or [line | untested]
    correct(lines, 1 - results.confidence)
    return pd.DataFrame(lines, columns=_COLUMNS)


def correct(rows: Sequence[dict[str, Any]], alpha: float) -> None:
    """Correct the p values of primary and secondary rows for all of these, and give each its verdict; in place.

    Args:
        rows: Have ``rank``, ``p`` and the one over tasks, ``word`` for what is said where p decides, and ``what limits
            it``. Rows of other ranks are left alone.
        alpha: Below which a p value decides.
    """
    for key in ("p", f"p{WIDER}"):
        p = {rank: {str(n): row[key] for n, row in enumerate(rows) if row.get("rank") == rank} for rank in RANKS[:2]}
        for number, corrected in gatekeeping(p["primary"], p["secondary"], alpha).items():
            rows[int(number)][f"{key} (corrected)"] = float(f"{corrected:.3g}")
    for row in (row for row in rows if row.get("rank") in RANKS[:2]):
        decided = (row["p (corrected)"] < alpha, row[f"p{WIDER} (corrected)"] < alpha)
        row["verdict"] = verdict(row["word"], *decided, NO_SEEDS not in row["what limits it"])


def _compared(results: Results, models: Sequence[str], where: tuple[str, list[str]], expected: str) -> dict[str, Any]:
    """Cells of the difference of two models on a named group of tasks, with p values that are not corrected."""
    (name, tasks), cells = where, dict[str, Any]()
    cells |= {"comparison": f"{models[0]} minus {models[1]}, {name}", "unit": "points", "verdict": DESCRIBED}
    found = results.comparison(models[0], models[1], tasks)
    cells["p"], holds = examine(found, expected)
    cells["word"] = SUPPORTED if holds else REFUTED
    cells |= estimate_columns("difference", found.estimate(results.confidence)) | {f"p{WIDER}": 1.0}
    if len(tasks) > 1:
        wider = results.comparison(models[0], models[1], tasks, over_tasks=True)
        cells[f"p{WIDER}"] = examine(wider, expected)[0]
        cells |= estimate_columns(f"difference{WIDER}", wider.estimate(results.confidence))
    return cells | {"what limits it": "" if "seeds" in found.levels else NO_SEEDS}


def verdict(said: str, decided: bool, decided_over_tasks: bool, seeds: bool) -> str:
    """The word for a row, and what it is limited to.

    >>> verdict("higher", True, False, True), verdict("lower", True, True, True), verdict("lower", False, False, True)
    ('higher on these tasks', 'lower', 'inconclusive')
    """
    if not decided:
        return INCONCLUSIVE
    limits = [name for name, free in (("tasks", decided_over_tasks), ("trainings", seeds)) if not free]
    return said + (HERE + " and ".join(limits) if limits else "")


def word(verdict: object) -> str:
    """A verdict without what it is limited to: ``supported on these tasks`` is ``supported``."""
    return str(verdict).partition(HERE)[0]


def judges(results: Results) -> bool:
    """Whether a study can judge a claim: not where models were trained once, nor on what chooses settings."""
    return bool(results.study.get("seeds")) and not _chooses(results)


def _chooses(results: Results) -> bool:
    return _stated(results).get("corpus.evaluation_part") == "validation"


def _stated(results: Results) -> dict[str, str]:
    return {one["key"]: one["value"] for one in results.study.get("deviations") or ()}


def scope(results: Results) -> str:
    """What a study can say and what it cannot, in a few sentences, from its settings, seeds and hypotheses."""
    texts = layout()["scope"]
    if not judges(results):
        return str(texts["chooses settings" if _chooses(results) else "trained once"])
    base = _stated(results).get("base_model.name")
    facts = {"base": f" ({base})" if base else "", "tasks": len(results.study["tasks"])}
    said = texts["has seeds"].format(seeds=max(map(len, results.study["seeds"].values())), **facts)
    return f"{texts['tests hypotheses']} {said}" if results.experiments.hypotheses.primary else said


def counts_of(verdicts: Iterable[str]) -> dict[str, int]:
    """How many rows have each of `VERDICTS`, whatever these are limited to."""
    counts = Counter(map(word, verdicts))
    return {name: counts[name] for name in VERDICTS}


def _counted(comparison: str, unit: str, bounds: tuple[float, float, float], limit: float, note: str) -> dict[str, Any]:
    """Cells of a share that is counted; its bounds are what is certain. The claim is that it is below ``limit``."""
    found = SUPPORTED if bounds[2] < limit else REFUTED if bounds[1] >= limit else INCONCLUSIVE
    cells = {name: round(100 * share, 4) for name, share in zip(_DIFFERENCE, bounds, strict=True)}
    return {"rank": "counted", "comparison": comparison, "unit": unit, "verdict": found, "what limits it": note} | cells


def _update_cost(results: Results) -> dict[str, Any]:
    update, retrained = paper_update(results), results.retrained
    if update is None or retrained is None:
        return {}
    share = results.update_cost(update.model)["examples"] / results.update_cost(retrained)["examples"]
    comparison = f"examples trained on for {update.model} when new data arrive, of those for {retrained}"
    note = "counted in this study; the existing model is there"
    return _counted(comparison, "% of retraining", (share, share, share), 1.0, note)


def _conflicts(results: Results) -> dict[str, Any]:
    if (read := experiments.read_interaction(results)) is None:
        return {}
    found, names = read[0], read[0].datasets
    pairs = [found.pair(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    surely, not_so = sum(pair.low > 0 for pair in pairs), sum(pair.high <= 0 for pair in pairs)
    text = f"{len(pairs)} pairs trained together and apart: held-out loss surely higher for {surely}, "
    bounds = (sum(pair.value > 0 for pair in pairs) / len(pairs), surely / len(pairs), 1 - not_so / len(pairs))
    note = "bounds count what each pair's own interval leaves open; a share of pairs has no p value"
    return _counted(text + f"surely not for {not_so}", "% of pairs", bounds, 0.5, note)


def write_claims(results: Results, out: Path) -> list[Path]:
    """Write the table of claims as ``claims.csv`` and ``claims.md`` into ``out``."""
    frame = claims_table(results)
    write_text(out / "claims.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_text(out / "claims.md", claims_text(frame, results))
    return [out / "claims.csv", out / "claims.md"]


def claims_text(frame: pd.DataFrame, results: Results) -> str:
    """The table of claims for readers: how to read it, how many verdicts of each kind, and a table for each part."""
    counts = ", ".join(f"{count} {name}" for name, count in counts_of(frame["verdict"]).items())
    said = f" {counts}." if judges(results) else ""
    alpha, confidence, margin = 1 - results.confidence, 100 * results.confidence, 100 * MARGIN
    text = f"""# Claims of the paper, tested by this study

Profile `{results.study.get("profile", "")}`.{said} {scope(results)}

Claims are in our words; where each is known from stands beside it. Differences are ours: paired, in points of a score
of 0 to 100, with their {confidence:g} % interval over {results.levels}, and beside it the one for other tasks of the
same kind. Two comparisons are primary; four are secondary, and judged as far as primary ones are decided; a verdict
needs a p value below {alpha:.2g}, corrected for all of these. The others are described. Equally good means within
{margin:g} point, a margin of ours. Not supported means that our models show the opposite. *On these tasks* and *on
these trainings* say that a verdict is not one on other tasks of their kind, or on training again.
"""
    columns = [name for name in shown_columns("claims", _COLUMNS, "") if name != "part" and WIDER not in name]
    for part in dict.fromkeys(frame["part"]):
        text += f"\n## {part[0].upper()}{part[1:]}\n\n" + markdown(
            frame.loc[frame["part"] == part, columns], missing=""
        )
    return text
