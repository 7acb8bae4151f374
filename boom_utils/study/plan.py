"""What a study would cost, before it runs: examples, steps, tokens, FLOPs, time on this machine, disk.

Facts of finished artifacts come first, then counts of the manifest, then assumptions, which are printed. What is not
known stays unknown: where the rows of some datasets are, the numbers of a member are a lower bound and say so.

FLOPs are those of the matrices: 2 a weight and token forward, 4 backward, or 2 where the weights are frozen (LoRA), and
2 more for whatever is computed twice. Products of attention, mining and evaluation are not counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from boom_utils.artifacts import Artifact, Node
from boom_utils.config import MemberConfig, TinyBase, TrainingConfig
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.sampling import subset_size
from boom_utils.study.graph import Study
from boom_utils.study.models import datasets_of, interaction_members
from boom_utils.training.plan import DatasetRules

BYTES_A_WEIGHT = 4  # models are stored in float32
ADAM_COPIES = 3  # a checkpoint holds weights and two moments
UNKNOWN = math.nan
"""Stands for what is not known: everything computed from it is not known either. In JSON it is null."""
_COLUMNS = {
    "examples": ("examples", 1.0, ""),
    "steps": ("steps", 1.0, ""),
    "tokens": ("tokens", 1e6, " M"),
    "flops": ("compute", 1e12, " TFLOP"),
    "seconds": ("time here", 1.0, ""),
    "device_hours": ("device hours", 1.0, ""),
    "model_bytes": ("model", 1e6, " MB"),
    "checkpoint_bytes": ("checkpoint", 1e6, " MB"),
}
AMOUNTS = tuple(_COLUMNS)[:-1]
"""What is summed over models; checkpoints are not, as one run's are gone before the next begins."""


@dataclass(frozen=True)
class Assumptions:
    """What a plan is computed with where nothing is measured.

    Args:
        query_tokens: Mean tokens of a query; None takes the limit of the profile, an upper bound.
        passage_tokens: The same for passages.
        device_tflops: Peak of a rented device, dense; the default is an H100 SXM in bf16 (NVIDIA's data sheet).
        utilisation: Share of that peak that training reaches.
        tokens_per_second: Speed of one device of this machine; None measures it.
    """

    query_tokens: float | None = None
    passage_tokens: float | None = None
    device_tflops: float = 989.0
    utilisation: float = 0.4
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Cost:
    """One model of the study.

    Args:
        name: Its name.
        kind: ``base``, ``member`` or ``merge``.
        up_to_date: Whether it is in the workspace.
        amounts: `AMOUNTS` and checkpoint_bytes; of merges the bytes alone.
        at_least: The rows of some of its datasets are not known and not counted.
    """

    name: str
    kind: str
    up_to_date: bool
    amounts: Mapping[str, float]
    at_least: bool = False


