"""The report of a planned merge, for a terminal or a notebook: what the models are like and what a merge would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.reporting.tables import markdown


def plan_text(geometry: Mapping[str, Any], forecasts: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole report as Markdown: the members, how far each layer has moved, and each merge.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it.
        forecasts: Name -> a `boom_utils.merging.planner.MergeForecast` as a mapping; none for methods that look at
            every element.
    """
    kind, origin = ("task vectors", "the base") if geometry["has_base"] else ("models", "their mean")
    names, moved = geometry["members"], np.array(geometry["relative_updates"], dtype=float)
    members = {"member": names, "norm": geometry["norms"], f"from {origin}, %": 100 * moved}
    members |= {f"cos {name}": row for name, row in zip(names, geometry["cosines"], strict=True)}  # symmetric
    layers = pd.DataFrame(100 * np.array(geometry["by_layer"], dtype=float), columns=names)
    layers.insert(0, "tensors", geometry["layers"])
    parts = [f"Members (cosines of their {kind}, all tensors together)", markdown(pd.DataFrame(members))]
    parts += [f"Distance from {origin} by layer, %", markdown(layers)]
    if forecasts:
        merges = [
            {"merge": name, **{f"c {member}": c for member, c in found["coefficients"].items()}}
            | {"c base": found["base"], "norm": found["norm"]}
            | {"from the base, %": 100 * np.array(found["relative_update"], dtype=float)}
            | {"from the mean": found["from_mean"], "cos with it": found["cosine_to_mean"]}
            | {"special tensors": len(found["notes"])}
            for name, found in forecasts.items()
        ]
        note = "c: mean coefficient; from the mean: in units of the members' own distance from their weighted mean"
        parts += [f"The merge ({note})", markdown(pd.DataFrame(merges))]
        parts += [f"  {name}: {note}" for found in forecasts.values() for name, note in found["notes"].items()]
    return "\n".join(parts)
