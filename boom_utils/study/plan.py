"""What a study would cost, before it runs: examples, steps, tokens, FLOPs, time on this machine, disk.

Facts of finished artifacts come first, then counts of the manifest, then assumptions, which are printed. What is not
known stays unknown (NaN, in JSON null): where the rows of some datasets are, the numbers of a member are a lower bound
and say so. Time is that of this machine, measured; hours of a rented device are a second opinion, for those who ask or
who would wait longer than a day.

FLOPs are those of the matrices: 2 a weight and token forward, 4 backward, or 2 where the weights are frozen (LoRA), and
2 more with gradient checkpointing.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from boom_utils.artifacts import Node, Workspace, free_disk
from boom_utils.config import MemberConfig, PretrainedBase, Profile, TinyBase
from boom_utils.data.manifest import Manifest
from boom_utils.data.sampling import subset_size
from boom_utils.errors import MOST_LISTED, some_of
from boom_utils.evaluation.benchmarks import BenchmarkTask
from boom_utils.hyperparameters import TrainingConfig
from boom_utils.study.models import datasets_of, interaction_members, rules_of
from boom_utils.study.scoring import profile_benchmarks
from boom_utils.training.plan import DatasetRules

CHARACTERS_A_TOKEN, TOKENS_A_WORD = 4, 1.3  # of English; two more stand around a text
TRAINED, SCORED = 6.0, 2.0  # FLOPs a weight and token, forward and backward or forward alone
SECONDS_A_TASK = 1.0  # of scoring, besides encoding: reading, clustering, statistics (measured, tasks of 1,500 texts)
DEVICE_TFLOPS = 989.0  # peak of an H100 SXM in bf16, dense (NVIDIA's data sheet)
REACHED = 0.4  # share of a device's peak that training reaches
A_DAY = 86_400.0
BYTES_A_WEIGHT = 4  # models are stored in float32
ADAM_COPIES = 3  # a checkpoint holds weights and two moments
_COLUMNS: Mapping[str, tuple[str, float, str]] = {
    "examples": ("examples", 1.0, ""),
    "steps": ("steps", 1.0, ""),
    "tokens": ("tokens", 1e6, " M"),
    "flops": ("compute", 1e12, " TFLOP"),
    "seconds": ("time here", 1.0, ""),
    "device_hours": ("device hours", 1.0, ""),
    "model_bytes": ("disk", 1e6, " MB"),
    "checkpoint_bytes": ("checkpoint", 1e6, " MB"),
}
"""Amounts of a model, each with its heading, and what it is shown in."""
_ENCODED, _TEXTS = ("corpus", "queries", "train", "test"), ("text", "title", "sentence1", "sentence2")
"""Files of an evaluation set whose texts a model encodes, and the fields that hold these."""
_COUNTED = ("base", "member/", "interaction/member/", "scores/")
"""How names of nodes begin whose time is counted."""
AMOUNTS = [*_COLUMNS][:-1]
"""What is summed over models; checkpoints are not, as one run's are gone before the next begins."""


class Study(Protocol):
    """What a plan reads of a `boom_utils.study.graph.Study`, which asks for plans."""

    profile: Profile
    whole: Profile
    manifest: Manifest
    workspace: Workspace
    nodes: dict[str, Node]

    @property
    def inputs(self) -> dict[str, list[str]]:
        """Name of every node -> names of the nodes it is made from."""


@dataclass(frozen=True)
class StudyPlan:
    """Costs of all models of a study, and what the numbers rest on.

    Args:
        costs: A row a model or score, by name of its node: ``name``, ``kind`` (base, member, pair, merge, scores),
            ``up_to_date``, the amounts, and ``at_least``: the rows of some of its datasets are not known and not
            counted.
        tokens_bytes: Disk that the tokens of all rows take.
        unknown_rows: Datasets whose rows are not known.
        assumptions: What the numbers rest on, a sentence each.
        artifacts: How many are up to date, and how many the study has.
        disk_bytes: What is still to be written, and what is free in the workspace.
    """

    costs: pd.DataFrame
    tokens_bytes: float
    unknown_rows: tuple[str, ...]
    assumptions: tuple[str, ...]
    artifacts: tuple[int, int]
    disk_bytes: tuple[float, float]


