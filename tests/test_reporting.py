"""Tables and figures from a results folder: nothing is averaged that is not there, equal data give equal bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from boom_utils.artifacts import write_json, write_text
from boom_utils.errors import ResultsError
from boom_utils.reporting.report import write_report
from boom_utils.reporting.results import read_results
from boom_utils.reporting.tables import checks_table, markdown, model_table

TASKS = {"alpha": "in-domain", "beta": "in-domain", "gamma": "out-of-domain"}
SKILL = {"random": 0.1, "base": 0.4, "half": 0.55, "full": 0.6, "merged": 0.65}


def scores(model: str, task: str) -> dict[str, Any]:
    rng = np.random.default_rng([ord(task[0]), 1])
    values = np.clip(rng.normal(SKILL[model], 0.1, 50), 0, 1).round(4).tolist()
    return {"metric": "ndcg_at_10", "ids": [str(number) for number in range(50)], "columns": {"value": values}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    member = {"steps": 4, "examples": 8, "tokens": 99, "mean_loss_last_tenth": 1.0}
    study = {
        "models": list(SKILL),
        "members": {"half": {"ratio": 0.5, **member}, "full": {"ratio": 1.0, **member}},
        "merges": {"merged": {"method": "multislerp", "members": ["half", "full"], "weights": [0.5, 1.0]}},
        "tasks": [{"name": name, "family": "retrieval", "domain": domain} for name, domain in TASKS.items()],
        "evaluation": {"reference": "full", "bootstrap_draws": 300, "confidence": 0.95, "seed": 0},
    }
    write_json(root / "study.json", study)
    for model in SKILL:
        for task in TASKS:
            write_json(root / "scores" / model / task / "samples.json", scores(model, task))
    for member_name in ("half", "full"):
        lines = [{"step": n, "dataset": "a", "queries": 2, "loss": 2.0 - n / 4, "tokens": 9} for n in range(4)]
        write_text(root / "training" / member_name / "training_log.jsonl", "\n".join(map(json.dumps, lines)))
    write_json(
        root / "geometry.json",
        {"members": ["half", "full"], "cosines": [[1, 0.2], [0.2, 1]], "relative_updates": [0.1, 0.2]},
    )
    write_json(root / "corpus" / "summary.json", {"sets": {"train/a": {"rows": 8, "query_words": {"median": 3.0}}}})
    return root


@pytest.mark.promise(32)
def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    written = [write_report(folder, tmp_path / name)["written"] for name in ("one", "two")]
    assert written[0] == written[1]
    for name in written[0]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_means_and_paired_differences_are_those_of_the_values(folder: Path) -> None:
    table = model_table(read_results(folder)).set_index("model")
    values = {(m, t): np.mean(scores(m, t)["columns"]["value"]) for m in SKILL for t in TASKS}
    expected = 50 * (values["merged", "alpha"] + values["merged", "beta"])
    assert table.loc["merged", "in-domain"] == pytest.approx(expected, abs=1e-3)
    gap = 100 * (values["merged", "gamma"] - values["full", "gamma"])
    assert table.loc["merged", "out-of-domain minus full"] == pytest.approx(gap, abs=1e-3)
    assert pd.isna(table.loc["full", "in-domain minus full"])
    assert table.loc["merged", "corpus passes"] == pytest.approx(1.5)


def test_a_verdict_may_be_no_or_inconclusive(folder: Path) -> None:
    for task in ("alpha", "beta"):
        write_json(folder / "scores" / "half" / task / "samples.json", scores("random", task))
        write_json(folder / "scores" / "full" / task / "samples.json", scores("base", task))
    verdicts = checks_table(read_results(folder)).set_index("model").verdict
    assert verdicts.to_dict() == {"base": "yes", "half": "no", "full": "inconclusive", "merged": "yes"}


def test_a_markdown_cell_holds_the_value_and_its_interval(folder: Path) -> None:
    text = markdown(model_table(read_results(folder)))
    row = next(line for line in text.splitlines() if line.startswith("| full"))
    assert "reference" in row
    assert len(text.splitlines()) == 2 + len(SKILL)
    assert " low" not in text


@pytest.mark.promise(30)
@pytest.mark.parametrize("damage", ["missing", "not json", "empty", "short"])
def test_a_missing_or_malformed_result_is_named_and_nothing_is_averaged(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    path = folder / "scores" / "merged" / "beta" / "samples.json"
    if damage == "missing":
        shutil.rmtree(path.parent)
    elif damage == "not json":
        path.write_text("{half")
    else:
        stored = scores("merged", "beta")
        stored["columns"]["value"] = [] if damage == "empty" else stored["columns"]["value"][:-1]
        path.write_text(json.dumps(stored))
    with pytest.raises(ResultsError, match=r"merged/beta"):
        write_report(folder, tmp_path / "out")


def test_a_folder_that_holds_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"study\.json"):
        read_results(tmp_path)
    write_json(tmp_path / "study.json", {"models": []})
    with pytest.raises(ResultsError, match="no tasks, evaluation, members, merges"):
        read_results(tmp_path)
