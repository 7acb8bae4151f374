"""How the files of each dataset of `open_text` become records: one entry a dataset, in the order of its manifest.

An entry names the shape of the records, the reader of its files and the columns; a dataset that needs more has a short
function below the table. To add a dataset, write its entry in a manifest of files and its entry here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from boom_utils.artifacts import digest_of
from boom_utils.config import CorpusConfig
from boom_utils.data.evaluation_sets import EvaluationSet, Limits, evaluation_set
from boom_utils.data.examples import MalformedError
from boom_utils.data.fetching import used_datasets
from boom_utils.data.manifest import Dataset, EvaluationTask, Manifest
from boom_utils.data.text_files import (
    Parts,
    Raw,
    Reader,
    Row,
    Source,
    Values,
    collapse,
    json_rows,
    matching,
    parallel,
    read_files,
    table,
)
from boom_utils.errors import DataError, nearest
from boom_utils.progress import progress


class OpenText:
    """A corpus of files, all of which are there: its records, read (see `boom_utils.data.convert.Source`).

    Args:
        manifest: A corpus of files.
        corpus: Names what is trained on; says what becomes of bad lines.
        tasks: Names of what is evaluated.
        folder: The downloads; a file lies at ``<host>/<path>`` below it.

    Raises:
        ManifestError: A dataset or task that the corpus does not have.
        DataError: Bad lines, or records that are not as promised.
    """

    near = True
    fix = "allow more rows, or leave these sets out"

    def __init__(self, manifest: Manifest, corpus: CorpusConfig, tasks: Sequence[str], folder: Path) -> None:
        trained = [manifest.dataset(name) for name in dict.fromkeys((*corpus.datasets, *corpus.new_datasets))]
        self.sets: Mapping[str, Dataset] = {f"train/{dataset.id}": dataset for dataset in trained}
        self.tasks: Sequence[EvaluationTask] = [manifest.task(name) for name in dict.fromkeys(tasks)]
        self._datasets = {dataset.id: dataset for dataset in used_datasets(manifest, corpus, tasks)}
        read = progress(self._datasets.values(), len(self._datasets), "reading")
        self._raws = {one.id: read_dataset(one, folder, corpus.on_bad_line) for one in read}

    def evaluation(self, task: EvaluationTask, limits: Limits, generator: np.random.Generator) -> EvaluationSet:
        """By the rule of the dataset's kind."""
        return evaluation_set(self._raws[task.dataset], self._datasets[task.dataset], limits, generator)

    def training(self, name: str) -> Raw:
        """The records of a dataset."""
        return self._raws[self.sets[name].id]

    def completed(self, name: str, file: Path) -> None:
        """Rows lack nothing: each shape's rule finds negatives."""

    def facts(self) -> dict[str, Any]:
        """The sha256 of all files, and the lines that were left out."""
        used = self._datasets.values()
        files = {one.id: [file.sha256 for file in one.origin.files] for one in used if one.origin}
        bad = {name: raw.bad.facts for name, raw in self._raws.items() if raw.bad.number}
        return {"fingerprint": digest_of(files), "deviations": [], "bad_lines": bad}


def read_dataset(dataset: Dataset, folder: Path, on_bad_line: Literal["error", "skip"] = "error") -> Raw:
    """Read all files of a dataset.

    Args:
        dataset: From a manifest of files; it has an entry in `READERS`.
        folder: The downloads; a file lies at ``<host>/<path>`` below it.
        on_bad_line: ``skip`` leaves malformed rows out, and files that are damaged as a whole, and lists them.

    Returns:
        The records, in the order of the files.

    Raises:
        DataError: There is no entry; or as of `boom_utils.data.text_files.read_files`.
    """
    if dataset.origin is None or dataset.id not in READERS:
        what = f"nothing says how the files of dataset '{dataset.id}' are read{nearest(dataset.id, READERS)}"
        raise DataError(what, expected="an entry in boom_utils/data/open_text.py, and files in the manifest")
    return read_files(dataset.id, dataset.origin, READERS[dataset.id], folder, on_bad_line)


# --- what several datasets need ---------------------------------------------------------------------------------------


