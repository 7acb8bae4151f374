"""What a study would cost, before anything runs: examples, steps, tokens, FLOPs, device hours, disk. No torch.

Facts of finished artifacts come first, then counts of the manifest, then assumptions, which are printed. What is not
known stays unknown: a sum over datasets of which some are unknown is a lower bound and says so.

FLOPs are those of the matrices: 2 a weight and token forward, 4 backward, or 2 where the weights are frozen (LoRA), and
2 more for whatever is computed twice. Products of attention, mining and evaluation are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from boom_utils.artifacts import Artifact
from boom_utils.config import MemberConfig, PretrainedBase, TinyBase, TrainingConfig
from boom_utils.data.manifest import Dataset, Manifest
from boom_utils.data.sampling import subset_size
from boom_utils.errors import CheckpointError
from boom_utils.study.costs import Assumptions, Cost, StudyPlan, Sum
from boom_utils.study.graph import Study
from boom_utils.study.members import datasets_of
from boom_utils.training.plan import DatasetRules

BYTES_A_WEIGHT = 4  # models are stored in float32
ADAM_COPIES = 3  # a checkpoint holds weights and two moments


def known_rows(manifest: Manifest) -> dict[str, int | None]:
    """Training rows of every dataset as its manifest states them; None where it does not."""
    return {dataset.id: dataset.stated_rows for dataset in manifest.datasets}


def plan_study(study: Study, assumptions: Assumptions | None = None) -> StudyPlan:
    """The plan of a study; starts nothing, and reads only what is in the workspace and the manifest."""
    return _Planner(study, assumptions or Assumptions()).plan()


@dataclass(frozen=True)
class _Texts:
    """Mean tokens of a dataset's texts, and how many there are.

    Args:
        query: Mean tokens of a query.
        positive: Mean tokens of a positive.
        negative: Mean tokens of a negative.
        stored: Tokens of all texts a row, used or not.
        group: Passages a query, where the tokens tell.
    """

    query: float
    positive: float
    negative: float
    stored: float
    group: int | None = None


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
        profile = self.study.whole
        costs = [self._base(), *map(self._member, profile.members)]
        costs += [Cost(m.name, "merge", f"merge/{m.name}" in self.found, self._disk()) for m in profile.merges]
        trained = [*profile.corpus.datasets, *profile.corpus.new_datasets]
        unknown = tuple(name for name in trained if self.rows[name] is None)
        stored = Sum()
        for name in trained:
            rows = self.rows[name]
            stored = stored.plus(None if rows is None else rows * self._texts(name).stored * 4)
        nodes = _graph(self.study, self.found)
        return StudyPlan(profile.name, tuple(costs), stored, nodes, unknown, tuple(self._said(unknown)))

    @cached_property
    def rows(self) -> dict[str, int | None]:
        """Training rows of every dataset: of the examples if they are made, else of the manifest, capped."""
        most = self.study.profile.corpus.train_rows
        stated = known_rows(self.study.manifest)
        if "examples" in self.found:
            counted = self.found["examples"].facts["rows"]
            return {name: counted.get(f"train/{name}") for name in stated}
        return {name: rows if rows is None or most is None else min(rows, most) for name, rows in stated.items()}

    @cached_property
    def measured(self) -> dict[str, _Texts]:
        """Mean lengths of the datasets whose tokens are in the workspace."""
        folders = [self.found[name].path for name in ("tokens", "tokens/new") if name in self.found]
        return {path.stem: _read_texts(path) for folder in folders for path in sorted(folder.glob("*.arrow"))}

    def _texts(self, dataset: str) -> _Texts:
        if dataset in self.measured:
            return self.measured[dataset]
        query = min(self.given.query_tokens or self.training.query_max_len, self.training.query_max_len)
        passage = min(self.given.passage_tokens or self.training.passage_max_len, self.training.passage_max_len)
        return _Texts(query, passage, passage, query + passage * self.training.train_group_size)

    @cached_property
    def weights(self) -> tuple[float | None, float | None]:
        """Parameters of the base, and those of them that are not the token embedding; None where not known."""
        return _weights(self.study, self.found.get("base"))

    @cached_property
    def speed(self) -> float | None:
        """Tokens a second of one device, measured: as given, else the median of the members that are made."""
        if self.given.tokens_per_second is not None:
            return self.given.tokens_per_second
        speeds = [a.facts["tokens_per_second"] for name, a in self.found.items() if name.startswith("member/")]
        return float(median(speeds)) if speeds else None

    def _disk(self) -> dict[str, Sum]:
        return {"model_bytes": Sum().plus(self.weights[0]).times(BYTES_A_WEIGHT)}

    def _base(self) -> Cost:
        base = self.study.profile.base_model
        amounts = self._disk()
        if isinstance(base, TinyBase):
            amounts |= self._trained(_pretraining(self, base), base.pretraining)
        return Cost("base", "base", "base" in self.found, amounts)

    def _member(self, member: MemberConfig) -> Cost:
        counted = {name: Sum() for name in ("examples", "steps", "tokens", "repeated")}
        profile = self.study.whole
        subset, training = profile.subset(member.subset), member.training.of(self.training)
        for name, dataset in datasets_of(profile, self.study.manifest, member).items():
            share = subset.new_data if name in profile.corpus.new_datasets else profile.ratio(subset)
            part = self._dataset(dataset, share or 0.0, training, complement=subset.complement_of is not None)
            # What a cluster holds is found by the interaction analysis.
            part = None if member.cluster is not None else part
            counted = {key: amount.plus(part[key] if part else None) for key, amount in counted.items()}
        for source, keys in ((f"plan/{member.name}", ("examples", "batches")), (f"member/{member.name}", ("tokens",))):
            if source in self.found:
                facts = self.found[source].facts
                counted |= {"steps" if key == "batches" else key: Sum(facts[key]) for key in keys}
        made = f"member/{member.name}" in self.found
        return Cost(member.name, "member", made, self._trained(counted, training) | self._disk())

    def _dataset(
        self, dataset: Dataset, share: float, training: TrainingConfig, *, complement: bool
    ) -> dict[str, float] | None:
        """What one dataset adds to a member; None where its rows are not known."""
        rows = self.rows[dataset.id]
        if rows is None:
            return None
        drawn = rows - subset_size(1 - share, rows) if complement else subset_size(share, rows)
        rules = DatasetRules(dataset.in_batch_negatives, dataset.halve_batch, dataset.group_size)
        size, texts = (
            rules.batch_size(training.per_device_train_batch_size, training.processes),
            self._texts(dataset.id),
        )
        group = texts.group or rules.group_size(training.train_group_size, training.train_group_size)
        steps = drawn // size * training.num_train_epochs
        row = texts.query + texts.positive + (group - 1) * texts.negative
        # The exact gradient of a batch that does not fit computes the tokens twice that it does not keep.
        kept, step = training.tokens_in_memory, row * size / training.processes
        twice = max(0.0, 1 - kept / step) if kept is not None and dataset.in_batch_negatives else 0.0
        tokens = steps * size * row
        return {"examples": steps * size, "steps": steps, "tokens": tokens, "repeated": tokens * twice}

    def _trained(self, counted: Mapping[str, Sum], training: TrainingConfig) -> dict[str, Sum]:
        """Amounts of a training run."""
        per_weight = 4.0 if training.lora is not None else 6.0
        per_weight += 2.0 if training.gradient_checkpointing else 0.0
        tokens, total, used = counted["tokens"], *self.weights
        flops = tokens.times(None if used is None else per_weight * used)
        again = counted["repeated"].times(None if used is None else 2.0 * used)
        flops = Sum(flops.value + again.value, flops.complete and again.complete)
        if self.speed is not None:
            hours = tokens.times(1 / self.speed / 3600)
        else:
            hours = flops.times(1 / (self.given.device_tflops * 1e12 * self.given.utilisation) / 3600)
        trained = None if training.lora is not None else total  # adapters are few, and their number is not known here
        kept = {"checkpoint_bytes": Sum().plus(trained).times(BYTES_A_WEIGHT * ADAM_COPIES)}
        return {name: counted[name] for name in ("examples", "steps", "tokens")} | {
            "flops": flops,
            "device_hours": hours,
            **kept,
        }

    def _said(self, unknown: tuple[str, ...]) -> list[str]:
        """What the numbers rest on."""
        training, given = self.training, self.given
        where = (
            "the examples" if "examples" in self.found else f"manifest {self.study.manifest.name}, before conversion"
        )
        said = [f"rows: counted in {where}" + (f"; unknown for {len(unknown)} datasets" if unknown else "")]
        if self.measured:
            said.append(f"lengths: measured, tokens of {len(self.measured)} datasets are in the workspace")
        else:
            for name, mean, limit in (
                ("query", given.query_tokens, training.query_max_len),
                ("passage", given.passage_tokens, training.passage_max_len),
            ):
                why = "its limit, an upper bound" if mean is None else "as given"
                said.append(f"lengths: {min(mean or limit, limit):g} tokens a {name}, {why}")
            said.append("passages a query: at most train_group_size, the rows may bring fewer")
        if self.weights[1] is None:
            said.append("parameters of the base: unknown; state base_model.parameters, or have the model here")
        else:
            said.append(f"weights a token meets: {self.weights[1]:.3g} (all but the token embedding)")
        if self.speed is not None:
            said.append(f"speed: {self.speed:g} tokens a second and device, measured or given")
        else:
            said.append(f"speed: {given.device_tflops:g} TFLOP/s a device at {100 * given.utilisation:g} % utilisation")
        rest = "the interaction analysis, products of attention"
        said.append(f"not counted: conversion, mining, tokenising, merging, evaluation, {rest}")
        return said


def _pretraining(planner: _Planner, base: TinyBase) -> dict[str, Sum]:
    """Examples, steps and tokens of the tiny base's pre-training."""
    if "base" in planner.found:
        facts = planner.found["base"].facts
        return {**{name: Sum(facts[name]) for name in ("examples", "steps", "tokens")}, "repeated": Sum()}
    pairs, options = planner.study.profile.corpus.pretraining_pairs, base.pretraining
    size = DatasetRules().batch_size(options.per_device_train_batch_size, options.processes)
    steps = None if pairs is None else pairs // size * options.num_train_epochs
    examples = Sum().plus(None if steps is None else steps * size)
    tokens = examples.times(options.query_max_len + options.passage_max_len)
    return {"examples": examples, "steps": Sum().plus(steps), "tokens": tokens, "repeated": Sum()}


