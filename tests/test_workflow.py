"""Studies on a cluster: single nodes are made by name, and a study's nodes are bundled into jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TEXTS, bert_folder

from boom_utils.artifacts import Workspace
from boom_utils.cli import main
from boom_utils.config import load_profile
from boom_utils.data.examples import write_jsonl
from boom_utils.study.graph import Study
from boom_utils.study.own_data import OwnData, write_own_study


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of sixty rows and a tiny model."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"query": f"{text} {n}", "pos": [f"answer {n} {text}"], "neg": [f"other {n}"]}
        for n in range(8)
        for text in TEXTS
    ]
    write_jsonl(folder / "faq.jsonl", rows)
    own = OwnData({"faq": [str(folder / "faq.jsonl")]}, str(bert_folder(folder / "model")), "Find it.")
    return write_own_study(own, load_profile("smoke"), folder / "study")


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    monkeypatch.setenv("BOOM_HOME", str(tmp_path / "workspace"))
    return Workspace(tmp_path / "workspace")


# --- boom build -------------------------------------------------------------------------------------------------------


def test_named_nodes_are_made_with_what_they_are_made_of_once_and_the_receipt_says_what_came_out(
    profile: Path, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt, names = tmp_path / "receipts" / "a.json", ["subset/p40", "subset/p70"]
    assert main(["build", *names, "--profile", str(profile), "--receipt", str(receipt)]) == 0
    said, written = capsys.readouterr().out, receipt.read_bytes()
    assert "examples of own_data: started" in said
    found = workspace.find_all(Study(load_profile(profile), workspace).nodes)
    assert {*found} == {"examples", *names}
    assert json.loads(written) == {
        name: {"key": found[name].key, "digest": found[name].digest, "seconds": found[name].record["wall_seconds"]}
        for name in names
    }
    assert main(["build", *names, "--profile", str(profile), "--receipt", str(receipt)]) == 0
    assert "started" not in capsys.readouterr().out
    assert receipt.read_bytes() == written


def test_an_unknown_node_is_an_error_before_anything_is_made(
    profile: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "subset/p40", "member/ful", "--profile", str(profile)]) == 2
    assert "no 'member/ful'; did you mean 'member/full'?" in capsys.readouterr().out
    assert not workspace.root.exists()