def part_by_hash(text: str, modulo: int, test_below: int) -> str:
    """Test or train: md5 of the text as one big hexadecimal number, modulo; small ones are test."""
    hashed = md5(text.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
    return "test" if int(hashed, 16) % modulo < test_below else "train"


def without(unwanted: Callable[[Values], bool]) -> Callable[[Parts], None]:
    """A rule that leaves out rows by themselves, of whatever part."""

    def leave_out(parts: Parts) -> None:
        for part, records in parts.items():
            parts[part] = [record for record in records if not unwanted(record)]

    return leave_out


def without_shared(part: str, other: str, *columns: str) -> Callable[[Parts], None]:
    """A rule that leaves out rows of a part with a value, in lower case, that another part has in the same column."""

    def leave_out(parts: Parts) -> None:
        known = {name: {record[name].lower() for record in parts[other]} for name in columns}
        parts[part] = [row for row in parts[part] if not any(row[name].lower() in known[name] for name in columns)]

    return leave_out


def without_unjudged(parts: Parts) -> None:
    """Leaves out queries that no judgement names: they cannot be evaluated."""
    judged = {record["query"] for record in parts["qrels"]}
    parts["queries"] = [record for record in parts["queries"] if record["id"] in judged]


def squad(document: Any) -> Iterator[Values]:
    """Every question of a file in the layout of SQuAD, with its paragraph."""
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {"query": question.get("question"), "passage": paragraph.get("context")}


_BRACKETS = {"lrb": "(", "rrb": ")", "lsb": "[", "rsb": "]", "lcb": "{", "rcb": "}"}


def as_written(text: str) -> str:
    """Text as it is written, from the tokens of the Penn Treebank (``-lrb-``, blanks before commas, split ``n't``)."""
    text = re.sub(r"(?i)-([lr][rsc]b)-", lambda found: _BRACKETS[found[1].lower()], text)
    text = re.sub(r"\s*''", '"', re.sub(r"``\s*", '"', text))
    text = re.sub(r"(?i)(?<=s)\s+'(?=\s)", "'", text)
    text = re.sub(r"(?i)\s+(?=[.,;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)", "", text)
    return collapse(re.sub(r"(?<=[(\[{$])\s+", "", text))


# --- datasets with a layout of their own ------------------------------------------------------------------------------


def squad_page(source: Source) -> Iterator[Row]:
    """Questions of a page of the SQuAD explorer, each with the paragraph above it."""
    if "</html>" not in source.text:
        raise MalformedError("the page does not end with </html>: it is cut off")
    context = ""
    for found in re.finditer(r'<pre[^>]*>(.*?)</pre>|<strong class="question">(.*?)</strong>', source.text, re.DOTALL):
        if found[1] is not None:
            context = html.unescape(found[1])
        else:
            yield f", character {found.start()}", {"query": collapse(html.unescape(found[2])), "passage": context}


def medquad(source: Source) -> Iterator[Row]:
    """Questions and answers of one XML document."""
    try:
        root = ElementTree.fromstring(source.text.encode(errors="surrogateescape"))
    except (ParseError, DefusedXmlException) as error:
        raise MalformedError(f"not XML, or with entities, which are refused: {error}") from None
    for number, pair in enumerate(root.findall("QAPairs/QAPair"), start=1):
        texts = {child.tag: "".join(child.itertext()) for child in pair}
        yield f", record {number}", {"query": texts.get("Question"), "passage": texts.get("Answer")}


def nq_open(question: Any) -> Iterator[Values]:
    """A question with its passages; there is one."""
    for context in question["ctxs"]:
        yield {"query": question["question"], "passage": context["text"]}


def climate_fever(claim: Any) -> Iterator[Values]:
    """A claim is a query; all its evidences are documents, also those that say nothing about it."""
    yield {"part": "queries", "id": claim["claim_id"], "text": claim["claim"]}
    for one in claim["evidences"]:
        yield {"part": "corpus", "id": one["evidence_id"], "text": one["evidence"]}
        relevant = int(one["evidence_label"] != "NOT_ENOUGH_INFO")
        yield {"part": "qrels", "query": claim["claim_id"], "document": one["evidence_id"], "score": relevant}


def without_repeated_evidence(parts: Parts) -> None:
    """Leaves out documents that repeat an earlier one, id and text."""
    parts["corpus"] = list({(row["id"], row["text"]): row for row in parts["corpus"]}.values())


def cisi(source: Source) -> Iterator[Row]:
    """Judgements in columns; texts in SMART format: ``.I`` begins a record, ``.T`` its title, ``.W`` its text."""
    if source.role == "qrels":
        for place, values in matching(r"\s*(?P<query>\d+)\s+(?P<document>\d+)\s+0\s+0\.0+\s*")(source):
            yield place, values if isinstance(values, str) else {**values, "score": 1}
        return
    before, *records = re.split(r"^\.I (\d+)\s*\n", source.text, flags=re.MULTILINE)
    if before:
        raise MalformedError("a record starts with .I and its number")
    for number, record in zip(records[::2], records[1::2], strict=True):
        stray, *fields = re.split(r"^\.([A-Z])\s*\n", record, flags=re.MULTILINE)
        texts = dict(zip(fields[::2], fields[1::2], strict=True))
        whole = [texts[key].removesuffix("\n") for key in ("TW" if source.role == "corpus" else "W") if key in texts]
        wrong = "" if "W" in texts and not stray else "there is no .W, or text outside of a field"
        yield f", record {number}", wrong or {"id": number, "text": ". ".join(whole)}


_FIELD = re.compile(r"^<([a-z_]+)>\n(.*?)^</\1>$", flags=re.DOTALL | re.MULTILINE)


def amazon_reviews(source: Source) -> Iterator[Row]:
    """Blocks of <review>, each field as <tag>, its lines, </tag>, every tag on a line of its own; not XML."""
    *pieces, last = re.split(r"^<review>\n(.*?)^</review>$", source.text, flags=re.DOTALL | re.MULTILINE)
    if last.strip() not in ("", "</data>"):
        raise MalformedError("the last <review> is not closed: the file is cut off")
    for number, (between, review) in enumerate(zip(pieces[::2], pieces[1::2], strict=True), start=1):
        fields = dict(_FIELD.findall(review))
        whole = "<review>" not in review and not _FIELD.sub("", review).strip() and between.strip() in ("", "<data>")
        yield f", review {number}", fields if whole else "text outside of a field, or a review that is not closed"


def amazon_review(values: Values) -> Values:
    """Title and text of a review, and its stars."""
    text = f"{values['title'].strip()}. {values['review_text'].strip()}"[:2000]
    text = collapse(html.unescape(text))
    return {"text": text, "label": values["rating"], "part": part_by_hash(text.lower(), 5, 1)}


def clinc150(document: Any) -> Iterator[Values]:
    """Queries by part; those outside of all intents have parts and a label of their own."""
    parts = {"train": "train", "val": "dev", "test": "test"}
    for split, queries in document.items():
        part = split.removeprefix("oos_")
        yield from ({"text": text, "label": label, "part": parts.get(part, part)} for text, label in queries)


def arxiv(values: Values, text: str) -> Values:
    """A paper and its archive; val and test of the file are evaluated together."""
    return {"text": text, "label": values["category"], "part": "test" if values["split"] == "val" else values["split"]}


def conala(values: Values) -> Values:
    """The intent as it was rewritten, or as it was asked where nobody rewrote it, and its snippet."""
    asked = values["intent"] if values["rewritten_intent"] is None else values["rewritten_intent"]
    return {"query": collapse(asked), "passage": values["snippet"]}


def django(source: Source) -> Iterator[Row]:
    """Annotation and line of code, in the usual parts by position."""
    for number, (place, values) in enumerate(parallel(source), start=1):
        yield place, {**values, "part": "train" if number <= 16_000 else "dev" if number <= 17_000 else "test"}


def cosqa(document: Any) -> Iterator[Values]:
    """The one file maps code to its number; the other lists queries, each with the number of the right code."""
    if isinstance(document, dict):
        yield from ({"part": "corpus", "id": number, "text": code} for code, number in document.items())
        return
    for query in document:
        yield {"part": "queries", "id": query["idx"], "text": query["doc"]}
        yield {"part": "qrels", "query": query["idx"], "document": query["retrieval_idx"], "score": 1}


# --- the datasets -----------------------------------------------------------------------------------------------------

SQUAD = Reader("pairs", json_rows(squad), str.strip)
STSB = Reader("graded", table(",", "sentence1 sentence2 score", quoted=True))
QUESTION_PAIRS = Reader("judged_pairs", table("\t", "sentence1 sentence2 label"), str.strip)
TWEETS = ("ara", "eng", "fra", "deu", "hin", "ita", "por", "spa")
COUNTERFACTUAL = Reader("labelled", table("\t", "text label", "sentence\tis_counterfactual", quoted=True), str.strip)
ARXIV = table(",", "title summary - - category split", "title,summary,comment,authors,category,split", quoted=True)
SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
KORSTS = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"

READERS: dict[str, Reader] = {
    "squad_nqg": Reader("pairs", parallel, as_written),
    "squad_dev": Reader("pairs", squad_page, str.strip),
    "medquad": Reader(
        "pairs",
        medquad,
        rules=(
            without(lambda row: len(row["passage"]) < 41),  # an answer that says nothing
            without_shared("test", "train", "query", "passage"),  # test pairs that share a text with train
        ),
    ),
    "nq_open_oracle": Reader("pairs", json_rows(nq_open, lines=True), str.strip),
    "climate_fever_sentences": Reader(
        "judged",
        json_rows(climate_fever, lines=True),
        rules=(
            without_repeated_evidence,  # sentences repeated for every claim they are evidence of
            without(lambda row: row.get("score") == 0),  # sentences that say nothing about a claim
            without_unjudged,  # claims without a sentence that supports or refutes them
        ),
    ),
    "cisi": Reader("judged", cisi, rules=(without_unjudged,)),  # queries that nobody judged documents for
    "wikiqa": Reader("candidates", parallel),
    "trecqa": Reader("candidates", parallel),
    "banking77": Reader("labelled", table(",", "text label", "text,category", quoted=True)),
    "emotion": Reader("labelled", table(";", "text label", "text;label_name"), str.strip),
    "tweet_sentiment_extraction": Reader(
        "labelled",
        table(",", "id text label", "textID,text,sentiment", quoted=True),
        rules=(without_shared("train", "test", "id"),),  # rows of the official test
    ),
    "amazon_counterfactual_en": COUNTERFACTUAL,
    "amazon_reviews": Reader("labelled", amazon_reviews, record=amazon_review),
    "clinc150": Reader(
        "labelled",
        json_rows(clinc150),
        str.strip,
        rules=(without(lambda row: row["label"] == "oos"),),  # queries outside of all intents
    ),
    "trec_question_6": Reader(
        "labelled", matching("(?P<label>[A-Z]+):[a-z]+ (?P<text>.+)"), str.strip, encoding="latin-1"
    ),
    "sst2": Reader("labelled", matching("(?P<label>[01]) (?P<text>.+)"), str.strip),
    "stackoverflow_titles": Reader(
        "labelled", parallel, record=lambda row: {**row, "part": part_by_hash(collapse(row["text"]).lower(), 10, 4)}
    ),
    "searchsnippets": Reader("labelled", parallel, str.strip),
    "biomedical": Reader("labelled", parallel, str.strip),
    "arxiv_s2s": Reader("labelled", ARXIV, record=lambda row: arxiv(row, row["title"])),
    "arxiv_p2p": Reader("labelled", ARXIV, record=lambda row: arxiv(row, f"{row['title']}. {row['summary']}")),
    "stsbenchmark": STSB,
    "sts12": Reader("graded", table("\t", "score sentence1 sentence2")),
    "mrpc": Reader("judged_pairs", table("\t", "label - - sentence1 sentence2", MRPC)),
    "sick_r": Reader("graded", table("\t", "- sentence1 sentence2 score -", SICK), scores=(1, 5)),
    "conala": Reader("pairs", json_rows(), str.strip, conala),
    "nl2bash": Reader(
        "pairs", parallel, str.strip, lambda row: {**row, "part": part_by_hash(row["passage"].strip(), 8, 1)}
    ),
    "django": Reader(
        "pairs",
        django,
        str.strip,
        rules=(
            without(lambda row: len(row["passage"]) < 18),  # code too short to say anything by itself
            without(lambda row: len(row["query"].split()) < 4),  # annotations that fit many lines of code
        ),
    ),
    "cosqa": Reader("judged", json_rows(cosqa), str.strip),
    **{f"stsb_multi_{language}": STSB for language in ("deu", "spa", "fra", "jpn", "rus", "cmn")},
    "jaquad": SQUAD,
    "afqmc": QUESTION_PAIRS,
    "lcqmc": QUESTION_PAIRS,
    "ocnli": Reader(
        "nli",
        json_rows(lambda pair: [pair], lines=True),
        str.strip,
        rules=(without(lambda row: row["label"] == "-"),),  # pairs without an agreed label
    ),
    **{f"tweet_sentiment_multilingual_{language}": Reader("labelled", parallel) for language in TWEETS},
    "amazon_counterfactual_de": COUNTERFACTUAL,
    "korsts": Reader("graded", table("\t", "- - - - score sentence1 sentence2", KORSTS), str.strip),
    **{f"xquad_{language}": SQUAD for language in ("ara", "deu", "ell", "spa", "hin", "rus", "tur", "vie", "cmn")},
    "cmrc2018": SQUAD,
}
"""Dataset -> how its files are read, in the order of the manifest."""
