"""The candidates of every dataset of `python_docs`, with no text in two of evaluation, pre-training and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from boom_utils.data.docs_labels import docstring_to_module, package_classification, summary_to_module
from boom_utils.data.docs_names import Named, same_name
from boom_utils.data.docs_pairs import (
    PAIRS,
    Described,
    Labelled,
    Pair,
    Split,
    Unit,
    exception_class,
    merge_duplicates,
    normalise,
    parameter_overlap,
    split_definitions,
)
from boom_utils.data.mining import Mined

EXCEPTIONS = "exception_class"
STS = "parameter_overlap_sts"
RERANKING = "same_name_reranking"
PLACES = {
    "package_classification": package_classification,
    "summary_to_module": summary_to_module,
    "docstring_to_module": docstring_to_module,
}
"""Builders of the datasets whose label is a package or a module."""
LABELLED = (EXCEPTIONS, *PLACES)
PRETRAINING = "summary_to_description"
"""Dataset whose pre-training split the tiny base learns from."""
FIRST = (*PAIRS, EXCEPTIONS, STS)
"""Datasets that are always built: each of them yields to what all of them evaluate."""
DATASETS = (*FIRST, RERANKING, *PLACES)
"""Every dataset there is a rule for. The later ones yield to those before them, and change none of their rows."""

AnyUnit = TypeVar("AnyUnit", bound=Unit)


@dataclass(frozen=True)
class Corpus:
    """Candidates of every dataset after merging, and what was dropped to keep splits apart.

    Args:
        pairs: Query-document candidates of retrieval and code datasets.
        labelled: Candidates of the classification and clustering datasets.
        described: Candidates of the STS dataset.
        dropped: Candidates dropped for sharing a text with a set of another split, by dataset.
        named: Functions of the reranking dataset.
    """

    pairs: Mapping[str, list[Pair]]
    labelled: Mapping[str, list[Labelled]]
    described: list[Described]
    dropped: Mapping[str, int]
    named: list[Named] = field(default_factory=list)


def build_corpus(mined: Mined, seed: int, wanted: Collection[str] = DATASETS) -> Corpus:
    """Candidates of the datasets, duplicates merged, with no text in two of evaluation, pre-training and training.

    Args:
        mined: What `boom_utils.data.mining.mine` found.
        seed: Draws the wording of questions; the splits do not depend on it.
        wanted: Datasets that are needed; those that others yield to are built anyway.
    """
    definitions = split_definitions(mined)
    pairs = {name: merge_duplicates(build(definitions, seed)) for name, build in PAIRS.items()}
    exceptions = merge_duplicates(exception_class(mined))
    described = merge_duplicates(parameter_overlap(definitions))
    everything: list[Sequence[Unit]] = [*pairs.values(), exceptions, described]
    apart = _Apart(
        _texts_of((unit for units in everything for unit in units), "evaluation", "held_out"),
        _texts_of(pairs[PRETRAINING], "pretraining"),
    )
    kept = {name: apart.keep(name, units) for name, units in pairs.items()}
    labelled = {EXCEPTIONS: apart.keep(EXCEPTIONS, exceptions)}
    described = apart.keep(STS, described)
    named: list[Named] = []
    # All or none: which of them a study asks for must not change rows of another.
    if set(wanted) - set(FIRST):
        first: list[Sequence[Unit]] = [*kept.values(), labelled[EXCEPTIONS], described]
        for units in first:
            apart.note(units)
        named = apart.add(RERANKING, _used(same_name(definitions)))
        labelled |= {name: apart.add(name, build(definitions)) for name, build in PLACES.items()}
    return Corpus(kept, labelled, described, apart.dropped, named)


def _used(units: Iterable[Named]) -> list[Named]:
    return [unit for unit in units if unit.split != "pretraining"]


@dataclass
class _Apart:
    """Keeps texts of different splits apart.

    Args:
        evaluated: Normalised texts that are evaluated.
        pretrained: Normalised texts of the pre-training pairs.
        trained: Normalised texts that are learnt from in any way.
        dropped: Candidates dropped so far, by dataset.
    """

    evaluated: set[str]
    pretrained: set[str]
    trained: set[str] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)

    def keep(self, name: str, units: Iterable[AnyUnit]) -> list[AnyUnit]:
        """The units of one of the first datasets: those that are learnt from yield."""
        return [unit for unit in units if not self.offends(name, unit)]

    def add(self, name: str, units: Iterable[AnyUnit]) -> list[AnyUnit]:
        """The units of a later dataset: evaluated ones yield to what is trained on before, the others as always."""
        merged = merge_duplicates(units)
        known = [unit for unit in merged if not (_is_evaluated(unit) and _normalised(unit) & self.trained)]
        self.dropped[name] += len(merged) - len(known)
        self.evaluated |= _texts_of(known, "evaluation", "held_out")
        kept = self.keep(name, known)
        self.note(kept)
        return kept

    def note(self, units: Iterable[Unit]) -> None:
        """Remember what is learnt from."""
        self.trained |= _texts_of(units, "train", "pretraining")

    def offends(self, name: str, unit: Unit) -> bool:
        """Whether a unit that is learnt from holds a text it must not; counted if so."""
        texts = _normalised(unit)
        learnt_from = unit.split in ("train", "pretraining")
        offends = (learnt_from and bool(texts & self.evaluated)) or (
            unit.split == "train" and bool(texts & self.pretrained)
        )
        self.dropped[name] += offends
        return offends


def _is_evaluated(unit: Unit) -> bool:
    return unit.split in ("evaluation", "held_out")


def _normalised(unit: Unit) -> set[str]:
    return {normalise(text) for text in unit.texts}


def _texts_of(units: Iterable[Unit], *splits: Split) -> set[str]:
    return {text for unit in units if unit.split in splits for text in _normalised(unit)}
