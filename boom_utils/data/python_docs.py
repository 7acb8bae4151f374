"""Stage: the embedded corpus `python_docs`, from installed distributions to training rows and evaluation sets.

`MAKERS` says which texts of a mined definition become candidates of which dataset. A definition is in one split for
all datasets, chosen by a hash of its text, so what is evaluated is trained on nowhere; `build_corpus` also drops what
shares a text with another split. Reranking and clustering take the candidates of `summary_to_description` in another
way: turned round, and by their module. `EXAMPLES` says how rows are drawn from the candidates: with negatives from near
by, by the overlap of parameter names, or by class.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boom_utils.artifacts import derive_seed
from boom_utils.config import CorpusConfig
from boom_utils.data.docstrings import clean_text, is_readable, truncate_words
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.examples import Labelled, Split, TrainingExample, hash_share, normalise
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.mining import PLACEHOLDER, Definition, Mined, corpus_deviations, corpus_fingerprint, mine
from boom_utils.data.overlap import NearOptions
from boom_utils.data.rows import NEGATIVES, POSITIVES, example, labelled_examples
from boom_utils.data.sampling import draw
from boom_utils.data.text_files import COLUMNS, Raw, Shape
from boom_utils.errors import ManifestError

LONGEST_PASSAGE = 60
"""Words; the base of the smoke profile reads 64-128 tokens."""
PRETRAINING_SHARE, EVALUATION_SHARE = 0.53, 0.15
CLASSIFICATION_EVALUATION_SHARE, CLASSIFICATION_FIT_SHARE = 0.35, 0.4
"""Shares of the messages that are evaluated, and of these that the classifier on top of the embeddings is fitted on."""
CLASSES, MODULES = 6, 20
"""Classes of the classification and the clustering dataset: the most frequent ones."""
CODE_WORDS, CODE_CHARACTERS, STS_WORDS = 60, 480, 48
HIGH_OVERLAP, LOW_OVERLAP, GRADES = 0.5, 0.2, 5
"""Jaccard overlap from which two functions count as similar, up to which as different, and the score of equal ones."""
QUESTIONS = (
    "What does the parameter {parameter} of {function} do?",
    "What is {parameter} in {function} from {package}?",
    "Meaning of the {parameter} argument of {function} in {module}",
    "How is the argument {parameter} of {package}'s {function} used?",
    "{function}: which values can {parameter} take and what do they mean?",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one row of a dataset can be made of.

    Args:
        text: A query, or the text that is classified or compared.
        split: The part of the corpus it belongs to.
        document: The text that answers a query, empty where there is none.
        groups: Where it is from or what class it has, from near to far; negatives come from the same groups.
        names: Lower-case names of its parameters.
    """

    text: str
    split: Split
    document: str = ""
    groups: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    @property
    def normalised(self) -> set[str]:
        """The texts that must not occur in another split."""
        return {normalise(text) for text in (self.text, self.document) if text}


def summary_to_description(definition: Definition, split: Split, seed: int) -> Iterator[Candidate]:
    """First sentence of a docstring -> the text after it, up to the first section."""
    doc = definition.doc
    if is_readable(doc.summary, 3, 30) and is_readable(doc.description, 6, 1000):
        document = truncate_words(doc.description, LONGEST_PASSAGE)
        yield Candidate(doc.summary, split, document, (definition.module, definition.package))


def parameter_question(definition: Definition, split: Split, seed: int) -> Iterator[Candidate]:
    """Question about one parameter of a function -> its documentation."""
    place = {"function": definition.name, "package": definition.package}
    place["module"] = ".".join(part for part in definition.module.split(".") if not part.startswith("_"))
    groups = (f"{definition.module}:{definition.name}", definition.module, definition.package)
    for parameter in definition.doc.parameters:
        if len(parameter.name) > 1 and is_readable(parameter.text, 5, 1000):
            number = derive_seed(seed, "question", definition.module, definition.name, parameter.name)
            question = QUESTIONS[number % len(QUESTIONS)].format(parameter=parameter.name, **place)
            yield Candidate(question, split, truncate_words(parameter.text, LONGEST_PASSAGE), groups)


