"""The README's results are what the committed files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reading import LINK, with_values
from readme_results import BEGIN, END, results_section, with_results

from boom_utils.artifacts import PROJECT_ROOT, write_json, write_text
from boom_utils.errors import ResultsError
from boom_utils.reporting.tables import NO_BREAK_SPACE

README = PROJECT_ROOT / "README.md"
READING = PROJECT_ROOT / "results" / "README.md"


@pytest.mark.parametrize("page", [README, READING], ids=["readme", "reading"])
def test_every_number_is_what_the_committed_results_say(page: Path, pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_reporting_readme.py --regenerate-golden` writes sections and links anew."""
    text = page.read_text(encoding="utf-8")
    expected = with_results(text, results_section()) if page == README else with_values(text, page.parent)
    if pytestconfig.getoption("--regenerate-golden"):
        write_text(page, expected)
    assert page.read_text(encoding="utf-8") == expected, "a table has changed; read the sentence again, then write anew"


def test_no_result_is_typed_into_the_reading() -> None:
    prose = re.sub(r"`[^`]*`", "", LINK.sub("", READING.read_text(encoding="utf-8")))
    assert not re.findall(r"\d+\.\d+", prose)


def test_a_link_of_the_reading_is_filled_with_its_cell_and_others_are_left_alone(tmp_path: Path) -> None:
    write_text(
        tmp_path / "mini" / "tables" / "models.csv",
        "model,kind,gap minus full,gap minus full low,gap minus full high,n\nboom,a,0.25,-0.5,1,3\nboom,b,,,,\n",
    )
    text = (
        "See [?](mini/tables/models.md#boom+a/gap%20minus%20full), [old [x]](mini/tables/models.md#a/n), [b](c.md#d)."
    )
    gap, number = "[+0.2 [-0.5, +1.0]]", "[3]"
    filled = with_values(text, tmp_path)
    assert filled.replace(NO_BREAK_SPACE, " ") == (
        f"See {gap}(mini/tables/models.md#boom+a/gap%20minus%20full), {number}(mini/tables/models.md#a/n), [b](c.md#d)."
    )
    assert with_values(filled, tmp_path) == filled


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("mini/tables/gone.md#boom/n", "table that does not exist"),
        ("mini/tables/models.md#boom/n", "found: 2"),
        ("mini/tables/models.md#bom/n", "found: 0"),
        ("mini/tables/models.md#a/m", "the column 'm'"),
    ],
)
def test_a_link_of_the_reading_that_leads_nowhere_is_an_error(link: str, message: str, tmp_path: Path) -> None:
    write_text(tmp_path / "mini" / "tables" / "models.csv", "model,kind,n\nboom,a,3\nboom,b,4\n")
    with pytest.raises(ResultsError, match=message):
        with_values(f"[?]({link})", tmp_path)


def test_every_benchmark_and_released_model_has_a_line_and_no_mean_is_over_fewer_tasks() -> None:
    section = results_section()
    for path in (PROJECT_ROOT / "results" / "benchmarks").glob("*.json"):
        (row,) = [line for line in section.splitlines() if f"(results/benchmarks/{path.name})" in line]
        assert row.count(" | ") == 4
    rows = {line.split(" | ")[0]: line for line in section.splitlines() if line.startswith("| BOOM_4B_v1")}
    assert "69.93, mteb 1.39.7" in rows["| BOOM_4B_v1 at 33fb3454"]
    assert "n/a (missing: SummEvalSummarization.v2)" in rows["| BOOM_4B_v1 at 447ab885"]


def test_no_committed_study_is_said_and_a_committed_one_is_shown(tmp_path: Path) -> None:
    assert "No profile's results are committed yet (controls" in results_section(tmp_path)
    write_json(tmp_path / "smoke" / "study.json", {})
    assert "No profile's results are committed yet" in results_section(tmp_path), "smoke is not committed"
    write_json(tmp_path / "mini" / "study.json", {})
    write_text(tmp_path / "mini" / "tables" / "headline.md", "| model |\n|---|\n| boom |\n")
    write_text(tmp_path / "mini" / "claims.csv", "claim,verdict\na,supported\nb,inconclusive\nc,supported\n")
    section = results_section(tmp_path)
    shown = ("2 supported, 0 not supported, 1 inconclusive", "| boom |", "[`report.html`](results/mini/report.html)")
    assert all(part in section for part in shown) and "committed yet" not in section
    write_json(tmp_path / "mini-validation" / "study.json", {})
    write_text(tmp_path / "mini-validation" / "claims.csv", "claim,verdict\na,not tested by this profile\n")
    expected = "It tests no claim of the paper; [its models](results/mini-validation/tables/models.md)."
    assert f"**Study `mini-validation`.** {expected}" in results_section(tmp_path)


def test_a_benchmark_nobody_described_is_shown_by_its_ratios_and_a_malformed_one_is_an_error(tmp_path: Path) -> None:
    facts = {"ratio": 1.5, "ratio_floor": 2.25, "sentence_transformers": "6.2.0", "machine": "one", "measured": "a day"}
    write_json(tmp_path / "benchmarks" / "new_thing.json", facts)
    row = next(line for line in results_section(tmp_path).splitlines() if line.startswith("| new thing"))
    assert "| sentence-transformers 6.2.0 | ratio 1.50; ratio floor 2.25 | one; a day |" in row
    write_text(tmp_path / "benchmarks" / "new_thing.json", "{")
    with pytest.raises(ResultsError, match=r"new_thing\.json"):
        results_section(tmp_path)


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_readme_without_its_markers_is_an_error(text: str) -> None:
    with pytest.raises(ResultsError, match="no place for results"):
        with_results(text, "x")
