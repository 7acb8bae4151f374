"""A corpus of files, from records to its folder: everything counted, nothing evaluated is trained on, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boom_utils.config import CorpusConfig
from boom_utils.data import convert, open_text
from boom_utils.data.convert import make_examples
from boom_utils.data.examples import BadRows, normalise, read_examples, read_jsonl
from boom_utils.data.manifest import Dataset, load_manifest
from boom_utils.data.text_files import Raw, table_of
from boom_utils.errors import DataError, ManifestError

MANIFEST = load_manifest("open_text")
TRAINED = ("medquad", "banking77", "stsbenchmark")
NEW = ("ocnli",)
TASKS = ("medquad", "banking77", "stsbenchmark", "wikiqa", "nq_open_oracle")


def raw(shape: Any, **parts: list[tuple[Any, ...]]) -> Raw:
    return Raw(shape, {part: table_of(shape, rows) for part, rows in parts.items()})


def sentence(*names: object) -> str:
    """Thirty-odd words that no other names give: nothing is near anything by chance."""
    generator = np.random.default_rng([ord(letter) for letter in str(names)])
    return " ".join("".join(chr(97 + c) for c in generator.integers(26, size=5)) for _ in range(34))


def two(one: str, other: str, count: int) -> list[tuple[Any, ...]]:
    return [(sentence(one, n), sentence(other, n)) for n in range(count)]


def records() -> dict[str, Raw]:
    """Records of six datasets; medquad's training part repeats evaluated texts exactly and nearly."""
    known = sentence("paragraph", 0)
    medquad = [*two("question", "answer", 40), *two("asked", "held", 1), ("new", known), ("newer", known + " x")]
    bank = {name: [(sentence("bank", name, n), f"label {n % 4}") for n in range(size)] for name, size in PARTS.items()}
    sts = {name: [(*pair, float(n % 6)) for n, pair in enumerate(two(name, "b" + name, 48))] for name in PARTS}
    nli = [(sentence("premise", n // 2), sentence("it", n), ("entailment", "contradiction")[n % 2]) for n in range(20)]
    wikiqa = [(sentence("why", n // 2), sentence("since", n), "01"[n % 2]) for n in range(12)]
    return {
        "medquad": raw("pairs", train=medquad, test=two("asked", "held", 12)),
        "banking77": raw("labelled", **bank),
        "stsbenchmark": raw("graded", **sts),
        "ocnli": raw("nli", train=nli),
        "wikiqa": raw("candidates", test=wikiqa),
        "nq_open_oracle": raw("pairs", test=two("open", "paragraph", 12)),
    }


PARTS = {"train": 80, "test": 12}
Made = tuple[dict[str, Any], Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Makes the examples of the records above; keyword arguments change the corpus."""
    raws = records()
    raws["ocnli"] = replace(raws["ocnli"], bad=BadRows(skip=True))
    raws["ocnli"].bad.add("train.json:7: no label")

    def read(dataset: Dataset, folder: Path, on_bad_line: str) -> Raw:
        assert (folder, on_bad_line) == (tmp_path / "downloads", "skip")
        return raws[dataset.id]

    monkeypatch.setattr(open_text, "read_dataset", read)
    monkeypatch.setattr(convert, "fetch_datasets", lambda datasets, folder: "all are there")

    def made(name: str = "made", tasks: tuple[str, ...] = TASKS, **changes: Any) -> Made:
        raws.update(changes.pop("raws", {}))
        options = {"manifest": "open_text", "datasets": TRAINED, "new_datasets": NEW, "on_bad_line": "skip"}
        corpus = CorpusConfig.model_validate({**options, **changes})
        return make_examples(MANIFEST, corpus, tasks, tmp_path / "downloads", tmp_path / name), tmp_path / name

    return made


def texts_of(folder: Path) -> set[str]:
    rows = [row for path in (folder / "train").iterdir() for row in read_examples(path)]
    return {normalise(text) for row in rows for text in (row.query, *row.pos, *row.neg)}


def test_the_folder_holds_every_set_and_facts_that_agree_with_it(make: Callable[..., Made]) -> None:
    facts, out = make()
    retrieval = ["corpus", "qrels", "queries"]
    files = {task: sorted(path.stem for path in (out / "evaluation" / task).iterdir()) for task in TASKS}
    assert files == {
        "medquad": retrieval,
        "banking77": ["labels", "test", "train"],
        "stsbenchmark": ["test"],
        "wikiqa": [*retrieval, "top_ranked"],
        "nq_open_oracle": retrieval,
    }
    assert list(facts) == ["rows", "fingerprint", "deviations", "dropped", "shared_texts"]
    assert facts["rows"] == {
        **{f"train/{name}": len(read_examples(out / "train" / f"{name}.jsonl")) for name in (*TRAINED, *NEW)},
        **{f"evaluation/{task}": 48 if task == "stsbenchmark" else 6 if task == "wikiqa" else 12 for task in TASKS},
    }
    assert json.loads((out / "evaluation/banking77/labels.json").read_text()) == [f"label {n}" for n in range(4)]
    summary = json.loads((out / "summary.json").read_text())
    assert {key: summary[key] for key in facts} == facts
    assert summary["bad_lines"] == {"ocnli": {"number": 1, "first": ["train.json:7: no label"]}}
    assert summary["sets"]["train/medquad"]["passage_words"] == {"min": 34, "median": 34, "p95": 34, "max": 34}


@pytest.mark.promise(8)
@pytest.mark.parametrize("overlap", ["drop", "report"])
def test_records_with_an_evaluated_text_are_left_out_and_counted_or_reported(
    make: Callable[..., Made], overlap: str
) -> None:
    facts, out = make(overlap=overlap)
    dropped = {"a text is evaluated, or nearly so": 3} if overlap == "drop" else None
    assert facts["dropped"].get("train/medquad") == dropped
    assert (facts["rows"]["train/medquad"], facts["shared_texts"]) == ((40, 0) if dropped else (43, 3))
    assert (normalise(sentence("paragraph", 0)) in texts_of(out)) == (overlap == "report")
    ledger = json.loads((out / "summary.json").read_text())["overlap"]
    entries = {(entry["evaluation"], entry["trained_on"]): entry for entry in ledger}
    assert len(entries) == len(TASKS) * len((*TRAINED, *NEW))
    assert entries["medquad", "medquad"]["exact"] == 2
    assert (entries["nq_open_oracle", "medquad"]["exact"], entries["nq_open_oracle", "medquad"]["rows"]) == (1, 2)
    # What a classifier is fitted on is trained on by nobody, whatever becomes of overlap.
    fitted_on = {normalise(row["text"]) for row in read_jsonl(out / "evaluation/banking77/train.jsonl")}
    assert len(fitted_on) == 40 and not fitted_on & texts_of(out)
    assert facts["dropped"]["train/banking77"] == {"classifiers of the evaluation are fitted on it": 40}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others_within_the_limits(
    make: Callable[..., Made],
) -> None:
    changes = {"train_rows": 5, "evaluation_queries": 4, "evaluation_documents": 7, "hard_negatives": 3}
    facts, out = make("first", **changes)
    first = folder_bytes(out)
    assert first == folder_bytes(make("second", **changes)[1])
    other = folder_bytes(make("third", seed=1, **changes)[1])
    assert {f"train/{name}.jsonl" for name in TRAINED} <= {name for name in first if first[name] != other[name]}
    assert {rows for name, rows in facts["rows"].items()} == {4, 5}
    assert len(read_jsonl(out / "evaluation/nq_open_oracle/corpus.jsonl")) == 7
    assert {len(row.neg) for row in read_examples(out / "train/medquad.jsonl")} == {3}
    assert {len(row.neg) for row in read_examples(out / "train/ocnli.jsonl")} == {1}


def test_what_cannot_be_trained_on_or_evaluated_is_refused(make: Callable[..., Made], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no evaluation task 'nq_open'"):
        make(tasks=("nq_open",))
    alone = raw("pairs", train=[("who", "the cat")])
    with pytest.raises(DataError, match=r"no rows in train/medquad[\s\S]*left out[\s\S]*without a negative"):
        make(tasks=(), raws={"medquad": alone}, datasets=("medquad",), new_datasets=())
    assert not (tmp_path / "made" / "summary.json").exists()
