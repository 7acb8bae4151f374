"""Data manifests: one YAML states where a corpus comes from, what its datasets are and how they are evaluated.

What FlagEmbedding hides in folder names and type strings (in-batch negatives, halved batches, instructions on passages,
group size) is written out here and checked against the type. Reads no corpus and downloads nothing; files to download
are described by `boom_utils.data.manifest_files`, ready-made rows by `boom_utils.data.manifest_hub`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, model_validator

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import Frozen, Name
from boom_utils.data.manifest_files import HttpsFiles, Line, Origin, refuse, twice
from boom_utils.data.manifest_hub import (
    Excluded,
    HubFiles,
    HubOrigin,
    LocalFiles,
    LocalOrigin,
    Variant,
    variant_problems,
)
from boom_utils.data.manifest_rules import source_problems
from boom_utils.errors import DataError, ManifestError, bullet_list, nearest
from boom_utils.yaml_files import parse, read_yaml

MANIFESTS = PROJECT_ROOT / "data_manifests"

Family = Literal["retrieval", "reranking", "sts", "classification", "clustering", "code"]
GroupSizeRule = Literal["train_group_size", "one_negative", "first_row", "positive_only"]
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
        refuse(twice("distribution", (distribution.name.lower() for distribution in self.distributions)))
        return self


Source = Annotated[InstalledDistributions | HttpsFiles | HubFiles | LocalFiles, Field(discriminator="kind")]


class Dataset(Frozen):
    """One dataset and the semantics of its rows, as training reads them."""

    id: Name
    family: Family
    role: Literal["train", "new_data", "evaluation"] = Field(
        description="new_data arrives in the incremental setting; evaluation (files only): nobody trains on it"
    )
    prompt: Sentence = Field(description="instruction text only; the template is applied later")
    in_batch_negatives: bool = Field(description="False: the loss sees the row's own group only")
    halve_batch: bool = Field(description="half the per-device batch")
    instruction_on_passages: bool
    group_size: GroupSizeRule
    example_type: ExampleType = Field(description="FlagEmbedding's `type` string")
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$", description="ISO 639, of the texts")
    programming_language: str | None = Field(default=None, pattern=r"^[a-z0-9+#.-]+$")
    description: Sentence = Field(description="the rule that makes the rows")
    origin: Origin | None = Field(default=None, description="its files, where the source is https_files")
    hub: HubOrigin | None = Field(default=None, description="its files, where the source is hub_files")
    local: LocalOrigin | None = Field(default=None, description="its files, where the source is local_files")

    @model_validator(mode="after")
    def _type_agrees(self) -> Dataset:
        expected = {
            "halve_batch": "symmetric" in self.example_type,
            "instruction_on_passages": self.example_type in ON_BOTH_SIDES,
            "group_size": GROUP_SIZE_OF_TYPE.get(self.example_type, "train_group_size"),
        }
        if self.group_size == "positive_only" and self.in_batch_negatives:  # pairs: other rows' passages are enough
            del expected["group_size"]
        refuse(
            f"{key} is {getattr(self, key)}, but type {self.example_type} means {value}"
            for key, value in expected.items()
            if getattr(self, key) != value
        )
        return self

    @property
    def languages(self) -> tuple[str, ...]:
        """Language of the texts, then that of the code if there is any."""
        return (self.language,) if self.programming_language is None else (self.language, self.programming_language)

    @property
    def stated_rows(self) -> int | None:
        """Training rows as the manifest states them, before any rule makes examples of them; None where it does not."""
        if self.role == "evaluation":
            return None
        if self.hub is not None:
            return self.hub.select.rows if self.hub.select is not None else self.hub.rows.value
        return None if self.origin is None else self.origin.parts.get("train")

    @property
    def licence(self) -> str | None:
        """As stated where its files are; None where it is mined: then every distribution has its own."""
        place = self.origin or self.hub or self.local
        return None if place is None else place.licence


class EvaluationTask(Frozen):
    """One evaluation task; its prompt is that of its dataset."""

    id: Name
    dataset: Name
    family: Family
    held_out: bool = Field(description="True: out of domain, made of distributions or datasets nobody trains on")
    domain_of: Name | None = Field(
        default=None, description="dataset whose training rows are of the same kind; None: its own dataset"
    )

    def domain(self, trained: Collection[str]) -> Literal["in-domain", "out-of-domain"]:
        """In domain of models that are trained on some datasets, or not."""
        return "in-domain" if (self.domain_of or self.dataset) in trained and not self.held_out else "out-of-domain"


Entry = TypeVar("Entry", Dataset, EvaluationTask)


class Manifest(Frozen):
    """One corpus: its source, its datasets and its evaluation tasks."""

    name: Name
    description: Sentence
    source: Source
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    tasks: tuple[EvaluationTask, ...] = Field(default=(), description="evaluated with data of the corpus itself")
    benchmarks: tuple[Annotated[str, Field(min_length=3, max_length=80)], ...] = Field(
        default=(), description="names of mteb benchmarks it is evaluated with"
    )
    excluded: tuple[Excluded, ...] = Field(default=(), description="datasets of its sources that it leaves out")
    includes: tuple[Name, ...] = Field(default=(), description="manifests whose datasets come before its own")
    variants: tuple[Variant, ...] = Field(default=(), description="where sources disagree about its datasets")
    notes: tuple[Line, ...] = Field(default=(), description="what to know before using it")
    _folder: Path = PrivateAttr(default=MANIFESTS)

    @model_validator(mode="after")
    def _names_resolve(self) -> Manifest:
        families = {dataset.id: dataset.family for dataset in self.datasets}
        problems = twice("dataset", (dataset.id for dataset in self.datasets))
        problems += twice("task", (task.id for task in self.tasks))
        for task in self.tasks:
            if task.dataset not in families:
                problems.append(f"task '{task.id}': no dataset '{task.dataset}'{nearest(task.dataset, families)}")
            elif task.family != families[task.dataset]:
                problems.append(f"task '{task.id}' is {task.family}, its dataset is {families[task.dataset]}")
            if task.domain_of is not None and task.domain_of not in families:
                problems.append(f"task '{task.id}': no dataset '{task.domain_of}'{nearest(task.domain_of, families)}")
        problems += source_problems(self)
        if not self.tasks and not self.benchmarks:
            problems.append("there is nothing to evaluate with: name tasks, or benchmarks of mteb")
        problems += [f"'{one.id}' is excluded, and a dataset" for one in self.excluded if one.id in families]
        # Of an included manifest too; `load_manifest` looks again once its datasets are there.
        problems += [] if self.includes else variant_problems(self.variants, families)
        refuse(problems)
        return self

    @property
    def installed(self) -> InstalledDistributions:
        """The source of a corpus that is mined from what is installed.

        Raises:
            DataError: The corpus is made of files.
        """
        if not isinstance(self.source, InstalledDistributions):
            raise DataError(f"corpus '{self.name}' is made of files to download, not of installed distributions")
        return self.source

    @property
    def origins(self) -> dict[str, Origin]:
        """Dataset -> its files; empty for a corpus that is not made of files."""
        return {dataset.id: dataset.origin for dataset in self.datasets if dataset.origin is not None}

    @property
    def hubs(self) -> dict[str, HubOrigin]:
        """Dataset -> its files on the hub; empty for a corpus that is not made of these."""
        return {dataset.id: dataset.hub for dataset in self.datasets if dataset.hub is not None}

    @property
    def locals(self) -> dict[str, LocalOrigin]:
        """Dataset -> a user's own files; empty for a corpus that is not made of these."""
        return {dataset.id: dataset.local for dataset in self.datasets if dataset.local is not None}

    @property
    def folder(self) -> Path:
        """Where the manifest's file is; paths of a user's own files are relative to it. No part of the manifest."""
        return self._folder

    def without(self, variant: str) -> tuple[Dataset, ...]:
        """The datasets of a variant.

        Raises:
            ManifestError: The corpus has no such variant.
        """
        chosen = {one.name: one for one in self.variants}
        if variant not in chosen:
            raise ManifestError(f"corpus '{self.name}' has no variant '{variant}'{nearest(variant, chosen)}")
        return tuple(dataset for dataset in self.datasets if dataset.id not in chosen[variant].without)

    def uses(self, dataset: Dataset) -> tuple[str, ...]:
        """What a dataset is for: train or new_data, in_domain, out_of_domain."""
        trained = () if dataset.role == "evaluation" else (dataset.role,)
        evaluated = [task.held_out for task in self.tasks if task.dataset == dataset.id]
        places = {"in_domain": False in evaluated, "out_of_domain": True in evaluated}
        return (*trained, *(place for place, is_one in places.items() if is_one))

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
    return _load(name_or_path, ())


