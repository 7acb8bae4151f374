"""What a corpus is: its source, its datasets and the semantics of their rows, its evaluation tasks; one YAML each.

What FlagEmbedding hides in folder names and type strings (in-batch negatives, halved batches, instructions on passages,
group size) is written out and checked against the type. A fact that is not known is null, and a count says where it
comes from. What could fetch another file than was meant, or train on what is evaluated, is refused before anything is
downloaded; this module reads no corpus and asks no server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, PositiveInt

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.data.files import HubFile, RemoteFile
from boom_utils.errors import ManifestError, nearest
from boom_utils.yaml_files import Frozen, Name, file_of, parse, read_yaml, repeated

MANIFESTS = PROJECT_ROOT / "data_manifests"
READABLE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.(gz|zst|bz2|lz4))?$")
"""Names of files whose rows `boom_utils.data.examples` reads."""
PLACES = {"https_files": "origin", "hub_files": "hub", "local_files": "local"}
"""Kind of source -> key under which each dataset lists its files; a mined corpus lists none."""
HELD_OUT_FAMILIES = ("retrieval", "code", "sts", "classification")
"""Families whose training rows, held out, are an evaluation task."""

Line = Annotated[str, Field(min_length=2, max_length=1000)]
Family = Literal["retrieval", "reranking", "sts", "classification", "clustering", "code"]
Column = Literal["query", "pos", "neg"]
Part = Literal["train", "dev", "test", "corpus", "queries", "qrels"]


# --- sources ----------------------------------------------------------------------------------------------------------


class Distribution(Frozen):
    """One installed Python distribution whose documentation is mined."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", description="name on PyPI")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.!+_-]*$", description="exact; another one is a reported deviation")
    licence: Line
    held_out: bool = Field(default=False, description="only evaluated: nothing of it is trained on")


class InstalledDistributions(Frozen):
    """Docstrings and sources of installed distributions, mined statically."""

    kind: Literal["installed_distributions"]
    distributions: tuple[Distribution, ...] = Field(min_length=1)
    standard_library: bool = Field(default=True, description="also mine that of the running Python")


class HttpsFiles(Frozen):
    """Files fetched by https; every dataset lists its own under ``origin``."""

    kind: Literal["https_files"]
    hosts: tuple[str, ...] = Field(min_length=1, description="the only hosts that are asked")


class HubFiles(Frozen):
    """Datasets of the Hugging Face hub; every dataset names its repository and files under ``hub``."""

    kind: Literal["hub_files"]


class LocalFiles(Frozen):
    """Files of a user; every dataset names its own under ``local``."""

    kind: Literal["local_files"]


Source = Annotated[InstalledDistributions | HttpsFiles | HubFiles | LocalFiles, Field(discriminator="kind")]


# --- files of a dataset -----------------------------------------------------------------------------------------------


class Terms(Frozen):
    """Under which terms files can be had, and what a careful reader should know about them."""

    licence: Line = Field(description='as stated where the files are; "unknown" or "undeclared" where nothing is')
    licence_note: Line | None = None
    notes: tuple[Line, ...] = ()


class DataFile(RemoteFile):
    """One file on the web; the same file may serve several datasets."""

    role: Literal[Part, "train+test", "train+dev+test", "queries+qrels", "corpus+queries+qrels"]
    part: str | None = Field(default=None, description="which column (parallel files) or which domain the file is")


class Origin(Terms):
    """Files of one dataset on the web, all pinned by one commit; `boom_utils.data.open_text` reads them."""

    task: Literal[Family, "pair_classification", "code_retrieval"] = Field(description="how evaluation data are scored")
    homepage: dict[Literal["dataset", "paper", "url"], str]
    repository: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    split_rule: str | None = None
    parts: dict[Part, PositiveInt] = Field(default={}, description="rows as read; other numbers are an error")
    differs: str | None = Field(default=None, description="why these are not the numbers of rows stated elsewhere")
    labels: dict[str, str] | tuple[str, ...] = Field(default=(), description="as in the file -> of the record, or both")
    files: tuple[DataFile, ...] = Field(min_length=1)

    @property
    def label_names(self) -> dict[str, str]:
        """Label in the file -> label of the record."""
        return self.labels if isinstance(self.labels, dict) else {label: label for label in self.labels}


class RowCount(Frozen):
    """A number of rows, and who says so: owners or authors, others, an inference, a choice of this kit, nobody."""

    value: int | None = Field(default=None, gt=0)
    source: Literal["stated", "third party", "inferred", "ours", "unknown"] = "unknown"
    note: str | None = None


