"""The rows of `python_docs`: which texts of the mined definitions answer which.

Builds candidates of every dataset and assigns each to pre-training, training or evaluation by a hash of its own
text; duplicates are merged first. Draws nothing and writes nothing (`boom_utils.data.python_docs` does).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from boom_utils.artifacts import derive_seed
from boom_utils.data.docstrings import Parameter, clean_text, is_readable, truncate_words
from boom_utils.data.examples import Labelled, Split, hash_share, normalise
from boom_utils.data.mining import PLACEHOLDER, Definition, Mined, RaisedMessage

LONGEST_PASSAGE = 60
"""Words; the base of the smoke profile reads 64-128 tokens."""
PRETRAINING_SHARE = 0.53
EVALUATION_SHARE = 0.15
CLASSIFICATION_EVALUATION_SHARE = 0.35
EXCEPTION_CLASSES = 6
CLASS_BALANCE = 4
"""No class is more than this many times as frequent as the rarest one."""
CODE_WORDS = 60
CODE_CHARACTERS = 480
STS_WORDS = 48

QUESTIONS = (
    "What does the parameter {parameter} of {function} do?",
    "What is {parameter} in {function} from {package}?",
    "Meaning of the {parameter} argument of {function} in {module}",
    "How is the argument {parameter} of {package}'s {function} used?",
    "{function}: which values can {parameter} take and what do they mean?",
)


class Unit(Protocol):
    """What every candidate row has: its split and the texts that must not occur in another split."""

    @property
    def split(self) -> Split:
        """Part of the corpus it belongs to."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts a model reads."""


AnyUnit = TypeVar("AnyUnit", bound=Unit)


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the document that answers it; groups go from near to far and give hard negatives."""

    query: str
    document: str
    split: Split
    groups: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Query and document."""
        return (self.query, self.document)


@dataclass(frozen=True, slots=True)
class Described:
    """A function described by its summary and parameters, and the names that grade a pair of them."""

    text: str
    names: frozenset[str]
    split: Split

    @property
    def texts(self) -> tuple[str, ...]:
        """The description."""
        return (self.text,)


SplitDefinition = tuple[Definition, Split]


def split_definitions(mined: Mined) -> list[SplitDefinition]:
    """Merge definitions with the same docstring, and assign every one left to its split.

    All datasets share this assignment, so a function that is evaluated is trained on nowhere.
    """
    kept: dict[str, SplitDefinition] = {}
    for definition in mined.definitions:
        doc = definition.doc
        text = normalise(" ".join([doc.summary, doc.description, *(p.text for p in doc.parameters)]))
        kept.setdefault(text, (definition, _split_of(text, definition.held_out)))
    return list(kept.values())


def _split_of(text: str, held_out: bool) -> Split:
    if held_out:
        return "held_out"
    share = hash_share(text)
    if share < PRETRAINING_SHARE:
        return "pretraining"
    return "evaluation" if share >= 1 - EVALUATION_SHARE else "train"


def merge_duplicates(units: Iterable[AnyUnit]) -> list[AnyUnit]:
    """Keep a unit only if none of its texts was in an earlier one (exact, after `normalise`)."""
    seen: set[str] = set()
    kept = []
    for unit in units:
        texts = {normalise(text) for text in unit.texts}
        if not texts & seen:
            kept.append(unit)
        seen |= texts
    return kept


def summary_to_description(definitions: Sequence[SplitDefinition], seed: int) -> list[Pair]:
    """First sentence of a docstring -> the text after it, up to the first section."""
    return [
        Pair(doc.summary, truncate_words(doc.description, LONGEST_PASSAGE), split, _groups(definition))
        for definition, split in definitions
        if is_readable((doc := definition.doc).summary, 3, 30) and is_readable(doc.description, 6, 1000)
    ]


def parameter_question(definitions: Sequence[SplitDefinition], seed: int) -> list[Pair]:
    """Question about one parameter of a function -> its documentation."""
    return [
        Pair(
            _question(definition, parameter, seed),
            truncate_words(parameter.text, LONGEST_PASSAGE),
            split,
            (f"{definition.module}:{definition.name}", *_groups(definition)),
        )
        for definition, split in definitions
        for parameter in definition.doc.parameters
        if len(parameter.name) > 1 and is_readable(parameter.text, 5, 1000)
    ]


