"""Rows that users bring: every kind of file and of columns, what is refused, held out, mined, dropped and reported."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HANGS, QUESTIONS, SHARED
from hub_server import HubServer

from boom_utils.config import CorpusConfig
from boom_utils.data import own as own_reader
from boom_utils.data.convert import make_examples
from boom_utils.data.examples import LONGEST_LINE, TrainingExample, hash_share, read_examples, read_jsonl
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.data.own import check_files, count_rows_of, numbered_rows, own_datasets
from boom_utils.data.own_examples import chosen_rows, own_fingerprint
from boom_utils.errors import ConfigError, DataError, DownloadError

Rows = list[dict[str, Any]]
ROWS: Rows = [{"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}", "more"]} for n in range(10)]
EXAMPLES = [TrainingExample(row["query"], tuple(row["pos"]), tuple(row["neg"])) for row in ROWS]
PAIRS = [TrainingExample(one.query, one.pos) for one in EXAMPLES]
SHAPES: dict[str, tuple[Rows, list[Any]]] = {
    "FlagEmbedding": (ROWS, EXAMPLES),
    "FlagEmbedding, no negatives": ([{**row, "neg": []} for row in ROWS], PAIRS),
    "triplets": (
        [{"anchor": e.query, "positive": e.pos[0], "negative_1": e.neg[0], "negative_2": e.neg[1]} for e in EXAMPLES],
        EXAMPLES,
    ),
    "pairs": ([{"question": row["query"], "answer": row["pos"][0]} for row in ROWS], PAIRS),
    "graded": (
        [{"sentence1": f"one {n}", "sentence2": f"two {n}", "score": n / 2, "id": n} for n in range(10)],
        [(f"one {n}", f"two {n}", n / 2) for n in range(10)],
    ),
    "labelled": (
        [{"text": f"text {n}", "label": n % 3} for n in range(10)],
        [(f"text {n}", str(n % 3)) for n in range(10)],
    ),
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
    elif ".csv" in path.suffixes or ".tsv" in path.suffixes:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as handle:
            lines = csv.writer(handle, delimiter="\t" if ".tsv" in path.suffixes else ",")
            cells = [[json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows]
            lines.writerows([list(rows[0]), *cells])
    else:
        data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
        data = json.dumps(rows, indent=1).encode() if path.name == "a.json" else data
        with pa.output_stream(str(path), compression="detect") as stream:
            stream.write(data)
    return path


def read(*files: Path, columns: Mapping[Any, str] = {}, wanted: Any = None) -> list[Any]:
    return [found for _, found in numbered_rows(files, columns, wanted)]


# --- kinds of files and columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape_are_the_same_in_every_kind_of_file(tmp_path: Path, name: str, shape: str) -> None:
    rows, expected = SHAPES[shape]
    path = save(tmp_path / name, rows)
    assert read(path) == expected
    assert count_rows_of(path) == 10


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow"])
def test_drawn_rows_are_those_of_their_numbers_over_all_files(tmp_path: Path, name: str) -> None:
    files = [save(tmp_path / "x" / name, ROWS[:6]), save(tmp_path / "y" / name, ROWS[6:])]
    for numbers in ([0, 5, 6, 9], [7], []):
        wanted = np.isin(np.arange(10), numbers)
        assert list(numbered_rows(files, wanted=wanted)) == [(number, EXAMPLES[number]) for number in numbers]
    assert [number for number, _ in numbered_rows(files)] == list(range(10))


@pytest.mark.parametrize("text", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_every_type_of_text_is_read(tmp_path: Path, text: pa.DataType) -> None:
    values = pa.string() if pa.types.is_dictionary(text) else text
    lists = {key: pa.array([row[key] for row in ROWS], pa.large_list(values)) for key in ("pos", "neg")}
    table = pa.table({"query": pa.array([row["query"] for row in ROWS]).cast(text), **lists})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == EXAMPLES


@pytest.mark.parametrize("name", KINDS)
def test_columns_of_a_manifest_are_mapped_and_a_missing_one_is_named(tmp_path: Path, name: str) -> None:
    rows = [{"query": r["query"], "document": r["pos"][0], "negatives": r["neg"], "rank": "3"} for r in ROWS]
    columns = {"query": "query", "pos": "document", "neg": "negatives"}
    assert read(save(tmp_path / name, rows), columns=columns) == EXAMPLES
    (bad,) = read(save(tmp_path / name, ROWS[:1]), columns=columns)
    assert "missing key document, negatives; found neg, pos, query" in bad.rule


def test_what_a_row_of_flagembedding_says_about_itself_is_kept_and_other_columns_are_not_needed(tmp_path: Path) -> None:
    row = {**ROWS[0], "prompt": "Find it.", "type": "normal", "pos_scores": [1.0], "neg_scores": None, "category": "x"}
    for name in ("a.jsonl", "a.parquet"):
        (found,) = read(save(tmp_path / name, [row]))
        assert (found.prompt, found.type) == ("Find it.", "normal")
    (other,) = read(save(tmp_path / "b.json", [{"question": "q", "answer": "a", "type": 3}]))
    assert (other.type, other.neg) == (None, ())


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    text = "word " * 400

    def peak(count: int, name: str) -> int:
        path = save(tmp_path / str(count) / name, [{**ROWS[0], "pos": [f"{text} {n}"]} for n in range(count)])
        before, most = pa.total_allocated_bytes(), 0
        tracemalloc.start()
        for _ in numbered_rows([path]):
            most = max(most, pa.total_allocated_bytes() - before)
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most + python

    for name in ("a.jsonl", "a.jsonl.zst", "a.csv", "a.parquet"):
        small, large = peak(600, name), peak(6000, name)
        assert large < 2 * small + 2**20, name


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"query": None}, "query must be a string, found null"),
        ({"query": "  "}, "query is an empty string"),
        ({"pos": []}, "pos is empty: at least one relevant text is needed"),
        ({"neg": ["a", None]}, "neg[1] must be a string, found null"),
        ({"neg": [""]}, "neg[0] is an empty string"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_malformed_row_is_named_by_file_row_and_rule(
    tmp_path: Path, name: str, change: dict[str, Any], rule: str
) -> None:
    path = save(tmp_path / name, [*ROWS[:3], {**ROWS[3], **change}, *ROWS[4:]])
    found = read(path)
    assert found[:3] + found[4:] == EXAMPLES[:3] + EXAMPLES[4:]
    assert str(found[3]) == f"{name}:{5 if name == 'a.csv' else 4}: {rule}"


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"query": "a"}\n', "3: no columns of a training row in query; expected query and pos"),
        (b'{"text": "a", "label": []}\n', "3: label must be a text or a number"),
        (b'{"sentence1": "a", "sentence2": "b", "score": 7}\n', "3: score must be a number from 0 to 5"),
        (b'{"query": "a", "pos": "[\'b\']"}\n', "3: a text that looks like a list must be JSON"),
        (b'{"query": NaN, "pos": ["b"], "neg": []}\n', "3: not JSON: NaN is not a JSON number"),
        (b"[1]\n", "3:1: expected a JSON object"),
        (b"\n", "3:1: empty line"),
        (b'{"query": "a", "pos": ["b"], "ne', "3:30: not JSON"),
        (b'"' + b"x" * (LONGEST_LINE + 10) + b'"\n', "3: longer than 16 MiB"),
    ],
)
def test_a_malformed_line_is_named_by_file_line_column_and_rule(tmp_path: Path, line: bytes, rule: str) -> None:
    path = save(tmp_path / "rows.jsonl", [*ROWS[:2], line])
    assert f"rows.jsonl:{rule}" in str(read(path)[2])
    assert count_rows_of(path) == 3


def test_cells_that_do_not_fit_the_header_are_a_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("anchor,positive\na,b\nc\nd,e,f\n\ng,h\n")
    found = [str(one) for one in read(tmp_path / "a.csv")]
    assert found[1:3] == [
        f"a.csv:{n}: {cells} cells, the header has 2 different names" for n, cells in ((3, 1), (4, 3))
    ]
    assert "query='g'" in found[3]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.json", "b.arrow", "no.csv", "a.xlsx"])
def test_files_that_are_cut_off_absent_or_of_no_known_kind_are_errors(tmp_path: Path, name: str) -> None:
    path, said = tmp_path / name, {"no.csv": "there is no file", "a.xlsx": "of no kind that can be read"}.get(name)
    if said is None:
        data, said = save(path, ROWS).read_bytes(), rf"(damaged|no JSON array)(.|\n)*{name}"
        path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=said):
        read(path)


# --- files, folders and hub datasets ----------------------------------------------------------------------------------


def test_a_folder_is_a_dataset_a_file_and_what_is_no_data_is_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("faq.jsonl.gz", "wiki-00000-of-00002.parquet", "wiki-00001-of-00002.parquet"):
        save(tmp_path / name, ROWS)
    for name in ("faq.jsonl.bak", "README.md", "state.json"):
        (tmp_path / name).write_text("{}")
    with caplog.at_level(logging.WARNING):
        found = own_datasets(tmp_path)
    assert {name: len(files) for name, files in found.items()} == {"faq": 1, "wiki": 2}
    assert "left out as no data: README.md, faq.jsonl.bak, state.json" in caplog.text
    assert own_datasets(str(tmp_path / "faq.jsonl.gz")) == {"faq": [str(tmp_path / "faq.jsonl.gz")]}
    assert list(own_datasets(tmp_path, ["wiki"])) == ["wiki"]
    with pytest.raises(ConfigError, match=r"(?s)datasets are missing.*no wikki; did you mean 'wiki'"):
        own_datasets(tmp_path, ["wikki"])
    for place in (tmp_path / "nowhere", tmp_path / "README.md"):
        with pytest.raises(ConfigError, match="there are no training files"):
            own_datasets(place)


def test_a_file_without_one_good_row_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "faq.jsonl", [{"frage": "was?"}, b"{\n"])
    with pytest.raises(DataError, match=r"(?s)no good row in faq\.jsonl.*faq\.jsonl:1: no columns of.*faq\.jsonl:2:2"):
        check_files([str(path)])
    found = check_files([str(save(tmp_path / "b.jsonl", [*ROWS, b"{}\n", {"anchor": "a", "positive": "b"}]))])
    assert (found.kind, found.rows, found.without_negatives, found.bad.number) == ("examples", 11, 1, 1)
    assert found.first == EXAMPLES[0]


def test_a_hub_dataset_is_its_training_files_at_one_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    path = "hf://datasets/owner/faq@" + "a" * 40 + "/data/train.parquet"
    splits = {"train": [path], "test": ["hf://datasets/owner/faq@aa/data/test.parquet"]}
    asked = []

    def look(*name: Any) -> Any:
        asked.append(name)
        return SimpleNamespace(config=SimpleNamespace(data_files=splits))

    def snapshot(repo: str, files: list[str], revision: str, cached: bool = False) -> Path:
        asked.append((repo, *files, revision, cached))
        if not cached:
            save(tmp_path / "data" / "train.parquet", ROWS)
        return tmp_path

    monkeypatch.setattr(datasets, "load_dataset_builder", look)
    monkeypatch.setattr(own_reader, "hub_snapshot", snapshot)
    assert own_datasets("owner/faq:pair") == {"faq-pair": [path]}
    assert check_files([path]).rows == 10
    assert check_files([path]).rows == 10
    file = ("owner/faq", "data/train.parquet", "a" * 40)
    assert asked == [("owner/faq", "pair"), (*file, True), (*file, False), (*file, True)]
    monkeypatch.undo()
    with pytest.raises(DownloadError, match="hub dataset owner/faq cannot be looked at"):
        own_datasets("owner/faq")


@pytest.mark.promise(36)
def test_no_text_of_a_server_is_shown_where_a_hub_dataset_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise ConnectionError("https://files.example/x?Signature=canary")

    monkeypatch.setattr("datasets.load_dataset_builder", refused)
    with pytest.raises(DownloadError, match="ConnectionError") as caught:
        own_datasets("owner/faq")
    assert "canary" not in str(caught.value)


def test_rows_are_chosen_by_seed_and_the_limit_draws_among_them() -> None:
    assert [chosen_rows(50, *how).tolist() for how in ((100, None, 1, 2), (None, 50, 1, 2))] == [list(range(50))] * 2
    drawn, again, other = (chosen_rows(100_000, 100, None, *seeds).tolist() for seeds in ((1, 2), (1, 3), (2, 3)))
    assert drawn == again == sorted(set(drawn)) != other
    limited = chosen_rows(100_000, 100, 10, 1, 2).tolist()
    assert (len(drawn), len(limited), set(limited) <= set(drawn)) == (100, 10, True)


# --- the stage --------------------------------------------------------------------------------------------------------


def words(*of: object) -> str:
    """Two words that no other text of the corpus is like."""
    digest = hashlib.sha256(repr(of).encode()).hexdigest()
    return f"{digest[:12]} {digest[12:24]}"


class Own:
    """A user's folder: a dataset of two files, one manifest."""

    def __init__(self, folder: Path, kind: str = "jsonl") -> None:
        self.folder, self.files = folder / "my data", [f"files/{name}.{kind}" for name in "ab"]
        self.rows: Rows = [
            {
                "query": f"{words('query', n)}?",
                "pos": [words("answer", n)],
                "neg": [words("wrong", n), "always wrong"],
            }
            for n in range(400)
        ]
        self.dataset: dict[str, Any] = {**QUESTIONS, "id": "faq", "local": {"files": self.files, "held_out": 0.2}}
        self.raw = {
            "name": "own",
            "description": "Questions and their answers.",
            "source": {"kind": "local_files"},
            "datasets": [self.dataset],
            "tasks": [{"id": "faq_held_out", "dataset": "faq", "family": "retrieval", "held_out": False}],
        }

    def manifest(self) -> Manifest:
        half = len(self.rows) // 2
        for name, some in zip(self.files, (self.rows[:half], self.rows[half:]), strict=True):
            save(self.folder / name, some)
        (self.folder / "own.yaml").write_text(yaml.safe_dump(self.raw), encoding="utf-8")
        return load_manifest(self.folder / "own.yaml")

    def convert(self, out: Path, **changes: Any) -> dict[str, Any]:
        out.mkdir()
        return make_examples(self.manifest(), config(**changes), (), self.folder / "no downloads", out)

    @property
    def held_out(self) -> Rows:
        return [one for one in self.rows if hash_share(one["query"]) < 0.2]

    @property
    def trained(self) -> Rows:
        return [one for one in self.rows if one not in self.held_out]


