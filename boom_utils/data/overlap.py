"""Overlap ledger: texts that one set of a corpus shares with another one, exact after normalisation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from boom_utils.data.docs_pairs import normalise


def overlap_ledger(
    seen: Mapping[str, Collection[str]], evaluated: Mapping[str, Collection[str]]
) -> list[dict[str, Any]]:
    """Count the texts every evaluation set shares with every set a model learns from.

    Args:
        seen: Texts of each set that models are trained on, by its name.
        evaluated: Queries and relevant documents of each evaluation set, by its name.

    Returns:
        One entry a pair of sets: names, number of shared texts and up to three of them.
    """
    learnt = {name: _normalised(texts) for name, texts in seen.items()}
    asked = {name: _normalised(texts) for name, texts in evaluated.items()}
    return [
        {"evaluation": task, "trained_on": name, "shared": len(both := asked[task] & learnt[name])}
        | ({"examples": sorted(both)[:3]} if both else {})
        for task in sorted(asked)
        for name in sorted(learnt)
    ]


def shared_texts(ledger: Iterable[Mapping[str, Any]]) -> int:
    """Shared texts over all entries of a ledger; zero means that nothing evaluated was trained on."""
    return sum(int(entry["shared"]) for entry in ledger)


def _normalised(texts: Iterable[str]) -> set[str]:
    return {normalise(text) for text in texts}