def docstring_to_code(definition: Definition, split: Split, seed: int) -> Iterator[Candidate]:
    """Docstring up to its first section -> source without docstring and decorators."""
    query = truncate_words(f"{definition.doc.summary} {definition.doc.description}".strip(), LONGEST_PASSAGE)
    code = shorten_code(definition.code)
    if is_readable(query, 4, 1000) and len(code.split()) >= 10 and code.count("\n") >= 2:
        yield Candidate(query, split, code, (definition.module, definition.package))


def shorten_code(code: str) -> str:
    """The first whole lines of a source that stay below `CODE_WORDS` words and `CODE_CHARACTERS` characters."""
    lines = code.split("\n")
    words = np.cumsum([len(line.split()) for line in lines])
    characters = np.cumsum([len(line.strip()) for line in lines])
    return "\n".join(lines[: int(((words <= CODE_WORDS) & (characters <= CODE_CHARACTERS)).sum())])


def parameter_overlap(definition: Definition, split: Split, seed: int) -> Iterator[Candidate]:
    """A function with two or more documented parameters: its summary and the start of each parameter's text."""
    doc = definition.doc
    names = frozenset(parameter.name.lower() for parameter in doc.parameters)
    texts = [parameter.text for parameter in doc.parameters]
    if is_readable(doc.summary, 3, 30) and 2 <= len(names) <= 12 and all(is_readable(text, 2, 1000) for text in texts):
        summary = truncate_words(doc.summary, STS_WORDS // 4)
        each = max(3, (STS_WORDS - len(summary.split())) // len(texts))
        starts = [" ".join(re.split(r"(?<=\w)\.\s", text)[0].split()[:each]).rstrip(" .,;:") for text in texts]
        yield Candidate(
            truncate_words(f"{summary.rstrip('.')}. {'; '.join(starts)}.", STS_WORDS + 4), split, names=names
        )


def exception_class(messages: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Raise messages of the most frequent exception classes; a message raised as two classes is left out."""
    classes: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, str] = {}
    for message, exception in messages:
        text = clean_text(message)
        if is_readable(text.replace(PLACEHOLDER, ""), 3, 60):
            classes[normalise(text)].add(exception)
            texts.setdefault(normalise(text), truncate_words(text, LONGEST_PASSAGE // 2))
    clear = [(text, *classes[key]) for key, text in texts.items() if len(classes[key]) == 1]
    return balanced([Candidate(text, _split_of_message(text), groups=(label,)) for text, label in clear], CLASSES, 4)


def _split_of_message(text: str) -> Split:
    return "evaluation" if hash_share(text) < CLASSIFICATION_EVALUATION_SHARE else "train"


def summary_to_module(pairs: Iterable[Candidate]) -> list[Candidate]:
    """Summary of a function and its module, where the summary does not name the package."""
    found = []
    for one in pairs:
        parts = [part for part in one.groups[0].split(".") if not part.startswith("_")]
        if one.split in ("train", "evaluation") and parts and parts[0] not in one.text.lower():
            found.append(Candidate(one.text, one.split, groups=(".".join(parts[:2]),)))
    return balanced(found, MODULES, 2)


def balanced(candidates: Sequence[Candidate], classes: int, times: int) -> list[Candidate]:
    """Candidates of the most frequent classes, none more than ``times`` as often as the rarest of these.

    They are taken in the order of a hash of their text.
    """
    counts = Counter(one.groups[0] for one in candidates)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:classes]
    taken: Counter[str] = Counter()
    kept = []
    for one in sorted(candidates, key=lambda one: (hash_share(f"cap {one.text}"), one.text)):
        if one.groups[0] in frequent and taken[one.groups[0]] < times * counts[frequent[-1]]:
            taken[one.groups[0]] += 1
            kept.append(one)
    return kept


MAKERS: dict[str, Callable[[Definition, Split, int], Iterator[Candidate]]] = {
    "summary_to_description": summary_to_description,
    "parameter_question": parameter_question,
    "docstring_to_code": docstring_to_code,
    "parameter_overlap_sts": parameter_overlap,
}
"""Dataset -> the candidates that one definition gives; the seed chooses the wording of questions."""
PAIRS = "summary_to_description"
"""Dataset whose pre-training split the tiny base learns from, and that reranking and clustering are made of."""
DATASETS = (*MAKERS, "exception_class", "summary_reranking", "summary_to_module")


@dataclass(frozen=True)
class Corpus:
    """Candidates of every dataset, and how many were dropped to keep the splits apart."""

    candidates: dict[str, list[Candidate]]
    dropped: dict[str, int]

    def part(self, dataset: str, split: Split) -> list[Candidate]:
        """The candidates of one split."""
        return [one for one in self.candidates[dataset] if one.split == split]


def build_corpus(mined: Mined, seed: int) -> Corpus:
    """The candidates, duplicates merged, with no text in two of evaluation, pre-training and training.

    Args:
        mined: What `boom_utils.data.mining.mine` found.
        seed: Draws the wording of questions; the splits do not depend on it.
    """
    definitions: dict[str, Definition] = {}
    for definition in mined.definitions:
        definitions.setdefault(normalise(definition.doc.text), definition)
    placed = [(definition, _split_of(text, definition.held_out)) for text, definition in definitions.items()]
    made = {
        name: merge_duplicates(one for place in placed for one in make(*place, seed)) for name, make in MAKERS.items()
    }
    made["exception_class"] = merge_duplicates(exception_class(mined.messages))
    evaluated = _texts(one for units in made.values() for one in units if one.split in ("evaluation", "held_out"))
    pretrained = _texts(one for one in made[PAIRS] if one.split == "pretraining")
    forbidden = {"pretraining": evaluated, "train": evaluated | pretrained}
    kept = {
        name: [one for one in units if not one.normalised & forbidden.get(one.split, set())]
        for name, units in made.items()
    }
    dropped = {name: len(made[name]) - len(units) for name, units in kept.items()}
    # Made of what is apart already, with the same splits: they need not yield to anything.
    kept["summary_reranking"] = [replace(one, text=one.document, document=one.text) for one in kept[PAIRS]]
    kept["summary_to_module"] = summary_to_module(kept[PAIRS])
    return Corpus(kept, dropped)


def _split_of(text: str, held_out: bool) -> Split:
    share = hash_share(text)
    if held_out or share >= 1 - EVALUATION_SHARE:
        return "held_out" if held_out else "evaluation"
    return "pretraining" if share < PRETRAINING_SHARE else "train"


def _texts(candidates: Iterable[Candidate]) -> set[str]:
    return set().union(*(one.normalised for one in candidates))


def merge_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Keep a candidate only if none of its texts was in an earlier one (exact, after `normalise`)."""
    seen: set[str] = set()
    kept = []
    for one in candidates:
        if not one.normalised & seen:
            kept.append(one)
        seen |= one.normalised
    return kept


def near_examples(
    pool: Sequence[Candidate], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of query, document and negatives: documents of the pool that share the nearest group, then farther ones."""
    documents: dict[str, list[str]] = defaultdict(list)
    for one in pool:
        for group in (*one.groups, ""):
            documents[group].append(one.document)
    for one in pool:
        negatives: list[str] = []
        for group in (*one.groups, ""):
            others = documents[group]
            # A sample of a large group is enough: most of it is not the document itself.
            places = generator.permutation(len(others))[: 2 * NEGATIVES + 1]
            negatives += [others[p] for p in places if others[p] != one.document and others[p] not in negatives]
        yield example(one.text, [one.document], negatives[:NEGATIVES], dataset)


def overlap_examples(
    pool: Sequence[Candidate], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of a function, functions of high overlap and functions of low overlap, half of them sharing a name."""
    texts = np.array([one.text for one in pool], dtype=object)
    for place, overlap in enumerate(jaccard(pool)):
        overlap[place] = np.nan
        close = texts[overlap >= HIGH_OVERLAP].tolist()
        if close:
            hard = generator.permutation(texts[(overlap > 0) & (overlap <= LOW_OVERLAP)])[: NEGATIVES // 2]
            easy = generator.permutation(texts[overlap == 0])[: NEGATIVES - len(hard)]
            yield example(texts[place], draw(close, POSITIVES, generator), [*hard, *easy], dataset)


def class_examples(
    pool: Sequence[Candidate], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of a text, texts of its class and texts of other classes."""
    labelled = [Labelled(one.text, one.groups[0], one.split) for one in pool]
    return labelled_examples(labelled, labelled, dataset, generator)


def jaccard(pool: Sequence[Candidate]) -> NDArray[np.float64]:
    """Overlap of the names, (candidates, candidates): shared names divided by all names of both."""
    place = {name: number for number, name in enumerate(sorted(frozenset().union(*(one.names for one in pool))))}
    held = np.zeros((len(pool), len(place)), dtype=np.float32)
    for row, one in enumerate(pool):
        held[row, [place[name] for name in one.names]] = 1
    shared: NDArray[np.float64] = (held @ held.T).astype(np.float64)
    union: NDArray[np.float64] = held.sum(1)[:, None] + held.sum(1)[None, :] - shared
    return shared / np.maximum(union, 1)


def graded_pairs(
    pool: Sequence[Candidate], limit: int | None, generator: np.random.Generator
) -> list[tuple[str, str, float]]:
    """Pairs of functions scored 0-5 by overlap, spread evenly over the rounded scores as far as pairs exist."""
    first, second = np.triu_indices(len(pool), k=1)
    scores = GRADES * jaccard(pool)[first, second]
    grades = np.rint(scores).astype(int)
    wanted = min(len(pool), limit or len(pool))
    pairs: list[tuple[str, str, float]] = []
    # Rare grades first: what they cannot fill is shared by the others.
    for left, grade in enumerate(sorted(range(GRADES + 1), key=lambda grade: (int((grades == grade).sum()), grade))):
        size = (wanted - len(pairs)) // (GRADES + 1 - left)
        for place in np.sort(generator.permutation(np.flatnonzero(grades == grade))[:size]):
            pairs.append((pool[first[place]].text, pool[second[place]].text, float(scores[place])))
    return sorted(pairs, key=lambda pair: (normalise(pair[0]), normalise(pair[1])))


def classified(pool: Sequence[Candidate], limit: int | None, generator: np.random.Generator) -> EvaluationSet:
    """Rows to fit a classifier on and rows to test it on: both are evaluation only."""
    labels = sorted({one.groups[0] for one in pool})
    files: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for one in pool:
        is_fitted = hash_share(f"fit {one.text}") < CLASSIFICATION_FIT_SHARE
        files["train" if is_fitted else "test"].append({"text": one.text, "label": labels.index(one.groups[0])})
    return EvaluationSet({name: draw(rows, limit, generator) for name, rows in files.items()}, labels)


EXAMPLES: dict[str, Callable[[Sequence[Candidate], Dataset, np.random.Generator], Iterator[TrainingExample]]] = {
    **dict.fromkeys(("retrieval", "code", "reranking"), near_examples),
    **dict.fromkeys(("classification", "clustering"), class_examples),
    "sts": overlap_examples,
}
"""Family of a dataset -> how its training rows are drawn from its candidates."""


def evaluation_rows(
    pool: Sequence[Candidate], dataset: Dataset, limits: Limits, generator: np.random.Generator
) -> EvaluationSet:
    """The files of one task: its queries, pairs or texts, within the limits."""
    if dataset.family == "classification":
        return classified(pool, limits.queries, generator)
    shape: Shape = "pairs"
    records: list[tuple[Any, ...]] = [(one.text, one.document) for one in pool]
    if dataset.family == "clustering":
        shape, records = "labelled", [(one.text, one.groups[0]) for one in pool]
    elif dataset.family == "sts":
        shape, records = "graded", graded_pairs(pool, limits.queries, generator)
    elif dataset.family == "reranking":
        rows = near_examples(pool, dataset, generator)
        # In the order of the texts: the place in a list must not give the answer away.
        candidates = ((row, text) for row in rows for text in sorted((*row.pos, *row.neg)))
        shape, records = "candidates", [(row.query, text, str(int(text in row.pos))) for row, text in candidates]
    table = pa.table({name: [row[place] for row in records] for place, name in enumerate(COLUMNS[shape])})
    return evaluation_set(Raw(shape, {"test": table}, ()), dataset, limits, generator)


class PythonDocs:
    """The mined corpus (see `boom_utils.data.convert.Source`); no text of it is in two splits.

    Args:
        manifest: The `python_docs` manifest (or one of its shape).
        corpus: Limits, seed, and the training datasets to write; datasets of role ``new_data`` are always written.
        tasks: The evaluation tasks to write. Which ones changes no row of the others, nor of the training datasets.

    Raises:
        ManifestError: A dataset that this corpus cannot make, or a task that the manifest does not have.
        DataError: Nothing to mine.
    """

    near: NearOptions | None = None
    fix = "install the distributions that the manifest names"

    def __init__(self, manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str]) -> None:
        if unknown := [dataset.id for dataset in manifest.datasets if dataset.id not in DATASETS]:
            raise ManifestError(
                f"python_docs has no rule for {', '.join(unknown)}",
                where=f"manifest '{manifest.name}'",
                expected=f"datasets among {', '.join(DATASETS)}",
            )
        arriving = [dataset.id for dataset in manifest.datasets if dataset.role == "new_data"]
        trained = {f"train/{name}": manifest.dataset(name) for name in (*corpus.datasets, *arriving)}
        self.sets: Mapping[str, Dataset] = {**trained, "pretraining": manifest.dataset(PAIRS)}
        self.tasks: Sequence[EvaluationTask] = [manifest.task(name) for name in tasks]
        self._manifest, self._corpus, self._mined = manifest, corpus, mine(manifest)
        self._built = build_corpus(self._mined, corpus.seed)

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """The files of one task, from the candidates of its split."""
        pool = self._built.part(task.dataset, "held_out" if task.held_out else "evaluation")
        return evaluation_rows(pool, self._manifest.dataset(task.dataset), limits, generator)

    def training(self, name: str) -> list[TrainingExample]:
        """Rows of a dataset, or pairs for the tiny base, whose texts no other set has."""
        dataset, corpus = self.sets[name], self._corpus
        if name == "pretraining":
            generator = np.random.default_rng(derive_seed(corpus.seed, "pretraining"))
            chosen = draw(self._built.part(PAIRS, "pretraining"), corpus.pretraining_pairs, generator)
            return [TrainingExample(one.text, (one.document,)) for one in chosen]
        generator = np.random.default_rng(derive_seed(corpus.seed, "train", dataset.id))
        # All rows are made before they are drawn: some candidates give none.
        rows = list(EXAMPLES[dataset.family](self._built.part(dataset.id, "train"), dataset, generator))
        return draw(rows, corpus.train_rows, generator)

    def completed(self, name: str, file: Path, bare: int) -> None:
        """Rows lack nothing: each has its negatives, and pairs for the base need none."""

    def facts(self) -> dict[str, Any]:
        """The distributions that were found, what was mined, and what was dropped to keep the splits apart."""
        mined, dropped = self._mined, self._built.dropped
        return {
            "fingerprint": corpus_fingerprint(self._manifest),
            "deviations": corpus_deviations(self._manifest),
            "mining": {"files": mined.files, "unreadable": mined.unreadable, "definitions": len(mined.definitions)},
            "dropped": {f"train/{name}": {"its text is in another split": number} for name, number in dropped.items()},
        }
