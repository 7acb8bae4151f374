"""The embedded corpus: docstrings of three styles, static mining, clean splits, the same bytes every time."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import CorpusConfig
from boom_utils.data import mining, python_docs
from boom_utils.data.docs_corpus import Corpus, _Apart, build_corpus
from boom_utils.data.docs_labels import module_label, package_names
from boom_utils.data.docs_names import CANDIDATES, Named, counterparts
from boom_utils.data.docs_pairs import (
    Described,
    Labelled,
    Pair,
    exception_class,
    hash_share,
    merge_duplicates,
    normalise,
    shorten_code,
    split_definitions,
)
from boom_utils.data.docs_rows import draw, graded_rows, jaccard, retrieval_rows
from boom_utils.data.docstrings import Parameter, clean_text, is_readable, parse_docstring, truncate_words
from boom_utils.data.example_sets import WrittenSets
from boom_utils.data.examples import TrainingExample, read_examples, read_jsonl
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.data.mining import Mined, corpus_deviations, corpus_fingerprint, mine, read_source
from boom_utils.data.overlap import find_overlap
from boom_utils.data.python_docs import make_examples
from boom_utils.errors import DataError, ManifestError

NUMPYDOC = """
    Compute the mean along an axis. Empty slices give NaN.

    Uses :func:`~numpy.add.reduce` on ``a``, see [1]_ and `the guide <https://x.org>`_.

    .. versionadded:: 1.2
       Not before.

    Parameters
    ----------
    a, b : array_like of any shape, possibly a masked one
        Numbers to *average*.
    axis : int, optional
        Axis along which the means are computed.

        .. note:: a second paragraph

    **kwargs
        Passed on.

    Returns
    -------
    m : ndarray
        The mean.
    """
GOOGLE = """Load a data set from the hub. It is cached.

    Args:
        path (`str`, *optional*, defaults to `"x"`):
            Path or name of the data set.
        split (Union[str, list[str]]): Which part to load,
            or all of them.
        **kwargs: passed on.

    Returns:
        `Dataset`: the data.

    Example:

    ```py
    >>> load("x")
    ```
    """
SPHINX = """Open the connection.

    Retries twice, then gives up.

    :param str host: name of the machine
        to connect to
    :param port: number of the port
    :type port: int
    :returns: nothing at all
    """


def test_numpydoc_is_split_into_its_parts() -> None:
    doc = parse_docstring(NUMPYDOC)
    assert doc.summary == "Compute the mean along an axis."
    assert doc.description == "Empty slices give NaN. Uses reduce on a, see and the guide."
    assert doc.parameters == (
        Parameter("a", "Numbers to average."),
        Parameter("axis", "Axis along which the means are computed."),
    )


def test_google_style_is_split_into_its_parts() -> None:
    doc = parse_docstring(GOOGLE)
    assert (doc.summary, doc.description) == ("Load a data set from the hub.", "It is cached.")
    assert doc.parameters == (
        Parameter("path", "Path or name of the data set."),
        Parameter("split", "Which part to load, or all of them."),
    )


def test_sphinx_style_is_split_into_its_parts() -> None:
    doc = parse_docstring(SPHINX)
    assert (doc.summary, doc.description) == ("Open the connection.", "Retries twice, then gives up.")
    assert doc.parameters == (
        Parameter("host", "name of the machine to connect to"),
        Parameter("port", "number of the port"),
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (":class:`Frame` or :meth:`the method <x.y>`", "Frame or the method"),
        ("``__setitem__`` of `obj[key]` and G[u][v]", "__setitem__ of obj[key] and G[u][v]"),
        ("[`~datasets.Dataset.map`] and [the docs](https://x.org/y)", "map and the docs"),
        ("**bold** 2*3*4 and *one word*", "bold 2*3*4 and one word"),
        ("a hyper-\nparameter of pre- and post-processing", "a hyper-parameter of pre- and post-processing"),
        ("see the list::", "see the list:"),
    ],
)
def test_inline_markup_becomes_the_words_a_reader_sees(raw: str, words: str) -> None:
    assert clean_text(raw) == words


@pytest.mark.parametrize("raw", ["", "\n", ".. note::", "Parameters\n----------", "Args:", "-----\n-----", ":param x:"])
def test_docstrings_of_markup_only_have_no_text(raw: str) -> None:
    doc = parse_docstring(raw)
    assert (doc.summary, doc.description, doc.parameters) == ("", "", ())


def test_rubble_and_wrong_lengths_are_not_readable() -> None:
    assert is_readable("Return the mean.", 3, 5)
    for text in ("One word", "word " * 6, "Uses %(name)s to run", r"the \alpha of it", "1 + 2 = 3 ~ 4 [5]", ""):
        assert not is_readable(text, 3, 5), text


def test_truncation_prefers_the_end_of_a_sentence() -> None:
    assert truncate_words("One two three. Four five six", 5) == "One two three."
    assert truncate_words("One. Two three four five six", 5) == "One. Two three four five"
    assert truncate_words("One two", 5) == "One two"


SOURCE = '''
import os
raise SystemExit("imported")

class Box(Base):
    """Holds things of any kind."""

    def __init__(self, size):
        """Make a box of that size."""
        if size < 0:
            message = f"size must be positive, found {size}"
            raise ValueError(message)
        self.size = size

    @property
    def volume(self):
        """Volume of the box.

        Its unit is cubic metres.
        """
        # a comment
        return self.size ** 3

def load(path):
    try:
        open(path)
    except OSError as error:
        raise errors.LoadError("cannot load %s: " % path + "try again") from error
    raise TypeError("{} is no path".format(path))
    raise KeyError(path)
    raise
'''


def mined_from(source: str) -> Mined:
    mined = Mined()
    read_source(source, "fake", "fake.box", False, mined)
    return mined


def test_definitions_keep_their_source_without_docstring_and_decorator() -> None:
    definitions = {definition.name: definition for definition in mined_from(SOURCE).definitions}
    assert list(definitions) == ["Box", "Box.volume"]
    assert definitions["Box.volume"].code == "def volume(self):\n    # a comment\n    return self.size ** 3"
    assert definitions["Box.volume"].doc.description == "Its unit is cubic metres."


def test_messages_of_every_way_to_format_are_read() -> None:
    assert [(message.exception, message.text) for message in mined_from(SOURCE).messages] == [
        ("SystemExit", "imported"),
        ("ValueError", "size must be positive, found <value>"),
        ("LoadError", "cannot load <value>: try again"),
        ("TypeError", "<value> is no path"),
    ]


def test_texts_that_cannot_be_written_are_left_out() -> None:
    mined = mined_from('def f():\n    "Lone \\ud800 surrogate."\n    raise ValueError("bad \\ud800 text")\n')
    assert not mined.definitions
    assert not mined.messages


def fake_manifest(*names: str) -> Manifest:
    raw = load_manifest("python_docs").model_dump(mode="json")
    entries = [{"name": n, "version": "1.0", "licence": "MIT", "held_out": n == "held"} for n in names]
    raw["source"] |= {"distributions": entries, "standard_library": False}
    raw["tasks"] = [task for task in raw["tasks"] if not task["held_out"]]
    return Manifest.model_validate(raw)


def install(folder: Path, name: str, files: dict[str, str], version: str = "1.0") -> None:
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source, encoding="utf-8")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files), encoding="utf-8")


def test_mining_reads_files_of_the_distribution_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "fakepkg/box.py": SOURCE,
        "fakepkg/__init__.py": 'def top():\n    "Top of the package."\n',
        "fakepkg/tests/test_box.py": SOURCE,
        "fakepkg/_vendor/copy.py": SOURCE,
        "fakepkg/broken.py": "def f(:\n",
        "fakepkg/data.txt": "text",
    }
    install(tmp_path, "fakepkg", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    was_enabled = gc.isenabled()
    mined = mine(fake_manifest("fakepkg", "absent"))
    assert [f"{d.module}:{d.name}" for d in mined.definitions] == [
        "fakepkg:top",
        *["fakepkg.box:Box"] * 2,  # the class and its __init__
        "fakepkg.box:Box.volume",
    ]
    assert mined.files == {"fakepkg": 3}
    assert mined.unreadable == ["fakepkg/broken.py: SyntaxError"]
    assert "fakepkg/broken.py was not mined" in caplog.text
    assert "fakepkg" not in sys.modules
    assert gc.isenabled() == was_enabled


def test_a_missing_or_other_version_is_reported_and_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "fakepkg", {"fakepkg/box.py": SOURCE}, version="1.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    manifest = fake_manifest("fakepkg", "absent")
    assert corpus_fingerprint(manifest) == {"distributions": {"fakepkg": "1.1", "absent": None}, "python": None}
    assert corpus_deviations(manifest) == [
        "fakepkg 1.0 is named by the manifest, 1.1 is installed",
        "absent 1.0 is named by the manifest, none is installed",
    ]
    with pytest.raises(DataError, match="no documented definition"):
        mine(fake_manifest("absent"))


def test_the_fingerprint_names_the_running_python() -> None:
    manifest = load_manifest("python_docs")
    fingerprint = corpus_fingerprint(manifest)
    assert fingerprint["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_paths_of_tests_and_generated_files_are_not_mined() -> None:
    unwanted = ["a/tests/b.py", "a/testing/b.py", "a/test_b.py", "a/conftest.py", "../../bin/a.py", "a/b.pyi", "a/b.so"]
    assert not any(mining._is_wanted(PurePosixPath(path)) for path in unwanted)
    assert mining._is_wanted(PurePosixPath("a/latest.py"))


def test_normalised_duplicates_are_merged_into_the_first() -> None:
    assert normalise("  Two\n Words ") == "two words"
    pairs = [Pair("a", "b", "train", ()), Pair("A ", "c", "evaluation", ()), Pair("d", "B", "evaluation", ())]
    assert merge_duplicates([*pairs, Pair("e", "f", "evaluation", ())]) == [pairs[0], Pair("e", "f", "evaluation", ())]
    twice = mined_from(SOURCE)
    twice.definitions += twice.definitions
    assert len(split_definitions(twice)) == 3
    assert 0 <= hash_share("Two  words") == hash_share("two words") < 1


def test_a_message_raised_as_two_classes_is_left_out() -> None:
    source = (
        'raise ValueError("one of two three")\nraise TypeError("One of two  three")\nraise KeyError("key is not there")'
    )
    assert [(unit.text, unit.label) for unit in exception_class(mined_from(source))] == [
        ("key is not there", "KeyError")
    ]


def test_code_is_cut_at_a_line() -> None:
    code = "\n".join(f"    value_{number} = {number}" for number in range(100))
    assert 50 < len(shorten_code(code).split()) <= 60
    assert code.startswith(shorten_code(code) + "\n")


@pytest.mark.parametrize(
    ("package", "module", "label"),
    [
        ("scipy", "scipy.stats._continuous_distns", "scipy.stats"),
        ("pandas", "pandas.core.arrays.sparse.array", "pandas.core.arrays"),
        ("pandas", "pandas.core", ""),
        ("scikit-learn", "sklearn.utils.validation", ""),
        ("matplotlib", "matplotlib._api", ""),
        ("python", "logging", "logging"),
        ("python", "xml.sax.handler", "xml.sax"),
        ("python", "_pydecimal", ""),
    ],
)
def test_a_module_is_named_by_its_first_public_parts(package: str, module: str, label: str) -> None:
    definition = mined_from(SOURCE).definitions[0]
    assert module_label(replace(definition, package=package, module=module)) == label


def named(name: str, package: str, *words: str) -> Named:
    return Named(name, f"{name} of {package}", f"document of {package}", frozenset(words), package, package, "train")


def test_counterparts_have_another_package_the_same_name_and_a_word_in_common() -> None:
    pool = [named("median", "a", "sort"), named("median", "a", "sort"), named("median", "b", "sort", "axis")]
    pool += [named("median", "c", "draw"), named("mean", "b", "sort")]
    found = [(unit.package, [other.package for other in same]) for unit, same in counterparts(pool, pool)]
    assert found == [("a", ["b"]), ("a", ["b"]), ("b", ["a", "a"])]


def described(name: str, *parameters: str) -> Described:
    return Described(name, frozenset(parameters), "evaluation")


def test_pairs_are_graded_by_the_overlap_of_their_parameters() -> None:
    units = [described("f", "a", "b"), described("g", "b", "a"), described("h", "a", "c"), described("i", "z", "y")]
    np.testing.assert_allclose(jaccard(units, units)[0], [1, 1, 1 / 3, 0])
    rows = graded_rows(units, 4, np.random.default_rng(0))
    scores = {(row["sentence1"], row["sentence2"]): row["score"] for row in rows}
    assert scores[("f", "g")] == 5.0
    assert set(scores.values()) == {0.0, 1.6667, 5.0}


def test_every_query_keeps_its_document_among_the_distractors() -> None:
    pool = [Pair(f"query {n}", f"document {n}", "evaluation", ()) for n in range(30)]
    queries, corpus, judgements = retrieval_rows(pool, 5, 12, np.random.default_rng(0))
    assert (len(queries), len(corpus), len(judgements)) == (5, 12, 5)
    texts = {row["id"]: row["text"] for row in [*queries, *corpus]}
    assert all(texts[j["query"]].split()[1] == texts[j["document"]].split()[1] for j in judgements)
    assert draw([1, 2, 3], None, np.random.default_rng(0)) == [1, 2, 3]


@pytest.mark.promise(8)
def test_a_planted_duplicate_is_found_and_dropped() -> None:
    found = find_overlap({"train": [TrainingExample("The  Mean", ("x",))]}, {"task": ["the mean", "y"]})
    with pytest.raises(DataError, match=r"(?s)evaluated texts are also trained on.*the mean"):
        python_docs._check(WrittenSets(Path()), found)
    unit = Labelled("The Mean", "ValueError", "train")
    evaluated = Labelled("The Mean", "ValueError", "evaluation")
    for apart in (_Apart({"the mean"}, set()), _Apart(set(), {"the mean"})):
        assert apart.keep("c", [unit, evaluated]) == [evaluated]
        assert apart.dropped["c"] == 1


@pytest.mark.promise(8)
def test_a_later_dataset_yields_to_the_earlier_ones_on_both_sides() -> None:
    apart = _Apart({"asked before"}, {"pretrained on"})
    apart.note([Labelled("Trained on", "a", "train")])
    texts = {"trained on": "evaluation", "asked  before": "train", "Pretrained on": "train", "new": "train"}
    units = [Labelled(text, "a", split) for text, split in texts.items()]  # type: ignore[arg-type]
    fresh = [Labelled("also new", "a", "evaluation"), Labelled("new", "a", "evaluation")]
    assert apart.add("later", [*units, *fresh]) == [units[3], fresh[0]]
    assert apart.dropped["later"] == 3
    assert apart.add("last", [Labelled("also new", "a", "train"), Labelled("new", "a", "evaluation")]) == []


def test_a_dataset_without_rule_is_refused(tmp_path: Path) -> None:
    raw = fake_manifest("numpy").model_dump(mode="json")
    raw["datasets"].append({**raw["datasets"][0], "id": "unknown"})
    with pytest.raises(ManifestError, match="no rule for unknown"):
        make_examples(Manifest.model_validate(raw), LIMITS, ALL_TASKS, tmp_path)


ALL_TASKS = tuple(task.id for task in load_manifest("python_docs").tasks)
FIRST_TASKS = ("summary_to_description", "parameter_question", "exception_class", "parameter_overlap_sts")
LIMITS = CorpusConfig(
    manifest="python_docs",
    datasets=tuple(dataset.id for dataset in load_manifest("python_docs").datasets if dataset.role == "train"),
    train_rows=700,
    pretraining_pairs=5000,
    evaluation_queries=300,
    evaluation_documents=500,
)


@pytest.fixture(scope="module")
def mined() -> Iterator[Mined]:
    yield mine(load_manifest("python_docs"))


@pytest.fixture(scope="module")
def built(mined: Mined) -> Corpus:
    return build_corpus(mined, 0)


def write_real(mined: Mined, built: Corpus, limits: CorpusConfig, out: Path, tasks: Sequence[str] = ALL_TASKS) -> Path:
    """Run the stage on what was mined once for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_docs, "mine", lambda manifest: mined)
        patch.setattr(python_docs, "build_corpus", lambda mined, seed, wanted: built)
        make_examples(load_manifest("python_docs"), limits, tasks, out)
    return out


