"""Parsers of file formats: good files, and every way a file can be malformed, named with its line."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from boom_utils.data.file_formats import FileFormat
from boom_utils.data.parsers import BrokenFileError, Row, parse

FORMAT: TypeAdapter[Any] = TypeAdapter(FileFormat)


def rows(content: str | bytes, **form: Any) -> list[Row]:
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    return list(parse({"": raw}, FORMAT.validate_python(form)))


def values(content: str | bytes, **form: Any) -> list[Any]:
    found = rows(content, **form)
    assert not [row.rule for row in found if row.rule]
    return [row.values for row in found]


def broken(content: str | bytes, **form: Any) -> str:
    with pytest.raises(BrokenFileError) as caught:
        rows(content, **form)
    return f"{caught.value.place} {caught.value.rule}"


TSV = {"kind": "table", "delimiter": "\t", "quoting": "none", "columns": ["a", "b"], "header": False}
CSV = {"kind": "table", "delimiter": ",", "quoting": "double", "columns": ["a", "b"], "header": True}


def test_a_table_without_quoting_keeps_quotes_and_other_line_separators_as_text() -> None:
    assert values('"x\ty"\r\nu\u2028v\t\x0bw\n', **TSV) == [{"a": '"x', "b": 'y"'}, {"a": "u\u2028v", "b": "\x0bw"}]


def test_a_quoted_table_reads_line_breaks_and_says_on_which_line_a_row_begins() -> None:
    found = rows('a,b\r\n"x ""y""\nz",1\r\nu,2\r\n', **CSV)
    assert [(row.place, dict(row.values)) for row in found] == [
        (":2", {"a": 'x "y"\nz', "b": "1"}),
        (":4", {"a": "u", "b": "2"}),
    ]


def test_rows_with_too_few_or_too_many_columns_are_named_with_their_line() -> None:
    found = rows("x\ty\nz\nu\tv\tw\n\n", **TSV)
    assert [(row.place, row.rule) for row in found if row.rule] == [
        (":2", "1 columns instead of 2"),
        (":3", "3 columns instead of 2"),
        (":4", "1 columns instead of 2"),
    ]


def test_a_file_cut_off_inside_quotes_is_malformed() -> None:
    (row,) = rows('a,b\n"x,1\nu,2\n', **CSV)
    assert (row.place, row.rule) == (":2", "not CSV: unexpected end of data")


def test_text_after_a_closing_quote_is_malformed_and_the_next_row_is_still_read() -> None:
    first, second = rows('a,b\n"x"y,1\nu,2\n', **CSV)
    assert first.place == ":2"
    assert "not CSV" in str(first.rule)
    assert second.values == {"a": "u", "b": "2"}


def test_another_header_than_the_manifest_states_breaks_the_file() -> None:
    assert "the header is not a, b: found b, a" in broken("b,a\n1,2\n", **CSV)
    assert "the header is not a, b" in broken("", **CSV)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_of_another_encoding_come_as_lone_surrogates_never_as_other_letters(encoding: str) -> None:
    (row,) = values(b"x\t\xf0y\n", **{**TSV, "encoding": encoding})
    assert row["b"] == "\udcf0y"
    assert values(b"x\t\xf0y\n", **{**TSV, "encoding": "latin-1"})[0]["b"] == "ðy"


def test_a_byte_order_mark_is_only_read_where_the_manifest_allows_it() -> None:
    assert "byte order mark" in broken(b"\xef\xbb\xbfx\ty\n", **TSV)
    assert values(b"\xef\xbb\xbfx\ty\n", **{**TSV, "encoding": "utf-8-sig"})[0]["a"] == "x"


def test_parallel_files_go_line_by_line_whether_the_last_line_ends_or_not() -> None:
    found = parse({"text": b"one\ntwo", "label": b"1\n2\n"}, FORMAT.validate_python({"kind": "lines"}))
    assert [dict(row.values) for row in found] == [{"text": "one", "label": "1"}, {"text": "two", "label": "2"}]


def test_parallel_files_of_different_lengths_break_as_a_whole() -> None:
    form = FORMAT.validate_python({"kind": "lines"})
    with pytest.raises(BrokenFileError, match="different lengths: text 3, label 2 lines") as caught:
        list(parse({"text": b"1\n2\n3\n", "label": b"1\n2\n"}, form))
    assert caught.value.place == ":3"


def test_a_pattern_takes_lines_apart_and_names_those_it_does_not_match() -> None:
    form = {"kind": "pattern", "pattern": r"(?P<label>[A-Z]+):[a-z]+ (?P<text>.+)"}
    first, second = rows("NUM:date When ?\nnum:date When ?\n", **form)
    assert first.values == {"label": "NUM", "text": "When ?"}
    assert (second.place, second.rule) == (":2", "not of the form the manifest states")


# --- JSON -------------------------------------------------------------------------------------------------------------

DOCUMENT = {"kind": "json", "layout": "document"}
JSON_LINES = {"kind": "json", "layout": "lines"}


def test_nested_lists_become_rows_with_what_stands_beside_them() -> None:
    content = json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [{"q": 1}, {"q": 2}]}]}]})
    assert values(content, **DOCUMENT, each=["data", "paragraphs", "qas"]) == [
        {"title": "T", "context": "C", "q": 1},
        {"title": "T", "context": "C", "q": 2},
    ]


def test_entries_of_an_object_and_items_of_lists_have_names() -> None:
    assert values('{"train": [["x", "y"]]}', **DOCUMENT, entries_as=["part", "rows"], each=["rows"]) == [
        {"part": "train", "0": "x", "1": "y"}
    ]


def test_a_missing_list_is_named_with_its_record() -> None:
    found = rows('[{"list": [{"x": 1}]}, {"lists": []}]', **DOCUMENT, each=["list"])
    assert [(row.place, row.rule) for row in found] == [
        (", record 1", None),
        (", record 2", "'list' is not a list, or is missing"),
    ]


def test_a_cut_off_document_breaks_the_file_with_its_line() -> None:
    assert broken('[{"x": 1},\n{"x": ', **DOCUMENT).startswith(":2 not JSON")
    assert "NaN is not a JSON number" in broken('[{"x": NaN}]', **DOCUMENT)
    assert "nested too deeply" in broken("[" * 200_000, **DOCUMENT)


def test_malformed_lines_are_named_and_the_others_are_read() -> None:
    found = rows('{"x": "1"}\n\n{"x": \n{"x": NaN}\n"text"\n{"x": "2"}\n', **JSON_LINES)
    assert [row.place for row in found if row.rule is None] == [":1", ":6"]
    rules = [f"{row.place} {row.rule}" for row in found if row.rule]
    for rule, part in zip(rules, ("empty line", "not JSON", "NaN", "expected a JSON object"), strict=True):
        assert part in rule


def test_gzip_is_unpacked_and_a_truncated_or_damaged_one_is_refused() -> None:
    packed = gzip.compress(b'{"x": "1"}\n' * 500)
    form = {**JSON_LINES, "compression": "gzip"}
    assert len(values(packed, **form)) == 500
    for wrong in (packed[:-9], packed[:20], b'{"x": "1"}\n', packed[:-6] + b"\0" * 6):
        assert "not a whole gzip file" in broken(wrong, **form)


# --- formats of one data set ------------------------------------------------------------------------------------------

XML = {"kind": "xml", "record": "QAPairs/QAPair"}
PAIR = "<QAPair><Question>Why &amp; how?</Question><Answer>So.</Answer></QAPair>"


def test_xml_elements_become_rows_of_their_children() -> None:
    assert values(f"<Document><QAPairs>{PAIR}</QAPairs></Document>", **XML) == [
        {"Question": "Why & how?", "Answer": "So."}
    ]


def test_xml_that_is_cut_off_or_declares_entities_is_refused() -> None:
    assert broken(f"<Document>\n<QAPairs>{PAIR}", **XML).startswith(":2 not XML")
    assert "not XML" in broken(b"<Document><QAPairs>\xff</QAPairs></Document>", **XML)
    bomb = f'<!DOCTYPE x [<!ENTITY a "b">]><Document><QAPairs>{PAIR}</QAPairs></Document>'
    assert "declares entities" in broken(bomb, **XML)


def test_xml_without_a_record_gives_no_row() -> None:
    assert rows("<Document><QAPairs></QAPairs></Document>", **XML) == []


REVIEW = "<review>\n<title>\nBad <b> & worse\n</title>\n<review_text>\none\ntwo\n</review_text>\n</review>\n"


def test_reviews_are_read_although_they_are_not_xml() -> None:
    found = values(f"<data>\n{REVIEW}\n{REVIEW}</data>\n", kind="reviews")
    assert found == [{"title": "Bad <b> & worse", "review_text": "one\ntwo"}] * 2


def test_reviews_that_are_cut_off_or_run_into_each_other_are_malformed() -> None:
    assert broken(REVIEW + REVIEW.replace("</review>\n", ""), kind="reviews").startswith(":10 the last <review>")
    found = rows(REVIEW.replace("</title>\n", "") + REVIEW, kind="reviews")
    assert [(row.place, row.rule) for row in found] == [(":1", "<title> is not closed"), (":9", None)]
    assert [row.rule for row in rows("stray\n" + REVIEW, kind="reviews")] == ["text outside of a field", None]
    (unopened,) = rows("</review>\n", kind="reviews")
    assert unopened.rule


SMART = ".I 1\n.T\nA title\n.W\nFirst line\n second.\n.X\n1 2\n.I 2\n.W\nOther.\n"


def test_smart_records_keep_their_fields_apart() -> None:
    assert values(SMART, kind="smart") == [
        {"I": "1", "T": "A title", "W": "First line\n second.", "X": "1 2"},
        {"I": "2", "W": "Other."},
    ]


def test_smart_text_outside_of_a_record_or_a_field_is_malformed() -> None:
    assert broken("Text\n" + SMART, kind="smart").startswith(":1 a record starts with .I")
    found = rows(SMART.replace(".T\n", ""), kind="smart")
    assert [(row.place, row.rule) for row in found if row.rule] == [(":2", "text outside of a field")]


PAGE = """<html><body><div class="para-wrap"><pre>One &amp; two.</pre><div class="qa-wrap" data-id="a1"><p>
<strong class="question">Which?</strong><span class="answer">One</span></p></div><div class="qa-wrap" data-id="a2">
<strong class="question">What &quot;else&quot;?</strong></div></div><div class="para-wrap"><pre>Three.</pre>
<div class="qa-wrap" data-id="a3"><strong class="question">Why?</strong></div></div></body></html>"""


def test_pages_give_every_question_with_the_paragraph_around_it() -> None:
    found = [(row["id"], row["context"], row["question"]) for row in values(PAGE, kind="squad_pages")]
    assert found == [
        ("a1", "One & two.", "Which?"),
        ("a2", "One & two.", 'What "else"?'),
        ("a3", "Three.", "Why?"),
    ]


def test_a_page_that_is_cut_off_or_another_page_is_refused() -> None:
    assert "cut off" in broken(PAGE[: len(PAGE) // 2], kind="squad_pages")
    assert "no page of the SQuAD explorer" in broken("<html><p>Not found</p></html>", kind="squad_pages")
