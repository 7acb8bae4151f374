"""Subsets of a corpus: seeded index files over the rows of every dataset, never copies of text.

Every dataset has its own random stream, so adding one does not change what is drawn from the others. In the paper
each ratio is drawn from every dataset independently and without replacement; whether smaller subsets are nested in
larger ones is not known, so both modes exist. Datasets that arrive later have a share of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boom_utils.artifacts import atomic_path, derive_seed, sha256_file, write_json
from boom_utils.config import SubsetConfig
from boom_utils.data.examples import count_rows
from boom_utils.errors import DataError, bullet_list, nearest

log = logging.getLogger(__name__)

RULE = "rule.json"
RowIds = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Subset:
    """Row ids of every dataset and the rule that made them.

    Args:
        rule: The subset's config as JSON-able dict (name, ratio, complement_of, mode, seed; new_data if it has some).
        corpus_rows: Rows every dataset has in all.
        rows: Row ids of every dataset, ascending and unique, uint32.
    """

    rule: Mapping[str, Any]
    corpus_rows: Mapping[str, int]
    rows: Mapping[str, RowIds]

    @property
    def name(self) -> str:
        """Name in the profile."""
        return str(self.rule["name"])

    @property
    def sizes(self) -> dict[str, int]:
        """Rows drawn from every dataset."""
        return {dataset: len(ids) for dataset, ids in sorted(self.rows.items())}


def subset_size(ratio: float, rows: int) -> int:
    """Rows that ``ratio`` of ``rows`` means: rounded half up, at least one.

    Args:
        ratio: In (0, 1].
        rows: Rows there are.

    Returns:
        Rows to draw.

    >>> subset_size(0.29, 50), subset_size(0.2, 2), subset_size(1.0, 7)
    (15, 1, 7)
    """
    # 0.29 * 50 is 14.499999999999998 in binary: the ratio is taken as it is written.
    exact = Decimal(str(ratio)) * rows
    return max(1, min(rows, int(exact.to_integral_value(rounding=ROUND_HALF_UP))))


def draw_subset(
    rows: Mapping[str, int],
    subset: SubsetConfig,
    earlier: Mapping[str, Subset] | None = None,
    new: Collection[str] = (),
) -> dict[str, RowIds]:
    """Draw the rows of one subset from every dataset, without replacement.

    Args:
        rows: Number of rows of every dataset.
        subset: The rule. ``nested`` takes prefixes of one permutation a dataset and seed, so a smaller ratio of the
            same seed lies inside a larger one; ``independent`` draws by the subset's name as well.
        earlier: Subsets drawn before, by name; needed for ``complement_of``.
        new: Those of the datasets that arrived later: their share is the rule's ``new_data``, without it nothing.

    Returns:
        Ascending uint32 row ids of every dataset that is drawn from.

    Raises:
        DataError: A dataset is empty, or the subset to complement was not drawn from these rows.

    >>> drawn = draw_subset({"nq": 10, "stsb": 7}, SubsetConfig(name="s40", ratio=0.4))
    >>> {name: len(ids) for name, ids in drawn.items()}
    {'nq': 4, 'stsb': 3}
    """
    empty = [dataset for dataset, count in sorted(rows.items()) if count < 1]
    if empty or not rows:
        raise DataError(f"subset '{subset.name}' cannot be drawn", found=f"no rows in {', '.join(empty) or 'any file'}")
    if subset.complement_of is not None:
        return _complement(rows, subset, earlier or {})
    shares = {dataset: subset.new_data if dataset in new else subset.ratio for dataset in sorted(rows)}
    return {name: _draw(name, rows[name], share, subset) for name, share in shares.items() if share is not None}


def _draw(dataset: str, count: int, share: float, subset: SubsetConfig) -> RowIds:
    size = subset_size(share, count)
    stream = ["nested"] if subset.mode == "nested" else ["independent", subset.name]
    generator = np.random.default_rng(derive_seed(subset.seed, "subset", *stream, dataset))
    return np.sort(generator.permutation(count)[:size]).astype(np.uint32)


def _complement(rows: Mapping[str, int], subset: SubsetConfig, earlier: Mapping[str, Subset]) -> dict[str, RowIds]:
    other = earlier.get(str(subset.complement_of))
    if other is None or dict(other.corpus_rows) != dict(rows):
        raise DataError(
            f"subset '{subset.name}' complements '{subset.complement_of}', which was not drawn from these rows",
            found=f"drawn so far: {', '.join(earlier) or 'none'}{nearest(str(subset.complement_of), earlier)}",
            fix="declare the other subset first",
        )
    left = {
        dataset: np.setdiff1d(np.arange(count, dtype=np.uint32), other.rows[dataset], assume_unique=True)
        for dataset, count in sorted(rows.items())
    }
    for dataset in (dataset for dataset, ids in left.items() if not len(ids)):
        log.warning("subset %s: '%s' left no row of %s", subset.name, subset.complement_of, dataset)
    return left


def save_subset(path: Path, subset: Subset) -> dict[str, Any]:
    """Write one ``<dataset>.npy`` a dataset and ``rule.json`` into the folder ``path``.

    Returns:
        What ``rule.json`` says: rule, rows of the corpus, size and sha256 of every index file.
    """
    path.mkdir(parents=True, exist_ok=True)
    for dataset, ids in subset.rows.items():
        with atomic_path(path / f"{dataset}.npy") as temporary, temporary.open("wb") as handle:
            # Little-endian on every machine, so that the file's sha256 is the same.
            np.save(handle, ids.astype("<u4"), allow_pickle=False)
    facts = {
        "rule": dict(subset.rule),
        "corpus_rows": dict(sorted(subset.corpus_rows.items())),
        "sizes": subset.sizes,
        "sha256": {dataset: sha256_file(path / f"{dataset}.npy") for dataset in sorted(subset.rows)},
    }
    write_json(path / RULE, facts)
    return facts


def load_subset(path: Path) -> Subset:
    """Read a subset's folder and check it.

    Args:
        path: A folder that `save_subset` wrote.

    Returns:
        Its rule and row ids.

    Raises:
        DataError: A file is missing or was changed, or row ids are out of range, repeated or not ascending; all
            problems together.

    >>> _ = save_subset(Path("s40"), make_subset({"nq": 10}, SubsetConfig(name="s40", ratio=0.4)))
    >>> load_subset(Path("s40")).sizes
    {'nq': 4}
    """
    try:
        facts = json.loads((path / RULE).read_text(encoding="utf-8"))
        counts = {str(dataset): int(count) for dataset, count in facts["corpus_rows"].items()}
        rows = {dataset: _read_ids(path / f"{dataset}.npy") for dataset in counts}
        sha256 = {dataset: facts["sha256"][dataset] for dataset in counts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise DataError(
            f"subset {path.name} cannot be read", where=path, found=repr(error), fix="draw it again"
        ) from error
    problems = [p for dataset, ids in rows.items() for p in _problems(dataset, ids, counts[dataset])]
    problems += [f"{d}: changed after it was drawn" for d in rows if sha256_file(path / f"{d}.npy") != sha256[d]]
    if problems:
        raise DataError(
            f"subset {path.name} is not valid", where=path, found=bullet_list(problems), fix="draw it again"
        )
    return Subset(facts["rule"], counts, rows)


def _read_ids(path: Path) -> RowIds:
    ids = np.load(path, allow_pickle=False)
    if ids.dtype.kind != "u" or ids.dtype.itemsize != 4 or ids.ndim != 1:
        raise ValueError(f"{path.name} holds {ids.dtype} of shape {ids.shape}, not one row of uint32")
    return np.asarray(ids, dtype=np.uint32)


def _problems(dataset: str, ids: RowIds, count: int) -> list[str]:
    steps = np.diff(ids.astype(np.int64))
    checks = {
        f"row id {int(ids.max(initial=0))} is not below {count}": bool(len(ids)) and int(ids.max()) >= count,
        "row ids are repeated": bool((steps == 0).any()),
        "row ids are not ascending": bool((steps < 0).any()),
    }
    return [f"{dataset}: {problem}" for problem, wrong in checks.items() if wrong]


def overlap_shares(subsets: Sequence[Subset]) -> dict[str, dict[str, float]]:
    """Share of every subset's rows (first name) that are also in another one (second name), over all datasets.

    Args:
        subsets: Of one corpus.

    Returns:
        Name -> name -> share in [0, 1]; not symmetric where sizes differ.

    >>> small, large = (SubsetConfig(name=name, ratio=r, mode="nested") for name, r in (("n20", 0.2), ("n80", 0.8)))
    >>> overlap_shares([make_subset({"nq": 10}, rule) for rule in (small, large)])
    {'n20': {'n20': 1.0, 'n80': 1.0}, 'n80': {'n20': 0.25, 'n80': 1.0}}
    """
    return {a.name: {b.name: _share(a, b) for b in subsets} for a in subsets}


def _share(subset: Subset, other: Subset) -> float:
    both = [(ids, other.rows[dataset]) for dataset, ids in subset.rows.items() if dataset in other.rows]
    shared = sum(len(np.intersect1d(*ids, assume_unique=True)) for ids in both)
    return round(shared / max(1, sum(subset.sizes.values())), 6)


def make_subset(
    rows: Mapping[str, int], config: SubsetConfig, other: Subset | None = None, new: Collection[str] = ()
) -> Subset:
    """Draw one subset of a corpus; ``other`` is the one it complements, if it does, ``new`` as in `draw_subset`.

    Raises:
        DataError: As `draw_subset`.
    """
    drawn = draw_subset(rows, config, {other.name: other} if other else None, new)
    return Subset(config.rule(), {dataset: rows[dataset] for dataset in drawn}, drawn)


def corpus_rows(examples_folder: Path, datasets: Sequence[str]) -> dict[str, int]:
    """Rows of every training file (``train/<dataset>.jsonl``) of a corpus.

    Raises:
        DataError: A dataset has no training file.
    """
    return {dataset: _rows_of(examples_folder, dataset) for dataset in datasets}


def _rows_of(folder: Path, dataset: str) -> int:
    path = folder / "train" / f"{dataset}.jsonl"
    if not path.is_file():
        known = [file.stem for file in (folder / "train").glob("*.jsonl")]
        raise DataError(
            f"there is no training file of dataset '{dataset}'{nearest(dataset, known)}",
            expected=f"one of {', '.join(sorted(known)) or 'none was written'}",
        )
    return count_rows(path)
