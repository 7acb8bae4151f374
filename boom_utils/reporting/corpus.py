"""What a corpus is: a table, its rows, text lengths and the overlap ledger, from its manifest and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.sampling import Subset
from boom_utils.reporting.panels import COLOURS, FAMILY_COLOURS, GREY, bars, row_panels


def corpus_frame(manifest: Manifest, summary: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """One line a dataset: family, language, licence, and what was made of it.

    Args:
        manifest: The corpus.
        summary: The summary.json of its examples; without it rows are those that the manifest states.

    Returns:
        Indexed by dataset. ``rows`` is NaN where nobody knows it, words are medians, ``dropped`` counts rows left out.
    """
    made = (summary or {}).get("sets", {})
    dropped = (summary or {}).get("dropped", {})
    return pd.DataFrame(
        [
            {
                "dataset": dataset.id,
                "family": dataset.family,
                "for": ", ".join(_purposes(manifest, dataset)),
                "languages": " ".join(dataset.languages),
                "rows": _rows(dataset, made) if summary else _number(dataset.stated_rows),
                "query words": _median(made, dataset, "query_words"),
                "passage words": _median(made, dataset, "passage_words"),
                "dropped": _dropped(dropped, dataset) if summary else np.nan,
                "licence": dataset.place.licence if dataset.place else "that of the package",
            }
            for dataset in manifest.datasets
        ]
    ).set_index("dataset")


def _purposes(manifest: Manifest, dataset: Dataset) -> list[str]:
    """What a dataset is there for. Whether a task is in domain depends on what is trained on, and is not said here."""
    trained = [] if dataset.role == "evaluation" else [dataset.role.replace("_", " ")]
    return trained + (["evaluated"] if any(task.dataset == dataset.id for task in manifest.tasks) else [])


def corpus_bars(frame: pd.DataFrame) -> Figure:
    """Rows of every dataset, family by family, the largest first; a colour a family.

    Args:
        frame: As `corpus_frame` gives it; datasets without rows are left out.
    """
    known = frame[frame["rows"] > 0]
    shares = known.groupby("family")["rows"].sum().sort_values(ascending=False)
    known = known.assign(place=known["family"].map({family: -rows for family, rows in shares.items()}))
    known = known.sort_values(["place", "rows"], ascending=[True, False], kind="stable")
    title = f"training rows: {known['rows'].sum():,.0f} in {len(known)} datasets"
    figure, (axis,) = row_panels([str(name).replace("_", " ") for name in known.index], [title], "rows")
    bars(axis, known["rows"].tolist(), [_colour(family) for family in known["family"]], "{:,.0f}")
    texts = {family: f"{family}: {100 * rows / shares.sum():.0f} %" for family, rows in shares.items()}
    handles = [Patch(facecolor=_colour(str(family)), label=text) for family, text in texts.items()]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def text_lengths(summary: Mapping[str, Any], datasets: Sequence[str]) -> Figure:
    """Words of queries and passages of every training set: a dot at the median, a line up to the 95th percentile.

    Args:
        summary: The summary.json of the examples.
        datasets: Which training sets, from top to bottom.
    """
    names = [name.replace("_", " ") for name in datasets]
    figure, (axis,) = row_panels(
        names, ["words of queries and passages"], "words: least, median (dot), 95th percentile"
    )
    kinds = (("queries", "query_words", "o", -0.14), ("passages", "passage_words", "s", 0.14))
    for colour, (label, key, marker, shift) in zip(COLOURS, kinds, strict=False):
        for place, name in enumerate(datasets):
            words = {end: max(summary["sets"][f"train/{name}"][key][end], 0.9) for end in ("min", "median", "p95")}
            axis.plot([words["min"], words["p95"]], [place + shift] * 2, color=colour, lw=1.2)
            axis.plot(words["median"], place + shift, marker, color=colour, ms=5, label=label if place == 0 else None)
    axis.legend(frameon=False, fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    return figure


def overlap_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Evaluated texts that training sets hold, exactly or nearly, one line a pair that shares any.

    Args:
        summary: The summary.json of the examples.

    Returns:
        ``evaluation``, ``trained on``, ``exact``, ``near``, ``rows`` (training rows concerned) and an ``example``.
    """
    columns = ["evaluation", "trained on", "exact", "near", "rows", "example"]
    lines = [
        [entry["evaluation"], entry["trained_on"], entry["exact"], entry["near"], entry["rows"], _example(entry)]
        for entry in summary["overlap"]
        if entry["exact"] or entry["near"]
    ]
    return pd.DataFrame(lines, columns=columns).sort_values("rows", ascending=False, ignore_index=True)


def domain_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Domain of every evaluation task, and how much of it was seen in the old training data all the same.

    Args:
        summary: The summary.json of the examples.
    """
    lines = [
        [entry["task"], entry["domain"], entry["texts"], entry["exact"], entry["near"], 100 * entry["seen"]]
        for entry in summary["domains"]
    ]
    return pd.DataFrame(lines, columns=["task", "domain", "texts", "exact", "near", "seen, %"])


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
    parts += [f"deviation: {text}" for text in summary["deviations"]]
    return "\n".join(parts)


def overlap_text(summary: Mapping[str, Any]) -> str:
    """The overlap ledger and the domains of the tasks, for a terminal."""
    shared = overlap_frame(summary)
    shown = shared.assign(example=shared["example"].str.slice(0, 60)).to_string() if len(shared) else "nothing shared"
    left = f"evaluated texts in the training rows that were written: {summary['shared_texts']}"
    return "\n\n".join([shown, domain_frame(summary).to_string(float_format="{:.1f}".format), left])


def _number(count: int | None) -> float:
    return float("nan") if count is None else float(count)


def _rows(dataset: Dataset, made: Mapping[str, Any]) -> float:
    return float(made.get(f"train/{dataset.id}", {}).get("rows", 0))


def _median(made: Mapping[str, Any], dataset: Dataset, key: str) -> float:
    return float(made.get(f"train/{dataset.id}", {}).get(key, {}).get("median", np.nan))


def _dropped(dropped: Mapping[str, Any], dataset: Dataset) -> int:
    """Rows left out of a dataset: by its id, or, where tasks have rows of their own, by ``train/`` and its id."""
    return _total(dropped.get(dataset.id, dropped.get(f"train/{dataset.id}", 0)))


def _total(dropped: Any) -> int:
    return sum(_total(part) for part in dropped.values()) if isinstance(dropped, Mapping) else int(dropped)


def _example(entry: Mapping[str, Any]) -> str:
    if not entry.get("examples"):
        return ""
    first = entry["examples"][0]
    same = first["evaluated"] == first["trained"]
    return str(first["trained"] if same else f"{first['evaluated']} ≈ {first['trained']}")


def _colour(family: str) -> str:
    return FAMILY_COLOURS.get(family, GREY)
