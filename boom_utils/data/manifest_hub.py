"""What a manifest says about ready-made rows: files of a dataset on the Hugging Face hub, or a user's own.

Nothing here is guessed: a fact that is not known is null, and every count says where it comes from. What is null is
found at the first download and kept in a lock file (`boom_utils.data.files`). Reads no file and asks no server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from boom_utils.config import Frozen, Name
from boom_utils.data.files import HubFile
from boom_utils.data.manifest_files import Line, refuse, twice

READABLE = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.(gz|zst|bz2|lz4))?$")
"""Names of files whose rows `boom_utils.data.own` reads."""

Mark = Literal["stated", "third party", "inferred", "ours", "unknown"]
"""How surely a fact is known: stated by the owners of the data or the authors of the paper, by somebody else, inferred
from other facts, a choice of this kit where nothing is known, or not at all."""


class RowCount(Frozen):
    """A number of rows, and who says so."""

    value: int | None = Field(default=None, gt=0)
    source: Mark = "unknown"
    note: Line | None = None

    @model_validator(mode="after")
    def _unknown_is_null(self) -> RowCount:
        refuse(["a count is null exactly where its source is unknown"] if self.disagrees else [])
        return self

    @property
    def disagrees(self) -> bool:
        """Whether value and source contradict each other."""
        return (self.value is None) != (self.source == "unknown")


class Known(Frozen):
    """How surely the semantics of the rows are known."""

    family: Mark = "stated"
    prompt: Mark = "ours"
    type: Mark = "inferred"
    in_batch_negatives: Mark = "stated"
    negatives: Line | None = Field(default=None, description="negatives a row, as seen somewhere; null: not known")


class Columns(Frozen):
    """Which column of a file is which part of a row; a column may hold one text or a list of them."""

    query: str = "query"
    pos: str = "pos"
    neg: str | None = Field(default="neg", description="null: rows have no negatives")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that must be there."""
        return (self.query, self.pos) if self.neg is None else (self.query, self.pos, self.neg)


class Selection(Frozen):
    """How many rows of a dataset are used, and which."""

    rows: int = Field(gt=0)
    rule: Literal["first", "seeded"] = Field(description="the first ones, or drawn by the seed of the corpus")
    rows_source: Mark
    rule_source: Mark


def _as_file(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class HubOrigin(Frozen):
    """Files of one dataset in a dataset repository of the hub."""

    repo: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="null: not chosen yet")
    split: str | None = Field(default=None, description="its name in the repository, where that has splits")
    files: tuple[Annotated[HubFile, BeforeValidator(_as_file)], ...] = Field(min_length=1)
    columns: Columns = Columns()
    select: Selection | None = Field(default=None, description="null: all rows")
    licence: Line = Field(description='as stated there; "undeclared" where nothing is')
    licence_note: Line | None = None
    homepage: str = Field(pattern=r"^https?://[^\s<>|()]+$")
    rows: RowCount = RowCount()
    known: Known = Known()
    notes: tuple[Line, ...] = ()

    @model_validator(mode="after")
    def _files_differ(self) -> HubOrigin:
        refuse(twice("file", (file.path for file in self.files)))
        return self


class LocalOrigin(Frozen):
    """Ready-made rows of a user, in the kinds of files and columns that `boom_utils.data.own` reads."""

    files: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        min_length=1, description="relative to the manifest's file, or hf://datasets/owner/name@revision/path"
    )
    licence: Line = "unknown"
    held_out: float | None = Field(
        default=None, gt=0, lt=1, description="share of the queries that is evaluated and not trained on"
    )

    @model_validator(mode="after")
    def _files_are_readable(self) -> LocalOrigin:
        wrong = [file for file in self.files if not READABLE.search(file)]
        kinds = "a jsonl, json, csv, tsv, parquet or arrow file"
        refuse([*twice("file", self.files), *(f"{file} is not {kinds}" for file in wrong)])
        return self


class HubFiles(Frozen):
    """Datasets of the Hugging Face hub; every dataset names its repository and files under ``hub``."""

    kind: Literal["hub_files"]


class LocalFiles(Frozen):
    """Files of a user; every dataset names its own under ``local``."""

    kind: Literal["local_files"]


class Excluded(Frozen):
    """A dataset that a corpus leaves out on purpose."""

    id: Name
    reason: Line
    rows: RowCount = RowCount()


class Variant(Frozen):
    """The same corpus with some datasets left out, where sources disagree about which it holds."""

    name: Name
    without: tuple[Name, ...] = Field(min_length=1)
    reason: Line


def hub_problems(hubs: Mapping[str, HubOrigin]) -> list[str]:
    """What is wrong with several hub datasets together.

    Args:
        hubs: Dataset -> its origin.

    Returns:
        One sentence for every two datasets that are made from the same files, and for every repository that is named
        with two revisions.
    """
    problems, revisions = [], dict[str, str | None]()
    for name, hub in hubs.items():
        if revisions.setdefault(hub.repo, hub.revision) != hub.revision:
            problems.append(f"dataset '{name}': {hub.repo} is named with two revisions")
    places = [f"{hub.repo}: {file.path}" for hub in hubs.values() for file in hub.files]
    return problems + twice("file", places)


def variant_problems(variants: Iterable[Variant], datasets: Iterable[str]) -> list[str]:
    """What is wrong with the variants of a corpus that has some datasets."""
    variants, known = list(variants), set(datasets)
    return twice("variant", (variant.name for variant in variants)) + [
        f"variant '{variant.name}' leaves out '{name}', which is no dataset"
        for variant in variants
        for name in variant.without
        if name not in known
    ]
