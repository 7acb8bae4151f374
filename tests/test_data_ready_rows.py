"""Ready-made rows from parquet and JSONL: what is read, what is refused, and that no file is ever loaded whole."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_hub_files import raw_corpus

from boom_utils.data.examples import LONGEST_LINE, TrainingExample
from boom_utils.data.manifest import Dataset
from boom_utils.data.manifest_hub import Selection
from boom_utils.data.ready_rows import BadLines, chosen_rows, count_ready, iter_ready, numbered_rows
from boom_utils.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}", "more"]} for n in range(10)
]
EXAMPLES = [TrainingExample(row["query"], tuple(row["pos"]), tuple(row["neg"])) for row in ROWS]


def dataset(**columns: object) -> Dataset:
    raw = raw_corpus()["datasets"][0]
    raw["hub"] |= {"columns": columns} if columns else {}
    return Dataset.model_validate(raw)


def save(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        return path
    data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


KINDS = ["rows.parquet", "rows.jsonl", "rows.jsonl.gz"]


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_every_kind_of_file_are_the_same_examples(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, ROWS)
    assert list(iter_ready(dataset(), [path])) == EXAMPLES
    assert count_ready(path) == 10


@pytest.mark.parametrize("name", KINDS)
def test_drawn_rows_are_those_of_their_numbers_over_all_files(tmp_path: Path, name: str) -> None:
    files = [save(tmp_path / f"a_{name}", ROWS[:6]), save(tmp_path / f"b_{name}", ROWS[6:])]
    wanted = np.array([0, 5, 6, 9])
    assert list(numbered_rows(files, wanted=wanted)) == [(number, EXAMPLES[number]) for number in wanted]
    assert [number for number, _ in numbered_rows(files)] == list(range(10))
    assert list(numbered_rows(files, wanted=np.array([7]))) == [(7, EXAMPLES[7])]


@pytest.mark.parametrize("name", KINDS)
def test_columns_of_cornstack_are_mapped_as_the_manifest_says(tmp_path: Path, name: str) -> None:
    rows = [
        {
            "query": r["query"],
            "document": r["pos"][0],
            "negatives": r["neg"],
            "metadata": {"a": 1},
            "document_rank": "3",
        }
        for r in ROWS
    ]
    made = dataset(query="query", pos="document", neg="negatives")
    assert list(iter_ready(made, [save(tmp_path / name, rows)])) == EXAMPLES


def test_columns_of_sentence_transformers_are_read_from_lines(tmp_path: Path) -> None:
    rows = [
        {"anchor": r["query"], "positive": r["pos"][0], "negative_1": r["neg"][0], "negative_2": "more"} for r in ROWS
    ]
    assert list(iter_ready(dataset(), [save(tmp_path / "rows.jsonl", rows)])) == EXAMPLES


def test_what_a_row_says_about_itself_is_kept_and_scores_are_not_needed(tmp_path: Path) -> None:
    rows = [
        {**ROWS[0], "prompt": "Find it.", "type": "normal", "pos_scores": [1.0], "neg_scores": None, "category": "x"}
    ]
    for name in KINDS:
        (found,) = iter_ready(dataset(), [save(tmp_path / name, rows)])
        assert (found.prompt, found.type) == ("Find it.", "normal")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"query": None}, "query must be a string, found null"),
        ({"query": "  "}, "query is an empty string"),
        ({"pos": []}, "pos is empty"),
        ({"pos": None}, "pos must be a list of strings, found null"),
        ({"neg": ["a", None]}, "neg[1] must be a string, found null"),
        ({"neg": [""]}, "neg[0] is an empty string"),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_a_malformed_row_is_an_error_with_file_row_and_rule_or_left_out(
    tmp_path: Path, name: str, change: dict[str, Any], rule: str
) -> None:
    path = save(tmp_path / name, [*ROWS[:3], {**ROWS[3], **change}, *ROWS[4:]])
    with pytest.raises(DataError) as caught:
        list(iter_ready(dataset(), [path]))
    assert f"{name}:4: {rule}" in str(caught.value)
    bad = BadLines("skip")
    assert list(iter_ready(dataset(), [path], "skip", bad)) == EXAMPLES[:3] + EXAMPLES[4:]
    assert (bad.number, [str(one).partition(": ")[0] for one in bad.first]) == (1, [f"{name}:4"])


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"query": "a", "pos": ["b"]}\n', "missing key neg"),
        (b'{"query": NaN, "pos": ["b"], "neg": []}\n', "NaN is not a JSON number"),
        (b"[1]\n", "expected a JSON object"),
        (b"\n", "empty line"),
        (b'{"query": "\xff"}\n', "not UTF-8"),
        (b'{"query": "a", "pos": ["b"], "ne', "not JSON"),
        (b'"' + b"x" * (LONGEST_LINE + 10) + b'"\n', "longer than 16 MiB"),
    ],
)
def test_a_malformed_line_is_an_error_with_file_line_and_rule(tmp_path: Path, line: bytes, rule: str) -> None:
    path = save(tmp_path / "rows.jsonl", [*ROWS[:2], line])
    with pytest.raises(DataError) as caught:
        list(iter_ready(dataset(), [path]))
    assert "rows.jsonl:3" in str(caught.value)
    assert rule in str(caught.value)
    assert count_ready(path) == 3


def test_a_missing_column_of_a_mapping_is_named(tmp_path: Path) -> None:
    made = dataset(query="query", pos="document", neg="negatives")
    for name, said in (("a.jsonl", "missing key document; found neg, pos, query"), ("a.parquet", "no column document")):
        with pytest.raises(DataError, match=said):
            list(iter_ready(made, [save(tmp_path / name, ROWS[:1])]))


def test_ten_malformed_rows_are_enough(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", [{"query": n} for n in range(1000)])
    with pytest.raises(DataError, match="10 or more malformed") as caught:
        list(iter_ready(dataset(), [path]))
    assert "rows.jsonl:10" in str(caught.value)
    assert "rows.jsonl:11" not in str(caught.value)


def test_a_parquet_file_of_other_columns_or_types_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [{"query": 3, "pos": ["a"]}])
    with pytest.raises(DataError) as caught:
        list(iter_ready(dataset(), [path]))
    assert "column query is int64, not text" in str(caught.value)
    assert "no column neg; there are query, pos" in str(caught.value)


def test_cut_off_files_and_files_that_are_not_there_are_errors(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.jsonl.gz"):
        path = save(tmp_path / name, ROWS)
        path.write_bytes(path.read_bytes()[:-20])
        for read in (lambda: count_ready(path), lambda: list(iter_ready(dataset(), [path]))):  # noqa: B023
            with pytest.raises(DataError, match=name):
                read()
    for name in KINDS:
        with pytest.raises(DataError, match="there is no file"):
            list(iter_ready(dataset(), [tmp_path / "no" / name]))
    with pytest.raises(DataError, match="of no kind that can be read"):
        count_ready(tmp_path / "rows.csv")


def test_damaged_bytes_inside_a_parquet_file_are_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.parquet", ROWS)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="no whole parquet file"):
        list(iter_ready(dataset(), [path]))


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    text = "word " * 400

    def peak(count: int, name: str) -> int:
        path = save(tmp_path / f"{count}_{name}", [{**ROWS[0], "pos": [f"{text} {n}"]} for n in range(count)])
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        most = 0
        for _ in iter_ready(dataset(), [path]):
            most = max(most, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most + python

    for name in KINDS:
        small, large = peak(600, name), peak(6000, name)
        assert large < 2 * small + 2**20, name


def test_rows_are_chosen_by_rule_and_seed_and_the_limit_draws_among_them() -> None:
    first = Selection(rows=100, rule="first", rows_source="stated", rule_source="ours")
    seeded = first.model_copy(update={"rule": "seeded"})
    assert chosen_rows(50, first, None, 1, 2) is None
    assert chosen_rows(50, None, 50, 1, 2) is None
    np.testing.assert_array_equal(chosen_rows(1000, first, None, 1, 2), np.arange(100))
    drawn = chosen_rows(100_000, seeded, None, 1, 2)
    assert drawn is not None
    assert len(np.unique(drawn)) == 100
    assert (np.diff(drawn) > 0).all()
    assert drawn.max() > 50_000
    np.testing.assert_array_equal(drawn, chosen_rows(100_000, seeded, None, 1, 3))
    assert not np.array_equal(drawn, chosen_rows(100_000, seeded, None, 2, 3))
    limited = chosen_rows(100_000, seeded, 10, 1, 2)
    assert limited is not None
    assert len(limited) == 10
    assert set(limited) <= set(drawn)
    assert not np.array_equal(limited, chosen_rows(100_000, seeded, 10, 1, 3))
