"""What a manifest says about files to download: where each is, its sha256, and what it is for.

What could fetch another file than was meant, or put one file in the place of another, is refused here, before anything
is downloaded. How the files are read is in `boom_utils.data.open_text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from boom_utils.config import Frozen
from boom_utils.data.files import RemoteFile, check_files
from boom_utils.errors import ManifestError, nearest

TaskKind = Literal[
    "retrieval", "reranking", "sts", "pair_classification", "classification", "clustering", "code_retrieval"
]
FILE_ROLES = ("train", "dev", "test", "corpus", "queries", "qrels")
Line = Annotated[str, Field(min_length=2, max_length=1000)]


def refuse(problems: Iterable[str]) -> None:
    """Raise one error with all problems, if there are any.

    Raises:
        ValueError: As pydantic wants it from a validator.
    """
    if found := list(problems):
        raise ValueError("; ".join(found))


class DataFile(RemoteFile):
    """One file at one address; the same file may serve several datasets."""

    bytes: int = Field(gt=0)
    role: str = Field(description="one of `FILE_ROLES`; joined by + where one file serves several")
    rows: int | None = Field(default=None, gt=0, description="as read in the stated format, header not counted")
    part: str | None = Field(default=None, description="which column (parallel files) or which domain the file is")

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        refuse(f"no role '{name}'{nearest(name, FILE_ROLES)}" for name in role.split("+") if name not in FILE_ROLES)
        return role

    @property
    def roles(self) -> tuple[str, ...]:
        """Each role by itself."""
        return tuple(self.role.split("+"))

    def remote(self) -> RemoteFile:
        """The file as the downloader takes it: without what it is for, which differs between datasets."""
        return RemoteFile(url=self.url, sha256=self.sha256, bytes=self.bytes)


class Homepage(Frozen):
    """Where a dataset is described."""

    dataset: Line = Field(description="its name, and which part of it the files are")
    paper: Line | None = None
    url: str | None = Field(default=None, pattern=r"^https?://[^\s<>|()]+$")


class Origin(Frozen):
    """Files of one dataset, and what a converter or a careful reader has to know about them."""

    task: TaskKind = Field(description="how its evaluation data are scored; finer than the family")
    licence: Line = Field(description="as stated where the files are")
    licence_note: Line | None = None
    homepage: Homepage
    repository: str = Field(pattern=r"^https://[^\s<>|()]+$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    split_rule: Line
    parts: dict[Literal["train", "dev", "test", "corpus", "queries", "qrels"], Annotated[int, Field(gt=0)]] = Field(
        default_factory=dict, description="rows of every part as read; other numbers are an error"
    )
    differs: Line | None = Field(default=None, description="why these are not the numbers of rows stated elsewhere")
    labels: dict[str, str] | tuple[str, ...] = Field(
        default=(), description="label in the file -> label of the record, or those that stay; no other is known"
    )
    oddities: tuple[Line, ...] = ()
    files: tuple[DataFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _files_are_pinned(self) -> Origin:
        problems = twice("file", (file.url for file in self.files))
        # The url of a branch would serve other bytes tomorrow.
        problems += [
            f"{file.url} is not pinned: the commit {self.commit} is not in it"
            for file in self.files
            if self.commit not in file.url.split("/")
        ]
        refuse(problems)
        return self

    @property
    def label_names(self) -> dict[str, str]:
        """Label in the file -> label of the record."""
        return self.labels if isinstance(self.labels, dict) else {label: label for label in self.labels}

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


class HttpsFiles(Frozen):
    """Files fetched by https; every dataset lists its own under ``origin``."""

    kind: Literal["https_files"]
    hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")], ...] = Field(
        min_length=1, description="the only hosts that are asked"
    )


def file_problems(source: HttpsFiles, origins: Mapping[str, Origin]) -> list[str]:
    """What is wrong with the files of several datasets together.

    Args:
        source: Names the hosts that may be asked.
        origins: Dataset -> its origin.

    Returns:
        One sentence for every file of another host, every url with two contents, and every two files that would lie at
        one place of a disk that ignores case.
    """
    problems = [
        f"dataset '{name}': {file.url} is not on one of source.hosts{nearest(host, source.hosts)}"
        for name, origin in origins.items()
        for file in origin.files
        if (host := urlsplit(file.url).hostname or "") not in source.hosts
    ]
    try:
        check_files([file.remote() for origin in origins.values() for file in origin.files])
    except ManifestError as error:
        # It lists them one a line, as every error of the kit does.
        marked = (line.partition("- ") for line in str(error).splitlines())
        problems += [text for blank, _, text in marked if text and not blank.strip()]
    return problems


def twice(kind: str, names: Iterable[str]) -> list[str]:
    """One sentence for every name that comes more than once."""
    return [f"{kind} '{name}' is named twice" for name, count in Counter(names).items() if count > 1]
