"""What others published: read strictly, shown with what keeps it from being compared, no mean over fewer tasks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import SHARED
from made_up_results import samples_of, score_rows

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import Profile, load_profile, profile_names
from boom_utils.errors import ResultsError
from boom_utils.reporting.published import (
    Published,
    benchmark_table,
    means_of,
    read_published,
    settings_table,
)
from boom_utils.reporting.results import Numbers, Results
from boom_utils.study.deviations import PAPER_PROFILE, deviations, source_of

COMMITTED = PROJECT_ROOT / "results" / "published"
ENGLISH, CODE, RTEB = "MTEB(eng, v2)", "MTEB(Code, v1)", "RTEB(beta) open tasks"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEADER = "model,revision,benchmark,task,task_type,main_score,source"
ONE, TWO = "ICT-TIME-and-Querit/one", "ICT-TIME-and-Querit/two"


def score_line(model: str, task: str, score: object, *, revision: str = "r1", mteb: str = "1.0") -> str:
    kind = "STS" if task.startswith("s") else "Retrieval"
    source = f"https://example.org/blob/{COMMIT}/{model}/{task}.json (n=1 splits=test mteb={mteb})"
    return f"{model},{revision},Toy,{task},{kind},{score},{source}"


SCORES = [
    *(score_line(ONE, task, score) for task, score in {"a": 10, "b": 20, "s": 60}.items()),
    *(score_line(TWO, task, score, mteb="2.0") for task, score in {"a": 12.5, "s": 70}.items()),
]


def write(folder: Path, scores: list[str] = SCORES, header: str = HEADER) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "published_scores.csv").write_text("\n".join([header, *scores]) + "\n")
    return folder


def ours(folder: Path, tasks: tuple[str, ...] = ("a", "b", "s")) -> Results:
    """Two models scored 0.5 and 0.25 on every query of each task."""
    samples = {(m, t): samples_of([value, value]) for m, value in (("full", 0.5), ("merged", 0.25)) for t in tasks}
    domains = {task: "out-of-domain" if task == "s" else "in-domain" for task in tasks}
    study = {
        "models": ["full", "merged"],
        "members": {},
        "merges": {},
        "tasks": [{"name": name, "domain": domain} for name, domain in domains.items()],
        "evaluation": {"reference": "full", "confidence": 0.95},
    }
    return Results(folder, study, Numbers(samples, score_rows(samples, {"mteb_version": "1.0"})))


@pytest.fixture(scope="module")
def committed() -> Published:
    return read_published(COMMITTED)


# --- the committed files ----------------------------------------------------------------------------------------------


def test_means_are_those_of_complete_sets_of_tasks_only(committed: Published) -> None:
    shown = {}
    for benchmark in committed.benchmarks:
        for label, rows in committed.scores.query("benchmark == @benchmark").groupby("label"):
            shown[benchmark, label] = means_of(rows.set_index("task")["main_score"], committed.tasks(benchmark))
    assert (len(shown), sum(means is not None for means in shown.values())) == (35, 15)
    assert shown[ENGLISH, "BOOM_4B_v1 @447ab885"] is None, "a task is missing"
    assert shown[ENGLISH, "BOOM_4B_v1 @33fb3454"] == pytest.approx((69.933, 64.940), abs=1e-3)
    assert shown[ENGLISH, "NV-Embed-v2"] is not None, "two revisions, each of other tasks"


def test_every_benchmark_has_its_full_set_of_tasks(committed: Published, tmp_path: Path) -> None:
    assert {name: len(committed.tasks(name)) for name in committed.benchmarks} == {ENGLISH: 41, CODE: 12, RTEB: 17}
    assert benchmark_table(ours(tmp_path), committed, RTEB).empty, "a study that scored none of its tasks"
    scored = ours(tmp_path, tasks=(next(iter(committed.tasks(RTEB))),))
    row = benchmark_table(scored, committed, RTEB).set_index("task").loc["SWEbenchCodeRetrieval"]
    unscored = [name for name in row.index if name.startswith("BOOM_4B_v1") and "note" not in name]
    assert set(row[unscored]) == {"n/a"}, "a task that nobody has scored is there too"


@pytest.mark.promise(33)
@pytest.mark.skipif(not (SHARED / "published").is_dir(), reason="the files these were taken from are not here")
def test_the_committed_scores_are_those_they_were_taken_from() -> None:
    name = "published_scores.csv"
    assert (COMMITTED / name).read_bytes() == (SHARED / "published" / name).read_bytes()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise(33)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        *((score_line(TWO, "b", score), "main_score is no number") for score in ("nan", "inf", "", 100.1, -0.1)),
        (score_line(ONE, "a", 10), "two rows with the same model, revision, benchmark, task"),
        (score_line(TWO, "b", 10)[:-20], "source is not ADDRESS/COMMIT"),
        (score_line(TWO, "b", 10).replace(COMMIT, "main"), "source is not ADDRESS/COMMIT"),
    ],
)
def test_every_wrong_score_is_an_error_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    lines = [*SCORES, line, score_line(TWO, "c", "x")]
    with pytest.raises(ResultsError, match=rf"(?s)line 7: {said}") as caught:
        read_published(write(tmp_path, lines))
    assert "line 8: main_score is no number" in str(caught.value) and "published_scores.csv" in str(caught.value)


def test_a_missing_column_and_a_missing_or_cut_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"line 1: there is no column source"):
        read_published(write(tmp_path, [], header=HEADER.removesuffix(",source")))
    path = write(tmp_path) / "published_scores.csv"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ResultsError, match="line 6: source is not"):
        read_published(tmp_path)
    path.unlink()
    with pytest.raises(ResultsError, match=r"published_scores\.csv"):
        read_published(tmp_path)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_ours_stand_first_and_every_note_says_what_differs(tmp_path: Path) -> None:
    table = benchmark_table(ours(tmp_path), read_published(write(tmp_path / "p")), "Toy").set_index("task")
    assert list(table)[1::2] == ["full", "merged", "one", "two"]
    assert table.loc["a", ["full", "full note"]].tolist() == [50, "mteb 1.0"]
    assert table["two note"]["a"] == "mteb 2.0"
    assert table.loc["b", ["two", "two note"]].tolist() == ["n/a", ""]
    assert table["one"].tolist()[-2:] == [30, 37.5]
    assert set(table["two"].tolist()[-2:]) == {"n/a (missing: b)"}
    table = benchmark_table(ours(tmp_path, tasks=("a", "b")), read_published(tmp_path / "p"), "Toy")
    assert table["full"].tolist() == [50, 50, "n/a", *["n/a (missing: s)"] * 2]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> Profile:
    return load_profile(PAPER_PROFILE)


def ledger(entries: list[dict[str, str | None]]) -> pd.DataFrame:
    return settings_table(Results(Path(), {"deviations": entries})).set_index("key")


def test_a_value_that_differs_stands_first_with_the_papers_and_its_source(paper: Profile) -> None:
    found = ledger(deviations(load_profile("smoke"), paper))
    row = found.loc["training.temperature"]
    assert row["this study"] == f"{load_profile('smoke').training.temperature:g}"
    assert row["paper's value"] == f"{paper.training.temperature:g}"
    assert (row["status"], row["source"]) == ("differs", "authors' script")
    assert found.loc["training.num_train_epochs", "status"] == "same"
    for key in ("evaluation.confidence", "base_model.vocab_size", "members.continued"):
        assert found.loc[key, ["status", "paper's value", "source"]].tolist() == ["ours", "not known", "ours"]
    assert found["status"].drop_duplicates().tolist() == ["differs", "same", "ours"]


@pytest.mark.parametrize("name", profile_names())
def test_every_value_of_every_profile_is_in_its_ledger(name: str, paper: Profile) -> None:
    profile = load_profile(name)
    found = ledger(deviations(profile, paper))
    assert found.index.is_unique
    for part in ("corpus", "base_model", "training", "evaluation"):
        fields = type(getattr(profile, part)).model_fields.items()
        for field in (name for name, facts in fields if facts.exclude_if is None):  # others are settings of a machine
            assert any(key == f"{part}.{field}" or key.startswith(f"{part}.{field}.") for key in found.index), field
    for group in ("subsets", "members", "merges"):
        assert {f"{group}.{entry.name}" for entry in getattr(profile, group)} <= {*found.index}
    assert set(found["source"]) <= {"paper", "authors' script", "model card", "third-party summary", "ours"}
    assert not found.isna().any().any()


def test_the_source_of_a_value_is_that_of_its_key_or_of_the_nearest_above(paper: Profile) -> None:
    found = {entry["key"]: entry for entry in deviations(paper, paper)}
    for key in {*paper.sources} & {*found}:
        assert found[key]["source"] == paper.sources[key].partition(":")[0]
        assert (found[key]["paper"] == found[key]["value"]) == (found[key]["source"] != "ours")
    sources = {"members": "paper: all of them", "members.a": "ours: this one"}
    assert source_of(sources, "members.b") == ("paper", "all of them")
    assert source_of(sources, "members.a") == ("ours", "this one")
    assert source_of(sources, "merges.a") == ("ours", "")


def test_line_breaks_spaces_at_the_ends_and_values_that_are_not_set_can_be_seen(paper: Profile) -> None:
    template = paper.evaluation.model_copy(update={"query_template": "{prompt}\n{query} "})
    base = paper.base_model.model_copy(update={"revision": None})
    found = deviations(paper.model_copy(update={"evaluation": template, "base_model": base}), paper)
    values = {entry["key"]: entry["value"] for entry in found}
    assert values["evaluation.query_template"] == "'{prompt}\\n{query} '"
    assert values["base_model.revision"] == "not set"


def test_results_without_deviations_have_no_ledger_and_malformed_ones_are_refused() -> None:
    assert ledger([]).empty
    with pytest.raises(ResultsError, match="no note, source"):
        ledger([{"key": "a", "value": "1", "paper": None}])
