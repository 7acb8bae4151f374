"""Stage: the embedded corpus `python_docs`, from installed distributions to training rows and evaluation sets.

`candidates_of` says which texts of a mined definition become candidates of which dataset. A definition is in one split
for all datasets, chosen by a hash of its text, so what is evaluated is trained on nowhere; `build_corpus` also drops
what shares a text with another split. Reranking and clustering take the candidates of `summary_to_description` in
another way: turned round, and by their module. `EXAMPLES` says how rows are drawn from the candidates: with negatives
from near by, by the overlap of parameter names, or by class.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from boom_utils.artifacts import derive_seed
from boom_utils.config import CorpusConfig
from boom_utils.data import mining
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.examples import Labelled, Split, TrainingExample, hash_share, normalise
from boom_utils.data.fetching import used_datasets
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.mining import PLACEHOLDER, Definition, Mined, clean_text, is_readable, truncate_words
from boom_utils.data.rows import NEGATIVES, POSITIVES, example, labelled_examples
from boom_utils.data.sampling import draw
from boom_utils.data.text_files import Raw, Shape, table_of
from boom_utils.errors import ManifestError, bullet_list

LONGEST_PASSAGE, LONGEST_MESSAGE, LONGEST_COMPARED = 60, 30, 48  # words; smoke's base reads 64-128 tokens
PRETRAINING_SHARE, EVALUATION_SHARE = 0.53, 0.15
# Of the messages, those that are evaluated, and of these, those that the classifier on the embeddings is fitted on.
CLASSIFICATION_EVALUATION_SHARE, CLASSIFICATION_FIT_SHARE = 0.35, 0.4
CLASSES, MODULES = 6, 20  # of the classification and the clustering dataset: the most frequent ones
# Jaccard overlap from which two functions count as similar, up to which as different, and the score of equal ones.
HIGH_OVERLAP, LOW_OVERLAP, GRADES = 0.5, 0.2, 5
QUESTIONS = (
    "What does the parameter {parameter} of {function} do?",
    "What is {parameter} in {function} from {package}?",
    "Meaning of the {parameter} argument of {function} in {module}",
    "How is the argument {parameter} of {package}'s {function} used?",
    "{function}: which values can {parameter} take and what do they mean?",
)
PAIRS = "summary_to_description"  # the tiny base learns from its pre-training split; those below are made of it
MINED = (PAIRS, "parameter_question", "docstring_to_code", "parameter_overlap_sts", "exception_class")
DATASETS = (*MINED, "summary_reranking", "summary_to_module")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one row of a dataset can be made of.

    Args:
        text: A query, or the text that is classified or compared.
        split: The part of the corpus it belongs to.
        document: The text that answers a query, empty where there is none.
        groups: Where it is from, from near to far, so that negatives come from near by; or the one class it has; or
            the names of its parameters.
    """

    text: str
    split: Split
    document: str = ""
    groups: tuple[str, ...] = ()

    @property
    def normalised(self) -> set[str]:
        """The texts that must not occur in another split."""
        return {normalise(text) for text in (self.text, self.document) if text}


Pool = Sequence[Candidate]


# --- candidates -------------------------------------------------------------------------------------------------------


def candidates_of(definition: Definition, split: Split, seed: int) -> Iterator[tuple[str, Candidate]]:
    """What one definition gives to which dataset; the seed chooses the wording of questions."""
    package, module, parameters = definition.package, definition.module, definition.parameters
    place, names = (module, package), tuple(sorted({name.lower() for name in parameters}))
    has_summary, shown_module = is_readable(definition.summary, 3, 30), ".".join(public_parts(module))
    if has_summary and is_readable(definition.description, 6):
        document = truncate_words(definition.description, LONGEST_PASSAGE)
        yield PAIRS, Candidate(definition.summary, split, document, place)
    for name, text in parameters.items():
        if len(name) > 1 and is_readable(text, 5):
            wording = QUESTIONS[derive_seed(seed, "question", module, definition.name, name) % len(QUESTIONS)]
            question = wording.format(parameter=name, function=definition.name, package=package, module=shown_module)
            groups = (f"{module}:{definition.name}", *place)
            yield "parameter_question", Candidate(question, split, truncate_words(text, LONGEST_PASSAGE), groups)
    query = truncate_words(f"{definition.summary} {definition.description}".strip(), LONGEST_PASSAGE)
    if is_readable(query, 4) and len(definition.code.split()) >= 10 and definition.code.count("\n") >= 2:
        yield "docstring_to_code", Candidate(query, split, definition.code, place)
    if has_summary and 2 <= len(names) <= 12 and all(is_readable(text, 2) for text in parameters.values()):
        compared = compared_text(definition.summary, list(parameters.values()))
        yield "parameter_overlap_sts", Candidate(compared, split, groups=names)


