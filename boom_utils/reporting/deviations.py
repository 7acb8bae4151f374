"""The deviation ledger: every value of the study's profile beside the paper's, where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from boom_utils.artifacts import write_text
from boom_utils.errors import ResultsError
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import markdown

COLUMNS = ("key", "this study", "paper's value", "source", "note")
_KEYS = {"key": "key", "value": "this study", "paper": "paper's value", "source": "source", "note": "note"}
_MOST_LETTERS = 120
UNKNOWN = "not known"


def deviations_table(facts: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The ledger as a data frame.

    Args:
        facts: ``deviations`` of study.json, see `boom_utils.study.deviations`; none gives an empty frame.

    Raises:
        ResultsError: An entry lacks a key.
    """
    missing = sorted({key for entry in facts for key in _KEYS if key not in entry})
    if missing:
        raise ResultsError("the deviations of study.json lack keys", found=f"no {', '.join(missing)}")
    rows = [{_KEYS[key]: UNKNOWN if entry[key] is None else entry[key] for key in _KEYS} for entry in facts]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_deviations(results: Results, out: Path) -> list[Path]:
    """Write ``deviations.csv`` and ``deviations.md`` into ``out``; nothing for results that have none."""
    facts = results.study.get("deviations")
    if not facts:
        return []
    frame = deviations_table(facts)
    write_text(out / "deviations.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_text(out / "deviations.md", deviations_text(frame, str(results.study.get("profile", ""))))
    return [out / "deviations.csv", out / "deviations.md"]


def deviations_text(frame: pd.DataFrame, profile: str) -> str:
    """The ledger for readers: what differs, what is ours because nothing is known, and what is the same."""
    known = frame["paper's value"] != UNKNOWN
    same = frame["this study"] == frame["paper's value"]
    groups = {
        "Differs from the paper": frame[known & ~same],
        "As in the paper": frame[known & same],
        "Ours: the paper's value is not known, or it has no such thing": frame[~known],
    }
    lines = [f"# Where `{profile}` differs from the paper", ""]
    lines.append(
        "; ".join(f"{title.split(':')[0].lower()}: {len(part)} values" for title, part in groups.items()) + "."
    )
    lines.append(
        "`source` says where the paper's value is known from. Long values are cut here; the CSV has all of them."
    )
    for title, part in groups.items():
        if len(part):
            shown = part if title.startswith("Differs") else part.drop(columns="paper's value")
            shown = shown.map(lambda text: _cut(str(text)))
            lines += ["", f"## {title}", "", markdown(shown).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _cut(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 4].rsplit(" ", 1)[0] + " ..."