@dataclass(frozen=True)
class StudyPlan:
    """Costs of all models, the graph they are in, and what the numbers rest on; ``pairs`` are in no sum."""

    profile: str
    models: tuple[Cost, ...]
    pairs: tuple[Cost, ...]
    tokens_bytes: float
    nodes: tuple[Mapping[str, Any], ...]
    unknown_rows: tuple[str, ...]
    assumptions: tuple[str, ...]

    def total(self, *, to_do: bool = False) -> dict[str, float]:
        """Sums of what is known over all models, or over those that are not made yet."""
        costs = [cost.amounts for cost in self.models if not (to_do and cost.up_to_date)]
        return {name: _sum([amounts[name] for amounts in costs if name in amounts]) for name in AMOUNTS}

    def at_least(self, *, to_do: bool = False) -> bool:
        """Whether `total` leaves out something that is not known."""
        costs = [cost for cost in self.models if not (to_do and cost.up_to_date)]
        return any(cost.at_least or any(math.isnan(cost.amounts.get(name, 0.0)) for name in AMOUNTS) for cost in costs)

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; ``nodes`` is the graph, every node with the names of its inputs, inputs first."""
        sums = {"totals": self.total(), "to_do": self.total(to_do=True), "at_least": self.at_least()}
        found: dict[str, Any] = _without_nan({**asdict(self), **sums})
        return found


def _sum(amounts: Sequence[float]) -> float:
    """Sum of what is known; unknown where there is something and nothing of it is known."""
    known = [amount for amount in amounts if not math.isnan(amount)]
    return sum(known) if known or not amounts else UNKNOWN


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def known_rows(manifest: Manifest) -> dict[str, int | None]:
    """Training rows of every dataset as its manifest states them; None where it does not."""
    return {dataset.id: dataset.stated_rows for dataset in manifest.datasets}


def plan_study(study: Study, assumptions: Assumptions | None = None) -> StudyPlan:
    """The plan of a study; makes nothing of it.

    The speed of this machine is measured once for a shape of model, in some seconds, and kept in the workspace.
    """
    return _Planner(study, assumptions or Assumptions()).plan()


@dataclass(frozen=True)
class _Texts:
    """Mean tokens of a dataset's texts, and tokens of all texts a row, used or not."""

    query: float
    positive: float
    negative: float
    stored: float


