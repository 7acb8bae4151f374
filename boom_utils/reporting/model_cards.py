"""Scores on a model card: a section with intervals for readers, and the hub's ``model-index`` for its widgets.

A card is written when a model is made, and knows no scores. Here they are added from a results folder. No torch.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from boom_utils.cards import ANY_REPO
from boom_utils.errors import ResultsError, nearest
from boom_utils.reporting.results import Results
from boom_utils.reporting.tables import compare, markdown, task_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

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
    """The scores in mteb's names and times 100, one entry a task, with the revision of its data where that is kept."""
    from huggingface_hub import EvalResult

    found = []
    for task in results.study["tasks"]:
        name, family, result = task["name"], task["family"], results.stored_result(model, task["name"])
        split, scores = next(iter(result["scores"].items())) if result else (None, [{}])
        found.append(
            EvalResult(
                task_type={"code": "Retrieval", "sts": "STS"}.get(family, family.capitalize()),
                dataset_type=f"boom/{name}",
                dataset_name=name,
                dataset_config=scores[0].get("hf_subset"),
                dataset_split=split,
                dataset_revision=result.get("dataset_revision"),
                metric_type=results.samples(model)[name].metric,
                metric_value=round(100 * results.mean(model, [name]).value, 3),
            )
        )
    return found


def _section(results: Results, model: str) -> list[str]:
    other = results.reference if results.reference in {*results.models} - {model} else None
    means = pd.concat([compare(results, [model], {"mean": tasks}, other) for tasks in results.groups.values()])
    means.insert(0, "tasks", [*results.groups])
    means.insert(1, "number", [*map(len, results.groups.values())])
    means = means.drop(columns="mean verdict", errors="ignore").reset_index(drop=True)
    tasks = task_table(replace(results, study={**results.study, "models": [model]})).drop(columns="model")
    text = (
        f"Times 100, on the evaluation sets of the study ({results.study['profile']}); none of these numbers is the "
        f"paper's. Intervals: {100 * results.confidence:g} %, over queries, pairs or test rows of each task. They say "
        "how far a number would move with others of these, not with other seeds."
    )
    text += f" Differences to `{other}` are paired." if other else ""
    return ["## Scores", text, *(markdown(part).rstrip() for part in (means, tasks))]
