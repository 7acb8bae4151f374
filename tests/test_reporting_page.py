"""The page of a report: whole, self-contained, made from results alone, and at work in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas as pd
import pytest
from conftest import HANGS
from made_up_results import write_made_up_results
from readme_results import UNCOMMITTED

from boom_utils.artifacts import PROJECT_ROOT, write_json
from boom_utils.cli import main
from boom_utils.errors import ConfigError
from boom_utils.reporting.ablations import cost_table, headline_table
from boom_utils.reporting.controls import CONTROL_TABLES
from boom_utils.reporting.figures import task_deltas, write_figures
from boom_utils.reporting.frontier import frontier
from boom_utils.reporting.page import answer, page, read_table, shown_table
from boom_utils.reporting.published import PUBLISHED
from boom_utils.reporting.report import regenerate, write_report
from boom_utils.reporting.results import Results, read_results

HOSTILE = '<script>throw new Error("ran")</script><img src=x onerror="x()">"\'&amp;'
STUDIES = sorted(
    path.parent.name for path in (PROJECT_ROOT / "results").glob("*/study.json") if path.parent.name not in UNCOMMITTED
)
VOID = {"meta", "img", "wbr", "br", "link", "input", "hr"}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def add_facts(folder: Path) -> None:
    """What the made-up results lack: deviations, an environment; and text that would break a careless page."""
    study = json.loads((folder / "study.json").read_text())
    entry = {"key": "training.seed", "value": HOSTILE, "paper": "1", "source": "ours", "note": "x " * 200}
    study["deviations"] = [
        entry,
        {**entry, "key": "a", "value": "2", "paper": None},
        {**entry, "key": "b", "value": "1"},
    ]
    study["environment"] = {"python": "3.11.7", "machine": HOSTILE, "packages": {"torch": "2.13.0"}, "git_commit": None}
    study["profile"] = f"made-up {HOSTILE}"
    write_json(folder / "study.json", study)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up results with their report in the same folder, as in ``results/<profile>``."""
    root = tmp_path_factory.mktemp("results")
    made = write_made_up_results(root / "made-up")
    add_facts(made)
    shutil.copytree(PUBLISHED, root / "published")
    write_report(made, made)
    return made


class Elements(HTMLParser):
    """Every element with its attributes and text; an end tag that closes nothing, or the wrong thing, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[tuple[str, ...], str]] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == [], f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> inside {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.text.append((tuple(self.stack), data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def elements(folder: Path) -> Elements:
    return Elements((folder / "report.html").read_text(encoding="utf-8"))


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_its_ids_are_unique(elements: Elements) -> None:
    assert elements.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements.found:
        assert {*attributes.get("aria-labelledby", "").split()} <= {*ids}


def dead_links(page: Path) -> list[str]:
    """Targets of a page's links that lead to nothing in it or beside it."""
    elements = Elements(page.read_text(encoding="utf-8"))
    ids = {f"#{attributes['id']}" for _, attributes in elements.found if "id" in attributes}
    targets = [link["href"] for link in elements.all("a") if not link["href"].startswith("https://arxiv.org/")]
    return [target for target in targets if target not in ids and not (page.parent / target).is_file()]


def test_no_link_of_a_page_is_dead(folder: Path) -> None:
    assert dead_links(folder / "report.html") == []
    assert "../README.md" not in (folder / "report.html").read_text(encoding="utf-8"), "nothing reads it"


