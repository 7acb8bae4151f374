"""Model cards: the README.md of a model, made from what its stage knows and what lies in its folder. No torch.

A card has neither dates nor places, so equal models have equal cards, and no scores: a model is made before it is
evaluated (`boom_utils.reporting.model_cards` adds them). It says what is known and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import yaml

from boom_utils.artifacts import digest_of, write_text
from boom_utils.config import QUERY_TEMPLATE, Frozen
from boom_utils.data.manifest import Manifest, manifest_names
from boom_utils.errors import CheckpointError
from boom_utils.model_folder import EncoderSpec, is_sentence_transformer, read_mapping, read_spec

CARD = "README.md"
ANY_REPO = "OWNER/NAME"
"""Stands in the snippet of a card for the folder, or for the repository it will be in."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What the hub accepts as the name of a model."""
CITATION = """@article{zhang2026bagging,
  title={Bagging-Based Model Merging for Robust General Text Embeddings},
  author={Zhang, Hengran and Bi, Keping and Guo, Jiafeng and Zhang, Jiaming and Yang, Wenbo and Shi, Daiting and Cheng, Xueqi},
  journal={arXiv preprint arXiv:2602.05787},
  year={2026}
}"""  # noqa: E501
POOLING = {"lasttoken": "last token", "mean": "mean of the tokens", "cls": "first token"}


class DatasetFacts(Frozen):
    """What a card says of one dataset."""

    name: str
    family: str
    licence: str
    languages: tuple[str, ...]
    hub: str | None = None


class TrainingData(Frozen):
    """What a card says of a corpus.

    Attributes:
        manifest: Name of its manifest.
        digest: Start of the sha256 of the manifest's content (hex).
        has_data_card: Whether the kit comes with a data card of it.
        datasets: Those that may be trained on.
    """

    manifest: str
    digest: str
    description: str
    has_data_card: bool
    datasets: tuple[DatasetFacts, ...]


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
    datasets = tuple(
        DatasetFacts(
            name=one.id,
            family=one.family,
            licence=one.licence or "that of the package it is mined from",
            languages=one.languages,
            hub=one.hub.repo if one.hub else None,
        )
        for one in map(manifest.dataset, names)
    )
    return TrainingData(
        manifest=manifest.name,
        digest=digest_of(manifest.model_dump(mode="json"))[:12],
        description=manifest.description.strip(),
        has_data_card=manifest.name in manifest_names(),
        datasets=datasets,
    )


def write_card(folder: Path, card: Card) -> None:
    """Write ``README.md``, with the front matter the hub reads, into a folder that holds the model already.

    Args:
        folder: Of the model; sizes, pooling and prompts are read from it.
        card: The rest.
    """
    spec = _spec_of(folder)
    parts = [f"# {card.title}", card.summary, table(("", ""), card.facts.items())]
    parts += ["Made from:\n\n" + "".join(f"- {name}\n" for name in card.parents)] if card.parents else []
    parts += _encoder(folder, spec) if spec else []
    parts += [*_data(card), *_cost(card.provenance.trained)]
    if card.recipe:
        parts += ["## Merge recipe" if card.merged else "## Hyper-parameters", _fenced("yaml", _yaml(card.recipe))]
    parts += ["## Limits", "".join(f"- {sentence}\n" for sentence in _limits(card, spec))]
    parts += ["## Citation", _fenced("bibtex", CITATION + "\n")]
    write_text(folder / CARD, with_front(front_matter(card), "\n\n".join(part.strip("\n") for part in parts) + "\n"))


def with_front(front: Mapping[str, Any], text: str) -> str:
    """A card from its front matter and its text."""
    return f"---\n{_yaml(front)}---\n\n{text}"


def front_matter(card: Card) -> dict[str, Any]:
    """What the hub is told: library, task, tags, and languages, datasets and base models as far as it knows them."""
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "boom"]
    front: dict[str, Any] = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    front["tags"] = [*tags, "mergekit", "merge"] if card.merged else tags
    used = _used(card.provenance)
    if spoken := {one.languages[0] for one in used} | {"code" for one in used if len(one.languages) > 1}:
        front["language"] = sorted(spoken)
    if repos := sorted({one.hub for one in used if one.hub}):
        front["datasets"] = repos
    if names := [name for name in card.base_models if HUB_NAME.fullmatch(name)]:
        front["base_model"] = names
    if card.merged or names:
        front["base_model_relation"] = "merge" if card.merged else "finetune"
    return front


def _spec_of(folder: Path) -> EncoderSpec | None:
    """None for what is not an encoder that the kit reads: a merge takes any model."""
    try:
        return read_spec(folder) if is_sentence_transformer(folder) else None
    except CheckpointError:
        return None


