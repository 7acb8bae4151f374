"""The embedded corpus: docstrings of three styles, static mining, clean splits, the same bytes every time."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from boom_utils.artifacts import PROJECT_ROOT
from boom_utils.config import CorpusConfig
from boom_utils.data import mining
from boom_utils.data.convert import make_examples
from boom_utils.data.examples import normalise, read_examples, read_jsonl
from boom_utils.data.manifest import Manifest, load_manifest
from boom_utils.data.mining import Mined, clean_text, is_readable, mine, parse_docstring, truncate_words
from boom_utils.data.python_docs import build_corpus

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
    """
GOOGLE = """Load a data set. It is cached.

    Args:
        path (`str`, *optional*, defaults to `"x"`):
            Path or name of the data set.
        split (Union[str, list[str]]): Which part to load,
            or all of them.

    Example:
    ```py
    >>> load("x")
    ```
    """
SPHINX = """Open the connection.

    Retries twice, then gives up::

        open(1)

    :param str host: name of the machine
        to connect to
    :param port: number of the port
    :returns: nothing at all
    """
MEAN = "Compute the mean along an axis.", "Empty slices give NaN. Uses reduce on a, see and the guide."
NUMBERS = {"a": "Numbers to average.", "axis": "Axis along which the means are computed."}
PATH = {"path": "Path or name of the data set.", "split": "Which part to load, or all of them."}
HOST = {"host": "name of the machine to connect to", "port": "number of the port"}
PARTS = {
    NUMPYDOC: (*MEAN, NUMBERS),
    GOOGLE: ("Load a data set.", "It is cached.", PATH),
    SPHINX: ("Open the connection.", "Retries twice, then gives up:", HOST),
    **dict.fromkeys(("", "\n", ".. note::", "Parameters\n---------", "Args:", "---\n---", ":param x:"), ("", "", {})),
}
WORDS = {
    ":class:`Frame` or :meth:`the method <x.y>`": "Frame or the method",
    "``__setitem__`` of `obj[key]` and G[u][v]": "__setitem__ of obj[key] and G[u][v]",
    "[`~datasets.Dataset.map`] and [the docs](https://x.org/y)": "map and the docs",
    "**bold** 2*3*4 and *one word*": "bold 2*3*4 and one word",
    "a hyper-\nparameter of pre- and post-processing": "a hyper-parameter of pre- and post-processing",
    "see the list:: a lone \ud800 surrogate": "see the list: a lone surrogate",
}


def test_docstrings_of_every_style_become_the_words_a_reader_sees_without_rubble_ending_with_a_sentence() -> None:
    assert {raw: parse_docstring(raw) for raw in PARTS} == PARTS
    assert {raw: clean_text(raw) for raw in WORDS} == WORDS
    rubble = ("One word", "word " * 6, "Uses %(name)s to run", r"the \alpha of it", "1 + 2 = 3 ~ 4 [5]", "")
    assert [text for text in ("Return the mean.", *rubble) if is_readable(text, 3, 5)] == ["Return the mean."]
    assert truncate_words("One two three. Four five six", 5) == "One two three."
    assert truncate_words("One. Two three four five six", 5) == "One. Two three four five"


SOURCE = '''
raise SystemExit("imported")

class Box(Base):
    """Holds things of any kind."""

    def __init__(self, size):
        """Make a box of that size."""
        message = f"size must be positive, found {size}"
        raise ValueError(message)

    @property
    def volume(self):
        """Volume of the box. Its unit is cubic metres."""
        # a comment
        return self.size ** 3

def load(path):
    try:
        raise ValueError(path)
    except OSError as error:
        raise errors.LoadError("cannot load %s: " % path + "try again") from error
    raise TypeError("{} is no path".format(path))
'''
MESSAGES = {
    "imported": "SystemExit",
    "size must be positive, found <value>": "ValueError",
    "cannot load <value>: try again": "LoadError",
    "<value> is no path": "TypeError",
}


