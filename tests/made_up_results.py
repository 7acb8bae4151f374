"""A made-up results folder with every experiment of the paper in it; no number in it is anybody's result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.artifacts import write_json
from boom_utils.evaluation.interaction import Interaction, clusters
from boom_utils.evaluation.statistics import TaskSamples
from boom_utils.reporting.results import Numbers, Results, run_of, write_numbers

DATASETS = {"nq": "retrieval", "fiqa": "retrieval", "sts": "sts", "imdb": "classification", "arxiv": "clustering"}
TASKS = {
    **{f"known_{number}": ("in-domain", False) for number in range(4)},
    **{f"unknown_{number}": ("out-of-domain", False) for number in range(3)},
    "code": ("out-of-domain", True),
}
MEMBER: dict[str, Any] = {"seed": 1, "schedule": "batch_shuffled", "order": "given", "stages": [], "new_data": None}
MEMBER |= {"learning_rate_stages": "continued", "datasets": None, "cluster": None, "start": None}
MEMBER |= {"tokens": 99, "mean_loss_last_tenth": 1.0}
RATIOS = {"s20": 0.2, "s40": 0.4, "s60": 0.6, "s80": 0.8, "full": 1.0, "half": 0.5, "half-rest": 0.5, "s50": 0.5}
CORES = (None, 0.2, 0.4, 1.0)
STAGES = {
    "seq-datasets": {"schedule": "sequential_datasets"},
    "seq-families": {"schedule": "sequential_families"},
    "two-stage": {"schedule": "two_stage", "stages": [["retrieval", "sts"], ["classification", "clustering"]]},
}
SETS = {"boom": ["s20", "s40", "s60", "s80", "full"], "boom-40-100": ["s40", "s60", "s80", "full"]}
SETS |= {"boom-80-100": ["s80", "full"], "boom-halves": ["half", "half-rest"]}
FAMILY_METHODS = {"families": "multislerp", "ta": "task_arithmetic", "ties": "ties", "stock": "model_stock"}
FAMILY_METHODS |= {"sce": "sce"}
GAIN = {"random": -0.4, "base": -0.2, "boom": 0.015, "boom-40-100": 0.02, "boom-80-100": 0.008, "boom-halves": -0.01}
GAIN |= {"boom-equal": 0.014, "seq-datasets": -0.05, "seq-families": -0.03, "two-stage": -0.015, "s20": -0.05}
GAIN |= {"s40": -0.03}
GAIN |= {"s60": -0.018, "s80": -0.008, "half": -0.024, "half-rest": -0.025, "s50": -0.02, "stock": -0.12, "ta": -0.03}
GAIN |= {"datasets": -0.07, "clusters": -0.025, "families": -0.04, "ties": -0.041, "slerp-all": -0.045, "sce": -0.05}
GAIN |= {"updated-0": -0.05, "updated-20": -0.01, "updated-40": 0.002, "updated-100": 0.01, "updated-w25": 0.012}
GAIN |= {"updated-w75": -0.02, "on-0": -0.09, "on-40": -0.012, "retrained": 0.003}
"""Skill of a model less that of `full`; 0 where a model is not named."""
GEOMETRY: dict[str, Any] = {"members": ["s20", "full"], "has_base": True, "relative_updates": [0.1, 0.2]}
GEOMETRY |= {"cosines": [[1, 0.2], [0.2, 1]], "distances": [[0, 0.3], [0.3, 0]]}
GEOMETRY |= {"layers": ["embedding", "layer 0"], "by_layer": [[0.05, 0.1], [0.15, 0.3]]}


def member(ratio: float | None, new: float | None = None, **more: Any) -> dict[str, Any]:
    passes = (ratio or 0.0) + 0.4 * (new or 0.0)
    return {**MEMBER, "ratio": ratio, "new_data": new, "passes": passes, "subset": f"p{ratio}-{new}"} | {
        "examples": round(1000 * passes),
        "steps": round(100 * passes),
        **more,
    }


def members() -> dict[str, dict[str, Any]]:
    found = {name: member(ratio) for name, ratio in RATIOS.items()}
    found |= {name: member(1.0, **facts) for name, facts in STAGES.items()}
    found |= {f"only-{name}": member(1.0, datasets=[name], passes=0.2) for name in DATASETS}
    families: dict[str, list[str]] = {}
    for name, family in DATASETS.items():
        families.setdefault(family, []).append(name)
    found |= {f"family-{name}": member(1.0, datasets=held, passes=0.2 * len(held)) for name, held in families.items()}
    found |= {f"cluster-{number}": member(1.0, cluster=number, passes=0.5) for number in (1, 2)}
    found |= {f"update-{round(100 * (core or 0))}": member(core, 1.0) for core in CORES}
    found |= {f"on-{round(100 * (core or 0))}": member(core, 1.0, start="boom") for core in (None, 0.4)}
    return found | {"retrained": member(1.0, 1.0)}


def merge(method: str, parts: list[str], weights: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {"method": method, "members": parts, "weights": weights or [1.0] * len(parts)} | {
        "parameters": {},
        "task_vectors": False,
        **more,
    }


def merges() -> dict[str, dict[str, Any]]:
    found = {name: merge("multislerp", parts, [RATIOS[part] for part in parts]) for name, parts in SETS.items()}
    found["boom-equal"] = merge("multislerp", SETS["boom"])
    found["boom-vectors"] = merge("multislerp", SETS["boom"], task_vectors=True)
    found["mean"] = merge("linear", SETS["boom"])
    trained = [name for name in members() if name.startswith("family-")]
    found |= {name: merge(method, trained) for name, method in FAMILY_METHODS.items()}
    found["ties"]["parameters"] = {"density": 0.5}
    found["slerp-1"] = merge("slerp", trained[:2])
    found["slerp-2"] = merge("slerp", ["slerp-1", trained[2]])
    found["slerp-all"] = merge("slerp", ["slerp-2", trained[3]])
    found["datasets"] = merge("multislerp", [f"only-{name}" for name in DATASETS])
    found["clusters"] = merge("multislerp", ["cluster-1", "cluster-2"])
    for core in CORES:
        percent = round(100 * (core or 0))
        found[f"updated-{percent}"] = merge("multislerp", ["boom", f"update-{percent}"])
    for weight in (0.25, 0.75):
        found[f"updated-w{round(100 * weight)}"] = merge("multislerp", ["boom", "update-40"], [1 - weight, weight])
    return found


def experiments() -> dict[str, Any]:
    updated = [f"updated-{round(100 * (core or 0))}" for core in CORES]
    weights = ["updated-w25", "updated-40", "updated-w75"]
    return {
        "full": "full",
        "boom": "boom",
        "sampled": [*RATIOS],
        "variants": [*SETS, "boom-equal"],
        "controls": ["mean"],
        "scheduling": {"baseline": "full", "models": [*STAGES]},
        "granularities": {"dataset": "datasets", "family": "families", "cluster": "clusters"},
        "methods": [[*FAMILY_METHODS, "slerp-all"], ["boom", "boom-equal", "boom-vectors", "mean"]],
        "incremental": {
            "baseline": "retrained",
            "models": ["boom", *updated, "updated-w25", "updated-w75", "retrained", "on-0", "on-40"],
            "core_ratios": updated,
            "weights": weights,
        },
    }


def unscored() -> set[str]:
    hidden = {name for name in members() if name.startswith(("only-", "family-", "cluster-", "update-", "s50"))}
    return hidden | {"slerp-1", "slerp-2"}


def skill(model: str, task: str, gain: Mapping[str, float]) -> float:
    """Mean score of a model on a task; what learnt new data is better at code and a little worse at the rest."""
    facts = {**members(), **merges()}.get(model, {})
    new = model.startswith(("updated", "on-")) or facts.get("new_data") is not None
    if task == "code":
        return 0.4 + (0.2 if new else 0.0) - (0.0 if model == "random" else gain.get(model, 0.0) / 2)
    return 0.6 + gain.get(model, 0.0) * (1.0 if task.startswith("known") else 0.6)


def samples_of(values: Sequence[float], metric: str = "ndcg_at_10") -> TaskSamples:
    return TaskSamples(metric, tuple(map(str, range(len(values)))), {"value": np.array(values, dtype=float)})


def made_up_scores(model: str, gain: Mapping[str, float], queries: int = 200) -> dict[tuple[str, str], TaskSamples]:
    found = {}
    for place, task in enumerate(TASKS):
        shared = np.random.default_rng([place, 1]).normal(0, 0.2, queries)
        own = np.random.default_rng([place, *map(ord, model)]).normal(0, 0.03, queries)
        found[model, task] = samples_of(np.clip(skill(model, task, gain) + shared + own - own.mean(), 0, 1).round(5))
    return found


def score_rows(samples: Mapping[tuple[str, str], TaskSamples], result: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The table of scores of some samples, all with the same result of mteb's own."""
    told = None if result is None else json.dumps(result)
    rows = [
        {**run_of(name), "task": task, "metric": one.metric, "value": one.score, "result": told}
        for (name, task), one in samples.items()
    ]
    return pd.DataFrame(rows)


