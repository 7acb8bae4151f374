"""The jobs of a study on a cluster: its nodes in bundles, as starting a job takes longer than making many a node.

``boom plan --jobs FILE`` writes them and ``workflow/Snakefile`` reads them; what a job runs is one ``boom build``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from typing import Any

from boom_utils.artifacts import digest_of
from boom_utils.config import TinyBase
from boom_utils.study.graph import Study
from boom_utils.study.plan import StudyPlan

LEAST_MINUTES, UNKNOWN_MINUTES = 15, 720
"""Asked for by a job that does little, and by one of which nobody knows how much it does."""
MARGIN = 1.5  # of time; what was too little is doubled at every retry
CONVERTED_BYTES = 1e5  # of tokens a second: what one processor converts and tokenises, on the safe side
BASE_MB, UNKNOWN_MB = 4000, 32_000
COPIES = {"base": 5, "member": 5, "pair": 5, "merge": 2, "scores": 2}  # of the weights, that a job holds in memory
_KINDS = {"examples": "data", "subset": "data", "random": "base", "plan": "member", "results": "report"}
"""Nodes made in a job of another name than their own."""


def jobs_of(study: Study, plan: StudyPlan, most_gpus: int | None = None) -> list[dict[str, Any]]:
    """The jobs of a study, each after those it waits for; every node is in one of them.

    Args:
        study: The study.
        plan: Its costs.
        most_gpus: Devices a job may use; None: as many as the profile's batches are made for, none for a tiny base.

    Returns:
        Of each job: ``name``; ``kind`` (data, base, tokens, member, pair, merge, scores or report); ``nodes``, inputs
        first; ``after``, the jobs it waits for; ``key``, another where its nodes are to be something else; and what it
        asks for: ``gpus``, ``mem_mb`` and ``minutes``.
    """
    bundles, keys = dict[str, list[str]](), dict[str, str]()
    for name, node in study.nodes.items():  # inputs come first
        bundles.setdefault(job_of(name), []).append(name)
        keys[name] = digest_of([node.stage, node.version, node.config, [keys[one] for one in study.inputs[name]]])
    after = {
        job: {job_of(one) for name in nodes for one in study.inputs[name]} - {job} for job, nodes in bundles.items()
    }
    asked, jobs = _asking(study, plan, most_gpus), list[dict[str, Any]]()
    for job in TopologicalSorter(after).static_order():
        kind, nodes = job.split("/")[0], bundles[job]
        kind = {"interaction": "pair", "geometry": "merge"}.get(kind, kind)
        facts = {"name": job, "kind": kind, "nodes": nodes, "after": sorted(after[job])}
        jobs.append({**facts, "key": digest_of([keys[name] for name in nodes]), **asked(kind, nodes)})
    return jobs


def job_of(node: str) -> str:
    """Name of the job that makes a node.

    >>> job_of("plan/s40"), job_of("scores/s40/sts"), job_of("interaction/losses/pair-1-2"), job_of("tokens/new")
    ('member/s40', 'scores/s40', 'pair/pair-1-2', 'tokens')
    """
    stage, *rest = node.split("/")
    kind = _KINDS.get(stage, stage)
    if kind == "interaction" and rest:
        return f"pair/{rest[-1]}"
    if kind in ("member", "scores"):
        return f"{kind}/{rest[0]}"
    return node if kind in ("merge", "geometry") else kind


def _asking(study: Study, plan: StudyPlan, most_gpus: int | None) -> Callable[[str, Sequence[str]], dict[str, int]]:
    """What a job of some kind and nodes asks a cluster for: devices, memory and minutes."""
    processes, tiny = study.profile.training.processes, isinstance(study.profile.base_model, TinyBase)
    most = (0 if tiny else processes) if most_gpus is None else most_gpus
    model_mb = float(plan.costs["model_bytes"]["base"]) / 1e6

    def asked(kind: str, nodes: Sequence[str]) -> dict[str, int]:
        gpus = min(most, {"member": processes, "pair": processes, "scores": 1}.get(kind, 0))
        models = len(study.whole.encoding_models(nodes[0].split("/")[1])) if kind == "scores" else 1
        memory = BASE_MB + COPIES.get(kind, 0) * models * model_mb
        column, unit = ("device_hours", 3600 / gpus) if gpus else ("seconds", 1.0)
        costs: Any = plan.costs[plan.costs.index.isin(nodes)]
        seconds = math.nan if costs["at_least"].any() else costs[column].sum(skipna=False) * unit
        if kind in ("data", "tokens"):
            seconds = math.nan if plan.unknown_rows else plan.tokens_bytes / CONVERTED_BYTES
        minutes = UNKNOWN_MINUTES if math.isnan(seconds) else LEAST_MINUTES + math.ceil(MARGIN * seconds / 60)
        return {"gpus": gpus, "mem_mb": UNKNOWN_MB if math.isnan(memory) else math.ceil(memory), "minutes": minutes}

    return asked
