"""The deviation ledger: every value of a profile, the paper's where it is known, and from where."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from boom_utils.config import Profile, load_profile, profile_names
from boom_utils.errors import ResultsError
from boom_utils.reporting.deviations import UNKNOWN, deviations_table, deviations_text, write_deviations
from boom_utils.reporting.results import Results
from boom_utils.study.deviations import PAPER_PROFILE, deviations, source_of


@pytest.fixture(scope="module")
def paper() -> Profile:
    return load_profile(PAPER_PROFILE)


@pytest.fixture(scope="module")
def smoke(paper: Profile) -> pd.DataFrame:
    return deviations_table(deviations(load_profile("smoke"), paper)).set_index("key")


def test_a_value_that_differs_stands_beside_the_papers_with_its_source(smoke: pd.DataFrame, paper: Profile) -> None:
    row = smoke.loc["training.temperature"]
    assert row["this study"] == f"{load_profile('smoke').training.temperature:g}"
    assert row["paper's value"] == f"{paper.training.temperature:g}"
    assert row["source"] == "authors' script"


def test_what_the_paper_does_not_say_is_ours(smoke: pd.DataFrame, paper: Profile) -> None:
    assert paper.sources["evaluation.confidence"] == "ours"
    for key in ("evaluation.confidence", "base_model.vocab_size", "members.continued"):
        assert smoke.loc[key, "paper's value"] == UNKNOWN
        assert smoke.loc[key, "source"] == "ours"


@pytest.mark.parametrize("name", profile_names())
def test_every_value_of_every_profile_is_in_its_ledger(name: str, paper: Profile) -> None:
    profile = load_profile(name)
    found = deviations_table(deviations(profile, paper))
    keys = found["key"].to_list()
    assert len(keys) == len(set(keys))
    for part in ("corpus", "base_model", "training", "evaluation"):
        for field in type(getattr(profile, part)).model_fields:
            assert any(key == f"{part}.{field}" or key.startswith(f"{part}.{field}.") for key in keys), field
    for group in ("subsets", "members", "merges"):
        assert {f"{group}.{entry.name}" for entry in getattr(profile, group)} <= set(keys)
    assert set(found["source"]) <= {"paper", "authors' script", "model card", "third-party summary", "ours"}
    assert not found.isna().any().any()


def test_a_profiles_own_source_makes_its_value_the_papers(paper: Profile) -> None:
    found = {entry["key"]: entry for entry in deviations(paper, paper)}
    for key, text in paper.sources.items():
        if key in found:
            assert found[key]["source"] == text.partition(":")[0]
            assert (found[key]["paper"] == found[key]["value"]) == (found[key]["source"] != "ours")


def test_a_key_speaks_for_all_below_it_that_have_none_of_their_own() -> None:
    sources = {"members": "paper: all of them", "members.a": "ours: this one"}
    assert source_of(sources, "members.b") == ("paper", "all of them")
    assert source_of(sources, "members.a") == ("ours", "this one")
    assert source_of(sources, "merges.a") == ("ours", "")


def test_the_page_parts_what_differs_from_what_is_the_same_and_from_what_is_ours(smoke: pd.DataFrame) -> None:
    page = deviations_text(smoke.reset_index(), "smoke")
    differs, same, ours = page.split("\n## ")[1:]
    assert "| training.temperature |" in differs
    assert "| training.num_train_epochs |" in same
    assert "| evaluation.confidence |" in ours
    assert "nan" not in page
    assert UNKNOWN not in differs.split("\n", 1)[1]


def test_line_breaks_spaces_at_the_ends_and_values_that_are_not_set_can_be_seen(paper: Profile) -> None:
    changed = paper.model_copy(update={"description": "x"})
    template = changed.evaluation.model_copy(update={"query_template": "{prompt}\n{query} "})
    base = changed.base_model.model_copy(update={"revision": None})
    found = {
        e["key"]: e for e in deviations(changed.model_copy(update={"evaluation": template, "base_model": base}), paper)
    }
    assert found["evaluation.query_template"]["value"] == "'{prompt}\\n{query} '"
    assert found["base_model.revision"]["value"] == "not set"


def test_a_bar_in_a_value_does_not_break_the_table() -> None:
    entry = {"key": "a", "value": "x|y", "paper": None, "source": "ours", "note": ""}
    assert "x\\|y" in deviations_text(deviations_table([entry]), "mine")


def test_results_without_deviations_write_nothing_and_malformed_ones_are_refused(tmp_path: Path) -> None:
    assert write_deviations(Results(tmp_path, {}), tmp_path) == []
    assert not list(tmp_path.iterdir())
    with pytest.raises(ResultsError, match="no note, source"):
        deviations_table([{"key": "a", "value": "1", "paper": None}])


def test_the_same_profile_gives_the_same_bytes(paper: Profile, tmp_path: Path) -> None:
    results = Results(tmp_path, {"profile": "smoke", "deviations": deviations(load_profile("smoke"), paper)})
    pages = [[path.read_bytes() for path in write_deviations(results, tmp_path / name)] for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert len(pages[0]) == 2