@pytest.fixture(scope="module")
def corpus(mined: Mined, built: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real(mined, built, LIMITS, tmp_path_factory.mktemp("python_docs"))


def summary_of(corpus: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((corpus / "summary.json").read_text(encoding="utf-8"))
    return summary


def test_every_set_is_large_enough(corpus: Path) -> None:
    rows = summary_of(corpus)["rows"]
    fewer = {"train/same_name_reranking": 250, "evaluation/same_name_reranking": 80}
    fewer |= {"evaluation/same_name_reranking_held_out": 140}
    assert all(rows[name] >= fewest for name, fewest in fewer.items())
    assert {name: count for name, count in rows.items() if name.startswith("train/") and name not in fewer} == {
        f"train/{name}": 700 for name in (*LIMITS.datasets, "docstring_to_code") if name != "same_name_reranking"
    }
    assert all(rows[f"evaluation/{name}"] == 300 for name in ALL_TASKS if f"evaluation/{name}" not in fewer)
    assert rows["pretraining"] == 5000


def test_training_files_are_read_by_the_strict_reader(corpus: Path) -> None:
    for dataset in load_manifest("python_docs").datasets:
        rows = read_examples(corpus / "train" / f"{dataset.id}.jsonl")
        assert {(row.prompt, row.type) for row in rows} == {(dataset.prompt, dataset.example_type)}
        assert all(1 <= len(row.pos) <= 3 and 1 <= len(row.neg) <= 7 for row in rows)
        assert not any(set(row.neg) & {row.query, *row.pos} for row in rows)
        assert np.mean([len(row.neg) == 7 for row in rows]) > 0.95, dataset.id
    assert all(not row.neg and row.prompt is None for row in read_examples(corpus / "pretraining.jsonl"))


def test_texts_are_short_and_clean(corpus: Path) -> None:
    for path in sorted(corpus.rglob("*.jsonl")):
        if path.name in ("qrels.jsonl", "top_ranked.jsonl"):
            continue
        for row in read_jsonl(path):
            texts = [v for k in ("query", "pos", "neg", "text", "sentence1", "sentence2") for v in as_list(row.get(k))]
            is_code = path.stem == "docstring_to_code" or path.parent.name == "docstring_to_code"
            is_long = "docstring_to_module" in (path.stem, path.parent.name)
            assert all(3 <= len(text.split()) <= (120 if is_long else 60) for text in texts), path
            if not is_code:
                assert not any(MARKUP.search(text) for text in texts), (path, texts)


MARKUP = re.compile(r":`|(^|\s)\.\. [a-z-]+::|>>>|%\(\w+\)s|https?://")


def as_list(value: Any) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]


@pytest.mark.promise(8)
def test_no_evaluated_text_is_trained_on(corpus: Path) -> None:
    learnt: dict[str, set[str]] = {}
    for path in [corpus / "pretraining.jsonl", *(corpus / "train").glob("*.jsonl")]:
        rows = read_examples(path)
        learnt[path.stem] = {normalise(text) for row in rows for text in (row.query, *row.pos, *row.neg)}
    for path in (corpus / "evaluation").rglob("*.jsonl"):
        rows_of = [] if path.name in ("qrels.jsonl", "top_ranked.jsonl") else read_jsonl(path)
        texts = {normalise(row[key]) for row in rows_of for key in ("text", "sentence1", "sentence2") if key in row}
        assert all(not texts & seen for seen in learnt.values()), path
    assert not any(learnt["pretraining"] & learnt[name] for name in learnt if name != "pretraining")
    summary = summary_of(corpus)
    assert summary["shared_texts"] == 0
    assert len(summary["overlap"]) == len(learnt) * len(load_manifest("python_docs").tasks)


def test_held_out_distributions_are_only_evaluated(built: Corpus) -> None:
    for pairs in built.pairs.values():
        held_out = {pair.groups[-1] for pair in pairs if pair.split == "held_out"}
        assert held_out == {"networkx", "polars"}
        assert not held_out & {pair.groups[-1] for pair in pairs if pair.split != "held_out"}


def test_scores_and_classes_are_spread(corpus: Path) -> None:
    scores = [row["score"] for row in read_jsonl(corpus / "evaluation" / "parameter_overlap_sts" / "test.jsonl")]
    assert np.bincount(np.rint(scores).astype(int), minlength=6).min() >= 30
    folder = corpus / "evaluation" / "exception_class"
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert len(labels) == 6
    for part in ("train", "test"):
        counts = np.bincount([row["label"] for row in read_jsonl(folder / f"{part}.jsonl")], minlength=6)
        assert counts.min() >= 8
        assert counts.max() / counts.sum() < 0.35


def test_judgements_point_at_existing_rows(corpus: Path) -> None:
    for path in (corpus / "evaluation").rglob("qrels.jsonl"):
        queries = {row["id"] for row in read_jsonl(path.parent / "queries.jsonl")}
        documents = {row["id"] for row in read_jsonl(path.parent / "corpus.jsonl")}
        judgements = read_jsonl(path)
        assert {row["query"] for row in judgements} == queries
        assert {row["document"] for row in judgements} <= documents
        if (path.parent / "top_ranked.jsonl").exists():
            continue
        assert len(documents) == 500


def test_counterparts_are_ranked_among_others_and_neither_ids_nor_order_give_them_away(corpus: Path) -> None:
    for name in ("same_name_reranking", "same_name_reranking_held_out"):
        folder = corpus / "evaluation" / name
        relevant: dict[str, set[str]] = {}
        for row in read_jsonl(folder / "qrels.jsonl"):
            relevant.setdefault(row["query"], set()).add(row["document"])
        places = []
        for row in read_jsonl(folder / "top_ranked.jsonl"):
            assert len(set(row["documents"])) == len(row["documents"]) <= CANDIDATES
            assert relevant[row["query"]] < set(row["documents"])
            places += [row["documents"].index(d) / (len(row["documents"]) - 1) for d in relevant[row["query"]]]
        assert 0.4 < np.mean(places) < 0.6
        texts = [row["text"] for row in read_jsonl(folder / "corpus.jsonl")]
        assert len(set(texts)) == len(texts)


def test_labels_of_places_are_balanced_and_texts_name_no_package(corpus: Path, mined: Mined) -> None:
    names = package_names(mined.definitions)
    assert names.search("see scikit-learn") and names.search("numpy.mean") and not names.search("a dataset")
    for name, labels in (("package_classification", 10), ("summary_to_module", 20), ("docstring_to_module", 20)):
        folder = corpus / "evaluation" / name
        assert len(json.loads((folder / "labels.json").read_text(encoding="utf-8"))) == labels
        rows = [row for path in folder.glob("*.jsonl") for row in read_jsonl(path)]
        counts = np.bincount([row["label"] for row in rows], minlength=labels)
        assert counts.min() >= 3
        assert counts.max() / counts.sum() < 2.5 / labels
        assert not any(names.search(row["text"]) for row in rows)
        trained = read_examples(corpus / "train" / f"{name}.jsonl")
        assert not any(names.search(text) for row in trained for text in (row.query, *row.pos, *row.neg))


def test_what_a_study_does_not_ask_for_is_not_written_and_changes_nothing(
    mined: Mined, built: Corpus, corpus: Path, tmp_path: Path
) -> None:
    few = LIMITS.model_copy(update={"datasets": FIRST_TASKS})
    write_real(mined, build_corpus(mined, 0, FIRST_TASKS), few, tmp_path, FIRST_TASKS)
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == set(FIRST_TASKS)
    written = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl")]
    assert len(written) == 1 + 5 + 2 * 3 + 2 + 1
    assert all((tmp_path / path).read_bytes() == (corpus / path).read_bytes() for path in written)
    with pytest.raises(ManifestError, match="no evaluation task 'absent'"):
        write_real(mined, built, few, tmp_path, ["absent"])


def test_a_smaller_limit_takes_a_part_of_the_same_rows(
    mined: Mined, built: Corpus, corpus: Path, tmp_path: Path
) -> None:
    limits = {"train_rows": 50, "evaluation_queries": 60, "datasets": ("exception_class",)}
    write_real(mined, built, LIMITS.model_copy(update=limits), tmp_path)
    assert sorted(path.stem for path in (tmp_path / "train").iterdir()) == ["docstring_to_code", "exception_class"]
    for name in ("docstring_to_code", "exception_class"):
        few = read_examples(tmp_path / "train" / f"{name}.jsonl")
        assert len(few) == 50
        assert set(few) <= set(read_examples(corpus / "train" / f"{name}.jsonl"))


DIGEST = """
import hashlib, sys
from pathlib import Path
from boom_utils.config import CorpusConfig
from boom_utils.data.manifest import Manifest
from boom_utils.data.python_docs import make_examples
out = Path(sys.argv[1])
manifest = Manifest.model_validate_json(Path(sys.argv[2]).read_text())
limits = CorpusConfig(manifest="python_docs", datasets=tuple(sys.argv[3].split()), train_rows=40)
make_examples(manifest, limits, [task.id for task in manifest.tasks], out)
files = sorted(path for path in out.rglob("*") if path.is_file())
print(len(files), hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest())
"""


@pytest.mark.promise(9)
def test_every_run_writes_the_same_bytes(tmp_path: Path) -> None:
    manifest = load_manifest("python_docs").model_dump(mode="json")
    keep = ("numpy", "huggingface-hub")
    kept = [{**d, "held_out": False} for d in manifest["source"]["distributions"] if d["name"] in keep]
    manifest["source"] |= {"standard_library": False, "distributions": kept}
    # Two packages have too few names in common to evaluate counterparts.
    manifest["tasks"] = [t for t in manifest["tasks"] if not t["held_out"] and t["family"] != "reranking"]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    digests = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(PROJECT_ROOT)}
        datasets = "parameter_question exception_class same_name_reranking package_classification summary_to_module"
        command = [sys.executable, "-c", DIGEST, str(tmp_path / seed), str(path), datasets]
        digests.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert digests[0] == digests[1]
    assert int(digests[0].split()[0]) > 15


def test_importing_the_data_side_loads_no_heavy_package() -> None:
    code = "import sys, boom_utils.data.python_docs, boom_utils.data.sampling; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "networkx", "polars"}
    assert not heavy & set(loaded.stdout.split())


def test_the_corpus_names_no_path_of_this_machine(corpus: Path) -> None:
    text = (corpus / "summary.json").read_text(encoding="utf-8")
    roots = {str(Path(sys.prefix)), str(Path.home()), str(PROJECT_ROOT)} - {"/"}
    assert not any(root in text for root in roots)