def _encoder(folder: Path, spec: EncoderSpec) -> list[str]:
    config = read_mapping(folder / "config.json")
    facts = {
        "parameters": f"{_parameters(folder):,}",
        "dimensions": config.get("hidden_size", "unknown"),
        "pooling": POOLING[spec.pooling],
        "normalisation": "to length 1" if spec.normalize else "none",
        "similarity": "cosine",
        "max length": f"{spec.max_seq_length} tokens, prompt included",
    }
    prompts = {name: text for name, text in spec.prompts.items() if text}
    shown = f', prompt_name="{next(iter(prompts))}"' if prompts else ""
    snippet = f"""from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{ANY_REPO}")  # this folder, or its name on the hub
queries = model.encode(["how is the mean along an axis computed"]{shown})
documents = model.encode(["mean(a, axis): arithmetic mean along the axis", "sort(a): a sorted copy"])
print(model.similarity(queries, documents))
"""
    return [
        *("## Model", table(("", ""), facts.items())),
        *("## Use", _fenced("python", snippet)),
        *("## Prompts", *_prompts(prompts)),
    ]


def _prompts(prompts: Mapping[str, str]) -> list[str]:
    if not prompts:
        return ["Nothing is put before queries or documents."]
    start, end = QUERY_TEMPLATE.split("{instruction}")
    plain = {
        name: text[len(start) : -len(end)]
        for name, text in prompts.items()
        if text.startswith(start) and text.endswith(end)
    }
    others = {name: text for name, text in prompts.items() if name not in plain}
    template = f"query_template: {json.dumps(QUERY_TEMPLATE)}\n" if plain else ""
    shown = {key: some for key, some in (("instructions", plain), ("prompts", others)) if some}
    note = (
        "Put before queries, one a dataset, in training and evaluation alike. Documents get nothing; in similarity, "
        "classification and clustering every text is a query. The folder keeps the prompts under these names."
    )
    return [note, _fenced("yaml", template + _yaml(shown))]


def _used(provenance: Provenance) -> list[DatasetFacts]:
    """The datasets that any training behind a model met."""
    met = {name for cost in provenance.trained.values() for name in cost.rows}
    return [one for one in provenance.data.datasets if one.name in met] if provenance.data else []


def _data(card: Card) -> list[str]:
    provenance, used = card.provenance, _used(card.provenance)
    if provenance.data is None or not used:
        return ["## Data", "What the models above were trained on is said on their own cards."] if card.merged else []
    data = provenance.data
    described = f"Corpus `{data.manifest}` (digest of its manifest: {data.digest}): {data.description}"
    if data.has_data_card:
        described += f" Its data card is data_manifests/cards/{data.manifest}.md of the kit."
    most = {one.name: max(cost.rows.get(one.name, 0) for cost in provenance.trained.values()) for one in used}
    rows = ((one.name, one.family, f"{most[one.name]:,}", ", ".join(one.languages), one.licence) for one in used)
    counted = "rows of the member with most" if len(provenance.trained) > 1 else "rows"
    head = ("dataset", "family", counted, "languages", "licence, as stated where the data are")
    return ["## Data", described, table(head, rows)]


def _cost(trained: Mapping[str, Cost]) -> list[str]:
    if not trained:
        return []

    def row(name: str, seed: str, costs: Sequence[Cost]) -> list[str]:
        passes = [cost.passes for cost in costs]
        whole = "" if None in passes else f"{sum(one or 0.0 for one in passes):.3g}"
        sums = (sum(getattr(cost, key) for cost in costs) for key in ("steps", "examples", "tokens"))
        return [name, seed, *(f"{number:,}" for number in sums), whole]

    rows = [row(name, str(cost.seed), [cost]) for name, cost in trained.items()]
    rows += [row("all", "", list(trained.values()))] if len(trained) > 1 else []
    return ["## Cost", table(("training", "seed", "steps", "examples", "tokens", "passes over the corpus"), rows)]


def _limits(card: Card, spec: EncoderSpec | None) -> list[str]:
    """What a reader might take for granted and should not."""
    trained, used = card.provenance.trained, _used(card.provenance)
    found = []
    if languages := sorted({language for one in used for language in one.languages}):
        found.append(f"Trained on texts in {', '.join(languages)}; not tested in other languages.")
    if spec:
        found.append(f"Longer texts are cut at {spec.max_seq_length} tokens; not tested on what is cut off.")
        if any(spec.prompts.values()):
            found.append("Not tested with other instructions than those above, nor without any.")
    if trained:
        seeds = ", ".join(map(str, sorted({cost.seed for cost in trained.values()})))
        found.append(f"Every member was trained once (seed {seeds}); other seeds give other numbers.")
    found.append("Not tested for bias, safety or fairness, nor for tasks other than those of its study.")
    found.append(
        "This card states no licence of the weights: the terms of the base model and of the data above apply to them."
    )
    return found


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as weights:
            count += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return count


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; bars and line ends in cells are escaped."""
    cells = [" | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {row} |" for row in cells)])


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}```"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
