"""Ready-made rows become the files of a study: what is written, held out, dropped and reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer
from test_data_hub_files import fetch, hub, origin, raw_corpus  # noqa: F401

from boom_utils.config import CorpusConfig
from boom_utils.data.examples import hash_share, normalise, read_examples, read_jsonl
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.data.ready_convert import convert_ready, ready_files, ready_fingerprint
from boom_utils.errors import DataError, ManifestError

COUNT = 400


def words(*of: object) -> str:
    """Two words that no other text of the corpus is like."""
    digest = hashlib.sha256(repr(of).encode()).hexdigest()
    return f"{digest[:12]} {digest[12:24]}"


def row(number: int) -> dict[str, Any]:
    return {
        "query": f"{words('query', number)}?",
        "pos": [words("answer", number)],
        "neg": [words("wrong", number), "always wrong"],
    }


class Own:
    """A user's folder: two files, one manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder / "my data", [row(number) for number in range(COUNT)]
        (self.folder / "files").mkdir(parents=True)
        raw = raw_corpus()
        one = raw["datasets"][0]
        del one["hub"]
        one |= {"id": "faq", "local": {"files": ["files/a.jsonl", "files/b.jsonl"], "held_out": 0.2}}
        del raw["benchmarks"]
        raw |= {"source": {"kind": "local_files"}, "datasets": [one], "name": "own"}
        raw["tasks"] = [{"id": "faq_held_out", "dataset": "faq", "family": "retrieval", "held_out": False}]
        self.raw = raw

    def manifest(self) -> Manifest:
        half = len(self.rows) // 2
        for name, some in (("a", self.rows[:half]), ("b", self.rows[half:])):
            lines = "".join(json.dumps(one) + "\n" for one in some)
            (self.folder / f"files/{name}.jsonl").write_text(lines, encoding="utf-8")
        path = self.folder / "own.yaml"
        path.write_text(yaml.safe_dump(self.raw), encoding="utf-8")
        return load_manifest(path)

    def convert(self, out: Path, **changes: Any) -> dict[str, Any]:
        out.mkdir()
        return convert_ready(self.manifest(), config(**changes), self.folder / "no downloads", out)


def config(**changes: Any) -> CorpusConfig:
    return CorpusConfig.model_validate({"manifest": "own", "datasets": ["faq"], **changes})


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def held_out(own: Own) -> list[dict[str, Any]]:
    return [one for one in own.rows if hash_share(one["query"]) < 0.2]


def test_held_out_queries_are_a_task_and_nobody_trains_on_them(own: Own, tmp_path: Path) -> None:
    own.rows[7]["pos"] = [words("answer", 7), words("another answer", 7)]
    facts = own.convert(tmp_path / "out")
    asked = held_out(own)
    assert 40 < len(asked) < 120
    folder = tmp_path / "out/evaluation/faq_held_out"
    queries, corpus = read_jsonl(folder / "queries.jsonl"), read_jsonl(folder / "corpus.jsonl")
    assert sorted(one["text"] for one in queries) == sorted(one["query"] for one in asked)
    passages = {text for one in asked for text in (*one["pos"], *one["neg"])}
    assert {one["text"] for one in corpus} == passages
    assert len(corpus) == len(passages)
    texts = {one["id"]: one["text"] for one in (*queries, *corpus)}
    judged = {(texts[one["query"]], texts[one["document"]]) for one in read_jsonl(folder / "qrels.jsonl")}
    assert judged == {(one["query"], text) for one in asked for text in one["pos"]}
    trained = read_examples(tmp_path / "out/train/faq.jsonl")
    assert [one.query for one in trained] == [one["query"] for one in own.rows if one not in asked]
    assert facts["rows"] == {"evaluation/faq_held_out": len(asked), "train/faq": COUNT - len(asked)}
    assert (facts["dropped"], facts["shared_texts"], facts["deviations"]) == ({}, 0, [])
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["sets"]["train/faq"]["query_words"] == {"min": 2.0, "median": 2.0, "p95": 2.0, "max": 2.0}
    assert summary["fingerprint"] == facts["fingerprint"]