PathOrFile = Annotated[HubFile, BeforeValidator(lambda raw: {"path": raw} if isinstance(raw, str) else raw)]


class HubOrigin(Terms):
    """Files of one dataset in a dataset repository of the hub."""

    repo: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="null: not chosen yet")
    split: str | None = Field(default=None, description="its name in the repository, where that has splits")
    files: tuple[PathOrFile, ...] = Field(min_length=1)
    columns: dict[Column, str] = Field(default={}, description="which is which; {}: by name")
    select: int | None = Field(default=None, gt=0, description="rows drawn by the seed of the corpus; null: all")
    homepage: str
    rows: RowCount = RowCount()
    known: dict[str, str | None] = Field(default={}, description="how surely the semantics are known; for readers")


class LocalOrigin(Terms):
    """Ready-made rows of a user, in the kinds of files and columns that `boom_utils.data.examples` reads.

    Files are relative to the manifest's, or ``hf://datasets/owner/name@revision/path``.
    """

    licence: Line = "unknown"
    files: tuple[Annotated[str, Field(pattern=READABLE, max_length=1000)], ...] = Field(min_length=1)
    held_out: float | None = Field(default=None, gt=0, lt=1, description="share of the queries kept from training")


# --- datasets and tasks -----------------------------------------------------------------------------------------------


class Dataset(Frozen):
    """One dataset and the semantics of its rows, as training reads them."""

    id: Name
    family: Family
    # new_data arrives in the incremental setting; nobody trains on evaluation, which only https files can be.
    role: Literal["train", "new_data", "evaluation"]
    prompt: Line = Field(description="instruction text only; the template is applied later")
    in_batch_negatives: bool = Field(description="False: the loss sees the row's own group only")
    halve_batch: bool = Field(description="half the per-device batch")
    instruction_on_passages: bool
    group_size: Literal["train_group_size", "one_negative", "first_row", "positive_only"]
    # FlagEmbedding's `type` string.
    example_type: Literal["normal", "only_1neg", "symmetric_sts", "symmetric_class", "symmetric_clustering"]
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$", description="ISO 639, of the texts")
    programming_language: str | None = Field(default=None, pattern=r"^[a-z0-9+#.-]+$")
    description: Line = Field(description="the rule that makes the rows")
    origin: Origin | None = Field(default=None, description="its files, where the source is https_files")
    hub: HubOrigin | None = Field(default=None, description="its files, where the source is hub_files")
    local: LocalOrigin | None = Field(default=None, description="its files, where the source is local_files")

    @property
    def place(self) -> Origin | HubOrigin | LocalOrigin | None:
        """Its files and their terms, wherever they are; None where it is mined."""
        return self.origin or self.hub or self.local

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
            return self.hub.select or self.hub.rows.value
        return None if self.origin is None else self.origin.parts.get("train")


class EvaluationTask(Frozen):
    """One evaluation task; its prompt is that of its dataset."""

    id: Name
    dataset: Name
    family: Family
    held_out: bool = Field(description="True: out of domain, made of distributions or datasets nobody trains on")
    domain_of: Name | None = Field(default=None, description="other dataset with training rows of the same kind")

    def domain(self, trained: Collection[str]) -> Literal["in-domain", "out-of-domain"]:
        """In domain of models that are trained on some datasets, or not."""
        return "in-domain" if (self.domain_of or self.dataset) in trained and not self.held_out else "out-of-domain"


# --- the corpus -------------------------------------------------------------------------------------------------------

Entry = TypeVar("Entry", Dataset, EvaluationTask)