def config(**changes: Any) -> CorpusConfig:
    return CorpusConfig.model_validate({"manifest": "own", "datasets": ["faq"], **changes})


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_held_out_queries_are_a_task_and_nobody_trains_on_them(own: Own, tmp_path: Path) -> None:
    own.rows[7]["pos"] = [words("answer", 7), words("another answer", 7)]
    again = {**own.held_out[0], "query": own.held_out[0]["query"].upper() + " ", "pos": [words("more")]}
    own.rows.append(again)
    facts = own.convert(tmp_path / "out")
    asked, folder = own.held_out, tmp_path / "out/evaluation/faq_held_out"
    assert 40 < len(asked) < 120
    queries, corpus = read_jsonl(folder / "queries.jsonl"), read_jsonl(folder / "corpus.jsonl")
    assert sorted(one["text"] for one in queries) == sorted(one["query"] for one in asked if one is not again)
    assert sorted(one["text"] for one in corpus) == sorted({t for one in asked for t in (*one["pos"], *one["neg"])})
    texts = {one["id"]: one["text"] for one in (*queries, *corpus)}
    judged = {(texts[one["query"]], texts[one["document"]]) for one in read_jsonl(folder / "qrels.jsonl")}
    by_query = {(one["query"] if one is not again else asked[0]["query"], t) for one in asked for t in one["pos"]}
    assert judged == by_query
    trained = [one.query for one in read_examples(tmp_path / "out/train/faq.jsonl")]
    assert trained == [one["query"] for one in own.trained]
    assert facts["rows"] == {"evaluation/faq_held_out": len(asked) - 1, "train/faq": len(trained)}
    assert (facts["dropped"], facts["shared_texts"], facts["deviations"]) == ({}, 0, [])
    assert summary(tmp_path / "out")["sets"]["train/faq"]["query_words"] == dict.fromkeys(
        ("min", "median", "p95", "max"), 2.0
    )


