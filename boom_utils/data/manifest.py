"""Data manifests: one YAML states where a corpus comes from, what its datasets are and how they are evaluated.

What FlagEmbedding hides in folder names and type strings (in-batch negatives, halved batches, instructions on passages,
group size) is written out here and checked against the type. Reads no corpus and downloads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import Frozen, Name
from boom_utils.errors import ManifestError, nearest
from boom_utils.yaml_files import parse, read_yaml

MANIFESTS = PROJECT_ROOT / "data_manifests"

Family = Literal["retrieval", "reranking", "sts", "classification", "clustering", "code"]
GroupSizeRule = Literal["train_group_size", "one_negative", "first_row"]
ExampleType = Literal["normal", "only_1neg", "symmetric_sts", "symmetric_class", "symmetric_clustering"]
Sentence = Annotated[str, Field(min_length=10, max_length=1000)]

ON_BOTH_SIDES = ("symmetric_sts", "symmetric_clustering")
"""Types whose passages get the instruction too (FlagEmbedding AbsDataset)."""
GROUP_SIZE_OF_TYPE: dict[str, GroupSizeRule] = {"only_1neg": "one_negative", "symmetric_class": "first_row"}
"""Types with a group size of their own (FlagEmbedding AbsDataset); all others use ``train_group_size``."""


class Distribution(Frozen):
    """One installed Python distribution whose documentation is mined."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", description="name on PyPI")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.!+_-]*$", description="exact; another one is a reported deviation")
    licence: str = Field(min_length=2)
    held_out: bool = Field(default=False, description="only evaluated: nothing of it is trained on")


class InstalledDistributions(Frozen):
    """Docstrings and sources of installed distributions, mined statically."""

    kind: Literal["installed_distributions"]
    distributions: tuple[Distribution, ...] = Field(min_length=1, max_length=12)
    standard_library: bool = Field(default=True, description="also mine that of the running Python")

    @model_validator(mode="after")
    def _names_differ(self) -> InstalledDistributions:
        _refuse(_twice("distribution", (distribution.name.lower() for distribution in self.distributions)))
        return self


Source = InstalledDistributions
"""Becomes a union, discriminated by ``kind``, when corpora from https and the hub are added."""


class Dataset(Frozen):
    """One training dataset and the semantics of its rows."""

    id: Name
    family: Family
    role: Literal["train", "new_data"] = Field(description="new_data arrives in the incremental setting")
    prompt: Sentence = Field(description="instruction text only; the template is applied later")
    in_batch_negatives: bool = Field(description="False: the loss sees the row's own group only")
    halve_batch: bool = Field(description="half the per-device batch")
    instruction_on_passages: bool
    group_size: GroupSizeRule
    example_type: ExampleType = Field(description="FlagEmbedding's `type` string")
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    description: Sentence = Field(description="the rule that makes the rows")

    @model_validator(mode="after")
    def _type_agrees(self) -> Dataset:
        expected = {
            "halve_batch": "symmetric" in self.example_type,
            "instruction_on_passages": self.example_type in ON_BOTH_SIDES,
            "group_size": GROUP_SIZE_OF_TYPE.get(self.example_type, "train_group_size"),
        }
        _refuse(
            f"{key} is {getattr(self, key)}, but type {self.example_type} means {value}"
            for key, value in expected.items()
            if getattr(self, key) != value
        )
        return self


class EvaluationTask(Frozen):
    """One evaluation task; its prompt is that of its dataset."""

    id: Name
    dataset: Name
    family: Family
    held_out: bool = Field(description="True: made of the held-out distributions only")


Entry = TypeVar("Entry", Dataset, EvaluationTask)


class Manifest(Frozen):
    """One corpus: its source, its datasets and its evaluation tasks."""

    name: Name
    description: Sentence
    source: Source
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    tasks: tuple[EvaluationTask, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_resolve(self) -> Manifest:
        families = {dataset.id: dataset.family for dataset in self.datasets}
        problems = _twice("dataset", (dataset.id for dataset in self.datasets))
        problems += _twice("task", (task.id for task in self.tasks))
        for task in self.tasks:
            if task.dataset not in families:
                problems.append(f"task '{task.id}': no dataset '{task.dataset}'{nearest(task.dataset, families)}")
            elif task.family != families[task.dataset]:
                problems.append(f"task '{task.id}' is {task.family}, its dataset is {families[task.dataset]}")
            if task.held_out and not any(distribution.held_out for distribution in self.source.distributions):
                problems.append(f"task '{task.id}' needs held-out distributions, but none is held out")
        _refuse(problems)
        return self

    def dataset(self, dataset_id: str) -> Dataset:
        """The dataset of that id.

        Raises:
            ManifestError: The corpus has no such dataset.
        """
        return _named(f"corpus '{self.name}'", "dataset", self.datasets, dataset_id)

    def task(self, task_id: str) -> EvaluationTask:
        """The evaluation task of that id.

        Raises:
            ManifestError: The corpus has no such task.
        """
        return _named(f"corpus '{self.name}'", "evaluation task", self.tasks, task_id)


def manifest_names() -> list[str]:
    """Names of the manifests that come with the kit."""
    return sorted(path.stem for path in MANIFESTS.glob("*.yaml"))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest by name (``python_docs``) or from a YAML file.

    Args:
        name_or_path: A name of `manifest_names`, or a path ending in ``.yaml`` or ``.yml``.

    Returns:
        The checked manifest.

    Raises:
        ManifestError: No such manifest, or any number of problems in it, listed together.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else MANIFESTS / f"{text}.yaml"
    if not path.is_file():
        raise ManifestError(
            f"there is no data manifest '{text}'{nearest(text, manifest_names())}",
            expected=f"one of {', '.join(manifest_names())}, or the path of a .yaml file",
        )
    return parse(Manifest, read_yaml(path, ManifestError), path.name, ManifestError)


def _named(owner: str, kind: str, entries: Iterable[Entry], wanted: str) -> Entry:
    by_id = {entry.id: entry for entry in entries}
    if wanted not in by_id:
        raise ManifestError(
            f"{owner} has no {kind} '{wanted}'{nearest(wanted, by_id)}", expected=f"one of {', '.join(by_id)}"
        )
    return by_id[wanted]


def _twice(kind: str, names: Iterable[str]) -> list[str]:
    return [f"{kind} '{name}' is named twice" for name, count in Counter(names).items() if count > 1]


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise ValueError("; ".join(found))
