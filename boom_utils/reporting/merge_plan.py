"""The report of a planned merge, for a terminal or a notebook: what the models are like and what a merge would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from boom_utils.reporting.tables import markdown


def member_frame(geometry: Mapping[str, Any]) -> pd.DataFrame:
    """One row a member: norm, distance from the base, cosines with the others.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it.
    """
    names = geometry["members"]
    frame = pd.DataFrame({"member": names, "norm": [f"{norm:.4g}" for norm in geometry["norms"]]})
    origin = "base" if geometry["has_base"] else "their mean"
    frame[f"from {origin}, %"] = [f"{100 * size:.3f}" for size in geometry["relative_updates"]]
    for column, name in enumerate(names):
        frame[f"cos {name}"] = [_cosine(row[column]) for row in geometry["cosines"]]
    return frame


def layer_frame(geometry: Mapping[str, Any]) -> pd.DataFrame:
    """One row a layer: how far each member has moved from the base there, per cent of the base's length."""
    frame = pd.DataFrame(geometry["by_layer"], columns=geometry["members"])
    frame = frame.map(lambda size: f"{100 * size:.3f}")
    frame.insert(0, "tensors", geometry["layers"])
    return frame


def forecast_frame(forecasts: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a merge: what it is made of, how long it is, how far from the base and from the weighted mean.

    Args:
        forecasts: Name -> a `boom_utils.merging.planner.MergeForecast` as a mapping.
    """
    rows = []
    for name, found in forecasts.items():
        row = {"merge": name, **{f"c {member}": f"{c:.4f}" for member, c in found["coefficients"].items()}}
        update = found["relative_update"]
        row |= {
            "c base": f"{found['base']:.4f}",
            "norm": f"{found['norm']:.4g}",
            "from base, %": "" if update is None else f"{100 * update:.3f}",
            "from the mean": f"{found['from_mean']:.4f}",
            "cos with it": _cosine(found["cosine_to_mean"]),
            "special tensors": str(len(found["notes"])),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def plan_text(geometry: Mapping[str, Any], forecasts: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole report as Markdown.

    Args:
        geometry: As for `member_frame`.
        forecasts: As for `forecast_frame`; none for methods that look at every element.
    """
    kind = "task vectors" if geometry["has_base"] else "models"
    parts = [f"Members (cosines of their {kind}, all tensors together)", markdown(member_frame(geometry))]
    parts += ["Distance from the base by layer, %" if geometry["has_base"] else "Distance from the mean by layer, %"]
    parts += [markdown(layer_frame(geometry))]
    if forecasts:
        note = "c: mean coefficient; from the mean: in units of the members' own distance from their weighted mean"
        parts += [f"The merge ({note})", markdown(forecast_frame(forecasts))]
        parts += [f"  {name}: {note}" for found in forecasts.values() for name, note in found["notes"].items()]
    return "\n".join(parts)


def _cosine(value: float | None) -> str:
    if value is None or value != value:
        return "n/a"
    return f"{value:.6f}" if value > 0.999 else f"{value:.4f}"
