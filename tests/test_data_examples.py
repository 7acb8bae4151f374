"""Rows of files are read strictly: the same from every kind of file, every bad one named, none dropped in silence."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boom_utils.data.examples import (
    LONGEST_LINE,
    BadRows,
    TrainingExample,
    count_rows,
    read_examples,
    read_jsonl,
    record_of,
    rows_of,
    write_examples,
    write_jsonl,
)
from boom_utils.data.own import check_files, own_datasets
from boom_utils.errors import DataError

Rows = list[dict[str, Any]]
ROWS: Rows = [{"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}", "more"]} for n in range(10)]
EXAMPLES = [TrainingExample(row["query"], tuple(row["pos"]), tuple(row["neg"])) for row in ROWS]
PAIRS = [TrainingExample(one.query, one.pos) for one in EXAMPLES]
TRIPLETS = [{"anchor": e.query, "positive": e.pos[0], "negative_1": e.neg[0], "negative_2": "more"} for e in EXAMPLES]
GRADED = [{"sentence1": "one", "sentence2": f"two {n}", "score": n / 2} for n in range(10)]
LABELLED = [{"text": f"text {n}", "label": n % 3} for n in range(10)]
SHAPES: dict[str, tuple[Rows, list[Any]]] = {
    "FlagEmbedding": (ROWS, EXAMPLES),
    "FlagEmbedding, no negatives": ([{**row, "neg": []} for row in ROWS], PAIRS),
    "triplets": (TRIPLETS, EXAMPLES),
    "pairs": ([{"question": row["query"], "answer": row["pos"][0]} for row in ROWS], PAIRS),
    "graded": (GRADED, [tuple(row.values()) for row in GRADED]),
    "labelled": (LABELLED, [(row["text"], str(row["label"]), "train") for row in LABELLED]),
}
KINDS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "b.json", "a.csv", "a.tsv.gz", "a.parquet"]
KINDS += ["a.arrow", "b.arrow"]


def save(path: Path, rows: list[Any]) -> Path:
    """Rows in the kind of file that the name says; ``a.json`` is an array, ``b.arrow`` a stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with (pa.ipc.new_stream if path.name[0] == "b" else pa.ipc.new_file)(path, table.schema) as writer:
            writer.write_table(table)
    elif {".csv", ".tsv"}.intersection(path.suffixes):
        cells = [{key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows]
        pd.DataFrame(cells, dtype=object).to_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", index=False)
    else:
        data = b"".join(row + b"\n" if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
        data = json.dumps(rows, indent=1).encode() if path.name == "a.json" else data
        with pa.output_stream(str(path), compression="detect") as stream:
            stream.write(data)
    return path


def read(*files: Path, bad: BadRows | None = None, check: Any = record_of) -> list[Any]:
    return [found for _, found in rows_of(files, check, bad)]


# --- kinds of files and columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape_are_the_same_in_every_kind_of_file(tmp_path: Path, name: str, shape: str) -> None:
    rows, expected = SHAPES[shape]
    path = save(tmp_path / name, rows)
    assert read(path) == expected
    assert count_rows(path) == 10


def test_the_same_rows_are_read_from_every_case_of_bug_reports(cases: Path) -> None:
    expected = read(cases / "data" / "jsonl" / "faq.jsonl")
    assert len(expected) == 160
    for case in sorted((cases / "data").iterdir()):
        ((name, files),) = own_datasets(case).items()
        bare = [TrainingExample(one.query, one.pos) for one in expected]
        assert read(*map(Path, files)) == (bare if name == "pairs" else expected), case.name
        assert check_files(files).rows == 160


@pytest.mark.parametrize("name", KINDS)
def test_columns_of_a_manifest_are_mapped_and_a_missing_one_is_named(tmp_path: Path, name: str) -> None:
    rows = [{"query": r["query"], "document": r["pos"][0], "negatives": r["neg"], "rank": "3"} for r in ROWS]
    check = partial(record_of, columns={"query": "query", "pos": "document", "neg": "negatives"})
    assert read(save(tmp_path / name, rows), check=check) == EXAMPLES
    with pytest.raises(DataError, match="no column document, negatives; found neg, pos, query"):
        read(save(tmp_path / name, ROWS[:1]), check=check)


def test_what_a_row_of_flagembedding_says_about_itself_is_kept_and_other_columns_are_not_needed(tmp_path: Path) -> None:
    row = {**ROWS[0], "prompt": "Find it.", "type": "normal", "pos_scores": [1.0], "neg_scores": None, "category": "x"}
    expected = replace(EXAMPLES[0], prompt="Find it.", type="normal")
    for name in ("a.jsonl", "a.parquet"):
        assert read(save(tmp_path / name, [row])) == [expected]
    assert read_examples(tmp_path / "a.jsonl") == [expected]
    assert write_examples(tmp_path / "again.jsonl", [expected]) == 1
    assert list(read_jsonl(tmp_path / "again.jsonl")[0].items()) == list(row.items())[:5]
    (other,) = read(save(tmp_path / "b.json", [{"question": "q", "answer": "a", "type": 3}]))
    assert (other.type, other.neg) == (None, ())


# --- what is refused --------------------------------------------------------------------------------------------------


BAD_LINES: dict[bytes, str] = {
    b'{"query": "q", "pos": ["p"] "neg": []}': ":29: not JSON: expected `,` or `}`",
    b'{"query": "q", "pos": ["p"], "neg": [],}': ":40: not JSON: trailing comma",
    b'{"query": "a", "pos": ["b"], "ne': ":32: not JSON: EOF",
    b'{"query": "\xff", "pos": ["p"], "neg": []}': ":12: not JSON: invalid unicode",
    b'{"query": "a\\ud800", "pos": ["p"], "neg": []}': ":19: not JSON: unexpected end of hex escape",
    b"[" * 100_000: ":202: not JSON: recursion limit exceeded",
    b'"' + b"x" * (LONGEST_LINE + 10) + b'"': ": longer than 16 MiB",
    b'\xef\xbb\xbf{"query": "q", "pos": ["p"]}': ":1: it starts with a byte order mark",
    b'{"query": "q", "neg": ["p"]}': ": {no columns of a training row in neg, query|pos: Field required}",
    b'{"query": 3, "pos": ["p"], "neg": []}': ": query: Input should be a valid string, found 3",
    b'{"query": "q", "pos": []}': ": pos: Tuple should have at least 1 item",
    b'{"query": "q", "pos": ["p"], "neg": [""]}': ": neg.0: Input should be a text with something in it",
    b'{"text": "a", "label": []}': ": {label: Input should be a valid string|query: Field required}",
    b'{"sentence1": "a", "sentence2": "b", "score": 7}': ": {score: Input should be less than|query: Field required}",
    b'{"query": "a", "pos": "[\'b\']"}': ": {a text that looks like a list must be JSON|pos: Input should be a valid}",
}


@pytest.mark.promise(7)
@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:40].decode(errors="replace"))
def test_a_malformed_line_is_named_by_file_line_column_and_rule(tmp_path: Path, line: bytes) -> None:
    path = save(tmp_path / "rows.jsonl", [*ROWS[:2], line, ROWS[2]])
    place, _, rules = BAD_LINES[line].partition("{")
    readers: tuple[Any, ...] = (read, read_examples)
    for rule, reader in zip(rules.rstrip("}").split("|") if rules else [""] * 2, readers, strict=True):
        with pytest.raises(DataError) as caught:
            reader(path)
        assert f"rows.jsonl:3{place}{rule}" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    bad = BadRows(skip=True)
    assert (read(path, bad=bad), bad.number, count_rows(path)) == (EXAMPLES[:3], 1, 4)


