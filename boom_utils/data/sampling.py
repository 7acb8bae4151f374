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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from boom_utils.artifacts import atomic_path, derive_seed, sha256_file, write_json
from boom_utils.config import SubsetConfig
from boom_utils.errors import DataError, bullet_list

log = logging.getLogger(__name__)

RULE = "rule.json"
RowIds = NDArray[np.uint32]
Item = TypeVar("Item")


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


def draw(items: Sequence[Item], limit: int | None, generator: np.random.Generator, skip: int = 0) -> list[Item]:
    """At most ``limit`` items without replacement, in their own order; all when ``limit`` is None.

    With ``skip``, as many as that are passed over first: with a generator of the same seed, and ``skip`` the limit of
    another draw, no item is in both.
    """
    if limit is None or limit >= len(items):
        return list(items)[:0] if skip else list(items)
    return [items[place] for place in np.sort(generator.permutation(len(items))[skip : skip + limit])]


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
    rows: Mapping[str, int], subset: SubsetConfig, other: Subset | None = None, new: Collection[str] = ()
) -> dict[str, RowIds]:
    """Draw the rows of one subset from every dataset, without replacement.

    Args:
        rows: Number of rows of every dataset.
        subset: The rule. ``nested`` takes prefixes of one permutation a dataset and seed, so a smaller ratio of the
            same seed lies inside a larger one, and with ``skip`` takes the rows after such a prefix; ``independent``
            draws by the subset's name as well.
        other: The subset that a rule with ``complement_of`` complements.
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
        return _complement(rows, subset, other)
    stream = ["nested"] if subset.mode == "nested" else ["independent", subset.name]
    drawn = {}
    for dataset, count in sorted(rows.items()):
        share = subset.new_data if dataset in new else subset.ratio
        if share is not None:
            generator = np.random.default_rng(derive_seed(subset.seed, "subset", *stream, dataset))
            mine = part_rows(subset, dataset, count)
            start = subset_size(subset.skip, len(mine)) if subset.skip else 0
            # The end is that of the rows up to it, so that the next block starts there whatever is rounded.
            chosen = generator.permutation(len(mine))[start : subset_size(round(subset.skip + share, 12), len(mine))]
            drawn[dataset] = np.sort(mine[chosen]).astype(np.uint32)
    return drawn


def part_rows(subset: SubsetConfig, dataset: str, count: int) -> RowIds:
    """The rows of a dataset that a subset is drawn from: all, or its part of them, the same for every subset of it.

    Raises:
        DataError: There are fewer rows than parts.
    """
    number, parts = subset.part or (1, 1)
    if count < parts:
        raise DataError(f"{parts} parts cannot be made of {dataset}", found=f"{count} rows", fix="take more train_rows")
    shuffled = np.random.default_rng(derive_seed(0, "parts", dataset)).permutation(count)
    return np.sort(shuffled[number - 1 :: parts]).astype(np.uint32)


def _complement(rows: Mapping[str, int], subset: SubsetConfig, other: Subset | None) -> dict[str, RowIds]:
    if other is None or other.name != subset.complement_of or other.corpus_rows != rows:
        what = f"subset '{subset.name}' complements '{subset.complement_of}', which was not drawn from these rows"
        raise DataError(what, found=other and other.name, fix="draw that subset from the same rows first")
    left = {name: np.setdiff1d(part_rows(subset, name, count), other.rows[name]) for name, count in rows.items()}
    if none := [name for name, ids in sorted(left.items()) if not len(ids)]:
        log.warning("subset %s: '%s' left no row of %s", subset.name, other.name, ", ".join(none))
    return dict(sorted(left.items()))


def make_subset(
    rows: Mapping[str, int], config: SubsetConfig, other: Subset | None = None, new: Collection[str] = ()
) -> Subset:
    """One subset of a corpus with its rule.

    Args:
        rows: Dataset -> number of its rows, as for `draw_subset`.
        config: What is drawn.
        other: The subset that ``config.complement_of`` names.
        new: Those of the datasets that ``config.new_data`` is drawn from.

    Returns:
        The subset.

    Raises:
        ConfigError, DataError: As `draw_subset`.

    >>> make_subset({"nq": 10, "faq": 5}, SubsetConfig(name="s40", ratio=0.4)).sizes
    {'faq': 2, 'nq': 4}
    """
    drawn = draw_subset(rows, config, other, new)
    return Subset(config.rule(), {dataset: rows[dataset] for dataset in drawn}, drawn)


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
        DataError: A file is missing, or was changed after it was drawn.

    >>> _ = save_subset(Path("s40"), make_subset({"nq": 10}, SubsetConfig(name="s40", ratio=0.4)))
    >>> load_subset(Path("s40")).sizes
    {'nq': 4}
    """
    fix = "draw it again"
    try:
        facts = json.loads((path / RULE).read_text(encoding="utf-8"))
        files = {dataset: path / f"{dataset}.npy" for dataset in facts["corpus_rows"]}
        changed = [file.name for dataset, file in files.items() if sha256_file(file) != facts["sha256"][dataset]]
        if changed:
            raise DataError("files of a subset were changed", where=path, found=bullet_list(changed), fix=fix)
        return Subset(facts["rule"], facts["corpus_rows"], {name: np.load(file) for name, file in files.items()})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"subset {path.name} cannot be read", where=path, found=error, fix=fix) from error


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
    return {one.name: {other.name: _share(one, other) for other in subsets} for one in subsets}


def _share(subset: Subset, other: Subset) -> float:
    shared = sum(np.isin(ids, other.rows[name]).sum() for name, ids in subset.rows.items() if name in other.rows)
    return round(float(shared) / max(1, sum(subset.sizes.values())), 6)