@pytest.mark.parametrize("overlap", ["drop", "report"])
def test_rows_that_hold_or_nearly_repeat_an_evaluated_text_are_dropped_or_reported(
    own: Own, tmp_path: Path, overlap: str
) -> None:
    (chosen, long_one), (other, near) = own.held_out[:2], own.trained[:2]
    long = " ".join(words(number) for number in range(30))
    other["neg"] = [chosen["pos"][0].upper()]
    long_one["pos"], near["pos"] = [long], [long.replace(words(7), "changed")]
    facts = own.convert(tmp_path / "out", overlap=overlap)
    queries = {one.query for one in read_examples(tmp_path / "out/train/faq.jsonl")}
    assert [one["query"] in queries for one in (other, near)] == [overlap == "report"] * 2
    dropped = {"train/faq": {"a text is evaluated, or nearly so": 2}}
    assert facts["dropped"] == (dropped if overlap == "drop" else {})
    assert facts["shared_texts"] == int(overlap == "report")
    (entry,) = summary(tmp_path / "out")["overlap"]
    assert (entry["exact"], entry["near"], entry["rows"]) == (1, 1, 2)


def test_limits_draw_by_seed_and_keep_every_relevant_document(own: Own, tmp_path: Path) -> None:
    limits = {"train_rows": 30, "evaluation_queries": 10, "evaluation_documents": 15}
    facts = own.convert(tmp_path / "a", **limits)
    assert facts["rows"] == {"evaluation/faq_held_out": 10, "train/faq": 30}
    own.convert(tmp_path / "b", **limits)
    own.convert(tmp_path / "c", **limits, seed=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 4
    for file in files:
        one, same, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert one == same != other
    folder = tmp_path / "a/evaluation/faq_held_out"
    documents = [one["id"] for one in read_jsonl(folder / "corpus.jsonl")]
    relevant = {one["document"] for one in read_jsonl(folder / "qrels.jsonl")}
    assert len(set(documents)) == 15
    assert relevant <= set(documents)
    assert {*documents[:10]} != relevant  # no order that gives them away


@pytest.mark.promise(7)
def test_malformed_rows_are_an_error_or_listed(own: Own, tmp_path: Path) -> None:
    own.rows[3] = {"query": "what?", "pos": []}
    with pytest.raises(DataError, match=r"a\.jsonl:4: pos is empty"):
        own.convert(tmp_path / "out")
    assert not (tmp_path / "out/train/faq.jsonl").exists()
    own.rows[4] = {"text": "another kind", "label": "a"}
    facts = own.convert(tmp_path / "skipped", on_bad_line="skip")
    assert sum(facts["rows"].values()) == 398
    bad = summary(tmp_path / "skipped")["bad_lines"]["faq"]
    assert (bad["number"], bad["first"][0][:25]) == (2, "a.jsonl:4: pos is empty: ")
    assert "row 5 of faq" in bad["first"][1]
    own.rows = [{"query": n} for n in range(400)]
    with pytest.raises(DataError, match="10 or more malformed") as caught:
        own.convert(tmp_path / "ten")
    assert ("a.jsonl:10:" in str(caught.value), "a.jsonl:11:" in str(caught.value)) == (True, False)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("some", ["all", "a few"])
def test_rows_without_negatives_get_mined_ones_that_are_answers_of_nobody_like_them(
    tmp_path: Path, kind: str, some: str
) -> None:
    own = Own(tmp_path, kind)
    for number, row in enumerate(own.rows):
        row["neg"] = [] if some == "all" or number % 5 == 0 else row["neg"]
    own.rows[5]["query"] = own.rows[0]["query"]
    facts = own.convert(tmp_path / "out", hard_negatives=3)
    rows = read_examples(tmp_path / "out/train/faq.jsonl")
    given = {one["query"]: tuple(one["neg"]) for one in own.trained}
    assert len(rows) == len(own.trained)
    pool = {text for one in own.trained for text in one["pos"]}
    answers = {query: {t for one in own.rows if one["query"] == query for t in one["pos"]} for query in given}
    for made in rows:
        if given[made.query]:
            assert made.neg == given[made.query]
        else:
            assert len(set(made.neg)) == 3
            assert set(made.neg) <= pool - answers[made.query]
    assert summary(tmp_path / "out")["mined"] == {"faq": sum(not one["neg"] for one in own.trained)}
    assert facts["deviations"] == []
    own.convert(tmp_path / "again", hard_negatives=3)
    assert read_examples(tmp_path / "again/train/faq.jsonl") == rows


def test_where_nothing_is_mined_pairs_keep_to_the_negatives_of_their_batch(own: Own, tmp_path: Path) -> None:
    for row in own.rows:
        row["neg"] = []
    own.dataset["group_size"] = "positive_only"
    assert own.convert(tmp_path / "stated")["deviations"] == []
    assert not any(row.neg for row in read_examples(tmp_path / "stated/train/faq.jsonl"))
    own.dataset["group_size"] = "train_group_size"
    said = "faq: rows have no negatives of their own, only those of their batch"
    assert own.convert(tmp_path / "none", hard_negatives=0)["deviations"] == [said]
    own.rows[own.rows.index(own.trained[0])]["neg"] = ["one"]
    assert own.convert(tmp_path / "mixed", hard_negatives=0)["rows"]["train/faq"] == 1


@pytest.mark.parametrize("family", ["sts", "classification"])
def test_graded_pairs_and_labelled_texts_become_rows_and_tasks_of_their_family(tmp_path: Path, family: str) -> None:
    own = Own(tmp_path, "csv")
    graded: Rows = [{"sentence1": words(n), "sentence2": words(n, 1), "score": n % 5 / 4} for n in range(400)]
    labelled: Rows = [{"text": words(n), "label": f"label {n % 4}"} for n in range(400)]
    own.rows = graded if family == "sts" else labelled
    own.raw["tasks"][0]["family"] = family  # type: ignore[index]
    semantics = {
        "sts": ("symmetric_sts", True, True, "train_group_size"),
        "classification": ("symmetric_class", False, False, "first_row"),
    }[family]
    names = ("example_type", "in_batch_negatives", "instruction_on_passages", "group_size")
    own.dataset |= {"family": family, "halve_batch": True, **dict(zip(names, semantics, strict=True))}
    own.convert(tmp_path / "out", hard_negatives=2)
    rows = read_examples(tmp_path / "out/train/faq.jsonl")
    tested = read_jsonl(tmp_path / "out/evaluation/faq_held_out/test.jsonl")
    trained = {text for row in rows for text in (row.query, *row.pos, *row.neg)}
    if family == "sts":
        scores = {(row["sentence1"], row["sentence2"]): 5 * row["score"] for row in graded}
        assert {(one["sentence1"], one["sentence2"]): one["score"] for one in tested}.items() <= scores.items()
        scores |= {(other, one): score for (one, other), score in scores.items()}
        assert all(scores[row.query, row.pos[0]] >= 4 for row in rows)
        assert not trained & {one[key] for one in tested for key in ("sentence1", "sentence2")}
    else:
        labels = {row["text"]: row["label"] for row in labelled}
        fitted = read_jsonl(tmp_path / "out/evaluation/faq_held_out/train.jsonl")
        assert all({labels[text] for text in row.pos} == {labels[row.query]} for row in rows)
        assert all(labels[row.query] not in {labels[text] for text in row.neg} for row in rows)
        assert not trained & {one["text"] for one in (*tested, *fitted)}
    assert 40 < len(tested) < 120
    assert all(row.neg for row in rows)


def test_files_that_are_not_there_and_sets_without_rows_are_errors(own: Own, tmp_path: Path) -> None:
    own.rows = own.rows[:4]
    own.dataset["local"]["held_out"] = 1e-9
    with pytest.raises(DataError, match=r"no rows"):
        own.convert(tmp_path / "two")
    manifest = own.manifest()
    (own.folder / "files/b.jsonl").unlink()
    with pytest.raises(DataError, match=r"files/b\.jsonl"):
        make_examples(manifest, config(), (), tmp_path, tmp_path)


def test_a_changed_file_changes_the_fingerprint_and_where_it_lies_does_not(own: Own, tmp_path: Path) -> None:
    first = own_fingerprint(own.manifest(), config(), tmp_path)
    assert set(first["faq"]) == {"files/a.jsonl", "files/b.jsonl"}
    moved = Own(tmp_path / "elsewhere")
    assert own_fingerprint(moved.manifest(), config(), tmp_path) == first
    assert moved.manifest().model_dump() == own.manifest().model_dump()
    moved.rows[0]["query"] = "Another?"
    assert own_fingerprint(moved.manifest(), config(), tmp_path)["faq"] != first["faq"]


def test_rows_of_the_hub_are_converted_and_what_they_say_otherwise_is_reported(hub: HubServer, tmp_path: Path) -> None:
    rows = [{**row, "prompt": "Find the answer.", "type": "normal"} for row in ROWS[:9]]
    content = save(tmp_path / "lines.jsonl", rows).read_bytes()
    hub.repos["o/d"] = {"lines.jsonl": content}
    stated: dict[str, Any] = {
        "repo": "o/d",
        "files": ["lines.jsonl"],
        "licence": "mit",
        "homepage": "https://example.org",
    }
    stated |= {"rows": {"value": 8, "source": "stated"}}
    stated |= {"select": 7}
    raw = {
        "name": "tiny",
        "description": "Of the hub.",
        "source": {"kind": "hub_files"},
        "benchmarks": ["MTEB(eng, v2)"],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**raw, "datasets": [{**QUESTIONS, "id": "nq", "hub": stated}]}))
    (tmp_path / "out").mkdir()
    manifest = load_manifest(tmp_path / "tiny.yaml")
    facts = make_examples(manifest, config(datasets=["nq"]), (), tmp_path, tmp_path / "out")
    assert facts["rows"] == {"train/nq": 7}
    queries = [one.query for one in read_examples(tmp_path / "out/train/nq.jsonl")]
    assert queries == [row["query"] for row in rows if row["query"] in queries], "in the order of the files"
    assert facts["deviations"] == [
        "nq: 7 rows state the prompt 'Find the answer.', the manifest uses 'Retrieve the answer to the question.'",
        "nq: 8 rows are stated, its files have 9",
    ]
    assert facts["fingerprint"] == {"nq": {"lines.jsonl": hashlib.sha256(content).hexdigest()}}


# --- what bug reports of the field bring ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = SHARED / "cases" / "make_cases.py"
    if not generator.is_file():
        pytest.skip("the generator of cases is not here")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, generator, out], check=True, timeout=HANGS, capture_output=True)
    return out / "data"


def test_the_same_rows_are_read_from_every_case(cases: Path) -> None:
    expected = read(cases / "jsonl" / "faq.jsonl")
    assert len(expected) == 160
    for case in sorted(cases.iterdir()):
        ((name, files),) = own_datasets(case).items()
        found = read(*map(Path, files))
        bare = [TrainingExample(one.query, one.pos) for one in expected]
        assert found == (bare if name == "pairs" else expected), case.name
        assert check_files(files).rows == 160
