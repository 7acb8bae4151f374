"""The costs of a study as numbers that know whether they are complete, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AMOUNTS = ("examples", "steps", "tokens", "flops", "device_hours", "model_bytes")
"""What is summed over models; checkpoints are not, as one run's are gone before the next begins."""


@dataclass(frozen=True)
class Assumptions:
    """What a plan is computed with where nothing is measured.

    Args:
        query_tokens: Mean tokens of a query; None takes the limit of the profile, an upper bound.
        passage_tokens: The same for passages.
        device_tflops: Peak of one device, dense; the default is an H100 SXM in bf16 (NVIDIA's data sheet).
        utilisation: Share of the peak that training reaches.
        tokens_per_second: Measured speed of one device, used instead of the two above.
    """

    query_tokens: float | None = None
    passage_tokens: float | None = None
    device_tflops: float = 989.0
    utilisation: float = 0.4
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Sum:
    """A sum over datasets: what is known of it, and whether that is all."""

    value: float = 0.0
    complete: bool = True

    def plus(self, value: float | None) -> Sum:
        """With one more part; None is an unknown one."""
        return Sum(self.value + (value or 0.0), self.complete and value is not None)

    def times(self, factor: float | None) -> Sum:
        """Every part times a number; unknown if that is."""
        return Sum(0.0, False) if factor is None else Sum(self.value * factor, self.complete)

    def as_json(self) -> dict[str, Any]:
        """``value`` is null where nothing is known; ``at_least`` where only a part is."""
        known = self.complete or self.value > 0
        return {"value": self.value if known else None, "at_least": known and not self.complete}


@dataclass(frozen=True)
class Cost:
    """One model of the study.

    Args:
        name: Its name.
        kind: ``base``, ``member`` or ``merge``.
        up_to_date: Whether it is in the workspace.
        amounts: examples, steps, tokens, flops, device_hours, model_bytes, checkpoint_bytes (merges: the bytes alone).
    """

    name: str
    kind: str
    up_to_date: bool
    amounts: Mapping[str, Sum] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyPlan:
    """Costs of all models, the graph they are in, and what the numbers rest on."""

    profile: str
    costs: tuple[Cost, ...]
    tokens_bytes: Sum
    nodes: Mapping[str, Mapping[str, Any]]
    unknown_rows: tuple[str, ...]
    assumptions: tuple[str, ...]

    def total(self, amount: str, *, to_do: bool = False) -> Sum:
        """Sum over all models, or over those that are not made yet."""
        found = Sum()
        for cost in self.costs:
            if amount in cost.amounts and not (to_do and cost.up_to_date):
                part = cost.amounts[amount]
                found = Sum(found.value + part.value, found.complete and part.complete)
        return found

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; ``nodes`` is the graph, every node with the names of its inputs, inputs first."""
        return {
            "profile": self.profile,
            "models": [
                {
                    "name": cost.name,
                    "kind": cost.kind,
                    "up_to_date": cost.up_to_date,
                    **{name: amount.as_json() for name, amount in cost.amounts.items()},
                }
                for cost in self.costs
            ],
            "totals": {name: self.total(name).as_json() for name in AMOUNTS},
            "to_do": {name: self.total(name, to_do=True).as_json() for name in AMOUNTS},
            "tokens_bytes": self.tokens_bytes.as_json(),
            "unknown_rows": list(self.unknown_rows),
            "assumptions": list(self.assumptions),
            "nodes": [{"name": name, **facts} for name, facts in self.nodes.items()],
        }


_COLUMNS = {
    "examples": ("examples", 1.0, ""),
    "steps": ("steps", 1.0, ""),
    "tokens": ("tokens", 1e6, " M"),
    "flops": ("compute", 1e12, " TFLOP"),
    "device_hours": ("device hours", 1.0, ""),
    "model_bytes": ("model", 1e6, " MB"),
    "checkpoint_bytes": ("checkpoint", 1e6, " MB"),
}


def plan_text(plan: StudyPlan) -> str:
    """The plan for people: one line a model, the sums, what is up to date, and the assumptions."""
    rows = [("", *(head for head, _, _ in _COLUMNS.values()), "")]
    rows += [_line(cost.name, cost.amounts, "up to date" if cost.up_to_date else "to do") for cost in plan.costs]
    rows.append(_line("all", {name: plan.total(name) for name in AMOUNTS}, ""))
    rows.append(_line("still to do", {name: plan.total(name, to_do=True) for name in AMOUNTS}, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]).rstrip() for row in rows
    ]
    ready = sum(bool(facts["up_to_date"]) for facts in plan.nodes.values())
    lines += [
        "",
        f"artifacts: {ready} of {len(plan.nodes)} up to date; tokens on disk: {_shown(plan.tokens_bytes, 1e6, ' MB')}",
    ]
    if plan.unknown_rows:
        names = ", ".join(plan.unknown_rows[:8]) + (" ..." if len(plan.unknown_rows) > 8 else "")
        lines.append(f"rows unknown for {len(plan.unknown_rows)} datasets (sums are lower bounds): {names}")
    return "\n".join([*lines, *(f"- {text}" for text in plan.assumptions)])


def _line(name: str, amounts: Mapping[str, Sum], status: str) -> tuple[str, ...]:
    cells = [
        _shown(amounts[key], unit, suffix) if key in amounts else "" for key, (_, unit, suffix) in _COLUMNS.items()
    ]
    return (name, *cells, status)


def _shown(amount: Sum, unit: float, suffix: str) -> str:
    """Three digits at least, with the unit; ``>=`` before a lower bound."""
    if not amount.complete and not amount.value:
        return "unknown"
    value = amount.value / unit
    text = f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
    return ("" if amount.complete else ">= ") + text + suffix
