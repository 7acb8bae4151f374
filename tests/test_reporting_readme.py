"""The README's results are what the committed files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reading import LINK, with_values
from readme_results import draw, drawn_from, figures_of, source_of, with_results

from boom_utils.artifacts import PROJECT_ROOT, write_json, write_text
from boom_utils.errors import ResultsError
from boom_utils.reporting.tables import NO_BREAK_SPACE

README = PROJECT_ROOT / "README.md"
RESULTS_PAGE = PROJECT_ROOT / "docs" / "results.md"
READING = PROJECT_ROOT / "results" / "README.md"
WRITTEN = {
    README: lambda text: with_results(text),
    RESULTS_PAGE: lambda text: with_results(text, links="../results"),
    READING: lambda text: with_values(text, READING.parent),
}


@pytest.mark.parametrize("page", WRITTEN, ids=["readme", "results", "reading"])
def test_every_number_is_what_the_committed_results_say(page: Path, pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_reporting_readme.py --regenerate-golden` writes pages and figures anew."""
    text = page.read_text(encoding="utf-8")
    expected = WRITTEN[page](text)
    if pytestconfig.getoption("--regenerate-golden"):
        write_text(page, expected)
    assert page.read_text(encoding="utf-8") == expected, "a table has changed; read the sentence again, then write anew"


def test_the_figures_of_the_readme_are_of_the_committed_ones_and_small(pytestconfig: pytest.Config) -> None:
    shown = figures_of(README.read_text(encoding="utf-8"))
    assert len(shown) == 3 and ("controls", "frontier") in shown.values()
    for name, (profile, figure) in shown.items():
        stale = drawn_from(PROJECT_ROOT / name) != source_of(profile, figure)
        if stale and pytestconfig.getoption("--regenerate-golden"):
            draw(profile, figure, PROJECT_ROOT / name)
            stale = drawn_from(PROJECT_ROOT / name) != source_of(profile, figure)
        assert not stale, f"{name} does not show results/{profile}/figures/{figure}.svg: write it anew"
    kept = {path.relative_to(PROJECT_ROOT).as_posix() for path in (PROJECT_ROOT / "docs" / "figures").iterdir()}
    assert kept == {*shown}
    assert sum((PROJECT_ROOT / name).stat().st_size for name in shown) <= 400_000


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


def block(name: str, root: Path = READING.parent) -> str:
    """What stands between the markers of that name."""
    return with_results(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n", root)


def test_the_readme_says_of_the_deciding_study_what_is_decided_and_what_not(tmp_path: Path) -> None:
    folder = tmp_path / "controls"
    rows = ["verdict,rank,model,against,domain,difference,difference low,difference high"]
    rows += ["inconclusive,primary,boom,soup,in-domain,1,-2,4", "higher,primary,boom,soup,out-of-domain,0.5,0.25,0.75"]
    write_text(folder / "tables" / "hypotheses.csv", "\n".join([*rows, "lower,secondary,boom,base,in-domain,-1,-2,0"]))
    study = {"seeds": {"boom": ["boom", "boom.seed2"]}, "unfinished": ["boom.seed3", "boom-halves", "soup.seed3"]}
    write_json(folder / "study.json", study)
    expected = "1 of the 2 comparisons that `controls` was made for are decided so far, with 2 of 3 seeds"
    assert expected in block("answer", tmp_path)
    line = "- boom minus soup: +1.0 [-2.0, +4.0] points in domain, inconclusive; +0.5 [+0.2, +0.8] points out of domain"
    assert f"{line}, higher" in block("answer", tmp_path)
    write_json(folder / "study.json", study | {"unfinished": ["boom-halves"]})
    assert "are decided with 2 seeds:" in block("answer", tmp_path)


def test_every_benchmark_has_a_line_and_those_that_compare_something_a_short_one() -> None:
    whole, short = block("all_benchmarks"), block("benchmarks")
    for path in (PROJECT_ROOT / "results" / "benchmarks").glob("*.json"):
        (line,) = [one for one in whole.splitlines() if f"(results/benchmarks/{path.name})" in one]
        assert short.count(f"(results/benchmarks/{path.name})") == (line.split(" | ")[1].strip() != "")


def test_no_mean_of_a_released_model_is_over_fewer_tasks() -> None:
    rows = {line.split(" | ")[0]: line for line in block("published").splitlines()}
    assert "69.93, mteb 1.39.7" in rows["| BOOM_4B_v1 at 33fb3454"]
    assert "n/a (missing: SummEvalSummarization.v2)" in rows["| BOOM_4B_v1 at 447ab885"]


def test_no_committed_study_is_said_and_a_committed_one_is_shown(tmp_path: Path) -> None:
    write_json(tmp_path / "smoke" / "study.json", {})
    assert "No profile's results are committed yet" in block("studies", tmp_path), "smoke is not committed"
    write_json(tmp_path / "mini" / "study.json", {})
    for end in ("csv", "md"):
        write_text(tmp_path / "mini" / "tables" / f"headline.{end}", "model,in-domain,examples\nboom,50.25,3\n")
    write_text(tmp_path / "mini" / "claims.csv", "claim,verdict\na,supported\nb,inconclusive\nc,supported\n")
    section = block("studies", tmp_path)
    shown = ("2 supported, 1 inconclusive", "| model | in-domain |", "[`report.html`](results/mini/report.html)")
    assert all(part in section for part in shown) and "committed yet" not in section
    write_json(tmp_path / "mini-validation" / "study.json", {})
    write_text(tmp_path / "mini-validation" / "claims.csv", "claim,verdict\na,not tested by this profile\n")
    assert "| It tests no claim of the paper. |" in block("all_studies", tmp_path)


def test_a_benchmark_nobody_described_is_shown_by_its_ratios_and_a_malformed_one_is_an_error(tmp_path: Path) -> None:
    facts = {"ratio": 1.5, "ratio_floor": 2.25, "sentence_transformers": "6.2.0", "machine": "one", "measured": "a day"}
    write_json(tmp_path / "benchmarks" / "new_thing.json", facts)
    row = next(line for line in block("all_benchmarks", tmp_path).splitlines() if line.startswith("| new thing"))
    assert "| sentence-transformers 6.2.0 | ratio 1.50; ratio floor 2.25 | one; a day |" in row
    write_text(tmp_path / "benchmarks" / "new_thing.json", "{")
    with pytest.raises(ResultsError, match=r"new_thing\.json"):
        block("benchmarks", tmp_path)


BEGIN, END = "<!-- answer: begin -->", "<!-- answer: end -->"


@pytest.mark.parametrize(
    "text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}", f"{BEGIN}\n{END}".replace("answer", "x")]
)
def test_a_page_without_its_markers_is_an_error(text: str) -> None:
    with pytest.raises(ResultsError, match="no place for results"):
        with_results(text)