def _load(name_or_path: str | Path, above: tuple[str, ...]) -> Manifest:
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else MANIFESTS / f"{text}.yaml"
    if not path.is_file():
        raise ManifestError(
            f"there is no data manifest '{text}'{nearest(text, manifest_names())}",
            expected=f"one of {', '.join(manifest_names())}, or the path of a .yaml file",
        )
    manifest = parse(Manifest, read_yaml(path, ManifestError), path.name, ManifestError)
    if manifest.includes:
        manifest = _with_included(manifest, path, (*above, manifest.name))
    # Where the file is makes no other corpus: it is no field, so that no record names a place on one machine.
    manifest._folder = path.resolve().parent
    return manifest


def _with_included(manifest: Manifest, path: Path, above: tuple[str, ...]) -> Manifest:
    """The manifest with datasets, exclusions and notes of those it includes before its own, checked as a whole."""
    datasets: list[Dataset] = []
    notes: list[str] = []
    excluded = {one.id: one for one in manifest.excluded}
    for name in manifest.includes:
        if name in above:
            raise ManifestError("manifests include each other", where=path.name, found=" -> ".join((*above, name)))
        beside = path.with_name(f"{name}.yaml")
        included = _load(beside if beside.is_file() else name, above)
        if included.source != manifest.source or included.locals:
            raise ManifestError(
                f"'{name}' cannot be included: its source is another one, or files of a user",
                where=path.name,
                expected=f"a manifest of {manifest.source.kind}",
                found=included.source.kind,
            )
        datasets += included.datasets
        notes += included.notes
        excluded = {one.id: one for one in included.excluded} | excluded
    whole: dict[str, Any] = {"datasets": (*datasets, *manifest.datasets), "notes": (*notes, *manifest.notes)}
    whole["excluded"] = tuple(excluded.values())
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields}
    combined = parse(Manifest, fields | whole, path.name, ManifestError)
    if problems := variant_problems(combined.variants, (dataset.id for dataset in combined.datasets)):
        raise ManifestError(f"{len(problems)} problem(s) in {path.name}", found=bullet_list(problems))
    return combined


def _named(owner: str, kind: str, entries: Iterable[Entry], wanted: str) -> Entry:
    by_id = {entry.id: entry for entry in entries}
    if wanted not in by_id:
        raise ManifestError(
            f"{owner} has no {kind} '{wanted}'{nearest(wanted, by_id)}", expected=f"one of {', '.join(by_id)}"
        )
    return by_id[wanted]