@pytest.mark.promise(7)
def test_skipping_lists_the_first_ten_and_ten_are_enough_for_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, bad = save(tmp_path / "train.jsonl", [ROWS[0], *BAD_LINES, ROWS[1]]), BadRows(skip=True)
    with caplog.at_level(logging.WARNING):
        assert read(path, bad=bad) == EXAMPLES[:2]
    assert bad.number == len(BAD_LINES)
    assert [message.split(":")[1] for message in caplog.messages] == [str(n) for n in range(2, 12)]
    with pytest.raises(DataError, match="10 or more malformed") as caught:
        read(path)
    assert [f"train.jsonl:{n}:" in str(caught.value) for n in (2, 11, 12)] == [True, True, False]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.json", "b.arrow", "no.csv", "a.xlsx"])
def test_files_that_are_cut_off_absent_or_of_no_known_kind_are_errors(tmp_path: Path, name: str) -> None:
    path, said = tmp_path / name, {"no.csv": "there is no file", "a.xlsx": "of no kind that can be read"}.get(name)
    if said is None:
        data, said = save(path, ROWS).read_bytes(), rf"{name} is damaged"
        path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=said):
        read(path)
    with pytest.raises(DataError, match="no training examples"):
        read_examples(save(tmp_path / "empty.jsonl", []))


# --- files of the kit -------------------------------------------------------------------------------------------------


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))
several = st.lists(texts, min_size=1, max_size=3).map(tuple)
examples = st.builds(TrainingExample, texts, several, st.just(()) | several, st.none() | texts, st.none() | texts)


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
