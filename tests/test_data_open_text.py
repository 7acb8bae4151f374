"""Reading: every dataset of open_text on a few lines, all of them whole against what was counted, and broken files."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED

from boom_utils.data.manifest import Origin, load_manifest
from boom_utils.data.open_text import READERS, read_dataset
from boom_utils.data.text_files import HIGHEST_SCORE, Raw, Reader, json_rows, parallel, read_files, table
from boom_utils.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MANIFEST = load_manifest("open_text")
ORIGINS = {dataset.id: dataset.origin for dataset in MANIFEST.datasets if dataset.origin}
MIRROR = SHARED / "mirror"
needs_mirror = pytest.mark.skipif(not MIRROR.is_dir(), reason="../shared/mirror, the files of open_text, is not here")


Files = dict[str, str | bytes]


def read(folder: Path, reader: Reader, contents: Files, on_bad_line: Any = "error", **facts: Any) -> Raw:
    """Read files given as ``role`` or ``role/part`` -> content; what follows _ tells two files of a role apart."""
    files = []
    for key, content in contents.items():
        role, _, part = key.partition("/")
        place = folder / "files.example.org" / COMMIT / key.replace("/", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        url = f"https://files.example.org/{COMMIT}/{place.name}"
        files.append({"url": url, "sha256": "a" * 64, "bytes": 1, "role": role.partition("_")[0], "part": part or None})
    fixed: dict[str, Any] = {
        "task": "retrieval",
        "licence": "MIT",
        "homepage": {"dataset": "A tiny one"},
        "split_rule": "official",
    }
    fixed |= {"repository": "https://example.org/x", "commit": COMMIT, "files": files}
    return read_files("tiny", Origin.model_validate({**fixed, **facts}), reader, folder, on_bad_line)


def refused(folder: Path, reader: Reader, contents: Files, **facts: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, reader, contents, **facts)
    return str(caught.value)


def rows(raw: Raw) -> dict[str, list[tuple[Any, ...]]]:
    return {part: [tuple(row.values()) for row in made.to_pylist()] for part, made in raw.parts.items()}


# --- one table: dataset, files, records -------------------------------------------------------------------------------

QA = "<QAPair><Question>Why &amp;  how?</Question><Answer>{}</Answer></QAPair>"
XML = f"<Document><QAPairs>{QA.format('So ' * 20)}{QA.format('Many.')}</QAPairs></Document>"
SQUAD = json.dumps({"data": [{"paragraphs": [{"context": " C ", "qas": [{"question": "q"}, {"question": "r"}]}]}]})
PAGE = """<html><pre>One &amp; two. </pre><div><strong class="question">Which?</strong></div>
<strong class="question">What
&quot;else&quot;?</strong><pre>Three.</pre><strong class="question">Why?</strong></html>"""
REVIEW = """<review>\n<title>\nBad <b> &amp; worse\n</title>\n<review_text>\none\ntwo\n</review_text>
<rating>\n5.0\n</rating>\n</review>\n"""
SMART = ".I 1\n.T\nA title\n.W\nFirst line\n second.\n.X\n1 2\n.I 2\n.W\nOther.\n"
CLAIM: dict[str, Any] = {"claim_id": 7, "claim": "c", "evidences": [
    {"evidence_id": "a:1", "evidence": "x  y", "evidence_label": "REFUTES"},
    {"evidence_id": "a:2", "evidence": "z", "evidence_label": "NOT_ENOUGH_INFO"},
]}  # fmt: skip
UNKNOWN = {"claim_id": 8, "claim": "d", "evidences": CLAIM["evidences"][1:]}
ARXIV = 'title,summary,comment,authors,category,split\r\nT,S,,a,physics,train\nU,"S\n2",,b,statistics,val\n'
TWEET = "textID,text,sentiment\n"
NLI = '{"sentence1": "a", "sentence2": "b", "label": "?", "level": null}\n'
CASES: dict[str, tuple[Files, dict[str, list[tuple[Any, ...]]]]] = {
    "squad_nqg": (
        {"train/query": "what 's -lrb- x -rrb- ?\n", "train/passage": "y , \n"}, {"train": [("what's (x)?", "y,")]}
    ),
    "squad_dev": (
        {"test": PAGE}, {"test": [("Which?", "One & two."), ('What "else"?', "One & two."), ("Why?", "Three.")]}
    ),
    "medquad": (
        {"train": XML, "test": XML.replace("Many.", "many " * 9), "test_2": "<Document/>"},
        {"train": [("Why & how?", ("So " * 20).strip())]},
    ),
    "nq_open_oracle": (
        {"corpus+queries+qrels": gzip.compress(b'{"question": "q", "ctxs": [{"text": "p "}]}\n')},
        {"test": [("q", "p")]},
    ),
    "climate_fever_sentences": (
        {"corpus+queries+qrels": f"{json.dumps(CLAIM)}\n{json.dumps(UNKNOWN)}\n"},
        {"corpus": [("a:1", "x y"), ("a:2", "z")], "queries": [("7", "c")], "qrels": [("7", "a:1", 1.0)]},
    ),
    "cisi": (
        {"corpus": SMART, "queries": SMART, "qrels": "    1      2\t0\t0.000000\n"},
        {"corpus": [("1", "A title. First line second."), ("2", "Other.")], "queries": [("1", "First line second.")],
         "qrels": [("1", "2", 1.0)]},
    ),
    "wikiqa": (
        {"dev/query": "q\nq\n", "dev/passage": "x\ny", "dev/label": "1\n0\n"},
        {"dev": [("q", "x", "1"), ("q", "y", "0")]},
    ),
    "banking77": (
        {"train": 'text,category\r\n"x ""y""\nz",age_limit\r\n'}, {"train": [('x "y" z', "age_limit")]}
    ),
    "emotion": ({"train": 'text;label_name\n"i;joy\n'}, {"train": [('"i', "joy")]}),
    "tweet_sentiment_extraction": (
        {"train+test": f"{TWEET}A1,t,neutral\nb2,u,positive\n", "test": f"{TWEET}A1,t,neutral\n"},
        {"train": [("u", "positive")], "test": [("t", "neutral")]},
    ),
    "amazon_counterfactual_en": (
        {"dev": 'sentence\tis_counterfactual\n"a ""b"""\t1\n'}, {"dev": [('a "b"', "counterfactual")]}
    ),
    "amazon_reviews": (
        {"train+test/books": f"<data>\n{REVIEW}\n{REVIEW}</data>\n"},
        {"train": [("Bad <b> & worse. one two", "5 stars")] * 2},
    ),
    "clinc150": (
        {"train+dev+test": '{"val": [["x ", "yes"]], "oos_test": [["y", "oos"]]}'}, {"dev": [("x", "yes")]}
    ),
    "trec_question_6": ({"test": b"NUM:date When \xf0 ?\n"}, {"test": [("When \xf0 ?", "NUM")]}),
    "sst2": ({"train": "1 a film .\n"}, {"train": [("a film .", "positive")]}),
    "stackoverflow_titles": (
        {"train+test/text": "A\nC\n", "train+test/label": "1\n20\n"},
        {"train": [("A", "wordpress")], "test": [("C", "magento")]},
    ),
    "arxiv_s2s": ({"train+test": ARXIV}, {"train": [("T", "physics")], "test": [("U", "statistics")]}),
    "arxiv_p2p": ({"train+test": ARXIV}, {"train": [("T. S", "physics")], "test": [("U. S 2", "statistics")]}),
    "stsbenchmark": ({"test": '"He said ""hi"".","a, b",4.5\r\n'}, {"test": [('He said "hi".', "a, b", 4.5)]}),
    "sts12": ({"train": '5\t"a\tb \n'}, {"train": [('"a', "b", 5.0)]}),
    "mrpc": (
        {"train": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t2\t3\t"a\tb\r\n'},
        {"train": [('"a', "b", "1")]},
    ),
    "sick_r": (
        {"test": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\ta\tb\t3\tNEUTRAL\n"},
        {"test": [("a", "b", 2.5)]},
    ),
    "conala": (
        {"test": json.dumps([{"intent": "i", "rewritten_intent": new, "snippet": " s"} for new in (None, "r")])},
        {"test": [("i", "s"), ("r", "s")]},
    ),
    "nl2bash": (
        {"train+test/query": "a\nb", "train+test/passage": "ls 1\nls 0 \n"},
        {"train": [("a", "ls 1")], "test": [("b", "ls 0")]},
    ),
    "django": (
        {"train+test/query": "1 2 3 4\n1 2 3 4\n1", "train+test/passage": f" {'y' * 18}\nelse :\n{'y' * 18}"},
        {"train": [("1 2 3 4", "y" * 18)]},
    ),
    "cosqa": (
        {"corpus": '{"f()": 0, "x": 1}', "queries+qrels": '[{"idx": "q-1", "doc": "how", "retrieval_idx": 0}]'},
        {"corpus": [("0", "f()"), ("1", "x")], "queries": [("q-1", "how")], "qrels": [("q-1", "0", 1.0)]},
    ),
    "jaquad": ({"train": SQUAD}, {"train": [("q", "C"), ("r", "C")]}),
    "xquad_ara": ({"corpus+queries+qrels": SQUAD}, {"test": [("q", "C"), ("r", "C")]}),
    "afqmc": ({"train": "a\u2028b\tc \t1\n"}, {"train": [("a\u2028b", "c", "1")]}),
    "ocnli": ({"train": NLI.replace("?", "neutral") + NLI.replace("?", "-")}, {"train": [("a", "b", "neutral")]}),
    "tweet_sentiment_multilingual_deu": ({"dev/text": "a  b", "dev/label": "2"}, {"dev": [("a b", "positive")]}),
    "korsts": (
        {"test": "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\nm\tM\t2\t3\t1.500\ta\tb"},
        {"test": [("a", "b", 1.5)]},
    ),
}  # fmt: skip
"""Dataset -> files, records; one of every layout."""


@pytest.mark.parametrize("name", CASES)
def test_a_few_lines_of_every_layout_become_these_records(name: str, tmp_path: Path) -> None:
    contents, expected = CASES[name]
    raw = read(tmp_path, READERS[name], contents, labels=ORIGINS[name].labels)
    assert (raw.shape, raw.bad.number, rows(raw)) == (READERS[name].shape, 0, expected)


def test_every_dataset_of_open_text_has_an_entry_and_every_other_layout_was_tried() -> None:
    assert list(READERS) == list(ORIGINS)
    assert len(READERS) == 59
    tried = {id(READERS[name].rows) for name in CASES}
    assert [name for name, reader in READERS.items() if id(reader.rows) not in tried] == []


# --- the other table: broken files ------------------------------------------------------------------------------------

TSV = Reader("labelled", table("\t", "text label"))
PAIRS = Reader("pairs", table("\t", "query passage"))
GRADED = Reader("graded", table("\t", "sentence1 sentence2 score"), scores=(1, 5))
LINES = Reader("pairs", json_rows(lambda value: [value], lines=True))
JUDGED = replace(READERS["cosqa"], rules=())
GOOD = '{"query": "x", "passage": "y"}\n'
BROKEN: list[tuple[Reader, Files, str]] = [
    (TSV, {"train": "x\t1\ny\n"}, "train:2: 1 columns instead of 2"),
    (TSV, {"train": "x\t1\n \t1\n"}, "train:2: text is empty"),
    (TSV, {"train": "x\t1\ny\t2\n"}, "train:2: unknown label '2'"),
    (TSV, {"train": b"x\t1\nu\xff\t1\n"}, "train:2: text holds bytes that are not of the file's encoding"),
    (READERS["banking77"], {"train": "category,text\n1,x\n"}, "the header is not 'text,category': found ['category'"),
    (READERS["banking77"], {"train": 'text,category\n"x,1\nu,2\n'}, "not CSV from line 2: unexpected end of data"),
    (READERS["banking77"], {"train": 'text,category\n"x\ny",1\nz\n'}, "train:4: 1 columns instead of 2"),
    (READERS["sst2"], {"train": "1 x\nx\n"}, "train:2: not of the form (?P<label>"),
    (GRADED, {"train": "x\ty\t0.9\n"}, "train:1: the score 0.9 is not between 1 and 5"),
    (GRADED, {"train": "x\ty\ta\n"}, "train:1: the score is no number: 'a'"),
    (LINES, {"train": GOOD + '{"querry": "x", "passage": "y"}\n'}, "train:2: 'query' is missing, or neither a text"),
    (LINES, {"train": GOOD + '{"query": "x\\ud800", "passage": "y"}\n'}, "train:2: query holds bytes"),
    (LINES, {"train": GOOD + '"x"\n'}, "train:2: expected a JSON object"),
    (LINES, {"train": GOOD + '{"query": NaN, "passage": "y"}\n'}, "NaN is not a JSON number"),
    (LINES, {"train": gzip.compress(GOOD.encode() * 99)[:-9]}, "train: not a whole gzip file"),
    (READERS["jaquad"], {"train": '{"data": [\n{"x": '}, "train: not JSON of the expected layout: JSONDecodeError"),
    (READERS["conala"], {"train": '[{"snippet": "s"}]'}, "record 1: not of the expected layout: KeyError"),
    (READERS["arxiv_s2s"], {"train+test": ARXIV.replace(",train", ",trial")}, "train+test:2: 'trial' is no part"),
    (READERS["squad_nqg"], {"train/query": "a\nb\n", "train/passage": "x\n"}, "of different numbers of lines"),
    (READERS["medquad"], {"train": "<Document>\n<QAPairs>"}, "train: not XML, or with entities"),
    (READERS["squad_dev"], {"test": PAGE[:150]}, "test: the page does not end with </html>"),
    (READERS["amazon_reviews"], {"train+test": REVIEW + REVIEW[:-11]}, "the last <review> is not closed"),
    (READERS["amazon_reviews"], {"train+test": REVIEW.replace("</title>\n", "")}, "review 1: text outside of a field"),
    (READERS["cisi"], {"corpus": "Text\n" + SMART}, "corpus: a record starts with .I and its number"),
    (READERS["cisi"], {"corpus": SMART.replace(".T\n", "")}, "corpus, record 1: there is no .W, or text outside of"),
    (JUDGED, {"corpus": '{"x": 1, "y": 1}'}, "corpus, record 2: the id '1' is given twice"),
    (JUDGED, {"queries": '[{"idx": 1, "doc": "q", "retrieval_idx": 9}]'}, "no query '1', or no document '9'"),
]


@pytest.mark.parametrize(("reader", "contents", "expected"), BROKEN, ids=[message for _, _, message in BROKEN])
def test_what_is_broken_is_an_error_with_file_place_and_reason_or_is_skipped_and_listed(
    reader: Reader, contents: Files, expected: str, tmp_path: Path
) -> None:
    labels = ORIGINS["banking77"].labels if reader is READERS["banking77"] else ["1"]
    message = refused(tmp_path, reader, contents, labels=labels)
    assert "malformed row(s)" in message and "the files of dataset 'tiny'" in message
    assert expected in message
    more = {"test/query": "x", "test/passage": "y"} if reader.rows is parallel else {}
    try:
        raw = read(tmp_path, reader, {**contents, **more}, "skip", labels=labels)
    except DataError as error:
        assert "have other rows than are stated, or none" in str(error)
    else:
        assert any(expected in bad for bad in raw.bad.first)


def test_skipped_lines_are_left_out_and_listed_and_excuse_numbers_but_no_empty_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = read(tmp_path, PAIRS, {"train": "x\t1\ny\nz\t0\n"}, "skip", parts={"train": 3})
    assert rows(raw) == {"train": [("x", "1"), ("z", "0")]}
    assert raw.bad.first == ["train:2: 1 columns instead of 2"]
    assert "left out train:2" in caplog.text
    with pytest.raises(DataError, match="part 'test': 0 rows instead of 1"):
        read(tmp_path, PAIRS, {"train": "x\ty\n", "test": "x\n"}, "skip", parts={"train": 1, "test": 1})
    assert "part 'train': 1 rows instead of 3" in refused(tmp_path, PAIRS, {"train": "x\ty\n"}, parts={"train": 3})


# --- all of open_text -------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden" / "open_text_rows.json"


@needs_mirror
@pytest.mark.parametrize("name", READERS)
def test_no_text_of_open_text_changes_unseen(name: str, pytestconfig: pytest.Config) -> None:
    """After a deliberate change: run this with --regenerate-golden, and raise the version of stage examples."""
    raw = read_dataset(MANIFEST.dataset(name), MIRROR)
    assert raw.bad.number == 0
    assert {part: made.num_rows for part, made in raw.parts.items()} == ORIGINS[name].parts
    for part, made in raw.parts.items():
        assert tuple(made.column_names) == READERS[name].columns[part]
        for column in set(made.column_names) - {"score"}:
            assert all(text and text == text.strip() for text in made[column].to_pylist())
        scores = made["score"].to_pylist() if "score" in made.column_names else []
        assert all(0 <= score <= HIGHEST_SCORE for score in scores)
    lines = {part: json.dumps(made.to_pydict(), ensure_ascii=False) for part, made in raw.parts.items()}
    found = {part: sha256(line.encode()).hexdigest()[:16] for part, line in lines.items()}
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if pytestconfig.getoption("--regenerate-golden"):
        golden[name] = found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    assert found == golden[name], "other records than before"
