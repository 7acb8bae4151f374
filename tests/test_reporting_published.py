"""Published scores: read strictly, shown with what keeps them from being compared, never averaged over fewer tasks."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from made_up_results import samples_of, score_rows

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.errors import ResultsError
from boom_utils.reporting.panels import STYLE
from boom_utils.reporting.published import (
    Published,
    paper_table,
    published_figure,
    published_table,
    read_published,
)
from boom_utils.reporting.results import Results
from boom_utils.reporting.stored import Numbers
from boom_utils.reporting.tables import markdown

COMMITTED = PROJECT_ROOT / "results" / "published"
ENGLISH, CODE, RTEB = "MTEB(eng, v2)", "MTEB(Code, v1)", "RTEB(beta) open tasks"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADER = "model,revision,benchmark,task,task_type,main_score,source"


def score_line(model: str, task: str, score: object, *, revision: str = "r1", mteb: str = "1.0") -> str:
    kind = "STS" if task.startswith("s") else "Retrieval"
    source = f"https://example.org/blob/{COMMIT}/{model}/{task}.json (n=1 splits=test mteb={mteb})"
    return f"{model},{revision},Toy,{task},{kind},{score},{source}"


SCORES = [
    *(score_line("o/one", task, score) for task, score in {"a": 10, "b": 20, "s": 60}.items()),
    *(score_line("o/two", task, score, mteb="2.0") for task, score in {"a": 12.5, "s": 70}.items()),
]
MEANS = [
    'model,revision,benchmark,tasks_found,tasks_in_benchmark,mean_task,mean_type,"per_type(mean,n)",missing',
    'o/one,r1,Toy,3,3,30,37.5,"{""Retrieval"": [15.0, 2], ""STS"": [60.0, 1]}",',
    'o/two,*,Toy,2,3,41.25,41.25,"{""Retrieval"": [12.5, 1], ""STS"": [70, 1]}",b',
]


def write(folder: Path, scores: list[str] = SCORES, means: list[str] = MEANS, paper: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "published_scores.csv").write_text("\n".join([HEADER, *scores]) + "\n")
    (folder / "published_means.csv").write_text("\n".join(means) + "\n")
    (folder / "paper_tables.csv").write_text("table,row,column,value,page\n" + paper)
    return folder


def ours(
    folder: Path, tasks: tuple[str, ...] = ("a", "b", "s"), version: str = "1.0", prompt: str | None = "p"
) -> Results:
    """Two models scored 0.5 and 0.25 on every query of each task."""
    values = {"full": 0.5, "merged": 0.25}
    samples = {(model, task): samples_of([value, value]) for model, value in values.items() for task in tasks}
    numbers = Numbers(samples, score_rows(samples, {"mteb_version": version}))
    domains = {task: "out-of-domain" if task == "s" else "in-domain" for task in tasks}
    study = {
        "models": ["full", "merged"],
        "members": {},
        "merges": {},
        "tasks": [{"name": name, "domain": domain, "prompt": prompt} for name, domain in domains.items()],
        "evaluation": {"reference": "full", "confidence": 0.95},
    }
    return Results(folder, study, numbers)


@pytest.fixture(scope="module")
def committed() -> Published:
    return read_published(COMMITTED)


# --- the committed files ----------------------------------------------------------------------------------------------


def test_means_computed_from_the_scores_are_the_published_means() -> None:
    scores = pd.read_csv(COMMITTED / "published_scores.csv")
    means = pd.read_csv(COMMITTED / "published_means.csv")
    assert len(means) == 35
    for _, mean in means.iterrows():
        own = scores[(scores.model == mean.model) & (scores.benchmark == mean.benchmark)]
        if mean.revision != "*":
            own = own[own.revision.isin(mean.revision.split("+"))]
        assert len(own) == own.task.nunique() == mean.tasks_found
        assert own.main_score.mean() == pytest.approx(mean.mean_task, abs=1e-3)
        assert own.groupby("task_type").main_score.mean().mean() == pytest.approx(mean.mean_type, abs=1e-3)


def test_the_table_shows_the_published_mean_exactly_where_no_task_is_missing(committed: Published) -> None:
    shown, means = 0, pd.read_csv(COMMITTED / "published_means.csv").fillna({"missing": ""})
    means = means.set_index(["model", "revision", "benchmark"])
    for benchmark, entries in committed.entries.items():
        table = published_table(None, committed, benchmark).set_index("task")
        for entry in entries:
            by_task, by_type = table[entry.label]["mean (task)"], table[entry.label]["mean (type)"]
            stated = means.loc[(entry.model, entry.revision, benchmark)]
            if stated.missing:
                assert by_task == by_type == f"n/a (missing: {', '.join(sorted(stated.missing.split(';')))})"
            else:
                assert by_task == pytest.approx(stated.mean_task, abs=1e-3)
                assert by_type == pytest.approx(stated.mean_type, abs=1e-3)
                shown += 1
    assert shown == 15


def test_every_benchmark_has_its_full_set_of_tasks_also_those_nobody_has_scored(committed: Published) -> None:
    assert {name: len(tasks) for name, tasks in committed.tasks.items()} == {ENGLISH: 41, CODE: 12, RTEB: 17}
    assert "SWEbenchCodeRetrieval" in committed.tasks[RTEB]
    table = published_table(None, committed, RTEB)
    row = table[table.task == "SWEbenchCodeRetrieval"].iloc[0]
    assert {row[entry.label] for entry in committed.entries[RTEB]} == {"n/a"}


def test_the_two_revisions_of_one_model_stay_apart(committed: Published) -> None:
    labels = [entry.label for entry in committed.entries[ENGLISH]]
    assert {"BOOM_4B_v1 @33fb3454", "BOOM_4B_v1 @447ab885"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_the_slot_for_the_papers_tables_is_committed_empty(committed: Published) -> None:
    assert (COMMITTED / "paper_tables.csv").read_text() == "table,row,column,value,page\n"
    assert not committed.paper


@pytest.mark.skipif(not (SHARED / "published").is_dir(), reason="the files these were taken from are not here")
def test_the_committed_files_are_those_they_were_taken_from() -> None:
    for name in ("published_scores.csv", "published_means.csv"):
        assert (COMMITTED / name).read_bytes() == (SHARED / "published" / name).read_bytes()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (score_line("o/two", "b", "nan"), "main_score is 'nan', expected a number from 0 to 100"),
        (score_line("o/two", "b", "inf"), "main_score is 'inf', expected a number"),
        (score_line("o/two", "b", ""), "main_score is '', expected a number"),
        (score_line("o/two", "b", 100.1), "main_score is '100.1', expected a number from 0 to 100"),
        (score_line("o/two", "b", -0.1), "main_score is '-0.1', expected a number"),
        (score_line("o/one", "a", 10), r"the same as line 2 \(o/one, r1, Toy, a\)"),
        (score_line("", "b", 10), "model is empty"),
        (score_line("o/two", "b", 10) + ",more", "not 7 cells"),
        (score_line("o/two", "b", 10)[:-20], "source is not"),
        (score_line("o/two", "b", 10).replace(COMMIT, "main"), "source is not"),
    ],
)
def test_a_wrong_score_is_an_error_with_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=f"published_scores.csv, line 7: {said}"):
        read_published(write(tmp_path, [*SCORES, line]))


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    lines = [*SCORES, score_line("o/two", "b", 101), score_line("o/two", "b", "x")]
    with pytest.raises(ResultsError, match=r"(?s)line 7: .*line 8: .*paper_tables\.csv, line 2: page is '0'"):
        read_published(write(tmp_path, lines, paper="3,full,in-domain,70,0\n"))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER + ",note", "unknown column 'note'"),
        (HEADER.removesuffix(",source"), "missing column 'source'"),
        (HEADER + ",task", "repeated column 'task'"),
    ],
)
def test_another_set_of_columns_is_an_error(header: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path) / "published_scores.csv"
    path.write_text(path.read_text().replace(HEADER, header, 1))
    with pytest.raises(ResultsError, match=f"published_scores.csv, line 1: {said}"):
        read_published(tmp_path)


@pytest.mark.parametrize("name", ["published_scores.csv", "published_means.csv", "paper_tables.csv"])
def test_a_missing_file_and_one_cut_short_are_errors(name: str, tmp_path: Path) -> None:
    path = write(tmp_path) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(ResultsError, match=name):
        read_published(tmp_path)
    path.unlink()
    with pytest.raises(ResultsError, match=f"{name}: the file is missing"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("r1,Toy,3,3,30,", "r1,Toy,3,3,31,", "line 2: mean_task is 31.0, the scores give 30.0"),
        ("30,37.5", "30,30", "line 2: mean_type is 30.0, the scores give 37.5"),
        ("Toy,2,3,", "Toy,3,3,", "line 3: tasks_found is 3, the scores give 2"),
        ("Toy,2,3,", "Toy,2,4,", "line 3: tasks_in_benchmark is 4, the scores give 3"),
        (']}",b', ']}",', "line 3: missing is , the scores give b"),
        ("o/two,*", "o/two,r9", "line 5: no row of published_means.csv is over this score"),
    ],
)
def test_a_mean_that_its_scores_do_not_give_is_an_error(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=said):
        read_published(write(tmp_path, means=[line.replace(old, new) for line in MEANS]))


def test_two_revisions_with_a_score_of_one_task_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="o/two has two scores of a among its revisions"):
        read_published(write(tmp_path, [*SCORES, score_line("o/two", "a", 9, revision="r2")]))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_ours_stand_first_and_every_note_says_what_differs(tmp_path: Path) -> None:
    published = read_published(write(tmp_path / "published"))
    table = published_table(ours(tmp_path), published, "Toy").set_index("task")
    assert list(table)[1::2] == ["full", "merged", "one", "two"]
    assert table["full"]["a"] == 50
    assert table["full note"]["a"] == "mteb 1.0"
    assert table["one note"]["a"] == "prompt not published"
    assert table["two note"]["a"] == "mteb 2.0, ours 1.0; prompt not published"
    assert table["two"]["b"] == "n/a"
    assert table["two note"]["b"] == ""
    assert table["one"]["mean (task)"] == 30
    assert table["one"]["mean (type)"] == 37.5
    assert table["two"]["mean (task)"] == "n/a (missing: b)"
    assert "| a | Retrieval | 50 | mteb 1.0 |" in markdown(table.reset_index())


def test_our_own_mean_over_fewer_tasks_is_not_available_either(tmp_path: Path) -> None:
    published = read_published(write(tmp_path / "published"))
    table = published_table(ours(tmp_path, tasks=("a", "b")), published, "Toy").set_index("task")
    assert table["full"]["mean (task)"] == table["full"]["mean (type)"] == "n/a (missing: s)"
    assert table["full"]["a"] == 50


@pytest.mark.parametrize(
    ("prompt", "own", "note"),
    [("p", "p", ""), ("q", "p", "another prompt than ours"), ("q", None, "our prompt not stated")],
)
def test_prompts_are_compared_where_both_are_known(prompt: str, own: str | None, note: str, tmp_path: Path) -> None:
    path = write(tmp_path / "published") / "published_scores.csv"
    lines = [HEADER + ",prompt", *(f"{line},{prompt}" for line in SCORES)]
    path.write_text("\n".join(lines))
    table = published_table(ours(tmp_path, prompt=own), read_published(path.parent), "Toy").set_index("task")
    assert table["one note"]["a"] == note


def test_without_ours_each_number_has_its_own_version_beside_it(committed: Published) -> None:
    labels = ["BOOM_4B_v1 @33fb3454", "NV-Embed-v2"]
    table = published_table(None, committed, ENGLISH, labels).set_index("task")
    assert list(table)[1::2] == labels
    assert table["BOOM_4B_v1 @33fb3454 note"]["SCIDOCS"] == "mteb 1.39.7"
    assert "mteb version not stated; revision not stated" in set(table["NV-Embed-v2 note"])
    assert "revisions 7604d305, external" in table["NV-Embed-v2 note"]["mean (task)"]
    assert table["BOOM_4B_v1 @33fb3454 note"]["mean (task)"] == ""


def test_an_unknown_benchmark_or_model_is_an_error_that_names_the_known_ones(committed: Published) -> None:
    with pytest.raises(ResultsError, match=r"(?s)no benchmark 'MTEB'.*MTEB\(Code, v1\)"):
        published_table(None, committed, "MTEB")
    with pytest.raises(ResultsError, match="nothing is published of BOOM"):
        published_table(None, committed, CODE, ["BOOM"])


def test_the_papers_column_says_not_filled_until_somebody_fills_it(tmp_path: Path) -> None:
    results, folder = ours(tmp_path), write(tmp_path / "published")
    table = paper_table(results, read_published(folder), "3")
    assert list(table.paper) == ["not filled"] * 4
    assert list(table.ours) == [50, 50, 25, 25]
    filled = "3,merged,in-domain,1.5,7\n3,merged,elsewhere,2.5,7\n4,full,in-domain,9.5,8\n"
    table = paper_table(results, read_published(write(folder, paper=filled)), "3")
    assert list(table.paper) == ["not filled", "not filled", 1.5, "not filled", 2.5]
    assert list(table.page) == ["", "", "7", "", "7"]
    assert np.isnan(table.ours.iloc[-1])


# --- figure -----------------------------------------------------------------------------------------------------------


def test_the_figure_has_a_point_for_every_score_and_hollow_ones_for_other_versions(tmp_path: Path) -> None:
    published = read_published(write(tmp_path / "published"))
    figure = published_figure(published, "Toy", ours(tmp_path))
    points: dict[str, list[float]] = defaultdict(list)
    for line in figure.axes[0].lines:
        for x in line.get_xdata():
            points["hollow" if line.get_markerfacecolor() == "none" else "full"].append(float(x))
    assert sorted(points["hollow"]) == [12.5, 70]
    assert sorted(points["full"]) == [10, 20, 25, 25, 25, 50, 50, 50, 60]
    assert len(figure.axes[0].get_yticks()) == 3


def test_equal_scores_draw_equal_bytes(committed: Published) -> None:
    drawn = []
    for _ in range(2):
        stream = io.BytesIO()
        with mpl.rc_context(STYLE):
            published_figure(committed, CODE).savefig(stream, format="svg", metadata={"Date": None})
        drawn.append(stream.getvalue())
    assert drawn[0] == drawn[1]