@dataclass(frozen=True)
class _Planner:
    study: Study
    given: Assumptions

    @cached_property
    def found(self) -> dict[str, Artifact]:
        """What is up to date, by name of its node."""
        return self.study.workspace.find_all(self.study.nodes)

    @property
    def training(self) -> TrainingConfig:
        return self.study.profile.training

    def plan(self) -> StudyPlan:
        """All costs, in the order the study shows its models."""
        profile, disk = self.study.whole, {"model_bytes": self.weights[0] * BYTES_A_WEIGHT}
        costs = [self._base(disk), *(self._member(member, disk) for member in profile.members)]
        costs += [Cost(m.name, "merge", f"merge/{m.name}" in self.found, disk) for m in profile.merges]
        analysis = interaction_members(profile, profile.interaction) if profile.interaction else []
        pairs = [self._member(member, disk) for member in analysis]
        rows = {name: self.rows[name] for name in (*profile.corpus.datasets, *profile.corpus.new_datasets)}
        unknown = tuple(name for name, count in rows.items() if count is None)
        stored = [UNKNOWN if count is None else count * self._texts(name).stored * 4 for name, count in rows.items()]
        said = tuple(self._said(len(unknown)))
        nodes = _graph(self.study, self.found)
        return StudyPlan(profile.name, tuple(costs), tuple(pairs), _sum(stored), nodes, unknown, said)

    @cached_property
    def rows(self) -> dict[str, int | None]:
        """Training rows of every dataset: of the examples if they are made, else as stated, `train_rows` at most."""
        most = self.study.profile.corpus.train_rows
        stated = known_rows(self.study.manifest)
        if "examples" in self.found:
            counted = self.found["examples"].facts["rows"]
            return {name: counted.get(f"train/{name}") for name in stated}
        return {name: most if rows is None else min(rows, most or rows) for name, rows in stated.items()}

    @cached_property
    def lengths(self) -> dict[str, _Texts]:
        """Mean lengths of the datasets whose tokens are in the workspace."""
        folders = [self.found[name].path for name in ("tokens", "tokens/new") if name in self.found]
        return {path.stem: _read_texts(path) for folder in folders for path in sorted(folder.glob("*.arrow"))}

    def _texts(self, dataset: str) -> _Texts:
        query = min(self.given.query_tokens or self.training.query_max_len, self.training.query_max_len)
        passage = min(self.given.passage_tokens or self.training.passage_max_len, self.training.passage_max_len)
        limits = _Texts(query, passage, passage, query + passage * self.training.train_group_size)
        return self.lengths.get(dataset, limits)

    @cached_property
    def shape(self) -> dict[str, Any] | None:
        """The base's configuration; None where the base is not on this machine."""
        from boom_utils.training.base_source import find_base

        config = self.study.profile.base_model
        if isinstance(config, TinyBase):
            head = {"head_dim": config.hidden_size // config.num_attention_heads, "model_type": "qwen3"}
            return {**config.model_dump(exclude={"kind", "pretraining", "seed", "max_seq_length"}), **head}
        files = find_base(config)
        path = files.folder / "config.json" if files else None
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path and path.is_file() else None

    @cached_property
    def measured(self) -> Mapping[str, float]:
        """Size of the base and speed of one device of this machine; of another model where the base is not here."""
        from boom_utils.machine import machine_name, measure

        shape, precision = self.shape or {"model_type": "bert"}, self.training.precision
        length = min(128, self.training.passage_max_len)
        config = {"shape": shape, "precision": precision, "length": length, "machine": machine_name()}
        node = Node("speed", 1, "speed of this machine", config, lambda _, __: measure(shape, precision, length))
        return self.study.workspace.build(node).facts

    @cached_property
    def weights(self) -> tuple[float, float]:
        """Parameters of the base, and those of them that every token meets."""
        base = self.study.profile.base_model
        if self.shape is not None:
            return self.measured["parameters"], self.measured["matrices"]
        total, embedding = (base.parameters, base.embedding_parameters) if base.kind == "pretrained" else (None, None)
        return (UNKNOWN, UNKNOWN) if total is None else (total, total - (embedding or 0.0))

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Speed of one device of this machine: as given, else the median of the members that are made, if any."""
        if self.given.tokens_per_second is not None:
            return self.given.tokens_per_second
        speeds = [a.facts["tokens_per_second"] for name, a in self.found.items() if name.startswith("member/")]
        return float(median(speeds)) if speeds else None

    def _base(self, disk: Mapping[str, float]) -> Cost:
        base = self.study.profile.base_model
        if not isinstance(base, TinyBase):
            return Cost("base", "base", "base" in self.found, disk)
        options = base.pretraining
        size = DatasetRules().batch_size(options.per_device_train_batch_size, options.processes)
        steps = (self.study.profile.corpus.pretraining_pairs or UNKNOWN) // size * options.num_train_epochs
        tokens = steps * size * (options.query_max_len + options.passage_max_len)
        counted: Mapping[str, float] = {"examples": steps * size, "steps": steps, "tokens": tokens}
        counted = self.found["base"].facts if "base" in self.found else counted
        return Cost("base", "base", "base" in self.found, {**self._trained(counted, options), **disk})

    def _member(self, member: MemberConfig, disk: Mapping[str, float]) -> Cost:
        profile = self.study.whole
        subset, training = profile.subset(member.subset), member.training.of(self.training)
        parts = []
        for name, dataset in datasets_of(profile, self.study.manifest, member).items():
            share = subset.new_data if name in profile.corpus.new_datasets else profile.ratio(subset)
            complement = subset.complement_of is not None
            rows = self.rows[name] if member.cluster is None else None  # a cluster is found by the interaction analysis
            if rows is not None and subset.part:
                rows //= subset.part[1]
            parts.append(None if rows is None else self._dataset(dataset, rows, share or 0.0, training, complement))
        known = [part for part in parts if part is not None]
        counted = {name: _sum([p[name] for p in known] or [UNKNOWN]) for name in ("examples", "steps", "tokens")}
        counted["again"] = _sum([p["again"] for p in known])
        if f"plan/{member.name}" in self.found:
            facts = self.found[f"plan/{member.name}"].facts
            counted |= {"examples": facts["examples"], "steps": facts["batches"]}
        if made := f"member/{member.name}" in self.found:
            counted["tokens"] = self.found[f"member/{member.name}"].facts["tokens"]
        amounts = {**self._trained(counted, training), **disk}
        return Cost(member.name, "member", made, amounts, len(known) < len(parts) and not made)

    def _dataset(
        self, dataset: Dataset, rows: int, share: float, training: TrainingConfig, complement: bool
    ) -> dict[str, float]:
        """What one dataset adds to a member."""
        drawn = rows - subset_size(1 - share, rows) if complement else subset_size(share, rows)
        rules = DatasetRules(dataset.in_batch_negatives, dataset.halve_batch, dataset.group_size)
        size = rules.batch_size(training.per_device_train_batch_size, training.processes)
        group = rules.group_size(training.train_group_size, training.train_group_size)
        steps, texts = drawn // size * training.num_train_epochs, self._texts(dataset.id)
        row = texts.query + texts.positive + (group - 1) * texts.negative
        # The exact gradient of a batch that does not fit computes the tokens twice that it does not keep.
        kept, step = training.tokens_in_memory, row * size / training.processes
        twice = max(0.0, 1 - kept / step) if kept is not None and dataset.in_batch_negatives else 0.0
        tokens = steps * size * row
        return {"examples": steps * size, "steps": steps, "tokens": tokens, "again": tokens * twice}

    def _trained(self, counted: Mapping[str, float], training: TrainingConfig) -> dict[str, float]:
        """Amounts of a training run."""
        per_weight = (4.0 if training.lora else 6.0) + (2.0 if training.gradient_checkpointing else 0.0)
        tokens, (total, used) = counted["tokens"], self.weights
        flops = used * (per_weight * tokens + 2.0 * counted.get("again", 0.0))
        if self.tokens_per_second is not None:
            seconds = tokens / self.tokens_per_second
        else:
            seconds = flops if math.isnan(flops) else flops / self.measured["flops_per_second"]
        # Adapters are few, and their number is not known here.
        checkpoint = UNKNOWN if training.lora else total * BYTES_A_WEIGHT * ADAM_COPIES
        hours = flops / (self.given.device_tflops * 1e12 * self.given.utilisation) / 3600
        counts = {name: counted[name] for name in ("examples", "steps", "tokens")}
        return {**counts, "flops": flops, "seconds": seconds, "device_hours": hours, "checkpoint_bytes": checkpoint}

    def _said(self, unknown: int) -> list[str]:
        """What the numbers rest on."""
        training, given = self.training, self.given
        if "examples" in self.found:
            where = "the examples"
        else:
            most = self.study.profile.corpus.train_rows
            bound = f"; {most} (corpus.train_rows) where none are stated, an upper bound" if most else ""
            where = f"manifest {self.study.manifest.name}, before conversion{bound}"
        said = [f"rows: counted in {where}" + (f"; unknown for {unknown} datasets" if unknown else "")]
        if self.lengths:
            said.append(f"lengths: measured, tokens of {len(self.lengths)} datasets are in the workspace")
        else:
            for name, mean, limit in (
                ("query", given.query_tokens, training.query_max_len),
                ("passage", given.passage_tokens, training.passage_max_len),
            ):
                why = "its limit, an upper bound" if mean is None else "as given"
                said.append(f"lengths: {min(mean or limit, limit):g} tokens a {name}, {why}")
            said.append("passages a query: at most train_group_size, the rows may bring fewer")
        if math.isnan(self.weights[1]):
            said.append("parameters of the base: unknown; state base_model.parameters, or have the model here")
        else:
            said.append(f"weights a token meets: {self.weights[1]:.3g} (all but embeddings)")
        if self.tokens_per_second is not None:
            basis = "members that are made" if given.tokens_per_second is None else "as given"
            said.append(f"time here: {self.tokens_per_second:g} tokens a second, {basis}")
        elif not math.isnan(self.weights[1]):
            of = "layers of the base's shape" if self.shape else "a BERT, as the base is not here"
            rate = f"{self.measured['flops_per_second'] / 1e9:.3g} GFLOP/s in {training.precision}"
            said.append(
                f"time here: {rate} on one device of this machine, measured once (speed/) in training steps of {of}"
            )
        said.append(f"device hours: {given.device_tflops:g} TFLOP/s at {100 * given.utilisation:g} % utilisation")
        rest = "the interaction analysis, products of attention"
        return [*said, f"not counted: conversion, mining, tokenising, merging, evaluation, {rest}"]


def _read_texts(path: Path) -> _Texts:
    """Mean lengths of one token table, from its offsets."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    rows = max(1, len(table))
    query = sum(len(chunk.values) for chunk in table["query"].chunks)
    means, tokens = {}, {}
    for name in ("pos", "neg"):
        count = sum(len(chunk.values) for chunk in table[name].chunks)
        tokens[name] = sum(len(chunk.values.values) for chunk in table[name].chunks)
        means[name] = tokens[name] / max(1, count)
    return _Texts(query / rows, means["pos"], means["neg"], (query + tokens["pos"] + tokens["neg"]) / rows)


def _graph(study: Study, found: Mapping[str, Artifact]) -> tuple[dict[str, Any], ...]:
    """Every node: name, stage, label, names of its inputs, whether it is up to date and where it is then."""
    names = {id(node): name for name, node in study.nodes.items()}
    root = study.workspace.root
    return tuple(
        {
            "name": name,
            "stage": node.stage,
            "label": node.label,
            "inputs": sorted({names[id(child)] for child in node.inputs.values()}),
            "up_to_date": name in found,
            "folder": str(found[name].path.relative_to(root)) if name in found else None,
        }
        for name, node in study.nodes.items()
    )


def plan_text(plan: StudyPlan) -> str:
    """The plan for people: one line a model, the sums, what is up to date, and the assumptions.

    Hours of a rented device are shown from one hour on: who needs less does not rent.
    """
    total = plan.total()
    columns = [name for name in _COLUMNS if name != "device_hours" or total[name] >= 1]

    def line(name: str, amounts: Mapping[str, float], at_least: bool, status: str = "") -> tuple[str, ...]:
        return (
            name,
            *(_shown(key, amounts[key], at_least and "bytes" not in key) if key in amounts else "" for key in columns),
            status,
        )

    rows = [("", *(_COLUMNS[name][0] for name in columns), "")]
    rows += [line(c.name, c.amounts, c.at_least, "up to date" if c.up_to_date else "to do") for c in plan.models]
    rows.append(line("all", total, plan.at_least()))
    rows.append(line("still to do", plan.total(to_do=True), plan.at_least(to_do=True)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:-1]), row[-1]]).rstrip() for row in rows
    ]
    ready = sum(bool(node["up_to_date"]) for node in plan.nodes)
    stored = _shown("model_bytes", plan.tokens_bytes, bool(plan.unknown_rows))
    lines += ["", f"artifacts: {ready} of {len(plan.nodes)} up to date; tokens on disk: {stored}"]
    if plan.unknown_rows:
        names = ", ".join(plan.unknown_rows[:8]) + (" ..." if len(plan.unknown_rows) > 8 else "")
        lines.append(f"rows unknown for {len(plan.unknown_rows)} datasets (sums are lower bounds): {names}")
    return "\n".join([*lines, *(f"- {text}" for text in plan.assumptions)])


def _shown(name: str, amount: float, at_least: bool) -> str:
    """Three digits at least, with the unit, or hours, minutes and seconds; ``>=`` before a lower bound."""
    if math.isnan(amount):
        return "unknown"
    value = amount / _COLUMNS[name][1]
    if name == "seconds" and value >= 360_000:
        text = f"{value / 3600:,.0f} h"
    elif name == "seconds":
        minutes, seconds = divmod(math.ceil(value), 60)
        text = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    else:
        text = f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
    return (">= " if at_least else "") + text + _COLUMNS[name][2]