def test_the_same_query_in_other_letters_is_held_out_with_it(own: Own, tmp_path: Path) -> None:
    chosen = held_out(own)[0]
    own.rows.append({"query": chosen["query"].upper() + " ", "pos": [words("another answer")], "neg": []})
    own.convert(tmp_path / "out")
    folder = tmp_path / "out/evaluation/faq_held_out"
    (query,) = [
        o["id"] for o in read_jsonl(folder / "queries.jsonl") if normalise(o["text"]) == normalise(chosen["query"])
    ]
    assert len([one for one in read_jsonl(folder / "qrels.jsonl") if one["query"] == query]) == 2
    trained = {normalise(one.query) for one in read_examples(tmp_path / "out/train/faq.jsonl")}
    assert normalise(chosen["query"]) not in trained


@pytest.mark.parametrize("overlap", ["drop", "report"])
def test_rows_that_hold_an_evaluated_text_are_dropped_or_reported(own: Own, tmp_path: Path, overlap: str) -> None:
    chosen = held_out(own)[0]
    other = next(one for one in own.rows if one not in held_out(own))
    other["neg"] = [chosen["pos"][0].upper()]
    facts = own.convert(tmp_path / "out", overlap=overlap)
    queries = {one.query for one in read_examples(tmp_path / "out/train/faq.jsonl")}
    assert (other["query"] in queries) is (overlap == "report")
    dropped = {"train/faq": {"a text is evaluated, or nearly so": 1}}
    assert facts["dropped"] == (dropped if overlap == "drop" else {})
    assert facts["shared_texts"] == int(overlap == "report")
    (entry,) = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))["overlap"]
    assert (entry["exact"], entry["near"], entry["rows"]) == (1, 0, 1)
    assert normalise(chosen["pos"][0]) in str(entry["examples"])


def test_rows_that_nearly_repeat_an_evaluated_text_are_dropped_too(own: Own, tmp_path: Path) -> None:
    chosen = held_out(own)[0]
    other = next(one for one in own.rows if one not in held_out(own))
    long = " ".join(words(number) for number in range(30))
    chosen["pos"], other["pos"] = [long], [long.replace(words(7), "changed")]
    facts = own.convert(tmp_path / "out")
    assert facts["dropped"] == {"train/faq": {"a text is evaluated, or nearly so": 1}}
    assert other["query"] not in {one.query for one in read_examples(tmp_path / "out/train/faq.jsonl")}


