"""A reader's own rows and model: one command makes a model of them, goes on where it was stopped, and updates it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mteb  # noqa: F401  (while it is imported it draws from torch's global generator)
import numpy as np
import pandas as pd
import pytest
from conftest import TEXTS, bert_folder, damaged
from sentence_transformers import SentenceTransformer

from boom_utils.artifacts import Workspace, write_json
from boom_utils.cli import main
from boom_utils.config import PretrainedBase, load_profile
from boom_utils.data.manifest import load_manifest
from boom_utils.data.own import own_datasets
from boom_utils.errors import ConfigError, DataError
from boom_utils.model_folder import read_spec
from boom_utils.reporting.results import read_results
from boom_utils.study.fit import Fit, compared, comparison_text, open_fit, write_study
from boom_utils.study.graph import Study

PROMPT = "Given a question, retrieve what answers it."


def rows(path: Path, first: int = 0, count: int = 160) -> Path:
    lines = [
        {"query": f"{TEXTS[n % 8]} {hex(10**9 * n**3)}", "pos": [f"{TEXTS[n % 8]} {hex(10**9 * n**3 + 1)}"]}
        for n in range(first, first + count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; the transformer alone lies beside it, under ``model-plain``."""
    return bert_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A folder with rows and a model, where commands are given, with a workspace of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "workspace"))
    measured = {"parameters": 2e6, "matrices": 1e6, "flops_per_second": 1e9, "encoding_flops_per_second": 1e9}
    monkeypatch.setattr("boom_utils.machine.measure", lambda *_: measured)
    rows(tmp_path / "faq.jsonl")
    shutil.copytree(model, tmp_path / "mine")
    return tmp_path


def fit(*words: str) -> int:
    return main(["fit", *words])


# --- the command ------------------------------------------------------------------------------------------------------