def made_up_interaction(conflicts: bool = False) -> dict[str, Any]:
    """The first two datasets and the last two help each other; with ``conflicts`` all others surely disturb."""
    size = len(DATASETS)
    values = np.full((size, size), 0.2 if conflicts else 0.01)
    for a, b in ((0, 1), (3, 4)):
        values[a, b] = values[b, a] = -0.2
    np.fill_diagonal(values, 0.0)
    spread = np.full((size, size), 0.05)
    np.fill_diagonal(spread, 0.0)
    bounds = (values, values - spread, values + spread)
    found = Interaction(tuple(DATASETS), (8,) * size, 0.95, *bounds, *bounds)
    return {**found.as_json(), "clusters": clusters(found, count=2).as_json()}


def write_made_up_results(folder: Path, seeds: Mapping[str, Sequence[float]] | None = None) -> Path:
    """Write the folder; ``seeds``: model -> how much better its second, third, ... seed is than its first."""
    models = [name for name in ("random", "base", *members(), *merges()) if name not in unscored()]
    study = {
        "profile": "made-up",
        "models": models,
        "members": members(),
        "merges": merges(),
        "families": DATASETS,
        "tasks": [
            {"name": name, "family": "retrieval", "domain": domain, "new_data": new}
            for name, (domain, new) in TASKS.items()
        ],
        "evaluation": {"reference": "full", "confidence": 0.95},
        "experiments": experiments(),
    }
    samples = {}
    for model in models:
        samples |= made_up_scores(model, GAIN)
    pooled = {
        model: [model, *(f"{model}.seed{number + 2}" for number in range(len(moves)))]
        for model, moves in (seeds or {}).items()
    }
    for model, names in pooled.items():
        for name, move in zip(names[1:], (seeds or {})[model], strict=True):
            samples |= made_up_scores(name, {name: GAIN.get(model, 0.0) + move})
    steps = [
        {**run_of(name), "step": step, "dataset": dataset, "queries": 2, "loss": 2.0 - step / 20}
        for name in members()
        for step, dataset in enumerate([*DATASETS] * 6)
    ]
    write_json(folder / "study.json", {**study, "seeds": pooled})
    write_numbers(folder, Numbers(samples, score_rows(samples), pd.DataFrame(steps)))
    write_json(folder / "interaction.json", made_up_interaction())
    write_json(folder / "corpus" / "summary.json", {"sets": {"train/nq": {"rows": 8, "query_words": {"median": 3.0}}}})
    write_json(folder / "geometry.json", GEOMETRY)
    return folder