def test_limits_draw_by_seed_and_keep_every_relevant_document(own: Own, tmp_path: Path) -> None:
    limits = {"train_rows": 30, "evaluation_queries": 10, "evaluation_documents": 15}
    facts = own.convert(tmp_path / "a", **limits)
    assert facts["rows"] == {"evaluation/faq_held_out": 10, "train/faq": 30}
    own.convert(tmp_path / "b", **limits)
    own.convert(tmp_path / "c", **limits, seed=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()
    folder = tmp_path / "a/evaluation/faq_held_out"
    documents = [one["id"] for one in read_jsonl(folder / "corpus.jsonl")]
    relevant = {one["document"] for one in read_jsonl(folder / "qrels.jsonl")}
    assert len(set(documents)) == 15
    assert relevant <= set(documents)
    assert {*documents[:10]} != relevant  # no order that gives them away


def test_a_malformed_row_is_an_error_or_listed(own: Own, tmp_path: Path) -> None:
    own.rows[3] = {"query": "what?", "pos": []}
    with pytest.raises(DataError, match=r"a\.jsonl:4: missing key neg"):
        own.convert(tmp_path / "out")
    assert not (tmp_path / "out/train/faq.jsonl").exists()
    facts = own.convert(tmp_path / "skipped", on_bad_line="skip")
    assert sum(facts["rows"].values()) == COUNT - 1
    bad = json.loads((tmp_path / "skipped/summary.json").read_text(encoding="utf-8"))["bad_lines"]["faq"]
    assert bad == {"number": 1, "first": ["a.jsonl:4: missing key neg; found pos, query"]}


def test_a_file_that_is_not_there_and_a_set_without_rows_are_errors(own: Own, tmp_path: Path) -> None:
    own.raw["datasets"][0]["local"]["files"].append("files/c.jsonl")
    with pytest.raises(DataError, match=r"files/c\.jsonl"):
        own.convert(tmp_path / "one")
    own.raw["datasets"][0]["local"]["files"].pop()
    own.rows = [row(number) for number in range(4)]
    own.raw["datasets"][0]["local"]["held_out"] = 1e-9
    with pytest.raises(DataError, match=r"no rows"):
        own.convert(tmp_path / "two")


def test_a_changed_file_changes_the_fingerprint_and_where_it_lies_does_not(own: Own, tmp_path: Path) -> None:
    first = ready_fingerprint(own.manifest(), config(), tmp_path)
    assert set(first["faq"]) == {"files/a.jsonl", "files/b.jsonl"}
    moved = Own(tmp_path / "elsewhere")
    assert ready_fingerprint(moved.manifest(), config(), tmp_path) == first
    assert moved.manifest().model_dump() == own.manifest().model_dump()
    moved.rows[0]["query"] = "Another?"
    assert ready_fingerprint(moved.manifest(), config(), tmp_path)["faq"] != first["faq"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["datasets"][0]["local"].pop("held_out"), "has no held_out share"),
        (lambda raw: raw.update(tasks=[], benchmarks=["MTEB(eng, v2)"]), "no task evaluates them"),
        (lambda raw: raw.update(tasks=[]), "nothing to evaluate with"),
        (lambda raw: raw["datasets"][0].pop("local"), "dataset 'faq' has no local"),
        (lambda raw: raw["datasets"][0].update(hub=origin().model_dump(mode="json")), "dataset 'faq' has hub, but"),
        (lambda raw: raw["datasets"][0]["local"].update(files=["a.csv"]), "a.csv is not a .jsonl"),
        (lambda raw: raw["datasets"][0]["local"].update(held_out=1.0), "held_out"),
    ],
)
def test_a_manifest_of_own_files_that_does_not_fit_together_is_refused(own: Own, change: Any, said: str) -> None:
    change(own.raw)
    with pytest.raises(ManifestError) as caught:
        own.manifest()
    assert said in str(caught.value)


# --- of the hub -------------------------------------------------------------------------------------------------------


def test_rows_of_the_hub_are_converted_and_what_they_say_otherwise_is_reported(
    hub: HubServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    rows = [{**row(number), "prompt": "Find the answer.", "type": "normal"} for number in range(9)]
    hub.repos["owner/data"]["lines.jsonl"] = b"".join(json.dumps(one).encode() + b"\n" for one in rows)
    raw = raw_corpus()
    raw["datasets"][0]["hub"] |= {
        "files": ["lines.jsonl"],
        "rows": {"value": 8, "source": "stated"},
        "select": {"rows": 7, "rule": "first", "rows_source": "stated", "rule_source": "ours"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    manifest = load_manifest(tmp_path / "tiny.yaml")
    corpus = config(manifest="tiny", datasets=["nq"])
    with pytest.raises(DataError, match="boom data fetch --manifest tiny --only nq"):
        ready_files(manifest, manifest.dataset("nq"), tmp_path)
    fetch(tmp_path, manifest.hubs["nq"])
    (tmp_path / "out").mkdir()
    facts = convert_ready(manifest, corpus, tmp_path, tmp_path / "out")
    assert facts["rows"] == {"train/nq": 7}
    assert [one.query for one in read_examples(tmp_path / "out/train/nq.jsonl")] == [one["query"] for one in rows[:7]]
    assert facts["deviations"] == [
        "nq: 7 rows state the prompt 'Find the answer.', the manifest uses 'Retrieve the answer to the question.'",
        "nq: 8 rows are stated, its files have 9",
    ]
    assert facts["shared_texts"] == 0
    assert len(facts["fingerprint"]["nq"]) == 1
