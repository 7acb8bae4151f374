"""Reranking rows of `python_docs`: functions of the same name in two packages, among other functions of both.

Equal names alone pair much that has nothing in common (``close`` of a figure and of a socket). So a counterpart also
has to share a content word with the function that is no part of the name, and private functions are left out.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from boom_utils.data.docs_pairs import LONGEST_PASSAGE, Split, SplitDefinition
from boom_utils.data.docstrings import is_readable, truncate_words
from boom_utils.data.example_sets import NEGATIVES, POSITIVES, Row, draw, example
from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import Dataset

COMMON_SHARE = 0.1
"""Share of the documentation from which on a word counts as common."""
ROWS_A_NAME = 6
"""Most queries of one name: every other function would be a ``fit``."""
CANDIDATES = 24
"""Documents that a query's counterparts are ranked among, these included."""
_WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True, slots=True)
class Named:
    """A public function: its name, its summary as a query, its documentation, and the content words in it."""

    name: str
    query: str
    document: str
    words: frozenset[str]
    package: str
    module: str
    split: Split

    @property
    def texts(self) -> tuple[str, ...]:
        """Query and document."""
        return (self.query, self.document)


def same_name(definitions: Sequence[SplitDefinition]) -> list[Named]:
    """Every public function with a readable summary; those without counterpart are documents to tell apart."""
    documented = (
        (definition, split, truncate_words(f"{doc.summary} {doc.description}".strip(), LONGEST_PASSAGE))
        for definition, split in definitions
        if is_readable((doc := definition.doc).summary, 4, 30) and definition.code and _is_public(definition.name)
    )
    chosen = [found for found in documented if is_readable(found[2], 4, 1000)]
    words = [_words(document) for _, _, document in chosen]
    frequency = Counter(word for found in words for word in found)
    common = {word for word, count in frequency.items() if count > COMMON_SHARE * len(chosen)}
    units = []
    for (definition, split, document), found in zip(chosen, words, strict=True):
        name = definition.name.split(".")[-1].replace("_", "").lower()
        content = frozenset(word for word in found - common if word[:4] not in name)
        place = (definition.package, definition.module, split)
        units.append(Named(name, definition.doc.summary, document, content, *place))
    return units


def _is_public(name: str) -> bool:
    return not name.split(".")[-1].startswith("_")


def _words(text: str) -> set[str]:
    """Words, cut to six letters: *computes* and *computing* are one."""
    return {word[:6] for word in _WORD.findall(text.lower())}


def counterparts(asked: Sequence[Named], pool: Sequence[Named]) -> list[tuple[Named, list[Named]]]:
    """The functions among ``asked`` with a counterpart in ``pool``, at most `ROWS_A_NAME` of one name."""
    by_name: dict[str, list[Named]] = defaultdict(list)
    for unit in pool:
        by_name[unit.name].append(unit)
    taken: Counter[str] = Counter()
    found = []
    for unit in asked:
        same = [other for other in by_name[unit.name] if other.package != unit.package and other.words & unit.words]
        if same and taken[unit.name] < ROWS_A_NAME:
            taken[unit.name] += 1
            found.append((unit, same))
    return found


class Distractors:
    """Documents of other functions, near ones first: of the counterpart's package and of the function's own in turn."""

    def __init__(self, pool: Sequence[Named]) -> None:
        self.groups: dict[str, list[Named]] = defaultdict(list)
        for unit in pool:
            self.groups[f"module {unit.module}"].append(unit)
            self.groups[f"package {unit.package}"].append(unit)

    def draw(self, unit: Named, other: Named, size: int, generator: np.random.Generator) -> list[Named]:
        """At most ``size`` functions of another name."""
        sides = ([*self._near(one, unit.name, size, generator)] for one in (other, unit))
        mixed = [found for pair in zip_longest(*sides) for found in pair if found is not None]
        return list(dict.fromkeys(mixed))[:size]

    def _near(self, one: Named, name: str, size: int, generator: np.random.Generator) -> Iterator[Named]:
        for group in (self.groups[f"module {one.module}"], self.groups[f"package {one.package}"]):
            places = generator.permutation(len(group))[: 2 * size]
            yield from (group[place] for place in places if group[place].name != name)


def same_name_examples(
    pool: Sequence[Named], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of a summary, the documentation of its counterparts and that of other functions of the two packages."""
    distractors = Distractors(pool)
    for unit, same in counterparts(pool, pool):
        chosen = draw(same, POSITIVES, generator)
        others = distractors.draw(unit, chosen[0], NEGATIVES, generator)
        yield example(
            unit.query, [one.document for one in chosen], [one.document for one in others][:NEGATIVES], dataset
        )


def same_name_rows(
    asked: Sequence[Named], pool: Sequence[Named], limit: int | None, generator: np.random.Generator
) -> dict[str, list[Row]]:
    """Rows of the files of a reranking task, by name of the file.

    Args:
        asked: Functions of the evaluated split.
        pool: Functions whose documentation may be ranked; nobody trains on it.
        limit: Most queries, None for all.
        generator: Draws queries and distractors.
    """
    distractors = Distractors(pool)
    found: dict[str, tuple[Named, list[Named], list[Named]]] = {}
    for number, (unit, same) in enumerate(draw(counterparts(asked, pool), limit, generator)):
        right = draw(same, POSITIVES, generator)
        wrong = distractors.draw(unit, right[0], CANDIDATES - len(right), generator)
        found[f"q{number}"] = unit, right, wrong
    # Numbered by text: neither an id (which breaks ties) nor a place in a list may give the answer away.
    texts = sorted({one.document for _, right, wrong in found.values() for one in (*right, *wrong)})
    ids = {text: f"d{number}" for number, text in enumerate(texts)}
    return {
        "queries": [{"id": query, "text": unit.query} for query, (unit, _, _) in found.items()],
        "corpus": [{"id": ids[text], "text": text} for text in texts],
        "qrels": [
            {"query": query, "document": ids[one.document]} for query, (_, right, _) in found.items() for one in right
        ],
        "top_ranked": [
            {"query": query, "documents": sorted(ids[one.document] for one in (*right, *wrong))}
            for query, (_, right, wrong) in found.items()
        ],
    }
