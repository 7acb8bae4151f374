"""Reading: every rule of a `read` section on tiny files, and all 59 datasets of open_text against what was counted."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import QUESTIONS, SHARED

from boom_utils.data.cleaning import collapse
from boom_utils.data.manifest import Dataset, load_manifest
from boom_utils.data.parsers import parse
from boom_utils.data.read_rules import Reading
from boom_utils.data.readers import Raw, read_dataset
from boom_utils.data.records import HIGHEST_SCORE
from boom_utils.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIRROR = SHARED / "mirror"
needs_mirror = pytest.mark.skipif(
    not (MIRROR / "sources.yaml").is_file(), reason="../shared/mirror, the files of open_text, is not here"
)


def dataset(read: dict[str, Any], files: dict[str, dict[str, str]]) -> Dataset:
    listed = [
        {"url": f"https://files.example.org/owner/repo/{COMMIT}/{name}", "sha256": "a" * 64, "bytes": 1, **file}
        for name, file in files.items()
    ]
    origin = {
        "task": "retrieval",
        "licence": "MIT",
        "homepage": {"dataset": "A tiny dataset"},
        "repository": "https://example.org/owner/repo",
        "commit": COMMIT,
        "split_rule": "official files",
        "rows": {},
        "format": {},
        "files": listed,
        "read": read,
    }
    return Dataset.model_validate(
        {
            "id": "tiny",
            **QUESTIONS,
            "origin": origin,
        }
    )


def read(tmp_path: Path, rules: dict[str, Any], on_bad_line: Any = "error", **contents: str | bytes) -> Raw:
    """Read files given as ``name__role=content``; _ in a role stands for +."""
    files = {}
    folder = tmp_path / "files.example.org" / "owner" / "repo" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    for key, content in contents.items():
        name, role = key.split("__")
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        part = {"part": name.rpartition("_")[2]} if rules.get("files", {}).get("kind") == "lines" else {}
        files[name] = {"role": role.replace("_", "+"), **part}
    return read_dataset(dataset(rules, files), tmp_path, on_bad_line)


def rows(raw: Raw, part: str = "train") -> list[dict[str, Any]]:
    return list(raw.parts[part].to_pylist())


def refused(tmp_path: Path, rules: dict[str, Any], **contents: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, rules, **contents)
    return str(caught.value)


TSV = {"kind": "table", "delimiter": "\t", "quoting": "none", "header": False}
LABELLED = {"shape": "labelled", "files": {**TSV, "columns": ["text", "label"]}, "labels": {"0": "bad", "1": "good"}}
GRADED = {
    "shape": "graded",
    "files": {**TSV, "columns": ["sentence1", "sentence2", "score"]},
    "score": {"lowest": 1, "highest": 5},
}
PAIRS = {"shape": "pairs", "files": {**TSV, "columns": ["query", "passage"]}}


def test_files_by_role_become_parts_with_labels_by_name(tmp_path: Path) -> None:
    raw = read(tmp_path, {**LABELLED, "clean": {"text": ["strip"]}}, a__train=" x \t1\ny\t0\n", b__dev="z\t1\n")
    assert (raw.shape, raw.bad_lines) == ("labelled", ())
    assert rows(raw) == [{"text": "x", "label": "good"}, {"text": "y", "label": "bad"}]
    assert rows(raw, "dev") == [{"text": "z", "label": "good"}]
    assert set(raw.parts) == {"train", "dev"}


def test_files_of_one_part_are_read_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    raw = read(tmp_path, PAIRS, b__train="1\tx\n", a__train="2\ty\n")
    assert [row["query"] for row in rows(raw)] == ["1", "2"]


def test_malformed_lines_are_errors_with_file_line_and_rule(tmp_path: Path) -> None:
    message = refused(tmp_path, LABELLED, a__train=b"x\t1\ny\n\t1\nz\t2\nu\xff\t1\n", b__test="v\n")
    for part in (
        "5 malformed line(s) in the files of dataset 'tiny'",
        "a:2: 1 columns instead of 2",
        "a:3: text is empty",
        "a:4: unknown label '2'",
        "a:5: text holds bytes that are not of the file's encoding",
        "b:1: 1 columns instead of 2",
    ):
        assert part in message, part


def test_only_the_first_ten_malformed_lines_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    message = refused(tmp_path, PAIRS, a__train="x\n" * 25)
    assert "25 malformed line(s)" in message
    assert message.count("columns instead of") == 10


def test_skipped_lines_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = read(tmp_path, {**LABELLED, "rows": {"train": 3}}, "skip", a__train="x\t1\ny\nz\t0\n")
    assert [row["text"] for row in rows(raw)] == ["x", "z"]
    assert [str(bad) for bad in raw.bad_lines] == ["a:2: 1 columns instead of 2"]
    assert "skipped a:2" in caplog.text


def test_nothing_but_malformed_lines_is_an_error_also_when_they_are_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path, PAIRS, "skip", a__train="x\n")
    with pytest.raises(DataError, match="has no rows for test"):
        read(tmp_path, {**PAIRS, "rows": {"train": 1, "test": 1}}, "skip", a__train="x\ty\n", b__test="x\n")


def test_a_missing_file_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file gone has not been downloaded") as caught:
        read_dataset(dataset(PAIRS, {"gone": {"role": "train"}}), tmp_path, "skip")
    assert "boom data fetch" in str(caught.value)


def test_an_empty_file_is_an_error_unless_the_manifest_counts_such_files(tmp_path: Path) -> None:
    assert "b: the file has no row" in refused(tmp_path, PAIRS, a__train="x\ty\n", b__train="")
    rule = {"rule": "empty_file", "rows": 1, "why": "one file came without rows"}
    assert len(rows(read(tmp_path, {**PAIRS, "leave_out": [rule]}, a__train="x\ty\n", b__train=""))) == 1


def test_other_numbers_of_rows_than_stated_are_an_error(tmp_path: Path) -> None:
    message = refused(tmp_path, {**PAIRS, "rows": {"train": 3}}, a__train="x\ty\n")
    assert "part 'train' has 1 rows instead of 3" in message


# --- values -----------------------------------------------------------------------------------------------------------


def test_scores_are_rescaled_from_their_range_to_0_to_5(tmp_path: Path) -> None:
    raw = read(tmp_path, GRADED, a__train="x\ty\t1\nx\ty\t3\nx\ty\t5.0\n")
    assert [row["score"] for row in rows(raw)] == [0.0, 2.5, 5.0]
    assert str(raw.parts["train"].schema.field("score").type) == "double"


@pytest.mark.parametrize(
    ("score", "rule"),
    [("0.9", "not between"), ("5.1", "not between"), ("nan", "is nan"), ("inf", "is inf"), ("a", "no number")],
)
def test_scores_out_of_range_nan_and_words_are_malformed(score: str, rule: str, tmp_path: Path) -> None:
    message = refused(tmp_path, GRADED, a__train=f"x\ty\t2\nx\ty\t{score}\n")
    assert "a:2: the score" in message
    assert rule in message


def test_fields_are_joined_chosen_and_constant(tmp_path: Path) -> None:
    form = {"kind": "json", "layout": "lines"}
    fields = {
        "query": {"first": ["new", "old"]},
        "passage": {"join": ["title", "text"], "by": ". ", "optional": ["title"]},
    }
    content = '{"new": null, "old": "a", "text": "t"}\n{"new": "b", "old": "a", "title": "T", "text": "t"}\n'
    raw = read(tmp_path, {"shape": "pairs", "files": {**form, "fields": fields}}, a__train=content)
    assert rows(raw) == [{"query": "a", "passage": "t"}, {"query": "b", "passage": "T. t"}]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"querry": "x", "passage": "y"}', "missing key 'query'; did you mean 'querry'?"),
        ('{"query": null, "passage": "y"}', "'query' is neither a text nor a number"),
        ('{"query": ["x"], "passage": "y"}', "'query' is neither a text nor a number"),
        ('{"query": "x", "passage": " \\n"}', "passage is empty"),
        ('{"query": "x\\ud800", "passage": "y"}', "half a character"),
        ('{"query": "x"', "not JSON"),
    ],
)
def test_keys_that_are_missing_or_of_another_type_are_malformed(line: str, rule: str, tmp_path: Path) -> None:
    form = {"kind": "json", "layout": "lines", "fields": {"query": "query", "passage": "passage"}}
    good = '{"query": "x", "passage": "y"}\n'
    message = refused(tmp_path, {"shape": "pairs", "files": form}, a__train=good + line + "\n" + good)
    assert "1 malformed line(s)" in message
    assert "a:2" in message
    assert rule in message


def test_a_file_damaged_as_a_whole_is_one_bad_line_and_nothing_of_it_is_used(tmp_path: Path) -> None:
    form = {"kind": "json", "layout": "document", "fields": {"query": "query", "passage": "passage"}}
    good, cut = '[{"query": "x", "passage": "y"}]', '[{"query": "x", "passage": "y"},\n'
    rules = {"shape": "pairs", "files": form}
    assert "b:2: not JSON" in refused(tmp_path, rules, a__train=good, b__train=cut)
    raw = read(tmp_path, rules, "skip", a__train=good, b__train=cut)
    assert (len(rows(raw)), [bad.where for bad in raw.bad_lines]) == (1, ["b:2"])


def test_parallel_files_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    rules = {"shape": "pairs", "files": {"kind": "lines"}}
    raw = read(tmp_path, rules, q_query__train="a\nb\n", p_passage__train="x\ny")
    assert [row["passage"] for row in rows(raw)] == ["x", "y"]
    message = refused(tmp_path, rules, q_query__train="a\nb\n", p_passage__train="x\n")
    assert "q_query:2: parallel files of different lengths: query 2, passage 1 lines" in message


def test_candidates_of_one_query_have_to_be_adjacent(tmp_path: Path) -> None:
    rules = {"shape": "candidates", "files": {**TSV, "columns": ["query", "passage", "label"]}, "labels": ["0", "1"]}
    assert len(rows(read(tmp_path, rules, a__train="q\tx\t1\nq\ty\t0\nr\tx\t0\n"))) == 3
    assert "are not adjacent" in refused(tmp_path, rules, a__train="q\tx\t1\nr\tx\t0\nq\ty\t0\n")


# --- parts ------------------------------------------------------------------------------------------------------------


def test_numbers_in_json_are_read_as_scores(tmp_path: Path) -> None:
    form = {"kind": "json", "layout": "lines", "fields": {"sentence1": "a", "sentence2": "b", "score": "s"}}
    rules = {**GRADED, "files": form}
    raw = read(tmp_path, rules, a__train='{"a": "x", "b": "y", "s": 4.5}\n{"a": "x", "b": "y", "s": 1}\n')
    assert [row["score"] for row in rows(raw)] == [4.375, 0.0]
    assert "'s' is neither a text nor a number" in refused(
        tmp_path, rules, a__train='{"a": "x", "b": "y", "s": true}\n'
    )


def test_the_md5_rule_splits_by_the_text_folded(tmp_path: Path) -> None:
    split = {"rule": "md5", "column": "query", "steps": ["collapse", "lower"], "modulo": 10, "test_below": 4}
    texts = [f"Question  {number}" for number in range(50)]
    raw = read(tmp_path, {**PAIRS, "split": split}, a__train_test="".join(f"{text}\ty\n" for text in texts))
    expected = [t for t in texts if int(md5(" ".join(t.split()).lower().encode()).hexdigest(), 16) % 10 < 4]
    assert [row["query"] for row in rows(raw, "test")] == expected
    assert 5 < len(expected) < 45
    assert len(rows(raw)) == 50 - len(expected)


def test_a_column_or_the_position_may_say_the_part(tmp_path: Path) -> None:
    form = {**TSV, "columns": ["query", "passage", "split"]}
    by_column = {"rule": "column", "column": "split", "parts": {"tr": "train", "va": "test"}}
    rules = {"shape": "pairs", "files": form, "split": by_column}
    raw = read(tmp_path, rules, a__train_test="x\ty\ttr\nz\ty\tva\n")
    assert raw.parts["train"].column_names == ["query", "passage"]
    assert [len(rows(raw, part)) for part in ("train", "test")] == [1, 1]
    assert "a:1: split is 'te', which is no part" in refused(tmp_path, rules, a__train_test="x\ty\tte\n")
    by_position = {"rule": "position", "parts": {"train": [1, 2], "test": [3, 3]}}
    raw = read(tmp_path, {**PAIRS, "split": by_position}, a__train_test="a\ty\nb\ty\nc\ty\n")
    assert [row["query"] for row in rows(raw, "test")] == ["c"]
    assert "a:4: row 4 is in no part" in refused(
        tmp_path, {**PAIRS, "split": by_position}, a__train_test="a\ty\nb\ty\nc\ty\nd\ty\n"
    )


# --- rows left out ----------------------------------------------------------------------------------------------------

WHY = "the test wants them left out"


@pytest.mark.parametrize(
    ("rule", "number", "left"),
    [
        ({"rule": "value", "column": "query", "values": ["-"]}, 1, ["one two", "c", "d"]),
        ({"rule": "value", "part": "train", "column": "query", "values": ["c"]}, 1, ["one two", "-", "d"]),
        ({"rule": "value", "column": "query", "values": ["c"]}, 2, ["one two", "-", "d"]),
        ({"rule": "shorter", "column": "query", "unit": "words", "fewest": 2}, 4, ["one two"]),
        ({"rule": "shorter", "column": "query", "unit": "characters", "fewest": 2}, 4, ["one two"]),
        ({"rule": "shared", "part": "train", "other": "test", "columns": ["query"]}, 1, ["one two", "-", "d"]),
        (
            {"rule": "shared", "part": "train", "other": "test", "columns": ["query", "passage"], "steps": ["lower"]},
            2,
            ["one two", "-"],
        ),
    ],
)
def test_rows_are_left_out_by_rules_whose_number_has_to_be_right(
    rule: dict[str, Any], number: int, left: list[str], tmp_path: Path
) -> None:
    files: dict[str, Any] = {"a__train": "one two\t1\n-\t2\nc\t3\nd\tX\n", "b__test": "c\tx\ntwo words\t7\n"}
    raw = read(tmp_path, {**PAIRS, "leave_out": [{**rule, "rows": number, "why": WHY}]}, **files)
    assert [row["query"] for row in rows(raw)] == left
    message = refused(tmp_path, {**PAIRS, "leave_out": [{**rule, "rows": number + 1, "why": WHY}]}, **files)
    assert f"rule '{rule['rule']}' left out {number} rows instead of {number + 1}" in message


# --- judged -----------------------------------------------------------------------------------------------------------

JUDGED: dict[str, Any] = {
    "shape": "judged",
    "by_role": {
        "corpus": {**TSV, "columns": ["id", "text"]},
        "queries": {**TSV, "columns": ["id", "text"]},
        "qrels": {"kind": "pattern", "pattern": r"(?P<query>\d+) (?P<document>\d+) (?P<score>\d+)"},
    },
}


def test_judged_corpora_have_texts_with_ids_and_judgements(tmp_path: Path) -> None:
    raw = read(tmp_path, JUDGED, c__corpus="1\tx\n2\ty\n", q__queries="1\ta\n2\tb\n", r__qrels="1 2 1\n")
    assert {part: table.num_rows for part, table in raw.parts.items()} == {"corpus": 2, "queries": 2, "qrels": 1}
    assert rows(raw, "qrels") == [{"query": "1", "document": "2", "score": 1.0}]


def test_judgements_of_unknown_texts_and_repeated_ids_are_malformed(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "c__corpus": "1\tx\n1\ty\n",
        "q__queries": "1\ta\n",
        "r__qrels": "1 1 1\n1 9 1\n7 1 1\n",
    }
    message = refused(tmp_path, JUDGED, **files)
    for part in ("corpus: the id '1' is given twice", "no document '9'", "no query '7'", "3 malformed"):
        assert part in message
    raw = read(tmp_path, JUDGED, "skip", **files)
    assert {part: table.num_rows for part, table in raw.parts.items()} == {"corpus": 1, "queries": 1, "qrels": 1}
    assert rows(raw, "corpus")[0]["text"] == "x"


def test_repeated_documents_and_queries_nobody_judged_are_left_out_by_rule(tmp_path: Path) -> None:
    rules = [
        {"rule": "repeated", "part": "corpus", "rows": 1, "why": WHY},
        {"rule": "unjudged", "rows": 1, "why": WHY},
    ]
    files: dict[str, Any] = {
        "c__corpus": "1\tx\n1\tx\n",
        "q__queries": "1\ta\n2\tb\n",
        "r__qrels": "1 1 1\n",
    }
    raw = read(tmp_path, {**JUDGED, "leave_out": rules}, **files)
    assert [len(rows(raw, part)) for part in ("corpus", "queries")] == [1, 1]


def test_one_bad_line_of_a_file_with_three_roles_is_listed_once(tmp_path: Path) -> None:
    def form(**fields: Any) -> dict[str, Any]:
        return {"kind": "json", "layout": "lines", "fields": fields}

    by_role = {
        "corpus": form(id="id", text="text"),
        "queries": form(id="id", text="text"),
        "qrels": form(query="id", document="id", score={"constant": "1"}),
    }
    message = refused(
        tmp_path, {"shape": "judged", "by_role": by_role}, a__corpus_queries_qrels='{"id": 1, "text": "x"}\n{"id"\n'
    )
    assert "1 malformed line(s)" in message


# --- open_text --------------------------------------------------------------------------------------------------------


MANIFEST = load_manifest("open_text")
OPEN_TEXT = MANIFEST.origins
STATED: dict[str, dict[str, Any]] = {
    "medquad": {"train": "train_pairs", "test": "test_pairs_after_overlap_rule"},
    "climate_fever_sentences": {
        "corpus": "corpus_unique_sentences",
        "queries": "queries_with_a_relevant_sentence",
        "qrels": lambda rows: rows["evidence_labels"]["SUPPORTS"] + rows["evidence_labels"]["REFUTES"],
    },
    "cisi": {"queries": "queries_with_judgements"},
    "django": {"train": "train_after_length_rule", "test": "test_after_length_rule", "dev": None},
    "ocnli": {"train": lambda rows: rows["train"] - rows["train_labels"]["-"]},
    **{name: {"test": "total"} for name in ("searchsnippets", "biomedical")},
    **{name: {"test": "eval_val_plus_test"} for name in ("arxiv_s2s", "arxiv_p2p")},
    **{
        name: {"train": "train_by_rule", "test": "test_by_rule"}
        for name in ("amazon_reviews", "stackoverflow_titles", "nl2bash")
    },
}
"""Under which of the counted ``rows`` a part is, where not under its own name."""


@functools.cache
def whole(name: str) -> Raw:
    return read_dataset(MANIFEST.dataset(name), MIRROR)


@functools.cache
def survey() -> dict[str, Any]:
    listed = yaml.safe_load((MIRROR / "sources.yaml").read_text(encoding="utf-8"))["datasets"]
    return {one["name"]: one for one in listed}


def reading(name: str) -> Reading:
    found = OPEN_TEXT[name].read
    assert found is not None
    return found


def texts(name: str, part: str, column: str) -> list[str]:
    return [str(text) for text in whole(name).parts[part][column].to_pylist()]


def different(name: str, parts: Iterable[str], column: str) -> int:
    found = {text for part in parts for text in texts(name, part, column)}
    return len(found if OPEN_TEXT[name].task == "code_retrieval" else {collapse(text).lower() for text in found})


def test_every_dataset_of_open_text_says_how_it_is_read_and_how_many_rows_that_gives() -> None:
    assert len(OPEN_TEXT) == 59
    for name in OPEN_TEXT:
        assert reading(name).rows, name


@needs_mirror
@pytest.mark.parametrize("name", OPEN_TEXT)
def test_parts_of_open_text_have_as_many_rows_as_were_counted(name: str) -> None:
    counted, raw = survey()[name]["rows"], whole(name)
    assert raw.bad_lines == ()
    assert {part: table.num_rows for part, table in raw.parts.items()} == reading(name).rows
    for part, number in reading(name).rows.items():
        key = STATED.get(name, {}).get(part, part)
        stated = key(counted) if callable(key) else counted.get(key)
        assert stated == number or (key is None and reading(name).differs), (part, stated, number)


@needs_mirror
@pytest.mark.parametrize("name", OPEN_TEXT)
def test_records_of_open_text_are_whole(name: str) -> None:
    for part, table in whole(name).parts.items():
        assert table.column_names == list(reading(name).columns(part))
        for column in table.column_names:
            values = table[column].to_pylist()
            if column == "score":
                assert all(math.isfinite(value) and 0 <= value <= HIGHEST_SCORE for value in values)
            else:
                assert all(isinstance(value, str) and value.strip() and value == value.strip() for value in values)


@needs_mirror
@pytest.mark.parametrize("name", [name for name, origin in OPEN_TEXT.items() if origin.files[0].rows])
def test_files_of_open_text_have_as_many_rows_as_were_counted(name: str) -> None:
    for file in OPEN_TEXT[name].files:
        form = reading(name).format_of(file.roles[0]).model_copy(update={"each": ()})
        rows = list(parse({"one": (MIRROR / file.path).read_bytes()}, form))
        assert len(rows) == file.rows, file.url


@needs_mirror
@pytest.mark.parametrize("name", [name for name, origin in OPEN_TEXT.items() if "train_labels" in origin.rows])
def test_labels_of_open_text_are_as_often_as_was_counted(name: str) -> None:
    names = reading(name).label_names
    for part in whole(name).parts:
        counted = survey()[name]["rows"][f"{part}_labels"]
        expected = {names[label]: count for label, count in counted.items() if label != "-"}
        assert Counter(texts(name, part, "label")) == expected


@needs_mirror
@pytest.mark.parametrize("name", [name for name in OPEN_TEXT if reading(name).shape == "pairs"])
def test_no_paragraph_of_open_text_is_lost_on_the_way(name: str) -> None:
    places = {
        "corpus_paragraphs": "test",
        "test_paragraphs": "test",
        "train_paragraphs": "train",
        "unique_passages": "train",
        "corpus_unique_passages": "test",
    }
    counted = survey()[name]["rows"]
    for key in places.keys() & counted.keys():
        assert different(name, [places[key]], "passage") == counted[key], key


@needs_mirror
@pytest.mark.parametrize("name", [name for name in OPEN_TEXT if name != "medquad"])  # it took other folders of medquad
def test_evaluation_parts_of_open_text_hold_what_an_earlier_conversion_took_from_them(name: str) -> None:
    for one in survey()[name]["converted"]:
        if not one["set"].startswith("eval"):
            continue
        raw, split = whole(name), one["split"]
        parts = [part for part in raw.parts if part == "test" or (part == "dev" and "dev+test" in split)]
        for key, number in one["rows"].items():
            if key == "corpus":
                found = raw.parts[key].num_rows if raw.shape == "judged" else different(name, parts, "passage")
                assert found == number or ("both a right and a wrong" in split and found > number)
            elif key == "queries":
                found = raw.parts[key].num_rows if raw.shape == "judged" else different(name, parts, "query")
                # It sampled; or it kept questions apart that have the same text.
                assert found >= number or sum(raw.parts[part].num_rows for part in parts) == number
            elif key == "test":
                found = sum(raw.parts[part].num_rows for part in parts)
                # It sampled; or it left out texts that repeat, 2 in 100 at most.
                assert found >= number
                assert "sampled" in split or found - number <= 0.02 * found


@needs_mirror
def test_documents_of_medquad_are_train_or_test_by_the_md5_of_their_path() -> None:
    origin = OPEN_TEXT["medquad"]
    for file in origin.files:
        path = file.url.partition(f"{origin.commit}/")[2]
        assert (int(md5(path.encode()).hexdigest(), 16) % 100 < 15) == (file.role == "test"), path


@needs_mirror
def test_scores_are_the_same_row_by_row_in_every_language_of_stsbenchmark() -> None:
    names = [name for name in OPEN_TEXT if name.startswith("stsb") or name == "korsts"]
    scores = [whole(name).parts["test"]["score"].to_pylist() for name in names]
    assert len(scores) == 8
    assert all(one == scores[0] for one in scores)
