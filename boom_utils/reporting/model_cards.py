"""Scores on a model card: a section with intervals for readers, and the hub's ``model-index`` for its widgets.

A card is written when a model is made, and knows no scores. Here they are added from a results folder. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from boom_utils.cards import ANY_REPO, table
from boom_utils.errors import ResultsError, nearest
from boom_utils.evaluation.statistics import Estimate
from boom_utils.reporting.results import Results

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

MTEB_TYPES = {
    "retrieval": "Retrieval",
    "code": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "classification": "Classification",
    "clustering": "Clustering",
}
"""Family of a dataset -> what mteb calls such tasks."""
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
    made = read_card(card)
    before, limits, after = _SECTION.sub("", made.text).partition("## Limits\n")
    made.text = "\n" + "\n\n".join([before.strip("\n"), *_section(results, model)]) + "\n"
    made.text += f"\n{limits}{after}" if limits else ""
    told: Any = made.data
    told.model_name, told.eval_results = model, _eval_results(results, model)
    return str(made)


def named_card(card: str, repo: str) -> str:
    """A card whose snippet names the repository of the hub that the model is in."""
    return card.replace(ANY_REPO, repo)


def read_card(card: str) -> ModelCard:
    """The text of a README.md as the hub's library reads it, with front matter or without.

    Raises:
        ResultsError: The front matter is not YAML, or not what the hub knows.
    """
    from huggingface_hub import ModelCard

    try:
        return ModelCard(card)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ResultsError(
            "the front matter of a model card cannot be read",
            where="README.md",
            expected="YAML between two lines ---",
            found=error,
        ) from error


def _eval_results(results: Results, model: str) -> list[EvalResult]:
    """The scores in mteb's names and times 100; one entry a task."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=MTEB_TYPES[task["family"]],
            dataset_type=f"boom/{task['name']}",
            dataset_name=task["name"],
            metric_type=results.samples(model)[task["name"]].metric,
            metric_value=round(100 * results.task_score(model, task["name"]).value, 3),
            **_stored(results, model, task["name"]),
        )
        for task in results.study["tasks"]
    ]


def _stored(results: Results, model: str, task: str) -> dict[str, Any]:
    """Subset, split and revision of a task's data, where mteb's result is kept."""
    result = results.stored_result(model, task)
    if not result:
        return {}
    split, scores = next(iter(result["scores"].items()))
    revision = result["dataset_revision"]
    return {"dataset_config": scores[0]["hf_subset"], "dataset_split": split, "dataset_revision": revision}


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
        f"paper's. Intervals: {100 * results.confidence:g} %, over queries, pairs or test rows of "
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