def manifest_of(*names: str) -> Manifest:
    """The corpus of some distributions alone; made-up ones have version 1.0."""
    raw = load_manifest("python_docs").model_dump(mode="json")
    known = {one["name"]: one for one in raw["source"]["distributions"]}
    made_up = {"version": "1.0", "licence": "MIT", "held_out": False}
    entries = [known.get(name, {"name": name, **made_up}) for name in names]
    raw["source"] |= {"distributions": entries, "standard_library": False}
    is_held_out = any(one["held_out"] for one in entries)
    raw["tasks"] = [task for task in raw["tasks"] if is_held_out or not task["held_out"]]
    return Manifest.model_validate(raw)


def test_mining_reads_the_sources_of_what_is_installed_but_no_tests_runs_nothing_and_says_what_deviates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"fakepkg/latest.py": SOURCE, "fakepkg/__init__.py": 'def top():\n    "Top of the package."\n'}
    unwanted = ["tests/b.py", "testing/b.py", "_vendor/b.py", "test_b.py", "conftest.py", "b.pyi", "data.txt"]
    files |= {f"fakepkg/{name}": SOURCE for name in unwanted} | {"fakepkg/broken.py": "def f(:\n"}
    record = {"METADATA": "Name: fakepkg\nVersion: 1.1\n", "RECORD": "".join(f"{path},,\n" for path in files)}
    for path, text in (files | {f"fakepkg-1.1.dist-info/{name}": text for name, text in record.items()}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    manifest, thresholds = manifest_of("fakepkg", "absent"), gc.get_threshold()
    mined = mine(manifest)
    assert "fakepkg" not in sys.modules and gc.get_threshold() == thresholds
    places = [f"{one.module}:{one.name}" for one in mined.definitions]  # the class, and its __init__
    assert places == ["fakepkg:top", *["fakepkg.latest:Box"] * 2, "fakepkg.latest:Box.volume"]
    assert mined.definitions[-1].code == "def volume(self):\n    # a comment\n    return self.size ** 3"
    assert mined.definitions[-1].description == "Its unit is cubic metres."
    assert mined.messages == list(MESSAGES.items())
    assert mined.deviations == [
        "fakepkg 1.0 is named by the manifest, 1.1 is installed",
        "absent 1.0 is named by the manifest, none is installed",
        "fakepkg/broken.py was not mined: SyntaxError",
    ]
    versions = {"fakepkg": "1.1", "absent": None}
    assert mining.corpus_fingerprint(manifest) == {"distributions": versions, "python": None}
    assert mining.corpus_fingerprint(load_manifest("python_docs"))["python"] == platform.python_version()


MANIFEST = manifest_of("huggingface-hub", "numpy", "networkx")
ALL_TASKS = tuple(task.id for task in MANIFEST.tasks)
TRAINED = tuple(dataset.id for dataset in MANIFEST.datasets if dataset.role == "train")
DRAWN = {"train_rows": 100, "pretraining_pairs": 500, "evaluation_queries": 60, "evaluation_documents": 100}
LIMITS = CorpusConfig(manifest="python_docs", datasets=TRAINED, **DRAWN)


@pytest.fixture(scope="module")
def mined() -> Mined:
    return mine(MANIFEST)


@pytest.fixture(scope="module")
def corpus(mined: Mined, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(mined, LIMITS, ALL_TASKS, tmp_path_factory.mktemp("python_docs"))


def write(mined: Mined, limits: CorpusConfig, tasks: tuple[str, ...], out: Path) -> Path:
    """Run the stage on what was mined once for the whole module."""
    with mock.patch.object(mining, "mine", return_value=mined):
        make_examples(MANIFEST, limits, tasks, out, out)
    return out


def texts_of(path: Path) -> list[str]:
    """What a model reads of a file."""
    rows = [] if path.name in ("qrels.jsonl", "top_ranked.jsonl") else read_jsonl(path)
    keys = ("query", "text", "sentence1", "sentence2")
    found = [(*(row.get(key, "") for key in keys), *row.get("pos", ()), *row.get("neg", ())) for row in rows]
    return [text for texts in found for text in texts if text]


def test_every_family_has_a_dataset_and_every_set_the_rows_of_its_manifest(corpus: Path) -> None:
    families = {"retrieval", "reranking", "code", "sts", "classification", "clustering"}
    assert {one.family for one in MANIFEST.datasets} == {one.family for one in MANIFEST.tasks} == families
    rows = json.loads((corpus / "summary.json").read_text(encoding="utf-8"))["rows"]
    trained = {f"train/{one.id}": 100 for one in MANIFEST.datasets}
    assert rows == {**trained, "pretraining": 500, **{f"evaluation/{name}": 60 for name in ALL_TASKS}}
    for dataset in MANIFEST.datasets:
        examples = read_examples(corpus / "train" / f"{dataset.id}.jsonl")
        assert {(row.prompt, row.type) for row in examples} == {(dataset.prompt, dataset.example_type)}
        assert all(1 <= len(row.pos) <= 3 and 1 <= len(row.neg) <= 7 for row in examples)
        assert not any(set(row.neg) & {row.query, *row.pos} for row in examples)
        assert np.mean([len(row.neg) == 7 for row in examples]) > 0.95, dataset.id
    assert all(not row.neg and row.prompt is None for row in read_examples(corpus / "pretraining.jsonl"))


@pytest.mark.promise(8)
def test_texts_are_short_and_clean_and_in_one_of_evaluation_pre_training_and_training(
    corpus: Path, mined: Mined
) -> None:
    markup = re.compile(r":`|(^|\s)\.\. [a-z-]+::|>>>|%\(\w+\)s|https?://")
    texts = {path: texts_of(path) for path in sorted(corpus.rglob("*.jsonl"))}
    for path, found in texts.items():
        assert all(3 <= len(text.split()) <= 60 for text in found), path
        if "docstring_to_code" not in (path.stem, path.parent.name):
            assert not any(markup.search(text) for text in found), path
    is_evaluated = {path: "evaluation" in path.relative_to(corpus).parts for path in texts}
    evaluated = {normalise(text) for path, found in texts.items() if is_evaluated[path] for text in found}
    learnt = {path.stem: set(map(normalise, found)) for path, found in texts.items() if not is_evaluated[path]}
    assert evaluated and not any(evaluated & seen for seen in learnt.values())
    assert not any(learnt["pretraining"] & learnt[name] for name in learnt if name != "pretraining")
    summary = json.loads((corpus / "summary.json").read_text(encoding="utf-8"))
    assert summary["shared_texts"] == 0 and len(summary["overlap"]) == len(learnt) * len(ALL_TASKS)
    made, dropped = build_corpus(mined, 0)
    assert dropped["summary_to_description"] and dropped["docstring_to_code"], "some texts are in two splits"
    for name in ("summary_to_description", "parameter_question", "docstring_to_code"):
        places = {(one.split == "held_out", one.groups[-1]) for one in made[name]}
        assert places == {(True, "networkx"), (False, "huggingface-hub"), (False, "numpy")}


RUN = "import test_data_python_docs as t; t.make_examples(t.MANIFEST, t.LIMITS, t.ALL_TASKS, t.Path(), t.Path())"


@pytest.mark.promise(9)
def test_every_run_writes_the_same_bytes_and_no_path_of_this_machine(corpus: Path, tmp_path: Path) -> None:
    folders = os.pathsep.join((str(PROJECT_ROOT), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONHASHSEED": "2", "PYTHONPATH": folders}
    subprocess.run([sys.executable, "-c", RUN], env=environment, cwd=tmp_path, check=True)
    first, second = ({p.relative_to(at): p.read_bytes() for p in at.rglob("*.json*")} for at in (corpus, tmp_path))
    assert first == second and len(first) > 30
    text = (corpus / "summary.json").read_text(encoding="utf-8")
    assert not any(root in text for root in {sys.prefix, str(Path.home()), str(PROJECT_ROOT)} - {"/"})
