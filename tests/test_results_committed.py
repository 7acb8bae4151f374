"""Committed studies are complete and unchanged: their reports come out of their files byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from readme_results import UNCOMMITTED

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import PROFILES, load_profile
from boom_utils.reporting.report import write_report

RESULTS = PROJECT_ROOT / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/study.json") if path.parent.name not in UNCOMMITTED)
pytestmark = pytest.mark.skipif(not STUDIES, reason="no study is committed")


@pytest.mark.promise(32)
@pytest.mark.parametrize("name", STUDIES)
def test_tables_figures_claims_and_page_of_a_committed_study_come_out_byte_for_byte(name: str, tmp_path: Path) -> None:
    written = write_report(RESULTS / name, tmp_path)["written"]
    differing = [file for file in written if (tmp_path / file).read_bytes() != (RESULTS / name / file).read_bytes()]
    assert not differing, f"run `boom report --profile {name}` and look at what has changed"


@pytest.mark.promise(32)
@pytest.mark.parametrize("name", STUDIES)
def test_a_committed_study_has_every_model_and_task_of_its_profile_and_no_weights(name: str) -> None:
    assert (PROFILES / f"{name}.yaml").is_file()
    profile, study = load_profile(name), json.loads((RESULTS / name / "study.json").read_text(encoding="utf-8"))
    assert set(profile.scored_models) <= {*study["models"], *study.get("unfinished", ())}  # said where one is read
    wanted = {*profile.evaluation.in_domain, *profile.evaluation.out_of_domain}
    assert {task["name"] for task in study["tasks"]} == wanted
    large = [path for path in (RESULTS / name).rglob("*") if path.is_file() and path.stat().st_size > 5_000_000]
    assert not large