def _question(definition: Definition, parameter: Parameter, seed: int) -> str:
    number = derive_seed(seed, "question", definition.module, definition.name, parameter.name)
    return QUESTIONS[number % len(QUESTIONS)].format(
        parameter=parameter.name,
        function=definition.name,
        package=definition.package,
        module=".".join(part for part in definition.module.split(".") if not part.startswith("_")),
    )


def docstring_to_code(definitions: Sequence[SplitDefinition], seed: int) -> list[Pair]:
    """Docstring up to its first section -> source without docstring and decorators."""
    pairs = []
    for definition, split in definitions:
        doc = definition.doc
        query = truncate_words(f"{doc.summary} {doc.description}".strip(), LONGEST_PASSAGE)
        code = shorten_code(definition.code)
        if is_readable(query, 4, 1000) and len(code.split()) >= 10 and code.count("\n") >= 2:
            pairs.append(Pair(query, code, split, _groups(definition)))
    return pairs


def shorten_code(code: str) -> str:
    """The first whole lines of a source that stay below `CODE_WORDS` words and `CODE_CHARACTERS` characters."""
    kept: list[str] = []
    words = characters = 0
    for line in code.split("\n"):
        words, characters = words + len(line.split()), characters + len(line.strip())
        if words > CODE_WORDS or characters > CODE_CHARACTERS:
            break
        kept.append(line)
    return "\n".join(kept)


def _groups(definition: Definition) -> tuple[str, ...]:
    return (definition.module, definition.package)


def parameter_overlap(definitions: Sequence[SplitDefinition]) -> list[Described]:
    """Functions with two or more documented parameters, described by summary and the start of each parameter's text."""
    return [
        Described(_parameter_digest(definition), names, split)
        for definition, split in definitions
        if is_readable(definition.doc.summary, 3, 30)
        and 2 <= len(names := frozenset(p.name.lower() for p in definition.doc.parameters)) <= 12
        and all(is_readable(p.text, 2, 1000) for p in definition.doc.parameters)
    ]


def _parameter_digest(definition: Definition) -> str:
    parameters = definition.doc.parameters
    summary = truncate_words(definition.doc.summary, STS_WORDS // 4)
    each = max(3, (STS_WORDS - len(summary.split())) // len(parameters))
    starts = [" ".join(re.split(r"(?<=\w)\.\s", p.text)[0].split()[:each]).rstrip(" .,;:") for p in parameters]
    return truncate_words(f"{summary.rstrip('.')}. {'; '.join(starts)}.", STS_WORDS + 4)


def exception_class(mined: Mined) -> list[Labelled]:
    """Raise messages of the most frequent exception classes; a message raised as two classes is left out."""
    classes: dict[str, set[str]] = defaultdict(set)
    messages: dict[str, RaisedMessage] = {}
    for message in mined.messages:
        text = clean_text(message.text)
        if not message.held_out and is_readable(text.replace(PLACEHOLDER, ""), 3, 60):
            classes[normalise(text)].add(message.exception)
            messages.setdefault(normalise(text), message)
    clear = [messages[key] for key, names in classes.items() if len(names) == 1]
    ranked = sorted(Counter(message.exception for message in clear).items(), key=lambda item: (-item[1], item[0]))
    frequent = dict(ranked[:EXCEPTION_CLASSES])
    return balanced([_labelled(message) for message in clear if message.exception in frequent], CLASS_BALANCE)


def _labelled(message: RaisedMessage) -> Labelled:
    text = truncate_words(clean_text(message.text), LONGEST_PASSAGE // 2)
    return Labelled(text, message.exception, "evaluation" if _is_evaluated(text) else "train")


def _is_evaluated(text: str) -> bool:
    return hash_share(text) < CLASSIFICATION_EVALUATION_SHARE


def balanced(rows: Sequence[Labelled], times: int) -> list[Labelled]:
    """No label more than ``times`` as often as the rarest one; rows are taken in the order of a second hash."""
    most = times * min(Counter(row.label for row in rows).values(), default=0)
    taken: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: (hash_share(f"cap {row.text}"), row.text)):
        if taken[row.label] < most:
            taken[row.label] += 1
            kept.append(row)
    return kept


PAIRS: dict[str, Callable[[Sequence[SplitDefinition], int], list[Pair]]] = {
    "summary_to_description": summary_to_description,
    "parameter_question": parameter_question,
    "docstring_to_code": docstring_to_code,
}
"""Builders of the datasets whose rows are a query and its document."""