def public_parts(module: str) -> tuple[str, ...]:
    """Parts of a dotted name that a reader sees."""
    return tuple(part for part in module.split(".") if not part.startswith("_"))


def compared_text(summary: str, texts: Sequence[str]) -> str:
    """The summary of a function and the start of what is said about each parameter."""
    summary = truncate_words(summary, LONGEST_COMPARED // 4)
    each = max(3, (LONGEST_COMPARED - len(summary.split())) // len(texts))
    sentences = [re.split(r"(?<=\w)\.\s", text)[0].split() for text in texts]
    starts = "; ".join(" ".join(words[:each]).rstrip(" .,;:") for words in sentences)
    return truncate_words(f"{summary.rstrip('.')}. {starts}.", LONGEST_COMPARED + 4)


def exception_class(messages: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Raise messages of the most frequent exception classes; a message raised as two classes is left out."""
    texts: dict[str, Candidate] = {}
    classes: dict[str, set[str]] = defaultdict(set)
    for message, raised in messages:
        text = clean_text(message)
        if is_readable(text.replace(PLACEHOLDER, ""), 3, 60):
            short = truncate_words(text, LONGEST_MESSAGE)
            split: Split = "evaluation" if hash_share(short) < CLASSIFICATION_EVALUATION_SHARE else "train"
            texts.setdefault(normalise(text), Candidate(short, split, groups=(raised,)))
            classes[normalise(text)].add(raised)
    return balanced([one for key, one in texts.items() if len(classes[key]) == 1], CLASSES, 4)


def summary_to_module(pairs: Iterable[Candidate]) -> list[Candidate]:
    """Summary of a function and its module, where the summary does not name the package."""
    found = [replace(one, document="", groups=public_parts(one.groups[0])[:2]) for one in pairs]
    unnamed = [one for one in found if one.groups and one.groups[0] not in one.text.lower()]
    return balanced([replace(one, groups=(".".join(one.groups),)) for one in unnamed], MODULES, 2)


def balanced(candidates: Pool, classes: int, times: int) -> list[Candidate]:
    """Candidates of the most frequent classes, none more than ``times`` as often as the rarest of these.

    They are taken in the order of a hash of their text.
    """
    counts = Counter(one.groups[0] for one in candidates)
    frequent = sorted(counts, key=lambda name: (-counts[name], name))[:classes]
    usable = [one for one in candidates if one.groups[0] in frequent]
    usable.sort(key=lambda one: (hash_share(f"cap {one.text}"), one.text))
    most = times * min((counts[name] for name in frequent), default=0)
    return pd.Series(usable, dtype=object).groupby([one.groups[0] for one in usable]).head(most).to_list()


def build_corpus(mined: Mined, seed: int) -> tuple[dict[str, list[Candidate]], dict[str, int]]:
    """The candidates, duplicates merged, with no text in two of evaluation, pre-training and training.

    Args:
        mined: What `boom_utils.data.mining.mine` found.
        seed: Draws the wording of questions; the splits do not depend on it.

    Returns:
        Candidates of every dataset, and how many were dropped to keep the splits apart.
    """
    found: dict[str, list[Candidate]] = {name: [] for name in MINED}
    seen: set[str] = set()
    for definition in mined.definitions:
        text = normalise(definition.text)
        if text not in seen:
            seen.add(text)
            for name, one in candidates_of(definition, split_of(text, definition.held_out), seed):
                found[name].append(one)
    found["exception_class"] = exception_class(mined.messages)
    found = {name: merge_duplicates(pool) for name, pool in found.items()}
    evaluated = _texts(one for pool in found.values() for one in pool if one.split in ("evaluation", "held_out"))
    pretrained = _texts(one for one in found[PAIRS] if one.split == "pretraining")
    forbidden = {"pretraining": evaluated, "train": evaluated | pretrained}
    dropped = {}
    for name, pool in found.items():
        found[name] = [one for one in pool if one.normalised.isdisjoint(forbidden.get(one.split, ()))]
        dropped[name] = len(pool) - len(found[name])
    # Made of what is apart already, with the same splits: they need not yield to anything.
    found["summary_reranking"] = [replace(one, text=one.document, document=one.text) for one in found[PAIRS]]
    found["summary_to_module"] = summary_to_module(one for one in found[PAIRS] if one.split in ("train", "evaluation"))
    return found, dropped


def split_of(text: str, held_out: bool) -> Split:
    """The split of a definition, by a hash of its documentation."""
    share = hash_share(text)
    if held_out:
        return "held_out"
    return "evaluation" if share >= 1 - EVALUATION_SHARE else "pretraining" if share < PRETRAINING_SHARE else "train"


def merge_duplicates(pool: Iterable[Candidate]) -> list[Candidate]:
    """Keep a candidate only if none of its texts was in an earlier one (exact, after `normalise`)."""
    seen: set[str] = set()
    kept = []
    for one in pool:
        if seen.isdisjoint(one.normalised):
            kept.append(one)
        seen |= one.normalised
    return kept


def _texts(pool: Iterable[Candidate]) -> set[str]:
    return set().union(*(one.normalised for one in pool))


# --- training rows ----------------------------------------------------------------------------------------------------


def near_examples(pool: Pool, dataset: Dataset, generator: np.random.Generator) -> Iterator[TrainingExample]:
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


def overlap_examples(pool: Pool, dataset: Dataset, generator: np.random.Generator) -> Iterator[TrainingExample]:
    """Rows of a function, functions of high overlap and functions of low overlap, half of them sharing a name."""
    texts = np.array([one.text for one in pool], dtype=object)
    for place, overlap in enumerate(jaccard(pool)):
        overlap[place] = np.nan
        close = texts[overlap >= HIGH_OVERLAP].tolist()
        if close:
            hard = generator.permutation(texts[(overlap > 0) & (overlap <= LOW_OVERLAP)])[: NEGATIVES // 2]
            easy = generator.permutation(texts[overlap == 0])[: NEGATIVES - len(hard)]
            yield example(texts[place], draw(close, POSITIVES, generator), [*hard, *easy], dataset)


def class_examples(pool: Pool, dataset: Dataset, generator: np.random.Generator) -> Iterator[TrainingExample]:
    """Rows of a text, texts of its class and texts of other classes."""
    labelled = [Labelled(one.text, one.groups[0]) for one in pool]
    return labelled_examples(labelled, labelled, dataset, generator)


# Family of a dataset -> how its training rows are drawn from its candidates; all others are drawn from near by.
EXAMPLES = {"sts": overlap_examples, "classification": class_examples, "clustering": class_examples}


def jaccard(pool: Pool) -> np.ndarray:
    """Overlap of the names, (candidates, candidates): shared names divided by all names of both."""
    names = pd.Series([one.groups for one in pool]).explode()
    held = pd.crosstab(names.index, names).to_numpy(np.float32)
    shared, sizes = (held @ held.T).astype(np.float64), held.sum(1)
    return np.asarray(shared / np.maximum(sizes[:, None] + sizes - shared, 1))


# --- evaluation sets --------------------------------------------------------------------------------------------------


def graded_pairs(pool: Pool, limit: int | None, generator: np.random.Generator) -> list[tuple[str, str, float]]:
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


def classified(pool: Pool, limit: int | None, generator: np.random.Generator) -> EvaluationSet:
    """Rows to fit a classifier on and rows to test it on: both are evaluation only."""
    labels = sorted({one.groups[0] for one in pool})
    files: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for one in pool:
        is_fitted = hash_share(f"fit {one.text}") < CLASSIFICATION_FIT_SHARE
        files["train" if is_fitted else "test"].append({"text": one.text, "label": labels.index(one.groups[0])})
    return EvaluationSet({name: draw(rows, limit, generator) for name, rows in files.items()}, labels)


class PythonDocs:
    """The mined corpus (see `boom_utils.data.convert.Source`); no text of it is in two splits.

    Args:
        manifest: The `python_docs` manifest (or one of its shape).
        corpus: Limits, seed, and the training datasets to write; datasets of role ``new_data`` are always written.
        tasks: The evaluation tasks to write. Which ones changes no row of the others, nor of the training datasets.

    Raises:
        ManifestError: A dataset that this corpus cannot make, or a task that the manifest does not have.
    """

    near = False

    def __init__(self, manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str]) -> None:
        if unknown := [dataset.id for dataset in manifest.datasets if dataset.id not in DATASETS]:
            what = f"python_docs has no rule for {', '.join(unknown)}"
            raise ManifestError(what, where=manifest.name, expected=", ".join(DATASETS))
        trained = {f"train/{dataset.id}": dataset for dataset in used_datasets(manifest, corpus, ())}
        self.sets: Mapping[str, Dataset] = {**trained, "pretraining": manifest.dataset(PAIRS)}
        self.tasks: Sequence[EvaluationTask] = [manifest.task(name) for name in tasks]
        self._manifest, self._corpus, self._mined = manifest, corpus, mining.mine(manifest)
        self.fix = f"install the distributions that the manifest names{bullet_list(self._mined.deviations)}"
        self._candidates, self._dropped = build_corpus(self._mined, corpus.seed)

    def _pool(self, dataset: str, split: Split) -> Pool:
        return [one for one in self._candidates[dataset] if one.split == split]

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """The queries, pairs or texts of one task, within the limits."""
        dataset = self._manifest.dataset(task.dataset)
        pool = self._pool(dataset.id, "held_out" if task.held_out else "evaluation")
        if dataset.family == "classification":
            return classified(pool, limits.queries, generator)
        shape: Shape = "pairs"
        records: Sequence[tuple[Any, ...]] = [(one.text, one.document) for one in pool]
        if dataset.family == "clustering":
            shape, records = "labelled", [(one.text, one.groups[0]) for one in pool]
        elif dataset.family == "sts":
            shape, records = "graded", graded_pairs(pool, limits.queries, generator)
        elif dataset.family == "reranking":
            shape, rows = "candidates", list(near_examples(pool, dataset, generator))
            # In the order of the texts: the place in a list must not give the answer away.
            candidates = [(row, text) for row in rows for text in sorted((*row.pos, *row.neg))]
            records = [(row.query, text, str(int(text in row.pos))) for row, text in candidates]
        return evaluation_set(Raw(shape, {"test": table_of(shape, records)}), dataset, limits, generator)

    def training(self, name: str) -> list[TrainingExample]:
        """Rows of a dataset, or pairs for the tiny base, whose texts no other set has."""
        dataset, corpus = self.sets[name], self._corpus
        generator = np.random.default_rng(derive_seed(corpus.seed, *name.split("/")))
        if name == "pretraining":
            chosen = draw(self._pool(PAIRS, "pretraining"), corpus.pretraining_pairs, generator)
            return [TrainingExample(one.text, (one.document,)) for one in chosen]
        # All rows are made before they are drawn: some candidates give none.
        rows = EXAMPLES.get(dataset.family, near_examples)(self._pool(dataset.id, "train"), dataset, generator)
        return draw(list(rows), corpus.train_rows, generator)

    def completed(self, name: str, file: Path) -> None:
        """Rows lack nothing: each has its negatives, and pairs for the base need none."""

    def facts(self) -> dict[str, Any]:
        """The distributions that were found, what could not be read, and what was dropped to keep the splits apart."""
        return {
            "fingerprint": mining.corpus_fingerprint(self._manifest),
            "deviations": self._mined.deviations,
            "dropped": {f"train/{name}": {"its text is in another split": n} for name, n in self._dropped.items()},
        }
