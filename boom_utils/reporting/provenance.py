"""Which file of a report was drawn from which part of the results: noted while drawing, kept in ``provenance.json``.

Parts are named as in a results folder: ``scores/full/sts``, ``training/full``, ``geometry.json``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from boom_utils.artifacts import digest_of, sha256_file, write_json
from boom_utils.reporting.lineage import LINEAGE
from boom_utils.reporting.results import Results

PROVENANCE = "provenance.json"
PAGE = "report.html"
RESULT_FILES = ("study.json", LINEAGE, "geometry.json", "interaction.json")
RESULT_FOLDERS = ("scores", "training", "corpus")
"""What a results folder holds besides the report."""
T = TypeVar("T")


@dataclass(frozen=True)
class WatchedResults(Results):
    """Results that note which of their parts are read."""

    seen: set[str] = field(default_factory=set)

    def place(self, name: str) -> Path:
        """Where a part is, as in `Results.place`; notes that it was asked for."""
        self.seen.add(name)
        return super().place(name)


@dataclass
class Notes:
    """What each file of a report was drawn from, by its name without suffix (``tables/models``)."""

    results: WatchedResults
    parts: dict[str, list[str]] = field(default_factory=dict)

    def noting(self, folder: str, makes: Mapping[str, Callable[[Results], T]]) -> dict[str, Callable[[Results], T]]:
        """The same functions, each noting what it read as ``<folder>/<name>``."""
        return {name: self._noted(f"{folder}/{name}", make) for name, make in makes.items()}

    def _noted(self, name: str, make: Callable[[Results], T]) -> Callable[[Results], T]:
        def noted(results: Results) -> T:
            return self.note(name, lambda: make(results))

        return noted

    def note(self, name: str, make: Callable[[], T]) -> T:
        """Call a function, and note what it read."""
        self.results.seen.clear()
        made = make()
        self.parts[name] = sorted(self.results.seen)
        return made


def result_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a results folder that is no part of the report, by name."""
    paths = [folder / name for name in RESULT_FILES if (folder / name).is_file()]
    for name in RESULT_FOLDERS:
        paths += [path for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(paths)}


def results_digest(files: Mapping[str, str]) -> str:
    """Digest of results by the sha256 of their files: that of the artifact in the workspace they were copied from."""
    return digest_of(dict(files))


def write_provenance(
    notes: Notes, out: Path, written: Iterable[Path], published: Mapping[str, Sequence[Path]] | None = None
) -> Path:
    """Write ``provenance.json``: the results' files, and what each file of the report was drawn from.

    Args:
        notes: What was noted; a file nothing is noted of was drawn from all parts together.
        out: Folder of the report.
        written: Its files.
        published: File without suffix -> files of published scores that it holds besides.
    """
    others = published or {}
    files = result_files(notes.results.folder)
    whole = sorted({part for parts in notes.parts.values() for part in parts})
    report = {}
    for path in sorted(written):
        name = path.relative_to(out)
        stem = name.with_suffix("").as_posix()
        besides = {"published": [file.name for file in others[stem]]} if stem in others else {}
        report[name.as_posix()] = {"sha256": sha256_file(path), **_grouped(notes.parts.get(stem, whole)), **besides}
    value = {
        "results": {"sha256": results_digest(files), "files": files},
        "published": {file.name: sha256_file(file) for file in sorted({*chain(*others.values())})},
        "report": report,
    }
    write_json(out / PROVENANCE, value)
    return out / PROVENANCE


def _grouped(parts: Iterable[str]) -> dict[str, Any]:
    """Parts in few words: scores as lists of models that share their tasks."""
    tasks: dict[str, list[str]] = defaultdict(list)
    others = []
    for part in parts:
        kind, _, rest = part.partition("/")
        if kind == "scores" and "/" in rest:
            tasks[rest.split("/", 1)[0]].append(rest.split("/", 1)[1])
        else:
            others.append(part)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for model, names in tasks.items():
        groups[tuple(sorted(names))].append(model)
    scores = [{"models": sorted(models), "tasks": [*names]} for names, models in sorted(groups.items())]
    return {key: value for key, value in (("scores", scores), ("parts", sorted(others))) if value}


def parts_of(entry: Mapping[str, Any]) -> list[str]:
    """The parts that a file's entry in ``provenance.json`` names."""
    scores = [
        f"scores/{model}/{task}"
        for group in entry.get("scores", ())
        for model in group["models"]
        for task in group["tasks"]
    ]
    return [*scores, *entry.get("parts", ())]
