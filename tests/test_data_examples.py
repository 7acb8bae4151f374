"""Training JSONL is read strictly: every bad line is named, none is dropped in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.examples import (
    LONGEST_LINE,
    TrainingExample,
    batches,
    count_rows,
    read_examples,
    read_jsonl,
    write_examples,
    write_jsonl,
)
from boom_utils.errors import DataError

GOOD = {"query": "q", "pos": ["p"], "neg": ["n", "m"], "prompt": "Find it.", "type": "normal"}
BAD_LINES = {
    "bad JSON": (b'{"query": "q", "pos": ["p"] "neg": []}', ":2:29: not JSON"),
    "trailing comma": (b'{"query": "q", "pos": ["p"], "neg": [],}', ":2:40: not JSON"),
    "two objects": (b'{"query": "q", "pos": ["p"], "neg": []} {}', ":2:41: not JSON: Extra data"),
    "empty line": (b"", ":2:1: empty line"),
    "missing key": (b'{"query": "q", "neg": ["p"]}', ":2: missing key pos; found neg, query"),
    "no key": (b"{}", ":2: missing key query, pos; found no key"),
    "query of wrong type": (b'{"query": 3, "pos": ["p"], "neg": []}', ":2: query must be a string, found a number"),
    "pos of wrong type": (b'{"query": "q", "pos": "p", "neg": []}', ":2: pos must be a list of strings"),
    "neg of wrong type": (b'{"query": "q", "pos": ["p"], "neg": [null]}', ":2: neg[0] must be a string, found null"),
    "empty pos": (b'{"query": "q", "pos": [], "neg": []}', ":2: pos is empty"),
    "empty negative": (b'{"query": "q", "pos": ["p"], "neg": [""]}', ":2: neg[0] is an empty string"),
    "blank query": (b'{"query": " ", "pos": ["p"], "neg": []}', ":2: query is an empty string"),
    "prompt of wrong type": (b'{"query": "q", "pos": ["p"], "neg": [], "prompt": 1}', ":2: prompt must be a string"),
    "lone surrogate": (b'{"query": "a\\ud800", "pos": ["p"], "neg": []}', ":2: query holds a lone surrogate"),
    "not UTF-8": (b'{"query": "\xff", "pos": ["p"], "neg": []}', ":2:12: not UTF-8"),
    "not an object": (b'["q"]', ":2:1: expected a JSON object, found a list"),
    "NaN": (b'{"query": NaN}', ":2: not JSON: NaN"),
    "nested too deeply": (b"[" * 100_000, ":2: not JSON"),
}


def save(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.promise(7)
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_malformed_line_is_named_by_file_line_and_rule(kind: str, tmp_path: Path) -> None:
    line, expected = BAD_LINES[kind]
    path = save(tmp_path / "train.jsonl", json.dumps(GOOD).encode(), line)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert f"train.jsonl{expected}" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.promise(7)
def test_a_byte_order_mark_is_refused_and_crlf_is_read(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    with pytest.raises(DataError, match=r"bom\.jsonl:1:1: the file starts with a byte order mark"):
        read_examples(save(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + line))
    assert len(read_examples(save(tmp_path / "crlf.jsonl", line + b"\r", line + b"\r"))) == 2


@pytest.mark.promise(7)
def test_an_overlong_line_is_refused_without_being_parsed(tmp_path: Path) -> None:
    path = save(tmp_path / "long.jsonl", b'{"query": "' + b"a" * (LONGEST_LINE + 1) + b'"}')
    with pytest.raises(DataError, match=r"long\.jsonl:1: longer than 16 MiB"):
        read_examples(path)


@pytest.mark.promise(7)
def test_skipping_lists_the_skipped_lines_and_ten_are_enough_for_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = json.dumps(GOOD).encode(), [line for line, _ in BAD_LINES.values()]
    path = save(tmp_path / "train.jsonl", good, *bad, good)
    with caplog.at_level(logging.WARNING):
        assert (
            read_examples(path, on_bad_line="skip")
            == [TrainingExample("q", ("p",), ("n", "m"), "Find it.", "normal")] * 2
        )
    assert [message.split(":")[1] for message in caplog.messages] == [str(n) for n in range(2, 12)]
    with pytest.raises(DataError, match="10 or more malformed") as caught:
        read_examples(path)
    assert [f"train.jsonl:{n}" in str(caught.value) for n in (2, 11, 12)] == [True, True, False]


def test_a_file_without_a_good_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training examples"):
        read_examples(save(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="no training examples"):
        read_examples(save(tmp_path / "bad.jsonl", b"{}"), on_bad_line="skip")
    with pytest.raises(DataError, match="there is no file"):
        read_examples(tmp_path / "absent.jsonl")


def test_batches_keep_the_order_and_take_no_more_than_they_give() -> None:
    left = iter(range(5))
    cut = batches(left, 2)
    assert (next(cut), next(left)) == ([0, 1], 2)
    assert list(cut) == [[3, 4]]
    assert list(batches([], 2)) == []


def test_columns_of_the_published_corpora_are_read_and_extra_ones_ignored(tmp_path: Path) -> None:
    row = {**GOOD, "category": "normal", "pos_scores": [1.0], "neg_scores": [0.1, 0.2]}
    example = TrainingExample("q", ("p",), ("n", "m"), "Find it.", "normal")
    assert read_examples(save(tmp_path / "bge.jsonl", json.dumps(row).encode())) == [example]
    assert example.as_row() == GOOD


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
examples = st.builds(
    TrainingExample,
    query=texts,
    pos=st.lists(texts, min_size=1, max_size=3).map(tuple),
    neg=st.lists(texts, max_size=3).map(tuple),
    prompt=st.none() | texts,
    type=st.none() | st.just("symmetric_sts"),
)


@given(st.lists(examples, min_size=1, max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[TrainingExample]) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    assert write_examples(path, rows) == len(rows) == count_rows(path)
    assert read_examples(path) == rows


def test_jsonl_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, [{"b": "é\u2028", "a": 1}]) == 1
    assert path.read_bytes() == '{"b": "é\u2028", "a": 1}\n'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(path, [{"a": 1}, {"a": float("nan")}])
    assert read_jsonl(path) == [{"b": "é\u2028", "a": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_read_jsonl_names_the_malformed_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2:2"):
        read_jsonl(save(tmp_path / "rows.jsonl", b"{}", b"{,}"))