def _weights(study: Study, base: Artifact | None) -> tuple[float | None, float | None]:
    from boom_utils.merging.weight_files import read_header
    from boom_utils.model_folder import find_weight_files
    from boom_utils.training.base_source import find_base

    config = study.profile.base_model
    if isinstance(config, TinyBase) and base is None:
        return _tiny_weights(config)
    folder: Path | None = base.path if base is not None else None
    if folder is None and isinstance(config, PretrainedBase):
        files = find_base(config)
        folder = files.folder if files else None
    if folder is not None:
        try:
            infos = [info for path in find_weight_files(folder)[0] for info in read_header(path) if info.is_float]
        except CheckpointError:
            infos = []
        sizes = {info.stored: _count(info.shape) for info in infos}
        embedding = [
            size for name, size in sizes.items() if name.endswith(("word_embeddings.weight", "embed_tokens.weight"))
        ]
        if sizes and embedding:
            return float(sum(sizes.values())), float(sum(sizes.values()) - sum(embedding))
    if isinstance(config, PretrainedBase) and config.parameters is not None:
        return config.parameters, config.parameters - (config.embedding_parameters or 0.0)
    return None, None


def _tiny_weights(config: TinyBase) -> tuple[float, float]:
    """Matrices of a tiny Qwen3 by its sizes; norms are left out."""
    head = config.hidden_size // config.num_attention_heads
    attention = 2 * config.hidden_size * head * (config.num_attention_heads + config.num_key_value_heads)
    layers = config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    return float(layers + config.vocab_size * config.hidden_size), float(layers)


def _count(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _read_texts(path: Path) -> _Texts:
    """Mean lengths of one token table, from its offsets."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    rows = max(1, len(table))
    query = sum(len(chunk.values) for chunk in table["query"].chunks)
    means, tokens, counts = {}, {}, {}
    for name in ("pos", "neg"):
        counts[name] = sum(len(chunk.values) for chunk in table[name].chunks)
        tokens[name] = sum(len(chunk.values.values) for chunk in table[name].chunks)
        means[name] = tokens[name] / max(1, counts[name])
    return _Texts(query / rows, means["pos"], means["neg"], (query + tokens["pos"] + tokens["neg"]) / rows)


def _graph(study: Study, found: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Every node: stage, label, names of its inputs, whether it is up to date and where it is then."""
    names = {id(node): name for name, node in study.nodes.items()}
    root = study.workspace.root
    return {
        name: {
            "stage": node.stage,
            "label": node.label,
            "inputs": sorted({names[id(child)] for child in node.inputs.values()}),
            "up_to_date": name in found,
            "folder": str(found[name].path.relative_to(root)) if name in found else None,
        }
        for name, node in study.nodes.items()
    }
