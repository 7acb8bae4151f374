"""Labelled rows of `python_docs` whose label is a place: the package or the module a documentation comes from.

A text that names a package of the corpus (its distribution, its top-level module or the usual short name) is left out:
its label could be looked up instead of understood. The last word of a module's name may occur in a text ("sparse",
"signal"): it is what the module is about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from boom_utils.data.docs_pairs import LONGEST_PASSAGE, Labelled, SplitDefinition, balanced
from boom_utils.data.docstrings import is_readable, truncate_words
from boom_utils.data.mining import STANDARD_LIBRARY, Definition

LONGEST_DOCSTRING = 120
"""Words of the long texts; encoders of larger profiles read more than a passage."""
MODULES = 20
"""Most modules that texts are clustered into."""
PLACE_BALANCE = 2
"""No package or module has more than this many times the texts of the rarest one."""
SHORT_NAMES = ("hf", "hub", "mpl", "np", "nx", "pd", "pl", "plt", "sklearn")
WITHOUT_SUBJECT = frozenset(("base", "common", "core", "lib", "util", "utils"))
"""Parts of a module's name that say nothing of what it is about."""


def package_classification(definitions: Sequence[SplitDefinition]) -> list[Labelled]:
    """Docstring up to its first section -> the package it documents; the standard library is one package."""
    return balanced(
        [
            Labelled(text, definition.package, split)
            for (definition, split), text in _anonymous(definitions, _passage)
            if is_readable(text, 6, 1000)
        ],
        PLACE_BALANCE,
    )


def summary_to_module(definitions: Sequence[SplitDefinition]) -> list[Labelled]:
    """First sentence of a docstring -> its module."""
    return _by_module(definitions, lambda definition: definition.doc.summary, 4, 30)


def docstring_to_module(definitions: Sequence[SplitDefinition]) -> list[Labelled]:
    """Docstring with its parameters -> its module."""
    return _by_module(definitions, _whole, 20, LONGEST_DOCSTRING)


def module_label(definition: Definition) -> str:
    """First two public parts of a module's name, three where the second says nothing; empty if no subject is left."""
    parts = [part for part in definition.module.split(".") if not part.startswith("_")]
    depth = 3 if parts[1:2] == ["core"] else 2
    kept = parts[:depth]
    is_named = len(kept) == depth or (definition.package == STANDARD_LIBRARY and len(kept) == 1)
    return ".".join(kept) if is_named and kept[-1] not in WITHOUT_SUBJECT else ""


def _by_module(
    definitions: Sequence[SplitDefinition], text_of: Callable[[Definition], str], fewest: int, most: int
) -> list[Labelled]:
    """Texts of the most frequent modules."""
    rows = [
        Labelled(text, label, split)
        for (definition, split), text in _anonymous(definitions, text_of)
        if (label := module_label(definition)) and is_readable(text, fewest, most)
    ]
    ranked = sorted(Counter(row.label for row in rows).items(), key=lambda item: (-item[1], item[0]))
    frequent = {label for label, _ in ranked[:MODULES]}
    return balanced([row for row in rows if row.label in frequent], PLACE_BALANCE)


def _anonymous(
    definitions: Sequence[SplitDefinition], text_of: Callable[[Definition], str]
) -> Iterator[tuple[SplitDefinition, str]]:
    """Definitions to train on or to evaluate, and their texts, where these name no package."""
    names = package_names([definition for definition, _ in definitions])
    for definition, split in definitions:
        if split in ("train", "evaluation") and not names.search(text := text_of(definition)):
            yield (definition, split), text


def package_names(definitions: Sequence[Definition]) -> re.Pattern[str]:
    """Finds every name that one of the mined packages goes by; those of modules of the standard library are words."""
    names = {definition.package for definition in definitions}
    names |= {d.module.split(".")[0] for d in definitions if d.package != STANDARD_LIBRARY}
    spelled = sorted({re.sub("[-_]", "[-_ ]?", name.lower()) for name in (*names, *SHORT_NAMES)})
    return re.compile(rf"(?<![A-Za-z])({'|'.join(spelled)})(?![A-Za-z])", re.IGNORECASE)


def _passage(definition: Definition) -> str:
    return truncate_words(f"{definition.doc.summary} {definition.doc.description}".strip(), LONGEST_PASSAGE)


def _whole(definition: Definition) -> str:
    doc = definition.doc
    parts = [doc.summary, doc.description, *(f"{parameter.name}: {parameter.text}" for parameter in doc.parameters)]
    return truncate_words(" ".join(part for part in parts if part), LONGEST_DOCSTRING)
