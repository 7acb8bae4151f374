"""A corpus of files, from records to its folder: everything counted, nothing evaluated is trained on, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import SHARED

from boom_utils.config import CorpusConfig
from boom_utils.data import convert
from boom_utils.data.convert import files_fingerprint, make_examples
from boom_utils.data.examples import BadLine, normalise, read_examples, read_jsonl
from boom_utils.data.manifest import Dataset, Manifest, load_manifest
from boom_utils.data.text_files import Raw
from boom_utils.errors import DataError, ManifestError

TRAINED = ("medquad", "banking77", "stsbenchmark")
NEW = ("ocnli",)
TASKS = ("medquad", "banking77", "stsbenchmark", "wikiqa", "nq_open_oracle")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_manifest("open_text")


def table(columns: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table({name: list(column) for name, column in zip(columns.split(), zip(*rows, strict=True), strict=True)})


def sentence(*names: object) -> str:
    """Thirty-odd words that no other names give: nothing is near anything by chance."""
    generator = np.random.default_rng([ord(letter) for letter in str(names)])
    return " ".join("".join(chr(97 + c) for c in generator.integers(26, size=5)) for _ in range(34))


def records() -> dict[str, Raw]:
    """Records of six datasets; medquad's training part repeats evaluated texts exactly and nearly."""
    known = sentence("paragraph", 0)
    medquad = [(sentence("question", n), sentence("answer", n)) for n in range(40)]
    medquad += [
        (sentence("asked", 0), sentence("held", 0)),
        (sentence("new"), known),
        (sentence("newer"), known + " x"),
    ]
    banking = [(sentence("utterance", n), f"label {n % 4}") for n in range(80)]
    sts = [(sentence("one", n), sentence("other", n), float(n % 6)) for n in range(48)]
    nli = [(sentence("premise", n // 2), sentence("it", n), ("entailment", "contradiction")[n % 2]) for n in range(20)]
    wikiqa = [(sentence("why", n // 2), sentence("since", n), "01"[n % 2]) for n in range(12)]
    held = [(sentence("asked", n), sentence("held", n)) for n in range(12)]
    oracle = [(sentence("open", n), sentence("paragraph", n)) for n in range(12)]
    pair, labelled, graded = "query passage", "text label", "sentence1 sentence2 score"
    return {
        "medquad": Raw("pairs", {"train": table(pair, medquad), "test": table(pair, held)}, ()),
        "banking77": Raw("labelled", {"train": table(labelled, banking), "test": table(labelled, [
            (sentence("tested", n), f"label {n % 4}") for n in range(12)
        ])}, ()),
        "stsbenchmark": Raw("graded", {"train": table(graded, sts), "test": table(graded, [
            (sentence("t one", n), sentence("t other", n), float(n % 6)) for n in range(12)
        ])}, ()),
        "ocnli": Raw("nli", {"train": table("sentence1 sentence2 label", nli)}, (BadLine("train.json:7", "no label"),)),
        "wikiqa": Raw("candidates", {"test": table("query passage label", wikiqa)}, ()),
        "nq_open_oracle": Raw("pairs", {"test": table(pair, oracle)}, ()),
    }  # fmt: skip


Made = tuple[dict[str, Any], Path]


@pytest.fixture
def make(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Makes the examples of the records above; keyword arguments change the corpus."""
    raws = records()

    def read(dataset: Dataset, folder: Path, on_bad_line: str) -> Raw:
        assert folder == tmp_path / "downloads"
        assert on_bad_line == "skip"
        return raws[dataset.id]

    monkeypatch.setattr(convert, "read_dataset", read)

    def made(name: str = "made", tasks: tuple[str, ...] = TASKS, **changes: Any) -> Made:
        raws.update(changes.pop("raws", {}))
        options = {"manifest": "open_text", "datasets": TRAINED, "new_datasets": NEW, "on_bad_line": "skip"}
        corpus = CorpusConfig.model_validate({**options, **changes})
        return make_examples(manifest, corpus, tasks, tmp_path / "downloads", tmp_path / name), tmp_path / name

    return made


def texts_of(folder: Path, *names: str) -> set[str]:
    rows = [row for name in names for row in read_examples(folder / "train" / f"{name}.jsonl")]
    return {normalise(text) for row in rows for text in (row.query, *row.pos, *row.neg)}


def test_the_folder_holds_every_set_and_facts_that_agree_with_it(make: Callable[..., Made]) -> None:
    facts, out = make()
    assert sorted(path.name for path in (out / "train").iterdir()) == sorted(f"{n}.jsonl" for n in (*TRAINED, *NEW))
    files = {task: sorted(path.stem for path in (out / "evaluation" / task).iterdir()) for task in TASKS}
    assert files == {
        "medquad": ["corpus", "qrels", "queries"],
        "banking77": ["labels", "test", "train"],
        "stsbenchmark": ["test"],
        "wikiqa": ["corpus", "qrels", "queries", "top_ranked"],
        "nq_open_oracle": ["corpus", "qrels", "queries"],
    }
    assert list(facts) == ["rows", "fingerprint", "deviations", "dropped", "shared_texts"]
    for name in (*TRAINED, *NEW):
        assert facts["rows"][f"train/{name}"] == len(read_examples(out / "train" / f"{name}.jsonl"))
    for task in TASKS:
        main = "queries" if "queries" in files[task] else "test"
        assert facts["rows"][f"evaluation/{task}"] == len(read_jsonl(out / "evaluation" / task / f"{main}.jsonl"))
    assert json.loads((out / "evaluation/banking77/labels.json").read_text()) == [f"label {n}" for n in range(4)]
    summary = json.loads((out / "summary.json").read_text())
    assert {key: summary[key] for key in facts} == facts
    assert summary["bad_lines"] == {"ocnli": ["train.json:7: no label"]}
    assert summary["sets"]["train/medquad"]["passage_words"]["max"] == 34


def test_records_with_an_evaluated_text_are_left_out_and_counted(make: Callable[..., Made]) -> None:
    facts, out = make()
    assert facts["shared_texts"] == 0
    assert facts["rows"]["train/medquad"] == 40
    assert facts["dropped"]["train/medquad"] == {"a text is evaluated, or nearly so": 3}
    known = normalise(sentence("paragraph", 0))
    assert not {known, f"{known} x"} & texts_of(out, *TRAINED, *NEW)
    ledger = json.loads((out / "summary.json").read_text())["overlap"]
    entries = {(entry["evaluation"], entry["trained_on"]): entry for entry in ledger}
    assert len(entries) == len(TASKS) * len((*TRAINED, *NEW))
    assert entries["medquad", "medquad"]["exact"] == 2
    assert (entries["nq_open_oracle", "medquad"]["exact"], entries["nq_open_oracle", "medquad"]["rows"]) == (1, 2)


def test_overlap_can_be_reported_instead(make: Callable[..., Made]) -> None:
    facts, out = make(overlap="report")
    assert facts["rows"]["train/medquad"] == 43
    assert facts["shared_texts"] == 3
    assert normalise(sentence("paragraph", 0)) in texts_of(out, "medquad")


@pytest.mark.parametrize("overlap", ["drop", "report"])
def test_what_a_classifier_is_fitted_on_is_trained_on_by_nobody(make: Callable[..., Made], overlap: str) -> None:
    facts, out = make(overlap=overlap)
    fitted_on = {normalise(row["text"]) for row in read_jsonl(out / "evaluation/banking77/train.jsonl")}
    assert len(fitted_on) == 40
    assert not fitted_on & texts_of(out, *TRAINED, *NEW)
    assert facts["dropped"]["train/banking77"] == {"classifiers of the evaluation are fitted on it": 40}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(make: Callable[..., Made]) -> None:
    changes = {"train_rows": 8, "evaluation_queries": 6, "evaluation_documents": 9}
    first = folder_bytes(make("first", **changes)[1])
    assert first == folder_bytes(make("second", **changes)[1])
    other = folder_bytes(make("third", seed=1, **changes)[1])
    assert set(other) == set(first)
    changed = {name for name in first if first[name] != other[name]}
    assert {f"train/{name}.jsonl" for name in TRAINED} <= changed


def test_a_dataset_more_or_less_changes_no_other_one(make: Callable[..., Made]) -> None:
    alone = folder_bytes(make("alone", datasets=("medquad",), new_datasets=())[1])
    together = folder_bytes(make("together")[1])
    assert alone["train/medquad.jsonl"] == together["train/medquad.jsonl"]
    assert all(alone[name] == together[name] for name in alone if name.startswith("evaluation/"))


def test_limits_hold_for_every_set(make: Callable[..., Made]) -> None:
    facts, out = make(train_rows=5, evaluation_queries=4, evaluation_documents=7, hard_negatives=3)
    assert all(rows <= 5 for name, rows in facts["rows"].items() if name.startswith("train/"))
    assert {facts["rows"][f"evaluation/{task}"] for task in TASKS} == {4}
    assert len(read_jsonl(out / "evaluation/nq_open_oracle/corpus.jsonl")) == 7
    assert {len(row.neg) for row in read_examples(out / "train/medquad.jsonl")} == {3}
    assert {len(row.neg) for row in read_examples(out / "train/ocnli.jsonl")} == {1}


def test_a_dataset_that_is_evaluated_only_cannot_be_trained_on(make: Callable[..., Made]) -> None:
    with pytest.raises(ManifestError, match=r"only evaluated[\s\S]*nq_open_oracle"):
        make(datasets=("nq_open_oracle",))
    with pytest.raises(ManifestError, match="no evaluation task 'nq_open'"):
        make(tasks=("nq_open",))
    with pytest.raises(ManifestError, match="without files"):
        corpus = CorpusConfig(manifest="python_docs", datasets=("exception_class",))
        make_examples(load_manifest("python_docs"), corpus, (), Path(), Path())


def test_a_set_that_ends_up_empty_is_an_error_that_says_why(make: Callable[..., Made], tmp_path: Path) -> None:
    alone = Raw("pairs", {"train": table("query passage", [("who", "the cat")])}, ())
    with pytest.raises(DataError, match=r"no rows in train/medquad[\s\S]*without a negative"):
        make(tasks=(), raws={"medquad": alone}, datasets=("medquad",), new_datasets=())
    assert not (tmp_path / "made" / "summary.json").exists()


def test_the_fingerprint_depends_on_the_files_of_the_datasets(manifest: Manifest, make: Callable[..., Made]) -> None:
    datasets = [manifest.dataset(name) for name in ("medquad", "ocnli")]
    assert files_fingerprint(datasets) == files_fingerprint(datasets)
    assert files_fingerprint(datasets) != files_fingerprint(datasets[:1])
    facts, _ = make(tasks=("medquad",), datasets=("medquad",), new_datasets=("ocnli",))
    assert facts["fingerprint"] == files_fingerprint(datasets)


# --- real files -------------------------------------------------------------------------------------------------------

MIRROR = SHARED / "mirror"


@pytest.mark.skipif(not MIRROR.is_dir(), reason="no mirror of the files of open_text beside the project")
def test_real_files_give_the_sets_that_an_earlier_conversion_found_in_them(manifest: Manifest, tmp_path: Path) -> None:
    """Where that one took all rows of the same part; it knew nothing of ours."""
    tasks = ("cisi", "cosqa", "arxiv_s2s", "amazon_counterfactual_en", "mrpc")
    corpus = CorpusConfig(manifest="open_text", datasets=("arxiv_s2s",), new_datasets=("conala",))
    facts = make_examples(manifest, corpus, tasks, MIRROR, tmp_path / "made")
    sources = yaml.load((MIRROR / "sources.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["datasets"]
    converted = {one["name"]: one["converted"] for one in sources}
    for task in tasks:
        rows = next(one["rows"] for one in converted[task] if one["set"].startswith("eval"))
        found = {path.stem: path for path in (tmp_path / "made" / "evaluation" / task).glob("*.jsonl")}
        assert {name: len(read_jsonl(path)) for name, path in found.items()} == rows, task
    assert facts["shared_texts"] == 0
    rows = read_examples(tmp_path / "made" / "train" / "conala.jsonl")
    assert {len(row.neg) for row in rows} == {7}
    assert all(not {normalise(text) for text in row.neg} & {normalise(text) for text in row.pos} for row in rows)


@pytest.mark.skipif(not MIRROR.is_dir(), reason="no mirror of the files of open_text beside the project")
def test_a_damaged_file_stops_the_conversion_before_anything_is_written(manifest: Manifest, tmp_path: Path) -> None:
    dataset = manifest.dataset("conala")
    assert dataset.origin is not None
    for file in dataset.origin.files:
        content = (MIRROR / file.path).read_bytes()
        place = tmp_path / "downloads" / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content[: len(content) // 2])
    corpus = CorpusConfig(manifest="open_text", datasets=("conala",))
    with pytest.raises(DataError, match="conala"):
        make_examples(manifest, corpus, ("conala",), tmp_path / "downloads", tmp_path / "made")
    assert not (tmp_path / "made").exists()
