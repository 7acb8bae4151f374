"""The `read` section of a manifest: contradictions are refused when it is loaded, all of them at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from boom_utils.data.manifest_files import Origin
from boom_utils.data.read_rules import Reading

TABLE = {"kind": "table", "delimiter": "\t", "quoting": "none", "columns": ["text", "label"], "header": False}
LABELLED: dict[str, Any] = {"shape": "labelled", "files": TABLE, "labels": ["a", "b"]}
LINES = {"kind": "lines"}
SIZE = {"sha256": "a" * 64, "bytes": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def problems(raw: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        Reading.model_validate(raw)
    return str(caught.value)


def test_all_contradictions_are_listed_at_once() -> None:
    form = {**TABLE, "fields": {"txet": "text"}}
    message = problems(
        {
            "shape": "candidates",
            "files": form,
            "clean": {"qurey": ["strip"]},
            "labels": {"0": "0", "1": "2"},
            "score": {"lowest": 0, "highest": 5},
            "rows": {"corpus": 3},
            "leave_out": [
                {"rule": "value", "column": "nowhere", "values": ["x"], "rows": 1, "why": "it is not wanted"}
            ],
        }
    )
    for part in (
        "files: no field 'query'",
        "files: no field 'passage'",
        "no column 'qurey'; did you mean 'query'?",
        "no column 'nowhere'",
        "labels: '2' is none of 0, 1",
        "shape candidates has no score range",
        "rows.corpus: shape candidates has no part 'corpus'",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"files": None}, "shape labelled needs files"),
        ({"labels": None}, "shape labelled needs labels"),
        ({"files": {**TABLE, "kind": "tabel"}}, "tabel"),
        ({"files": {**TABLE, "delimiter": "||"}}, "at most 1 character"),
        ({"files": {"kind": "pattern", "pattern": "("}}, "no regular expression"),
        ({"files": {"kind": "pattern", "pattern": "x"}}, "no named group"),
        ({"clean": {"text": ["stripp"]}}, "stripp"),
        ({"split": {"rule": "md5", "column": "text", "modulo": 1, "test_below": 1}}, "greater than 1"),
        ({"split": {"rule": "md5", "column": "title", "modulo": 5, "test_below": 1}}, "no column 'title'"),
        ({"files": {**TABLE, "fields": {"text": {"jion": ["a"]}, "label": "b"}}}, "with join, first or constant"),
        ({"shape": "judged"}, "shape judged needs by_role with corpus, queries, qrels"),
        ({"unknown": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], expected: str) -> None:
    Reading.model_validate(LABELLED)
    assert expected in problems({**LABELLED, **change})


def test_a_section_is_the_same_after_it_was_written_and_read() -> None:
    fields = {"text": {"join": ["a", "b"], "by": ". "}, "label": {"first": ["c", "d"]}, "more": {"constant": "1"}}
    raw = {**LABELLED, "files": {**TABLE, "fields": fields}, "clean": {"text": [{"cut": 9}, "strip"]}}
    reading = Reading.model_validate(raw)
    assert Reading.model_validate(reading.model_dump(mode="json")) == reading


def test_a_score_range_has_to_be_one() -> None:
    graded = {"shape": "graded", "files": {**TABLE, "columns": ["sentence1", "sentence2", "score"]}}
    assert "needs a score range" in problems(graded)
    assert "lowest is not below highest" in problems({**graded, "score": {"lowest": 5, "highest": 1}})
    assert "finite" in problems({**graded, "score": {"lowest": 0, "highest": float("inf")}})


def origin(read: dict[str, Any], files: list[tuple[str, str | None]], **changes: Any) -> dict[str, Any]:
    listed = [
        {"url": f"https://files.example.org/{COMMIT}/{number}", "role": role, "part": part, **SIZE}
        for number, (role, part) in enumerate(files)
    ]
    facts = {"task": "retrieval", "licence": "MIT", "homepage": {"dataset": "A dataset"}, "split_rule": "none"}
    place = {"repository": "https://example.org/x", "commit": COMMIT}
    return {**facts, **place, "rows": {}, "format": {}, "files": listed, "read": read, **changes}


def test_a_role_that_belongs_to_no_part_is_refused() -> None:
    files: list[tuple[str, str | None]] = [("train+test", None), ("test", None)]
    with pytest.raises(ValidationError, match=r"files of role 'train\+test' belong to no part"):
        Origin.model_validate(origin(LABELLED, files))
    split = {"rule": "role", "parts": {"train+test": "train"}}
    Origin.model_validate(origin({**LABELLED, "split": split}, files))


def test_parallel_files_have_to_be_all_there_and_each_once() -> None:
    read = {**LABELLED, "files": LINES}
    Origin.model_validate(origin(read, [("train", "text"), ("train", "label")]))
    for files in ([("train", "text")], [("train", "text"), ("train", "text")], [("train", "text"), ("train", None)]):
        with pytest.raises(ValidationError, match="need the parts text, label, each once"):
            Origin.model_validate(origin(read, files))


def test_other_numbers_of_rows_than_stated_need_a_reason() -> None:
    read = {**LABELLED, "rows": {"train": 9}}
    with pytest.raises(ValidationError, match=r"read\.rows\.train is 9, but rows\.train is 10"):
        Origin.model_validate(origin(read, [("train", None)], rows={"train": 10}))
    Origin.model_validate(origin({**read, "differs": "one row is empty"}, [("train", None)], rows={"train": 10}))
