"""Manifests: what a wrong one is told, what one may include, and the facts of those that come with the kit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import QUESTIONS, SHARED, plain_smoke, raw_hub_corpus
from manifest_pages import EXAMPLE

from boom_utils.config import Profile
from boom_utils.data.fetching import chosen_datasets
from boom_utils.data.manifest import MANIFESTS, Manifest, load_manifest
from boom_utils.errors import ConfigError, ManifestError
from boom_utils.study.graph import Study

Raw = dict[str, Any]
SOURCES = SHARED / "mirror" / "sources.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def file(name: str, **changes: object) -> Raw:
    url = f"https://files.example.org/owner/repo/{COMMIT}/{name}"
    return {"url": url, "sha256": "a" * 64, "bytes": 10, "role": "train", **changes}


def https_corpus() -> Raw:
    fixed = {"task": "retrieval", "licence": "MIT", "homepage": {"dataset": "One"}, "commit": COMMIT}
    fixed |= {"repository": "https://example.org/owner/repo", "parts": {"train": 3}}
    names = ("one", "two")
    return {
        "name": "tiny",
        "description": "A corpus of a few small files.",
        "source": {"kind": "https_files", "hosts": ["files.example.org"]},
        "datasets": [{"id": name, **QUESTIONS, "origin": {**fixed, "files": [file(name)]}} for name in names],
        "tasks": [{"id": name, "dataset": name, "family": "retrieval", "held_out": False} for name in names],
    }


CORPORA: dict[str, Callable[[], Raw]] = {
    "mined": lambda: yaml.safe_load((MANIFESTS / "python_docs.yaml").read_text(encoding="utf-8")),
    "https": https_corpus,
    "hub": raw_hub_corpus,
    "local": lambda: yaml.safe_load(EXAMPLE),
}


def save(raw: object, folder: Path, name: str = "tiny") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def changed(raw: Raw, changes: Raw) -> Raw:
    """With values put at dotted places, or at the end of a list; None takes away what is there."""
    for place, value in changes.items():
        *above, last = (int(part) if part.isdigit() else part for part in place.split("."))
        found: Any = raw
        for part in above:
            found = found[part]
        if value is None:
            del found[last]
        elif isinstance(found, list):
            found[int(last) : int(last) + 1] = [value]
        else:
            found[last] = value
    return raw


FIRST, HUB = "datasets.0.origin.files.0", "datasets.0.hub"
TASK = {"id": "nq", "dataset": "nq", "family": "retrieval", "held_out": False}
DISTRIBUTION = {"name": "numpy", "version": "1.0", "licence": "BSD-3-Clause"}


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("corpus", "changes", "said"),
    [
        ("mined", {"sources": 1}, "sources: unknown key; did you mean 'source'?"),
        ("mined", {"source.distributions.1.name": "DATASETS"}, "distribution 'datasets' is named twice"),
        ("mined", {"datasets.2.halve_batch": False}, "halve_batch is False, but type symmetric_class means True"),
        ("mined", {"datasets.1.role": "evaluation"}, "is only evaluated: hold out distributions instead"),
        ("mined", {"datasets.1.local": {"files": ["a.csv"]}}, "files under local, instead of none: the source is inst"),
        ("mined", {"tasks.0.dataset": "sumary_to_description"}, "did you mean 'summary_to_description'?"),
        ("mined", {"tasks.1.family": "sts"}, "task 'parameter_question' is sts, its dataset is retrieval"),
        ("mined", {"source.distributions": [DISTRIBUTION]}, "is held out, but no distribution is"),
        ("https", {"datasets.0.id": "../x"}, "datasets.0.id"),
        ("https", {"source.kind": "http_files"}, "did you mean 'https_files'?"),
        ("https", {"source.hosts.0": "files.example.com"}, "is not on one of source.hosts; did you mean 'files.ex"),
        ("https", {FIRST: file("two", sha256="b" * 64)}, "would lie at the place of"),
        ("https", {FIRST: file("two/x")}, "/two, which is a file"),
        ("https", {"excluded": {"one": "it is closed"}}, "'one' is a dataset, and excluded"),
        ("https", {"datasets.0.origin.files.1": file("one")}, "/one' is named twice"),
        ("https", {FIRST: file("x", url="https://files.example.org/main/x")}, "is not pinned: the commit"),
        ("https", {f"{FIRST}.url": "https://me:secret@files.example.org/x"}, f"{FIRST}: "),
        ("https", {"datasets.0.origin": None}, "dataset 'one' lists files under no key, instead of origin"),
        ("https", {"tasks.0.held_out": True}, "task 'one' is held out, but its dataset is trained on"),
        ("https", {"datasets.0.role": "evaluation", "tasks.0": None}, "dataset 'one' is kept from training"),
        ("hub", {f"{HUB}.repo": "../x/y"}, f"{HUB}.repo"),
        ("hub", {f"{HUB}.revision": "main"}, f"{HUB}.revision"),
        ("hub", {f"{HUB}.files": ["../x.parquet"]}, f"{HUB}.files.0.path"),
        ("hub", {f"{HUB}.files": ["a.jsonl", "a.jsonl"]}, "file 'nq: a.jsonl' is named twice"),
        ("hub", {"datasets.1.hub.files": ["data/nq-*.parquet"]}, "file 'owner/data/data/nq-*.parquet' is named twice"),
        ("hub", {"datasets.1.hub.revision": "b" * 40}, "owner/data is named at two revisions"),
        ("hub", {f"{HUB}.rows": {"value": 3, "source": "statd"}}, "did you mean 'stated'?"),
        ("hub", {"datasets.0.role": "evaluation"}, "dataset 'nq' is only evaluated: hold out rows of it"),
        ("hub", {"benchmarks": None}, "nothing to evaluate with"),
        ("hub", {"tasks": [TASK]}, "task 'nq': its dataset has no held_out share"),
        ("local", {"datasets.0.local.files": ["a.xlsx"]}, "jsonl|ndjson|json|csv|tsv|parquet|arrow"),
        ("local", {"datasets.0.local.held_out": 1.0}, "datasets.0.local.held_out"),
        ("local", {"tasks": [], "benchmarks": ["MTEB(eng, v2)"]}, "but no task evaluates it"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_name(
    tmp_path: Path, corpus: str, changes: Raw, said: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(save(changed(CORPORA[corpus](), changes), tmp_path))
    assert said in str(caught.value) and "secret" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.promise(5)
def test_all_problems_are_listed_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    wrong = {**file("one"), "role": "tets", "sha256": "A" * 64, "sha265": "b" * 64}
    changes = {"source.host": "x", "datasets.0.familly": "code", "datasets.0.origin.task": "retrival", FIRST: wrong}
    raw = changed(https_corpus(), {**changes, "datasets.0.origin.license": "MIT", "datasets.0.origin.licence": None})
    with pytest.raises(ManifestError) as caught:
        load_manifest(save(raw, tmp_path))
    assert "8 problem(s) in tiny.yaml" in str(caught.value)
    for name in ("hosts", "family", "licence", "retrieval", "test", "sha256"):
        assert f"did you mean '{name}'?" in str(caught.value), name


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_manifest_survives_being_written_and_does_not_depend_on_its_place(tmp_path: Path, corpus: str) -> None:
    (tmp_path / "other").mkdir()
    one, two = (load_manifest(save(CORPORA[corpus](), folder)) for folder in (tmp_path, tmp_path / "other"))
    assert (one.folder, two.folder) == (tmp_path.resolve(), (tmp_path / "other").resolve())
    assert one.model_dump_json() == two.model_dump_json()
    assert Manifest.model_validate(one.model_dump(mode="json")).datasets == one.datasets


def test_a_manifest_includes_the_datasets_exclusions_and_notes_of_others_beside_it(tmp_path: Path) -> None:
    for name in ("below", "deeper"):
        raw = changed(raw_hub_corpus(f"owner/{name}"), {"datasets.0.id": name, "datasets.1": None})
        save({**raw, "name": name, "notes": [f"Of {name}."], "excluded": {"gone": f"by {name}"}}, tmp_path, name)
    raw = {**raw_hub_corpus(), "includes": ["below", "deeper"], "notes": ["Its own."]}
    manifest = load_manifest(save(raw, tmp_path))
    assert [dataset.id for dataset in manifest.datasets] == ["below", "deeper", "nq", "lines"]
    assert (manifest.notes, manifest.excluded) == (("Of below.", "Of deeper.", "Its own."), {"gone": "by deeper"})
    with pytest.raises(ManifestError, match="dataset 'below' is named twice"):
        load_manifest(save(changed(raw, {"datasets.0.id": "below"}), tmp_path))
    save({**raw_hub_corpus(), "includes": ["tiny"]}, tmp_path, "below")
    for includes, said in (
        (["below"], "tiny -> below -> tiny"),
        (["python_docs"], "its source is another one"),
        (["eng_txt"], "did you mean 'eng_text'"),
    ):
        with pytest.raises(ManifestError, match=said):
            load_manifest(save({**raw_hub_corpus(), "includes": includes}, tmp_path))


def test_a_misspelt_manifest_dataset_or_task_names_the_nearest_and_broken_yaml_its_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="did you mean 'python_docs'"):
        load_manifest("python_doc")
    for find in (load_manifest("python_docs").dataset, load_manifest("python_docs").task):
        assert find("exception_class").id == "exception_class"
        with pytest.raises(ManifestError, match="did you mean 'exception_class'"):
            find("exeption_class")
    (tmp_path / "broken.yaml").write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="given twice"):
        load_manifest(tmp_path / "broken.yaml")


def test_a_profile_that_trains_on_what_is_only_evaluated_is_refused() -> None:
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "open_text", "datasets": ["squad_nqg", "cisi"], "new_datasets": ["conala"]}
    raw["evaluation"] |= {"in_domain": ["squad_dev"], "out_of_domain": ["cisi"]}
    with pytest.raises(ConfigError, match=r"corpus\.datasets: 'cisi' is only evaluated"):
        Study(Profile.model_validate(raw))


# --- the manifests that come with the kit -----------------------------------------------------------------------------


def test_the_corpora_of_the_paper_have_their_datasets_and_a_study_takes_what_it_trains_on() -> None:
    english, general = load_manifest("eng_text"), load_manifest("general_text")
    counts = Counter(dataset.family for dataset in english.datasets)
    assert counts == {"retrieval": 10, "reranking": 1, "sts": 1, "classification": 8, "clustering": 11}
    assert list(english.excluded) == ["quora", "scidocsrr", "arguana"]
    assert general.datasets[:31] == english.datasets
    own = Counter(re.sub("_[^_]+$", "", dataset.id) for dataset in general.datasets[31:])
    assert (own["miracl"], own["mr_tydi"], own["cornstack"], own.total()) == (16, 11, 6, 2 + 16 + 11 + 6)
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "general_text", "datasets": ["nq", "sts"], "new_datasets": ["cornstack_go"]}
    raw["evaluation"] |= {"in_domain": ["sts12"], "out_of_domain": ["cosqa"]}
    chosen = chosen_datasets(general, Profile.model_validate(raw))
    assert [dataset.id for dataset in chosen] == ["nq", "sts", "cornstack_go"], "its tasks are benchmarks'"


@pytest.mark.skipif(not SOURCES.is_file(), reason="../shared/mirror/sources.yaml, the survey of the files, is not here")
def test_open_text_names_every_file_of_the_survey_with_the_same_facts() -> None:
    open_text = load_manifest("open_text")
    survey = {one["name"]: one for one in yaml.safe_load(SOURCES.read_text(encoding="utf-8"))["datasets"]}
    assert list(survey) == [dataset.id for dataset in open_text.datasets]
    for dataset, one in zip(open_text.datasets, survey.values(), strict=True):
        assert dataset.origin is not None
        facts = [(f["url"], f["sha256"], f["bytes"], f["role"], f.get("part", f.get("domain"))) for f in one["files"]]
        assert [(f.url, f.sha256, f.bytes, f.role, f.part) for f in dataset.origin.files] == facts
        assert list(dataset.languages) == one["languages"]
        stated = (dataset.origin.licence, dataset.origin.commit, dataset.origin.repository)
        assert stated == (one["licence"], one["commit"], one["repository"])