class Manifest(Frozen):
    """One corpus: its source, its datasets and its evaluation tasks."""

    name: Name
    description: Line
    source: Source
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    tasks: tuple[EvaluationTask, ...] = Field(default=(), description="evaluated with data of the corpus itself")
    benchmarks: tuple[Line, ...] = Field(default=(), description="names of mteb benchmarks it is evaluated with")
    excluded: dict[Name, Line] = Field(default={}, description="dataset that it leaves out -> why; its rows")
    includes: tuple[Name, ...] = Field(default=(), description="manifests whose datasets come before its own")
    notes: tuple[Line, ...] = Field(default=(), description="what to know before using it")
    # Where the manifest's file is makes no other corpus, and no record names a place on one machine.
    folder: Path = Field(default=MANIFESTS, exclude=True, description="set when it is read")

    def problems(self) -> Iterator[str]:
        """Names given twice or leading nowhere, and datasets that contradict their type or the source."""
        for check in (_repeated, _name_problems, _type_problems, _source_problems, _file_problems):
            yield from check(self)

    @property
    def installed(self) -> InstalledDistributions:
        """The source of a corpus that is mined from what is installed; of no other."""
        assert isinstance(self.source, InstalledDistributions)
        return self.source

    def dataset(self, dataset_id: str) -> Dataset:
        """The dataset of that id.

        Raises:
            ManifestError: The corpus has no such dataset.
        """
        return _named(f"corpus '{self.name}' has no dataset", self.datasets, dataset_id)

    def task(self, task_id: str) -> EvaluationTask:
        """The evaluation task of that id.

        Raises:
            ManifestError: The corpus has no such task.
        """
        return _named(f"corpus '{self.name}' has no evaluation task", self.tasks, task_id)


def _named(absent: str, entries: Iterable[Entry], wanted: str) -> Entry:
    by_id = {entry.id: entry for entry in entries}
    if wanted not in by_id:
        raise ManifestError(f"{absent} '{wanted}'{nearest(wanted, by_id)}", expected=f"one of {', '.join(by_id)}")
    return by_id[wanted]


def _repeated(corpus: Manifest) -> Iterator[str]:
    """What would be mined, fetched, read or scored twice."""
    placed = [(one, one.place) for one in corpus.datasets if one.place is not None]
    groups: dict[str, Iterable[str]] = {
        "dataset": (one.id for one in corpus.datasets),
        "task": (one.id for one in corpus.tasks),
        "distribution": (one.name.lower() for one in getattr(corpus.source, "distributions", ())),
        "file": (f"{one.id}: {getattr(file, 'path', file)}" for one, place in placed for file in place.files),
        "hub file": (f"{one.hub.repo}/{file.path}" for one in corpus.datasets if one.hub for file in one.hub.files),
        "held-out rows of": (task.dataset for task in corpus.tasks if isinstance(corpus.source, LocalFiles)),
    }
    yield from repeated(groups)
    revisions = dict[str, str | None]()
    for hub in (one.hub for one in corpus.datasets if one.hub):
        if revisions.setdefault(hub.repo, hub.revision) != hub.revision:
            yield f"{hub.repo} is named at two revisions: {revisions[hub.repo]} and {hub.revision}"


def _name_problems(corpus: Manifest) -> Iterator[str]:
    """Names of what is not there, or is something else."""
    families = {dataset.id: dataset.family for dataset in corpus.datasets}
    for task in corpus.tasks:
        for name in sorted({task.dataset, task.domain_of or task.dataset} - {*families}):
            yield f"task '{task.id}': no dataset '{name}'{nearest(name, families)}"
        if task.family != (family := families.get(task.dataset, task.family)):
            yield f"task '{task.id}' is {task.family}, its dataset is {family}"
    yield from (f"'{name}' is a dataset, and excluded" for name in corpus.excluded if name in families)
    if not corpus.tasks and not corpus.benchmarks and not isinstance(corpus.source, LocalFiles):
        yield "there is nothing to evaluate with: name tasks, or benchmarks of mteb"


def _type_problems(corpus: Manifest) -> Iterator[str]:
    """Semantics that are not those of the dataset's type, as FlagEmbedding's AbsDataset has them."""
    sizes = {"only_1neg": "one_negative", "symmetric_class": "first_row"}
    for dataset in corpus.datasets:
        pairs = dataset.group_size == "positive_only" and dataset.in_batch_negatives  # others' passages are enough
        for key, expected in {
            "halve_batch": "symmetric" in dataset.example_type,
            "instruction_on_passages": dataset.example_type in ("symmetric_sts", "symmetric_clustering"),
            "group_size": "positive_only" if pairs else sizes.get(dataset.example_type, "train_group_size"),
        }.items():
            if (given := getattr(dataset, key)) != expected:
                yield f"dataset '{dataset.id}': {key} is {given}, but type {dataset.example_type} means {expected}"


