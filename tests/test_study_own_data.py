"""A reader's own rows and model: two ordinary files are written, and the study of them runs like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mteb  # noqa: F401  (while it is imported it draws from torch's global generator)
import pandas as pd
import pytest
from conftest import TEXTS, bert_folder

from boom_utils.artifacts import Workspace
from boom_utils.cli import main
from boom_utils.config import PretrainedBase, load_profile
from boom_utils.data.manifest import load_manifest
from boom_utils.data.own import own_datasets
from boom_utils.errors import ConfigError, DataError
from boom_utils.reporting.results import read_results
from boom_utils.reporting.tables import model_table
from boom_utils.study.graph import Study
from boom_utils.study.own_data import OwnData, write_own_study

PROMPT = "Given a question, retrieve what answers it."


def rows(path: Path, count: int = 60) -> Path:
    lines = [
        {"query": f"question {n} {TEXTS[n % 8]}", "pos": [f"answer {n} {TEXTS[n % 8]}"], "neg": [f"other {n}"]}
        for n in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_names_that_collide_and_ratios_without_a_reference_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file, smoke = str(rows(tmp_path / "a.jsonl")), load_profile("smoke")
    with pytest.raises(ConfigError, match=r"(?s)two datasets get one name.*my_data"):
        write_own_study(OwnData({"My Data": [file], "my_data": [file]}, "owner/model", PROMPT), smoke, tmp_path / "own")
    for ratios in ((0.4, 0.8), (0.4, 0.4, 1.0)):
        with pytest.raises(ConfigError, match=r"need a 1\.0"):
            write_own_study(OwnData({"a": [file]}, "owner/model", PROMPT, ratios=ratios), smoke, tmp_path / "own")
    (tmp_path / "b.csv").write_text("frage,antwort\nwas?,das\n")
    with pytest.raises(
        DataError, match=r"(?s)no good row in b\.csv.*b\.csv:2: no columns of a training row in antwort, frage"
    ):
        write_own_study(OwnData({"b": [str(tmp_path / "b.csv")]}, "owner/model", PROMPT), smoke, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_the_files_written_name_no_place_of_this_machine_and_work_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = rows(tmp_path / "data" / "help_desk.jsonl"), bert_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "data")
    for model, prompt, style in ((str(folder), PROMPT, "instruct"), ("owner/model", "", "none")):
        own = OwnData({file.stem: [str(file)]}, model, prompt)
        written = write_own_study(own, load_profile("smoke"), tmp_path / "own")
        texts = [(written.parent / name).read_text(encoding="utf-8") for name in ("profile.yaml", "manifest.yaml")]
        assert str(tmp_path) not in "".join(texts)
        assert (PROMPT in texts[1]) == bool(prompt)
        profile = load_profile(written)
        base, manifest = profile.base_model, load_manifest(profile.manifest)
        assert isinstance(base, PretrainedBase) and base.prompts == style
        assert base.name == model or base.place.resolve() == folder.resolve()
        assert (manifest.folder / manifest.dataset("help_desk").place.files[0]).resolve() == file.resolve()
        assert profile.training.learning_rate == 2.5e-4


def of_kind(folder: Path, kind: str) -> Path:
    """160 rows of a kind, in a file that another tool wrote."""
    folder.mkdir()
    texts, answers = ([f"{TEXTS[n % 8]} {hex(10**9 * n**3 + one)}" for n in range(1, 161)] for one in (0, 1))
    columns: Any = {
        "pairs": {"anchor": texts, "positive": answers},
        "graded": {"sentence1": texts, "sentence2": answers[::-1], "score": [n % 6 / 5 for n in range(160)]},
        "labelled": {"text": texts, "label": [n % 8 for n in range(160)]},
    }[kind]
    table = pd.DataFrame(columns)
    if kind == "pairs":
        table.to_parquet(folder / "help_desk.parquet")
    else:
        table.to_csv(folder / "help_desk.csv", index=False)
    return folder


@pytest.mark.parametrize("kind", ["pairs", "graded", "labelled"])
def test_the_study_of_own_rows_trains_merges_and_compares_on_rows_that_nobody_trained_on(
    tmp_path: Path, kind: str
) -> None:
    datasets, model = own_datasets(of_kind(tmp_path / "data", kind)), bert_folder(tmp_path / "model")
    own = OwnData(datasets, str(model), "Find answers.", 0.3, (0.5, 1.0))
    written = write_own_study(own, load_profile("smoke"), tmp_path / "own")
    study = Study(load_profile(written), Workspace(tmp_path / "workspace"))
    made = study.build("examples")
    held_out, trained = made.facts["rows"]["evaluation/help_desk"], made.facts["rows"]["train/help_desk"]
    assert 160 * 0.15 < held_out < 160 * 0.45
    assert 0 < trained <= 160 - held_out
    assert made.facts["shared_texts"] == 0
    with pytest.raises(ConfigError, match="no model of 'own' is scored on every task yet"):
        study.write_finished(tmp_path / "so far")
    study.build_all("scores/full/")
    assert study.write_finished(tmp_path / "so far") == ["base", "s50", "plain-mean", "boom"]
    assert read_results(tmp_path / "so far").models == ["full"]
    results = study.results_of(study.profile.model_names)
    table = model_table(results)
    assert list(table["model"]) == ["base", "s50", "full", "plain-mean", "boom"]
    assert table["in-domain low"].notna().all()
    assert not [column for column in table if str(column).startswith("out-of-domain")]


def test_changed_rows_make_another_corpus_and_missing_ones_say_where_they_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path / "data" / "help_desk.jsonl")
    written = write_own_study(
        OwnData({file.stem: [str(file)]}, "owner/model", PROMPT), load_profile("smoke"), tmp_path / "own"
    )
    before = Study(load_profile(written), Workspace(tmp_path / "w")).nodes["examples"].config
    assert main(["check", "--profile", str(written)]) == 0
    assert "corpus own_data: files of 1 of 1 datasets are here" in capsys.readouterr().out
    rows(file, 61)
    assert Study(load_profile(written), Workspace(tmp_path / "w")).nodes["examples"].config != before
    file.unlink()
    assert main(["check", "--profile", str(written)]) == 1
    assert "problem  corpus own_data" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"help_desk\.jsonl"):
        Study(load_profile(written), Workspace(tmp_path / "w"))