def total(costs: pd.DataFrame) -> dict[str, Any]:
    """Sums of what is known of some rows of `StudyPlan.costs`; ``at_least`` if some tokens are not known.

    >>> costs = pd.DataFrame({name: [1.0, math.nan] for name in _COLUMNS} | {"at_least": False})
    >>> total(costs) == dict.fromkeys(AMOUNTS, 1.0) | {"at_least": True}
    True
    """
    lacking = bool(costs["at_least"].any() or costs["tokens"].isna().any())
    sums = costs[AMOUNTS].sum(min_count=min(1, len(costs)))
    sums["seconds"] = sums["seconds"] or (math.nan if sums["flops"] else 0.0)  # merges alone have a time, which is none
    return {**sums, "at_least": lacking}


def known_rows(manifest: Manifest) -> dict[str, float]:
    """Training rows of every dataset as its manifest states them."""
    return {one.id: math.nan if one.stated_rows is None else one.stated_rows for one in manifest.datasets}


def plan_study(study: Study, device_tflops: float = DEVICE_TFLOPS) -> StudyPlan:
    """The plan of a study; makes nothing of it.

    The speed of this machine is measured once for a shape of model, in some seconds, and kept in the workspace.

    Args:
        study: The study.
        device_tflops: Peak of a rented device, of which `REACHED` is reached.
    """
    planner = _Planner(study, device_tflops)
    profile, corpus = study.whole, study.profile.corpus
    costs = [planner.base(), *(planner.member(one, "member") for one in profile.members)]
    costs += [planner.row(f"merge/{one.name}", "merge") for one in profile.merges]
    if profile.interaction is not None:
        costs += [planner.member(one, "pair") for one in interaction_members(profile, profile.interaction)]
    costs += planner.scores()
    rows = {name: planner.rows[name] for name in (*corpus.datasets, *corpus.new_datasets)}
    unknown = tuple(name for name, count in rows.items() if math.isnan(count))
    stored = sum(4 * count * planner.texts(name)[2] for name, count in rows.items() if name not in unknown)
    frame = pd.DataFrame(costs).set_index("node")
    stored, to_do = stored if len(unknown) < len(rows) else math.nan, frame[~frame["up_to_date"]]
    # Checkpoints of one run are gone before the next begins.
    waiting = [to_do["model_bytes"].sum(), to_do["checkpoint_bytes"].max(), 0.0 if planner.lengths else stored]
    disk, made = (float(np.nansum(waiting)), free_disk(study.workspace.root)[0]), (len(planner.found), len(study.nodes))
    return StudyPlan(frame, stored, unknown, tuple(planner.said(unknown)), made, disk)


def seconds_to_make(study: Study, names: Iterable[str]) -> float:
    """About how long this machine needs for some nodes and what is behind them: what is not made and can be counted.

    Models and scores are counted, conversion, tokens and tables are not; 0 where nothing is.
    """
    missing, left = set[str](), {*names}
    while left:
        left -= study.workspace.find_all({name: study.nodes[name] for name in left}).keys()
        missing |= left
        left = {one for name in left for one in study.inputs[name]} - missing
    if not any(name.startswith(_COUNTED) for name in missing):
        return 0.0
    costs = plan_study(study).costs
    return float(costs.loc[costs.index.isin(missing), "seconds"].sum())


