"""The jobs of a study on a cluster: its nodes in bundles, as starting a job takes longer than making many a node.

``boom plan --jobs FILE`` writes them and ``workflow/Snakefile`` reads them; what a job runs is one ``boom build``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from boom_utils.artifacts import digest_of
from boom_utils.config import TinyBase
from boom_utils.study.graph import Study
from boom_utils.study.plan import Cost, StudyPlan
from boom_utils.study.scoring import profile_benchmarks

LEAST_MINUTES, UNKNOWN_MINUTES = 15, 720
"""Asked for by a job that does little, and by one of which nobody knows how much it does."""
MARGIN = 1.5  # of time; what was too little is doubled at every retry
CONVERTED_BYTES = 1e5  # of tokens a second: what one processor converts and tokenises, on the safe side
CHARACTERS_A_TOKEN = 4
BASE_MB, UNKNOWN_MB = 4000, 32_000
COPIES = {"base": 5, "member": 5, "pair": 5, "merge": 2, "scores": 2}  # of the weights, that a job holds in memory


@dataclass(frozen=True)
class Job:
    """Some nodes that are made one after another in one place.

    Args:
        name: Unique in the study.
        kind: ``data``, ``base``, ``tokens``, ``member``, ``pair``, ``merge``, ``scores`` or ``report``.
        nodes: Names, inputs first.
        after: Names of the jobs it waits for.
        key: Digest of what its nodes are to be; another one means other work under the same name.
        gpus: Devices.
        mem_mb: Memory of the machine.
        minutes: Time, with a margin.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    after: tuple[str, ...]
    key: str
    gpus: int
    mem_mb: int
    minutes: int


def jobs_of(study: Study, plan: StudyPlan, most_gpus: int | None = None) -> list[Job]:
    """The jobs of a study, each after those it waits for; every node is in one of them.

    Args:
        study: The study.
        plan: Its costs.
        most_gpus: Devices a job may use; None: as many as the profile's batches are made for, none for a tiny base.
    """
    bundles: dict[str, list[str]] = {}
    for name in study.nodes:  # inputs come first
        bundles.setdefault(job_of(name)[1], []).append(name)
    names, keys = {id(node): name for name, node in study.nodes.items()}, _keys(study)
    after = {
        job: {job_of(names[id(child)])[1] for name in nodes for child in study.nodes[name].inputs.values()} - {job}
        for job, nodes in bundles.items()
    }
    asks = _Asks(study, plan, most_gpus)
    return [
        Job(job, job_of(job)[0], tuple(nodes), tuple(sorted(after[job])), digest_of([keys[n] for n in nodes]), *asked)
        for job in TopologicalSorter(after).static_order()
        for nodes in [bundles[job]]
        for asked in [asks.of(job, nodes)]
    ]


def job_of(node: str) -> tuple[str, str]:
    """Kind and name of the job that makes a node, by the node's name or its own.

    >>> job_of("plan/s40"), job_of("interaction/losses/pair-1-2")
    (('member', 'member/s40'), ('pair', 'pair/pair-1-2'))
    """
    stage, *rest = node.split("/")
    match stage:
        case "data" | "examples" | "subset":
            return "data", "data"
        case "random" | "base":
            return "base", "base"
        case "tokens":
            return "tokens", "tokens"
        case "plan" | "member":
            return "member", f"member/{rest[0]}"
        case "pair" | "interaction":
            return "pair", f"pair/{rest[-1]}" if rest else "interaction"
        case "merge" | "geometry":
            return "merge", node
        case "scores":
            return "scores", f"scores/{rest[0]}"
        case "results" | "report":
            return "report", "report"
    raise AssertionError(f"no kind of job makes {node}")


def _keys(study: Study) -> dict[str, str]:
    """Digest of every node and of all it is made from, before anything is made."""
    keys: dict[int, str] = {}
    for node in study.nodes.values():
        inputs = {name: keys[id(child)] for name, child in node.inputs.items()}
        keys[id(node)] = digest_of([node.stage, node.version, node.config, inputs])
    return {name: keys[id(node)] for name, node in study.nodes.items()}


class _Asks:
    """What the jobs of a study ask a cluster for."""

    def __init__(self, study: Study, plan: StudyPlan, most_gpus: int | None) -> None:
        profile = study.profile
        tiny = isinstance(profile.base_model, TinyBase)
        self.processes = profile.training.processes
        self.most = (0 if tiny else self.processes) if most_gpus is None else most_gpus
        self.plan, self.sizes = plan, {name: task.size for name, task in profile_benchmarks(profile).tasks.items()}
        self.costs: Mapping[str, Cost] = {cost.name: cost for cost in (*plan.models, *plan.pairs)}
        self.model_mb = self.costs["base"].amounts["model_bytes"] / 1e6

    def of(self, job: str, nodes: list[str]) -> tuple[int, int, int]:
        """Devices, memory and minutes of one job."""
        kind, model = job_of(job)[0], job.split("/")[-1]
        gpus = min(self.most, {"member": self.processes, "pair": self.processes, "scores": 1}.get(kind, 0))
        memory = BASE_MB + COPIES.get(kind, 0) * self.model_mb
        seconds = 0.0
        if kind in ("data", "tokens"):
            seconds = math.nan if self.plan.unknown_rows else self.plan.tokens_bytes / CONVERTED_BYTES
        elif kind in ("base", "member", "pair") and (cost := self.costs.get(model)):
            seconds = math.nan if cost.at_least else self._seconds(cost.amounts, gpus)
        elif kind == "scores" and (size := sum(self.sizes.get(node.split("/")[-1], 0) for node in nodes)):
            all_models = self.plan.total()  # a forward pass is a third of a training step
            seconds = size / CHARACTERS_A_TOKEN * self._seconds(all_models, gpus) / all_models["tokens"] / 3
        minutes = UNKNOWN_MINUTES if math.isnan(seconds) else LEAST_MINUTES + math.ceil(MARGIN * seconds / 60)
        return gpus, UNKNOWN_MB if math.isnan(memory) else math.ceil(memory), minutes

    @staticmethod
    def _seconds(amounts: Mapping[str, float], gpus: int) -> float:
        return amounts.get("device_hours", 0.0) * 3600 / gpus if gpus else amounts.get("seconds", 0.0)