@pytest.mark.parametrize("study", STUDIES)
def test_no_link_of_a_committed_page_is_dead_and_the_reading_is_linked_where_it_reads_it(study: str) -> None:
    page = PROJECT_ROOT / "results" / study / "report.html"
    assert dead_links(page) == []
    read = f"]({study}/tables/" in (PROJECT_ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert ('href="../README.md"' in page.read_text(encoding="utf-8")) == read


def test_nothing_is_loaded_from_anywhere(elements: Elements) -> None:
    assert not elements.all("link") + elements.all("iframe") + elements.all("object")
    for attributes in elements.all("img"):
        kind, _, drawing = attributes["src"].partition(",")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(unquote(drawing)).tag == "{http://www.w3.org/2000/svg}svg"
        assert len(attributes["alt"]) > 20
    assert not elements.all("script"), "no script runs"
    style = "".join(text for stack, text in elements.text if stack[-1:] == ("style",))
    assert style
    assert not re.search(r"url\(|@import|@font-face", style)


def test_text_from_data_is_shown_as_text(folder: Path, elements: Elements) -> None:
    assert not elements.all("script")
    assert all("onerror" not in attributes for _, attributes in elements.found)
    shown = [text for _, text in elements.text]
    assert sum(HOSTILE in text for text in shown) >= 3
    assert HOSTILE not in (folder / "report.html").read_text(encoding="utf-8")


def test_every_table_and_figure_has_a_caption_and_names_its_file(folder: Path, elements: Elements) -> None:
    figures = elements.all("figure")
    anchors = {attributes["id"] for attributes in figures}
    assert {f"f-{path.stem}" for path in (folder / "figures").glob("*.svg")} <= anchors
    assert {f"t-{path.stem}" for path in (folder / "tables").glob("*.csv")} <= anchors
    assert len(elements.all("figcaption")) == len(figures)
    links = {link["href"] for link in elements.all("a")}
    made = [*(folder / "tables").glob("*.csv"), *(folder / "figures").glob("*.svg"), *folder.glob("*.csv")]
    assert {path.relative_to(folder).as_posix() for path in made} <= links


def test_a_page_opens_with_its_main_result_and_folds_all_else_with_a_line_each(
    folder: Path, elements: Elements
) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    parts = re.findall(r'<details class="part" id="(\w+)"><summary><h2>.+</h2> <span>(.+)</span></summary>', text)
    assert [name for name, _ in parts][:2] == ["claims", "boom"] and len(parts) > 8
    assert all(text.index("</section>") < text.index(f'id="{name}"') for name, _ in parts)
    assert all("open" not in attributes for attributes in elements.all("details"))


def test_the_ledger_is_folded_by_part_and_says_what_the_file_says(folder: Path, elements: Elements) -> None:
    rows = read_table(folder / "claims.csv")
    assert {*rows["verdict"]} <= {text for _, text in elements.text}
    shown = shown_table("claims", rows)
    assert {part: len(found) for part, found in shown.groups.items()} == dict(rows["part"].value_counts())


def test_a_study_that_cannot_judge_says_so_first_and_gives_no_verdict_in_large(folder: Path, tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", (folder / "report.html").read_text(encoding="utf-8"))
    assert "every model was trained once" in text and "it judges no claim of the paper" in text
    assert text.index("judges no claim") < text.index("<h2>What was measured</h2>") and 'class="answer"' not in text
    assert " supported, " not in (folder / "claims.md").read_text(encoding="utf-8")


def opening(page: Path) -> tuple[list[str], str]:
    """Anchors of the tables and figures in the first section of a page, and the section."""
    text = page.read_text(encoding="utf-8")
    first = text[text.index("<section") : text.index("</section>")]
    return re.findall(r'<figure class="\w+" id="([^"]+)"', first), first


def test_the_page_opens_with_the_answer_in_a_sentence_a_figure_and_a_table(folder: Path) -> None:
    anchors, text = opening(folder / "report.html")
    assert anchors == ["f-in_against_out", "t-headline"]
    shown = answer(read_table(folder / "tables" / "headline.csv"), read_results(folder))
    assert shown.startswith("boom minus full, in points of 100: in domain +")
    assert "<th" in text


def test_a_study_of_controls_opens_with_every_arm_beside_the_curve(
    folder: Path, controlled: Results, tmp_path: Path
) -> None:
    made = shutil.copytree(folder, tmp_path / "made-up")
    write_figures(controlled, made / "figures", {"frontier": frontier})
    CONTROL_TABLES["equal_cost"](controlled).to_csv(made / "tables" / "equal_cost.csv", index=False)
    files = [path.relative_to(made).as_posix() for path in made.rglob("*")]
    (made / "report.html").write_text(page(controlled, made, files), encoding="utf-8")
    anchors, text = opening(made / "report.html")
    assert anchors == ["f-frontier", "t-equal_cost"]
    rows = pd.DataFrame({"against": ["full", "base"], "verdict": ["higher on these tasks", "inconclusive"]})
    assert answer(rows, controlled) == "1 of 2 comparisons that the study was made for are decided."
    assert 'alt="Every arm beside interpolation. Mean score in domain (across)' in text


def blocked_report(folder: Path, out: Path) -> str:
    """Run ``boom report`` in a process in which nothing heavy can be imported."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "mteb", "sentence_transformers", "datasets", "papermill"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
from boom_utils.cli import main
sys.exit(main(sys.argv[1:]))
"""
    environment = {**os.environ, "BOOM_HOME": str(out / "no-workspace"), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, "report", "--profile", folder.name, "--results", str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=out, timeout=HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (out / "no-workspace").exists()
    return done.stdout


@pytest.mark.promise(32)
def test_the_report_comes_out_byte_for_byte_without_workspace_and_heavy_libraries(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "results" / "made-up"
    shutil.copytree(folder, copied)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in (copied / "tables").glob("m*.csv"):
        path.unlink()
    (copied / "tables" / "of_an_earlier_study.csv").write_text("x\n")
    said = blocked_report(copied, tmp_path)
    assert said.strip().endswith(f"report: {copied / 'report.html'}")
    after = {path.relative_to(copied): path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert after == before


def of_domain(folder: Path, domain: str) -> dict[str, Any]:
    """What study.json says, with the tasks of one domain alone."""
    study: dict[str, Any] = json.loads((folder / "study.json").read_text())
    return {**study, "tasks": [task for task in study["tasks"] if task["domain"] == domain]}


def test_a_study_that_scores_out_of_its_domain_alone_has_its_report_too(tmp_path: Path) -> None:
    made = write_made_up_results(tmp_path / "made-up")
    write_json(made / "study.json", of_domain(made, "out-of-domain"))
    written = write_report(made, made)["written"]
    assert {"report.html", "tables/models.md", "figures/model_means.svg", "claims.csv"} <= {*written}


def test_a_study_that_merges_nothing_and_scores_in_its_domain_alone_has_its_report_too(tmp_path: Path) -> None:
    made = write_made_up_results(tmp_path / "made-up")
    study = of_domain(made, "in-domain")
    kept = [name for name in study["models"] if name in ("random", "base", "half", "full")]
    study |= {"models": kept, "members": {name: study["members"][name] for name in kept[2:]}, "merges": {}}
    write_json(made / "study.json", study)
    assert {"report.html", "figures/task_deltas.svg", "claims.csv"} <= {*write_report(made, made)["written"]}
    assert opening(made / "report.html")[0] == ["f-model_means", "t-models"]
    found = answer(read_table(made / "tables" / "models.csv"), read_results(made))
    assert found.startswith("Highest mean score, in points of 100: in domain ")
    columns = task_deltas(read_results(made)).axes[0].get_xticklabels()
    assert [label.get_text() for label in columns] == ["base", "half"]


def test_no_results_of_a_profile_are_a_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no results of profile 'made-u'; did you mean 'made-up'.*boom run"):
        regenerate("made-u", folder.parent)
    assert main(["report", "--profile", "smoke", "--results", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_wheels_hold_every_file_of_the_package_that_is_no_code() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
    package = PROJECT_ROOT / "boom_utils"
    globs = project["tool"]["setuptools"]["package-data"]["boom_utils"]
    packed = {path for pattern in globs for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    there = {path for path in files if path.suffix != ".py"}
    assert there == packed


# --- its parts --------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame(
    {
        "model": ["b", "a", "c", "d"],
        "in-domain": [10.25, 9.0, 100.0, 2.0],
        "in-domain low": [9.0, 8.0, 99.0, 1.0],
        "in-domain high": [11.0, 10.0, 101.0, 3.0],
        "in-domain minus a": [1.25, None, -0.04, -7.0],
        "in-domain minus a low": [0.5, None, -1.0, -8.0],
        "in-domain minus a high": [2.0, None, 1.0, -6.0],
        "in-domain verdict": ["better", "reference", "inconclusive", "worse"],
        "count": [12000, 5, 70, None],
        "score": ["9.5", "n/a", "10.25", "n/a"],
        "score note": ["mteb 1", "", None, ""],
        "empty": [None, None, None, None],
    }
)


def test_a_value_its_bounds_its_verdict_and_its_note_share_a_cell() -> None:
    shown = shown_table("x", FRAME)
    assert [*shown.columns] == ["model", "in-domain", "in-domain minus a", "count", "score"]
    assert [*shown.columns.values()] == [False, True, True, True, False]
    assert [[f"{cell.text}|{cell.note}".strip("|") for cell in cells] for cells in shown.groups[""]] == [
        ["b", "10.2 [9.0, 11.0]", "+1.2 [+0.5, +2.0]|better", "12,000", "9.5|mteb 1"],
        ["a", "9.0 [8.0, 10.0]", "reference", "5", "n/a"],
        ["c", "100.0 [99.0, 101.0]", "0.0 [−1.0, +1.0]|inconclusive", "70", "10.25"],
        ["d", "2.0 [1.0, 3.0]", "−7.0 [−8.0, −6.0]|worse", "", "n/a"],
    ]
    assert [cells[2].tone for cells in shown.groups[""]] == ["good", "", "open", "bad"]


def test_a_verdict_is_coloured_whatever_it_is_limited_to() -> None:
    frame = pd.DataFrame({"verdict": ["described", "not supported", "supported on these tasks", "inconclusive"]})
    assert [cells[0].tone for cells in shown_table("x", frame).groups[""]] == ["open", "bad", "good", "open"]


def test_a_table_shows_a_few_columns_and_its_file_has_all(folder: Path) -> None:
    for path in sorted((folder / "tables").glob("*.md")):
        head = path.read_text(encoding="utf-8").split("\n", 1)[0].count("|") - 1
        assert head <= (6 if path.stem == "headline" else 9), path.name
    whole = read_table(folder / "tables" / "headline.csv")
    shown = shown_table("headline", whole, "full")
    assert {"what", "examples"} <= {*whole} and not {"what", "examples"} & {*shown.columns} and shown.left_out
    assert "All columns: `headline.csv`." in (folder / "tables" / "headline.md").read_text(encoding="utf-8")


def test_the_headline_has_base_full_corpus_boom_and_its_control_with_what_they_cost(folder: Path) -> None:
    results = read_results(folder)
    frame = headline_table(results).set_index("what")
    assert dict(frame["model"]) | {"other weights": ""} == {
        "base": "base",
        "full corpus": "full",
        "BOOM": "boom",
        "plain mean": "mean",
        "other weights": "",
    }
    assert frame.loc["BOOM", "corpus passes"] == 3.0
    assert frame.loc["BOOM", "examples"] == 3 * frame.loc["full corpus", "examples"]
    assert frame.loc["full corpus", "in-domain verdict"] == "reference"
    assert headline_table(replace(results, study={**results.study, "experiments": {}})).empty


def test_costs_are_summed_from_the_training_logs(folder: Path) -> None:
    frame = cost_table(read_results(folder)).set_index("model")
    assert frame.loc["full", "steps"] == 30
    assert frame.loc["full", "examples"] == 60


# --- in a browser -----------------------------------------------------------------------------------------------------

SEEN = """<script>
const wide = () => [...document.querySelectorAll("figure .scroll")].filter((one) => one.scrollWidth > one.clientWidth);
const height = document.scrollingElement.scrollHeight;
document.querySelectorAll("details.part, figure > details").forEach((one) => { one.open = true; });
parent.document.body.setAttribute("data-found", JSON.stringify({
  height, width: document.scrollingElement.scrollWidth, inner: window.innerWidth,
  wide: wide().map((one) => one.closest("figure").id),
  sizes: [...document.images].map((one) => Math.min(one.offsetWidth, one.offsetHeight, one.naturalWidth)),
}));
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome on PATH")
@pytest.mark.parametrize("width", [1200, 390])
def test_in_a_browser_the_page_is_short_and_nothing_scrolls_sideways(folder: Path, tmp_path: Path, width: int) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8").replace("</body>", SEEN + "</body>")
    # In a frame, because no window of this browser is narrower than 500 pixels.
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(text)}"></iframe>'
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><body>{frame}</body>", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900", "--virtual-time-budget=8000"]
    command += ["--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    stored = re.search(r'<body data-found="([^"]*)"', done.stdout)
    assert stored is not None, done.stderr[-2000:]
    found = json.loads(unescape(stored[1]))
    assert found["width"] <= found["inner"] == width
    assert found["height"] < 8000
    assert width < 1200 or found["wide"] == [], "on a narrow screen tables scroll in their own box"
    assert len(found["sizes"]) >= 12 and min(found["sizes"]) > 50
