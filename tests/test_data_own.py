"""Rows that users bring and those of the hub: where they lie, what is held out, mined, dropped and reported."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from conftest import QUESTIONS
from hub_server import HubServer
from test_data_examples import ROWS, Rows, save

from boom_utils.config import CorpusConfig
from boom_utils.data import own as own_rows
from boom_utils.data.convert import make_examples
from boom_utils.data.examples import hash_share, normalise, read_examples, read_jsonl
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.data.own import check_files, own_datasets, own_fingerprint
from boom_utils.errors import ConfigError, DataError, DownloadError

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
    for place in (tmp_path / "nowhere", tmp_path / "README.md"):
        with pytest.raises(ConfigError, match="there are no training files"):
            own_datasets(place)


def test_a_hub_dataset_is_its_training_files_at_one_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = "hf://datasets/owner/faq@" + "a" * 40 + "/data/train.parquet"
    splits = {"train": [path], "test": ["hf://datasets/owner/faq@aa/data/test.parquet"]}
    look, asked = Mock(return_value=SimpleNamespace(config=SimpleNamespace(data_files=splits))), []

    def snapshot(repo: str, files: list[str], revision: str, cached: bool = False) -> Path:
        asked.append((repo, *files, revision, cached))
        if not cached:
            save(tmp_path / "data" / "train.parquet", ROWS)
        return tmp_path

    monkeypatch.setattr("datasets.load_dataset_builder", look)
    monkeypatch.setattr(own_rows, "hub_snapshot", snapshot)
    assert own_datasets("owner/faq:pair") == {"faq-pair": [path]}
    look.assert_called_once_with("owner/faq", "pair")
    assert [check_files([path]).rows for _ in range(2)] == [10, 10]
    assert asked == [("owner/faq", "data/train.parquet", "a" * 40, cached) for cached in (True, False, True)]


@pytest.mark.promise(36)
def test_a_hub_dataset_that_cannot_be_had_is_explained_without_any_text_of_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for error, raised, said in (
        (ConnectionError("https://files.example/x?Signature=canary"), DownloadError, "cannot be used now"),
        (
            ValueError("Please pick one among: ['pair', 'triplet']"),
            ConfigError,
            "several configurations(.|\n)*'triplet'",
        ),
    ):
        monkeypatch.setattr("datasets.load_dataset_builder", Mock(side_effect=error))
        with pytest.raises(raised, match=said) as caught:
            own_datasets("owner/faq")
        assert "canary" not in str(caught.value)
        assert "owner/faq" in str(caught.value)


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
            {"query": f"{words(n)}?", "pos": [words("answer", n)], "neg": [words("wrong", n), "always wrong"]}
            for n in range(400)
        ]
        self.dataset: dict[str, Any] = {**QUESTIONS, "id": "faq", "local": {"files": self.files, "held_out": 0.2}}
        self.task = {"id": "faq_held_out", "dataset": "faq", "family": "retrieval", "held_out": False}

    def manifest(self) -> Manifest:
        half = len(self.rows) // 2
        for name, some in zip(self.files, (self.rows[:half], self.rows[half:]), strict=True):
            save(self.folder / name, some)
        raw = {"name": "own", "description": "Questions and answers.", "source": {"kind": "local_files"}}
        (self.folder / "own.yaml").write_text(yaml.safe_dump({**raw, "datasets": [self.dataset], "tasks": [self.task]}))
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
    own.rows[7]["pos"].append(words("another answer", 7))
    first, folder = own.held_out[0], tmp_path / "out/evaluation/faq_held_out"
    own.rows.append({**first, "query": first["query"].upper() + " ", "pos": [words("more")]})  # the same query
    facts = own.convert(tmp_path / "out")
    queries, corpus = read_jsonl(folder / "queries.jsonl"), read_jsonl(folder / "corpus.jsonl")
    assert 40 < len(queries) < 120
    assert sorted(one["text"] for one in queries) == sorted(one["query"] for one in own.held_out[:-1])
    assert {one["text"] for one in corpus} == {t for one in own.held_out for t in (*one["pos"], *one["neg"])}
    texts = {one["id"]: one["text"] for one in (*queries, *corpus)}
    judged = {(texts[one["query"]], texts[one["document"]]) for one in read_jsonl(folder / "qrels.jsonl")}
    asked = {normalise(one["query"]): one["query"] for one in reversed(own.held_out)}
    assert judged == {(asked[normalise(one["query"])], text) for one in own.held_out for text in one["pos"]}
    trained = [one.query for one in read_examples(tmp_path / "out/train/faq.jsonl")]
    assert trained == [one["query"] for one in own.trained]
    assert facts["rows"] == {"evaluation/faq_held_out": len(queries), "train/faq": len(trained)}
    assert (facts["dropped"], facts["shared_texts"], facts["deviations"]) == ({}, 0, [])


@pytest.mark.promise(7)
def test_malformed_rows_are_an_error_or_listed(own: Own, tmp_path: Path) -> None:
    own.rows[3] = {"query": "what?", "pos": []}
    with pytest.raises(DataError, match=r"a\.jsonl:4: pos: Tuple should have"):
        own.convert(tmp_path / "out")
    assert not (tmp_path / "out/train/faq.jsonl").exists()
    own.rows[4] = {"text": "another kind", "label": "a"}
    facts = own.convert(tmp_path / "skipped", on_bad_line="skip")
    assert sum(facts["rows"].values()) == 398
    bad = summary(tmp_path / "skipped")["bad_lines"]["faq"]
    assert (bad["number"], bad["first"][0][:17]) == (2, "a.jsonl:4: pos: T")
    assert bad["first"][1] == "a.jsonl:5: a row of kind 'labelled' among those of kind 'examples'"


@pytest.mark.parametrize(("kind", "some", "most"), [("jsonl", "all", 1000), ("csv", "a few", 100)])
def test_rows_without_negatives_get_mined_ones_that_are_answers_of_nobody_like_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, some: str, most: int
) -> None:
    monkeypatch.setattr(own_rows, "POOL", most)
    own = Own(tmp_path, kind)
    for number, row in enumerate(own.rows):
        row["neg"] = [] if some == "all" or number % 5 == 0 else row["neg"]
    own.rows[5]["query"] = own.rows[0]["query"]
    facts = own.convert(tmp_path / "out", hard_negatives=3)
    rows, trained = read_examples(tmp_path / "out/train/faq.jsonl"), own.trained
    step = 1 if most == 1000 else -(-len(trained) // most)
    pool = {text for one in trained[::step] for text in one["pos"]}
    answers = {
        one["query"]: {t for two in own.rows if one["query"] == two["query"] for t in two["pos"]} for one in trained
    }
    for made, given in zip(rows, trained, strict=True):
        if given["neg"]:
            assert made.neg == tuple(given["neg"])
        else:
            assert len(set(made.neg)) == 3
            assert set(made.neg) <= pool - answers[made.query]
    assert summary(tmp_path / "out")["mined"] == {"faq": sum(not one["neg"] for one in trained)}
    assert facts["deviations"] == []
    own.convert(tmp_path / "again", hard_negatives=3)
    assert read_examples(tmp_path / "again/train/faq.jsonl") == rows


def test_a_changed_file_changes_the_fingerprint_and_where_it_lies_does_not(own: Own, tmp_path: Path) -> None:
    moved = Own(tmp_path / "elsewhere")
    assert own.manifest().model_dump() == moved.manifest().model_dump()
    first, same = (own_fingerprint(one.manifest(), config(), tmp_path) for one in (own, moved))
    moved.rows[0]["query"] = "Another?"
    assert first == same != own_fingerprint(moved.manifest(), config(), tmp_path)
    assert set(first["faq"]) == {"files/a.jsonl", "files/b.jsonl"}


def test_rows_of_the_hub_are_converted_and_what_they_say_otherwise_is_reported(hub: HubServer, tmp_path: Path) -> None:
    rows = [{**row, "prompt": "Find the answer.", "type": "normal"} for row in ROWS[:9]]
    content = save(tmp_path / "lines.jsonl", rows).read_bytes()
    hub.repos["o/d"] = {"lines.jsonl": content}
    stated: dict[str, Any] = {"repo": "o/d", "files": ["lines.jsonl"], "select": 7}
    stated |= {"licence": "mit", "homepage": "https://example.org", "rows": {"value": 8, "source": "stated"}}
    raw: dict[str, Any] = {"name": "tiny", "description": "Of the hub.", "source": {"kind": "hub_files"}}
    raw |= {"benchmarks": ["MTEB(eng, v2)"], "datasets": [{**QUESTIONS, "id": "nq", "hub": stated}]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "out").mkdir()
    manifest = load_manifest(tmp_path / "tiny.yaml")
    facts = make_examples(manifest, config(datasets=["nq"]), (), tmp_path, tmp_path / "out")
    assert facts["rows"] == {"train/nq": 7}
    queries = [one.query for one in read_examples(tmp_path / "out/train/nq.jsonl")]
    assert queries == [row["query"] for row in rows if row["query"] in queries], "in the order of the files"
    assert facts["deviations"] == [
        "nq: 7 rows state another prompt than the manifest, the first 'Find the answer.'",
        "nq: 8 rows are stated, 7 are wanted, its files have 9",
    ]
    assert facts["fingerprint"] == {"nq": {"lines.jsonl": hashlib.sha256(content).hexdigest()}}
