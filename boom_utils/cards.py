"""Model cards: the README.md of a member or merged model, made from its record and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import write_text

PAPER = "https://arxiv.org/abs/2602.05787"


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        title: Name of the model.
        summary: One sentence: how it was made.
        facts: Shown as a table, in order.
        parents: Names of the models it was made from.
        merged: True for a merged model.
        recipe: Merge recipe or training configuration, shown as YAML.
    """

    title: str
    summary: str
    facts: Mapping[str, Any]
    parents: Sequence[str] = ()
    merged: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)


def write_card(folder: Path, card: Card) -> None:
    """Write ``README.md`` with the front matter the hub reads; no dates or paths, so equal models have equal cards."""
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "boom"]
    front: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [*tags, "mergekit", "merge"] if card.merged else tags,
    }
    if card.merged:
        front["base_model_relation"] = "merge"
    rows = "".join(f"| {name} | {value} |\n" for name, value in card.facts.items())
    parents = "".join(f"- {parent}\n" for parent in card.parents)
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {card.title}\n\n{card.summary}\n\n"
    text += f"| | |\n|---|---|\n{rows}\n"
    text += f"Made from:\n\n{parents}\n" if parents else ""
    text += f"```yaml\n{yaml.safe_dump(dict(card.recipe), sort_keys=False)}```\n\n" if card.recipe else ""
    text += f"Method: Bagging-Based Model Merging for Robust General Text Embeddings, {PAPER}\n"
    write_text(folder / "README.md", text)
