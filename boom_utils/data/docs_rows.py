"""Draws the rows of `python_docs` from its candidates: negatives, graded pairs, queries and distractors.

Every function gets its own generator and keeps the candidates' order, so equal input gives equal rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from boom_utils.data.docs_pairs import Described, Labelled, Pair, hash_share, normalise
from boom_utils.data.example_sets import NEGATIVES, POSITIVES, Row, draw, draw_retrieval, example
from boom_utils.data.examples import TrainingExample
from boom_utils.data.manifest import Dataset

HIGH_OVERLAP, LOW_OVERLAP = 0.5, 0.2
"""Jaccard overlap from which two functions count as similar, and up to which as different."""
LABEL_TRAIN_SHARE = 0.4
"""Share of the evaluated messages that the classifier on top of the embeddings is fitted on."""
GRADES = 5


def pair_examples(
    chosen: Sequence[Pair], pool: Sequence[Pair], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of query, document and negatives: documents of the pool that share the nearest group, then farther ones."""
    documents: dict[str, list[str]] = defaultdict(list)
    for pair in pool:
        for group in (*pair.groups, ""):
            documents[group].append(pair.document)
    for pair in chosen:
        negatives: list[str] = []
        for group in (*pair.groups, ""):
            others = documents[group]
            # A sample of a large group is enough: most of it is not the document itself.
            places = generator.permutation(len(others))[: 2 * NEGATIVES + 1]
            negatives += [others[p] for p in places if others[p] != pair.document and others[p] not in negatives]
        yield example(pair.query, [pair.document], negatives[:NEGATIVES], dataset)


def overlap_examples(
    chosen: Sequence[Described], pool: Sequence[Described], dataset: Dataset, generator: np.random.Generator
) -> Iterator[TrainingExample]:
    """Rows of a function, functions of high overlap and functions of low overlap, half of them sharing a name."""
    overlaps = jaccard(chosen, pool)
    for unit, overlap in zip(chosen, overlaps, strict=True):
        close = [
            pool[place] for place in np.flatnonzero(overlap >= HIGH_OVERLAP).tolist() if pool[place].text != unit.text
        ]
        if not close:
            continue
        hard = np.flatnonzero((overlap > 0) & (overlap <= LOW_OVERLAP))
        easy = np.flatnonzero(overlap == 0)
        half = generator.permutation(hard)[: NEGATIVES // 2]
        places = [int(place) for place in (*half, *generator.permutation(easy)[: NEGATIVES - len(half)])]
        positives = [other.text for other in draw(close, POSITIVES, generator)]
        yield example(unit.text, positives, [pool[place].text for place in places], dataset)


def jaccard(units: Sequence[Described], others: Sequence[Described]) -> NDArray[np.float64]:
    """Overlap of the parameter names, (units, others): shared names divided by all names of both."""
    names = sorted({name for unit in (*units, *others) for name in unit.names})
    place = {name: number for number, name in enumerate(names)}
    left, right = (_incidence(group, place) for group in (units, others))
    shared: NDArray[np.float64] = (left @ right.T).astype(np.float64)
    union: NDArray[np.float64] = left.sum(1)[:, None] + right.sum(1)[None, :] - shared
    return shared / np.maximum(union, 1)


def _incidence(units: Sequence[Described], place: dict[str, int]) -> NDArray[np.float32]:
    table = np.zeros((len(units), len(place)), dtype=np.float32)
    for row, unit in enumerate(units):
        table[row, [place[name] for name in unit.names]] = 1
    return table


def retrieval_rows(
    pool: Sequence[Pair], queries: int | None, documents: int | None, generator: np.random.Generator
) -> tuple[list[Row], list[Row], list[Row]]:
    """Queries, documents and judgements of a retrieval task.

    Args:
        pool: Pairs of the evaluated split; each query has one relevant document.
        queries: Most queries, None for all.
        documents: Most documents, None for all; the relevant ones are always there, the rest are distractors.
        generator: Draws queries and distractors.

    Returns:
        Rows of ``queries.jsonl``, ``corpus.jsonl`` and ``qrels.jsonl``.
    """
    relevant = [[place] for place in range(len(pool))]
    asked, kept = draw_retrieval(relevant, len(pool), (queries, documents), generator)
    corpus: list[Row] = [{"id": f"d{place}", "text": pool[place].document} for place in kept]
    questions: list[Row] = [{"id": f"q{place}", "text": pool[place].query} for place in asked]
    return questions, corpus, [{"query": f"q{place}", "document": f"d{place}"} for place in asked]


def classification_rows(
    pool: Sequence[Labelled], limit: int | None, generator: np.random.Generator
) -> tuple[list[Row], list[Row], list[str]]:
    """Rows to fit a classifier on, rows to test it on, and the labels' names; both parts are evaluation only."""
    labels = sorted({unit.label for unit in pool})
    rows = [{"text": unit.text, "label": labels.index(unit.label)} for unit in pool]
    is_train = [hash_share(f"fit {unit.text}") < LABEL_TRAIN_SHARE for unit in pool]
    fit = [row for row, chosen in zip(rows, is_train, strict=True) if chosen]
    test = [row for row, chosen in zip(rows, is_train, strict=True) if not chosen]
    return draw(fit, limit, generator), draw(test, limit, generator), labels


def graded_rows(pool: Sequence[Described], limit: int | None, generator: np.random.Generator) -> list[Row]:
    """Pairs of functions scored 0-5 by overlap, spread evenly over the rounded scores as far as pairs exist."""
    scores = GRADES * jaccard(pool, pool)
    first, second = np.triu_indices(len(pool), k=1)
    values = scores[first, second]
    grades = np.rint(values).astype(int)
    wanted = min(len(pool), limit or len(pool))
    rows: list[Row] = []
    # Rare grades first: what they cannot fill is shared by the others.
    for left, grade in enumerate(sorted(range(GRADES + 1), key=lambda grade: (int((grades == grade).sum()), grade))):
        places = np.flatnonzero(grades == grade)
        size = (wanted - len(rows)) // (GRADES + 1 - left)
        rows += [
            _graded(pool[first[place]], pool[second[place]], float(values[place]))
            for place in np.sort(generator.permutation(places)[:size])
        ]
    return sorted(rows, key=lambda row: (normalise(row["sentence1"]), normalise(row["sentence2"])))


def _graded(one: Described, other: Described, score: float) -> Row:
    return {"sentence1": one.text, "sentence2": other.text, "score": round(score, 4)}
