"""Figures of how members lie to one another and to their base, from a study's geometry.json.

Shapes: M members, L groups of tensors (layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def angles_and_sizes(geometry: Mapping[str, Any]) -> Figure:
    """Angles between the members' task vectors, their distances, and how far each has moved from the base.

    Args:
        geometry: As `boom_utils.merging.planner.Geometry.as_json` gives it, of members with a base.

    Returns:
        The figure.

    >>> from boom_utils.reporting.results import read_json_object
    >>> geometry = read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    >>> len(angles_and_sizes(geometry).axes) >= 3
    True
    """
    names = geometry["members"]
    angles_MM = np.degrees(np.arccos(np.clip(_array(geometry["cosines"]), -1, 1)))
    np.fill_diagonal(angles_MM, 0.0)
    figure = Figure(figsize=(10.5, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.15, 1))
    _matrix(left, angles_MM, names, "{:.0f}", (0, max(90.0, np.nanmax(angles_MM))))
    left.set_title("angle of task vectors, degrees")
    distances_MM = 100 * _array(geometry["distances"])
    _matrix(middle, distances_MM, names, "{:.1f}", (0, np.nanmax(distances_MM) or 1))
    middle.set_title("distance, % of |base|")
    right.bar(names, 100 * _array(geometry["relative_updates"]), color="#0072B2")
    right.set_title("size of the update")
    right.set_ylabel("|member - base| / |base|, %")
    right.tick_params(axis="x", rotation=30)
    return figure


def layer_heat_map(geometry: Mapping[str, Any]) -> Figure:
    """How far each member has moved from the base in each layer, per cent of the base's length there.

    Args:
        geometry: As for `angles_and_sizes`.

    Returns:
        The figure.

    >>> from boom_utils.reporting.results import read_json_object
    >>> geometry = read_json_object(Path("results/smoke/geometry.json"))  # after `boom run --profile smoke`
    >>> len(layer_heat_map(geometry).axes) >= 1
    True
    """
    names, layers = geometry["members"], geometry["layers"]
    sizes_LM = 100 * _array(geometry["by_layer"])
    figure = Figure(figsize=(1.5 + 0.75 * len(names), 1.2 + 0.28 * len(layers)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(sizes_LM, vmin=0, cmap="cividis", aspect="auto")
    if sizes_LM.size <= 120:
        _write_values(axis, sizes_LM, "{:.1f}", sizes_LM.max() or 1)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(layers)), layers)
    axis.set_title("update by layer, % of the base's length")
    figure.colorbar(image, ax=axis)
    return figure


def _matrix(axis: Axes, values_MM: np.ndarray, names: list[str], shown: str, limits: tuple[float, float]) -> None:
    axis.imshow(values_MM, vmin=limits[0], vmax=limits[1], cmap="cividis")
    _write_values(axis, values_MM, shown, limits[1])
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)


def _write_values(axis: Axes, values: np.ndarray, shown: str, top: float) -> None:
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        text = "n/a" if np.isnan(value) else shown.format(value)
        colour = "black" if value > top / 2 else "white"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _array(values: Any) -> np.ndarray:
    """An array of a JSON list, null being NaN."""
    return np.array(values, dtype=np.float64)