def _source_problems(corpus: Manifest) -> Iterator[str]:
    """What does not fit the kind of source: where files are listed, and that nothing evaluated is trained on."""
    place, roles = PLACES.get(corpus.source.kind), {one.id: one.role for one in corpus.datasets}
    shares = {one.id for one in corpus.datasets if one.local is not None and one.local.held_out is not None}
    evaluated = {task.dataset for task in corpus.tasks}
    for dataset in corpus.datasets:
        listed = [key for key in PLACES.values() if getattr(dataset, key) is not None]
        if listed != [place][: place is not None]:
            where = f"{' and '.join(listed) or 'no key'}, instead of {place or 'none'}"
            yield f"dataset '{dataset.id}' lists files under {where}: the source is {corpus.source.kind}"
        if dataset.role == "evaluation" and place != "origin":
            other = "rows of it" if place else "distributions"
            yield f"dataset '{dataset.id}' is only evaluated: hold out {other} instead"
        elif (dataset.role == "evaluation" or dataset.id in shares) and dataset.id not in evaluated:
            yield f"dataset '{dataset.id}' is kept from training, or a share of it is, but no task evaluates it"
    distributions = corpus.source.distributions if isinstance(corpus.source, InstalledDistributions) else ()
    for task in corpus.tasks:
        if place is None and task.held_out and not any(one.held_out for one in distributions):
            yield f"task '{task.id}' is held out, but no distribution is"
        if place == "origin" and task.held_out and roles.get(task.dataset, "evaluation") != "evaluation":
            yield f"task '{task.id}' is held out, but its dataset is trained on"
        if place in ("hub", "local") and task.dataset not in shares:
            yield f"task '{task.id}': its dataset has no held_out share, so that nothing is left to evaluate"
        if place in ("hub", "local") and (task.held_out or task.family not in HELD_OUT_FAMILIES):
            yield f"task '{task.id}' must be in-domain, and {', '.join(HELD_OUT_FAMILIES)}: it is held-out rows"


def _file_problems(corpus: Manifest) -> Iterator[str]:
    """Files of other hosts, of no commit (others tomorrow), or two of which one place of a disk would be needed."""
    hosts, places = getattr(corpus.source, "hosts", ()), dict[str, DataFile]()
    for origin in (one.origin for one in corpus.datasets if one.origin):
        for file in origin.files:
            host, *folders = file.path.parts
            if host not in hosts:
                yield f"{file.url} is not on one of source.hosts{nearest(host, hosts)}"
            if origin.commit not in folders:
                yield f"{file.url} is not pinned: the commit {origin.commit} is not in it"
            known = places.setdefault(str(file.path).casefold(), file)  # on some disks case does not count
            if (known.url, known.sha256, known.bytes) != (file.url, file.sha256, file.bytes):
                yield f"{file.url} would lie at the place of {known.url}, and has another address, sha256 or size"
    for name, file in places.items():
        for above in (places[str(one)] for one in PurePosixPath(name).parents if str(one) in places):
            yield f"{file.url} would lie below {above.url}, which is a file"


# --- reading ----------------------------------------------------------------------------------------------------------


def manifest_names() -> list[str]:
    """Names of the manifests that come with the kit."""
    return sorted(path.stem for path in MANIFESTS.glob("*.yaml"))


def load_manifest(name_or_path: str | Path, above: tuple[str, ...] = ()) -> Manifest:
    """Read a manifest by name (``python_docs``) or from a YAML file.

    Args:
        name_or_path: A name of `manifest_names`, or a path ending in ``.yaml`` or ``.yml``.
        above: Names of the manifests that include it.

    Returns:
        The checked manifest.

    Raises:
        ManifestError: No such manifest, or any number of problems in it, listed together.
    """
    path = file_of(str(name_or_path), Path(), MANIFESTS, "data manifest", ManifestError)
    if path.stem in above:
        raise ManifestError("manifests include each other", where=path.name, found=" -> ".join((*above, path.stem)))
    manifest = parse(Manifest, read_yaml(path, ManifestError), path.name, ManifestError)
    for one in reversed(manifest.includes):
        beside = path.with_name(f"{one}.yaml")
        included = load_manifest(beside if beside.is_file() else one, (*above, path.stem))
        if included.source != manifest.source or isinstance(included.source, LocalFiles):
            what = f"'{one}' cannot be included: its source is another one, or files of a user"
            raise ManifestError(what, where=path.name, expected=manifest.source.kind, found=included.source.kind)
        joined = {key: getattr(included, key) + getattr(manifest, key) for key in ("datasets", "notes")}
        joined["excluded"] = included.excluded | manifest.excluded
        manifest = parse(Manifest, dict(manifest) | joined, path.name, ManifestError)
    return manifest.model_copy(update={"folder": path.resolve().parent})
