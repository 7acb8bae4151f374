"""Model cards: the README.md of a model, made from what its stage knows and what lies in its folder. No torch.

A card has neither dates nor places, so equal models have equal cards, and no scores: a model is made before it is
evaluated (`boom_utils.reporting.model_cards` adds them). What is not known is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from boom_utils.artifacts import digest_of, write_text
from boom_utils.config import QUERY_TEMPLATE
from boom_utils.data.manifest import Dataset, Manifest, manifest_names
from boom_utils.model_folder import is_sentence_transformer, read_mapping, read_spec
from boom_utils.yaml_files import Frozen

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
ANY_REPO = "OWNER/NAME"
"""Stands in the snippet of a card for the folder, or for the repository it will be in."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What the hub accepts as the name of a model."""
_FILLED = re.compile(re.escape(QUERY_TEMPLATE).replace(r"\{instruction\}", "(.*)"), re.DOTALL)
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
"""The text of a card."""
POOLING = {"lasttoken": "last token", "mean": "mean of the tokens", "cls": "first token"}


class TrainingData(Frozen):
    """What a card says of a corpus.

    Attributes:
        manifest: Name of its manifest.
        digest: Start of the sha256 of the manifest's content (hex).
        datasets: Those that may be trained on.
    """

    manifest: str
    digest: str
    description: str
    datasets: tuple[Dataset, ...]


class Cost(Frozen):
    """What one training took.

    Attributes:
        seed: Of its batches.
        passes: Rows of its subset in units of the corpus; None where that is not known.
        rows: Dataset -> different rows trained on.
    """

    seed: int
    steps: int
    examples: int
    tokens: int
    passes: float | None = None
    rows: Mapping[str, int] = {}


class Provenance(Frozen):
    """What a model comes from, as its study knows it; it changes nothing but the card.

    Attributes:
        start: What training starts from, in words or as a name of the hub.
        on_hub: ``start`` is a name of the hub.
        data: The corpus.
        passes: `Cost.passes` of the training to come.
        trained: Trainings behind it: member -> cost.
    """

    start: str = "the base model"
    on_hub: bool = False
    data: TrainingData | None = None
    passes: float | None = None
    trained: Mapping[str, Cost] = {}


@dataclass(frozen=True)
class Card:
    """What a card says.

    Args:
        title: Name of the model.
        summary: One or two sentences: how it was made.
        facts: Shown as a table, in order.
        parents: Names of the models it was made from.
        base_models: Those of them that the hub is told of; names it does not accept are left out.
        merged: True for a merged model.
        recipe: Merge recipe or training configuration, shown as YAML.
        provenance: Data and cost.
    """

    title: str
    summary: str
    facts: Mapping[str, Any]
    parents: Sequence[str] = ()
    base_models: Sequence[str] = ()
    merged: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


def training_data(manifest: Manifest, names: Iterable[str]) -> TrainingData:
    """What cards of models trained on some datasets of a corpus say of it."""
    return TrainingData(
        manifest=manifest.name,
        digest=digest_of(manifest.model_dump(mode="json"))[:12],
        description=manifest.description.strip(),
        datasets=tuple(map(manifest.dataset, names)),
    )


def licence_of(dataset: Dataset) -> str:
    """The terms of a dataset, as stated where its files are."""
    return dataset.place.licence if dataset.place else "that of the package it is mined from"


def write_card(folder: Path, card: Card) -> None:
    """Write ``README.md``, with the front matter the hub reads, into a folder that holds the model already.

    Args:
        folder: Of the model; sizes, pooling and prompts are read from it.
        card: The rest.
    """
    from huggingface_hub import ModelCard

    data, trained, used = card.provenance.data, card.provenance.trained, _used(card.provenance)
    rows = {one.id: max(cost.rows.get(one.id, 0) for cost in trained.values()) for one in used}
    parts: dict[str, Any] = {
        "card": card,
        "data": data,
        "has_data_card": data is not None and data.manifest in manifest_names(),
        "used": used,
        "used_rows": [(d.id, d.family, f"{rows[d.id]:,}", ", ".join(d.languages), licence_of(d)) for d in used],
        "trained": trained,
        "repo": ANY_REPO,
        "table": table,
        "yaml": _yaml,
        **_encoder(folder),
    }
    made = ModelCard.from_template(front_matter(card), template_path=str(TEMPLATE), **parts)
    write_text(folder / CARD, str(made).rstrip("\n") + "\n")


def front_matter(card: Card) -> ModelCardData:
    """What the hub is told: library, task, tags, and languages, datasets and base models as far as it knows them."""
    from huggingface_hub import ModelCardData

    used, names = _used(card.provenance), [name for name in card.base_models if HUB_NAME.fullmatch(name)]
    spoken = {one.languages[0] for one in used} | {"code" for one in used if len(one.languages) > 1}
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "boom"]
    relation = "merge" if card.merged else "finetune" if names else None
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*tags, "mergekit", "merge"] if card.merged else tags,
        language=sorted(spoken) or None,
        datasets=sorted({one.hub.repo for one in used if one.hub}) or None,
        base_model=names or None,
        base_model_relation=relation,
    )


def _encoder(folder: Path) -> dict[str, Any]:
    """What the card says of the model itself; nothing of what is no encoder, as a merge takes any model."""
    config = read_mapping(folder / "config.json")
    if not is_sentence_transformer(folder) or not config:
        return {}
    spec = read_spec(folder)
    prompts = {name: text for name, text in spec.prompts.items() if text}
    filled = {name: _FILLED.fullmatch(text) for name, text in prompts.items()}
    instructions = {name: match[1] for name, match in filled.items() if match}
    shown = {
        "query_template": QUERY_TEMPLATE if instructions else None,
        "instructions": instructions,
        "prompts": {name: text for name, text in prompts.items() if name not in instructions},
    }
    facts = {
        "parameters": f"{_parameters(folder):,}",
        "dimensions": spec.truncate_dim or config.get("hidden_size", "unknown"),
        "pooling": POOLING.get(spec.pooling, spec.pooling),
        "normalisation": "to length 1" if spec.normalize else "none",
        "similarity": spec.similarity,
        "max length": f"{spec.max_seq_length} tokens, prompt included",
    }
    kept = {name: value for name, value in shown.items() if value}
    return {"spec": spec, "model": facts, "prompts": prompts, "shown_prompts": kept}


def _used(provenance: Provenance) -> list[Dataset]:
    """The datasets that any training behind a model met."""
    met = {name for cost in provenance.trained.values() for name in cost.rows}
    return [one for one in provenance.data.datasets if one.id in met] if provenance.data else []


def _parameters(folder: Path) -> int:
    from huggingface_hub import parse_local_safetensors_file_metadata as metadata

    return sum(sum(metadata(path).parameter_count.values()) for path in folder.glob("*.safetensors"))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; bars and line ends in cells are escaped."""
    cells = [" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in cells)])


def _yaml(value: Any) -> str:
    """Readable YAML of what JSON can hold."""
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True, width=100)
