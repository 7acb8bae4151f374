"""Scores on a model card: a section with intervals for readers, and the hub's ``model-index`` for its widgets.

A card is written when a model is made, and knows no scores. Here they are added from a results folder. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from boom_utils.cards import ANY_REPO, table
from boom_utils.errors import ResultsError, nearest
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.results import Results

MTEB_TYPES = {
    "retrieval": "Retrieval",
    "code": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "classification": "Classification",
    "clustering": "Clustering",
}
"""Family of a dataset -> what mteb calls such tasks."""
_FRONT = re.compile(r"---\n(.*?\n)---\n\n?", re.DOTALL)
_SECTION = re.compile(r"## Scores\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def scored_card(card: str, results: Results, model: str) -> str:
    """A card with the scores of its model; those it had are replaced.

    Args:
        card: The text of a README.md, with front matter or without.
        results: Of the study.
        model: Its name there.

    Raises:
        ResultsError: The model was not scored, its results are not complete, or the front matter cannot be read.
    """
    if model not in results.models:
        raise ResultsError(f"there are no scores of '{model}'{nearest(model, results.models)}", where=results.folder)
    results = replace(results, study={**results.study, "seeds": {}})  # a card is of one model, not of all its seeds
    front, text = read_card(card)
    text = _SECTION.sub("", text)
    before, limits, after = text.partition("## Limits\n")
    text = "\n\n".join([before.rstrip("\n"), *_section(results, model)]) + "\n"
    head = yaml.safe_dump({**front, "model-index": model_index(results, model)}, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{text}" + (f"\n{limits}{after}" if limits else "")


def named_card(card: str, repo: str) -> str:
    """A card whose snippet names the repository of the hub that the model is in."""
    return card.replace(ANY_REPO, repo)


def read_card(card: str) -> tuple[dict[str, Any], str]:
    """Front matter (empty if there is none) and text of a card.

    Raises:
        ResultsError: The front matter is not YAML, or no mapping.
    """
    found = _FRONT.match(card)
    if found is None:
        return {}, card
    try:
        front = yaml.safe_load(found[1])
    except yaml.YAMLError:
        front = None
    if not isinstance(front, dict):
        raise ResultsError(
            "the front matter of a model card cannot be read", where="README.md", expected="YAML between two lines ---"
        )
    return front, card[found.end() :]


def model_index(results: Results, model: str) -> list[dict[str, Any]]:
    """The scores as the hub's ``model-index``, in mteb's names and times 100; one entry a task."""
    entries = []
    for task in results.study["tasks"]:
        name, family = task["name"], task["family"]
        score = {
            "type": results.samples(model)[name].metric,
            "value": round(100 * results.task_score(model, name).value, 3),
        }
        dataset = {"type": f"boom/{name}", "name": name, **_stored(results, model, name)}
        entries.append({"task": {"type": MTEB_TYPES[family]}, "dataset": dataset, "metrics": [score]})
    return [{"name": model, "results": entries}]


def _stored(results: Results, model: str, task: str) -> dict[str, str]:
    """Subset, split and revision of a task's data, where mteb's result is kept."""
    result = results.stored_result(model, task)
    if not result:
        return {}
    split, scores = next(iter(result["scores"].items()))
    return {"config": scores[0]["hf_subset"], "split": split, "revision": result["dataset_revision"]}


def _section(results: Results, model: str) -> list[str]:
    reference, samples = results.reference, results.samples(model)
    other = reference if reference != model and reference in results.models else None
    head = ["tasks", "number", "mean", "interval", *([f"minus {other}", "interval"] if other else [])]
    means = []
    for domain in results.domains:
        tasks = results.tasks(domain)
        gap = _cells(results.difference(model, other, tasks), sign="+") if other else []
        means.append([domain, len(tasks), *_cells(results.domain_mean(model, domain)), *gap])
    rows = []
    for task in results.study["tasks"]:
        name, found = task["name"], samples[task["name"]]
        row = [name, task["family"], task["domain"], found.metric, len(found.ids)]
        rows.append([*row, *_cells(results.task_score(model, name))])
    return [
        "## Scores",
        f"Times 100, on the evaluation sets of the study ({results.study['profile']}); none of these numbers is the "
        f"paper's. Intervals: {100 * results.bootstrap.confidence:g} %, bootstrap over queries, pairs or test rows of "
        "each task. They say how far a number would move with others of these, not with other seeds."
        + (f" Differences to `{other}` are paired." if other else ""),
        table(head, means),
        table(("task", "family", "domain", "metric", "samples", "score", "interval"), rows),
    ]


def _cells(estimate: Estimate, sign: str = "") -> list[str]:
    value, low, high = (f"{100 * number:{sign}.2f}" for number in (estimate.value, estimate.low, estimate.high))
    return [value, f"[{low}, {high}]"]


def licence_notes(licences: Mapping[str, str]) -> list[str]:
    """Datasets to look at before a model made from them is published: terms unknown, restricted or non-commercial.

    Args:
        licences: Dataset -> licence, as stated where the data are.
    """
    return [f"{name}: {licence}" for name, licence in licences.items() if _doubtful(licence)]


def _doubtful(licence: str) -> bool:
    pattern = r"unknown|undeclared|not stated|\bNC\b|non-?commercial|research|restrict|same (as|license)|upstream"
    return re.search(pattern, licence, re.IGNORECASE) is not None
