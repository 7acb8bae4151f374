"""A corpus as people look at it: every dataset once, nothing unknown shown as a number."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from boom_utils.data.manifest import load_manifest
from boom_utils.data.sampling import Subset
from boom_utils.reporting.corpus import (
    corpus_bars,
    corpus_frame,
    corpus_text,
    domain_frame,
    overlap_frame,
    overlap_text,
    subset_frame,
    text_lengths,
)

WORDS = {"min": 0.0, "median": 7.0, "p95": 20.0, "max": 90.0}
SEEN = [{"evaluated": "seen it", "trained": "seen it.", "similarity": 0.9}]
SUMMARY: dict[str, Any] = {
    "sets": {
        "train/summary_to_description": {"rows": 300, "query_words": WORDS, "passage_words": WORDS},
        "train/exception_class": {"rows": 100, "query_words": WORDS, "passage_words": WORDS},
        "evaluation/exception_class": {"rows": 50},
    },
    "dropped": {"summary_to_description": 3, "exception_class": {"no negative": 2, "overlap": {"exact": 4}}},
    "overlap": [
        {"evaluation": "a", "trained_on": "b", "exact": 0, "near": 0, "rows": 0},
        {"evaluation": "a", "trained_on": "c", "exact": 1, "near": 2, "rows": 5, "examples": SEEN},
    ],
    "domains": [
        {"task": "a", "domain": "in-domain", "texts": 8, "exact": 1, "near": 1, "seen": 0.25},
        {"task": "z", "domain": "out-of-domain", "texts": 4, "exact": 0, "near": 0, "seen": 0.0},
    ],
    "deviations": ["b 1 is named, b 2 was found"],
    "bad_lines": {"exception_class": ["rows.tsv:3: the score is no number"]},
    "shared_texts": 0,
}


def test_the_table_has_every_dataset_and_counts_what_was_made_and_dropped() -> None:
    manifest = load_manifest("python_docs")
    frame = corpus_frame(manifest, SUMMARY)
    assert list(frame.index) == [dataset.id for dataset in manifest.datasets]
    assert frame.loc["summary_to_description", ["rows", "query words", "dropped"]].tolist() == [300, 7.0, 3]
    assert frame.loc["exception_class", "dropped"] == 6
    assert frame.loc["parameter_question", "rows"] == 0
    assert set(frame["for"]) <= {"train, evaluated", "new data, evaluated", "train", "new data", "evaluated"}
    apart = {
        **SUMMARY,
        "dropped": {"train/exception_class": {"no negative": 2}, "evaluation/exception_class": {"no": 9}},
    }
    assert corpus_frame(manifest, apart).loc["exception_class", "dropped"] == 2, "where tasks have rows of their own"


def test_every_dataset_has_a_bar_as_long_as_its_rows_and_families_stand_together() -> None:
    names = [dataset.id for dataset in load_manifest("open_text").datasets]
    sets = {f"train/{name}": {"rows": 10 * number} for number, name in enumerate(names)}
    frame = corpus_frame(load_manifest("open_text"), {"sets": sets, "dropped": {}})
    axis = corpus_bars(frame).axes[0]
    shown = [text.get_text().replace(" ", "_") for text in axis.get_yticklabels()]
    assert {*shown} == {*names[1:]}, "the first has no row"
    assert [bar.get_width() for bar in axis.patches] == frame.loc[shown, "rows"].tolist()
    assert len(text_lengths(SUMMARY, ["summary_to_description", "exception_class"]).axes) == 2
    families = frame.loc[shown, "family"].tolist()
    assert sum(one != other for one, other in pairwise(families)) == len({*families}) - 1


def test_the_overlap_table_shows_only_pairs_that_share_something() -> None:
    frame = overlap_frame(SUMMARY)
    assert frame.iloc[0].tolist() == ["a", "c", 1, 2, 5, "seen it ≈ seen it."]
    assert len(frame) == 1
    assert overlap_frame({"overlap": []}).empty


def test_the_reports_for_a_terminal_say_rows_drops_bad_lines_deviations_and_domains() -> None:
    text = corpus_text(load_manifest("python_docs"), SUMMARY)
    for part in ("summary_to_description", "300", "no negative", "rows.tsv:3", "version: b 1", "exception_class: 50"):
        assert part in text
    assert "parameter_question" not in text, "nothing was made of it"
    shown = overlap_text(SUMMARY)
    for part in ("seen it ≈ seen it.", "out-of-domain", "25.0", "that were written: 0"):
        assert part in shown
    assert "nothing shared" in overlap_text({**SUMMARY, "overlap": []})
    assert domain_frame(SUMMARY)["seen, %"].tolist() == [25.0, 0.0]


def test_rows_of_subsets_are_summed_and_a_dataset_that_is_not_drawn_from_is_none() -> None:
    ids = {"x": np.arange(3, dtype=np.uint32), "y": np.arange(2, dtype=np.uint32)}
    drawn = {"all": Subset({"name": "all"}, {"x": 3, "y": 2}, ids), "half": Subset({}, {"x": 3}, {"x": ids["x"][:1]})}
    frame = subset_frame(drawn)
    assert frame["all"].tolist() == [3, 2, 5]
    assert frame.loc["x", "half"] == frame.loc["all", "half"] == 1
    assert frame["half"].isna().tolist() == [False, True, False]