class _Planner:
    def __init__(self, study: Study, device_tflops: float) -> None:
        self.study, self.device_tflops, self.training = study, device_tflops, study.profile.training
        self.found = study.workspace.find_all(study.nodes)

    @cached_property
    def rows(self) -> dict[str, float]:
        """Training rows of every dataset: of the examples if they are made, else as stated, `train_rows` at most."""
        stated = known_rows(self.study.manifest)
        if "examples" in self.found:
            counted = self.found["examples"].facts["rows"]
            return {name: counted.get(f"train/{name}", math.nan) for name in stated}
        most = self.study.profile.corpus.train_rows or math.nan
        return {name: float(np.fmin(rows, most)) for name, rows in stated.items()}

    @cached_property
    def lengths(self) -> dict[str, tuple[float, float, float]]:
        """`texts` of the datasets whose tokens are in the workspace."""
        folders = [self.found[name].path for name in ("tokens", "tokens/new") if name in self.found]
        return {path.stem: _read_lengths(path) for folder in folders for path in sorted(folder.glob("*.arrow"))}

    @cached_property
    def words(self) -> Mapping[str, Any]:
        """What the examples say of the texts of each of their sets; nothing until they are made."""
        path = self.found["examples"].path / "summary.json" if "examples" in self.found else None
        return json.loads(path.read_text(encoding="utf-8"))["sets"] if path and path.is_file() else {}

    def texts(self, dataset: str) -> tuple[float, float, float]:
        """Mean tokens of a dataset's queries and passages, and tokens of all texts a row, used or not."""
        if dataset in self.lengths:
            return self.lengths[dataset]
        limits = {"query_words": self.training.query_max_len, "passage_words": self.training.passage_max_len}
        known = self.words.get(f"train/{dataset}", {})
        words = {key: known.get(key, {}).get("median", math.inf) for key in limits}
        query, passage = (min(limit, TOKENS_A_WORD * words[key] + 2) for key, limit in limits.items())
        return query, passage, query + passage * self.training.train_group_size

    @cached_property
    def shape(self) -> dict[str, Any] | None:
        """The base's configuration; None where none is on this machine."""
        from boom_utils.training.base_source import find_base

        config = self.study.profile.base_model
        if isinstance(config, TinyBase):
            head = {"head_dim": config.hidden_size // config.num_attention_heads, "model_type": "qwen3"}
            return {**config.model_dump(exclude={"kind", "pretraining", "seed", "max_seq_length"}), **head}
        made, files = self.found.get("base"), find_base(config)
        places = [made.path] if made else [files.folder] if files else []
        path = next((place / "config.json" for place in places if (place / "config.json").is_file()), None)
        first = {"num_hidden_layers": config.layers} if config.layers else {}
        return {**json.loads(path.read_text(encoding="utf-8")), **first} if path else None

    @cached_property
    def model(self) -> Mapping[str, float]:
        """What `boom_utils.machine.measure` finds for the base, once on this machine.

        A base that is not on this machine has the size that the profile states.
        """
        from boom_utils.machine import machine_name, measure

        base = self.study.profile.base_model
        if isinstance(base, PretrainedBase) and self.shape is None:
            total = base.parameters or math.nan
            matrices = total - (base.embedding_parameters or 0.0)
            unknown = dict.fromkeys(("flops_per_second", "encoding_flops_per_second"), math.nan)
            return {"parameters": total, "matrices": matrices, **unknown}
        shape, precision, length = self.shape or {}, self.training.precision, min(128, self.training.passage_max_len)
        config = {"shape": shape, "precision": precision, "length": length, "machine": machine_name()}
        node = Node("speed", 2, "speed of this machine", config, lambda _, __: measure(shape, precision, length))
        return (self.study.workspace.find(node) or self.study.workspace.build(node)).facts

    @cached_property
    def tokens_per_second(self) -> float | None:
        """Speed of one device of this machine in training: the median of the members that are made, if any."""
        speeds = [a.facts["tokens_per_second"] for name, a in self.found.items() if name.startswith("member/")]
        return float(median(speeds)) if speeds else None

    def row(self, node: str, kind: str, counted: Mapping[str, float] | None = None, **amounts: Any) -> dict[str, Any]:
        """A row of `StudyPlan.costs`; what is not trained costs its bytes alone."""
        counts = counted or {}
        shared = {"node": node, "name": node.split("/")[-1], "kind": kind, "up_to_date": node in self.found}
        trained = {name: float(counts.get(name, 0)) for name in ("examples", "steps", "tokens")}
        rest = {"flops": 0.0, "seconds": 0.0, "device_hours": 0.0}
        size = {"model_bytes": self.model["parameters"] * BYTES_A_WEIGHT, "checkpoint_bytes": 0.0, "at_least": False}
        return {**shared, **trained, **rest, **size, **amounts}

    def scores(self) -> Iterator[dict[str, Any]]:
        """The rows of all scores; the models of an ensemble encode one after the other."""
        for node in (name for name in self.study.nodes if name.startswith("scores/")):
            _, model, task = node.split("/")
            one, models = self.scoring[task], len(self.study.whole.encoding_models(model))
            amounts: dict[str, Any] = {name: models * amount for name, amount in one.items()}
            yield self.row(node, "scores", model_bytes=0.0, **amounts)

    @cached_property
    def scoring(self) -> dict[str, dict[str, float]]:
        """What one model costs that is scored on a task: by the scores that are made, else by the task's texts."""
        measured, costs = defaultdict[str, list[float]](list), dict[str, dict[str, float]]()
        scored = [name.split("/")[1:] for name in self.study.nodes if name.startswith("scores/")]
        for model, task in (one for one in scored if "/".join(("scores", *one)) in self.found):
            seconds = self.found[f"scores/{model}/{task}"].record["wall_seconds"]
            measured[task].append(seconds / len(self.study.whole.encoding_models(model)))
        for task in {task: 0 for _, task in scored}:
            costs[task] = self._spent(self._task_tokens(task), SCORED)
            seconds = costs[task]["flops"] / self.model["encoding_flops_per_second"] + SECONDS_A_TASK
            costs[task]["seconds"] = median(measured[task]) if measured[task] else seconds
        return costs

    @cached_property
    def benchmarks(self) -> Mapping[str, BenchmarkTask]:
        """The tasks of mteb among those that models are scored on."""
        return profile_benchmarks(self.study.profile).tasks

    def _task_tokens(self, task: str) -> float:
        """About how many tokens a model encodes for a task."""
        if task in self.benchmarks:
            return self.benchmarks[task].size / CHARACTERS_A_TOKEN
        limit, corpus = self.study.profile.base_model.max_seq_length, self.study.profile.corpus
        if "examples" not in self.found:
            return limit * ((corpus.evaluation_queries or math.nan) + (corpus.evaluation_documents or math.nan))
        folder = self.found["examples"].path / "evaluation" / task
        files = [path for name in _ENCODED if (path := folder / f"{name}.jsonl").is_file()]
        rows = (json.loads(line) for path in files for line in path.read_bytes().splitlines())
        texts = (row[name] for row in rows for name in _TEXTS if name in row)
        return sum(min(len(text) / CHARACTERS_A_TOKEN, limit) for text in texts)

    def base(self) -> dict[str, Any]:
        """The row of the base; one that is not trained here costs its bytes alone."""
        config = self.study.profile.base_model
        if not isinstance(config, TinyBase):
            return self.row("base", "base")
        options = config.pretraining
        size = DatasetRules().batch_size(options.per_device_train_batch_size, options.processes)
        steps = (self.study.profile.corpus.pretraining_pairs or math.nan) // size * options.num_train_epochs
        tokens = steps * size * (options.query_max_len + options.passage_max_len)
        counted: Mapping[str, float] = {"examples": steps * size, "steps": steps, "tokens": tokens}
        counted = self.found["base"].facts if "base" in self.found else counted
        return self.row("base", "base", counted, **self._trained(counted["tokens"], options))

    def member(self, config: MemberConfig, kind: str) -> dict[str, Any]:
        """The row of a member, or of a model of the interaction analysis."""
        profile, place = self.study.whole, "interaction/" if kind == "pair" else ""
        subset, training = profile.subset(config.subset), config.training.of(self.training)
        rules, parts = rules_of(profile, self.study.manifest, config), []
        for name in datasets_of(profile, self.study.manifest, config):
            share = subset.new_data if name in profile.corpus.new_datasets else profile.ratio(subset)
            # Which datasets are in a cluster is found by the interaction analysis.
            rows = math.nan if config.cluster else self.rows[name] // (subset.part[1] if subset.part else 1)
            known = not math.isnan(rows)
            drawn = subset_size(share, int(rows)) if known and share else rows
            parts.append(self._counted(name, drawn, rules[name], training))
        counts = pd.DataFrame(parts, columns=["examples", "steps", "tokens"])
        counted = dict(counts.sum(min_count=1))
        if plan := self.found.get(f"{place}plan/{config.name}"):
            counted |= {"examples": plan.facts["examples"], "steps": plan.facts["batches"]}
        if made := self.found.get(f"{place}member/{config.name}"):
            counted["tokens"] = made.facts["tokens"]
        lacking = made is None and bool(counts.isna().any(axis=None))
        amounts = self._trained(counted["tokens"], training)
        return self.row(f"{place}member/{config.name}", kind, counted, at_least=lacking, **amounts)

    def _counted(self, dataset: str, rows: float, rules: DatasetRules, training: TrainingConfig) -> tuple[float, ...]:
        """Examples, steps and tokens that some rows of a dataset add to a member."""
        size = rules.batch_size(training.per_device_train_batch_size, training.processes)
        group = rules.group_size(training.train_group_size, training.train_group_size)
        query, passage, _ = self.texts(dataset)
        steps = rows // size * training.num_train_epochs
        return steps * size, steps, steps * size * (query + group * passage)

    def _trained(self, tokens: float, training: TrainingConfig) -> dict[str, float]:
        """What a training run on some tokens costs."""
        per_weight = (4.0 if training.lora else TRAINED) + (2.0 if training.gradient_checkpointing is True else 0.0)
        amounts, speed = self._spent(tokens, per_weight), self.tokens_per_second
        return {
            **amounts,
            "seconds": tokens / speed if speed else amounts["seconds"],
            # Adapters are few, and their number is not known here.
            "checkpoint_bytes": math.nan if training.lora else self.model["parameters"] * BYTES_A_WEIGHT * ADAM_COPIES,
        }

    def _spent(self, tokens: float, per_weight: float) -> dict[str, float]:
        """Compute and time of some tokens with so many FLOPs a weight each."""
        flops = self.model["matrices"] * per_weight * tokens
        hours = flops / (self.device_tflops * 1e12 * REACHED) / 3600
        return {"flops": flops, "seconds": flops / self.model["flops_per_second"], "device_hours": hours}

    def said(self, unknown: Sequence[str]) -> Iterator[str]:
        """What the numbers rest on."""
        model, made = self.model, "examples" in self.found
        rows = "the examples" if made else f"manifest {self.study.manifest.name}, before conversion"
        yield f"rows: counted in {rows}; corpus.train_rows is an upper bound where none are stated"
        if unknown:
            yield f"rows: unknown for {len(unknown)} datasets, sums are lower bounds: {some_of(unknown)}"
        query, passage, _ = self.texts("")
        limits = f"the profile's limits, {query:g} tokens a query and {passage:g} a passage: an upper bound"
        words = f"the examples' median words, {TOKENS_A_WORD} tokens each" if self.words else limits
        yield f"lengths: {f'measured in {len(self.lengths)} datasets' if self.lengths else words}"
        if math.isnan(model["flops_per_second"]):
            yield "time here: unknown until the base is on this machine (boom build base --profile P)"
        elif self.tokens_per_second is not None:
            yield f"training: {self.tokens_per_second:g} tokens a second, the median of the members that are made"
        else:
            rate = model["flops_per_second"] / TRAINED / model["matrices"]
            yield f"training: {rate:,.0f} tokens a second in {self.training.precision} on one device, measured here"
        rate = model["encoding_flops_per_second"] / SCORED / model["matrices"]
        speed = "" if math.isnan(rate) else f", else {rate:,.0f} tokens a second, measured here"
        texts = "of the sets" if made else "as many as asked for, of full length"
        yield f"scoring: as long as scores that are made{speed}; texts {texts}, {CHARACTERS_A_TOKEN} characters a token"
        peak = f"{self.device_tflops:g} TFLOP/s ({DEVICE_TFLOPS:g}: H100 in bf16)"
        yield f"device hours: {peak}, of which {REACHED:.0%} are reached"
        rest = "merging, products of attention, what lack of memory has computed twice"
        yield f"not counted: conversion, mining, tokenising, {rest}"


def _read_lengths(path: Path) -> tuple[float, float, float]:
    """`_Planner.texts` of one token table."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    query = pc.sum(pc.list_value_length(table["query"])).as_py() or 0
    passages = [pc.list_value_length(pc.list_flatten(table[name])) for name in ("pos", "neg")]
    tokens, count = sum(pc.sum(one).as_py() or 0 for one in passages), sum(map(len, passages))
    rows = max(1, len(table))
    return query / rows, tokens / max(1, count), (query + tokens) / rows


def plan_text(plan: StudyPlan, *, rented: bool = False) -> str:
    """The plan for people: what is still to do on this machine, ten models and the sums, what the numbers rest on.

    Args:
        plan: The plan.
        rented: Show hours of a rented device although the study takes less than a day here.
    """
    costs, many = plan.costs, {"pair": "pairs of datasets", "scores": "scores"}
    whole, to_do, one = total(costs), total(costs[~costs["up_to_date"]]), ~costs["kind"].isin(many)
    seconds = to_do["seconds"]
    rented = rented or math.isnan(seconds) or (seconds > A_DAY and to_do["device_hours"] >= 1)
    columns = [name for name in _COLUMNS if name != "checkpoint_bytes" and (rented or name != "device_hours")]
    first, rest = costs[one][:MOST_LISTED], costs[one][MOST_LISTED:]
    lines: dict[str, tuple[str, Any]] = {
        row["name"]: ("up to date" if row["up_to_date"] else "to do", row) for row in first.to_dict("records")
    }
    ready = f"{rest['up_to_date'].sum()} up to date"
    lines |= {f"and {len(rest)} more": (ready, total(rest))} if len(rest) else {}
    lines |= {
        text: ("", total(costs[costs["kind"] == kind])) for kind, text in many.items() if kind in {*costs["kind"]}
    }
    lines |= {"all": ("", whole), "still to do": ("", to_do)}
    cells = {
        name: [*(_shown(key, amounts.get(key, 0.0), amounts["at_least"]) for key in columns), state]
        for name, (state, amounts) in lines.items()
    }
    table = pd.DataFrame.from_dict(cells, orient="index", columns=[*(_COLUMNS[key][0] for key in columns), ""])
    notes = [f"- {text}" for text in plan.assumptions]
    return "\n".join([_still_to_do(plan, to_do, rented), "", table.to_string(), "", *notes])


def _still_to_do(plan: StudyPlan, to_do: Mapping[str, Any], rented: bool) -> str:
    """One sentence: artifacts, time and disk that a study still needs here."""
    (ready, every), (disk, free), least = plan.artifacts, plan.disk_bytes, to_do["at_least"]
    begin = f"{ready} of {every} artifacts are up to date"
    if ready == every:
        return f"{begin}: nothing is left to do"
    words = [f"time on this machine: {_shown('seconds', to_do['seconds'], least) or '0:00:00'}"]
    hours = _shown("device_hours", to_do["device_hours"], least)
    words += [f"on rented devices: {hours} hours of one"] if rented else []
    space = "there are" if disk < free else "THERE ARE ONLY"
    words += [f"disk: {disk / 1e9:,.1f} GB, {space} {free / 1e9:,.1f} GB free"]
    return "; ".join([begin, *words])


def _shown(name: str, amount: float, at_least: bool) -> str:
    """Three digits at least, with the unit, or hours, minutes and seconds; ``>=`` before a lower bound."""
    if math.isnan(amount):
        return "unknown"
    _, unit, suffix = _COLUMNS[name]
    value = amount / unit
    if name == "seconds":
        minutes, seconds = divmod(math.ceil(value), 60)
        text = f"{value / 3600:,.0f} h" if value >= 360_000 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    else:
        text = f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
    return "" if not amount else (">= " if at_least and "bytes" not in name else "") + text + suffix