def test_one_command_makes_a_model_that_sentence_transformers_loads_compares_and_updates_it(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["faq.jsonl", "--base", "mine", "--out", "made", "--ratios", "50", "100", "--compare"]
    with monkeypatch.context() as patch:
        patch.setattr("boom_utils.study.fit._save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fit(*asked) == 130
    said = capsys.readouterr().out
    assert "learning_rate: 0.0001 (ours: the best of four" in said
    assert "to do: 2 runs, " in said
    assert "To go on: boom fit faq.jsonl --base mine" in said
    assert not (place / "made").exists()
    assert fit(*asked) == 0
    said = capsys.readouterr().out
    assert "started" not in said, "all was there"
    assert "| base |" in said and "| full |" in said
    assert "has not decided between them yet" in said or " than " in said
    encoder = SentenceTransformer("made", device="cpu")
    assert np.isfinite(encoder.encode(["a text"])).all()
    assert {path.name for path in (place / "made").glob("*")} >= {"README.md", "fit.json", "model.safetensors"}
    assert str(place) not in (place / "made" / "fit.json").read_text(encoding="utf-8")
    assert fit(*asked) == 0
    assert "made: up to date" in capsys.readouterr().out
    assert fit(*asked[:-1], "--held-out", "0.3") == 2
    assert "made otherwise" in capsys.readouterr().out

    rows(place / "news.jsonl", first=200)
    update = ["news.jsonl", "--update", "made", "--out", "newer", "--compare"]
    assert fit(*update) == 0
    said = capsys.readouterr().out
    assert "to do: 1 runs, " in said
    assert "held-out rows" in said and "held-out new rows" in said and "| before |" in said
    assert {*read_spec(place / "newer").prompts} == {"faq", "news", "query", "document"}
    rows(place / "faq.jsonl", count=161)
    assert fit(*update[:-2], "third", "--compare") == 1
    assert "faq.jsonl: changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("faq.jsonl --out made", "there is nothing to start from"),
        ("faq.jsonl --base mine --out made --ratios 20 40", "the ratios need a 1.0"),
        ("faq.jsonl --base mine --out made --ratios 5 100", "fills no batch"),
        ("faq.jsonl --base mine --out made --method soup --ratios 50 100", "--ratios are of the members of boom"),
        ("nowhere.jsonl --base mine --out made", "there are no training files"),
        ("faq.jsonl --base nowhere --out made", "'nowhere' is a Python distribution that is not installed"),
        ("faq.jsonl --base mine --out mine", "this folder was not made by boom fit"),
        ("faq.jsonl --update mine --out made", "this folder was not made by boom fit"),
        ("faq.jsonl --update mine --out made --method soup", "leave these out"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_trained(
    place: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*words.split()) == 2
    assert said in capsys.readouterr().out
    assert not (place / "workspace").exists()
    assert not (place / "made").exists()


def test_without_a_comparison_nothing_is_held_out_and_nobody_claims_anything(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("faq.jsonl", "--base", "mine", "--out", "made", "--method", "soup") == 0
    said = capsys.readouterr().out
    assert "nobody looked whether it is better than its base" in said
    assert json.loads((place / "made" / "fit.json").read_text(encoding="utf-8"))["held_out"] is None
    study = Study(load_profile(place / "workspace" / "fit" / "made" / "profile.yaml"))
    assert study.build("examples").facts["rows"] == {"train/faq": 160}
    assert damaged(study.build("merge/soup")) == []
    rows(place / "news.jsonl", first=200)
    assert fit("news.jsonl", "--update", "made", "--out", "newer", "--compare") == 2
    assert "no rows were held out" in capsys.readouterr().out


# --- the study --------------------------------------------------------------------------------------------------------


def test_names_that_collide_and_rows_that_cannot_be_read_are_refused_and_nothing_is_written(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)two datasets get one name.*my_data"):
        write_study(Fit({"My Data": ["faq.jsonl"], "my_data": ["faq.jsonl"]}, "mine"), place / "own")
    (place / "b.csv").write_text("frage,antwort\nwas?,das\n")
    with pytest.raises(
        DataError, match=r"(?s)no good row in b\.csv.*b\.csv:2: no columns of a training row in antwort, frage"
    ):
        write_study(Fit({"b": ["b.csv"]}, "mine"), place / "own")
    assert not (place / "own").exists()


@pytest.mark.parametrize(
    ("stated", "prompt", "expected"),
    [
        ({}, None, ("none", None)),
        ({}, PROMPT, ("instruct", None)),
        ({"query": "query: ", "document": "passage: "}, None, ("own", "query: ")),
        ({"faq": f"Instruct: {PROMPT}\nQuery: "}, None, ("own", f"Instruct: {PROMPT}\nQuery: ")),
        ("raw", None, ("none", None)),
    ],
)
def test_settings_follow_the_model_and_the_files_name_no_place_of_this_machine(
    place: Path, model: Path, stated: Any, prompt: str | None, expected: tuple[str, str | None]
) -> None:
    folder = shutil.copytree(model.with_name("model-plain") if stated == "raw" else model, place / "models" / "other")
    if stated and stated != "raw":
        write_json(folder / "config_sentence_transformers.json", {"prompts": stated})
    written = write_study(Fit({"faq": ["faq.jsonl"]}, str(folder), prompt=prompt, held_out=0.2), place / "own")
    texts = [(written.parent / name).read_text(encoding="utf-8") for name in ("profile.yaml", "manifest.yaml")]
    assert str(place) not in "".join(texts)
    profile = load_profile(written)
    base, manifest = profile.base_model, load_manifest(profile.manifest)
    assert isinstance(base, PretrainedBase) and (base.prompts, base.query_prompt) == expected
    assert base.place.resolve() == folder.resolve()
    assert base.max_seq_length == profile.training.passage_max_len == (64 if stated == "raw" else 48)
    assert (profile.training.learning_rate, base.pooling) == ((5e-5, "mean") if stated == "raw" else (1e-4, None))
    (file,) = manifest.dataset("faq").local.files  # type: ignore[union-attr]
    assert (manifest.folder / file).resolve() == place / "faq.jsonl"


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


@pytest.mark.parametrize(("kind", "method"), [("pairs", "interpolate"), ("graded", "boom"), ("labelled", "boom")])
def test_the_study_of_own_rows_trains_merges_and_compares_on_rows_that_nobody_trained_on(
    place: Path, kind: str, method: Any
) -> None:
    own = Fit(own_datasets(of_kind(place / "data", kind)), "mine", method, "Find answers.", 0.3, (0.5, 1.0))
    study = open_fit(own, place / "own", Workspace(place / "workspace"))
    made = study.build("examples")
    held_out, trained = made.facts["rows"]["evaluation/help_desk"], made.facts["rows"]["train/help_desk"]
    assert 160 * 0.15 < held_out < 160 * 0.45
    assert 0 < trained <= 160 - held_out
    assert made.facts["shared_texts"] == 0
    with pytest.raises(ConfigError, match="no model of 'own' is scored on every task yet"):
        study.write_finished(place / "so far")
    study.build_all("scores/full/")
    assert study.write_finished(place / "so far")[0] == "base"
    assert read_results(place / "so far").models == ["full"]
    name, results = compared(study, own)
    assert results.models == [*dict.fromkeys(("base", "full", name))]
    if method == "interpolate":
        assert name == "full" or name.startswith("interp-")
        assert 0 < len(results.samples("base")["help_desk"].ids) < held_out, "the other half chose the share"
    text = comparison_text(name, results)
    below = results.difference(name, "base", ["help_desk"]).value < 0
    assert text.startswith("**BELOW WHAT IT WAS MADE FROM**") == below


def test_changed_rows_make_another_corpus_and_missing_ones_say_where_they_should_be(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_study(Fit({"faq": ["faq.jsonl"]}, "mine"), place / "own")
    before = Study(load_profile(written), Workspace(place / "w")).nodes["examples"].config
    assert main(["check", "--profile", str(written)]) == 0
    assert "corpus own_data: files of 1 of 1 datasets are here" in capsys.readouterr().out
    file = rows(place / "faq.jsonl", count=161)
    assert Study(load_profile(written), Workspace(place / "w")).nodes["examples"].config != before
    file.unlink()
    assert main(["check", "--profile", str(written)]) == 1
    assert "problem  corpus own_data" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"faq\.jsonl"):
        Study(load_profile(written), Workspace(place / "w"))