def with_controls(results: Results, folder: Path) -> Results:
    """The same results with an interpolation curve, a frontier, an ensemble, and ``regime.json`` in ``folder``."""
    line = {"interp-20": 0.2, "interp-50": 0.5, "interp-70": 0.7, "interp-125": 1.25}
    gain = {"interp-20": -0.12, "interp-50": -0.05, "interp-70": -0.02, "interp-125": 0.002, "ensemble": 0.01}
    arms = ["boom", "boom-halves", "boom-equal", "mean", "ensemble", "s40", "s60", "s80", "boom-80-100"]
    samples = dict(results.numbers.samples)
    for model, value in gain.items():
        samples |= made_up_scores(model, {model: value})
    study = {
        **results.study,
        "models": [*results.study["models"], *gain],
        "merges": {**merges(), **{name: merge("task_arithmetic", ["full"], [share]) for name, share in line.items()}},
        "ensembles": {"ensemble": {"members": SETS["boom"]}},
        "deviations": [{"key": "training.max_grad_norm", "value": "1", "paper": None, "source": "ours", "note": ""}],
        "experiments": {**experiments(), "frontier": arms, "interpolation": {"of": "full", "models": [*line]}},
    }
    training = results.numbers.training.assign(grad_norm=0.5)
    training.loc[training["model"] == "s20", ["grad_norm", "loss"]] = [2.0, 1e-4]
    names = [*SETS["boom"], "boom", "half", "half-rest", "boom-halves"]
    lengths = [RATIOS.get(name, 0.25) ** 0.5 for name in names]
    cosines = np.where(np.eye(len(names)) > 0, 1.0, 0.1).tolist()
    known = {"members": names, "relative_updates": lengths, "cosines": cosines}
    write_json(folder / "regime.json", {"seeds": [known]})
    write_json(folder / "geometry.json", GEOMETRY)
    numbers = replace(results.numbers, samples=samples, scores=score_rows(samples), training=training)
    return replace(results, study=study, folder=folder, numbers=numbers)


def with_study(results: Results, **changes: Any) -> Results:
    """The same results with something else in their study."""
    return replace(results, study={**results.study, **changes})


def with_gain(results: Results, gain: Mapping[str, float]) -> Results:
    """The same results with other skills of some models."""
    samples = dict(results.numbers.samples)
    for model, value in gain.items():
        samples |= made_up_scores(model, {model: value})
    return replace(results, numbers=replace(results.numbers, samples=samples))
