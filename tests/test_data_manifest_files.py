"""Manifests of files to download: what is refused before any is fetched, and that open_text names the right files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import QUESTIONS, SHARED, plain_smoke

from boom_utils.config import Profile
from boom_utils.data.manifest import MANIFESTS, Dataset, Manifest, load_manifest
from boom_utils.errors import ConfigError, DataError, ManifestError
from boom_utils.study.graph import Study

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCES = SHARED / "mirror" / "sources.yaml"


def address(name: str, host: str = "files.example.org") -> str:
    return f"https://{host}/owner/repo/{COMMIT}/{name}"


def raw_file(name: str = "train.tsv", **changes: object) -> dict[str, Any]:
    return {"url": address(name), "sha256": "a" * 64, "bytes": 10, "role": "train", **changes}


def raw_dataset(name: str, *files: dict[str, Any], **changes: object) -> dict[str, Any]:
    origin = {
        "task": "retrieval",
        "licence": "MIT",
        "homepage": {"dataset": f"The {name} dataset"},
        "repository": "https://example.org/owner/repo",
        "commit": COMMIT,
        "split_rule": "official files",
        "parts": {"train": 3},
        "files": list(files) or [raw_file(f"{name}.tsv")],
    }
    dataset = {
        "id": name,
        **QUESTIONS,
        "origin": origin,
    }
    return {**dataset, **changes}


def raw_manifest(*datasets: dict[str, Any], **changes: object) -> dict[str, Any]:
    chosen = list(datasets) or [raw_dataset("one"), raw_dataset("two")]
    return {
        "name": "tiny",
        "description": "A corpus of a few small files.",
        "source": {"kind": "https_files", "hosts": ["files.example.org"]},
        "datasets": chosen,
        "tasks": [{"id": d["id"], "dataset": d["id"], "family": d["family"], "held_out": False} for d in chosen],
        **changes,
    }


def problems_of(raw: object, folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_dataset_lists_its_files_and_what_they_are_for() -> None:
    manifest = Manifest.model_validate(raw_manifest())
    (file,) = manifest.origins["one"].files
    assert str(file.remote().path) == f"files.example.org/owner/repo/{COMMIT}/one.tsv"
    assert manifest.origins["one"].bytes == 10
    assert manifest.uses(manifest.dataset("one")) == ("train", "in_domain")
    assert Manifest.model_validate(manifest.model_dump(mode="json")) == manifest
    with pytest.raises(DataError, match="made of files to download"):
        _ = manifest.installed


@pytest.mark.promise(5)
def test_all_problems_of_files_are_listed_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    raw = raw_manifest(raw_dataset("one"), raw_dataset("two", raw_file(sha265="b" * 64, bytes=0)))
    raw["datasets"][0]["origin"]["license"] = raw["datasets"][0]["origin"].pop("licence")
    raw["datasets"][0]["origin"]["task"] = "retrival"
    raw["datasets"][0]["origin"]["files"][0] |= {"role": "train+tset", "sha256": "A" * 64}
    raw["datasets"][1]["origin"]["homepage"]["url"] = "javascript:alert(1)"
    raw["source"]["host"] = "files.example.org"
    message = problems_of(raw, tmp_path)
    for part in (
        "9 problem(s) in tiny.yaml",
        "datasets.0.origin.licence: Field required",
        "license: unknown key; did you mean 'licence'?",
        "did you mean 'retrieval'?",
        "no role 'tset'; did you mean 'test'?",
        "files.0.sha256: String should match",
        "sha265: unknown key; did you mean 'sha256'?",
        "files.0.bytes: Input should be greater than 0",
        "homepage.url: String should match",
        "host: unknown key; did you mean 'hosts'?",
    ):
        assert part in message, part


def test_an_unknown_kind_of_source_names_the_nearest(tmp_path: Path) -> None:
    raw = raw_manifest(source={"kind": "http_files", "hosts": ["files.example.org"]})
    assert "did you mean 'https_files'?" in problems_of(raw, tmp_path)


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    "url",
    [
        *("http://files.example.org/x", "ftp://files.example.org/x", "file:///etc/passwd", "/etc/passwd", "a b", ""),
        *("https://files.example.org/a/../b", "https://files.example.org/a/%2e%2e/b", "https://files.example.org/"),
        *("https://files.example.org/a\\b", "https://files.example.org/nul", "https://127.0.0.1:80/x"),
    ],
)
def test_a_url_the_downloader_would_refuse_is_refused_in_the_manifest(url: str, tmp_path: Path) -> None:
    assert "datasets.0.origin.files.0: " in problems_of(raw_manifest(raw_dataset("one", raw_file(url=url))), tmp_path)


@pytest.mark.promise(5)
def test_a_url_with_credentials_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for url in (address("x", "me:secret@files.example.org"), address("x?token=secret")):
        message = problems_of(raw_manifest(raw_dataset("one", raw_file(url=url))), tmp_path)
        assert "files.0: " in message
        assert "secret" not in message


@pytest.mark.promise(5)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raw: raw["datasets"].append(raw["datasets"][0]), "dataset 'one' is named twice"),
        (lambda raw: raw["source"].update(hosts=["files.example.com"]), "is not on one of source.hosts; did you mean"),
        (lambda raw: files(raw, 1, raw_file("one.tsv", sha256="b" * 64)), "is named twice with different sha256"),
        (lambda raw: files(raw, 1, raw_file("one.tsv", bytes=11)), "is named twice with different sha256 or bytes"),
        (lambda raw: files(raw, 1, raw_file("ONE.tsv")), "would lie at the place of"),
        (lambda raw: files(raw, 1, raw_file("one.tsv/part")), "is a file, and a folder of"),
        (lambda raw: files(raw, 1, raw_file("x"), raw_file("x")), "x' is named twice"),
        (lambda raw: files(raw, 1, raw_file(url="https://files.example.org/main/x")), "is not pinned: the commit"),
        (lambda raw: raw["datasets"][0].update(origin=None), "dataset 'one' has no origin"),
        (lambda raw: raw["tasks"][0].update(held_out=True), "task 'one' is held out, but its dataset is trained on"),
        (lambda raw: evaluated_by_nobody(raw), "dataset 'one' is only evaluated, but no task evaluates it"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    change: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path
) -> None:
    raw = raw_manifest()
    change(raw)
    assert expected in problems_of(raw, tmp_path)


def files(raw: dict[str, Any], number: int, *listed: dict[str, Any]) -> None:
    raw["datasets"][number]["origin"]["files"] = list(listed)


def evaluated_by_nobody(raw: dict[str, Any]) -> None:
    raw["datasets"][0]["role"] = "evaluation"
    del raw["tasks"][0]


def test_one_file_may_serve_two_datasets() -> None:
    shared = raw_file("both.csv", role="train+test")
    manifest = Manifest.model_validate(raw_manifest(raw_dataset("one", shared), raw_dataset("two", shared)))
    assert manifest.origins["one"].files == manifest.origins["two"].files
    assert manifest.origins["one"].files[0].roles == ("train", "test")


def test_a_mined_corpus_has_no_files_and_no_dataset_that_is_only_evaluated(tmp_path: Path) -> None:
    raw = yaml.safe_load((MANIFESTS / "python_docs.yaml").read_text(encoding="utf-8"))
    raw["datasets"][0]["origin"] = raw_dataset("one")["origin"]
    raw["datasets"][1]["role"] = "evaluation"
    message = problems_of(raw, tmp_path)
    assert "dataset 'summary_to_description' has files, but the source is installed distributions" in message
    assert "dataset 'parameter_question' is only evaluated: hold out distributions instead" in message


def test_a_profile_that_trains_on_what_is_only_evaluated_is_refused() -> None:
    raw = plain_smoke()
    raw["corpus"] |= {"manifest": "open_text", "datasets": ["squad_nqg", "cisi"], "new_datasets": ["conala"]}
    raw["evaluation"] |= {"in_domain": ["squad_dev"], "out_of_domain": ["cisi"]}
    with pytest.raises(ConfigError, match=r"corpus\.datasets: 'cisi' is only evaluated"):
        Study(Profile.model_validate(raw))


# --- open_text --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_text() -> Manifest:
    return load_manifest("open_text")


def test_open_text_covers_the_families_of_the_paper_in_and_out_of_domain(open_text: Manifest) -> None:
    families = {"retrieval", "reranking", "sts", "classification", "clustering", "code"}
    assert {dataset.family for dataset in open_text.datasets if dataset.role != "evaluation"} == families
    for held_out in (False, True):
        assert {task.family for task in open_text.tasks if task.held_out is held_out} == families
    order = [dataset.language == "eng" for dataset in open_text.datasets if "tweet" not in dataset.id]
    assert order == sorted(order, reverse=True), "English and code first"


def test_open_text_follows_flagembeddings_rules_by_family(open_text: Manifest) -> None:
    def rules(dataset: Dataset) -> tuple[bool, bool, bool]:
        return dataset.in_batch_negatives, dataset.halve_batch, dataset.instruction_on_passages

    expected = {
        "retrieval": (True, False, False),
        "reranking": (True, False, False),
        "code": (True, False, False),
        "sts": (True, True, True),
        "classification": (False, True, False),
        "clustering": (False, True, True),
    }
    assert {d.id: rules(d) for d in open_text.datasets} == {d.id: expected[d.family] for d in open_text.datasets}
    assert {d.group_size for d in open_text.datasets if d.family == "classification"} == {"first_row"}
    assert [d.id for d in open_text.datasets if d.group_size == "one_negative"] == ["ocnli"]


def test_open_text_says_of_every_dataset_whose_it_is_and_under_which_licence(open_text: Manifest) -> None:
    for name, origin in open_text.origins.items():
        assert origin.licence, name
        assert all(file.url.startswith(_raw(origin.repository, origin.commit)) for file in origin.files), name


def _raw(repository: str, commit: str) -> str:
    return repository.replace("https://github.com/", "https://raw.githubusercontent.com/") + f"/{commit}/"


@pytest.mark.skipif(not SOURCES.is_file(), reason="../shared/mirror/sources.yaml, the survey of the files, is not here")
def test_open_text_names_every_file_of_the_survey_with_the_same_facts(open_text: Manifest) -> None:
    survey = {one["name"]: one for one in yaml.safe_load(SOURCES.read_text(encoding="utf-8"))["datasets"]}
    assert list(survey) == [dataset.id for dataset in open_text.datasets]
    for name, one in survey.items():
        dataset, origin = open_text.dataset(name), open_text.origins[name]
        facts = [(f["url"], f["sha256"], f["bytes"], f.get("rows"), f["role"]) for f in one["files"]]
        assert [(f.url, f.sha256, f.bytes, f.rows, f.role) for f in origin.files] == facts
        assert [f.part for f in origin.files] == [f.get("part", f.get("domain")) for f in one["files"]]
        assert list(dataset.languages) == one["languages"]
        assert (origin.licence, origin.commit, origin.repository) == (one["licence"], one["commit"], one["repository"])
        known = {"train": "train", "new_data": "train", "in_domain": "eval_indomain", "out_of_domain": "eval_ood"}
        assert [known[use] for use in open_text.uses(dataset)] == one["roles"]
