"""What a corpus is: its rows, text lengths and overlap with evaluation sets, from its manifest and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.sampling import Subset
from boom_utils.reporting.panels import BLUE, FAMILY_COLOURS, GREY, intervals, legend, row_panels


def corpus_frame(manifest: Manifest, summary: Mapping[str, Any]) -> pd.DataFrame:
    """One line a dataset: family, language, licence, and what was made of it.

    Args:
        manifest: The corpus.
        summary: The summary.json of its examples.

    Returns:
        Indexed by dataset. Words are medians, ``dropped`` counts rows left out.
    """
    evaluated = {task.dataset for task in manifest.tasks}
    rows = []
    for dataset in manifest.datasets:
        made = summary["sets"].get(f"train/{dataset.id}", {})
        purposes = [] if dataset.role == "evaluation" else [dataset.role.replace("_", " ")]
        row: dict[str, Any] = {"dataset": dataset.id, "family": dataset.family}
        row["for"] = ", ".join(purposes + ["evaluated"] * (dataset.id in evaluated))
        row |= {"languages": " ".join(dataset.languages), "rows": float(made.get("rows", 0))}
        row |= {f"{kind} words": made.get(f"{kind}_words", {}).get("median") for kind in ("query", "passage")}
        row["dropped"] = _dropped(summary["dropped"], dataset)
        row["licence"] = dataset.place.licence if dataset.place else "that of the package"
        rows.append(row)
    return pd.DataFrame(rows).set_index("dataset")


def _dropped(dropped: Mapping[str, Any], dataset: Dataset) -> int:
    """Rows left out of a dataset: by its id, or, where tasks have rows of their own, by ``train/`` and its id."""
    reasons = dropped.get(dataset.id, dropped.get(f"train/{dataset.id}", {}))
    return int(pd.json_normalize(reasons).to_numpy().sum()) if isinstance(reasons, Mapping) else int(reasons)


def corpus_bars(frame: pd.DataFrame) -> Figure:
    """Rows of every dataset, family by family, the largest first; a colour a family.

    Args:
        frame: As `corpus_frame` gives it; datasets without rows are left out.
    """
    known = frame[frame["rows"] > 0]
    shares = known.groupby("family")["rows"].sum()
    order = known.assign(share=known["family"].map(shares)).sort_values(
        ["share", "family", "rows"], ascending=[False, True, False], kind="stable"
    )
    title = f"training rows: {known['rows'].sum():,.0f} in {len(known)} datasets"
    figure, (axis,) = row_panels(order.index.str.replace("_", " "), [title], "rows")
    colours = [FAMILY_COLOURS.get(family, GREY) for family in order["family"]]
    drawn = axis.barh(range(len(order)), order["rows"], height=0.55, color=colours)
    axis.bar_label(drawn, fmt=" {:,.0f}", fontsize="small")
    axis.margins(x=0.15)
    for family, rows in shares.sort_values(ascending=False).items():
        label = f"{family}: {100 * rows / shares.sum():.0f} %"
        axis.plot([], [], "s", ms=8, color=FAMILY_COLOURS.get(str(family), GREY), label=label)
    legend(figure, [axis], 3)
    return figure


def text_lengths(summary: Mapping[str, Any], datasets: Sequence[str]) -> Figure:
    """Words of queries and passages of every training set: a dot at the median, a line up to the 95th percentile.

    Args:
        summary: The summary.json of the examples.
        datasets: Which training sets, from top to bottom.
    """
    titles, text = ["words of queries", "words of passages"], "least, median (dot), 95th percentile"
    figure, axes = row_panels([name.replace("_", " ") for name in datasets], titles, text)
    for axis, kind in zip(axes, ("query_words", "passage_words"), strict=True):
        words = pd.DataFrame([summary["sets"][f"train/{name}"][kind] for name in datasets]).clip(lower=0.9)
        frame = words.rename(columns={"median": kind, "min": f"{kind} low", "p95": f"{kind} high"})
        intervals(axis, frame, kind, [BLUE] * len(frame))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="x", labelsize=7)
    return figure


def overlap_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Evaluated texts that training sets hold, exactly or nearly, one line a pair that shares any.

    Args:
        summary: The summary.json of the examples.

    Returns:
        ``evaluation``, ``trained on``, ``exact``, ``near``, ``rows`` (training rows concerned) and an ``example``.
    """
    columns = ["evaluation", "trained_on", "exact", "near", "rows", "examples"]
    frame = pd.DataFrame(summary["overlap"], columns=columns).query("exact > 0 or near > 0")
    frame["example"] = [
        " ≈ ".join(dict.fromkeys((e[0]["evaluated"], e[0]["trained"]))) if e else "" for e in frame.pop("examples")
    ]
    return frame.rename(columns={"trained_on": "trained on"}).sort_values("rows", ascending=False, ignore_index=True)


def domain_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Domain of every evaluation task, and how much of it was seen in the old training data all the same.

    Args:
        summary: The summary.json of the examples.
    """
    frame = pd.DataFrame(summary["domains"], columns=["task", "domain", "texts", "exact", "near", "seen"])
    return frame.assign(seen=100 * frame["seen"]).rename(columns={"seen": "seen, %"})


def subset_frame(subsets: Mapping[str, Subset]) -> pd.DataFrame:
    """Rows that every subset holds of every dataset, and in all."""
    sizes = pd.DataFrame({name: subset.sizes for name, subset in subsets.items()}).astype("Int64")
    sizes.loc["all"] = sizes.sum()
    return sizes


def corpus_text(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    """What was made of a corpus, for a terminal: rows of every set, rows left out and why, bad lines."""
    frame = corpus_frame(manifest, summary)
    made = frame[frame["rows"] > 0].drop(columns=["licence", "for"])
    tasks = {name: facts["rows"] for name, facts in summary["sets"].items() if name.startswith("evaluation/")}
    parts = [made.to_string(float_format="{:,.0f}".format), "", *(f"{name}: {rows}" for name, rows in tasks.items())]
    parts += ["", "left out:", *(f"  {name}: {reasons}" for name, reasons in summary["dropped"].items() if reasons)]
    parts += [f"  bad lines of {name}: {found}" for name, found in summary.get("bad_lines", {}).items() if found]
    return "\n".join([*parts, *(f"another version: {text}" for text in summary["deviations"])])


def overlap_text(summary: Mapping[str, Any]) -> str:
    """Evaluated texts in training sets and the domains of the tasks, for a terminal."""
    shared = overlap_frame(summary)
    shown = shared.assign(example=shared["example"].str.slice(0, 60)).to_string() if len(shared) else "nothing shared"
    left = f"evaluated texts in the training rows that were written: {summary['shared_texts']}"
    return "\n\n".join([shown, domain_frame(summary).to_string(float_format="{:.1f}".format), left])
